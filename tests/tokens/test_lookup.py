"""The look-up of tokens, in memory and mapped from files, against a dictionary."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.errors import DataError
from dmoe.schema import OOV_ID, CategoricalField, vocabulary_path
from dmoe.tokens import lookup
from dmoe.tokens.lookup import TokenTable, open_tokens, tokens_path, write_tokens
from dmoe.tokens.vocabulary import VOCABULARY, read_tokens

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def vocabulary(folder: Path, tokens: list[str], name: str = "f") -> CategoricalField:
    """A vocabulary file of these tokens, and the field that it is of."""
    ids = range(2, len(tokens) + 2)
    path = vocabulary_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table([tokens, [1] * len(tokens), [*ids]], schema=VOCABULARY), path)
    return CategoricalField(name=name, vocabulary_size=len(tokens) + 2)


def both(folder: Path, tokens: list[str], name: str = "f") -> list[TokenTable]:
    """In memory, and mapped."""
    field = vocabulary(folder, tokens, name)
    in_memory = open_tokens(folder, field)
    write_tokens(vocabulary_path(folder, name), tokens_path(folder, name))
    return [in_memory, open_tokens(folder, field)]


@settings(max_examples=30)
@given(
    tokens=st.lists(TEXTS, unique=True, max_size=30),
    asked=st.lists(TEXTS, max_size=30),
    at_once=st.integers(1, 40),
    sorted_at_once=st.integers(1, 40),
    hashes=st.sampled_from([1, 3, 2**64 - 1]),
)
def test_it_equals_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: list[str],
    asked: list[str],
    at_once: int,
    sorted_at_once: int,
    hashes: int,
) -> None:
    """Of tokens many of which have one hash, too, read and sorted some at a time."""
    real = lookup.xxh3_64_intdigest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "AT_ONCE", at_once)
        patch.setattr(lookup, "_SORTED_AT_ONCE", sorted_at_once)
        patch.setattr(lookup, "xxh3_64_intdigest", lambda text: real(text) % hashes * (2**64 // hashes))
        by_token = {token: id_ for id_, token in enumerate(tokens, 2)}
        for table in both(tmp_path_factory.mktemp("tokens"), tokens):
            assert len(table) == len(tokens)
            assert table.ids([*asked, *tokens]).tolist() == [by_token.get(text, OOV_ID) for text in [*asked, *tokens]]
            assert table.texts(np.arange(len(tokens) + 1, 1, -1)) == tokens[::-1]


def test_a_text_with_the_hash_of_a_token_is_still_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "xxh3_64_intdigest", lambda _: 7)
    for table in both(tmp_path, ["known"]):
        assert table.ids(["other", "known"]).tolist() == [OOV_ID, 2]


def test_names_of_fields_do_not_meet(tmp_path: Path) -> None:
    tables = {name: both(tmp_path, [name, "x"], name) for name in ("a", "a.tokens", "a.parquet", "A")}
    for name, found in tables.items():
        for table in found:
            assert table.texts(np.array([2])) == [name]


@pytest.mark.parametrize("large", [False, True])
def test_a_text_that_is_there_twice_is_refused(tmp_path: Path, large: bool) -> None:
    field = vocabulary(tmp_path, ["a", "b", "a"])
    with pytest.raises(DataError, match=r"f\.parquet: does not hold each text once; prepare the data again"):
        write_tokens(vocabulary_path(tmp_path, "f"), tokens_path(tmp_path, "f")) if large else open_tokens(
            tmp_path, field
        )


@pytest.mark.parametrize("ids", [[2, 2], [3, 2], [1, 2], [3, 4]])
def test_ids_that_are_not_those_of_the_rows_are_refused(tmp_path: Path, ids: list[int]) -> None:
    field = vocabulary(tmp_path, ["a", "b"])
    path = vocabulary_path(tmp_path, "f")
    pq.write_table(pa.table([["a", "b"], [1, 1], ids], schema=VOCABULARY), path)
    with pytest.raises(DataError, match=r"f\.parquet: does not hold each id once, in their order"):
        read_tokens(tmp_path, field)
    with pytest.raises(DataError, match=r"f\.parquet: does not hold each id once, in their order"):
        write_tokens(path, tokens_path(tmp_path, "f"))


def test_files_that_do_not_fit_say_what_to_do(tmp_path: Path) -> None:
    both(tmp_path, ["a", "b"])
    field = CategoricalField(name="f", vocabulary_size=5)
    with pytest.raises(DataError, match=r"f\.tokens: holds 2 tokens, but schema\.json says 3; remove the folder f"):
        open_tokens(tmp_path, field)
    np.save(tokens_path(tmp_path, "f") / "text.npy", np.zeros(1, np.uint8))
    with pytest.raises(DataError, match="does not fit the files beside it; remove the folder"):
        open_tokens(tmp_path, field)


def damaged(folder: Path, name: str, values: Any) -> TokenTable:
    both(folder, ["a", "bc"])
    array = np.load(tokens_path(folder, "f") / f"{name}.npy")
    array[:] = values
    np.save(tokens_path(folder, "f") / f"{name}.npy", array)
    return open_tokens(folder, CategoricalField(name="f", vocabulary_size=4))


def test_ids_of_no_token_and_bytes_of_no_text_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"f\.tokens: damaged: it holds an id that no token has"):
        damaged(tmp_path / "ids", "ids", 9).ids(["a"])
    with pytest.raises(DataError, match=r"f\.tokens: damaged: a token is no text"):
        damaged(tmp_path / "text", "text", 0xFF).texts(np.array([2]))
