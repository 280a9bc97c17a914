"""Rows that belong together and are not paired: predictions with targets, samples with constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from chainrule.derivation.reaches import Reaches
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import comparisons
from chainrule.diagnostics.dependence import (
    FEWEST,
    Compared,
    for_all,
    inputs_of,
    last_of_each_line,
    sources_of,
    walk_of,
)
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.graph import Operation, Value
from chainrule.graph.trees import reach
from chainrule.rules.facts import facts_of

OF_OTHERS = Check(
    "targets-of-others", "Predictions are compared with the targets of other samples", "warning",
    what="Predictions and targets are flattened in different orders, such as (time, samples) and (samples, time): the "
    "rows that a loss compares come from different samples of the batch. Or the samples were sorted, by their lengths "
    "say, and neither the targets nor the predictions were brought into the same order.",
    why="All shapes fit, and nothing fails. The network learns no more than how frequent each target is.",
    advice="Transpose one of them before it is flattened, so that both have the samples along the same axis.",
    source="PyTorch's documentation of nn.LSTM: without batch_first its first axis is the time")  # fmt: skip
MOST = 0.5  # share of the rows that have another sample's target


@OF_OTHERS.in_step
def _of_others(context: StepContext) -> list[Finding]:
    return for_all(OF_OTHERS, context, _compared_with_others)


def _compared_with_others(context: StepContext) -> Iterator[Finding]:
    for each in last_of_each_line(context):
        rows = each.target.shape[0] if each.target.shape else 0
        if not each.prediction.shape or each.prediction.shape[0] != rows or each.target.index not in context.data:
            continue
        of_target = list(_followed(context, each.target, _before(context, each)))
        for given, size, seen in _followed(context, each.prediction, inputs_of(context, each.prediction.index)):
            for target, other_size, wanted in of_target:
                wrong = float((seen != wanted).float().mean())
                if size == other_size and sorted(given.shape[:2]) == sorted(target.shape[:2]) and wrong > MOST:
                    yield _in_other_order(context, each, (given, seen), (target, wanted), size)
                    return


def _in_other_order(
    context: StepContext, each: Compared, given: tuple[Value, Tensor], target: tuple[Value, Tensor], size: int
) -> Finding:
    (one, seen), (other, wanted) = given, target
    differ = seen != wanted
    at = int(differ.nonzero()[0])
    shapes = " and ".join(f"{context.name(value.index)} {value.shape}" for value in (one, other))
    return OF_OTHERS.found(
        context.name(each.prediction.index), f"{float(differ.float().mean()):.0%} of the predictions are compared with "
        f"the target of another place: {shapes} are flattened in different orders.",
        f"Along the axes of {size}, prediction {at} is of place {int(seen[at])}, and its target of place "
        f"{int(wanted[at])}.", place=context.place(each.loss),
    )  # fmt: skip


def _before(context: StepContext, each: Compared) -> list[Value]:
    found = sources_of(context, each.target.index) or [each.target]
    return [value for value in found if len(value.shape) > 1]


def _followed(context: StepContext, of: Value, given: list[Value]) -> Iterator[tuple[Value, int, Tensor]]:
    """For data of two axes of different lengths: it, the length of one, and the place there of each row of a value."""
    for value in given:
        length = value.shape[0] * value.shape[1]
        if value.shape[0] == value.shape[1] or min(value.shape[:2]) < 2 or of.shape[0] != length:
            continue
        for axis in (0, 1):
            walk = walk_of(context, value.index, axis, of.index)
            if walk.relation(of.index)[0] == "own" and (rows := _rows(walk, of)) is not None:
                yield value, value.shape[axis], rows


def _rows(walk: Reaches, of: Value) -> Tensor | None:
    bounds = walk.of(of.index)
    if bounds is None:
        return None
    last = bounds.last.expand(of.shape).reshape(of.shape[0], -1) - 1
    return last[:, 0] if bool((last == last[:, :1]).all() and (last >= 0).all()) else None


@OF_OTHERS.in_step
def _sorted_alone(context: StepContext) -> Iterator[Finding]:
    """The rows of the data were put into the order of a sort, and the targets were not."""
    for each in last_of_each_line(context):
        count, until = each.prediction.shape[0] if each.prediction.shape else 0, each.prediction.index
        if count < FEWEST or not each.target.shape or each.target.shape[0] != count:
            continue
        before, of_target = context.graph.ancestors([until]), context.graph.ancestors([each.target.index])
        known = context.statistics(each.target.index)
        if each.target.index not in context.data or known is None or known.std == 0:
            continue
        for operation, order, given in _sorted_rows(context, count):
            out = operation.outputs[0]
            again = _takers(context, order, operation)
            if (
                out not in before
                or order in of_target | {each.target.index}
                or given in of_target
                or any(made in before for use in again for made in use.outputs)
            ):
                continue
            if given in set(reach([until], partial(_operands_but, context, out))):
                continue
            yield OF_OTHERS.found(
                context.name(until), f"{context.name(given)} is sorted by {context.name(order)} on its way to the "
                f"prediction, and the targets {context.name(each.target.index)} are not.",
                f"{count} rows are put into the order {context.name(order)}, which nothing undoes.",
                place=context.place(operation),
                advice="Sort the targets too, or undo it: output[order.argsort()]. pack_padded_sequence with "
                "enforce_sorted=False does both.",
            )  # fmt: skip
            return


def _sorted_rows(context: StepContext, count: int) -> Iterator[tuple[Operation, int, int]]:
    """(operation, indices, tensor) where rows are taken in the order of a sort."""
    for operation in context.operations_that(lambda facts: facts.takes_rows):
        given = argument(operation, "self")
        indices = [each for each in operands(operation) if each != given]
        order = context.source(indices[0]) if len(indices) == 1 else -1
        made = context.producer(order) if order >= 0 else None
        if given is None or made is None or not operation.outputs or context.values[given].shape[:1] != (count,):
            continue
        by = context.source(operands(made)[0]) if _is_order(context, made, order) else order
        before = context.producer(by)
        if by != order and (before is None or not _is_order(context, before, by)):  # that of an order undoes it
            yield operation, order, given


def _operands_but(context: StepContext, end: int, value: int) -> Iterable[int]:
    return () if value == end else context.graph.operands(value)


def _is_order(context: StepContext, made: Operation, value: int) -> bool:
    """Whether a value is the indices by which an operation sorts its operand."""
    shapes = [context.values[each].shape for each in (value, *operands(made))]
    whole = len(shapes) == 2 and shapes[0] == shapes[1]
    return whole and len(made.outputs) == 2 and made.outputs[1] == value and context.values[value].dtype == torch.int64


def _takers(context: StepContext, value: int, apart: Operation) -> list[Operation]:
    """The operations, apart from one, that take a value or data that is computed from it."""
    found = []
    for use in context.uses.get(value, ()):
        if use.index != apart.index:
            found.append(use)
            outs = [] if any(context.values[each].requires_grad for each in operands(use)) else use.outputs
            found += [each for out in outs if out is not None for each in _takers(context, out, apart)]
    return found


SWAPPED = Check(
    "view-swaps-axes", "A view in place of a transpose", "warning",
    what="view or reshape gives data, or what is computed from it, the lengths of its axes in another order. Or it "
    "puts the scores of all places into rows, one for each place, while the classes lie along an earlier axis. Or it "
    "puts the positions behind the heads that it splits off: (samples, positions, features) becomes (samples, heads, "
    "positions, features of a head).",
    why="The numbers stay in their order in memory, so what was one position becomes parts of several.",
    advice="Use transpose or permute to swap axes: x.view(B, T, heads, -1).transpose(1, 2), and back in the same way.",
    source="PyTorch's documentation of Tensor.view: the order of the elements stays")  # fmt: skip


@SWAPPED.in_step
def _swapped(context: StepContext) -> Iterator[Finding]:
    for operation in context.operations_that(lambda facts: facts.in_row_order):
        given, out = argument(operation, "self"), next(iter(operation.outputs), None)
        if given is None or out is None or out not in context.from_data:
            continue
        if not _swaps(context.values[given].shape, context.values[out].shape):
            continue
        name = context.name(out)
        yield SWAPPED.found(
            name, f"{name} has the numbers of {context.name(given)} in the same order, and its axes in another.",
            f"The shape {context.values[given].shape} becomes {context.values[out].shape}.",
            place=context.place(operation),
        )  # fmt: skip
        return


@SWAPPED.in_step
def _classes_last(context: StepContext) -> Iterator[Finding]:
    """(samples, classes, places) becomes (samples * places, classes) by a view."""
    for comparison in comparisons(context):
        made = context.producer(comparison.prediction) if comparison.scale == "classes" else None
        while made is not None and (given := argument(made, "self")) is not None:
            facts, before, out = facts_of(made.name), context.values[given].shape, made.outputs[0]
            if facts.in_row_order and out is not None and _loses_classes(before, context.values[out].shape):
                name, shape = context.name(given), context.values[out].shape
                yield SWAPPED.found(
                    context.name(out), f"The {before[1]} classes lie along axis 1 of {name}, and the view takes the "
                    "numbers in their order: each row holds one class at several places.",
                    f"The shape {before} becomes {shape}.", place=context.place(made),
                    advice="Move the classes to the end first: scores.movedim(1, -1).reshape(-1, classes). Or give "
                    "cross_entropy the scores as they are: it takes classes along axis 1.",
                )  # fmt: skip
                return
            if not (facts.keeps_numbers or facts.softmax or facts.takes == "scores"):
                break
            made = context.producer(given)


def _loses_classes(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether the last axis gets the length of axis 1, which was not the last and has another length than that."""
    ranks = 1 < len(after) <= len(before) > 2
    return ranks and before[0] > 1 and 1 < before[1] == after[-1] != before[-1] and after[:2] != before[:2]


