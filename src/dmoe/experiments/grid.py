"""Grids: what a table or figure consists of, read from the YAML files that ship with the package.

An *arm* is one place of a table: a model in a variant. Each of its *cells* is a plain run configuration, for one seed
and, where the arm has a loss, one alpha. A cell is named by a hash of its configuration, so that arms of different
tables that mean the same run share it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dmoe.config.run import RunConfig, changed_config
from dmoe.errors import ConfigError, nearest
from dmoe.nn.experts.options import check_experts
from dmoe.schema import Schema
from dmoe.validation import validate
from dmoe.yaml_text import parse_yaml

PAPER = ("table1", "table2", "fig1", "fig5", "fig6", "fig7", "fig8")
BEYOND = ("norms", "controls", "alpha", "experts", "products", "planted")
# Nested parts of one log: by the recipe of each part, where the others have a size that they hold.
GROWTH = "growth"
GROUPS = {"all": PAPER, "beyond": BEYOND}

# Logs with fewer training rows than this get the size `small`.
LARGE_LOG_ROWS = 5_000_000
# The size whose runs are `training.recipe: auto`.
RECIPE = "recipe"
# Smallest part of a log that `growth` takes by itself.
FEWEST_ROWS = 10_000

Metric: TypeAlias = Literal["auc", "logloss", "cec", "separation"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Loss(Strict):
    """A de-correlation term; its alpha is searched."""

    loss: Literal["corr", "cov"] = "corr"
    location: Literal["output", "pre-activation", "intermediate", "input"] = "output"
    norm: Literal["frobenius", "spectral", "l1", "l2"] | None = None
    scale: Literal["paper", "dimension-free"] = "paper"
    every_alpha: bool = False

    @property
    def alphas_key(self) -> str:
        """The line of a size's `alphas` that this loss is searched over."""
        words: list[str] = [self.loss]
        if self.loss == "cov" or self.norm == "spectral":
            words.append(self.norm or "l1")
        if self.scale == "dimension-free":
            words.append(self.scale)
        return " ".join(words)


class Variant(Strict):
    """How a model is built: the tables of its experts, and the loss between them."""

    tables: Literal["shared", "per-expert"] = "per-expert"
    loss: Loss | None = None
    only_expert: int | None = Field(default=None, ge=0)
    """The place of the one expert that the model consists of; None for all."""
    table_parameters_of_me: bool = False


class Comparison(Strict):
    """`better` is expected above `than` (CEC: below); `claim` is the paper's sentence that this decides."""

    better: str
    than: str
    metric: Metric = "auc"
    claim: str | None = None


class Ensemble(Strict):
    """A column made from finished cells: the mean logit of as many runs of `of` as the model has experts."""

    name: str
    of: str


class BestOf(Strict):
    """A column that is, in each row, the one of these columns that is best on the validation split."""

    name: str
    of: list[str] = Field(min_length=1)


class Grid(Strict):
    """One table or figure.

    `nested`: its one model on parts of the log, each a row of the table; see `over_parts`.
    """

    title: str
    paper: str | None = None
    models: dict[str, list[str]] = Field(min_length=1)
    variants: dict[str, Variant] = Field(min_length=1)
    compare: list[Comparison] = []
    between_models: list[Comparison] = []
    ensemble: Ensemble | None = None
    best: BestOf | None = None
    nested: bool = False
    parts: dict[str, int] = {}
    """Training rows of each row of the table, of a nested grid over given parts."""
    trend: str | None = None
    needs_truth: bool = False

    @model_validator(mode="after")
    def _names_exist(self) -> "Grid":
        columns = set(self.columns)
        for one in self.compare:
            if missing := {one.better, one.than} - columns:
                raise ValueError(f"'compare' names the variant '{missing.pop()}'{nearest(one.better, columns)}")
        for one in self.between_models:
            if missing := {one.better, one.than} - set(self.models):
                raise ValueError(f"'between_models' names the model '{missing.pop()}'")
        if self.nested and not self.parts and len(self.models) != 1:
            raise ValueError("'nested' is for a grid of one model")
        return self

    @property
    def columns(self) -> list[str]:
        """Names of the variants, the ensemble's and the best one's last."""
        made = [one.name for one in (self.ensemble, self.best) if one is not None]
        return [*self.variants, *made]

    @property
    def row_title(self) -> str:
        """What the rows of its table are."""
        return "Training rows" if self.nested else "Model"

    def over_parts(self, parts: Sequence[int]) -> "Grid":
        """With a row for each part of the log, the smallest first."""
        if not self.nested:
            return self
        (experts,) = self.models.values()
        labels = {f"{rows:,}": rows for rows in sorted(parts)}
        return self.model_copy(update={"models": dict.fromkeys(labels, experts), "parts": labels})


