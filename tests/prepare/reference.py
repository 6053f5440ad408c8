"""The preparation written again the slow way: characters, dictionaries and loops."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence


def parse_line(line: str, delimiter: str, quote: str | None) -> list[str] | str:
    """RFC 4180 for one line, character by character; the reason if a quote is out of place."""
    values, value, position, state = [], "", 0, "start"
    while position < len(line):
        character = line[position]
        position += 1
        if state == "quoted":
            if character == quote:
                state = "closed"
            else:
                value += character
        elif character == delimiter:
            values.append(value)
            value, state = "", "start"
        elif character == quote and quote is not None:
            if state == "open":
                return "stray quote"
            value += quote if state == "closed" else ""
            state = "quoted"
        elif state == "closed":
            return "stray quote"
        else:
            value += character
            state = "open"
    return "quote left open at the end of the line" if state == "quoted" else [*values, value]


def parse_file(
    data: bytes, columns: int, delimiter: str, quote: str | None, header: bool
) -> tuple[list[tuple[int, list[str]]], list[tuple[int, str]], int]:
    """Rows and rejects, each with its line number, and the number of blank lines."""
    rows, rejects, blank = [], [], 0
    data = data.removeprefix(b"\xef\xbb\xbf")
    lines = data.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    skip = header
    for number, raw in enumerate(lines, start=1):
        raw = raw.removesuffix(b"\r")
        if skip:
            skip = not raw
            continue
        if not raw:
            blank += 1
            continue
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            rejects.append((number, "not UTF-8"))
            continue
        if "\0" in text:
            rejects.append((number, "NUL byte"))
        elif "\r" in text:
            rejects.append((number, "carriage return inside a line"))
        elif isinstance(values := parse_line(text, delimiter, quote), str):
            rejects.append((number, values))
        elif len(values) != columns:
            rejects.append((number, f"wrong number of columns: {len(values)}, not {columns}"))
        else:
            rows.append((number, values))
    return rows, rejects, blank


def number(text: str) -> float | None:
    """None unless a decimal number that float32 can hold."""
    text = text.strip(" \t")
    if not re.fullmatch(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        return None
    return float(text) if abs(float(text)) <= 3.4028234663852886e38 else None


def vocabulary(values: Iterable[str | None], min_count: int) -> dict[str, int]:
    """Token to id: falling count, ties by UTF-8 bytes, from 2."""
    counts = Counter(value for value in values if value is not None)
    kept = [(-count, value.encode()) for value, count in counts.items() if count >= min_count]
    return {value.decode(): rank + 2 for rank, (_, value) in enumerate(sorted(kept))}


def encode(value: str | None, ids: dict[str, int]) -> int:
    return 0 if value is None else ids.get(value, 1)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
