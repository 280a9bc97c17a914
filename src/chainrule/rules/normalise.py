"""Rules of operations that bring values to a common scale: softmax; layer, batch, group, RMS and weight normalisation.

All of the latter are x_hat = (x - mu) / sigma over some group of elements. As mu and sigma depend on x themselves, the
gradient loses its own mean and its part along x_hat: shifting or stretching the whole group would change nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Applied, Factor, Index, Rule, Sample, Wrt, at, derivative, lettered, number, rule, sample
from chainrule.rules.element import Element, Elements, call, exps, let, total
from chainrule.rules.element import mean as mean_of
from chainrule.rules.index_notation import unravel
from chainrule.rules.linear import ALONG, randn
from chainrule.rules.pattern import Pattern, aligned, axes, real
from chainrule.rules.pattern import product as meeting

# Softmax ---------------------------------------------------------------------------------------------------------


def _softmax(
    *nodes: str, function: Any, entries: tuple[str, str], vjp: Any, local: str, product: str, **more: Any
) -> Rule:
    """Register a function of rows along dim; `entries` are the Jacobian's, on the diagonal of a row and off it."""

    def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
        dim = op.dim % max(len(out_index), 1)
        if any(i != j for axis, (i, j) in enumerate(zip(out_index, in_index, strict=True)) if axis != dim):
            return None
        places = {"i": at("out", map(str, out_index)), "j": at("out", map(str, in_index))}
        return Factor(latex=lettered(entries[out_index != in_index], places))

    def pattern(op: Any) -> Pattern | None:
        row = (op.dim % max(op.self.dim(), 1),)
        return meeting(axes(op.out.shape, row, "out"), axes(op.self.shape, row, "in")) if real(op.out) else None

    zeros = "an output element depends on the elements that share its row along dim, and on no others"
    return rule(
        *nodes,
        wrt={"self": Wrt(vjp, local + ALONG, product + ALONG, zeros, factor, pattern)},
        samples=lambda: [
            sample(function, randn(2, 3), 1),
            sample(function, randn(2, 3, 2), 0),
            sample(function, randn(2, 1), -1, note="size 1"),
            sample(function, randn(0, 3), -1, note="empty"),
            sample(function, randn(), 0, note="0-dim"),
            sample(function, torch.tensor([[1000.0, -1000.0, 999.0]], requires_grad=True), 1, note="large"),
        ],
        **more,
    )


def _powers(op: Elements, index: Index) -> tuple[Element, list[Element]]:
    """The exponential of an element, and those of its row along dim; where they overflow, all divided by one number."""
    dim = op.whole.dim % max(len(index), 1)
    row = range(op.whole.self.shape[dim]) if index else range(1)
    powers, _ = exps([op.at("self", (*index[:dim], at, *index[dim + 1 :])[: len(index)]) for at in row])
    return powers[index[dim] if index else 0], powers


def _softmax_element(op: Elements, slot: int, index: Index) -> Element:
    own, powers = _powers(op, index)
    return own / total(powers)


def _log_softmax_element(op: Elements, slot: int, index: Index) -> Element:
    own, powers = _powers(op, index)
    return own.parts[0] - call("ln", math.log, total(powers))


softmax = _softmax(
    "SoftmaxBackward0",
    "SafeSoftmaxBackward0",
    function=F.softmax,
    element=_softmax_element,
    equation=r"{$out}_i = \frac{e^{{$self}_i - m}}{\sum_j e^{{$self}_j - m}}, \quad m = \max_j {$self}_j" + ALONG,
    vjp=lambda op, g: op.out * (g - (g * op.out).sum(op.dim, keepdim=True)),
    local=derivative("{$out}_i", "{$self}_j", "{$out}_i \\, ([i = j] - {$out}_j)"),
    product=r"$out \odot \left($g - \sum_j {$g}_j \, {$out}_j\right)",
    entries=("@i (1 - @i)", r"-@i \, @j"),
    source="derivatives.yaml: _softmax. d s_i / d x_j = s_i (delta_ij - s_j).",
)

