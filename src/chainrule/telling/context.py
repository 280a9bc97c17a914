"""What every section needs: the facts, the derivation, the names, and how a tensor is shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor as Data

from chainrule.backprop import Derivation, Share, Step
from chainrule.document import Code, Kind, Role, Span, Tensor, Text, Verdict
from chainrule.findings import Finding
from chainrule.graph import Graph, Place
from chainrule.notation import Notation
from chainrule.numbers import number
from chainrule.rules import Applied, Rule

ELEMENTS = 144  # a tensor of up to 12 x 12 is shown number by number, a larger one by its statistics
JACOBIAN = 400  # a Jacobian of up to this many entries is written out
PUT_IN = 12  # operands of up to this many elements stand as matrices in a formula with the numbers put in


@dataclass(frozen=True)
class Context:
    """One recording, ready to be told."""

    graph: Graph
    derivation: Derivation
    notation: Notation
    findings: tuple[Finding, ...] = ()
    verdicts: Mapping[int, Kind] = field(default_factory=dict)  # node -> what the proof says

    def tensor(self, symbol: str, data: Data | None, role: Role, label: str = "", **labels: Any) -> Tensor:
        """A tensor as a block of the document: its numbers where it is small, else its statistics."""
        if data is None:
            return Tensor(symbol, (), "", role, None, label=label or "not kept")
        shape, dtype = tuple(data.shape), str(data.dtype).removeprefix("torch.")
        data = data.detach() if data.requires_grad else data
        data = data.to_dense() if data.layout is not torch.strided else data
        limit = JACOBIAN if role == "jacobian" else ELEMENTS
        if data.numel() <= limit:
            return Tensor(symbol, shape, dtype, role, entries(data), label=label, **labels)
        return Tensor(symbol, shape, dtype, role, None, self.statistics(data), label=label)

    def statistics(self, data: Data) -> tuple[tuple[str, float], ...]:
        """`statistics`, worked out once for a tensor that is told in several places."""
        known = self._statistics.get(id(data))
        if known is None or known[0] is not data:
            known = self._statistics[id(data)] = (data, statistics(data))
        return known[1]

    @cached_property
    def _statistics(self) -> dict[int, tuple[Data, tuple[tuple[str, float], ...]]]:
        return {}  # the tensor beside its statistics keeps its id from being given to another

    def value(self, index: int, label: str = "") -> Tensor:
        """A recorded value under its symbol."""
        value = self.graph.values[index]
        role: Role = "parameter" if value.kind == "parameter" else "value"
        return self.tensor(self.notation.symbol(index), value.data, role, label)

    def symbols(self, step: Step) -> dict[str, str]:
        """The operands' symbols for a rule's templates: `$self`, `$out`, `$g`, and `$out0`, `$g0`, ... for several."""
        found: dict[str, str] = {}
        lists: dict[str, list[str]] = {}
        for name, item, value in step.arguments:
            if item is None:
                found[name] = group(self.notation.symbol(value))
            else:
                lists.setdefault(name, []).append(group(self.notation.symbol(value)))
        found |= {name: ", ".join(symbols) for name, symbols in lists.items()}
        backward = step.backward or 0
        for slot, value in enumerate(step.outputs):
            found[f"out{slot}"] = group(self.notation.symbol(value))
            found[f"g{slot}"] = group(self.notation.gradient(value, backward))
        if step.outputs:
            found |= {"out": found["out0"], "g": found["g0"]}
        return found

    def results(self, step: Step) -> tuple[int, ...]:
        """The outputs worth telling: not those that an operation keeps for itself, as a norm keeps the mean."""
        return tuple(
            value
            for slot, value in enumerate(step.outputs)
            if not slot or value in self._used or self.graph.values[value].grad is not None
        )

    @cached_property
    def _used(self) -> set[int]:
        return {value for step in self.derivation.steps for _, _, value in step.arguments}

    @cached_property
    def uses(self) -> dict[int, list[Share]]:
        """For each value the shares of its gradient that its uses send back, in the order in which they are told."""
        found: dict[int, list[Share]] = {}
        for step in self.derivation.steps:
            for share in step.shares:
                if share.value is not None:
                    found.setdefault(share.value, []).append(share)
        return found

    @cached_property
    def relative_updates(self) -> dict[int, float]:
        """For each parameter that an optimizer changed: the norm of the change over the norm of what it was before."""
        found = {}
        for update in self.graph.updates:
            for each in update.parameters:
                before = norm_of(each.before)
                if each.value is not None and before:
                    found[each.value] = norm_of(each.after - each.before) / before
        return found

    def expression(self, step: Step) -> tuple[Span, ...]:
        """What the user wrote, and where."""
        place = self.place(step)
        if place is None:
            return ()
        code = (Code(place.expression), "  ") if place.expression else ()
        return (*code, f"({place})")

    def place(self, step: Step) -> Place | None:
        """Where in the user's code a step began; for a user's own `autograd.Function` where it was applied."""
        if step.nodes and self.graph.nodes[step.nodes[0]].function_class is not None:
            return self.graph.nodes[step.nodes[0]].place
        if step.call is not None:
            return self.graph.calls[step.call].place
        return self.graph.nodes[step.nodes[0]].place if step.nodes else None

    def operation_name(self, step: Step) -> str:
        """What the step runs, in a word: the torch function, or the operation."""
        if step.call is not None and len(self.graph.calls[step.call].operations) == len(step.operations):
            return self.graph.calls[step.call].name
        return self.graph.operations[step.operations[0]].name.removeprefix("aten.").split(".")[0]

    def agreement(self, ours: Data, theirs: Data, text: Text) -> Verdict:
        """Hold our number against PyTorch's."""
        return agreement(ours, theirs, text)


