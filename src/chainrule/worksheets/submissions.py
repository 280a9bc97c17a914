"""Reads filled-in worksheets as data: no code of a student is run.

An answer is an assignment of numbers to a name, `Z1 = [[4, 2], [-7/2, 0.5]]`, in a cell of a notebook or a line of a
Markdown file; a table (.csv) or a list (.json) may hold the answers of a whole class.
"""

from __future__ import annotations

import ast
import csv
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from chainrule.worksheets.sheets import BLANK

SUFFIXES = (".ipynb", ".md", ".csv", ".json")
LARGEST = 4_000_000  # bytes of a file; a filled-in notebook has some 30 thousand
DEEPEST = 6  # brackets inside each other
MARK = re.compile(r"Worksheet ([0-9a-f]{8}), variant (\d+)")
_NAME = re.compile(r"^Name:[ \t]*([^\s].*?)[ \t]*$", re.MULTILINE)
_FORMULA = re.compile(r"^```math\n.*?^```", re.MULTILINE | re.DOTALL)
_ARRAYS = {"tensor", "Tensor", "array", "asarray"}
_ARITHMETIC: Mapping[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip

Numbers = float | None | list[Any]
"""A number, nested lists of numbers; None for a blank."""


class NotAnAnswerError(Exception):
    """What stands in the place of an answer is no numbers; the message says what."""


@dataclass(frozen=True)
class Submission:
    """What one student handed in: of which sheet, and the text of each answer by its name.

    `worksheet` is "" where a table does not say of which sheet its answers are.
    """

    student: str
    file: str
    worksheet: str
    variant: str
    answers: Mapping[str, str]


class UnreadableError(Exception):
    """A file is no filled-in worksheet; the message says why, and what to do."""


def files_in(folder: Path, apart: Path) -> list[Path]:
    """The files that may hold answers, in order; without links, hidden ones, and what lies in the folder `apart`."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not path.is_symlink()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and apart not in path.parents
    ]


def read(path: Path, folder: Path, names: Mapping[str, str]) -> list[Submission | UnreadableError]:
    """What is handed in with one file, with an error for each item of a list that is none.

    `names` has the name of each answer by every way to write it.

    Raises UnreadableError for a file that is no filled-in worksheet.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UnreadableError(f"has more than {LARGEST:,} bytes. Hand in the sheet without pictures and outputs.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableError("is not UTF-8 text. Save it as UTF-8.") from None
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror}).") from None
    try:
        match path.suffix.lower():
            case ".csv":
                return list(_of_table(text, path, names))
            case ".json":
                return list(_of_list(text, path, names))
            case ".ipynb":
                prose, code = _cells(text)
            case _:
                prose, code = text, _FORMULA.sub("", text)
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise UnreadableError("has not the form of a filled-in sheet.") from None
    mark = MARK.search(prose)
    if mark is None:
        raise UnreadableError("does not say `Worksheet ..., variant ...`. Put that line of the sheet back.")
    named = _NAME.search(prose)
    inside = path.relative_to(folder).parts
    student = inside[0] if len(inside) > 1 else named[1] if named else path.stem
    return [Submission(student, str(path.relative_to(folder)), mark[1], mark[2], _assigned(code, names))]


def _cells(text: str) -> tuple[str, str]:
    """The text cells and the code cells of a notebook."""
    try:
        notebook = json.loads(text)
    except ValueError as error:
        raise UnreadableError(f"is no notebook ({error}). Save it again, or hand in the .md sheet.") from None
    texts: dict[str, list[str]] = {"markdown": [], "code": []}
    for cell in notebook["cells"]:
        source = cell["source"]
        texts.setdefault(cell["cell_type"], []).append(source if isinstance(source, str) else "".join(source))
    return "\n".join(texts["markdown"]), "\n".join(texts["code"])


def _assigned(text: str, names: Mapping[str, str]) -> dict[str, str]:
    """The text of the last assignment to each name: to the end of its line, or of its brackets, without comments."""
    text, found = _COMMENT.sub("", text), {}
    for match in re.finditer(r"^([A-Za-z_]\w*)[ \t]*=(?!=)[ \t]*", text, re.MULTILINE):
        if match[1] in names:
            found[names[match[1]]] = _to_its_end(text, match.end())
    return found


