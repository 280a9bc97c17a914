"""A document as JSON, as docs/document.md describes it, and back.

The dataclasses of `document` are the only description: their fields and types decide what is written and accepted.
Fields with their default value are left out. Numbers that JSON lacks are written as `"nan"`, `"inf"`, `"-inf"`, and
`{"re": 1.0, "im": 2.0}`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from chainrule import document as doc
from chainrule.errors import StorageError

SUFFIX = ".json"
POINTING = True
FORMAT = "chainrule document"
VERSION = 1
BLOCKS: Mapping[str, type] = {
    "paragraph": doc.Paragraph,
    "equation": doc.Equation,
    "tensor": doc.Tensor,
    "verdict": doc.Verdict,
    "table": doc.Table,
}
_BLOCK_NAMES = {kind: name for name, kind in BLOCKS.items()}
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNWRITABLE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

Decode = Callable[[Any, str], Any]


def to_json(document: doc.Document) -> str:
    """The document as JSON text, without line breaks."""
    whole = {"format": FORMAT, "version": VERSION, "document": encoded(document)}
    return text_of(whole)


def text_of(item: Any) -> str:
    """JSON without spaces. A lone surrogate, which UTF-8 cannot encode, is written as an escape."""
    text = json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


written = to_json


def from_json(text: str) -> doc.Document:
    """The document that `to_json` wrote.

    Raises StorageError, with the path of the field, for anything else: truncated, of a newer version, with an unknown
    field, a wrong type, too few numbers for a shape, or a duplicate anchor.
    """
    try:
        whole = json.loads(text, parse_constant=_no_constant)
        document: doc.Document = _document(whole)
    except json.JSONDecodeError as error:
        raise StorageError(
            f"this is not JSON: {error.msg} at line {error.lineno}, column {error.colno}. Is the file truncated?"
        ) from None
    except ValueError:  # Python converts no number of more than 4300 digits
        raise StorageError("a number in this document is too long. chainrule does not write such files.") from None
    except RecursionError:
        raise StorageError(
            "this document nests its sections too deeply. chainrule does not write such files."
        ) from None
    except _MalformedError as error:
        raise StorageError(
            f"this is not a chainrule document: {error}. Write it again with `recording.save`."
        ) from None
    return document


class _MalformedError(Exception):
    """What is wrong, and where."""


def _no_constant(name: str) -> None:
    raise _MalformedError(f"the number {name} is not JSON; such numbers are written as strings")


def _document(whole: Any) -> doc.Document:
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise _MalformedError(f'the top level must be an object with "format": "{FORMAT}"')
    version = whole.get("version")
    if type(version) is not int or version < 1:
        raise _MalformedError(f"`version` must be a positive integer, not {_short(version)}")
    if version > VERSION:
        raise StorageError(
            f"this document has version {version}, and this chainrule reads up to version {VERSION}. "
            "Update chainrule: pip install -U chainrule."
        )
    if set(whole) != {"format", "version", "document"}:
        raise _MalformedError("the top level must have exactly the fields format, version and document")
    document: doc.Document = _decoder(doc.Document)(whole["document"], "document")
    _check_references(document)
    return document


def _check_references(document: doc.Document) -> None:
    """Check what no type says: anchors are unique, and rows that are referred to exist."""
    seen: set[str] = set()
    for _, section in document.walk():
        if section.anchor in seen:
            raise _MalformedError(f"two sections have the anchor {_short(section.anchor)}")
        seen.add(section.anchor)
    for place, row in enumerate(document.rows):
        if row.index != place or not all(0 <= i < place for i in row.inputs):
            raise _MalformedError(f"document.rows[{place}]: `index` must be its place, and `inputs` rows before it")
    for place, each in enumerate(document.sums):
        for source in (each.of, *(s for summand in each.summands for s in summand.sources)):
            if not 0 <= source.row < len(document.rows):
                raise _MalformedError(f"document.sums[{place}] refers to row {source.row}, which does not exist")


# -- writing ----------------------------------------------------------------------------------------------------------


_PLAIN = frozenset({str, int, bool, type(None)})


def encoded(item: Any) -> Any:
    """One part of a document as objects that `json` can write."""
    kind = type(item)
    if kind in _PLAIN:
        return item
    if kind is float:
        return item if math.isfinite(item) else str(item)
    if kind is tuple:  # mostly of plain numbers alone, of which a large step has hundreds of thousands
        kinds = set(map(type, item))
        if kinds <= _PLAIN or (kinds == {float} and all(map(math.isfinite, item))):
            return list(item)
        return [encoded(each) for each in item]
    if kind is complex:
        return {"re": encoded(item.real), "im": encoded(item.imag)}
    if isinstance(item, doc.Math):
        return {"math": item.latex}
    if isinstance(item, doc.Code):
        return {"code": item.source}
    if is_dataclass(item):
        return _encoded_fields(item)
    raise TypeError(f"a document has no {type(item).__name__} in it")


def _encoded_fields(item: Any) -> dict[str, Any]:
    kind = _BLOCK_NAMES.get(type(item))
    found = {} if kind is None else {"block": kind}
    for name, default in _defaults(item.__class__):
        value = getattr(item, name)
        if value is not default and (default is MISSING or value != default):
            found[name] = encoded(value)
    return found


@cache
def _defaults(kind: Any) -> tuple[tuple[str, Any], ...]:
    """The fields of one part of a document with their defaults."""
    return tuple((field.name, field.default) for field in fields(kind))


# -- reading ----------------------------------------------------------------------------------------------------------


@cache
def _decoder(hint: Any) -> Decode:
    """The function that reads a value of this type, and says where it is wrong."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint == doc.Span:
        return _span
    if hint == doc.Block:
        return _block(*BLOCKS.values())
    if origin is Literal:
        return _one_of(arguments)
    if origin is tuple and arguments[-1:] == (...,):
        return _sequence(_decoder(arguments[0]))
    if origin is tuple:
        return _fixed([_decoder(each) for each in arguments])
    if origin in (Union, UnionType):
        return _union(arguments)
    if hint in _BLOCK_NAMES:
        return _block(hint)
    if is_dataclass(hint):
        return _fields(hint)
    return _SCALARS[hint]


