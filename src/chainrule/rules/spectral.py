r"""Rules of Fourier transforms, and of the overlapping sums that an inverse short-time transform ends with.

All are linear, so going back is the adjoint map: the transform with the opposite sign in its exponent, and the same
factor in front. What is special is what a real signal saves. A one-sided transform leaves out the frequencies that
mirror others (their gradient is 0), and its inverse reads each of the others twice (their gradient counts twice).

Normalisation is PyTorch's number: 0 none, 1 one over the root of the number of elements, 2 one over that number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Rule, Wrt, derivative, rule, sample
from chainrule.rules import at as element
from chainrule.rules.index_notation import OTHERS, Side, Statements, Term, filled, letters, places, position, runs
from chainrule.rules.linalg import randn as x


def transform(t: Tensor, dims: list[int], forward: bool) -> Tensor:
    """The sum over each axis with e^(-2 pi i k n / N), or with the opposite sign; nothing is divided."""
    if not dims or not t.numel():
        return t
    function, norm = (torch.fft.fftn, "backward") if forward else (torch.fft.ifftn, "forward")
    transformed: Tensor = function(t, dim=dims, norm=norm)
    return transformed


def scale(op: Any, signal: Tensor) -> float:
    """The factor in front, from the lengths of the full signal."""
    count = math.prod(signal.shape[dim] for dim in op.dim)
    return 1.0 if op.normalization == 0 or not count else 1 / math.sqrt(count) if op.normalization == 1 else 1 / count


def _formula(text: str, full: str) -> Callable[[Any], str]:
    """A formula with its words filled in.

    OUT, G are elements at the frequencies i, j, ..., SELF, GRAD at other ones, OVER, THERE the letters that differ;
    TURN is e^(2 pi i ...) of both, SCALE the factor in front, and LAST the last letter of SELF, on an axis of SIZE.
    `full` names the tensor that is the whole signal.
    """

    def formula(op: Any) -> str:
        signal = op.self if full == "self" else op.out
        own = letters(op.self)
        dims = [dim % op.self.dim() for dim in op.dim]
        other = [OTHERS[axis] if axis in dims else letter for axis, letter in enumerate(own)]
        count = math.prod(signal.shape[dim] for dim in dims)
        angle = " + ".join(rf"\frac{{{own[dim]} {other[dim]}}}{{{signal.shape[dim]}}}" for dim in dims)
        words = {
            **{name.upper(): element(name, own) for name in ("out", "g")},
            **{name.upper(): element(name, other) for name in ("self", "grad")},
            "OVER": ", ".join(other[dim] for dim in dims),
            "THERE": ", ".join(own[dim] for dim in dims),
            "TURN": rf"e^{{2 \pi \mathrm{{i}} \left({angle}\right)}}",
            "BACK": rf"e^{{-2 \pi \mathrm{{i}} \left({angle}\right)}}",
            "SCALE": {0: "", 1: rf"\frac{{1}}{{\sqrt{{{count}}}}} ", 2: rf"\frac{{1}}{{{count}}} "}[op.normalization],
            "LAST": other[dims[-1]],
            "SIZE": str(signal.shape[dims[-1]]),
        }
        return filled(text, words)

    return formula


OWN_LINE = "only elements on the same line, along the transformed axes, meet"


def fourier(
    node: str, vjp: Callable[[Any, Tensor], Tensor], equation: str, local: str, product: str, full: str, **more: Any
) -> Rule:
    """Register a transform. TURN and BACK change places where it is not `forward`, for those that go either way."""

    def formula(text: str) -> Callable[[Any], str]:
        swapped = text.replace("TURN", "BACK_").replace("BACK", "TURN").replace("TURN_", "BACK")
        return lambda op: _formula(text if op.arguments.get("forward", True) else swapped, full)(op)

    wrt = {"self": Wrt(vjp, formula(derivative("OUT", "SELF", local)), formula(f"GRAD = {product}"), OWN_LINE)}
    return rule(node, equation=formula(f"OUT = {equation}"), wrt=wrt, structure="linear", **more)


fft_c2c = fourier(
    "FftC2CBackward0",
    lambda op, g: scale(op, op.self) * transform(g, op.dim, not op.forward),
    r"SCALE \sum_{OVER} SELF \, BACK",
    "SCALE BACK",
    r"SCALE \sum_{THERE} G \, TURN",
    "self",
    name="fft_c2c",
    samples=lambda: [
        sample(torch.fft.fft, x(4, complex_=True)),
        sample(torch.fft.ifft, x(3, complex_=True), note="inverse"),
        sample(torch.fft.fft2, x(2, 3, 2, complex_=True), norm="ortho", note="two axes, by the root"),
        sample(torch.fft.fft, x(1, complex_=True), note="size 1"),
    ],
    source="derivatives.yaml: _fft_c2c. The adjoint of a sum of e^(-2 pi i k n / N) has e^(+2 pi i k n / N).",
)


def _fft_r2c(op: Any, g: Tensor) -> Tensor:
    last = op.dim[-1]
    full = g.new_zeros([*op.self.shape])
    full.narrow(last, 0, g.shape[last]).copy_(g)  # the frequencies that were left out got no gradient
    return scale(op, op.self) * transform(full, op.dim, False).real


fft_r2c = fourier(
    "FftR2CBackward0",
    _fft_r2c,
    r"SCALE \sum_{OVER} SELF \, BACK",
    "SCALE BACK",
    r"SCALE \operatorname{Re} \left(\sum_{THERE} G \, TURN\right)",
    "self",
    name="fft_r2c",
    samples=lambda: [
        sample(torch.fft.rfft, x(4)),
        sample(torch.fft.rfft, x(2, 5), norm="ortho", note="odd length, by the root"),
        sample(torch.fft.rfftn, x(2, 3, 4), dim=(0, 2), note="two axes"),
        sample(torch.fft.fft, x(4), note="both sides"),
        sample(torch.fft.ihfft, x(5), note="divided by the length"),
        sample(torch.fft.rfft, x(1), note="size 1"),
    ],
    source="derivatives.yaml: _fft_r2c. The input is real, so the real part of the adjoint.",
)


def _fft_c2r(op: Any, g: Tensor) -> Tensor:
    last = op.dim[-1]
    size = op.self.shape[last]
    gradient = transform(g, op.dim, True).narrow(last, 0, size).clone()
    gradient.narrow(last, 1, op.last_dim_size - size).mul_(2)  # each of these stands for its mirror image too
    return scale(op, op.out) * gradient


fft_c2r = fourier(
    "FftC2RBackward0",
    _fft_c2r,
    r"SCALE \sum_{OVER} C_{LAST} \operatorname{Re}\left(SELF \, TURN\right)",
    r"SCALE C_{LAST} \, BACK",
    r"SCALE C_{LAST} \sum_{THERE} G \, BACK",
    "out",
    name="fft_c2r",
    where=_formula("C_{v} = 1 + [0 < 2 v < SIZE]", "out"),  # a frequency with a mirror image stands for both
    samples=lambda: [
        sample(torch.fft.irfft, x(3, complex_=True)),
        sample(torch.fft.irfft, x(2, 3, complex_=True), n=5, norm="ortho", note="odd length, by the root"),
        sample(torch.fft.irfftn, x(2, 3, 3, complex_=True), dim=(0, 2), note="two axes"),
        sample(torch.fft.hfft, x(3, complex_=True), note="not divided"),
        sample(torch.fft.irfft, x(1, complex_=True), n=1, note="size 1"),
    ],
    source="derivatives.yaml: _fft_c2r. Frequencies 0 and N/2 are read once, and their imaginary parts not at all.",
    remark="The gradient of the imaginary part at frequency 0, and at N/2 where N is even, is 0.",
)


def _overlapping(op: Any) -> list[Term]:
    """Place s of window r is added to the place `step r + s` along `dim`; the places in a window are the last axis."""
    own, dim = places(op.out.shape), op.dim % op.out.dim()
    window = [*own[:dim], "r", *own[dim + 1 :], "s"]
    onto = [*own[:dim], position(["r", "s"], [op.step, 1]), *own[dim + 1 :]]
    shape = op.grad_in.shape
    return [Term(Side("out", op.out.shape, onto), Side("grad_in", shape, window), runs(window, shape), once=True)]


OVERLAPS = Statements(_overlapping, added=True)
overlap_add = rule(
    "UnfoldBackwardBackward0",
    name="overlap_add",
    equation=OVERLAPS.equation,
    wrt={
        "grad_in": OVERLAPS.wrt(
            "grad_in", lambda op, g: g.unfold(op.dim, op.size, op.step), "an element is added to one place alone"
        )
    },
    structure="linear",
    samples=lambda: [
        sample(torch.ops.aten.unfold_backward, x(3, 4), [8], 0, 4, 2),
        sample(torch.ops.aten.unfold_backward, x(2, 2, 3), [2, 6], 1, 3, 3, note="no overlap, second axis"),
    ],
    source="derivatives.yaml: unfold_backward. The way back of cutting out overlapping windows (istft).",
)
