r"""Rules of linear algebra: inverses and solves, determinants, functions of a matrix.

Each starts from the identity that defines the result (such as A X = B), differentiates both sides, and reads the way
back off <G, dX>. A^H is the conjugate transpose, which for real numbers is A^T. All work on the last two axes, and axes
before them are batches.

Where a result exists or is smooth only for some matrices (invertible ones, say), the rule's remark says so.
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


# Inverses, determinants

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

# Solves


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
    remark="There is a derivative where no element of the diagonal is zero.",
)

# Pseudo-inverse, least squares, exponential


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

# Products


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
