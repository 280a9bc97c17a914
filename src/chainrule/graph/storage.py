"""A recording in one safetensors file: its tensors, and everything else as JSON in the header.

Nothing is pickled and nothing in a file is code. Operations are named (`aten.addmm.default`) and looked up among
PyTorch's own; a user's own `autograd.Function` or registered operation keeps its name alone. Reading is strict: a file
is refused where its checksum is another, where a field does not fit its type in `graph` or `snapshot`, or where an
index leads nowhere.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import stat
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from numpy import from_dlpack  # unlike `Tensor.numpy`, it leaves the memory of the tensor resizable
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from chainrule.errors import StorageError
from chainrule.gc_control import gc_paused
from chainrule.graph import graph as facts
from chainrule.graph import snapshot as snapshots
from chainrule.graph.graph import Graph
from chainrule.graph.indices import check_indices
from chainrule.graph.reexecution import Reexecution, WriteThroughView
from chainrule.graph.snapshot import Snapshot
from chainrule.pytorch_internals import OpOverload

FORMAT = "chainrule-recording"
VERSION = 7
IN_HEADER = 2**24  # characters of JSON; longer JSON is stored beside the tensors, as a header takes 100 MB at most

_kinds = {
    each.__name__: each
    for module in (facts, snapshots)
    for each in vars(module).values()
    if isinstance(each, type) and is_dataclass(each)
}
_of_torch = {torch.dtype: "dtype", torch.device: "device", torch.layout: "layout", torch.memory_format: "memory_format"}
_attributes = {str(each): each for each in vars(torch).values() if isinstance(each, tuple(_of_torch))}
_SPACES = ("aten", "prims")
_REACHES_OUT = ("from_file",)  # operations that touch more than memory, which no file may run
_HEADER = {"format", "version", "graph", "checksum"}
_MALFORMED = (
    KeyError, TypeError, ValueError, RecursionError, IndexError, AttributeError, RuntimeError, OverflowError
)  # fmt: skip


@gc_paused()
def write(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write a graph to `path`. An interrupted write leaves the old file.

    Raises StorageError where the file cannot be written, or where a tensor is of a kind that safetensors cannot hold.
    """
    packer = _Packer()
    try:
        body = json.dumps(packer.pack(graph), allow_nan=False)
        header = {"format": FORMAT, "version": str(VERSION)}
        if len(body) <= IN_HEADER:
            header["graph"] = body
        else:
            packer.tensors["graph"] = torch.frombuffer(bytearray(body.encode()), dtype=torch.uint8)
        header["checksum"] = _checksum(header, packer.tensors)
        # Each tensor goes straight into the file: collecting all of them first would take their memory twice.
        write_atomically(path, lambda file: save_file(packer.tensors, file, header))
    except _MALFORMED as error:
        raise StorageError(
            f"{path}: the recording holds something that safetensors cannot store ({_brief(error)}). Save it in "
            "another form, such as .html."
        ) from error


