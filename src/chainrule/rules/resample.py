"""Rules of resampling and of the borders of pictures: upsampling, grid sampling, reflected and repeated padding.

All but grid sampling are linear and go axis by axis: along one axis, an output place is a weighted sum of a few input
places. A table of those places and weights says all: forward they gather, backward the same table scatters. A grid
sampler has such a table for every sampled point, and its weights depend on where the point lies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Factor, Kink, Rule, Sample, Wrt, at, derivative, number, rule, sample, unread
from chainrule.rules.linear import randn
from chainrule.rules.pattern import Pattern, real

Index = tuple[int, ...]


@dataclass(frozen=True)
class Taps:
    """A linear map along one axis: y_p = sum_k weight[p, k] x[index[p, k]], for an x of `size` elements."""

    size: int
    index: Tensor
    weight: Tensor

    def forward(self, x: Tensor, axis: int) -> Tensor:
        """The map along an axis."""
        met = x.movedim(axis, -1)[..., self.index.to(x.device)]
        return (met * self.weight.to(x)).sum(-1).movedim(-1, axis)

    def back(self, g: Tensor, axis: int) -> Tensor:
        """Its transpose: each upstream element is spread over the places it was made of, by their weights."""
        terms = g.movedim(axis, -1).unsqueeze(-1) * self.weight.to(g)
        page = terms.new_zeros(*terms.shape[:-2], self.size)
        return page.index_add(-1, self.index.to(g.device).flatten(), terms.flatten(-2)).movedim(-1, axis)

    def map(self) -> Tensor:
        """The matrix of the map, (outputs, inputs)."""
        page = self.weight.new_zeros(self.index.shape[0], self.size)
        return page.scatter_add_(1, self.index, self.weight)

    def entry(self, place: int, inside: int) -> float:
        """The weight of one input place in one output place."""
        return float(self.weight[place][self.index[place] == inside].sum())


Tables = Callable[[Any], list[Taps]]
Weights = Callable[[Any], list[str]]

PLACES, INSIDE, MAPS = "ijk", "uvw", "ABC"  # the letters of output places, of input places, and of each axis' map


@dataclass(frozen=True)
class _Maps:
    """The formulas of y = sum over input places of weights along each axis: A_iu B_jv x_ncuv.

    `weights` is the LaTeX of each axis' weight of place u in place i, in these letters, which `each` puts right.
    """

    weights: list[str]
    lead: str  # the letters of the axes before

    @property
    def over(self) -> tuple[str, str]:
        return PLACES[: len(self.weights)], INSIDE[: len(self.weights)]

    def product(self) -> str:
        return r" \, ".join(f"{m}_{{{i}{u}}}" for m, i, u in zip(MAPS, *self.over, strict=False))

    def where(self) -> str:
        named = zip(MAPS, *self.over, self.weights, strict=False)
        return r", \quad ".join(f"{m}_{{{i}{u}}} = {each}" for m, i, u, each in named)

    def out(self, name: str) -> str:
        return at(name, self.lead + self.over[0])

    def into(self, name: str) -> str:
        return at(name, self.lead + self.over[1])

    def forward(self, target: str, source: str) -> str:
        return rf"{self.out(target)} = \sum_{{{','.join(self.over[1])}}} {self.product()} \, {self.into(source)}"

    def back(self, target: str, source: str) -> str:
        return rf"{self.into(target)} = \sum_{{{','.join(self.over[0])}}} {self.product()} \, {self.out(source)}"


def through(tables: list[Taps], t: Tensor, way: Callable[[Taps, Tensor, int], Tensor]) -> Tensor:
    """Send a tensor through the maps of its last axes, one axis after another."""
    result = t.to(torch.promote_types(t.dtype, torch.float32))
    for axis, taps in enumerate(tables, start=-len(tables)):
        result = way(taps, result, axis)
    return result.to(t.dtype)


def along_axes(
    *nodes: str,
    name: str,
    tables: Tables,
    weights: Weights,
    samples: Callable[[], Iterable[Sample]],
    source: str = "",
    zeros: str = "an output element is made of a few input elements near its place, in its own channel",
    **more: Any,
) -> Rule:
    """Register an operation that maps `self` linearly along its last axes, one after another, and its way back.

    The way back of `XBackward0` is an operation of its own where a gradient is differentiated again: what it does to
    `grad_output` is the transposed map, so its own VJP is the map.
    """

    source = source or f"derivatives.yaml: {name}"

    def maps(op: Any) -> _Maps:
        found = weights(op)
        operand = op.arguments.get("grad_output", op.out)
        return _Maps(found, "nc"[2 - operand.dim() + len(found) :])

    def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
        each = tables(op)
        lead = len(in_index) - len(each)
        pairs = zip(each, out_index[lead:], in_index[lead:], strict=True)
        weight = math.prod(taps.entry(p, q) for taps, p, q in pairs)
        return Factor(latex=fraction(weight)) if out_index[:lead] == in_index[:lead] and weight else None

    def pattern(op: Any) -> Pattern | None:
        if not real(op.self, op.out):
            return None
        nonzero = op.self.shape[: op.self.dim() - len(tables(op))].numel()
        for taps in tables(op):
            nonzero *= int(taps.map().count_nonzero())
        return Pattern("sparse, a map of its own along each axis", (op.out.numel(), op.self.numel()), nonzero)

    rule(
        *(node.replace("Backward0", "BackwardBackward0") for node in nodes),
        name=f"{name}_backward",
        equation=lambda op: maps(op).back("out", "grad_output"),
        where=lambda op: maps(op).where(),
        wrt={
            "grad_output": Wrt(
                lambda op, g: through(tables(op), g, Taps.forward),
                lambda op: derivative(maps(op).into("out"), maps(op).out("grad_output"), maps(op).product()),
                lambda op: maps(op).forward("grad", "g"),
                zeros,
            ),
            "self": unread("self"),
        },
        structure="linear",
        samples=lambda: [twice(each) for each in samples()],
        topic=samples.__module__.rsplit(".", 1)[-1],
        source=f"{source}_backward: the transpose of a linear map, whose own transpose is the map.",
    )
    return rule(
        *nodes,
        name=name,
        equation=lambda op: maps(op).forward("out", "self"),
        where=lambda op: maps(op).where(),
        wrt={
            "self": Wrt(
                lambda op, g: through(tables(op), g, Taps.back),
                lambda op: derivative(maps(op).out("out"), maps(op).into("self"), maps(op).product()),
                lambda op: maps(op).back("grad", "g"),
                zeros,
                factor,
                pattern,
            )
        },
        structure="linear",
        samples=samples,
        source=source,
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
    """A weight as a short fraction, where it is one."""
    near = Fraction(value).limit_denominator(1024)
    if abs(value - near) > 1e-12:
        return number(value)
    sign, whole = ("-" if near < 0 else ""), abs(near)
    return f"{near}" if near.denominator == 1 else rf"{sign}\frac{{{whole.numerator}}}{{{whole.denominator}}}"


# Upsampling ------------------------------------------------------------------------------------------------------


def _cubic(t: Tensor, a: float) -> Tensor:
    """The weight of a place at distance t in cubic convolution (Keys, 1981)."""
    t = t.abs()
    inner, outer = ((a + 2) * t - (a + 3)) * t * t + 1, ((t - 5) * t + 8) * a * t - 4 * a
    return torch.where(t <= 1, inner, torch.where(t < 2, outer, 0))


def _triangle(t: Tensor) -> Tensor:
    return (1 - t.abs()).clamp(min=0)


def _lanczos(t: Tensor) -> Tensor:
    return torch.where(t.abs() < 3, torch.sinc(t) * torch.sinc(t / 3), 0)


# name -> (weight by distance, half of its width)
FILTERS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "linear": (_triangle, 1),
    "cubic": (lambda t: _cubic(t, -0.75), 2),
    "antialiased linear": (_triangle, 1),
    "antialiased cubic": (lambda t: _cubic(t, -0.5), 2),
    "antialiased lanczos": (_lanczos, 3),
}


def _step(size: int, places: int, align_corners: bool, scale: float | None) -> float:
    """How far two neighbouring output places are apart in the input."""
    if align_corners:
        return (size - 1) / (places - 1) if places > 1 else 0.0
    return 1 / scale if scale else size / places


@lru_cache(maxsize=256)
def _nearest(size: int, places: int, scale: float | None, exact: bool) -> Taps:
    """Each place is a copy of one. PyTorch finds it in single precision, whatever the input's type."""
    p = torch.arange(places)
    if size == places or (places == 2 * size and not exact):
        index = p * size // max(places, 1)
    else:
        step = torch.tensor(_step(size, places, False, scale), dtype=torch.float32)
        index = ((p + (0.5 if exact else 0)).to(torch.float32) * step).floor().long()
    index = index.clamp(max=size - 1).unsqueeze(-1)
    return Taps(size, index, torch.ones_like(index, dtype=torch.float64))


