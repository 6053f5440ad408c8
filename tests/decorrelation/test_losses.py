"""CorrLoss and CovLoss against loops written from eq. 8, 15 and 16, closed forms and invariances."""

import math
import os
import re
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from dmoe.decorrelation import (
    BarlowTwinsLoss,
    CorrLoss,
    CovLoss,
    VICRegLoss,
    cross_expert_correlation,
    scales_of_alpha,
)

LOSSES: list[tuple[type[nn.Module], str, str]] = [
    (CorrLoss, "frobenius", "paper"),
    (CorrLoss, "frobenius", "dimension-free"),
    (CorrLoss, "spectral", "paper"),
    (CorrLoss, "spectral", "dimension-free"),
    (CovLoss, "l1", "paper"),
    (CovLoss, "l1", "dimension-free"),
    (CovLoss, "l2", "paper"),
    (CovLoss, "l2", "dimension-free"),
]
EPS = 1e-6


def naive_loss(outputs: Sequence[Tensor], kind: str, norm: str, scale: str, eps: float = EPS) -> Tensor:
    """The equations by loops over pairs, columns and rows, in the dtype of the outputs, with autograd."""
    total = torch.zeros((), dtype=outputs[0].dtype)
    for x, y in combinations([_naive_columns(output, kind, eps) for output in outputs], 2):
        entries = torch.stack([torch.stack([_dot(a, b) for b in y]) for a in x])
        if norm == "l1":
            value = sum((entry.abs() for entry in entries.flatten()), torch.zeros((), dtype=total.dtype))
        elif norm == "spectral":
            value = torch.linalg.svdvals(entries)[0]
        else:
            value = sum((entry**2 for entry in entries.flatten()), torch.zeros((), dtype=total.dtype)).sqrt()
        factor = math.sqrt(len(x) * len(y)) if scale == "dimension-free" and norm != "l1" else 1.0
        total = total + factor * value / (len(x) * len(y))
    return total


def _naive_columns(output: Tensor, kind: str, eps: float) -> list[Tensor]:
    rows = len(output)
    centred, variances = [], []
    for j in range(output.shape[1]):
        mean = sum((output[i, j] for i in range(rows)), torch.zeros((), dtype=output.dtype)) / rows
        centred.append(torch.stack([output[i, j] - mean for i in range(rows)]))
        variances.append(_dot(centred[-1], centred[-1]) / (rows - 1))
    if kind == "CovLoss":
        return centred
    floor = eps * sum(variances, torch.zeros((), dtype=output.dtype)) / len(variances)
    return [column / (variance + floor).sqrt() for column, variance in zip(centred, variances, strict=True)]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return sum((a[i] * b[i] for i in range(len(a))), torch.zeros((), dtype=a.dtype))


