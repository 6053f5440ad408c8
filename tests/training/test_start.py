"""Training goes on with an earlier run's weights when its data set has grown."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import dmoe
from dmoe.cli.main import main
from dmoe.config import RunConfig
from dmoe.data.config import DataConfig
from dmoe.data.prepare import prepare
from dmoe.data.update import update
from dmoe.errors import ConfigError, DataError
from dmoe.nn.build import build_model
from dmoe.schema import Schema, vocabulary_path
from dmoe.training.loop import train
from dmoe.training.run import Run
from dmoe.training.start import start_from
from tests.training.conftest import small_config

PLAN = DataConfig.model_validate(
    {"label": "y", "split": {"kind": "random"}, "fields": {"categorical": ["site", "user"], "numeric": ["price"]}}
)


def write_log(path: Path, first_user: int, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(600):
        site = draw.integers(5)
        click = int(draw.random() < 0.15 * (site + 1))
        rows.append(f"{click},s{site},u{first_user + draw.integers(30)},{draw.normal():.3f}\n")
    path.write_text("y,site,user,price\n" + "".join(rows))
    return path


def config(*overrides: str) -> RunConfig:
    return small_config("training.epochs=1", *overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data` and a run on it, and `grown`, an update of `data` with other users."""
    path = tmp_path_factory.mktemp("start")
    prepare(PLAN, [str(write_log(path / "old.csv", 0, 1))], path / "data")
    update(path / "data", [str(write_log(path / "new.csv", 20, 2))], path / "grown")
    train(config(), path / "data", path / "run")
    return path


def test_old_rows_score_as_before_and_new_tokens_have_their_first_rows(folder: Path, tmp_path: Path) -> None:
    schema, earlier = Schema.read(folder / "grown"), Run.open(folder / "run")
    assert schema.vocabulary_sizes[1] > earlier.schema.vocabulary_sizes[1]
    run = Run.create(tmp_path / "run", config(), schema, folder / "grown")
    fresh, model = (build_model(config().model, schema, seed=5) for _ in range(2))
    start_from(model, earlier)
    run.save_weights(model.state_dict())
    first, second = dmoe.load(folder / "run"), dmoe.load(tmp_path / "run")
    old = folder / "old.csv"
    np.testing.assert_array_equal(second.predict_proba(old), first.predict_proba(old))
    rows, size = model.embedding.field_rows(1), earlier.schema.vocabulary_sizes[1]
    new = slice(rows.start + size, rows.stop)
    assert torch.equal(model.embedding.weight[new], fresh.embedding.weight[new])
    assert not torch.equal(model.embedding.weight[rows.start], fresh.embedding.weight[rows.start])


def test_a_run_starts_where_the_earlier_one_ended(folder: Path, tmp_path: Path) -> None:
    # A step so small that it changes nothing to speak of shows the weights at the start.
    still = ("optimiser.lr=1e-12", "optimiser.embedding_l2=0")
    words = ["train", str(folder / "run" / "config.yaml"), "--data", str(folder / "grown")]
    with pytest.raises(SystemExit) as done:
        main([*words, *still, "--output", str(tmp_path / "run"), "--start-from", str(folder / "run")])
    assert not done.value.code
    old = folder / "old.csv"
    before, after = (dmoe.load(path).predict_proba(old) for path in (folder / "run", tmp_path / "run"))
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert Run.open(tmp_path / "run").environment["start"] == str((folder / "run").resolve())


def test_another_model_or_other_data_are_refused(folder: Path, tmp_path: Path) -> None:
    earlier = folder / "run"
    with pytest.raises(ConfigError, match="its model is another one"):
        train(config("model.embedding_dim=5"), folder / "grown", tmp_path / "run", start=earlier)
    prepare(PLAN, [str(folder / "new.csv")], tmp_path / "other")
    with pytest.raises(DataError, match="has other ids or values in this data set"):
        train(config(), tmp_path / "other", tmp_path / "run", start=earlier)
    numeric = PLAN.model_copy(update={"fields": PLAN.fields.model_copy(update={"numeric": {}})})
    prepare(numeric, [str(folder / "old.csv")], tmp_path / "fewer")
    with pytest.raises(DataError, match="field 'price' has other ids or values"):
        train(config(), tmp_path / "fewer", tmp_path / "run", start=earlier)
    assert not (tmp_path / "run").exists()


def test_a_moved_id_is_seen(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "grown", tmp_path / "moved")
    path = vocabulary_path(tmp_path / "moved", "site")
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "value", table["value"].take([1, 0, 2, 3, 4])), path)
    with pytest.raises(DataError, match="field 'site' has other ids"):
        train(config(), tmp_path / "moved", tmp_path / "run", start=folder / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "--start-from", "RUN", "--output", "other"], "leave --start-from out"),
        (["--start-from", "RUN", "--output", "RUN"], "is the run to start from; choose another --output"),
    ],
)
def test_wrong_uses_are_one_line(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(folder / "run") if word == "RUN" else word for word in words]
    with pytest.raises(SystemExit) as done:
        main(["train", "d-moe", "--data", str(folder / "data"), *words])
    assert done.value.code == 2
    assert message in capsys.readouterr().err
