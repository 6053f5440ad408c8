"""What users get wrong: one clear message each, and nothing left behind."""

import gzip
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmoe.cli.main import main
from dmoe.config.data import DataConfig
from dmoe.errors import ConfigError, DataError, DmoeError
from dmoe.prepare.prepare import prepare
from dmoe.prepare.update import update
from dmoe.shards.writer import ShardWriter

ROWS = "".join(f"{i % 2},v{i % 3},{i}\n" for i in range(40))
GOOD = "y,v,n\n" + ROWS


def config(**changes: Any) -> DataConfig:
    values = {
        "label": "y",
        "split": {"kind": "stratified"},
        "fields": {"categorical": ["v"], "numeric": ["n"]},
    }
    return DataConfig.model_validate(values | changes)


def attempt(
    folder: Path,
    data: bytes | str,
    match: str,
    *,
    error: type[BaseException] = DataError,
    name: str = "log.csv",
    plan: DataConfig | None = None,
    **options: Any,
) -> None:
    """Preparing fails with this message and leaves the folder as it was."""
    log = folder / name
    log.write_bytes(data.encode() if isinstance(data, str) else data)
    before = sorted(folder.iterdir())
    with pytest.raises(error, match=match):
        prepare(plan or config(), [str(log)], folder / "data", **options)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("", r"log\.csv: is empty"),
        ("\n\r\n", r"log\.csv: holds no rows"),
        ("y,v,n\n", r"log\.csv: holds no rows"),
        ("y,v,n", r"log\.csv: holds no rows"),
        ("y,v\n0,a\n", r"log\.csv: no column 'n' \(it has y, v\)"),
        ("y,v,nn\n0,a,1\n", r"no column 'n'; did you mean 'nn'\?"),
        ("y,v,n,n\n0,a,1,1\n", r"column 'n' appears twice"),
        ('y,v,"n\n0,a,1\n', r"log\.csv:1: stray quote in the header"),
        (b"y,v,\xff\n0,a,1\n", r"log\.csv:1: the header is not UTF-8"),
        ("y,v,n\r0,a,1\r", r"bare carriage return"),
        (GOOD.encode("utf-16"), r"is UTF-16; convert it to UTF-8"),
        (gzip.compress(GOOD.encode() * 50)[:-20], r"truncated: the compressed data ends early"),
        (gzip.compress(GOOD.encode())[:-8] + b"\0\0\0\0\0\0\0\0", r"damaged gzip file"),
        (b"PK\x03\x04rest", r"is a zip archive; unpack it first"),
        (b"PAR1 but not whole", r"is not a whole Parquet file"),
        ("y,v,n\n" + "x" * (1 << 20) * 2, r"every row was rejected, the first:\n.*wrong number of columns: 1, not 3"),
        ("y,v,n\n1,a,1\n1,b,2\n" * 1, r"split '(valid|test|train)' would hold"),
        ("y,v,n\n" + "1,a,1\n" * 40, r"split 'train' would hold only rows of label 1"),
    ],
)  # fmt: skip
def test_unusable_files(tmp_path: Path, data: bytes | str, match: str) -> None:
    attempt(tmp_path, data, match)


BAD_ROWS: list[tuple[bytes, str | None, str, str]] = [
    (b"1,a", None, "wrong number of columns: 2, not 3", "1,a"),
    (b"1,a,2,3", None, "wrong number of columns: 4, not 3", "1,a,2,3"),
    (b"2,a,1", "y", "label is not 0 or 1", "2"),
    (b",a,1", "y", "label is missing", ""),
    (b"yes,a,1", "y", "label is not 0 or 1", "yes"),
    (b"1,a,one", "n", "not a number", "one"),
    (b"1,a,nan", "n", "not a number", "nan"),
    (b"1,a,1_000", "n", "not a number", "1_000"),
    (b"1,a,inf", "n", "not a number", "inf"),
    (b"1,a,1e39", "n", "number out of range", "1e39"),
    (b"1,a,-1e400", "n", "number out of range", "-1e400"),
    (b"1,\xc3(,1", None, "not UTF-8", "1,\\xc3(,1"),
    (b"1,a\0b,1", None, "NUL byte", "1,a\\x00b,1"),
    (b'1,a"b,1', None, "stray quote", '1,a"b,1'),
    (b'1,"a,1', None, "quote left open at the end of the line", '1,"a,1'),
    (b"1,a\rb,1", None, "carriage return inside a line", "1,a\rb,1"),
]


