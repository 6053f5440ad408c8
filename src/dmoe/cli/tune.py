"""`dmoe tune`."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dmoe.cli import completion
from dmoe.cli.common import JsonOption, print_json, show_path, stderr

HELP = """Search the configuration that is best on the validation split.

CONFIG is a YAML file or the name of a preset, OVERRIDES change single keys of it; --space says which keys are searched
and between what. A preset's own space is taken where none is named (docs/tuning.md). The first trial is CONFIG itself.

After a kill the same command continues, and goes on with the trial that was cut off. The same command may be started
several times at once; --jobs does so in one call. Trials see train and valid; at the end the best run is kept at
OUTPUT/best and measured on test, once. OUTPUT/report.html shows it all. Needs pip install 'dmoe[tune]'.

\b
Examples:
  dmoe tune d-moe --data DATA --trials 30
  dmoe tune run.yaml --space space.yaml --data DATA --trials 50 --storage study.db --jobs 4
  dmoe tune single --data DATA --output studies/single --time 2 training.epochs=2
"""


def command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG [OVERRIDES]...",
            help="key.path=value changes one key.",
            autocompletion=completion.configurations,
        ),
    ],
    data: Annotated[Path, typer.Option(help="Data set folder made by `dmoe prepare`.")],
    space: Annotated[
        str | None,
        typer.Option(
            help="A YAML file, or the name of a space that ships with dmoe. Default: the preset's.",
            autocompletion=completion.spaces,
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials of the study in all. Default: 50, or what time and budget allow.")
    ] = None,
    time: Annotated[
        float | None, typer.Option(min=0.0, help="Hours of this call: no trial begins that would end after them.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=0.0, help="Core-hours of all trials of the study; see --time.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Optuna's storage: an SQLite file, or a URL of SQLAlchemy. Default: OUTPUT with .db."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the study. Default: the storage's name without .db, or study."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study in the storage. Default: the folder's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn; trainings keep training.seed.")] = 0,
    sampler: Annotated[
        Literal["tpe", "random"],
        typer.Option(help="Tree-structured Parzen estimator, or blind draws."),
    ] = "tpe",
    pruning: Annotated[
        bool, typer.Option("--pruning/--no-pruning", help="Give up a trial that is below the median at an evaluation.")
    ] = True,
    jobs: Annotated[int, typer.Option(min=1, help="Trials to run at once, each in a process of its own.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of a trial. Default: torch's, or processors / jobs; figures depend on it."),
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.0, help="GiB that trials may take together. Default: 80% of what there is.")
    ] = None,
    test: Annotated[
        bool, typer.Option("--test/--no-test", help="Measure the best run on test, which ends the study.")
    ] = True,
    reopen: Annotated[
        bool, typer.Option("--reopen", help="Add trials though test was read; a new best run reads it again.")
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(
            help="Trackers of each trial's training, as of `dmoe train`; may be repeated.",
            autocompletion=completion.trackers,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    import torch

    from dmoe.cli.tune_worker import run
    from dmoe.config.run import load_config, presets
    from dmoe.disk.files import read_json
    from dmoe.errors import ConfigError
    from dmoe.machine.limits import memory_bytes, usable_threads
    from dmoe.nn.experts.options import check_experts
    from dmoe.report.tuning import write_study_report
    from dmoe.tracking.registry import make_trackers
    from dmoe.tuning.finish import keep_best, look_at_test
    from dmoe.tuning.space import load_space
    from dmoe.tuning.start import start
    from dmoe.tuning.study import Study
    from dmoe.tuning.worker import Limits, Order, work_together

    source = arguments[0]
    if "=" in source:
        raise ConfigError(f"{source}: name a configuration or a preset before what is changed of it")
    base = load_config(source, arguments[1:])
    check_experts(base.model.experts, source)
    if space is None and source not in presets():
        raise ConfigError("--space: say which keys are searched; a preset has a space of its own, a file has none")
    chosen = load_space(space or source, base)
    make_trackers(track or [])  # their errors come first
    output, storage = _places(output, storage)

    def tell(text: str) -> None:
        stderr.print(text, markup=False)

    folder = start(
        base, chosen,
        data=data, output=output, storage=storage, name=name or output.name,
        seed=seed, sampler=sampler, pruning=pruning, tell=tell,
    )  # fmt: skip
    if trials is None and time is None and budget is None:
        trials = 50
    available = memory_bytes()
    total = int(memory * 2**30) if memory is not None else int(0.8 * available) if available is not None else None
    limits = Limits(
        trials=trials,
        seconds=None if time is None else time * 3600,
        core_seconds=None if budget is None else budget * 3600,
        memory=None if total is None else total // jobs,
        threads=threads or (torch.get_num_threads() if jobs == 1 else max(usable_threads() // jobs, 1)),
    )
    order = Order(str(output), storage, str(data), limits, tuple(track or ()))
    best = None
    with Study(folder, chosen, storage) as study:
        if folder.readings() and not reopen and (trials is None or study.counted() < trials):
            raise ConfigError(
                f"{output}: its test split was read after {folder.readings()[-1].trials} trials, which ended the study;"
                " begin another one, or add trials with --reopen"
            )
        if jobs > 1:
            work_together(jobs, [sys.executable, "-m", "dmoe.cli.tune_worker"], order, tell)
        else:
            run(order)
        with folder.lock():
            others = study.running()
            if not others:
                best = keep_best(folder)
                if test:
                    look_at_test(folder, data, tell)
            write_study_report(folder.path, output / "report.html")
    if others:
        tell(f"{others} trials are still at work in other processes; the last of them ends the study")
    final: dict[str, Any] = read_json(folder.best / "metrics.json") if best is not None else {}
    if as_json:
        found = {"study": str(output), "trials": len(folder.records()), "report": str(output / "report.html")}
        if best is not None:
            found |= {"best": best.model_dump(mode="json"), "run": str(folder.best), **final}
        print_json(found)
        return
    if best is not None:
        typer.echo(f"best of {len(folder.records())} trials: trial {best.number}")
        for parameter, value in best.params.items():
            typer.echo(f"  {parameter}: {value}")
        for split in ("valid", "test"):
            if split in final:
                typer.echo(f"{split:5} AUC {final[split]['auc']:.4f}  logloss {final[split]['logloss']:.4f}")
        typer.echo(f"run: {show_path(folder.best)}")
        if missing := sum(one.state != "complete" for one in folder.records()):
            tell(f"{missing} trials were given up; the report says why")
    typer.echo(f"report: {show_path(output / 'report.html')}")


def _places(output: Path | None, storage: str | None) -> tuple[Path, str]:
    """The study folder and its storage, each named after the other where only one is given."""
    from dmoe.errors import ConfigError

    if storage is not None and "://" in storage and output is None:
        raise ConfigError("--output: name the folder of the study; a storage that is no file names none")
    if output is None:
        output = Path(storage).with_suffix("") if storage is not None else Path("study")
    if storage is None:
        storage = str(output.with_name(f"{output.name}.db"))
    if "://" not in storage and Path(storage).resolve() == output.resolve():
        raise ConfigError(f"--storage {storage}: is the folder of the study too; give the file a name of its own")
    return output, storage
