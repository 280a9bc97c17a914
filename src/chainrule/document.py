"""The document that all views render: headings, equations, tensors, notes and verdicts as neutral frozen data.

Everything that a reader sees is in a document, so a terminal, a page and a LaTeX file say the same. Text is a tuple of
spans, so a user's names are never mistaken for markup. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["value", "gradient", "jacobian", "parameter"]
"""What a tensor holds; views show values and gradients in different hues."""

Kind = Literal["agrees", "by convention", "not checked", "disagrees", "not differentiable"]
"""A verdict. `agrees`: whatever exists of our rule, autograd and a measured difference is equal, and at least one of
them is independent of autograd. `by convention`: PyTorch defines the gradient otherwise than the derivative."""


@dataclass(frozen=True, slots=True)
class Math:
    """A formula in LaTeX within a line of text."""

    latex: str


@dataclass(frozen=True, slots=True)
class Code:
    """A name or an expression from the user's code."""

    source: str


Span = str | Math | Code
Text = tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Words. `tone` is `plain`, `note`, `warning` (probably not what the user wants), or `error` (numbers are lost)."""

    text: Text
    tone: Literal["plain", "note", "warning", "error"] = "plain"


@dataclass(frozen=True, slots=True)
class Equation:
    """One displayed formula in LaTeX. `label` says in a few words what it is (`chain rule`)."""

    latex: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many numbers lie in each of equally wide bins between `low` and `high`.

    `sample` is how many numbers of a very large tensor were counted, at regular intervals; None: all of them.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    sample: int | None = None


@dataclass(frozen=True, slots=True)
class Sketch:
    """The thumbnail of a tensor: the mean of each cell of a `rows` x `columns` grid, row by row."""

    rows: int
    columns: int
    means: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Margin:
    """Numbers at the margin of a matrix, one for each of its rows or columns, under a symbol of their own."""

    symbol: str
    entries: tuple[float | complex | bool | int, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """Numbers under a symbol.

    `entries` are the numbers in row-major order; None for a large tensor, which has `statistics` instead, and perhaps a
    histogram and a sketch. `shape` is always the true one. Row and column labels are plain text (`Z1[0,1]`).

    `decimals` is how many a reader needs who repeats the calculation that this block is part of. `upstream` is what
    multiplies each row of a Jacobian, `product` what comes out below each column.
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
    decimals: int = 4
    upstream: Margin | None = None
    product: Margin | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A gradient as central differences measure it, and how far autograd's is off at most.

    `elements` are the first of its `count` elements (None: not measured, as at a kink), `taken` is how many were
    measured; empty and 0 where the differences were taken along random directions.
    """

    elements: tuple[float | complex | None, ...]
    count: int
    taken: int
    difference: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one check; `difference` is the largest one found, `tolerance` what rounding allows."""

    kind: Kind
    text: Text
    difference: float | None = None
    tolerance: float | None = None
    measured: Measured | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under headers."""

    headers: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    label: str = ""


Block = Paragraph | Equation | Tensor | Verdict | Table


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with its content. `anchor` is unique in the document and the same in all versions of chainrule.

    `code` is Python that recomputes the section's results with torch and asserts that they are the recorded ones. It
    runs after the code of all sections before it in reading order.
    """

    title: Text
    anchor: str
    kind: Literal["overview", "forward", "backward", "update", "note"]
    blocks: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = ()
    code: str = ""

    def walk(self, depth: int = 1) -> Iterator[tuple[int, Section]]:
        """This section and all sections in it, each with its depth, in reading order."""
        waiting = [(depth, self)]
        while waiting:
            level, section = waiting.pop()
            yield level, section
            waiting.extend((level + 1, inner) for inner in reversed(section.sections))


