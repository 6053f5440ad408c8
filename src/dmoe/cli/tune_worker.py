"""A worker of `dmoe tune --jobs`; what it is to do comes on standard input.

python -m dmoe.cli.tune_worker
"""

import sys
from pathlib import Path

from dmoe.cli.common import stderr
from dmoe.config.run import RunConfig
from dmoe.errors import DmoeError
from dmoe.machine.allocator import keep_freed_memory
from dmoe.tracking.registry import make_trackers
from dmoe.tuning.folder import StudyFolder
from dmoe.tuning.space import Space
from dmoe.tuning.study import Study
from dmoe.tuning.worker import Order, work
from dmoe.validation import validate


def run(order: Order) -> None:
    """Works by an order, in this process. Raises: as `work`."""
    keep_freed_memory()
    folder = StudyFolder.open(Path(order.output))
    asked = folder.asked
    base = validate(RunConfig, asked.config, str(folder.path / "study.json"))
    with Study(folder, Space.of_facts("these parameters", asked.space), order.storage) as study:
        work(
            study, base, Path(order.data), order.limits,
            tell=lambda text: stderr.print(text, markup=False),
            callbacks=lambda _: make_trackers(order.trackers),
        )  # fmt: skip


def main() -> None:
    try:
        run(Order.read(sys.stdin.read()))
    except DmoeError as error:
        sys.stderr.write(f"dmoe: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
