"""Rows whose values training never saw are scored, and said: by runs, model folders and `dmoe predict`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import dmoe
from dmoe.cli.main import main
from dmoe.errors import DataError
from dmoe.schema import Schema
from dmoe.tokens.unseen import ValueCounts
from dmoe.weights.run import Run
from tests.prepare.logs import COLUMNS, random_rows

COLUMN = [name for name in COLUMNS if name != "y"]
MODELS = ["run", "in_graph", "looked_up"]


def later(seed: int = 8, count: int = 400, **changed: Any) -> pd.DataFrame:
    rows = pd.DataFrame(random_rows(count, seed), columns=list(COLUMNS))[COLUMN]
    return rows.assign(row=[f"{index:05}" for index in range(count)], **changed)


def place(name: str, request: pytest.FixtureRequest) -> Path:
    found = request.getfixturevalue(name)
    return found.path if isinstance(found, Run) else found


def cli(*words: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    return int(done.value.code or 0)


def naive(folder: Path, rows: pd.DataFrame) -> dict[str, tuple[int, int, int]]:
    """Missing rows, values and unseen values of the plain text fields, from the vocabulary files."""
    found = {}
    for name, missing in (("site", {"", "?"}), ("user", {"", "?", "NA"})):
        known = set(pq.read_table(folder / "vocabulary" / f"{name}.parquet")["value"].to_pylist())
        values = [value for value in rows[name] if value not in missing]
        found[name] = (len(rows) - len(values), len(values), sum(value not in known for value in values))
    return found


def test_data_run_and_model_folders_know_what_training_showed(run: Run, in_graph: Path) -> None:
    coverage = Schema.read(in_graph).coverage
    assert coverage == run.schema.coverage == Schema.read(run.path.parent / "data").coverage
    assert set(coverage) == {field.name for field in run.schema.fields}
    for split in ("train", "valid", "test"):
        table = pa.concat_tables(map(pq.read_table, sorted((run.path.parent / "data" / split).glob("*.parquet"))))
        ids = table["site"].to_numpy()
        assert coverage["site"].unseen[split] == pytest.approx((ids == 1).sum() / (ids != 0).sum())
        assert coverage["site"].missing[split] == pytest.approx((ids == 0).mean())
    site = coverage["site"]
    assert site.expected_unseen == max(site.unseen["train"], site.unseen["valid"])


@pytest.mark.parametrize("name", MODELS)
def test_all_count_alike(run: Run, name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    rows = later()
    rows.loc[:199, "site"] = "elsewhere"
    scorer = dmoe.load(place(name, request))
    rows.to_csv(tmp_path / "later.csv", index=False)
    from_file, from_table, expected = scorer.value_counts(), scorer.value_counts(), ValueCounts(run.schema)
    list(scorer.stream(tmp_path / "later.csv", counts=from_file))
    list(scorer.stream(rows, counts=from_table))
    list(dmoe.load(run.path).stream(rows, counts=expected))
    assert from_file.values() == from_table.values() == expected.values()
    by_field = {one["field"]: one for one in from_file.values()}
    for field, figures in naive(run.path, rows).items():
        one = by_field[field]
        assert (one["missing"], one["values"], one["unseen"]) == figures
    # Of a field in which missing values share the id of unseen ones, they are told apart.
    assert by_field["hits"]["missing"] == sum(value in ("", "?", "0") for value in rows["hits"])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("change", ["{}.0", "0{}", " {}", "{}x"])
def test_ids_written_differently_warn(name: str, change: str, request: pytest.FixtureRequest) -> None:
    rows = later()
    rows["site"] = [change.format(value) for value in rows["site"]]
    with pytest.warns(dmoe.UnseenValuesWarning) as said:
        dmoe.load(place(name, request)).predict_proba(rows)
    assert str(said[0].message).startswith("column 'site': 400 of 400 values were never seen in training")
    assert Path(said[0].filename) == Path(__file__)


@pytest.mark.parametrize("name", MODELS)
def test_rows_like_those_of_training_and_few_rows_do_not(name: str, request: pytest.FixtureRequest) -> None:
    scorer = dmoe.load(place(name, request))
    scorer.predict_proba(later())
    scorer.predict_proba(later(count=20, site="elsewhere", user="nobody"))


@pytest.mark.parametrize("name", ["run", "in_graph"])
def test_a_column_that_is_suddenly_empty_warns(name: str, request: pytest.FixtureRequest) -> None:
    with pytest.warns(dmoe.UnseenValuesWarning) as said:
        dmoe.load(place(name, request)).predict_proba(later(site="", price=""))
    texts = [str(one.message) for one in said]
    assert any("column 'site': 400 of 400 rows have no value" in text for text in texts)
    assert any("column 'price': 400 of 400 rows have no value" in text for text in texts)


@pytest.mark.parametrize("name", ["run", "in_graph"])
def test_predict_says_so_and_strict_writes_nothing(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later(site="elsewhere").to_csv(tmp_path / "later.csv", index=False)
    folder, words = place(name, request), (tmp_path / "later.csv", "-o", tmp_path / "scores.parquet")
    assert cli("predict", folder, *words, "--json") == 0
    told = capsys.readouterr()
    assert "warning: column 'site': 400 of 400 values were never seen in training" in told.err
    site = next(one for one in json.loads(told.out)["fields"] if one["field"] == "site")
    assert (site["values"], site["unseen"], site["far_above"]) == (400, 400, ["unseen"])
    (tmp_path / "scores.parquet").unlink()
    assert cli("predict", folder, *words, "--strict") == 2
    assert "column 'site': 400 of 400 values" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["later.csv"]
    later().to_csv(tmp_path / "later.csv", index=False)
    assert cli("predict", folder, *words, "--strict") == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run", "in_graph"])
def test_kept_columns_stand_beside_their_scores(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder, rows = place(name, request), later(count=700)
    rows["y"] = "not a label"
    parts = [rows[:300], rows[300:]]
    for index, part in enumerate(parts):
        part.to_csv(tmp_path / f"{index}.csv", index=False)
    files = [tmp_path / "0.csv", tmp_path / "1.csv"]
    keep = ("--keep", "row", "--keep", "site", "--keep", "y")
    for ending in ("parquet", "csv"):
        assert cli("predict", folder, *files, "-o", tmp_path / f"scores.{ending}", *keep) == 0
    found = pq.read_table(tmp_path / "scores.parquet")
    assert found.column_names == ["row", "site", "y", "probability"]
    assert found["row"].to_pylist() == rows["row"].tolist()
    assert found["site"].to_pylist() == rows["site"].tolist()
    np.testing.assert_array_equal(found["probability"].to_numpy(), dmoe.load(folder).predict_proba(files))
    text = pyarrow.csv.ConvertOptions(column_types={"row": pa.string(), "y": pa.string()})
    assert pyarrow.csv.read_csv(tmp_path / "scores.csv", convert_options=text)["row"].equals(found["row"])


@pytest.mark.parametrize("name", ["run", "in_graph"])
def test_typed_columns_keep_their_type(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    rows = pa.Table.from_pandas(later(count=60), preserve_index=False)
    days = pa.array(pd.date_range("2026-01-01", periods=60, freq="h"))
    typed = {"key": pa.array(range(2**60, 2**60 + 60)), "at": days, "many": pa.array([[1, 2], None] * 30)}
    for column, values in typed.items():
        rows = rows.append_column(column, values)
    pq.write_table(rows, tmp_path / "typed.parquet")
    words = ("predict", place(name, request), tmp_path / "typed.parquet", "-o")
    keep = [word for column in typed for word in ("--keep", column)]
    assert cli(*words, tmp_path / "scores.parquet", *keep) == 0
    found = pq.read_table(tmp_path / "scores.parquet")
    assert all(found[column].combine_chunks().equals(values) for column, values in typed.items())
    pq.write_table(rows.slice(0, 0), tmp_path / "typed.parquet")
    assert cli(*words, tmp_path / "none.parquet", *keep) == 0
    assert pq.read_table(tmp_path / "none.parquet").schema == found.schema


@pytest.mark.parametrize("name", ["run", "in_graph"])
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_no_rows_give_no_scores(name: str, ending: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = place(name, request)
    later(count=0).to_csv(tmp_path / "none.csv", index=False)
    assert cli("predict", folder, tmp_path / "none.csv", "-o", tmp_path / f"out.{ending}", "--keep", "row") == 0
    if ending == "csv":
        assert (tmp_path / "out.csv").read_text() == '"row","probability"\n'
    else:
        assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    assert len(dmoe.load(folder).predict_proba(tmp_path / "none.csv")) == 0


@pytest.mark.parametrize("name", ["run", "in_graph"])
@pytest.mark.parametrize(
    ("keep", "ending", "message"),
    [
        (["rows"], "csv", "no column 'rows'; did you mean 'row'?"),
        (["probability"], "csv", "--keep probability: is the name of the scores' own column"),
        (["row", "row"], "csv", "--keep row: is given twice"),
        (["mixed"], "csv", "--keep mixed: the column is int64 in"),
        (["many"], "csv", "--keep many: CSV has no way to write list"),
    ],
)
def test_what_cannot_be_kept_is_one_clear_error(
    name: str,
    keep: list[str],
    ending: str,
    message: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = []
    for index, mixed in enumerate(([1] * 40, ["1"] * 40)):
        rows = later(count=40, mixed=mixed, many=[[1]] * 40)
        files.append(tmp_path / f"{index}.parquet")
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), files[-1])
    words = [word for column in keep for word in ("--keep", column)]
    assert cli("predict", place(name, request), *files, "-o", tmp_path / f"out.{ending}", *words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.parquet", "1.parquet"]


def test_labelled_rows_must_be_some(run: Run, tmp_path: Path) -> None:
    from dmoe.evaluation.compare import compare_runs

    pd.DataFrame(columns=list(COLUMNS)).to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(DataError, match="holds no rows to compare on"):
        compare_runs(run, run, logs=[tmp_path / "none.csv"])
