"""Names of what a model gives for a row: the same in predictions, in the ONNX graph, its manifest and the server.

R rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmoe.schema import Schema

Floats: TypeAlias = NDArray[np.float32]
Probabilities: TypeAlias = Floats | dict[str, Floats]

# Of a model of one label; with several each is followed by a dot and the label.
PROBABILITY, LOGIT, GATE_WEIGHTS = KINDS = ("probability", "logit", "gate_weights")


@dataclass(frozen=True, slots=True)
class TaskOutputs:
    """The outputs of one label: (R, 1), (R, 1), and (R, experts).

    `probability` is that of the label, of a conditional one given that those above it are 1. `joint` is the
    probability that it and all above it are 1: the product along `chain`, the numbers of these tasks.
    """

    task: str
    probability: str
    logit: str
    gate_weights: str
    chain: tuple[int, ...]
    joint: str | None = None

    @property
    def probabilities(self) -> tuple[str, ...]:
        return (self.probability,) if self.joint is None else (self.probability, self.joint)


def task_outputs(schema: Schema) -> tuple[TaskOutputs, ...]:
    """Those of all labels, the main one first."""
    tasks = schema.tasks
    if len(tasks) == 1:
        return (TaskOutputs(schema.label, *KINDS, chain=(0,)),)
    found = []
    for task in tasks:
        chain = schema.chain(task.name)
        joint = "+".join(tasks[number].name for number in chain) if len(chain) > 1 else None
        found.append(
            TaskOutputs(
                task.name,
                probability=f"{PROBABILITY}.{task.name}",
                logit=f"{LOGIT}.{task.name}",
                gate_weights=f"{GATE_WEIGHTS}.{task.name}",
                chain=chain,
                joint=None if joint is None else f"{PROBABILITY}.{joint}",
            )
        )
    return tuple(found)


def all_outputs(tasks: Sequence[TaskOutputs]) -> tuple[str, ...]:
    """Every output of a model, kind by kind."""
    return (
        *probabilities(tasks),
        *(task.logit for task in tasks),
        *(task.gate_weights for task in tasks),
    )


def probabilities(tasks: Sequence[TaskOutputs]) -> tuple[str, ...]:
    """The outputs that are probabilities, the main label's first."""
    return tuple(name for task in tasks for name in task.probabilities)


def short(output: str) -> str:
    """What of a name tells it from others of its kind: `click`, or `click+watch`; all of it with one label."""
    return output.partition(".")[2] or output


def whole(parts: Sequence[Mapping[str, Floats]], tasks: Sequence[TaskOutputs]) -> Probabilities:
    """Consecutive rows' probabilities as `predict_proba` gives them: (R,), of several labels by `short` names."""
    found = {
        name: np.concatenate([part[name] for part in parts]) if parts else np.empty(0, dtype=np.float32)
        for name in probabilities(tasks)
    }
    return found[PROBABILITY] if list(found) == [PROBABILITY] else {short(name): one for name, one in found.items()}
