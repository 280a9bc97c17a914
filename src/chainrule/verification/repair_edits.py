"""Changes of one step of a user's backward: another operator or function, an operand too many, a tensor changed.

A change is tried by running the steps again with it. What it repairs is judged by who asks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chainrule.execution.call_tape import Called
from chainrule.execution.function_trace import FunctionTrace
from chainrule.verification.repair_changes import FUNCTIONS, TensorChange, changes, missing_function
from chainrule.verification.repair_loops import by_turns, carried_over
from chainrule.verification.repair_numbers import COMPARISONS, of_axes, of_numbers, of_orders, of_sizes
from chainrule.verification.repair_pairs import products, reordered
from chainrule.verification.repair_reach import name_of
from chainrule.verification.repair_samples import Mistake, Reach
from chainrule.verification.repair_steps import ARITHMETIC, Edit, Path, Step, operands_of, put_in


def edits(
    points: Sequence[FunctionTrace], reach: Sequence[Reach], places: set[int], repeated: dict[int, list[int]]
) -> Iterator[Edit]:
    """All changes of the steps at these places, and of the tensors that they read.

    Those `repeated` stand in a loop, at these places in its turns, and the others do what the first does.
    """
    point = points[0]
    calls = point.steps.calls
    made = {id(each): place for place, call in enumerate(calls) for each in tensors_of(call.out)}
    reads: dict[int, list[tuple[int, Path, Tensor]]] = {}
    for place, call in enumerate(calls):
        for path, operand in operands_of(call):
            reads.setdefault(id(operand), []).append((place, path, operand))
    judged = {each for each, slots in reads.items() if all(calls[place].name in _CONDITIONS for place, _, _ in slots)}
    for each, slots in reads.items():
        operand, maker = slots[0][2], made.get(each)
        chosen = [(place, path) for place, path, _ in slots if place in places]
        carried = maker is not None and maker not in repeated and any(place in repeated for place, _ in chosen)
        alone = len(slots) == 1 and maker is not None and maker in places and not calls[maker].writes
        if not chosen or (alone and not carried):  # what a loop begins with is another thing in its later turns
            continue  # the change of the result does the same
        known = _in_second_turn(calls, chosen, repeated) if carried else operand
        name = _called(points, reach, known, made)
        for change in changes(reach, operand, name, chosen[0][0]):
            for place, path in chosen:
                if calls[place].name in _CONDITIONS and change.kind != "wrong operand":
                    continue
                yield _of(change, place, {place: _at([path], change)}, 0.1)
            if len(chosen) > 1 and (maker is None or maker not in places or calls[maker].writes):
                works = {place: _at([path for at, path in chosen if at == place], change) for place, _ in chosen}
                yield _of(change, maker, works, 0.05)
        for function in {calls[place].name for place, _ in chosen} & FUNCTIONS.keys():
            others = [place for place, _ in chosen if calls[place].name != function]
            if len(others) > 1 and operand.is_floating_point():
                applied = {
                    place: _at([path for at, path in chosen if at == place], missing_function(function, name))
                    for place in others
                }
                yield _of(missing_function(function, name), others[0], applied, 0.0)
    yield from of_sizes(point, sorted(places))
    for place in sorted(places):
        call = calls[place]
        if isinstance(call.out, Tensor) and not call.writes:
            for change in changes(reach, call.out, name_of(call), place):
                if id(call.out) in judged and change.kind != "wrong operand":
                    continue  # a condition tells little: many changes of what it compares give the same
                more = 0.55 if change.kind == "wrong operand" else 0.0  # and not what its operands are
                yield _of(change, place, {place: _after(change)}, more)
            yield from _left_out(call, place, lambda each: _called(points, reach, each, made))
        if place in repeated:
            yield from by_turns(reach, call, place, len(repeated[place]), name_of(call))
            yield from carried_over(calls, place, repeated)
        yield from _operators(call, place)
        yield from of_axes(call, place)
        yield from of_orders(call, place)
        yield from of_numbers(points, reach, call, place)
        if not point.steps.writes and place not in repeated:
            yield from reordered(calls, place)
            yield from products(reach, call, place)


_CONDITIONS = COMPARISONS | {"and", "or", "logical_and", "logical_or", "logical_not"}


def _of(change: TensorChange, place: int | None, works: dict[int, Step], more: float) -> Edit:
    return Edit(change.cost + more, change.kind, change.problem, change.fix, place, works)


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors that an operation returned: one, or several in a row."""
    return [each for each in (tree if isinstance(tree, (tuple, list)) else (tree,)) if isinstance(each, Tensor)]