log_softmax = _softmax(
    "LogSoftmaxBackward0",
    function=F.log_softmax,
    element=_log_softmax_element,
    equation=r"{$out}_i = {$self}_i - m - \log \sum_j e^{{$self}_j - m}, \quad m = \max_j {$self}_j" + ALONG,
    vjp=lambda op, g: g - op.out.exp() * g.sum(op.dim, keepdim=True),
    local=derivative("{$out}_i", "{$self}_j", "[i = j] - e^{{$out}_j}"),
    product=r"$g - e^{$out} \, \sum_j {$g}_j",
    entries=("1 - e^{@j}", "-e^{@j}"),
    source="derivatives.yaml: _log_softmax. d log s_i / d x_j = delta_ij - s_j.",
)

# x_hat = (x - mu) / sigma ----------------------------------------------------------------------------------------

# An element of x (and of the output) has the index `@x`, another one of the same group `@o`; `@average` is the mean
# over a group, `@k` are the letters of what a group shares, and `@p` the group of `@x`. `@f` are those of the gain.
FORMULAS = {
    "equation": r"{$out}_{@x} = @gain \hat{x}_{@x}@shift",
    "where": r"\hat{x}_{@x} = \frac{{$input}_{@x}@centre}{\sigma_{@p}}@mean"
    r", \quad \sigma_{@k} = \sqrt{@variance@eps}",
    "by input": derivative(
        "{$out}_{@x}",
        "{$input}_{@o}",
        r"@gain \frac{1}{\sigma_{@p}} \, \left(@same - @share @within (@one \hat{x}_{@x} \, \hat{x}_{@o})"
        r"\right)",
    ),
    "to input": r"{$grad}_{@x} = \frac{1}{\sigma_{@p}} \, \left(\tilde{g}_{@x}@less - \beta_{@p} \, \hat{x}_{@x}\right)"
    r"@more, \quad \tilde{g}_{@x} = @gain {$g}_{@x}, \quad \alpha_{@k} = @average \tilde{g}_{@o}"
    r", \quad \beta_{@k} = @average \tilde{g}_{@o} \, \hat{x}_{@o}",
    "by input, running": derivative("{$out}_{@x}", "{$input}_{@x}", r"@gain \frac{1}{\sigma_{@p}}"),
    "to input, running": r"{$grad}_{@x} = @gain \frac{1}{\sigma_{@p}} \, {$g}_{@x}",
    "by weight": derivative("{$out}_{@x}", "{$weight}_{@f}", r"\hat{x}_{@x}"),
    "to weight": r"{$grad}_{@f} = \sum_{@rest} {$g}_{@x} \, \hat{x}_{@x}",
    "by bias": derivative("{$out}_{@x}", "{$bias}_{@f}", "1"),
    "to bias": r"{$grad}_{@f} = \sum_{@rest} {$g}_{@x}",
}
GROUP_STATISTICS_BACK = (
    r" + \frac{1}{@count} \, \left({$g1}_{@p} - {$g2}_{@p} \, \frac{\hat{x}_{@x}}{(\sigma_{@p})^2}\right)"
)


@dataclass(frozen=True)
class Letters:
    """The letters of an element, of another one of its group, of the gain, and of what a group shares.

    `place` is the group of an element where that is a formula, and `limit` says which elements `other` are in a group.
    """

    own: str
    other: str
    features: str
    group: str
    place: str = ""
    limit: str = ""


