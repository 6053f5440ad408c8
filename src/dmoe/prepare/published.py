"""Whether inputs are the files that a recipe was published with, and the result the published one."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dmoe.config.data import Checks
from dmoe.errors import DataError
from dmoe.schema import Schema

_HINT = "get the published file again, or pass --no-check for files of your own"


def check_inputs(checks: Checks, sources: Sequence[tuple[Path, str | None]]) -> None:
    """Compares the md5 sums of the files of given splits, one file a split.

    Raises: DataError naming the first that differs.
    """
    for path, split in sources:
        expected = next((md5 for name, md5 in checks.md5.items() if name == split), None)
        if expected is None or sum(other == split for _, other in sources) > 1:
            raise DataError(f"{path}: the published files are one a split, of {', '.join(checks.md5)}; {_HINT}")
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != expected:
            raise DataError(f"{path}: its md5 sum is {found}, but that of the published file is {expected}; {_HINT}")


def check_result(checks: Checks, schema: Schema, rows: dict[str, int]) -> None:
    """Compares rows and vocabulary sizes.

    Raises: DataError naming all that differ.
    """
    pairs = [(f"rows of {name}", rows.get(name, 0), count) for name, count in checks.rows.items()]
    sizes = {field.name: field.vocabulary_size for field in schema.categorical}
    pairs += [(f"vocabulary of {name}", sizes.get(name, 0), size) for name, size in checks.vocabulary_sizes.items()]
    pairs.append(("vocabularies together", sum(sizes.values()), checks.vocabulary_rows))
    wrong = [f"{what} {found:,} instead of {expected:,}" for what, found, expected in pairs if found != expected]
    if wrong:
        raise DataError(f"not the published result: {'; '.join(wrong)}; {_HINT}")
