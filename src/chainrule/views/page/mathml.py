"""Formulas for the page: LaTeX to MathML, as trees of plain lists from which the page builds its elements.

A step of a large model has thousands of formulas, but only a few hundred shapes of formulas: `\\bar{x} = g \\odot y`
with different names. So names are replaced by holes, each shape is converted once, and the page fills the names in. No
markup is written or parsed: the name of a user's module becomes the text of an `mtext` element.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from html import unescape
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element

from chainrule.views.forms import numbers_apart

Tree = list[Any]  # [tag, text], [tag, child, ...], either with a dict of attributes after the tag
Formula = list[int] | str  # a shape and the formulas of the names in it, or plain text

HOLE = 0xE000  # characters of the private use area mark the holes
_HOLES = re.compile("[\ue000-\uf8ff]")
_TEXT = r"\\text\{(?:[^{}\\]|\\[A-Za-z]+(?:\{\})?|\\.)*\}"
_SCRIPTS = r"(?:_\{\d+\})?\^\{(?:\[\d+\]|\(\d+\))\}"
_NAME = re.compile(rf"{_TEXT}(?:{_SCRIPTS})?|(?<![\\A-Za-z])[A-Za-z](?:{_SCRIPTS}|_\{{\d+\}}(?!\^))")
NUMBER = 0xF0000  # those of a plane of its own mark numbers
_PLACE = re.compile("[\U000f0000-\U000fffff]")
_WHOLE_TEXT = re.compile(_TEXT)
_ESCAPES = {"textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~"}
_KEPT = {"stretchy", "mathvariant", "width", "columnalign", "linethickness", "accent", "fence", "form"}
_TAGS = frozenset(
    ("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msup", "msub", "msubsup", "mover", "munder",
     "munderover", "msqrt", "mroot", "mtable", "mtr", "mtd", "mpadded", "mstyle", "mphantom", "menclose")
)  # fmt: skip


@dataclass
class Formulas:
    """Every formula of a page: its shape, and the formulas that fill the holes of the shape."""

    shapes: list[Tree] = field(default_factory=list)
    formulas: list[Formula] = field(default_factory=list)
    _index: dict[str, int] = field(default_factory=dict)  # LaTeX -> place in `formulas`
    _shape_index: dict[str, int] = field(default_factory=dict)

    def add(self, latex: str) -> int:
        """The number of a formula, which is added if it is new."""
        if latex not in self._index:
            formula = self._formula(latex)
            self._index[latex] = len(self.formulas)
            self.formulas.append(formula)
        return self._index[latex]

    def _formula(self, latex: str) -> Formula:
        if _WHOLE_TEXT.fullmatch(latex):
            return _unescaped(latex)
        names: list[str] = []

        def hole(match: re.Match[str]) -> str:
            name = match[0]
            if name == latex:  # a name with scripts: only its text becomes a hole
                return _WHOLE_TEXT.sub(lambda text: _hole(names, text[0]), name)
            return _hole(names, name)

        shape = _NAME.sub(hole, _HOLES.sub("", latex))
        return [self._shape(shape), *(self.add(name) for name in names)]

    def _shape(self, latex: str) -> int:
        if latex not in self._shape_index:
            self._shape_index[latex] = len(self.shapes)
            self.shapes.append(converted(latex))
        return self._shape_index[latex]


def _hole(names: list[str], name: str) -> str:
    if name not in names:
        names.append(name)
    return chr(HOLE + names.index(name))


def _unescaped(text: str) -> str:
    r"""The content of `\text{...}`, with its escapes resolved."""
    body = text.removeprefix(r"\text{").removesuffix("}")
    return re.sub(r"\\([A-Za-z]+)(?:\{\})?|\\(.)", lambda m: _ESCAPES.get(m[1], m[1]) if m[1] else m[2], body)


def converted(latex: str) -> Tree:
    """One shape as a tree; LaTeX that the library cannot read becomes text.

    Formulas of one form are converted once.
    """
    form, numbers = numbers_apart(latex, lambda place: chr(NUMBER + place))
    tree = _converted(form)
    return ["mtext", latex] if tree[0] == "mtext" else _with_numbers(tree, numbers)


def _with_numbers(tree: Tree, numbers: list[str]) -> Tree:
    """A tree with each number in its place; a number below 0 is the only one in its cell."""
    found: Tree = []
    for each in tree:
        if isinstance(each, list) and each[0] == "mi" and (place := ord(each[-1][0]) - NUMBER) >= 0:
            text = numbers[place]
            found += [["mo", "\N{MINUS SIGN}"]] * text.startswith("-") + [["mn", text.lstrip("-")]]
        elif isinstance(each, list):
            found.append(_with_numbers(each, numbers))
        else:
            found.append(_PLACE.sub(lambda m: numbers[ord(m[0]) - NUMBER], each) if isinstance(each, str) else each)
    return found


@lru_cache(maxsize=4096)
def _converted(latex: str) -> Tree:
    # In braces, a matrix gets brackets of its own height, and a script belongs to the whole of it.
    grouped = re.sub(r"(\\begin\{([pbv]?matrix|cases)\})", r"{\1", latex)
    grouped = re.sub(r"(\\end\{([pbv]?matrix|cases)\})", r"\1}", grouped)
    try:
        return ["mrow", *map(_tree, convert_to_element(grouped))]
    except Exception:  # the library raises a dozen errors of its own, and others
        return ["mtext", latex]


def _tree(element: Element) -> Tree:
    tag = element.tag if element.tag in _TAGS else "mrow"
    attributes = {key: value for key, value in element.attrib.items() if key in _KEPT}
    children = list(element)
    text = unescape(element.text or "")
    if tag == "mo" and text.isalpha() and len(text) > 1 and text != "mod":  # the name of a function is no operator
        return ["mi", text]
    if tag == "mrow" and not children:
        return ["mrow", text] if text else ["mrow"]
    if tag == "mrow" and len(children) > 1 and all(_upright(child) for child in children):
        return ["mi", {"mathvariant": "normal"}, "".join(child.text or "" for child in children)]
    if tag == "mrow" and len(children) == 1:
        return _tree(children[0])
    tree: Tree = [tag, attributes] if attributes else [tag]
    if not children:
        return [*tree, text] if text else tree
    return [*tree, *map(_tree, children)]


def _upright(element: Element) -> bool:
    return element.tag == "mi" and element.get("mathvariant") == "normal" and not len(element)
