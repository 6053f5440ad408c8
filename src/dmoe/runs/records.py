"""What the result files of a run hold, as far as pages, cards and verdicts show it.

Keys that are not listed are left unread on purpose: a run written by a later dmoe that adds a figure
still gets its page. Figures that cannot be computed (the AUC of one class) are null in the files.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dmoe.disk.files import read_json, read_json_lines
from dmoe.errors import DataError
from dmoe.validation import Count, Counted, check_version, validate_stored

EVALUATION_FORMAT_VERSION = 1
# Of several evaluated splits the first in this order is shown in detail.
SPLIT_ORDER = ("test", "valid", "train")

# No figure that dmoe computes is further from 0; what is has been harmed, and no axis holds it.
Figure = Annotated[float, Field(ge=-1e15, le=1e15)]
Number = Figure | None


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class ScoresRecord(_Record):
    auc: Number = None
    logloss: Number = None


class TaskScoresRecord(ScoresRecord):
    """Scores, and with several labels those of each."""

    tasks: dict[str, ScoresRecord] = Field(default_factory=dict)


class FinalScores(ScoresRecord):
    """Of a split in metrics.json, all of them or those of a label; further figures are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)
    rows: Count | None = None
    tasks: "dict[str, FinalScores]" = Field(default_factory=dict)

    def by_label(self) -> "dict[str, FinalScores]":
        """Those of each label; of one label, by no name."""
        return self.tasks or {"": self}


class Line(_Record):
    """What a line says of the training it is of, whatever else."""

    step: int


LineT = TypeVar("LineT", bound=Line)


class EpochLine(Line):
    """One line of metrics.jsonl."""

    epoch: Figure
    rows_per_second: Number = None
    lr: Number = None
    train_loss: Number = None
    train_logloss: Number = None
    decorrelation_loss: Number = None
    valid: TaskScoresRecord = TaskScoresRecord()
    best: bool = False


class StepLine(Line):
    """One line of steps.jsonl."""

    loss: Number = None
    logloss: Number = None
    decorrelation: Number = None


class Warning(_Record):
    text: str


class Warnings(_Record):
    """warnings.json: what preparing the data warned of."""

    warnings: tuple[Warning, ...]


class OwnBest(_Record):
    """The evaluation that was best for a label alone, and what the kept one is short of, in the monitored value."""

    step: int
    short: Number = None


class GradientPair(_Record):
    """Of two labels' gradients the mean cosine, and the share of batches in which it is below 0."""

    first: str
    second: str
    cosine: Number = None
    below_0: Number = None


class TaskGradients(_Record):
    pairs: tuple[GradientPair, ...] = ()


class FinalMetrics(_Record):
    """metrics.json: scores by split, and how the training went."""

    splits: dict[str, FinalScores]
    best_epoch: Number = None
    seconds: Number = None
    rows_per_second: Number = None
    parameters: int | None = None
    steps: int | None = None
    own_best: dict[str, OwnBest] = Field(default_factory=dict)
    task_gradients: TaskGradients = TaskGradients()


class CalibrationBinRecord(_Record):
    low: Figure
    high: Figure
    rows: Count
    mean_predicted: Number = None
    click_rate: Number = None


class CalibrationRecord(_Record):
    bins: tuple[CalibrationBinRecord, ...] = ()
    expected_calibration_error: Number = None
    predicted_to_observed: Number = None


class ExpertRecord(_Record):
    index: int
    name: str
    table: int | str | None = None
    parameters: int | None = None


