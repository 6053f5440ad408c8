"""Folders made by strangers: a harmed file is refused in one sentence that names it, or does no harm.

Every kind of folder is made once by what makes it, and every file of it harmed in every way that its kind knows.
"""

import ast
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import dmoe
from dmoe.baselines.folder import Baseline, evaluate_baseline, fit_baseline
from dmoe.cli.main import main
from dmoe.config.run import load_config
from dmoe.disk.files import write_json
from dmoe.errors import DataError, Interrupted, UserError
from dmoe.evaluation.baseline import run_faults
from dmoe.evaluation.evaluate import evaluate_run
from dmoe.experiments.folder import Folder, describe_data
from dmoe.experiments.results import write_results
from dmoe.experiments.summary import ExperimentSummary
from dmoe.export.card import model_card
from dmoe.export.manifest import MANIFEST, checksums
from dmoe.inspection.contents import groups_of, read_contents
from dmoe.machine.limits import peak_memory_bytes
from dmoe.report.runs import read_run
from dmoe.report.tuning import write_study_report
from dmoe.runs.folder import RunFolder
from dmoe.schema import vocabulary_path
from dmoe.serving.served import Served
from dmoe.shards.folder import DataFolder
from dmoe.shards.reader import read_once
from dmoe.tokens.lookup import open_tokens, tokens_path, write_tokens
from dmoe.tokens.vectors import read_vectors
from dmoe.tokens.vocabulary import read_counts
from dmoe.training.loop import train
from dmoe.tuning.folder import ASKED, Asked, Record, StudyFolder
from dmoe.weights.run import Run
from tests import harms
from tests.experiments.fake import fake_folder
from tests.export.conftest import SMALL, looked_up, run  # noqa: F401 (fixtures)
from tests.training.test_loop import StopAt

_MAY_GROW = 300 << 20
_MAY_TAKE_S = 10.0
# Harms of one file that are tried each time, and by the slow test.
_TRIED = 2
_TRIED_SLOWLY = 300


def read_data(folder: Path) -> None:
    describe_data(folder)
    data = DataFolder.read(folder)
    for field in data.schema.categorical:
        open_tokens(folder, field)
        read_counts(folder, field)
        if field.vectors is not None:
            read_vectors(folder, field)
    for split in ("train", "valid", "test"):
        list(read_once(folder, split, batch_size=1000).batches())
    read_contents(data, groups_of(data))


def read_a_run(folder: Path) -> None:
    _ = read_run(folder, "run").faults
    run_faults(folder)
    dmoe.load(folder).predict_proba(folder.parent / "log.csv")
    evaluate_run(Run.open(folder), splits=["valid"])
    model_card(Run.open(folder), folder.parent / "data", "name")


def resume(folder: Path) -> None:
    train(Run.open(folder).config, folder.parent / "data", folder, resume=True, watcher=StopAt(4))


def read_a_baseline(folder: Path) -> None:
    _ = read_run(folder, "run").faults
    evaluate_baseline(Baseline.open(folder), splits=["valid"])
    dmoe.load(folder).predict_proba(folder.parent / "log.csv")


def read_a_model(folder: Path) -> None:
    Served.open(folder)
    dmoe.load(folder).predict_proba(folder.parent / "log.csv")


def read_an_experiment(folder: Path) -> None:
    experiment = Folder.open(folder)
    _ = experiment.asked, experiment.finished(), experiment.failed()
    write_results(ExperimentSummary(experiment))


def read_a_study(folder: Path) -> None:
    study = StudyFolder.open(folder)
    _ = study.readings(), study.attempt(1, 0)
    write_study_report(folder, folder.parent / "study.html")


READ: dict[str, Callable[[Path], None]] = {
    "data": read_data, "run": read_a_run, "unfinished": resume, "logistic": read_a_baseline,
    "lightgbm": read_a_baseline, "model": read_a_model, "experiment": read_an_experiment, "study": read_a_study,
}  # fmt: skip


