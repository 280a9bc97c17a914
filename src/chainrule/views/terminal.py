"""A document in a terminal: one function for each kind of block, chosen by its type.

Colours only repeat what words and marks say (values cyan, derivatives magenta), so nothing is lost without them. Text
from the user passes through `printable`, and is never markup.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any

from rich.console import Console

from chainrule import document as doc
from chainrule.numbers import aligned
from chainrule.views.blocks import MARKS, USUAL_DTYPE, Grid, compared, grids, printable, statistics, writer_of
from chainrule.views.formula import latex
from chainrule.views.lines import BLANK, Line, Lines, columns, folded, joined, line, padded, plain, width, wrapped

SUFFIX = ".txt"
INDENT = 4
LABEL_WIDTH = 18
MINIMUM_WIDTH = 20
HUES = {"value": "cyan", "parameter": "cyan", "gradient": "magenta", "jacobian": "magenta"}
VERDICTS = {"agrees": "green", "disagrees": "bold red", "by convention": "yellow"}  # others: dim
TONES = {
    "plain": ("", ""), "note": ("Note: ", "bold blue"), "warning": ("Warning: ", "bold yellow"),
    "error": ("Error: ", "bold red"),
}  # fmt: skip


def render(document: doc.Document, console: Console | None = None) -> None:
    """Print the whole document. Without a console: to standard output, in colour if that is a terminal."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    console.print(Lines(_document(document, console.width)), crop=False, end="")


def text(document: doc.Document, width: int = 100) -> str:
    """The document as plain text without colour, at most `width` columns wide if its numbers can be wrapped."""
    return "".join(f"{plain(each).rstrip()}\n" for each in _document(document, width))


written = text


def _document(document: doc.Document, room: int) -> Iterator[Line]:
    title = _spans(document.title, "bold")
    yield from wrapped(title, room)
    yield line("═" * min(width(plain(title)), room), "dim")
    yield from _blocks(document.summary, room)
    for section in document.sections:
        for depth, each in section.walk():
            yield BLANK
            yield from _heading(each.title, depth, room)
            yield from _blocks(each.blocks, room)


def _blocks(blocks: Sequence[doc.Block], room: int) -> Iterator[Line]:
    previous: type | None = None
    for block in blocks:
        # Consecutive formulas or verdicts read as a list; all other blocks are separated by an empty line.
        if type(block) is not previous or not isinstance(block, (doc.Equation, doc.Verdict)):
            yield BLANK
        yield from writer_of(block, _WRITERS, __name__)(block, room)
        previous = type(block)


def _heading(title: doc.Text, depth: int, room: int) -> list[Line]:
    heading = _spans(title, "bold")
    size = width(plain(heading))
    if depth == 1:
        return wrapped((("━━ ", "dim"), *heading, (" " + "━" * (room - size - 4), "dim")), room)
    if depth == 2:
        return wrapped((("── ", "dim"), *heading), room)
    return wrapped((("▸ ", "dim"), *heading), room)


def _spans(text: doc.Text, style: str = "") -> Line:
    pieces = []
    for span in text:
        match span:
            case doc.Math():
                pieces.append((" ".join(latex(span.latex).split("\n")), f"{style} italic".strip()))
            case doc.Code():
                pieces.append((printable(span.source), "bold"))
            case str():
                pieces.append((printable(span), style))
            case _:
                raise TypeError(f"a span of text is a str, Math or Code, not {type(span).__name__}")
    return tuple(pieces)


def _hanging(first: Line, body: Line, room: int, indent: int = INDENT) -> list[Line]:
    """`body` after `first`, wrapped with a hanging indent."""
    used = indent + width(plain(first))
    head = (*line(" " * indent), *first)
    return [
        (*(line(" " * used) if place else head), *each)
        for place, each in enumerate(wrapped(body, max(room - used, MINIMUM_WIDTH)))
    ]


def _indented(lines: Sequence[Line]) -> list[Line]:
    return [((" " * INDENT, ""), *each) if each else each for each in lines]


def _paragraph(block: doc.Paragraph, room: int) -> list[Line]:
    word, style = TONES[block.tone]
    return _hanging(line(word, style), _spans(block.text), room, indent=0)


def _equation(block: doc.Equation, room: int) -> list[Line]:
    label = printable(block.label).ljust(LABEL_WIDTH - 1) + " " if block.label else ""
    return _hanging(line(label, "dim"), line(latex(block.latex)), room)


def _verdict(block: doc.Verdict, room: int) -> list[Line]:
    style = VERDICTS.get(block.kind, "dim")
    words = ((block.kind, style), *line(": " if block.text else ""), *_spans(block.text), *line(compared(block), "dim"))
    return _hanging(line(f"{MARKS[block.kind]} ", style), words, room)


