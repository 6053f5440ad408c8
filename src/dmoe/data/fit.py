"""What is learnt from the training rows: bucket edges, vocabularies, scalings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmoe.data import splits
from dmoe.data.base import Base
from dmoe.data.columns import MISSING, Numbers, categorical_names, numeric_names, quantile_names
from dmoe.data.config import DataConfig
from dmoe.data.engines import Engine
from dmoe.data.numbers import encode_numbers, fit_field
from dmoe.data.ordered_pool import OrderedPool
from dmoe.data.quantiles import quantile_edges
from dmoe.data.restart import Journal
from dmoe.data.stage import Stage, StagedChunk, array_again, array_on_disk
from dmoe.data.summary import Progress
from dmoe.data.vocabulary import Counts, Ids, build_vocabulary
from dmoe.schema import MISSING_ID, AnyField, CategoricalField, Schema, vocabulary_path


@dataclass(frozen=True, slots=True)
class Fitted:
    """The schema; for every categorical field, its distinct training values and the ids of all staged values."""

    config: DataConfig
    schema: Schema
    stage: Stage
    distinct: dict[str, int]
    ids: dict[str, Ids]

    def encode(self, chunk: StagedChunk) -> dict[str, npt.NDArray[Any]]:
        """The columns of a chunk; missing is `MISSING_ID` here whatever `missing_as` says."""
        columns: dict[str, npt.NDArray[Any]] = {}
        for field in self.schema.categorical:
            start, stop = self.stage.offsets(field.name)[chunk.index : chunk.index + 2]
            by_code = np.append(self.ids[field.name][start:stop], np.int32(MISSING_ID))
            columns[field.name] = by_code[self.stage.codes(chunk, field.name)]
        for number in self.schema.numeric:
            columns[number.name] = encode_numbers(self.stage.numbers(chunk, number.name), number)
        return columns

    def missing(self, chunk: StagedChunk, name: str) -> npt.NDArray[np.bool_]:
        """Where a numeric field has no value."""
        return np.isnan(self.stage.numbers(chunk, name))

    def merges_missing(self, name: str) -> bool:
        """Whether missing values of a categorical field share the id of unseen ones."""
        return self.config.missing_is_oov(name)


@dataclass(frozen=True, slots=True)
class Fitter:
    """Learns from the rows of `stage` whose split is train; `folder` gets the vocabularies."""

    config: DataConfig
    stage: Stage
    codes: splits.SplitCodes
    folder: Path
    engine: Engine
    journal: Journal
    base: Base | None

    def fit(self, pool: OrderedPool, progress: Progress, note: Callable[..., None]) -> Fitted:
        """`note(kind, **values)` journals a finished step."""
        for name in quantile_names(self.config):
            buckets = self.config.fields.numeric[name].buckets
            training = partial(self._training, name)
            self.stage.quantise(name, self.base.edges(name) if self.base else quantile_edges(training, buckets))
        names = categorical_names(self.config)
        (self.folder / "vocabulary").mkdir(exist_ok=True)
        finished = {entry["field"]: entry for entry in self.journal.of("vocabulary")}
        counts = {} if len(finished) == len(names) else self._counts(pool)
        fields: dict[str, AnyField] = {}
        distinct: dict[str, int] = {}
        ids: dict[str, Ids] = {}
        for index, name in enumerate(names):
            entry = finished.get(name)
            if entry is None:
                entry = self._vocabulary(name, counts[name], note)
            ids[name] = array_again(self._path("ids", name), self.stage.offsets(name)[-1])
            distinct[name] = entry["distinct"]
            fields[name] = CategoricalField(
                name=name,
                vocabulary_size=entry["size"],
                min_count=self.config.min_count(name),
                edges=self.stage.edges(name),
            )
            progress("count", index + 1, (index + 1) / len(names))
        for name in numeric_names(self.config):
            options, training = self.config.fields.numeric[name], partial(self._training, name)
            fields[name] = self.base.field(name) if self.base else fit_field(name, options, training)
        order = (*self.config.fields.numeric, *self.config.fields.categorical)
        schema = Schema(
            label=self.config.label,
            fields=tuple(fields[name] for name in order),
            source=self.base.schema.source if self.base else self.config.model_dump(mode="json"),
        )
        return Fitted(self.config, schema, self.stage, distinct, ids)

    def _vocabulary(self, name: str, counts_P: Counts, note: Callable[..., None]) -> dict[str, Any]:
        size, distinct = build_vocabulary(
            self.engine,
            _Again(partial(self.stage.values, name)),
            counts_P,
            vocabulary_path(self.folder, name),
            array_on_disk(self._path("ids", name), len(counts_P)),
            min_count=self.config.min_count(name),
            max_tokens=self.config.fields.options(name).max_tokens,
            grown=vocabulary_path(self.base.folder, name) if self.base else None,
        )
        note("vocabulary", field=name, size=size, distinct=distinct)
        return {"size": size, "distinct": distinct}

    def _path(self, what: str, name: str) -> Path:
        return self.stage.folder / f"{what}-{categorical_names(self.config).index(name)}"

    def _counts(self, pool: OrderedPool) -> dict[str, Counts]:
        """The training rows of every staged value."""
        names = categorical_names(self.config)
        counts = {name: array_on_disk(self._path("counts", name), self.stage.offsets(name)[-1]) for name in names}

        def count(chunk: StagedChunk) -> None:
            train = self._is_train(chunk)
            for name in names:
                start, stop = self.stage.offsets(name)[chunk.index : chunk.index + 2]
                # Missing is -1: shifted by one it is counted first, and left out.
                codes = self.stage.codes(chunk, name)[train] - MISSING
                counts[name][start:stop] = np.bincount(codes, minlength=stop - start + 1)[1:]

        for _ in pool.map(count, self.stage.chunks):
            pass
        return counts

    def _is_train(self, chunk: StagedChunk) -> npt.NDArray[np.bool_]:
        train: npt.NDArray[np.bool_] = self.codes[chunk.start : chunk.start + chunk.num_rows] == splits.TRAIN
        return train

    def _training(self, name: str) -> Iterator[Numbers]:
        for chunk in self.stage.chunks:
            yield self.stage.numbers(chunk, name)[self._is_train(chunk)]


@dataclass(frozen=True, slots=True)
class _Again:
    """An iterable that starts anew each time."""

    start: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.start()


def arrow_schema(schema: Schema) -> pa.Schema:
    """The columns of an encoded shard."""
    kinds = [pa.int32() if isinstance(field, CategoricalField) else pa.float32() for field in schema.fields]
    columns = [(field.name, kind) for field, kind in zip(schema.fields, kinds, strict=True)]
    return pa.schema([*columns, (schema.label, pa.uint8())])
