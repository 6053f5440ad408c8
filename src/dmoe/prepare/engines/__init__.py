"""The choice of an engine by name. Each is imported when it is asked for."""

from contextlib import AbstractContextManager

from dmoe.prepare.engines.base import CountingEngine, EngineOptions


def open_engine(options: EngineOptions) -> AbstractContextManager[CountingEngine]:
    """Raises: MissingExtraError if the engine is not installed."""
    if options.name == "duckdb":
        from dmoe.prepare.engines.duckdb_engine import duckdb_engine

        return duckdb_engine(options)
    from dmoe.prepare.engines.frames_engines import frames_engine

    return frames_engine(options)
