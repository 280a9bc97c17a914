"""Changes of one step of a user's backward: another operator, function, axis or number; or one of its tensors changed.

A change is tried by running the steps again with it. What it repairs is judged by who asks.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from chainrule.execution.call_tape import Called
from chainrule.execution.function_trace import FunctionTrace
from chainrule.verification.repair_changes import FUNCTIONS, TensorChange, changes
from chainrule.verification.repair_reach import name_of
from chainrule.verification.repair_samples import Mistake, Reach

Path = tuple[int | str, ...]
Step = Callable[[Reach, list[Any], dict[str, Any]], Any]


@dataclass(frozen=True)
class Edit:
    """One change of one step, or of a tensor that is read (`source`: its name; then in all steps)."""

    cost: float
    kind: Mistake
    problem: str
    fix: str
    place: int
    work: Step | None = None
    source: tuple[str, Callable[[Reach, Tensor], Tensor]] | None = None


def edits(points: Sequence[FunctionTrace], reach: Sequence[Reach], places: set[int]) -> Iterator[Edit]:
    """All changes of the steps at these places; the place after the last step is the return of the gradients."""
    point = points[0]
    calls = point.steps.calls
    made = {id(each): place for place, call in enumerate(calls) for each in _tensors(call.out)}
    uses = _uses(point)
    for place in sorted(places):
        call = calls[place] if place < len(calls) else _returning(point)
        for path, operand in _operands(call):
            many = uses.get(id(operand), 0) > 1
            if many or id(operand) not in made or call.writes:
                name = _called(points, reach, operand, made)
                for change in changes(reach, operand, name, place):
                    yield _of(change, place, _at(call, path, change), 0.1)
        if place == len(calls):
            continue
        if isinstance(call.out, Tensor) and not call.writes:
            for change in changes(reach, call.out, name_of(call), place):
                yield _of(change, place, _after(call, change), 0.0)
            yield from _left_out(call, place)
        yield from _operators(call, place)
        yield from _axes(call, place)
        yield from _numbers(points, reach, call, place)
        yield from _commuted(calls, call, place)
    for name, tensor in point.sources.items():
        used = [each for each in (*point.context.saved_tensors, *point.upstream) if each is not None]
        original = next((each for each in used if each is tensor or point.before.get(id(each)) is tensor), None)
        if original is not None and uses.get(id(original), 0) > 1:
            for change in changes(reach, tensor, name, 0):
                yield Edit(
                    change.cost + 0.05, change.kind, change.problem, change.fix, 0, None, (name, change.turn)
                )


def _of(change: TensorChange, place: int, work: Step, more: float) -> Edit:
    return Edit(change.cost + more, change.kind, change.problem, change.fix, place, work)


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in (tree if isinstance(tree, (tuple, list)) else (tree,)) if isinstance(each, Tensor)]


def _uses(point: FunctionTrace) -> dict[int, int]:
    """How often each tensor is read, by its id."""
    found: dict[int, int] = {}
    for call in (*point.steps.calls, _returning(point)):
        for _, operand in _operands(call):
            found[id(operand)] = found.get(id(operand), 0) + 1
    return found


def _returning(point: FunctionTrace) -> Called:
    """The return of the gradients, as a step."""
    return Called(lambda *back: back, point.back, {}, None, None)


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


def _at(call: Called, path: Path, change: TensorChange) -> Step:
    def work(reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        return call.run(_put(arguments, path, lambda operand: change.turn(reach, operand)), keywords)

    return work


def _after(call: Called, change: TensorChange) -> Step:
    return lambda reach, arguments, keywords: change.turn(reach, call.run(arguments, keywords))


def _left_out(call: Called, place: int) -> Iterator[Edit]:
    """One operand instead of the result: a factor, a term or a function too many."""
    operands = [(path, each) for path, each in _operands(call) if each.shape == call.out.shape and len(path) == 1]
    for path, _ in operands:
        slot = path[0]

        def work(reach: Reach, arguments: list[Any], keywords: dict[str, Any], slot: Any = slot) -> Any:
            return arguments[slot]

        others = [_written(each, place) for at, each in enumerate(call.arguments) if at != slot]
        if call.name in ("mul", "truediv", "div", "add", "sub") and len(others) == 1:
            kind: Mistake = "extra term" if call.name in ("add", "sub") else "extra factor"
            what = {"mul": "factor", "add": "term", "sub": "term"}.get(call.name, "division by")
            yield Edit(2.2, kind, f"the {what} {_operand_text(call, 1 - slot)} is too many", "without it", place, work)  # type: ignore[operator]
        else:
            yield Edit(2.3, "extra function", f"the `{call.name}` is too many", "without it", place, work)


def _written(given: Any, place: int) -> str:
    return "a tensor" if isinstance(given, Tensor) else f"{given}"


def _operand_text(call: Called, slot: int) -> str:
    """An operand as it is written in the source, or its number."""
    names = call.site.argument_names() if call.site is not None else ()
    if call.reversed:
        names = names[::-1]
    if slot < len(names) and names[slot]:
        return f"`{names[slot]}`"
    given = call.arguments[slot] if slot < len(call.arguments) else None
    return f"{given:.6g}" if isinstance(given, (int, float)) else f"that is its operand {slot + 1}"


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
            yield Edit(1.9, "operator", problem, "with that", place, _instead(change))
    if name == "setitem":
        yield from _assigned(call, place)
    if name == "where" and len(call.arguments) == 3:
        yield Edit(2.0, "swapped", "the two branches of `where` are swapped", "the other way round", place,
                   lambda reach, a, k: torch.where(a[0], a[2], a[1]))  # fmt: skip
    for pair in _PAIRS:
        if name in pair.split():
            other = pair.replace(name, "", 1).strip() if pair.split()[0] == name else pair.split()[0]
            yield from _exchanged(call, name, other, place)
    if name in FUNCTIONS and len(call.arguments) == 1:
        for other, function in FUNCTIONS.items():
            if other != name:
                yield Edit(2.2, "wrong function", f"`{name}` stands where `{other}` should", f"with `{other}`", place,
                           partial(_applied, function))  # fmt: skip
    if name in ("cat", "concatenate") and len(call.arguments[0]) == 2:
        yield Edit(2.0, "swapped", "the parts of `cat` are swapped", "the other way round", place,
                   lambda reach, a, k: call.run([a[0][::-1], *a[1:]], k))  # fmt: skip


def _applied(function: Callable[[Tensor], Tensor], reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    return function(arguments[0])


def _instead(function: Callable[..., Any]) -> Step:
    return lambda reach, arguments, keywords: function(*arguments, **keywords)


def _arithmetic(call: Called, name: str, place: int) -> Iterator[Edit]:
    if len(call.arguments) < 2:
        return
    sign = "@" if name == "matmul" else _ARITHMETIC[name][0]

    def ordered(arguments: list[Any]) -> tuple[Any, Any]:
        return (arguments[1], arguments[0]) if call.reversed else (arguments[0], arguments[1])

    for other, (written, work) in {**_ARITHMETIC, "matmul": ("@", operator.matmul)}.items():
        if other != name and (other != "matmul" or all(isinstance(each, Tensor) for each in call.arguments[:2])):
            yield Edit(1.9, "operator", f"`{sign}` stands where `{written}` should", f"with `{written}`", place,
                       lambda reach, a, k, work=work: work(*ordered(a)))  # type: ignore[misc]  # fmt: skip
    for other in ("sub", "truediv", "matmul"):
        if other == name or name in _ARITHMETIC and other != "matmul":
            written, work = ("@", operator.matmul) if other == "matmul" else _ARITHMETIC[other]
            problem = f"the operands of `{sign}` are swapped"
            if other != name:
                problem = f"`{sign}` stands where `{written}` should, with its operands exchanged"
            yield Edit(2.0 if other == name else 2.3, "swapped" if other == name else "operator", problem,
                       "the other way round" if other == name else f"with `{written}`", place,
                       lambda reach, a, k, work=work: work(*ordered(a)[::-1]))  # type: ignore[misc]  # fmt: skip


def _assigned(call: Called, place: int) -> Iterator[Edit]:
    """`d[i] = g` for `d[i] += g`: and where an index is repeated, only the last one counts."""

    def added(reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        held, index, value = arguments
        held[index] = held[index] + value

    def accumulated(reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        held, index, value = arguments
        held.index_put_(index if isinstance(index, tuple) else (index,), value, accumulate=True)

    yield Edit(2.0, "operator", "`=` overwrites what is there", "with `+=`", place, added)
    problem = "repeated indices overwrite each other, where their gradients should add up"
    yield Edit(1.9, "operator", problem, "with `index_put_(..., accumulate=True)`, or `index_add_`", place, accumulated)


def _exchanged(call: Called, name: str, other: str, place: int) -> Iterator[Edit]:
    symbols = {"gt": ">", "lt": "<", "ge": ">=", "le": "<=", "eq": "==", "ne": "!=", "and": "&", "or": "|"}
    change = getattr(torch, other, None) or getattr(Tensor, other, None) or getattr(Tensor, f"__{other}__", None)
    if change is None:
        return
    kind: Mistake = "reduction" if name in ("sum", "mean") else "operator"
    problem = f"`{symbols.get(name, name)}` stands where `{symbols.get(other, other)}` should"
    if name in _ADDING:
        problem = f"repeated indices overwrite each other, where their gradients should add up (`{name}`)"
    yield Edit(1.8, kind, problem, f"with `{symbols.get(other, other)}`", place, _instead(change))


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

        def work(reach: Reach, arguments: list[Any], keywords: dict[str, Any], given: Any = given) -> Any:
            if key or len(arguments) < 2:
                return call.run(arguments, {**keywords, key or "dim": given, **_kept(call, keywords, current)})
            return call.run([arguments[0], given, *arguments[2:]], keywords)

        before = "all axes" if current is None else _along(current)
        yield Edit(1.8, "reduction", f"the `{call.name}` goes over {before}, and not over {_along(axes or ())}",
                   f"over {_along(axes or ())}", place, work)  # fmt: skip
    if call.name in ("var", "std"):
        for key_, value in (("unbiased", not call.keywords.get("unbiased", True)),):
            yield Edit(1.9, "wrong number", f"`{call.name}` divides by the wrong number: `unbiased` (N - 1 or N)",
                       f"with `unbiased={value}`", place,
                       lambda reach, a, k: call.run(a, {**k, key_: value}))  # fmt: skip


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
_UNTOUCHED = _ALONG | {"transpose", "permute", "unsqueeze", "squeeze", "flatten", "t", "reshape", "view", "expand"}


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
            yield from _slices(call, path, now, place)
        if not isinstance(now, (int, float)) or isinstance(now, bool):
            continue
        index = call.name in ("getitem", "setitem", "roll", "select", "narrow", "pad", "tril", "triu")
        for cost, kind, text, value in _candidates(points, reach, now, index):

            def work(
                reach: Reach, a: list[Any], k: dict[str, Any], path: Path = path, value: Any = value
            ) -> Any:
                chosen = value(reach) if callable(value) else value
                return call.run(_put(a, path, lambda _: chosen), k)

            yield Edit(cost, kind, f"the number {now:.6g} should be {text}", f"with {text}", place, work)
    for key, now in call.keywords.items():
        if isinstance(now, (int, float)) and not isinstance(now, bool) and key not in ("dim", "axis", "dims"):
            for cost, kind, text, value in _candidates(points, reach, now, isinstance(now, int)):

                def put(reach: Reach, a: list[Any], k: dict[str, Any], key: str = key, value: Any = value) -> Any:
                    return call.run(a, {**k, key: value(reach) if callable(value) else value})

                yield Edit(cost, kind, f"`{key}={now:.6g}` should be {text}", f"with {text}", place, put)


def _candidates(
    points: Sequence[FunctionTrace], reach: Sequence[Reach], now: float, index: bool
) -> Iterator[tuple[float, Mistake, str, Any]]:
    whole = isinstance(now, int)
    kind: Mistake = "shifted" if index and whole else "wrong number"
    for by in (1, -1) if whole else ():
        yield 2.1, kind, f"{now + by}", now + by
    yield 2.1, kind if index else "sign", f"{-now:.6g}", -now
    if index:
        return
    for name, number in reach[0].numbers.items():
        if number != now:
            yield 2.0, "wrong number", f"{name} = {number:.6g}", _number(name)
    for size, called in sizes(points[0]):
        if size != now:
            yield 2.2, "wrong number", f"{size}, {called}", size
    for factor in _PLAIN:
        yield 2.3, "wrong number", f"{now * factor:.6g}", now * factor
        yield 2.3, "wrong number", f"{now / factor:.6g}", now / factor
    for value in (0, 1):
        yield 2.3, "wrong number", f"{value}", value
    for key, named in reach[0].named.items():
        yield 2.4 + named.cost, "wrong operand", named.text, _tensor(key)


def _number(name: str) -> Callable[[Reach], float]:
    return lambda reach: reach.numbers[name]


def _tensor(key: str) -> Callable[[Reach], Tensor]:
    return lambda reach: reach.named[key].tensor


def _slices(call: Called, path: Path, now: slice, place: int) -> Iterator[Edit]:
    """A slice that begins and ends one element earlier or later, with the same number of elements."""
    held = call.arguments[0]
    axis = int(path[1]) if len(path) > 1 else 0
    if not isinstance(held, Tensor) or now.step not in (None, 1) or axis >= held.dim():
        return
    start, stop, _ = now.indices(held.shape[axis])
    for by in (1, -1, 2, -2):
        if 0 <= start + by and stop + by <= held.shape[axis]:
            moved = slice(start + by, stop + by)

            def work(reach: Reach, a: list[Any], k: dict[str, Any], moved: slice = moved) -> Any:
                return call.run(_put(a, path, lambda _: moved), k)

            text = f"`{moved.start}:{moved.stop}`"
            yield Edit(2.0 + abs(by) / 10, "shifted", f"the slice along axis {axis} is off by {abs(by)}",
                       f"with {text}", place, work)  # fmt: skip


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


# -- order ------------------------------------------------------------------------------------------------------------


def _commuted(calls: list[Called], call: Called, place: int) -> Iterator[Edit]:
    """Two steps of one tensor in the other order: eps added outside of the root."""
    inner = [(path, each) for path, each in _operands(call)]
    if len(inner) != 1 or not isinstance(call.out, Tensor) or call.writes:
        return
    (path, operand) = inner[0]
    first = next((each for each in calls[:place] if each.out is operand), None)
    if first is None or len(list(_operands(first))) != 1 or first.writes:
        return
    (before, source) = next(_operands(first))

    def work(reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        outer = call.run(_put(arguments, path, lambda _: source), keywords)
        return first.run(_put(list(first.arguments), before, lambda _: outer), first.keywords)

    number = next((each for each in call.arguments if isinstance(each, (int, float))), None)
    if call.name == "add" and number is not None:
        problem = f"{number:.6g} is added outside of `{first.name}`, and not inside"
        yield Edit(1.9, "epsilon", problem, "with it inside", place, work)
    else:
        problem = f"`{call.name}` comes after `{first.name}`, and not before"
        yield Edit(2.3, "order", problem, "in the other order", place, work)
