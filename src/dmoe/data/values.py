"""One raw value at a time: numbers, labels, buckets and times, as text or typed cells become them."""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from dmoe.data.config import Derivation, NumericOptions
from dmoe.data.rejects import BAD_LABEL, NOT_A_NUMBER, NOT_A_TIME, OUT_OF_RANGE

FLOAT32_MAX = 3.4028234663852886e38
_NUMBER = re.compile(r"[ \t]*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t]*", re.ASCII)
_HOUR = re.compile(r"[0-9]{8}", re.ASCII)
_UNIX_MAX = 253_402_300_799  # the end of year 9999


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a value cannot be used: one of the reasons of `rejects`."""

    reason: str


def parse_number(text: str) -> float | Fault:
    """A decimal number, with optional sign, point, exponent and spaces around, that float32 can hold."""
    if not _NUMBER.fullmatch(text):
        return Fault(NOT_A_NUMBER)
    number = float(text)
    return number if abs(number) <= FLOAT32_MAX else Fault(OUT_OF_RANGE)


def parse_label(text: str) -> Literal[0, 1] | Fault:
    number = parse_number(text)
    if isinstance(number, Fault) or number not in (0.0, 1.0):
        return Fault(BAD_LABEL)
    return 1 if number else 0


def bucket(number: float) -> str:
    """floor(ln(x)^2) above 2, else x cut to an integer: the lineage's rule, in float64."""
    return str(math.floor(math.log(number) ** 2) if number > 2 else int(number))


def token_maker(options: NumericOptions) -> Callable[[str], str | Fault]:
    """The function from a raw number to its token, for the transforms that need no training row."""
    makers: dict[str, Callable[[float], str]] = {
        "bucket": bucket,
        "log-bucket": partial(log_bucket, steps=options.steps),
        "digit": partial(digit, radix=options.radix, place=options.place),
    }
    make = makers[options.transform]

    def token(text: str) -> str | Fault:
        number = parse_number(text)
        return number if isinstance(number, Fault) else make(number)

    return token


def log_bucket(number: float, steps: float) -> str:
    """floor(steps ln(1 + |x|)), negative for negative x."""
    size = math.floor(steps * math.log1p(abs(number)))
    return str(-size if number < 0 else size)


def digit(number: float, radix: int, place: int) -> str:
    """The digit at `place`, 0 the last, of the integer part to base `radix`; negative for negative x."""
    value = abs(int(number)) // radix**place % radix
    return str(-value if number < 0 else value)


def hasher(buckets: int) -> Callable[[str], str]:
    """The function from a value to the decimal digits of its bucket: BLAKE2b of its UTF-8 bytes, cut to 8 bytes."""

    def bucket_of(text: str) -> str:
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
        return str(int.from_bytes(digest, "little") % buckets)

    return bucket_of


def deriver(derivation: Derivation) -> Callable[[str], str | Fault]:
    """The function from a raw text to the derived text."""
    parse = time_parser(derivation.format)
    take = _PARTS[derivation.take]

    def derive(text: str) -> str | Fault:
        time = parse(text)
        return Fault(NOT_A_TIME) if time is None else str(take(time))

    return derive


def time_parser(form: str) -> Callable[[str], datetime | None]:
    """The function from a text of this format of `Derivation` to its time, None if it is none."""
    return _TIMES[form]


def _yymmddhh(text: str) -> datetime | None:
    if not _HOUR.fullmatch(text):
        return None
    try:
        return datetime(2000 + int(text[:2]), int(text[2:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None


def _iso(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _unix(text: str) -> datetime | None:
    seconds = parse_number(text)
    if isinstance(seconds, Fault) or not 0 <= seconds <= _UNIX_MAX:
        return None
    return datetime.fromtimestamp(seconds, UTC)


_TIMES: dict[str, Callable[[str], datetime | None]] = {"yymmddhh": _yymmddhh, "iso": _iso, "unix": _unix}
_PARTS: dict[str, Callable[[datetime], int]] = {
    "hour": lambda time: time.hour,
    "weekday": lambda time: time.isoweekday() % 7,
    "weekend": lambda time: int(time.isoweekday() >= 6),
}
