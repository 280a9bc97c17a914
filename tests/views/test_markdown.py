from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_it import MarkdownIt

from chainrule.document import Block, Code, Document, Equation, Math, Paragraph, Section, Table, Tensor, Verdict
from chainrule.views import written as text_of
from tests.views import hostile

READER = MarkdownIt("commonmark", {"html": True}).enable(["table"])


def body(*blocks: Block, dollars: bool = False) -> str:
    return text(Document(("T",), blocks, ()), dollars).removeprefix("# T\n\n")


def text(document: Document, dollars: bool = False) -> str:
    """A document without sections in Markdown: for GitHub, or with `dollars` as the first cell of a notebook."""
    if not dollars:
        return text_of(document, ".md").removesuffix("\n")
    return "".join(json.loads(text_of(document, ".ipynb"))["cells"][0]["source"])


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.outside_code = ""
        self._code = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._code += tag == "code"

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag == "code"

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.outside_code += data


def test_sections_blocks_and_spans() -> None:
    section = Section(("Layer 1: ", Code("linear1")), "l1", "forward", (Paragraph(("Text.",), "warning"),))
    document = Document(("One step of ", Code("a.py")), (Paragraph(("The cost ", Math("J"), ".")),), (section,))
    assert text_of(document, ".md") == (
        "# One step of `a.py`\n\nThe cost $`J`$.\n\n## Layer 1: `linear1`\n\n**Warning.** Text.\n"
    )


def test_formulas_stand_in_fences_for_github_and_between_dollars_for_jupyter() -> None:
    block = Equation(r"\operatorname{ReLU}(x) < 1", "forward")
    assert body(block) == "*forward:*\n\n```math\n\\mathrm{ReLU}(x) \\lt  1\n```"
    assert body(block, dollars=True) == "*forward:*\n\n$$\\mathrm{ReLU}(x) \\lt  1$$"


def test_a_path_in_a_formula() -> None:
    for latex, expected in {
        r"\text{h.0.weight}": r"\text{h.0.weight}",
        r"\text{c\_attn x}^{T}": r"\mathtt{c\_attn\ x}^{T}",
    }.items():
        assert body(Equation(latex)) == f"```math\n{expected}\n```"


def test_a_formula_that_is_none_of_ours_is_shown_as_code() -> None:
    assert body(Equation(r"\input{x}")) == "<code>&#92;input&#123;x&#125;</code>"


def test_tensors() -> None:
    small = Tensor("Z", (2, 2), "float64", "value", (1.0, -0.05998, 1.23e-5, 0.5), label="result")
    assert body(small) == (
        "$`Z`$ (float64, result):\n\n```math\n{Z} = \\begin{bmatrix} 1 & -0.0600 \\\\ "
        "1.23 \\cdot 10^{-5} & 0.5 \\end{bmatrix}\n```"
    )
    assert body(Tensor("W", (9, 99), "float32", "value", None, (("norm", 2.0),))) == "$`W`$ (9 x 99): norm 2"
    labelled = Tensor("D", (1, 2), "float32", "jacobian", (0.5, 1.0), (), ("J",), ("L[0]", "L[1]"))
    assert body(labelled).endswith("|  | L&#91;0&#93; | L&#91;1&#93; |\n| ---: | ---: | ---: |\n| J | 0.5 | 1 |")


def test_a_table_and_a_verdict() -> None:
    table = Table(("name", "p|q"), (((Code("a|b"),), (Math("|x|"),)),))
    assert body(table) == "| name | p&#124;q |\n| --- | --- |\n| <code>a&#124;b</code> | $`\\vert x\\vert `$ |"
    assert body(Verdict("agrees", ("ours",), 0.0, 1e-6)) == "✓ **agrees**: ours (difference 0, tolerance 1e-06)"


def test_an_unknown_block_is_an_error() -> None:
    unknown: Any = object()
    with pytest.raises(TypeError, match="no function for a block of type object"):
        body(unknown)


@pytest.mark.parametrize("name", hostile.NAMES)
@pytest.mark.parametrize("dollars", [False, True])
def test_hostile_names_make_no_markup(name: str, dollars: bool) -> None:
    document = hostile.document(name)
    written = text(replace(document, sections=()), dollars) + "\n"
    html = READER.render(written)
    read = Tags(html)
    assert read.tags <= {"h1", "p", "em", "strong", "code", "pre", "table", "thead", "tbody", "tr", "th", "td"}
    assert read.attributes <= {"class", "style"}
    assert "\x1b" not in written
    assert "\u202e" not in written


@pytest.mark.parametrize("name", hostile.NAMES)
def test_hostile_names_make_no_mathematics(name: str) -> None:
    """Taken away what GitHub takes for our mathematics, no dollar and no backslash is left outside code."""
    escaped = body(Paragraph((name,)))
    written = "\n\n".join([escaped, body(Paragraph((name, " and ", Code(name))))])
    outside = Tags(READER.render(written)).outside_code
    assert not set(outside) & set("$\\@")
    assert not re.search(r"://|www\.", escaped)


@pytest.mark.parametrize(
    "name", ["# heading", "- item", "+ item", "1. item", "1) item", "---", "===", "> quote", "    code"]
)
def test_a_line_stays_a_line(name: str) -> None:
    assert READER.render(body(Paragraph((name,)))) == f"<p>{name.strip().replace('>', '&gt;')}</p>\n"
