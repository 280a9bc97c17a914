"""How linear algebra comes down to primitives: solutions, determinants and factors of small matrices.

Systems, inverses, determinants and Cholesky factors by elimination, matrix after matrix and column after column. Which
rows it exchanges is taken over from the recorded numbers: any order gives the same solution, as long as no pivot is 0.

Eigenvalues, singular values, QR and the exponential in double precision: by reflections (QR), and by Jacobi's
rotations, as many as bring a small matrix to rest (Golub and Van Loan, Matrix Computations, 5.2, 8.5, 8.6). The signs
of eigenvectors and singular vectors are free: they stay those that PyTorch gave to the recorded numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import factorial, log2, prod
from typing import Any

import torch
from torch import Tensor

aten: Any = torch.ops.aten
LARGEST = 256  # elements of all matrices, up to which they are taken apart
TURNED = 5  # rows or columns that are turned against each other
SWEEPS = 7  # through all pairs of them
TERMS = 18  # of an exponential's series


def _is_small(matrix: Tensor) -> bool:
    return 0 < matrix.numel() <= LARGEST and matrix.shape[-1] == matrix.shape[-2]


def _eliminated(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """X of A X = B, and the determinant of A."""
    size = matrix.shape[0]
    determinant = torch.ones((), dtype=matrix.dtype)
    for column in range(size):
        pivot = column + int(matrix.numpy()[column:, column].__abs__().argmax())  # of the numbers as they are
        order = list(range(size))
        order[column], order[pivot] = pivot, column
        matrix, right = (torch.stack([each[row] for row in order]) for each in (matrix, right))
        own = matrix[column, column]
        determinant = determinant * (own if pivot == column else -own)
        left_row, right_row = matrix[column] / own, right[column] / own
        others = (torch.arange(size) != column)[:, None]
        factors = matrix[:, column : column + 1]
        right = torch.where(others, right - factors * right_row, right_row)
        matrix = torch.where(others, matrix - factors * left_row, left_row)
    return right, determinant


def _batched(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same of each matrix of a batch."""
    batch = torch.broadcast_shapes(matrix.shape[:-2], right.shape[:-2])
    one, other = (each.expand(*batch, *each.shape[-2:]).reshape(-1, *each.shape[-2:]) for each in (matrix, right))
    found = [_eliminated(one[place], other[place]) for place in range(prod(batch))]
    solution = torch.stack([each for each, _ in found]).reshape(*batch, *right.shape[-2:])
    return solution, torch.stack([each for _, each in found]).reshape(batch)


def _beside(matrix: Tensor, integers: int = 0) -> tuple[Tensor, ...]:
    """In place of what only a backward of PyTorch's own reads: a factor, pivots, and whether it went well."""
    return matrix.new_empty(0), *[torch.zeros(matrix.shape[:-2], dtype=torch.int32)] * integers


def solve(A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False) -> Any:
    """X of A X = B, or of X A = B."""
    if not _is_small(A):
        return NotImplemented
    is_vector = B.dim() == 1 or (B.dim() == A.dim() - 1 and B.shape == A.shape[:-1])
    right = B.unsqueeze(-1) if is_vector else B
    if left:
        found = _batched(A, right)[0]
    else:
        found = _batched(A.transpose(-2, -1), right.transpose(-2, -1))[0].transpose(-2, -1)
    return found.squeeze(-1) if is_vector else found, *_beside(A, 2)


def inverse(A: Tensor, *, check_errors: bool = False) -> Any:
    """X of A X = I."""
    if not _is_small(A):
        return NotImplemented
    return _batched(A, torch.eye(A.shape[-1], dtype=A.dtype))[0], *_beside(A, 1)[1:]


def determinant(A: Tensor) -> Any:
    """The product of the pivots."""
    if not _is_small(A):
        return NotImplemented
    return _batched(A, torch.eye(A.shape[-1], dtype=A.dtype))[1], *_beside(A, 1)


def log_determinant(A: Tensor) -> Any:
    """The determinant's sign, and the logarithm of its size."""
    found = determinant(A)
    return found if found is NotImplemented else (found[0].sign(), found[0].abs().log(), *_beside(A, 1))


