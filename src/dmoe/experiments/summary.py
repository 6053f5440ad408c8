"""From finished cells to tables: arms over their seeds, comparisons with their intervals, verdicts on claims."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pyarrow import parquet

from dmoe.decorrelation import scales_of_alpha
from dmoe.experiments import plan
from dmoe.experiments.families import FAMILIES, Slice
from dmoe.experiments.folder import Folder
from dmoe.experiments.grid import Arm, BestOf, Comparison, Grid, Metric, Variant
from dmoe.experiments.plan import Search
from dmoe.experiments.slices import read_slice, slice_figures
from dmoe.experiments.statistics import (
    CellScores,
    Compared,
    Spread,
    compare_auc,
    compare_logloss,
    compare_values,
    holm,
    slope_weights,
    trend,
)
from dmoe.metrics.paired import SIGNIFICANCE
from dmoe.metrics.scores import auc, calibration, logloss, probability_of

# Bytes of scores that are kept in memory at once.
SCORES_BYTES = 1 << 30
# The row of a table that says how a difference grows.
TENFOLD = "ten times the rows"

Verdict = Literal["holds", "contradicted", "not resolved"]


@dataclass(frozen=True, slots=True)
class Place:
    """One place of a table: an arm's finished runs, by seed."""

    model: str
    variant: str
    runs: dict[int, dict[str, Any]]
    """Test figures (`auc`, `logloss`, `cec`, …) of each seed."""
    cells: dict[int, str] = field(default_factory=dict)
    alpha: float | None = None
    other_alpha: tuple[float, float] | None = None
    """The same weight at scale paper and dimension-free, where the loss is at the output."""
    search: Search | None = None
    missing: str = ""
    """Why there is nothing to show."""

    def values(self, metric: str) -> dict[int, float]:
        """By seed; seeds without the figure are left out."""
        return {seed: run[metric] for seed, run in self.runs.items() if run.get(metric) is not None}

    def spread(self, metric: str) -> Spread | None:
        values = list(self.values(metric).values())
        return Spread.of(values) if values else None


@dataclass(frozen=True, slots=True)
class Decided:
    """A comparison of two places, and what it says of the claim behind it."""

    row: str
    better: str
    than: str
    metric: Metric
    claim: str | None
    compared: Compared
    logloss: Compared | None
    adjusted: float
    """p of Holm, over the comparisons of this metric in the table."""
    verdict: Verdict
    identity: tuple[str, ...] = ()
    """Names of the cells, so that the same comparison in two tables is counted once."""


