"""Records the user's code while it runs: modes and hooks on, the code runs, modes and hooks off; a `Tape` remains.

Only what must happen while the code runs happens here, because each operation pays for it. Which tensor is which value
and what it is called is answered later, by `lowering`. Whatever is about to be overwritten is copied first
(`Tape.overwritten`).
"""

from __future__ import annotations

import os
import sys
import threading
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, optim
from torch._C import _DisableTorchDispatch
from torch.autograd.function import Function
from torch.nn.modules import module as module_hooks
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from chainrule.capture.borrowed import hooks_held
from chainrule.capture.data_parallel import own_part, wraps_others
from chainrule.capture.modes import DispatchBypass, Modes, left_on, run_composite
from chainrule.capture.node_hooks import NodeHooks
from chainrule.capture.retention import Policy, Retention
from chainrule.capture.source import Site, Sites, is_library
from chainrule.capture.sweep import BATCH, Eviction, NodeMatcher
from chainrule.capture.tape import (
    RawCall,
    RawFunction,
    RawModule,
    RawUpdate,
    Tape,
    Traits,
    storage_of,
)
from chainrule.errors import RecordingError
from chainrule.graph.reexecution import unobserved
from chainrule.graph.statistics import of_a_sample, part_of
from chainrule.graph.statistics_cache import measured
from chainrule.graph.trees import map_leaves, tensors_in

_current_pass = torch._C._current_graph_task_id
_apply_code: CodeType = Function.apply.__func__.__code__  # type: ignore[attr-defined]
_wrappers = (__file__, os.path.join("torch", "_compile.py"), os.path.join("torch", "utils", "_contextlib.py"))
_data: Any = Tensor.data
_unseen_writes = frozenset({_data.__set__, Tensor.numpy})  # they write, or let others write, without an operation
_only_read = frozenset(  # optimizers of PyTorch's that leave `.grad` unchanged (a fused one may unscale it in place)
    {optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.RMSprop, optim.Adagrad}
)


