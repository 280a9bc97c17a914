"""Samples that mix, and what checks of dependence share: what is compared, what lies behind it, what moves it.

What can depend on what follows from the operations (`derivation.reaches`), so steps of the same operations and shapes
share the answer. That something does depend is said only where moving a few positions showed it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from chainrule.derivation.dependence import measured, steps, written
from chainrule.derivation.reaches import Bounds, Reaches, step_of
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.execution.experiment import CannotRunError
from chainrule.execution.lineage import Lineage
from chainrule.execution.perturbation import Perturbation
from chainrule.graph.graph import Operation, Place, Ref, Value
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


def compared_pairs(context: StepContext) -> list[Compared]:
    """What losses compare in a step."""

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
    return {context.place(each.loss) or each.loss.index: each for each in compared_pairs(context)}.values()


def inputs_of(context: StepContext, until: int) -> list[Value]:
    """The data behind a value: rows of indices, or of more than one axis of numbers."""
    least = {True: 3, False: 2}  # axes, of numbers and of indices
    found = sources_of(context, until)
    return [each for each in found if len(each.shape) >= least[each.dtype.is_floating_point]]


def sources_of(context: StepContext, until: int) -> list[Value]:
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
    """What positions of a value along an axis reach, up to another value."""
    lineage = context.once("lineage", lambda: Lineage(context.graph))
    return context.once(("reaches", source, axis, until), lambda: Reaches(context.graph, source, axis, until, lineage))


def _is_mixed(walk: Reaches) -> Callable[[int], bool]:
    return lambda value: walk.relation(value)[0] in ("any", "earlier", "later")


MIXED = Check(
    "samples-mix", "Samples of a batch mix", "warning",
    what="The prediction for one sample depends on other samples of the batch: attention, a recurrent network or a "
    "reshape runs along the axis of the batch, and the axis of positions is lost later; a reshape puts several samples "
    "into one row, or an index takes one sample for all. Or a total over all samples is added to what is of each, or "
    "attention gets (samples, features) and takes the samples for positions. Statistics of a batch, graphs and "
    "contrastive losses are not meant.",
    why="When the network is used the other samples are different ones, or none, and so are its predictions.",
    advice="Pass batch_first=True to the layer, or transpose its input; use transpose or permute to swap axes, not "
    "view or reshape. The last step of batch-first states is states[:, -1].",
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
        for given in inputs_of(context, found.index):
            if given.shape[0] != size or given.index == target.index:
                continue
            walk = walk_of(context, given.index, 0, found.index)
            mixing = _mixing(context, walk, given, found.index) or _taken_apart(context, walk, given, found.index)
            if mixing is None:
                continue
            if witness := moved_in_words(context, walk, found, _of_another):
                name, path = context.name(given.index), mixing[1]
                yield MIXED.found(
                    context.name(found.index),
                    f"The prediction for one sample depends on other samples of the batch: {mixing[0]}.",
                    (
                        f"Axis 0 of {name} {given.shape} is the batch, as axis 0 of {context.name(target.index)} is.",
                        witness,
                        f"Path: {written(steps(context.graph, path))}.",
                    ),
                    place=place_of(context, path[mixing[2]]),
                )
                return


@MIXED.in_step
def _adds_up(context: StepContext) -> list[Finding]:
    return for_all(MIXED, context, _added_up)


def _added_up(context: StepContext) -> Iterator[Finding]:
    """One total of all samples that is added to something of each."""
    for each, size in _of_samples(context):
        before = {each.prediction.index, *context.graph.ancestors([each.prediction.index])}
        for operation in context.operations_that(lambda facts: facts.adds):
            taken = operands(operation)
            if len(taken) != 2 or before.isdisjoint(out for out in operation.outputs if out is not None):
                continue
            total, other = sorted(taken, key=lambda value: len(context.values[value].shape))
            made = context.producer(total)
            given = argument(made, "self") if made is not None and facts_of(made.name).adds_up else None
            if made is None or given is None or context.values[total].shape or not context.values[total].requires_grad:
                continue
            rows = [context.values[value].shape[:1] for value in (given, other)]
            if rows != [(size,), (size,)] or given in {other, *context.graph.ancestors([other])}:
                continue
            yield MIXED.found(
                context.name(each.prediction.index),
                f"The prediction for one sample depends on other samples of the batch: {context.called(made)} adds up "
                f"all {size} of them, and each gets the total.",
                (f"The total of {context.name(given)} {context.values[given].shape} is one number.",),
                place=context.place(made), advice="Add up the axes of one sample alone: sum(1), or sum(-1).",
            )  # fmt: skip
            return


@MIXED.in_step
def _takes_for_a_sequence(context: StepContext) -> list[Finding]:
    return for_all(MIXED, context, _taken_for_a_sequence)


def _taken_for_a_sequence(context: StepContext) -> Iterator[Finding]:
    """Attention that gets (samples, features), and takes the samples for the positions of one sequence."""
    for each, size in _of_samples(context):
        sources = [value for value in sources_of(context, each.prediction.index) if value.operation is None]
        if len(sources) != 1 or sources[0].shape[:1] != (size,) or len(sources[0].shape) != 2:
            continue
        walk = walk_of(context, sources[0].index, 0, each.prediction.index)
        if not sources[0].dtype.is_floating_point or not _is_mixed(walk)(each.prediction.index):
            continue
        for call in context.graph.calls:
            given = next((ref.value for ref in call.arguments[:1] if isinstance(ref, Ref)), None)
            inside = (context.graph.operations[index] for index in call.operations)
            if given is None or len(context.values[given].shape) != 2 or walk.relation(given)[0] != "own":
                continue
            if not any(facts_of(operation.name).attends for operation in inside):
                continue
            if witness := moved_in_words(context, walk, each.prediction, _of_another):
                name = call.module or call.name
                yield MIXED.found(
                    context.name(each.prediction.index),
                    f"The prediction for one sample depends on other samples of the batch: {name} takes its "
                    f"{size} rows for the positions of one sequence.",
                    (f"Its input {context.name(given)} has two axes, {context.values[given].shape}.", witness),
                    place=call.place,
                    advice="Attention needs (batch, positions, features): give each sample an axis of positions.",
                )  # fmt: skip
                return


def _of_samples(context: StepContext) -> Iterator[tuple[Compared, int]]:
    """What is compared with data, one row for each sample, and how many there are."""
    for each in last_of_each_line(context):
        size = each.prediction.shape[0] if each.prediction.shape else 0
        if size >= FEWEST and each.target.shape[:1] == (size,) and each.target.index in context.data:
            yield each, size


def moved_in_words(context: StepContext, walk: Reaches, of: Value, wrong: Wrong) -> str:
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


def _mixing(context: StepContext, walk: Reaches, given: Value, until: int) -> tuple[str, list[int], int] | None:
    """What mixes samples where positions are still apart, if these are lost later: in words, the path, its place."""
    if not _is_mixed(walk)(until) or _is_a_graph(context, walk.size):
        return None
    path, first = walk.path(until, _is_mixed(walk))
    made = context.values[path[first]].operation
    if made is None or not _may_not_mix(context, walk, operation := context.graph.operations[made]):
        return None
    if _is_augmented(context, walk, path):
        return None
    apart = False
    for axis in _other_axes(given):
        across = walk_of(context, given.index, axis, until)
        if across.relation(until)[0] == "own":
            return None  # that axis is the batch
        known = [across.relation(each)[0] for each in operands(operation) if across.of(each) is not None]
        apart = apart or bool(known and all(each in ("own", "one") for each in known))
    return (f"{step_of(context.graph, path[first])} brings them together", path, first) if apart else None


def _taken_apart(context: StepContext, walk: Reaches, given: Value, until: int) -> tuple[str, list[int], int] | None:
    """What takes the axis of the batch apart before a layer runs over a part of it, or takes one sample for all."""
    path, first = walk.path(until, lambda value: walk.relation(value)[0] != "own")
    operation, bounds = context.producer(path[first]), walk.of(until)
    if operation is None or bounds is None or path[first] in context.data or len(operands(operation)) > 1:
        return None
    if any(walk_of(context, given.index, axis, until).relation(until)[0] == "own" for axis in _other_axes(given)):
        return None  # that axis is the batch
    words = step_of(context.graph, path[first])
    if bool((bounds.last == bounds.last.max()).all()) and not bool(bounds.mixed(walk.size).any()):
        return f"{words} takes one of them for all", path, first
    if not facts_of(operation.name).only_reshapes or not _is_mixed(walk)(until) or _is_a_graph(context, walk.size):
        return None
    after, mixed = walk.path(until, _is_mixed(walk))
    layer = context.producer(after[mixed])
    if layer is None or not facts_of(layer.name).weighs or walk.relation(path[first])[0] != "one":
        return None
    return f"{words} puts parts of several into one row", path, first


def _other_axes(given: Value) -> list[int]:
    return [axis for axis, size in enumerate(given.shape) if axis and size > 1]


def _is_augmented(context: StepContext, walk: Reaches, path: list[int]) -> bool:
    """Whether the data itself is mixed on purpose before the model gets it (mixup, CutMix), not by a reshape."""
    first = next((each for each in path if walk.relation(each)[0] != "own"), None)
    made = None if first is None or first not in context.data else context.producer(first)
    return made is not None and not facts_of(made.name).only_reshapes


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


def place_of(context: StepContext, value: int) -> Place | None:
    """The line that made a value."""
    made = context.producer(value)
    return context.values[value].place if made is None else context.place(made)
