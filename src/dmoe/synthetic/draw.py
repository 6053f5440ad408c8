"""Draws the columns of a planted log: row i is the same whatever range of rows is asked for.

Shape suffix: R rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dmoe.synthetic.spec import FRESH_FADE_BIRTHS, FRESH_ROWS_PER_TOKEN, Categorical, Numeric, Preset, Several

# Every block has random streams of its own, so that no choice of chunks can change a row.
BLOCK_ROWS = 65_536
MISSING = -1
HOURS = 240  # an hour column runs through ten days, as long as the Avazu log

LOG_STREAM = 0
PILOT_STREAM = 1


@dataclass(frozen=True, slots=True)
class Columns:
    """Drawn rows: `tokens[name]` int64 (R,), -1 where missing, or (R, L) with -1 behind the tokens that there are;
    `numbers[name]` float64 z (R,), NaN where missing; `uniform_R` float64 in [0, 1), which decides the label."""

    start: int
    tokens: dict[str, NDArray[np.int64]]
    numbers: dict[str, NDArray[np.float64]]
    uniform_R: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.uniform_R)

    def where(self, chosen_R: NDArray[np.bool_]) -> "Columns":
        """The chosen rows alone; `start` stays that of the whole."""
        return Columns(
            self.start,
            {name: token_R[chosen_R] for name, token_R in self.tokens.items()},
            {name: number_R[chosen_R] for name, number_R in self.numbers.items()},
            self.uniform_R[chosen_R],
        )


def blocks(
    preset: Preset, seed: int, rows: int, stream: int = LOG_STREAM, *, telling: bool = False
) -> Iterator[Columns]:
    """All rows of a log of `rows` rows, in blocks of BLOCK_ROWS; only the columns that the logit reads if `telling`."""
    for block in range(-(-rows // BLOCK_ROWS)):
        yield draw_block(preset, seed, rows, block, stream, telling=telling)


def draw_block(
    preset: Preset, seed: int, rows: int, block: int, stream: int = LOG_STREAM, *, telling: bool = False
) -> Columns:
    """Block number `block` of a log of `rows` rows; the last block may be shorter."""
    wanted = preset.telling() if telling else {column.name for column in preset.columns}
    start = block * BLOCK_ROWS
    number_R = np.arange(start, start + BLOCK_ROWS)
    tokens: dict[str, NDArray[np.int64]] = {}
    numbers: dict[str, NDArray[np.float64]] = {}
    keep = min(BLOCK_ROWS, rows - start)
    for index, column in enumerate(preset.columns):
        if column.name not in wanted:
            continue
        # A stream for each column too: a column can be changed or added without changing the others.
        random = np.random.Generator(np.random.PCG64([seed, stream, block, index + 1]))
        if isinstance(column, Numeric):
            numbers[column.name] = _numeric(column, random)[:keep]
        elif isinstance(column, Several):
            tokens[column.name] = _several(column, preset.law(column), random)[:keep]
        elif column.text == "hour":
            tokens[column.name] = (number_R[:keep] * HOURS) // rows
        else:
            tokens[column.name] = _categorical(column, random, number_R)[:keep]
    uniform_R = np.random.Generator(np.random.PCG64([seed, stream, block, 0])).random(BLOCK_ROWS)
    return Columns(start, tokens, numbers, uniform_R[:keep])


def task_uniforms(seed: int, columns: Columns, task: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For a whole block of the log: what decides task number `task` (from 1), and what decides if it is known, (R,)."""
    stream = [seed, LOG_STREAM, columns.start // BLOCK_ROWS, 0, task]
    label_R, known_R = np.random.Generator(np.random.PCG64(stream)).random((2, BLOCK_ROWS))
    return label_R[: len(columns)], known_R[: len(columns)]


def _categorical(column: Categorical, random: np.random.Generator, number_R: NDArray[np.int64]) -> NDArray[np.int64]:
    uniform_R = random.random(len(number_R))
    power = 1.0 - column.skew
    low, high = column.shift**power, (column.size + column.shift) ** power
    token_R = ((low + (high - low) * uniform_R) ** (1.0 / power) - column.shift).astype(np.int64)
    np.clip(token_R, 0, column.size - 1, out=token_R)
    if column.fresh:
        fresh_R = random.random(len(number_R)) < column.fresh
        born_R = (number_R * (column.fresh / FRESH_ROWS_PER_TOKEN)).astype(np.int64)
        age_R = random.exponential(FRESH_FADE_BIRTHS, len(number_R)).astype(np.int64)
        token_R = np.where(fresh_R, column.size + np.maximum(born_R - age_R, 0), token_R)
    if column.missing:
        token_R[random.random(len(number_R)) < column.missing] = MISSING
    drawn_R: NDArray[np.int64] = token_R
    return drawn_R


def _several(column: Several, law: Categorical, random: np.random.Generator) -> NDArray[np.int64]:
    count_R = np.minimum(random.poisson(column.mean, BLOCK_ROWS), column.length)
    plain = replace(law, fresh=0.0, missing=0.0)
    token_RL = _categorical(plain, random, np.arange(BLOCK_ROWS * column.length)).reshape(-1, column.length)
    token_RL[np.arange(column.length) >= count_R[:, None]] = MISSING
    return token_RL


def _numeric(column: Numeric, random: np.random.Generator) -> NDArray[np.float64]:
    z_R = visible(column, random.standard_normal(BLOCK_ROWS))
    if column.missing:
        z_R[random.random(BLOCK_ROWS) < column.missing] = np.nan
    return z_R


def visible(column: Numeric, z_R: NDArray[np.float64]) -> NDArray[np.float64]:
    """z as it can be told from the file: rounded to 3 decimals, or from the whole number shown.

    The label depends on this, not on the drawn z, so that the truth asks nothing of a model that it
    cannot see.
    """
    if column.count is None:
        return np.round(z_R, 3)
    mu, sigma = column.count
    shown_R = np.floor(np.exp(mu + sigma * z_R))
    return (np.log1p(shown_R) - mu) / sigma
