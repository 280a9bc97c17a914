r"""Numbers from printed LaTeX: an evaluator for the formulas of the rules, which shares no code with them.

A text is parsed into clauses, separated by commas, semicolons, `\quad`, or words such as `\text{for}`:

- the first clause is the claim, `y_{ik} = \sum_j x_{ij} w_{jk}` or a bare expression; a later clause that begins with
  an operand, or with a derivative, is a claim too;
- `\hat{x}_{i} = ...` and `\lambda(t) = ...` define names, before or after their use;
- `0 \le i < 4` states the range of an index, or limits the claim;
- `x \text{ is 0 outside}` gives x the value 0 where an index names no element. Without it such an element is NaN.

The conventions are those of docs/glossary.md, "Formulas". In short: indices start at 0; an index that is bare in a
subscript of an operand runs over that axis; a letter that neither the left side, nor a sum, nor a range binds is an
error. Fewer subscripts than axes name a part, as in `x[i]`. Juxtaposition scales, or is the matrix product; `\odot`
is elementwise; `\cdot` of two vectors is their inner product.

To use it: `Statement(text, {"x": tensor, "y": tensor})`, then `.wrong_equation("y")` ("" if all is well),
`.jacobian("y", "x")`, or `.value()`. Names are those that print (`\bar{y}`, `\mathrm{other}`, `\beta_{1}`).
`elementwise=shape` reads every operand, broadcast to `shape`, as one element, so that juxtaposition is a product of
numbers and a bare `\sum` adds up all elements. `classes=axis` says further which axis counts classes: an operand
without it is one of samples, `\sum_c` goes over the classes and `\sum_n` over the samples. `along=dim` reads every
operand as its rows along one axis: the statement holds for each row.

How a value is represented: a tensor whose first axes are the indices in scope (size 1 where it does not depend on one)
and whose last axes are its own. So an index is an axis, a sum is a reduction over one, and nothing is looped over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from latex_functions import SLACK
from latex_tree import (
    ALONG,
    CLOSE,
    OPEN,
    RELATIONS,
    FormulaError,
    Node,
    Parser,
    clauses,
    parted,
    tokens,
    word,
)
from latex_values import Bound, Defined, Scope, Value, names_in, new_names, promoted
from torch import Tensor


class Statement:
    """A formula with numbers for its operands: see the module's docstring."""

    def __init__(
        self,
        text: str,
        symbols: Mapping[str, Tensor],
        *,
        elementwise: Sequence[int] | None = None,
        classes: int | None = None,
        along: int | None = None,
        subject: str = "",
    ) -> None:
        found = ALONG.search(text)
        if found:
            text, along = text.replace(found[0], ""), int(found[1])
        self.text, self.subject = text, _spelled(subject)
        self.operands = {_spelled(name): _wide(tensor) for name, tensor in symbols.items()}
        self.masks = {_spelled(name): _mask(tensor) for name, tensor in symbols.items()}
        self.names: dict[str, Bound | Defined] = {name: Bound(tensor) for name, tensor in self.operands.items()}
        self.depth, self.rank, self.single = 0, 0, False
        self.dim: int | None = None  # the axis that the statement goes along, row by row
        self.shape, self.classes = tuple(elementwise or ()), classes
        if elementwise is not None:
            self._read_elements()
        if along is not None:
            self._read_rows(along)
        self.claims: list[Node] = []
        self.limits: list[Node] = []
        self._sort(list(clauses(tokens(text))))
        self.steps = frozenset(name for name in self.names if name in self._reached(name))

    def _reached(self, name: str) -> set[str]:
        """The names that a definition refers to, directly or through others."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            each = self.names.get(waiting.pop())
            if isinstance(each, Defined):
                fresh = {other for other in names_in(each.body) if other not in each.letters} - found
                found |= fresh
                waiting += fresh
        return found

    def _read_elements(self) -> None:
        self.depth = len(self.shape)
        for name, tensor in self.operands.items():
            shape = self._aligned(tensor.shape)
            if torch.broadcast_shapes(shape, self.shape) == torch.Size(self.shape):
                self.names[name] = Bound(tensor.reshape(shape), self.depth)

    def _aligned(self, own: Sequence[int]) -> tuple[int, ...]:
        """The shape of an operand with an axis for each one of the elements."""
        shape, axis = tuple(own), self.classes
        if axis is not None and shape == self.shape[:axis] + self.shape[axis + 1 :]:
            return (*shape[:axis], 1, *shape[axis:])
        if axis is not None and shape == self.shape[axis : axis + 1]:
            return tuple(size if each == axis else 1 for each, size in enumerate(self.shape))
        return (1,) * (len(self.shape) - len(shape)) + shape

    def _read_rows(self, dim: int) -> None:
        self.rank = max(tensor.dim() for tensor in self.operands.values())
        if not self.rank:  # a single number is a row of one
            self.operands = {name: tensor.reshape(1) for name, tensor in self.operands.items()}
            self.rank, self.single = 1, True
        self.dim, self.depth = dim % self.rank, self.rank - 1
        for name, tensor in self.operands.items():
            if tensor.dim() >= self.depth:
                self.names[name] = Bound(self._moved(tensor), self.depth)

    def _sort(self, parts: list[list[str]]) -> None:
        """Which clauses define names, which limit, and which claim."""
        values, functions, kinds = {*self.operands, self.subject}, set[str](), []
        for number, part in enumerate(parts):
            kind, name = self._kind(part, number)
            kinds.append(kind)
            if kind == "function":
                functions.add(name)
            elif kind == "definition":
                values.add(name)
        for part, kind in zip(parts, kinds, strict=True):
            if kind == "outside":
                name = Parser(part[:-1], values, functions).name()
                bound = self.names[name]
                assert isinstance(bound, Bound)
                self.names[name] = replace(bound, outside=0.0)
            elif kind in {"definition", "function"}:
                self._define(part, values, functions)
            else:
                tree = Parser(part, values, functions).whole()
                (self.limits if kind == "limit" else self.claims).append(tree)
        if not self.claims:
            raise FormulaError(f"nothing is claimed: {self.text}")

    def _kind(self, part: list[str], number: int) -> tuple[str, str]:
        if part[-1].startswith(r"\text") and word(part[-1]) == "is 0 outside":
            return "outside", ""
        if number and "=" in part:
            parser = Parser(part, {*self.operands, self.subject}, set())
            name = parser.name()
            if name and name not in {*self.operands, self.subject}:
                return ("function" if parser.peek() == "(" else "definition"), self._whole_name(parser, name)
        signs = [each for each in _outside_brackets(part) if each in RELATIONS]
        return ("limit" if number and signs and "=" not in signs else "claim"), ""

    def _whole_name(self, parser: Parser, name: str) -> str:
        """A defined name: with a subscript that is no list of letters, the subscript belongs to it."""
        if parser.peek() == "_":
            parser.take()
            found = parser.group()
            if not all(re.fullmatch("[a-z],?", each) or each == "," for each in found):
                return f"{name}_{{{''.join(found)}}}"
        return name

    def _define(self, part: list[str], values: set[str], functions: set[str]) -> None:
        parser = Parser(part, values, functions)
        name = parser.name()
        letters: tuple[str, ...] = ()
        if parser.peek() == "(":
            letters = tuple("".join(each) for each in parted(parser.between("(", ")")))
        elif parser.peek() == "_":
            parser.take()
            letters = tuple(each for each in parser.group() if each != ",")
        parser.take("=")
        if name in self.names:
            raise FormulaError(f"{name} is defined twice, or is an operand")
        body = Parser(parser.tokens[parser.place :], values | set(letters), functions).whole()
        self.names[name] = Defined(letters, body)

    def _scope(self, heads: Sequence[Node], *others: Node) -> tuple[Scope, Tensor | None]:
        """The scope in which a claim's left side has bound its indices, and where its limits hold."""
        ranges = {}
        for limit in self.limits:
            for name in new_names(limit, self.names):
                if limit[0] == "relation" and ("name", name) in limit[1]:
                    ranges[name] = limit
        scope = Scope(self.names, self.names, self.depth, ranges, self.steps, {}, self.masks, self.shape, self.classes)
        letters = new_names(heads, self.names)
        for letter in letters:
            run = scope.run(letter, self.limits, (heads, others))
            if any(run.numel() and run.max() >= size for size in scope.sizes(letter, heads)):
                raise FormulaError(f"{letter} runs to {run.max():g}, beyond the axis that the left side names")
            scope = scope.with_index(letter, run)
        holds: Tensor | None = None
        for limit in self.limits:
            if not new_names(limit, scope.names):
                here = scope.truth(limit).tensor
                holds = here if holds is None else holds & here
        return scope, holds

    def _of(self, head: Node, subject: str) -> bool:
        """Whether a left side is an operand or its elements."""
        base = head[1] if head[0] == "at" else head
        return bool(base == ("name", subject))

    def wrong_equation(self, subject: str, tolerance: float = 1e-5, finite: bool = False) -> str:
        """Why the claims about an operand (`y = ...`) do not hold, or which elements they leave out; "" if neither.

        With `finite` elements that are no number on the right are left out.
        """
        subject = _spelled(subject)
        tensor = self.operands[subject]
        said = torch.zeros(tensor.shape, dtype=torch.bool)
        if not any(self._of(claim[1][0], subject) for claim in self.claims if claim[0] == "relation"):
            return self._unsatisfied(subject, tolerance)
        for claim in self.claims:
            if claim[0] != "relation" or set(claim[2]) != {"="}:
                raise FormulaError(f"no equation: {self.text}")
            head, *others = claim[1]
            if not self._of(head, subject):
                continue
            scope, holds = self._scope([head], *others)
            mine = scope(head)
            for other in others:
                right = scope(other)
                here = (
                    holds
                    if not finite
                    else right.tensor.isfinite()
                    if holds is None
                    else holds & right.tensor.isfinite()
                )
                difference = _difference(scope, mine, right, here, tolerance)
                if difference:
                    return difference
            said |= self._elements(scope, head, holds, tensor.shape)
        return "" if bool(said.all()) else f"it says nothing of {int((~said).sum())} of {said.numel()} elements"

    def _unsatisfied(self, subject: str, tolerance: float) -> str:
        """Why the output does not satisfy the equations that define it, `A = L L^T`."""
        found = f"it says nothing of {subject}"
        for claim in self.claims:
            if subject not in names_in(claim):
                continue
            found = ""
            if claim[0] != "relation" or set(claim[2]) != {"="}:
                raise FormulaError(f"no equation: {self.text}")
            heads = [each for each in claim[1] if each[0] == "at"][:1]
            scope, holds = self._scope(heads, *claim[1])
            first, *others = (scope(each) for each in claim[1])
            for other in others:
                if found := _difference(scope, first, other, holds, tolerance):
                    return found
        return found

    def _elements(self, scope: Scope, head: Node, holds: Tensor | None, shape: torch.Size) -> Tensor:
        """Which elements of an operand a left side names."""
        said = torch.zeros(shape, dtype=torch.bool)
        if head[0] != "at":
            return ~said
        moved = self._moved(said)
        lead = [
            torch.arange(size).reshape((-1,) + (1,) * (scope.depth - axis - 1))
            for axis, size in enumerate(moved.shape[: self.depth])
        ]
        places = [*lead, *(scope.number(each) for each in head[2])]
        *whole, keep = torch.broadcast_tensors(*places, torch.ones(()) if holds is None else holds)
        if said.numel():
            moved[tuple(each[keep != 0].long() for each in whole)] = True
        return said

    def value(self) -> Tensor:
        """The value of a bare expression."""
        scope, _ = self._scope([])
        return scope(self.claims[0]).tensor

    def _sides(self, claim: Node) -> tuple[Node | None, Node]:
        if claim[0] != "relation":
            return None, claim
        if claim[2] != ("=",):
            raise FormulaError(f"one equality is expected: {self.text}")
        return claim[1]

    def gradient(self, shape: Sequence[int]) -> Tensor:
        r"""The value of a product for an argument of `shape`: `\bar{w}_{ij} = \sum_n ...`, or a bare expression.

        A left side names the gradient (`subject`), whose axes are the argument's. Elements that none names are 0.
        """
        name = self.subject
        result = torch.zeros(tuple(shape), dtype=torch.float64)
        known, claimed = self.names, False
        for claim in self.claims:
            head, tree = self._sides(claim)
            if head is not None and not self._of(head, name):
                continue
            claimed = True
            if head is None or head[0] != "at":
                scope, _ = self._scope([])
                value = scope(tree).tensor
                if self.single:
                    return value.reshape(())
                if self.classes is not None and value.shape == self._aligned(shape):
                    return value.reshape(tuple(shape))
                return value.movedim(-1, self.dim) if self.dim is not None and scope.depth < value.dim() else value
            axes = self._moved(result.reshape(1) if self.single else result)
            self.names = {**known, name: Bound(axes, self.depth)}
            scope, holds = self._scope([head], tree)
            self.names = known
            written = self._scattered(scope, [(head[2], axes.shape)], scope(tree), holds, axes)
            result = written if self.dim is None else written.movedim(-1, self.dim)
        if not claimed:
            raise FormulaError(f"nothing is said of {name}: {self.text}")
        return result.reshape(()) if self.single else result

    def _moved(self, tensor: Tensor) -> Tensor:
        """A tensor as the statement sees it: the axis that it goes along last, if it has that one."""
        return tensor.movedim(self.dim, -1) if self.dim is not None and tensor.dim() > self.depth else tensor

    def jacobian(self, out: str, into: str, conjugate: bool = False) -> Tensor:
        r"""d out / d into, as [*out, *into]. Derivatives that no left side names are 0.

        A bare expression is that of an elementwise map: out[i] depends on the element that broadcasting puts at i.
        Where `out` is a single number, it is the gradient by all elements.
        """
        out, into = _spelled(out), _spelled(into)
        y, x = (self._moved(self.operands[each]) for each in (out, into))
        result = torch.zeros((*y.shape, *x.shape), dtype=torch.float64)
        written = torch.zeros(result.shape, dtype=torch.bool)
        for claim in self.claims:
            head, tree = self._sides(claim)
            if head is not None and head[0] != "derivative":
                raise FormulaError(f"the left side is no derivative: {self.text}")
            of, by, barred = (("name", out), ("name", into), False) if head is None else head[1:]
            if not self._of(of, out) or not self._of(by, into) or barred != conjugate:
                continue
            if of[0] != "at" and by[0] != "at" and self.dim is None:
                return self._diagonal(tree, y, x)
            scope, holds = self._scope([of, by], tree)
            sides = [(each[2] if each[0] == "at" else (), t.shape) for each, t in ((of, y), (by, x))]
            result = self._scattered(scope, sides, scope(tree), holds, result, written)
        if self.single:
            return result.reshape(())
        if self.dim is None:
            return result
        result = result.movedim(-1, self.dim - self.rank) if x.dim() > self.depth else result
        return result.movedim(y.dim() - 1, self.dim) if y.dim() > self.depth else result

    def _diagonal(self, tree: Node, y: Tensor, x: Tensor) -> Tensor:
        scope, _ = self._scope([])
        value = scope(tree).tensor
        if y.dim() == 0 and x.dim():
            return value.expand(x.shape).clone()
        shapes = [self._aligned(each.shape) if self.classes is not None else each.shape for each in (y, x)]
        try:
            whole = torch.broadcast_shapes(*shapes)
        except RuntimeError:
            whole = torch.Size()
        if whole != (shapes[0] if self.classes is None else torch.Size(self.shape)):
            raise FormulaError(
                f"{tuple(x.shape)} does not broadcast to {tuple(y.shape)}: a derivative of which elements?"
            )
        rows, columns = (
            torch.arange(each.numel()).reshape(shape).expand(whole).reshape(-1)
            for each, shape in zip((y, x), shapes, strict=True)
        )
        full = value.new_zeros(y.numel(), x.numel())
        full[rows, columns] = value.expand(whole).reshape(-1)
        return full.reshape((*y.shape, *x.shape))

    def _scattered(
        self,
        scope: Scope,
        sides: Sequence[tuple[tuple[Node, ...], torch.Size]],
        value: Value,
        holds: Tensor | None,
        result: Tensor,
        written: Tensor | None = None,
    ) -> Tensor:
        """Write values where the indices of left sides point; what is named twice must have one value."""
        places, sizes, parts = [], [], scope.rank(value)
        if parts and len(sides) > 1:
            raise FormulaError(f"an element is expected on the right: {self.text}")
        if parts:  # a part of the argument: its own axes are written whole
            indices, shape = sides[0]
            whole = shape[len(shape) - parts :]
            value = Value(value.tensor.expand((*value.tensor.shape[: scope.depth], *whole)))
            sides = [(indices, shape[: len(shape) - parts])]
        for indices, shape in sides:
            for axis in range(self.depth):
                places.append(torch.arange(shape[axis]).reshape([-1 if axis == a else 1 for a in range(scope.depth)]))
                sizes.append(shape[axis])
            shape = shape[self.depth :]
            if len(indices) != len(shape):
                raise FormulaError(f"{len(indices)} indices on the left of a tensor of {len(shape)} axes: {self.text}")
            places += [scope.number(each) for each in indices]
            sizes += list(shape)
        places = [each.reshape(each.shape + (1,) * parts) for each in places]
        for axis in range(parts):
            sizes.append(value.tensor.shape[scope.depth + axis])
            places.append(torch.arange(sizes[-1]).reshape([-1 if axis == other else 1 for other in range(parts)]))
        limits = [] if holds is None else [holds.double().reshape(holds.shape + (1,) * parts)]
        *places, numbers = torch.broadcast_tensors(*places, *limits, value.tensor)
        keep = torch.ones(numbers.shape, dtype=torch.bool)
        if limits:
            keep &= places.pop() != 0
        flat = torch.zeros(numbers.shape, dtype=torch.long)
        for place, size in zip(places, sizes, strict=True):
            near = place.double().round()
            keep &= ((place - near).abs() < SLACK) & (near >= 0) & (near < size)
            flat = flat * size + near.long()
        flat, numbers = flat[keep], numbers[keep]
        result = result.to(torch.promote_types(result.dtype, numbers.dtype))
        page = result.reshape(-1).clone()
        fresh = page.clone()
        page[flat] = numbers
        if not torch.allclose(page[flat], numbers, equal_nan=True):
            raise FormulaError(f"one element has two values: {self.text}")
        if written is not None:
            before = written.reshape(-1)
            if bool(before[flat].any()) and not torch.allclose(fresh[flat][before[flat]], numbers[before[flat]]):
                raise FormulaError(f"two claims give one element two values: {self.text}")
            before[flat] = True
        return page.reshape(result.shape)


