"""What a model gives for rows under the names that predictions have.

Shape suffix: B rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dmoe.nn.model import DMoE
from dmoe.outputs import TaskOutputs


def served_logits(model: DMoE, logits: Sequence[Tensor]) -> list[Tensor]:
    """The logit (B,) of each task as scoring gives it."""
    return [model.calibration_of(number).served(logit_B) for number, logit_B in enumerate(logits)]


def served_probabilities(logits: Sequence[Tensor], tasks: Sequence[TaskOutputs]) -> dict[str, Tensor]:
    """Every probability by its name, in the shape of the served logits; a joint one is the product along its chain."""
    own = [torch.sigmoid(logit) for logit in logits]
    found = {}
    for number, task in enumerate(tasks):
        found[task.probability] = own[number]
        if task.joint is not None:
            joint = own[task.chain[0]]
            for link in task.chain[1:]:
                joint = joint * own[link]
            found[task.joint] = joint
    return found
