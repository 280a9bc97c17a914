"""Rules of convolutions, of their transposes, and of cutting a picture into patches (im2col) and back.

A kernel element k and an output place p always meet at place s p + d k of the padded input. So a convolution is a sum
over the kernel's elements, each of which is a matrix that maps the channels of one strided slice of the input:
y = b + sum_k w_k x[slice_k]. Both ways back are read off that line: w_k^T g is added into slice k, and g x[slice_k]^T
is the gradient of w_k. Transposed convolutions are the same with the two sides exchanged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Applied, Factor, Index, Rule, Sample, Wrt, at, derivative, rule, sample
from chainrule.rules.index_notation import affine, position
from chainrule.rules.linear import randn
from chainrule.rules.pattern import Pattern, axes, product, real
from chainrule.rules.shape import moves

Place = tuple[Any, ...]  # `[..., 1, 2]` or `[..., 0:4, 1:5]`

Among = Sequence[int]  # the places of an axis to look at: a range, or a single one

PLACES, TAPS = "ijk", "uvw"  # the letters of places and of kernel elements, as many as there are axes


@dataclass(frozen=True)
class Sliding:
    """How a kernel slides over a padded input, axis by axis: output place p and kernel element k meet at s p + d k."""

    size: Index
    stride: Index
    dilation: Index
    padding: Index

    def slices(self, places: Sequence[int]) -> Iterator[tuple[Place, Place]]:
        """For each kernel element, what it meets of the padded input at all `places` (a number an axis).

        Both are indices into the last axes: of the weight, and of the padded input.
        """
        for k in itertools.product(*map(range, self.size)):
            starts = [d * each for d, each in zip(self.dilation, k, strict=True)]
            ranges = zip(starts, places, self.stride, strict=True)
            yield (..., *k), (..., *(slice(start, start + s * count, s) for start, count, s in ranges))

    def pad(self, t: Tensor, sign: int = 1) -> Tensor:
        """Put the border of zeros around the last axes, or take it away (`sign` -1)."""
        return F.pad(t, [sign * p for p in reversed(self.padding) for _ in range(2)])

    def meetings(
        self, slow: Iterable[Among], taps: Iterable[Among] | None, fast: Iterable[Among]
    ) -> list[list[tuple[int, int, int]]]:
        """Which output place, kernel element and input place meet, axis by axis, among those given for each axis."""
        taps = map(range, self.size) if taps is None else taps
        axes = zip(slow, taps, fast, self.stride, self.dilation, self.padding, strict=True)
        return [
            [(p, k, s * p + d * k - pad) for p in each for k in own if s * p + d * k - pad in inside]
            for each, own, inside, s, d, pad in axes
        ]

    def source(self, letters: str, taps: Sequence[str]) -> list[str]:
        """Where in the input output place (i, j) and kernel element (u, v) meet, in LaTeX: `2 i + u - 1`."""
        axes = zip(letters, self._reach(taps, "+"), self.stride, self.padding, strict=True)
        return [affine(affine(p, s) + reach, 1, -pad) for p, reach, s, pad in axes]

    def target(self, letters: str, taps: Sequence[str]) -> list[str]:
        """The output place that meets input place (i, j) by kernel element (u, v), in LaTeX: `(i - u + 1) / 2`."""
        axes = zip(letters, self._reach(taps, "-"), self.stride, self.padding, strict=True)
        sums = [(affine(q + reach, 1, pad), s) for q, reach, s, pad in axes]
        return [text if s == 1 else f"({text}) / {s}" if len(text) > 1 else f"{text} / {s}" for text, s in sums]

    def _reach(self, taps: Sequence[str], sign: str) -> list[str]:
        return ["" if k == "0" else f" {sign} {affine(k, d)}" for k, d in zip(taps, self.dilation, strict=True)]


# A convolution, whichever node made it ----------------------------------------------------------------------------


class _Convolution:
    """A convolution y = w * x, in numbers and in formulas; one that is `transposed` exchanges input and output.

    The letters: sample n, input channel c, output channel o, place (i, j), kernel element (u, v). Place i of the `slow`
    side meets place s i + d u - pad of the `fast` one. The slow side of a convolution is its output, that of a
    transposed one its input; the weight's first axis is the slow side's channel.
    """

    def __init__(self, op: Any) -> None:
        size = tuple(op.weight.shape[2:])
        stride, dilation, padding = (
            each_axis(op.arguments.get(name), default, len(size))
            for name, default in (("stride", (1,)), ("dilation", (1,)), ("padding", (0,)))
        )
        self.op, self.sliding, self.groups = op, Sliding(size, stride, dilation, padding), op.arguments.get("groups", 1)
        # `slow_conv_transpose2d` says that it is one by its name and by having an `output_padding`
        self.transposed = op.arguments.get("transposed", "output_padding" in op.arguments)
        self.name = "input" if "input" in op.arguments else "self"
        self.x: Tensor = op.arguments[self.name]
        self.rows, self.width = op.weight.shape[0] // self.groups, op.weight.shape[1]
        self._name_indices()

    def apply(self, x: Tensor, weight: Tensor, room: Sequence[int], back: bool = False) -> Tensor:
        """The convolution of `x` by `weight` or the way back, without a bias; `room` is the size of the result."""
        x, w, spread = self._grouped(x), self._by_group(weight), self.transposed != back
        wide = torch.promote_types(x.dtype, torch.float32)  # in half precision, each of many terms would be rounded
        total = x.new_zeros((*x.shape[:2], self.width if spread else self.rows, *room), dtype=wide)
        page = self.sliding.pad(total if spread else x)
        for k, window in self.sliding.slices(x.shape[3:] if spread else room):
            if spread:
                page[window] += torch.einsum("goc,ngo...->ngc...", w[k], x)
            else:
                total += torch.einsum("goc,ngc...->ngo...", w[k], page[window])
        return (self.sliding.pad(page, -1) if spread else total).to(x.dtype).flatten(1, 2)

    def input_gradient(self, g: Tensor, weight: Tensor) -> Tensor:
        return self.apply(g, weight, self.x.shape[2:], back=True)

    def weight_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        """d (g . apply(x, w)) / d w: for each kernel element, the products of what it brought together."""
        small, large = (x, g) if self.transposed else (g, x)
        page, small = self.sliding.pad(self._grouped(large)), self._grouped(small)
        gradient = torch.zeros_like(self._by_group(self.op.weight))
        for k, window in self.sliding.slices(small.shape[3:]):
            gradient[k] = torch.einsum("ngox,ngcx->goc", small.flatten(3), page[window].flatten(3))
        return gradient.reshape(self.op.weight.shape)

    def _grouped(self, t: Tensor) -> Tensor:
        return t.reshape(t.shape[0], self.groups, t.shape[1] // self.groups, *t.shape[2:])

    def _by_group(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.groups, self.rows, *weight.shape[1:])

    # Which elements meet

    def input_factor(self, out_index: Index, in_index: Index) -> Factor | None:
        """dy/dx is the weight by which the two places meet."""
        (n, o, *place), (m, c, *inside) = out_index, in_index
        (first, slow), (second, fast) = ((c, inside), (o, place)) if self.transposed else ((o, place), (c, inside))
        met = self.sliding.meetings(zip(slow, strict=True), None, zip(fast, strict=True))
        if n != m or first // self.rows != second // self.width or not all(met):
            return None
        return Factor("weight", (first, second % self.width, *(k for ((_, k, _),) in met)))

    def weight_factor(self, out_index: Index, in_index: Index) -> Factor | None:
        """dy/dw is the input element that this weight meets on its way to this output."""
        (n, o, *place), (first, second, *element) = out_index, in_index
        other = first // self.rows * self.width + second
        output, channel = (other, first) if self.transposed else (first, other)
        own, room = list(zip(place, strict=True)), map(range, self.x.shape[2:])
        slow, fast = (room, own) if self.transposed else (own, room)
        met = self.sliding.meetings(slow, zip(element, strict=True), fast)
        if output != o or not all(met):
            return None
        return Factor(self.name, (n, channel, *(p if self.transposed else q for ((p, _, q),) in met)))

    def apart(self) -> str:
        """What keeps an input element from an output element: another sample, another group, a kernel elsewhere."""
        places, room, met = self._met()
        all_meet = all(
            len({(p, q) for p, _, q in axis}) == own * other
            for axis, own, other in zip(met, places.shape[2:], room.shape[2:], strict=True)
        )
        bounds = {"sample": self.x.shape[0] > 1, "group": self.groups > 1}
        within = " and ".join(f"its own {each}" for each, several in bounds.items() if several)
        if all_meet:
            return f"an output element is made of the input elements of {within} alone" if within else ""
        under = "an output element is made of the input elements under its kernel alone"
        return f"{under}, in {within}" if within else under

    def pattern(self, operand: Tensor, words: str) -> Pattern | None:
        """Kernel elements and output places that meet an input place, in each sample, for each pair of channels."""
        if not real(self.op.out, operand, self.op.weight):
            return None
        *_, met = self._met()
        nonzero = self.x.shape[0] * self.op.weight.shape[0] * self.width * math.prod(map(len, met))
        return Pattern(words, (self.op.out.numel(), operand.numel()), nonzero)

    def _met(self) -> tuple[Tensor, Tensor, list[list[tuple[int, int, int]]]]:
        """The slow side, the fast one, and what meets of them, axis by axis."""
        places, room = (self.x, self.op.out) if self.transposed else (self.op.out, self.x)
        return places, room, self.sliding.meetings(map(range, places.shape[2:]), None, map(range, room.shape[2:]))

    # How it is written

    def _name_indices(self) -> None:
        self.places = PLACES[: len(self.sliding.size)]
        self.sums = rf"\sum_{{n,{','.join(self.places)}}}"
        taps = ["0" if size == 1 else letter for letter, size in zip(TAPS, self.sliding.size, strict=False)]
        first, second = ("c", "o") if self.transposed else ("o", "c")
        inner = second if self.width > 1 else "0"
        self.kernel = [first, inner, *taps]
        self.slow = ["n", first, *self.places]
        self.fast = ["n", self._channel(first, self.rows, self.width, inner)]
        self.fast += self.sliding.source(self.places, taps)
        # the way from slow to fast, for an element (n, second, place) of the fast side
        other = self._channel(second, self.width, self.rows, first if self.rows > 1 else "0")
        own = rf"{second} \bmod {self.width}" if self.groups > 1 and self.width > 1 else inner
        self.kernel_met = [other, own, *taps]
        self.slow_met = ["n", other, *self.sliding.target(self.places, taps)]
        self.over_fast = _sums(zip(self.kernel[1:], self.op.weight.shape[1:], strict=True))
        self.over_slow = _sums(zip([first, *taps], [self.rows, *self.sliding.size], strict=True))

    def _channel(self, of: str, size: int, count: int, inside: str) -> str:
        """The channel at a place inside its group of `count`, where `of` has `size` channels to the group."""
        group = of if size == 1 else rf"\lfloor {of} / {size} \rfloor"
        return inside if self.groups == 1 else affine(group, count) + (f" + {inside}" if inside != "0" else "")

    def image(self, name: str, index: Sequence[str]) -> str:
        """An element of what has samples, channels, and places; conv_tbc has them in another order."""
        return at(name, [*index[2:], *index[:2]] if "time_first" in self.op.arguments else index)

    def output(self, name: str) -> str:
        """The element of an output at a place."""
        return self.image(name, ["n", "o", *self.places])

    def weight(self, name: str = "weight", index: Sequence[str] = ()) -> str:
        """An element of what has the shape of the weight."""
        index = index or self.kernel
        return at(name, index[::-1] if "time_first" in self.op.arguments else index)

    def of_input(self, name: str = "") -> str:
        """The element of the input's side that meets kernel element (u, v)."""
        return self.image(name or self.name, self.slow if self.transposed else self.fast)

    def of_output(self, name: str = "out") -> str:
        """The element of the output's side that meets it."""
        return self.image(name, self.fast if self.transposed else self.slow)

    def terms(self, forward: bool, name: str, weight: str = "weight") -> str:
        """The sum that makes an output element, or the one that makes an element of the input's gradient."""
        if forward == self.transposed:
            return rf"{self.over_slow}{self.weight(weight, self.kernel_met)} \, {self.image(name, self.slow_met)}"
        return rf"{self.over_fast}{self.weight(weight)} \, {self.image(name, self.fast)}"

    def equation(self) -> str:
        bias = "" if self.op.arguments.get("bias") is None else "{$bias}_{o} + "
        ranges = ", ".join(rf"0 \le {p} < {size}" for p, size in zip(self.places, self.op.out.shape[2:], strict=True))
        return rf"{self.output('out')} = {bias}{self.terms(True, self.name)} \qquad ({ranges})"

    def outside(self, name: str, quotients: bool = False) -> str:
        """What stands beside a formula that may ask for places outside, or between places."""
        return rf", \quad ${name} \text{{ is 0 outside}}" if quotients or any(self.sliding.padding) else ""

    def to_input(self, target: str = "grad", name: str = "g", weight: str = "weight") -> str:
        place = self.image(target, ["n", "c", *self.places])
        return f"{place} = {self.terms(False, name, weight)}{self.outside(name, not self.transposed)}"

    def to_weight(self, target: str = "grad", x: str = "", g: str = "g") -> str:
        outside = self.outside(g) if self.transposed else ""
        return rf"{self.weight(target)} = {self.sums} {self.of_output(g)} \, {self.of_input(x)}{outside}"

    def to_bias(self, target: str = "grad", g: str = "g") -> str:
        return rf"{at(target, 'o')} = {self.sums} {self.output(g)}"


