"""What is not kept is let go of in batches, some megabytes at a time.

After a large operation the processor's caches are full of its numbers, and whatever Python runs then has to be fetched
from memory again: it takes five times as long as otherwise. So while the step runs the tape just takes what happens, as
where all is kept, and the tensors live a little longer. Every few megabytes, and before anything is overwritten,
`settle` goes over what is new, ties it to its nodes, measures it, and puts stand-ins in the place of what is not kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chainrule.capture import retention as keeping
from chainrule.capture.node_matching import Ties
from chainrule.capture.retention import Keeper
from chainrule.capture.tape import RawModule, Tape, Traits
from chainrule.graph.trees import tensors_in

BATCH = 8 * 2**20  # bytes of results and gradients that live longer than the step itself has a use for them


class Settling:
    """Goes over a tape behind the recorder. `waiting` is how many bytes have come since it last did."""

    def __init__(self, tape: Tape, keeper: Keeper, ties: Ties) -> None:
        self.tape = tape
        self.keeper = keeper
        self.ties = ties
        self.waiting = 0
        self._large = False  # whether there is anything among them that might not be kept
        self.left: list[tuple[RawModule, Any]] = []  # runs of modules that have ended, with what they gave
        self._chosen: set[int] = set()  # operations whose gradients are kept whatever the rest is
        self._settled = [0, 0, 0, 0]  # operations, calls, functions, passages

    def note(self, out: Any) -> None:
        """Something more that lives until it is settled."""
        if isinstance(out, Tensor):
            size = out.nbytes if out.layout is torch.strided else keeping.SMALL + 1
            self.waiting += size
            if size > keeping.SMALL:
                self._large = True
        elif out is not None:
            for each in tensors_in(out):
                self.note(each)

    def settle(self, between: bool = True) -> None:
        """Go over all that is new; `between`: no call into PyTorch is running (`Ties.settle`)."""
        tape, start = self.tape, self._settled
        self._settled = [len(tape.operations), len(tape.calls), len(tape.functions), len(tape.passages)]
        if self.keeper.chosen:
            self._chosen.update(range(start[0], len(tape.operations)))
        if self._large or self.keeper.has_let_go or self.keeper.chosen:
            self._let_go(*start)
        for run, output in self.left:
            run.output = _shallow(self.keeper, output)
        self.left.clear()
        self.waiting, self._large = 0, False
        self.ties.settle(between)

    def _let_go(self, first: int, calls: int, functions: int, passages: int) -> None:
        """Put stand-ins in the place of what is not kept, from these entries of the tape on."""
        tape = self.tape
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            for position in range(first, len(tape.operations)):
                self._operation(position)
            for call in tape.calls[calls:]:
                call.arguments, call.keywords, call.output = map(
                    self.keeper.of, (call.arguments, call.keywords, call.output)
                )
            for function in tape.functions[functions:]:
                function.arguments = self.keeper.of(function.arguments)
            for place in range(passages, len(tape.passages)):
                self._passage(place)

    def _operation(self, position: int) -> None:
        func, args, kwargs, out, call, state = self.tape.operations[position]
        keeper = self.keeper
        if keeper.chosen:
            self.tape.want(tensors_in((args, kwargs)), position)
        viewed = next(iter(tensors_in(args)), None) if Traits.of(func).views else None
        kept = keeper.result(out, viewed, self.ties.written.get(position, ()), position)
        if keeper.chosen:  # also a view of what was let go of
            self.tape.want(tensors_in(out), position + 1)
        self.tape.operations[position] = (func, keeper.of(args), keeper.of(kwargs), kept, call, state)

    def _passage(self, place: int) -> None:
        """Gradients that passed a node: those that it sends on are measured where they arrive."""
        task, index, downstream, upstream = self.tape.passages[place]
        raw, keeper = self.tape.nodes[index], self.keeper
        chosen, inside = keeper.chosen, raw.operation in self._chosen
        keeper.chosen = inside or keeper.is_wanted(*raw.outputs.values())
        if not (raw.lends and raw.leaves):
            upstream = keeper.arrived(upstream)
        elif keeper.chosen:  # it becomes `.grad`, which is the user's
            keeper.hold(upstream)
        keeper.chosen = inside
        self.tape.passages[place] = (task, index, keeper.sent_on(downstream), upstream)
        keeper.chosen = chosen


def _shallow(keeper: Keeper, output: Any) -> Any:
    """A module's output as far as it gives names: what else is in it may hold tensors that are not kept."""
    if isinstance(output, (tuple, list)):
        return tuple(keeper.of(each) if isinstance(each, Tensor) else None for each in output)
    return keeper.of(output) if isinstance(output, Tensor) else None