def _table(block: doc.Table, room: int) -> list[Line]:
    headers, rows = [printable(header) for header in block.headers], [[*map(_spans, row)] for row in block.rows]
    lines = columns(headers, rows, room - INDENT)
    if lines is None:
        lines = folded(headers, rows, room - INDENT)
    return _indented([*([line(printable(block.label), "bold")] if block.label else []), *lines])


def _tensor(block: doc.Tensor, room: int) -> list[Line]:
    name = line(_flat(block.symbol))
    about = line(printable("   " + "  ".join(_facts(block))), "dim")
    if block.entries is None:
        numbers = line(statistics(block))
        whole = (*name, *about, *line("   "), *numbers)
        if width(plain(whole)) <= room - INDENT:
            return _indented([whole])
        return [*_indented([(*name, *about)]), *_hanging(line(" " * INDENT), numbers, room)]
    hue = HUES[block.role]
    matrices = list(grids(block, sys.maxsize))
    if not matrices:
        lines = [(*name, *line(" = []"), *about)]
    elif not block.shape:
        lines = [(*name, *line(" = "), _entry(matrices[0].rows[0][0], hue), *about)]
    elif block.row_labels or block.column_labels:
        lines = [(*name, *line(" ="), *about), *min(_labelled(block, matrices[0], hue, room - INDENT), key=len)]
    elif len(block.shape) <= 2:
        lines = _matrix(name, matrices[0], hue, about, room - INDENT)
    else:
        lines = [(*name, *line(" ="), *about)]
        for place, grid in enumerate(matrices):
            lines += [BLANK] * (place > 0 and len(grid.rows) > 1)
            slice_name = (*name, *line(f"[{','.join(map(str, grid.index))}]"))
            lines += _matrix(slice_name, grid, hue, BLANK, room - INDENT)
    return _indented(lines)


def _flat(symbol: str) -> str:
    return " ".join(latex(symbol).split("\n"))


def _facts(block: doc.Tensor) -> list[str]:
    shape = [str(block.shape)] if block.shape else []
    dtype = [block.dtype] if block.dtype != USUAL_DTYPE else []
    return [*shape, *dtype, *([block.label] if block.label else [])]


def _entry(text: str, style: str) -> tuple[str, str]:
    return text, "dim" if text.strip() == "0" else style


def _matrix(name: Line, matrix: Grid, style: str, about: Line, room: int) -> list[Line]:
    """Rows in brackets beside their name; a wide matrix below it, in parts."""
    columns = _columns(matrix)
    head = (*name, *line(" = "))
    grid = _bracketed(columns, style)
    size = width(plain(head))
    if size + width(plain(grid[0])) + width(plain(about)) <= room:
        middle = (len(grid) - 1) // 2
        return [
            (*head, *row, *about) if place == middle else (*line(" " * size), *row) for place, row in enumerate(grid)
        ]
    lines = [(*name, *line(" ="), *about)]
    parts = list(_parts([len(column[0]) for column in columns], room - INDENT - 2, gap=2))
    for first, last in parts:
        if len(parts) > 1:
            lines += _indented([line(f"columns {first} to {last - 1}", "dim")])
        lines += _indented(_bracketed(columns[first:last], style))
    return lines


def _columns(matrix: Grid) -> list[list[str]]:
    """The columns of a matrix with what stands below them, each aligned at the decimal point."""
    rows = (*matrix.rows, matrix.product) if matrix.product else matrix.rows
    return [aligned(column) for column in zip(*rows, strict=True)]


def _bracketed(columns: Sequence[Sequence[str]], style: str) -> list[Line]:
    rows = len(columns[0])
    sides = [("⎡", "⎤"), *[("⎢", "⎥")] * (rows - 2), ("⎣", "⎦")] if rows > 1 else [("[", "]")]
    return [
        ((left, "dim"), *joined([_entry(column[row], style) for column in columns], "  "), (right, "dim"))
        for row, (left, right) in enumerate(sides)
    ]


def _parts(widths: Sequence[int], room: int, gap: int) -> Iterator[tuple[int, int]]:
    """Split columns into runs that fit into `room`; a column that is too wide is a run of its own."""
    first, used = 0, 0
    for place, size in enumerate(widths):
        if place > first and used + size > room:
            yield first, place
            first, used = place, 0
        used += size + gap
    yield first, len(widths)