def _sums(ranges: Iterable[tuple[str, int]]) -> str:
    return "".join(rf"\sum_{{{letter}=0}}^{{{count - 1}}} " for letter, count in ranges if count != 1)


def each_axis(setting: Any, default: Index, axes: int) -> Index:
    """A setting for every axis; one number stands for all axes, none or an empty list for the default."""
    values = (setting,) if isinstance(setting, int) else tuple(default if setting is None else setting) or default
    return values * axes if len(values) == 1 else values


def _told(write: Callable[[_Convolution], str]) -> Callable[[Any], str]:
    """A formula of a convolution."""
    return lambda op: write(_Convolution(op))


BY_INPUT = Wrt(
    lambda op, g: _Convolution(op).input_gradient(g, op.weight),
    _told(lambda f: derivative(f.of_output(), f.of_input(), f.weight())),
    _told(_Convolution.to_input),
    lambda op: _Convolution(op).apart(),
    lambda op, out_index, in_index: _Convolution(op).input_factor(out_index, in_index),
    lambda op: _Convolution(op).pattern(_Convolution(op).x, "sparse Toeplitz, the kernel shifted from place to place"),
)
BY_WEIGHT = Wrt(
    lambda op, g: _Convolution(op).weight_gradient(_Convolution(op).x, g),
    _told(lambda f: derivative(f.of_output(), f.weight(), f.of_input())),
    _told(_Convolution.to_weight),
    lambda op: (
        "an output channel is made with its own weights alone"
        + ", and a weight that meets the padding meets a 0" * any(_Convolution(op).sliding.padding)
    ),
    lambda op, out_index, in_index: _Convolution(op).weight_factor(out_index, in_index),
    lambda op: _Convolution(op).pattern(op.weight, "sparse, each output channel with its own weights alone"),
)
BY_BIAS = Wrt(
    lambda op, g: g.sum((0, *range(2, g.dim()))),
    _told(lambda f: derivative(f.output("out"), "{$bias}_{o}", "1")),
    _told(_Convolution.to_bias),
    "output channel o has bias o alone added to it, at every place of every sample",
    lambda op, out_index, in_index: Factor(latex="1") if out_index[1] == in_index[0] else None,
    lambda op: product(axes(op.out.shape), [("1", op.bias.numel())]) if real(op.out, op.bias) else None,
)


