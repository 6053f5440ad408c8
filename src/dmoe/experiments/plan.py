"""Which cells are to be run, given what is finished: alpha is chosen on the first seed's validation split.

Cells are ordered seed by seed, so that whatever a budget lets finish is whole tables of fewer seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmoe.experiments.grid import Arm, Cell

# What the search maximises on the validation split: the quantity that training itself watches by default.
CHOSEN_BY = "valid AUC minus logloss"

Finished = Mapping[str, Mapping[str, Any]]


@dataclass(slots=True)
class Wanted:
    """A cell that is to be run, and the experiments that it is for."""

    cell: Cell
    seed: int
    experiments: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Search:
    """The alphas that were tried for an arm, and what came of each on the validation split."""

    arm: Arm
    seed: int
    tried: tuple[tuple[float, float | None], ...]
    """(alpha, score), None where the run failed, as by a loss that diverged."""

    @property
    def chosen(self) -> float | None:
        """The best alpha, the smaller of equals; None if no run finished."""
        known = [(score, -alpha) for alpha, score in self.tried if score is not None]
        return -max(known)[1] if known else None

    @property
    def at_edge(self) -> bool:
        """Whether the best alpha is the largest or smallest that was tried."""
        return self.chosen in (self.tried[0][0], self.tried[-1][0])


def score(figures: Mapping[str, Any]) -> float:
    """What a search maximises, of several labels their mean; reads the validation split alone.

    A figure that valid cannot tell, as the AUC of one class, is so for every run and decides nothing.
    """
    valid = figures["metrics"]["valid"]
    tasks = valid.get("tasks", {"": valid}).values()
    return float(sum((one["auc"] or 0.0) - (one["logloss"] or 0.0) for one in tasks) / len(tasks))


def search(arm: Arm, seed: int, finished: Finished, failed: Sequence[str] = ()) -> Search | None:
    """The search of an arm, or None while a run of it is missing."""
    tried: list[tuple[float, float | None]] = []
    for alpha in arm.alphas:
        key = arm.cell(seed, alpha).key
        if key in finished:
            tried.append((alpha, score(finished[key])))
        elif key in failed:
            tried.append((alpha, None))
        else:
            return None
    return Search(arm, seed, tuple(tried))


def alpha_of(arm: Arm, first_seed: int, finished: Finished, failed: Sequence[str] = ()) -> float | None:
    """The alpha that the arm's tables show, or None while it is not known."""
    if len(arm.alphas) == 1:
        return arm.alphas[0]
    found = search(arm, first_seed, finished, failed)
    return found.chosen if found else None


def cells_of(arm: Arm, seeds: Sequence[int], finished: Finished, failed: Sequence[str] = ()) -> dict[int, Cell]:
    """By seed the cell that the arm's tables show; empty while alpha is not known."""
    if arm.loss is None:
        return {seed: arm.cell(seed) for seed in seeds}
    alpha = alpha_of(arm, seeds[0], finished, failed)
    return {} if alpha is None else {seed: arm.cell(seed, alpha) for seed in seeds}


def wanted(arms: Sequence[Arm], seeds: Sequence[int], finished: Finished, failed: Sequence[str] = ()) -> list[Wanted]:
    """Every cell that is known to be needed, finished or not, in the order in which to run them."""
    found: dict[str, Wanted] = {}

    def add(arm: Arm, cell: Cell, seed: int) -> None:
        one = found.setdefault(cell.key, Wanted(cell, seed))
        if arm.experiment not in one.experiments:
            one.experiments.append(arm.experiment)

    for arm in arms:
        if arm.searched:
            for alpha in arm.alphas:
                add(arm, arm.cell(seeds[0], alpha), seeds[0])
        for seed, cell in cells_of(arm, seeds, finished, failed).items():
            add(arm, cell, seed)
    order = {seed: index for index, seed in enumerate(seeds)}
    return sorted(found.values(), key=lambda one: order[one.seed])


def expected_number(arms: Sequence[Arm], seeds: Sequence[int]) -> int:
    """How many cells there will be, searches included, once every alpha is known."""
    keys = set()
    for arm in arms:
        if arm.searched:
            keys |= {arm.cell(seeds[0], alpha).key for alpha in arm.alphas}
        # Whichever alpha is chosen, the number of cells is the same: the first stands for it.
        keys |= {arm.cell(seed, *arm.alphas[:1]).key for seed in seeds}
    return len(keys)
