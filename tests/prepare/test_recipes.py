"""The shipped recipes on small files in the public formats, and on the real samples."""

import gzip
import hashlib
import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dmoe.cli.main import main
from dmoe.config.data import Checks, SplitRule
from dmoe.errors import ConfigError, DataError
from dmoe.prepare.prepare import prepare
from dmoe.prepare.recipes import read_recipe, recipe_names, recipe_text
from dmoe.schema import Schema, vocabulary_path
from dmoe.tokens.encoder import RawEncoder
from dmoe.tokens.scalars import bucket

AVAZU_HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,"
    "device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)
AVAZU_FIELDS = [
    "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category",
    "device_id", "device_ip", "device_model", "device_type", "device_conn_type",
    "C14", "C15", "C16", "C17", "C18", "C19", "C20", "C21", "weekday", "weekend",
]  # fmt: skip
SPLITS = ("train", "valid", "test")


def tokens(folder: Path, field: str) -> dict[str, int]:
    table = pq.read_table(vocabulary_path(folder, field))
    return {str(row["value"]): int(row["id"]) for row in table.to_pylist()}


def column(folder: Path, field: str) -> np.ndarray:
    return np.concatenate([pq.read_table(folder / split)[field].to_numpy() for split in SPLITS])


def test_every_recipe_loads_and_says_what_it_is() -> None:
    assert recipe_names() == [
        "avazu_x4", "criteo_numeric", "criteo_sample", "criteo_x1", "criteo_x4", "criteo_x4_csv",
        "frappe_x1", "movielens_100k", "movielenslatest_x1",
    ]  # fmt: skip
    for name in recipe_names():
        assert read_recipe(name).description
        assert recipe_text(name).startswith(f"# dmoe prepare --recipe {name} --input ")
    with pytest.raises(ConfigError, match="no recipe 'avazu'; did you mean 'avazu_x4'"):
        read_recipe("avazu")


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["recipes"])
    assert done.value.code == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in recipe_names())
    with pytest.raises(SystemExit):
        main(["recipes", "criteo_x1"])
    assert capsys.readouterr().out == recipe_text("criteo_x1")
    with pytest.raises(SystemExit):
        main(["recipes", "--json"])
    entries = json.loads(capsys.readouterr().out)
    assert (entries["criteo_x4"]["numeric"], entries["criteo_x4"]["categorical"]) == (0, 39)
    assert (entries["criteo_numeric"]["numeric"], entries["criteo_numeric"]["categorical"]) == (13, 26)


def test_avazu_takes_the_hour_apart(tmp_path: Path) -> None:
    # 2014-10-25 is a Saturday, -26 a Sunday, -27 a Monday.
    hours = ["14102500", "14102607", "14102723"]
    lines = [AVAZU_HEADER]
    for index in range(60):
        lines.append(
            f"{10**18 + index},{index % 2},{hours[index % 3]},1005,0," + ",".join(f"x{index % 4}" for _ in range(19))
        )
    log = tmp_path / "train.gz"
    log.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    prepare(read_recipe("avazu_x4"), [str(log)], tmp_path / "data")
    assert [field.name for field in Schema.read(tmp_path / "data").fields] == AVAZU_FIELDS
    assert set(tokens(tmp_path / "data", "hour")) == {"0", "7", "23"}
    assert set(tokens(tmp_path / "data", "weekday")) == {"6", "0", "1"}
    assert set(tokens(tmp_path / "data", "weekend")) == {"1", "0"}
    encoder = RawEncoder(tmp_path / "data")
    (batch,) = encoder.encode_files([log], batch_size=100)
    for field, want in (("hour", "0 7 23"), ("weekday", "6 0 1"), ("weekend", "1 1 0")):
        ids = tokens(tmp_path / "data", field)
        got = batch.ids_BC[:, AVAZU_FIELDS.index(field)]
        assert got[:3].tolist() == [ids[value] for value in want.split()]


def criteo_lines(counts: list[str], token: list[str]) -> str:
    rows = []
    for index, (count, value) in enumerate(zip(counts, token, strict=True)):
        rows.append("\t".join([str(index % 2), *[count] * 13, *[value] * 26]))
    return "\n".join(rows) + "\n"


