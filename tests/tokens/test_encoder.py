"""`RawEncoder`: what prepare gave, for files and for tables of every kind."""

from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pyarrow as pa
import pytest
import torch

from dmoe.config.data import DataConfig
from dmoe.errors import DataError
from dmoe.prepare.prepare import prepare
from dmoe.tokens.encoder import RawEncoder
from tests.prepare.logs import COLUMNS, SPLITS, config, random_rows, read_split, write_csv


def test_encoder_gives_what_prepare_gave(tmp_path: Path) -> None:
    rows = random_rows(200, 21)
    log = write_csv(tmp_path / "log.csv", rows)
    prepare(config(), [str(log)], tmp_path / "data")
    encoder = RawEncoder(tmp_path / "data")
    batches = list(encoder.encode_files([log], batch_size=64, labels=True))
    assert [len(batch) for batch in batches] == [64, 64, 64, 8]
    whole = pa.concat_tables([read_split(tmp_path / "data", split) for split in SPLITS])
    ids, numeric = (torch.cat([getattr(b, name) for b in batches]).numpy() for name in ("ids_BC", "numeric_BN"))
    for index, field in enumerate(encoder.schema.categorical):
        assert ids[:, index].tolist() == whole[field.name].to_pylist()
    for index, number in enumerate(encoder.schema.numeric):
        assert numeric[:, index].tolist() == whole[number.name].to_pylist()
    assert torch.cat([b.labels_B for b in batches if b.labels_B is not None]).tolist() == whole["y"].to_pylist()
    text = pd.DataFrame(rows, columns=list(COLUMNS))
    for table in (
        text,
        text.drop(columns=["y", "id"]),
        pl.from_pandas(text),
        pa.Table.from_pandas(text),
        text[["hits", *COLUMNS[:-1]]],
    ):
        batch = encoder.encode_table(table)
        assert (batch.ids_BC.numpy() == ids).all()
        assert (batch.numeric_BN.numpy() == numeric).all()
        assert batch.labels_B is None
    assert encoder.encode_table(text, labels=True).labels_B is not None


def test_encoder_takes_typed_tables_unseen_values_and_single_rows(tmp_path: Path) -> None:
    rows = random_rows(200, 22)
    prepare(config(), [str(write_csv(tmp_path / "log.csv", rows))], tmp_path / "data")
    encoder = RawEncoder(tmp_path / "data")
    row = {
        "site": "never seen",
        "user": None,
        "time": 14102100,
        "price": None,
        "age": 7,
        "raw": 2.5,
        "hits": float("nan"),
    }
    batch = encoder.encode_table(pd.DataFrame([row]))
    names = [field.name for field in encoder.schema.categorical]
    ids = dict(zip(names, batch.ids_BC[0].tolist(), strict=True))
    assert (ids["site"], ids["user"], ids["hits"]) == (1, 0, 1)
    assert ids["weekday"] >= 2
    assert batch.numeric_BN[0, 0] == 0
    assert batch.numeric_BN[0, 2] == 2.5
    categories = pd.DataFrame([row]).astype({"site": "category"})
    assert encoder.encode_table(categories).ids_BC.tolist() == batch.ids_BC.tolist()
    assert (
        len(encoder.encode_table(pl.DataFrame([row], schema_overrides={"user": pl.String, "price": pl.Float64})[:0]))
        == 0
    )


def test_encoder_never_loses_a_row(tmp_path: Path) -> None:
    rows = random_rows(50, 23)
    log = write_csv(tmp_path / "log.csv", rows)
    prepare(config(), [str(log)], tmp_path / "data")
    encoder = RawEncoder(tmp_path / "data")
    bad = tmp_path / "bad.csv"
    rows[9][COLUMNS.index("age")] = "old"
    write_csv(bad, rows)
    with pytest.raises(DataError, match=r"bad\.csv:11: column 'age': not a number: 'old'"):
        list(encoder.encode_files([bad], batch_size=8))
    with pytest.raises(DataError, match="table:1: column 'age': not a number: 'old'"):
        encoder.encode_table(pd.DataFrame(rows[9:10], columns=list(COLUMNS)))
    with pytest.raises(DataError, match=r"table: no column 'site'; did you mean 'sites'\?"):
        encoder.encode_table(pd.DataFrame(rows, columns=list(COLUMNS)).rename(columns={"site": "sites"}))
    with pytest.raises(DataError, match="expected a pandas, polars or pyarrow table, got list"):
        encoder.encode_table([1, 2])
    with pytest.raises(DataError, match="column 'site' holds list"):
        encoder.encode_table(pa.table({name: [["x"]] if name == "site" else ["1"] for name in COLUMNS}))


def test_headerless_file_may_lack_the_label(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("".join(f"{i % 2}\tv{i % 3}\t{i}\n" for i in range(40)))
    plan = DataConfig.model_validate(
        {
            "label": "y",
            "split": {"kind": "random"},
            "fields": {"categorical": ["v"], "numeric": ["n"]},
            "format": {"header": False, "columns": ["y", "v", "n"]},
        }
    )
    prepare(plan, [str(tmp_path / "log.txt")], tmp_path / "data")
    encoder = RawEncoder(tmp_path / "data")
    (tmp_path / "unlabelled.txt").write_text("".join(f"v{i % 3}\t{i}\n" for i in range(40)))
    (with_label,) = encoder.encode_files([tmp_path / "log.txt"], batch_size=100, labels=True)
    (without,) = encoder.encode_files([tmp_path / "unlabelled.txt"], batch_size=100, labels=True)
    assert without.labels_B is None
    assert with_label.labels_B is not None
    assert torch.equal(with_label.ids_BC, without.ids_BC)
    assert torch.equal(with_label.numeric_BN, without.numeric_BN)
