"""Experiments on several labels or domains: one set of runs, and a table for each label, joint label or domain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import Field, model_validator

from dmoe.config.tasks import EVERY_TASK
from dmoe.errors import ConfigError, nearest
from dmoe.experiments.grid import Arm, Comparison, Grid, Loss, Size, Strict, Variant, package_yaml
from dmoe.schema import Schema
from dmoe.validation import validate

FAMILIES = ("tasks", "domains")


class Member(Strict):
    """A row of the tables: the model section of its runs.

    `alone`: one run for each label, which learns nothing of the others. `pairs`: whether its gates mix several experts,
    so that a loss can act.
    """

    model: dict[str, Any]
    alone: bool = False
    pairs: bool = True


class Family(Strict):
    """Models of several labels, each without and with a loss between its experts."""

    title: str
    models: dict[str, Member] = Field(min_length=1)
    losses: dict[str, Loss | None] = Field(min_length=1)
    compare: list[Comparison] = Field(default=[])
    between_models: list[Comparison] = Field(default=[])

    @model_validator(mode="after")
    def _names_exist(self) -> "Family":
        for one in self.compare:
            if missing := {one.better, one.than} - set(self.losses):
                raise ValueError(f"'compare' names the loss '{missing.pop()}'{nearest(one.better, self.losses)}")
        for one in self.between_models:
            if missing := {one.better, one.than} - set(self.models):
                raise ValueError(f"'between_models' names the model '{missing.pop()}'")
        return self


@dataclass(frozen=True, slots=True)
class Slice:
    """What a table of a family is of: a label, by itself or with what it is given, in one domain or all."""

    task: int
    joint: bool = False
    domain: int | None = None

    @property
    def suffix(self) -> str:
        """Of the names of tables, and of the cells whose scores they show."""
        return f"{self.task}{'j' if self.joint else ''}{'' if self.domain is None else f'.{self.domain}'}"

    @staticmethod
    def read(suffix: str) -> "Slice":
        task, _, domain = suffix.partition(".")
        return Slice(int(task.removesuffix("j")), task.endswith("j"), int(domain) if domain else None)

    def title(self, schema: Schema) -> str:
        task = schema.tasks[self.task]
        chain = [schema.tasks[link].name for link in schema.chain(task.name)]
        words = " and ".join(chain) if self.joint else task.name
        if task.given is not None and not self.joint:
            words += f" given {task.given}"
        if self.domain is not None and schema.domain is not None:
            words += f", {schema.domain.field} {schema.domain.names[self.domain]}"
        return words


def slices(family: str, schema: Schema) -> list[Slice]:
    """The tables of a family: every label; of `domains` the main one in every domain."""
    found = []
    for number, task in enumerate(schema.tasks):
        found.append(Slice(number))
        if task.given is not None:
            found.append(Slice(number, joint=True))
        if family == "domains" and number == 0 and schema.domain is not None:
            found += [Slice(0, domain=domain) for domain in range(len(schema.domain.names))]
    return found


@cache
def family(name: str) -> Family:
    return validate(Family, package_yaml("grids", name), f"grid {name}")


def check_family(name: str, schema: Schema) -> None:
    """Raises: ConfigError for data that have nothing to compare."""
    if name == "tasks" and len(schema.tasks) < 2:
        raise ConfigError("tasks: needs several labels, and the data has one; see 'labels' in data.yaml")
    if name == "domains" and schema.domain is None:
        raise ConfigError("domains: needs the domain of each row, and the data has none; see 'domain' in data.yaml")


def family_grid(name: str, of: Slice, schema: Schema) -> Grid:
    """The table of one slice, as the grid that a summary reads."""
    spec = family(name)
    return Grid(
        title=f"{spec.title}: {of.title(schema)}",
        models={model: ["-"] for model in spec.models},
        variants={loss: Variant(loss=made) for loss, made in spec.losses.items()},
        compare=spec.compare,
        between_models=spec.between_models,
    )


@dataclass(frozen=True, slots=True, eq=False)
class FamilyArm(Arm):
    """A model with one loss, or none, in the table of one label."""

    member: dict[str, Any] = field(default_factory=dict)
    alone: str | None = None
    heads: str = "task"

    def _choose(self, values: dict[str, Any]) -> None:
        model = values["model"] | self.member
        model["experts"] = [_sized(expert, self.size) for expert in model["experts"]]
        if self.heads != "task":
            model["heads"] = model.get("heads", self.heads)
        if self.alone is not None:
            model["tasks"] = {EVERY_TASK: {"weight": 0.0}, self.alone: {"weight": 1.0}}
            values["training"]["monitor_tasks"] = {self.alone: 1.0}
        values["model"] = model


def _sized(expert: Mapping[str, Any], size: Size) -> dict[str, Any]:
    return {"kind": expert["kind"], **size.experts.get(expert["kind"], {}), **expert}


def family_arms(name: str, of: Slice, size: Size, changes: Sequence[str], schema: Schema) -> list[FamilyArm]:
    """The arms of one table, row by row."""
    spec = family(name)
    label = schema.tasks[of.task].name
    several = len(schema.tasks) > 1
    heads = "task" if name == "tasks" else "task-and-domain" if several else "domain"
    found = []
    for model, member in spec.models.items():
        if member.alone and of.joint:
            continue  # its run knows one link of the chain
        for loss, made in spec.losses.items():
            if made is not None and not member.pairs:
                continue
            alphas = () if made is None else size.alphas_of(made, name)
            found.append(
                FamilyArm(
                    name,
                    model,
                    loss,
                    (),
                    Variant(loss=made),
                    alphas,
                    size,
                    1,
                    tuple(changes),
                    member=member.model,
                    alone=label if member.alone and several else None,
                    heads=heads,
                )
            )
    return found
