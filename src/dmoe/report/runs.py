"""Reads a run folder for the report: what is there is shown, what is damaged is an error."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from dmoe.baselines.folder import MARK as BASELINE_MARK
from dmoe.baselines.folder import Baseline
from dmoe.baselines.models import NAMES
from dmoe.config.run import RunConfig
from dmoe.disk.files import check_links, read_json
from dmoe.errors import ConfigError, DataError
from dmoe.evaluation.baseline import read_beside
from dmoe.evaluation.verdict import faults_of_run
from dmoe.runs.folder import RunFolder
from dmoe.runs.records import (
    CalibrationMap,
    EpochLine,
    EvaluationRecord,
    FinalMetrics,
    LinearShare,
    ScoresRecord,
    StepLine,
    read_evaluations,
    read_final_metrics,
    read_lines,
    read_warnings,
    split_rank,
)
from dmoe.schema import Schema
from dmoe.validation import validate_stored

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
        """Every split that has scores, in the order of `split_rank`."""
        known = set(self.evaluations) | (set(self.metrics.splits) if self.metrics else set())
        return sorted(known, key=split_rank)

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
    evaluations = read_evaluations(folder)
    for split, evaluation in evaluations.items():
        _check_experts(evaluation, len(config.model.mixed(schema)), folder / "evaluation" / f"{split}.json")
    return ReportedRun(
        name=name,
        folder=folder,
        config_text=(folder / settings).read_text(encoding="utf-8"),
        config_values=values,
        config=config,
        schema=schema,
        epochs=tuple(one for _, one in read_lines(EpochLine, folder / "metrics.jsonl")),
        steps=tuple(one for _, one in read_lines(StepLine, folder / "steps.jsonl")),
        metrics=read_final_metrics(folder),
        evaluations=evaluations,
        environment=RunFolder(folder).environment or None,
        baseline=baseline,
        beside=read_beside(folder),
        warnings=read_warnings(folder),
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


def _optional_part(model: type[PartT], path: Path) -> PartT | None:
    return validate_stored(model, read_json(path), str(path)) if path.is_file() else None


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
