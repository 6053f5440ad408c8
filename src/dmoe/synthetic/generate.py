"""Writes a planted click log, and beside it what the best possible model would reach on it."""

import contextlib
import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import yaml

from dmoe.disk.together import written_together
from dmoe.errors import ConfigError, nearest
from dmoe.synthetic.draw import Columns, blocks
from dmoe.synthetic.log_truth import LogTruth
from dmoe.synthetic.presets import PRESETS, with_relations
from dmoe.synthetic.spec import Categorical, Preset
from dmoe.synthetic.tasks import Drawn, Joint, PlantedTasks
from dmoe.synthetic.text import given_vectors, render

FORMAT_VERSION = 1
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
SUFFIXES = (*DELIMITERS, *(suffix + ".gz" for suffix in DELIMITERS), ".parquet")
# Three splits with some rows of either class each.
FEWEST_ROWS = 100
# gzip's middle levels cost several times the generation itself, for a few percent of size.
GZIP_LEVEL = 2


@dataclass(frozen=True, slots=True)
class GeneratedFiles:
    """The files of a generated log."""

    log: Path
    truth: Path
    probabilities: Path
    config: Path
    vectors: Path | None = None

    def all(self) -> list[Path]:
        """Those that there are."""
        return [path for path in asdict(self).values() if path is not None]


def generate(
    out: Path,
    *,
    rows: int,
    preset: str,
    seed: int = 0,
    relatedness: float | None = None,
    similarity: float | None = None,
) -> tuple[GeneratedFiles, dict[str, Any]]:
    """Writes the log `out`, and `.truth.json`, `.truth.parquet` and `.data.yaml` beside it.

    The format is that of the suffix: .csv, .tsv or .txt (tab), each with .gz or not, or .parquet. `relatedness` of all
    further tasks with the main one, and `similarity` of the domains, are the preset's own unless given. Returns the
    files and the content of `.truth.json`. Memory does not grow with `rows`. If it does not finish, files of these
    names stay as they were; `dmoe.disk.together` says what a kill leaves while they are replaced.

    Raises: ConfigError for an unknown preset, suffix or folder, fewer than 100 rows, a negative seed, or a relatedness
    or similarity outside 0 to 1 or of a preset without further tasks or domains; OSError if the disk is full or not
    writable.
    """
    spec, suffix = _check(out, rows, preset, seed)
    spec = with_relations(spec, relatedness, similarity)
    stem = out.name.removesuffix(suffix)
    files = GeneratedFiles(
        log=out,
        truth=out.with_name(f"{stem}.truth.json"),
        probabilities=out.with_name(f"{stem}.truth.parquet"),
        config=out.with_name(f"{stem}.data.yaml"),
        vectors=out.with_name(f"{stem}.vectors.parquet") if spec.given is not None else None,
    )
    planted = PlantedTasks.calibrate(spec, seed)
    # The log last: where it is, the others are.
    with written_together([*files.all()[1:], files.log]) as aside:
        found = _write_rows(planted, rows, aside[files.log], aside[files.probabilities], suffix)
        truth = _truth(planted, rows, files, found)
        aside[files.truth].write_text(json.dumps(truth, indent=2) + "\n", encoding="utf-8")
        aside[files.config].write_text(_data_config(spec, suffix, files), encoding="utf-8")
        if files.vectors is not None and spec.given is not None:
            pq.write_table(given_vectors(spec, seed, spec.given), aside[files.vectors])
    return files, truth


def _check(out: Path, rows: int, preset: str, seed: int) -> tuple[Preset, str]:
    if preset not in PRESETS:
        raise ConfigError(f"no preset '{preset}'{nearest(preset, PRESETS)}")
    if rows < FEWEST_ROWS:
        raise ConfigError(f"--rows must be at least {FEWEST_ROWS}, got {rows}")
    if seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {seed}")
    fitting = [suffix for suffix in SUFFIXES if out.name.endswith(suffix) and out.name != suffix]
    if not fitting:
        raise ConfigError(f"{out}: the name must end in one of {', '.join(SUFFIXES)}")
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; name a file")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: no folder {out.parent}; make it first")
    return PRESETS[preset], fitting[0]


def _write_rows(planted: PlantedTasks, rows: int, log: Path, probabilities: Path, suffix: str) -> LogTruth:
    spec = planted.preset
    truth = LogTruth(planted, rows)
    with contextlib.ExitStack() as stack:
        writers: list[_TableWriter] = []
        for columns in blocks(spec, planted.seed, rows):
            drawn = planted.draw(columns)
            joints = {name: planted.joint(drawn, name) for name in planted.chains}
            tables = [
                render(spec, planted.seed, columns, drawn.labels),
                _probabilities(planted, columns, drawn, joints),
            ]
            if not writers:
                kinds = zip((log, probabilities), (suffix, ".parquet"), tables, strict=True)
                writers = [
                    stack.enter_context(_table_writer(path, kind, spec, table.schema)) for path, kind, table in kinds
                ]
            for writer, table in zip(writers, tables, strict=True):
                writer.write_table(table)
            truth.add(columns, drawn, joints)
    return truth


