"""A small log with every kind of field, drawn at random."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.config.data import DataConfig

SPLITS = ("train", "valid", "test")


def config(**changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "label": "y",
        "split": {"kind": "ordered", "train": 0.6, "valid": 0.2, "test": 0.2},
        "fields": {
            "min_count": 2,
            "categorical": {"site": {}, "user": {"min_count": 1, "missing_values": ["NA"]}, "weekday": {}},
            "numeric": {
                "price": {"transform": "log", "standardise": True},
                "age": {"transform": "standardise"},
                "raw": {},
                "hits": {"transform": "bucket", "missing_values": ["0"], "missing_as": "oov"},
            },
        },
        "derive": {"weekday": {"column": "time", "take": "weekday", "format": "yymmddhh"}},
        "format": {"missing": ["", "?"]},
    }
    return DataConfig.model_validate(values | changes)


COLUMNS = ("id", "y", "site", "user", "time", "price", "age", "raw", "hits")


def random_rows(count: int, seed: int) -> list[list[str]]:
    draw = np.random.default_rng(seed)
    sites = ["a", "b", "é", "日本", "Z", "a b", "", "?", "😀"]
    rows = []
    for index in range(count):
        rows.append(
            [
                str(index),
                str(index % 2),
                sites[draw.integers(len(sites))],
                draw.choice(["u1", "u2", "NA", f"r{draw.integers(30)}"]),
                f"1410{draw.integers(10, 30)}{draw.integers(24):02d}",
                draw.choice(["", "0", "-3", f"{draw.normal():.4f}", "1e3"]),
                draw.choice(["?", "7", f"{draw.integers(90)}"]),
                draw.choice(["", "+1.5", "-0", f" {draw.random():.3f}"]),
                draw.choice(["", "0", "1", "2", "3", "-2", f"{draw.integers(500)}"]),
            ]
        )
    return rows


def write_csv(path: Path, rows: Sequence[Sequence[str]], *, end: str = "\n") -> Path:
    text = "".join(",".join(row) + end for row in [COLUMNS, *rows])
    path.write_bytes(text.encode())
    return path


def read_split(folder: Path, split: str) -> pa.Table:
    return pq.read_table(sorted((folder / split).glob("part-*.parquet")))
