"""Numeric fields: the transform and the scaling, in float64, then float32.

N rows of one field; NaN is missing.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from dmoe.config.fields import NumericOptions
from dmoe.errors import DataError
from dmoe.schema import NumericField
from dmoe.values.coded_columns import Numbers


def transformed(numbers_N: Numbers, transform: str) -> Numbers:
    """`log` is sign(x) log(1 + |x|); the others leave the value."""
    if transform != "log":
        return numbers_N
    return np.sign(numbers_N) * np.log1p(np.abs(numbers_N))


def fit_field(name: str, options: NumericOptions, training: Callable[[], Iterable[Numbers]]) -> NumericField:
    """The field with the training mean and population standard deviation, if it is to be standardised.

    `training()` goes through its training values, chunk by chunk; it is called twice.
    A field that is constant, or missing in every training row, gets scale 1.
    """
    transform = options.transform
    assert transform in ("value", "standardise", "log")  # the others make categorical fields
    if transform != "standardise" and not options.standardise:
        return NumericField(name=name, transform=transform, table_group=options.table_group)
    count, sums = 0, []
    for numbers in training():
        values = transformed(numbers[~np.isnan(numbers)], transform)
        count += len(values)
        sums.append(float(values.sum()))
    if not count:
        return NumericField(name=name, transform=transform, table_group=options.table_group)
    mean = math.fsum(sums) / count
    squares = []
    for numbers in training():
        values = transformed(numbers[~np.isnan(numbers)], transform)
        squares.append(float(np.square(values - mean).sum()))
    scale = math.sqrt(math.fsum(squares) / count)
    # Rounding leaves a constant column with a deviation of about 1e-16 of its mean.
    constant = scale <= 1e-12 * abs(mean)
    return NumericField(
        name=name,
        transform=transform,
        mean=mean,
        scale=1.0 if constant else scale,
        table_group=options.table_group,
    )


def encode_numbers(numbers_N: Numbers, field: NumericField) -> npt.NDArray[np.float32]:
    """`(transform(x) - mean) / scale`, 0 where missing.

    Raises: DataError if a result is too large for float32.
    """
    with np.errstate(over="ignore"):
        values = ((transformed(numbers_N, field.transform) - field.mean) / field.scale).astype(np.float32)
    missing = np.isnan(numbers_N)
    values[missing] = 0
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(
            f"field '{field.name}': {numbers_N[row]} is too far from the training mean {field.mean:g} (scale "
            f"{field.scale:g}) for float32; reject such values, or use 'transform: log'"
        )
    return values
