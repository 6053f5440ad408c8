"""One value, one token: every carrier of the same values gives the same ids, or is refused by the column's name."""

import json
import uuid
import warnings
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dmoe.config.data import DataConfig
from dmoe.config.fields import MultiValuedOptions
from dmoe.errors import DataError
from dmoe.prepare.prepare import prepare
from dmoe.prepare.update import update
from dmoe.schema import Schema
from dmoe.tokens.encoder import RawEncoder
from dmoe.tokens.lists import split_values
from dmoe.validation import validate
from dmoe.values.canonical import MissingWordsWarning, ValueForm, forms_of, merged
from dmoe.values.coded_columns import as_text, carriers_of
from dmoe.values.missing import MissingTexts


def form_of(values: list[str]) -> ValueForm:
    return ValueForm.of(forms_of(pa.array(values, pa.string()).unique(), {}))


@pytest.mark.parametrize(
    ("values", "kind", "tokens"),
    [
        (["105", "7", "-3"], "integer", ["105", "7", "-3"]),
        (["105.0", "7", "8.00"], "integer", ["105", "7", "8"]),
        (["0", "-0", "0.0"], "integer", ["0", "0", "0"]),
        (["98765432109876543210"], "integer", ["98765432109876543210"]),
        (["2.5", "2.0", "3"], "number", ["2.5", "2", "3"]),
        (["2.50", "3.00", "-1.25"], "number", ["2.5", "3", "-1.25"]),
        (["1.1", "1.10"], "text", ["1.1", "1.10"]),
        (["2.50", "3"], "text", ["2.50", "3"]),
        (["00501", "12345"], "text", ["00501", "12345"]),
        (["1e5", "7"], "text", ["1e5", "7"]),
        (["0.12345678901234567", "1.5"], "text", ["0.12345678901234567", "1.5"]),
        (["True", "false", "TRUE"], "boolean", ["true", "false", "true"]),
        (["True", "1", "0.0"], "boolean", ["true", "true", "false"]),
        (["2026-01-05", "2026-01-06 00:00:00"], "date", ["2026-01-05", "2026-01-06"]),
        (["2026-01-05T10:00:00.500", "2026-01-05"], "time", ["2026-01-05 10:00:00.5", "2026-01-05 00:00:00"]),
        (["2026-01-05T10:00+02:00", "2026-01-05 08:00:00.0Z"], "time", ["2026-01-05 08:00:00Z"] * 2),
        (["2026-13-05"], "text", ["2026-13-05"]),
        (["10:00:00.50", "23:59:59"], "clock", ["10:00:00.5", "23:59:59"]),
        (["6BA7B810-9DAD-11D1-80B4-00C04FD430C8"], "uuid", ["6ba7b810-9dad-11d1-80b4-00c04fd430c8"]),
        (["105.0", "NA"], "integer", ["105", "NA"]),
        (["105", "none of it"], "text", ["105", "none of it"]),
        ([], "text", []),
    ],
)
def test_the_type_of_texts_and_their_tokens(values: list[str], kind: str, tokens: list[str]) -> None:
    form = form_of(values)
    assert form.kind == kind
    assert [form.token(value) for value in values] == tokens
    assert [form.token(token) for token in tokens] == tokens
    if form.keeps(forms_of(pa.array(values, pa.string()).unique(), {})):
        assert tokens == values


TEXTS = st.one_of(
    st.from_regex(r"\A-?0?[0-9]{1,4}(\.[0-9]{0,3})?([eE][0-9])?\Z"),
    st.sampled_from(
        ["True", "false", "1", "0", "NA", "", "inf", " 5", "+5", "a", "2026-01-05", "2026-01-05T10:00:00Z"]
    ),
    st.text(max_size=3),
)


@given(values=st.lists(TEXTS, max_size=12), cut=st.integers(0, 12))
def test_forms_do_not_depend_on_how_values_are_cut(values: list[str], cut: int) -> None:
    def forms(part: list[str]) -> dict[str, str]:
        return forms_of(pa.array(part, pa.string()).unique(), {})

    whole = forms(values)
    assert merged([forms(values[cut:]), forms(values[:cut])]) == whole
    one_by_one = merged(forms([value]) for value in values)
    assert one_by_one == whole
    if ValueForm.of(whole).keeps(whole):
        assert [ValueForm.of(whole).token(value) for value in values] == values


