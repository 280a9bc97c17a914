"""A document as a Jupyter notebook: the derivation in text cells, and between them the code that recomputes it.

The code is that of the sections, so the notebook runs from top to bottom and asserts every result that it recomputes. A
reader can change a number in it and see the effect.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from chainrule import document as doc
from chainrule.views import markdown

SUFFIX = ".ipynb"
CODED = True
FORMAT, MINOR = 4, 5
LANGUAGE = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def written(document: doc.Document) -> str:
    """The document as an `.ipynb` file."""
    title = f"# {markdown.spans(document.title, dollars=True)}"
    cells = [_text(title, document.summary)]
    for depth, section in document.walk():
        cells.append(_text(markdown.heading(section, depth, dollars=True), section.blocks))
        if section.code:
            cells.append(_cell("code", section.code, execution_count=None, outputs=[]))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    notebook = {"cells": cells, "metadata": LANGUAGE, "nbformat": FORMAT, "nbformat_minor": MINOR}
    return json.dumps(notebook, ensure_ascii=True, indent=1) + "\n"


def _text(heading: str, blocks: Sequence[doc.Block]) -> dict[str, Any]:
    return _cell("markdown", "\n\n".join([heading, *markdown.blocks(blocks, dollars=True)]))


def _cell(kind: str, source: str, **more: Any) -> dict[str, Any]:
    return {"cell_type": kind, "metadata": {}, "source": source.strip("\n").splitlines(keepends=True), **more}
