"""An operator, `softclip`, and the same as an `autograd.Function`, `SoftClip`."""

import torch
from torch import Tensor

__all__ = ["SoftClip", "softclip"]


@torch.library.custom_op("softclip::softclip", mutates_args=())
def softclip(x: Tensor, limit: float) -> Tensor:
    """Limit a tensor to a range, smoothly: limit * tanh(x / limit)."""
    return limit * torch.tanh(x / limit)


@softclip.register_fake
def _(x: Tensor, limit: float) -> Tensor:
    return torch.empty_like(x)


def _save(ctx, inputs, output):
    _, ctx.limit = inputs
    ctx.save_for_backward(output)


def _backward(ctx, upstream):
    (y,) = ctx.saved_tensors
    return upstream * (1 - (y / ctx.limit) ** 2), None


softclip.register_autograd(_backward, setup_context=_save)


class SoftClip(torch.autograd.Function):
    """`softclip` with a limit of 1."""

    @staticmethod
    def forward(ctx, x):
        """Return tanh(x)."""
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, upstream):
        """Multiply by the slope, 1 - y^2."""
        (y,) = ctx.saved_tensors
        return upstream * (1 - y**2)