@dataclass(frozen=True)
class _Norm:
    """A kind of normalisation: which elements share a mean and a variance, in the numbers and in the formulas.

    The groups lie along the axes `dims` of a `view` of the input. Each `unit` (feature or channel) has its own gain and
    shift. Without a centre there is no mean, so nothing is taken off the gradient but the part along x_hat. Without
    a mean of the squares (`summed`), sigma is a length.
    """

    zeros: str
    unit: str
    letters: Callable[[Any], Letters]
    dims: Callable[[Any], Index]
    view: Callable[[Any, Tensor], Tensor] = lambda op, t: t
    centred: bool = True
    summed: bool = False

    def mean(self, op: Any, t: Tensor) -> Tensor:
        """Over a group."""
        return t.sum(self.dims(op), keepdim=True) if self.summed else t.mean(self.dims(op), keepdim=True)

    def standardise(self, op: Any) -> tuple[Tensor, Tensor]:
        """x_hat, and 1 / sigma with sigma = sqrt(variance + eps); the variance is the biased one (1/N)."""
        x = self.view(op, op.input)
        if not _training(op):
            inverse = (_per_channel(op.running_var, x) + _eps(op)).rsqrt()
            return (x - _per_channel(op.running_mean, x)) * inverse, inverse
        distance = x - self.mean(op, x) if self.centred else x
        inverse = (self.mean(op, distance.square()) + _eps(op)).rsqrt()
        return distance * inverse, inverse

    def input(self, op: Any, g: Tensor) -> Tensor:
        """(g - mean(g) - x_hat mean(g x_hat)) / sigma, for the g that comes through the gain."""
        x_hat, inverse = self.standardise(op)
        if op.weight is not None:
            g = g * (_per_channel(op.weight, g) if self.unit == "channel" else op.weight)
        g = self.view(op, g)
        if _training(op):
            g = (g - self.mean(op, g) if self.centred else g) - x_hat * self.mean(op, g * x_hat)
        return (inverse * g).reshape(op.input.shape)

    def weight(self, op: Any, g: Tensor) -> Tensor:
        return self.bias(op, g * self.standardise(op)[0].reshape(g.shape))

    def bias(self, op: Any, g: Tensor) -> Tensor:
        return g.sum(_but_channels(g)) if self.unit == "channel" else g

    def element(self, op: Elements, slot: int, index: Index) -> Element | None:
        """gain * (x - mean) / sqrt(variance + eps) + shift; the mean and the variance are worked out beside it."""
        whole = op.whole
        if slot:
            return None  # the statistics of the group, which a gradient rarely reaches
        x, unit = op.at("input", index), index[1:2] if self.unit == "channel" else index[-len(self.dims(whole)) :]
        if _training(whole):
            numbered = torch.arange(whole.input.numel()).reshape(whole.input.shape)
            place, own = (self.view(whole, numbered) == numbered[index]).nonzero()[0].tolist(), self._axes(whole)
            parts = self.parts(op, tuple(slice(None) if axis in own else at for axis, at in enumerate(place)))
            centre = let("μ", mean_of(parts)) if self.centred else 0
            squares = [(each - centre) ** 2 for each in parts]
            variance = let("v", total(squares) if self.summed else mean_of(squares))
        else:
            centre, variance = op.at("running_mean", unit), op.at("running_var", unit)
        found = (x - centre) / call("sqrt", math.sqrt, variance + _eps(whole))
        gain, shift = whole.weight, whole.arguments.get("bias")
        found = found if gain is None else _own(op, "weight", unit) * found
        return found if shift is None else found + _own(op, "bias", unit)

    def parts(self, op: Elements, group: Any) -> list[Element]:
        """The elements of the input that lie in a part of the view."""
        shape = op.whole.input.shape
        numbered = self.view(op.whole, torch.arange(shape.numel()).reshape(shape))
        return [op.at("input", unravel(each, shape)) for each in numbered[group].flatten().tolist()]

    def _axes(self, op: Any) -> set[int]:
        sizes = self.view(op, op.input).shape
        return {axis % len(sizes) for axis in self.dims(op)}

    def latex(self, name: str, op: Any) -> str:
        """One of the formulas, for a call."""
        given, is_fixed = self.given(op), not _training(op) and name in ("by input", "to input")
        return lettered(lettered(FORMULAS[f"{name}, running" if is_fixed else name], given), given)

    def given(self, op: Any) -> dict[str, str]:
        """What the names in the formulas stand for."""
        at = self.letters(op)
        sizes = self.view(op, op.input).shape
        count = math.prod(sizes[axis] for axis in self.dims(op))
        over = ",".join(letter for letter in at.other if letter not in at.group)
        share = "" if self.summed else rf"\frac{{1}}{{{count}}}"
        average = rf"{share} \sum_{{{over}{f': {at.limit}' if at.limit else ''}}}"
        mean, centre, running = (r"@average {$input}_{@o}", r" - \mu_{@p}", "") if self.centred else ("", "", "")
        if not _training(op):
            mean, running = "{$running_mean}_{c}", "{$running_var}_{c}"
        return {
            "gain": "" if op.weight is None else r"{$weight}_{@f} \,",
            "shift": "" if op.arguments.get("bias") is None else " + {$bias}_{@f}",
            "centre": centre,
            "mean": rf", \quad \mu_{{@k}} = {mean}" if mean else "",
            "variance": running or rf"@average ({{$input}}_{{@o}}{centre.replace('@p', '@k')})^2",
            "less": r" - \alpha_{@p}" if mean else "",
            "one": "1 +" if mean else "",
            "same": r" \, ".join(f"[{a} = {b}]" for a, b in zip(at.own, at.other, strict=True) if a != b),
            "within": rf"[{at.limit.replace('= a', '= ' + at.place.split(',')[-1])}] \," if at.limit else "",
            "more": GROUP_STATISTICS_BACK if at.limit else "",
            "average": average,
            "rest": ",".join(letter for letter in at.own if letter not in at.features),
            "x": ",".join(at.own),
            "o": ",".join(at.other),
            "f": ",".join(at.features),
            "k": ",".join(at.group),
            "p": at.place or ",".join(at.group),
            "count": str(count),
            "share": share,
            "eps": f" + {number(_eps(op))}" if _eps(op) else "",
        }

    def pattern(self, op: Any) -> Pattern | None:
        """What shares its place along all other axes is in one group; with running statistics, each element alone."""
        if not real(op.out, op.input):
            return None
        sizes = self.view(op, op.input).shape
        dims = {axis % len(sizes) for axis in self.dims(op)} if _training(op) else ()
        return meeting(axes(sizes, dims, "out"), axes(sizes, dims, "in"))

    def unit_pattern(self, name: str, op: Any) -> Pattern | None:
        """Each output element and its own gain or shift."""
        operand = op.arguments[name]
        if not real(op.out, operand):
            return None
        if self.unit == "feature":
            return aligned(op.out.shape, operand.shape)
        return meeting(axes(op.out.shape), [("1", operand.numel())])

    def wrts(self) -> dict[str, Wrt]:
        """The derivatives by the input, the gain and the shift."""
        return {
            name: Wrt(vjp, partial(self.latex, f"by {name}"), partial(self.latex, f"to {name}"), zeros, None, pattern)
            for name, vjp, zeros, pattern in (
                ("input", self.input, self.zeros, self.pattern),
                ("weight", self.weight, f"each {self.unit} has its own gain", partial(self.unit_pattern, "weight")),
                ("bias", self.bias, f"each {self.unit} has its own shift", partial(self.unit_pattern, "bias")),
            )
        }

    def rule(self, *nodes: str, without: str = "", **more: Any) -> Rule:
        """Register the operation; `without` names what it lacks."""
        wrt = {name: each for name, each in self.wrts().items() if name != without}
        latex = {name: partial(self.latex, name) for name in ("equation", "where")}
        return rule(*nodes, **{**latex, "wrt": wrt, "element": self.element, **more})


