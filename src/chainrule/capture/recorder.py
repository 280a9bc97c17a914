"""Modes and hooks on, the user's code runs, modes and hooks off: what happened is left behind as a `Tape`.

Only what must happen while the code runs happens here, because each operation pays for it: a dispatch mode appends
every ATen operation with its tensors, a function mode what the user wrote, node hooks the gradients, and the global
hooks of optimizers the update. All questions (which value is which, what is it called) are answered later, by
`assemble`.

Whatever is about to be overwritten is copied first (`Tape.overwritten`). The rooms that this one is made of:

    modes, direct    see what the user wrote, and each ATen operation
    ties             which autograd node leads back through which operation
    hooks            the gradients that pass the nodes
    stepping         what an optimizer changes
    keeping, loans   what is kept of it all, and what is only borrowed
    settling         what is not kept is measured and let go of, in batches
"""

from __future__ import annotations

import os
import sys
import threading
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch._C import _DisableTorchDispatch
from torch.autograd.function import Function
from torch.nn.modules import module as module_hooks
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from chainrule.capture.borrowed import hooks_held
from chainrule.capture.eviction import BATCH, Settling
from chainrule.capture.modes import Direct, DispatchMode, FunctionMode, in_compiled_code, is_innermost, left_on
from chainrule.capture.node_hooks import NodeHooks
from chainrule.capture.node_matching import Ties
from chainrule.capture.optimizer_hooks import after_step, before_step
from chainrule.capture.retention import Keep, Keeper
from chainrule.capture.tape import (
    RawBackward,
    RawCall,
    RawFunction,
    RawModule,
    Tape,
    Traits,
    storage_of,
    tensors_in,
)
from chainrule.errors import RecordingError
from chainrule.graph.source import Site, Sites, is_library

_current_pass = torch._C._current_graph_task_id
_apply_code: CodeType = Function.apply.__func__.__code__  # type: ignore[attr-defined]
_create_graph_position = {Tensor.backward: 3, torch.autograd.backward: 3, torch.autograd.grad: 4}
_wrappers = (__file__, os.path.join("torch", "_compile.py"), os.path.join("torch", "utils", "_contextlib.py"))
_data: Any = Tensor.data
_unseen_writes = frozenset({_data.__set__, Tensor.numpy})  # after these, without an operation
_zeroing = frozenset({torch.ops.aten.zero_.default, torch.ops.aten._foreach_zero_.default})