NUMBERS = st.integers(-(2**31), 2**31).map(str)
PRICES = st.decimals(-1000, 1000, places=2).map(lambda one: f"{one:.2f}")
VALUES: dict[str, st.SearchStrategy[str]] = {
    "integer": NUMBERS,
    "number": PRICES,
    "boolean": st.sampled_from(["True", "False"]),
    "date": st.dates(date(1980, 1, 1), date(2100, 1, 1)).map(str),
    "time": st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1))
    .map(lambda one: one.replace(microsecond=0))
    .map(str),
    "clock": st.times().map(lambda one: one.replace(microsecond=0)).map(str),
    "uuid": st.uuids().map(str),
}


def carriers(kind: str, texts: list[str]) -> dict[str, Any]:
    """The values that the texts say, as columns of other types."""
    python: dict[str, Any] = {
        "integer": int,
        "number": float,
        "boolean": "True".__eq__,
        "date": date.fromisoformat,
        "time": datetime.fromisoformat,
        "clock": time.fromisoformat,
        "uuid": uuid.UUID,
    }
    values = [python[kind](text) for text in texts]
    found: dict[str, Any] = {
        "objects": pd.DataFrame({"x": pd.Series(values, dtype=object)}),
        "categories": pd.DataFrame({"x": pd.Series(values, dtype=object).astype("category")}),
        "text": pl.DataFrame({"x": texts}),
        "large": pa.table({"x": pa.array(texts, pa.large_string())}),
        "views": pa.table({"x": pa.array(texts, pa.string_view())}),
        "bytes": pa.table({"x": pa.array([text.encode() for text in texts])}),
    }
    if kind == "uuid":
        return found
    arrow = pa.array(values)
    found |= {"arrow": pa.table({"x": arrow}), "dictionary": pa.table({"x": arrow.dictionary_encode()})}
    found |= {"polars": pl.DataFrame({"x": values}), "pandas": pd.DataFrame({"x": values})}
    if kind == "integer":
        found |= {
            "float": pa.table({"x": arrow.cast(pa.float64())}),
            "decimals": [Decimal(f"{one}.000") for one in values],
        }
    if kind == "number":
        found |= {
            "decimals": [Decimal(text) for text in texts],
            "exact": pa.table({"x": pa.array(values).cast(pa.float64())}),
        }
    if kind == "boolean":
        found |= {
            "bits": pa.table({"x": arrow.cast(pa.int8())}),
            "texts of bits": pa.table({"x": [str(int(v)) for v in values]}),
        }
    if kind == "date":
        found |= {
            "midnights": pa.table({"x": arrow.cast(pa.timestamp("us"))}),
            "date64": pa.table({"x": arrow.cast(pa.date64())}),
        }
    if kind == "time":
        found |= {unit: pa.table({"x": arrow.cast(pa.timestamp(unit))}) for unit in ("s", "ms", "us", "ns")}
    if isinstance(found.get("decimals"), list):
        found["decimals"] = pa.table({"x": pa.array(found["decimals"])})
    return found


def prepared(folder: Path, column: Any, name: str = "log.parquet", **fields: Any) -> Path:
    rows = len(column)
    table = pa.table({"y": [index % 2 for index in range(rows)], "x": column})
    if name.endswith(".csv"):
        table.to_pandas().to_csv(folder / name, index=False)
    else:
        pq.write_table(table, folder / name)
    config = validate(
        DataConfig,
        {"label": "y", "split": {"train": 0.8, "valid": 0.2, "test": 0.0}, "fields": fields or {"categorical": ["x"]}},
        "data.yaml",
    )
    prepare(config, [str(folder / name)], folder / "data", threads=1)
    return folder / "data"


@pytest.mark.parametrize("kind", VALUES)
@settings(max_examples=4)
@given(data=st.data())
def test_every_carrier_gives_the_ids_of_the_text(tmp_path_factory: Any, kind: str, data: st.DataObject) -> None:
    texts = data.draw(st.lists(VALUES[kind], min_size=10, max_size=14, unique=kind not in ("boolean", "number")))
    encoder = RawEncoder(prepared(tmp_path_factory.mktemp("x"), pa.array(texts), "log.csv"))
    wanted = encoder.encode_table(pa.table({"x": texts})).ids_BC.tolist()
    for carrier, table in carriers(kind, texts).items():
        assert encoder.encode_table(table).ids_BC.tolist() == wanted, carrier


