"""Fully connected layers and the initialisation that all of dmoe's dense layers share.

Shape suffixes: B rows, I input width, H width of a hidden layer.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from dmoe.decorrelation.checks import global_rows
from dmoe.distributed.sums import sum_over_ranks
from dmoe.nn import arguments


def initialise_linear(linear: nn.Linear) -> None:
    """Xavier-normal weight (std sqrt(2 / (fan_in + fan_out))) and zero bias, in place.

    That is what FuxiCTR, the benchmark lineage of the paper, does to every Linear and, from its version 2.0
    on, to every Conv1d (`fuxictr/pytorch/models/rank_model.py`, `reset_parameters`).
    """
    nn.init.xavier_normal_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation which uses the running moments for a batch of fewer than two rows.

    The variance of one row is undefined; the last, ragged batch of an epoch may have one. With `process_group` the
    batch is that of all ranks.
    """

    process_group: dist.ProcessGroup | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.process_group is not None:
            return self._of_all_ranks(input, self.process_group)
        if self.training and input.shape[0] < 2:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)

    def _of_all_ranks(self, input_BD: Tensor, group: dist.ProcessGroup) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        dtype = torch.promote_types(input_BD.dtype, torch.float32)
        wide_BD = input_BD.to(dtype)
        rows = global_rows(len(input_BD), group, input_BD.device)
        sums_D = sum_over_ranks(wide_BD.sum(0), group)
        if rows < 2:
            mean_D, variance_D = self.running_mean.to(dtype), self.running_var.to(dtype)
        else:
            mean_D = sums_D / rows
            variance_D = sum_over_ranks((wide_BD - mean_D).square().sum(0), group) / rows
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean_D.to(self.running_mean.dtype), self.momentum)
                unbiased_D = variance_D * (rows / (rows - 1))
                self.running_var.lerp_(unbiased_D.to(self.running_var.dtype), self.momentum)
        normalised_BD = (wide_BD - mean_D) * (variance_D + self.eps).rsqrt()
        return (normalised_BD * self.weight + self.bias).to(input_BD.dtype)


class MLP(nn.Module):
    """Hidden layers of Linear, [batch normalisation], ReLU, [dropout], in this order.

    Args:
        in_features: width I of the input.
        hidden_units: width of each layer; empty for the identity.
        dropout: share of units dropped after each ReLU while training, at least 0 and below 1.
        batch_norm: normalise before each ReLU.

    Shape: (B, I) to (B, ``out_features``), the width of the last layer.
    Raises: ValueError naming the argument.
    """

    def __init__(
        self,
        in_features: int,
        hidden_units: Sequence[int],
        *,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        arguments.integer("in_features", in_features)
        hidden = arguments.widths("hidden_units", hidden_units, empty=True)
        self.out_features = hidden[-1] if hidden else in_features
        self.linears = nn.ModuleList(
            nn.Linear(width, next_width) for width, next_width in pairwise((in_features, *hidden))
        )
        normalised = hidden if arguments.boolean("batch_norm", batch_norm) else ()
        self.norms = nn.ModuleList(BatchNorm(width) for width in normalised)
        self.dropout = nn.Dropout(arguments.dropout_rate("dropout", dropout))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; see `initialise_linear`."""
        for linear in self.linears:
            assert isinstance(linear, nn.Linear)
            initialise_linear(linear)
        for norm in self.norms:
            assert isinstance(norm, BatchNorm)
            norm.reset_parameters()

    def forward(self, input_BI: Tensor) -> Tensor:
        return self.forward_with_layers(input_BI)[0]

    def forward_with_layers(self, input_BI: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output, and every hidden layer (B, H) after its ReLU and before its dropout."""
        layers = []
        output_BH = input_BI
        for index, linear in enumerate(self.linears):
            output_BH = linear(output_BH)
            if self.norms:
                output_BH = self.norms[index](output_BH)
            output_BH = functional.relu(output_BH)
            layers.append(output_BH)
            output_BH = self.dropout(output_BH)
        return output_BH, tuple(layers)
