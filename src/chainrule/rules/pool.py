"""Rules of pooling: the largest element or the mean of each window of a picture.

A window is a product of ranges, one an axis; a table an axis says which input places each output place looks at. The
mean is linear and goes axis by axis. The largest passes its whole gradient back to the place whose index was returned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Factor, Index, Kink, Sample, at, lettered, rule, sample
from chainrule.rules.convolve import each_axis
from chainrule.rules.element import Element, Elements, largest
from chainrule.rules.index_notation import affine, position, row_major, unravel
from chainrule.rules.linear import Samples, WeightedSum, randn, weighted
from chainrule.rules.pattern import copied, real
from chainrule.rules.resample import INSIDE, PLACES, Taps, along_axes, fraction, way_back

# Windows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """Where the window of output place `@i` begins and ends along an axis, in LaTeX, and what else limits place `@u`.

    `defined` says what the names in there stand for.
    """

    first: str
    end: str
    rest: str = ""
    defined: str = ""

    def within(self, i: str, u: str) -> str:
        """That place u is in the window of place i."""
        return lettered(rf"{self.first} \le @u < {self.end}{self.rest}", {"i": i, "u": u})


@dataclass(frozen=True)
class Window:
    """Along one axis: `index[p, k]` is the k-th input place in the window of output place p, if `inside[p, k]`.

    `padded` marks the padding as well, but not what `ceil_mode` lets a window reach beyond it; `count` says in LaTeX
    how many these are.
    """

    size: int
    index: Tensor
    inside: Tensor
    padded: Tensor
    bounds: Bounds
    count: str


@lru_cache(maxsize=256)
def _sliding(size: int, places: int, kernel: int, stride: int, padding: int, dilation: int) -> Window:
    """Windows of one size, at equal steps."""
    index = (torch.arange(places) * stride - padding).unsqueeze(-1) + torch.arange(kernel) * dilation
    inside, padded = (index >= 0) & (index < size), index < size + padding
    start = "@i" if stride == 1 else rf"{stride} \, @i"
    first, end = affine(start, 1, -padding), affine(start, 1, (kernel - 1) * dilation + 1 - padding)
    rest = "" if dilation == 1 else rf", (@u - ({first})) \bmod {dilation} = 0"
    count = str(kernel) if padded.all() else rf"\min({kernel}, {size + 2 * padding} - {start})"
    return Window(size, index.clamp(0, max(size - 1, 0)), inside, padded, Bounds(first, end, rest), count)


@lru_cache(maxsize=256)
def _adaptive(size: int, places: int) -> Window:
    """Windows from floor(p S / P) up to, but without, ceil((p + 1) S / P)."""
    p = torch.arange(places)
    first, last = p * size // max(places, 1), -(-(p + 1) * size // max(places, 1))
    index = first.unsqueeze(-1) + torch.arange(int((last - first).max()) if places else 0)
    inside = index < last.unsqueeze(-1)
    step = "" if size == places else rf"{fraction(size / max(places, 1))} \, "
    bounds = Bounds(rf"\lfloor {step}@i \rfloor", rf"\lceil {step}(@i + 1) \rceil")
    count = f"{bounds.end} - {bounds.first}"
    return Window(size, index.clamp(max=max(size - 1, 0)), inside, inside, bounds, count)


Windows = Callable[[Any], list[Window]]


def _sizes(op: Any, axes: int) -> Iterable[tuple[int, int]]:
    """(input size, output size) of each axis; in the way back, `grad_output` has the pool's output size."""
    return zip(op.self.shape[-axes:], op.arguments.get("grad_output", op.out).shape[-axes:], strict=True)


def _kernel_windows(axes: int, op: Any) -> list[Window]:
    kernel = each_axis(op.kernel_size, (), axes)
    given = zip(("stride", "padding", "dilation"), (kernel, (0,), (1,)), strict=True)
    settings = zip(kernel, *(each_axis(op.arguments.get(name), default, axes) for name, default in given), strict=True)
    return [_sliding(*sizes, *each) for sizes, each in zip(_sizes(op, axes), settings, strict=True)]


def _adaptive_windows(axes: int, op: Any) -> list[Window]:
    return [_adaptive(*sizes) for sizes in _sizes(op, axes)]


# Means -----------------------------------------------------------------------------------------------------------


def _mean(op: Any, window: Window, divisor: int | None) -> Taps:
    """The weights of one axis: 1 / count for each place in the window, unless another divisor is given."""
    first, end = window.bounds.first, window.bounds.end
    if divisor is not None:
        weight, count = window.inside.double() / divisor, str(divisor)
    elif op.arguments.get("count_include_pad") or torch.equal(window.inside, window.padded):
        weight, count = window.inside / window.padded.sum(-1, keepdim=True).clamp(min=1).double(), window.count
    else:
        weight = window.inside / window.inside.sum(-1, keepdim=True).clamp(min=1).double()
        count = rf"\sum_{{m=0}}^{{{window.size - 1}}} [{first} \le m < {end}]"
    return Taps(window.size, window.index, weight, rf"\frac{{1}}{{{count}}} \, [{first} \le @u < {end}]")


