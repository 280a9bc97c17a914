"""The reduction of gradients in data-parallel training: the gradient of each rank, and the mean over all ranks."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.document import Block, Code, Equation, Kind, Paragraph, Section, Table, Text, Verdict
from chainrule.graph.comparison import compare_mean, rounding
from chainrule.graph.names import escape
from chainrule.graph.snapshot import Reducer, Reduction
from chainrule.report.context import Context, shape_text
from chainrule.report.verdicts import of_comparison

NAMES = {"all-reduce": "All-reduce", "reduce-scatter": "Reduce-scatter"}


def reductions(context: Context) -> Iterator[Section]:
    """A section for each kind of reduction."""
    graph = context.graph
    for kind in dict.fromkeys(each.kind for each in graph.reducers):
        found = [each for each in graph.reductions.values() if graph.reducers[each.reducer].kind == kind]
        if not found:
            continue
        reducer = graph.reducers[found[0].reducer]
        inner = (
            _parameter(context, reducer, each, number)
            for number, each in enumerate(found)
            if context.repeated.of_parameter(each.name) is None
        )
        title = f"{NAMES[kind]}: gradients are averaged over {reducer.ranks} ranks"
        yield Section((title,), kind, "backward", tuple(_about(context, reducer, found)), tuple(inner))


def _about(context: Context, reducer: Reducer, reductions: list[Reduction]) -> Iterator[Block]:
    yield Paragraph(
        (f"The gradients above are those of this process, rank {reducer.rank} of {reducer.ranks}, from its own "
         "samples. Before backward returns, ", Code(reducer.class_name), " replaces them by the mean over all ranks"
         + (", of which each rank keeps its own shard." if reducer.kind == "reduce-scatter" else "."),)
    )  # fmt: skip
    yield Equation(rf"\bar g = \frac{{1}}{{{reducer.ranks}}} \sum_{{r=0}}^{{{reducer.ranks - 1}}} g_r", "all ranks")
    if reducer.hook:
        yield Paragraph(("A communication hook, ", Code(reducer.hook), ", replaces the plain mean."), "note")
    if not any(each.gathered for each in reductions):
        yield Paragraph(
            ("Only this rank's gradients were recorded. ", Code("chainrule.distributed.gather(recording)"), ", called "
             "on every rank, adds those of the others and checks the mean."),
            "note",
        )  # fmt: skip
    yield Table(("parameter", "this rank's gradient", "norm", "norm in .grad"), tuple(_rows(context, reductions)))


def _rows(context: Context, reductions: list[Reduction]) -> Iterator[tuple[Text, ...]]:
    for each in reductions:
        norms = (context.norm(each.sent),), (context.norm(each.received),)
        yield (Code(each.name),), (shape_text(each.sent.shape),), *norms


def _parameter(context: Context, reducer: Reducer, each: Reduction, place: int) -> Section:
    parameter = context.graph.parameters.get(each.name)
    value = None if parameter is None else parameter.value
    symbol = rf"\text{{{escape(each.name)}}}" if value is None else context.notation.symbol(value)
    title = (Code(each.name),)
    return Section(title, f"{reducer.kind}-{place}", "backward", tuple(_gradients(context, reducer, each, symbol)))


def _gradients(context: Context, reducer: Reducer, each: Reduction, symbol: str) -> Iterator[Block]:
    gradient = rf"\frac{{\partial J}}{{\partial {symbol}}}"
    if each.gathered:
        for rank, local in enumerate(each.gathered):
            label = f"rank {rank}'s gradient" + (" (this rank)" if rank == reducer.rank else "")
            yield context.tensor(rf"{gradient}_{{r={rank}}}", local, "gradient", label)
    elif each.local is not None:
        yield context.tensor(rf"{gradient}_{{r={reducer.rank}}}", each.local, "gradient", "this rank's gradient")
    if each.mean is not None:
        part = ", this rank's shard" if reducer.kind == "reduce-scatter" else ""
        yield context.tensor(rf"\overline{{{gradient}}}", each.mean, "gradient", f"the mean, in .grad{part}")
    if each.gathered and each.mean is not None:
        yield _verdict(reducer, each)


def _verdict(reducer: Reducer, each: Reduction) -> Verdict:
    assert each.mean is not None
    if len(each.gathered) != reducer.ranks:
        return Verdict("not checked", ("the gradients were reduced over another group of ranks than gather() ran on",))
    if reducer.kind == "reduce-scatter":
        known: dict[str, Kind] = {"agrees": "agrees", "disagrees": "disagrees"}
        text = ("the mean of all ranks against all shards of ", Code(f"{each.name}.grad"), ", as gather() found")
        return Verdict(known.get(each.verdict, "not checked"), text)
    found = compare_mean(each.gathered, each.mean, rounding(each.mean.dtype))
    return of_comparison(found, ("the mean of all ranks against ", Code(f"{each.name}.grad")))
