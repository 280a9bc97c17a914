r"""A document as Markdown, with mathematics as GitHub and Jupyter render it.

Text is escaped by character references, which never begin a construct of Markdown. `$`, `\` and `@` are also put into a
`<code>` of their own, because the search for mathematics and mentions runs on the rendered page. A formula is put
between $` and `$, or in a fence, where Markdown does not change it; one that is not of our own commands alone is shown
as code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from chainrule import document as doc
from chainrule.views.blocks import MARKS, Grid, about, compared, grids, printable, statistics, writer_of
from chainrule.views.formula import is_known

SUFFIX = ".md"
TONES = {"plain": "", "note": "**Note.** ", "warning": "**Warning.** ", "error": "**Error.** "}
_PLAIN_CODE = re.compile(r"[\w ().,:+\-*/=\[\]'\"{}%^@#;!?&]+")


def written(document: doc.Document) -> str:
    """The document as a `.md` file for GitHub."""
    parts = [f"# {spans(document.title)}", *blocks(document.summary)]
    for depth, section in document.walk():
        parts += [heading(section, depth), *blocks(section.blocks)]
    return "\n\n".join(parts) + "\n"


def heading(section: doc.Section, depth: int, *, dollars: bool = False) -> str:
    """A section's title. Markdown has six levels of headings."""
    return f"{'#' * min(depth + 1, 6)} {spans(section.title, dollars)}"


def blocks(several: Sequence[doc.Block], *, dollars: bool = False) -> Iterator[str]:
    """The blocks in Markdown, one text each.

    With `dollars`, formulas are put between dollars alone, the only form that Jupyter knows. Raises TypeError for a
    kind of block that this view does not know.
    """
    for block in several:
        yield from writer_of(block, _WRITERS, __name__)(block, dollars)


def spans(text: doc.Text, dollars: bool = False) -> str:
    """A line of text."""
    line = ""
    for span in text:
        match span:
            case doc.Math():
                piece = _inline(span.latex, dollars)
            case doc.Code():
                piece = _code(span.source)
            case _:
                piece = escaped(span)
        # The backticks of two adjacent spans of code would run together.
        line += " " + piece if line[-1:] in ("`", "$") and piece[:1] in ("`", "$") else piece
    # A list, an underlined heading or a numbered item can begin only at the start of a line.
    return re.sub(r"^(?:[-+=]|\d+(?=[.)]))", lambda match: "".join(f"&#{ord(c)};" for c in match[0]), line.strip())


def escaped(text: str) -> str:
    """Plain text: no markup, no link, no mathematics, no mention."""
    text = re.sub(r"[][`*_<>&|~#!\"]", lambda match: f"&#{ord(match[0])};", printable(text))
    text = re.sub(r":(?=//)|\.(?<=www\.)", lambda match: f"&#{ord(match[0])};", text, flags=re.IGNORECASE)
    return re.sub(r"[$\\@]", lambda match: f"<code>&#{ord(match[0])};</code>", text)


def _code(source: str) -> str:
    source = printable(source)
    if _PLAIN_CODE.fullmatch(source) and source.strip() == source:
        return f"`{source}`"
    return "<code>" + "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in source) + "</code>"


def formula(latex: str) -> str | None:
    """A formula in the dialect of MathJax and of KaTeX on GitHub; None if it is not of our own commands alone."""
    if not is_known(latex):
        return None
    latex = re.sub(r"\\operatorname\s*(?={)", r"\\mathrm", latex)  # GitHub does not allow this command
    parts = re.split(r"(\\text\{(?:[^{}\\]|\\[^A-Za-z]|\\[a-z]+\{\})*\})", latex)
    return "".join(_words(part) if place % 2 else _without_tags(part) for place, part in enumerate(parts))


def _words(part: str) -> str:
    r"""Words in a formula. MathJax has no escapes in `\text`, so a name that needs some is set as mathematics."""
    words = part.removeprefix(r"\text{").removesuffix("}")
    if not set(words) & set("\\<>") and "](" not in words:
        return part
    words = words.replace(" ", r"\ ").replace(r"\textbackslash{}", r"\backslash{}")
    words = words.replace(r"\textasciicircum{}", r"\hat{\ }").replace(r"\textasciitilde{}", r"\sim{}")
    return rf"\mathtt{{{_without_tags(words)}}}"


