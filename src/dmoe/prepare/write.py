"""Encoded rows to the shards of their splits, from the first unfinished shard on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmoe.config.data import SPLITS
from dmoe.machine.ordered_pool import OrderedPool
from dmoe.prepare import splits
from dmoe.prepare.fit import Fitted
from dmoe.prepare.label_counts import LabelCounts, are_counted, count_labels
from dmoe.prepare.restart import Journal
from dmoe.prepare.stage import StagedChunk
from dmoe.prepare.summary import PrepareSummary, Progress, Tally, tally_ids, tally_missing
from dmoe.schema import MISSING_ID, OOV_ID, UNKNOWN
from dmoe.shards.folder import DataFolder
from dmoe.shards.writer import ShardWriter, arrow_schema
from dmoe.tokens.lists import as_lists


@dataclass(frozen=True, slots=True)
class SplitWriter:
    """Writes the staged rows below `folder`; `labels` of each task; `first_parts` are the numbers of the first
    shards."""

    fitted: Fitted
    codes: splits.SplitCodes
    labels: Sequence[splits.Labels]
    folder: Path
    shard_rows: int
    first_parts: Mapping[str, int]
    journal: Journal
    base: DataFolder | None

    def write(self, summary: PrepareSummary, pool: OrderedPool, progress: Progress, note: Callable[..., None]) -> None:
        """Adds to the summary what the rows hold; `note(kind, **values)` journals a finished step."""
        for entry in self.journal.of("chunk"):
            labels = np.array(entry["labels"]) if "labels" in entry else None
            summary.add(entry["index"], {name: np.array(counts) for name, counts in entry["tally"].items()}, labels)
        done = {name: len(self.journal.of("shard", split=name)) for name in summary.splits}
        start, before = self._place(done)
        chunks = self.fitted.stage.chunks
        arrow = arrow_schema(self.fitted.schema)
        writers = {
            name: ShardWriter(
                self.folder / name,
                arrow,
                self.shard_rows,
                first_part=self.first_parts[name] + done[name],
                skip=done[name] * self.shard_rows - before[name],
                finished=partial(_note_shard, note, name),
            )
            for name in summary.splits
        }
        try:
            for chunk, tally, labels, table in pool.map(self._encode, chunks[start:]):
                summary.add(chunk.index, tally, labels)
                # Before its rows: a kill after the last of them must find the tally.
                told = {"tally": {name: counts.tolist() for name, counts in tally.items()}}
                note("chunk", index=chunk.index, **told, **({} if labels is None else {"labels": labels.tolist()}))
                code = self.codes[chunk.start : chunk.start + chunk.num_rows]
                for name, writer in writers.items():
                    member = code == SPLITS.index(name)
                    if member.any():  # filtering copies: most chunks of an ordered split lie in one
                        writer.append(table if member.all() else table.filter(pa.array(member)))
                end = chunk.start + chunk.num_rows
                progress("write", end, end / len(self.codes))
        finally:
            for writer in writers.values():
                writer.close()

    def _place(self, done: Mapping[str, int]) -> tuple[int, dict[str, int]]:
        """The first chunk with a row that is in no finished shard, and the rows of each split before it."""
        before = dict.fromkeys(done, 0)
        chunks = self.fitted.stage.chunks
        for chunk in chunks:
            code = self.codes[chunk.start : chunk.start + chunk.num_rows]
            after = {name: rows + int(np.count_nonzero(code == SPLITS.index(name))) for name, rows in before.items()}
            if any(after[name] > shards * self.shard_rows for name, shards in done.items()):
                return chunk.index, before
            before = after
        return len(chunks), before

    def _encode(self, chunk: StagedChunk) -> tuple[StagedChunk, Tally, LabelCounts | None, pa.Table]:
        schema, stage = self.fitted.schema, self.fitted.stage
        rows = slice(chunk.start, chunk.start + chunk.num_rows)
        columns = self.fitted.encode(chunk)
        old = {field.name: field.vocabulary_size for field in self.base.schema.categorical} if self.base else {}
        tally = {
            field.name: tally_ids(columns[field.name], self.codes[rows], old.get(field.name))
            for field in schema.categorical
        }
        for number in schema.numeric:
            tally[number.name] = tally_missing(self.fitted.missing(chunk, number.name), self.codes[rows])
        for field in schema.categorical:
            if self.fitted.merges_missing(field.name):
                columns[field.name][columns[field.name] == MISSING_ID] = OOV_ID
        arrays = {name: pa.array(one) if one.ndim == 1 else as_lists(one) for name, one in columns.items()}
        labels = [labels_N[rows] for labels_N in self.labels]
        for task, labels_N in zip(schema.tasks, labels, strict=True):
            arrays[task.name] = pa.array(labels_N, mask=labels_N == UNKNOWN if schema.labels else None)
        if schema.weight is not None:
            arrays[schema.weight] = pa.array(stage.weights(chunk))
        arrow = arrow_schema(schema)
        table = pa.table([arrays[name] for name in arrow.names], schema=arrow)
        return chunk, tally, self._counts(chunk, labels, columns), table

    def _counts(
        self, chunk: StagedChunk, labels: Sequence[splits.Labels], columns: Mapping[str, npt.NDArray[Any]]
    ) -> LabelCounts | None:
        schema, stage = self.fitted.schema, self.fitted.stage
        if not are_counted(schema):
            return None
        contradicts = (stage.contradicts(chunk, task) for task in range(len(labels)))
        codes_N = self.codes[chunk.start : chunk.start + chunk.num_rows]
        domain = schema.domain
        if domain is None:
            return count_labels(labels, contradicts, codes_N, None, 1)
        domains_N = np.array(domain.of_id)[columns[domain.field]]
        return count_labels(labels, contradicts, codes_N, domains_N, len(domain.names))


def _note_shard(note: Callable[..., None], split: str, part: int) -> None:
    note("shard", split=split, part=part)
