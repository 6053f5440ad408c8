"""The examples for Kubernetes: fields that exist, names that fit each other, commands that our own program takes."""

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from torch.distributed.run import get_args_parser

from dmoe.cli.main import build_app
from dmoe.config.run import load_config

FOLDER = Path(__file__).parents[2] / "examples" / "kubernetes"

TEXT, NUMBER, YES, ANY = str, int, bool, object
# Of the API's reference (core/v1, batch/v1 of Kubernetes 1.33; kubeflow.org/v1), what examples may use: [x] is a list
# of x, {"*": x} has keys of one's own.
NAMED: dict[str, Any] = {"name": TEXT, "labels": {"*": TEXT}, "annotations": {"*": TEXT}, "namespace": TEXT}
CONTAINER: dict[str, Any] = {
    "name": TEXT,
    "image": TEXT,
    "command": [TEXT],
    "args": [TEXT],
    "workingDir": TEXT,
    "env": [{"name": TEXT, "value": TEXT}],
    "envFrom": [{"secretRef": {"name": TEXT, "optional": YES}, "configMapRef": {"name": TEXT}, "prefix": TEXT}],
    "ports": [{"name": TEXT, "containerPort": NUMBER, "protocol": TEXT}],
    "resources": {"requests": {"*": TEXT}, "limits": {"*": TEXT}},
    "volumeMounts": [{"name": TEXT, "mountPath": TEXT, "readOnly": YES, "subPath": TEXT}],
}
POD: dict[str, Any] = {
    "metadata": NAMED,
    "spec": {
        "containers": [CONTAINER],
        "restartPolicy": TEXT,
        "subdomain": TEXT,
        "terminationGracePeriodSeconds": NUMBER,
        "nodeSelector": {"*": TEXT},
        "volumes": [
            {
                "name": TEXT,
                "configMap": {"name": TEXT},
                "persistentVolumeClaim": {"claimName": TEXT, "readOnly": YES},
                "emptyDir": {"medium": TEXT, "sizeLimit": TEXT},
            }
        ],
    },
}
KINDS: dict[tuple[str, str], dict[str, Any]] = {
    ("v1", "ConfigMap"): {"data": {"*": TEXT}},
    ("v1", "Service"): {
        "spec": {
            "clusterIP": TEXT,
            "publishNotReadyAddresses": YES,
            "selector": {"*": TEXT},
            "ports": [{"name": TEXT, "port": NUMBER, "targetPort": NUMBER, "protocol": TEXT}],
        }
    },
    ("batch/v1", "Job"): {
        "spec": {
            "completionMode": TEXT,
            "completions": NUMBER,
            "parallelism": NUMBER,
            "backoffLimit": NUMBER,
            "backoffLimitPerIndex": NUMBER,
            "activeDeadlineSeconds": NUMBER,
            "ttlSecondsAfterFinished": NUMBER,
            "podReplacementPolicy": TEXT,
            "template": POD,
        }
    },
    ("kubeflow.org/v1", "PyTorchJob"): {
        "spec": {
            "nprocPerNode": TEXT,
            "elasticPolicy": {
                "rdzvBackend": TEXT,
                "rdzvId": TEXT,
                "rdzvHost": TEXT,
                "rdzvPort": NUMBER,
                "minReplicas": NUMBER,
                "maxReplicas": NUMBER,
                "maxRestarts": NUMBER,
            },
            "runPolicy": {"cleanPodPolicy": TEXT, "backoffLimit": NUMBER, "ttlSecondsAfterFinished": NUMBER},
            "pytorchReplicaSpecs": {"*": {"replicas": NUMBER, "restartPolicy": TEXT, "template": POD}},
        }
    },
}


