"""Grades filled-in worksheets: a point for each right number, a name for each known mistake, and a table of the class.

A number that is wrong only because an earlier answer was counts as right: it is compared with what follows from the
student's own numbers as well.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from chainrule.document import Block, Document, Paragraph, Table, Text
from chainrule.errors import StorageError
from chainrule.exercises.answers import check
from chainrule.exercises.follow_up import follows
from chainrule.exercises.mistakes import Mistakes
from chainrule.exercises.quantities import Kind, quantity_of
from chainrule.numbers import many
from chainrule.recording import Recording, load
from chainrule.worksheets.questions import Question
from chainrule.worksheets.submissions import (
    NotAnAnswerError,
    Numbers,
    Submission,
    UnreadableError,
    files_in,
    numbers_of,
    read,
)
from chainrule.worksheets.writing import FORMAT, KEY, SOLUTIONS

DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")

Verdict = Literal["right", "follows", "wrong", "unreadable", "blank"]
"""`follows`: wrong only because an earlier answer was. `unreadable`: code, or no numbers."""
LONGEST = 20_000  # characters of one answer


@dataclass(frozen=True)
class Mark:
    """What one answer is worth; `mistake` is the name of a known one, `sentence` says what is wrong."""

    question: Question
    points: int
    verdict: Verdict
    mistake: str = ""
    sentence: str = ""


@dataclass(frozen=True)
class Graded:
    """What one student has."""

    submission: Submission
    marks: tuple[Mark, ...]

    @property
    def points(self) -> int:
        """All points."""
        return sum(mark.points for mark in self.marks)

    @property
    def of(self) -> int:
        """The most points that there are."""
        return sum(mark.question.points for mark in self.marks)

    @property
    def mistakes(self) -> tuple[str, ...]:
        """What is wrong, each with the name of its answer: `dJ_dW2: transposed`."""
        named = {"unreadable": "not numbers", "wrong": "wrong"}
        wrong = (mark for mark in self.marks if mark.verdict in named)
        return tuple(f"{mark.question.name}: {mark.mistake or named[mark.verdict]}" for mark in wrong)


@dataclass(frozen=True)
class Grades:
    """The grades of a class, and a sentence for each file that could not be graded."""

    worksheet: str
    graded: tuple[Graded, ...]
    unread: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Variant:
    """What is known of one variant: its questions, and its recorded step, which is loaded at first use."""

    questions: tuple[Question, ...]
    path: Path

    @cached_property
    def recording(self) -> Recording:
        """The step."""
        return load(self.path)

    def grade(self, submission: Submission) -> Graded:
        """The marks of one student."""
        own: dict[tuple[Kind, int], Tensor] = {}
        marks = tuple(self._mark(each, submission.answers.get(each.name, ""), own) for each in self.questions)
        return Graded(submission, marks)

    def _mark(self, question: Question, text: str, own: dict[tuple[Kind, int], Tensor]) -> Mark:
        """The mark of one answer. What is whole joins the student's `own` numbers, for the answers after it."""
        try:
            if len(text) > LONGEST:
                raise NotAnAnswerError(f"it has more than {LONGEST:,} characters")
            answer = _tensor(numbers_of(text))
        except NotAnAnswerError as error:
            return Mark(question, 0, "unreadable", sentence=f"{question.name}: {error}.")
        if bool(answer.isnan().all()):
            return Mark(question, 0, "blank")
        answer = _shaped(answer, question)
        right = torch.tensor(question.values, dtype=torch.float64).reshape(question.shape)
        if answer.isnan().any():
            points = _hits(question, answer, right)
            missing = many(int(answer.isnan().sum()), "number")
            return Mark(question, points, "wrong", "incomplete", f"{question.name}: {missing} missing.")
        found = check(self.recording, question.quantity, answer)
        asked = quantity_of(self.recording, question.quantity)
        followed = follows(Mistakes.of(self.recording), asked, own)
        if answer.shape == right.shape:
            own[asked.kind, asked.value] = answer
        points = _hits(question, answer, right)
        if found.right or points == question.points:
            return Mark(question, question.points, "right")
        if followed is not None and (hits := _hits(question, answer, right, followed)) > points:
            if _hits(question, answer, followed) == question.points:
                return Mark(question, question.points, "follows")
            points = hits
        mistake, sentence = found.mistake.name if found.mistake is not None else "", found.sentence
        if answer.shape != right.shape and not mistake:
            mistake = "shape"
        if answer.shape != right.shape and _has_decimal_commas(text, question):
            mistake, sentence = "decimal comma", f"{sentence} Write 0.5 with a point: a comma is between two numbers."
        return Mark(question, points, "wrong", mistake, sentence)


