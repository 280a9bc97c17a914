r"""Rules of the distances between the rows of two matrices, or of one.

All are |d|_p of a difference d of two rows, so that one slope, that of the norm, tells both ways back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Wrt, rule, sample
from chainrule.rules.linalg import randn


def distance_slope(difference: Tensor, distance: Tensor, p: float) -> Tensor:
    """The derivative of |d|_p by each element of d; 0 where the distance is 0."""
    if p == 0:
        return torch.zeros_like(difference)
    if p == float("inf"):
        return difference.sign() * (difference.abs() == distance)
    if p == 1:
        return difference.sign()
    slope = difference.sign() * (difference.abs() / distance) ** (p - 1)
    return torch.where((distance == 0) | ((difference == 0) & (p < 2)), 0, slope)


def _order(op: Any) -> float:
    return float(op.arguments.get("p", 2))


def _cdist(op: Any, g: Tensor) -> Tensor:
    """d loss / d (x1_i - x2_j), for every pair (i, j)."""
    difference = op.x1.unsqueeze(-2) - op.x2.unsqueeze(-3)
    return g.unsqueeze(-1) * distance_slope(difference, op.out.unsqueeze(-1), _order(op))


def _slope_latex(op: Any) -> str:
    special = {
        0.0: "0",
        1.0: r"\operatorname{sgn}(d)",
        2.0: r"\frac{d}{$out}",
        float("inf"): r"\operatorname{sgn}(d) [|d| = $out]",
    }
    general = rf"\operatorname{{sgn}}(d) \left(\frac{{|d|}}{{$out}}\right)^{{{_order(op) - 1:g}}}"
    return special.get(_order(op), general)


def _norm_latex(op: Any) -> str:
    order = r"\infty" if _order(op) == float("inf") else f"{_order(op):g}"
    return rf"\right\rVert_{{{order}}}"


OWN_ROWS = "a distance depends on the two rows between which it is, and on no others"

cdist = rule(
    "CdistBackward0",
    "EuclideanDistBackward0",
    name="cdist",
    equation=lambda op: r"{$out}_{ij} = \left\lVert {$x1}_i - {$x2}_j " + _norm_latex(op),
    wrt={
        "x1": Wrt(
            lambda op, g: _cdist(op, g).sum(-2),
            lambda op: rf"{_slope_latex(op)}, \; d = {{$x1}}_i - {{$x2}}_j",
            lambda op: rf"\sum_j {{$g}}_{{ij}} \, {_slope_latex(op)}",
            OWN_ROWS,
        ),
        "x2": Wrt(
            lambda op, g: -_cdist(op, g).sum(-3),
            lambda op: rf"-{_slope_latex(op)}, \; d = {{$x1}}_i - {{$x2}}_j",
            lambda op: rf"-\sum_i {{$g}}_{{ij}} \, {_slope_latex(op)}",
            OWN_ROWS,
        ),
    },
    samples=lambda: [
        *(
            sample(torch.cdist, randn(3, 2), randn(4, 2), p, note=f"p = {p}")
            for p in (0, 0.5, 1, 1.5, 2, 3, float("inf"))
        ),
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


pdist = rule(
    "PdistBackward0",
    equation=lambda op: r"{$out}_{(i, j)} = \left\lVert {$self}_i - {$self}_j " + _norm_latex(op) + r", \quad i < j",
    wrt={
        "self": Wrt(
            _pdist,
            lambda op: rf"\pm {_slope_latex(op)}, \; d = {{$self}}_i - {{$self}}_j",
            lambda op: rf"\sum_{{j}} \pm {{$g}}_{{(i, j)}} \, {_slope_latex(op)}",
            OWN_ROWS,
        )
    },
    samples=lambda: [
        *(sample(torch.pdist, randn(4, 3), p, note=f"p = {p}") for p in (0, 1, 1.5, 2, 3, float("inf"))),
        sample(torch.pdist, randn(1, 3), note="one row"),
        sample(torch.pdist, torch.ones(2, 3, requires_grad=True), note="at 0"),
    ],
    source="derivatives.yaml: _pdist_forward",
    remark="A distance has a corner at 0, where PyTorch takes the derivative 0.",
)
