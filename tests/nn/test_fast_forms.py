"""Layers whose backward pass is written out, against the plain form that autograd differentiates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dmoe.nn.experts import CrossNet
from dmoe.nn.mixture import mix


def plain_layers(net: CrossNet, embeddings_BFD: Tensor) -> list[Tensor]:
    x0 = x = embeddings_BFD.flatten(1)
    layers = []
    for layer in net.layers:
        x = x0 * layer(x) + x
        layers.append(x)
    return layers


@settings(max_examples=40)
@given(depth=st.integers(1, 4), read=st.sets(st.integers(0, 3), min_size=1), rows=st.integers(1, 9))
def test_cross_layers_equal_the_plain_form_whichever_layers_a_loss_reads(depth: int, read: set[int], rows: int) -> None:
    net = CrossNet(3, 2, layers=depth).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    read = {layer % depth for layer in read}
    embeddings = torch.randn(rows, 3, 2, dtype=torch.float64, requires_grad=True)
    leaves = [embeddings, *net.parameters()]
    weights = torch.randn(depth, rows, 6, dtype=torch.float64)
    _, fast = net.forward_with_intermediates(embeddings)
    plain = plain_layers(net, embeddings)
    torch.testing.assert_close(list(fast), plain)
    found, wanted = (
        torch.autograd.grad(
            sum(((layers[one] * weights[one]).sum() for one in read), torch.zeros(())), leaves, allow_unused=True
        )
        for layers in (fast, plain)
    )
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(net(embeddings), fast[-1])


def test_a_gradient_from_outside_is_not_written_to() -> None:
    net = CrossNet(3, 2, layers=2)
    output = net(torch.randn(5, 3, 2, requires_grad=True))
    gradient = torch.randn(5, 6)
    kept = gradient.clone()
    output.backward(gradient)
    assert torch.equal(gradient, kept)


@pytest.mark.parametrize("num_experts", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 7])
def test_mixture_equals_loops(num_experts: int, rows: int) -> None:
    outputs = [torch.randn(rows, 4, dtype=torch.float64, requires_grad=True) for _ in range(num_experts)]
    gate = torch.rand(rows, num_experts, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(rows, 4, dtype=torch.float64)
    mixed = mix(outputs, gate)
    mixed.backward(weights)
    with torch.no_grad():
        assert torch.equal(mix(outputs, gate), mixed)
        for row in range(rows):
            for unit in range(4):
                wanted = sum(gate[row, expert] * outputs[expert][row, unit] for expert in range(num_experts))
                torch.testing.assert_close(mixed[row, unit], wanted)
            for expert, output in enumerate(outputs):
                assert gate.grad is not None
                assert output.grad is not None
                dot = sum(weights[row, unit] * output[row, unit] for unit in range(4))
                torch.testing.assert_close(gate.grad[row, expert], dot)
                torch.testing.assert_close(output.grad[row], gate[row, expert] * weights[row])


def test_under_autocast_the_mixture_keeps_its_gradients() -> None:
    outputs = [torch.rand(6, 4, requires_grad=True) for _ in range(2)]
    gate = torch.rand(6, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = mix([(output @ torch.eye(4)) for output in outputs], gate)
    mixed.float().sum().backward()
    assert gate.grad is not None
    for expert, output in enumerate(outputs):
        torch.testing.assert_close(gate.grad[:, expert], output.sum(dim=1), rtol=0.03, atol=0.03)