@dataclass(frozen=True, slots=True)
class Table:
    """One experiment."""

    name: str
    grid: Grid
    columns: list[str]
    places: dict[tuple[str, str], Place]
    decided: list[Decided]
    pooled: list[Decided]
    """The comparisons of each claim, averaged over all models of the table."""
    trend: tuple[float, float, float] | None
    slopes: list[Decided] = field(default_factory=list)
    """Of a nested grid: by how much each difference grows for ten times the training rows."""

    def marks(self, model: str, variant: str) -> set[Verdict]:
        """Whether the place is better or worse, beyond chance, than one that it is compared with by AUC."""
        return {
            one.verdict
            for one in self.decided
            if one.metric == "auc" and (one.row, one.better) == (model, variant) and one.verdict != "not resolved"
        }


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of the paper, and every comparison that bears on it."""

    text: str
    metric: Metric
    decided: list[Decided]
    pooled: list[tuple[str, Decided]]

    def number(self, verdict: Verdict) -> int:
        return sum(one.verdict == verdict for one in self.decided)


class ExperimentSummary:
    """Everything that the report shows of an experiment folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.asked = folder.asked
        self.finished = folder.finished()
        self.failed = folder.failed()
        test_rows = self.asked.splits["test"].rows
        self._scores = lru_cache(maxsize=max(4, SCORES_BYTES // (64 * test_rows)))(self._read_scores)
        arms = [arm for table in folder.tables() for arm in folder.arms(table)]
        self.expected = plan.expected_number(arms, self.asked.seed_numbers)
        self.wanted = plan.wanted(arms, self.asked.seed_numbers, self.finished, list(self.failed))
        self.tables = [self._table(name) for name in folder.tables()]

    @property
    def number_finished(self) -> int:
        """Finished cells that the asked experiments need."""
        return sum(one.cell.key in self.finished for one in self.wanted)

    def claims(self) -> list[Claim]:
        """Every claim, in the order of the tables, each comparison once."""
        found: dict[tuple[str, Metric], Claim] = {}
        seen = set()
        for table in self.tables:
            for one in table.decided:
                if one.claim is None or (one.metric, one.identity) in seen:
                    continue
                seen.add((one.metric, one.identity))
                claim = found.setdefault((one.claim, one.metric), Claim(one.claim, one.metric, [], []))
                claim.decided.append(one)
            for one in table.pooled:
                if one.claim is not None and (one.claim, one.metric) in found:
                    found[one.claim, one.metric].pooled.append((table.name, one))
        return list(found.values())

    def searches(self) -> list[Search]:
        """Every search for an alpha, one for each set of runs."""
        found: dict[tuple[str, ...], Search] = {}
        for table in self.tables:
            for place in table.places.values():
                if place.search is not None:
                    keys = tuple(place.search.arm.cell(place.search.seed, alpha).key for alpha, _ in place.search.tried)
                    found.setdefault(keys, place.search)
        return list(found.values())

    def scores(self, key: str) -> CellScores:
        """The test logits of a finished cell, or the mean of those of several, whose names `+` joins."""
        found: CellScores = self._scores(key)
        return found

    def _read_scores(self, key: str) -> CellScores:
        if "+" in key:
            parts = [self.scores(one) for one in key.split("+")]
            return CellScores(parts[0].labels_R, np.mean([part.logits_R for part in parts], axis=0))
        cell, at, suffix = key.partition("@")
        path = self.folder.cell(cell) / "scores.parquet"
        if at:
            return CellScores(*read_slice(path, Slice.read(suffix), self.folder.schema))
        table = parquet.read_table(path, columns=["label", "logit"], filters=[("split", "=", "test")])
        table = table.filter(table["label"].is_valid())
        return CellScores(table["label"].to_numpy(), table["logit"].to_numpy().astype(np.float64))

    def _table(self, name: str) -> Table:
        spec = self.folder.grid(name)
        arms = self.folder.arms(name)
        family, _, suffix = name.partition("-")
        of = Slice.read(suffix) if family in FAMILIES else None
        places = {(arm.model, arm.variant): self._place(arm, of) for arm in arms}
        if spec.ensemble is not None:
            for arm in arms:
                if arm.variant == spec.ensemble.of:
                    places[arm.model, spec.ensemble.name] = self._ensemble(arm, spec.ensemble.name)
        if spec.best is not None:
            for model in spec.models:
                places[model, spec.best.name] = self._best(spec.best, [places[model, one] for one in spec.best.of])
        columns = list(dict.fromkeys(variant for _, variant in places))
        decided = self._decide(spec, places)
        return Table(
            name, spec, columns, places, decided, self._pool(spec, places), _trend(places) if spec.trend else None,
            self._slopes(spec, places),
        )  # fmt: skip

    def _place(self, arm: Arm, of: Slice | None = None) -> Place:
        seeds, failed = self.asked.seed_numbers, list(self.failed)
        cells = plan.cells_of(arm, seeds, self.finished, failed)
        done = {seed: cell.key for seed, cell in cells.items() if cell.key in self.finished}
        runs = {seed: self._figures(key, of) for seed, key in done.items()}
        alpha = plan.alpha_of(arm, seeds[0], self.finished, failed) if arm.loss else None
        both = None
        if done and arm.loss is not None and alpha is not None and arm.loss.location in ("output", "pre-activation"):
            units = int(self.finished[next(iter(done.values()))]["resolved"]["model"]["expert_units"])
            both = scales_of_alpha(alpha, arm.loss.scale, units, units)
        missing = ""
        if not runs:
            reasons = [self.failed[cell.key] for cell in cells.values() if cell.key in self.failed]
            missing = f"failed: {reasons[0]}" if reasons else "not run yet"
        search = plan.search(arm, seeds[0], self.finished, failed) if arm.searched else None
        if of is not None:
            done = {seed: f"{key}@{of.suffix}" for seed, key in done.items()}
        return Place(arm.model, arm.variant, runs, done, alpha, both, search, missing)

    def _figures(self, key: str, of: Slice | None) -> dict[str, Any]:
        cell = self.finished[key]
        own = {} if of is None else slice_figures(cell["metrics"]["test"], of, self.folder.schema)
        abundance = [one["weighted"] for one in cell["tables"] if one["experts"] and one["weighted"] is not None]
        return {
            **{name: value for name, value in cell["metrics"]["test"].items() if name != "tasks"},
            **own,
            "valid_auc": cell["metrics"]["valid"]["auc"],
            "parameters": cell["parameters"],
            "seconds": cell["seconds"],
            "abundance": float(np.mean(abundance)) if abundance else None,
            "planted": cell.get("planted"),
        }

    def _ensemble(self, arm: Arm, name: str) -> Place:
        """Mean logit of one run for each expert, of as many different seeds, for every seed as the first."""
        seeds = self.asked.seed_numbers
        single = Variant(only_expert=0, tables="shared")
        members = [
            Arm(arm.experiment, arm.model, name, (kind,), single, (), arm.size, 1, arm.changes, arm.part)
            for kind in arm.experts
        ]
        runs: dict[int, dict[str, Any]] = {}
        cells: dict[int, str] = {}
        for start, seed in enumerate(seeds):
            keys = [one.cell(seeds[(start + place) % len(seeds)]).key for place, one in enumerate(members)]
            # Two seeds of one kind make one ensemble, not two.
            repeated = set(keys) in [set(one.split("+")) for one in cells.values()]
            if repeated or len(set(keys)) < len(keys) or not all(key in self.finished for key in keys):
                continue
            parts = [self.scores(key) for key in keys]
            mean_R = np.mean([part.logits_R for part in parts], axis=0)
            labels_R = parts[0].labels_R
            found = calibration(labels_R, probability_of(mean_R))
            runs[seed] = {
                "auc": auc(labels_R, mean_R),
                "logloss": logloss(labels_R, mean_R),
                "calibration_error": found.expected_calibration_error,
                "predicted_to_observed": found.predicted_to_observed,
                "parameters": sum(self.finished[key]["parameters"] for key in keys),
                "seconds": sum(self.finished[key]["seconds"] for key in keys),
            }
            cells[seed] = "+".join(keys)
        return Place(arm.model, name, runs, cells, missing="" if runs else "needs two seeds of the single experts")

    def _best(self, best: BestOf, places: Sequence[Place]) -> Place:
        """The place with the best mean score on the validation split, over the seeds that all have."""
        seeds = _common([set(place.cells) for place in places])
        if not seeds:
            return Place(
                places[0].model, best.name, {}, missing=next((one.missing for one in places if one.missing), "")
            )
        chosen = max(places, key=lambda one: sum(plan.score(self.finished[one.cells[seed]]) for seed in seeds))
        return replace(chosen, variant=best.name)

    def _slopes(self, spec: Grid, places: dict[tuple[str, str], Place]) -> list[Decided]:
        """How each comparison of a nested grid grows with the rows, on the seeds that every part has."""
        found: list[tuple[Comparison, Compared, Compared]] = []
        for one in spec.compare if spec.nested else []:
            rows, pairs = [], []
            for label, number in spec.parts.items():
                first, second = places.get((label, one.than)), places.get((label, one.better))
                if first is not None and second is not None and first.cells.keys() & second.cells.keys():
                    rows.append(number)
                    pairs.append((first, second))
            if len(rows) < 3:
                continue
            seeds = _common([first.cells.keys() & second.cells.keys() for first, second in pairs])
            weighted = [
                (pair, weight)
                for (first, second), weight in zip(pairs, slope_weights(rows), strict=True)
                for pair in ((seed, first, second) for seed in sorted(seeds))
            ]
            if not weighted:
                continue
            weights = [weight for _, weight in weighted]
            keys = [(seed, first.cells[seed], second.cells[seed]) for (seed, first, second), _ in weighted]
            found.append(
                (
                    one,
                    compare_auc(((s, self.scores(a), self.scores(b)) for s, a, b in keys), weights),
                    compare_logloss(((s, self.scores(a), self.scores(b)) for s, a, b in keys), weights),
                )
            )
        adjusted = holm([auc_slope.p for _, auc_slope, _ in found])
        return [
            Decided(TENFOLD, one.better, one.than, "auc", None, slope, loss, value, _verdict(slope, value, "auc"))
            for (one, slope, loss), value in zip(found, adjusted, strict=True)
        ]

    def _pairs(self, first: Place, second: Place) -> Iterator[tuple[int, CellScores, CellScores]]:
        for seed in sorted(first.cells.keys() & second.cells.keys()):
            yield seed, self.scores(first.cells[seed]), self.scores(second.cells[seed])

    def _compare(
        self, places: Sequence[tuple[Place, Place]], metric: Metric
    ) -> tuple[Compared, Compared | None] | None:
        """The difference of a metric, averaged over pairs of places; for AUC also that of logloss."""
        # The same seeds stand behind every model, so that no model's own seeds pass for a difference between seeds.
        if metric in ("auc", "logloss"):
            seeds = _common([first.cells.keys() & second.cells.keys() for first, second in places])
            pairs = [pair for first, second in places for pair in self._pairs(first, second) if pair[0] in seeds]
            return (compare_auc(pairs), compare_logloss(pairs)) if pairs else None
        values = [(first.values(metric), second.values(metric)) for first, second in places]
        seeds = _common([first.keys() & second.keys() for first, second in values])
        means = [np.mean([[first[seed], second[seed]] for first, second in values], axis=0) for seed in sorted(seeds)]
        found = compare_values([one[0] for one in means], [one[1] for one in means])
        return None if found is None else (found, None)

    def _decide(self, spec: Grid, places: dict[tuple[str, str], Place]) -> list[Decided]:
        asked: list[tuple[str, Comparison, str, str, Place, Place]] = []
        for one in spec.compare:
            for model in spec.models:
                first, second = places.get((model, one.than)), places.get((model, one.better))
                if first is not None and second is not None:
                    asked.append((model, one, one.better, one.than, first, second))
        for one in spec.between_models:
            for variant in spec.variants:
                first, second = places.get((one.than, variant)), places.get((one.better, variant))
                if first is not None and second is not None:
                    asked.append((variant, one, one.better, one.than, first, second))
        found = []
        for row, one, better, than, first, second in asked:
            result = self._compare([(first, second)], one.metric)
            if result is not None:
                identity = (*sorted(first.cells.values()), "|", *sorted(second.cells.values()))
                found.append((row, one, better, than, result, identity))
        adjusted: dict[int, float] = {}
        for metric in {one.metric for _, one, *_ in found}:
            places_of = [index for index, (_, one, *_) in enumerate(found) if one.metric == metric]
            for index, value in zip(places_of, holm([found[i][4][0].p for i in places_of]), strict=True):
                adjusted[index] = value
        return [
            Decided(
                row, better, than, one.metric, one.claim, *result, adjusted[index],
                _verdict(result[0], adjusted[index], one.metric), identity,
            )
            for index, (row, one, better, than, result, identity) in enumerate(found)
        ]  # fmt: skip

    def _pool(self, spec: Grid, places: dict[tuple[str, str], Place]) -> list[Decided]:
        """Each comparison of variants averaged over the models, Holm over them by metric."""
        if len(spec.models) < 2:
            return []
        found = []
        for one in spec.compare:
            pairs = [
                (places[model, one.than], places[model, one.better])
                for model in spec.models
                if (model, one.than) in places and (model, one.better) in places
            ]
            result = self._compare(pairs, one.metric)
            if result is not None:
                found.append((one, result))
        decided = []
        for metric in dict.fromkeys(one.metric for one, _ in found):
            here = [(one, result) for one, result in found if one.metric == metric]
            for (one, result), value in zip(here, holm([result[0].p for _, result in here]), strict=True):
                verdict = _verdict(result[0], value, metric)
                row = "all parts" if spec.nested else "all models"
                decided.append(Decided(row, one.better, one.than, metric, one.claim, *result, value, verdict))
        return decided


def _common(seeds: Sequence[set[int]]) -> set[int]:
    return set.intersection(*seeds) if seeds else set()


def _verdict(compared: Compared, adjusted: float, metric: Metric) -> Verdict:
    # One seed says nothing of what another would give, however sure its test rows are.
    if adjusted >= SIGNIFICANCE or compared.seeds < 2:
        return "not resolved"
    lower_is_better = metric in ("cec", "logloss")
    return "holds" if (compared.difference < 0) == lower_is_better else "contradicted"


def _trend(places: dict[tuple[str, str], Place]) -> tuple[float, float, float] | None:
    """Rank correlation of CEC and AUC over the arms that have both, on the seeds that all of them have."""
    known = [
        (cec, scores) for place in places.values() if (cec := place.values("cec")) and (scores := place.values("auc"))
    ]
    if not known:
        return None
    seeds = sorted(set.intersection(*(cec.keys() & scores.keys() for cec, scores in known)))
    return trend([[(cec[seed], scores[seed]) for seed in seeds] for cec, scores in known]) if seeds else None
