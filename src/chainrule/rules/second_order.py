r"""Rules of the operations that a backward pass is made of, met when it is differentiated again (`create_graph=True`).

A gradient penalty, a Hessian-vector product or a meta-learning step runs the way back as a computation of its own. For
y = f(x) taken element by element that computation is x_bar = y_bar f'(x): linear in `grad_output`, with f' as its
derivative, and by x it has the second derivative, y_bar f''(x).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chainrule.rules import Kink, Rule, Sample, Wrt, elementwise, rule, sample
from chainrule.rules.activation import CORNER, GELU_CUBE, GELU_ROOT
from chainrule.rules.arithmetic import near, x

aten = torch.ops.aten
Latex = str | Callable[[Any], str]
Slope = Callable[[Any], Any]


def slope_rule(
    node: str,
    by: str,
    first: tuple[Latex, Slope],
    second: tuple[Latex, Slope],
    samples: Callable[[], Iterable[Sample]],
    **more: Any,
) -> Rule:
    """Register out = grad_output * f' from f' and f'', each as (LaTeX, code); `by` is what f' is told by."""

    def told(op: Any, latex: Latex) -> str:
        return latex(op) if callable(latex) else latex

    return elementwise(
        node,
        name=more.pop("name", ""),
        equation=lambda op: rf"$out = $grad_output \odot {told(op, first[0])}",
        derivative={
            "grad_output": first,
            by: (
                lambda op: "0" if told(op, second[0]) == "0" else rf"$grad_output \odot {told(op, second[0])}",
                lambda op: op.grad_output * second[1](op),
            ),
        },
        samples=samples,
        source=f"derivatives.yaml: {more.pop('entry')}; the product rule",
        accepts=lambda op: not op.grad_output.is_complex() and more.get("only", lambda op: True)(op),
        **{name: value for name, value in more.items() if name != "only"},
    )


def pairs(function: Callable[..., Any], *rest: Any, **keywords: Any) -> list[Sample]:
    """Samples of an upstream gradient and a point: vectors, size 1, empty."""
    points = (x(*CORNER), x(0.3), x(shape=(0, 2)))
    return [
        sample(function, (0.5 * point + 1).detach().requires_grad_(), point, *rest, note=note, **keywords)
        for point, note in zip(points, ("", "size 1", "empty"), strict=True)
    ]


tanh_backward = slope_rule(
    "TanhBackwardBackward0",
    "output",
    (r"\left(1 - \left($output\right)^{2}\right)", lambda op: 1 - op.output**2),
    (r"\left(-2 \, $output\right)", lambda op: -2 * op.output),
    lambda: pairs(aten.tanh_backward),
    entry="tanh_backward",
)

sigmoid_backward = slope_rule(
    "SigmoidBackwardBackward0",
    "output",
    (r"\left($output \odot \left(1 - $output\right)\right)", lambda op: op.output * (1 - op.output)),
    (r"\left(1 - 2 \, $output\right)", lambda op: 1 - 2 * op.output),
    lambda: pairs(aten.sigmoid_backward),
    entry="sigmoid_backward",
)


def _nothing(op: Any) -> Tensor:
    return torch.zeros_like(op.self)


threshold_backward = slope_rule(
    "ThresholdBackwardBackward0",
    "self",
    (r"\left[$self > $threshold\right]", lambda op: ~(op.self <= op.threshold)),
    ("0", _nothing),
    lambda: pairs(aten.threshold_backward, 0.0),
    entry="threshold_backward (the way back of ReLU too)",
    kink=Kink(
        lambda op, radius: near(op.self, op.threshold, radius=radius),
        "the slope jumps at the threshold; PyTorch takes 0 for its derivative there",
    ),
)

leaky_relu_backward = slope_rule(
    "LeakyReluBackwardBackward0",
    "self",
    (
        r"\left[$self > 0 \text{ ? } 1 : $negative_slope\right]",
        lambda op: torch.where(op.self > 0, 1.0, op.negative_slope).to(op.self.dtype),
    ),
    ("0", _nothing),
    lambda: pairs(aten.leaky_relu_backward, 0.2, False),
    entry="leaky_relu_backward",
    kink=Kink(lambda op, radius: near(op.self, 0, radius=radius), "the slope jumps at 0; PyTorch takes 0 there"),
)