class CorrelationRecord(_Record):
    """CEC at one location: `matrix` is null on and above the diagonal; `noise_floor` is that of one pair."""

    matrix: tuple[tuple[Number, ...], ...]
    total: Number = None
    noise_floor: Number = None
    rows: Count | None = None
    columns: tuple[int, ...] = ()
    dead_columns: tuple[int, ...] = ()

    @property
    def pairs(self) -> list[tuple[int, int, float]]:
        """(row, column, value) of the pairs that have a value, row > column."""
        return [
            (row, column, value)
            for row, line in enumerate(self.matrix)
            for column, value in enumerate(line[:row])
            if value is not None
        ]

    @property
    def num_undefined(self) -> int:
        """Pairs without a value, since one of the experts has no live unit."""
        return math.comb(len(self.matrix), 2) - len(self.pairs)

    @property
    def cec(self) -> Number:
        """The sum over pairs; None, and not 0, where no pair has a value."""
        return self.total if self.pairs else None

    @property
    def cec_floor(self) -> Number:
        """What `cec` would be for independent outputs: the number of summed pairs times the floor of one."""
        return None if self.noise_floor is None or not self.pairs else self.noise_floor * len(self.pairs)


class GateValue(_Record):
    value: Any = None
    rows: Count
    click_rate: Number = None
    mean_weights: tuple[Number, ...]


class GateField(_Record):
    field: str
    spread: Number = None
    values: tuple[GateValue, ...] = ()


class GateRecord(_Record):
    mean: tuple[Number, ...]
    std: tuple[Number, ...] = ()
    mean_entropy: Number = None
    argmax_share: tuple[Number, ...] = ()
    by_field: tuple[GateField, ...] = ()


class ExpertScores(ScoresRecord):
    """Scores without an expert, or with it alone; `expert` is its index or its name."""

    expert: int | str


class UnseenScores(ScoresRecord):
    """Of the rows with an unseen value, or of those without."""

    rows: Count
    predicted_to_observed: Number = None


class Apart(_Record):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    with_unseen: UnseenScores = Field(alias="with")
    without: UnseenScores


class UnseenField(_Record):
    """`with_missing`: its unseen values cannot be told from missing ones."""

    field: str
    values: Count
    unseen: Count
    with_missing: bool = False
    scores: Apart | None = None

    @property
    def share(self) -> float:
        return self.unseen / max(self.values, 1)


class UnseenRecord(_Record):
    any: Apart
    fields: tuple[UnseenField, ...] = ()


class _Counted(ScoresRecord, Counted):
    rows: Count = 0
    positives: Count = 0


class PartRecord(_Counted):
    """Scores of the rows of a label, all of them or those of a domain."""

    observed: Number = None
    predicted_to_observed: Number = None


class MacroRecord(ScoresRecord):
    """Means over domains; `left_out` have one class only."""

    left_out: tuple[str, ...] = ()


class LabelRecord(PartRecord):
    """Of one label where it is known, or of all labels of its chain (`joint`)."""

    relative_information_gain: Number = None
    calibration: CalibrationRecord | None = None
    domains: dict[str, PartRecord] = Field(default_factory=dict)
    macro: MacroRecord | None = None


class TaskRecord(LabelRecord):
    """`unknown`: rows of the split that do not know it."""

    unknown: Count = 0
    given: str | None = None
    joint: LabelRecord | None = None


class GroupRecord(_Record):
    auc: Number = None
    groups: Count = 0
    rows: Count = 0


class GroupedRecord(_Record):
    """AUC inside the groups of rows of a field's values, by label; None where no group has both classes."""

    field: str
    tasks: dict[str, GroupRecord | None] = Field(default_factory=dict)


class EvaluationRecord(_Counted):
    """evaluation/<split>.json."""

    split: str
    rows: Count
    positives: Count
    relative_information_gain: Number = None
    calibration: CalibrationRecord | None = None
    unseen: UnseenRecord | None = None
    experts: tuple[ExpertRecord, ...] = ()
    correlation: dict[str, CorrelationRecord] = Field(default_factory=dict)
    gate: GateRecord | None = None
    removal: tuple[ExpertScores, ...] = ()
    alone: tuple[ExpertScores, ...] = ()
    tasks: dict[str, TaskRecord] = Field(default_factory=dict)
    grouped_auc: GroupedRecord | None = None
    correlation_by_level: tuple[CorrelationRecord | None, ...] = ()
    correlation_by_domain: dict[str, CorrelationRecord | None] = Field(default_factory=dict)

    @property
    def correlation_parts(self) -> list[tuple[str, CorrelationRecord]]:
        """Of the experts' outputs at each level, where there are several, and within each domain; those of a
        single expert or of fewer than two rows are left out."""
        levels = [(f"level {number}", one) for number, one in enumerate(self.correlation_by_level, start=1)]
        domains = [(f"domain {name}", one) for name, one in self.correlation_by_domain.items()]
        return [(name, one) for name, one in (*levels, *domains) if one is not None]


