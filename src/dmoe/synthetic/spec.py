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
    embedding_dim: int | None = None
    table_group: str | None = None


@dataclass(frozen=True, slots=True)
class Numeric:
    """A column made from a standard normal z: ``z`` to 3 decimals, or the count ``floor(exp(mu + sigma z))``."""

    name: str
    missing: float = 0.0
    count: tuple[float, float] | None = None  # (mu, sigma); None: z itself
    table_group: str | None = None


@dataclass(frozen=True, slots=True)
class Several:
    """A column of up to `length` tokens a row, Poisson of mean `mean`, each drawn like those of a `Categorical`.

    With `shares` they are tokens of that column, and their affinity to its token in the row is part of the logit.
    """

    name: str
    length: int
    mean: float
    size: int = 0
    skew: float = 0.9
    shift: float = 1.0
    main: float = 1.0
    shares: str | None = None
    pooling: str = "mean"
    table_group: str | None = None


@dataclass(frozen=True, slots=True)
class GivenVectors:
    """Vectors of the tokens of `column`: its planted effects under noise of this standard deviation."""

    name: str
    column: str
    width: int
    noise: float
    table_group: str | None = None


@dataclass(frozen=True, slots=True)
class Strengths:
    """Standard deviation of each part's contribution to the logit."""

    main: float
    inner: float
    triple: float
    numeric: float
    several: float = 0.0


@dataclass(frozen=True, slots=True)
class FurtherTask:
    """A label beside the preset's own, the main one.

    `rate` is its share of ones, of rows whose parent `given` is 1 if it has one. `relatedness` is the correlation of
    its logit with the main task's: 0 unrelated, 1 the same. A share `unknown` of its cells is empty.
    """

    name: str
    rate: float
    relatedness: float
    given: str | None = None
    unknown: float = 0.0


@dataclass(frozen=True, slots=True)
class Domains:
    """A column whose tokens differ in what makes a click.

    Token k adds `shifts[k]` to every task's logit. `similarity` is the correlation of a domain's logits with those that
    all domains share: 1 no structure of its own, 0 nothing else.
    """

    column: str
    shifts: tuple[float, ...]
    similarity: float


@dataclass(frozen=True, slots=True)
class Preset:
    """Columns in file order and the planted structure over them (`docs/generated-logs.md` has the equations)."""

    name: str
    label: str
    label_after: int  # columns before the label
    header: bool
    columns: tuple[Categorical | Numeric | Several, ...]
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
    given: GivenVectors | None = None
    further_tasks: tuple[FurtherTask, ...] = ()
    domains: Domains | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of all labels, the main one first."""
        return (self.label, *(task.name for task in self.further_tasks))

    @property
    def categorical(self) -> tuple[Categorical, ...]:
        return tuple(column for column in self.columns if isinstance(column, Categorical))

    @property
    def numeric(self) -> tuple[Numeric, ...]:
        return tuple(column for column in self.columns if isinstance(column, Numeric))

    @property
    def several(self) -> tuple[Several, ...]:
        return tuple(column for column in self.columns if isinstance(column, Several))

    def telling(self) -> set[str]:
        """The columns that the logit reads."""
        pairs = (*self.pairs, *self.triples, *self.numeric_pairs, (self.context,))
        effects = {column.name for column in self.categorical if column.main}
        several = {name for column in self.several for name in (column.name, column.shares) if name is not None}
        domain = {self.domains.column} if self.domains is not None else set()
        return {name for names in pairs for name in names} | effects | several | domain

    def law(self, column: Several) -> Categorical:
        """How the tokens of a column of several are distributed and written."""
        if column.shares is None:
            return Categorical(column.name, column.size, column.skew, column.shift)
        return next(one for one in self.categorical if one.name == column.shares)


FRESH_ROWS_PER_TOKEN = 10
FRESH_FADE_BIRTHS = 8.0
