"""PyTorch's own derivative formulas, for the autograd nodes that have no rule of ours yet.

They stand in `derivatives.yaml`, from which autograd is generated and which comes with torch. The file is long
and one formula is wanted at a time, so it is cut into its entries by their first lines, and only the entries asked for
are parsed. A formula is C++ and is quoted as it stands; nothing here is evaluated.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from chainrule.pytorch_internals import parse_schema

_FILE = "packaged/autograd/derivatives.yaml"
_ENTRY = re.compile(r"^- name: (?P<operation>[\w.]+)\(", re.MULTILINE)
_STRUCTURE: dict[str, Literal["elementwise", "linear"]] = {"auto_element_wise": "elementwise", "auto_linear": "linear"}


@dataclass(frozen=True, slots=True)
class Formula:
    """What PyTorch knows of one operation's derivative.

    `gradients` maps each differentiable argument to its text (`grad` is the upstream gradient, `grads[i]` that of
    output i, `result` the output). `structure` tells the shape of the Jacobian, where marked: `elementwise` (it
    is diagonal) or `linear` (it does not depend on the point). Arguments in `not_differentiable` have no gradient by
    nature, those in `not_implemented` have one that PyTorch cannot compute.
    """

    operation: str
    schema: str
    gradients: dict[str, str]
    structure: Literal["elementwise", "linear"] | None = None
    not_differentiable: tuple[str, ...] = ()
    not_implemented: tuple[str, ...] = ()


def formula(node_name: str, operation_name: str = "") -> Formula | None:
    """PyTorch's formula for a node (`AddmmBackward0`) of an operation (`aten.addmm.default`), or None.

    The operation's name decides, since it names the overload; an in-place operation falls back on the one it is a form
    of. Where the operation is not known, the node's name decides. None for a user's `autograd.Function`, and where this
    torch comes without the file.
    """
    entries = _entries()
    return next((_parsed(name) for name in _candidates(node_name, operation_name) if name in entries), None)


def _candidates(node_name: str, operation_name: str) -> list[str]:
    if operation_name.startswith("aten."):
        base, _, overload = operation_name.removeprefix("aten.").partition(".")
        ending = "" if overload in ("", "default") else f".{overload}"
        return [base + ending, base.removesuffix("_") + ending, base, base.removesuffix("_")]
    named = _operation_of_node().get(node_name)
    return [named] if named is not None else []


@cache
def _entries() -> dict[str, str]:
    """Operation (`add.Tensor`) -> the text of its entry, in the order of the file."""
    try:
        text = (files("torchgen") / _FILE).read_text(encoding="utf-8")
    except (ModuleNotFoundError, OSError):
        return {}
    starts = list(_ENTRY.finditer(text))
    ends = [*(start.start() for start in starts[1:]), len(text)]
    return {start["operation"]: text[start.start() : end] for start, end in zip(starts, ends, strict=True)}


@cache
def _parsed(operation: str) -> Formula:
    entry: dict[str, Any] = yaml.load(_entries()[operation], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))[0]
    schema: str = entry["name"]
    lines: dict[str, Any] = entry.get("dispatch", {"Default": entry})
    lines = lines.get("Default") or next(iter(lines.values()))
    names = {argument.name for argument in parse_schema(f"aten::{schema}").arguments}
    gradients = {name: str(text) for key, text in lines.items() for name in re.split(r",\s*", key) if name in names}
    fixed = tuple(name for name, text in gradients.items() if text == "non_differentiable")
    missing = tuple(name for name, text in gradients.items() if text.startswith("not_implemented("))
    forward = (_STRUCTURE.get(text) for key, text in lines.items() if key not in gradients and isinstance(text, str))
    return Formula(
        operation,
        schema,
        {name: text for name, text in gradients.items() if name not in fixed + missing},
        next((structure for structure in forward if structure), None),
        fixed,
        missing,
    )


@cache
def _operation_of_node() -> dict[str, str]:
    """Node name -> operation: that in title case, and a count where overloads share it, in the order of the file."""
    count: Counter[str] = Counter()
    found = {}
    for operation in _entries():
        title = "".join(part.title() for part in operation.split(".")[0].split("_"))
        prefix = f"{title}Backward".replace("ForwardBackward", "Backward")
        if _parsed(operation).gradients or _parsed(operation).not_implemented:
            found[f"{prefix}{count[prefix]}"] = operation
            count[prefix] += 1
    return found
