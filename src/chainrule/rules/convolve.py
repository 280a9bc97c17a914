"""Rules of convolutions, of their transposes, and of cutting a picture into patches (im2col) and back.

A kernel element k and an output place p always meet at place s p + d k of the padded input. So a convolution is a sum
over the kernel's elements, each of which is a matrix that maps the channels of one strided slice of the input:
y = b + sum_k w_k x[slice_k]. Both ways back are read off that line: w_k^T g is added into slice k, and g x[slice_k]^T
is the gradient of w_k. Transposed convolutions are the same with the two sides exchanged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Applied, Factor, Sample, Wrt, at, derivative, rule, sample
from chainrule.rules.linear import randn
from chainrule.rules.pattern import Pattern, axes, product, real
from chainrule.rules.shape import moves

Index = tuple[int, ...]
Place = tuple[Any, ...]  # `[..., 1, 2]` or `[..., 0:4, 1:5]`

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

    def pad(self, t: Tensor) -> Tensor:
        """Put the border of zeros around the last axes."""
        return F.pad(t, [p for p in reversed(self.padding) for _ in range(2)])

    def unpad(self, t: Tensor) -> Tensor:
        """Take the border away again."""
        return F.pad(t, [-p for p in reversed(self.padding) for _ in range(2)])

    def page(self, t: Tensor, room: Sequence[int]) -> Tensor:
        """Zeros for a padded input of `room`, with the leading axes of `t`."""
        padded = [size + 2 * p for size, p in zip(room, self.padding, strict=True)]
        return t.new_zeros((*t.shape[: t.dim() - len(padded)], *padded))

    def element(self, place: Index, inside: Index) -> Index | None:
        """The kernel element by which an output place meets an input place, if there is one."""
        gaps = [q + pad - s * p for p, q, s, pad in zip(place, inside, self.stride, self.padding, strict=True)]
        found = tuple(gap // d for gap, d in zip(gaps, self.dilation, strict=True))
        whole = all(gap % d == 0 for gap, d in zip(gaps, self.dilation, strict=True))
        return found if whole and all(0 <= k < size for k, size in zip(found, self.size, strict=True)) else None

    def meeting(self, place: Index, element: Index, room: Sequence[int]) -> Index | None:
        """The input place that a kernel element meets from an output place; None where that is in the padding."""
        axes = zip(place, element, self.stride, self.dilation, self.padding, strict=True)
        found = tuple(s * p + d * k - pad for p, k, s, d, pad in axes)
        return found if all(0 <= q < size for q, size in zip(found, room, strict=True)) else None

    def start(self, inside: Index, element: Index, places: Sequence[int]) -> Index | None:
        """The output place from which a kernel element meets an input place, if there is one."""
        axes = zip(inside, element, self.stride, self.dilation, self.padding, strict=True)
        steps = [divmod(q + pad - d * k, s) for q, k, s, d, pad in axes]
        inside_all = all(not rest and 0 <= p < count for (p, rest), count in zip(steps, places, strict=True))
        return tuple(p for p, _ in steps) if inside_all else None

    def meetings(self, room: Sequence[int], places: Sequence[int]) -> int:
        """How many pairs of a kernel element and one of the `places` meet inside the input, not in the padding."""
        sides = zip(self.size, self.stride, self.dilation, self.padding, room, places, strict=True)
        return math.prod(
            sum(0 <= s * p + d * k - pad < inside for p in range(count) for k in range(size))
            for size, s, d, pad, inside, count in sides
        )

    def source(self, letters: str, taps: Sequence[str]) -> list[str]:
        """Where in the input output place (i, j) and kernel element (u, v) meet, in LaTeX: `2 i + u - 1`."""
        axes = zip(letters, self._reach(taps, "+"), self.stride, self.padding, strict=True)
        return [_times(s, p) + reach + _shift("-", pad) for p, reach, s, pad in axes]

    def target(self, letters: str, taps: Sequence[str]) -> list[str]:
        """The output place that meets input place (i, j) by kernel element (u, v), in LaTeX: `(i - u + 1) / 2`."""
        axes = zip(letters, self._reach(taps, "-"), self.stride, self.padding, strict=True)
        sums = [(q + reach + _shift("+", pad), s) for q, reach, s, pad in axes]
        return [text if s == 1 else f"({text}) / {s}" if len(text) > 1 else f"{text} / {s}" for text, s in sums]

    def _reach(self, taps: Sequence[str], sign: str) -> list[str]:
        return ["" if k == "0" else f" {sign} {_times(d, k)}" for k, d in zip(taps, self.dilation, strict=True)]


def _times(number: int, letter: str) -> str:
    return letter if number == 1 else rf"{number} \, {letter}"


def _shift(sign: str, number: int) -> str:
    return f" {sign} {number}" if number else ""


# What a convolution does, whichever node made it -----------------------------------------------------------------


@dataclass(frozen=True)
class Convolution:
    """A convolution's setting: y = w * x, where `transposed` exchanges the sides of input and output."""

    sliding: Sliding
    groups: int
    transposed: bool

    @classmethod
    def of(cls, op: Any) -> Convolution:
        """The setting of an operation; arguments that its schema leaves out have their usual values."""
        size = tuple(op.weight.shape[2:])
        stride, dilation, padding = (
            _each_axis(op.arguments.get(name), default, len(size))
            for name, default in (("stride", 1), ("dilation", 1), ("padding", 0))
        )
        # `slow_conv_transpose2d` says that it is one by its name and by having an `output_padding`
        transposed = op.arguments.get("transposed", "output_padding" in op.arguments)
        return cls(Sliding(size, stride, dilation, padding), op.arguments.get("groups", 1), transposed)

    def turned(self) -> Convolution:
        """The way from the output back to the input."""
        return Convolution(self.sliding, self.groups, not self.transposed)

    def apply(self, x: Tensor, weight: Tensor, room: Sequence[int]) -> Tensor:
        """The convolution of `x` by `weight`, without a bias; `room` is the result's size along the places' axes."""
        x, w = self._grouped(x), self._by_group(weight)
        return (self._spread(x, w, room) if self.transposed else self._gather(x, w, room)).flatten(1, 2)

    def _gather(self, x: Tensor, w: Tensor, places: Sequence[int]) -> Tensor:
        page, terms = self.sliding.pad(x), x.new_zeros((*x.shape[:2], w.shape[1], *places), dtype=_wide(x))
        for k, window in self.sliding.slices(places):
            terms += torch.einsum("goc,ngc...->ngo...", w[k], page[window])
        return terms.to(x.dtype)

    def _spread(self, x: Tensor, w: Tensor, room: Sequence[int]) -> Tensor:
        channels = x.new_zeros((*x.shape[:2], w.shape[2], *x.shape[3:]), dtype=_wide(x))
        page = self.sliding.page(channels, room)
        for k, window in self.sliding.slices(x.shape[3:]):
            page[window] += torch.einsum("goc,ngo...->ngc...", w[k], x)
        return self.sliding.unpad(page).to(x.dtype)

    def weight_gradient(self, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        """d (g . apply(x, w)) / d w: for each kernel element, the products of what it brought together."""
        small, large = (x, g) if self.transposed else (g, x)
        page, small = self.sliding.pad(self._grouped(large)), self._grouped(small)
        gradient = torch.zeros_like(self._by_group(weight))
        for k, window in self.sliding.slices(small.shape[3:]):
            meeting = page[window].flatten(3)
            gradient[k] = torch.einsum("ngox,ngcx->goc", small.flatten(3), meeting)
        return gradient.reshape(weight.shape)

    def _grouped(self, t: Tensor) -> Tensor:
        return t.reshape(t.shape[0], self.groups, t.shape[1] // self.groups, *t.shape[2:])

    def _by_group(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.groups, weight.shape[0] // self.groups, *weight.shape[1:])


def _each_axis(setting: Any, default: int, axes: int) -> Index:
    """A setting for every axis; one number stands for all."""
    values = (default,) if setting is None else (setting,) if isinstance(setting, int) else tuple(setting)
    return values * axes if len(values) == 1 else values


def _wide(t: Tensor) -> torch.dtype:
    """The type to add up in: with half precision, a sum of many terms would be rounded after each."""
    return torch.promote_types(t.dtype, torch.float32)


def _x(op: Any) -> Tensor:
    found: Tensor = op.arguments[_Formulas(op).x]
    return found


def _input(op: Any, g: Tensor) -> Tensor:
    return Convolution.of(op).turned().apply(g, op.weight, _x(op).shape[2:])


def _weight(op: Any, g: Tensor) -> Tensor:
    return Convolution.of(op).weight_gradient(_x(op), g, op.weight)


def _bias(op: Any, g: Tensor) -> Tensor:
    return g.sum((0, *range(2, g.dim())))


# How it is written ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Formulas:
    """The formulas of a convolution: sample n, input channel c, output channel o, place (i, j), kernel element (u, v).

    Place i of the `slow` side meets place s i + d u - pad of the `fast` one. The slow side of a convolution is its
    output, that of a transposed one its input; the weight's first axis is the slow side's channel.
    """

    op: Any

    @property
    def setting(self) -> Convolution:
        return Convolution.of(self.op)

    @property
    def places(self) -> str:
        return PLACES[: len(self.setting.sliding.size)]

    @property
    def x(self) -> str:
        return "input" if "input" in self.op.arguments else "self"

    @property
    def taps(self) -> list[str]:
        sizes = self.setting.sliding.size
        return ["0" if size == 1 else letter for letter, size in zip(TAPS, sizes, strict=False)]

    @property
    def channels(self) -> tuple[str, str]:
        first, second = ("c", "o") if self.setting.transposed else ("o", "c")
        return first, second if self.op.weight.shape[1] > 1 else "0"

    def weight(self, name: str = "weight") -> str:
        return at(name, [*self.channels, *self.taps])

    def slow(self, name: str) -> str:
        return at(name, ["n", self.channels[0], *self.places])

    def fast(self, name: str) -> str:
        first, second = self.channels
        group, rest = _share(first, self.op.weight.shape[0] // self.setting.groups), second
        if self.setting.groups > 1:
            rest = _plus(_times(self.op.weight.shape[1], group), second)
        return at(name, ["n", rest, *self.setting.sliding.source(self.places, self.taps)])

    def of_input(self, name: str) -> str:
        return self.slow(name) if self.setting.transposed else self.fast(name)

    def of_output(self, name: str) -> str:
        return self.fast(name) if self.setting.transposed else self.slow(name)

    def to_slow(self, name: str, weight: str = "weight") -> str:
        ranges = zip([self.channels[1], *self.taps], self.op.weight.shape[1:], strict=True)
        return f"{_sums(ranges)}{self.weight(weight)} \\, {self.fast(name)}"

    def to_fast(self, name: str, weight: str = "weight") -> str:
        first, second = ("c", "o") if self.setting.transposed else ("o", "c")
        size, width = self.op.weight.shape[0] // self.setting.groups, self.op.weight.shape[1]
        channel = first if size > 1 else "0"
        if self.setting.groups > 1:
            channel = _plus(_times(size, _share(second, width)), channel)
        inner = "0" if width == 1 else rf"{second} \bmod {width}" if self.setting.groups > 1 else second
        met = at(name, ["n", channel, *self.setting.sliding.target(self.places, self.taps)])
        sums = _sums(zip([first, *self.taps], [size, *self.setting.sliding.size], strict=True))
        return f"{sums}{at(weight, [channel, inner, *self.taps])} \\, {met}"

    def forward(self, name: str, weight: str = "weight") -> str:
        return self.to_fast(name, weight) if self.setting.transposed else self.to_slow(name, weight)

    def equation(self) -> str:
        bias = "" if self.op.arguments.get("bias") is None else "{$bias}_{o} + "
        ranges = ", ".join(rf"0 \le {p} < {size}" for p, size in zip(self.places, self.op.out.shape[2:], strict=True))
        return rf"{at('out', 'no' + self.places)} = {bias}{self.forward(self.x)} \qquad ({ranges})"

    def where(self) -> str:
        return self.outside(self.x, self.setting.transposed).removeprefix(r", \quad ")

    def outside(self, name: str, quotients: bool = False) -> str:
        return rf", \quad ${name} \text{{ is 0 outside}}" if quotients or any(self.setting.sliding.padding) else ""

    def back(self, target: str, name: str, weight: str = "weight") -> str:
        way = self.to_slow if self.setting.transposed else self.to_fast
        outside = self.outside(name, not self.setting.transposed)
        return f"{at(target, 'nc' + self.places)} = {way(name, weight)}{outside}"

    def pairs(self, target: str, x: str, g: str) -> str:
        sums = rf"\sum_{{n,{','.join(self.places)}}} {self.of_output(g)} \, {self.of_input(x)}"
        return f"{self.weight(target)} = {sums}{self.outside(g) if self.setting.transposed else ''}"

    def upstream(self, target: str, g: str) -> str:
        return rf"{at(target, 'o')} = \sum_{{n,{','.join(self.places)}}} {at(g, 'no' + self.places)}"

    def by_input(self) -> str:
        return derivative(self.of_output("out"), self.of_input(self.x), self.weight())

    def by_weight(self) -> str:
        return derivative(self.of_output("out"), self.weight(), self.of_input(self.x))

    def by_bias(self) -> str:
        return derivative(at("out", "no" + self.places), "{$bias}_{o}", "1")


def _sums(ranges: Iterable[tuple[str, int]]) -> str:
    return "".join(rf"\sum_{{{letter}=0}}^{{{count - 1}}} " for letter, count in ranges if count != 1)


def _share(letter: str, count: int) -> str:
    """The group that a channel is in, of `count` channels each."""
    return letter if count == 1 else rf"\lfloor {letter} / {count} \rfloor"


def _plus(start: str, letter: str) -> str:
    return start if letter == "0" else f"{start} + {letter}"


def _input_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    """dy/dx is the weight by which the two places meet."""
    setting = Convolution.of(op)
    (n, o, *place), (m, c, *inside) = out_index, in_index
    group_o, group_c = o // (op.out.shape[1] // setting.groups), c // (_x(op).shape[1] // setting.groups)
    ends = (tuple(inside), tuple(place)) if setting.transposed else (tuple(place), tuple(inside))
    element = setting.sliding.element(*ends)
    if n != m or group_o != group_c or element is None:
        return None
    first, second = (c, o) if setting.transposed else (o, c)
    return Factor("weight", (first, second % op.weight.shape[1], *element))


def _weight_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    """dy/dw is the input element that this weight meets on its way to this output."""
    setting, x = Convolution.of(op), _x(op)
    (n, o, *place), (first, second, *element) = out_index, in_index
    other = first // (op.weight.shape[0] // setting.groups) * op.weight.shape[1] + second
    output, channel = (other, first) if setting.transposed else (first, other)
    way = setting.sliding.start if setting.transposed else setting.sliding.meeting
    met = way(tuple(place), tuple(element), x.shape[2:])
    return Factor(_Formulas(op).x, (n, channel, *met)) if met is not None and output == o else None


def _bias_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    return Factor(latex="1") if out_index[1] == in_index[0] else None


def _meetings(op: Any, operand: Tensor, words: str) -> Pattern | None:
    """Kernel elements and output places that meet an input place, in each sample, for each pair of channels."""
    if not real(op.out, operand, op.weight):
        return None
    setting, x = Convolution.of(op), _x(op)
    room, places = (op.out, x) if setting.transposed else (x, op.out)
    pairs = setting.sliding.meetings(room.shape[2:], places.shape[2:])
    nonzero = x.shape[0] * op.weight.shape[0] * op.weight.shape[1] * pairs
    return Pattern(words, (op.out.numel(), operand.numel()), nonzero)


def _wrt(x: str) -> dict[str, Wrt]:
    """The derivatives of a convolution whose input is called `x` in the schema."""
    return {
        x: Wrt(
            _input,
            lambda op: _Formulas(op).by_input(),
            lambda op: _Formulas(op).back("grad", "g"),
            "an output element is made of the input elements under its kernel alone, in its own sample and group",
            _input_factor,
            lambda op: _meetings(op, _x(op), "sparse Toeplitz, the kernel shifted from place to place"),
        ),
        "weight": Wrt(
            _weight,
            lambda op: _Formulas(op).by_weight(),
            lambda op: _Formulas(op).pairs("grad", x, "g"),
            "an output channel is made with its own weights alone, and a weight that meets the padding meets a 0",
            _weight_factor,
            lambda op: _meetings(op, op.weight, "sparse, each output channel with its own weights alone"),
        ),
        "bias": Wrt(
            _bias,
            lambda op: _Formulas(op).by_bias(),
            lambda op: _Formulas(op).upstream("grad", "g"),
            "output channel o has bias o alone added to it, at every place of every sample",
            _bias_factor,
            lambda op: product(axes(op.out.shape), [("1", op.bias.numel())]) if real(op.out, op.bias) else None,
        ),
    }


def _samples() -> list[Sample]:
    two, three = (randn(2, 4, 5, 6), randn(3, 4, 3, 2)), (randn(1, 2, 4, 3, 4), randn(3, 2, 2, 1, 3))
    grouped = (randn(2, 4, 5, 6), randn(6, 2, 3, 2), randn(6))
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
        sample(F.conv_transpose2d, randn(2, 4, 3, 2), randn(4, 3, 3, 2), randn(3), stride=2, padding=1),
        sample(
            F.conv_transpose2d,
            randn(2, 4, 3, 2),
            randn(4, 3, 3, 2),
            randn(6),
            stride=(3, 2),
            padding=(1, 0),
            output_padding=(2, 1),
            groups=2,
            dilation=2,
            note="groups, dilation, output padding",
        ),
        sample(F.conv_transpose2d, randn(0, 4, 3, 2), randn(4, 3, 3, 2), note="empty batch"),
        sample(F.conv_transpose3d, randn(1, 2, 2, 3, 2), randn(2, 3, 2, 1, 3), stride=2, padding=(1, 0, 1)),
    ]


SOURCE = (
    "derivatives.yaml: convolution. Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016, "
    "arXiv:1603.07285."
)

convolution = rule(
    "ConvolutionBackward0",
    calls=(),
    equation=lambda op: _Formulas(op).equation(),
    where=lambda op: _Formulas(op).where(),
    wrt=_wrt("input"),
    samples=_samples,
    source=SOURCE,
    remark="PyTorch's convolution does not flip the kernel: mathematicians call it a cross-correlation.",
)

ATEN, ONES = torch.ops.aten, (1, 1, 1)

convolution_kernel = rule(
    "SlowConv2DBackward0",
    "SlowConv3DBackward0",
    "SlowConvDilated2DBackward0",
    "SlowConvDilated3DBackward0",
    "SlowConvTranspose2DBackward0",
    "SlowConvTranspose3DBackward0",
    "MkldnnConvolutionBackward0",
    name="convolution_kernel",
    equation=lambda op: _Formulas(op).equation(),
    where=lambda op: _Formulas(op).where(),
    wrt=_wrt("self"),
    samples=lambda: [
        sample(ATEN.thnn_conv2d, randn(1, 2, 5, 4), randn(3, 2, 3, 2), (3, 2), randn(3), (2, 1), (1, 0)),
        sample(ATEN.slow_conv3d, randn(1, 2, 3, 4, 3), randn(3, 2, 2, 2, 1), (2, 2, 1), randn(3), ONES, ONES),
        sample(
            ATEN.slow_conv_dilated2d, randn(1, 2, 5, 6), randn(3, 2, 2, 2), (2, 2), randn(3), (1, 2), (1, 0), (3, 3)
        ),
        sample(
            ATEN.slow_conv_dilated3d, randn(1, 1, 3, 4, 3), randn(2, 1, 2, 2, 1), (2, 2, 1), randn(2), ONES, ONES, ONES
        ),
        sample(
            ATEN.slow_conv_transpose2d, randn(1, 2, 3, 2), randn(2, 3, 2, 2), (2, 2), randn(3), (2, 2), (1, 1), (1, 1)
        ),
        sample(ATEN.slow_conv_transpose3d, randn(1, 1, 2, 3, 2), randn(1, 2, 2, 2, 1), (2, 2, 1), randn(2), (2, 1, 1)),
    ],
    source=SOURCE,
    remark="One of PyTorch's kernels for a convolution, called by its own name.",
)

# Convolution of sequences in the order (time, batch, channel) ----------------------------------------------------


def _batch_first(op: Any) -> Applied:
    """conv_tbc's operands in the order of the other convolutions."""
    return Applied(
        {"self": op.self.permute(1, 2, 0), "weight": op.weight.permute(2, 1, 0), "padding": op.pad},
        (op.out.permute(1, 2, 0),),
    )


def _tbc_input_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    (time, n, o), (then, m, c) = out_index, in_index
    k = then - time + op.pad
    return Factor("weight", (k, c, o)) if n == m and 0 <= k < op.weight.shape[0] else None


def _tbc_weight_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    (time, n, own), (k, c, o) = out_index, in_index
    then = time + k - op.pad
    return Factor("self", (then, n, c)) if own == o and 0 <= then < op.self.shape[0] else None


def _tbc_met(op: Any) -> str:
    return at("self", [f"t + k{_shift('-', op.pad)}", "n", "c"])


conv_tbc = rule(
    "ConvTbcBackward0",
    equation=lambda op: rf"{{$out}}_{{t,n,o}} = {{$bias}}_{{o}} + \sum_{{k,c}} {{$weight}}_{{k,c,o}} \, {_tbc_met(op)}",
    where=r"$self \text{ is 0 outside}",
    wrt={
        "self": Wrt(
            lambda op, g: _input(_batch_first(op), g.permute(1, 2, 0)).permute(2, 0, 1),
            lambda op: derivative("{$out}_{t,n,o}", _tbc_met(op), "{$weight}_{k,c,o}"),
            lambda op: (
                rf"{{$grad}}_{{t,n,c}} = \sum_{{k,o}} {{$weight}}_{{k,c,o}} \, "
                rf"{{$g}}_{{t - k{_shift('+', op.pad)},n,o}}, \quad $g \text{{ is 0 outside}}"
            ),
            "an output element is made of the times under its kernel alone, in its own sample",
            _tbc_input_factor,
        ),
        "weight": Wrt(
            lambda op, g: _weight(_batch_first(op), g.permute(1, 2, 0)).permute(2, 1, 0),
            lambda op: derivative("{$out}_{t,n,o}", "{$weight}_{k,c,o}", _tbc_met(op)),
            lambda op: rf"{{$grad}}_{{k,c,o}} = \sum_{{t,n}} {{$g}}_{{t,n,o}} \, {_tbc_met(op)}",
            "an output channel is made with its own weights alone",
            _tbc_weight_factor,
        ),
        "bias": Wrt(
            lambda op, g: g.sum((0, 1)),
            derivative("{$out}_{t,n,o}", "{$bias}_{o}", "1"),
            r"{$grad}_{o} = \sum_{t,n} {$g}_{t,n,o}",
            "output channel o has bias o alone added to it",
            lambda op, out_index, in_index: Factor(latex="1") if out_index[2] == in_index[0] else None,
        ),
    },
    samples=lambda: [
        sample(torch.conv_tbc, randn(5, 2, 3), randn(2, 3, 4), randn(4)),
        sample(torch.conv_tbc, randn(5, 2, 3), randn(3, 3, 4), randn(4), 2, note="padding"),
    ],
)

# The way back of a convolution, itself differentiated (create_graph) ---------------------------------------------


def _backward_room(op: Any) -> Index:
    return tuple(op.grad_output.shape[2:])


def _sum_of(terms: Sequence[Tensor | None], like: Tensor) -> Tensor:
    return sum((term for term in terms if term is not None), torch.zeros_like(like))


def _twice_upstream(op: Any, gs: tuple[Tensor | None, ...]) -> Tensor:
    setting, (x, w, b) = Convolution.of(op), gs
    return _sum_of(
        [
            None if x is None else setting.apply(x, op.weight, _backward_room(op)),
            None if w is None else setting.apply(op.input, w, _backward_room(op)),
            None if b is None else b.reshape(-1, *(1 for _ in _backward_room(op))).expand_as(op.grad_output),
        ],
        op.grad_output,
    )


def _twice_input(op: Any, gs: tuple[Tensor | None, ...]) -> Tensor | None:
    if gs[1] is None:
        return None
    return Convolution.of(op).turned().apply(op.grad_output, gs[1], op.input.shape[2:])


def _twice_weight(op: Any, gs: tuple[Tensor | None, ...]) -> Tensor | None:
    return None if gs[0] is None else Convolution.of(op).weight_gradient(gs[0], op.grad_output, op.weight)


def _by_upstream(op: Any) -> str:
    """The three gradients by the upstream one."""
    f = _Formulas(op)
    by = f.of_output("grad_output")
    image, weight = (
        derivative(of, by, to) for of, to in ((f.of_input("out0"), f.weight()), (f.weight("out1"), f.of_input("input")))
    )
    return (
        rf"{image}, \quad {weight}, \quad {derivative('{$out2}_{o}', at('grad_output', 'no' + f.places), '1')}"
        + f.outside("input")
    )


def _upstream_twice(op: Any) -> str:
    """What comes back to the upstream gradient: the convolution of what came to each of its gradients."""
    f = _Formulas(op)
    total = rf"{f.forward('g0')} + {f.forward('input', 'g1')} + {{$g2}}_{{o}}"
    outside = "".join(f.outside(name, f.setting.transposed) for name in ("g0", "input"))
    return rf"{at('grad', 'no' + f.places)} = {total}{outside}"


def _second(x: Tensor, w: Tensor, b: Tensor, **settings: Any) -> Any:
    """The gradients of a convolution, as something to differentiate again."""
    return torch.autograd.grad(F.conv2d(x, w, b, **settings).sin().sum(), (x, w, b), create_graph=True)


convolution_backward = rule(
    "ConvolutionBackwardBackward0",
    equation=lambda op: (
        _Formulas(op).back("out0", "grad_output")
        + rf", \quad {_Formulas(op).pairs('out1', 'input', 'grad_output')}"
        + rf", \quad {_Formulas(op).upstream('out2', 'grad_output')}"
    ),
    wrt={
        "grad_output": Wrt(_twice_upstream, _by_upstream, _upstream_twice),
        "input": Wrt(
            _twice_input,
            lambda op: derivative(
                _Formulas(op).weight("out1"), _Formulas(op).of_input("input"), _Formulas(op).of_output("grad_output")
            ),
            lambda op: _Formulas(op).back("grad", "grad_output", "g1"),
            "the gradients of the input and the bias do not depend on the input",
        ),
        "weight": Wrt(
            _twice_weight,
            lambda op: derivative(
                _Formulas(op).of_input("out0"), _Formulas(op).weight(), _Formulas(op).of_output("grad_output")
            ),
            lambda op: _Formulas(op).pairs("grad", "g0", "grad_output") + _Formulas(op).outside("g0"),
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


def _patches(op: Any, picture: Sequence[int]) -> tuple[Sliding, Index]:
    """The sliding window of unfold and fold, and at how many places it stands along each axis of a picture."""
    sliding = Sliding(tuple(op.kernel_size), tuple(op.stride), tuple(op.dilation), tuple(op.padding))
    axes = zip(picture, sliding.size, sliding.stride, sliding.dilation, sliding.padding, strict=True)
    return sliding, tuple((size + 2 * pad - d * (k - 1) - 1) // s + 1 for size, k, s, d, pad in axes)


def _collect(op: Any, t: Tensor) -> Tensor:
    """im2col: the column of each place holds what lies under the kernel there."""
    sliding, places = _patches(op, t.shape[-2:])
    page = sliding.pad(t)
    columns = torch.stack([page[window] for _, window in sliding.slices(places)], -3)
    return columns.flatten(-4, -3).flatten(-2)


def _lay(op: Any, columns: Tensor, picture: Sequence[int]) -> Tensor:
    """col2im: put every column back where it came from, and add where they overlap."""
    sliding, places = _patches(op, picture)
    kernel = sliding.size[0] * sliding.size[1]
    cells = columns.reshape(*columns.shape[:-2], columns.shape[-2] // kernel, kernel, *places)
    page = sliding.page(cells.select(-3, 0), picture)
    for k, (_, window) in enumerate(sliding.slices(places)):
        page[window] += cells.select(-3, k)
    return sliding.unpad(page)


def _fold_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    """1 where column l's element (c, u, v) lies at this place of the picture."""
    sliding, places = _patches(op, op.output_size)
    (*lead, row, column), (*batch, channel, i, j) = in_index, out_index
    height, width = sliding.size
    c, k = divmod(row, height * width)
    met = sliding.meeting(divmod(column, places[1]), divmod(k, width), op.output_size)
    return Factor(latex="1") if lead == batch and c == channel and met == (i, j) else None


@dataclass(frozen=True)
class _Patches:
    """The formulas of patches: element (c, u, v) of patch (i, j) has its place in the columns row by row."""

    op: Any
    picture: str  # what the schema calls the picture
    columns: str

    @property
    def lead(self) -> str:
        return "n" if self.op.out.dim() + self.op.self.dim() == 7 else ""

    def pair(self, picture: str, columns: str) -> tuple[str, str, str]:
        shape = (self.op.self if self.picture == "self" else self.op.out).shape
        sliding, places = _patches(self.op, shape[-2:])
        (height, width), met = sliding.size, sliding.source("ij", "uv")
        row, column = f"{_times(height * width, 'c')} + {_times(width, 'u')} + v", f"{_times(places[1], 'i')} + j"
        counts = zip("uvij", (height, width, *places), strict=True)
        ranges = r" \qquad (" + ", ".join(rf"0 \le {letter} < {count}" for letter, count in counts) + ")"
        return at(picture, [*self.lead, "c", *met]), at(columns, [*self.lead, row, column]), ranges

    def local(self) -> str:
        picture, columns, ranges = self.pair(self.picture, self.columns)
        of, by = (columns, picture) if self.picture == "self" else (picture, columns)
        return derivative(of, by, "1") + ranges

    def cut(self, columns: str, picture: str) -> str:
        place, element, ranges = self.pair(picture, columns)
        return rf"{element} = {place}{ranges}, \quad ${picture} \text{{ is 0 outside}}"

    def laid(self, picture: str, columns: str) -> str:
        _, element, ranges = self.pair(picture, columns)
        met = _patches(self.op, (1, 1))[0].source("ij", "uv")
        pairs = rf"\sum_{{u,v,i,j}} [p = {met[0]}] \, [q = {met[1]}] \, {element}"
        return rf"{at(picture, [*self.lead, 'c', 'p', 'q'])} = {pairs}{ranges}"


im2col = moves(
    "Im2ColBackward0",
    name="im2col",
    equation=lambda op: _Patches(op, "self", "out").cut("out", "self"),
    local=lambda op: _Patches(op, "self", "out").local(),
    move=_collect,
    home=lambda op, g: _lay(op, g, op.self.shape[-2:]),
    product=lambda op: _Patches(op, "self", "out").laid("grad", "g"),
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
    equation=lambda op: _Patches(op, "out", "self").laid("out", "self"),
    wrt={
        "self": Wrt(
            _collect,
            lambda op: _Patches(op, "out", "self").local(),
            lambda op: _Patches(op, "out", "self").cut("grad", "g"),
            "an element of a patch is added to one place of the picture, or lies in the padding",
            _fold_factor,
        )
    },
    structure="linear",
    samples=lambda: [
        sample(F.fold, randn(2, 12, 8), (4, 5), (2, 2), padding=(1, 0), stride=(1, 2), dilation=(2, 1)),
        sample(F.fold, randn(1, 8, 9), (4, 4), 2, note="overlapping patches"),
        sample(F.fold, randn(4, 4), (4, 4), 2, stride=2, note="no batch axis"),
    ],
)
