"""PyTorch's names that are not public: all are in `pytorch_internals.py`, and this PyTorch has them."""

import ast
import inspect
from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from pathlib import Path

import torch

from chainrule import pytorch_internals

SOURCE = Path(__file__).parents[1] / "src" / "chainrule"
FILE = SOURCE / "pytorch_internals.py"
PYTHON = {"_current_frames", "_getframe", "_is_owned", "_make"}  # names of Python's own library


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that is imported from PyTorch, with its path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "torch")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def found(path: str) -> object:
    """What a dotted path leads to. Raises ImportError or AttributeError."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            module = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[end:], module)
    raise ImportError(path)


def missing() -> list[str]:
    """The names that the installed PyTorch does not have; reads the file, so that it need not be importable."""
    tree = ast.parse(FILE.read_text(encoding="utf-8"))
    lost = []
    for path, _ in imported(tree):
        try:
            found(path)
        except (ImportError, AttributeError):
            lost.append(path)
    listed = next(n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "ATTRIBUTES")
    for holder, names in ast.literal_eval(listed).items():
        try:
            known = found(holder)
        except (ImportError, AttributeError):
            lost.append(holder)
            continue
        text = "" if inspect.ismodule(known) else _source(known)
        lost += [f"{holder}.{name}" for name in names if not (hasattr(known, name) or name in text)]
    return lost


def _source(known: object) -> str:
    try:
        return inspect.getsource(known)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""


def test_this_pytorch_has_every_name() -> None:
    lost = missing()
    assert not lost, f"PyTorch {torch.__version__} has no {', '.join(lost)}: say in {FILE.name} what takes their place"


def test_no_other_file_uses_one() -> None:
    listed = {name for names in pytorch_internals.ATTRIBUTES.values() for name in names}
    ours = listed | PYTHON | {"_read_from", "_repr_html_", "_repr_latex_"}  # which we put on tensors and results
    wrong: list[str] = []
    read: list[tuple[Path, ast.Attribute]] = []
    for path in SOURCE.rglob("*.py"):
        if path == FILE:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        wrong += [f"{path.name}:{line} {name}" for name, line in imported(tree) if is_private(name)]
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                ours.add(node.name)
            elif isinstance(node, ast.AnnAssign):
                ours.add(ast.unparse(node.target))
            elif isinstance(node, ast.Attribute) and is_private(node.attr):
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    ours.add(node.attr)
                read.append((path, node))
    for path, node in read:
        # The name of an operator stands in its schema.
        if node.attr not in ours and not ast.unparse(node.value).endswith(("aten", "ATEN")):
            wrong.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    assert not wrong, f"move to {FILE.name}, or list in its ATTRIBUTES: {', '.join(wrong)}"
