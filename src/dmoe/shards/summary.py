"""What summary.json of a data set folder holds: checked before any of it is counted or shown."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dmoe.disk.files import read_json
from dmoe.validation import Count, Counted, validate_stored

Share = Annotated[float, Field(ge=0, le=1)]
Split = Literal["train", "valid", "test"]


class _Stored(BaseModel):
    """Keys that are not listed are left as they are: they are shown by nothing."""

    model_config = ConfigDict(extra="allow", frozen=True)


class _SplitCounts(_Stored, Counted):
    click_rate: Share | None = None
    weight: Annotated[float, Field(ge=0)] | None = None


class _Label(_Stored):
    splits: dict[Split, dict[str, Count]] = {}
    domains: dict[str, dict[Split, dict[str, Count]]] = {}


class _Field(_Stored):
    missing: dict[Split, Share]
    values: dict[Split, Count] = {}
    unseen: dict[Split, Share] = {}
    distinct_in_train: Count | None = None


class _Warning(_Stored):
    text: str


class _FarAbove(BaseModel):
    """A value that training knew less often, as `dmoe.prepare` found it in an update."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    field: str
    column: str
    kind: Literal["unseen", "missing"]
    count: Count
    of: Annotated[int, Field(strict=True, gt=0)]
    expected: Share


class _Update(_Stored):
    first_parts: dict[Split, Count]
    far_above: tuple[_FarAbove, ...] = ()


class SummaryRecord(_Stored):
    """`summary.json`, as far as anything reads it."""

    rows: dict[str, Count] = {}
    splits: dict[Split, _SplitCounts]
    labels: dict[str, _Label] = {}
    fields: dict[str, _Field] = {}
    rejects: dict[str, Count] = {}
    files: tuple[dict[str, Any], ...] = ()
    warnings: tuple[_Warning, ...] = ()
    updates: tuple[_Update, ...] = ()


def read_summary(data: Path) -> dict[str, Any]:
    """summary.json of a data set folder.

    Raises: DataError if it is damaged.
    """
    path = data / "summary.json"
    values = read_json(path)
    validate_stored(SummaryRecord, values, str(path))
    return values
