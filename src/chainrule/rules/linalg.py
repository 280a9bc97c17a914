r"""Rules of linear algebra: inverses and solves, determinants, factorisations, functions of a matrix.

Each starts from the identity that defines the result (A X = B, A = L L^H, A V = V diag(lambda)), differentiates both
sides, and reads the way back off <G, dX>. A^H is the conjugate transpose, which for real numbers is A^T. All work on
the last two axes, and axes before them are batches.

Where a result exists or is smooth only for some matrices (invertible, distinct singular values), the rule's remark says
so. An operation that reads one triangle of a symmetric matrix has the derivative among symmetric matrices as its
gradient: half of what one triangle alone would get, on either side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Rule, Sample, Wrt, rule, sample

Template = str | Callable[[Any], str]

ALL = "every element of the result can depend on every element of the matrix; batches do not mix"
INVERTIBLE = "There is a derivative where the matrix is invertible."
TRIANGLE = (
    "Only one triangle is read, and the matrix is taken to be symmetric (Hermitian): the gradient is the derivative "
    "among such matrices, shared evenly between both triangles."
)


def square(size: int = 3, *batch: int, complex_: bool = False, shift: int = 0) -> Tensor:
    """A sample matrix, well away from being singular, that wants a gradient; the same numbers each time."""
    return (randn(*batch, size, size, complex_=complex_, shift=shift).detach() + 2 * torch.eye(size)).requires_grad_()


def randn(*shape: int, complex_: bool = False, shift: int = 0) -> Tensor:
    """A sample input that wants a gradient; the same numbers each time."""
    dtype = torch.complex128 if complex_ else torch.float64
    generator = torch.Generator().manual_seed(sum(shape) + shift)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def positive(size: int = 3, *batch: int, complex_: bool = False) -> Tensor:
    """A sample matrix that is symmetric (Hermitian) and positive definite."""
    a = randn(*batch, size, size, complex_=complex_).detach()
    return (a @ a.mH + torch.eye(size)).requires_grad_()


def triangle(size: int = 3, *batch: int, upper: bool = False, complex_: bool = False) -> Tensor:
    """A sample triangular matrix with a diagonal away from zero."""
    a = square(size, *batch, complex_=complex_).detach()
    a.diagonal(dim1=-2, dim2=-1).imag.zero_() if complex_ else None
    return (a.triu() if upper else a.tril()).requires_grad_()


def squares(function: Callable[..., Any], make: Callable[..., Tensor] = square, **keywords: Any) -> list[Sample]:
    """Samples of a function of one square matrix."""
    return [
        sample(function, make(), **keywords),
        sample(function, make(2, 2), **keywords, note="batch"),
        sample(function, make(1), **keywords, note="size 1"),
        sample(function, make(2, 0), **keywords, note="no batch"),
        sample(function, make(2, complex_=True), **keywords, note="complex"),
    ]


def of_matrix(
    *nodes: str,
    equation: Template,
    vjp: Callable[[Any, Any], Tensor],
    local: Template,
    product: Template,
    samples: Callable[[], Iterable[Sample]],
    argument: str = "A",
    **more: Any,
) -> Rule:
    """Register a function of one matrix."""
    return rule(*nodes, equation=equation, wrt={argument: Wrt(vjp, local, product, ALL)}, samples=samples, **more)


def given(g: Tensor | None, like: Tensor) -> Tensor:
    """An upstream gradient; zero where none arrived."""
    return torch.zeros_like(like) if g is None else g


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


# Inverses, determinants --------------------------------------------------------------------------------------------

inverse = of_matrix(
    "LinalgInvExBackward0",
    equation=r"$out = $A^{-1}",
    vjp=lambda op, g: -op.out.mH @ g @ op.out.mH,
    local=r"-{$out}_{ik} {$out}_{lj}",
    product=r"-$out^{H} \, $g \, $out^{H}",
    samples=lambda: squares(torch.linalg.inv),
    source="derivatives.yaml: linalg_inv_ex. A X = I, so dA X + A dX = 0 and dX = -X dA X.",
    remark=INVERTIBLE,
)


def _cofactors(a: Tensor) -> Tensor:
    """The conjugates of the cofactors of A: det(U) det(V^H) U diag(products of the other s) V^H, conjugated where due.

    With A = U S V^H this needs no inverse, so it holds for singular matrices too.
    """
    u, s, vh = torch.linalg.svd(a)
    n = s.shape[-1]
    eye = torch.eye(n, dtype=torch.bool, device=a.device)
    others = torch.where(eye, 1, s.unsqueeze(-2)).prod(-1) if n else s
    turned = (torch.linalg.det(u) * torch.linalg.det(vh)).conj()[..., None, None]
    cofactors: Tensor = turned * ((u * others.unsqueeze(-2)) @ vh)
    return cofactors


det = of_matrix(
    "LinalgDetBackward0",
    equation=r"$out = \det $A",
    vjp=lambda op, g: g[..., None, None] * _cofactors(op.A),
    local=r"\operatorname{cofactor}_{ij}($A) = $out \, \left($A^{-1}\right)_{ji}",
    product=r"$g \, \operatorname{cofactors}($A)",
    samples=lambda: squares(torch.linalg.det),
    source="derivatives.yaml: _linalg_det. Laplace: det A is linear in each a_ij, with its cofactor as the factor.",
    remark="It is smooth everywhere; yet where it is exactly 0, PyTorch's own gradient is 0, not the cofactors.",
)


def _slogdet(op: Any, g: Any) -> Tensor:
    """d log det A = tr(A^-1 dA); its real part moves log |det A|, its imaginary part turns the sign."""
    rate = given(g[1], op.outs[1])
    if op.A.is_complex() and g[0] is not None:
        rate = torch.complex(rate, -(g[0].conj() * op.outs[0]).imag)
    gradient: Tensor = rate[..., None, None] * torch.linalg.inv(op.A).mH
    return gradient


slogdet = of_matrix(
    "LinalgSlogdetBackward0",
    equation=r"$out = \operatorname{sign}(\det $A), \quad \ell = \ln \left|\det $A\right|",
    vjp=_slogdet,
    local=r"\frac{\partial \ell}{\partial $A} = $A^{-H}",
    product=r"\bar{\ell} \, $A^{-H}",
    outputs=4,
    samples=lambda: squares(torch.linalg.slogdet),
    source="derivatives.yaml: _linalg_slogdet. d ln det A = tr(A^-1 dA).",
    remark=INVERTIBLE,
)

# Solves ------------------------------------------------------------------------------------------------------------


def vector_right_side(a: Tensor, b: Tensor) -> bool:
    """Whether B is one vector (for each matrix of a batch), rather than a matrix of columns."""
    return b.dim() == 1 or (a.dim() - 1 == b.dim() and b.shape == a.shape[:-1])


def _columns(op: Any, t: Tensor) -> Tensor:
    """A right side, or a solution, as a matrix."""
    return t.unsqueeze(-1) if vector_right_side(op.A, op.B) else t


def _solve_right_side(op: Any, g: Tensor) -> Tensor:
    g = _columns(op, g)
    gradient: Tensor = torch.linalg.solve(op.A.mH, g, left=op.left)
    return gradient.squeeze(-1) if vector_right_side(op.A, op.B) else gradient


def _solve_matrix(op: Any, g: Tensor) -> Tensor:
    b_bar, x = _columns(op, _solve_right_side(op, g)), _columns(op, op.out)
    return -b_bar @ x.mH if op.left else -x.mH @ b_bar


def _sided(left: str, right: str) -> Callable[[Any], str]:
    return lambda op: left if op.left else right


solve = rule(
    "LinalgSolveExBackward0",
    equation=_sided("$A \\, $out = $B", "$out \\, $A = $B"),
    wrt={
        "A": Wrt(
            _solve_matrix,
            _sided(r"-$A^{-1} \, dA \, $out", r"-$out \, dA \, $A^{-1}"),
            _sided(r"-\bar{B} \, $out^{H}", r"-$out^{H} \, \bar{B}"),
            ALL,
        ),
        "B": Wrt(
            _solve_right_side,
            "$A^{-1}",
            _sided(r"$A^{-H} \, $g", r"$g \, $A^{-H}"),
            "each column of the right side has its own column of the solution (each row, from the right)",
        ),
    },
    samples=lambda: [
        sample(torch.linalg.solve, square(), randn(3, 2)),
        sample(torch.linalg.solve, square(), randn(3), note="a vector"),
        sample(torch.linalg.solve, square(2, 4), randn(2, 3), note="broadcast right side"),
        sample(torch.linalg.solve, square(), randn(2, 3), left=False, note="from the right"),
        sample(torch.linalg.solve, square(2, 0), randn(0, 2, 1), note="no batch"),
        sample(torch.linalg.solve, square(2, complex_=True), randn(2, 2, complex_=True), note="complex"),
    ],
    source="derivatives.yaml: _linalg_solve_ex. dA X + A dX = dB, so dX = A^-1 (dB - dA X).",
    remark=INVERTIBLE,
)


def _kept_triangle(t: Tensor, upper: bool, unit: bool) -> Tensor:
    """The part of a gradient that belongs to what was read of a triangular matrix."""
    return t.triu(1 if unit else 0) if upper else t.tril(-1 if unit else 0)


def triangular(a: Tensor, b: Tensor, upper: bool, left: bool = True, unit: bool = False) -> Tensor:
    """The solution of A X = B (of X A = B from the right) where A is triangular."""
    solution: Tensor = torch.linalg.solve_triangular(a, b, upper=upper, left=left, unitriangular=unit)
    return solution


def _triangular_right_side(op: Any, g: Tensor) -> Tensor:
    return triangular(op.self.mH, g, not op.upper, left=op.left, unit=op.unitriangular)


def _triangular_matrix(op: Any, g: Tensor) -> Tensor:
    b_bar = _triangular_right_side(op, g)
    gradient = -b_bar @ op.out.mH if op.left else -op.out.mH @ b_bar
    return _kept_triangle(gradient, op.upper, op.unitriangular)


UNREAD = "the other triangle is not read, and neither is a diagonal that is taken as ones; there the gradient is zero"

solve_triangular = rule(
    "LinalgSolveTriangularBackward0",
    equation=_sided("$self \\, $out = $B", "$out \\, $self = $B"),
    wrt={
        "self": Wrt(
            _triangular_matrix,
            _sided(r"-$self^{-1} \, dA \, $out", r"-$out \, dA \, $self^{-1}"),
            _sided(r"-\bar{B} \, $out^{H} \text{ on the triangle}", r"-$out^{H} \, \bar{B} \text{ on the triangle}"),
            UNREAD,
        ),
        "B": Wrt(
            _triangular_right_side,
            "$self^{-1}",
            _sided(r"$self^{-H} \, $g", r"$g \, $self^{-H}"),
            "each column of the right side has its own column of the solution (each row, from the right)",
        ),
    },
    samples=lambda: [
        sample(torch.linalg.solve_triangular, triangle(), randn(3, 2), upper=False),
        sample(torch.linalg.solve_triangular, triangle(3, upper=True), randn(2, 3), upper=True, left=False),
        sample(torch.linalg.solve_triangular, triangle(), randn(3, 2), upper=False, unitriangular=True, note="unit"),
        sample(torch.linalg.solve_triangular, triangle(2, 3), randn(2, 1), upper=False, note="broadcast"),
        sample(
            torch.linalg.solve_triangular,
            triangle(2, complex_=True),
            randn(2, 2, complex_=True),
            upper=False,
            note="complex",
        ),
    ],
    source="derivatives.yaml: linalg_solve_triangular. As solve, on the triangle alone.",
    remark="There is a derivative where no element of the diagonal is zero.",
)


def _old_triangular_right_side(op: Any, g: Any) -> Tensor:
    a = op.A.mT if op.transpose else op.A
    return triangular(a.mH, given(g[0], op.out), op.upper == op.transpose, unit=op.unitriangular)


def _old_triangular_matrix(op: Any, g: Any) -> Tensor:
    gradient = -_old_triangular_right_side(op, g) @ op.out.mH
    kept = _kept_triangle(gradient.mT if op.transpose else gradient, op.upper, op.unitriangular)
    return kept if g[1] is None else kept + g[1]


triangular_solve = rule(
    "TriangularSolveBackward0",
    equation=lambda op: f"$A{'^{T}' if op.transpose else ''} \\, $out = $self",
    wrt={
        "self": Wrt(_old_triangular_right_side, "$A^{-1}", r"$A^{-H} \, $g"),
        "A": Wrt(
            _old_triangular_matrix,
            r"-$A^{-1} \, dA \, $out",
            r"-\bar{B} \, $out^{H} \text{ on the triangle, } \bar{B} \text{ the gradient of } $self",
            UNREAD,
        ),
    },
    outputs=2,
    samples=lambda: [
        sample(torch.triangular_solve, randn(3, 2), triangle(3, upper=True)),
        sample(torch.triangular_solve, randn(3, 2), triangle(), upper=False, transpose=True),
        sample(torch.triangular_solve, randn(3, 2), triangle(), upper=False, unitriangular=True),
    ],
    source="derivatives.yaml: triangular_solve",
    remark="There is a derivative where no element of the diagonal is zero.",
)

# Cholesky ----------------------------------------------------------------------------------------------------------


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
    local=(
        r"dL = L \, \varphi\left(L^{-1} \, dA \, L^{-H}\right), "
        r"\quad \varphi \text{: the lower triangle, half the diagonal}"
    ),
    product=(
        r"\tfrac{1}{2} L^{-H} \operatorname{sym}\left(L^{H} \bar{L}\right) L^{-1}, "
        r"\quad \operatorname{sym} \text{: the lower triangle, mirrored}"
    ),
    samples=lambda: [
        *squares(torch.linalg.cholesky, positive),
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


def _cholesky_solve_factor(op: Any, g: Tensor) -> Tensor:
    return _gram_gradient(op, op.input2, -torch.cholesky_solve(g, op.input2, op.upper) @ op.out.mH)


def _gram(factor: str) -> Callable[[Any], str]:
    return lambda op: rf"{factor}^{{H}} {factor}" if op.upper else rf"{factor} \, {factor}^{{H}}"


FULL_FACTOR = (
    "The gradient is that of the formula, on both triangles, although only one triangle of the factor is read."
)

cholesky_solve = rule(
    "CholeskySolveBackward0",
    equation=lambda op: rf"{_gram('$input2')(op)} \, $out = $self",
    wrt={
        "self": Wrt(
            lambda op, g: torch.cholesky_solve(g, op.input2, op.upper),
            "A^{-1}",
            r"A^{-1} \, $g",
            "each column of the right side has its own column of the solution",
        ),
        "input2": Wrt(
            _cholesky_solve_factor,
            r"-A^{-1} \, dA \, $out",
            lambda op: (
                (
                    r"$input2 \left(\bar{A} + \bar{A}^{H}\right)"
                    if op.upper
                    else r"\left(\bar{A} + \bar{A}^{H}\right) $input2"
                )
                + r", \quad \bar{A} = -A^{-1} \, $g \, $out^{H}"
            ),
            ALL,
        ),
    },
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
    equation=lambda op: rf"$out = \left({_gram('$self')(op)}\right)^{{-1}}",
    vjp=lambda op, g: _gram_gradient(op, op.self, -op.out @ g @ op.out),
    local=r"-$out \, dA \, $out",
    product=lambda op: (
        (r"$self \left(\bar{A} + \bar{A}^{H}\right)" if op.upper else r"\left(\bar{A} + \bar{A}^{H}\right) $self")
        + r", \quad \bar{A} = -$out \, $g \, $out"
    ),
    samples=lambda: [
        sample(torch.cholesky_inverse, triangle()),
        sample(torch.cholesky_inverse, triangle(2, 2, upper=True), upper=True, note="upper, batch"),
        sample(torch.cholesky_inverse, triangle(2, complex_=True), note="complex"),
    ],
    source="derivatives.yaml: cholesky_inverse. As inverse, with A = L L^H.",
    remark=f"There is a derivative where no element of the diagonal is zero. {FULL_FACTOR}",
)

# Eigenvalues and singular values -------------------------------------------------------------------------------------


def _thin(outs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """U, s and V^H without the columns and rows that no singular value belongs to."""
    u, s, vh = outs
    return u[..., : s.shape[-1]], s, vh[..., : s.shape[-1], :]


def _svd(op: Any, g: Any) -> Tensor:
    """A_bar = U (S_bar + Delta_U S + S Delta_V) V^H, and what U_bar and V_bar have outside the spaces of U and V."""
    u, s, vh = _thin(op.outs)
    count = s.shape[-1]
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


svd = of_matrix(
    "LinalgSvdBackward0",
    equation=r"$A = U \operatorname{diag}(s) \, V^{H}",
    vjp=_svd,
    local=r"\frac{\partial s_i}{\partial $A} = u_i v_i^{H}",
    product=(
        r"U \left(\operatorname{diag}(\bar{s}) + \frac{U^{H} \bar{U} - \bar{U}^{H} U}{E} S + "
        r"S \frac{V^{H} \bar{V} - \bar{V}^{H} V}{E}\right) V^{H} + \text{what lies outside } U, V, "
        r"\quad E_{ij} = s_j^2 - s_i^2"
    ),
    outputs=3,
    samples=lambda: [
        sample(torch.linalg.svd, randn(3, 3)),
        sample(torch.linalg.svd, randn(4, 2), full_matrices=False, note="tall"),
        sample(torch.linalg.svd, randn(2, 2, 3), full_matrices=False, note="wide, batch"),
        sample(torch.linalg.svd, randn(1, 1), note="size 1"),
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
    equation=r"$A = V \operatorname{diag}(\lambda) \, V^{H}, \quad $out = \lambda",
    vjp=_eigh,
    local=r"\frac{\partial \lambda_i}{\partial $A} = v_i v_i^{H}",
    product=(
        r"V \left(\operatorname{diag}(\bar{\lambda}) + \frac{V^{H} \bar{V} - \bar{V}^{H} V}{2 E}\right) V^{H}, "
        r"\quad E_{ij} = \lambda_j - \lambda_i"
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
        "There is a derivative where the eigenvalues are distinct. The signs (phases) of eigenvectors are free: the loss "
        f"must not depend on them. {TRIANGLE}"
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
    equation=r"$self \, V = V \operatorname{diag}(\lambda), \quad $out = \lambda",
    vjp=_eig,
    local=r"\frac{\partial \lambda_i}{\partial $self} = \left(V^{-1}\right)_i^{T} v_i^{T}",
    product=(
        r"V^{-H} \left(\operatorname{diag}(\bar{\lambda}) + \frac{V^{H} \bar{V} - V^{H} V "
        r"\operatorname{diag}\left(\Re V^{H} \bar{V}\right)}{\bar{E}}\right) V^{H}, "
        r"\quad E_{ij} = \lambda_j - \lambda_i"
    ),
    outputs=2,
    samples=lambda: [
        sample(torch.linalg.eigvals, square()),
        sample(torch.linalg.eigvals, square(2, 2), note="batch"),
        sample(torch.linalg.eigvals, square(2, complex_=True), note="complex"),
    ],
    source="arXiv:1701.00392 (Boeddeker et al., 2017); derivatives.yaml: linalg_eig",
    remark=(
        "There is a derivative where the eigenvalues are distinct. The phases of eigenvectors are free: the loss must not "
        "depend on them."
    ),
)

# QR and LU -----------------------------------------------------------------------------------------------------------


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


qr = of_matrix(
    "LinalgQrBackward0",
    equation=r"$A = $out \, R",
    vjp=_qr,
    local=r"dR = Q^{H} dA - \Omega R, \; dQ = \left(dA - Q \, dR\right) R^{-1}, \; \Omega = Q^{H} dQ \text{ skew}",
    product=(
        r"\left(\bar{Q} + Q \operatorname{sym}\left(\bar{R} R^{H} - Q^{H} \bar{Q}\right)\right) R^{-H}, \quad "
        r"\operatorname{sym} \text{: the upper triangle, mirrored}"
    ),
    outputs=2,
    accepts=lambda op: op.mode == "reduced" or (op.mode == "complete" and op.A.shape[-2] <= op.A.shape[-1]),
    samples=lambda: [
        sample(torch.linalg.qr, square()),
        sample(torch.linalg.qr, randn(4, 2), note="tall"),
        sample(torch.linalg.qr, randn(2, 2, 3), note="wide, batch"),
        sample(torch.linalg.qr, randn(1, 1), note="size 1"),
        sample(torch.linalg.qr, randn(3, 2, complex_=True), note="complex"),
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


LU = (
    r"A = P L U, \quad L \text{ with ones on its diagonal}",
    r"L^{-1} dL + dU \, U^{-1} = L^{-1} P^{T} dA \, U^{-1}",
    r"P L^{-H} \left(\operatorname{tril}_{-1}\left(L^{H} \bar{L}\right) + "
    r"\operatorname{triu}\left(\bar{U} U^{H}\right)\right) U^{-H}",
)
LU_SOURCE = (
    "derivatives.yaml: linalg_lu, linalg_lu_factor_ex. P^T dA = dL U + L dU; the triangles tell both terms apart."
)
LU_REMARK = "There is a derivative where the leading square block is invertible, while the same pivots are chosen."

lu = of_matrix(
    "LinalgLuBackward0",
    equation=LU[0].replace("A", "$A", 1),
    vjp=_lu,
    local=LU[1],
    product=LU[2],
    outputs=3,
    samples=lambda: [
        sample(torch.linalg.lu, square()),
        sample(torch.linalg.lu, randn(4, 2), note="tall"),
        sample(torch.linalg.lu, randn(2, 2, 3), note="wide, batch"),
        sample(torch.linalg.lu, square(2, complex_=True), note="complex"),
    ],
    source=LU_SOURCE,
    remark=LU_REMARK,
)

lu_factor = of_matrix(
    "LinalgLuFactorExBackward0",
    equation=LU[0].replace("A", "$A", 1) + r", \quad $out = L - I + U",
    vjp=_lu_factor,
    local=LU[1],
    product=LU[2],
    samples=lambda: [
        sample(torch.linalg.lu_factor, square()),
        sample(torch.linalg.lu_factor, randn(4, 2), note="tall"),
        sample(torch.linalg.lu_factor, randn(2, 3), note="wide"),
        sample(torch.linalg.lu_factor, square(2, 2), note="batch"),
    ],
    source=LU_SOURCE,
    remark=LU_REMARK,
)


def _unpacked(op: Any, g: Any) -> Tensor:
    """The gradients of L and U, laid over each other again."""
    m, n = op.LU_data.shape[-2:]
    gradient = torch.zeros_like(op.LU_data)
    if g[1] is not None:
        gradient[..., : min(m, n)] += g[1].tril(-1)
    if g[2] is not None:
        gradient[..., : min(m, n), :] += g[2].triu()
    return gradient


lu_unpack = rule(
    "LuUnpackBackward0",
    equation=r"L = \operatorname{tril}_{-1}($LU_data) + I, \quad U = \operatorname{triu}($LU_data)",
    wrt={
        "LU_data": Wrt(
            _unpacked,
            "1",
            r"\operatorname{tril}_{-1}(\bar{L}) + \operatorname{triu}(\bar{U})",
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
    source="derivatives.yaml: lu_unpack",
)


def _factored(op: Any) -> tuple[Tensor, Tensor, Tensor]:
    permutation, lower, upper = torch.lu_unpack(op.LU, op.pivots)
    return permutation, lower, upper


def _lu_solve_right_side(op: Any, g: Tensor) -> Tensor:
    permutation, lower, upper = _factored(op)
    a = permutation @ lower @ upper
    gradient: Tensor = torch.linalg.solve(a if op.adjoint else a.mH, g, left=op.left)
    return gradient


def _lu_solve_factors(op: Any, g: Tensor) -> Tensor:
    permutation, lower, upper = _factored(op)
    b_bar = _lu_solve_right_side(op, g)
    a_bar: Tensor = -b_bar @ op.out.mH if op.left else -op.out.mH @ b_bar
    a_bar = a_bar.mH if op.adjoint else a_bar
    below = permutation.mT @ a_bar
    return (below @ upper.mH).tril(-1) + (lower.mH @ below).triu()


lu_solve = rule(
    "LinalgLuSolveBackward0",
    equation=lambda op: rf"{_a(op)} \, $out = $B, \; A = P L U" if op.left else rf"$out \, {_a(op)} = $B, \; A = P L U",
    wrt={
        "LU": Wrt(
            _lu_solve_factors,
            r"-A^{-1} \, dA \, $out",
            r"\operatorname{tril}_{-1}\left(P^{T} \bar{A} U^{H}\right) + "
            r"\operatorname{triu}\left(L^{H} P^{T} \bar{A}\right), \quad \bar{A} = -\bar{B} \, $out^{H}",
            ALL,
        ),
        "B": Wrt(_lu_solve_right_side, "A^{-1}", r"A^{-H} \, $g", "each column has its own column of the solution"),
    },
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


def _a(op: Any) -> str:
    return "A^{H}" if op.adjoint else "A"


def _solve_by_lu(a: Tensor, b: Tensor, left: bool = True, adjoint: bool = False) -> Tensor:
    solution: Tensor = torch.linalg.lu_solve(*torch.linalg.lu_factor(a), b, left=left, adjoint=adjoint)
    return solution


# Pseudo-inverse, least squares, exponential ---------------------------------------------------------------------------


def _pinv_gradient(a: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """A_bar of Y = A^+: as for the inverse, and what the projections onto the column and row space of A add."""
    outside_columns = g.mH - a @ (y @ g.mH)
    outside_rows = g.mH - (g.mH @ y) @ a
    return -y.mH @ g @ y.mH + outside_columns @ y @ y.mH + y.mH @ y @ outside_rows


PINV = r"-Y^{H} \bar{Y} Y^{H} + (I - A Y) \bar{Y}^{H} Y Y^{H} + Y^{H} Y \bar{Y}^{H} (I - Y A)"
RANK = "There is a derivative where the rank does not change nearby."

pinv = of_matrix(
    "LinalgPinvBackward0",
    argument="self",
    equation=r"$out = $self^{+}",
    vjp=lambda op, g: _pinv_gradient(op.self, op.out, g),
    local=r"dY = -Y \, dA \, Y + Y Y^{H} dA^{H} (I - A Y) + (I - Y A) \, dA^{H} Y^{H} Y",
    product=PINV,
    constants={"atol": "not differentiable", "rtol": "not differentiable"},
    samples=lambda: [
        sample(torch.linalg.pinv, square()),
        sample(torch.linalg.pinv, randn(4, 2), note="tall"),
        sample(torch.linalg.pinv, randn(2, 2, 3), note="wide, batch"),
        sample(torch.linalg.pinv, randn(3, 2, complex_=True), note="complex"),
    ],
    source="doi:10.1137/0710036 (Golub and Pereyra, 1973); derivatives.yaml: linalg_pinv.atol_rtol_tensor",
    remark=RANK,
)


def _lstsq_columns(op: Any, t: Tensor) -> Tensor:
    return t.unsqueeze(-1) if vector_right_side(op.self, op.b) else t


def _twice_residual(op: Any, g: Tensor) -> Tensor:
    """Of the sum of squares of A X - B, column by column, by A X."""
    residual: Tensor = op.self @ _lstsq_columns(op, op.outs[0]) - _lstsq_columns(op, op.b)
    return 2 * g.unsqueeze(-2) * residual


def _has_residuals(op: Any, g: Any) -> bool:
    return g[1] is not None and g[1].numel() > 0


def _lstsq_matrix(op: Any, g: Any) -> Tensor:
    gradient = torch.zeros_like(op.self)
    if g[0] is not None:
        y_bar = _lstsq_columns(op, g[0]) @ _lstsq_columns(op, op.b).mH
        gradient = _pinv_gradient(op.self, torch.linalg.pinv(op.self), y_bar)
    if _has_residuals(op, g):
        gradient = gradient + _twice_residual(op, g[1]) @ _lstsq_columns(op, op.outs[0]).mH
    return gradient


def _lstsq_right_side(op: Any, g: Any) -> Tensor:
    gradient = torch.zeros_like(_lstsq_columns(op, op.b))
    if g[0] is not None:
        gradient = torch.linalg.pinv(op.self).mH @ _lstsq_columns(op, g[0])
    if _has_residuals(op, g):
        gradient = gradient - _twice_residual(op, g[1])
    return gradient.squeeze(-1) if vector_right_side(op.self, op.b) else gradient


lstsq = rule(
    "LinalgLstsqBackward0",
    equation=r"$out = \operatorname{argmin}_{X} \lVert $self \, X - $b \rVert = $self^{+} \, $b",
    wrt={
        "self": Wrt(
            _lstsq_matrix,
            r"dX = d\left($self^{+}\right) $b",
            rf"{PINV}, \quad Y = $self^{{+}}, \; \bar{{Y}} = $g \, $b^{{H}}",
            ALL,
        ),
        "b": Wrt(
            _lstsq_right_side,
            r"$self^{+}",
            r"\left($self^{+}\right)^{H} $g",
            "each column of the right side has its own column of the solution",
        ),
    },
    outputs=4,
    samples=lambda: [
        sample(torch.linalg.lstsq, square(), randn(3, 2)),
        sample(torch.linalg.lstsq, randn(4, 2), randn(4, 1), note="more equations than unknowns"),
        sample(torch.linalg.lstsq, randn(2, 2, 3), randn(2, 2, 1), note="fewer equations, batch"),
    ],
    source="derivatives.yaml: linalg_lstsq; the pseudo-inverse times the right side",
    remark=RANK,
)


def _matrix_exp(op: Any, g: Tensor) -> Tensor:
    """The upper right block of exp [[A^H, G], [0, A^H]], which is the derivative of exp at A^H in the direction G."""
    a, n = op.self.mH, op.self.shape[-1]
    block = torch.cat([torch.cat([a, g], -1), torch.cat([torch.zeros_like(a), a], -1)], -2)
    gradient: Tensor = torch.linalg.matrix_exp(block)[..., :n, n:]
    return gradient


matrix_exp = of_matrix(
    "LinalgMatrixExpBackward0",
    argument="self",
    equation=r"$out = e^{$self} = \sum_{k} \frac{1}{k!} $self^{k}",
    vjp=_matrix_exp,
    local=r"dX = \int_0^1 e^{t A} \, dA \, e^{(1 - t) A} \, dt",
    product=r"\int_0^1 e^{t A^{H}} \, $g \, e^{(1 - t) A^{H}} \, dt",
    samples=lambda: squares(torch.linalg.matrix_exp),
    source="doi:10.1137/1.9780898717778 (Higham, 2008, section 3.2); derivatives.yaml: linalg_matrix_exp",
)

# Products ------------------------------------------------------------------------------------------------------------


def _reflectors(op: Any) -> list[tuple[Tensor, Tensor]]:
    """The vectors v_i (1 at place i, below it the stored column) and tau_i of the reflections I - tau v v^H."""
    found = []
    for i in range(op.tau.shape[-1]):
        v = op.input[..., i : i + 1].clone()
        v[..., :i, :] = 0
        v[..., i, :] = 1
        found.append((v, op.tau[..., i, None, None]))
    return found


def _householder(op: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    reflectors = _reflectors(op)
    product = torch.eye(*op.out.shape[-2:], dtype=op.out.dtype, device=op.out.device).expand(op.out.shape)
    after = []  # what each reflection was applied to
    for v, tau in reversed(reflectors):
        after.append(product)
        product = product - tau * (v @ (v.mH @ product))
    columns, taus = torch.zeros_like(op.input), torch.zeros_like(op.tau)
    for i, ((v, tau), k) in enumerate(zip(reflectors, reversed(after), strict=True)):
        row = v.mH @ k
        taus[..., i] = -(v.mH @ g @ row.mH)[..., 0, 0]
        v_bar = -tau.conj() * (g @ row.mH) - tau * (k @ (g.mH @ v))
        columns[..., i + 1 :, i] = v_bar[..., i + 1 :, 0]
        g = g - tau.conj() * (v @ (v.mH @ g))
    return columns, taus


householder_product = rule(
    "LinalgHouseholderProductBackward0",
    equation=(
        r"$out = H_1 H_2 \cdots H_k, \quad H_i = I - \tau_i v_i v_i^{H}, \quad v_i = (0, \ldots, 0, 1, "
        r"\text{column } i \text{ of } $input \text{ below its diagonal})"
    ),
    wrt={
        "input": Wrt(
            lambda op, g: _householder(op, g)[0],
            r"dH_i = -\tau_i \left(dv_i \, v_i^{H} + v_i \, dv_i^{H}\right)",
            r"-\tau_i \left(G_i K_i^{H} v_i + K_i G_i^{H} v_i\right), \quad K_i = H_{i+1} \cdots H_k, \; "
            r"G_i = H_{i-1}^{H} \cdots H_1^{H} \, $g",
            "the diagonal and what is above it are not read",
        ),
        "tau": Wrt(
            lambda op, g: _householder(op, g)[1],
            r"-H_1 \cdots H_{i-1} \, v_i v_i^{H} K_i",
            r"-v_i^{H} G_i K_i^{H} v_i",
            ALL,
        ),
    },
    samples=lambda: [
        sample(torch.linalg.householder_product, randn(4, 3), randn(3)),
        sample(torch.linalg.householder_product, randn(3, 3), randn(2), note="fewer reflections than columns"),
        sample(torch.linalg.householder_product, randn(2, 3, 2), randn(2, 2), note="batch"),
        sample(torch.linalg.householder_product, randn(3, 2, complex_=True), randn(2, complex_=True), note="complex"),
    ],
    source="derivatives.yaml: linalg_householder_product; the product rule",
)


def _spread(op: Any, number: int, t: Tensor) -> Tensor:
    """A factor with an axis of size 1 wherever it is the same along the product's axis."""
    for axis in getattr(op, f"expand{number}"):
        t = t.unsqueeze(axis)
    return t