def _outside_brackets(part: Sequence[str]) -> Iterator[str]:
    depth = 0
    for token in part:
        depth += (token in OPEN or token.startswith(r"\begin")) - (token in CLOSE or token.startswith(r"\end"))
        if not depth:
            yield token


def _spelled(name: str) -> str:
    """A name as the parser writes it: `\beta_1` is `\beta_{1}`, and spaces are left out."""
    found = tokens(name)
    text = "".join(found)
    text = text.removeprefix("{").removesuffix("}") if text.startswith("{") else text
    return re.sub(r"(?<!\\)_(\\[a-zA-Z]+|[a-zA-Z0-9])$", r"_{\1}", text)


def _wide(tensor: Tensor) -> Tensor:
    full = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    return full.to(torch.complex128 if full.is_complex() else torch.float64)


def _mask(tensor: Tensor) -> Tensor:
    """1 where a tensor stores an element, 0 elsewhere."""
    if tensor.layout == torch.strided:
        return torch.ones(tensor.shape, dtype=torch.float64)
    coo = (tensor.detach() if tensor.layout == torch.sparse_coo else tensor.detach().to_sparse_coo()).coalesce()
    ones = torch.ones_like(coo.values(), dtype=torch.float64)
    return torch.sparse_coo_tensor(coo.indices(), ones, coo.shape).to_dense()


