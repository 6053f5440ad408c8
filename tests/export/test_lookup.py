"""The memory-mapped look-up against a dictionary."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.errors import DmoeError
from dmoe.export.lookup import TokenTable, write_tokens
from dmoe.schema import OOV_ID

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(TEXTS, unique=True, max_size=30), asked=st.lists(TEXTS, max_size=30))
def test_it_equals_a_dictionary(tmp_path_factory: pytest.TempPathFactory, tokens: list[str], asked: list[str]) -> None:
    folder = tmp_path_factory.mktemp("tokens") / "field"
    ids = np.arange(2, len(tokens) + 2, dtype=np.int32)
    write_tokens(folder, tokens, ids)
    by_token = dict(zip(tokens, ids.tolist(), strict=True))
    found = TokenTable(folder).ids([*asked, *tokens])
    assert found.tolist() == [by_token.get(text, OOV_ID) for text in [*asked, *tokens]]


def test_a_text_with_the_hash_of_a_token_is_still_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokens(tmp_path / "field", ["known"], np.array([2], np.int32))
    table = TokenTable(tmp_path / "field")
    monkeypatch.setattr(table, "_hash", lambda _: int(table._hashes_K[0]))
    assert table.ids(["known", "other"]).tolist() == [2, OOV_ID]


def test_tokens_that_share_a_hash_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xxhash.xxh3_64_intdigest", lambda _: 7)
    with pytest.raises(DmoeError, match="two tokens have one 64-bit hash"):
        write_tokens(tmp_path / "field", ["a", "b"], np.array([2, 3], np.int32))
    assert not (tmp_path / "field").exists()
