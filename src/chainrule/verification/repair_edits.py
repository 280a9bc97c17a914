"""Changes of one step of a user's backward: another operator, function, axis or number; or one of its tensors changed.

A change is tried by running the steps again with it. What it repairs is judged by who asks.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, combinations_with_replacement, product
from typing import Any

import torch
from torch import Tensor

from chainrule.execution.call_tape import Called
from chainrule.execution.function_trace import FunctionTrace
from chainrule.verification.repair_changes import FUNCTIONS, TensorChange, changes, fitted_shape
from chainrule.verification.repair_reach import name_of
from chainrule.verification.repair_samples import Mistake, Reach, derived

Path = tuple[int | str, ...]
Step = Callable[[Called, Reach, list[Any], dict[str, Any]], Any]
"""What a step does instead: (the step at a point, what is in reach there, its arguments, its keywords)."""


@dataclass(frozen=True)
class Edit:
    """A change of one step, or of one tensor in several steps that read it; `place` is the step that tells the line."""

    cost: float
    kind: Mistake
    problem: str
    fix: str
    place: int | None
    works: dict[int, Step]


def edits(
    points: Sequence[FunctionTrace], reach: Sequence[Reach], places: set[int], repeated: dict[int, int]
) -> Iterator[Edit]:
    """All changes of the steps at these places, and of the tensors that they read.

    Those `repeated` stand in a loop of so many turns, and the others do what the first does.
    """
    point = points[0]
    calls = point.steps.calls
    made = {id(each): place for place, call in enumerate(calls) for each in _tensors(call.out)}
    reads: dict[int, list[tuple[int, Path, Tensor]]] = {}
    for place, call in enumerate(calls):
        for path, operand in _operands(call):
            reads.setdefault(id(operand), []).append((place, path, operand))
    for each, slots in reads.items():
        operand, maker = slots[0][2], made.get(each)
        chosen = [(place, path) for place, path, _ in slots if place in places]
        if not chosen or (len(slots) == 1 and maker in places and not calls[maker].writes):  # type: ignore[index]
            continue  # the change of the result does the same
        name = _called(points, reach, operand, made)
        for change in changes(reach, operand, name, chosen[0][0]):
            for place, path in chosen:
                if calls[place].name in _CONDITIONS and change.kind != "wrong operand":
                    continue
                yield _of(change, place, {place: _at([path], change)}, 0.1)
            if len(chosen) > 1 and (maker is None or maker not in places or calls[maker].writes):
                works = {place: _at([path for at, path in chosen if at == place], change) for place, _ in chosen}
                yield _of(change, maker, works, 0.05)
    for place in sorted(places):
        call = calls[place]
        if isinstance(call.out, Tensor) and not call.writes:
            for change in changes(reach, call.out, name_of(call), place):
                more = 0.55 if change.kind == "wrong operand" else 0.0  # and not what its operands are
                yield _of(change, place, {place: _after(change)}, more)
            yield from _left_out(call, place, lambda each: _called(points, reach, each, made))
        if place in repeated:
            yield from _by_turns(reach, call, place, repeated[place], name_of(call))
        yield from _operators(call, place)
        yield from _axes(call, place)
        yield from _numbers(points, reach, call, place)
        if not point.steps.writes and place not in repeated:
            yield from _reordered(calls, place)
            yield from _products(reach, call, place)


_CONDITIONS = frozenset("gt ge lt le eq ne and or logical_and logical_or logical_not".split())


def _of(change: TensorChange, place: int | None, works: dict[int, Step], more: float) -> Edit:
    return Edit(change.cost + more, change.kind, change.problem, change.fix, place, works)


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in (tree if isinstance(tree, (tuple, list)) else (tree,)) if isinstance(each, Tensor)]


def _operands(call: Called) -> Iterator[tuple[Path, Tensor]]:
    for slot, each in enumerate(call.arguments):
        if isinstance(each, Tensor):
            yield (slot,), each
        elif isinstance(each, (tuple, list)):
            for item, inner in enumerate(each):
                if isinstance(inner, Tensor):
                    yield (slot, item), inner


def _called(points: Sequence[FunctionTrace], reach: Sequence[Reach], tensor: Tensor, made: dict[int, int]) -> str:
    """What an operand is to the user: a source, or a step's result."""
    if id(tensor) in made:
        return name_of(points[0].steps.calls[made[id(tensor)]])
    pristine = points[0].before.get(id(tensor), tensor)
    for named in reach[0].named.values():
        if named.tensor is pristine or (named.tensor.shape == pristine.shape and torch.equal(named.tensor, pristine)):
            return named.text
    return "an operand"


