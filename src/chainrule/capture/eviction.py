"""Evicts what is not kept in batches, some megabytes at a time.

After a large operation the processor's caches are full of its numbers, and Python code that runs then takes five times
as long, because it is fetched from memory again. So while the step runs the tape just takes what happens, as where all
is kept, and tensors live a little longer. Every few megabytes, and before anything is overwritten, `evict` goes over
what is new: it measures what is not kept, puts placeholders in its place, and matches it with its nodes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chainrule.capture import retention as limits
from chainrule.capture.node_matching import NodeMatcher
from chainrule.capture.retention import Retention
from chainrule.capture.tape import RawModule, Tape, Traits
from chainrule.graph.trees import tensors_in
from chainrule.graph.unobserved import unobserved

BATCH = 8 * 2**20  # bytes of results and gradients that may live longer than the step itself needs them


class Eviction:
    """Goes over a tape behind the recorder. `waiting` is how many bytes have come since it last did."""

    def __init__(self, tape: Tape, retention: Retention, matcher: NodeMatcher) -> None:
        self.waiting = 0
        self.left: list[tuple[RawModule, Any]] = []  # runs of modules that have ended, with what they gave
        self._tape = tape
        self._retention = retention
        self._matcher = matcher
        self._large = False  # whether something among what waits might not be kept
        self._chosen: set[int] = set()  # operations whose gradients are kept whatever the rest is
        self._seen = [0, 0, 0, 0]  # operations, calls, functions, executions of nodes

    def note(self, out: Any) -> None:
        """Something new that lives until it is evicted."""
        if isinstance(out, Tensor):
            size = out.nbytes if out.layout is torch.strided else limits.SMALL + 1
            self.waiting += size
            if size > limits.SMALL:
                self._large = True
        elif out is not None:
            for each in tensors_in(out):
                self.note(each)

    def evict(self, between: bool = True) -> None:
        """Go over all that is new; `between` says that no call into PyTorch is running (see `match_evicted`)."""
        tape, retention, start = self._tape, self._retention, self._seen
        self._seen = [len(tape.operations), len(tape.calls), len(tape.functions), len(tape.executions)]
        if retention.chosen:
            self._chosen.update(range(start[0], len(tape.operations)))
        if self._large or retention.has_evicted or retention.chosen:
            self._replace(*start)
        for run, output in self.left:
            run.output = _shallow(retention, output)
        self.left.clear()
        self.waiting, self._large = 0, False
        self._matcher.match_evicted(between)

    def _replace(self, first: int, calls: int, functions: int, executions: int) -> None:
        """Put placeholders in the place of what is not kept, from these entries of the tape on."""
        tape, of = self._tape, self._retention.of
        with unobserved():
            for position in range(first, len(tape.operations)):
                self._operation(position)
            for call in tape.calls[calls:]:
                call.arguments, call.keywords, call.output = map(of, (call.arguments, call.keywords, call.output))
            for function in tape.functions[functions:]:
                function.arguments = of(function.arguments)
            for place in range(executions, len(tape.executions)):
                self._execution(place)

    def _operation(self, position: int) -> None:
        func, args, kwargs, out, call, state = self._tape.operations[position]
        retention = self._retention
        if retention.chosen:
            self._tape.want(tensors_in((args, kwargs)), position)
        viewed = next(iter(tensors_in(args)), None) if Traits.of(func).views else None
        kept = retention.result(out, viewed, self._matcher.written.get(position, ()), position)
        if retention.chosen:  # also a view of what was evicted
            self._tape.want(tensors_in(out), position + 1)
        self._tape.operations[position] = (func, retention.of(args), retention.of(kwargs), kept, call, state)

    def _execution(self, place: int) -> None:
        """The gradients at a node: those that it sends on are measured where they arrive."""
        task, index, downstream, upstream = self._tape.executions[place]
        raw, retention = self._tape.nodes[index], self._retention
        chosen, inside = retention.chosen, raw.operation in self._chosen
        retention.chosen = inside or retention.is_wanted(*raw.outputs.values())
        if not (raw.passes_through and raw.leaves):
            upstream = retention.arrived(upstream)
        elif retention.chosen:  # it becomes `.grad`, which is the user's
            retention.hold(upstream)
        retention.chosen = inside
        self._tape.executions[place] = (task, index, retention.sent_on(downstream), upstream)
        retention.chosen = chosen


def _shallow(retention: Retention, output: Any) -> Any:
    """The tensors of a module's output, which it names; anything else in it may hold tensors that are not kept."""
    if isinstance(output, (tuple, list)):
        return tuple(retention.of(each) if isinstance(each, Tensor) else None for each in output)
    return retention.of(output) if isinstance(output, Tensor) else None
