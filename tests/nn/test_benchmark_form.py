"""One interaction by itself: the logit of its original, written with loops."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dmoe.config.model import ModelConfig
from dmoe.config.run import load_config
from dmoe.errors import ConfigError
from dmoe.nn.build import build_model
from dmoe.nn.experts import EXPERTS, expert_class
from dmoe.nn.model import DMoE
from dmoe.schema import CategoricalField, NumericField, Schema
from tests.nn.experts.naive import naive, rows_of
from tests.nn.experts.naive_parts import total
from tests.nn.experts.test_experts_naive import width

SIZES = [5, 4, 3]
IDS = torch.tensor([[1, 3, 0], [4, 0, 2], [1, 1, 1]])
PRICE = torch.tensor([[0.5], [-2.0], [0.0]], dtype=torch.float64)
ORIGINALS_WITH_FIRST_ORDER = {"fm", "fwfm", "fmfm", "ffm", "gwpfm", "nfm", "deepfm", "xdeepfm", "autoint", "fibinet"}
SUMMED = {"lr", "fm", "fwfm", "fmfm", "ffm", "gwpfm"}
SMALL: dict[str, dict[str, Any]] = {
    **{kind: {"hidden_units": [4, 3]} for kind in ("nfm", "dnn", "dcnv2", "deepfm", "ipnn", "opnn", "onn", "gdcn")},
    "cin": {"units": [3, 2]},
    "xdeepfm": {"units": [3], "hidden_units": [4]},
    "fibinet": {"hidden_units": [4]},
    "finalmlp": {"hidden_units": [4], "hidden_units_2": [2], "heads": 2},
    "finalnet": {"hidden_units": [4], "hidden_units_2": [2]},
    "flatdnn": {"layers": 1, "units": 3},
    "autoint": {"layers": 1, "units": 4},
    "crossnet-mix": {"layers": 1, "low_rank": 2, "experts": 2},
    "wukong": {"layers": 1, "fm_vectors": 2, "linear_vectors": 2, "rank": 2, "hidden_units": [3]},
    "dhen": {"layers": 1, "vectors": 2, "hidden_units": [3]},
}


def model_of(kind: str, **options: Any) -> DMoE:
    dim = width(kind, 4, 4)
    expert = expert_class(kind)(4, dim, **SMALL.get(kind, {}))
    model = DMoE(SIZES, 1, dim, experts=[expert], form="benchmark", **options).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def naive_logit(model: DMoE, kind: str, index: int, *, first_order: bool) -> Tensor:
    tables = model.embedding(IDS, PRICE)
    expert = model.experts[0].interaction
    outputs, _ = naive(expert, rows_of(tables[0])[index])
    logit = model.head.bias[0]
    if kind in SUMMED:
        logit = logit + total(outputs)
    elif kind == "deepfm":
        # The factorisation machine's part is summed, the hidden layer weighed.
        machine = len(outputs) - 3
        logit = logit + total(outputs[:machine])
        logit = logit + total([w * z for w, z in zip(model.head.linear.weight[0], outputs[machine:], strict=True)])
    else:
        logit = logit + total([w * z for w, z in zip(model.head.linear.weight[0], outputs, strict=True)])
    if first_order:
        # A table of width 1: one weight for each token, and one times the value of the numeric field.
        assert tables[1].shape == (3, 4, 1)
        logit = logit + total([tables[1][index, field, 0] for field in range(4)])
    return logit


@pytest.mark.parametrize("kind", sorted(EXPERTS))
def test_logit_is_that_of_the_original(kind: str) -> None:
    model = model_of(kind)
    has = kind in ORIGINALS_WITH_FIRST_ORDER
    assert (model.first_order_reads is not None) == has
    output = model(IDS, PRICE)
    expected = torch.stack([naive_logit(model, kind, index, first_order=has) for index in range(3)])
    torch.testing.assert_close(output.logit, expected, rtol=1e-9, atol=1e-9)
    assert model.gate is None
    assert not list(model.tower.parameters())


@pytest.mark.parametrize(("kind", "first_order"), [("dcnv2", True), ("fm", False)])
def test_the_first_order_term_can_be_added_and_left_out(kind: str, first_order: bool) -> None:
    model = model_of(kind, first_order=first_order)
    expected = torch.stack([naive_logit(model, kind, index, first_order=first_order) for index in range(3)])
    torch.testing.assert_close(model(IDS, PRICE).logit, expected, rtol=1e-9, atol=1e-9)


def test_lr_of_width_one_is_logistic_regression() -> None:
    model = DMoE(SIZES, 1, 1, experts=[expert_class("lr")(4, 1)], form="benchmark").double()
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(SIZES) + 1 + 1
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    weights = model.embedding(IDS, PRICE)[0]
    expected = torch.stack([model.head.bias[0] + total([row[field, 0] for field in range(4)]) for row in weights])
    torch.testing.assert_close(model(IDS, PRICE).logit, expected)


def test_a_configuration_builds_it() -> None:
    fields = (CategoricalField(name="a", vocabulary_size=5), NumericField(name="b"))
    config = ModelConfig(embedding_dim=4, experts=[{"kind": "deepfm", "hidden_units": [3]}], form="benchmark")
    model = build_model(config, Schema(label="y", fields=fields), seed=0)
    assert model.first_order_reads == 1
    assert model.embedding.widths == (4, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.first_order=true", "'first_order' is for form: benchmark"),
        ("model.form=benchmark", "'form' benchmark is for one expert, got 2"),
    ],
)
def test_what_does_not_fit_the_form_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


@pytest.mark.parametrize("override", ["model.gate.units=8", "model.expert_units=9", "model.tower_units=[8]"])
def test_layers_that_the_form_lacks_are_refused(override: str) -> None:
    one = ["model.experts=[{kind: fm}]", "model.form=benchmark"]
    assert load_config(None, one).model.form == "benchmark"
    with pytest.raises(ConfigError, match="has no use in form: benchmark"):
        load_config(None, [*one, override])


def test_several_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="is for one expert, got 2"):
        DMoE(SIZES, experts=[expert_class("fm")(3, 16), expert_class("fm")(3, 16)], form="benchmark")
