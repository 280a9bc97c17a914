"""The two documents of a step: every step of the derivation, and a screenful.

The first has the setup, the forward and backward steps, the update and the findings. The second has each value with its
gradient, and the parameters before and after.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import torch

from chainrule.derivation.backprop import Step
from chainrule.derivation.repeated_blocks import Repetition
from chainrule.document import Block, Code, Document, Math, Paragraph, Section, Span, Table, Text, Verdict
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
LINES, WIDTH = 57, 76  # about how many lines it may have, and how wide they are
ROWS, FEW, SPARE = 30, 8, 3  # rows of a table in it; those of one that does not fit; blocks of its summary
SHORT = 24  # characters of a name there
HOW_TO_READ = (
    "Each step takes its output's gradient (upstream) and computes that of each input. Jacobians are of flattened "
    "tensors (row-major); indices and units count from 0. Each row has its upstream gradient, each column its "
    "gradient: the sum of upstream times column. PyTorch runs a vector-Jacobian product, without the Jacobian."
)
HOW_CHECKED = (
    "Each check compares autograd's gradient with our rule and, independently, with central differences of this "
    "operation alone in float64 (measured; - at a kink): largest difference and tolerance, a few roundings of an "
    "element's terms; for our rule, of all steps since the loss; for the measured, of this step and the differences."
)


@gc_paused()
def full(context: Context, pointing: bool = False, coded: bool = False, running: bool = False) -> Document:
    """Every step of the derivation.

    With `pointing` also the sum behind each number, for a view in which a reader can point at one; with `coded` also
    the code that recomputes each section; with `running` also the program of a small step.
    """
    title = (f"{context.title}, worked out",)
    sums = value_table.sums(context) if pointing else ()
    sections = tuple(_sections(context))
    sections = code.with_code(context, sections) if coded else sections
    made, reason = program_of(context.graph, value_table.row_numbers(context)) if running else (None, "")
    exercises, slips = asked(context, value_table.row_numbers(context)) if running else ((), ())
    shown = tuple(summary(context)), sections, value_table.rows(context), sums
    return Document(title, *shown, made, reason, exercises, slips)


def summary(context: Context, notes: bool = False, advice: bool = False) -> Iterator[Block]:
    """The verdict, the loss, what was recorded, and warnings; perhaps the notes among the findings, and advice.

    The whole document has a section of findings, with the evidence and advice of each.
    """
    graph = context.graph
    if graph.nodes and graph.backwards:
        yield headline(with_names(context.whole_check, graph, lambda: context.derivation))
    losses = [backward.loss for backward in graph.accumulating if backward.loss is not None]
    for turn, loss in enumerate(losses):
        if turn in (0, len(losses) - 1) or len(losses) <= SPARE:
            value = graph.values[loss]
            shown = "not kept" if value.data is None or value.data.numel() != 1 else repr(value.data.item())
            after = "" if (left := context.loss_after) is None else f"; {number(left)} after the step, on the same data"
            yield Paragraph((f"{context.notation.plain(loss)} = {shown}  ({value.name}){after}",))
        elif turn == 1:
            yield Paragraph((f"{len(losses) - 2} losses of further backward passes",))
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
        if finding.severity == "note" and not notes:
            continue
        *words, last = finding.text
        place = f" ({finding.place})" if finding.place else ""
        ending = f"{last.removesuffix('.')}{place}." if isinstance(last, str) and last.endswith(".") else last
        advised = (f" {finding.advice}",) if advice and finding.severity != "note" else ()
        yield Paragraph((*words, ending, *advised), finding.severity)


def many(count: int, thing: str) -> str:
    """`1 call`, `2 calls`."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def _sections(context: Context) -> Iterator[Section]:
    yield _setting(context)
    yield Section(("Forward",), "forward", "forward", (), tuple(_steps(context, "forward", steps.forward)))
    backward = tuple(_steps(context, "backward", steps.backward))
    if backward:
        said = (Paragraph((HOW_TO_READ,)), Paragraph((HOW_CHECKED,)))
        yield Section(("Backward",), "backward", "backward", said, backward)
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
        blocks = (context.parameter(symbol, parameter), *block_tables.parameters(context, name))
        yield Section(title, f"parameter-{place}", "overview", blocks)


# -- in a screenful ---------------------------------------------------------------------------------------------------


def brief(context: Context) -> Document:
    """The step in a screenful: where not all fits, without advice, or with the ends of tables alone."""
    for most, advice in ((ROWS, True), (ROWS, False), (FEW, False)):
        head = tuple(_spare(summary(context, notes=True, advice=advice)))
        sections = tuple(_brief_sections(context, most))
        if sum(map(_lines, head)) + sum(3 + _lines(each.blocks[-1]) for each in sections) <= LINES:
            break
    return Document((f"{context.title}, in brief",), head, sections)


def _spare(blocks: Iterator[Block]) -> Iterator[Block]:
    """The first warnings, notes and errors, and how many more there are."""
    counts: Counter[str] = Counter()
    for block in blocks:
        tone: str = block.tone if isinstance(block, Paragraph) else "plain"
        counts[tone] += 1
        if tone == "plain" or counts[tone] <= SPARE:
            yield block
    for tone, count in counts.items():
        if tone != "plain" and count > SPARE:
            yield Paragraph((f"{many(count - SPARE, f'more {tone}')} in the whole report",))