def faults(value: Any, known: Any, where: str) -> list[str]:
    """What of `value` is not as `known` says."""
    if isinstance(known, dict):
        if not isinstance(value, dict):
            return [f"{where} is no object"]
        return [
            fault
            for key, one in value.items()
            for fault in (
                faults(one, known.get(key, known.get("*")), f"{where}.{key}")
                if key in known or "*" in known
                else [f"{where}.{key} is unknown"]
            )
        ]
    if isinstance(known, list):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [fault for place, one in enumerate(value) for fault in faults(one, known[0], f"{where}[{place}]")]
    right = type(value) is known
    return [] if right else [f"{where} is no {known.__name__}"]


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def faults_of(document: dict[str, Any]) -> list[str]:
    kind = document.get("apiVersion"), document.get("kind")
    if kind not in KINDS:
        return [f"{kind} is unknown"]
    return faults(document, {"apiVersion": TEXT, "kind": TEXT, "metadata": NAMED, **KINDS[kind]}, str(kind[1]))


@pytest.mark.parametrize("name", ["job.yaml", "pytorchjob.yaml"])
def test_every_field_is_one_of_the_interface(name: str) -> None:
    assert [fault for document in documents(name) for fault in faults_of(document)] == []


def test_a_wrong_field_is_found() -> None:
    job = documents("job.yaml")[2]
    job["spec"]["completions"] = "4"
    job["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    job["spec"]["template"]["spec"]["volumes"][0]["configMap"] = "dmoe-train"
    assert faults_of(job) == [
        "Job.spec.completions is no int",
        "Job.spec.template.spec.containers[0].volumeMount is unknown",
        "Job.spec.template.spec.volumes[0].configMap is no object",
    ]


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    found: dict[str, Any] = (
        spec["template"] if "template" in spec else spec["pytorchReplicaSpecs"]["Worker"]["template"]
    )["spec"]
    return found


@pytest.mark.parametrize(("name", "place"), [("job.yaml", 2), ("pytorchjob.yaml", 0)])
def test_the_command_is_one_of_ours(name: str, place: int) -> None:
    pod = pod_of(documents(name)[place])
    program, *words = pod["containers"][0]["command"]
    assert program == "torchrun"
    started = get_args_parser().parse_args(words)
    assert started.module
    assert started.training_script == "dmoe"
    command, *arguments = started.training_script_args
    context = typer.main.get_command(build_app(command)).commands[command].make_context(command, arguments)  # type: ignore[attr-defined]
    assert context.params["arguments"] == ["/config/run.yaml"]
    assert context.params["data"].startswith("s3://")
    assert context.params["output"] == Path("/runs/first")
    mounted = {one["mountPath"]: one["name"] for one in pod["containers"][0]["volumeMounts"]}
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert volumes[mounted["/config"]]["configMap"] == {"name": documents("job.yaml")[0]["metadata"]["name"]}
    assert "persistentVolumeClaim" in volumes[mounted["/runs"]]


def test_the_numbers_and_names_of_the_job_fit(tmp_path: Path) -> None:
    config, service, job = documents("job.yaml")
    spec, pod = job["spec"], pod_of(job)
    started = get_args_parser().parse_args(pod["containers"][0]["command"][1:])
    assert int(started.nnodes) == spec["completions"] == spec["parallelism"]
    # Pod 0 of an indexed job is <job>-0.<subdomain>, which the service of that name makes known.
    name = job["metadata"]["name"]
    assert started.rdzv_endpoint == f"{name}-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    (tmp_path / "run.yaml").write_text(config["data"]["run.yaml"])
    assert load_config(str(tmp_path / "run.yaml"), []).training.device == "cpu"


def test_the_operator_is_told_of_as_many_workers_as_there_are() -> None:
    spec = documents("pytorchjob.yaml")[0]["spec"]
    replicas = spec["pytorchReplicaSpecs"]["Worker"]["replicas"]
    assert spec["elasticPolicy"]["minReplicas"] <= replicas <= spec["elasticPolicy"]["maxReplicas"]
    assert pod_of(documents("pytorchjob.yaml")[0])["containers"][0]["name"] == "pytorch"
