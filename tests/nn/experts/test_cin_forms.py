"""The inner-product form of CIN against the plain one, over generated shapes and options."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from dmoe.nn.experts import CIN
from dmoe.nn.experts.pairs import PairProducts
from tests.nn.experts.naive import assert_close, randomise, value_and_gradients


def plain_cin(expert: CIN, embeddings_BFD: Tensor) -> list[Tensor]:
    """The pooled maps of each layer, every product x_i * X_j built and convolved with kernel 1."""
    maps, pooled = embeddings_BFD, []
    for index, layer in enumerate(expert.layers):
        assert isinstance(layer, nn.Linear)
        products = torch.einsum("bid,bjd->bijd", embeddings_BFD, maps).flatten(1, 2)
        maps = functional.conv1d(products, layer.weight.unsqueeze(2), layer.bias)
        if expert.activation == "relu":
            maps = maps.relu()
        to_pool = maps
        if expert.split_half and index < len(expert.layers) - 1:
            half = maps.shape[1] // 2
            maps, to_pool = maps[:, :half], maps[:, half:]
        pooled.append(to_pool.sum(dim=2))
    return pooled


@settings(max_examples=150)
@given(
    rows=st.integers(1, 4),
    fields=st.integers(1, 6),
    dim=st.integers(1, 5),
    units=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    activation=st.sampled_from([None, "relu"]),
    split_half=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_fast_form_equals_plain_form(
    rows: int, fields: int, dim: int, units: list[int], activation: None, split_half: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    expert = CIN(fields, dim, units=units, activation=activation, split_half=split_half).double()
    randomise(expert)
    embeddings = torch.randn(rows, fields, dim, dtype=torch.float64, requires_grad=True)
    output, pooled = expert.forward_with_intermediates(embeddings)
    assert torch.equal(output, torch.cat(pooled, dim=1))
    assert output.shape == (rows, expert.out_features)

    weights = [torch.randn_like(layer) for layer in pooled]
    ours = value_and_gradients(pooled, embeddings, expert, weights)
    plain = value_and_gradients(plain_cin(expert, embeddings), embeddings, expert, weights)
    assert_close(ours, plain, 1e-10)


def test_bias_counts_once_for_each_dimension() -> None:
    expert = CIN(3, 5, units=[2])
    with torch.no_grad():
        expert.layers[0].bias.copy_(torch.tensor([1.0, -2.0]))
    assert expert(torch.zeros(1, 3, 5)).tolist() == [[5.0, -10.0]]


@pytest.mark.parametrize("units", [[276], [16, 16]])
def test_float32_at_the_sizes_of_the_paper(units: list[int]) -> None:
    fields, dim = (24, 16) if units == [276] else (39, 10)
    expert = CIN(fields, dim, units=units)
    embeddings = torch.randn(16, fields, dim, requires_grad=True)
    pooled = list(expert.intermediates(embeddings))
    weights = [torch.randn_like(layer) for layer in pooled]
    ours = value_and_gradients(pooled, embeddings, expert, weights)
    expert.double()
    double = embeddings.detach().double().requires_grad_()
    plain = value_and_gradients(plain_cin(expert, double), double, expert, [w.double() for w in weights])
    assert_close(ours, plain, 1e-5)


def test_no_tensor_over_all_products_and_dimensions_is_built() -> None:
    """[276] on 24 fields saves, a row, the F(F+1)/2 products and the embeddings; the plain form F * F * D."""
    rows, fields, dim = 7, 24, 16
    expert = CIN(fields, dim, units=[276])
    saved: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        expert(torch.randn(rows, fields, dim, requires_grad=True))
    per_row = [shape[1:].numel() for shape in saved if shape[0] == rows]
    assert sorted(per_row) == [fields * (fields + 1) // 2, fields * dim]


@pytest.mark.parametrize("diagonal", [False, True])
def test_pair_products_are_in_lexicographic_order(diagonal: bool) -> None:
    embeddings = torch.randn(4, 5, 3)
    pairs = [(i, j) for i in range(5) for j in range(i if diagonal else i + 1, 5)]
    expected = torch.stack([(embeddings[:, i] * embeddings[:, j]).sum(1) for i, j in pairs], dim=1)
    products = PairProducts(5, diagonal=diagonal)
    assert products.num_pairs == len(pairs)
    torch.testing.assert_close(products(embeddings), expected)
