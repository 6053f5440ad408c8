"""Reads a run folder for the report: what is there is shown, what is damaged is an error."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from dmoe.baselines.folder import MARK as BASELINE_MARK
from dmoe.baselines.folder import Baseline
from dmoe.baselines.models import NAMES
from dmoe.config.run import RunConfig
from dmoe.disk.files import check_links, read_json, read_json_lines
from dmoe.errors import ConfigError, DataError
from dmoe.evaluation.baseline import read_beside
from dmoe.evaluation.verdict import faults_of_run
from dmoe.report.records import (
    CalibrationMap,
    EpochLine,
    EvaluationRecord,
    FinalMetrics,
    LinearShare,
    ScoresRecord,
    StepLine,
    Warnings,
)
from dmoe.runs.folder import RunFolder
from dmoe.schema import Schema
from dmoe.validation import validate_stored

EVALUATION_FORMAT_VERSION = 1
# Of several evaluated splits the first in this order is shown in detail.
SPLIT_ORDER = ("test", "valid", "train")

PartT = TypeVar("PartT", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """All that the page says about one run."""

    name: str
    folder: Path
    config_text: str
    config_values: dict[str, Any]
    config: RunConfig
    schema: Schema
    epochs: tuple[EpochLine, ...]
    steps: tuple[StepLine, ...]
    metrics: FinalMetrics | None
    evaluations: dict[str, EvaluationRecord]
    environment: dict[str, Any] | None
    warnings: tuple[str, ...] | None = None
    baseline: str | None = None  # the name of the simple model, if it is one
    beside: dict[str, Any] | None = None  # comparison.json: the run and its data set's logistic regression
    calibration: CalibrationMap | None = None
    linear: LinearShare | None = None

    @property
    def faults(self) -> list[str]:
        """What the figures say against it, in words."""
        return faults_of_run({split: one.model_dump() for split, one in self.evaluations.items()}, self.beside)

    @property
    def num_experts(self) -> int:
        return len(self.config.model.mixed(self.schema))

    @property
    def splits(self) -> list[str]:
        """Every split that has scores, in the order of SPLIT_ORDER."""
        known = set(self.evaluations) | (set(self.metrics.splits) if self.metrics else set())
        return sorted(known, key=_split_rank)

    @property
    def detail(self) -> EvaluationRecord | None:
        """The evaluation that the detailed sections show."""
        return next(iter(self.evaluations.values()), None)

    def scores(self, split: str) -> ScoresRecord | None:
        """The scores of a split: those of its evaluation, else those that training left."""
        evaluation = self.evaluations.get(split)
        if evaluation is not None:
            return ScoresRecord(auc=evaluation.auc, logloss=evaluation.logloss)
        return self.metrics.splits.get(split) if self.metrics else None

    @property
    def rows_per_second(self) -> float | None:
        if self.metrics is not None and self.metrics.rows_per_second is not None:
            return self.metrics.rows_per_second
        return self.epochs[-1].rows_per_second if self.epochs else None

    @property
    def expert_names(self) -> list[str]:
        """Names of the experts, told apart by their index where two are alike."""
        detail = self.detail
        names = [str(expert["kind"]) for expert in self.config.model.mixed(self.schema)]
        if detail is not None and len(detail.experts) == len(names):
            names = [expert.name for expert in sorted(detail.experts, key=lambda expert: expert.index)]
        return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]

    def expert_name(self, expert: int | str) -> str:
        """The shown name of an expert given by index or by name."""
        if isinstance(expert, int) and 0 <= expert < self.num_experts:
            return self.expert_names[expert]
        return str(expert)


def read_runs(folders: Sequence[Path]) -> list[ReportedRun]:
    """The runs, with names that differ: the folder's name, with its parents' where two are alike.

    Raises: ConfigError if none is given or one is given twice; DataError as `read_run`.
    """
    if not folders:
        raise ConfigError("no run given; name at least one folder made by `dmoe train`")
    resolved = [folder.resolve() for folder in folders]
    for index, folder in enumerate(resolved):
        if folder in resolved[:index]:
            raise ConfigError(f"{folders[index]}: this run is given twice; name each run once")
    return [read_run(folder, name) for folder, name in zip(folders, _names(resolved), strict=True)]


def read_run(folder: Path, name: str) -> ReportedRun:
    """One run.

    Raises: DataError if the folder is no run folder, or a file in it is damaged.
    """
    if folder.is_dir():
        check_links(folder)
    if Baseline.is_one(folder):
        simple = Baseline.open(folder)
        baseline: str | None = NAMES[simple.facts.kind]
        settings, schema = BASELINE_MARK, simple.schema
        values = simple.facts.model_dump(mode="json")
        config = RunConfig.model_validate({"model": {"experts": [{"kind": baseline}]}})
    else:
        run = RunFolder.open(folder)
        baseline, settings, schema, config = None, "config.yaml", run.schema, run.config
        values = config.values()
    evaluations = _evaluations(folder / "evaluation")
    for split, evaluation in evaluations.items():
        _check_experts(evaluation, len(config.model.mixed(schema)), folder / "evaluation" / f"{split}.json")
    return ReportedRun(
        name=name,
        folder=folder,
        config_text=(folder / settings).read_text(encoding="utf-8"),
        config_values=values,
        config=config,
        schema=schema,
        epochs=tuple(_lines(EpochLine, folder / "metrics.jsonl")),
        steps=tuple(_lines(StepLine, folder / "steps.jsonl")),
        metrics=_final_metrics(folder / "metrics.json"),
        evaluations=evaluations,
        environment=_read_optional(folder / "environment.json"),
        baseline=baseline,
        beside=read_beside(folder),
        warnings=_warnings(folder / "warnings.json"),
        calibration=_optional_part(CalibrationMap, folder / "calibration.json"),
        linear=_optional_part(LinearShare, folder / "linear.json"),
    )


def _names(folders: list[Path]) -> list[str]:
    depth = 1
    while True:
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
        depth += 1  # ends: the folders differ, so their whole paths do


def _split_rank(split: str) -> tuple[int, str]:
    return (SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER), split)


def _lines(model: type[PartT], path: Path) -> Iterable[PartT]:
    for number, values in enumerate(read_json_lines(path), start=1):
        yield validate_stored(model, values, f"{path}:{number}")


def _read_optional(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _warnings(path: Path) -> tuple[str, ...] | None:
    """What preparing the data warned of, None if the run does not say."""
    values = _read_optional(path)
    return None if values is None else tuple(one.text for one in validate_stored(Warnings, values, str(path)).warnings)


def _final_metrics(path: Path) -> FinalMetrics | None:
    values = _read_optional(path)
    if values is None:
        return None
    splits = {key: value for key, value in values.items() if isinstance(value, dict) and "auc" in value}
    return validate_stored(FinalMetrics, values | {"splits": splits}, str(path))


def _optional_part(model: type[PartT], path: Path) -> PartT | None:
    values = _read_optional(path)
    return None if values is None else validate_stored(model, values, str(path))


def _evaluations(folder: Path) -> dict[str, EvaluationRecord]:
    found = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: _split_rank(path.stem)):
        values = read_json(path)
        version = values.get("format_version")
        if version != EVALUATION_FORMAT_VERSION:
            raise DataError(
                f"{path}: format version {version}, but this dmoe reads version {EVALUATION_FORMAT_VERSION}; "
                "run `dmoe evaluate` again"
            )
        evaluation = validate_stored(EvaluationRecord, values, str(path))
        if evaluation.split != path.stem:
            raise DataError(f"{path}: holds split '{evaluation.split}'; run `dmoe evaluate` again")
        found[path.stem] = evaluation
    return found


def _check_experts(evaluation: EvaluationRecord, num_experts: int, path: Path) -> None:
    """Every list by expert is as long as the configuration says, so that no name meets another's figure."""
    sized: dict[str, Sequence[Any]] = {}
    if evaluation.gate is not None:
        sized["gate.mean"] = evaluation.gate.mean
        for by_field in evaluation.gate.by_field:
            for value in by_field.values:
                sized[f"gate.by_field '{by_field.field}'"] = value.mean_weights
    for location, correlation in evaluation.correlation.items():
        sized[f"correlation.{location}.matrix"] = correlation.matrix
    if evaluation.experts:
        sized["experts"] = evaluation.experts
    for key, values in sized.items():
        if len(values) != num_experts:
            raise DataError(
                f"{path}: '{key}' holds {len(values)} experts, but config.yaml names {num_experts}; "
                "run `dmoe evaluate` again"
            )
