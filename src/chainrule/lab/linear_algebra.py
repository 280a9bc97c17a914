"""How the solution of a linear system, an inverse, a determinant and a Cholesky factor come down to primitives.

By elimination, matrix after matrix and column after column. Which rows it exchanges is taken over from the recorded
numbers: any order gives the same solution, as long as no pivot is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

aten: Any = torch.ops.aten
LARGEST = 256  # elements of all matrices, up to which they are taken apart


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


LINEAR_ALGEBRA: dict[Any, Callable[..., Any]] = {
    aten._linalg_solve_ex.default: solve,
    aten.linalg_inv_ex.default: inverse,
    aten._linalg_det.default: determinant,
    aten._linalg_slogdet.default: log_determinant,
    aten.linalg_solve_triangular.default: solve_triangular,
    aten.linalg_cholesky_ex.default: cholesky,
}
