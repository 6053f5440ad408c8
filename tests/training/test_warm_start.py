"""Training from an earlier run: rows follow their tokens, and the result is that of the weights it started from."""

import json
import re
from pathlib import Path

import pytest
import torch

from dmoe.cli.main import main
from dmoe.config.run import load_config
from dmoe.errors import ConfigError
from dmoe.nn.build import build_model
from dmoe.prepare.prepare import prepare
from dmoe.schema import Schema
from dmoe.tokens.vocabulary import read_vocabulary
from dmoe.training.loop import train
from dmoe.training.warm_start import warm_start
from dmoe.weights.run import Run
from tests.prepare.logs import config, random_rows, write_csv
from tests.small_runs import SMALL


def day(folder: Path, seed: int) -> Path:
    prepare(config(), [str(write_csv(folder / f"{seed}.csv", random_rows(500, seed)))], folder / f"data-{seed}")
    return folder / f"data-{seed}"


@pytest.fixture(scope="module")
def monday(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("monday")
    return train(load_config(None, [*SMALL, "training.epochs=1"]), day(folder, 1), folder / "run")


def test_rows_follow_their_tokens(monday: Run, tmp_path: Path) -> None:
    tuesday = day(tmp_path, 2)
    schema = Schema.read(tuesday)
    model = build_model(monday.config.model, schema, seed=3)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    kept, total = warm_start(model, schema, tuesday, monday)
    old, new = monday.load_weights(), model.state_dict()
    assert all(torch.equal(new[name], old[name]) for name in new if name != "embedding.banks.0.tables.weight")
    first_new = first_old = counted = 0
    moved = False
    for field, before in zip(schema.categorical, monday.schema.categorical, strict=True):
        known = read_vocabulary(monday.path, before)
        for token, id_ in [(None, 0), (None, 1), *read_vocabulary(tuesday, field).items()]:
            row = new["embedding.banks.0.tables.weight"][first_new + id_]
            if token is None or token in known:
                source = id_ if token is None else known[token]
                counted += token is not None
                moved |= source != id_
                assert torch.equal(row, old["embedding.banks.0.tables.weight"][first_old + source])
            else:
                assert torch.equal(row, initial["embedding.banks.0.tables.weight"][first_new + id_])
        first_new += field.vocabulary_size
        first_old += before.vocabulary_size
    assert (kept, total) == (counted, sum(schema.vocabulary_sizes) - 2 * len(schema.categorical))
    assert moved  # else ids alone would have done
    assert kept < total


def test_the_same_data_starts_where_the_run_ended(monday: Run) -> None:
    model = build_model(monday.config.model, monday.schema, seed=9)
    warm_start(model, monday.schema, monday.path, monday)
    assert all(torch.equal(value, monday.load_weights()[name]) for name, value in model.state_dict().items())


def test_training_goes_on_from_there(monday: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tuesday = day(tmp_path, 2)
    arguments = ["train", "--from", monday.path, "--data", tuesday, "--output", tmp_path / "run"]
    # A learning rate too small to move a weight in float32 leaves what training started from.
    still = ["optimiser.lr=1e-30", "optimiser.min_lr=1e-30", "training.epochs=1"]
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), *still])
    assert not stopped.value.code
    # The terminal's width breaks the line somewhere, and a near path is shown from here.
    assert re.search(r"\dtokenswereknownto\S+/run", "".join(capfd.readouterr().err.split()))
    run = Run.open(tmp_path / "run")
    assert run.config.model == monday.config.model
    expected = build_model(monday.config.model, run.schema, seed=monday.config.training.seed)
    warm_start(expected, run.schema, tuesday, monday)
    assert all(torch.equal(value, run.load_weights()[name]) for name, value in expected.state_dict().items())
    started = json.loads((run.path / "environment.json").read_text())["started_from"]
    assert started["run"] == str(monday.path.resolve())
    assert not run.first_weights.exists()


def test_a_run_may_replace_the_one_that_it_starts_from(monday: Run, tmp_path: Path) -> None:
    data = day(tmp_path, 2)
    small = load_config(None, [*SMALL, "training.epochs=1"])
    first = train(small, data, tmp_path / "run", start=monday)
    again = train(small, data, tmp_path / "run", start=first, overwrite=True)
    assert again.environment["started_from"]["kept"] == again.environment["started_from"]["tokens"]


def test_other_fields_and_shapes_are_refused_and_leave_nothing(monday: Run, tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", random_rows(500, 2))
    prepare(config(fields={"categorical": ["site"], "numeric": ["age"]}, derive={}), [str(log)], tmp_path / "fewer")
    small = load_config(None, SMALL)
    with pytest.raises(
        ConfigError, match=r"categorical fields are hits, site, user, weekday, those of the data are site"
    ):
        train(small, tmp_path / "fewer", tmp_path / "run", start=monday)
    data = day(tmp_path, 2)
    with pytest.raises(ConfigError, match=r"another shape \(.*leave CONFIG out|another shape"):
        train(load_config(None, [*SMALL, "model.expert_units=8"]), data, tmp_path / "run", start=monday)
    with pytest.raises(ConfigError, match="another shape"):
        train(load_config(None, [*SMALL, "model.tables=shared"]), data, tmp_path / "run", start=monday)
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--from", str(monday.path), "--resume", "--data", str(data), "--output", str(tmp_path / "run")])
    assert stopped.value.code == 2
