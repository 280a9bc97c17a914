from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from chainrule.document import Block, Code, Document, Equation, Math, Paragraph, Section, Table, Tensor, Verdict
from chainrule.views import written as text_of
from chainrule.views.formula import is_known
from tests.steps import worked
from tests.views import hostile

ENGINES = [engine for engine in ("pdflatex", "lualatex") if shutil.which(engine)]


def body(*blocks: Block) -> str:
    written = text_of(Document(("T",), blocks, ()), ".tex")
    return written.partition("\\maketitle\n")[2].removesuffix("\\end{document}\n").strip()


def compiled(written: str, folder: Path, engine: str) -> str:
    (folder / "step.tex").write_text(written)
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "step.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120)
    log = (folder / "step.log").read_text(errors="replace")
    assert done.returncode == 0, log[-2000:]
    return log


def test_a_paragraph_with_a_formula_and_code() -> None:
    text = ("The cost ", Math("J"), " of ", Code("linear1.weight"), " is 50% & more")
    assert body(Paragraph(text, "note")) == (
        r"\emph{Note.} The cost $J$ of \texttt{linear1.\allowbreak{}weight} is 50\% \& more"
    )


def test_an_equation_with_its_label() -> None:
    assert body(Equation(r"\frac{\partial J}{\partial X}", "chain rule")) == (
        "\\said{chain rule}\n\\shown{\\frac{\\partial J}{\\partial X}}"
    )


def test_a_matrix_in_its_hue() -> None:
    tensor = Tensor("Z", (2, 2), "float32", "gradient", (1.0, -0.05998, 1.23e-5, 0.5))
    assert body(tensor).splitlines()[-1] == (
        r"\shown{{Z} = {\color{backward}\left[\begin{array}{rr} 1 & -0.0600 \\ 1.23\cdot 10^{-5} & 0.5 "
        r"\end{array}\right]}}"
    )


def test_a_large_tensor_by_its_statistics() -> None:
    tensor = Tensor("W", (768, 3072), "bfloat16", "parameter", None, (("norm", 3.25), ("mean", 0.0)))
    assert body(tensor) == "\\said{768 x 3072, bfloat16}\n$W$: norm 3.25, mean 0"


def test_a_labelled_matrix_a_stack_and_a_wide_one() -> None:
    labelled = Tensor("D", (1, 2), "float32", "jacobian", (0.5, 1.0), (), ("J",), ("L[0]", "L[1]"))
    assert r"\text{\scriptsize L[0]} & \text{\scriptsize L[1]} \\ \hline \text{\scriptsize J} & 0.5 & 1" in body(
        labelled
    )
    stack = body(Tensor("T", (2, 1, 1), "float32", "value", (1.0, 2.0)))
    assert re.findall(r"_\{\[\d\]\}", stack) == ["_{[0]}", "_{[1]}"]
    wide = body(Tensor("w", (40,), "float32", "value", tuple(range(40))))
    assert re.findall(r"columns \d+ to \d+", wide) == ["columns 0 to 15", "columns 16 to 31", "columns 32 to 39"]


def test_an_unknown_block_is_an_error() -> None:
    unknown: Any = object()
    with pytest.raises(TypeError, match="no function for a block of type object"):
        body(unknown)


def test_only_our_own_commands_are_run() -> None:
    assert is_known(r"\frac{\partial J}{\partial W^{[1]}} = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}^{T}")
    assert is_known(r"\text{h.0.attn.c\_attn.weight}")
    for bad in (
        r"\input{x}",
        r"\begin{document}",
        "^^5cinput",
        "a$b",
        "}{",
        "{",
        "a%b",
        "\\",
        r"\text{\write18{x}}",
        "a & b",
        r"\left(",
        "\x1b",
    ):
        assert not is_known(bad), bad


def test_every_formula_of_the_worked_example_is_known() -> None:
    formulas = [
        formula
        for _, section in worked().document().walk()
        for block in section.blocks
        for formula in (
            [block.latex] if isinstance(block, Equation) else [block.symbol] if isinstance(block, Tensor) else []
        )
    ]
    assert len(formulas) > 100
    assert [formula for formula in formulas if not is_known(formula)] == []


@pytest.mark.parametrize("name", hostile.NAMES)
def test_hostile_names_leave_only_known_commands(name: str) -> None:
    written = text_of(hostile.document(name), ".tex").partition("\\begin{document}")[2]
    assert written.count(r"\end{document}") == 1
    for command in ("input", "write", "immediate", "def", "catcode", "href", "url", "include", "openin", "csname"):
        assert rf"\{command}" not in written.replace(r"{\textbackslash}", "")
    assert "^^" not in written.replace("\\^", "")
    assert "\x1b" not in written


@pytest.mark.slow
@pytest.mark.skipif(not ENGINES, reason="no LaTeX is installed")
@pytest.mark.parametrize("engine", ENGINES)
class TestCompiled:
    def test_the_worked_example(self, engine: str, tmp_path: Path) -> None:
        log = compiled(text_of(worked().document(), ".tex"), tmp_path, engine)
        assert "Overfull" not in log
        assert (tmp_path / "step.pdf").stat().st_size > 50_000

    def test_hostile_names(self, engine: str, tmp_path: Path) -> None:
        sections = tuple(
            Section(section.title, f"s{number}", "note", section.blocks)
            for number, name in enumerate(hostile.NAMES)
            for section in hostile.document(name).sections
        )
        compiled(text_of(Document(("Names",), (), sections), ".tex"), tmp_path, engine)
        assert not (tmp_path / "pwned").exists()

    def test_every_kind_of_block(self, engine: str, tmp_path: Path) -> None:
        blocks = (
            Tensor("a", (), "float32", "value", (3.0,)),
            Tensor("b", (0, 3), "float32", "value", ()),
            Tensor("c", (2,), "complex64", "value", (1 + 2j, complex("nan"))),
            Tensor("d", (2,), "bool", "value", (True, False)),
            Tensor("e", (20, 20), "float32", "jacobian", (0.0,) * 400, (), *[tuple(f"x[{i}]" for i in range(20))] * 2),
            Tensor(r"\hat{m}_t", (2, 1, 1), "float32", "value", (1.0, 2.0)),
            Verdict("by convention", ("at 0",)),
            Table(("a", "b"), ((("1",), (Math("x"),)),) * 60, "a long table"),
            Table(tuple(f"decoder.layers.weight_ih_l0[{i}]" for i in range(6)), (("1",) * 6,)),
        )
        log = compiled(text_of(Document(("Blocks",), blocks, ()), ".tex"), tmp_path, engine)
        assert "Overfull" not in log
