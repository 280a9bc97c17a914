"""Central differences in float64 of a recorded operation, weighed with the upstream gradient that reached it.

All numbers are real: a complex tensor is its real and imaginary parts, for which PyTorch's gradient is the plain one.
An argument x is one flat vector, and the outputs that received an upstream gradient u are another. What is measured is
u^T J, term by term, because the size of the terms decides how much rounding may change their sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from chainrule.execution.experiment import STEP, CannotRunError, Experiment, pick, put, real, wide_dtype
from chainrule.execution.number_types import with_rounding
from chainrule.graph.comparison import EPS, MARGIN, unravel
from chainrule.graph.graph import Edge


@dataclass(frozen=True)
class Measured:
    """The differences at some elements: u^T J, the size of its terms, and the error of the differences."""

    slope: Tensor
    terms: Tensor
    error: Tensor


class Probe:
    """One argument of an experiment, as the variable of the differences."""

    moved_alone = False  # whether the rounding of outputs that do not move counts as none

    def __init__(self, experiment: Experiment, edge: Edge) -> None:
        self.experiment, self.edge = experiment, edge
        self.left = experiment.afford(pick(experiment.recorded, edge), 8, 6)  # bytes, for more than one line at once
        start = pick(experiment.wide, edge)
        self.complex = start.is_complex()
        self.x = real(start)
        self.shape = tuple(start.shape)
        base = experiment.run(experiment.wide)
        self.places = [place for place in experiment.upstream if place < len(base)]
        self.u = torch.cat([real(experiment.upstream[p].to(wide_dtype(base[p].dtype))) for p in self.places])
        self.y = self._flat(base)
        if self.u.shape != self.y.shape:
            raise CannotRunError("run again, its outputs have other shapes than the recorded ones")
        finite = self.x[self.x.isfinite()]
        size = float(finite.square().mean().sqrt()) if finite.numel() else 0.0
        self.scale = size or 1.0
        self.grain = self._grain() if experiment.custom or experiment.narrow else EPS
        self.step = max(STEP, self.grain ** (1 / 3)) * self.scale

    def _grain(self) -> float:
        """The rounding of what a user's function gives: it may compute in a coarser type than it is given."""
        slope = torch.linspace(0.01, 0.0137, self.x.numel(), dtype=torch.float64, device=self.x.device)
        outs, coarsest = with_rounding(lambda: self._outs(self.x + self.scale * slope))
        moved = self._flat(outs)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            if torch.equal(moved.to(dtype).double(), moved) and not torch.equal(moved, self.y):
                return min(torch.finfo(dtype).eps, coarsest)
        return EPS

    def f(self, x: Tensor) -> Tensor:
        """The outputs at x, flat."""
        return self._flat(self._outs(x))

    def _outs(self, x: Tensor) -> list[Tensor]:
        start = torch.view_as_complex(x.reshape(*self.shape, 2)) if self.complex else x.reshape(self.shape)
        arguments = dict(self.experiment.wide)
        put(arguments, self.edge, start)
        return self.experiment.run(arguments)

    def _flat(self, outs: list[Tensor]) -> Tensor:
        parts = [real(outs[place].to(wide_dtype(outs[place].dtype))) for place in self.places]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def drawn(self, generator: torch.Generator) -> Tensor:
        """A random direction, the same on every device."""
        return torch.randn(self.x.numel(), dtype=torch.float64, generator=generator).to(self.x.device)

    def index(self, element: int) -> tuple[int, ...]:
        """Where a flat element stands in the argument."""
        return unravel(element // 2 if self.complex else element, self.shape)

    def elements(self, chosen: list[int]) -> Measured:
        """Central differences at single elements, as many at once as memory allows."""
        many = max(1, self.left // (8 * (self.x.numel() + 3 * self.u.numel())))
        found = [self._each(chosen[first : first + many]) for first in range(0, len(chosen), many)]
        return Measured(
            torch.cat([each.slope for each in found]),
            torch.cat([each.terms for each in found]),
            torch.cat([each.error for each in found]),
        )

    def _each(self, chosen: list[int]) -> Measured:
        steps = self._steps(*[self.step] * len(chosen))
        return self._measured(self._terms([self.line(element) for element in chosen], steps), steps)

    def refined(self, line: Tensor, step: float, noise: float) -> Measured:
        """Along a line with three step sizes: Richardson's extrapolation to the sixth order, and its error."""
        step = 2.0 ** math.floor(math.log2(step))  # so that x + step is seldom rounded
        coarse, middle, fine = self._terms([line] * 3, self._steps(step, step / 2, step / 4))
        once, again = (4 * middle - coarse) / 3, (4 * fine - middle) / 3
        best = (16 * again - once) / 15
        slope = best.sum()[None]
        terms = best.abs().sum()[None]
        of_x = EPS * float(self.x[line != 0].abs().max()) * terms
        return Measured(slope, terms, (slope - again.sum()).abs() + 4 * (noise + of_x) / step)

    def noise(self, line: Tensor) -> float:
        """The rounding of <u, y> along a line, of sixth differences of values so close that only rounding moves them.

        Where the outputs are rounded once it is that of their last places, and more where their computation cancels.
        """
        place = self.x[line != 0].abs().max() if int(line.count_nonzero()) == 1 else 0.0
        apart = 2.0**-34 * (float(place) or self.scale)  # a corner between them moves them by no more than rounding
        values = [weigh(self.u, self.f(self.x + k * apart * line) - self.y).sum() for k in range(-5, 6)]
        sixth = torch.stack(values).diff(n=6)
        size = float(self._height(self._terms([line], self._steps(self.step)) if self.moved_alone else self.y))
        if not self.experiment.custom:  # a value of size 1 inside, as the sum of a softmax, may be what is rounded
            size = max(size, float(self.u.abs().max()))
        return max(self.grain * size, 4 * math.sqrt(float(sixth.square().mean()) / 924))

    def direction(self, v: Tensor) -> tuple[Tensor, float]:
        """The terms of <u, J v> along one direction, and how far rounding may move their sum."""
        step = self.step
        terms = self._terms([v], self._steps(step))[0]
        return terms, float(MARGIN * self.grain * weigh(self.u, self.y).norm() / step)

    def sides(self, v: Tensor, step: float) -> tuple[Tensor, Tensor]:
        """The terms of <u, J v> by one-sided differences: from the right, from the left."""
        right, left = self.f(self.x + step * v), self.f(self.x - step * v)
        return weigh(self.u, (right - self.y) / step), weigh(self.u, (self.y - left) / step)

    def _steps(self, *steps: float) -> Tensor:
        return torch.tensor(steps, dtype=torch.float64, device=self.x.device)

    def line(self, element: int) -> Tensor:
        """The direction of one element."""
        line = torch.zeros_like(self.x)
        line[element] = 1
        return line

    def _terms(self, lines: list[Tensor], step: Tensor) -> Tensor:
        moves = (line * h for line, h in zip(lines, step.unbind(), strict=True))
        change = torch.stack([self.f(self.x + move) - self.f(self.x - move) for move in moves])
        return weigh(self.u, change / (2 * step)[:, None])

    def _measured(self, terms: Tensor, step: Tensor) -> Measured:
        # Rounding of the outputs hides any change below it, also one that seems to be exactly 0.
        return Measured(terms.sum(1), terms.abs().sum(1), MARGIN * self.grain * self._height(terms) / step)

    def _height(self, terms: Tensor) -> Tensor:
        """The size of what is rounded: all outputs, or those that the lines with these terms move."""
        weighed = weigh(self.u, self.y).nan_to_num(0.0, 0.0, 0.0)
        size: Tensor = torch.linalg.vector_norm(weighed * (terms != 0) if self.moved_alone else weighed, dim=-1)
        return size


def weigh(u: Tensor, y: Tensor) -> Tensor:
    """u * y. Where no gradient arrives nothing counts, not even what is not finite (a mask of -inf)."""
    return torch.where(u == 0, 0.0, u * y)
