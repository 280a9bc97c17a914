"""Faults of padding: tokens that only fill up a batch, and get attention, count in the loss, or are read last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from chainrule.diagnostics.attention import HIDDEN, attentions, called, hidden_places
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import comparisons, first_output
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.graph.comparison import dense
from chainrule.graph.graph import Call, Operation, Ref
from chainrule.rules.facts import base_name, facts_of

SHORT, FEW, VOCABULARY = 2, 5, 10  # a run of padding at least; different tokens of a batch, and of an embedding
UNREDUCED = 0
NEVER = 1e-12  # a weight that is masked is below it

ATTENDED = Check(
    "padding-attended", "Padding gets attention", "warning",
    what="A part of the attention of real tokens goes to tokens of padding: those of padding\\_idx, or the one token "
    "that ends rows of the batch, in runs of different lengths, and stands nowhere else. It needs the numbers of the "
    "tokens; without those of the weights the masks decide.",
    why="What a sentence means then depends on the length of the longest one in its batch.",
    advice="Pass a mask of the padding: key_padding_mask=ids == pad (True hides) to nn.MultiheadAttention, attn_mask "
    "(True takes part) to scaled_dot_product_attention, attention_mask to models of Transformers.",
    source="PyTorch's documentation of nn.MultiheadAttention; Transformers' documentation of padding",
    thresholds=("to_padding",))  # fmt: skip


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
            where[:, 0] &= not bool(where[:, 0].all())  # decoders may begin with it
            if where.any() and not where.all(1).any():
                yield Padding(index, where, ids)
        elif (found := _inferred(dense(data))) is not None:
            yield Padding(found, dense(data) == found, ids)


def _inferred(ids: Tensor) -> int | None:
    """The token that ends several rows in runs of different lengths, and stands nowhere else; None without one."""
    samples, length = ids.shape
    if samples < SHORT or length < 2 * SHORT or len(ids.unique()) < FEW:
        return None
    same = ids == ids[:, -1:]
    runs = same.flip(1).long().cumprod(1).sum(1)
    if not (runs >= SHORT).any():
        return None
    token = ids[runs >= SHORT, -1].mode().values
    ends = runs[ids[:, -1] == token]
    padded = int((ends >= SHORT).sum()) >= SHORT and len(runs.unique()) >= SHORT and int(ends.max()) < length
    return int(token) if padded and int((ids == token).sum()) == int(ends.sum()) else None


@ATTENDED.in_step
def _attended(context: StepContext) -> Iterator[Finding]:
    if not paddings(context):
        return
    for each in attentions(context):
        weights, known = context.values[each.weights], context.statistics(each.weights)
        fitting = [padding for padding in paddings(context) if _fits(padding, weights.shape)]
        if not fitting or known is None:
            continue
        places = "of the places where real tokens would attend to padding are not masked"
        if weights.data is not None:
            seen, places = dense(weights.data).detach().double(), "of the attention of real tokens goes to padding"
        elif (hidden := hidden_places(context, each.scores)) is not None:
            seen = (~hidden).double()
        elif not known.zeros and known.low > NEVER:
            seen = torch.ones(weights.shape, dtype=torch.double)
        else:
            continue
        shares = [(_share(seen, padding, of_places=weights.data is None), padding) for padding in fitting]
        share, padding = min(shares, key=lambda pair: pair[0])
        if share > context.thresholds.to_padding:
            evidence = f"{100 * share:.3g} % {places}."
            yield _found(context, each.operation, padding, evidence)
    yield from _fused(context)


def _fused(context: StepContext) -> Iterator[Finding]:
    """Kernels without weights: what they get no mask for, they attend to."""
    for operation in context.graph.operations:
        key = argument(operation, "key") if "scaled_dot_product" in operation.name else None
        query = argument(operation, "query")
        if key is None or query is None or operation.arguments.get("is_causal"):
            continue
        shape = (*context.values[query].shape[:-1], context.values[key].shape[-2])
        fitting = [each for each in paddings(context) if _fits(each, shape)]
        masks = [each for name in ("attn_mask", "attn_bias") if (each := argument(operation, name)) is not None]
        hidden = torch.zeros(shape, dtype=torch.bool)
        if not fitting or any((data := context.values[each].data) is None for each in masks):
            continue
        for each in masks:
            data = dense(context.values[each].snapshot.tensor)
            hidden = hidden | (~data if data.dtype == torch.bool else data < -HIDDEN).to(hidden.device)
        share, padding = min(((_share((~hidden).double(), each, True), each) for each in fitting), key=lambda p: p[0])
        if share > context.thresholds.to_padding:
            masked = "has no mask" if not masks else f"has the mask {context.name(masks[0])}"
            evidence = f"It {masked}: {100 * share:.3g} % of the places where real tokens attend to padding are open."
            yield _found(context, operation, padding, evidence)


def _found(context: StepContext, operation: Operation, padding: Padding, evidence: str) -> Finding:
    name = called(context, operation)
    count, total = int(padding.where.sum()), padding.where.numel()
    return ATTENDED.found(
        name, f"The attention {name} does not hide the padding of {context.name(padding.ids)}, token {padding.token}.",
        (evidence, f"{count} of {total} tokens of the batch are padding."), place=context.place(operation),
    )  # fmt: skip


def _fits(padding: Padding, shape: tuple[int, ...]) -> bool:
    """Whether attention of this shape may be over these tokens: (samples, ..., queries, tokens)."""
    samples, length = padding.where.shape
    return (
        len(shape) > 2 and shape[-1] == length and (shape[0] == samples or len(shape) == 3) and not shape[0] % samples
    )


def _share(weights: Tensor, padding: Padding, of_places: bool) -> float:
    """The share of the weights of real queries that falls on padding, or of such places that are open."""
    samples, length = padding.where.shape
    whole = weights.reshape(samples, -1, *weights.shape[-2:])
    where = padding.where.to(whole.device)
    of_query = (whole * where[:, None, None, :]).sum(-1)
    if of_places:
        of_query = of_query / where.sum(1).clamp(min=1)[:, None, None]
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
    source="PyTorch's documentation of CrossEntropyLoss: ignore_index")  # fmt: skip


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
        ignored = int(operation.arguments.get("ignore_index", -100))
        token = None if data is None else _inferred(data[:, ~data.eq(ignored).all(0)])  # the last one, where shifted
        if data is None or token not in known or token == ignored:
            continue
        weight = argument(operation, "weight")
        if weight is not None and (each := context.values[weight].data) is not None and not float(each[token]):
            continue
        count = int((data == token).sum())
        yield IN_LOSS.found(
            context.name(target), f"The loss counts padding: {count} of {data.numel()} targets are token {token}.",
            f"ignore_index is {ignored}, so {100 * count / data.numel():.3g} % of the "
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


READ_LAST = Check(
    "padding-read", "A recurrent layer reads padding last", "warning",
    what="A recurrent layer gets sequences that end with padding and are not packed, and the prediction uses its last "
    "state or its output at the last position. It is a note unless half of the samples end with more padding than "
    "they have tokens.",
    why="After so much padding hardly anything is left of the sentence, and hardly any gradient reaches it: the loss "
    "stays where it began.",
    advice="Pass pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False) to the layer, take the "
    "output at each sample's last token, or put the padding in front.",
    source="PyTorch's documentation of nn.utils.rnn.pack_padded_sequence")  # fmt: skip
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
DROWNED = 0.5  # share of the samples


@READ_LAST.in_step
def _read_last(context: StepContext) -> Iterator[Finding]:
    known = paddings(context)
    used = context.graph.ancestors([each.prediction for each in comparisons(context)]) if known else set()
    for call in context.graph.calls if known else ():
        given = next((each.value for each in call.arguments if isinstance(each, Ref)), None)
        if call.name not in RECURRENT or given is None or len(context.values[given].shape) != 3:
            continue
        shape = context.values[given].shape[:2]
        for padding in known:
            ends = padding.where & (padding.where.long().flip(1).cumprod(1).flip(1) > 0)
            run, length = ends.sum(1), padding.where.shape[1]
            axis = (
                1 if shape == tuple(padding.where.shape) else 0 if shape == tuple(padding.where.shape)[::-1] else None
            )
            if axis is None or not bool((run > 1).any()) or not _uses_last(context, call, axis, used):
                continue
            drowned = int((2 * run > length).sum())
            yield READ_LAST.found(
                call.module or context.name(given), f"{call.module or call.name} reads the padding of "
                f"{context.name(padding.ids)}, token {padding.token}, last, and the prediction uses what is left then.",
                f"{drowned} of {len(run)} samples end with more padding than they have tokens; on average it is "
                f"{float(run.double().mean()):.3g} of {length}.", place=call.place,
                severity="warning" if drowned >= DROWNED * len(run) else "note",
            )  # fmt: skip
            return


def _uses_last(context: StepContext, call: Call, axis: int, used: set[int]) -> bool:
    """Whether a prediction uses the last state of a recurrent layer or, of its outputs, the last alone."""
    if any(state in used for state in call.outputs[1:]):
        return True
    ways = [use for out in call.outputs[:1] for use in beyond_views(context, out) if used & set(use.outputs)]
    return bool(ways) and all(_selects_last(context, use, axis) for use in ways)


def beyond_views(context: StepContext, value: int) -> list[Operation]:
    """What takes a value, or the whole of it under another name."""
    found = []
    for use in context.uses.get(value, ()):
        out = first_output(use)
        same = out is not None and context.values[out].shape == context.values[value].shape
        found += beyond_views(context, out) if same and out is not None and facts_of(use.name).keeps_numbers else [use]
    return found


def _selects_last(context: StepContext, operation: Operation, axis: int) -> bool:
    given, index = argument(operation, "self"), operation.arguments.get("index")
    if given is None or not isinstance(index, int):
        return False
    shape = context.values[given].shape
    return operation.arguments.get("dim", 0) % len(shape) == axis and index % shape[axis] == shape[axis] - 1
