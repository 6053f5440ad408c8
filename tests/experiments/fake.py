"""An experiment folder whose runs were never trained: their logits are drawn, better where `quality` says so."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from dmoe.config.run import RunConfig
from dmoe.disk.files import write_json
from dmoe.experiments import plan
from dmoe.experiments.folder import Asked, Folder, SplitSize
from dmoe.experiments.stored import CELL_FORMAT
from dmoe.training.recipe import sized

ROWS = 800


def alpha_of(config: RunConfig) -> float:
    return config.decorrelation[0].alpha if config.decorrelation else 0.0


def plain(config: RunConfig) -> float:
    """Every model as good as every other; alpha 100 slightly ahead in searches."""
    return 1.0 + (0.01 if alpha_of(config) == 100 else 0.0)


def fake_folder(
    path: Path, names: tuple[str, ...], seeds: int = 3, *, quality: Callable[[RunConfig], float] = plain,
    cec: Callable[[RunConfig], float] = lambda config: 0.1 / (1 + alpha_of(config)), truth: str | None = None,
    size: str = "tiny", parts: tuple[int, ...] = (),
    quality_of_part: Callable[[RunConfig, int | None], float] | None = None,
    keep: Callable[[RunConfig], bool] = lambda _: True,
) -> Folder:  # fmt: skip
    """The folder with every cell finished that `keep` lets be; `quality` is the signal in a model's logits."""
    folder = Folder(path)
    splits = {split: SplitSize(rows=ROWS, positives=int(_labels(split).sum())) for split in ("train", "valid", "test")}
    asked = Asked(
        data=str(path / "data"),
        splits=splits,
        fields=5,
        tokens=50,
        size=size,
        seeds=seeds,
        names=names,
        truth=truth,
        parts=parts,
    )
    folder.ask(asked)
    arms = [arm for name in names for arm in folder.arms(name)]
    done: set[str] = set()
    while new := [one for one in plan.wanted(arms, asked.seed_numbers, folder.finished()) if one.cell.key not in done]:
        for one in new:
            done.add(one.cell.key)
            if keep(one.cell.config):
                config, part = one.cell.config, one.cell.part
                signal = quality_of_part(config, part) if quality_of_part else quality(config)
                _finish(folder, one, signal, cec(config))
    return folder


def _labels(split: str) -> np.ndarray:
    return np.random.default_rng(len(split)).random(ROWS) < 0.3


def _finish(folder: Folder, one: plan.Wanted, quality: float, cec: float) -> None:
    config = one.cell.config
    cell = folder.make_cell(one.cell)
    metrics, tables = {}, []
    random = np.random.default_rng([int(one.cell.key, 16) % 2**32, one.seed])
    for split in ("valid", "test"):
        labels = _labels(split)
        # Rows are hard or easy for every model alike; the rest is a model's own.
        logits = quality * labels + np.random.default_rng(7).normal(size=ROWS) + 0.05 * random.normal(size=ROWS) - 1
        metrics[split] = _figures(config, labels, logits, cec + 0.001 * random.normal())
        tables.append(pa.table({"split": [split] * ROWS, "label": labels, "logit": logits.astype(np.float32)}))
    parquet.write_table(pa.concat_tables(tables), cell / "scores.parquet")
    several = len(config.model.experts) > 1
    write_json(
        cell / "cell.json",
        {
            "format_version": CELL_FORMAT,
            "config": config.values(),
            "part": one.cell.part,
            "resolved": sized(config, one.cell.part or ROWS).model_dump(mode="json"),
            "metrics": metrics,
            "planted": {"parts": ["inner", "triple"], "r_squared": [[0.1, 0.6], [0.7, 0.2]]} if several else None,
            "tables": [{"table": 0, "experts": [0], "width": 2, "fields": 3, "abundance": 0.7, "weighted": 0.6}],
            "training": [
                {"step": step, "epoch": 1, "train_logloss": 0.5, "valid_auc": 0.7, "valid_logloss": 0.5,
                 "cec": cec + 0.1 / step if several else None, "dead_columns": [0, 1], "best": True}
                for step in (10, 20, 30)
            ],
            "parameters": 1000, "seconds": 12.5, "steps": 30, "best_epoch": 1, "rows_per_second": 100.0,
            "peak_memory_bytes": 5 << 20, "versions": {"python": "3.11", "torch": "2"},
            "hardware": {"machine": "x", "system": "y", "threads": 1, "gpu": None},
        },
    )  # fmt: skip


def _figures(config: RunConfig, labels: np.ndarray, logits: np.ndarray, cec: float) -> dict[str, object]:
    from dmoe.metrics.scores import auc, logloss

    experts = len(config.model.experts)
    found: dict[str, object] = {
        "rows": ROWS, "positives": int(labels.sum()), "auc": auc(labels, logits), "logloss": logloss(labels, logits),
        "relative_information_gain": 0.1, "calibration_error": 0.02, "predicted_to_observed": 1.01,
    }  # fmt: skip
    if experts == 1:
        return found
    matrix = [[cec if row > column else None for column in range(experts)] for row in range(experts)]
    return found | {
        "cec": cec, "cec_noise_floor": 0.01, "cec_before_relu": cec, "cec_matrix": matrix, "cka": 2 * cec,
        "dead_columns": [0] * experts, "dead_share": 0.05, "gate_mean": [1 / experts] * experts, "gate_entropy": 0.9,
        "gate_fields": [{"field": "site", "spread": 0.1}, {"field": "hour", "spread": 0.05}],
        "alone_auc": [0.6] * experts, "best_alone_auc": 0.6, "mean_alone_auc": 0.65, "error_correlation": 0.9,
        "separation": 0.1,
    }  # fmt: skip
