"""Fields of any name, from the log to the server's answer; what cannot be a name is refused by `prepare` at once."""

import asyncio
import io
import json
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import httpx
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pyarrow import ipc

import dmoe
from dmoe.cli.main import main
from dmoe.schema import Schema
from dmoe.serving.app import Application
from dmoe.serving.settings import Settings

NAMES = [
    "点击率广告主品牌类目价格区间用户年龄性别城市设备网络版本号",  # 28 characters of three bytes each
    "😀👨\u200d👩\u200d👧",
    'it"s',
    "it's",
    "a/b",
    "a.b.c",
    "a\\b",
    " lead",
    "trail ",
    "two  spaces",
    "select",
    "from",
    "; drop table x--",
    "__index_level_0__",
    "x" * 300,
    "Site",
    "site",
    "SITE",
    "caf\u00e9",
    "cafe\u0301",
    "a;b, c",
    "100%",
    "%2F",
    "{x}",
    "$x$",
    "<b>&amp;",
    "null",
    "no",
    "label",
    "split",
    "=1+1",
    "id",
    "value",
    "inputs",
    "con",
    "..",
]
NUMBERS = [" lead", "a.b.c", "SITE", "select", "{x}"]  # these as numeric fields
LISTS = ["a;b, c", "cafe\u0301", "<b>&amp;"]  # and these as multi-valued ones
SMALL = ("model.embedding_dim=2", "model.expert_units=4", "model.tower_units=[4]", "training.epochs=1")


def cli(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    told = capsys.readouterr()
    assert not done.value.code, told.err
    return told.out


def log(seed: int, token: str = "v{}") -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    columns: dict[str, object] = {"click of the log": draw.integers(2, size=400)}
    for name in NAMES:
        values = draw.integers(6, size=400)
        form = "{}.5" if name in NUMBERS else "v{}|w" if name in LISTS else token
        columns[name] = [form.format(value) for value in values]
    columns["probability"] = [token.format(value) for value in draw.integers(6, size=400)]
    return pd.DataFrame(columns)


def config() -> dict[str, object]:
    plain = [name for name in NAMES if name not in (*NUMBERS, *LISTS)]
    return {
        "label": "click of the log",
        "split": {"kind": "stratified"},
        "fields": {
            "categorical": {name: {} for name in plain} | {"chance": {"column": "probability"}},
            "numeric": {name: {"transform": "log"} for name in NUMBERS},
            "multi_valued": {name: {"max_length": 2} for name in LISTS},
        },
    }


def test_every_name_goes_all_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = log(1)
    table.to_csv(tmp_path / "log.csv", index=False)
    other = log(2, "unseen{}")
    other.to_csv(tmp_path / "next.csv", index=False)
    (tmp_path / "data.yaml").write_text(json.dumps(config()))  # JSON is YAML, with its escapes
    data, run, model = (tmp_path / name for name in ("data", "run", "model"))
    suggested = cli(capsys, "inspect", tmp_path / "log.csv", "--label", "click of the log")
    (tmp_path / "suggested.yaml").write_text(suggested)
    for file, output in (("suggested.yaml", tmp_path / "suggested"), ("data.yaml", data)):
        cli(capsys, "prepare", "--config", tmp_path / file, "--input", tmp_path / "log.csv", "--output", output)
    names = {*NAMES, "chance"}
    assert {one.name for one in Schema.read(data).fields} == names
    assert {field["name"] for field in json.loads(cli(capsys, "inspect", data, "--json"))["fields"]} == names
    drifted = json.loads(cli(capsys, "drift", data, "-o", tmp_path / "drift.html", "--json"))
    assert {field["name"] for field in drifted["groups"][0]["fields"]} == names
    cli(capsys, "train", "d-moe", *SMALL, "--data", data, "--output", run)
    cli(capsys, "export", run, "-o", model)
    cli(capsys, "report", run, "-o", tmp_path / "report.html")
    for page in ("report.html", "drift.html"):
        text = (tmp_path / page).read_text()
        assert "<b>&amp;</" not in text  # a name is never markup
        assert {name for name in names if name not in unescape(text)} == set()

    rows = table.drop(columns="click of the log").head(40)
    wanted = dmoe.load(run).predict_proba(rows)
    for folder in (run, model):
        cli(capsys, "predict", folder, tmp_path / "log.csv", "-o", tmp_path / "scores.csv")
        got = pd.read_csv(tmp_path / "scores.csv")["probability"].to_numpy()[:40]
        np.testing.assert_allclose(got, wanted, atol=2e-6)
    asyncio.run(served(model, rows, other.drop(columns="click of the log"), wanted))


async def served(model: Path, rows: pd.DataFrame, other: pd.DataFrame, wanted: npt.NDArray[np.float32]) -> None:
    application = Application(Settings(model=model, access_log=False))
    transport = httpx.ASGITransport(application.guard)
    arrow = "application/vnd.apache.arrow.stream"
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        described = (await client.get("/v2/models/dmoe")).json()["inputs"]
        assert {one["name"] for one in described} == set(rows)
        openapi = (await client.get("/openapi.json")).json()
        infer = openapi["paths"]["/v2/models/dmoe/infer"]["post"]["requestBody"]["content"]["application/json"]
        assert {one["name"] for one in infer["example"]["inputs"]} == set(rows)
        body = json.dumps({"inputs": [tensor(rows, name) for name in rows]})
        answer = await client.post("/v2/models/dmoe/infer", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(answer.json()["outputs"][0]["data"], wanted, atol=2e-6)
        sink = io.BytesIO()
        whole = pa.Table.from_pandas(other, preserve_index=False)
        with ipc.new_stream(sink, whole.schema) as writer:
            writer.write_table(whole)
        answer = await client.post("/v2/models/dmoe/infer", content=sink.getvalue(), headers={"content-type": arrow})
        assert answer.status_code == 200, answer.text
        fields = {unquote(one.split(";")[0]) for one in answer.headers["x-dmoe-unseen"].split(", ")}
        assert fields
        assert fields <= {*NAMES, "chance"} - {*NUMBERS, *LISTS}
        for name in ("a/b", NAMES[0], "Site"):
            inputs = [tensor(rows, one) for one in rows if one != name]
            answer = await client.post("/v2/models/dmoe/infer", json={"inputs": inputs})
            assert answer.status_code == 400
            assert f"input '{name}' is missing" in answer.json()["error"]
        families = text_string_to_metric_families((await client.get("/metrics")).text)
        shown = {sample.labels["field"] for family in families for sample in family.samples if "field" in sample.labels}
        assert shown == {*NAMES, "chance"}
    application.close()


def tensor(rows: pd.DataFrame, name: str) -> dict[str, object]:
    return {"name": name, "datatype": "BYTES", "shape": [len(rows)], "data": rows[name].tolist()}


@pytest.mark.parametrize(
    "name", ["probability", "logit", "gate_weights", "fields/x", "model/x", "", " ", "\t", "a\nb", "a\x00b", "\u2028"]
)
def test_what_cannot_be_a_name_is_refused_by_prepare(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("categorical", "numeric", "multi_valued"):
        (tmp_path / "data.yaml").write_text(json.dumps({"label": "y", "fields": {kind: [name]}}))
        (tmp_path / "log.csv").write_text("y,x\n" + "0,1\n1,2\n" * 20)
        with pytest.raises(SystemExit) as done:
            main(["prepare", "--config", str(tmp_path / "data.yaml"), "-i", str(tmp_path / "log.csv"), "-o", "none"])
        assert done.value.code == 2
        assert "the field name" in capsys.readouterr().err
