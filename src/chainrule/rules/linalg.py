r"""Rules of linear algebra: inverses and solves, determinants, functions of a matrix.

Each starts from the identity that defines the result (such as A X = B), differentiates both sides, and reads the way
back off <G, dX>. A^H is the conjugate transpose, which for real numbers is A^T. All work on the last two axes, and axes
before them are batches.

Where a result exists or is smooth only for some matrices (invertible ones, say), the rule's remark says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Latex, Rule, Sample, Wrt, derivative, latex_of, rule, sample
from chainrule.rules import at as element
from chainrule.rules.index_notation import LETTERS, total
from chainrule.rules.linear import randn as any_randn

Shape = tuple[int, ...]

ALL = "every element of the result can depend on every element of the matrix; batches do not mix"
INVERTIBLE = "There is a derivative where the matrix is invertible."


def square(size: int = 3, *batch: int, complex_: bool = False, shift: int = 0) -> Tensor:
    """A sample matrix, well away from being singular, that wants a gradient; the same numbers each time."""
    return (randn(*batch, size, size, complex_=complex_, shift=shift).detach() + 2 * torch.eye(size)).requires_grad_()


def randn(*shape: int, complex_: bool = False, shift: int = 0) -> Tensor:
    """A sample input that wants a gradient; the same numbers each time."""
    return any_randn(*shape, dtype=torch.complex128 if complex_ else torch.float64, shift=shift)


def positive(size: int = 3, *batch: int, complex_: bool = False) -> Tensor:
    """A sample matrix that is symmetric (Hermitian) and positive definite."""
    a = randn(*batch, size, size, complex_=complex_).detach()
    return (a @ a.mH + torch.eye(size)).requires_grad_()


def triangle(size: int = 3, *batch: int, upper: bool = False, complex_: bool = False) -> Tensor:
    """A sample triangular matrix with a diagonal away from zero."""
    a = square(size, *batch, complex_=complex_).detach()
    a.diagonal(dim1=-2, dim2=-1).imag.zero_() if complex_ else None
    return (a.triu() if upper else a.tril()).requires_grad_()


def matrices(
    function: Callable[..., Any], *shapes: Shape, complex_: Shape = (2, 2), make: Any = square, **keywords: Any
) -> list[Sample]:
    """Samples of a function of one matrix: one of each shape and a complex one; `make` builds the square ones."""
    wanted = [(shape, False) for shape in shapes or ((3, 3), (2, 2, 2), (1, 1), (0, 2, 2))]
    found = []
    for shape, turned in [*wanted, (complex_, True)] if complex_ else wanted:
        *batch, rows, columns = shape
        kinds = {"tall": rows > columns, "wide": rows < columns, "size 1": rows == columns == 1, "batch": bool(batch)}
        note = ", ".join(kind for kind, holds in {**kinds, "complex": turned}.items() if holds)
        matrix = make(rows, *batch, complex_=turned) if rows == columns else randn(*shape, complex_=turned)
        found.append(sample(function, matrix, **keywords, note=note))
    return found


def of_matrix(
    *nodes: str, equation: Latex, vjp: Any, local: Latex, product: Latex, argument: str = "A", **more: Any
) -> Rule:
    """Register a function of one matrix; its templates may be `batched` ones."""
    equation, local, product = (batched(each, argument) for each in (equation, local, product))
    return rule(*nodes, equation=equation, wrt={argument: Wrt(vjp, local, product, ALL)}, **more)


def batched(template: Latex, argument: str) -> Callable[[Any], str]:
    """A template of elements in which * stands for the indices of the axes before a matrix."""

    def filled(op: Any) -> str:
        text = latex_of(template, op)
        axes = ",".join("abcdfgh"[: op.arguments[argument].dim() - 2])
        return text.replace("_{*}", f"_{{{axes}}}" * bool(axes)).replace("*", f"{axes}," * bool(axes))

    return filled


def given(g: Tensor | None, like: Tensor) -> Tensor:
    """An upstream gradient; zero where none arrived."""
    return torch.zeros_like(like) if g is None else g


# Inverses, determinants

inverse = of_matrix(
    "LinalgInvExBackward0",
    equation=r"$out = $A^{-1}",
    vjp=lambda op, g: -op.out.mH @ g @ op.out.mH,
    local=r"\dot{$out} = -$out \, \dot{$A} \, $out",
    product=r"-$out^{H} \, $g \, $out^{H}",
    samples=lambda: matrices(torch.linalg.inv),
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
    local=r"\dot{$out} = $out \odot \operatorname{tr}\left($A^{-1} \, \dot{$A}\right)",
    product=r"{$grad}_{*i,j} = {$g}_{*} \, \overline{{$out}_{*} \left($A^{-1}\right)_{*j,i}}",
    samples=lambda: matrices(torch.linalg.det),
    source="derivatives.yaml: _linalg_det. Laplace: det A is linear in each a_ij, with its cofactor as the factor.",
    remark="The derivative is the matrix of cofactors, det A times the transposed inverse where there is one. "
    "It is smooth everywhere; yet where it is exactly 0, PyTorch's own gradient is 0, not the cofactors.",
)


def _slogdet(op: Any, g: Any) -> Tensor:
    """d log det A = tr(A^-1 dA); its real part moves log |det A|, its imaginary part turns the sign."""
    rate = given(g[1], op.outs[1])
    if op.A.is_complex() and g[0] is not None:
        rate = torch.complex(rate, -(g[0].conj() * op.outs[0]).imag)
    gradient: Tensor = rate[..., None, None] * torch.linalg.inv(op.A).mH
    return gradient


def _slogdet_local(op: Any) -> str:
    rate = r"\operatorname{tr}\left($A^{-1} \, \dot{$A}\right)"
    if not op.A.is_complex():
        return rf"\dot{{$out0}} = 0 \, $out0, \quad \dot{{$out1}} = {rate}"
    turned = rf"\mathrm{{i}} \, $out0 \odot \operatorname{{Im}}\left({rate}\right)"
    return rf"\dot{{$out0}} = {turned}, \quad \dot{{$out1}} = \operatorname{{Re}}\left({rate}\right)"


def _slogdet_product(op: Any) -> str:
    rate = r"{$g1}_{*}"
    if op.A.is_complex():
        rate += r" - \mathrm{i} \operatorname{Im}\left(\overline{{$g0}_{*}} \, {$out0}_{*}\right)"
    return rf"{{$grad}}_{{*i,j}} = \left({rate}\right) \overline{{\left($A^{{-1}}\right)_{{*j,i}}}}"


slogdet = of_matrix(
    "LinalgSlogdetBackward0",
    equation=r"$out0 = \operatorname{sgn}(\det $A), \quad $out1 = \ln \left|\det $A\right|",
    vjp=_slogdet,
    local=_slogdet_local,
    product=_slogdet_product,
    outputs=4,
    samples=lambda: matrices(torch.linalg.slogdet),
    source="derivatives.yaml: _linalg_slogdet. d ln det A = tr(A^-1 dA).",
    remark=INVERTIBLE,
)

# Solves


def vector_right_side(a: Tensor, b: Tensor) -> bool:
    """Whether B is one vector (for each matrix of a batch), rather than a matrix of columns."""
    return b.dim() == 1 or (a.dim() - 1 == b.dim() and b.shape == a.shape[:-1])


Formula = Callable[[Any, str], str]


def solver(
    node: str,
    matrix: str,
    right: str,
    back: Callable[[Any, Tensor], Tensor],
    kept: Callable[[Any, Tensor], Tensor] = lambda op, a_bar: a_bar,
    symbol: str = "S",
    moved: Formula = lambda op, dot: dot,
    put_back: Formula = lambda op, a_bar: a_bar,
    beside: Callable[[Any], str] = lambda op: "",
    zeros: str = ALL,
    copied: bool = False,
    **more: Any,
) -> Rule:
    """Register the solution X of S X = B, or of X S = B where the operation is not `left`, with S made of an argument.

    S X = B gives dS X + S dX = dB. So B_bar = S^-H X_bar, which `back` computes, and S_bar = -B_bar X^H, of which the
    argument gets what is `kept`. In LaTeX S is `symbol`, and `beside` says what that is; `moved` is its change from
    that of the argument, and `put_back` the way back of that. With `copied` the second output is the argument itself.
    """

    def columns(op: Any, t: Tensor) -> Tensor:
        """A right side, or a solution, as a matrix."""
        return t.unsqueeze(-1) if vector_right_side(op.arguments[matrix], op.arguments[right]) else t

    def to_right(op: Any, g: Any) -> Tensor:
        g = given(g[0], op.out) if copied else g
        return back(op, columns(op, g)).reshape(g.shape)

    def to_matrix(op: Any, g: Any) -> Tensor:
        b_bar, x = columns(op, to_right(op, g)), columns(op, op.out)
        gradient = kept(op, -b_bar @ x.mH if is_left(op) else -x.mH @ b_bar)
        return gradient if not copied or g[1] is None else gradient + g[1]

    def sided(*factors: str, head: str = "", copy: str = "", whole: Formula = lambda op, text: text) -> Latex:
        """A product, turned round where S stands on the right: @S for S, @B for B, and @D for the change of S."""

        def filled(op: Any) -> str:
            text = head + whole(op, r" \, ".join(factors if is_left(op) else factors[::-1]))
            for old, new in {"$out": "$out0", "$g": "$g0"}.items() if copied else ():
                text = text.replace(old, new)
            for word, meaning in {"@S": symbol, "@B": f"${right}", "@D": moved(op, rf"\dot{{${matrix}}}")}.items():
                text = text.replace(word, meaning)
            return text + (copy if copied else "") + beside(op)

        return filled

    by_matrix = Wrt(
        to_matrix,
        sided("@S^{-1}", "@D", "$out", head=r"\dot{$out} = -", copy=rf", \quad \dot{{$out1}} = \dot{{${matrix}}}"),
        sided("@S^{-H}", "$g", "$out^{H}", head="-", whole=put_back, copy=" + $g1"),
        zeros,
    )
    by_right = Wrt(
        to_right,
        sided("@S^{-1}", r"\dot{@B}", head=r"\dot{$out} = ", copy=rf", \quad \dot{{$out1}} = 0 \, ${matrix}"),
        sided("@S^{-H}", "$g"),
        "each column of the right side has its own column of the solution (each row, from the right)",
    )
    equation = sided("@S^{-1}", "@B", head="$out = ", copy=rf", \quad $out1 = ${matrix}")
    return rule(node, equation=equation, wrt={matrix: by_matrix, right: by_right}, linear=(right,), **more)


def is_left(op: Any) -> bool:
    """Whether the matrix stands left of the solution."""
    return bool(op.arguments.get("left", True))


solve = solver(
    "LinalgSolveExBackward0",
    "A",
    "B",
    lambda op, g: torch.linalg.solve(op.A.mH, g, left=op.left),
    symbol="$A",
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
    return SOLVE(a, b, upper=upper, left=left, unitriangular=unit)


def _part(op: Any) -> str:
    """What is read of a triangular matrix, in LaTeX."""
    part, unit = (r"\operatorname{triu}", "_{1}") if op.upper else (r"\operatorname{tril}", "_{-1}")
    return part + unit if op.unitriangular else part


def _triangle(op: Any, argument: str) -> str:
    """The triangle that is read, with ones on its diagonal, if unit."""
    return f"{_part(op)}({argument})" + (" + I" if op.unitriangular else "")


UNREAD = "the other triangle is not read, and neither is a diagonal that is taken as ones; there the gradient is zero"

SOLVE: Callable[..., Tensor] = torch.linalg.solve_triangular
solve_triangular = solver(
    "LinalgSolveTriangularBackward0",
    "self",
    "B",
    lambda op, g: triangular(op.self.mH, g, not op.upper, left=op.left, unit=op.unitriangular),
    lambda op, a_bar: _kept_triangle(a_bar, op.upper, op.unitriangular),
    moved=lambda op, dot: f"{_part(op)}({dot})",
    put_back=lambda op, a_bar: rf"{_part(op)}\left({a_bar}\right)",
    beside=lambda op: rf", \quad S = {_triangle(op, '$self')}",
    zeros=UNREAD,
    samples=lambda: [
        sample(SOLVE, triangle(), randn(3, 2), upper=False),
        sample(SOLVE, triangle(3, upper=True), randn(2, 3), upper=True, left=False),
        sample(SOLVE, triangle(), randn(3, 2), upper=False, unitriangular=True, note="unit"),
        sample(SOLVE, triangle(2, 3), randn(2, 1), upper=False, note="broadcast"),
        sample(SOLVE, triangle(2, complex_=True), randn(2, 2, complex_=True), upper=False, note="complex"),
    ],
    source="derivatives.yaml: linalg_solve_triangular. As solve, on the triangle alone.",
    remark="There is a derivative where no element of the diagonal is zero.",
)


def _turned(op: Any, text: str, bracket: str = "") -> str:
    """A formula of A, for its transpose where that is meant."""
    return rf"{bracket and '('}{text}{bracket and ')'}^{{T}}" if op.transpose else text


triangular_solve = solver(
    "TriangularSolveBackward0",
    "A",
    "self",
    lambda op, g: triangular(
        (op.A.mT if op.transpose else op.A).mH, g, op.upper == op.transpose, unit=op.unitriangular
    ),
    lambda op, a_bar: _kept_triangle(a_bar.mT if op.transpose else a_bar, op.upper, op.unitriangular),
    moved=lambda op, dot: _turned(op, f"{_part(op)}({dot})"),
    put_back=lambda op, a_bar: rf"{_part(op)}\left({_turned(op, a_bar, '()')}\right)",
    beside=lambda op: rf", \quad S = {_turned(op, _triangle(op, '$A'), '()')}",
    zeros=UNREAD,
    copied=True,
    outputs=2,
    samples=lambda: [
        sample(torch.triangular_solve, randn(3, 2), triangle(3, upper=True)),
        sample(torch.triangular_solve, randn(3, 2), triangle(), upper=False, transpose=True),
        sample(torch.triangular_solve, randn(3, 2), triangle(), upper=False, unitriangular=True),
        sample(
            torch.triangular_solve, randn(2, 1, complex_=True), triangle(2, complex_=True), upper=False, transpose=True
        ),
    ],
    remark="There is a derivative where no element of the diagonal is zero.",
)

# Pseudo-inverse, least squares, exponential


def _pinv_gradient(a: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """A_bar of Y = A^+: as for the inverse, and what the projections onto the column and row space of A add."""
    outside_columns = g.mH - a @ (y @ g.mH)
    outside_rows = g.mH - (g.mH @ y) @ a
    return -y.mH @ g @ y.mH + outside_columns @ y @ y.mH + y.mH @ y @ outside_rows


def _pinv_dot(a: str, y: str) -> str:
    """How Y = A^+ moves with A."""
    return (
        rf"-{y} \, \dot{{{a}}} \, {y} + {y} {y}^{{H}} \dot{{{a}}}^{{H}} (I - {a} {y})"
        rf" + (I - {y} {a}) \, \dot{{{a}}}^{{H}} {y}^{{H}} {y}"
    )


def _pinv_bar(a: str, y: str, g: str) -> str:
    """The gradient of A from that of Y = A^+."""
    return rf"-{y}^{{H}} {g} {y}^{{H}} + (I - {a} {y}) {g}^{{H}} {y} {y}^{{H}} + {y}^{{H}} {y} {g}^{{H}} (I - {y} {a})"


RANK = "There is a derivative where the rank does not change nearby."

pinv = of_matrix(
    "LinalgPinvBackward0",
    argument="self",
    equation=r"$out = $self^{+}",
    vjp=lambda op, g: _pinv_gradient(op.self, op.out, g),
    local=r"\dot{$out} = " + _pinv_dot("$self", "$out"),
    product=_pinv_bar("$self", "$out", "$g"),
    constants={"atol": "not differentiable", "rtol": "not differentiable"},
    samples=lambda: matrices(torch.linalg.pinv, (3, 3), (4, 2), (2, 2, 3), complex_=(3, 2)),
    source="doi:10.1137/0710036 (Golub and Pereyra, 1973); derivatives.yaml: linalg_pinv.atol_rtol_tensor",
    remark=RANK,
)


def _lstsq(op: Any, g: Any) -> tuple[Tensor, Tensor]:
    """The gradients of A and of B: through X = A^+ B, and through the sum of squares of each column of A X - B."""
    is_vector = vector_right_side(op.self, op.b)
    b, x, x_bar = (t.unsqueeze(-1) if is_vector else t for t in (op.b, op.out, given(g[0], op.out)))
    inverse = torch.linalg.pinv(op.self)
    a_bar, b_bar = _pinv_gradient(op.self, inverse, x_bar @ b.mH), inverse.mH @ x_bar
    if g[1] is not None and g[1].numel():
        twice_residual = 2 * g[1].unsqueeze(-2) * (op.self @ x - b)
        a_bar, b_bar = a_bar + twice_residual @ x.mH, b_bar - twice_residual
    return a_bar, b_bar.squeeze(-1) if is_vector else b_bar


def _least(text: str, residual: Latex, op: Any) -> str:
    """A formula of the solution, and what the sums of squares add where there are more equations than unknowns."""
    if not op.outs[1].numel():
        return text
    first, *rest = text.split(r", \quad ")
    more = latex_of(residual, op)
    claims = "=" in more
    joined = [first, more] if claims else [first + ("" if more.startswith("-") else " + ") + more]
    return r", \quad ".join([*joined, *rest, r"R = $self \, $out0 - $b", rf"0 \le i < {op.self.shape[-2]}"])


lstsq = rule(
    "LinalgLstsqBackward0",
    equation=partial(_least, r"$out0 = $self^{+} \, $b", batched(r"{$out1}_{*j} = \sum_{i} R_{*i,j}^2", "self")),
    wrt={
        "self": Wrt(
            lambda op, g: _lstsq(op, g)[0],
            partial(
                _least,
                rf"\dot{{$out0}} = \left({_pinv_dot('$self', 'Y')}\right) $b, \quad Y = $self^{{+}}",
                batched(r"\dot{$out1}_{*j} = 2 \sum_{i} R_{*i,j} \left(\dot{$self} \, $out0\right)_{*i,j}", "self"),
            ),
            partial(
                _least,
                rf"{_pinv_bar('$self', 'Y', 'G')}, \quad Y = $self^{{+}}, \; G = $g0 \, $b^{{H}}",
                r"R \operatorname{diag}(2 \, $g1) \, $out0^{H}",
            ),
            ALL,
        ),
        "b": Wrt(
            lambda op, g: _lstsq(op, g)[1],
            partial(
                _least,
                r"\dot{$out0} = $self^{+} \dot{$b}",
                batched(r"\dot{$out1}_{*j} = -2 \sum_{i} R_{*i,j} \, \dot{$b}_{*i,j}", "self"),
            ),
            partial(_least, r"\left($self^{+}\right)^{H} $g0", r"- R \operatorname{diag}(2 \, $g1)"),
            "each column of the right side has its own column of the solution",
        ),
    },
    outputs=4,
    samples=lambda: [
        sample(torch.linalg.lstsq, square(), randn(3, 2)),
        sample(torch.linalg.lstsq, randn(4, 2), randn(4, 1), note="more equations than unknowns"),
        sample(torch.linalg.lstsq, randn(4, 2), randn(4, 3), driver="gels", note="with residuals"),
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
    equation=r"$out = \operatorname{expm}($self)",
    vjp=_matrix_exp,
    local=(
        r"\dot{$out} = "
        r"\int_0^1 \operatorname{expm}(t \, $self) \, \dot{$self} \, \operatorname{expm}((1 - t) $self) \, dt"
    ),
    product=r"\int_0^1 \operatorname{expm}(t \, $self^{H}) \, $g \, \operatorname{expm}((1 - t) $self^{H}) \, dt",
    remark="The exponential of a matrix is the sum of its powers, each divided by k!, not that of its elements.",
    samples=lambda: matrices(torch.linalg.matrix_exp),
    source="doi:10.1137/1.9780898717778 (Higham, 2008, section 3.2); derivatives.yaml: linalg_matrix_exp",
)

# Products


Axes = dict[str, list[str]]


def _trilinear_axes(op: Any) -> Axes:
    """The letters of each factor, of the result (and of g, its gradient), and all of them: an axis may be missing."""
    every = LETTERS[: op.i1.dim() + len(op.expand1)]
    missing = {"i1": op.expand1, "i2": op.expand2, "i3": op.expand3, "out": op.sumdim, "g": op.sumdim, "all": ()}
    return {name: [each for axis, each in enumerate(every) if axis not in gone] for name, gone in missing.items()}


def _trilinear_sum(axes: Axes, factors: Iterable[str], kept: list[str]) -> str:
    """The sum of a product over all letters but some."""
    over = [letter for letter in axes["all"] if letter not in kept]
    return total(over, [], r" \, ".join(element(name, axes[name]) for name in factors))


def _trilinear(mine: str) -> Wrt:
    others = [each for each in ("i1", "i2", "i3") if each != mine]

    def vjp(op: Any, g: Tensor) -> Tensor:
        given = {"g": g, **{each: op.arguments[each].conj() for each in others}}
        given[mine] = torch.ones_like(op.arguments[mine])  # a letter of its own is in no other factor
        places = {name: "".join(letters) for name, letters in _trilinear_axes(op).items()}
        subscripts = ",".join(places[name] for name in given)
        return torch.einsum(f"{subscripts}->{places[mine]}", *given.values())

    def local(op: Any) -> str:
        axes = _trilinear_axes(op)
        value = _trilinear_sum(axes, others, axes["out"] + axes[mine])
        return derivative(element("out", axes["out"]), element(mine, axes[mine]), value)

    def product(op: Any) -> str:
        axes = _trilinear_axes(op)
        return f"{element('grad', axes[mine])} = {_trilinear_sum(axes, ['g', *others], axes[mine])}"

    zeros = "an output element is made of the elements at its own place along the axes that are not summed"
    return Wrt(vjp, local, product, zeros)


def _trilinear_equation(op: Any) -> str:
    axes = _trilinear_axes(op)
    return f"{element('out', axes['out'])} = {_trilinear_sum(axes, ('i1', 'i2', 'i3'), axes['out'])}"


trilinear = rule(
    "TrilinearBackward0",
    equation=_trilinear_equation,
    wrt={name: _trilinear(name) for name in ("i1", "i2", "i3")},
    linear=("i1",),
    samples=lambda: [
        sample(torch.nn.functional.bilinear, randn(2, 3), randn(2, 4), randn(5, 3, 4)),
        sample(torch.nn.functional.bilinear, randn(3), randn(4), randn(1, 3, 4), note="one sample"),
    ],
    source="derivatives.yaml: _trilinear. In bilinear: out_nk = sum_ij x_ni W_kij y_nj.",
)
