"""Modes and hooks on, the user's code runs, modes and hooks off: what happened is left behind as a `Tape`.

Only what must happen while the code runs happens here, because each operation pays for it: a dispatch mode appends
every ATen operation with its tensors, a function mode what the user wrote, node hooks the gradients, and the global
hooks of optimizers the update. All questions (which value is which, what is it called) are answered later, by
`assemble`.

Two rules keep it harmless. Nothing is held that would stop PyTorch from reusing a buffer: the gradient that flows into
a leaf is read from `.grad` afterwards. And whatever is about to be overwritten is copied first (`Tape.preserve`).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from types import CodeType, FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch._C import _get_function_stack_at, _len_torch_function_stack
from torch.autograd.function import BackwardCFunction, Function
from torch.nn.modules import module as module_hooks
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from chainrule.errors import RecordingError
from chainrule.source import Site, is_library

_current_pass = torch._C._current_graph_task_id
_apply_code: CodeType = Function.apply.__func__.__code__  # type: ignore[attr-defined]
_backward_functions = frozenset({Tensor.backward, torch.autograd.backward, torch.autograd.grad})
_create_graph_position = {Tensor.backward: 3, torch.autograd.backward: 3, torch.autograd.grad: 4}
_wrappers = (__file__, os.path.join("torch", "_compile.py"), os.path.join("torch", "utils", "_contextlib.py"))
_zeroing = frozenset({torch.ops.aten.zero_.default, torch.ops.aten._foreach_zero_.default})


@dataclass(slots=True)
class RawCall:
    """One torch function that the user's code called, and the stretch of operations that ran for it."""

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
    """One run of one module's forward. `parent` is the run that it happened in."""

    module: torch.nn.Module
    parent: int | None
    site: Site | None
    first: int
    training: bool
    output: Any = None
    last: int | None = None


@dataclass(slots=True)
class RawFunction:
    """One `autograd.Function.apply`, found on the stack while the operations of its forward ran."""

    cls: type
    arguments: tuple[Any, ...]
    site: Site | None
    module: int | None
    first: int
    last: int


@dataclass(slots=True)
class RawNode:
    """An autograd node with its edges; `operation` and `outputs` tie it to what made it."""

    node: Any
    edges: tuple[tuple[Any, int], ...]
    operation: int | None = None
    outputs: dict[int, Tensor] = field(default_factory=dict)
    view_from: int | None = None  # made anew for a view, after a write to its memory, from this position on
    remade: Tensor | None = None  # the view that has this node, where an operation ran to make it
    leaves: tuple[tuple[int, Tensor], ...] = ()  # (position, leaf) of gradients that must not be held


@dataclass(slots=True)
class RawBackward:
    """One backward call: its pass number, its position in the forward operations, and `.grad` before and after."""

    function: str
    site: Site | None
    position: int
    roots: tuple[Tensor, ...]
    accumulates: bool  # into `.grad`; `torch.autograd.grad` does not
    before: dict[int, Tensor]
    task: int | None = None  # autograd's number of the pass
    after: dict[int, tuple[Tensor, int] | None] = field(default_factory=dict)  # with how many copies of it there were
    error: str | None = None


@dataclass(slots=True)
class RawUpdate:
    """One `optimizer.step()`: parameters, gradients, options and state before; parameters and state after."""

    optimizer: Optimizer
    position: int
    site: Site | None
    groups: list[tuple[dict[str, Any], list[Tensor]]]
    before: list[Tensor]
    gradients: list[Tensor | None]
    states: list[dict[str, Any]]
    after: list[Tensor] = field(default_factory=list)
    states_after: list[dict[str, Any]] = field(default_factory=list)