def _without_tags(latex: str) -> str:
    """A formula without tags and links, which some readers look for before mathematics."""
    return latex.replace("<", r"\lt ").replace(">", r"\gt ").replace("](", "]{}(")


def _inline(latex: str, dollars: bool) -> str:
    written = formula(latex)
    if written is None:
        return _code(latex)
    return f"${written}$" if dollars else f"$`{written}`$"


def _display(latex: str, dollars: bool) -> str:
    written = formula(latex)
    if written is None:
        return _code(latex)
    return f"$${written}$$" if dollars else f"```math\n{written}\n```"


def _paragraph(block: doc.Paragraph, dollars: bool) -> list[str]:
    return [TONES[block.tone] + spans(block.text, dollars)]


def _equation(block: doc.Equation, dollars: bool) -> list[str]:
    label = [f"*{escaped(block.label)}:*"] if block.label.strip() else []
    return [*label, _display(block.latex, dollars)]


def _verdict(block: doc.Verdict, dollars: bool) -> list[str]:
    words = f"{MARKS[block.kind]} **{block.kind}**" + (": " + spans(block.text, dollars) if block.text else "")
    return [words + compared(block)]


def _table(block: doc.Table, dollars: bool) -> list[str]:
    rows = [[spans(cell, dollars) for cell in row] for row in block.rows]
    label = [f"*{escaped(block.label)}:*"] if block.label.strip() else []
    return [*label, _rows([escaped(header) for header in block.headers], rows)]


def _rows(headers: Sequence[str], rows: Sequence[Sequence[str]], right: bool = False) -> str:
    lines = [headers, ["---:" if right else "---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(_without_bars(cell) for cell in line) + " |" for line in lines)


def _without_bars(cell: str) -> str:
    """A cell without bars, which end a cell of a table even inside a formula."""
    return cell.replace(r"\|", r"\Vert ").replace("|", r"\vert ")


def _tensor(block: doc.Tensor, dollars: bool) -> Iterator[str]:
    note = escaped(about(block))
    symbol = _inline(block.symbol, dollars)
    if block.entries is None:
        yield f"{symbol} ({note}): {escaped(statistics(block))}"
        return
    yield f"{symbol} ({note}):" if note else f"{symbol}:"
    if not block.entries:
        yield "`[]`"
    name = block.symbol if formula(block.symbol) is not None else r"\cdot"
    for grid in grids(block):
        if grid.is_part:
            yield f"{grid.span}:"
        index = rf"_{{[{','.join(map(str, grid.index))}]}}" if grid.index else ""
        if grid.row_labels or grid.column_labels:
            yield _labelled(block, grid, dollars)
        else:
            yield _display(rf"{{{name}}}{index} = {_matrix(grid, bool(block.shape))}", dollars)


def _matrix(grid: Grid, brackets: bool) -> str:
    rows = r" \\ ".join(" & ".join(map(_entry, row)) for row in grid.rows)
    return rf"\begin{{bmatrix}} {rows} \end{{bmatrix}}" if brackets else rows


def _labelled(block: doc.Tensor, grid: Grid, dollars: bool) -> str:
    """A table with the labels of rows and columns; at its margins what multiplies each row, and what comes out."""
    width = len(grid.rows[0])
    headers = ["", *(escaped(label) for label in grid.column_labels or ("",) * width)]
    labels = [escaped(label) for label in grid.row_labels or ("",) * len(grid.rows)]
    rows = [[label, *row] for label, row in zip(labels, grid.rows, strict=True)]
    if block.product is not None:
        rows.append([_inline(block.product.symbol, dollars), *grid.product])
    if block.upstream is not None:
        headers = [_inline(block.upstream.symbol, dollars), *headers]
        rows = [[each, *row] for each, row in zip((*grid.upstream, ""), rows, strict=False)]
    return _rows(headers, rows, right=True)


def _entry(text: str) -> str:
    power = re.fullmatch(r"(-?[\d.]+)e([+-]\d+)", text)
    if power:
        return rf"{power[1]} \cdot 10^{{{int(power[2])}}}"
    return text if re.fullmatch(r"-?[\d.]+", text) else rf"\text{{{text}}}"


_WRITERS: dict[type, Callable[[Any, bool], Sequence[str] | Iterator[str]]] = {
    doc.Paragraph: _paragraph,
    doc.Equation: _equation,
    doc.Tensor: _tensor,
    doc.Verdict: _verdict,
    doc.Table: _table,
}
