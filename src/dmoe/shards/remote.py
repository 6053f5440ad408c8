"""Data sets on storage elsewhere (`s3://`, `gs://`, `hdfs://`, `file://`), read through fsspec.

A folder here stands for one there: it holds all but the shards, for each of which there is an empty file of its name.
Whoever reads a shard does so by `shard`, which streams the parts that are asked for; nothing is copied as a whole.
"""

import atexit
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from dmoe.errors import ConfigError, DataError, DmoeError, MissingExtraError

_SHARD = re.compile(r"part-[^/]*\.parquet")
# What a data set has beside its shards, and models need.
_BESIDE = ("schema.json", "summary.json", "vocabulary", "pretrained")
# Of what a file system says of a file, what tells it from another one in its place.
_TELLING = ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created", "updated")
_SECRET = re.compile(r"(?<=://)[^/@\s]*@|[?][^\s'\"]*")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class _Remote:
    """A folder of a file system of fsspec; `name` is its address without what nobody is to read."""

    system: Any
    root: str
    name: str

    def shards(self) -> dict[str, tuple[str, ...]]:
        """By split and name, what tells each shard from another one in its place."""
        self.system.invalidate_cache()
        found = {}
        for folder in self.system.ls(self.root, detail=True):
            if folder["type"] != "directory":
                continue
            for one in self.system.ls(folder["name"], detail=True):
                name = str(one["name"]).rstrip("/").rpartition("/")[2]
                if _SHARD.fullmatch(name):
                    split = str(folder["name"]).rstrip("/").rpartition("/")[2]
                    found[f"{split}/{name}"] = tuple(str(one.get(key, "")) for key in _TELLING)
        return found


_FOLDERS: dict[Path, _Remote] = {}


def is_address(place: str | Path) -> bool:
    """Whether a place is one for fsspec."""
    return "://" in str(place)


def folder_of(place: str | Path) -> Path:
    """The folder that stands for a data set at an address, made at the first call; of any other place itself.

    It lasts as long as the process, or until `remove_folders`.

    Raises: ConfigError for an address that nothing here can read, DataError if no data set is there, MissingExtraError.
    """
    if not is_address(place):
        return Path(place)
    name = without_secrets(str(place))
    for folder, known in _FOLDERS.items():
        if known.name == name:
            return folder
    try:
        fsspec = import_module("fsspec")
    except ModuleNotFoundError:
        raise MissingExtraError("fsspec is not installed; pip install 'dmoe[remote]'") from None
    try:
        system, root = fsspec.core.url_to_fs(str(place))
    except (ImportError, ValueError) as error:
        reason = without_secrets(" ".join(str(error).split()))
        raise ConfigError(f"{name}: cannot be read here ({reason})") from None
    with _explained(name):
        remote = _Remote(system, str(root).rstrip("/"), name)
        folder = Path(tempfile.mkdtemp(prefix="dmoe-data-"))
        _FOLDERS[folder] = remote
        _fill(folder, remote)
    return folder


def remove_folders() -> None:
    """Ends what `folder_of` began."""
    for folder in list(_FOLDERS):
        shutil.rmtree(folder, ignore_errors=True)
        del _FOLDERS[folder]


atexit.register(remove_folders)


def address_of(folder: Path) -> str:
    """Where a data set is: the address that a folder stands for, without secrets, else its whole path."""
    remote = _FOLDERS.get(folder)
    return str(folder.resolve()) if remote is None else remote.name


def without_secrets(text: str) -> str:
    """A text without the user and password, or the signed query, of addresses in it."""
    return _SECRET.sub("", text)


@contextmanager
def named_as_given() -> Iterator[None]:
    """Errors that leave this name the address and not the folder that stands for it."""
    try:
        yield
    except DmoeError as error:
        text = str(error)
        for folder, remote in _FOLDERS.items():
            text = text.replace(str(folder), remote.name)
        error.args = (text, *error.args[1:])
        raise


@contextmanager
def shard(path: Path) -> Iterator[Path | IO[bytes]]:
    """What a shard is read from: its path, or a stream where its data set is elsewhere.

    Raises: OSError for whatever keeps it from being read there.
    """
    remote = _FOLDERS.get(path.parent.parent)
    if remote is None:
        yield path
        return
    try:
        with remote.system.open(f"{remote.root}/{path.parent.name}/{path.name}", "rb", block_size=_BLOCK) as stream:
            yield stream
    except (DmoeError, OSError, GeneratorExit):
        raise
    except Exception as error:  # each file system has its own
        raise OSError(f"{type(error).__name__}: {without_secrets(str(error))}") from None


def marks(data: Path) -> dict[str, tuple[str, ...]] | None:
    """As `_Remote.shards`; None for a data set that is here.

    Raises: DataError if the storage does not answer.
    """
    remote = _FOLDERS.get(data)
    if remote is None:
        return None
    with _explained(remote.name):
        return remote.shards()


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except DmoeError:
        raise
    except Exception as error:
        reason = without_secrets(" ".join(str(error).split()))[:300]
        raise DataError(f"{name}: cannot be read ({type(error).__name__}: {reason})") from None


def _fill(folder: Path, remote: _Remote) -> None:
    system = remote.system
    if not system.isfile(f"{remote.root}/schema.json"):
        raise DataError(f"{remote.name}: no data set of `dmoe prepare` is there (it has no schema.json)")
    for name in _BESIDE:
        there = f"{remote.root}/{name}"
        if system.isfile(there):
            system.get_file(there, str(folder / name))
        elif system.isdir(there):
            (folder / name).mkdir()
            for one in system.ls(there, detail=True):
                if one["type"] == "file":
                    own = str(one["name"]).rpartition("/")[2]
                    system.get_file(one["name"], str(folder / name / own))
    for shard_name in remote.shards():
        path = folder / shard_name
        path.parent.mkdir(exist_ok=True)
        path.touch()
