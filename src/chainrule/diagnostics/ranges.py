"""Numbers outside of what a loss is made for: the blank of CTC as a target, scores in a Dice loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.comparison import dense
from chainrule.graph.graph import Operation, Ref
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

BLANK = Check(
    "blank-in-targets", "The blank of CTC is a target", "warning",
    what="The targets of `ctc_loss`, within their lengths, contain the index of its blank.",
    why="The blank stands for no symbol and is left out of what is read, so this target can never be read.",
    advice="Number the symbols from 1, with blank=0, or give the index after the last symbol as the blank.",
    source="PyTorch's documentation of CTCLoss: the target index cannot be blank")  # fmt: skip


@BLANK.in_step
def _blank(context: StepContext) -> Iterator[Finding]:
    for operation in context.operations_that(lambda facts: facts.takes == "log-probabilities"):
        target, blank = argument(operation, "targets"), operation.arguments.get("blank", 0)
        data = None if target is None else context.values[target].data
        if target is None or data is None or "input_lengths" not in operation.arguments:
            continue
        within = _within(context, dense(data), operation.arguments.get("target_lengths"))
        count = int((within == blank).sum())
        if count:
            name = context.name(target)
            yield BLANK.found(
                name, f"{count} of {within.numel()} targets {name} are {blank}, the blank.", context.between(target),
                place=context.place(operation),
            )  # fmt: skip


def _within(context: StepContext, targets: Tensor, lengths: Any) -> Tensor:
    """The targets that count; those of two axes are padded."""
    known = context.values[lengths.value].data if isinstance(lengths, Ref) else torch.as_tensor(lengths or 0)
    if targets.dim() != 2 or known is None or known.numel() != len(targets):
        return targets.flatten() if targets.dim() == 1 else targets.new_empty(0)
    return targets[torch.arange(targets.shape[1]) < dense(known).reshape(-1, 1).cpu()]


DICE = Check(
    "scores-in-dice", "A Dice loss of scores that are no probabilities", "warning",
    what="A ratio, as of Dice or IoU, has the sum of predictions times a mask of 0 and 1 above the line and the sum of "
    "the same predictions below it, and these are not within 0 and 1.",
    why="The ratio is meant for probabilities. Of scores it can have any size and sign, and its denominator may be 0.",
    advice="Pass sigmoid or softmax of the scores to the loss.",
    source="Milletari, Navab and Ahmadi, V-Net, 2016: the Dice coefficient of probabilities")  # fmt: skip
BEYOND = 0.05


@DICE.in_step
def _dice(context: StepContext) -> Iterator[Finding]:
    for ratio in context.operations_that(lambda facts: facts.singular == "other"):
        above, below = argument(ratio, "self"), argument(ratio, "other")
        if above is None or below is None or not context.values[above].requires_grad:
            continue
        for prediction in _overlaps(context, above):
            known = context.statistics(prediction)
            if known is None or known.not_finite or -BEYOND < known.low <= known.high < 1 + BEYOND:
                continue
            if prediction in _summed(context, below):
                yield DICE.found(
                    context.name(prediction), f"{context.name(prediction)}, the predictions of a Dice loss, are no "
                    "probabilities.",
                    f"They lie between {number(known.low)} and {number(known.high)}.", place=context.place(ratio),
                )  # fmt: skip
                return


def _terms(context: StepContext, value: int, depth: int = 8) -> Iterator[Operation]:
    """The sums of elements that a value is put together from, by adding and scaling."""
    made = context.producer(context.source(value))
    if made is None or not depth:
        return
    facts = facts_of(made.name)
    if facts.adds_up:
        yield made
    elif facts.adds or facts.scales or facts.difference:
        for each in operands(made):
            yield from _terms(context, each, depth - 1)


def _overlaps(context: StepContext, value: int) -> Iterator[int]:
    """The predictions in sums of predictions times a mask."""
    for total in _terms(context, value):
        given = argument(total, "self")
        product = None if given is None else context.producer(context.source(given))
        if product is None or not facts_of(product.name).multiplies or len(operands(product)) != 2:
            continue
        for prediction, mask in (operands(product), operands(product)[::-1]):
            known = context.statistics(mask) if mask in context.data else None
            if known is not None and known.low == 0 and known.high == 1 and context.values[prediction].requires_grad:
                yield context.source(prediction)


def _summed(context: StepContext, value: int) -> set[int]:
    given = [argument(total, "self") for total in _terms(context, value)]
    return {context.source(each) for each in given if each is not None}