def group(symbol: str) -> str:
    """Braces around a symbol that has scripts of its own, so that it can take another."""
    return f"{{{symbol}}}" if set(symbol) & set("^_\\") else symbol


def entries(data: Data) -> tuple[Any, ...]:
    """The numbers in row-major order."""
    return tuple(data.reshape(-1).tolist())


def statistics(data: Data) -> tuple[tuple[str, float], ...]:
    """What is said of a tensor that is too large to be shown."""
    data = data.to_dense() if data.layout is not torch.strided else data
    if data.is_complex():
        data = data.abs()
    # A finite sum has finite terms, and takes one pass without memory of its own.
    data = data if data.is_floating_point() else data.double()
    finite = data if math.isfinite(data.sum(dtype=torch.float64)) else data[data.isfinite()]
    if not finite.numel():
        return (("elements", data.numel()), ("not finite", data.numel()))
    low, high = finite.aminmax()
    mean = finite.mean(dtype=torch.float64).item()
    norm = norm_of(finite)
    return (
        ("elements", data.numel()),
        ("norm", norm),
        ("mean", mean),
        ("std", math.sqrt(max(norm**2 / finite.numel() - mean**2, 0.0))),
        ("min", low.item()),
        ("max", high.item()),
        ("zeros", 1 - finite.count_nonzero().item() / data.numel() if finite is data else _zeros(data)),
        ("not finite", data.numel() - finite.numel()),
    )


def _zeros(data: Data) -> float:
    return (data == 0).sum().item() / data.numel()


def norm_of(data: Data) -> float:
    """The Euclidean norm, of a sparse or complex tensor too."""
    data = data.to_dense() if data.layout is not torch.strided else data
    data = data.abs() if data.is_complex() else data if data.is_floating_point() else data.double()
    return float(torch.linalg.vector_norm(data, dtype=torch.float64))


def indices(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every index of a shape in row-major order."""
    return product(*(range(size) for size in shape))


def element(name: str, index: Sequence[int]) -> str:
    """One element of something, in a line of text: `Z1[0,1]`."""
    return f"{name}[{','.join(map(str, index))}]" if index else name


def shape_text(shape: Sequence[int]) -> str:
    """A shape as a reader writes it: `2 x 3`, `3`, `a single number`."""
    return " x ".join(map(str, shape)) if shape else "a single number"


def matrix(data: Data) -> str | None:
    """A small tensor as a matrix in LaTeX, to be put into a formula; None where it is too large."""
    if data.numel() > PUT_IN or data.dim() > 2 or not data.numel() or data.is_complex():
        return None
    if data.dim() == 0:
        value = number(data.item())
        return rf"({value})" if value.startswith("-") else value
    rows = data.reshape(-1, data.shape[-1]).tolist()
    body = r" \\ ".join(" & ".join(number(each) for each in row) for row in rows)
    return rf"\begin{{pmatrix}} {body} \end{{pmatrix}}"


def put_in(rule: Rule, template: Any, op: Applied, more: Mapping[str, Data | None]) -> str | None:
    """A rule's template with the numbers put in; None where an operand is too large to stand in a line."""
    numbers = {}
    for name, data in {**op.arguments, **more}.items():
        if isinstance(data, Data):
            written = matrix(data)
            if written is None:
                return None
            numbers[name] = written
    return rule.latex(template, op, numbers)


def tolerance(data: Data) -> float:
    """What rounding may do to a gradient: some hundred units in the last place of its largest element."""
    if not (data.is_floating_point() or data.is_complex()) or not data.numel():
        return 0.0
    return 256 * torch.finfo(data.dtype).eps * max(data.abs().max().item(), 1e-30)


def agreement(ours: Data, theirs: Data, text: Text) -> Verdict:
    """Hold our number against PyTorch's: `agrees` where they differ by no more than rounding."""
    theirs = theirs.to_dense() if theirs.layout is not torch.strided else theirs
    ours = (ours.to_dense() if ours.layout is not torch.strided else ours).to(theirs.dtype)
    bound = tolerance(theirs)
    same = torch.isclose(ours, theirs, rtol=0, atol=bound, equal_nan=True)
    apart = (ours - theirs).abs()
    difference = apart.max().item() if apart.numel() else 0.0
    if math.isnan(difference):  # both NaN in one place, which is no difference, or in one of them only
        apart = apart[~(ours.isnan() & theirs.isnan())]
        difference = apart.max().item() if apart.numel() else 0.0
    return Verdict("agrees" if bool(same.all()) else "disagrees", text, difference, bound)
