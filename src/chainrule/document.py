"""What is told, before it is known where: headings, equations, tensors, notes and verdicts, as neutral frozen data.

Everything a reader sees passes through here, so that a terminal, a page and a LaTeX file say the same thing. Text is a
tuple of spans, plain strings and `Math`, so that a user's names are never mistaken for markup. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Role = Literal["value", "gradient", "jacobian", "parameter"]
"""What a tensor's numbers are; views keep the hues of values and gradients apart."""

Kind = Literal["agrees", "disagrees", "kink", "no rule yet", "not differentiable", "not checked"]


@dataclass(frozen=True, slots=True)
class Math:
    """A formula in a line of text, in LaTeX."""

    latex: str


@dataclass(frozen=True, slots=True)
class Code:
    """A name or an expression as it stands in the user's code."""

    source: str


Span = str | Math | Code
Text = tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Words. `tone` is `plain`, `note` (worth knowing), or `warning` (probably not what the user wants)."""

    text: Text
    tone: Literal["plain", "note", "warning"] = "plain"


@dataclass(frozen=True, slots=True)
class Equation:
    """One displayed formula, in LaTeX. `label` says in a few words what it is (`chain rule`)."""

    latex: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many numbers lie in each of equally wide bins between `low` and `high`.

    `sample` is how many of a very large tensor's numbers were counted, at regular distances; None: all of them.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    sample: int | None = None


@dataclass(frozen=True, slots=True)
class Sketch:
    """A tensor made small enough to be looked at: the mean of each cell of a `rows` x `columns` grid, row by row."""

    rows: int
    columns: int
    means: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """Numbers under a symbol.

    `entries` are the numbers in row-major order, or None where the tensor is too large to be told: then `statistics`
    tells it, and a histogram and a sketch where they were made. `shape` is always the true one. Row and column labels
    are plain text (`Z1[0,1]`).
    """

    symbol: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    entries: tuple[float | complex | bool | int, ...] | None
    statistics: tuple[tuple[str, float], ...] = ()
    row_labels: tuple[str, ...] = ()
    column_labels: tuple[str, ...] = ()
    label: str = ""
    histogram: Histogram | None = None
    sketch: Sketch | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the proof says about one thing; `difference` is the largest one met, `tolerance` what rounding allows."""

    kind: Kind
    text: Text
    difference: float | None = None
    tolerance: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under headers."""

    headers: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    label: str = ""


Block = Paragraph | Equation | Tensor | Verdict | Table


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what stands under it. `anchor` is unique in the document, and stays the same between versions.

    `code` is Python that recomputes the section's results with torch and asserts them, after the code of all sections
    before it in reading order; empty where there is none.
    """

    title: Text
    anchor: str
    kind: Literal["overview", "forward", "backward", "update", "note"]
    blocks: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = ()
    code: str = ""

    def walk(self, depth: int = 1) -> Iterator[tuple[int, Section]]:
        """This section and all below it, each with its depth, in reading order."""
        waiting = [(depth, self)]
        while waiting:
            level, section = waiting.pop()
            yield level, section
            waiting.extend((level + 1, inner) for inner in reversed(section.sections))


@dataclass(frozen=True, slots=True)
class Row:
    """One value of the step with the gradient of the same value: a line of the mirror, a vertex of the picture.

    `inputs` are the rows that it was computed from, `module` is the path of the module that it was computed in.
    `forward` and `backward` are the anchors of the sections that work it out; `verdict` is what the proof says of the
    node that leads back from it. `update` is, for a parameter, the norm of what the optimizer changed divided by the
    norm of what was there before.
    """

    index: int
    kind: Literal["data", "parameter", "operation", "loss"]
    name: str
    symbol: str
    gradient_symbol: str
    operation: str
    expression: str
    place: str
    module: str
    inputs: tuple[int, ...]
    value: Tensor
    gradient: Tensor | None
    forward: str | None = None
    backward: tuple[str, ...] = ()
    verdict: Kind | None = None
    update: float | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One element of one row: of its value, or of its gradient."""

    row: int
    role: Literal["value", "gradient"]
    index: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Summand:
    """One term of a sum: its value, its factors as text (`dJ/dZ1[0,1]`) with their values, and where they stand."""

    value: float
    factors: tuple[tuple[str, float], ...]
    sources: tuple[Source, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Sum:
    """Why one number is what it is: the terms that add up to it."""

    of: Source
    text: str
    summands: tuple[Summand, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """One recording, told: sections to be read, and rows and sums to be looked at."""

    title: Text
    summary: tuple[Block, ...]
    sections: tuple[Section, ...]
    rows: tuple[Row, ...] = ()
    sums: tuple[Sum, ...] = ()

    def walk(self) -> Iterator[tuple[int, Section]]:
        """Every section with its depth, in reading order."""
        for section in self.sections:
            yield from section.walk()
