"""Texts and typed columns as times: what derivations take from them, and the moments that a split compares.

N rows.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmoe.config.raw_format import Derivation
from dmoe.config.time_patterns import UNITS, read_time
from dmoe.errors import DataError
from dmoe.sources.rejects import NOT_A_TIME
from dmoe.tokens.scalars import Fault, parse_number
from dmoe.values.coded_columns import Column, as_text, codes_of

NANOSECONDS = 10**9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT64 = np.iinfo(np.int64)

_HOUR = re.compile(r"[0-9]{8}", re.ASCII)
_ISO = re.compile(
    r"\s*(\d{4})(-?)(\d\d)\2(\d\d)"
    r"(?:[Tt ](\d\d)(?:(:?)(\d\d)(?:\6(\d\d)(?:[.,](\d+))?)?)?)?"
    r"(?: ?([Zz]|UTC|GMT)|([+-])(\d\d)(?::?(\d\d)(?::?(\d\d))?)?)?\s*",
    re.ASCII,
)
# What the size of a number says about its unit: seconds go to the year 5138, milliseconds from 1973 to 5138, …
_UNIT_WORDS = {"unix": "seconds", "unix-ms": "milliseconds", "unix-us": "microseconds", "unix-ns": "nanoseconds"}
_LEAST_UNIX = 10**8
_MOST_UNIX = 10**11


@dataclass(frozen=True, slots=True)
class Time:
    """`local`: the clock as it is written, without a zone, to the microsecond. `nanoseconds`: since 1970 in UTC, or as
    written where no zone is `zoned`."""

    local: datetime
    nanoseconds: int
    zoned: bool


TimeParser = Callable[[str], Time | Fault]


def time_parser(form: str) -> TimeParser:
    """The function from a text of a named format or pattern to its time."""
    if form in UNITS:
        return partial(_unix, form=form)
    if form == "iso":
        return _iso
    return _yymmddhh if form == "yymmddhh" else partial(_by_pattern, pattern=form)


def deriver(derivation: Derivation, kind: pa.DataType | None = None) -> Callable[[str], str | Fault]:
    """The function from a raw text to the derived text; of a column of type `kind`, whose typed times are read as
    such whatever the format says."""
    parse = time_parser("iso" if kind is not None and pa.types.is_temporal(kind) else derivation.format)
    take = _PARTS[derivation.take]

    def derive(text: str) -> str | Fault:
        time = parse(text)
        return time if isinstance(time, Fault) else str(take(time.local))

    return derive


_PARTS: dict[str, Callable[[datetime], int]] = {
    "hour": lambda time: time.hour,
    "weekday": lambda time: time.isoweekday() % 7,
    "weekend": lambda time: int(time.isoweekday() >= 6),
}


def _time(local: datetime, fraction: int = 0, offset: timedelta | None = None) -> Time:
    """`fraction`: the nanoseconds below a second. `offset`: what the zone is ahead of UTC, None where there is none."""
    since = local.replace(tzinfo=UTC, microsecond=0) - _EPOCH - (offset or timedelta())
    nanoseconds = (since.days * 86_400 + since.seconds) * NANOSECONDS + fraction
    return Time(local.replace(microsecond=fraction // 1000), nanoseconds, offset is not None)


def _yymmddhh(text: str) -> Time | Fault:
    if not _HOUR.fullmatch(text):
        return Fault(NOT_A_TIME)
    try:
        return _time(datetime(2000 + int(text[:2]), int(text[2:4]), int(text[4:6]), int(text[6:])))
    except ValueError:
        return Fault(NOT_A_TIME)


def _iso(text: str) -> Time | Fault:
    found = _ISO.fullmatch(text)
    if found is None:
        return Fault(NOT_A_TIME)
    year, _, month, day, hour, _, minute, second, fraction, utc, sign, *ahead = found.groups()
    try:
        local = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
        offset = timedelta() if utc else None
        if sign:
            hours, minutes, seconds = (int(one or 0) for one in ahead)
            # Checks the range as a zone's.
            zone = timezone((-1 if sign == "-" else 1) * timedelta(hours=hours, minutes=minutes, seconds=seconds))
            offset = zone.utcoffset(None)
    except ValueError:
        return Fault(NOT_A_TIME)
    return _time(local, int((fraction or "0")[:9].ljust(9, "0")), offset)


def _unix(text: str, form: str) -> Time | Fault:
    number = parse_number(text)
    if isinstance(number, Fault) or number < 0:
        return Fault(NOT_A_TIME)
    wrong = _unit_fault(number, form)
    if wrong is not None:
        return wrong
    nanoseconds = int(Decimal(text.strip()) * (NANOSECONDS // UNITS[form]))
    seconds, fraction = divmod(nanoseconds, NANOSECONDS)
    return _time((_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None), fraction, timedelta())


def _unit_fault(number: float, form: str) -> Fault | None:
    """A fault where the size says another unit; small numbers say none."""
    if number < _LEAST_UNIX:
        return None
    fits = next((name for name, second in UNITS.items() if number < _MOST_UNIX * second), None)
    if fits == form:
        return None
    return Fault(NOT_A_TIME if fits is None else f"{NOT_A_TIME}: looks like {_UNIT_WORDS[fits]}: format {fits}")


def _by_pattern(text: str, pattern: str) -> Time | Fault:
    try:
        found = read_time(text.strip(), pattern)
    except (ValueError, OverflowError):
        return Fault(NOT_A_TIME)
    return _time(found.replace(tzinfo=None), found.microsecond * 1000, found.utcoffset())


@dataclass(frozen=True, slots=True)
class Moments:
    """`times_N`: timestamps in nanoseconds, of zone UTC if the column says zones, else of none; null at the faults.
    `reasons`: a reason and its rows."""

    times_N: Column
    reasons: dict[str, npt.NDArray[np.intp]]


def read_moments(column: Column, form: str, name: str, where: str) -> Moments:
    """The moments of a column without missing values at which it is not null.

    Raises: DataError if some of its times have a zone and some have none.
    """
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        zone = "UTC" if pa.types.is_timestamp(column.type) and column.type.tz else None
        return Moments(_clamped(column, zone), {})
    text = as_text(column, name)
    fast = _iso_at_once(text) if form == "iso" else None
    if fast is not None:
        return Moments(fast, {})
    encoded = text.dictionary_encode()
    parse = time_parser(form)
    found = [parse(value) for value in encoded.dictionary.to_pylist()]
    zoned = {one.zoned for one in found if isinstance(one, Time)}
    if len(zoned) > 1:
        raise mixed_zones(name, where)
    codes_N = codes_of(encoded)
    moments_V = [None if isinstance(one, Fault) else _within(one.nanoseconds) for one in found]
    by_code: Column = pa.array([*moments_V, None], pa.timestamp("ns", "UTC" if True in zoned else None))
    reasons: dict[str, list[int]] = {}
    for code, one in enumerate(found):
        if isinstance(one, Fault):
            reasons.setdefault(one.reason, []).append(code)
    # Null has the code -1: the last of what is taken from.
    times_N = by_code.take(pa.array(np.where(codes_N < 0, len(found), codes_N).astype(np.int64)))
    return Moments(times_N, {reason: np.flatnonzero(np.isin(codes_N, which)) for reason, which in reasons.items()})


def mixed_zones(name: str, where: str) -> DataError:
    return DataError(
        f"{where}: column '{name}' holds times with a zone and times without one, which have no order; "
        "write all with their zone, or all without"
    )


def _within(nanoseconds: int) -> int:
    """Moments beyond the years 1677 to 2262 come before and after all others."""
    return min(max(nanoseconds, _INT64.min + 1), _INT64.max)


def _clamped(column: Column, zone: str | None) -> Column:
    micros = column.cast(pa.timestamp("us", zone)) if not pa.types.is_timestamp(column.type) else column
    try:
        return micros.cast(pa.timestamp("ns", zone))
    except pa.ArrowInvalid:
        values = micros.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64()).to_pylist()
        moments = [None if value is None else _within(value * 1000) for value in values]
        return pa.array(moments, pa.timestamp("ns", zone))


def _iso_at_once(text: Column) -> Column | None:
    """ISO texts by pyarrow, which knows the usual forms: all with a zone or all without."""
    for zone in (None, "UTC"):
        try:
            return text.cast(pa.timestamp("ns", zone))
        except pa.ArrowInvalid:
            continue
    return None