def solve_triangular(self: Tensor, B: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Any:
    """The same of the triangle alone."""
    if not _is_small(self):
        return NotImplemented
    triangle = self.triu(int(unitriangular)) if upper else self.tril(-int(unitriangular))
    if unitriangular:
        triangle = triangle + torch.eye(self.shape[-1], dtype=self.dtype)
    return solve(triangle, B, left=left)[0]


def cholesky(self: Tensor, *, upper: bool = False, check_errors: bool = False) -> Any:
    """L of A = L L^T, column after column; only one triangle of A is read."""
    if not _is_small(self):
        return NotImplemented
    matrix, size = self.transpose(-2, -1) if upper else self, self.shape[-1]
    columns: list[Tensor] = []
    for column in range(size):
        rest = matrix[..., column:, column]
        for each in columns:
            rest = rest - each[..., column:] * each[..., column : column + 1]
        own = rest / rest[..., :1].sqrt()
        columns.append(torch.cat([own.new_zeros(*own.shape[:-1], column), own], -1))
    factor = torch.stack(columns, -1)
    return factor.transpose(-2, -1) if upper else factor, *_beside(self, 1)[1:]


def _recorded(matrix: Tensor) -> Tensor:
    """The numbers as they are, which depend on no variable."""
    return torch.from_numpy(matrix.numpy().copy())


def _angle(one: Tensor, other: Tensor, between: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotation that makes the symmetric matrix [[one, between], [between, other]] diagonal."""
    none = between == 0
    ratio = (other - one) / (2 * torch.where(none, 1.0, between))
    tangent = torch.where(ratio < 0, -1.0, 1.0) / (ratio.abs() + (ratio * ratio + 1).sqrt())
    tangent = torch.where(none, 0.0, tangent)
    cosine = (tangent * tangent + 1).rsqrt()
    return cosine, tangent * cosine


def _turned(columns: list[Tensor], p: int, q: int, cosine: Tensor, sine: Tensor) -> None:
    one, other = columns[p], columns[q]
    columns[p] = cosine[..., None] * one - sine[..., None] * other
    columns[q] = sine[..., None] * one + cosine[..., None] * other


def _as_signed(vectors: Tensor, known: Tensor) -> Tensor:
    """1 or -1 for each column: what gives it the sign that the recorded one has."""
    return torch.where((vectors * known).sum(-2, keepdim=True) < 0, -1.0, 1.0)


def _gathered(matrix: Tensor, order: Tensor) -> Tensor:
    return matrix.gather(-1, order.unsqueeze(-2).expand(matrix.shape))


def eigh(A: Tensor, UPLO: str = "L", compute_v: bool = True) -> Any:
    """Each rotation, of two rows and the same columns, makes one pair of elements 0."""
    size = A.shape[-1]
    if not 0 < size <= TURNED:
        return NotImplemented
    half = A.double().triu() if UPLO == "U" else A.double().tril()
    whole = half + half.transpose(-2, -1) - torch.diag_embed(half.diagonal(dim1=-2, dim2=-1))
    vectors = list(torch.eye(size, dtype=whole.dtype).expand(whole.shape).unbind(-1))
    for p, q in [*combinations(range(size), 2)] * SWEEPS:
        cosine, sine = _angle(whole[..., p, p], whole[..., q, q], whole[..., p, q])
        for _ in range(2):  # the columns, then the rows
            rows = list(whole.unbind(-1))
            _turned(rows, p, q, cosine, sine)
            whole = torch.stack(rows, -2)
        _turned(vectors, p, q, cosine, sine)
    values, order = torch.sort(whole.diagonal(dim1=-2, dim2=-1))
    found = _gathered(torch.stack(vectors, -1), order)
    known = torch.linalg.eigh(_recorded(A), UPLO=UPLO)[1]
    found = found * _as_signed(found, known) if compute_v else found.new_empty(0)
    return values.to(A.dtype), found.to(A.dtype)


def svd(A: Tensor, full_matrices: bool = False, compute_uv: bool = True, *, driver: str | None = None) -> Any:
    """Each rotation, of two columns, makes these orthogonal; in the end their lengths are the singular values."""
    rows, count = A.shape[-2:]
    if not 0 < min(rows, count) <= TURNED or (full_matrices and compute_uv and rows != count):
        return NotImplemented
    known_u, _, known_v = torch.linalg.svd(_recorded(A), full_matrices=False)
    if rows >= count:
        u, s, v = _orthogonal(A.double(), known_u)
    else:
        v, s, u = _orthogonal(A.double().transpose(-2, -1), known_v.transpose(-2, -1))
    parts = (u.to(A.dtype), v.transpose(-2, -1).to(A.dtype)) if compute_uv else (A.new_empty(0),) * 2
    return parts[0], s.to(A.dtype), parts[1]


def _orthogonal(matrix: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V of a matrix that has no more columns than rows; `known` has the signs of U."""
    count = matrix.shape[-1]
    columns = list(matrix.unbind(-1))
    turns = list(torch.eye(count, dtype=torch.float64).expand(*matrix.shape[:-2], count, count).unbind(-1))
    for p, q in [*combinations(range(count), 2)] * SWEEPS:
        one, other = columns[p], columns[q]
        cosine, sine = _angle((one * one).sum(-1), (other * other).sum(-1), (one * other).sum(-1))
        _turned(columns, p, q, cosine, sine)
        _turned(turns, p, q, cosine, sine)
    whole, turn = torch.stack(columns, -1), torch.stack(turns, -1)
    values, order = torch.sort((whole * whole).sum(-2).sqrt(), descending=True)
    u, v = _gathered(whole, order) / values.unsqueeze(-2), _gathered(turn, order)
    sign = _as_signed(u, known)
    return u * sign, values, v * sign


def qr(A: Tensor, mode: str = "reduced") -> Any:
    """Each reflection makes what is below the diagonal 0 in one column."""
    rows, count = A.shape[-2:]
    least = min(rows, count)
    if not 0 < least <= max(rows, count) <= 4 * TURNED:
        return NotImplemented
    upper = A.double()
    eye = torch.eye(rows, dtype=torch.float64).expand(*A.shape[:-2], rows, rows)
    turn = eye
    for column in range(min(least, rows - 1)):
        below = (torch.arange(rows) >= column).to(torch.float64)
        own = upper[..., :, column] * below
        first = own[..., column : column + 1]
        length = (own * own).sum(-1, keepdim=True).sqrt()
        mirror = own + torch.where(first < 0, -length, length) * eye[..., column]
        square = (mirror * mirror).sum(-1, keepdim=True)
        straight = (own * own).sum(-1, keepdim=True) == first * first  # nothing to do, as LAPACK has it
        mirror = mirror * torch.where(straight, 0.0, (2 / torch.where(straight, 1.0, square)).sqrt())
        reflected = mirror.unsqueeze(-1) * mirror.unsqueeze(-2)
        upper, turn = upper - reflected @ upper, turn - turn @ reflected
    kept = rows if mode == "complete" else least
    q, r = turn[..., :kept], upper[..., :kept, :].triu()
    return (A.new_empty(0) if mode == "r" else q.to(A.dtype)), r.to(A.dtype)


def exponential(self: Tensor) -> Any:
    """The series of A / 2^k, squared k times; k is that of the recorded numbers, with some in reserve."""
    size = self.shape[-1]
    if not 0 < size <= 4 * TURNED:
        return NotImplemented
    norm = float(abs(self.double().numpy()).sum(-2).max())
    times = max(0, int(log2(norm)) + 1 if norm else 0) + 3
    step = self.double() / 2**times
    power = torch.eye(size, dtype=torch.float64).expand(step.shape)
    found = power
    for term in range(1, TERMS):
        power = power @ step
        found = found + power / factorial(term)
    for _ in range(times):
        found = found @ found
    return found.to(self.dtype)


LINEAR_ALGEBRA: dict[Any, Callable[..., Any]] = {
    aten._linalg_solve_ex.default: solve,
    aten.linalg_inv_ex.default: inverse,
    aten._linalg_det.default: determinant,
    aten._linalg_slogdet.default: log_determinant,
    aten.linalg_solve_triangular.default: solve_triangular,
    aten.linalg_cholesky_ex.default: cholesky,
    aten._linalg_eigh.default: eigh,
    aten._linalg_svd.default: svd,
    aten.linalg_qr.default: qr,
    aten.linalg_matrix_exp.default: exponential,
}
