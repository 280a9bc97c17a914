"""Why an operation outside of backward raised an exception: the layer that ran it and the tensors that it got.

The frames of the exception hold both, so a step that was not recorded is explained too.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from types import TracebackType

import torch
from torch import Tensor, nn

from chainrule.capture.failed_backward import failed_backward, given_tensor
from chainrule.capture.guard import Guard
from chainrule.capture.module_tree import named_modules
from chainrule.capture.raw_records import RawCall, RawFailure
from chainrule.capture.source import Site, entries, exception_site, is_library, without_our_frames
from chainrule.capture.step_log import StepLog
from chainrule.capture.tape import Tape
from chainrule.graph.graph import Failure, GivenTensor
from chainrule.graph.reexecution import apart, unobserved
from chainrule.graph.trees import is_a, reach, tensors_in

MEASURED = 2**20  # elements up to which the smallest and the largest are looked for
_FUNCTIONAL = (torch.nn.functional.__file__, torch.functional.__file__)
_BACKWARD = {torch.Tensor.backward.__code__, torch.autograd.backward.__code__, torch.autograd.grad.__code__}


def failed_forward(error: BaseException, tape: Tape, trace: TracebackType | None) -> RawFailure | None:
    """What is known of an exception that ended a step; None if PyTorch did not raise it."""
    text = f"{type(error).__name__}: {error}"
    inner = without_our_frames(trace)
    call = next((each for each in reversed(tape.calls) if each.error is not None), None)
    call = call if call is not None and call.error == text else None
    if not inner or (call is None and not _is_pytorchs(inner)):
        return None
    site = exception_site(trace)
    raw = RawFailure(Failure(text, None if site is None else site.place()), id(error))
    raw.module = _module(inner)
    if raw.module is not None:
        raw.facts = replace(raw.facts, layer=_described(raw.module), module=_path(raw.module, inner))
    named = _tensors_of(inner) or (_arguments(call) if call is not None else [])
    called = "" if _is_users(inner[-1]) else inner[-1].tb_frame.f_code.co_name
    if call is not None and not called:
        called = getattr(call.function, "__name__", "")
    raw.facts = replace(raw.facts, called=called, given=tuple(_measured(name, each) for name, each in named))
    return raw


def _is_users(entry: TracebackType) -> bool:
    return not is_library(entry.tb_frame.f_code)


def _is_pytorchs(inner: Sequence[TracebackType]) -> bool:
    """Whether the user's innermost frame called a layer, a function of torch.nn, or something without a frame.

    Functions written in C have none. What loads data or weights is no part of a forward pass.
    """
    tail = list(takewhile(lambda entry: not _is_users(entry), reversed(inner)))
    if tail:
        codes = [entry.tb_frame.f_code for entry in tail]
        return any(code.co_name == "_call_impl" or code.co_filename in _FUNCTIONAL for code in codes)
    code, last = inner[-1].tb_frame.f_code, inner[-1].tb_lasti
    at = {each.offset: each.opname for each in dis.get_instructions(code)}
    return last in at and not at[last].startswith(("RAISE", "RERAISE"))


def _module(inner: Sequence[TracebackType]) -> nn.Module | None:
    """The layer of PyTorch's in whose forward the exception was raised."""
    for entry in reversed(inner):
        if _is_users(entry):
            return None
        owner = entry.tb_frame.f_locals.get("self")
        if is_a(owner, nn.Module):
            return owner
    return None


def _described(module: nn.Module) -> str:
    """`Linear(in_features=3, out_features=2, bias=True)`; the name of the class alone for a module of modules."""
    name = type(module).__name__
    if any(True for _ in module.children()):
        return name
    extra = str(module.extra_repr())
    return f"{name}({extra})" if "\n" not in extra else name


def _path(module: nn.Module, inner: Sequence[TracebackType]) -> str:
    """The path of a layer in the outermost module on the stack, or its variable's name."""
    owners = (entry.tb_frame.f_locals.get("self") for entry in inner)
    models = (each for each in owners if is_a(each, nn.Module))
    for model in models:
        for path, each in named_modules(model):
            if each is module and path:
                return str(path)
    for entry in inner:
        for name, each in entry.tb_frame.f_locals.items():
            if each is module and name != "self":
                return str(name)
    return ""


def _tensors_of(inner: Sequence[TracebackType]) -> list[tuple[str, Tensor]]:
    """The tensors of the innermost function of PyTorch's that has some."""
    for entry in reversed(inner):
        if _is_users(entry):
            break
        found = [(name, each) for name, each in entry.tb_frame.f_locals.items() if type(each) in _PLAIN]
        if found:
            return found
    return []


_PLAIN = (Tensor, nn.Parameter)


def _arguments(call: RawCall) -> list[tuple[str, Tensor]]:
    """The tensors that a recorded call got, by what they are called where the call stands."""
    names = call.site.argument_names(call.function, call.arguments) if call.site is not None else ()
    given = tensors_in((call.arguments, call.keywords))
    direct = len(names) == len(call.arguments) == len(given)
    return [(names[place] if direct else "", each) for place, each in enumerate(given)]


def _measured(name: str, tensor: Tensor) -> GivenTensor:
    """A tensor with its range, where that is there to be read."""
    known = given_tensor(tensor, name)
    if tensor.is_meta or not 0 < tensor.numel() <= MEASURED or tensor.is_complex() or tensor.device.type != "cpu":
        return known
    try:
        with unobserved():
            low, high = tensor.detach().aminmax()
            return replace(known, low=float(low), high=float(high))
    except Exception:  # of a type or layout that has no order
        return known


def note_end(tape: Tape, error: BaseException) -> None:
    """Note the exception that ended a step, unless it is known already or is none of PyTorch's."""
    if not isinstance(error, Exception):
        return
    known = {raw.identity: raw for raw in tape.failures.all}
    for each in _chain(error):
        if (raw := known.get(id(each))) is not None and raw.facts.error.endswith(str(each)):
            raw.facts = replace(raw.facts, ended=True)
            return
    if (noted := _noted(tape, error)) is not None:
        noted.facts = replace(noted.facts, ended=True)
        tape.failures.all.append(noted)


def _noted(tape: Tape, error: BaseException) -> RawFailure | None:
    """A failure that no hook of a backward pass has seen: of a forward pass, or of a step that was not recorded."""
    for place in entries(error.__traceback__):
        frame = place.tb_frame
        if frame.f_code in _BACKWARD:
            roots = frame.f_locals.get("self", frame.f_locals.get("tensors", frame.f_locals.get("outputs", ())))
            return failed_backward(error, tape, tuple(tensors_in((roots,))), _called_at(error, place))
    return failed_forward(error, tape, error.__traceback__)


def lone(error: BaseException, log: StepLog) -> Tape | None:
    """The tape of a step that was not recorded, with the exception that ended it; None if PyTorch did not raise it."""
    tape = Tape(Guard())
    tape.failures.log = log
    with apart():
        tape.error = f"{type(error).__name__}: {error}"
        note_end(tape, error)
    return tape if tape.failures.all else None


def _called_at(error: BaseException, inner: TracebackType) -> Site | None:
    """The last line of the user's before an entry of an exception's traceback."""
    outer = takewhile(lambda each: each is not inner, entries(error.__traceback__))
    users = [each for each in outer if _is_users(each)]
    return Site(users[-1].tb_frame.f_code, users[-1].tb_lasti) if users else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it was raised from, or while."""
    return reach([error], lambda each: [other for other in (each.__cause__, each.__context__) if other is not None])
