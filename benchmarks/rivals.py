"""Trains the models of FuxiCTR and DeepCTR-Torch on a data set that `dmoe prepare` made, on exactly its splits.

Each model gets the effort that dmoe's own experiments get at the same size. Its embedding L2 and its hidden layers are
chosen on the validation split; then it is trained with all seeds. The same command continues an interrupted one.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from threading import Event
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.arguments import DEFAULT_ENVIRONMENTS, positive
from benchmarks.environments import InstallationError, python_of
from benchmarks.rival_runs import Rows, RunError, Trainer
from benchmarks.rival_search import EMBEDDING_L2, MODELS, WIDE, Budget, Result, Run, search
from benchmarks.run import describe_machine
from dmoe.disk.files import read_json, write_json
from dmoe.errors import Interrupted, UserError

FORMAT_VERSION = 1
FIRST_SEED = 2025


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options; ends with exit code 2 on a wrong one. `chosen` holds the (peer, model) pairs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder made by `dmoe prepare`")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="one folder a run, rivals.json")
    parser.add_argument("--peers", nargs="+", choices=list(MODELS), default=list(MODELS), help="both without it")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="of the peers that have them; all without it")
    parser.add_argument("--seeds", type=positive, default=3, help=f"seeds a model, from {FIRST_SEED} on (3)")
    parser.add_argument("--size", default="small", help="size of dmoe's experiments whose budget is used (small)")
    parser.add_argument(
        "--embedding-l2", type=_not_negative, nargs="+", default=EMBEDDING_L2, metavar="L2", help="tried (.1 .01 .001)"
    )
    parser.add_argument(
        "--wide", type=positive, nargs="*", default=WIDE, metavar="UNITS",
        help="hidden layers tried beside the size's own (400 400); none tried when empty",
    )  # fmt: skip
    parser.add_argument("--without-numeric", action="store_true", help="peers get the categorical fields only")
    parser.add_argument("--jobs", type=positive, default=1, help="models in training at the same time (1)")
    parser.add_argument("--threads", type=positive, default=1, help="of each run (1)")
    parser.add_argument("--environments", type=Path, default=DEFAULT_ENVIRONMENTS, help="where peers are installed")
    arguments = parser.parse_args(words)
    # The peers in turn, so that an interrupted call has models of both.
    in_turn = zip_longest(*([(peer, model) for model in MODELS[peer]] for peer in dict.fromkeys(arguments.peers)))
    pairs = [pair for turn in in_turn for pair in turn if pair is not None]
    arguments.chosen = [pair for pair in pairs if not arguments.models or pair[1] in arguments.models]
    for model in arguments.models or ():
        if model not in {name for _, name in arguments.chosen}:
            known = "; ".join(f"{peer}: {', '.join(MODELS[peer])}" for peer in arguments.peers)
            parser.error(f"no model '{model}' in the peers named; known: {known}")
    return arguments


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number from 0 up, got {text}")
    return value


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    try:
        budget = Budget.of_size(arguments.size)
        arguments.output.mkdir(parents=True, exist_ok=True)
        peers = tuple(arguments.peers)
        rows = Rows.export(arguments.data, arguments.output, peers, numeric=not arguments.without_numeric)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    environments = arguments.environments.expanduser()
    trainer = Trainer(rows, arguments.output, environments, arguments.threads)
    report: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(arguments.threads),
        "data": {
            "folder": str(arguments.data.resolve()),
            "fingerprint": rows.fingerprint,
            "vocabulary_sizes": rows.vocabulary_sizes,
            "numeric_fields": rows.num_numeric,
        },
        "budget": {"size": arguments.size, **asdict(budget)},
        "models": [],
    }
    try:
        # Before the models start at once: two must not install the same environment.
        for peer in dict.fromkeys(peer for peer, _ in arguments.chosen):
            python_of(peer, environments)
        _train_all(arguments, budget, trainer, report)
    except (InstallationError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues with what is not finished", file=sys.stderr)
        return 130
    Console(width=None if sys.stdout.isatty() else 140).print(table(report))
    asked = [one for one in report["models"] if (one["peer"], one["model"]) in arguments.chosen]
    return 1 if any("left_out" in one for one in asked) else 0


def _train_all(arguments: argparse.Namespace, budget: Budget, trainer: Trainer, report: dict[str, Any]) -> None:
    """Fills `models` of the report in the order of the request, and writes it after each model."""
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    earlier = _earlier(arguments.output / "rivals.json", report)
    stopped = Event()

    def train(run: Run) -> Result:
        # A search in another thread would go on with its next run.
        if stopped.is_set():
            raise Interrupted("stopped")
        return trainer(run)

    pool = ThreadPoolExecutor(max_workers=arguments.jobs)
    try:
        waiting: dict[Future[dict[str, Any]], tuple[str, str]] = {
            pool.submit(search, *pair, budget, seeds, arguments.embedding_l2, tuple(arguments.wide), train): pair
            for pair in arguments.chosen
        }
        for done in as_completed(waiting):
            peer, model = pair = waiting[done]
            try:
                found[pair] = done.result()
            except RunError as error:
                found[pair] = {"peer": peer, "model": model, "left_out": str(error)}
            print(f"{len(found)}/{len(waiting)} {_line(found[pair])}", file=sys.stderr, flush=True)
            report["models"] = [found[one] for one in arguments.chosen if one in found]
            report["models"] += [one for one in earlier if (one["peer"], one["model"]) not in found]
            write_json(arguments.output / "rivals.json", report)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _earlier(path: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The models of earlier calls, when those had the same data and budget.

    Raises: DataError if the file is damaged.
    """
    if not path.is_file():
        return []
    known = read_json(path)
    written = json.loads(json.dumps(report))
    same = known["data"]["fingerprint"] == written["data"]["fingerprint"] and known["budget"] == written["budget"]
    return list(known["models"]) if same else []


