"""Every model by itself, and the best mixtures of two and three experts, on one log: chosen on its validation split.

$ python -m benchmarks.leaderboard --data DATA --output FOLDER --rivals RIVALS/rivals.json

Each kind of expert is trained as a model by itself (`form: benchmark`), its embedding L2 searched. The best kinds are
combined to homogeneous and heterogeneous pairs and triples, each a D-MoE; the best of each of these four, by
validation, gets its alpha searched. What was chosen is then trained with all seeds, without the loss and with a shared
table beside it, and scored once on the test split, beside the mean logit of single models that were trained apart.
Every run is a cell as `dmoe experiment` has them; a finished one is not repeated.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.arguments import positive
from benchmarks.leaderboard_table import APART, D_MOE, SINGLE, Entry, read_rivals, write_table
from dmoe.config.run import RunConfig
from dmoe.errors import UserError
from dmoe.experiments import grid, plan
from dmoe.experiments.folder import Folder
from dmoe.experiments.grid import Cell
from dmoe.schema import Schema
from dmoe.validation import validate
from dmoe.yaml_text import read_yaml

SETTINGS = Path(__file__).with_suffix(".yaml")
SIZE = "small"
# So many of the best single models are averaged, whatever mixtures were chosen.
BEST = 6


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Kind(_Strict):
    """Options of a kind of expert; `single` changes the model where it stands alone, `single_lr` its learning rate.

    Kinds with a vector for each partner field need tables of `width_per_field` for each of them.
    """

    options: dict[str, Any] = {}
    single: dict[str, Any] = {}
    single_lr: float | None = None
    width_per_field: int | None = None
    partners: str = "others"


class Settings(_Strict):
    """`leaderboard.yaml`."""

    kinds: dict[str, Kind]
    embedding_l2: list[float]
    alphas: list[float]
    alpha: float
    pairs_of: int
    triples_of: int


@dataclass(frozen=True, slots=True)
class Mixture:
    """Kinds of experts, and what lies between them; `alpha` is None without the loss."""

    kinds: tuple[str, ...]
    alpha: float | None
    tables: str = "per-expert"

    @property
    def group(self) -> str:
        number = {2: "pair", 3: "triple"}[len(self.kinds)]
        return f"{'homogeneous' if len(set(self.kinds)) == 1 else 'heterogeneous'} {number}"


class Models:
    """Configurations of single models and mixtures on a log."""

    def __init__(self, settings: Settings, schema: Schema) -> None:
        self.settings = settings
        self.fields = len(schema.fields)
        self.size = grid.size(SIZE)

    def single(self, kind: str, l2: float, seed: int) -> Cell:
        made = self.settings.kinds[kind]
        model = {
            "form": "benchmark",
            "tables": "shared",
            "experts": [{"kind": kind, **made.options}],
            "embedding_dim": self.width(kind),
            **made.single,
        }
        optimiser = {"embedding_l2": l2} | ({} if made.single_lr is None else {"lr": made.single_lr})
        return self._cell(model, optimiser, None, seed)

    def mixture(self, one: Mixture, seed: int) -> Cell:
        widths = [self.width(kind) for kind in one.kinds]
        model = {
            **self.size.run["model"],
            "tables": one.tables,
            "experts": [{"kind": kind, **self.settings.kinds[kind].options} for kind in one.kinds],
            "embedding_dim": widths[0] if len(set(widths)) == 1 else widths,
        }
        return self._cell(model, {}, one.alpha, seed)

    def width(self, kind: str) -> int:
        """The width of the tables that an expert of this kind reads."""
        made = self.settings.kinds[kind]
        if made.width_per_field is None:
            return int(self.size.run["model"]["embedding_dim"])
        return made.width_per_field * (self.fields - (made.partners == "others"))

    def can_share(self, kinds: Sequence[str]) -> bool:
        return len({self.width(kind) for kind in kinds}) == 1

    def _cell(self, model: dict[str, Any], optimiser: dict[str, Any], alpha: float | None, seed: int) -> Cell:
        values: dict[str, Any] = {part: dict(content) for part, content in self.size.run.items()}
        values["model"] = model
        values["optimiser"] |= optimiser
        values["training"]["seed"] = seed
        if alpha is not None:
            values["decorrelation"] = [{"loss": "corr", "location": "output", "alpha": alpha}]
        return Cell.of(validate(RunConfig, values, "leaderboard"))


class Trials:
    """Runs cells, several at once; a cell that fails is said and is no candidate."""

    def __init__(self, folder: Folder, data: Path, jobs: int) -> None:
        self.folder, self.data, self.jobs = folder, data, jobs

    def figures(self, cells: Mapping[Any, Cell]) -> dict[Any, dict[str, Any]]:
        """What `cell.json` says of each cell that could be run, by the key of `cells`."""
        unique = {cell.key: cell for cell in cells.values()}
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self._run, unique.values()))
        found = {name: self.folder.figures(cell.key) for name, cell in cells.items()}
        return {name: figures for name, figures in found.items() if figures is not None}

    def _run(self, cell: Cell) -> None:
        if self.folder.figures(cell.key) is not None:
            return
        place = self.folder.make_cell(cell)
        command = [sys.executable, "-m", "dmoe.experiments.cell", str(place), "--data", str(self.data)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        with (place / "log.txt").open("wb") as log:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        figures = self.folder.figures(cell.key)
        model = cell.config.model
        name = " + ".join(expert["kind"] for expert in model.experts)
        if done.returncode or figures is None:
            print(f"{name} failed, see {place / 'log.txt'}", flush=True)
        else:
            valid = figures["metrics"]["valid"]
            alpha = "".join(f", alpha {term.alpha:g}" for term in cell.config.decorrelation)
            l2, seed = cell.config.optimiser.embedding_l2, cell.config.training.seed
            print(
                f"{name} ({model.form}, {model.tables} tables, L2 {l2:g}{alpha}, seed {seed}): valid AUC "
                f"{valid['auc']:.4f}, logloss {valid['logloss']:.4f}, {figures['seconds']:.0f} s",
                flush=True,
            )


def best(figures: Mapping[Any, Mapping[str, Any]]) -> Any:
    """The name with the highest score on the validation split; the first of equals."""
    return max(figures, key=lambda name: plan.score(figures[name]))


def choose_l2(models: Models, trials: Trials, seed: int) -> dict[str, float]:
    """The embedding L2 of each kind as a model by itself, kinds in the order of their validation score, best first."""
    settings = models.settings
    found = trials.figures(
        {(kind, l2): models.single(kind, l2, seed) for kind in settings.kinds for l2 in settings.embedding_l2}
    )
    chosen: dict[str, tuple[float, float]] = {}
    for (kind, l2), figures in found.items():
        chosen[kind] = max(chosen.get(kind, (float("-inf"), 0.0)), (plan.score(figures), l2))
    return {kind: chosen[kind][1] for kind in sorted(chosen, key=lambda kind: -chosen[kind][0])}


def candidates(ranked: Sequence[str], settings: Settings) -> list[Mixture]:
    """Pairs and triples of the best kinds, homogeneous and heterogeneous, at the preset's alpha."""
    combined: list[tuple[str, ...]] = []
    for number, of in ((2, settings.pairs_of), (3, settings.triples_of)):
        combined += [(kind,) * number for kind in ranked[:of]]
        combined += list(combinations(ranked[:of], number))
    return [Mixture(kinds, settings.alpha) for kinds in combined]


