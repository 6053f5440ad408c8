"""`dmoe init`: the two files say what the log is, the printed commands work, and what cannot be known is asked for."""

import gzip
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from dmoe.cli.main import main
from dmoe.config.data import DataConfig
from dmoe.config.run import load_config
from dmoe.training.first_config import first_config, preset_for
from dmoe.training.recipe import sized

Columns = dict[str, list[str]]


def columns(rows: int, seed: int = 0) -> Columns:
    draw = np.random.default_rng(seed)
    click = draw.integers(2, size=rows)
    return {
        "click": [str(one) for one in click],
        "site": [f"s{one}" for one in draw.integers(9, size=rows)],
        "price": [f"{one:.2f}" for one in draw.lognormal(size=rows)],
        "user": [f"u{one}" for one in draw.integers(40, size=rows)],
    }


def write(path: Path, table: Columns, delimiter: str = ",", *, header: bool = True) -> Path:
    lines = [delimiter.join(row) for row in zip(*table.values(), strict=True)]
    text = "\n".join([*([delimiter.join(table)] if header else []), *lines]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_printed_commands_work_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("a log.csv"), columns(400))
    assert call("init", "a log.csv", "-o", "first try") == 0
    printed = capsys.readouterr()
    assert "label 'click': 1 in" in printed.err
    commands = [shlex.split(line) for line in printed.out.splitlines()]
    assert [one[:2] for one in commands] == [["dmoe", "prepare"], ["dmoe", "train"], ["dmoe", "report"]]
    for words in commands:
        assert call(*words[1:]) == 0, capsys.readouterr().err
    assert Path("first try/report.html").is_file()
    # What was made is not in the way of the next three.
    assert call("init", "a log.csv", "-o", "first try", "--force") == 0
    for words in map(shlex.split, capsys.readouterr().out.splitlines()[-3:]):
        assert not Path(words[words.index("--output") + 1]).exists()


@pytest.mark.parametrize("form", ["csv", "bare", "parquet", "folder", "pattern"])
def test_logs_of_every_form(form: str) -> None:
    table, expected = columns(200), "click"
    if form == "csv":
        given = write(Path("log.csv"), table)
    elif form == "bare":
        given, expected = write(Path("log.tsv.gz"), table, "\t", header=False), "c0"
    elif form == "parquet":
        given = Path("log.parquet")
        parquet.write_table(pa.table(table), given)
    else:
        write(Path("logs/day=1/part.csv"), table)
        write(Path("logs/day=2/part.csv"), columns(200, seed=1))
        given = Path("logs" if form == "folder" else "logs/*/*.csv")
    assert call("init", given, "-o", "made") == 0
    data = DataConfig.model_validate(yaml.safe_load(Path("made/data.yaml").read_text()))
    assert data.label is not None
    assert data.label.column == expected
    text = Path("made/data.yaml").read_text()
    assert f"all {400 if form in ('folder', 'pattern') else 200} rows" in text
    assert call("prepare", "--config", "made/data.yaml", "--input", given, "-o", "data") == 0


def test_several_labels_and_those_too_rare_for_the_splits(capsys: pytest.CaptureFixture[str]) -> None:
    table = columns(600)
    table["like"] = ["1" if index % 5 == 0 else "0" for index in range(600)]
    table["share"] = ["1" if index in (3, 300) else "0" for index in range(600)]
    write(Path("log.csv"), table)
    assert call("init", "log.csv") == 0
    assert "label 'share' is left out: too few rows of a class" in capsys.readouterr().err
    values = yaml.safe_load(Path("data.yaml").read_text())
    assert list(values["labels"]) == ["click", "like"]
    assert "share" not in values["fields"]["categorical"]
    assert "tasks" in yaml.safe_load(Path("run.yaml").read_text())["model"]
    assert call("prepare", "--config", "data.yaml", "--input", "log.csv", "-o", "data") == 0
    assert call("init", "log.csv", "--label", "click", "--label", "share", "-o", "x") == 2
    assert "label 'share' has too few rows of a class" in capsys.readouterr().err


@pytest.mark.parametrize(("labels", "rows"), [(1, 300), (1, 2_000_000), (3, 30_000_000)])
def test_every_comment_of_the_run_says_what_would_be_chosen(labels: int, rows: int) -> None:
    text = first_config(labels, rows)
    assert yaml.safe_load(text) == load_config(preset_for(labels)).values()
    uncommented = re.sub(r"^# (?= +\w+:|optimiser:)", "", text, flags=re.MULTILINE)
    said = yaml.safe_load(uncommented)
    chosen = sized(load_config(preset_for(labels)), rows).model_dump(mode="json")
    told = [(section, key) for section in ("model", "training", "optimiser") for key in said[section]]
    assert len(told) > 12
    for section, key in told:
        if key not in ("experts", "recipe", "tasks"):
            assert said[section][key] == chosen[section][key], key
    path = Path("all.yaml")
    path.write_text(uncommented)
    load_config(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["log.csv"], r"data\.yaml: exists already; give --force"),
        (["two.csv", "-o", "x"], "'a', 'b' hold two values each .* say which is by --label COLUMN"),
        (["none.csv", "-o", "x"], "no column holds 0 and 1 only; name the label by --label"),
        (["log.csv", "--label", "clik", "-o", "x"], "no column 'clik' to be the label"),
        (["few.csv", "-o", "x"], "label 'click' is 1 in 2 rows; at least 5 rows of each class"),
        (["absent.csv", "-o", "x"], "absent.csv: no such file"),
        (["logs", "-o", "logs"], "lies in the input folder logs"),
        (["*/*", "-o", "logs"], r"matches logs/data\.yaml too; choose another --output"),
        (["log.csv", "-o", "log.csv"], "log.csv: is a file; --output is the folder"),
    ],
)
def test_what_cannot_be_known_or_done_is_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = columns(40)
    Path("data.yaml").write_text("mine")
    write(Path("log.csv"), table)
    write(Path("logs/one.csv"), table)
    write(Path("two.csv"), {"a": table["click"], "b": table["click"][::-1], "site": table["site"]})
    write(Path("none.csv"), {name: table[name] for name in ("site", "price")})
    write(Path("few.csv"), {**table, "click": ["1", "1", *["0"] * 38]})
    assert call("init", *words) == 2
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert len(error.splitlines()) == 1
    assert Path("data.yaml").read_text() == "mine"
    assert not Path("x").exists()
    assert [path.name for path in Path("logs").iterdir()] == ["one.csv"]
    assert call("init", "log.csv", "--force", "--json") == 0