def test_a_moment_is_one_in_every_zone(tmp_path: Path) -> None:
    east = timezone(timedelta(hours=2))
    moments = [datetime(2026, 1, 5, hour, tzinfo=east) for hour in range(1, 21)]
    encoder = RawEncoder(prepared(tmp_path, pa.array([one.isoformat() for one in moments])))
    wanted = encoder.encode_table(pa.table({"x": [one.astimezone(UTC).isoformat() for one in moments]})).ids_BC.tolist()
    assert len({id_ for (id_,) in wanted}) > 15
    for column in (
        pa.array(moments, pa.timestamp("us", "Europe/Berlin")),
        pa.array(moments, pa.timestamp("s", "UTC")),
        pa.array([str(one) for one in moments]),
    ):
        assert encoder.encode_table(pa.table({"x": column})).ids_BC.tolist() == wanted
    objects = pd.DataFrame({"x": pd.Series(moments, dtype=object)})
    assert encoder.encode_table(objects).ids_BC.tolist() == wanted


@pytest.mark.parametrize(
    ("texts", "arrives", "message"),
    [
        (["00501", "12345"], [501, 12345], r"column 'x' was text with leading zeros \(such as '00501'\).*int.*str"),
        (["1e5", "7"], [1e5, 7.0], "exponents"),
        (["1.10", "1.1"], [1.1, 1.1], "trailing zeros"),
        (["yes", "True"], [True, False], "truth values"),
        (["9007199254740993", "7"], [9007199254740993.0, 7.0], "column 'x' holds double numbers of 2\\^53 and more"),
    ],
)
def test_what_lost_the_text_is_refused_by_name(
    tmp_path: Path, texts: list[str], arrives: list[Any], message: str
) -> None:
    encoder = RawEncoder(prepared(tmp_path, pa.array(texts * 10)))
    with pytest.raises(DataError, match=message):
        encoder.encode_table(pa.table({"x": arrives}))
    with pytest.raises(DataError, match=message):
        encoder.encode_table(pd.DataFrame({"x": pd.Series(arrives, dtype=object)}))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([timedelta(1)] * 3),
        pa.array([{"a": 1}] * 3),
        pa.array([[1]] * 3),
        pa.array([b"\xff"] * 3),
        pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64())),
    ],
)
def test_what_has_no_text_is_refused_by_name(tmp_path: Path, column: Any) -> None:
    encoder = RawEncoder(prepared(tmp_path, pa.array(["a", "b"] * 10)))
    with pytest.raises(DataError, match="column 'x' holds"):
        encoder.encode_table(pa.table({"x": column}))
    with pytest.raises(DataError, match="column 'x' "):
        encoder.encode_table(pd.DataFrame({"x": pd.Series([{1}, 3 + 1j, object()], dtype=object)}))


def test_columns_that_nobody_reads_never_matter(tmp_path: Path) -> None:
    encoder = RawEncoder(prepared(tmp_path, pa.array(["a", "b"] * 10)))
    frame = pd.DataFrame([[{1}, 1, "a", 3 + 1j]], columns=["odd", "odd", "x", 0], index=["row"])
    assert encoder.encode_table(frame).ids_BC.tolist() == encoder.encode_table(pa.table({"x": ["a"]})).ids_BC.tolist()
    with pytest.raises(DataError, match="column 'x' appears twice"):
        encoder.encode_table(frame.set_axis(["x", "odd", "x", 0], axis=1))


