"""A document in a terminal: one function for each kind of block, chosen by its type.

Colours only repeat what words and marks say (values cyan, derivatives magenta), so nothing is lost without them. Text
from the user passes through `printable` and goes to rich as `Text`, never as markup.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text

from chainrule import document as doc
from chainrule.numbers import aligned
from chainrule.views.blocks import MARKS, USUAL_DTYPE, Grid, compared, grids, printable, statistics, writer_of
from chainrule.views.formula import latex

SUFFIX = ".txt"
INDENT = 4
LABEL_WIDTH = 20
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
    title = _spans(document.title, "bold")
    _print(console, title, Text("═" * min(cell_len(title.plain), console.width), "dim"))
    _print_blocks(document.summary, console)
    for section in document.sections:
        render_section(section, console)


def render_section(section: doc.Section, console: Console | None = None) -> None:
    """Print one section with all sections in it."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    for depth, each in section.walk():
        _print(console, Text(), _heading(each.title, depth, console.width))
        _print_blocks(each.blocks, console)


def text(document: doc.Document, width: int = 100) -> str:
    """The document as plain text without colour, at most `width` columns wide if its numbers can be wrapped."""
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, force_terminal=False, force_jupyter=False)
    render(document, console)
    return "\n".join(line.rstrip() for line in file.getvalue().split("\n"))


written = text


def _print_blocks(blocks: Sequence[doc.Block], console: Console) -> None:
    previous: type | None = None
    for block in blocks:
        # Consecutive formulas or verdicts read as a list; all other blocks are separated by an empty line.
        if type(block) is not previous or not isinstance(block, (doc.Equation, doc.Verdict)):
            _print(console, Text())
        _print(console, *render_block(block, console))
        previous = type(block)


def _print(console: Console, *renderables: RenderableType) -> None:
    for each in renderables:
        console.print(
            each if console.encoding.startswith("utf") else _Encodable(each),
            highlight=False,
            markup=False,
            emoji=False,
            crop=False,
        )


class _Encodable:
    """A renderable for a terminal with a small character set: other characters become `?`."""

    def __init__(self, renderable: RenderableType) -> None:
        self.renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style, control in console.render(self.renderable, options):
            yield Segment(text.encode(console.encoding, "replace").decode(console.encoding), style, control)


def render_block(block: doc.Block, console: Console) -> Sequence[RenderableType]:
    """One block as lines for `console`. Raises TypeError for a kind of block that this view does not know."""
    return writer_of(block, _WRITERS, __name__)(block, console)


def _heading(title: doc.Text, depth: int, width: int) -> Text:
    heading = _spans(title, "bold")
    if depth == 1:
        return Text("━━ ", "dim") + heading + Text(" " + "━" * (width - cell_len(heading.plain) - 4), "dim")
    if depth == 2:
        return heading + Text("\n" + "─" * min(cell_len(heading.plain), width), "dim")
    return Text("▸ ", "dim") + heading


def _spans(text: doc.Text, style: str = "") -> Text:
    line = Text(style=style)
    for span in text:
        match span:
            case doc.Math():
                line.append(" ".join(latex(span.latex).split("\n")), "italic")
            case doc.Code():
                line.append(printable(span.source), "bold")
            case str():
                line.append(printable(span))
            case _:
                raise TypeError(f"a span of text is a str, Math or Code, not {type(span).__name__}")
    return line


def _hanging(first: Text, body: Text, console: Console, indent: int = INDENT) -> list[Text]:
    """`body` after `first`, wrapped with a hanging indent."""
    room = indent + cell_len(first.plain)
    lines = body.wrap(console, max(console.width - room, MINIMUM_WIDTH))
    heads = [Text(" " * indent) + first] + [Text(" " * room)] * len(lines)
    return [_unfolded(head + line) for head, line in zip(heads, lines, strict=False)]


def _unfolded(line: Text) -> Text:
    """`line`, not to be wrapped: it is wrapped already, or a row of numbers."""
    line.no_wrap, line.overflow = True, "ignore"
    line.rstrip()
    return line


def _indented(lines: Sequence[Text]) -> list[Text]:
    return [_unfolded(Text(" " * INDENT) + line) for line in lines]