@gc_paused()
def read(path: str | os.PathLike[str]) -> Graph:
    """Read a graph that `write` wrote.

    Raises StorageError where the file is missing, cut short, not a recording, of another version, or malformed.
    """
    if os.path.isdir(path):
        raise StorageError(f"{path} is a folder. Give a file that recording.save() wrote.")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            header = file.metadata() or {}
            _check(header, path)
            if unknown := header.keys() - _HEADER:  # a damaged name would hide the checksum
                raise ValueError(f"its header has the unknown field {min(unknown)!r}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the file is no dict)
            if header.get("checksum", whole := _checksum(header, tensors)) != whole:
                raise ValueError("its checksum is not that of its content")
    except FileNotFoundError as error:
        raise StorageError(f"{path}: there is no such file. Give a file that recording.save() wrote.") from error
    except (SafetensorError, OSError, MemoryError, *_MALFORMED) as error:
        raise StorageError(
            f"{path} is not a readable safetensors file ({_brief(error)}). It is cut short, corrupt, or of another "
            "kind; record the step again, or take a whole copy."
        ) from error
    try:
        body = header["graph"] if "graph" in header else bytes(tensors.pop("graph").numpy()).decode()
        graph = _Unpacker(tensors).unpack(json.loads(body))
        if not isinstance(graph, Graph):
            raise ValueError(f"a {type(graph).__name__} stands where the graph should")
        check_indices(graph)
    except _MALFORMED as error:
        raise StorageError(
            f"{path}: the header does not describe a recording ({_brief(error)}). Record the step again."
        ) from error
    return graph


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[Path], None]) -> None:
    """Write a file beside `path`, then move it into place: a crash or a full disk leaves the old file.

    `content` is bytes, or a function that writes to the path it is given. A link stays a link, and an existing file
    keeps its permissions. Raises StorageError where writing fails.
    """
    target = Path(os.path.realpath(path))
    temporary, handle = _beside(target, path)
    try:
        with os.fdopen(handle, "wb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not callable(content):
                file.write(content)
        if callable(content):
            content(temporary)  # safetensors replaces the file by one that nobody else may read
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            mode = target.stat().st_mode
        os.chmod(temporary, stat.S_IMODE(mode))
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or _brief(error)
        raise StorageError(f"{path} could not be written: {said}. What stood there before is unharmed.") from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)  # it is gone once it was moved into place


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise StorageError where `write_atomically` would fail to create its file."""
    temporary, handle = _beside(Path(os.path.realpath(path)), path)
    os.close(handle)
    os.unlink(temporary)


def _beside(target: Path, path: str | os.PathLike[str]) -> tuple[Path, int]:
    """A new file in the folder of `target`, which was given as `path`, and its open handle."""
    temporary = target.parent / f".{target.name[:100]}.{secrets.token_hex(4)}"
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}. Give a path in a folder you can write to."
        ) from error
    return temporary, handle


def _check(header: dict[str, str], path: object) -> None:
    if header.get("format") != FORMAT:
        raise StorageError(
            f"{path} is a safetensors file, but not a recording of chainrule. Give one that recording.save() wrote."
        )
    version = header.get("version", "")
    if version != str(VERSION):
        older = version.isdigit() and int(version[:20]) < VERSION
        raise StorageError(
            f"{path} has format version {version[:20] or 'none'}, and this chainrule reads {VERSION}. "
            f"{'Record the step again' if older else 'Update chainrule'}."
        )


def checksum(data: Tensor) -> int:
    """A checksum of a dense tensor's numbers."""
    flat = data.detach().resolve_conj().resolve_neg().contiguous().cpu()
    # The stride of a single element may be anything.
    numbers: Any = from_dlpack(flat.as_strided((flat.numel(),), (1,)).view(torch.uint8))
    return zlib.crc32(numbers)


