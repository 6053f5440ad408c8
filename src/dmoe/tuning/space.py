"""The search space: which keys of run.yaml a study varies, and between what, read from YAML.

parameters:
  optimiser.lr: {low: 1e-4, high: 1e-2, log: true}
  model.embedding_dim: {choices: [4, 8, 16]}
  model.experts:
    choices:
      cin and crossnet: [{kind: cin}, {kind: crossnet, layers: 3}]
      crossnet: [{kind: crossnet, layers: 3}]
  decorrelation.0.alpha: {low: 0.1, high: 100, log: true, when: {model.experts: cin and crossnet}}
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from dmoe.config.run import RunConfig, set_key
from dmoe.config.tasks import Strict
from dmoe.errors import ConfigError, nearest
from dmoe.nn.experts.options import check_experts
from dmoe.validation import validate, validate_stored
from dmoe.yaml_text import parse_yaml, read_yaml

Number: TypeAlias = int | float
Drawn: TypeAlias = dict[str, Number | str]
"""For each active parameter its number, or the name of its choice."""

# What trials are compared by, and what no search may choose.
_FIXED = {
    "seed": "a seed that is chosen is luck that is chosen; set it in the configuration",
    "monitor": "it is what trials are compared by; set it in the configuration",
    "monitor_tasks": "it is what trials are compared by; set it in the configuration",
    "negative_sampling_rate": "it is a fact of the log; set it in the configuration",
}


class Written(Strict):
    """A parameter as the file has it: a range of numbers, choices for its key, or changes of several keys by name."""

    key: str | None = None
    low: Number | None = None
    high: Number | None = None
    log: bool = False
    step: Number | None = Field(default=None, gt=0)
    choices: list[Any] | dict[str, Any] | None = None
    changes: dict[str, dict[str, Any]] | None = None
    when: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        ranged = self.low is not None or self.high is not None
        if ranged + (self.choices is not None) + (self.changes is not None) != 1:
            raise ValueError("needs either low and high, or choices, or changes")
        if not ranged:
            if self.log or self.step is not None:
                raise ValueError("'log' and 'step' are for a range, low and high")
            if not (self.choices or self.changes):
                raise ValueError("has nothing to choose from")
            if self.changes is not None and self.key is not None:
                raise ValueError("'changes' name the keys themselves; leave out 'key'")
            return self
        if self.low is None or self.high is None:
            raise ValueError("a range needs both low and high")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a range with log: true starts above 0, got low {self.low}")
        if self.log and self.step is not None:
            raise ValueError("'log' and 'step' exclude each other")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError(f"step {self.step} is wider than the range")
        return self


class SpaceFile(Strict):
    """The whole file."""

    parameters: dict[str, Written] = Field(min_length=1)


class ParameterFacts(Strict):
    """What `Parameter.facts` says, as it is stored."""

    kind: Literal["float", "int", "choice"] = "choice"
    key: str = ""
    low: Number = 0
    high: Number = 0
    log: bool = False
    step: Annotated[Number, Field(gt=0)] | None = None
    choices: dict[str, dict[str, Any]] = Field(default={})
    when: dict[str, tuple[str, ...]] = Field(default={})

    @model_validator(mode="after")
    def _draws(self) -> Self:
        if bool(self.choices) != (self.kind == "choice"):
            raise ValueError("needs choices, or a range of a kind of number")
        if not self.choices and (self.low >= self.high or (self.log and self.low <= 0)):
            raise ValueError(f"is no range, from {self.low} to {self.high}")
        return self

    def parameter(self, name: str) -> "Parameter":
        choices, when = tuple(self.choices.items()), tuple(self.when.items())
        return Parameter(name, self.kind, self.key, self.low, self.high, self.log, self.step, choices, when)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One dimension of the search.

    Args:
        changes: for each choice its name and the keys that it sets; empty for a range of the one `key`.
        when: parameters before it, each with the choices that make this one active.
    """

    name: str
    kind: Literal["float", "int", "choice"]
    key: str = ""
    low: Number = 0
    high: Number = 0
    log: bool = False
    step: Number | None = None
    changes: tuple[tuple[str, dict[str, Any]], ...] = ()
    when: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def keys(self) -> set[str]:
        return {self.key} if self.kind != "choice" else {key for _, changes in self.changes for key in changes}

    @property
    def labels(self) -> list[str]:
        return [label for label, _ in self.changes]

    def active(self, drawn: Mapping[str, Number | str]) -> bool:
        return all(drawn.get(name) in labels for name, labels in self.when)

    def excludes(self, other: "Parameter") -> bool:
        """Whether the two are never active together."""
        theirs = dict(other.when)
        return any(name in theirs and not set(labels) & set(theirs[name]) for name, labels in self.when)

    def set(self, values: dict[str, Any], chosen: Number | str, source: str) -> None:
        """Writes what was chosen into the plain values of a configuration."""
        changes = dict(self.changes)[str(chosen)] if self.kind == "choice" else {self.key: chosen}
        for key, value in changes.items():
            set_key(values, key, value, f"{source}: '{self.name}'")

    def holds(self, number: Number) -> bool:
        """Whether a range has this number."""
        if not self.low <= number <= self.high or (self.kind == "int" and not float(number).is_integer()):
            return False
        return self.step is None or abs((number - self.low) / self.step % 1) < 1e-9

    def ends(self) -> list[Number | str]:
        """What it is checked at: every choice, or both ends of the range and its middle."""
        if self.kind == "choice":
            return list(self.labels)
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        if self.kind == "float":
            return [float(self.low), middle, float(self.high)]
        step = self.step or 1
        return [self.low, int(self.low + (middle - self.low) // step * step), self.high]

    def facts(self) -> dict[str, Any]:
        """What tells this parameter from another."""
        if self.kind == "choice":
            what: dict[str, Any] = {"choices": dict(self.changes)}
        else:
            what = {"key": self.key, "kind": self.kind, "low": self.low, "high": self.high}
            what |= {"log": self.log, "step": self.step}
        return what | ({"when": {name: list(labels) for name, labels in self.when}} if self.when else {})


@dataclass(frozen=True, slots=True)
class Space:
    """The parameters of a study, in the order in which they are drawn; `source` names the file in errors."""

    source: str
    parameters: tuple[Parameter, ...]

    def draw(self, suggest: Callable[[Parameter], Number | str]) -> Drawn:
        """A point: `suggest` is asked for each parameter that is active."""
        drawn: Drawn = {}
        for parameter in self.parameters:
            if parameter.active(drawn):
                drawn[parameter.name] = suggest(parameter)
        return drawn

    def config(self, base: RunConfig, drawn: Mapping[str, Number | str]) -> RunConfig:
        """The configuration at a point.

        Raises: ConfigError for a key that run.yaml does not know, or a value that does not fit or go with the others.
        """
        values = base.values()
        for parameter in self.parameters:
            if parameter.name in drawn:
                parameter.set(values, drawn[parameter.name], self.source)
        found = validate(RunConfig, values, self.source)
        check_experts(found.model.experts, self.source)
        return found

    def fault(self, drawn: Mapping[str, Number | str]) -> str | None:
        """Why this is no point of the space, None if it is one."""
        by_name = {one.name: one for one in self.parameters}
        for name, value in drawn.items():
            one = by_name.get(name)
            if one is None:
                return f"no parameter '{name}'"
            if value not in one.labels if one.kind == "choice" else isinstance(value, str):
                return f"{name} is not {value!r}"
        return None

    def facts(self) -> dict[str, Any]:
        """What tells this space from another, as plain values."""
        plain: dict[str, Any] = json.loads(json.dumps({one.name: one.facts() for one in self.parameters}))
        return plain

    @staticmethod
    def of_facts(source: str, facts: Mapping[str, Mapping[str, Any]]) -> "Space":
        """The space that gave these facts. Raises: DataError if none did."""
        read = {name: validate_stored(ParameterFacts, one, f"{source}: '{name}'") for name, one in facts.items()}
        return Space(source, tuple(one.parameter(name) for name, one in read.items()))


def spaces() -> list[str]:
    """Names of the spaces that ship with the package; each is one of a preset."""
    folder = files("dmoe.tuning") / "spaces"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_space(source: Path | str, base: RunConfig) -> Space:
    """The space in a YAML file or of a shipped name, checked on the configuration that it varies.

    Raises: ConfigError naming file and parameter.
    """
    path, name = Path(source), str(source)
    if path.suffix in (".yaml", ".yml") or path.exists():
        values = read_yaml(path)
    elif name in spaces():
        text = (files("dmoe.tuning") / "spaces" / f"{name}.yaml").read_text(encoding="utf-8")
        values = parse_yaml(text, f"space {name}")
    else:
        raise ConfigError(
            f"--space {name}: neither a file nor a space{nearest(name, spaces())} (spaces: {', '.join(spaces())})"
        )
    return make_space(values, name, base)


def make_space(values: Mapping[str, Any], source: str, base: RunConfig) -> Space:
    """As `load_space`, of the content of a file."""
    written = validate(SpaceFile, values, source)
    found: list[Parameter] = []
    for name, one in written.parameters.items():
        parameter = _parameter(name, one, found, source)
        for other in found:
            _check_order(other, parameter, source)
        found.append(_of_kind(parameter, Space(source, tuple(found)), base))
    space = Space(source, tuple(found))
    _check(space, base)
    return space


def _parameter(name: str, one: Written, earlier: list[Parameter], source: str) -> Parameter:
    when = tuple((other, _labels(name, other, value, earlier, source)) for other, value in one.when.items())
    key = one.key or name
    if one.low is not None and one.high is not None:
        return Parameter(name, "float", key, one.low, one.high, one.log, one.step, when=when)
    if one.changes is not None:
        return Parameter(name, "choice", changes=tuple(one.changes.items()), when=when)
    choices = one.choices or []
    named = choices.items() if isinstance(choices, dict) else ((_label(value), value) for value in choices)
    changes = tuple((label, {key: value}) for label, value in named)
    labels = [label for label, _ in changes]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ConfigError(f"{source}: '{name}': choice {twice} appears twice")
    return Parameter(name, "choice", changes=changes, when=when)


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _labels(name: str, other: str, value: Any, earlier: list[Parameter], source: str) -> tuple[str, ...]:
    """The choices of an earlier parameter that `when` names."""
    known = {one.name: one for one in earlier}
    where = f"{source}: '{name}': when"
    if other not in known:
        raise ConfigError(f"{where}: no parameter '{other}' comes before it{nearest(other, known)}")
    if known[other].kind != "choice":
        raise ConfigError(f"{where}: '{other}' is a range; a condition is on a parameter with choices")
    labels = known[other].labels
    asked = tuple(_label(one) for one in (value if isinstance(value, list) else [value]))
    for label in asked:
        if label not in labels:
            raise ConfigError(f"{where}: '{other}' has no choice '{label}'{nearest(label, labels)}")
    return asked


def _check_order(earlier: Parameter, later: Parameter, source: str) -> None:
    """Whether what the later one sets would hide what the earlier one did."""
    for first in earlier.keys:
        for second in later.keys:
            if (first == second or first.startswith(f"{second}.")) and not earlier.excludes(later):
                what = "sets the same key as" if first == second else f"sets {second} as a whole, and with it"
                raise ConfigError(
                    f"{source}: '{later.name}' {what} '{earlier.name}' before it; write it first, leave one out, or "
                    "give them conditions (when) that exclude each other"
                )


def _of_kind(parameter: Parameter, before: Space, base: RunConfig) -> Parameter:
    """A range as one of whole numbers where its key takes no others, or its bounds and step say so of a key that
    takes a list of them."""
    if parameter.kind == "choice":
        return parameter
    whole = all(float(number).is_integer() for number in (parameter.low, parameter.high, parameter.step or 1))
    between = parameter.low + (parameter.high - parameter.low) * 0.4142135623730951
    drawn = _point(before, parameter, None, 0)
    try:
        Space(before.source, (*before.parameters, parameter)).config(base, drawn | {parameter.name: between})
    except ConfigError:
        if whole:
            low, high = int(parameter.low), int(parameter.high)
            step = None if parameter.step is None else int(parameter.step)
            return Parameter(parameter.name, "int", parameter.key, low, high, parameter.log, step, when=parameter.when)
    return parameter


def _point(space: Space, parameter: Parameter, value: Number | str | None, place: int) -> Drawn:
    """A point of the space at which `parameter` is active, and has `value`; the others have their first, middle or last
    one, by `place` from 0 to 2."""
    wanted: dict[str, Number | str] = {name: labels[0] for name, labels in _ancestors(space, parameter)}
    if value is not None:
        wanted[parameter.name] = value

    def suggest(one: Parameter) -> Number | str:
        ends = one.ends()
        return wanted.get(one.name, ends[min(place * len(ends) // 3, len(ends) - 1)])

    return space.draw(suggest)


def _ancestors(space: Space, parameter: Parameter) -> list[tuple[str, tuple[str, ...]]]:
    known = {one.name: one for one in space.parameters}
    found = list(parameter.when)
    for name, _ in parameter.when:
        found += _ancestors(space, known[name])
    return found


def _check(space: Space, base: RunConfig) -> None:
    """Refuses a value that makes no configuration, wherever the other parameters are: first, middle or last.

    Raises: ConfigError naming the parameter.
    """
    for parameter in space.parameters:
        for value in parameter.ends():
            errors = []
            for place in range(3):
                try:
                    _check_at(space, parameter, value, place, base)
                    break
                except ConfigError as error:
                    errors.append(error)
            else:
                raise _shortest(errors, space.source, parameter, value)


def _check_at(space: Space, parameter: Parameter, value: Number | str, place: int, base: RunConfig) -> None:
    found = space.config(base, _point(space, parameter, value, place))
    for key, reason in _FIXED.items():
        if getattr(found.training, key) != getattr(base.training, key):
            raise ConfigError(f"{space.source}: 'training.{key}' cannot be searched: {reason}")


def _shortest(errors: list[ConfigError], source: str, parameter: Parameter, value: Number | str) -> ConfigError:
    text = min((str(error) for error in errors), key=len)
    if f"'{parameter.name}'" in text or "cannot be searched" in text:
        return ConfigError(text)
    reason = text.removeprefix(f"{source}: ")
    return ConfigError(f"{source}: '{parameter.name}' at {value}: {reason}")