@lru_cache(maxsize=256)
def _filtered(size: int, places: int, align_corners: bool, scale: float | None, kind: str) -> Taps:
    """Weights by the distance of a place from the output's; what lies beyond the border stands at the border."""
    weight, half = FILTERS[kind]
    step = _step(size, places, align_corners, scale)
    p = torch.arange(places, dtype=torch.float64)
    centre = step * p if align_corners else step * (p + 0.5) - 0.5
    centre = centre.clamp(min=0) if kind == "linear" else centre
    index = centre.floor().long().unsqueeze(-1) + torch.arange(1 - half, half + 1)
    return Taps(size, index.clamp(0, size - 1), weight(centre.unsqueeze(-1) - index))


@lru_cache(maxsize=256)
def _antialiased(size: int, places: int, align_corners: bool, scale: float | None, kind: str) -> Taps:
    """The filter is stretched by the step where that is above 1, and its weights inside the picture sum to 1."""
    weight, half = FILTERS[kind]
    step = _step(size, places, align_corners, scale)
    stretch = max(step, 1.0)
    centre = step * (torch.arange(places, dtype=torch.float64) + 0.5)
    first = (centre - half * stretch + 0.5).trunc().long().clamp(min=0)
    last = (centre + half * stretch + 0.5).trunc().long().clamp(max=size)
    index = first.unsqueeze(-1) + torch.arange(int((last - first).max()) if places else 0)
    weights = weight((index - centre.unsqueeze(-1) + 0.5) / stretch).masked_fill(index >= last.unsqueeze(-1), 0)
    return Taps(size, index.clamp(max=size - 1), weights / weights.sum(-1, keepdim=True))


