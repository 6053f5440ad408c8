"""Several files that are of one piece, in a folder with others: all of them the earlier ones, or all the new ones.

They are written into one hidden folder, which is whole once it is called `.LAST.whole`. Then the last file, by which
readers know that there are any, is moved away, the others change, and the last one comes. A failure moves the earlier
ones back; after a kill in between, the last file is absent, and the next writer first ends what was begun.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dmoe.disk.durable import remove, sync
from dmoe.disk.files import aside_of, written_aside
from dmoe.disk.replaced import replaced_path
from dmoe.errors import DmoeError


@contextmanager
def written_together(paths: Sequence[Path]) -> Iterator[dict[Path, Path]]:
    """Where to write each of `paths`, files of one folder; they are there when the block ends well.

    Raises: OSError if the disk is full or a renaming fails; the earlier files are then there as before, or, if even
    that fails, DmoeError says how to get the new ones.
    """
    last = paths[-1]
    whole, earlier = last.with_name(f".{last.name}.whole"), replaced_path(last)
    if whole.is_dir():
        _move(whole, earlier, last)
        whole.rmdir()
    with written_aside(whole) as aside:
        aside.mkdir()
        yield {path: aside / path.name for path in paths}
    names = _names(whole, last)
    try:
        remove(earlier)
        _move(whole, earlier, last)
    except BaseException:
        try:
            _move_back(names, whole, earlier, last.parent)
        except OSError as error:
            raise DmoeError(
                f"{last}: could be neither replaced nor put back ({error.strerror}); the same command ends it"
            ) from None
        raise
    with suppress(OSError):  # what cannot be removed loses nothing
        remove(earlier)
        whole.rmdir()


def _names(whole: Path, last: Path) -> list[str]:
    """What still lies there, in the order in which it is moved."""
    return sorted((path.name for path in whole.iterdir()), key=lambda name: (name == last.name, name))


def _move(whole: Path, earlier: Path, last: Path) -> None:
    """Also where a part of them was moved before."""
    names = _names(whole, last)
    for name in reversed(names):
        if (last.parent / name).exists():
            earlier.mkdir(exist_ok=True)
            (last.parent / name).rename(earlier / name)
    for name in names:
        (whole / name).rename(last.parent / name)
    sync(last.parent)


def _move_back(names: Sequence[str], whole: Path, earlier: Path, folder: Path) -> None:
    for name in reversed(names):
        if not (whole / name).exists():
            (folder / name).rename(whole / name)
    for name in names:
        if (earlier / name).exists():
            (earlier / name).rename(folder / name)
    dropped = aside_of(whole)
    whole.rename(dropped)  # a part of them must not pass for the whole
    with suppress(OSError):
        remove(dropped)
        remove(earlier)
