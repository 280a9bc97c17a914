"""Output forms of the one document: each view is a file of small functions, one for each kind of block."""

from __future__ import annotations

from importlib import import_module

from chainrule.document import Document
from chainrule.errors import StorageError

VIEWS = {
    ".html": "page",
    ".json": "json",
    ".md": "markdown",
    ".tex": "latex",
    ".ipynb": "notebook",
    ".svg": "picture",
    ".txt": "terminal",
}
"""Which view writes which kind of file; each has `written(document) -> str`."""

POINTING = (".html", ".json")
"""Views in which a reader can point at a number and ask why."""

CODED = (".ipynb",)
"""Views that hold code which recomputes the step."""


def check_suffix(suffix: str, *others: str) -> None:
    """Raise StorageError for a suffix that neither a view has nor is one of `others`, which are written without one."""
    if suffix not in (*VIEWS, *others):
        known = ", ".join((*VIEWS, *others))
        raise StorageError(f"no view writes {suffix or 'a file without a suffix'}. Give one of {known}.")


def written(document: Document, suffix: str) -> str:
    """The document as text in the view that a file's suffix, one of `VIEWS`, names."""
    text: str = import_module(f"{__name__}.{VIEWS[suffix]}").written(document)
    return text
