r"""Rules of scaled dot-product attention: one formula, whichever kernel PyTorch chose to run it.

A fused kernel (flash, memory-efficient, cuDNN) never writes down the matrix of weights. The rule does: it computes the
scores and their softmax again from the recorded query and key, so that going back is five plain steps.

    S = scale Q K^T + M      P = softmax(S), row by row      O = P V
    V_bar = P^T O_bar        P_bar = O_bar V^T               S_bar = P (P_bar - rowsum(P_bar P))
    Q_bar = scale S_bar K    K_bar = scale S_bar^T Q         M_bar = S_bar

Shapes: query (batch, heads, queries, features), key (batch, key_heads, keys, features), value (batch, key_heads, keys,
value_features). Where there are fewer key heads than query heads, each serves a group of consecutive query heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chainrule.rules import (
    Factor,
    Index,
    Rule,
    Sample,
    Working,
    Wrt,
    at,
    derivative,
    lettered,
    number,
    reduce_to_shape,
    rule,
    sample,
)
from chainrule.rules.linear import Samples, randn
from chainrule.rules.pattern import Pattern, axes, product, real


def mask_of(op: Any) -> Tensor | None:
    """What is added to the scores (or, if boolean, what may be looked at); kernels call it by different names."""
    mask: Tensor | None = op.arguments.get("attn_mask", op.arguments.get("attn_bias"))
    return mask


def scale_of(op: Any) -> float:
    """The factor of the scores: one over the root of the number of features, if nothing else was asked for."""
    scale = op.arguments.get("scale")
    return 1 / math.sqrt(op.query.shape[-1]) if scale is None else float(scale)


def _wide(t: Tensor) -> Tensor:
    """Half precision is widened, as inside the kernels."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def _per_query_head(op: Any, t: Tensor) -> Tensor:
    """Key or value with one head for each query head."""
    if t.dim() < 3:
        return _wide(t)
    return _wide(t).repeat_interleave(op.query.shape[-3] // t.shape[-3], -3) if t.shape[-3] else _wide(t)


def _home(t: Tensor, like: Tensor) -> Tensor:
    """A gradient in its operand's shape: heads that share one are added up, and so are broadcast axes."""
    if like.dim() >= 3 and like.shape[-3] not in (0, 1, t.shape[-3]):
        t = t.unflatten(-3, (like.shape[-3], -1)).sum(-3)
    return reduce_to_shape(t, tuple(like.shape))[0].to(like.dtype)


def weights(op: Any) -> Tensor:
    """P: how much each query looks at each key; a query that may look at nothing has a row of zeros."""
    scores = scale_of(op) * _wide(op.query) @ _per_query_head(op, op.key).mT
    mask = mask_of(op)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + _wide(mask)
    if op.arguments.get("is_causal"):
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    blind = (scores == -math.inf).all(-1, keepdim=True)
    return torch.where(blind, 0, scores.softmax(-1))


def _shown_weights(op: Any) -> list[Working]:
    found = weights(op)
    names = [
        tuple(f"{name} {i}" for i in range(size)) for name, size in zip(("query", "key"), found.shape[-2:], strict=True)
    ]
    batch = ("", "[sample]: ", "[sample, head]: ")[min(found.dim() - 2, 2)]
    return [Working("P", f"{batch}how much each query looks at each key; a row adds up to 1", found, *names)]


def _back_to_scores(op: Any, g: Tensor) -> Tensor:
    """S_bar, from the upstream gradient of the output: through V, then through the softmax of each row."""
    p = weights(op)
    p_bar = _wide(g) @ _per_query_head(op, op.value).mT
    return p * (p_bar - (p_bar * p).sum(-1, keepdim=True))


def _mask(op: Any, g: Tensor) -> Tensor | None:
    mask = mask_of(op)
    return None if mask is None or mask.dtype == torch.bool else _home(_back_to_scores(op, g), mask)


BARS = (
    r", \quad \bar{S}_{@h} = P_{@h} \odot \left(\bar{P}_{@h} - \operatorname{rowsum}(\bar{P}_{@h} \odot P_{@h})\right)"
    r", \quad \bar{P}_{@h} = {$g}_{@h} \, {$value}_{@k}^{T}"
)
TURNED = r"P_{@h,i,j} \, ({$value}_{@k,j,e} - {$out}_{@h,i,e})"

# For each sample b and head h: query i, key j, features d of the key and e of the value. `@k` is the key head that
# serves head h, `@s` the query heads that key head h serves, `@c` the scale of the scores.
FORMULAS = {
    "equation": r"{$out}_{@h} = P_{@h} \, {$value}_{@k}",
    "where": r"P_{@h} = \operatorname{softmax}(S_{@h}), \quad S_{@h} = @scores",
    "by query": derivative("{$out}_{@h,i,e}", "{$query}_{@h,i,d}", rf"@c \sum_j {TURNED} \, {{$key}}_{{@k,j,d}}"),
    "by key": derivative("{$out}_{@h,i,e}", "{$key}_{@k,j,d}", rf"@c {TURNED} \, {{$query}}_{{@h,i,d}}"),
    "by value": derivative("{$out}_{@h,i,e}", "{$value}_{@k,j,e}", "P_{@h,i,j}"),
    "by mask": derivative("{$out}_{@h,i,e}", "@mask", TURNED),
    "to query": r"{$grad}_{@h} = @c \bar{S}_{@h} \, {$key}_{@k}" + BARS,
    "to key": r"{$grad}_{@h} = @c @served \bar{S}_{@s}^{T} \, {$query}_{@s}" + BARS,
    "to value": r"{$grad}_{@h} = @served P_{@s}^{T} \, {$g}_{@s}",
    "to mask": r"@target = @over \bar{S}_{@h,i,j}" + BARS,
}


def _formula(name: str, op: Any) -> str:
    """One of the formulas, for a call."""
    heads = list("facbh"[7 - op.query.dim() :])
    shared = op.query.shape[-3] // op.key.shape[-3] if op.key.dim() >= 3 and op.key.shape[-3] else 1
    scale = op.arguments.get("scale")
    letters = {
        "h": ",".join(heads),
        "k": ",".join(rf"\lfloor h / {shared} \rfloor" if h == "h" and shared > 1 else h for h in heads),
        "s": ",".join(rf"{shared} \, h + m" if h == "h" and shared > 1 else h for h in heads),
        "served": rf"\sum_{{m=0}}^{{{shared - 1}}}" if shared > 1 else "",
        "c": rf"\frac{{1}}{{\sqrt{{{op.query.shape[-1]}}}}} \," if scale is None else rf"{number(float(scale))} \,",
    }
    mask = mask_of(op)
    scores, masked = r"@c {$query}_{@h} \, {$key}_{@k}^{T}", ""
    if mask is not None:
        sizes = dict(zip([*heads, "i", "j"], [*op.query.shape[:-1], op.key.shape[-2]], strict=True))
        places = ["0" if n == 1 else a for a, n in zip([*sizes][-mask.dim() :], mask.shape, strict=True)]
        kind = "attn_mask" if "attn_mask" in op.arguments else "attn_bias"
        masked = at(kind, places[: max(len(places) - 2, 0)])
        letters |= {"mask": at(kind, places), "target": at("grad", places)}
        letters["over"] = "".join(rf"\sum_{{{a}=0}}^{{{n - 1}}} " for a, n in sizes.items() if a not in places)
        if mask.dtype == torch.bool:
            scores = rf"\begin{{cases}} {scores} & {masked} \\ -\infty & \text{{otherwise}} \end{{cases}}"
        else:
            scores = f"{scores} + {masked}"
    scores = rf"\operatorname{{causal}}({scores})" if op.arguments.get("is_causal") else scores
    return lettered(lettered(FORMULAS[name], {"scores": scores}), letters)


def _value_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    *batch, query, feature = out_index
    *others, key, value_feature = in_index
    if feature != value_feature or op.out.shape[:-2] != op.value.shape[:-2] or batch != others:
        return None
    return Factor(latex=rf"P_{{{','.join(map(str, (*batch, query, key)))}}}")


def _pattern(argument: str, op: Any) -> Pattern | None:
    """A query makes its own row alone; key and value make all rows of their head, each feature of a value its own."""
    operand, row, feature = op.arguments[argument], op.out.dim() - 2, op.out.dim() - 1
    if not real(op.out, operand) or operand.shape[:-2] != op.out.shape[:-2]:
        return None  # heads that are shared or broadcast
    own = {"query": (feature,), "key": (row, feature), "value": (row,)}[argument]
    return product(axes(op.out.shape, own, "out"), axes(operand.shape, own, "in")).at_most()


ZEROS = "each sample and each head attends by itself, and a query looks through its own row of weights alone"


def _wrt(argument: str, vjp: Callable[[Any, Tensor], Any], *more: Any) -> Wrt:
    return Wrt(vjp, partial(_formula, f"by {argument}"), partial(_formula, f"to {argument}"), ZEROS, *more)


def _by(argument: str, back: Callable[[Any, Tensor], Tensor], factor: Any = None) -> Wrt:
    """The derivative by query, key or value, from its numbers for each query head."""
    return _wrt(argument, lambda op, g: _home(back(op, g), op.arguments[argument]), factor, partial(_pattern, argument))


WRT = {
    "query": _by("query", lambda op, g: scale_of(op) * _back_to_scores(op, g) @ _per_query_head(op, op.key)),
    "key": _by("key", lambda op, g: scale_of(op) * _back_to_scores(op, g).mT @ _wide(op.query)),
    "value": _by("value", lambda op, g: weights(op).mT @ _wide(g), _value_factor),
}
SOURCE = "arXiv:1706.03762, section 3.2.1; the way back as in arXiv:2205.14135, appendix B.4. "


def attention(
    *nodes: str, name: str, mask: str = "", samples: Samples = lambda: (), entries: str = "", **more: Any
) -> Rule:
    """Register a kernel of attention; `mask` is the argument that it differentiates beside query, key and value.

    Kernels that run on other devices only have no samples, which every machine must be able to run. No kernel says
    which weights it dropped by random numbers of its own, so dropout is not accepted.
    """
    return rule(
        *nodes,
        name=name,
        equation=partial(_formula, "equation"),
        where=partial(_formula, "where"),
        wrt={**WRT, **({mask: _wrt("mask", _mask)} if mask else {})},
        accepts=lambda op: not op.arguments.get("dropout_p"),
        samples=samples,
        linear=("value",),
        source=SOURCE + entries,
        topic="attention",
        workings=_shown_weights,
        **more,
    )


ATTENTION = F.scaled_dot_product_attention


def _qkv(keys: int = 4, heads: int = 2, features: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(
        randn(2, n, k, features, shift=shift) for shift, n, k in ((0, 2, 4), (1, heads, keys), (2, heads, keys))
    )  # type: ignore[return-value]


def _plain_samples() -> list[Sample]:
    some = torch.tensor([[True, False, True, False]] * 3 + [[False] * 4])
    four_heads = randn(2, 4, 3, 5, shift=0)
    return [
        sample(ATTENTION, *_qkv()),
        sample(ATTENTION, *_qkv(5), note="more keys than queries"),
        sample(ATTENTION, *_qkv(), is_causal=True, note="causal"),
        sample(ATTENTION, *_qkv(), scale=0.5, note="another scale"),
        sample(ATTENTION, *_qkv(1, features=1), note="one key, one feature"),
        sample(ATTENTION, *_qkv(), attn_mask=randn(4, 4, shift=0).detach(), note="mask added"),
        sample(ATTENTION, *_qkv(), attn_mask=some, note="a query that may look at nothing"),
        sample(ATTENTION, four_heads, *_qkv(3, 2, 5)[1:], enable_gqa=True, note="shared heads"),
    ]


def _masked_samples() -> list[Sample]:
    flat = [randn(*shape, shift=0) for shape in ((4, 3), (5, 3), (5, 2))]
    return [
        sample(ATTENTION, *_qkv(), attn_mask=randn(4, 4, shift=0), note="a mask that wants a gradient"),
        sample(ATTENTION, *_qkv(), attn_mask=randn(2, 1, 1, 4, shift=0), note="a broadcast mask"),
        sample(ATTENTION, *flat, attn_mask=randn(5, shift=0), note="no batch, no heads"),
    ]


flash_for_cpu = attention(
    "ScaledDotProductFlashAttentionForCpuBackward0",
    name="flash_attention_for_cpu",
    constants={"attn_mask": "not differentiable"},
    samples=_plain_samples,
    entries="derivatives.yaml: _scaled_dot_product_flash_attention_for_cpu",
)

flash = attention(
    "ScaledDotProductFlashAttentionBackward0",
    "ScaledDotProductCudnnAttentionBackward0",
    name="flash_attention",
    constants={"attn_bias": "not differentiable"},
    entries="derivatives.yaml: _scaled_dot_product_flash_attention, _scaled_dot_product_cudnn_attention",
)

efficient = attention(
    "ScaledDotProductEfficientAttentionBackward0",
    "ScaledDotProductFusedAttentionOverrideableBackward0",
    name="efficient_attention",
    mask="attn_bias",
    entries="derivatives.yaml: _scaled_dot_product_efficient_attention, "
    "_scaled_dot_product_fused_attention_overrideable",
)

# Where PyTorch takes the plain way (a mask that wants a gradient), the call is some fifteen nodes, shown as one here.
math_path = attention(
    name="scaled_dot_product_attention",
    calls=("scaled_dot_product_attention",),
    mask="attn_mask",
    constants=dict.fromkeys(("dropout_p", "is_causal", "scale", "enable_gqa"), "not differentiable"),
    samples=_masked_samples,
)