def _convolution(*nodes: str, x: str, **more: Any) -> Rule:
    """Register a convolution whose input is called `x`."""
    return rule(
        *nodes,
        equation=_told(_Convolution.equation),
        where=_told(lambda f: f.outside(x, f.transposed).removeprefix(r", \quad ")),
        wrt={x: BY_INPUT, "weight": BY_WEIGHT, "bias": BY_BIAS},
        linear=(x, "bias"),
        **more,
    )


def _samples() -> list[Sample]:
    two, three = (randn(2, 4, 5, 6), randn(3, 4, 3, 2)), (randn(1, 2, 4, 3, 4), randn(3, 2, 2, 1, 3))
    grouped, turned = (randn(2, 4, 5, 6), randn(6, 2, 3, 2), randn(6)), (randn(2, 4, 3, 2), randn(4, 3, 3, 2))
    many = {"stride": (3, 2), "padding": (1, 0), "output_padding": (2, 1), "groups": 2, "dilation": 2}
    return [
        sample(F.conv1d, randn(2, 3, 5), randn(4, 3, 2), randn(4)),
        sample(F.conv2d, *two, randn(3)),
        sample(F.conv2d, *two, stride=(2, 3), padding=(1, 2), note="stride and padding, no bias"),
        sample(F.conv2d, *two, stride=4, note="stride > kernel: some inputs are never met"),
        sample(F.conv2d, *two, dilation=(2, 3), padding=3, stride=2, note="dilation"),
        sample(F.conv2d, *grouped, groups=2, padding=1, note="groups"),
        sample(F.conv2d, randn(1, 3, 4, 4), randn(6, 1, 3, 3), groups=3, padding="same", note="depthwise, same"),
        sample(F.conv2d, randn(0, 4, 5, 6), two[1], randn(3), note="empty batch"),
        sample(F.conv2d, randn(4, 5, 6), two[1], note="one sample without a batch axis"),
        sample(F.conv2d, randn(1, 1, 1, 1), randn(1, 1, 1, 1), randn(1), note="size 1"),
        sample(F.conv3d, *three, randn(3), stride=(1, 2, 1), padding=(0, 1, 1)),
        sample(F.conv_transpose1d, randn(2, 3, 5), randn(3, 4, 2), randn(4), stride=3, note="gaps"),
        sample(F.conv_transpose2d, *turned, randn(3), stride=2, padding=1),
        sample(F.conv_transpose2d, *turned, randn(6), **many, note="groups, dilation, output padding"),
        sample(F.conv_transpose2d, randn(0, 4, 3, 2), turned[1], note="empty batch"),
        sample(F.conv_transpose3d, randn(1, 2, 2, 3, 2), randn(2, 3, 2, 1, 3), stride=2, padding=(1, 0, 1)),
    ]


