"""Raw logs in, a data set folder out: parse and stage, split, count, encode.

Every pass but the first works on codes, not on text. No result depends on the thread count, the engine, or on
whether the work was interrupted.
"""

import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dmoe.config.data import SPLITS, DataConfig
from dmoe.disk.files import read_json, write_json
from dmoe.errors import ConfigError, DataError, DmoeError, nearest
from dmoe.inspection.leak_sample import suspicions
from dmoe.machine.limits import usable_threads
from dmoe.machine.ordered_pool import OrderedPool
from dmoe.prepare import splits
from dmoe.prepare.engines import open_engine
from dmoe.prepare.engines.base import CountingEngine, EngineName, EngineOptions
from dmoe.prepare.fit import Fitter
from dmoe.prepare.published import check_inputs, check_result
from dmoe.prepare.reject_limits import RejectLimits, witnesses
from dmoe.prepare.restart import Journal, ended_already, restartable
from dmoe.prepare.stage import Spill, Stage
from dmoe.prepare.summary import FileTally, PrepareSummary, Progress, with_coverage
from dmoe.prepare.vectors import file_facts
from dmoe.prepare.write import SplitWriter
from dmoe.schema import Schema
from dmoe.shards.folder import DataFolder
from dmoe.shards.writer import SHARD_ROWS
from dmoe.sources import lines
from dmoe.sources.inputs import check_outside, split_inputs
from dmoe.sources.pieces import PARQUET_ROWS, LogFile, Piece
from dmoe.sources.rejects import CONTRADICTION, REASONS
from dmoe.tokens.fields import categorical_names, convert, numeric_names, quantile_names, value_forms

