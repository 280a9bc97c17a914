"""Changes of one tensor that undo a usual mistake: a factor or a term put in, axes exchanged, a shift, a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from chainrule.verification.repair_samples import Mistake, Named, Reach

Turn = Callable[[Reach, Tensor], Tensor]
"""Gives the changed tensor at a point."""


@dataclass(frozen=True)
class TensorChange:
    """One change of one tensor; the words say what is wrong with it, and what makes it right."""

    cost: float
    kind: Mistake
    problem: str
    fix: str
    turn: Turn


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(torch, name)
    for name in [
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "square",
        "reciprocal",
        "sin",
        "cos",
        "tan",
        "tanh",
        "sigmoid",
        "relu",
        "abs",
        "sign",
        "erf",
        "cosh",
        "sinh",
    ]
}
_INSERTED = ["exp", "log", "sqrt", "square", "reciprocal", "sigmoid", "tanh", "abs", "sign", "tril", "triu"]


def changes(points: Sequence[Reach], tensor: Tensor, name: str, before: int) -> Iterator[TensorChange]:
    """All changes of a tensor called `name`, with the tensors made before step `before`."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        yield from _of_indices(points, tensor, name, before)
        return
    yield TensorChange(1.95, "sign", f"the sign of {name} is wrong", "with the other sign", _plain(torch.neg))
    yield from _moves(tensor, name)
    for key, named in points[0].named.items():
        if named.made < before:
            yield from _with_tensor(tensor, name, key, named)
            yield from _reordered(tensor, name, key, named)
    for number in points[0].numbers:
        yield from _with_number(number, name)
    for factor, words in ((2.0, "2"), (0.5, "1/2")):
        turn = _plain(partial(torch.mul, other=factor))
        yield TensorChange(2.2, "factor", f"a factor {words} is missing at {name}", "multiplied by it", turn)
    yield from _functions(tensor, name)
    yield from _sums(tensor, name)


def _plain(work: Callable[[Tensor], Tensor]) -> Turn:
    return lambda point, tensor: work(tensor)


def _moves(tensor: Tensor, name: str) -> Iterator[TensorChange]:
    """Its conjugate, two axes exchanged, shifts by one, and its reverse; the shape stays."""
    shape = tensor.shape
    if tensor.is_complex():
        problem = f"{name} is not conjugated where it should be, or the reverse"
        yield TensorChange(1.3, "conjugate", problem, "conjugated", _plain(torch.conj))
    for a, b in combinations(range(tensor.dim()), 2):
        if min(shape[a], shape[b]) < 2:
            continue
        turn = partial(torch.transpose, dim0=a, dim1=b) if shape[a] == shape[b] else partial(_read_transposed, a=a, b=b)
        yield TensorChange(1.8, "transpose", f"{name} should be transposed",
                           f"with its axes {a} and {b} exchanged", _plain(turn))  # fmt: skip
    for axis in (axis for axis, size in enumerate(shape) if size > 1):
        for by in (1, -1):
            yield TensorChange(2.1, "shifted", f"{name} is off by one along axis {axis}",
                               f"shifted by {by}", _plain(partial(torch.roll, shifts=by, dims=axis)))  # fmt: skip
        if shape[axis] > 2:  # of two a shift is the reverse
            yield TensorChange(2.2, "missing function", f"{name} should be reversed along axis {axis}",
                               "with its elements in reverse order (`flip`)",
                               _plain(partial(torch.flip, dims=(axis,))))  # fmt: skip


def _read_transposed(tensor: Tensor, a: int, b: int) -> Tensor:
    """The elements, read in the order of the shape with two axes exchanged, and transposed into the shape itself."""
    shape = list(tensor.shape)
    shape[a], shape[b] = shape[b], shape[a]
    return tensor.reshape(shape).transpose(a, b)


