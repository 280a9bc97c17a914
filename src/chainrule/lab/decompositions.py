"""How operations come down to primitives that PyTorch's own decompositions leave whole.

What reads or writes at computed places comes down to `take` and `put`, which count a tensor's elements in a row; a
recurrent kernel to the layer that it replaced. Convolutions and pooling are in `windows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeGuard

import torch
from torch import Tensor

from chainrule.lab.gamma import GAMMA
from chainrule.lab.linear_algebra import LINEAR_ALGEBRA
from chainrule.lab.windows import WINDOWS
from chainrule.pytorch_internals import one_layer_lstm

aten: Any = torch.ops.aten
SORTED = 20_000  # comparisons, up to which elements are sorted


def _flat(index: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """The flat places in a tensor of `shape` that an index along `dim` names, as `gather` counts."""
    index = torch.where(index < 0, index + shape[dim], index)
    place = torch.arange(prod(shape)).reshape(tuple(shape)).narrow(dim, 0, 1)
    for axis, size in enumerate(index.shape):
        place = place.narrow(axis, 0, size) if axis != dim else place
    return index * prod(shape[dim + 1 :]) + place


def gather(self: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> Any:
    """out[i] = self[..., index[i], ...]."""
    if not self.dim():
        return aten.take(self, index)
    return aten.take(self, _flat(index, self.shape, dim % self.dim()))


def scatter_add(self: Tensor, dim: int, index: Tensor, src: Tensor) -> Any:
    """self[..., index[i], ...] += src[i]."""
    return _scattered(self, dim, index, src, True)


def scatter(self: Tensor, dim: int, index: Tensor, src: Tensor) -> Any:
    """self[..., index[i], ...] = src[i]."""
    return _scattered(self, dim, index, src, False)


def scatter_value(self: Tensor, dim: int, index: Tensor, value: float) -> Any:
    """self[..., index[i], ...] = value."""
    return _scattered(self, dim, index, torch.full(index.shape, value, dtype=self.dtype), False)


def _scattered(self: Tensor, dim: int, index: Tensor, src: Tensor, add: bool) -> Any:
    for axis, size in enumerate(index.shape):
        src = src.narrow(axis, 0, size)
    return aten.put(self, _flat(index, self.shape, dim % self.dim()), src, add)


def _is_mask(index: Tensor | None) -> TypeGuard[Tensor]:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _places(self: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """The flat places that `self[indices]` names."""
    if any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in indices):
        split = (each.nonzero().unbind(1) if _is_mask(each) else (each,) for each in indices)
        indices = [each for several in split for each in several]  # the count of elements must not depend on a variable
    known = [dim for dim, each in enumerate(indices) if each is not None]
    whole = torch.broadcast_tensors(*(each for each in indices if each is not None))
    shape, count = whole[0].shape, whole[0].dim()
    adjacent = known == list(range(known[0], known[-1] + 1))
    front = known[0] if adjacent else 0
    rest = [dim for dim in range(self.dim()) if dim not in known]
    before, after = rest[:front], rest[front:]
    places = torch.zeros([1] * (len(rest) + count), dtype=torch.int64)
    for dim, each in zip(known, whole, strict=True):
        wrapped = torch.where(each < 0, each + self.shape[dim], each)
        shaped = wrapped.reshape([1] * len(before) + list(shape) + [1] * len(after))
        places = places + shaped * prod(self.shape[dim + 1 :])
    for axis, kept in enumerate([*before, *[None] * count, *after]):
        if kept is not None:
            along = torch.arange(self.shape[kept]) * prod(self.shape[kept + 1 :])
            places = places + along.reshape([-1 if each == axis else 1 for each in range(places.dim())])
    return places


def index(self: Tensor, indices: Sequence[Tensor | None]) -> Any:
    """self[indices]."""
    return aten.take(self, _places(self, indices))


def index_put(
    self: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False, _: bool = False
) -> Any:
    """self[indices] = values, or += values."""
    mask = indices[0]
    if _is_mask(mask) and len(indices) == 1 and values.numel() == 1 and not accumulate:
        chosen = mask.bool().reshape(*mask.shape, *[1] * (self.dim() - mask.dim()))
        return torch.where(chosen, values.reshape(()).to(self.dtype), self)
    places = _places(self, indices)
    return aten.put(self, places, values.expand(places.shape), accumulate)


def index_select(self: Tensor, dim: int, index: Tensor) -> Any:
    """The slices along `dim` that the index names."""
    dim = dim % max(self.dim(), 1)
    return aten.index(self, [None] * dim + [index])


def index_add(self: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Any:
    """Slices added at the places that the index names."""
    return aten.index_put(self, [None] * (dim % max(self.dim(), 1)) + [index], source * alpha, True)


def embedding(weight: Tensor, indices: Tensor, *_: Any) -> Any:
    """The rows that the indices name."""
    return aten.index(weight, [indices])


def lstm_layer(
    input: Tensor, weight0: Tensor, weight1: Tensor, weight2: Tensor, weight3: Tensor, hx_: Tensor, cx_: Tensor,
    reverse: bool, batch_sizes: Sequence[int], mode: int, hidden_size: int, num_layers: int, has_biases: bool,
    bidirectional: bool, batch_first: bool, train: bool,
) -> Any:  # fmt: skip
    """A layer of an LSTM over all time steps, forwards or backwards."""
    if mode != 2 or batch_sizes:
        return NotImplemented
    weights = [weight0, weight1, *([weight2, weight3] if has_biases else [])]
    hidden = hx_.reshape(hx_.shape[-2:]), cx_.reshape(cx_.shape[-2:])
    out, (h, c) = one_layer_lstm(input, hidden, weights, has_biases, reverse=reverse)
    return out, h.reshape(hx_.shape), c.reshape(cx_.shape), input.new_empty(0)


def attention(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
    attn_mask: Tensor | None = None, scale: float | None = None,
) -> Any:  # fmt: skip
    """softmax(Q K^T scale + mask) V, and the logarithm of the sum in each softmax."""
    if key.shape[-3] != query.shape[-3]:  # heads that are shared
        key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = torch.where(attn_mask, scores, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(torch.softmax(scores, -1), value), torch.logsumexp(scores, -1)


def variance(inp: Tensor, dims: Sequence[int] | None, correction: float = 1, *, output_dtype: Any = None) -> Tensor:
    """The mean square of what is left without the mean."""
    dims = list(range(inp.dim())) if dims is None else list(dims)
    count = prod(inp.shape[each] for each in dims)
    apart = inp - inp.mean(dims, keepdim=True)
    return (apart * apart).sum(dims) / max(count - correction, 0)


def sort(self: Tensor, dim: int = -1, descending: bool = False) -> Any:
    """Each element at the place that so many others come before, and where it was."""
    size = self.shape[dim] if self.dim() else 1
    if not self.dim() or self.numel() * size > SORTED:
        return NotImplemented
    dim %= self.dim()
    rows = self.movedim(dim, -1)
    one, other = rows[..., :, None], rows[..., None, :]
    earlier = torch.ones(size, size, dtype=torch.bool).tril(-1)
    before = torch.where(one == other, earlier, one < other if descending else one > other)
    rank = before.to(torch.int64).sum(-1)
    places = torch.arange(size).expand(rank.shape)
    index = scatter(torch.zeros(rank.shape, dtype=torch.int64), rank.dim() - 1, rank, places).movedim(-1, dim)
    return gather(self, dim, index), index


def stable_sort(self: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """The same, where equal elements stay in their order."""
    return sort(self, dim, descending)


def topk(self: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """The first ones."""
    found = sort(self, dim, largest)
    return found if found is NotImplemented else tuple(each.narrow(dim, 0, k) for each in found)


def kthvalue(self: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The k-th smallest one."""
    found = sort(self, dim)
    if found is NotImplemented:
        return found
    return tuple(each.narrow(dim, k - 1, 1) if keepdim else each.select(dim, k - 1) for each in found)


