"""Faults of tokens: masks after the softmax, one position for all, means over padding."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.diagnostics.attention import in_dropout
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import comparisons, first_output
from chainrule.diagnostics.dependence import MIXED
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.padding import paddings
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.graph import Operation, Value
from chainrule.rules.facts import facts_of

AFTER = Check(
    "mask-after-softmax", "A mask of zeros after the softmax of attention", "warning",
    what="Weights of attention, none of which is 0, are multiplied by a mask of ones and zeros, and go on to the "
    "product with the values without a division by their sum.",
    why="The weights of a query no longer add up to 1, and what was hidden still takes its part of the sum: positions "
    "know of the future, or of padding.",
    advice="Mask the scores before the softmax: scores.masked_fill(mask == 0, float('-inf')).",
    source="Vaswani et al., Attention is all you need, 2017, 3.2.3: masking in the input of the softmax")  # fmt: skip
FEW = 4  # tokens


@AFTER.in_step
def _after(context: StepContext) -> Iterator[Finding]:
    for softmax in context.operations_that(lambda facts: facts.softmax):
        weights = first_output(softmax)
        known = context.statistics(weights)
        if weights is None or known is None or known.zeros or len(context.values[weights].shape) < 3:
            continue
        for use in context.uses.get(weights, ()):
            given, out = [each for each in operands(use) if each != weights], first_output(use)
            if not facts_of(use.name).multiplies or len(given) != 1 or out is None:
                continue
            chosen = weights in context.graph.ancestors([given[0]])  # the largest weights, as experts are chosen
            if chosen or not _is_mask(context, given[0]) or not _weighs(context, out):
                continue
            name, mask = context.name(weights), context.statistics(given[0])
            assert mask is not None
            yield AFTER.found(
                name, f"The weights {name} are multiplied by the mask {context.name(given[0])} after their softmax: "
                "those of a query no longer add up to 1.",
                f"The mask is 0 at {mask.zeros} of {mask.elements} places, and no weight was 0 before it.",
                place=context.place(use),
            )  # fmt: skip
            return


def _is_mask(context: StepContext, value: int) -> bool:
    """Whether it is zeros and ones along an axis of tokens, and not drawn."""
    known, shape = context.statistics(value), context.values[value].shape
    if known is None or not shape or shape[-1] < FEW or context.values[value].requires_grad or known.not_finite:
        return False
    binary = known.low == 0 and known.high == 1 and abs(known.norm**2 - known.mean * known.elements) < 1e-3
    drawn = (context.producer(each) for each in (value, *context.graph.ancestors([value])))
    return binary and not any(made is not None and made.random_state is not None for made in drawn)


def _weighs(context: StepContext, value: int) -> bool:
    """Whether a matrix product takes it, also under another shape or after a dropout."""
    for use in context.uses.get(value, ()):
        out, facts = first_output(use), facts_of(use.name)
        if facts.matrix_product and argument(use, "self") == value:
            return True
        passes = facts.in_row_order or facts.copies or facts.drops or in_dropout(context, use)
        if passes and out is not None and _weighs(context, out):
            return True
    return False


ONE_POSITION = Check(
    "one-position", "All positions get the same position", "warning",
    what="Of a table of constants or parameters with a row for each position the one row at the length of the "
    "sequence, or the last one before it, is added to all positions.",
    why="It says the same of every position: the network does not know the order of the tokens.",
    advice="Take the rows up to the length: pe[:, : x.size(1)] in place of pe[:, x.size(1)].",
    source="Vaswani et al., Attention is all you need, 2017, 3.5")  # fmt: skip


@ONE_POSITION.in_step
def _one_position(context: StepContext) -> Iterator[Finding]:
    for operation in context.operations_that(lambda facts: facts.adds):
        given = operands(operation)
        for row, tokens in (given, given[::-1]) if len(given) == 2 else ():
            shape = context.values[tokens].shape
            if len(shape) != 3 or tokens not in context.from_data or context.values[row].shape[-1:] != shape[-1:]:
                continue
            taken = _one_row(context, row)
            if taken is None:
                continue
            table, rows, index = taken
            length = next((each for each in shape[:2] if index in (each, each - 1) and FEW <= each <= rows), None)
            if length is None or context.values[row].shape[:-1].count(1) != len(context.values[row].shape) - 1:
                continue
            yield ONE_POSITION.found(
                context.name(row), f"Row {index} of the {rows} of {context.name(table)} is added to all {length} "
                f"positions of {context.name(tokens)} {shape}.",
                f"{context.name(row)} has the shape {context.values[row].shape}.", place=context.place(operation),
            )  # fmt: skip
            return


def _one_row(context: StepContext, value: int) -> tuple[int, int, int] | None:
    """(table, its rows, index) where a value is one row of a table of the model."""
    while (made := context.producer(value)) is not None:
        given, index = argument(made, "self"), made.arguments.get("index")
        if given is None or not facts_of(made.name).keeps_numbers:
            return None
        if isinstance(index, int):
            table, shape = context.source(given), context.values[given].shape
            rows = shape[made.arguments.get("dim", 0) % len(shape)]
            if context.values[table].kind in ("parameter", "buffer"):
                return table, rows, index % rows
        value = given
    return None


POOLED = Check(
    "padding-in-mean", "A mean over tokens counts padding", "warning",
    what="A mean over the positions of a batch of tokens, of which a quarter at least is padding, makes one vector for "
    "each sample, and no mask is used before it. It needs the numbers of the tokens.",
    why="What a sentence means then depends on the length of the longest one in its batch, and is mostly padding.",
    advice="Take the mean of the tokens alone: (h * mask).sum(1) / mask.sum(1).",
    source="Reimers and Gurevych, Sentence-BERT, 2019: mean pooling")  # fmt: skip
SHARE = 0.25  # of the tokens


@POOLED.in_step
def _pooled(context: StepContext) -> Iterator[Finding]:
    known = [each for each in paddings(context) if float(each.where.float().mean()) > SHARE]
    used = context.graph.ancestors([each.prediction for each in comparisons(context)]) if known else set()
    for operation in context.operations_that(lambda facts: facts.averages) if known else ():
        given, out = argument(operation, "self"), first_output(operation)
        if given is None or out not in used or _axes(operation, context.values[given]) != [1]:
            continue
        for padding in known:
            rows, before = tuple(padding.where.shape), context.graph.ancestors([given]) | {given}
            tokens = context.source(padding.ids)
            if context.values[given].shape[:2] != rows or padding.ids not in before or not _is_plain(context, given):
                continue
            masks = [each for each in before & context.data if tokens in context.graph.ancestors([each])]
            if any(context.source(each) != tokens for each in masks):
                continue
            count = int(padding.where.sum())
            yield POOLED.found(
                context.name(out), f"The mean {context.name(out)} over the tokens of {context.name(padding.ids)} "
                f"counts padding, token {padding.token}.",
                f"{count} of {padding.where.numel()} tokens of the batch are padding.", place=context.place(operation),
            )  # fmt: skip
            return


def _axes(operation: Operation, given: Value) -> list[int]:
    """The axes over which a mean or a sum runs."""
    axes = operation.arguments.get("dim")
    chosen = [axes] if isinstance(axes, int) else axes or range(len(given.shape))
    return sorted(axis % max(len(given.shape), 1) for axis in chosen)


def _is_plain(context: StepContext, value: int) -> bool:
    """Whether something was computed with the embedding: that of padding itself may be all zeros."""
    made = context.producer(context.source(value))
    return made is not None and not facts_of(made.name).looks_up


@MIXED.in_step
def _divided_by_all(context: StepContext) -> Iterator[Finding]:
    """The sum over a sample's tokens is divided by the number of tokens of all samples."""
    for operation in context.operations_that(lambda facts: facts.singular == "other" and facts.scales):
        total, count = argument(operation, "self"), argument(operation, "other")
        mask = _whole_sum(context, count) if count in context.data else None
        maker = context.producer(context.source(total)) if total is not None and mask is not None else None
        if maker is None or mask is None or not facts_of(maker.name).adds_up or not context.values[total or 0].shape:
            continue
        given = argument(maker, "self")
        product = context.producer(context.source(given)) if given is not None else None
        if product is None or given is None or not facts_of(product.name).multiplies:
            continue
        factors = {context.source(each) for each in operands(product)}
        if context.source(mask) not in factors or _axes(maker, context.values[given]) != [1]:
            continue
        name, shape = context.name(first_output(operation) or 0), context.values[mask].shape
        yield MIXED.found(
            name, f"{name} is a sum over the tokens of each sample, divided by the tokens of all samples: it depends "
            "on which other samples are in the batch.",
            f"{context.name(count or 0)} is the sum of all of {context.name(mask)} {shape}, one number for "
            f"{shape[0]} samples.", place=context.place(operation),
            advice="Divide by the tokens of each sample: mask.sum(1, keepdim=True).",
        )  # fmt: skip
        return


def _whole_sum(context: StepContext, value: int | None) -> int | None:
    """The rows of which a number is the sum of all."""
    while value is not None and (made := context.producer(value)) is not None and not context.values[value].shape:
        given = argument(made, "self")
        if facts_of(made.name).adds_up:
            several = given is not None and len(context.values[given].shape) > 1
            return given if several and context.values[given or 0].shape[0] > 1 else None
        value = given if facts_of(made.name).limits or facts_of(made.name).keeps_numbers else None
    return None
