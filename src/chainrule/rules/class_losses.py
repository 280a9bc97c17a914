r"""Rules of the losses of one sample each, over its classes: cross-entropies and margins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chainrule.rules import Applied, Entry, Factor, Index, Kink, Rule, Working, Wrt, number, sample
from chainrule.rules.element import Element, Elements, call, exps
from chainrule.rules.element import of as element_of
from chainrule.rules.element import total as total_of
from chainrule.rules.expression import PRODUCT, Expression, Named, X, argument, choice, let, meanings, symbol
from chainrule.rules.formula_functions import highest
from chainrule.rules.loss import CLASSES, PIXELS, Y, count, given, p, reducible, times, weights, x

# Losses of one sample each, over its classes: axis 1, or axis 0 where there is no batch. In their formulas \sum_c goes
# over the classes and \sum_n over the samples, and onehot(t) is 1 at the class t of each sample.


def class_axis(scores: Tensor) -> int:
    """Which axis of the scores holds the classes."""
    return min(scores.dim() - 1, 1)


def scores(op: Any) -> Tensor:
    """The score of each class of each sample; of a single class there may be the bare number."""
    row: Tensor = torch.atleast_1d(op.arguments.get("input", op.arguments.get("self")))
    return row


def along_classes(op: Any, t: Tensor) -> Tensor:
    """One number per sample in the layout of the scores: the class axis has size 1."""
    shape = list(scores(op).shape)
    shape[class_axis(scores(op))] = 1
    return t.reshape(shape)


def counted(op: Any) -> Tensor:
    """Which targets are not ignored."""
    counts: Tensor = op.target != op.arguments.get("ignore_index", -100)
    return counts


def own_class_weight(op: Any) -> Tensor:
    """w_y (or 1) for each sample, 0 where the target is ignored."""
    weight = op.arguments.get("weight")
    own = torch.ones_like(op.target, dtype=op.out.dtype) if weight is None else weight[op.target * counted(op)]
    return torch.where(counted(op), own, 0)


def onehot(op: Any) -> Tensor:
    """1 at the class of each sample; all zeros where the target is ignored."""
    known = along_classes(op, counted(op)).to(scores(op).dtype)
    own = along_classes(op, op.target * counted(op))
    return torch.zeros_like(scores(op)).scatter(class_axis(scores(op)), own, known)


def class_weight(op: Any) -> Tensor:
    """w_c, shaped to broadcast along the class axis."""
    weight: Tensor = op.weight.reshape(-1, *[1] * (scores(op).dim() - class_axis(scores(op)) - 1))
    return weight


def has_classes(op: Any) -> bool:
    """Whether the targets are class indices rather than probabilities."""
    return not op.target.is_floating_point()


def may_ignore(op: Any) -> bool:
    """Whether some targets are ignored; without their numbers, they may be."""
    return has_classes(op) and (bool(op.target.is_meta) or not bool(counted(op).all()))


def targets(op: Any) -> Expression:
    """W = w T: T is the distribution aimed at (the own class, smoothed; or given), with zeros where it is ignored.

    An ignored target that is no class, such as -100, has no 1 in onehot(t) anyway.
    """
    aim, classes = ONEHOT if has_classes(op) else Y, scores(op).shape[class_axis(scores(op))]
    smoothed, ignored = op.arguments.get("label_smoothing"), op.arguments.get("ignore_index", -100)
    if smoothed:
        aim = (1 - SMOOTHING) * aim + SMOOTHING / classes
    if (smoothed or 0 <= ignored < classes) and may_ignore(op):
        aim = symbol(rf"\left[$target \neq {ignored}\right]", lambda op: along_classes(op, counted(op))) * aim
    return aim if op.arguments.get("weight") is None else CLASS_WEIGHT * aim


def class_divisor(op: Any, losses: Tensor) -> tuple[str, int | Tensor]:
    """The sum of the targets' weights; without weights, or with probabilities as targets, the number of samples."""
    if not has_classes(op):
        return count(op, losses)
    if op.arguments.get("weight") is not None:
        plain = Applied({**op.arguments, "label_smoothing": 0.0}, op.outs)
        return rf"\sum_n \sum_c {TARGETS(plain)}", own_class_weight(op).sum()
    left = int(counted(op).sum())
    return number(left), left if left == losses.numel() else own_class_weight(op).sum()


def weighted(weights: Expression, each: Expression) -> Expression:
    """The sum over the classes of `each`, which may be infinite where its weight is 0."""
    return over_classes((weights * each).but(0, weights.equals(0)))