_COMMENT = re.compile(r"#.*")


def _to_its_end(text: str, start: int) -> str:
    depth, end = 0, start
    for end in range(start, len(text)):
        depth += (text[end] in "([") - (text[end] in ")]")
        if text[end] == "\n" and depth <= 0:
            return text[start:end]
    return text[start : end + 1]


def _of_table(text: str, path: Path, names: Mapping[str, str]) -> Iterator[Submission]:
    """The rows of a table, gathered by student and variant."""
    first = text.partition("\n")[0]
    rows = csv.DictReader(StringIO(text), delimiter=";" if first.count(";") > first.count(",") else ",")
    columns = {"student", "variant", "quantity", "answer"}
    if not columns <= set(rows.fieldnames or ()):
        raise UnreadableError(f"has no columns {', '.join(sorted(columns))}.")
    gathered: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        answers = gathered.setdefault((row["student"], row.get("worksheet") or "", row["variant"]), {})
        if row["quantity"] in names:
            answers[names[row["quantity"]]] = row["answer"] or ""
    for (student, worksheet, variant), answers in gathered.items():
        yield Submission(student, path.name, worksheet, variant, answers)


def _of_list(text: str, path: Path, names: Mapping[str, str]) -> Iterator[Submission | UnreadableError]:
    """One object for each student: `student`, `variant`, and `answers` by their names."""
    try:
        loaded = json.loads(text)
    except ValueError as error:
        raise UnreadableError(f"is no JSON ({error}).") from None
    for number, each in enumerate(loaded if isinstance(loaded, list) else [loaded], 1):
        try:
            yield _of_item(each, path, names)
        except (KeyError, TypeError, AttributeError):
            yield UnreadableError(f"has an item, number {number}, without `student`, `variant` and `answers`.")


def _of_item(each: Any, path: Path, names: Mapping[str, str]) -> Submission:
    answers = {
        names[name]: answer if isinstance(answer, str) else json.dumps(answer).replace("null", "...")
        for name, answer in each["answers"].items()
        if name in names
    }
    worksheet = str(each.get("worksheet", ""))
    return Submission(str(each["student"]), path.name, worksheet, str(each["variant"]), answers)


# -- an answer --------------------------------------------------------------------------------------------------------


def numbers_of(text: str) -> Numbers:
    """The numbers of an answer: `[[1, -3/4], [...]]`. Raises NotAnAnswerError for anything but numbers in brackets."""
    text = text.strip().replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-")
    if not text:
        return None
    try:
        tree = ast.parse(text, mode="eval").body
        return _value(tree, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise NotAnAnswerError("this cannot be read as numbers in brackets") from None
    except (OverflowError, ZeroDivisionError):
        raise NotAnAnswerError("a number in it is infinite") from None


def _value(node: ast.expr, depth: int) -> Numbers:
    match node:
        case ast.List(elts=rows) | ast.Tuple(elts=rows):
            if depth == DEEPEST:
                raise NotAnAnswerError(f"it has more than {DEEPEST} brackets inside each other")
            return [_value(row, depth + 1) for row in rows]
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[inner]) if name in _ARRAYS:
            return _value(inner, depth)  # torch.tensor([1, 2]): what stands in it is read
        case ast.Constant(value=value) if value is ...:
            return None
        case ast.Name(id=name) if name == BLANK["md"] or set(name) == {"_"}:
            return None
        case _:
            return _number(node)


def _number(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int(value) | float(value)) if not isinstance(value, bool):
            number = float(value)
        case ast.Constant(value=str(text)):  # a number as text
            number = _number(ast.parse(text.strip(), mode="eval").body)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            number = -_number(inner)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            number = _number(inner)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _ARITHMETIC:
            number = _ARITHMETIC[type(sign)](_number(left), _number(right))
        case _:
            raise NotAnAnswerError(f"`{ast.unparse(node)[:40]}` is code, and only numbers are graded")
    if not math.isfinite(number):
        raise NotAnAnswerError("a number in it is infinite")
    return number
