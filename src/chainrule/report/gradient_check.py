"""The report of a verification: one short line per node, and words only where there is something to say."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator

from chainrule import document
from chainrule.diagnostics.finding import listed
from chainrule.document import Code, Text
from chainrule.graph.comparison import Comparison, worst
from chainrule.graph.names import element
from chainrule.numbers import number
from chainrule.report.headline import headline
from chainrule.report.verdicts import spans
from chainrule.verification.rows import GradientCheck, Row, Wrong

LISTED = 6  # nodes that are named one by one, of those with the same verdict and reason


def gradient_check(verification: GradientCheck) -> document.Document:
    """A summary, a table of all nodes, the reasons for other verdicts, and each disagreement in full."""
    sections = [document.Section(("All nodes",), "verification", "overview", (_table(verification.rows),))]
    reasons = tuple(_reasons(verification.rows))
    if reasons:
        sections.append(document.Section(("Other verdicts",), "verification-more", "note", reasons))
    sections += [_failure(row) for row in verification.failures]
    return document.Document(("Verification",), (headline(verification),), tuple(sections))


def _table(rows: Iterable[Row]) -> document.Table:
    """Short cells only, so that no word is broken in a terminal with 80 columns."""
    cells = (
        (str(row.node.index), row.node.name, str(row.place or ""), row.verdict, _figure(row.finite_difference))
        for row in rows
    )
    headers = ("node", "name", "line", "verdict", "differs by")
    return document.Table(headers, tuple(tuple((cell,) for cell in row) for row in cells))


def _figure(difference: Comparison | None) -> str:
    return "" if difference is None else f"{difference.largest:.1e}"


def _reasons(rows: Iterable[Row]) -> Iterator[document.Verdict]:
    """Why nodes neither agree nor disagree; nodes with the same verdict and reason share a line."""
    groups: dict[tuple[document.Kind, str], list[Row]] = {}
    for row in rows:
        if row.verdict not in ("agrees", "disagrees"):
            groups.setdefault((row.verdict, row.reason), []).append(row)
    for (verdict, reason), members in groups.items():
        named = listed([f"{row.node.name} {row.node.index}{_at(row)}" for row in members], LISTED)
        yield document.Verdict(verdict, (f"{named}: ", *spans(reason)))


def _at(row: Row) -> str:
    return f" ({row.place})" if row.place is not None else ""


def _failure(row: Row) -> document.Section:
    blocks: list[document.Block] = [document.Paragraph(line) for line in _lines(row)]
    most = worst([row.rule_difference, row.finite_difference])
    at = f", most at {element(most.argument, most.index)}" if most is not None and most.index is not None else ""
    difference, tolerance = (most.largest, most.tolerance) if most else (None, None)
    blocks.append(document.Verdict("disagrees", spans(row.reason + at), difference, tolerance))
    blocks += [document.Paragraph(spans(repair.text + "."), "note") for repair in row.repairs]
    if row.wrong:
        blocks.append(_sides(row.wrong))
    title = (f"{row.node.name}, node {row.node.index}",)
    return document.Section(title, f"verification-node-{row.node.index}", "note", tuple(blocks))


def _lines(row: Row) -> Iterator[Text]:
    """Where the node was called, and where its backward is defined."""
    if row.place is not None:
        yield (f"{row.place}: ", Code(row.place.expression)) if row.place.expression else (str(row.place),)
    if row.node.function_class is not None:
        backward = inspect.unwrap(getattr(row.node.function_class, "backward", row.node.function_class))
        code = getattr(backward, "__code__", None)
        if code is not None:
            file = code.co_filename.rsplit("/", 1)[-1]
            yield (f"{file}:{code.co_firstlineno}: ", Code(f"{row.node.function_class.__name__}.backward"))


def _sides(wrong: Iterable[Wrong]) -> document.Table:
    headers = ("element", "rule", "autograd", "finite difference")
    cells = ((element(w.argument, w.index), *map(_number, (w.rule, w.autograd, w.finite))) for w in wrong)
    label = "wrong elements, by rule, autograd and finite difference"
    return document.Table(headers, tuple(tuple((cell,) for cell in row) for row in cells), label)


def _number(value: float | complex | None) -> str:
    return "none" if value is None else f"{value:.8g}" if isinstance(value, float) else number(value)