def median(self: Tensor, dim: int, keepdim: bool = False) -> Any:
    """The lower one of those in the middle."""
    return kthvalue(self, (self.shape[dim] + 1) // 2, dim, keepdim) if self.dim() else NotImplemented


def median_of_all(self: Tensor) -> Any:
    """The same of all elements."""
    found = median(self.reshape(-1), 0)
    return found if found is NotImplemented else found[0]


def cdist(x1: Tensor, x2: Tensor, p: float, compute_mode: int | None) -> Any:
    """The distance of each two rows."""
    return _norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def pdist(self: Tensor, p: float = 2) -> Any:
    """The distance of each two rows, each pair once."""
    one, other = torch.triu_indices(len(self), len(self), 1)
    return _norm(aten.index(self, [one]) - aten.index(self, [other]), p)


def _norm(apart: Tensor, p: float) -> Any:
    if p in (0, float("inf")):
        return apart.abs().amax(-1) if p else (apart != 0).sum(-1).to(apart.dtype)
    return apart.square().sum(-1).sqrt() if p == 2 else apart.abs().pow(p).sum(-1).pow(1 / p)


def logcumsumexp(self: Tensor, dim: int) -> Any:
    """log of the sum of exp up to each element, less the largest one of all, so that exp does not overflow."""
    most = self.amax(dim, keepdim=True) if self.dim() else self
    return (self - most).exp().cumsum(dim).log() + most


def is_all_true(self: Tensor) -> Any:
    """Whether no element is false."""
    return (self == 0).to(torch.int64).sum() == 0


def is_any_true(self: Tensor) -> Any:
    """Whether any element is true."""
    return self.to(torch.int64).sum() > 0


def searchsorted(
    sorted_sequence: Tensor, self: Tensor, *, out_int32: bool = False, right: bool = False, side: str | None = None,
    sorter: Tensor | None = None,
) -> Any:  # fmt: skip
    """How many elements of a sequence in order are smaller, or no larger."""
    if sorter is not None:
        return NotImplemented
    sequence, wanted = sorted_sequence.unsqueeze(-2), self.unsqueeze(-1)
    before = sequence <= wanted if right or side == "right" else sequence < wanted
    return before.to(torch.int32 if out_int32 else torch.int64).sum(-1)


def masked_select(self: Tensor, mask: Tensor) -> Any:
    """The elements where the mask is true, in a row."""
    shape = torch.broadcast_shapes(self.shape, mask.shape)
    return aten.index(self.expand(shape), [mask.expand(shape)])


def masked_scatter(self: Tensor, mask: Tensor, source: Tensor) -> Any:
    """The elements of the source, one after the other, where the mask is true."""
    mask = mask.expand(self.shape)
    places = (mask.reshape(-1).to(torch.int64).cumsum(0) - 1).clamp(0, source.numel() - 1).reshape(self.shape)
    return torch.where(mask, aten.take(source, places), self)


def scatter_reduce(
    self: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    """The sum, the mean, the largest or the smallest of what goes to each place, with what was there or without."""
    if not self.dim() or reduce == "prod" or self.numel() * index.numel() > SORTED:
        return NotImplemented
    for axis, size in enumerate(index.shape):
        src = src.narrow(axis, 0, size)
    places, given = _flat(index, self.shape, dim % self.dim()).reshape(-1), src.reshape(-1)
    here = torch.arange(self.numel()).reshape(self.shape)[..., None] == places
    count = here.to(torch.int64).sum(-1)
    if reduce in ("sum", "mean"):
        total = torch.where(here, given, 0).sum(-1) + (self if include_self else 0)
        found = total / (count + int(include_self)).clamp_min(1) if reduce == "mean" else total
    else:
        sign = 1 if reduce == "amax" else -1
        found = torch.where(here, sign * given, -torch.inf).amax(-1)
        found = sign * (torch.maximum(found, sign * self) if include_self else found)
    return torch.where(count > 0, found, self)


def embedding_bag(
    weight: Tensor, indices: Tensor, offsets: Tensor, scale_grad_by_freq: bool = False, mode: int = 0,
    sparse: bool = False, per_sample_weights: Tensor | None = None, include_last_offset: bool = False,
    padding_idx: int = -1,
) -> Any:  # fmt: skip
    """The sum or the mean of the rows of each bag."""
    if mode == 2 or padding_idx >= 0 or indices.dim() != 1:
        return NotImplemented
    starts = [int(each) for each in offsets]
    ends = starts[1:] if include_last_offset else [*starts[1:], len(indices)]
    rows = aten.index(weight, [indices])
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[:, None]
    bags = [rows[start:end].sum(0) for start, end in zip(starts, ends, strict=False)]
    sizes = torch.tensor([end - start for start, end in zip(starts, ends, strict=False)])
    total = torch.stack(bags)
    found = total / sizes.clamp_min(1)[:, None] if mode == 1 else total
    return found, torch.repeat_interleave(sizes), sizes, sizes


def pack_padded(input: Tensor, lengths: Tensor, batch_first: bool) -> Any:
    """The time steps of all sequences that have them, one after the other, and how many there are in each."""
    known = [int(each) for each in lengths]
    sizes = [sum(each > time for each in known) for time in range(max(known))]
    steps = input.transpose(0, 1) if batch_first else input
    return torch.cat([steps[time, :size] for time, size in enumerate(sizes)]), torch.tensor(sizes)


def sum_of_products(self: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """The products of all matrices of two batches, added up."""
    return beta * self + alpha * torch.bmm(batch1, batch2).sum(0)


def trilinear(
    i1: Tensor, i2: Tensor, i3: Tensor, expand1: Sequence[int], expand2: Sequence[int], expand3: Sequence[int],
    sumdim: Sequence[int], unroll_dim: int = 1,
) -> Any:  # fmt: skip
    """The sum over some axes of a product of three."""
    factors = []
    for each, axes in ((i1, expand1), (i2, expand2), (i3, expand3)):
        for axis in axes:
            each = each.unsqueeze(axis)
        factors.append(each)
    product = factors[0] * factors[1] * factors[2]
    return product.sum(list(sumdim)) if sumdim else product


OWN: dict[Any, Callable[..., Any]] = {
    aten.gather.default: gather,
    aten.scatter_add.default: scatter_add,
    aten.scatter.src: scatter,
    aten.scatter.value: scatter_value,
    aten.index.Tensor: index,
    aten._unsafe_index.Tensor: index,
    aten.index_put.default: index_put,
    aten._unsafe_index_put.default: index_put,
    aten.index_select.default: index_select,
    aten.index_add.default: index_add,
    aten.embedding.default: embedding,
    aten._scaled_dot_product_flash_attention_for_cpu.default: attention,
    aten.sort.default: sort,
    aten.sort.stable: stable_sort,
    aten.topk.default: topk,
    aten.kthvalue.default: kthvalue,
    aten.median.dim: median,
    aten.median.default: median_of_all,
    aten._cdist_forward.default: cdist,
    aten._pdist_forward.default: pdist,
    aten.logcumsumexp.default: logcumsumexp,
    aten._trilinear.default: trilinear,
    aten.addbmm.default: sum_of_products,
    aten.mkldnn_rnn_layer.default: lstm_layer,
    aten._is_all_true.default: is_all_true,
    aten._is_any_true.default: is_any_true,
    aten.searchsorted.Tensor: searchsorted,
    aten.masked_select.default: masked_select,
    aten.masked_scatter.default: masked_scatter,
    aten.scatter_reduce.two: scatter_reduce,
    aten._embedding_bag.default: embedding_bag,
    aten._pack_padded_sequence.default: pack_padded,
    torch.ops.prims.var.default: variance,
    **LINEAR_ALGEBRA,
    **WINDOWS,
    **GAMMA,
}