SOURCE = (
    "derivatives.yaml: convolution. Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016, "
    "arXiv:1603.07285."
)

convolution = _convolution(
    "ConvolutionBackward0",
    x="input",
    calls=(),
    samples=_samples,
    source=SOURCE,
    remark="PyTorch's convolution does not flip the kernel: mathematicians call it a cross-correlation.",
)

ATEN, ONES = torch.ops.aten, (1, 1, 1)

convolution_kernel = _convolution(
    *(f"SlowConv{kind}{axes}DBackward0" for kind in ("", "Dilated", "Transpose") for axes in (2, 3)),
    "MkldnnConvolutionBackward0",
    name="convolution_kernel",
    x="self",
    samples=lambda: [
        sample(getattr(ATEN, name), randn(*x), randn(*weight), weight[2:], randn(bias), *settings)
        for name, x, weight, bias, *settings in (
            ("thnn_conv2d", (1, 2, 5, 4), (3, 2, 3, 2), 3, (2, 1), (1, 0)),
            ("slow_conv3d", (1, 2, 3, 4, 3), (3, 2, 2, 2, 1), 3, ONES, ONES),
            ("slow_conv_dilated2d", (1, 2, 5, 6), (3, 2, 2, 2), 3, (1, 2), (1, 0), (3, 3)),
            ("slow_conv_dilated3d", (1, 1, 3, 4, 3), (2, 1, 2, 2, 1), 2, ONES, ONES, ONES),
            ("slow_conv_transpose2d", (1, 2, 3, 2), (2, 3, 2, 2), 3, (2, 2), (1, 1), (1, 1)),
            ("slow_conv_transpose3d", (1, 1, 2, 3, 2), (1, 2, 2, 2, 1), 2, (2, 1, 1)),
        )
    ],
    source=SOURCE,
    remark="One of PyTorch's kernels for a convolution, called by its own name.",
)

