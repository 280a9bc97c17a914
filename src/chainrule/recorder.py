"""Modes and hooks on, the user's code runs, modes and hooks off: what happened is left behind as a `Tape`.

Only what must happen while the code runs happens here, because each operation pays for it: a dispatch mode appends
every ATen operation with its tensors, a function mode what the user wrote, node hooks the gradients, and the global
hooks of optimizers the update. All questions (which value is which, what is it called) are answered later, by
`assemble`.

Two rules keep it harmless. Nothing is held that would stop PyTorch from reusing a buffer: the gradient that flows into
a leaf is read from `.grad` afterwards. And whatever is about to be overwritten is copied first (`Tape.overwritten`).
"""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from types import CodeType, FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, optim
from torch._C import _DisableTorchDispatch, _get_function_stack_at, _len_torch_function_stack
from torch.autograd.function import BackwardCFunction, Function
from torch.nn.modules import module as module_hooks
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from chainrule.direct import Direct, applies
from chainrule.errors import RecordingError
from chainrule.keeping import Keep, Keeper
from chainrule.reducers import RawArrival
from chainrule.shards import own_part
from chainrule.source import Site, Sites, is_library
from chainrule.statistics import of_sample, part_of
from chainrule.tape import (
    RawBackward,
    RawCall,
    RawFunction,
    RawModule,
    RawNode,
    RawUpdate,
    Tape,
    Traits,
    Version,
    tensors_in,
)

AccumulateGrad: type = type(torch.ones(1, requires_grad=True).expand(1).grad_fn.next_functions[0][0])  # type: ignore[union-attr]

_current_pass = torch._C._current_graph_task_id
_apply_code: CodeType = Function.apply.__func__.__code__  # type: ignore[attr-defined]
_backward_functions = frozenset({Tensor.backward, torch.autograd.backward, torch.autograd.grad})
_create_graph_position = {Tensor.backward: 3, torch.autograd.backward: 3, torch.autograd.grad: 4}
_wrappers = (__file__, os.path.join("torch", "_compile.py"), os.path.join("torch", "utils", "_contextlib.py"))
_leave_gradients = frozenset(  # optimizers of PyTorch's that only read `.grad` (a fused one may unscale it in place)
    {optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.RMSprop, optim.Adagrad}
)
_handing_on = frozenset({"TBackward0", "TransposeBackward0", "ViewBackward0", "UnsafeViewBackward0"})
_zeroing = frozenset({torch.ops.aten.zero_.default, torch.ops.aten._foreach_zero_.default})