_LEAST_MEMORY = 1 << 30
_MARKS = ("schema.json", "summary.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """How to work; of these only `shard_rows` shows in the result.

    Rejected rows must be few and by chance, those of the reasons in `allow_rejects` aside; with `max_rejects` so many
    are allowed whatever they are.
    `progress(step, done, share)` is called after every chunk. `force` replaces a data set folder at the output.
    `check` compares given splits with the published files that the configuration names under `checks`.
    """

    engine: EngineName = "duckdb"
    spark_master: str | None = None
    memory_bytes: int = 2 << 30
    threads: int | None = None
    max_rejects: int | None = None
    allow_rejects: tuple[str, ...] = ()
    shard_rows: int = SHARD_ROWS
    force: bool = False
    check: bool = True
    progress: Progress = lambda _step, _done, _share: None


def prepare(config: DataConfig, inputs: Sequence[str], output: Path, **options: Any) -> dict[str, Any]:
    """Makes the data set folder `output` of raw logs; gives what summary.json says.

    `inputs` are paths or glob patterns, read in this order; for split kind `given` each is `train=PATH`,
    `valid=PATH` or `test=PATH`. The keywords are those of `PrepareOptions`.

    A call that was interrupted or killed is continued by an equal call. Raises: DataError for the input,
    DmoeError if the disk or the memory is full, MissingExtraError if the engine is not installed. Then nothing
    is left.
    """
    return run(config, inputs, output, None, PrepareOptions(**options))


def run(
    config: DataConfig, inputs: Sequence[str], output: Path, base: DataFolder | None, options: PrepareOptions
) -> dict[str, Any]:
    """`prepare`; with `base`, its rows and ids come first."""
    if options.memory_bytes < _LEAST_MEMORY:
        least, given = _LEAST_MEMORY >> 20, options.memory_bytes >> 20
        raise DataError(f"--memory: needs at least {least} MiB, got {given} MiB")
    for reason in options.allow_rejects:
        if reason not in REASONS:
            raise ConfigError(f"--allow-rejects: no reason '{reason}'{nearest(reason, REASONS)}")
    if options.spark_master is not None and options.engine != "spark":
        raise ConfigError("--spark-master goes with --engine spark only")
    sources = split_inputs(config, inputs, needs_train=base is None)
    given = config.split.kind == "given"
    check_outside(output, [text.partition("=")[2] if given else text for text in inputs])
    plan = _plan(config, sources, base, options)
    in_place = base is not None and base.folder.resolve() == output.resolve()
    if ended_already(output, plan, but="base_summary" if in_place else None):
        return read_json(output / "summary.json")
    with _readable_errors(output), restartable(output, options.force, _MARKS, plan) as (folder, work, journal):
        checks = config.checks if options.check and config.split.kind == "given" else None
        if checks is not None:
            check_inputs(checks, sources)
        schema, values = _Work(config, sources, folder, work, journal, options).run(base)
        if checks is not None:
            rows = {name: split["rows"] for name, split in values["splits"].items()}
            check_result(checks, schema, rows)
        if base is not None:
            values = base.take_over(folder, values)
        schema = with_coverage(schema, values)
        schema.write(folder)
        values["warnings"] = [one.values() for one in suspicions(DataFolder(folder, schema, values))]
        write_json(folder / "summary.json", values)
        return values


def _plan(
    config: DataConfig, sources: list[tuple[Path, str | None]], base: DataFolder | None, options: PrepareOptions
) -> dict[str, Any]:
    """All that a result depends on: work of another plan is not continued."""
    files = [(split, *file_facts(path)) for path, split in sources]
    return {
        "config": config.model_dump(mode="json"),
        "files": files,
        # Those of a base are kept with it.
        "vectors": [file_facts(Path(options.file)) for options in config.fields.pretrained.values() if base is None],
        "base": None if base is None else str(base.folder.resolve()),
        "base_summary": None if base is None else base.summary,
        "sizes": [lines.CHUNK_BYTES, PARQUET_ROWS, options.shard_rows],
        "versions": [version(name) for name in ("dmoe", "pyarrow", "numpy", "duckdb")],
    }


class _Work:
    """One preparation, step by step; each step takes over what the journal says is finished."""

    def __init__(
        self,
        config: DataConfig,
        sources: list[tuple[Path, str | None]],
        folder: Path,
        work: Path,
        journal: Journal,
        options: PrepareOptions,
    ) -> None:
        self.config, self.sources, self.folder, self.journal = config, sources, folder, journal
        self.options, self.progress = options, options.progress
        asked = (CONTRADICTION,) if config.contradictions == "reject" else ()
        self.judge = RejectLimits(options.max_rejects, (*options.allow_rejects, *asked))
        self.rejects = self.judge.log
        self.stage = Stage(
            Spill(
                work.resolve(),
                tuple(name for name in categorical_names(config) if name not in quantile_names(config)),
                (*numeric_names(config), *quantile_names(config)),
                len(config.tasks),
                config.weight is not None,
            )
        )
        self._earlier, self._started = journal.seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of all work on the plan, interruptions left out."""
        return self._earlier + time.perf_counter() - self._started

    def note(self, kind: str, **values: Any) -> None:
        self.journal.add(kind, **values, seconds=round(self.seconds, 3))

    def run(self, base: DataFolder | None) -> tuple[Schema, dict[str, Any]]:
        """Fills the folder, all but schema.json and summary.json; gives the schema, its coverage not known yet, and
        what summary.json is to say of these rows."""
        threads = self.options.threads or usable_threads()
        engine_options = EngineOptions(
            self.options.engine,
            self.options.memory_bytes,
            threads,
            self.options.spark_master,
            self.stage.folder / "engine",
        )
        with OrderedPool(threads) as pool, open_engine(engine_options) as engine:
            files, runs = self._stage_rows(engine, pool)
            labels = {name: self.stage.labels(task) for task, name in enumerate(self.config.tasks)}
            codes = self._assign(labels, runs, engine)
            shares = dict(runs) if runs else self.config.split.shares()
            wanted = [name for name in SPLITS if name in shares and (runs or shares[name])]
            # A rare label may have no click in an update: with the rows before it has.
            sizes = splits.check_splits(codes, labels, wanted, required=None if base is None else 1)
            weights = self._weights(codes, wanted)
            summary = PrepareSummary(files, self.rejects.by_reason(), sizes, weights)
            fitter = Fitter(self.config, self.stage, codes, self.folder, engine, self.journal, base)
            fitted = fitter.fit(pool, self.progress, self.note)
            summary.distinct = fitted.distinct
            parts = {name: 0 if base is None else base.num_parts(name) for name in wanted}
            writer = SplitWriter(
                fitted, codes, list(labels.values()), self.folder, self.options.shard_rows, parts, self.journal, base
            )
            writer.write(summary, pool, self.progress, self.note)
        self.rejects.write(self.folder / "rejects.parquet")
        values = summary.values(fitted.schema, self.seconds)
        if base is not None:
            values["far_above"] = summary.against(base.schema)
        return fitted.schema, values

    def _stage_rows(self, engine: CountingEngine, pool: OrderedPool) -> tuple[list[FileTally], list[tuple[str, int]]]:
        """Parses all inputs; gives what each file held and, for given splits, the rows of each file's split."""
        tallies: list[FileTally] = []
        runs: list[tuple[str, int]] = []
        sizes = [path.stat().st_size for path, _ in self.sources]
        for number, (path, split) in enumerate(self.sources):
            tally = FileTally(str(path))
            before = sum(sizes[:number])
            for entry in chain(self.journal.of("piece", file=number), self._parsed(number, path, engine, pool)):
                self.judge.add(entry)
                self.stage.append(entry["name"], entry["rows"], entry["values"], entry["forms"])
                tally.add(entry["rows"], len(entry["rejects"]), entry["blank_lines"])
                self.progress("read", self.stage.num_rows, (before + entry["end"]) / max(sum(sizes), 1))
            tallies.append(tally)
            if split is not None:
                runs.append((split, tally.encoded))
        if not self.rejects.rejects and not self.stage.num_rows:
            raise DataError(_no_rows([path for path, _ in self.sources]))
        self.judge.finish()
        return tallies, runs

    def _parsed(self, number: int, path: Path, engine: CountingEngine, pool: OrderedPool) -> Iterator[dict[str, Any]]:
        """The pieces of a file that earlier work has not finished, parsed, spilled and journaled."""
        if self.journal.of("file", file=number):
            return
        done = len(self.journal.of("piece", file=number))

        read = partial(_read_piece, self.config, self.stage.spill, number)
        pieces = islice(enumerate(LogFile(path, self.config).pieces()), done, None)
        for entry in engine.map(read, pieces, pool):
            self.note("piece", **entry)
            yield entry
        self.note("file", file=number)

    def _weights(self, codes_N: splits.SplitCodes, wanted: Sequence[str]) -> dict[str, float]:
        """The sum of the weights of each split, none without a column of them.

        Raises: DataError if it is 0.
        """
        if self.config.weight is None:
            return {}
        sums = np.zeros(len(SPLITS))
        for chunk in self.stage.chunks:
            rows = slice(chunk.start, chunk.start + chunk.num_rows)
            sums += np.bincount(codes_N[rows], weights=self.stage.weights(chunk), minlength=len(SPLITS))
        found = {name: float(sums[SPLITS.index(name)]) for name in wanted}
        for name, total in found.items():
            if total == 0:
                raise DataError(f"every row of split '{name}' has weight 0 in column '{self.config.weight.column}'")
        return found

    def _assign(
        self, labels: Mapping[str, splits.Labels], runs: list[tuple[str, int]], engine: CountingEngine
    ) -> splits.SplitCodes:
        kind = self.config.split.kind
        if kind == "given":
            names, sizes = zip(*runs, strict=True)
            return np.repeat(np.array([SPLITS.index(name) for name in names], dtype=np.uint8), sizes)
        if kind == "ordered":
            return splits.ordered(self.stage.num_rows, self.config.split)
        if kind == "time":
            batches = self.stage.times(str(self.config.split.column))
            first = next(batches)
            times = pa.RecordBatchReader.from_batches(first.schema, chain([first], batches))
            rows = (batch.column(0).to_numpy() for batch in engine.order(times))
            return splits.by_rank(rows, self.stage.num_rows, self.config.split)
        return splits.drawn(labels[self.config.split.label or next(iter(labels))], self.config.split)


def _read_piece(config: DataConfig, spill: Spill, file: int, numbered: tuple[int, Piece]) -> dict[str, Any]:
    """Parses and spills a piece; gives its entry in the journal. An engine may run this on another machine."""
    index, piece = numbered
    raw = piece.read()
    rows = convert(raw, config)
    name = f"{file}-{index}"
    return {
        "file": file,
        "name": name,
        "rows": len(rows),
        "values": spill.write(name, rows) if len(rows) else [],
        "forms": value_forms(rows, config),
        "rejects": [(one.file, one.line, one.column, one.reason, one.text) for one in rows.rejects],
        **witnesses(raw, rows),
        "blank_lines": rows.blank_lines,
        "end": piece.end,
    }


def _no_rows(paths: Sequence[Path]) -> str:
    if len(paths) > 1:
        return f"none of the {len(paths)} input files holds a row, the first: {paths[0]}"
    return f"{paths[0]}: {'holds no rows' if paths[0].stat().st_size else 'is empty'}"


@contextmanager
def _readable_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        code = f" ({errno.errorcode[error.errno]})" if error.errno is not None else ""
        reason = error.strerror or str(error).split("\n", 1)[0]
        raise DmoeError(f"{output}: cannot be written: {reason}{code}; {_left(output)}") from None


def _left(output: Path) -> str:
    return "what was there before is untouched" if output.exists() else "nothing was left there"
