"""What the user wrote: each torch function that their code called, and the operations and values it stands for."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chainrule.capture.lowering.naming import Paths
from chainrule.capture.lowering.operations import Reading
from chainrule.capture.tape import RawCall
from chainrule.graph.graph import Call, Ref
from chainrule.graph.trees import map_leaves, tensors_in


def read_calls(reading: Reading, paths: Paths) -> tuple[Call, ...]:
    """The calls in the order in which they began."""
    return tuple(_call(index, raw, reading, paths) for index, raw in enumerate(reading.tape.calls))


def _call(index: int, raw: RawCall, reading: Reading, paths: Paths) -> Call:
    def known(leaf: Any) -> Any:
        """None for a tensor that no operation ever used."""
        if not isinstance(leaf, Tensor):
            return leaf
        value = reading.values.at(leaf, raw.first)
        return None if value is None else Ref(value)

    operations = dict.fromkeys(reading.at[p] for p in range(raw.first, raw.last) if p in reading.at)
    outputs = (reading.values.at(tensor, raw.last) for tensor in tensors_in(raw.output))
    return Call(
        index,
        function_name(raw.function),
        paths.of_run(raw.module),
        raw.site.place() if raw.site else None,
        tuple(map_leaves(known, argument, lists=True) for argument in raw.arguments),
        map_leaves(known, raw.keywords, lists=True),
        tuple(operations),
        tuple(value for value in outputs if value is not None),
        raw.error,
    )


def function_name(function: Any) -> str:
    """What a function of torch is called: `softmax`, `__add__`; a property by its own name, as `T` and `real`."""
    name = getattr(function, "__name__", str(function))
    return str(getattr(function.__self__, "__name__", name)) if name == "__get__" else str(name)