class Recorder:
    """Puts modes and hooks on with `start`, takes them all off with `stop`, and leaves a `Tape`."""

    def __init__(self, keep: Keep | None = None) -> None:
        self.tape = Tape()
        if keep is not None and keep != Keep(everything=True):
            self.tape.keeper = Keeper(keep, self.tape.absentees)
        self._keeper = self.tape.keeper
        self._chosen: list[bool] = []  # for each open run of a module whether all in it is kept
        self._chosen_operations: set[int] = set()
        self._custom_arguments: Any = None  # of the autograd.Function that ran last
        self.in_call = False
        self.stack: list[int] = []  # runs of modules that are open
        self.directly = Direct()
        self._sites = Sites()
        self._traits: dict[Any, Traits] = {}
        self._hooks: list[Any] = []
        self._hooks_of_nodes: list[Any] = []
        self._swept = 0
        self._written: dict[int, list[Tensor]] = {}  # position -> what the operation there writes to
        self._dispatch = _DispatchMode(self)
        self._function = _FunctionMode(self)
        self._paused = False
        self._inside: list[bool] = []  # for each Python function whose backward is running: whether we paused for it
        self._taken: list[_DispatchMode | _FunctionMode] = []
        self._reduced: dict[int, tuple[int, Tensor]] = {}  # id of a leaf whose gradient goes over the ranks -> where
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
                self._settle()
                self.sweep()
            finally:
                self._custom_arguments = None
                for handle in self._hooks_of_nodes:
                    handle.remove()

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
        if self._keeper is not None:
            return self._dispatch_keeping(self._keeper, traits, func, args, kwargs or {})
        if traits.writes:
            self._before_write(traits, func, args, kwargs or {})
        state = torch.get_rng_state() if traits.random else None
        out = func(*args, **kwargs) if kwargs else func(*args)
        tape = self.tape
        tape.operations.append((func, args, kwargs, out, len(tape.calls) if self.in_call else None, state))
        return out

    def _dispatch_keeping(
        self, keeper: Keeper, traits: Traits, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As `dispatch`, where not everything is kept."""
        self._settle()
        written = self._before_write(traits, func, args, kwargs) if traits.writes else ()
        state = torch.get_rng_state() if traits.random else None
        out = func(*args, **kwargs)
        viewed = next(iter(tensors_in(args)), None) if traits.views else None
        tape, call = self.tape, len(self.tape.calls) if self.in_call else None
        kept = keeper.result(out, viewed, written)
        tape.operations.append((func, keeper.of(args), keeper.of(kwargs), kept, call, state))
        return out

    def _settle(self) -> None:
        """Tie the last results that were not kept to the nodes that autograd has made for them meanwhile."""
        keeper = self._keeper
        if keeper is None or not (keeper.pending or keeper.chosen or self._written):
            return
        if keeper.chosen:
            self._chosen_operations.add(len(self.tape.operations) - 1)
        with torch._C.DisableTorchFunction():
            for node, stand_in, output_nr in keeper.settle():
                self._tie(node, stand_in, output_nr, len(self.tape.operations) - 1)
            if self._written:
                self.sweep()

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
            if len(operations) <= first + 2 and not kwargs:
                self.directly.learn(func, args, out, operations[first:])
        return out

    def direct(self, operation: Any, func: Any, args: tuple[Any, ...]) -> Any:
        """As `call`, for a function that runs just this operation: the dispatch mode is left out."""
        tape = self.tape
        first = len(tape.operations)
        try:
            with _DisableTorchDispatch():
                out = func(*args)
        except Exception as error:
            self._note_call(func, args, {}, None, first, f"{type(error).__name__}: {error}")
            raise
        keeper = self._keeper
        if keeper is None:
            tape.operations.append((operation, args, None, out, len(tape.calls), None))
        else:
            self._settle()
            tape.operations.append(
                (operation, keeper.of(args), None, keeper.result(out, None, ()), len(tape.calls), None)
            )
        self._note_call(func, args, {}, out, first)
        return out

    def _note_call(self, func: Any, args: Any, kwargs: Any, out: Any, first: int, error: str | None = None) -> None:
        tape = self.tape
        frame = sys._getframe(3)
        site = self._sites.of(frame)
        custom = None if torch.is_grad_enabled() else self._custom_function(frame, first)
        module = self.stack[-1] if self.stack else None
        if self._keeper is not None:
            args, kwargs, out = map(self._keeper.of, (args, kwargs, out))
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
        if functions and self._custom_arguments is arguments:
            functions[-1].last = last
        else:
            module = self.stack[-1] if self.stack else None
            self._custom_arguments = arguments
            if self._keeper is not None:
                arguments = self._keeper.of(arguments)
            functions.append(RawFunction(names["cls"], arguments, Site.of(frame.f_back), module, first, last))
        return len(functions) - 1

    def _before_write(self, traits: Traits, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Keep what an operation is about to overwrite; gives the tensors that it writes to."""
        written = [t for each in traits.written(args, kwargs) for t in tensors_in(each)]
        with torch._C.DisableTorchFunction():
            self.sweep()  # the nodes that lead back from what is there now, before the write gives them another
            known = [self._on_tape(t) for t in (*written, *(t._base for t in written if t._base is not None))]
            self.tape.overwritten(known, seen=False)
            self._tie_views((args, kwargs), len(self.tape.operations))
        self._written[len(self.tape.operations)] = written
        for tensor in written:
            if id(tensor) in self.tape.gradients or func in _zeroing:  # cleared before our first pass: known later
                site = Site.of(sys._getframe(2))
                self.tape.writes.append((len(self.tape.operations), id(tensor), _library_function(), site))
        return written

    def _enter_module(self, module: torch.nn.Module, args: Any) -> None:
        parent = self.stack[-1] if self.stack else None
        site = Site.of(sys._getframe(1))
        if self._keeper is not None:
            self._settle()
            self._choose(self._keeper, module)
        self.tape.reducers.enter(module, args)
        self.stack.append(len(self.tape.modules))
        self.tape.modules.append(RawModule(module, parent, site, len(self.tape.operations), module.training))

    def _choose(self, keeper: Keeper, module: torch.nn.Module) -> None:
        if not self.stack:
            keeper.choose_among(module)
        keeper.chosen = keeper.is_chosen(module) or bool(self._chosen and self._chosen[-1])
        self._chosen.append(keeper.chosen)

    def _leave_module(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        # A module whose pre-hook raised was never entered; one left by an exception may leave others open above it.
        while self.stack:
            run = self.tape.modules[self.stack.pop()]
            run.last = len(self.tape.operations)
            if self._keeper is not None:
                self._settle()
                self._chosen.pop()
                self._keeper.chosen = bool(self._chosen and self._chosen[-1])
            if run.module is module:
                if freed := self.tape.reducers.leave(module, output):
                    with torch._C.DisableTorchFunction(), _DisableTorchDispatch(), torch.no_grad():
                        self.tape.overwritten(freed)
                run.output = output if self._keeper is None else _shallow(self._keeper, output)
                return

    # -- the backward pass --------------------------------------------------------------------------------------------

    def backward(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `backward` or `grad` with a hook on every node it can reach."""
        if torch._C._are_functorch_transforms_active():
            return func(*args, **kwargs)  # a level of its own, whose nodes are gone when it ends: its operations remain
        tape = self.tape
        roots = tuple(tensors_in(args[0] if args else kwargs.get("tensors", kwargs.get("outputs", ()))))
        accumulates = func is not torch.autograd.grad
        self._settle()
        with torch._C.DisableTorchFunction():
            self.sweep()
            leaves = self._reach(roots, accumulates)
            filled = {id(leaf): leaf.grad for leaf in leaves if accumulates and leaf.grad is not None}
            before = dict(zip(filled, tape.overwritten(filled.values()), strict=True))  # they are added to in place
            name = getattr(func, "__name__", "backward")
            site = Site.of(sys._getframe(2))
            known = roots if self._keeper is None else self._keeper.of(roots)
            backward = RawBackward(name, site, len(tape.operations), known, accumulates, before)
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
                _, part = tape.reducers.gathered.get(id(leaf), (leaf, leaf))
                self._note_gradient(backward, part)

    def _note_gradient(self, backward: RawBackward, leaf: Tensor) -> None:
        gradient, tape = leaf.grad, self.tape
        backward.after[id(leaf)] = None if gradient is None else tape.version(gradient)
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
        operations, written, shared = self.tape.operations, self._written, self.tape.shared
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
        if position in self._written and self._traits[func].writes:
            self._tie_bases(position)
        else:
            self._tie_views((args, kwargs), position)

    def _tie(self, node: Any, tensor: Tensor, output_nr: int, position: int) -> None:
        raw = self._number(node)
        if raw.view_from is not None and raw.outputs[output_nr] is not tensor:
            # PyTorch has made the view again by running its operation (views of complex numbers as real ones).
            raw.remade, raw.view_from = raw.outputs.pop(output_nr), None
        if raw.operation is None and raw.view_from is None:
            raw.operation = position
        raw.outputs.setdefault(output_nr, tensor)

    def _tie_bases(self, position: int) -> None:
        """A write to a view gives its base a new node (`CopySlices`), and every view of it one that leads there."""
        for tensor in self._written.pop(position):
            base = tensor._base
            if base is not None and base.grad_fn is not None:
                self._tie(base.grad_fn, self._on_tape(base), base.output_nr, position)
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
        raw.outputs[tensor.output_nr] = self._on_tape(tensor)

    def _on_tape(self, tensor: Tensor) -> Tensor:
        """What stands on the tape for a tensor."""
        found: Tensor = tensor if self._keeper is None else self._keeper.of(tensor)
        return found

    def _number(self, node: Any) -> RawNode:
        tape = self.tape
        index = tape.number_of.get(node)
        if index is None:
            index = tape.number_of[node] = len(tape.nodes)
            tape.nodes.append(RawNode(node, None, {}))
        return tape.nodes[index]

    def _hook(self, index: int, raw: RawNode, at_leaf: bool) -> None:
        """See the gradients that pass a node, whenever it runs."""
        raw.hooked = True
        node, hooks = raw.node, self._hooks_of_nodes
        if isinstance(node, BackwardCFunction):
            hooks.append(node.register_prehook(self._enter_function))
            hooks.append(node.register_hook(partial(self._leave_function, index)))
        elif at_leaf or self._keeper is not None:
            hooks.append(node.register_hook(partial(self._before_leaves, index)))
        else:
            hooks.append(node.register_hook(partial(_note_passage, self.tape.passages, index)))

    def _enter_function(self, upstream: tuple[Any, ...]) -> None:
        """Record what a Python function does in its backward: checkpointing runs whole passes in there."""
        self._inside.append(self._paused)
        if self._paused:
            self._resume()
        self._function.__enter__()

    def _leave_function(self, index: int, downstream: tuple[Any, ...], upstream: tuple[Any, ...]) -> None:
        if self._inside:
            self._function.__exit__(None, None, None)
            if self._inside.pop():
                self._pause()
        self._before_leaves(index, downstream, upstream)

    def _reach(self, roots: tuple[Tensor, ...], accumulates: bool) -> list[Tensor]:
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
            raw = self._number(node) if index is None else nodes[index]
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
        for node in uses if self._reduced else ():
            raw = nodes[number_of[node]]
            if id(node.variable) in self._reduced and not raw.hooked:
                raw.hooked = True
                self._hooks_of_nodes.append(node.register_prehook(partial(self._note_arrival, number_of[node])))
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
        with torch._C.DisableTorchFunction(), _DisableTorchDispatch(), torch.no_grad():
            whole = arrived if leaf.grad is None else leaf.grad + arrived
            if self._keeper is not None:
                (whole,) = self._keeper.arrived((whole,))
        self.tape.arrivals.append(RawArrival(_current_pass(), leaf, parameter, reducer, whole))

    def _before_leaves(self, index: int, downstream: tuple[Any, ...], upstream: tuple[Any, ...]) -> None:
        """A node that sends gradients into leaves: they are not held, so that PyTorch can keep them as `.grad`."""
        leaves = self.tape.nodes[index].leaves
        if leaves:
            kept = list(downstream)
            for position, _ in leaves:
                kept[position] = None
            downstream = tuple(kept)
        keeper = self._keeper
        if keeper is not None:
            raw = self.tape.nodes[index]
            keeper.chosen = raw.operation in self._chosen_operations
            if not (raw.lends and raw.leaves):  # else it becomes `.grad`, which is the user's
                upstream = keeper.arrived(upstream)
            downstream = keeper.sent_on(downstream)
        _note_passage(self.tape.passages, index, downstream, upstream)

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
            ({key: self._copied(value) for key, value in group.items() if key != "params"}, list(group["params"]))
            for group in optimizer.param_groups
        ]
        parameters = [p for _, members in groups for p in members]
        strict = self._keeper is not None and self._keeper.is_strict
        return RawUpdate(
            optimizer,
            len(self.tape.operations),
            Site.of(sys._getframe(2)),
            groups,
            self.tape.overwritten(parameters),
            self._gradients_of(optimizer, parameters),
            [self._copied(dict(optimizer.state.get(p, {}))) for p in parameters],
            parts=[part_of(own_part(p)) for p in parameters] if strict else [],
        )

    def _copied(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            own = own_part(tree)
            return own.detach().clone() if self._keeper is None else self._keeper.copy(own)
        if isinstance(tree, dict):
            return {key: self._copied(value) for key, value in tree.items()}
        return [self._copied(item) for item in tree] if isinstance(tree, list) else tree

    def _gradients_of(self, optimizer: Optimizer, parameters: list[Tensor]) -> list[Version | None]:
        """The gradients as the optimizer meets them, which some optimizers then use as memory to work in."""
        gradients = [p.grad for p in parameters]
        versions = [None if gradient is None else self.tape.version(gradient) for gradient in gradients]
        if type(optimizer) not in _leave_gradients or any(group.get("fused") for group in optimizer.param_groups):
            self.tape.overwritten(gradient for gradient in gradients if gradient is not None)
        return versions

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._step_open:
            self._step_open = False
            self._resume()
        update = self.tape.updates[-1] if self.tape.updates else None
        if update is None or update.optimizer is not optimizer or update.after:
            return
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch(), torch.no_grad():
            parameters = [p for _, members in update.groups for p in members]
            update.after = [self.tape.version(p) for p in parameters]
            update.moved = [
                of_sample(part_of(p) - part, p.numel())
                for p, part in zip(map(own_part, parameters), update.parts, strict=False)
            ]
            update.parts.clear()

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
        recorder = self.recorder
        if not kwargs:
            operation = recorder.directly.known.get((func, *map(type, args)))
            if operation is not None and applies():
                return recorder.direct(operation, func, args)
        if func in _backward_functions:
            return recorder.backward(func, args, kwargs or {})
        return recorder.call(func, args, kwargs or {})


_active = threading.local()


def _note_passage(
    passages: list[tuple[int, int, Any, Any]], index: int, downstream: tuple[Any, ...], upstream: tuple[Any, ...]
) -> None:
    passages.append((_current_pass(), index, downstream, upstream))


def _shallow(keeper: Keeper, output: Any) -> Any:
    """A module's output as far as it gives names: what else is in it may hold tensors that are not kept."""
    if isinstance(output, (tuple, list)):
        return tuple(keeper.of(each) if isinstance(each, Tensor) else None for each in output)
    return keeper.of(output) if isinstance(output, Tensor) else None


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
