"""Each expert, with each option, against scalar loops written from its equation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dmoe.nn.experts import EXPERTS, NFM, CrossNet, Expert, expert_class
from tests.nn.experts.naive import assert_agrees, randomise
from tests.nn.experts.naive_parts import naive_mlp

HIDDEN = {"hidden_units": [4, 3]}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("fm", {}),
    ("fm", {"output": "pairs"}),
    ("fm", {"output": "scalar"}),
    ("nfm", HIDDEN),
    ("dnn", HIDDEN),
    ("dnn", {"hidden_units": [5]}),
    ("dnn", {"hidden_units": []}),
    ("deepfm", HIDDEN),
    ("deepfm", {**HIDDEN, "output": "pairs"}),
    ("deepfm", {**HIDDEN, "output": "scalar"}),
    ("crossnet", {}),
    ("crossnet", {"layers": 1}),
    ("crossnet", {"layers": 2, "low_rank": 2}),
    ("dcnv2", HIDDEN),
    ("dcnv2", {**HIDDEN, "structure": "stacked", "layers": 2}),
    ("dcnv2", {**HIDDEN, "low_rank": 1}),
    ("cin", {"units": [5]}),
    ("cin", {"units": [2, 3]}),
    ("cin", {"units": [5, 2, 4]}),
    ("cin", {"units": [5, 3], "split_half": True}),
    ("cin", {"units": [4, 3, 2], "activation": "relu"}),
    ("cin", {"units": [3, 4], "activation": "relu", "split_half": True}),
    ("xdeepfm", {**HIDDEN, "units": [3]}),
    ("xdeepfm", {**HIDDEN, "units": [4, 2], "activation": "relu", "split_half": True}),
    ("lr", {}),
    ("ipnn", HIDDEN),
    ("ipnn", {"output": "raw"}),
    ("opnn", HIDDEN),
    ("opnn", {**HIDDEN, "kernel": "vector"}),
    ("opnn", {"output": "raw", "kernel": "number"}),
    ("fwfm", {}),
    ("fwfm", {"output": "bi-interaction"}),
    ("fmfm", {}),
    ("fmfm", {"output": "bi-interaction", "weights": "vector"}),
    ("ffm", {}),
    ("ffm", {"output": "bi-interaction"}),
    ("onn", HIDDEN),
    ("onn", {"output": "raw"}),
    ("gwpfm", {}),
    ("gwpfm", {"groups": 3}),
    ("gwpfm", {"groups": 1}),
    ("flatdnn", {"layers": 2, "units": 3}),
    ("crossnet-v1", {}),
    ("crossnet-v1", {"layers": 1}),
    ("crossnet-mix", {"low_rank": 2, "experts": 3}),
    ("crossnet-mix", {"layers": 1, "low_rank": 3, "experts": 2}),
    ("gdcn", HIDDEN),
    ("gdcn", {"structure": "cross", "layers": 1}),
    ("gdcn", {**HIDDEN, "structure": "stacked", "layers": 2}),
    ("dcnv3", {"exponential_layers": 2, "linear_layers": 1}),
    ("dcnv3", {"exponential_layers": 0, "linear_layers": 2, "layer_norm": False}),
    ("autoint", {"layers": 2, "units": 4}),
    ("autoint", {"layers": 1, "units": 5, "heads": 1, "scale": True, "layer_norm": True}),
    ("autoint", {"layers": 1, "units": 4, "heads": 4, "residual": False, "scale": True}),
    ("wukong", {"layers": 2, "fm_vectors": 2, "linear_vectors": 1, "rank": 2, "hidden_units": [3]}),
    ("wukong", {"layers": 1, "fm_vectors": 1, "linear_vectors": 3, "rank": 1, "hidden_units": [3, 2]}),
    ("wukong", {"layers": 1, "fm_vectors": 2, "linear_vectors": 1, "rank": 5, "hidden_units": [2]}),
    ("dhen", {"layers": 2, "vectors": 2, "hidden_units": [3]}),
    ("dhen", {"layers": 1, "interactions": ["attention", "dot"], "vectors": 3, "ensemble": "sum", "hidden_units": [4]}),
    ("fibinet", HIDDEN),
    ("fibinet", {**HIDDEN, "bilinear": "field-each", "reduction": 1}),
    ("fibinet", {"bilinear": "field-all", "output": "raw"}),
    ("finalmlp", {**HIDDEN, "hidden_units_2": [5]}),
    ("finalmlp", {"hidden_units": [4], "hidden_units_2": [6], "heads": 2, "gate_units": [3], "context": [2, 0]}),
    ("finalmlp", {"hidden_units": [2], "hidden_units_2": [3], "gate_units": [], "context_2": [1]}),
    ("finalnet", {"hidden_units": [4, 6], "hidden_units_2": [2]}),
    ("finalnet", {"hidden_units": [3], "hidden_units_2": [], "residual": "sum", "field_gate": True}),
    ("finalnet", {"hidden_units": [4], "hidden_units_2": [2], "field_gate": True, "activation": "relu"}),
]

# Experts that keep several vectors in one row of the table need a width that they can split.
PARTS: dict[str, Callable[[int], int]] = {
    "ffm": lambda fields: fields - 1,
    "onn": lambda fields: fields,
    "gwpfm": lambda _: 6,
    "dcnv3": lambda _: 2,
    # Layer normalisation of two values gives signs, whose gradient is nothing but rounding.
    "wukong": lambda _: 4,
    "dhen": lambda _: 4,
}


def width(kind: str, fields: int, dim: int) -> int:
    """The next width from `dim` on that the expert can split."""
    parts = PARTS[kind](fields) if kind in PARTS else 1
    return -(-dim // parts) * parts


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: str(value))
def test_expert_equals_scalar_loops(kind: str, options: dict[str, Any]) -> None:
    assert_agrees(lambda: expert_class(kind)(3, width(kind, 3, 2), **options))


@pytest.mark.parametrize("kind", ["dnn", "crossnet", "cin"])
def test_one_field_is_enough_where_no_pair_is_needed(kind: str) -> None:
    options = {"dnn": HIDDEN, "cin": {"units": [3, 2]}}.get(kind, {})
    assert_agrees(lambda: expert_class(kind)(1, 3, **options))


def test_every_built_in_expert_is_compared() -> None:
    built_in = {kind for kind, cls in EXPERTS.items() if cls.__module__.startswith("dmoe.")}
    assert {kind for kind, _ in CASES} == built_in


def test_options_cover_the_cases() -> None:
    """Every option that changes the function of an expert is set in some case."""
    for kind in {kind for kind, _ in CASES}:
        tried = {name for case, options in CASES if case == kind for name in options}
        beyond = {"dropout", "batch_norm"}  # below, and in test_mlp
        assert set(expert_class(kind).options()) - beyond == tried, kind


@pytest.mark.parametrize("kind", ["nfm", "dnn", "deepfm", "dcnv2", "xdeepfm"])
def test_dropout_and_batch_norm_reach_the_hidden_layers(kind: str) -> None:
    expert = expert_class(kind)(3, 2, hidden_units=[8], dropout=0.5, batch_norm=True)
    embeddings = torch.randn(64, 3, 2)
    output: Tensor = expert(embeddings)
    hidden = output[:, -8:]
    # Normalised before ReLU: half is zero; of the rest, dropout leaves half.
    assert 0.6 < float((hidden == 0).float().mean()) < 0.9
    expert.eval()
    assert torch.equal(expert(embeddings), expert(embeddings))
    assert any("running_mean" in name for name, _ in expert.named_buffers())


def test_fm_by_hand() -> None:
    embeddings = torch.tensor([[[1.0, 2.0], [3.0, 5.0], [7.0, 11.0]]])
    fm = {kind: EXPERTS["fm"](3, 2, output=kind)(embeddings) for kind in ("bi-interaction", "pairs", "scalar")}
    # d = 0: 1·3 + 1·7 + 3·7 = 31; d = 1: 2·5 + 2·11 + 5·11 = 87.
    assert fm["bi-interaction"].tolist() == [[31.0, 87.0]]
    assert fm["pairs"].tolist() == [[1 * 3 + 2 * 5, 1 * 7 + 2 * 11, 3 * 7 + 5 * 11]]
    assert fm["scalar"].tolist() == [[31.0 + 87.0]]


def test_crossnet_with_identity_weights_doubles_the_degree_by_hand() -> None:
    expert = CrossNet(1, 2, layers=2)
    with torch.no_grad():
        for layer in expert.layers:
            layer.weight.copy_(torch.eye(2))
    x = torch.tensor([[[2.0, 3.0]]])
    # x1 = x² + x, x2 = x·x1 + x1 = x (x + 1)².
    assert expert(x).tolist() == [[2.0 * 9, 3.0 * 16]]
    assert [layer.tolist() for layer in expert.intermediates(x)] == [[[6.0, 12.0]], [[18.0, 48.0]]]


def test_pair_products_have_correct_second_derivatives() -> None:
    embeddings = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    for expert in (EXPERTS["fm"](4, 3, output="pairs"), EXPERTS["cin"](4, 3, units=[3]).double()):
        assert torch.autograd.gradcheck(expert, (embeddings,))
        assert torch.autograd.gradgradcheck(expert, (embeddings,))


def test_nfm_hidden_layers_read_the_bi_interaction() -> None:
    expert = NFM(3, 2, hidden_units=[3]).double()
    randomise(expert)
    x = torch.randn(1, 3, 2, dtype=torch.float64)
    z = [x[0, 0, d] * x[0, 1, d] + x[0, 0, d] * x[0, 2, d] + x[0, 1, d] * x[0, 2, d] for d in range(2)]
    expected = torch.stack(naive_mlp(expert.mlp, z)[0]).unsqueeze(0)
    torch.testing.assert_close(expert(x), expected, rtol=1e-10, atol=0)


def _embeddings(expert: Expert, rows: int) -> Tensor:
    return torch.randn(rows, int(expert.num_fields), int(expert.embedding_dim))


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: str(value))
def test_rows_are_independent_of_each_other(kind: str, options: dict[str, Any]) -> None:
    expert = expert_class(kind)(5, width(kind, 5, 4), **options)
    randomise(expert)
    embeddings = _embeddings(expert, 16)
    order = torch.randperm(16)
    torch.testing.assert_close(expert(embeddings[order]), expert(embeddings)[order], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: str(value))
def test_any_batch_size_and_the_declared_width(kind: str, options: dict[str, Any]) -> None:
    expert = expert_class(kind)(5, width(kind, 5, 4), **options)
    randomise(expert)
    whole = _embeddings(expert, 3)
    expected = expert(whole)
    for rows in (0, 1, 3):
        embeddings = whole[:rows].clone().requires_grad_()
        output, inner = expert.forward_with_intermediates(embeddings)
        assert output.shape == (rows, expert.out_features)
        assert all(layer.dim() == 2 and layer.shape[0] == rows for layer in inner)
        torch.testing.assert_close(output, expected[:rows], rtol=1e-5, atol=1e-4)
        torch.stack([t.sum() for t in (output, *inner)]).sum().backward()
        assert embeddings.grad is not None
        assert embeddings.grad.shape == embeddings.shape


@pytest.mark.parametrize("kind", sorted(EXPERTS))
def test_defaults_have_the_declared_width_and_train_at_any_batch_size(kind: str) -> None:
    expert = EXPERTS[kind](24, width(kind, 24, 16)).train()
    for rows in (0, 1, 2):
        assert expert(_embeddings(expert, rows)).shape == (rows, expert.out_features)


def test_default_widths_are_those_of_the_paper() -> None:
    widths = {kind: expert_class(kind)(24, width(kind, 24, 16)).out_features for kind, _ in CASES}
    assert widths == {
        "fm": 16,
        "nfm": 500,
        "dnn": 500,
        "deepfm": 516,
        "crossnet": 384,
        "dcnv2": 884,
        "cin": 276,
        "xdeepfm": 776,
        "lr": 16,
        "ipnn": 500,
        "opnn": 500,
        "fwfm": 276,
        "fmfm": 276,
        "ffm": 276,
        "onn": 500,
        "gwpfm": 9,
        "flatdnn": 1000,
        "crossnet-v1": 384,
        "crossnet-mix": 384,
        "gdcn": 884,
        "dcnv3": 768,
        "autoint": 1536,
        "wukong": 384,
        "dhen": 384,
        "fibinet": 500,
        "finalmlp": 1000,
        "finalnet": 800,
    }


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: str(value))
def test_bfloat16_autocast_keeps_the_gradient(kind: str, options: dict[str, Any]) -> None:
    expert = expert_class(kind)(5, width(kind, 5, 4), **options)
    embeddings = _embeddings(expert, 8)
    gradients = []
    aim = torch.randn(8, expert.out_features)
    for enabled in (False, True):
        leaf = embeddings.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = expert(leaf)
        (output.float() - aim).square().sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    exact, rounded = gradients
    assert float((exact - rounded).norm()) < 0.05 * float(exact.norm())


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: str(value))
def test_state_survives_a_round_trip(kind: str, options: dict[str, Any]) -> None:
    first, second = (expert_class(kind)(4, width(kind, 4, 3), **options) for _ in range(2))
    randomise(first)
    second.load_state_dict(first.state_dict())
    embeddings = _embeddings(first, 4)
    assert torch.equal(first(embeddings), second(embeddings))