def _probabilities(planted: PlantedTasks, columns: Columns, drawn: Drawn, joints: Mapping[str, Joint]) -> pa.Table:
    found: dict[str, Any] = {"row": np.arange(columns.start, columns.start + len(columns))}
    if not planted.preset.further_tasks:
        return pa.table(found | {"probability": drawn.probabilities[planted.preset.label]})
    for name, probability_R in drawn.probabilities.items():
        found[f"probability.{name}"] = probability_R
    for name, joint in joints.items():
        found[f"probability.{'+'.join(planted.chains[name])}"] = joint.probability_R
    return pa.table(found)


_TableWriter = pa.csv.CSVWriter | pq.ParquetWriter


@contextlib.contextmanager
def _table_writer(path: Path, suffix: str, spec: Preset, schema: pa.Schema) -> Iterator[_TableWriter]:
    with path.open("wb") as file:
        if suffix == ".parquet":
            with pq.ParquetWriter(file, schema) as writer:
                yield writer
            return
        delimiter = _delimiter(suffix)
        options = pa.csv.WriteOptions(include_header=False, delimiter=delimiter, quoting_style="none")
        with contextlib.ExitStack() as stack:
            sink: IO[bytes] = file
            if suffix.endswith(".gz"):
                # Without name and time inside, equal logs are equal files.
                packed = gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0)
                sink = cast(IO[bytes], stack.enter_context(packed))
            if spec.header:
                # Arrow's own header is quoted, which the original logs are not.
                sink.write((delimiter.join(schema.names) + "\n").encode())
            yield stack.enter_context(pa.csv.CSVWriter(sink, schema, write_options=options))


def _truth(planted: PlantedTasks, rows: int, files: GeneratedFiles, found: LogTruth) -> dict[str, Any]:
    tasks = found.tasks()
    return {
        "format_version": FORMAT_VERSION,
        "log": files.log.name,
        "preset": planted.preset.name,
        "seed": planted.seed,
        "rows": rows,
        "split": {"kind": "ordered", "train": 0.8, "valid": 0.1, "test": 0.1},
        "splits": found.splits(),
        **({"tasks": tasks} if tasks else {}),
        "logit_variance": found.variances.result(),
        "bias": planted.biases[0],
        "note": (
            "bayes_auc and bayes_logloss are those of the true probabilities against the drawn labels. No "
            "model can expect to do better; one trained on a finite log stays below, also because values "
            "first seen in the test part have effects that nothing in the training part tells."
        ),
        "parameters": _parameters(planted.preset),
    }


def _parameters(preset: Preset) -> dict[str, Any]:
    absent = {name for name in ("further_tasks", "domains") if not getattr(preset, name)}
    return {name: value for name, value in asdict(preset).items() if name not in absent}


def _delimiter(suffix: str) -> str:
    return DELIMITERS[suffix.removesuffix(".gz")]


def _data_config(spec: Preset, suffix: str, files: GeneratedFiles) -> str:
    """`data.yaml` for `dmoe prepare` on this log."""
    categorical: dict[str, dict[str, Any]] = {column.name: _options(column) for column in spec.categorical}
    derive = {}
    for column in spec.categorical:
        if column.text == "hour":
            for take in ("hour", "weekday", "weekend"):
                derive[take] = {"column": column.name, "take": take, "format": "yymmddhh"}
                categorical.setdefault(take, {})
    numeric = {}
    for number in spec.numeric:
        numeric[number.name] = {} if number.count is None else {"transform": "log", "standardise": True}
        numeric[number.name] |= _named(table_group=number.table_group)
    config: dict[str, Any] = _labels(spec)
    config["split"] = {"kind": "ordered", "train": 0.8, "valid": 0.1, "test": 0.1}
    config["fields"] = {"min_count": spec.min_count, "numeric": numeric, "categorical": categorical}
    if spec.several:
        config["fields"]["multi_valued"] = {
            several.name: {
                "max_length": several.length,
                "pooling": several.pooling,
                **_named(shares=several.shares, table_group=several.table_group),
            }
            for several in spec.several
        }
    if spec.given is not None and files.vectors is not None:
        config["fields"]["pretrained"] = {
            spec.given.name: {
                "column": spec.given.column,
                "file": files.vectors.name,
                **_named(table_group=spec.given.table_group),
            }
        }
    if derive:
        config["derive"] = derive
    if suffix != ".parquet":
        config["format"] = {"kind": "csv", "header": spec.header, "delimiter": _delimiter(suffix)}
        if not spec.header:
            config["format"]["columns"] = [*spec.tasks, *(column.name for column in spec.columns)]
    return yaml.safe_dump(config, sort_keys=False)


def _labels(spec: Preset) -> dict[str, Any]:
    if not spec.further_tasks and spec.domains is None:
        return {"label": spec.label}
    labels: dict[str, Any] = {spec.label: {"column": spec.label}}
    labels |= {task.name: {"column": task.name, **_named(given=task.given)} for task in spec.further_tasks}
    return {"labels": labels, **_named(domain=spec.domains.column if spec.domains is not None else None)}


def _options(column: Categorical) -> dict[str, Any]:
    missing = {"missing_values": [column.missing_text]} if column.missing_text else {}
    return {**missing, **_named(embedding_dim=column.embedding_dim, table_group=column.table_group)}


def _named(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
