"""How numbers are written on the page: one way for each kind of figure, a dash where there is none."""

import math
import re

ABSENT = "–"
MINUS = "−"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """`text` without what neither HTML nor XML may hold: control characters and lone surrogates."""
    return CONTROL.sub("\ufffd", text)


def score(value: float | None) -> str:
    """AUC, logloss: five decimals, since models differ in the fourth."""
    return ABSENT if value is None else f"{value:.5f}"


def change(value: float | None, decimals: int = 5) -> str:
    """A signed difference; zero has no sign."""
    if value is None:
        return ABSENT
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def correlation(value: float | None) -> str:
    """CEC and its floor: four decimals, five below 0.01."""
    if value is None:
        return ABSENT
    return f"{value:.4f}" if abs(value) >= 0.01 or value == 0 else f"{value:.5f}"


def loss(value: float | None) -> str:
    """A loss of any size: four significant digits."""
    if value is None:
        return ABSENT
    return f"{value:.5f}" if 0.01 <= abs(value) < 10 or value == 0 else f"{value:.4g}"


def weight(value: float | None) -> str:
    """A gate weight."""
    return ABSENT if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.2f}%"


def whole(value: float | None) -> str:
    """A count, with thousands separators."""
    return ABSENT if value is None else f"{value:,.0f}"


def times(value: float) -> str:
    """How many times: two significant digits above 1."""
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ABSENT
    if seconds < 59.95:  # what is written as 60.0 s is a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def plain(value: float | None) -> str:
    """A setting as a person would write it: 0.001, 100, 1e-08."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:g}"
