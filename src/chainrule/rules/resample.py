"""Rules of upsampling and of the borders of pictures: reflected and repeated padding.

They are linear and go axis by axis: along one axis, an output place is a weighted sum of a few input places. A table of
those places and weights says all: forward they gather, backward the same table scatters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Factor, Index, Rule, Sample, lettered, number, rule, sample, unread
from chainrule.rules.linear import Samples, Sums, WeightedSum, randn, weighted
from chainrule.rules.pattern import Pattern, real
from chainrule.rules.shape import COPIES


@dataclass(frozen=True)
class Taps:
    """A linear map along one axis: y_p = sum_k weight[p, k] x[index[p, k]], for an x of `size` elements.

    `text` is the weight of input place `@u` in output place `@i` in LaTeX; `curve` defines the function in it, if any.
    """

    size: int
    index: Tensor
    weight: Tensor
    text: str
    curve: str = ""

    def forward(self, x: Tensor, axis: int) -> Tensor:
        """The map along an axis."""
        met = x.movedim(axis, -1)[..., self.index.to(x.device)]
        return (met * self.weight.to(x)).sum(-1).movedim(-1, axis)

    def back(self, g: Tensor, axis: int) -> Tensor:
        """Its transpose: each upstream element is spread over the places it was made of, by their weights."""
        terms = g.movedim(axis, -1).unsqueeze(-1) * self.weight.to(g)
        page = terms.new_zeros(*terms.shape[:-2], self.size)
        return page.index_add(-1, self.index.to(g.device).flatten(), terms.flatten(-2)).movedim(-1, axis)

    def matrix(self) -> Tensor:
        """The matrix of the map."""
        return self.weight.new_zeros(len(self.index), self.size).scatter_add_(1, self.index, self.weight)


Tables = Callable[[Any], list[Taps]]
Move = Callable[[Any, Tensor], Tensor]

PLACES, INSIDE, MAPS = "ijk", "uvw", "ABC"  # the letters of output places, of input places, and of each axis' map


def mapped(lead: str, axes: int, point: str = "", moved: int | None = None) -> WeightedSum:
    """The formulas of a sum over input places of a weight along each axis: A_iu B_jv x_ncuv.

    Where the weights depend on the whole `point` (nij), it is their index: A_niju. That along axis `moved` is A'.
    """
    places, inside = PLACES[:axes], INSIDE[:axes]
    names = (m + "'" * (axis == moved) for axis, m in enumerate(MAPS))
    weights = (f"{m}_{{{point or i}{u}}}" for m, i, u in zip(names, places, inside, strict=False))
    return WeightedSum(lead + places, lead + inside, r" \, ".join(weights))


def through(tables: list[Taps], t: Tensor, way: Callable[[Taps, Tensor, int], Tensor]) -> Tensor:
    """Send a tensor through the maps of its last axes, one axis after another."""
    result = t.to(torch.promote_types(t.dtype, torch.float32))
    for axis, taps in enumerate(tables, start=-len(tables)):
        result = way(taps, result, axis)
    return result.to(t.dtype)


NEARBY = "an output element is made of a few input elements near its place, in its own channel"


def along_axes(*nodes: str, name: str, tables: Tables, samples: Samples, source: str = "", zeros: str = NEARBY) -> Rule:
    """Register an operation that maps `self` linearly along its last axes, one after another, and its way back."""
    source = source or f"derivatives.yaml: {name}"

    def maps(op: Any) -> WeightedSum:
        axes = len(tables(op))
        return mapped("nc"[2 - op.out.dim() + axes :], axes)

    def onward(op: Any, g: Tensor) -> Tensor:
        return through(tables(op), g, Taps.forward)

    def where(op: Any) -> str:
        found = tables(op)
        texts = zip(MAPS, PLACES, INSIDE, found, strict=False)
        weights = [f"{m}_{{{i}{u}}} = {lettered(taps.text, {'i': i, 'u': u})}" for m, i, u, taps in texts]
        return r", \quad ".join([*weights, *([found[0].curve] if found[0].curve else [])])

    def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
        each = tables(op)
        lead = len(in_index) - len(each)
        pairs = zip(each, out_index[lead:], in_index[lead:], strict=True)
        weight = math.prod(float(taps.matrix()[p, q]) for taps, p, q in pairs)
        return Factor(latex=fraction(weight)) if out_index[:lead] == in_index[:lead] and weight else None

    def pattern(op: Any) -> Pattern | None:
        if not real(op.self, op.out):
            return None
        found = tables(op)
        nonzero = op.self.shape[: op.self.dim() - len(found)].numel()
        nonzero *= math.prod(int(taps.matrix().count_nonzero()) for taps in found)
        return Pattern("sparse, a map of its own along each axis", (op.out.numel(), op.self.numel()), nonzero)

    way_back(*nodes, name=name, sums=maps, forward=onward, zeros=zeros, samples=samples, where=where, source=source)
    return rule(
        *nodes,
        name=name,
        equation=lambda op: maps(op).forward(),
        where=where,
        wrt={"self": weighted(maps, lambda op, g: through(tables(op), g, Taps.back), zeros, factor, pattern)},
        structure="linear",
        samples=samples,
        source=source,
    )


def way_back(
    *nodes: str, name: str, sums: Sums, forward: Move, zeros: str, samples: Samples, source: str, **more: Any
) -> None:
    """Register the backward of a linear map as an operation, for when it is differentiated in turn.

    What it does to `grad_output` is the transposed map, so its own VJP is the map.
    """
    by_upstream = weighted(lambda op: sums(op).turned(), forward, zeros, by="grad_output")
    rule(
        *(node.replace("Backward0", "BackwardBackward0") for node in nodes),
        name=f"{name}_backward",
        equation=lambda op: sums(op).back("out", "grad_output"),
        wrt={"grad_output": by_upstream, "self": unread("self")},
        structure="linear",
        samples=lambda: map(twice, samples()),
        topic=samples.__module__.rsplit(".", 1)[-1],
        source=f"{source}_backward: the transpose of a linear map, whose own transpose is the map.",
        **more,
    )


def twice(each: Sample) -> Sample:
    """The gradient of a sample by its first argument, as something to differentiate again."""

    def gradient(x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        result = each.function(x, *arguments, **keywords)
        y = result[0] if isinstance(result, tuple) else result
        return torch.autograd.grad(y, x, torch.ones_like(y).requires_grad_(), create_graph=True)[0]

    return Sample(gradient, each.arguments, each.keywords, each.note)


def fraction(value: float) -> str:
    """A weight as a short fraction if it is one."""
    near = Fraction(value).limit_denominator(1024)
    if abs(value - near) > 1e-12:
        return number(value)
    sign, whole = ("-" if near < 0 else ""), abs(near)
    return f"{near}" if near.denominator == 1 else rf"{sign}\frac{{{whole.numerator}}}{{{whole.denominator}}}"


# Curves: the weight of a place by its distance from the centre ---------------------------------------------------


def _cases(*cases: tuple[str, str]) -> str:
    return r"\begin{cases} " + r" \\ ".join(f"{value} & {where}" for value, where in cases) + r" \end{cases}"


@dataclass(frozen=True)
class Filter:
    """A curve by the distance t, half of its width, and how it is written; its slope, if a grid samples by it."""

    weight: Callable[[Tensor], Tensor]
    half: int
    text: str
    slope: Callable[[Tensor], Tensor] = torch.zeros_like
    slope_text: str = ""


def _polynomial(coefficients: Sequence[float]) -> str:
    """A polynomial of |t| in LaTeX, from the coefficients of 1, |t|, ..., its highest power first."""
    powers = ("", r" \, |t|", r" \, |t|^2", r" \, |t|^3")
    terms = [fraction(each) + power for each, power in zip(coefficients, powers, strict=False) if each]
    return " + ".join(reversed(terms)).replace("+ -", "- ")


def _cubic(a: float) -> Filter:
    """Cubic convolution (Keys, 1981): one polynomial of |t| up to 1, and another one up to 2."""
    pieces: list[Sequence[float]] = [(1, 0, -a - 3, a + 2), (-4 * a, 8 * a, -5 * a, a)]
    slopes: list[Sequence[float]] = [[k * each for k, each in enumerate(piece)][1:] for piece in pieces]

    def value(pieces: list[Sequence[float]], t: Tensor) -> Tensor:
        d = t.abs()
        inner, outer = (reduce(lambda t, c: t * d + c, reversed(piece), torch.zeros_like(d)) for piece in pieces)
        return torch.where(d <= 1, inner, torch.where(d < 2, outer, 0))

    def text(pieces: list[Sequence[float]]) -> str:
        inner, outer = map(_polynomial, pieces)
        return _cases((inner, r"|t| \le 1"), (outer, "1 < |t| < 2"), ("0", r"\text{otherwise}"))

    return Filter(
        partial(value, pieces),
        2,
        rf"\lambda(t) = {text(pieces)}",
        lambda t: t.sgn() * value(slopes, t),
        rf"\lambda'(t) = \operatorname{{sgn}}(t) \, {text(slopes)}",
    )


TRIANGLE = Filter(
    lambda t: (1 - t.abs()).clamp(min=0),
    1,
    r"\lambda(t) = \max(0, 1 - |t|)",
    lambda t: torch.where(t < 0, 1, -1).to(t),  # |t| <= 1; at a whole number, that of the cell to the right
    r"\lambda'(t) = [-1 \le t < 0] - [0 \le t < 1]",
)
CUBIC, SMOOTH_CUBIC = _cubic(-0.75), _cubic(-0.5)
LANCZOS = Filter(
    lambda t: torch.where(t.abs() < 3, torch.sinc(t) * torch.sinc(t / 3), 0),
    3,
    r"\lambda(t) = "
    + _cases(
        ("1", "t = 0"),
        (r"\frac{3 \sin(\pi \, t) \, \sin(\pi \, t / 3)}{\pi^2 \, t^2}", "0 < |t| < 3"),
        ("0", r"\text{otherwise}"),
    ),
)

# Upsampling ------------------------------------------------------------------------------------------------------


def _step(size: int, places: int, align_corners: bool, scale: float | None) -> float:
    """How far two neighbouring output places are apart in the input."""
    if align_corners:
        return (size - 1) / (places - 1) if places > 1 else 0.0
    return 1 / scale if scale else size / places


def clipped(place: str, size: int) -> str:
    """The nearest place inside."""
    return rf"\min(\max({place}, 0), {size - 1})"


def four_places(centre: str, place: str, u: str = "@u", curve: str = r"\lambda") -> str:
    """The cubic filter's weight of place u, if that is one of the four around a centre."""
    return rf"\sum_{{m=-1}}^{{2}} [{u} = {place}] \, {curve}({centre} - \lfloor {centre} \rfloor - m)"