def _training(op: Any) -> bool:
    """Whether the batch's own statistics were used; the overloads say so by flag, or by their mere name."""
    arguments = op.arguments
    if "training" in arguments:
        return bool(arguments["training"]) or arguments.get("running_mean", None) is None
    return "no_training" not in op.name and "no_update" not in op.name


def _eps(op: Any) -> float:
    """cuDNN's overload has its own name for it; without one it is the number type's own."""
    eps = op.arguments.get("epsilon", op.arguments.get("eps"))
    return torch.finfo(op.input.dtype).eps if eps is None else float(eps)


def _but_channels(t: Tensor) -> Index:
    return (0, *range(2, t.dim()))


def _own(op: Elements, name: str, unit: Index) -> Element:
    """The gain or the shift of an element's feature or channel; group norm keeps them in one row."""
    operand = op.whole.arguments[name]
    return op.at(name, unit[len(unit) - operand.dim() :])


def _per_channel(v: Tensor, t: Tensor) -> Tensor:
    return v.reshape(1, -1, *(1,) * (t.dim() - 2))


# Layer and RMS norm: a sample's features i, j are one group; gain and shift broadcast, which the walk sums over.


def _layer_letters(op: Any) -> Letters:
    count = len(op.normalized_shape)
    samples, own, other = "cdefgmn"[7 - op.input.dim() + count :], "ijkl"[:count], "pqrs"[:count]
    return Letters(samples + own, samples + other, own, samples)


