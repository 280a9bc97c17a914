"""Rules of pooling: the largest element or the mean of each window of a picture.

A window is a product of ranges, one an axis; a table an axis says which input places each output place looks at. The
mean is linear and goes axis by axis. The largest passes its whole gradient back to the place whose index was returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Factor, Kink, Sample, Wrt, at, derivative, rule, sample, unread
from chainrule.rules.linear import randn
from chainrule.rules.pattern import copied, real
from chainrule.rules.resample import INSIDE, PLACES, Taps, along_axes, fraction, twice

Index = tuple[int, ...]

# Windows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Along one axis: `index[p, k]` is the k-th input place in the window of output place p, if `inside[p, k]`.

    `padded` marks the padding as well, but not what `ceil_mode` lets a window reach beyond it.
    """

    size: int
    index: Tensor
    inside: Tensor
    padded: Tensor


@lru_cache(maxsize=256)
def _sliding(size: int, places: int, kernel: int, stride: int, padding: int, dilation: int) -> Window:
    """Windows of one size, at equal steps."""
    index = (torch.arange(places) * stride - padding).unsqueeze(-1) + torch.arange(kernel) * dilation
    return Window(size, index.clamp(0, max(size - 1, 0)), (index >= 0) & (index < size), index < size + padding)


@lru_cache(maxsize=256)
def _adaptive(size: int, places: int) -> Window:
    """Windows from floor(p S / P) up to, but without, ceil((p + 1) S / P)."""
    p = torch.arange(places)
    first, last = p * size // max(places, 1), -(-(p + 1) * size // max(places, 1))
    index = first.unsqueeze(-1) + torch.arange(int((last - first).max()) if places else 0)
    inside = index < last.unsqueeze(-1)
    return Window(size, index.clamp(max=max(size - 1, 0)), inside, inside)


Windows = Callable[[Any], list[Window]]


def _sizes(op: Any, axes: int) -> Iterable[tuple[int, int]]:
    """(input size, output size) of each axis; in the way back, `grad_output` has the pool's output size."""
    return zip(op.self.shape[-axes:], op.arguments.get("grad_output", op.out).shape[-axes:], strict=True)