def _span(item: Any, path: str) -> doc.Span:
    if isinstance(item, str):
        return item
    if isinstance(item, dict) and len(item) == 1:
        [(kind, text)] = item.items()
        if kind in ("math", "code") and isinstance(text, str):
            return doc.Math(text) if kind == "math" else doc.Code(text)
    raise _MalformedError(f'{path} must be a string, {{"math": "..."}} or {{"code": "..."}}, not {_short(item)}')


def _block(*kinds: Any) -> Decode:
    """A block of one of these kinds."""
    decoders = {_BLOCK_NAMES[kind]: _fields(kind) for kind in kinds}

    def decode(item: Any, path: str) -> Any:
        name = item.get("block") if isinstance(item, dict) else None
        if not isinstance(name, str) or name not in decoders:
            raise _MalformedError(
                f'{path} must be an object with "block": one of {", ".join(decoders)}; it is {_short(item)}'
            )
        return decoders[name]({key: value for key, value in item.items() if key != "block"}, path)

    return decode


def _fields(kind: Any) -> Decode:
    hints = get_type_hints(kind, vars(doc))
    # Read when first used: a section holds sections, so its decoder asks for itself.
    known = {field.name: field for field in fields(kind)}
    needed = [name for name, field in known.items() if field.default is MISSING]

    def decode(item: Any, path: str) -> Any:
        if not isinstance(item, dict):
            raise _MalformedError(f"{path} must be an object, not {_short(item)}")
        for name in item:
            if name not in known:
                raise _MalformedError(f"{path} has an unknown field {_short(name)}")
        for name in needed:
            if name not in item:
                raise _MalformedError(f"{path} has no field `{name}`")
        made = kind(**{name: _decoder(hints[name])(value, f"{path}.{name}") for name, value in item.items()})
        _check_counts(made, path)
        return made

    return decode


