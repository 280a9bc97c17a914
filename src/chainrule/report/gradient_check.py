"""The proof of a step, told: one short line a node, and words only where there is something to say."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator

from chainrule import document
from chainrule.document import Code, Text
from chainrule.graph.comparison import Comparison, worst
from chainrule.numbers import number
from chainrule.verification.rows import GradientCheck, Row, Wrong

LISTED = 6  # nodes that are named one by one where many have the same to say


def gradient_check(verification: GradientCheck) -> document.Document:
    """A summary, a table of all nodes, what is to be said of some, and each disagreement with its wrong elements."""
    sections = [document.Section(("Every node",), "proof", "overview", (_table(verification.rows),))]
    said = tuple(_said(verification.rows))
    if said:
        sections.append(document.Section(("What is more to say",), "proof-more", "note", said))
    sections += [_failure(row) for row in verification.failures]
    return document.Document(("Proof",), (_summary(verification),), tuple(sections))


def _summary(verification: GradientCheck) -> document.Verdict:
    explained, total = verification.coverage
    count = Counter(row.verdict for row in verification.rows)
    words = ", ".join(f"{many} {kind}" for kind, many in count.most_common())
    largest = worst([d for row in verification.rows for d in (row.rule_difference, row.finite_difference)])
    return document.Verdict(
        "disagrees" if verification.failures else "agrees",
        (f"{_looked_at(verification)}: {words}; {explained} of {total} explained by a rule",),
        largest.largest if largest else None,
        largest.tolerance if largest else None,
    )


def _looked_at(verification: GradientCheck) -> str:
    looked, left = len(verification.rows), verification.left_out
    if not left:
        return f"{looked} nodes"
    return f"{looked} of {looked + left} nodes ({verification.chosen}), the other {left} were not looked at"


def _table(rows: Iterable[Row]) -> document.Table:
    """Short cells only, so that no word is broken in a terminal of 80 columns."""
    cells = (
        (str(row.node.index), row.node.name, str(row.place or ""), row.verdict, _figure(row.finite_difference))
        for row in rows
    )
    headers = ("node", "name", "line", "verdict", "differs by")
    return document.Table(headers, tuple(tuple((cell,) for cell in row) for row in cells))


def _figure(difference: Comparison | None) -> str:
    return "" if difference is None else f"{difference.largest:.1e}"


def _said(rows: Iterable[Row]) -> Iterator[document.Verdict]:
    """Why a row does not simply agree; nodes of which the same is to be said stand together."""
    alike: dict[tuple[document.Kind, str], list[Row]] = {}
    for row in rows:
        if row.verdict not in ("agrees", "disagrees"):
            alike.setdefault((row.verdict, row.reason), []).append(row)
    for (verdict, reason), members in alike.items():
        named = ", ".join(f"{row.node.name} {row.node.index}{_at(row)}" for row in members[:LISTED])
        more = f" and {len(members) - LISTED} more" if len(members) > LISTED else ""
        yield document.Verdict(verdict, (f"{named}{more}: {reason}",))


def _at(row: Row) -> str:
    return f" ({row.place})" if row.place is not None else ""


def _failure(row: Row) -> document.Section:
    blocks: list[document.Block] = [document.Paragraph(line) for line in _lines(row)]
    told = worst([row.rule_difference, row.finite_difference])
    at = f", most at {_element(told.argument, told.index)}" if told is not None and told.index is not None else ""
    blocks.append(
        document.Verdict(
            "disagrees", (row.reason + at,), told.largest if told else None, told.tolerance if told else None
        )
    )
    blocks += [document.Paragraph((repair.text + ".",), "note") for repair in row.repairs]
    if row.wrong:
        blocks.append(_sides(row.wrong))
    title = (f"{row.node.name}, node {row.node.index}",)
    return document.Section(title, f"proof-node-{row.node.index}", "note", tuple(blocks))


def _lines(row: Row) -> Iterator[Text]:
    """Where it was called, and where its backward stands."""
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
    cells = ((_element(w.argument, w.index), *map(_number, (w.rule, w.autograd, w.finite))) for w in wrong)
    label = "wrong elements, and what each side says"
    return document.Table(headers, tuple(tuple((cell,) for cell in row) for row in cells), label)


def _element(argument: str, index: tuple[int, ...]) -> str:
    return f"{argument}[{','.join(map(str, index))}]" if index else argument


def _number(value: float | complex | None) -> str:
    return "none" if value is None else f"{value:.8g}" if isinstance(value, float) else number(value)