@lru_cache(maxsize=256)
def _nearest(size: int, places: int, scale: float | None, exact: bool) -> Taps:
    """Each place is a copy of one. PyTorch finds it in single precision, whatever the input's type."""
    p = torch.arange(places)
    step = _step(size, places, False, scale)
    if size == places or (places == 2 * size and not exact):
        index = p * size // max(places, 1)
    else:
        index = ((p + (0.5 if exact else 0)).to(torch.float32) * torch.tensor(step, dtype=torch.float32)).floor().long()
    index = index.clamp(max=size - 1).unsqueeze(-1)
    place = r"(@i + \frac{1}{2})" if exact else "@i"
    text = rf"[@u = \lfloor {fraction(step)} \, {place} \rfloor]"
    return Taps(size, index, torch.ones_like(index, dtype=torch.float64), text)


HALF_PLACE = r" \, (@i + \frac{1}{2}) - \frac{1}{2}"


@lru_cache(maxsize=256)
def _filtered(size: int, places: int, align_corners: bool, scale: float | None, curve: Filter) -> Taps:
    """Weights by the distance of a place from the output's; what lies beyond the border stands at the border."""
    step = _step(size, places, align_corners, scale)
    p = torch.arange(places, dtype=torch.float64)
    centre = step * p if align_corners else step * (p + 0.5) - 0.5
    written = fraction(step) + (r" \, @i" if align_corners else HALF_PLACE)
    if curve is TRIANGLE:
        centre = centre.clamp(min=0)
        text = rf"\lambda({clipped(written, size)} - @u)"
    else:
        text = four_places(written, clipped(rf"\lfloor {written} \rfloor + m", size))
    index = centre.floor().long().unsqueeze(-1) + torch.arange(1 - curve.half, curve.half + 1)
    return Taps(size, index.clamp(0, size - 1), curve.weight(centre.unsqueeze(-1) - index), text, curve.text)