def _lines(block: Block) -> int:
    """About how many lines of a terminal a block takes, with the empty one before it."""
    if not isinstance(block, Table):
        return 1 + -(-len(_plain(block.text)) // WIDTH) if isinstance(block, (Paragraph, Verdict)) else 2
    texts = [block.headers, *(tuple(map(_plain, row)) for row in block.rows)]
    sizes = [max(1, *map(len, column)) for column in zip(*texts, strict=True)]
    while sum(sizes) + 2 * len(sizes) > WIDTH and max(sizes) > 1:
        sizes[sizes.index(max(sizes))] -= 1
    return 2 + sum(max(-(-len(text) // size) for text, size in zip(row, sizes, strict=True)) for row in texts)


def _plain(text: Text) -> str:
    return "".join(
        span.source if isinstance(span, Code) else span.latex if isinstance(span, Math) else span for span in text
    )


def _brief_sections(context: Context, most: int) -> Iterator[Section]:
    is_few = most == FEW
    through, data = _forward(context)
    rows = tuple(_ends([partial(_value, context, *each, is_few) for each in through], most, 4))
    blocks: list[Block] = [Table(("name", "code", "value", "gradient"), rows)]
    if data:
        blocks.insert(
            0, Paragraph((f"{many(data, 'more result')} on the way to them, which no gradient goes through.",))
        )
    yield Section(("Forward and backward",), "brief", "overview", tuple(blocks))
    if context.graph.parameters:
        headers = ("parameter", "before", "gradient", "check", "after", "update")
        rows = tuple(_ends(list(_brief_parameters(context, is_few)), most if not is_few else FEW // 2, len(headers)))
        yield Section(("Parameters",), "brief-parameters", "overview", (Table(headers, rows),))


Cells = tuple[Text, ...]


def _ends(rows: Sequence[Callable[[], Cells]], most: int, columns: int) -> Iterator[Cells]:
    """The rows, or the first and the last of them and in between how many more there are."""
    left_out = max(len(rows) - most, 0)
    first = most // 2 if left_out else len(rows)
    yield from (row() for row in rows[:first])
    if left_out:
        yield ((f"... {left_out:,} more",), *[("",)] * (columns - 1))
        yield from (row() for row in rows[first + left_out :])


def _forward(context: Context) -> tuple[list[tuple[Step, int | None, str]], int]:
    """(step, result, repeated block) of each row, and how many results of data, which no gradient goes through."""
    found: list[tuple[Step, int | None, str]] = []
    data = 0
    for step in (each for each in context.derivation.steps if each.kind == "forward"):
        repetition = context.repeated.of_step(step)
        if repetition is not None:
            path = next((each for each in repetition.others if context.repeated.last_step(each) is step), None)
            found += [(step, None, path)] if path is not None else []
        elif context.graph.backwards and not step.nodes:
            data += len(context.results(step))
        else:
            found += [(step, value, "") for value in context.results(step)]
    return found, data


def _value(context: Context, step: Step, value: int | None, block: str, is_few: bool) -> Cells:
    """A result, or as a row of a whole block its output."""
    if value is None:
        repetition = context.repeated.of_step(step)
        assert repetition is not None
        return (_cut(block, is_few),), ("like ", Code(repetition.shown)), *_both(context, step.outputs[0], is_few)
    place = context.place(step)
    code = Code(_cut(place.expression, is_few)) if place and place.expression else context.operation_name(step)
    name = _cut(context.notation.plain(value), is_few)
    return (name,), (code, *_node_verdict(context, value)), *_both(context, value, is_few)


def _cut(text: str, is_few: bool) -> str:
    return f"{text[: SHORT - 3]}..." if is_few and len(text) > SHORT else text


def _both(context: Context, value: int, is_few: bool) -> tuple[Text, Text]:
    known, most = context.graph.values[value], 1 if is_few else SHOWN
    return (cell(context, known.snapshot, most),), (cell(context, known.gradient, most),)


def _node_verdict(context: Context, value: int) -> Text:
    """The verdict on the node that leads back from a value, where it does not simply agree."""
    node = context.graph.values[value].node
    if node is None or not context.graph.nodes[node].executions or context.row(node).verdict == "agrees":
        return ()
    return (f" (backward: {context.row(node).verdict})",)


def _brief_parameters(context: Context, is_few: bool) -> Iterator[Callable[[], Cells]]:
    seen: set[Repetition] = set()
    for name, parameter in context.graph.parameters.items():
        repetition = context.repeated.of_parameter(name)
        if repetition is None:
            yield partial(_parameter, context, name, parameter, is_few)
        elif repetition not in seen:
            seen.add(repetition)
            text = f"{block_tables.names(repetition)}: like {repetition.shown}"
            yield partial(tuple, [(text,), *[("",)] * 5])


def _parameter(context: Context, name: str, parameter: Parameter, is_few: bool) -> Cells:
    label, most = name if parameter.value is None else context.notation.plain(parameter.value), 1 if is_few else SHOWN
    before, gradient = (cell(context, each, most) for each in (parameter.start, parameter.gradient))
    after = "" if parameter.end is None else cell(context, parameter.end, most)  # nothing updated it
    checks = _gradient_verdict(context, parameter), _update_verdict(context, name)
    return (_cut(label, is_few),), (before,), (gradient,), (checks[0],), (after,), (checks[1],)


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


def cell(context: Context, snapshot: Snapshot | None, most: int = SHOWN) -> str:
    """A tensor in a cell: its numbers if they are few, else its shape and the norm of its finite elements."""
    if snapshot is None:
        return "None"
    data, shape = snapshot.data, shape_text(snapshot.shape)
    if data is None or data.numel() > most:
        found = context.statistics.of(snapshot)
        if found is None:
            return f"{shape}, not kept"
        return f"{shape}, norm {number(found.norm if found.elements > found.not_finite else math.nan)}"
    return nested((data.to_dense() if data.layout is not torch.strided else data).tolist())
