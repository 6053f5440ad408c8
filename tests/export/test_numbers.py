"""Numbers in the exported graph: on the same side of every bound of the linear part as in the run."""

from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dmoe
from dmoe.baselines.design import BINS, Design
from dmoe.config.data import DataConfig
from dmoe.config.fields import NumericOptions
from dmoe.config.run import load_config
from dmoe.export.check import Decoder
from dmoe.export.fields import FieldInput
from dmoe.export.graph import front_graph
from dmoe.export.write import export
from dmoe.prepare.prepare import prepare
from dmoe.schema import NumericField, Schema
from dmoe.shards.batch import Batch
from dmoe.tokens.numbers import encode_numbers, fit_field
from dmoe.training.loop import train
from tests.export.conftest import SMALL


def encoded(numbers_R: np.ndarray) -> Batch:
    rows = len(numbers_R)
    return Batch(torch.empty(rows, 0, dtype=torch.int32), torch.from_numpy(numbers_R[:, None]), torch.zeros(rows, 1))


def side_by_side(numbers_R: np.ndarray, field: NumericField) -> tuple[np.ndarray, list[np.ndarray]]:
    """The bins of raw numbers, and those that the graph's numbers of them, and of them encoded and back, lie in."""
    schema = Schema(label="y", fields=(field,))
    encoded_R = encode_numbers(numbers_R, field)
    (edges,) = Design.of(schema, encoded_R.reshape(-1, 1)).edges
    inputs = [FieldInput(field.name, "number", field.name, ())]
    session = onnxruntime.InferenceSession(front_graph(schema, inputs, {}).SerializeToString())
    back = Decoder(schema, inputs, Path(), {})(encoded(encoded_R))
    fed = [numbers_R.reshape(-1, 1), back[field.name]]
    bins = [np.searchsorted(edges, session.run(["fields/numeric"], {field.name: one})[0][:, 0]) for one in fed]
    return np.searchsorted(edges, encoded_R), bins


AWKWARD = [0.0, -0.0, 1.0, 3.0, 1e-9, -1e-9, 1e-300, 0.1, 0.30000000000000004, 1e9, 1e9 + 1, 3e38, np.nan]
NUMBERS = st.lists(
    st.one_of(st.sampled_from(AWKWARD), st.integers(-5, 5).map(float), st.floats(-1e30, 1e30)), min_size=1, max_size=60
)


@pytest.mark.parametrize(
    "options", [{}, {"transform": "standardise"}, {"transform": "log"}, {"transform": "log", "standardise": True}]
)
@settings(max_examples=60)
@given(numbers=NUMBERS)
def test_the_graph_puts_every_number_into_the_bin_of_the_run(options: dict[str, object], numbers: list[float]) -> None:
    numbers_R = np.array(numbers)
    wanted, found = side_by_side(numbers_R, fit_field("n", NumericOptions.model_validate(options), lambda: [numbers_R]))
    for bins in found:
        assert bins.tolist() == wanted.tolist()


