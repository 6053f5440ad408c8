"""One value, one score: every carrier of the same values, through the run, the exported model and the server.

Each example takes values of one column, all others at rest, and asks every way that can carry them. A way gives the
score of the text, or refuses with the column's name; only carriers that cannot hold the values may be refused.
"""

import asyncio
import io
import json
import random
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc

from dmoe.config.data import DataConfig
from dmoe.config.run import load_config
from dmoe.errors import DataError
from dmoe.export.write import export
from dmoe.prepare.prepare import prepare
from dmoe.scoring.load import load
from dmoe.serving.app import Application
from dmoe.serving.settings import Settings
from dmoe.tokens.scorer import Scorer
from dmoe.tokens.unseen import UnseenValuesWarning
from dmoe.training.loop import train
from dmoe.values.canonical import MissingWordsWarning
from tests.export.conftest import SMALL

ZONE = timezone(timedelta(hours=2))
DAY = datetime(2026, 1, 5)

# What training knew of each column, as text. Each also gets values that it never saw.
KNOWN: dict[str, list[str]] = {
    "whole": ["-5", "0", "7", "105", str(2**31), str(2**40), str(2**53 - 1)],
    "wide": ["1", str(2**53 + 1), str(2**53 + 3), str(2**63 - 1), str(2**63 + 5), str(10**20 + 7)],
    "price": ["0.50", "1.00", "2.75", "19.99", "-3.25", "1024.00"],
    "short": ["0.1", "2.5", "3", "-0.25", "0.0000001", "1234567.125"],
    "flag": ["True", "False"],
    "bit": ["0", "1"],
    "zip": ["00501", "12345", "02134", "1e5", "1.10", "1.1"],
    "word": ["é", "e\u0301", "日本", "😀", "Ａ", "A", "a", " a", "a ", "\u200ba", "NA", "null", "None"],
    "day": [str(date(2026, 1, 5) + timedelta(days=k)) for k in (0, 1, 40, 700)],
    "when": ["2026-01-05 10:00:00", "2026-01-05 00:00:00", "2026-01-05 10:00:00.5", "1969-12-31 23:59:59.25"],
    "moment": ["2026-01-05 08:00:00Z", "2026-06-05T10:30:00+02:00", "2026-10-25 01:00:00 UTC"],
    "clock": ["10:00:00", "23:59:59.5", "00:00:00"],
    "key": [str(uuid.UUID(int=k * 7**40)) for k in (1, 2, 3)],
    "bucket_id": ["1", "2", "105", "-7", "3000000000"],
    "amount": ["", "0", "-3", "0.1", "2.5", "17", "1000", "99999.5"],
    "tags": ["", "3|1", "5", "7|8|3", "12"],
    "seen_at": ["2026-01-05 03:00:00", "2026-01-06 14:30:00", "2026-01-10 23:59:59"],
    "epoch": ["1767571200", "1767614400", "1767700800", "1767744000"],
}


def config() -> DataConfig:
    tokens = ("whole", "wide", "price", "short", "flag", "bit", "zip", "word", "day", "when", "moment", "clock", "key")
    return DataConfig.model_validate(
        {
            "label": "y",
            "split": {"kind": "random", "train": 0.8, "valid": 0.1, "test": 0.1},
            "fields": {
                "categorical": {name: {} for name in tokens}
                | {"bucket_id": {"hash_buckets": 50, "missing_values": ["-7"]}, "hour": {}, "weekday": {}},
                "numeric": {
                    "amount": {"transform": "log", "standardise": True, "missing_values": ["-3"]},
                    "amount_part": {"column": "amount", "transform": "quantile", "buckets": 4},
                    "amount_bucket": {"column": "amount", "transform": "bucket"},
                    "amount_step": {"column": "amount", "transform": "log-bucket", "steps": 3},
                    "amount_digit": {"column": "amount", "transform": "digit"},
                },
                "multi_valued": {"tags": {"max_length": 3}},
            },
            "derive": {
                "hour": {"column": "seen_at", "take": "hour"},
                "weekday": {"column": "epoch", "take": "hour", "format": "unix"},
            },
            "format": {"missing": ["", "-999"]},
        }
    )


