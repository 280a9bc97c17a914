"""What blocks that are told only once have of their own: their figures and verdicts, a row each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor as Data

from chainrule.derivation.backprop import Share, Step
from chainrule.document import Block, Code, Paragraph, Section, Table, Text
from chainrule.graph.graph import ParameterUpdate, Update
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import memory
from chainrule.numbers import number
from chainrule.report.context import Context, pairs, shape_text
from chainrule.report.folding import Fold

FIGURES = ("norm", "mean", "std", "min", "max")
Cells = tuple[str, ...]


def forward(context: Context, step: Step) -> Iterator[Block]:
    """The results of one step in each of the blocks that are alike, but of one that only views its operand."""
    alike = context.folding.alike(step)
    operands = [context.graph.values[value].data for _, _, value in step.arguments]
    for value in context.results(step) if alike else ():
        if are_views(context.graph.values[value].data, operands):
            continue
        slot = step.outputs.index(value)
        found = [(path, _of_value(context, other.outputs[slot])) for path, other in alike]
        yield figures(f"{context.notation.plain(value)} in each block", found)


def backward(context: Context, step: Step, share: Share) -> Iterator[Block]:
    """One share of a gradient in each of the blocks that are alike, with the check against autograd's."""
    alike = context.folding.alike(step)
    if not alike or share.value is None:
        return
    if are_views(share.gradient, step.upstream):
        return
    place = next(i for i, each in enumerate(step.shares) if each is share)
    shares = [(path, other.shares[place]) for path, other in alike]
    label = f"{context.notation.plain_gradient(share.value, step.backward)} in each block"
    checks = [_check(context, each) for _, each in shares]
    found = [(path, _of_share(context, each)) for path, each in shares]
    yield figures(label, found, ("differs by", "check"), checks)


def are_views(data: Data | None, others: Iterable[Data | None]) -> bool:
    """Whether a tensor holds nothing but the numbers of another, in the same memory."""
    return data is not None and any(each is not None and memory(each) == memory(data) for each in others)


def _check(context: Context, share: Share) -> Cells:
    verdict = context.check(share)
    return ("" if verdict.difference is None else number(verdict.difference), verdict.kind)


def parameters(context: Context, name: str) -> Iterator[Block]:
    """A parameter of each of the blocks that are alike."""
    alike = context.folding.parameters_alike(name)
    if alike:
        members = [(path, context.graph.parameters[each]) for path, each in alike]
        found = [(path, context.figures(each.before, each.before_statistics)) for path, each in members]
        held = [(context.held_before(each),) for _, each in alike]
        yield figures(f"{name} in each block", found, ("gradient",), held)


def updates(context: Context, step: Update, name: str) -> Iterator[Block]:
    """What the optimizer did to a parameter in each of the blocks that are alike."""
    alike = context.folding.parameters_alike(name)
    of_name = {each.name: each for each in step.parameters}
    rows = [(path, of_name[each]) for path, each in alike if each in of_name]
    if rows:
        headers = ("block", "norm before", "gradient", "change / before", "check")
        cells = tuple(_row(path, _updated(context, step, each)) for path, each in rows)
        yield Table(headers, cells, f"{name} in each block")


def by_hand(context: Context, name: str) -> Iterator[Block]:
    """What became of a parameter in each of the blocks that are alike."""
    alike = context.folding.parameters_alike(name)
    if alike:
        members = [(path, context.graph.parameters[each]) for path, each in alike]
        yield figures(
            f"{name} after, in each block", [(path, context.figures(each.after, None)) for path, each in members]
        )


def _row(path: str, cells: Iterable[str]) -> tuple[Text, ...]:
    named: Text = (Code(path),)
    return named, *((cell,) for cell in cells)


def _updated(context: Context, step: Update, each: ParameterUpdate) -> Cells:
    relative = context.relative_updates.get(each.value) if each.value is not None else None
    return (
        _norm(context, each.before, each.before_statistics),
        "None" if each.grad is None else _norm(context, each.grad, each.grad_statistics),
        "" if relative is None else number(relative),
        "" if each.grad is None else context.check_update(step, each),
    )


def _norm(context: Context, data: Data, known: Statistics | None) -> str:
    found = context.figures(data, known)
    return "not kept" if found is None else number(found.norm if not found.not_finite else math.nan)


