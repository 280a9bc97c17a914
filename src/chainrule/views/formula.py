r"""Formulas: which ones a TeX engine may run, and each as plain text.

A user's name in a formula is escaped inside `\text{...}`. `is_known` is the second lock on that door: a view shows a
formula as text unless it consists of the commands of our own formulas alone.

As plain text, `{W^{[1]}}^{T}` becomes `W1ᵀ`, and a fraction of ∂'s `dJ/dW1`. pylatexenc parses the LaTeX and knows the
symbols; this module binds scripts to their base, adds the brackets that one line needs, and sets the spaces between
operators. All text leaves through `printable`, so no formula can move the cursor or colour the screen.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, Literal

from pylatexenc import latexwalker
from pylatexenc.latex2text import LatexNodes2Text
from pylatexenc.macrospec import MacroSpec

from chainrule.views.blocks import printable
from chainrule.views.forms import numbers_apart

_COMMANDS = frozenset(
    """
    text textbackslash textasciitilde textasciicircum mathrm mathbf mathbb mathcal operatorname left right quad qquad
    frac tfrac dfrac binom sqrt hat bar tilde overline underline sum prod int partial nabla infty cdot cdots ldots dots
    times odot oplus otimes pm mp div le leq ge geq neq ne approx sim in notin to leftarrow rightarrow mapsto mid land
    lor lnot forall exists star circ prime ell lfloor rfloor lceil rceil lVert rVert lvert rvert langle rangle bmod mod
    begin end min max arg sup inf lim log ln exp det gcd Pr sin cos tan sinh cosh tanh arcsin arccos arctan sec csc cot
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau
    upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega backslash displaystyle
    """.split()  # noqa: SIM905 (words are read more easily without quotation marks)
)
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Cn", "Zl", "Zp"))  # control and format characters, and unassigned code points
_ENVIRONMENTS = frozenset(("cases", "matrix", "pmatrix", "bmatrix", "aligned", "array"))

# The characters that Unicode has raised and lowered, look-alikes from other scripts apart.
_RAISED = dict(
    zip(
        "()*+-0123456789=−ABDEGHIJKLMNOPRTUVWabcdefghijklmnoprstuvwxyzβγδφχ",
        "⁽⁾*⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹⁼⁻ᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᵝᵞᵟᵠᵡ",
        strict=True,
    )
)
_LOWERED = dict(zip("()+-0123456789=−aehijklmnoprstuvxβγρφχ", "₍₎₊₋₀₁₂₃₄₅₆₇₈₉₌₋ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓᵦᵧᵨᵩᵪ", strict=True))

_ACCENTS = {"hat": "\u0302", "bar": "\u0304", "tilde": "\u0303", "dot": "\u0307", "ddot": "\u0308", "vec": "\u20d7"}
_ACCENTS |= {"widehat": "\u0302", "overline": "\u0304", "widetilde": "\u0303"}
_NAMES = {"text", "mathrm", "texttt", "textbf", "textit", "textrm", "mathtt", "mathsf", "mbox"}
_BARE = {"mathbf", "boldsymbol", "bm", "mathit"}
_FRACTIONS = {"frac", "dfrac", "tfrac", "cfrac"}
_OPENING = {"left", "bigl", "Bigl", "biggl", "Biggl"}
_CLOSING = {"right", "bigr", "Bigr", "biggr", "Biggr"}
_SPACES = {",", ";", ":", "!", " ", ">", "thinspace"}
_DISCARDED = {"displaystyle", "textstyle", "limits", "nolimits", "nonumber", "notag", "middle", "big", "Big", "&"}
_MATRICES = {"matrix", "pmatrix", "bmatrix", "vmatrix", "smallmatrix", "array"}
_SYMBOLS = {"partial": "d", "sum": "Σ", "prod": "Π", "epsilon": "ε", "cdot": "·", "mid": "|", "top": "T"}
_SYMBOLS |= {"land": "∧", "lor": "∨", "ne": "≠", "prime": "'", "|": "‖", "lt": "<", "gt": ">"}
_SYMBOLS |= {"bmod": "mod", "lVert": "‖", "rVert": "‖", "lvert": "|", "rvert": "|"}
Kind = Literal[
    "operand", "fraction", "operator", "sign", "open", "close", "comma", "function", "sum", "tight", "wide", "words"
]
_KINDS: dict[str, Kind] = {"partial": "tight", "sum": "sum", "prod": "sum", "int": "sum", "mid": "operator"}
_KINDS |= {"bmod": "operator"}
_KINDS |= {"lVert": "open", "lvert": "open", "rVert": "close", "rvert": "close"}
_LONG_WORD = re.compile(r"[A-Za-z]{5}")  # hard to read raised or lowered
_ONE_WORD = re.compile(r"[\w.]+|.")
_NO_OPERATORS = "∇∞∅∀∃∫√⊤⊥|‖"
_MORE_OPERATORS = "-*·↦⋯"


def is_known(latex: str) -> bool:
    """Whether a formula consists of commands of our own formulas alone, with balanced braces and environments."""
    commands = re.findall(r"\\([A-Za-z]+|.)", latex, re.DOTALL)
    if any(len(command) > 1 and command not in _COMMANDS for command in commands) or latex.endswith("\\"):
        return False
    if any(name not in _ENVIRONMENTS for name in re.findall(r"\\(?:begin|end)\s*\{?([^}]*)", latex)):
        return False
    bare = re.sub(r"\\[^A-Za-z]", "", latex)
    if re.search(r"[$%#`~]|\^\^", bare) or any(unicodedata.category(char) in _UNSEEN for char in latex):
        return False
    return (
        _balanced(re.findall(r"[{}]", bare), "{", "}")
        and _balanced(re.findall(r"\\left(?![a-z])|\\right(?![a-z])", latex), r"\left", r"\right")
        and _balanced(re.findall(r"\\begin|\\end|&|\\\\", latex), r"\begin", r"\end", inside=("&", r"\\"))
    )


def _balanced(tokens: list[str], begin: str, end: str, inside: tuple[str, ...] = ()) -> bool:
    """Whether each `begin` has its `end`, and the `inside` tokens occur only between them."""
    depth = 0
    for token in tokens:
        depth += (token == begin) - (token == end)
        if depth < 0 or (token in inside and not depth):
            return False
    return depth == 0


@cache
def _macros() -> Any:
    """The arguments of macros, for the parser: its own table and ours. Not built on import, because it is slow."""
    known = latexwalker.get_default_latex_context_db()
    known.add_context_category(
        "chainrule",
        prepend=True,
        macros=[MacroSpec("operatorname", "*{")]
        + [MacroSpec(name, "{") for name in sorted(_NAMES | _BARE | set(_ACCENTS))]
        + [MacroSpec(name, "{{") for name in sorted(_FRACTIONS | {"binom"})],
    )
    return known


@cache
def _symbol_table() -> LatexNodes2Text:
    return LatexNodes2Text()


def latex(source: str) -> str:
    r"""One formula as plain text; `\begin{aligned}` may give several lines.

    Never raises: text that is not LaTeX is returned unchanged.
    """
    try:
        text = _convert(source) or source
    except Exception:  # one malformed formula must not fail a whole report
        text = source
    return "\n".join(printable(line) for line in text.splitlines())


@dataclass(frozen=True, slots=True)
class _Atom:
    """A piece of a formula that is not split again. `gap`: the source had a space in front of it."""

    text: str
    kind: Kind = "operand"
    gap: bool = False


def _convert(source: str) -> str:
    """One formula, through that of the same form with other numbers: a deep model has thousands of these, in few forms.

    An index (`^{[3]}`, `^{(3)}`, `_{3}`), too, is parsed as another number, and put back into the text.
    """
    if "8473" in source:
        return _converted(source)
    form, numbers = numbers_apart(source, lambda place: str(HIDDEN + place))

    def hidden(found: re.Match[str]) -> str:
        if found[2] not in numbers:
            numbers.append(found[2])
        return f"{found[1]}{HIDDEN + numbers.index(found[2])}{found[3]}"

    form = _INDEX.sub(hidden, form)
    if len(numbers) > 999:
        return _converted(source)
    return _HIDDEN.sub(lambda found: _put_back(found[0], numbers), _converted(form))


HIDDEN = 8_473_000
_INDEX = re.compile(r"([\^_]\{[\[(]?)(\d+)([\])]?\})")
_DIGITS = "0123456789"
_UPPER, _LOWER = "⁰¹²³⁴⁵⁶⁷⁸⁹", "₀₁₂₃₄₅₆₇₈₉"
_HIDDEN = re.compile("8473[0-9]{3}|⁸⁴⁷³[⁰¹²³⁴⁵⁶⁷⁸⁹]{3}|₈₄₇₃[₀₁₂₃₄₅₆₇₈₉]{3}")


def _put_back(text: str, numbers: list[str]) -> str:
    digits = next(each for each in (_DIGITS, _UPPER, _LOWER) if text[0] in each)
    place = int(text.translate(str.maketrans(digits, _DIGITS))) - HIDDEN
    return numbers[place].translate(str.maketrans(_DIGITS, digits))


@lru_cache(maxsize=4096)
def _converted(source: str) -> str:
    nodes, _, _ = latexwalker.LatexWalker(source, latex_context=_macros()).get_latex_nodes()
    return _join(_atoms(nodes)).rstrip()


def _text(node: Any) -> str:
    """One node, or the inside of a group, as text."""
    return _join(_atoms(_inside(node)))


def _inside(node: Any) -> list[Any]:
    if node is None:
        return []
    group = isinstance(node, latexwalker.LatexGroupNode) and node.delimiters[0] == "{"
    return list(node.nodelist) if group else [node]


def _pieces(nodes: Sequence[Any]) -> Iterator[Any]:
    """The nodes, with runs of characters cut into numbers, single characters, and spaces."""
    for node in nodes:
        if isinstance(node, latexwalker.LatexCharsNode):
            yield from re.findall(r"\d+(?:\.\d+)?|\s+|.", node.chars)
        elif isinstance(node, latexwalker.LatexSpecialsNode):
            yield from " " if node.specials_chars == "~" else node.specials_chars
        elif not isinstance(node, latexwalker.LatexCommentNode):
            yield node


def _atoms(nodes: Sequence[Any]) -> list[_Atom]:
    reader = _Reader()
    for piece in _pieces(nodes):
        reader.take(piece)
    reader.bind()
    return [atom for atom in reader.atoms if atom.text]


class _Reader:
    """Turns pieces into atoms; its state is what one piece means for the next."""

    def __init__(self) -> None:
        self.atoms: list[_Atom] = []
        self.scripts: dict[str, str] = {}  # scripts of the last atom, bound once both are known
        self.script = ""  # `^` or `_`, where the next piece is one
        self.bracket: Literal["", "open", "close"] = ""  # the next piece is a bracket of `left` or `right`
        self.gap = False

    def take(self, piece: Any) -> None:
        char = piece if isinstance(piece, str) else ""
        name = getattr(piece, "macroname", "")
        if char.isspace() or name in _SPACES:
            self.gap = True
        elif self.script:
            self.scripts[self.script] = self.scripts.get(self.script, "") + (char or _text(piece))
            self.script = ""
        elif char and char in "^_":
            self.script, self.gap = char, False
        elif char == "'":
            self.scripts["^"] = self.scripts.get("^", "") + char
        elif name in _OPENING | _CLOSING:
            self.bind()
            self.bracket = "open" if name in _OPENING else "close"
        elif char != "&" and name not in _DISCARDED:
            self.bind()
            self.atoms.append(self.placed(_character(char, self.atoms) if char else _node(piece)))
            self.bracket, self.gap = "", False
        self.gap = self.gap or bool(getattr(piece, "macro_post_space", ""))

    def placed(self, atom: _Atom) -> _Atom:
        """`atom` with the kind that its position gives it: a bracket of `left`, or a sign rather than an operator."""
        signs = self.atoms[-1].kind not in ("operand", "fraction", "close", "words") if self.atoms else True
        if self.bracket:
            return _Atom(atom.text.replace(".", ""), self.bracket, self.gap)
        if atom.kind == "operator" and atom.text in "+-±∓" and signs:
            return _Atom(atom.text, "sign", self.gap)
        return replace(atom, gap=self.gap)

    def bind(self) -> None:
        if self.scripts:
            base = self.atoms.pop() if self.atoms else _Atom("")
            self.atoms.append(_scripted(base, self.scripts.get("_", ""), self.scripts.get("^", "")))
            self.scripts = {}


def _character(char: str, before: Sequence[_Atom]) -> _Atom:
    """A character or a number."""
    if char in ("|", "‖"):  # the same character opens and closes
        opened = sum(atom.text[0] == char for atom in before if atom.text and atom.kind in ("open", "close"))
        return _Atom(char, "close" if opened % 2 else "open")
    return _Atom(char, _kind_of(char))


def _kind_of(char: str) -> Kind:
    category = unicodedata.category(char[0])
    if char in (",", ";"):
        return "comma"
    if char == "/":
        return "tight"
    if char in "¬∇":
        return "sign"
    if (category == "Sm" and char not in _NO_OPERATORS) or char in _MORE_OPERATORS:
        return "operator"
    return "open" if category == "Ps" else "close" if category == "Pe" else "operand"


def _node(node: Any) -> _Atom:
    if isinstance(node, latexwalker.LatexMacroNode):
        return _macro(node)
    if isinstance(node, latexwalker.LatexEnvironmentNode):
        return _environment(node)
    inner = _atoms(node.nodelist)
    if isinstance(node, latexwalker.LatexGroupNode) and node.delimiters[0] != "{":
        return _Atom(node.delimiters[0] + _join(inner) + node.delimiters[1])
    return inner[0] if len(inner) == 1 else _Atom(_join(inner))


def _macro(node: Any) -> _Atom:
    name = node.macroname
    arguments = node.nodeargd.argnlist if node.nodeargd and node.nodeargd.argnlist else []
    if name in _FRACTIONS:
        return _fraction(*arguments)
    if name == "sqrt":
        root = _atoms(_inside(arguments[1]))
        body = _join(root)
        return _Atom(
            _raise(_text(arguments[0])) + "√" + (body if len(root) == 1 and not _compound(body) else f"({body})")
        )
    if name in _ACCENTS:
        return _Atom(_accented(name, _text(arguments[0])))
    if name in _NAMES or name == "operatorname":
        text = _symbol_table().nodelist_to_text(_inside(arguments[-1]))
        kind: Kind = "function" if name == "operatorname" else "words" if " " in text else "operand"
        return _Atom(text.strip(), kind)
    if name in _BARE:
        return _Atom(_text(arguments[0]))
    if name == "binom":
        return _Atom(f"C({_text(arguments[0])}, {_text(arguments[1])})")
    if name in ("quad", "qquad"):
        return _Atom("   ", "wide")
    if name == "\\":
        return _Atom("\n", "wide")
    text = _SYMBOLS.get(name) or _symbol_table().macro_node_to_text(node).strip() or name
    if name in _KINDS:
        return _Atom(text, _KINDS[name])
    if text == name and text.isalpha():  # \log, \max, and unknown macros
        return _Atom(text, "function" if len(text) > 1 else "operand")
    return _Atom(text, _kind_of(text) if len(text) == 1 else "operand")


def _environment(node: Any) -> _Atom:
    rows = [[_join(_atoms(cell)) for cell in row] for row in _rows(node.nodelist)]
    name = node.environmentname
    if name in ("cases", "dcases", "rcases"):
        return _Atom("{" + ", ".join(_case(*row) for row in rows) + "}")
    if name in _MATRICES:
        lines = [f"[{', '.join(row)}]" for row in rows]
        return _Atom(f"[{', '.join(lines)}]" if len(lines) > 1 else lines[0] if lines else "[]")
    indent = max((len(row[0]) for row in rows), default=0)
    return _Atom("\n".join(" ".join([row[0].rjust(indent), *row[1:]]).rstrip() for row in rows))


def _rows(nodes: Sequence[Any]) -> list[list[list[Any]]]:
    r"""The nodes of an environment, cut at `\\` and `&`; an empty last row is none."""
    rows: list[list[list[Any]]] = [[[]]]
    for node in nodes:
        if getattr(node, "macroname", "") == "\\":
            rows.append([[]])
        elif getattr(node, "specials_chars", "") == "&":
            rows[-1].append([])
        else:
            rows[-1][-1].append(node)
    return rows if _join(_atoms([node for cell in rows[-1] for node in cell])) else rows[:-1]


def _case(value: str, *condition: str) -> str:
    when = " ".join(condition).strip()
    if not when:
        return value
    return f"{value} {when}" if re.match(r"(if|for|when|where|otherwise|else)\b", when) else f"{value} if {when}"


def _fraction(numerator: Any, denominator: Any) -> _Atom:
    below = _atoms(_inside(denominator))
    product = any(
        left.kind in ("operand", "close") and left.text != "d" and right.kind == "operand"
        for left, right in pairwise(below)
    )
    over, under = _text(numerator), _join(below)
    over = f"({over})" if _compound(over) else over
    under = f"({under})" if product or _compound(under) else under
    return _Atom(f"{over}/{under}", "fraction")


def _compound(text: str) -> bool:
    """Whether `text` needs brackets as a factor: it has a space or a slash outside all brackets."""
    depth = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if depth == 0 and char in " /":
            return True
    return False


def _accented(name: str, text: str) -> str:
    """A lone letter gets the combining mark (`W̄1`); a word, on which it would be hard to see, becomes `bar(word)`."""
    if re.fullmatch(r"[^\W\d_][^A-Za-z]*", text):
        return unicodedata.normalize("NFC", text[0] + _ACCENTS[name]) + text[1:]
    return f"{name.removeprefix('wide').replace('overline', 'bar')}({text})"


def _scripted(base: _Atom, below: str, above: str) -> _Atom:
    """`base` with its scripts: a layer's number `[1]` becomes part of the name, so that `W^{[1]}` reads `W1`."""
    brackets = base.kind in ("operand", "fraction") and _compound(base.text) and not base.text.startswith("{")
    text = f"({base.text})" if brackets else base.text
    layer = re.match(r"\[([^\[\],]*)\]", above)
    if layer and text[:1].isalpha() and text != "e":  # the exponent of a number, or of e, may be a vector
        text, above = text + layer[1].replace(" ", ""), above[layer.end() :]
    if below.isdigit() and text[-1:].isdigit():
        text += f"[{below}]"
    elif below:
        text += _lower(below, indexed=base.kind not in ("sum", "function"))
    return replace(base, text=text + _raise(above), kind="operand" if base.kind == "fraction" else base.kind)


