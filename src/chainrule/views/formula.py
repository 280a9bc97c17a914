r"""Which formulas a view may hand to a TeX engine as they are.

A user's name stands in a formula inside `\text{...}`, escaped. This is the second lock on that door: a formula with a
command that none of our own formulas uses, or with a character that would end it, is shown as text instead of run.
"""

from __future__ import annotations

import re
import unicodedata

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
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Cn", "Zl", "Zp"))  # control and format characters, and what is no character
_ENVIRONMENTS = frozenset(("cases", "matrix", "pmatrix", "bmatrix", "aligned", "array"))


def is_known(latex: str) -> bool:
    """Whether a formula holds nothing but commands that our own formulas are made of, with its braces in balance."""
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
    """Whether each `begin` has its `end`, and what may only stand between them stands there."""
    depth = 0
    for token in tokens:
        depth += (token == begin) - (token == end)
        if depth < 0 or (token in inside and not depth):
            return False
    return depth == 0
