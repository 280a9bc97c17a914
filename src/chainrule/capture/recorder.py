"""Records the user's code while it runs: modes and hooks on, the code runs, modes and hooks off; a `Tape` remains.

Only what must happen while the code runs happens here, because each operation pays for it. Which tensor is which value
and what it is called is answered later, by `lowering`. Whatever is about to be overwritten is copied first
(`Tape.overwritten`).
"""

from __future__ import annotations

import os
import sys
from itertools import takewhile
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from chainrule.capture import global_hooks
from chainrule.capture.compiler import EagerHere
from chainrule.capture.data_parallel import storage_of
from chainrule.capture.function_hooks import FunctionHooks, around_functions
from chainrule.capture.guard import GAVE_WAY, Guard, here, recorded_here
from chainrule.capture.modes import DispatchBypass, Modes, left_on
from chainrule.capture.node_hooks import NodeHooks
from chainrule.capture.node_matching import BATCH, Eviction, NodeMatcher
from chainrule.capture.optimizer_step import closure_of, closure_ran, complete, update_begun
from chainrule.capture.own_mode import is_higher_order, run_composite
from chainrule.capture.policy import Policy
from chainrule.capture.raw_records import RawCall, RawFunction, RawModule
from chainrule.capture.retention import Retention
from chainrule.capture.source import Site, Sites, callers, is_library
from chainrule.capture.tape import Tape
from chainrule.capture.traits import Traits
from chainrule.capture.writes import UnreadWrites, leave_out, part_written
from chainrule.errors import RecordingError
from chainrule.graph.reexecution import close_interrupted, unobserved
from chainrule.graph.trees import tensors_in
from chainrule.pytorch_internals import _current_graph_task_id, _DisableTorchDispatch, compiler_is_loaded
from chainrule.rules.facts import PYTORCH

_wrappers = (__file__, os.path.join("torch", "_compile.py"), os.path.join("torch", "utils", "_contextlib.py"))
_data: Any = Tensor.data
_setitem: Any = Tensor.__setitem__
_view_as: Any = Tensor.view_as
_unseen_writes = frozenset({_data.__set__, Tensor.numpy})  # they write, or let others write, without an operation
_writers = frozenset(map(type, _unseen_writes))