class Tape:
    """What happened, raw and in order. Plain lists: the recorder appends, `assemble` reads."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any] | None, Any, int | None, Tensor | None]] = []
        self.calls: list[RawCall] = []
        self.modules: list[RawModule] = []
        self.functions: list[RawFunction] = []
        self.nodes: list[RawNode] = []
        self.number_of: dict[Any, int] = {}  # autograd node -> index into nodes
        self.passages: list[tuple[int, int, tuple[Any, ...], tuple[Any, ...]]] = []
        self.backwards: list[RawBackward] = []
        self.updates: list[RawUpdate] = []
        self.writes: list[tuple[int, int, str, Site | None]] = []  # (position, id of .grad, function, site)
        self.gradients: dict[int, Tensor] = {}  # id of a .grad -> its parameter
        self.copies: dict[int, list[tuple[int, Tensor]]] = {}  # id of a tensor -> (position, its data before a write)
        self.scope: dict[int, tuple[str, Tensor]] = {}  # id of a tensor -> the caller's name of it at the end
        self.names_of_modules: dict[int, str] = {}
        self.error: str | None = None
        self.error_site: Site | None = None
        self.shared = False  # whether memory with several tensors in it was ever overwritten
        self._held: list[Tensor] = []
        self._storages: dict[int, list[Tensor]] = {}
        self._scanned = [0, 0, 0]

    def overwritten(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Copy these tensors and all that was recorded of their memory, because it is about to be overwritten."""
        tensors = list(tensors)
        self._enter(tensors)
        self.preserve(tensors)
        return [self.copies[id(tensor)][-1][1] for tensor in tensors]

    def preserve(self, tensors: Iterable[Tensor]) -> None:
        """Copy what was recorded of these tensors' memory since the last copy."""
        self._scan()
        position = len(self.operations)
        for tensor in tensors:
            known = self._storages.pop(storage_of(tensor), None)
            if not known:
                continue
            self.shared = self.shared or len(known) > 1
            copy = None
            for alias in known:
                if alias.layout is not torch.strided or alias.numel() == alias.untyped_storage().nbytes() // max(
                    alias.itemsize, 1
                ):
                    data = alias.detach().clone()  # the usual case: the tensor is its whole storage
                else:
                    copy = alias.untyped_storage().clone() if copy is None else copy
                    data = torch.empty(0, dtype=alias.dtype, device=alias.device)
                    data.set_(copy, alias.storage_offset(), alias.size(), alias.stride())
                self.copies.setdefault(id(alias), []).append((position, data))
                self._held.append(alias)  # or its id would be given to another tensor

    def _scan(self) -> None:
        """Enter all tensors that came since the last scan under the memory that they use."""
        operations, passages, backwards = self._scanned
        for _, args, kwargs, out, _, _ in self.operations[operations:]:
            self._enter(tensors_in((args, kwargs, out)))
        for _, _, downstream, upstream in self.passages[passages:]:
            self._enter(tensors_in((downstream, upstream)))
        for backward in self.backwards[backwards:]:
            self._enter(left[0] for left in backward.after.values() if left is not None)
        # The last backward may still be running; look at it again next time.
        self._scanned = [len(self.operations), len(self.passages), max(len(self.backwards) - 1, 0)]

    def _enter(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            known = self._storages.setdefault(storage_of(tensor), [])
            if not any(each is tensor for each in known):
                known.append(tensor)


class Recorder:
    """Puts modes and hooks on with `start`, takes them all off with `stop`, and leaves a `Tape`."""

    def __init__(self) -> None:
        self.tape = Tape()
        self.in_call = False
        self.stack: list[int] = []  # runs of modules that are open
        self._traits: dict[Any, Traits] = {}
        self._hooks: list[Any] = []
        self._node_hooks: list[Any] = []
        self._swept = 0
        self._written: dict[int, list[Tensor]] = {}  # position -> what the operation there writes to
        self._dispatch = _DispatchMode(self)
        self._function = _FunctionMode(self)
        self._paused = False
        self._inside: list[bool] = []  # for each Python function whose backward is running: whether we paused for it
        self._taken: list[_DispatchMode | _FunctionMode] = []
        self._stance: Any = None
        self._step_open = False

    # -- on and off ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to record. Raises RecordingError where this thread is being recorded already."""
        if getattr(_active, "recorder", None) is not None:
            raise RecordingError(
                "chainrule.record() inside chainrule.record(): one thread holds one recording at a time. End the outer "
                "block first, or leave the inner one out: the outer recording already holds what happens in it."
            )
        _active.recorder = self
        self._hooks = [
            module_hooks.register_module_forward_pre_hook(self._enter_module),
            module_hooks.register_module_forward_hook(self._leave_module, always_call=True),
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        if "torch._dynamo" in sys.modules:  # only a process that compiles has it, and importing it takes a second
            self._stance = torch.compiler.set_stance("force_eager")
            self._stance.__enter__()
        self._function.__enter__()
        self._dispatch.__enter__()

    def stop(self) -> None:
        """End the recording: every mode, hook and handle is taken off, whatever happened."""
        try:
            self._resume()
            self._dispatch.__exit__(None, None, None)
            self._function.__exit__(None, None, None)
        finally:
            _active.recorder = None
            if self._stance is not None:
                self._stance.__exit__(None, None, None)
            for hook in self._hooks:
                hook.remove()
            del self._dispatch, self._function  # they hold us: a cycle
        with torch._C.DisableTorchFunction():
            try:
                self.sweep()
            finally:
                for handle in self._node_hooks:
                    handle.remove()
            self._keep_what_others_own()

    def _keep_what_others_own(self) -> None:
        """Leaves and their `.grad` live on in the user's hands, where the next step overwrites them: copy them now."""
        made = {id(out) for operation in self.tape.operations for out in tensors_in(operation[3])}
        leaves = [t for operation in self.tape.operations for t in tensors_in(operation[1:3]) if id(t) not in made]
        gradients = [g[0] for backward in self.tape.backwards for g in backward.after.values() if g is not None]
        self.tape.preserve([*leaves, *gradients])

    # -- the forward pass ---------------------------------------------------------------------------------------------

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Run one ATen operation and remember it. This is the hottest path of the package."""
        if self._paused or (_current_pass() != -1 and not torch.is_grad_enabled()):
            return func(*args, **kwargs) if kwargs else func(*args)
        traits = self._traits.get(func)
        if traits is None:
            traits = self._traits[func] = Traits.of(func)
        if traits.silent:
            return func(*args, **kwargs) if kwargs else func(*args)
        if traits.writes:
            self._before_write(traits, func, args, kwargs or {})
        state = torch.get_rng_state() if traits.random else None
        out = func(*args, **kwargs) if kwargs else func(*args)
        tape = self.tape
        tape.operations.append((func, args, kwargs, out, len(tape.calls) if self.in_call else None, state))
        return out

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one torch function that the user's code called, and remember it if operations ran for it."""
        operations = self.tape.operations
        first = len(operations)
        self.in_call = True
        try:
            out = func(*args, **kwargs)
        except Exception as error:
            self._note_call(func, args, kwargs, None, first, f"{type(error).__name__}: {error}")
            raise
        finally:
            self.in_call = False
        if len(operations) > first:
            self._note_call(func, args, kwargs, out, first)
        return out

    def _note_call(self, func: Any, args: Any, kwargs: Any, out: Any, first: int, error: str | None = None) -> None:
        tape = self.tape
        frame = sys._getframe(3)
        site = Site.of(frame)
        custom = None if torch.is_grad_enabled() else self._custom_function(frame, first)
        module = self.stack[-1] if self.stack else None
        tape.calls.append(RawCall(func, args, kwargs, out, site, module, first, len(tape.operations), custom, error))

    def _custom_function(self, frame: FrameType | None, first: int) -> int | None:
        """The `autograd.Function` whose forward is running, if one is: its `apply` stands on the stack."""
        while frame is not None and frame.f_code is not _apply_code:
            frame = frame.f_back
        if frame is None:
            return None
        functions, last = self.tape.functions, len(self.tape.operations)
        names = frame.f_locals
        arguments = names["args"]
        if functions and functions[-1].arguments is arguments:
            functions[-1].last = last
        else:
            module = self.stack[-1] if self.stack else None
            functions.append(RawFunction(names["cls"], arguments, Site.of(frame.f_back), module, first, last))
        return len(functions) - 1

    def _before_write(self, traits: Traits, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        written = [t for each in traits.written(args, kwargs) for t in tensors_in(each)]
        with torch._C.DisableTorchFunction():
            self.sweep()  # the nodes that lead back from what is there now, before the write gives them another
            self.tape.overwritten([*written, *(t._base for t in written if t._base is not None)])
            self._tie_views((args, kwargs), len(self.tape.operations))
        self._written[len(self.tape.operations)] = written
        for tensor in written:
            if id(tensor) in self.tape.gradients or func in _zeroing:  # cleared before our first pass: known later
                site = Site.of(sys._getframe(2))
                self.tape.writes.append((len(self.tape.operations), id(tensor), _library_function(), site))

    def _enter_module(self, module: torch.nn.Module, args: Any) -> None:
        parent = self.stack[-1] if self.stack else None
        site = Site.of(sys._getframe(1))
        self.stack.append(len(self.tape.modules))
        self.tape.modules.append(RawModule(module, parent, site, len(self.tape.operations), module.training))

    def _leave_module(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        # A module whose pre-hook raised was never entered; one left by an exception may leave others open above it.
        while self.stack:
            run = self.tape.modules[self.stack.pop()]
            run.last = len(self.tape.operations)
            if run.module is module:
                run.output = output
                return

    # -- the backward pass --------------------------------------------------------------------------------------------

    def backward(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `backward` or `grad` with a hook on every node it can reach."""
        if torch._C._are_functorch_transforms_active():
            return func(*args, **kwargs)  # a level of its own, whose nodes are gone when it ends: its operations remain
        tape = self.tape
        roots = tuple(tensors_in(args[0] if args else kwargs.get("tensors", kwargs.get("outputs", ()))))
        accumulates = func is not torch.autograd.grad
        with torch._C.DisableTorchFunction():
            self.sweep()
            leaves = self._reach(roots, accumulates)
            filled = {id(leaf): leaf.grad for leaf in leaves if accumulates and leaf.grad is not None}
            before = dict(zip(filled, tape.overwritten(filled.values()), strict=True))  # they are added to in place
            name = getattr(func, "__name__", "backward")
            site = Site.of(sys._getframe(2))
            backward = RawBackward(name, site, len(tape.operations), roots, accumulates, before)
        tape.backwards.append(backward)
        first, depth = len(tape.passages), len(self._inside)
        position = _create_graph_position.get(func, 3)
        create_graph = kwargs.get("create_graph", len(args) > position and args[position])
        pauses = not (create_graph or self._paused)
        if pauses:
            self._pause()
        taken, paused = list(self._taken), self._paused
        try:
            return func(*args, **kwargs)
        except Exception as error:
            backward.error = f"{type(error).__name__}: {error}"
            raise
        finally:
            if len(self._inside) > depth:  # a function raised; autograd has put the modes back as they were before it
                del self._inside[depth:]
                self._taken, self._paused = taken, paused
            if pauses:
                self._resume()
            self._note_pass(backward, first)
            for leaf in leaves if accumulates else ():
                self._note_gradient(backward, leaf)

    def _note_gradient(self, backward: RawBackward, leaf: Tensor) -> None:
        gradient, tape = leaf.grad, self.tape
        backward.after[id(leaf)] = None if gradient is None else (gradient, len(tape.copies.get(id(gradient), ())))
        if gradient is not None:
            tape.gradients[id(gradient)] = leaf

    def _note_pass(self, backward: RawBackward, first: int) -> None:
        """Which of autograd's passes this was: the first that ran a node, but for those that ran inside it."""
        taken = {other.task for other in self.tape.backwards}
        backward.task = next((task for task, *_ in self.tape.passages[first:] if task not in taken), None)

    def sweep(self) -> None:
        """Tie each new operation to the autograd node of its output.

        Done in one go for many operations, when something is about to change the ties: a backward pass or a write.
        """
        operations = self.tape.operations
        for position in range(self._swept, len(operations)):
            func, args, kwargs, out, _, _ = operations[position]
            with suppress(RuntimeError):  # a view that was overwritten where PyTorch forbids it has no node
                if position in self._written and self._traits[func].writes:
                    self._tie_bases(position)
                else:
                    self._tie_views((args, kwargs), position)
                for tensor in (out,) if isinstance(out, Tensor) else tensors_in(out):
                    if (node := tensor.grad_fn) is not None:
                        self._tie(node, tensor, position)
        self._swept = len(operations)

    def _tie(self, node: Any, tensor: Tensor, position: int) -> None:
        raw = self._number(node)
        if raw.view_from is not None and raw.outputs[tensor.output_nr] is not tensor:
            # PyTorch has made the view again by running its operation (views of complex numbers as real ones).
            raw.remade, raw.view_from = raw.outputs.pop(tensor.output_nr), None
        if raw.operation is None and raw.view_from is None:
            raw.operation = position
        raw.outputs.setdefault(tensor.output_nr, tensor)

    def _tie_bases(self, position: int) -> None:
        """A write to a view gives its base a new node (`CopySlices`), and every view of it one that leads there."""
        for tensor in self._written.pop(position):
            base = tensor._base
            if base is not None and base.grad_fn is not None:
                self._tie(base.grad_fn, base, position)
                self._tie_view(tensor, position + 1)

    def _tie_views(self, arguments: Any, position: int) -> None:
        if self.tape.shared:
            for tensor in tensors_in(arguments):
                self._tie_view(tensor, position)

    def _tie_view(self, tensor: Tensor, position: int) -> None:
        if tensor._base is None or (node := tensor.grad_fn) is None or node in self.tape.number_of:
            return
        raw = self._number(node)
        raw.view_from = position
        raw.outputs[tensor.output_nr] = tensor

    def _number(self, node: Any) -> RawNode:
        tape = self.tape
        index = tape.number_of.get(node)
        if index is not None:
            return tape.nodes[index]
        index = tape.number_of[node] = len(tape.nodes)
        raw = RawNode(node, node.next_functions)
        tape.nodes.append(raw)
        if not hasattr(node, "variable"):
            self._node_hooks.append(node.register_hook(partial(self._on_node, index)))
            if isinstance(node, BackwardCFunction):
                self._node_hooks.append(node.register_prehook(self._enter_function))
        return raw

    def _enter_function(self, upstream: tuple[Any, ...]) -> None:
        """Record what a Python function does in its backward: checkpointing runs whole passes in there."""
        self._inside.append(self._paused)
        if self._paused:
            self._resume()
        self._function.__enter__()

    def _leave_function(self) -> None:
        self._function.__exit__(None, None, None)
        if self._inside.pop():
            self._pause()

    def _reach(self, roots: tuple[Tensor, ...], accumulates: bool) -> list[Tensor]:
        """Number every node behind `roots`, find the leaves, and mark which gradients must not be held."""
        waiting = [root.grad_fn for root in roots if root.grad_fn is not None]
        seen: set[Any] = set(waiting)
        uses: dict[Any, int] = {}
        at_leaves: list[RawNode] = []
        while waiting:
            raw = self._number(waiting.pop())
            for node, _ in raw.edges:
                if node is None:
                    continue
                if hasattr(node, "variable"):
                    uses[node] = uses.get(node, 0) + 1
                    at_leaves.append(raw)
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
        for raw in at_leaves:
            raw.leaves = tuple(
                (position, node.variable)
                for position, (node, _) in enumerate(raw.edges)
                if accumulates and uses.get(node) == 1 and node.variable.grad is None and not _has_hooks(node.variable)
            )
        return [node.variable for node in uses]

    def _on_node(self, index: int, downstream: tuple[Any, ...], upstream: tuple[Any, ...]) -> None:
        raw = self.tape.nodes[index]
        leaves = raw.leaves
        if self._inside and isinstance(raw.node, BackwardCFunction):
            self._leave_function()
        if leaves:
            kept = list(downstream)
            for position, _ in leaves:
                kept[position] = None
            downstream = tuple(kept)
        self.tape.passages.append((_current_pass(), index, downstream, upstream))

    # -- the optimizer ------------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch(), torch.no_grad():
            self.tape.updates.append(self._snapshot(optimizer))
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None and not self._paused:  # with a closure, forward and backward passes run inside the step
            self._step_open = True
            self._pause()

    def _snapshot(self, optimizer: Optimizer) -> RawUpdate:
        self.sweep()
        groups = [
            ({key: _copied(value) for key, value in group.items() if key != "params"}, list(group["params"]))
            for group in optimizer.param_groups
        ]
        parameters = [p for _, members in groups for p in members]
        return RawUpdate(
            optimizer,
            len(self.tape.operations),
            Site.of(sys._getframe(2)),
            groups,
            self.tape.overwritten(parameters),
            [None if p.grad is None else p.grad.detach().clone() for p in parameters],
            [_copied(dict(optimizer.state.get(p, {}))) for p in parameters],
        )

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._step_open:
            self._step_open = False
            self._resume()
        update = self.tape.updates[-1] if self.tape.updates else None
        if update is None or update.optimizer is not optimizer or update.after:
            return
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch(), torch.no_grad():
            parameters = [p for _, members in update.groups for p in members]
            update.after = [p.detach().clone() for p in parameters]
            update.states_after = [_copied(dict(optimizer.state.get(p, {}))) for p in parameters]

    # -- pausing ------------------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        """Let operations pass unseen: take the modes off where they are innermost, and set a flag for where not."""
        self._paused = True
        if _get_current_dispatch_mode() is self._dispatch:
            self._dispatch.__exit__(None, None, None)
            self._taken.append(self._dispatch)
        if _len_torch_function_stack() and _get_function_stack_at(_len_torch_function_stack() - 1) is self._function:
            self._function.__exit__(None, None, None)
            self._taken.append(self._function)

    def _resume(self) -> None:
        self._paused = False
        while self._taken:
            self._taken.pop().__enter__()


@dataclass(frozen=True, slots=True)
class Traits:
    """What the recorder must know of an operation before it runs.

    What it overwrites, whether it draws random numbers, and whether it is mere bookkeeping (the profiler's marks).
    """

    writes: tuple[tuple[int, str], ...]
    random: bool
    silent: bool

    @classmethod
    @cache
    def of(cls, func: Any) -> Traits:
        """Read the traits off the operation's schema."""
        arguments = func._schema.arguments
        writes = tuple(
            (i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write
        )
        if "batch_norm" in func._schema.name:  # its schema does not own up to updating the running statistics
            writes += tuple((i, a.name) for i, a in enumerate(arguments) if a.name in ("running_mean", "running_var"))
        return cls(writes, torch.Tag.nondeterministic_seeded in func.tags, func.namespace == "profiler")

    def written(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        """The arguments that the operation will overwrite."""
        for position, name in self.writes:
            yield args[position] if position < len(args) else kwargs.get(name)


class _DispatchMode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise the base class imports PyTorch's compiler, which takes more than a second. It only keeps the
        # compiler from tracing into `__torch_dispatch__`, and compiled code is run eagerly while we record.
        return False

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.recorder.dispatch(func, args, kwargs)


class _FunctionMode(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _backward_functions:
            return self.recorder.backward(func, args, kwargs or {})
        return self.recorder.call(func, args, kwargs or {})


_active = threading.local()


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts, left to right."""
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (tuple, list)):
            waiting.extend(reversed(item))
        elif isinstance(item, dict):
            waiting.extend(reversed(list(item.values())))


def storage_of(tensor: Tensor) -> int:
    """What is one and the same for all tensors in one piece of memory, as long as one of them lives."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse, or a wrapper of functorch's: no memory to share
        return id(tensor)


def _has_hooks(leaf: Tensor) -> bool:
    """Whether `.grad` may be something else in the end than what arrived."""
    return bool(leaf._backward_hooks or leaf._post_accumulate_grad_hooks)


def _copied(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(item) for item in tree] if isinstance(tree, list) else tree


def _library_function() -> str:
    """The outermost PyTorch function on the stack that is running for the user (`clip_grad_norm_`, `zero_grad`)."""
    frame: FrameType | None = sys._getframe(1)
    name = ""
    while frame is not None and is_library(frame.f_code):
        wraps = frame.f_code.co_filename.endswith(_wrappers)
        if not wraps and not frame.f_code.co_name.startswith("_"):
            name = frame.f_code.co_name
        frame = frame.f_back
    return name


def exception_site(trace: TracebackType | None) -> Site | None:
    """The innermost line of the user's own code that an exception came through."""
    found = None
    while trace is not None:
        if not is_library(trace.tb_frame.f_code):
            found = Site(trace.tb_frame.f_code, trace.tb_lasti)
        trace = trace.tb_next
    return found
