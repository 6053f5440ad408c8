"""The leaderboard as a table: figures over seeds, and each entry against the D-MoE that validation chose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from pyarrow import parquet

from dmoe.disk.files import read_json, write_json, write_text
from dmoe.evaluation.compare import SIGNIFICANCE
from dmoe.experiments.statistics import CellScores, Compared, Spread, compare_auc, compare_logloss, holm
from dmoe.report.numbers import change
from dmoe.report.text_table import Text, TextTable

D_MOE = "D-MoE"
SINGLE = "single model"
APART = "trained apart"
PEERS = {"fuxictr": "FuxiCTR", "deepctr": "DeepCTR-Torch"}
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A model of the table and its runs: by seed the metrics of valid and test, and the files of its scores.

    Of several files the mean logit counts: models that were trained apart.
    """

    library: str
    model: str
    form: str
    setting: str
    runs: dict[int, tuple[Mapping[str, Any], tuple[Path, ...]]] = field(default_factory=dict)

    def add(self, seed: int, metrics: Mapping[str, Any], scores: Path) -> None:
        self.runs[seed] = (metrics, (scores,))

    def add_mean(self, seed: int, parts: Sequence["Entry"]) -> None:
        """The mean logit of the parts' runs of this seed."""
        paths = tuple(path for part in parts for path in part.runs[seed][1])
        metrics = {}
        for split in ("valid", "test"):
            mean = mean_scores(paths, split)
            metrics[split] = {"auc": mean.auc, "logloss": float(mean.losses_R.mean())}
        self.runs[seed] = (metrics, paths)

    def spread(self, split: str, metric: str) -> Spread:
        return Spread.of([float(metrics[split][metric]) for metrics, _ in self.runs.values()])

    def scores(self) -> dict[int, CellScores]:
        """Test scores by seed, read anew at each call: all entries' together would not be small."""
        return {seed: mean_scores(paths, "test") for seed, (_, paths) in self.runs.items()}


def mean_scores(paths: Sequence[Path], split: str) -> CellScores:
    """The rows of a split, with the mean logit over the files `scores.parquet` of models with the same rows."""
    tables = []
    for path in paths:
        table = parquet.read_table(path, columns=["split", "label", "logit"])
        tables.append(table.filter(pc.equal(pc.cast(table["split"], "string"), split)))
    logits = [table["logit"].to_numpy().astype(np.float64, copy=False) for table in tables]
    return CellScores(tables[0]["label"].to_numpy().astype(bool, copy=False), np.mean(logits, axis=0))


def read_rivals(path: Path) -> list[Entry]:
    """The peers' models that `benchmarks.rivals` trained, without those left out; seeds numbered as ours, from 1."""
    found = []
    for model in read_json(path)["models"]:
        if "left_out" in model:
            continue
        setting = f"L2 {model['chosen']['embedding_l2']:g}"
        if model["chosen"].get("hidden_units"):
            setting += f", hidden {model['chosen']['hidden_units']}"
        entry = Entry(PEERS[model["peer"]], model["model"], SINGLE, setting)
        for number, run in enumerate(model["seeds"], 1):
            entry.add(number, run, path.parent / run["scores"])
        found.append(entry)
    return found


def chosen_d_moe(entries: Sequence[Entry]) -> Entry:
    """The D-MoE of the best mean validation score (AUC minus logloss)."""
    return max(
        (entry for entry in entries if entry.form == D_MOE),
        key=lambda entry: entry.spread("valid", "auc").mean - entry.spread("valid", "logloss").mean,
    )


def compare(best: Entry, entries: Sequence[Entry]) -> dict[int, tuple[Compared, Compared, float]]:
    """By place in `entries`: AUC and logloss of `best` minus the entry's, and Holm's p of the AUC over all entries."""
    ours = best.scores()
    found: dict[int, tuple[Compared, Compared]] = {}
    for place, entry in enumerate(entries):
        if entry is best:
            continue
        pairs = [(seed, scores, ours[seed]) for seed, scores in entry.scores().items() if seed in ours]
        for _, theirs, mine in pairs:
            if not np.array_equal(theirs.labels_R, mine.labels_R):
                raise ValueError(f"{entry.library} {entry.model}: its test rows are not ours, or in another order")
        found[place] = (compare_auc(pairs), compare_logloss(pairs))
    adjusted = holm([auc.p for auc, _ in found.values()])
    return {place: (*both, p) for (place, both), p in zip(found.items(), adjusted, strict=True)}


def write_table(entries: Sequence[Entry], folder: Path) -> str:
    """Writes `leaderboard.md` and `leaderboard.json`, best test AUC first; returns the Markdown."""
    ordered = sorted(entries, key=lambda entry: -entry.spread("test", "auc").mean)
    best = chosen_d_moe(ordered)
    against = compare(best, ordered)
    rows, figures = [], []
    for place, entry in enumerate(ordered):
        auc, logloss = entry.spread("test", "auc"), entry.spread("test", "logloss")
        valid = entry.spread("valid", "auc")
        compared = against.get(place)
        difference, verdict = "", ""
        if compared is not None:
            one, _, p = compared
            difference = f"{change(one.difference, 4)} ({change(one.low, 4)} to {change(one.high, 4)})"
            verdict = (
                "not resolved" if p >= SIGNIFICANCE else "D-MoE is better" if one.difference > 0 else "D-MoE is worse"
            )
        name = f"{entry.model}, {entry.form}" if entry.form != SINGLE else entry.model
        rows.append(
            [
                Text(name, emphasis="bold" if entry is best else ""),
                Text(entry.library),
                Text(entry.setting),
                Text(f"{valid.mean:.4f}"),
                Text(_spread(auc)),
                Text(_spread(logloss)),
                Text(difference),
                Text(verdict),
            ]
        )
        figures.append(
            {
                "library": entry.library,
                "model": entry.model,
                "form": entry.form,
                "setting": entry.setting,
                "chosen": entry is best,
                "runs": {str(seed): metrics for seed, (metrics, _) in entry.runs.items()},
                "d_moe_minus_this": None if compared is None else _figures(*compared),
            }
        )
    table = TextTable(
        "leaderboard",
        f"Test AUC and logloss, mean ± standard deviation over {len(best.runs)} seeds. Bold: the D-MoE that the "
        "validation split chose; difference: its test AUC minus the row's, 95% interval over rows and seeds; verdict "
        "after Holm's correction over all rows.",
        ["model", "library", "setting", "valid AUC", "test AUC", "test logloss", "difference", "verdict"],
        rows,
        frozenset({1, 2, 7}),
    )
    text = table.markdown()
    write_text(folder / "leaderboard.md", text)
    write_json(folder / "leaderboard.json", {"format_version": FORMAT_VERSION, "entries": figures})
    return text


def _spread(one: Spread) -> str:
    return f"{one.mean:.4f} (one seed)" if one.std is None else f"{one.mean:.4f} ± {one.std:.4f}"


def _figures(auc: Compared, logloss: Compared, holm_p: float) -> dict[str, float]:
    return {
        "auc": auc.difference,
        "auc_low": auc.low,
        "auc_high": auc.high,
        "auc_p": auc.p,
        "auc_holm_p": holm_p,
        "logloss": logloss.difference,
        "logloss_low": logloss.low,
        "logloss_high": logloss.high,
    }
