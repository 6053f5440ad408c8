"""DuckDB as counting engine: within its memory limit, and then on disk."""

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from dmoe.errors import DmoeError
from dmoe.prepare.engines.base import Counted, CountingEngine, EngineOptions, on_pool

# Not DuckDB's share of the memory: raw and coded chunks at work, shards being written.
_OWN_MEMORY = 768 << 20
_LEAST_MEMORY = 256 << 20
_BATCH_ROWS = 1 << 20


@contextmanager
def duckdb_engine(options: EngineOptions) -> Iterator[CountingEngine]:
    settings: dict[str, str | bool | int | float | list[str]] = {
        "threads": options.threads,
        "memory_limit": f"{max(options.memory_bytes - _OWN_MEMORY, _LEAST_MEMORY) >> 20}MiB",
        "temp_directory": str(options.folder),
    }
    try:
        with duckdb.connect(config=settings) as connection:
            connection.execute("SET enable_progress_bar = false")
            connection.execute("SET preserve_insertion_order = false")
            yield _DuckDB(connection)
    except duckdb.OutOfMemoryException as error:
        raise DmoeError(f"out of memory while counting: raise --memory ({_first_line(error)})") from None
    except duckdb.Error as error:
        raise DmoeError(f"could not count: {_first_line(error)}") from None


class _DuckDB:
    """Works within its memory limit, and then on disk."""

    map = staticmethod(on_pool)

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def _take(self, name: str, reader: pa.RecordBatchReader, query: str) -> None:
        """Makes the temporary table `name` of a query over the stream, which it calls `stream`."""
        self._connection.register("stream", reader)
        self._connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}")
        self._connection.unregister("stream")

    def _batches(self, query: str) -> Iterator[pa.RecordBatch]:
        yield from self._connection.sql(query).to_arrow_reader(_BATCH_ROWS)

    def count(self, counted: pa.RecordBatchReader, min_count: int, known: pa.RecordBatchReader) -> Counted:
        self._take("totals", counted, "SELECT value, sum(count)::BIGINT AS count FROM stream GROUP BY value")
        self._take("known", known, "SELECT value, id FROM stream")
        ((distinct,),) = self._connection.execute("SELECT count(*) FROM totals").fetchall()
        return Counted(
            distinct,
            self._batches(
                f"SELECT value, count FROM totals ANTI JOIN known USING (value) WHERE count >= {int(min_count)} "
                "ORDER BY count DESC, value"
            ),
            self._batches("SELECT id, count FROM totals JOIN known USING (value)"),
        )

    def look_up(self, placed: pa.RecordBatchReader, ids: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        self._connection.execute("DROP TABLE IF EXISTS totals")
        self._take("known", ids, "SELECT value, id FROM stream")
        self._connection.register("placed", placed)
        yield from self._batches("SELECT position, id FROM placed JOIN known USING (value)")
        self._connection.unregister("placed")

    def order(self, times: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        self._connection.register("times", times)
        yield from self._batches('SELECT "row" FROM times ORDER BY time, "row"')
        self._connection.unregister("times")


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0]
