"""Labels, times and numbers as people write them, beside Python's own datetime and Decimal; names of fields."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoe.config.data import SplitRule, read_data_config
from dmoe.config.labels import Label
from dmoe.config.raw_format import Derivation, NumberFormat
from dmoe.errors import ConfigError, DataError
from dmoe.prepare.prepare import prepare
from dmoe.schema import vocabulary_path
from dmoe.tokens.labels import read_label
from dmoe.tokens.number_format import explained, number_reader, plain_at_once
from dmoe.tokens.scalars import Fault
from dmoe.tokens.times import Time, deriver, read_moments, time_parser
from tests.prepare.logs import read_split

MOMENTS = st.datetimes(datetime(1973, 6, 1), datetime(2200, 1, 1))
OFFSETS = st.integers(-14 * 4, 14 * 4).map(lambda quarters: timezone(timedelta(minutes=15 * quarters)))


@pytest.mark.parametrize(
    ("values", "label", "want"),
    [
        (["1", "0", "1.00", "0e0", " 1"], {}, [1, 0, 1, 0, 1]),
        (["True", "false", "TRUE", "False"], {}, [1, 0, 1, 0]),
        ([True, False, None], {}, [1, 0, "label is missing"]),
        (["1", "", None, "7"], {}, [1, "label is missing", "label is missing", "label is not 0 or 1"]),
        (["1", "-1", "1.0", "x"], {"positive": ["1"]}, [1, 0, 1, 0]),
        ([1.0, -1.0, None], {"positive": [1], "missing": "negative"}, [1, 0, 0]),
        (
            ["yes", "no", "maybe"],
            {"positive": ["yes"], "negative": ["no"]},
            [1, 0, "label is neither positive nor negative"],
        ),
    ],
)
def test_labels_by_value(values: list[object], label: dict[str, object], want: list[object]) -> None:
    found = read_label(pa.array(values), Label.model_validate({"column": "y", **label}), ("",), "log.csv")
    got: list[object] = found.said_N.tolist()
    for column, reason, rows, text in found.faults():
        assert column == "y"
        for row in rows.tolist():
            assert text(row) == (values[row] or "")
            got[row] = reason
    assert got == want


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", "-1"], r"label 'y' holds -1 and 1, not 0 and 1; .*`label: \{column: y, positive: \[1\]\}`"),
        (["yes", "no"], r"holds no and yes, .*positive: \[yes\]"),
        (["a", "b", "c"], r"holds a, b, c, .*positive: \[a\]"),
    ],
)
def test_other_encodings_are_refused_with_the_key_to_write(values: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_label(pa.array(values * 50), Label(column="y"), ("",), "log.csv").faults()


@given(MOMENTS, OFFSETS, st.booleans())
def test_times_are_those_of_datetime(moment: datetime, zone: timezone, space: bool) -> None:
    local = moment.replace(tzinfo=zone)
    exact = (local - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    for text, zoned in ((local.isoformat(" " if space else "T"), True), (moment.isoformat(), False)):
        found = time_parser("iso")(text)
        assert isinstance(found, Time)
        assert found == Time(
            moment, exact + (0 if zoned else local.utcoffset() // timedelta(microseconds=1) * 1000), zoned
        )
        column = read_moments(pa.array([text]), "iso", "t", "log").times_N  # by pyarrow at once
        assert column.cast(pa.int64()).to_pylist() == [found.nanoseconds]
    for form, unit in (("unix-ms", 10**6), ("unix-us", 10**3), ("unix-ns", 1), ("unix", 10**9)):
        if exact >= 10**8 * 10**9:  # beyond what any unit might take for another
            found = time_parser(form)(str(exact // unit))
            assert isinstance(found, Time)
            assert (found.nanoseconds, found.zoned) == (exact // unit * unit, True)
    pattern = "%d.%m.%Y %I:%M:%S %p"
    found = time_parser(pattern)(moment.strftime(pattern))
    assert isinstance(found, Time)
    assert found.local == moment.replace(microsecond=0)


def test_a_wrong_unit_is_named_and_zones_do_not_mix() -> None:
    for text, form, word in (
        ("1761336000000", "unix", "milliseconds: format unix-ms"),
        ("1761336000000000", "unix-ms", "microseconds: format unix-us"),
        ("1761336000", "unix-ms", "looks like seconds: format unix"),
    ):
        fault = time_parser(form)(text)
        assert isinstance(fault, Fault)
        assert word in fault.reason
    with pytest.raises(DataError, match="column 't' holds times with a zone and times without one"):
        read_moments(pa.array(["2026-01-01T00:00:00Z", "2026-01-01 00:00:00"]), "iso", "t", "log.csv")
    texts = pa.array(["2026-10-25 01:00:00 UTC", "2026-10-25T03:30:00+02:00", "2026-10-24T20:00:00-08:00"])
    assert np.argsort(read_moments(texts, "iso", "t", "").times_N.to_numpy().astype(np.int64)).tolist() == [0, 1, 2]
    typed = pa.array([datetime(2026, 6, 1, 12, tzinfo=UTC)], pa.timestamp("ms", "UTC"))
    assert deriver(Derivation(column="t", take="hour", format="unix"), typed.type)("2026-06-01 12:00:00Z") == "12"


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("%d.%m.%Y %I:%M", "%I needs %p"),
        ("%Q", "does not read"),
        ("dd.mm", "is none of iso"),
        ("%H %Z", "%Z reads no zone"),
    ],
)
def test_patterns_are_tried_when_they_are_read(form: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Derivation(column="t", take="hour", format=form)
    with pytest.raises(ValueError, match="does not hold the year"):
        SplitRule(kind="time", column="t", format="%d.%m. %H:%M")


@pytest.mark.parametrize("day", ["29.02.", "28.02.", "31.12."])
def test_a_pattern_without_a_year_reads_every_day_of_a_leap_year(day: str) -> None:
    take = deriver(Derivation(column="t", take="hour", format="%d.%m. %H:%M"), pa.string())
    assert take(f"{day} 07:30") == "7"
    assert isinstance(time_parser("%d.%m. %H:%M")("30.02. 07:30"), Fault)
    assert time_parser("%Y-%m-%d %H")("2024-02-29 07") == time_parser("%G-%V-%u %H")("2024-09-4 07")
    assert isinstance(time_parser("%Y-%m-%d %H")("2023-02-29 07"), Fault)


@given(
    st.decimals(-(10**9), 10**9, places=2), st.sampled_from([(".", ","), (",", "."), (",", " "), (".", "'"), (",", "")])
)
def test_numbers_are_those_of_decimal(number: Decimal, signs: tuple[str, str]) -> None:
    decimal, thousands = signs
    form = NumberFormat(decimal=decimal, thousands=thousands, strip=("€",))  # type: ignore[arg-type]
    text = f"{number:,.2f}".translate(str.maketrans({",": thousands, ".": decimal}))
    for written in (text, f"{text} €", f" {text}"):
        assert number_reader(form)(written) == float(number)
    at_once = plain_at_once(pa.array([text, None]), form.model_copy(update={"strip": ()}))
    assert at_once is None or at_once.to_pylist() == [f"{number:.2f}", None]


@pytest.mark.parametrize(
    ("text", "form", "reason"),
    [
        ("1,5", {"thousands": ","}, "digits between ',' are not in threes"),
        ("1.5", {"decimal": ","}, "not a number"),
        ("1,5", {}, r'format: {decimal: ","} reads it'),
        ("1,234.50", {}, r'format: {thousands: ","} reads it'),
        ("1.234,50", {}, r'format: {decimal: ",", thousands: "."} reads it'),
        ("$5", {}, r'format: {strip: ["$"]} reads it'),
        ("-", {}, "not a number"),
    ],
)
def test_what_is_no_number_says_the_key(text: str, form: dict[str, str], reason: str) -> None:
    found = number_reader(NumberFormat.model_validate(form))(text)
    assert isinstance(found, Fault)
    assert reason in found.reason


def test_prepare_reads_them_all_and_typed_numbers_as_they_are(tmp_path: Path) -> None:
    rows = [f"{'yes' if i % 3 else 'no'};2026-10-25T0{9 - i % 10}:00:00Z;{i % 7}.00{i % 10},5;-1,0" for i in range(40)]
    (tmp_path / "log.csv").write_text("y;t;n;m\n" + "\n".join(rows) + "\n")
    (tmp_path / "data.yaml").write_text(
        "label: {column: y, positive: [yes]}\n"
        "split: {kind: time, column: t, format: iso, train: 0.5, valid: 0.5, test: 0}\n"
        "fields: {numeric: [n, m]}\nformat: {decimal: ',', thousands: '.', missing: ['', -1]}\n"
    )
    prepare(read_data_config(tmp_path / "data.yaml"), [str(tmp_path / "log.csv")], tmp_path / "data", max_rejects=0)
    table = read_split(tmp_path / "data", "train").to_pylist()
    early = [i for i in range(40) if i % 10 >= 5]
    assert [row["n"] for row in table] == [float(f"{i % 7}00{i % 10}.5") for i in early]
    assert [(row["m"], row["y"]) for row in table] == [(0.0, int(i % 3 > 0)) for i in early]


NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=300)


@given(NAMES, NAMES)
def test_file_names_fit_every_file_system_and_never_meet(one: str, other: str) -> None:
    files = [vocabulary_path(Path("x"), name).name for name in (one, other, one.swapcase())]
    for file in files:
        assert len(file.encode()) <= 200
        assert file.isascii()
        assert not set(file) & set('/\\:*?"<>|')
        assert not file.startswith((".", " "))
    by_file = {}
    for name, file in zip((one, other, one.swapcase()), files, strict=True):
        assert by_file.setdefault(file.lower(), name) == name


@pytest.mark.parametrize("name", ["con", "NUL.x", "..", "a.", "点击率" * 20, "Site", "site", "a/b", "a%b", "!s"])
def test_hard_names_are_prepared(name: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(f"y,{name}\n" + "".join(f"{i % 2},v{i % 3}\n" for i in range(30)))
    (tmp_path / "data.yaml").write_text(f"label: y\nsplit: {{kind: stratified}}\nfields: {{categorical: ['{name}']}}\n")
    prepare(read_data_config(tmp_path / "data.yaml"), [str(tmp_path / "log.csv")], tmp_path / "data")
    assert vocabulary_path(tmp_path / "data", name).is_file()


@pytest.mark.parametrize("name", ["probability", "gate_weights", "fields/x", " ", "a\\tb"])
def test_impossible_names_are_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(f'label: y\nfields: {{categorical: ["{name}"]}}\n')
    with pytest.raises(ConfigError, match="the field name"):
        read_data_config(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("$5", 'a sign at one end; format: {strip: ["$"]} reads it'),
        ("1,234.5", 'format: {thousands: ","} reads it'),
    ],
)
def test_a_number_in_no_plain_form_says_what_reads_it(text: str, said: str) -> None:
    assert explained(text) == f"not a number: {said}"


def test_no_key_is_named_that_would_not_read_it() -> None:
    assert explained("\u00a0494.85") == "not a number"
    assert explained("0x1f") == "not a number"