def _labelled(block: doc.Tensor, matrix: Grid, style: str, room: int) -> Iterator[list[Line]]:
    """A matrix with a label for each row and column; if it is cut, also with their names said once before it.

    Columns whose labels share all but the last index stand together: in a Jacobian of row-major flattened tensors,
    these are the derivatives by one row. What multiplies each row stands before its label, what comes out below each
    column.
    """
    rows = [printable(label) for label in matrix.row_labels] or [""] * len(matrix.rows)
    columns = [printable(label) for label in matrix.column_labels] or [""] * len(matrix.rows[0])
    yield (whole := _grids(block, matrix, style, room, [*rows], columns))
    if BLANK in whole and all("[" in label for label in (*rows, *columns)):
        names = f"rows: {rows[0].rpartition('[')[0]}, columns: {columns[0].rpartition('[')[0]}"
        bare = ([label[label.rindex("[") :] for label in labels] for labels in (rows, columns))
        yield [line(names, "dim"), *_grids(block, matrix, style, room, *bare)]


def _grids(
    block: doc.Tensor, matrix: Grid, style: str, room: int, row_labels: list[str], column_labels: list[str]
) -> list[Line]:
    columns = _columns(matrix)
    cells = []
    for label, column in zip(column_labels, columns, strict=True):
        size = max(width(label), len(column[0]))
        cells.append([" " * (size - width(label)) + label, *(entry.rjust(size) for entry in column)])
    corner = ""
    if block.product is not None:
        row_labels.append(_flat(block.product.symbol))
    if block.upstream is not None:
        factors, symbol = aligned(matrix.upstream), _flat(block.upstream.symbol)
        first, second = max(width(symbol), len(factors[0])), max(map(width, row_labels))
        factors += [""] * (len(row_labels) - len(factors))
        pairs = zip(factors, row_labels, strict=True)
        row_labels = [f"{factor.rjust(first)}  {padded(label, second)}" for factor, label in pairs]
        corner = padded(" " * (first - width(symbol)) + symbol, first + 2 + second)
    stripes = _stripes(cells, _blocks_of(column_labels), room - max(map(width, row_labels)) - 3)
    lines: list[Line] = []
    for stripe in stripes:
        lines += [BLANK] * bool(lines)
        lines += _grid(cells, stripe, [corner, *row_labels], style, len(matrix.rows))
    return lines


Run = tuple[int, int]  # columns or rows: the first, and the one after the last


def _blocks_of(labels: Sequence[str]) -> list[Run]:
    """Runs of labels that share all but their last index; one run if each would have a single label."""
    sizes = [len(list(group)) for _, group in groupby(labels, key=lambda label: label.rpartition(",")[0])]
    if max(sizes) == 1:
        return [(0, len(labels))]
    ends = list(accumulate(sizes))
    return list(zip([0, *ends], ends, strict=False))


def _stripes(cells: Sequence[Sequence[str]], blocks: list[Run], room: int) -> list[list[Run]]:
    """The blocks of columns that fit side by side; a block is split only if it is too wide by itself."""

    def size(span: Run) -> int:
        return sum(width(column[0]) + 2 for column in cells[slice(*span)]) - 2

    if any(size(span) > room for span in blocks):
        widths = [width(column[0]) for column in cells]
        parts = list(_parts(widths, room, gap=3))
        cut = [[(max(first, start), min(last, end)) for start, end in blocks] for first, last in parts]
        return [[span for span in stripe if span[0] < span[1]] for stripe in cut]
    return [blocks[slice(*part)] for part in _parts([size(span) for span in blocks], room, gap=3)]


def _grid(
    cells: Sequence[Sequence[str]], stripe: list[Run], labels: Sequence[str], style: str, rows: int
) -> list[Line]:
    """So many rows below their column labels, and below a line what comes out of each column, if anything."""
    head = max(map(width, labels))

    def row(place: int, style: str) -> Line:
        label = labels[place]
        pieces: list[tuple[str, str]] = [(" " * (head - width(label)) + label, "dim")]
        for span in stripe:
            pieces.append((" │ ", "dim"))
            pieces += joined([_entry(column[place], style) for column in cells[slice(*span)]], "  ")
        return tuple(pieces)

    bars = ["─" * (sum(width(column[0]) + 2 for column in cells[slice(*span)]) - 2) for span in stripe]
    rule = line(" " * head + " ┼─" + "─┼─".join(bars), "dim")
    below = [rule, row(len(labels) - 1, style)] if len(labels) > rows + 1 else []
    return [row(0, "dim"), rule, *(row(place, style) for place in range(1, rows + 1)), *below]


_WRITERS: dict[type, Callable[[Any, int], Sequence[Line]]] = {
    doc.Paragraph: _paragraph,
    doc.Equation: _equation,
    doc.Tensor: _tensor,
    doc.Verdict: _verdict,
    doc.Table: _table,
}
