"""CowClip against a loop over rows and torch's own Adam over the whole table, in float64."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from dmoe.errors import ConfigError
from dmoe.nn.tables.lookup import TableRows
from dmoe.nn.tables.table import MultiTableEmbedding
from dmoe.optim import EMBEDDING_OPTIMISERS, EmbeddingOptimiser, RowClip, make_embedding_optimiser

SIZES, WIDTHS, ROWS = [20, 11], [3, 5], 31
R, ZETA = 0.5, 1e-3


def clipped_by_hand(weight: Tensor, gradient: Tensor, counts: Tensor, widths: list[int]) -> Tensor:
    """The authors' rule, row by row and table by table; `gradient` holds that of L2."""
    found = gradient.clone()
    for row in range(len(weight)):
        first = 0
        for width in widths:
            columns = slice(first, first + width)
            bound = max(1, int(counts[row])) * max(R * weight[row, columns].norm().item(), ZETA)
            norm = gradient[row, columns].norm().item()
            if norm > bound:
                found[row, columns] *= bound / norm
            first += width
    return found


def table(seed: int) -> MultiTableEmbedding:
    torch.manual_seed(seed)
    embedding = MultiTableEmbedding(SIZES, 0, WIDTHS)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


def gradient_of(
    embedding: MultiTableEmbedding, store: EmbeddingOptimiser, ids: Tensor, slopes: Sequence[Tensor | float]
) -> tuple[Tensor, Tensor]:
    """The distinct rows of a batch and the clipped gradient there of Σ slope × vectors."""
    rows = TableRows.read(embedding.batch_rows(ids), store)
    sum((vectors * slope).sum() for vectors, slope in zip(embedding(ids, rows=rows), slopes, strict=True)).backward()
    return rows.rows_U, store.clipped(rows.rows_U, rows.gradient_US, rows.batch.counts_U())


@pytest.fixture(autouse=True)
def _in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["deferred", "dense"])
@pytest.mark.parametrize("l2", [0.0, 1e-2])
@pytest.mark.parametrize("by_count", [False, True])
def test_equals_dense_adam_with_clipping_by_hand(kind: str, l2: float, by_count: bool) -> None:
    """Two tables side by side, L2 by count, flushes, globally clipped steps and a save and load on the way."""
    scale = torch.linspace(0.1, 1, ROWS) if by_count else torch.ones(ROWS)
    own, reference = table(1), nn.Parameter(table(1).weight.detach().clone())
    adam = torch.optim.Adam([reference], lr=1e-3)
    clip = RowClip(R, ZETA, WIDTHS)
    options = {"lr": 1e-3, "l2": l2, "l2_scale_V": scale if by_count else None, "clip": clip}
    store = make_embedding_optimiser(kind, own.weight, **options)
    offsets = torch.tensor([0, SIZES[0]])
    hits = 0
    for number in range(120):
        ids = torch.stack([(torch.rand(12) ** 3 * size).long() for size in SIZES], dim=1)
        slopes = [torch.randn(12, 2, width) * 0.02 for width in WIDTHS]
        found = gradient_of(own, store, ids, slopes)
        dense = torch.zeros_like(reference)
        for column in range(2):
            dense.index_add_(0, ids[:, column] + offsets[column], torch.cat([one[:, column] for one in slopes], dim=1))
        counts = torch.bincount((ids + offsets).reshape(-1), minlength=ROWS)
        whole = dense + l2 * scale.unsqueeze(1) * reference.detach()
        expected = clipped_by_hand(reference.detach(), whole, counts, WIDTHS)
        hits += int((expected != whole).any(dim=1).sum())
        if number % 50 == 0:
            assert store.grad_norm_squared(*found) == pytest.approx(expected.square().sum().item(), rel=1e-9)
        grad_scale = 0.3 if number % 7 == 0 else 1.0
        reference.grad = expected * grad_scale
        adam.step()
        store.write(*found, grad_scale)
        if number % 40 == 0:
            store.flush()
        if number == 60:
            state = {name: value.clone() for name, value in store.state_dict().items()}
            store = make_embedding_optimiser(kind, own.weight, **options)
            store.load_state_dict(state)
    store.flush()
    torch.testing.assert_close(own.weight, reference, rtol=0, atol=1e-9)
    assert 100 < hits < 120 * ROWS


@pytest.mark.parametrize("kind", list(EMBEDDING_OPTIMISERS))
def test_a_gradient_within_its_bound_is_left_as_it_is(kind: str) -> None:
    found = []
    for clip in (None, RowClip(1e6, 1.0)):
        embedding = table(2)
        store = make_embedding_optimiser(kind, embedding.weight, lr=1e-2, clip=clip)
        for step in range(5):
            ids = torch.randint(0, 11, (9, 2), generator=torch.Generator().manual_seed(step))
            store.write(*gradient_of(embedding, store, ids, (1.0, 1.0)))
        store.flush()
        found.append(embedding.weight.detach().clone())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", list(EMBEDDING_OPTIMISERS))
def test_every_kind_is_clipped(kind: str) -> None:
    """After one step of 1e6 times the bound, Adagrad's accumulator and Adam's moments are those of the bound."""
    embedding = table(3)
    before = embedding.weight.detach().clone()
    store = make_embedding_optimiser(kind, embedding.weight, lr=1e-2, clip=RowClip(R, ZETA, WIDTHS))
    found = gradient_of(embedding, store, torch.tensor([[4, 2], [4, 3]]), (1e6, 1e6))
    bounds = [
        count * max(R * before[row, columns].norm().item(), ZETA)
        for row, count in ((4, 2), (SIZES[0] + 2, 1), (SIZES[0] + 3, 1))
        for columns in (slice(0, 3), slice(3, 8))
    ]
    assert store.grad_norm_squared(*found) == pytest.approx(sum(bound**2 for bound in bounds), rel=1e-9)
    store.write(*found)
    assert not torch.equal(embedding.weight.detach(), before)


def test_a_table_that_is_not_to_be_clipped_is_not() -> None:
    clip = RowClip(R, ZETA, WIDTHS, [True, False])
    gradient, weight = torch.full((2, 8), 1e3), torch.ones(2, 8)
    found = clip(gradient, weight, 0.0, torch.ones(2))
    assert torch.equal(found[:, 3:], gradient[:, 3:])
    assert found[:, :3].norm(dim=1).tolist() == pytest.approx([R * 3**0.5] * 2)


def test_what_cannot_be_is_said() -> None:
    weight = nn.Parameter(torch.zeros(4, 3))
    with pytest.raises(ConfigError, match="zeta must be > 0"):
        RowClip(zeta=0)
    with pytest.raises(ConfigError, match="do not sum to the table width 3"):
        make_embedding_optimiser("deferred", weight, lr=1e-3, clip=RowClip(widths=[2]))
    with pytest.raises(ConfigError, match="would be clipped in every row"):
        make_embedding_optimiser("deferred", weight, lr=1e-3, l2=2.0, clip=RowClip())
