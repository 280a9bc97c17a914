import io
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
from rich.console import Console

from chainrule.document import (
    Block,
    Code,
    Document,
    Equation,
    Margin,
    Math,
    Paragraph,
    Section,
    Table,
    Tensor,
    Verdict,
)
from chainrule.views import terminal


def tensor(symbol: str, shape: tuple[int, ...], entries: Any, role: Any = "value", **more: Any) -> Tensor:
    dtype = more.pop("dtype", "float32")
    return Tensor(symbol, shape, dtype, role, None if entries is None else tuple(entries), **more)


def shown(*blocks: Block, width: int = 80) -> str:
    """The blocks as text, without the title above them and the empty lines around them."""
    return "\n".join(terminal.text(Document(("T",), blocks, ()), width).split("\n")[3:]).rstrip("\n")


def lines(text: str) -> str:
    return text.strip("\n")


def labels(name: str, rows: int, columns: int) -> tuple[str, ...]:
    return tuple(f"{name}[{row},{column}]" for row in range(rows) for column in range(columns))


def test_a_document_with_its_sections() -> None:
    inner = Section(("Layer 1: ", Code("linear1")), "l1", "forward", (Paragraph(("Text.",)),))
    deepest = Section(("deeper",), "d", "note", (Paragraph(("Worth it.",), "note"),))
    document = Document(
        ("One step of ", Code("model.py")),
        (Paragraph(("The cost is ", Math(r"J = \frac{1}{m}"), ".")),),
        (Section(("Forward",), "f", "forward", (), (inner, Section(("Next",), "n", "forward", (), (deepest,)))),),
    )
    assert (
        terminal.text(document, 40)
        == lines("""
One step of model.py
════════════════════

The cost is J = 1/m.

━━ Forward ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━

── Layer 1: linear1

Text.

── Next

▸ deeper

Note: Worth it.
""")
        + "\n"
    )


def test_words_are_wrapped_under_one_another() -> None:
    warning = Paragraph(("The third neuron of ", Code("linear1"), " is off for every sample."), "warning")
    assert shown(warning, width=40) == lines("""
Warning: The third neuron of linear1 is
         off for every sample.
""")


def test_formulas_in_a_row_stand_together_behind_their_labels() -> None:
    assert shown(
        Equation(r"Z^{[1]} = X\,{W^{[1]}}^{T} + b^{[1]}", "forward"),
        Equation(r"\begin{aligned} J &= 1 \\ &= 2 \end{aligned}", "cost"),
        Equation("a = b"),
    ) == ("    forward           Z1 = X W1ᵀ + b1\n    cost              J = 1\n                        = 2\n    a = b")


def test_tensors_of_every_rank() -> None:
    assert shown(
        tensor("J", (), [0.19522885978221893]),
        tensor("b^{[1]}", (3,), [1.0, -2.0, 0.300000012], "parameter"),
        tensor("W^{[1]}", (3, 2), [-1, 2, 3, 0.5, -0.1, -4], "parameter", label="linear1.weight"),
        tensor(r"\frac{\partial J}{\partial Z^{[1]}}", (2, 2), [-0.05998, -0.0, 1.234e-5, float("nan")], "gradient"),
        tensor("Q", (2, 1, 2), [1, 2, 3, 4], dtype="int64"),
        tensor("E", (0, 3), []),
        tensor("W", (4096, 1024), None, dtype="float16", statistics=(("mean", 0.00123), ("largest", 3.2))),
    ) == (
        "    J = 0.1952\n"
        "\n"
        "    b1 = [1  -2  0.3]   (3,)\n"
        "\n"
        "         ⎡-1     2  ⎤\n"
        "    W1 = ⎢ 3     0.5⎥   (3, 2)  linear1.weight\n"
        "         ⎣-0.1  -4  ⎦\n"
        "\n"
        "    dJ/dZ1 = ⎡-0.0600      0⎤   (2, 2)\n"
        "             ⎣ 1.23e-05  nan⎦\n"
        "\n"
        "    Q =   (2, 1, 2)  int64\n"
        "    Q[0] = [1  2]\n"
        "    Q[1] = [3  4]\n"
        "\n"
        "    E = []   (0, 3)\n"
        "\n"
        "    W   (4096, 1024)  float16   mean 0.0012, largest 3.2"
    )


