"""A document as one HTML page that works from a file: no network, no server, nothing to install.

The page is plain HTML, CSS and ES modules that stand beside this file. Here they are put into one file, with the
document as JSON in it; a policy in the page names the hash of its one script and of its styles, so that nothing else
can run whatever a name contains. Sections are built when they are looked at, so that a large step opens as fast as a
small one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from chainrule import document as doc
from chainrule.gc_control import gc_paused
from chainrule.views.json import FORMAT, VERSION, encoded, text_of
from chainrule.views.page.mathml import Formulas
from chainrule.views.unicode import printable

# In the order in which they build on one another: a module imports only from those before it.
MODULES = (
    "numbers.js", "dom.js", "store.js", "charts.js", "tensors.js", "blocks.js",
    "lanes.js", "mirror.js", "why.js", "overview.js", "walk.js", "main.js",
)  # fmt: skip
EXACT = ("float64", "complex128")
LATEX = ("latex", "symbol", "gradient_symbol", "math")  # the fields that hold a formula
SHORT = ("means", "counts", "shape", "inputs")  # the fields whose numbers have few digits as they are
NESTED = (float, list, dict)  # what stands in a page in another form, or holds what does
PICTURED = 160  # rows; the picture of a larger step is for a file of its own


@gc_paused()
def render(document: doc.Document) -> str:
    """The document as the text of one self-contained HTML file."""
    picture = _picture(document)
    style, script = read("base.css") + read("page.css"), _script()
    styles = [style, *re.findall(r"<style[^>]*>(.*?)</style>", picture, re.DOTALL)]
    parts = {
        "policy": policy(script, styles),
        "title": escape(printable(_plain(document.title))),
        "style": style,
        "data": embedded(_data(document)),
        "picture": picture,
        "script": script,
    }
    # One pass, so that what is put in is never searched for further places.
    return re.sub(r"<!--\s*put:(\w+)\s*-->", lambda place: parts[place[1]], read("page.html"))


written = render


def policy(script: str, styles: list[str]) -> str:
    """What may run in a page: its one script and its styles, and nothing from anywhere else."""
    hashes = " ".join(dict.fromkeys(_hash(style) for style in styles))
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {hashes}; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def read(name: str) -> str:
    """A file that stands beside this one."""
    return (resources.files(__name__) / name).read_text(encoding="utf-8")


def joined(modules: list[str]) -> str:
    """The text of modules as that of one: what they import from one another is already there."""
    text = re.sub(r'^import .*? from "\.[./\w]+\.js";\n', "", "\n".join(modules), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^export ", "", text, flags=re.MULTILINE)


@cache
def _script() -> str:
    return joined([read(name) for name in MODULES])


def _data(document: doc.Document) -> dict[str, Any]:
    formulas = Formulas()
    return {
        "format": FORMAT,
        "version": VERSION,
        "document": compact(encoded(document), formulas),
        "math": {"shapes": formulas.shapes, "formulas": formulas.formulas},
    }


def compact(item: Any, formulas: Formulas) -> Any:
    """The JSON form as it stands in a page, which differs in two things from the one in a file.

    In the place of each formula stands its number in the page's table. Numbers have 9 significant digits, which hold a
    float32 exactly; those of tensors of 64 bits stay as they are.
    """
    kind = type(item)
    if kind is float:
        return float(f"{item:.9g}")
    if kind is list:
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


def embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end its own element: `<` is written as an escape."""
    return text_of(data).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _plain(text: doc.Text) -> str:
    return "".join(
        span if isinstance(span, str) else span.latex if isinstance(span, doc.Math) else span.source for span in text
    )


def _picture(document: doc.Document) -> str:
    """The graph as SVG, without the declaration that only a file of its own has."""
    if not 0 < len(document.rows) <= PICTURED:
        return ""
    from chainrule.views import picture  # here, because it brings a layout library

    return re.sub(r"^\s*<\?xml.*?\?>\s*(<!DOCTYPE.*?>)?", "", picture.written(document), flags=re.DOTALL)
