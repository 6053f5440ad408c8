"""`dmoe train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dmoe.cli import completion
from dmoe.cli.common import JsonOption, cec_text, print_json, show_path, stderr, warn
from dmoe.errors import ConfigError

if TYPE_CHECKING:
    from dmoe.config.model import ModelConfig
    from dmoe.config.run import RunConfig
    from dmoe.distributed.world import World
    from dmoe.schema import Schema

HELP = """Train a model and write a run folder.

CONFIG is a YAML file or the name of a preset (`dmoe config` lists them); OVERRIDES change single keys.

--from starts from the weights of an earlier run, on data prepared anew with the same fields; without CONFIG the
run's own configuration is used.

Ctrl-C stops after the current step and leaves a run that --resume continues to the same bits.

--processes trains one model on several processes of this machine, `torchrun … -m dmoe train …` on several machines:
tables are dealt out by rows, and the batch size is that of all (docs/distributed.md).

--track sends configuration, curves, CEC at each evaluation, final figures and the report page to TensorBoard, MLflow
or a plug-in; with --resume the same run of it goes on (docs/tracking.md).

--dry-run takes a few real steps, whose weights are dropped, and says what a training takes: parameters, memory beside
its limit, batches, time of a step, of an epoch, of all. Exit code 1 if the memory does not suffice.

\b
Examples:
  dmoe train d-moe --data DATA --dry-run
  dmoe train run.yaml --data DATA --output runs/first
  dmoe train d-moe --data DATA --output runs/second decorrelation.0.alpha=30 training.epochs=3
  dmoe train --data DATA --output runs/second --resume
  dmoe train d-moe --data DATA --output runs/third --processes 4
  dmoe train d-moe --data DATA --output runs/fourth --track tensorboard --track mlflow:http://localhost:5000
  dmoe train --from runs/monday --data TUESDAY --output runs/tuesday training.epochs=1