def _setting(op: Any, name: str, axes: int, default: Index) -> Index:
    """A setting for every axis; an empty list stands for the default, one number for all axes."""
    value = op.arguments.get(name)
    values = default if value is None or value == [] else (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def _settings(op: Any, axes: int) -> list[tuple[int, int, int, int]]:
    """(kernel, stride, padding, dilation) of each axis."""
    kernel = _setting(op, "kernel_size", axes, (1,))
    stride, padding = _setting(op, "stride", axes, kernel), _setting(op, "padding", axes, (0,))
    return list(zip(kernel, stride, padding, _setting(op, "dilation", axes, (1,)), strict=True))


def _kernel_windows(axes: int) -> Windows:
    return lambda op: [
        _sliding(*sizes, *settings) for sizes, settings in zip(_sizes(op, axes), _settings(op, axes), strict=True)
    ]


def _adaptive_windows(axes: int) -> Windows:
    return lambda op: [_adaptive(*sizes) for sizes in _sizes(op, axes)]


Bounds = Callable[[Any], list[tuple[str, str, str]]]


def _kernel_bounds(axes: int) -> Bounds:
    """Where each window begins and ends along each axis, in LaTeX (`2 i - 1`, `2 i + 1`), and what else limits it."""

    def bounds(op: Any) -> list[tuple[str, str, str]]:
        found = []
        for i, u, (kernel, stride, padding, dilation) in zip(PLACES, INSIDE, _settings(op, axes), strict=False):
            start = i if stride == 1 else rf"{stride} \, {i}"
            first, end = _moved(start, -padding), _moved(start, (kernel - 1) * dilation + 1 - padding)
            found.append((first, end, "" if dilation == 1 else rf", ({u} - ({first})) \bmod {dilation} = 0"))
        return found

    return bounds


def _moved(start: str, by: int) -> str:
    return start if not by else f"{start} {'-' if by < 0 else '+'} {abs(by)}"


def _adaptive_bounds(axes: int) -> Bounds:
    def bounds(op: Any) -> list[tuple[str, str, str]]:
        steps = ["" if size == places else rf"{fraction(size / places)} \, " for size, places in _sizes(op, axes)]
        return [
            (rf"\lfloor {step}{i} \rfloor", rf"\lceil {step}({i} + 1) \rceil", "")
            for step, i in zip(steps, PLACES, strict=False)
        ]

    return bounds


# Means -----------------------------------------------------------------------------------------------------------


def _mean(op: Any, window: Window) -> Taps:
    """The weights of one axis: 1 / count for each place in the window (1, where another divisor is given)."""
    mask = window.padded if op.arguments.get("count_include_pad") else window.inside
    count = mask.sum(-1, keepdim=True).clamp(min=1).double()
    given = op.arguments.get("divisor_override") is not None
    return Taps(window.size, window.index, window.inside.double() if given else window.inside / count)


def _mean_tables(windows: Windows) -> Callable[[Any], list[Taps]]:
    def tables(op: Any) -> list[Taps]:
        *rest, last = [_mean(op, window) for window in windows(op)]
        divisor = op.arguments.get("divisor_override") or 1
        return [*rest, Taps(last.size, last.index, last.weight / divisor)]

    return tables


def _mean_weights(bounds: Bounds, axes: int) -> Callable[[Any], list[str]]:
    """In LaTeX: one over the number of places in the window, for each of them."""

    def weights(op: Any) -> list[str]:
        found: list[str] = []
        for u, (first, end, _), (size, _) in zip(INSIDE, bounds(op), _sizes(op, axes), strict=False):
            inside, count = rf"[{first} \le {u} < {end}]", rf"{end} - {first}"
            if "kernel_size" in op.arguments:
                kernel, stride, padding, _ = _settings(op, axes)[INSIDE.index(u)]
                count = str(kernel)
                if op.divisor_override is not None:
                    count = str(op.divisor_override) if len(found) == axes - 1 else "1"
                elif padding and not op.count_include_pad:
                    count = rf"\sum_{{m=0}}^{{{size - 1}}} [{first} \le m < {end}]"
                elif op.ceil_mode:
                    count = rf"\min({kernel}, {size + 2 * padding} - {stride} \, {PLACES[len(found)]})"
            found.append(rf"\frac{{1}}{{{count}}} \, {inside}")
        return found

    return weights


UNDER = "an output element is made of the input elements in its window alone, in its own channel"


def _mean_samples(axes: int) -> list[Sample]:
    pool, shape = (F.avg_pool2d, (1, 2, 5, 4)) if axes == 2 else (F.avg_pool3d, (1, 2, 5, 4, 4))
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


def _means(axes: int) -> None:
    """The mean pools of two or three axes."""
    along_axes(
        f"AvgPool{axes}DBackward0",
        name=f"avg_pool{axes}d",
        tables=_mean_tables(_kernel_windows(axes)),
        weights=_mean_weights(_kernel_bounds(axes), axes),
        zeros=UNDER,
        samples=lambda: _mean_samples(axes),
    )
    along_axes(
        f"AdaptiveAvgPool{axes}DBackward0",
        name=f"adaptive_avg_pool{axes}d",
        tables=_mean_tables(_adaptive_windows(axes)),
        weights=_mean_weights(_adaptive_bounds(axes), axes),
        zeros=UNDER,
        samples=lambda: _adaptive_samples("avg", axes),
        source=f"derivatives.yaml: _adaptive_avg_pool{axes}d",
    )


for _axes in (2, 3):
    _means(_axes)

# Largest elements ------------------------------------------------------------------------------------------------


def _flat(place: Index, sizes: Iterable[int]) -> int:
    """The row-major position of a place, as the pools' indices count."""
    position = 0
    for p, size in zip(place, sizes, strict=True):
        position = position * size + p
    return position


def _home(t: Tensor, indices: Tensor, axes: int, like: Tensor) -> Tensor:
    """Add every element of `t` to the place of a picture that its index names."""
    page = like.new_zeros(like.shape).flatten(-axes)
    return page.scatter_add(-1, indices.flatten(-axes), t.flatten(-axes)).reshape(like.shape)


def _pick(t: Tensor, indices: Tensor, axes: int) -> Tensor:
    """The elements of a picture that the indices name."""
    return t.flatten(-axes).gather(-1, indices.flatten(-axes)).reshape(indices.shape)


def _winner(axes: int) -> Callable[[Any, Index, Index], Factor | None]:
    """1 for the element whose index was returned."""

    def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
        own = _flat(in_index[-axes:], op.self.shape[-axes:]) == int(op.outs[1][out_index])
        return Factor(latex="1") if own and in_index[:-axes] == out_index[:-axes] else None

    return factor


def _tied(windows: Windows, axes: int) -> Callable[[Any, float], Tensor]:
    """Elements that share their window's largest value with another, or come near it."""

    def where(op: Any, radius: float) -> Tensor:
        along = windows(op)
        inside, positions = torch.ones(()), torch.zeros((), dtype=torch.long)
        for axis, window in enumerate(along):  # output places stand at the even axes, window places at the odd ones
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

    return where


@dataclass(frozen=True)
class _Picked:
    """The formulas of elements picked from a picture: place (u, v) of the picture, place (i, j) of what was picked.

    `index` is the LaTeX of the flat position of the element picked, with its definition in `where`.
    """

    axes: int
    lead: str
    sizes: tuple[int, ...]  # of the picture
    index: str
    where: str = ""

    def small(self, name: str) -> str:
        return at(name, self.lead + PLACES[: self.axes])

    def large(self, name: str) -> str:
        return at(name, self.lead + INSIDE[: self.axes])

    def met(self) -> str:
        return rf"[{_position(self.sizes)} = {self.index}]"

    def local(self, of: str, by: str) -> str:
        return derivative(of, by, self.met())

    def home(self, target: str, source: str) -> str:
        sums = rf"\sum_{{{','.join(PLACES[: self.axes])}}}"
        return rf"{self.large(target)} = {sums} {self.met()} \, {self.small(source)}"

    def pick(self, target: str, source: str) -> str:
        sums = rf"\sum_{{{','.join(INSIDE[: self.axes])}}}"
        return rf"{self.small(target)} = {sums} {self.met()} \, {self.large(source)}"


def _position(sizes: tuple[int, ...], inside: str = INSIDE) -> str:
    """The row-major position of place (u, v), in LaTeX."""
    factors = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    return " + ".join(u if f == 1 else rf"{f} \, {u}" for f, u in zip(factors, inside, strict=False))


def _lead(t: Tensor, axes: int) -> str:
    return "nc"[2 + axes - t.dim() :]


def _by_indices(op: Any, axes: int, picture: Tensor) -> _Picked:
    """Of an operation that is given the indices."""
    lead = _lead(op.indices, axes)
    return _Picked(axes, lead, tuple(picture.shape[-axes:]), at("indices", lead + PLACES[:axes]))


@dataclass(frozen=True)
class _Largest:
    """The formulas of a pool that picks the largest element of each window; of tied ones, the first."""

    op: Any
    axes: int
    bounds: Bounds
    defined: str = ""

    def window(self, inside: str = INSIDE) -> str:
        bounds = zip(INSIDE, inside, self.bounds(self.op), strict=False)
        return ", ".join(rf"{first} \le {u} < {end}{rest.replace(usual, u)}" for usual, u, (first, end, rest) in bounds)

    def equation(self) -> str:
        picked = self.picked()
        over = rf"{','.join(INSIDE[: self.axes])}: \, {self.window()}"
        return rf"{picked.small('out')} = \max_{{{over}}} {picked.large('self')}"

    def picked(self) -> _Picked:
        lead, sizes = _lead(self.op.self, self.axes), tuple(self.op.self.shape[-self.axes :])
        index = at("index", lead + PLACES[: self.axes]).replace("$index", "I")
        inside = "rst"[: self.axes]
        same = f"{at('self', lead + inside)} = {at('out', lead + PLACES[: self.axes])}"
        over = rf"{','.join(inside)}: \, {self.window(inside)}, \, {same}"
        where = rf"{index} = \min_{{{over}}} ({_position(sizes, inside)}){self.defined}"
        return _Picked(self.axes, lead, sizes, index, where)


FIRST = "of tied elements, the first one of the window (in row-major order) gets the whole gradient"


def _written(op: Any, axes: int, picture: Tensor, argument: str) -> str:
    """The derivative of a picture by what is written to it."""
    picked = _by_indices(op, axes, picture)
    return picked.local(picked.large("out"), picked.small(argument))


def _max_pool(
    name: str,
    axes: int,
    largest: Callable[[Any], _Largest],
    samples: Callable[[], Iterable[Sample]],
    windows: Windows | None,
    entry: str,
) -> None:
    """Register a pool that returns the largest elements with their indices, and its way back."""
    rule(
        f"{name}Backward0",
        name=entry,
        equation=lambda op: largest(op).equation(),
        where=lambda op: largest(op).picked().where,
        wrt={
            "self": Wrt(
                lambda op, g: _home(g, op.outs[1], axes, op.self),
                lambda op: (
                    largest(op).picked().local(largest(op).picked().small("out"), largest(op).picked().large("self"))
                ),
                lambda op: largest(op).picked().home("grad", "g"),
                "an output element is a copy of the largest input element in its window",
                _winner(axes),
                lambda op: copied(op.out.numel(), op.self.numel()) if real(op.out, op.self) else None,
            )
        },
        constants={"random_samples": "not differentiable"} if "fractional" in entry else {},
        kink=Kink(_tied(windows, axes), FIRST) if windows else None,
        samples=samples,
    )
    rule(
        f"{name}BackwardBackward0",
        name=f"{entry}_backward",
        equation=lambda op: _by_indices(op, axes, op.self).home("out", "grad_output"),
        wrt={
            "grad_output": Wrt(
                lambda op, g: _pick(g, op.indices, axes),
                lambda op: _written(op, axes, op.self, "grad_output"),
                lambda op: _by_indices(op, axes, op.self).pick("grad", "g"),
                "every upstream element goes to one place",
            ),
            "self": unread("self"),
        },
        constants={"indices": "not differentiable"},
        structure="linear",
        samples=lambda: [twice(each) for each in samples()],
    )


def _ties(*shape: int) -> Tensor:
    """A picture of few different numbers."""
    return randn(*shape).detach().sign().requires_grad_()


def _max_samples(axes: int) -> list[Sample]:
    pool, shape = (F.max_pool2d, (1, 2, 5, 4)) if axes == 2 else (F.max_pool3d, (1, 2, 5, 4, 4))
    line = [sample(F.max_pool1d, randn(2, 3, 5), 2), sample(F.max_pool1d, randn(3, 5), 2, 1, note="no batch axis")]
    return [
        sample(pool, randn(*shape), 2),
        sample(pool, randn(*shape), 2, stride=3, note="stride > kernel: some inputs are in no window"),
        sample(pool, randn(*shape), 3, stride=1, padding=1, note="windows that overlap, padding"),
        sample(pool, randn(*shape), 2, dilation=2, stride=1, note="dilation"),
        sample(pool, randn(*shape), 3, stride=2, ceil_mode=True, note="windows that reach beyond the picture"),
        sample(pool, _ties(*shape), 2, stride=1, note="ties"),
        sample(pool, randn(*shape[1:]), 2, note="no batch axis"),
        sample(pool, randn(0, *shape[1:]), 2, note="empty batch"),
        *(line if axes == 2 else []),
    ]


def _fractional_samples(axes: int) -> list[Sample]:
    pool, shape = (F.fractional_max_pool2d, (1, 2, 6, 5)) if axes == 2 else (F.fractional_max_pool3d, (1, 2, 6, 5, 5))

    def made(x: Tensor, size: int) -> Tensor:
        draw = torch.linspace(0.2, 0.7, x.shape[0] * x.shape[1] * axes, dtype=x.dtype).reshape(*x.shape[:2], axes)
        result: Tensor = pool(x, 2, output_size=size, _random_samples=draw)
        return result

    return [sample(made, randn(*shape), 3), sample(made, randn(*shape), 2)]


def _drawn_bounds(op: Any, axes: int) -> list[tuple[str, str, str]]:
    """Windows that begin at places drawn at random, for each sample and channel."""
    kernel, lead = _setting(op, "kernel_size", axes, (1,)), _lead(op.self, axes)
    starts = [f"{start}_{{{lead}{i}}}" for start, i in zip("fgh", PLACES[:axes], strict=False)]
    return [(start, f"{start} + {size}", "") for start, size in zip(starts, kernel, strict=True)]


def _drawn_starts(op: Any, axes: int) -> str:
    """How those places follow from the numbers drawn."""
    text, lead = "", _lead(op.self, axes)
    for axis, (kernel, (size, places)) in enumerate(
        zip(_setting(op, "kernel_size", axes, (1,)), _sizes(op, axes), strict=True)
    ):
        i, room = PLACES[axis], size - kernel
        drawn = at("random_samples", [*"nc", str(axes - 1 - axis if axes == 2 else axis)])
        step = fraction(room / max(places - 1, 1))
        steps = rf"\lfloor ({i} + {drawn}) \, {step} \rfloor - \lfloor {drawn} \, {step} \rfloor"
        cases = rf"\begin{{cases}} {room} & {i} = {places - 1} \\ {steps} & \text{{otherwise}} \end{{cases}}"
        text += rf", \quad {'fgh'[axis]}_{{{lead}{i}}} = {cases}"
    return text


def _maxima(axes: int) -> None:
    """The pools of two or three axes that return the largest elements."""
    _max_pool(
        f"MaxPool{axes}DWithIndices",
        axes,
        lambda op: _Largest(op, axes, _kernel_bounds(axes)),
        lambda: _max_samples(axes),
        _kernel_windows(axes),
        f"max_pool{axes}d_with_indices",
    )
    _max_pool(
        f"AdaptiveMaxPool{axes}D",
        axes,
        lambda op: _Largest(op, axes, _adaptive_bounds(axes)),
        lambda: _adaptive_samples("max", axes),
        _adaptive_windows(axes),
        f"adaptive_max_pool{axes}d",
    )
    _max_pool(
        f"FractionalMaxPool{axes}D",
        axes,
        lambda op: _Largest(op, axes, lambda op: _drawn_bounds(op, axes), _drawn_starts(op, axes)),
        lambda: _fractional_samples(axes),
        None,
        f"fractional_max_pool{axes}d",
    )


for _axes in (2, 3):
    _maxima(_axes)

# Back to the larger picture --------------------------------------------------------------------------------------


def _unpooled(axes: int) -> Callable[[Any, Index, Index], Factor | None]:
    def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
        own = _flat(out_index[-axes:], op.out.shape[-axes:]) == int(op.indices[in_index])
        return Factor(latex="1") if own and in_index[:-axes] == out_index[:-axes] else None

    return factor


def _written_twice(axes: int) -> Callable[[Any, float], Tensor]:
    """Elements that are written to a place to which another one is written too."""

    def where(op: Any, radius: float) -> Tensor:
        written = _home(torch.ones_like(op.self), op.indices, axes, op.out)
        marks: Tensor = _pick(written, op.indices, axes) > 1
        return marks

    return where


def _unpool_samples(axes: int) -> list[Sample]:
    if axes == 2:
        return [
            sample(F.max_unpool2d, randn(1, 2, 2, 2), torch.tensor([[[[0, 3], [9, 10]], [[5, 2], [8, 15]]]]), 2),
            sample(F.max_unpool1d, randn(2, 2), torch.tensor([[0, 3], [1, 2]]), 2, note="no batch axis"),
        ]
    return [sample(F.max_unpool3d, randn(1, 1, 1, 1, 2), torch.tensor([[[[[3, 14]]]]]), 2)]


def _unpools(axes: int) -> None:
    """The way from the largest elements to a picture with zeros between them."""
    rule(
        f"MaxUnpool{axes}DBackward0",
        name=f"max_unpool{axes}d",
        equation=lambda op: _by_indices(op, axes, op.out).home("out", "self"),
        wrt={
            "self": Wrt(
                lambda op, g: _pick(g, op.indices, axes),
                lambda op: _written(op, axes, op.out, "self"),
                lambda op: _by_indices(op, axes, op.out).pick("grad", "g"),
                "each input element is written to one place, the one that its index names",
                _unpooled(axes),
            )
        },
        constants={"indices": "not differentiable"},
        kink=Kink(_written_twice(axes), "each of several elements written to one place gets that place's gradient"),
        structure="linear",
        samples=lambda: _unpool_samples(axes),
    )


for _axes in (2, 3):
    _unpools(_axes)