def _put(arguments: list[Any], path: Path, change: Callable[[Any], Any]) -> list[Any]:
    """The arguments with one of them changed."""
    slot = path[0]
    assert isinstance(slot, int)
    if len(path) == 1:
        arguments[slot] = change(arguments[slot])
    else:
        inner = list(arguments[slot])
        inner[path[1]] = change(inner[path[1]])  # type: ignore[call-overload]
        arguments[slot] = type(arguments[slot])(inner)
    return arguments


def _at(paths: list[Path], change: TensorChange) -> Step:
    def work(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        for path in paths:
            arguments = _put(arguments, path, lambda operand: change.turn(reach, operand))
        return call.run(arguments, keywords)

    return work


def _after(change: TensorChange) -> Step:
    return lambda call, reach, arguments, keywords: change.turn(reach, call.run(arguments, keywords))


def _by_turns(reach: Sequence[Reach], call: Called, place: int, turns: int, name: str) -> Iterator[Edit]:
    """In a loop: each turn lacks its element of a tensor as a factor, as `g[i]`."""
    for key, named in reach[0].named.items():
        if named.made >= 0 or not named.tensor.dim() or len(named.tensor) != turns or not named.tensor.is_floating_point():
            continue
        for back in (False, True):

            def factor(reach: Reach, key: str = key, back: bool = back) -> Tensor:
                return reach.named[key].tensor[turns - 1 - reach.turn if back else reach.turn]

            def result(call: Called, reach: Reach, a: list[Any], k: dict[str, Any], factor: Any = factor) -> Any:
                return call.run(a, k) * factor(reach)

            def operand(call: Called, reach: Reach, a: list[Any], k: dict[str, Any], factor: Any = factor) -> Any:
                return call.run([a[0], a[1] * factor(reach)], k)

            in_place = call.name in ("iadd", "isub", "add_", "sub_") and len(call.arguments) == 2
            if call.writes and not in_place:
                continue
            yield Edit(2.1 + named.cost, "missing factor", f"{named.text} is missing as a factor",
                       "with its element of each turn of the loop", place, {place: operand if in_place else result})  # fmt: skip


def _left_out(call: Called, place: int, named: Callable[[Tensor], str]) -> Iterator[Edit]:
    """One operand instead of the result: a factor, a term or a function too many."""
    operands = [(path, each) for path, each in _operands(call) if len(path) == 1]
    if len(operands) > 1 or not call.out.is_floating_point():
        operands = [(path, each) for path, each in operands if each.shape == call.out.shape]
    for path, _ in operands:
        slot = path[0]

        def work(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any], slot: Any = slot) -> Any:
            return arguments[slot]

        if call.name in ("mul", "truediv", "div", "add", "sub") and len(call.arguments) == 2:
            kind: Mistake = "extra term" if call.name in ("add", "sub") else "extra factor"
            if not call.out.is_floating_point():
                kind = "shifted"
            what = {"mul": "factor", "add": "term", "sub": "term"}.get(call.name, "division by")
            other = call.arguments[1 - slot]  # type: ignore[operator]
            text = named(other) if isinstance(other, Tensor) else f"{other:.6g}"
            yield Edit(2.2, kind, f"the {what} {text} is too many", "without it", place, {place: work})
        elif call.name not in ("clone", "to", "contiguous", "detach"):
            moves = call.name in ("t", "T", "mT", "transpose", "flip", "roll")
            yield Edit(1.75 if moves else 2.1, "transpose" if call.name in ("t", "T", "mT", "transpose") else
                       "extra function", f"the `{call.name}` is too many", "without it", place, {place: work})  # fmt: skip


# -- operators and functions ------------------------------------------------------------------------------------------

