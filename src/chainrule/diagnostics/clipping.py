"""Gradients that are clipped at the wrong time: before backward, after the step, or after each micro-batch."""

from __future__ import annotations

import ast
import linecache
import re
from collections.abc import Iterator
from dataclasses import replace

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.loss_scale import CLIPS
from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.graph.graph import Event, Place
from chainrule.graph.snapshot import ParameterUpdate
from chainrule.numbers import number

MISPLACED = Check(
    "clipping-misplaced", "Gradients are clipped at the wrong time", "warning",
    what="clip_grad_norm_ or clip_grad_value_ stands in the same block of code as backward(), and no gradient was "
    "clipped between backward and the optimizer's step. Or it clips after each of several micro-batches, before the "
    "next one adds to the gradient.",
    why="The optimizer uses gradients as large as they come. After each micro-batch the sum of the earlier ones is "
    "clipped again and again, so they count less than the last.",
    advice="Call it once: after the last backward() and before optimizer.step().",
    source="PyTorch's documentation of clip_grad_norm_, and Automatic mixed precision examples: gradient accumulation",
    lasts=3)  # fmt: skip
CALL = re.compile(r"clip_grad_(norm|value)_?")


@MISPLACED.in_step
def _misplaced(context: StepContext) -> Iterator[Finding]:
    passes, updates = context.graph.accumulating, context.graph.updates
    if not passes or not updates or context.graph.error or context.graph.failures:
        return
    clips = [each for each in context.graph.events if each.kind.startswith(CLIPS)]
    inside = [each for each in clips if passes[0].position <= each.position <= updates[-1].position]
    if not inside and passes[-1].place is not None:
        yield from _without_effect(context, passes[-1].place)
    elif (again := clipped_between(context)) is not None:
        yield MISPLACED.found(
            "all gradients", f"{again.kind} clips the gradients of a step before the last of its {len(passes)} "
            "backward passes adds to them, and after it again.",
            f"What the first {len(passes) - 1} passes left is scaled down again and again.",
            place=again.place, title="Gradients are clipped after each micro-batch",
        )  # fmt: skip


def clipped_between(context: StepContext) -> Event | None:
    """A clipping after one pass of an update and before a later one, of a gradient that is clipped after that again."""
    clips = [each for each in context.graph.events if each.kind.startswith(CLIPS)]
    begun = [each.position for each in context.graph.accumulating]
    for first, event in enumerate(clips):
        later = [each for each in clips[first + 1 :] if each.text == event.text and each.place == event.place]
        steps = [each.position for each in context.graph.updates if each.position > event.position]
        if any(event.position < start <= each.position <= min(steps, default=0) for start in begun for each in later):
            return event
    return None


def _without_effect(context: StepContext, backward: Place) -> Iterator[Finding]:
    known: dict[Place, list[tuple[str, int, str]]] = context.kept.setdefault((MISPLACED.id, "calls"), {})
    if backward not in known:
        known[backward] = _calls_beside(backward)
    for call, line, why in known[backward]:
        yield MISPLACED.found(
            "all gradients", f"{call} clips nothing that the optimizer uses: {why}.",
            "0 gradients were clipped between backward() and the optimizer's step.", place=replace(backward, line=line),
        )  # fmt: skip


def _calls_beside(backward: Place) -> list[tuple[str, int, str]]:
    """(function, line, what is wrong) of the calls that clip in the block of code with a backward()."""
    try:
        tree = ast.parse("".join(linecache.getlines(backward.file)))
    except SyntaxError:
        return []
    blocks = [block for node in ast.walk(tree) for block in _blocks(node)]
    around = [block for block in blocks if any(_is_at(each, backward.line) for each in block)]
    found = []
    for block in around[-1:]:  # the innermost one
        steps = [each.lineno for each in block if _called(each).endswith(".step") and "sched" not in _called(each)]
        for each in block:
            if CALL.fullmatch(_called(each).rpartition(".")[2]):
                early = each.lineno < backward.line
                late = bool(steps) and each.lineno > max(steps)
                why = "it runs before backward()" if early else "it runs after the step" if late else (
                    "it is given no parameter with a gradient, as by a generator that is used up"
                )  # fmt: skip
                found.append((_called(each).rpartition(".")[2], each.lineno, why))
    return found


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
            yield block


