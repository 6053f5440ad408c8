"""What `--input` names — files, folders and glob patterns — as files in order, and what the names of folders say.

A folder stands for the data files below it, as Spark, Hive and others leave them: names that start with `_` or `.`
and checksum files are not data.
"""

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

from dmoe.config.data import SPLITS, DataConfig
from dmoe.errors import ConfigError, DataError

_HIVE_MISSING = "__HIVE_DEFAULT_PARTITION__"
_SKIPPED = "names that start with '_' or '.' and *.crc are skipped"
_DATA_SET_MARKS = ("schema.json", "summary.json")


def expand_inputs(inputs: Sequence[str]) -> list[Path]:
    """Files, folders and glob patterns as files; those of a folder or pattern sorted by path.

    Raises: DataError if one of them matches nothing, or a file comes twice.
    """
    paths: list[Path] = []
    for text in inputs:
        # A file whose name holds brackets is itself, not a pattern.
        if Path(text).exists() or not glob.has_magic(text):
            paths += _files(Path(text))
            continue
        matches = [Path(match) for match in glob.glob(text, recursive=True)]  # noqa: PTH207 (may be absolute)
        if not matches:
            raise DataError(f"{text}: no file matches this pattern")
        wanted = [path for path in matches if not _is_skipped_match(path, Path(text).parts)]
        # `**` matches folders and the files in them.
        found = {file for path in wanted for file in (_below(path) if path.is_dir() else [path])}
        if not found:
            raise DataError(f"{text}: no data file matches this pattern ({_SKIPPED})")
        paths += _sorted(found)
    if not paths:
        raise DataError("no input file given; name at least one by --input")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise DataError(f"{path}: given twice; its rows would count twice")
        seen.add(path.resolve())
    return paths


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_dir():
        return [path]
    if all((path / mark).is_file() for mark in _DATA_SET_MARKS):
        raise DataError(f"{path}: is a data set folder of dmoe prepare; give raw logs")
    found = _sorted(_below(path))
    if not found:
        raise DataError(f"{path}: this folder holds no data file ({_SKIPPED})")
    return found


def _below(folder: Path) -> Iterator[Path]:
    try:
        for path in folder.iterdir():
            if not _is_skipped(path.name):
                if path.is_dir():
                    yield from _below(path)
                else:
                    yield path
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None


def _is_skipped(name: str) -> bool:
    # A column of a folder name may begin with an underscore.
    return name.startswith(".") or (name.startswith("_") and "=" not in name) or name.endswith(".crc")


def _is_skipped_match(path: Path, pattern: Sequence[str]) -> bool:
    """Whether a match is no data, by a part of its path that the pattern does not ask for."""
    asked = [part for part in pattern if _is_skipped(part) or part.startswith("_")]
    return any(
        _is_skipped(part) and part not in ("..", ".") and not any(fnmatchcase(part, one) for one in asked)
        for part in path.parts
    )


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.parts)


def split_inputs(
    config: DataConfig, inputs: Sequence[str], *, needs_train: bool = True
) -> list[tuple[Path, str | None]]:
    """Each input file, with its split if the splits are given, in the order train, valid, test.

    Raises: ConfigError if inputs say no split where they must; DataError as `expand_inputs`.
    """
    if config.split.kind != "given":
        return [(path, None) for path in expand_inputs(inputs)]
    by_split: dict[str, list[str]] = {name: [] for name in SPLITS}
    for text in inputs:
        name, equals, path = text.partition("=")
        if not equals or name not in SPLITS:
            raise ConfigError(f"--input {text}: split kind 'given' needs train=FILE, valid=FILE or test=FILE")
        by_split[name].append(path)
    if needs_train and not by_split["train"]:
        raise ConfigError("split kind 'given' needs at least one --input train=FILE")
    expand_inputs([path for paths in by_split.values() for path in paths])
    return [(path, name) for name in SPLITS if by_split[name] for path in expand_inputs(by_split[name])]


def check_outside(output: Path, inputs: Iterable[str]) -> None:
    """Raises: DataError if `output` is an input, or would lie in a folder that is one and be read by the next call."""
    place = output.resolve()
    for text in inputs:
        path = Path(text)
        if path.resolve() == place:
            raise DataError(f"{output}: is an input; choose another --output")
        if path.is_dir() and path.resolve() in place.parents:
            raise DataError(f"{output}: lies in the input folder {path}; choose another --output")


def folder_columns(path: Path) -> Mapping[str, str | None]:
    """The columns that the folders of a path name, as in `day=2026-01-01/part-0.parquet`; None is a missing value."""
    pairs = [part.partition("=") for part in path.parts[:-1]]
    return {
        unquote(name): None if value == _HIVE_MISSING else unquote(value)
        for name, equals, value in pairs
        if equals and name
    }
