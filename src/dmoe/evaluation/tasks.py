"""Scores of each label and each domain of a split, and of what labels of a chain say together.

Shape suffixes: B rows of a batch, R rows of the split, T tasks, K links of a chain.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmoe.distributed.world import World
from dmoe.errors import DataError
from dmoe.metrics.joint import joint_labels, joint_logits
from dmoe.metrics.scores import (
    calibration,
    grouped_auc,
    probability_of,
    relative_information_gain,
    scores_of_rows,
)
from dmoe.nn.output import DMoEOutput
from dmoe.schema import FIRST_TOKEN_ID, MultiValuedField, Schema
from dmoe.shards.batch import Batch

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TaskRows:
    """The rows of a split that know one label, with what a model says of them."""

    labels_R: NDArray[np.float32]
    logits_R: Floats
    weights_R: Floats | None = None
    linear_R: Floats | None = None  # the logits of the model's linear part by itself, where it has one

    def __len__(self) -> int:
        return len(self.labels_R)

    def only(self, kept_R: Mask) -> "TaskRows":
        weights_R = None if self.weights_R is None else self.weights_R[kept_R]
        linear_R = None if self.linear_R is None else self.linear_R[kept_R]
        return TaskRows(self.labels_R[kept_R], self.logits_R[kept_R], weights_R, linear_R)

    def scores(self) -> dict[str, Any]:
        return scores_of_rows(self.labels_R, self.logits_R, self.weights_R)


class SplitRows:
    """Labels, weights and domains of a split, and every task's logits, taken batch by batch in evaluation mode."""

    def __init__(self, schema: Schema, group: str | None = None) -> None:
        self.schema = schema
        self._group_column = None if group is None else group_column(schema, group)
        self._domain_of_id = None if schema.domain is None else np.array(schema.domain.of_id)
        self._labels: list[NDArray[np.float32]] = []
        self._known: list[Mask | None] = []
        self._weights: list[NDArray[np.float32]] = []
        self._domains: list[NDArray[np.int64]] = []
        self._groups: list[NDArray[np.int32]] = []
        self._logits: list[list[NDArray[np.float32]]] = [[] for _ in schema.tasks]
        self._linear: list[list[NDArray[np.float64]]] = [[] for _ in schema.tasks]

    def update(self, batch: Batch, output: DMoEOutput) -> None:
        self._labels.append(batch.labels_BT.numpy())
        self._known.append(None if batch.known_BT is None else batch.known_BT.numpy())
        if batch.weights_B is not None:
            self._weights.append(batch.weights_B.numpy())
        ids_BC = batch.ids_BC.numpy()
        if self._domain_of_id is not None:
            self._domains.append(self._domain_of_id[ids_BC[:, self.schema.domain_column]])
        if self._group_column is not None:
            self._groups.append(ids_BC[:, self._group_column].copy())
        for logits, linear, task in zip(self._logits, self._linear, output.tasks, strict=True):
            logits.append(task.logit.cpu().numpy())
            if task.linear is not None:
                linear.append(task.linear.cpu().numpy())

    def of_all(self, world: World) -> "SplitRows | None":
        """The rows of all processes, which each have a part in turn, at the first one."""
        if not world.several:
            return self
        tasks = range(len(self.schema.tasks))
        columns = [
            *(self.labels_R(task) for task in tasks),
            *(self.known_R(task) for task in tasks),
            *(np.concatenate(self._logits[task]) for task in tasks),
            *(np.concatenate(parts) for parts in (self._weights, self._domains, self._groups) if parts),
        ]
        own = np.stack([column.astype(np.float64) for column in columns], axis=1)
        parts = world.gather_arrays(torch.from_numpy(own))
        if not world.is_first:
            return None
        found, columns_R = SplitRows(self.schema), iter(torch.cat(parts).numpy().T)
        labels = [next(columns_R) for _ in tasks]
        known = [next(columns_R) for _ in tasks]
        found._labels, found._known = [np.stack(labels, 1).astype(np.float32)], [np.stack(known, 1) > 0]
        found._logits = [[next(columns_R).astype(np.float32)] for _ in tasks]
        found._weights = [next(columns_R).astype(np.float32)] if self._weights else []
        found._domains = [next(columns_R).astype(np.int64)] if self._domains else []
        found._groups = [next(columns_R).astype(np.int32)] if self._groups else []
        found._group_column, found._domain_of_id = self._group_column, self._domain_of_id
        return found

    @property
    def weights_R(self) -> Floats | None:
        return np.concatenate(self._weights).astype(np.float64) if self._weights else None

    def known_R(self, task: int = 0) -> Mask:
        """Which rows know a label."""
        return np.concatenate(
            [
                np.ones(len(labels_BT), dtype=bool) if known_BT is None else known_BT[:, task]
                for labels_BT, known_BT in zip(self._labels, self._known, strict=True)
            ]
        )

    def labels_R(self, task: int = 0) -> NDArray[np.float32]:
        """Those of all rows, 0 where unknown."""
        return np.concatenate([labels_BT[:, task] for labels_BT in self._labels])

    def logits_R(self, task: int = 0) -> Floats:
        """Those of all rows, for sums in float64."""
        return np.concatenate(self._logits[task]).astype(np.float64)

    def domains_R(self) -> NDArray[np.int64]:
        """The number of each row's domain, of data with domains."""
        return np.concatenate(self._domains)

    def of_task(self, task: int = 0) -> TaskRows:
        """The rows that know its label."""
        linear_R = np.concatenate(self._linear[task]).astype(np.float64) if self._linear[task] else None
        rows = TaskRows(self.labels_R(task), self.logits_R(task), self.weights_R, linear_R)
        return rows.only(self.known_R(task))

    def of_chain(self, chain: Sequence[int]) -> tuple[TaskRows, Mask]:
        """The rows that know the joint label of a chain, with the logits of the product; and which rows these are."""
        labels_RK = np.stack([self.labels_R(link) for link in chain], axis=1) > 0
        known_RK = np.stack([self.known_R(link) for link in chain], axis=1)
        all_R, known_R = joint_labels(labels_RK, known_RK)
        logits_R = joint_logits([self.logits_R(link) for link in chain])
        return TaskRows(all_R.astype(np.float32), logits_R, self.weights_R).only(known_R), known_R

    def result(self) -> dict[str, Any]:
        """What `evaluation/<split>.json` says of tasks and domains; nothing of one label without either."""
        if len(self.schema.tasks) == 1 and self.schema.domain is None:
            return {}
        found: dict[str, Any] = {}
        for number, task in enumerate(self.schema.tasks):
            known_R = self.known_R(number)
            own = self._described(self.of_task(number), known_R)
            own["unknown"] = int((~known_R).sum())
            if task.given is not None:
                joint, known_joint_R = self.of_chain(self.schema.chain(task.name))
                own["given"] = task.given
                own["joint"] = self._described(joint, known_joint_R)
            found[task.name] = own
        return {"tasks": found}

    def grouped(self) -> dict[str, Any]:
        """AUC inside groups by task; rows without a known group are left out, and counted."""
        groups_R = np.concatenate(self._groups)
        there_R = groups_R >= FIRST_TOKEN_ID
        found: dict[str, Any] = {}
        for number, task in enumerate(self.schema.tasks):
            known_R = self.known_R(number)
            rows = self.of_task(number).only(there_R[known_R])
            try:
                found[task.name] = asdict(grouped_auc(rows.labels_R, rows.logits_R, groups_R[known_R & there_R]))
            except DataError:  # no group has both classes
                found[task.name] = None
        return {"tasks": found, "rows_without_group": int((~there_R).sum())}

    def _described(self, rows: TaskRows, known_R: Mask) -> dict[str, Any]:
        """Scores of rows, `known_R` of the split, together and by domain."""
        both = 0 < rows.labels_R.sum() < len(rows)
        described: dict[str, Any] = {
            **rows.scores(),
            "positives": int(rows.labels_R.sum()),
            "relative_information_gain": relative_information_gain(rows.labels_R, rows.logits_R, rows.weights_R)
            if both
            else None,
            "calibration": asdict(calibration(rows.labels_R, probability_of(rows.logits_R), weights=rows.weights_R))
            if rows.labels_R.any()
            else None,
        }
        if self.schema.domain is not None:
            domains_R = self.domains_R()[known_R]
            parts = {name: rows.only(domains_R == number) for number, name in enumerate(self.schema.domain.names)}
            described["domains"] = {
                name: {**part.scores(), "positives": int(part.labels_R.sum())} for name, part in parts.items()
            }
            described["macro"] = macro(described["domains"])
        return described


