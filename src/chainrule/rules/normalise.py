"""Rules of operations that bring values to a common scale: softmax; layer, batch, group, RMS and weight normalisation.

All of the latter are x_hat = (x - mu) / sigma over some group of elements. As mu and sigma depend on x themselves, the
gradient loses its own mean and its part along x_hat: shifting or stretching the whole group would change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Factor, Sample, Wrt, at, derivative, number, rule, sample
from chainrule.rules.linear import ALONG, randn
from chainrule.rules.pattern import Pattern, aligned, axes, product, real

Index = tuple[int, ...]


# Softmax ---------------------------------------------------------------------------------------------------------

OWN_ROW = "an output element depends on the elements that share its row along dim, and on no others"


def _softmax_samples(function: Callable[..., Any]) -> list[Sample]:
    return [
        sample(function, randn(2, 3), 1),
        sample(function, randn(2, 3, 2), 0),
        sample(function, randn(2, 1), -1, note="size 1"),
        sample(function, randn(0, 3), -1, note="empty"),
        sample(function, randn(), 0, note="0-dim"),
        sample(function, torch.tensor([[1000.0, -1000.0, 999.0]], requires_grad=True), 1, note="large"),
    ]


def _row_mates(op: Any, out_index: Index, in_index: Index) -> bool:
    """Whether two places lie in one row along dim."""
    dim = op.dim % max(len(out_index), 1)
    return all(i == j for axis, (i, j) in enumerate(zip(out_index, in_index, strict=True)) if axis != dim)


def _rows(op: Any) -> Pattern | None:
    return _groups(op, op.self, (op.dim % max(op.self.dim(), 1),))


def _groups(op: Any, operand: Tensor, dims: Container[int]) -> Pattern | None:
    """What shares its place along all other axes is in one group."""
    if not real(op.out, operand):
        return None
    return product(axes(op.out.shape, dims, "out"), axes(operand.shape, dims, "in"))


def _at(place: Index) -> str:
    return "{$out}" + (f"_{{{','.join(map(str, place))}}}" if place else "")


def _softmax_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    if not _row_mates(op, out_index, in_index):
        return None
    s_i, s_j = _at(out_index), _at(in_index)
    return Factor(latex=rf"{s_i} (1 - {s_i})" if out_index == in_index else rf"-{s_i} \, {s_j}")


def _log_softmax_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    if not _row_mates(op, out_index, in_index):
        return None
    s_j = f"e^{{{_at(in_index)}}}"
    return Factor(latex=f"1 - {s_j}" if out_index == in_index else f"-{s_j}")


softmax = rule(
    "SoftmaxBackward0",
    "SafeSoftmaxBackward0",
    equation=r"{$out}_i = \frac{e^{{$self}_i - m}}{\sum_j e^{{$self}_j - m}}, \quad m = \max_j {$self}_j" + ALONG,
    wrt={
        "self": Wrt(
            lambda op, g: op.out * (g - (g * op.out).sum(op.dim, keepdim=True)),
            derivative("{$out}_i", "{$self}_j", "{$out}_i \\, ([i = j] - {$out}_j)") + ALONG,
            r"$out \odot \left($g - \sum_j {$g}_j \, {$out}_j\right)" + ALONG,
            OWN_ROW,
            _softmax_factor,
            _rows,
        )
    },
    samples=lambda: _softmax_samples(F.softmax),
    source="derivatives.yaml: _softmax. d s_i / d x_j = s_i (delta_ij - s_j).",
)

log_softmax = rule(
    "LogSoftmaxBackward0",
    equation=r"{$out}_i = {$self}_i - m - \log \sum_j e^{{$self}_j - m}, \quad m = \max_j {$self}_j" + ALONG,
    wrt={
        "self": Wrt(
            lambda op, g: g - op.out.exp() * g.sum(op.dim, keepdim=True),
            derivative("{$out}_i", "{$self}_j", "[i = j] - e^{{$out}_j}") + ALONG,
            r"$g - e^{$out} \, \sum_j {$g}_j" + ALONG,
            OWN_ROW,
            _log_softmax_factor,
            _rows,
        )
    },
    samples=lambda: _softmax_samples(F.log_softmax),
    source="derivatives.yaml: _log_softmax. d log s_i / d x_j = delta_ij - s_j.",
)

# x_hat = (x - mu) / sigma ----------------------------------------------------------------------------------------


def standardise(v: Tensor, dims: Index, eps: float) -> tuple[Tensor, Tensor]:
    """x_hat over `dims`, and 1 / sigma with sigma = sqrt(variance + eps); the variance is the biased one (1/N)."""
    distance = v - v.mean(dims, keepdim=True)
    inverse = (distance.square().mean(dims, keepdim=True) + eps).rsqrt()
    return distance * inverse, inverse


def standardise_vjp(g: Tensor, x_hat: Tensor, inverse: Tensor, dims: Index) -> Tensor:
    """(g - mean(g) - x_hat mean(g x_hat)) / sigma."""
    along = (g * x_hat).mean(dims, keepdim=True)
    return inverse * (g - g.mean(dims, keepdim=True) - x_hat * along)


@dataclass(frozen=True)
class _Normalised:
    """The formulas of y = w x_hat + b, in letters: element `own` of x, and another one, `other`, of the same group.

    What the elements of a group share has the index `group`, a list of letters; `place` is that of element `own`.
    `over` are the letters of a sum over the group, with the condition `limit`, and `features` those of gain and shift.
    """

    op: Any
    own: str
    other: str
    over: str
    features: str
    group: Sequence[str]
    place: Sequence[str]
    count: int
    limit: str = ""
    centred: bool = True
    running: bool = False

    @property
    def eps(self) -> str:
        eps = self.op.arguments.get("epsilon", self.op.arguments.get("eps"))
        return number(torch.finfo(self.op.input.dtype).eps if eps is None else float(eps))

    def shared(self, name: str, place: Sequence[str] | None = None) -> str:
        return at("x", self.group if place is None else place).replace("$x", name)

    def mean(self, what: str, limit: str = "") -> str:
        limit = rf": \, {limit or self.limit}" if self.limit else ""
        return rf"\frac{{1}}{{{self.count}}} \sum_{{{','.join(self.over)}{limit}}} {what}"

    def hat(self, index: str) -> str:
        return at("x", index).replace("$x", r"\hat{x}")

    def where(self) -> str:
        mu, sigma, other = self.shared(r"\mu"), self.shared(r"\sigma"), at("input", self.other)
        if self.running:
            mean, variance = "{$running_mean}_{c}", "{$running_var}_{c}"
        else:
            mean = self.mean(other)
            variance = self.mean(f"({other} - {mu})^2" if self.centred else f"{other}^2")
        centre = f" - {self.shared('MU', self.place)}".replace("MU", r"\mu") if self.centred else ""
        hat = rf"\frac{{{at('input', self.own)}{centre}}}{{{self.shared('SIGMA', self.place)}}}".replace(
            "SIGMA", r"\sigma"
        )
        parts = [f"{self.hat(self.own)} = {hat}", *([f"{mu} = {mean}"] if self.centred else [])]
        return r", \quad ".join([*parts, rf"{sigma} = \sqrt{{{variance} + {self.eps}}}"])

    def gain(self) -> str:
        return "" if self.op.weight is None else at("weight", self.features) + r" \, "

    def equation(self) -> str:
        shift = "" if self.op.arguments.get("bias") is None else f" + {at('bias', self.features)}"
        return f"{at('out', self.own)} = {self.gain()}{self.hat(self.own)}{shift}"

    def by_input(self) -> str:
        slope = rf"\frac{{1}}{{{self.shared('SIGMA', self.place)}}}".replace("SIGMA", r"\sigma")
        if self.running:
            return derivative(at("out", self.own), at("input", self.own), self.gain() + slope)
        pairs = zip(self.own, self.other, strict=True)
        same = r" \, ".join(f"[{a} = {b}]" for a, b in pairs if a != b)
        within = rf"[{self.limit.replace('= a', '= ' + self.place[-1])}] \, " if self.limit else ""
        mean = "1 + " if self.centred else ""
        inner = rf"{same} - \frac{{1}}{{{self.count}}} {within}({mean}{self.hat(self.own)} \, {self.hat(self.other)})"
        value = rf"{self.gain()}{slope} \, \left({inner}\right)"
        return derivative(at("out", self.own), at("input", self.other), value)

    def back(self, more: str = "") -> str:
        slope = rf"\frac{{1}}{{{self.shared('SIGMA', self.place)}}}".replace("SIGMA", r"\sigma")
        own, other = (at("g", index).replace("$g", r"\tilde{g}") for index in (self.own, self.other))
        where = rf", \quad {own} = {self.gain()}{at('g', self.own)}"
        total = own
        if not self.running:
            means = [(r"\beta", self.mean(rf"{other} \, {self.hat(self.other)}"), rf" \, {self.hat(self.own)}")]
            means = [(r"\alpha", self.mean(other), ""), *means] if self.centred else means
            for name, mean, factor in means:
                total += f" - {self.shared('NAME', self.place)}{factor}".replace("NAME", name)
                where += rf", \quad {self.shared('NAME')} = {mean}".replace("NAME", name)
        return rf"{at('grad', self.own)} = {slope} \, \left({total}\right){more}{where}"

    def by_weight(self) -> str:
        return derivative(at("out", self.own), at("weight", self.features), self.hat(self.own))

    def summed(self, what: str) -> str:
        sums = ",".join(letter for letter in self.own if letter not in self.features)
        return rf"{at('grad', self.features)} = \sum_{{{sums}}} {at('g', self.own)}{what}"

    def back_to_weight(self) -> str:
        return self.summed(rf" \, {self.hat(self.own)}")

    def by_bias(self) -> str:
        return derivative(at("out", self.own), at("bias", self.features), "1")


# Layer norm: the last axes are one group; gain and shift broadcast over the rest, which the walk sums over.


def _last_axes(op: Any) -> Index:
    return tuple(range(-len(op.normalized_shape), 0))


def _samples(op: Any) -> Pattern | None:
    dims = op.input.dim()
    return _groups(op, op.input, range(dims - len(op.normalized_shape), dims))


def _features(op: Any, operand: Any) -> Pattern | None:
    return aligned(op.out.shape, operand.shape) if real(op.out, operand) else None


def _layer(op: Any, centred: bool = True) -> _Normalised:
    """A sample's features i, j are one group."""
    count = len(op.normalized_shape)
    samples, own, other = "cdefgmn"[7 - op.input.dim() + count :], "ijkl"[:count], "pqrs"[:count]
    size = math.prod(op.normalized_shape)
    return _Normalised(op, samples + own, samples + other, other, own, samples, samples, size, centred=centred)


