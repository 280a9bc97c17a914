r"""Rules of the operations that a backward pass is made of, met when it is differentiated again (`create_graph=True`).

A gradient penalty, a Hessian-vector product or a meta-learning step runs the way back as a computation of its own. For
y = f(x) taken element by element that computation is x_bar = y_bar f'(x): linear in `grad_output`, with f' as its
derivative, and by x it has the second derivative, y_bar f''(x), which follows from the formula of f'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chainrule.rules import (
    Applied,
    Kink,
    Rule,
    Sample,
    Wrt,
    derivative,
    elementwise,
    for_node,
    latex_of,
    rule,
    sample,
    shape,
)
from chainrule.rules import activation as forward
from chainrule.rules.expression import Expression, X, argument, choice, of, symbol
from chainrule.rules.index_notation import Side, Statements, Term, places, runs
from chainrule.rules.loss import times
from chainrule.rules.pointwise import at, x

aten = torch.ops.aten
GRAD, OUTPUT, TARGET = argument("grad_output"), argument("output"), argument("target")


def pairs(function: Callable[..., Any], *rest: Any, **keywords: Any) -> list[Sample]:
    """Samples of an upstream gradient and a point: vectors, size 1, empty."""
    points = (x(*forward.CORNER), x(0.3), x(shape=(0, 2)))
    return [
        sample(function, (0.5 * point + 1).detach().requires_grad_(), point, *rest, note=note, **keywords)
        for point, note in zip(points, ("", "size 1", "empty"), strict=True)
    ]


def slope_rule(
    node: str,
    by: str,
    slope: Expression,
    samples: Callable[[], list[Sample]],
    entry: str,
    kink: Kink | None = None,
    name: str = "",
    only: Callable[[Any], bool] = lambda op: True,
) -> Rule:
    """Register out = grad_output * f' from f', a formula in the argument `by`."""
    return elementwise(
        f"{node}BackwardBackward0",
        name=name,
        equation=GRAD * slope,
        derivative={"grad_output": slope, by: GRAD * slope.derivative(by)},
        samples=samples,
        source=f"derivatives.yaml: {entry}; the product rule",
        kink=kink,
        accepts=lambda op: not op.grad_output.is_complex() and only(op),
    )


AT_THRESHOLD = "the slope jumps at the threshold; PyTorch takes 0 for its derivative there"
AT_BOUNDS = "the slope jumps at each bound; PyTorch takes 0 there"

# fmt: off
for row in (
    # node        by        f'                                samples, entry of derivatives.yaml, kink
    ("Tanh",      "output", 1 - OUTPUT**2,                    lambda: pairs(aten.tanh_backward), "tanh_backward"),
    ("Sigmoid",   "output", OUTPUT * (1 - OUTPUT),            lambda: pairs(aten.sigmoid_backward), "sigmoid_backward"),
    ("Threshold", "self",   forward.THRESHOLDED.derivative("self"), lambda: pairs(aten.threshold_backward, 0.0),
     "threshold_backward (the way back of ReLU too)", Kink(forward.near_to("threshold"), AT_THRESHOLD)),
    ("LeakyRelu", "self",   forward.LEAKY_SLOPE,                  lambda: pairs(aten.leaky_relu_backward, 0.2, False),
     "leaky_relu_backward", Kink(at(0), "the slope jumps at 0; PyTorch takes 0 there")),
    ("Hardtanh",  "self",   forward.HARDTANH_SLOPE,               lambda: pairs(aten.hardtanh_backward, -1.0, 1.0),
     "hardtanh_backward", Kink(forward.near_to("min_val", "max_val"), AT_BOUNDS)),
    ("Softplus",  "self",   forward.SOFTPLUS.derivative("self"),  lambda: pairs(aten.softplus_backward, 1.5, 20.0),
     "softplus_backward"),
    ("Gelu",      "self",   forward.GELU.derivative("self"),      lambda: pairs(aten.gelu_backward),
     "gelu_backward", None, "", forward.gelu_by("none")),
    ("Gelu",      "self",   forward.GELU_TANH.derivative("self"), lambda: pairs(aten.gelu_backward, approximate="tanh"),
     "gelu_backward, the approximation by tanh", None, "gelu_tanh_backward", forward.gelu_by("tanh")),
):
    slope_rule(*row)
# fmt: on


def _two(op: Any) -> Expression:
    """2, or 2/n where the loss is a mean: not in lowest terms, so that a reader sees the n."""
    n = max(op.self.numel(), 1)
    return symbol(rf"\frac{{2}}{{{n}}}", 2 / n) if op.reduction == 1 else of(2)


SHARE = choice(_two)

mse_loss_backward = elementwise(
    "MseLossBackwardBackward0",
    equation=SHARE * GRAD * (X - TARGET),
    derivative={"grad_output": SHARE * (X - TARGET), "self": SHARE * GRAD, "target": -SHARE * GRAD},
    samples=lambda: [
        sample(aten.mse_loss_backward, x(0.5, shape=()), x(1.0, 2.0), x(0.0, 4.0), 1, note="mean"),
        sample(aten.mse_loss_backward, x(0.5, shape=()), x(1.0, 2.0), x(0.0, 4.0), 2, note="sum"),
        sample(aten.mse_loss_backward, x(0.5, 2.0), x(1.0, 2.0), x(0.0, 4.0), 0, note="none"),
    ],
)

native_dropout_backward = elementwise(
    "NativeDropoutBackwardBackward0",
    equation=argument("scale") * argument("mask") * GRAD,
    derivative=("grad_output",),
    samples=lambda: [sample(aten.native_dropout_backward, x(0.5, 2.0), torch.tensor([True, False]), 1.25)],
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


ALONG = r" \quad \text{(along dim } $dim)"
OWN_LINE = "only elements on the same line, along the axis of the softmax, meet"

softmax_backward = rule(
    "SoftmaxBackwardDataBackward0",
    linear=("grad_output",),
    equation=r"{$out}_i = {$output}_i \, ({$grad_output}_i - \sum_j {$grad_output}_j \, {$output}_j)" + ALONG,
    wrt={
        "grad_output": Wrt(
            lambda op, g: op.output * (g - _inner(g, op.output, op.dim)),
            derivative("{$out}_i", "{$grad_output}_j", r"{$output}_i \, ([i = j] - {$output}_j)") + ALONG,
            r"$output \odot \left($g - \sum_j {$g}_j \, {$output}_j\right)" + ALONG,
            OWN_LINE,
        ),
        "output": Wrt(
            _softmax_by_output,
            derivative(
                "{$out}_i",
                "{$output}_j",
                r"[i = j] \, ({$grad_output}_i - \sum_k {$grad_output}_k \, {$output}_k) "
                r"- {$output}_i \, {$grad_output}_j",
            )
            + ALONG,
            r"$g \odot \left($grad_output - \sum_j {$grad_output}_j \, {$output}_j\right) - "
            r"$grad_output \, \sum_j {$g}_j \, {$output}_j" + ALONG,
            OWN_LINE,
        ),
    },
    samples=lambda: softmaxes(aten._softmax_backward_data, x(1.0, 2.0, 0.5, -1.0, shape=(2, 2)).softmax(1)),
    source="derivatives.yaml: _softmax_backward_data",
)

log_softmax_backward = rule(
    "LogSoftmaxBackwardDataBackward0",
    linear=("grad_output",),
    equation=r"{$out}_i = {$grad_output}_i - e^{{$output}_i} \, \sum_j {$grad_output}_j" + ALONG,
    wrt={
        "grad_output": Wrt(
            lambda op, g: g - _inner(g, op.output.exp(), op.dim),
            derivative("{$out}_i", "{$grad_output}_j", "[i = j] - e^{{$output}_i}") + ALONG,
            r"{$grad}_j = {$g}_j - \sum_i {$g}_i \, e^{{$output}_i}" + ALONG,
            OWN_LINE,
        ),
        "output": Wrt(
            lambda op, g: -g * op.output.exp() * op.grad_output.sum(op.dim, keepdim=True),
            derivative("{$out}_i", "{$output}_j", r"-[i = j] \, e^{{$output}_i} \, \sum_k {$grad_output}_k") + ALONG,
            r"-$g \odot e^{$output} \, \sum_j {$grad_output}_j" + ALONG,
            OWN_LINE,
        ),
    },
    samples=lambda: softmaxes(aten._log_softmax_backward_data, x(1.0, 2.0, 0.5, -1.0, shape=(2, 2)).log_softmax(1)),
    source="derivatives.yaml: _log_softmax_backward_data",
)


def _nll_slope(op: Any) -> str:
    """The derivative of the loss by the log-probabilities, minus signed."""
    forward_rule = for_node("NllLossBackward0", op)
    assert forward_rule is not None
    return latex_of(forward_rule.wrt["self"].local, op)


def _nll_back(op: Any) -> str:
    """The sum over the classes, and over the samples too where the loss is a single number."""
    over = r"\sum_n " if op.grad_output.dim() == 0 else ""
    return times(rf"{over}\sum_c $g \odot", _nll_slope(op))


nll_loss_backward = rule(
    "NllLossBackwardBackward0",
    linear=("grad_output",),
    equation=lambda op: "$out = " + times(r"$grad_output \odot", _nll_slope(op)),
    wrt={
        "grad_output": Wrt(
            lambda op, g: F.nll_loss(
                g, op.target, op.weight, ignore_index=op.ignore_index, reduction=("none", "mean", "sum")[op.reduction]
            ),
            _nll_slope,
            _nll_back,
            "only the log-probability of the sample's own class counts",
        ),
        "self": Wrt(lambda op, g: torch.zeros_like(op.self), "0", "0", "the loss is linear in the log-probabilities"),
    },
    constants={"target": "not differentiable", "weight": "not differentiable", "total_weight": "not differentiable"},
    samples=lambda: [
        sample(aten.nll_loss_backward, g, x(1, 2, 0.5, -1, shape=(2, 2)), torch.tensor([1, 0]), None, how, -100, total)
        for g, how, total in ((x(0.5, shape=()), 1, torch.tensor(2.0)), (x(0.5, 1.0), 0, torch.tensor(0.0)))
    ],
)


def put_back(name: str, view: dict[str, Any], *arguments: Any) -> Rule:
    """Register the way back of a view: it puts a gradient into zeros, where the view was."""

    def terms(op: Any) -> list[Term]:
        shape, at = op.grad_output.shape, places(op.grad_output.shape)
        origin = view["came"](Applied({**op.arguments, "self": op.out}, op.outs), at)
        into = Side("grad_output", shape, at)
        return [Term(Side("out", op.out.shape, origin), into, runs(at, shape), once=True)]

    statements = Statements(terms, added=True)
    return rule(
        f"{name.title()}BackwardBackward0",
        equation=statements.equation,
        wrt={
            "grad_output": statements.wrt(
                "grad_output", view["move"], "each element is put in one place, and the rest is zero"
            )
        },
        structure="linear",
        samples=lambda: [sample(getattr(aten, f"{name}_backward"), x(1.0, 2.0), *arguments)],
        source=f"derivatives.yaml: {name}_backward",
        topic="second_order",
    )


put_back("select", shape.SELECT, [3, 2], 0, 1)
put_back("slice", shape.SLICE, [5], 0, 1, 5, 2)
put_back("diagonal", shape.DIAGONAL, [2, 3], 1, 0, 1)


embedding_backward = rule(
    "EmbeddingDenseBackwardBackward0",
    equation=r"{$out}_{v,k} = \sum_{n: \, {$indices}_n = v \land v \neq $padding_idx} {$grad_output}_{n,k}",
    wrt={
        "grad_output": Wrt(
            lambda op, g: torch.where((op.indices == op.padding_idx).unsqueeze(-1), 0, g[op.indices]),
            derivative("{$out}_{v,k}", "{$grad_output}_{n,k}", r"[{$indices}_n = v \land v \neq $padding_idx]"),
            r"{$grad}_{n,k} = [{$indices}_n \neq $padding_idx] \, {$g}_{{$indices}_n, k}",
            "a row is added to the row of its own token alone, and to none for padding",
        )
    },
    constants={"indices": "not differentiable"},
    structure="linear",
    samples=lambda: [
        sample(aten.embedding_dense_backward, x(1, 2, 3, shape=(3, 1)), torch.tensor([2, 0, 2]), 4, padding, False)
        for padding in (-1, 0)
    ],
    # PyTorch's second derivative leaves the scale by frequency out.
    accepts=lambda op: not op.scale_grad_by_freq,
)