def test_a_word_that_readers_take_for_missing_is_warned_of(tmp_path: Path) -> None:
    encoder = RawEncoder(prepared(tmp_path, pa.array(["NA", "US", "DE", "FR"] * 6)))
    assert encoder.schema.field("x").values.words == ("NA",)
    with pytest.warns(MissingWordsWarning, match=r"column 'x'.*'NA'.*keep_default_na=False"):
        encoder.encode_table(pa.table({"x": ["US", *[None] * 20]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode_table(pa.table({"x": ["US", *[None] * 20, "NA"]}))
        encoder.encode_table(pa.table({"x": ["US", None]}))  # a few are nothing odd


@pytest.mark.parametrize("value", ["-1", -1, -1.0, Decimal("-1.00"), np.float32(-1), None, float("nan")])
def test_a_value_that_means_missing_is_missing_whoever_reads_it(tmp_path: Path, value: Any) -> None:
    values = [str(index % 5 - 1) for index in range(40)]
    data = prepared(
        tmp_path,
        pa.array(values),
        categorical={"id": {"column": "x", "missing_values": ["-1"]}, "hash": {"column": "x", "hash_buckets": 9}},
        numeric={"price": {"column": "x"}, "part": {"column": "x", "transform": "quantile", "buckets": 3}},
    )
    schema = json.loads((data / "schema.json").read_text())
    schema["source"]["format"] = {"missing": ["", "-1"]}
    (data / "schema.json").write_text(json.dumps(schema))
    batch = RawEncoder(data).encode_table(pd.DataFrame({"x": pd.Series([value], dtype=object)}))
    assert batch.ids_BC.tolist() == [[0, 0, 0]]
    assert batch.numeric_BN.tolist() == [[0.0]]


def test_narrow_floats_are_the_numbers_they_show(tmp_path: Path) -> None:
    texts = [f"{index / 10:.1f}" for index in range(40)]
    data = prepared(tmp_path, pa.array(texts), numeric={"x": {"transform": "quantile", "buckets": 20}})
    encoder = RawEncoder(data)
    wanted = encoder.encode_table(pa.table({"x": texts})).ids_BC.tolist()
    for kind in (pa.float32(), pa.float16(), pa.float64()):
        column = pa.array(np.array(texts, dtype=kind.to_pandas_dtype()))
        assert encoder.encode_table(pa.table({"x": column})).ids_BC.tolist() == wanted, kind
    decimals = pa.array([Decimal(text) for text in texts])
    assert encoder.encode_table(pa.table({"x": decimals})).ids_BC.tolist() == wanted


@given(values=st.lists(st.sampled_from(["-1", "-1.0", "-1.5", "-10", "0", "-0.0", "1", "a", "NA", "True", "false"])))
@example(values=["-1.00", "-1."])
def test_missing_texts_one_by_one_and_all_at_once(values: list[str]) -> None:
    missing = MissingTexts(["-1", "0", "NA", "True"])
    assert missing.among(pa.array(values, pa.string())).tolist() == [value in missing for value in values]


def test_an_update_takes_values_by_the_type_of_the_first_rows(tmp_path: Path) -> None:
    ids = [str(100 + index % 8) for index in range(80)]
    data = prepared(tmp_path, pa.array(ids))
    size = Schema.read(data).field("x").vocabulary_size
    floats = pa.table({"y": [index % 2 for index in range(80)], "x": [float(one) for one in ids]})
    pq.write_table(floats, tmp_path / "next.parquet")
    update(data, [str(tmp_path / "next.parquet")], tmp_path / "grown")
    grown = Schema.read(tmp_path / "grown").field("x")
    assert (grown.vocabulary_size, grown.values.kind) == (size, "integer")


ROWS = [["3", "1"], [], None, ["5"], ["7", "8", "9", "3"], [None, "3"]]


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_list(pa.string()),
        pa.list_view(pa.string()),
        pa.large_list_view(pa.large_string()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
        pa.list_(pa.int64()),
        pa.list_(pa.float32()),
        pa.list_(pa.decimal128(6, 2)),
    ],
)
def test_every_type_of_list_gives_the_same_values(kind: Any) -> None:
    def values(column: Any) -> list[list[str]]:
        coded = split_values(column, MultiValuedOptions(), ("",), "tags")
        texts = [*coded.values.to_pylist(), None]
        return [[texts[code] for code in row if code >= 0] for row in coded.codes_N]

    wanted = values(pa.array(ROWS, pa.list_(pa.string())))
    assert wanted == [[one for one in row or [] if one] for row in ROWS]
    convert: Any = str
    if pa.types.is_integer(kind.value_type):
        convert = int
    elif carriers_of(kind):
        convert = Decimal if pa.types.is_decimal(kind.value_type) else float
    rows = [None if row is None else [None if one is None else convert(one) for one in row] for row in ROWS]
    assert values(pa.array(rows, kind)) == wanted
    assert values(pa.array([rows[0], *rows, rows[0]], kind).slice(1, len(rows))) == wanted
    covered = pa.ListArray.from_arrays(
        pa.array([0, 2, 2, 4, 5, 9, 11], pa.int32()),
        pa.array(["3", "1", "7", "7", "5", "7", "8", "9", "3", None, "3"]),
        mask=pa.array([False, False, True, False, False, False]),
    )
    assert values(covered) == wanted


def test_floats_and_decimals_are_written_in_full() -> None:
    floats = pa.array([1e-7, 0.1, 2.0, -0.0, 1e22, None, float("nan"), 123456789.125])
    assert as_text(floats, "x").to_pylist() == [
        *("0.0000001", "0.1", "2", "0", "10000000000000000000000", None, None, "123456789.125")
    ]
    decimals = pa.array([Decimal("11.00"), Decimal("0.50"), Decimal("100"), None, Decimal("-0.00")])
    assert as_text(decimals, "x").to_pylist() == ["11", "0.5", "100", None, "0"]