hardtanh_backward = slope_rule(
    "HardtanhBackwardBackward0",
    "self",
    (r"\left[$min_val < $self < $max_val\right]", lambda op: (op.self > op.min_val) & (op.self < op.max_val)),
    ("0", _nothing),
    lambda: pairs(aten.hardtanh_backward, -1.0, 1.0),
    entry="hardtanh_backward",
    kink=Kink(
        lambda op, radius: near(op.self, op.min_val, op.max_val, radius=radius),
        "the slope jumps at each bound; PyTorch takes 0 there",
    ),
)


def _steep(op: Any) -> Tensor:
    """sigma(beta x), and 1 past the threshold, where softplus is taken as a straight line."""
    return torch.where(op.beta * op.self > op.threshold, 1.0, (op.beta * op.self).sigmoid())


softplus_backward = slope_rule(
    "SoftplusBackwardBackward0",
    "self",
    (r"\sigma\left($beta \, $self\right)", _steep),
    (
        r"\left($beta \, \sigma \odot (1 - \sigma)\right), \; \sigma = \sigma\left($beta \, $self\right)",
        lambda op: op.beta * _steep(op) * (1 - _steep(op)),
    ),
    lambda: pairs(aten.softplus_backward, 1.5, 20.0),
    entry="softplus_backward",
)


def _density(z: Tensor) -> Tensor:
    return (-0.5 * z * z).exp() / math.sqrt(2 * math.pi)


gelu_backward = slope_rule(
    "GeluBackwardBackward0",
    "self",
    (
        r"\left(\Phi($self) + $self \odot \varphi($self)\right)",
        lambda op: 0.5 * (1 + torch.erf(op.self / math.sqrt(2))) + op.self * _density(op.self),
    ),
    (
        r"\left(\varphi($self) \odot \left(2 - \left($self\right)^{2}\right)\right)",
        lambda op: _density(op.self) * (2 - op.self**2),
    ),
    lambda: pairs(aten.gelu_backward),
    entry="gelu_backward",
    only=lambda op: op.arguments.get("approximate", "none") == "none",
)


