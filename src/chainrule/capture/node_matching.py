"""Goes over the tape behind the recorder: matches operations with autograd's nodes, and evicts what is not kept.

A node does not exist yet while its operation runs, for the dispatch mode runs below autograd. So operations are matched
in one sweep, before something changes the answers: a backward pass or a write. A result that is not kept is matched
before the next operation runs, while it still lives.

What is not kept is evicted in batches. After a large operation the processor's caches are full of its numbers, and
Python code that runs then takes five times as long, because it is fetched from memory again. So the tape just takes
what happens, and tensors live a little longer. Every few megabytes, and before anything is overwritten, `evict` goes
over what is new: it measures what is not kept, puts placeholders in its place, and matches it with its nodes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chainrule.capture import retention as limits
from chainrule.capture.raw_records import RawModule, RawNode
from chainrule.capture.retention import Retention
from chainrule.capture.tape import Tape
from chainrule.capture.traits import Traits
from chainrule.graph.reexecution import functions_unobserved, unobserved
from chainrule.graph.trees import tensors_in


class NodeMatcher:
    """Matches a tape's operations with nodes; `written` are the tensors that the operation at a position writes to."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.written: dict[int, list[Tensor]] = {}
        self.swept = 0

    def match_evicted(self, between: bool) -> None:
        """Match results that were not kept with the nodes that autograd has made for them meanwhile.

        `between` says that no call into PyTorch is running. Inside of one autograd may hold a lock while it makes a new
        node for a view of overwritten memory: to ask that view for its node would wait forever.
        """
        retention = self.tape.retention
        if retention is None or not (retention.pending or retention.late or self.written):
            return
        # Not `unobserved`: the operation by which autograd makes such a view again has to be recorded, and whether
        # gradients are on says whether an `autograd.Function` may be running.
        with functions_unobserved():
            # The sweep comes first, for it knows which nodes a write has given to views. Without gradients an
            # `autograd.Function` may be running: what it writes to (`mark_dirty`) gets its node when it has ended.
            if between and self.written and torch.is_grad_enabled():
                self.sweep()
            for node, placeholder, output_nr, position in retention.take_matched(between):
                self._match(node, placeholder, output_nr, position)

    def sweep(self) -> None:
        """Match each new operation with the autograd node of its output."""
        operations, written, shared = self.tape.operations, self.written, self.tape.shared
        number_of, nodes = self.tape.number_of, self.tape.nodes
        for position in range(self.swept, len(operations)):
            out = operations[position][3]
            try:
                if shared or position in written:
                    self._match_around(position)
                for tensor in (out,) if isinstance(out, Tensor) else tensors_in(out):
                    if (node := tensor.grad_fn) is None:
                        continue
                    if node in number_of:
                        self._match(node, tensor, tensor.output_nr, position)
                    else:  # as _match, but in the usual case and without its calls
                        number_of[node] = len(nodes)
                        nodes.append(RawNode(node, position, {tensor.output_nr: tensor}))
            except RuntimeError:  # a view that was overwritten where PyTorch forbids it has no node
                continue
        self.swept = len(operations)

    def _match_around(self, position: int) -> None:
        """Match what a write gave new nodes besides its result: the base of the view, and other views of it."""
        func, args, kwargs, _, _, _ = self.tape.operations[position]
        if position in self.written and Traits.of(func).writes:
            self._match_bases(position)
        else:
            self.match_views((args, kwargs), position)

    def _match(self, node: Any, tensor: Tensor, output_nr: int, position: int) -> None:
        raw = self.number(node)
        if raw.view_from is not None and raw.outputs[output_nr] is not tensor:
            # PyTorch has made the view again by running its operation (views of complex numbers as real ones).
            raw.remade, raw.view_from = raw.outputs.pop(output_nr), None
        if raw.operation is None and raw.view_from is None:
            raw.operation = position
        raw.outputs.setdefault(output_nr, tensor)

    def _match_bases(self, position: int) -> None:
        """A write to a view gives its base a new node (`CopySlices`), and every view of it one that leads there."""
        for tensor in self.written.pop(position):
            base = tensor._base
            if base is not None and base.grad_fn is not None:
                self._match(base.grad_fn, self.on_tape(base), base.output_nr, position)
                self._match_view(tensor, position + 1)

    def match_views(self, arguments: Any, position: int) -> None:
        """Match the views among the arguments with the nodes that a write to their memory has given them."""
        if self.tape.shared:
            for tensor in tensors_in(arguments):
                self._match_view(tensor, position)

    def _match_view(self, tensor: Tensor, position: int) -> None:
        try:
            if tensor._base is None or (node := tensor.grad_fn) is None or node in self.tape.number_of:
                return
        except RuntimeError:  # a view that was overwritten where PyTorch forbids it has no node
            return
        raw = self.number(node)
        raw.view_from = position
        raw.outputs[tensor.output_nr] = self.on_tape(tensor)

    def on_tape(self, tensor: Tensor) -> Tensor:
        """The tensor, or the placeholder that the tape has for it."""
        found: Tensor = tensor if self.tape.retention is None else self.tape.retention.of(tensor)
        return found

    def number(self, node: Any) -> RawNode:
        """What is known of a node, which gets a number when it is met for the first time."""
        tape = self.tape
        index = tape.number_of.get(node)
        if index is None:
            index = tape.number_of[node] = len(tape.nodes)
            tape.nodes.append(RawNode(node, None, {}))
        return tape.nodes[index]


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
        self.seen = [0, 0, 0, 0]  # operations, calls, functions, executions of nodes

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
        tape, retention, start = self._tape, self._retention, self.seen
        self.seen = [len(tape.operations), len(tape.calls), len(tape.functions), len(tape.executions)]
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
