"""Rules of fake quantisation: numbers are rounded to a grid, and the gradient passes as if they were not.

The derivative is 0 almost everywhere. PyTorch takes the straight-through estimator (arXiv:1308.3432) instead; where it
learns scale and zero point, their gradients follow from that (arXiv:1902.08153).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Convention, Rule, Sample, Wrt, derivative, rule, sample
from chainrule.rules import at as element
from chainrule.rules.index_notation import LETTERS, filled, letters, ranges, total
from chainrule.rules.pattern import laid
from chainrule.rules.pointwise import x

PASSES = "straight-through estimator: within the range of the grid the gradient passes as if nothing were rounded"
LEARNED = "straight-through estimator: the gradient is what it would be if nothing were rounded, times grad_factor"

OBSERVER = ("observer_on", "fake_quant_on", "running_min", "running_max")
GIVEN = ("scale", "zero_point", "fake_quant_enabled", *OBSERVER)


def _axis(op: Any) -> int | None:
    """The axis of the channels; None where all elements share one scale."""
    axis: int | None = op.ch_axis if op.arguments.get("per_row_fake_quant") else op.arguments.get("axis")
    return None if axis is None else axis % op.self.dim()


def _beside(op: Any, name: str) -> Any:
    """Scale or zero point, so that it broadcasts against the elements."""
    value, axis = op.arguments[name], _axis(op)
    if name == "zero_point" and _learns(op):
        value = value.round().clamp(op.quant_min, op.quant_max)
    if not isinstance(value, Tensor):
        return value
    return value.reshape(()) if axis is None else laid(value, axis, op.self.dim())


def _learns(op: Any) -> bool:
    return "grad_factor" in op.arguments


def _rounded(op: Any) -> Tensor:
    """The place on the grid that each element is rounded to, if the grid had no ends."""
    place: Tensor = torch.round(op.self / _beside(op, "scale")) + _beside(op, "zero_point")
    return place


def _inside(op: Any) -> Tensor:
    """Which elements lie within the range of the grid; an observer has moved that grid before it is used."""
    if "observer_on" in op.arguments:
        mask: Tensor = op.outs[1]
        return mask != 0
    rounded = _rounded(op)
    inside: Tensor = (rounded >= op.quant_min) & (rounded <= op.quant_max)
    return inside


def _is_off(op: Any) -> bool:
    """Whether the quantisation is switched off: then nothing is rounded."""
    switch = op.arguments.get("fake_quant_enabled", op.arguments.get("fake_quant_on"))
    return switch is not None and not switch.any()


def _passed(op: Any, radius: float) -> Tensor:
    return torch.zeros_like(op.self, dtype=torch.bool) if _is_off(op) else _inside(op)


def _all(op: Any, radius: float, name: str) -> Tensor:
    given: Tensor = op.arguments[name]
    return torch.ones_like(given, dtype=torch.bool)


def _summed(op: Any, name: str, each: Tensor) -> Tensor:
    """The gradient of a scale or zero point: what the elements of its channel give together."""
    axes = [axis for axis in range(each.dim()) if axis != _axis(op)]
    given: Tensor = op.arguments[name]
    factor: float = op.grad_factor
    return factor * (each.sum(axes) if axes else each).reshape(given.shape).to(given.dtype)


def _by_scale(op: Any, g: Tensor) -> Tensor:
    grid = _rounded(op).clamp(op.quant_min, op.quant_max) - _beside(op, "zero_point")
    return _summed(op, "scale", g * (grid - torch.where(_inside(op), op.self / _beside(op, "scale"), 0)))


def _by_zero_point(op: Any, g: Tensor) -> Tensor:
    return _summed(op, "zero_point", torch.where(_inside(op), 0, -g * _beside(op, "scale")))


def _text(template: str) -> Callable[[Any], str]:
    """A formula of one element. SCALE and ZERO are those of its channel, ROUND the place that it is rounded to."""

    def formula(op: Any) -> str:
        axis = _axis(op)
        at = letters(op.out) if _learns(op) or axis is not None else []
        own = [] if axis is None else [LETTERS[axis]]

        def put(name: str) -> str:
            value = op.arguments[name]
            return element(name, own or ["0"] * (value.dim() if at else 0)) if isinstance(value, Tensor) else f"${name}"

        zero = put("zero_point")
        if _learns(op):
            zero = rf"\min(\max(\operatorname{{round}}({zero}), $quant_min), $quant_max)"
        words = {
            "X": element("self", at), "Y": element("out", at), "U": element("g", at), "G": element("grad", at),
            "SHARED": element("grad", own or ["0"]), "SCALE": put("scale"), "PUT": put("zero_point"), "ZERO": zero,
            "ROUND": f"R_{{{', '.join(at)}}}" if at else "R", "INSIDE": r"[$quant_min \le ROUND \le $quant_max]",
            "GRID": r"(\min(\max(ROUND, $quant_min), $quant_max) - ZERO)",
            "RANGES": r", \quad ".join(["", *(ranges(at, op.out.shape).values() if at else ())]),
            "EACH": total([letter for letter in at if letter not in own], [], "U"),
        }  # fmt: skip
        return filled(template, words)

    return formula


def _wrt(name: str, vjp: Any, slope: str) -> Wrt:
    if name == "self":
        of, product, zeros = "X", f"G = U \\, {slope}", "each output element depends on its own input element alone"
    else:
        of, product, zeros = "SCALE" if name == "scale" else "PUT", rf"SHARED = $grad_factor \, EACH \, {slope}", ""
        slope = rf"$grad_factor \, {slope}"
    return Wrt(vjp, _text(derivative("Y", of, slope)), _text(product), zeros)


def _fake_quantised(node: str, documented: str, samples: Callable[[], Iterable[Sample]], *learned: str) -> Rule:
    """Register a fake quantisation, which may learn its scale and zero point."""
    vjps = {
        "self": (lambda op, g: g if _is_off(op) else torch.where(_inside(op), g, 0), "INSIDE"),
        "scale": (_by_scale, r"\left(GRID - INSIDE \, \frac{X}{SCALE}\right)"),
        "zero_point": (_by_zero_point, r"(-SCALE) \, (1 - INSIDE)"),
    }
    every = [Convention(partial(_all, name=name), LEARNED, name) for name in learned]
    return rule(
        node,
        equation=_text(r"Y = GRID \, SCALE"),
        where=_text(r"ROUND = \operatorname{round}\left(\frac{X}{SCALE}\right) + ZERO RANGES"),
        wrt={name: _wrt(name, *vjps[name]) for name in ("self", *learned)},
        constants=dict.fromkeys((each for each in GIVEN if each not in learned), "not differentiable"),
        structure="dense" if learned or "PerChannel" in node else "elementwise",
        conventions=(Convention(_passed, PASSES, source=documented), *every),
        samples=samples,
    )


aten = torch.ops.aten
SPREAD, CHANNELS = (-3.0, -0.72, -0.31, 0.08, 0.33, 2.4), (0.1, 0.2, 0.5)
_fake_quantised(
    "FakeQuantizePerTensorAffineCachemaskBackward0",
    "torch.fake_quantize_per_tensor_affine",
    lambda: [
        sample(torch.fake_quantize_per_tensor_affine, x(*SPREAD), 0.25, 1, -4, 5),
        sample(torch.fake_quantize_per_tensor_affine, x(0.3, shape=()), 0.25, 0, -4, 5, note="0-dim"),
        sample(torch.fake_quantize_per_tensor_affine, x(shape=(0, 2)), 0.25, 0, -4, 5, note="empty"),
    ],
)
_fake_quantised(
    "FakeQuantizePerTensorAffineCachemaskTensorQparamsBackward0",
    "torch.fake_quantize_per_tensor_affine",
    lambda: [
        sample(
            torch.fake_quantize_per_tensor_affine, x(*SPREAD, shape=(2, 3)), torch.tensor(0.25),
            torch.tensor(1, dtype=torch.int32), -4, 5,
        )
    ],
)  # fmt: skip
_fake_quantised(
    "FakeQuantizePerChannelAffineCachemaskBackward0",
    "torch.fake_quantize_per_channel_affine",
    lambda: [
        sample(
            torch.fake_quantize_per_channel_affine, x(*SPREAD, shape=(2, 3)), torch.tensor(CHANNELS),
            torch.tensor([0, 1, 2], dtype=torch.int32), 1, -4, 5,
        )
    ],
)  # fmt: skip
_fake_quantised(
    "FakeQuantizeLearnablePerTensorAffineBackward0",
    "",
    lambda: [sample(aten._fake_quantize_learnable_per_tensor_affine, x(*SPREAD), x(0.25), x(1.2), -4, 5, 0.5)],
    "scale",
    "zero_point",
)
_fake_quantised(
    "FakeQuantizeLearnablePerChannelAffineBackward0",
    "",
    lambda: [
        sample(
            aten._fake_quantize_learnable_per_channel_affine, x(*SPREAD, shape=(2, 3)), x(*CHANNELS),
            x(0, 1, 2.2), 1, -4, 5, 0.5,
        )
    ],
    "scale",
    "zero_point",
)  # fmt: skip
_fake_quantised(
    "FusedMovingAvgObsFqHelperBackward0",
    "torch.ao.quantization.FusedMovingAvgObsFakeQuantize",
    lambda: [
        sample(
            torch.fused_moving_avg_obs_fake_quant, x(*SPREAD), torch.tensor([0]), torch.tensor([1]),
            torch.tensor([-1.25]), torch.tensor([1.0]), torch.tensor([0.25]), torch.tensor([1], dtype=torch.int32),
            0.01, -4, 5, 0, False, False,
        )
    ],
)  # fmt: skip
