"""What the tape holds: raw records with the user's own objects, which `lowering` turns into facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from chainrule.capture.source import Site
from chainrule.capture.step_log import StepLog
from chainrule.graph.graph import Carried, Failure
from chainrule.graph.statistics import Statistics
from chainrule.rules.facts import Index


@dataclass(slots=True)
class RawCall:
    """One torch function that the user's code called, and the range of operations that ran for it."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any
    site: Site | None
    module: int | None
    first: int
    last: int
    custom: int | None = None
    error: str | None = None


@dataclass(slots=True)
class RawModule:
    """One run of a module's forward, inside the run `parent`."""

    module: torch.nn.Module
    parent: int | None
    site: Site | None
    first: int
    training: bool
    output: Any = None
    last: int | None = None


@dataclass(slots=True)
class RawFunction:
    """One `autograd.Function.apply`, with the operations that ran in its forward."""

    cls: type
    arguments: tuple[Any, ...]
    site: Site | None
    module: int | None
    first: int
    last: int


@dataclass(slots=True)
class RawNode:
    """An autograd node, with the operation and the tensors that made it. Edges are known once a pass reaches it."""

    node: Any
    operation: int | None
    outputs: dict[int, Tensor]
    edges: tuple[tuple[Any, int], ...] = ()
    view_from: int | None = None  # made for a view by a write to its memory, from this position on
    remade: Tensor | None = None  # the view of this node, where autograd ran an operation to make it
    leaves: tuple[tuple[int, Tensor], ...] = ()  # (position, leaf) of gradients that must not be held in this pass
    hooked: bool = False
    passes_through: bool = False  # what arrives here goes to a leaf, as another view of the same memory


Part = tuple[Tensor, Index | None]
"""A view, and where in it something is written to (None: to all of it)."""

Version = tuple[Tensor, int]
"""A tensor at the time when so many copies of it had been made (`Tape.version`)."""


@dataclass(slots=True)
class RawBackward:
    """One backward call: its pass number, its position in the forward operations, and `.grad` before and after."""

    function: str
    site: Site | None
    position: int
    roots: tuple[Tensor, ...]
    accumulates: bool  # into `.grad`; `torch.autograd.grad` does not
    before: dict[int, Tensor]
    straight: dict[int, tuple[tuple[int, Tensor], ...]]  # node -> (position, leaf) of gradients that were not held
    last: int | None = None  # its position at the end, where it was differentiable (`create_graph`)
    task: int | None = None  # autograd's number of the pass
    after: dict[int, Version | None] = field(default_factory=dict)
    passed: dict[int, Version | None] = field(default_factory=dict)  # of leaves that a pass inside added to: the first
    given: list[tuple[Tensor, Version]] = field(default_factory=list)  # what `autograd.grad` returned, and of what
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Overwritten:
    """What a tensor held before a write: the tape had `position` operations and `executions` of nodes then."""

    position: int
    executions: int
    data: Tensor


@dataclass(slots=True)
class RawUpdate:
    """One `optimizer.step()`: parameters, gradients, options and state before; parameters and state after."""

    optimizer: Optimizer
    position: int
    site: Site | None
    groups: list[tuple[dict[str, Any], list[Tensor]]]
    before: list[Tensor]
    gradients: list[Version | None]
    states: list[dict[str, Any]]
    after: list[Version] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)  # of the parameters before, where they are not all kept
    moved: list[Statistics] = field(default_factory=list)  # what the step added to them
    hooks: tuple[str, ...] = ()  # of the user's, on this optimizer's step

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of all groups."""
        return [parameter for _, members in self.groups for parameter in members]


@dataclass(slots=True)
class UnreadRun:
    """Writes in a row to one memory that were left out, at one position of the tape."""

    position: int
    tensor: Tensor  # in that memory
    copies: dict[int, int]  # id of a tensor in it -> how many copies are of what it was before
    site: Site | None
    count: int = 1


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
    module: torch.nn.Module | None = None


@dataclass(slots=True)
class Failures:
    """The exceptions of a step, and what is known of the steps before it."""

    carried: Carried | None = None
    all: list[RawFailure] = field(default_factory=list)
    log: StepLog = field(default_factory=StepLog)
