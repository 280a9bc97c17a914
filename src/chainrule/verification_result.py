"""The result of `verify`, as the user holds it: a gradient check that prints itself."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from chainrule.verification.rows import GradientCheck

if TYPE_CHECKING:
    from chainrule.document import Document


class Verification(GradientCheck):
    """A gradient check as the user holds it; printed, it is rendered for a terminal."""

    @classmethod
    def of(cls, check: GradientCheck) -> Verification:
        """The same check, to be shown."""
        return cls(**{each.name: getattr(check, each.name) for each in fields(check)})

    def document(self) -> Document:
        """The check for any view: a summary, a table of all nodes, and each disagreement with its wrong elements."""
        from chainrule.report.gradient_check import gradient_check

        return gradient_check(self)

    def __str__(self) -> str:
        from chainrule.views import terminal

        return terminal.text(self.document())
