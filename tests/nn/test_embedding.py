"""The wide embedding against loops over rows, fields and tables, forward and backward."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dmoe.errors import DataError
from dmoe.nn.tables import table as table_module
from dmoe.nn.tables.lookup import TableRows
from dmoe.nn.tables.table import MultiTableEmbedding
from dmoe.optim import DeferredAdam


def make(sizes: Sequence[int], num_numeric: int, widths: Sequence[int]) -> MultiTableEmbedding:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        embedding = MultiTableEmbedding(sizes, num_numeric, widths)
    finally:
        torch.set_default_dtype(previous)
    nn.init.normal_(embedding.weight)
    return embedding


def random_ids(sizes: Sequence[int], rows: int, dtype: torch.dtype = torch.int64) -> Tensor:
    columns = [torch.randint(0, size, (rows,), dtype=dtype) for size in sizes]
    return torch.stack(columns, dim=1) if columns else torch.empty(rows, 0, dtype=dtype)


def naive_forward(
    weight: Tensor, numeric_weight: Tensor, ids: Tensor, numeric: Tensor, sizes: Sequence[int], widths: list[int]
) -> list[Tensor]:
    """out[t][b, f, :] by loops: the row of field f's own id, or value × vector, in table t's columns."""
    outputs = []
    first = 0
    for width in widths:
        rows = []
        for b in range(len(ids)):
            fields = []
            start = 0
            for c, size in enumerate(sizes):
                fields.append(weight[start + int(ids[b, c]), first : first + width])
                start += size
            for n in range(numeric.shape[1]):
                fields.append(numeric[b, n] * numeric_weight[n, first : first + width])
            rows.append(torch.stack(fields))
        outputs.append(torch.stack(rows))
        first += width
    return outputs


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 130), max_size=5),
    num_numeric=st.integers(0, 3),
    widths=st.lists(st.integers(1, 19), min_size=1, max_size=4),
    rows=st.integers(1, 12),
    from_store=st.booleans(),
    id_dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 1000),
)
def test_equals_loops_forward_and_backward(
    sizes: list[int],
    num_numeric: int,
    widths: list[int],
    rows: int,
    from_store: bool,
    id_dtype: torch.dtype,
    seed: int,
) -> None:
    if not sizes and not num_numeric:
        num_numeric = 1
    torch.manual_seed(seed)
    embedding = make(sizes, num_numeric, widths)
    ids = random_ids(sizes, rows, id_dtype)
    numeric = torch.randn(rows, num_numeric, dtype=torch.float64, requires_grad=True)
    rows_read = None
    if from_store:
        rows_read = TableRows.read(embedding.batch_rows(ids), DeferredAdam(embedding.weight, 1e-3))
    outputs = embedding(ids, numeric, rows_read)
    weight = embedding.weight.detach().clone().requires_grad_()
    numeric_weight = embedding.numeric_weight.detach().clone().requires_grad_()
    numeric_too = numeric.detach().clone().requires_grad_()
    expected = naive_forward(weight, numeric_weight, ids, numeric_too, sizes, widths)
    gradients = [torch.randn_like(value) for value in expected]
    for got, want, width in zip(outputs, expected, widths, strict=True):
        assert got.is_contiguous()
        assert got.shape == (rows, len(sizes) + num_numeric, width)
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    torch.autograd.backward(outputs, gradients)
    torch.autograd.backward(expected, gradients)
    gradient = embedding.weight.grad
    if rows_read is not None:
        assert gradient is None
        gradient = torch.zeros_like(embedding.weight)
        gradient[rows_read.rows_U] = rows_read.gradient_US
    pairs: list[tuple[Tensor | None, Tensor | None]] = [
        (gradient, weight.grad),
        (embedding.numeric_weight.grad, numeric_weight.grad),
        (numeric.grad, numeric_too.grad),
    ]
    for got_gradient, want_gradient in pairs:
        assert got_gradient is not None
        # The loops never touch the parameter of a kind of field that is absent: its gradient is None.
        expected_gradient = torch.zeros_like(got_gradient) if want_gradient is None else want_gradient
        torch.testing.assert_close(got_gradient, expected_gradient, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    embedding = make([4, 70, 3], 2, [2, 5])
    ids = random_ids([4, 70, 3], 6)
    numeric = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def lookup(weight: Tensor, numeric_weight: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        parameters = {"weight": weight, "numeric_weight": numeric_weight}
        outputs: tuple[Tensor, ...] = torch.func.functional_call(embedding, parameters, (ids, numeric))
        return outputs

    assert torch.autograd.gradcheck(lookup, (embedding.weight, embedding.numeric_weight, numeric))


def test_a_batch_reads_each_row_once_in_order() -> None:
    embedding = make([50, 1000], 0, [3, 4])
    ids = random_ids([50, 1000], 200)
    batch = embedding.batch_rows(ids)
    rows = torch.cat([ids[:, 0], ids[:, 1] + 50])
    assert torch.equal(batch.rows_U, torch.unique(rows))
    assert torch.equal(batch.rows_U[batch.inverse_BC.long()], ids + torch.tensor([0, 50]))
    assert torch.equal(batch.counts_U(), torch.bincount(rows, minlength=1050)[batch.rows_U])
    torch.autograd.backward([output.sum() for output in embedding(ids)])
    counts = torch.bincount(rows, minlength=1050)
    assert torch.equal(embedding.weight.grad, counts.double().unsqueeze(1).expand(-1, 7))


def test_a_table_that_no_loss_reads_gets_a_zero_gradient() -> None:
    embedding = make([5], 1, [2, 3])
    _, second = embedding(torch.tensor([[1], [1]]), torch.ones(2, 1, dtype=torch.float64))
    second.sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.numeric_weight.grad is not None
    assert torch.equal(embedding.weight.grad[1], torch.tensor([0.0, 0, 2, 2, 2], dtype=torch.float64))
    assert torch.equal(embedding.numeric_weight.grad[0], torch.tensor([0.0, 0, 2, 2, 2], dtype=torch.float64))


def test_non_contiguous_gradients_and_ids() -> None:
    embedding = make([6, 9], 0, [4])
    ids = random_ids([6, 9], 5).t().contiguous().t()
    (output,) = embedding(ids)
    output.transpose(0, 2).contiguous().square().sum().backward()
    weight = embedding.weight.detach().clone().requires_grad_()
    torch.autograd.backward((nn.functional.embedding(ids + torch.tensor([0, 6]), weight) ** 2).sum())
    torch.testing.assert_close(embedding.weight.grad, weight.grad)


def test_outputs_may_be_changed_in_place_independently() -> None:
    embedding = make([6], 0, [2, 2])
    first, second = embedding(torch.tensor([[1], [2]]))
    before = second.detach().clone()
    first.mul_(3)
    assert torch.equal(second, before)
    first.sum().backward()
    assert embedding.weight.grad is not None
    assert torch.equal(embedding.weight.grad[1], torch.tensor([3.0, 3, 0, 0], dtype=torch.float64))


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    sizes = [3, 5000, 40, 7, 300]
    embedding = MultiTableEmbedding(sizes, 2, [5, 16])
    ids, numeric = random_ids(sizes, 5000, torch.int32), torch.randn(5000, 2)
    gradients = [torch.randn(5000, 7, width) for width in (5, 16)]
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            embedding.zero_grad()
            outputs = embedding(ids, numeric)
            torch.autograd.backward(outputs, gradients)
            assert embedding.weight.grad is not None
            results.append((*(output.detach() for output in outputs), embedding.weight.grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("from_store", [False, True])
def test_the_form_for_other_devices_equals_the_compiled_loops(from_store: bool, monkeypatch) -> None:
    sizes, widths = [3, 200, 40], [3, 6]
    embedding = make(sizes, 2, widths)
    ids, numeric = random_ids(sizes, 64), torch.randn(64, 2, dtype=torch.float64)
    slopes = [torch.randn(64, 5, width, dtype=torch.float64) for width in widths]
    found = []
    for form in ("compiled", "torch"):
        if form == "torch":
            monkeypatch.setattr(table_module, "compiled_loops_serve", lambda _: False)
        rows = TableRows.read(embedding.batch_rows(ids), DeferredAdam(embedding.weight, 1e-3)) if from_store else None
        outputs = embedding(ids, numeric, rows)
        leaves = [embedding.weight if rows is None else rows.values_US, embedding.numeric_weight]
        loss = sum((output * slope).sum() for output, slope in zip(outputs, slopes, strict=True))
        found.append((*outputs, *torch.autograd.grad(loss, leaves)))
    for compiled, plain in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-13, atol=1e-13)


def test_the_exported_program_gives_the_same_embeddings() -> None:
    embedding = make([6, 9], 2, [4, 3])
    ids, numeric = random_ids([6, 9], 5), torch.randn(5, 2, dtype=torch.float64)
    program = torch.export.export(embedding, (ids, numeric))
    for got, want in zip(program.module()(ids, numeric), embedding(ids, numeric), strict=True):
        assert torch.equal(got, want)


def test_initial_values_have_the_documented_spread() -> None:
    embedding = MultiTableEmbedding([40_000], 3000, [1, 7])
    assert embedding.weight.std().item() == pytest.approx(1e-4, rel=0.02)
    assert embedding.numeric_weight[:, :1].std().item() == pytest.approx(1.0, rel=0.05)
    assert embedding.numeric_weight[:, 1:].std().item() == pytest.approx(0.5, rel=0.05)


def test_slices_name_the_columns_and_rows_of_a_table_and_a_field() -> None:
    embedding = make([4, 6], 0, [2, 3])
    first, second = embedding(torch.tensor([[3, 5]]))
    assert torch.equal(first[0, 1], embedding.weight[9, embedding.table_slice(0)])
    assert torch.equal(second[0, 0], embedding.table(1)[3])
    assert embedding.field_rows(1) == slice(4, 10)


@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1])
def test_an_id_out_of_range_names_row_and_field(bad: int) -> None:
    embedding = MultiTableEmbedding([9, 5], 0, [2], field_names=["site", "device_ip"])
    ids = torch.tensor([[8, 4], [0, bad]])
    with pytest.raises(DataError, match=rf"row 1 .* field 1 'device_ip' has id {bad}, .* ids 0 to 4"):
        embedding(ids)


@pytest.mark.parametrize(
    ("ids", "numeric", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 1), r"ids must be \(rows, 2\)"),
        (torch.zeros(2, 2), torch.zeros(2, 1), "ids must be int32 or int64"),
        (torch.zeros(2, 2, dtype=torch.int64), None, "1 numeric fields; pass numeric"),
        (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3, 1), r"numeric must be \(2, 1\)"),
    ],
)
def test_wrong_input_is_refused(ids: Tensor, numeric: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiTableEmbedding([4, 4], 1, [2])(ids, numeric)


@pytest.mark.parametrize(
    ("sizes", "num_numeric", "widths"), [([], 0, [2]), ([3], 0, []), ([3], 0, [2, 0]), ([0], 0, [2])]
)
def test_wrong_sizes_are_refused(sizes: list[int], num_numeric: int, widths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"must|need"):
        MultiTableEmbedding(sizes, num_numeric, widths)


def test_trains_with_an_ordinary_optimiser() -> None:
    embedding = MultiTableEmbedding([20], 0, [1])
    ids = random_ids([20], 256)
    target = torch.where(ids % 2 == 0, 1.0, -1.0)
    optimiser = torch.optim.Adam(embedding.parameters(), lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        (embedding(ids)[0][..., 0] - target).square().mean().backward()
        optimiser.step()
    assert (embedding(ids)[0][..., 0] - target).abs().max().item() < 0.01