Outcome = list[float] | str  # scores, or the message of a refusal


class Ways:
    """The run, the model and the server of one small training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        draw = np.random.default_rng(4)
        rows = {name: draw.choice(np.array(values, dtype=object), 500) for name, values in KNOWN.items()}
        pq.write_table(pa.table({"y": draw.integers(2, size=500), **rows}), folder / "log.parquet")
        prepare(config(), [str(folder / "log.parquet")], folder / "data", threads=1)
        run = train(load_config(None, [*SMALL, "training.epochs=2"]), folder / "data", folder / "run")
        export(run, folder / "model")
        export(run, folder / "lookup", max_graph_tokens=0)
        self.rest = {name: values[0] for name, values in KNOWN.items()}
        self.by_name = {name: load(folder / name) for name in ("run", "model", "lookup")}
        self.application = Application(Settings(model=folder / "model", access_log=False))
        self.loop = asyncio.Runner()

    def close(self) -> None:
        self.application.close()
        self.loop.close()

    def beside(self, name: str, count: int) -> dict[str, list[str]]:
        """The other columns at rest."""
        return {other: [text] * count for other, text in self.rest.items() if other != name}

    def table(self, name: str, column: Any, count: int) -> pa.Table:
        return pa.table({**self.beside(name, count), name: column})

    def frame(self, name: str, column: Any, count: int) -> Any:
        frame, beside = column.rename(name).to_frame(), self.beside(name, count)
        if isinstance(frame, pl.DataFrame):
            return frame.with_columns(pl.DataFrame(beside))
        return pd.concat([frame, pd.DataFrame(beside)], axis=1)

    def scored(self, way: str, rows: Callable[[], Any]) -> Outcome:
        return scored(self.by_name[way], rows())

    def json(self, name: str, datatype: str, data: list[Any]) -> Outcome:
        others = [(other, "BYTES", texts) for other, texts in self.beside(name, len(data)).items()]
        inputs = [
            {"name": one, "datatype": kind, "shape": [len(values)], "data": values}
            for one, kind, values in [(name, datatype, data), *others]
        ]
        return answered(self.post(json.dumps({"inputs": inputs}).encode(), "application/json"))

    def arrow(self, rows: Callable[[], pa.Table]) -> Outcome:
        sink, table = io.BytesIO(), rows()
        with ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return answered(self.post(sink.getvalue(), "application/vnd.apache.arrow.stream"))

    def parquet(self, way: str, rows: Callable[[], pa.Table]) -> Outcome:
        pq.write_table(rows(), self.folder / "rows.parquet")
        return scored(self.by_name[way], self.folder / "rows.parquet")

    def post(self, body: bytes, kind: str) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.application.guard)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.post("/v2/models/dmoe/infer", content=body, headers={"content-type": kind})

        return self.loop.run(send())


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    made = Ways(tmp_path_factory.mktemp("ways"))
    yield made
    made.close()


@dataclass
class Carried:
    """One column's values in every type that may carry them.

    `arrow` columns go through everything; `frames` are pandas or polars columns; `sent` JSON tensors. Those named in
    `lossy` may be refused by name, all others must give the text's score.
    """

    texts: list[str | None]
    arrow: dict[str, Any] = field(default_factory=dict)
    frames: dict[str, Any] = field(default_factory=dict)
    sent: dict[str, tuple[str, list[Any]]] = field(default_factory=dict)
    lossy: set[str] = field(default_factory=set)


def scored(scorer: Scorer, rows: Any) -> Outcome:
    try:
        return [float(one) for one in scorer.predict_proba(rows)]
    except DataError as error:
        return str(error)


def answered(response: httpx.Response) -> Outcome:
    if response.status_code == 200:
        if response.headers["content-type"].startswith("application/json"):
            found: list[float] = response.json()["outputs"][0]["data"]
            return found
        scores: list[float] = ipc.open_stream(response.content).read_all()["probability"].to_pylist()
        return scores
    assert response.status_code == 400, response.text
    message: str = response.json()["error"]
    return message


def outcomes(ways: Ways, name: str, carried: Carried) -> list[tuple[str, str, Callable[[], Outcome]]]:
    """Carrier, way and what asks it."""
    count = len(carried.texts)
    found: list[tuple[str, str, Callable[[], Outcome]]] = []
    for carrier, column in carried.arrow.items():
        table = partial(ways.table, name, column, count)
        found += [(carrier, way, partial(ways.scored, way, table)) for way in ways.by_name]
        found.append((UNSENT.get(carrier, carrier), "server", partial(ways.arrow, table)))
        if carrier not in UNWRITABLE:
            found += [(carrier, f"{way} of Parquet", partial(ways.parquet, way, table)) for way in ("run", "model")]
    for carrier, column in carried.frames.items():
        frame = partial(ways.frame, name, column, count)
        found += [(carrier, way, partial(ways.scored, way, frame)) for way in ("run", "model")]
    for carrier, (datatype, data) in carried.sent.items():
        found.append((carrier, "server", partial(ways.json, name, datatype, data)))
    return found


# What the writer of Parquet files cannot write.
UNWRITABLE = {"float16 dictionary", "run-end encoded", "list view"}
# Layouts in which a few bytes stand for many rows, and extension types: the server refuses them by name.
UNSENT = {one: f"{one}, sent" for one in ("run-end encoded", "list view", "list of dictionary", "uuid")}


def check(ways: Ways, name: str, carried: Carried, draw: random.Random, asked: int) -> None:
    """Asks so many of the outcomes; all of a carrier either score or refuse."""
    table = ways.table(name, pa.array(carried.texts, pa.string()), len(carried.texts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenValuesWarning)
        warnings.simplefilter("ignore", MissingWordsWarning)
        wanted = scored(ways.by_name["run"], table)
        assert isinstance(wanted, list), wanted
        refused: dict[str, bool] = {}
        every = outcomes(ways, name, carried)
        for carrier, way, ask in draw.sample(every, min(asked, len(every))):
            got = ask()
            where = f"{name}={carried.texts} as {carrier} by {way}"
            assert refused.setdefault(carrier, isinstance(got, str)) == isinstance(got, str), f"{where}, alone: {got}"
            if isinstance(got, str):
                assert carrier in carried.lossy or carrier in UNSENT.values(), f"{where}: {got}"
                assert f"'{name}'" in got, f"{where}: {got}"
            else:
                np.testing.assert_allclose(got, wanted, atol=2e-6, err_msg=where)


def text_carriers(texts: list[str | None]) -> Carried:
    """The carriers of any text."""
    string = pa.array(texts, pa.string())
    carried = Carried(texts)
    carried.arrow = {
        "string": string,
        "large string": string.cast(pa.large_string()),
        "view": string.cast(pa.string_view()),
        "bytes": string.cast(pa.binary()),
        "dictionary": string.dictionary_encode(),
        "narrow dictionary": string.dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())),
        "run-end encoded": pa.compute.run_end_encode(string),
        "chunks": pa.chunked_array([string[:1], string[1:], string[:0]]),
    }
    carried.frames = {
        "pandas": pd.Series(texts, dtype="str"),
        "pandas objects": pd.Series(texts, dtype=object),
        "pandas categories": pd.Series(texts, dtype="category"),
        "pandas arrow": pd.Series(texts, dtype=pd.ArrowDtype(pa.string())),
        "polars": pl.Series("x", texts, pl.String),
        "polars categories": pl.Series("x", texts, pl.Categorical),
    }
    carried.sent = {"JSON": ("BYTES", texts)}
    return carried


def typed(carried: Carried, values: list[Any], kind: pa.DataType, label: str = "") -> None:
    """Adds the Arrow type `kind` in every encoding, and the tables that readers make of it."""
    label = label or str(kind)
    column = pa.array(values, kind)
    carried.arrow |= {label: column, f"{label} dictionary": column.dictionary_encode()}
    if not pa.types.is_float16(kind):
        carried.arrow["run-end encoded"] = pa.compute.run_end_encode(column)
    if None not in values and not pa.types.is_float16(kind):
        carried.frames[f"pandas {label}"] = column.to_pandas()
    carried.frames |= {f"pandas arrow {label}": pd.Series(column, dtype=pd.ArrowDtype(kind))}
    if not pa.types.is_float16(kind) and not pa.types.is_decimal256(kind):
        carried.frames[f"polars {label}"] = pl.Series("x", pl.from_arrow(column))


def whole_numbers(values: list[int | None], texts: list[str | None]) -> Carried:
    carried = text_carriers(texts)
    present = [one for one in values if one is not None]
    low, high = min(present, default=0), max(present, default=0)
    for bits in (8, 16, 32, 64):
        for kind, datatype, fits in (
            (f"int{bits}", f"INT{bits}", -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1)),
            (f"uint{bits}", f"UINT{bits}", low >= 0 and high < 2**bits),
        ):
            if fits:
                typed(carried, values, getattr(pa, kind)())
                carried.sent[datatype] = (datatype, values)
                carried.frames[f"pandas {kind} with NA"] = pd.Series(
                    values, dtype=kind.replace("i", "I").replace("uI", "UI")
                )
    size = max(-low, high)
    for bits, exact in ((16, 2**11), (32, 2**24), (64, 2**53)):
        reals = [None if one is None else float(one) for one in values]
        names = {f"float{bits}", f"float{bits} dictionary", f"pandas float{bits}", f"pandas arrow float{bits}"}
        names |= {f"polars float{bits}", f"FP{bits}", "run-end encoded"} if size >= exact else set()
        if size < 60000 or bits > 16:
            kind = pa.float16() if bits == 16 else getattr(pa, f"float{bits}")()
            typed(
                carried,
                [None if one is None else np.dtype(f"f{bits // 8}").type(one) for one in reals],
                kind,
                f"float{bits}",
            )
            carried.sent[f"FP{bits}"] = (f"FP{bits}", reals)
            if size >= exact:
                carried.lossy |= names
    carried.sent["FP64 whole"] = ("FP64", values)  # JSON's 7 where 7.0 is declared
    if low < -(2**63) or high >= 2**64:  # readers of JSON have no such integers
        carried.lossy.add("FP64 whole")
    decimals = [None if one is None else Decimal(one) for one in values]
    typed(carried, decimals, pa.decimal128(38, 0))
    typed(carried, [None if one is None else Decimal(f"{one}.000") for one in values], pa.decimal128(38, 3))
    carried.frames["objects of int"] = pd.Series(values, dtype=object)
    carried.frames["objects of Decimal"] = pd.Series(decimals, dtype=object)
    carried.frames["objects of numpy"] = (
        pd.Series([None if one is None else np.int64(one) for one in values], dtype=object)
        if low >= -(2**63) and high < 2**63
        else pd.Series(values, dtype=object)
    )
    return carried


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.none() | values, min_size=1, max_size=4)


def known(name: str) -> st.SearchStrategy[str]:
    return st.sampled_from(KNOWN[name])


def ints(name: str) -> st.SearchStrategy[Any]:
    edges = st.sampled_from([127, 128, 255, 256, 2047, 2049, 2**24 + 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**64 - 1])
    return known(name).filter(bool).map(int) | edges | st.integers(-(2**63), 2**64)


def draw_whole(data: st.DataObject, name: str) -> Carried:
    values = data.draw(maybe(ints(name)))
    return whole_numbers(values, [None if one is None else str(one) for one in values])


def draw_bits(data: st.DataObject, _: str) -> Carried:
    values = data.draw(maybe(st.integers(0, 1)))
    carried = whole_numbers(values, [None if one is None else str(one) for one in values])
    truths = [None if one is None else bool(one) for one in values]
    return with_truths(carried, truths)


def with_truths(carried: Carried, truths: list[bool | None]) -> Carried:
    typed(carried, truths, pa.bool_())
    carried.frames["objects of bool"] = pd.Series(truths, dtype=object)
    carried.frames["pandas boolean"] = pd.Series(truths, dtype="boolean")
    carried.sent["BOOL"] = ("BOOL", truths)
    for words in (("true", "false"), ("TRUE", "FALSE"), ("True", "False")):
        said = [None if one is None else words[not one] for one in truths]
        carried.arrow[words[0]] = pa.array(said, pa.string())
        carried.sent[words[0]] = ("BYTES", said)
    return carried


def draw_flags(data: st.DataObject, _: str) -> Carried:
    truths = data.draw(maybe(st.booleans()))
    carried = with_truths(text_carriers([None if one is None else str(one) for one in truths]), truths)
    bits = [None if one is None else int(one) for one in truths]
    typed(carried, bits, pa.int8())
    typed(carried, [None if one is None else float(one) for one in bits], pa.float64())
    carried.sent |= {"INT64": ("INT64", bits), "FP32": ("FP32", bits)}
    return carried


def real_numbers(values: list[float | None], texts: list[str | None]) -> Carried:
    carried = text_carriers(texts)
    typed(carried, values, pa.float64())
    carried.sent["FP64"] = ("FP64", values)
    narrow = [None if one is None else np.float32(one) for one in values]
    if all(one is None or str(one) == str(float(str(other))) for one, other in zip(values, narrow, strict=True)):
        typed(carried, narrow, pa.float32())
        carried.sent["FP32"] = ("FP32", values)
    decimals = [None if one is None else Decimal(str(one)) for one in values]
    typed(carried, decimals, pa.decimal128(38, 12))
    typed(carried, decimals, pa.decimal256(60, 20))
    carried.frames["objects of float"] = pd.Series(values, dtype=object)
    carried.frames["objects of Decimal"] = pd.Series(decimals, dtype=object)
    return carried


def draw_prices(data: st.DataObject, name: str) -> Carried:
    drawn = st.decimals(-5000, 5000, places=2).map(lambda one: f"{one + 0:.2f}".replace("-0.00", "0.00"))
    texts = data.draw(maybe(known(name) | drawn))
    return real_numbers([None if one is None else float(one) for one in texts], texts)


def draw_reals(data: st.DataObject, name: str) -> Carried:
    drawn = st.floats(-1e6, 1e6).filter(lambda one: one == 0 or abs(one) > 1e-6).map(lambda one: round(one, 6))
    values = data.draw(maybe(known(name).filter(bool).map(float) | drawn))
    texts = [None if one is None else np.format_float_positional(one + 0.0, trim="-") for one in values]
    return real_numbers([None if one is None else one + 0.0 for one in values], texts)


def draw_texts(data: st.DataObject, name: str) -> Carried:
    characters = st.characters(exclude_categories=("Cs",), exclude_characters="\r\n")
    return text_carriers(data.draw(maybe(known(name) | st.text(characters, max_size=4))))


def draw_codes(data: st.DataObject, name: str) -> Carried:
    texts = data.draw(maybe(known(name) | st.from_regex(r"\A0?[0-9]{1,4}\Z")))
    carried = text_carriers(texts)
    values = [None if one is None else float(one) for one in texts]
    typed(carried, values, pa.float64())
    carried.sent["FP64"] = ("FP64", values)
    whole = [None if one is None else int(one) for one in values]
    typed(carried, whole, pa.int64())
    carried.sent["INT64"] = ("INT64", whole)
    carried.frames["objects of int"] = pd.Series(whole, dtype=object)
    if any(one is not None for one in texts):  # without a value there is none to lose
        numbers = ("double", "int64", "FP64", "INT64", "objects of int", "run-end encoded")
        every = (*carried.arrow, *carried.frames, *carried.sent)
        carried.lossy = {one for one in every if one.endswith((*numbers, " dictionary")) and one != "narrow dictionary"}
    return carried


def draw_days(data: st.DataObject, name: str) -> Carried:
    days = data.draw(maybe(known(name).map(date.fromisoformat) | st.dates(date(1950, 1, 1), date(2100, 1, 1))))
    carried = text_carriers([None if one is None else str(one) for one in days])
    for kind in (pa.date32(), pa.date64()):
        typed(carried, days, kind)
    for unit in ("s", "ms", "us", "ns"):
        typed(carried, [None if one is None else datetime.combine(one, time()) for one in days], pa.timestamp(unit))
    carried.frames["objects of date"] = pd.Series(days, dtype=object)
    carried.sent["midnight"] = ("BYTES", [None if one is None else f"{one}T00:00:00.000" for one in days])
    return carried


MOMENTS = st.datetimes(datetime(1950, 1, 1), datetime(2100, 1, 1))


def with_times(carried: Carried, times: list[datetime | None], zone: str | None) -> Carried:
    parts = {one.microsecond for one in times if one is not None}
    units = ["us", "ns", *(["ms"] if all(one % 1000 == 0 for one in parts) else []), *(["s"] if parts <= {0} else [])]
    for unit in units:
        typed(carried, times, pa.timestamp(unit, zone))
    carried.frames["objects of datetime"] = pd.Series(times, dtype=object)
    return carried


def iso(times: list[datetime | None], separator: str = " ") -> list[str | None]:
    return [None if one is None else one.isoformat(separator) for one in times]


def draw_times(data: st.DataObject, name: str) -> Carried:
    times = data.draw(maybe(known(name).map(datetime.fromisoformat) | MOMENTS))
    carried = with_times(text_carriers(iso(times)), times, None)
    carried.sent["T"] = ("BYTES", iso(times, "T"))
    carried.arrow["T"] = pa.array(iso(times, "T"))
    return carried


def draw_moments(data: st.DataObject, name: str) -> Carried:
    zones = st.sampled_from([UTC, ZONE, timezone(-timedelta(hours=9, minutes=30))])
    drawn = st.builds(lambda one, zone: one.replace(tzinfo=zone), MOMENTS, zones)
    times = data.draw(
        maybe(drawn | known(name).map(lambda text: datetime.fromisoformat(text.replace(" UTC", "+00:00"))))
    )
    carried = with_times(text_carriers(iso(times)), times, "UTC")
    typed(carried, times, pa.timestamp("us", "Europe/Berlin"))
    carried.arrow["fixed offset"] = pa.array(times, pa.timestamp("ns", "+05:30"))
    utc = [None if one is None else one.astimezone(UTC) for one in times]
    carried.sent["UTC"] = ("BYTES", [None if one is None else one.replace("+00:00", "Z") for one in iso(utc, "T")])
    return carried


def draw_clocks(data: st.DataObject, name: str) -> Carried:
    clocks = data.draw(maybe(known(name).map(time.fromisoformat) | st.times()))
    carried = text_carriers([None if one is None else one.isoformat() for one in clocks])
    typed(carried, clocks, pa.time64("us"))
    typed(carried, clocks, pa.time64("ns"))
    if all(one is None or one.microsecond == 0 for one in clocks):
        typed(carried, clocks, pa.time32("s"))
        typed(carried, clocks, pa.time32("ms"))
    carried.frames["objects of time"] = pd.Series(clocks, dtype=object)
    return carried


def draw_keys(data: st.DataObject, name: str) -> Carried:
    keys = data.draw(maybe(known(name).map(uuid.UUID) | st.uuids()))
    carried = text_carriers([None if one is None else str(one) for one in keys])
    carried.arrow["uuid"] = pa.array([None if one is None else one.bytes for one in keys], pa.uuid())
    carried.frames["objects of UUID"] = pd.Series(keys, dtype=object)
    carried.sent["capitals"] = ("BYTES", [None if one is None else str(one).upper() for one in keys])
    return carried


def draw_lists(data: st.DataObject, _: str) -> Carried:
    rows = data.draw(
        st.lists(st.none() | st.lists(st.sampled_from([3, 1, 5, 7, 8, 12, 99]), max_size=4), max_size=3, min_size=1)
    )
    texts = [None if row is None else "|".join(map(str, row)) for row in rows]
    carried = text_carriers(texts)
    words = [None if row is None else [str(one) for one in row] for row in rows]
    reals = [None if row is None else [float(one) for one in row] for row in rows]
    decimals = [None if row is None else [Decimal(one) for one in row] for row in rows]
    carried.arrow |= {
        "list": pa.array(words, pa.list_(pa.string())),
        "large list": pa.array(words, pa.large_list(pa.large_string())),
        "list view": pa.array(words, pa.list_view(pa.string())),
        "list of numbers": pa.array(rows, pa.list_(pa.int32())),
        "list of floats": pa.array(reals, pa.list_(pa.float32())),
        "list of decimals": pa.array(decimals, pa.list_(pa.decimal128(8, 2))),
        "list of dictionary": pa.array(words, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    }
    carried.frames |= {
        "pandas lists": pd.Series(words, dtype=object),
        "pandas tuples": pd.Series([None if row is None else tuple(row) for row in rows], dtype=object),
        "pandas arrays": pd.Series([None if row is None else np.array(row, int) for row in rows], dtype=object),
        "polars lists": pl.Series("x", words, pl.List(pl.String)),
        "polars numbers": pl.Series("x", rows, pl.List(pl.Int64)),
    }
    return carried


def draw_epochs(data: st.DataObject, name: str) -> Carried:
    values = data.draw(maybe(known(name).map(int) | st.integers(10**8, 4 * 10**9)))
    return whole_numbers(values, [None if one is None else str(one) for one in values])


DRAWS: dict[str, Callable[[st.DataObject, str], Carried]] = {
    "whole": draw_whole,
    "wide": draw_whole,
    "bucket_id": draw_whole,
    "amount": draw_reals,
    "bit": draw_bits,
    "flag": draw_flags,
    "price": draw_prices,
    "short": draw_reals,
    "word": draw_texts,
    "zip": draw_codes,
    "day": draw_days,
    "when": draw_times,
    "seen_at": draw_times,
    "moment": draw_moments,
    "clock": draw_clocks,
    "key": draw_keys,
    "tags": draw_lists,
    "epoch": draw_epochs,
}


@pytest.mark.parametrize("name", DRAWS)
@settings(max_examples=2)
@given(data=st.data(), draw=st.randoms(use_true_random=False))
def test_every_carrier_has_one_score_on_every_way(
    ways: Ways, name: str, data: st.DataObject, draw: random.Random
) -> None:
    check(ways, name, DRAWS[name](data, name), draw, asked=12)


def test_a_time_in_floats_too_narrow_for_its_seconds_is_refused(ways: Ways) -> None:
    texts = ["1767571199", "1767571201"]  # an hour's last second and the next hour's second: one float32
    carried = text_carriers([*texts])
    carried.arrow["float"] = pa.array(np.array(texts, np.float32))
    carried.sent["FP32"] = ("FP32", [float(one) for one in texts])
    carried.lossy = {"float", "FP32"}
    check(ways, "epoch", carried, random.Random(1), asked=1000)
    assert isinstance(
        scored(ways.by_name["run"], pa.table({**ways.beside("epoch", 2), "epoch": carried.arrow["float"]})), str
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
@settings(max_examples=40)
@given(data=st.data(), draw=st.randoms(use_true_random=False))
def test_every_carrier_has_one_score_on_every_way_at_length(
    ways: Ways, name: str, data: st.DataObject, draw: random.Random
) -> None:
    check(ways, name, DRAWS[name](data, name), draw, asked=1000)
