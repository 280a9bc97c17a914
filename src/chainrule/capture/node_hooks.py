"""Runs backward passes with hooks on autograd's nodes: they see the gradients, in the order in which autograd runs.

Nothing is held that would stop PyTorch from reusing a buffer: a gradient that flows into a leaf is read from `.grad`
afterwards. A hook holds a node's index, never the node: that would be a cycle that Python cannot collect.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from chainrule.capture.data_parallel import RawArrival, storage_of
from chainrule.capture.failed_backward import failed_backward
from chainrule.capture.guard import here, this_thread
from chainrule.capture.modes import Modes
from chainrule.capture.node_matching import BATCH, Eviction, NodeMatcher
from chainrule.capture.raw_records import RawBackward, RawNode
from chainrule.capture.source import Site
from chainrule.capture.tape import Tape
from chainrule.graph.reexecution import unobserved
from chainrule.graph.trees import tensors_in
from chainrule.pytorch_internals import _are_functorch_transforms_active, _current_graph_task_id
from chainrule.rules.facts import facts_of_node

AccumulateGrad: type = type(torch.ones(1, requires_grad=True).expand(1).grad_fn.next_functions[0][0])  # type: ignore[union-attr]

Gradients = tuple[Any, ...]


@dataclass(slots=True)
class _Running:
    """A Python function whose backward is running: what arrived, and what of it was kept before it was written to."""

    upstream: tuple[Any, ...]
    kept: dict[int, Tensor] = field(default_factory=dict)


class NodeHooks:
    """Hooks every node that a backward pass can reach; `remove` takes all hooks off."""

    def __init__(self, tape: Tape, matcher: NodeMatcher, modes: Modes, eviction: Eviction | None) -> None:
        self._tape = tape
        self._matcher = matcher
        self._modes = modes
        self._eviction = eviction  # None: everything is kept
        self._straight: dict[int, tuple[tuple[int, Tensor], ...]] = {}  # of the pass that was prepared last
        self._open: list[tuple[RawBackward, list[Tensor]]] = []  # passes that run, the outermost first, with leaves
        self._handles: list[Any] = []
        self._running: list[_Running] = []  # outermost first
        self._reduced: dict[int, tuple[int, Tensor]] = {}  # id of a leaf whose gradient is combined over ranks -> where

    def remove(self) -> None:
        """Take every hook off."""
        while self._handles:
            self._handles[-1].remove()
            self._handles.pop()

    # -- a backward pass ----------------------------------------------------------------------------------------------

    @contextmanager
    def around(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[list[Any]]:
        """Around the call of `backward` or `grad`, whose result goes into the list: a hook on every node behind it."""
        given: list[Any] = []
        guard, ends, seen = self._tape.guard, ExitStack(), False
        with guard:
            # A transform is a level of its own, whose nodes are gone when it ends: its operations remain. Where no
            # operation is seen PyTorch is tracing, with tensors that have no numbers.
            seen = not _are_functorch_transforms_active() and self._modes.sees_operations()
        if not seen:
            yield given
            return
        try:
            with guard:
                if _gives(func) and (args[6:7] or (kwargs.get("is_grads_batched"),))[0]:
                    self._begin_batched(ends)
                else:
                    self._begin(func, args, kwargs, given, ends)
                ends.callback(guard.leave_pass, guard.enter_pass())
            yield given
        except BaseException as error:
            if guard.on:
                with guard:
                    ends.__exit__(type(error), error, error.__traceback__)  # None would be set as its traceback
            raise
        if guard.on:  # it may have ended within the pass
            with guard:
                ends.close()

    def _begin(self, func: Any, args: Any, kwargs: Any, given: list[Any], ends: ExitStack) -> None:
        tape, accumulates = self._tape, not _gives(func)
        roots = tuple(tensors_in(args[0] if args else kwargs.get("tensors", kwargs.get("outputs", ()))))
        backward, leaves = self._prepare(getattr(func, "__name__", "backward"), roots, accumulates)
        tape.backwards.append(backward)
        around = len(self._open)
        self._open.append((backward, leaves if accumulates else []))
        first, running = len(tape.executions), len(self._running)
        place = 3 if accumulates else 4
        create_graph = kwargs.get("create_graph", len(args) > place and args[place])

        def end(kind: Any, error: BaseException | None, trace: Any) -> None:
            del self._running[running:], self._open[around:]  # of functions that raised
            self._note_task(backward, first)
            if isinstance(error, Exception):
                backward.error = f"{type(error).__name__}: {error}"
                tape.failures.all.append(failed_backward(error, tape, backward.roots, backward.site, first))
            backward.last = len(tape.operations) if create_graph else None
            with unobserved():
                for leaf in leaves if accumulates else ():
                    _, part = tape.reducers.gathered.get(id(leaf), (leaf, leaf))
                    self._note_gradient(backward, part)
                for _, shared in self._shared(leaves) if accumulates else ():  # the pass around this one adds to them
                    tape.overwritten(leaf.grad for leaf in shared if leaf.grad is not None)
            if given and not accumulates:
                self._note_given(backward, args[1] if len(args) > 1 else kwargs["inputs"], given[0])

        ends.push(end)
        ends.enter_context(self._modes.during_backward(pauses=not create_graph))

    def _prepare(self, name: str, roots: tuple[Tensor, ...], accumulates: bool) -> tuple[RawBackward, list[Tensor]]:
        """What a pass begins with, and the leaves that it can reach. `.grad` is copied: it is added to in place."""
        tape = self._tape
        if self._eviction is not None:
            self._eviction.evict()
        with unobserved():
            self._matcher.sweep()
            leaves = self._reach(roots, accumulates)
            for outer, shared in self._shared(leaves) if accumulates else ():
                self._set_apart(outer, {id(leaf) for leaf in shared})
            filled = {id(leaf): leaf.grad for leaf in leaves if accumulates and leaf.grad is not None}
            before = dict(zip(filled, tape.overwritten(filled.values()), strict=True))
            known = roots if tape.retention is None else tape.retention.of(roots)
            site, position = Site.of(sys._getframe(3)), len(tape.operations)
            return RawBackward(name, site, position, known, accumulates, before, self._straight), leaves

    def _shared(self, leaves: list[Tensor]) -> Iterator[tuple[RawBackward, list[Tensor]]]:
        """The passes that run, with the leaves among these that they reach too: a checkpoint runs a pass inside one."""
        for outer, reached in self._open:
            known = {id(leaf) for leaf in reached}
            if shared := [leaf for leaf in leaves if id(leaf) in known]:
                yield outer, shared

    def _set_apart(self, outer: RawBackward, shared: set[int]) -> None:
        """What an outer pass sends into these leaves is not what it leaves in `.grad`: a pass inside adds to them."""
        for identity in shared:
            outer.passed.setdefault(identity, None)
        for index, entries in outer.straight.items():
            to_come = []
            for position, leaf in entries:
                gradient = leaf.grad
                if id(leaf) in shared and gradient is None:
                    continue  # it is held when it comes
                if id(leaf) in shared and gradient is not None and outer.passed[id(leaf)] is None:
                    outer.passed[id(leaf)] = self._tape.version(gradient)
                to_come.append((position, leaf))
            outer.straight[index] = self._tape.nodes[index].leaves = tuple(to_come)

    def _begin_batched(self, ends: ExitStack) -> None:
        """`autograd.grad` over many gradients at once: what reaches the nodes then has no numbers of its own."""
        eviction, first, executions = self._eviction, len(self._tape.executions), self._tape.executions
        if eviction is not None:
            eviction.evict()

        def end() -> None:
            self._eviction = eviction
            del executions[first:]

        ends.callback(end)
        self._eviction = None
        ends.enter_context(self._modes.during_backward(pauses=True))

    def _note_given(self, backward: RawBackward, asked: Any, gradients: Any) -> None:
        """What `torch.autograd.grad` returned, and of which tensors it is the gradient."""
        retention = self._tape.retention
        with unobserved():
            for of, gradient in zip((asked,) if isinstance(asked, Tensor) else asked, gradients, strict=False):
                if isinstance(of, Tensor) and gradient is not None and gradient.shape == of.shape:
                    if retention is not None:
                        of, (gradient,) = retention.of(of), retention.arrived((gradient,))
                    backward.given.append((of, self._tape.version(gradient)))

    def _note_gradient(self, backward: RawBackward, leaf: Tensor) -> None:
        gradient, tape = leaf.grad, self._tape
        backward.after[id(leaf)] = None if gradient is None else tape.version(gradient)
        if gradient is not None:
            tape.gradients[id(gradient)] = leaf

    def _note_task(self, backward: RawBackward, first: int) -> None:
        """Which of autograd's passes this was: the first that ran a node, apart from those that ran inside it."""
        taken = {other.task for other in self._tape.backwards}
        backward.task = next((task for task, *_ in self._tape.executions[first:] if task not in taken), None)

    # -- hooks --------------------------------------------------------------------------------------------------------

    def _reach(self, roots: tuple[Tensor, ...], accumulates: bool) -> list[Tensor]:
        """Number every node behind `roots`, find the leaves, and mark which gradients must not be held."""
        number_of, nodes = self._tape.number_of, self._tape.nodes
        waiting: list[Any] = [root.grad_fn for root in roots if root.grad_fn is not None]
        seen: set[Any] = set(waiting)
        uses: dict[Any, int] = {}
        at_leaves: list[RawNode] = []
        self._reduced = self._tape.reducers.leaves() if accumulates else {}
        while waiting:
            node = waiting.pop()
            index = number_of.get(node)
            raw = self._matcher.number(node) if index is None else nodes[index]
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
            raw.passes_through = len(raw.edges) == 1 and facts_of_node(type(raw.node).__name__).only_reshapes
            raw.leaves = tuple(
                (position, node.variable)
                for position, (node, _) in enumerate(raw.edges)
                if accumulates
                and uses.get(node) == 1
                and node.variable.grad is None
                and not self._changes(node.variable)
            )
        self._straight = {number_of[raw.node]: raw.leaves for raw in at_leaves if raw.leaves}
        for node in uses if self._reduced else ():
            raw = nodes[number_of[node]]
            if id(node.variable) in self._reduced and not raw.hooked:
                raw.hooked = True
                hook = self._tape.guard.hook(partial(self._note_arrival, number_of[node]))
                self._handles.append(node.register_prehook(hook))
        return [node.variable for node in uses]

    def _changes(self, leaf: Tensor) -> bool:
        """Whether `.grad` may differ in the end from what arrived."""
        return bool(leaf._backward_hooks or leaf._post_accumulate_grad_hooks) or id(leaf) in self._reduced

    def _hook(self, index: int, raw: RawNode, at_leaf: bool) -> None:
        """See the gradients at a node whenever it runs."""
        raw.hooked = True
        node, hook, handles = raw.node, self._tape.guard.hook, self._handles
        if isinstance(node, BackwardCFunction):
            handles.append(node.register_prehook(hook(self._enter_function)))  # after the user's own
            handles.append(node.register_hook(hook(partial(self._leave_function, index))))
        elif at_leaf or self._eviction is not None:
            handles.append(node.register_hook(hook(partial(self._before_leaves, index))))
        else:
            handles.append(node.register_hook(self._noting(index)))

    def _noting(self, index: int) -> Callable[..., None]:
        """The usual hook, as `guard.hook` would make it, without the calls inside: it runs for each node of a step."""
        executions, guard = self._tape.executions, self._tape.guard

        def note(downstream: Gradients, upstream: Gradients) -> None:
            if (this_thread.guard is guard or here() is guard) and not guard.failure:
                executions.append((_current_graph_task_id(), index, downstream, upstream))

        return note

    def _note_arrival(self, index: int, upstream: tuple[Tensor | None, ...]) -> None:
        """What a leaf is given, before it is combined with that of other ranks."""
        leaf, (arrived,) = self._tape.nodes[index].node.variable, upstream
        reducer, parameter = self._reduced.get(id(leaf), (None, leaf))
        if arrived is None or reducer is None or not self._tape.reducers.all[reducer].combines:
            return
        with unobserved():
            whole = arrived if leaf.grad is None else leaf.grad + arrived
            if self._tape.retention is not None:
                (whole,) = self._tape.retention.arrived((whole,))
        assert whole is not None
        self._tape.arrivals.append(RawArrival(_current_graph_task_id(), leaf, parameter, reducer, whole))

    def _enter_function(self, upstream: tuple[Any, ...]) -> None:
        if self._eviction is not None:
            self._eviction.evict(between=False)  # the function may write to what it is given
        self._running.append(_Running(upstream))
        self._modes.enter_function()

    def _leave_function(self, index: int, downstream: tuple[Any, ...], upstream: tuple[Any, ...]) -> None:
        self._modes.leave_function()
        kept = self._running.pop().kept if self._running else {}
        if any(_differs(each, upstream[slot]) for slot, each in kept.items()):
            self._tape.backward_writes.add(len(self._tape.executions))
        arrived = tuple([kept.get(slot, each) for slot, each in enumerate(upstream)]) if kept else upstream
        self._before_leaves(index, downstream, arrived)

    def before_write(self, tensors: Iterable[Tensor]) -> None:
        """Copy what is recorded in the memory of these: the backward of a function writes to it, or lets NumPy do so.

        Where that is what arrived there, the recording keeps what arrived.
        """
        tape, on_tape = self._tape, self._matcher.on_tape
        if self._eviction is not None:
            self._eviction.evict(between=False)
        with unobserved():
            for tensor in tensors:
                memory = storage_of(tensor)
                held = [
                    (running, slot, on_tape(each))
                    for running in self._running
                    for slot, each in enumerate(running.upstream)
                    if each is not None and slot not in running.kept and storage_of(each) == memory
                ]
                tape.overwritten_in_backward(on_tape(tensor), [each for *_, each in held])
                for running, slot, each in held:
                    if id(each) in tape.copies:
                        running.kept[slot] = tape.copies[id(each)][-1].data

    def _before_leaves(self, index: int, downstream: tuple[Any, ...], upstream: tuple[Any, ...]) -> None:
        """A node that sends gradients into leaves: they are not held, so that PyTorch can keep them as `.grad`."""
        leaves = self._tape.nodes[index].leaves
        if leaves:
            kept = list(downstream)
            for position, _ in leaves:
                # What goes elsewhere too is not PyTorch's to keep, and another node may write to it.
                if not any(each is downstream[position] for at, each in enumerate(downstream) if at != position):
                    kept[position] = None
            downstream = tuple(kept)
        self._tape.executions.append((_current_graph_task_id(), index, downstream, upstream))
        if self._eviction is not None:
            self._eviction.note(upstream)
            self._eviction.note(downstream)
            if self._eviction.waiting > BATCH:
                self._eviction.evict(between=False)


def _differs(kept: Tensor, now: Tensor) -> bool:
    """Whether a gradient was written to; a call of `numpy` alone is none."""
    if kept.is_meta:
        return True
    with unobserved():
        return kept.shape != now.shape or not torch.equal(kept, now)


def _gives(func: Any) -> bool:
    """Whether this function of `BACKWARD` returns the gradients; the user may have put a wrapper in its place."""
    return bool(func.__name__ == "grad")
