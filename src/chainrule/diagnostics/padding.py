"""Faults of padding: tokens that only fill up a batch, and get attention or count in the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from chainrule.diagnostics.attention import attentions
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.graph.comparison import dense
from chainrule.graph.graph import Operation
from chainrule.rules.facts import base_name, facts_of

SHORT, VOCABULARY = 2, 10  # a run of padding at least, and tokens of a vocabulary
UNREDUCED = 0

ATTENDED = Check(
    "padding-attended", "Padding gets attention", "warning",
    what="A part of the attention of real tokens goes to tokens of padding: those of padding\\_idx, or the one token "
    "that ends rows of the batch, in runs of different lengths, and stands nowhere else. Without the numbers of the "
    "weights it is found if none of them is 0.",
    why="What a sentence means then depends on the length of the longest one in its batch.",
    advice="Pass a mask of the padding: key_padding_mask=ids == pad (True hides) to nn.MultiheadAttention, attn_mask "
    "(True takes part) to scaled_dot_product_attention, attention_mask to models of Transformers.",
    source="PyTorch's documentation of nn.MultiheadAttention; Transformers' documentation of padding",
    thresholds=("to_padding",), lasts=2)  # fmt: skip


@dataclass(frozen=True)
class Padding:
    """Where a batch of tokens is padding: (samples, tokens)."""

    token: int
    where: Tensor
    ids: int


def paddings(context: StepContext) -> list[Padding]:
    """The padding of every batch of tokens that an embedding looks up."""
    return context.once("paddings", lambda: list(_paddings(context)))


def _paddings(context: StepContext) -> Iterator[Padding]:
    seen = set()
    for operation in context.operations_that(lambda facts: facts.looks_up):
        ids, weight = argument(operation, facts_of(operation.name).looks_up), argument(operation, "weight")
        if ids is None or weight is None or ids in seen or context.values[weight].shape[0] < VOCABULARY:
            continue
        seen.add(ids)
        data = context.values[ids].data
        if data is None or data.dim() != 2 or data.is_floating_point():
            continue
        index = operation.arguments.get("padding_idx", -1)
        if isinstance(index, int) and index >= 0:
            where = dense(data) == index
            if where.any() and not where.all(1).any():
                yield Padding(index, where, ids)
        elif (found := _inferred(dense(data))) is not None:
            yield Padding(found, dense(data) == found, ids)


def _inferred(ids: Tensor) -> int | None:
    """The token that ends several rows in runs of different lengths, and stands nowhere else; None without one."""
    samples, length = ids.shape
    if samples < SHORT or length < 2 * SHORT:
        return None
    same = ids == ids[:, -1:]
    runs = same.flip(1).long().cumprod(1).sum(1)
    padded = runs >= SHORT
    tokens = ids[padded, -1].unique()
    if int(padded.sum()) < SHORT or len(tokens) != 1 or len(runs.unique()) < SHORT or bool((runs == length).any()):
        return None
    total = int(runs[ids[:, -1] == tokens[0]].sum())
    return int(tokens[0]) if int((ids == tokens[0]).sum()) == total else None


@ATTENDED.in_step
def _attended(context: StepContext) -> Iterator[Finding]:
    if not paddings(context):
        return
    for each in attentions(context):
        weights, known = context.values[each.weights], context.statistics(each.weights)
        fitting = [padding for padding in paddings(context) if _fits(padding, weights.shape)]
        if not fitting or known is None:
            continue
        if weights.data is not None:
            shares = [(_share(dense(weights.data), padding), padding) for padding in fitting]
            share, padding = min(shares, key=lambda pair: pair[0])
            told = f"{100 * share:.3g} % of the attention of real tokens goes to padding."
            attended = share > context.thresholds.to_padding
        else:
            padding, told = fitting[0], f"No weight is 0: the smallest of {known.elements} is {known.low:.3g}."
            attended = not known.zeros and known.low > 1e-5
        if attended:
            yield _found(context, each.operation, padding, context.name(each.weights), told)
    yield from _fused(context)


def _fused(context: StepContext) -> Iterator[Finding]:
    """Kernels without weights: what they get no mask for, they attend to."""
    for operation in context.graph.operations:
        key = argument(operation, "key") if "scaled_dot_product" in operation.name else None
        if key is None or operation.arguments.get("is_causal") or _masks(operation):
            continue
        shape = context.values[key].shape
        fitting = [each for each in paddings(context) if _fits(each, (*shape[:-2], shape[-2], shape[-2]))]
        if fitting:
            out = next(value for value in operation.outputs if value is not None)
            told = "The attention has neither a mask nor is_causal=True."
            yield _found(context, operation, fitting[0], context.name(out), told)


def _masks(operation: Operation) -> bool:
    return any(operation.arguments.get(name) is not None for name in ("attn_mask", "attn_bias"))


def _found(context: StepContext, operation: Operation, padding: Padding, name: str, told: str) -> Finding:
    count, total = int(padding.where.sum()), padding.where.numel()
    return ATTENDED.found(
        name, f"The attention {name} does not hide the padding of {context.name(padding.ids)}, token {padding.token}.",
        (told, f"{count} of {total} tokens of the batch are padding."), place=context.place(operation),
    )  # fmt: skip


def _fits(padding: Padding, shape: tuple[int, ...]) -> bool:
    """Whether attention of this shape may be over these tokens: (samples, ..., queries, tokens)."""
    samples, length = padding.where.shape
    return (
        len(shape) > 2 and shape[-1] == length and (shape[0] == samples or len(shape) == 3) and not shape[0] % samples
    )


def _share(weights: Tensor, padding: Padding) -> float:
    """The share of the weights of real queries that falls on padding."""
    samples, length = padding.where.shape
    whole = weights.detach().double().reshape(samples, -1, *weights.shape[-2:])
    where = padding.where.to(whole.device)
    of_query = (whole * where[:, None, None, :]).sum(-1)
    real = (~where if whole.shape[-2] == length else torch.ones_like(of_query[:, 0], dtype=torch.bool))[:, None]
    some = where.any(1)[:, None, None]
    chosen = (real & some).expand_as(of_query)
    return float(of_query[chosen].mean()) if chosen.any() else 0.0


IN_LOSS = Check(
    "padding-in-loss", "Padding counts in the loss", "warning",
    what="The targets of a cross-entropy end with the padding of the inputs, in runs of different lengths, and "
    "ignore\\_index is another token, with a loss that is a mean or a sum.",
    why="The network is mostly taught to predict padding, and its loss looks better than it is.",
    advice="Pass ignore_index=pad to the loss, or set the targets of padding to -100.",
    source="PyTorch's documentation of CrossEntropyLoss: ignore_index", lasts=2)  # fmt: skip


@IN_LOSS.in_step
def _in_loss(context: StepContext) -> Iterator[Finding]:
    known = {padding.token for padding in paddings(context)}
    if not known:
        return
    for operation in context.operations_that(lambda facts: facts.class_target):
        target = argument(operation, "target")
        if target is None or operation.arguments.get("reduction") == UNREDUCED:
            continue
        data = _rows(context, target)
        token = None if data is None else _inferred(data)
        if data is None or token not in known or token == operation.arguments.get("ignore_index"):
            continue
        weight = argument(operation, "weight")
        if weight is not None and (each := context.values[weight].data) is not None and not float(each[token]):
            continue
        count = int((data == token).sum())
        yield IN_LOSS.found(
            context.name(target), f"The loss counts padding: {count} of {data.numel()} targets are token {token}.",
            f"ignore_index is {operation.arguments.get('ignore_index')}, so {100 * count / data.numel():.3g} % of the "
            f"{base_name(operation.name).split('_forward')[0]} is about padding.",
            place=context.place(operation), advice=f"Pass ignore_index={token} to the loss.",
        )  # fmt: skip


def _rows(context: StepContext, target: int) -> Tensor | None:
    """Targets as (samples, tokens), before they were flattened; None if they never had two axes."""
    elements, value = context.values[target].snapshot.placeholder.numel(), target
    while True:
        data = context.values[value].data
        if data is None or data.numel() != elements:
            return None
        if data.dim() == 2:
            return dense(data)
        made = context.producer(value)
        given = argument(made, "self") if made is not None and facts_of(made.name).keeps_numbers else None
        if given is None:
            return None
        value = given
