"""What a planted click log consists of: its columns, and the parts of the logit that they carry."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Categorical:
    """A column of tokens whose frequencies follow a Zipf-Mandelbrot law.

    Token `k` of `size` (k = 0 the most frequent) has a probability proportional to the integral of
    ``(x + shift)^-skew`` over [k, k + 1]. A share `fresh` of the rows holds tokens that are born over time
    instead: one token is born for every `FRESH_ROWS_PER_TOKEN` such rows and fades after a few births.
    """

    name: str
    size: int
    skew: float = 0.9  # not 1
    shift: float = 1.0
    missing: float = 0.0
    fresh: float = 0.0
    main: float = 1.0  # standard deviation of the values' main effects, relative to the other fields
    text: Literal["hex", "number", "hour"] = "hex"
    first: int = 0  # of text "number": the number of token 0
    codes: tuple[int, ...] = ()  # of text "number": the numbers of all tokens
    missing_text: str = ""


@dataclass(frozen=True, slots=True)
class Numeric:
    """A column made from a standard normal z: ``z`` to 3 decimals, or the count ``floor(exp(mu + sigma z))``."""

    name: str
    missing: float = 0.0
    count: tuple[float, float] | None = None  # (mu, sigma); None: z itself


@dataclass(frozen=True, slots=True)
class Strengths:
    """Standard deviation of each part's contribution to the logit."""

    main: float
    inner: float
    triple: float
    numeric: float


@dataclass(frozen=True, slots=True)
class Preset:
    """Columns in file order and the planted structure over them (`docs/generated-logs.md` has the equations)."""

    name: str
    label: str
    label_after: int  # columns before the label
    header: bool
    columns: tuple[Categorical | Numeric, ...]
    click_rate: float
    strengths: Strengths
    context: str
    context_contrast: float
    pairs: tuple[tuple[str, str], ...]
    rank: int
    triples: tuple[tuple[str, str, str], ...]
    triple_mean: float
    numeric_pairs: tuple[tuple[str, str], ...] = ()
    row_id: str | None = None
    min_count: int = field(default=1)

    @property
    def categorical(self) -> tuple[Categorical, ...]:
        return tuple(column for column in self.columns if isinstance(column, Categorical))

    @property
    def numeric(self) -> tuple[Numeric, ...]:
        return tuple(column for column in self.columns if isinstance(column, Numeric))


FRESH_ROWS_PER_TOKEN = 10
FRESH_FADE_BIRTHS = 8.0
