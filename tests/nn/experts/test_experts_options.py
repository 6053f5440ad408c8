"""Bad options are refused in one sentence; weights start as documented; the registry is full."""

from typing import Any

import pytest
import torch
from torch import nn

from dmoe.nn import experts
from dmoe.nn.experts import EXPERTS, expert_class

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("fm", {"output": "bi_interaction"}, r"output must be one of .*got 'bi_interaction'; did you mean 'bi-i"),
    ("fm", {"output": 3}, r"output must be one of 'bi-interaction', 'pairs', 'scalar', got 3"),
    ("fm", {"num_fields": 1}, r"num_fields must be an integer of at least 2, got 1"),
    ("nfm", {"num_fields": 1}, r"num_fields must be an integer of at least 2, got 1"),
    ("deepfm", {"num_fields": 1}, r"num_fields must be an integer of at least 2, got 1"),
    ("deepfm", {"output": "vector"}, r"output must be one of"),
    ("dnn", {"embedding_dim": 0}, r"embedding_dim must be an integer of at least 1, got 0"),
    ("deepfm", {"hidden_units": []}, r"hidden_units must hold at least one layer width, got \[\]"),
    ("dnn", {"hidden_units": [3, 0]}, r"hidden_units\[1\] must be an integer of at least 1, got 0"),
    ("dnn", {"hidden_units": 500}, r"hidden_units must be a list of layer widths, got 500"),
    ("dnn", {"hidden_units": "500"}, r"hidden_units must be a list of layer widths, got '500'"),
    ("dnn", {"dropout": 1.0}, r"dropout must be a number of at least 0 and below 1, got 1.0"),
    ("dnn", {"dropout": float("nan")}, r"dropout must be a number .* got nan"),
    ("nfm", {"dropout": "0.1"}, r"dropout must be a number .* got '0.1'"),
    ("deepfm", {"hidden_units": []}, r"hidden_units must hold at least one"),
    ("dnn", {"batch_norm": "yes"}, r"batch_norm must be true or false, got 'yes'"),
    ("crossnet", {"layers": 0}, r"layers must be an integer of at least 1, got 0"),
    ("crossnet", {"layers": True}, r"layers must be an integer of at least 1, got True"),
    ("crossnet", {"layers": 2.0}, r"layers must be an integer of at least 1, got 2.0"),
    ("crossnet", {"low_rank": 0}, r"low_rank must be an integer of at least 1, got 0"),
    ("dcnv2", {"structure": "paralel"}, r"structure must be one of .*did you mean 'parallel'"),
    ("dcnv2", {"structure": None}, r"structure must be one of 'parallel', 'stacked', got None"),
    ("dcnv2", {"hidden_units": []}, r"hidden_units must hold at least one"),
    ("cin", {"units": []}, r"units must hold at least one layer width"),
    ("cin", {"units": [1, 4], "split_half": True}, r"units must be at least 2 in every layer but the last"),
    ("cin", {"activation": "tanh"}, r"activation must be one of null, 'relu', got 'tanh'"),
    ("cin", {"split_half": 1}, r"split_half must be true or false, got 1"),
    ("xdeepfm", {"units": [2, -1]}, r"units\[1\] must be an integer of at least 1, got -1"),
    ("xdeepfm", {"hidden_units": [0]}, r"hidden_units\[0\] must be"),
    ("ffm", {"embedding_dim": 5}, r"embedding_dim must be a multiple of 2 \(one vector for each other field\), got 5"),
    ("ffm", {"num_fields": 1}, r"num_fields must be an integer of at least 2, got 1"),
    ("ffm", {"output": "scalar"}, r"output must be one of 'pairs', 'bi-interaction', got 'scalar'"),
    ("onn", {"embedding_dim": 4}, r"embedding_dim must be a multiple of 3 \(one vector for each field\), got 4"),
    ("onn", {"embedding_dim": 3, "output": "all"}, r"output must be one of 'hidden', 'raw', got 'all'"),
    ("gwpfm", {"groups": 4}, r"groups must be at most the number of fields, 3, got 4"),
    ("gwpfm", {"groups": 0}, r"groups must be an integer of at least 1, got 0"),
    ("gwpfm", {"groups": [0, 1]}, r"groups must list one group for each of the 3 fields, got 2"),
    ("gwpfm", {"groups": [0, 2, 2]}, r"groups must number the groups 0, 1, 2, …, got \[0, 2, 2\]"),
    ("gwpfm", {"groups": [0, 1, 2]}, r"embedding_dim must be a multiple of 3 \(one vector for each group\), got 2"),
    ("dcnv3", {"embedding_dim": 3}, r"embedding_dim must be a multiple of 2 \(one half is masked\), got 3"),
    ("dcnv3", {"exponential_layers": 0, "linear_layers": 0}, r"exponential_layers or linear_layers must be at least 1"),
    ("autoint", {"units": 5}, r"units must be a multiple of 2 \(one part for each head\), got 5"),
    ("autoint", {"residual": 1}, r"residual must be true or false, got 1"),
    ("wukong", {"rank": 0}, r"rank must be an integer of at least 1, got 0"),
    ("wukong", {"hidden_units": []}, r"hidden_units must hold at least one"),
    ("dhen", {"interactions": ["dots"]}, r"interactions\[0\] must be one of .*did you mean 'dot'"),
    ("dhen", {"interactions": []}, r"interactions must be a list of dot, attention, cross, linear, got \[\]"),
    ("dhen", {"num_fields": 1}, r"'dot' needs at least two vectors in each layer, got 1"),
    ("opnn", {"kernel": "mat"}, r"kernel must be one of 'matrix', 'vector', 'number', got 'mat'"),
    ("fmfm", {"weights": "number"}, r"weights must be one of 'matrix', 'vector', got 'number'"),
    ("gdcn", {"structure": "both"}, r"structure must be one of 'parallel', 'stacked', 'cross', got 'both'"),
    ("fibinet", {"bilinear": "field_all"}, r"bilinear must be one of .*did you mean 'field-all'"),
    ("fibinet", {"reduction": 0}, r"reduction must be an integer of at least 1, got 0"),
    ("finalmlp", {"context": [1]}, r"context and context_2 need gates; set gate_units"),
    ("finalmlp", {"gate_units": [], "context": [3]}, r"context must hold different numbers from 0 to 2, got \[3\]"),
    ("finalmlp", {"heads": 3}, r"hidden_units\[-1\] must be a multiple of 3 \(one part for each head\), got 500"),
    (
        "finalnet",
        {"hidden_units": [3]},
        r"hidden_units\[0\] must be a multiple of 2 .*, got 3",
    ),
    ("finalnet", {"activation": "tanh"}, r"activation must be one of null, 'relu', got 'tanh'"),
    ("flatdnn", {"units": 0}, r"units must be an integer of at least 1, got 0"),
    ("crossnet-mix", {"experts": 0}, r"experts must be an integer of at least 1, got 0"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BAD, ids=lambda value: str(value))
