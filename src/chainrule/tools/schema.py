"""The JSON Schema of a result, from the dataclasses: `python -m chainrule.reference` writes docs/result.schema.json.

The document in a result is that of docs/document.md, which leaves defaults out.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from chainrule import document as doc
from chainrule.tools.result import FORMAT, VERSION, Result
from chainrule.views.json import BLOCKS

Schema = dict[str, Any]
_NUMBER: Schema = {"anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]}
_COMPLEX: Schema = {"type": "object", "properties": {"re": _NUMBER, "im": _NUMBER}, "required": ["re", "im"]}
_SCALARS: dict[Any, Schema] = {
    str: {"type": "string"}, int: {"type": "integer"}, bool: {"type": "boolean"}, float: _NUMBER,
    complex: _COMPLEX, NoneType: {"type": "null"}, Any: {},
}  # fmt: skip
_SPANS: dict[Any, str] = {doc.Math: "math", doc.Code: "code"}
_BLOCKS = {kind: name for name, kind in BLOCKS.items()}


def schema() -> Schema:
    """The JSON Schema of what `--json` prints."""
    parts: dict[str, Schema] = {}
    _of(Result, parts)
    whole = parts.pop(Result.__name__)
    head = {"format": {"const": FORMAT}, "version": {"const": VERSION}, "chainrule": _SCALARS[str]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": FORMAT,
        **whole,
        "properties": head | whole["properties"],
        "required": [*head, *whole["required"]],
        "$defs": dict(sorted(parts.items())),
    }


def text() -> str:
    """The schema as the text of its file."""
    return json.dumps(schema(), indent=1) + "\n"


def _of(hint: Any, parts: dict[str, Schema]) -> Schema:
    """The schema of a type; those of dataclasses are put among the `parts`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _SCALARS:
        return _SCALARS[hint]
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[-1] is ...:
        return {"type": "array", "items": _of(arguments[0], parts)}
    if origin is tuple:
        items = [_of(each, parts) for each in arguments]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if origin in (Union, UnionType):
        return {"anyOf": [_of(each, parts) for each in arguments]}
    if hint in _SPANS:
        return _object({_SPANS[hint]: _SCALARS[str]}, [_SPANS[hint]])
    assert is_dataclass(hint)
    name: str = cast(type, hint).__name__
    if name not in parts:
        parts[name] = {}  # a section holds sections
        parts[name] = _fields(hint, parts)
    return {"$ref": f"#/$defs/{name}"}


def _fields(kind: Any, parts: dict[str, Schema]) -> Schema:
    hints = get_type_hints(kind)
    properties = {each.name: _of(hints[each.name], parts) for each in fields(kind)}
    in_document = kind.__module__ == doc.__name__  # where defaults are left out
    required = [each.name for each in fields(kind) if not in_document or each.default is MISSING]
    if kind in _BLOCKS:
        properties = {"block": {"const": _BLOCKS[kind]}} | properties
        required = ["block", *required]
    return _object(properties, required)


def _object(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
