"""dmoe: the production mixture, its `build_model` and its `Engine`."""

from itertools import cycle
from typing import Any

import torch

from benchmarks.workers.production_form import Job, Rows, chosen_names, load_rows
from benchmarks.workers.serve import Step, count_parameters, serve
from dmoe.config.model import GateConfig, ModelConfig
from dmoe.config.run import DecorrelationConfig, OptimiserConfig
from dmoe.machine.allocator import keep_freed_memory
from dmoe.nn.build import build_model, build_terms
from dmoe.nn.model import DMoE
from dmoe.nn.objective import Objective
from dmoe.schema import CategoricalField, MultiValuedField, NumericField, Schema
from dmoe.shards.batch import Batch
from dmoe.training.engine import Engine

CLIP_NORM = 10.0
LEARNING_RATE = 1e-3
CPU = torch.device("cpu")


def make_schema(job: Job) -> Schema:
    sizes = enumerate(job["vocabulary_sizes"])
    fields: list[Any] = [CategoricalField(name=f"c{index}", vocabulary_size=size) for index, size in sizes]
    for index, one in enumerate(job["lists"]):
        fields.append(MultiValuedField(name=f"l{index}", vocabulary_size=one["rows"], max_length=one["length"]))
    fields += [NumericField(name=f"n{index}") for index in range(job["num_numeric"])]
    return Schema(label="label", fields=tuple(fields))


def make_model(job: Job, storage: str = "float32") -> DMoE:
    """The model of a job; `storage` of its tables."""
    chosen = chosen_names(job)
    options: dict[str, dict[str, Any]] = {
        "gwpfm": {"groups": 2},
        "flatdnn": {"layers": 4, "units": job["units"]},
        "ipnn": {"fields": chosen, "hidden_units": [job["units"], job["units"] // 2]},
    }
    config = ModelConfig(
        embedding_dim=job["widths"],
        embedding_storage=storage,
        tables=job["tables"],
        experts=[{"kind": kind, **options[kind]} for kind in job["experts"]],
        gate=GateConfig(fields=chosen),
        expert_units=job["units"],
        tower_units=[job["units"]],
    )
    return build_model(config, make_schema(job), seed=job["seed"])


def make_engine(
    job: Job, model: DMoE, device: torch.device = CPU, optimiser: str = "deferred", **options: Any
) -> Engine:
    """Trains the model of a job, which is on `device`; `options`: further ones of `Engine`."""
    terms = [DecorrelationConfig(loss="corr", location="output", alpha=job["alpha"])] if len(job["experts"]) > 1 else []
    return Engine(
        model,
        Objective(build_terms(terms, model)),
        OptimiserConfig(lr=LEARNING_RATE, embedding=optimiser),  # type: ignore[arg-type]
        clip_norm=CLIP_NORM,
        device=device,
        **options,
    )


def as_batch(rows: Rows) -> Batch:
    return Batch(torch.from_numpy(rows.ids), torch.from_numpy(rows.numeric), torch.from_numpy(rows.labels)[:, None])


def prepare(job: Job) -> tuple[dict[str, Step], int]:
    # What `dmoe train` does before it trains.
    keep_freed_memory()
    engine = make_engine(job, make_model(job))
    batches = cycle([as_batch(rows) for rows in load_rows(job)])
    done = 0

    def train() -> int:
        nonlocal done
        engine.step(next(batches), done)
        done += 1
        return 1

    return {"train": train}, count_parameters(engine.model)


if __name__ == "__main__":
    serve(prepare, ("dmoe", "numpy", "numba"))