# Convolution of sequences in the order (time, batch, channel) ----------------------------------------------------


def _batch_first(op: Any) -> Applied:
    """conv_tbc's operands in the order of the other convolutions."""
    arguments = {"self": op.self.permute(1, 2, 0), "weight": op.weight.permute(2, 1, 0), "bias": op.bias}
    return Applied({**arguments, "padding": op.pad, "time_first": True}, (op.out.permute(1, 2, 0),))


ORDERS = {"self": (2, 0, 1), "weight": (2, 1, 0), "bias": (0,)}  # of conv_tbc's axes


def _time_first(argument: str, usual: Any) -> Wrt:
    """A derivative of conv_tbc, from the same one of a convolution in the usual order."""
    order = ORDERS[argument]

    def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
        time, n, o = out_index
        place = tuple(in_index[order.index(axis)] for axis in sorted(order))
        found: Factor | None = usual.factor(_batch_first(op), (n, o, time), place)
        if found is None or found.argument is None:
            return found
        return replace(found, index=tuple(found.index[axis] for axis in ORDERS[found.argument]))

    return Wrt(
        lambda op, g: usual.vjp(_batch_first(op), g.permute(1, 2, 0)).permute(order),
        lambda op: usual.local(_batch_first(op)),
        lambda op: usual.product(_batch_first(op)),
        usual.zeros,
        factor,
    )


