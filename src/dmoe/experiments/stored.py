"""What `cell.json` and `failed.json` hold: checked before any of it is counted, shown or written on."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dmoe.runs.records import Figure, Number
from dmoe.validation import Counted

CELL_FORMAT: Literal[2] = 2


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Scores(_Stored, Counted):
    """Of the rows that know a label, all of them or those of a domain."""

    auc: Number
    logloss: Number
    predicted_to_observed: Number


class _Label(_Scores):
    domains: dict[str, _Scores] = {}
    macro_auc: Number = None


class _Task(_Label):
    joint: _Label | None = None


class _GateField(_Stored):
    field: str
    spread: Number


class _Metrics(_Scores):
    """A split's: those of experts where there are several."""

    relative_information_gain: Number
    calibration_error: Number
    cec: Number = None
    cec_noise_floor: Number = None
    cec_before_relu: Number = None
    cec_matrix: list[list[Number]] = []
    cka: Number = None
    dead_columns: list[int] = []
    dead_share: Number = None
    gate_mean: list[Figure] = []
    gate_entropy: Number = None
    gate_fields: list[_GateField] = []
    alone_auc: list[Number] = []
    best_alone_auc: Number = None
    mean_alone_auc: Number = None
    error_correlation: Number = None
    separation: Number = None
    tasks: dict[str, _Task] = {}


class _Splits(_Stored):
    valid: _Metrics
    test: _Metrics


class _Planted(_Stored):
    parts: list[str]
    r_squared: list[list[Figure]]
    separation: Number = None


class _Table(_Stored):
    table: int | str
    experts: list[int]
    width: int
    fields: int
    abundance: Number
    weighted: Number


class _Evaluation(_Stored):
    step: int
    epoch: Figure
    train_logloss: Number
    valid_auc: Number
    valid_logloss: Number
    cec: Number = None
    dead_columns: list[int] | None = None
    best: bool


class CellRecord(_Stored):
    """`cell.json`. `config` is what was asked for, `resolved` what was trained."""

    format_version: Literal[2]
    config: dict[str, Any]
    part: int | None
    resolved: dict[str, Any]
    metrics: _Splits
    planted: _Planted | None = None
    tables: list[_Table]
    training: list[_Evaluation]
    parameters: int
    seconds: Figure = Field(ge=0)
    steps: int
    best_epoch: Number
    rows_per_second: Number
    peak_memory_bytes: int = Field(ge=0)
    versions: dict[str, str]
    hardware: dict[str, str | int | float | bool | None]


class FailedRecord(_Stored):
    """`failed.json`."""

    reason: str
