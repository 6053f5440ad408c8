"""The linear part against a loop over rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.nn.linear import EDGES, LinearPart
from dmoe.nn.tables.bank import TokenField

FIELDS = [TokenField(4), TokenField(5, length=3, multi_valued=True), TokenField(3)]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), edges=st.integers(0, EDGES), share=st.floats(0, 1))
def test_it_is_the_sum_over_values(seed: int, edges: int, share: float) -> None:
    draw = np.random.default_rng(seed)
    weights_V, bias, slope = draw.normal(size=12), float(draw.normal()), float(draw.normal())
    bounds, steps = np.sort(draw.normal(size=edges)).astype(np.float32), draw.normal(size=edges)
    part = LinearPart(FIELDS, 1)
    part.set(torch.from_numpy(weights_V), bias, [bounds.tolist()], [steps.tolist()], [slope], share=share)
    ids_BC = np.stack([draw.integers(0, size, 20) for size in (4, 5, 5, 5, 3)], axis=1)
    numeric_BN = draw.normal(size=(20, 1)).astype(np.float32) * 2
    if edges:
        numeric_BN[0, 0] = bounds[0]  # a bound itself is below its step
    weights_V = weights_V.astype(np.float32)
    want = []
    for ids, (number,) in zip(ids_BC, numeric_BN, strict=True):
        total = bias + weights_V[ids[0]] + weights_V[9 + ids[4]]
        values = [4 + token for token in ids[1:4] if token]
        total += np.mean(weights_V[values]) if values else 0.0
        total += slope * np.sign(number) * np.log1p(abs(number))
        want.append(total + sum(step for bound, step in zip(bounds, steps, strict=True) if number > bound))
    got_B = part(torch.from_numpy(ids_BC), torch.from_numpy(numeric_BN))
    np.testing.assert_allclose(got_B.numpy(), want, atol=1e-5)
    mixture_B = torch.from_numpy(draw.normal(size=20)).float()
    mixed_B = (1 - share) * mixture_B.double() + share * got_B
    torch.testing.assert_close(part.mixed(mixture_B, got_B), mixed_B.float())


def test_a_new_part_changes_no_bit() -> None:
    part = LinearPart([TokenField(4)], 0)
    logit_B = torch.randn(100) * 20
    linear_B = part(torch.randint(0, 4, (100, 1)))
    assert torch.equal(part.mixed(logit_B, linear_B), logit_B)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights_V": torch.zeros(3)},
        {"share": 1.5},
        {"share": -0.1},
        {"edges": [[0.0]]},
        {"edges": [[0.0] * (EDGES + 1)], "steps": [[0.0] * (EDGES + 1)]},
        {"slopes": []},
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object]) -> None:
    fitting = {"weights_V": torch.zeros(4), "bias": 0.0, "edges": [[]], "steps": [[]], "slopes": [0.0], "share": 0.5}
    with pytest.raises(ValueError, match="LinearPart"):
        LinearPart([TokenField(4)], 1).set(**{**fitting, **changes})  # type: ignore[arg-type]
