"""All tasks of a planted log: their logits over one set of columns, related as far as the preset says.

Each task has a planted logit of its own effects over the same columns, and mixes it with the main task's, part by part:
``part = a main + b own``, where a and b give it the preset's strength and, on the pilot, exactly the wanted correlation
with the main task's part. A domain mixes what all domains share with what it has of its own in the same way. Shape
suffixes: R rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmoe.synthetic.draw import Columns, task_uniforms
from dmoe.synthetic.logit import PARTS, Floats, PlantedLogit, bias_for, cut, key, pilot, sigmoid, sum_parts
from dmoe.synthetic.spec import Preset

UNKNOWN = 2

Parts: TypeAlias = dict[str, Floats]
Weights: TypeAlias = dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Rows of a log with their labels.

    `probabilities[task]` float32 (R,): P(1), of a task with a parent given that the parent is 1, with which labels were
    drawn. `labels[task]` uint8 (R,): 0, 1, or 2 where the log says nothing; `known[task]` bool (R,): where the label is
    told and, of a task with a parent, the parent is known to be 1. `domain_R`: token of the domain column.
    """

    parts: list[Parts]
    probabilities: dict[str, NDArray[np.float32]]
    labels: dict[str, NDArray[np.uint8]]
    known: dict[str, NDArray[np.bool_]]
    domain_R: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class Joint:
    """A chain of tasks as one: whether all of them are 1. See `Drawn` for the shapes."""

    probability_R: NDArray[np.float32]
    label_R: NDArray[np.bool_]
    known_R: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Place:
    """What makes the labels of one place: of all rows, or of one domain alone."""

    logits: tuple[PlantedLogit, ...]  # of each task's own effects
    weights: tuple[Weights, ...]  # of each further task: of the main task's part, of its own

    def parts(self, columns: Columns) -> list[Parts]:
        main, *own = (logit.parts(columns) for logit in self.logits)
        return [main, *(mixed(main, parts, weights) for parts, weights in zip(own, self.weights, strict=True))]


@dataclass(frozen=True)
class PlantedTasks:
    """The logits of all tasks of a preset under a seed, main task first."""

    preset: Preset
    seed: int
    everywhere: _Place
    domains: tuple[_Place, ...]  # by token
    domain_weights: tuple[tuple[Weights, ...], ...]  # by token and task: of the shared part, of the domain's own
    biases: tuple[float, ...]

    @staticmethod
    def calibrate(preset: Preset, seed: int) -> "PlantedTasks":
        """Parts of the preset's strengths, relations and rates, on a pilot of other rows."""
        rows = pilot(preset, seed)
        everywhere = _place(preset, seed, rows, "")
        domains, weights = [], []
        for number in range(len(preset.domains.shifts) if preset.domains is not None else 0):
            assert preset.domains is not None
            here = [columns.where(columns.tokens[preset.domains.column] == number) for columns in rows]
            place = _place(preset, seed, here, f"/domain {number}")
            shared, own = _joined(everywhere, here), _joined(place, here)
            domains.append(place)
            weights.append(
                tuple(mixture(shared[t], own[t], preset.domains.similarity) for t in range(len(preset.tasks)))
            )
        main_bias = everywhere.logits[0].bias
        unbiased = PlantedTasks(preset, seed, everywhere, tuple(domains), tuple(weights), (main_bias,))
        if not preset.further_tasks and preset.domains is None:
            return unbiased
        logits = [unbiased.logits(columns) for columns in rows]
        logits_TR = [np.concatenate([block[task] for block in logits]) for task in range(len(preset.tasks))]
        biases: list[float] = []
        reached: list[Floats] = []  # the probability that a task and all its parents are 1
        for task, logit_R in enumerate(logits_TR):
            rate = preset.further_tasks[task - 1].rate if task else preset.click_rate
            parent = unbiased.parent(task)
            weight_R = np.ones(len(logit_R)) if parent is None else reached[parent]
            alone = task == 0 and preset.domains is None
            biases.append(main_bias if alone else bias_for(logit_R, rate, weight_R))
            reached.append(weight_R * sigmoid(biases[task] + logit_R))
        return PlantedTasks(preset, seed, everywhere, tuple(domains), tuple(weights), tuple(biases))

    @cached_property
    def chains(self) -> dict[str, tuple[str, ...]]:
        """Of each task with a parent: the tasks from the first parent to itself."""
        names = self.preset.tasks
        found: dict[str, tuple[str, ...]] = {}
        for task, name in enumerate(names):
            parent = self.parent(task)
            if parent is not None:
                found[name] = (*found.get(names[parent], (names[parent],)), name)
        return found

    def parent(self, task: int) -> int | None:
        """The number of a task's parent, which comes before it."""
        given = self.preset.further_tasks[task - 1].given if task else None
        return None if given is None else self.preset.tasks.index(given)

    def parts(self, columns: Columns) -> list[Parts]:
        """Of each task: each part's contribution to the logit of these rows (R,), context and domain included."""
        found = self.everywhere.parts(columns)
        if self.preset.domains is None:
            return found
        domain_R = columns.tokens[self.preset.domains.column]
        for number, (place, weights) in enumerate(zip(self.domains, self.domain_weights, strict=True)):
            here_R = domain_R == number
            for shared, own, ways in zip(found, place.parts(columns.where(here_R)), weights, strict=True):
                for part in PARTS:
                    shared[part][here_R] = ways[part][0] * shared[part][here_R] + ways[part][1] * own[part]
        return found

    def logits(self, columns: Columns) -> list[Floats]:
        """Of each task: the logit (R,) without its bias."""
        return [sum_parts(parts) + self._shift(columns) for parts in self.parts(columns)]

    def _shift(self, columns: Columns) -> Floats:
        if self.preset.domains is None:
            return np.zeros(len(columns))
        return np.asarray(self.preset.domains.shifts)[columns.tokens[self.preset.domains.column]]

    def draw(self, columns: Columns) -> Drawn:
        """Probabilities and labels of one whole block of the log, as `dmoe.synthetic.draw.blocks` gives it."""
        preset = self.preset
        drawn = Drawn(self.parts(columns), {}, {}, {}, None)
        happened: dict[str, NDArray[np.bool_]] = {}
        for task, name in enumerate(preset.tasks):
            # In the order of one task without domains, so that its probabilities are the same to the bit.
            logit_R = self.biases[task] + sum_parts(drawn.parts[task])
            if preset.domains is not None:
                logit_R += self._shift(columns)
            probability_R = cut(sigmoid(logit_R))
            uniform_R, known_R = columns.uniform_R, np.ones(len(columns), dtype=np.bool_)
            if task:
                uniform_R, told_R = task_uniforms(self.seed, columns, task)
                known_R = told_R >= preset.further_tasks[task - 1].unknown
            happened[name] = uniform_R < probability_R
            told = known_R
            parent = self.parent(task)
            if parent is not None:
                above = preset.tasks[parent]
                happened[name] &= happened[above]
                known_R = known_R & drawn.known[above] & happened[above]
            drawn.probabilities[name] = probability_R
            drawn.labels[name] = np.where(told, happened[name], UNKNOWN).astype(np.uint8)
            drawn.known[name] = known_R
        domain_R = columns.tokens[preset.domains.column] if preset.domains is not None else None
        return Drawn(drawn.parts, drawn.probabilities, drawn.labels, drawn.known, domain_R)

    def joint(self, drawn: Drawn, name: str) -> Joint:
        """A task with a parent, together with all tasks above it: known if one is known to be 0, or all to be 1."""
        probability_R = np.ones(len(drawn.labels[name]))
        all_R = np.ones(len(probability_R), dtype=np.bool_)
        none_R = np.zeros(len(probability_R), dtype=np.bool_)
        for link in self.chains[name]:
            probability_R = probability_R * drawn.probabilities[link]
            none_R |= drawn.known[link] & (drawn.labels[link] == 0)
            all_R &= drawn.known[link] & (drawn.labels[link] == 1)
        return Joint(cut(probability_R), all_R, all_R | none_R)