def _lower(text: str, indexed: bool) -> str:
    """`text` as a subscript. `indexed`: a letter, and what cannot be lowered, becomes an index in square brackets."""
    tight = re.sub(r"(?<! mod) (?!mod )", "", text)
    if indexed and len(tight) == 1 and tight.isalpha() and tight.isascii() and tight != "t":  # t counts steps
        return f"[{tight}]"  # as in tables
    if all(char in _LOWERED for char in tight) and not _LONG_WORD.search(tight):
        return "".join(_LOWERED[char] for char in tight)
    if _ONE_WORD.fullmatch(text):
        return f"_{text}"
    return f"[{tight}]" if indexed else f"_({text})"


def _raise(text: str) -> str:
    tight = text.replace(" ", "").replace("⊤", "T")
    plain = tight.rstrip("'*")
    if all(char in _RAISED for char in plain) and not _LONG_WORD.search(plain):
        return "".join(_RAISED[char] for char in plain) + tight[len(plain) :]
    return f"^{text}" if _ONE_WORD.fullmatch(text) else f"^({text})"


def _join(atoms: Sequence[_Atom]) -> str:
    text = atoms[0].text if atoms else ""
    for left, right in pairwise(atoms):
        if left.kind == "function" and right.kind == "fraction":
            text += f"({right.text})"
        else:
            text += _between(left, right) + right.text
    return text


def _between(left: _Atom, right: _Atom) -> str:
    """The separator of two neighbours: nothing, a space, or a product sign where they would be misread."""
    kinds = {left.kind, right.kind}
    call = left.kind == "function" and right.kind == "open"
    stroke = right.kind == "tight" and right.text == "/"
    if left.kind in ("open", "sign", "tight") or right.kind in ("close", "comma") or "wide" in kinds or call or stroke:
        return ""
    if "words" in kinds:
        return "" if right.text[0] in ",.;:" else " "
    numbers = left.kind == "operand" and left.text[0].isdigit() and right.text[0].isdigit()
    if numbers or ("fraction" in kinds and kinds <= {"operand", "fraction", "open", "close"}):
        return " · "
    if right.gap or kinds & {"operator", "comma", "function", "sum"}:
        return " "
    names = len(right.text) > 1 or (len(left.text) > 1 and left.kind == "operand")
    return " " if names and right.kind != "open" and not left.text.isdigit() else ""
