"""Every error that a user meets, under one base class.

The command line turns these into one line on stderr and an exit code; nothing else is caught there.
"""

import difflib
from collections.abc import Iterable


class DmoeError(Exception):
    """Base of all errors raised on purpose. Exit code 1: failed while running."""

    exit_code = 1


class UserError(DmoeError):
    """The user's usage, configuration or data is at fault. Exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration file, override or option is wrong."""


class DataError(UserError):
    """An input file, data set folder, run folder or raw row is wrong."""


class NonFiniteLossError(DmoeError):
    """The loss, or its gradient, became NaN or infinite; the message names the batch."""


class Interrupted(DmoeError):
    """The user stopped the work; what is done is kept, and the same command continues it. Exit code 130."""

    exit_code = 130


class MissingExtraError(UserError):
    """An optional dependency is absent; the message names the extra that installs it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known name, or the list of known names when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""