def test_criteo_x4_buckets_and_merges_missing_zero_and_unseen(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    counts = [str(draw.choice(["", "0", "-1", "1", "2", "3", "4", "5", "6", "1000"])) for _ in range(600)]
    values = [str(draw.choice(["", "68fd1e64", "05db9164", f"{draw.integers(10**9):08x}"])) for _ in range(600)]
    log = tmp_path / "train.txt"
    log.write_text(criteo_lines(counts, values))
    prepare(read_recipe("criteo_x4"), [str(log)], tmp_path / "data")
    schema = Schema.read(tmp_path / "data")
    assert [field.name for field in schema.fields] == [f"I{i}" for i in range(1, 14)] + [f"C{i}" for i in range(1, 27)]
    assert schema.numeric == ()
    (batch,) = RawEncoder(tmp_path / "data").encode_files([log], batch_size=1000)
    vocabulary, words = tokens(tmp_path / "data", "I1"), tokens(tmp_path / "data", "C1")
    assert set(vocabulary) == {"-1", "1", "2", "3", "47"}
    assert set(words) == {"68fd1e64", "05db9164"}
    # ln(3)^2 = 1.2, ln(4)^2 = 1.9, ln(5)^2 = 2.6, ln(6)^2 = 3.2, ln(1000)^2 = 47.7
    rule = {"-1": "-1", "1": "1", "2": "2", "3": "1", "4": "1", "5": "2", "6": "3", "1000": "47"}
    for row in range(600):
        assert batch.ids_BC[row, 0] == vocabulary.get(rule.get(counts[row], "absent"), 1)
        assert batch.ids_BC[row, 13] == words.get(values[row], 1)
    assert not (batch.ids_BC == 0).any()


def test_criteo_x1_reads_given_splits_as_they_stand(tmp_path: Path) -> None:
    header = ",".join(["label", *[f"I{i}" for i in range(1, 14)], *[f"C{i}" for i in range(1, 27)]])
    inputs = []
    for number, name in enumerate(SPLITS):
        rows = [",".join([str(i % 2), *[f"{(i + number) / 7}"] * 13, *[str(i % 3 + number)] * 26]) for i in range(12)]
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *rows]))
        inputs.append(f"{name}={tmp_path / name}.csv")
    prepare(read_recipe("criteo_x1"), inputs, tmp_path / "data", check=False)
    assert tokens(tmp_path / "data", "C26") == {"0": 2, "1": 3, "2": 4}
    test = pq.read_table(tmp_path / "data" / "test")
    assert test["C1"].to_pylist() == [4, 1, 1] * 4
    assert test["I13"].to_pylist() == [float(np.float32((i + 2) / 7)) for i in range(12)]


@pytest.mark.parametrize("x", [3, 4, 5, 6, 7.38, 7.39, 20.08, 20.09, 100, 65535, 2e9, 3e38])
def test_bucket_is_the_square_of_the_logarithm_cut(x: float) -> None:
    root = math.isqrt(int(bucket(x)))
    assert math.exp(math.sqrt(int(bucket(x)))) <= x < math.exp(math.sqrt(int(bucket(x)) + 1))
    assert root * root <= int(bucket(x))


@pytest.mark.parametrize(("x", "want"), [(2, "2"), (1.9, "1"), (0, "0"), (-0.5, "0"), (-7, "-7"), (2.5, "0")])
def test_bucket_up_to_two_is_the_integer_part(x: float, want: str) -> None:
    assert bucket(x) == want


def test_criteo_sample_reads_each_count_as_number_and_as_step(tmp_path: Path) -> None:
    counts = [0, 1, 2, 3, 6, 7, 50, ""] * 5
    lines = [
        "\t".join([str(index % 2), *[str(count)] * 13, *["68fd1e64"] * 26]) + "\n" for index, count in enumerate(counts)
    ]
    (tmp_path / "train.txt").write_text("".join(lines))
    prepare(read_recipe("criteo_sample"), [str(tmp_path / "train.txt")], tmp_path / "data")
    by_id = {id_: value for value, id_ in tokens(tmp_path / "data", "I7_step").items()}
    steps = [by_id.get(id_, "missing") for id_ in column(tmp_path / "data", "I7_step").tolist()]
    # floor(2 ln(1 + x)); 1 is seen 4 times in the first 32 rows like every other count, enough to be a token.
    want = {0: "0", 1: "1", 2: "2", 3: "2", 6: "3", 7: "4", 50: "7", "": "missing"}
    assert steps == [want[count] for count in counts]
    logged = np.log1p([0.0 if count == "" else float(count) for count in counts])
    present = np.array([count != "" for count in counts])
    train = logged[:32][present[:32]]
    numbers = np.where(present, (logged - train.mean()) / train.std(), 0)
    np.testing.assert_allclose(column(tmp_path / "data", "I7"), numbers, rtol=1e-6)


