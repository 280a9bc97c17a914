"""What a user's backward could have read, by name: its sources, the steps of its forward, and its own steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from chainrule.execution.call_tape import Called
from chainrule.execution.function_trace import FunctionTrace
from chainrule.verification.repair_samples import Named, Reach

CLASSES = 4096  # of a one-hot, at most
_UPSTREAM, _SOURCE, _FORWARD, _SAVED, _BACKWARD = -0.3, 0.0, 0.2, 0.35, 0.4


def reaches(points: list[FunctionTrace]) -> list[Reach]:
    """The tensors and numbers in reach at each point, under the same keys; what is equal has its first name alone."""
    everywhere = [dict(_named(point)) for point in points]
    seen: dict[tuple[object, ...], str] = {}
    kept = []
    for key in everywhere[0]:
        each = [named[key].tensor for named in everywhere if key in named]
        if len(each) == len(points) and len({tensor.shape for tensor in each}) == 1:
            mark = tuple(map(_mark, each))
            if seen.setdefault(mark, key) == key:
                kept.append(key)
    numbers = [point.numbers for point in points]
    shared = [name for name in numbers[0] if all(name in each for each in numbers)]
    return [
        Reach({key: named[key] for key in kept}, {name: each[name] for name in shared}, point.steps.calls)
        for point, named, each in zip(points, everywhere, numbers, strict=True)
    ]


def _mark(tensor: Tensor) -> tuple[object, ...]:
    flat = tensor.detach().reshape(-1)
    flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat.double()
    weights = torch.linspace(0.5, 1.7, flat.numel(), dtype=torch.float64, device=flat.device)
    return tuple(tensor.shape), tensor.is_floating_point(), float(flat.sum()), float((weights * flat).sum())


def _named(point: FunctionTrace) -> Iterator[tuple[str, Named]]:
    saved = {_mark(each) for each in point.context.saved_tensors if each is not None}
    for text, tensor in point.sources.items():
        cost = _UPSTREAM if "upstream" in text else _SAVED if text.startswith("saved") else _SOURCE
        yield text, Named(text, tensor, cost, kept=text == "the output" or _mark(tensor) in saved)
    for text, tensor in list(point.sources.items()):
        yield from _one_hot(point, text, text, tensor)
        yield from _indexed(point, text, tensor)
    own = {text for call in point.steps.calls for text, _ in _results(call)}
    for place, call in enumerate(point.forward):
        for item, (text, tensor) in enumerate(_results(call)):
            key = f"forward {place} {item}"
            text = f"{text} of the forward" if text in own else text
            yield key, Named(text, tensor, _FORWARD)
            yield from _one_hot(point, key, text, tensor)
    for item, (call, by, slope) in enumerate(_slopes(point)):
        expression = call.place.expression if call.place is not None else ""
        text = f"the derivative of `{expression or call.name}`"
        yield f"slope {item}", Named(f"{text} by `{by}`" if by else text, slope, _FORWARD + (0.3 if by else 0))
    for place, call in enumerate(point.steps.calls):
        for item, (text, tensor) in enumerate(_results(call)):
            yield f"backward {place} {item}", Named(text, tensor, _BACKWARD, place)


def _results(call: Called) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a step gives, by the names that they were assigned to, or by its expression."""
    given = call.value if isinstance(call.value, (tuple, list)) else (call.value,)
    names = call.place.targets if call.place is not None else ()
    for item, tensor in enumerate(given):
        if isinstance(tensor, Tensor):
            named = names[item] if item < len(names) and len(names) >= len(given) else ""
            yield (f"`{named}`" if named else name_of(call)), tensor


def name_of(call: Called) -> str:
    """A step by what its result is called, or by its expression."""
    if call.place is None or not call.place.expression:
        return f"the result of `{call.name}`"
    targets = call.place.targets
    return f"`{targets[0]}`" if len(targets) == 1 and targets[0] else f"`{call.place.expression}`"


def _one_hot(point: FunctionTrace, key: str, text: str, index: Tensor) -> Iterator[tuple[str, Named]]:
    """The one-hot of an index, for each number of classes that an input or an output has along an axis."""
    if index.dtype != torch.long or index.dim() != 1 or not index.numel() or int(index.min()) < 0:
        return
    shapes = [each.shape for each in (*point.inputs.values(), *point.outs)]
    for classes in sorted({size for shape in shapes for size in shape if size <= CLASSES}):
        if int(index.max()) < classes:
            hot = torch.nn.functional.one_hot(index, classes).double()
            yield f"one-hot {classes} {key}", Named(f"the one-hot of {text}", hot, _SOURCE)


def _indexed(point: FunctionTrace, text: str, index: Tensor) -> Iterator[tuple[str, Named]]:
    """The rows of an upstream gradient that an index names: what a forward that gathers into them sends back."""
    if index.dtype != torch.long or index.dim() != 1 or not index.numel() or int(index.min()) < 0:
        return
    for key, tensor in point.sources.items():
        if "upstream" in key and tensor.dim() and len(tensor) > int(index.max()):
            yield f"rows of {key} {text}", Named(f"{key} at {text}", tensor[index], _SOURCE)


def _slopes(point: FunctionTrace) -> list[tuple[Called, str, Tensor]]:
    try:
        return point.slopes
    except Exception:  # a forward that autograd cannot differentiate
        return []
