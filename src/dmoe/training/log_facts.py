"""What training measures of a log before it starts: its click rate, the counts of its tokens, how many will be new.

Shape suffixes: R rows of a chunk, C id columns, V rows of a vocabulary.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmoe.distributed.world import World
from dmoe.kernels.row_parallel import kernel
from dmoe.schema import FIRST_TOKEN_ID, OOV_ID, Schema
from dmoe.shards.reader import CHUNK_ROWS, SplitReader

Array = npt.NDArray[Any]

# Of a log in order, the last part of train that stands for rows to come: about as far from the rest as test is.
_LATER = 0.25
# No field is replaced more often than this, so that its tokens are learnt.
_HIGHEST_RATE = 0.95


@dataclass(frozen=True)
class LogFacts:
    """Figures of a train split.

    Args:
        rows: its rows.
        labelled: for each label, what the rows that know it weigh, and those of them that have it.
        counts: for each field with a vocabulary, how often train holds each of its ids there.
        unseen: for each of them, the share of values to expect unseen in rows to come, missing ones apart.
    """

    schema: Schema
    rows: int
    labelled: list[tuple[float, float]]
    counts: list[npt.NDArray[np.int64]]
    unseen: dict[str, float]

    @property
    def rates(self) -> list[float]:
        """The base rate of each label, on the rows that know it."""
        return [positives / known for known, positives in self.labelled]

    def vocabulary_counts(self, number: int) -> npt.NDArray[np.int64]:
        """How often train holds each id of the vocabulary of field `number`, in all fields that share it."""
        fields = self.schema.categorical
        name = fields[number].vocabulary_name
        counts: npt.NDArray[np.int64] = np.sum(
            [own for field, own in zip(fields, self.counts, strict=True) if field.vocabulary_name == name], axis=0
        )
        return counts

    def replacement_rates(self) -> dict[str, float]:
        """For each field, the share of tokens to take as unseen for train to have as many as rows to come."""
        rates = {}
        for field, counts_V in zip(self.schema.categorical, self.counts, strict=True):
            values, tokens = int(counts_V[OOV_ID:].sum()), int(counts_V[FIRST_TOKEN_ID:].sum())
            wanted = self.unseen[field.name] * values - int(counts_V[OOV_ID])
            # Not of the domain: the rows of one train its head.
            head = self.schema.domain is not None and field.name == self.schema.domain.field
            if field.edges is None and tokens > 0 and wanted > 0 and not head:
                rates[field.name] = min(wanted / tokens, _HIGHEST_RATE)
        return rates


def measure_log(data: Path, schema: Schema, world: World | None = None) -> LogFacts:
    """Reads the train split once, in its order; of several processes each its share.

    In a log split at random, a row to come is like one of train that train does not hold: its token is unseen if
    all rows but that one hold it fewer than `min_count` times (for min_count 1 the estimate of Good 1953). In any
    other log the last quarter of train is compared with the rows before it. These are fewer than all of train, which
    rows to come follow: what the missing quarter makes out by chance, by the same estimate, is taken off.

    Raises: DataError as `SplitReader`.
    """
    # Read in chunks: no second copy of the split stays in memory.
    world = world or World()
    reader = SplitReader(data, "train", batch_size=CHUNK_ROWS, memory_bytes=1, share=(world.rank, world.size))
    fields = schema.categorical
    offsets = np.cumsum([0, *(field.vocabulary_size for field in fields)])
    offsets_C = np.repeat(offsets[:-1], [field.length for field in fields])
    earlier, later = np.zeros(offsets[-1], np.int64), np.zeros(offsets[-1], np.int64)
    boundary = reader.num_rows - round(reader.num_rows * _LATER)
    labelled_T2 = np.zeros((len(schema.tasks), 2))
    done = reader.first_row
    for batch in reader.batches():
        ids_RC = batch.ids_BC.numpy()
        first = min(max(boundary - done, 0), len(batch))
        _count(ids_RC[:first], offsets_C, earlier)
        _count(ids_RC[first:], offsets_C, later)
        known_BT = 1.0 if batch.known_BT is None else batch.known_BT.double().numpy()
        weights_B = np.ones(len(batch)) if batch.weights_B is None else batch.weights_B.double().numpy()
        for place, of_BT in enumerate((np.ones(batch.labels_BT.shape), batch.labels_BT.double().numpy())):
            labelled_T2[:, place] += weights_B @ (of_BT * known_BT)
        done += len(batch)
    for array in (earlier, later, labelled_T2):
        world.total(torch.from_numpy(array))
    counts, before, after = (
        [array[start:stop] for start, stop in pairwise(offsets)] for array in (earlier + later, earlier, later)
    )
    random = dict(schema.source.get("split") or {}).get("kind") in ("random", "stratified")
    unseen = {}
    for number, field in enumerate(fields):
        sharing = [other for other, one in enumerate(fields) if one.vocabulary_name == field.vocabulary_name]
        least = fields[sharing[0]].min_count
        all_V, before_V = (np.sum([part[other] for other in sharing], axis=0) for part in (counts, before))
        share = _unseen(all_V, counts[number], least + 1)
        if not random:
            share += _unseen(before_V, after[number], least) - _unseen(before_V, before[number], least + 1)
        unseen[field.name] = min(max(share, 0.0), 1.0)
    labelled = [(known, positives) for known, positives in labelled_T2.tolist()]
    return LogFacts(schema, reader.num_rows, labelled, counts, unseen)


def _unseen(before_V: Array, after_V: Array, least: int) -> float:
    """The share of values in `after` of tokens that `before` holds fewer than `least` times."""
    unknown_V = before_V < least
    unknown_V[OOV_ID] = True
    values_V = after_V[OOV_ID:]
    return float(values_V[unknown_V[OOV_ID:]].sum() / max(values_V.sum(), 1))


@kernel
def _count(ids_RC: Array, offsets_C: Array, counts: Array) -> None:
    for row in range(ids_RC.shape[0]):
        for column in range(ids_RC.shape[1]):
            counts[offsets_C[column] + ids_RC[row, column]] += 1