def test_criteo_numeric_on_the_real_sample(real_data: Path, tmp_path: Path) -> None:
    log = real_data / "criteo" / "train.txt.gz"
    summary = prepare(read_recipe("criteo_numeric"), [str(log)], tmp_path / "data")
    assert summary["rows"] == {"read": 110_000, "encoded": 110_000, "rejected": 0}
    assert [summary["splits"][name]["rows"] for name in SPLITS] == [88_000, 11_000, 11_000]
    with gzip.open(log, "rt") as stream:
        rows = [line.rstrip("\n").split("\t") for line in stream]
    for index, field in ((14, "C1"), (16, "C3"), (39, "C26")):
        counts = Counter(row[index] for row in rows[:88_000] if row[index])
        kept = sorted((-count, value) for value, count in counts.items() if count >= 10)
        ids = {value: rank + 2 for rank, (_, value) in enumerate(kept)}
        assert tokens(tmp_path / "data", field) == ids
        assert column(tmp_path / "data", field).tolist() == [
            ids.get(row[index], 1) if row[index] else 0 for row in rows
        ]
    for index, field in ((1, "I1"), (2, "I2")):
        raw = np.array([float(row[index]) if row[index] else np.nan for row in rows])
        logged = np.sign(raw) * np.log1p(np.abs(raw))
        train = logged[:88_000]
        want = (logged - np.nanmean(train)) / np.nanstd(train)
        np.testing.assert_allclose(column(tmp_path / "data", field), np.nan_to_num(want), rtol=1e-5, atol=1e-6)
    labels = column(tmp_path / "data", "label")
    assert labels.tolist() == [int(row[0]) for row in rows]


def test_avazu_on_the_real_sample(real_data: Path, tmp_path: Path) -> None:
    log = real_data / "avazu" / "train.csv.gz"
    summary = prepare(read_recipe("avazu_x4"), [str(log)], tmp_path / "data")
    assert summary["rows"] == {"read": 45_937, "encoded": 45_937, "rejected": 0}
    assert summary["fields"]["weekend"]["vocabulary_size"] == 4
    rates = [split["click_rate"] for split in summary["splits"].values()]
    assert max(rates) - min(rates) < 1e-4
    encoder = RawEncoder(tmp_path / "data")
    batches = list(encoder.encode_files([log], batch_size=10_000, labels=True))
    assert [len(batch) for batch in batches] == [10_000] * 4 + [5_937]
    ids = torch.cat([batch.ids_BC for batch in batches]).numpy()
    # The splits keep file order, so sorting both by content must agree.
    prepared = np.stack([column(tmp_path / "data", field) for field in AVAZU_FIELDS], axis=1)
    assert (
        np.sort(ids.view([("", ids.dtype)] * 24), axis=0)
        == np.sort(np.ascontiguousarray(prepared).view([("", ids.dtype)] * 24), axis=0)
    ).all()


