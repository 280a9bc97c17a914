"""How convolutions and pooling come down to primitives: by the windows of their input.

A convolution is a product of matrices, of its windows and its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Applied, for_operation

aten: Any = torch.ops.aten


def convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Any:  # fmt: skip
    """A product of the weight with each window of the padded input; a transposed one is that of a spread-out input."""
    places = input.dim() - 2
    if input.dim() != weight.dim():
        return NotImplemented
    stride, padding, dilation, output_padding = (
        [each[0] if len(each) == 1 else each[axis] for axis in range(places)]
        for each in (stride, padding, dilation, output_padding)
    )
    if transposed:
        for axis, step in enumerate(stride, 2):
            input = _spread_out(input, axis, step)
        inner = weight.shape[0] // groups
        weight = weight.reshape(groups, inner, *weight.shape[1:]).transpose(1, 2)
        weight = weight.reshape(-1, inner, *weight.shape[3:]).flip(tuple(range(2, 2 + places)))
        padding = [(size - 1) * step - pad for size, step, pad in zip(weight.shape[2:], dilation, padding, strict=True)]
        ends = [pad + more for pad, more in zip(padding, output_padding, strict=True)]
        stride = [1] * places
    else:
        ends = padding
    sides = [side for pair in zip(reversed(padding), reversed(ends), strict=True) for side in pair]
    windows = _windows(F.pad(input, sides) if any(sides) else input, weight.shape[2:], stride, dilation)
    batch, out = windows.shape[0], windows.shape[2 : 2 + places]
    order = [0, 1, *range(2 + places, 2 + 2 * places), *range(2, 2 + places)]
    columns = windows.permute(order).reshape(batch, groups, -1, prod(out))
    rows = weight.reshape(1, groups, weight.shape[0] // groups, -1)
    result = torch.matmul(rows.expand(batch, *rows.shape[1:]), columns).reshape(batch, weight.shape[0], *out)
    return result if bias is None else result + bias.reshape(-1, *[1] * places)


def convolution_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
    output_mask: Sequence[bool],
) -> Any:  # fmt: skip
    """What comes back through a convolution, by its rule."""
    bias = None if bias_sizes is None else input.new_zeros(bias_sizes)
    arguments = {
        "input": input, "weight": weight, "bias": bias, "stride": stride, "padding": padding, "dilation": dilation,
        "transposed": transposed, "output_padding": output_padding, "groups": groups,
    }  # fmt: skip
    op = Applied(arguments, (grad_output,), str(aten.convolution.default))
    rule = for_operation(op)
    if rule is None:
        return NotImplemented
    wanted = zip(("input", "weight", "bias"), output_mask, strict=True)
    return tuple(rule.gradient(op, (grad_output,), name) if is_asked else None for name, is_asked in wanted)


def average_pool(
    self: Tensor, kernel_size: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Any:  # fmt: skip
    """The sum of each window over the count of its elements."""
    places = len(kernel_size)
    stride, padding = list(stride) or list(kernel_size), list(padding) * (places // len(padding))
    sides, ends = [each for pad in reversed(padding) for each in (pad, pad)], [0] * (2 * places)
    for axis, (size, window, step, pad) in enumerate(
        zip(self.shape[-places:], kernel_size, stride, padding, strict=True)
    ):
        left = (size + 2 * pad - window) % step
        if ceil_mode and left and size + 2 * pad - window - left + step < size + pad:  # else the last one is outside
            ends[2 * (places - axis) - 1] = step - left
    axes = list(range(-places, 0))

    def summed(x: Tensor, around: float = 0.0) -> Tensor:
        x = F.pad(x, sides, value=around) if any(sides) else x
        return _windows(F.pad(x, ends) if any(ends) else x, kernel_size, stride, [1] * places).sum(axes)

    if divisor_override is not None:
        return summed(self) / divisor_override
    return summed(self) / summed(torch.ones(self.shape, dtype=self.dtype), float(count_include_pad))


def adaptive_max_pool2d(self: Tensor, output_size: Sequence[int]) -> Any:
    """The largest element of each window; windows may differ in size by one, and then begin with an element twice."""
    high, wide = self.shape[-2:]
    rows, columns = (
        [range(place * size // count, -(-(place + 1) * size // count)) for place in range(count)]
        for size, count in ((high, output_size[0]), (wide, output_size[1]))
    )
    windows = [[row * wide + column for row in down for column in along] for down in rows for along in columns]
    most = max(map(len, windows))
    places = torch.tensor([[each[0]] * (most - len(each)) + each for each in windows])
    inside = aten.index(self.flatten(-2), [None] * (self.dim() - 2) + [places])
    largest, at = inside.max(-1)
    index = aten.gather(places.expand(inside.shape), -1, at.unsqueeze(-1)).squeeze(-1)
    shape = (*self.shape[:-2], len(rows), len(columns))
    return largest.reshape(shape), index.reshape(shape)


def _windows(input: Tensor, sizes: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Each window along the last axes, as further axes at the end."""
    first = input.dim() - len(sizes)
    for axis, (size, step, far) in enumerate(zip(sizes, stride, dilation, strict=True), first):
        input = input.unfold(axis, (size - 1) * far + 1, step)
        input = input[..., ::far]
    return input


def _spread_out(input: Tensor, axis: int, step: int) -> Tensor:
    """Zeros between the elements along an axis."""
    if step == 1:
        return input
    shape = list(input.shape)
    spread = F.pad(input.unsqueeze(axis + 1), [0, 0] * (input.dim() - axis - 1) + [0, step - 1])
    shape[axis] *= step
    return spread.reshape(shape).narrow(axis, 0, shape[axis] - step + 1)


WINDOWS: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: convolution,
    aten.convolution_backward.default: convolution_backward,
    aten.avg_pool1d.default: average_pool,
    aten.avg_pool2d.default: average_pool,
    aten.avg_pool3d.default: average_pool,
    aten.adaptive_max_pool2d.default: adaptive_max_pool2d,
}
