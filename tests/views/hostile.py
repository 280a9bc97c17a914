"""Names that try to break out of whatever they stand in, and a document in which each stands everywhere."""

from chainrule.document import (
    Code,
    Document,
    Equation,
    Math,
    Paragraph,
    Row,
    Section,
    Table,
    Tensor,
    Verdict,
)

NAMES = (
    "</script><img src=x onerror=alert(1)>",
    "<b>&amp;</b>",
    "$x$ $$y$$ \\(z\\) \\[w\\]",
    "\\input{/etc/passwd}",
    "^^5cinput{/etc/passwd}",
    "\\immediate\\write18{touch pwned}",
    "\\end{document}",
    "`rm` ```math\nx\n```",
    "[link](javascript:alert(1)) ![image](http://example.com/x.png)",
    "http://example.com www.example.com @someone",
    "a_b^c~d#e%f&g{h}i|j",
    "\x1b[31mred\x1b[0m\x07",
    "a\nb\r\nc\u2028d",
    "\u202eleft\u200b \ufffe \ud800",
    "}{",
    "\\",
    "é ß π Ж 中文 🎉 ∂ ≤",
    "# heading",
    "- item",
    "1. item",
    "---",
    "'''; import os; os.system('touch pwned') #",
)


ESCAPED = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"} | {
    each: "\\" + each for each in "{}_$%&#"
}


def escape(text: str) -> str:
    """Plain text inside LaTeX's `\\text{...}`, as the symbols of a recording are written."""
    return "".join(ESCAPED.get(each, each) for each in text)


def document(name: str) -> Document:
    """The name as a word, as code, in a formula and as a whole formula, in every field that holds text."""
    text = rf"\text{{{escape(name)}}}"
    spans = (name, Code(name), " and ", Math(text), " and ", Math(name))
    small = Tensor(text, (2, 2), name, "value", (1.0, -2.5, 0.0, 3e-7), (), (name, "b"), (name, "d"), name)
    bare = Tensor(name, (2,), "float32", "gradient", (float("nan"), float("inf")), label=name)
    large = Tensor(text, (64, 64), "float32", "gradient", None, ((name, 1.0), ("norm", 2.0)))
    blocks = (
        Paragraph(spans, "warning"),
        Equation(rf"\frac{{\partial J}}{{\partial {text}}} = 1", name),
        Equation(name, name),
        small,
        bare,
        large,
        Verdict("agrees", spans, 1e-7, 1e-5),
        Table((name, "b"), ((spans, (name,)),), name),
    )
    rows = (
        Row(0, "data", name, text, text, "", name, name, name, (), small, None),
        Row(1, "loss", name, text, text, name, name, name, name, (0,), bare, large, name, (name,), "agrees"),
    )
    return Document(spans, blocks, (Section(spans, name, "forward", blocks),), rows)
