"""Tables of repeated blocks: the statistics and verdicts of each block, one row per block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from torch import Tensor as Data

from chainrule.derivation.backprop import Contribution, Step
from chainrule.derivation.repeated_blocks import Repetition
from chainrule.document import Block, Code, Paragraph, Section, Table, Text
from chainrule.graph.snapshot import ParameterUpdate, Update, has_numbers
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import memory
from chainrule.numbers import number
from chainrule.report.context import Context, pairs, shape_text
from chainrule.verification.update_check import check_update

STATISTICS = ("norm", "mean", "std", "min", "max")
Cells = tuple[str, ...]


def forward(context: Context, step: Step) -> Iterator[Block]:
    """The results of one step in each block; not those that are views of an operand."""
    alike = context.repeated.equivalent_steps(step)
    operands = [context.graph.values[value].data for _, _, value in step.arguments]
    for value in context.results(step) if alike else ():
        if are_views(context.graph.values[value].data, operands):
            continue
        slot = step.outputs.index(value)
        found = [
            (path, context.statistics.of(context.graph.values[other.outputs[slot]].snapshot)) for path, other in alike
        ]
        yield statistics_table(f"{context.notation.plain(value)} in each block", found)


def backward(context: Context, step: Step, contribution: Contribution) -> Iterator[Block]:
    """One contribution to a gradient in each block, with its check against autograd."""
    alike = context.repeated.equivalent_steps(step)
    if not alike or contribution.value is None or are_views(contribution.gradient, step.upstream):
        return
    place = next(i for i, each in enumerate(step.contributions) if each is contribution)
    contributions = [(path, other.contributions[place]) for path, other in alike]
    label = f"{context.notation.plain_gradient(contribution.value, step.backward)} in each block"
    checks = [_check(context, each) for _, each in contributions]
    found = [(path, _of_contribution(context, each)) for path, each in contributions]
    yield statistics_table(label, found, ("differs by", "check"), checks)


def are_views(data: Data | None, others: Iterable[Data | None]) -> bool:
    """Whether a tensor shares its memory with one of the others, and so has the same numbers."""
    return data is not None and any(each is not None and memory(each) == memory(data) for each in others)


def _check(context: Context, contribution: Contribution) -> Cells:
    verdict = context.check(contribution)
    return ("" if verdict.difference is None else number(verdict.difference), verdict.kind)


def parameters(context: Context, name: str) -> Iterator[Block]:
    """A parameter in each block."""
    alike = context.repeated.equivalent_parameters(name)
    if alike:
        members = [(path, context.graph.parameters[each]) for path, each in alike]
        found = [(path, context.statistics.of(each.start)) for path, each in members]
        held = [(context.held_before(each),) for _, each in alike]
        yield statistics_table(f"{name} in each block", found, (".grad before backward",), held)


def updates(context: Context, step: Update, name: str) -> Iterator[Block]:
    """What the optimizer did to a parameter in each block."""
    alike = context.repeated.equivalent_parameters(name)
    of_name = {each.name: each for each in step.parameters} if alike else {}
    rows = [(path, of_name[each]) for path, each in alike if each in of_name]
    if rows:
        headers = ("block", "norm before", "gradient", "change / before", "check")
        cells = tuple(_row(path, _updated(context, step, each)) for path, each in rows)
        yield Table(headers, cells, f"{name} in each block")


def by_hand(context: Context, name: str) -> Iterator[Block]:
    """A parameter in each block after the user's own code changed it."""
    alike = context.repeated.equivalent_parameters(name)
    if alike:
        members = [(path, context.graph.parameters[each]) for path, each in alike]
        yield statistics_table(
            f"{name} after, in each block", [(path, context.statistics.of(each.end)) for path, each in members]
        )


def _row(path: str, cells: Iterable[str]) -> tuple[Text, ...]:
    named: Text = (Code(path),)
    return named, *((cell,) for cell in cells)


def _updated(context: Context, step: Update, each: ParameterUpdate) -> Cells:
    relative = context.relative_updates.get(each.value) if each.value is not None else None
    return (
        context.norm(each.start),
        "None" if each.gradient is None else context.norm(each.gradient),
        "" if relative is None else number(relative),
        "" if each.grad is None else check_update(step, each).verdict,
    )


