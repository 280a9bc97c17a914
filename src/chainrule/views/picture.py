"""The computational graph as a picture in SVG: values flow from left to right, gradients come back below them.

A vertex is a row of the document. Its output line has its value above it and its gradient below it, before it forks to
every use of the value; so a gradient that is a sum over several uses is shown once. Kinds differ in shape, not only in
hue.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from rich.cells import cell_len

from chainrule import document as doc
from chainrule.numbers import aligned, number
from chainrule.views.blocks import grids, printable
from chainrule.views.formula import latex
from chainrule.views.layers import Layout, Point

SUFFIX = ".svg"
CHARACTER, LINE = 7.3, 16.0  # the size of one character and one line of the font below, in px
MARGIN = 24.0
LONGEST = 28  # characters of a name; the whole name is in the vertex's tooltip
DESCRIBED = 40  # vertices that the description lists one by one
WRITTEN_OUT = 12  # elements of a tensor up to which its numbers are written

STYLE = """
.chainrule-picture{--ink:#1f2328;--paper:#ffffff;--line:#6e7781;--value:#0550ae;--gradient:#a04100;
--data:#eef2f6;--parameter:#ddf4ff;--operation:#ffffff;--loss:#fff1e5;background:var(--paper)}
@media (prefers-color-scheme:dark){.chainrule-picture{--ink:#e6edf3;--paper:#0d1117;--line:#8b949e;--value:#79c0ff;
--gradient:#ffa657;--data:#21262d;--parameter:#0c2d6b;--operation:#161b22;--loss:#4d2200}}
.chainrule-picture text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
fill:var(--ink);white-space:pre}
.chainrule-picture .name{font-weight:bold}
.chainrule-picture .value{fill:var(--value)}.chainrule-picture .gradient{fill:var(--gradient)}
.chainrule-picture .edge,.chainrule-picture .stem{fill:none;stroke:var(--line);stroke-width:1.3}
.chainrule-picture .shape{stroke:var(--line);stroke-width:1.3}
.chainrule-picture .data .shape{fill:var(--data)}.chainrule-picture .parameter .shape{fill:var(--parameter)}
.chainrule-picture .operation .shape{fill:var(--operation)}.chainrule-picture .loss .shape{fill:var(--loss)}
.chainrule-picture .frame{fill:none;stroke:var(--line);stroke-width:1.3}
"""


@dataclass(frozen=True, slots=True)
class Vertex:
    """A row with its text and its size: a box of `box` px, then a stem up to `width`."""

    row: doc.Row
    words: tuple[str, ...]
    value: tuple[str, ...]
    gradient: tuple[str, ...]
    box: float
    width: float
    height: float


def written(document: doc.Document) -> str:
    """The document's rows as one SVG file.

    Raises ValueError if an input of a row is not an earlier row.
    """
    vertices = [_vertex(row) for row in document.rows]
    placed = Layout([(each.width, each.height) for each in vertices], [row.inputs for row in document.rows])
    width, height = placed.width + 2 * MARGIN, placed.height + 2 * MARGIN
    title = "".join(_plain(span) for span in document.title) + ": the computational graph"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chainrule-picture" role="img" '
        f'aria-labelledby="chainrule-picture-title chainrule-picture-desc" width="{width:g}" height="{height:g}" '
        f'viewBox="{-MARGIN:g} {-MARGIN:g} {width:g} {height:g}">',
        f'<title id="chainrule-picture-title">{_escaped(title)}</title>',
        f'<desc id="chainrule-picture-desc">{_escaped(_description(document.rows))}</desc>',
        f"<style>{STYLE}</style>",
        '<defs><marker id="chainrule-picture-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="context-stroke"/></marker></defs>',
        *(
            f'<path class="edge" d="{_curve(path)}" marker-end="url(#chainrule-picture-arrow)"/>'
            for path in placed.paths
        ),
    ]
    for vertex, centre in zip(vertices, placed.centres, strict=True):
        lines += _drawn(vertex, centre)
    return "\n".join([*lines, "</svg>", ""])


def _vertex(row: doc.Row) -> Vertex:
    name, operation = _shortened(row.name), _shortened(row.operation)
    words = tuple(word for word in (name, operation) if word)
    value = _numbers(row.value)
    gradient = _numbers(row.gradient) if row.gradient is not None else ()
    box = max(_width(words) + 28, 64.0)
    height = max(2 * LINE * max(len(value), len(gradient)) + 12, LINE * len(words) + 20)
    return Vertex(row, words, value, gradient, box, box + max(_width((*value, *gradient)) + 20, 30.0), height)


def _numbers(tensor: doc.Tensor) -> tuple[str, ...]:
    """A tensor beside its vertex: its numbers if they are few, else its shape and norm."""
    shape = " x ".join(map(str, tensor.shape)) or "a number"
    if tensor.entries is not None and len(tensor.entries) <= WRITTEN_OUT and len(tensor.shape) <= 2 and tensor.entries:
        (grid,) = grids(tensor)
        columns = [aligned(column) for column in zip(*grid.rows, strict=True)]
        return tuple("  ".join(row) for row in zip(*columns, strict=True))
    norm = dict(tensor.statistics).get("norm")
    return (shape,) if norm is None else (shape, f"norm {number(norm)}")


def _curve(points: Sequence[Point]) -> str:
    """A path with a level line through each column, and an S-curve across each gap between two columns."""
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for (x, y), (to, level) in pairwise(points):
        middle = (x + to) / 2
        path += f"L{to:g} {y:g}" if y == level else f"C{middle:g} {y:g} {middle:g} {level:g} {to:g} {level:g}"
    return path


def _drawn(vertex: Vertex, centre: Point) -> Iterator[str]:
    x, y = centre
    left, right = x - vertex.width / 2, x + vertex.width / 2
    row, edge = vertex.row, x - vertex.width / 2 + vertex.box
    yield f'<g class="vertex {row.kind}" data-row="{row.index}"><title>{_escaped(_in_words(row))}</title>'
    yield f'<path class="stem" d="M{edge:g} {y:g}H{right:g}"/>'
    yield _shape(row.kind, left, y - vertex.height / 2, vertex.box, vertex.height)
    top = y - LINE * (len(vertex.words) - 1) / 2 + 4
    for place, word in enumerate(vertex.words):
        style = ' class="name"' if place == 0 else ""
        yield _text(word, left + vertex.box / 2, top + LINE * place, style + ' text-anchor="middle"')
    for place, line in enumerate(reversed(vertex.value)):
        yield _text(line, edge + 8, y - 6 - LINE * place, ' class="value"')
    for place, line in enumerate(vertex.gradient):
        yield _text(line, edge + 8, y + LINE * (place + 1) - 1, ' class="gradient"')
    yield "</g>"


def _text(text: str, x: float, y: float, attributes: str) -> str:
    return f'<text x="{x:g}" y="{y:g}"{attributes}>{_escaped(text)}</text>'


def _shape(kind: str, x: float, y: float, width: float, height: float) -> str:
    """A capsule for data, a hexagon for a parameter, a box for an operation, a box in a frame for the loss."""
    box = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    match kind:
        case "data":
            return f'<rect class="shape" {box} rx="{min(height, width) / 2:g}"/>'
        case "parameter":
            cut, middle = 10, y + height / 2
            return (
                f'<path class="shape" d="M{x:g} {middle:g}L{x + cut:g} {y:g}H{x + width - cut:g}'
                f'L{x + width:g} {middle:g}L{x + width - cut:g} {y + height:g}H{x + cut:g}z"/>'
            )
        case "operation":
            return f'<rect class="shape" {box} rx="3"/>'
        case "loss":
            inner = f'x="{x + 3:g}" y="{y + 3:g}" width="{width - 6:g}" height="{height - 6:g}"'
            return f'<rect class="shape" {box} rx="3"/><rect class="frame" {inner} rx="2"/>'
        case _:
            raise ValueError(f"the picture has no shape for a row of kind {kind!r}. Add one to {__name__}._shape.")


def _in_words(row: doc.Row) -> str:
    """A vertex in words, for the tooltip and for screen readers."""
    parts = [f"{row.name}: {row.kind}" + (f" {row.operation}" if row.operation else "")]
    parts += [part for part in (row.expression, row.place, row.module) if part]
    parts.append(f"value {'; '.join(_numbers(row.value))}")
    parts.append(f"gradient {'; '.join(_numbers(row.gradient))}" if row.gradient is not None else "no gradient")
    return ", ".join(parts)


def _description(rows: Sequence[doc.Row]) -> str:
    counts = Counter(row.kind for row in rows)
    kinds = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    listed = ". ".join(map(_in_words, rows[:DESCRIBED]))
    more = "" if len(rows) <= DESCRIBED else f". And {len(rows) - DESCRIBED} more."
    return (
        f"{len(rows)} values ({kinds}), from left to right in the order in which they were computed. The numbers of a "
        f"value are above its output line, its gradient is below. {listed}{more}"
    )


def _plain(span: doc.Span) -> str:
    return latex(span.latex) if isinstance(span, doc.Math) else span.source if isinstance(span, doc.Code) else span


def _width(words: Sequence[str]) -> float:
    return CHARACTER * max((cell_len(printable(word)) for word in words), default=0)


def _shortened(name: str) -> str:
    """A long name without its middle: the ends of a path say most."""
    name = printable(name)
    half = (LONGEST - 1) // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"


def _escaped(text: str) -> str:
    """Text for SVG, without markup and without characters that XML forbids."""
    return escape(re.sub("[\ufffe\uffff]", "\ufffd", printable(text)))