def _axes(op: Any) -> Iterator[tuple[int, int, float | None]]:
    """(input size, output size, scale that the user gave) of each axis."""
    sizes = op.arguments.get("input_size") or op.self.shape
    names = ("scales",) if len(op.output_size) == 1 else ("scales_d", "scales_h", "scales_w")[-len(op.output_size) :]
    scales = [op.arguments.get(name) for name in names]
    return zip(sizes[2:], op.output_size, scales, strict=True)


def _nearest_tables(exact: bool) -> Tables:
    return lambda op: [_nearest(size, places, scale, exact) for size, places, scale in _axes(op)]


def _filter_tables(kind: str) -> Tables:
    make = _antialiased if kind.startswith("antialiased") else _filtered
    return lambda op: [make(size, places, op.align_corners, scale, kind) for size, places, scale in _axes(op)]


def _steps(op: Any) -> list[str]:
    """How far two output places are apart in the input, along each axis."""
    corners = op.arguments.get("align_corners", False)
    return [fraction(_step(size, places, corners, scale)) for size, places, scale in _axes(op)]


def _nearest_weights(exact: bool) -> Weights:
    half = r"({i} + \frac{{1}}{{2}})" if exact else "{i}"
    return lambda op: [
        rf"[{u} = \lfloor {step} \, {half.format(i=i)} \rfloor]"
        for step, i, u in zip(_steps(op), PLACES, INSIDE, strict=False)
    ]


def _centres(op: Any, antialiased: bool) -> list[str]:
    """Where the centre of each output place lies in the input, along each axis."""
    form = (
        r"{s} \, {i}" if op.align_corners and not antialiased else r"{s} \, ({i} + \frac{{1}}{{2}}) - \frac{{1}}{{2}}"
    )
    return [form.format(s=s, i=i) for s, i in zip(_steps(op), PLACES, strict=False)]


def clipped(place: str, size: int) -> str:
    """The nearest place inside."""
    return rf"\min(\max({place}, 0), {size - 1})"


def _filter_weights(kind: str) -> Weights:
    """The filter `lambda` by the distance from the centre; see `_filtered` and `_antialiased`."""

    def weight(centre: str, u: str, size: int, stretch: str) -> str:
        if kind == "linear":
            return rf"\lambda({clipped(centre, size)} - {u})"
        if kind == "cubic":
            return _four_places(centre, clipped(rf"\lfloor {centre} \rfloor + m", size), u)
        by = "" if stretch == "1" else f" / {stretch}"
        near = [rf"\lambda(({place} - ({centre})){by})" for place in (u, "m")]
        return rf"\frac{{{near[0]}}}{{\sum_{{m=0}}^{{{size - 1}}} {near[1]}}}"

    def weights(op: Any) -> list[str]:
        antialiased = kind.startswith("antialiased")
        stretches = [fraction(max(_step(*axis[:2], op.align_corners, axis[2]), 1.0)) for axis in _axes(op)]
        each = zip(_centres(op, antialiased), INSIDE, _axes(op), stretches, strict=False)
        texts = [weight(centre, u, size, stretch) for centre, u, (size, *_), stretch in each]
        return [*texts[:-1], texts[-1] + rf", \quad \lambda(t) = {LAMBDA[kind]}"]

    return weights


def _four_places(centre: str, place: str, u: str, curve: str = r"\lambda") -> str:
    """The cubic filter's weight of place u, if that is one of the four around a centre."""
    return rf"\sum_{{m=-1}}^{{2}} [{u} = {place}] \, {curve}({centre} - \lfloor {centre} \rfloor - m)"