def _called(points: Sequence[FunctionTrace], reach: Sequence[Reach], tensor: Tensor, made: dict[int, int]) -> str:
    """What an operand is to the user: a source, or a step's result."""
    if id(tensor) in made:
        return name_of(points[0].steps.calls[made[id(tensor)]])
    pristine = points[0].before.get(id(tensor), tensor)
    for named in reach[0].named.values():
        if named.tensor is pristine or (named.tensor.shape == pristine.shape and torch.equal(named.tensor, pristine)):
            return named.text
    return "an operand"


def _in_second_turn(
    calls: Sequence[Called], chosen: Sequence[tuple[int, Path]], repeated: dict[int, list[int]]
) -> Tensor:
    """What a step of a loop reads in its second turn: what the first one left."""
    place, path = next(each for each in chosen if each[0] in repeated)
    return dict(operands_of(calls[repeated[place][1]]))[path]


def _at(paths: list[Path], change: TensorChange) -> Step:
    def work(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        for path in paths:
            arguments = put_in(arguments, path, lambda operand: change.turn(reach, operand))
        return call.run(arguments, keywords)

    return work


def _after(change: TensorChange) -> Step:
    return lambda call, reach, arguments, keywords: change.turn(reach, call.run(arguments, keywords))


def _left_out(call: Called, place: int, named: Callable[[Tensor], str]) -> Iterator[Edit]:
    """One operand instead of the result: a factor, a term or a function too many."""
    operands = [(path, each) for path, each in operands_of(call) if len(path) == 1]
    if len(operands) > 1 or not call.out.is_floating_point():
        operands = [(path, each) for path, each in operands if each.shape == call.out.shape]
    for path, _ in operands:
        slot = path[0]
        kind: Mistake

        def work(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any], slot: Any = slot) -> Any:
            return arguments[slot]

        if call.name in ("mul", "truediv", "div", "add", "sub") and len(call.arguments) == 2:
            kind = "extra term" if call.name in ("add", "sub") else "extra factor"
            if not call.out.is_floating_point():
                kind = "shifted"
            what = {"mul": "factor", "add": "term", "sub": "term"}.get(call.name, "division by")
            other = call.arguments[1 - slot]
            text = named(other) if isinstance(other, Tensor) else f"{other:.6g}"
            yield Edit(2.2, kind, f"the {what} {text} is too many", "without it", place, {place: work})
        elif call.name not in ("clone", "to", "contiguous", "detach"):
            kind = _MOVING.get(call.name, "extra function")
            cost = 1.75 if call.name in _MOVING else 2.1
            yield Edit(cost, kind, f"the `{call.name}` is too many", "without it", place, {place: work})


_MOVING: dict[str, Mistake] = {
    "t": "transpose",
    "T": "transpose",
    "mT": "transpose",
    "transpose": "transpose",
    "roll": "shifted",
    "flip": "extra function",
}


# -- operators and functions ------------------------------------------------------------------------------------------

_INPLACE = {"imul": "mul", "iadd": "add", "isub": "sub", "itruediv": "truediv"}
_SAME = {
    "multiply": "mul",
    "subtract": "sub",
    "div": "truediv",
    "divide": "truediv",
    "matmul": "matmul",
    "mm": "matmul",
}
_PAIRS = (
    "sum mean", "amax amin", "max min", "maximum minimum", "gt lt", "ge le", "gt le", "ge lt", "gt ge", "lt le",
    "eq ne", "and or", "logical_and logical_or", "scatter_ scatter_add_", "index_copy_ index_add_",
    "scatter scatter_add", "index_copy index_add", "triu tril", "argmax argmin", "ones_like zeros_like",
    "conv2d conv_transpose2d",
)  # fmt: skip
REPEATED = "repeated indices overwrite each other, where their gradients should add up"
_ADDING = {"scatter_", "index_copy_", "scatter", "index_copy"}


