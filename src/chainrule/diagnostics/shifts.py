"""Faults of what a language model is to predict: its own input, or the token after the next one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from chainrule.derivation.reaches import Bounds, alignments
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.dependence import (
    FEWEST,
    FUTURE,
    Compared,
    compared,
    for_all,
    is_later,
    last_of_each_line,
    moved_by,
    sources,
    walk_of,
)
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.graph.graph import Value
from chainrule.rules.facts import facts_of

SHIFTED = Check(
    "targets-shifted-twice", "The targets are shifted twice", "warning",
    what="The targets are classes, and they are the input's tokens two or three positions later, while no other "
    "targets are those one position later.",
    why="The network learns to predict the token after the next one: the loss falls, and what it generates is wrong.",
    advice="Shift once. Models of transformers shift labels themselves: pass labels=input_ids, with padding as -100.",
    source="Documentation of transformers, GPT2LMHeadModel: the labels are shifted inside the model")  # fmt: skip


@SHIFTED.in_step
def _shifts(context: StepContext) -> list[Finding]:
    return for_all(SHIFTED, context, _shifted)


def _shifted(context: StepContext) -> Iterator[Finding]:
    found: dict[int, tuple[Compared, Value]] = {}
    for each in compared(context):
        for given in sources(context, each.prediction.index) if facts_of(each.loss.name).class_target else ():
            shifts = range(1, 4) if len(given.shape) == 2 and given.shape[1] > FEWEST else ()
            by = next((shift for shift in shifts if is_later(given, each.target, 1, shift)), 0)
            found.setdefault(by, (each, given))
    for by, (each, given) in found.items():
        if by > 1 and 1 not in found:
            name = context.name(given.index)
            yield SHIFTED.found(
                context.name(each.target.index), f"The targets are the tokens of {name} {by} positions later.",
                (f"Axis 1 of {name} {given.shape} holds the positions.", "The next token is one position later."),
                place=context.place(each.loss),
            )  # fmt: skip


@FUTURE.in_step
def _copies(context: StepContext) -> list[Finding]:
    return for_all(FUTURE, context, _copied)


def _copied(context: StepContext) -> Iterator[Finding]:
    """Each position is to predict the token that it sees, and sees none after it: it was to predict the next one."""
    for each in last_of_each_line(context):
        for given in _tokens(context) if facts_of(each.loss.name).class_target else ():
            before = context.graph.ancestors([each.prediction.index])
            if given.index not in before or not _is_itself(given, each.target):
                continue
            walk = walk_of(context, given.index, 1, each.prediction.index)
            if walk.relation(each.prediction.index)[0] not in ("own", "earlier"):
                continue
            if witness := moved_by(context, walk, each.prediction, _own):
                name = context.name(given.index)
                yield FUTURE.found(
                    context.name(each.prediction.index),
                    f"The targets are the tokens of {name} themselves, and each position sees its own.",
                    (f"Positions lie along axis 1 of {name} {given.shape}, and none sees a later one.", witness),
                    place=context.place(each.loss), title="A position is to predict the token that it sees",
                    advice="Shift the targets by one position: inputs tokens[:, :-1], targets tokens[:, 1:].",
                )  # fmt: skip
                return


def _tokens(context: StepContext) -> list[Value]:
    """Rows of tokens, as embeddings look them up."""
    found = [argument(each, facts_of(each.name).looks_up) for each in context.operations_that(lambda f: f.looks_up)]
    values = [context.values[each] for each in found if each in context.data]
    return [each for each in values if len(each.shape) == 2 and each.shape[1] >= FEWEST]


def _is_itself(given: Value, target: Value) -> bool:
    one, other = given.data, target.data
    if one is None or other is None or one.numel() != other.numel() or one.dtype != other.dtype:
        return False
    return torch.equal(one, other.reshape(one.shape)) and bool((one[:, 1:] != one[:, :-1]).any())


def _own(seen: Bounds, of: Value, size: int) -> Tensor:
    own = [(seen.last > 0) & (seen.last - 1 == each.positions) for each in alignments(of.shape, size)]
    return max(own, key=lambda each: int(each.sum()), default=torch.zeros(()))