def _line(model: dict[str, Any]) -> str:
    name = f"{model['peer']} {model['model']}"
    if "left_out" in model:
        return f"{name}: left out: {model['left_out']}"
    summary = model["summary"]
    return f"{name}: valid AUC {summary['valid']['auc']['mean']:.4f}, test AUC {summary['test']['auc']['mean']:.4f}"


def table(report: dict[str, Any]) -> Table:
    """One row a model, by falling AUC of the validation split; those left out last, with the reason."""
    made = Table(title="Peers: mean ± standard deviation over seeds, settings chosen on the validation split")
    for heading in ("peer", "model"):
        made.add_column(heading, no_wrap=True)
    for heading in ("valid AUC", "valid logloss", "test AUC", "test logloss"):
        made.add_column(heading, justify="right", no_wrap=True)
    for heading in ("seeds", "L2", "hidden", "parameters", "epochs", "s a run"):
        made.add_column(heading, justify="right")
    finished = [model for model in report["models"] if "left_out" not in model]
    for model in sorted(finished, key=lambda model: -model["summary"]["valid"]["auc"]["mean"]):
        runs, summary, chosen = model["seeds"], model["summary"], model["chosen"]
        made.add_row(
            model["peer"],
            model["model"],
            *(_figure(summary[split][metric]) for split in ("valid", "test") for metric in ("auc", "logloss")),
            str(len(runs)),
            f"{chosen['embedding_l2']:g}",
            "×".join(map(str, chosen["hidden_units"])),
            f"{runs[0]['parameters']:,}",
            f"{sum(run['epochs'] for run in runs) / len(runs):.1f}",
            f"{sum(run['seconds'] for run in runs) / len(runs):.0f}",
        )
    for model in report["models"]:
        if "left_out" in model:
            made.add_row(model["peer"], model["model"], f"left out: {model['left_out']}")
    return made


def _figure(found: dict[str, float | None]) -> str:
    return f"{found['mean']:.4f}" + ("" if found["std"] is None else f" ±{found['std']:.4f}")


if __name__ == "__main__":
    sys.exit(main())
