"""The values of trees that were read from LaTeX: see `latex_math`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import torch
from latex_functions import FUNCTIONS, OF_CLASSES, OF_TENSORS, SLACK
from latex_tree import FormulaError, Node
from torch import Tensor


@dataclass(frozen=True)
class Value:
    """Numbers: `tensor` has the scope's indices as its first axes, then its own. `row` marks a transposed vector."""

    tensor: Tensor
    row: bool = False


@dataclass(frozen=True)
class Bound:
    """A name's numbers, made where `depth` indices were in scope; `outside` is what a missing element is."""

    tensor: Tensor
    depth: int = 0
    outside: float = math.nan


@dataclass(frozen=True)
class Defined:
    """A name that a clause defines, with the letters that it depends on."""

    letters: tuple[str, ...]
    body: Node


Names = Mapping[str, "Bound | Defined"]


@dataclass(frozen=True)
class Scope:
    """The names that stand for something here, and how many indices are in scope.

    `outer` are the names of the whole statement, which is all that a definition sees beside its own letters.
    """

    names: Names
    outer: Names
    depth: int = 0
    ranges: Mapping[str, Node] = field(default_factory=dict)
    steps: frozenset[str] = frozenset()  # names that are defined by themselves, step by step
    known: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # the steps worked out
    masks: Mapping[str, Tensor] = field(default_factory=dict)  # where sparse operands store an element
    shape: tuple[int, ...] = ()  # of all elements, where operands are read element by element
    classes: int | None = None  # which of its axes counts classes

    def with_index(self, letter: str, numbers: Tensor) -> Scope:
        """One more index, which runs over `numbers`."""
        if letter in self.names:
            raise FormulaError(f"the index {letter} already stands for something else here")
        along = numbers.double().reshape((1,) * self.depth + (-1,))
        bound = Bound(along, self.depth + 1)
        return replace(self, names={**self.names, letter: bound}, depth=self.depth + 1)

    def lift(self, bound: Bound) -> Tensor:
        """A name's numbers, with an axis for each index in scope."""
        shape = bound.tensor.shape
        return bound.tensor.reshape(shape[: bound.depth] + (1,) * (self.depth - bound.depth) + shape[bound.depth :])

    def rank(self, value: Value) -> int:
        """How many axes of its own a value has."""
        return value.tensor.dim() - self.depth

    def together(self, *values: Value) -> list[Tensor]:
        """The numbers of several values, with equally many axes of their own."""
        rank = max(self.rank(each) for each in values)
        return [
            each.tensor.reshape(
                each.tensor.shape[: self.depth] + (1,) * (rank - self.rank(each)) + each.tensor.shape[self.depth :]
            )
            for each in values
        ]

    def __call__(self, node: Node) -> Value:
        """The value of a tree."""
        handler: Callable[..., Value] = getattr(self, "_" + KINDS[node[0]])
        return handler(*node[1:]) if node[0] in OWN else handler(*node)

    def number(self, node: Node) -> Tensor:
        """The value of a tree that must be a number for each index, not a tensor."""
        value = self(node)
        if self.rank(value):
            raise FormulaError(f"a number is expected, not a tensor of {self.rank(value)} axes")
        return value.tensor

    def _constant(self, number: complex) -> Value:
        kind = torch.complex128 if isinstance(number, complex) else torch.float64
        return Value(torch.full((1,) * self.depth, number, dtype=kind))

    def _named(self, name: str) -> Value:
        found = self.names.get(name)
        if found is None:
            raise FormulaError(f"{name} is not bound: no operand, no definition, and no sum or left side runs over it")
        if isinstance(found, Bound):
            return Value(self.lift(found))
        if found.letters:
            raise FormulaError(f"{name} is defined for an index or an argument, and stands without")
        if name in self.steps:
            return Value(self.lift(Bound(self._step(found, 0))))
        return self._hidden({})(found.body)

    def _hidden(self, letters: Names) -> Scope:
        """What a definition's body sees: the statement's names, and its own letters."""
        return replace(self, names={**self.outer, **letters})

    def _defined(self, name: str, arguments: Sequence[Node]) -> Value:
        found = self.names[name]
        assert isinstance(found, Defined)
        if len(arguments) != len(found.letters):
            raise FormulaError("a definition is used with another number of indices than it has")
        values = [self(each).tensor for each in arguments]
        if name in self.steps:
            if len(values) != 1 or values[0].dim() != self.depth:
                raise FormulaError(f"{name} is defined by itself, and has more than one index")
            numbers, places = values[0].round().unique(return_inverse=True)
            steps = torch.broadcast_tensors(*(self._step(found, int(each)) for each in numbers))
            return Value(torch.stack(steps)[places])
        letters = {letter: Bound(value, self.depth) for letter, value in zip(found.letters, values, strict=True)}
        return self._hidden(letters)(found.body)

    def _step(self, found: Defined, number: int) -> Tensor:
        """One step of a definition that refers to other steps of itself."""
        key = (id(found), number)
        if key not in self.known:
            letters = {letter: Bound(torch.tensor(float(number)), 0) for letter in found.letters}
            self.known[key] = replace(self, names={**self.outer, **letters}, depth=0)(found.body).tensor
        return self.known[key]

    def _at(self, base: Node, indices: tuple[Node, ...]) -> Value:
        found = self.names.get(base[1]) if base[0] == "name" else None
        if isinstance(found, Defined) and found.letters:
            count = len(found.letters)
            value = self._defined(base[1], indices[:count])
            return value if len(indices) == count else self._picked(value.tensor, indices[count:], math.nan)
        outside = found.outside if isinstance(found, Bound) else math.nan
        return self._picked(self(base).tensor, indices, outside)

    def _picked(self, tensor: Tensor, indices: Sequence[Node], outside: float) -> Value:
        """The elements (or the parts) that indices name."""
        own = tensor.shape[self.depth :]
        if len(indices) > len(own):
            raise FormulaError(f"{len(indices)} indices of a tensor of {len(own)} axes")
        places = [self.number(each).real for each in indices]
        shape = torch.broadcast_shapes(tensor.shape[: self.depth], *(each.shape for each in places))
        lead = [
            torch.arange(size).reshape((-1,) + (1,) * (self.depth - axis - 1)) * (tensor.shape[axis] > 1)
            for axis, size in enumerate(shape)
        ]
        whole, exists = [], torch.ones(shape, dtype=torch.bool)
        for place, size in zip(places, own, strict=False):
            near = place.round()
            exists = exists & ((place - near).abs() < SLACK) & (near >= 0) & (near < size)
            whole.append(near.clamp(0, max(size - 1, 0)).nan_to_num(0).long())
        rest = own[len(indices) :]
        if not math.prod(own[: len(indices)]):
            picked = tensor.new_full((*shape, *rest), math.nan)
        else:
            picked = tensor[(*lead, *whole)].expand((*shape, *rest))
        return Value(torch.where(exists.reshape((*shape, *(1 for _ in rest))), picked, outside))

    def _call(self, name: str, arguments: tuple[Node, ...]) -> Value:
        found = self.names.get(name)
        if isinstance(found, Defined):
            return self._defined(name, arguments)
        values = [self(each) for each in arguments]
        if name == r"\operatorname{chunk}":
            place, count = (int(self.number(each)) for each in arguments[1:])
            whole = values[0]
            return Value(whole.tensor.chunk(count, -1)[place]) if self.rank(whole) else whole
        if self.classes is not None and name in OF_CLASSES:
            return Value(OF_CLASSES[name](values[0].tensor, self.classes, self.shape[self.classes]))
        if name in OF_TENSORS:
            axes, function = OF_TENSORS[name]
            if any(self.rank(each) < axes for each in values):
                raise FormulaError(f"{name} of a number")
            return Value(function(values[0].tensor))
        return Value(FUNCTIONS[name](*self.together(*values)))

    def _with_identity(self, *sides: Node) -> Iterator[Value]:
        """The values of two sides; I beside a matrix is the identity of its size."""
        unit = ("name", "I")
        found = [None if each == unit and "I" not in self.names else self(each) for each in sides]
        for value, other in zip(found, reversed(found), strict=True):
            if value is None and other is not None:
                size = other.tensor.shape[-2:]
                eye = torch.eye(*size, dtype=other.tensor.dtype)
                value = Value(eye.reshape((1,) * (other.tensor.dim() - 2) + size))
            yield self(unit) if value is None else value

    def _elementwise(self, sign: str, left: Node, right: Node) -> Value:
        a, b = self._with_identity(left, right)
        rows = {each.row for each in (a, b) if self.rank(each)}
        if len(rows) > 1:
            raise FormulaError("a row and a column, element by element")
        x, y = self.together(a, b)
        return Value(ELEMENTWISE[sign](x, y), rows == {True})

    def _dot(self, sign: str, left: Node, right: Node) -> Value:
        a, b = self(left), self(right)
        if not self.rank(a) or not self.rank(b):
            return self._elementwise(r"\odot", left, right)
        return Value((a.tensor * b.tensor).sum(tuple(range(self.depth, a.tensor.dim()))))

    def _times(self, sign: str, left: Node, right: Node) -> Value:
        """A product of numbers, or the vector product along the last axis."""
        a, b = self(left), self(right)
        if not self.rank(a) or not self.rank(b):
            return self._elementwise(r"\odot", left, right)
        x, y = torch.broadcast_tensors(a.tensor, b.tensor)
        turned = [
            x[..., (i + 1) % 3] * y[..., (i + 2) % 3] - x[..., (i + 2) % 3] * y[..., (i + 1) % 3] for i in range(3)
        ]
        return Value(torch.stack(turned, -1))

    def _row(self, parts: tuple[Node, ...]) -> Value:
        return Value(torch.cat([self(each).tensor for each in parts], -1))

    def _stored(self, tree: Node) -> Value:
        return replace(self, names={**self.names, **{name: Bound(mask) for name, mask in self.masks.items()}})(tree)

    def _negative(self, inside: Node) -> Value:
        value = self(inside)
        return Value(-value.tensor, value.row)

    def _beside(self, left: Node, right: Node) -> Value:
        a, b = self(left), self(right)
        ranks = self.rank(a), self.rank(b)
        if 0 in ranks:
            x, y = self.together(a, b)
            return Value(x * y, a.row or b.row)
        x, y = promoted(a.tensor, b.tensor)
        if ranks == (1, 1):
            if a.row and not b.row:
                return Value((x * y).sum(-1))
            if b.row and not a.row:
                return Value(x.unsqueeze(-1) * y.unsqueeze(-2))
            raise FormulaError("two vectors side by side: neither an inner product nor an outer one")
        if 1 in ranks:
            if ranks[0] == 1:
                return Value((x.unsqueeze(-2) @ y).squeeze(-2), a.row)
            return Value((x @ y.unsqueeze(-1)).squeeze(-1))
        if ranks[0] != ranks[1]:  # one stack of matrices and one matrix
            x, y = self.together(Value(x), Value(y))
        return Value(x @ y)

    def _transpose(self, inside: Node, conjugate: bool) -> Value:
        value = self(inside)
        tensor = value.tensor.conj() if conjugate else value.tensor
        rank = self.rank(value)
        return Value(tensor.mT if rank > 1 else tensor, rank == 1 and not value.row)

    def _integral(self, letter: str, low: Node, high: Node, body: Node) -> Value:
        """By the rule of Gauss and Legendre."""
        places, weights = (torch.as_tensor(each) for each in numpy.polynomial.legendre.leggauss(24))
        a, b = (float(self.number(each)) for each in (low, high))
        inside = self.with_index(letter, (b - a) / 2 * places + (a + b) / 2)
        found = inside(body).tensor
        weights = ((b - a) / 2 * weights).reshape([-1 if axis == self.depth else 1 for axis in range(found.dim())])
        return Value((found * weights).sum(self.depth))

    def _pseudoinverse(self, inside: Node) -> Value:
        return Value(torch.linalg.pinv(self(inside).tensor))

    def _inverse(self, inside: Node) -> Value:
        return Value(torch.linalg.inv(self(inside).tensor))

    def _power(self, sign: str, base: Node, exponent: Node) -> Value:
        value = self(base)
        if self.rank(value) >= 2:
            power = self.number(exponent)
            if power.numel() != 1 or float(power) != round(float(power)):
                raise FormulaError("a matrix to a power that is not a whole number")
            return Value(torch.linalg.matrix_power(value.tensor, int(power)))
        x, y = self.together(value, self(exponent))
        return Value(torch.pow(x, y))

    def _norm(self, inside: Node, order: Node) -> Value:
        value, power = self(inside), self.number(order)
        axes = tuple(range(self.depth, value.tensor.dim()))
        return Value(torch.linalg.vector_norm(value.tensor, float(power), axes) if axes else value.tensor.abs())

    def _matrix(self, rows: tuple[tuple[Node, ...], ...]) -> Value:
        cells = torch.broadcast_tensors(*(self.number(each) for row in rows for each in row))
        return Value(torch.stack(cells, -1).unflatten(-1, (len(rows), len(rows[0]))))

    def _iverson(self, condition: Node) -> Value:
        return Value(self.truth(condition).tensor.double())

    def _relation(self, parts: tuple[Node, ...], signs: tuple[str, ...], kind: str = "") -> Value:
        values = [self(each) for each in parts]
        truth: Value | None = None
        for left, sign, right in zip(values, signs, values[1:], strict=False):
            here = Value(COMPARED[sign](*self.together(left, right)))
            truth = here if truth is None else Value(torch.logical_and(*self.together(truth, here)))
        assert truth is not None
        return truth

    def _logic(self, kind: str, left: Node, right: Node) -> Value:
        x, y = self.together(self.truth(left), self.truth(right))
        return Value(x & y if kind == "and" else x | y)

    def _not(self, inside: Node) -> Value:
        return Value(~self.truth(inside).tensor)

    def _otherwise(self) -> Value:
        return Value(torch.ones((1,) * self.depth, dtype=torch.bool))

    def truth(self, condition: Node) -> Value:
        """Whether a condition holds; numbers (a recorded mask) hold where they are not 0."""
        value = self(condition)
        return value if value.tensor.dtype == torch.bool else Value(value.tensor != 0)

    def _cases(self, rows: tuple[tuple[Node, Node], ...]) -> Value:
        result = Value(torch.full((1,) * self.depth, math.nan, dtype=torch.float64))
        open_ = self._otherwise()
        for value, condition in rows:
            truth, left = self.together(self.truth(condition), open_)
            if bool((truth & left).any()):  # so that a definition by steps comes to an end
                holds, here, other = self.together(Value(truth & left), self(value), result)
                result = Value(torch.where(holds, *promoted(here, other)))
            open_ = Value(left & ~truth)
        return result

    def _total(self, body: Node, over: Sequence[int] | None = None) -> Value:
        """The sum of all elements, or of those along some axes."""
        axes = tuple(range(len(self.shape)) if over is None else over)
        terms = self(body).tensor
        whole = [self.shape[axis] if axis in axes else size for axis, size in enumerate(terms.shape)]
        return Value(terms.expand(whole).sum(axes, keepdim=True) if axes else terms)

    def _big(self, kind: str, items: tuple[Node, ...], body: Node) -> Value:
        if self.classes is not None and kind == "sum" and items in ((("name", "c"),), (("name", "n"),)):
            along = [axis for axis in range(len(self.shape)) if (axis == self.classes) == (items[0][1] == "c")]
            return self._total(body, along)
        letters = list(new_names(items, self.names))
        scope, limits = self, [each for each in items if each[0] != "name"]
        if not letters:
            raise FormulaError("a sum over nothing")
        for letter in letters:
            conditions = [*limits, *([self.ranges[letter]] if letter in self.ranges else [])]
            limits += [self.ranges[letter]] if letter in self.ranges else []
            ranges = (each for each in limits if each[0] == "relation" and ("name", letter) in each[1])
            whole = letter in self.ranges or any(each[3:] for each in ranges)
            scope = scope.with_index(letter, scope.run(letter, conditions, body, whole))
        holds = Value(torch.ones((1,) * scope.depth, dtype=torch.bool))
        for each in limits:
            x, y = scope.together(holds, scope.truth(each))
            holds = Value(x & y)
        mask, terms = scope.together(holds, scope(body))
        sizes = [scope.names[letter].tensor.numel() for letter in letters]  # type: ignore[union-attr]
        own = terms.shape[scope.depth :]
        shape = torch.broadcast_shapes(terms.shape, mask.shape, (*(1,) * self.depth, *sizes, *(1 for _ in own)))
        axes = tuple(range(self.depth, scope.depth))
        mask, terms = mask.expand(shape), terms.expand(shape)
        if kind in {"median", "nanmedian", "mode"}:
            if not bool(mask.all()):
                raise FormulaError(f"a {kind} of some elements alone")
            return Value(REDUCED[kind](terms, axes))
        if kind == "mean":
            return Value(torch.where(mask, terms, 0).sum(axes) / mask.sum(axes))
        return Value(REDUCED[kind](torch.where(mask, terms, NEUTRAL[kind]), axes))

    def run(self, letter: str, conditions: Sequence[Node], body: Any, whole: bool = True) -> Tensor:
        """The numbers that an index runs over: from its stated range, or from the axis on which it stands bare.

        A mere condition below a sum (not `whole`) takes some of the axis.
        """
        low, high = self._stated(letter, conditions)
        if high is None or not whole:
            sizes = set(self.sizes(letter, (body, *conditions)))
            if len(sizes) != 1:
                raise FormulaError(
                    f"nothing says what {letter} runs over" if not sizes else f"{letter} runs over {sizes}"
                )
            axis = float(sizes.pop())
            low, high = max(low or 0.0, 0.0), axis if high is None else min(high, axis)
        elif any(high > size for size in self.sizes(letter, conditions)):
            raise FormulaError(f"{letter} runs to {high:g}, beyond the axis that a condition asks")
        return torch.arange(0.0 if low is None else low, high, dtype=torch.float64)

    def _stated(self, letter: str, conditions: Sequence[Node]) -> tuple[float | None, float | None]:
        """The least number and the end of a range that conditions such as `0 \\le i < 4` state."""
        low: float | None = None
        high: float | None = None
        for condition in conditions:
            if condition[0] != "relation":
                continue
            parts, signs = condition[1:3]
            for place, part in enumerate(parts):
                if part != ("name", letter):
                    continue
                for sign, other in ((signs[p], parts[p + 1]) for p in range(place, len(signs))):
                    if sign in {"<", r"\le"} and self._known(other):
                        high = self._end(other, sign == r"\le")
                        break
                for sign, other in ((signs[p], parts[p]) for p in range(place - 1, -1, -1)):
                    if sign in {"<", r"\le"} and self._known(other):
                        found = self.number(other).real
                        low = math.floor(float(found.min()) + SLACK) + (sign == "<") if found.numel() else 0
                        break
        return low, high

    def _end(self, node: Node, included: bool) -> float:
        found = self.number(node).real
        if not found.numel():
            return 0
        top = float(found.max())
        return math.floor(top + SLACK) + 1 if included else math.ceil(top - SLACK)

    def _known(self, node: Node) -> bool:
        return all(name in self.names for name in names_in(node))

    def sizes(self, letter: str, trees: Sequence[Node]) -> Iterator[int]:
        """The sizes of the axes on which an index stands bare."""
        for tree in trees:
            for base, indices in _subscripts(tree):
                for place, index in enumerate(indices):
                    if index == ("name", letter):
                        yield from self._size(base, place)

    def _size(self, base: Node, place: int) -> Iterator[int]:
        found = self.names.get(base[1]) if base[0] == "name" else None
        if isinstance(found, Defined):
            if place < len(found.letters):
                yield from replace(self, names=self.outer).sizes(found.letters[place], (found.body,))
        elif isinstance(found, Bound):
            own = found.tensor.shape[found.depth :]
            if place < len(own):
                yield own[place]
        elif base[0] == "transpose":
            yield from self._size(base[1], 1 - place)