def write_encoded(folder: Path, name: str, sizes: dict[str, int], rows: dict[str, int]) -> list[str]:
    """Files like those of a recipe of given splits; field f has `sizes[f] - 2` tokens in train, each often enough."""
    config, inputs = read_recipe(name), []
    columns = [*config.label_columns(), *(config.source_column(field) for field in config.field_columns())]
    for split, count in rows.items():
        lines = [",".join(columns)]
        for row in range(count):
            tokens = [str(10 + row % max(sizes.get(column, 3) - 2, 1)) for column in columns[1:]]
            lines.append(",".join([str(row // 7 % 2), *tokens]))
        path = folder / f"{split}.csv"
        path.write_text("\n".join(lines) + "\n")
        inputs.append(f"{split}={path}")
    return inputs


CHECKED = ["criteo_x1", "frappe_x1", "movielenslatest_x1"]


@pytest.mark.parametrize("name", CHECKED)
def test_published_files_are_known_by_md5_rows_and_vocabularies(tmp_path: Path, name: str) -> None:
    recipe = read_recipe(name)
    rows = {"train": 400, "valid": 60, "test": 50}
    sizes = {field: 5 + place for place, field in enumerate(recipe.fields.categorical)}
    inputs = write_encoded(tmp_path, name, sizes, rows)
    md5 = {split: hashlib.md5((tmp_path / f"{split}.csv").read_bytes()).hexdigest() for split in SPLITS}
    right = {"md5": md5, "rows": rows, "vocabulary_rows": sum(sizes.values()), "vocabulary_sizes": sizes}
    known = recipe.model_copy(update={"checks": Checks.model_validate(right)})
    prepare(known, inputs, tmp_path / "data")
    assert sum(Schema.read(tmp_path / "data").vocabulary_sizes) == sum(sizes.values())
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "md5": ({"md5": md5 | {"valid": "0" * 32}}, r"valid\.csv: its md5 sum is [0-9a-f]{32}, but that of the publ"),
        "rows": ({"rows": rows | {"test": 51}}, "not the published result: rows of test 50 instead of 51;"),
        "size": ({"vocabulary_rows": 7}, r"vocabularies together [0-9,]+ instead of 7;"),
    }
    for place, (change, message) in wrong.items():
        other = recipe.model_copy(update={"checks": Checks.model_validate(right | change)})
        with pytest.raises(DataError, match=message):
            prepare(other, inputs, tmp_path / place)
        assert not (tmp_path / place).exists()
        prepare(other, inputs, tmp_path / place, check=False)
    extra = tmp_path / "more.csv"
    extra.write_text((tmp_path / "train.csv").read_text())
    with pytest.raises(DataError, match="published files are one a split"):
        prepare(known, [*inputs, f"train={extra}"], tmp_path / "more")


def test_generated_files_are_not_taken_for_the_published_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = write_encoded(tmp_path, "frappe_x1", {}, {"train": 30, "valid": 30, "test": 30})
    words = ["prepare", "--recipe", "frappe_x1", *(word for one in inputs for word in ("--input", one))]
    with pytest.raises(SystemExit) as done:
        main([*words, "--output", str(tmp_path / "data")])
    assert done.value.code == 2
    assert "that of the published file is ba7306e6c4fc19dd2cd84f2f0596d158" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main([*words, "--output", str(tmp_path / "data"), "--no-check"])
    assert done.value.code == 0


@pytest.mark.parametrize("name", [name for name in recipe_names() if read_recipe(name).checks])
def test_published_figures_agree_with_each_other(name: str) -> None:
    recipe = read_recipe(name)
    checks = recipe.checks
    assert checks is not None
    assert all(len(checks.md5[split]) == 32 for split in SPLITS)  # type: ignore[index]
    assert set(checks.vocabulary_sizes) <= {*recipe.fields.numeric, *recipe.fields.categorical}
    if checks.vocabulary_sizes:
        assert sum(checks.vocabulary_sizes.values()) == checks.vocabulary_rows


def test_a_published_rule_gives_vocabularies_of_known_size(tmp_path: Path) -> None:
    """Avazu_x4_001: a token seen once in train is none; hours give hour, weekday and weekend."""
    lines = [AVAZU_HEADER]
    for index in range(960):
        hour = f"1410{21 + index // 240}{index // 10 % 24:02d}"
        often, once = f"o{index % 50}", f"x{index}"
        cells = ["1005", "0", often, often, "c", often, "d", "e", once if index % 3 else often, often, "m", "1", "0"]
        lines.append(",".join([str(index), str(index % 2), hour, *cells, *["7"] * 8]))
    inputs = []
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
        inputs.append(f"{split}={tmp_path / split}.csv")
    given = read_recipe("avazu_x4").model_copy(update={"split": SplitRule(kind="given"), "checks": None})
    prepare(given, inputs, tmp_path / "data")
    sizes = {field.name: field.vocabulary_size for field in Schema.read(tmp_path / "data").categorical}
    # Tokens and the two ids of missing and unseen values. 21 to 24 October 2014: Tuesday to Friday.
    assert sizes["hour"] == 24 + 2
    assert (sizes["weekday"], sizes["weekend"]) == (4 + 2, 1 + 2)
    assert (sizes["site_id"], sizes["device_id"], sizes["C14"]) == (50 + 2, 50 + 2, 1 + 2)


def test_movielens_is_joined_as_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (join,) = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    # Tabs between columns, a quotation mark inside a title, spaces between genres, leading zeros of a post code.
    Path("ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "1\t24\tM\twriter\t05201\n2\t31\tF\tother\tT8H1N\n"
    )
    Path("ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '7\tThe "Best" One\t1995\tDrama War\n8\tAnother\t1996\tComedy\n'
    )
    ratings = [(1 + i % 2, 7 + i // 2 % 2, 1 + i % 5, 100 - i) for i in range(40)]
    Path("ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join("\t".join(map(str, row)) + "\n" for row in ratings)
    )
    subprocess.run([sys.executable, "-c", join], check=True)
    lines = Path("movielens.csv").read_text(encoding="utf-8").splitlines()
    user = {1: "24,M,writer,052", 2: "31,F,other,T8H"}
    item = {7: "1995,Drama War", 8: "1996,Comedy"}
    want = [
        f"{int(rating >= 4)},{u},{i},{user[u]},{item[i]}" for u, i, rating, _ in sorted(ratings, key=lambda r: r[3])
    ]
    assert lines == ["label,user,item,age,gender,occupation,zip,year,genres", *want]
    prepare(read_recipe("movielens_100k"), ["movielens.csv"], tmp_path / "data")
    assert set(tokens(tmp_path / "data", "zip")) == {"052", "T8H"}
    assert set(tokens(tmp_path / "data", "genres")) == {"Drama War", "Comedy"}
    assert [pq.read_table(tmp_path / "data" / split).num_rows for split in SPLITS] == [28, 4, 8]
