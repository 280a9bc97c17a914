"""Wrong answers as students give them, and how many of the mistakes in them are named: `python -m tests.exercises`.

They come from `by_hand`, which works each network out with one mistake in it, or two, apart from chainrule.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import chainrule
from tests.exercises.by_hand import NAMES, Numbers, Slips
from tests.exercises.recorded import NETWORKS

Slip = tuple[str, str]


@dataclass(frozen=True)
class Wrong:
    """A wrong answer, with the slips that were made."""

    slips: tuple[Slip, ...]
    quantity: str
    answer: Any


@dataclass
class Score:
    """How many mistakes have a name; `wrongly` are sentences that name another one, or take the answer as right."""

    named: int = 0
    unnamed: Counter[str] = field(default_factory=Counter)
    kinds: set[str] = field(default_factory=set)
    wrongly: list[str] = field(default_factory=list)

    @property
    def asked(self) -> int:
        """All answers."""
        return self.named + self.unnamed.total() + len(self.wrongly)


def rounded(data: Tensor, digits: int) -> Any:
    """As a student writes a number, or the numbers of a tensor: with so many significant digits."""
    numbers = [float(f"{x:.{digits}g}") for x in data.reshape(-1).tolist()]
    return torch.tensor(numbers, dtype=torch.float64).reshape(data.shape).tolist()


def made(name: str) -> tuple[chainrule.Recording, Numbers, Numbers, list[Slip]]:
    """A recorded network, its numbers, those worked out by hand, and the slips that can be made."""
    torch.manual_seed(0)
    record, by_hand = NETWORKS[name]
    recording, numbers = record()
    slips = Slips()
    right = by_hand(numbers, slips)
    return recording, numbers, right, list(dict.fromkeys(slips.places))


class Answers:
    """The wrong answers of one network."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.recording, self.numbers, self.right, self.slips = made(name)

    def _worked(self, slips: tuple[Slip, ...]) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
        """(quantity, what comes out, the right one, the parameter before its update)."""
        for quantity, answer in NETWORKS[self.name][1](self.numbers, Slips(slips)).items():
            is_new = quantity.startswith("new ")
            yield quantity, answer, self.right[quantity], self.numbers[quantity[4:]] if is_new else None

    def tensors(self, slips: tuple[Slip, ...]) -> Iterator[Wrong]:
        """Whole tensors that a slip changes; not where it makes the gradient vanish."""
        for quantity, answer, true, old in self._worked(slips):
            same = answer.shape == true.shape
            vanishes = answer.abs().max() < 1e-6 * true.abs().max()
            if old is not None and old.shape == answer.shape:
                vanishes |= (answer - old).abs().max() < 0.01 * (true - old).abs().max()
            digits = 4 if old is None else 6
            agrees = same and torch.allclose(answer, true, rtol=10.0 ** (1 - digits), atol=1e-9)
            if bool(answer.isfinite().all()) and not vanishes and not agrees:
                yield Wrong(slips, quantity, rounded(answer, digits))

    def single(self, slips: tuple[Slip, ...]) -> Iterator[Wrong]:
        """Single elements of these."""
        for quantity, answer, true, old in self._worked(slips):
            for place in torch.ones(true.shape).nonzero().tolist() if answer.shape == true.shape else ():
                at, digits = tuple(place), 4 if old is None else 6
                x, y, start = float(answer[at]), float(true[at]), 0.0 if old is None else float(old[at])
                shown = f"{quantity}[{','.join(map(str, at))}]" if at else quantity
                if abs(x - y) > 0.02 * abs(y - start) and abs(x - start) > max(1e-6, 0.01 * abs(y - start)):
                    yield Wrong(slips, shown, f"{x:.{digits}g}")

    def judge(self, answers: list[Wrong], score: Score) -> None:
        """Add what is said of these answers."""
        for each in answers:
            told = self.recording.check(each.quantity, each.answer)
            meant = {name for kind, _ in each.slips for name in NAMES[kind]}
            score.kinds.update(kind for kind, _ in each.slips)
            if told.right or (told.mistake is not None and not meant & said(told)):
                score.wrongly.append(f"{self.name}: {each.slips}: {each.quantity} = {each.answer}: {told.sentence}")
            elif told.mistake is None:
                score.unnamed[each.slips[0][0]] += 1
            else:
                score.named += 1


def said(told: Any) -> set[str]:
    """The names of the mistakes that a sentence tells."""
    each = () if told.mistake is None else (told.mistake, *told.mistake.also)
    return {one.name for one in each if one.sentence in told.sentence}


def measured(kind: str, each: int, names: tuple[str, ...] = tuple(NETWORKS)) -> dict[str, Score]:
    """The scores of each network: `tensors`, `single` numbers, or tensors with `two` mistakes; `each` of a slip."""
    found = {}
    for name in names:
        answers, draw, score = Answers(name), random.Random(name), Score()
        slips = [(one,) for one in answers.slips if kind == "tensors" or one[0] != "one element"]
        if kind == "two":
            slips = [(a, b) for (a,), (b,) in (draw.sample(slips, 2) for _ in slips) if a[0] != b[0]]
        for one in slips:
            wrong = list(answers.single(one) if kind == "single" else answers.tensors(one))
            answers.judge(draw.sample(wrong, min(each, len(wrong))), score)
        found[name] = score
    return found
