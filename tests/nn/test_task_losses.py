"""Losses of several tasks against loops over rows, closed forms and finite differences."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from dmoe.nn.task_losses import RowLabels, TaskLoss, TaskLosses, joint_labels, joint_losses

THREE = [TaskLoss(), TaskLoss(0.5), TaskLoss(2.0)]


def softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def drawn(rows: int, seed: int = 0, tasks: int = 3) -> tuple[list[Tensor], RowLabels]:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(rows, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(tasks)]
    labels_BT = torch.randint(0, 2, (rows, tasks), generator=generator).double()
    return logits, RowLabels(
        labels_BT,
        torch.rand(rows, tasks, generator=generator) < 0.7,
        torch.rand(rows, dtype=torch.float64, generator=generator) * 3,
        torch.randint(0, 3, (rows,), generator=generator),
    )


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 20), equal=st.booleans())
@settings(max_examples=60)
def test_a_loop_over_rows_gives_the_same(seed: int, rows: int, equal: bool) -> None:
    logits, given_rows = drawn(rows, seed)
    losses = TaskLosses(THREE, domain_weights="equal" if equal else "rows", num_domains=3)
    total, losses_T = losses(logits, given_rows)
    assert given_rows.known_BT is not None
    assert given_rows.weights_B is not None
    assert given_rows.domains_B is not None
    expected = 0.0
    for task in range(3):
        own = 0.0
        for domains in [{0}, {1}, {2}] if equal else [{0, 1, 2}]:
            summed = weight = 0.0
            for row in range(rows):
                if given_rows.known_BT[row, task] and int(given_rows.domains_B[row]) in domains:
                    logit = logits[task][row].item()
                    loss = softplus(-logit if given_rows.labels_BT[row, task] else logit)
                    summed += loss * float(given_rows.weights_B[row])
                    weight += float(given_rows.weights_B[row])
            own += summed / weight if weight else 0.0
        assert float(losses_T[task]) == pytest.approx(own, abs=1e-12)
        expected += THREE[task].weight * own
    assert total.item() == pytest.approx(expected, abs=1e-12)


def test_what_an_unknown_label_holds_is_never_looked_at() -> None:
    logits, rows = drawn(12)
    assert rows.known_BT is not None
    changed = RowLabels(
        torch.where(rows.known_BT, rows.labels_BT, torch.nan), rows.known_BT, rows.weights_B, rows.domains_B
    )
    first, second = (TaskLosses(THREE)(logits, one)[0] for one in (rows, changed))
    assert torch.equal(first, second)
    gradients = [torch.autograd.grad(one, logits) for one in (first, second)]
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_a_task_that_no_row_knows_adds_nothing() -> None:
    logits, rows = drawn(12)
    assert rows.known_BT is not None
    known_BT = rows.known_BT.clone()
    known_BT[:, 1] = False
    for balance in ("fixed", "uncertainty"):
        losses = TaskLosses(THREE, balance=balance)  # type: ignore[arg-type]
        total, losses_T = losses(logits, RowLabels(rows.labels_BT, known_BT))
        total.backward()
        assert losses_T[1] == 0
        assert not logits[1].grad.any()  # type: ignore[union-attr]
        assert torch.isfinite(total)
        if losses.s_T is not None:
            assert losses.s_T.grad is not None
            assert losses.s_T.grad[1] == 0
            assert losses.s_T.grad[0] != 0
        for logit in logits:
            logit.grad = None


def test_a_weight_of_two_is_the_row_twice() -> None:
    logits, rows = drawn(10)
    assert rows.known_BT is not None
    twice = [*range(10), 3, 7]
    weights_B = torch.ones(10)
    weights_B[[3, 7]] = 2
    weighted, by_weight = TaskLosses(THREE)(logits, RowLabels(rows.labels_BT, rows.known_BT, weights_B))
    repeated, by_row = TaskLosses(THREE)(
        [logit[twice] for logit in logits], RowLabels(rows.labels_BT[twice], rows.known_BT[twice])
    )
    torch.testing.assert_close(by_weight, by_row)
    for one, other in zip(torch.autograd.grad(weighted, logits), torch.autograd.grad(repeated, logits), strict=True):
        torch.testing.assert_close(one, other)


def test_equal_domains_of_one_size_are_the_rows_times_their_number() -> None:
    logits, rows = drawn(12)
    even = RowLabels(rows.labels_BT, None, None, torch.arange(12) % 3)
    by_rows = TaskLosses(THREE)(logits, even)[0]
    by_domain = TaskLosses(THREE, domain_weights="equal", num_domains=3)(logits, even)[0]
    torch.testing.assert_close(by_domain, by_rows * 3)


def test_the_gradients_of_tasks_add_up_and_a_weight_of_none_leaves_the_rest() -> None:
    logits, rows = drawn(12)
    shared = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def gradient(weights: list[float]) -> Tensor:
        total, _ = TaskLosses([TaskLoss(weight) for weight in weights])([logit * shared for logit in logits], rows)
        return torch.autograd.grad(total, shared)[0]

    torch.testing.assert_close(gradient([1, 1, 1]), gradient([1, 0, 0]) + gradient([0, 1, 0]) + gradient([0, 0, 1]))
    total, _ = TaskLosses([TaskLoss()])(
        [logits[0] * shared], RowLabels(rows.labels_BT[:, :1], rows.known_BT[:, :1], rows.weights_B)
    )  # type: ignore[index]
    torch.testing.assert_close(gradient([1, 0, 0]), torch.autograd.grad(total, shared)[0])


def test_uncertainty_is_kendalls_and_settles_at_twice_the_loss() -> None:
    logits, rows = drawn(40)
    losses = TaskLosses(THREE[:1] * 3, balance="uncertainty").double()
    assert losses.s_T is not None
    with torch.no_grad():
        losses.s_T.copy_(torch.tensor([0.3, -0.2, 0.0]))
    total, losses_T = losses(logits, rows)
    expected = (torch.exp(-losses.s_T) * losses_T + losses.s_T / 2).sum()
    torch.testing.assert_close(total, expected)
    optimiser = torch.optim.Adam([losses.s_T], lr=0.05)
    for _ in range(500):
        optimiser.zero_grad()
        losses([logit.detach() for logit in logits], rows)[0].backward()
        optimiser.step()
    torch.testing.assert_close(torch.exp(-losses.s_T), 1 / (2 * losses_T), rtol=1e-3, atol=0)


def test_the_joint_label_of_a_chain() -> None:
    values = [(0, 0), (1, 0), (1, 1), (1, None), (0, None), (None, 0), (None, 1), (None, None)]
    labels_BK = torch.tensor([[float(one or 0) for one in row] for row in values])
    known_BK = torch.tensor([[one is not None for one in row] for row in values])
    labels_B, known_B = joint_labels(labels_BK, known_BK)
    found = [int(label) if known else None for label, known in zip(labels_B, known_B, strict=True)]
    assert found == [0, 0, 1, None, 0, 0, None, None]


LOGITS = st.floats(-50, 50, width=32)


@given(first=LOGITS, second=LOGITS, label=st.booleans())
@settings(max_examples=300)
def test_the_loss_of_a_product_has_the_digits_of_float64(first: float, second: float, label: bool) -> None:
    # Of ln p = -100 a rounding of its last bit is 6e-6 of p in float32.
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        logits = [torch.tensor([one], dtype=dtype, requires_grad=True) for one in (first, second)]
        loss_B = joint_losses(logits, torch.tensor([float(label)], dtype=dtype))
        with mpmath.workdps(60):
            p, q = (1 / (1 + mpmath.exp(-mpmath.mpf(one))) for one in (first, second))
            expected = -mpmath.log(p * q) if label else -mpmath.log(1 - p * q)
            slopes = [-(1 - own) if label else p * q / (1 - p * q) * (1 - own) for own in (p, q)]
        assert loss_B.item() == pytest.approx(float(expected), rel=tolerance, abs=1e-37)
        for gradient, slope in zip(torch.autograd.grad(loss_B.sum(), logits), slopes, strict=True):
            assert gradient.item() == pytest.approx(float(slope), rel=10 * tolerance, abs=1e-30)


def test_with_a_parent_that_is_always_there_the_entire_space_is_the_plain_loss() -> None:
    child_B = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    labels_BT = torch.stack([torch.ones(9), torch.arange(9) % 2], 1).double()
    tasks = [TaskLoss(0.0), TaskLoss(chain=(0, 1))]
    joint = TaskLosses(tasks)([torch.full((9,), 40.0, dtype=torch.float64), child_B], RowLabels(labels_BT))[0]
    plain = functional.binary_cross_entropy_with_logits(child_B, labels_BT[:, 1])
    torch.testing.assert_close(joint, plain)
    one, other = (torch.autograd.grad(loss, child_B)[0] for loss in (joint, plain))
    torch.testing.assert_close(one, other)


def test_the_entire_space_takes_rows_without_the_parent_as_rows_without_the_child() -> None:
    parent_B, child_B = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    labels_BT = torch.tensor([[0, 0], [1, 1], [1, 0], [1, 0]], dtype=torch.float64)
    known_BT = torch.tensor([[True, False], [True, True], [True, True], [True, False]])
    rows = RowLabels(labels_BT, known_BT)
    _, losses_T = TaskLosses([TaskLoss(), TaskLoss(chain=(0, 1))])([parent_B, child_B], rows)
    p_B = torch.sigmoid(parent_B) * torch.sigmoid(child_B)
    expected = -(torch.log(1 - p_B[0]) + torch.log(p_B[1]) + torch.log(1 - p_B[2])) / 3
    torch.testing.assert_close(losses_T[1], expected.detach())
