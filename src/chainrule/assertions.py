"""Assertions for tests: no sample of a batch sees another, and no position sees a later one.

Two independent ways must agree. The operations of one recorded call give a bound for all numbers. And the model runs
again with positions of its input moved, which also sees what goes through Python and NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chainrule.derivation.dependence import MOVED, measured, steps, written
from chainrule.derivation.reaches import Bounds, Reaches, step_of
from chainrule.errors import DependenceError, MissingError, RecordingError, RequestError
from chainrule.execution.experiment import nothing_left_behind
from chainrule.execution.perturbation import same
from chainrule.execution.user_code import UserCode
from chainrule.graph.names import find_value
from chainrule.graph.snapshot import has_numbers
from chainrule.graph.trees import tensors_in
from chainrule.recording import Recording, record
from chainrule.rules.pattern import laid
from chainrule.verify_function import buffers_of, numbers_restored, without_keys

GIVEN, RESULT = "given_to_the_assertion", "result_of_the_assertion_"  # names that no model has
FEW = 8
"""The positions that are moved where structure shows that nothing leaks."""


def assert_independent(model: Callable[..., Any], x: Tensor, *others: Any, axis: int = 0, **keywords: Any) -> str:
    """Assert that each position of the results along `axis` depends on the same position of `x` alone.

    With `axis=0` no sample of a batch sees another one. `model(x, *others, **keywords)` is called, and every tensor
    that it returns must have the positions of `x` along this axis. The model is run as it is: in train mode a batch
    norm mixes samples. Returns how it was shown.

    Raises DependenceError, an AssertionError, with the path that leaks; RequestError where `x` or the results have no
    such axis; RecordingError where that cannot be determined.
    """
    return _asserted("assert_independent", model, x, others, keywords, axis, lambda seen, own: seen == own)


def assert_causal(model: Callable[..., Any], x: Tensor, *others: Any, axis: int = 1, **keywords: Any) -> str:
    """Assert that each position of the results along `axis` depends on the same and earlier positions of `x` alone.

    As `assert_independent`, for models that read a sequence from left to right.
    """
    return _asserted("assert_causal", model, x, others, keywords, axis, lambda seen, own: seen <= own)


Allowed = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Leak:
    """An element of a result that sees a position that it may not."""

    index: tuple[int, ...]
    position: int


def _asserted(
    name: str, model: Callable[..., Any], x: Tensor, others: Any, keywords: Any, axis: int, allowed: Allowed
) -> str:
    code = UserCode(model, others, keywords)
    if not isinstance(x, Tensor) or not has_numbers(x) or x.layout != torch.strided:
        raise RequestError(f"chainrule.{name}: give the model and its input, a tensor with numbers, after it.")
    axis = _axis(name, "the input", x, axis)
    if x.shape[axis] < 2:
        raise RequestError(
            f"chainrule.{name}: axis {axis} of the input has {x.shape[axis]} position, so that there is nothing to "
            "test. Give two or more."
        )
    written_to = [each for each in (*buffers_of(model), *code.tensors()) if has_numbers(each)]

    def call(data: Tensor) -> list[Tensor]:
        with nothing_left_behind(), code.restored(), numbers_restored(written_to), torch.enable_grad():
            return tensors_in(without_keys(model(data, *others, **keywords)))

    given = x.detach().clone().requires_grad_(x.requires_grad)
    names: dict[str, Any] = {GIVEN: given}
    with record(names) as recording:
        outs = call(given)
        names |= {f"{RESULT}{i}": out for i, out in enumerate(outs)}
    if not outs:
        raise RequestError(f"chainrule.{name}: the model returned no tensor.")
    for i, out in enumerate(outs):
        which = "the result" if len(outs) == 1 else f"result {i}"
        if _axis(name, which, out, axis) != axis or out.shape[axis] != x.shape[axis]:
            raise RequestError(
                f"chainrule.{name}: {which} has the shape {tuple(out.shape)}, without the {x.shape[axis]} positions of "
                f"the input along axis {axis}. Give a function that returns what has: lambda x: model(x)[0]."
            )
    shown = [_shown(name, recording, i, len(outs), given, axis, allowed, call) for i in range(len(outs))]
    return "; ".join(dict.fromkeys(shown))


def _shown(
    name: str, recording: Recording, place: int, count: int, x: Tensor, axis: int, allowed: Allowed, call: Any
) -> str:
    """How it was shown for one result."""
    graph, which = recording.graph, "the result" if count == 1 else f"result {place}"
    source, until = _value(recording, GIVEN), _value(recording, f"{RESULT}{place}")
    walk = Reaches(graph, source, axis, until) if source is not None and until is not None else None
    bounds = walk.of(until) if walk is not None and until is not None else None
    out = call(x)[place]
    leak = None if bounds is None else _leak(bounds, tuple(out.shape), axis, x.shape[axis], allowed)
    proved = walk is not None and leak is None and not walk.open()
    if not same(out, call(x)[place]).all():
        if proved:
            return "shown by structure, for all finite numbers"
        raise RecordingError(
            f"chainrule.{name}: the model gives other numbers each time that it runs on the same input, so nothing can "
            "be measured, and its operations allow a leak. Make it deterministic."
        )
    seen = measured(x.detach(), axis, lambda data: call(data)[place].detach(), FEW if proved else MOVED)
    real = _leak(seen.bounds, tuple(out.shape), axis, x.shape[axis], allowed) if seen.count else None
    if real is not None:
        raise DependenceError(_message(name, which, walk, until, real, axis, leak is not None, allowed))
    if proved:
        return "shown by structure, for all finite numbers"
    if not seen.count:
        raise RecordingError(f"chainrule.{name}: this cannot be determined: {seen.unknown}. Give another input.")
    size = x.shape[axis]
    moved = "each position was" if seen.count == size else f"{seen.count} of {size} positions were"
    return f"measured for these numbers: {moved} moved, and no other one changed"


def _value(recording: Recording, name: str) -> int | None:
    try:
        return find_value(recording.graph, name)
    except MissingError:
        return None


def _leak(bounds: Bounds, shape: tuple[int, ...], axis: int, size: int, allowed: Allowed) -> _Leak | None:
    own = laid(torch.arange(float(size)), axis, len(shape))
    for seen in (bounds.last - 1, size - bounds.first):
        wrong = ((bounds.last > 0) & ~allowed(seen, own)).expand(shape)
        if bool(wrong.any()):
            index = tuple(wrong.nonzero()[0].tolist())
            return _Leak(index, int(seen.expand(shape)[index]))
    return None


def _message(
    name: str, which: str, walk: Reaches | None, until: int | None, leak: _Leak, axis: int, known: bool,
    allowed: Allowed,
) -> str:  # fmt: skip
    index = ",".join(map(str, leak.index))
    lines = [
        f"chainrule.{name}: position {leak.index[axis]} of {which} along axis {axis} depends on position "
        f"{leak.position} of the input. Moving that position alone changes element [{index}]."
    ]
    if walk is None or until is None or not known:
        lines.append("No operation leads from one to the other: the number went through Python or NumPy.")
        lines += [f"  {each}" for each in (walk.open() if walk is not None else [])]
        return "\n".join(lines)
    path, first = walk.path(until, lambda value: _leaks(walk, value, allowed))
    lines += [
        f"  first mixed by: {step_of(walk.graph, path[first])}",
        f"  path: {written(('x', *steps(walk.graph, path)[1:]))}",
    ]
    return "\n".join(lines)


def _leaks(walk: Reaches, value: int, allowed: Allowed) -> bool:
    """Whether a value has positions together that none of its axes keeps apart."""
    found, _ = walk.relation(value)
    causal = bool(allowed(torch.zeros(()), torch.ones(())))
    return found not in ("none", "own", "one", *(("earlier",) if causal else ()))


def _axis(name: str, which: str, tensor: Tensor, axis: int) -> int:
    if not -tensor.dim() <= axis < tensor.dim():
        raise RequestError(
            f"chainrule.{name}: axis={axis}, but {which} has the shape {tuple(tensor.shape)}. Give one of its axes."
        )
    return axis % tensor.dim()
