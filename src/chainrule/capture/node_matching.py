"""Which autograd node leads back through which operation: asked of the results, once autograd has made the nodes.

A node cannot be asked for while its operation runs, for the dispatch mode sees that below autograd. So operations are
tied in one sweep, when something is about to change the ties: a backward pass or a write. A result that is not kept is
tied before the next operation runs, while it still lives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chainrule.capture.tape import RawNode, Tape, Traits
from chainrule.graph.trees import tensors_in


class Ties:
    """Ties a tape's operations to nodes; `written` are the tensors that the operation at a position writes to."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.written: dict[int, list[Tensor]] = {}
        self._swept = 0

    def settle(self, between: bool) -> None:
        """Tie results that were not kept to the nodes that autograd has made for them meanwhile.

        `between` tells that no call into PyTorch is running. Inside one, a view whose memory was written to may just
        be getting its node made anew, under a lock: to ask it for its node would wait forever.
        """
        keeper = self.tape.keeper
        if keeper is None or not (keeper.pending or keeper.late or self.written):
            return
        with torch._C.DisableTorchFunction():
            # First, for it knows which nodes a write has given to views. But without gradients an `autograd.Function`
            # may be running forward: what it writes to (`mark_dirty`) gets its node when it has ended.
            if between and self.written and torch.is_grad_enabled():
                self.sweep()
            for node, stand_in, output_nr, position in keeper.settle(between):
                self._tie(node, stand_in, output_nr, position)

    def sweep(self) -> None:
        """Tie each new operation to the autograd node of its output."""
        operations, written, shared = self.tape.operations, self.written, self.tape.shared
        number_of, nodes = self.tape.number_of, self.tape.nodes
        for position in range(self._swept, len(operations)):
            out = operations[position][3]
            try:
                if shared or position in written:
                    self._tie_around(position)
                for tensor in (out,) if isinstance(out, Tensor) else tensors_in(out):
                    if (node := tensor.grad_fn) is None:
                        continue
                    if node in number_of:
                        self._tie(node, tensor, tensor.output_nr, position)
                    else:  # as _tie, but in the usual case and without its calls
                        number_of[node] = len(nodes)
                        nodes.append(RawNode(node, position, {tensor.output_nr: tensor}))
            except RuntimeError:  # a view that was overwritten where PyTorch forbids it has no node
                continue
        self._swept = len(operations)

    def _tie_around(self, position: int) -> None:
        """Tie what a write gave new nodes besides its result: the base of the view, and other views of it."""
        func, args, kwargs, _, _, _ = self.tape.operations[position]
        if position in self.written and Traits.of(func).writes:
            self._tie_bases(position)
        else:
            self.tie_views((args, kwargs), position)

    def _tie(self, node: Any, tensor: Tensor, output_nr: int, position: int) -> None:
        raw = self.number(node)
        if raw.view_from is not None and raw.outputs[output_nr] is not tensor:
            # PyTorch has made the view again by running its operation (views of complex numbers as real ones).
            raw.remade, raw.view_from = raw.outputs.pop(output_nr), None
        if raw.operation is None and raw.view_from is None:
            raw.operation = position
        raw.outputs.setdefault(output_nr, tensor)

    def _tie_bases(self, position: int) -> None:
        """A write to a view gives its base a new node (`CopySlices`), and every view of it one that leads there."""
        for tensor in self.written.pop(position):
            base = tensor._base
            if base is not None and base.grad_fn is not None:
                self._tie(base.grad_fn, self.on_tape(base), base.output_nr, position)
                self._tie_view(tensor, position + 1)

    def tie_views(self, arguments: Any, position: int) -> None:
        """Tie the views among the arguments to the nodes that a write to their memory has given them."""
        if self.tape.shared:
            for tensor in tensors_in(arguments):
                self._tie_view(tensor, position)

    def _tie_view(self, tensor: Tensor, position: int) -> None:
        if tensor._base is None or (node := tensor.grad_fn) is None or node in self.tape.number_of:
            return
        raw = self.number(node)
        raw.view_from = position
        raw.outputs[tensor.output_nr] = self.on_tape(tensor)

    def on_tape(self, tensor: Tensor) -> Tensor:
        """What stands on the tape for a tensor."""
        found: Tensor = tensor if self.tape.keeper is None else self.tape.keeper.of(tensor)
        return found

    def number(self, node: Any) -> RawNode:
        """What is known of a node; a number of its own for one that is met for the first time."""
        tape = self.tape
        index = tape.number_of.get(node)
        if index is None:
            index = tape.number_of[node] = len(tape.nodes)
            tape.nodes.append(RawNode(node, None, {}))
        return tape.nodes[index]