@pytest.mark.parametrize(("bad", "column", "reason", "text"), BAD_ROWS)
def test_a_bad_row_is_rejected_with_its_place(
    tmp_path: Path, bad: bytes, column: str | None, reason: str, text: str
) -> None:
    log = tmp_path / "log.csv"
    log.write_bytes(GOOD.encode() + b"\n" + bad + b"\n1,v0,5\n")
    summary = prepare(config(), [str(log)], tmp_path / "data")
    (reject,) = pq.read_table(tmp_path / "data" / "rejects.parquet").to_pylist()
    assert reject == {"file": str(log), "line": 43, "column": column, "reason": reason, "text": text}
    assert summary["rows"] == {"read": 42, "encoded": 41, "rejected": 1}
    assert summary["rejects"] == {reason: 1}
    assert summary["files"] == [{"path": str(log), "encoded": 41, "rejected": 1, "blank_lines": 1}]
    assert sum(split["rows"] for split in summary["splits"].values()) == 41
    (tmp_path / "data").rename(tmp_path / "done")
    attempt(tmp_path, log.read_bytes(), rf"a row was rejected, the first:\n  .*log\.csv:43:.*{reason}", max_rejects=0)


def test_all_kinds_of_bad_rows_together_add_up(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_bytes(GOOD.encode() + b"\n".join(bad for bad, *_ in BAD_ROWS) + b"\n" + ROWS.encode())
    summary = prepare(config(), [str(log)], tmp_path / "data", max_rejects=len(BAD_ROWS))
    rejects = pq.read_table(tmp_path / "data" / "rejects.parquet").to_pylist()
    assert [(r["line"], r["reason"]) for r in rejects] == [
        (42 + i, reason) for i, (_, _, reason, _) in enumerate(BAD_ROWS)
    ]
    assert summary["rows"] == {"read": 80 + len(BAD_ROWS), "encoded": 80, "rejected": len(BAD_ROWS)}
    assert sum(summary["rejects"].values()) == len(BAD_ROWS)
    (tmp_path / "data").rename(tmp_path / "done")
    attempt(tmp_path, log.read_bytes(), "more than 3 rows were rejected", max_rejects=3)


def test_wrong_delimiter_is_named(tmp_path: Path) -> None:
    attempt(tmp_path, GOOD, r"no column 'y'; is format.delimiter right", plan=config(format={"delimiter": ";"}))
    headerless = {"header": False, "columns": ["y", "v", "n"], "delimiter": ";"}
    attempt(tmp_path, ROWS, "Is format.delimiter", plan=config(format=headerless))
    attempt(tmp_path, ROWS, "no column 'n'", plan=config(format={"header": False, "columns": ["y", "v", "m"]}))


def test_times_that_are_none_are_rejected(tmp_path: Path) -> None:
    plan = config(
        fields={"categorical": ["v", "hour"]}, derive={"hour": {"column": "n", "take": "hour", "format": "yymmddhh"}}
    )
    attempt(
        tmp_path,
        "y,v,n\n1,a,14102125\n",
        "column 'n': not a time of the declared format: '14102125'",
        plan=plan,
        max_rejects=0,
    )
    by_time = config(split={"kind": "time", "column": "n"})
    attempt(tmp_path, "y,v,n\n1,a,\n", "time of the split is missing", plan=by_time, max_rejects=0)


def test_missing_and_repeated_inputs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv: no such file"):
        prepare(config(), [str(tmp_path / "nothing.csv")], tmp_path / "data")
    with pytest.raises(DataError, match=r"\*\.csv: no file matches this pattern"):
        prepare(config(), [str(tmp_path / "*.csv")], tmp_path / "data")
    with pytest.raises(DataError, match="no input file given"):
        prepare(config(), [], tmp_path / "data")
    with pytest.raises(DataError, match="this folder holds no data file"):
        prepare(config(), [str(tmp_path)], tmp_path / "data")
    log = tmp_path / "log.csv"
    log.write_text(GOOD)
    with pytest.raises(DataError, match="given twice"):
        prepare(config(), [str(log), str(tmp_path / "*.csv")], tmp_path / "data")
    with pytest.raises(ConfigError, match="split kind 'given' needs train=FILE"):
        prepare(config(split={"kind": "given"}), [str(log)], tmp_path / "data")
    with pytest.raises(ConfigError, match="needs at least one --input train=FILE"):
        prepare(config(split={"kind": "given"}), [f"test={log}"], tmp_path / "data")
    assert sorted(tmp_path.iterdir()) == [log]


def test_existing_output_is_kept_unless_forced(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(GOOD)
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match="already exists; choose another --output, or replace it by --force"):
        prepare(config(), [str(log)], other)
    with pytest.raises(DataError, match="is not a data set folder, so --force does not replace it"):
        prepare(config(), [str(log)], other, force=True)
    assert (other / "precious.txt").read_text() == "mine"
    prepare(config(), [str(log)], tmp_path / "data")
    (tmp_path / "data" / "old").write_text("")
    prepare(config(), [str(log)], tmp_path / "data", force=True)
    assert not (tmp_path / "data" / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "log.csv", "other"]


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    rows = "".join(f"{i % 2},{i * 7919 % 1000003:x},{i}\n" for i in range(60_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "log.csv").write_text("y,v,n\n" + rows)
    before = sorted(tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DmoeError, match=r"data: cannot be written: .*nothing was left there") as caught:
            prepare(config(), [str(tmp_path / "log.csv")], tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("limit", [3_000, 30_000, 300_000])
def test_full_disk_leaves_the_earlier_output(tmp_path: Path, limit: int) -> None:
    log = tmp_path / "log.csv"
    log.write_text("y,v,n\n" + "".join(f"{i % 2},{i * 7919 % 1000003:x},{i}\n" for i in range(60_000)))
    (tmp_path / "old.csv").write_text(GOOD)
    prepare(config(), [str(tmp_path / "old.csv")], tmp_path / "data")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for again in (
        lambda: prepare(config(), [str(log)], tmp_path / "data", force=True),
        lambda: update(tmp_path / "data", [str(log)]),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(DmoeError, match=r"data: (cannot|could not) be written|could not count: "):
                again()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_full_disk_at_the_end_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardWriter, "close", full)
    attempt(tmp_path, GOOD, "No space left on device", error=DmoeError)


def test_too_little_memory_is_refused(tmp_path: Path) -> None:
    attempt(tmp_path, GOOD, "--memory: needs at least 1024 MiB, got 1 MiB", memory_bytes=1 << 20)


def test_number_too_far_from_the_training_mean(tmp_path: Path) -> None:
    rows = "".join(f"{i % 2},v,{1e-30 * (i % 5)}\n" for i in range(30)) + "0,v,1e30\n1,v,1e30\n"
    plan = config(
        fields={"numeric": {"n": {"transform": "standardise"}}},
        split={"kind": "ordered", "train": 0.8, "valid": 0.1, "test": 0.1},
    )
    attempt(tmp_path, "y,v,n\n" + rows, "field 'n': 1e.30 is too far from the training mean", plan=plan)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.out, captured.err


def test_command_line_errors_are_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out, yaml = tmp_path / "log.csv", tmp_path / "data", tmp_path / "data.yaml"
    log.write_text(GOOD)
    yaml.write_text("label: y\nfields: {categorical: [v], min_cout: 2}\n")
    common = ("prepare", "--input", str(log), "--output", str(out))
    cases: dict[tuple[str, ...], str] = {
        ("--config", str(yaml)): "unknown key 'fields.min_cout'; did you mean 'min_count'?",
        ("--recipe", "criteo_x5"): "no recipe 'criteo_x5'; did you mean 'criteo_x",
        (): "give one of --recipe NAME, --config data.yaml and --update DATA",
        ("--recipe", "avazu_x4", "--split", "randm"): "--split: 'kind': Input should be 'ordered'",
        ("--recipe", "avazu_x4", "--split", "random,train=0.5"): "shares must sum to 1",
        ("--recipe", "avazu_x4", "--split", "ordered", "--seed", "3"): "'seed' has no meaning for split kind 'ordered'",
        ("--recipe", "avazu_x4", "--memory", "lots"): "--memory: 'lots' is no amount of memory",
        ("--recipe", "avazu_x4"): "no column 'click'",
        ("--config", str(tmp_path / "none.yaml")): "none.yaml: no such file",
    }
    for arguments, message in cases.items():
        code, stdout, stderr = run(capsys, *common, *arguments)
        assert (code, stdout) == (2, ""), arguments
        assert message in stderr
        assert "Traceback" not in stderr
        assert not out.exists()


def test_command_line_prints_json_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text(GOOD)
    second.write_text(GOOD + "5,v,1\n")
    (tmp_path / "data.yaml").write_text("label: y\nfields: {categorical: [v], numeric: [n]}\n")
    code, stdout, stderr = run(
        capsys, "prepare", "--config", str(tmp_path / "data.yaml"), "--output", str(tmp_path / "data"),
        "--split", "stratified", "--seed", "4", "--json", "--input", str(first), str(second),
    )  # fmt: skip
    assert code == 0, stderr
    result = json.loads(stdout)
    assert result["rows"] == {"read": 81, "encoded": 80, "rejected": 1}
    assert result["data"] == str(tmp_path / "data")
    source = json.loads((tmp_path / "data" / "schema.json").read_text())["source"]
    assert source["split"]["seed"] == 4
    assert "1 rejected: label is not 0 or 1" in stderr
    assert "train" in stderr


@pytest.mark.parametrize(
    "harm",
    [
        Path.unlink,
        lambda path: path.write_bytes(b"junk"),
        lambda path: pq.write_table(pa.table({"value": ["x"], "id": [2]}), path),
    ],
)
def test_damaged_vocabulary_is_named(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    from dmoe.tokens.encoder import RawEncoder

    (tmp_path / "log.csv").write_text(GOOD)
    prepare(config(), [str(tmp_path / "log.csv")], tmp_path / "data")
    harm(tmp_path / "data" / "vocabulary" / "v.parquet")
    with pytest.raises(DataError, match=r"v\.parquet"):
        RawEncoder(tmp_path / "data")