class Size(Strict):
    """How large models are, how they are trained, and which alphas are searched."""

    run: dict[str, Any]
    experts: dict[str, dict[str, Any]]
    alphas: dict[str, list[float]]

    def alphas_of(self, loss: Loss, experiment: str) -> tuple[float, ...]:
        """What a loss is searched over. Raises: ConfigError if the size does not say it."""
        key = loss.alphas_key
        if key not in self.alphas:
            raise ConfigError(f"size: 'alphas' has no line '{key}', which {experiment} needs")
        return tuple(self.alphas[key])


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: its configuration, the latest training rows that it reads (None: all), and the hash that names both."""

    key: str
    config: RunConfig
    part: int | None = None

    @staticmethod
    def of(config: RunConfig, part: int | None = None) -> "Cell":
        # Without defaults: a key that a later dmoe adds does not rename the runs that know nothing of it. What a
        # recipe leaves open is not the default.
        auto = config.training.recipe == "auto"
        values = config.values() if auto else config.model_dump(mode="json", exclude_defaults=True)
        text = json.dumps(values, sort_keys=True) + (f" latest {part}" if part is not None else "")
        return Cell(hashlib.sha256(text.encode()).hexdigest()[:12], config, part)


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One place of a table: `alphas` is empty where there is no loss."""

    experiment: str
    model: str
    variant: str
    experts: tuple[str, ...]
    made: Variant
    alphas: tuple[float, ...]
    size: Size
    num_tables_of_me: int
    changes: tuple[str, ...] = ()
    part: int | None = None
    _cells: dict[tuple[int, float | None], Cell] = field(default_factory=dict)

    @property
    def loss(self) -> Loss | None:
        return self.made.loss

    @property
    def searched(self) -> bool:
        """Whether one alpha has to be chosen."""
        return len(self.alphas) > 1

    def cell(self, seed: int, alpha: float | None = None) -> Cell:
        """The run of one seed and, with a loss, one alpha."""
        if (seed, alpha) not in self._cells:
            self._cells[seed, alpha] = self._cell(seed, alpha)
        return self._cells[seed, alpha]

    def _cell(self, seed: int, alpha: float | None) -> Cell:
        values: dict[str, Any] = {part: dict(content) for part, content in self.size.run.items()}
        self._choose(values)
        values["training"]["seed"] = seed
        if self.loss is not None:
            values["decorrelation"] = [self.loss.model_dump(exclude={"every_alpha"}) | {"alpha": alpha}]
        source = f"{self.experiment}: {self.model}, {self.variant}"
        config = changed_config(validate(RunConfig, values, source), self.changes)
        check_experts(config.model.experts, source)
        return Cell.of(config, self.part)

    def _choose(self, values: dict[str, Any]) -> None:
        """Puts what makes this arm's model into the plain values of its size."""
        only = self.made.only_expert
        kinds = self.experts if only is None else self.experts[only : only + 1]
        values["model"]["experts"] = [{"kind": kind, **self.size.experts[kind]} for kind in kinds]
        # Of one expert, both words mean the same model: one name, so that it runs once.
        values["model"]["tables"] = self.made.tables if len(kinds) > 1 else "shared"
        if self.made.table_parameters_of_me:
            values["model"]["embedding_dim"] = self._wide(len(kinds))

    def _wide(self, num_experts: int) -> int:
        """The width at which one shared table (and the gate's, if there is one) equal those of ME."""
        if "embedding_dim" not in self.size.run["model"]:
            raise ConfigError(
                f"{self.experiment}: sets widths of tables, which this --size leaves to the log; choose another --size"
            )
        width = int(self.size.run["model"]["embedding_dim"])
        own_tables = 1 if num_experts == 1 else 2
        return -(-width * (self.num_tables_of_me + 1) // own_tables)


def names() -> list[str]:
    """Every experiment, the paper's first."""
    return [*PAPER, *BEYOND, GROWTH]


def expand(wanted: list[str]) -> list[str]:
    """Names of experiments with `all` and `beyond` spelled out, each once, in their order.

    Raises: ConfigError for an unknown name.
    """
    found: list[str] = []
    for name in wanted:
        if name not in names() and name not in GROUPS:
            raise ConfigError(f"no experiment '{name}'{nearest(name, [*names(), *GROUPS])}")
        found += GROUPS.get(name, (name,))
    return [name for name in names() if name in found]


@cache
def grid(name: str) -> Grid:
    """The grid of an experiment."""
    return validate(Grid, package_yaml("grids", name), f"grid {name}")


def sizes() -> list[str]:
    folder = files("dmoe.experiments") / "sizes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@cache
def size(name: str) -> Size:
    """A size that ships with the package.

    Raises: ConfigError for an unknown name.
    """
    if name not in sizes():
        raise ConfigError(f"--size {name}: no such size{nearest(name, sizes())}")
    return validate(Size, package_yaml("sizes", name), f"size {name}")


def size_for(schema: Schema, train_rows: int) -> str:
    """The size for a log: `small`, or the paper's when it has millions of rows."""
    if train_rows < LARGE_LOG_ROWS:
        return "small"
    return "paper-criteo" if schema.numeric else "paper-avazu"


def default_parts(train_rows: int) -> list[int]:
    """1 and 3 times each power of ten from FEWEST_ROWS on, and all rows."""
    found = [times * FEWEST_ROWS * 10**power for power in range(10) for times in (1, 3)]
    return [*(rows for rows in found if 1.5 * rows <= train_rows), train_rows]


def arms(
    name: str, chosen: Size, changes: tuple[str, ...] = (), parts: Sequence[int] = (), train_rows: int | None = None
) -> list[Arm]:
    """The arms of an experiment, row by row; a model of one expert has none with a loss.

    `changes` are `key.path=value` words for the configuration of every cell, `parts` the latest training rows of each
    row of a nested grid; `train_rows` are all there are, of which no part needs to be taken.
    """
    spec = grid(name).over_parts(parts)
    found = []
    for model, experts in spec.models.items():
        for variant, made in spec.variants.items():
            if made.loss is not None and len(experts) < 2:
                continue
            alphas: list[tuple[float, ...]] = [()]
            if made.loss is not None:
                alphas = [chosen.alphas_of(made.loss, name)]
                if made.loss.every_alpha:
                    alphas = [(alpha,) for alpha in alphas[0]]
            for one in alphas:
                column = variant if len(alphas) == 1 else f"{variant}, alpha {one[0]:g}"
                part = spec.parts.get(model)
                part = None if part == train_rows else part
                found.append(Arm(name, model, column, tuple(experts), made, one, chosen, len(experts), changes, part))
    return found


def package_yaml(folder: str, name: str) -> dict[str, Any]:
    """A YAML file that ships with the experiments."""
    text = (files("dmoe.experiments") / folder / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, f"{folder}/{name}.yaml")
