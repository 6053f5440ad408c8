"""Every expert written again from its equation, one scalar at a time, and the comparison with ours.

A row is a list of F lists of D scalars; autograd through the loops gives the gradients.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dmoe.nn.experts import CIN, DNN, FM, NFM, CrossNet, DCNv2, DeepFM, Expert, XDeepFM
from tests.nn.experts.naive_parts import Answer, Row, Scalars, dot, flat, naive_affine, naive_mlp
from tests.nn.experts.naive_zoo import FORMS


def naive_fm(row: Row, output: str) -> Scalars:
    pairs = [(i, j) for i in range(len(row)) for j in range(i + 1, len(row))]
    if output == "pairs":
        return [dot(row[i], row[j]) for i, j in pairs]
    if output == "scalar":
        return [sum((dot(row[i], row[j]) for i, j in pairs), torch.zeros((), dtype=row[0][0].dtype))]
    return [
        sum((row[i][d] * row[j][d] for i, j in pairs), torch.zeros((), dtype=row[0][0].dtype))
        for d in range(len(row[0]))
    ]


def naive_crossnet(expert: CrossNet, row: Row) -> Answer:
    x0 = flat(row)
    x, layers = x0, []
    for layer in expert.layers:
        if isinstance(layer, nn.Sequential):
            inner = naive_affine(layer[0].weight, None, x)
            u = naive_affine(layer[1].weight, layer[1].bias, inner)
        else:
            assert isinstance(layer, nn.Linear)
            u = naive_affine(layer.weight, layer.bias, x)
        x = [x0[n] * u[n] + x[n] for n in range(len(x0))]
        layers.append(x)
    return x, layers


def naive_cin(expert: CIN, row: Row) -> Answer:
    fields, dim = len(row), len(row[0])
    before, pooled = row, []
    for index, layer in enumerate(expert.layers):
        assert isinstance(layer, nn.Linear)
        maps: Row = []
        for h in range(layer.weight.shape[0]):
            one_map = []
            for d in range(dim):
                total = layer.bias[h]
                for i in range(fields):
                    for j in range(len(before)):
                        weight = layer.weight[h, i * len(before) + j]
                        total = total + weight * row[i][d] * before[j][d]
                one_map.append(total if expert.activation is None or total > 0 else total * 0)
            maps.append(one_map)
        last = index == len(expert.layers) - 1
        half = len(maps) // 2
        to_pool = maps[half:] if expert.split_half and not last else maps
        pooled.append([sum(one_map[1:], one_map[0]) for one_map in to_pool])
        before = maps[:half] if expert.split_half else maps
    return [value for layer_maps in pooled for value in layer_maps], pooled


def naive(expert: Expert, row: Row) -> Answer:
    """The output and the intermediates of any of our experts for one row."""
    if isinstance(expert, FM):
        return naive_fm(row, str(expert.output)), []
    if isinstance(expert, NFM):
        return naive_mlp(expert.mlp, naive_fm(row, "bi-interaction"))
    if isinstance(expert, DNN):
        return naive_mlp(expert.mlp, flat(row))
    if isinstance(expert, DeepFM):
        deep, layers = naive_mlp(expert.dnn.mlp, flat(row))
        return naive_fm(row, str(expert.fm.output)) + deep, layers
    if isinstance(expert, CrossNet):
        return naive_crossnet(expert, row)
    if isinstance(expert, DCNv2):
        crossed, layers = naive_crossnet(expert.cross, row)
        if expert.structure == "stacked":
            return naive_mlp(expert.mlp, crossed)[0], layers
        return crossed + naive_mlp(expert.mlp, flat(row))[0], layers
    if isinstance(expert, CIN):
        return naive_cin(expert, row)
    if isinstance(expert, XDeepFM):
        pooled, maps = naive_cin(expert.cin, row)
        deep, layers = naive_mlp(expert.dnn.mlp, flat(row))
        return pooled + deep, maps + layers
    if type(expert) in FORMS:
        return FORMS[type(expert)](expert, row)
    raise AssertionError(f"no naive form of {type(expert).__name__}")


def rows_of(embeddings: Tensor) -> list[Row]:
    return [
        [[embeddings[b, i, d] for d in range(embeddings.shape[2])] for i in range(embeddings.shape[1])]
        for b in range(embeddings.shape[0])
    ]


def naive_tensors(expert: Expert, embeddings: Tensor) -> list[Tensor]:
    """The output and then each intermediate, as tensors (B, width)."""
    answers = [naive(expert, row) for row in rows_of(embeddings)]
    output = torch.stack([torch.stack(answer[0]) for answer in answers])
    depth = len(answers[0][1])
    return [output, *(torch.stack([torch.stack(a[1][layer]) for a in answers]) for layer in range(depth))]


def randomise(expert: Expert) -> None:
    """Biases start at zero, where a lost or doubled bias can not be seen."""
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, dtype=parameter.dtype))


def value_and_gradients(
    tensors: Sequence[Tensor], embeddings: Tensor, expert: Expert, weights: Sequence[Tensor]
) -> list[Tensor]:
    """The tensors, then the gradients of their weighted sum for the embeddings and every parameter."""
    total = torch.stack([(t * w).sum() for t, w in zip(tensors, weights, strict=True)]).sum()
    gradients = torch.autograd.grad(total, [embeddings, *expert.parameters()], allow_unused=True)
    return [t.detach() for t in tensors] + [torch.zeros(()) if gradient is None else gradient for gradient in gradients]


def assert_close(ours: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Equal within `tolerance` of each tensor's own largest value."""
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        scale = max(1e-30, float(other.abs().max()) if other.numel() else 0.0)
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=tolerance * scale)


def assert_agrees(build: Callable[[], Expert], *, rows: int = 3) -> None:
    """`build()` agrees with its naive form, value and gradient, in float64 and in float32."""
    expert = build().double().eval()
    randomise(expert)
    fields, dim = int(expert.num_fields), int(expert.embedding_dim)
    embeddings = torch.randn(rows, fields, dim, dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        expert.to(dtype)
        single = embeddings.to(dtype).requires_grad_()
        output, inner = expert.forward_with_intermediates(single)
        assert torch.equal(expert(single), output)
        weights = [torch.randn(t.shape, dtype=dtype) for t in (output, *inner)]
        ours = value_and_gradients([output, *inner], single, expert, weights)

        # The reference is always float64, of the same (possibly rounded) weights and embeddings.
        expert.double()
        double = single.detach().double().requires_grad_()
        reference = naive_tensors(expert, double)
        expected = value_and_gradients(reference, double, expert, [w.double() for w in weights])
        assert_close(ours, expected, tolerance)
