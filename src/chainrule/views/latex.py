r"""A document as one LaTeX file that a plain TeX Live compiles, with pdfTeX as with LuaTeX.

Formulas go through as they are, if they are made of our own commands alone; all other text is escaped by pylatexenc,
which also knows what characters are called in LaTeX. A character that it does not know stands as `<U+4E2D>`: an error
in the middle of somebody's compile would tell less. Wide matrices are shrunk to the line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

from pylatexenc.latexencode import UnicodeToLatexEncoder

from chainrule import document as doc
from chainrule.numbers import number
from chainrule.views.formula import is_known
from chainrule.views.grid import Grid, about, grids
from chainrule.views.unicode import printable

SUFFIX = ".tex"
HEADINGS = ("section", "subsection", "subsubsection", "paragraph")
HUES = {"value": "forward", "parameter": "forward", "gradient": "backward", "jacobian": "backward"}
_ASCII = frozenset(map(chr, range(32, 127)))
_TEXT_COMMANDS = frozenset(
    """
    ss ae AE oe OE o O aa AA l L i j textendash textemdash textquoteleft textquoteright textquotedblleft textellipsis
    textquotedblright textdegree textmu texteuro texttwosuperior textthreesuperior textperiodcentered texttimes
    """.split()  # noqa: SIM905 (words are read more easily without quotation marks)
)  # what pylatexenc may answer with that LaTeX knows without another package
LINE = 90  # letters of a table's small print that go into a line
TONES = {"plain": "", "note": r"\emph{Note.} ", "warning": r"\textbf{Warning.} "}
PREAMBLE = r"""\documentclass[11pt]{article}
\usepackage[T1]{fontenc}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage[utf8]{inputenc}
\usepackage{textcomp,amsmath,amssymb,graphicx,longtable,xcolor}
\usepackage[margin=2.2cm]{geometry}
\usepackage[hidelinks]{hyperref}
\definecolor{forward}{HTML}{0550AE}
\definecolor{backward}{HTML}{A04100}
\setcounter{MaxMatrixCols}{64}
\setcounter{secnumdepth}{0}
\setlength{\parindent}{0pt}
\setlength{\parskip}{5pt plus 2pt}
\sloppy
% A formula in a line of its own, shrunk where it is wider than the line.
\newcommand{\shown}[1]{\par\smallskip\noindent\hspace*{1em}\resizebox{%
  \ifdim\width>\dimexpr\linewidth-1em\relax\dimexpr\linewidth-1em\relax\else\width\fi}{!}{$\displaystyle #1$}\par}
\newcommand{\said}[1]{\par\smallskip{\small\itshape #1}\nopagebreak}
"""


def written(document: doc.Document) -> str:
    """The document as a `.tex` file."""
    lines = [PREAMBLE + r"\begin{document}", rf"\title{{{_spans(document.title)}}}", r"\author{}\date{}", r"\maketitle"]
    lines += _blocks(document.summary)
    if document.sections:
        lines.append(r"\tableofcontents")
    for depth, section in document.walk():
        heading = HEADINGS[min(depth, len(HEADINGS)) - 1]
        lines += ["", rf"\{heading}{{{_heading(section.title)}}}"]
        lines += _blocks(section.blocks)
    return "\n".join([*lines, r"\end{document}", ""])


def _heading(title: doc.Text) -> str:
    r"""A title, with the words that stand for its formulas in a PDF's bookmarks, which have no mathematics."""
    plain = re.sub(r"[^ -~]", "?", printable("".join(map(_plain, title))))
    return rf"\texorpdfstring{{{_spans(title)}}}{{{_text(plain)}}}"


def _plain(span: doc.Span) -> str:
    return span.latex if isinstance(span, doc.Math) else span.source if isinstance(span, doc.Code) else span


def _blocks(blocks: Sequence[doc.Block]) -> Iterator[str]:
    for block in blocks:
        try:
            write = _WRITE[type(block)]
        except KeyError:
            raise TypeError(
                f"the LaTeX view has no function for a block of type {type(block).__name__}. "
                f"Add one to {__name__}._WRITE."
            ) from None
        yield ""
        yield from write(block)


def _spans(text: doc.Text) -> str:
    return "".join(
        f"${formula(span.latex)}$" if isinstance(span, doc.Math)
        else _code(span.source) if isinstance(span, doc.Code)
        else _text(span)
        for span in text
    )  # fmt: skip


@cache
def _encoder() -> Any:
    return UnicodeToLatexEncoder(unknown_char_policy="unihex", unknown_char_warning=False)


@lru_cache(maxsize=4096)
def _character(char: str) -> str:
    """One character in LaTeX; spelled as `<U+4E2D>` where the fonts of every TeX Live lack it."""
    encoded: str = _encoder().unicode_to_latex(char)
    math = re.fullmatch(r"\\ensuremath\{\\([A-Za-z]+)\}", encoded)
    accent = re.fullmatch(r"\\(?:['`^\"~=.]|[cvuHkr] ?)\{?(?:[A-Za-z]|\\[ij])\}?", encoded)
    command = re.fullmatch(r"\{?\\([A-Za-z]+)\}?", encoded)
    if char in _ASCII or accent or (math and is_known(encoded[11:])) or (command and command[1] in _TEXT_COMMANDS):
        return encoded
    return rf"{{\textless}}U+{ord(char):04X}{{\textgreater}}"


def _text(text: str) -> str:
    """User's or our own text: nothing in it is a command, and no pair of characters becomes another (`--`)."""
    encoded = "".join(map(_character, printable(text)))
    return re.sub(r"([-<>',`!?])(?=[-<>',`])", r"\1{}", encoded)


def _code(source: str) -> str:
    """Code in a typewriter font, which may break after a point, a comma or a bracket."""
    parts = re.split(r"(?<=[._,(=/])", source)
    return r"\texttt{" + r"\allowbreak{}".join(map(_text, parts)) + "}"


def formula(latex: str) -> str:
    """A formula as it is; as text where it is none of ours. Characters that TeX's fonts lack are spelled."""
    if not is_known(latex):
        return rf"\text{{{_text(latex)}}}"
    return re.sub(r"[^\x00-\x7f]+", lambda match: rf"\text{{{_text(match[0])}}}", latex)


def _paragraph(block: doc.Paragraph) -> list[str]:
    return [TONES[block.tone] + _spans(block.text)]


def _equation(block: doc.Equation) -> list[str]:
    said = [rf"\said{{{_text(block.label)}}}"] if block.label else []
    return [*said, rf"\shown{{{formula(block.latex)}}}"]


def _verdict(block: doc.Verdict) -> list[str]:
    figures = [
        f"{name} {number(figure)}"
        for name, figure in (("largest difference", block.difference), ("tolerance", block.tolerance))
        if figure is not None
    ]
    words = rf"\textbf{{{_text(block.kind)}}}" + (": " + _spans(block.text) if block.text else "")
    return [words + (_text(f" ({', '.join(figures)})") if figures else "")]


def _table(block: doc.Table) -> list[str]:
    lines = [rf"\said{{{_text(block.label)}}}"] if block.label else []
    lines += [rf"{{\footnotesize\setlength{{\tabcolsep}}{{3pt}}\begin{{longtable}}{{@{{}}{_columns(block)}@{{}}}}"]
    lines += [" & ".join(rf"\textbf{{{_text(header)}}}" for header in block.headers) + r" \\ \hline", r"\endhead"]
    lines += [r" & ".join(map(_spans, row)) + r" \\" for row in block.rows]
    return [*lines, r"\end{longtable}}"]


def _columns(block: doc.Table) -> str:
    """Columns as wide as what is in them, where all fit into the line; else parts of the line, and broken cells."""
    cells = zip(*(tuple("".join(map(_plain, cell)) for cell in row) for row in block.rows), strict=True)
    columns = list(cells) or [()] * len(block.headers)
    widths = [max(map(len, (header, *column))) for header, column in zip(block.headers, columns, strict=True)]
    if sum(width + 1 for width in widths) <= LINE:
        return "l" * len(widths)
    shares = [min(max(width, 6), 40) for width in widths]
    return "".join(rf"p{{{0.9 * share / sum(shares):.3f}\linewidth}}" for share in shares)


def _tensor(block: doc.Tensor) -> Iterator[str]:
    symbol = formula(block.symbol)
    said = _text(about(block))
    if said:
        yield rf"\said{{{said}}}"
    if block.entries is None:
        statistics = ", ".join(f"{name} {number(figure)}" for name, figure in block.statistics)
        yield rf"${symbol}$: {_text(statistics)}"
        return
    hue = HUES[block.role]
    if not block.shape:
        yield rf"\shown{{{symbol} = {_hued(_matrix_entry(number(block.entries[0])), hue)}}}"
        return
    if not block.entries:
        yield rf"\shown{{{symbol} = [\,]}}"
    for grid in grids(block):
        index = rf"_{{[{','.join(map(str, grid.index))}]}}" if grid.index else ""
        if grid.is_part:
            yield _text(f"columns {grid.first} to {grid.first + len(grid.rows[0]) - 1}:")
        yield rf"\shown{{{{{symbol}}}{index} = {_matrix(grid, hue)}}}"


def _matrix(grid: Grid, hue: str) -> str:
    """Numbers in brackets; with labels a table of them, a line between labels and numbers."""
    rows = [" & ".join(map(_matrix_entry, row)) for row in grid.rows]
    columns = "r" * len(grid.rows[0])
    if not grid.row_labels and not grid.column_labels:
        return _hued(rf"\left[\begin{{array}}{{{columns}}} " + r" \\ ".join(rows) + r" \end{array}\right]", hue)
    labels = grid.row_labels or ("",) * len(rows)
    body = [rf"{_label(label)} & {row}" for label, row in zip(labels, rows, strict=True)]
    head = "".join(f" & {_label(label)}" for label in grid.column_labels)
    head = rf"{head} \\ \hline " if head else ""
    return _hued(rf"\begin{{array}}{{r|{columns}}} {head}" + r" \\ ".join(body) + r" \end{array}", hue)


def _hued(latex: str, hue: str) -> str:
    return rf"{{\color{{{hue}}}{latex}}}"


def _label(label: str) -> str:
    return rf"\text{{\scriptsize {_text(label)}}}" if label else ""


def _matrix_entry(text: str) -> str:
    r"""A written number in mathematics: `1.23e-05` with its power of ten, `inf` and `True` as words."""
    if re.fullmatch(r"-?[\d.]+", text):
        return text
    power = re.fullmatch(r"(-?[\d.]+)e([+-]\d+)", text)
    return rf"{power[1]}\cdot 10^{{{int(power[2])}}}" if power else rf"\text{{{_text(text)}}}"


_WRITE: dict[type, Callable[[Any], Sequence[str] | Iterator[str]]] = {
    doc.Paragraph: _paragraph,
    doc.Equation: _equation,
    doc.Tensor: _tensor,
    doc.Verdict: _verdict,
    doc.Table: _table,
}
