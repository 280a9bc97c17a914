"""The rooms of the package: imports go one way, and nowhere in a circle."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import chainrule

SOURCE = Path(chainrule.__file__).parent
ROOMS = (
    ("_version", "errors", "document", "numbers", "gc_control", "plugins", "process", "pytorch_internals"),
    ("graph",),
    ("rules",),
    ("capture",),
    ("execution",),
    ("derivation",),
    ("verification",),
    ("diagnostics",),
    ("lab",),
    ("exercises",),
    ("report",),
    ("views",),
    ("live",),
    (
        "progress",
        "script",
        "verification_result",
        "notebook_forms",
        "recording",
        "explain_step",
        "verify_function",
        "assertions",
    ),
    ("monitor",),
    ("tools",),
    ("worksheets",),
    ("runs", "callbacks", "distributed", "examples", "demo", "magic", "cli", "reference", "__main__", ""),
)
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}
"""The place of every room and loose file, from the top: each may import those at its own level and above."""


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


@cache
def imports(path: Path) -> tuple[tuple[str, int], ...]:
    """Every import of a module of ours, with its line: lazy ones and those for types alone too."""
    gathered: list[tuple[str, int]] = []
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)) if "chainrule" in text else ():
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if _inside(name) in MODULES else node.module or "" for name in named]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found = [each.value for each in node.args if isinstance(each, ast.Constant)]
        else:
            continue
        gathered += [(_inside(name), node.lineno) for name in found if name.partition(".")[0] == "chainrule"]
    return tuple(gathered)


def _inside(name: str) -> str:
    return name.removeprefix("chainrule").removeprefix(".")


def test_every_module_stands_in_a_room() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(LEVEL)


def test_imports_go_one_way() -> None:
    wrong = [
        f"{path}:{line} imports {imported}, which stands below it in docs/architecture.md"
        for module, path in MODULES.items()
        for imported, line in (imports(path) if module else ())
        if LEVEL[imported.partition(".")[0]] > LEVEL[module.partition(".")[0]]
    ]
    assert not wrong, "\n".join(wrong)


def test_a_view_knows_the_document_alone() -> None:
    for module, path in MODULES.items():
        if module.partition(".")[0] == "views":
            rooms = {name.partition(".")[0] for name, _ in imports(path)}
            assert rooms <= {"views", "document", "numbers", "errors", "gc_control", "plugins"}, module


def test_the_page_shows_every_room() -> None:
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in LEVEL:
        assert not name or f"`{name}`" in page or f"`{name}/`" in page, f"docs/architecture.md does not name {name}"


def test_the_files_that_the_docs_name_exist() -> None:
    root = SOURCE.parents[1]
    for page in (root / "docs").rglob("*.md"):
        for line in page.read_text(encoding="utf-8").splitlines():
            folder = SOURCE
            for name in re.findall(r"`([\w/]+\.(?:py|js))`", line):
                if page.name != "architecture.md" and ("/" not in name or name.partition("/")[0] not in LEVEL):
                    continue  # a file of the reader's
                places = (SOURCE / name, folder / name, root / name)  # or in the folder of the file before it
                found = next((each for each in places if each.exists()), None)
                assert found is not None, f"{page.relative_to(root)} names {name}"
                folder = found.parent


def test_there_is_no_circle() -> None:
    arrows = {
        module: {name for name, _ in imports(path)} - {module} for module, path in MODULES.items() if module != ""
    }
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def test_no_file_is_long() -> None:
    lengths = {name: path.read_text(encoding="utf-8").count("\n") for name, path in MODULES.items()}
    assert not {name: lines for name, lines in lengths.items() if lines > 450 and name.partition(".")[0] != "rules"}


def test_the_public_names() -> None:
    assert chainrule.__all__ == [
        "ChainruleError",
        "Recording",
        "Thresholds",
        "__version__",
        "assert_causal",
        "assert_independent",
        "callbacks",
        "distributed",
        "explain",
        "load",
        "record",
        "runs",
        "verify",
        "watch",
    ]


TESTS = Path(__file__).parent
PUBLIC = {"", "errors", "runs", "callbacks", "distributed", "rules", "views", "document", "examples"}
DEEP = {
    # what is worth a test of its own
    "derivation.forward_values", "derivation.reaches", "diagnostics.causes", "diagnostics.ranks",
    "execution.experiment", "execution.perturbation", "graph.comparison", "graph.graph", "graph.reexecution",
    "graph.storage", "graph.trees",
    "lab.program", "lab.tracing", "live.server", "monitor.dashboard", "monitor.every_step", "monitor.runs.found",
    "rules.element", "rules.expression", "rules.facts", "rules.formula_functions", "rules.optimizers",
    "rules.pattern", "rules.pytorch_formulas",
    "views.formula", "views.json", "views.layers", "views.terminal",
    # what tests make or measure by themselves
    "graph.history", "graph.statistics", "graph.statistics_cache",
    # the program, what it says of single steps and runs, and the pages that are made of the package
    "cli", "diagnostics", "reference", "report", "script",
    # what stands in for a test of PyTorch's names
    "pytorch_internals",
}  # fmt: skip
"""The modules that tests import, apart from the public ones."""

PATCHED = {
    "capture", "capture.retention", "capture.traits", "capture.writes", "execution.central_differences", "monitor",
    "monitor.examine", "monitor.run_page", "monitor.runs.writer", "monitor.step_boundaries", "monitor.step_series",
    "monitor.watcher", "recording", "tools.mcp_server", "tools.pytest_plugin",
}  # fmt: skip
"""The other modules in which tests replace something: a limit, a clock, a function by one that fails."""


def test_tests_look_from_outside() -> None:
    imported = {name for path in TESTS.rglob("*.py") for name, _ in imports(path) if not name.startswith("examples")}
    assert imported - PUBLIC == DEEP


def test_tests_replace_little() -> None:
    named = {name for path in TESTS.rglob("*.py") for name in _named_in(path)}
    assert named - PUBLIC - DEEP == PATCHED


def _named_in(path: Path) -> Iterator[str]:
    """The modules that the texts in a file name, as `monkeypatch.setattr` takes them."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)) if '"chainrule.' in text else ():
        name = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        parts = name.split(".")
        if parts[0] == "chainrule" and all(part.isidentifier() for part in parts):
            known = [".".join(parts[1:end]) for end in range(2, len(parts) + 1)]
            yield from [each for each in known if each in MODULES][-1:]
