"""Files that are whole or absent: written aside, then renamed."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dmoe.errors import DataError


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A sibling path to write to; it becomes `path` when the block ends well, and vanishes when it does not."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            if aside.is_dir():
                shutil.rmtree(aside)
            else:
                aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: a NaN is a bug in what is written, and raises ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises: DataError if it is absent or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged ({error})") from None
    if not isinstance(value, Mapping):
        raise DataError(f"{path}: damaged (expected a JSON object)")
    return dict(value)


def append_json_line(path: Path, value: Any) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(value, allow_nan=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, none if it is absent; a last line cut short by a kill is left out.

    Raises: DataError if it is not UTF-8.
    """
    if not path.is_file():
        return []
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: damaged: byte {error.start} is not UTF-8") from None
    lines = []
    for text in texts:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
