"""Faults of attention: weights that choose nothing or one token, masks that hide nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.run_context import Run, Stretch, carry
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.comparison import dense
from chainrule.graph.graph import Operation, Ref
from chainrule.graph.trees import reach
from chainrule.numbers import number
from chainrule.rules.facts import base_name, facts_of

FEW = 4  # tokens: among fewer, attention to one or to all alike says little
SPAN = 40  # steps: a projection that begins at 0 has moved by then


@dataclass(frozen=True)
class Attention:
    """A softmax over tokens whose result weighs other values."""

    operation: Operation
    scores: int
    weights: int


def attentions(context: StepContext) -> list[Attention]:
    """The attentions of a step whose weights are values; a fused kernel has none."""
    return context.once("attentions", lambda: list(_attentions(context)))


def _attentions(context: StepContext) -> Iterator[Attention]:
    for operation in context.graph.operations:
        scores, out = argument(operation, "self"), operation.outputs[0] if operation.outputs else None
        if not facts_of(operation.name).softmax or scores is None or out is None:
            continue
        shape = context.values[out].shape
        if len(shape) > 1 and operation.arguments.get("dim") in (-1, len(shape) - 1) and _weighs_values(context, out):
            yield Attention(operation, scores, out)


def spread_of_scores(context: StepContext, attention: Attention) -> float:
    """The standard deviation of scores before masks; 0 where it is not known."""
    taken = [given for _, given in _towards(context, attention.scores) if given is not None]
    known = context.statistics(taken[-1] if taken else attention.scores)
    return 0.0 if known is None else known.std


def called(context: StepContext, operation: Operation) -> str:
    """The module of PyTorch's own attention; for one that is written out, the name of its result."""
    call = context.graph.calls[operation.call] if operation.call is not None else None
    if call is not None and call.module and "attention" in call.name:
        return call.module
    return context.name(next(each for each in operation.outputs if each is not None))


def _weighs_values(context: StepContext, weights: int) -> bool:
    """Whether they are multiplied, as a matrix, by something that is no parameter."""
    ahead = {weights, *reach([weights], lambda value: _same_places(context, value))}
    for use in (use for value in ahead for use in context.uses.get(value, ())):
        if facts_of(use.name).matrix_product and argument(use, "self") in ahead:
            other = argument(use, "mat2")
            return other is not None and context.values[context.source(other)].kind != "parameter"
    return False


def _same_places(context: StepContext, value: int) -> list[int]:
    """What becomes of weights by a dropout, or in another shape."""
    return [
        out for use in context.uses.get(value, ()) if facts_of(use.name).keeps_numbers or in_dropout(context, use)
        for out in use.outputs if out is not None and context.values[out].requires_grad
    ]  # fmt: skip


def in_dropout(context: StepContext, operation: Operation) -> bool:
    """Whether it multiplies the weights by those of a dropout."""
    facts = facts_of(operation.name)
    if not (facts.multiplies or facts.drops) or operation.call is None:
        return False
    name = context.graph.calls[operation.call].name
    return any(word in name for word in ("dropout", "attention"))


def _for_long(check: Check, run: Run, since_start: bool = False) -> Iterator[Finding]:
    """What lasted over enough steps has the severity of the check."""
    for stretch, found in check.carried(run):
        ok = _has_lasted(check, stretch) and (stretch.whole or not since_start)
        yield replace(found, severity=check.severity) if ok else found


def _has_lasted(check: Check, stretch: Stretch) -> bool:
    return len(stretch.steps) >= check.lasts and stretch.steps[-1] - stretch.steps[0] >= SPAN


UNIFORM = Check(
    "uniform-attention", "Attention gives every token the same weight", "warning",
    what="The weights of an attention differ by less than a rounding of small scores from 1/n, for n tokens that the "
    "mask leaves. In one step it is a note; a warning once it has lasted 40 steps and 5 examined ones, and one that "
    "ended later if it was so from the first step on.",
    why="The layer is a mean over the tokens: queries and keys have no effect, and learn nothing.",
    advice="Look at the scores: a query or key projection that is 0, a division that is too large, or a mask of large "
    "finite numbers that hides all tokens alike.",
    source="Vaswani et al., 2017, 3.2.1; Zhai et al., Stabilizing transformer training, 2023: entropy of attention",
    thresholds=("uniform",), lasts=5)  # fmt: skip