conv_tbc = rule(
    "ConvTbcBackward0",
    linear=("self", "bias"),
    equation=lambda op: _Convolution(_batch_first(op)).equation(),
    where=r"$self \text{ is 0 outside}",
    wrt={
        name: _time_first(name, usual) for name, usual in (("self", BY_INPUT), ("weight", BY_WEIGHT), ("bias", BY_BIAS))
    },
    samples=lambda: [
        sample(torch.conv_tbc, randn(5, 2, 3), randn(2, 3, 4), randn(4)),
        sample(torch.conv_tbc, randn(5, 2, 3), randn(3, 3, 4), randn(4), 2, note="padding"),
    ],
)

# The way back of a convolution, itself differentiated (create_graph) ---------------------------------------------


def _twice_upstream(op: Any, gs: tuple[Tensor | None, ...]) -> Tensor:
    (x, w, b), convolution, room = gs, _Convolution(op), op.grad_output.shape[2:]
    total = torch.zeros_like(op.grad_output)
    if x is not None:
        total = total + convolution.apply(x, op.weight, room)
    if w is not None:
        total = total + convolution.apply(op.input, w, room)
    return total if b is None else total + b.reshape(-1, *(1 for _ in room))


def _by_upstream(f: _Convolution) -> str:
    """The three gradients by the upstream one."""
    g = f.of_output("grad_output")
    image, weight = derivative(f.of_input("out0"), g, f.weight()), derivative(f.weight("out1"), g, f.of_input())
    bias = derivative("{$out2}_{o}", f.output("grad_output"), "1")
    return rf"{image}, \quad {weight}, \quad {bias}{f.outside('input')}"


