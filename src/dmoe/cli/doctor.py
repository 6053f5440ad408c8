"""`dmoe doctor`."""

import importlib
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dmoe.cli.common import JsonOption, print_json, stderr

if TYPE_CHECKING:
    from dmoe.machine.packages import Package

HELP = """Say what of dmoe works on this machine, and what it has for training.

Versions, processors, memory and its limits, bfloat16 and AVX-512, CUDA devices, Java, and for each extra what it is for
and how to install it. A small model is trained for a step, a log encoded and read. Exit code 0 if all that
works, else 1.

\b
Examples:
  dmoe doctor
  dmoe doctor --json
"""

_GIB = 1 << 30


def command(as_json: JsonOption = False) -> None:
    from dmoe.machine import facts, packages

    core = packages.core_packages()
    broken = [_lacking(one) for one in core if not one.fits]
    with stderr.status("trying"):
        broken += [f"{what}: {why}" for what, why in ((what, _fault(work)) for what, work in _TRIALS.items()) if why]
    there = any(one.name == "torch" and one.found for one in core)
    values: dict[str, Any] = {
        "works": not broken,
        "faults": broken,
        "dmoe": packages.installed("dmoe"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": {**asdict(found := facts.processor()), "bfloat16": found.bfloat16},
        "memory": asdict(facts.memory()),
        "cuda": facts.cuda() if there else None,
        "java": facts.java(),
        "packages": {one.name: one.found for one in core},
        "extras": {
            one.name: {
                "for": one.purpose,
                "complete": one.complete,
                "packages": {package.name: package.found for package in one.packages},
                "missing": [_lacking(package) for package in one.packages if not package.fits],
                "install": one.install,
            }
            for one in packages.extras()
        },
    }
    if as_json:
        print_json(values)
    else:
        for line in _lines(values):
            typer.echo(line)
    if broken:
        raise typer.Exit(1)


def _lacking(package: "Package") -> str:
    wanted = f"{package.name}{package.wanted}"
    return (
        f"{wanted} is not installed" if package.found is None else f"{wanted} is needed, {package.found} is installed"
    )


def _lines(values: dict[str, Any]) -> list[str]:
    processor, memory, cuda = values["processor"], values["memory"], values["cuda"]
    bfloat16 = "in hardware" if processor["bfloat16"] else "emulated, slower than float32"
    instructions = ", ".join(processor["instructions"]) or "none of AVX2, AVX-512, bfloat16"
    own = values["dmoe"] or "not installed, run from its sources"
    rows = {
        "dmoe": f"{own}, Python {values['python']}, {values['system']}",
        "core": "works" if values["works"] else "does not work",
        "processors": f"{processor['usable']} usable of {processor['present']} ({processor['name']})",
        "instructions": f"{instructions}; torch uses {processor['kernels'] or '-'}; bfloat16 is {bfloat16}",
        "memory": f"{_gib(memory['limit'])} usable of {_gib(memory['present'])}, {_gib(memory['free'])} free now",
        "disk": f"{_gib(memory['disk_free'])} free in {memory['disk']}, where temporary files go",
        "CUDA": _cuda(cuda),
        "Java": values["java"] or "not found (only Spark needs it)",
    }
    lines = [f"{name:13} {text}" for name, text in rows.items()]
    lines += [f"  {fault}" for fault in values["faults"]]
    lines.append(f"{'packages':13} " + ", ".join(f"{name} {found}" for name, found in values["packages"].items()))
    lines.append("extras")
    for name, extra in values["extras"].items():
        state = "installed" if extra["complete"] else f"{extra['install']} ({'; '.join(extra['missing'])})"
        lines.append(f"  {name:11} {extra['for']}: {state}")
    return lines


def _gib(count: int | None) -> str:
    return "unknown" if count is None else f"{count / _GIB:.1f} GiB"


def _cuda(cuda: dict[str, Any] | None) -> str:
    if cuda is None:
        return "unknown without torch"
    if not cuda["devices"]:
        built = cuda["built_for"]
        return "torch is built without it" if built is None else f"torch is built for {built}, and sees no device"
    return "; ".join(
        f"{one['name']}, {_gib(one['memory'])}, capability {one['capability']}"
        f"{'' if one['bfloat16'] else ', no bfloat16'}"
        for one in cuda["devices"]
    )


def _fault(work: Callable[[], None]) -> str | None:
    """Why something does not work, whatever it is; None if it does."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _try_a_step() -> None:
    """The model, its loss and the kernels of the tables."""
    import torch

    from dmoe.config.run import DecorrelationConfig, OptimiserConfig
    from dmoe.nn.build import build_terms
    from dmoe.nn.experts import CrossNet
    from dmoe.nn.model import DMoE
    from dmoe.nn.objective import Objective
    from dmoe.shards.batch import Batch
    from dmoe.training.engine import Engine
    from dmoe.training.step_values import StepLoss

    torch_state = torch.random.get_rng_state()
    model = DMoE([20, 5], embedding_dim=4, experts=[CrossNet(2, 4), CrossNet(2, 4)], expert_units=8, tower_units=[8])
    terms = build_terms([DecorrelationConfig()], model, process_group=None)
    engine = Engine(model, Objective(terms), OptimiserConfig(), clip_norm=1.0, device=torch.device("cpu"))
    ids_BC = torch.stack([torch.arange(16) % size for size in (20, 5)], dim=1)
    batch = Batch(ids_BC, torch.empty(16, 0), (torch.arange(16) % 2).float().unsqueeze(1))
    for step in range(2):
        StepLoss.read([engine.step(batch, step)])[0].check(model.embedding)
    engine.flush()
    torch.random.set_rng_state(torch_state)


def _try_a_log() -> None:
    """DuckDB, pyarrow, and a disk to write to."""
    from dmoe.config.data import DataConfig
    from dmoe.prepare.prepare import prepare
    from dmoe.shards.reader import read_once
    from dmoe.validation import validate

    values = {"label": "click", "split": {"kind": "ordered"}, "fields": {"categorical": ["site"]}}
    with tempfile.TemporaryDirectory(prefix="dmoe-") as place:
        log = Path(place) / "log.csv"
        log.write_text("click,site\n" + "".join(f"{row % 2},s{row % 7}\n" for row in range(100)))
        prepare(validate(DataConfig, values, "trial"), [str(log)], Path(place) / "data")
        rows = sum(len(batch.labels_BT) for batch in read_once(Path(place) / "data", "train", batch_size=64).batches())
    if rows != 80:
        raise RuntimeError(f"{rows} of 80 rows were read")


def _try_figures() -> None:
    """scikit-learn, scipy and matplotlib can be imported."""
    for module in ("sklearn.metrics", "scipy.stats", "matplotlib.figure"):
        importlib.import_module(module)


_TRIALS = {"training a model": _try_a_step, "preparing a log": _try_a_log, "figures and tests": _try_figures}