@UNIFORM.in_step
def _uniform(context: StepContext) -> Iterator[Finding]:
    for each in attentions(context):
        weights, known = context.values[each.weights], context.statistics(each.weights)
        tokens = weights.shape[-1]
        if known is None or known.not_finite or tokens < FEW or not weights.requires_grad:
            continue
        if weights.data is not None:
            spread = _spread(dense(weights.data))
        elif not known.zeros and weights.dtype in (torch.float32, torch.float64):
            spread = known.std / known.mean if known.mean else math.inf
        else:
            continue
        if spread < context.thresholds.uniform:
            yield UNIFORM.found(
                called(context, each.operation),
                f"The attention {called(context, each.operation)} gives each of {tokens} tokens the same weight"
                f"{' that is not masked' if known.zeros else ''}.",
                (f"The weights differ from their mean by {100 * spread:.2g} %.", context.between(each.scores)),
                place=context.place(each.operation), severity="note",
            )  # fmt: skip


@UNIFORM.over_time
def _uniform_for_long(run: Run) -> Iterator[Finding]:
    late = {}
    for stretch in run.stretches(UNIFORM.id, first_row=True):
        # Nothing was asked of the tokens until it ended, which `carried` leaves out.
        found = carry(stretch, lasts=1) if stretch.whole and stretch.ended and _has_lasted(UNIFORM, stretch) else None
        if found is not None:
            late[found.where] = replace(found, severity=UNIFORM.severity)
    yield from late.values()
    yield from (found for found in _for_long(UNIFORM, run) if found.where not in late)


def _spread(weights: Tensor) -> float:
    """The root mean square of n p - 1 over the places that are not masked, of rows with several of them."""
    rows = weights.detach().double().flatten(0, -2)
    seen = (rows > 0).sum(1, keepdim=True)
    rows, seen = rows[seen[:, 0] >= FEW], seen[seen[:, 0] >= FEW]
    away = ((rows * seen - 1) ** 2)[rows > 0]
    return float(away.mean().sqrt()) if away.numel() else math.inf


ONE_TOKEN = Check(
    "one-token-attention", "All attention goes to one token", "warning",
    what="Every query of a head gives nearly all of its weight to the same token. It needs the numbers of the weights, "
    "and is a note unless it holds since the start, over 40 steps and 5 examined ones.",
    why="Each position gets the same value, whatever it asks for, and the gradient of queries and keys is nearly 0.",
    advice="Divide the scores by the root of their width, use smaller initial weights or a norm on queries and keys, "
    "and look for a key far larger than the others.",
    source="Zhai et al., Stabilizing transformer training by preventing attention entropy collapse, 2023",
    thresholds=("one_token",), lasts=5)  # fmt: skip


@ONE_TOKEN.in_step
def _one_token(context: StepContext) -> Iterator[Finding]:
    for each in attentions(context):
        weights = context.values[each.weights]
        if weights.data is None or min(weights.shape[-2:]) < FEW or not weights.requires_grad:
            continue
        heads = dense(weights.data).detach().double().flatten(0, -3) if len(weights.shape) > 2 else weights.data[None]
        several = (heads > 0).sum(-1) >= FEW  # the first rows of a causal mask see one token alone
        if not several.any():
            continue
        most = (heads * several[..., None]).sum(1) / several.sum(1).clamp(min=1)[:, None]
        share, token = most[several.any(1)].max(1)
        if float(share.mean()) > context.thresholds.one_token:
            yield ONE_TOKEN.found(
                called(context, each.operation),
                f"Every query of {called(context, each.operation)} attends to one token: it gets "
                f"{100 * float(share.mean()):.4g} % of the weight.",
                (f"In the first sample it is token {int(token[0])} of {weights.shape[-1]}.",
                 context.between(each.scores)),
                place=context.place(each.operation), severity="note",
            )  # fmt: skip


ONE_TOKEN.over_time(partial(_for_long, ONE_TOKEN, since_start=True))


NO_MASK = Check(
    "mask-without-effect", "A mask hides nothing", "warning",
    what="The result of masked_fill is not used though its operand goes on to a softmax; masked scores are filled with "
    "a number among the others, or multiplied by 0; a mask that is added takes two values that lie close to each "
    "other, or one value for all tokens of a query; or a square mask, the same for all samples, hides no place.",
    why="Nothing fails, and tokens see what they must not: the future, or padding.",
    advice="Assign the result of masked_fill (or use masked_fill_), fill with float('-inf') before the softmax, and "
    "build the mask for the convention of the function that takes it.",
    source="PyTorch's documentation of Tensor.masked_fill, nn.MultiheadAttention and scaled_dot_product_attention, in "
    "which True means the opposite", lasts=2)  # fmt: skip
HIDDEN = 20.0  # how far below the largest score a masked one has a weight of e^-20
SHALLOW = 5.0  # between the two values of a mask that is added: a hidden token keeps e^-5 of its weight, or more


