"""A section as a piece of HTML for a notebook: no script, no style sheet, formulas as MathML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

from chainrule import document as doc
from chainrule.views.blocks import MARKS, Grid, about, compared, grids, printable, statistics, writer_of
from chainrule.views.page.mathml import converted

TONES = {"plain": "", "note": "Note: ", "warning": "Warning: ", "error": "Error: "}
BLANK = ' style="border: none"'
RIGHT = ' style="text-align: right"'


def written(section: doc.Section) -> str:
    """A section with its subsections."""
    parts = []
    for depth, each in section.walk():
        level = min(depth + 2, 6)
        parts += [f"<h{level}>{_spans(each.title)}</h{level}>"] if each.title else []
        parts += [part for block in each.blocks for part in writer_of(block, _WRITERS, __name__)(block)]
    return f'<div class="chainrule">{"".join(parts)}</div>'


def math(latex: str, display: bool = False) -> str:
    """A formula as MathML."""
    kind = ' display="block"' if display else ""
    return f'<math xmlns="http://www.w3.org/1998/Math/MathML"{kind}>{_markup(converted(latex))}</math>'


def _markup(tree: Any) -> str:
    if isinstance(tree, str):
        return escape(printable(tree))
    tag, *children = tree
    attributes = children.pop(0) if children and isinstance(children[0], dict) else {}
    written = "".join(f' {name}="{escape(str(value))}"' for name, value in attributes.items())
    return f"<{tag}{written}>{''.join(map(_markup, children))}</{tag}>"


def _text(text: str) -> str:
    return escape(printable(text))


def _spans(text: doc.Text) -> str:
    return "".join(
        math(span.latex) if isinstance(span, doc.Math)
        else f"<code>{_text(span.source)}</code>" if isinstance(span, doc.Code)
        else _text(span)
        for span in text
    )  # fmt: skip


def _paragraph(block: doc.Paragraph) -> list[str]:
    word = f"<strong>{TONES[block.tone]}</strong>" if TONES[block.tone] else ""
    return [f"<p>{word}{_spans(block.text)}</p>"]


def _equation(block: doc.Equation) -> list[str]:
    label = f"<em>{_text(block.label)}</em>" if block.label else ""
    return [f"<div>{label}{math(block.latex, display=True)}</div>"]


def _verdict(block: doc.Verdict) -> list[str]:
    words = ": " + _spans(block.text) if block.text else ""
    return [f"<p>{MARKS[block.kind]} <strong>{block.kind}</strong>{words}{_text(compared(block))}</p>"]


def _table(block: doc.Table) -> list[str]:
    caption = f"<caption>{_text(block.label)}</caption>" if block.label else ""
    head = "".join(f"<th>{_text(header)}</th>" for header in block.headers)
    rows = "".join(f"<tr>{''.join(f'<td>{_spans(cell)}</td>' for cell in row)}</tr>" for row in block.rows)
    return [f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"]


def _tensor(block: doc.Tensor) -> Iterator[str]:
    note = f" ({_text(about(block))})" if about(block) else ""
    if block.entries is None:
        yield f"<p>{math(block.symbol)}{note}: {_text(statistics(block))}</p>"
        return
    yield f"<p>{math(block.symbol)}{note}{'' if block.entries else ' = []'}</p>"
    for grid in grids(block):
        index = f"<caption>[{', '.join(map(str, grid.index))}]</caption>" if grid.index else ""
        yield f"<table>{index}<tbody>{''.join(_rows(block, grid))}</tbody></table>"


def _rows(block: doc.Tensor, grid: Grid) -> Iterator[str]:
    """The rows with their labels; at the margins what multiplies each row, and what comes out below each column."""
    before = "" if block.upstream is None else f"<th{BLANK}>{math(block.upstream.symbol)}</th>"
    labelled = bool(grid.row_labels)
    if grid.column_labels:
        heads = "".join(f"<th>{_text(label)}</th>" for label in grid.column_labels)
        yield f"<tr>{before}{'<th></th>' * labelled}{heads}</tr>"
    for place, row in enumerate(grid.rows):
        factor = f"<td{RIGHT}>{grid.upstream[place]}</td>" if grid.upstream else ""
        label = f"<th>{_text(grid.row_labels[place])}</th>" if labelled else ""
        yield f"<tr>{factor}{label}{_cells(row)}</tr>"
    if block.product is not None:
        yield f"<tr>{'<td></td>' * bool(before)}<th>{math(block.product.symbol)}</th>{_cells(grid.product)}</tr>"


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td{RIGHT}>{_text(entry)}</td>" for entry in row)


_WRITERS: dict[type, Callable[[Any], Sequence[str] | Iterator[str]]] = {
    doc.Paragraph: _paragraph,
    doc.Equation: _equation,
    doc.Tensor: _tensor,
    doc.Verdict: _verdict,
    doc.Table: _table,
}
