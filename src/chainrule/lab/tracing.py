"""Writes down what PyTorch code comes down to: a mode that takes operations apart and writes the primitives.

PyTorch's own decompositions (`torch._decomp`) express operations by primitives that neither broadcast nor promote types
(`torch._prims`). Of what depends on no variable only the numbers are kept. What moves elements is run on their places
instead: where each came from is all that it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chainrule.capture.own_mode import OwnMode
from chainrule.graph.trees import map_leaves, tensors_in
from chainrule.lab.decompositions import OWN, aten
from chainrule.lab.instructions import TYPES, Indices, NoProgramError, Operand, Writer, Written
from chainrule.pytorch_internals import decomposition_table

COUNTED = 512  # elements of a mask

Given = dict[str, Any]
Emit = Callable[["Tracer", str, Any, Given, Any], None]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTWISE = _names(
    "neg abs sqrt rsqrt reciprocal cbrt exp expm1 exp2 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh "
    "asinh acosh atanh erf erfc floor ceil round trunc sign signbit isfinite bitwise_not add sub mul div pow maximum "
    "minimum fmax fmin atan2 hypot fmod remainder eq ne lt le gt ge bitwise_and bitwise_or bitwise_xor where"
)
REDUCTIONS = _names("sum prod amax amin")
MOVES = _names(
    "as_strided broadcast_in_dim collapse collapse_view split_dim expand_dims squeeze transpose view_of slice rev "
    "reshape cat clone view _unsafe_view permute expand select t unbind split split_with_sizes diagonal unfold flip "
    "alias detach roll repeat constant_pad_nd tril triu slice_scatter select_scatter diagonal_scatter "
    "as_strided_scatter stack unsqueeze lift_fresh contiguous lift diag_embed slice_in_dim lift_fresh_copy"
)
TURNS = _names("transpose_ t_ squeeze_ unsqueeze_ swapaxes_ swapdims_ as_strided_ detach_")
PICKS = {"gather": "index", "index": "indices", "index_select": "index", "embedding": "indices"}


class Tracer(OwnMode):
    """Writes the primitives of all operations that depend on a variable.

    What is known is where the numbers of each memory come from, so a view needs nothing, and a write to a part of a
    memory is one to what is known of it. `guards` are the whole numbers that Python code read on the way: the
    primitives hold while these stay the same.
    """

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self.writer = writer
        self.guards: list[tuple[Operand, int]] = []
        self._memory: dict[int, Operand] = {}  # by address: each element of a memory that depends on a variable
        self._alive: list[Tensor] = []  # so that no other memory gets the address of a known one

    def variable(self, data: Tensor) -> Tensor:
        """A copy of these numbers that is a variable of the program."""
        made = data.detach().clone(memory_format=torch.contiguous_format)
        self.put(made, Operand(self.writer.slot(data.dtype, data.numel())))
        return made

    def copied(self, data: Tensor) -> tuple[Tensor, int]:
        """A copy of these numbers that has a slot of its own, and the slot."""
        made = data.clone(memory_format=torch.contiguous_format)
        operand = self.writer.copied(self.operand(data), data.dtype, data.numel())
        self.put(made, operand)
        return made, operand.slot

    def put(self, tensor: Tensor, operand: Operand) -> None:
        """Say where the numbers of a tensor come from, in row-major order; what else is in its memory stays."""
        if not tensor.numel():
            return
        whole, places = self._whole(tensor), _in_memory(tensor)
        address = _address(tensor)
        if address not in self._memory:
            self._alive.append(tensor)
        if len(places) == whole.numel():
            order = np.empty_like(places)
            order[places] = np.arange(len(places))
            self._memory[address] = operand.at(order)
            return
        before = self._memory.get(address) or self.writer.constant(whole)
        joined = self.writer.write("join", tensor.dtype, whole.numel() + len(places), [before, operand])
        order = np.arange(whole.numel())
        order[places] = whole.numel() + np.arange(len(places))
        self._memory[address] = joined.at(order)

    def operand(self, tensor: Tensor) -> Operand:
        """Where the numbers of a tensor come from, in row-major order."""
        memory = self._known(tensor)
        return self.writer.constant(tensor) if memory is None else memory.at(_in_memory(tensor))

    def _known(self, tensor: Tensor) -> Operand | None:
        if not tensor.numel() or tensor.is_meta:
            return None
        return self._memory.get(_address(tensor))

    def _whole(self, tensor: Tensor) -> Tensor:
        """All of the memory of a tensor."""
        count = tensor.untyped_storage().nbytes() // tensor.itemsize
        return tensor.as_strided((count,), (1,), 0)

    def varies(self, tree: Any) -> bool:
        """Whether anything in a tree of arguments depends on a variable."""
        return any(self._known(each) is not None for each in tensors_in(tree))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
        if not self.varies(given):
            return func(*args, **kwargs)
        space, _, name = func._schema.name.rpartition("::")
        if name.endswith("_like") or name.startswith(("new_", "empty", "resize")):
            return func(*args, **kwargs)  # of which the shape alone is read
        if name in ("_local_scalar_dense", "item"):
            return self._read(given["self"], func(*args, **kwargs))
        if name == "nonzero":
            return self._counted(given["self"], func(*args, **kwargs))
        if name in TURNS:
            return func(*args, **kwargs)  # the numbers stay where they are
        if func._schema.is_mutable and space == "aten":
            return self._write(func, name, args, kwargs, given)
        if name in ("view", "_unsafe_view", "_reshape_alias"):  # a result may lie in memory as PyTorch's own does not
            func, args, kwargs = aten.reshape.default, (given["self"], given["size"]), {}
            given, name = {"self": given["self"], "shape": given["size"]}, "reshape"
        emit = _emitter(space, name.removesuffix("_copy"))
        if emit is None or (emit is _moved and self.varies(given.get(PICKS.get(name, "")))):
            for known in (OWN.get(func), decomposition_table.get(func), func.decompose):
                if known is not None:
                    with self:
                        found = known(*args, **kwargs)
                    if found is not NotImplemented:
                        return found
            raise NoProgramError(f"`{name}` does not come down to the primitives")
        out = func(*args, **kwargs)
        known_memory = {_address(each) for each in tensors_in(given) if each.numel()}
        if not any(_address(each) in known_memory for each in tensors_in(out) if each.numel()):  # else these are views
            emit(self, name.removesuffix("_copy"), func, given, out)
        return out

    def _write(self, func: Any, name: str, args: Any, kwargs: Any, given: Given) -> Any:
        """An operation in place: what its function gives is written to its first argument's memory, or `out`'s."""
        target = given.get("out", args[0])
        if name == "copy_":
            operand = _converted_to(self, _spread(self, given["src"], target), target.dtype, target.numel())
            out = func(*args, **kwargs)
            self.put(target, operand)
            return out
        functional = _functional(func, name)
        if functional is None:
            raise NoProgramError(f"`{name}` does not come down to the primitives")
        with self:
            made = functional(*args, **{key: each for key, each in kwargs.items() if key != "out"})
        operand = _converted_to(self, self.operand(made), target.dtype, target.numel())
        out = func(*args, **kwargs)
        self.put(target, operand)
        return out

    def _read(self, tensor: Tensor, number: Any) -> Any:
        """A number that Python code reads: what is traced holds as long as it stays the same."""
        if isinstance(number, (float, complex)):
            raise NoProgramError("a number is read out of a tensor")
        self.guards.append((self.operand(tensor), int(number)))
        return number

    def _counted(self, tensor: Tensor, found: Tensor) -> Tensor:
        """The places of the elements that are not 0: what is traced holds as long as they are the same."""
        if tensor.numel() > COUNTED:
            raise NoProgramError("which elements are counted depends on too many numbers")
        with self:
            mask = tensor.to(torch.bool)
        operand, truths = self.operand(mask), mask.reshape(-1).tolist()
        self.guards += [(operand.at(np.array([place])), int(truth)) for place, truth in enumerate(truths)]
        return found


def _emitter(space: str, name: str) -> Emit | None:
    if space == "prims" and name in ELEMENTWISE:
        return _elementwise
    if space == "prims" and name in REDUCTIONS:
        return _reduced
    return _moved if name in MOVES else _emitters.get(name)


def _functional(func: Any, name: str) -> Any:
    """What gives the result that an operation writes to its first argument, or to `out`; None where nothing does."""
    packet: Any = getattr(aten, name.removesuffix("_"), None)
    if name.endswith("_"):
        return getattr(packet, func._overloadname, None)
    wanted = [(each.name, str(each.type)) for each in func._schema.arguments if each.name != "out"]
    overloads = (getattr(packet, each) for each in ([] if packet is None else packet.overloads()))
    taken = ((each, [(a.name, str(a.type)) for a in each._schema.arguments]) for each in overloads)
    return next((each for each, arguments in taken if arguments == wanted), None)


def _places(shape: Sequence[int], first: int = 0) -> Tensor:
    """The places of the elements of a tensor, in row-major order."""
    return torch.arange(first, first + prod(shape)).reshape(tuple(shape))


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() - int(tensor.storage_offset()) * tensor.itemsize


def _in_memory(tensor: Tensor) -> Indices:
    """Where in their memory the elements of a tensor lie, in row-major order."""
    places = np.zeros((1,) * tensor.dim(), dtype=np.int64)
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        places = places + (np.arange(size) * stride).reshape(
            [-1 if each == axis else 1 for each in range(tensor.dim())]
        )
    return places.reshape(-1) + int(tensor.storage_offset())


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one memory have elements in common."""
    return bool(np.intersect1d(_in_memory(one), _in_memory(other)).size)


