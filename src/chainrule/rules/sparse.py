r"""Rules of sparse matrices, as in a graph network: products with one, sampling at its places, and changes of layout.

A sparse matrix stands for the elements that it stores. Its gradient is given at these alone, whatever the product with
the full matrices would have elsewhere, and as a full matrix, with zeros elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Rule, Wrt, at, derivative, number, rule, sample
from chainrule.rules.linear import WeightedSum, prefix, randn


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


STORED = r"[$self \text{ is stored}]"
PLACES = "only the elements that are stored have a gradient"


def _sparse_product(node: str, kept: str, zeros: str = "", **more: Any) -> Rule:
    """Register beta self + alpha mat1 mat2; `kept` is what is sparse: `mat1`, or `self` and with it the result."""
    a, b, y, own = "{$mat1}_{i,j}", "{$mat2}_{j,k}", "{$out}_{i,k}", kept == "mat1"
    place = rf"[{a if own else '{$self}_{i,k}'} \text{{ is stored}}] \, "
    passed, masked = ("$g", r"[$mat1 \text{ is stored}] \odot ") if own else (rf"({STORED} \odot $g)", "")

    def result(op: Any) -> Any:
        return 1 if own else stored(op.self)

    def alpha(head: str, tail: str) -> Callable[[Any], str]:
        return lambda op: head + prefix(op.alpha) + tail

    def whole(op: Any) -> str:
        added = "" if op.beta == 0 and own else f"{prefix(op.beta)}$self + "
        total = rf"{added}{prefix(op.alpha)}$mat1 \, $mat2"
        return f"$out = {total}" if own else rf"$out = {STORED} \odot ({total})"

    wrt = {
        "self": Wrt(
            lambda op, g: dense(g) * op.beta * result(op),
            lambda op: number(op.beta) if own else prefix(op.beta) + STORED,
            lambda op: "0" if op.beta == 0 else prefix(op.beta) + passed.strip("()"),
        ),
        "mat1": Wrt(
            lambda op, g: op.alpha * ((dense(g) * result(op)) @ dense(op.mat2).mH) * (stored(op.mat1) if own else 1),
            alpha(derivative(y, a, ""), place + b),
            alpha("", masked + (rf"({passed} \, $mat2^{{T}})" if own else rf"{passed} \, $mat2^{{T}}")),
            PLACES if own else "",
        ),
        "mat2": Wrt(
            lambda op, g: op.alpha * (dense(op.mat1).mH @ (dense(g) * result(op))),
            alpha(derivative(y, b, ""), a if own else place + a),
            alpha("", rf"$mat1^{{T}} \, {passed}"),
            zeros,
        ),
    }
    return rule(node, equation=whole, wrt=wrt, linear=("self", "mat2") if own else (), **more)


def _doubles(*shape: int) -> Tensor:
    return randn(*shape, dtype=torch.float64)


sparse_addmm = _sparse_product(
    "SparseAddmmBackward0",
    "mat1",
    "a row of the result is made of the rows that the sparse matrix points at",
    samples=lambda: [
        sample(torch.sparse.mm, _graph(), _doubles(3, 2)),
        sample(torch.sparse.addmm, _doubles(2, 2), _graph(), _doubles(3, 2), beta=0.5, alpha=2.0, note="scaled"),
    ],
    source="derivatives.yaml: _sparse_addmm",
)

sampled_addmm = _sparse_product(
    "SparseSampledAddmmBackward0",
    "self",
    samples=lambda: [
        sample(torch.sparse.sampled_addmm, _graph(torch.sparse_csr), _doubles(2, 4), _doubles(4, 3), beta=0.5, alpha=2)
    ],
)

to_dense = rule(
    "ToDenseBackward0",
    equation="$out = $self",
    wrt={
        "self": Wrt(
            lambda op, g: dense(g) * (1 if op.masked_grad is False else stored(op.self)),
            lambda op: "1" if op.masked_grad is False else STORED,
            lambda op: "$g" if op.masked_grad is False else rf"{STORED} \odot $g",
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


def _placed(op: Any) -> WeightedSum:
    """The formulas: value n is at its place (i, j), and may itself be a tensor, with axes p, q."""
    rest = "pqr"[: op.values.dim() - 1]
    met = (f"[{place} = {letter}]" for place, letter in zip(_named(op), "ijkl", strict=False))
    return WeightedSum("ijkl"[: op.indices.shape[0]] + rest, "n" + rest, r" \, ".join(met))


sparse_coo_tensor = rule(
    "SparseCooTensorWithDimsAndTensorsBackward0",
    name="sparse_coo_tensor",
    equation=lambda op: _placed(op).forward(source="values"),
    wrt={
        "values": Wrt(
            lambda op, g: dense(g)[tuple(op.indices)],
            lambda op: _placed(op).local(by="values"),
            lambda op: f"{at('grad', _placed(op).into)} = {at('g', [*_named(op), *_placed(op).into[1:]])}",
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
