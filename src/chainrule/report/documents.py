"""The two documents of a step: every step of the derivation, and a screenful.

The first has the setup, the forward and backward steps, the update and the findings. The second has each value with its
gradient, and the parameters before and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch

from chainrule.derivation.backprop import Step
from chainrule.derivation.repeated_blocks import Repetition
from chainrule.document import Block, Code, Document, Paragraph, Section, Span, Table, Text
from chainrule.exercises.asking import asked
from chainrule.gc_control import gc_paused
from chainrule.graph.names import escape
from chainrule.graph.snapshot import Parameter, Snapshot
from chainrule.lab.program import program_of
from chainrule.numbers import nested, number
from chainrule.report import block_tables, code, data_parallel, steps, update, value_table
from chainrule.report.context import Context, shape_text
from chainrule.report.headline import headline, with_names
from chainrule.verification.rows import worst_row

SHOWN = 6  # numbers in a cell of the screenful
HOW_TO_READ = (
    "Each step takes the gradient of its output, the upstream gradient, and computes the gradient of each of its "
    "inputs: first as the product with the Jacobian, of tensors flattened in row-major order, then as the "
    "vector-Jacobian product that PyTorch runs, which never builds the Jacobian. The result is checked against that of "
    "autograd and, independently of our rules, against central differences of this operation alone in float64 "
    "(measured). The tolerance is a few roundings of the number type, of the terms that add up to each element."
)


@gc_paused()
def full(context: Context, pointing: bool = False, coded: bool = False, running: bool = False) -> Document:
    """Every step of the derivation.

    With `pointing` also the sum behind each number, for a view in which a reader can point at one; with `coded` also
    the code that recomputes each section; with `running` also the program of a small step.
    """
    title = ("One training step, worked out",)
    sums = value_table.sums(context) if pointing else ()
    sections = tuple(_sections(context))
    sections = code.with_code(context, sections) if coded else sections
    made, reason = program_of(context.graph, value_table.row_numbers(context)) if running else (None, "")
    exercises, slips = asked(context, value_table.row_numbers(context)) if running else ((), ())
    shown = tuple(summary(context)), sections, value_table.rows(context), sums
    return Document(title, *shown, made, reason, exercises, slips)


def summary(context: Context) -> Iterator[Block]:
    """The verdict, the loss, what was recorded, and warnings and notes."""
    graph = context.graph
    if graph.nodes and graph.backwards:
        yield headline(with_names(context.whole_check, graph, lambda: context.derivation))
    for backward in graph.accumulating:
        if backward.loss is not None:
            value = graph.values[backward.loss]
            shown = "not kept" if value.data is None or value.data.numel() != 1 else repr(value.data.item())
            yield Paragraph((f"{context.notation.plain(backward.loss)} = {shown}  ({value.name})",))
    explained = sum(step.rule is not None for step in context.derivation.nodes)
    through = len(context.derivation.nodes)
    numbers = sum(math.prod(p.shape) for p in graph.parameters.values())
    counts = {"call": len(graph.calls), "operation": len(graph.operations), "autograd node": len(graph.nodes)}
    counted = ", ".join(many(count, thing) for thing, count in counts.items())
    yield Paragraph(
        (f"{counted}; {many(len(graph.parameters), 'parameter')} with {many(numbers, 'element')}. Gradients flowed "
         f"through {many(through, 'operation')}; our own rules explain {explained} of them.",)
    )  # fmt: skip
    if graph.error:
        yield Paragraph(
            (f"The block ended in {graph.error.rstrip('.')}. This report goes up to that point.",), "warning"
        )
    if not graph.backwards:
        yield Paragraph(
            ("No backward() ran inside the block, so there are no gradients, only the forward pass. Put ",
             Code("loss.backward()"), " inside the block to see the rest."),
            "warning",
        )  # fmt: skip
    for failure in dict.fromkeys(step.failure for step in context.derivation.nodes if step.failure):
        yield Paragraph((failure,), "warning")
    for backward in graph.backwards:
        if not backward.accumulates:
            yield Paragraph(update.returned(context, backward), "note")
    for note in graph.notes:
        yield Paragraph((note,), "note")
    for finding in context.findings:
        *words, last = finding.text
        place = f" ({finding.place})" if finding.place else ""
        ending = f"{last.removesuffix('.')}{place}." if isinstance(last, str) and last.endswith(".") else last
        advice = (f" {finding.advice}",) if finding.severity != "note" else ()
        yield Paragraph((*words, ending, *advice), finding.severity)


def many(count: int, thing: str) -> str:
    """`1 call`, `2 calls`."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def _sections(context: Context) -> Iterator[Section]:
    yield _setting(context)
    yield Section(("Forward",), "forward", "forward", (), tuple(_steps(context, "forward", steps.forward)))
    backward = tuple(_steps(context, "backward", steps.backward))
    if backward:
        yield Section(("Backward",), "backward", "backward", (Paragraph((HOW_TO_READ,)),), backward)
    yield from data_parallel.reductions(context)
    if context.graph.backwards:
        yield update.gradients(context)
    for place, step in enumerate(context.graph.updates, 1):
        yield update.update(context, place, step)
    if written := update.written_by_hand(context):
        yield update.by_hand(context, written)
    if context.findings:
        yield Section(("Findings",), "findings", "note", (), tuple(_findings(context)))


