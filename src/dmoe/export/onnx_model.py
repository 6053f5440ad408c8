"""A model folder in ONNX: the session, and raw rows in, scores out. Imports no torch.

R rows.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmoe.config.stored import stored_config
from dmoe.errors import DataError, DmoeError
from dmoe.export.extra import require
from dmoe.export.fields import Features, Featuriser, FieldInput, field_inputs
from dmoe.export.manifest import VALUES, Manifest
from dmoe.machine.limits import usable_threads
from dmoe.machine.ordered_pool import OrderedPool
from dmoe.outputs import all_outputs, probabilities, task_outputs
from dmoe.schema import Schema
from dmoe.sources.delimited import RawRows
from dmoe.sources.inputs import expand_inputs
from dmoe.sources.kept_columns import ScoredRows, set_apart
from dmoe.sources.pieces import LogFile, needed_columns, table_rows
from dmoe.sources.tables import as_arrow, as_paths, column_names
from dmoe.tokens.lookup import TokenTable, tokens_path
from dmoe.tokens.scorer import Scorer
from dmoe.tokens.unseen import Tallied, ValueCounts

ReadRows: TypeAlias = Callable[[], RawRows]

# Rows of one call of the graph: enough to fill vector units, few enough for the activations to stay in cache.
GRAPH_ROWS = 256
# Of a folder that is replaced while it is read.
_READINGS = 3


class Graph:
    """The ONNX Runtime session of a model folder, one thread a call; calls may come from several threads."""

    def __init__(self, folder: Path) -> None:
        runtime = require("onnxruntime", "serve")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        # Resolved: a weights file reached through a link outside the folder is refused by ONNX Runtime.
        path = (folder / "model.onnx").resolve()
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no base of their own
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: ONNX Runtime refuses the graph ({reason}); export the run again") from None

    def check(self, inputs: Sequence[FieldInput], outputs: Collection[str], folder: Path) -> None:
        """Raises: DataError unless the graph takes just these inputs, of these types and widths, and gives the outputs.

        Nothing is made as wide as schema.json says before.
        """
        types = {"text": "tensor(string)", "number": "tensor(double)", "id": "tensor(int64)"}
        taken = {one.name: (one.type, one.shape[1:]) for one in self._session.get_inputs()}
        if taken != {one.name: (types[one.kind], [one.width]) for one in inputs}:
            raise DataError(f"{folder / 'model.onnx'}: takes other inputs than schema.json says; export the run again")
        if not {one.name for one in self._session.get_outputs()} >= set(outputs):
            raise DataError(f"{folder / 'model.onnx'}: does not give {', '.join(outputs)}; export the run again")

    def run(self, features: Features, outputs: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """The named outputs, float32 (R, width)."""
        rows = len(next(iter(features.values())))
        if rows == 0:
            # Some operators of ONNX Runtime end the process on an empty batch.
            widths = {one.name: one.shape[1] for one in self._session.get_outputs()}
            return {name: np.empty((0, widths[name]), np.float32) for name in outputs}
        return dict(zip(outputs, self._session.run(list(outputs), features), strict=True))


class OnnxModel(Scorer):
    """A model folder of `dmoe export`, verified against its checksums; made by `dmoe.load` or `open`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.schema = Schema.read(folder)
        self._config = stored_config(self.schema, folder)
        id_fields = {one.name for one in manifest.inputs if one.kind == "id"}
        self.inputs = field_inputs(self.schema, self._config, id_fields)
        self.tables = token_tables(folder, self.inputs)
        self.graph = Graph(folder)
        self.outputs = task_outputs(self.schema)
        self.graph.check(self.inputs, all_outputs(self.outputs), folder)
        self.featuriser = Featuriser(self.schema, self._config, self.inputs, self.tables)

    @staticmethod
    def open(folder: Path) -> "OnnxModel":
        """A folder that `dmoe export` replaces meanwhile is read again: nothing is of two models.

        Raises: DataError if a file is absent or was changed.
        """
        folder = folder.resolve()
        for _ in range(_READINGS):
            manifest = Manifest.read(folder)
            try:
                manifest.verify(folder)
                model = OnnxModel(folder, manifest)
            except (DmoeError, OSError):
                if Manifest.read(folder) == manifest:
                    raise
            else:
                if Manifest.read(folder) == manifest:
                    return model
        raise DataError(f"{folder}: is replaced while it is read, {_READINGS} times in a row; try again")

    def stream(self, rows: Any, *, keep: Sequence[str] = (), counts: ValueCounts | None = None) -> Iterator[ScoredRows]:
        """See `Scorer`."""
        paths = as_paths(rows)
        score = partial(self._score_piece, keep=keep, counts=counts)
        with OrderedPool(usable_threads()) as pool:
            if paths is None:
                yield from pool.map(score, self._table_pieces(rows))
                return
            for path in expand_inputs([str(path) for path in paths]):
                source = LogFile(path, self._config, scoring=True, keep=tuple(keep))
                yield from pool.map(score, (piece.read for piece in source.pieces()))

    def raw_rows(self, table: pa.Table, where: str) -> RawRows:
        """A table's columns that the fields are read from.

        Raises: DataError if one is missing.
        """
        wanted = needed_columns(self._config, table.column_names, where, scoring=True)
        return table_rows(as_arrow(table, wanted), wanted, where)

    def score(self, features: Features, outputs: Sequence[str] | None = None) -> dict[str, npt.NDArray[np.float32]]:
        """The named outputs, or all probabilities, for the rows of `features`, (R, width), `GRAPH_ROWS` at a time."""
        outputs = probabilities(self.outputs) if outputs is None else outputs
        rows = len(next(iter(features.values())))
        parts = [
            self.graph.run({name: column[start : start + GRAPH_ROWS] for name, column in features.items()}, outputs)
            for start in range(0, max(rows, 1), GRAPH_ROWS)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def _table_pieces(self, table: Any) -> Iterable[ReadRows]:
        wanted = needed_columns(self._config, column_names(table), "table", scoring=True)
        arrow = as_arrow(table, wanted)
        step = 64 * GRAPH_ROWS
        return (
            partial(table_rows, arrow.slice(start, step), wanted, "table", start + 1)
            for start in range(0, arrow.num_rows, step)
        )

    def tallied(self, counts: ValueCounts, features: Features, values_RC: npt.NDArray[Any] | None) -> Tallied:
        """What `counts` is to add for rows, of which `values_RC` is the output `VALUES`, None without such fields."""
        rows = len(next(iter(features.values())))
        ids_RC = np.empty((rows, 0), np.int64) if values_RC is None else values_RC
        numeric = [features[field.name] for field in self.schema.numeric]
        missing_N = np.isnan(np.concatenate(numeric, axis=1)).sum(0) if numeric else np.zeros(0, np.int64)
        return counts.tallied(ids_RC, missing_N)

    @property
    def counted(self) -> tuple[str, ...]:
        """The outputs of the graph that say which values are unseen."""
        return (VALUES,) if self.schema.categorical else ()

    def _score_piece(self, read: ReadRows, keep: Sequence[str], counts: ValueCounts | None) -> ScoredRows:
        raw, kept = set_apart(read(), self._config, keep)
        features = self.featuriser(raw)
        names = probabilities(self.outputs)
        found = self.score(features, (*names, *self.counted))
        if counts is not None:
            counts.add(self.tallied(counts, features, found.get(VALUES)))
        return ScoredRows({name: found[name][:, 0] for name in names}, kept)


def token_tables(folder: Path, inputs: Sequence[FieldInput]) -> Mapping[str, TokenTable]:
    """The look-ups of the fields that enter the graph as ids."""
    return {
        one.name: TokenTable.mapped(tokens_path(folder, one.vocabulary), "export the run again")
        for one in inputs
        if one.kind == "id"
    }