def promoted(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    kind = torch.promote_types(x.dtype, y.dtype)
    return x.to(kind), y.to(kind)


ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": torch.add, r"\odot": torch.mul, "/": torch.div, r"\oslash": torch.div,
    "fraction": torch.div, r"\bmod": torch.remainder,
}  # fmt: skip
COMPARED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "=": torch.eq, r"\ne": torch.ne, "<": torch.lt, ">": torch.gt, r"\le": torch.le, r"\ge": torch.ge,
}  # fmt: skip
NEUTRAL = {"sum": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf}


def _one_by_one(function: Callable[..., Tensor]) -> Callable[[Tensor, tuple[int, ...]], Tensor]:
    def reduced(t: Tensor, axes: tuple[int, ...]) -> Tensor:
        for axis in reversed(axes):
            t = function(t, axis)
        return t

    return reduced


def _extreme(function: Callable[..., Tensor], empty: float) -> Callable[[Tensor, int], Tensor]:
    return lambda t, axis: function(t, axis) if t.shape[axis] else t.sum(axis) + empty


def _ordered(name: str) -> Callable[[Tensor, tuple[int, ...]], Tensor]:
    return lambda t, axes: getattr(torch, name)(t.flatten(axes[0], axes[-1]), axes[0]).values


REDUCED: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    **{name: _ordered(name) for name in ("median", "nanmedian", "mode")},
    "sum": lambda t, axes: t.sum(axes), "prod": _one_by_one(torch.prod),
    "max": _one_by_one(_extreme(torch.amax, -math.inf)), "min": _one_by_one(_extreme(torch.amin, math.inf)),
}  # fmt: skip

