"""The MLP against scalar loops, its normalisation against the definition, its dropout against its layers."""

import pytest
import torch
from torch import Tensor, nn

from dmoe.nn.mlp import MLP, initialise_linear


def randomise(mlp: MLP) -> None:
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=parameter.dtype))


def loops(mlp: MLP, values: Tensor, norm: bool, epsilon: float = 1e-5) -> list[list[list[Tensor]]]:
    """Every layer of every row, one scalar at a time; batch moments with the biased variance."""
    rows = [[values[b, i] for i in range(values.shape[1])] for b in range(values.shape[0])]
    layers = []
    for index, linear in enumerate(mlp.linears):
        assert isinstance(linear, nn.Linear)
        width = linear.out_features
        rows = [
            [sum((linear.weight[h, i] * v for i, v in enumerate(row)), linear.bias[h]) for h in range(width)]
            for row in rows
        ]
        if norm:
            scale, shift = mlp.norms[index].weight, mlp.norms[index].bias
            for h in range(width):
                mean = sum(row[h] for row in rows) / len(rows)
                variance = sum((row[h] - mean) ** 2 for row in rows) / len(rows)
                for row in rows:
                    row[h] = (row[h] - mean) / (variance + epsilon).sqrt() * scale[h] + shift[h]
        rows = [[value if value > 0 else value * 0 for value in row] for row in rows]
        layers.append(rows)
    return layers


@pytest.mark.parametrize("batch_norm", [False, True])
def test_layers_and_gradients_equal_scalar_loops(batch_norm: bool) -> None:
    mlp = MLP(3, [4, 2], batch_norm=batch_norm).double()
    randomise(mlp)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    output, layers = mlp.forward_with_layers(x)
    assert mlp.out_features == 2
    assert torch.equal(output, layers[-1])
    expected = [torch.stack([torch.stack(row) for row in layer]) for layer in loops(mlp, x, batch_norm)]
    for ours, wanted in zip(layers, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(output)
    leaves = [x, *mlp.parameters()]
    for ours, wanted in zip(
        torch.autograd.grad((output * weight).sum(), leaves),
        torch.autograd.grad((expected[-1] * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


def test_normalisation_of_one_row_uses_the_running_moments() -> None:
    mlp = MLP(3, [4], batch_norm=True)
    randomise(mlp)
    mlp(torch.randn(32, 3))
    before = {name: value.clone() for name, value in mlp.named_buffers()}
    for rows in (0, 1):
        x = torch.randn(rows, 3)
        trained = mlp.train()(x)
        assert torch.equal(trained, mlp.eval()(x))
    mlp.train()
    for name, value in mlp.named_buffers():
        assert torch.equal(before[name], value), name


def test_dropout_acts_after_relu_on_the_output_of_each_layer_alone() -> None:
    mlp = MLP(6, [400], dropout=0.25)
    x = torch.randn(50, 6)
    output, (layer,) = mlp.forward_with_layers(x)
    kept = output != 0
    torch.testing.assert_close(output[kept], layer[kept] / 0.75)
    assert abs(float(kept.sum() / (layer != 0).sum()) - 0.75) < 0.02
    mlp.eval()
    assert torch.equal(mlp(x), layer)


def test_no_hidden_layer_is_the_identity() -> None:
    mlp = MLP(3, [])
    x = torch.randn(2, 3)
    assert mlp.out_features == 3
    assert mlp.forward_with_layers(x) == (x, ())


def test_initialise_linear() -> None:
    linear = nn.Linear(300, 500)
    initialise_linear(linear)
    assert not linear.bias.any()
    assert float(linear.weight.detach().std()) == pytest.approx((2 / 800) ** 0.5, rel=0.02)
    without_bias = nn.Linear(3, 5, bias=False)
    initialise_linear(without_bias)
    assert without_bias.bias is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0, "hidden_units": [3]}, "in_features must be an integer of at least 1, got 0"),
        ({"in_features": 3, "hidden_units": [0]}, r"hidden_units\[0\] must be an integer of at least 1, got 0"),
        ({"in_features": 3, "hidden_units": [3], "dropout": -0.1}, "dropout must be a number"),
        ({"in_features": 3, "hidden_units": [3], "batch_norm": None}, "batch_norm must be true or false"),
    ],
)
def test_bad_argument_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(**arguments)  # type: ignore[arg-type]
