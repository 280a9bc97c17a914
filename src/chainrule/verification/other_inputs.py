"""What a user's function is given besides what it met in a step: other upstream gradients, and other complex numbers.

One step may hide a mistake. Here is also what it holds that does, in words.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from chainrule.execution.experiment import Experiment
from chainrule.graph.comparison import rms
from chainrule.graph.graph import Graph, Node, references
from chainrule.graph.snapshot import Snapshot

Upstream = tuple[Tensor | None, ...]


def another_upstream(arrived: Upstream, keep_zeros: bool = False) -> Upstream:
    """Each number made smaller by a random factor, and 0 replaced by such a number of another place.

    None is larger than what arrived, in norm neither, so that a backward that clips does not begin to.
    """
    generator = torch.Generator().manual_seed(4)
    return tuple(None if gradient is None else _another(gradient, keep_zeros, generator) for gradient in arrived)


def _another(gradient: Tensor, keep_zeros: bool, generator: torch.Generator) -> Tensor:
    dtype = torch.complex128 if gradient.is_complex() else torch.float64
    drawn = 0.1 + 0.9 * torch.rand(gradient.shape, dtype=dtype, generator=generator) / math.sqrt(1 + dtype.is_complex)
    factor, wide = drawn.to(gradient.device), gradient.to(dtype)
    there = wide[wide != 0]
    if not there.numel():
        return factor.to(gradient.dtype)
    if not keep_zeros:
        places = torch.randint(there.numel(), gradient.shape, generator=generator).to(gradient.device)
        wide = torch.where(wide == 0, there[places], wide)
    other = factor * wide
    return (other * min(1.0, float(there.norm() / other.norm()))).to(gradient.dtype)


def held_numbers(arrived: Upstream) -> str:
    """The one number besides 0 that an upstream gradient holds, as that of a sum; "" where it holds more."""
    held = {number for gradient in arrived if gradient is not None for number in _held(gradient)}
    if len(held - {0.0}) > 1:
        return ""
    (number,) = held if len(held) == 1 else held - {0.0}
    return f"{number:.6g} throughout" if len(held) == 1 else f"0 or {number:.6g}"


def _held(gradient: Tensor) -> list[complex]:
    """The numbers that a gradient holds, without those after the second besides 0."""
    apart = gradient[gradient != 0]
    first = apart[:1].tolist()
    others = apart[apart != apart[0]][:1].tolist() if first else []
    return [*first, *others, *([0.0] if apart.numel() < gradient.numel() else [])]


def count_zeros(arrived: Upstream) -> str:
    """At how many elements an upstream gradient is 0; "" where it is nowhere."""
    size = sum(gradient.numel() for gradient in arrived if gradient is not None)
    zeros = size - sum(int(gradient.count_nonzero()) for gradient in arrived if gradient is not None)
    return f"0 at {zeros:,} of {size:,} elements, which hides the mistake" if zeros else ""


def with_both_parts(graph: Graph, node: Node, arrived: Upstream, memory: int) -> tuple[Graph, str]:
    """The graph with both parts in each complex argument of a node that has one alone; and which one, in words.

    A conjugate that is missing is not seen in real numbers. "" where no argument lacks a part.
    """
    assert node.operation is not None
    values, operation, where = list(graph.values), graph.operations[node.operation], ""
    generator = torch.Generator().manual_seed(6)
    for name, _, index in references(operation.arguments):
        found = values[index].data
        if found is None or not found.is_complex() or (bool(found.real.any()) and bool(found.imag.any())):
            continue
        part = (rms(found) or 1.0) * torch.randn(found.shape, dtype=torch.float64, generator=generator).to(found.device)
        lacking, factor = ("real", 1) if bool(found.imag.any()) else ("imaginary", 1j)
        values[index] = replace(values[index], snapshot=Snapshot.of((found + factor * part).to(found.dtype)))
        where = where or f"the {lacking} part of `{name}` is 0"
    if where:
        moved = Experiment(replace(graph, values=tuple(values)), node, arrived, memory)
        outs = moved.run(moved.recorded)
        for slot, value in enumerate(node.outputs):
            if value is not None:
                values[value] = replace(values[value], snapshot=Snapshot.of(outs[moved.place[slot]]))
    return replace(graph, values=tuple(values)), where