_ARITHMETIC: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "mul": ("*", operator.mul),
    "add": ("+", operator.add),
    "sub": ("-", operator.sub),
    "truediv": ("/", operator.truediv),
}
_INPLACE = {"imul": "mul", "iadd": "add", "isub": "sub", "itruediv": "truediv"}
_SAME = {"multiply": "mul", "subtract": "sub", "div": "truediv", "divide": "truediv", "matmul": "matmul", "mm": "matmul"}
_PAIRS = (
    "sum mean", "amax amin", "max min", "maximum minimum", "gt lt", "ge le", "gt le", "ge lt", "eq ne", "and or",
    "logical_and logical_or", "scatter_ scatter_add_", "index_copy_ index_add_", "scatter scatter_add",
    "index_copy index_add", "triu tril", "argmax argmin", "ones_like zeros_like", "conv2d conv_transpose2d",
)  # fmt: skip
_ADDING = {"scatter_", "index_copy_", "scatter", "index_copy"}


def _operators(call: Called, place: int) -> Iterator[Edit]:
    name = _SAME.get(call.name, call.name)
    if name in _ARITHMETIC or name == "matmul":
        yield from _arithmetic(call, name, place)
    if name in _INPLACE:
        for other in (each for each in _INPLACE if each != name):
            change = getattr(Tensor, f"__{other}__")
            problem = f"`{_ARITHMETIC[_INPLACE[name]][0]}=` stands where `{_ARITHMETIC[_INPLACE[other]][0]}=` should"
            yield Edit(1.9, "operator", problem, "with that", place, {place: _instead(change)})
    if name == "setitem":
        yield from _assigned(call, place)
    if name == "cumsum":
        yield Edit(1.9, "missing function", "the `cumsum` should begin at the end", "reversed by `flip` before and after",
                   place, {place: _from_the_end})
    if name == "where" and len(call.arguments) == 3:
        yield Edit(2.0, "swapped", "the two branches of `where` are swapped", "the other way round", place,
                   {place: lambda call, reach, a, k: torch.where(a[0], a[2], a[1])})  # fmt: skip
    for pair in _PAIRS:
        if name in pair.split():
            other = pair.replace(name, "", 1).strip() if pair.split()[0] == name else pair.split()[0]
            yield from _exchanged(call, name, other, place)
    if name in FUNCTIONS and len(call.arguments) == 1:
        for other, function in FUNCTIONS.items():
            if other != name:
                yield Edit(2.2, "wrong function", f"`{name}` stands where `{other}` should", f"with `{other}`", place,
                           {place: partial(_applied, function)})  # fmt: skip
    if name in ("cat", "concatenate") and len(call.arguments[0]) == 2:
        yield Edit(2.0, "swapped", "the parts of `cat` are swapped", "the other way round", place,
                   {place: lambda call, reach, a, k: call.run([a[0][::-1], *a[1:]], k)})  # fmt: skip