def _of_contribution(context: Context, contribution: Contribution) -> Statistics | None:
    """The statistics of a contribution; without its numbers, those of the gradient if the contribution is all of it."""
    if has_numbers(contribution.gradient):
        return context.statistics.statistics(contribution.gradient)
    whole = contribution.value if context.is_whole(contribution) else None
    return None if whole is None else context.graph.values[whole].grad_statistics


def statistics_table(
    label: str,
    known: Sequence[tuple[str, Statistics | None]],
    more: Sequence[str] = (),
    cells: Sequence[Cells] = (),
) -> Table:
    """A row of statistics for each tensor, under the path of its block."""
    found = [({} if each is None else dict(pairs(each))) for _, each in known]
    shown = (*STATISTICS, *(name for name in ("zeros", "not finite") if any(each.get(name) for each in found)))
    rows = []
    for place, ((path, _), row) in enumerate(zip(known, found, strict=True)):
        numbers = [number(row[name]) if name in row else "" for name in shown]
        rows.append(_row(path, [*numbers, *(cells[place] if cells else ())]))
    return Table(("block", *shown, *more), tuple(rows), label)


# -- the blocks as a whole ---------------------------------------------------------------------------------------------


def names(repetition: Repetition) -> str:
    """The blocks that are not shown: `h.1 to h.11`; `h.1, h.2 and h.4 to h.11` where h.3 differs."""
    runs: list[list[str]] = []
    for path in repetition.others:
        if runs and _follows(runs[-1][-1], path):
            runs[-1].append(path)
        else:
            runs.append([path])
    parts = [part for run in runs for part in (run if len(run) <= 2 else [f"{run[0]} to {run[-1]}"])]
    return " and ".join([part for part in (", ".join(parts[:-1]), parts[-1]) if part])


def _follows(one: str, other: str) -> bool:
    """Whether `h.4` comes right after `h.3`; between names without a number there is nothing."""
    (outside, _, before), (beside, _, after) = one.rpartition("."), other.rpartition(".")
    numbered = before.isdecimal() and after.isdecimal()
    return outside == beside and (not numbered or int(after) == int(before) + 1)


def blocks(context: Context, repetition: Repetition, kind: Literal["forward", "backward"]) -> Section:
    """The section in place of the blocks that are not shown: the output of each, or the gradient that arrived at it."""
    place, shown = context.repeated.repetitions.index(repetition) + 1, repetition.shown
    ends = [context.repeated.last_step(path) for path in repetition.blocks]
    results = [(path, context.graph.values[end.outputs[0]]) for path, end in zip(repetition.blocks, ends, strict=True)]
    said: Text = (
        f"{names(repetition)} run the same {context.repeated.forward_steps(shown)} steps as ", Code(shown),
        ", on tensors of the same shapes. ", Code(shown), " is shown in full; a table at each of its steps has the "
        "statistics of all these blocks. ",
    )  # fmt: skip
    if kind == "backward":
        said = (*said, "The gradients that arrive at them, the last block first:")
        gradients = [(path, context.statistics.of(value.gradient)) for path, value in reversed(results)]
        checks = [(_checks(context, path),) for path, _ in gradients]
        table = statistics_table("upstream", gradients, ("checks",), checks)
    else:
        said = (*said, f"Their outputs, {shape_text(results[0][1].shape)}:")
        table = statistics_table("results", [(path, context.statistics.of(value.snapshot)) for path, value in results])
    title: Text = (f"{kind.capitalize()}: {names(repetition)}, like ", Code(shown))
    return Section(title, f"{kind}-alike-{place}", kind, (Paragraph(said), table))


def _checks(context: Context, path: str) -> str:
    """How many of a block's gradients agree with autograd's: `38 agree`."""
    kinds = Counter(
        context.check(contribution).kind
        for step in context.repeated.backward_steps(path)
        for contribution in step.contributions
        if contribution.gradient is not None and contribution.recorded is not None
    )
    agree = kinds.pop("agrees", 0)
    counts = [f"{agree} agree"] if agree or not kinds else []
    return ", ".join([*counts, *(f"{count} {kind}" for kind, count in kinds.items())])
