"""The embedding optimisers against torch's own, over the whole table, in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dmoe.errors import ConfigError, DataError
from dmoe.nn.tables.lookup import TableRows
from dmoe.nn.tables.table import MultiTableEmbedding
from dmoe.optim import (
    EMBEDDING_OPTIMISERS,
    DeferredAdam,
    DenseAdam,
    EmbeddingOptimiser,
    LazyAdam,
    RowwiseAdagrad,
    make_embedding_optimiser,
)

ROWS, WIDTH = 30, 5


def sparse(rows: Tensor, values: Tensor, num_rows: int) -> Tensor:
    shape = torch.Size((num_rows, values.shape[1]))
    return torch.sparse_coo_tensor(rows[None], values, shape, is_coalesced=True, check_invariants=False)


def random_rows(num_rows: int, count: int, skew: float) -> Tensor:
    """Ascending distinct rows, low ones often, high ones rarely."""
    rows: Tensor = torch.unique((torch.rand(count) ** skew * num_rows).long())
    return rows


class Reference:
    """torch.optim.Adam with (λ/2)‖W‖², or Σ (λ_v/2)‖w_v‖², in the loss and the whole gradient clipped."""

    def __init__(self, weight: Tensor, lr: float, l2: float | Tensor, **settings: Any) -> None:
        self.weight = nn.Parameter(weight.clone())
        self.l2_V1 = torch.as_tensor(l2, dtype=weight.dtype).reshape(-1, 1)
        self.adam = torch.optim.Adam([self.weight], lr=lr, **settings)

    def gradient(self, rows: Tensor, values: Tensor) -> Tensor:
        self.weight.grad = None
        dense = torch.zeros_like(self.weight)
        dense[rows] = values
        ((self.l2_V1 / 2 * self.weight.square()).sum() + (self.weight * dense).sum()).backward()  # type: ignore[no-untyped-call]
        assert self.weight.grad is not None
        return self.weight.grad

    def step(self, rows: Tensor, values: Tensor, grad_scale: float) -> None:
        self.gradient(rows, values).mul_(grad_scale)
        self.adam.step()

    def set_lr(self, lr: float) -> None:
        self.adam.param_groups[0]["lr"] = lr


def step(optimiser: EmbeddingOptimiser, rows: Tensor, values: Tensor, grad_scale: float = 1.0) -> None:
    optimiser.write(rows, values, grad_scale)


@pytest.mark.parametrize(
    ("kind", "l2", "initial"),
    [
        *(("deferred", l2, initial) for l2 in (0.0, 1e-8, 1e-5, 1e-3) for initial in (1.0, 1e-4)),
        ("dense", 0.0, 1.0),
        ("dense", 1e-3, 1.0),
    ],
)
def test_2000_steps_equal_dense_adam(kind: str, l2: float, initial: float) -> None:
    """With flushes, changes of the learning rate, clipped steps, and a save and load in the middle."""
    weight = initial * torch.randn(ROWS, WIDTH, dtype=torch.float64)
    reference = Reference(weight, 1e-3, l2)
    optimiser = make_embedding_optimiser(kind, nn.Parameter(weight.clone()), lr=1e-3, l2=l2)
    for number in range(2000):
        if number in (500, 700, 1200):
            lr = {500: 4e-3, 700: 1e-4, 1200: 1e-3}[number]
            reference.set_lr(lr)
            optimiser.set_lr(lr)
        if number == 1000:
            state = {name: tensor.clone() for name, tensor in optimiser.state_dict().items()}
            saved = nn.Parameter(optimiser.weight.detach().clone())
            optimiser = make_embedding_optimiser(kind, saved, lr=1e-4, l2=l2)
            optimiser.load_state_dict(state)
        rows = random_rows(ROWS, 3, 8.0)
        values = 0.01 * torch.randn(len(rows), WIDTH, dtype=torch.float64)
        optimiser.catch_up(rows)
        torch.testing.assert_close(optimiser.weight[rows], reference.weight[rows], rtol=0, atol=1e-9)
        grad_scale = 0.2 if number % 7 == 0 else 1.0
        reference.step(rows, values, grad_scale)
        step(optimiser, rows, values, grad_scale)
        if number % 401 == 0:
            optimiser.flush()
            torch.testing.assert_close(optimiser.weight, reference.weight, rtol=0, atol=1e-9)
    optimiser.flush()
    torch.testing.assert_close(optimiser.weight, reference.weight, rtol=1e-9, atol=1e-9)
    assert (optimiser.weight - weight).abs().max() > 1e-3 * initial


@pytest.mark.parametrize("kind", ["deferred", "dense"])
@pytest.mark.parametrize("l2", [1e-8, 1e-4, 1e-1])
def test_l2_of_each_row_equals_dense_adam_with_it(kind: str, l2: float) -> None:
    """Regularisation by a token's count, in float64, with flushes, clipped steps, reads and a save and load."""
    scale = torch.linspace(-4, 0, ROWS, dtype=torch.float64).exp()
    weight = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    reference = Reference(weight, 1e-3, l2 * scale)
    optimiser = make_embedding_optimiser(kind, nn.Parameter(weight.clone()), lr=1e-3, l2=l2, l2_scale_V=scale)
    for number in range(800):
        if number == 400:
            state = {name: tensor.clone() for name, tensor in optimiser.state_dict().items()}
            saved = nn.Parameter(optimiser.weight.detach().clone())
            optimiser = make_embedding_optimiser(kind, saved, lr=1e-3, l2=l2, l2_scale_V=scale)
            optimiser.load_state_dict(state)
        rows = random_rows(ROWS, 3, 8.0)
        values = 0.01 * torch.randn(len(rows), WIDTH, dtype=torch.float64)
        optimiser.catch_up(rows)
        torch.testing.assert_close(optimiser.weight[rows], reference.weight[rows], rtol=0, atol=1e-9)
        if number % 50 == 0:
            expected = reference.gradient(rows, values).square().sum().item()
            assert optimiser.grad_norm_squared(rows, values) == pytest.approx(expected, rel=1e-9)
        grad_scale = 0.2 if number % 7 == 0 else 1.0
        reference.step(rows, values, grad_scale)
        step(optimiser, rows, values, grad_scale)
        if number % 201 == 0:
            optimiser.flush()
    optimiser.flush()
    torch.testing.assert_close(optimiser.weight, reference.weight, rtol=0, atol=1e-9)


