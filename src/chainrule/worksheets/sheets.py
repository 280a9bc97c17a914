"""The files of one variant: the sheet as Markdown, LaTeX and a notebook, and its solution."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from typing import Any

from torch import Tensor

from chainrule import document as doc
from chainrule.graph.snapshot import Update
from chainrule.numbers import many, rounded
from chainrule.recording import Recording
from chainrule.rules.optimizers import hyperparameters
from chainrule.views import latex, markdown
from chainrule.views.notebook import FORMAT, LANGUAGE, MINOR
from chainrule.worksheets.questions import Part, Question, constants, nested
from chainrule.worksheets.sealed import seal

PARTS: dict[Part, str] = {"forward": "Forward pass", "backward": "Backward pass", "update": "Update"}
GIVEN = 8  # decimals of what is given, so that what follows from it has the digits that are asked for
BLANK = {"md": "___", "ipynb": "..."}


@dataclass(frozen=True)
class Sheet:
    """One variant of a worksheet: its recorded step, and what is asked about it.

    `key` is the name that all variants share, and `label` this one's; a filled-in sheet is known by both. `salt` makes
    the hashes of its answers its own.
    """

    key: str
    label: str
    salt: str
    recording: Recording
    document: doc.Document
    questions: tuple[Question, ...]

    @property
    def mark(self) -> str:
        """The line that says which sheet this is; `grade` looks for it."""
        return f"Worksheet {self.key}, variant {self.label}"

    @cached_property
    def seals(self) -> dict[str, str]:
        """The hash of each right answer, by its name."""
        return {q.name: seal(self.salt, q.name, q.nested, q.compared) for q in self.questions}

    def asked(self, part: Part) -> list[tuple[int, Question]]:
        """The questions of one part, each with its number on the sheet."""
        return [(number, each) for number, each in enumerate(self.questions, 1) if each.part == part]


# -- what all forms say -----------------------------------------------------------------------------------------------


def _head(sheet: Sheet) -> tuple[doc.Block, ...]:
    points = sum(question.points for question in sheet.questions)
    return (
        doc.Paragraph((f"{sheet.mark}. {many(len(sheet.questions), 'question')}, {many(points, 'point')}: one for each "
                       "number.",)),
        doc.Paragraph(("Name:",)),
    )  # fmt: skip


def _given(sheet: Sheet) -> Iterator[doc.Block]:
    """The network's numbers, and how it learns."""
    said: list[doc.Span] = [
        "Samples are rows, and a row of a weight is a unit. A gradient has the shape of what it belongs to."
    ]
    if not all(question.exact for question in sheet.questions):
        said.append(" Round what you write down, and go on with the number as it was before.")
    if any(r"\odot" in formula for question in sheet.questions for formula in question.formulas):
        said += [" ", doc.Math(r"\odot"), " multiplies element by element."]
    yield doc.Paragraph(tuple(said))
    given = constants(sheet.recording)
    for number, row in enumerate(sheet.document.rows):
        if row.kind in ("data", "parameter") or number in given:
            yield replace(row.value, label="", decimals=_decimals(row.value.entries or ()))
    for update in sheet.recording.graph.updates:
        settings = {name: it for each in update.parameters for name, it in each.options.items() if _is_number(it)}
        rates = {each.options.get("lr") for each in update.parameters}
        rate: doc.Text = ()
        if len(rates) == 1 and "lr" in settings:
            rate = (" with the learning rate ", doc.Math(rf"\eta = {settings['lr']:g}"))
        others = "".join(f", {name} {it}" for name, it in settings.items() if name != "lr")
        kept = list(_kept(sheet, update))
        begun = f" It is its step {kept[0][0]}, and it kept from the one before:" if kept else ""
        yield doc.Paragraph((f"The optimizer is {update.optimizer}", *rate, f"{others}.{begun}"))
        yield from (tensor for _, tensor in kept)


