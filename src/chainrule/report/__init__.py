"""From the derivation to the document: what is told, in which order, and in which words.

All wording and all choice of what to show is here, so that every view says the same. A section is told by the kind of
its step; what is shown of a tensor depends on its size alone.
"""

from __future__ import annotations

from chainrule.report.context import Context
from chainrule.report.full import whole
from chainrule.report.summary import brief

__all__ = ["Context", "brief", "whole"]
