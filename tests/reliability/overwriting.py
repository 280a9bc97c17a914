"""What each recorded operation took and gave, compared with clones made beside the recorder while it ran."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import chainrule
from chainrule.graph.reexecution import unobserved
from chainrule.graph.trees import map_leaves, tensors_in


class Witness(TorchDispatchMode):
    """Clones the operands of every operation before it runs, and its results after, unseen by the recorder."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _clones((args, kwargs or {}))
        out = func(*args, **(kwargs or {}))
        self.seen.append((str(func), given, _clones(out)))
        return out


def _clones(tree: Any) -> list[Tensor]:
    with unobserved():
        return list(tensors_in(map_leaves(lambda each: each.clone() if isinstance(each, Tensor) else each, tree)))


def same(recorded: Tensor | None, eager: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, in shape and type too."""
    if recorded is None or recorded.shape != eager.shape or recorded.dtype != eager.dtype:
        return False
    return torch.equal(recorded.detach().nan_to_num(7.25), eager.detach().nan_to_num(7.25))


def differences(recording: chainrule.Recording, witness: Witness, only: str = "") -> list[str]:
    """Every operand and result whose recorded numbers are not those of its time.

    All operations must be there; or all of one name, and then the others need not.
    """
    graph, wrong = recording.graph, []
    seen = [each for each in witness.seen if only in each[0] and "detach" not in each[0]]
    operations = [each for each in graph.operations if only in each.name and "detach" not in each.name]
    # What stands for the node of a view that a write has given it no operation ran for.
    operations = [each for each in operations if each.call is not None or "as_strided" not in each.name]
    names = [each.name for each in operations]
    if names != [name for name, _, _ in seen]:
        return [f"recorded are {names}, not {[name for name, _, _ in seen]}"]
    for operation, (name, given, made) in zip(operations, seen, strict=True):
        base = operation.arguments.get("base")
        arguments = {key: each for key, each in operation.arguments.items() if key != "base"}
        for number, (recorded, eager) in enumerate(zip(tensors_in(graph.filled(arguments)), given, strict=True)):
            if not same(recorded, eager):
                wrong.append(f"operation {operation.index} {name}: operand {number}")
        outs = [graph.values[each] for each in operation.outputs if each is not None]
        for recorded, eager in zip(outs[len(outs) - len(made) :] if base else outs, made, strict=False):
            if not same(recorded.data, eager):
                wrong.append(f"operation {operation.index} {name}: result")
    return wrong
