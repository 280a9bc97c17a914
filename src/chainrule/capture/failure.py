"""An exception on the tape: what is known of its cause, and what becomes an index when the tape is read."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from chainrule.capture.step_log import StepLog
from chainrule.graph.graph import Carried, Failure


@dataclass(slots=True)
class RawFailure:
    """One exception. Where backward came to a node that it could not pass, `operation` is the one that made it.

    `tensor` is what the node needed, as the tape has it, and its version is that at position `at`.
    """

    facts: Failure
    identity: int  # of the exception, which is not held: its traceback holds the frames of the user
    operation: int | None = None
    tensor: Tensor | None = None
    at: int = 0
    module: nn.Module | None = None


@dataclass(slots=True)
class Failures:
    """The exceptions of a step, and what is known of the steps before it."""

    carried: Carried | None = None
    all: list[RawFailure] = field(default_factory=list)
    log: StepLog = field(default_factory=StepLog)
