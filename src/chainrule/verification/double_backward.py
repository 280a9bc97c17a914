"""A user's backward that a later pass went back through: is its own derivative the one that differences measure?

The gradient g of a Function depends on its arguments x and on what arrives, u. Weighed with random numbers it is one
number, S(x, u) = <w, g(x, u)>. Autograd's derivative of S is compared with central differences of S, along random
directions, at three step sizes: only what stays apart while the differences stay the same is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from chainrule.execution.experiment import STEP, Experiment, pick
from chainrule.graph.comparison import rms
from chainrule.graph.graph import Edge
from chainrule.verification.differences import label_of

ARRIVES = "the gradient that arrives"
RELATIVE = 1e-5  # of the larger side, from which on the two differ
SAME = 0.05  # of that difference, by which the differences of three step sizes may differ
SHRINKS = (1.0, 2.0**-3, 2.0**-6)


def wrong_second_derivative(experiment: Experiment, edges: list[Edge]) -> str:
    """With respect to what the gradient has another derivative than autograd gives ("": none was found)."""
    generator = torch.Generator().manual_seed(3)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=generator).to(like)

    edges = [edge for edge in edges if edge.argument is not None]
    points = [pick(experiment.wide, edge) for edge in edges]
    points += [g.to(torch.promote_types(g.dtype, torch.float64)) for g in experiment.upstream.values()]
    names = [f"`{label_of(edge)}`" for edge in edges] + [ARRIVES] * len(experiment.upstream)
    weights = [noise(point) for point in points[: len(edges)]]
    _, second = experiment.weighed_gradient(edges, points, weights, differentiate=True)
    for place, (point, name, gradient) in enumerate(zip(points, names, second, strict=True)):
        direction = noise(point)

        def moved(step: float, place: int = place, direction: Tensor = direction) -> float:
            there = [*points[:place], points[place] + step * direction, *points[place + 1 :]]
            return experiment.weighed_gradient(edges, there, weights)[0]

        terms = (gradient * direction.conj()).real if gradient is not None else torch.zeros(1)
        if _is_apart(float(terms.sum()), float(terms.norm()), moved, STEP * (rms(point) or 1.0)):
            return name
    return ""


def _is_apart(ours: float, size: float, f: Callable[[float], float], step: float) -> bool:
    slopes = [(f(step * each) - f(-step * each)) / (2 * step * each) for each in SHRINKS]
    apart = min(abs(ours - each) for each in slopes)
    settled = max(abs(one - other) for one, other in pairwise(slopes)) <= SAME * apart
    return settled and apart > RELATIVE * max(size, *map(abs, slopes))
