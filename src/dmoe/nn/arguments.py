"""Checks of constructor arguments: one sentence that names the argument, what it must be and what it is."""

from collections.abc import Sequence

from dmoe.errors import nearest


def integer(name: str, value: object, minimum: int = 1) -> int:
    """`value` if it is an integer of at least `minimum`.

    Raises: ValueError.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    return value


def boolean(name: str, value: object) -> bool:
    """`value` if it is True or False.

    Raises: ValueError.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


def widths(name: str, value: object, *, empty: bool = False) -> tuple[int, ...]:
    """`value` as a tuple of layer widths, each an integer of at least 1.

    Raises: ValueError.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{name} must be a list of layer widths, got {value!r}")
    if not value and not empty:
        raise ValueError(f"{name} must hold at least one layer width, got {value!r}")
    return tuple(integer(f"{name}[{index}]", width) for index, width in enumerate(value))


def choice(name: str, value: object, allowed: Sequence[str | None]) -> str | None:
    """`value` if it is one of `allowed`.

    Raises: ValueError naming the nearest allowed word.
    """
    if not (value is None or isinstance(value, str)) or value not in allowed:
        shown = ", ".join("null" if word is None else f"'{word}'" for word in allowed)
        hint = nearest(value, [word for word in allowed if word]) if isinstance(value, str) else ""
        hint = hint if "did you mean" in hint else ""
        raise ValueError(f"{name} must be one of {shown}, got {value!r}{hint}")
    return value


def dropout_rate(name: str, value: object) -> float:
    """`value` if it is a share of units to drop, at least 0 and below 1.

    Raises: ValueError.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number of at least 0 and below 1, got {value!r}")
    return float(value)


def multiple(name: str, value: object, factor: int, why: str) -> int:
    """`value / factor`, if `value` is a positive multiple of `factor`; `why` says what the parts are.

    Raises: ValueError.
    """
    total = integer(name, value)
    if total % factor:
        raise ValueError(f"{name} must be a multiple of {factor} ({why}), got {total}")
    return total // factor


def numbers(name: str, value: object, below: int) -> tuple[int, ...]:
    """`value` as a tuple of different integers from 0 to `below` - 1, in the given order.

    Raises: ValueError.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{name} must be a list of numbers, got {value!r}")
    found = tuple(integer(f"{name}[{index}]", number, minimum=0) for index, number in enumerate(value))
    if len(set(found)) < len(found) or any(number >= below for number in found):
        raise ValueError(f"{name} must hold different numbers from 0 to {below - 1}, got {list(found)}")
    return found
