"""Of any shapes that broadcast: the sum over the copies, and the elementwise rules, give the gradients of autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes

from chainrule import rules
from chainrule.errors import RuleError

SIDES = {"min_side": 0, "max_side": 3}
OPERATIONS = {
    "AddBackward0": (torch.add, ("self", "other"), {"alpha": 1}),
    "SubBackward0": (torch.sub, ("self", "other"), {"alpha": 1}),
    "MulBackward0": (torch.mul, ("self", "other"), {}),
    "DivBackward0": (torch.div, ("self", "other"), {"rounding_mode": None}),
    "PowBackward1": (torch.pow, ("self", "exponent"), {}),
    "MaximumBackward0": (torch.maximum, ("self", "other"), {}),
    "Atan2Backward0": (torch.atan2, ("self", "other"), {}),
    "HypotBackward0": (torch.hypot, ("self", "other"), {}),
    "AddcmulBackward0": (torch.addcmul, ("self", "tensor1", "tensor2"), {"value": 1}),
    "LerpBackward1": (torch.lerp, ("self", "end", "weight"), {}),
}


def numbers(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Eighths between 1 and 3, whose sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8, 25, shape, generator=generator).double() / 8


@given(mutually_broadcastable_shapes(num_shapes=1, base_shape=(2, 1, 3), max_dims=4, **SIDES), st.integers(0, 9))
def test_a_gradient_is_summed_over_the_copies(shapes, seed):
    (shape,), result = shapes
    x, upstream = numbers(shape, 0).requires_grad_(), numbers(result, seed)
    (true,) = torch.autograd.grad(x.expand(torch.broadcast_shapes(shape, result)), x, upstream)
    mine, axes = rules.reduce_to_shape(upstream, shape)
    assert torch.equal(mine, true)
    added = len(result) - len(shape)
    stretched = [axis for axis in range(added, len(result)) if result[axis] != shape[axis - added]]
    assert axes == (*range(added), *stretched)


@given(array_shapes(min_dims=0, max_dims=3, **SIDES), array_shapes(min_dims=0, max_dims=3, **SIDES))
def test_a_gradient_of_another_shape_is_refused(shape, result):
    try:
        fits = torch.broadcast_shapes(shape, result) == torch.Size(result)
    except RuntimeError:
        fits = False
    if fits:
        assert rules.reduce_to_shape(torch.ones(result), shape)[0].shape == shape
    else:
        with pytest.raises(RuleError, match="cannot be summed to shape"):
            rules.reduce_to_shape(torch.ones(result), shape)


@given(st.sampled_from(sorted(OPERATIONS)), mutually_broadcastable_shapes(num_shapes=3, max_dims=3, **SIDES))
def test_an_elementwise_rule_gives_the_gradients_of_autograd(node, shapes):
    function, names, options = OPERATIONS[node]
    operands = {
        name: numbers(shape, seed).requires_grad_()
        for seed, (name, shape) in enumerate(zip(names, shapes.input_shapes, strict=False))
    }
    out = function(*operands.values())
    assert type(out.grad_fn).__name__ == node
    upstream = numbers(tuple(out.shape), math.prod(out.shape))
    true = torch.autograd.grad(out, list(operands.values()), upstream)
    op = rules.Applied({name: each.detach() for name, each in operands.items()} | options, (out.detach(),))
    rule = rules.for_node(node, op)
    for name, expected in zip(names, true, strict=True):
        mine, _ = rules.reduce_to_shape(rule.wrt[name].vjp(op, upstream), tuple(expected.shape))
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)
