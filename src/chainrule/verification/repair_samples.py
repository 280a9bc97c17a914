"""What a search for a mistake is given, and what it gives: gradients and named tensors, and findings by their cost.

A search knows nothing of where these come from: a user's backward run again at several points, or a student's numbers.
A finding states one change that makes the wrong gradient right. It counts only if the changed gradient agrees at every
known element of every sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

from torch import Tensor

from chainrule.execution.experiment import real
from chainrule.execution.function_trace import CLOSE as CLOSE
from chainrule.graph.comparison import compare
from chainrule.graph.graph import Place

Mistake = Literal[
    "sign",
    "factor",
    "1/N",
    "missing factor",
    "extra factor",
    "operator",
    "transpose",
    "reduction",
    "missing term",
    "extra term",
    "wrong operand",
    "wrong expression",
    "wrong function",
    "missing function",
    "extra function",
    "wrong number",
    "epsilon",
    "order",
    "permutation",
    "shifted",
    "swapped",
    "conjugate",
    "overwritten",
    "flat forward",
    "region",
    "location",
    "not recognised",
]
FITTED = 1e-5  # the rounding of a factor that is fitted to differences


@dataclass(frozen=True)
class Named:
    """A tensor that a gradient may be made of, as its user calls it.

    `cost` orders the names, the likeliest first. `made` is the step of the backward that gives it, -1 before the first.
    `kept` is whether the backward has it at hand: it was saved, or is the output.
    """

    text: str
    tensor: Tensor
    cost: float = 0.0
    made: int = -1
    kept: bool = False


@dataclass(frozen=True)
class Reach:
    """The tensors and plain numbers that a gradient may be made of, at one point, and the steps that made it.

    `turn` counts the turns of a loop, for a step in one.
    """

    named: dict[str, Named] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    steps: Sequence[Any] = ()
    turn: int = 0


@dataclass(frozen=True)
class Sample:
    """A wrong gradient, and the right one: flat and real, at some `elements` (None: at all), off by up to `error`."""

    wrong: Tensor
    right: Tensor
    reach: Reach = field(default_factory=Reach)
    elements: Tensor | None = None
    error: Tensor | float = 0.0

    @cached_property
    def _size(self) -> Tensor:
        return self.right.abs() + self.right.square().mean().sqrt()

    @cached_property
    def _limit(self) -> Tensor:
        return 100 * (CLOSE * self._size + self.error)

    def seen(self, gradient: Tensor) -> Tensor:
        """What is compared of a gradient."""
        flat = real(gradient)
        return flat if self.elements is None else flat[self.elements]

    def agrees(self, gradient: Tensor) -> bool:
        """Whether a gradient is the right one, as far as that is known."""
        if gradient.numel() != self.wrong.numel():
            return False
        seen = self.seen(gradient)
        if not bool(((seen - self.right).abs() <= self._limit).all()):  # the cheap answer for nearly all that is tried
            return False
        return compare(seen, self.right, self._size, eps=CLOSE, slack=self.error).agrees

    def matches(self, gradient: Tensor, other: Tensor) -> bool:
        """Whether two gradients are the same."""
        return compare(self.seen(gradient), self.seen(other), self._size, eps=CLOSE).agrees


Change = Callable[[Sample], Tensor]


@dataclass(frozen=True)
class Finding:
    """A mistake in words: "{problem}: {fix}, the gradient agrees". `place` says where, if that is known.

    `of_steps` is whether steps of a backward were changed, and not the gradient as a whole.
    """

    kind: Mistake
    cost: float
    problem: str
    fix: str
    place: Place | None = None
    of_steps: bool = False


def agree(samples: Sequence[Sample], change: Change) -> bool:
    """Whether a changed gradient agrees everywhere."""
    try:
        return all(sample.agrees(change(sample)) for sample in samples)
    except Exception:  # shapes that do not fit
        return False


def fit(samples: Sequence[Sample], base: Change, part: Change) -> float | None:
    """The one number c for which base + c part agrees everywhere."""
    factor = None
    for sample in samples:
        start, change = base(sample), part(sample)
        along = sample.seen(change)
        size = float(along @ along)
        if not math.isfinite(size) or size == 0:
            return None
        here = float(along @ (sample.right - sample.seen(start))) / size
        if factor is not None and not same(here, factor):
            return None
        if not abs(here) > 1e-6 or not sample.agrees(start + here * change):
            return None
        factor = here if factor is None else factor
    return factor


def same(factor: float, other: float) -> bool:
    """Whether a fitted factor is this number."""
    return compare(factor, other, eps=FITTED).agrees


def derived(reach: Reach) -> Iterator[tuple[str, float, Callable[[Reach], float]]]:
    """The plain numbers in reach, and what is usually made of them: `1 - p`, `p**2`."""
    for name, value in reach.numbers.items():
        yield name, value, lambda reach, name=name: reach.numbers[name]  # type: ignore[misc]
    for name, value in reach.numbers.items():
        if not name.startswith("`"):
            continue
        bare = name.strip("`")
        for text, make in _DERIVED.items():
            if value > 0 or "sqrt" not in text:
                yield f"`{text.format(bare)}`", make(value), partial(_made, make, name)


def _made(make: Callable[[float], float], name: str, reach: Reach) -> float:
    return make(reach.numbers[name])


_DERIVED: dict[str, Callable[[float], float]] = {
    "1 - {}": lambda number: 1 - number,
    "1 + {}": lambda number: 1 + number,
    "{}**2": lambda number: number**2,
    "sqrt({})": lambda number: math.sqrt(number),
}
