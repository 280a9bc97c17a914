"""Sees in the loop around an optimizer's step that it begins a DataLoader anew: `next(iter(loader))`.

Whether the batches then are the same, statistics tell; that the loader has others, only the loop and the loader do.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from chainrule.capture.source import locals_of
from chainrule.graph.trees import is_a

Restart = tuple[tuple[str, ...], str]
"""The names that the batch is assigned to, and the line with the number of batches: `train.py:12, of 57 batches`."""


def restarts(frame: FrameType | None) -> tuple[Restart, ...]:
    """The assignments in the innermost loop around a frame's line that take the first of a loader's several batches."""
    return () if frame is None else tuple(_found(frame))


def _found(frame: FrameType) -> Iterator[Restart]:
    code = frame.f_code
    for targets, line, loader in _assignments(code.co_filename, frame.f_lineno, code.co_firstlineno):
        known = _value(loader, frame)
        try:
            count = len(known) if is_a(known, DataLoader) else 0
        except TypeError:  # of a stream
            continue
        if count > 1:
            yield targets, f"{code.co_filename.rpartition('/')[2]}:{line}, of {count:,} batches"


@lru_cache(maxsize=64)
def _assignments(file: str, line: int, first: int) -> tuple[tuple[tuple[str, ...], int, ast.expr], ...]:
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return ()
    around = [
        each for each in ast.walk(tree)
        if isinstance(each, (ast.For, ast.While)) and first <= each.lineno < line <= (each.end_lineno or 0)
    ]  # fmt: skip
    loop = max(around, key=lambda each: each.lineno, default=None)
    found = []
    for each in _always_run(loop.body) if loop is not None else ():
        if isinstance(each, ast.Assign) and (loader := _first_of(each.value)) is not None:
            names = {name.id for target in each.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
            found.append((tuple(sorted(names)), each.lineno, loader))
    return tuple(found)


def _always_run(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run at each pass of a loop: those under a condition may run once."""
    for each in body:
        yield each
        if isinstance(each, (ast.With, ast.Try)):
            yield from _always_run(each.body)


def _first_of(value: ast.expr) -> ast.expr | None:
    """`loader` of `next(iter(loader))`."""
    for function in ("next", "iter"):
        called = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == function
        if not called or not isinstance(value, ast.Call) or len(value.args) != 1:
            return None
        value = value.args[0]
    return value


def _value(named: ast.expr, frame: FrameType) -> Any:
    """What a name or an attribute stands for; no code of the user's runs."""
    if isinstance(named, ast.Name):
        return locals_of(frame).get(named.id, frame.f_globals.get(named.id))
    if isinstance(named, ast.Attribute):
        return getattr(_value(named.value, frame), "__dict__", {}).get(named.attr)
    return None
