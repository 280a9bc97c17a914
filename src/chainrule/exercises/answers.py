"""Whether a student's answer is right, and which mistake explains one that is not.

A number is right if it is the true one rounded to the digits that it was given with, of which there must be two at
least, or the same up to rounding errors. A mistake is named only where chance does not explain the match: of m mistakes
that are as likely or likelier and come out around the answer, about m * 10^-d fit d digits by chance, and that must be
below `BY_CHANCE`. Around it means as near as the right number and 0 are to the mistake's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chainrule.diagnostics.finding import listed
from chainrule.exercises.follow_up import follows
from chainrule.exercises.mistakes import AS_LIKELY, Facts, Mistake, Mistakes
from chainrule.exercises.quantities import Kind, Quantity, Recorded, quantity_of
from chainrule.exercises.reading import Given, places_of, read
from chainrule.graph.comparison import FLOAT32, MARGIN, allowance, rms, rounding
from chainrule.graph.graph import Graph
from chainrule.graph.names import element
from chainrule.numbers import many

BY_CHANCE = 0.05  # mistakes that may fit a number that has none of them
COARSE = 0.05  # half a unit of the last digit, relative to the number, up to which its digits are enough
ELEMENTARY = 1.06  # the cost of what is a fact about the number, as its sign: named with fewer digits
ZERO = 0.7  # digits that a 0 counts for
MOST_DIGITS = 7.0
FOLLOWING = 2e-3  # how far rounded earlier answers may carry
LISTED = 3  # wrong elements that a sentence names


@dataclass(frozen=True)
class Answer:
    """What is to say about an answer. `elements` marks those that are right, in the shape that was asked for.

    `mistake` is the one that was recognised in a wrong answer, and `sentence` says all of it to the student.
    """

    right: bool
    mistake: Mistake | None
    elements: Tensor
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def check(recording: Recorded | Graph, quantity: str, answer: Any, earlier: Mapping[str, Any] | None = None) -> Answer:
    """Check a student's answer: `check(recording, "dJ/dW2", [[0.1, -0.3]])`.

    With `earlier` answers, by their quantities, right arithmetic on a wrong one of them is recognised.

    Raises MissingError, with the nearest names, where there is no such quantity, RequestError for what is no number.
    """
    recorded = Facts.of(recording)
    asked = quantity_of(recorded, quantity)
    return _Check(recorded, asked, read(answer)).answer(dict(earlier or {}))


class _Check:
    def __init__(self, recorded: Recorded, asked: Quantity, given: Given) -> None:
        self.recorded, self.asked = recorded, asked
        self.right = asked.right.detach().double()
        if given.data.numel() == self.right.numel() == 1:  # the shape of one number does not matter
            given = given.reshape(tuple(self.right.shape))
        self.given = given
        self.known = Mistakes.of(recorded)
        self.tolerance, self.own = tolerances(self.known, asked)

    def answer(self, earlier: dict[str, Any]) -> Answer:
        nothing = torch.zeros(self.right.shape, dtype=torch.bool)
        if self.given.data.shape != self.right.shape:
            return self._of_wrong_shape(nothing)
        right, coarse = self._compared()
        if bool(right.all()):
            return Answer(True, None, right, f"{self.asked} is right.")
        followed = self._followed(earlier) if earlier else None
        if followed is not None:
            return replace(followed, elements=right)
        mistake = self._named(right)
        if mistake is None and bool((right | coarse).all()):
            digits = "Give at least two, and no 0 for a small number."
            sentence = f"{self.asked} may be right, but it has too few digits to show it. {digits}"
            return Answer(False, None, right, sentence)
        return Answer(False, mistake, right, self._sentence(mistake, right))

    def _compared(self) -> tuple[Tensor, Tensor]:
        """Which elements are right, and which may be, but have too few digits."""
        given, half, right = self.given.data, self.given.half, self.right
        off = torch.where((given == right) | (given.isnan() & right.isnan()), 0.0, (given - right).abs()).nan_to_num(
            math.inf
        )
        slack = self.tolerance / MARGIN + self.own  # of the recorded number alone
        rounded = off <= half * (1 + 1e-6) + slack
        coarse, fine = COARSE * right.abs(), self.given.fine
        fine = (half <= coarse) | ((fine <= coarse) & (off <= fine * (1 + 1e-6) + slack))
        return (off <= self.tolerance) | (rounded & fine), rounded & ~fine

    # -- words --------------------------------------------------------------------------------------------------------

    def _of_wrong_shape(self, nothing: Tensor) -> Answer:
        shape, right = tuple(self.given.data.shape), tuple(self.right.shape)
        everywhere = torch.ones(shape, dtype=torch.bool)
        fits = self._matching(self.known.at(self.asked), everywhere, ~everywhere)
        shapes = f"{self.asked} has the shape {right}, and this answer has {shape}"
        if fits is not None:
            return Answer(False, fits, nothing, f"{shapes}: {said(fits)}.")
        flat = self.given.data.reshape(-1)
        if flat.shape == self.right.reshape(-1).shape and self._same(
            flat, self.given.half.reshape(-1), self.right.reshape(-1)
        ):
            return Answer(False, None, nothing, f"{shapes}; its numbers are right.")
        return Answer(False, None, nothing, f"{shapes}.")

    def _same(self, given: Tensor, half: Tensor, other: Tensor) -> bool:
        return bool(((given - other).abs() <= half * (1 + 1e-6) + self.tolerance.reshape(-1)).all())

    def _sentence(self, mistake: Mistake | None, right: Tensor) -> str:
        if mistake is not None:
            return f"{self.asked} is not right: {said(mistake)}."
        count, of = int(right.sum()), right.numel()
        if of == 1 or not count:
            return f"{self.asked} is not right."
        return f"{self.asked}: {count} of {of} elements are right, and not {self._places(~right)}."

    def _places(self, wrong: Tensor) -> str:
        return listed([element(self.asked.name, place) for place in places_of(wrong)], LISTED)

    # -- mistakes -----------------------------------------------------------------------------------------------------

    def _named(self, right: Tensor) -> Mistake | None:
        known = self.known.at(self.asked)
        everywhere = torch.ones_like(right)
        whole = self._matching(known, everywhere, right)
        if whole is not None or any(self._fits(each, everywhere) for each in known):
            return whole
        if bool(right.any()):
            local = self._matching(known, ~right, torch.zeros_like(right))
            places, one = self._places(~right), int((~right).sum()) == 1
            name = "one element" if one else "some elements"
            if local is not None:
                return Mistake(
                    self.given.data, name, f"all is right but {places}, and there {said(local)}", 1.5, (local,)
                )
            if one:
                return Mistake(self.given.data, name, f"all is right but {places}", 1.5)
        return self._rounded_early(right)

    def _matching(self, known: Iterable[Mistake], where: Tensor, settled: Tensor) -> Mistake | None:
        """The likeliest mistake with which the answer agrees at these elements, and those about as likely.

        Only those are asked that agree where it is `settled` which elements are right.
        """
        possible = [each for each in known if self._fits(each, settled)]
        found = [(likelier, each) for likelier, each in enumerate(possible) if self._fits(each, where)]
        first = next((each for likelier, each in found if self._is_no_chance(each, where, possible[:likelier])), None)
        if first is None:
            return None
        dearer = math.inf if self.right.numel() == 1 else AS_LIKELY  # a single number has others by chance
        rest = [each for _, each in found if each is not first and each.cost <= first.cost + dearer]
        others = [one for each in rest for one in (each, *each.also)]
        return replace(first, also=(*first.also, *(one for one in others if one.name not in first.names)))

    def _unit(self, value: Tensor) -> Tensor:
        """How far an answer may be off the value of a mistake."""
        return self.given.half + 1e-5 * value.abs() + 1e-6 * rms(value)

    def _fits(self, mistake: Mistake, where: Tensor) -> bool:
        """Whether the answer agrees with a mistake at these elements."""
        value = mistake.value.double()
        if value.shape != self.given.data.shape:
            return False
        return bool(((self.given.data - value).abs() <= self._unit(value))[where].all())

    def _is_no_chance(self, mistake: Mistake, where: Tensor, likelier: list[Mistake]) -> bool:
        """Whether an answer that agrees with a mistake at these elements does so for more than chance."""
        value = mistake.value.double()
        digits = self._digits(value, self._unit(value), where)
        is_whole = bool((self.given.data == self.given.data.round()).all())
        if mistake.cost <= ELEMENTARY and digits >= (0.6 if is_whole else 2.0):
            return True
        around = self._size(value) + self._unit(value)
        as_near = sum(
            each.value.shape == value.shape and bool(((each.value - self.given.data).abs() <= around)[where].all())
            for each in likelier
        )
        by_chance: float = (as_near + 1) * 10.0**-digits
        return by_chance <= BY_CHANCE

    def _size(self, value: Tensor) -> Tensor:
        """What an answer tells is relative to this: a wrong one is somewhere around the right one, or around 0."""
        return (
            torch.minimum(value.abs(), (value - self.right).abs()) if value.shape == self.right.shape else value.abs()
        )

    def _digits(self, value: Tensor, unit: Tensor, where: Tensor) -> float:
        """How many digits of an answer a mistake explains: those of elements at which it is not the right number."""
        if value.shape == self.right.shape:
            where = where & ((value - self.right).abs() > unit + self.tolerance)
        digits = (self._size(value) / unit.clamp_min(1e-300)).clamp_min(1.0).log10().clamp(0, MOST_DIGITS)
        return float(torch.where(value == 0, torch.full_like(digits, ZERO), digits)[where].sum())

    def _rounded_early(self, right: Tensor) -> Mistake | None:
        """An answer that is off by a unit or two of its last digit."""
        unit, off = 2 * self.given.half, (self.given.data - self.right).abs()
        if not bool((off <= 2 * unit + self.tolerance).all()) or not bool(unit.any()):
            return None
        digits = (self.right.abs() / self.given.half.clamp_min(1e-300)).clamp_min(1.0).log10()
        wrong = digits[~right]
        if bool((wrong < 2).any()) or float((wrong - 0.6).sum()) < 3:
            return None
        return Mistake(
            self.given.data,
            "rounding",
            "it is off in its last digit: cut off, or an earlier number was rounded too much",
            1.5,
        )

    # -- what follows from earlier answers ----------------------------------------------------------------------------

    def _followed(self, earlier: dict[str, Any]) -> Answer | None:
        """The answer that follows from earlier ones by right arithmetic."""
        checked = {
            name: _Check(self.recorded, quantity_of(self.recorded, name), read(each)) for name, each in earlier.items()
        }
        fitting = {
            name: each
            for name, each in checked.items()
            if each.given.data.shape == each.right.shape and each.asked.name != self.asked.name
        }
        wrong = {name: each for name, each in fitting.items() if not bool(each._compared()[0].all())}
        sets = [fitting, *({name: each} for name, each in wrong.items())]
        for rank, used in enumerate(sets, 1):
            value = self._from(used)
            if value is None or value.shape != self.given.data.shape or not bool(value.isfinite().all()):
                continue
            unit = torch.maximum(self.given.half, FOLLOWING * value.abs() + FOLLOWING / 10 * rms(value))
            if bool(((self.given.data - value).abs() > unit).any()):
                continue
            if not wrong:
                return Answer(
                    True, None, self.elements, f"{self.asked} is right, with the earlier answers as you rounded them."
                )
            named = [name for name in used if name in wrong]
            if (
                rank * 10.0 ** -self._digits(value, unit, torch.ones_like(value, dtype=torch.bool)) > BY_CHANCE
                or not named
            ):
                continue
            which = f"{' and '.join(named)}, which {'is' if len(named) == 1 else 'are'} not right"
            sentence = f"the arithmetic is right: it follows from your {which}"
            mistake = Mistake(value, "follow-up", sentence, 1.0)
            return Answer(False, mistake, self.elements, f"{self.asked} is not right: {sentence}.")
        return None

    @property
    def elements(self) -> Tensor:
        """Which elements are right."""
        return self._compared()[0]

    def _from(self, used: dict[str, _Check]) -> Tensor | None:
        """The quantity as it follows from answers to others."""
        earlier: dict[tuple[Kind, int], Tensor] = {}
        for each in used.values():
            at = (each.asked.kind, each.asked.value)
            if each.asked.index is None:
                earlier[at] = each.given.data
            else:
                earlier[at] = earlier.get(at, each.asked.data.double()).clone()
                earlier[at][each.asked.index] = each.given.data
        whole = follows(self.known, self.asked, earlier)
        return None if whole is None else self.asked.part(whole)


def tolerances(known: Mistakes, asked: Quantity) -> tuple[Tensor, Tensor]:
    """How far off rounding errors may put an answer, and how far those of the recorded number, which are included."""
    right = asked.right.detach().double()
    eps, size = rounding(asked.data.dtype), right.abs()
    plain = allowance(size, size + rms(right) / 8, 64, min(eps, FLOAT32)) + (eps / 2 * size if eps > FLOAT32 else 0.0)
    exact = known.exact(asked)
    own = torch.zeros_like(right) if exact is None else 4 * (exact - right).abs()
    return (plain + own).nan_to_num(0.0, 0.0, 0.0), own.nan_to_num(0.0, 0.0, 0.0)


def said(mistake: Mistake) -> str:
    """A mistake with the others that the same comes out of."""
    if mistake.name in ("one element", "some elements"):
        return mistake.sentence
    sentences = list(dict.fromkeys((mistake.sentence, *(each.sentence for each in mistake.also))))
    more = len(sentences) - LISTED
    rest = [f"{many(more, 'other mistake')} that give{'s' * (more == 1)} the same number"] if more > 0 else []
    return "; or ".join((*sentences[:LISTED], *rest))
