"""Whatever stops a command at any operation: what stood before is there, or the new; a second call ends the same."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.disk.interruption import HOWS, LIMIT, Interrupter, contents, interrupter
from tests.prepare.logs import random_rows, write_csv

DATA_YAML = """
label: y
split: {kind: ordered, train: 0.6, valid: 0.2, test: 0.2}
fields:
  min_count: 2
  categorical: {site: {}, user: {}}
  numeric: {age: {transform: standardise}}
format: {missing: ["", "?"]}
"""


def data_set(path: Path) -> dict[str, Any]:
    """A data set's files; of its summary all but the times of the work."""
    found: dict[str, Any] = dict(contents(path))
    if "summary.json" in found:
        summary = json.loads(found["summary.json"])
        for part in [summary, *summary.get("updates", [])]:
            for key in ("seconds", "rows_per_second"):
                part.pop(key, None)
        found["summary.json"] = summary
    return found


def visible(folder: Path) -> dict[str, Any]:
    """The files of a folder that a user sees."""
    return {name: content for name, content in contents(folder).items() if not name.startswith(".")}


@dataclass(frozen=True)
class Case:
    """A command that replaces what is in `place`; `look` gives what is there, `pending` allows a third state."""

    command: Sequence[str | Path]
    place: Path
    look: Callable[[Path], dict[str, Any]]
    pending: Callable[[Path, dict[str, Any]], bool] = lambda _place, _found: False


def check(run: Interrupter, case: Case, moments: int | None, seed: int, hows: Sequence[str] = HOWS) -> int:
    """Stops `case` at `moments` operations of each kind, all of them if None; gives how often that hit."""
    parent, saved = case.place.parent, case.place.parent.with_name("saved")
    shutil.copytree(parent, saved)

    def restore() -> None:
        shutil.rmtree(parent)
        shutil.copytree(saved, parent)

    before = case.look(case.place)
    whole = run.run(case.command)
    assert whole.code == 0, whole.stderr
    assert whole.operations
    after, names = case.look(case.place), sorted(one.name for one in parent.iterdir())
    assert after != before
    draw, hits = random.Random(seed), 0
    for how in hows:
        every = range(1, whole.operations + 1)
        for at in every if moments is None else sorted(draw.sample(every, min(moments, len(every)))):
            restore()
            outcome = run.run(case.command, how, at)
            where = (how, at, outcome)
            assert "traceback" not in outcome.stderr, where
            found = case.look(case.place)
            if how == "kill":
                assert outcome.code == -signal.SIGKILL or outcome.operations is not None, where
                assert found in (before, after) or case.pending(case.place, found), where
            else:
                # What could not be removed afterwards is no failure.
                assert found in (before, after), where
                assert (found == after) >= (outcome.code == 0), where
            if outcome.code == 0:  # it found another way, and a second update would be another one
                continue
            hits += 1
            again = run.run(case.command)
            assert again.code == 0, (where, again)
            assert case.look(case.place) == after, where
            assert sorted(one.name for one in parent.iterdir()) == names, where
    restore()
    return hits


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory where the system has such a place: each attempt syncs a hundred times."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("interruption")
        return
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def run(here: Path) -> Iterator[Interrupter]:
    modules = ["dmoe.cli.prepare", "dmoe.prepare.update", "duckdb"]
    with interrupter(here, *modules) as found:
        yield found


def prepared(here: Path, run: Interrupter, *, update: bool) -> Case:
    folder = here / f"update-{update}"
    folder.mkdir()
    place = folder / "work" / "data"
    place.parent.mkdir()
    config, logs = folder / "data.yaml", [write_csv(folder / f"{seed}.csv", random_rows(300, seed)) for seed in (1, 2)]
    config.write_text(DATA_YAML)
    first = ["prepare", "--config", config, "--output", place, "--threads", "1", "--input", logs[0]]
    assert run.run(first).code == 0
    if update:
        return Case(["prepare", "--update", place, "--threads", "1", "--input", logs[1]], place, data_set)
    return Case([*first[:-1], logs[1], "--force"], place, data_set)