def _paragraph(block: doc.Paragraph, console: Console) -> list[Text]:
    word, style = TONES[block.tone]
    return _hanging(Text(word, style), _spans(block.text), console, indent=0)


def _equation(block: doc.Equation, console: Console) -> list[Text]:
    label = printable(block.label).ljust(LABEL_WIDTH - 2) + "  " if block.label else ""
    return _hanging(Text(label, "dim"), Text(latex(block.latex)), console)


def _verdict(block: doc.Verdict, console: Console) -> list[Text]:
    style = VERDICTS.get(block.kind, "dim")
    words = Text.assemble((block.kind, style), ": " if block.text else "", _spans(block.text), (compared(block), "dim"))
    return _hanging(Text(f"{MARKS[block.kind]} ", style), words, console)


def _table(block: doc.Table, console: Console) -> list[RenderableType]:
    from rich import box  # here, because many documents have no table
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for header in block.headers:
        table.add_column(Text(printable(header)), overflow="fold")
    for row in block.rows:
        table.add_row(*map(_spans, row))
    label = _indented([Text(printable(block.label), "bold")] if block.label else [])
    return [*label, Padding(table, (0, 0, 0, INDENT))]


def _tensor(block: doc.Tensor, console: Console) -> list[Text]:
    name = Text(" ".join(latex(block.symbol).split("\n")))
    about = Text(printable("   " + "  ".join(_facts(block))), "dim")
    if block.entries is None:
        head, numbers = name + about + Text("   "), Text(statistics(block))
        if cell_len(head.plain) + cell_len(numbers.plain) <= console.width - INDENT:
            return _indented([head + numbers])
        return [*_indented([name + about]), *_hanging(Text(" " * INDENT), numbers, console)]
    width, hue = console.width - INDENT, HUES[block.role]
    matrices = list(grids(block, sys.maxsize))
    if not matrices:
        lines = [name + Text(" = []") + about]
    elif not block.shape:
        lines = [name + Text(" = ") + _entry(matrices[0].rows[0][0], hue) + about]
    elif block.row_labels or block.column_labels:
        lines = [name + Text(" =") + about, *_indented(_labelled(matrices[0], hue, width - INDENT))]
    elif len(block.shape) <= 2:
        lines = _matrix(name, matrices[0], hue, about, width)
    else:
        lines = [name + Text(" =") + about]
        for place, grid in enumerate(matrices):
            lines += [Text()] * (place > 0 and len(grid.rows) > 1)
            lines += _matrix(name + Text(f"[{','.join(map(str, grid.index))}]"), grid, hue, Text(), width)
    return _indented(lines)


def _facts(block: doc.Tensor) -> list[str]:
    shape = [str(block.shape)] if block.shape else []
    dtype = [block.dtype] if block.dtype != USUAL_DTYPE else []
    return [*shape, *dtype, *([block.label] if block.label else [])]


def _entry(text: str, style: str) -> Text:
    return Text(text, "dim" if text.strip() == "0" else style)


def _matrix(name: Text, matrix: Grid, style: str, about: Text, width: int) -> list[Text]:
    """Rows in brackets beside their name; a wide matrix below it, in parts."""
    columns = _columns(matrix)
    head = name + Text(" = ")
    grid = _bracketed(columns, style)
    if cell_len(head.plain) + cell_len(grid[0].plain) + cell_len(about.plain) <= width:
        middle = (len(grid) - 1) // 2
        blank = Text(" " * cell_len(head.plain))
        return [head + row + about if place == middle else blank + row for place, row in enumerate(grid)]
    lines = [name + Text(" =") + about]
    parts = list(_parts([len(column[0]) for column in columns], width - INDENT - 2, gap=2))
    for first, last in parts:
        if len(parts) > 1:
            lines += _indented([Text(f"columns {first} to {last - 1}", "dim")])
        lines += _indented(_bracketed(columns[first:last], style))
    return lines


def _columns(matrix: Grid) -> list[list[str]]:
    """The columns of a matrix, each aligned at the decimal point."""
    return [aligned(column) for column in zip(*matrix.rows, strict=True)]