def _operators(call: Called, place: int) -> Iterator[Edit]:
    name = _SAME.get(call.name, call.name)
    if name in ARITHMETIC or name == "matmul":
        yield from _arithmetic(call, name, place)
    if name in _INPLACE:
        for other in (each for each in _INPLACE if each != name):
            change = getattr(Tensor, f"__{other}__")
            problem = f"`{ARITHMETIC[_INPLACE[name]][0]}=` stands where `{ARITHMETIC[_INPLACE[other]][0]}=` should"
            yield Edit(1.9, "operator", problem, "with that", place, {place: _instead(change)})
    if name == "setitem":
        yield from _assigned(call, place)
    if name in ("index_put_", "index_put") and not call.keywords.get("accumulate", len(call.arguments) > 3):
        yield Edit(1.9, "operator", REPEATED, "with `accumulate=True`", place,
                   {place: lambda call, reach, a, k: call.run(a, {**k, "accumulate": True})})  # fmt: skip
    if name == "cumsum":
        yield Edit(
            1.9,
            "missing function",
            "the `cumsum` should begin at the end",
            "reversed by `flip` before and after",
            place,
            {place: _from_the_end},
        )
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
    function: Callable[[Tensor], Tensor], call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]
) -> Any:
    return function(arguments[0])


def _from_the_end(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    axis = keywords.get("dim", arguments[1] if len(arguments) > 1 else 0)
    return call.run([arguments[0].flip(axis), *arguments[1:]], keywords).flip(axis)


def _instead(function: Callable[..., Any]) -> Step:
    return lambda call, reach, arguments, keywords: function(*arguments, **keywords)


def _arithmetic(call: Called, name: str, place: int) -> Iterator[Edit]:
    if len(call.arguments) < 2:
        return
    sign = "@" if name == "matmul" else ARITHMETIC[name][0]

    def ordered(arguments: list[Any]) -> tuple[Any, Any]:
        return (arguments[1], arguments[0]) if call.reversed else (arguments[0], arguments[1])

    for other, (written, work) in {**ARITHMETIC, "matmul": ("@", operator.matmul)}.items():
        if _is_identity(other, call.arguments):
            continue  # that is to leave it out
        if other != name and (other != "matmul" or all(isinstance(each, Tensor) for each in call.arguments[:2])):
            yield Edit(1.9, "operator", f"`{sign}` stands where `{written}` should", f"with `{written}`", place,
                       {place: lambda call, reach, a, k, work=work: work(*ordered(a))})  # type: ignore[misc]  # fmt: skip
    for other in ("sub", "truediv", "matmul"):
        if other == name or (name in ARITHMETIC and other != "matmul"):
            written, work = ("@", operator.matmul) if other == "matmul" else ARITHMETIC[other]
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
    yield Edit(
        1.9,
        "operator",
        REPEATED,
        "with `index_put_(..., accumulate=True)`, or `index_add_`",
        place,
        {place: accumulated},
    )


def _exchanged(call: Called, name: str, other: str, place: int) -> Iterator[Edit]:
    symbols = {"gt": ">", "lt": "<", "ge": ">=", "le": "<=", "eq": "==", "ne": "!=", "and": "&", "or": "|"}
    change = getattr(torch, other, None) or getattr(Tensor, other, None) or getattr(Tensor, f"__{other}__", None)
    if change is None:
        return
    kind: Mistake = "reduction" if name in ("sum", "mean") else "operator"
    problem = f"`{symbols.get(name, name)}` stands where `{symbols.get(other, other)}` should"
    if name in _ADDING:
        problem = f"{REPEATED} (`{name}`)"
    yield Edit(1.8, kind, problem, f"with `{symbols.get(other, other)}`", place, {place: _instead(change)})