LAYER = _Norm(
    "each sample is normalised by itself: its output depends on no other sample",
    "feature",
    _layer_letters,
    lambda op: tuple(range(-len(op.normalized_shape), 0)),
)
RMS = replace(LAYER, centred=False)

native_layer_norm = LAYER.rule(
    "NativeLayerNormBackward0",
    samples=lambda: [
        sample(F.layer_norm, randn(2, 4), (4,), randn(4), randn(4)),
        sample(F.layer_norm, randn(2, 3, 4), (3, 4), randn(3, 4), randn(3, 4)),
        sample(F.layer_norm, randn(2, 4), (4,), note="without gain and shift"),
        sample(F.layer_norm, randn(2, 4), (4,), randn(4), note="without shift"),
        sample(F.layer_norm, randn(2, 1), (1,), randn(1), randn(1), note="size 1"),
        sample(F.layer_norm, randn(0, 4), (4,), randn(4), randn(4), note="empty batch"),
        sample(F.layer_norm, torch.ones(2, 4, requires_grad=True), (4,), note="no spread"),
    ],
    source="derivatives.yaml: native_layer_norm. Ba, Kiros, Hinton: Layer Normalization, arXiv:1607.06450 (2016).",
)

fused_rms_norm = RMS.rule(
    "FusedRmsNormBackward0",
    name="rms_norm",
    without="bias",
    samples=lambda: [
        sample(torch.ops.aten._fused_rms_norm, randn(2, 4), [4], randn(4), 1e-5),
        sample(torch.ops.aten._fused_rms_norm, randn(2, 3, 4), [3, 4], randn(3, 4), None, note="the dtype's own eps"),
    ],
    source=(
        "derivatives.yaml: _fused_rms_norm. Zhang, Sennrich: Root Mean Square Layer Normalization, arXiv:1910.07467 "
        "(2019)."
    ),
)

# Batch norm: channel c of all samples n and places i, j is one group.


def _places(op: Any) -> tuple[str, str]:
    """The letters of a place, and of another one."""
    return "ijk"[: op.input.dim() - 2], "pqr"[: op.input.dim() - 2]


def _batch_letters(op: Any) -> Letters:
    places, others = _places(op)
    return Letters(f"nc{places}", f"mc{others}", "c", "c")


BATCH = _Norm(
    "each channel is normalised by itself: its output depends on no other channel",
    "channel",
    _batch_letters,
    lambda op: _but_channels(op.input),
)
ATEN = torch.ops.aten


def _batch_samples() -> list[Sample]:
    running, settings = (torch.full((3,), 0.5), torch.full((3,), 2.0)), (0.1, 1e-5)
    given = (randn(4, 3), randn(3), randn(3))
    return [
        sample(F.batch_norm, randn(4, 3), *running, *given[1:], True, note="training"),
        sample(F.batch_norm, randn(2, 3, 2, 2), *running, *given[1:], True, note="training, images"),
        sample(F.batch_norm, randn(4, 3), *running, *given[1:], False, note="evaluation"),
        sample(F.batch_norm, randn(4, 3), *running, None, None, False, note="evaluation, no gain or shift"),
        sample(F.batch_norm, randn(4, 3), None, None, None, None, True, note="no running statistics"),
        sample(F.instance_norm, randn(2, 3, 4), weight=randn(3), bias=randn(3), note="instance norm"),
        sample(ATEN._native_batch_norm_legit, *given, *running, True, *settings),
        sample(ATEN._native_batch_norm_legit.no_stats, *given, True, *settings),
        sample(ATEN._native_batch_norm_legit_no_training, *given, *running, *settings),
        sample(ATEN._batch_norm_with_update, *given, *running, *settings),
        sample(ATEN._batch_norm_no_update, *given, *running, *settings),
    ]