def test_bad_option_is_named(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expert_class(kind)(**{"num_fields": 3, "embedding_dim": 2, **options})


def test_one_map_in_the_last_layer_may_be_split() -> None:
    assert expert_class("cin")(3, 2, units=[4, 1], split_half=True).out_features == 3


def test_registry_and_names() -> None:
    names = ["FM", "NFM", "DNN", "DeepFM", "CrossNet", "DCNv2", "CIN", "XDeepFM"]
    assert {name.lower() for name in names} <= set(EXPERTS)
    for name in names:
        cls = getattr(experts, name)
        assert EXPERTS[name.lower()] is cls
        assert cls.kind == name.lower()
        assert name in experts.__all__


@pytest.mark.parametrize(
    "kind", ["nfm", "dnn", "deepfm", "crossnet", "dcnv2", "cin", "xdeepfm", "ipnn", "flatdnn", "finalmlp"]
)
def test_every_linear_starts_xavier_normal_with_zero_bias(kind: str) -> None:
    expert = expert_class(kind)(12, 8)
    parameters = 0
    for module in expert.modules():
        if not isinstance(module, nn.Linear):
            continue
        parameters += sum(parameter.numel() for parameter in module.parameters())
        assert module.bias is not None
        assert not module.bias.any()
        weight = module.weight.detach()
        std = (2 / sum(weight.shape)) ** 0.5
        # A uniform draw of this std has no value beyond 1.74 std; a normal one does in 8 of 100.
        assert abs(float(weight.std()) / std - 1) < 5 / weight.numel() ** 0.5
        assert float(weight.abs().max()) > 2.5 * std
    assert parameters == sum(parameter.numel() for parameter in expert.parameters())


def test_low_rank_factors_start_xavier_normal() -> None:
    first, second = expert_class("crossnet")(12, 8, layers=1, low_rank=16).layers[0]
    assert first.bias is None
    assert not second.bias.any()
    for linear in (first, second):
        assert abs(float(linear.weight.detach().std()) * (112 / 2) ** 0.5 - 1) < 0.1


@pytest.mark.parametrize("kind", sorted(EXPERTS))
def test_same_seed_same_weights(kind: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(expert_class(kind)(4, 12).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