def _place(preset: Preset, seed: int, rows: Sequence[Columns], place: str) -> _Place:
    logits = []
    for task, name in enumerate(preset.tasks):
        # The main task everywhere has the effects that it has alone.
        effects = int(key(seed, f"task/{name}{place}")) if task or place else seed
        logits.append(PlantedLogit.fitted(preset, effects, rows))
    made = _Place(tuple(logits), ())
    if not preset.further_tasks:
        return made
    main, *own = ([logit.parts(columns) for columns in rows] for logit in logits)
    weights = [
        mixture(_concatenated(main), _concatenated(parts), task.relatedness)
        for parts, task in zip(own, preset.further_tasks, strict=True)
    ]
    return _Place(made.logits, tuple(weights))


def _joined(place: _Place, rows: Sequence[Columns]) -> list[Parts]:
    return [_concatenated(blocks) for blocks in zip(*(place.parts(columns) for columns in rows), strict=True)]


def _concatenated(blocks: Sequence[Parts]) -> Parts:
    return {part: np.concatenate([block[part] for block in blocks]) for part in PARTS}


def mixture(first: Mapping[str, Floats], second: Mapping[str, Floats], correlation: float) -> Weights:
    """For each part the a and b of ``a first + b second``: of first's spread, with this correlation with first.

    What `second` has in common with `first` by chance is taken out of it.
    """
    weights = {}
    for part in PARTS:
        first_R, second_R = first[part], second[part]
        if not first_R.any():
            weights[part] = (0.0, 0.0)
            continue
        one_R, two_R = first_R - first_R.mean(), second_R - second_R.mean()
        slope = float(one_R @ two_R / (one_R @ one_R))
        rest = float(np.sqrt(np.square(two_R - slope * one_R).mean() / np.square(one_R).mean()))
        own = float(np.sqrt(1 - correlation**2)) / rest
        weights[part] = (correlation - own * slope, own)
    return weights


def mixed(first: Mapping[str, Floats], second: Mapping[str, Floats], weights: Weights) -> Parts:
    """``a first + b second``, part by part, (R,) each."""
    return {part: weights[part][0] * first[part] + weights[part][1] * second[part] for part in PARTS}
