"""Reports: from the derivation to a document. All wording, and all choice of what to show in which order, is here.

So every view says the same. How a section reads depends on the kind of its step, and what it shows of a tensor on the
size of the tensor alone.
"""

from __future__ import annotations

from chainrule.report.context import Context
from chainrule.report.documents import brief, full

__all__ = ["Context", "brief", "full"]
