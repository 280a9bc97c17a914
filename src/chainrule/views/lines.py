"""Lines of styled text for a terminal: their width, how they wrap, and how a console renders them.

A large step has a hundred thousand lines, so a line is no more than its pieces: text, each with the name of its style.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.style import Style

Piece = tuple[str, str]
Line = tuple[Piece, ...]
BLANK: Line = ()
GAP = 2  # between the columns of a table


def line(text: str, style: str = "") -> Line:
    """A line of one piece."""
    return ((text, style),) if text else ()


def plain(of: Line) -> str:
    """A line without its styles."""
    return "".join(text for text, _ in of)


def width(text: str) -> int:
    """How many cells of a terminal a text takes."""
    return len(text) if text.isascii() else cell_len(text)


def padded(text: str, cells: int) -> str:
    """A text padded with spaces to a number of cells."""
    return text + " " * (cells - width(text))


def joined(pieces: Sequence[Piece], gap: str) -> Iterator[Piece]:
    """Pieces separated by a gap."""
    for place, piece in enumerate(pieces):
        if place:
            yield gap, ""
        yield piece


def wrapped(of: Line, room: int) -> list[Line]:
    """A line in parts that are at most `room` wide, broken at spaces; a word that is too long is cut."""
    text = plain(of)
    if width(text) <= room and "\n" not in text:
        return [stripped(of)]
    breaks: list[int] = []
    used = 0
    for word in re.finditer(r"[^\S\n]*\S+[^\S\n]*|\n", text):
        size, start = width(word[0].rstrip()), word.start()
        if word[0] == "\n":
            breaks, used = [*breaks, word.end()], 0
            continue
        if used and used + size > room:
            breaks, used = [*breaks, start], 0
        while width(text[start : word.end()].rstrip()) > room:
            start += max(len(_head(text[start : word.end()], room)), 1)
            breaks, used = [*breaks, start], 0
        used += width(text[start : word.end()])
    return [stripped(part) for part in _cut(of, breaks)]


def _head(text: str, room: int) -> str:
    """The longest beginning of a text that is at most so wide."""
    if text.isascii():
        return text[:room]
    ends = accumulate(map(cell_len, text))
    return text[: sum(1 for end in ends if end <= room)]


def _cut(of: Line, breaks: Sequence[int]) -> Iterator[Line]:
    """The parts of a line between these places."""
    pieces, start = list(of), 0
    for end in (*breaks, len(plain(of))):
        room, part = end - start, []
        while pieces and room > 0:
            text, style = pieces.pop(0)
            part.append((text[:room], style))
            if len(text) > room:
                pieces.insert(0, (text[room:], style))
            room -= len(text)
        yield tuple(part)
        start = end


def stripped(of: Line) -> Line:
    """A line without the space at its end."""
    pieces = list(of)
    while pieces:
        text, style = pieces.pop()
        text = text.rstrip()
        if text:
            return (*pieces, (text, style))
    return ()


class Lines:
    """Lines as one renderable, so that a notebook has one output. Characters that a terminal lacks become `?`."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        encoding = "" if console.encoding.startswith("utf") else console.encoding
        for each in self._lines:
            shown = stripped(each)
            for text, style in (*shown, ("\n", "")) if console.color_system else ((f"{plain(shown)}\n", ""),):
                known = text.encode(encoding, "replace").decode(encoding) if encoding else text
                yield Segment(known, Style.parse(style) if style else None)


def columns(headers: Sequence[str], rows: Sequence[Sequence[Line]], room: int) -> list[Line] | None:
    """A table with a line below its headers; None where it is wider than `room`."""
    texts = [[plain(cell) for cell in row] for row in rows]
    sizes = [max(map(width, column)) for column in zip(headers, *texts, strict=True)]
    whole = sum(sizes) + GAP * (len(sizes) - 1)
    if whole > room or any("\n" in text for row in texts for text in row):
        return None
    heads = tuple((set_cell_size(text, size + GAP), "dim") for text, size in zip(headers, sizes, strict=True))
    lines: list[Line] = [stripped(heads), line("─" * whole, "dim")]
    for row, written in zip(rows, texts, strict=True):
        cells = zip(row, written, sizes, strict=True)
        lines.append(
            stripped(tuple(p for cell, text, size in cells for p in (*cell, (" " * (size + GAP - width(text)), ""))))
        )
    return lines


def folded(headers: Sequence[str], rows: Sequence[Sequence[Line]], room: int) -> list[Line]:
    """The same table with narrower columns, whose cells wrap."""
    from rich import box  # here, because few tables are that wide
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for header in headers:
        table.add_column(Text(header), overflow="fold")
    for row in rows:
        table.add_row(*(Text.assemble(*cell) for cell in row))
    console = Console(width=room, color_system=None, force_terminal=False, force_jupyter=False, file=io.StringIO())
    segments = console.render_lines(table, pad=False)
    return [stripped(tuple((each.text, str(each.style or "")) for each in row)) for row in segments]
