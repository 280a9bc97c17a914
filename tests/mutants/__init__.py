"""Wrong backward functions, made of right ones: each must be flagged at its own node, and its mistake named."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

import chainrule
from tests.mutants.operations import OPERATIONS, Gradient, Operation, Term

MOVED = 1e-3  # how much a wrong gradient must differ from the right one, relative to it, to be a mutant at all

NAMED = {
    "sign": {"sign"},
    "factor 1.01": {"factor", "extra factor", "wrong number"},
    "transposed": {"transpose"},
    "dropped term": {"missing term"},
    "dropped reduction": {"reduction"},
    "mean for sum": {"1/N"},
    "off-by-one index": {"shifted"},
    "stale operand": {"wrong operand", "wrong expression"},
}
"""What each kind of mutation must be called."""


@dataclass(frozen=True)
class Mutant:
    """One operation with one mistake in the gradient of one input."""

    operation: Operation
    argument: str
    kind: str
    detail: str
    change: Callable[[Tensor, SimpleNamespace], Tensor]

    @property
    def name(self) -> str:
        """Unique and readable."""
        return f"{self.operation.name}, {self.argument}: {self.kind}{self.detail}"

    def function(self) -> type[Function]:
        """The `autograd.Function` with the wrong backward."""
        changes = {name: _right(gradient) for name, gradient in self.operation.gradients.items()}
        return make(self.operation, {**changes, self.argument: self.change})


@dataclass(frozen=True)
class Outcome:
    """What the proof said of one mutant."""

    mutant: Mutant
    flagged: bool
    elsewhere: tuple[str, ...]
    called: str
    text: str

    @property
    def named(self) -> bool:
        """Whether the kind of mistake was named rightly."""
        return self.called in NAMED[self.mutant.kind]


def make(operation: Operation, gradients: dict[str, Callable[[Tensor, SimpleNamespace], Tensor]]) -> type[Function]:
    """An `autograd.Function` of an operation with these gradients."""
    names = list(operation.inputs)

    def forward(ctx, *inputs):
        out = operation.forward(*inputs)
        ctx.save_for_backward(*inputs, out)
        return out

    def backward(ctx, g):
        saved = SimpleNamespace(**dict(zip([*names, "out"], ctx.saved_tensors, strict=True)))
        return tuple(gradients[name](g, saved) for name in names)

    body = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Mutant", (Function,), body)


def _right(gradient: Gradient, reduce: str = "sum") -> Callable[[Tensor, SimpleNamespace], Tensor]:
    def work(g: Tensor, saved: SimpleNamespace) -> Tensor:
        total = gradient.terms[0](g, saved)
        for term in gradient.terms[1:]:
            total = total + term(g, saved)
        if not gradient.axes:
            return total
        if reduce == "first":
            for axis in sorted(gradient.axes, reverse=True):
                total = total.narrow(axis, 0, 1) if gradient.keep else total.select(axis, 0)
            return total
        return (total.mean if reduce == "mean" else total.sum)(gradient.axes, keepdim=gradient.keep)

    return work


def right(operation: Operation) -> type[Function]:
    """The operation with its right backward."""
    return make(operation, {name: _right(gradient) for name, gradient in operation.gradients.items()})


def mutants() -> Iterator[Mutant]:
    """Every mutant whose gradient differs from the right one on the inputs that it is tried on."""
    for operation in OPERATIONS:
        for argument, gradient in operation.gradients.items():
            for kind, detail, change in _mutations(operation, gradient):
                mutant = Mutant(operation, argument, kind, detail, change)
                if _differs(mutant):
                    yield mutant


def _mutations(operation: Operation, gradient: Gradient) -> Iterator[tuple[str, str, Callable]]:
    right = _right(gradient)
    yield "sign", "", lambda g, s: -right(g, s)
    yield "factor 1.01", "", lambda g, s: 1.01 * right(g, s)
    yield "transposed", "", lambda g, s: _transposed(right(g, s))
    for place in range(len(gradient.terms)) if len(gradient.terms) > 1 else ():
        terms = gradient.terms[:place] + gradient.terms[place + 1 :]
        yield "dropped term", f" {place}", _right(replace(gradient, terms=terms))
    if gradient.axes:
        yield "dropped reduction", "", _right(gradient, "first")
        yield "mean for sum", "", _right(gradient, "mean")
    yield "off-by-one index", "", lambda g, s: _rolled(right(g, s))
    for name in [*operation.inputs, "out"]:
        yield "stale operand", f" {name}", _stale(right, name)
        for other in [other for other in operation.inputs if other != name][:1]:
            yield "stale operand", f" {name} is {other}", _taken_for(right, name, other)


def _transposed(gradient: Tensor) -> Tensor:
    return gradient.transpose(-1, -2) if gradient.dim() > 1 else gradient


def _rolled(gradient: Tensor) -> Tensor:
    return gradient.roll(1, -1) if gradient.dim() else gradient


def _stale(right: Term, name: str) -> Term:
    """The saved operand is what it was before the last update."""
    return lambda g, s: right(g, SimpleNamespace(**{**vars(s), name: 0.8 * getattr(s, name) + 0.1}))


def _taken_for(right: Term, name: str, other: str) -> Term:
    """Another operand stands where this one should."""

    def work(g: Tensor, s: SimpleNamespace) -> Tensor:
        if getattr(s, other).shape != getattr(s, name).shape:
            return right(g, s)
        return right(g, SimpleNamespace(**{**vars(s), name: getattr(s, other)}))

    return work


def inputs(operation: Operation) -> list[Tensor]:
    """The same numbers each time."""
    generator = torch.Generator().manual_seed(zlib.crc32(operation.name.encode()))
    made = []
    for shape in operation.inputs.values():
        x = torch.randn(shape, dtype=torch.float64, generator=generator)
        made.append(x.abs() + 0.5 if operation.positive else x)
    return made


def _differs(mutant: Mutant) -> bool:
    given = dict(zip(mutant.operation.inputs, inputs(mutant.operation), strict=True))
    out = mutant.operation.forward(*given.values())
    saved = SimpleNamespace(**given, out=out)
    g = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(3))
    good, bad = _right(mutant.operation.gradients[mutant.argument])(g, saved), mutant.change(g, saved)
    return good.shape == bad.shape and bool((good - bad).norm() > MOVED * good.norm())


def step(function: type[Function], operation: Operation) -> Any:
    """A training step with the function in the middle, proved."""
    leaves = [x.requires_grad_() for x in inputs(operation)]
    with chainrule.record() as recording:
        before = [1.1 * leaf for leaf in leaves]
        out = function.apply(*before)
        (out.tanh() * torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    return recording.verify()


def tried(mutant: Mutant) -> Outcome:
    """Prove a step with the mutant in it."""
    verification = step(mutant.function(), mutant.operation)
    own = [row for row in verification.failures if row.node.name == "MutantBackward"]
    elsewhere = tuple(row.node.name for row in verification.failures if row.node.name != "MutantBackward")
    repairs = [repair for row in own for repair in row.repairs]
    first = repairs[0] if repairs else None
    return Outcome(mutant, bool(own), elsewhere, first.kind if first else "", first.text if first else "")


def report(outcomes: list[Outcome]) -> str:
    """How many there were, were flagged, and were named rightly, by kind."""
    operations = {outcome.mutant.operation.name for outcome in outcomes}
    flagged, named = sum(o.flagged for o in outcomes), sum(o.named for o in outcomes)
    elsewhere = sum(bool(o.elsewhere) for o in outcomes)
    lines = [
        f"{len(outcomes)} mutants of {len(operations)} operations: {flagged} flagged at their own node, {elsewhere} "
        f"alarms elsewhere, {named} named rightly ({named / max(len(outcomes), 1):.1%})"
    ]
    for kind in NAMED:
        mine = [outcome for outcome in outcomes if outcome.mutant.kind == kind]
        other = Counter(o.called or "not flagged" for o in mine if not o.named)
        told = ", ".join(f"{count} {called}" for called, count in other.most_common())
        lines.append(f"  {kind:18} {len(mine):4}   named rightly {sum(o.named for o in mine):4}   {told}".rstrip())
    return "\n".join(lines)
