"""Faults of what depends on what: samples that mix, positions that see the future, inputs that reach no loss.

What can depend on what follows from the operations (`derivation.reaches`), so steps of the same operations and shapes
share the answer. That something does depend is said only where moving a few positions showed it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from chainrule.derivation.dependence import measured, steps, written
from chainrule.derivation.reaches import Bounds, Reaches, alignments, step_of
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.execution.experiment import CannotRunError
from chainrule.execution.lineage import Lineage
from chainrule.execution.perturbation import Perturbation
from chainrule.graph.graph import Operation, Place, Value
from chainrule.graph.names import element
from chainrule.graph.snapshot import has_numbers
from chainrule.rules.facts import facts_of

MOST_OPERATIONS = 20_000  # of a step; in a larger one following the data takes longer than the step
FEWEST = 4
"""The positions along an axis from which on one is looked at."""
KINDS = 8
"""The steps of other shapes that are looked at; of further ones the last answer stands."""


def for_all(check: Check, context: StepContext, look: Callable[[StepContext], Iterator[Finding]]) -> list[Finding]:
    """The findings of a step, made once for all steps of a run with the same operations and shapes."""
    full = context.derivation is not None
    answers: dict[Hashable, list[Finding]] = context.kept.setdefault((check.id, look.__name__, full), {})
    operations = context.once(
        "shapes",
        lambda: tuple(
            (each.name, *(context.values[out].shape for out in each.outputs if out is not None))
            for each in context.graph.operations
        ),
    )
    if operations not in answers:
        answers[operations] = list(look(context)) if len(answers) < KINDS else [*answers.values()][-1]
    return answers[operations]


Wrong = Callable[[Bounds, Value, int], Tensor]
"""Which elements of a value of so many positions see what they may not."""


@dataclass(frozen=True)
class Compared:
    """A prediction and the target that a loss compares it with."""

    loss: Operation
    prediction: Value
    target: Value


def compared(context: StepContext) -> list[Compared]:
    """Every prediction that a loss function compares with a target."""

    def find() -> list[Compared]:
        found = []
        for operation in context.operations_that(lambda facts: facts.compares):
            given, target = argument(operation, "self"), argument(operation, "target")
            if given is not None and target is not None and context.values[given].requires_grad:
                found.append(Compared(operation, context.values[given], context.values[target]))
        return found

    return context.once("compared", find)


def last_of_each_line(context: StepContext) -> Iterable[Compared]:
    """Of the predictions that one line of code compares with targets the last, which had most before it.

    An optimizer that evaluates its closure many times in a step, as LBFGS does, runs the same line each time.
    """
    if len(context.graph.operations) > MOST_OPERATIONS:
        return ()
    return {context.place(each.loss) or each.loss.index: each for each in compared(context)}.values()


def _inputs(context: StepContext, until: int) -> list[Value]:
    """The data behind a value: rows of indices, or of more than one axis of numbers."""
    return [each for each in sources(context, until) if len(each.shape) >= (3 if each.dtype.is_floating_point else 2)]


def sources(context: StepContext, until: int) -> list[Value]:
    """The data behind a value, as the step was given it, drew it, or chose it from the rows of a larger tensor."""

    def find() -> list[Value]:
        before = sorted(context.graph.ancestors([until]) & context.data)
        return [context.values[each] for each in before if context.values[each].shape and _begins(context, each)]

    return context.once(("sources", until), find)


def _begins(context: StepContext, value: int) -> bool:
    made = context.producer(value)
    if made is None:
        return not all(_chooses(use) for use in context.uses.get(value, ()))
    return _chooses(made) or (made.random_state is not None and not operands(made))


def _chooses(operation: Operation) -> bool:
    return facts_of(operation.name).takes_rows


def walk_of(context: StepContext, source: int, axis: int, until: int) -> Reaches:
    """Where the positions along an axis of a value lead, as far as another value."""
    lineage = context.once("lineage", lambda: Lineage(context.graph))
    return context.once(("reaches", source, axis, until), lambda: Reaches(context.graph, source, axis, until, lineage))


def _is_mixed(walk: Reaches) -> Callable[[int], bool]:
    return lambda value: walk.relation(value)[0] in ("any", "earlier", "later")


MIXED = Check(
    "samples-mix", "Samples of a batch mix", "warning",
    what="The prediction for one sample depends on other samples of the batch: attention, a recurrent network or a "
    "reshape runs along the axis of the batch, and the axis of positions is lost later. Statistics of a batch, graphs "
    "and contrastive losses are not meant.",
    why="When the network is used the other samples are different ones, or none, and so are its predictions.",
    advice="Pass batch_first=True to the layer, or transpose its input; use transpose or permute to swap axes, not "
    "view or reshape.",
    source="Karpathy, A recipe for training neural networks, 2019: use backprop to chart dependencies; PyTorch's "
    "documentation of nn.LSTM and nn.MultiheadAttention: batch_first")  # fmt: skip


@MIXED.in_step
def _mixes(context: StepContext) -> list[Finding]:
    return for_all(MIXED, context, _mixed)


def _mixed(context: StepContext) -> Iterator[Finding]:
    for each in last_of_each_line(context):
        found, target = each.prediction, each.target
        size = found.shape[0] if found.shape else 0
        if size < 2 or not target.shape or target.shape[0] != size or target.index not in context.data:
            continue
        for given in _inputs(context, found.index):
            if given.shape[0] != size or given.index == target.index or _is_a_graph(context, size):
                continue
            walk = walk_of(context, given.index, 0, found.index)
            if not _is_mixed(walk)(found.index) or not (mixing := _mixing(context, walk, given, found.index)):
                continue
            if witness := moved_by(context, walk, found, _of_another):
                name, path = context.name(given.index), mixing[1]
                yield MIXED.found(
                    context.name(found.index),
                    f"The prediction for one sample depends on other samples of the batch: {mixing[0]} brings them "
                    "together.",
                    (
                        f"Axis 0 of {name} {given.shape} is the batch, as axis 0 of {context.name(target.index)} is.",
                        witness,
                        f"Path: {written(steps(context.graph, path))}.",
                    ),
                    place=_place(context, path[mixing[2]]),
                )
                return


def moved_by(context: StepContext, walk: Reaches, of: Value, wrong: Wrong) -> str:
    """Which element changes that should not where a position is moved, in words; "" where none does."""
    places = sorted({0, walk.size // 2, walk.size - 1})
    try:
        part = Perturbation(context.graph, walk.source, of.index, walk.lineage, _updated(context))
        base = part.base
        seen = measured(part.data, walk.axis or 0, lambda given: part.run(given).get(of.index, base), positions=places)
    except CannotRunError:
        return ""
    found = wrong(seen.bounds, of, walk.size).expand(of.shape).nonzero()
    if not len(found):
        return ""
    place = tuple(found[0].tolist())
    moved = f"position {int(seen.bounds.last[place]) - 1} of {context.name(walk.source)} along axis {walk.axis}"
    return f"Moving {moved} alone moves {element(context.name(of.index), place)}."


def _updated(context: StepContext) -> dict[int, Tensor]:
    """The parameters whose numbers were not kept, after their update: what moves something does so with these too."""
    known = ((member.value, member.after) for member in context.members)
    return {
        value: after
        for value, after in known
        if value is not None and has_numbers(after) and not context.values[value].has_numbers
    }


def _of_another(seen: Bounds, of: Value, size: int) -> Tensor:
    own = torch.arange(float(size)).reshape(-1, *(1,) * (len(of.shape) - 1))
    return (seen.last > 0) & (seen.last - 1 != own)


def _of_a_later(seen: Bounds, of: Value, size: int) -> Tensor:
    allowed = [seen.last - 1 <= each.positions for each in alignments(of.shape, size)]
    best = max(allowed, key=lambda each: int(each.sum()), default=torch.ones(()))
    return (seen.last > 0) & (best == 0)


def _mixing(context: StepContext, walk: Reaches, given: Value, until: int) -> tuple[str, list[int], int] | None:
    """What mixes samples where positions are still apart, if these are lost later: in words, the path, its place."""
    path, first = walk.path(until, _is_mixed(walk))
    made = context.values[path[first]].operation
    if made is None or not _may_not_mix(context, walk, operation := context.graph.operations[made]):
        return None
    others = [axis for axis, size in enumerate(given.shape) if axis and size > 1]
    apart = False
    for axis in others:
        across = walk_of(context, given.index, axis, until)
        if across.relation(until)[0] == "own":
            return None  # that axis is the batch
        known = [across.relation(each)[0] for each in operands(operation) if across.of(each) is not None]
        apart = apart or bool(known and all(each in ("own", "one") for each in known))
    return (step_of(context.graph, path[first]), path, first) if apart else None


def _may_not_mix(context: StepContext, walk: Reaches, operation: Operation) -> bool:
    """Whether an operation has no business along the axis of a batch: it is no statistic, layer, or choice by data."""
    facts, taken = facts_of(operation.name), operands(operation)
    if facts.weighs and any(context.values[context.source(each)].kind == "parameter" for each in taken):
        return False
    if facts.normalises or facts.softmax or _is_a_statistic(context, operation):
        return False
    return not any(_is_other_data(context, each) for each in taken if walk.of(each) is None)


def _is_a_statistic(context: StepContext, operation: Operation) -> bool:
    """Whether an operation makes fewer numbers of one operand."""
    taken = operands(operation)
    made, given = (
        [math.prod(context.values[each].shape) for each in several if each is not None]
        for several in (operation.outputs, taken)
    )
    return len(taken) == 1 and max(made, default=0) < max(given)


def _is_other_data(context: StepContext, value: int) -> bool:
    """Whether a value was computed from data alone: indices, or a matrix of relations."""
    return value in context.data and any(
        context.values[each].operation is None and context.values[each].shape
        for each in (value, *context.graph.ancestors([value]))
    )


def _is_a_graph(context: StepContext, size: int) -> bool:
    """Whether the data has a matrix of relations between the samples."""
    return any(context.values[each].shape.count(size) > 1 for each in context.data)


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
        for given in sources(context, until):
            for axis, size in enumerate(given.shape):
                why, wrong = _leak(context, each, given, axis) if size >= FEWEST else ("", _of_a_later)
                walk = walk_of(context, given.index, axis, until) if why else None
                if walk is None or not (witness := moved_by(context, walk, each.prediction, wrong)):
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
                    place=_place(context, path[first]),
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
    return is_later(given, target, axis, 1)


def is_later(given: Value, target: Value, axis: int, shift: int) -> bool:
    """Whether a target is the input, shifted by so many positions along an axis."""
    one, other = given.data, target.data
    if one is None or other is None or one.numel() != other.numel() or one.dtype != other.dtype:
        return False
    other, size = other.reshape(one.shape), one.shape[axis]
    now, later = one.narrow(axis, 0, size - shift), one.narrow(axis, shift, size - shift)
    return torch.equal(other.narrow(axis, 0, size - shift), later) and not torch.equal(now, later)


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
    for given in _inputs(context, losses[0]):
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
                    place=_place(context, layer),
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
    """The module that made a value: ` in blocks.1`."""
    made = context.producer(value)
    module = context.graph.calls[made.call].module if made is not None and made.call is not None else ""
    return f" in {module}" if module else ""


def _place(context: StepContext, value: int) -> Place | None:
    made = context.producer(value)
    return context.values[value].place if made is None else context.place(made)
