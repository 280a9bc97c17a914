r"""Rules of Fourier transforms, and of the overlapping sums that an inverse short-time transform ends with.

All are linear, so going back is the adjoint map: the transform with the opposite sign in its exponent, and the same
factor in front. What is special is what a real signal saves. A one-sided transform leaves out the frequencies that
mirror others (their gradient is 0), and its inverse reads each of the others twice (their gradient counts twice).

Normalisation is PyTorch's number: 0 none, 1 one over the root of the number of elements, 2 one over that number.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Wrt, rule, sample


def x(*shape: int, complex_: bool = False) -> Tensor:
    """A sample input that wants a gradient; the same numbers each time."""
    dtype = torch.complex128 if complex_ else torch.float64
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


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


def _scale_latex(op: Any, signal: Tensor) -> str:
    count = math.prod(signal.shape[dim] for dim in op.dim)
    return {0: "", 1: rf"\frac{{1}}{{\sqrt{{{count}}}}} ", 2: rf"\frac{{1}}{{{count}}} "}[op.normalization]


def _exponent(op: Any, signal: Tensor, sign: str) -> str:
    turns = " + ".join(
        rf"\frac{{k_{{{dim}}} n_{{{dim}}}}}{{{signal.shape[dim]}}}" for dim in (each % signal.dim() for each in op.dim)
    )
    return rf"e^{{{sign}2 \pi i \left({turns}\right)}}"


def _sign(op: Any) -> tuple[str, str]:
    return ("-", "") if op.forward else ("", "-")


OWN_LINE = "only elements on the same line, along the transformed axes, meet"

fft_c2c = rule(
    "FftC2CBackward0",
    name="fft_c2c",
    equation=lambda op: (
        rf"{{$out}}_k = {_scale_latex(op, op.self)}\sum_n {{$self}}_n \, {_exponent(op, op.self, _sign(op)[0])}"
    ),
    wrt={
        "self": Wrt(
            lambda op, g: scale(op, op.self) * transform(g, op.dim, not op.forward),
            lambda op: _scale_latex(op, op.self) + _exponent(op, op.self, _sign(op)[0]),
            lambda op: rf"{_scale_latex(op, op.self)}\sum_k {{$g}}_k \, {_exponent(op, op.self, _sign(op)[1])}",
            OWN_LINE,
        )
    },
    structure="linear",
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


fft_r2c = rule(
    "FftR2CBackward0",
    name="fft_r2c",
    equation=lambda op: (
        rf"{{$out}}_k = {_scale_latex(op, op.self)}\sum_n {{$self}}_n \, {_exponent(op, op.self, '-')}"
        + (r" \quad \text{for } k \le N/2" if op.onesided else "")
    ),
    wrt={
        "self": Wrt(
            _fft_r2c,
            lambda op: _scale_latex(op, op.self) + _exponent(op, op.self, "-"),
            lambda op: rf"{_scale_latex(op, op.self)}\Re \sum_k {{$g}}_k \, {_exponent(op, op.self, '')}",
            OWN_LINE,
        )
    },
    structure="linear",
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


fft_c2r = rule(
    "FftC2RBackward0",
    name="fft_c2r",
    equation=lambda op: (
        rf"{{$out}}_k = {_scale_latex(op, op.out)}\sum_n {{$self}}_n \, {_exponent(op, op.out, '')}, \quad "
        r"{$self}_{N-n} = \overline{{$self}_n}"
    ),
    wrt={
        "self": Wrt(
            _fft_c2r,
            lambda op: _scale_latex(op, op.out) + _exponent(op, op.out, ""),
            lambda op: (
                rf"{_scale_latex(op, op.out)} c_n \sum_k {{$g}}_k \, {_exponent(op, op.out, '-')}, \quad "
                r"c_n = 2 \text{ where } n \text{ has a mirror image, else } 1"
            ),
            OWN_LINE,
        )
    },
    structure="linear",
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

overlap_add = rule(
    "UnfoldBackwardBackward0",
    name="overlap_add",
    equation=r"{$out}_m = \sum_{s, i: \, s \cdot $step + i = m} {$grad_in}_{s, i} \quad \text{along dim } $dim",
    wrt={
        "grad_in": Wrt(
            lambda op, g: g.unfold(op.dim, op.size, op.step),
            r"1 \text{ where } m = s \cdot $step + i",
            r"{$g}_{s \cdot $step + i}",
            "an element is added to one place alone",
        )
    },
    structure="linear",
    samples=lambda: [
        sample(torch.ops.aten.unfold_backward, x(3, 4), [8], 0, 4, 2),
        sample(torch.ops.aten.unfold_backward, x(2, 2, 3), [2, 6], 1, 3, 3, note="no overlap, second axis"),
    ],
    source="derivatives.yaml: unfold_backward. The way back of cutting out overlapping windows (istft).",
)
