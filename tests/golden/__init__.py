"""Golden output: three recorded steps as the terminal, Markdown and LaTeX show them.

`python -m tests.golden` (`make golden`) writes the files; a test that fails does not.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from chainrule import views
from chainrule.document import Measured, Verdict
from tests.golden.steps import STEPS

FOLDER = Path(__file__).parent
SUFFIXES = (".txt", ".md", ".tex")
NAMES = [f"{step}{suffix}" for step in STEPS for suffix in SUFFIXES]


def rendered(step: str) -> dict[str, str]:
    """The text of each file of a step, by the file's name."""
    recording = STEPS[step]()
    recording.verify()
    document = without_residues(recording.document())
    return {f"{step}{suffix}": views.written(document, suffix) for suffix in SUFFIXES}


def without_residues(part: Any) -> Any:
    """A part of a document in which a verdict's difference that is mere rounding is 0, as it is on some processor."""
    if isinstance(part, tuple):
        return tuple(map(without_residues, part))
    if isinstance(part, Verdict):
        part = replace(part, measured=without_residues(part.measured))
    if isinstance(part, Measured):  # where it is largest, and so its tolerance, is a matter of rounding too
        return replace(part, difference=0.0, tolerance=0.0) if part.difference <= part.tolerance else part
    if isinstance(part, Verdict) and part.difference is not None and part.tolerance is not None:
        return replace(part, difference=0.0) if part.difference <= part.tolerance else part
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{each.name: without_residues(getattr(part, each.name)) for each in fields(part)})
    return part


def kept(name: str) -> str:
    """The text of a golden file."""
    return (FOLDER / name).read_text(encoding="utf-8")
