r"""Rules of sparse matrices, as in a graph network: products with one, sampling at its places, and changes of layout.

A sparse matrix stands for the elements that it stores. Its gradient is told at these alone, whatever the product with
the full matrices would have elsewhere, and as a full matrix, with zeros elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Wrt, number, rule, sample
from chainrule.rules.linear import randn


def dense(t: Tensor) -> Tensor:
    """The full matrix that a sparse one stands for."""
    return t if t.layout == torch.strided else t.to_dense()


def stored(t: Tensor) -> Tensor:
    """1 where a sparse matrix stores an element, 0 elsewhere."""
    if t.layout == torch.strided:
        return torch.ones_like(t)
    coo = (t if t.layout == torch.sparse_coo else t.to_sparse_coo()).coalesce()
    return torch.sparse_coo_tensor(coo.indices(), torch.ones_like(coo.values()), coo.shape).to_dense()


def _graph(layout: torch.layout = torch.sparse_coo) -> Tensor:
    """A sample of a small graph's weights."""
    full = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    return full.to_sparse(layout=layout).requires_grad_()


def _prefix(scale: Any) -> str:
    return "" if scale == 1 else rf"{number(scale)} \, "


def _times(scale: str, latex: str) -> Callable[[Any], str]:
    return lambda op: _prefix(op.arguments.get(scale, 1)) + latex


PLACES = "only the elements that are stored have a gradient"

sparse_addmm = rule(
    "SparseAddmmBackward0",
    equation=lambda op: (
        ("$out = " if op.beta == 0 else f"$out = {_prefix(op.beta)}$self + ") + _prefix(op.alpha) + r"$mat1 \, $mat2"
    ),
    wrt={
        "self": Wrt(lambda op, g: dense(g) * op.beta, lambda op: number(op.beta), _times("beta", "$g")),
        "mat1": Wrt(
            lambda op, g: op.alpha * (dense(g) @ dense(op.mat2).mH) * stored(op.mat1),
            _times("alpha", r"{$mat2}_{j,k}"),
            _times("alpha", r"$g \, $mat2^{T} \text{ at the stored places}"),
            PLACES,
        ),
        "mat2": Wrt(
            lambda op, g: op.alpha * (dense(op.mat1).mH @ dense(g)),
            _times("alpha", r"{$mat1}_{i,j}"),
            _times("alpha", r"$mat1^{T} \, $g"),
            "a row of the result is made of the rows that the sparse matrix points at",
        ),
    },
    samples=lambda: [
        sample(torch.sparse.mm, _graph(), randn(3, 2, dtype=torch.float64)),
        sample(
            torch.sparse.addmm,
            randn(2, 2, dtype=torch.float64),
            _graph(),
            randn(3, 2, dtype=torch.float64),
            beta=0.5,
            alpha=2.0,
            note="scaled",
        ),
    ],
    source="derivatives.yaml: _sparse_addmm",
)

sampled_addmm = rule(
    "SparseSampledAddmmBackward0",
    equation=lambda op: (
        rf"$out = {_prefix(op.beta)}$self + {_prefix(op.alpha)}$mat1 \, $mat2 \text{{ at the places that }} $self "
        r"\text{ stores}"
    ),
    wrt={
        "self": Wrt(
            lambda op, g: dense(g) * stored(op.self) * op.beta, lambda op: number(op.beta), _times("beta", "$g")
        ),
        "mat1": Wrt(
            lambda op, g: op.alpha * (dense(g) * stored(op.self)) @ op.mat2.mH,
            _times("alpha", r"{$mat2}_{j,k}"),
            _times("alpha", r"$g \, $mat2^{T}"),
        ),
        "mat2": Wrt(
            lambda op, g: op.alpha * op.mat1.mH @ (dense(g) * stored(op.self)),
            _times("alpha", r"{$mat1}_{i,j}"),
            _times("alpha", r"$mat1^{T} \, $g"),
        ),
    },
    samples=lambda: [
        sample(
            torch.sparse.sampled_addmm,
            _graph(torch.sparse_csr),
            randn(2, 4, dtype=torch.float64),
            randn(4, 3, dtype=torch.float64),
            beta=0.5,
            alpha=2.0,
        )
    ],
    source="derivatives.yaml: sparse_sampled_addmm",
)

to_dense = rule(
    "ToDenseBackward0",
    equation=r"$out = $self \text{, with zeros written out}",
    wrt={
        "self": Wrt(
            lambda op, g: dense(g) * (1 if op.masked_grad is False else stored(op.self)),
            "1",
            r"$g \text{ at the stored places}",
            PLACES,
        )
    },
    structure="linear",
    samples=lambda: [sample(torch.Tensor.to_dense, _graph()), sample(torch.Tensor.to_dense, _graph(torch.sparse_csr))],
    source="derivatives.yaml: _to_dense",
)

to_sparse = rule(
    "ToSparseBackward0",
    equation=r"$out = $self \text{, without its zeros}",
    wrt={"self": Wrt(lambda op, g: dense(g), "1", r"$g \text{, zero where nothing is stored}", PLACES)},
    structure="linear",
    samples=lambda: [sample(torch.Tensor.to_sparse, randn(2, 3)), sample(torch.Tensor.to_sparse, randn(2, 3), 1)],
    source="derivatives.yaml: _to_sparse",
)

sparse_coo_tensor = rule(
    "SparseCooTensorWithDimsAndTensorsBackward0",
    name="sparse_coo_tensor",
    equation=r"{$out}_{i} = \sum_{n: \, i_n = i} {$values}_n, \quad i_n = {$indices}_n",
    wrt={
        "values": Wrt(
            lambda op, g: dense(g)[tuple(op.indices)],
            r"\left[i_n = i\right]",
            r"{$g}_{i_n}",
            "each value goes to its own place",
        )
    },
    constants={"indices": "not differentiable"},
    structure="linear",
    samples=lambda: [
        sample(torch.sparse_coo_tensor, torch.tensor([[0, 1, 1], [1, 0, 2]]), randn(3), (2, 3)),
        sample(torch.sparse_coo_tensor, torch.tensor([[0, 1]]), randn(2, 3), (2, 3), note="rows"),
    ],
    source="derivatives.yaml: _sparse_coo_tensor_with_dims_and_tensors",
)
