"""Tensors whose numbers are not ours to read: of a class that runs its own code, or without a plain memory of numbers.

To copy or measure one would run the user's code (a quantised weight, PyTorch's fake tensors), raise, or follow a
pointer to nothing. So a recording knows their shape and type alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from chainrule.pytorch_internals import _is_functional_tensor, is_functorch_wrapped_tensor

_PLAIN = frozenset({Tensor, nn.Parameter, nn.Buffer})
_SPARSE = frozenset({torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc})
_no_code: Any = Tensor.__torch_dispatch__


def is_opaque(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are not ours to read; False on `meta`, where there are none."""
    if type(tensor) not in _PLAIN and (type(tensor).__torch_dispatch__ is not _no_code or is_lazy(tensor)):
        return True
    if tensor.is_meta:
        return False
    if tensor.layout is not torch.strided:
        return tensor.layout not in _SPARSE
    if tensor.is_quantized or tensor.is_nested:
        return True
    try:
        if tensor.data_ptr():
            return False
    except RuntimeError:  # a wrapper of functorch's
        return True
    return _is_functional_tensor(tensor) or (tensor.numel() > 0 and not tensor._is_zerotensor())  # or freed


def kind_of(tensor: Tensor) -> str:
    """What tensors like this one are, which have no numbers that are ours to read; "" for any other tensor."""
    if not is_opaque(tensor):
        return "on the device meta" if tensor.is_meta else ""
    if type(tensor) not in _PLAIN:
        return f"of the class {type(tensor).__name__}, which runs code of its own"
    if tensor.is_nested or tensor.is_quantized:
        return "nested" if tensor.is_nested else "quantised"
    if tensor.layout is not torch.strided:
        return f"in the layout {str(tensor.layout).removeprefix('torch.')}"
    wraps = is_functorch_wrapped_tensor(tensor) or _is_functional_tensor(tensor)
    return "inside of a transform of PyTorch's" if wraps else "without memory, which was freed"


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """The shape of any tensor; of a nested one as if its parts were padded to the largest."""
    if is_lazy(tensor):
        return (0,)
    if tensor.is_nested and tensor.layout is torch.strided:
        sizes = tensor._nested_tensor_size()
        return (len(sizes), *sizes.amax(0).tolist()) if len(sizes) else (0,)
    return tuple([size if type(size) is int else _size(tensor, size) for size in tensor.shape])


def _size(tensor: Tensor, size: Any) -> int:
    """A size that is a symbol, without asking for its value: that would change what PyTorch traces."""
    if tensor.is_nested:
        offsets: Tensor = tensor.offsets()  # type: ignore[attr-defined]
        return int(offsets.diff().max()) if offsets.numel() > 1 and not (is_opaque(offsets) or offsets.is_meta) else 0
    return size.node.hint if size.node.has_hint() else 0


def type_of(tensor: Tensor) -> torch.dtype:
    """The type of a tensor's numbers; of a quantised one, of those that it stands for."""
    return torch.float32 if not is_lazy(tensor) and tensor.is_quantized else tensor.dtype


def has_strides(tensor: Tensor) -> bool:
    """Whether its size and strides are numbers."""
    if is_lazy(tensor) or tensor.layout is not torch.strided or tensor.is_nested:
        return False
    return all(type(size) is int for size in (*tensor.shape, *tensor.stride()))


def shaped_like(like: Tensor) -> Tensor:
    """A tensor without numbers, of the same size, strides and place in its memory."""
    made = torch.empty_strided(like.size(), like.stride(), dtype=like.dtype, device="meta")
    if offset := like.storage_offset():
        size = offset * made.itemsize + made.untyped_storage().nbytes()
        memory = torch.empty(size, dtype=torch.uint8, device="meta").untyped_storage()
        made = torch.empty(0, dtype=made.dtype, device="meta").set_(memory, offset, made.size(), made.stride())
    return made