def generated(here: Path, run: Interrupter) -> Case:
    place = here / "generate" / "logs"
    place.mkdir(parents=True)
    log = place / "log.csv"
    command: list[str | Path] = ["generate", log, "--rows", "200", "--preset", "toy", "--seed"]
    assert run.run([*command, "1"]).code == 0

    def pending(_place: Path, found: dict[str, Any]) -> bool:
        return log.name not in found and (place / ".log.csv.whole" / log.name).exists()

    return Case([*command, "2"], place, visible, pending)


def exported(here: Path, run: Interrupter) -> Case:
    from tests.small_runs import small_config

    folder = here / "export"
    data, runs, place = folder / "set", folder / "runs", folder / "work" / "model"
    folder.mkdir()
    log, config = write_csv(folder / "log.csv", random_rows(300, 1)), folder / "data.yaml"
    config.write_text(DATA_YAML)
    assert run.run(["prepare", "--config", config, "--input", log, "--output", data]).code == 0
    for name, seed in (("first", 1), ("second", 2)):
        _train(small_config("training.epochs=1", f"training.seed={seed}"), data, runs / name)
    place.parent.mkdir()
    assert run.run(["export", runs / "first", "--output", place]).code == 0
    return Case(["export", runs / "second", "--output", place, "--overwrite"], place, _weights_of_a_whole_model)


def _weights_of_a_whole_model(folder: Path) -> dict[str, Any]:
    """Of model.onnx two exports of one run may differ in bytes."""
    from dmoe.export.manifest import Manifest

    Manifest.read(folder).verify(folder)
    return {name: one for name, one in contents(folder).items() if name not in ("manifest.json", "model.onnx")}


def fitted(here: Path, run: Interrupter) -> Case:
    from tests.small_runs import write_data

    folder = here / "baseline"
    place = folder / "work" / "logistic"
    folder.mkdir()
    place.parent.mkdir()
    command: list[str | Path] = ["baseline", "--kind", "logistic", "--output", place]
    for name, rows in (("first", 200), ("second", 300)):
        write_data(folder / name, {"train": rows, "valid": 100})
    assert run.run([*command, folder / "first"]).code == 0

    def look(path: Path) -> dict[str, Any]:
        return {name: one for name, one in contents(path).items() if name not in ("metrics.json", "environment.json")}

    return Case([*command, folder / "second", "--overwrite"], place, look)


def _train(config: Any, data: Path, output: Path) -> None:
    from dmoe.training.loop import train

    train(config, data, output)


CASES: dict[str, Callable[[Path, Interrupter], Case]] = {
    "prepare": lambda here, run: prepared(here, run, update=False),
    "update": lambda here, run: prepared(here, run, update=True),
    "generate": generated,
    "export": exported,
    "baseline": fitted,
}


@pytest.mark.parametrize("name", ["prepare", "update"])
def test_stopped_at_a_few_operations(here: Path, run: Interrupter, name: str) -> None:
    (here / "few").mkdir(exist_ok=True)
    case = CASES[name](here / "few", run)
    assert check(run, case, 2, seed=1) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_stopped_at_every_operation_and_any_size_of_a_full_disk(here: Path, run: Interrupter, name: str) -> None:
    (here / "all").mkdir(exist_ok=True)
    case = CASES[name](here / "all", run)
    moments = 8 if name in ("export", "baseline") else 30
    assert check(run, case, moments, seed=1) > 2 * moments
    sizes = {len(content) - 1 for content in contents(case.place.parent).values() if content}
    assert check_full(run, case, sorted(sizes)[:moments]) > 0


def check_full(run: Interrupter, case: Case, sizes: Sequence[int]) -> int:
    """No file may grow above a size; gives how often that hit."""
    before, hits = case.look(case.place), 0
    for size in sizes:
        outcome = run.run(case.command, LIMIT, size)
        if outcome.code:
            assert "traceback" not in outcome.stderr, (size, outcome)
            assert case.look(case.place) == before, (size, outcome)
            hits += 1
        else:
            break
    return hits
