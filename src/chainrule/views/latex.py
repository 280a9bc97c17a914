r"""A document as one LaTeX file that a plain TeX Live compiles, with pdfTeX or LuaTeX.

Formulas that consist of our own commands alone are written unchanged; all other text is escaped by pylatexenc, which
also knows the LaTeX names of characters. An unknown character becomes `<U+4E2D>`, which says more than an error in the
middle of a compilation. Wide matrices are shrunk to the line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

from pylatexenc.latexencode import UnicodeToLatexEncoder

from chainrule import document as doc
from chainrule.numbers import number
from chainrule.views.blocks import Grid, about, compared, grids, plain, printable, statistics, writer_of
from chainrule.views.formula import is_known

SUFFIX = ".tex"
HEADINGS = ("section", "subsection", "subsubsection", "paragraph")
HUES = {"value": "forward", "parameter": "forward", "gradient": "backward", "jacobian": "backward"}
_ASCII = frozenset(map(chr, range(32, 127)))
_TEXT_COMMANDS = frozenset(
    """
    ss ae AE oe OE o O aa AA l L i j textendash textemdash textquoteleft textquoteright textquotedblleft textellipsis
    textquotedblright textdegree textmu texteuro texttwosuperior textthreesuperior textperiodcentered texttimes
    """.split()  # noqa: SIM905 (words are read more easily without quotation marks)
)  # commands that pylatexenc may return and that need no further package
LONG = 12  # characters of a name that may break
LINE = 90  # characters of a table's small print that fit on a line
TONES = {"plain": "", "note": r"\emph{Note.} ", "warning": r"\textbf{Warning.} ", "error": r"\textbf{Error.} "}
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
% A formula on a line of its own, shrunk if it is wider than the line.
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


def fragment(section: doc.Section) -> str:
    """A section for a notebook that becomes a PDF; it defines the few commands that it needs."""
    commands = re.sub(r"\\newcommand", r"\\providecommand", PREAMBLE[PREAMBLE.index("% A formula") :])
    colours = "\n".join(line for line in PREAMBLE.splitlines() if line.startswith(r"\definecolor"))
    lines = [colours, commands]
    for _, each in section.walk():
        lines += ["", rf"\textbf{{{_spans(each.title)}}}"] if each.title else []
        lines += _blocks(each.blocks)
    return "\n".join(lines)


def _heading(title: doc.Text) -> str:
    r"""A title, with plain text for the bookmarks of a PDF, which have no mathematics."""
    bookmark = re.sub(r"[^ -~]", "?", printable(plain(title)))
    return rf"\texorpdfstring{{{_spans(title)}}}{{{_text(bookmark)}}}"


def _blocks(blocks: Sequence[doc.Block]) -> Iterator[str]:
    for block in blocks:
        yield ""
        yield from writer_of(block, _WRITERS, __name__)(block)


def _spans(text: doc.Text) -> str:
    return "".join(
        f"${formula(span.latex)}$" if isinstance(span, doc.Math)
        else _code(span.source) if isinstance(span, doc.Code)
        else _words(span)
        for span in text
    )  # fmt: skip


@cache
def _encoder() -> Any:
    return UnicodeToLatexEncoder(unknown_char_policy="unihex", unknown_char_warning=False)


@lru_cache(maxsize=4096)
def _character(char: str) -> str:
    """One character in LaTeX, or `<U+4E2D>` if TeX Live's fonts lack it."""
    if char == "✗":
        return r"\ensuremath{\times}"
    encoded: str = _encoder().unicode_to_latex(char)
    math = re.fullmatch(r"\\ensuremath\{\\([A-Za-z]+)\}", encoded)
    accent = re.fullmatch(r"\\(?:['`^\"~=.]|[cvuHkr] ?)\{?(?:[A-Za-z]|\\[ij])\}?", encoded)
    command = re.fullmatch(r"\{?\\([A-Za-z]+)\}?", encoded)
    if char in _ASCII or accent or (math and is_known(encoded[11:])) or (command and command[1] in _TEXT_COMMANDS):
        return encoded
    return rf"{{\textless}}U+{ord(char):04X}{{\textgreater}}"


def _text(text: str) -> str:
    """Text from the user or from us: nothing in it is a command, and no pair of characters is a ligature (`--`)."""
    encoded = "".join(map(_character, printable(text)))
    return re.sub(r"([-<>',`!?])(?=[-<>',`])", r"\1{}", encoded)


def _words(text: str) -> str:
    """Text in which a long name may break after a dot or an underscore."""
    parts = re.split(r"(?<=[._])(?=[A-Za-z])", text) if re.search(rf"\S{{{LONG}}}", text) else [text]
    return r"\allowbreak{}".join(map(_text, parts))


def _code(source: str) -> str:
    """Code in a typewriter font, which may break after a dot, a comma or a bracket."""
    parts = re.split(r"(?<=[._,(=/])", source)
    return r"\texttt{" + r"\allowbreak{}".join(map(_text, parts)) + "}"