def _steps(
    context: Context, kind: Literal["forward", "backward"], section: Callable[[Context, Step, int], Section]
) -> Iterator[Section]:
    """A section for each step, with its number; of repeated blocks one is shown, and one section has the others."""
    seen: set[Repetition] = set()
    steps = (step for step in context.derivation.steps if step.kind == kind)
    for place, step in enumerate(steps, 1):
        repetition = context.repeated.of_step(step)
        if repetition is None:
            yield section(context, step, place)
        elif repetition not in seen:
            seen.add(repetition)
            yield block_tables.blocks(context, repetition, kind)


def _findings(context: Context) -> Iterator[Section]:
    """Each finding with its evidence and advice."""
    for place, finding in enumerate(context.findings, 1):
        where = f" ({finding.place})" if finding.place else ""
        title: tuple[Span, ...] = (f"{finding.id}: ", Code(finding.where), where)
        evidence = tuple(Paragraph((each,)) for each in finding.evidence)
        blocks = (Paragraph(finding.text), *evidence, Paragraph((f"Try: {finding.advice}",)))
        yield Section(title, f"finding-{place}", "note", blocks)


def _setting(context: Context) -> Section:
    """The modules, the input data, and the parameters before the step."""
    rows = tuple(_modules(context))
    blocks: list[Block] = [Table(("module", "class", "parameters", "mode"), rows)] if rows else []
    blocks += list(_inputs(context))
    return Section(("Setup",), "setting", "overview", tuple(blocks), tuple(_parameters(context)))


def _modules(context: Context) -> Iterator[tuple[Text, ...]]:
    """A row for each module, and one for all blocks that a shown one stands for."""
    graph, seen = context.graph, set()
    for module in graph.modules:
        repetition = context.repeated.of_module(module.path)
        mode = "training" if module.training else "evaluation"
        if repetition is None:
            shapes = ", ".join(
                f"{name.rsplit('.', 1)[-1]} {shape_text(graph.parameters[name].shape)}"
                for name in module.parameters
                if name in graph.parameters
            )
            yield (Code(module.path or "(the model)"),), (module.class_name,), (shapes,), (mode,)
        elif repetition not in seen:
            seen.add(repetition)
            names, like = Code(block_tables.names(repetition)), ("like ", Code(repetition.shown))
            yield (names,), (module.class_name,), like, (mode,)


def _inputs(context: Context) -> Iterator[Block]:
    """The input data that the shown operations use."""
    used = {value for step in context.derivation.steps for _, _, value in step.arguments}
    for value in context.graph.values:
        if value.index in used and value.node is None and value.kind in ("input", "result"):
            yield context.value(value.index, "data")


def _parameters(context: Context) -> Iterator[Section]:
    for place, (name, parameter) in enumerate(context.graph.parameters.items()):
        if context.repeated.of_parameter(name) is not None:
            continue
        symbol = rf"\text{{{escape(name)}}}" if parameter.value is None else context.notation.symbol(parameter.value)
        plain = name if parameter.value is None else context.notation.plain(parameter.value)
        title: tuple[Span, ...] = (Code(name),) if plain == name else (f"{plain}: ", Code(name))
        held = Paragraph((Code(".grad"), f" before backward: {context.held_before(name)}"))
        blocks = (context.parameter(symbol, parameter), held, *block_tables.parameters(context, name))
        yield Section(title, f"parameter-{place}", "overview", blocks)


