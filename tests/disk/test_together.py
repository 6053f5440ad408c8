"""Files of one piece: all the earlier or all the new ones, whichever renaming fails or is the last before a kill."""

import errno
import os
from pathlib import Path

import pytest

from dmoe.disk.replaced import replaced_path
from dmoe.disk.together import written_together
from dmoe.errors import DmoeError

NAMES = ("a", "b", "log")


class Stopped(BaseException):
    """As a kill: nothing that follows is done, which `Path.rename` sees to."""


def write(folder: Path, text: str, names: tuple[str, ...] = NAMES) -> None:
    with written_together([folder / name for name in names]) as aside:
        for name in names:
            aside[folder / name].write_text(text + name)


def found(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.is_file()}


def all_of(text: str, names: tuple[str, ...] = NAMES) -> dict[str, str]:
    return {name: text + name for name in names}


@pytest.mark.parametrize("earlier", [(), ("b", "log"), NAMES])
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("at", range(1, 9))
def test_no_third_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: tuple[str, ...], killed: bool, at: int
) -> None:
    if earlier:
        write(tmp_path, "old ", earlier)
    rename, done = os.rename, 0

    def stopping(source: object, target: object) -> None:
        nonlocal done
        done += 1
        if done >= at and killed:
            raise Stopped
        if done == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", stopping)
    try:
        write(tmp_path, "new ")
    except OSError:
        assert found(tmp_path) == all_of("old ", earlier)
        assert sorted(one.name for one in tmp_path.iterdir()) == sorted(earlier)
    except Stopped:
        # Readers know by the last file whether there are any.
        whole = tmp_path / ".log.whole"
        assert "log" not in found(tmp_path) or found(tmp_path) == all_of("old ", earlier)
        assert whole.is_dir()
    else:
        assert done < at
    monkeypatch.undo()
    write(tmp_path, "third ")
    assert found(tmp_path) == all_of("third ")
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(NAMES)


def test_a_kill_in_between_is_ended_by_the_next_writer_even_if_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "old ")
    write(tmp_path, "new ")
    # As a kill leaves it: `a` is the new one, the log is away, `b` still the old one.
    (tmp_path / ".log.whole").mkdir()
    replaced_path(tmp_path / "log").mkdir()
    for name in ("b", "log"):
        (tmp_path / name).rename(tmp_path / ".log.whole" / name)
    (tmp_path / "b").write_text("old b")
    with pytest.raises(ZeroDivisionError), written_together([tmp_path / name for name in NAMES]):
        _ = 1 / 0
    assert found(tmp_path) == all_of("new ")

    def broken(_source: object, _target: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    rename, calls = os.rename, 0

    def breaking(source: object, target: object) -> None:
        nonlocal calls
        calls += 1
        (rename if calls < 3 else broken)(source, target)  # type: ignore[operator]

    monkeypatch.setattr(os, "rename", breaking)
    with pytest.raises(DmoeError, match=r"could be neither replaced nor put back .*; the same command ends it"):
        write(tmp_path, "third ")
    monkeypatch.undo()
    write(tmp_path, "fourth ")
    assert found(tmp_path) == all_of("fourth ")
