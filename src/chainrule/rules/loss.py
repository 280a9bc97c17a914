r"""Rules of the losses that autograd knows as one operation, element by element; `class_losses` has those of classes.

A loss is one number for each sample (or element), then their mean or sum. So it is stated once, as the loss L of
each sample; `reducible` makes two rules of it: L itself, and the cost, whose `stages` are L and then its mean or sum,
so that going back reads dJ/dL = 1/m first and dL/dx next.

`l1_loss`, `kl_div`, and the hinge, ranking, cosine, Poisson, Gaussian and triplet losses run as several elementary
nodes in PyTorch: their rules are those of the nodes (`sub`, `abs`, `xlogy`, `clamp_min`, `mean`, ...). `cross_entropy`
is `log_softmax` and `nll_loss`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from functools import partial
from string import Template
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chainrule.errors import RuleError
from chainrule.rules import (
    Applied,
    Factor,
    Index,
    Kink,
    Latex,
    Rule,
    Sample,
    Stage,
    Wrt,
    at,
    derivative,
    elementwise_wrt,
    for_node,
    latex_of,
    number,
    parenthesise,
    rule,
    sample,
)
from chainrule.rules.element import Element, Elements, call
from chainrule.rules.element import of as element_of
from chainrule.rules.expression import PRODUCT, Expression, Named, X, argument, cases, choice, stated
from chainrule.rules.formula_functions import exp, ln, ln1p, sigma, sign, size

NONE, MEAN, SUM = 0, 1, 2  # at::Reduction

Divisor = Callable[[Any, Tensor], tuple[str, int | Tensor]]


# A loss of each sample, and what its mean or sum adds to it.


def count(op: Any, losses: Tensor) -> tuple[str, int | Tensor]:
    """What a mean divides by, as LaTeX and as a number: here how many losses there are."""
    return number(losses.numel()), losses.numel()


def reduction(op: Any) -> int | None:
    """How the losses become one cost: PyTorch's number in an operation, its word (by default "mean") in a call.

    None for a call that says it with the deprecated `size_average` or `reduce`.
    """
    if any(op.arguments.get(deprecated) is not None for deprecated in ("size_average", "reduce")):
        return None
    known = {NONE: NONE, MEAN: MEAN, SUM: SUM, "none": NONE, None: MEAN, "mean": MEAN, "sum": SUM}
    return known.get(op.arguments.get("reduction"))


def reducible(
    *nodes: str,
    name: str,
    loss: Latex,
    value: Callable[[Any], Tensor],
    wrt: Mapping[str, Wrt],
    samples: Callable[[], Iterable[Sample]],
    divisor: Divisor = count,
    element: Callable[[Elements, int, Index], Element | None] | None = None,
    places: Callable[[Any], list[str]] | None = None,
    **more: Any,
) -> Rule:
    """Register a loss with a `reduction`, from the loss of each sample alone; returns the rule of that.

    `loss` is its LaTeX and `value(op)` its code, `wrt` its derivatives; `divisor` is what the mean divides by. The
    cost J = sum(L) / d has x_bar = (J_bar / d) dL/dx, with d = 1 for a sum. Formulas of tensors hold for all samples at
    once; those of elements say the indices of a score in `places`.
    """

    def apart(op: Any) -> Applied:
        return Applied({**op.arguments, "reduction": NONE}, (value(op),), op.name)

    def whole(op: Any) -> str:
        # A leading minus reads better in front of the sum than behind it.
        sign, term = signed(latex_of(loss, op))
        mean = rf"\frac{{1}}{{{divisor(op, value(op))[0]}}} " if reduction(op) == MEAN else ""
        over = "" if more.get("structure") == "elementwise" else "_n"
        total = rf"\sum{over} " if places is None or len(places(op)) > 1 else ""
        return rf"$out = {sign}{mean}{total}{term}"

    def out(op: Any) -> str:
        return at("out", places(op)[:-1]) if places and reduction(op) == NONE else "$out"

    def placed(each: Wrt) -> Wrt:
        """The formulas of elements with their left sides."""
        if places is None:
            return each
        return replace(
            each,
            local=lambda op: derivative(out(op), at("self", places(op)), latex_of(each.local, op)),
            product=lambda op: f"{at('grad', places(op))} = {latex_of(each.product, op)}",
        )

    def stages(op: Any) -> list[Stage]:
        each = apart(op)
        divided_by = divisor(op, each.out)[1] if reduction(op) == MEAN else None
        if isinstance(divided_by, Tensor) and not divided_by:
            return []  # every sample is ignored: 0/0 has no way back through its parts
        return [Stage(per_sample, each, "L"), *reduction_stages(each.out, op.out, divided_by)]

    def registered(suffix: str, ways: Iterable[str], accepts: Container[int | None], **how: Any) -> Rule:
        return rule(
            *nodes,
            name=name + suffix,
            samples=lambda: [with_reduction(each, way) for each in samples() for way in ways],
            accepts=lambda op: reduction(op) in accepts,
            **{**more, **how},
        )

    # First, because where the operation is not looked at, a cost is the likelier meaning.
    registered(
        "_reduced",
        ("mean", "sum"),
        (MEAN, SUM),
        equation=whole,
        wrt={argument: placed(reduced_wrt(each, apart, divisor)) for argument, each in wrt.items()},
        stages=stages,
        structure="dense",
    )
    per_sample = registered(
        "",
        ("none",),
        (NONE,),
        equation=stated(loss) if isinstance(loss, Expression) else lambda op: f"{out(op)} = {latex_of(loss, op)}",
        wrt={argument: placed(each) for argument, each in wrt.items()},
        element=element,
    )
    return per_sample


def reduced_wrt(each: Wrt, apart: Callable[[Any], Applied], divisor: Divisor) -> Wrt:
    """The derivative of the cost, from that of the loss of each sample."""

    def vjp(op: Any, g: Tensor) -> Any:
        alone = apart(op)
        scale = g / divisor(op, alone.out)[1] if reduction(op) == MEAN else g
        return each.vjp(alone, scale.expand(alone.out.shape))

    def share(op: Any, latex: str) -> str:
        """1/d of a formula."""
        if reduction(op) != MEAN:
            return latex
        bottom, (sign, term) = divisor(op, apart(op).out)[0], signed(latex)
        whole = rf"\frac{{1}}{{{bottom}}} {term}"
        return sign + (whole if "frac" in latex else rf"\frac{{{term if sign else latex}}}{{{bottom}}}")

    def factor(op: Any, out_index: tuple[int, ...], in_index: tuple[int, ...]) -> Factor | None:
        named = each.factor(op, in_index, in_index) if each.factor else None
        return named and replace(named, latex=share(op, named.latex))

    return Wrt(
        vjp,
        local=lambda op: share(op, latex_of(each.local, op)),
        product=lambda op: times(r"$g \cdot", share(op, latex_of(each.local, op))),
        zeros=each.zeros and f"the cost is one number, so its Jacobian is one row; in dL/dx, {each.zeros}",
        factor=factor,
    )


def reduction_stages(losses: Tensor, cost: Tensor, divided_by: int | Tensor | None) -> list[Stage]:
    """From the losses L to the cost: a sum (divided by None), a mean, or a sum divided by the sum of the weights."""
    count, several = losses.numel(), losses.numel() > 1
    if divided_by is None:
        summed = applied("SumBackward0", cost, self=losses, dtype=None)
        return [replace(summed, remark=f"the sum of the {count} losses" * several)]
    if isinstance(divided_by, int):
        mean = applied("MeanBackward0", cost, self=losses, dtype=None)
        return [replace(mean, remark=f"the mean of the {count} losses" * several)]
    total = losses.sum()
    weighed = "S divided by the sum of the samples' weights; a sample that is ignored has the weight 0"
    return [
        replace(applied("SumBackward0", total, self=losses, dtype=None), symbol="S", remark="the sum of the losses"),
        replace(applied("DivBackward0", cost, self=total, other=divided_by.item()), remark=weighed),
    ]


def applied(node: str, out: Tensor, **arguments: Any) -> Stage:
    """A last stage: the rule of `node` on these arguments."""
    op = Applied(arguments, (out,), node)
    known = for_node(node, op)
    if known is None:
        raise RuleError(f"a loss is explained as a sum or a mean of its terms, but {node} has no rule. Register one.")
    return Stage(known, op, "")


def with_reduction(each: Sample, how: str) -> Sample:
    """The same sample with another `reduction`."""
    return replace(each, keywords={**each.keywords, "reduction": how}, note=f"{each.note} {how}".strip())


def signed(latex: str) -> tuple[str, str]:
    """The minus of a formula that is one term ("" where there is none), and the rest as a factor."""
    latex = parenthesise(latex)
    return ("-", latex[1:]) if latex.startswith("-") else ("", latex)


def times(factor: str, latex: str) -> str:
    """A factor in front of a formula, with the formula's minus in front of both."""
    sign, term = signed(latex)
    return f"{sign}{factor} {term}"