def _trilinear(number: int) -> Wrt:
    first, second = (each for each in (1, 2, 3) if each != number)

    def vjp(op: Any, g: Tensor) -> Tensor:
        for axis in sorted(op.sumdim):
            g = g.unsqueeze(axis)
        others = [_spread(op, each, getattr(op, f"i{each}")).conj() for each in (first, second)]
        gradient = g * others[0] * others[1]
        mine = list(getattr(op, f"expand{number}"))
        gradient = gradient.expand(
            torch.broadcast_shapes(gradient.shape, _spread(op, number, op.arguments[f"i{number}"]).shape)
        )
        return gradient.sum(mine) if mine else gradient

    return Wrt(
        vjp,
        rf"$i{first} \odot $i{second}",
        rf"\sum $g \odot $i{first} \odot $i{second}",
        "an output element is made of the elements at its own place along the axes that are not summed",
    )


trilinear = rule(
    "TrilinearBackward0",
    equation=lambda op: (
        r"$out = \sum $i1 \odot $i2 \odot $i3 \quad \text{over the product's axes } " + ", ".join(map(str, op.sumdim))
    ),
    wrt={f"i{number}": _trilinear(number) for number in (1, 2, 3)},
    samples=lambda: [
        sample(torch.nn.functional.bilinear, randn(2, 3), randn(2, 4), randn(5, 3, 4)),
        sample(torch.nn.functional.bilinear, randn(3), randn(4), randn(1, 3, 4), note="one sample"),
    ],
    source="derivatives.yaml: _trilinear. In bilinear: out_nk = sum_ij x_ni W_kij y_nj.",
)

# Distances -----------------------------------------------------------------------------------------------------------


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
