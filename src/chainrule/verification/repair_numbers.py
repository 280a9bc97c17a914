"""Changes of the numbers in one step of a user's backward: the axis of a sum, a factor, an exponent, a slice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, permutations
from typing import Any

from torch import Tensor

from chainrule.execution.call_tape import Called
from chainrule.execution.function_trace import FunctionTrace
from chainrule.verification.repair_samples import Mistake, Reach, derived
from chainrule.verification.repair_steps import Edit, Path, Step, put_in

ALONG = frozenset(
    [
        "sum",
        "mean",
        "var",
        "std",
        "norm",
        "amax",
        "amin",
        "max",
        "min",
        "softmax",
        "log_softmax",
        "cumsum",
        "cumprod",
        "logsumexp",
        "prod",
        "flip",
        "argmax",
        "argmin",
    ]
)
INDEXING = frozenset(["getitem", "setitem", "roll", "select", "narrow", "pad", "tril", "triu"])
COMPARISONS = frozenset(["gt", "ge", "lt", "le", "eq", "ne"])


def of_axes(call: Called, place: int) -> Iterator[Edit]:
    """Another axis of a sum, a mean, a softmax; the variance with the other divisor."""
    if call.name not in ALONG or not call.arguments or not isinstance(call.arguments[0], Tensor):
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
        yield Edit(1.75, "reduction", f"the `{call.name}` goes over {before}, and not over {_along(axes or ())}",
                   f"over {_along(axes or ())}", place, {place: work})  # fmt: skip
    if call.name in ("var", "std"):
        other = not call.keywords.get("unbiased", True)
        problem = f"`{call.name}` divides by the wrong number: `unbiased` (N - 1 or N)"
        yield Edit(1.9, "wrong number", problem, f"with `unbiased={other}`", place,
                   {place: lambda call, reach, a, k: call.run(a, {**k, "unbiased": other})})  # fmt: skip


def of_orders(call: Called, place: int) -> Iterator[Edit]:
    """Another order of the axes in a `permute`."""
    if call.name != "permute" or not isinstance(call.out, Tensor) or call.out.dim() > 4:
        return
    now = call.keywords.get("dims", call.arguments[1:] if len(call.arguments) > 2 else call.arguments[-1])
    for axes in permutations(range(call.out.dim())):
        if axes != tuple(now):
            problem = f"`permute` takes the axes in the order {tuple(now)}, and not {axes}"
            work = partial(_permuted, axes)
            yield Edit(1.9, "transpose", problem, f"with {axes}", place, {place: work})


def _permuted(axes: tuple[int, ...], call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    return arguments[0].permute(axes)


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


def of_numbers(points: Sequence[FunctionTrace], reach: Sequence[Reach], call: Called, place: int) -> Iterator[Edit]:
    """Another number in a step: one that the forward was given, the size of an axis, one more or less, a multiple."""
    if call.name in ALONG:
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
        is_index = call.name in INDEXING and not (call.name == "setitem" and path[0] == 2)
        for cost, kind, text, value in _candidates(points, reach, now, is_index):

            def work(
                call: Called, reach: Reach, a: list[Any], k: dict[str, Any], path: Path = path, value: Value = value
            ) -> Any:
                return call.run(put_in(a, path, partial(value, reach)), k)

            problem = f"the number {now:.6g} should be {text}"
            if call.name in COMPARISONS and kind != "wrong operand":  # which often have the wrong number
                cost = min(cost, 1.95)
            yield Edit(cost, kind, problem, f"with {text}", place, {place: work})
    for key, now in call.keywords.items():
        if not isinstance(now, (int, float)) or key in ("dim", "axis", "dims"):
            continue
        turned: list[tuple[float, Mistake, str, Value]] = [(2.0, "wrong number", str(not now), _turned)]
        for cost, kind, text, value in (
            turned if isinstance(now, bool) else _candidates(points, reach, now, isinstance(now, int))
        ):

            def put(
                call: Called, reach: Reach, a: list[Any], k: dict[str, Any], key: str = key, value: Value = value
            ) -> Any:
                return call.run(a, {**k, key: value(reach, k[key])})

            yield Edit(cost, kind, f"`{key}={now}` should be `{key}={text}`", "with that", place, {place: put})


def of_sizes(point: FunctionTrace, places: Sequence[int]) -> Iterator[Edit]:
    """A size that several steps use, as `N` in `r / N * (N * g - ...)`: another one in all of them."""
    used: dict[int, dict[int, list[int]]] = {}
    for place in places:
        for slot, each in enumerate(point.steps.calls[place].arguments):
            if type(each) is int and point.steps.calls[place].name not in ALONG | INDEXING:
                used.setdefault(each, {}).setdefault(place, []).append(slot)
    for now, slots in used.items():
        for size, called in sizes(point) if len(slots) > 1 else ():
            if size != now:
                works = {place: _all_are(size, at) for place, at in slots.items()}
                problem = f"the number {now} should be {size}, {called}, at all {len(slots)} places"
                yield Edit(2.2, "wrong number", problem, f"with {size}", min(slots), works)


def _all_are(size: int, slots: list[int]) -> Step:
    def work(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        return call.run([size if slot in slots else each for slot, each in enumerate(arguments)], keywords)

    return work


Value = Callable[[Reach, Any], Any]
"""What a number should be: (what is in reach, the number as it is)."""


def _turned(reach: Reach, now: Any) -> Any:
    return not now


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
            text = f"{number:.6g}"
            text = text if name == text else f"{name} = {text}"
            yield cost, "wrong number", text, lambda reach, now, take=take: take(reach)  # type: ignore[misc]
    for size, called in sizes(points[0]):
        if size != now:
            yield 2.2, "wrong number", f"{size}, {called}", lambda reach, now, size=size: size  # type: ignore[misc]
    for factor in _PLAIN:
        yield 2.3, "wrong number", f"{now * factor:.6g}", lambda reach, now, factor=factor: now * factor  # type: ignore[misc]
        yield 2.3, "wrong number", f"{now / factor:.6g}", lambda reach, now, factor=factor: now / factor  # type: ignore[misc]
    for value in (0, 1):
        yield 2.4, "wrong number", f"{value}", lambda reach, now, value=value: value  # type: ignore[misc]
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
        if start + by >= 0 and stop + by <= held.shape[axis]:

            def work(call: Called, reach: Reach, a: list[Any], k: dict[str, Any], by: int = by) -> Any:
                return call.run(put_in(a, path, lambda now: _moved(now, by, a[0].shape[axis])), k)

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