def _in_a_row(places: Tensor) -> Indices:
    return places.reshape(-1).numpy()


def _spread(tracer: Tracer, given: Any, out: Tensor) -> Written:
    """An operand in the shape of a result."""
    if not isinstance(given, Tensor):
        return given  # type: ignore[no-any-return]
    operand = tracer.operand(given)
    return operand if given.shape == out.shape else operand.at(_in_a_row(_places(given.shape).expand(out.shape)))


def _elementwise(tracer: Tracer, name: str, func: Any, given: Given, out: Tensor) -> None:
    operands = [_spread(tracer, each, out) for each in given.values() if isinstance(each, (Tensor, float, int))]
    tracer.put(out, tracer.writer.write(name, out.dtype, out.numel(), operands))


def _converted(tracer: Tracer, name: str, func: Any, given: Given, out: Tensor) -> None:
    tracer.put(out, _converted_to(tracer, _spread(tracer, tensors_in(given)[0], out), out.dtype, out.numel()))


def _overwritten(tracer: Tracer, name: str, func: Any, given: Given, out: Tensor) -> None:
    """copy: the source, in the shape and type of what it was written to."""
    source = given["src"] if "src" in given else given["b"]
    tracer.put(out, _converted_to(tracer, _spread(tracer, source, out), out.dtype, out.numel()))


