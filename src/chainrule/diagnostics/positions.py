"""Faults of positions in a sequence: they see what they are to predict, predict the wrong one, or reach no loss."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from chainrule.derivation.dependence import steps, written
from chainrule.derivation.reaches import Bounds, Reaches, alignments, step_of
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.dependence import (
    FEWEST,
    Compared,
    Wrong,
    compared_pairs,
    for_all,
    inputs_of,
    last_of_each_line,
    moved_in_words,
    place_of,
    sources_of,
    walk_of,
)
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.graph import Value
from chainrule.rules.facts import facts_of


def _of_a_later(seen: Bounds, of: Value, size: int) -> Tensor:
    allowed = [seen.last - 1 <= each.positions for each in alignments(of.shape, size)]
    best = max(allowed, key=lambda each: int(each.sum()), default=torch.ones(()))
    return (seen.last > 0) & (best == 0)


FUTURE = Check(
    "sees-the-future", "A position sees what it is to predict", "warning",
    what="The targets are the next positions of the input, and the prediction depends on them. Or attention with a "
    "causal mask is followed by an operation that mixes all positions. Or the targets are the tokens of the input, not "
    "shifted, and each position sees its own and none after it.",
    why="The network copies the answer: the loss falls to nearly 0, and when it generates there is nothing to copy.",
    advice="Give the attention a causal mask, pad a convolution on the left alone, and let no layer mix or reverse "
    "positions. chainrule.assert_causal(model, tokens) tests it.",
    source="Vaswani et al., Attention is all you need, 2017, 3.2.3: masks against looking ahead")  # fmt: skip


@FUTURE.in_step
def _sees(context: StepContext) -> list[Finding]:
    return for_all(FUTURE, context, _future)


def _future(context: StepContext) -> Iterator[Finding]:
    for each in last_of_each_line(context):
        until = each.prediction.index
        for given in sources_of(context, until):
            for axis, size in enumerate(given.shape):
                why, wrong = _leak(context, each, given, axis) if size >= FEWEST else ("", _of_a_later)
                walk = walk_of(context, given.index, axis, until) if why else None
                if walk is None or not (witness := moved_in_words(context, walk, each.prediction, wrong)):
                    continue
                path, first = walk.path(until, partial(_sees_later, walk))
                made = f"{step_of(context.graph, path[first])}{_module(context, path[first])}"
                yield FUTURE.found(
                    context.name(until),
                    f"{why}, and {made} lets positions see later ones.",
                    (
                        f"Positions lie along axis {axis} of {context.name(given.index)} {given.shape}.",
                        witness,
                        f"Path: {written(steps(context.graph, path))}.",
                    ),
                    place=place_of(context, path[first]),
                )
                return


def _leak(context: StepContext, each: Compared, given: Value, axis: int) -> tuple[str, Wrong]:
    """Why a prediction sees what it may not, in words, and which elements then do; "" where it does not, or may."""
    until, target = each.prediction.index, each.target
    name = context.name(given.index)
    if _is_cut_from(context, target.index, given.index):
        of_target = walk_of(context, given.index, axis, target.index).of(target.index)
        seen = walk_of(context, given.index, axis, until).of(until)
        if of_target is not None and seen is not None:
            own = partial(_of_its_target, each, of_target)
            if bool(own(seen, each.prediction, given.shape[axis]).any()):
                return f"The targets are the next positions of {name}", own
    elif _is_next(given, target, axis):
        if _sees_later(walk_of(context, given.index, axis, until), until):
            return f"The targets are {name} shifted by one position", _of_a_later
    elif axis == 1 and _has_rows(each, given) and _is_attended(context, given.shape[axis]):
        walk = walk_of(context, given.index, axis, until)
        if _sees_later(walk, until) and any(_is_causal(context, walk, value) for value in walk.bounds):
            return "A causal mask hides later positions in attention", _of_a_later
    return "", _of_a_later


def _is_cut_from(context: StepContext, target: int, given: int) -> bool:
    """Whether a target is a part of the same data."""
    before = context.graph.ancestors([target])
    makers = (context.producer(each) for each in (target, *before))
    return given in before and any(made is not None and facts_of(made.name).slices for made in makers)


def _is_attended(context: StepContext, size: int) -> bool:
    """Whether there is attention over so many positions."""
    return any(
        size in context.values[out].shape
        for operation in context.operations_that(lambda facts: facts.attends)
        for out in operation.outputs[:1]
        if out is not None
    )


def _has_rows(each: Compared, given: Value) -> bool:
    """Whether an input is a batch of sequences, and there is a target for each position."""
    if len(given.shape) < (3 if given.dtype.is_floating_point else 2) or given.shape[0] == given.shape[1]:
        return False
    target, rows = each.target.shape, given.shape[:2]
    return target[:2] == rows or target[:1] == (rows[0] * rows[1],)


def _is_causal(context: StepContext, walk: Reaches, value: int) -> bool:
    """Whether a value is made by attention that a causal mask keeps from later positions."""
    made = context.producer(value)
    if made is None or not facts_of(made.name).attends or walk.relation(value)[0] != "earlier":
        return False
    return bool(walk.bounds[value].mixed(walk.size).any())


def _sees_later(walk: Reaches, value: int) -> bool:
    return walk.relation(value)[0] in ("any", "later")


def _of_its_target(each: Compared, target: Bounds, seen: Bounds, of: Value, size: int) -> Tensor:
    """Of targets that are the next positions of the same data: which elements of a prediction see their own."""
    shape = each.target.shape
    wanted = target.last.expand(shape)
    if facts_of(each.loss.name).class_target and len(of.shape) == len(shape) + 1:
        wanted = wanted.unsqueeze(1)
    if len(wanted.shape) != len(of.shape) or bool(target.mixed(size).any()) or not bool((wanted > 0).any()):
        return torch.zeros((), dtype=torch.bool)
    several = len(wanted[wanted > 0].unique()) >= FEWEST
    shifted = several and int(wanted[wanted > 0].min()) == 2 and int(seen.first.max()) == size  # from positions 1 and 0
    return (wanted > 0) & (seen.last >= wanted) & shifted


def _is_next(given: Value, target: Value, axis: int) -> bool:
    return _is_later(given, target, axis, 1)


def _is_later(given: Value, target: Value, axis: int, shift: int) -> bool:
    """Whether a target is the input, shifted by so many positions along an axis."""
    one, other = given.data, target.data
    if one is None or other is None or one.numel() != other.numel() or one.dtype != other.dtype:
        return False
    other, size = other.reshape(one.shape), one.shape[axis]
    now, later = one.narrow(axis, 0, size - shift), one.narrow(axis, shift, size - shift)
    return torch.equal(other.narrow(axis, 0, size - shift), later) and not torch.equal(now, later)


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
            if witness := moved_in_words(context, walk, each.prediction, _own):
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
    for each in compared_pairs(context):
        for given in sources_of(context, each.prediction.index) if facts_of(each.loss.name).class_target else ():
            shifts = range(1, 4) if len(given.shape) == 2 and given.shape[1] > FEWEST else ()
            by = next((shift for shift in shifts if _is_later(given, each.target, 1, shift)), 0)
            found.setdefault(by, (each, given))
    for by, (each, given) in found.items():
        if by > 1 and 1 not in found:
            name = context.name(given.index)
            yield SHIFTED.found(
                context.name(each.target.index), f"The targets are the tokens of {name} {by} positions later.",
                (f"Axis 1 of {name} {given.shape} holds the positions.", "The next token is one position later."),
                place=context.place(each.loss),
            )  # fmt: skip


IGNORED = Check(
    "ignored-input", "Most of the input reaches no loss", "warning",
    what="A layer computes with all positions of an input, and at least half of them reach no loss, whatever the "
    "numbers.",
    why="What is computed for them is thrown away, and the network learns nothing from them.",
    advice="Look at which axis is taken apart: out[:, -1] is the last position of (batch, positions, features), and "
    "out[-1] that of (positions, batch, features).",
    source="Karpathy, A recipe for training neural networks, 2019: use backprop to chart dependencies")  # fmt: skip


@IGNORED.in_step
def _ignores(context: StepContext) -> list[Finding]:
    return for_all(IGNORED, context, _ignored)


def _ignored(context: StepContext) -> Iterator[Finding]:
    losses = [each.loss for each in context.graph.accumulating if each.loss is not None]
    if len(losses) != 1:
        return
    for given in inputs_of(context, losses[0]):
        for axis, size in enumerate(given.shape):
            if axis == 0 or size < FEWEST:
                continue
            walk = walk_of(context, given.index, axis, losses[0])
            bounds = walk.of(losses[0])
            if bounds is None or walk.open() or walk.returned():
                continue
            low, high = size - int(bounds.first.max()), int(bounds.last.max()) - 1
            left, name = size - (high - low + 1), context.name(given.index)
            if 2 * left >= size and (layer := _layer_of(context, walk)) is not None:
                used = f"{low}" if low == high else f"{low} to {high}"
                yield IGNORED.found(
                    name,
                    f"{left} of {size} positions of {name} along axis {axis} reach no loss.",
                    (
                        f"Used: {used}, though {step_of(context.graph, layer)} computes with all of them.",
                        f"Path: {written(steps(context.graph, walk.path(losses[0], lambda value: False)[0]))}.",
                    ),
                    place=place_of(context, layer),
                )


def _layer_of(context: StepContext, walk: Reaches) -> int | None:
    """The first result of an operation with a parameter that all positions reach."""
    for value, bounds in walk.bounds.items():
        made = context.producer(value)
        if made is None or int(bounds.last.max()) < walk.size or int(bounds.first.max()) < walk.size:
            continue
        if any(context.values[context.source(each)].kind == "parameter" for each in operands(made)):
            return value
    return None


def _module(context: StepContext, value: int) -> str:
    """The module that made a value: ` in blocks.1`.

    Without the numbers of what it takes, a mask may hide what the structure lets through, and a later module may do it.
    """
    made = context.producer(value)
    if made is None or made.call is None or not all(context.values[each].has_numbers for each in operands(made)):
        return ""
    module = context.graph.calls[made.call].module
    return f" in {module}" if module else ""