def choose_mixtures(models: Models, trials: Trials, ranked: Sequence[str], seed: int) -> list[Mixture]:
    """The best mixture of each group, its alpha searched."""
    settings = models.settings
    tried = trials.figures({one: models.mixture(one, seed) for one in candidates(ranked, settings)})
    chosen = []
    for group in dict.fromkeys(one.group for one in tried):
        kinds = best({one: figures for one, figures in tried.items() if one.group == group}).kinds
        searched = {Mixture(kinds, alpha): models.mixture(Mixture(kinds, alpha), seed) for alpha in settings.alphas}
        chosen.append(best(trials.figures(searched)))
    return chosen


def entries(
    models: Models, trials: Trials, l2_of: Mapping[str, float], chosen: Sequence[Mixture], seeds: Sequence[int]
) -> list[Entry]:
    """What stands in the table, with the runs of all seeds."""
    cells: dict[Entry, dict[int, Cell]] = {}
    for one in chosen:
        forms = [(D_MOE, one), ("ME-MoE", Mixture(one.kinds, None))]
        if models.can_share(one.kinds):
            forms.append(("SE-MoE", Mixture(one.kinds, None, "shared")))
        for name, form in forms:
            entry = Entry("dmoe", " + ".join(one.kinds), name, f"alpha {form.alpha:g}" if form.alpha else "")
            cells[entry] = {seed: models.mixture(form, seed) for seed in seeds}
    for kind, l2 in l2_of.items():
        lr = models.settings.kinds[kind].single_lr
        entry = Entry("dmoe", kind, SINGLE, f"L2 {l2:g}" + (f", lr {lr:g}" if lr else ""))
        cells[entry] = {seed: models.single(kind, l2, seed) for seed in seeds}
    flat = {(entry, seed): cell for entry, by_seed in cells.items() for seed, cell in by_seed.items()}
    figures = trials.figures(flat)
    for entry, by_seed in cells.items():
        for seed, cell in by_seed.items():
            if (entry, seed) in figures:
                entry.add(seed, figures[entry, seed]["metrics"], trials.folder.cell(cell.key) / "scores.parquet")
    found = [entry for entry in cells if entry.runs]
    singles = {entry.model: entry for entry in found if entry.form == SINGLE}
    together = [one.kinds for one in chosen if len(set(one.kinds)) == len(one.kinds)]
    return found + [
        apart for kinds in [*together, tuple(l2_of)[:BEST]] if (apart := trained_apart(kinds, singles)).runs
    ]