def _mean_tables(windows: Windows, op: Any) -> list[Taps]:
    *rest, last = windows(op)
    divisor = op.arguments.get("divisor_override")
    return [*(_mean(op, each, divisor and 1) for each in rest), _mean(op, last, divisor)]


UNDER = "an output element is made of the input elements in its window alone, in its own channel"


PICTURE = (1, 2, 5, 4, 4)  # the shape of a sample; without the last one, of one with two axes


def _mean_samples(axes: int) -> list[Sample]:
    pool, shape = getattr(F, f"avg_pool{axes}d"), PICTURE[: axes + 2]
    line = [sample(F.avg_pool1d, randn(2, 3, 5), 2), sample(F.lp_pool2d, randn(1, 2, 4, 4), 2, 2)]
    return [
        sample(pool, randn(*shape), 2),
        sample(pool, randn(*shape), 2, stride=3, note="stride > kernel: some inputs are in no window"),
        sample(pool, randn(*shape), 3, stride=2, padding=1, ceil_mode=True, note="windows beyond the padding"),
        sample(pool, randn(*shape), 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        sample(pool, randn(*shape), 2, 1, 1, divisor_override=3, note="a divisor of its own"),
        sample(pool, randn(0, *shape[1:]), 2, note="empty batch"),
        sample(pool, randn(*shape[1:]), 2, note="no batch axis"),
        *(line if axes == 2 else []),
    ]


def _adaptive_samples(kind: str, axes: int) -> list[Sample]:
    line, plane, space = (getattr(F, f"adaptive_{kind}_pool{each}d") for each in (1, 2, 3))
    if axes == 3:
        return [sample(space, randn(1, 2, 3, 5, 4), (2, 3, 2)), sample(space, randn(2, 3, 5, 4), 2)]
    return [
        sample(line, randn(2, 3, 7), 3, note="windows that overlap"),
        sample(plane, randn(1, 2, 5, 4), (3, 2)),
        sample(plane, randn(1, 2, 3, 4), (5, 1), note="more places than there were"),
        sample(plane, randn(0, 2, 5, 4), 2, note="empty batch"),
        sample(plane, randn(2, 5, 4), (None, 3), note="no batch axis"),
    ]


for _axes in (2, 3):
    along_axes(
        f"AvgPool{_axes}DBackward0",
        name=f"avg_pool{_axes}d",
        tables=partial(_mean_tables, partial(_kernel_windows, _axes)),
        zeros=UNDER,
        samples=lambda axes=_axes: _mean_samples(axes),  # type: ignore[misc]
    )
    along_axes(
        f"AdaptiveAvgPool{_axes}DBackward0",
        name=f"adaptive_avg_pool{_axes}d",
        tables=partial(_mean_tables, partial(_adaptive_windows, _axes)),
        zeros=UNDER,
        samples=lambda axes=_axes: _adaptive_samples("avg", axes),  # type: ignore[misc]
        source=f"derivatives.yaml: _adaptive_avg_pool{_axes}d",
    )

# Elements picked from a picture by their index -------------------------------------------------------------------


class _Indexed:
    """Elements of a picture that are named by their row-major positions, in numbers and in formulas."""

    def __init__(self, indices: Tensor, picture: Tensor, axes: int, index: str = "{$indices}") -> None:
        self.indices, self.picture, self.axes = indices, picture, axes
        self.steps, self.lead = row_major(picture.shape[-axes:]), "nc"[2 + axes - picture.dim() :]
        places, inside = self.lead + PLACES[:axes], self.lead + INSIDE[:axes]
        self.index = f"{index}_{{{','.join(places)}}}"
        self.picked = WeightedSum(places, inside, f"[{position(INSIDE[:axes], self.steps)} = {self.index}]")
        self.laid = self.picked.turned()

    def home(self, t: Tensor) -> Tensor:
        """Add every element of `t` to the place that its index names."""
        page = self.picture.new_zeros(self.picture.shape).flatten(-self.axes)
        added = page.scatter_add(-1, self.indices.flatten(-self.axes), t.flatten(-self.axes))
        return added.reshape(self.picture.shape)

    def pick(self, t: Tensor) -> Tensor:
        """The elements of a picture that the indices name."""
        return t.flatten(-self.axes).gather(-1, self.indices.flatten(-self.axes)).reshape(self.indices.shape)

    def factor(self, picked: Index, place: Index) -> Factor | None:
        """1 where an element of the picture is the one that an index names."""
        flat = sum(p * step for p, step in zip(place[-self.axes :], self.steps, strict=True))
        own = picked[: -self.axes] == place[: -self.axes] and flat == int(self.indices[picked])
        return Factor(latex="1") if own else None


# Largest elements ------------------------------------------------------------------------------------------------

FIRST = "of tied elements, the first one of the window (in row-major order) gets the whole gradient"


def _tied(windows: Windows, axes: int, op: Any, radius: float) -> Tensor:
    """Elements that share their window's largest value with another, or come near it."""
    inside, positions = torch.ones(()), torch.zeros((), dtype=torch.long)
    for axis, window in enumerate(windows(op)):  # output places at the even axes, window places at the odd ones
        shape = [1] * (2 * axes)
        shape[2 * axis : 2 * axis + 2] = window.index.shape
        inside = inside * window.inside.reshape(shape)
        positions = positions * window.size + window.index.reshape(shape)
    inside, positions = inside.bool().to(op.self.device), positions.to(op.self.device)
    best = op.out.reshape(*op.out.shape[:-axes], *(n for size in op.out.shape[-axes:] for n in (size, 1)))
    near = inside & ((op.self.flatten(-axes)[..., positions] - best).abs() <= 2 * radius)
    tied = near & (near.sum(tuple(range(1 - 2 * axes, 0, 2)), keepdim=True) > 1)
    marks = op.self.new_zeros(op.self.shape).flatten(-axes)
    marks.index_add_(-1, positions.flatten(), tied.flatten(-2 * axes).to(marks.dtype))
    tied_places: Tensor = (marks > 0).reshape(op.self.shape)
    return tied_places


def _max_pool(name: str, axes: int, samples: Samples, windows: Windows | None, **more: Any) -> None:
    """Register a pool that returns the largest element of each window with its index, and its way back.

    Windows that are not drawn at random are tables, in which tied elements can be found.
    """

    def bounds(op: Any) -> list[Bounds]:
        return [window.bounds for window in windows(op)] if windows else _drawn_bounds(op, axes)

    def within(op: Any, inside: str) -> str:
        each = zip(bounds(op), PLACES, inside, strict=False)
        return f"{','.join(inside)}: \\, {', '.join(bound.within(i, u) for bound, i, u in each)}"

    def found(op: Any) -> _Indexed:
        return _Indexed(op.outs[1], op.self, axes, "I")

    def given(op: Any) -> _Indexed:
        return _Indexed(op.indices, op.self, axes)

    def equation(op: Any) -> str:
        sides = found(op).picked
        return rf"{at('out', sides.out)} = \max_{{{within(op, INSIDE[:axes])}}} {at('self', sides.into)}"

    def element(op: Elements, slot: int, index: Index) -> Element | None:
        if slot:
            return None
        lead = index[: len(index) - axes]
        if windows is None:
            place = unravel(int(op.whole.outs[1][index]), op.whole.self.shape[-axes:])
            return op.at("self", (*lead, *place))
        own = zip(windows(op.whole), index[-axes:], strict=True)
        ranges = [window.index[p][window.inside[p]].tolist() for window, p in own]
        return largest([op.at("self", (*lead, *place)) for place in itertools.product(*ranges)])

    def index(op: Any) -> str:
        others, each = "rst"[:axes], found(op)
        same = rf"{within(op, others)}, \, {at('self', each.lead + others)} = {at('out', each.picked.out)}"
        defined = "".join(bound.defined for bound in bounds(op))
        return rf"{each.index} = \min_{{{same}}} ({position(others, each.steps)}){defined}"

    by_self = weighted(
        lambda op: found(op).picked,
        lambda op, g: found(op).home(g),
        "an output element is a copy of the largest input element in its window",
        lambda op, out_index, in_index: found(op).factor(out_index, in_index),
        lambda op: copied(op.out.numel(), op.self.numel()) if real(op.out, op.self) else None,
    )
    more["element"] = element
    node, kink = _node(name), windows and Kink(partial(_tied, windows, axes), FIRST)
    rule(node, name=name, equation=equation, where=index, wrt={"self": by_self}, samples=samples, kink=kink, **more)
    way_back(
        node,
        name=name,
        sums=lambda op: given(op).picked,
        forward=lambda op, g: given(op).pick(g),
        zeros="every upstream element goes to one place",
        samples=samples,
        source=f"derivatives.yaml: {name}",
        constants={"indices": "not differentiable"},
    )


def _node(name: str) -> str:
    """The autograd node of an operation: that of `max_pool2d` is `MaxPool2DBackward0`."""
    return f"{''.join(part.title() for part in name.split('_'))}Backward0"


def _max_samples(axes: int) -> list[Sample]:
    pool, shape = getattr(F, f"max_pool{axes}d"), PICTURE[: axes + 2]
    ties = randn(*shape).detach().sign().requires_grad_()
    line = [sample(F.max_pool1d, randn(2, 3, 5), 2), sample(F.max_pool1d, randn(3, 5), 2, 1, note="no batch axis")]
    return [
        sample(pool, randn(*shape), 2),
        sample(pool, randn(*shape), 2, stride=3, note="stride > kernel: some inputs are in no window"),
        sample(pool, randn(*shape), 3, stride=1, padding=1, note="windows that overlap, padding"),
        sample(pool, randn(*shape), 2, dilation=2, stride=1, note="dilation"),
        sample(pool, randn(*shape), 3, stride=2, ceil_mode=True, note="windows that reach beyond the picture"),
        sample(pool, ties, 2, stride=1, note="ties"),
        sample(pool, randn(*shape[1:]), 2, note="no batch axis"),
        sample(pool, randn(0, *shape[1:]), 2, note="empty batch"),
        *(line if axes == 2 else []),
    ]


def _fractional_samples(axes: int) -> list[Sample]:
    pool, shape = getattr(F, f"fractional_max_pool{axes}d"), (1, 2, 6, 5, 5)[: axes + 2]

    def made(x: Tensor, size: int) -> Tensor:
        draw = torch.linspace(0.2, 0.7, x.shape[0] * x.shape[1] * axes, dtype=x.dtype).reshape(*x.shape[:2], axes)
        result: Tensor = pool(x, 2, output_size=size, _random_samples=draw)
        return result

    return [sample(made, randn(*shape), 3), sample(made, randn(*shape), 2)]


def _drawn_bounds(op: Any, axes: int) -> list[Bounds]:
    """Windows that begin at places drawn at random, for each sample and channel."""
    found, kernels, lead = [], each_axis(op.kernel_size, (), axes), "nc"[2 + axes - op.self.dim() :]
    for axis, (kernel, (size, places)) in enumerate(zip(kernels, _sizes(op, axes), strict=True)):
        i, room = PLACES[axis], size - kernel
        start = f"{'fgh'[axis]}_{{{lead}{i}}}"
        drawn = at("random_samples", [*"nc", str(axes - 1 - axis if axes == 2 else axis)])
        step = fraction(room / max(places - 1, 1))
        steps = rf"\lfloor ({i} + {drawn}) \, {step} \rfloor - \lfloor {drawn} \, {step} \rfloor"
        cases = rf"\begin{{cases}} {room} & {i} = {places - 1} \\ {steps} & \text{{otherwise}} \end{{cases}}"
        found.append(Bounds(start, f"{start} + {kernel}", defined=rf", \quad {start} = {cases}"))
    return found


def _maxima(axes: int) -> None:
    """The pools of two or three axes that return the largest elements."""
    sliding, adaptive = partial(_kernel_windows, axes), partial(_adaptive_windows, axes)
    _max_pool(f"max_pool{axes}d_with_indices", axes, lambda: _max_samples(axes), sliding)
    _max_pool(f"adaptive_max_pool{axes}d", axes, lambda: _adaptive_samples("max", axes), adaptive)
    drawn = {"random_samples": "not differentiable"}
    _max_pool(f"fractional_max_pool{axes}d", axes, lambda: _fractional_samples(axes), None, constants=drawn)


for _axes in (2, 3):
    _maxima(_axes)

# Back to the larger picture --------------------------------------------------------------------------------------


def _unpool_samples(axes: int) -> list[Sample]:
    if axes == 2:
        return [
            sample(F.max_unpool2d, randn(1, 2, 2, 2), torch.tensor([[[[0, 3], [9, 10]], [[5, 2], [8, 15]]]]), 2),
            sample(F.max_unpool1d, randn(2, 2), torch.tensor([[0, 3], [1, 2]]), 2, note="no batch axis"),
        ]
    return [sample(F.max_unpool3d, randn(1, 1, 1, 1, 2), torch.tensor([[[[[3, 14]]]]]), 2)]


def _unpools(axes: int) -> None:
    """The way from the largest elements to a picture with zeros between them."""

    def given(op: Any) -> _Indexed:
        return _Indexed(op.indices, op.out, axes)

    rule(
        _node(f"max_unpool{axes}d"),
        name=f"max_unpool{axes}d",
        equation=lambda op: given(op).laid.forward(),
        wrt={
            "self": weighted(
                lambda op: given(op).laid,
                lambda op, g: given(op).pick(g),
                "each input element is written to one place, the one that its index names",
                lambda op, out_index, in_index: given(op).factor(in_index, out_index),
            )
        },
        constants={"indices": "not differentiable"},
        kink=Kink(
            lambda op, radius: given(op).pick(given(op).home(torch.ones_like(op.self))) > 1,
            "each of several elements written to one place gets that place's gradient",
        ),
        structure="linear",
        samples=lambda: _unpool_samples(axes),
    )


for _axes in (2, 3):
    _unpools(_axes)
