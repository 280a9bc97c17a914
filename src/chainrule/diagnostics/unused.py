"""Data that a step prepares and does not use: a masked input, the mask of a loss, the ends of episodes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import comparisons, first_output, is_boolean, with_constants
from chainrule.diagnostics.data import is_drawn
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, operands
from chainrule.graph.graph import Operation, Place
from chainrule.rules.facts import facts_of

UNUSED = Check(
    "prepared-in-vain", "Data is prepared and not used", "warning",
    what="Elements of the network's input are hidden, or noise is added to it, and nothing takes the result: the "
    "network takes the input as it was. Or nothing takes a mask of a batch that has ones and zeros, by its name; or "
    "the ends of episodes, where a target adds a predicted value to a reward: a note in one step, as a later one may "
    "use it, and a warning once it has lasted. A watch sees what is computed from the first layer of a step on.",
    why="What was prepared is to change what is learnt, and has no effect: a hidden part is seen, padding or prompts "
    "count in the loss, or a value is expected after the end of an episode.",
    advice="Use it, or remove the line.",
    source="Devlin et al., BERT, 2019; He et al., Masked autoencoders, 2022; Sutton and Barto, Reinforcement "
    "learning, 2018, 3.4: the value after a terminal state is 0", lasts=3)  # fmt: skip
MASK = re.compile(r"(?<![a-z])(masks?|masked)(?![a-z])", re.IGNORECASE)
END = re.compile(r"(?<![a-z])(dones?|terminals?|terminated|terminations?)(?![a-z])", re.IGNORECASE)
FEWEST = 8  # elements
ROWS = 2  # samples
Line = tuple[str, int, str]
"""A file, a line, and the variable that it sets."""


@UNUSED.in_step
def _in_vain(context: StepContext) -> Iterator[Finding]:
    lines = _lines(context)
    for operation in context.graph.operations:
        out, place = first_output(operation), context.place(operation)
        if (
            out is None
            or place is None
            or (place.file, place.line, _variable(context, out)) in lines
            or not _is_left(context, out)
        ):
            continue
        if (taken := _changed(context, operation, out)) is not None:
            given, layer = taken
            name = context.name(given)
            yield UNUSED.found(
                context.name(out), f"Nothing takes {context.name(out)}, which was made of {name}: the network takes "
                f"{name} as it was, at {context.place(layer)}.", context.between(out), place=place,
                title="A changed input is not used",
                advice=f"Give the network {context.name(out)}, or remove the line.",
            )  # fmt: skip
        elif (where := _ignored(context, out)) is not None:
            yield UNUSED.found(
                context.name(out), f"Nothing takes {context.name(out)}, which has ones and zeros for a batch; the loss "
                f"is computed without it, at {where}.",
                (_share(context, out), "What it is for is taken from its name."), place=place, severity="note",
                title="A mask is not used", advice=f"Use {context.name(out)} where the loss or its target is "
                "computed, or remove the line.",
            )  # fmt: skip


@UNUSED.over_time
def _for_long(run: Run) -> Iterator[Finding]:
    """What a third of the steps show. In some a mask has no ones; and a line that is used later shows no more."""
    for at in run.seen.get(UNUSED.id, {}).values():
        steps = sorted(at)
        first, last = steps[0], steps[-1]
        since = sum(first <= step for step in run.step_findings)
        lasts = len(steps) >= UNUSED.lasts and 3 * len(steps) >= since
        held = f"It was so at {len(steps)} of {since} examined steps."
        yield replace(
            at[last], severity=UNUSED.severity if lasts else "note", since=first, evidence=(*at[last].evidence, held)
        )


def _lines(context: StepContext) -> set[Line]:
    """The lines one of whose results was used, in this step or before: a state of which the last one is left, say."""
    used: set[Line] = context.kept.setdefault("used lines", set())
    made: dict[object, Line] = context.kept.setdefault("left values", {})
    carried = {_print(context, value.index) for value in context.values if value.kind == "input"} if made else set()
    used.update(line for known, line in made.items() if known in carried)
    made.clear()
    for operation in context.graph.operations:
        place, out = context.place(operation), first_output(operation)
        if place is None or out is None or context.values[out].requires_grad:
            continue
        line = place.file, place.line, _variable(context, out)
        if _is_left(context, out):
            if not _is_mask(context, out):  # two masks may well have equally many ones
                made[_print(context, out)] = line
        else:
            used.add(line)
    return used


def _variable(context: StepContext, value: int) -> str:
    return context.name(value).partition("@")[0]


def _print(context: StepContext, value: int) -> object:
    known = context.statistics(value)
    return None if known is None else (context.values[value].shape, known.mean, known.norm)


def _is_left(context: StepContext, value: int) -> bool:
    """Whether nothing takes data."""
    known = context.values[value]
    left = not context.uses.get(value) and not known.requires_grad and known.kind != "parameter"
    return left and value not in context.losses


def _changed(context: StepContext, operation: Operation, out: int) -> tuple[int, Operation] | None:
    """(input, layer): data of the same shape that a layer takes, of which an operation hid elements, or added noise."""
    facts, shape = facts_of(operation.name), context.values[out].shape
    given = [each for each in operands(operation) if context.values[each].shape == shape]
    if not (facts.multiplies or facts.adds or facts.replaces_masked) or not shape or shape[0] < ROWS:
        return None
    for each in given if out in context.data else ():
        others = [other for other in operands(operation) if other != each]
        masked = any(_is_mask(context, other) for other in others) and not facts.adds
        noisy = facts.adds and any(_is_drawn(context, other) for other in others)
        if (masked or noisy) and (layer := _taker(context, each)) is not None:
            return each, layer
    return None


def _taker(context: StepContext, value: int) -> Operation | None:
    """The layer that takes data, in whatever shape, in a pass with a gradient."""
    for use in context.uses.get(value, ()):
        facts, out = facts_of(use.name), first_output(use)
        if out is not None and context.values[out].has_gradient and (facts.weighs or facts.looks_up):
            return use
        if facts.keeps_numbers and out is not None and (found := _taker(context, out)) is not None:
            return found
    return None


def _is_mask(context: StepContext, value: int) -> bool:
    known = context.statistics(value)
    if is_boolean(context, value):
        return True
    if known is None or known.not_finite or known.low != 0 or known.high != 1 or known.elements < FEWEST:
        return False
    return math.isclose(known.norm**2, known.mean * known.elements, rel_tol=1e-4)  # x * x = x for 0 and 1 alone


def _is_drawn(context: StepContext, value: int) -> bool:
    """Whether it is noise, perhaps scaled."""
    maker = context.producer(context.source(value))
    while maker is not None and facts_of(maker.name).scales and len(operands(maker)) == 1:
        maker = context.producer(context.source(operands(maker)[0]))
    return maker is not None and any(is_drawn(context, out) for out in maker.outputs if out is not None)


def _ignored(context: StepContext, out: int) -> Place | None:
    """The place of the loss that a mask of the batch was made for, by its name."""
    names = [each.rsplit(".", 1)[-1] for each in context.values[out].names]
    shape, ends = context.values[out].shape, any(map(END.search, names))
    if not (ends or any(map(MASK.search, names))) or not _is_two_valued(context, out):
        return None
    for known in with_constants(context) if ends else comparisons(context):
        of, target = context.values[known.prediction].shape, context.values[known.target]
        bootstrapped = known.target not in context.data and _adds_reward(context, known.target)
        if shape and of and shape[0] == of[0] and (bootstrapped or not ends):
            return target.place if ends else context.place(known.operation)
    return None


def _is_two_valued(context: StepContext, value: int) -> bool:
    known = context.statistics(value)
    return _is_mask(context, value) and known is not None and known.elements >= FEWEST and known.low < known.high


def _adds_reward(context: StepContext, target: int) -> bool:
    """Whether a target adds data to what a network computed."""
    maker = context.producer(context.source(target))
    given = operands(maker) if maker is not None and facts_of(maker.name).adds else []
    sizes = [math.prod(context.values[each].shape) for each in given]
    return len(given) == 2 and min(sizes) > 1 and sum(each in context.data for each in given) == 1


def _share(context: StepContext, value: int) -> str:
    known = context.statistics(value)
    return f"{round(known.mean * known.elements)} of its {known.elements} elements are 1." if known is not None else ""
