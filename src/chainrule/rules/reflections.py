r"""Rules of products of reflections, which is how a QR factorisation stores its Q."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Wrt, rule, sample
from chainrule.rules.factorise import BELOW
from chainrule.rules.linalg import ALL, randn


def _back_through(
    stored: Tensor, tau: Tensor, start: Tensor, g: Tensor, adjoint: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of what is stored, of tau, and of C, from that of Q C (or of Q^H C).

    Q = H_1 H_2 ... H_k, H_i = I - tau_i v_i v_i^H: v_i has 1 at place i and the stored column below it.
    """
    columns = stored.tril(-1) + torch.eye(*stored.shape[-2:], dtype=stored.dtype, device=stored.device)
    taus = tau.conj() if adjoint else tau
    order = range(tau.shape[-1])[:: -1 if adjoint else 1]
    reflections = [(i, columns[..., i : i + 1], taus[..., i, None, None]) for i in order]
    met, product = {}, start  # what each reflection was applied to
    for i, v, factor in reversed(reflections):
        met[i] = product
        product = product - factor * (v @ (v.mH @ product))
    columns_bar, taus_bar = torch.zeros_like(stored), torch.zeros_like(tau)
    for i, v, factor in reflections:
        row = v.mH @ met[i]
        taus_bar[..., i] = -(v.mH @ g @ row.mH)[..., 0, 0]
        v_bar = -factor.conj() * (g @ row.mH) - factor * (met[i] @ (g.mH @ v))
        columns_bar[..., i + 1 :, i] = v_bar[..., i + 1 :, 0]
        g = g - factor.conj() * (v @ (v.mH @ g))
    return columns_bar, taus_bar.conj() if adjoint else taus_bar, g


