"""A run with a linear part: its logit, its share, what resumes and what continues."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dmoe.baselines.by_value import by_value
from dmoe.baselines.folder import Baseline
from dmoe.baselines.models import EncodedRows, Logistic, _best
from dmoe.baselines.target import TargetEncoding
from dmoe.cli.train import linear_lines
from dmoe.errors import ConfigError
from dmoe.evaluation.evaluate import scored_rows
from dmoe.evaluation.tasks import TaskRows
from dmoe.nn.build import token_fields
from dmoe.nn.linear import LinearPart
from dmoe.report import write_report
from dmoe.schema import CategoricalField, MultiValuedField, NumericField, Schema
from dmoe.shards.reader import SplitReader, read_once
from dmoe.training import finish, linear
from dmoe.training.linear import best_share
from dmoe.training.loop import train
from dmoe.weights.run import Run
from tests.small_runs import small_config


def drawn(schema: Schema, count: int, seed: int) -> EncodedRows:
    draw = np.random.default_rng(seed)
    columns = [
        draw.integers(0, field.vocabulary_size, count) for field in schema.categorical for _ in range(field.length)
    ]
    ids_RC = np.stack(columns, axis=1).astype(np.int32)
    labels_R = draw.random(count) < (0.2 + 0.6 * (ids_RC[:, 0] % 2))
    return EncodedRows(ids_RC, draw.normal(size=(count, 1)).astype(np.float32), labels_R.astype(np.uint8)[:, None])


def schema_of(*, lists: bool) -> Schema:
    second = MultiValuedField(name="b", vocabulary_size=6, max_length=3) if lists else None
    return Schema(
        label="y",
        fields=(
            CategoricalField(name="a", vocabulary_size=9),
            second or CategoricalField(name="b", vocabulary_size=6),
            NumericField(name="x"),
        ),
    )


@pytest.mark.parametrize("encoding", ["one-hot", "target"])
@pytest.mark.parametrize("lists", [False, True])
def test_the_part_is_the_regression(encoding: str, lists: bool) -> None:
    schema = schema_of(lists=lists)
    train_rows, valid = drawn(schema, 2000, 0), drawn(schema, 300, 1)
    model = Logistic.fit(train_rows, valid, schema, 0, lambda _: None)
    if encoding == "target":
        target = TargetEncoding.of(schema, train_rows.ids_RC, train_rows.numeric_RN, train_rows.labels_R)
        matrix, first = target.training_matrix(train_rows.ids_RC, train_rows.numeric_RN, train_rows.labels_R)
        _, model = _best(target, matrix, train_rows.labels_R[first:], valid, "target", lambda _: None)
    else:
        assert model.encoding == "one-hot"
    found = by_value(model)
    if encoding == "target" and lists:
        assert found is None  # the rate of a list is not a sum over its values
        return
    assert found is not None
    part = LinearPart(token_fields(schema), 1)
    part.set(torch.from_numpy(found.weights_V), found.bias, found.edges, found.steps, found.slopes, share=1.0)
    got_R = part(torch.from_numpy(valid.ids_RC), torch.from_numpy(valid.numeric_RN))
    np.testing.assert_allclose(got_R.numpy(), model.logits(valid.ids_RC, valid.numeric_RN), atol=1e-5)
    added_RF = part.by_field(torch.from_numpy(valid.ids_RC), torch.from_numpy(valid.numeric_RN))
    np.testing.assert_allclose(added_RF.sum(1) + part.bias, got_R, atol=1e-9)


@pytest.fixture(scope="module")
def run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(small_config("model.linear=true"), small_data, tmp_path_factory.mktemp("linear") / "run")


def test_the_logit_has_the_share_of_the_regression_kept_with_the_data(run: Run, small_data: Path) -> None:
    plain = train(small_config(), small_data, run.path.parent / "plain").load_model()
    model, reader = run.load_model(), SplitReader(small_data, "test", batch_size=8192)
    rows = scored_rows(model, reader, torch.device("cpu")).of_task()
    got_R, linear_R = rows.logits_R, rows.linear_R
    unmixed = scored_rows(plain, reader, torch.device("cpu")).of_task()
    mixture_R = unmixed.logits_R
    assert unmixed.linear_R is None
    assert linear_R is not None
    (batch,) = reader.batches()
    baseline = Baseline.open(small_data / "baselines" / "logistic").load_model()
    want_R = baseline.logits(batch.ids_BC.numpy(), batch.numeric_BN.numpy())
    np.testing.assert_allclose(linear_R, want_R, atol=1e-5)
    said = json.loads((run.path / "linear.json").read_text())
    share = said["share"]
    assert model.linear is not None
    assert float(model.linear.share) == share
    np.testing.assert_allclose(got_R, (1 - share) * mixture_R + share * want_R, atol=1e-5)
    assert f"logistic regression, {share:.0%} of the logit; test AUC" in linear_lines(run.path)[0]
    added_BF = model.linear.by_field(batch.ids_BC, batch.numeric_BN)
    np.testing.assert_allclose(added_BF.sum(1) + model.linear.bias, want_R, atol=1e-5)
    rows = list(read_once(small_data, "valid", batch_size=7).batches())
    valid_BF = torch.cat([model.linear.by_field(one.ids_BC, one.numeric_BN) for one in rows])
    names = [field.name for field in (*Schema.read(small_data).categorical, *Schema.read(small_data).numeric)]
    spreads = dict(zip(names, valid_BF.numpy().std(0).tolist(), strict=True))
    assert {one["field"]: one["spread"] for one in said["fields"]} == pytest.approx(spreads, abs=1e-9)
    shown = [one["spread"] for one in said["fields"]]
    assert shown == sorted(shown, reverse=True)
    write_report([run.path], run.path.parent / "report.html")
    page = (run.path.parent / "report.html").read_text(encoding="utf-8")
    assert "Beside the experts stands the data set’s logistic regression" in page
    assert (f'<th scope="row">{said["fields"][0]["field"]}</th>' in page) == (share > 0)


def test_it_is_fitted_again_when_the_end_was_interrupted(
    run: Run, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(finish, "evaluate_split", fails)
    with pytest.raises(MemoryError):
        train(run.config, small_data, tmp_path / "cut")
    monkeypatch.undo()
    again = train(run.config, small_data, tmp_path / "cut", resume=True)
    for name in ("model.safetensors", "linear.json", "evaluation/test.json"):
        assert (again.path / name).read_bytes() == (run.path / name).read_bytes()


def test_a_continued_run_is_fitted_anew(run: Run, small_data: Path, tmp_path: Path) -> None:
    second = train(small_config("model.linear=true", "training.epochs=1"), small_data, tmp_path / "b", start=run)
    assert second.load_model().linear is not None
    with pytest.raises(ConfigError, match="another shape"):
        train(small_config(), small_data, tmp_path / "c", start=run)


def test_what_is_no_sum_over_values_has_no_share(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "by_value", lambda _: None)
    run = train(small_config("model.linear=true", "training.epochs=1"), small_data, tmp_path / "run")
    said = json.loads((run.path / "linear.json").read_text())
    assert (said["used"], said["share"]) == (False, 0.0)
    assert "no sum over values" in linear_lines(run.path)[0]
    assert float(run.load_model().linear.share) == 0.0  # type: ignore[union-attr]


def test_the_share_is_half_unless_valid_tells_otherwise() -> None:
    draw = np.random.default_rng(0)
    first_R, second_R = draw.normal(size=(2, 20_000))
    labels_R = draw.random(20_000) < 1 / (1 + np.exp(-(first_R + second_R)))
    noise_R = draw.normal(size=20_000) * 2
    assert best_share(TaskRows(labels_R, 2 * first_R, None, 2 * second_R)) == 0.5
    assert best_share(TaskRows(labels_R, first_R + second_R, None, noise_R)) == 0.0
    assert best_share(TaskRows(labels_R, noise_R, None, first_R + second_R)) == 1.0
    assert best_share(TaskRows(labels_R, first_R, None, first_R)) == 0.0  # nothing gained
