"""A whole run as one HTML page, of the same kind as the page of one step: one file, offline, nothing to install.

A hundred thousand steps do not fit on a screen, so that time is cut into columns here: of the loss a column shows the
mean, the least and the most, of a heat map the largest; the page says how many steps one column is.
"""

from __future__ import annotations

import os
import re
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from chainrule.monitor.run_page.data import data_of
from chainrule.views import page
from chainrule.views.blocks import printable

if TYPE_CHECKING:
    from chainrule.monitor.runs.reader import RunReader

SHARED = ("numbers.js", "dom.js")  # of the page of one step
MODULES = ("scene.js", "curves.js", "heat.js", "findings.js", "main.js")


def render(run: RunReader, links: dict[int, str] | None = None) -> str:
    """The run as the text of one self-contained HTML file; `links` lead to the pages of steps recorded in full."""
    style = page.read("base.css") + _read("run.css")
    script = _script()
    parts = {
        "policy": page.policy(script, [style]),
        "title": escape(printable(f"{run.script or 'a run'}, watched")),
        "style": style,
        "data": page.embedded(data_of(run, links or {})),
        "script": script,
    }
    return re.sub(r"<!--\s*put:(\w+)\s*-->", lambda place: parts[place[1]], _read("run.html"))


def write(run: RunReader, path: Path) -> None:
    """Write the page, and beside each step that was recorded in full a page of its own, which it links to.

    A page of a step that is there already is left as it is. Raises StorageError where a file cannot be written, or
    where a recording cannot be read.
    """
    from chainrule.graph.storage import write_atomically

    links = {}
    for step, recorded in run.recordings().items():
        told = recorded.file.with_suffix(".html")
        if recorded.file.exists() and not told.exists():
            from chainrule.recording import load  # here, because it brings torch

            load(recorded.file).save(told)
        if told.exists():
            links[step] = Path(os.path.relpath(told, path.absolute().parent)).as_posix()
    write_atomically(path, render(run, links).encode())


@cache
def _read(name: str) -> str:
    return (resources.files(__name__) / name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    return page.joined([*(page.read(name) for name in SHARED), *(_read(name) for name in MODULES)])


__all__ = ["render", "write"]
