"""The whole step from start to end: what is set, forward, loss, every step back, the update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from chainrule.derivation.backprop import Step
from chainrule.document import Block, Code, Document, Paragraph, Section, Span, Table, Text
from chainrule.gc_control import gc_paused
from chainrule.graph.symbols import escape
from chainrule.report import alike, code, mirror, ranks, steps, sums, update
from chainrule.report.context import Context, shape_text
from chainrule.report.folding import Fold


@gc_paused()
def whole(context: Context, pointing: bool = False, coded: bool = False) -> Document:
    """Tell everything.

    With `pointing` also why each number is what it is, for a reader who can point at it; with `coded` also the code
    that recomputes each section.
    """
    title = ("One training step, worked out",)
    because = sums.sums(context) if pointing else ()
    sections = tuple(_sections(context))
    sections = code.with_code(context, sections) if coded else sections
    return Document(title, tuple(summary(context)), sections, mirror.rows(context), because)


def summary(context: Context) -> Iterator[Block]:
    """What was recorded, and what is worth knowing first."""
    graph = context.graph
    for backward in graph.accumulating:
        if backward.loss is not None:
            value = graph.values[backward.loss]
            number = "not kept" if value.data is None or value.data.numel() != 1 else repr(value.data.item())
            yield Paragraph((f"{context.notation.plain(backward.loss)} = {number}  ({value.name})",))
    explained = sum(step.rule is not None for step in context.derivation.nodes)
    through = len(context.derivation.nodes)
    numbers = sum(p.elements for p in graph.parameters.values())
    counts = {"call": len(graph.calls), "operation": len(graph.operations), "autograd node": len(graph.nodes)}
    counted = ", ".join(many(count, thing) for thing, count in counts.items())
    yield Paragraph(
        (f"{counted}; {many(len(graph.parameters), 'parameter')} with {numbers:,} numbers. Gradients flowed through "
         f"{many(through, 'operation')}, of which {explained} are explained by our own rules.",)
    )  # fmt: skip
    if graph.error:
        yield Paragraph(
            (f"The block ended in {graph.error.rstrip('.')}. What is told here goes up to that point.",), "warning"
        )
    if not graph.backwards:
        yield Paragraph(
            ("No backward() ran inside the block, so there are no gradients; the forward part is told. Put ",
             Code("loss.backward()"), " inside the block to see the rest."),
            "warning",
        )  # fmt: skip
    for failure in dict.fromkeys(step.failure for step in context.derivation.nodes if step.failure):
        yield Paragraph((failure,), "warning")
    for backward in graph.backwards:
        if not backward.accumulates:
            yield Paragraph(update.handed_out(context, backward), "note")
    for note in graph.notes:
        yield Paragraph((note,), "note")
    for finding in context.findings:
        if finding.severity == "note":
            yield Paragraph(finding.text, "note")
        else:
            yield Paragraph((*finding.text, f" {finding.advice}"), "warning")


def many(count: int, thing: str) -> str:
    """`1 call`, `2 calls`."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def _sections(context: Context) -> Iterator[Section]:
    yield _setting(context)
    told = context.derivation.steps
    forward = [step for step in told if step.kind == "forward"]
    backward = [step for step in told if step.kind == "backward"]
    yield Section(
        ("Forward",), "forward", "forward", (),
        tuple(_told(context, forward, steps.forward)),
    )  # fmt: skip
    if backward:
        yield Section(
            ("Backward",), "backward", "backward", tuple(_how_to_read(context)),
            tuple(_told(context, backward, steps.backward)),
        )  # fmt: skip
    yield from ranks.reductions(context)
    if context.graph.backwards:
        yield update.gradients(context)
    for number, step in enumerate(context.graph.updates, 1):
        yield update.update(context, number, step)
    if written := update.written_by_hand(context):
        yield update.by_hand(context, written)
    if context.findings:
        yield Section(("Worth knowing",), "findings", "note", (), tuple(_findings(context)))


def _told(
    context: Context, of_one_kind: Sequence[Step], tell: Callable[[Context, Step, int], Section]
) -> Iterator[Section]:
    """Each step with its number; of blocks that are alike those of one, and a section that stands for the others."""
    met: set[Fold] = set()
    for number, step in enumerate(of_one_kind, 1):
        fold = context.folding.fold_of(step)
        if fold is None:
            yield tell(context, step, number)
        elif fold not in met:
            met.add(fold)
            yield alike.blocks(context, fold, step)


def _findings(context: Context) -> Iterator[Section]:
    """Each finding with its evidence, and what to try."""
    for number, finding in enumerate(context.findings, 1):
        where = f" ({finding.place})" if finding.place else ""
        title: tuple[Span, ...] = (f"{finding.id}: ", Code(finding.where), where)
        evidence = tuple(Paragraph((each,)) for each in finding.evidence)
        blocks = (Paragraph(finding.text), *evidence, Paragraph((f"Try: {finding.advice}",)))
        yield Section(title, f"finding-{number}", "note", blocks)


def _how_to_read(context: Context) -> Iterator[Block]:
    yield Paragraph(
        ("Each step takes the gradient of its output (upstream) and gives the gradient of each of its inputs. The long "
         "way is the Jacobian of the tensors flattened row by row; what PyTorch runs is the same product without ever "
         "building it.",)
    )  # fmt: skip


def _setting(context: Context) -> Section:
    """The architecture, and the parameters before the step."""
    rows = tuple(_modules(context))
    blocks: list[Block] = [Table(("module", "class", "parameters", "mode"), rows)] if rows else []
    blocks += list(_inputs(context))
    return Section(("What is set",), "setting", "overview", tuple(blocks), tuple(_parameters(context)))


def _modules(context: Context) -> Iterator[tuple[Text, ...]]:
    """A row each; one for all the blocks that are like one told before them."""
    graph, met = context.graph, set()
    for module in graph.modules:
        fold = context.folding.module_fold(module.path)
        mode = "training" if module.training else "evaluation"
        if fold is None:
            shapes = ", ".join(
                f"{name.rsplit('.', 1)[-1]} {shape_text(graph.parameters[name].shape)}"
                for name in module.parameters
                if name in graph.parameters
            )
            yield (Code(module.path or "(the model)"),), (module.class_name,), (shapes,), (mode,)
        elif fold not in met:
            met.add(fold)
            yield (Code(alike.names(fold)),), (module.class_name,), ("as ", Code(fold.told)), (mode,)


def _inputs(context: Context) -> Iterator[Block]:
    """The data that came from outside and that the told operations use."""
    used = {value for step in context.derivation.steps for _, _, value in step.arguments}
    for value in context.graph.values:
        if value.index in used and value.node is None and value.kind in ("input", "result"):
            yield context.value(value.index, "data")


def _parameters(context: Context) -> Iterator[Section]:
    for number, (name, parameter) in enumerate(context.graph.parameters.items()):
        if context.folding.parameter_fold(name) is not None:
            continue
        symbol = rf"\text{{{escape(name)}}}" if parameter.value is None else context.notation.symbol(parameter.value)
        plain = name if parameter.value is None else context.notation.plain(parameter.value)
        title: tuple[Span, ...] = (Code(name),) if plain == name else (f"{plain}: ", Code(name))
        held = Paragraph((f"gradient: {context.held_before(name)}",))
        told = context.parameter(symbol, parameter)
        blocks = (told, held, *alike.parameters(context, name))
        yield Section(title, f"parameter-{number}", "overview", blocks)
