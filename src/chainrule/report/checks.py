"""The verdicts of the checks as blocks: the rows of the gradient check, the updates, and the means of several ranks."""

from __future__ import annotations

import re

from chainrule.document import Code, Text, Verdict
from chainrule.graph.comparison import Comparison
from chainrule.verification.step_checks import StepCheck

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
    if check.verdict in ("disagrees", "not checked", "no rule yet"):
        text = spans(check.reason)
    elif check.reason:
        text = (*text, "; ", *spans(check.reason))
    return Verdict(check.verdict, text, found.largest if found else None, found.tolerance if found else None)