def _upstream_twice(f: _Convolution) -> str:
    """What comes back to the upstream gradient: the convolution of what came to each of its gradients."""
    total = rf"{f.terms(True, 'g0')} + {f.terms(True, 'input', 'g1')} + {{$g2}}_{{o}}"
    return rf"{f.output('grad')} = {total}{f.outside('g0', f.transposed)}{f.outside('input', f.transposed)}"


def _of_gradients(f: _Convolution, g: str = "grad_output") -> str:
    """The gradients of the input, the weight and the bias."""
    return r", \quad ".join([f.to_input("out0", g), f.to_weight("out1", g=g), f.to_bias("out2", g)])


def _second(x: Tensor, w: Tensor, b: Tensor, **settings: Any) -> Any:
    """The gradients of a convolution, as something to differentiate again."""
    return torch.autograd.grad(F.conv2d(x, w, b, **settings).sin().sum(), (x, w, b), create_graph=True)


convolution_backward = rule(
    "ConvolutionBackwardBackward0",
    equation=_told(_of_gradients),
    linear=("grad_output",),
    wrt={
        "grad_output": Wrt(_twice_upstream, _told(_by_upstream), _told(_upstream_twice)),
        "input": Wrt(
            lambda op, gs: None if gs[1] is None else _Convolution(op).input_gradient(op.grad_output, gs[1]),
            _told(lambda f: derivative(f.weight("out1"), f.of_input(), f.of_output("grad_output"))),
            _told(lambda f: f.to_input("grad", "grad_output", "g1")),
            "the gradients of the input and the bias do not depend on the input",
        ),
        "weight": Wrt(
            lambda op, gs: None if gs[0] is None else _Convolution(op).weight_gradient(gs[0], op.grad_output),
            _told(lambda f: derivative(f.of_input("out0"), f.weight(), f.of_output("grad_output"))),
            _told(lambda f: f.to_weight("grad", "g0", "grad_output") + f.outside("g0")),
            "the gradients of the weight and the bias do not depend on the weight",
        ),
    },
    where=lambda op: "; ".join(rf"${name} \text{{ is 0 outside}}" for name in ("input", "grad_output")),
    outputs=3,
    samples=lambda: [
        sample(_second, randn(2, 4, 5, 6), randn(6, 2, 3, 2), randn(6), groups=2, padding=1, stride=2),
        sample(_second, randn(1, 1, 3, 3), randn(1, 1, 2, 2), randn(1)),
    ],
    source="derivatives.yaml: convolution_backward. Each gradient is linear in two of upstream, input and weight.",
)

# Patches ---------------------------------------------------------------------------------------------------------


