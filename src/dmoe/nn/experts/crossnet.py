"""Cross network, version 2.

Shape suffixes: B rows, F fields, D embedding width, N = F * D.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.mlp import initialise_linear


@register("crossnet")
class CrossNet(Expert):
    """`x_{l+1} = x_0 * (W_l x_l + b_l) + x_l`, x_0 the concatenated embeddings (Wang et al., WWW 2021, eq. 1).

    Args:
        layers: number of cross layers.
        low_rank: width r of `W_l = U_l V_lᵀ` (eq. 2), cheaper if r < N/2; null for a full matrix.

    Intermediates: x_1, …, x_layers; the last one is the output.

    Shape: (B, F, D) to (B, F * D).
    Raises: ValueError naming the argument.
    """

    def __init__(self, num_fields: int, embedding_dim: int, *, layers: int = 3, low_rank: int | None = None) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        self.out_features = num_fields * embedding_dim
        if low_rank is not None:
            arguments.integer("low_rank", low_rank)
        self.layers = nn.ModuleList(
            _square_linear(self.out_features, low_rank) for _ in range(arguments.integer("layers", layers))
        )
        self.full = low_rank is None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: each matrix, U and V as well, Xavier normal; biases zero."""
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                initialise_linear(module)

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x0_BN = embeddings_BFD.flatten(1)
        # Autocast gives products and x_0 different dtypes, which autograd sorts out by itself.
        if self.full and torch.is_grad_enabled() and not torch.is_autocast_enabled(x0_BN.device.type):
            parameters = [parameter for layer in self.layers for parameter in (layer.weight, layer.bias)]
            layers: tuple[Tensor, ...] = _CrossLayers.apply(x0_BN, *parameters)  # type: ignore[no-untyped-call]
            return layers[-1], layers
        x_BN = x0_BN
        crossed = []
        for layer in self.layers:
            x_BN = torch.addcmul(x_BN, x0_BN, layer(x_BN))
            crossed.append(x_BN)
        return x_BN, tuple(crossed)


class _CrossLayers(torch.autograd.Function):
    """All layers with full matrices: x_0 and W_1, b_1, W_2, … to x_1, …, x_layers.

    Autograd would write `∂x_0` of every layer to a tensor of its own and add them up; here they go into one, and
    the sum `∂x_{l+1} + Wᵀ(x_0 * ∂x_{l+1})` is left to the matrix product.
    """

    @staticmethod
    def forward(ctx: Any, x0_BN: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        weights, biases = parameters[::2], parameters[1::2]
        inputs, products = [x0_BN], []
        for weight_NN, bias_N in zip(weights, biases, strict=True):
            products.append(torch.addmm(bias_N, inputs[-1], weight_NN.t()))
            inputs.append(torch.addcmul(inputs[-1], x0_BN, products[-1]))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*weights, *products, *inputs[:-1])
        return tuple(inputs[1:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        depth, saved = len(given), ctx.saved_tensors
        weights, products, inputs = saved[:depth], saved[depth : 2 * depth], saved[2 * depth :]
        x0_BN = inputs[0]
        x0_gradient_BN = torch.zeros_like(x0_BN)
        gradients: list[Tensor | None] = []
        gradient_BN: Tensor | None = None  # of the layer's output, from outside and from the layer above
        for layer in reversed(range(depth)):
            from_outside = given[layer]
            if gradient_BN is None:
                gradient_BN = from_outside.clone() if from_outside is not None else None
            elif from_outside is not None:
                gradient_BN.add_(from_outside)
            if gradient_BN is None:
                gradients += [None, None]
                continue
            x0_gradient_BN.addcmul_(gradient_BN, products[layer])
            product_gradient_BN = gradient_BN * x0_BN
            gradients += [product_gradient_BN.sum(dim=0), product_gradient_BN.t() @ inputs[layer]]
            torch.addmm(gradient_BN, product_gradient_BN, weights[layer], out=gradient_BN)
        if gradient_BN is not None:
            x0_gradient_BN.add_(gradient_BN)
        return x0_gradient_BN, *reversed(gradients)


def _square_linear(width: int, low_rank: int | None) -> nn.Module:
    if low_rank is None:
        return nn.Linear(width, width)
    return nn.Sequential(nn.Linear(width, low_rank, bias=False), nn.Linear(low_rank, width))
