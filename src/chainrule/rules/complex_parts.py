"""Rules of complex numbers as pairs of real ones, and of their conjugates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from chainrule.rules import Wrt, rule, sample
from chainrule.rules import at as element
from chainrule.rules.element import call
from chainrule.rules.index_notation import JOINED, Side, Statements, Term, letters, runs
from chainrule.rules.shape import COPIES, x

conj = rule(
    "ConjBackward0",
    "ConjPhysicalBackward0",
    equation=r"$out = \overline{$self}",
    structure="linear",
    element=lambda op, slot, index: call("conj", lambda value: value.conjugate(), op.self),
    wrt={
        "self": Wrt(
            lambda op, g: g.conj(), r"\frac{\partial $out}{\partial \overline{$self}} = 1", r"\overline{$g}", COPIES
        )
    },
    samples=lambda: [sample(each, x(2, dtype=torch.complex128)) for each in (torch.conj, torch.conj_physical)],
    source="derivatives.yaml: _conj",
)

neg_view = rule(
    "NegViewBackward0",
    equation="$out = -$self",
    structure="linear",
    wrt={"self": Wrt(lambda op, g: -g, "-1", "-$g", COPIES)},
    samples=lambda: [sample(torch.ops.aten._neg_view, x(2))],
    source="derivatives.yaml: _neg_view",
)

complex_ = rule(
    "ComplexBackward0",
    equation=r"$out = $real + \mathrm{i} \, $imag",
    structure="linear",
    wrt={
        "real": Wrt(lambda op, g: g.real, "1", r"\operatorname{Re} $g", COPIES),
        "imag": Wrt(lambda op, g: g.imag, r"\mathrm{i}", r"\operatorname{Im} $g", COPIES),
    },
    samples=lambda: [sample(torch.complex, x(3), x(3)), sample(torch.complex, x(2, 1), x(3), note="broadcast")],
)


def _halves(pair: Side, number: Side) -> list[Term]:
    """A number is the first of its pair, and i times the second."""
    return [
        Term(number, replace(pair, at=[*number.at, part]), runs(number.at, number.shape), rate=rate)
        for part, rate in (("0", "1"), ("1", r"\mathrm{i}"))
    ]


def _parts(pair: str, number: str, at: list[str]) -> str:
    """The first of a pair is the real part of its number, the second the imaginary one."""
    parts = (("0", "Re"), ("1", "Im"))
    return JOINED.join(
        rf"{element(pair, [*at, p])} = \operatorname{{{name}}} {element(number, at)}" for p, name in parts
    )


def _to_pairs(op: Any) -> list[Term]:
    number, pair = Side("self", op.self.shape, letters(op.self)), Side("out", op.out.shape, ())
    return [replace(each, out=each.into, into=each.out) for each in _halves(pair, number)]


view_as_real = rule(
    "ViewAsRealBackward0",
    "ViewAsRealBackward0_copy",
    equation=lambda op: _parts("out", "self", letters(op.self)),
    wrt={"self": Statements(_to_pairs).wrt("self", lambda op, g: torch.complex(g[..., 0], g[..., 1]), COPIES)},
    structure="linear",
    samples=lambda: [
        sample(torch.view_as_real, x(2, 3, dtype=torch.complex128)),
        sample(torch.real, x(2, dtype=torch.complex128)),
    ],
)

_numbers = Statements(
    lambda op: _halves(Side("self", op.self.shape, ()), Side("out", op.out.shape, letters(op.out))), added=True
)

view_as_complex = rule(
    "ViewAsComplexBackward0",
    "ViewAsComplexBackward0_copy",
    equation=_numbers.equation,
    wrt={
        "self": replace(
            _numbers.wrt("self", lambda op, g: torch.stack((g.real, g.imag), -1), COPIES),
            product=lambda op: _parts("grad", "g", letters(op.out)),
        )
    },
    structure="linear",
    samples=lambda: [sample(torch.view_as_complex, x(3, 2))],
)
