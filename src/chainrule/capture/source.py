"""The user's names: from a frame's code and last instruction back to the expression, and to what it was assigned to.

While recording, only `(code, instruction)` is kept, which costs next to nothing; the source is read afterwards.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch

from chainrule.graph.graph import Place
from chainrule.pytorch_internals import OPERATORS

_package = os.path.dirname(os.path.abspath(__file__))  # capture/, inside of chainrule/
_roots = (os.path.dirname(os.path.abspath(torch.__file__)) + os.sep, os.path.dirname(_package) + os.sep, "<frozen")
_examples = os.path.join(_roots[1], "examples") + os.sep
_library: dict[str, bool] = {}
_REFLECTED = frozenset(
    f"__r{operator}__" for operator in ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "matmul")
)


def is_library(code: CodeType) -> bool:
    """Whether code belongs to PyTorch, to Python's own plumbing, or to us: not to the user."""
    name = code.co_filename
    known = _library.get(name)
    if known is None:
        inside = name.startswith(_roots) and not name.startswith(_examples)
        known = _library[name] = inside or name == contextlib_file
    return known


contextlib_file = sys.modules["contextlib"].__file__


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those that called it, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def users_frame(frame: FrameType | None) -> FrameType | None:
    """The nearest frame of the user's code, counted from `frame` outwards."""
    return next((each for each in callers(frame) if not is_library(each.f_code)), None)


@dataclass(frozen=True, slots=True)
class Site:
    """A place in running code: which instruction of which code object.

    `through` is the name of the library function that the instruction called ("" where it called us directly).
    """

    code: CodeType
    instruction: int
    through: str = field(default="", compare=False)

    @classmethod
    def of(cls, frame: FrameType | None, made: Sites | None = None) -> Site | None:
        """The nearest frame outside PyTorch, counted from `frame` outwards; one of those `made`, if it is there."""
        through = ""
        while frame is not None:
            code = frame.f_code
            known = _library.get(code.co_filename)
            if known is None:
                known = is_library(code)
            if not known:
                break
            through = code.co_name
            frame = frame.f_back
        if frame is None:
            return None
        if made is None:
            return cls(frame.f_code, frame.f_lasti, through)
        key = (id(frame.f_code), frame.f_lasti, through)
        site = made.get(key)
        if site is None:
            site = made[key] = cls(frame.f_code, frame.f_lasti, through)
        return site

    def place(self) -> Place:
        """Read the source: file, line, the expression, and the names that its result is assigned to."""
        return _place(self.code, self.instruction)

    def argument_names(self, function: Any, arguments: tuple[Any, ...]) -> tuple[str, ...]:
        """What the arguments of a call are called where it stands: `("output", "Y")` in `loss(output, Y)`; "" for none.

        The first argument of a tensor's method is the tensor: `("x", "w")` in `x.matmul(w)`, `("x", "")` in `1 - x`.
        """
        name = getattr(function, "__name__", "")
        method = name == "__get__" or getattr(torch.Tensor, name, None) is function
        by_number = name in ("add", "mul") and not isinstance(arguments[-1] if arguments else None, torch.Tensor)
        names = _argument_names(self.code, self.instruction, method, by_number)
        return names[::-1] if name in _REFLECTED else names


def exception_site(trace: TracebackType | None) -> Site | None:
    """The innermost line of the user's own code that an exception came through."""
    found = None
    while trace is not None:
        if not is_library(trace.tb_frame.f_code):
            found = Site(trace.tb_frame.f_code, trace.tb_lasti)
        trace = trace.tb_next
    return found


Sites = dict[tuple[int, int, str], Site]
"""The sites of one recording, each made once: a loop comes by the same ones again. A site holds its code, whose id so
stays its own."""


@lru_cache(maxsize=4096)
def _argument_names(code: CodeType, instruction: int, method: bool, by_number: bool) -> tuple[str, ...]:
    node = _expression(code, instruction)[0]
    operands: list[ast.expr] = []
    if isinstance(node, ast.Call):
        of = [node.func.value] if method and isinstance(node.func, ast.Attribute) else []
        operands = of + node.args
    elif isinstance(node, ast.BinOp):
        operands = [node.left, node.right]
        if by_number and not isinstance(node.right, ast.Constant):  # `n * x` calls what `x * n` calls
            operands = [node.right] if isinstance(node.left, ast.Constant) else []
    elif isinstance(node, ast.Attribute):
        operands = [node.value]
    elif isinstance(node, ast.Subscript):
        operands = [node.value, node.slice]
    elif isinstance(node, ast.UnaryOp):
        operands = [node.operand]
    return tuple(_name(each) for each in operands)


