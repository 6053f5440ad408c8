"""Studies on a tiny log: the same trials however often they are cut off, one look at test, and an ordinary best run."""

import os
import signal
import subprocess
import sys

import pytest

from dmoe.cli.main import main
from dmoe.config.run import load_config
from dmoe.disk.files import read_json
from dmoe.errors import Interrupted
from dmoe.evaluation.evaluate import evaluate_run
from dmoe.report import write_report
from dmoe.training.loop import train
from dmoe.tuning import finish
from dmoe.tuning.folder import Reading, StudyFolder, best_of
from dmoe.tuning.space import Space
from dmoe.tuning.study import Study
from dmoe.tuning.trial import Trials
from dmoe.tuning.worker import Limits, work
from dmoe.weights.run import Run
from tests.small_runs import SMALL, small_config, write_data

SPACE = """
parameters:
  model.experts:
    choices:
      two: [{kind: cin, units: [6]}, {kind: crossnet, layers: 2}]
      one: [{kind: crossnet, layers: 2}]
  decorrelation.0.alpha: {low: 0.1, high: 100, log: true, when: {model.experts: two}}
  none: {key: decorrelation, choices: [[]], when: {model.experts: one}}
  optimiser.lr: {low: 1e-3, high: 1e-1, log: true}
  model.expert_units: {low: 8, high: 24, step: 8}
"""
CHANGES = ("training.epochs=2",)


@pytest.fixture(scope="module")
def small(small_data, tmp_path_factory):
    """The words of a command that begins or continues a study, but for --output and --trials."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "space.yaml").write_text(SPACE)
    (folder / "run.yaml").write_text(small_config(*CHANGES).to_yaml())
    return ["tune", str(folder / "run.yaml"), "--space", str(folder / "space.yaml"), "--data", str(small_data)]


def tune(*words):
    """The exit code of the command."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code or 0


def outcomes(folder):
    return [one.model_copy(update={"seconds": 0.0}) for one in StudyFolder(folder).records()]


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """A study of five trials that nothing cut off."""
    output = tmp_path_factory.mktemp("studies") / "whole"
    assert tune(*small, "--output", output, "--trials", 5) == 0
    return output


def test_the_best_run_is_an_ordinary_one(whole, small_data, tmp_path):
    records = outcomes(whole)
    assert [one.number for one in records] == list(range(5))
    # The first is the configuration itself.
    assert records[0].params == {
        "model.experts": "two",
        "decorrelation.0.alpha": 2.0,
        "optimiser.lr": 0.01,
        "model.expert_units": 16,
    }
    best = best_of(records)
    assert best.value == max(one.value for one in records if one.value is not None)
    space = Space.of_facts("space", StudyFolder(whole).asked.space)
    again = train(space.config(small_config(*CHANGES), best.params), small_data, tmp_path / "again")
    assert (whole / "best" / "model.safetensors").read_bytes() == again.weights.read_bytes()
    timed = ("seconds", "rows_per_second")
    kept, plain = (read_json(folder / "metrics.json") for folder in (whole / "best", again.path))
    assert {key: kept[key] for key in kept if key not in timed} == {
        key: plain[key] for key in plain if key not in timed
    }
    assert read_json(whole / "best" / "evaluation" / "test.json") == read_json(again.path / "evaluation" / "test.json")
    write_report([whole / "best"], tmp_path / "report.html")
    assert set(evaluate_run(Run.open(whole / "best"))) == {"train", "valid", "test"}


def test_trials_never_see_test_and_the_best_run_does_once(whole, small, monkeypatch, capsys):
    assert not list(whole.glob("trials/*/run/evaluation/test.json"))
    assert all("test" not in read_json(path) for path in whole.glob("trials/*/run/metrics.json"))
    assert StudyFolder(whole).readings() == (Reading(trial=best_of(outcomes(whole)).number, trials=5),)
    # Only the best run keeps its weights.
    assert [path.parent.parent.name for path in whole.glob("trials/*/run/model.safetensors")] == [
        f"{best_of(outcomes(whole)).number:04d}"
    ]

    def fail(*_):
        raise AssertionError("test is read again")

    monkeypatch.setattr(finish, "measure", fail)
    assert tune(*small, "--output", whole, "--trials", 5) == 0
    capsys.readouterr()
    assert tune(*small, "--output", whole, "--trials", 6) == 2
    assert "its test split was read after 5 trials, which ended the study" in capsys.readouterr().err


