"""Rules of sampling a picture at the points of a grid, and of the grid of an affine map.

A sampler has a table of places and weights, as `resample` has, for every point, and its weights depend on where the
point lies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Factor, Index, Kink, Sample, Wrt, at, derivative, rule, sample
from chainrule.rules.linear import WeightedSum, randn, weighted
from chainrule.rules.resample import (
    CUBIC,
    INSIDE,
    MAPS,
    PLACES,
    TRIANGLE,
    clipped,
    four_places,
    fraction,
    mapped,
)

BILINEAR, NEAREST, BICUBIC = 0, 1, 2
ZEROS, BORDER_PADDING, REFLECTION = 0, 1, 2


# One of the input places that each sampled point is made of along an axis: its index, its weight (0 outside), and the
# derivative of the weight by the grid's coordinate.
Point = tuple[Tensor, Tensor, Tensor]

CURVES = {BILINEAR: TRIANGLE, BICUBIC: CUBIC}


class _Line:
    """One axis of a sampled picture: what the points are made of along it, in numbers and in LaTeX."""

    def __init__(self, op: Any, axis: int) -> None:
        self.op, self.size, self.u, self.map = op, op.input.shape[2 + axis], INSIDE[axis], MAPS[axis]
        self.column = op.grid.shape[-1] - 1 - axis  # the grid's numbers are (x, y, z), the axes (z, y, x)
        self.corners, self.mode, self.padding = op.align_corners, op.interpolation_mode, op.padding_mode
        self.scale = (self.size - 1) / 2 if self.corners else self.size / 2
        self.low, self.span = (0.0, self.size - 1) if self.corners else (-0.5, self.size)  # of the mirrors
        self.place = f"{'pqr'[axis]}_{{{_point(op)}}}"

    def coordinate(self) -> Tensor:
        """Where the points lie, counted in input places."""
        coordinate: Tensor = (self.op.grid[..., self.column] + 1) * self.scale - (0 if self.corners else 0.5)
        return coordinate

    def mirrored(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Mirror coordinates at the outermost places (`align_corners`), or at their outer edges; with the slope."""
        if self.padding != REFLECTION:
            return u, torch.ones_like(u)
        if not self.span:
            return torch.zeros_like(u), torch.zeros_like(u)
        distance = (u - self.low).abs()
        rest, odd = distance.fmod(self.span), (distance / self.span).floor() % 2 == 1
        sign = torch.where((u < self.low) ^ odd, -1.0, 1.0).to(u)
        return torch.where(odd, self.span - rest, rest) + self.low, sign

    def inside(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates by the rule of the padding, with the slope: at and beyond a border that clips, it is 0."""
        u, slope = self.mirrored(u)
        if self.padding == ZEROS:
            return u, slope
        return u.clamp(0, self.size - 1), slope.masked_fill((u <= 0) | (u >= self.size - 1), 0)

    def points(self) -> list[Point]:
        u = self.coordinate()
        u, slope = (u, torch.ones_like(u)) if self.mode == BICUBIC else self.inside(u)
        if self.mode == NEAREST:
            return [self.held(u.round(), torch.ones_like(u), torch.zeros_like(u))]
        curve = CURVES[self.mode]
        around = [u.floor() + step for step in range(1 - curve.half, curve.half + 1)]
        return [  # bicubic moves each of its places into the picture, not the point
            self.held(self.inside(v)[0].round(), curve.weight(u - v), curve.slope(u - v) * slope * self.scale)
            for v in around
        ]

    def held(self, place: Tensor, weight: Tensor, slope: Tensor) -> Point:
        outside = ~((place >= 0) & (place <= self.size - 1))
        index = place.masked_fill(outside, 0).long()
        return index, weight.masked_fill(outside, 0), slope.masked_fill(outside, 0)

    def near_kink(self, radius: float) -> Tensor:
        """Points on a line between two cells (linear), halfway between two places (nearest), or at a clipped border."""
        u, _ = self.mirrored(self.coordinate())
        reach, shift = radius * self.scale, 0.5 if self.mode == NEAREST else 0.0
        near = (u - shift - (u - shift).round()).abs() <= reach
        near = near & (u >= -1 - reach) & (u <= self.size + reach)
        return torch.zeros_like(near) if self.mode == BICUBIC else near

    def written(self) -> tuple[str, str, str]:
        """What the place of a point along the axis, the weight of place u, and its slope stand for."""
        p, corner = self.place, "" if self.corners else r" - \frac{1}{2}"
        count = self.size - 1 if self.corners else self.size
        number = at("grid", f"{_point(self.op)}{self.column}")
        weight, slope = self.weight()
        index = f"_{{{_point(self.op)}{self.u}}}"
        coordinate = rf"{p} = \frac{{{count}}}{{2}} \, ({number} + 1){corner}"
        return coordinate, f"{self.map}{index} = {weight}", f"{self.map}'{index} = {slope}"

    def weight(self) -> tuple[str, str]:
        """The weight of place u, and its slope."""
        prime, p, u, scale = r"\lambda'", self.place, self.u, fraction(self.scale)
        moved = self.written_inside(p)
        if self.mode == NEAREST:
            return rf"[{u} = \operatorname{{round}}({moved})]", "0"
        if self.mode == BICUBIC:
            four = self.written_inside(rf"\lfloor {p} \rfloor + m")
            return four_places(p, four, u), rf"{scale} \, {four_places(p, four, u, prime)}"
        slope = rf"{scale} \, {prime}({moved} - {u})"
        if self.padding == REFLECTION and self.span:
            low = fraction(self.low)
            slope += rf" \, (-1)^{{\lfloor |{p} - ({low})| / {self.span} \rfloor}} \, (1 - 2 \, [{p} < {low}])"
        clip = "" if self.padding == ZEROS else rf" \, [0 < {moved} < {self.size - 1}]"
        return rf"\lambda({moved} - {u})", slope + clip

    def written_inside(self, place: str) -> str:
        if self.padding == REFLECTION:
            low, span = fraction(self.low), self.span
            place = rf"{low} + {span} - |{span} - |{place} - ({low})| \bmod {2 * span}|" if span else "0"
        return clipped(place, self.size) if self.padding != ZEROS else place


def _lines(op: Any) -> list[_Line]:
    return [_Line(op, axis) for axis in range(op.input.dim() - 2)]


def _corners(op: Any) -> Iterator[tuple[Tensor, tuple[Point, ...]]]:
    """For every combination of places: where it lies in the flattened picture, and its point along each axis."""
    for corner in itertools.product(*(line.points() for line in _lines(op))):
        flat = torch.zeros_like(corner[0][0])
        for size, (index, _, _) in zip(op.input.shape[2:], corner, strict=True):
            flat = flat * size + index
        yield flat.flatten(1).unsqueeze(1).expand(-1, op.input.shape[1], -1), corner


def _sampled_input(op: Any, g: Tensor) -> Tensor:
    page = torch.zeros_like(op.input).flatten(2)
    for flat, corner in _corners(op):
        weight = math.prod((weight for _, weight, _ in corner[1:]), start=corner[0][1])
        page = page.scatter_add(2, flat, (g * weight.unsqueeze(1)).flatten(2))
    return page.reshape(op.input.shape)


def _sampled_grid(op: Any, g: Tensor) -> Tensor:
    gradient = torch.zeros_like(op.grid)
    for flat, corner in _corners(op):
        met = (g.flatten(2) * op.input.flatten(2).gather(2, flat)).sum(1).reshape(op.grid.shape[:-1])
        for axis in range(len(corner)):
            slopes = (slope if other == axis else weight for other, (_, weight, slope) in enumerate(corner))
            gradient[..., len(corner) - 1 - axis] += math.prod(slopes, start=met)
    return gradient


def _point(op: Any) -> str:
    """The letters of a sampled point."""
    return "n" + PLACES[: op.input.dim() - 2]


def _sampled(op: Any, moved: int | None = None) -> WeightedSum:
    """The formulas: the weight of input place u along one axis, A_niju, depends on the point."""
    return mapped("nc", op.input.dim() - 2, _point(op), moved)


def _definitions(op: Any) -> str:
    places, weights, slopes = zip(*(line.written() for line in _lines(op)), strict=True)
    curve = CURVES.get(op.interpolation_mode)
    curves = [[curve.text], [curve.slope_text]] if curve else [[], []]
    return r", \quad ".join([*places, *weights, *curves[0], *slopes, *curves[1]])


def _by_number(write: Callable[[str, WeightedSum], str], op: Any) -> str:
    """A formula for each of the grid's numbers, from its index and the sum with the slopes of the axis it acts on."""
    numbers = (f"{_point(op)}{line.column}" for line in _lines(op))
    return r", \quad ".join(write(number, _sampled(op, axis)) for axis, number in enumerate(numbers))


def _grid_samples() -> Iterator[Sample]:
    modes, paddings = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")
    for mode, padding, align in itertools.product(modes, paddings, (False, True)):
        grid = (randn(2, 3, 2, 2) * 0.8).detach().requires_grad_()
        yield sample(F.grid_sample, randn(2, 3, 4, 5), grid, mode, padding, align)
    for mode, padding, align in (
        ("bilinear", "zeros", False),
        ("bilinear", "reflection", True),
        ("nearest", "border", True),
    ):
        grid = (randn(1, 2, 3, 2, 3) * 0.8).detach().requires_grad_()
        yield sample(F.grid_sample, randn(1, 2, 3, 4, 2), grid, mode, padding, align)
    yield sample(F.grid_sample, randn(0, 2, 3, 4), randn(0, 2, 2, 2), align_corners=False, note="empty batch")
    yield sample(F.grid_sample, randn(1, 2, 1, 1), randn(1, 2, 2, 2), align_corners=True, note="size 1")
    far = randn(1, 2, 2, 2) * 9
    yield sample(F.grid_sample, randn(1, 2, 3, 4), far, padding_mode="reflection", align_corners=False)


grid_sampler = rule(
    "GridSampler2DBackward0",
    "GridSampler3DBackward0",
    name="grid_sampler",
    linear=("input",),
    equation=lambda op: _sampled(op).forward(source="input"),
    where=_definitions,
    wrt={
        "input": weighted(
            _sampled, _sampled_input, "a sampled point is made of the input elements around it alone", by="input"
        ),
        "grid": Wrt(
            _sampled_grid,
            partial(_by_number, lambda n, s: derivative(at("out", s.out), at("grid", n), s.terms("input"))),
            partial(_by_number, lambda n, s: rf"{at('grad', n)} = \sum_{{c}} {at('g', s.out)} \, {s.terms('input')}"),
            "a point of the grid moves its own sample alone, in all channels",
        ),
    },
    kink=Kink(
        lambda op, radius: torch.stack([line.near_kink(radius) for line in reversed(_lines(op))], -1),
        "the derivative of the cell to the right of the point; 0 at a border that clips, and for nearest",
        argument="grid",
    ),
    samples=_grid_samples,
    source="derivatives.yaml: grid_sampler_2d. Jaderberg et al., Spatial Transformer Networks, 2015, arXiv:1506.02025.",
)

# The grid of an affine map ---------------------------------------------------------------------------------------


def _base_grid(op: Any) -> Tensor:
    """The places of the output in the square from -1 to 1, with a 1 behind: (..., x, y, 1)."""
    identity = torch.eye(op.theta.shape[1], op.theta.shape[2]).to(op.theta).unsqueeze(0)
    places = F.affine_grid(identity, [1, 1, *op.size[2:]], op.align_corners)[0]
    return torch.cat([places, torch.ones_like(places[..., :1])], -1)


def _base_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    (n, *place, row), (m, own, column) = out_index, in_index
    value = float(_base_grid(op)[(*place, column)])
    return Factor(latex=fraction(value)) if n == m and row == own else None


def _columns(op: Any) -> tuple[list[WeightedSum], str]:
    """What each column of theta adds to coordinate l of a place, by the place's own p, q and 1; and what these are."""
    letters, sizes = PLACES[: len(op.size) - 2], op.size[2:]
    line = r"\frac{{2 \, {0}}}{{{2}}} - 1" if op.align_corners else r"\frac{{2 \, {0} + 1}}{{{1}}} - 1"
    axes = list(zip("pqr", reversed(letters), reversed(sizes), strict=False))
    where = (f"{name}_{letter} = {line.format(letter, size, max(size - 1, 1))}" for name, letter, size in axes)
    base = [*(f"{name}_{letter}" for name, letter, _ in axes), "1"]
    return [WeightedSum(f"n{letters}l", f"nl{k}", each) for k, each in enumerate(base)], r", \quad ".join(where)


def _affine_equation(op: Any) -> str:
    columns, _ = _columns(op)
    terms = " + ".join(rf"{at('theta', each.into)} \, {each.weight}" for each in columns)
    return f"{at('out', columns[0].out)} = {terms}"


affine_grid = rule(
    "AffineGridGeneratorBackward0",
    equation=_affine_equation,
    where=lambda op: _columns(op)[1],
    wrt={
        "theta": Wrt(
            lambda op, g: torch.einsum("npj,pk->njk", g.flatten(1, -2), _base_grid(op).flatten(0, -2)),
            lambda op: r", \quad ".join(each.local(by="theta") for each in _columns(op)[0]),
            lambda op: r", \quad ".join(each.back() for each in _columns(op)[0]),
            "each sample has its own matrix, and each coordinate its own row",
            _base_factor,
        )
    },
    structure="linear",
    samples=lambda: [
        sample(F.affine_grid, randn(2, 2, 3), (2, 1, 3, 4), align_corners=False),
        sample(F.affine_grid, randn(2, 2, 3), (2, 1, 1, 4), align_corners=False, note="size 1"),
        sample(F.affine_grid, randn(1, 3, 4), (1, 1, 2, 3, 2), align_corners=False),
        sample(F.affine_grid, randn(1, 3, 4), (1, 1, 2, 3, 2), align_corners=True),
    ],
)