def _has_decimal_commas(text: str, question: Question) -> bool:
    """Whether an answer has the shape that was asked for if its commas between digits are decimal points."""
    try:
        meant = _tensor(numbers_of(DECIMAL_COMMA.sub(".", text)))
    except NotAnAnswerError:
        return False
    return _shaped(meant, question).shape == question.shape


def _tensor(numbers: Numbers) -> Tensor:
    """The numbers of an answer, a blank as NaN."""

    def filled(each: Numbers) -> Any:
        return [filled(row) for row in each] if isinstance(each, list) else float("nan") if each is None else each

    try:
        return torch.tensor(filled(numbers), dtype=torch.float64)
    except (ValueError, TypeError):
        raise NotAnAnswerError("its rows have not the same number of numbers") from None


def _shaped(answer: Tensor, question: Question) -> Tensor:
    """A row for a column, or a number for a list with one, is right too; another shape is not."""
    flat = [size for size in answer.shape if size != 1]
    return answer.reshape(question.shape) if flat == [size for size in question.shape if size != 1] else answer


def _hits(question: Question, answer: Tensor, *wanted: Tensor) -> int:
    """How many numbers are one of those wanted; what is asked for rounded may be off by one in its last digit."""
    if answer.shape != wanted[0].shape:
        return 0
    tolerance = (0.5 if question.exact else 1.0) * 10**-question.compared * (1 + 1e-3)
    return int(torch.stack([(answer - each).abs() <= tolerance for each in wanted]).any(0).sum())