# -- in a screenful ---------------------------------------------------------------------------------------------------


def brief(context: Context) -> Document:
    """The step in a screenful."""
    return Document(("One training step, in brief",), tuple(summary(context)), tuple(_brief_sections(context)))


def _brief_sections(context: Context) -> Iterator[Section]:
    rows = tuple(_values(context))
    table = Table(("name", "code", "value", "gradient"), rows)
    yield Section(("Forward and backward",), "brief", "overview", (table,))
    if context.graph.parameters:
        headers = ("parameter", "before", "gradient", "check", "after", "update")
        table = Table(headers, tuple(_brief_parameters(context)))
        yield Section(("Parameters",), "brief-parameters", "overview", (table,))


def _values(context: Context) -> Iterator[tuple[Text, ...]]:
    for step in context.derivation.steps:
        if step.kind != "forward":
            continue
        repetition = context.repeated.of_step(step)
        if repetition is not None:
            yield from _block(context, repetition, step)
            continue
        place = context.place(step)
        code = (Code(place.expression),) if place and place.expression else (context.operation_name(step),)
        for value in context.results(step):
            yield (context.notation.plain(value),), (*code, *_node_verdict(context, value)), *_both(context, value)


def _block(context: Context, repetition: Repetition, step: Step) -> Iterator[tuple[Text, ...]]:
    """A whole block in a row: its output."""
    path = next((each for each in repetition.others if context.repeated.last_step(each) is step), None)
    if path is not None:
        yield (path,), ("like ", Code(repetition.shown)), *_both(context, step.outputs[0])


def _both(context: Context, value: int) -> tuple[Text, Text]:
    known = context.graph.values[value]
    return (cell(context, known.snapshot),), (cell(context, known.gradient),)


def _node_verdict(context: Context, value: int) -> Text:
    """The verdict on the node that leads back from a value, where it does not simply agree."""
    node = context.graph.values[value].node
    if node is None or not context.graph.nodes[node].executions or context.row(node).verdict == "agrees":
        return ()
    return (f" (backward: {context.row(node).verdict})",)


def _brief_parameters(context: Context) -> Iterator[tuple[Text, ...]]:
    seen: set[Repetition] = set()
    for name, parameter in context.graph.parameters.items():
        repetition = context.repeated.of_parameter(name)
        if repetition is None:
            yield _parameter(context, name, parameter)
        elif repetition not in seen:
            seen.add(repetition)
            yield (f"{block_tables.names(repetition)}: like {repetition.shown}",), ("",), ("",), ("",), ("",), ("",)


def _parameter(context: Context, name: str, parameter: Parameter) -> tuple[Text, ...]:
    label = name if parameter.value is None else context.notation.plain(parameter.value)
    before, gradient = (cell(context, each) for each in (parameter.start, parameter.gradient))
    after = "" if parameter.end is None else cell(context, parameter.end)  # nothing updated it
    checks = _gradient_verdict(context, parameter), _update_verdict(context, name)
    return (label,), (before,), (gradient,), (checks[0],), (after,), (checks[1],)


def _update_verdict(context: Context, name: str) -> str:
    """The worst verdict on the updates of a parameter; "" where no optimizer changed it."""
    found = [each for each in context.whole_check.updates if each.parameter == name]
    return worst_row(found).verdict if found else ""


def _gradient_verdict(context: Context, parameter: Parameter) -> str:
    """The verdict on the gradient of a parameter."""
    if parameter.value is None:  # its forward pass was not recorded
        return "not checked" if parameter.has_gradient else ""
    ours = context.derivation.gradients.get(parameter.value)
    arrived = context.graph.values[parameter.value].grad
    if ours is None or arrived is None:
        return ""
    return context.check_gradient(parameter.value, ours, arrived, ()).kind


def cell(context: Context, snapshot: Snapshot | None) -> str:
    """A tensor in a cell: its numbers if they are few, else its shape and the norm of its finite elements."""
    if snapshot is None:
        return "None"
    data, shape = snapshot.data, shape_text(snapshot.shape)
    if data is None or data.numel() > SHOWN:
        found = context.statistics.of(snapshot)
        if found is None:
            return f"{shape}, not kept"
        return f"{shape}, norm {number(found.norm if found.elements > found.not_finite else math.nan)}"
    return nested((data.to_dense() if data.layout is not torch.strided else data).tolist())
