"""Rejected rows are few and by chance, or the command ends and says what they have in common."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from dmoe.config.data import DataConfig
from dmoe.errors import ConfigError, DataError
from dmoe.prepare.prepare import prepare
from dmoe.prepare.reject_limits import Evidence
from dmoe.sources import lines
from dmoe.sources.rejects import Reject
from tests.prepare.test_prepare import data_files

PLAN = DataConfig.model_validate(
    {"label": "y", "split": {"kind": "stratified"}, "fields": {"categorical": ["site"], "numeric": ["price", "age"]}}
)


def rows(count: int, seed: int = 0) -> list[list[str]]:
    draw = random.Random(seed)
    return [
        [
            str(int(draw.random() < 0.3)),
            draw.choice("abcdefghij"),
            f"{draw.random() * 3000:.2f}",
            str(draw.randrange(90)),
        ]
        for _ in range(count)
    ]


def write(path: Path, table: list[list[str]]) -> str:
    path.write_text("y,site,price,age\n" + "".join(",".join(row) + "\n" for row in table))
    return str(path)


def spoil(table: list[list[str]], which: list[int], text: str = "?") -> list[list[str]]:
    return [[*row[:2], text if index in set(which) else row[2], row[3]] for index, row in enumerate(table)]


def attempt(folder: Path, table: list[list[str]], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepare(PLAN, [write(folder / "log.csv", table)], folder / "data", **options)
    assert sorted(path.name for path in folder.iterdir()) == ["log.csv"]
    return str(caught.value)


def test_few_rejects_by_chance_pass_and_a_handful_always_does(tmp_path: Path) -> None:
    table = rows(20_000)
    chance = random.Random(1).sample(range(20_000), 15)
    summary = prepare(PLAN, [write(tmp_path / "log.csv", spoil(table, chance))], tmp_path / "data")
    assert summary["rejects"] == {"not a number": 15}
    few = spoil(rows(60), [1, 2, 3, 4])
    assert prepare(PLAN, [write(tmp_path / "log.csv", few)], tmp_path / "few")["rows"]["rejected"] == 4


def test_many_rejects_end_it_and_are_described(tmp_path: Path) -> None:
    table = rows(3000)
    which = [index for index, row in enumerate(table) if row[1] == "c" and index % 3 == 0]
    text = attempt(tmp_path, spoil(table, which, "'1.234.50'"))
    assert (
        f"{len(which)} of 3,000 rows ({len(which) / 3000:.2%}) were rejected, which is more than one in 1,000" in text
    )
    assert f"log.csv:{which[0] + 2}: column 'price': not a number" in text
    assert f"{len(which)} not a number in column 'price'" in text
    assert f"{len(which)} of {len(which)} are of the form ''9.9.9''" in text
    assert f"What sets them apart: site is 'c' in {len(which)} of {len(which)}, but in" in text
    assert "allow these by --allow-rejects 'not a number', or so many of any kind by --max-rejects N" in text
    log = write(tmp_path / "log.csv", spoil(table, which))
    for name, options in (("a", {"max_rejects": len(which)}), ("b", {"allow_rejects": ("not a number",)})):
        assert prepare(PLAN, [log], tmp_path / name, **options)["rows"]["rejected"] == len(which)
    with pytest.raises(DataError, match="which is more than"):
        prepare(PLAN, [log], tmp_path / "c", allow_rejects=("stray quote",))
    with pytest.raises(ConfigError, match="no reason 'not number'; did you mean 'not a number'"):
        prepare(PLAN, [log], tmp_path / "c", allow_rejects=("not number",))


@pytest.mark.parametrize(
    ("pick", "telling"),
    [
        (lambda table: [i for i, row in enumerate(table) if row[1] == "e"][::130], "site is 'e' in 1"),
        (lambda table: [i for i, row in enumerate(table) if row[3] == "7"][::15], "age is "),
        (lambda _: list(range(4000, 4012)), "they stand at rows 4,001 to 4,012 of the 20,000 that were read"),
        (lambda table: [i for i, row in enumerate(table) if row[0] == "1"][::320], "y is '1' in "),
    ],
)
def test_few_rejects_not_by_chance_end_it(tmp_path: Path, pick: Any, telling: str) -> None:
    table = rows(20_000)
    which = pick(table)
    assert 5 <= len(which) <= 20
    text = attempt(tmp_path, spoil(table, which))
    assert f"{len(which)} of 20,000 rows" in text
    assert "and not by chance" in text
    assert f"What sets them apart: {telling}" in text


def test_chance_alone_is_seldom_called_more() -> None:
    draw, called = random.Random(5), 0
    others = [
        {"y": str(int(draw.random() < 0.3)), "site": draw.choice("abc"), "n": str(draw.random())} for _ in range(200)
    ]
    for _ in range(300):
        evidence = Evidence(others=others, num_lines=10_000, places=draw.sample(range(10_000), 8))
        reject = Reject("log", 1, "price", "not a number", "?")
        evidence.rejected = [
            (reject, {"y": str(int(draw.random() < 0.3)), "site": draw.choice("abc"), "n": str(draw.random())})
            for _ in range(8)
        ]
        called += evidence.telling() is not None
    assert called <= 3


def test_rows_that_all_fail_end_it_at_once_whatever_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines.read_line_chunks, "__defaults__", (20_000,))
    table = spoil(rows(20_000), list(range(20_000)))
    text = attempt(tmp_path, table, max_rejects=10**9, allow_rejects=("not a number",))
    assert text.startswith("the first 2,248 rows")
    assert "rows were all rejected" in text


def test_the_verdict_is_the_same_for_every_engine_thread_count_and_chunking_of_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines.read_line_chunks, "__defaults__", (9000,))
    table = rows(3000)
    bad = spoil(table, [i for i, row in enumerate(table) if row[1] == "c"])
    texts = {
        attempt(tmp_path, bad, engine=engine, threads=n) for engine, n in (("duckdb", 1), ("duckdb", 2), ("polars", 2))
    }
    assert len(texts) == 1


def test_a_header_that_comes_again_is_not_judged(tmp_path: Path) -> None:
    header = ["y", "site", "price", "age"]
    log = write(tmp_path / "log.csv", [row for k in range(8) for row in [header, *rows(20, k)]])
    assert prepare(PLAN, [log], tmp_path / "data")["rejects"] == {"repeats the header": 8}
    assert json.loads((tmp_path / "data" / "summary.json").read_text())["rows"]["encoded"] == 160
    assert data_files(tmp_path / "data")
