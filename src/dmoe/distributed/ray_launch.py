"""Ray Train as a launcher of the same training: it places the processes in a cluster, and starts them again."""

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from dmoe.distributed.world import RESTARTS
from dmoe.errors import DmoeError, MissingExtraError

# How often processes that were lost are started anew.
_RESTARTS = 3


def launch_with_ray(arguments: Sequence[str], processes: int, output: Path, timeout_s: float) -> int:
    """Runs `dmoe` with `arguments` in so many workers of Ray Train; the exit code that they end with.

    Where a worker is lost all start anew, and go on from the last checkpoint at `output`, which all of them must see.
    Workers run on the cluster that RAY_ADDRESS names, else on this machine.

    Raises: MissingExtraError without Ray; DmoeError if workers are lost again and again.
    """
    try:
        ray, train, torch_of_ray = (import_module(name) for name in ("ray", "ray.train", "ray.train.torch"))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "ray":
            raise
        raise MissingExtraError("ray is not installed; pip install 'dmoe[ray]'") from None
    ray.init(ignore_reinit_error=True)
    kept = output.absolute().with_name(f"{output.name}.ray")
    shutil.rmtree(kept, ignore_errors=True)
    try:
        for attempt in range(_RESTARTS + 1):
            codes = kept / f"codes-{attempt}"
            codes.mkdir(parents=True)
            trainer = torch_of_ray.TorchTrainer(
                _work,
                train_loop_config={
                    "arguments": list(arguments),
                    "folder": str(Path.cwd()),
                    "codes": str(codes),
                    "attempt": attempt,
                },
                scaling_config=train.ScalingConfig(num_workers=processes),
                run_config=train.RunConfig(name=f"dmoe-{os.getpid()}-{attempt}", storage_path=str(kept)),
                torch_config=torch_of_ray.TorchConfig(backend="gloo", timeout_s=int(timeout_s)),
            )
            try:
                trainer.fit()
            except KeyboardInterrupt:
                raise
            except Exception as error:  # of Ray, which has several kinds for a worker that is gone
                reason = " ".join(str(error).split())[:200]
                if attempt == _RESTARTS:
                    raise DmoeError(f"Ray Train: {reason}; --resume continues from the last checkpoint") from None
                sys.stderr.write(f"dmoe: Ray Train lost a process ({reason}); all start anew\n")
            else:
                # What workers report to Ray it forgets where they report no checkpoint.
                found = [int(path.read_text()) for path in codes.iterdir()]
                if len(found) != processes:
                    raise DmoeError(f"{kept}: {len(found)} of {processes} workers wrote here; do all of them see it?")
                return max(found)
    finally:
        shutil.rmtree(kept, ignore_errors=True)
        ray.shutdown()
    raise AssertionError("a last attempt ends or raises")


def _work(asked: dict[str, Any]) -> None:
    if Path(asked["folder"]).is_dir():  # Ray has its own for each worker
        os.chdir(asked["folder"])
    # As torchrun tells it: what began is gone on with, what was complete is left as it is.
    os.environ[RESTARTS] = str(asked["attempt"])
    code = 0
    try:
        import_module("dmoe.cli.main").main(asked["arguments"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    with suppress(OSError):  # a folder that is not shared is told by who started this
        (Path(asked["codes"]) / os.environ["RANK"]).write_text(str(code))
