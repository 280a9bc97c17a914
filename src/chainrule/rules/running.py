"""Rules of running sums, products and extremes: each element of a row is made of those up to its own place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Factor, Index, Rule, Sample, Wrt, derivative, pattern, rule, sample
from chainrule.rules.element import Element, Elements, product
from chainrule.rules.extremes import extreme_of, with_ties
from chainrule.rules.norms import log_sum
from chainrule.rules.pattern import Pattern, real
from chainrule.rules.reduce import Entry, Made, product_before, scalar, x


def _up_to(op: Any) -> Pattern | None:
    return pattern.triangular(op.self.shape, op.dim) if real(op.self, op.out) else None


def _earlier(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    """1 for an element of the same row that is not later."""
    dim = op.dim % max(op.self.dim(), 1)
    pairs = enumerate(zip(out_index, in_index, strict=True))
    return Factor(latex="1") if all(i <= k if axis == dim else i == k for axis, (k, i) in pairs) else None


def _running(
    name: str,
    value: str,
    vjp: Callable[[Any, Tensor], Tensor],
    local: str,
    samples: Callable[[Callable[..., Any]], Iterable[Sample]],
    remark: str = "",
    factor: Entry | None = None,
    made: Made | None = None,
    **more: Any,
) -> Rule:
    """Register an operation in which each element y_k of a row is made of x_i, i <= k; `local` is their derivative."""

    def element(op: Elements, slot: int, index: Index) -> Element | None:
        if made is None or slot:
            return None
        dim = op.whole.dim % max(len(index), 1)
        places = [(*index[:dim], at, *index[dim + 1 :]) for at in range(index[dim] + 1)] if index else [()]
        return made(op.whole, [op.at("self", place) for place in places])

    zeros = "an output element depends on the elements before it and on its own along dim, never on later ones"
    along = r" \quad \text{along dim } $dim"
    wrt = Wrt(
        vjp,
        derivative("{$out}_{k}", "{$self}_{i}", f"{local}{along}"),
        rf"{{$grad}}_{{i}} = \sum_{{k: \, k \ge i}} {{$g}}_{{k}} \, {local}{along}",
        zeros,
        factor,
        _up_to,
    )
    return rule(
        f"{name.capitalize()}Backward0",
        equation=f"{{$out}}_{{k}} = {value}{along}",
        wrt={"self": wrt},
        samples=lambda: samples(getattr(torch, name)),
        source=f"derivatives.yaml: {name}{remark}",
        element=None if made is None else element,
        **more,
    )


def _horner(g: Tensor, weights: Tensor, dim: int) -> Tensor:
    """r_i = g_i + w_{i+1} r_{i+1}, from the right: a weighted sum of all later gradients without a division."""
    carried, sums = torch.zeros_like(g.select(dim, 0)), []
    for g_i, w_i in zip(reversed(g.unbind(dim)), reversed(weights.unbind(dim)), strict=True):
        sums.append(g_i + carried)
        carried = w_i * sums[-1]
    return torch.stack(sums[::-1], dim)


def _cumprod(op: Any, g: Tensor) -> Tensor:
    if not g.dim() or not g.numel():
        return g
    factors = op.self.conj()
    return (product_before(factors, op.dim) * _horner(g, factors, op.dim)).to(op.self.dtype)


def _logcumsumexp(op: Any, g: Tensor) -> Tensor:
    if not g.dim() or not g.numel():
        return g
    first = op.out.narrow(op.dim, 0, 1)
    decay = (-op.out.diff(dim=op.dim, prepend=first)).exp()
    own: Tensor = (op.self - op.out).exp().conj()
    return own * _horner(g, decay.conj(), op.dim)


def _running_samples(function: Callable[..., Any]) -> list[Sample]:
    return [
        sample(function, x(), 1),
        sample(function, x(), 0),
        sample(function, x((2.0, 0.0, 3.0), (0.0, 0.0, 1.0)), -1, note="zeros"),
        sample(function, scalar(), 0, note="0-dim"),
        sample(function, torch.ones(0, 2, requires_grad=True), 0, note="empty"),
    ]


cumsum = _running(
    "cumsum",
    r"\sum_{i \le k} {$self}_{i}",
    lambda op, g: (g.flip(op.dim).cumsum(op.dim).flip(op.dim) if g.dim() else g).to(op.self.dtype),
    r"[i \le k]",
    _running_samples,
    factor=_earlier,
    structure="linear",
)

cumprod = _running(
    "cumprod",
    r"\prod_{i \le k} {$self}_{i}",
    _cumprod,
    r"[i \le k] \prod_{j \le k, \, j \neq i} {$self}_{j}",
    _running_samples,
    remark="; summed from the right by Horner's scheme, so zeros are no trouble.",
    made=lambda op, parts: product(parts),
)

logcumsumexp = _running(
    "logcumsumexp",
    r"\log \sum_{i \le k} e^{{$self}_{i}}",
    _logcumsumexp,
    r"[i \le k] \, e^{{$self}_{i} - {$out}_{k}}",
    _running_samples,
    made=lambda op, parts: log_sum(parts),
)

cummax, cummin = (
    _running(
        name,
        rf"\{name[3:]}_{{i \le k}} {{$self}}_{{i}}",
        lambda op, g: torch.zeros_like(g).scatter_add(op.dim, op.outs[1], g),
        "[i = {$out1}_{k}]",
        lambda function: [sample(function, x(), 1), sample(function, with_ties(), 1, note="ties")],
        made=extreme_of(name[3:]),
        constants={"indices": "not differentiable"},
    )
    for name in ("cummax", "cummin")
)