def _checksum(header: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """A checksum of all that is in a file. One that an older chainrule wrote has none."""
    parts = [header.get("graph", ""), *(f"{k} {x.dtype} {x.shape} {checksum(x)}" for k, x in sorted(tensors.items()))]
    return f"{zlib.crc32(chr(10).join(parts).encode(errors='backslashreplace')):08x}"


def _brief(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 200 else f"{text[:200]}..."


# -- to JSON and back -------------------------------------------------------------------------------------------------


class _Packer:
    """Turns dataclasses into JSON, and collects tensors under a key each."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._keys: dict[int, str] = {}
        self._memories: set[int] = set()
        self._read: list[Tensor] = []

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
        if isinstance(item, slice):
            return {"slice": [self.pack(each) for each in (item.start, item.stop, item.step)]}
        if _kinds.get(type(item).__name__) is type(item):
            kind, optional = type(item), _optional(type(item))
            names = (each for each in _stored(kind) if each not in optional or getattr(item, each))
            return {kind.__name__: {name: self.pack(getattr(item, name)) for name in names}}
        return self._named(item)

    def _named(self, item: Any) -> Any:
        if item is Ellipsis:
            return {"ellipsis": None}
        if isinstance(item, Reexecution):
            return {"operation": self._function(item.function)}
        if isinstance(item, type):
            return {"class": item.__name__}
        for kind, name in _of_torch.items():
            if isinstance(item, kind):
                return {name: str(item)}
        return {"other": type(item).__name__}

    def _function(self, function: Any) -> Any:
        """An operation's name; of a write through a view also the view's place in its base."""
        if isinstance(function, WriteThroughView):
            name = self._function(function.function)
            return None if name is None else self.pack(vars(function) | {"function": name})
        return str(function) if isinstance(function, OpOverload) and function.namespace in _SPACES else None

    def _key(self, tensor: Tensor) -> str:
        key = self._keys.get(id(tensor))
        if key is None:
            key = self._keys[id(tensor)] = str(len(self._keys))
            data = tensor.detach()
            data = data if data.layout is torch.strided else data.to_dense()
            data = data.clone() if data._is_zerotensor() else data  # autograd's zeros, which have no memory
            data = torch.view_as_real(data.resolve_conj()) if data.is_complex() else data
            data = data.resolve_neg().cpu().contiguous()
            self._read.append(tensor)  # or its id would be reused, as one of an earlier version is made to be read
            memory = data.untyped_storage().data_ptr()
            # Safetensors asks that no two tensors share their memory.
            self.tensors[key] = data.clone() if memory in self._memories else data
            self._memories.add(memory)
        return key


class _Unpacker:
    """Turns JSON back into dataclasses, and checks every type."""

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
        stored, hints = _stored(kind), _hints(kind)
        if not set(stored) - _optional(kind) <= set(content) <= set(stored):
            raise ValueError(f"a {kind.__name__} has the fields {sorted(content)}, not {sorted(stored)}")
        found = {stored[name]: self.unpack(value) for name, value in content.items()}
        for name, field in stored.items():
            if name in content and not _fits(found[field], hints[field]):
                raise TypeError(f"the field {name} of a {kind.__name__} cannot be {str(content[name])[:60]}")
        made = kind(**found)
        if isinstance(made, Snapshot):
            _check_snapshot(made)
        return made


_hints = cache(get_type_hints)


@cache
def _stored(kind: type) -> dict[str, str]:
    """The fields of a dataclass by the names that they have in a file."""
    return {each.metadata.get("stored", each.name): each.name for each in fields(kind)}


@cache
def _optional(kind: type) -> set[str]:
    """The fields that a file may lack: those that are empty are not written."""
    return {each.name for each in fields(kind) if each.metadata.get("optional")}


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(hint), get_args(hint)


def _fits(item: Any, hint: Any) -> bool:
    """Whether an item has a field's type."""
    if hint is Any:
        return True
    origin, arguments = _parts(hint)
    if origin in (Union, UnionType):
        return any(_fits(item, each) for each in arguments)
    if origin is Literal:
        return item in arguments
    if origin is tuple:
        several = len(arguments) == 2 and arguments[1] is Ellipsis
        inner = (arguments[0],) * len(item) if several and isinstance(item, tuple) else arguments
        return isinstance(item, tuple) and len(item) == len(inner) and all(map(_fits, item, inner))
    if origin is dict:
        key, value = arguments
        return isinstance(item, dict) and all(_fits(k, key) and _fits(v, value) for k, v in item.items())
    if origin is Callable:
        return isinstance(item, Reexecution)
    if hint is None or hint is NoneType:
        return item is None
    return isinstance(item, hint) and not (hint is int and isinstance(item, bool))


def _reexecution(content: Any) -> Reexecution | None:
    """The function that runs an operation again; None where it is not one of this torch's."""
    if not isinstance(content, dict):
        found = _operation(content)
        return None if found is None else Reexecution(found)
    if set(content) != set(_VIEW) or not all(_fits(content[name], hint) for name, hint in _VIEW.items()):
        raise ValueError("this is no write through a view")
    found = _operation(content["function"])
    if found is None:
        return None
    written = WriteThroughView.__new__(WriteThroughView)
    vars(written).update(content | {"function": found})
    return Reexecution(written)


_Shape = tuple[int, ...]
_VIEW = {
    "function": str, "argument": str, "size": _Shape, "stride": _Shape, "real": bool, "offset": int,
    "layout": tuple[_Shape, _Shape],
}  # fmt: skip


def _operation(name: str | None) -> Any:
    """An operation of PyTorch's by its name, or None."""
    if name is None:
        return None
    if not re.fullmatch(r"\w+\.\w+\.\w+", name):
        raise ValueError(f"{name!r} is no operation's name")
    space, operation, overload = name.split(".")
    if space not in _SPACES or operation in _REACHES_OUT:
        return None
    found = getattr(getattr(getattr(torch.ops, space), operation, None), overload, None)
    return found if isinstance(found, OpOverload) else None


def _class(name: str) -> type:
    """An empty class of this name, for reports; its code is not in the file. `type()` makes names of all kinds."""
    return type(name, (), {})


def _check_snapshot(snapshot: Snapshot) -> None:
    if any(size < 0 for size in snapshot.shape):
        raise ValueError(f"{snapshot.shape} is no shape")
    data = snapshot.data
    if data is not None and (tuple(data.shape), data.dtype) != (snapshot.shape, snapshot.dtype):
        raise ValueError(f"a tensor is not what its snapshot says, but {tuple(data.shape)} of {data.dtype}")


_makers: dict[str, Callable[[_Unpacker, Any], Any]] = {
    "float": lambda unpacker, text: float(text),
    "complex": lambda unpacker, parts: complex(*(unpacker.unpack(each) for each in parts)),
    "tuple": lambda unpacker, items: tuple(unpacker.unpack(each) for each in items),
    "dict": lambda unpacker, items: {unpacker.unpack(key): unpacker.unpack(value) for key, value in items},
    "slice": lambda unpacker, parts: slice(*(unpacker.unpack(each) for each in parts)),
    "ellipsis": lambda unpacker, content: Ellipsis,
    "operation": lambda unpacker, content: _reexecution(unpacker.unpack(content)),
    "class": lambda unpacker, name: _class(name),
    "dtype": lambda unpacker, name: _attributes[name],
    "layout": lambda unpacker, name: _attributes[name],
    "memory_format": lambda unpacker, name: _attributes[name],
    "device": lambda unpacker, name: torch.device(str(name)),
    "other": lambda unpacker, name: None,
}
