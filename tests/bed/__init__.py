"""The bed that measures the findings: public faults rebuilt as scripts, and healthy trainings.

A script is an ordinary PyTorch program. Its docstring says what it is and, for a fault, which finding must name its
cause (`expect`), at which names (`where`), what else is true of it (`effects`), and its public `source`. The line of
the cause is marked `# <- cause`. `right: CODE` after the mark is the line as it should be, and gives the repaired twin.
The last line that a script prints is a figure of how well it trained.

`tests.bed.loops` has smaller ones, which run in the process of the tests.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARK = re.compile(r"^(?P<indent> *)(?P<code>.*?)  # <- cause(?:, right: (?P<right>.*))?$")


@dataclass(frozen=True)
class Script:
    """One script of the bed."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def faulty(self) -> bool:
        return self.path.parent.name == "faults"

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def title(self) -> str:
        """What the script is: the first paragraph of its docstring."""
        return " ".join(self._paragraphs[0].split())

    @cached_property
    def fields(self) -> dict[str, str]:
        """`expect`, `where`, `effects` and `source`, as far as they are given."""
        text = "\n".join(self._paragraphs[1:])
        found = re.findall(r"^(\w+): (.*(?:\n .*)*)", text, re.MULTILINE)
        return {key: " ".join(value.split()) for key, value in found}

    @cached_property
    def _paragraphs(self) -> list[str]:
        return (ast.get_docstring(ast.parse(self.text)) or "").split("\n\n")

    def ids(self, field: str) -> list[str]:
        """The items of a field."""
        return [each.strip() for each in self.fields.get(field, "").split(",") if each.strip()]

    @cached_property
    def lines(self) -> list[int]:
        """The numbers of the lines marked as the cause."""
        return [number for number, line in enumerate(self.text.splitlines(), 1) if MARK.match(line)]

    @property
    def twin(self) -> str | None:
        """The text with each marked line put right, on the same line; None if none says how."""
        lines = self.text.splitlines()
        matches = [MARK.match(line) for line in lines]
        if not any(match and match["right"] for match in matches):
            return None
        pairs = zip(lines, matches, strict=True)
        return "\n".join(
            match["indent"] + match["right"] if match and match["right"] else line for line, match in pairs
        )

    def at_the_cause(self, finding: Any) -> bool:
        """Whether a finding points to a marked line or a given name."""
        told = " ".join([finding.place, finding.text, *finding.evidence, finding.advice])
        if any(re.search(rf"{re.escape(self.path.name)}:{line}\b", told) for line in self.lines):
            return True
        # A pattern `head.*` also means the module `head` itself.
        patterns = [each for name in self.ids("where") for each in (name, name.removesuffix(".*"))]
        told_names = [finding.where, *re.findall(r"\w+(?:\.\w+)*", finding.text)]
        return any(fnmatchcase(name, pattern) for name in told_names for pattern in patterns)


def scripts(*names: str) -> Iterator[Script]:
    """The scripts of these names (`healthy` and `faults` are folders), or all."""
    for path in sorted(HERE.glob("faults/*.py")) + sorted(HERE.glob("healthy/*.py")):
        if not names or any(fnmatchcase(path.stem, name) or path.parent.name == name for name in names):
            yield Script(path)