def _check_counts(made: Any, path: str) -> None:
    """Check that a tensor, a sketch and a table have as many entries as they claim."""
    if isinstance(made, doc.Tensor):
        if not all(0 <= size < 2**63 for size in made.shape):
            raise _MalformedError(f"{path}.shape has an invalid size")
        if made.entries is not None and len(made.entries) != math.prod(made.shape):
            raise _MalformedError(f"{path} has shape {list(made.shape)}, but {len(made.entries)} entries")
        for name, size, margin in zip(("upstream", "product"), made.shape, (made.upstream, made.product), strict=False):
            if margin is not None and len(margin.entries) != size:
                raise _MalformedError(f"{path}.{name} has {len(margin.entries)} entries, and there are {size} of them")
    elif isinstance(made, doc.Sketch):
        if min(made.rows, made.columns) < 1 or made.rows * made.columns != len(made.means):
            raise _MalformedError(f"{path} has {made.rows} x {made.columns} cells, but {len(made.means)} means")
    elif isinstance(made, doc.Table) and any(len(row) != len(made.headers) for row in made.rows):
        raise _MalformedError(f"{path} has a row that is longer or shorter than its headers")


def _sequence(inner: Decode) -> Decode:
    def decode(item: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(item, list):
            raise _MalformedError(f"{path} must be an array, not {_short(item)}")
        return tuple([inner(each, f"{path}[{place}]") for place, each in enumerate(item)])

    return decode


def _fixed(inner: list[Decode]) -> Decode:
    def decode(item: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(item, list) or len(item) != len(inner):
            raise _MalformedError(f"{path} must be an array of {len(inner)}, not {_short(item)}")
        return tuple(each(part, f"{path}[{place}]") for place, (each, part) in enumerate(zip(inner, item, strict=True)))

    return decode


def _one_of(allowed: tuple[Any, ...]) -> Decode:
    def decode(item: Any, path: str) -> Any:
        if not isinstance(item, str) or item not in allowed:
            raise _MalformedError(f"{path} must be one of {', '.join(allowed)}; it is {_short(item)}")
        return item

    return decode


def _union(arguments: tuple[Any, ...]) -> Decode:
    """None or one type; or the numbers of a tensor."""
    rest = tuple(each for each in arguments if each is not NoneType)
    inner = _decoder(rest[0]) if len(rest) == 1 else _entry

    def decode(item: Any, path: str) -> Any:
        return None if item is None and NoneType in arguments else inner(item, path)

    return decode


def _entry(item: Any, path: str) -> Any:
    if isinstance(item, (bool, int)):
        return item
    if isinstance(item, dict) and set(item) == {"re", "im"}:
        return complex(_float(item["re"], path), _float(item["im"], path))
    return _float(item, path)


def _float(item: Any, path: str) -> float:
    if type(item) in (int, float):
        return item  # type: ignore[no-any-return]
    if isinstance(item, str) and item in _UNWRITABLE:
        return _UNWRITABLE[item]
    raise _MalformedError(f"{path} must be a number, not {_short(item)}")


def _exactly(kind: type, words: str) -> Decode:
    def decode(item: Any, path: str) -> Any:
        if type(item) is not kind:
            raise _MalformedError(f"{path} must be {words}, not {_short(item)}")
        return item

    return decode


def _anything(item: Any, path: str) -> Any:
    return tuple(_anything(each, path) for each in item) if isinstance(item, list) else item


_SCALARS: Mapping[Any, Decode] = {
    str: _exactly(str, "a string"), int: _exactly(int, "an integer"), bool: _exactly(bool, "true or false"),
    float: _float, Any: _anything,
}  # fmt: skip


def _short(item: Any) -> str:
    text = json.dumps(item, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."