def _cases(*cases: tuple[str, str]) -> str:
    return r"\begin{cases} " + r" \\ ".join(f"{value} & {where}" for value, where in cases) + r" \end{cases}"


def _cubic_text(a: float) -> str:
    """The cubic filter in LaTeX, see `_cubic`."""
    inner = rf"{fraction(a + 2)} \, |t|^3 - {fraction(a + 3)} \, |t|^2 + 1"
    outer = rf"{fraction(a)} \, |t|^3 + {fraction(-5 * a)} \, |t|^2 - {fraction(-8 * a)} \, |t| + {fraction(-4 * a)}"
    return _cases((inner, r"|t| \le 1"), (outer, "1 < |t| < 2"), ("0", r"\text{otherwise}"))


TRIANGLE = r"\max(0, 1 - |t|)"
LAMBDA = {
    "linear": TRIANGLE,
    "cubic": _cubic_text(-0.75),
    "antialiased linear": TRIANGLE,
    "antialiased cubic": _cubic_text(-0.5),
    "antialiased lanczos": _cases(
        ("1", "t = 0"),
        (r"\frac{3 \sin(\pi \, t) \, \sin(\pi \, t / 3)}{\pi^2 \, t^2}", "0 < |t| < 3"),
        ("0", r"\text{otherwise}"),
    ),
}