def _kept(sheet: Sheet, update: Update) -> Iterator[tuple[int, doc.Tensor]]:
    """What an optimizer took over from earlier steps for what is asked, each with the number of the step."""
    asked = {question.quantity for question in sheet.questions}
    notation = sheet.recording.notation
    for each in update.parameters:
        if each.value is None or f"new {notation.plain(each.value)}" not in asked:
            continue
        for name, data in each.state_before.items():
            if isinstance(data, Tensor) and data.dim() and data.any():
                symbol = rf"\text{{{name.replace('_', ' ')} of }}{notation.symbol(each.value)}"
                entries = tuple(data.flatten().tolist())
                step = int(hyperparameters(each.options, each.state_before)["t"])
                yield step, doc.Tensor(symbol, tuple(data.shape), "", "parameter", entries, decimals=_decimals(entries))


def _decimals(given: Sequence[float | complex]) -> int:
    """How many decimals numbers are given with: four, if that is all of each in float32."""
    whole = (abs(rounded(each, GIVEN)) for each in given)
    short = (abs(rounded(each, 4)) for each in given)
    return 4 if all(abs(one - other) <= 1e-7 * one for one, other in zip(whole, short, strict=True)) else GIVEN


def _is_number(option: object) -> bool:
    """Whether an optimizer's option is a number that matters, or several."""
    several = option if isinstance(option, tuple) else (option,)
    return all(isinstance(each, int | float) and not isinstance(each, bool) for each in several) and any(several)


def _task(part: Part) -> doc.Paragraph:
    text = {
        "forward": "Compute each value of the forward pass, one after the other, and the loss J.",
        "backward": "Compute the gradient of J with respect to each value and each parameter, from the loss back to "
        "the first layer.",
        "update": "Compute each parameter after the optimizer's step.",
    }
    return doc.Paragraph((text[part],))


def _asks(number: int, question: Question) -> tuple[doc.Block, ...]:
    """One question: what to compute, in which form, and the formula that leads there."""
    points = many(question.points, "point")
    said = doc.Paragraph((f"Question {number}: ", doc.Math(question.symbol), f" ({question.form}; {points})"))
    return (said, *(doc.Equation(formula) for formula in question.formulas))


def blank(question: Question, form: str) -> str:
    """The line that a student fills in: `Z1 = [[___, ___]]`."""
    cells = nested([BLANK[form]] * question.points, question.shape)
    return f"{question.name} = {cells}".replace("'", "")


# -- the sheet --------------------------------------------------------------------------------------------------------


def as_markdown(sheet: Sheet) -> str:
    """The sheet as a `.md` file, with a line to fill in for each question."""
    parts = ["# One training step by hand", *markdown.blocks(_head(sheet))]
    parts += ["Put a number in the place of each `___`. A fraction (`-3/4`) is a number too.", "## The network"]
    parts += markdown.blocks(tuple(_given(sheet)))
    for part, title in PARTS.items():
        if asked := sheet.asked(part):
            parts += [f"## {title}", *markdown.blocks((_task(part),))]
        for number, question in asked:
            parts += [*markdown.blocks(_asks(number, question)), f"```text\n{blank(question, 'md')}\n```"]
    return "\n\n".join(parts) + "\n"


def as_latex(sheet: Sheet) -> str:
    """The sheet as a `.tex` file to print, with empty matrices."""
    sections = [doc.Section(("The network",), "network", "overview", tuple(_given(sheet)))]
    for part, title in PARTS.items():
        blocks: list[doc.Block] = [_task(part)]
        for number, question in sheet.asked(part):
            cells = [r"\underline{\qquad}"] * question.points
            blocks += [*_asks(number, question), doc.Equation(f"{question.symbol} = {_matrix(question, cells)}")]
        if len(blocks) > 1:
            sections.append(doc.Section((title,), part, part, tuple(blocks)))
    text = latex.written(doc.Document(("One training step by hand",), _head(sheet), tuple(sections)))
    return text.replace("\\tableofcontents\n", "")


def _matrix(question: Question, cells: list[str]) -> str:
    if not question.shape:
        return cells[0]
    width = question.shape[-1]
    rows = [" & ".join(cells[start : start + width]) for start in range(0, len(cells), width)]
    return r"\begin{bmatrix} " + r" \\ ".join(rows) + r" \end{bmatrix}"


