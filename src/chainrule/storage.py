"""A recording in one safetensors file: its tensors as they are, and everything else as JSON in the header.

Nothing is pickled and nothing in a file is ever run: operations are named (`aten.addmm.default`) and looked up among
those that PyTorch has registered, a user's own `autograd.Function` keeps its name alone. Reading is strict: what does
not fit the types of `graph` is refused.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from chainrule import graph as facts
from chainrule.assemble import Rerun
from chainrule.errors import StorageError
from chainrule.graph import Graph

FORMAT = "chainrule-recording"
VERSION = 1

_kinds = {
    each.__name__: each
    for each in (
        facts.Place, facts.Ref, facts.Value, facts.Operation, facts.Edge, facts.Passage, facts.Node, facts.Call,
        facts.Backward, facts.ParameterUpdate, facts.Update, facts.Parameter, facts.Event, facts.Module, facts.Graph,
    )
}  # fmt: skip
_of_torch = {torch.dtype: "dtype", torch.device: "device", torch.layout: "layout", torch.memory_format: "memory_format"}


def write(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write a graph to `path`, all at once: an interrupted write leaves the old file.

    Raises StorageError where the file cannot be written.
    """
    packer = _Packer()
    body = json.dumps(packer.pack(graph), allow_nan=False)
    write_atomically(path, save(packer.tensors, {"format": FORMAT, "version": str(VERSION), "graph": body}))


def read(path: str | os.PathLike[str]) -> Graph:
    """Read a graph that `write` wrote.

    Raises StorageError where the file is missing, cut short, not a recording, of a newer version, or malformed.
    """
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            header = file.metadata() or {}
            _check(header, path)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the file is no dict)
    except FileNotFoundError as error:
        raise StorageError(f"{path}: there is no such file. Give a file that recording.save() wrote.") from error
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise StorageError(
            f"{path} is not a readable safetensors file ({error}). It is cut short, corrupt, or of another kind; "
            "record the step again, or take a whole copy."
        ) from error
    try:
        graph = _Unpacker(tensors).unpack(json.loads(header["graph"]))
        _check_indices(graph)
    except (KeyError, TypeError, ValueError, RecursionError, IndexError) as error:
        raise StorageError(
            f"{path}: the header does not describe a recording ({error}). Record the step again."
        ) from error
    return graph


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file beside `path`, then put it in its place: a crash or a full disk leaves the old file.

    Raises StorageError where that fails.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written: {error.strerror}. Give a path in a folder you can write to."
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except OSError as error:
        with suppress(OSError):
            os.unlink(name)
        raise StorageError(
            f"{target} could not be written: {error.strerror}. What stood there before is unharmed."
        ) from error


def _check(header: dict[str, str], path: object) -> None:
    if header.get("format") != FORMAT:
        raise StorageError(
            f"{path} is a safetensors file, but not a recording of chainrule. Give one that recording.save() wrote."
        )
    version = header.get("version", "")
    if not version.isdigit() or int(version) > VERSION:
        raise StorageError(
            f"{path} has format version {version or 'none'}, and this chainrule reads up to {VERSION}. Update it."
        )


