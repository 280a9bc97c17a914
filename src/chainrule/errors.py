"""The family of errors that chainrule raises on purpose.

    ChainruleError
     ├── RecordingError        a recording cannot be made or read (nested record, a script that never trains, ...)
     │    ├── MissingError     the recording is fine, but does not hold what was asked for (a name, an index, a step)
     │    ├── NoLabError       the step cannot run again on other numbers (a hook changed a gradient, ...)
     │    └── ReplayError      what was not kept cannot be recomputed (a parameter was overwritten, ...)
     ├── RequestError          an option has a value that means nothing (a share of the nodes above 1, ...)
     ├── RuleError             a rule broke its contract (number of gradients, shape)
     ├── StorageError          a file cannot be written or read
     ├── ThresholdError        a threshold of findings is no number that could be one
     ├── DependenceError       what was asserted to be independent is not; also an AssertionError
     └── SilenceError          a kind of finding was to be silenced that does not exist

    ChainruleWarning          what a watch, or a recording that fails, says while a training runs on

Each message says where, what was met, and what to do next. A mathematical disagreement is a result, never an error.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress


class ChainruleError(Exception):
    """The base of every error that is raised on purpose."""


class RecordingError(ChainruleError):
    """A recording cannot be made, or was made of something that has no training step in it."""


class MissingError(RecordingError, LookupError):
    """The recording does not hold what was asked for; the message names near matches."""


class ReplayError(RecordingError):
    """What was not kept cannot be recomputed, or comes out otherwise than it was; the message says where and why."""


class NoLabError(RecordingError):
    """A step that cannot run again on other numbers, so that it has no lab; the message says why."""


class RequestError(ChainruleError, ValueError):
    """An option has a value that means nothing; the message says what it may be."""


class RuleError(ChainruleError):
    """A rule broke its contract: it returned the wrong number of gradients, or one of the wrong shape."""


class StorageError(ChainruleError):
    """A file cannot be written, or what was read is not a recording."""


class ThresholdError(ChainruleError, ValueError):
    """A threshold was given that is no finite number of 0 or more."""


class SilenceError(ChainruleError, ValueError):
    """A finding was to be left out by an id that no kind of finding has; the message names near matches."""


class DependenceError(ChainruleError, AssertionError):
    """Something depends on what it was asserted not to; the message names the positions and the path."""


class ChainruleWarning(UserWarning):
    """What we have to say that must not stop the training."""


def warn(sentence: str) -> None:
    """Warn, on stderr if warnings are errors or cannot be given: a warning must not end the training."""
    try:
        warnings.warn(f"chainrule: {sentence}", ChainruleWarning, stacklevel=2)
    except Exception:
        with suppress(Exception):  # there may be no stderr, or no room on the stack
            print(f"chainrule: {sentence}", file=sys.stderr)


def in_one_line(error: BaseException) -> str:
    """An exception in one line: its type, and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0] if lines else ''}"


def brief(error: BaseException) -> str:
    """An exception in part of a line."""
    return in_one_line(error)[:200]
