"""The step between backward and `.grad` in a distributed training: what each rank gave, and the mean that all got."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor as Data

from chainrule.document import Block, Code, Equation, Kind, Paragraph, Section, Table, Text, Verdict
from chainrule.graph.comparison import compare_mean, rounding
from chainrule.graph.graph import Reducer, Reduction
from chainrule.graph.symbols import escape
from chainrule.numbers import number
from chainrule.report.checks import of_comparison
from chainrule.report.context import Context, shape_text

NAMES = {"all-reduce": "All-reduce", "reduce-scatter": "Reduce-scatter"}


def reductions(context: Context) -> Iterator[Section]:
    """A section for all modules that combine gradients in the same way."""
    graph = context.graph
    for kind in dict.fromkeys(each.kind for each in graph.reducers):
        told = [each for each in graph.reductions.values() if graph.reducers[each.reducer].kind == kind]
        if not told:
            continue
        reducer = graph.reducers[told[0].reducer]
        inner = (
            _parameter(context, reducer, each, number)
            for number, each in enumerate(told)
            if context.folding.parameter_fold(each.name) is None
        )
        title = f"{NAMES[kind]}: the gradients of {reducer.ranks} ranks become one"
        yield Section((title,), kind, "backward", tuple(_about(context, reducer, told)), tuple(inner))


def _about(context: Context, reducer: Reducer, told: list[Reduction]) -> Iterator[Block]:
    yield Paragraph(
        ("What stands above is what this process, rank ", f"{reducer.rank} of {reducer.ranks}, worked out from its own "
         "samples. Before backward returns, ", Code(reducer.class_name), " puts the mean over all ranks in its place"
         + (", and each rank keeps its own part of it." if reducer.kind == "reduce-scatter" else "."),)
    )  # fmt: skip
    yield Equation(rf"\bar g = \frac{{1}}{{{reducer.ranks}}} \sum_{{r=0}}^{{{reducer.ranks - 1}}} g_r", "all ranks")
    if reducer.hook:
        yield Paragraph(("A communication hook, ", Code(reducer.hook), ", takes the place of the plain mean."), "note")
    if not any(each.gathered for each in told):
        yield Paragraph(
            ("Only this rank's gradients are known here. ", Code("chainrule.distributed.gather(recording)"), ", called "
             "on every rank, brings those of the others and proves the mean."),
            "note",
        )  # fmt: skip
    yield Table(("parameter", "this rank's gradient", "norm", "norm in .grad"), tuple(_rows(context, told)))


def _rows(context: Context, told: list[Reduction]) -> Iterator[tuple[Text, ...]]:
    for each in told:
        norms = (
            _norm(context, each.local, None if each.local_statistics is None else each.local_statistics.norm),
            _norm(context, each.mean, None if each.mean_statistics is None else each.mean_statistics.norm),
        )
        yield (Code(each.name),), (shape_text(each.shape),), (norms[0],), (norms[1],)


def _norm(context: Context, data: Data | None, known: float | None) -> str:
    norm = known if data is None else context.measures.norm(data)
    return "not kept" if norm is None else number(norm)


def _parameter(context: Context, reducer: Reducer, each: Reduction, place: int) -> Section:
    parameter = context.graph.parameters.get(each.name)
    value = None if parameter is None else parameter.value
    symbol = rf"\text{{{escape(each.name)}}}" if value is None else context.notation.symbol(value)
    title = (Code(each.name),)
    return Section(title, f"{reducer.kind}-{place}", "backward", tuple(_told(context, reducer, each, symbol)))


def _told(context: Context, reducer: Reducer, each: Reduction, symbol: str) -> Iterator[Block]:
    gradient = rf"\frac{{\partial J}}{{\partial {symbol}}}"
    if each.gathered:
        for rank, local in enumerate(each.gathered):
            label = f"rank {rank}'s gradient" + (" (this rank)" if rank == reducer.rank else "")
            yield context.tensor(rf"{gradient}_{{r={rank}}}", local, "gradient", label)
    elif each.local is not None:
        yield context.tensor(rf"{gradient}_{{r={reducer.rank}}}", each.local, "gradient", "this rank's gradient")
    if each.mean is not None:
        part = ", this rank's part of it" if reducer.kind == "reduce-scatter" else ""
        yield context.tensor(rf"\overline{{{gradient}}}", each.mean, "gradient", f"the mean, in .grad{part}")
    if each.gathered and each.mean is not None:
        yield _verdict(context, reducer, each)


def _verdict(context: Context, reducer: Reducer, each: Reduction) -> Verdict:
    assert each.mean is not None
    if len(each.gathered) != reducer.ranks:
        return Verdict("not checked", ("it was combined over another group of ranks than was gathered",))
    if reducer.kind == "reduce-scatter":
        known: dict[str, Kind] = {"agrees": "agrees", "disagrees": "disagrees"}
        text = ("the mean of all ranks against all parts of ", Code(f"{each.name}.grad"), ", as gather() found")
        return Verdict(known.get(each.verdict, "not checked"), text)
    found = compare_mean(each.gathered, each.mean, rounding(each.mean.dtype))
    return of_comparison(found, ("the mean of all ranks against ", Code(f"{each.name}.grad")))
