"""Changes of a step of a user's backward together with the one before it: their order, and the operators between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement, product
from typing import Any

from torch import Tensor

from chainrule.execution.call_tape import Called
from chainrule.verification.repair_changes import fitted_shape
from chainrule.verification.repair_samples import Reach
from chainrule.verification.repair_steps import ARITHMETIC, Edit, Path, operands_of, put_in


def reordered(calls: Sequence[Called], place: int) -> Iterator[Edit]:
    """A step and the one before it: in the other order, or with other operators between the three operands."""
    call = calls[place]
    operands = list(operands_of(call))
    if call.name == "mul" and len(call.arguments) == 2 and isinstance(call.arguments[0], Tensor):
        yield from _split(calls, place)
    for path, operand in operands:
        first = next((at for at, each in enumerate(calls[:place]) if each.out is operand), None)
        if first is None or calls[first].writes or call.writes or not isinstance(call.out, Tensor):
            continue
        if len(operands) == 1 and len(list(operands_of(calls[first]))) == 1:
            yield _commuted(calls, place, first, path)
        if call.name in ARITHMETIC and calls[first].name in ARITHMETIC:
            yield from _regrouped(calls, place, first, path)


def _commuted(calls: Sequence[Called], place: int, first: int, path: Path) -> Edit:
    call, earlier = calls[place], calls[first]
    (before, _) = next(operands_of(earlier))

    def work(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        inner = reach.steps[first]
        source = dict(operands_of(inner))[before]
        outer = call.run(put_in(arguments, path, lambda _: source), keywords)
        return inner.run(put_in(list(inner.arguments), before, lambda _: outer), inner.keywords)

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
    now = (ARITHMETIC[earlier.name][0], ARITHMETIC[call.name][0])
    for (one, (left, do)), (two, (right, then)) in product(ARITHMETIC.items(), repeat=2):
        for inside in (True, False):  # a do (b then c), or (a do b) then c
            if not inside and ((one == earlier.name) or (two == call.name)):
                continue  # a change of one operator, tried elsewhere

            def work(
                call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any],
                do: Callable[[Any, Any], Any] = do, then: Callable[[Any, Any], Any] = then, inside: bool = inside,
            ) -> Any:  # fmt: skip
                a, b = reach.steps[first].arguments
                c = arguments[1 - path[0]]
                return do(a, then(b, c)) if inside else then(do(a, b), c)

            should = f"a {left} (b {right} c)" if inside else f"(a {left} b) {right} c"
            problem = f"the operators are wrong: (a {now[0]} b) {now[1]} c stands where {should} should"
            yield Edit(2.45, "operator", problem, "with that", place, {place: work})


def _split(calls: Sequence[Called], place: int) -> Iterator[Edit]:
    """a * b * c * d for a + b * c * d, and so on, or for a * b."""
    chain = [place]
    while True:
        inner = calls[chain[-1]].arguments[0]
        before = next((at for at in range(chain[-1]) if calls[at].out is inner and calls[at].name == "mul"), None)
        if before is None or len(calls[before].arguments) != 2:
            break
        chain.append(before)
    dropped: tuple[str, Callable[[Any, Any], Any]] = ("", lambda left, right: left)
    for first in range(1, len(chain) + 1):
        for written, then in (ARITHMETIC["add"], ARITHMETIC["sub"], dropped):
            more = len(chain) + 1 - first
            if not written and more < 2:
                continue  # one factor too many is tried elsewhere

            def work(
                call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any],
                first: int = first, then: Callable[[Any, Any], Any] = then,
            ) -> Any:  # fmt: skip
                factors = [reach.steps[chain[-1]].arguments[0]]
                factors += [reach.steps[at].arguments[1] for at in reversed(chain[1:])] + [arguments[1]]
                left, right = factors[:first], factors[first:]
                return then(math.prod(left[1:], start=left[0]), math.prod(right[1:], start=right[0]))

            if written:
                problem = f"`*` stands where `{written}` should, between factors {first} and {first + 1} of the product"
                yield Edit(2.35, "operator", problem, f"with `{written}`", place, {place: work})
            else:
                problem = f"the last {more} factors of the product are too many"
                yield Edit(2.25, "extra factor", problem, "without them", place, {place: work})


def products(reach: Sequence[Reach], call: Called, place: int) -> Iterator[Edit]:
    """A product of two tensors is missing as a term."""
    if not isinstance(call.out, Tensor) or not call.out.is_floating_point() or call.writes or not call.out.dim():
        return
    shape = call.out.shape
    fitting = [
        (key, named)
        for key, named in reach[0].named.items()
        if named.made < place and named.tensor.is_floating_point() and named.tensor.dim()
        and (named.tensor.shape == shape or fitted_shape(named.tensor.shape, shape) is not None)
    ]  # fmt: skip
    for (one, first), (two, second) in combinations_with_replacement(fitting, 2):
        if shape not in (first.tensor.shape, second.tensor.shape):
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

            cost = 2.7 + (first.cost + second.cost) / 2
            problem = f"{first.text} times {second.text} is missing as a term"
            yield Edit(cost, "missing term", problem, f"with it {word}", place, {place: work})
