"""Whether a column holds times, in which format, and whether it can order the rows.

N rows, V distinct texts.
"""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmoe.data.inspection.columns import TextColumn
from dmoe.data.telling import Floats
from dmoe.data.times import NANOSECONDS, Time, time_parser

# Format -> what its texts look like, narrower than what it reads: times of this century.
_FORMS = {
    "yymmddhh": re.compile(r"[0-9]{8}"),
    "unix": re.compile(r"1[0-9]{9}(\.[0-9]+)?"),
    "unix-ms": re.compile(r"1[0-9]{12}(\.[0-9]+)?"),
    "unix-us": re.compile(r"1[0-9]{15}"),
    "unix-ns": re.compile(r"1[0-9]{18}"),
    "iso": re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}.*", re.DOTALL),
}
# What else looks like a time, that no format here reads as one.
_LOOKS = {
    "hours as YYYYMMDDHH": re.compile(r"20[0-9]{2}(0[1-9]|1[0-2])([0-2][0-9]|3[01])([01][0-9]|2[0-3])"),
    "seconds as YYYYMMDDHHMMSS": re.compile(r"20[0-9]{2}(0[1-9]|1[0-2])([0-2][0-9]|3[01])[0-2][0-9][0-5][0-9]{3}"),
    "days as YYYYMMDD": re.compile(r"(19|20)[0-9]{2}(0[1-9]|1[0-2])([0-2][0-9]|3[01])"),
    "clock times": re.compile(r"[0-2]?[0-9]:[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?( ?[AaPp][Mm])?"),
    "times": re.compile(
        r"([0-9]{4}[/.-][0-9]{1,2}[/.-][0-9]{1,2}|[0-9]{1,2}[/. -]([0-9]{1,2}|[A-Z][a-z]{2})[/. -][0-9]{2,4})\b.*"
    ),
}
_NAMES = re.compile(r"time|date|hour|day|stamp|epoch|unix|when|(^|_)ts($|_)|_at$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Times:
    """`moments_V`: seconds since 1970, as written where a text names no zone; NaN where some name one and others do
    not. `hours_V`, `weekdays_V`: as derivations take them."""

    format: str
    texts: list[str]
    moments_V: Floats
    hours_V: npt.NDArray[np.int64]
    weekdays_V: npt.NDArray[np.int64]
    days_V: list[str]

    @property
    def digits(self) -> bool:
        """Whether the texts are digits, which may be something else."""
        return self.format != "iso"

    @property
    def ordered(self) -> bool:
        """Whether the moments have an order."""
        return not np.isnan(self.moments_V).any()

    def rising(self, column: TextColumn) -> float:
        """The share of rows whose moment is not before that of the row above."""
        moments_N = self.moments_V[column.codes_N[column.codes_N >= 0]]
        return float((np.diff(moments_N) >= 0).mean()) if len(moments_N) > 1 else 0.0


def named_like_a_time(name: str) -> bool:
    return _NAMES.search(name) is not None


def looks_like_times(texts: list[str]) -> str | None:
    """What else these texts may be, in words."""
    return next((words for words, look in _LOOKS.items() if all(look.fullmatch(text) for text in texts)), None)


def read_times(texts: list[str]) -> Times | None:
    """The texts as times, if all of them are of one format."""
    for form, look in _FORMS.items():
        if not all(look.fullmatch(text) for text in texts[:100]):
            continue
        parse = time_parser(form)
        parsed = [parse(text) if look.fullmatch(text) else None for text in texts]
        found = [time for time in parsed if isinstance(time, Time)]
        if len(found) < len(texts) or (
            form == "yymmddhh" and all(_LOOKS["days as YYYYMMDD"].fullmatch(one) for one in texts)
        ):
            continue
        zoned = {time.zoned for time in found}
        moments = [time.nanoseconds / NANOSECONDS if len(zoned) == 1 else np.nan for time in found]
        return Times(
            form,
            texts,
            np.array(moments),
            np.array([time.local.hour for time in found]),
            np.array([time.local.isoweekday() % 7 for time in found]),
            [f"{time.local:%Y-%m-%d}" for time in found],
        )
    return None