def _is_at(statement: ast.stmt, line: int) -> bool:
    simple = not any(True for _ in _blocks(statement))
    return simple and statement.lineno <= line <= (statement.end_lineno or statement.lineno)


def _called(statement: ast.stmt) -> str:
    """The function that a plain call or an assignment of its result calls; "" for other statements."""
    value = statement.value if isinstance(statement, (ast.Expr, ast.Assign)) else None
    return ast.unparse(value.func) if isinstance(value, ast.Call) else ""


IDLE = Check(
    "clipping-idle", "A clipping changes nothing", "warning",
    what="The gradients of some parameters are clipped twice, at two lines, before the optimizer's step, and others "
    "that step not at all. Or the limited copy of a gradient, as torch.clamp gives it, is not used, and the optimizer "
    "uses a gradient beyond the limits.",
    why="The gradients that were to be clipped are as large as they come.",
    advice="Give clip_grad_norm_ the parameters of the other module the second time; limit a gradient in place: "
    "p.grad.clamp_(-1, 1), or clip_grad_value_.",
    source="PyTorch's documentation of clip_grad_norm_: gradients are modified in-place; of torch.clamp: it returns a "
    "new tensor", lasts=3)  # fmt: skip


@IDLE.in_step
def _twice(context: StepContext) -> Iterator[Finding]:
    last = max((each.position for each in context.graph.accumulating), default=0)
    first: dict[tuple[str, str], Event] = {}
    clipped: set[str] = set()
    again: list[tuple[Event, Event]] = []
    for event in (each for each in context.graph.events if each.kind.startswith(CLIPS) and each.position >= last):
        clipped.add(event.text)
        before = first.setdefault((event.kind, event.text), event)
        if before.place != event.place:
            again.append((before, event))
    left = [each.name for each in context.members if each.gradient is not None and each.name not in clipped]
    if again and left:
        before, event = again[0]
        yield IDLE.found(
            "all gradients", f"{event.kind} clips the gradient of {event.text} a second time, and that of "
            f"{listed(left)} not at all.", f"The first time is at {before.place}; {len(again)} gradients are clipped "
            f"twice, and {len(left)} not at all.", place=event.place, title="The same gradients are clipped twice",
        )  # fmt: skip


@IDLE.in_step
def _dropped(context: StepContext) -> Iterator[Finding]:
    for operation in context.operations_that(lambda facts: facts.limits):
        given, out = argument(operation, "self"), operation.outputs[0] if operation.outputs else None
        if given is None or out is None or context.uses.get(out) or context.values[given].requires_grad:
            continue
        low, high = (operation.arguments.get(each) for each in ("min", "max"))
        member = next((each for each in context.members if _is_gradient(context, each, given)), None)
        used = context.gradient(member) if member is not None else None
        above = used is not None and isinstance(high, (int, float)) and used.high > high
        below = used is not None and isinstance(low, (int, float)) and used.low < low
        if member is not None and used is not None and (above or below):
            yield IDLE.found(
                member.name, f"{context.called(operation)} limits a copy of the gradient of {member.name}, and nothing "
                "uses the copy.", f"The optimizer used a gradient between {number(used.low)} and {number(used.high)}.",
                place=context.place(operation),
            )  # fmt: skip
            return


def _is_gradient(context: StepContext, member: ParameterUpdate, value: int) -> bool:
    """Whether a value is, by its statistics, the gradient that an optimizer used."""
    used, known = context.gradient(member), context.statistics(value)
    if used is None or known is None or context.values[value].shape != member.start.shape:
        return False
    return (used.low, used.high) == (known.low, known.high)