# Losses of one element each: l(x, y), and a weight that multiplies it.


def pointwise(*nodes: str, loss: Expression, derivative: Mapping[str, Expression] | Iterable[str], **more: Any) -> Rule:
    """Register a loss taken element by element: only l, and per argument its derivative, which may follow from l.

    Where the operation has a `weight`, it multiplies l and so each derivative.
    """
    if not isinstance(derivative, Mapping):
        derivative = {argument: loss.derivative(argument) for argument in derivative}
    return reducible(
        *nodes,
        loss=WEIGHT * loss,
        value=(WEIGHT * loss).run,
        wrt={
            argument: replace(
                elementwise_wrt(argument, loss, WEIGHT * local),
                zeros="each loss depends on its own element alone",
                factor=partial(at_element, WEIGHT * local),
            )
            for argument, local in derivative.items()
        },
        structure="elementwise",
        **more,
    )


def at_element(formula: Expression, op: Any, index: tuple[int, ...], in_index: tuple[int, ...]) -> Factor | None:
    """A formula of whole tensors, written for one element: each tensor's placeholder gets its index.

    `index` is that of the loss; a tensor that was broadcast has fewer axes, or axes of size 1. None where a cost is
    asked for an element of such a tensor, which entered several losses.
    """
    tensors = {name: each for name, each in op.arguments.items() if isinstance(each, Tensor)}
    if any(each.dim() > len(index) for each in tensors.values()):
        return None

    def subscript(tensor: Tensor) -> str:
        own = index[len(index) - tensor.dim() :]
        return ",".join(str(i if size > 1 else 0) for i, size in zip(own, tensor.shape, strict=True))

    elements = {name: f"{{${name}}}_{{{subscript(each)}}}" for name, each in tensors.items() if each.dim()}
    return Factor(latex=Template(formula(op)).safe_substitute(elements).replace(r"\odot", r"\cdot"))


