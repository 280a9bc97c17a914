"""Rules of operations that bring values to a common scale: softmax; layer, batch, group, RMS and weight normalisation.

All of the latter are x_hat = (x - mu) / sigma over some group of elements. As mu and sigma depend on x themselves, the
gradient loses its own mean and its part along x_hat: shifting or stretching the whole group would change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Factor, Sample, Wrt, number, rule, sample
from chainrule.rules.pattern import Pattern, aligned, axes, product, real

Index = tuple[int, ...]


def x(*shape: int) -> Tensor:
    """A sample input that wants a gradient; the same numbers each time."""
    generator = torch.Generator().manual_seed(sum(shape) + 1)
    return torch.randn(shape, generator=generator).requires_grad_()


# Softmax ---------------------------------------------------------------------------------------------------------

OWN_ROW = "an output element depends on the elements that share its row along dim, and on no others"


def _softmax_samples(function: Callable[..., Any]) -> list[Sample]:
    return [
        sample(function, x(2, 3), 1),
        sample(function, x(2, 3, 2), 0),
        sample(function, x(2, 1), -1, note="size 1"),
        sample(function, x(0, 3), -1, note="empty"),
        sample(function, x(), 0, note="0-dim"),
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
    equation=r"$out = \operatorname{softmax}($self) = \frac{e^{$self}}{\sum_{\text{dim $dim}} e^{$self}}",
    wrt={
        "self": Wrt(
            lambda op, g: op.out * (g - (g * op.out).sum(op.dim, keepdim=True)),
            r"\operatorname{diag}(s) - s \, s^{T}, \; s = $out",
            r"$out \odot \left($g - \sum_{\text{dim $dim}} $g \odot $out\right)",
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
    equation=r"$out = $self - \log \sum_{\text{dim $dim}} e^{$self}",
    wrt={
        "self": Wrt(
            lambda op, g: g - op.out.exp() * g.sum(op.dim, keepdim=True),
            r"I - \mathbf{1} \, s^{T}, \; s = e^{$out}",
            r"$g - e^{$out} \odot \sum_{\text{dim $dim}} $g",
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


CENTRED = (
    r"\frac{1}{\sigma} \left(\tilde{g} - \overline{\tilde{g}} - \hat{x} \, \overline{\tilde{g} \odot \hat{x}}\right)"
)
LOCAL = r"\frac{1}{\sigma} \left(I - \frac{1}{N} \mathbf{1} \mathbf{1}^{T} - \frac{1}{N} \hat{x} \, \hat{x}^{T}\right)"


def _affine(op: Any, statistics: str) -> str:
    gain = "" if op.weight is None else r"$weight \odot "
    shift = "" if op.bias is None else " + $bias"
    return rf"$out = {gain}\hat{{x}}{shift}, \quad \hat{{x}} = {statistics}"


def _scaled(op: Any, local: str) -> str:
    return local if op.weight is None else rf"$weight \odot {local}"


def _with_gain(op: Any, formula: str) -> str:
    g_tilde = "$g" if op.weight is None else r"$g \odot $weight"
    return rf"{formula}, \; \tilde{{g}} = {g_tilde}"


# Layer norm: the last axes are one group; gain and shift broadcast over the rest, which the walk sums over.


def _last_axes(op: Any) -> Index:
    return tuple(range(-len(op.normalized_shape), 0))


def _samples(op: Any) -> Pattern | None:
    dims = op.input.dim()
    return _groups(op, op.input, range(dims - len(op.normalized_shape), dims))


def _features(op: Any, operand: Any) -> Pattern | None:
    return aligned(op.out.shape, operand.shape) if real(op.out, operand) else None


def _gained(op: Any, g: Tensor) -> Tensor:
    return g if op.weight is None else g * op.weight


def _layer_norm(op: Any, g: Tensor) -> Tensor:
    dims = _last_axes(op)
    x_hat, inverse = standardise(op.input, dims, op.eps)
    return standardise_vjp(_gained(op, g), x_hat, inverse, dims)


native_layer_norm = rule(
    "NativeLayerNormBackward0",
    equation=lambda op: _affine(op, r"\frac{$input - \mu}{\sqrt{\sigma^2 + $eps}}"),
    wrt={
        "input": Wrt(
            _layer_norm,
            lambda op: _scaled(op, LOCAL),
            lambda op: _with_gain(op, CENTRED),
            "each sample is normalised by itself: its output depends on no other sample",
            pattern=_samples,
        ),
        "weight": Wrt(
            lambda op, g: g * standardise(op.input, _last_axes(op), op.eps)[0],
            r"\hat{x}",
            r"\sum_{\text{samples}} $g \odot \hat{x}",
            "each feature has its own gain",
            pattern=lambda op: _features(op, op.weight),
        ),
        "bias": Wrt(
            lambda op, g: g,
            "1",
            r"\sum_{\text{samples}} $g",
            "each feature has its own shift",
            pattern=lambda op: _features(op, op.bias),
        ),
    },
    samples=lambda: [
        sample(F.layer_norm, x(2, 4), (4,), x(4), x(4)),
        sample(F.layer_norm, x(2, 3, 4), (3, 4), x(3, 4), x(3, 4)),
        sample(F.layer_norm, x(2, 4), (4,), note="without gain and shift"),
        sample(F.layer_norm, x(2, 4), (4,), x(4), note="without shift"),
        sample(F.layer_norm, x(2, 1), (1,), x(1), x(1), note="size 1"),
        sample(F.layer_norm, x(0, 4), (4,), x(4), x(4), note="empty batch"),
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
    equation=lambda op: (
        ("$out = " if op.weight is None else r"$out = $weight \odot ")
        + r"\hat{x}, \quad \hat{x} = \frac{$input}{\sqrt{\operatorname{mean}($input^2) + \epsilon}}"
    ),
    wrt={
        "input": Wrt(
            _rms_norm,
            lambda op: _scaled(op, r"\frac{1}{\sigma} \left(I - \frac{1}{N} \hat{x} \, \hat{x}^{T}\right)"),
            lambda op: _with_gain(
                op, r"\frac{1}{\sigma} \left(\tilde{g} - \hat{x} \, \overline{\tilde{g} \odot \hat{x}}\right)"
            ),
            "each sample is normalised by itself: its output depends on no other sample",
            pattern=_samples,
        ),
        "weight": Wrt(
            lambda op, g: g * _root_mean_square(op)[0],
            r"\hat{x}",
            r"\sum_{\text{samples}} $g \odot \hat{x}",
            "each feature has its own gain",
            pattern=lambda op: _features(op, op.weight),
        ),
    },
    samples=lambda: [
        sample(torch.ops.aten._fused_rms_norm, x(2, 4), [4], x(4), 1e-5),
        sample(torch.ops.aten._fused_rms_norm, x(2, 3, 4), [3, 4], x(3, 4), None, note="the dtype's own eps"),
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


def _batch_equation(op: Any) -> str:
    whose = r"_{\text{batch}}" if _training(op) else r"_{\text{running}}"
    return _affine(op, rf"\frac{{$input - \mu{whose}}}{{\sqrt{{\sigma^2{whose} + {number(_eps(op))}}}}}")


def _batch_samples() -> list[Sample]:
    def running() -> tuple[Tensor, Tensor]:
        return torch.full((3,), 0.5), torch.full((3,), 2.0)

    return [
        sample(F.batch_norm, x(4, 3), *running(), x(3), x(3), True, note="training"),
        sample(F.batch_norm, x(2, 3, 2, 2), *running(), x(3), x(3), True, note="training, images"),
        sample(F.batch_norm, x(4, 3), *running(), x(3), x(3), False, note="evaluation"),
        sample(F.batch_norm, x(4, 3), *running(), None, None, False, note="evaluation, no gain or shift"),
        sample(F.batch_norm, x(4, 3), None, None, None, None, True, note="no running statistics"),
        sample(F.instance_norm, x(2, 3, 4), weight=x(3), bias=x(3), note="instance norm"),
        sample(torch.ops.aten._native_batch_norm_legit, x(4, 3), x(3), x(3), *running(), True, 0.1, 1e-5),
        sample(torch.ops.aten._native_batch_norm_legit.no_stats, x(4, 3), x(3), x(3), True, 0.1, 1e-5),
        sample(torch.ops.aten._native_batch_norm_legit_no_training, x(4, 3), x(3), x(3), *running(), 0.1, 1e-5),
        sample(torch.ops.aten._batch_norm_with_update, x(4, 3), x(3), x(3), *running(), 0.1, 1e-5),
        sample(torch.ops.aten._batch_norm_no_update, x(4, 3), x(3), x(3), *running(), 0.1, 1e-5),
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
    equation=_batch_equation,
    wrt={
        "input": Wrt(
            _batch_norm,
            lambda op: _scaled(op, LOCAL if _training(op) else r"\frac{1}{\sigma}"),
            lambda op: _with_gain(op, CENTRED if _training(op) else r"\frac{1}{\sigma} \, \tilde{g}"),
            "each channel is normalised by itself: its output depends on no other channel",
            pattern=lambda op: _groups(op, op.input, _but_channels(op.input) if _training(op) else ()),
        ),
        "weight": Wrt(
            lambda op, g: (g * _batch_statistics(op)[0]).sum(_but_channels(g)),
            r"\hat{x}",
            r"\sum_{\text{all but channels}} $g \odot \hat{x}",
            "each channel has its own gain",
            pattern=lambda op: _by_channel(op, op.weight),
        ),
        "bias": Wrt(
            lambda op, g: g.sum(_but_channels(g)),
            "1",
            r"\sum_{\text{all but channels}} $g",
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
    equation=lambda op: _affine(
        op, r"\frac{$input - \mu}{\sqrt{\sigma^2 + $eps}} \text{ in each of } $group \text{ groups}"
    ),
    wrt={
        "input": Wrt(
            _group_norm,
            lambda op: _scaled(op, LOCAL),
            lambda op: _with_gain(op, CENTRED),
            "each group of channels of each sample is normalised by itself",
            pattern=_channel_groups,
        ),
        "weight": Wrt(
            _group_gain,
            r"\hat{x}",
            r"\sum_{\text{all but channels}} $g \odot \hat{x}",
            "each channel has its own gain",
            pattern=lambda op: _by_channel(op, op.weight),
        ),
        "bias": Wrt(
            _group_shift,
            "1",
            r"\sum_{\text{all but channels}} $g",
            "each channel has its own shift",
            pattern=lambda op: _by_channel(op, op.bias),
        ),
    },
    outputs=3,
    samples=lambda: [
        sample(F.group_norm, x(2, 4, 3), 2, x(4), x(4)),
        sample(F.group_norm, x(2, 4, 2, 2), 4, note="one channel a group, no gain or shift"),
        sample(F.group_norm, x(2, 4, 3), 1, x(4), x(4), note="one group"),
        sample(F.group_norm, x(0, 4, 3), 2, x(4), x(4), note="empty batch"),
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


weight_norm = rule(
    "WeightNormInterfaceBackward0",
    name="weight_norm",
    equation=(
        r"$out = \text{length} \cdot \frac{$v}{\lVert $v \rVert}"
        r" \quad \text{(a length for each index of dim } $dim \text{)}"
    ),
    wrt={
        "v": Wrt(
            _weight_norm_v,
            r"\frac{\text{length}}{\lVert $v \rVert} \left(I - u \, u^{T}\right), \; u = \frac{$v}{\lVert $v \rVert}",
            r"\frac{\text{length}}{\lVert $v \rVert} \left($g - u \, (u \cdot $g)\right)",
            "each index of dim has its own direction and length",
        ),
        "g": Wrt(
            lambda op, g: (g * _direction(op)[0]).sum(_but(op), keepdim=True),
            r"u = \frac{$v}{\lVert $v \rVert}",
            r"u \cdot $g",
            "each index of dim has its own direction and length",
        ),
    },
    samples=lambda: [
        sample(torch._weight_norm, x(3, 4), x(3, 1), 0),
        sample(torch._weight_norm, x(3, 4), x(1, 4), 1),
        sample(torch._weight_norm, x(3, 2, 2), x(3, 1, 1), 0),
    ],
    source="derivatives.yaml: _weight_norm_interface. Salimans, Kingma: Weight Normalization, arXiv:1602.07868 (2016).",
)
