"""dmoe: its experts, embedding, `Engine` and `SplitReader`.

Shape suffixes: B rows, C categorical fields, F fields, D embedding width.
"""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.workers.serve import Job, Step, count_parameters, endless, labels_of_tasks, load_batches, serve
from benchmarks.workers.stopwatch import EngineProfile
from dmoe.config.model import GateConfig, LevelConfig, ModelConfig
from dmoe.config.run import OptimiserConfig
from dmoe.nn.build import build_model
from dmoe.nn.experts import expert_class
from dmoe.nn.experts.fm import FM
from dmoe.nn.objective import Objective
from dmoe.nn.output import DMoEOutput
from dmoe.nn.tables.fields import FieldEmbedding
from dmoe.nn.tables.lookup import TableRows
from dmoe.nn.task_losses import TaskLoss, TaskLosses
from dmoe.schema import CategoricalField, Schema, Task
from dmoe.shards.batch import Batch
from dmoe.shards.reader import SplitReader
from dmoe.training.engine import Engine

CLIP_NORM = 10.0
LEARNING_RATE = 1e-3


def expert_options(name: str, job: Job) -> dict[str, Any]:
    """The options of expert `name` at the job's sizes."""
    hidden, cin = job["hidden_units"], job["cin_units"]
    return {
        "dnn": {"hidden_units": hidden},
        "dcnv2": {"layers": job["cross_layers"], "hidden_units": hidden},
        "deepfm": {"output": "scalar", "hidden_units": hidden},
        "xdeepfm": {"units": [cin], "hidden_units": hidden},
        "cin": {"units": [cin]},
        "crossnet": {"layers": job["cross_layers"]},
    }[name]


class PeersModel(nn.Module):
    """A single model as the peers have it, from dmoe's parts: one linear layer on the interaction, no alignment.

    DeepFM and xDeepFM also have the first-order table of width 1 that they have in the peers.
    """

    def __init__(self, name: str, sizes: list[int], job: Job) -> None:
        super().__init__()
        dim = job["embedding_dim"]
        first_order = name in ("deepfm", "xdeepfm")
        storage = {"float32": torch.float32, "bfloat16": torch.bfloat16}[job["embedding_storage"]]
        self.embedding = FieldEmbedding(sizes, 0, [dim, 1] if first_order else [dim], storage=storage)
        # The FM sum of DeepFM reaches the logit as it is, so it stays outside of what the last layer weighs.
        inner = "dnn" if name == "deepfm" else name
        self.fm = FM(len(sizes), dim, output="scalar") if name == "deepfm" else None
        self.interaction = expert_class(inner)(len(sizes), dim, **expert_options(inner, job))
        self.head = nn.Linear(self.interaction.out_features, 1)

    def forward(
        self, ids_BC: Tensor, numeric_BN: Tensor | None = None, rows: Sequence[TableRows] | None = None
    ) -> DMoEOutput:
        embeddings_BFD, *first_order = self.embedding(ids_BC, numeric_BN, rows)
        logit_B1 = self.head(self.interaction(embeddings_BFD))
        if self.fm is not None:
            logit_B1 = logit_B1 + self.fm(embeddings_BFD)
        for weights_BF1 in first_order:
            logit_B1 = logit_B1 + weights_BF1.sum(dim=1)
        return DMoEOutput(logit_B1.squeeze(1), (), torch.ones_like(logit_B1), (), (), ())


def make_model(job: Job) -> nn.Module:
    """The job's model: the D-MoE of a run configuration, or a single model with the peers' head."""
    sizes, names = job["vocabulary_sizes"], job["experts"]
    torch.manual_seed(job["seed"])
    if job["head"] == "linear":
        return PeersModel(names[0], sizes, job)
    fields = tuple(CategoricalField(name=f"f{index}", vocabulary_size=size) for index, size in enumerate(sizes))
    labels = tuple(Task(name=f"label{task}") for task in range(job["tasks"]))
    schema = Schema(label=labels[0].name, fields=fields, labels=labels if len(labels) > 1 else ())
    if job["head"] == "ple":
        return build_model(ple(job), schema, seed=job["seed"])
    config = ModelConfig(
        embedding_dim=job["embedding_dim"],
        embedding_storage=job["embedding_storage"],
        experts=[{"kind": name, **expert_options(name, job)} for name in names],
        gate=GateConfig(units=job["gate_units"]),
        expert_units=job["expert_units"],
        tower_units=[job["expert_units"]],
    )
    return build_model(config, schema, seed=job["seed"])


