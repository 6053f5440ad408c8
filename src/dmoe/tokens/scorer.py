"""What every scorer of raw rows does alike: a run, a baseline, an exported model. Imports no torch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from dmoe.outputs import Probabilities, TaskOutputs, whole
from dmoe.schema import Schema
from dmoe.sources.kept_columns import ScoredRows
from dmoe.tokens.unseen import ValueCounts, warn


class Scorer(ABC):
    """What `dmoe.load` gives. `outputs` are the labels that it predicts, and what their probabilities are called."""

    schema: Schema
    outputs: tuple[TaskOutputs, ...]

    def predict_proba(self, rows: Any) -> Probabilities:
        """Probability of the label for each raw row, (R,), in order; of several labels by their names, with the joint
        one of a conditional label under the names of its chain (`click+watch`).

        Warns with `UnseenValuesWarning` where far more values of a field are unseen or missing than in training.

        Args:
            rows: a pandas, polars or pyarrow table with the raw columns, or the path of a raw log (or several).
        Raises: DataError if a column is missing or a row cannot be read.
        """
        counts = self.value_counts()
        parts = [one.probabilities for one in self.stream(rows, counts=counts)]
        warn(counts)
        return whole(parts, self.outputs)

    def value_counts(self) -> ValueCounts:
        """New counts that `stream` can add to."""
        return ValueCounts(self.schema)

    @abstractmethod
    def stream(self, rows: Any, *, keep: Sequence[str] = (), counts: ValueCounts | None = None) -> Iterator[ScoredRows]:
        """The same, piece by piece; memory does not grow with the number of rows in files.

        Args:
            keep: raw columns to hand on; of files only.
            counts: what the rows are added to, as they are scored.
        """