@pytest.fixture(scope="session")
def folders(run: Run, looked_up: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """One folder of every kind, and the log beside them."""
    root, made = tmp_path_factory.mktemp("folders"), run.path.parent
    shutil.copy(made / "log.csv", root / "log.csv")
    for name, source in (("data", made / "data"), ("run", run.path), ("model", looked_up)):
        shutil.copytree(source, root / name)
    # As a large vocabulary has it.
    write_tokens(vocabulary_path(root / "run", "site"), tokens_path(root / "run", "site"))
    for kind in ("logistic", "lightgbm"):
        fit_baseline(kind, root / "data", root / kind)  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        train(load_config(None, [*SMALL, "training.epochs=2"]), root / "data", root / "unfinished", watcher=StopAt(3))
    fake_folder(root / "experiment", ("alpha",), seeds=1)
    make_study(root / "study", run)
    return root


def make_study(path: Path, run: Run) -> None:  # noqa: F811
    """A study of two trials, the second of which was given up; the run of the first is kept."""
    space = {"rate": {"key": "optimiser.lr", "kind": "float", "low": 1e-3, "high": 1e-2, "log": True}}
    path.mkdir()
    asked = Asked(
        id="0", name="study", data="data", data_digest="0", config=run.config.values(), space=space, seed=1,
        sampler="tpe", pruning=True,
    )  # fmt: skip
    write_json(path / ASKED, asked.model_dump(mode="json"))
    shutil.copytree(run.path, path / "best", ignore=shutil.ignore_patterns("evaluation", "vocabulary", "schema.json"))
    RunFolder(path / "best").update_environment(trial=0)
    valid = json.loads((run.path / "metrics.json").read_text())["valid"]
    ended = {"number": 0, "state": "complete", "value": 0.7, "valid": valid, "parameters": 10, "best_epoch": 1}
    given_up = {"number": 1, "state": "pruned", "reason": "out of memory", "evaluations": [{"done": 25, "value": 0.5}]}
    study = StudyFolder(path)
    for number in (0, 1):
        study.trial(number).mkdir(parents=True)
    for facts in (ended, given_up):
        study.end(Record.model_validate(facts | {"params": {"rate": 0.002}, "seconds": 1.5}))
    study.attempt(1, 0)
    study.note_reading(0, 2)


@pytest.fixture
def home(folders: Path, tmp_path: Path) -> Path:
    """A copy to harm."""
    shutil.copytree(folders, tmp_path / "home")
    return tmp_path / "home"


def signed(folder: Path) -> None:
    """Notes the files of a model folder as they are now, as who makes one can."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {name: one for name, one in checksums(folder).items() if name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def files_of(folder: Path) -> list[Path]:
    """The files of a folder; of vocabularies, shards and cells, which are all alike, the first."""
    found, folders_seen = [], set()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"):
        alike = path.parent if path.suffix == ".parquet" else path.parent.parent / path.name
        if path.parent == folder or alike not in folders_seen:
            found.append(path.relative_to(folder))
        folders_seen.add(alike)
    return found


@dataclass(frozen=True)
class Tried:
    file: str
    harm: str
    what: str


def try_all(kind: str, home: Path, most: int) -> Iterator[Tried]:
    """What is wrong with how the folder of this kind takes each harm."""
    whole, folder = home / kind, home / "harmed"
    for number, file in enumerate(files_of(whole)):
        found = harms.broken_file(whole / file)
        every = max(1, len(found) // most)
        for name, content in found[number % every :: every]:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(whole, folder)
            (folder / file).write_bytes(content)
            if kind == "model" and file.name != MANIFEST:
                signed(folder)
            what = _fault_of(READ[kind], folder, file)
            if what:
                yield Tried(str(file), name, what)


def _fault_of(read: Callable[[Path], None], folder: Path, file: Path) -> str:
    before, began = peak_memory_bytes() or 0, time.process_time()
    try:
        read(folder)
    except (UserError, Interrupted) as error:
        # A run says where its data set is, and which columns it asks a log for: what is not there is named by that.
        # A mean far from every row is refused with the row that it is far from.
        known = (
            file.name,
            str(folder),
            "no such data set folder",
            "log.csv: no column",
            "too far from the training mean",
        )
        names_it = any(one in str(error) for one in known)
        if isinstance(error, UserError) and not names_it:
            return f"is not named: {error}"
    except Exception as error:  # is what must not be
        return repr(error)[:300]
    if (peak_memory_bytes() or 0) - before > _MAY_GROW:
        return "took memory"
    if time.process_time() - began > _MAY_TAKE_S:
        return "took time"
    return ""


@pytest.mark.parametrize("kind", READ)
@pytest.mark.filterwarnings("ignore")
def test_a_harmed_file_is_refused_by_its_name_or_does_no_harm(kind: str, home: Path) -> None:
    assert list(try_all(kind, home, _TRIED)) == []
    assert not list(home.rglob("ran"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", READ)
@pytest.mark.filterwarnings("ignore")
def test_many_harms(kind: str, home: Path) -> None:
    found = [f"{one.file}: {one.harm}: {one.what}" for one in try_all(kind, home, _TRIED_SLOWLY)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kind", [kind for kind in READ if kind != "data"])
def test_what_leads_out_of_a_folder_is_refused(kind: str, home: Path) -> None:
    (home / "outside").mkdir()
    (home / "outside" / "kept").write_text("kept")
    folder = home / kind
    for place in files_of(folder)[:3]:
        outside = home / "outside" / "kept"
        for target in (outside, Path(os.path.relpath(outside, (folder / place).parent)), Path("/dev/zero")):
            moved = (folder / place).with_suffix(".moved")
            (folder / place).rename(moved)
            (folder / place).symlink_to(target)
            with pytest.raises(DataError, match=r"leads out of .*; put the file itself there"):
                READ[kind](folder)
            (folder / place).unlink()
            moved.rename(folder / place)
    os.mkfifo(folder / "pipe")
    with pytest.raises(DataError, match="pipe: is neither a file nor a folder; remove it"):
        READ[kind](folder)
    (folder / "pipe").unlink()
    (folder / "checkpoint-or-evaluation").symlink_to(home / "outside")
    with pytest.raises(DataError, match="leads out of"):
        READ[kind](folder)
    assert (home / "outside" / "kept").read_text() == "kept"


def test_a_refusal_is_one_sentence_with_exit_code_2_and_moves_no_cursor(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, command in (
        ("run/config.yaml", ["evaluate", home / "run"]),
        ("logistic/baseline.json", ["evaluate", home / "logistic"]),
        ("model/manifest.json", ["serve", home / "model"]),
        ("model/manifest.json", ["predict", home / "model", home / "log.csv", "-o", home / "p.csv"]),
        ("experiment/experiment.json", ["report", home / "experiment", "-o", home / "r.html"]),
        ("unfinished/schema.json", ["evaluate", home / "unfinished"]),
        ("data/summary.json", ["inspect", home / "data"]),
    ):
        whole = (home / name).read_text()
        for content in ('{"\\u001b[2J": 1, "\\u001b[2J": 2}', "[" * 100_000, "\x1b[2J"):
            (home / name).write_text(content)
            with pytest.raises(SystemExit) as stopped:
                main([str(one) for one in command])
            told = capfd.readouterr().err
            assert (stopped.value.code, name.split("/")[1] in told) == (2, True), told
            assert told.startswith("dmoe: ")
            assert told.count("\n") == 1, told
            assert told.rstrip("\n").isprintable()
        (home / name).write_text(whole)


def test_a_schema_of_huge_sizes_is_refused(home: Path) -> None:
    before = peak_memory_bytes() or 0
    for kind, key, size, message in (
        (
            "run",
            "vocabulary_size",
            2**31 - 1,
            "model.safetensors: does not fit schema.json: it is too small for so many ids",
        ),
        ("model", "max_length", 10_000, "model.onnx: takes other inputs than schema.json says"),
    ):
        schema = json.loads((home / kind / "schema.json").read_text())
        for field in schema["fields"]:
            if key in field:
                field[key] = size
        for options in schema["source"]["fields"].get("multi_valued", {}).values():
            if key in options:
                options[key] = size
        (home / kind / "schema.json").write_text(json.dumps(schema))
        if kind == "model":
            signed(home / kind)
        with pytest.raises(DataError, match=message):
            READ[kind](home / kind)
    assert (peak_memory_bytes() or 0) - before < _MAY_GROW


def test_nothing_that_runs_code_is_called() -> None:
    """Calls that run what a file holds are nowhere in the package; `eval` is a method of torch's modules only."""
    running = {"exec", "compile", "__import__", "unsafe_load", "full_load", "Unpickler", "read_pickle"}
    modules = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch.load"}
    for path in Path(dmoe.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None), *(one.name for one in node.names)}
                assert not names & modules, (path, names)
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "torch.load", "yaml.load"}, (path, called)
                assert called in {"re.compile", "torch.compile"} or called.split(".")[-1] not in running, (path, called)
                pickled = {one.arg: ast.unparse(one.value) for one in node.keywords}.get("allow_pickle", "False")
                assert pickled == "False", path


def test_every_defence_names_tests_that_are_there() -> None:
    """docs/security.md: each row of its tables names a test, or a test's beginning before an ellipsis."""
    root = Path(__file__).parents[1]
    defined = set(
        re.findall(r"def (test_\w+)", "".join(one.read_text() for one in (root / "tests").rglob("test_*.py")))
    )
    rows = [line for line in (root / "docs" / "security.md").read_text().splitlines() if line.count(" | ") == 2]
    rows = [row for row in rows if not row.startswith(("| threat", "| what |", "|---"))]
    assert len(rows) >= 40
    for row in rows:
        named = re.findall(r"`(test_\w+)(…?)`", row)
        assert named, row
        for name, more in named:
            assert any(one.startswith(name) if more else one == name for one in defined), name