def as_notebook(sheet: Sheet) -> str:
    """The sheet as a notebook that checks itself; nbgrader takes the checks as its tests."""
    head = ["# One training step by hand", *markdown.blocks(_head(sheet), dollars=True)]
    head.append("Put a number in the place of each `...`, run the cell and the one below it. `check` says whether it "
                "is right. Formulas in Python are welcome while you try, but hand in numbers.")  # fmt: skip
    given = ["## The network", *markdown.blocks(tuple(_given(sheet)), dollars=True)]
    cells = [_text(head), _text(given), _code(check_cell(sheet), "check", graded=False)]
    for part, title in PARTS.items():
        if asked := sheet.asked(part):
            cells.append(_text([f"## {title}", *markdown.blocks((_task(part),), dollars=True)]))
        for number, question in asked:
            cells.append(_text(list(markdown.blocks(_asks(number, question), dollars=True))))
            cells.append(_code(blank(question, "ipynb")))
            call = f'assert check("{question.name}", {question.name})'
            cells.append(_code(call, f"check-{question.name}", graded=True, points=question.points))
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"
    notebook = {"cells": cells, "metadata": LANGUAGE, "nbformat": FORMAT, "nbformat_minor": MINOR}
    return json.dumps(notebook, indent=1) + "\n"


def check_cell(sheet: Sheet, questions: tuple[Question, ...] | None = None) -> str:
    """The code of `check`, with the hashes of the answers to these questions, by default all of the sheet's."""
    code = files(__package__).joinpath("sealed.py").read_text(encoding="utf-8").split("# ---\n")[1].strip()
    asked = sheet.questions if questions is None else questions
    seals = "".join(f'    "{each.name}": ({each.compared}, "{sheet.seals[each.name]}"),\n' for each in asked)
    return f'{code}\n\n\nSALT = "{sheet.salt}"\nSEALS = {{\n{seals}}}'


def _text(parts: list[str]) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": _lines("\n\n".join(parts))}


def _code(source: str, name: str = "", *, graded: bool = False, points: int = 0) -> dict[str, Any]:
    """A cell to fill in or, with a name, one that nbgrader puts back as it was before it grades."""
    metadata: dict[str, Any] = {}
    if name:
        metadata = {"deletable": False, "editable": False}
        graders = {"grade": graded, "grade_id": name, "locked": True, "solution": False, "task": False}
        metadata["nbgrader"] = {**graders, **({"points": points} if graded else {}), "schema_version": 3}
    return {
        "cell_type": "code", "execution_count": None, "metadata": metadata, "outputs": [], "source": _lines(source),
    }  # fmt: skip


def _lines(source: str) -> list[str]:
    return source.splitlines(keepends=True)


def otter_tests(sheet: Sheet) -> dict[str, str]:
    """A test file of Otter-Grader for each question, by file name. Each brings its own `check`."""
    return {
        f"{each.name}.py": f'''from otter.test_files import test_case

OK_FORMAT = False
name = "{each.name}"
points = {each.points}

{check_cell(sheet, (each,))}


@test_case()
def test_{each.name}(env):
    assert check("{each.name}", env["{each.name}"])
'''
        for each in sheet.questions
    }


# -- the solution -----------------------------------------------------------------------------------------------------


def solution(sheet: Sheet, coded: bool) -> doc.Document:
    """The right answers, and the whole walk behind them; `coded` as a notebook has it."""
    answers = doc.Section(("Answers",), "answers", "overview", tuple(_answers(sheet)))
    walk = sheet.recording.document(coded=coded) if coded else sheet.document
    return replace(walk, title=(f"Solution of {sheet.mark}",), sections=(answers, *walk.sections))


def _answers(sheet: Sheet) -> Iterator[doc.Block]:
    for number, each in enumerate(sheet.questions, 1):
        role: doc.Role = "gradient" if each.part == "backward" else "value"
        label = f"{number}. {each.name}, {each.form}"
        values = tuple(round(value, each.decimals) for value in each.values)
        yield doc.Tensor(each.symbol, each.shape, "", role, values, label=label)
