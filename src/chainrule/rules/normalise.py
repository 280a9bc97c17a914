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

from chainrule.rules import Factor, Sample, Wrt, at, derivative, lettered, number, rule, sample
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


# An element of x (and of the output) has the index `@x`, another one of the same group `@o`; `@over` are the letters of
# a sum over a group, `@k` those of what a group shares, and `@p` the group of `@x`. `@f` are the letters of the gain.
FORMULAS = {
    "equation": r"{$out}_{@x} = @gain \hat{x}_{@x}@shift",
    "where": r"\hat{x}_{@x} = \frac{{$input}_{@x}@centre}{\sigma_{@p}}@mean"
    r", \quad \sigma_{@k} = \sqrt{@variance + @eps}",
    "by input": derivative(
        "{$out}_{@x}",
        "{$input}_{@o}",
        r"@gain \frac{1}{\sigma_{@p}} \, \left(@same - \frac{1}{@count} @within (@one \hat{x}_{@x} \, \hat{x}_{@o})"
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


def _letters(
    op: Any,
    own: str,
    other: str,
    features: str,
    group: str,
    count: int,
    place: str = "",
    limit: str = "",
    mean: str = "",
) -> dict[str, str]:
    """What the formulas' letters stand for; `limit` says which places are in a group, `mean` is "" without a centre."""
    over = ",".join(letter for letter in other if letter not in group)
    eps = op.arguments.get("epsilon", op.arguments.get("eps"))
    average = rf"\frac{{1}}{{{count}}} \sum_{{{over}{f': {limit}' if limit else ''}}}"
    centre = r" - \mu_{@p}" if mean else ""
    return {
        "gain": "" if op.weight is None else r"{$weight}_{@f} \,",
        "shift": "" if op.arguments.get("bias") is None else " + {$bias}_{@f}",
        "centre": centre,
        "mean": rf", \quad \mu_{{@k}} = {mean}" if mean else "",
        "variance": "{$running_var}_{c}"
        if "running" in mean
        else rf"@average ({{$input}}_{{@o}}{centre.replace('@p', '@k')})^2",
        "less": r" - \alpha_{@p}" if mean else "",
        "one": "1 +" if mean else "",
        "same": r" \, ".join(f"[{a} = {b}]" for a, b in zip(own, other, strict=True) if a != b),
        "within": rf"[{limit.replace('= a', '= ' + place.split(',')[-1])}] \," if limit else "",
        "more": _statistics_back(op) if limit else "",
        "average": average,
        "rest": ",".join(letter for letter in own if letter not in features),
        "x": ",".join(own),
        "o": ",".join(other),
        "f": ",".join(features),
        "k": ",".join(group),
        "p": place or ",".join(group),
        "count": str(count),
        "eps": number(torch.finfo(op.input.dtype).eps if eps is None else float(eps)),
    }


def _told(letters: Callable[[Any], dict[str, str]], name: str) -> Callable[[Any], str]:
    def formula(op: Any) -> str:
        given = letters(op)
        kept = name + (", running" if "running" in given["mean"] and name in ("by input", "to input") else "")
        return lettered(lettered(FORMULAS[kept], given), given)

    return formula


def _formulas(
    letters: Callable[[Any], dict[str, str]], argument: str
) -> tuple[Callable[[Any], str], Callable[[Any], str]]:
    """The local derivative by an argument, and its gradient."""
    return _told(letters, f"by {argument}"), _told(letters, f"to {argument}")


# Layer norm: the last axes are one group; gain and shift broadcast over the rest, which the walk sums over.


def _last_axes(op: Any) -> Index:
    return tuple(range(-len(op.normalized_shape), 0))


def _samples(op: Any) -> Pattern | None:
    dims = op.input.dim()
    return _groups(op, op.input, range(dims - len(op.normalized_shape), dims))


def _features(op: Any, operand: Any) -> Pattern | None:
    return aligned(op.out.shape, operand.shape) if real(op.out, operand) else None


def _layer(op: Any, centred: bool = True) -> dict[str, str]:
    """A sample's features i, j are one group."""
    count = len(op.normalized_shape)
    samples, own, other = "cdefgmn"[7 - op.input.dim() + count :], "ijkl"[:count], "pqrs"[:count]
    mean = r"@average {$input}_{@o}" if centred else ""
    return _letters(op, samples + own, samples + other, own, samples, math.prod(op.normalized_shape), mean=mean)


def _rms(op: Any) -> dict[str, str]:
    return _layer(op, centred=False)


def _gained(op: Any, g: Tensor) -> Tensor:
    return g if op.weight is None else g * op.weight


def _layer_norm(op: Any, g: Tensor) -> Tensor:
    dims = _last_axes(op)
    x_hat, inverse = standardise(op.input, dims, op.eps)
    return standardise_vjp(_gained(op, g), x_hat, inverse, dims)


native_layer_norm = rule(
    "NativeLayerNormBackward0",
    equation=_told(_layer, "equation"),
    where=_told(_layer, "where"),
    wrt={
        "input": Wrt(
            _layer_norm,
            *_formulas(_layer, "input"),
            "each sample is normalised by itself: its output depends on no other sample",
            pattern=_samples,
        ),
        "weight": Wrt(
            lambda op, g: g * standardise(op.input, _last_axes(op), op.eps)[0],
            *_formulas(_layer, "weight"),
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
    equation=_told(_rms, "equation"),
    where=_told(_rms, "where"),
    wrt={
        "input": Wrt(
            _rms_norm,
            *_formulas(_rms, "input"),
            "each sample is normalised by itself: its output depends on no other sample",
            pattern=_samples,
        ),
        "weight": Wrt(
            lambda op, g: g * _root_mean_square(op)[0],
            *_formulas(_rms, "weight"),
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


def _batch(op: Any) -> dict[str, str]:
    """Channel c of all samples n and places i, j is one group."""
    places, others = "ijk"[: op.input.dim() - 2], "pqr"[: op.input.dim() - 2]
    count = op.input.numel() // max(op.input.shape[1], 1)
    mean = r"@average {$input}_{@o}" if _training(op) else "{$running_mean}_{c}"
    return _letters(op, f"nc{places}", f"mc{others}", "c", "c", count, mean=mean)


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
    equation=_told(_batch, "equation"),
    where=_told(_batch, "where"),
    wrt={
        "input": Wrt(
            _batch_norm,
            *_formulas(_batch, "input"),
            "each channel is normalised by itself: its output depends on no other channel",
            pattern=lambda op: _groups(op, op.input, _but_channels(op.input) if _training(op) else ()),
        ),
        "weight": Wrt(
            lambda op, g: (g * _batch_statistics(op)[0]).sum(_but_channels(g)),
            *_formulas(_batch, "weight"),
            "each channel has its own gain",
            pattern=lambda op: _by_channel(op, op.weight),
        ),
        "bias": Wrt(
            lambda op, g: g.sum(_but_channels(g)),
            *_formulas(_batch, "bias"),
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


def _group(op: Any) -> dict[str, str]:
    """The channels of group a of sample n, at all places, are one group."""
    places, others, size = "ijk"[: op.input.dim() - 2], "pqr"[: op.input.dim() - 2], op.C // op.group
    place, limit = rf"n,\lfloor c / {size} \rfloor", rf"\lfloor d / {size} \rfloor = a"
    mean = r"@average {$input}_{@o}"
    return _letters(op, f"nc{places}", f"nd{others}", "c", "na", size * op.HxW, place, limit, mean)


def _group_local(op: Any) -> str:
    """Of the output, and of mu and 1 / sigma, which the node gives too."""
    other = {**_group(op), "q": rf"n,\lfloor d / {op.C // op.group} \rfloor"}
    statistics = (
        derivative("{$out1}_{@q}", "{$input}_{@o}", r"\frac{1}{@count}"),
        derivative("{$out2}_{@q}", "{$input}_{@o}", r"-\frac{1}{@count} \, \frac{\hat{x}_{@o}}{(\sigma_{@q})^2}"),
    )
    return r", \quad ".join([_told(_group, "by input")(op), *(lettered(each, other) for each in statistics)])


def _statistics_back(op: Any) -> str:
    return r" + \frac{1}{@count} \, \left({$g1}_{@p} - {$g2}_{@p} \, \frac{\hat{x}_{@x}}{(\sigma_{@p})^2}\right)"


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
        _told(_group, "equation")(op)
        + r", \quad {$out1}_{n,a} = \mu_{n,a}, \quad {$out2}_{n,a} = \frac{1}{\sigma_{n,a}}"
    ),
    where=_told(_group, "where"),
    wrt={
        "input": Wrt(
            _group_norm,
            _group_local,
            _told(_group, "to input"),
            "each group of channels of each sample is normalised by itself",
            pattern=_channel_groups,
        ),
        "weight": Wrt(
            _group_gain,
            *_formulas(_group, "weight"),
            "each channel has its own gain",
            pattern=lambda op: _by_channel(op, op.weight),
        ),
        "bias": Wrt(
            _group_shift,
            *_formulas(_group, "bias"),
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
