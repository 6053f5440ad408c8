"""What is learnt from the training rows: bucket edges, vocabularies, scalings."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.config.data import DataConfig
from dmoe.config.fields import MultiValuedOptions, PretrainedOptions
from dmoe.machine.ordered_pool import OrderedPool
from dmoe.prepare import splits
from dmoe.prepare.domains import fit_domain, grown_domain
from dmoe.prepare.engines.base import CountingEngine
from dmoe.prepare.restart import Journal
from dmoe.prepare.stage import Stage, StagedChunk, array_again, array_on_disk
from dmoe.prepare.summary import Progress
from dmoe.prepare.vectors import key_forms, take_vectors
from dmoe.prepare.vocabulary import Counts, Ids, build_vocabulary
from dmoe.schema import (
    MISSING_ID,
    AnyField,
    CategoricalField,
    Domain,
    MultiValuedField,
    Schema,
    Task,
    Vectors,
    vocabulary_path,
)
from dmoe.shards.folder import DataFolder
from dmoe.tokens.fields import categorical_names, numeric_names, quantile_names, token_of
from dmoe.tokens.numbers import encode_numbers, fit_field
from dmoe.tokens.quantiles import quantile_edges
from dmoe.values.canonical import ValueForm, carriers_in, merged
from dmoe.values.coded_columns import MISSING, Numbers


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
    engine: CountingEngine
    journal: Journal
    base: DataFolder | None

    def fit(self, pool: OrderedPool, progress: Progress, note: Callable[..., None]) -> Fitted:
        """`note(kind, **values)` journals a finished step."""
        for name in quantile_names(self.config):
            buckets = self.config.fields.numeric[name].buckets
            training = partial(self._training, name)
            self.stage.quantise(name, self.base.edges(name) if self.base else quantile_edges(training, buckets))
        readers = vocabulary_readers(self.config)
        (self.folder / "vocabulary").mkdir(exist_ok=True)
        finished = {entry["field"]: entry for entry in self.journal.of("vocabulary")}
        forms = {owner: self._form(owner, names) for owner, names in readers.items()}
        counts = {} if len(finished) == len(readers) else self._counts(pool)
        fields: dict[str, AnyField] = {}
        distinct: dict[str, int] = {}
        ids: dict[str, Ids] = {}
        for index, (owner, names) in enumerate(readers.items()):
            entry = finished.get(owner)
            if entry is None:
                entry = self._vocabulary(owner, names, counts, note, forms[owner], pool)
            sizes = [self.stage.offsets(name)[-1] for name in names]
            whole = array_again(self._path("ids", owner), sum(sizes))
            for name, size, end in zip(names, sizes, accumulate(sizes), strict=True):
                ids[name] = whole[end - size : end]
                distinct[name] = entry["distinct"]
                fields[name] = self._field(name, entry, forms[owner])
            progress("count", index + 1, (index + 1) / len(readers))
        for name in numeric_names(self.config):
            options, training = self.config.fields.numeric[name], partial(self._training, name)
            fields[name] = self.base.field(name) if self.base else fit_field(name, options, training)
        tasks = tuple(Task(name=name, given=label.given) for name, label in self.config.tasks.items())
        schema = Schema(
            label=tasks[0].name,
            fields=tuple(fields[name] for name in self.config.fields.names()),
            source=self.base.schema.source if self.base else self.config.model_dump(mode="json"),
            labels=tasks if len(tasks) > 1 else (),
            domain=self._domain(fields),
            weight=None if self.config.weight is None else self.config.weight.column,
        )
        return Fitted(self.config, schema, self.stage, distinct, ids)

    def _domain(self, fields: Mapping[str, AnyField]) -> Domain | None:
        name = self.config.domain_field()
        if name is None or self.config.domain is None:
            return None
        field = fields[name]
        assert isinstance(field, CategoricalField)
        if self.base is not None and self.base.schema.domain is not None:
            return grown_domain(self.base.schema.domain, field.vocabulary_size)
        train_rows = int(np.count_nonzero(self.codes == splits.TRAIN))
        return fit_domain(self.config.domain, field, self.folder, train_rows)

    def _form(self, owner: str, names: list[str]) -> ValueForm:
        """The type of the raw values of a field and of those that read its vocabulary.

        Raises: DataError if some of them came in a type that lost what others have.
        """
        by_name = {name: self.stage.forms.get(name, {}) for name in names}
        options = self.config.fields.options(owner)
        whole = list(by_name.values())
        if self.base is not None:
            form = self.base.schema.field(owner).values.grown(merged(whole))
        else:
            form = ValueForm.of(
                merged([*whole, key_forms(options)] if isinstance(options, PretrainedOptions) else whole)
            )
        for name, forms in by_name.items():
            form.check(self.config.source_column(name), carriers_in(forms))
        return form

    def _field(self, name: str, entry: dict[str, Any], form: ValueForm) -> CategoricalField:
        options = self.config.fields.options(name)
        common: dict[str, Any] = {
            "values": form,
            "name": name,
            "vocabulary_size": entry["size"],
            "min_count": self.config.min_count(name),
        }
        if isinstance(options, PretrainedOptions):
            vectors = Vectors(width=entry["width"], trainable=options.trainable)
            return CategoricalField(**common, vectors=vectors, table_group=options.table_group)
        common |= {"embedding_dim": options.embedding_dim, "table_group": options.table_group}
        if isinstance(options, MultiValuedOptions):
            if options.shares is not None:
                common["embedding_dim"] = self.config.fields.categorical[options.shares].embedding_dim
            return MultiValuedField(
                **common, max_length=options.max_length, pooling=options.pooling, shares=options.shares
            )
        return CategoricalField(**common, edges=self.stage.edges(name))

    def _vocabulary(
        self,
        owner: str,
        names: list[str],
        counts: dict[str, Counts],
        note: Callable[..., None],
        form: ValueForm,
        pool: OrderedPool,
    ) -> dict[str, Any]:
        """Of the values of all `names`, which share it."""
        for name in names:
            if name in self.stage.forms:
                token = token_of(form, self.config, name)
                if token is not None and not (form.keeps(self.stage.forms[name]) and token == form.token):
                    self.stage.replace(name, token, pool)
        options = self.config.fields.options(owner)
        grown = vocabulary_path(self.base.folder, owner) if self.base else None
        facts: dict[str, Any] = {}
        if isinstance(options, PretrainedOptions):
            most: int | None = 0  # the keys of the file are all that there is
            given = self.stage.folder / "given.parquet"
            facts["width"] = take_vectors(options, given, self.folder, owner, self.base, form)
            grown = grown or given
        else:
            most = options.max_tokens
        counts_P = counts[owner] if len(names) == 1 else np.concatenate([counts[name] for name in names])
        size, distinct = build_vocabulary(
            self.engine,
            _Again(lambda: chain.from_iterable(self.stage.values(name) for name in names)),
            counts_P,
            vocabulary_path(self.folder, owner),
            array_on_disk(self._path("ids", owner), len(counts_P)),
            min_count=self.config.min_count(owner),
            max_tokens=most,
            grown=grown,
        )
        facts |= {"size": size, "distinct": distinct}
        note("vocabulary", field=owner, **facts)
        return facts

    def _path(self, what: str, name: str) -> Path:
        return self.stage.folder / f"{what}-{categorical_names(self.config).index(name)}"

    def _counts(self, pool: OrderedPool) -> dict[str, Counts]:
        """The training rows of every staged value; of a multi-valued field, how often they have it."""
        names = categorical_names(self.config)
        counts = {name: array_on_disk(self._path("counts", name), self.stage.offsets(name)[-1]) for name in names}

        def count(chunk: StagedChunk) -> None:
            train = self._is_train(chunk)
            for name in names:
                start, stop = self.stage.offsets(name)[chunk.index : chunk.index + 2]
                # Missing is -1: shifted by one it is counted first, and left out.
                codes = self.stage.codes(chunk, name)[train] - MISSING
                counts[name][start:stop] = np.bincount(codes.reshape(-1), minlength=stop - start + 1)[1:]

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


def vocabulary_readers(config: DataConfig) -> dict[str, list[str]]:
    """Each field with a vocabulary of its own, with the fields that read it, itself first."""
    readers: dict[str, list[str]] = {}
    for name in categorical_names(config):
        options = config.fields.options(name)
        owner = options.shares if isinstance(options, MultiValuedOptions) else None
        readers.setdefault(owner or name, []).append(name)
    return readers