@dataclass(frozen=True, slots=True)
class Row:
    """One value of the step with its gradient: a row of the value table, a vertex of the picture.

    `inputs` are the rows that it was computed from, `module` is the path of the module that it was computed in.
    `forward` and `backward` are the anchors of the sections that work out the value and its gradient; `verdict` is the
    result of the check of its autograd node. `update` is, for a parameter, the norm of the optimizer's change over the
    norm of the parameter before it. `step` is the anchor of the backward step that passes its gradient on,
    `updates` are those of what the optimizers did to a parameter.

    `layout` is whether the operation only lays the numbers of its one input out anew (`view`, `transpose`, `expand`);
    `taken` then has, for each element of a small one, the place of the input's element in row-major order.
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
    step: str | None = None
    updates: tuple[str, ...] = ()
    layout: bool = False
    taken: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """One element of the value, or of the gradient, of one row."""

    row: int
    role: Literal["value", "gradient"]
    index: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Summand:
    """One term of a sum: its value, its factors as text (`dJ/dZ1[0,1]`) with their values, and their sources.

    `numbers` are those of the sources where a factor has several, as a maximum has, and the document no other place
    for them, since their tensor is large.
    """

    value: float
    factors: tuple[tuple[str, float], ...]
    sources: tuple[Source, ...]
    reason: str = ""
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Sum:
    """The terms that add up to one number. Where it is the largest or smallest of some, `chosen` are those: more than
    one at a tie."""

    of: Source
    text: str
    summands: tuple[Summand, ...]
    chosen: tuple[Source, ...] = ()


Operand = Any
"""A slot of a program, a slot read through a table, or a number, as text."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A parameter in a program: what an update makes of it, at the first step and at each later one.

    `state` has, of each tensor that the optimizer keeps of it, its name, its slot, its numbers before the first step
    (empty: there was none), and what the first step and a later one make of it.
    """

    row: int
    first: Operand
    later: Operand
    state: tuple[tuple[str, int, tuple[Any, ...], Operand, Operand], ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """The step as a program of primitive operations (`docs/document.md`), which a page runs again on other numbers.

    Slot i holds `sizes[i]` numbers of the type `types[i]`. `inputs` are the rows whose numbers can be changed, each
    with its slot; `values` and `gradients` say where the numbers of each row are, and what was recorded. `settings` are
    numbers of the optimizers: name, slot, value. `step` is the slot with the number of the step, `updates` what a step
    makes of each parameter; `without` says why there is none. The program holds while each of the `guards` has the
    number beside it. `arriving` has, for each operation that a gradient arrives at, the row of its result and a slot of
    its own that holds the gradient: all that comes back from it is linear in that slot. `carried` are the buffers that
    the forward pass writes to (running means), each with what the next step begins with.
    """

    types: tuple[str, ...]
    sizes: tuple[int, ...]
    constants: tuple[tuple[int, tuple[Any, ...]], ...]
    tables: tuple[tuple[int, ...], ...]
    code: tuple[tuple[Any, ...], ...]
    inputs: tuple[tuple[int, int], ...]
    values: tuple[tuple[int, Operand, tuple[Any, ...]], ...]
    gradients: tuple[tuple[int, Operand, tuple[Any, ...]], ...]
    loss: int
    settings: tuple[tuple[str, int, float], ...] = ()
    step: tuple[int, int] = (-1, 1)
    updates: tuple[Moved, ...] = ()
    without: str = ""
    guards: tuple[tuple[Operand, int], ...] = ()
    arriving: tuple[tuple[int, int], ...] = ()
    carried: tuple[tuple[int, Operand], ...] = ()


@dataclass(frozen=True, slots=True)
class Exercise:
    """What a page can ask for: the value of a row, its gradient, or a parameter after the update (`new W2`).

    `after` are the right numbers of an update; the others are in the row. An answer may be off by `slack` beside its
    own rounding. `rule` says in words how an update comes about. `mistakes` are those of students, the likeliest first:
    the place of its sentence in the document's `slips`, whether it is a plain fact about the number (its sign, a factor
    2), and the numbers that come out.
    """

    asks: Literal["value", "gradient", "update"]
    row: int
    name: str
    slack: float
    mistakes: tuple[tuple[int, bool, tuple[float, ...]], ...]
    after: tuple[float, ...] = ()
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """The report of one recording: sections, and the rows and sums of its value table.

    `program` runs the step again on other numbers, for a page; `without_program` says why a page has none.
    `exercises` are what a page of a small step can ask for, with the sentences of mistakes in `slips`.
    """

    title: Text
    summary: tuple[Block, ...]
    sections: tuple[Section, ...]
    rows: tuple[Row, ...] = ()
    sums: tuple[Sum, ...] = ()
    program: Program | None = None
    without_program: str = ""
    exercises: tuple[Exercise, ...] = ()
    slips: tuple[str, ...] = ()

    def walk(self) -> Iterator[tuple[int, Section]]:
        """Every section with its depth, in reading order."""
        for section in self.sections:
            yield from section.walk()
