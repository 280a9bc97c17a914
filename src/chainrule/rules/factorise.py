r"""Rules of factorisations of a matrix: Cholesky, singular values, eigenvalues, QR and LU.

A factorisation is recognised by the shape of its factors (triangular, unitary, diagonal), and so is its derivative: a
change of the matrix, seen from between the factors, falls into the part that each of them can take up. Going back turns
that around, which is why triangles, halves and quotients of differences stand in the formulas.

An operation that reads one triangle of a symmetric matrix has the derivative among symmetric matrices as its gradient:
half of what one triangle alone would get, on either side.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Wrt, derivative, rule, sample
from chainrule.rules.index_notation import ranges, stated
from chainrule.rules.linalg import (
    INVERTIBLE,
    batched,
    given,
    matrices,
    of_matrix,
    positive,
    randn,
    solver,
    square,
    triangle,
    triangular,
)

TRIANGLE = (
    "Only one triangle is read, and the matrix is taken to be symmetric (Hermitian): the gradient is the derivative "
    "among such matrices, shared evenly between both triangles."
)


def real_diagonal(t: Tensor) -> Tensor:
    """X + X^H, with the diagonal counted once: what a triangle of a Hermitian matrix stands for."""
    return t + t.mH - torch.diag_embed(t.diagonal(dim1=-2, dim2=-1).real)


def skew(t: Tensor) -> Tensor:
    """X - X^H."""
    return t - t.mH


def off_diagonal(numerator: Tensor, differences: Tensor) -> Tensor:
    """A quotient by differences, which are zero on the diagonal; there it is taken as 0."""
    eye = torch.eye(differences.shape[-1], dtype=torch.bool, device=differences.device)
    return torch.where(eye, 0, numerator / torch.where(eye, 1, differences))


def pairwise(values: Tensor) -> Tensor:
    """values_j - values_i at (i, j)."""
    return values.unsqueeze(-2) - values.unsqueeze(-1)


LOWER, BELOW, UPPER = r"\operatorname{tril}", r"\operatorname{tril}_{-1}", r"\operatorname{triu}"
HERMITIAN = (
    r"S = \frac{1}{2} \left(\dot{ARG} + \dot{ARG}^{H}\right)"  # how a matrix moves of which one triangle is read
)

# Cholesky


def _cholesky(op: Any, g: Tensor) -> Tensor:
    """A_bar = L^-H Phi(L^H L_bar) L^-1, with Phi(X) = (tril(X) + tril_{-1}(X)^H) / 2."""
    factor, g = (op.out.mH, g.mH) if op.upper else (op.out, g)
    phi = (factor.mH @ g).tril()
    left = triangular(factor.mH, 0.5 * (phi + phi.tril(-1).mH), upper=True)
    return triangular(factor, left, upper=False, left=False)


cholesky = of_matrix(
    "LinalgCholeskyExBackward0",
    "CholeskyBackward0",
    name="cholesky",
    argument="self",
    equation=lambda op: r"$self = $out^{H} \, $out" if op.upper else r"$self = $out \, $out^{H}",
    vjp=_cholesky,
    local=lambda op: (
        (r"\dot{$out} = \left(L P\right)^{H}" if op.upper else r"\dot{$out} = L P")
        + rf", \quad P = \frac{{1}}{{2}} \left({LOWER}(C) + {BELOW}(C)\right), \quad C = L^{{-1}} S \, L^{{-H}}"
        + rf", \quad {HERMITIAN.replace('ARG', '$self')}, \quad L = "
        + ("$out^{H}" if op.upper else "$out")
    ),
    product=lambda op: (
        rf"\frac{{1}}{{2}} L^{{-H}} \left({LOWER}(C) + {BELOW}(C)^{{H}}\right) L^{{-1}}, \quad C = L^{{H}} "
        + (r"$g^{H}, \quad L = $out^{H}" if op.upper else r"$g, \quad L = $out")
    ),
    samples=lambda: [
        *matrices(torch.linalg.cholesky, make=positive),
        sample(torch.linalg.cholesky, positive(), upper=True, note="upper"),
        sample(torch.cholesky, positive()),
    ],
    source="arXiv:1602.07527 (Murray, 2016); derivatives.yaml: linalg_cholesky_ex. From dA = dL L^H + L dL^H.",
    remark=f"There is a derivative where the matrix is positive definite. {TRIANGLE}",
)


def _gram_gradient(op: Any, factor: Tensor, a_bar: Tensor) -> Tensor:
    """From the gradient of A = L L^H (or U^H U) to that of its factor."""
    both = a_bar + a_bar.mH
    return factor @ both if op.upper else both @ factor


def _gram(op: Any, factor: str) -> str:
    """What A is: the product of a factor and its conjugate transpose."""
    return rf", \quad A = {factor}^{{H}} {factor}" if op.upper else rf", \quad A = {factor} \, {factor}^{{H}}"


def _gram_moved(op: Any, factor: str) -> str:
    """What A is, and D, how it moves with the factor."""
    dot = rf"\dot{{{factor}}}"
    moved = (
        rf"{dot}^{{H}} {factor} + {factor}^{{H}} {dot}"
        if op.upper
        else rf"{dot} \, {factor}^{{H}} + {factor} \, {dot}^{{H}}"
    )
    return rf"{_gram(op, factor)}, \quad D = {moved}"


def _to_factor(op: Any, factor: str, a_bar: str) -> str:
    """The gradient of the factor, from that of A."""
    both = r"\left(G + G^{H}\right)"
    return (rf"{factor} {both}" if op.upper else f"{both} {factor}") + rf", \quad G = {a_bar}"


FULL_FACTOR = (
    "The gradient is that of the formula, on both triangles, although only one triangle of the factor is read."
)

cholesky_solve = solver(
    "CholeskySolveBackward0",
    "input2",
    "self",
    lambda op, g: torch.cholesky_solve(g, op.input2, op.upper),
    lambda op, a_bar: _gram_gradient(op, op.input2, a_bar),
    symbol="A",
    moved=lambda op, dot: "D",
    put_back=lambda op, a_bar: _to_factor(op, "$input2", a_bar),
    beside=lambda op: _gram_moved(op, "$input2"),
    samples=lambda: [
        sample(torch.cholesky_solve, randn(3, 2), triangle()),
        sample(torch.cholesky_solve, randn(3, 2), triangle(3, upper=True), upper=True, note="upper"),
        sample(torch.cholesky_solve, randn(2, 2, 1), triangle(2, 2), note="batch"),
        sample(torch.cholesky_solve, randn(2, 2, complex_=True), triangle(2, complex_=True), note="complex"),
    ],
    source="derivatives.yaml: cholesky_solve. As solve, with A = L L^H.",
    remark=f"There is a derivative where no element of the diagonal is zero. {FULL_FACTOR}",
)

cholesky_inverse = of_matrix(
    "CholeskyInverseBackward0",
    argument="self",
    equation=lambda op: "$out = A^{-1}" + _gram(op, "$self"),
    vjp=lambda op, g: _gram_gradient(op, op.self, -op.out @ g @ op.out),
    local=lambda op: r"\dot{$out} = -$out D \, $out" + _gram_moved(op, "$self"),
    product=lambda op: "-" + _to_factor(op, "$self", r"$out \, $g \, $out"),
    samples=lambda: [
        sample(torch.cholesky_inverse, triangle()),
        sample(torch.cholesky_inverse, triangle(2, 2, upper=True), upper=True, note="upper, batch"),
        sample(torch.cholesky_inverse, triangle(2, complex_=True), note="complex"),
    ],
    source="derivatives.yaml: cholesky_inverse. As inverse, with A = L L^H.",
    remark=f"There is a derivative where no element of the diagonal is zero. {FULL_FACTOR}",
)

# Eigenvalues and singular values


def _svd(op: Any, g: Any) -> Tensor:
    """A_bar = U (S_bar + Delta_U S + S Delta_V) V^H, and what U_bar and V_bar have outside the spaces of U and V."""
    s: Tensor = op.outs[1]
    count = s.shape[-1]  # there may be columns and rows that no singular value belongs to
    u: Tensor = op.outs[0][..., :count]
    vh: Tensor = op.outs[2][..., :count, :]
    inner = torch.diag_embed(given(g[1], s)).to(u.dtype)
    if g[0] is None and g[2] is None:
        return u @ inner @ vh
    u_bar, v_bar = given(g[0], op.outs[0])[..., :count], given(g[2], op.outs[2])[..., :count, :].mH
    turn_u, turn_v = skew(u.mH @ u_bar), skew(vh @ v_bar)
    squares_apart = pairwise(s**2)
    inner = inner + off_diagonal(turn_u, squares_apart) * s.unsqueeze(-2)
    inner = inner + s.unsqueeze(-1) * off_diagonal(turn_v, squares_apart)
    if u.is_complex():
        inner = inner + torch.diag_embed(turn_u.diagonal(dim1=-2, dim2=-1) / (2 * s))
    gradient = u @ inner @ vh
    gradient = gradient + ((u_bar - u @ (u.mH @ u_bar)) / s.unsqueeze(-2)) @ vh
    outside = v_bar.mH - (v_bar.mH @ vh.mH) @ vh
    return gradient + (u / s.unsqueeze(-2)) @ outside


def _svd_local(op: Any) -> str:
    """The factors turn within their own columns, and move out of them where they are not square."""
    real = r"\operatorname{Re} " if op.A.is_complex() else ""
    phase = r" + [i = j] \frac{\mathrm{i} \operatorname{Im}(C_{*i,i})}{2 \, {$out1}_{*i}}" if op.A.is_complex() else ""
    apart = r"{{$out1}_{*j}^2 - {$out1}_{*i}^2 + [i = j]}"
    return (
        rf"\dot{{$out1}}_{{*i}} = {real}C_{{*i,i}}, \quad "
        r"\dot{$out0}_{*i,j} = \sum_{k} {$out0}_{*i,k} K_{*k,j} + \frac{X_{*i,j}}{{$out1}_{*j}}, \quad "
        r"\dot{$out2}_{*i,j} = \sum_{k} \overline{M_{*k,i}} \, {$out2}_{*k,j} + \frac{Y_{*i,j}}{{$out1}_{*i}}, \quad "
        r"C = $out0^{H} \dot{$A} \, $out2^{H}, \quad "
        r"X = \left(I - $out0 \, $out0^{H}\right) \dot{$A} \, $out2^{H}, \quad "
        r"Y = $out0^{H} \dot{$A} \left(I - $out2^{H} $out2\right), \quad "
        r"K_{*i,j} = [i \neq j] \frac{{$out1}_{*j} C_{*i,j} + {$out1}_{*i} \overline{C_{*j,i}}}"
        rf"{apart}{phase}, \quad "
        r"M_{*i,j} = [i \neq j] \frac{{$out1}_{*i} C_{*i,j} + {$out1}_{*j} \overline{C_{*j,i}}}"
        rf"{apart}{phase.replace('+', '-', 1)}"
    )


SVD_PRODUCT = (
    r"{$grad}_{*i,j} = \sum_{k,l} {$out0}_{*i,k} T_{*k,l} \, {$out2}_{*l,j} + O_{*i,j}, \quad "
    r"T_{*k,l} = [k = l] {$g1}_{*k} + "
    r"\frac{X_{*k,l} \, {$out1}_{*l} + {$out1}_{*k} \, Y_{*k,l}}{{$out1}_{*l}^2 - {$out1}_{*k}^2 + [k = l]}, \quad "
    r"X = $out0^{H} $g0 - $g0^{H} $out0, \quad Y = $out2 \, $g2^{H} - $g2 \, $out2^{H}, \quad O = "
    r"\left(I - $out0 \, $out0^{H}\right) $g0 \operatorname{diag}\left(\frac{1}{$out1}\right) $out2"
    r" + $out0 \operatorname{diag}\left(\frac{1}{$out1}\right) $g2 \left(I - $out2^{H} $out2\right)"
)

svd = of_matrix(
    "LinalgSvdBackward0",
    equation=r"{$A}_{*i,j} = \sum_{k} {$out0}_{*i,k} \, {$out1}_{*k} \, {$out2}_{*k,j}",
    vjp=_svd,
    local=_svd_local,
    product=SVD_PRODUCT,
    outputs=3,
    samples=lambda: [
        sample(torch.linalg.svd, randn(3, 3)),
        *matrices(torch.linalg.svd, (4, 2), (2, 2, 3), (1, 1), complex_=(), full_matrices=False),
        sample(torch.linalg.svdvals, randn(3, 2), note="values alone"),
    ],
    source="arXiv:1909.02659 (Wan and Zhang, 2019, the complex case); derivatives.yaml: _linalg_svd",
    remark=(
        "A singular value has a derivative where it is positive and no other one equals it. Singular vectors have one "
        "where all singular values are distinct and, unless the matrix is square, positive. Their signs (phases) are "
        "free, and the loss must not depend on them."
    ),
)


def _eigh(op: Any, g: Any) -> Tensor:
    values, vectors = op.outs
    inner = torch.diag_embed(given(g[0], values)).to(vectors.dtype)
    if g[1] is not None:
        inner = inner + off_diagonal(0.5 * skew(vectors.mH @ g[1]), pairwise(values))
    gradient: Tensor = vectors @ inner @ vectors.mH
    return gradient


eigh = of_matrix(
    "LinalgEighBackward0",
    equation=r"{$A}_{*i,j} = \sum_{k} {$out1}_{*i,k} \, {$out0}_{*k} \, \overline{{$out1}_{*j,k}}",
    vjp=_eigh,
    local=(
        r"\dot{$out0}_{*i} = C_{*i,i}, \quad \dot{$out1}_{*i,j} = "
        r"\sum_{k: \, k \neq j} \frac{{$out1}_{*i,k} C_{*k,j}}{{$out0}_{*j} - {$out0}_{*k}}, \quad "
        rf"C = $out1^{{H}} S \, $out1, \quad {HERMITIAN.replace('ARG', '$A')}"
    ),
    product=(
        r"{$grad}_{*i,j} = \sum_{k,l} {$out1}_{*i,k} T_{*k,l} \, \overline{{$out1}_{*j,l}}, \quad "
        r"T_{*k,l} = [k = l] {$g0}_{*k} + \frac{X_{*k,l}}{2 \left({$out0}_{*l} - {$out0}_{*k}\right) + [k = l]}, \quad "
        r"X = $out1^{H} $g1 - $g1^{H} $out1"
    ),
    outputs=2,
    samples=lambda: [
        sample(torch.linalg.eigh, positive()),
        sample(torch.linalg.eigh, positive(2, 2), UPLO="U", note="batch, upper triangle"),
        sample(torch.linalg.eigh, positive(1), note="size 1"),
        sample(torch.linalg.eigvalsh, positive(), note="values alone"),
    ],
    source="derivatives.yaml: _linalg_eigh. dA V + A dV = dV diag(l) + V diag(dl), with V^H dV skew.",
    remark=(
        "There is a derivative where the eigenvalues are distinct. The signs (phases) of eigenvectors are free, so "
        f"the loss must not depend on them. {TRIANGLE}"
    ),
)


def _eig(op: Any, g: Any) -> Tensor:
    values, vectors = op.outs
    inner = torch.diag_embed(given(g[0], values))
    if g[1] is not None:
        seen = vectors.mH @ g[1]
        # each eigenvector has length 1, so what would lengthen it is taken away
        seen = seen - (vectors.mH @ vectors) * seen.diagonal(dim1=-2, dim2=-1).real.unsqueeze(-2)
        inner = inner + off_diagonal(seen, pairwise(values).conj())
    gradient: Tensor = torch.linalg.solve(vectors.mH, inner @ vectors.mH)
    return gradient if op.self.is_complex() else gradient.real


eig = of_matrix(
    "LinalgEigBackward0",
    argument="self",
    equation=r"{$self}_{*i,j} = \sum_{k} {$out1}_{*i,k} \, {$out0}_{*k} \left($out1^{-1}\right)_{*k,j}",
    vjp=_eig,
    local=(
        r"\dot{$out0}_{*i} = C_{*i,i}, \quad \dot{$out1}_{*i,j} = \sum_{k} {$out1}_{*i,k} K_{*k,j}"
        r" - {$out1}_{*i,j} \operatorname{Re}\left(\sum_{k} G_{*j,k} K_{*k,j}\right), \quad "
        r"K_{*k,j} = [k \neq j] \frac{C_{*k,j}}{{$out0}_{*j} - {$out0}_{*k} + [k = j]}, \quad "
        r"C = $out1^{-1} \dot{$self} \, $out1, \quad G = $out1^{H} $out1"
    ),
    product=(
        r"{$grad}_{*i,j} = \sum_{k,l} \left($out1^{-H}\right)_{*i,k} T_{*k,l} \, \overline{{$out1}_{*j,l}}, \quad "
        r"T_{*k,l} = [k = l] {$g0}_{*k} + [k \neq l] \frac{W_{*k,l} - G_{*k,l} \operatorname{Re}(W_{*l,l})}"
        r"{\overline{{$out0}_{*l} - {$out0}_{*k}} + [k = l]}, \quad W = $out1^{H} $g1, \quad G = $out1^{H} $out1"
    ),
    outputs=2,
    samples=lambda: matrices(torch.linalg.eigvals, (3, 3), (2, 2, 2)),
    source="arXiv:1701.00392 (Boeddeker et al., 2017); derivatives.yaml: linalg_eig",
    remark=(
        "There is a derivative where the eigenvalues are distinct. The phases of eigenvectors are free, so the loss "
        "must not depend on them."
    ),
)

# QR and LU


def _qr(op: Any, g: Any) -> Tensor:
    q, r = op.outs
    q_bar, r_bar = given(g[0], q), given(g[1], r)
    size = r.shape[-2]
    if op.A.shape[-1] > size:  # the columns past the square part are Q^H A_2, and tell of Q only through that
        q_bar = q_bar + op.A[..., size:] @ r_bar[..., size:].mH
        rest = [q @ r_bar[..., size:]]
        r, r_bar = r[..., :size], r_bar[..., :size]
    else:
        rest = []
    turned = q_bar + q @ real_diagonal((r_bar @ r.mH - q.mH @ q_bar).triu())
    gradient = triangular(r.mH, turned, upper=False, left=False)
    return torch.cat([gradient, *rest], -1)


def _qr_local(op: Any) -> str:
    """W is a turn of Q, which undoes what would make R not triangular; of a wide matrix, what the factors satisfy."""
    if op.A.shape[-1] > op.A.shape[-2]:
        return r"\dot{$A} = \dot{$out0} \, $out1 + $out0 \, \dot{$out1}"
    return (
        r"\dot{$out0} = $out0 W + \left(I - $out0 \, $out0^{H}\right) \dot{$A} \, $out1^{-1}, \quad "
        r"\dot{$out1} = $out0^{H} \dot{$A} - W $out1, \quad W = P - P^{H}, \quad "
        rf"P = \frac{{1}}{{2}} \left({LOWER}(C) + {BELOW}(C)\right), \quad C = $out0^{{H}} \dot{{$A}} \, $out1^{{-1}}"
    )


def _qr_product(op: Any) -> str:
    """The columns past the square part are Q^H A_2, and tell of Q only through that."""
    size = op.A.shape[-2]
    note = (
        rf" \quad \text{{(its first {size} columns, with }} $g0 + A_2 \bar{{R}}_2^{{H}} \text{{ for }} $g0 "
        r"\text{; } Q \bar{R}_2 \text{ the others)}"
    )
    return (
        r"\left($g0 + $out0 \left(P + P^{H}\right)\right) $out1^{-H}, \quad "
        rf"P = \frac{{1}}{{2}} \left({UPPER}(X) + {UPPER}_{{1}}(X)\right), \quad "
        r"X = $g1 \, $out1^{H} - $out0^{H} $g0" + (note if op.A.shape[-1] > size else "")
    )


qr = of_matrix(
    "LinalgQrBackward0",
    equation=r"$A = $out0 \, $out1",
    vjp=_qr,
    local=_qr_local,
    product=_qr_product,
    outputs=2,
    accepts=lambda op: op.mode == "reduced" or (op.mode == "complete" and op.A.shape[-2] <= op.A.shape[-1]),
    samples=lambda: [
        *matrices(torch.linalg.qr, (3, 3), (4, 2), (2, 2, 3), (1, 1), complex_=(3, 2)),
        sample(torch.linalg.qr, square(2), mode="complete", note="complete"),
    ],
    source="arXiv:2009.10071 (Roberts and Roberts, 2020); derivatives.yaml: linalg_qr",
    remark="There is a derivative where the first columns, as many as R has rows, are linearly independent.",
)


def _lu_gradient(permutation: Tensor, lower: Tensor, upper: Tensor, g_lower: Tensor, g_upper: Tensor) -> Tensor:
    """A_bar of A = P L U: from the square part of both factors, and from what a longer one has beyond it."""
    m, n = lower.shape[-2], upper.shape[-1]
    k = min(m, n)
    square_l, square_u = lower[..., :k, :], upper[..., :k]
    below, right = (lower[..., k:, :], g_lower[..., k:, :]), (upper[..., k:], g_upper[..., k:])
    inner_l = square_l.mH @ g_lower[..., :k, :] - right[1] @ right[0].mH
    inner_u = g_upper[..., :k] @ square_u.mH - below[0].mH @ below[1]
    middle = inner_l.tril(-1) + inner_u.triu()
    if m <= n:
        block = torch.cat([triangular(square_u.mH, middle, upper=False, left=False), right[1]], -1)
        return permutation @ triangular(square_l.mH, block, upper=True, unit=True)
    block = torch.cat([triangular(square_l.mH, middle, upper=True, unit=True), below[1]], -2)
    return permutation @ triangular(square_u.mH, block, upper=False, left=False)


def _lu(op: Any, g: Any) -> Tensor:
    permutation, lower, upper = op.outs
    if not op.pivot:
        permutation = torch.eye(op.A.shape[-2], dtype=op.A.dtype, device=op.A.device)
    return _lu_gradient(permutation, lower, upper, given(g[1], lower), given(g[2], upper))


def _lu_factor(op: Any, g: Tensor) -> Tensor:
    permutation, lower, upper = torch.lu_unpack(op.outs[0], op.outs[1])
    k = min(op.A.shape[-2:])  # one matrix holds both factors; the ones on the diagonal of L are not stored
    return _lu_gradient(permutation, lower, upper, g[..., :k].tril(-1), g[..., :k, :].triu())


LU_LOCAL = r"C = L^{-1} P^{T} \dot{$A} \, U^{-1}"
LU_PRODUCT = rf"P L^{{-H}} \left({BELOW}\left(L^{{H}} GL\right) + {UPPER}\left(GU U^{{H}}\right)\right) U^{{-H}}"


def _lu_parts(op: Any) -> str:
    """The factors of a square matrix, by their letters."""
    return r", \quad L = $out1, \quad U = $out2" + (r", \quad P = $out0" if op.pivot else "")


def _packed(argument: str) -> str:
    return rf", \quad L = {BELOW}({argument}) + I, \quad U = {UPPER}({argument})"


PERMUTED = r", \quad P = $A \, U^{-1} L^{-1}"

LU_SOURCE = (
    "derivatives.yaml: linalg_lu, linalg_lu_factor_ex. P^T dA = dL U + L dU; the triangles tell both terms apart."
)
LU_REMARK = "There is a derivative where the leading square block is invertible, while the same pivots are chosen."


def _lu_local(op: Any) -> str:
    """Of a matrix that is not square, what the factors satisfy."""
    if op.A.shape[-1] == op.A.shape[-2]:
        return rf"\dot{{$out1}} = L {BELOW}(C), \quad \dot{{$out2}} = {UPPER}(C) U, \quad {LU_LOCAL}{_lu_parts(op)}"
    return r"\dot{$A} = $out0 \left(\dot{$out1} \, $out2 + $out1 \, \dot{$out2}\right)"


lu = of_matrix(
    "LinalgLuBackward0",
    equation=lambda op: "$A = " + (r"$out0 \, " if op.pivot else "") + r"$out1 \, $out2",
    vjp=_lu,
    local=_lu_local,
    product=lambda op: LU_PRODUCT.replace("GL", "$g1").replace("GU", "$g2") + _lu_parts(op),
    outputs=3,
    samples=lambda: matrices(torch.linalg.lu, (3, 3), (4, 2), (2, 2, 3)),
    source=LU_SOURCE,
    remark=LU_REMARK,
)

lu_factor = of_matrix(
    "LinalgLuFactorExBackward0",
    equation=(
        r"\left(\left(\operatorname{tril}_{-1}($out) + I\right) \operatorname{triu}($out)\right)^{H} "
        r"\left(\operatorname{tril}_{-1}($out) + I\right) \operatorname{triu}($out) = $A^{H} $A"
    ),
    vjp=_lu_factor,
    local=rf"\dot{{$out}} = L {BELOW}(C) + {UPPER}(C) U, \quad {LU_LOCAL}{PERMUTED}" + _packed("$out"),
    product=LU_PRODUCT.replace("GL", f"{BELOW}($g)").replace("GU", f"{UPPER}($g)") + PERMUTED + _packed("$out"),
    samples=lambda: matrices(torch.linalg.lu_factor, (3, 3), (4, 2), (2, 3), (2, 2, 2), complex_=()),
    source=LU_SOURCE,
    remark=LU_REMARK,
)


def _unpacked(op: Any, g: Any) -> Tensor:
    """The gradients of L and U, laid over each other again."""
    gradient, k = torch.zeros_like(op.LU_data), min(op.LU_data.shape[-2:])
    gradient[..., :k] += given(g[1], op.outs[1]).tril(-1)
    gradient[..., :k, :] += given(g[2], op.outs[2]).triu()
    return gradient


def _of_packed(text: str, op: Any) -> str:
    """A formula of the element i, j of L and k, l of U, which one matrix holds."""
    m, n = op.LU_data.shape[-2:]
    return batched(text, "LU_data")(op) + stated(ranges("ijkl", [m, min(m, n), min(m, n), n]).values())


lu_unpack = rule(
    "LuUnpackBackward0",
    equation=partial(
        _of_packed,
        r"{$out1}_{*i,j} = [j < i] \, {$LU_data}_{*i,j} + [i = j], \quad "
        r"{$out2}_{*k,l} = [k \le l] \, {$LU_data}_{*k,l}",
    ),
    wrt={
        "LU_data": Wrt(
            _unpacked,
            partial(
                _of_packed,
                derivative("{$out1}_{*i,j}", "{$LU_data}_{*i,j}", r"[j < i], \quad ")
                + derivative("{$out2}_{*k,l}", "{$LU_data}_{*k,l}", r"[k \le l]"),
            ),
            partial(
                _of_packed,
                r"{$grad}_{*u,v} = \sum_{i,j: \, i = u, j = v, j < i} {$g1}_{*i,j} + "
                r"\sum_{k,l: \, k = u, l = v, k \le l} {$g2}_{*k,l}",
            ),
            "each element of the packed matrix is one element of L or of U",
        )
    },
    constants={"LU_pivots": "not differentiable"},
    structure="linear",
    outputs=3,
    samples=lambda: [
        sample(lambda a, p: torch.lu_unpack(a, p)[1:], randn(*shape), torch.tensor([1, 2]).int())
        for shape in ((2, 2), (3, 2), (2, 3))
    ],
)


def _to_factors(op: Any, a_bar: Tensor) -> Tensor:
    permutation, lower, upper = torch.lu_unpack(op.LU, op.pivots)
    below = permutation.mT @ (a_bar.mH if op.adjoint else a_bar)
    return (below @ upper.mH).tril(-1) + (lower.mH @ below).triu()


def _factors_bar(op: Any, a_bar: str) -> str:
    """The gradients of L and U in one matrix, from that of A."""
    a_bar = rf"\left({a_bar}\right)^{{H}}" if op.adjoint else a_bar
    return rf"\left({BELOW}\left(G U^{{H}}\right) + {UPPER}\left(L^{{H}} G\right)\right), \quad G = P^{{T}} {a_bar}"


def _lu_beside(op: Any) -> str:
    s, d = r"P L U", rf"P \left({BELOW}(\dot{{$LU}}) U + L {UPPER}(\dot{{$LU}})\right)"
    s, d = (rf"\left({s}\right)^{{H}}", rf"\left({d}\right)^{{H}}") if op.adjoint else (s, d)
    return rf", \quad A = {s}, \quad D = {d}{_packed('$LU')}"


lu_solve = solver(
    "LinalgLuSolveBackward0",
    "LU",
    "B",
    lambda op, g: torch.linalg.lu_solve(op.LU, op.pivots, g, left=op.left, adjoint=not op.adjoint),
    _to_factors,
    symbol="A",
    moved=lambda op, dot: "D",
    put_back=_factors_bar,
    beside=_lu_beside,
    constants={"pivots": "not differentiable"},
    samples=lambda: [
        sample(_solve_by_lu, square(), randn(3, 2)),
        sample(_solve_by_lu, square(), randn(3, 2), adjoint=True, note="adjoint"),
        sample(_solve_by_lu, square(), randn(2, 3), left=False, note="from the right"),
        sample(_solve_by_lu, square(2, complex_=True), randn(1, 2, complex_=True), left=False, adjoint=True),
        sample(_solve_by_lu, square(2, 2), randn(2, 1), note="broadcast"),
    ],
    source="derivatives.yaml: linalg_lu_solve. As solve, then from A = P L U to its factors.",
    remark=INVERTIBLE,
)


def _solve_by_lu(a: Tensor, b: Tensor, left: bool = True, adjoint: bool = False) -> Tensor:
    solution: Tensor = torch.linalg.lu_solve(*torch.linalg.lu_factor(a), b, left=left, adjoint=adjoint)
    return solution