@NO_MASK.in_step
def _mask_without_effect(context: StepContext) -> Iterator[Finding]:
    yield from _dropped(context)
    for each in attentions(context):
        for made, _ in _towards(context, each.scores):
            facts = facts_of(made.name)
            words = _among_others(context, made) if facts.replaces_masked else ""
            words = words or (_times_zero(context, made) if facts.multiplies else "")
            words = words or (_hides_nothing(context, made) if facts.mask or facts.adds else "")
            words = words or _adds_nothing(context, _added(context, made), each.scores)
            if words:
                yield _found(context, made, words)
    for operation in context.graph.operations:
        mask = argument(operation, "attn_mask") if "scaled_dot_product" in operation.name else None
        key = argument(operation, "key")
        if mask is None or key is None:
            continue
        if _is_square(context, mask) and _is_open(context, mask, hides=False):
            yield _found(context, operation, f"the mask {context.name(mask)} hides no place")
        elif words := _adds_nothing(context, mask, key, tokens=-2):
            yield _found(context, operation, words)


def _found(context: StepContext, operation: Operation, words: str) -> Finding:
    out = next(each for each in operation.outputs if each is not None)
    given = argument(operation, "self")
    return NO_MASK.found(
        called(context, operation), f"A mask of the attention has no effect: {words}.",
        ("" if given is None else context.between(given), f"It is of shape {context.values[out].shape}."),
        place=context.place(operation),
    )  # fmt: skip


def _dropped(context: StepContext) -> Iterator[Finding]:
    """masked_fill without the underscore, whose result is used nowhere."""
    scores = {context.source(each.scores) for each in attentions(context)}
    for operation in context.graph.operations:
        given, (out, *_) = argument(operation, "self"), operation.outputs or (None,)
        in_place = base_name(operation.name).endswith("_")
        if not facts_of(operation.name).replaces_masked or in_place or given is None or out is None:
            continue
        if context.uses.get(out):
            continue
        if scores & {context.source(given), *reach([given], lambda value: _onward(context, value))}:
            yield NO_MASK.found(
                context.name(out), f"The result of masked_fill is not used: {context.name(given)} goes on to the "
                "softmax unmasked.", f"{context.name(out)} of shape {context.values[out].shape} is an operand of "
                "0 operations.", place=context.place(operation),
                advice="Assign the result of masked_fill, or call masked_fill_.",
            )  # fmt: skip


def _onward(context: StepContext, value: int) -> list[int]:
    return [out for use in context.uses.get(value, ()) if _keeps_order(use) for out in use.outputs
            if out is not None]  # fmt: skip


def _towards(context: StepContext, scores: int) -> Iterator[tuple[Operation, int | None]]:
    """The operations that lead up to scores, each with the scores it takes: masks, additions of what is not learnt."""
    while (made := context.producer(scores)) is not None:
        facts, given, other = facts_of(made.name), argument(made, "self"), argument(made, "other")
        if argument(made, "batch1") is not None:  # a product to which a mask is added
            yield made, None
            return
        masks = bool(facts.mask or facts.adds or facts.multiplies) and len(operands(made)) > 1
        if other is not None and context.values[other].requires_grad:
            if given is None or context.values[given].requires_grad:
                return
            given = other
        if masks:
            yield made, given
        if given is None or not (masks or _keeps_order(made)):
            return
        scores = given


def hidden_places(context: StepContext, scores: int) -> Tensor | None:
    """Where masks hide a place of scores; None if the numbers of one of them are not known."""
    shape = context.values[scores].shape
    hidden = torch.zeros(shape, dtype=torch.bool)
    for made, _ in _towards(context, scores):
        facts, fill = facts_of(made.name), made.arguments.get("value")
        mask = argument(made, facts.mask) if facts.mask else _added(context, made)
        data = None if mask is None else _numbers(context, mask)
        shapes = [context.values[out].shape for out in made.outputs if out is not None]
        if data is None or shapes != [shape] or isinstance(fill, Ref) or (facts.mask and not facts.replaces_masked):
            return None
        hides = dense(data) & (fill is not None and fill < -HIDDEN) if facts.mask else dense(data) < -HIDDEN
        hidden = hidden | hides.to(hidden.device)
    return hidden


def _numbers(context: StepContext, mask: int) -> Tensor | None:
    """The numbers of a mask, or of the smaller one that was expanded to it: (samples, tokens), for every query."""
    known, small = context.values[mask], context.values[context.source(mask)]
    if known.data is not None or small.data is None or len(known.shape) != 4 or known.shape[-2] != 1:
        return known.data
    ends = known.shape[0], known.shape[-1]
    return dense(small.data).reshape(ends[0], 1, 1, ends[1]) if small.shape == ends else None


