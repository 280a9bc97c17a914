"""A custom operator with a registered gradient, in the form of an `autograd.Function`."""

from __future__ import annotations

from typing import Any

from chainrule.pytorch_internals import body_of


class OperatorFunction:
    """What runs a Function again and looks for the mistake in its backward finds the same names here."""

    setup_context = None  # the forward has no ctx

    def __init__(self, operator: Any) -> None:
        self.apply, self.forward = operator, body_of(operator) or operator

    def backward(self, ctx: Any, *upstream: Any) -> Any:
        """The gradients of the arguments, and a None for what PyTorch hands on besides."""
        return ctx._forward_cls.backward(ctx, *upstream)


def function_of(made_by: Any) -> Any:
    """The Function of a user's node, whether it is one or a custom operator."""
    return made_by if hasattr(made_by, "apply") else OperatorFunction(made_by)