def _householder(op: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    identity = torch.eye(*op.out.shape[-2:], dtype=op.out.dtype, device=op.out.device).expand(op.out.shape)
    return _back_through(op.input, op.tau, identity, g)


def _by_steps(name: str, first: str, at: str, then: str) -> str:
    """A definition by steps, from one that is known."""
    return rf", \quad {name}_t = \begin{{cases}} {first} & t = {at} \\ {then} & \text{{otherwise}} \end{{cases}}"


@dataclass(frozen=True)
class Reflecting:
    """The formulas of Q = Q_{k - 1}, the product of k reflections, by the arguments that store them."""

    stored: str
    tau: str

    def last(self, op: Any) -> int:
        """The number of the last reflection."""
        return int(op.arguments[self.tau].shape[-1]) - 1

    def where(self, op: Any) -> str:
        """What Q is."""
        reflection = rf"R_t = I - {{${self.tau}}}_t \, v_t v_t^{{H}}, \quad v_t = V^{{T}}_t"
        columns = rf"V = {BELOW}(${self.stored}) + I"
        return f"{reflection}, \\quad {columns}" + _by_steps("Q", "R_0", "0", "Q_{t - 1} R_t")

    def moved(self, argument: str) -> str:
        """How Q moves with an argument."""
        change = rf"-{{\dot{{${argument}}}}}_t \, v_t v_t^{{H}}"
        if argument == self.stored:
            turn = r"\left(\dot{v}_t v_t^{H} + v_t \dot{v}_t^{H}\right)"
            column = rf", \quad \dot{{v}}_t = {BELOW}(\dot{{${self.stored}}})^{{T}}_t"
            change = rf"-{{${self.tau}}}_t \, {turn}{column}"
        steps = _by_steps(r"\dot{Q}", r"\dot{R}_0", "0", r"\dot{Q}_{t - 1} R_t + Q_{t - 1} \dot{R}_t")
        return rf"{steps}, \quad \dot{{R}}_t = {change}"

    def back(self, op: Any, argument: str, start: str) -> str:
        """The gradient of an argument from D, that of Q: G comes back to R_t, which is applied to K."""
        k, tau = self.last(op), rf"{{${self.tau}}}_t"
        text = r"{$grad}_t = -v_t^{H} G_t K_t^{H} v_t"
        if argument == self.stored:
            pulled = rf"w_t = -\overline{{{tau}}} \, G_t K_t^{{H}} v_t - {tau} \, K_t G_t^{{H}} v_t"
            text = rf"{{$grad}}_{{i,t}} = [i > t] \, w_{{t,i}}, \quad 0 \le t < {k + 1}, \quad {pulled}"
        text += _by_steps("G", "D", "0", "R_{t - 1}^{H} G_{t - 1}")
        return text + _by_steps("K", r"0 \, D + I", str(k), "R_{t + 1} K_{t + 1}") + rf", \quad D = {start}"

    def wrt(self, vjp: Callable[[Any, Any], Any], local: Callable[[Any], str], bar: Callable[[Any], str]) -> Any:
        """The derivatives by what is stored and by tau; `vjp` gives both, `local` is how the output moves with Q."""

        def way(place: int, argument: str, zeros: str) -> Wrt:
            return Wrt(
                lambda op, g: vjp(op, g)[place],
                lambda op: local(op) + self.moved(argument),
                lambda op: self.back(op, argument, bar(op)),
                zeros,
            )

        unread = "the diagonal and what is above it are not read"
        return {self.stored: way(0, self.stored, unread), self.tau: way(1, self.tau, ALL)}


HOUSEHOLDER, ORMQR = Reflecting("input", "tau"), Reflecting("self", "input2")

householder_product = rule(
    "LinalgHouseholderProductBackward0",
    equation=lambda op: f"{{$out}}_{{i,j}} = Q_{{{HOUSEHOLDER.last(op)},i,j}}",
    where=HOUSEHOLDER.where,
    wrt=HOUSEHOLDER.wrt(
        _householder, lambda op: rf"\dot{{$out}}_{{i,j}} = \dot{{Q}}_{{{HOUSEHOLDER.last(op)},i,j}}", lambda op: "$g"
    ),
    samples=lambda: [
        sample(torch.linalg.householder_product, randn(4, 3), randn(3)),
        sample(torch.linalg.householder_product, randn(3, 3), randn(2), note="fewer reflections than columns"),
        sample(torch.linalg.householder_product, randn(2, 3, 2), randn(2, 2), note="batch"),
        sample(torch.linalg.householder_product, randn(3, 2, complex_=True), randn(2, complex_=True), note="complex"),
    ],
    source="derivatives.yaml: linalg_householder_product; the product rule",
)


def _ormqr(op: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C Q is (Q^H C^H)^H, so that one direction is enough."""
    if op.left:
        return _back_through(op.self, op.input2, op.input3, g, op.transpose)
    columns, taus, start = _back_through(op.self, op.input2, op.input3.mH, g.mH, not op.transpose)
    return columns, taus, start.mH


def _beside_q(op: Any, other: str, q: str = "Q", adjoint: bool = False) -> str:
    """Q, or its conjugate transpose, on its side of another matrix."""
    mine = f"{q}_{ORMQR.last(op)}" + ("^{H}" if op.transpose != adjoint else "")
    return rf"{mine} \, {other}" if op.left else rf"{other} \, {mine}"


def _q_bar(op: Any) -> str:
    """The gradient of Q."""
    if op.left:
        return r"$input3 \, $g^{H}" if op.transpose else r"$g \, $input3^{H}"
    return r"$g^{H} $input3" if op.transpose else r"$input3^{H} $g"


ormqr = rule(
    "OrmqrBackward0",
    equation=lambda op: f"$out = {_beside_q(op, '$input3')}",
    where=ORMQR.where,
    wrt=ORMQR.wrt(_ormqr, lambda op: r"\dot{$out} = " + _beside_q(op, "$input3", r"\dot{Q}"), _q_bar)
    | {
        "input3": Wrt(
            lambda op, g: _ormqr(op, g)[2],
            lambda op: r"\dot{$out} = " + _beside_q(op, r"\dot{$input3}"),
            lambda op: _beside_q(op, "$g", adjoint=True),
            "each column has its own column of the result (each row, from the right)",
        )
    },
    samples=lambda: [
        sample(torch.ormqr, randn(3, 2), randn(2), randn(3, 2)),
        sample(torch.ormqr, randn(3, 2), randn(2), randn(3, 1), transpose=True, note="transposed"),
        sample(torch.ormqr, randn(3, 2), randn(2), randn(2, 3), left=False, note="from the right"),
        sample(torch.ormqr, randn(3, 3), randn(3), randn(2, 3), left=False, transpose=True, note="both"),
        sample(torch.ormqr, randn(2, 3, 2), randn(2, 2), randn(2, 3, 1), note="batch"),
        sample(
            torch.ormqr, *(randn(*shape, complex_=True) for shape in ((3, 2), (2,), (1, 3))), left=False, note="complex"
        ),
    ],
    source="derivatives.yaml: ormqr; the product rule",
)