def macro(domains: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over the domains that have both classes; the others are named."""
    there = {name: one for name, one in domains.items() if one["auc"] is not None}
    return {
        key: float(np.mean([one[key] for one in there.values()])) if there else None for key in ("auc", "logloss")
    } | {"left_out": [name for name in domains if name not in there]}


def group_column(schema: Schema, name: str) -> int:
    """The id column of a field whose values are groups, for example users.

    Raises: DataError if it is no categorical field with one value a row.
    """
    usable = [field.name for field in schema.categorical if not isinstance(field, MultiValuedField)]
    if name not in usable:
        raise DataError(
            f"'{name}' cannot group rows: it is no categorical field with one value a row; those are: "
            f"{', '.join(usable) or 'none'}"
        )
    columns = [field.name for field in schema.categorical]
    return int(schema.id_columns[columns.index(name)].start)


def quick_scores(rows: SplitRows) -> dict[str, Any]:
    """AUC and logloss of each task, as training watches them; those of the main task on top."""
    found = {}
    for number, task in enumerate(rows.schema.tasks):
        scores = rows.of_task(number).scores()
        found[task.name] = {"auc": scores["auc"], "logloss": scores["logloss"]}
    main: dict[str, Any] = dict(found[rows.schema.label])
    return main if len(found) == 1 else {**main, "tasks": found}
