"""Count-aware embeddings against the formula written out, for every way in which fields stand in tables."""

import numpy as np
import pytest
import torch

from dmoe.nn.tables.bank import TokenField
from dmoe.nn.tables.fields import FieldEmbedding
from dmoe.nn.tables.lookup import TableRows
from dmoe.optim import make_embedding_optimiser

COUNTS = [np.array([3, 7, 50, 4, 1, 0]), np.array([0, 0, 9, 2]), np.array([9, 9, 9, 9, 9])]
K = 4.0
PLAIN = [6, 4, 5]
SEVERAL = [TokenField(6), TokenField(4, length=3, multi_valued=True), TokenField(5, width=2)]
SHARED = [TokenField(6), TokenField(6, length=2, multi_valued=True, shares=0, pooling="sum")]


def ids_of(fields, rows=40):
    sizes = [size for field in fields for size in ([field] if isinstance(field, int) else [field.rows] * field.length)]
    return torch.stack([torch.randint(0, size, (rows,)) for size in sizes], dim=1)


def counts_of(fields):
    return [COUNTS[0], COUNTS[0]] if fields is SHARED else [*COUNTS[:2], None]


@pytest.mark.parametrize("fields", [PLAIN, SEVERAL, SHARED])
@pytest.mark.parametrize("numeric", [0, 2])
@pytest.mark.parametrize("readers", [False, True])
def test_folded_rows_give_the_same_without_it(fields, numeric, readers):
    torch.manual_seed(0)
    apart = [[0], [0, 1], [1], [0, 1], [0, 1]]
    of = [*apart[: len(fields)], *apart[3 : 3 + numeric]] if readers else None
    embedding = FieldEmbedding(fields, numeric, [4, 3], readers=of)
    torch.nn.init.normal_(next(embedding.row_tables()).weight)
    ids, values = ids_of(fields), torch.randn(40, numeric) if numeric else None
    plain = embedding(ids, values)
    embedding.shrink(counts_of(fields), K)
    found = embedding(ids, values)
    assert all(not torch.equal(one, other) for one, other in zip(plain, found, strict=True))
    folded = embedding.folded(embedding.state_dict(), "")
    embedding.end_shrinkage()
    assert all(torch.equal(one, other) for one, other in zip(plain, embedding(ids, values), strict=True))
    embedding.load_state_dict(folded)
    for one, other in zip(embedding(ids, values), found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_formula_and_both_gradients():
    """Tokens as n/(n+k) of their own and k/(n+k) of row 1; missing values and fields without counts as they are."""
    torch.manual_seed(1)
    embedding = FieldEmbedding(PLAIN, 0, [4])
    (table,) = embedding.row_tables()
    torch.nn.init.normal_(table.weight)
    embedding.shrink(counts_of(PLAIN), K)
    ids = ids_of(PLAIN)
    weight = table.weight.detach().clone().requires_grad_()
    slopes = torch.randn(40, 3, 4)
    expected = []
    for row in ids.tolist():
        for column, (start, token) in enumerate(zip((0, 6, 10), row, strict=True)):
            kept = COUNTS[column][token] / (COUNTS[column][token] + K) if token >= 2 and column < 2 else 1.0
            expected.append(float(kept) * weight[start + token] + (1 - float(kept)) * weight[start + 1])
    expected_BFD = torch.stack(expected).reshape(40, 3, 4)
    (found_BFD,) = embedding(ids)
    torch.testing.assert_close(found_BFD, expected_BFD, rtol=0, atol=1e-6)
    (expected_BFD * slopes).sum().backward()
    (found_BFD * slopes).sum().backward()
    torch.testing.assert_close(table.weight.grad, weight.grad, rtol=0, atol=1e-5)
    assert "kept_V" not in " ".join(embedding.state_dict())


@pytest.mark.parametrize("kind", ["deferred", "dense"])
@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_trained_as_the_formula_is_by_dense_adam(kind, l2):
    """In float64, with flushes: row 1 of a field learns from every rare token, in both to 1e-9."""
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(2)
        embedding = FieldEmbedding(PLAIN, 0, [4])
        (table,) = embedding.row_tables()
        torch.nn.init.normal_(table.weight)
        reference = table.weight.detach().clone().requires_grad_()
        adam = torch.optim.Adam([reference], lr=1e-2)
        embedding.shrink(counts_of(PLAIN), K)
        rows = make_embedding_optimiser(kind, table.weight, lr=1e-2, l2=l2)
        kept = torch.ones(15)
        for start, counts in ((0, COUNTS[0]), (6, COUNTS[1])):
            tokens = torch.from_numpy(counts[2:]).double()
            kept[start + 2 : start + len(counts)] = tokens / (tokens + K)
        offsets = torch.tensor([0, 6, 10])
        for step in range(60):
            ids, slopes = ids_of(PLAIN, 3), torch.randn(3, 3, 4)
            share = kept[ids + offsets].unsqueeze(-1)
            expected = share * reference[ids + offsets] + (1 - share) * reference[offsets + 1]
            ((expected * slopes).sum() + l2 / 2 * reference.square().sum()).backward()
            read = [TableRows.read(batch, rows) for batch in embedding.batch_rows(ids)]
            (embedding(ids, rows=read)[0] * slopes).sum().backward()
            rows.write(read[0].rows_U, read[0].gradient_US)
            adam.step()
            adam.zero_grad()
            if step % 20 == 0:
                rows.flush()
        rows.flush()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(table.weight, reference, rtol=0, atol=1e-9)