batch_norm = BATCH.rule(
    *(f"NativeBatchNorm{kind}Backward0" for kind in ("", "Legit", "LegitNoTraining")),
    *(f"BatchNorm{kind}Backward0" for kind in ("WithUpdate", "NoUpdate")),
    *(f"{library}BatchNormBackward0" for library in ("Cudnn", "Miopen")),
    name="batch_norm",
    constants={"running_mean": "zero", "running_var": "zero"},
    samples=_batch_samples,
    source="derivatives.yaml: native_batch_norm. Ioffe, Szegedy: Batch Normalization, arXiv:1502.03167 (2015).",
)

# Group norm: the channels of group a of sample n, at all places, are one group.


def _group_letters(op: Any) -> Letters:
    (places, others), size = _places(op), op.C // op.group
    place, limit = rf"n,\lfloor c / {size} \rfloor", rf"\lfloor d / {size} \rfloor = a"
    return Letters(f"nc{places}", f"nd{others}", "c", "na", place, limit)


GROUP = _Norm(
    "each group of channels of each sample is normalised by itself",
    "channel",
    _group_letters,
    lambda op: (2, 3),
    lambda op, t: t.reshape(op.N, op.group, op.C // op.group, op.HxW),
)


def _group_norm(op: Any, gs: tuple[Tensor | None, Tensor | None, Tensor | None]) -> Tensor:
    """The node gives mu (d mu / dx = 1/N) and 1/sigma (d (1/sigma) / dx = -x_hat / (N sigma^2)) a gradient too."""
    g, g_mean, g_inverse = gs
    (x_hat, inverse), count = GROUP.standardise(op), op.HxW * op.C // op.group
    gradient = torch.zeros_like(x_hat) if g is None else GROUP.view(op, GROUP.input(op, g))
    if g_mean is not None:
        gradient = gradient + g_mean[..., None, None] / count
    if g_inverse is not None:
        gradient = gradient - g_inverse[..., None, None] * inverse.square() * x_hat / count
    return gradient.reshape(op.input.shape)


def _group_element(op: Elements, slot: int, index: Index) -> Element | None:
    """An element of the output, of mu, or of 1 / sigma."""
    if not slot:
        return GROUP.element(op, slot, index)
    parts = GROUP.parts(op, index)
    centre = let("μ", mean_of(parts))
    if slot == 1:
        return mean_of(parts)
    return 1 / call("sqrt", math.sqrt, mean_of([(each - centre) ** 2 for each in parts]) + _eps(op.whole))


def _group_local(op: Any) -> str:
    """Of the output, and of mu and 1 / sigma, which the node gives too."""
    given = {**GROUP.given(op), "q": rf"n,\lfloor d / {op.C // op.group} \rfloor"}
    statistics = (
        derivative("{$out1}_{@q}", "{$input}_{@o}", r"\frac{1}{@count}"),
        derivative("{$out2}_{@q}", "{$input}_{@o}", r"-\frac{1}{@count} \, \frac{\hat{x}_{@o}}{(\sigma_{@q})^2}"),
    )
    return r", \quad ".join([GROUP.latex("by input", op), *(lettered(each, given) for each in statistics)])


native_group_norm = GROUP.rule(
    "NativeGroupNormBackward0",
    equation=lambda op: (
        GROUP.latex("equation", op) + r", \quad {$out1}_{n,a} = \mu_{n,a}, \quad {$out2}_{n,a} = \frac{1}{\sigma_{n,a}}"
    ),
    wrt={
        "input": replace(GROUP.wrts()["input"], vjp=_group_norm, local=_group_local),
        "weight": replace(
            GROUP.wrts()["weight"], vjp=lambda op, gs: None if gs[0] is None else GROUP.weight(op, gs[0])
        ),
        "bias": replace(GROUP.wrts()["bias"], vjp=lambda op, gs: None if gs[0] is None else GROUP.bias(op, gs[0])),
    },
    outputs=3,
    element=_group_element,
    samples=lambda: [
        sample(F.group_norm, randn(2, 4, 3), 2, randn(4), randn(4)),
        sample(F.group_norm, randn(2, 4, 2, 2), 4, note="one channel a group, no gain or shift"),
        sample(F.group_norm, randn(2, 4, 3), 1, randn(4), randn(4), note="one group"),
        sample(F.group_norm, randn(0, 4, 3), 2, randn(4), randn(4), note="empty batch"),
    ],
    source="derivatives.yaml: native_group_norm. Wu, He: Group Normalization, arXiv:1803.08494 (2018).",
)

# Weight norm: a direction v, which is the input, with a length of its own, which is the gain. PyTorch calls that `g`.


def _but(op: Any) -> Index:
    """The axes of v that one length is taken over: all but `dim`, or all of them for dim = -1."""
    return tuple(axis for axis in range(op.input.dim()) if op.dim == -1 or axis != op.dim % op.input.dim())


def _length_letters(op: Any) -> Letters:
    own = "ijk"[: op.input.dim()]
    other = "".join(p if axis in _but(op) else i for axis, (i, p) in enumerate(zip(own, "pqr", strict=False)))
    group = "".join(i for i in own if i in other)
    return Letters(own, other, "".join(i if i in other else "0" for i in own[: op.weight.dim()]), group)


LENGTH = _Norm("", "index of dim", _length_letters, _but, centred=False, summed=True)


def _renamed(op: Any) -> Applied:
    """Weight norm's operands under the names of the others."""
    return Applied({"input": op.v, "weight": op.arguments["g"], "dim": op.dim, "eps": 0.0}, op.outs)


def _length_formula(name: str, op: Any) -> str:
    return LENGTH.latex(name, _renamed(op)).replace("{$input}", "{$v}").replace("{$weight}", "{$g_}")


def _by_length(name: str, vjp: Callable[[Any, Tensor], Tensor]) -> Wrt:
    local, product = (partial(_length_formula, f"{way} {name}") for way in ("by", "to"))
    return Wrt(lambda op, g: vjp(_renamed(op), g), local, product, "each index of dim has its own direction and length")


def _length_element(op: Elements, slot: int, index: Index) -> Element | None:
    whole = op.whole
    if slot:
        return None
    free = _but(_renamed(whole))
    places = [range(n) if axis in free else range(index[axis], index[axis] + 1) for axis, n in enumerate(whole.v.shape)]
    squares = [op.at("v", at) ** 2 for at in itertools.product(*places)]
    gain = [0 if size == 1 else at for at, size in zip(index, whole.arguments["g"].shape, strict=True)]
    return op.at("g", gain) * op.at("v", index) / call("sqrt", math.sqrt, total(squares))


weight_norm = rule(
    "WeightNormInterfaceBackward0",
    name="weight_norm",
    equation=partial(_length_formula, "equation"),
    element=_length_element,
    where=partial(_length_formula, "where"),
    wrt={
        "v": _by_length("input", LENGTH.input),
        "g": _by_length("weight", lambda op, g: LENGTH.mean(op, LENGTH.weight(op, g))),
    },
    samples=lambda: [
        sample(torch.ops.aten._weight_norm, randn(3, 4), randn(3, 1), 0),
        sample(torch.ops.aten._weight_norm, randn(3, 4), randn(1, 4), 1),
        sample(torch.ops.aten._weight_norm, randn(3, 2, 2), randn(3, 1, 1), 0),
    ],
    source="derivatives.yaml: _weight_norm_interface. Salimans, Kingma: Weight Normalization, arXiv:1602.07868 (2016).",
)