# -- a class ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """What a folder of solutions holds."""

    worksheet: str
    variants: Mapping[str, Variant] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Key:
        """The key in a folder; StorageError where there is none."""
        try:
            known = json.loads((folder / KEY).read_text(encoding="utf-8"))
            if known["format"] != FORMAT:
                raise StorageError(f"{folder / KEY} was written by another version of chainrule. Use that version.")
            variants = {
                label: Variant(tuple(map(_question, questions)), folder / f"variant-{label}.safetensors")
                for label, questions in known["variants"].items()
            }
            return cls(known["worksheet"], variants)
        except FileNotFoundError:
            raise StorageError(
                f"there are no solutions in {folder}. Say with --solutions where `chainrule exercise` wrote them."
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{folder / KEY} cannot be read ({error}). Write the worksheets again.") from None

    @property
    def names(self) -> dict[str, str]:
        """The name of each answer by every way to write it."""
        asked = [question for variant in self.variants.values() for question in variant.questions]
        return {written: each.name for each in asked for written in (each.name, each.quantity)}


def _question(fields: dict[str, Any]) -> Question:
    known: dict[str, Any] = {name: tuple(it) if isinstance(it, list) else it for name, it in fields.items()}
    return Question(**known)


def solutions_for(folder: Path) -> Path:
    """Where the solutions are, if nobody says: in the folder, or beside it."""
    inside = folder / SOLUTIONS
    return inside if inside.exists() else folder.resolve().parent / SOLUTIONS


def grade(folder: Path, solutions: Path | None = None) -> Grades:
    """Grade what lies in a folder; StorageError where there is no such folder, or there are no solutions."""
    if not folder.is_dir():
        raise StorageError(f"{folder} is no folder. Give the one that holds the filled-in worksheets.")
    solutions = solutions_for(folder) if solutions is None else solutions
    key = Key.read(solutions)
    sheets = solutions.resolve().parent
    graded: list[Graded] = []
    unread: list[tuple[str, str]] = []
    for path in files_in(folder.resolve(), solutions.resolve()):
        shown = str(path.relative_to(folder.resolve()))
        try:
            items = read(path, folder.resolve(), key.names)
        except UnreadableError as error:
            items = [error]
        for submission in items:
            try:
                if isinstance(submission, UnreadableError):
                    raise submission
                found = _variant(key, submission).grade(submission)
            except UnreadableError as error:
                unread.append((shown, f"{shown} {error}"))
                continue
            is_sheet = path.parent == sheets and path.stem == f"variant-{submission.variant}"
            if not (is_sheet and all(mark.verdict == "blank" for mark in found.marks)):
                graded.append(found)
    unread += _twice(graded)
    return Grades(key.worksheet, tuple(sorted(graded, key=lambda each: each.submission.student)), tuple(unread))


def _twice(graded: list[Graded]) -> Iterator[tuple[str, str]]:
    """Who handed in one variant more than once."""
    files: dict[tuple[str, str], list[str]] = {}
    for each in graded:
        files.setdefault((each.submission.student, each.submission.variant), []).append(each.submission.file)
    for (student, variant), found in files.items():
        if len(found) > 1:
            yield found[0], f"{student} has variant {variant} in {many(len(found), 'file')}: {', '.join(found)}."


def _variant(key: Key, submission: Submission) -> Variant:
    if submission.worksheet and submission.worksheet != key.worksheet:
        raise UnreadableError(
            f"is of worksheet {submission.worksheet}, and the solutions are of {key.worksheet}. Give its own with "
            "--solutions."
        )
    width = max(map(len, key.variants))  # 7 may stand for 07
    found = key.variants.get(submission.variant.zfill(width))
    if found is None:
        raise UnreadableError(f"is of variant {submission.variant!r}, and there are {', '.join(key.variants)}.")
    return found


# -- what comes out ---------------------------------------------------------------------------------------------------


def document(grades: Grades) -> Document:
    """The grades as tables: the students, and the mistakes of the class."""
    rows: list[tuple[Text, ...]] = [
        (
            (each.submission.student,), (each.submission.variant,), (f"{each.points}",), (f"{each.of}",),
            ("; ".join(each.mistakes),),
        )
        for each in grades.graded
    ]  # fmt: skip
    blocks: list[Block] = [Table(("student", "variant", "points", "of", "mistakes"), tuple(rows))] if rows else []
    counts = Counter(name for each in grades.graded for name in {m.mistake for m in each.marks if m.mistake})
    if counts:
        named: list[tuple[Text, ...]] = [((name,), (f"{count}",)) for name, count in counts.most_common()]
        blocks.append(Table(("mistake", "students"), tuple(named)))
    blocks += [Paragraph((f"{sentence}",), "warning") for _, sentence in grades.unread]
    title = f"Worksheet {grades.worksheet}: {many(len(grades.graded), 'sheet')} graded"
    return Document((title,), tuple(blocks), ())


def as_json(grades: Grades) -> dict[str, Any]:
    """The grades as one object, with each answer."""
    return {
        "worksheet": grades.worksheet,
        "graded": [
            {
                "student": each.submission.student, "file": each.submission.file, "variant": each.submission.variant,
                "points": each.points, "of": each.of,
                "answers": [
                    {"quantity": mark.question.quantity, "name": mark.question.name, "points": mark.points,
                     "of": mark.question.points, "verdict": mark.verdict, "mistake": mark.mistake,
                     "sentence": mark.sentence}
                    for mark in each.marks
                ],
            }
            for each in grades.graded
        ],
        "unread": [{"file": file, "sentence": sentence} for file, sentence in grades.unread],
    }  # fmt: skip


def as_rows(grades: Grades) -> list[list[str]]:
    """The grades as the rows of a table, with a column of points for each answer."""
    names = list(dict.fromkeys(mark.question.name for each in grades.graded for mark in each.marks))
    rows = [["student", "variant", "file", "points", "of", *names, "mistakes"]]
    for each in grades.graded:
        points = {mark.question.name: str(mark.points) for mark in each.marks}
        known = each.submission
        start = [_plain(known.student), _plain(known.variant), _plain(known.file), str(each.points), str(each.of)]
        rows.append([*start, *(points.get(name, "") for name in names), "; ".join(each.mistakes)])
    return rows


def _plain(cell: str) -> str:
    """A student's own text, which a spreadsheet must not take for a formula."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t") else cell