@lru_cache(maxsize=256)
def _antialiased(size: int, places: int, align_corners: bool, scale: float | None, curve: Filter) -> Taps:
    """The filter is stretched by the step where that is above 1, and its weights inside the picture sum to 1."""
    step = _step(size, places, align_corners, scale)
    stretch = max(step, 1.0)
    centre = step * (torch.arange(places, dtype=torch.float64) + 0.5)
    first = (centre - curve.half * stretch + 0.5).trunc().long().clamp(min=0)
    last = (centre + curve.half * stretch + 0.5).trunc().long().clamp(max=size)
    index = first.unsqueeze(-1) + torch.arange(int((last - first).max()) if places else 0)
    weights = curve.weight((index - centre.unsqueeze(-1) + 0.5) / stretch).masked_fill(index >= last.unsqueeze(-1), 0)
    by = "" if stretch == 1 else f" / {fraction(stretch)}"
    near = [rf"\lambda(({place} - ({fraction(step)}{HALF_PLACE})){by})" for place in ("@u", "m")]
    text = rf"\frac{{{near[0]}}}{{\sum_{{m=0}}^{{{size - 1}}} {near[1]}}}"
    return Taps(size, index.clamp(max=size - 1), weights / weights.sum(-1, keepdim=True), text, curve.text)


