"""What autograd's nodes have saved for backward, and why one of them cannot use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from chainrule.capture.step_log import number_of
from chainrule.graph.trees import reach

OVERWRITTEN = "has been modified by an inplace operation"
FREED = "Trying to backward through the graph a second time"
Saved = tuple[str, Tensor | None]
"""The name of what a node saved, without its prefix, and its present numbers (None: unknown, or freed)."""


def behind(roots: Iterable[Any]) -> list[Any]:
    """The nodes that a backward pass from these reaches, the last made first: autograd runs them in that order."""
    nodes = reach((root for root in roots if root is not None), _next)
    return sorted((each for each in nodes if not hasattr(each, "variable")), key=number_of, reverse=True)


def _next(node: Any) -> list[Any]:
    return [target for target, _ in node.next_functions if target is not None]


def unusable(node: Any, why: str) -> Saved | None:
    """What a node has saved and cannot use for this reason, a part of the error's message; None if there is nothing.

    Numbers that hooks of the user have packed are left alone: to unpack them runs the user's code.
    """
    for name, saved, use in _saved(node, why):
        if getattr(saved, "unpack_hook", None) is not None:
            continue
        try:
            use()
        except RuntimeError as error:
            if why in str(error):
                return name, None if saved is None else saved.data
        except Exception:  # not defined for this node
            continue
    return None


def _saved(node: Any, why: str) -> Iterator[tuple[str, Any, Callable[[], Any]]]:
    """(name, what is saved, how to use it) of everything that a node has saved as a tensor."""
    names = [name for name in dir(node) if name.startswith("_raw_saved_")]
    for name in names:
        usual = name.removeprefix("_raw")
        try:
            raw = getattr(node, name)
        except RuntimeError as error:  # those of a function of the user's are freed together
            if why in str(error):
                yield usual.removeprefix("_saved_"), None, lambda name=name: getattr(node, name)  # type: ignore[misc]
            continue
        if name == "_raw_saved_tensors":
            if any(each.unpack_hook is not None for each in raw):
                continue
            for place, each in enumerate(raw):
                yield f"saved_tensors[{place}]", each, lambda: node.saved_tensors
        elif isinstance(raw, (tuple, list)):
            for place, each in enumerate(raw):
                usual_name = f"{usual.removeprefix('_saved_')}[{place}]"
                yield usual_name, each, lambda usual=usual: getattr(node, usual)  # type: ignore[misc]
        else:
            yield usual.removeprefix("_saved_"), raw, lambda usual=usual: getattr(node, usual)  # type: ignore[misc]
