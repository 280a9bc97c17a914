"""Rules of norms and distances, of slices held to a norm, and of the logarithm of a sum of exponentials."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Index, Kink, Wrt, derivative, rule, sample
from chainrule.rules import at as element
from chainrule.rules.element import Element, Elements, call, exps, largest, let, of, of_number, smallest
from chainrule.rules.element import total as total_of
from chainrule.rules.index_notation import fitted, places, where
from chainrule.rules.reduce import Parts, axes, back, formula, of_slice, order_of, reduction, x


def log_sum(parts: Parts) -> Element:
    """The logarithm of the sum of the exponentials of some elements."""
    powers, most = exps(parts)
    return call("ln", of_number(torch.log), total_of(powers)) + most


logsumexp = reduction(
    "LogsumexpBackward0",
    value=r"MOST + \log \sum_{OVER} e^{SELF - MOST}",
    given=r"MOST = \max_{AMONG} OTHER",
    vjp=lambda op, g: back(op, g) * (op.self - back(op, op.out)).exp().conj(),
    local="e^{SELF - OUT}",
    element=of_slice(lambda op, parts: log_sum(parts)),
    remark="The maximum M cancels, and keeps the powers from overflowing. The derivative is the softmax.",
    samples=lambda: [
        sample(torch.logsumexp, x(), 1),
        sample(torch.logsumexp, x(), (0, 1), keepdim=True),
        sample(torch.logsumexp, x((-math.inf, 1.0)), 1, note="minus infinity"),
        sample(torch.logsumexp, x(1000.0, 999.0), 0, note="large"),
    ],
)


def norm_gradient(v: Tensor, g: Tensor, norm: Tensor, p: float, dims: Index) -> Tensor:
    """d |v|_p / d v times g; `g` and `norm` have the reduced axes with size 1. Where no derivative exists: 0."""
    if p == 0:
        return torch.zeros_like(v)
    if math.isinf(p):
        extreme = v.abs() == norm
        return g * v.sgn() * extreme / extreme.sum(dims, keepdim=True)
    return g * v.sgn() * ((v.abs() / norm) ** (p - 1)).masked_fill(v == 0, 0)


def norm_of(parts: Parts, order: float) -> Element:
    """The norm of some elements."""
    sizes = [call("abs", abs, each) for each in parts]
    if order == 0:
        return total_of(call("nonzero", lambda value: int(value != 0), each) for each in parts)
    if math.isinf(order):
        return largest(sizes) if order > 0 else smallest(sizes)
    if order == 1:
        return total_of(sizes)
    if order == 2:
        squares = [
            (size if isinstance(each.value, complex) else each) ** 2 for each, size in zip(parts, sizes, strict=True)
        ]
        return call("sqrt", math.sqrt, total_of(squares))
    whole = int(order) if order % 1 == 0 else order
    return total_of(size**whole for size in sizes) ** (of(1) / of(whole))


def _norm_kink(op: Any, radius: float) -> Tensor:
    """Elements near 0 (p <= 1), whole slices near 0 (p > 1), and ties of the extreme elements (p infinite)."""
    p, size = order_of(op), op.self.abs()
    near: Tensor = size <= radius
    if math.isinf(p):
        extreme = (size - back(op, op.out).abs()).abs() <= 2 * radius
        tied: Tensor = extreme & (near | (extreme.sum(axes(op), keepdim=True) > 1))
        return tied
    return near if p <= 1 else near.all(axes(op), keepdim=True).expand_as(size)


EXTREME = r"\operatorname{sgn}(SELF) \, \frac{[|SELF| = OUT]}{\sum_{AMONG} [|OTHER| = OUT]}"
NORMS = {  # value and local derivative
    0: (r"\sum_{OVER} [SELF \neq 0]", "0"),
    1: (r"\sum_{OVER} |SELF|", r"\operatorname{sgn}(SELF)"),
    2: (r"\sqrt{\sum_{OVER} |SELF|^2}", where(r"\frac{SELF}{OUT}", r"SELF \neq 0")),
    math.inf: (r"\max_{OVER} |SELF|", EXTREME),
    -math.inf: (r"\min_{OVER} |SELF|", EXTREME),
}
ANY_NORM = (
    r"\left(\sum_{OVER} |SELF|^{ORDER}\right)^{1/ORDER}",
    where(r"\operatorname{sgn}(SELF) \left(\frac{|SELF|}{OUT}\right)^{ORDERLESS}", r"SELF \neq 0"),
)

norm = reduction(
    "LinalgVectorNormBackward0",
    "NormBackward0",
    name="norm",
    value=lambda op: NORMS.get(order_of(op), ANY_NORM)[0],
    vjp=lambda op, g: norm_gradient(op.self, back(op, g), back(op, op.out), order_of(op), axes(op)),
    local=lambda op: NORMS.get(order_of(op), ANY_NORM)[1],
    element=of_slice(lambda op, parts: norm_of(parts, order_of(op))),
    kink=Kink(_norm_kink, "0 at 0, and an even share for ties"),
    samples=lambda: [
        *(
            sample(torch.linalg.vector_norm, x(), p, 1, note=f"p = {p}")
            for p in (0, 0.5, 1, 1.5, 2, 3, math.inf, -math.inf)
        ),
        sample(torch.linalg.vector_norm, x(), 2, keepdim=True),
        sample(torch.linalg.matrix_norm, x()),
        *(sample(torch.linalg.vector_norm, x(0.0, 0.0), p, note=f"at 0, p = {p}") for p in (1, 1.5, 2, 3, math.inf)),
        *(sample(torch.linalg.vector_norm, x((0.0, -1.0, 1.0)), p, 1, note=f"one 0, p = {p}") for p in (0.5, 1, 3)),
        sample(torch.linalg.vector_norm, x((2.0, -2.0, 1.0)), math.inf, 1, note="ties"),
        sample(torch.ops.aten.norm.Scalar, x(), 2),
        sample(torch.ops.aten.norm.ScalarOpt_dim, x(), 3, [1], True),
        sample(torch.linalg.vector_norm, x(1 + 2j, -1j, dtype=torch.complex128), note="complex"),
    ],
    source="derivatives.yaml: linalg_vector_norm, norm",
)


def _dist(op: Any, g: Tensor) -> Tensor:
    difference = op.self - op.other
    return norm_gradient(difference, g, op.out, order_of(op), tuple(range(difference.dim())))


def _distance(sign: str = "", argument: str = "") -> Callable[[Any], str]:
    """The distance of two tensors that broadcast, or its derivative: of an operand that was copied, over the copies."""

    def filled(op: Any) -> str:
        whole = op.self - op.other
        every = places(whole.shape)
        own = {name: fitted(every, op.arguments[name]) for name in ("self", "other")}
        over = [place for place in every if place != "0"]
        d = f"D_{{{', '.join(over)}}}" if over else "D"
        given = rf", \quad {d} = {element('self', own['self'])} - {element('other', own['other'])}"
        if not argument:
            size = rf"\sum_{{{', '.join(over)}}} |{d}|^{{ORDER}}" if over else rf"|{d}|^{{ORDER}}"
            return formula(rf"$out = \left({size}\right)^{{1/ORDER}}{given}")(op)
        each = where(rf"\operatorname{{sgn}}({d}) \left(\frac{{|{d}|}}{{$out}}\right)^{{ORDERLESS}}", rf"{d} \neq 0")
        copies = ", ".join(place for place in over if place not in own[argument])
        summed = rf"\sum_{{{copies}}} {each}" if copies else each
        if sign.endswith("$g"):
            return formula(rf"{element('grad', own[argument])} = {sign} \, {summed}{given}")(op)
        return formula(derivative("$out", element(argument, own[argument]), f"{sign}{summed}{given}"))(op)

    return filled


def _dist_element(op: Elements, slot: int, index: Index) -> Element:
    shape = torch.broadcast_shapes(op.whole.self.shape, op.whole.other.shape)
    pairs = [Elements(op.whole, at) for at in itertools.product(*map(range, shape))]
    return norm_of([pair.self - pair.other for pair in pairs], order_of(op.whole))


dist = rule(
    "DistBackward0",
    element=_dist_element,
    equation=_distance(),
    wrt={
        "self": Wrt(_dist, _distance("", "self"), _distance("$g", "self")),
        "other": Wrt(lambda op, g: -_dist(op, g), _distance("-", "other"), _distance("-$g", "other")),
    },
    samples=lambda: (
        [sample(torch.dist, x(1.0, 2.0), x(0.0, 4.0), p) for p in (1, 2, 3)]
        + [sample(torch.dist, x(1.0), x(0.0, 4.0), note="broadcast"), sample(torch.dist, x(1.0), x(1.0), note="at 0")]
    ),
)


def _slices_of(op: Any) -> Index:
    """All axes but the one whose slices are held to the largest norm."""
    return tuple(axis for axis in range(op.self.dim()) if axis != op.dim % op.self.dim())


def _slice_norms(op: Any) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(op.self, float(op.p), _slices_of(op), keepdim=True)
    return norms


RENORM_TINY = 1e-7  # what PyTorch adds to a norm before dividing by it


def _renorm(op: Any, g: Tensor) -> Tensor:
    """<g, x m / (n + t)> moves with x itself and, against it, with the norm n of its slice."""
    dims, length = _slices_of(op), _slice_norms(op)
    held = length + RENORM_TINY
    along = (g * op.self.conj()).sum(dims, keepdim=True)
    pull = norm_gradient(op.self, (along.real if g.is_complex() else along) / held, length, float(op.p), dims)
    return torch.where(length > op.maxnorm, op.maxnorm / held * (g - pull), g)


HELD, TOO_LONG = r"\frac{$maxnorm}{SIZE}", "SIZE > $maxnorm"
TURN = r"\operatorname{sgn}(EACH) \left(\frac{|EACH|}{SIZE}\right)^{ORDERLESS}"  # the norm's derivative by EACH
ALONG = r"\operatorname{Re}\left(\sum_{AMONG} THEIRS \, \overline{OTHER}\right)"
PULL = rf"\frac{{{TURN.replace('EACH', 'SELF')}}}{{SIZE}} {ALONG}"


def _renormed(op: Any) -> str:
    turn = TURN.replace("EACH", "OTHER")

    def rate(same: str, turn: str, into: str) -> str:
        held = rf"{HELD} \left({same} - \frac{{SELF}}{{SIZE}} \, {turn}\right)"
        return derivative("WHOLE", into, where(held, TOO_LONG, same))

    if not op.self.is_complex():
        return rate("SAME", turn, "OTHER")
    plain, conjugate = rf"\frac{{1}}{{2}} \overline{{{turn}}}", rf"\frac{{1}}{{2}} {turn}"
    return rate("SAME", plain, "OTHER") + r", \quad " + rate("0", conjugate, r"\overline{OTHER}")


def _renorm_element(op: Elements, slot: int, index: Index) -> Element:
    whole, dim = op.whole, op.whole.dim % op.whole.self.dim()
    places = [range(n) if axis != dim else [index[dim]] for axis, n in enumerate(whole.self.shape)]
    length = let("N", norm_of([op.at("self", at) for at in itertools.product(*places)], float(whole.p)))
    own = op.at("self", index)
    return own * (of(whole.maxnorm) / (length + RENORM_TINY)) if length.value > whole.maxnorm else own


renorm = rule(
    "RenormBackward0",
    element=_renorm_element,
    equation=formula(rf"WHOLE = SELF \, \min\left(1, {HELD}\right)", _slices_of),
    where=formula(r"SIZE = \left(\sum_{AMONG} |OTHER|^{ORDER}\right)^{1/ORDER}", _slices_of),
    wrt={
        "self": Wrt(
            _renorm,
            formula(_renormed, _slices_of),
            formula("GRAD = " + where(rf"{HELD} \left(MINE - {PULL}\right)", TOO_LONG, "MINE"), _slices_of),
            "a slice has its own norm, and other slices do not enter",
        )
    },
    kink=Kink(
        lambda op, radius: ((_slice_norms(op) - op.maxnorm).abs() <= radius).expand_as(op.self),
        "1 where the norm is just the largest allowed one",
    ),
    samples=lambda: [
        *(sample(torch.renorm, x(), p, 0, 2.0, note=f"p = {p}") for p in (1, 1.5, 2, 3)),
        sample(torch.renorm, x(), 2, -1, 3.0, note="last dim"),
        sample(torch.renorm, x(), 2, 0, 100.0, note="short enough"),
        sample(torch.renorm, x(1 + 2j, -1j, dtype=torch.complex128).reshape(2, 1), 2, 0, 0.5, note="complex"),
    ],
)