class _Patches:
    """The patches of a picture: element (c, u, v) of patch (i, j) has its place in the columns row by row."""

    def __init__(self, op: Any) -> None:
        shape = (op.out if "output_size" in op.arguments else op.self).shape
        self.sliding = Sliding(tuple(op.kernel_size), tuple(op.stride), tuple(op.dilation), tuple(op.padding))
        axes = zip(shape[-2:], self.sliding.size, op.stride, op.dilation, op.padding, strict=True)
        self.room = tuple(shape[-2:])
        self.places = tuple((size + 2 * pad - d * (k - 1) - 1) // s + 1 for size, k, s, d, pad in axes)
        (height, width), self.met = self.sliding.size, self.sliding.source("ij", "uv")
        self.lead = "n" * (op.out.dim() + op.self.dim() == 7)
        self.element = [position("cuv", [height * width, width, 1]), position("ij", [self.places[1], 1])]
        counts = zip("uvij", (height, width, *self.places), strict=True)
        self.ranges = r" \qquad (" + ", ".join(rf"0 \le {letter} < {count}" for letter, count in counts) + ")"

    def collect(self, t: Tensor) -> Tensor:
        """im2col: the column of each place holds what lies under the kernel there."""
        page = self.sliding.pad(t)
        columns = torch.stack([page[window] for _, window in self.sliding.slices(self.places)], -3)
        return columns.flatten(-4, -3).flatten(-2)

    def lay(self, columns: Tensor) -> Tensor:
        """col2im: put every column back where it came from, and add where they overlap."""
        cells = columns.unflatten(-1, self.places).unflatten(-3, (-1, math.prod(self.sliding.size)))
        page = self.sliding.pad(columns.new_zeros((*cells.shape[:-3], *self.room)))
        for k, (_, window) in enumerate(self.sliding.slices(self.places)):
            page[window] += cells.select(-3, k)
        return self.sliding.pad(page, -1)

    def factor(self, op: Any, out_index: Index, in_index: Index) -> Factor | None:
        """1 where an element of a column lies at this place of the picture."""
        unit = torch.zeros_like(op.out)
        unit[out_index] = 1
        return Factor(latex="1") if self.collect(unit)[in_index] else None

    def picture(self, name: str) -> str:
        """The element of the picture under (u, v) of patch (i, j)."""
        return at(name, [*self.lead, "c", *self.met])

    def columns(self, name: str) -> str:
        return at(name, [*self.lead, *self.element])

    def cut(self, columns: str, picture: str) -> str:
        outside = rf", \quad ${picture} \text{{ is 0 outside}}"
        return f"{self.columns(columns)} = {self.picture(picture)}{self.ranges}{outside}"

    def laid(self, picture: str, columns: str) -> str:
        """The picture of columns: patches that overlap are added."""
        pairs = rf"\sum_{{u,v,i,j}} [p = {self.met[0]}] \, [q = {self.met[1]}] \, {self.columns(columns)}"
        return rf"{at(picture, [*self.lead, 'c', 'p', 'q'])} = {pairs}{self.ranges}"

    def local(self, of: str, by: str) -> str:
        return derivative(of, by, "1") + self.ranges


im2col = moves(
    "Im2ColBackward0",
    name="im2col",
    equation=lambda op: _Patches(op).cut("out", "self"),
    local=lambda op: _Patches(op).local(_Patches(op).columns("out"), _Patches(op).picture("self")),
    move=lambda op, t: _Patches(op).collect(t),
    home=lambda op, g: _Patches(op).lay(g),
    product=lambda op: _Patches(op).laid("grad", "g"),
    zeros="each output element is a copy of one input element, or a 0 of the padding",
    samples=lambda: [
        sample(F.unfold, randn(2, 3, 4, 5), (2, 3)),
        sample(F.unfold, randn(1, 2, 5, 5), (2, 2), dilation=(2, 1), padding=(1, 2), stride=(3, 1)),
        sample(F.unfold, randn(2, 4, 4), 2, stride=3, note="no batch axis; places between patches"),
        sample(F.unfold, randn(0, 2, 4, 4), 2, note="empty batch"),
    ],
    source="derivatives.yaml: im2col. An element in several patches gets the sum of their gradients.",
)

col2im = rule(
    "Col2ImBackward0",
    name="col2im",
    equation=lambda op: _Patches(op).laid("out", "self"),
    wrt={
        "self": Wrt(
            lambda op, g: _Patches(op).collect(g),
            lambda op: _Patches(op).local(_Patches(op).picture("out"), _Patches(op).columns("self")),
            lambda op: _Patches(op).cut("grad", "g"),
            "an element of a patch is added to one place of the picture, or lies in the padding",
            lambda op, out_index, in_index: _Patches(op).factor(op, out_index, in_index),
        )
    },
    structure="linear",
    samples=lambda: [
        sample(F.fold, randn(2, 12, 8), (4, 5), (2, 2), padding=(1, 0), stride=(1, 2), dilation=(2, 1)),
        sample(F.fold, randn(1, 8, 9), (4, 4), 2, note="overlapping patches"),
        sample(F.fold, randn(4, 4), (4, 4), 2, stride=2, note="no batch axis"),
    ],
)