@pytest.mark.parametrize(("mean", "scale"), [(-6.9e-62, 6.9e-62), (0.0, 1 + 2**-30), (2**-150, 1 - 2**-40)])
def test_a_mean_and_scale_that_float32_takes_for_none_are_used(mean: float, scale: float) -> None:
    """ONNX Runtime drops the subtraction of a 0 and the division by a 1, and looks at both in float32."""
    field = NumericField(name="n", transform="standardise", mean=mean, scale=scale)
    inputs = [FieldInput("n", "number", "n", ())]
    graph = front_graph(Schema(label="y", fields=(field,)), inputs, {})
    numbers_R = mean + scale * np.array([-3.0, -1.0, 0.0, 1.0, 3 * (1 + 2**-24), 1e6])
    (found,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(
        ["fields/numeric"], {"n": numbers_R[:, None]}
    )
    assert found[:, 0].tolist() == encode_numbers(numbers_R, field).tolist()


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_missing_value_stays_in_its_bin_beside_numbers_at_the_mean(share: float) -> None:
    """Missing is encoded as 0, and a number at the mean as 0 but for rounding: no bound may part them."""
    draw = np.random.default_rng(0)
    for mean in draw.uniform(1e-6, 1e6, 50):
        numbers_R = np.where(draw.random(200) < share, np.nan, mean)
        rounded = float(np.nextafter(np.log1p(mean), np.inf))  # as the mean of many rows is
        wanted, found = side_by_side(numbers_R, NumericField(name="n", transform="log", mean=rounded))
        assert len(np.unique(wanted)) == 1
        for bins in found:
            assert bins.tolist() == wanted.tolist()


def test_bins_part_the_rows_as_quantiles_do() -> None:
    """Each bound is above the quantile and below the next value, so that bins hold what the quantiles say."""
    draw = np.random.default_rng(1)
    numbers_R = np.concatenate([draw.normal(size=1000), np.repeat([0.5, 2.0], 300)]).astype(np.float32)
    (edges,) = Design.of(Schema(label="y", fields=(NumericField(name="n"),)), numbers_R.reshape(-1, 1)).edges
    ordered = np.sort(numbers_R)
    quantiles = {float(ordered[-(-len(ordered) * step // BINS) - 1]) for step in range(1, BINS)}
    inner = sorted(one for one in quantiles if one < ordered[-1])
    assert len(edges) == len(inner)
    for edge, lower in zip(edges, inner, strict=True):
        assert lower < edge < ordered[ordered > lower].min()


def test_neighbours_in_float32_are_parted_at_the_lower_one() -> None:
    lower = np.float32(1.5)
    upper = np.nextafter(lower, np.float32(2))
    numbers_R = np.array([lower, upper], np.float32)
    (edges,) = Design.of(Schema(label="y", fields=(NumericField(name="n"),)), numbers_R.reshape(-1, 1)).edges
    assert edges == (1.5,)


def typed_rows(count: int) -> pa.Table:
    """Columns of every type that a field can be read from, with what is missing, zero and equal in most rows."""
    draw = np.random.default_rng(3)

    def gaps(values: list[object], share: float) -> list[object]:
        return [None if gone else value for value, gone in zip(values, draw.random(count) < share, strict=True)]

    start = datetime(2024, 2, 29, 22)
    counts = draw.poisson(1.0, count)
    flags = draw.random(count) < 0.3
    sites = draw.choice(["a", "b", "c,d", "é"], count).tolist()
    table = {
        "y": [int(one) for one in draw.random(count) < 0.15 + 0.5 * (counts > 1) + 0.2 * flags],
        "site": gaps(sites, 0.2),
        "number": gaps(draw.integers(-2, 5, count).tolist(), 0.2),
        "flag": gaps(flags.tolist(), 0.1),
        "cents": gaps([Decimal(int(one)) / 100 for one in draw.integers(-300, 300, count)], 0.2),
        "time": gaps([start + timedelta(hours=int(one)) for one in draw.integers(0, 200, count)], 0.1),
        "tags": gaps([[int(one) for one in draw.integers(0, 6, draw.integers(0, 4))] for _ in range(count)], 0.2),
        "counts": gaps(counts.tolist(), 0.5),
        "same": gaps([0.1] * count, 0.5),
        "tiny": gaps((1e-9 * draw.integers(0, 4, count)).tolist(), 0.2),
        "stamp": gaps((1_700_000_000.0 + draw.integers(0, 3, count)).tolist(), 0.2),
    }
    types = {"cents": pa.decimal128(8, 2), "tags": pa.list_(pa.int64()), "time": pa.timestamp("us")}
    return pa.table({name: pa.array(values, types.get(name)) for name, values in table.items()})


TYPED = {
    "label": "y",
    "split": {"kind": "ordered", "train": 0.6, "valid": 0.2, "test": 0.2},
    "derive": {"hour": {"column": "time", "take": "hour"}, "weekday": {"column": "time", "take": "weekday"}},
    "fields": {
        "min_count": 2,
        "categorical": {
            "site": {}, "number": {}, "flag": {}, "cents": {"missing_as": "oov"}, "hour": {}, "weekday": {},
            "hashed": {"column": "number", "hash_buckets": 3},
            "hashed hour": {"column": "time", "hash_buckets": 5},
        },
        "multi_valued": {"tags": {"max_length": 3}},
        "numeric": {
            "counts": {"transform": "log", "standardise": True},
            "plain counts": {"column": "counts"},
            "log counts": {"column": "counts", "transform": "log"},
            "even counts": {"column": "counts", "transform": "standardise"},
            "same": {"transform": "log", "standardise": True},
            "even same": {"column": "same", "transform": "standardise"},
            "tiny": {"transform": "log", "standardise": True},
            "log tiny": {"column": "tiny", "transform": "log"},
            "stamp": {"transform": "standardise"},
            "log stamp": {"column": "stamp", "transform": "log", "standardise": True},
            "money": {"column": "cents", "transform": "log", "standardise": True},
            "bucket": {"column": "counts", "transform": "bucket"},
            "steps": {"column": "cents", "transform": "log-bucket", "steps": 2},
            "digit": {"column": "number", "transform": "digit", "radix": 10, "place": 0},
            "quarter": {"column": "cents", "transform": "quantile", "buckets": 4},
        },
    },
}  # fmt: skip


def test_a_run_with_a_linear_part_over_every_type_of_column_is_exported(tmp_path: Path) -> None:
    """Proven on the encoded rows by `export` itself, and here on the raw ones."""
    rows = typed_rows(1500)
    pq.write_table(rows, tmp_path / "log.parquet")
    prepare(DataConfig.model_validate(TYPED), [str(tmp_path / "log.parquet")], tmp_path / "data")
    config = load_config(None, [*SMALL, "training.epochs=1", "model.linear=true"])
    run = train(config, tmp_path / "data", tmp_path / "run")
    assert run.load_model().linear.share > 0
    found = export(run, tmp_path / "model", max_graph_tokens=6)  # of both kinds: in the graph and beside it
    assert {one.kind for one in found.inputs} == {"text", "number", "id"}
    assert found.parity.max_abs_probability < 2e-6
    theirs = dmoe.load(tmp_path / "model").predict_proba(rows)
    np.testing.assert_allclose(theirs, dmoe.load(run.path).predict_proba(rows), atol=2e-6)