def test_a_tensor_wider_than_the_terminal_is_told_in_parts() -> None:
    assert shown(tensor("A", (2, 6), [n / 8 for n in range(12)]), width=32) == (
        "    A =   (2, 6)\n"
        "        columns 0 to 2\n"
        "        ⎡0     0.125  0.25⎤\n"
        "        ⎣0.75  0.875  1   ⎦\n"
        "        columns 3 to 5\n"
        "        ⎡0.375  0.5   0.625⎤\n"
        "        ⎣1.125  1.25  1.375⎦"
    )


JACOBIAN = tensor(
    r"\frac{\partial Z^{[1]}}{\partial W^{[1]}}",
    (4, 4),
    [1, 2, 0, 0, 0, 0, 1, 2, 3.5, 4, 0, 0, 0, 0, 3.5, 4],
    "jacobian",
    row_labels=labels("Z1", 2, 2),
    column_labels=labels("W1", 2, 2),
)


def test_a_jacobian_shows_its_blocks() -> None:
    assert shown(JACOBIAN) == (
        "    dZ1/dW1 =   (4, 4)\n"
        "            │ W1[0,0]  W1[0,1] │ W1[1,0]  W1[1,1]\n"
        "            ┼──────────────────┼─────────────────\n"
        "    Z1[0,0] │     1          2 │     0          0\n"
        "    Z1[0,1] │     0          0 │     1          2\n"
        "    Z1[1,0] │     3.5        4 │     0          0\n"
        "    Z1[1,1] │     0          0 │     3.5        4"
    )


def test_a_jacobian_has_what_it_is_multiplied_with_and_what_comes_out_at_its_margins() -> None:
    upstream = Margin(r"\frac{\partial J}{\partial Z^{[1]}}", (0.5, -0.1234567, 0, 2))
    product = Margin(r"\frac{\partial J}{\partial W^{[1]}}", (0.5, 1, 6.8765433, 8))
    assert shown(replace(JACOBIAN, upstream=upstream, product=product, decimals=5)) == (
        "    dZ1/dW1 =   (4, 4)\n"
        "      dJ/dZ1          │ W1[0,0]  W1[0,1] │ W1[1,0]  W1[1,1]\n"
        "                      ┼──────────────────┼─────────────────\n"
        "     0.5      Z1[0,0] │     1          2 │  0             0\n"
        "    -0.12346  Z1[0,1] │     0          0 │  1             2\n"
        "     0        Z1[1,0] │     3.5        4 │  0             0\n"
        "     2        Z1[1,1] │     0          0 │  3.5           4\n"
        "                      ┼──────────────────┼─────────────────\n"
        "              dJ/dW1  │     0.5        1 │  6.8765        8"
    )
    with pytest.raises(ValueError, match=r"^tensor .* has 4 rows or columns, but 3 numbers at their margin\.$"):
        shown(replace(JACOBIAN, upstream=replace(upstream, entries=(1, 2, 3))))


def test_a_wide_jacobian_names_its_rows_and_columns_once_where_that_is_shorter_and_is_cut_between_blocks() -> None:
    assert shown(JACOBIAN, width=46).split("\n")[1:3] == [
        "    rows: Z1, columns: W1",
        "          │ [0,0]  [0,1] │ [1,0]  [1,1]",
    ]
    assert shown(JACOBIAN, width=32).split("\n")[1:8] == [
        "            │ W1[0,0]  W1[0,1]",
        "            ┼─────────────────",
        "    Z1[0,0] │     1          2",
        "    Z1[0,1] │     0          0",
        "    Z1[1,0] │     3.5        4",
        "    Z1[1,1] │     0          0",
        "",
    ]


def test_no_row_of_numbers_is_ever_wider_than_the_terminal() -> None:
    for width in range(40, 130):
        for columns in (1, 2, 3, 5, 8, 13, 40):
            entries = [(-1) ** n * n / 7 for n in range(2 * columns)]
            names = {"row_labels": labels("Z", 2, 1), "column_labels": labels("W", columns, 1)}
            printed = shown(
                tensor("A", (2, columns), entries), tensor("B", (2, columns), entries, **names), width=width
            )
            lines = printed.split("\n")
            assert max(map(len, lines)) <= width
            assert not any(line and set(line) == {"─"} for line in lines)  # the end of a separator that wrapped


