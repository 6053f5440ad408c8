"""Inputs as other tools leave them: folders, empty parts, columns of folder names, compressed streams."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmoe.config.data import DataConfig
from dmoe.errors import DataError
from dmoe.inspection import inspect_log
from dmoe.prepare.prepare import prepare
from dmoe.sources import lines
from dmoe.sources.inputs import expand_inputs, folder_columns
from dmoe.tokens.encoder import RawEncoder
from tests.prepare.logs import config, random_rows, write_csv
from tests.prepare.test_prepare import data_files
from tests.prepare.test_restart import Stop

PLAN = DataConfig.model_validate(
    {"label": "y", "split": {"kind": "stratified"}, "fields": {"categorical": ["v"], "numeric": ["n"]}}
)
BY_DAY = DataConfig.model_validate(
    {"label": "y", "split": {"kind": "stratified"}, "fields": {"categorical": ["v", "day"], "numeric": ["n"]}}
)


def rows_of(count: int, start: int = 0) -> list[tuple[int, str, int]]:
    return [(i % 2, f"v{i % 3}", i) for i in range(start, start + count)]


def text_of(rows: list[tuple[int, str, int]], header: bool = True) -> str:
    return ("y,v,n\n" if header else "") + "".join(f"{y},{v},{n}\n" for y, v, n in rows)


def table_of(rows: list[tuple[int, str, int]]) -> pa.Table:
    y, v, n = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table({"y": pa.array(y, pa.int8()), "v": pa.array(v, pa.string()), "n": pa.array(n, pa.int64())})


def write(path: Path, content: bytes | str | pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def leave_litter(folder: Path) -> None:
    """What is no data beside data."""
    for name in (
        "_SUCCESS",
        "_committed_7",
        ".part-0.csv.crc",
        "part-0.csv.crc",
        "_temporary/0/part-0.csv",
        ".x/a.csv",
    ):
        write(folder / name, "y\n7\n")


def test_a_folder_stands_for_its_files_in_order_and_patterns_leave_out_the_same(tmp_path: Path) -> None:
    leave_litter(tmp_path / "log")
    names = ["a/part-1.csv", "a/part-2.csv", "a-b/part-0.csv", "part-0.csv"]
    files = [write(tmp_path / "log" / name, text_of(rows_of(9, k))) for k, name in enumerate(names)]
    assert expand_inputs([str(tmp_path / "log")]) == files
    assert expand_inputs([str(tmp_path / "log" / "*")]) == files
    assert expand_inputs([str(tmp_path / "log" / "**")]) == files
    assert expand_inputs([str(tmp_path / "*" / "**" / "*.csv")]) == files
    assert expand_inputs([str(tmp_path / "log" / "_temporary" / "*" / "*")]) == [
        tmp_path / "log" / "_temporary" / "0" / "part-0.csv"
    ]
    with pytest.raises(DataError, match=r"no data file matches this pattern .*\*\.crc are skipped"):
        expand_inputs([str(tmp_path / "lo*" / "[_]SUCCESS")])
    with pytest.raises(DataError, match="given twice"):
        expand_inputs([str(tmp_path / "log"), str(files[0])])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_parts_of_zero_rows_are_counted_and_only_an_input_of_none_is_an_error(tmp_path: Path, kind: str) -> None:
    make: Callable[[Any], Any] = text_of if kind == "csv" else table_of
    folder = tmp_path / "log"
    leave_litter(folder)
    for name, content in (("p0", make([])), ("p1", make(rows_of(40))), ("p2", make([])), ("p3", make(rows_of(40)))):
        write(folder / f"{name}.{kind}", content)
    write(folder / "p4.csv", "")
    summary = prepare(PLAN, [str(folder)], tmp_path / "data")
    assert [file["encoded"] for file in summary["files"]] == [0, 40, 0, 40, 0]
    prepare(PLAN, [str(folder / f"p1.{kind}"), str(folder / f"p3.{kind}")], tmp_path / "plain")
    for part in ("train/part-00000.parquet", "vocabulary/v.parquet"):
        assert (tmp_path / "data" / part).read_bytes() == (tmp_path / "plain" / part).read_bytes()
    with pytest.raises(DataError, match=r"none of the 2 input files holds a row, the first: .*p0"):
        prepare(PLAN, [str(folder / f"p0.{kind}"), str(folder / "p4.csv")], tmp_path / "none")
    encoder = RawEncoder(tmp_path / "data")
    assert [len(batch) for batch in encoder.encode_files([folder], batch_size=1000)] == [80]
    none = encoder.encode_files([folder / f"p0.{kind}", folder / "p4.csv"], batch_size=7)
    assert sum(map(len, none)) == 0
    assert len(encoder.encode_table(table_of([]))) == 0


def test_a_part_that_lacks_a_column_or_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "log" / "p0.parquet", table_of(rows_of(40)))
    write(tmp_path / "log" / "p1.parquet", table_of(rows_of(40)).drop_columns(["v"]))
    with pytest.raises(DataError, match=r"p1\.parquet: no column 'v' \(it has y, n\)"):
        prepare(PLAN, [str(tmp_path / "log")], tmp_path / "data")
    write(tmp_path / "log" / "p1.parquet", "")
    with pytest.raises(DataError, match=r"p1\.parquet: is not a whole Parquet file \(it is empty\)"):
        prepare(PLAN, [str(tmp_path / "log")], tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_parts_of_other_types_hold_the_same_values(tmp_path: Path) -> None:
    plan = DataConfig.model_validate({"label": "y", "split": {"kind": "stratified"}, "fields": {"categorical": ["n"]}})
    for index, kind in enumerate([pa.int32(), pa.int64(), pa.uint8(), pa.string(), pa.large_string(), pa.float64()]):
        rows = table_of([(i % 2, "", i % 5) for i in range(30)])
        write(tmp_path / "log" / f"{index}.parquet", rows.set_column(2, "n", rows["n"].cast(kind)))
    none = table_of(rows_of(6)).set_column(2, "n", pa.nulls(6))
    write(tmp_path / "log" / "9.parquet", none)
    summary = prepare(plan, [str(tmp_path / "log")], tmp_path / "data")
    assert summary["rows"]["encoded"] == 186
    vocabulary = pq.read_table(tmp_path / "data" / "vocabulary" / "n.parquet")
    assert sorted(vocabulary["value"].to_pylist()) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_folder_names_are_columns_as_if_the_files_had_them(tmp_path: Path, kind: str) -> None:
    days = {"day=2026-01-01%2000%3A00": "2026-01-01 00:00", "day=b": "b", "day=__HIVE_DEFAULT_PARTITION__": ""}
    plain = "y,v,n,day\n"
    for k, (folder, value) in enumerate(sorted(days.items())):
        rows = rows_of(30, 30 * k)
        content = text_of(rows) if kind == "csv" else table_of(rows)
        write(tmp_path / "hive" / folder / f"part-0.{kind}", content)
        plain += "".join(f"{y},{v},{n},{value}\n" for y, v, n in rows)
    write(tmp_path / "plain.csv", plain)
    prepare(BY_DAY, [str(tmp_path / "hive")], tmp_path / "data")
    prepare(BY_DAY, [str(tmp_path / "plain.csv")], tmp_path / "want")
    files = data_files(tmp_path / "want")
    assert data_files(tmp_path / "data") == files
    assert any("day" in str(name) for name in files)
    # Scoring reads them too, and a file's own column goes first.
    encoder = RawEncoder(tmp_path / "data")
    (whole,) = encoder.encode_files([tmp_path / "hive"], batch_size=1000)
    (want,) = encoder.encode_files([tmp_path / "plain.csv"], batch_size=1000)
    assert whole.ids_BC.tolist() == want.ids_BC.tolist()
    own = write(tmp_path / "day=nothing" / "own.csv", plain)
    (found,) = encoder.encode_files([own], batch_size=1000)
    assert found.ids_BC.tolist() == want.ids_BC.tolist()
    with pytest.raises(DataError, match=r"plain-0: no column 'day'"):
        list(encoder.encode_files([write(tmp_path / "plain-0", text_of(rows_of(3)))], batch_size=9))
    inspected = inspect_log([str(tmp_path / "hive")], label=None, max_rows=1000)
    assert "day" in [column.name for column in inspected.columns]


def test_folder_names_split_by_time_label_rows_and_go_with_files_without_a_header(tmp_path: Path) -> None:
    for y in "01":
        for day in "123":
            path = tmp_path / "log" / f"d={day}" / f"y={y}" / "part"
            write(path, "".join(f"v{i % 3},{i}\n" for i in range(10)))
    plan = DataConfig.model_validate(
        {
            "label": "y",
            "split": {"kind": "time", "column": "d", "train": 0.34, "valid": 0.33, "test": 0.33},
            "fields": {"categorical": ["v"]},
            "format": {"header": False, "columns": ["v", "n"]},
        }
    )
    summary = prepare(plan, [str(tmp_path / "log")], tmp_path / "data")
    assert summary["rows"]["encoded"] == 60
    assert [split["positives"] for split in summary["splits"].values()] == [10, 10, 10]
    assert folder_columns(Path("a=1/b%3D=x%2Fy/=z/c/d=e")) == {"a": "1", "b=": "x/y"}


def test_an_output_in_an_input_folder_and_a_data_set_as_input_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "log" / "p.csv", text_of(rows_of(40)))
    with pytest.raises(DataError, match="lies in the input folder"):
        prepare(PLAN, [str(tmp_path / "log")], tmp_path / "log" / "data")
    prepare(PLAN, [str(tmp_path / "log")], tmp_path / "data")
    with pytest.raises(DataError, match="is a data set folder of dmoe prepare"):
        prepare(PLAN, [str(tmp_path / "data")], tmp_path / "other")


def by_arrow(codec: str) -> Callable[[bytes], bytes]:
    def compress(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(data)
        return bytes(sink.getvalue().to_pybytes())

    return compress


CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": by_arrow("zstd"),
    "lz4": by_arrow("lz4"),
}


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_reads_several_streams_and_work_is_continued(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines.read_line_chunks, "__defaults__", (5000,))
    compress, plan, options = CODECS[codec], config(split={"kind": "stratified"}), {"shard_rows": 100}
    data = write_csv(tmp_path / "log.csv", random_rows(500, 3)).read_bytes()
    want = prepare(plan, [str(tmp_path / "log.csv")], tmp_path / "want", **options)
    half = len(data) // 2 + 3
    log = str(write(tmp_path / "log.x", compress(data[:half]) + compress(b"") + compress(data[half:])))
    for at in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            prepare(plan, [log], tmp_path / "data", progress=Stop(at), **options)
    got = prepare(plan, [log], tmp_path / "data", **options)
    assert got["rows"] == want["rows"]
    for name, content in data_files(tmp_path / "want").items():
        assert data_files(tmp_path / "data")[name] == content


@pytest.mark.parametrize("codec", CODECS)
def test_cut_and_harmed_streams_are_named_with_their_place(tmp_path: Path, codec: str) -> None:
    whole = CODECS[codec](text_of([(i % 2, f"v{i * 7919 % 1000}", i) for i in range(5000)]).encode())
    place = r"near byte [\d,]+ of the file, after line 1 of its text"
    for cut in (len(whole) - 1, len(whole) // 2, 12):
        log = write(tmp_path / "log.csv", whole[:cut])
        with pytest.raises(DataError, match=rf"log\.csv: truncated: the compressed data ends early, {place}"):
            prepare(PLAN, [str(log)], tmp_path / "data")
    for junk in (b"junk that is no stream", b"x"):
        log = write(tmp_path / "log.csv", whole + junk)
        with pytest.raises(DataError, match=rf"log\.csv: (damaged {codec} file|truncated).* {place}"):
            prepare(PLAN, [str(log)], tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv"]


def test_frames_to_skip_and_padding_are_no_damage(tmp_path: Path) -> None:
    data, skip = text_of(rows_of(40)).encode(), b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    for stored in (
        skip + skip + CODECS["zstd"](data),
        lzma.compress(data) + b"\0" * 8,
        gzip.compress(data) + b"\0" * 9,
    ):
        summary = prepare(PLAN, [str(write(tmp_path / "log", stored))], tmp_path / "data", force=True)
        assert summary["rows"]["encoded"] == 40


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (gzip.compress(gzip.compress(b"y,v,n\n")), "is compressed twice, by gzip and gzip"),
        (bz2.compress(b"PAR1..."), "is a Parquet file, inside bzip2 compression"),
        (lzma.compress(b"PK\x03\x04rest"), "is a zip archive; unpack it first, inside xz compression"),
        (gzip.compress("y,v,n\n".encode("utf-16")), "is UTF-16; convert it to UTF-8, inside gzip compression"),
        (b"\xff\x06\x00\x00sNaPpYrest", "is compressed by snappy; unpack it, or compress it by gzip, zstd"),
        (b"Obj\x01rest", "is an Avro file; convert it"),
        ("y,v,n\n1,é,2\n".encode("utf-16-le"), r"log\.csv: is UTF-16 without a byte order mark; convert it to UTF-8$"),
        ("y,値,名\n1,日本,2\n".encode("utf-16-be"), "is UTF-16 without a byte order mark; convert it to UTF-8"),
        ("y,v,n\n1,a,2\n".encode("utf-32-le"), "is UTF-32 without a byte order mark"),
        (
            gzip.compress("y,v\n".encode("utf-16-le")),
            "is UTF-16 without .*; convert it to UTF-8, inside gzip compression",
        ),
        (b"sep=,\ny,v,n\n1,a,2\n", r"log\.csv:1: is Excel's line 'sep=,' and no row or header; remove this line"),
        (b'\xef\xbb\xbf"SEP=;"\r\ny;v;n\r\n', "Excel's line 'SEP=;' and no row"),
        (b"sep=\t\ny\tv\tn\n1\ta\t2\n", "Excel's line 'sep=\t' and no row"),
    ],
    ids=[
        "twice",
        "parquet",
        "zip",
        "utf-16",
        "snappy",
        "avro",
        "utf-16-le",
        "utf-16-be",
        "utf-32",
        "utf-16 in gzip",
        "sep",
        "quoted sep",
        "tab sep",
    ],  # bytes hold the time of compression
)
def test_other_kinds_of_files_are_told(tmp_path: Path, stored: bytes, message: str) -> None:
    log = str(write(tmp_path / "log.csv", stored))
    with pytest.raises(DataError, match=message):
        prepare(PLAN, [log], tmp_path / "data")
    if "Excel" in message or "without" in message:
        with pytest.raises(DataError, match=message):
            inspect_log([log], label=None, max_rows=100)
