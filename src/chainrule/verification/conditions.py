"""The conditions under which a function's backward is checked: what users' code hands to it, and a first try does not.

A condition is the layout of the inputs, where they lie, which of them require gradients, and the upstream gradients of
the outputs. Everything random is drawn anew from the same seed, on any default device and default type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Layout = Callable[[Tensor], Tensor]
Seeds = Callable[[list[Tensor]], list[Tensor | None]]

MOST_ALONE = 3  # inputs, and outputs, that are tried one by one


def as_given(tensor: Tensor) -> Tensor:
    """A copy with the strides of the original, where that takes no more than 16 times the memory of its elements."""
    return laid_out(tensor, tensor)


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy with the strides of another tensor of the same shape."""
    if like.layout != torch.strided or like.is_conj() or like.is_neg() or like.is_quantized or not like.numel():
        return tensor.detach().clone()
    span = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    if span > 16 * like.numel():
        return tensor.detach().clone()
    buffer = torch.zeros(span, dtype=tensor.dtype, device=tensor.device)
    if span < like.numel() or 0 in like.stride():  # elements share memory
        at = torch.arange(span, device=tensor.device).as_strided(like.shape, like.stride())
        buffer[at.reshape(-1)] = tensor.detach().reshape(-1)
    copy = buffer.as_strided(like.shape, like.stride())
    if span >= like.numel() and 0 not in like.stride():
        copy.copy_(tensor.detach())
    return copy.detach()


def contiguous(tensor: Tensor) -> Tensor:
    """A contiguous copy."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def spread(tensor: Tensor) -> Tensor:
    """A copy that is not contiguous: its axes lie in memory in reverse order, or it is every other element."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        return tensor.detach().clone()
    if sum(size > 1 for size in tensor.shape) > 1:
        order = tuple(reversed(range(tensor.dim())))
        return tensor.detach().permute(order).clone(memory_format=torch.contiguous_format).permute(order)
    doubled = torch.zeros(2 * tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    return doubled[::2].view(tensor.shape).copy_(tensor.detach()).detach() if tensor.dim() else tensor.detach().clone()


def moved(tensor: Tensor) -> Tensor:
    """Another point with the signs of the first and within its range: each element goes a part of the way to another.

    Numbers that are all equal shrink. What is not finite stays.
    """
    copy, generator = as_given(tensor), torch.Generator().manual_seed(3)
    order = torch.randperm(tensor.numel(), generator=generator, device="cpu").to(tensor.device)
    part = _uniform(tensor, generator, 0.2, 0.8)
    other = tensor.detach().reshape(-1)[order].reshape(tensor.shape)
    same_sign = torch.ones_like(part, dtype=torch.bool) if tensor.is_complex() else other * tensor.detach() > 0
    between = torch.where(same_sign & (other != tensor), tensor + part * (other - tensor), tensor * (1 - part / 4))
    return laid_out(torch.where(tensor.isfinite() & between.isfinite(), between, copy).detach(), tensor)


def _uniform(like: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    drawn = torch.rand(like.shape, dtype=torch.float64, generator=generator, device="cpu")
    return (low + (high - low) * drawn).to(like.device).to(like.dtype if not like.is_complex() else like.real.dtype)


def reversed_sign(tensor: Tensor) -> Tensor:
    """The same with the other sign, where all its elements have one sign."""
    copy = as_given(tensor)
    return laid_out(-copy, tensor) if has_one_sign(tensor) else copy


def has_one_sign(tensor: Tensor) -> bool:
    """Whether no two elements differ in sign, and some have one."""
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        return False
    return bool((tensor >= 0).all() or (tensor <= 0).all()) and bool((tensor != 0).any())


# -- upstream gradients -----------------------------------------------------------------------------------------------


def random_upstream(outs: list[Tensor], seed: int = 0, scale: float = 1.0) -> list[Tensor | None]:
    """Random numbers for each output, complex ones for a complex output, so that no error is hidden by symmetry."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor | None] = []
    for out in outs:
        dtype = torch.complex128 if out.is_complex() else torch.float64
        draw = torch.randn(out.shape, dtype=dtype, generator=generator, device="cpu")
        found.append((scale * draw).to(out.device).to(out.dtype))
    return found


def another_upstream(outs: list[Tensor]) -> list[Tensor | None]:
    """Other and larger numbers."""
    return random_upstream(outs, seed=1, scale=-2.5)


def spread_upstream(outs: list[Tensor]) -> list[Tensor | None]:
    """The same numbers, not contiguous."""
    return [None if each is None else spread(each) for each in another_upstream(outs)]


def expanded_upstream(outs: list[Tensor]) -> list[Tensor | None]:
    """One number for all elements of an output, with strides of 0, as `out.sum().backward()` gives."""
    return [
        None if g is None else g.reshape(-1)[0].clone().expand(g.shape) if g.numel() else g
        for g in random_upstream(outs, seed=2)
    ]


def _only(place: int, outs: list[Tensor]) -> list[Tensor | None]:
    return [g if at == place else None for at, g in enumerate(random_upstream(outs))]


# -- the conditions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """`words` end a sentence: "tried ...". `wanted`: the only variable that requires a gradient; -1 is none of them.

    `elsewhere`: the point is another one, where the function may not be defined. `plainer` is a condition that lacks
    one thing of this one: where it fails too, that thing is not to blame.
    """

    words: str
    layout: Layout = as_given
    upstream: Seeds = random_upstream
    wanted: int | None = None
    elsewhere: bool = False
    plainer: Condition | None = None


GIVEN = Condition("as given")


def layout_condition(variables: list[Tensor]) -> Condition | None:
    """The other layout of the inputs: contiguous where one is not, and not contiguous where all are."""
    strided = [each for each in variables if each.layout == torch.strided]
    if any(not each.is_contiguous() for each in strided):
        return Condition("with contiguous inputs", layout=contiguous)
    if any(not spread(each).is_contiguous() for each in strided):
        return Condition("with inputs that are not contiguous", layout=spread)
    return None


def conditions(variables: list[Tensor], names: list[str], outs: list[Tensor], others: bool) -> Iterator[Condition]:
    """The conditions beside the first. `others`: the outputs depend on other leaves too, such as parameters."""
    layout = layout_condition(variables)
    if layout is not None:
        yield layout
    if any(out.numel() > 1 for out in outs):
        yield Condition("with an expanded upstream gradient (as `sum()` gives)", upstream=expanded_upstream)
    another = Condition("with another upstream gradient", upstream=another_upstream)
    if any(not spread(out).is_contiguous() for out in outs):
        words = "with an upstream gradient that is not contiguous"
        yield Condition(words, upstream=spread_upstream, plainer=another)
    else:
        yield another
    if len(outs) > 1:
        for place in range(min(len(outs), MOST_ALONE)):
            yield Condition(f"where only result {place} gets a gradient", upstream=partial(_only, place))
    if len(variables) > 1:
        for place in range(min(len(variables), MOST_ALONE)):
            yield Condition(f"where only {names[place]} requires a gradient", wanted=place)
    if others:
        yield Condition("where no input requires a gradient", wanted=-1)
    yield Condition("at a second point", layout=moved, elsewhere=True)
    if any(map(has_one_sign, variables)):
        yield Condition("at a point with other signs", layout=reversed_sign, elsewhere=True)