def _bracketed(columns: Sequence[Sequence[str]], style: str) -> list[Text]:
    rows = len(columns[0])
    sides = [("⎡", "⎤"), *[("⎢", "⎥")] * (rows - 2), ("⎣", "⎦")] if rows > 1 else [("[", "]")]
    return [
        Text.assemble((left, "dim"), Text("  ").join(_entry(column[row], style) for column in columns), (right, "dim"))
        for row, (left, right) in enumerate(sides)
    ]


def _parts(widths: Sequence[int], room: int, gap: int) -> Iterator[tuple[int, int]]:
    """Split columns into runs that fit into `room`; a column that is too wide is a run of its own."""
    first, used = 0, 0
    for place, width in enumerate(widths):
        if place > first and used + width > room:
            yield first, place
            first, used = place, 0
        used += width + gap
    yield first, len(widths)


def _labelled(matrix: Grid, style: str, width: int) -> list[Text]:
    """A matrix with a label for each row and column, in blocks whose labels share all but the last index.

    In a Jacobian of row-major flattened tensors, such a block is the derivative of one row by one row.
    """
    columns = _columns(matrix)
    row_labels = [printable(label) for label in matrix.row_labels] or [""] * len(matrix.rows)
    column_labels = [printable(label) for label in matrix.column_labels] or [""] * len(columns)
    cells = []
    for label, column in zip(column_labels, columns, strict=True):
        room = max(cell_len(label), len(column[0]))
        cells.append([" " * (room - cell_len(label)) + label, *(entry.rjust(room) for entry in column)])
    stripes = _stripes(cells, _blocks(column_labels), width - max(map(cell_len, row_labels)) - 3)
    lines: list[Text] = []
    for stripe in stripes:
        lines += [Text()] * bool(lines)
        lines += _grid(cells, stripe, row_labels, _blocks(row_labels), style)
    return lines


Run = tuple[int, int]  # columns or rows: the first, and the one after the last


def _blocks(labels: Sequence[str]) -> list[Run]:
    """Runs of labels that share all but their last index; one run if each would have a single label."""
    sizes = [len(list(group)) for _, group in groupby(labels, key=lambda label: label.rpartition(",")[0])]
    if max(sizes) == 1:
        return [(0, len(labels))]
    ends = list(accumulate(sizes))
    return list(zip([0, *ends], ends, strict=False))


def _stripes(cells: Sequence[Sequence[str]], blocks: list[Run], room: int) -> list[list[Run]]:
    """The blocks of columns that fit side by side; a block is split only if it is too wide by itself."""

    def width(span: Run) -> int:
        return sum(cell_len(column[0]) + 2 for column in cells[slice(*span)]) - 2

    if any(width(span) > room for span in blocks):
        widths = [cell_len(column[0]) for column in cells]
        parts = list(_parts(widths, room, gap=3))
        cut = [[(max(first, start), min(last, end)) for start, end in blocks] for first, last in parts]
        return [[span for span in stripe if span[0] < span[1]] for stripe in cut]
    return [blocks[slice(*part)] for part in _parts([width(span) for span in blocks], room, gap=3)]


def _grid(
    cells: Sequence[Sequence[str]], stripe: list[Run], row_labels: Sequence[str], row_blocks: list[Run], style: str
) -> list[Text]:
    head = max(map(cell_len, row_labels))

    def line(label: str, row: int, style: str) -> Text:
        text = Text(" " * (head - cell_len(label)) + label, "dim")
        for span in stripe:
            text.append(" │ ", "dim")
            text.append_text(Text("  ").join(_entry(column[row], style) for column in cells[slice(*span)]))
        return text

    bars = ["─" * (sum(cell_len(column[0]) + 2 for column in cells[slice(*span)]) - 2) for span in stripe]
    rule = Text(" " * head + " ┼─" + "─┼─".join(bars), "dim")
    lines = [line("", 0, "dim")]
    for first, last in row_blocks:
        lines.append(rule)
        lines += [line(row_labels[row], row + 1, style) for row in range(first, last)]
    return lines


_WRITERS: dict[type, Callable[[Any, Console], Sequence[RenderableType]]] = {
    doc.Paragraph: _paragraph,
    doc.Equation: _equation,
    doc.Tensor: _tensor,
    doc.Verdict: _verdict,
    doc.Table: _table,
}