def _applied(
    function: Callable[[Tensor], Tensor], call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    return function(arguments[0])


def _from_the_end(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    axis = keywords.get("dim", arguments[1] if len(arguments) > 1 else 0)
    return call.run([arguments[0].flip(axis), *arguments[1:]], keywords).flip(axis)


def _instead(function: Callable[..., Any]) -> Step:
    return lambda call, reach, arguments, keywords: function(*arguments, **keywords)


def _arithmetic(call: Called, name: str, place: int) -> Iterator[Edit]:
    if len(call.arguments) < 2:
        return
    sign = "@" if name == "matmul" else _ARITHMETIC[name][0]

    def ordered(arguments: list[Any]) -> tuple[Any, Any]:
        return (arguments[1], arguments[0]) if call.reversed else (arguments[0], arguments[1])

    for other, (written, work) in {**_ARITHMETIC, "matmul": ("@", operator.matmul)}.items():
        if _is_identity(other, call.arguments):
            continue  # that is to leave it out
        if other != name and (other != "matmul" or all(isinstance(each, Tensor) for each in call.arguments[:2])):
            yield Edit(1.9, "operator", f"`{sign}` stands where `{written}` should", f"with `{written}`", place,
                       {place: lambda call, reach, a, k, work=work: work(*ordered(a))})  # type: ignore[misc]  # fmt: skip
    for other in ("sub", "truediv", "matmul"):
        if other == name or name in _ARITHMETIC and other != "matmul":
            written, work = ("@", operator.matmul) if other == "matmul" else _ARITHMETIC[other]
            problem = f"the operands of `{sign}` are swapped"
            if other != name:
                problem = f"`{sign}` stands where `{written}` should, with its operands exchanged"
            yield Edit(2.0 if other == name else 2.3, "swapped" if other == name else "operator", problem,
                       "the other way round" if other == name else f"with `{written}`", place,
                       {place: lambda call, reach, a, k, work=work: work(*ordered(a)[::-1])})  # type: ignore[misc]  # fmt: skip


def _is_identity(name: str, arguments: Sequence[Any]) -> bool:
    neutral = {"mul": 1, "truediv": 1, "add": 0, "sub": 0}.get(name)
    return any(isinstance(each, (int, float)) and each == neutral for each in arguments)


def _assigned(call: Called, place: int) -> Iterator[Edit]:
    """`d[i] = g` for `d[i] += g`: and where an index is repeated, only the last one counts."""

    def added(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        held, index, value = arguments
        held[index] = held[index] + value

    def accumulated(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        held, index, value = arguments
        held.index_put_(index if isinstance(index, tuple) else (index,), value, accumulate=True)

    yield Edit(2.0, "operator", "`=` overwrites what is there", "with `+=`", place, {place: added})
    problem = "repeated indices overwrite each other, where their gradients should add up"
    yield Edit(1.9, "operator", problem, "with `index_put_(..., accumulate=True)`, or `index_add_`", place, {place: accumulated})


def _exchanged(call: Called, name: str, other: str, place: int) -> Iterator[Edit]:
    symbols = {"gt": ">", "lt": "<", "ge": ">=", "le": "<=", "eq": "==", "ne": "!=", "and": "&", "or": "|"}
    change = getattr(torch, other, None) or getattr(Tensor, other, None) or getattr(Tensor, f"__{other}__", None)
    if change is None:
        return
    kind: Mistake = "reduction" if name in ("sum", "mean") else "operator"
    problem = f"`{symbols.get(name, name)}` stands where `{symbols.get(other, other)}` should"
    if name in _ADDING:
        problem = f"repeated indices overwrite each other, where their gradients should add up (`{name}`)"
    yield Edit(1.8, kind, problem, f"with `{symbols.get(other, other)}`", place, {place: _instead(change)})


# -- axes and numbers -------------------------------------------------------------------------------------------------

_ALONG = frozenset(
    "sum mean var std norm amax amin max min softmax log_softmax cumsum cumprod logsumexp prod flip argmax argmin".split()
)


def _axes(call: Called, place: int) -> Iterator[Edit]:
    """Another axis of a sum, a mean, a softmax; the variance with the other divisor."""
    if call.name not in _ALONG or not call.arguments or not isinstance(call.arguments[0], Tensor):
        return
    tensor = call.arguments[0]
    key = next((key for key in ("dim", "axis", "dims") if key in call.keywords), None)
    now = call.keywords[key] if key else call.arguments[1] if len(call.arguments) > 1 else None
    every = [axes for count in (1, 2, 3) for axes in combinations(range(tensor.dim()), count)]
    current = None if now is None else _axes_of(now, tensor.dim())
    for axes in (None, *every):
        if axes == current or (axes is None and (now is not None or call.name not in ("sum", "mean"))):
            continue
        given: Any = axes if axes is None or len(axes) > 1 or call.name == "flip" else axes[0]

        def work(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any], given: Any = given) -> Any:
            if key or len(arguments) < 2:
                return call.run(arguments, {**keywords, key or "dim": given, **_kept(call, keywords, current)})
            return call.run([arguments[0], given, *arguments[2:]], keywords)

        before = "all axes" if current is None else _along(current)
        yield Edit(1.8, "reduction", f"the `{call.name}` goes over {before}, and not over {_along(axes or ())}",
                   f"over {_along(axes or ())}", place, {place: work})  # fmt: skip
    if call.name in ("var", "std"):
        for key_, value in (("unbiased", not call.keywords.get("unbiased", True)),):
            yield Edit(1.9, "wrong number", f"`{call.name}` divides by the wrong number: `unbiased` (N - 1 or N)",
                       f"with `unbiased={value}`", place,
                       {place: lambda call, reach, a, k: call.run(a, {**k, key_: value})})  # fmt: skip


def _kept(call: Called, keywords: dict[str, Any], current: Any) -> dict[str, Any]:
    """Where all axes were reduced, one axis keeps its place, so that the result broadcasts as before."""
    return {"keepdim": True} if current is None and call.name in ("sum", "mean") and "keepdim" not in keywords else {}


def _axes_of(now: Any, dim: int) -> tuple[int, ...] | None:
    given = (now,) if isinstance(now, int) and not isinstance(now, bool) else now
    if not isinstance(given, (tuple, list)) or not all(isinstance(each, int) for each in given):
        return None
    return tuple(sorted(each % dim for each in given)) if dim else ()


def _along(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


_PLAIN = (2.0, 3.0, 0.5)


def _numbers(
    points: Sequence[FunctionTrace], reach: Sequence[Reach], call: Called, place: int
) -> Iterator[Edit]:
    """Another number in a step: one that the forward was given, the size of an axis, one more or less, a multiple."""
    if call.name in _ALONG:
        return
    places: list[tuple[Path, Any]] = [((slot,), each) for slot, each in enumerate(call.arguments)]
    for slot, each in enumerate(call.arguments):
        if isinstance(each, (tuple, list)):
            places += [((slot, item), inner) for item, inner in enumerate(each)]
    for path, now in places:
        if isinstance(now, slice):
            yield from _slices(points[0].steps.calls, path, now, place)
        if not isinstance(now, (int, float)) or isinstance(now, bool):
            continue
        index = call.name in ("getitem", "setitem", "roll", "select", "narrow", "pad", "tril", "triu")
        for cost, kind, text, value in _candidates(points, reach, now, index):

            def work(
                call: Called, reach: Reach, a: list[Any], k: dict[str, Any], path: Path = path, value: Value = value
            ) -> Any:
                return call.run(_put(a, path, lambda now: value(reach, now)), k)

            yield Edit(cost, kind, f"the number {now:.6g} should be {text}", f"with {text}", place, {place: work})
    for key, now in call.keywords.items():
        if not isinstance(now, (int, float)) or key in ("dim", "axis", "dims"):
            continue
        turned: list[tuple[float, Mistake, str, Value]] = [
            (2.0, "wrong number", str(not now), lambda reach, now: not now)
        ]
        for cost, kind, text, value in (
            turned if isinstance(now, bool) else _candidates(points, reach, now, isinstance(now, int))
        ):

            def put(
                call: Called, reach: Reach, a: list[Any], k: dict[str, Any], key: str = key, value: Value = value
            ) -> Any:
                return call.run(a, {**k, key: value(reach, k[key])})

            yield Edit(cost, kind, f"`{key}={now}` should be `{key}={text}`", "with that", place, {place: put})


Value = Callable[[Reach, Any], Any]
"""What a number should be: (what is in reach, the number as it is)."""


def _candidates(
    points: Sequence[FunctionTrace], reach: Sequence[Reach], now: float, index: bool
) -> Iterator[tuple[float, Mistake, str, Value]]:
    whole = isinstance(now, int)
    kind: Mistake = "shifted" if index and whole else "wrong number"
    for by in (1, -1) if whole else ():
        yield 2.1, kind, f"{now + by}", lambda reach, now, by=by: now + by  # type: ignore[misc]
    yield 2.1, kind if index else "sign", f"{-now:.6g}", lambda reach, now: -now
    if index:
        return
    for name, number, take in derived(reach[0]):
        if number != now and math.isfinite(number):
            cost = 2.0 if float(number).is_integer() else 1.15  # a fraction does not fit by chance
            yield cost, "wrong number", f"{name} = {number:.6g}", lambda reach, now, take=take: take(reach)  # type: ignore[misc]
    for size, called in sizes(points[0]):
        if size != now:
            yield 2.2, "wrong number", f"{size}, {called}", lambda reach, now, size=size: size  # type: ignore[misc]
    for factor in _PLAIN:
        yield 2.3, "wrong number", f"{now * factor:.6g}", lambda reach, now, factor=factor: now * factor  # type: ignore[misc]
        yield 2.3, "wrong number", f"{now / factor:.6g}", lambda reach, now, factor=factor: now / factor  # type: ignore[misc]
    for value in (0, 1):
        yield 2.3, "wrong number", f"{value}", lambda reach, now, value=value: value  # type: ignore[misc]
    for key, named in reach[0].named.items():
        yield 2.4 + named.cost, "wrong operand", named.text, _tensor(key)


def _tensor(key: str) -> Value:
    return lambda reach, now: reach.named[key].tensor.clone()


def _slices(calls: Sequence[Called], path: Path, now: slice, place: int) -> Iterator[Edit]:
    """A slice that begins and ends one or two elements earlier or later, with the same number of elements."""
    call = calls[place]
    held = call.arguments[0]
    axis = int(path[1]) if len(path) > 1 else 0
    if not isinstance(held, Tensor) or now.step not in (None, 1) or axis >= held.dim():
        return
    # `d[1:] += g` reads the slice and assigns it: both move.
    alike = (at for at in range(place + 1, len(calls)) if call.name == "getitem" and calls[at].name == "setitem"
             and calls[at].arguments[0] is held and calls[at].arguments[1] is call.arguments[1])  # fmt: skip
    both = {place, *[at for at in [next(alike, None)] if at is not None]}
    start, stop, _ = now.indices(held.shape[axis])
    for by in (1, -1, 2, -2):
        if 0 <= start + by and stop + by <= held.shape[axis]:

            def work(call: Called, reach: Reach, a: list[Any], k: dict[str, Any], by: int = by) -> Any:
                return call.run(_put(a, path, lambda now: _moved(now, by, a[0].shape[axis])), k)

            yield Edit(1.9 + abs(by) / 10, "shifted", f"the slice along axis {axis} is off by {abs(by)}",
                       f"with `{start + by}:{stop + by}`", place, dict.fromkeys(both, work))  # fmt: skip


def _moved(now: slice, by: int, size: int) -> slice:
    start, stop, _ = now.indices(size)
    return slice(start + by, stop + by)


def sizes(point: FunctionTrace) -> Iterator[tuple[int, str]]:
    """The numbers that a mean may divide by. Two is left to be a plain factor."""
    tensors = {**{f"`{name}`": each for name, each in point.inputs.items()}}
    tensors |= {"the output" if len(point.outs) == 1 else f"output {i}": out for i, out in enumerate(point.outs)}
    for name, each in tensors.items():
        if each.numel() > 2:
            yield each.numel(), f"the number of elements of {name}"
    for name, each in tensors.items():
        for count in (1, 2, 3):
            for axes in combinations(range(each.dim()), count):
                size = math.prod(each.shape[axis] for axis in axes)
                if size > 2:
                    yield size, f"the size of {name} along {_along(axes)}"


# -- two steps --------------------------------------------------------------------------------------------------------


def _reordered(calls: Sequence[Called], place: int) -> Iterator[Edit]:
    """A step and the one before it: in the other order, or with other operators between the three operands."""
    call = calls[place]
    operands = list(_operands(call))
    if call.name == "mul" and len(call.arguments) == 2 and isinstance(call.arguments[0], Tensor):
        yield from _split(calls, place)
    for path, operand in operands:
        first = next((at for at, each in enumerate(calls[:place]) if each.out is operand), None)
        if first is None or calls[first].writes or call.writes or not isinstance(call.out, Tensor):
            continue
        if len(operands) == 1 and len(list(_operands(calls[first]))) == 1:
            yield _commuted(calls, place, first, path)
        if call.name in _ARITHMETIC and calls[first].name in _ARITHMETIC:
            yield from _regrouped(calls, place, first, path)


def _commuted(calls: Sequence[Called], place: int, first: int, path: Path) -> Edit:
    call, earlier = calls[place], calls[first]
    (before, _) = next(_operands(earlier))

    def work(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        inner = reach.steps[first]
        source = dict(_operands(inner))[before]
        outer = call.run(_put(arguments, path, lambda _: source), keywords)
        return inner.run(_put(list(inner.arguments), before, lambda _: outer), inner.keywords)

    number = next((each for each in call.arguments if isinstance(each, (int, float))), None)
    if call.name == "add" and number is not None:
        problem = f"{number:.6g} is added outside of `{earlier.name}`, and not inside"
        return Edit(1.9, "epsilon", problem, "with it inside", place, {place: work})
    problem = f"`{call.name}` comes after `{earlier.name}`, and not before"
    return Edit(2.3, "order", problem, "in the other order", place, {place: work})


def _regrouped(calls: Sequence[Called], place: int, first: int, path: Path) -> Iterator[Edit]:
    """(a * b) * c for a * (b + c), and so on."""
    call, earlier = calls[place], calls[first]
    if len(call.arguments) != 2 or len(earlier.arguments) != 2:
        return
    now = (_ARITHMETIC[earlier.name][0], _ARITHMETIC[call.name][0])
    for (one, (left, do)), (two, (right, then)) in product(_ARITHMETIC.items(), repeat=2):
        for inside in (True, False):  # a do (b then c), or (a do b) then c
            if not inside and ((one == earlier.name) or (two == call.name)):
                continue  # a change of one operator, tried elsewhere

            def work(
                call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any],
                do: Callable[[Any, Any], Any] = do, then: Callable[[Any, Any], Any] = then, inside: bool = inside,
            ) -> Any:  # fmt: skip
                a, b = reach.steps[first].arguments
                c = arguments[1 - path[0]]  # type: ignore[operator]
                return do(a, then(b, c)) if inside else then(do(a, b), c)

            should = f"a {left} (b {right} c)" if inside else f"(a {left} b) {right} c"
            problem = f"the operators are wrong: (a {now[0]} b) {now[1]} c stands where {should} should"
            yield Edit(2.35, "operator", problem, "with that", place, {place: work})


def _split(calls: Sequence[Called], place: int) -> Iterator[Edit]:
    """a * b * c * d for a + b * c * d, and so on."""
    chain = [place]
    while True:
        inner = calls[chain[-1]].arguments[0]
        before = next((at for at in range(chain[-1]) if calls[at].out is inner and calls[at].name == "mul"), None)
        if before is None or len(calls[before].arguments) != 2:
            break
        chain.append(before)
    for first in range(1, len(chain) + 1):
        for name in ("add", "sub"):
            written, then = _ARITHMETIC[name]

            def work(
                call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any],
                first: int = first, then: Callable[[Any, Any], Any] = then,
            ) -> Any:  # fmt: skip
                factors = [reach.steps[chain[-1]].arguments[0]]
                factors += [reach.steps[at].arguments[1] for at in reversed(chain[1:])] + [arguments[1]]
                left, right = factors[:first], factors[first:]
                return then(math.prod(left[1:], start=left[0]), math.prod(right[1:], start=right[0]))

            problem = f"`*` stands where `{written}` should, between factors {first} and {first + 1} of the product"
            yield Edit(2.35, "operator", problem, f"with `{written}`", place, {place: work})


def _products(reach: Sequence[Reach], call: Called, place: int) -> Iterator[Edit]:
    """A product of two tensors is missing as a term."""
    if not isinstance(call.out, Tensor) or not call.out.is_floating_point() or call.writes or not call.out.dim():
        return
    fitting = [
        (key, named)
        for key, named in reach[0].named.items()
        if named.made < place and named.tensor.is_floating_point()
        and (named.tensor.shape == call.out.shape or (named.tensor.dim() and fitted_shape(named.tensor.shape, call.out.shape)))
    ]  # fmt: skip
    for (one, first), (two, second) in combinations_with_replacement(fitting, 2):
        if call.out.shape not in (first.tensor.shape, second.tensor.shape):
            continue
        for sign, word in ((1, "added"), (-1, "subtracted")):

            def work(
                call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any],
                one: str = one, two: str = two, sign: int = sign,
            ) -> Any:  # fmt: skip
                out = call.run(arguments, keywords)
                factors = [reach.named[key].tensor for key in (one, two)]
                shaped = [each.reshape(fitted_shape(each.shape, out.shape) or each.shape) for each in factors]
                return out + sign * shaped[0] * shaped[1]

            yield Edit(2.7 + (first.cost + second.cost) / 2, "missing term",
                       f"{first.text} times {second.text} is missing as a term", f"with it {word}", place, {place: work})  # fmt: skip
