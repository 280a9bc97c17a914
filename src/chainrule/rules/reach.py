"""Which places of one tensor each element of an operation's result can depend on, whatever the numbers.

A place has a label above 0, and an element of a tensor the largest label that reaches it, 0 where none does; so a union
is a maximum, and a bound may only be too large. Labels broadcast to the shape of their tensor. What moves elements
moves their labels, elementwise operations join them, and for most others the pattern of their Jacobian says what meets.
Of an operation that nothing is known of, every element depends on all operands.

What decides beside the sizes is a constant that nothing reaches: 0 times a finite number is 0, and a softmax gives no
weight to -inf. So a mask hides what it hides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial, reduce
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule import rules
from chainrule.graph.reexecution import WriteThroughView, call_overload
from chainrule.graph.snapshot import has_numbers
from chainrule.graph.trees import map_leaves, tensors_in
from chainrule.rules import Applied, Rule
from chainrule.rules.facts import ATTENTIONS, base_name
from chainrule.rules.pattern import compact, reshaped

Labels = Mapping[str, Any]
"""Of each argument that something reaches: the labels, or those of a list's tensors, None where nothing does."""
Reached = list[Tensor | None]
"""The labels of each result; None where nothing reaches it."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


HIDDEN = -1e30
"""A number that a softmax gives no weight to, beside numbers of a usual size."""
MOST = 2**27
"""The comparisons that one product of masked weights may take; beyond, its columns are not kept apart."""


def carried(op: Applied, labels: Labels, function: Any) -> Reached:
    """The labels of the results of an operation, from those of its arguments; `function` is what ran."""
    if not labels:
        return [None] * len(op.outs)
    overload = getattr(function, "function", None)
    try:
        if isinstance(overload, WriteThroughView):
            return _written_through(op, labels, overload)
        return _carried(op, labels, overload)
    except Exception:  # a layout or a subclass on which the operation does not run with labels
        return everywhere(op, labels)


def _carried(op: Applied, labels: Labels, overload: Any) -> Reached:
    if not hasattr(overload, "_schema"):
        return everywhere(op, labels)
    special, asking = _special.get(_name(op)), (partial(_pointwise, overload), partial(_moved, overload))
    for known in (special, *asking, _along, _by_axes, _by_rule):
        found = None if known is None else known(op, labels)
        if found is not None:
            return found
    return everywhere(op, labels)


def _name(op: Applied) -> str:
    """The base name of an operation; in place it does the same to labels."""
    name = base_name(op.name)
    return name if name.endswith("__") else name.removesuffix("_")


def everywhere(op: Applied, labels: Labels) -> Reached:
    """Every element of every result depends on all that reaches the operation."""
    return [None if out is None else _all(labels).reshape((1,) * out.dim()) for out in op.outs]


def _all(labels: Labels) -> Tensor:
    return torch.stack([each.amax() for each in _each(labels)]).amax()


def _each(labels: Labels) -> list[Tensor]:
    several = (each if isinstance(each, list) else [each] for each in labels.values())
    return [label for each in several for label in each if label is not None and label.numel()] or [torch.zeros(1)]


def _padded(each: Tensor, rank: int) -> Tensor:
    """With as many axes as a result; those in front have the size 1."""
    return each.reshape((1,) * (rank - each.dim()) + tuple(each.shape))


def _join(shape: tuple[int, ...], several: list[Tensor]) -> Tensor:
    """The labels of a result of this shape to which the operands were broadcast."""
    return reduce(torch.maximum, (_padded(each, len(shape)) for each in several))


def _broadcast(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape to which tensors are broadcast; `torch.broadcast_shapes` takes a hundred times longer."""
    count = max(map(len, shapes), default=0)
    padded = [(1,) * (count - len(shape)) + shape for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))


# -- constants --------------------------------------------------------------------------------------------------------


