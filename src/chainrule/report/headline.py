"""The one verdict at the head of every view of a step: what agrees, what does not, and what was not checked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from chainrule.derivation.backprop import Derivation
from chainrule.document import Code, Text, Verdict
from chainrule.graph.graph import Graph, Node
from chainrule.graph.names import element
from chainrule.numbers import many, number
from chainrule.report.verdicts import spans
from chainrule.verification.rows import FORWARD, SAVED, UNSEEN, GradientCheck, Row

NAMED = 3  # nodes that are named one by one
NUMBERS = 4  # elements of a wrong gradient that are listed


def headline(check: GradientCheck) -> Verdict:
    """The verdict on the whole step, in a sentence. It only agrees where every node that has a gradient was checked."""
    idle = {row.node.index for row in check.idle}
    rows = [row for row in check.rows if row.node.index not in idle]
    in_part = check.passed and any(row.verdict == "not checked" for row in rows)
    text = [span for place, part in enumerate(_parts(check, rows)) for span in (("; ",) if place else ()) + part]
    return Verdict("not checked" if in_part else check.verdict, tuple(text))


def _parts(check: GradientCheck, rows: Sequence[Row]) -> Iterator[Text]:
    count = Counter(row.verdict for row in rows)
    convention = f", {count['by convention']} by convention" if count["by convention"] else ""
    yield (f"{count['agrees']} of {len(rows)} autograd nodes agree{convention}",)
    yield from _updates(check)
    for row in check.failures[:NAMED]:
        yield ("✗ ", _name(check, row), ": ", *_sides(row))
    if (more := len(check.failures) - NAMED) > 0:
        yield (f"✗ {more} more",)
    own = [row for row in check.unchecked if row.own not in (FORWARD, UNSEEN)]
    for row in own[:NAMED]:
        yield ("not checked: your own ", _name(check, row), ": ", *spans(row.reason))
    if (more := len(own) - NAMED) > 0:
        yield (f"{more} more of your own not checked",)
    if unseen := [row for row in check.unchecked if row.own in (FORWARD, UNSEEN)]:
        yield (f"{len(unseen)} not checked: ", *_listed(check, unseen))
    others = [row for row in rows if row.verdict == "not checked" and not row.own]
    if others:
        yield (f"{len(others)} of PyTorch's own not checked: ", *_listed(check, others))
    if check.idle:
        yield (f"{len(check.idle)} more had no gradient",)
    if check.left_out:
        yield (f"{check.left_out} more were not looked at ({check.chosen})",)
    if saved := sum(row.reason.startswith(SAVED) for row in rows):
        yield (f"{saved} of your own checked when the step was saved",)
    if compared := _compared(rows):
        yield (f"compared: {compared}",)


def _updates(check: GradientCheck) -> Iterator[Text]:
    count = Counter(update.verdict for update in check.updates)
    if count["agrees"] or count["disagrees"]:
        yield (f"{count['agrees']} of {many(len(check.updates), 'update')} agree",)
    for update in [each for each in check.updates if each.verdict == "disagrees"][:NAMED]:
        yield ("✗ update of ", Code(update.parameter), ": ", *spans(update.reason))
    if count["not checked"]:
        reasons = dict.fromkeys(each.reason for each in check.updates if each.verdict == "not checked")
        yield (f"{count['not checked']} updates not checked: {', '.join(reasons)}",)


def _compared(rows: Iterable[Row]) -> str:
    """What autograd was compared with, and at how many nodes."""
    nodes = [row for row in rows if row.node.leaf is None]
    sums = sum(row.node.leaf is not None and row.rule_difference is not None for row in rows)
    counts = {
        "with our rule": sum(row.rule_difference is not None for row in nodes),
        "with central differences": sum(row.finite_difference is not None for row in nodes),
        "as sums into .grad": sums,
    }
    return ", ".join(f"{many} {what}" for what, many in counts.items() if many)


def _listed(check: GradientCheck, rows: list[Row]) -> Text:
    """A few rows by name, each reason once."""
    reasons = Counter(row.reason for row in rows)
    (reason, many), *others = reasons.most_common()
    first = next(row for row in rows if row.reason == reason)
    more = f" and {len(others)} other reasons" if others else ""
    name = _name(check, first) if many == 1 else f"{many} such as {_name(check, first)}"
    return (f"{name}: ", *spans(reason), more)


def _name(check: GradientCheck, row: Row) -> str:
    at = f" ({row.place})" if row.place is not None else ""
    return check.names.get(row.node.index, f"{row.node.name}, node {row.node.index}") + at


def _sides(row: Row) -> Text:
    """What each side says of the first wrong elements: `autograd [2, 8], measured [3, 12]`."""
    wrong = [each for each in row.wrong if each.argument == row.wrong[0].argument]
    if not wrong:
        return spans(row.reason)
    shown = wrong[:NUMBERS]
    count = next((each.count for each in row.measured if each.argument == wrong[0].argument), None)
    whole = count == len(shown) and all(len(each.index) == 1 for each in shown)
    at = "" if whole else " at " + ", ".join(element(each.argument, each.index) for each in shown)
    for write in (number, "{:.8g}".format, "{:.17g}".format):  # as many digits as show the difference
        sides = [[None if x is None else write(x) for x in (w.rule, w.autograd, w.finite)] for w in shown]
        if all(len({*texts} - {None}) > 1 for texts in sides):
            break
    columns = zip(("our rule", "autograd", "measured"), zip(*sides, strict=True), strict=True)
    return (", ".join(f"{side} {_row(texts)}" for side, texts in columns if any(texts)) + at,)


def _row(texts: Sequence[str | None]) -> str:
    written = [text or "none" for text in texts]
    return written[0] if len(written) == 1 else f"[{', '.join(written)}]"


def with_names(check: GradientCheck, graph: Graph, derivation: Callable[[], Derivation]) -> GradientCheck:
    """The same check, in which each node that disagrees or was not checked is called as in the report of the step."""
    idle = {row.node.index for row in check.idle}
    nodes = [r.node for r in check.rows if r.verdict in ("disagrees", "not checked") and r.node.index not in idle]
    if not nodes:
        return check
    steps = (step for step in derivation().steps if step.kind == "backward")
    places = {node: place for place, step in enumerate(steps, 1) for node in step.nodes}
    return replace(check, names={node.index: _named(graph, node, places.get(node.index)) for node in nodes})


def _named(graph: Graph, node: Node, place: int | None) -> str:
    if node.leaf is not None:
        return f"gradient of {graph.values[node.leaf].name}"
    operation = graph.operations[node.operation].name if node.operation is not None else ""
    name = re.sub(r"Backward\d*$", "", node.name)
    if name.startswith("GeneratedBackwardFor"):
        name = operation.removesuffix(".default")
    return f"Backward {place}, {name}" if place is not None else f"{name}, node {node.index}"
