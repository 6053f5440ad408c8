"""Raw columns that go beside the scores as they are: text of delimited files, their own type of typed ones.

R rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmoe.config.data import DataConfig
from dmoe.errors import DataError
from dmoe.sources.delimited import RawRows

# A table of a piece of one file, which its metadata names.
Kept: TypeAlias = pa.Table
_FILE = b"file"


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Probabilities (R,) float32 of consecutive rows by the names of `dmoe.outputs`, the main label's first, and their
    kept columns, None if there are none."""

    probabilities: Mapping[str, npt.NDArray[np.float32]]
    kept: Kept | None = None

    def __len__(self) -> int:
        return len(next(iter(self.probabilities.values())))


def set_apart(
    raw: RawRows, config: DataConfig, keep: Sequence[str], *, labels: bool = False
) -> tuple[RawRows, Kept | None]:
    """The rows without the columns that were read only to be kept, and the kept ones, None if there are none."""
    if not keep:
        return raw, None
    weight = () if config.weight is None else (config.weight.column,)
    needed = {*config.field_columns(), *((*config.label_columns(), *weight) if labels else ())}
    columns: dict[str, Any] = {name: column for name, column in raw.columns.items() if name in needed}
    kept = pa.table({name: _plain(raw.columns[name]) for name in keep})
    return replace(raw, columns=columns), kept.replace_schema_metadata({_FILE: raw.file.encode()})


def _plain(column: Any) -> Any:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def joined(tables: Sequence[Kept]) -> Kept | None:
    """One table of several, None of none.

    Raises: DataError if a column has different types in two files.
    """
    for table in tables[1:]:
        check_types(tables[0].schema, table.schema)
    return pa.concat_tables(tables) if tables else None


def check_types(first: pa.Schema, second: pa.Schema) -> None:
    """Raises: DataError if a kept column has different types in the files that the schemas are of."""
    for one, other in zip(first, second, strict=True):
        if one.type != other.type:
            files = [(schema.metadata or {}).get(_FILE, b"").decode() for schema in (first, second)]
            raise DataError(
                f"--keep {one.name}: the column is {one.type} in {files[0]}, but {other.type} in {files[1]}; score the "
                "files apart, or write the column with one type"
            )