def x(*shape: int, seed: int = 0) -> Tensor:
    """A sample input that wants a gradient."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def p(*shape: int, seed: int = 0) -> Tensor:
    """A sample input of probabilities that wants a gradient."""
    return x(*shape, seed=seed).detach().sigmoid().requires_grad_()


def weights() -> Tensor:
    """Sample weights of four classes."""
    return p(4, seed=1).detach()


def given(*values: Any) -> Tensor:
    """A sample input of these numbers."""
    return torch.tensor(values).requires_grad_()


def bits(*shape: int) -> Tensor:
    """Sample targets 0 and 1."""
    return (x(*shape, seed=7) > 0).to(torch.get_default_dtype())


WEIGHT, Y, BETA, DELTA = argument("weight", 1), argument("target"), argument("beta"), argument("delta")
Q = argument("pos_weight", 1)
CLASSES, PIXELS = torch.tensor([0, 2, 1]), torch.arange(12).reshape(2, 2, 3) % 4
ERROR = X - Y
# ln a, held above -100 as PyTorch holds it, so that 0 ln 0 counts as 0; and the denominator that it holds above 1e-12.
bounded_ln = Named(
    r"\ln @",
    lambda a: a.log().clamp(min=-100),
    spelled=lambda a: call("ln", math.log, a) if a.value > math.exp(-100) else element_of(-100),
)
bounded_spread = Named(r"@ \odot \left(1 - @\right)", lambda a: (a * (1 - a)).clamp(min=1e-12), (), PRODUCT)
# Each in one: the sigmoid of a large logit is 0 or 1, and the logarithm would be infinite.
ln_sigma = Named(r"\ln \sigma(@)", F.logsigmoid, (), PRODUCT)
ln_rest = Named(r"\ln\left(1 - \sigma(@)\right)", lambda z: F.logsigmoid(-z), (), PRODUCT)
clamp = Named(r"\operatorname{clamp}(@1, @2, @3)", torch.clamp)

binary_cross_entropy = pointwise(
    "BinaryCrossEntropyBackward0",
    name="binary_cross_entropy",
    loss=-(Y * bounded_ln(X) + (1 - Y) * bounded_ln(1 - X)),
    derivative={
        "self": (X - Y) / bounded_spread(X),
        # Not bounded, as in PyTorch: at 0 and 1 it is infinite, though the bounded loss grows by 100 there.
        "target": ln(1 - X) - ln(X),
    },
    constants={"weight": "not differentiable"},
    kink=Kink(
        where=lambda op, radius: (op.self <= radius) | (op.self >= 1 - radius),
        choice="the logarithms end at 0 and 1: PyTorch holds them above -100, and the denominator a(1 - a) above 1e-12",
    ),
    samples=lambda: [
        sample(F.binary_cross_entropy, p(2, 1), torch.tensor([[0.0], [1.0]]), note="one output"),
        sample(F.binary_cross_entropy, p(3, 4), p(3, 4, seed=1), note="soft targets"),
        sample(F.binary_cross_entropy, p(3, 4), bits(3, 4), weight=torch.tensor([1.0, 2.0, 0.5, 0.0]), note="weights"),
        sample(F.binary_cross_entropy, given(0.0, 1.0, 0.0, 1.0), torch.tensor([0.0, 1.0, 1.0, 0.0]), note="saturated"),
        sample(F.binary_cross_entropy, p(0, 1), bits(0, 1), note="empty"),
    ],
    source="derivatives.yaml: binary_cross_entropy; with L = -(y ln a + (1-y) ln(1-a)), dL/da = -y/a + (1-y)/(1-a)",
)

LOGITS = F.binary_cross_entropy_with_logits
binary_cross_entropy_with_logits = pointwise(
    "BinaryCrossEntropyWithLogitsBackward0",
    name="binary_cross_entropy_with_logits",
    loss=-(Q * Y * ln_sigma(X) + (1 - Y) * ln_rest(X)),
    derivative={
        "self": (Q * Y + 1 - Y) * sigma(X) - Q * Y,
        "target": choice(lambda op: -X if op.pos_weight is None else ln_sigma(-X) - Q * ln_sigma(X)),
    },
    constants={"weight": "not differentiable", "pos_weight": "not differentiable"},
    remark=(
        "the sigmoid is inside the loss, which PyTorch computes as max(z, 0) - z y + ln(1 + exp(-|z|)): nothing "
        "overflows and no logarithm meets 0. Going back, the a (1 - a) of the sigmoid cancels the 1 / (a (1 - a)) of "
        "the cross-entropy, so a - y is left; with a separate sigmoid these two are 0 and infinity where it saturates"
    ),
    samples=lambda: [
        sample(LOGITS, x(2, 1), torch.tensor([[0.0], [1.0]]), note="one output"),
        sample(LOGITS, x(3, 4), p(3, 4, seed=1), note="soft targets"),
        sample(LOGITS, x(3, 4), p(3, 4, seed=1), weight=p(3, 1, seed=2).detach(), pos_weight=weights(), note="weights"),
        sample(LOGITS, given(-800.0, 800.0, 0.0), torch.tensor([1.0, 0.0, 1.0]), note="large logits"),
    ],
    source="derivatives.yaml: binary_cross_entropy_with_logits; with a = s(z) and ds/dz = a(1-a), dL/dz = a - y",
)

HUBER = cases(ERROR**2 / (2 * BETA), size(ERROR) < BETA, size(ERROR) - BETA / 2)
SMOOTH = choice(lambda op: clamp(ERROR / BETA, -1, 1) if op.beta else sign(ERROR))
CLAMPED = clamp(ERROR, -DELTA, DELTA)

# fmt: off
for name, loss, slopes, samples, source, *fixed in (
    # name, l(x, y), its derivatives (or the arguments by which they follow), samples, source, arguments without one
    ("mse_loss", ERROR**2, ("self", "target"), lambda: [
        sample(F.mse_loss, x(3, 4), x(3, 4, seed=1)),
        sample(F.mse_loss, x(), x(seed=1), note="a single number"),
        sample(F.mse_loss, x(0, 4), x(0, 4), note="empty"),
    ], ""),
    ("smooth_l1_loss", choice(lambda op: HUBER if op.beta else size(ERROR)), {"self": SMOOTH, "target": -SMOOTH},
     lambda: [
        sample(F.smooth_l1_loss, x(3, 4), x(3, 4, seed=1)),
        sample(F.smooth_l1_loss, x(3, 4), x(3, 4, seed=1), beta=0.3, note="narrow"),
        sample(F.smooth_l1_loss, given(1.0, -1.0, 0.0), torch.zeros(3), note="at the bend"),
    ], "; Girshick, Fast R-CNN, ICCV 2015"),
    ("huber_loss", cases(ERROR**2 / 2, size(ERROR) < DELTA, DELTA * (size(ERROR) - DELTA / 2)),
     {"self": CLAMPED, "target": -CLAMPED}, lambda: [
        sample(F.huber_loss, x(3, 4), x(3, 4, seed=1)),
        sample(F.huber_loss, x(3, 4), x(3, 4, seed=1), delta=0.3, note="narrow"),
    ], "; Huber, Robust Estimation of a Location Parameter, Ann. Math. Stat. 35, 1964"),
    ("soft_margin_loss", ln1p(exp(-Y * X)), {"self": -Y / (1 + exp(Y * X))},
     lambda: [sample(F.soft_margin_loss, x(3, 4), 2 * bits(3, 4) - 1)], "", "target"),
):
    pointwise(
        f"{name.title().replace('_', '')}Backward0",
        name=name,
        loss=loss,
        derivative=slopes,
        constants=dict.fromkeys(fixed, "not differentiable"),
        samples=samples,
        source=f"derivatives.yaml: {name}{source}",
    )
# fmt: on
