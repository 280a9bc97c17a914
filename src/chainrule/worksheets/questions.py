"""What a worksheet asks about one recorded step: every value, the loss, every gradient, and every updated parameter."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chainrule import document as doc
from chainrule.errors import RequestError
from chainrule.numbers import many
from chainrule.recording import Recording
from chainrule.report.context import Context
from chainrule.report.value_table import row_numbers

LARGEST = 36  # numbers up to which a tensor is asked for
EXACT = 3  # decimals up to which a number counts as short
USUAL, SMALLEST = 4, 3  # decimals of other numbers, and significant digits that the largest of a tensor has at least
Part = Literal["forward", "backward", "update"]


@dataclass(frozen=True)
class Question:
    """One tensor to work out.

    `quantity` is its name in the derivation (`dJ/dW2`), `name` the one that an answer is given under (`dJ_dW2`).
    `values` are the right numbers in row-major order; they are asked for with so many `decimals`, which is all of
    them where they are `exact`. `formulas` are what the sheet says of it, in LaTeX.
    """

    quantity: str
    name: str
    symbol: str
    part: Part
    shape: tuple[int, ...]
    values: tuple[float, ...]
    decimals: int
    exact: bool
    formulas: tuple[str, ...] = ()

    @property
    def compared(self) -> int:
        """The decimals that decide whether a number is right."""
        return USUAL if self.exact else self.decimals

    @property
    def nested(self) -> Any:
        """The right numbers as lists in lists."""
        return nested(self.values, self.shape)

    @property
    def points(self) -> int:
        """A point for each number."""
        return len(self.values)

    @property
    def form(self) -> str:
        """What is to be given: `a number, exact`, `2 x 3 numbers, 4 decimals`."""
        size = " x ".join(map(str, self.shape))
        what = "a number" if not self.shape else f"{size} number{'s' * (self.points > 1)}"
        return f"{what}, {'exact' if self.exact else many(self.decimals, 'decimal')}"


def nested(cells: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """Cells as lists in lists of this shape; without a shape the one cell."""
    if not shape:
        return cells[0]
    size = len(cells) // shape[0]
    return [nested(cells[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


def questions(recording: Recording, document: doc.Document) -> tuple[Question, ...]:
    """The questions about a step, in the order in which they can be answered.

    Raises RequestError where the step has nothing that is small enough to be asked for.
    """
    said = {section.anchor: section for _, section in document.walk()}
    found: dict[str, Question] = {}
    for question in (
        *_forward(document, said, constants(recording)),
        *_backward(document, said),
        *_updates(recording, said),
    ):
        if all(map(math.isfinite, question.values)):
            found.setdefault(question.name, question)  # two names that differ in signs alone are one blank
    if not found:
        raise RequestError(
            f"the step has no tensor of at most {LARGEST} finite numbers to ask for. Give a script with a smaller "
            "network, or a smaller batch."
        )
    return tuple(found.values())


def constants(recording: Recording) -> set[int]:
    """The rows of what the step makes of nothing, as zeros to begin with: they are given, and not asked for."""
    graph = recording.graph
    rows = row_numbers(Context(graph, recording.derivation, recording.notation))
    made = (value for value in rows if graph.values[value].operation is not None)
    return {
        rows[value] for value in made
        if all(graph.values[each].operation is not None for each in graph.ancestors([value]))
    }  # fmt: skip


def _forward(document: doc.Document, said: dict[str, doc.Section], given: set[int]) -> Iterator[Question]:
    for number, row in enumerate(document.rows):
        if number in given:
            continue
        if row.kind in ("operation", "loss") and row.forward and _is_asked(row.value):
            blocks = said[row.forward].blocks if row.forward in said else ()
            formulas = [b.latex for b in blocks if isinstance(b, doc.Equation) and b.label in ("", "where")]
            yield _question(row.name, row.symbol, "forward", row.value, formulas)


def _backward(document: doc.Document, said: dict[str, doc.Section]) -> Iterator[Question]:
    for row in reversed(document.rows):
        if row.gradient is None or row.kind in ("loss", "data") or not _is_asked(row.gradient):
            continue
        sections = [said[anchor] for anchor in row.backward if anchor in said]
        blocks = [block for section in sections for block in section.blocks]
        formulas = [b.latex for b in blocks if isinstance(b, doc.Equation) and b.label == "chain rule"]
        yield _question(f"dJ/d{row.name}", row.gradient_symbol, "backward", row.gradient, formulas)


def _updates(recording: Recording, said: dict[str, doc.Section]) -> Iterator[Question]:
    notation = recording.notation
    for number, update in enumerate(recording.graph.updates, 1):
        for place, each in enumerate(update.parameters):
            after = each.end.data
            if after is None or each.value is None or each.gradient is None:
                continue
            symbol, name = notation.symbol(each.value), notation.plain(each.value)
            entries = tuple(after.flatten().tolist()) if after.numel() <= LARGEST else None
            tensor = doc.Tensor(symbol, tuple(after.shape), "", "parameter", entries)
            section = None if place else said.get(f"update-{number}-0")  # the others have the same formulas
            blocks = section.blocks if section is not None else ()
            formulas = [b.latex for b in blocks if isinstance(b, doc.Equation) and not b.label]
            if _is_asked(tensor):
                yield _question(f"new {name}", rf"{{{symbol}}}_{{\text{{new}}}}", "update", tensor, formulas)


def _is_asked(tensor: doc.Tensor) -> bool:
    return (
        tensor.entries is not None
        and 0 < len(tensor.entries) <= LARGEST
        and not any(isinstance(each, complex | bool) for each in tensor.entries)
    )


def _question(quantity: str, symbol: str, part: Part, tensor: doc.Tensor, formulas: Sequence[str]) -> Question:
    values = tuple(float(each) for each in tensor.entries or ())  # type: ignore[arg-type]
    decimals, exact = decimals_of(values)
    return Question(
        quantity, identifier(quantity), symbol, part, tensor.shape, values, decimals, exact, tuple(formulas)
    )


def identifier(quantity: str) -> str:
    """The name of an answer: `dJ_dW2` for `dJ/dW2`, `new_W2`, `linear1_weight`."""
    name = re.sub(r"\W+", "_", quantity, flags=re.ASCII).strip("_")
    return name if name.isidentifier() else f"_{name}"


def decimals_of(values: Sequence[float]) -> tuple[int, bool]:
    """How many decimals are asked for, and whether they are all there are.

    Of the others none lies near the border between two rounded numbers, where the last digit is a matter of luck.
    """
    for decimals in range(EXACT + 1):
        if all(abs(value * 10**decimals - round(value * 10**decimals)) < 1e-4 for value in values):
            return decimals, True

    def margin(decimals: int) -> float:
        return min(abs(math.fmod(abs(value) * 10.0**decimals, 1) - 0.5) for value in values)

    usual = max(USUAL, SMALLEST - 1 - math.floor(math.log10(max(map(abs, values)))))
    choice = (usual, usual + 1, usual + 2)
    return next((each for each in choice if margin(each) > 0.01), max(choice, key=margin)), False
