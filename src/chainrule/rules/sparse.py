r"""Rules of sparse matrices, as in a graph network: products with one, sampling at its places, and changes of layout.

A sparse matrix stands for the elements that it stores. Its gradient is told at these alone, whatever the product with
the full matrices would have elsewhere, and as a full matrix, with zeros elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Wrt, at, derivative, number, rule, sample
from chainrule.rules.linear import prefix, randn


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


def _times(scale: str, latex: str) -> Callable[[Any], str]:
    """A formula with a scale of the operation before its right side."""

    def formula(op: Any) -> str:
        head, equals, tail = latex.rpartition(" = ")
        return head + equals + prefix(op.arguments.get(scale, 1)) + tail

    return formula


PLACES = "only the elements that are stored have a gradient"


def _product(where: str, mat1: Wrt, mat2: Wrt) -> dict[str, Wrt]:
    """beta self + alpha mat1 mat2; `where` is a factor that is 0 at the places that do not count."""
    return {
        "self": Wrt(
            lambda op, g: dense(g) * op.beta * (stored(op.self) if where else 1),
            lambda op: prefix(op.beta) + where if where else number(op.beta),
            lambda op: "0" if op.beta == 0 else prefix(op.beta) + (rf"{where} \odot $g" if where else "$g"),
        ),
        "mat1": mat1,
        "mat2": mat2,
    }


A, B, Y = "{$mat1}_{i,j}", "{$mat2}_{j,k}", "{$out}_{i,k}"
KEPT = r"[{$self}_{i,k} \text{ is stored}]"

sparse_addmm = rule(
    "SparseAddmmBackward0",
    equation=lambda op: (
        ("$out = " if op.beta == 0 else f"$out = {prefix(op.beta)}$self + ") + prefix(op.alpha) + r"$mat1 \, $mat2"
    ),
    wrt=_product(
        "",
        Wrt(
            lambda op, g: op.alpha * (dense(g) @ dense(op.mat2).mH) * stored(op.mat1),
            _times("alpha", derivative(Y, A, rf"[{A} \text{{ is stored}}] \, {B}")),
            _times("alpha", r"[$mat1 \text{ is stored}] \odot ($g \, $mat2^{T})"),
            PLACES,
        ),
        Wrt(
            lambda op, g: op.alpha * (dense(op.mat1).mH @ dense(g)),
            _times("alpha", derivative(Y, B, A)),
            _times("alpha", r"$mat1^{T} \, $g"),
            "a row of the result is made of the rows that the sparse matrix points at",
        ),
    ),
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
        rf"$out = [$self \text{{ is stored}}] \odot ({prefix(op.beta)}$self + {prefix(op.alpha)}$mat1 \, $mat2)"
    ),
    wrt=_product(
        r"[$self \text{ is stored}]",
        Wrt(
            lambda op, g: op.alpha * (dense(g) * stored(op.self)) @ op.mat2.mH,
            _times("alpha", derivative(Y, A, rf"{KEPT} \, {B}")),
            _times("alpha", r"([$self \text{ is stored}] \odot $g) \, $mat2^{T}"),
        ),
        Wrt(
            lambda op, g: op.alpha * op.mat1.mH @ (dense(g) * stored(op.self)),
            _times("alpha", derivative(Y, B, rf"{KEPT} \, {A}")),
            _times("alpha", r"$mat1^{T} \, ([$self \text{ is stored}] \odot $g)"),
        ),
    ),
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
    equation="$out = $self",
    wrt={
        "self": Wrt(
            lambda op, g: dense(g) * (1 if op.masked_grad is False else stored(op.self)),
            lambda op: "1" if op.masked_grad is False else r"[$self \text{ is stored}]",
            lambda op: "$g" if op.masked_grad is False else r"[$self \text{ is stored}] \odot $g",
            PLACES,
        )
    },
    structure="linear",
    remark="The zeros that are not stored are written out.",
    samples=lambda: [sample(torch.Tensor.to_dense, _graph()), sample(torch.Tensor.to_dense, _graph(torch.sparse_csr))],
    source="derivatives.yaml: _to_dense",
)

to_sparse = rule(
    "ToSparseBackward0",
    equation="$out = $self",
    wrt={"self": Wrt(lambda op, g: dense(g), "1", "$g", PLACES)},
    remark="Zeros are not stored, and have no gradient.",
    structure="linear",
    samples=lambda: [sample(torch.Tensor.to_sparse, randn(2, 3)), sample(torch.Tensor.to_sparse, randn(2, 3), 1)],
    source="derivatives.yaml: _to_sparse",
)


def _named(op: Any) -> list[str]:
    """The place that the indices name for value n."""
    return [f"{{$indices}}_{{{axis},n}}" for axis in range(op.indices.shape[0])]


def _rest(op: Any) -> str:
    """The letters of the axes of a value, where each value is itself a tensor."""
    return "pqr"[: op.values.dim() - 1]


def _placed(op: Any) -> str:
    return "ijkl"[: op.indices.shape[0]] + _rest(op)


def _met(op: Any) -> str:
    return r" \, ".join(f"[{place} = {letter}]" for place, letter in zip(_named(op), "ijkl", strict=False))


sparse_coo_tensor = rule(
    "SparseCooTensorWithDimsAndTensorsBackward0",
    name="sparse_coo_tensor",
    equation=lambda op: rf"{at('out', _placed(op))} = \sum_{{n}} {_met(op)} \, {at('values', 'n' + _rest(op))}",
    wrt={
        "values": Wrt(
            lambda op, g: dense(g)[tuple(op.indices)],
            lambda op: derivative(at("out", _placed(op)), at("values", "n" + _rest(op)), _met(op)),
            lambda op: at("grad", "n" + _rest(op)) + " = " + at("g", [*_named(op), *_rest(op)]),
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