def _gained(op: Any, g: Tensor) -> Tensor:
    return g if op.weight is None else g * op.weight


def _layer_norm(op: Any, g: Tensor) -> Tensor:
    dims = _last_axes(op)
    x_hat, inverse = standardise(op.input, dims, op.eps)
    return standardise_vjp(_gained(op, g), x_hat, inverse, dims)


native_layer_norm = rule(
    "NativeLayerNormBackward0",
    equation=lambda op: _layer(op).equation(),
    where=lambda op: _layer(op).where(),
    wrt={
        "input": Wrt(
            _layer_norm,
            lambda op: _layer(op).by_input(),
            lambda op: _layer(op).back(),
            "each sample is normalised by itself: its output depends on no other sample",
            pattern=_samples,
        ),
        "weight": Wrt(
            lambda op, g: g * standardise(op.input, _last_axes(op), op.eps)[0],
            lambda op: _layer(op).by_weight(),
            lambda op: _layer(op).back_to_weight(),
            "each feature has its own gain",
            pattern=lambda op: _features(op, op.weight),
        ),
        "bias": Wrt(
            lambda op, g: g,
            "1",
            "$g",
            "each feature has its own shift",
            pattern=lambda op: _features(op, op.bias),
        ),
    },
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

# RMS norm: like layer norm without a centre, so nothing is taken off but the part along x_hat.


def _root_mean_square(op: Any) -> tuple[Tensor, Tensor]:
    eps = torch.finfo(op.input.dtype).eps if op.eps is None else op.eps
    inverse = (op.input.square().mean(_last_axes(op), keepdim=True) + eps).rsqrt()
    return op.input * inverse, inverse


def _rms_norm(op: Any, g: Tensor) -> Tensor:
    x_hat, inverse = _root_mean_square(op)
    g = _gained(op, g)
    return inverse * (g - x_hat * (g * x_hat).mean(_last_axes(op), keepdim=True))


fused_rms_norm = rule(
    "FusedRmsNormBackward0",
    name="rms_norm",
    equation=lambda op: _layer(op, centred=False).equation(),
    where=lambda op: _layer(op, centred=False).where(),
    wrt={
        "input": Wrt(
            _rms_norm,
            lambda op: _layer(op, centred=False).by_input(),
            lambda op: _layer(op, centred=False).back(),
            "each sample is normalised by itself: its output depends on no other sample",
            pattern=_samples,
        ),
        "weight": Wrt(
            lambda op, g: g * _root_mean_square(op)[0],
            lambda op: _layer(op, centred=False).by_weight(),
            lambda op: _layer(op, centred=False).back_to_weight(),
            "each feature has its own gain",
            pattern=lambda op: _features(op, op.weight),
        ),
    },
    samples=lambda: [
        sample(torch.ops.aten._fused_rms_norm, randn(2, 4), [4], randn(4), 1e-5),
        sample(torch.ops.aten._fused_rms_norm, randn(2, 3, 4), [3, 4], randn(3, 4), None, note="the dtype's own eps"),
    ],
    source=(
        "derivatives.yaml: _fused_rms_norm. Zhang, Sennrich: Root Mean Square Layer Normalization, arXiv:1910.07467 "
        "(2019)."
    ),
)

# Batch norm: a channel (axis 1) over all samples and places is one group.


def _training(op: Any) -> bool:
    """Whether the batch's own statistics were used; the overloads say so by flag, or by their mere name."""
    arguments = op.arguments
    if "training" in arguments:
        return bool(arguments["training"]) or arguments.get("running_mean", None) is None
    return "no_training" not in op.name and "no_update" not in op.name


def _eps(op: Any) -> float:
    """cuDNN's overload has its own name for it."""
    arguments = op.arguments
    return float(arguments.get("epsilon", arguments.get("eps")))


def _but_channels(t: Tensor) -> Index:
    return (0, *range(2, t.dim()))


def _by_channel(op: Any, operand: Any) -> Pattern | None:
    return product(axes(op.out.shape), [("1", operand.numel())]) if real(op.out, operand) else None


def _per_channel(v: Tensor, t: Tensor) -> Tensor:
    return v.reshape(1, -1, *(1,) * (t.dim() - 2))


def _batch_statistics(op: Any) -> tuple[Tensor, Tensor]:
    if _training(op):
        return standardise(op.input, _but_channels(op.input), _eps(op))
    inverse = (_per_channel(op.running_var, op.input) + _eps(op)).rsqrt()
    return (op.input - _per_channel(op.running_mean, op.input)) * inverse, inverse


def _batch_norm(op: Any, g: Tensor) -> Tensor:
    x_hat, inverse = _batch_statistics(op)
    if op.weight is not None:
        g = g * _per_channel(op.weight, g)
    return standardise_vjp(g, x_hat, inverse, _but_channels(g)) if _training(op) else g * inverse


def _batch(op: Any) -> _Normalised:
    """Channel c of all samples n and places i, j is one group."""
    places, others = "ijk"[: op.input.dim() - 2], "pqr"[: op.input.dim() - 2]
    count = op.input.numel() // max(op.input.shape[1], 1)
    own, other, over = f"nc{places}", f"mc{others}", f"m{others}"
    return _Normalised(op, own, other, over, "c", "c", "c", count, running=not _training(op))


def _batch_samples() -> list[Sample]:
    def running() -> tuple[Tensor, Tensor]:
        return torch.full((3,), 0.5), torch.full((3,), 2.0)

    return [
        sample(F.batch_norm, randn(4, 3), *running(), randn(3), randn(3), True, note="training"),
        sample(F.batch_norm, randn(2, 3, 2, 2), *running(), randn(3), randn(3), True, note="training, images"),
        sample(F.batch_norm, randn(4, 3), *running(), randn(3), randn(3), False, note="evaluation"),
        sample(F.batch_norm, randn(4, 3), *running(), None, None, False, note="evaluation, no gain or shift"),
        sample(F.batch_norm, randn(4, 3), None, None, None, None, True, note="no running statistics"),
        sample(F.instance_norm, randn(2, 3, 4), weight=randn(3), bias=randn(3), note="instance norm"),
        sample(torch.ops.aten._native_batch_norm_legit, randn(4, 3), randn(3), randn(3), *running(), True, 0.1, 1e-5),
        sample(torch.ops.aten._native_batch_norm_legit.no_stats, randn(4, 3), randn(3), randn(3), True, 0.1, 1e-5),
        sample(
            torch.ops.aten._native_batch_norm_legit_no_training, randn(4, 3), randn(3), randn(3), *running(), 0.1, 1e-5
        ),
        sample(torch.ops.aten._batch_norm_with_update, randn(4, 3), randn(3), randn(3), *running(), 0.1, 1e-5),
        sample(torch.ops.aten._batch_norm_no_update, randn(4, 3), randn(3), randn(3), *running(), 0.1, 1e-5),
    ]


batch_norm = rule(
    "NativeBatchNormBackward0",
    "NativeBatchNormLegitBackward0",
    "NativeBatchNormLegitNoTrainingBackward0",
    "BatchNormWithUpdateBackward0",
    "BatchNormNoUpdateBackward0",
    "CudnnBatchNormBackward0",
    "MiopenBatchNormBackward0",
    name="batch_norm",
    equation=lambda op: _batch(op).equation(),
    where=lambda op: _batch(op).where(),
    wrt={
        "input": Wrt(
            _batch_norm,
            lambda op: _batch(op).by_input(),
            lambda op: _batch(op).back(),
            "each channel is normalised by itself: its output depends on no other channel",
            pattern=lambda op: _groups(op, op.input, _but_channels(op.input) if _training(op) else ()),
        ),
        "weight": Wrt(
            lambda op, g: (g * _batch_statistics(op)[0]).sum(_but_channels(g)),
            lambda op: _batch(op).by_weight(),
            lambda op: _batch(op).back_to_weight(),
            "each channel has its own gain",
            pattern=lambda op: _by_channel(op, op.weight),
        ),
        "bias": Wrt(
            lambda op, g: g.sum(_but_channels(g)),
            lambda op: _batch(op).by_bias(),
            lambda op: _batch(op).summed(""),
            "each channel has its own shift",
            pattern=lambda op: _by_channel(op, op.bias),
        ),
    },
    constants={"running_mean": "zero", "running_var": "zero"},
    samples=_batch_samples,
    source="derivatives.yaml: native_batch_norm. Ioffe, Szegedy: Batch Normalization, arXiv:1502.03167 (2015).",
)

# Group norm: the channels of one group, at all places of one sample.


def _grouped(op: Any, t: Tensor) -> Tensor:
    return t.reshape(op.N, op.group, op.C // op.group, op.HxW)


def _in_groups(op: Any) -> tuple[Tensor, Tensor]:
    return standardise(_grouped(op, op.input), (2, 3), op.eps)


def _group_norm(op: Any, gs: tuple[Tensor | None, Tensor | None, Tensor | None]) -> Tensor:
    """The node gives mu (d mu / dx = 1/N) and 1/sigma (d (1/sigma) / dx = -x_hat / (N sigma^2)) a gradient too."""
    g, g_mean, g_inverse = gs
    x_hat, inverse = _in_groups(op)
    gradient, count = torch.zeros_like(x_hat), op.HxW * op.C // op.group
    if g is not None:
        g = g if op.weight is None else g * _per_channel(op.weight, g)
        gradient = standardise_vjp(_grouped(op, g), x_hat, inverse, (2, 3))
    if g_mean is not None:
        gradient = gradient + g_mean[..., None, None] / count
    if g_inverse is not None:
        gradient = gradient - g_inverse[..., None, None] * inverse.square() * x_hat / count
    return gradient.reshape(op.input.shape)


def _group(op: Any) -> _Normalised:
    """The channels of group a of sample n, at all places, are one group."""
    places, others, size = "ijk"[: op.input.dim() - 2], "pqr"[: op.input.dim() - 2], op.C // op.group
    place, limit = ["n", rf"\lfloor c / {size} \rfloor"], rf"\lfloor d / {size} \rfloor = a"
    return _Normalised(op, f"nc{places}", f"nd{others}", f"d{others}", "c", "na", place, size * op.HxW, limit)


def _group_local(op: Any) -> str:
    """Of the output, and of mu and 1 / sigma, which the node gives too."""
    f, size = _group(op), op.C // op.group
    place, other = ["n", rf"\lfloor d / {size} \rfloor"], at("input", _group(op).other)
    inverse = rf"-\frac{{1}}{{{f.count}}} \, \frac{{{f.hat(f.other)}}}{{({f.shared('S', place)})^2}}".replace(
        "S", r"\sigma"
    )
    mean = derivative(at("out1", place), other, rf"\frac{{1}}{{{f.count}}}")
    return rf"{f.by_input()}, \quad {mean}, \quad {derivative(at('out2', place), other, inverse)}"


def _statistics_back(op: Any) -> str:
    f = _group(op)
    mean, inverse = at("g1", f.place), at("g2", f.place)
    along = rf"\frac{{{f.hat(f.own)}}}{{({f.shared('S', f.place)})^2}}".replace("S", r"\sigma")
    return rf" + \frac{{1}}{{{f.count}}} \, \left({mean} - {inverse} \, {along}\right)"


def _group_gain(op: Any, gs: tuple[Tensor | None, ...]) -> Tensor | None:
    return None if gs[0] is None else (gs[0] * _in_groups(op)[0].reshape(gs[0].shape)).sum(_but_channels(gs[0]))


def _group_shift(op: Any, gs: tuple[Tensor | None, ...]) -> Tensor | None:
    return None if gs[0] is None else gs[0].sum(_but_channels(gs[0]))


def _channel_groups(op: Any) -> Pattern | None:
    if not real(op.out, op.input):
        return None
    samples, channels, *places = op.input.shape
    groups, inside = [("n", samples), ("group", op.group)], math.prod(places) * channels // op.group
    return product([*groups, ("out", inside)], [*groups, ("in", inside)])


native_group_norm = rule(
    "NativeGroupNormBackward0",
    equation=lambda op: (
        _group(op).equation() + r", \quad {$out1}_{n,a} = \mu_{n,a}, \quad {$out2}_{n,a} = \frac{1}{\sigma_{n,a}}"
    ),
    where=lambda op: _group(op).where(),
    wrt={
        "input": Wrt(
            _group_norm,
            _group_local,
            lambda op: _group(op).back(_statistics_back(op)),
            "each group of channels of each sample is normalised by itself",
            pattern=_channel_groups,
        ),
        "weight": Wrt(
            _group_gain,
            lambda op: _group(op).by_weight(),
            lambda op: _group(op).back_to_weight(),
            "each channel has its own gain",
            pattern=lambda op: _by_channel(op, op.weight),
        ),
        "bias": Wrt(
            _group_shift,
            lambda op: _group(op).by_bias(),
            lambda op: _group(op).summed(""),
            "each channel has its own shift",
            pattern=lambda op: _by_channel(op, op.bias),
        ),
    },
    outputs=3,
    samples=lambda: [
        sample(F.group_norm, randn(2, 4, 3), 2, randn(4), randn(4)),
        sample(F.group_norm, randn(2, 4, 2, 2), 4, note="one channel a group, no gain or shift"),
        sample(F.group_norm, randn(2, 4, 3), 1, randn(4), randn(4), note="one group"),
        sample(F.group_norm, randn(0, 4, 3), 2, randn(4), randn(4), note="empty batch"),
    ],
    source="derivatives.yaml: native_group_norm. Wu, He: Group Normalization, arXiv:1803.08494 (2018).",
)

# Weight norm: a direction v with a length of its own. PyTorch calls the length `g`.


def _but(op: Any) -> Index:
    """The axes of v that one length is taken over: all but `dim`, or all of them for dim = -1."""
    return tuple(axis for axis in range(op.v.dim()) if op.dim == -1 or axis != op.dim % op.v.dim())


def _direction(op: Any) -> tuple[Tensor, Tensor]:
    length: Tensor = op.v.square().sum(_but(op), keepdim=True).sqrt()
    return op.v / length, length


def _weight_norm_v(op: Any, g: Tensor) -> Tensor:
    direction, length = _direction(op)
    along = (g * direction).sum(_but(op), keepdim=True)
    stretch: Tensor = op.arguments["g"] / length
    return stretch * (g - direction * along)


def _weight_norm_formula(kind: str) -> Callable[[Any], str]:
    """v, its length nu, and the gain, which has the axes of v, of size 1 but for `dim`."""

    def formula(op: Any) -> str:
        own = "ijk"[: op.v.dim()]
        other = "".join(p if axis in _but(op) else i for axis, (i, p) in enumerate(zip(own, "pqr", strict=False)))
        over = ",".join(letter for letter in other if letter not in own)
        kept = [letter for letter in own if letter in other]
        nu, gain = (
            at("x", kept).replace("$x", r"\nu"),
            at("g_", [i if i in kept else "0" for i in own[: op.arguments["g"].dim()]]),
        )
        where = rf"{nu} = \sqrt{{\sum_{{{over}}} {at('v', other)}^2}}"
        v, w, unit = at("v", own), at("v", other), rf"\frac{{{gain}}}{{{nu}}}"
        same = r" \, ".join(f"[{a} = {b}]" for a, b in zip(own, other, strict=True) if a != b)
        return {
            "equation": rf"{at('out', own)} = {unit} \, {v}",
            "by v": derivative(at("out", own), w, rf"{unit} \, \left({same} - \frac{{{v} \, {w}}}{{({nu})^2}}\right)"),
            "back to v": rf"{at('grad', own)} = {unit} \, \left({at('g', own)} - \frac{{{v}}}{{({nu})^2}} \, "
            rf"\sum_{{{over}}} {at('g', other)} \, {w}\right)",
            "by g": derivative(at("out", own), gain, rf"\frac{{{v}}}{{{nu}}}"),
            "back to g": rf"{gain.replace('$g_', '$grad')} = \sum_{{{','.join(i for i in own if i not in kept)}}} "
            rf"\frac{{{v}}}{{{nu}}} \, {at('g', own)}",
            "where": where,
        }[kind]

    return formula


weight_norm = rule(
    "WeightNormInterfaceBackward0",
    name="weight_norm",
    equation=_weight_norm_formula("equation"),
    where=_weight_norm_formula("where"),
    wrt={
        "v": Wrt(
            _weight_norm_v,
            _weight_norm_formula("by v"),
            _weight_norm_formula("back to v"),
            "each index of dim has its own direction and length",
        ),
        "g": Wrt(
            lambda op, g: (g * _direction(op)[0]).sum(_but(op), keepdim=True),
            _weight_norm_formula("by g"),
            _weight_norm_formula("back to g"),
            "each index of dim has its own direction and length",
        ),
    },
    samples=lambda: [
        sample(torch._weight_norm, randn(3, 4), randn(3, 1), 0),
        sample(torch._weight_norm, randn(3, 4), randn(1, 4), 1),
        sample(torch._weight_norm, randn(3, 2, 2), randn(3, 1, 1), 0),
    ],
    source="derivatives.yaml: _weight_norm_interface. Salimans, Kingma: Weight Normalization, arXiv:1602.07868 (2016).",
)