@settings(max_examples=60)
@given(
    num_rows=st.integers(1, 12),
    width=st.integers(1, 20),
    l2=st.sampled_from([0.0, 1e-9, 1e-6, 1e-3, 0.1]),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.9), (0.5, 0.99), (0.9, 0.9)]),
    eps=st.sampled_from([1e-8, 1e-3]),
    lr=st.sampled_from([1e-3, 0.1]),
    touches=st.lists(
        st.tuples(st.sets(st.integers(0, 11), max_size=4), st.floats(0.01, 1.0), st.booleans()), max_size=60
    ),
    gap=st.integers(0, 90),
    seed=st.integers(0, 1000),
)
def test_any_touch_pattern_equals_dense_adam(
    num_rows: int,
    width: int,
    l2: float,
    betas: tuple[float, float],
    eps: float,
    lr: float,
    touches: list[tuple[set[int], float, bool]],
    gap: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(num_rows, width, dtype=torch.float64)
    reference = Reference(weight, lr, l2, betas=betas, eps=eps)
    optimiser = DeferredAdam(nn.Parameter(weight.clone()), lr, betas, eps, l2)
    for chosen, grad_scale, flush in [*touches, *[(set[int](), 1.0, False)] * gap]:
        rows = torch.tensor(sorted(row for row in chosen if row < num_rows), dtype=torch.int64)
        values = torch.randn(len(rows), width, dtype=torch.float64)
        reference.step(rows, values, grad_scale)
        step(optimiser, rows, values, grad_scale)
        if flush:
            optimiser.flush()
    optimiser.flush()
    torch.testing.assert_close(optimiser.weight, reference.weight, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("l2", [0.0, 1e-8, 1e-5])
def test_float32_stays_close_to_dense_adam_in_float32(l2: float) -> None:
    weight = 1e-4 * torch.randn(2000, 16)
    exact, reference = Reference(weight.double(), 1e-3, l2), Reference(weight, 1e-3, l2)
    optimiser = DeferredAdam(nn.Parameter(weight.clone()), 1e-3, l2=l2)
    for _ in range(600):
        rows = random_rows(2000, 60, 3.0)
        values = 1e-3 * torch.randn(len(rows), 16)
        exact.step(rows, values.double(), 1.0)
        reference.step(rows, values, 1.0)
        step(optimiser, rows, values)
    optimiser.flush()
    ours = (optimiser.weight.double() - exact.weight).abs().max().item()
    dense = (reference.weight.double() - exact.weight).abs().max().item()
    # Both round at every step; the deferred form may not be further from exact arithmetic than a small
    # multiple of what dense float32 training is.
    assert ours < 4 * dense
    assert ours < 1e-5


@pytest.mark.parametrize("l2", [0.0, 1e-6])
@pytest.mark.parametrize("width", [3, 8, 21])
def test_flushes_and_reads_change_no_bit(l2: float, width: int) -> None:
    weight = torch.randn(40, width)
    plain = DeferredAdam(nn.Parameter(weight.clone()), 1e-2, l2=l2)
    busy = DeferredAdam(nn.Parameter(weight.clone()), 1e-2, l2=l2)
    for number in range(300):
        rows = random_rows(40, 3, 4.0)
        values = torch.randn(len(rows), width)
        step(plain, rows, values)
        step(busy, rows, values)
        if number % 13 == 5:
            busy.flush()
        if number % 50 == 7:
            state = {name: tensor.clone() for name, tensor in busy.state_dict().items()}
            busy = DeferredAdam(nn.Parameter(busy.weight.detach().clone()), 1e-2, l2=l2)
            busy.load_state_dict(state)
        if number == 150:
            plain.set_lr(3e-2)
        if number >= 150:
            busy.set_lr(3e-2)
    plain.flush()
    busy.flush()
    assert torch.equal(plain.weight, busy.weight)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, busy.state_dict()[name]), name


@pytest.mark.parametrize("l2", [0.0, 1e-6])
def test_bits_do_not_depend_on_the_number_of_threads(l2: float) -> None:
    weight = torch.randn(3000, 7)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            torch.manual_seed(1)
            optimiser = DeferredAdam(nn.Parameter(weight.clone()), 1e-2, l2=l2)
            norms = []
            for _ in range(30):
                rows = random_rows(3000, 1500, 2.0)
                values = torch.randn(len(rows), 7)
                norms.append(optimiser.grad_norm_squared(rows, values, 10.0))
                optimiser.write(rows, values)
            optimiser.flush()
            results.append((optimiser.weight.detach(), norms))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0][0], weight) and results[0][1] == norms for weight, norms in results)


