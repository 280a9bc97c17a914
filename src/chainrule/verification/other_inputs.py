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


def another_point(graph: Graph, node: Node, arrived: Upstream, memory: int) -> tuple[Graph, str]:
    """The graph with other numbers in the arguments of a node that hide a mistake; and what these hold, in words.

    A factor that is forgotten is not seen where it is 1, as the weight of a normalisation is at first, and a conjugate
    not in real numbers. "" where no argument is of this kind.
    """
    assert node.operation is not None
    values, operation, where = list(graph.values), graph.operations[node.operation], list[str]()
    differentiable = {edge.value for edge in node.edges}
    generator = torch.Generator().manual_seed(6)
    for name, _, index in references(operation.arguments):
        found = values[index].data
        if found is None or not found.numel() or graph.values[index] is not values[index]:
            continue
        if found.is_complex() and not (bool(found.real.any()) and bool(found.imag.any())):
            lacking, factor = ("real", 1) if bool(found.imag.any()) else ("imaginary", 1j)
            part = torch.randn(found.shape, dtype=torch.float64, generator=generator).to(found.device)
            other = found + factor * (rms(found) or 1.0) * part
            where.append(f"the {lacking} part of `{name}` is 0")
        elif index in differentiable and _is_plain(found):
            part = 0.5 + 0.5 * torch.rand(found.shape, dtype=torch.float64, generator=generator).to(found.device)
            other = part * found if bool(found.any()) else part
            where.append(f"`{name}` is {found.reshape(-1)[0].item():.6g}{' throughout' if found.numel() > 1 else ''}")
        else:
            continue
        values[index] = replace(values[index], snapshot=Snapshot.of(other.to(found.dtype)))
    if where:
        moved = Experiment(replace(graph, values=tuple(values)), node, arrived, memory)
        outs = moved.run(moved.recorded)
        for slot, value in enumerate(node.outputs):
            if value is not None:
                values[value] = replace(values[value], snapshot=Snapshot.of(outs[moved.place[slot]]))
    return replace(graph, values=tuple(values)), " and ".join(where)


def _is_plain(numbers: Tensor) -> bool:
    """Whether they are one number throughout; a single number only if it is one that hides a factor."""
    first = numbers.reshape(-1)[0]
    return bool((numbers == first).all()) and (numbers.numel() > 1 or float(first.abs()) in (0.0, 1.0))
