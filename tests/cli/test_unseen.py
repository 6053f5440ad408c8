"""A day whose ids are written differently is said wherever it is added to, trained on after or compared with the
earlier ones."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dmoe.cli.main import main
from dmoe.schema import Schema

FIELDS = "fields: {categorical: [user], multi_valued: {tags: {max_length: 3, separator: '|'}}, numeric: {price: {}}}\n"
SMALL = ("model.embedding_dim=2", "model.expert_units=4", "model.tower_units=[4]", "training.epochs=1")


def cli(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, list[str]]:
    """Standard output and the warnings about columns."""
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    told = capsys.readouterr()
    assert not done.value.code, told.err
    return told.out, [line for line in told.err.splitlines() if line.startswith("warning:") and "column '" in line]


def day(path: Path, seed: int, form: str = "{}", tags: str = "t{}", price: str = "{}") -> Path:
    draw = np.random.default_rng(seed)
    user = draw.integers(100, 140, 600)
    table = {
        "click": (draw.random(600) < np.where(user % 2, 0.7, 0.2)).astype(int),
        "user": [form.format(one) for one in user],
        "tags": [
            "|".join(tags.format(one) for one in draw.integers(0, 9, count)) for count in draw.integers(0, 4, 600)
        ],
        "price": [price.format(one) for one in draw.integers(1, 9, 600)],
    }
    pd.DataFrame(table).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def monday(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("monday")
    (folder / "data.yaml").write_text(f"label: click\nsplit: {{kind: random}}\n{FIELDS}")
    log = day(folder / "monday.csv", 1)
    for words in (
        ("prepare", "--config", folder / "data.yaml", "--input", log, "--output", folder / "data"),
        ("train", "d-moe", *SMALL, "--data", folder / "data", "--output", folder / "run"),
    ):
        with pytest.raises(SystemExit) as done:
            main([str(word) for word in words])
        assert not done.value.code
    return folder


def test_an_update_of_other_ids_is_said(monday: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("prepare", "--update", monday / "data", "--output", tmp_path / "both", "--json", "--input")
    out, said = cli(capsys, *words, day(tmp_path / "tuesday.csv", 2, "u{}", "tag{}", ""))
    assert len(said) == 3
    assert said[0].startswith(
        "warning: column 'user': 600 of 600 values of the new rows were not in the data set before"
    )
    assert re.search(r"column 'tags': (\d+) of \1 values of the new rows", said[1])
    assert said[2].startswith(
        "warning: column 'price': 600 of 600 rows have no value (the held-out rows that it had: 0 %)"
    )
    summary = json.loads(out)
    user, tags, price = summary["updates"][0]["far_above"]
    assert user == {"field": "user", "column": "user", "kind": "unseen", "count": 600, "of": 600, "expected": 0.0}
    values = sum(len(text.split("|")) for text in pd.read_csv(tmp_path / "tuesday.csv")["tags"].dropna())
    assert (tags["count"], tags["of"], price["kind"]) == (values, values, "missing")
    # What later rows are to show is that of all rows.
    half = Schema.read(tmp_path / "both").coverage["price"].missing["train"]
    assert half == pytest.approx(0.5, abs=0.01)
    _, said = cli(
        capsys,
        "prepare",
        "--update",
        tmp_path / "both",
        "--output",
        tmp_path / "three",
        "--input",
        day(tmp_path / "wednesday.csv", 3),
    )
    assert said == []
    assert [
        len(update["far_above"]) for update in json.loads((tmp_path / "three" / "summary.json").read_text())["updates"]
    ] == [3, 0]


def test_training_on_from_other_ids_is_said(monday: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, form, price in (("same", "{}", "{}"), ("other", "{}x", "")):
        log = day(tmp_path / f"{name}.csv", 2, form, price=price)
        cli(capsys, "prepare", "--config", monday / "data.yaml", "--input", log, "--output", tmp_path / name)
        words = ("train", "--from", monday / "run", "--data", tmp_path / name, "--output", tmp_path / f"run-{name}")
        _, said = cli(capsys, *words)
        if name == "same":
            assert said == []
            continue
        rows = json.loads((tmp_path / name / "summary.json").read_text())["splits"]["train"]["rows"]
        assert len(said) == 2
        assert f"column 'user': {rows} of {rows} values of the training rows were never seen by that run" in said[1]
        assert f"column 'price': {rows} of {rows} rows have no value" in said[0]
    started = json.loads((tmp_path / "run-other" / "environment.json").read_text())["started_from"]
    assert [one["field"] for one in started["far_above"]] == ["price", "user"]


def test_comparing_on_a_log_of_other_ids_is_said(
    monday: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("compare", monday / "run", monday / "run", "--json", "--log")
    out, said = cli(capsys, *words, day(tmp_path / "tuesday.csv", 2, "0{}"))
    assert len(said) == 2
    assert "run: column 'user': 600 of 600 values were never seen in training" in said[0]
    assert [one["count"] for one in json.loads(out)["far_above"][1]] == [600]
    out, said = cli(capsys, *words, day(tmp_path / "tuesday.csv", 3))
    assert said == json.loads(out)["far_above"][0] == []
