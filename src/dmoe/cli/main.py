"""`dmoe`: registers one command per module and turns errors into exit codes."""

import errno
import importlib
import os
import sys
import warnings
from importlib.metadata import version as installed_version

import typer

from dmoe.errors import DmoeError

# Command to module and one line of help: a module is imported only when its command runs, so that
# `dmoe --help` does not wait for torch.
COMMANDS = {
    "quickstart": "From a generated log through trained models to an HTML report.",
    "init": "Write a data.yaml and a run.yaml for a raw log, and print the next three commands.",
    "generate": "Write a planted click log whose Bayes-optimal AUC and logloss are known.",
    "prepare": "Turn raw logs into a data set folder: vocabularies and encoded Parquet shards.",
    "inspect": "Show what is in a raw log or data set, and suggest a data.yaml.",
    "drift": "One HTML page on how later rows differ from the first training rows.",
    "recipes": "List the data recipes that ship with dmoe.",
    "config": "Print a resolved run configuration.",
    "train": "Train a model and write a run folder.",
    "tune": "Search the configuration that is best on the validation split.",
    "baseline": "Fit a logistic regression or boosted trees on the same splits, to stand beside.",
    "evaluate": "AUC, logloss, calibration, correlation, gate and expert statistics of a run.",
    "compare": "Paired comparison of two runs on the same labelled rows.",
    "correlation": "Cross-expert correlation of a run: matrix, noise floor, dead units.",
    "predict": "Score raw rows with a trained run or an exported model.",
    "export": "Write a run as a model folder that scores raw rows, proven equal.",
    "serve": "Serve an exported model over HTTP.",
    "report": "One self-contained HTML page about one run or several.",
    "experiment": "Repeat the paper's tables and figures, several seeds each.",
    "doctor": "Say what of dmoe works on this machine, and what it has for training.",
    "experts": "List the experts and their options.",
}


def _not_chosen() -> None:
    """Stands in the list of commands for one that this call does not run."""


def _root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        typer.echo(installed_version("dmoe"))
        raise typer.Exit


def build_app(chosen: str | None) -> typer.Typer:
    """The application, with the module of the `chosen` command loaded and the others only listed."""
    app = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="De-correlated mixture-of-experts click-through-rate models (arXiv 2505.17925).",
    )
    app.callback(invoke_without_command=True)(_root)
    for name, summary in COMMANDS.items():
        if name == chosen:
            module = importlib.import_module(f"dmoe.cli.{name}")
            app.command(name, help=module.HELP)(module.command)
        else:
            app.command(name, help=summary)(_not_chosen)
    return app


def _in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings are for the user, who needs no place in the code."""
    if category.__module__.partition(".")[0] == "dmoe":
        return f"warning: {message}\n"
    return _format_warning(message, category, filename, lineno, line)


_format_warning = warnings.formatwarning


def _printable(text: str) -> str:
    """`text` without what moves the cursor or changes the terminal: names in it may be a stranger's."""
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


def _typed_so_far() -> list[str]:
    """The words after `dmoe` that a shell asks to complete: typer has bash name them so, and others otherwise."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return line.split()[1:]


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 1 failed while running, 2 usage or data, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    warnings.formatwarning = _in_one_line
    typed = _typed_so_far() if "_DMOE_COMPLETE" in os.environ else arguments
    chosen = next((word for word in typed if not word.startswith("-")), None)
    try:
        build_app(chosen)(args=arguments, prog_name="dmoe")
    except DmoeError as error:
        if getattr(error, "quiet", False):  # another process says it
            sys.exit(error.exit_code)
        sys.stderr.write(f"dmoe: {_printable(str(error))}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        sys.stderr.write(f"dmoe: cannot write: {error.strerror}{where}; free space or choose another place\n")
        sys.exit(1)