def test_verdicts_carry_a_mark_the_difference_and_the_tolerance() -> None:
    assert shown(
        Verdict("agrees", (Math(r"\frac{\partial J}{\partial W^{[1]}}"), " and ", Code(".grad")), 3e-8, 1e-6),
        Verdict("disagrees", ("it is off",), 0.5, 1e-6),
        Verdict("by convention", (Math("Z^{[2]}_{0,0}"), " is exactly 0; PyTorch takes 0")),
        Verdict("not differentiable", ()),
        Verdict("not checked", ()),
        width=60,
    ) == lines("""
    ✓ agrees: dJ/dW1 and .grad (difference 3e-08, tolerance
      1e-06)
    ✗ disagrees: it is off (difference 0.5, tolerance 1e-06)
    ∠ by convention: Z2[0,0] is exactly 0; PyTorch takes 0
    – not differentiable
    · not checked
""")


def test_a_table() -> None:
    rows = (((Code("linear1.weight"),), ("(3, 2)",)), ((Math("b^{[1]}"),), ("(3,)",)))
    assert shown(Table(("parameter", "shape"), rows, "Parameters")) == lines("""
    Parameters
    parameter       shape
    ──────────────────────
    linear1.weight  (3, 2)
    b1              (3,)
""")


def test_nothing_a_user_wrote_is_obeyed() -> None:
    evil = "[bold red]x[/] :smile: \x1b[31m\x07"
    document = Document(
        (evil,),
        (
            Paragraph((evil, Code(evil), Math(evil)), "warning"),
            Equation(evil, evil),
            tensor(evil, (1,), [1], dtype=evil, label=evil),
            tensor(evil, (1, 1), [1], row_labels=(evil,), column_labels=(evil,)),
            tensor(evil, (9,), None, statistics=((evil, 1.0),)),
            Verdict("by convention", (evil,)),
            Table((evil,), (((evil,),),), evil),
        ),
        (Section((evil,), "a", "note"),),
    )
    told = terminal.text(document, 200)
    assert told.replace("\n", "").isprintable()
    assert told.count(r"\x1b[31m\x07") == 19
    assert told.count("[bold red]x[/]") >= 14


def test_colours_repeat_what_words_say() -> None:
    def escapes(block: Block) -> str:
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, color_system="standard", width=80, _environ={})
        terminal.render(Document(("T",), (block,), ()), console)
        return file.getvalue()

    gradient, value = (escapes(tensor("A", (2,), [1.5, 0], role)) for role in ("gradient", "value"))
    assert "\x1b[35m1.5\x1b[0m" in gradient
    assert "\x1b[36m1.5\x1b[0m" in value
    assert "\x1b[2m0\x1b[0m" in gradient


def test_a_terminal_that_cannot_encode_gets_question_marks() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    terminal.render(Document(("T",), (Equation("W^{T}"),), ()), Console(file=file, width=40))
    file.seek(0)
    assert "    W?\n" in file.read()


def test_what_cannot_be_shown_is_an_error() -> None:
    @dataclass(frozen=True)
    class Picture:
        pass

    unknown: Any = Picture()
    with pytest.raises(TypeError) as caught:
        shown(unknown)
    assert str(caught.value) == (
        "chainrule.views.terminal has no function for a block of type Picture. Add one to its _WRITERS."
    )
    with pytest.raises(
        ValueError, match=r"^tensor A of shape \(2, 2\) has 4 elements, but its block holds 3 entries\."
    ):
        shown(tensor("A", (2, 2), [1, 2, 3]))
    with pytest.raises(ValueError, match=r"^tensor A has 1 rows and 2 columns, but 0 row labels and 1 column labels\."):
        shown(tensor("A", (2,), [1, 2], column_labels=("x",)))
    with pytest.raises(TypeError, match=r"^a span of text is a str, Math or Code, not int$"):
        shown(Paragraph((unknown and 3,)))  # type: ignore[arg-type]


def test_the_view_needs_no_torch() -> None:
    code = "import sys, chainrule.views.terminal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