def of_classes(
    *nodes: str,
    loss: Expression,
    slopes: Mapping[str, tuple[Expression, str]],
    factor: Entry | None = None,
    selects: bool = True,
    **more: Any,
) -> Rule:
    """Register a loss of each sample over its classes: its formula, and its derivative by each argument.

    Beside each derivative stands why most of it is zero. `factor` names an entry of that by the scores. A loss that
    `selects` classes gives the others the gradient 0, even if an infinite one arrives.
    """

    def value(op: Any) -> Tensor:
        shape = list(scores(op).shape)
        del shape[class_axis(scores(op))]
        losses: Tensor = loss.run(op).reshape(op.target.shape if has_classes(op) else shape)
        return losses

    def wrt(argument: str, slope: Expression, zeros: str) -> Wrt:
        def vjp(op: Any, g: Tensor) -> Tensor:
            gradient: Tensor = along_classes(op, g) * (rate := slope.run(op))
            if selects or has_classes(op):
                # A sample that is ignored has the gradient 0 even where the mean divides by 0.
                gradient = torch.where(rate != 0 if selects else along_classes(op, counted(op)), gradient, 0)
            return gradient.reshape(op.arguments[argument].shape)

        named = None if argument == "target" else factor
        return Wrt(vjp, slope, lambda op: times(r"$g \odot", slope(op)), zeros, named)

    return reducible(
        *nodes,
        loss=replace(loss, run=value),
        value=value,
        wrt={argument: wrt(argument, *slope) for argument, slope in slopes.items()},
        where=partial(meanings, [loss, *(slope for slope, _ in slopes.values())]),
        **more,
    )


def own_class(op: Any, out_index: Index, in_index: Index) -> int | None:
    """The class of the sample that an element of the scores belongs to; None where it does not count in that output."""
    axis = class_axis(scores(op))
    own = in_index[:axis] + in_index[axis + 1 :]
    return int(op.target[own]) if out_index in (own, in_index) and bool(counted(op)[own]) else None


def nll_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    """-w_y (or -1) at the own class."""
    target = own_class(op, out_index, in_index)
    if target != in_index[class_axis(op.self)]:
        return None
    return Factor(latex="-1" if op.weight is None else f"-{{$weight}}_{{{target}}}")


def cross_entropy_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    """p_c, or p_y - 1 at the own class; with weights, smoothing or probabilities as targets there is no short name."""
    if not has_classes(op) or op.arguments.get("weight") is not None or op.arguments.get("label_smoothing"):
        return None
    target = own_class(op, out_index, in_index)
    minus_one = " - 1" if target == in_index[class_axis(op.input)] else ""
    named = f"{PROBABILITIES.text}_{{{','.join(map(str, in_index))}}}{minus_one}"
    return None if target is None else Factor(latex=named)


def cross_entropy_slope(op: Any) -> Expression:
    """dL/dz: the probabilities less the targets, since d ln p_k / dz_c = [k = c] - p_c."""
    sums_to_one = op.arguments.get("weight") is None and has_classes(op) and not may_ignore(op)
    return PROBABILITIES * (1 if sums_to_one else over_classes(TARGETS)) - TARGETS


def cross_entropy_target_slope(op: Any) -> Expression:
    """dL/dt, for targets that are probabilities."""
    kept = 1 - SMOOTHING if op.arguments.get("label_smoothing") else 1
    return -kept * (LN_PROBABILITIES if op.arguments.get("weight") is None else CLASS_WEIGHT * LN_PROBABILITIES)


def row(op: Elements, index: Index) -> tuple[list[Index], Index]:
    """The scores of a sample: their indices, and the sample's own."""
    shape = op.whole.arguments.get("input", op.whole.arguments.get("self")).shape
    axis, own = min(len(shape) - 1, 1), index[: len(shape) - 1]
    return [(*own[:axis], c, *own[axis:]) for c in range(shape[axis])] if shape else [()], own


def aims(op: Elements, index: Index) -> Iterator[tuple[Element, int, Index]]:
    """The classes that a sample is aimed at: how strongly, the class, and the index of its score."""
    whole, (places, _) = op.whole, row(op, index)
    rates, smoothed = TARGETS.run(whole), whole.arguments.get("label_smoothing")
    for c, place in enumerate(places):
        rate = rates.expand(scores(whole).shape)[place or (0,)].item()
        if not rate:
            continue
        if smoothed:
            yield element_of(rate), c, place
            continue
        aim = element_of(1) if has_classes(whole) else op.at("target", place)
        yield (aim if whole.weight is None else op.at("weight", (c,)) * aim), c, place


