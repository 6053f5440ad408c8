"""One raw value at a time: numbers and what is made of them."""

import hashlib
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from dmoe.config.fields import NumericOptions
from dmoe.sources.rejects import NOT_A_NUMBER, OUT_OF_RANGE

FLOAT32_MAX = 3.4028234663852886e38
_NUMBER = re.compile(r"[ \t]*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t]*", re.ASCII)


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


def missing_numbers(texts: Collection[str]) -> frozenset[float]:
    """The numbers among the texts that mean a missing value: a number is missing if its value is one of these."""
    return frozenset(number for text in texts if not isinstance(number := parse_number(text), Fault))


def bucket(number: float) -> str:
    """floor(ln(x)^2) above 2, else x cut to an integer: the lineage's rule, in float64."""
    return str(math.floor(math.log(number) ** 2) if number > 2 else int(number))


def token_maker(options: NumericOptions, missing: Collection[str]) -> Callable[[str], str | Fault | None]:
    """The function from a raw number to its token, for the transforms that need no training row; None for the numbers
    that are among the `missing` texts."""
    makers: dict[str, Callable[[float], str]] = {
        "bucket": bucket,
        "log-bucket": partial(log_bucket, steps=options.steps),
        "digit": partial(digit, radix=options.radix, place=options.place),
    }
    make, gone = makers[options.transform], missing_numbers(missing)

    def token(text: str) -> str | Fault | None:
        number = parse_number(text)
        if isinstance(number, Fault):
            return number
        return None if number in gone else make(number)

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