def _gelu_parts(op: Any) -> tuple[Tensor, Tensor, Tensor]:
    """tanh u, u' and u'' of u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    z = op.self
    inner = torch.tanh(GELU_ROOT * (z + GELU_CUBE * z**3))
    return inner, GELU_ROOT * (1 + 3 * GELU_CUBE * z**2), 6 * GELU_ROOT * GELU_CUBE * z


def _gelu_tanh_slope(op: Any) -> Any:
    t, u1, _ = _gelu_parts(op)
    return 0.5 * (1 + t) + 0.5 * op.self * (1 - t**2) * u1


def _gelu_tanh_curvature(op: Any) -> Any:
    t, u1, u2 = _gelu_parts(op)
    return (1 - t**2) * (u1 + 0.5 * op.self * (u2 - 2 * t * u1**2))


gelu_tanh_backward = slope_rule(
    "GeluBackwardBackward0",
    "self",
    (r"\tfrac{1}{2} \left(1 + \tanh u + $self \odot \left(1 - \tanh^2 u\right) \odot u'\right)", _gelu_tanh_slope),
    (
        r"\left(1 - \tanh^2 u\right) \odot "
        r"\left(u' + \tfrac{1}{2} \, $self \odot \left(u'' - 2 \tanh u \left(u'\right)^{2}\right)\right)",
        _gelu_tanh_curvature,
    ),
    lambda: pairs(aten.gelu_backward, approximate="tanh"),
    name="gelu_tanh_backward",
    entry="gelu_backward, the approximation by tanh",
    only=lambda op: op.arguments.get("approximate", "none") == "tanh",
)


def _squares(op: Any) -> float:
    return 2 / max(op.self.numel(), 1) if op.reduction == 1 else 2.0


def _two(op: Any) -> str:
    return rf"\frac{{2}}{{{op.self.numel()}}}" if op.reduction == 1 else "2"


mse_loss_backward = elementwise(
    "MseLossBackwardBackward0",
    equation=lambda op: rf"$out = {_two(op)} \, $grad_output \odot \left($self - $target\right)",
    derivative={
        "grad_output": (
            lambda op: rf"{_two(op)} \left($self - $target\right)",
            lambda op: _squares(op) * (op.self - op.target),
        ),
        "self": (lambda op: rf"{_two(op)} \, $grad_output", lambda op: _squares(op) * op.grad_output),
        "target": (lambda op: rf"-{_two(op)} \, $grad_output", lambda op: -_squares(op) * op.grad_output),
    },
    samples=lambda: [
        sample(aten.mse_loss_backward, x(0.5, shape=()), x(1.0, 2.0), x(0.0, 4.0), 1, note="mean"),
        sample(aten.mse_loss_backward, x(0.5, shape=()), x(1.0, 2.0), x(0.0, 4.0), 2, note="sum"),
        sample(aten.mse_loss_backward, x(0.5, 2.0), x(1.0, 2.0), x(0.0, 4.0), 0, note="none"),
    ],
    source="derivatives.yaml: mse_loss_backward",
)

native_dropout_backward = elementwise(
    "NativeDropoutBackwardBackward0",
    equation=r"$out = $scale \, $mask \odot $grad_output",
    derivative={"grad_output": (r"$scale \, $mask", lambda op: op.mask * op.scale)},
    samples=lambda: [sample(aten.native_dropout_backward, x(0.5, 2.0), torch.tensor([True, False]), 1.25)],
    source="derivatives.yaml: native_dropout_backward",
    constants={"mask": "not differentiable"},
)


def _inner(a: Tensor, b: Tensor, dim: int) -> Tensor:
    return (a * b).sum(dim, keepdim=True)


def _softmax_by_output(op: Any, g: Tensor) -> Tensor:
    own: Tensor = op.grad_output * (g - _inner(g, op.output, op.dim))
    return own - g * _inner(op.grad_output, op.output, op.dim)


def softmaxes(function: Callable[..., Any], values: Tensor) -> list[Sample]:
    """Samples along either axis; `values` are the outputs of the forward operation."""
    g = x(0.5, 2.0, -1.0, 0.25, shape=(2, 2))
    return [sample(function, g, values.detach().requires_grad_(), dim, values.dtype) for dim in (0, 1)]


OWN_LINE = "only elements on the same line, along the axis of the softmax, meet"

softmax_backward = rule(
    "SoftmaxBackwardDataBackward0",
    equation=r"$out = $output \odot \left($grad_output - \sum_{\text{dim $dim}} $grad_output \odot $output\right)",
    wrt={
        "grad_output": Wrt(
            lambda op, g: op.output * (g - _inner(g, op.output, op.dim)),
            r"{$output}_i \left(\delta_{ij} - {$output}_j\right)",
            r"$output \odot \left($g - \sum_{\text{dim $dim}} $g \odot $output\right)",
            OWN_LINE,
        ),
        "output": Wrt(
            _softmax_by_output,
            r"\delta_{ij} \left({$grad_output}_i - \sum_k {$grad_output}_k {$output}_k\right) - "
            r"{$output}_i {$grad_output}_j",
            r"$g \odot \left($grad_output - \sum_{\text{dim $dim}} $grad_output \odot $output\right) - "
            r"$grad_output \odot \sum_{\text{dim $dim}} $g \odot $output",
            OWN_LINE,
        ),
    },
    samples=lambda: softmaxes(aten._softmax_backward_data, x(1.0, 2.0, 0.5, -1.0, shape=(2, 2)).softmax(1)),
    source="derivatives.yaml: _softmax_backward_data",
)

log_softmax_backward = rule(
    "LogSoftmaxBackwardDataBackward0",
    equation=r"$out = $grad_output - e^{$output} \odot \sum_{\text{dim $dim}} $grad_output",
    wrt={
        "grad_output": Wrt(
            lambda op, g: g - _inner(g, op.output.exp(), op.dim),
            r"\delta_{ij} - e^{{$output}_i}",
            r"$g - \sum_{\text{dim $dim}} $g \odot e^{$output}",
            OWN_LINE,
        ),
        "output": Wrt(
            lambda op, g: -g * op.output.exp() * op.grad_output.sum(op.dim, keepdim=True),
            r"-e^{$output} \sum_{\text{dim $dim}} $grad_output",
            r"-$g \odot e^{$output} \odot \sum_{\text{dim $dim}} $grad_output",
            OWN_LINE,
        ),
    },
    samples=lambda: softmaxes(aten._log_softmax_backward_data, x(1.0, 2.0, 0.5, -1.0, shape=(2, 2)).log_softmax(1)),
    source="derivatives.yaml: _log_softmax_backward_data",
)

nll_loss_backward = rule(
    "NllLossBackwardBackward0",
    equation=r"{$out}_{n c} = -w_c \, {$grad_output}_n \left[c = {$target}_n\right], \text{ as the loss is reduced}",
    wrt={
        "grad_output": Wrt(
            lambda op, g: F.nll_loss(
                g, op.target, op.weight, ignore_index=op.ignore_index, reduction=("none", "mean", "sum")[op.reduction]
            ),
            r"-w_c \left[c = {$target}_n\right]",
            r"-\sum w \, {$g}_{n, {$target}_n}",
            "only the log-probability of the sample's own class counts",
        ),
        "self": Wrt(lambda op, g: torch.zeros_like(op.self), "0", "0", "the loss is linear in the log-probabilities"),
    },
    constants={"target": "not differentiable", "weight": "not differentiable", "total_weight": "not differentiable"},
    samples=lambda: [
        sample(aten.nll_loss_backward, x(0.5, shape=()), _scores(), _classes(), None, 1, -100, torch.tensor(2.0)),
        sample(aten.nll_loss_backward, x(0.5, 1.0), _scores(), _classes(), None, 0, -100, torch.tensor(0.0)),
    ],
    source="derivatives.yaml: nll_loss_backward",
)


def _scores() -> Tensor:
    return x(1.0, 2.0, 0.5, -1.0, shape=(2, 2))


def _classes() -> Tensor:
    return torch.tensor([1, 0])


def _put_back(node: str, take: Callable[[Any, Tensor], Tensor], what: str, samples: Callable[[], list[Sample]]) -> Rule:
    """Register the way back of a view: a gradient put into zeros where the view was taken, so taken out again."""
    return rule(
        node,
        equation=rf"$out = $grad_output \text{{ put into zeros as {what}}}",
        wrt={
            "grad_output": Wrt(
                take, "1", rf"\text{{{what} of }} $g", "each element is put in one place, and the rest is zero"
            )
        },
        structure="linear",
        samples=samples,
        source=f"derivatives.yaml: {what.split()[-1]}_backward",
    )


select_backward = _put_back(
    "SelectBackwardBackward0",
    lambda op, g: g.select(op.dim, op.index),
    "the select",
    lambda: [sample(aten.select_backward, x(1.0, 2.0), [3, 2], 0, 1)],
)
slice_backward = _put_back(
    "SliceBackwardBackward0",
    lambda op, g: g[(slice(None),) * (op.dim % g.dim()) + (slice(op.start, op.end, op.step),)],
    "the slice",
    lambda: [sample(aten.slice_backward, x(1.0, 2.0), [5], 0, 1, 5, 2)],
)
diagonal_backward = _put_back(
    "DiagonalBackwardBackward0",
    lambda op, g: g.diagonal(op.offset, op.dim1, op.dim2),
    "the diagonal",
    lambda: [sample(aten.diagonal_backward, x(1.0, 2.0), [2, 3], 1, 0, 1)],
)


embedding_backward = rule(
    "EmbeddingDenseBackwardBackward0",
    equation=r"{$out}_v = \sum_{n: \, {$indices}_n = v} {$grad_output}_n",
    wrt={
        "grad_output": Wrt(
            lambda op, g: torch.where((op.indices == op.padding_idx).unsqueeze(-1), 0, g[op.indices]),
            r"\left[{$indices}_n = v\right]",
            r"{$g}_{{$indices}_n}",
            "a row is added to the row of its own token alone, and to none for padding",
        )
    },
    constants={"indices": "not differentiable"},
    structure="linear",
    samples=lambda: [
        sample(
            aten.embedding_dense_backward, x(1.0, 2.0, 3.0, shape=(3, 1)), torch.tensor([2, 0, 2]), 4, padding, False
        )
        for padding in (-1, 0)
    ],
    # PyTorch's second derivative leaves the scale by frequency out.
    accepts=lambda op: not op.scale_grad_by_freq,
    source="derivatives.yaml: embedding_dense_backward",
)
