"""Indices in formulas: which letter stands for which axis, how an element is written, and what follows from copies.

A linear operation that copies elements is a list of `Term`s, each of which says which element goes where. Its equation,
its local derivatives and its products all follow from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from chainrule.rules import Wrt, derivative
from chainrule.rules import at as element

LETTERS = "ijklmnpqrs"
AND = r" \land "
JOINED = r", \quad "
OTHERS = "uvwabcdfgh"  # of a second element of the same tensor


def letters(t: Tensor) -> list[str]:
    """One letter for each axis."""
    return list(LETTERS[: t.dim()])


def runs(at: Iterable[str], shape: Iterable[int]) -> dict[str, int]:
    """The size that each index letter of an element runs over."""
    return {letter: size for letter, size in zip(at, shape, strict=True) if letter.isalpha()}


def places(shape: Sequence[int]) -> list[str]:
    """One letter for each axis that has more than one place, and 0 for the others."""
    return ["0" if size == 1 else letter for letter, size in zip(LETTERS, shape, strict=False)]


def fitted(places: Sequence[str], t: Tensor) -> list[str]:
    """The indices of the element of `t` that broadcasting puts at `places`."""
    own = places[len(places) - t.dim() :]
    return ["0" if size == 1 else place for place, size in zip(own, t.shape, strict=True)]


def affine(place: str, step: int = 1, start: int = 0) -> str:
    """`step` times an index, and `start` more: `2 i + 1`."""
    if place == "0":
        return str(start)
    text = place if step == 1 else f"{step} {place}"
    return text if not start else f"{text} {'+' if start > 0 else '-'} {abs(start)}"


def position(places: Sequence[Any], steps: Sequence[int]) -> str:
    """Where an element lies when each index is a step of some length: `12 i + 4 j + k`."""
    return " + ".join(affine(p, step) for p, step in zip(places, steps, strict=True) if step and p != "0") or "0"


def row_major(sizes: Sequence[int]) -> list[int]:
    """The steps by which all elements are counted row by row; 0 along an axis of size 1, which has one place alone."""
    return [math.prod(sizes[axis + 1 :]) * (size != 1) for axis, size in enumerate(sizes)]


def unravel(place: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """The index of the element at a place, row by row."""
    found = []
    for size in reversed(sizes):
        place, at = divmod(place, max(size, 1))
        found.append(at)
    return tuple(reversed(found))


def digits(place: str, sizes: Sequence[int], steps: Sequence[int] = ()) -> list[str]:
    """The indices of the element that lies at a position: the inverse of `position`."""
    steps = steps or row_major(sizes)
    longest = max((step for step, size in zip(steps, sizes, strict=True) if size != 1), default=0)
    place = f"({place})" if " " in place else place
    found = []
    for size, step in zip(sizes, steps, strict=True):
        whole = place if step == 1 else rf"\lfloor {place} / {step} \rfloor"
        found.append("0" if size == 1 else whole if step == longest else rf"{whole} \bmod {size}")
    return [each[1:-1] if each == place and " " in place else each for each in found]


def where(value: str, condition: str, otherwise: str = "0") -> str:
    """A value where a condition holds, and another one elsewhere."""
    return rf"\begin{{cases}} {value} & {condition} \\ {otherwise} & \text{{otherwise}} \end{{cases}}"


def total(among: Sequence[str], conditions: Sequence[str], each: str) -> str:
    """The sum over some indices, under conditions; where no index is summed over, it is there or not."""
    if among:
        return rf"\sum_{{{', '.join(among)}{': ' * bool(conditions)}{', '.join(conditions)}}} {each}"
    return rf"{each} \, [{AND.join(conditions)}]" if conditions else each


def ranges(letters: Iterable[str], sizes: Iterable[int]) -> dict[str, str]:
    """What each letter runs over."""
    return {a: rf"0 \le {a} < {size}" for a, size in zip(letters, sizes, strict=True) if a.isalpha()}


def stated(conditions: Iterable[str]) -> str:
    """Conditions beside a formula."""
    return "".join(rf", \quad {each}" for each in dict.fromkeys(conditions))


def filled(text: str, words: Mapping[str, str]) -> str:
    """A template with its capital words filled in, and then those of what they stand for."""
    before = ""
    while text != before:
        before, text = text, re.sub(r"\b[A-Z]+\d?\b", lambda word: words.get(word[0], word[0]), text)
    return text


# Statements of copies --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """An element of a tensor: `at` are its indices, letters or expressions of letters."""

    name: str
    shape: Sequence[int]
    at: Sequence[str]

    def __str__(self) -> str:
        return element(self.name, self.at)


@dataclass(frozen=True)
class Term:
    """One statement of a linear operation: `rate` times the element `into` of an argument is added to `out`.

    It holds for all letters in `runs`, over that many places, where the conditions `held` are met; elsewhere `fill` is
    written. `given` defines what it uses. `once` says that no element of the argument goes to two places.
    """

    out: Side
    into: Side
    runs: Mapping[str, int]
    held: Sequence[str] = ()
    rate: str = "1"
    given: Sequence[str] = ()
    once: bool = False
    fill: str = "0"

    @property
    def backward(self) -> Term:
        """The statement of the gradients: what came to `out` is added to the gradient of `into`."""
        number = self.into.name[len(self.into.name.rstrip("0123456789")) :]  # of a tensor in a list
        grad, g = f"grad{number}", self.out.name.replace("out", "g")
        return replace(self, out=replace(self.into, name=grad), into=replace(self.out, name=g), fill="0")

    @property
    def scaled(self) -> str:
        """What is added."""
        return f"{self.into}" if self.rate == "1" else rf"{self.rate} \, {self.into}"

    def met(self, own: Sequence[str]) -> list[str]:
        """The conditions under which it is added to the element at `own`."""
        return [f"{place} = {letter}" for place, letter in zip(self.out.at, own, strict=True) if place != letter]

    def letters(self, *others: Sequence[str]) -> list[str]:
        """The letters that are not among others."""
        return [letter for letter in self.runs if not any(letter in each for each in others)]

    def bounds(self, own: Sequence[str], sizes: Mapping[str, int], both: bool = False) -> list[str]:
        """Its definitions, and the ranges of those letters of which the axes where they stand bare do not give one.

        The left side names `out`, or `both`: no letter goes beyond an axis that it names.
        """
        left = [*zip(own, self.out.shape, strict=True)]
        sides = [*left, *zip(self.into.at, self.into.shape, strict=True)]
        named = sides if both else left
        sizes = {a: min([size, *(n for place, n in named if place == a)]) for a, size in sizes.items()}
        open_ = {a: size for a, size in sizes.items() if {n for place, n in sides if place == a} != {size}}
        return [*self.given, *ranges(open_, open_.values()).values()]

    @property
    def direct(self) -> str:
        """The equation with `out` on its left side."""
        value = where(self.scaled, AND.join(self.held), self.fill) if self.held else self.scaled
        return f"{self.out} = {value}{stated(self.bounds(self.out.at, self.runs))}"

    @property
    def invertible(self) -> bool:
        """Whether the indices of `out` contain all letters, so that it can stand on the left as it is."""
        return self.once and set(self.runs) <= set(re.findall(r"\\?[a-z]+", " ".join(self.out.at)))

    @property
    def counted(self) -> bool:
        """Whether the place alone does not say which element comes, as it is one of many that a condition chooses."""
        return bool(self.held) and not all(place in self.runs or place == "0" for place in self.out.at)

    @property
    def local(self) -> str:
        """The derivative of `out` by `into`."""
        own = own_letters([self]) if self.counted else self.out.at
        if self.counted:
            rate = total(self.letters(own, self.into.at), [*self.held, *self.met(own)], "1").removeprefix(r"1 \, ")
        else:
            rate = f"[{AND.join(self.held)}]" if self.held else self.rate
        beside = stated(self.bounds(own, self.runs, both=True))
        return derivative(element(self.out.name, own), f"{self.into}", rate + beside)


def own_letters(terms: Sequence[Term]) -> list[str]:
    """Letters for the element that several terms are added to: along each axis theirs, where they have the same."""
    own = []
    for axis, size in enumerate(terms[0].out.shape):
        place = terms[0].out.at[axis]
        same = all(t.out.at[axis] == place and place in t.runs and list(t.out.at).count(place) == 1 for t in terms)
        own.append(place if same else "0" if size == 1 else OTHERS[axis])
    return own


def summed(terms: Sequence[Term]) -> str:
    """The equation of an element as the sum of all that is added to it."""
    own = own_letters(terms)
    places = dict(zip(own, terms[0].out.shape, strict=True))
    for t in reversed(terms):
        places |= {letter: t.runs[letter] for letter in own if letter in t.runs}
    addends, beside = [], []
    for t in terms:
        among = t.letters(own)
        held = [*t.held, *(f"{a} < {t.runs[a]}" for a in own if a in t.runs and t.runs[a] < places[a])]
        beside += t.bounds(own, {**t.runs, **places})
        if among or not held:
            addends.append(total(among, [*t.met(own), *held], t.scaled))
        else:
            addends.append(where(t.scaled, AND.join([*t.met(own), *held])))
    return f"{element(terms[0].out.name, own)} = {' + '.join(addends)}{stated(beside)}"


@dataclass(frozen=True)
class Statements:
    """The formulas of a linear operation, all from its `terms`; those of one output are `added` up or stand alone."""

    terms: Callable[[Any], Sequence[Term]]
    added: bool = False

    def equation(self, op: Any) -> str:
        """Each output from the arguments."""
        terms = self.terms(op)
        if self.added:
            return JOINED.join(summed(each) for each in by_left(terms))
        return JOINED.join(summed([each]) if each.counted else each.direct for each in terms)

    def wrt(self, argument: str, vjp: Callable[[Any, Any], Any], zeros: str, *more: Any) -> Wrt:
        """What is known of the derivative by one argument."""

        def mine(op: Any) -> list[Term]:
            return [each for each in self.terms(op) if each.into.name.rstrip("0123456789") == argument]

        def local(op: Any) -> str:
            return JOINED.join(each.local for each in mine(op))

        def product(op: Any) -> str:
            return JOINED.join(
                each[0].direct if len(each) == 1 and each[0].invertible else summed(each)
                for each in by_left([each.backward for each in mine(op)])
            )

        return Wrt(vjp, local, product, zeros, *more)


def by_left(terms: Sequence[Term]) -> Iterator[list[Term]]:
    """The terms of each left side."""
    for name in dict.fromkeys(each.out.name for each in terms):
        yield [each for each in terms if each.out.name == name]