class Recorder:
    """Puts modes and hooks on with `start`, takes them all off with `stop`, and leaves a `Tape`.

    Whatever PyTorch calls here runs guarded, and the user's operation between two such parts, never in one.
    """

    def __init__(self, policy: Policy | None, guard: Guard) -> None:
        self.guard = guard
        self.tape = Tape(guard)
        if policy is not None and policy != Policy(everything=True):
            self.tape.retention = Retention(policy, self.tape.placeholders)
        self._retention = self.tape.retention
        self._chosen: list[bool] = []  # for each open run of a module whether all in it is kept
        self._open_functions: list[int] = []  # whose forward runs, outermost first
        self._ended: int | None = None  # the function whose forward ended last, if nothing ran since
        self._in_call = False
        self._first: int | None = None  # the operation with which an assignment to elements began
        self._open_modules: list[int] = []  # runs of modules that have not ended, outermost first
        self.bypass = DispatchBypass()
        self._sites: Sites = {}
        self._traits: dict[Any, Traits] = {}
        self._matcher = NodeMatcher(self.tape)
        self._unread = UnreadWrites(self.tape)
        self._eviction: Eviction | None = None
        if self._retention is not None:
            self._eviction = Eviction(self.tape, self._retention, self._matcher)
        self.modes = Modes(self)
        self._hooks = NodeHooks(self.tape, self._matcher, self.modes, self._eviction)
        self._stance: EagerHere | None = None
        self._step_open = False
        self._entered: tuple[Optimizer, int] | None = None  # a step that began before the recording, and where
        enter, leave = guard.hook(self.enter_module), guard.hook(self._leave_module)
        before, after = guard.hook(self.before_step), guard.hook(self._after_step)
        self._global_hooks: list[tuple[global_hooks.HookPlace | FunctionHooks, Any, Any]] = [
            (global_hooks.before_forward, enter, enter),
            (global_hooks.after_failed_forward, leave, True),
            (global_hooks.after_forward, leave, leave),
            (global_hooks.before_step, before, before),
            (global_hooks.after_step, after, after),
            (around_functions, guard, (guard.hook(self._enter_function), guard.hook(self._leave_function))),
        ]

    # -- on and off ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to record. Raises RecordingError where this thread is being recorded already, unless by a watch."""
        outer = here()
        if outer is not None and outer.gives_way:
            outer.failure = outer.failure or GAVE_WAY
        elif recorded_here():
            raise RecordingError(
                "chainrule.record() inside chainrule.record(): one thread holds one recording at a time. End the outer "
                "block first (`chainrule run`, `verify` and `watch` are such blocks), or leave the inner one out: the "
                "outer recording already holds what happens in it."
            )
        left_on.take_off(for_others=True)
        close_interrupted()
        self.guard.enter_thread()
        for place, key, hook in self._global_hooks:
            place.add(key, hook)
        if compiler_is_loaded():  # only a process that compiles has it: importing takes a second
            self._stance = EagerHere(self.guard)
            self._stance.begin()
        self.modes.enter()

    def take_off(self) -> None:
        """Take every mode, hook and handle off. May be called at any time, and again, also after an interrupt in it."""
        close_interrupted()
        self.modes.leave()
        self.guard.leave_thread()
        if self._stance is not None:
            self._stance.end()
        while self._global_hooks:  # and drop them: they refer to this recorder
            place, key, _ = self._global_hooks[-1]
            place.remove(key)
            self._global_hooks.pop()
        self._hooks.remove()

    def finish(self) -> None:
        """Complete the tape, when everything is off."""
        self._evict()
        with unobserved():
            self._matcher.sweep()

    # -- the forward pass ---------------------------------------------------------------------------------------------

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Run one ATen operation and record it. This is the hottest path of the package."""
        seen, state, takes_functions = False, None, False
        composite: Traits | None = None  # if it needs to know how to run what it calls
        try:
            if _current_graph_task_id() != -1 and not torch.is_grad_enabled():
                if self.modes.in_function:
                    self._before_write_in_backward(func, args, kwargs or {})
            elif not self.modes.paused:
                traits = self._traits.get(func)
                if traits is None:
                    takes_functions = is_higher_order[type(func)]
                    if not takes_functions:
                        traits = self._traits[func] = Traits.of(func)
                if traits is not None and not (
                    traits.silent or (traits.in_one_part and self._leaves_out(traits, args, kwargs or {}))
                ):
                    eviction = self._eviction
                    if eviction is not None and eviction.waiting > BATCH:
                        eviction.evict(between=False)
                    if traits.writes:
                        self._before_write(traits, func, args, kwargs or {})
                    if traits.random:
                        state = torch.get_rng_state()
                    if traits.composite and _differs_inside(traits, args):
                        composite = traits
                    seen = True
        except BaseException as error:
            self.guard.failed(error)
        if takes_functions:  # what runs in it is recorded
            return self.modes.inside(func, args, kwargs or {})
        if composite is not None:
            out = run_composite(func, args, kwargs or {}, composite.casts)
        else:
            out = func(*args, **kwargs) if kwargs else func(*args)
        if seen:
            try:
                if state is not None and func.namespace not in PYTORCH and _drew_nothing(state):
                    state = None
                tape = self.tape
                tape.operations.append((func, args, kwargs, out, len(tape.calls) if self._in_call else None, state))
                if self._eviction is not None:
                    self._eviction.note(out)
            except BaseException as error:
                self.guard.failed(error)
        return out

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one torch function that the user's code called, and record it if operations ran for it."""
        operations = self.tape.operations
        first = len(operations)
        if type(func) in _writers and func in _unseen_writes:
            with self.guard:
                self._evict()
                if func == _data.__set__:
                    self._before_replacing(*args)
                elif self.modes.in_function:
                    self._hooks.before_write(args[:1])
        self._first, self._in_call = first if func is _setitem else None, True
        try:
            out = func(*args, **kwargs)
        except Exception as error:
            self._note_error(func, args, kwargs, first, error)
            raise
        finally:
            self._first, self._in_call = None, False
        if len(operations) > first and self.guard.on:  # it may have ended in the call
            try:
                self._note_call(func, args, kwargs, out, first)
                if len(operations) <= first + 2 and not kwargs:
                    self.bypass.learn(func, args, out, operations[first:])
                if self._eviction is not None and (self._eviction.waiting > BATCH or self._matcher.written):
                    self._eviction.evict()
            except BaseException as error:
                self.guard.failed(error)
        return out

    def call_bypassing(self, operation: Any, func: Any, args: tuple[Any, ...]) -> Any:
        """As `call`, for a function that runs just this operation: the dispatch mode is left out."""
        tape = self.tape
        first = len(tape.operations)
        try:
            with _DisableTorchDispatch():  # not `unobserved`: autograd has to see it
                out = func(*args)
        except Exception as error:
            self._note_error(func, args, {}, first, error)
            raise
        try:
            tape.operations.append((operation, args, None, out, len(tape.calls), None))
            self._note_call(func, args, {}, out, first)
            eviction = self._eviction
            if eviction is not None:
                eviction.note(out)
                if eviction.waiting > BATCH:
                    eviction.evict()
        except BaseException as error:
            self.guard.failed(error)
        return out

    def backward(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `backward` or `grad`, and record it."""
        with self._hooks.around(func, args, kwargs) as given:
            given.append(func(*args, **kwargs))
        return given[0]

    def _note_error(self, func: Any, args: Any, kwargs: Any, first: int, error: Exception) -> None:
        """Note a call that raised an error of the user's."""
        with self.guard:
            self._note_call(func, args, kwargs, None, first, f"{type(error).__name__}: {error}")

    def _evict(self, between: bool = True) -> None:
        """Evict what is not kept: before anything is overwritten, and before the tape is read."""
        if self._eviction is not None:
            self._eviction.evict(between)

    def _note_call(self, func: Any, args: Any, kwargs: Any, out: Any, first: int, error: str | None = None) -> None:
        tape = self.tape
        frame = sys._getframe(3)
        site = Site.of(frame, self._sites)
        custom = None if torch.is_grad_enabled() else self._function_of(func)
        module = self._open_modules[-1] if self._open_modules else None
        tape.calls.append(RawCall(func, args, kwargs, out, site, module, first, len(tape.operations), custom, error))

    def _function_of(self, func: Any) -> int | None:
        """The `autograd.Function` that a call is part of: its forward runs, or PyTorch makes a view of its result."""
        if self._open_functions:
            return self._open_functions[-1]
        if func is not _view_as:
            self._ended = None
        elif self._ended is not None:
            self.tape.functions[self._ended].last = len(self.tape.operations)
        return self._ended

    # -- functions ----------------------------------------------------------------------------------------------------

    def _enter_function(self, cls: type, arguments: tuple[Any, ...], caller: FrameType | None) -> None:
        functions, first = self.tape.functions, len(self.tape.operations)
        module = self._open_modules[-1] if self._open_modules else None
        self._open_functions.append(len(functions))
        functions.append(RawFunction(cls, arguments, Site.of(caller), module, first, first))

    def _leave_function(self) -> None:
        if self._open_functions:
            self._ended = self._open_functions.pop()
            self.tape.functions[self._ended].last = len(self.tape.operations)

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
            part = part_written(traits, func, args, kwargs)
            self.tape.overwritten(map(self._matcher.on_tape, changed), seen=False, part=part)
            self._matcher.match_views((args, kwargs), len(self.tape.operations))
        self._matcher.written[len(self.tape.operations)] = written
        for tensor in written:
            if traits.uncounted and self._retention is not None:
                self._retention.count_write(tensor)
            if id(tensor) in self.tape.gradients or traits.sets_zero:  # cleared before our first pass: known later
                site = Site.of(sys._getframe(2))
                self.tape.writes.append((len(self.tape.operations), id(tensor), _library_function(), site))

    def _before_write_in_backward(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The backward of a function runs an operation; nothing of that is recorded, but what it overwrites is kept."""
        if hasattr(func, "_schema") and (traits := Traits.of(func)).writes:
            self._hooks.before_write(t for each in traits.written(args, kwargs) for t in tensors_in(each))

    def _leaves_out(self, traits: Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this write is one of many that nothing reads, and is not recorded (see `UnreadWrites`)."""
        tape, written = self.tape, next(traits.written(args, kwargs))
        if not isinstance(written, Tensor) or written.requires_grad:
            return False
        seen = max(self._matcher.swept, tape.seen, 0 if self._eviction is None else self._eviction.seen[0])
        with unobserved():
            row = self._unread.row_of(written, (args, kwargs), len(self._open_modules), seen, self._first)
        if row is None:
            return False
        if row.run is not None:
            row.run.count += 1
            return True
        self._evict(between=False)
        with unobserved():
            self._matcher.sweep()
            changed = (written,) if written._base is None else (written, written._base)
            row.run = leave_out(tape, map(self._matcher.on_tape, changed), Site.of(sys._getframe(3)))
        return True

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

    @property
    def in_module(self) -> bool:
        """Whether the forward pass of a module is running."""
        return bool(self._open_modules)

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

    # -- the optimizer ------------------------------------------------------------------------------------------------

    def enter_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An optimizer's step began before the recording."""
        self.before_step(optimizer, args, kwargs)
        self._entered = (optimizer, len(self.tape.operations))

    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An optimizer's step begins."""
        if self._entered == (optimizer, len(self.tape.operations)):
            return  # the hooks of that step are still being called
        with unobserved():
            self._evict(between=False)
            self._matcher.sweep()
            self.tape.updates.append(update_begun(self.tape, optimizer, Site.of(sys._getframe(1))))
        if closure_of(args, kwargs) is None and not self.modes.paused:  # with one, passes run in the step
            self._step_open = True
            self.modes.pause()

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._step_open:
            self._step_open = False
            self.modes.resume()
        update = self.tape.updates[-1] if self.tape.updates else None
        if update is None or update.optimizer is not optimizer or update.after:
            return
        with unobserved():
            if closure_of(args, kwargs) is not None:
                closure_ran(self.tape, update)
            complete(self.tape, update)


def _differs_inside(traits: Traits, args: tuple[Any, ...]) -> bool:
    """Whether what a composite operation calls would run differently because a dispatch mode is on."""
    return bool(args) and isinstance(args[0], Tensor) and (traits.casts or args[0].is_complex())


def _drew_nothing(state: Tensor) -> bool:
    """Whether PyTorch's generator still is as it was."""
    with unobserved():
        return torch.equal(state, torch.get_rng_state())


def _library_function() -> str:
    """The outermost PyTorch function on the stack that runs for the user (`clip_grad_norm_`, `zero_grad`)."""
    name = ""
    for frame in takewhile(lambda each: is_library(each.f_code), callers(sys._getframe(1))):
        wraps = frame.f_code.co_filename.endswith(_wrappers)
        if not wraps and not frame.f_code.co_name.startswith("_"):
            name = frame.f_code.co_name
    return name