class Killed(BaseException):
    """Stands for SIGKILL: nothing that catches errors sees it."""


def test_a_study_that_is_killed_again_and_again_comes_to_the_same(whole, small, tmp_path, monkeypatch):
    output = tmp_path / "killed"
    report, end, next_one, draw = Study.report, StudyFolder.end, Study.next, Space.draw
    left = {"report": 2, "ended": 1, "drawn": 3}

    def killed_after_a_report(self, taken, done, value):
        found = report(self, taken, done, value)
        left["report"] -= 1
        if left["report"] == 0:
            raise Killed
        return found

    def killed_before_it_is_told(self, record):
        end(self, record)
        left["ended"] -= 1
        if left["ended"] == 0:
            raise Killed

    def killed_while_drawing(self, suggest):
        def one(parameter):
            found = suggest(parameter)
            left["drawn"] -= 1
            if left["drawn"] == 0:
                raise Killed
            return found

        return draw(self, one)

    def begun(self, most):
        monkeypatch.setattr(Space, "draw", killed_while_drawing)
        return next_one(self, most)

    monkeypatch.setattr(Study, "report", killed_after_a_report)
    monkeypatch.setattr(StudyFolder, "end", killed_before_it_is_told)
    monkeypatch.setattr(Study, "next", begun)
    kills = 0
    while True:
        try:
            assert tune(*small, "--output", output, "--trials", 5) == 0
            break
        except Killed:
            kills += 1
    assert kills == 3
    assert outcomes(output) == outcomes_by_order(whole, outcomes(output))
    assert (output / "best" / "model.safetensors").read_bytes() == (whole / "best" / "model.safetensors").read_bytes()


def outcomes_by_order(whole, found):
    """The trials of `whole` with the numbers of `found`: one that was cut off while it was drawn has a number too."""
    return [one.model_copy(update={"number": two.number}) for one, two in zip(outcomes(whole), found, strict=True)]


@pytest.mark.slow
def test_a_process_that_is_killed_is_continued(whole, small, tmp_path):
    output = tmp_path / "killed"
    words = [sys.executable, "-m", "dmoe", *small, "--output", str(output), "--trials", "5"]
    for _ in range(3):
        process = subprocess.Popen(words, start_new_session=True)
        seen = len(list(output.glob("trials/*/run/metrics.jsonl")))
        while process.poll() is None and len(list(output.glob("trials/*/run/metrics.jsonl"))) <= seen:
            pass
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run([*words, "--jobs", "2"], check=False).returncode == 0
    assert [one.params for one in outcomes(output)][:2] == [one.params for one in outcomes(whole)][:2]
    assert len(outcomes(output)) == 5
    assert len(StudyFolder(output).readings()) == 1


def test_one_that_works_on_a_trial_is_left_alone(small, small_data, tmp_path, monkeypatch):
    output = tmp_path / "shared"
    asked = [*small, "--output", output, "--no-test"]
    assert tune(*asked, "--trials", 1) == 0
    folder = StudyFolder(output)
    space = Space.of_facts("space", folder.asked.space)
    with Study(folder, space, str(tmp_path / "shared.db")) as first, Study(folder, space, first.storage) as second:
        one, two = first.next(4), second.next(4)
        assert (one.number, two.number) == (1, 2)
        assert first.running() == 2
        one.lock.release()  # its process ends, as after a kill
        assert second.running() == 1
        again = second.next(4)
        assert (again.number, again.drawn) == (one.number, one.drawn)
        # All of them are at work: nothing is left to take.
        three = first.next(4)
        assert three.number == 3
        assert first.next(4) is None
        for taken in (again, two, three):
            taken.lock.release()

        def interrupted(self, taken):  # noqa: ARG001
            raise Interrupted("stopped")

        monkeypatch.setattr(Trials, "run", interrupted)
        with pytest.raises(Interrupted):
            work(first, small_config(*CHANGES), small_data, Limits(4), lambda _: None)
        assert first.next(4).number == 1  # nobody has it


def test_a_trial_that_kills_its_process_again_and_again_is_given_up(small, tmp_path):
    output = tmp_path / "deadly"
    assert tune(*small, "--output", output, "--no-test", "--trials", 1) == 0
    space = Space.of_facts("space", StudyFolder(output).asked.space)
    with Study(StudyFolder(output), space, f"{output}.db") as study:
        for _ in range(3):
            taken = study.next(2)
            assert taken.number == 1
            taken.lock.release()  # killed
        assert study.next(2) is None
        assert "probably out of memory" in StudyFolder(output).record(1).reason
        assert study.next(3).number == 2