def formula(latex: str) -> str:
    """A formula of ours unchanged, any other as text. Characters that TeX's fonts lack become their code points."""
    if not is_known(latex):
        return rf"\text{{{_text(latex)}}}"
    return re.sub(r"[^\x00-\x7f]+", lambda match: rf"\text{{{_text(match[0])}}}", latex)


def _paragraph(block: doc.Paragraph) -> list[str]:
    return [TONES[block.tone] + _spans(block.text)]


def _equation(block: doc.Equation) -> list[str]:
    said = [rf"\said{{{_text(block.label)}}}"] if block.label else []
    return [*said, rf"\shown{{{formula(block.latex)}}}"]


def _verdict(block: doc.Verdict) -> list[str]:
    words = rf"\textbf{{{_text(block.kind)}}}" + (": " + _spans(block.text) if block.text else "")
    return [words + _text(compared(block))]


def _table(block: doc.Table) -> list[str]:
    lines = [rf"\said{{{_text(block.label)}}}"] if block.label else []
    lines += [rf"{{\footnotesize\setlength{{\tabcolsep}}{{3pt}}\begin{{longtable}}{{@{{}}{_columns(block)}@{{}}}}"]
    lines += [" & ".join(rf"\textbf{{{_words(header)}}}" for header in block.headers) + r" \\ \hline", r"\endhead"]
    lines += [r" & ".join(map(_spans, row)) + r" \\" for row in block.rows]
    return [*lines, r"\end{longtable}}"]


def _columns(block: doc.Table) -> str:
    """Columns as wide as their content if all fit on the line; else shares of the line, with line breaks in cells."""
    cells = zip(*(map(plain, row) for row in block.rows), strict=True)
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
        yield rf"${symbol}$: {_text(statistics(block))}"
        return
    hue = HUES[block.role]
    if not block.shape:
        yield rf"\shown{{{symbol} = {_hued(_matrix_entry(number(block.entries[0], block.decimals)), hue)}}}"
        return
    if not block.entries:
        yield rf"\shown{{{symbol} = [\,]}}"
    for grid in grids(block):
        index = f"[{','.join(map(str, grid.index))}]"
        named = rf"{{{{}}{symbol}}}_{{{index}}}" if grid.index else f"{{{symbol}}}"  # TeX drops braces around an accent
        if grid.is_part:
            yield _text(f"{grid.span}:")
        yield rf"\shown{{{named} = {_matrix(block, grid, hue)}}}"


def _matrix(block: doc.Tensor, grid: Grid, hue: str) -> str:
    """Numbers in brackets; with labels a table, with lines between its labels, numbers and margins."""
    rows = [" & ".join(map(_matrix_entry, row)) for row in grid.rows]
    columns = "r" * len(grid.rows[0])
    if not grid.row_labels and not grid.column_labels:
        return _hued(rf"\left[\begin{{array}}{{{columns}}} " + r" \\ ".join(rows) + r" \end{array}\right]", hue)
    labels = grid.row_labels or ("",) * len(rows)
    body = [rf"{_label(label)} & {row}" for label, row in zip(labels, rows, strict=True)]
    head = "".join(f" & {_label(label)}" for label in grid.column_labels)
    last = ""
    if block.product is not None:
        last = rf" \\ \hline {_small(block.product.symbol)} & " + " & ".join(map(_matrix_entry, grid.product))
    if block.upstream is not None:
        body = [f"{_matrix_entry(each)} & {row}" for each, row in zip(grid.upstream, body, strict=True)]
        head, columns = f"{_small(block.upstream.symbol)} & {head}", "r|" + columns
        last = last.replace(r"\hline ", r"\hline & ", 1)
    head = rf"{head} \\ \hline " if head else ""
    return _hued(rf"\begin{{array}}{{r|{columns}}} {head}" + r" \\ ".join(body) + last + r" \end{array}", hue)


def _small(symbol: str) -> str:
    return rf"{{\scriptstyle {formula(symbol)}}}"


def _hued(latex: str, hue: str) -> str:
    return rf"{{\color{{{hue}}}{latex}}}"


def _label(label: str) -> str:
    return rf"\text{{\scriptsize {_text(label)}}}" if label else ""


def _matrix_entry(text: str) -> str:
    r"""A number in mathematics: `1.23e-05` as a power of ten, `inf` and `True` as words."""
    if re.fullmatch(r"-?[\d.]+", text):
        return text
    power = re.fullmatch(r"(-?[\d.]+)e([+-]\d+)", text)
    return rf"{power[1]}\cdot 10^{{{int(power[2])}}}" if power else rf"\text{{{_text(text)}}}"


_WRITERS: dict[type, Callable[[Any], Sequence[str] | Iterator[str]]] = {
    doc.Paragraph: _paragraph,
    doc.Equation: _equation,
    doc.Tensor: _tensor,
    doc.Verdict: _verdict,
    doc.Table: _table,
}