def test_rows_with_l2_that_died_out_stay_zero_and_revive() -> None:
    """lr·λ/eps = 1: an untouched weight falls below the smallest normal float32 within 3,000 steps."""
    weight = 1e-4 * torch.randn(2, 3)
    reference = Reference(weight.double(), 1e-3, 1e-5)
    optimiser = DeferredAdam(nn.Parameter(weight.clone()), 1e-3, l2=1e-5)
    for _ in range(3000):
        step(optimiser, torch.tensor([0]), torch.ones(1, 3))
        reference.step(torch.tensor([0]), torch.ones(1, 3, dtype=torch.float64), 1.0)
    optimiser.flush()
    assert torch.count_nonzero(optimiser.weight[1]) == 0
    assert reference.weight[1].abs().max().item() < 1e-37
    step(optimiser, torch.tensor([1]), torch.ones(1, 3))
    reference.step(torch.tensor([1]), torch.ones(1, 3, dtype=torch.float64), 1.0)
    optimiser.flush()
    torch.testing.assert_close(optimiser.weight.double(), reference.weight, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["deferred", "dense"])
@pytest.mark.parametrize("l2", [0.0, 1e-4, 0.5])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_gradient_norm_is_that_of_the_dense_gradient(kind: str, l2: float, clip_norm: float | None) -> None:
    weight = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    reference = Reference(weight, 1e-2, l2)
    optimiser = make_embedding_optimiser(kind, nn.Parameter(weight.clone()), lr=1e-2, l2=l2)
    for _ in range(50):
        rows = random_rows(ROWS, 4, 3.0)
        values = torch.randn(len(rows), WIDTH, dtype=torch.float64)
        expected = reference.gradient(rows, values).square().sum().item()
        assert optimiser.grad_norm_squared(rows, values, clip_norm) == pytest.approx(expected, rel=1e-9)
        scale = min(1.0, 1.0 / expected**0.5)
        reference.step(rows, values, scale)
        optimiser.write(rows, values, scale)
    optimiser.flush()
    torch.testing.assert_close(optimiser.weight, reference.weight, rtol=0, atol=1e-9)