class ReliabilityRecord(_Record):
    """Logloss and calibration of a split, before or after the map."""

    logloss: Number = None
    expected_calibration_error: Number = None
    predicted_to_observed: Number = None


class Change(_Record):
    before: ReliabilityRecord = ReliabilityRecord()
    after: ReliabilityRecord = ReliabilityRecord()


class CalibrationMap(_Record):
    """calibration.json."""

    asked: str
    kind: str
    rows: Count
    valid_rows: Count
    splits: dict[str, Change] = Field(default_factory=dict)
    tasks: "dict[str, CalibrationMap]" = Field(default_factory=dict)

    def by_label(self) -> "dict[str, CalibrationMap]":
        """That of each label; of one label, by no name."""
        return self.tasks or {"": self}


class LinearField(_Record):
    """What a field adds to the regression's logit: its standard deviation over valid."""

    field: str
    spread: Number = None


class LinearScores(_Record):
    """A split's scores of the mixture and of the regression, each by itself."""

    mixture: ScoresRecord = ScoresRecord()
    linear: ScoresRecord = ScoresRecord()


class LinearShare(_Record):
    """linear.json."""

    used: bool
    share: Figure
    encoding: str
    fields: tuple[LinearField, ...] = ()
    splits: dict[str, LinearScores] = Field(default_factory=dict)


def read_lines(model: type[LineT], path: Path) -> Iterator[tuple[dict[str, Any], LineT]]:
    """The lines of metrics.jsonl or steps.jsonl, as they stand and as records; none if it is absent.

    Raises: DataError if one is damaged.
    """
    for number, values in enumerate(read_json_lines(path), start=1):
        yield values, validate_stored(model, values, f"{path}:{number}")


def split_rank(split: str) -> tuple[int, str]:
    """Sorts splits: SPLIT_ORDER, then others by name."""
    return (SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER), split)


def read_evaluations(run: Path) -> dict[str, EvaluationRecord]:
    """evaluation/<split>.json of a run folder, by split as `split_rank` sorts them.

    Raises: DataError if one is damaged, or of another version or split than it should be.
    """
    found = {}
    for path in sorted((run / "evaluation").glob("*.json"), key=lambda path: split_rank(path.stem)):
        values = read_json(path)
        check_version(values, EVALUATION_FORMAT_VERSION, str(path), "run `dmoe evaluate` again")
        evaluation = validate_stored(EvaluationRecord, values, str(path))
        if evaluation.split != path.stem:
            raise DataError(f"{path}: holds split '{evaluation.split}'; run `dmoe evaluate` again")
        found[path.stem] = evaluation
    return found


def read_final_metrics(run: Path) -> FinalMetrics | None:
    """metrics.json of a run folder, None while it is not finished.

    Raises: DataError if it is damaged.
    """
    path = run / "metrics.json"
    if not path.is_file():
        return None
    values = read_json(path)
    splits = {key: value for key, value in values.items() if isinstance(value, dict) and "auc" in value}
    return validate_stored(FinalMetrics, values | {"splits": splits}, str(path))


def read_warnings(run: Path) -> tuple[str, ...] | None:
    """What preparing the data of a run warned of, None if its folder does not say.

    Raises: DataError if warnings.json is damaged.
    """
    path = run / "warnings.json"
    if not path.is_file():
        return None
    return tuple(one.text for one in validate_stored(Warnings, read_json(path), str(path)).warnings)
