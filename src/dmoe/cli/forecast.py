"""What `dmoe train --dry-run` found, in lines."""

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmoe.training.dry_run import Forecast, Memory

_GIB = 1 << 30


def lines(found: "Forecast") -> list[str]:
    """The forecast as a person reads it."""
    training = found.config.training
    parts = ", ".join(f"{name} {count:,}" for name, count in found.parameters.items())
    held = ", ".join(f"{name} {rows:,}" for name, rows in found.held_out.items())
    rows = {
        "parameters": f"{sum(found.parameters.values()):,}: {parts}",
        "data": f"{found.rows:,} rows of train, {found.batches:,} batches of {training.batch_size:,} an epoch; {held}",
        "memory": _memory(found.memory),
    }
    seconds = found.seconds
    if seconds is not None and found.epoch_seconds is not None:
        speed = min(training.batch_size, found.rows) / seconds.step
        scored = f"held-out rows are scored at {1 / seconds.scored_row:,.0f}/s"
        evaluations = f"{training.evaluations_per_epoch} evaluations" if training.evaluations_per_epoch > 1 else "one"
        rows["step"] = f"{seconds.step * 1000:.1f} ms, {speed:,.0f} rows/s; {scored}"
        rows["epoch"] = f"{_time(found.epoch_seconds)}, with {evaluations}"
        one, most = found.total_seconds(1), found.total_seconds(training.epochs)
        assert one is not None
        assert most is not None
        rows["in all"] = f"{_time(one)} for one epoch" + (
            f", {_time(most)} for {training.epochs}, if valid gains that long" if training.epochs > 1 else ""
        )
        left_out = [
            *(["the final evaluation"] if found.end_seconds is None else []),
            *(["the linear part"] if found.config.model.linear else []),
            "writing",
            "the regression that stands beside",
        ]
        rows["not counted"] = ", ".join(left_out)
    return [f"{name:12} {text}" for name, text in rows.items()]


def _memory(memory: "Memory") -> str:
    counted = (
        f"data {_gib(memory.data)}, tables and their optimiser {_gib(memory.tables)}, network {_gib(memory.network)}"
    )
    limit = "" if memory.limit is None else f" of {_gib(memory.limit)}"
    text = f"{'unknown' if memory.process is None else _gib(memory.process)}{limit} ({counted})"
    if memory.device is not None:
        text += f"; of the device {_gib(memory.device)} of {_gib(memory.device_limit or 0)}"
    if memory.fits:
        return text
    return (
        f"{text}: does not fit; a smaller model.embedding_dim, model.embedding_storage=bfloat16, a larger min_count "
        "when preparing or a smaller training.memory_gb help"
    )


def _gib(count: int) -> str:
    return f"{count / _GIB:.2f} GiB"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))
