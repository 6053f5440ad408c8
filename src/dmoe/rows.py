"""What a caller may pass as raw rows: a table, or paths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import narwhals as nw
import pyarrow as pa

from dmoe.errors import DataError


def as_paths(rows: Any) -> list[Path] | None:
    """One path or several as a list; None for anything else."""
    if isinstance(rows, str | Path):
        rows = [rows]
    if isinstance(rows, Sequence) and rows and all(isinstance(one, str | Path) for one in rows):
        return [Path(one) for one in rows]
    return None


def as_arrow(table: Any) -> pa.Table:
    """A pandas, polars or pyarrow table as pyarrow.

    Raises: DataError if it is none of them.
    """
    try:
        arrow: pa.Table = nw.from_native(table, eager_only=True).to_arrow()
    except TypeError:
        raise DataError(f"expected a pandas, polars or pyarrow table, got {type(table).__name__}") from None
    return arrow