class Recorder:
    """Puts modes and hooks on with `start`, takes them all off with `stop`, and leaves a `Tape`."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.tape = Tape()
        if policy is not None and policy != Policy(everything=True):
            self.tape.retention = Retention(policy, self.tape.placeholders)
        self._retention = self.tape.retention
        self._chosen: list[bool] = []  # for each open run of a module whether all in it is kept
        self._custom_arguments: Any = None  # of the autograd.Function that ran last
        self._in_call = False
        self._open_modules: list[int] = []  # runs of modules that have not ended, outermost first
        self.bypass = DispatchBypass()
        self._sites: Sites = {}
        self._traits: dict[Any, Traits] = {}
        self._matcher = NodeMatcher(self.tape)
        self._eviction: Eviction | None = None
        if self._retention is not None:
            self._eviction = Eviction(self.tape, self._retention, self._matcher)
        self.modes = Modes(self)
        self._hooks = NodeHooks(self.tape, self._matcher, self.modes, self._eviction)
        self._handles: list[Any] = []
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
        left_on.take_off(for_others=True)
        _active.recorder = self
        self._handles = [
            module_hooks.register_module_forward_pre_hook(self.enter_module),
            module_hooks.register_module_forward_hook(self._leave_module, always_call=True),
            register_optimizer_step_pre_hook(self.before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        if "torch._dynamo" in sys.modules:  # only a process that compiles has it, and importing it takes a second
            self._stance = torch.compiler.set_stance("force_eager")
            self._stance.__enter__()
        self.modes.enter()

    def stop(self) -> None:
        """End the recording: every mode, hook and handle is taken off, whatever happened."""
        try:
            try:
                self.modes.leave()
            finally:
                _active.recorder = None
                if self._stance is not None:
                    self._stance.__exit__(None, None, None)
                for handle in self._handles:
                    handle.remove()
            self._evict()
            with unobserved():
                self._matcher.sweep()
        finally:
            self._custom_arguments = None
            self._hooks.remove()
            del self._hooks  # autograd's nodes hold it: a cycle

    # -- the forward pass ---------------------------------------------------------------------------------------------

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Run one ATen operation and record it. This is the hottest path of the package."""
        if self.modes.paused or (_current_pass() != -1 and not torch.is_grad_enabled()):
            return func(*args, **kwargs) if kwargs else func(*args)
        traits = self._traits.get(func)
        if traits is None:
            traits = self._traits[func] = Traits.of(func)
        if traits.silent:
            return func(*args, **kwargs) if kwargs else func(*args)
        eviction = self._eviction
        if eviction is not None and eviction.waiting > BATCH:
            eviction.evict(between=False)
        if traits.writes:
            self._before_write(traits, func, args, kwargs or {})
        state = torch.get_rng_state() if traits.random else None
        if traits.composite and args and isinstance(args[0], Tensor) and (traits.casts or args[0].is_complex()):
            out = run_composite(func, args, kwargs or {}, traits.casts)
        else:
            out = func(*args, **kwargs) if kwargs else func(*args)
        tape = self.tape
        tape.operations.append((func, args, kwargs, out, len(tape.calls) if self._in_call else None, state))
        if eviction is not None:
            eviction.note(out)
        return out

    def _evict(self, between: bool = True) -> None:
        """Evict what is not kept: before anything is overwritten, and before the tape is read."""
        if self._eviction is not None:
            self._eviction.evict(between)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one torch function that the user's code called, and record it if operations ran for it."""
        if func in _unseen_writes:
            self._evict()
            if func == _data.__set__:
                self._before_replacing(*args)
        operations = self.tape.operations
        first = len(operations)
        self._in_call = True
        try:
            out = func(*args, **kwargs)
        except Exception as error:
            self._note_call(func, args, kwargs, None, first, f"{type(error).__name__}: {error}")
            raise
        finally:
            self._in_call = False
        if len(operations) > first:
            self._note_call(func, args, kwargs, out, first)
            if len(operations) <= first + 2 and not kwargs:
                self.bypass.learn(func, args, out, operations[first:])
            if self._eviction is not None and (self._eviction.waiting > BATCH or self._matcher.written):
                self._eviction.evict()
        return out

    def call_bypassing(self, operation: Any, func: Any, args: tuple[Any, ...]) -> Any:
        """As `call`, for a function that runs just this operation: the dispatch mode is left out."""
        tape = self.tape
        first = len(tape.operations)
        try:
            with _DisableTorchDispatch():  # not `unobserved`: autograd has to see it
                out = func(*args)
        except Exception as error:
            self._note_call(func, args, {}, None, first, f"{type(error).__name__}: {error}")
            raise
        tape.operations.append((operation, args, None, out, len(tape.calls), None))
        self._note_call(func, args, {}, out, first)
        eviction = self._eviction
        if eviction is not None:
            eviction.note(out)
            if eviction.waiting > BATCH:
                eviction.evict()
        return out

    def _note_call(self, func: Any, args: Any, kwargs: Any, out: Any, first: int, error: str | None = None) -> None:
        tape = self.tape
        frame = sys._getframe(3)
        site = Site.of(frame, self._sites)
        custom = None if torch.is_grad_enabled() else self._custom_function(frame, first)
        module = self._open_modules[-1] if self._open_modules else None
        tape.calls.append(RawCall(func, args, kwargs, out, site, module, first, len(tape.operations), custom, error))

    def _custom_function(self, frame: FrameType | None, first: int) -> int | None:
        """The `autograd.Function` whose forward is running, if its `apply` is on the stack."""
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
            module = self._open_modules[-1] if self._open_modules else None
            self._custom_arguments = arguments
            functions.append(RawFunction(names["cls"], arguments, Site.of(frame.f_back), module, first, last))
        return len(functions) - 1

    # -- writes -------------------------------------------------------------------------------------------------------

    def _before_write(self, traits: Traits, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copy what an operation is about to overwrite."""
        self._evict(between=False)
        written = [t for each in traits.written(args, kwargs) for t in tensors_in(each)]
        with unobserved():
            self._matcher.sweep()  # what is there now leads to nodes that the write will replace
            changed = [*written, *(t._base for t in written if t._base is not None)]
            if self._retention is not None and self._retention.chosen:
                self.tape.want(changed, len(self.tape.operations))
            self.tape.overwritten(map(self._matcher.on_tape, changed), seen=False)
            self._matcher.match_views((args, kwargs), len(self.tape.operations))
        self._matcher.written[len(self.tape.operations)] = written
        for tensor in written:
            if id(tensor) in self.tape.gradients or traits.sets_zero:  # cleared before our first pass: known later
                site = Site.of(sys._getframe(2))
                self.tape.writes.append((len(self.tape.operations), id(tensor), _library_function(), site))

    def _before_replacing(self, tensor: Tensor, data: Tensor) -> None:
        """Copy a tensor before `tensor.data = data` gives it other memory, without an operation."""
        with unobserved():
            if not isinstance(data, Tensor) or storage_of(tensor) == storage_of(data):
                return
            self._matcher.sweep()
            self.tape.overwritten([tensor], seen=False)
            copies = len(self.tape.copies[id(tensor)])
            self.tape.replaced.append((len(self.tape.operations), tensor, copies))

    # -- modules ------------------------------------------------------------------------------------------------------

    def enter_module(self, module: torch.nn.Module, args: Any) -> None:
        """A module's forward begins."""
        parent = self._open_modules[-1] if self._open_modules else None
        site = Site.of(sys._getframe(1))
        if self._retention is not None:
            self._choose(self._retention, module)
        self.tape.reducers.enter(module, args)
        self._open_modules.append(len(self.tape.modules))
        self.tape.modules.append(RawModule(module, parent, site, len(self.tape.operations), module.training))

    def _choose(self, retention: Retention, module: torch.nn.Module) -> None:
        if not retention.policy.patterns:
            return
        self._evict()
        if not self._open_modules:
            retention.choose_among(module)
        retention.chosen = retention.is_chosen(module) or bool(self._chosen and self._chosen[-1])
        self._chosen.append(retention.chosen)

    def _leave_module(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        # A module whose pre-hook raised was never entered; one left by an exception may leave others open above it.
        while self._open_modules:
            run = self.tape.modules[self._open_modules.pop()]
            run.last = len(self.tape.operations)
            if self._retention is not None and self._chosen:
                self._evict()
                self._chosen.pop()
                self._retention.chosen = bool(self._chosen and self._chosen[-1])
            if run.module is module:
                if freed := self.tape.reducers.leave(module, output):
                    self._evict()
                    with unobserved():
                        self.tape.overwritten(freed)
                if self._eviction is None:
                    run.output = output
                else:
                    self._eviction.left.append((run, output))
                return

    # -- the backward pass --------------------------------------------------------------------------------------------

    def backward(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `backward` or `grad`, and record it."""
        return self._hooks.backward(func, args, kwargs)

    # -- the optimizer ------------------------------------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An optimizer's step begins."""
        with hooks_held(), unobserved():
            self._evict(between=False)
            self._matcher.sweep()
            self.tape.updates.append(_update(self.tape, optimizer, Site.of(sys._getframe(1))))
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None and not self.modes.paused:  # with a closure, forward and backward passes run in the step
            self._step_open = True
            self.modes.pause()

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._step_open:
            self._step_open = False
            self.modes.resume()
        update = self.tape.updates[-1] if self.tape.updates else None
        if update is None or update.optimizer is not optimizer or update.after:
            return
        with hooks_held(), unobserved():
            _complete(self.tape, update)


_active = threading.local()


def _update(tape: Tape, optimizer: Optimizer, site: Site | None) -> RawUpdate:
    """An optimizer's step: copies of what it changes, the gradients too where it may write to them."""
    groups = [
        ({key: _copied(tape, value) for key, value in group.items() if key != "params"}, list(group["params"]))
        for group in optimizer.param_groups
    ]
    parameters = [p for _, members in groups for p in members]
    before = tape.overwritten(parameters)
    gradients = [p.grad for p in parameters]
    versions = [None if gradient is None else tape.version(gradient) for gradient in gradients]
    if type(optimizer) not in _only_read or any(group.get("fused") for group in optimizer.param_groups):
        tape.overwritten(gradient for gradient in gradients if gradient is not None)  # it may be working memory
    own = [] if tape.retention is None or not tape.retention.is_strict else list(map(own_part, parameters))
    return RawUpdate(
        optimizer,
        len(tape.operations),
        site,
        groups,
        before,
        versions,
        [_copied(tape, dict(optimizer.state.get(p, {}))) for p in parameters],
        parts=[] if any(map(wraps_others, own)) else list(map(part_of, own)),
    )


def _copied(tape: Tape, tree: Any) -> Any:
    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        own = own_part(leaf)
        return own.detach().clone() if tape.retention is None else tape.retention.copy(own, measured=False)

    return map_leaves(copied, tree)


def _complete(tape: Tape, update: RawUpdate) -> None:
    """Add the parameters after the step, and statistics of what was added to them where they were not all kept."""
    update.after = [tape.version(p) for p in update.parameters]
    if update.parts:
        own = list(map(own_part, update.parameters))
        moves = [part_of(p) - part for p, part in zip(own, update.parts, strict=True)]
        update.moved = [of_a_sample(each, p.numel()) for each, p in zip(measured(moves, False), own, strict=True)]
        update.parts.clear()


def _library_function() -> str:
    """The outermost PyTorch function on the stack that runs for the user (`clip_grad_norm_`, `zero_grad`)."""
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
