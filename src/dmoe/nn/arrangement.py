"""Which tables experts read, how wide they are, and where an expert's fields stand among those of its table."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from dmoe.nn.experts.base import Expert
from dmoe.nn.tables.fields import FieldEmbedding


def table_of_expert(tables: Literal["shared", "per-expert"] | Sequence[int], num_experts: int) -> list[int]:
    if tables == "shared":
        return [0] * num_experts
    if tables == "per-expert":
        return list(range(num_experts))
    if isinstance(tables, str):
        raise ValueError(f"DMoE.tables must be 'shared', 'per-expert' or a list of tables, got '{tables}'")
    numbers = list(tables)
    if len(numbers) != num_experts:
        raise ValueError(f"DMoE.tables names {len(numbers)} tables for {num_experts} experts")
    if sorted(set(numbers)) != list(range(len(set(numbers)))):
        raise ValueError(f"DMoE.tables must number the tables 0, 1, 2, …, got {numbers}")
    return numbers


def table_widths(embedding_dim: int | Sequence[int], num_tables: int) -> list[int]:
    widths = [embedding_dim] * num_tables if isinstance(embedding_dim, int) else list(embedding_dim)
    if len(widths) != num_tables:
        raise ValueError(f"DMoE.embedding_dim lists {len(widths)} widths for {num_tables} tables")
    return widths


def fields_of_experts(
    expert_fields: Sequence[Sequence[int] | None] | None, num_experts: int, num_fields: int
) -> list[list[int]]:
    if expert_fields is None:
        expert_fields = [None] * num_experts
    if len(expert_fields) != num_experts:
        raise ValueError(f"DMoE.expert_fields lists {len(expert_fields)} entries for {num_experts} experts")
    found = [list(range(num_fields)) if fields is None else list(fields) for fields in expert_fields]
    for index, own in enumerate(found):
        if not own or own != sorted(set(own)) or own[0] < 0 or own[-1] >= num_fields:
            raise ValueError(f"DMoE.expert_fields[{index}] must be rising numbers of {num_fields} fields, got {own}")
    return found


def gate_places(
    embedding: FieldEmbedding, tables: Sequence[int], fields: Sequence[int] | None
) -> tuple[tuple[int, ...], list[int] | None]:
    """The fields that the tables of a gate hold, and where among them those that it is to read stand; None for all.

    Raises: ValueError if the tables cannot be added, or lack a field.
    """
    held = [embedding.fields_of_table[table] for table in tables]
    if len(set(held)) > 1 or len({embedding.widths[table] for table in tables}) > 1:
        raise ValueError(f"a gate reads the sum of tables {list(tables)}, which must hold the same fields at one width")
    if fields is None:
        return held[0], None
    lacking = [field for field in fields if field not in held[0]]
    if lacking:
        raise ValueError(f"a gate is to read field {lacking[0]}, which table {tables[0]} does not hold")
    return held[0], places_among(sorted(fields), held[0])


def places_name(expert: int) -> str:
    """The buffer that says which of its table's fields an expert reads."""
    return f"places_of_expert_{expert}"


def chosen(embeddings_BFD: Tensor, places_F: Tensor | None) -> Tensor:
    return embeddings_BFD if places_F is None else embeddings_BFD.index_select(1, places_F)


def places_among(own: Sequence[int], held: Sequence[int]) -> list[int] | None:
    return None if list(own) == list(held) else [held.index(field) for field in own]


def check_expert(index: int, expert: Expert, num_fields: int, width: int) -> None:
    for name, expected in (("num_fields", num_fields), ("embedding_dim", width)):
        actual = getattr(expert, name, expected)
        if actual != expected:
            raise ValueError(
                f"experts[{index}] ({type(expert).__name__}) was built with {name}={actual}, "
                f"but the model gives it {name}={expected}"
            )
