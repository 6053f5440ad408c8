"""Lines to rows, against a parser that goes character by character."""

import csv

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dmoe.sources.delimited import Layout, RawRows, parse_lines
from dmoe.sources.lines import LineChunk, read_line_chunks
from dmoe.sources.quoting import Quoting, guess_delimiter, split_line
from tests.prepare import reference

NAMES = ("a", "b", "c")

pieces = st.sampled_from(
    [
        b",",
        b",",
        b",",
        b'"',
        b'""',
        b"\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"x",
        b"1.5",
        b" ",
        "é日".encode(),
        b"\xff",
        b"\t",
    ]
)
files = st.lists(pieces, max_size=40).map(b"".join)
clean_value = st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), max_size=6)


def parse(data: bytes, first_line: int = 1, quote: str | None = '"', delimiter: str = ",") -> RawRows:
    return parse_lines(LineChunk(first_line, data), Layout(NAMES, Quoting(delimiter, quote), NAMES), "log.csv")


@settings(max_examples=600)
@example(data=b'"a""b",,"c,d"\r\n\r\n1,2\n\xff,,\n,,', quoted=True)
@example(data=b',"",\n"x"y,,\n', quoted=True)
@given(data=files, quoted=st.booleans())
def test_rows_and_rejects_are_those_of_the_slow_parser(data: bytes, quoted: bool) -> None:
    quote = '"' if quoted else None
    rows, rejects, blank = reference.parse_file(data, 3, ",", quote, header=False)
    got = parse(data, quote=quote)
    assert got.lines_N.tolist() == [line for line, _ in rows]
    assert [list(row) for row in zip(*(got.columns[n].to_pylist() for n in NAMES), strict=True)] == [r for _, r in rows]
    assert [(reject.line, reject.reason) for reject in got.rejects] == rejects
    assert got.blank_lines == blank


@settings(max_examples=200)
@given(
    rows=st.lists(st.tuples(clean_value, clean_value, clean_value), min_size=1, max_size=20),
    style=st.sampled_from([0, 1, 3]),
)
def test_what_python_writes_is_read_back(rows: list[tuple[str, str, str]], style: int) -> None:
    import io

    text = io.StringIO()
    if style == csv.QUOTE_NONE:
        rows = [tuple(value.replace(",", "").replace('"', "") for value in row) for row in rows]  # type: ignore[misc]
        csv.writer(text, quoting=csv.QUOTE_NONE, quotechar=None).writerows(rows)
    else:
        csv.writer(text, quoting=csv.QUOTE_ALL if style else csv.QUOTE_MINIMAL).writerows(rows)
    got = parse(text.getvalue().encode())
    assert list(zip(*(got.columns[n].to_pylist() for n in NAMES), strict=True)) == rows
    assert got.rejects == []


@settings(max_examples=100)
@example(data=b"\0", chunk_bytes=1)  # a NUL byte alone is no UTF-16
@given(data=files, chunk_bytes=st.integers(1, 20))
def test_chunks_are_whole_lines_with_their_numbers(
    data: bytes, chunk_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = b"start\n" + data
    path = tmp_path_factory.mktemp("chunks") / "log"
    path.write_bytes(data)
    chunks = list(read_line_chunks(path, chunk_bytes))
    assert b"".join(chunk.data for chunk in chunks) == data
    done = b""
    for chunk in chunks:
        assert chunk.first_line == done.count(b"\n") + 1
        assert done == b"" or done.endswith(b"\n")
        done += chunk.data


def test_line_numbers_go_on_from_the_chunks_first_line() -> None:
    got = parse(b"1,2,3\n\nbad\n4,5,6", first_line=101)
    assert got.lines_N.tolist() == [101, 104]
    assert [(reject.line, reject.text) for reject in got.rejects] == [(103, "bad")]


def test_a_byte_order_mark_inside_a_file_is_part_of_the_value() -> None:
    got = parse("\ufeff1,2,3\n".encode(), first_line=2)
    assert got.columns["a"].to_pylist() == ["\ufeff1"]
    (reject,) = parse("\ufeff".encode(), first_line=2).rejects
    assert reject.reason == "wrong number of columns: 1, not 3"


def test_long_text_of_a_reject_is_cut() -> None:
    (reject,) = parse(b"\xff" + b"x" * 10_000).rejects
    assert reject.text.startswith("\\xff")
    assert len(reject.text) == 200


@pytest.mark.parametrize(
    ("line", "expected"),
    [("a,b,c", ","), ("a\tb,c\td", "\t"), ("a;b;c", ";"), ("a|b", "|"), ('"a,b,c";d', ";"), ("alone", ",")],
)
def test_delimiter_guessed_is_the_one_that_makes_most_columns(line: str, expected: str) -> None:
    assert guess_delimiter(line, '"') == expected


def test_split_line_tells_stray_quotes() -> None:
    assert split_line('a,"b,""c"', ",", '"') == ["a", 'b,"c']
    assert split_line('a,b"c', ",", '"') is None
    assert split_line('a,b"c', ",", None) == ["a", 'b"c']
