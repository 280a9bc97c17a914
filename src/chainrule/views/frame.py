"""The page inside a notebook: a sandboxed frame, in which scripts run but reach nothing of the notebook around them."""

from __future__ import annotations

from html import escape

from chainrule import document as doc
from chainrule.views import page
from chainrule.views.unicode import printable

HEIGHT = "min(85vh, 900px)"
SHORTEST = "480px"  # where the height of the window is not known


def framed(document: doc.Document) -> str:
    """The page of the document as an HTML element that holds all of it."""
    title = escape(printable("".join(span if isinstance(span, str) else "" for span in document.title)))
    return (
        f'<iframe sandbox="allow-scripts" title="{title}" srcdoc="{escape(page.written(document))}" '
        f'style="width: 100%; height: {HEIGHT}; min-height: {SHORTEST}; border: 1px solid #8884; border-radius: 6px">'
        "</iframe>"
    )