def _axes(op: Any) -> Iterator[tuple[int, int, float | None]]:
    """(input size, output size, scale that the user gave) of each axis."""
    sizes = op.arguments.get("input_size") or op.self.shape
    names = ("scales",) if len(op.output_size) == 1 else ("scales_d", "scales_h", "scales_w")[-len(op.output_size) :]
    scales = [op.arguments.get(name) for name in names]
    return zip(sizes[2:], op.output_size, scales, strict=True)


def _filtered_axes(curve: Filter, make: Callable[..., Taps], op: Any) -> list[Taps]:
    return [make(size, places, op.align_corners, scale, curve) for size, places, scale in _axes(op)]


def _nearest_samples(mode: str) -> list[Sample]:
    return [
        sample(F.interpolate, randn(2, 3, 4), size=7, mode=mode),
        sample(F.interpolate, randn(1, 2, 3, 4), scale_factor=2, mode=mode, note="doubled"),
        sample(F.interpolate, randn(1, 2, 5, 4), size=(2, 9), mode=mode, note="smaller and larger"),
        sample(F.interpolate, randn(1, 2, 5, 4), scale_factor=(1.7, 0.6), mode=mode, note="by a broken factor"),
        sample(F.interpolate, randn(0, 2, 3, 4), scale_factor=2, mode=mode, note="empty batch"),
        sample(F.interpolate, randn(1, 1, 2, 3, 2), scale_factor=1.5, mode=mode),
    ]


for _exact, _entry in ((False, "upsample_nearest"), (True, "_upsample_nearest_exact")):
    along_axes(
        *(f"UpsampleNearest{'Exact' * _exact}{d}DBackward0" for d in (1, 2, 3)),
        name=_entry.strip("_"),
        tables=lambda op, exact=_exact: [_nearest(*axis, exact) for axis in _axes(op)],  # type: ignore[misc]
        zeros=COPIES,
        samples=lambda exact=_exact: _nearest_samples("nearest-exact" if exact else "nearest"),  # type: ignore[misc]
        source=f"derivatives.yaml: {_entry}2d",
    )


def _resized(mode: str, antialias: bool = False, corners: tuple[bool, ...] = (False, True)) -> list[Sample]:
    made = [
        sample(F.interpolate, randn(2, 3, *sizes), size=size, mode=mode, align_corners=align, antialias=antialias)
        for sizes, size in (((3, 4), (7, 5)), ((5, 6), (2, 9)), ((1, 1), (3, 1)))
        for align in corners
    ]
    factors = sample(F.interpolate, randn(1, 2, 5, 4), scale_factor=(1.7, 0.6), mode=mode, antialias=antialias)
    empty = sample(F.interpolate, randn(0, 2, 3, 4), scale_factor=2, mode=mode, antialias=antialias, note="empty batch")
    return [*made, factors, empty]