def trained_apart(kinds: Sequence[str], singles: Mapping[str, Entry]) -> Entry:
    """The mean logit of single models of these kinds, seed by seed: what a mixture of them has to beat."""
    entry = Entry("dmoe", " + ".join(kinds), APART, "mean logit")
    parts = [singles[kind] for kind in kinds if kind in singles]
    if len(parts) == len(kinds):
        for seed in sorted(set.intersection(*(set(part.runs) for part in parts))):
            entry.add_mean(seed, parts)
    return entry


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of `dmoe prepare`, with all three splits")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs and of leaderboard.md and .json")
    parser.add_argument("--rivals", type=Path, help="rivals.json of `python -m benchmarks.rivals` on the same data")
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument(
        "--jobs", type=positive, default=len(os.sched_getaffinity(0)), help="runs at once, a thread each"
    )
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="another leaderboard.yaml")
    arguments = parser.parse_args(words)
    try:
        text = _leaderboard(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    Console(width=None if sys.stdout.isatty() else 140).print(Markdown(text))
    return 0


def _leaderboard(arguments: argparse.Namespace) -> str:
    """Runs what is not finished and writes the table, which it returns."""
    settings = validate(Settings, read_yaml(arguments.settings), str(arguments.settings))
    models = Models(settings, Schema.read(arguments.data))
    # Read before the hours of training: a wrong path shows at once.
    rivals = read_rivals(arguments.rivals) if arguments.rivals is not None else []
    folder = Folder(arguments.output)
    trials = Trials(folder, arguments.data, arguments.jobs)
    seeds = range(1, arguments.seeds + 1)
    l2_of = choose_l2(models, trials, seeds[0])
    chosen = choose_mixtures(models, trials, list(l2_of), seeds[0])
    found = entries(models, trials, l2_of, chosen, seeds)
    return write_table(found + rivals, folder.path)


if __name__ == "__main__":
    sys.exit(main())