def _with_tensor(tensor: Tensor, name: str, key: str, named: Named) -> Iterator[TensorChange]:
    """Another tensor put in as a factor or a term, or instead of this one."""
    other, text, cost = named.tensor, named.text, named.cost
    if text == name:
        return
    fitted = fitted_shape(other.shape, tensor.shape)
    if fitted is None and other.dim() == 2 and other.t().shape == tensor.shape and other.is_floating_point():
        yield TensorChange(2.6 + cost, "wrong operand", f"{name} stands where {text} transposed should",
                           f"with {text} transposed",
                           lambda point, t: point.named[key].tensor.t().clone())  # fmt: skip
    if fitted is None:
        wider = fitted_shape(tensor.shape, other.shape)
        if wider is not None and other.is_floating_point():
            yield TensorChange(2.2 + cost, "missing factor", f"{text} is missing as a factor",
                               f"with {name} multiplied by it",
                               lambda point, t: t * point.named[key].tensor)  # fmt: skip
        return

    def take(point: Reach) -> Tensor:
        return point.named[key].tensor.reshape(fitted)

    problem = f"{text} is missing" if "upstream" in text else f"{text} is missing as a factor"
    fix = "multiplied by it" if name.startswith("the gradient") else f"with {name} multiplied by it"
    yield TensorChange(2 + cost, "missing factor", problem, fix, lambda point, t: t * take(point))
    if other.dtype == torch.bool:
        yield TensorChange(2.1 + cost, "missing factor", f"the contrary of {text} is missing as a factor", fix,
                           lambda point, t: t * ~take(point))  # fmt: skip
    if not other.is_floating_point() and not other.is_complex():
        return
    if other.is_floating_point() and bool(((other > 0) & (other < 1)).all()):
        whole = f"1 minus {text} is missing as a factor"
        yield TensorChange(2.1 + cost, "missing factor", whole, fix, lambda point, t: t * (1 - take(point)))
        whole = f"the division by 1 minus {text} is missing"
        yield TensorChange(2.55 + cost, "missing factor", whole, f"with {name} divided by it",
                           lambda point, t: t / (1 - take(point)))  # fmt: skip
    term = 2.3 + max(cost, 0.0)
    yield TensorChange(term, "missing term", f"{text} is missing as a term", f"with it added to {name}",
                       lambda point, t: t + take(point))  # fmt: skip
    yield TensorChange(term, "missing term", f"{text} is missing as a term", f"with it subtracted from {name}",
                       lambda point, t: t - take(point))  # fmt: skip
    problem = f"the division by {text} is missing"
    yield TensorChange(2.45 + cost, "missing factor", problem, f"with {name} divided by it",
                       lambda point, t: t / take(point))  # fmt: skip
    if other.shape == tensor.shape:
        yield from _projections(tensor, name, key, text, cost)
        likely = 2.0 if named.kept else 2.35 + cost
        problem, fix = f"{name} stands where {text} should", f"with {text} there"
        if name.startswith("the gradient"):
            problem, fix = f"{name} should be {text}", "with that"
        yield TensorChange(likely, "wrong operand", problem, fix, lambda point, t: take(point).clone())


def _reordered(tensor: Tensor, name: str, key: str, named: Named) -> Iterator[TensorChange]:
    """Its elements along an axis in the order of a permutation, and back."""
    order = named.tensor
    if order.dtype != torch.long or not tensor.dim():
        return
    for axis in _permuted(order):
        if order.dim() != 1 and order.shape != tensor.shape:
            continue
        for at in range(tensor.dim()) if order.dim() == 1 else (axis,):
            if tensor.shape[at] != order.shape[axis]:
                continue
            for back in (True, False):

                def turn(point: Reach, t: Tensor, at: int = at, axis: int = axis, back: bool = back) -> Tensor:
                    order = point.named[key].tensor
                    order = order.argsort(axis) if back else order
                    return t.index_select(at, order) if order.dim() == 1 else t.gather(at, order)

                fix = f"with it undone (by its `argsort`, along axis {at})" if back else f"with it, along axis {at}"
                problem = f"{name} is in another order: the permutation {named.text} is missing"
                yield TensorChange(2.1 + named.cost, "permutation", problem, fix, turn)


def _permuted(index: Tensor) -> Iterator[int]:
    """The axes along which an index holds each place once, in another order."""
    for axis in range(index.dim()):
        size = index.shape[axis]
        counted = torch.arange(size, device=index.device).reshape((-1,) + (1,) * (index.dim() - axis - 1))
        if size > 1 and bool((index.sort(axis).values == counted).all()) and bool((index != counted).any()):
            yield axis


def _projections(tensor: Tensor, name: str, key: str, text: str, cost: float) -> Iterator[TensorChange]:
    """What a normalisation subtracts: o - p * sum(o), as of a softmax, and o - p * sum(o * p), as of unit vectors."""
    for axis in (axis for axis, size in enumerate(tensor.shape) if size > 1):
        for inner in (f"{name}", f"{name} times {text}"):

            def turn(point: Reach, t: Tensor, axis: int = axis, plain: bool = inner == name) -> Tensor:
                other = point.named[key].tensor
                return t - other * (t if plain else t * other).sum(axis, keepdim=True)

            problem = f"{text} times the sum of {inner} over axis {axis} is missing as a term"
            yield TensorChange(2.6 + cost, "missing term", problem, f"with it subtracted from {name}", turn)


def fitted_shape(shape: torch.Size, into: torch.Size) -> tuple[int, ...] | None:
    """The shape in which a tensor broadcasts into another one: as it is, or with axes of one element at its end."""
    for each in (tuple(shape), tuple(shape) + (1,) * (len(into) - len(shape))):
        if len(each) <= len(into) and all(
            one in (1, other) for one, other in zip(each[::-1], into[::-1], strict=False)
        ):
            return each
    return None


