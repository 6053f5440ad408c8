"""The choice of an engine by name. Each is imported when it is asked for."""

from contextlib import AbstractContextManager

from dmoe.data.engine_base import Engine, EngineOptions


def open_engine(options: EngineOptions) -> AbstractContextManager[Engine]:
    """Raises: MissingExtraError if the engine is not installed."""
    if options.name == "duckdb":
        from dmoe.data.engine_duckdb import duckdb_engine

        return duckdb_engine(options)
    from dmoe.data.engine_frames import frames_engine

    return frames_engine(options)
