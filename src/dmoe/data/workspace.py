"""A folder that appears only when it is complete."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmoe.errors import DataError


@contextmanager
def appearing(output: Path, force: bool, marks: tuple[str, ...]) -> Iterator[Path]:
    """A hidden sibling folder to fill; renamed to `output` at the end, removed on any exception.

    With `force` an existing folder is replaced if it holds the files `marks`, which say that we made it.

    Raises: DataError if `output` exists and is not to be, or must not be, replaced; OSError.
    """
    exists = output.exists() or output.is_symlink()
    if exists and not force:
        raise DataError(f"{output}: already exists; choose another --output, or replace it by --force")
    if exists and not (output.is_dir() and all((output / mark).is_file() for mark in marks)):
        raise DataError(f"{output}: is not a data set folder, so --force does not replace it; remove it yourself")
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        folder.chmod(0o777 & ~_umask())
        yield folder
        if exists:
            old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
            output.rename(old / "old")
            folder.rename(output)
            shutil.rmtree(old)
        else:
            folder.rename(output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _umask() -> int:
    """mkdtemp makes private folders; what we write is as readable as other new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