def test_what_cannot_be_trained_is_given_up_and_the_rest_goes_on(small_data, tmp_path, capsys):
    (tmp_path / "space.yaml").write_text("""
parameters:
  optimiser.lr: {choices: [0.01, 1e6]}
  model.gate.kind: {choices: [softmax, top-k]}
  model.gate.k: {choices: [2, 3], when: {model.gate.kind: top-k}}
  model.experts:
    choices:
      two: [{kind: cin, units: [6]}, {kind: crossnet, layers: 2}]
      three: [{kind: crossnet}, {kind: crossnet}, {kind: fm}]
""")
    config = load_config(None, [*SMALL, "training.epochs=1", "training.clip_norm=null", "decorrelation=[]"])
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    words = ["tune", tmp_path / "run.yaml", "--space", tmp_path / "space.yaml", "--data", small_data]
    assert tune(*words, "--output", tmp_path / "study", "--trials", 6, "--sampler", "random", "--seed", 3) == 0
    records = outcomes(tmp_path / "study")
    assert len(records) == 6
    reasons = " ".join(one.reason or "" for one in records)
    assert "diverged: stopped at step" in reasons
    assert "must be at most 2 of 2 experts" in reasons
    assert {one.params["optimiser.lr"] for one in records if one.state == "complete"} == {"0.01"}
    assert "were given up; the report says why" in capsys.readouterr().err
    assert "diverged: stopped at step" in (tmp_path / "study" / "report.html").read_text()


def test_another_study_is_not_continued(whole, small, tmp_path, capsys):
    def refused(*words):
        assert tune(*words, "--output", whole, "--trials", 5) == 2
        return capsys.readouterr().err

    assert "its seed is 0, not 7" in refused(*small, "--seed", 7)
    assert "its sampler is tpe, not random" in refused(*small, "--sampler", "random")
    assert "its configuration differs in training.batch_size" in refused(*small, "training.batch_size=32")
    other = tmp_path / "space.yaml"
    other.write_text(SPACE.replace("high: 1e-1", "high: 1e-2"))
    assert "its space differs in 'optimiser.lr'" in refused(*small, "--space", other)
    write_data(tmp_path / "data", {"train": 200, "valid": 60, "test": 60}, seed=1)
    assert "its data hold other rows than" in refused(*small, "--data", tmp_path / "data")
    elsewhere = refused(*small, "--storage", tmp_path / "other.db")
    assert "holds no study 'whole', but the folder does" in elsewhere
    assert tune(*small, "--output", tmp_path / "whole", "--storage", f"{whole}.db", "--trials", 5) == 2
    assert "holds a study 'whole' whose runs are not in this --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--storage", "mysql://me:secret@host/db"], "name the folder of the study"),
        (["--storage", "nowhere://me:secret@host/db", "--output", "x"], "nowhere://…@host/db: cannot be used"),
        (["--storage", "file/study.db", "--output", "x"], "cannot be used as one of Optuna"),
    ],
)
def test_a_bad_storage_is_one_sentence(small, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert tune(*small, *words, "--trials", 1) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "secret" not in said
    assert len(said.splitlines()) == 1


def test_without_optuna_the_extra_is_named(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert tune(*small, "--output", tmp_path / "study") == 2
    assert "`dmoe tune` needs Optuna: pip install 'dmoe[tune]'" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_limits_of_time_and_budget_let_no_trial_begin(whole):
    records = StudyFolder(whole).records()
    used = sum(one.seconds for one in records)
    assert Limits(None, core_seconds=used * 2).allow(records, 0.0)
    assert not Limits(None, core_seconds=used).allow(records, 0.0)
    assert not Limits(None, core_seconds=used * 2, threads=100).allow(records, 0.0)
    assert not Limits(None, seconds=0.0).allow(records, 0.0)
    assert Limits(None, seconds=0.0).allow([], 0.0)  # one comes to its end


def test_the_report_shows_every_trial(whole, tmp_path):
    assert tune("report", whole, "-o", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    for word in ("Importance", "Slices", "optimiser.lr", "Value by decorrelation.0.alpha"):
        assert word in page
    for one in outcomes(whole):
        assert f'<th scope="row">{one.number}</th>' in page
    assert "http" not in page.replace("http://www.w3.org", "")