def _swaps(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    old, new = ([each for each in shape if each > 1] for shape in (before, after))
    if len(old) == len(new) > 2:
        one, other = next((pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]), (1, 1))
        # (positions, samples, heads * part) to (positions, samples * heads, part), and back, is no swap.
        splits = len(old) == 3 and max(one, other) % min(one, other) == 0
        return sorted(old) == sorted(new) and old != new and not splits
    # (samples, positions, features) to (samples, heads, positions, features of a head)
    if len(before) == 3 and len(after) == 4 and min(*before[1:], *after[1:]) > 1:
        (samples, positions, features), (count, heads, moved, part) = before, after
        return samples == count and positions == moved and heads * part == features and positions != heads
    return False


OF_PLACE = Check(
    "place-in-batch",
    "A sample gets a constant for its place in the batch",
    "warning",
    what="The first rows of a longer table of constants or parameters, as many as there are samples, are combined "
    "with a batch along the axis of its samples. It is said where no prediction depends on another sample.",
    why="What is meant for a position in a sequence depends on the place of a sample in its batch, which means "
    "nothing, and all positions of a sequence get the same.",
    advice="Take as many rows as there are positions, x.size(1) where the batch is first, and put the axis of the "
    "samples before them: pe[:, : x.size(1)].",
    source="PyTorch's tutorial on language modelling with nn.Transformer, whose encoding expects the time first",
)