def _of_value(context: Context, index: int | None) -> Statistics | None:
    value = None if index is None else context.graph.values[index]
    return None if value is None else context.figures(value.data, value.statistics)


def _of_gradient(context: Context, index: int) -> Statistics | None:
    value = context.graph.values[index]
    return context.figures(value.grad, value.grad_statistics)


def _of_share(context: Context, share: Share) -> Statistics | None:
    """The figures of one share; where its numbers were not kept, those of the gradient that it is all of."""
    whole = share.value is not None and context.is_whole(share)
    known = context.graph.values[share.value].grad_statistics if whole and share.value is not None else None
    return context.figures(share.gradient, known)


def figures(
    label: str,
    known: Sequence[tuple[str, Statistics | None]],
    more: Sequence[str] = (),
    cells: Sequence[Cells] = (),
) -> Table:
    """A row of figures for each tensor, under the path of its block."""
    found = [({} if each is None else dict(pairs(each))) for _, each in known]
    shown = (*FIGURES, *(name for name in ("zeros", "not finite") if any(each.get(name) for each in found)))
    rows = []
    for place, ((path, _), row) in enumerate(zip(known, found, strict=True)):
        told = [number(row[name]) if name in row else "" for name in shown]
        rows.append(_row(path, [*told, *(cells[place] if cells else ())]))
    return Table(("block", *shown, *more), tuple(rows), label)


# -- the blocks themselves --------------------------------------------------------------------------------------------


def names(fold: Fold) -> str:
    """The blocks that are not told in full: `h.1 to h.11`; `h.1, h.2 and h.4 to h.11` where the third is not alike."""
    runs: list[list[str]] = []
    for path in fold.others:
        if runs and _follows(runs[-1][-1], path):
            runs[-1].append(path)
        else:
            runs.append([path])
    told = [part for run in runs for part in (run if len(run) <= 2 else [f"{run[0]} to {run[-1]}"])]
    return " and ".join([part for part in (", ".join(told[:-1]), told[-1]) if part])


def _follows(one: str, other: str) -> bool:
    """Whether `h.4` comes right after `h.3`; of names without a number nothing is between them."""
    (outside, _, before), (beside, _, after) = one.rpartition("."), other.rpartition(".")
    numbered = before.isdecimal() and after.isdecimal()
    return outside == beside and (not numbered or int(after) == int(before) + 1)


def blocks(context: Context, fold: Fold, step: Step) -> Section:
    """Stands where the other blocks would be told: what came out of each, or what gradient arrived at each."""
    place = context.folding.folds.index(fold) + 1
    ends = [context.folding.last_step(path) for path in fold.blocks]
    results = [(path, context.graph.values[end.outputs[0]]) for path, end in zip(fold.blocks, ends, strict=True)]
    count = context.folding.forward_steps(fold.told)
    said: Text = (
        f"{names(fold)} run the same {count} steps on tensors of the same shapes as ",
        Code(fold.told), ", which is told in full, with the figures of all of them in a table at each of its steps. ",
    )  # fmt: skip
    if step.kind == "backward":
        said = (*said, "Here is the gradient that arrives at each, the last block first:")
        title: Text = (f"Back through {names(fold)}: as ", Code(fold.told))
        gradients = [(path, _of_gradient(context, value.index)) for path, value in reversed(results)]
        checks = [(_checks(context, path),) for path, _ in gradients]
        table = figures("upstream", gradients, ("checks",), checks)
        return Section(title, f"backward-alike-{place}", "backward", (Paragraph(said), table))
    said = (*said, f"Here is what comes out of each, {shape_text(results[0][1].shape)}:")
    title = (f"Forward through {names(fold)}: as ", Code(fold.told))
    table = figures("results", [(path, _of_value(context, value.index)) for path, value in results])
    return Section(title, f"forward-alike-{place}", "forward", (Paragraph(said), table))


def _checks(context: Context, path: str) -> str:
    """How many of a block's gradients agree with autograd's: `38 agree`."""
    kinds = Counter(
        context.check(share).kind
        for step in context.folding.backward_steps(path)
        for share in step.shares
        if share.gradient is not None and share.recorded is not None
    )
    agree = kinds.pop("agrees", 0)
    told = [f"{agree} agree"] if agree or not kinds else []
    return ", ".join([*told, *(f"{count} {kind}" for kind, count in kinds.items())])