"""


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [OVERRIDES]...",
            help="key.path=value changes one key.",
            autocompletion=completion.configurations,
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="Data set folder made by `dmoe prepare`, or its address (s3://…, gs://…, hdfs://…).")
    ] = ...,  # type: ignore[assignment]
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder to write.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Run whose weights to start from; its tokens are matched by value."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline/--no-baseline",
            help="Fit the logistic regression of the data set too, once, and say which of both is better.",
        ),
    ] = True,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that train together; under torchrun it says how many.")
    ] = 1,
    track: Annotated[
        list[str] | None,
        typer.Option(
            help="tensorboard, tensorboard:FOLDER, mlflow:URI or a plug-in's name; may be repeated.",
            autocompletion=completion.trackers,
        ),
    ] = None,
    launcher: Annotated[
        Literal["local", "ray"],
        typer.Option(help="What starts --processes: this command here, or Ray Train on the cluster of RAY_ADDRESS."),
    ] = "local",
    timeout: Annotated[
        float, typer.Option(min=1.0, help="Seconds after which a process that does not answer counts as gone.")
    ] = 600.0,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what it takes, memory and time, by a few real steps; write and keep nothing."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    from dmoe.disk.files import read_json, read_json_lines
    from dmoe.distributed.launch import launch
    from dmoe.distributed.ray_launch import launch_with_ray
    from dmoe.distributed.world import world_from_environment
    from dmoe.evaluation.baseline import run_faults, stand_beside
    from dmoe.evaluation.verdict import against
    from dmoe.evaluation.watch import CorrelationWatch
    from dmoe.machine.allocator import keep_freed_memory
    from dmoe.shards.remote import folder_of, named_as_given
    from dmoe.tokens.unseen import Finding
    from dmoe.tracking.registry import make_trackers
    from dmoe.training.loop import train
    from dmoe.training.progress import TerminalWatcher
    from dmoe.weights.run import Run

    words = list(arguments or [])
    if output is None and not dry_run:
        raise ConfigError("give --output, the run folder to write")
    if dry_run and (resume or overwrite or track):
        raise ConfigError("--dry-run writes nothing, so --resume, --overwrite and --track have no meaning with it")
    if launcher == "ray" and dry_run:
        raise ConfigError("--launcher ray starts trainings; leave it out with --dry-run")
    if processes > 1 or launcher == "ray":
        _config(words, output, resume, overwrite, start)  # its errors come once
        make_trackers(track or [])
        options = [*words, "--data", data, "--timeout", str(timeout)]
        options += ["--output", str(output)] if output else []
        options += ["--from", str(start)] if start else []
        options += ["--baseline" if baseline else "--no-baseline"]
        options += [word for one in track or [] for word in ("--track", one)]
        asked = {"--resume": resume, "--overwrite": overwrite, "--dry-run": dry_run, "--json": as_json}
        options = ["train", *options, *(name for name, wanted in asked.items() if wanted)]
        code = (
            launch_with_ray(options, processes, output, timeout)
            if launcher == "ray" and output is not None
            else launch(options, processes)
        )
        if code:
            raise typer.Exit(code)
        return
    world = world_from_environment(timeout)
    if output is None or dry_run:
        with named_as_given():
            _dry_run(words, folder_of(data), start, world, as_json)
        return
    restarted = world.was_restarted and (output / "config.yaml").is_file()
    if restarted:
        resume, overwrite, start = True, False, None
    with world.together(), named_as_given():
        folder = folder_of(data)
        config = _config(words, output, resume, overwrite, start)
        keep_freed_memory()
        earlier = Run.open(start) if start else None
        watcher = TerminalWatcher(stderr)
        if restarted and world.gather((output / "metrics.json").is_file())[0]:
            run = Run.open(output)  # what failed came after the end
        else:
            run = train(
                config, folder, output,
                resume=resume, overwrite=overwrite, start=earlier, watcher=watcher, world=world,
                callbacks=make_trackers(track or []) if world.is_first else (),
                on_evaluation=CorrelationWatch(folder) if track else None,
            )  # fmt: skip
    world.end()
    if not world.is_first:
        return
    if earlier:
        known = run.environment["started_from"]
        stderr.print(f"{known['kept']} of {known['tokens']} tokens were known to {show_path(earlier.path)}")
        for finding in known["far_above"]:
            warn(
                f"--from {show_path(earlier.path)}: "
                + Finding(**finding).text(
                    "values of the training rows were never seen by that run",
                    "its own held-out rows",
                    "what it learnt of the field does not help these rows",
                )
            )
    metrics = read_json(run.path / "metrics.json")
    beside = stand_beside(run, folder, memory_gb=config.training.memory_gb, tell=stderr.print) if baseline else None
    faults = run_faults(run.path)
    if as_json:
        print_json({"run": str(run.path), **metrics, "baseline": beside, "faults": faults})
        return
    for split in ("valid", "test"):
        if split in metrics:
            found = metrics[split]
            floor = found["cec_noise_floor"]
            cec = "" if floor is None else f"  {cec_text(found['cec'], floor)}"
            if "tasks" not in found:
                typer.echo(f"{split:5} AUC {found['auc']:.4f}  logloss {found['logloss']:.4f}{cec}")
                continue
            for name, task in found["tasks"].items():
                typer.echo(f"{split:5} {name}: AUC {task['auc']:.4f}  logloss {task['logloss']:.4f}")
            if cec:
                typer.echo(f"{split:5}{cec}")
    for line in linear_lines(run.path):
        typer.echo(line)
    for line in against(beside) if beside else []:
        typer.echo(line)
    for line in faults:
        stderr.print(f"warning: {line}")
    warnings = dead_expert_lines(run.config.model, run.schema, metrics["valid"]["dead_columns"] or [])
    for line in [*warnings, *fall_lines(read_json_lines(run.path / "metrics.jsonl"))]:
        stderr.print(line)
    typer.echo(f"run: {show_path(run.path)} (best epoch {metrics['best_epoch']})")


def _dry_run(words: list[str], data: Path, start: Path | None, world: "World", as_json: bool) -> None:
    from dmoe.cli.forecast import lines
    from dmoe.machine.allocator import keep_freed_memory
    from dmoe.training.dry_run import dry_run
    from dmoe.weights.run import Run

    with world.together():
        config = _config(words, None, False, False, start)
        keep_freed_memory()
        if world.is_first:
            stderr.print("a few steps are taken to see what they take; nothing is written")
        found = dry_run(config, data, start=Run.open(start) if start else None, world=world)
    world.end()
    if not world.is_first:
        return
    if as_json:
        print_json(found.values())
    else:
        for line in lines(found):
            typer.echo(line)
    if not found.memory.fits:
        raise typer.Exit(1)


def _config(words: list[str], output: Path | None, resume: bool, overwrite: bool, start: Path | None) -> "RunConfig":
    """What is to be trained, by the words of the command."""
    from dmoe.config.run import changed_config, load_config
    from dmoe.nn.experts.options import check_experts
    from dmoe.weights.run import Run

    words = list(words)
    source = words.pop(0) if words and "=" not in words[0] else None
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if resume and start is not None:
        raise ConfigError("--resume and --from exclude each other; a resumed run keeps what it started from")
    if resume and source is None and not words and output and (output / "config.yaml").is_file():
        config = Run.open(output).config
    elif start is not None and source is None:
        config = changed_config(Run.open(start).config, words)
    else:
        config = load_config(source, words)
    check_experts(config.model.experts, source or "configuration")
    return config


def dead_expert_lines(model: "ModelConfig", schema: "Schema", dead_columns: list[int]) -> list[str]:
    """A warning for each expert of whose output units none varies over the validation split."""
    units = model.mixed_units
    return [
        f"warning: expert {index} ({expert['kind']}) is dead: each of its {units} outputs is the same for every row; "
        "try less optimiser.embedding_l2, or leave it out (docs/training.md, Dead experts)"
        for index, (expert, dead) in enumerate(zip(model.mixed(schema), dead_columns, strict=False))
        if dead == units
    ]


def linear_lines(run: Path) -> list[str]:
    """What the linear part of a run is, and what it brings on the last held-out split."""
    from dmoe.disk.files import read_json

    if not (run / "linear.json").is_file():
        return []
    found = read_json(run / "linear.json")
    return [
        f"linear part{' of ' if task else ''}{task}: {_linear_words(of)}"
        for task, of in found.get("tasks", {"": found}).items()
    ]


def _linear_words(found: dict[str, Any]) -> str:
    if not found["used"]:
        return "none, a regression on rates of lists of values is no sum over values"
    name, one = list(found["splits"].items())[-1]
    return (
        f"{found['encoding']} logistic regression, {found['share']:.0%} of the logit; {name} AUC "
        f"{one['mixture']['auc']:.4f} without it, {one['linear']['auc']:.4f} by itself"
    )


def fall_lines(evaluations: list[dict[str, Any]]) -> list[str]:
    """A warning if no evaluation after the first epoch is as good on the validation split as the best one in it."""
    first = [line["valid"]["auc"] for line in evaluations if line["epoch"] == 1]
    later = [line["valid"]["auc"] for line in evaluations if line["epoch"] > 1]
    if not first or not later or max(later) >= max(first):
        return []
    return [
        f"warning: valid AUC fell after the first epoch, from {max(first):.4f} to {max(later):.4f}: rows seen again "
        "are learnt by heart. The best weights are kept; training.epochs=1 would do (docs/training.md, One epoch)"
    ]