upsample_linear = along_axes(
    "UpsampleLinear1DBackward0",
    "UpsampleBilinear2DBackward0",
    "UpsampleTrilinear3DBackward0",
    name="upsample_linear",
    tables=partial(_filtered_axes, TRIANGLE, _filtered),
    samples=lambda: [
        sample(F.interpolate, randn(2, 3, 4), size=7, mode="linear"),
        sample(F.interpolate, randn(2, 3, 4), size=3, mode="linear", align_corners=True),
        *_resized("bilinear"),
        sample(F.interpolate, randn(1, 2, 2, 3, 2), scale_factor=(2, 0.5, 1.5), mode="trilinear"),
        sample(F.interpolate, randn(1, 2, 2, 3, 2), size=(3, 1, 4), mode="trilinear", align_corners=True),
    ],
    source="derivatives.yaml: upsample_bilinear2d",
)

upsample_bicubic = along_axes(
    "UpsampleBicubic2DBackward0",
    name="upsample_bicubic",
    tables=partial(_filtered_axes, CUBIC, _filtered),
    samples=lambda: _resized("bicubic"),
    source="derivatives.yaml: upsample_bicubic2d. Keys, Cubic convolution interpolation, 1981.",
)

for _name, _curve, _aligned in (
    ("bilinear", TRIANGLE, (False, True)),
    ("bicubic", SMOOTH_CUBIC, (False, True)),
    ("lanczos", LANCZOS, (False,)),
):
    along_axes(
        f"Upsample{_name.title()}2DAaBackward0",
        name=f"upsample_{_name}_aa",
        tables=partial(_filtered_axes, _curve, _antialiased),
        samples=lambda name=_name, corners=_aligned: _resized(name, antialias=True, corners=corners),  # type: ignore[misc]
        source=f"derivatives.yaml: _upsample_{_name}2d_aa",
    )

# Borders ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _bordered(size: int, before: int, after: int, reflected: bool) -> Taps:
    """Each place is a copy of the one that stands there, mirrored at the outermost place or repeating it."""
    place, written = torch.arange(-before, size + after), f"@i - {before}"
    index = (size - 1) - ((size - 1) - place.abs()).abs() if reflected else place.clamp(0, size - 1)
    text = f"{size - 1} - |{size - 1} - |{written}||" if reflected else clipped(written, size)
    return Taps(size, index.unsqueeze(-1), torch.ones(len(place), 1, dtype=torch.float64), f"[@u = {text}]")


def _bordered_axes(reflected: bool, op: Any) -> list[Taps]:
    sides = list(zip(op.padding[::2], op.padding[1::2], strict=True))[::-1]
    sizes = op.self.shape[-len(sides) :]
    return [_bordered(size, *each, reflected) for size, each in zip(sizes, sides, strict=True)]


def _border_samples(mode: str) -> list[Sample]:
    return [
        sample(F.pad, randn(2, 4), (3, 1), mode=mode),
        sample(F.pad, randn(1, 2, 3, 4), (1, 2, 2, 0), mode=mode),
        sample(F.pad, randn(2, 2, 3, 4), (1, 1, 0, 2, 1, 0), mode=mode),
        sample(F.pad, randn(0, 2, 3, 4), (1, 2, 2, 0), mode=mode, note="empty batch"),
    ]


for _name, _mode in (("Reflection", "reflect"), ("Replication", "replicate")):
    along_axes(
        *(f"{_name}Pad{d}DBackward0" for d in (1, 2, 3)),
        name=f"{_name.lower()}_pad",
        tables=partial(_bordered_axes, _mode == "reflect"),
        zeros=COPIES,
        samples=lambda mode=_mode: _border_samples(mode),  # type: ignore[misc]
        source=f"derivatives.yaml: {_name.lower()}_pad2d",
    )
