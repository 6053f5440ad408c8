"""The compiled loops of inner products, GwPFM and assembled tables, against the torch form that other devices take."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dmoe.errors import DataError
from dmoe.nn.experts import IPNN, GwPFM, pairs
from dmoe.nn.experts import gwpfm as gwpfm_module
from dmoe.nn.experts.pairs import PairProducts
from dmoe.nn.model import DMoE
from dmoe.nn.tables import assembly, lookup
from dmoe.nn.tables import fields as fields_module
from dmoe.nn.tables.bank import TokenField
from dmoe.nn.tables.fields import FieldEmbedding


def value_and_gradients(run: nn.Module, leaves: list[Tensor], *inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    found = run(*inputs)
    outputs = list(found) if isinstance(found, tuple) else [found]
    torch.manual_seed(3)
    loss = torch.stack([(output * torch.randn_like(output)).sum() for output in outputs]).sum()
    gradients = torch.autograd.grad(loss, leaves)
    return outputs, [one.to_dense() if one.is_sparse else one for one in gradients]


def assert_same(first: tuple[list[Tensor], list[Tensor]], second: tuple[list[Tensor], list[Tensor]]) -> None:
    for ours, plain in zip(first, second, strict=True):
        torch.testing.assert_close(ours, plain)


@settings(max_examples=25)
@given(
    fields=st.integers(2, 6),
    rows=st.integers(0, 9),
    diagonal=st.booleans(),
    with_embeddings=st.booleans(),
    piece=st.sampled_from([1, 40, 1 << 19]),
)
def test_inner_products_in_pieces_equal_one_gram_matrix(
    fields: int, rows: int, diagonal: bool, with_embeddings: bool, piece: int
) -> None:
    products = PairProducts(fields, diagonal=diagonal, with_embeddings=with_embeddings)
    embeddings = torch.randn(rows, fields, 3, dtype=torch.float64, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_PIECE_FLOATS", piece)
        in_pieces = value_and_gradients(products, [embeddings], embeddings)
        patch.setattr(pairs, "compiled_loops_serve", lambda _: False)
        assert_same(in_pieces, value_and_gradients(products, [embeddings], embeddings))


def test_inner_products_behind_their_embeddings_are_ipnns_input_by_hand() -> None:
    expert = IPNN(3, 2, output="raw")
    assert expert(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])).tolist() == [[1, 2, 3, 4, 5, 6, 11, 17, 39]]


@settings(max_examples=25)
@given(groups=st.lists(st.integers(0, 2), min_size=3, max_size=7), rows=st.integers(0, 70))
def test_group_sums_in_one_pass_equal_the_matrix_form(groups: list[int], rows: int) -> None:
    groups = [*groups, 0, 1, 2]
    expert = GwPFM(len(groups), 6, groups=groups).double()
    nn.init.normal_(expert.weight)
    embeddings = torch.randn(rows, len(groups), 6, dtype=torch.float64, requires_grad=True)
    leaves = [embeddings, expert.weight]
    one_pass = value_and_gradients(expert, leaves, embeddings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gwpfm_module, "compiled_loops_serve", lambda _: False)
        assert_same(one_pass, value_and_gradients(expert, leaves, embeddings))


def test_second_derivatives_of_the_compiled_forms() -> None:
    embeddings = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    for expert in (GwPFM(4, 4, groups=[0, 1, 1, 0]).double(), IPNN(4, 4, output="raw").double()):
        assert torch.autograd.gradcheck(expert, (embeddings,))
        assert torch.autograd.gradgradcheck(expert, (embeddings,))


# Plain fields of two tables and of one; one that shares the rows of another for table 0 alone; a list; a width of its
# own; numeric fields in table 1.
FIELDS = [
    TokenField(9),
    TokenField(7),
    TokenField(5, length=3, multi_valued=True),
    TokenField(9, shares=0),
    TokenField(6, width=2),
    TokenField(8),
]
READERS = [(0, 1), (0,), (0, 1), (0,), (0, 1), (0, 1), (1,), (0, 1)]


def built(storage: torch.dtype | None) -> FieldEmbedding:
    torch.manual_seed(1)
    embedding = FieldEmbedding(FIELDS, 2, [4, 3], readers=READERS, storage=storage)
    for bank in embedding.each_bank():
        nn.init.normal_(bank.tables.weight)
    return embedding


@pytest.mark.parametrize("storage", [None, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_tables_put_together_at_once_equal_those_of_each_bank(storage: torch.dtype | None, threads: int) -> None:
    embedding = built(storage)
    assert sum(bank.direct for bank in embedding.each_bank()) >= 2
    sizes = [field.rows for field in FIELDS for _ in range(field.length)]
    ids = torch.stack([torch.randint(0, size, (600,)) for size in sizes], dim=1)
    numeric = torch.randn(600, 2)
    leaves = list(embedding.parameters())
    used = [leaf for leaf in leaves if leaf.numel()]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        at_once = value_and_gradients(embedding, used, ids, numeric)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fields_module, "compiled_loops_serve", lambda _: False)
            by_bank = value_and_gradients(embedding, used, ids, numeric)
    finally:
        torch.set_num_threads(before)
    assert_same(at_once, by_bank)


@pytest.mark.parametrize("storage", [None, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_few_rows_are_copied_without_compiled_loops_to_the_same_bits(storage: torch.dtype | None, rows: int) -> None:
    embedding, one_bank = built(storage), FieldEmbedding([3, 5], 2, [2, 3])
    products = PairProducts(4, diagonal=True, with_embeddings=True)
    sizes = [field.rows for field in FIELDS for _ in range(field.length)]
    ids = torch.stack([torch.randint(0, size, (rows,)) for size in sizes], dim=1)
    plain_ids, numeric, vectors = torch.randint(0, 3, (rows, 2)), torch.randn(rows, 2), torch.randn(rows, 4, 3)

    @torch.no_grad()
    def found() -> list[Tensor]:
        return [*embedding(ids, numeric), *one_bank(plain_ids, numeric), products(vectors)]

    copied = found()
    with pytest.MonkeyPatch.context() as patch:
        for module in (assembly, lookup, pairs):
            patch.setattr(module, "FEW_ROWS", -1)
        looped = found()
    assert all(torch.equal(one, other) for one, other in zip(copied, looped, strict=True))


@pytest.mark.parametrize("bad", [-1, 3])
def test_a_bad_id_is_the_same_one_in_few_rows_and_in_many(bad: int) -> None:
    sizes = np.array([4, 3])
    for rows in (lookup.FEW_ROWS, lookup.FEW_ROWS + 1):
        ids = torch.ones(rows, 2, dtype=torch.int32)
        ids[3:5, 1] = ids[5, 0] = bad
        with pytest.raises(DataError, match=rf"row 3 of the batch: categorical field 1 has id {bad}, but"):
            lookup.check_ids(ids, sizes)


def test_a_table_that_no_loss_reads_gets_no_gradient() -> None:
    embedding = built(None)
    sizes = [field.rows for field in FIELDS for _ in range(field.length)]
    ids = torch.stack([torch.randint(0, size, (5,)) for size in sizes], dim=1)
    embedding(ids, torch.randn(5, 2))[1].sum().backward()
    for bank in embedding.each_bank():
        gradient = bank.tables.weight.grad
        if 1 not in bank.of:
            assert gradient is None
        else:
            of_table_1 = bank.tables.table_slice(bank.of.index(1))
            others = torch.ones_like(gradient, dtype=torch.bool)
            others[:, of_table_1] = False
            assert not gradient[others].any()
            assert gradient[:, of_table_1].any()


def test_index_tensors_are_buffers_that_no_file_holds() -> None:
    """No forward pass makes a tensor of indices, which on a GPU would be a copy to it in every step."""
    model = DMoE(
        FIELDS,
        2,
        4,
        experts=[GwPFM(5, 4), IPNN(4, 4, hidden_units=[4])],
        expert_fields=[[0, 1, 2, 3, 7], [0, 2, 5, 6]],
        tables=[0, 0],
        gate_options={"fields": [0, 5]},
        expert_units=4,
        tower_units=(4,),
    )
    sizes = [field.rows for field in FIELDS for _ in range(field.length)]
    ids = torch.stack([torch.randint(0, size, (5,)) for size in sizes], dim=1)
    made: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "tensor", lambda *arguments, **_: made.append(arguments))
        patch.setattr(fields_module, "compiled_loops_serve", lambda _: False)
        model(ids, torch.randn(5, 2))
    assert made == []
    saved = set(model.state_dict())
    assert not [name for name, value in model.named_buffers() if name in saved and not value.is_floating_point()]