def _converted_to(tracer: Tracer, operand: Written, dtype: torch.dtype, size: int) -> Operand:
    if isinstance(operand, Operand) and TYPES.get(dtype) == tracer.writer.types[operand.slot]:
        return operand
    return tracer.writer.write("convert", dtype, size, [operand])


# -- moved ------------------------------------------------------------------------------------------------------------


def _moved(tracer: Tracer, name: str, func: Any, given: Given, out: Any) -> None:
    """What an operation that moves elements makes of their places, counted from 1: 0 is what it fills in."""
    index = PICKS.get(name)
    sources = list(tensors_in({key: each for key, each in given.items() if key != index}))
    first, counted, replaced = 1, [], {}
    for each in sources:
        if id(each) not in replaced:
            replaced[id(each)] = _places(each.shape, first)
            counted.append(each)
            first += each.numel()
    arguments = {
        key: each if key == index else map_leaves(lambda leaf: replaced.get(id(leaf), leaf), each)
        for key, each in given.items()
    }
    fill = arguments.get("value", 0) if name == "constant_pad_nd" else 0
    if name == "constant_pad_nd":
        arguments["value"] = 0
    found = _call(func, arguments)
    source = _joined(tracer, counted)
    outs, moved = ((out,), (found,)) if isinstance(out, Tensor) else (tuple(out), tuple(found))
    for made, places in zip(outs, moved, strict=True):
        row = _in_a_row(places)
        if row.size and not row.min():
            tracer.put(made, _filled(tracer, source, made, float(fill)).at(row))
        else:
            tracer.put(made, source.at(row - 1))


def _call(func: Any, arguments: Given) -> Any:
    schema = func._schema.arguments
    positional = [arguments[each.name] for each in schema if not each.kwarg_only and each.name in arguments]
    return func(
        *positional,
        **{each.name: arguments[each.name] for each in schema if each.kwarg_only and each.name in arguments},
    )


def _joined(tracer: Tracer, tensors: list[Tensor]) -> Operand:
    """The elements of several tensors in one row."""
    if len(tensors) == 1:
        return tracer.operand(tensors[0])
    size = sum(each.numel() for each in tensors)
    return tracer.writer.write("join", tensors[0].dtype, size, [tracer.operand(each) for each in tensors])


