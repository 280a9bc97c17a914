"""The family of errors that chainrule raises on purpose.

    ChainruleError
     ├── RecordingError        a recording cannot be made or read (nested record, a script that never trains, ...)
     │    └── MissingError     the recording is fine, but does not hold what was asked for (a name, an index, a step)
     ├── RuleError             a rule broke its contract (number of gradients, shape)
     └── StorageError          a file cannot be written or read

    ChainruleWarning          what a watch says while a training runs on

Each message says where, what was met, and what to do next. A mathematical disagreement is a result, never an error.
"""

from __future__ import annotations


class ChainruleError(Exception):
    """The base of every error that is raised on purpose."""


class RecordingError(ChainruleError):
    """A recording cannot be made, or was made of something that has no training step in it."""


class MissingError(RecordingError, LookupError):
    """The recording does not hold what was asked for; the message names near matches."""


class RuleError(ChainruleError):
    """A rule broke its contract: it returned the wrong number of gradients, or one of the wrong shape."""


class StorageError(ChainruleError):
    """A file cannot be written, or what was read is not a recording."""


class ChainruleWarning(UserWarning):
    """What a watch has to say that must not stop the training."""
