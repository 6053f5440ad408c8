"""The exact state of a run in progress: weights, optimiser, position and the random streams of host and device.

`checkpoint/<step>/` holds `state.safetensors` and `state.json`; `checkpoint/latest` names the one to use. A new
state is whole before `latest` points to it, so a kill at any moment leaves a state to resume from. The state of a
run that only its final evaluation is left of has no tensors: the best weights are all that it needs.

Several processes write a file each beside it, `rows-<rank>-of-<ranks>.safetensors`, with the rows of tables that they
hold, what their optimisers keep of them, and their random streams; `rows.json` says how many there are, and their check
sums. Any number of processes, also one, can go on from the state of any other number.
"""

import re
import shutil
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dmoe.disk.files import read_json, write_json, write_text, written_aside
from dmoe.distributed.layout import RowLayout
from dmoe.distributed.world import World
from dmoe.errors import DataError
from dmoe.weights.run import load_tensors, save_tensors

_RANDOM = "random."
_NAME = re.compile(r"[0-9]{9,}-[0-9]{5,}(-finished)?", re.ASCII)
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`tensors` by name, and `position`: everything else, as JSON.

    `rows`: of the tensors, those with an entry for each row of a table held here; `sums`: those that are sums over such
    rows, -1 where they are to be made anew. Both matter with several processes alone.
    """

    tensors: dict[str, Tensor]
    position: dict[str, Any]
    rows: Mapping[str, RowLayout] = field(default_factory=dict)
    sums: Collection[str] = ()


def save_checkpoint(run: Path, checkpoint: Checkpoint, world: World | None = None, *, kept: int = 1) -> None:
    """Saves a state, with several processes together, and removes all but the last `kept`."""
    world = world or World()
    folder = run / "checkpoint"
    name = f"{checkpoint.position['step']:09d}-{checkpoint.position['evaluations']:05d}"
    if checkpoint.position["finished"]:
        name += "-finished"
    exists = (folder / name).exists()
    if world.several:
        exists = bool(world.gather(exists)[0])
    if not exists:
        _save(folder / name, checkpoint, world)
    if world.is_first:
        write_text(folder / "latest", name + "\n")
        others = sorted(other for other in folder.iterdir() if other.is_dir() and other.name != name)
        for other in others[: len(others) - (kept - 1)]:
            shutil.rmtree(other)
    world.barrier()


def _save(path: Path, checkpoint: Checkpoint, world: World) -> None:
    parted = world.several and bool(checkpoint.tensors)
    own = {*checkpoint.rows, *checkpoint.sums} if parted else set()
    common = {name: value for name, value in checkpoint.tensors.items() if name not in own}
    with _aside_of_all(path, world) as aside:
        if parted:
            rows = {name: value for name, value in checkpoint.tensors.items() if name in own}
            file = aside / _rows_name(world.rank, world.size)
            save_tensors(file, {**rows, **_random_streams()}, {})
            sums = world.gather(_check_sum(file))
        if world.is_first:
            save_tensors(aside / "state.safetensors", {**common, **_random_streams()}, {})
            write_json(aside / "state.json", checkpoint.position)
            if parted:
                sizes = {name: layout.rows for name, layout in checkpoint.rows.items()}
                write_json(aside / "rows.json", {"ranks": world.size, "rows": sizes, "check_sums": sums})


@contextmanager
def _aside_of_all(path: Path, world: World) -> Iterator[Path]:
    """A folder that all processes write to; it becomes `path` when each is done."""
    if world.is_first:
        path.parent.mkdir(exist_ok=True)
        with written_aside(path) as aside:
            aside.mkdir()
            world.gather(str(aside))
            yield aside
            world.barrier()
    else:
        yield Path(world.gather("")[0])
        world.barrier()


def _rows_name(rank: int, ranks: int) -> str:
    return f"rows-{rank:05d}-of-{ranks:05d}.safetensors"


def _check_sum(file: Path) -> int:
    found = 0
    with file.open("rb") as stream:
        while piece := stream.read(1 << 22):
            found = zlib.crc32(piece, found)
    return found


def _random_streams() -> dict[str, Tensor]:
    streams = {f"{_RANDOM}cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        streams[f"{_RANDOM}cuda"] = torch.cuda.get_rng_state()  # of the current device, which trains
    return streams


def load_checkpoint(
    run: Path, world: World | None = None, rows: Mapping[str, RowLayout] | None = None, sums: Collection[str] = ()
) -> Checkpoint | None:
    """The state to resume from, its random streams put back; None before the first one was written.

    `rows`, `sums`: as this process has them; see `Checkpoint`.

    Raises: DataError if it is damaged.
    """
    world, rows = world or World(), rows or {}
    latest = run / "checkpoint" / "latest"
    if not latest.is_file():
        return None
    try:
        name = latest.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{latest}: damaged or unreadable ({error}); train again with --overwrite") from None
    folder = run / "checkpoint" / name
    if not _NAME.fullmatch(name) or not folder.is_dir():
        raise DataError(f"{latest}: points to {folder.name}, which is not there; train again with --overwrite")
    state = folder / "state.safetensors"
    tensors = load_tensors(state)
    source: Path | None = state
    position = read_json(folder / "state.json")
    if (folder / "rows.json").is_file():
        source = _add_rows(tensors, folder, world, rows, sums)
    elif world.several and not position.get("finished"):
        whole = [state]
        tensors |= {key: _rows_of(whole, key, RowLayout(layout.rows), layout) for key, layout in rows.items()}
        tensors |= {key: torch.full_like(tensors[key], -1) for key in sums}
    if source is not None:
        _put_back(tensors, source)
    return Checkpoint(
        {key: value for key, value in tensors.items() if not key.startswith(_RANDOM)}, position, rows, sums
    )


def _put_back(tensors: Mapping[str, Tensor], file: Path) -> None:
    for name, stream in tensors.items():
        if not name.startswith(_RANDOM):
            continue
        device = _device(name.removeprefix(_RANDOM), file)
        if device.type == "cpu":
            try:
                torch.set_rng_state(stream)
            except (RuntimeError, TypeError) as error:
                raise DataError(f"{file}: holds no random stream ({error})") from None
        elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.set_rng_state(stream)


def _add_rows(
    tensors: dict[str, Tensor], folder: Path, world: World, rows: Mapping[str, RowLayout], sums: Collection[str]
) -> Path | None:
    """Adds what is held here to the tensors that all have in common, and the random streams of this process.

    Gives the file that these are of; None for a process that had none.
    """
    said = read_json(folder / "rows.json")
    ranks, sizes, checks = said.get("ranks"), said.get("rows"), said.get("check_sums")
    if not isinstance(ranks, int) or ranks < 2 or not isinstance(checks, list) or len(checks) != ranks:
        raise DataError(f"{folder / 'rows.json'}: damaged; train again with --overwrite")
    if sizes != {name: layout.rows for name, layout in rows.items()}:
        raise DataError(f"{folder / 'rows.json'}: is not of these tables; train again with --overwrite")
    files = [folder / _rows_name(rank, ranks) for rank in range(ranks)]
    needed = [world.rank] if world.size == ranks else range(ranks)
    for rank in needed:
        if not files[rank].is_file():
            raise DataError(f"{files[rank]}: is missing; put it back, or train again with --overwrite")
        if _check_sum(files[rank]) != checks[rank]:
            raise DataError(f"{files[rank]}: damaged (its check sum differs); train again with --overwrite")
    for name in [name for name in tensors if name.startswith(_RANDOM)]:
        del tensors[name]
    if world.size == ranks:
        tensors |= load_tensors(files[world.rank])
        return files[world.rank]
    for name, layout in rows.items():
        tensors[name] = _rows_of(files, name, RowLayout(layout.rows, 0, ranks), layout)
    tensors |= {name: torch.full((), -1.0, dtype=torch.float64) for name in sums}
    if world.rank >= ranks:
        return None
    with _opened(files[world.rank]) as file:
        tensors |= {name: file.get_tensor(name) for name in file.keys() if name.startswith(_RANDOM)}  # noqa: SIM118
    return files[world.rank]


def _rows_of(files: list[Path], name: str, then: RowLayout, now: RowLayout) -> Tensor:
    """A tensor with the entries of the rows that are held now, from the files of those who held them then."""
    found: Tensor | None = None
    for rank, path in enumerate(files):
        part = then.of(rank)
        with _opened(path) as file:
            saved = file.get_slice(name)
            if found is None:
                found = torch.zeros(now.held, *saved.get_shape()[1:], dtype=saved[:0].dtype)
            if part.ways == now.ways:
                start = max(part.first, now.first)
                stop = min(part.first + part.held, now.first + now.held)
                if start < stop:
                    found[start - now.first : stop - now.first] = saved[start - part.first : stop - part.first]
                continue
            for start, stop in part.blocks(_ROWS_AT_ONCE):
                rows_L = part.rows_held(start, stop)
                places_L = now.place_of(rows_L) - now.first
                mine_L = (rows_L < part.rows) & (places_L >= 0) & (places_L < now.held)
                if mine_L.any():
                    found[torch.from_numpy(places_L[mine_L])] = saved[start:stop][torch.from_numpy(mine_L)]
    assert found is not None
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged or unreadable ({error})") from None


def _device(name: str, file: Path) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError:
        raise DataError(f"{file}: has a random stream of no device") from None


def remove_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoint", ignore_errors=True)