nearest, nearest_exact = (
    along_axes(
        *(f"UpsampleNearest{'Exact' if exact else ''}{d}DBackward0" for d in (1, 2, 3)),
        name="upsample_nearest_exact" if exact else "upsample_nearest",
        tables=_nearest_tables(exact),
        weights=_nearest_weights(exact),
        zeros="each output element is a copy of one input element alone, so every row of the Jacobian has a single 1",
        samples=lambda mode="nearest-exact" if exact else "nearest": [  # type: ignore[misc]
            sample(F.interpolate, randn(2, 3, 4), size=7, mode=mode),
            sample(F.interpolate, randn(1, 2, 3, 4), scale_factor=2, mode=mode, note="doubled"),
            sample(F.interpolate, randn(1, 2, 5, 4), size=(2, 9), mode=mode, note="smaller and larger"),
            sample(F.interpolate, randn(1, 2, 5, 4), scale_factor=(1.7, 0.6), mode=mode, note="by a broken factor"),
            sample(F.interpolate, randn(0, 2, 3, 4), scale_factor=2, mode=mode, note="empty batch"),
            sample(F.interpolate, randn(1, 1, 2, 3, 2), scale_factor=1.5, mode=mode),
        ],
        source=f"derivatives.yaml: {'_upsample_nearest_exact' if exact else 'upsample_nearest'}2d",
    )
    for exact in (False, True)
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


def _smooth(*nodes: str, kind: str, **more: Any) -> Rule:
    return along_axes(*nodes, tables=_filter_tables(kind), weights=_filter_weights(kind), **more)


upsample_linear = _smooth(
    "UpsampleLinear1DBackward0",
    "UpsampleBilinear2DBackward0",
    "UpsampleTrilinear3DBackward0",
    name="upsample_linear",
    kind="linear",
    samples=lambda: [
        sample(F.interpolate, randn(2, 3, 4), size=7, mode="linear"),
        sample(F.interpolate, randn(2, 3, 4), size=3, mode="linear", align_corners=True),
        *_resized("bilinear"),
        sample(F.interpolate, randn(1, 2, 2, 3, 2), scale_factor=(2, 0.5, 1.5), mode="trilinear"),
        sample(F.interpolate, randn(1, 2, 2, 3, 2), size=(3, 1, 4), mode="trilinear", align_corners=True),
    ],
    source="derivatives.yaml: upsample_bilinear2d",
)

upsample_bicubic = _smooth(
    "UpsampleBicubic2DBackward0",
    name="upsample_bicubic",
    kind="cubic",
    samples=lambda: _resized("bicubic"),
    source="derivatives.yaml: upsample_bicubic2d. Keys, Cubic convolution interpolation, 1981.",
)

upsample_bilinear_aa, upsample_bicubic_aa, upsample_lanczos_aa = (
    _smooth(
        f"Upsample{name}2DAaBackward0",
        name=f"upsample_{name.lower()}_aa",
        kind=f"antialiased {kind}",
        samples=samples,
        source=f"derivatives.yaml: _upsample_{name.lower()}2d_aa",
    )
    for name, kind, samples in (
        ("Bilinear", "linear", lambda: _resized("bilinear", antialias=True)),
        ("Bicubic", "cubic", lambda: _resized("bicubic", antialias=True)),
        ("Lanczos", "lanczos", lambda: _resized("lanczos", antialias=True, corners=(False,))),
    )
)

# Borders ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _bordered(size: int, before: int, after: int, reflected: bool) -> Taps:
    """Each place is a copy of the one that stands there, mirrored at the outermost place or repeating it."""
    place = torch.arange(-before, size + after)
    index = (size - 1) - ((size - 1) - place.abs()).abs() if reflected else place.clamp(0, size - 1)
    return Taps(size, index.unsqueeze(-1), torch.ones(len(place), 1, dtype=torch.float64))


def _border_tables(reflected: bool) -> Tables:
    def tables(op: Any) -> list[Taps]:
        sides = list(zip(op.padding[::2], op.padding[1::2], strict=True))[::-1]
        sizes = op.self.shape[-len(sides) :]
        return [_bordered(size, *each, reflected) for size, each in zip(sizes, sides, strict=True)]

    return tables


def _border_weights(reflected: bool) -> Weights:
    def weights(op: Any) -> list[str]:
        befores = list(op.padding[::2])[::-1]
        sizes = op.self.shape[-len(befores) :]
        places = [(f"{i} - {before}", size) for i, before, size in zip(PLACES, befores, sizes, strict=False)]
        mirror = "{1} - |{1} - |{0}||"
        texts = [mirror.format(place, size - 1) if reflected else clipped(place, size) for place, size in places]
        return [f"[{u} = {text}]" for u, text in zip(INSIDE, texts, strict=False)]

    return weights


reflection_pad, replication_pad = (
    along_axes(
        *(f"{name}Pad{d}DBackward0" for d in (1, 2, 3)),
        name=f"{name.lower()}_pad",
        tables=_border_tables(mode == "reflect"),
        weights=_border_weights(mode == "reflect"),
        zeros="each output element is a copy of one input element alone, so every row of the Jacobian has a single 1",
        samples=lambda mode=mode: [  # type: ignore[misc]
            sample(F.pad, randn(2, 4), (3, 1), mode=mode),
            sample(F.pad, randn(1, 2, 3, 4), (1, 2, 2, 0), mode=mode),
            sample(F.pad, randn(2, 2, 3, 4), (1, 1, 0, 2, 1, 0), mode=mode),
            sample(F.pad, randn(0, 2, 3, 4), (1, 2, 2, 0), mode=mode, note="empty batch"),
        ],
        source=f"derivatives.yaml: {name.lower()}_pad2d",
    )
    for name, mode in (("Reflection", "reflect"), ("Replication", "replicate"))
)

# Grid sampling ---------------------------------------------------------------------------------------------------

BILINEAR, NEAREST, BICUBIC = 0, 1, 2
ZEROS, BORDER_PADDING, REFLECTION = 0, 1, 2


@dataclass(frozen=True)
class Point:
    """One of the input places along an axis that a sampled point is made of: all have the shape of the points.

    `slope` is the derivative of `weight` by the grid's coordinate. A place outside the picture has weight 0.
    """

    index: Tensor
    weight: Tensor
    slope: Tensor


def _reflected(u: Tensor, slope: Tensor, size: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Mirror coordinates at the outermost places (`align_corners`), or at the outer edges of those."""
    low, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
    if not span:
        return torch.zeros_like(u), torch.zeros_like(slope)
    distance = (u - low).abs()
    rest, odd = distance.fmod(span), (distance / span).floor() % 2 == 1
    sign = torch.where(u < low, -1.0, 1.0).to(u) * torch.where(odd, -1.0, 1.0).to(u)
    return torch.where(odd, span - rest, rest) + low, slope * sign


def _clipped(u: Tensor, slope: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """At and beyond the border a point stays at the border, and its derivative is 0."""
    return u.clamp(0, size - 1), slope.masked_fill((u <= 0) | (u >= size - 1), 0)


def _coordinate(op: Any, axis: int) -> tuple[Tensor, Tensor, int]:
    """Where the points lie along an axis, counted in input places, with the derivative by the grid's number."""
    size = op.input.shape[2 + axis]
    grid = op.grid[..., op.grid.shape[-1] - 1 - axis]  # the grid's numbers are (x, y, z), the axes (z, y, x)
    slope = (size - 1) / 2 if op.align_corners else size / 2
    u = (grid + 1) * slope - (0 if op.align_corners else 0.5)
    return u, torch.full_like(u, slope), size


def _inside(op: Any, u: Tensor, slope: Tensor, size: int) -> tuple[Tensor, Tensor]:
    if op.padding_mode == REFLECTION:
        u, slope = _reflected(u, slope, size, op.align_corners)
    return _clipped(u, slope, size) if op.padding_mode != ZEROS else (u, slope)


def _points(op: Any, axis: int) -> list[Point]:
    """What the points are made of along one axis."""
    u, slope, size = _coordinate(op, axis)
    if op.interpolation_mode != BICUBIC:
        u, slope = _inside(op, u, slope, size)
    if op.interpolation_mode == NEAREST:
        found = [(u.round(), torch.ones_like(u), torch.zeros_like(u))]
    elif op.interpolation_mode == BILINEAR:
        left = u.floor()
        found = [(left, left + 1 - u, -slope), (left + 1, u - left, slope)]
    else:
        found = [(place, _cubic(u - place, -0.75), _cubic_slope(u - place) * slope) for place in _four(u)]
        # cubic interpolation moves each of its places into the picture, not the point
        found = [(_inside(op, place, place, size)[0].round(), weight, by) for place, weight, by in found]
    return [_held(size, *each) for each in found]


def _four(u: Tensor) -> list[Tensor]:
    return [u.floor() + step for step in (-1, 0, 1, 2)]


def _cubic_slope(t: Tensor, a: float = -0.75) -> Tensor:
    d = t.abs()
    inner, outer = (3 * (a + 2) * d - 2 * (a + 3)) * d, ((3 * d - 10) * d + 8) * a
    return t.sgn() * torch.where(d <= 1, inner, torch.where(d < 2, outer, 0))


def _held(size: int, place: Tensor, weight: Tensor, slope: Tensor) -> Point:
    outside = ~((place >= 0) & (place <= size - 1))
    index = place.masked_fill(outside, 0).long()
    return Point(index, weight.masked_fill(outside, 0), slope.masked_fill(outside, 0))


def _corners(op: Any) -> Iterator[tuple[Tensor, tuple[Point, ...]]]:
    """For every combination of places: where it lies in the flattened picture, and its point along each axis."""
    sizes = op.input.shape[2:]
    for corner in itertools.product(*(_points(op, axis) for axis in range(len(sizes)))):
        flat = torch.zeros_like(corner[0].index)
        for size, point in zip(sizes, corner, strict=True):
            flat = flat * size + point.index
        yield flat.flatten(1).unsqueeze(1).expand(-1, op.input.shape[1], -1), corner


def _sampled_input(op: Any, g: Tensor) -> Tensor:
    page = torch.zeros_like(op.input).flatten(2)
    for flat, corner in _corners(op):
        weight = math.prod((point.weight for point in corner[1:]), start=corner[0].weight)
        page = page.scatter_add(2, flat, (g * weight.unsqueeze(1)).flatten(2))
    return page.reshape(op.input.shape)


def _sampled_grid(op: Any, g: Tensor) -> Tensor:
    gradient = torch.zeros_like(op.grid)
    for flat, corner in _corners(op):
        met = (g.flatten(2) * op.input.flatten(2).gather(2, flat)).sum(1).reshape(op.grid.shape[:-1])
        for axis in range(len(corner)):
            slopes = (point.slope if other == axis else point.weight for other, point in enumerate(corner))
            gradient[..., len(corner) - 1 - axis] += math.prod(slopes, start=met)
    return gradient


def _grid_kink(op: Any, radius: float) -> Tensor:
    """Points on a line between two cells (linear), halfway between two places (nearest), or at a clipped border."""
    marks = torch.zeros_like(op.grid, dtype=torch.bool)
    for axis in range(op.input.dim() - 2):
        u, slope, size = _coordinate(op, axis)
        reach = radius * slope
        if op.padding_mode == REFLECTION:
            u, _ = _reflected(u, slope, size, op.align_corners)
        if op.interpolation_mode == BICUBIC:
            near = torch.zeros_like(u, dtype=torch.bool)
        else:
            shift = 0.5 if op.interpolation_mode == NEAREST else 0.0
            near = (u - shift - (u - shift).round()).abs() <= reach
        marks[..., op.grid.shape[-1] - 1 - axis] = near & (u >= -1 - reach) & (u <= size + reach)
    return marks


@dataclass(frozen=True)
class _Sampler:
    """The formulas of grid sampling: the weight of input place u along one axis, A_niju, depends on the point."""

    op: Any

    @property
    def axes(self) -> int:
        return int(self.op.input.dim()) - 2

    @property
    def point(self) -> str:
        return "n" + PLACES[: self.axes]

    def inside(self, place: str, size: int) -> str:
        if self.op.padding_mode == REFLECTION:
            low, span = self.mirrors(size)
            place = rf"{low} + {span} - |{span} - |{place} - ({low})| \bmod {2 * span}|" if span else "0"
        return clipped(place, size) if self.op.padding_mode != ZEROS else place

    def mirrors(self, size: int) -> tuple[str, int]:
        return ("0", size - 1) if self.op.align_corners else (r"-\frac{1}{2}", size)

    def coordinate(self, axis: int) -> str:
        size = self.op.input.shape[2 + axis]
        number = at("grid", f"{self.point}{self.axes - 1 - axis}")
        if self.op.align_corners:
            return rf"\frac{{{size - 1}}}{{2}} \, ({number} + 1)"
        return rf"\frac{{{size}}}{{2}} \, ({number} + 1) - \frac{{1}}{{2}}"

    def weight(self, axis: int) -> str:
        size, u, p = self.op.input.shape[2 + axis], INSIDE[axis], f"{'pqr'[axis]}_{{{self.point}}}"
        if self.op.interpolation_mode == BICUBIC:
            return _four_places(p, self.inside(rf"\lfloor {p} \rfloor + m", size), u)
        moved = self.inside(p, size)
        if self.op.interpolation_mode == NEAREST:
            return rf"[{u} = \operatorname{{round}}({moved})]"
        return rf"\lambda({moved} - {u})"

    def slope(self, axis: int) -> str:
        size, u, p = self.op.input.shape[2 + axis], INSIDE[axis], f"{'pqr'[axis]}_{{{self.point}}}"
        scale = fraction((size - 1) / 2 if self.op.align_corners else size / 2)
        if self.op.interpolation_mode == NEAREST:
            return "0"
        if self.op.interpolation_mode == BICUBIC:
            four = _four_places(p, self.inside(rf"\lfloor {p} \rfloor + m", size), u, r"\lambda'")
            return rf"{scale} \, {four}"
        moved = self.inside(p, size)
        text = rf"{scale} \, \lambda'({moved} - {u})"
        if self.op.padding_mode == REFLECTION and self.mirrors(size)[1]:
            low, span = self.mirrors(size)
            text += rf" \, (-1)^{{\lfloor |{p} - ({low})| / {span} \rfloor}} \, (1 - 2 \, [{p} < {low}])"
        return text if self.op.padding_mode == ZEROS else text + rf" \, [0 < {moved} < {size - 1}]"

    def where(self) -> str:
        axes = range(self.axes)
        parts = [f"{'pqr'[axis]}_{{{self.point}}} = {self.coordinate(axis)}" for axis in axes]
        parts += [f"{MAPS[axis]}_{{{self.point}{INSIDE[axis]}}} = {self.weight(axis)}" for axis in axes]
        mode = self.op.interpolation_mode
        if mode != NEAREST:
            parts.append(r"\lambda(t) = " + LAMBDA["linear" if mode == BILINEAR else "cubic"])
        parts += [f"{MAPS[axis]}'_{{{self.point}{INSIDE[axis]}}} = {self.slope(axis)}" for axis in axes]
        if mode != NEAREST:
            parts.append(r"\lambda'(t) = " + SLOPES[mode])
        return r", \quad ".join(parts)

    def product(self, moved: int | None = None) -> str:
        return r" \, ".join(
            f"{MAPS[axis]}{chr(39) * (axis == moved)}_{{{self.point}{INSIDE[axis]}}}" for axis in range(self.axes)
        )

    def sampled(self, moved: int | None = None) -> str:
        inside = INSIDE[: self.axes]
        return rf"\sum_{{{','.join(inside)}}} {self.product(moved)} \, {at('input', 'nc' + inside)}"

    def out(self, name: str) -> str:
        return at(name, "nc" + PLACES[: self.axes])

    def equation(self) -> str:
        return f"{self.out('out')} = {self.sampled()}"

    def by_input(self) -> str:
        return derivative(self.out("out"), at("input", "nc" + INSIDE[: self.axes]), self.product())

    def back(self) -> str:
        sums = rf"\sum_{{{','.join(PLACES[: self.axes])}}}"
        return rf"{at('grad', 'nc' + INSIDE[: self.axes])} = {sums} {self.product()} \, {self.out('g')}"

    def by_grid(self) -> str:
        axes = range(self.axes)
        parts = [
            derivative(self.out("out"), at("grid", f"{self.point}{self.axes - 1 - axis}"), self.sampled(axis))
            for axis in axes
        ]
        return r", \quad ".join(parts)

    def back_to_grid(self) -> str:
        parts = [
            rf"{at('grad', f'{self.point}{self.axes - 1 - axis}')} = \sum_{{c}} {self.out('g')} \, {self.sampled(axis)}"
            for axis in range(self.axes)
        ]
        return r", \quad ".join(parts)


SLOPES = {  # at a whole number, that of the cell to the right
    BILINEAR: r"[-1 \le t < 0] - [0 \le t < 1]",
    BICUBIC: r"\operatorname{sgn}(t) \, "
    + _cases(
        (r"\frac{15}{4} \, |t|^2 - \frac{9}{2} \, |t|", r"|t| \le 1"),
        (r"-\frac{9}{4} \, |t|^2 + \frac{15}{2} \, |t| - 6", "1 < |t| < 2"),
        ("0", r"\text{otherwise}"),
    ),
}


def _grid_samples() -> list[Sample]:
    grid2, grid3 = randn(2, 3, 2, 2) * 0.8, randn(1, 2, 3, 2, 3) * 0.8
    made = [
        sample(F.grid_sample, randn(2, 3, 4, 5), grid2.detach().requires_grad_(), mode, padding, align)
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
        for align in (False, True)
    ]
    made += [
        sample(F.grid_sample, randn(1, 2, 3, 4, 2), grid3.detach().requires_grad_(), mode, padding, align)
        for mode, padding, align in (
            ("bilinear", "zeros", False),
            ("bilinear", "reflection", True),
            ("nearest", "border", True),
        )
    ]
    return [
        *made,
        sample(F.grid_sample, randn(0, 2, 3, 4), randn(0, 2, 2, 2), align_corners=False, note="empty batch"),
        sample(F.grid_sample, randn(1, 2, 1, 1), randn(1, 2, 2, 2), align_corners=True, note="size 1"),
        sample(F.grid_sample, randn(1, 2, 3, 4), randn(1, 2, 2, 2) * 9, padding_mode="reflection", align_corners=False),
    ]


grid_sampler = rule(
    "GridSampler2DBackward0",
    "GridSampler3DBackward0",
    name="grid_sampler",
    equation=lambda op: _Sampler(op).equation(),
    where=lambda op: _Sampler(op).where(),
    wrt={
        "input": Wrt(
            _sampled_input,
            lambda op: _Sampler(op).by_input(),
            lambda op: _Sampler(op).back(),
            "a sampled point is made of the input elements around it alone",
        ),
        "grid": Wrt(
            _sampled_grid,
            lambda op: _Sampler(op).by_grid(),
            lambda op: _Sampler(op).back_to_grid(),
            "a point of the grid moves its own sample alone, in all channels",
        ),
    },
    kink=Kink(
        _grid_kink,
        "the derivative of the cell to the right of the point; 0 at a border that clips, and for nearest",
        argument="grid",
    ),
    samples=_grid_samples,
    source="derivatives.yaml: grid_sampler_2d. Jaderberg et al., Spatial Transformer Networks, 2015, arXiv:1506.02025.",
)


def _base_grid(op: Any) -> Tensor:
    """The places of the output in the square from -1 to 1, with a 1 behind: (..., x, y, 1)."""
    lines = []
    for size in op.size[2:]:
        line = torch.linspace(-1, 1, size, dtype=op.theta.dtype, device=op.theta.device) if size > 1 else torch.zeros(1)
        lines.append(line.to(op.theta) * (1 if op.align_corners else (size - 1) / size))
    axes = torch.meshgrid(*lines, indexing="ij")
    return torch.stack([*reversed(axes), torch.ones_like(axes[0])], -1)


def _base_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    (n, *place, row), (m, own, column) = out_index, in_index
    value = float(_base_grid(op)[(*place, column)])
    return Factor(latex=fraction(value)) if n == m and row == own else None


def _coordinates(op: Any) -> tuple[str, list[str], str]:
    """The letters of a place; its coordinates p, q and 1, by the columns of theta; and their definitions."""
    sizes = list(op.size[2:])
    letters = PLACES[: len(sizes)]
    axes = list(zip("pqr", reversed(letters), reversed(sizes), strict=False))
    line = r"\frac{{2 \, {0}}}{{{2}}} - 1" if op.align_corners else r"\frac{{2 \, {0} + 1}}{{{1}}} - 1"
    where = (f"{name}_{letter} = {line.format(letter, size, max(size - 1, 1))}" for name, letter, size in axes)
    return letters, [*(f"{name}_{letter}" for name, letter, _ in axes), "1"], r", \quad ".join(where)


def _affine(form: str) -> Callable[[Any], str]:
    """A formula with a term for each column of theta."""

    def formula(op: Any) -> str:
        letters, base, _ = _coordinates(op)
        place, sums = f"n{letters}l", rf"\sum_{{{','.join(letters)}}}"
        columns = [(at("grad" if "sum" in form else "theta", f"nl{k}"), b) for k, b in enumerate(base)]
        if form == "equation":
            return f"{at('out', place)} = " + " + ".join(rf"{column} \, {b}" for column, b in columns)
        if form == "local":
            return r", \quad ".join(derivative(at("out", place), column, b) for column, b in columns)
        return r", \quad ".join(rf"{column} = {sums} {at('g', place)} \, {b}" for column, b in columns)

    return formula


affine_grid = rule(
    "AffineGridGeneratorBackward0",
    equation=_affine("equation"),
    where=lambda op: _coordinates(op)[2],
    wrt={
        "theta": Wrt(
            lambda op, g: torch.einsum("npj,pk->njk", g.flatten(1, -2), _base_grid(op).flatten(0, -2)),
            _affine("local"),
            _affine("sums"),
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
    source="derivatives.yaml: affine_grid_generator",
)
