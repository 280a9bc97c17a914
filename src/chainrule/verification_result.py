"""The result of `verify`, as the user holds it: a gradient check that prints itself."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from chainrule.verification.rows import GradientCheck

if TYPE_CHECKING:
    from chainrule.document import Document


@dataclass(frozen=True, repr=False)
class Verification(GradientCheck):
    """A gradient check as the user holds it; printed, it is rendered for a terminal.

    `tried` says under which conditions a function was checked; "" for a recorded step.
    """

    tried: str = ""

    @classmethod
    def of(cls, check: GradientCheck, tried: str = "") -> Verification:
        """The same check, to be shown."""
        return cls(**{each.name: getattr(check, each.name) for each in fields(check)}, tried=tried)

    def document(self) -> Document:
        """The check for any view: a summary, a table of all nodes, and each disagreement with its wrong elements."""
        from chainrule.document import Paragraph
        from chainrule.report.gradient_check import gradient_check
        from chainrule.report.verdicts import spans

        found = gradient_check(self)
        return replace(found, summary=(*found.summary, Paragraph(spans(self.tried), "note"))) if self.tried else found

    def __str__(self) -> str:
        from chainrule.views import terminal

        return terminal.text(self.document())