class Recorder:
    """Puts modes and hooks on with `start`, takes them all off with `stop`, and leaves a `Tape`."""

    def __init__(self, keep: Keep | None = None) -> None:
        self.tape = Tape()
        if keep is not None and keep != Keep(everything=True):
            self.tape.keeper = Keeper(keep, self.tape.absentees)
        self._keeper = self.tape.keeper
        self._settling: Settling | None = None
        self._chosen: list[bool] = []  # for each open run of a module whether all in it is kept
        self._custom_arguments: Any = None  # of the autograd.Function that ran last
        self.in_call = False
        self.stack: list[int] = []  # runs of modules that are open
        self.directly = Direct()
        self._sites = Sites()
        self._traits: dict[Any, Traits] = {}
        self.ties = Ties(self.tape)
        self.hooks = NodeHooks(self.tape, self.ties, self._enter_function, self._leave_function)
        if self._keeper is not None:
            self.hooks.settling = self._settling = Settling(self.tape, self._keeper, self.ties)
        self._handles: list[Any] = []
        self._dispatch = DispatchMode(self)
        self._function = FunctionMode(self)
        self._paused = False
        self._inside: list[bool] = []  # for each Python function whose backward is running: whether we paused for it
        self._taken: list[DispatchMode | FunctionMode] = []
        self._stance: Any = None
        self._step_open = False

    # -- on and off ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to record. Raises RecordingError where this thread is being recorded already."""
        if getattr(_active, "recorder", None) is not None:
            raise RecordingError(
                "chainrule.record() inside chainrule.record(): one thread holds one recording at a time. End the outer "
                "block first (`chainrule run`, `verify` and `watch` are such blocks), or leave the inner one out: the "
                "outer recording already holds what happens in it."
            )
        if not left_on.take_off(for_others=True):
            raise RecordingError(
                "a recording cannot begin inside of another mode of PyTorch's, in compiled code in which one has just "
                "ended: begin it outside of the function that torch.compile made, around the call of it."
            )
        _active.recorder = self
        self._handles = [
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
            if in_compiled_code():
                left_on.leave(self._dispatch, self._function)
            else:
                self._dispatch.__exit__(None, None, None)
                self._function.__exit__(None, None, None)
        finally:
            _active.recorder = None
            if self._stance is not None:
                self._stance.__exit__(None, None, None)
            for handle in self._handles:
                handle.remove()
            del self._dispatch, self._function  # they hold us: a cycle
        with torch._C.DisableTorchFunction():
            try:
                self._settle()
                self.ties.sweep()
            finally:
                self._custom_arguments = None
                self.hooks.remove()
                del self.hooks  # and so do these

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
        settling = self._settling
        if settling is not None and settling.waiting > BATCH:
            settling.settle(between=False)
        if traits.writes:
            self._before_write(traits, func, args, kwargs or {})
        state = torch.get_rng_state() if traits.random else None
        out = func(*args, **kwargs) if kwargs else func(*args)
        tape = self.tape
        tape.operations.append((func, args, kwargs, out, len(tape.calls) if self.in_call else None, state))
        if settling is not None:
            settling.note(out)
        return out

    def _settle(self, between: bool = True) -> None:
        """Before anything is overwritten, or asked of the tape: what is not kept must be let go of first."""
        if self._settling is not None:
            self._settling.settle(between)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one torch function that the user's code called, and remember it if operations ran for it."""
        if func in _unseen_writes:
            self._settle()
            if func == _data.__set__:
                self._before_replacing(*args)
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
            if self._settling is not None and (self._settling.waiting > BATCH or self.ties.written):
                self._settling.settle()
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
        tape.operations.append((operation, args, None, out, len(tape.calls), None))
        self._note_call(func, args, {}, out, first)
        settling = self._settling
        if settling is not None:
            settling.note(out)
            if settling.waiting > BATCH:
                settling.settle()
        return out

    def _note_call(self, func: Any, args: Any, kwargs: Any, out: Any, first: int, error: str | None = None) -> None:
        tape = self.tape
        frame = sys._getframe(3)
        site = self._sites.of(frame)
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
        if functions and self._custom_arguments is arguments:
            functions[-1].last = last
        else:
            module = self.stack[-1] if self.stack else None
            self._custom_arguments = arguments
            functions.append(RawFunction(names["cls"], arguments, Site.of(frame.f_back), module, first, last))
        return len(functions) - 1

    def _before_write(self, traits: Traits, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Keep what an operation is about to overwrite; gives the tensors that it writes to."""
        self._settle(between=False)
        written = [t for each in traits.written(args, kwargs) for t in tensors_in(each)]
        with torch._C.DisableTorchFunction():
            self.ties.sweep()  # the nodes that lead back from what is there now, before the write gives them another
            changed = [*written, *(t._base for t in written if t._base is not None)]
            if self._keeper is not None and self._keeper.chosen:
                self.tape.want(changed, len(self.tape.operations))
            self.tape.overwritten(map(self.ties.on_tape, changed), seen=False)
            self.ties.tie_views((args, kwargs), len(self.tape.operations))
        self.ties.written[len(self.tape.operations)] = written
        for tensor in written:
            if id(tensor) in self.tape.gradients or func in _zeroing:  # cleared before our first pass: known later
                site = Site.of(sys._getframe(2))
                self.tape.writes.append((len(self.tape.operations), id(tensor), _library_function(), site))
        return written

    def _before_replacing(self, tensor: Tensor, data: Tensor) -> None:
        """Keep what a tensor is before `tensor.data = data` gives it other memory, without an operation."""
        with torch._C.DisableTorchFunction(), _DisableTorchDispatch():
            if not isinstance(data, Tensor) or storage_of(tensor) == storage_of(data):
                return
            self.ties.sweep()
            self.tape.overwritten([tensor], seen=False)
            copies = len(self.tape.copies[id(tensor)])
            self.tape.replaced.append((len(self.tape.operations), tensor, copies))

    def _enter_module(self, module: torch.nn.Module, args: Any) -> None:
        parent = self.stack[-1] if self.stack else None
        site = Site.of(sys._getframe(1))
        if self._keeper is not None:
            self._choose(self._keeper, module)
        self.tape.reducers.enter(module, args)
        self.stack.append(len(self.tape.modules))
        self.tape.modules.append(RawModule(module, parent, site, len(self.tape.operations), module.training))

    def _choose(self, keeper: Keeper, module: torch.nn.Module) -> None:
        if not keeper.keep.patterns:
            return
        self._settle()
        if not self.stack:
            keeper.choose_among(module)
        keeper.chosen = keeper.is_chosen(module) or bool(self._chosen and self._chosen[-1])
        self._chosen.append(keeper.chosen)

    def _leave_module(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        # A module whose pre-hook raised was never entered; one left by an exception may leave others open above it.
        while self.stack:
            run = self.tape.modules[self.stack.pop()]
            run.last = len(self.tape.operations)
            if self._keeper is not None and self._chosen:
                self._settle()
                self._chosen.pop()
                self._keeper.chosen = bool(self._chosen and self._chosen[-1])
            if run.module is module:
                if freed := self.tape.reducers.leave(module, output):
                    self._settle()
                    with torch._C.DisableTorchFunction(), _DisableTorchDispatch(), torch.no_grad():
                        self.tape.overwritten(freed)
                if self._settling is None:
                    run.output = output
                else:
                    self._settling.left.append((run, output))
                return

    # -- the backward pass --------------------------------------------------------------------------------------------

    def backward(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `backward` or `grad` with a hook on every node it can reach."""
        if torch._C._are_functorch_transforms_active():
            return func(*args, **kwargs)  # a level of its own, whose nodes are gone when it ends: its operations remain
        if func is torch.autograd.grad and (args[6:7] or (kwargs.get("is_grads_batched"),))[0]:
            return self._batched(func, args, kwargs)
        tape = self.tape
        roots = tuple(tensors_in(args[0] if args else kwargs.get("tensors", kwargs.get("outputs", ()))))
        accumulates = func is not torch.autograd.grad
        self._settle()
        with torch._C.DisableTorchFunction(), _DisableTorchDispatch():
            self.ties.sweep()
            leaves = self.hooks.reach(roots, accumulates)
            filled = {id(leaf): leaf.grad for leaf in leaves if accumulates and leaf.grad is not None}
            before = dict(zip(filled, tape.overwritten(filled.values()), strict=True))  # they are added to in place
            name = getattr(func, "__name__", "backward")
            site = Site.of(sys._getframe(2))
            known = roots if self._keeper is None else self._keeper.of(roots)
            backward = RawBackward(name, site, len(tape.operations), known, accumulates, before, self.hooks.straight)
        tape.backwards.append(backward)
        first, depth = len(tape.passages), len(self._inside)
        position = _create_graph_position.get(func, 3)
        create_graph = kwargs.get("create_graph", len(args) > position and args[position])
        pauses = not (create_graph or self._paused)
        if pauses:
            self._pause()
        taken, paused = list(self._taken), self._paused
        try:
            out = func(*args, **kwargs)
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
        if not accumulates:
            self._note_given(backward, args[1] if len(args) > 1 else kwargs["inputs"], out)
        return out

    def _batched(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `autograd.grad` over many gradients at once: what passes the nodes then has no numbers of its own."""
        passages, pauses = len(self.tape.passages), not self._paused
        self._settle()
        settling, self.hooks.settling = self.hooks.settling, None
        if pauses:
            self._pause()
        try:
            return func(*args, **kwargs)
        finally:
            if pauses:
                self._resume()
            self.hooks.settling = settling
            del self.tape.passages[passages:]

    def _note_given(self, backward: RawBackward, asked: Any, gradients: Any) -> None:
        """What `torch.autograd.grad` returned, and of which tensors it is the gradient."""
        with torch._C.DisableTorchFunction(), _DisableTorchDispatch():
            for of, gradient in zip((asked,) if isinstance(asked, Tensor) else asked, gradients, strict=False):
                if isinstance(of, Tensor) and gradient is not None and gradient.shape == of.shape:
                    if self._keeper is not None:
                        of, (gradient,) = self._keeper.of(of), self._keeper.arrived((gradient,))
                    backward.given.append((of, self.tape.version(gradient)))

    def _note_gradient(self, backward: RawBackward, leaf: Tensor) -> None:
        gradient, tape = leaf.grad, self.tape
        backward.after[id(leaf)] = None if gradient is None else tape.version(gradient)
        if gradient is not None:
            tape.gradients[id(gradient)] = leaf

    def _note_pass(self, backward: RawBackward, first: int) -> None:
        """Which of autograd's passes this was: the first that ran a node, but for those that ran inside it."""
        taken = {other.task for other in self.tape.backwards}
        backward.task = next((task for task, *_ in self.tape.passages[first:] if task not in taken), None)

    def _enter_function(self) -> None:
        """Record what a Python function does in its backward: checkpointing runs whole passes in there."""
        self._settle(between=False)  # it may write to what it is given
        self._inside.append(self._paused)
        if self._paused:
            self._resume()
        self._function.__enter__()

    def _leave_function(self) -> None:
        if self._inside:
            self._function.__exit__(None, None, None)
            if self._inside.pop():
                self._pause()

    # -- the optimizer ------------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with hooks_held(), torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch(), torch.no_grad():
            self._settle(between=False)
            self.ties.sweep()
            self.tape.updates.append(before_step(self.tape, optimizer, Site.of(sys._getframe(1))))
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None and not self._paused:  # with a closure, forward and backward passes run inside the step
            self._step_open = True
            self._pause()

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._step_open:
            self._step_open = False
            self._resume()
        update = self.tape.updates[-1] if self.tape.updates else None
        if update is None or update.optimizer is not optimizer or update.after:
            return
        with hooks_held(), torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch(), torch.no_grad():
            after_step(self.tape, update)

    # -- pausing ------------------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        """Let operations pass unseen: take the modes off where they are innermost, and set a flag for where not."""
        self._paused = True
        for mode in (self._dispatch, self._function):
            if is_innermost(mode):
                mode.__exit__(None, None, None)
                self._taken.append(mode)

    def _resume(self) -> None:
        self._paused = False
        while self._taken:
            self._taken.pop().__enter__()


_active = threading.local()


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
