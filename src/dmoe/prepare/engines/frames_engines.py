"""Polars and Apache Spark as counting engines, both through narwhals: one plan, two backends.

Values go to the engine and come back as Parquet files in its folder, which a cluster must share with this machine.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import narwhals as nw
import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.errors import DmoeError, MissingExtraError
from dmoe.machine.ordered_pool import OrderedPool
from dmoe.prepare.engines.base import Counted, CountingEngine, EngineOptions, on_pool

T = TypeVar("T")
R = TypeVar("R")
_BATCH_ROWS = 1 << 20


@contextmanager
def frames_engine(options: EngineOptions) -> Iterator[CountingEngine]:
    """Raises: MissingExtraError if the engine's package, or for Spark Java, is absent; DmoeError if it fails."""
    options.folder.mkdir(exist_ok=True)
    if options.name == "polars":
        try:
            import polars
        except ImportError:
            raise MissingExtraError("--engine polars needs polars: pip install 'dmoe[polars]'") from None
        try:
            yield _Frames(options.folder, "polars", {})
        except polars.exceptions.PolarsError as error:
            raise DmoeError(f"Polars could not count: {str(error).splitlines()[0]}") from None
        return
    with _spark_session(options) as session:
        yield _Spark(options.folder, "pyspark", {"session": session})


@contextmanager
def _spark_session(options: EngineOptions) -> Iterator[Any]:
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise MissingExtraError("--engine spark needs pyspark: pip install 'dmoe[spark]'") from None
    java = Path(os.environ["JAVA_HOME"]) / "bin" / "java" if "JAVA_HOME" in os.environ else shutil.which("java")
    if java is None or not Path(java).exists():
        raise MissingExtraError("--engine spark needs Java 17 or newer: install it, or set JAVA_HOME")
    builder = (
        SparkSession.builder.appName("dmoe prepare")
        .master(options.spark_master or f"local[{options.threads}]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "ERROR")
        .config("spark.driver.memory", f"{options.memory_bytes >> 20}m")
        .config("spark.local.dir", str(options.folder.resolve()))
    )
    if options.spark_master is None:
        # Not for a cluster, whose workers reach the driver by its name; here the name may lead nowhere.
        builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
        builder = builder.config("spark.sql.shuffle.partitions", str(4 * options.threads))
        # Workers on this machine run this very Python; on a cluster PYSPARK_PYTHON says which.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    try:
        session = builder.getOrCreate()
    except (PySparkException, RuntimeError) as error:
        raise DmoeError(f"Spark did not start: {str(error).splitlines()[0]}") from None
    try:
        yield session
    except PySparkException as error:
        raise DmoeError(f"Spark could not count: {str(error).splitlines()[0]}") from None
    finally:
        session.stop()


class _Frames:
    """The plan over narwhals' lazy frames."""

    map = staticmethod(on_pool)

    def __init__(self, folder: Path, backend: Literal["polars", "pyspark"], keywords: dict[str, Any]) -> None:
        self._folder, self._backend, self._keywords = folder, backend, keywords

    def _take(self, name: str, reader: pa.RecordBatchReader) -> "nw.LazyFrame[Any]":
        path = self._folder / f"{name}.parquet"
        with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
        return self._scan(path)

    def _scan(self, path: Path) -> "nw.LazyFrame[Any]":
        return nw.scan_parquet(str(path), backend=self._backend, **self._keywords)

    def _give(self, name: str, frame: "nw.LazyFrame[Any]") -> Path:
        """Writes the frame; Spark makes a folder of files whose names are in the order of the rows."""
        path = self._folder / name
        if path.is_dir():
            shutil.rmtree(path)
        frame.sink_parquet(str(path))
        return path

    def count(self, counted: pa.RecordBatchReader, min_count: int, known: pa.RecordBatchReader) -> Counted:
        frame = self._take("counted", counted).group_by("value").agg(nw.col("count").sum())
        totals = self._scan(self._give("totals", frame))
        ids = self._take("known", known)
        new = totals.filter(nw.col("count") >= min_count).join(ids.select("value"), on="value", how="anti")
        new = new.select("value", "count").sort("count", "value", descending=[True, False])
        old = totals.join(ids, on="value", how="inner").select("id", "count")
        distinct = totals.select(nw.len()).collect("pyarrow").item()
        return Counted(int(distinct), _batches(self._give("new", new)), _batches(self._give("old", old)))

    def look_up(self, placed: pa.RecordBatchReader, ids: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        found = self._take("placed", placed).join(self._take("known", ids), on="value", how="inner")
        yield from _batches(self._give("found", found.select("position", "id")))

    def order(self, times: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        yield from _batches(self._give("order", self._take("times", times).sort("time", "row").select("row")))


class _Spark(_Frames):
    """The same plan; pieces of text are sent to Spark's workers, which parse them and write to the work folder."""

    def map(self, function: Callable[[T], R], items: Iterable[T], pool: OrderedPool) -> Iterator[R]:  # noqa: ARG002
        context = self._keywords["session"].sparkContext
        items = iter(items)
        # As many at a time as Spark has processors for: each piece passes through this process.
        while wave := list(islice(items, context.defaultParallelism)):
            for result, error in context.parallelize(wave, len(wave)).map(partial(_tried, function)).collect():
                if error is not None:
                    raise error
                yield result


def _tried(function: Callable[[T], R], item: T) -> tuple[R | None, Exception | None]:
    """The result or our own error, which Spark would wrap in its own."""
    try:
        return function(item), None
    except (DmoeError, OSError) as error:
        return None, error


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    for part in sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]:
        with pq.ParquetFile(part) as file:
            yield from file.iter_batches(_BATCH_ROWS)