# Which method evaluates a kind of tree, and which of them want the parts without the kind.
KINDS = {
    "number": "constant", "name": "named", "at": "at", "call": "call", "negative": "negative", "beside": "beside",
    "transpose": "transpose", "inverse": "inverse",
    "pseudoinverse": "pseudoinverse", "integral": "integral", "^": "power", "norm": "norm", "matrix": "matrix",
    "iverson": "iverson", "relation": "relation", "logic": "logic", "not": "not", "otherwise": "otherwise",
    "cases": "cases", "big": "big", "total": "total", "row": "row", "stored": "stored",
    r"\cdot": "dot", r"\times": "times",
    **dict.fromkeys(ELEMENTWISE, "elementwise"),
}  # fmt: skip
OWN = {kind for kind, method in KINDS.items() if method not in {"elementwise", "dot", "times", "power"}}


def _children(node: Any) -> Iterator[Node]:
    if isinstance(node, (tuple, list)):
        if node and isinstance(node[0], str):
            yield node
        for each in node:
            yield from _children(each)


def names_in(tree: Any) -> Iterator[str]:
    return (node[1] for node in _children(tree) if node[0] == "name" and isinstance(node[1], str))


def new_names(trees: Any, known: Names) -> list[str]:
    """The names in trees that nothing binds yet, in their order."""
    return list(dict.fromkeys(name for name in names_in(trees) if name not in known))


def _subscripts(tree: Any) -> Iterator[tuple[Node, tuple[Node, ...]]]:
    return ((node[1], node[2]) for node in _children(tree) if node[0] == "at")