def _difference(scope: Scope, left: Value, right: Value, holds: Tensor | None, tolerance: float) -> str:
    """How two values differ by more than rounding; "" where they do not."""
    x, y = scope.together(left, right)
    own = torch.broadcast_shapes(x.shape[scope.depth :], y.shape[scope.depth :])
    if own != x.shape[scope.depth :]:
        return f"the right side has the shape {tuple(y.shape[scope.depth :])}, the left {tuple(x.shape[scope.depth :])}"
    x, y = torch.broadcast_tensors(*promoted(x, y))
    if holds is not None:
        mask = holds.reshape(holds.shape + (1,) * len(own)).expand(x.shape)
        x, y = x[mask], y[mask]
    return differ(x, y, tolerance)


def differ(x: Tensor, y: Tensor, tolerance: float = 1e-5) -> str:
    """How the second of two tensors of one shape differs from the first by more than rounding; "" where it does not."""
    x, y = promoted(x.detach(), y.detach())
    if x.shape != y.shape:
        return f"shape {tuple(y.shape)}, not {tuple(x.shape)}"
    finite = x.abs()[x.abs().isfinite()]
    scale = float(finite.max()) if finite.numel() else 1.0
    if torch.allclose(y, x, tolerance, tolerance * min(scale, 1.0) + 1e-12, equal_nan=True):
        return ""
    place = int(((y - x).abs() / (x.abs() + 1e-12)).nan_to_num(math.inf).argmax())
    return f"it gives {y.flatten()[place].item():.6g}, not {x.flatten()[place].item():.6g} (element {place})"