def random_outputs(rows: int, widths: Sequence[int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    common = torch.randn(rows, 1, dtype=dtype)
    return [(torch.randn(rows, width, dtype=dtype) + common + 0.5) * (m + 1) for m, width in enumerate(widths)]


def value_and_gradients(
    loss: Callable[[Sequence[Tensor]], Tensor], outputs: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    leaves = [output.detach().clone().requires_grad_() for output in outputs]
    value = loss(leaves)
    return value.detach(), list(torch.autograd.grad(value, leaves))


# rows below the widths take the B×B products, the others the moments
@pytest.mark.parametrize("rows", [4, 23])
@pytest.mark.parametrize("widths", [(5, 5), (6, 3), (4, 5, 7)])
@pytest.mark.parametrize(("loss_class", "norm", "scale"), LOSSES)
def test_value_and_gradient_equal_loops(
    loss_class: Any, norm: str, scale: str, widths: tuple[int, ...], rows: int
) -> None:
    outputs = random_outputs(rows, widths)
    loss = loss_class(norm=norm, scale=scale)
    expected, expected_gradients = value_and_gradients(
        lambda leaves: naive_loss(leaves, loss_class.__name__, norm, scale), outputs
    )
    value, gradients = value_and_gradients(loss, outputs)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-10)

    value, gradients = value_and_gradients(loss, [output.float() for output in outputs])
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [3, 11])
@pytest.mark.parametrize(("loss_class", "norm", "scale"), LOSSES)
def test_gradient_equals_finite_differences(loss_class: Any, norm: str, scale: str, rows: int) -> None:
    outputs = [output.requires_grad_() for output in random_outputs(rows, (5, 4, 3))]
    loss = loss_class(norm=norm, scale=scale)
    assert torch.autograd.gradcheck(lambda *leaves: loss(leaves), outputs)


def test_large_eps_has_the_gradient_of_its_own_formula() -> None:
    outputs = random_outputs(17, (4, 6))
    expected = value_and_gradients(lambda leaves: naive_loss(leaves, "CorrLoss", "frobenius", "paper", 0.3), outputs)
    got = value_and_gradients(CorrLoss(eps=0.3), outputs)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@given(
    rows=st.integers(2, 40),
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**31),
)
def test_loss_is_rms_correlation_over_width(rows: int, widths: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(rows, width, dtype=torch.float64, generator=generator) for width in widths)
    stacked = torch.corrcoef(torch.cat([x, y], 1).T)
    r = stacked[: widths[0], widths[0] :]
    rms, width = r.square().mean().sqrt(), math.sqrt(widths[0] * widths[1])
    torch.testing.assert_close(CorrLoss(eps=0)([x, y]) / (rows - 1), rms / width, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(CorrLoss(scale="dimension-free", eps=0)([x, y]) / (rows - 1), rms, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(CorrLoss("spectral", eps=0)([x, y]) / (rows - 1), torch.linalg.svdvals(r)[0] / width**2)


@pytest.mark.parametrize("rows", [3, 64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_experts_of_copies_of_one_column_reach_the_largest_value(sign: float, rows: int) -> None:
    column = torch.randn(rows, 1, dtype=torch.float64)
    x = column * torch.tensor([1.0, -3.0, 2.0, 0.1, 7.0], dtype=torch.float64)
    width = 5
    for norm in ("frobenius", "spectral"):
        paper = CorrLoss(norm, eps=0)([x, sign * x]) / (rows - 1)
        free = CorrLoss(norm, scale="dimension-free", eps=0)([x, sign * x]) / (rows - 1)
        assert paper.item() == pytest.approx(1 / width, rel=1e-10)
        assert free.item() == pytest.approx(1.0, rel=1e-10)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_identical_experts_with_uncorrelated_columns(sign: float) -> None:
    # Columns 2..5 of an 8×8 Hadamard matrix: centred, orthogonal, each of square sum 8. So R is ±I.
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(3):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    x = hadamard[:, 2:6]
    assert CorrLoss(eps=0)([x, sign * x]).item() / 7 == pytest.approx(math.sqrt(4) / 4**2)
    assert CorrLoss("spectral", eps=0)([x, sign * x]).item() / 7 == pytest.approx(1 / 4**2)
    assert CovLoss("l1")([x, sign * x]).item() == pytest.approx(4 * 8 / 4**2)
    assert CovLoss("l2")([x, sign * x]).item() == pytest.approx(math.sqrt(4) * 8 / 4**2)
    # Disjoint columns of it are exactly uncorrelated: the kink of every norm.
    leaves = [hadamard[:, 1:4].clone().requires_grad_(), hadamard[:, 4:8].clone().requires_grad_()]
    for loss in (CorrLoss(), CorrLoss("spectral"), CovLoss("l1"), CovLoss("l2")):
        value = loss(leaves)
        assert value.item() == pytest.approx(0.0, abs=1e-12)
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, leaves))


def test_three_experts_are_the_sum_of_three_pairs() -> None:
    a, b, c = random_outputs(50, (4, 6, 3))
    for loss in (CorrLoss(), CorrLoss("spectral"), CovLoss("l1"), CovLoss("l2", scale="dimension-free")):
        pairs = loss([a, b]) + loss([a, c]) + loss([b, c])
        torch.testing.assert_close(loss([a, b, c]), pairs, rtol=1e-12, atol=0)
        torch.testing.assert_close(loss([c, a, b]), pairs, rtol=1e-12, atol=0)


@given(
    seed=st.integers(0, 2**31),
    factors=st.lists(st.floats(0.2, 5) | st.floats(-5, -0.2), min_size=4, max_size=4),
    shift=st.floats(-10, 10),
    rows=st.sampled_from([3, 60]),
)
def test_corr_ignores_affine_changes_of_columns_and_cov_does_not(
    seed: int, factors: list[float], shift: float, rows: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(rows, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    changed = x * torch.tensor(factors, dtype=torch.float64) + shift
    torch.testing.assert_close(CorrLoss(eps=0)([changed, y]), CorrLoss(eps=0)([x, y]), rtol=1e-9, atol=1e-9)
    for norm in ("l1", "l2"):
        loss = CovLoss(norm)
        torch.testing.assert_close(loss([x + shift, y]), loss([x, y]), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(loss([10 * x, y]), 10 * loss([x, y]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("rows", [6, 200])
@pytest.mark.parametrize("factor", [3e-30, 1e-20, -7e-9, 1e8, 5e25])
def test_an_experts_own_scale_does_not_matter(factor: float, rows: int) -> None:
    x, y = random_outputs(rows, (8, 8), torch.float32)
    x[:, 3] = 0.0
    x[:, 4] *= 1e-3
    for norm in ("frobenius", "spectral"):
        loss = CorrLoss(norm)
        expected, gradients = value_and_gradients(loss, [x, y])
        value, scaled = value_and_gradients(loss, [x * factor, y])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(scaled[0].double() * factor, gradients[0].double(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rows", [4, 90])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 12345.678])
def test_dead_columns_contribute_nothing(constant: float, rows: int) -> None:
    x, y = random_outputs(rows, (5, 5), torch.float32)
    x[:, 2] = constant
    for loss in (CorrLoss(), CorrLoss("spectral"), CorrLoss(eps=0)):
        value, gradients = value_and_gradients(loss, [x, y])
        alive = loss([x[:, [0, 1, 3, 4]], y]) * (4 * 5) / (5 * 5)
        # eps is a share of the mean variance, which the dead column lowers by a fifth
        assert value.item() == pytest.approx(alive.item(), rel=1e-4)
        assert all(gradient.isfinite().all() for gradient in gradients)
    both_dead = [torch.full((rows, 3), constant), torch.full((rows, 4), 0.7)]
    for loss in (CorrLoss(), CorrLoss(eps=0), CovLoss("l1"), CovLoss("l2")):
        value, gradients = value_and_gradients(loss, both_dead)
        assert value.item() / (rows - 1) < 1e-3
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_are_float32_under_autocast_and_for_half_inputs(dtype: torch.dtype) -> None:
    outputs = [(output * 50).to(dtype) for output in random_outputs(300, (16, 16))]
    for loss in (CorrLoss(), CorrLoss("spectral"), CovLoss("l1"), CovLoss("l2")):
        expected, expected_gradients = value_and_gradients(loss, [output.float() for output in outputs])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value, gradients = value_and_gradients(loss, outputs)
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)
        for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
            assert gradient.dtype == dtype
            torch.testing.assert_close(gradient.float(), expected_gradient, rtol=1e-2, atol=1e-4)
        float_outputs = [output.float() for output in outputs]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(loss(float_outputs), expected)


def test_mixed_types_use_the_widest() -> None:
    x, y = random_outputs(30, (4, 4))
    assert CorrLoss()([x, y.float()]).dtype == torch.float64
    assert CorrLoss()([x.bfloat16(), y.float()]).dtype == torch.float32


def test_large_means_keep_the_loss() -> None:
    x, y = random_outputs(2000, (6, 6))
    x, y = x.float(), y.float()
    expected = CorrLoss()([x, y])
    shifted = (x + 1000).float()
    torch.testing.assert_close(CorrLoss()([shifted, y]), expected, rtol=1e-3, atol=0)


def test_fewer_than_two_experts_give_a_zero_that_can_be_differentiated() -> None:
    assert CorrLoss()([]).item() == 0.0
    output = torch.tensor([[math.inf, 1.0]], requires_grad=True)
    value = CorrLoss()([output])
    value.backward()
    assert value.item() == 0.0
    assert output.grad is not None
    assert torch.equal(output.grad, torch.zeros(1, 2))


def test_values_that_are_not_finite_stay_visible() -> None:
    for rows in (3, 40):
        for poison in (math.nan, math.inf):
            x, y = random_outputs(rows, (5, 5), torch.float32)
            x[1, 2] = poison
            for loss in (CorrLoss(), CorrLoss("spectral"), CovLoss("l1"), CovLoss("l2")):
                assert not loss([x, y]).isfinite()


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([torch.ones(1, 3), torch.ones(1, 3)], "undefined for a batch of 1 row"),
        ([torch.ones(0, 3), torch.ones(0, 3)], "undefined for a batch of 0 row"),
        ([torch.ones(5, 3), torch.ones(4, 3)], r"outputs\[1\] has 4 rows and outputs\[0\] has 5"),
        ([torch.ones(5, 3), torch.ones(5)], r"outputs\[1\] must be a floating \(rows, width\) tensor"),
        ([torch.ones(5, 3).long(), torch.ones(5, 3)], r"outputs\[0\] must be a floating"),
        ([torch.ones(5, 0), torch.ones(5, 3)], r"outputs\[0\] must be .* width at least 1"),
    ],
)
def test_wrong_outputs_are_named(outputs: list[Tensor], message: str) -> None:
    for loss in (CorrLoss(), CovLoss()):
        with pytest.raises(ValueError, match=message):
            loss(outputs)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="norm must be frobenius or spectral, got 'l1'"):
        CorrLoss("l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm must be l1 or l2, got 'frobenius'"):
        CovLoss("frobenius")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale must be paper or dimension-free"):
        CovLoss(scale="none")  # type: ignore[arg-type]
    for eps in (-1e-6, math.nan, math.inf):
        with pytest.raises(ValueError, match="eps must be finite and at least 0"):
            CorrLoss(eps=eps)
    with pytest.raises(ValueError, match="init_process_group"):
        CorrLoss(process_group="world")([torch.ones(3, 2), torch.ones(3, 2)])


@pytest.mark.parametrize(("loss_class", "norm"), [(CorrLoss, "frobenius"), (CorrLoss, "spectral"), (CovLoss, "l2")])
@pytest.mark.parametrize("scale", ["paper", "dimension-free"])
def test_both_scales_of_alpha_weigh_the_same(loss_class: Any, norm: Any, scale: Any) -> None:
    outputs = random_outputs(40, (6, 3))
    both = scales_of_alpha(30.0, scale, 6, 3, norm)
    assert (both.paper if scale == "paper" else both.dimension_free) == 30.0
    weighted = [
        both.paper * loss_class(norm=norm, scale="paper")(outputs),
        both.dimension_free * loss_class(norm=norm, scale="dimension-free")(outputs),
    ]
    torch.testing.assert_close(weighted[0], weighted[1], rtol=1e-12, atol=0)
    assert scales_of_alpha(30.0, scale, 6, 3, "l1") == (30.0, 30.0)


class SecondOrder(nn.Module):
    """A pure second-order expert over its own embeddings of std 1e-4: FM's pooled form, or CIN's products."""

    def __init__(self, kind: str, rows: int, fields: int = 6, dim: int = 8, units: int = 32) -> None:
        super().__init__()
        self.kind = kind
        self.embedding = nn.Parameter(torch.randn(rows, dim) * 1e-4)
        if kind == "cin":
            self.mix = nn.Linear(fields * fields, 16, bias=False)
            nn.init.xavier_normal_(self.mix.weight)
        self.align = nn.Linear(dim if kind == "fm" else 16, units)
        nn.init.xavier_normal_(self.align.weight)
        nn.init.zeros_(self.align.bias)

    def forward(self, ids_BF: Tensor) -> Tensor:
        e_BFD = self.embedding[ids_BF]
        if self.kind == "fm":
            raw = (e_BFD.sum(1).square() - e_BFD.square().sum(1)) / 2
        else:
            raw = self.mix((e_BFD @ e_BFD.mT).flatten(1))
        return functional.relu(self.align(raw))


@pytest.mark.parametrize("clip", [None, 10.0])
@pytest.mark.parametrize("alpha", [30.0, 1000.0])
def test_first_hundred_steps_of_second_order_experts(alpha: float, clip: float | None) -> None:
    torch.manual_seed(3)
    rows, fields, batch, steps = 120, 6, 256, 100
    ids = torch.randint(rows // fields, (20 * batch, fields)) + torch.arange(fields) * (rows // fields)
    labels = (torch.randn(rows)[ids].sum(1) > 0).float()
    experts = nn.ModuleList([SecondOrder("fm", rows), SecondOrder("cin", rows)])
    head = nn.Linear(32, 1)
    parameters = [*experts.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=1e-3)
    loss = CorrLoss(scale="dimension-free")
    initial = [expert(ids[:batch]) for expert in experts]
    assert max(output.abs().max().item() for output in initial) < 1e-6
    starting_embedding = [expert.embedding.detach().clone() for expert in experts]
    values, bce = [], []
    for step in range(steps):
        chosen = slice((step % 20) * batch, (step % 20 + 1) * batch)
        outputs = [expert(ids[chosen]) for expert in experts]
        logit = head(outputs[0] + outputs[1]).squeeze(1)
        term = loss(outputs) / (batch - 1)
        logloss = functional.binary_cross_entropy_with_logits(logit, labels[chosen])
        optimiser.zero_grad()
        (logloss + alpha * term).backward()
        for parameter in parameters:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
        for expert in experts:
            # Visible at every step, in the first weights as in the last ones.
            assert expert.embedding.grad.norm() > 1e-3
            assert expert.align.weight.grad.norm() > 1e-3
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip, error_if_nonfinite=True)
        optimiser.step()
        values.append(term.item())
        bce.append(logloss.item())
    assert all(map(math.isfinite, values + bce))
    # Useful: the correlation falls, and not because the experts died.
    assert sum(values[-10:]) < 0.7 * sum(values[:10])
    final = [expert(ids[:batch]) for expert in experts]
    assert all((output.std(0) > 0).float().mean() > 0.3 for output in final)
    assert cross_expert_correlation(*final) < cross_expert_correlation(*initial)
    assert all(
        (expert.embedding - start).abs().max() > 1e-3 for expert, start in zip(experts, starting_embedding, strict=True)
    )


# Three narrow experts, whose gradient is one product.
WIDTHS = (4, 6, 3)


def _distributed_losses() -> list[nn.Module]:
    return [
        CorrLoss(process_group="world"),
        CorrLoss("spectral", process_group="world"),
        CovLoss("l1", process_group="world"),
        CovLoss("l2", process_group="world"),
        BarlowTwinsLoss(process_group="world"),
        VICRegLoss(process_group="world"),
    ]


def _run_rank(rank: int, folder: str, shares: list[int]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(shares))
    saved = torch.load(f"{folder}/inputs.pt")
    start = sum(shares[:rank])
    layers = nn.ModuleList(nn.Linear(5, width, dtype=torch.float64) for width in WIDTHS)
    layers.load_state_dict(saved["layers"])
    model = nn.parallel.DistributedDataParallel(_Several(layers))
    results = []
    for loss in _distributed_losses():
        model.zero_grad()
        value = loss(model(saved["x"][start : start + shares[rank]]))
        value.backward()
        results.append((value.detach(), [parameter.grad.clone() for parameter in layers.parameters()]))
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


class _Several(nn.Module):
    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> list[Tensor]:
        return [functional.relu(layer(x)) for layer in self.layers]


def test_two_processes_have_the_loss_and_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    shares = [7, 12]
    layers = nn.ModuleList(nn.Linear(5, width, dtype=torch.float64) for width in WIDTHS)
    x = torch.randn(sum(shares), 5, dtype=torch.float64) * 1e-3 + 0.2
    x[:7] *= 100  # ranks of different scale
    torch.save({"layers": layers.state_dict(), "x": x}, tmp_path / "inputs.pt")
    mp.spawn(_run_rank, (str(tmp_path), shares), nprocs=len(shares))
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(len(shares))]
    for index, loss in enumerate(_distributed_losses()):
        loss.process_group = None
        layers.zero_grad()
        value = loss(_Several(layers)(x))
        value.backward()
        assert value > 0
        for rank in ranks:
            torch.testing.assert_close(rank[index][0], value.detach(), rtol=1e-9, atol=0)
            torch.testing.assert_close(
                rank[index][1], [parameter.grad for parameter in layers.parameters()], rtol=1e-8, atol=1e-9
            )


def test_the_guides_code_runs_and_de_correlates(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "decorrelation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks[:2]:
        exec(compile(block, "docs/decorrelation.md", "exec"), {"__name__": "guide"})
    before, after = map(float, re.findall(r"CEC ([\d.]+)", capsys.readouterr().out))
    assert after < 0.2 * before
