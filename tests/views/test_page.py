"""The page as text: what is in it, what cannot be in it, and that its types are those of the document."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import MISSING, fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest

from chainrule import document as doc
from chainrule import views
from chainrule.views.json import BLOCKS
from tests.views import hostile
from tests.views.pages import data_of

PAGE = Path(views.__file__).parent / "page"
TYPES = (PAGE / "types.d.ts").read_text(encoding="utf-8")


def page(document: doc.Document) -> str:
    return views.written(document, ".html")


def script_of(html: str) -> str:
    [script] = re.findall(r'<script type="module">(.*?)</script>', html, re.DOTALL)
    return script


class Elements(HTMLParser):
    """Every element, with its attributes and the text right in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.texts.setdefault(self.found[-1][0], []).append(data)


@pytest.mark.parametrize("name", hostile.NAMES, ids=range(len(hostile.NAMES)))
def test_no_name_becomes_an_element(name):
    html = page(hostile.document(name))
    harmless = page(hostile.document("x"))
    kinds = [tag for tag, _ in Elements(html).found]
    assert set(kinds) == {tag for tag, _ in Elements(harmless).found}
    assert kinds.count("script") == 2
    assert not any(key.startswith("on") for _, attributes in Elements(html).found for key in attributes)
    html.encode()
    assert data_of(html)["document"]["rows"][0]["name"] == name


def test_the_policy_allows_the_one_script_and_the_styles_and_nothing_else():
    html = page(hostile.document("x"))
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    script = script_of(html)
    [style, *pictured] = re.findall(r"<style[^>]*>(.*?)</style>", html, re.DOTALL)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashed = [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in (script, style)]
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == hashed[0]
    assert rules["style-src"].split()[0] == hashed[1]
    assert len(rules["style-src"].split()) == 1 + len(pictured)


def test_nothing_is_loaded_from_anywhere():
    html = page(hostile.document("x"))
    for tag, attributes in Elements(html).found:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith("#"), tag
    assert not re.search(r"url\((?!['\"]?#)", html)
    assert "@import" not in (PAGE / "page.css").read_text(encoding="utf-8")


def test_the_modules_are_put_together_whole():
    script = script_of(page(hostile.document("x")))
    assert not re.search(r"^(import|export) ", script, re.MULTILINE)
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", script, re.MULTILINE)
    assert len(names) == len(set(names))  # they share one scope
    for file in PAGE.glob("*.js"):
        exported = re.findall(r"^export (?:async )?(?:function|const|let|class) (\w+)", file.read_text(), re.MULTILINE)
        assert set(exported) <= set(names), file


def interface(name: str) -> dict[str, bool]:
    """The fields of an interface of types.d.ts, and whether each may be missing."""
    body = re.search(rf"export interface {name} \{{(.*?)\}}\n", TYPES, re.DOTALL)
    assert body is not None, name
    return {field: bool(mark) for field, mark in re.findall(r"(\w+)(\??):", body[1])}


@pytest.mark.parametrize("kind", [
    doc.Document, doc.Section, doc.Row, doc.Source, doc.Summand, doc.Sum, doc.Histogram, doc.Sketch, *BLOCKS.values(),
])  # fmt: skip
def test_the_types_of_the_page_are_the_documents(kind):
    """The same fields in the same order; those with a default may be missing."""
    expected = {field.name: field.default is not MISSING for field in fields(kind)}
    if kind in BLOCKS.values():
        expected = {"block": False, **expected}
    assert list(interface(kind.__name__).items()) == list(expected.items())


@pytest.mark.parametrize(("name", "literal"), [("Role", doc.Role), ("Verdicts", doc.Kind)])
def test_the_words_of_the_page_are_the_documents(name, literal):
    [union] = re.findall(rf"export type {name} = (.*?);", TYPES)
    assert tuple(re.findall(r'"([^"]+)"', union)) == get_args(literal)


def text_of(tree: Any) -> str:
    if isinstance(tree, str):
        return tree
    return "".join(text_of(part) for part in tree[1:] if not isinstance(part, dict))


def mathematics(*latex: str) -> tuple[list[Any], list[Any], list[Any]]:
    """The table of shapes and that of formulas on a page with these equations, and their entries in the latter."""
    data = data_of(page(doc.Document((), tuple(map(doc.Equation, latex)), ())))
    formulas = data["math"]["formulas"]
    return data["math"]["shapes"], formulas, [formulas[each["latex"]] for each in data["document"]["summary"]]


def converted(latex: str) -> Any:
    shapes, _, [[shape]] = mathematics(latex)
    return shapes[shape]


def test_a_formula_is_a_shape_with_names_in_its_holes():
    shapes, formulas, [first, second] = mathematics(
        r"\frac{\partial J}{\partial \text{h.0.c\_attn}}", r"\frac{\partial J}{\partial W^{[1]}}"
    )
    assert first[0] == second[0]  # one shape
    assert formulas[first[1]] == "h.0.c_attn"
    assert text_of(shapes[second[0]]) == "∂J∂\ue000"
    assert text_of(shapes[formulas[second[1]][0]]) == "W[1]"


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\mathrm{vec}(x)", "vec(x)"),
        (r"\operatorname{softmax}(x)", "softmax(x)"),
        (r"\begin{pmatrix} 1 & -2 \\ 3 & 4 \end{pmatrix}^{T}", "(1−234)T"),
        (r"\begin{pmatrix} 1.2e-05 & -3 \end{pmatrix} - 2e+07", "(1.2e-05−3)−2e+07"),
        (r"\begin{cases} 1 & x > 0 \\ 0 & x \le 0 \end{cases}", "{1x>00x≤0"),
    ],
)
def test_shapes_are_mathml(latex, text):
    assert text_of(converted(latex)) == text


def test_a_number_with_a_power_of_ten_is_one_number_and_mod_an_operator():
    assert converted(r"j \bmod 1.2e-05") == ["mrow", ["mrow", ["mi", "j"], ["mo", "mod"], ["mn", "1.2e-05"]]]


def test_what_the_library_cannot_read_is_shown_as_it_is_written():
    assert converted(r"\frac{") == ["mtext", r"\frac{"]


def test_a_matrix_in_brackets_stands_in_a_row_of_its_own_with_its_power():
    [_, [_, power, _]] = converted(r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}^{T} x")
    assert power[0] == "msup"
    assert [part[0] for part in power[1][1:]] == ["mo", "mtable", "mo"]


def test_numbers_of_32_bits_are_short_and_exact_and_those_of_64_bits_whole():
    value = 0.1000000014901161193847656  # the float32 that is nearest to 0.1
    single = doc.Tensor("x", (1,), "float32", "value", (value,))
    double = doc.Tensor("y", (1,), "float64", "value", (value,))
    told = data_of(page(doc.Document((), (single, double), ())))["document"]["summary"]
    assert [block["entries"] for block in told] == [[0.100000001], [value]]
