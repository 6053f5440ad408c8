"""Grids: what a table or figure consists of, read from the YAML files that ship with the package.

An *arm* is one place of a table: a model in a variant. Each of its *cells* is a plain run configuration, for one seed
and, where the arm has a loss, one alpha. A cell is named by a hash of its configuration, so that arms of different
tables that mean the same run share it.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dmoe.config import DecorrelationConfig, RunConfig, changed_config
from dmoe.errors import ConfigError
from dmoe.schema import Schema
from dmoe.validation import nearest, validate
from dmoe.yaml_text import parse_yaml

PAPER = ("table1", "table2", "fig1", "fig5", "fig6", "fig7", "fig8")
BEYOND = ("norms", "controls", "alpha", "experts", "products", "planted")
GROUPS = {"all": PAPER, "beyond": BEYOND}

# Logs with fewer training rows than this get the size `small`.
LARGE_LOG_ROWS = 5_000_000

Metric: TypeAlias = Literal["auc", "logloss", "cec", "separation"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Loss(_Strict):
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


class Variant(_Strict):
    """How a model is built: the tables of its experts, and the loss between them."""

    tables: Literal["shared", "per-expert"] = "per-expert"
    loss: Loss | None = None
    first_expert_only: bool = False
    table_parameters_of_me: bool = False


class Comparison(_Strict):
    """`better` is expected above `than` (CEC: below); `claim` is the paper's sentence that this decides."""

    better: str
    than: str
    metric: Metric = "auc"
    claim: str | None = None


class Ensemble(_Strict):
    """A column made from finished cells: the mean logit of as many runs of `of` as the model has experts."""

    name: str
    of: str


class Grid(_Strict):
    """One table or figure."""

    title: str
    paper: str | None = None
    models: dict[str, list[str]] = Field(min_length=1)
    variants: dict[str, Variant] = Field(min_length=1)
    compare: list[Comparison] = []
    between_models: list[Comparison] = []
    ensemble: Ensemble | None = None
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
        return self

    @property
    def columns(self) -> list[str]:
        """Names of the variants, the ensemble's last."""
        return [*self.variants, *([self.ensemble.name] if self.ensemble else [])]


class Size(_Strict):
    """How large models are, how they are trained, and which alphas are searched."""

    run: dict[str, Any]
    experts: dict[str, dict[str, Any]]
    alphas: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: its configuration, and the hash that names it."""

    key: str
    config: RunConfig

    @staticmethod
    def of(config: RunConfig) -> "Cell":
        # Without defaults: a key that a later dmoe adds does not rename the runs that know nothing of it.
        text = json.dumps(config.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return Cell(hashlib.sha256(text.encode()).hexdigest()[:12], config)


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
        kinds = self.experts[:1] if self.made.first_expert_only else self.experts
        values["model"]["experts"] = [{"kind": kind, **self.size.experts[kind]} for kind in kinds]
        # Of one expert, both words mean the same model: one name, so that it runs once.
        values["model"]["tables"] = self.made.tables if len(kinds) > 1 else "shared"
        if self.made.table_parameters_of_me:
            values["model"]["embedding_dim"] = self._wide(len(kinds))
        values["training"]["seed"] = seed
        if self.loss is not None:
            term = self.loss.model_dump(exclude={"every_alpha"}) | {"alpha": alpha}
            values["decorrelation"] = [validate(DecorrelationConfig, term, "decorrelation").model_dump()]
        config = validate(RunConfig, values, f"{self.experiment}: {self.model}, {self.variant}")
        return Cell.of(changed_config(config, self.changes))

    def _wide(self, num_experts: int) -> int:
        """The width at which one shared table (and the gate's, if there is one) equal those of ME."""
        width = int(self.size.run["model"]["embedding_dim"])
        own_tables = 1 if num_experts == 1 else 2
        return -(-width * (self.num_tables_of_me + 1) // own_tables)


def names() -> list[str]:
    """Every experiment, the paper's first."""
    return [*PAPER, *BEYOND]


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
    return validate(Grid, _package_yaml("grids", name), f"grid {name}")


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
    return validate(Size, _package_yaml("sizes", name), f"size {name}")


def size_for(schema: Schema, train_rows: int) -> str:
    """The size for a log: `small`, or the paper's when it has millions of rows."""
    if train_rows < LARGE_LOG_ROWS:
        return "small"
    return "paper-criteo" if schema.numeric else "paper-avazu"


def arms(name: str, chosen: Size, changes: tuple[str, ...] = ()) -> list[Arm]:
    """The arms of an experiment, row by row; a model of one expert has none with a loss.

    `changes` are `key.path=value` words for the configuration of every cell.
    """
    spec = grid(name)
    found = []
    for model, experts in spec.models.items():
        for variant, made in spec.variants.items():
            if made.loss is not None and len(experts) < 2:
                continue
            alphas: list[tuple[float, ...]] = [()]
            if made.loss is not None:
                key = made.loss.alphas_key
                if key not in chosen.alphas:
                    raise ConfigError(f"size: 'alphas' has no line '{key}', which {name} needs")
                alphas = [tuple(chosen.alphas[key])]
                if made.loss.every_alpha:
                    alphas = [(alpha,) for alpha in alphas[0]]
            for one in alphas:
                column = variant if len(alphas) == 1 else f"{variant}, alpha {one[0]:g}"
                found.append(Arm(name, model, column, tuple(experts), made, one, chosen, len(experts), changes))
    return found


def _package_yaml(folder: str, name: str) -> dict[str, Any]:
    text = (files("dmoe.experiments") / folder / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, f"{folder}/{name}.yaml")
