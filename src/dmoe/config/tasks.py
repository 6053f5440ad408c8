"""What a model of several labels or domains is told: heads, owners of experts, levels, tasks. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dmoe.errors import ConfigError, nearest
from dmoe.schema import Schema

HeadKind = Literal["task", "domain", "task-and-domain"]
OwnerKind = Literal["task", "domain"]
Foreign = Literal["hidden", "stopped", "open"]

EVERY_TASK = "*"


class Owner(NamedTuple):
    """The task or the domain that an expert belongs to."""

    kind: OwnerKind
    number: int


class HeadOf(NamedTuple):
    """Whose logit a head gives: a task's, in one domain or, with None, in all."""

    task: int
    domain: int | None = None

    def owns(self, owner: Owner | None) -> bool:
        """Whether an expert of this owner is its own or nobody's; others are foreign to it."""
        if owner is None:
            return True
        return owner.number == (self.task if owner.kind == "task" else self.domain)


def heads_of(kind: HeadKind, num_tasks: int, num_domains: int) -> tuple[HeadOf, ...]:
    """The heads of a model, by task and then by domain.

    Raises: ValueError for heads of domains without a task of their own each.
    """
    if kind == "task":
        return tuple(HeadOf(task) for task in range(num_tasks))
    if kind == "domain" and num_tasks > 1:
        raise ValueError(f"heads of kind 'domain' are for one task; for {num_tasks} take 'task-and-domain'")
    return tuple(HeadOf(task, domain) for task in range(num_tasks) for domain in range(num_domains))


def sizes_of(schema: Schema) -> tuple[int, int]:
    """How many tasks and domains data has; data without domains are one."""
    return len(schema.tasks), 1 if schema.domain is None else max(schema.domain.of_id) + 1


def copies(experts: Sequence[Mapping[str, Any]], num_tasks: int, num_domains: int) -> list[tuple[int, Owner | None]]:
    """For each expert that the entries of a configuration stand for: the entry's number and the expert's owner."""
    owners: dict[object, list[Owner | None]] = {
        None: [None],
        "task": [Owner("task", task) for task in range(num_tasks)],
        "domain": [Owner("domain", domain) for domain in range(num_domains)],
    }
    return [
        (entry, owner)
        for entry, said in enumerate(experts)
        for owner in owners[said.get("per")]
        for _ in range(int(said.get("count", 1)))
    ]


def tables_of_owners(owners: Sequence[Owner | None]) -> list[int]:
    """One table for experts without an owner, if there are any, then one for each owner, as they come."""
    known: list[Owner | None] = [None] if None in owners else []
    for owner in owners:
        if owner not in known:
            known.append(owner)
    return [known.index(owner) for owner in owners]


def check_copies(experts: Sequence[Mapping[str, Any]], heads: HeadKind, where: str = "experts") -> None:
    """Checks `count` and `per` of entries.

    Raises: ValueError naming the entry.
    """
    for index, expert in enumerate(experts):
        count, per = expert.get("count", 1), expert.get("per")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"'{where}[{index}].count' must be a whole number of at least 1, got {count!r}")
        if per not in (None, "task", "domain"):
            raise ValueError(f"'{where}[{index}].per' must be task or domain, or be left out, got {per!r}")
        if per == "domain" and heads == "task":
            raise ValueError(
                f"'{where}[{index}].per' domain needs a head for each domain; set heads: domain or task-and-domain"
            )


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def without_defaults(section: BaseModel, values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The plain values of a section, without those of `keys` that it leaves at their defaults."""
    fields = type(section).model_fields
    unused = {key for key in keys if getattr(section, key) == fields[key].default}
    return {key: value for key, value in values.items() if key not in unused}


class TaskConfig(Strict):
    """One task of the model: the weight of its loss, which loss, and the hidden units of its tower.

    `masked`: the mean over the rows whose label is known. `entire-space` (ESMM, SIGIR 2018): of a label that is given
    another, the logloss of the joint label on all rows; of a label without `given` its plain loss.
    """

    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    loss: Literal["masked", "entire-space"] = "masked"
    tower_units: list[int] | None = None

    @field_validator("tower_units")
    @classmethod
    def _positive(cls, units: list[int] | None) -> list[int] | None:
        if units is not None and any(one < 1 for one in units):
            raise ValueError(f"'tower_units' must be positive, got {units}")
        return units


class ScaleConfig(Strict):
    """Fields, or groups of them, that set a scale (PEPNet), and the units of its hidden layer."""

    fields: list[str] = Field(min_length=1)
    units: int = Field(default=64, ge=1)


def tasks_of(tasks: Mapping[str, TaskConfig], names: Sequence[str]) -> tuple[TaskConfig, ...]:
    """What is said of each label; of one that is not named, what is said of `*`.

    Raises: ConfigError for a name that is no label.
    """
    for name in tasks:
        if name != EVERY_TASK and name not in names:
            raise ConfigError(f"model.tasks: no label '{name}' in the data{nearest(name, names)}")
    rest = tasks.get(EVERY_TASK, TaskConfig())
    return tuple(tasks.get(name, rest) for name in names)