def test_a_negligible_l2_norm_is_left_out_without_a_flush() -> None:
    weight = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    l2, clip_norm = 1e-7, 10.0
    optimiser = DeferredAdam(nn.Parameter(weight.clone()), 1e-2, l2=l2)
    step(optimiser, torch.tensor([0]), torch.ones(1, WIDTH, dtype=torch.float64))
    reference = Reference(weight, 1e-2, l2)
    reference.step(torch.tensor([0]), torch.ones(1, WIDTH, dtype=torch.float64), 1.0)
    rows, values = torch.tensor([1]), 20 * torch.ones(1, WIDTH, dtype=torch.float64)
    expected = reference.gradient(rows, values).square().sum().item()
    got = optimiser.grad_norm_squared(rows, values, clip_norm)
    assert torch.equal(optimiser.weight[2], weight[2])  # not flushed
    assert clip_norm / got**0.5 == pytest.approx(clip_norm / expected**0.5, rel=2.0**-24)
    assert optimiser.grad_norm_squared(rows, values) == pytest.approx(expected, rel=1e-12)


def test_lazy_equals_torch_sparse_adam() -> None:
    weight = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    ours, theirs = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    optimiser, reference = LazyAdam(ours, 1e-2), torch.optim.SparseAdam([theirs], lr=1e-2)
    for _ in range(200):
        rows = random_rows(ROWS, 4, 3.0)
        values = torch.randn(len(rows), WIDTH, dtype=torch.float64)
        theirs.grad = sparse(rows, 0.5 * values, ROWS)
        reference.step()  # type: ignore[no-untyped-call]
        step(optimiser, rows, values, grad_scale=0.5)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("widths", [None, [2, 3]])
def test_rowwise_adagrad_equals_loops(widths: list[int] | None) -> None:
    weight = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    optimiser = RowwiseAdagrad(nn.Parameter(weight.clone()), 0.1, widths=widths)
    expected = weight.clone()
    sums: dict[tuple[int, int], float] = {}
    for _ in range(50):
        rows = random_rows(ROWS, 4, 3.0)
        values = torch.randn(len(rows), WIDTH, dtype=torch.float64)
        step(optimiser, rows, values, grad_scale=0.5)
        for index, row in enumerate(rows.tolist()):
            first = 0
            for width in widths or [WIDTH]:
                gradient = [0.5 * float(values[index, first + column]) for column in range(width)]
                key = (row, first)
                sums[key] = sums.get(key, 0.0) + sum(g * g for g in gradient) / width
                for column, g in enumerate(gradient):
                    expected[row, first + column] -= 0.1 * g / (sums[key] ** 0.5 + 1e-8)
                first += width
    torch.testing.assert_close(optimiser.weight.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", sorted(EMBEDDING_OPTIMISERS))
def test_save_and_load_continue_the_same_run(kind: str) -> None:
    def run(optimiser: EmbeddingOptimiser, steps: int) -> None:
        for _ in range(steps):
            rows = random_rows(ROWS, 4, 3.0)
            step(optimiser, rows, torch.randn(len(rows), WIDTH))

    weight = torch.randn(ROWS, WIDTH)
    one = make_embedding_optimiser(kind, nn.Parameter(weight.clone()), lr=1e-2)
    run(one, 20)
    state = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    two = make_embedding_optimiser(kind, nn.Parameter(one.weight.detach().clone()), lr=1e-2)
    two.load_state_dict(state)
    for optimiser in (one, two):
        torch.manual_seed(3)
        run(optimiser, 20)
        optimiser.flush()
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, weight)


def trained_table(kind: str, **settings: Any) -> tuple[MultiTableEmbedding, EmbeddingOptimiser]:
    embedding = MultiTableEmbedding([50, 8], 0, [3, 2])
    nn.init.normal_(embedding.weight)
    return embedding, make_embedding_optimiser(kind, embedding.weight, lr=1e-2, **settings)


def train(embedding: MultiTableEmbedding, optimiser: EmbeddingOptimiser, steps: int = 40) -> None:
    torch.manual_seed(5)
    for _ in range(steps):
        ids = torch.stack([(torch.rand(6) ** 4 * 50).long(), torch.randint(0, 8, (6,))], dim=1)
        rows = TableRows.read(embedding.batch_rows(ids), optimiser)
        sum(output.square().mean() for output in embedding(ids, rows=rows)).backward()
        optimiser.write(rows.rows_U, rows.gradient_US)