def _filled(tracer: Tracer, source: Operand, made: Tensor, fill: float) -> Operand:
    """The elements of a source after one of a constant."""
    size = tracer.writer.sizes[source.slot] if source.places is None else len(source.places)
    constant = tracer.writer.constant(torch.tensor([fill]).to(made.dtype))
    return tracer.writer.write("join", made.dtype, size + 1, [constant, source])


# -- sums and products ------------------------------------------------------------------------------------------------


def _rows(tracer: Tracer, tensor: Tensor, dims: Sequence[int] | None) -> tuple[Operand, int]:
    """The elements of a tensor, those along some axes last, and how many these are."""
    dims = range(tensor.dim()) if dims is None else dims
    last = sorted({each % max(tensor.dim(), 1) for each in dims}) if tensor.dim() else []
    order = [each for each in range(tensor.dim()) if each not in last] + last
    count = 1
    for each in last:
        count *= tensor.shape[each]
    return tracer.operand(tensor).at(_in_a_row(_places(tensor.shape).permute(order))), count


def _reduced(tracer: Tracer, name: str, func: Any, given: Given, out: Tensor) -> None:
    tensor = tensors_in(given)[0]
    operand, count = _rows(tracer, tensor, given.get("dims"))
    tracer.put(out, tracer.writer.write(name, out.dtype, out.numel(), [operand], count))


def _extreme(tracer: Tracer, name: str, func: Any, given: Given, out: Any) -> None:
    """max and min along an axis: the number and its place; of all: the number; argmax and argmin: the place."""
    dim, kind = given.get("dim"), "max" if "max" in name else "min"
    operand, count = _rows(tracer, given["self"], None if dim is None else [dim])
    if isinstance(out, Tensor):
        wanted = f"arg{kind}" if name.startswith("arg") else f"a{kind}"
        tracer.put(out, tracer.writer.write(wanted, out.dtype, out.numel(), [operand], count))
        return
    tracer.put(out[0], tracer.writer.write(f"a{kind}", out[0].dtype, out[0].numel(), [operand], count))
    tracer.put(out[1], tracer.writer.write(f"arg{kind}", out[1].dtype, out[1].numel(), [operand], count))


def _running(tracer: Tracer, name: str, func: Any, given: Given, out: Tensor) -> None:
    """cumsum and cumprod along an axis."""
    tensor = given["self"]
    if not tensor.dim():
        tracer.put(out, tracer.operand(tensor))
        return
    operand, count = _rows(tracer, tensor, [given["dim"]])
    made = tracer.writer.write(name, out.dtype, out.numel(), [operand], count)
    dim = given["dim"] % tensor.dim()
    order = [each for each in range(tensor.dim()) if each != dim] + [dim]
    back = _places([tensor.shape[each] for each in order]).permute([order.index(each) for each in range(tensor.dim())])
    tracer.put(out, made.at(_in_a_row(back)))


def _product(tracer: Tracer, name: str, func: Any, given: Given, out: Tensor) -> None:
    """mm and bmm."""
    a, b = given["self"], given["mat2"]
    batch = a.shape[0] if a.dim() == 3 else 1
    sizes = batch, a.shape[-2], a.shape[-1], b.shape[-1]
    tracer.put(
        out, tracer.writer.write("product", out.dtype, out.numel(), [tracer.operand(a), tracer.operand(b)], *sizes)
    )


# -- by computed places -----------------------------------------------------------------------------------------------


def _taken(tracer: Tracer, name: str, func: Any, given: Given, out: Tensor) -> None:
    """take: the elements at computed places."""
    operands = [tracer.operand(given["self"]), tracer.operand(given["index"])]
    tracer.put(out, tracer.writer.write("take", out.dtype, out.numel(), operands))


def _written(tracer: Tracer, name: str, func: Any, given: Given, out: Tensor) -> None:
    """put: elements written, or added, at computed places."""
    operands = [tracer.operand(given[each]) for each in ("self", "index", "source")]
    tracer.put(out, tracer.writer.write("put", out.dtype, out.numel(), operands, int(given.get("accumulate", False))))


_emitters: dict[str, Emit] = {
    "convert_element_type": _converted, "copy": _overwritten, "mm": _product,
    "bmm": _product, "max": _extreme, "min": _extreme, "argmax": _extreme, "argmin": _extreme, "cumsum": _running,
    "cumprod": _running, "take": _taken, "put": _written,
}  # fmt: skip
