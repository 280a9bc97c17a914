"""How a comparison and a check become a verdict of the document."""

from __future__ import annotations

import re

from chainrule.document import Code, Measured, Text, Verdict
from chainrule.execution.experiment import FINEST
from chainrule.graph.comparison import Comparison
from chainrule.verification.rows import Differences, StepCheck

UNKEPT = Verdict("not checked", ("not checked: the numbers were not kept",))


def spans(reason: str) -> Text:
    """A reason with its `names` as code."""
    parts = re.split("`([^`]*)`", reason)
    return tuple(Code(part) if place % 2 else part for place, part in enumerate(parts) if part)


def of_comparison(found: Comparison, text: Text) -> Verdict:
    """A comparison alone."""
    return Verdict("agrees" if found.agrees else "disagrees", text, found.largest, found.tolerance)


def of_check(check: StepCheck, text: Text) -> Verdict:
    """What the gradient check says; `text` is what was compared, where that is all that there is to say."""
    found = check.comparison
    if check.verdict in ("disagrees", "not checked") or not check.has_rule:
        text = spans(check.reason)
    elif check.reason:
        text = (*text, "; ", *spans(check.reason))
    measured = None if check.measured is None else of_differences(check.measured)
    if found is None or (measured is not None and not check.has_rule):
        return Verdict(check.verdict, text, measured=measured)
    return Verdict(check.verdict, text, found.largest, found.tolerance, measured)


def of_differences(known: Differences) -> Measured:
    """Central differences as a document has them; what is below their precision is 0."""
    least = FINEST * max((abs(each) for each in known.central if each is not None), default=0.0)
    elements = tuple(each if each is None or abs(each) > least else 0.0 for each in known.central)
    return Measured(elements, known.count, known.taken, known.found.largest, known.found.tolerance)
