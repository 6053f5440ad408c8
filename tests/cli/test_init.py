"""`dmoe init`: the two files say what the log is, the printed commands work, and what cannot be known is asked for."""

import gzip
import re
import shlex
import subprocess
import sys
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


def test_what_a_click_is_is_asked_for_where_the_values_do_not_say(capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(1)
    table = {**columns(300), "rating": [str(one) for one in draw.integers(1, 6, size=300)]}
    del table["click"]
    write(Path("log.csv"), table)
    assert call("init", "log.csv", "--label", "rating") == 2
    error = capsys.readouterr().err
    assert re.search(r"label 'rating' holds ('[1-5]', ){4}'[1-5]', not 0 and 1; say which are a click by", error)
    assert call("init", "log.csv", "--label", "rating", "--positive", "6") == 2
    assert "label 'rating' never holds '6'; it holds" in capsys.readouterr().err
    assert call("init", "log.csv", "--positive", "4") == 2
    assert "say by --label COLUMN which column --positive is about" in capsys.readouterr().err
    assert call("init", "log.csv", "--label", "rating", "--positive", "4", "--positive", "5.0") == 0
    high = sum(one in ("4", "5") for one in table["rating"])
    assert f"label 'rating': 1 in {high / 300:.2%} of 300 rows" in capsys.readouterr().err
    assert yaml.safe_load(Path("data.yaml").read_text())["label"] == {"column": "rating", "positive": ["4", "5.0"]}
    assert call("prepare", "--config", "data.yaml", "--input", "log.csv", "-o", "data") == 0


@pytest.mark.parametrize(("yes", "no"), [("ja", "nein"), ("OUI", "NON"), ("sí", "no"), ("是", "否")])
def test_yes_and_no_in_other_languages(yes: str, no: str) -> None:
    table = columns(200)
    write(Path("log.csv"), {"seen": [yes if one == "1" else no for one in table.pop("click")], **table})
    assert call("init", "log.csv") == 0
    assert yaml.safe_load(Path("data.yaml").read_text())["label"] == {"column": "seen", "positive": [yes]}


def test_a_column_that_can_only_mislead_is_no_field(capsys: pytest.CaptureFixture[str]) -> None:
    """The label turned round, an id of the row, and a time of no known format, by which the rows are in order."""
    table = columns(3000)
    table["clk"] = table.pop("click")
    table["nonclk"] = [str(1 - int(one)) for one in table["clk"]]
    table["request"] = [f"r{17 * index % 3001}" for index in range(3000)]
    table["timestamp"] = [str(61 + 20_000 * index + index % 7) for index in range(3000)]
    write(Path("log.csv"), table)
    assert call("init", "log.csv") == 0
    told = capsys.readouterr().err
    assert "label 'clk'" in told
    assert "warning: 'nonclk' is the label under another name" in told
    text = Path("data.yaml").read_text()
    values = yaml.safe_load(text)
    fields = {name for kind in ("categorical", "numeric") for name in values["fields"].get(kind, ())}
    assert fields == {"site", "price", "user"}
    assert "#   nonclk: 'nonclk' is the label under another name" in text
    assert "#   request: another value in each row" in text
    assert "#   timestamp: " in text
    assert text.count("'nonclk' is the label") == 1
    assert values["split"] == {"kind": "ordered"}
    assert "# the rows follow 'timestamp'" in text


def test_a_column_whose_type_has_no_text_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    table = columns(200)
    held: dict[str, object] = {**table, "who": [{"id": 3, "age": 30}] * 200}
    parquet.write_table(pa.table(held), "log.parquet")
    assert call("init", "log.parquet") == 0
    told = capsys.readouterr().err
    assert "warning: 'who' is no field: struct<" in told
    assert "values cannot be a field; give its parts columns of their own" in told


@pytest.mark.parametrize("first", ['{"click": 1, "site": "a"}', '[{"click": 1,\n "site": "a"}]', '[\n {"click": 1}\n]'])
def test_json_is_named(first: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("log.jsonl").write_text(f"{first}\n" * 30)
    assert call("init", "log.jsonl") == 2
    error = capsys.readouterr().err
    assert "log.jsonl:1: is JSON; dmoe reads CSV, TSV and Parquet, into which it can be turned: python -c" in error
    command = error.partition("turned: ")[2].strip()
    if first.startswith('{"'):
        words = shlex.split(command.replace("IN.jsonl", "log.jsonl"))
        subprocess.run([sys.executable, *words[1:]], check=True)
        assert parquet.read_table("OUT.parquet").column_names == ["click", "site"]
    Path("data.yaml").write_text("label: click\nsplit: {kind: ordered}\nfields: {categorical: [site]}\n")
    assert call("prepare", "--config", "data.yaml", "--input", "log.jsonl", "-o", "data") == 2
    assert "log.jsonl:1: is JSON; dmoe reads" in capsys.readouterr().err
