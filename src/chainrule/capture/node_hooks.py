"""Hooks on autograd's nodes: the gradients that pass them, in the order in which autograd runs them.

Nothing is held that would stop PyTorch from reusing a buffer: a gradient that flows into a leaf is read from `.grad`
afterwards. A closure holds a node's index, never the node, which would be a cycle that Python cannot collect.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from chainrule.capture.data_parallel import RawArrival
from chainrule.capture.eviction import BATCH, Settling
from chainrule.capture.node_matching import Ties
from chainrule.capture.tape import RawNode, Tape

AccumulateGrad: type = type(torch.ones(1, requires_grad=True).expand(1).grad_fn.next_functions[0][0])  # type: ignore[union-attr]

_current_pass = torch._C._current_graph_task_id
_handing_on = frozenset({"TBackward0", "TransposeBackward0", "ViewBackward0", "UnsafeViewBackward0"})


class NodeHooks:
    """Hooks every node that a backward pass can reach; `remove` takes all of them off.

    `enter` and `leave` are called around the backward of a Python function, in which anything may run.
    """

    def __init__(self, tape: Tape, ties: Ties, enter: Callable[[], None], leave: Callable[[], None]) -> None:
        self.tape = tape
        self.ties = ties
        self.settling: Settling | None = None  # None: everything is kept
        self._enter, self._leave = enter, leave
        self.straight: dict[int, tuple[tuple[int, Tensor], ...]] = {}  # of the pass that `reach` prepared last
        self._handles: list[Any] = []
        self._reduced: dict[int, tuple[int, Tensor]] = {}  # id of a leaf whose gradient goes over the ranks -> where

    def remove(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()

    def reach(self, roots: tuple[Tensor, ...], accumulates: bool) -> list[Tensor]:
        """Number every node behind `roots`, find the leaves, and mark which gradients must not be held."""
        number_of, nodes = self.tape.number_of, self.tape.nodes
        waiting: list[Any] = [root.grad_fn for root in roots if root.grad_fn is not None]
        seen: set[Any] = set(waiting)
        uses: dict[Any, int] = {}
        at_leaves: list[RawNode] = []
        self._reduced = self.tape.reducers.leaves() if accumulates else {}
        while waiting:
            node = waiting.pop()
            index = number_of.get(node)
            raw = self.ties.number(node) if index is None else nodes[index]
            edges = raw.edges
            if not edges:
                edges = raw.edges = node.next_functions
            at_leaf = False
            for target, _ in edges:
                if target is None:
                    continue
                if type(target) is AccumulateGrad:
                    uses[target] = uses.get(target, 0) + 1
                    at_leaf = True
                    at_leaves.append(raw)
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
            if not raw.hooked and type(node) is not AccumulateGrad:
                self._hook(number_of[node], raw, at_leaf)
        for raw in at_leaves:
            raw.lends = len(raw.edges) == 1 and type(raw.node).__name__ in _handing_on
            raw.leaves = tuple(
                (position, node.variable)
                for position, (node, _) in enumerate(raw.edges)
                if accumulates
                and uses.get(node) == 1
                and node.variable.grad is None
                and not self._changes(node.variable)
            )
        self.straight = {number_of[raw.node]: raw.leaves for raw in at_leaves if raw.leaves}
        for node in uses if self._reduced else ():
            raw = nodes[number_of[node]]
            if id(node.variable) in self._reduced and not raw.hooked:
                raw.hooked = True
                self._handles.append(node.register_prehook(partial(self._note_arrival, number_of[node])))
        return [node.variable for node in uses]

    def _changes(self, leaf: Tensor) -> bool:
        """Whether `.grad` may be something else in the end than what arrived."""
        return bool(leaf._backward_hooks or leaf._post_accumulate_grad_hooks) or id(leaf) in self._reduced

    def _note_arrival(self, index: int, upstream: tuple[Tensor | None, ...]) -> None:
        """What a leaf is given, before it is combined with that of other ranks."""
        leaf, (arrived,) = self.tape.nodes[index].node.variable, upstream
        reducer, parameter = self._reduced.get(id(leaf), (None, leaf))
        if arrived is None or reducer is None or not self.tape.reducers.all[reducer].combines:
            return
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch(), torch.no_grad():
            whole = arrived if leaf.grad is None else leaf.grad + arrived
            if self.tape.keeper is not None:
                (whole,) = self.tape.keeper.arrived((whole,))
        assert whole is not None
        self.tape.arrivals.append(RawArrival(_current_pass(), leaf, parameter, reducer, whole))

    def _hook(self, index: int, raw: RawNode, at_leaf: bool) -> None:
        """See the gradients that pass a node, whenever it runs."""
        raw.hooked = True
        node, hooks = raw.node, self._handles
        if isinstance(node, BackwardCFunction):
            hooks.append(node.register_prehook(self._enter_function))
            hooks.append(node.register_hook(partial(self._leave_function, index)))
        elif at_leaf or self.settling is not None:
            hooks.append(node.register_hook(partial(self._before_leaves, index)))
        else:
            hooks.append(node.register_hook(partial(_note_passage, self.tape.passages, index)))

    def _enter_function(self, upstream: tuple[Any, ...]) -> None:
        self._enter()

    def _leave_function(self, index: int, downstream: tuple[Any, ...], upstream: tuple[Any, ...]) -> None:
        self._leave()
        self._before_leaves(index, downstream, upstream)

    def _before_leaves(self, index: int, downstream: tuple[Any, ...], upstream: tuple[Any, ...]) -> None:
        """A node that sends gradients into leaves: they are not held, so that PyTorch can keep them as `.grad`."""
        leaves = self.tape.nodes[index].leaves
        if leaves:
            kept = list(downstream)
            for position, _ in leaves:
                kept[position] = None
            downstream = tuple(kept)
        _note_passage(self.tape.passages, index, downstream, upstream)
        if self.settling is not None:
            self.settling.note(upstream)
            self.settling.note(downstream)
            if self.settling.waiting > BATCH:
                self.settling.settle(between=False)


def _note_passage(
    passages: list[tuple[int, int, Any, Any]], index: int, downstream: tuple[Any, ...], upstream: tuple[Any, ...]
) -> None:
    passages.append((_current_pass(), index, downstream, upstream))