def _expression(code: CodeType, instruction: int) -> tuple[ast.expr | ast.stmt | None, ast.stmt | None]:
    """The expression that an instruction evaluates, and the statement that it stands in."""
    positions = list(code.co_positions())
    line, last_line, column, last_column = positions[instruction // 2]
    if line is None or last_line is None or column is None or last_column is None:
        return None, None
    return _find(code.co_filename, (line, column, last_line, last_column))


@lru_cache(maxsize=4096)
def _place(code: CodeType, instruction: int) -> Place:
    line = list(code.co_positions())[instruction // 2][0] or code.co_firstlineno
    node, statement = _expression(code, instruction)
    if node is None:
        return Place(code.co_filename, line, code.co_name)
    return Place(code.co_filename, line, code.co_name, ast.unparse(node), _targets(node, statement))


@lru_cache(maxsize=256)
def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _find(file: str, where: tuple[int, int, int, int]) -> tuple[ast.expr | ast.stmt | None, ast.stmt | None]:
    """The outermost expression that stands exactly there, and its statement.

    `x += y` has no expression of its own: the instruction's place is the statement's. Only what lies around the place
    is looked into: a file may have thousands of lines, of which a step runs a few.
    """
    waiting: list[tuple[ast.AST, ast.stmt | None]] = [(_parsed("".join(linecache.getlines(file))), None)]
    written = None
    while waiting:
        node, statement = waiting.pop()
        inner = node if isinstance(node, ast.stmt) else statement
        if isinstance(node, ast.expr) and inner is not None and _span(node) == where:
            return node, inner
        if isinstance(node, ast.AugAssign) and _span(node) == where:
            return node, node
        if isinstance(node, ast.AugAssign) and (node.lineno, node.end_lineno) == (where[0], where[2]):
            written = node
        waiting.extend((child, inner) for child in ast.iter_child_nodes(node) if _reaches(child, where))
    return written, written


def _span(node: ast.expr | ast.AugAssign) -> tuple[int, int, int | None, int | None]:
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _reaches(node: ast.AST, where: tuple[int, int, int, int]) -> bool:
    """Whether a place may lie inside a node; not every kind of node knows where it stands."""
    if not isinstance(node, (ast.stmt, ast.expr)) or node.end_lineno is None:
        return True
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])  # they stand before the line of a definition
    first = min(each.lineno for each in (node, *decorators))
    return first <= where[0] and where[2] <= node.end_lineno


def _targets(node: ast.AST, statement: ast.stmt | None) -> tuple[str, ...]:
    """The names on the left, if the whole right side is this expression (or a tuple is unpacked from it)."""
    if isinstance(statement, ast.Assign) and statement.value is node:
        target = statement.targets[0]
    elif isinstance(statement, ast.Assign) and (paired := _paired(node, statement)) is not None:
        target = paired
    elif (isinstance(statement, ast.AnnAssign) and statement.value is node) or (
        isinstance(statement, ast.AugAssign) and statement is node
    ):
        target = statement.target
    else:
        return _walrus(node, statement)
    elements = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
    return tuple(_name(element) for element in elements)


def _paired(node: ast.AST, statement: ast.Assign) -> ast.expr | None:
    """The target of this expression in `a, b = f(x), g(x)`."""
    sides = statement.targets[0], statement.value
    if not all(isinstance(each, ast.Tuple) for each in sides):
        return None
    targets, values = (side.elts for side in sides if isinstance(side, ast.Tuple))
    if len(targets) != len(values) or any(isinstance(each, ast.Starred) for each in (*targets, *values)):
        return None
    return next((target for target, value in zip(targets, values, strict=True) if value is node), None)


def _walrus(node: ast.AST, statement: ast.stmt | None) -> tuple[str, ...]:
    named = (each for each in ast.walk(statement) if isinstance(each, ast.NamedExpr)) if statement else ()
    return next(((each.target.id,) for each in named if each.value is node), ())


def _name(target: ast.expr) -> str:
    """`Z1`, `self.hidden` -> `hidden`; anything else gives no name."""
    if isinstance(target, ast.Name):
        return "" if target.id == "_" else target.id
    return target.attr if isinstance(target, ast.Attribute) else ""


def locals_of(frame: FrameType) -> dict[str, Any]:
    """A frame's local variables.

    Before Python 3.13 a function's frame would keep alive what `f_locals` has shown. It is the dictionary that
    `locals()` gave the user's code, if that was called: then it is the user's, and stays.
    """
    shown = frame.f_locals
    found = dict(shown)
    if frame.f_code.co_flags & inspect.CO_OPTIMIZED and isinstance(shown, dict) and sys.getrefcount(shown) <= _OURS:
        shown.clear()
    return found


_OURS = 3  # references to what `f_locals` shows: the frame's, the variable's, and that of the call which counts


def entries(trace: TracebackType | None) -> Iterator[TracebackType]:
    """The entries of a traceback, outermost first."""
    while trace is not None:
        yield trace
        trace = trace.tb_next


def without_our_frames(trace: TracebackType | None, room: str = "chainrule") -> list[TracebackType]:
    """The entries of a traceback without those that recording adds: ours, and the library's on the way to and from us.

    A function of ours that is decorated by a context manager is called by `contextlib`. Under a function mode PyTorch's
    Python functions (`F.relu`, but not `F.linear`) come twice: on the way to us, through `handle_torch_function`, and
    for the work.
    """
    kept: list[TracebackType] = []
    ours = False
    for entry in entries(trace):
        name = entry.tb_frame.f_globals.get("__name__", "")
        came_from_us, ours = ours, _is_ours(name, room)
        if ours:
            if kept and kept[-1].tb_frame.f_code.co_name == "handle_torch_function":
                del kept[-2:]
            while kept and kept[-1].tb_frame.f_globals.get("__name__") == "contextlib":
                kept.pop()
        elif not (came_from_us and name == OPERATORS):
            kept.append(entry)
    return kept


def leave_out_recorder(trace: TracebackType | None) -> None:
    """Take the recorder's frames out of the traceback of an error of the user's, in place: they say nothing of it.

    An error of the recorder itself keeps them. PyTorch's functions are called as `func` by frames of ours.
    """
    kept = without_our_frames(trace, "chainrule.capture")
    if not kept or kept[0] is not trace:
        return
    *_, last = (each for each in entries(trace) if each.tb_frame.f_globals.get("__name__") != OPERATORS)
    if last in kept or "func" in last.tb_frame.f_code.co_varnames:
        for entry, inner in pairwise(kept):
            entry.tb_next = inner
        kept[-1].tb_next = None


def _is_ours(module: str, room: str) -> bool:
    return f"{module}.".startswith(f"{room}.") and not module.startswith("chainrule.examples.")
