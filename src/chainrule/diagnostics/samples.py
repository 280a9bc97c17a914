"""Faults of what a batch contains: one sample many times, the target among the inputs; and weights of classes."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import Comparison, comparisons, looked_up
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.padding import RECURRENT
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.graph.comparison import dense
from chainrule.graph.graph import Place, Ref, Value
from chainrule.numbers import number

ALIKE = Check(
    "samples-alike", "All samples of a batch are the same", "warning",
    what="Every row of all inputs of the network is the same, and so are the targets, in a batch of 4 samples or more. "
    "It needs the numbers of the inputs.",
    why="A batch of one sample many times teaches one sample at a time: the others are forgotten meanwhile.",
    advice="Look at how a sample is read: an index that is not used, a counter that moves once a batch, an array that "
    "is overwritten in place and collected without a copy.",
    source="Karpathy, A recipe for training neural networks, 2019: visualize just before the net")  # fmt: skip
FEWEST = 4  # samples


@ALIKE.in_step
def _alike(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        target = context.values[context.source(comparison.target)]
        inputs, count = _inputs(context, target), target.shape[0] if target.shape else 0
        if count < FEWEST or not inputs or not _is_one_row(target):
            continue
        if all(map(_is_one_row, inputs)) and any(_varies(each) for each in inputs):
            name = context.name(inputs[0].index)
            yield ALIKE.found(
                name, f"All {count} samples of the input {name} are the same, and so are their targets.",
                f"Each row of {inputs[0].shape} has the numbers of the first one.",
                place=context.place(context.uses[inputs[0].index][0]),
            )  # fmt: skip
            return


def _inputs(context: StepContext, target: Value) -> list[Value]:
    """The inputs of the network with one row for each target; empty if some have no numbers, or other rows."""
    if not target.shape:
        return []
    found = {given for given, _, _ in context.weighed} | set(looked_up(context))
    calls = (each for each in context.graph.calls if each.name in RECURRENT and isinstance(each.arguments[0], Ref))
    read = {call.arguments[0].value for call in calls}
    found |= {each for each in read if context.values[each].shape[:1] == target.shape[:1]}
    values = [context.values[each] for each in sorted(found) if each in context.data]
    rows = [len(each.shape) > 1 and each.data is not None and each.shape[0] == target.shape[0] for each in values]
    return values if all(rows) and target.index not in found else []


def _is_one_row(value: Value) -> bool:
    return value.data is not None and bool((dense(value.data) == dense(value.data)[:1]).all())


def _varies(value: Value) -> bool:
    return value.data is not None and value.data.unique().numel() > 1


OFTEN = 3  # steps


def often(check: Check, run: Run) -> Iterator[Finding]:
    """What most of the steps show of which the numbers are known, 3 at least: the latest, with how many they are."""
    examined = run.in_steps(check.id)
    shown = [(step, found) for step, found in examined if found is not None]
    full = {each.step for each in run.steps if each.full}
    whole = [step for step, _ in examined if step in full]
    among = whole if full.issuperset(step for step, _ in shown) else [step for step, _ in examined]
    if shown:
        found = replace(shown[-1][1], since=shown[0][0])
        many = f"It is so at {len(shown)} of {len(among)} examined steps."
        last = len(shown) >= OFTEN and 2 * len(shown) >= len(among)
        yield replace(found, evidence=(*found.evidence, many)) if last else replace(found, severity="note")


OF_ALL = Check(
    "labels-of-all", "Every sample has the labels of the whole batch", "warning",
    what="The targets of a loss were made by target[:, labels] = number, with one label for each sample: the columns "
    "of all labels are set in every row. A watch sees it where they are made after the forward pass.",
    why="All samples of a batch have the same targets, whatever they are.",
    advice="Give each row its own column: target[torch.arange(len(labels)), labels] = 1, or F.one_hot(labels).",
    source="PyTorch's documentation of torch.Tensor.scatter_: one-hot rows")  # fmt: skip


@OF_ALL.in_step
def _of_all(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        target = context.source(comparison.target)
        maker, shape = context.producer(target), context.values[target].shape
        indices = maker.arguments.get("indices") if maker is not None and "values" in maker.arguments else None
        if maker is None or not isinstance(indices, list) or len(indices) != 2 or len(shape) != 2:
            continue
        labels = indices[1].value if indices[0] is None and isinstance(indices[1], Ref) else None
        if labels is not None and shape[0] >= FEWEST and context.values[labels].shape == shape[:1]:
            name = context.name(target)
            yield OF_ALL.found(
                name, f"{name} has the labels of all {shape[0]} samples in each of its rows.",
                f"One write sets the columns of {context.name(labels)}, {shape[0]} labels, in every row.",
                place=context.place(maker),
            )  # fmt: skip
            return


FEW = Check(
    "few-samples", "A batch has a few samples again and again", "warning",
    what="A batch of 16 samples or more has at most a third as many different ones, inputs and targets alike, and some "
    "more often than others. Or it is the batch of the examined step before, moved on by a few samples. Both need the "
    "numbers of the inputs, and inputs of few different numbers are left out.",
    why="The network sees only a part of the data, and learns it by heart.",
    advice="Look at how indices are drawn: WeightedRandomSampler takes one weight for each sample (weights[labels]), "
    "and range(0, len(data), size) begins each batch where the last one ended.",
    source="PyTorch's documentation of torch.utils.data.WeightedRandomSampler: one weight for each sample")  # fmt: skip
MOST, OF_WHOLE, VALUES = 16, 3, 8  # samples; times as many as differ; different numbers among the inputs
SOME = 256  # numbers that are looked at first
SHIFT = 0.25  # of a batch: how far it may move on
SHIFTED = "Each batch is nearly the one before"


@FEW.in_step
def _few(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        target = context.values[context.source(comparison.target)]
        inputs = _inputs(context, target)
        if target.data is None or not inputs or target.shape[0] < MOST or not any(map(_has_many, inputs)):
            continue
        given = [dense(each.data) for each in (*inputs, target) if each.data is not None]
        rows = torch.cat([each.double().reshape(len(each), -1) for each in given], 1)
        count, name = len(rows), context.name(inputs[0].index)
        place = context.place(context.uses[inputs[0].index][0])
        marks = (rows * torch.linspace(1, 2, rows.shape[1], dtype=rows.dtype, device=rows.device)).sum(1)
        if 2 * len(marks.float().unique()) > count:  # a quick look: equal rows have equal marks
            times = torch.ones(count)
        else:
            times = rows.unique(dim=0, return_counts=True)[1]
        if 1 < len(times) <= count / OF_WHOLE and times.min() < times.max():
            yield FEW.found(
                name, f"Only {len(times)} of the {count} samples of the input {name} differ: the others occur again.",
                f"The most frequent one is there {int(times.max())} times.", place=place,
            )  # fmt: skip
        key = (FEW.id, str(context.place(comparison.operation)))
        before, context.kept[key] = context.kept.get(key), rows
        if before is not None and before.shape == rows.shape and len(times) > count / 2:
            moved = next((by for by in range(1, int(SHIFT * count) + 1) if torch.equal(before[by:], rows[:-by])), 0)
            if moved:
                yield FEW.found(
                    name, f"The batch is that of the examined step before, moved on by {moved} of its {count} samples.",
                    f"Its first {count - moved} samples are the last {count - moved} of the batch before.",
                    place=place, title=SHIFTED,
                )  # fmt: skip
        return


def _has_many(value: Value) -> bool:
    if value.data is None or not value.dtype.is_floating_point:
        return False
    first = value.data.reshape(-1)[:SOME]
    return any(each.unique().numel() >= VALUES for each in (first, value.data))


ALIKE.over_time(partial(often, ALIKE))
FEW.over_time(partial(often, FEW))

LEAK = Check(
    "target-in-input", "The input contains the target", "warning",
    what="One feature of the input is the target of each sample, to the last digit, or a multiple of it, and others "
    "are not. It needs the numbers of both, and is a note where both are made of few whole numbers.",
    why="The network copies it: the loss is near 0, and nothing is learnt of what is known when one predicts.",
    advice="Take the column of the target out of the inputs, or predict the row after it.",
    source="Kaufman et al., Leakage in data mining, 2012")  # fmt: skip
SAMPLES, FEATURES, MANY = 8, 2, 8  # the least, and how many different targets are no accident


@LEAK.in_step
def _leak(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        target = context.values[context.source(comparison.target)]
        if (
            target.data is None
            or not target.shape
            or target.shape[0] < SAMPLES
            or target.data.numel() != target.shape[0]
        ):
            continue
        wanted = dense(target.data).flatten().double()
        kinds = wanted.unique().numel()
        for given in _inputs(context, target):
            if given.index in context.graph.ancestors([comparison.target]):
                continue  # a function that is to be learnt, or a sequence that is to be continued
            rows = dense(given.data).flatten(1).double() if given.data is not None else wanted[:, None]
            column = _column_of(rows, wanted) if kinds > 1 and rows.shape[1] >= FEATURES else None
            if column is None:
                continue
            name, goal = context.name(given.index), context.name(target.index)
            yield LEAK.found(
                name, f"Feature {column} of the input {name} is the target {goal} of each sample.",
                (f"All {len(wanted)} samples agree, with {kinds} different targets.",
                 f"Sample 0 has {number(rows[0, column].item())} there, and the target {number(wanted[0].item())}."),
                place=context.place(comparison.operation), severity="warning" if kinds >= MANY else "note",
            )  # fmt: skip
            return


LEAK.over_time(partial(often, LEAK))


def _column_of(rows: Tensor, wanted: Tensor) -> int | None:
    """The column that has the numbers of a target, up to its scale and place; None if there is none, or several."""
    same = (rows == wanted[:, None]).all(0)
    if not same.any():
        centred, goal = rows - rows.mean(0), wanted - wanted.mean()
        sizes = centred.norm(dim=0) * goal.norm()
        same = (goal @ centred).abs() >= (1 - 1e-9) * sizes
        same &= centred.norm(dim=0) > 1e-6 * rows.norm(dim=0)
    found = same.nonzero().flatten().tolist()
    return found[0] if len(found) == 1 else None


WEIGHTS = Check(
    "class-weights", "Frequent classes have the larger weights", "warning",
    what="The weights of the classes in a cross-entropy grow with their number in the batches of the last examined "
    "steps: that of the most frequent class is three times that of the rarest one, and the order is the same. Or the "
    "weight of the positives in a binary one is below a half though they are rare.",
    why="Rare classes count even less than without weights, so the network hardly learns to name them.",
    advice="Give each class one over its number: counts.sum() / (classes * counts); pos_weight is the number of "
    "negatives over that of the positives.",
    source="King and Zeng, Logistic regression in rare events data, 2001; PyTorch's documentation of CrossEntropyLoss "
    "and BCEWithLogitsLoss")  # fmt: skip
LEAST, TIMES, HALF, RARE = 200, 3.0, 0.5, 0.25  # targets counted; ratio of weights; weight and share of positives


@WEIGHTS.in_step
def _weights(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        operation = comparison.operation
        weight, positive = argument(operation, "weight"), argument(operation, "pos_weight")
        if comparison.scale == "classes" and weight is not None:
            yield from _of_classes(context, comparison, context.values[weight])
        elif positive is not None:
            factor, share = context.statistics(positive), context.statistics(comparison.target)
            if factor is None or share is None or not 0 < share.mean < RARE or factor.high >= HALF:
                continue
            if share.elements >= LEAST // 4:
                yield WEIGHTS.found(
                    context.name(positive),
                    f"The rare class has the smaller weight: {number(share.mean)} of the targets are positive, and "
                    f"pos_weight is {number(factor.mean)}.",
                    "pos_weight multiplies the loss of the positives, so it is above 1 where they are rare.",
                    place=context.place(operation),
                )  # fmt: skip


def _of_classes(context: StepContext, comparison: Comparison, weight: Value) -> Iterator[Finding]:
    target = context.values[context.source(comparison.target)]
    if weight.data is None or target.data is None or target.dtype.is_floating_point:
        return
    if weight.requires_grad or weight.operation is not None:
        return
    weights = dense(weight.data).double()
    labels = dense(target.data).flatten()
    labels = labels[(labels >= 0) & (labels < len(weights))]
    counts = torch.bincount(labels, minlength=len(weights)).double()
    key = ("classes counted", str(context.place(comparison.operation)), len(weights))
    counts = context.kept[key] = context.kept.get(key, 0) + counts
    seen = (counts > 0).nonzero().flatten()
    if len(seen) < 2 or counts.sum() < LEAST:
        return
    order = seen[counts[seen].argsort(descending=True)]
    first, last = int(order[0]), int(order[-1])
    falls = bool((weights[order].diff() <= 0).all())
    if falls and weights[first] >= TIMES * weights[last] and counts[first] >= TIMES * counts[last]:
        yield WEIGHTS.found(
            context.name(weight.index), f"The frequent class has the larger weight: class {first} weighs "
            f"{number(weights[first].item())}, and class {last} {number(weights[last].item())}.",
            f"Of {int(counts.sum())} targets so far {int(counts[first])} are of class {first}, and {int(counts[last])} "
            f"of class {last}.", place=context.place(comparison.operation),
        )  # fmt: skip


WEIGHTS.over_time(partial(often, WEIGHTS))

SEEDED = Check(
    "same-noise", "Every step draws the same random numbers", "warning",
    what="PyTorch's generator is in the same state at the first draw of a step as it was in the examined step before: "
    "a dropout, a sample or noise. Nothing is said where nothing is drawn.",
    why="The same units are dropped and the same noise is added at each step, so it is no noise any more.",
    advice="Set the seed once, before the loop. For noise of your own give a generator: torch.Generator().",
    source="Srivastava et al., Dropout, 2014: units are dropped anew for each case; PyTorch's notes on reproducibility",
)  # fmt: skip
STEPS, SHARE = 3, 0.5  # examined steps; their share, as a batch of another size may draw before the first draw
SEED = re.compile(r"^\s+.*\bmanual_seed\(")


@SEEDED.in_step
def _seeded(context: StepContext) -> Iterator[Finding]:
    random = (
        each for each in context.graph.operations
        if each.random_state is not None and each.arguments.get("dropout_p") != 0  # an attention that draws nothing
    )  # fmt: skip
    drawn = [each for each in random if each.arguments.get("generator") is None]  # not from one of the user's own
    state = drawn[0].random_state if drawn else None
    if state is None:
        return
    before = context.kept.get(SEEDED.id)
    context.kept[SEEDED.id] = mark = hash(bytes(state.tolist()))
    if before == mark:
        name = context.called(drawn[0])
        yield SEEDED.found(
            name, f"The step draws the random numbers of the step before: {name} begins with the same state of the "
            "generator.", _seeds(context.place(drawn[0])), place=context.place(drawn[0]), severity="note",
        )  # fmt: skip


def _seeds(place: Place | None) -> str:
    """The indented lines that set a seed in the file of a place."""
    lines = linecache.getlines(place.file) if place is not None else []
    found = [at for at, line in enumerate(lines, 1) if SEED.match(line)]
    at = listed([replace(place, line=each) for each in found]) if place is not None else ""
    return f"The seed is set in {at}." if at else "Something sets the seed, or the generator's state, in each step."


@SEEDED.over_time
def _seeded_over_time(run: Run) -> Iterator[Finding]:
    examined = run.in_steps(SEEDED.id)
    shown = [(step, found) for step, found in examined if found is not None]
    if len(shown) >= max(STEPS, SHARE * len(examined)):
        many = f"It did so at {len(shown)} of {len(examined)} examined steps."
        found = shown[-1][1]
        yield replace(found, severity="warning", since=shown[0][0], evidence=(*found.evidence, many))
