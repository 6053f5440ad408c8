"""Run folders with made-up but plausible results, written as training and evaluation write them."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dmoe.schema import FORMAT_VERSION

MakeRun = Callable[..., Path]
HOSTILE = "<script>alert('x')</script>"


def write_run(
    folder: Path,
    *,
    kinds: tuple[str, ...] = ("cin", "crossnet"),
    tables: str | list[int] = "per-expert",
    alpha: float = 0.0,
    auc: float = 0.75,
    cec: float = 0.11,
    epochs: int = 4,
    splits: tuple[str, ...] = ("valid", "test"),
    steps: bool = True,
    finished: bool = True,
    dead: int = 12,
    field: str = "site_id",
    labels: bool = False,
    domains: bool = False,
) -> Path:
    """One run folder; `splits` are the evaluated ones. `labels`: click, watch given click, and like."""
    folder.mkdir(parents=True)
    config = {
        "model": {
            "embedding_dim": 16,
            "tables": tables,
            "experts": [{"kind": kind} for kind in kinds],
            "gate": {"units": 64, "table": "own"},
        },
        "decorrelation": [{"loss": "corr", "location": "output", "alpha": alpha}] if alpha else [],
        "optimiser": {"kind": "adam", "lr": 1e-3, "embedding": "deferred", "embedding_l2": 1e-8},
        "training": {"batch_size": 10_000, "epochs": 10, "seed": 2025},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    schema = {
        "format_version": FORMAT_VERSION,
        "label": "click",
        "fields": [
            {"kind": "categorical", "name": field, "vocabulary_size": 4051, "min_count": 2},
            {"kind": "categorical", "name": "hour", "vocabulary_size": 26, "min_count": 2},
            {"kind": "categorical", "name": "device_model", "vocabulary_size": 7259, "min_count": 2},
            {"kind": "numeric", "name": "price", "transform": "log", "mean": 1.5, "scale": 0.25},
        ],
        "source": {"label": "click", "note": "a & b"},
        "coverage": {
            field: {"unseen": {"train": 0.004, "valid": 0.031, "test": 0.0625}, "missing": {"train": 0.0}},
            "hour": {"unseen": {"train": 0.0, "valid": 0.0, "test": 0.0}, "missing": {"train": 0.0}},
            "device_model": {"unseen": {"train": 0.01, "valid": 0.12, "test": 0.1475}, "missing": {"train": 0.2}},
            "price": {"missing": {"train": 0.1}},
        },
    }
    if labels:
        schema["labels"] = [{"name": "click"}, {"name": "watch", "given": "click"}, {"name": "like"}]
    if domains:
        schema["domain"] = {"field": "hour", "names": ["feed", HOSTILE, "other"], "of_id": [0, 2] + [0, 1, 2] * 8}
    (folder / "schema.json").write_text(json.dumps(schema))
    random = np.random.default_rng(len(kinds) + round(alpha) + round(cec * 1e4))
    best = max(0, epochs - 2)
    lines = []
    for index in range(epochs):
        off = 0.004 * abs(index - best)
        lines.append(
            {
                "epoch": index + 1,
                "step": 80 * (index + 1),
                "rows": 800_000 * (index + 1),
                "seconds": 21.5 * (index + 1),
                "rows_per_second": 38_000 + 400 * index,
                "lr": 1e-3 if index <= best else 1e-4,
                "train_loss": 0.41 - 0.012 * index + (0.004 if alpha else 0.0),
                "train_logloss": 0.41 - 0.012 * index,
                "decorrelation_loss": 0.02 * math.exp(-index) if alpha else 0.0,
                "valid": {
                    "auc": auc - 0.002 - off,
                    "logloss": 0.392 + off - (auc - 0.75),
                    **({"tasks": task_scores(auc, off)} if labels else {}),
                },
                "best": index <= best,
            }
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if steps:
        logged = (
            {
                "step": step,
                "loss": 0.45,
                "logloss": 0.39 + 0.25 * math.exp(-step / 30) + random.normal(0, 0.006),
                "decorrelation": 0.03 * math.exp(-step / 40) if alpha else 0.0,
            }
            for step in range(1, 80 * epochs, 2)
        )
        (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))
    if finished:
        metrics = {
            "valid": {"auc": auc - 0.002, "logloss": 0.392 - (auc - 0.75)},
            "best_epoch": best + 1,
            "seconds": 96.4,
            "rows_per_second": 38_500.0,
            "parameters": 1_234_567,
        }
        if "test" in splits:
            metrics["test"] = {"auc": auc, "logloss": 0.39 - (auc - 0.75)}
        if labels:
            metrics["own_best"] = {
                "click": {"step": 160, "monitored": 0.4, "short": 0.0},
                "watch": {"step": 80, "monitored": 0.3, "short": 0.00125},
            }
            pair = {"first": "click", "second": "watch", "cosine": -0.125, "below_0": 0.75}
            metrics["task_gradients"] = {"batches": 8, "pairs": [pair]}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    environment = {
        "data": "/data/avazu",
        "versions": {"python": "3.11.2", "dmoe": "0.1.0", "torch": "2.13.0"},
        "hardware": {"machine": "x86_64", "system": "Linux", "threads": 2, "gpu": None},
        "git_revision": None,
        "wall_seconds": 96.4,
        "peak_memory_bytes": 1_610_612_736,
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    for split in splits:
        own = auc - (0.002 if split == "valid" else 0.0)
        write_evaluation(folder, split, kinds, own, cec, dead, random, field)
        if labels or domains:
            path = folder / "evaluation" / f"{split}.json"
            tasks = evaluated_tasks(own, labels, domains)
            group = {"auc": 0.61234, "groups": 310, "rows": 4000, "skipped_groups": 1, "skipped_rows": 2}
            grouped = {"field": "site_id", "tasks": dict.fromkeys(tasks, group) | {"like": None}}
            found = {"tasks": tasks} | ({"grouped_auc": grouped} if labels else {})
            pair = {"matrix": [[None, None], [0.25, None]], "total": 0.25, "noise_floor": 0.0125, "rows": 4096}
            found |= (
                {"correlation_by_level": [pair], "correlation_by_domain": {"feed": pair, "x": None}} if domains else {}
            )
            path.write_text(json.dumps(json.loads(path.read_text()) | found))
    return folder


def task_scores(auc: float, off: float) -> dict[str, Any]:
    return {
        name: {"auc": auc + more - off, "logloss": 0.39 - more + off}
        for name, more in (("click", 0.0), ("watch", -0.03), ("like", 0.05))
    }


def evaluated_tasks(auc: float, labels: bool, domains: bool) -> dict[str, Any]:
    """`tasks` of evaluation/<split>.json; `other` has one class only."""

    def scores(rows: int, positives: int, own: float | None) -> dict[str, Any]:
        return {
            "rows": rows,
            "positives": positives,
            "auc": own,
            "logloss": 0.31234,
            "observed": positives / rows,
            "predicted_to_observed": 1.02,
        }

    def described(rows: int, positives: int, own: float) -> dict[str, Any]:
        found = scores(rows, positives, own) | {
            "relative_information_gain": 0.125,
            "calibration": {
                "bins": [
                    {"low": 0.1, "high": 0.2, "rows": rows // 2, "mean_predicted": 0.15, "click_rate": own / 5},
                    {"low": 0.2, "high": 0.4, "rows": rows // 2, "mean_predicted": 0.3, "click_rate": own / 3},
                ],
                "expected_calibration_error": own / 100,
                "predicted_to_observed": 1 + own / 10,
            },
        }
        if domains:
            found["domains"] = {
                "feed": scores(rows // 4, positives // 4, own - 0.02),
                HOSTILE: scores(rows // 2, positives // 2, own - 0.04),
                "other": scores(10, 0, None),
            }
            found["macro"] = {"auc": own - 0.03, "logloss": 0.32345, "left_out": ["other"]}
        return found

    click = {"click": described(100_000, 16_980, auc) | {"unknown": 0}}
    if not labels:
        return click
    joint = described(100_000, 5_000, auc + 0.1)
    return click | {
        "watch": described(16_980, 5_000, auc - 0.03) | {"unknown": 83_020, "given": "click", "joint": joint},
        "like": described(90_000, 1_800, auc + 0.05) | {"unknown": 10_000},
    }


def write_evaluation(
    folder: Path,
    split: str,
    kinds: tuple[str, ...],
    auc: float,
    cec: float,
    dead: int,
    random: np.random.Generator,
    field: str,
) -> None:
    """evaluation/<split>.json."""
    count = len(kinds)
    several = count > 1
    edges = [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0]
    bins = []
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        middle = low + 0.4 * (high - low)
        rows = round(30_000 / (index + 1) ** 1.6)
        rate = float(random.binomial(rows, middle) / rows)
        bins.append({"low": low, "high": high, "rows": rows, "mean_predicted": middle, "click_rate": rate})

    def one_location(width: int, value: float) -> dict[str, Any]:
        matrix = [
            [value * (0.6 + 0.1 * row + 0.2 * column) if column < row else None for column in range(count)]
            for row in range(count)
        ]
        return {
            "matrix": matrix,
            "total": sum(entry for row in matrix for entry in row if entry is not None),
            "noise_floor": 0.8 / math.sqrt(100_000),
            "rows": 100_000,
            "columns": [width] * count,
            "dead_columns": [dead * (index + 1) if width == 500 else 0 for index in range(count)],
        }

    def weights(share: float) -> list[float]:
        rest = [(1 - share) * 2 * (index + 1) / (count * (count - 1)) for index in range(count - 1)]
        return [share, *rest]

    def gate_field(name: str, spread: float, values: list[str]) -> dict[str, Any]:
        shares = np.linspace(0.5 - spread, 0.5 + spread, len(values))
        return {
            "field": name,
            "spread": spread,
            "values": [
                {
                    "value": value,
                    "rows": 20_000 // (index + 1),
                    "click_rate": 0.12 + 0.02 * index,
                    "mean_weights": weights(float(share)),
                }
                for index, (value, share) in enumerate(zip(values, shares, strict=True))
            ],
        }

    def apart(rows: int, auc: float | None) -> dict[str, Any]:
        scores = {"auc": auc and auc - 0.0625, "logloss": 0.41234, "predicted_to_observed": 1.25}
        return {"with": {"rows": rows, **scores}, "without": {"rows": 100_000 - rows, **scores, "auc": auc}}

    logloss = 0.39 + (0.002 if split == "valid" else 0.0) - (auc - 0.75)
    evaluation = {
        "format_version": 1,
        "split": split,
        "rows": 100_000,
        "positives": 16_980,
        "auc": auc,
        "logloss": logloss,
        "relative_information_gain": 0.1437,
        "unseen": {
            "any": apart(20_000, auc),
            "fields": [
                {"field": "device_model", "values": 80_000, "unseen": 11_800, "scores": apart(11_800, auc)},
                {"field": "hour", "values": 100_000, "unseen": 0, "scores": None},
                {"field": "site", "values": 90_000, "unseen": 900, "with_missing": True, "scores": apart(900, None)},
            ],
            "far_above": [],
        },
        "calibration": {"bins": bins, "expected_calibration_error": 0.00412, "predicted_to_observed": 1.0123},
        "experts": [
            {"index": index, "name": kind, "table": index, "parameters": 159_000 + 1000 * index}
            for index, kind in enumerate(kinds)
        ],
        "correlation": {
            "output": one_location(500, cec),
            "pre-activation": one_location(500, 1.4 * cec),
            "intermediate 2": one_location(384, 0.8 * cec),
            "intermediate 1": one_location(384, 0.7 * cec),
            "input": one_location(384, 0.2 * cec),
        }
        if several
        else {},
        "gate": {
            "mean": weights(0.47),
            "std": [0.13] * count,
            "mean_entropy": 0.91 * math.log(count),
            "argmax_share": weights(0.41),
            "by_field": [
                gate_field("hour", 0.05, ["14", "15", "16"]),
                gate_field(
                    field, 0.31, ["(missing)", "(out of vocabulary)", "1fbe01fe", HOSTILE, "", "(all other values)"]
                ),
                gate_field("device_model", 0.18, [f"{value:08x}" for value in range(14)]),
            ],
        }
        if several
        else None,
        "removal": [
            {"expert": index, "auc": auc - 0.004 * (index + 1), "logloss": logloss + 0.003 * (index + 1)}
            for index in range(count)
        ]
        if several
        else [],
        "alone": [
            {"expert": index, "auc": auc - 0.009 / (index + 1), "logloss": logloss + 0.006 / (index + 1)}
            for index in range(count)
        ]
        if several
        else [],
    }
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "evaluation" / f"{split}.json").write_text(json.dumps(evaluation))


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(name, **options of write_run)` writes a run folder under tmp_path."""

    def make(name: str = "run", **options: Any) -> Path:
        return write_run(tmp_path / name, **options)

    return make
