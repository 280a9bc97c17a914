"""How a function taken element by element is registered: its samples, where it has no derivative, and `function`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Rule, Sample, elementwise, reduce_to_shape, sample
from chainrule.rules.expression import Expression

Function = Callable[..., Any]
Where = Callable[[Any, float], Tensor]


def x(*values: float | complex, shape: tuple[int, ...] | None = None) -> Tensor:
    """A sample input that wants a gradient: a vector, or of `shape`."""
    if not values and shape is None:
        values = (-1.5, -0.2, 0.3, 2.0)
    dtype = torch.complex128 if any(isinstance(value, complex) for value in values) else torch.get_default_dtype()
    return torch.tensor(values, dtype=dtype).reshape((len(values),) if shape is None else shape).requires_grad_()


def unary(function: Function, *values: float, **keywords: Any) -> list[Sample]:
    """One operand: a vector, a column, size 1, a 0-dimensional tensor, and an empty one."""
    values = values or (-1.5, -0.2, 0.3, 2.0)
    inputs = {
        "vector": x(*values),
        "column": x(*values, shape=(-1, 1)),
        "size 1": x(values[0]),
        "0-dimensional": x(values[-1], shape=()),
        "empty": x(shape=(0, 2)),
    }
    return [sample(function, value, note=note, **keywords) for note, value in inputs.items()]


def binary(
    function: Function,
    left: tuple[float, ...] = (-1.5, -0.2, 0.3, 2.0),
    right: tuple[float, ...] = (0.7, -1.2, 3.1, 1.6),
    **keywords: Any,
) -> list[Sample]:
    """Two operands: of one shape, both broadcast, size 1, 0-dimensional, and empty."""
    pairs = {
        "one shape": (x(*left), x(*right)),
        "both broadcast": (x(*left, shape=(-1, 1)), x(*right)),
        "size 1": (x(*left), x(right[0])),
        "0-dimensional": (x(left[-1], shape=()), x(*right)),
        "both 0-dimensional": (x(left[0], shape=()), x(right[0], shape=())),
        "empty": (x(shape=(0, 1)), x(*right)),
    }
    return [sample(function, *pair, note=note, **keywords) for note, pair in pairs.items()]


def at(*points: float) -> Where:
    """Where `self` lies within the radius of one of `points`."""
    return lambda op, radius: near(op.self, *points, radius=radius)


def near(values: Tensor, *points: float, radius: float) -> Tensor:
    """Which values lie within `radius` of one of `points`."""
    within = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    for point in points:
        within = within | ((values - point).abs() <= radius)
    return within


def near_whole(values: Tensor, radius: float | Tensor, rounding: str = "floor") -> Tensor:
    """Which values lie within `radius` of a step of `rounding`: whole numbers, but 0 is no step of `trunc`."""
    near_one = (values - values.round()).abs() <= radius
    return near_one & (values.round() != 0) if rounding == "trunc" else near_one


def quotient_steps(rounding: str | None = None) -> Where:
    """Where `self / other` is about to step; the rounding may be an argument of the operation."""

    def where(op: Any, radius: float) -> Tensor:
        steps = near_whole(op.self / op.other, radius / abs(op.other), rounding or op.rounding_mode)
        return in_shape_of(op.self, steps)

    return where


def meeting(other: str) -> Where:
    """Where `self` meets the operand `other`; an element that broadcasting repeats counts if any copy does."""

    def where(op: Any, radius: float) -> Tensor:
        return in_shape_of(op.self, (op.self - op.arguments[other]).abs() <= radius)

    return where


def in_shape_of(operand: Any, marks: Tensor) -> Tensor:
    """Bring marks in the shape of the output back to an operand that was broadcast."""
    shape = tuple(operand.shape) if isinstance(operand, Tensor) else ()
    return reduce_to_shape(marks.to(torch.int64), shape)[0] > 0


def function(
    f: Function,
    equation: Expression,
    slopes: Any = ("self",),
    points: tuple[Any, ...] = (),
    cites: str = "",
    *,
    topic: str,
    node: str = "",
    calls: Iterable[dict[str, Any]] = ({},),
    more: Callable[[], Iterable[Sample]] = lambda: (),
    **rest: Any,
) -> Rule:
    """Register a torch function taken element by element; its node, name, samples and source follow from `f`.

    `slopes` are as in `elementwise`, or the derivative by `self` alone. A function of one operand is tried at `points`,
    one of two at a pair of them, with the keywords of each of `calls`, and on `more` samples. The source begins with
    the entry of PyTorch's list of derivatives, and goes on as `cites` says.
    """
    slopes = slopes if isinstance(slopes, Mapping | tuple) else {"self": slopes}
    name, tried = f.__name__.strip("_"), binary if len(slopes) > 1 else unary
    given = {
        "name": name,
        "samples": lambda: [*(each for keywords in calls for each in tried(f, *points, **keywords)), *more()],
        "source": f"derivatives.yaml: {name}{cites}",
        **rest,
    }
    node = node or name.title().replace("_", "")
    return elementwise(f"{node}Backward0", equation=equation, derivative=slopes, topic=topic, **given)
