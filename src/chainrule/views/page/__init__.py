"""A document as one HTML page that works from a file: no network, no server, nothing to install.

The page is plain HTML, CSS and ES modules beside this file. They are joined into one file with the document as JSON,
compressed, as most of it repeats names and numbers. A policy in the page has the hashes of its one script and its
styles, so nothing else can run, whatever a name contains. Sections are built when they are shown, so a large step opens
as fast as a small one.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from chainrule import document as doc
from chainrule.gc_control import gc_paused
from chainrule.views import picture
from chainrule.views.blocks import plain, printable
from chainrule.views.json import FORMAT, VERSION, encoded, text_of
from chainrule.views.page.margins import without_margins
from chainrule.views.page.mathml import Formulas

SUFFIX = ".html"
POINTING = True
RUNNING = True
# In order of dependency: a module imports only from those before it.
MODULES = (
    "numbers.js", "dom.js", "store.js", "lines.js", "charts.js", "tensors.js", "blocks.js",
    "lanes.js", "values.js", "why.js", "closeup.js", "picture.js", "overview.js", "walk.js", "tour.js",
    "program.js", "engine.js", "field.js", "lab_words.js", "lab.js", "ask.js", "main.js",
)  # fmt: skip
HEIGHT = "min(85vh, 900px); min-height: 480px"  # of the frame; the window's height may be unknown
EXACT = ("float64", "complex128")
LATEX = ("latex", "symbol", "gradient_symbol", "math")  # fields with a formula
# fields whose numbers have few digits already
SHORT = ("means", "counts", "shape", "inputs", "program", "taken", "mistakes")
NESTED = (float, list, dict)  # types that change in a page, or contain such
PICTURED = 160  # rows; the picture of a larger step is a file of its own


@gc_paused()
def written(document: doc.Document, lab: dict[str, Any] | None = None) -> str:
    """The document as one self-contained HTML file.

    `lab` is what its lab must know where that does not compute by itself, but asks: the server of the page, where it
    has a `token`, else the notebook around it.
    """
    picture = _picture(document)
    style, script = read("base.css") + read("page.css"), _script()
    styles = [style, *re.findall(r"<style[^>]*>(.*?)</style>", picture, re.DOTALL)]
    parts = {
        "policy": policy(script, styles, asks=lab is not None and "token" in lab),
        "title": escape(printable(plain(document.title))),
        "style": style,
        "data": packed(_data(document) | ({"lab": lab} if lab else {})),
        "picture": picture,
        "script": script,
    }
    # One pass, so that the inserted text is never searched for placeholders.
    return re.sub(r"<!--\s*put:(\w+)\s*-->", lambda place: parts[place[1]], read("page.html"))


def framed(document: doc.Document) -> str:
    """The page in a sandboxed frame, for a notebook: its script runs, but cannot reach the notebook around it."""
    title = escape(printable(plain(document.title)))
    return (
        f'<iframe sandbox="allow-scripts" title="{title}" srcdoc="{escape(written(document))}" '
        f'style="width: 100%; height: {HEIGHT}; border: 1px solid #8884; border-radius: 6px"></iframe>'
    )


def policy(script: str, styles: list[str], asks: bool = False) -> str:
    """The content security policy of a page: its one script and its styles, requests if it `asks`, and nothing else."""
    hashes = " ".join(dict.fromkeys(_hash(style) for style in styles))
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {hashes}; img-src data:; "
        + "connect-src 'self'; " * asks
        + "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def read(name: str, package: str = __name__) -> str:
    """The text of a file beside this one, or in another package."""
    return (resources.files(package) / name).read_text(encoding="utf-8")


def joined(modules: list[str]) -> str:
    """Modules joined into one, without the imports between them and without comment lines."""
    text = re.sub(r'^import .*? from "\.[./\w]+\.js";\n', "", "\n".join(modules), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ *(/\*\*((?!\*/).)*\*/|//[^\n]*)\n", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^export ", "", text, flags=re.MULTILINE)


@cache
def _script() -> str:
    return joined([read(name) for name in MODULES])


def _data(document: doc.Document) -> dict[str, Any]:
    formulas = Formulas()
    return {
        "format": FORMAT,
        "version": VERSION,
        "document": compact(encoded(without_margins(document)), formulas),
        "math": {"shapes": formulas.shapes, "formulas": formulas.formulas},
    }


def compact(item: Any, formulas: Formulas) -> Any:
    """The JSON form for a page: each formula is replaced by its number in the page's table, and numbers are rounded.

    9 significant digits represent a float32 exactly; numbers of 64-bit tensors are not rounded.
    """
    kind = type(item)
    if kind is float:
        return float(f"{item:.9g}")
    if kind is list:
        kinds = set(map(type, item))
        if kinds == {float}:
            return [float(f"{each:.9g}") for each in item]
        if kinds.isdisjoint(NESTED):
            return item
        return [compact(each, formulas) if type(each) in NESTED else each for each in item]
    if kind is not dict:
        return item
    found = {}
    for name, value in item.items():
        if name in LATEX and isinstance(value, str):
            found[name] = formulas.add(value)
        elif name in SHORT or (name == "entries" and item["dtype"] in EXACT):
            found[name] = value
        else:
            found[name] = compact(value, formulas) if type(value) in NESTED else value
    return found


def packed(data: dict[str, Any]) -> str:
    """JSON, compressed, in base64."""
    return base64.b64encode(zlib.compress(text_of(data).encode(), 7)).decode()


def embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end its own HTML element: `<` is escaped."""
    return text_of(data).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _picture(document: doc.Document) -> str:
    """The graph as SVG, without the XML declaration."""
    if not 0 < len(document.rows) <= PICTURED:
        return ""
    return re.sub(r"^\s*<\?xml.*?\?>\s*(<!DOCTYPE.*?>)?", "", picture.written(document), flags=re.DOTALL)
