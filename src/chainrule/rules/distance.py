r"""Rules of the distances between the rows of two matrices, or of one.

All are |d|_p of a difference d of two rows, so that both gradients follow from one slope, that of the norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Wrt, derivative, rule, sample
from chainrule.rules.element import Element, Elements, broadcast_index
from chainrule.rules.index_notation import OTHERS
from chainrule.rules.linalg import randn
from chainrule.rules.norms import norm_gradient, norm_of


def distance_slope(difference: Tensor, distance: Tensor, p: float) -> Tensor:
    """The derivative of |d|_p by each element of d; 0 where the distance is 0, and for p = inf 1 at each of a tie."""
    if math.isinf(p):
        return difference.sign() * (difference.abs() == distance)
    return norm_gradient(difference, torch.ones_like(distance), distance, p, (-1,))


def _order(op: Any) -> float:
    return float(op.arguments.get("p", 2))


def _slope(op: Any, d: str, out: str) -> str:
    """The same in LaTeX, of one element `d` of the difference and the distance `out`."""
    order, sign = _order(op), rf"\operatorname{{sgn}}({d})"
    special = {0.0: "0", 1.0: sign, 2.0: rf"\frac{{{d}}}{{{out}}}", math.inf: rf"{sign} \, [|{d}| = {out}]"}
    return special.get(order, rf"{sign} \left(\frac{{|{d}|}}{{{out}}}\right)^{{{order - 1:g}}}")


def _norm(op: Any, difference: str) -> str:
    order = r"\infty" if _order(op) == math.inf else f"{_order(op):g}"
    return rf"\left\lVert {difference} \right\rVert_{{{order}}}"


OWN_ROWS = "a distance depends on the two rows between which it is, and on no others"


def _cdist(op: Any, g: Tensor) -> Tensor:
    """d loss / d (x1_i - x2_j), for every pair (i, j)."""
    difference = op.x1.unsqueeze(-2) - op.x2.unsqueeze(-3)
    return g.unsqueeze(-1) * distance_slope(difference, op.out.unsqueeze(-1), _order(op))


def _of_pairs(template: str) -> Callable[[Any], str]:
    """A formula of the pair (i, j) and the column k; `@n`: the distance, `@s`: its slope, `@b`: the batch."""

    def formula(op: Any) -> str:
        batch = "".join(f"{letter}," for letter in OTHERS[: op.x1.dim() - 2])
        filled = template.replace("@n", _norm(op, "{$x1}_{@bi} - {$x2}_{@bj}"))
        return filled.replace("@s", _slope(op, "d_{@bi,j,k}", "{$out}_{@bi,j}")).replace("@b", batch)

    return formula


def _cdist_element(op: Elements, slot: int, index: tuple[int, ...]) -> Element:
    *batch, i, j = index
    rows = [_row(op, "x1", (*batch, i)), _row(op, "x2", (*batch, j))]
    return norm_of([a - b for a, b in zip(*rows, strict=True)], _order(op.whole))


def _row(op: Elements, argument: str, at: tuple[int, ...]) -> list[Element]:
    operand = op.whole.arguments[argument]
    place = broadcast_index(at, operand.shape[:-1])
    return [op.at(argument, (*place, k)) for k in range(operand.shape[-1])]


cdist = rule(
    "CdistBackward0",
    "EuclideanDistBackward0",
    element=_cdist_element,
    equation=_of_pairs("{$out}_{@bi,j} = @n"),
    where=_of_pairs("d_{@bi,j,k} = {$x1}_{@bi,k} - {$x2}_{@bj,k}"),
    wrt={
        "x1": Wrt(
            lambda op, g: _cdist(op, g).sum(-2),
            _of_pairs(derivative("{$out}_{@bi,j}", "{$x1}_{@bi,k}", "@s")),
            _of_pairs(r"{$grad}_{@bi,k} = \sum_j {$g}_{@bi,j} \, @s"),
            OWN_ROWS,
        ),
        "x2": Wrt(
            lambda op, g: -_cdist(op, g).sum(-3),
            _of_pairs(derivative("{$out}_{@bi,j}", "{$x2}_{@bj,k}", "-@s")),
            _of_pairs(r"{$grad}_{@bj,k} = -\sum_i {$g}_{@bi,j} \, @s"),
            OWN_ROWS,
        ),
    },
    samples=lambda: [
        *(sample(torch.cdist, randn(3, 2), randn(4, 2), p, note=f"p = {p}") for p in (2, 0, 0.5, 1, 1.5, 3, math.inf)),
        sample(torch.cdist, randn(2, 3, 2), randn(2, 1, 2), note="batch"),
        sample(torch.cdist, torch.ones(2, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True), note="at 0"),
        sample(torch.cdist, randn(30, 2), randn(28, 2), note="by a product of matrices"),
    ],
    source="derivatives.yaml: _cdist_forward, _euclidean_dist",
    remark="A distance has a corner at 0, where PyTorch takes the derivative 0; for p = inf it has others, at ties.",
)


def _pdist(op: Any, g: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(op.self.shape[0], op.self.shape[0], 1, device=op.self.device)
    difference = op.self[rows] - op.self[columns]
    share = g.unsqueeze(-1) * distance_slope(difference, op.out.unsqueeze(-1), _order(op))
    return torch.zeros_like(op.self).index_add(0, rows, share).index_add(0, columns, -share)


def _of_rows(template: str, of_none: str = "") -> Callable[[Any], str]:
    """A formula of the rows i and j; `@n` is their distance, `@s` its slope, `@r` the number of rows.

    `of_none` is the formula of the count of unequal columns, the distance of the order 0, which has no slope.
    """

    def formula(op: Any) -> str:
        if of_none and _order(op) == 0:
            return of_none
        filled = template.replace("@n", _norm(op, "{$self}_i - {$self}_j"))
        filled = filled.replace("@s", _slope(op, r"({$self}_{i,k} - {$self}_{j,k})", "{$out}_{p_{i,j}}"))
        return filled.replace("@r", str(op.self.shape[0])).replace("@t", str(2 * op.self.shape[0] - 1))

    return formula


def _pdist_element(op: Elements, slot: int, index: tuple[int, ...]) -> Element:
    pairs = torch.triu_indices(op.whole.self.shape[0], op.whole.self.shape[0], 1)
    i, j = pairs[:, index[0]].tolist()
    rows = zip(_row(op, "self", (i,)), _row(op, "self", (j,)), strict=True)
    return norm_of([a - b for a, b in rows], _order(op.whole))


pdist = rule(
    "PdistBackward0",
    element=_pdist_element,
    equation=_of_rows(r"{$out}_{p_{i,j}} = @n, \quad 0 \le i < j < @r"),
    where=_of_rows(r"p_{i,j} = \frac{1}{2} \min(i, j) \, (@t - \min(i, j)) + |i - j| - 1"),
    wrt={
        "self": Wrt(
            _pdist,
            _of_rows(
                derivative("{$out}_{p_{i,j}}", "{$self}_{i,k}", r"@s, \quad ")
                + derivative("{$out}_{p_{i,j}}", "{$self}_{j,k}", r"-@s, \quad 0 \le i < j < @r")
            ),
            _of_rows(
                r"{$grad}_{i,k} = \sum_{0 \le j < @r, \, j \neq i} {$g}_{p_{i,j}} \, @s", of_none="{$grad}_{i,k} = 0"
            ),
            OWN_ROWS,
        )
    },
    samples=lambda: [
        *(sample(torch.pdist, randn(4, 3), p, note=f"p = {p}") for p in (2, 0, 1, 1.5, 3, math.inf)),
        sample(torch.pdist, randn(1, 3), note="one row"),
        sample(torch.pdist, torch.ones(2, 3, requires_grad=True), note="at 0"),
    ],
    source="derivatives.yaml: _pdist_forward",
    remark="A distance has a corner at 0, where PyTorch takes the derivative 0.",
)