def ple(job: Job) -> ModelConfig:
    """PLE of two levels: shared experts and one of each task."""
    *inner, units = job["hidden_units"]
    shared = len(job["experts"]) - job["tasks"]
    entries: list[dict[str, Any]] = [{"hidden_units": inner, "count": shared}, {"hidden_units": inner, "per": "task"}]
    return ModelConfig(
        embedding_dim=job["embedding_dim"],
        embedding_storage=job["embedding_storage"],
        tables="shared",
        experts=[{"kind": "dnn", **entry} for entry in entries],
        foreign="hidden",
        gate=GateConfig(units=0, table=0),
        expert_units=units,
        levels=[LevelConfig(experts=[{"kind": "mlp", **entry} for entry in entries])],
        tower_units=[job["expert_units"]],
    )


def make_engine(model: nn.Module, job: Job, device: str = "cpu", **options: Any) -> Engine:
    """`options`: further ones of `Engine`."""
    optimiser = OptimiserConfig(lr=LEARNING_RATE, embedding=job["optimiser"], embedding_l2=job["embedding_l2"])
    tasks = TaskLosses([TaskLoss()] * job["tasks"]) if job["tasks"] > 1 else None
    return Engine(model, Objective(tasks=tasks), optimiser, clip_norm=CLIP_NORM, device=torch.device(device), **options)  # type: ignore[arg-type]


class Contestant:
    """Everything that one process keeps: the model, its engine and where its batches come from."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.model = make_model(job)
        self.engine = make_engine(self.model, job)
        self.done = 0
        empty = torch.empty(job["batch_size"], 0)
        self.prebuilt = cycle(
            [
                Batch(torch.from_numpy(ids), empty[: len(ids)], torch.from_numpy(labels_of_tasks(y, job)))
                for ids, y in load_batches(job)
            ]
        )
        self.steps: dict[str, Step] = {
            "train": lambda: self.train(next(self.prebuilt)),
            "score": lambda: self.score(next(self.prebuilt)),
            "score-bfloat16": lambda: self.score(next(self.prebuilt), torch.bfloat16),
        }
        if job["data"]:
            trained, read = (endless(self.reader(shuffle=True).batches) for _ in range(2))
            self.steps |= {
                "train-files": lambda: self.train(next(trained)),
                "read-files": lambda: len([next(read)]),
                # A new reader each time, so that every pass opens and decodes the files.
                "score-files": self.score_files,
                "bfloat16-score-files": lambda: self.score_files(torch.bfloat16),
            }

    def reader(self, *, shuffle: bool) -> SplitReader:
        return SplitReader(Path(self.job["data"]), "train", batch_size=self.job["batch_size"], shuffle=shuffle)

    def train(self, batch: Batch) -> int:
        if not self.model.training:
            self.model.train()
        self.engine.step(batch, self.done)
        self.done += 1
        return 1

    def score_files(self, precision: torch.dtype = torch.float32) -> int:
        return sum(self.score(batch, precision) for batch in self.reader(shuffle=False).batches())

    def score(self, batch: Batch, precision: torch.dtype = torch.float32) -> int:
        if self.model.training:
            self.model.eval()
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)
        with torch.inference_mode(), autocast:
            torch.sigmoid(self.model(batch.ids_BC, batch.numeric_BN).logit)
        return 1


def main() -> None:
    made: list[Contestant] = []

    def prepare(job: Job) -> tuple[dict[str, Step], int]:
        made.append(Contestant(job))
        return made[0].steps, count_parameters(made[0].model)

    def profile(steps: int) -> dict[str, float]:
        with EngineProfile(made[0].engine) as watch:
            for _ in range(steps):
                with watch.part("rest"):
                    made[0].steps["train"]()
        return {name: milliseconds / steps for name, milliseconds in watch.milliseconds.items()}

    serve(prepare, ("dmoe", "numpy", "numba"), profile)


if __name__ == "__main__":
    main()
