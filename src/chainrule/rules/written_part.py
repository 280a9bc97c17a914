"""The rule of a write to a part of a tensor (`y[0] += x`, autograd's `CopySlices`), made from that of the operation.

The part P becomes what the operation gives, and the rest of the tensor stays. So a gradient passes the rest unchanged,
and goes through P as the operation's own rule says.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from chainrule.graph.reexecution import WriteThroughView
from chainrule.rules import Applied, Convention, Factor, Index, Latex, Rule, Wrt, derivative, for_operation, latex_of

BASE = "base"
REST = "the part that is written to depends on its own elements, and each other element is a copy of itself"
ELSEWHERE = "what is written changes elements of its part alone"

AConvention = TypeVar("AConvention", bound=Convention)


def rule_of_write(written: WriteThroughView, op: Applied) -> Rule | None:
    """The rule of an operation that writes to a part, as a function of the whole; None where its own has no rule."""
    write = _Write(written)
    inner = None if written.real or op.base.is_complex() != op.out.is_complex() else for_operation(write.inner(op))
    if inner is None or inner.outputs > 1:
        return None
    own = written.argument
    wrt = {name: write.into_part(name, each) for name, each in inner.wrt.items() if name != own}
    equation = write.seen(inner.equation)
    return Rule(
        name=f"{inner.name} of a part",
        nodes=("CopySlices",),
        equation=lambda op: equation(op) + r", \quad {$out}_{i} = {$base}_{i} \text{ for } i \notin P",
        where=lambda op: r"P \text{ are the places in } $base \text{ that are written to}",
        wrt={BASE: write.of_whole(inner.wrt.get(own)), **wrt},
        source=f"{inner.source}; the rest of the tensor stays",
        samples=tuple,
        constants={name: each for name, each in inner.constants.items() if name != own},
        kink=None if inner.kink is None else write.convention(inner.kink),
        conventions=tuple(map(write.convention, inner.conventions)),
        topic=inner.topic,
        ours=inner.ours,
    )


class _Write:
    def __init__(self, written: WriteThroughView) -> None:
        self.written = written

    def part(self, whole: Tensor) -> Tensor:
        """A copy of the part of a tensor that has the shape of the base."""
        return self._in_memory(whole)[1].clone()

    def replaced(self, whole: Tensor, part: Tensor) -> Tensor:
        """A tensor of the base's shape with another part."""
        after, view = self._in_memory(whole)
        view.copy_(part)
        return after

    def _in_memory(self, whole: Tensor) -> tuple[Tensor, Tensor]:
        copy = torch.empty_strided(*self.written.layout, dtype=whole.dtype, device=whole.device).copy_(whole)
        return copy, copy.as_strided(self.written.size, self.written.stride, self.written.offset)

    def inner(self, op: Applied) -> Applied:
        """The operation as it ran on the part."""
        arguments = {name: each for name, each in op.arguments.items() if name != BASE}
        return Applied(arguments, (self.part(op.out),), op.name)

    @cached_property
    def _places(self) -> Tensor:
        """For each element of the whole its place in the part, counted in row-major order; -1 outside."""
        count = torch.Size(self.written.size).numel()
        return self.replaced(torch.full(self.written.layout[0], -1), torch.arange(count).reshape(self.written.size))

    def inside(self, index: Index) -> Index | None:
        """Where in the part an element of the whole is."""
        place = self._places[index]
        return None if place < 0 else tuple(map(int, torch.unravel_index(place, self.written.size)))

    def seen(self, latex: Latex) -> Callable[[Any], str]:
        """A template of the operation's, in which its result and what arrives there are parts."""

        def made(op: Any) -> str:
            return re.sub(r"\$\{?(out|g)\b\}?", r"{$\1}_{P}", latex_of(latex, self.inner(op)))

        return made

    def local(self, by: str, latex: Latex) -> Callable[[Any], str]:
        """A local derivative of the part, with its left side."""

        def made(op: Any) -> str:
            text = self.seen(latex)(op)
            return text if "=" in text else derivative("{$out}_{P}", by, text)

        return made

    def of_whole(self, own: Wrt | None) -> Wrt:
        """The derivative by the whole, from that of the operation by what it overwrites."""

        def vjp(op: Any, g: Tensor) -> Tensor:
            part = self.part(g)
            made = torch.zeros_like(part) if own is None else own.vjp(self.inner(op), part)
            return self.replaced(g, made)

        def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
            out, into = self.inside(out_index), self.inside(in_index)
            if out is None:
                return Factor(latex="1") if out_index == in_index else None
            if into is None or own is None or own.factor is None:
                return None
            return own.factor(self.inner(op), out, into)

        def local(op: Any) -> str:
            outside = derivative("{$out}_{i}", "{$base}_{i}", r"1 \text{ for } i \notin P")
            return rf"{outside}, \quad {self.local('{$base}_{P}', '0' if own is None else own.local)(op)}"

        def product(op: Any) -> str:
            inside = "0" if own is None else self.seen(own.product)(op)
            if "$grad" not in inside:
                inside = rf"{{$grad}}_{{P}} = {inside}"
            return rf"{{$grad}}_{{i}} = {{$g}}_{{i}} \text{{ for }} i \notin P, \quad {inside}"

        return Wrt(vjp, local, product, REST, factor if own is None or own.factor is not None else None)

    def into_part(self, name: str, own: Wrt) -> Wrt:
        """The derivative by another argument."""

        def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
            assert own.factor is not None
            out = self.inside(out_index)
            return None if out is None else own.factor(self.inner(op), out, in_index)

        return replace(
            own,
            vjp=lambda op, g: own.vjp(self.inner(op), self.part(g)),
            local=self.local(f"${name}", own.local),
            product=self.seen(own.product),
            zeros=ELSEWHERE,
            factor=None if own.factor is None else factor,
            pattern=None,
        )

    def convention(self, known: AConvention) -> AConvention:
        """Where the gradient is by definition not the derivative: of what is overwritten the places in the whole."""

        def where(op: Any, radius: float) -> Tensor:
            found = known.where(self.inner(op), radius)
            if known.argument != self.written.argument:
                return found
            return self.replaced(torch.zeros(op.base.shape, dtype=torch.bool), found)

        argument = BASE if known.argument == self.written.argument else known.argument
        return replace(known, where=where, argument=argument)
