"""The wider set of experts written again from their equations, one scalar at a time; see `naive.py`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dmoe.nn.experts import (
    DHEN,
    FFM,
    GDCN,
    IPNN,
    LR,
    ONN,
    OPNN,
    AutoInt,
    CrossNetMix,
    CrossNetV1,
    DCNv3,
    Expert,
    FiBiNET,
    FinalMLP,
    FinalNet,
    FmFM,
    FwFM,
    GwPFM,
    Wukong,
)
from dmoe.nn.experts.autoint import FieldAttention
from tests.nn.experts.naive_parts import (
    Answer,
    Row,
    Scalars,
    dot,
    flat,
    naive_affine,
    naive_mlp,
    pairs_of,
    relu,
    total,
)


def times(left: Scalars, right: Scalars) -> Scalars:
    return [a * b for a, b in zip(left, right, strict=True)]


def added(left: Scalars, right: Scalars) -> Scalars:
    return [a + b for a, b in zip(left, right, strict=True)]


def summed(vectors: Sequence[Scalars]) -> Scalars:
    return [total([vector[d] for vector in vectors]) for d in range(len(vectors[0]))]


def sigmoid(value: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-value))


def softmax(values: Scalars) -> Scalars:
    powers = [torch.exp(value) for value in values]
    return [power / total(powers) for power in powers]


def layer_norm(norm: Any, values: Scalars) -> Scalars:
    mean = total(values) / len(values)
    variance = total([(value - mean) ** 2 for value in values]) / len(values)
    return [
        (value - mean) / torch.sqrt(variance + norm.eps) * norm.weight[i] + norm.bias[i]
        for i, value in enumerate(values)
    ]


def over_vectors(linear: Any, vectors: Row) -> Row:
    """A matrix (U, V) applied along the axis of vectors."""
    return [
        summed([[linear.weight[u, v] * value for value in vector] for v, vector in enumerate(vectors)])
        for u in range(linear.weight.shape[0])
    ]


def form_with(left: Scalars, matrix: Tensor, right: Scalars) -> Scalars:
    """`(Wᵀ left) * right`, W a matrix, a diagonal or a number."""
    dims = range(len(left))
    if matrix.dim() == 2:
        return [total([left[d] * matrix[d, e] for d in dims]) * right[e] for e in dims]
    return [left[d] * (matrix[d] if matrix.dim() == 1 else matrix) * right[d] for d in dims]


def weighted_pairs(weight: Tensor, row: Row) -> Row:
    return [form_with(row[i], weight[p], row[j]) for p, (i, j) in enumerate(pairs_of(row))]


def pair_output(expert: Any, vectors: Row) -> Answer:
    return ([total(v) for v in vectors] if expert.output == "pairs" else summed(vectors)), []


def parts(vector: Scalars, count: int) -> Row:
    width = len(vector) // count
    return [vector[part * width : (part + 1) * width] for part in range(count)]


def naive_ffm(expert: FFM, row: Row) -> Answer:
    vectors = []
    for i, j in pairs_of(row):
        mine, theirs = parts(row[i], len(row) - 1), parts(row[j], len(row) - 1)
        # The vectors of a field are for the other fields in order, its own left out.
        vectors.append(times(mine[j - 1], theirs[i]))
    return pair_output(expert, vectors)


def naive_onn(expert: ONN, row: Row) -> Answer:
    split = [parts(vector, len(row)) for vector in row]
    raw = [value for i in range(len(row)) for value in split[i][i]]
    return naive_mlp(expert.mlp, raw + [dot(split[i][j], split[j][i]) for i, j in pairs_of(row)])


def naive_gwpfm(expert: GwPFM, row: Row) -> Answer:
    group = expert.group_F.tolist()
    count = max(group) + 1
    number = {}
    for p in range(count):
        for q in range(p, count):
            number[p, q] = number[q, p] = len({*number.values()})
    vectors = []
    for i, j in pairs_of(row):
        weight = expert.weight[number[group[i], group[j]]]
        product = times(parts(row[i], count)[group[j]], parts(row[j], count)[group[i]])
        vectors.append([weight * value for value in product])
    return summed(vectors), []


def naive_crossnet_v1(expert: CrossNetV1, row: Row) -> Answer:
    x0 = x = flat(row)
    layers = []
    for weight, bias in zip(expert.weight, expert.bias, strict=True):
        projected = total([weight[n] * x[n] for n in range(len(x))])
        x = [x0[n] * projected + bias[n] + x[n] for n in range(len(x))]
        layers.append(x)
    return x, layers


def naive_crossnet_mix(expert: CrossNetMix, row: Row) -> Answer:
    x0 = x = flat(row)
    layers = []
    for down, inner, up, bias in zip(expert.down, expert.inner, expert.up, expert.bias, strict=True):
        gate = softmax(naive_affine(expert.gate.weight, None, x))
        step: Scalars = [value * 0 for value in x]
        for e, weight in enumerate(gate):
            low = [torch.tanh(value) for value in naive_affine(down[e].t(), None, x)]
            low = [torch.tanh(value) for value in naive_affine(inner[e].t(), None, low)]
            high = added(naive_affine(up[e].t(), None, low), list(bias))
            step = added(step, [weight * value for value in times(x0, high)])
        x = added(x, step)
        layers.append(x)
    return x, layers


def naive_gdcn(expert: GDCN, row: Row) -> Answer:
    x0 = x = flat(row)
    layers = []
    for layer, gate in zip(expert.layers, expert.gates, strict=True):
        inner = naive_affine(layer.weight, layer.bias, x)
        gates = [sigmoid(value) for value in naive_affine(gate.weight, None, x)]
        x = added(times(times(x0, inner), gates), x)
        layers.append(x)
    if expert.structure == "cross":
        return x, layers
    if expert.structure == "stacked":
        return naive_mlp(expert.mlp, x)[0], layers
    return x + naive_mlp(expert.mlp, x0)[0], layers


def naive_dcnv3(expert: DCNv3, row: Row) -> Answer:
    half = len(row[0]) // 2
    x0 = [value for vector in row for value in vector[:half]] + [value for vector in row for value in vector[half:]]
    output, layers = [], []
    for network in expert.networks:
        x = x0
        for linear, bias, norm in zip(network.linears, network.biases, network.norms, strict=True):
            inner = naive_affine(linear.weight, None, x)
            normed = layer_norm(norm, inner) if hasattr(norm, "eps") else inner
            weight = added(inner + times(inner, relu(normed)), list(bias))
            x = added(times(x if network.exponential else x0, weight), x)
            layers.append(x)
        output += x
    return output, layers


def naive_attention(layer: FieldAttention, row: Row) -> Row:
    query, key, value = (
        [parts(naive_affine(linear.weight, None, x), layer.heads) for x in row]
        for linear in (layer.query, layer.key, layer.value)
    )
    outputs = []
    for i, x in enumerate(row):
        joined: Scalars = []
        for h in range(layer.heads):
            weights = softmax([dot(query[i][h], key[j][h]) * layer.factor for j in range(len(row))])
            joined += summed([[weights[j] * v for v in value[j][h]] for j in range(len(row))])
        if layer.residual:
            joined = added(joined, naive_affine(layer.shortcut.weight, None, x) if len(joined) != len(x) else x)
        outputs.append(relu(layer_norm(layer.norm, joined) if hasattr(layer.norm, "eps") else joined))
    return outputs


def stacked(layers: Any, row: Row, step: Callable[[Any, Row], Row]) -> Answer:
    flattened = []
    for layer in layers:
        row = step(layer, row)
        flattened.append(flat(row))
    return flattened[-1], flattened


def naive_wukong_layer(layer: Any, row: Row) -> Row:
    # (X Xᵀ) Y in the order of the equation, whichever way the layer takes.
    gram = [[dot(a, b) for b in row] for a in row]
    products = [value for line in gram for value in naive_affine(layer.project.weight, None, line)]
    hidden = naive_mlp(layer.mlp, layer_norm(layer.fm_norm, products))[0]
    flat_fm = naive_affine(layer.expand.weight, layer.expand.bias, hidden)
    vectors = parts(flat_fm, len(flat_fm) // len(row[0])) + over_vectors(layer.compress, row)
    residual = over_vectors(layer.shortcut, row) if hasattr(layer.shortcut, "weight") else row
    return [layer_norm(layer.norm, added(a, b)) for a, b in zip(vectors, residual, strict=True)]


def naive_dhen_layer(layer: Any, row: Row) -> Row:
    outputs = []
    for module in layer.interactions:
        kind = getattr(module, "interaction", "dot")
        if kind == "dot":
            hidden = naive_mlp(module.mlp, [dot(row[i], row[j]) for i, j in pairs_of(row)])[0]
            wide = naive_affine(module.expand.weight, module.expand.bias, hidden)
            outputs.append(parts(wide, len(wide) // len(row[0])))
            continue
        inner = row
        if kind == "attention":
            inner = naive_attention(module.inner, row)
        if kind == "cross":
            x = flat(row)
            inner = parts(times(x, naive_affine(module.inner.weight, module.inner.bias, x)), len(row))
        outputs.append(over_vectors(module.compress, inner))
    if layer.concatenated:
        vectors = [vector for output in outputs for vector in output]
    else:
        vectors = [summed([output[u] for output in outputs]) for u in range(len(outputs[0]))]
    residual = over_vectors(layer.shortcut, row) if hasattr(layer.shortcut, "weight") else row
    return [layer_norm(layer.norm, added(a, b)) for a, b in zip(vectors, residual, strict=True)]


def naive_fibinet(expert: FiBiNET, row: Row) -> Answer:
    means = [total(vector) / len(vector) for vector in row]
    weights = relu(
        naive_affine(expert.senet.excite.weight, None, relu(naive_affine(expert.senet.squeeze.weight, None, means)))
    )
    raw: Scalars = []
    for module, vectors in (
        (expert.plain, row),
        (expert.weighted, [[weights[i] * value for value in vector] for i, vector in enumerate(row)]),
    ):
        for p, (i, j) in enumerate(pairs_of(row)):
            if module.form == "field-interaction":
                matrix = module.pairs.weight[p]
            else:
                matrix = module.weight[i if module.form == "field-each" else 0]
            raw += form_with(vectors[i], matrix, vectors[j])
    return naive_mlp(expert.mlp, raw)


def naive_finalmlp(expert: FinalMLP, row: Row) -> Answer:
    outputs = []
    for s, stream in enumerate(expert.streams):
        x = flat(row)
        if len(expert.gates):
            gate = expert.gates[s]
            read = gate.fields_C.tolist()
            context = flat([row[i] for i in read]) if read else list(gate.context)
            scores = naive_affine(gate.gate.weight, gate.gate.bias, naive_mlp(gate.mlp, context)[0])
            x = [value * 2 * sigmoid(score) for value, score in zip(x, scores, strict=True)]
        outputs.append(naive_mlp(stream, x)[0])
    terms = []
    for k in range(expert.heads):
        first, second = (parts(output, expert.heads)[k] for output in outputs)
        terms.append(total(form_with_rectangle(first, expert.bilinear[k], second)))
    return outputs[0] + outputs[1] + terms, []


def form_with_rectangle(left: Scalars, matrix: Tensor, right: Scalars) -> Scalars:
    return [left[a] * matrix[a, b] * right[b] for a in range(len(left)) for b in range(len(right))]


def naive_finalnet(expert: FinalNet, row: Row) -> Answer:
    first = flat(row)
    if expert.gate is not None:
        for i, vector in enumerate(row):
            for d in range(len(vector)):
                gate = naive_affine(expert.gate.weight, expert.gate.bias, [other[d] for other in row])[i]
                first = [*first, vector[d] * gate]
    output, layers = [], []
    for stream, start in zip(expert.streams, (first, flat(row)), strict=False):
        x = start
        for linear in stream.linears:
            u, v = parts(naive_affine(linear.weight, linear.bias, x), 2)
            x = u + times(u, v) if stream.residual == "concat" else added(u, times(u, v))
            x = relu(x) if stream.activation else x
            layers.append(x)
        output += x
    return output, layers


def naive_pnn(expert: Any, row: Row) -> Answer:
    if isinstance(expert, IPNN):
        products = [dot(row[i], row[j]) for i, j in pairs_of(row)]
    else:
        products = [total(vector) for vector in weighted_pairs(expert.pairs.weight, row)]
    return naive_mlp(expert.mlp, flat(row) + products)


FORMS: dict[type[Expert], Callable[[Any, Row], Answer]] = {
    LR: lambda _, row: (summed(row), []),
    IPNN: naive_pnn,
    OPNN: naive_pnn,
    FwFM: lambda expert, row: pair_output(expert, weighted_pairs(expert.pairs.weight, row)),
    FmFM: lambda expert, row: pair_output(expert, weighted_pairs(expert.pairs.weight, row)),
    FFM: naive_ffm,
    ONN: naive_onn,
    GwPFM: naive_gwpfm,
    CrossNetV1: naive_crossnet_v1,
    CrossNetMix: naive_crossnet_mix,
    GDCN: naive_gdcn,
    DCNv3: naive_dcnv3,
    AutoInt: lambda expert, row: stacked(expert.layers, row, naive_attention),
    Wukong: lambda expert, row: stacked(expert.layers, row, naive_wukong_layer),
    DHEN: lambda expert, row: stacked(expert.layers, row, naive_dhen_layer),
    FiBiNET: naive_fibinet,
    FinalMLP: naive_finalmlp,
    FinalNet: naive_finalnet,
}