def nll_element(op: Elements, slot: int, index: Index) -> Element | None:
    """Minus the weighted log-probability of the class."""
    return None if slot else total_of(-(rate * op.at("self", place)) for rate, _, place in aims(op, index))


def cross_entropy_element(op: Elements, slot: int, index: Index) -> Element | None:
    """-ln p of the class, or the sum over the classes of -t ln p."""
    parts = [op.at("input", place) for place in row(op, index)[0]]
    powers, _ = exps(parts)
    whole = total_of(powers)
    return total_of(-(rate * call("ln", _ln, powers[c] / whole)) for rate, c, _ in aims(op, index))


def _ln(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def margin_element(op: Elements, slot: int, index: Index) -> Element | None:
    """The sum over the other classes of max(0, margin - s + x)^p, over the number of classes."""
    whole, (places, own) = op.whole, row(op, index)
    aim = int(whole.target.reshape(-1)[0] if whole.target.numel() == 1 else whole.target[own])
    parts = [op.at("self", place) for place in places]
    gaps = [call("max", max, 0, whole.margin - parts[aim] + x) ** whole.p for c, x in enumerate(parts) if c != aim]
    cost = total_of(gaps, keep=True) / len(parts)
    return cost if whole.weight is None else op.at("weight", (aim,)) * cost


def labels_element(op: Elements, slot: int, index: Index) -> Element | None:
    """The sum of max(0, 1 - x_j + x_i) over the listed classes j and the others i, over the number of classes."""
    whole, (places, own) = op.whole, row(op, index)
    pairs = real_pairs(whole)[own].nonzero().tolist() if own else real_pairs(whole).nonzero().tolist()
    listed = torch.atleast_1d(whole.target)[own].tolist() if own else torch.atleast_1d(whole.target).tolist()
    gaps = [call("max", max, 0, 1 - op.at("self", places[listed[u]]) + op.at("self", places[i])) for u, i in pairs]
    return total_of(gaps, keep=True) / len(places)


over_classes = Named(r"\sum_c @", lambda t: t.sum(class_axis(t), keepdim=True), (), PRODUCT, inside=PRODUCT)
ONEHOT, CLASS_WEIGHT = symbol(r"\operatorname{onehot}\left($target\right)", onehot), symbol("$weight", class_weight)
SMOOTHING = symbol("$label_smoothing", lambda op: op.label_smoothing, single=True)
TARGETS = choice(targets)
PROBABILITIES = symbol(r"\operatorname{softmax}\left($input\right)", lambda op: op.input.softmax(class_axis(op.input)))
LN_PROBABILITIES = symbol(rf"\ln {PROBABILITIES.text}", lambda op: op.input.log_softmax(class_axis(op.input)))

nll_loss = of_classes(
    "NllLossBackward0",
    "NllLoss2DBackward0",
    name="nll_loss",
    loss=-weighted(TARGETS, X),
    slopes={"self": (-TARGETS, "only the log-probability of the sample's own class enters its loss")},
    divisor=class_divisor,
    element=nll_element,
    factor=nll_factor,
    constants={"target": "not differentiable", "weight": "not differentiable"},
    structure="linear",
    samples=lambda: [
        sample(F.nll_loss, x(3, 4), CLASSES),
        sample(F.nll_loss, x(3, 4), CLASSES, weight=weights(), note="weights"),
        sample(F.nll_loss, x(3, 4), torch.tensor([0, -100, 1]), note="ignored"),
        sample(F.nll_loss, x(3, 4), CLASSES, weight=weights(), ignore_index=2, note="weights, ignored"),
        sample(F.nll_loss, x(2, 4), torch.tensor([-100, -100]), note="all ignored"),
        sample(F.nll_loss, x(4), torch.tensor(1), note="no batch"),
        sample(F.nll_loss, x(2, 4, 2, 3), PIXELS, note="pixels"),
        sample(F.nll_loss, x(2, 4, 2, 3), PIXELS, weight=weights(), ignore_index=3, note="pixels, weights, ignored"),
        sample(F.cross_entropy, x(3, 4), CLASSES, note="cross-entropy"),
    ],
    source="derivatives.yaml: nll_loss_forward, nll_loss2d_forward",
)


def _smoothed() -> dict[str, Any]:
    return {"weight": weights(), "label_smoothing": 0.1}


def _probabilities(op: Any) -> list[Working]:
    """The softmax of the scores, of which the loss and its derivative are made."""
    if op.input.dim() > 2:
        return []
    found = op.input.softmax(-1).reshape(-1, op.input.shape[-1])
    samples, classes = (
        tuple(f"{name} {i}" for i in range(n)) for name, n in zip(("sample", "class"), found.shape, strict=True)
    )
    return [Working(PROBABILITIES.text, "the probability of each class; a row adds up to 1", found, samples, classes)]


cross_entropy = of_classes(
    name="cross_entropy",
    calls=("cross_entropy",),
    loss=-weighted(TARGETS, LN_PROBABILITIES),
    slopes={
        "input": (choice(cross_entropy_slope), "each sample's loss depends on its own logits alone"),
        "target": (choice(cross_entropy_target_slope), "each sample's loss depends on its own targets alone"),
    },
    divisor=class_divisor,
    element=cross_entropy_element,
    factor=cross_entropy_factor,
    selects=False,
    constants={"weight": "not differentiable"},
    workings=_probabilities,
    samples=lambda: [
        sample(F.cross_entropy, x(3, 4), CLASSES),
        sample(F.cross_entropy, x(4), torch.tensor(2), note="no batch"),
        sample(F.cross_entropy, x(3, 4), torch.tensor([0, -100, 1]), note="ignored"),
        sample(F.cross_entropy, x(3, 4), torch.tensor([0, -100, 1]), label_smoothing=0.1, note="smoothed, ignored"),
        sample(F.cross_entropy, x(2, 4, 2, 3), PIXELS, **_smoothed(), ignore_index=3, note="pixels, smoothed, ignored"),
        sample(F.cross_entropy, x(3, 4), p(3, 4, seed=1), note="probabilities"),
        sample(F.cross_entropy, x(3, 4), p(3, 4, seed=1), **_smoothed(), note="probabilities, weights, smoothed"),
    ],
    source="log_softmax and nll_loss in one: with p = softmax(z), d(-ln p_y)/dz_c = p_c - [c = y]; label smoothing: "
    "Szegedy et al., Rethinking the Inception Architecture, CVPR 2016",
)


OTHERS, MARGIN = 1 - ONEHOT, argument("margin")
GAP = MARGIN - let("s", weighted(ONEHOT, X)) + X
is_positive = Named(r"\left[@ > 0\right]", lambda z: z > 0)
TOO_NEAR = let("v", OTHERS * choice(lambda op: is_positive(GAP) if op.p == 1 else 2 * highest(0, GAP)))
OWN_WEIGHT = let("u", over_classes(CLASS_WEIGHT * ONEHOT))
SHARE = choice(lambda op: (1 if op.weight is None else OWN_WEIGHT) * one_of(scores(op).shape[-1]))


def one_of(count: int) -> Expression:
    """1/n."""
    return symbol(rf"\frac{{1}}{{{count}}}", 1 / count)


def at_margin(op: Any, radius: float) -> Tensor:
    """Other classes that lie just at the margin."""
    near: Tensor = (GAP.run(op).abs() <= radius) & (ONEHOT.run(op) == 0) & (op.p == 1)
    return near.reshape(op.self.shape)


multi_margin_loss = of_classes(
    "MultiMarginLossBackward0",
    name="multi_margin_loss",
    loss=SHARE * over_classes(OTHERS * highest(0, GAP) ** argument("p")),
    slopes={
        "self": (
            SHARE * (TOO_NEAR - ONEHOT * over_classes(TOO_NEAR)),
            "a class that is beaten by the margin adds nothing, and other samples do not enter",
        )
    },
    constants={"target": "not differentiable", "weight": "not differentiable"},
    element=margin_element,
    kink=Kink(at_margin, "0, as on the side where the margin is kept"),
    samples=lambda: [
        sample(F.multi_margin_loss, x(3, 4), CLASSES),
        sample(F.multi_margin_loss, x(3, 4), CLASSES, p=2, margin=0.5, note="squared"),
        sample(F.multi_margin_loss, x(3, 4), CLASSES, weight=weights(), note="weights"),
        sample(F.multi_margin_loss, x(4), torch.tensor(1), note="no batch"),
        sample(F.multi_margin_loss, x(4), torch.tensor([1]), reduction="none", note="no batch, its class in a list"),
        sample(F.multi_margin_loss, x(), torch.tensor(0), note="a number"),
        sample(F.multi_margin_loss, given([1.0, 0.0, 3.0]), torch.tensor([0]), note="at the margin"),
    ],
    source="derivatives.yaml: multi_margin_loss; Crammer and Singer, JMLR 2, 2001",
)


def real_pairs(op: Any) -> Tensor:
    """Which pairs count: a target listed before its row's first -1 (axis -2), and a class that is none (axis -1)."""
    target: Tensor = torch.atleast_1d(op.target)
    listed = (target >= 0).cumprod(-1).bool()
    marks = torch.zeros_like(scores(op)).scatter_add(-1, target.clamp(min=0), listed.to(op.self.dtype))
    pairs: Tensor = listed.unsqueeze(-1) & (marks == 0).unsqueeze(-2)
    return pairs


def label_gaps(op: Any) -> Tensor:
    """1 - (x_j - x_i) for each listed target j (axis -2) and each class i that is none (axis -1); 0 elsewhere."""
    aimed_at = scores(op).gather(-1, torch.atleast_1d(op.target).clamp(min=0))
    gaps = 1 - aimed_at.unsqueeze(-1) + scores(op).unsqueeze(-2)
    return torch.where(real_pairs(op), gaps, 0)


def multilabel_margin_vjp(op: Any, g: Tensor) -> Tensor:
    """Each pair whose margin is broken pushes its wrong class up by 1/C and its target down by 1/C."""
    broken: Tensor = (label_gaps(op) > 0) * (g / scores(op).shape[-1])[..., None, None]
    targets = torch.atleast_1d(op.target).clamp(min=0)
    return broken.sum(-2).scatter_add(-1, targets, -broken.sum(-1)).reshape(op.self.shape)


def pairs_at_margin(op: Any, radius: float) -> Tensor:
    """Wrong classes that lie just at the margin of one of the targets."""
    return ((label_gaps(op).abs() <= radius) & real_pairs(op)).any(-2).reshape(op.self.shape)


def of_labels(template: str) -> Callable[[Any], str]:
    """A formula of a sample's classes and of the places u of its list of labels; 0 for a single number, a lone class.

    `@n` is the index of the sample, `@C` the number of classes. A label counts before the first -1.
    """

    def formula(op: Any) -> str:
        sample = "n," if op.self.dim() > 1 else ""
        filled = template.replace("@n", sample).replace("@C", f"{scores(op).shape[-1]}").replace("_{}", "")
        return (filled if op.self.dim() else "" if template.startswith("d") else "0").replace("_{n,}", "_n")

    return formula


LABEL_SLOPE = (
    r"\frac{1}{@C} \left(B_{@ni} \, \sum_{u: \, L_{@nu} = 1} [d_{@nu,i} > 0] - "
    r"\sum_{u: \, {$target}_{@nu} = i} L_{@nu} \, \sum_k B_{@nk} \, [d_{@nu,k} > 0]\right)"
)

multilabel_margin_loss = reducible(
    "MultilabelMarginLossBackward0",
    name="multilabel_margin_loss",
    loss=of_labels(r"\frac{1}{@C} \sum_{u: \, L_{@nu} = 1} \sum_{i: \, B_{@ni} = 1} \max(0, d_{@nu,i})"),
    where=of_labels(
        r"d_{@nu,i} = 1 - {$self}_{@n{$target}_{@nu}} + {$self}_{@ni}, \quad "
        r"L_{@nu} = \prod_{v: \, v \le u} [{$target}_{@nv} \ge 0], \quad "
        r"B_{@ni} = \prod_u (1 - L_{@nu} \, [{$target}_{@nu} = i])"
    ),
    places=lambda op: ["n", "i"][2 - op.self.dim() :],
    value=lambda op: label_gaps(op).clamp(min=0).sum((-2, -1)) / scores(op).shape[-1],
    wrt={
        "self": Wrt(
            vjp=multilabel_margin_vjp,
            local=of_labels(LABEL_SLOPE),
            product=of_labels(rf"{{$g}}_{{@n}} \, {LABEL_SLOPE}"),
            zeros="a pair whose margin is kept adds nothing, and other samples do not enter",
        )
    },
    constants={"target": "not differentiable"},
    element=labels_element,
    kink=Kink(where=pairs_at_margin, choice="0, as on the side where the margin is kept"),
    samples=lambda: [
        sample(F.multilabel_margin_loss, x(2, 4), torch.tensor([[0, 1, -1, 2], [3, -1, 0, 0]])),
        sample(F.multilabel_margin_loss, x(4), torch.tensor([3, 0, -1, 1]), note="no batch"),
        sample(F.multilabel_margin_loss, x(), torch.tensor(0), note="a number"),
        sample(F.multilabel_margin_loss, x(1, 3), torch.tensor([[-1, 0, 1]]), note="no target"),
        sample(F.multilabel_margin_loss, given([1.0, 0.0, 3.0]), torch.tensor([[0, -1, 0]]), note="at the margin"),
    ],
    source="derivatives.yaml: multilabel_margin_loss_forward",
)