def _with_number(number: str, name: str) -> Iterator[TensorChange]:
    def take(point: Reach) -> float:
        return point.numbers[number]

    kind: Mistake = "epsilon" if "eps" in number else "missing term"
    yield TensorChange(2.3, kind, f"{number} is forgotten", f"with it added to {name}",
                       lambda point, t: t + take(point))  # fmt: skip
    yield TensorChange(2.4, kind, f"{number} is forgotten", f"with it subtracted from {name}",
                       lambda point, t: t - take(point))  # fmt: skip
    yield TensorChange(2.2, "missing factor", f"the factor {number} is missing", f"with {name} multiplied by it",
                       lambda point, t: t * take(point))  # fmt: skip
    yield TensorChange(2.35, "missing factor", f"the division by {number} is missing", f"with {name} divided by it",
                       lambda point, t: t / take(point))  # fmt: skip


def missing_function(function: str, name: str) -> TensorChange:
    """A function of the tensor instead of the tensor."""
    problem = f"`{function}` of {name} is missing"
    return TensorChange(2.15, "missing function", problem, "with it", _plain(getattr(torch, function)))


def _functions(tensor: Tensor, name: str) -> Iterator[TensorChange]:
    if tensor.is_complex():
        return
    for function in _INSERTED:
        if function.startswith("tri") and tensor.dim() < 2:
            continue
        yield missing_function(function, name)
    yield TensorChange(2.4, "missing term", f"{name} should be 1 minus {name}", "with that", _plain(lambda t: 1 - t))
    yield TensorChange(2.4, "missing term", f"1 is missing beside {name}", "with 1 added", _plain(lambda t: 1 + t))
    yield TensorChange(
        2.4, "missing term", f"-1 is missing beside {name}", "with 1 subtracted", _plain(lambda t: t - 1)
    )


def _sums(tensor: Tensor, name: str) -> Iterator[TensorChange]:
    if tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1] > 1:
        yield TensorChange(2.3, "missing factor", f"{name} should be its diagonal alone", "with 0 elsewhere",
                           _plain(lambda t: t.diag().diag()))  # fmt: skip
    for axis in (axis for axis, size in enumerate(tensor.shape) if size > 1):
        over = partial(torch.sum, dim=axis, keepdim=True)
        yield TensorChange(2.3, "reduction", f"the sum of {name} over axis {axis} is missing", "with it", _plain(over))
        mean = partial(torch.mean, dim=axis, keepdim=True)
        yield TensorChange(2.3, "reduction", f"the mean of {name} over axis {axis} is missing", "with it", _plain(mean))
        yield TensorChange(2.35, "missing term", f"the mean of {name} over axis {axis} is missing",
                           "with it subtracted", _plain(partial(_centred, axis=axis)))  # fmt: skip
        yield TensorChange(2.5, "missing function", f"{name} should be summed up from its end along axis {axis}",
                           "with the reversed `cumsum` (`flip`, `cumsum`, `flip`)",
                           _plain(partial(_summed_from_the_end, axis=axis)))  # fmt: skip


def _centred(tensor: Tensor, axis: int) -> Tensor:
    return tensor - tensor.mean(axis, keepdim=True)


def _summed_from_the_end(tensor: Tensor, axis: int) -> Tensor:
    return tensor.flip(axis).cumsum(axis).flip(axis)


def _of_indices(points: Sequence[Reach], tensor: Tensor, name: str, before: int) -> Iterator[TensorChange]:
    """Indices off by one, a mask turned round, another index or mask."""
    if tensor.dtype == torch.bool:
        yield TensorChange(2.0, "wrong operand", f"the condition {name} is the wrong way round", "with its contrary",
                           _plain(torch.logical_not))  # fmt: skip
    else:
        for by in (1, -1):
            yield TensorChange(2.0, "shifted", f"the index {name} is off by one", f"with {by:+d}",
                               _plain(partial(torch.add, other=by)))  # fmt: skip
        for axis in _permuted(tensor):
            problem = f"the permutation {name} stands where its inverse should"
            yield TensorChange(1.8, "permutation", problem, "with its `argsort`",
                               _plain(partial(torch.argsort, dim=axis)))  # fmt: skip
    yield from _moves(tensor, f"the index {name}")
    for key, named in points[0].named.items():
        other = named.tensor
        if named.made < before and other.dtype == tensor.dtype and other.shape == tensor.shape and other is not tensor:
            likely = 2.0 if named.kept else 2.3 + named.cost
            yield TensorChange(likely, "wrong operand", f"{name} stands where {named.text} should",
                               f"with {named.text} there",
                               lambda point, _, key=key: point.named[key].tensor.clone())  # type: ignore[misc]  # fmt: skip
