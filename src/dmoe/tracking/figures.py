"""What trackers send: names and numbers of an evaluation, of the final metrics, and of single steps."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmoe.disk.files import read_json_lines

_OF_TRAIN = {"train_loss": "train/loss", "train_logloss": "train/logloss", "decorrelation_loss": "train/decorrelation"}
_OF_VALID = ("auc", "logloss", "cec", "cec_noise_floor", "relative_information_gain")
_OF_RUN = ("parameters", "seconds", "rows_per_second", "best_epoch", "best_step", "steps")


def of_evaluation(line: Mapping[str, Any]) -> dict[str, float]:
    """The curves' points of a line of metrics.jsonl."""
    found = {name: line[key] for key, name in _OF_TRAIN.items()}
    found |= _scores("valid", line["valid"])
    found |= {"correlation/cec": line.get("cec"), "lr": line["lr"], "rows per second": line["rows_per_second"]}
    found["epoch"] = line["epoch"]
    return _numbers(found)


def of_end(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The final figures of metrics.json."""
    found = {f"final/{key}": metrics.get(key) for key in _OF_RUN}
    for split in ("valid", "test"):
        found |= _scores(f"final/{split}", metrics.get(split, {}))
    return _numbers(found)


def last_evaluation(run: Path) -> int:
    """The step of the last evaluation, 0 before the first."""
    lines = read_json_lines(run / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def of_steps(run: Path, after: int, until: int) -> list[tuple[int, dict[str, float]]]:
    """The losses of single steps, of those that steps.jsonl holds."""
    return [
        (line["step"], _numbers({f"step/{key}": line[key] for key in ("loss", "logloss", "decorrelation")}))
        for line in read_json_lines(run / "steps.jsonl")
        if after < line["step"] <= until
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Plain values by their dotted paths, as texts; lists stay whole but for those of sections."""
    found: dict[str, str] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{path}.")
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for place, one in enumerate(value):
                found |= flat(one, f"{path}.{place}.")
        else:
            found[path] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def name_of_run(run: Path) -> str:
    """What a run is called among others: its folder, of a trial the study's and its number."""
    if run.parent.parent.name == "trials":
        return f"{run.parents[2].name} trial {int(run.parent.name)}"
    return run.name


def _scores(prefix: str, found: Mapping[str, Any]) -> dict[str, Any]:
    scores = {f"{prefix}/{key}": found.get(key) for key in _OF_VALID}
    for task, one in found.get("tasks", {}).items():
        scores |= {f"{prefix}/{task}/{key}": one[key] for key in ("auc", "logloss")}
    return scores


def _numbers(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