class _Packer:
    """Dataclasses to JSON, tensors set aside under a key each."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._keys: dict[int, str] = {}

    def pack(self, item: Any) -> Any:
        """One item of a graph as JSON."""
        if item is None or isinstance(item, (bool, int, str)):
            return item
        if isinstance(item, float):
            return item if math.isfinite(item) else {"float": str(item)}
        if isinstance(item, complex):
            return {"complex": [self.pack(item.real), self.pack(item.imag)]}
        if isinstance(item, Tensor):
            return {"tensor": self._key(item), "complex": item.is_complex()}
        if isinstance(item, tuple):
            return {"tuple": [self.pack(each) for each in item]}
        if isinstance(item, list):
            return [self.pack(each) for each in item]
        if isinstance(item, dict):
            return {"dict": [[self.pack(key), self.pack(value)] for key, value in item.items()]}
        if is_dataclass(item):
            return {type(item).__name__: {each.name: self.pack(getattr(item, each.name)) for each in fields(item)}}
        return self._named(item)

    def _named(self, item: Any) -> Any:
        if isinstance(item, Rerun):
            return {"operation": None if isinstance(item.function, type) else str(item.function)}
        if isinstance(item, type):
            return {"class": item.__name__}
        for kind, name in _of_torch.items():
            if isinstance(item, kind):
                return {name: str(item)}
        return {"other": str(type(item).__name__)}

    def _key(self, tensor: Tensor) -> str:
        key = self._keys.get(id(tensor))
        if key is None:
            key = self._keys[id(tensor)] = str(len(self._keys))
            data = tensor.detach()
            data = data if data.layout is torch.strided else data.to_dense()
            data = torch.view_as_real(data.resolve_conj()) if data.is_complex() else data
            self.tensors[key] = data.resolve_neg().contiguous().clone().cpu()
        return key


class _Unpacker:
    """The way back, with every type checked by name."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def unpack(self, item: Any) -> Any:
        """One item of a graph from JSON."""
        if isinstance(item, list):
            return [self.unpack(each) for each in item]
        if not isinstance(item, dict):
            return item
        if "tensor" in item:
            data = self._tensors[item["tensor"]]
            return torch.view_as_complex(data) if item["complex"] else data
        ((kind, content),) = item.items()
        if kind in _kinds:
            return self._dataclass(_kinds[kind], content)
        return _makers[kind](self, content)

    def _dataclass(self, kind: type, content: dict[str, Any]) -> Any:
        expected = {each.name for each in fields(kind)}
        if set(content) != expected:
            raise ValueError(f"a {kind.__name__} has the fields {sorted(content)}, not {sorted(expected)}")
        return kind(**{name: self.unpack(value) for name, value in content.items()})


def _operation(name: str | None) -> Rerun | None:
    """An operation that PyTorch has registered under this name; None for one that this torch has not."""
    if name is None:
        return None
    if not re.fullmatch(r"\w+\.\w+\.\w+", name):
        raise ValueError(f"{name!r} is no operation's name")
    space, operation, overload = name.split(".")
    found: Any = torch.ops
    for part in (space, operation, overload):
        found = getattr(found, part, None)
    return Rerun(found) if isinstance(found, torch._ops.OpOverload) else None


def _attribute(name: str) -> Any:
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
        raise ValueError(f"{name!r} is no number type, layout or memory format")
    return found


_makers: dict[str, Callable[[_Unpacker, Any], Any]] = {
    "float": lambda unpacker, text: float(text),
    "complex": lambda unpacker, parts: complex(*(unpacker.unpack(each) for each in parts)),
    "tuple": lambda unpacker, items: tuple(unpacker.unpack(each) for each in items),
    "dict": lambda unpacker, items: {unpacker.unpack(key): unpacker.unpack(value) for key, value in items},
    "operation": lambda unpacker, name: _operation(name),
    "class": lambda unpacker, name: type(str(name), (), {}),
    "dtype": lambda unpacker, name: _attribute(name),
    "layout": lambda unpacker, name: _attribute(name),
    "memory_format": lambda unpacker, name: _attribute(name),
    "device": lambda unpacker, name: torch.device(name),
    "other": lambda unpacker, name: None,
}


def _check_indices(graph: Graph) -> None:
    """Every index must lead somewhere, or whatever reads the graph later would fail far from here."""
    if not isinstance(graph, Graph):
        raise ValueError(f"a {type(graph).__name__} stands where the graph should")
    values, operations, nodes = len(graph.values), len(graph.operations), len(graph.nodes)
    for each in graph.operations:
        _within(each.outputs, values, f"operation {each.index}")
        _within((each.node,), nodes, f"operation {each.index}")
    for node in graph.nodes:
        _within((*node.outputs, node.leaf, *(edge.value for edge in node.edges)), values, f"node {node.index}")
        _within((edge.node for edge in node.edges), nodes, f"node {node.index}")
        _within((node.operation,), operations, f"node {node.index}")
    for value in graph.values:
        _within((value.operation,), operations, f"value {value.index}")
        _within((value.node,), nodes, f"value {value.index}")
    for backward in graph.backwards:
        _within((backward.loss,), values, "a backward pass")


def _within(indices: Any, count: int, where: str) -> None:
    for index in indices:
        if index is not None and not (isinstance(index, int) and 0 <= index < count):
            raise ValueError(f"{where} refers to number {index!r} of {count}")
