"""What a JSON body holds is counted without parsing it, as a parser would."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dmoe.serving.json_body import _outside_texts, unfolded_bytes

TEXTS = st.text(st.sampled_from('":,[]{}\\ \né😀a'), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def marks(value: Any) -> int:
    """Colons, commas and opening brackets of a value as it is written."""
    if isinstance(value, dict):
        return 1 + len(value) + max(len(value) - 1, 0) + sum(map(marks, value.values()))
    return 1 + max(len(value) - 1, 0) + sum(map(marks, value)) if isinstance(value, list) else 0


@given(value=VALUES, plain=st.booleans(), indent=st.sampled_from([None, 1]))
def test_what_stands_outside_texts_is_counted(value: Any, plain: bool, indent: int | None) -> None:
    body = json.dumps(value, ensure_ascii=plain, indent=indent).encode()
    assert _outside_texts(body, b",:[{") == marks(value)
    wide = 4 if "\\u" in body.decode() or not body.isascii() else 1
    assert unfolded_bytes(body, 0) == wide * len(body) + 64 * marks(value)
    assert unfolded_bytes(body, 1 << 40) >= unfolded_bytes(body, 0)
