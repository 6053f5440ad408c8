"""Starts several processes of one training on this machine, as torchrun does on several."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

from dmoe.errors import DmoeError
from dmoe.machine.limits import usable_threads

# Processes that were asked to stop save their state first.
_STOP_WITHIN_S = 600


def ends_at_once(work: Callable[[], object]) -> None:
    """Ends this process with `work`, as one of several; alone it only does the work.

    Threads of torch.distributed outlive its groups, and nothing can wait for them: one that lets go of a tensor while
    the interpreter shuts down would abort the process, which then had failed although it had done all.
    """
    if "RANK" not in os.environ:
        work()
        return
    code: int | str | None = 0
    try:
        work()
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def launch(arguments: Sequence[str], processes: int) -> int:
    """Runs `python -m dmoe` with `arguments` in so many processes; the exit code of the one that failed first, or 0.

    What they have to say they say themselves.

    Raises: DmoeError if all of them were killed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # connections that end are explained by the processes
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_threads() // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"dmoe-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        local_addr="localhost",
        logs_specs=DefaultLogsSpecs(),
        shutdown_timeout=_STOP_WITHIN_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "dmoe", *arguments)
    except SignalException:
        return 130
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        said = [code for code in codes.values() if code > 0]
        if not said and len(codes) == processes:
            signals = ", ".join(f"rank {rank} by signal {-code}" for rank, code in sorted(codes.items()))
            raise DmoeError(f"every process was killed ({signals}); --resume continues") from None
        return said[0] if said else 1
    return 0
