"""Fields of every kind to embeddings, against loops over rows, fields, values and tables."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dmoe import DMoE
from dmoe.nn.experts import DNN, FM
from dmoe.nn.tables.bank import Bank, TokenField
from dmoe.nn.tables.fields import FieldEmbedding
from dmoe.nn.tables.pooling import AttentionPooling, TargetPooling

FIELDS = [
    5,
    TokenField(4, width=3),
    TokenField(6, length=4, pooling="sum", multi_valued=True),
    TokenField(7, length=3, pooling="attention", width=5, multi_valued=True),
    TokenField(5, length=4, pooling="target", shares=0, multi_valued=True),
    TokenField(6, width=4, frozen=True),
    3,
    TokenField(4, length=2, multi_valued=True),
]
WIDTHS = [2, 4]
# Per field, the numeric ones last: the tables that hold it.
READERS = [{0, 1}, {0, 1}, {0}, {0, 1}, {1}, {0, 1}, {1}, {0, 1}, {1}, {0, 1}]


def built(readers: list[set[int]] | None = READERS) -> FieldEmbedding:
    torch.manual_seed(3)
    embedding = FieldEmbedding(FIELDS, 2, WIDTHS, readers=readers).double()
    with torch.no_grad():
        for parameter in embedding.parameters():
            parameter.normal_(0, 0.7)
    embedding.set_vectors(5, torch.randn(6, 4, dtype=torch.float64))
    return embedding


def drawn(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    columns = []
    for field in built(None).fields:
        ids = torch.randint(0, field.rows, (rows, field.length), generator=generator)
        if field.multi_valued:
            # Values first, then id 0; some rows have none.
            length = torch.randint(0, field.length + 1, (rows, 1), generator=generator)
            ids = torch.where(torch.arange(field.length) < length, ids.clamp(min=1), 0)
        columns.append(ids)
    return torch.cat(columns, 1), torch.randn(rows, 2, dtype=torch.float64, generator=generator)


class Naive:
    """One embedding vector after another, from the parameters by their meaning."""

    def __init__(self, embedding: FieldEmbedding) -> None:
        self.embedding = embedding

    def bank_of(self, field: int) -> Bank:
        return next(bank for bank in self.embedding.each_bank() if field in bank.numbers)

    def raw(self, field: int, table: int, id_: int) -> Tensor:
        """The row of a vocabulary, before projection."""
        spec = self.embedding.fields[field]
        owner = field if spec.shares is None else spec.shares
        bank = self.bank_of(owner)
        row = bank.tables.field_rows(bank.vocabularies.index(owner)).start + id_
        if spec.frozen:
            return bank.tables.weight[row]
        place = bank.of.index(table)
        return bank.tables.weight[row, bank.tables.table_slice(place)]

    def pooled(self, field: int, table: int, ids: list[int], target: int | None) -> Tensor:
        spec = self.embedding.fields[field]
        vectors = [self.raw(field, table, id_) for id_ in ids if id_ != 0]
        if not vectors:
            return torch.zeros_like(self.raw(field, table, 0))
        if spec.pooling in ("sum", "mean"):
            total = sum(vectors[1:], start=vectors[0])
            return total / len(vectors) if spec.pooling == "mean" else total
        bank = self.bank_of(field)
        module = bank.poolings[bank.of.index(table)][bank.numbers.index(field)]
        if spec.pooling == "attention":
            scores = [
                module.query.weight[0] @ torch.tanh(module.hidden.weight @ v + module.hidden.bias) for v in vectors
            ]
            top = sum(torch.exp(score) * v for score, v in zip(scores, vectors, strict=True))
            return top / sum(torch.exp(score) for score in scores)
        t = self.raw(spec.shares, table, target)
        total = torch.zeros_like(t)
        for v in vectors:
            hidden = module.hidden.weight @ torch.cat([v, t, v - t, v * t]) + module.hidden.bias
            hidden = torch.where(hidden > 0, hidden, module.activation.weight * hidden)
            total = total + (module.output.weight[0] @ hidden + module.output.bias[0]) * v
        return total

    def vector(self, field: int, table: int, ids: list[list[int]], numeric: Tensor) -> Tensor:
        fields = self.embedding.fields
        if field >= len(fields):
            number = field - len(fields)
            for (held_table, held), vectors in zip(
                self.embedding.numeric._held, self.embedding.numeric.vectors, strict=True
            ):
                if held_table == table:
                    return numeric[number] * vectors[held.index(number)]
        spec = fields[field]
        if spec.multi_valued:
            target = ids[spec.shares][0] if spec.shares is not None else None
            vector = self.pooled(field, table, ids[field], target)
        else:
            vector = self.raw(field, table, ids[field][0])
        bank = self.bank_of(field)
        if not len(bank.projections):
            return vector
        return vector @ bank.projections[bank.of.index(table)][bank.numbers.index(field)]

    def __call__(self, ids_BC: Tensor, numeric_BN: Tensor) -> list[Tensor]:
        outputs = []
        for table in range(len(WIDTHS)):
            rows = []
            for row in range(len(ids_BC)):
                ids = [part.tolist() for part in ids_BC[row].split([field.length for field in self.embedding.fields])]
                held = self.embedding.fields_of_table[table]
                rows.append(torch.stack([self.vector(field, table, ids, numeric_BN[row]) for field in held]))
            outputs.append(torch.stack(rows))
        return outputs


@settings(max_examples=15)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_every_kind_equals_the_loops(rows: int, seed: int) -> None:
    embedding = built()
    ids_BC, numeric_BN = drawn(rows, seed)
    for got, want in zip(embedding(ids_BC, numeric_BN), Naive(embedding)(ids_BC, numeric_BN), strict=True):
        torch.testing.assert_close(got, want)


def test_gradients_equal_those_of_the_loops() -> None:
    embedding = built()
    ids_BC, numeric_BN = drawn(7, 11)
    weights = [torch.randn(7, len(held), width, dtype=torch.float64)
               for held, width in zip(embedding.fields_of_table, WIDTHS, strict=True)]  # fmt: skip
    found = []
    for way in (embedding, Naive(embedding)):
        embedding.zero_grad()
        sum((out * weight).sum() for out, weight in zip(way(ids_BC, numeric_BN), weights, strict=True)).backward()
        named = [(name, parameter) for name, parameter in embedding.named_parameters() if parameter.numel()]
        found.append({name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        # The target pooling of table 0, which holds field 4 only for the rows that it shares, reaches nothing.
        assert gradient.abs().max() > 0 or ".poolings.0." in name, name
        torch.testing.assert_close(gradient, found[1][name], msg=name)


def test_fields_of_a_table_stand_in_their_order_and_only_where_they_are_read() -> None:
    embedding = built()
    assert embedding.fields_of_table == ((0, 1, 2, 3, 5, 7, 9), (0, 1, 3, 4, 5, 6, 7, 8, 9))
    # Field 2 is in no bank of table 1, so nothing is kept for it there.
    bank = next(bank for bank in embedding.each_bank() if 2 in bank.numbers)
    assert bank.of == (0,)


def test_plain_fields_are_one_lookup_to_the_bit() -> None:
    torch.manual_seed(5)
    plain = FieldEmbedding([5, 3], 1, [2, 3])
    torch.manual_seed(5)
    # A width of its own that is every table's changes nothing but the bank that it stands in.
    own = FieldEmbedding([TokenField(5, width=2), TokenField(3)], 0, [2])
    assert len(plain.banks) == 1
    assert not len(own.each_bank()[0].projections)
    ids, numeric = torch.tensor([[4, 2], [0, 1]]), torch.randn(2, 1)
    outputs = plain(ids, numeric)
    tables = plain.each_bank()[0].tables
    for output, direct in zip(outputs, tables(ids, numeric), strict=True):
        assert torch.equal(output, direct)


def test_rows_without_values_are_zero_and_finite() -> None:
    for pooling in (AttentionPooling(3), TargetPooling(3)):
        values = torch.randn(2, 4, 3, requires_grad=True)
        present = torch.tensor([[False] * 4, [True, False, False, False]])
        pooled = pooling(values, present, torch.randn(2, 3))
        assert torch.equal(pooled[0], torch.zeros(3))
        pooled.sum().backward()
        assert torch.isfinite(values.grad).all()
        assert not values.grad[~present].any()


def test_duplicate_values_sum_their_gradients() -> None:
    embedding = FieldEmbedding([TokenField(4, length=3, pooling="sum", multi_valued=True)], 0, [2])
    (output,) = embedding(torch.tensor([[2, 2, 0], [2, 3, 0]]))
    output.sum().backward()
    assert embedding.each_bank()[0].tables.weight.grad[:, 0].tolist() == [0, 0, 3, 1]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([TokenField(3, length=2)], "must be multi_valued"),
        ([TokenField(3, frozen=True)], "needs width"),
        ([TokenField(3, length=2, pooling="target", multi_valued=True)], "needs shares"),
        ([4, TokenField(3, length=2, shares=0, multi_valued=True)], "must have the rows and width"),
        ([4, TokenField(4, length=2, shares=1, multi_valued=True)], "rows of its own"),
        ([TokenField(3, width=0)], "at least 1"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: list[int | TokenField], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        FieldEmbedding(fields, 0, [2])


def test_experts_read_the_fields_that_they_name() -> None:
    torch.manual_seed(0)
    experts = [FM(2, 2), DNN(3, 4, hidden_units=[5])]
    model = DMoE(
        [4, 5, 6], 1, [2, 4], experts=experts, expert_fields=[[0, 2], [1, 2, 3]], expert_units=3, gate_embedding_dim=2
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    ids, numeric = torch.tensor([[1, 2, 3], [3, 4, 5], [0, 0, 1]]), torch.randn(3, 1, dtype=torch.float64)
    output = model(ids, numeric)
    tables = model.embedding(ids, numeric)
    assert list(model.embedding.fields_of_table) == [(0, 2), (1, 2, 3), (0, 1, 2, 3)]
    for expert, embeddings, got in zip(model.experts, tables, output.expert_outputs, strict=False):
        torch.testing.assert_close(got, expert(embeddings)[0])
    # Another value of field 1 reaches the second expert and the gate, not the first.
    other = model(ids + torch.tensor([[0, -1, 0], [0, -1, 0], [0, 1, 0]]), numeric)
    assert torch.equal(other.expert_outputs[0], output.expert_outputs[0])
    assert not torch.equal(other.expert_outputs[1], output.expert_outputs[1])


def test_experts_of_one_table_may_read_different_fields() -> None:
    model = DMoE(
        [4, 5, 6], 0, 2, experts=[FM(2, 2), FM(2, 2)], tables="shared", expert_fields=[[0, 1], [1, 2]], expert_units=3
    )
    ids = torch.tensor([[1, 2, 3], [3, 4, 5]])
    shared = model.embedding(ids)[0]
    assert model.embedding.fields_of_table[0] == (0, 1, 2)
    output = model(ids)
    for index, places in enumerate(([0, 1], [1, 2])):
        torch.testing.assert_close(output.expert_outputs[index], model.experts[index](shared[:, places])[0])


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ([[0, 1]], "1 entries for 2 experts"),
        ([[1, 0], None], "rising"),
        ([[0, 9], None], "rising"),
        ([[], None], "rising"),
    ],
)
def test_fields_of_experts_are_checked(asked: list[list[int] | None], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DMoE([4, 5], 0, 2, experts=[FM(2, 2), FM(2, 2)], expert_fields=asked)


def test_frozen_vectors_are_no_parameters_and_stay() -> None:
    embedding = FieldEmbedding([TokenField(4, width=3, frozen=True), 5], 0, [2])
    vectors = torch.arange(12.0).reshape(4, 3)
    embedding.set_vectors(0, vectors)
    assert not any(parameter.shape == (4, 3) for parameter in embedding.parameters())
    assert any(torch.equal(value, vectors) for value in embedding.state_dict().values())
    (output,) = embedding(torch.tensor([[2, 1]]))
    expected = vectors[2] @ embedding.each_bank()[0].projections[0][0]
    torch.testing.assert_close(output[0, 0], expected)
    assert isinstance(embedding.each_bank()[0].projections, nn.ParameterList)
    assert math.isfinite(output.sum().item())


def test_rows_of_a_table_are_those_that_it_looks_up() -> None:
    embedding = built()
    ids_BC, numeric_BN = drawn(5, 2)
    outputs = embedding(ids_BC, numeric_BN)
    rows = embedding.rows_of(0, 1)
    assert rows is not None
    place = embedding.fields_of_table[1].index(0)
    torch.testing.assert_close(outputs[1][:, place], rows[ids_BC[:, 0]])
    own = embedding.rows_of(1, 0)
    assert own is not None
    assert own.shape == (4, 3)
    assert embedding.rows_of(5, 0) is None  # given, not trained
    assert embedding.rows_of(2, 1) is None  # not held