def _keeps_order(operation: Operation) -> bool:
    facts = facts_of(operation.name)
    return facts.keeps_numbers or ((facts.scales or facts.adds) and len(operands(operation)) == 1)


def _among_others(context: StepContext, operation: Operation) -> str:
    """A fill that lies among the scores."""
    fill, given, mask = operation.arguments.get("value"), argument(operation, "self"), argument(operation, "mask")
    known = context.statistics(given)
    if not isinstance(fill, (int, float)) or known is None or mask is None or not _any(context, mask):
        return ""
    if known.low < fill and fill > -HIDDEN / 2 and known.high - fill < HIDDEN:
        return f"it fills hidden places with {number(float(fill))}, and the other scores lie as low as " + (
            f"{number(known.low)}"
        )
    return ""


def _any(context: StepContext, mask: int) -> bool:
    data = context.values[mask].data
    return data is not None and bool(dense(data).any())


def _times_zero(context: StepContext, operation: Operation) -> str:
    """Scores that are multiplied by zeros and ones."""
    other = argument(operation, "other")
    known = context.values[other] if other is not None else None
    if other is None or known is None or known.requires_grad or known.data is None or not known.shape:
        return ""
    data = dense(known.data)
    hidden = int((data == 0).sum())
    if not hidden or hidden == data.numel() or not bool(((data == 0) | (data == 1)).all()):
        return ""
    return f"scores times 0 are 0, and the softmax gives them weight ({hidden} of {data.numel()} places)"


def _hides_nothing(context: StepContext, operation: Operation) -> str:
    """A square mask that is the same for all samples, and 0 or False everywhere."""
    facts = facts_of(operation.name)
    mask, keeps = argument(operation, facts.mask or "other"), bool(facts.mask) and not facts.replaces_masked
    if mask is None or not _is_square(context, mask) or not _is_open(context, mask, hides=not keeps):
        return ""
    return f"the mask {context.name(mask)} hides no place"


def _added(context: StepContext, operation: Operation) -> int | None:
    """What an operation adds to scores, or to the product that they are, and is not learnt."""
    product = argument(operation, "batch1") is not None
    names = ("self",) if product else ("other", "self") if facts_of(operation.name).adds else ()
    taken = (argument(operation, name) for name in names)
    return next((each for each in taken if each is not None and not context.values[each].requires_grad), None)


def _adds_nothing(context: StepContext, mask: int | None, scores: int, tokens: int = -1) -> str:
    """A mask that adds two numbers close to each other, or one to all tokens of a query; they lie along `tokens`."""
    known, found = (None, None) if mask is None else (context.values[mask], context.statistics(context.source(mask)))
    if mask is None or known is None or found is None or not known.shape or not known.dtype.is_floating_point:
        return ""
    behind = (context.values[each].kind for each in (mask, *context.graph.ancestors([mask])))
    apart, tokens = found.high - found.low, context.values[scores].shape[tokens]
    if known.requires_grad or "parameter" in behind or not apart or tokens < FEW:
        return ""
    name = context.name(context.source(mask))
    if known.shape[-1] == 1:
        return f"{name} adds one number to the scores of all tokens, which does not change a softmax"
    between = found.norm**2 / found.elements - (found.low + found.high) * found.mean + found.low * found.high
    if apart > SHALLOW or abs(between) > 1e-5 * apart**2:  # the mean of (x - low) (x - high)
        return ""
    return (
        f"{name} adds {number(found.low)} or {number(found.high)}, and a token that gets the smaller one keeps "
        f"{number(math.exp(-apart))} of its weight"
    )


def _is_square(context: StepContext, mask: int) -> bool:
    """Whether it is one for all samples, with as many rows as columns."""
    known = context.values[context.source(mask)]
    shape = [size for size in known.shape[:-2] if size > 1]
    square = len(known.shape) > 1 and known.shape[-1] == known.shape[-2] >= FEW
    return square and not shape and not known.requires_grad and known.kind != "parameter"


def _is_open(context: StepContext, mask: int, hides: bool) -> bool:
    """Whether a mask hides nothing: a float of one number, or a boolean without the one that `hides`."""
    known = context.values[context.source(mask)]
    if known.dtype == torch.bool:
        wrong: Callable[[Tensor], Tensor] = torch.any if hides else lambda data: ~data.all()
        return known.data is not None and not bool(wrong(dense(known.data)))
    statistics = context.statistics(known.index)
    return statistics is not None and not statistics.not_finite and statistics.low == statistics.high