@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_rows_that_are_read_have_all_steps_taken_and_after_a_flush_all_have(l2: float) -> None:
    torch.manual_seed(0)
    deferred, deferred_optimiser = trained_table("deferred", l2=l2)
    torch.manual_seed(0)
    dense, dense_optimiser = trained_table("dense", l2=l2)
    train(deferred, deferred_optimiser)
    train(dense, dense_optimiser)
    some = torch.tensor([0, 3, 49, 57])
    torch.testing.assert_close(deferred_optimiser.read(some), dense.weight.detach()[some], rtol=0, atol=2e-6)
    assert not torch.allclose(deferred.weight, dense.weight, rtol=0, atol=2e-6)
    deferred_optimiser.flush()
    torch.testing.assert_close(deferred.weight, dense.weight, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", sorted(EMBEDDING_OPTIMISERS))
def test_a_forward_pass_changes_nothing(kind: str) -> None:
    embedding, optimiser = trained_table(kind)
    train(embedding, optimiser, 3)
    before = {name: tensor.clone() for name, tensor in optimiser.state_dict(flush=False).items()}
    weight = embedding.weight.detach().clone()
    ids = torch.tensor([[1, 2], [40, 3]])
    with torch.no_grad():
        embedding(ids)
    sum(output.sum() for output in embedding(ids)).backward()
    assert torch.equal(weight, embedding.weight)
    for name, tensor in optimiser.state_dict(flush=False).items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("kind", sorted(EMBEDDING_OPTIMISERS))
def test_two_backward_passes_before_a_step_add_up(kind: str) -> None:
    torch.manual_seed(1)
    one, first = trained_table(kind)
    torch.manual_seed(1)
    two, second = trained_table(kind)
    ids = torch.tensor([[1, 4], [1, 5]])
    rows = TableRows.read(one.batch_rows(ids), first)
    assert torch.equal(rows.gradient_US, torch.zeros(3, 5))
    for _ in range(2):
        sum(output.sum() for output in one(ids, rows=rows)).backward()
    first.write(rows.rows_U, rows.gradient_US)
    step(second, torch.tensor([1, 54, 55]), torch.tensor([4.0, 2, 2])[:, None].expand(3, 5))
    assert torch.equal(one.weight, two.weight)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("defered", {}, "no embedding optimiser 'defered'; did you mean 'deferred'"),
        ("deferred", {"lr": -1.0}, "lr must be >= 0"),
        ("deferred", {"lr": float("nan")}, "lr must be >= 0"),
        ("dense", {"betas": (1.0, 0.9)}, r"betas must be in \[0, 1\)"),
        ("deferred", {"eps": 0.0}, "eps must be > 0"),
        ("deferred", {"l2": -1e-3}, "embedding_l2 must be >= 0"),
        ("deferred", {"l2": 1e-3, "l2_scale_V": torch.ones(2)}, r"l2_scale_V must be \(\d+,\), got \(2,\)"),
        ("deferred", {"betas": (0.99, 0.9)}, "beta1 < sqrt"),
        ("lazy", {"l2": 1e-3}, "use 'deferred' or embedding_l2: 0"),
        ("rowwise-adagrad", {"widths": [2]}, "do not sum to the table width 5"),
    ],
)
def test_wrong_settings_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_embedding_optimiser(kind, nn.Parameter(torch.zeros(3, WIDTH)), **{"lr": 0.1, **options})


@pytest.mark.parametrize("kind", sorted(set(EMBEDDING_OPTIMISERS) - {"deferred"}))
def test_half_precision_tables_need_deferred(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"embedding_storage: a table in float16 .* not by '{kind}' on cpu"):
        make_embedding_optimiser(kind, nn.Parameter(torch.zeros(3, WIDTH, dtype=torch.float16)), lr=0.1)


def test_tables_of_integers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"table of floats on the CPU, got torch\.int32"):
        DeferredAdam(nn.Parameter(torch.zeros(3, WIDTH, dtype=torch.int32), requires_grad=False), 0.1)


def test_state_of_another_optimiser_or_model_is_refused() -> None:
    deferred = DeferredAdam(nn.Parameter(torch.zeros(3, WIDTH)), 0.1)
    dense = DenseAdam(nn.Parameter(torch.zeros(3, WIDTH)), 0.1)
    with pytest.raises(DataError, match="resume with the optimiser"):
        deferred.load_state_dict(dense.state_dict())
    larger = DeferredAdam(nn.Parameter(torch.zeros(4, WIDTH)), 0.1)
    with pytest.raises(DataError, match=r"'first_moment' has shape \(3, 5\)"):
        deferred.load_state_dict(larger.state_dict())