def _constants(op: Applied, labels: Labels, name: str, wanted: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Where an argument is a constant that nothing reaches, of the wanted kind; None where it nowhere is."""
    given, label = op.arguments.get(name), labels.get(name)
    if label is not None and (not label.numel() or bool(label.amin() > 0)):
        return None
    if isinstance(given, (int, float)):
        given = torch.tensor(given)
    if not isinstance(given, Tensor) or not has_numbers(given) or given.layout != torch.strided:
        return None
    found = wanted(given).cpu()
    if label is not None:
        found = found & (label == 0)
        for axis, size in enumerate(label.shape):
            found = found.all(axis, keepdim=True) if size == 1 else found  # as labels do not differ along it
    return found if bool(found.any()) else None


def _is_zero(given: Tensor) -> Tensor:
    return given == 0


def _is_hidden(given: Tensor) -> Tensor:
    return given <= HIDDEN if given.is_floating_point() else torch.zeros_like(given, dtype=torch.bool)


def _without(found: Tensor, constant: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Labels without those of elements that are a constant; along an axis where they are the same, if all are."""
    if constant is None:
        return found
    constant = _padded(constant, len(shape))
    for axis, size in enumerate(found.shape):
        constant = constant.all(axis, keepdim=True) if size == 1 else constant
    return found * ~constant


# -- elementwise ------------------------------------------------------------------------------------------------------

_ELEMENTWISE = _names(
    "clone _to_copy detach alias lift lift_fresh contiguous bernoulli native_dropout dropout _prelu_kernel "
    "log_sigmoid_forward masked_fill fill copy mul add sub div"
)
_UNREDUCED = _names(
    "mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits soft_margin_loss"
)


def _pointwise(overload: Any, op: Applied, labels: Labels) -> Reached | None:
    name = _name(op)
    unreduced = name in _UNREDUCED and op.arguments.get("reduction") == 0
    if torch.Tag.pointwise not in overload.tags and name not in _ELEMENTWISE and not unreduced:
        return None
    operands = [each for each in op.arguments.values() if isinstance(each, Tensor)]
    if any(isinstance(each, list) for each in labels.values()):
        return None
    shape = torch.Size(_broadcast([tuple(each.shape) for each in operands]))
    whole = _join(tuple(shape), _each(labels))
    for name_of in ("self", "other"):
        if name == "mul":
            whole = _without(whole, _constants(op, labels, name_of, _is_zero), tuple(shape))
        elif name == "add" and op.arguments.get("alpha", 1) == 1:
            whole = _without(whole, _constants(op, labels, name_of, _is_hidden), tuple(shape))
    return [whole if out is None or out.shape == shape else everywhere(op, labels)[0] for out in op.outs]


def _masked(op: Applied, labels: Labels) -> Reached | None:
    """masked_fill: what is masked is the value alone."""
    if not has_numbers(op.mask) or "mask" in labels:
        return None
    shape, value = tuple(op.out.shape), labels.get("value", torch.zeros(()))
    own = labels.get("self", torch.zeros((1,) * len(shape)))
    return [compact(torch.where(op.mask.cpu(), _join(shape, [value]), _join(shape, [own])))]


def _chosen(op: Applied, labels: Labels) -> Reached | None:
    """where: one operand or the other, by a condition that is a constant."""
    if "condition" in labels or not has_numbers(op.condition) or "other" not in op.arguments:
        return None
    one, other = (_join(tuple(op.out.shape), [labels.get(name, torch.zeros(()))]) for name in ("self", "other"))
    return [compact(torch.where(op.condition.cpu(), one, other))]


def _copied(op: Applied, labels: Labels) -> Reached | None:
    """copy_ and fill_: what was there before is overwritten."""
    given = labels.get("src", labels.get("value"))
    return [None if given is None else _join(tuple(op.out.shape), [given])]


def _drawn(op: Applied, labels: Labels) -> Reached | None:
    """normal: in place nothing is read, and else the mean and the deviation of each element are."""
    return _nothing(op, labels) if set(labels) == {"self"} and "std" in op.arguments else None


def _nothing(op: Applied, labels: Labels) -> Reached:
    """Only the shape, type and device of the operand are read."""
    return [None] * len(op.outs)


def _written_through(op: Applied, labels: Labels, overload: WriteThroughView) -> Reached:
    """A write to a view, as a function of the base: the rest of the base stays."""
    base = op.arguments["base"]
    arguments = {name: each for name, each in op.arguments.items() if name != "base"}
    inner = Applied(arguments, op.outs[1:] or (arguments[overload.argument],), op.name)
    given = {name: each for name, each in labels.items() if name != "base"}
    made = _carried(inner, given, overload.function)[0] if given else None
    if overload.real or base.is_complex() or not base.numel():
        return everywhere(op, labels)
    before = labels.get("base", torch.zeros((1,) * base.dim()))
    after = torch.empty_strided(*overload.layout).copy_(before.expand(base.shape))
    view = after.as_strided(overload.size, overload.stride, overload.offset)
    view.copy_(torch.zeros(()) if made is None else made)
    written: Reached = [compact(after), compact(view.clone())]
    return written[: len(op.outs)]


# -- moved ------------------------------------------------------------------------------------------------------------

_RESHAPES = _names("view _unsafe_view reshape _reshape_alias")
_MOVES = _names(
    "squeeze unsqueeze t transpose permute expand select slice diagonal diag_embed unfold flip roll tril triu "
    "unbind split split_with_sizes unsafe_split unsafe_split_with_sizes unsafe_chunk repeat constant_pad_nd "
    "narrow_copy pixel_shuffle pixel_unshuffle channel_shuffle cat stack block_diag index_select gather index "
    "embedding im2col rot90 movedim select_copy slice_copy expand_copy as_strided reflection_pad1d "
    "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
)
_SOURCES = {"cat": "tensors", "stack": "tensors", "block_diag": "tensors", "embedding": "weight"}


def _moved(overload: Any, op: Applied, labels: Labels) -> Reached | None:
    """An operation that moves the elements of its operand does the same to their labels."""
    name = _name(op)
    source = _SOURCES.get(name, "self")
    if (name not in _MOVES and name not in _RESHAPES) or set(labels) != {source}:
        return None
    given, found = op.arguments[source], labels[source]
    if name in _RESHAPES:
        return None if "dtype" in op.arguments else [reshaped(found, given.shape, op.out.shape)]
    rest = [each for key, each in op.arguments.items() if key != source]
    if not all(has_numbers(each) for each in tensors_in(rest)):
        return None
    if name == "as_strided" and not _is_plain(given):
        return None
    if isinstance(given, list):
        none = torch.zeros(())
        whole: Any = [
            (none if label is None else label).expand(each.shape) for each, label in zip(given, found, strict=True)
        ]
    else:
        whole = found.expand(given.shape)
        whole = whole.contiguous() if name == "as_strided" else whole
    value = {"value": 0} if name == "constant_pad_nd" else {}
    others = map_leaves(_at_home, {**op.arguments, source: None})
    return [compact(each) for each in tensors_in(call_overload(overload, {**others, source: whole, **value}))]


def _at_home(leaf: Any) -> Any:
    return leaf.cpu() if isinstance(leaf, Tensor) else leaf


def _is_plain(given: Tensor) -> bool:
    """Whether a tensor fills its memory from the first element on, row by row."""
    return has_numbers(given) and given.is_contiguous() and given.storage_offset() == 0


def _gathered(op: Applied, labels: Labels) -> Reached | None:
    """gather where the indices are not constant: any element of the row along dim."""
    if "index" not in labels or op.self.dim() != op.index.dim() or not op.self.dim():
        return None
    found, dim = [labels["index"]], op.dim % op.self.dim()
    if "self" in labels:
        found.append(_of_rows(labels["self"], dim, op.index))
    return [_join(tuple(op.out.shape), found)]


def _of_rows(label: Tensor, dim: int, index: Tensor) -> Tensor:
    """What reaches each row along dim, of the rows that an index has."""
    own = label.amax(dim, keepdim=True)
    for axis, size in enumerate(index.shape):
        own = own.narrow(axis, 0, size) if axis != dim and own.shape[axis] != 1 else own
    return own


def _looked_up(op: Applied, labels: Labels) -> Reached | None:
    """embedding where the indices are not constant: any row."""
    if "indices" not in labels:
        return None
    found = [labels["indices"].unsqueeze(-1)]
    if "weight" in labels:
        found.append(labels["weight"].amax(0))
    return [_join(tuple(op.out.shape), found)]


def _scattered(op: Applied, labels: Labels) -> Reached | None:
    """scatter and its like: any element of the row along dim."""
    index, dim = op.index, op.dim % max(op.self.dim(), 1)
    same = [n == m for axis, (n, m) in enumerate(zip(index.shape, op.self.shape, strict=False)) if axis != dim]
    if index.dim() != op.self.dim() or not op.self.dim() or not all(same):
        return None
    found = [labels["self"]] if "self" in labels else []
    for name in ("index", "src"):
        if name in labels and labels[name].dim() == index.dim():
            found.append(_of_rows(labels[name], dim, index))
        elif name in labels:
            found.append(labels[name].amax())
    return [_join(tuple(op.out.shape), found)]


def _added_by_index(op: Applied, labels: Labels) -> Reached | None:
    """index_add and index_copy: any slice along dim."""
    if not op.self.dim():
        return None
    found = [labels["self"]] if "self" in labels else []
    if "index" in labels:
        found.append(labels["index"].amax())
    if "source" in labels:
        found.append(labels["source"].amax(op.dim % op.self.dim(), keepdim=True))
    return [_join(tuple(op.out.shape), found)]


def _put(op: Applied, labels: Labels) -> Reached | None:
    """index_put: what was there, or any element of what was put."""
    rest = {name: each for name, each in labels.items() if name != "self"}
    found = ([labels["self"]] if "self" in labels else []) + ([_all(rest)] if rest else [])
    return [_join(tuple(op.out.shape), found)]


# -- along axes -------------------------------------------------------------------------------------------------------

_REDUCES = _names(
    "sum mean amax amin max min argmax argmin var std var_mean std_mean prod any all norm linalg_vector_norm "
    "logsumexp nansum median nanmedian mode kthvalue topk sort argsort aminmax count_nonzero glu multinomial "
    "_softmax _log_softmax softmax log_softmax _safe_softmax cumsum cumprod cummax cummin logcumsumexp"
)
_RUNNING = _names("cumsum cumprod cummax cummin logcumsumexp")
_SOFTMAX = _names("_softmax softmax _safe_softmax")


def _along(op: Applied, labels: Labels) -> Reached | None:
    """An operation that makes each result of a slice along some axes."""
    name = _name(op)
    if name not in _REDUCES or set(labels) != {"self"} or "other" in op.arguments:
        return None
    given, label = op.self, labels["self"]
    dims = op.arguments.get("dim", -1 if name in ("topk", "sort", "glu", "multinomial", "argsort") else None)
    dims = [dims] if isinstance(dims, int) else dims or range(given.dim())
    dims = sorted({each % max(given.dim(), 1) for each in dims}) if given.dim() else []
    if name in _RUNNING and len(dims) == 1:
        return [label.cummax(dims[0]).values for _ in op.outs]
    mixed = label.amax(dims, keepdim=True) if dims else label
    if name in _SOFTMAX:
        whole = [size if axis in dims else -1 for axis, size in enumerate(given.shape)]
        hidden = _constants(op, labels, "self", _is_hidden)
        mixed = mixed if hidden is None else _without(mixed.expand(whole), hidden, tuple(given.shape))
    found: Reached = []
    for out in op.outs:
        if out is None or out.dim() == given.dim():
            found.append(mixed)
        elif out.dim() == given.dim() - len(dims):
            found.append(mixed.reshape([size for axis, size in enumerate(mixed.shape) if axis not in dims]))
        else:
            return None
    return found


def _by_axes(op: Applied, labels: Labels) -> Reached | None:
    """A function of the last axes, those that its name counts (`avg_pool2d`): the others stay apart."""
    counted = re.fullmatch(r"(?:.*pool|upsample_[a-z_]*?)(\d)d(?:_with_indices|_aa)?", base_name(op.name))
    if counted is None or set(labels) - {"self", "input"} or len(labels) != 1:
        return None
    (label,), spatial = labels.values(), int(counted[1])
    if label.dim() <= spatial or any(out is not None and out.dim() != label.dim() for out in op.outs):
        return None
    return [label.amax(tuple(range(label.dim() - spatial, label.dim())), keepdim=True)] * len(op.outs)


def _convolved(op: Applied, labels: Labels) -> Reached | None:
    """A convolution: what lies under the kernel, in each sample and each group of channels."""
    name = "input" if "input" in op.arguments else "self"
    given, out = op.arguments[name], op.out
    places = given.dim() - 2
    if name not in labels or out.dim() != given.dim() or not 1 <= places <= 3:
        return None
    label, groups = labels[name], op.arguments.get("groups", 1)
    if groups == 1 or label.shape[1] == 1:
        label = label.amax(1, keepdim=True)
    else:
        each = label.reshape(label.shape[0], groups, -1, *label.shape[2:]).amax(2)
        label = each.repeat_interleave(out.shape[1] // groups, 1)
    rest = {key: each for key, each in labels.items() if key != name}
    if any(size != 1 for size in label.shape[2:]):
        label = _under_kernel(op, label, given, places)
    return [torch.maximum(label, _all(rest)) if rest else label, *everywhere(op, labels)[1:]]


def _under_kernel(op: Applied, label: Tensor, given: Tensor, places: int) -> Tensor:
    stride, padding, dilation = (
        ([each] if isinstance(each, int) else list(each)) if each is not None else [default]
        for each, default in ((op.arguments.get("stride"), 1), (op.arguments.get("padding"), 0),
                              (op.arguments.get("dilation"), 1))
    )  # fmt: skip
    stride, padding, dilation = (each * places if len(each) == 1 else each for each in (stride, padding, dilation))
    if op.arguments.get("transposed") or not isinstance(op.arguments.get("padding"), (list, tuple)):
        return label.amax(tuple(range(2, label.dim())), keepdim=True)
    whole = label.expand(*label.shape[:2], *given.shape[2:])
    padded = F.pad(whole, [each for pad in reversed(padding) for each in (pad, pad)])
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[places - 1]
    moved: Tensor = pool(padded, tuple(op.weight.shape[2:]), tuple(stride), 0, tuple(dilation))
    return compact(moved)


# -- products ---------------------------------------------------------------------------------------------------------


def _product(left: str, right: str, added: str = "") -> Callable[[Applied, Labels], Reached | None]:
    """A product of matrices: a weight that is 0 and constant takes nothing from the row that it meets."""

    def found(op: Applied, labels: Labels) -> Reached | None:
        zero = _constants(op, labels, left, _is_zero) if right in labels else None
        hidden = _constants(op, labels, added, _is_hidden) if added else None
        if zero is None and hidden is None:
            return None  # by the rule
        parts = [labels[left].amax(-1, keepdim=True)] if left in labels else []
        if right in labels and zero is not None:
            parts.append(_weighted(~zero, labels[right]))
        elif right in labels:
            parts.append(labels[right].amax(-2, keepdim=True))
        if added in labels:
            parts.append(labels[added])
        shape = tuple(op.out.shape)
        return [_without(_join(shape, parts), hidden, shape)]

    return found


def _weighted(counts: Tensor, rows: Tensor) -> Tensor:
    """For each row of `counts` (..., i, k) the largest labels of the `rows` (..., k, j) that count."""
    if counts.numel() * rows.shape[-1] > MOST:
        rows = rows.amax(-1, keepdim=True)
    if counts.numel() * rows.shape[-1] > MOST:
        return rows.amax(-2, keepdim=True)
    return compact((counts.unsqueeze(-1) * rows.unsqueeze(-3)).amax(-2))


def _attention(op: Applied, labels: Labels) -> Reached | None:
    """Attention in one operation: a query and the keys that the mask leaves it."""
    query, key = op.query, op.key
    if not query.dim() == key.dim() == op.value.dim() == op.out.dim() or op.out.shape[:-1] != query.shape[:-1]:
        return None
    mask_name = "attn_mask" if "attn_mask" in op.arguments else "attn_bias"
    mask = op.arguments.get(mask_name)
    parts = [labels["query"].amax(-1, keepdim=True)] if "query" in labels else []
    parts += [labels[mask_name].amax(-1, keepdim=True)] if mask_name in labels else []
    if set(labels) - {"query", "key", "value", mask_name}:
        return None
    seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool)
    if op.arguments.get("is_causal") and query.shape[-2] == key.shape[-2]:
        seen = seen.tril()
    if mask is not None and has_numbers(mask):
        hidden = _constants(op, labels, mask_name, torch.logical_not if mask.dtype == torch.bool else _is_hidden)
        seen = seen if hidden is None else seen & ~hidden
    for name in ("key", "value"):
        if name in labels:
            rows = labels[name].amax(-1, keepdim=True)
            if rows.dim() > 2 and op.arguments[name].shape[-3] != query.shape[-3]:  # heads that are shared
                rows = rows.amax(-3, keepdim=True)
            parts.append(_weighted(seen, rows))
    return [_join(tuple(op.out.shape), parts), *everywhere(op, labels)[1:]]


def _recurrent(op: Applied, labels: Labels) -> Reached | None:
    """A layer of a recurrent network over time, the first axis, forwards or backwards."""
    if op.arguments.get("batch_sizes") or op.input.dim() != 3:
        return None
    parts = []
    for name, label in labels.items():
        if name == "input":
            own = label.amax(-1, keepdim=True)
            parts.append(own.flip(0).cummax(0).values.flip(0) if op.reverse else own.cummax(0).values)
        elif name in ("hx_", "cx_"):
            parts.append(label.amax(-1, keepdim=True))
        else:
            return None
    whole = _join(tuple(op.outs[0].shape), parts)
    state, workspace = whole.amax(0), everywhere(op, labels)[3:]
    states = [_padded(state, out.dim()) for out in op.outs[1:3]]
    return [whole, *states, *workspace]


def _cell(op: Applied, labels: Labels) -> Reached | None:
    """A cell of a recurrent network: each sample by itself."""
    if any(label.dim() != 2 for label in _each(labels)):
        return None
    rows = _join((op.out.shape[0], 1), [each.amax(-1, keepdim=True) for each in _each(labels)])
    return [rows if out.dim() == 2 else _all(labels).reshape((1,) * out.dim()) for out in op.outs]


def _by_rule(op: Applied, labels: Labels) -> Reached | None:
    """By the pattern of the Jacobian for each argument; an argument without one reaches every element."""
    rule = rules.for_operation(op)
    if rule is None:
        return None
    parts: list[Tensor] = []
    for name, label in labels.items():
        found = None if isinstance(label, list) else _by_pattern(rule, op, name, label)
        parts.append(_all({name: label}) if found is None else found)
    return [_join(tuple(op.out.shape), parts), *everywhere(op, labels)[1:]]


def _by_pattern(rule: Rule, op: Applied, name: str, label: Tensor) -> Tensor | None:
    wrt = rule.wrt.get(name)
    if wrt is None or wrt.pattern is None:
        return None
    pattern, given = wrt.pattern(op), op.arguments[name]
    if pattern is None or pattern.carry is None or pattern.shape != (op.out.numel(), given.numel()):
        return None
    return pattern.carry(label, given.shape, op.out.shape) if prod(pattern.shape) else None


_special: dict[str, Callable[[Applied, Labels], Reached | None]] = {
    "masked_fill": _masked, "where": _chosen, "copy": _copied, "fill": _copied, "gather": _gathered,
    "embedding": _looked_up, "index_add": _added_by_index, "index_copy": _added_by_index, "index_put": _put,
    "_index_put_impl": _put, "normal": _drawn, "mm": _product("self", "mat2"), "bmm": _product("self", "mat2"),
    "addmm": _product("mat1", "mat2", "self"), "baddbmm": _product("batch1", "batch2", "self"),
    "rrelu_with_noise": everywhere,  # its draws depend on the signs
    "mkldnn_rnn_layer": _recurrent, "_thnn_fused_lstm_cell": _cell, "_thnn_fused_gru_cell": _cell,
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), _scattered),
    **dict.fromkeys(
        _names(
            "convolution _convolution mkldnn_convolution cudnn_convolution convolution_overrideable "
            "_slow_conv2d_forward thnn_conv2d slow_conv3d slow_conv3d_forward"), _convolved),
    **dict.fromkeys(_names(ATTENTIONS), _attention),
    **dict.fromkeys(
        _names(
            "zeros_like ones_like full_like rand_like randn_like randint_like empty_like new_zeros new_ones "
            "new_full new_empty new_empty_strided zero uniform random exponential log_normal cauchy geometric"),
        _nothing),
}  # fmt: skip