@OF_PLACE.in_step
def _of_place(context: StepContext) -> list[Finding]:
    return for_all(OF_PLACE, context, _at_its_place)


def _at_its_place(context: StepContext) -> Iterator[Finding]:
    for each in last_of_each_line(context):
        until, size = each.prediction.index, each.prediction.shape[0] if each.prediction.shape else 0
        for given in inputs_of(context, until) if size > 1 else ():
            tables = list(_tables(context, given)) if given.shape[0] > 1 and given.shape[0] != given.shape[1] else []
            walk = walk_of(context, given.index, 0, until) if tables else None
            others = walk_of(context, given.index, 1, until) if tables else None
            if walk is None or others is None or walk.relation(until)[0] != "own" or others.relation(until)[0] == "own":
                continue  # along an axis of positions something mixes
            for operation, table, long in tables:
                yield OF_PLACE.found(
                    context.name(table), f"{context.name(table)}, the first {given.shape[0]} of "
                    f"{context.values[long].shape[0]} rows of {context.name(long)}, goes to the samples of the batch, "
                    "one row to each.",
                    (f"Axis 0 of {context.name(given.index)} {given.shape} holds the samples; "
                     f"{context.name(table)} has the shape {context.values[table].shape}.",),
                    place=context.place(operation),
                )  # fmt: skip
                return


def _tables(context: StepContext, given: Value) -> Iterator[tuple[Operation, int, int]]:
    """(operation, rows, table): where the first rows of a table meet a batch along its first axis."""
    count = given.shape[0]
    for operation in context.graph.operations:
        taken = operands(operation)
        if len(taken) != 2 or not (facts_of(operation.name).adds or facts_of(operation.name).multiplies):
            continue
        for table, batch in (taken, taken[::-1]):
            shape, other = context.values[table].shape, context.values[batch].shape
            long = _cut_from_start(context, table)
            if long is None or len(shape) != len(other) or len(shape) < 3 or shape[0] != count:
                continue
            if other[0] == count and long not in context.graph.ancestors([batch]) and not _is_alike(context, table):
                yield operation, table, long


def _cut_from_start(context: StepContext, value: int) -> int | None:
    """The longer parameter or buffer whose first rows a value is."""
    while (made := context.producer(value)) is not None:
        facts, given = facts_of(made.name), argument(made, "self")
        if given is None or not (facts.slices or facts.keeps_numbers) or made.arguments.get("start"):
            return None
        if facts.slices and context.values[given].shape[0] > context.values[value].shape[0]:
            long = context.source(given)
            return long if context.values[long].kind in ("parameter", "buffer") else None
        value = given
    return None


def _is_alike(context: StepContext, value: int) -> bool:
    """Whether all rows are known to be the same."""
    known = context.statistics(value)
    data = context.values[value].data
    if data is not None:
        return bool(torch.equal(data, data[:1].expand_as(data)))
    return known is not None and known.low == known.high
