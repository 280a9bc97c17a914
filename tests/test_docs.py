"""Every example in README, docs and public docstrings is run, and its output is the one that stands there.

In a page, ```python blocks share one namespace, in order; one that begins with `# name.py` is a file that later blocks
may run. ```py blocks show code of the package or an example, word for word. ```sh blocks are commands: those with an
```output block after them are run, the others parsed. An ```output block is what the block above it prints; a line
`...` stands for any lines. Numbers may differ by rounding.
`python tests/test_docs.py` writes the real output into blocks that have no `...`, and nothing else does.
"""

import contextlib
import inspect
import io
import math
import os
import re
import shlex
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import chainrule
from chainrule import Recording, reference
from chainrule.cli import commands
from chainrule.examples import worked_example

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "chainrule"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The libraries on this page take seconds to import, and warn by themselves.
MARKS = {"loops.md": [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.\d+(?:e[-+]?\d+)?")
COLUMNS = 100


@dataclass
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    span: tuple[int, int]  # of the text, in the page
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(m[1], m[2], m.span(2), text.count("\n", 0, m.start(2)) + 1) for m in FENCE.finditer(text)]


def outputs(page: Path):
    """Run a page's blocks in order, in the working directory; gives each output block with what was really printed."""
    namespace = {"__name__": "__main__"}
    printed = ""
    found = blocks(page)
    for block, after in zip(found, [*found[1:], None], strict=False):
        if block.language == "python":
            printed = run_python(page, block, namespace)
        elif block.language == "sh":
            printed = "".join(map(run_line if after and after.language == "output" else parse, lines(block.text)))
        elif block.language == "output":
            yield block, "\n".join(line.rstrip() for line in printed.splitlines()).strip("\n")
        else:
            assert block.language in ("py", "text", ""), (
                f"{page.name}:{block.line}: nothing runs {block.language!r} blocks"
            )


def run_python(page: Path, block: Block, namespace: dict) -> str:
    file = re.match(r"# (\w+\.py)\n", block.text)
    if file:
        Path(file[1]).write_text(block.text, encoding="utf-8")
        return ""
    # A file of its own, so that names and lines are read from it as from anybody's script.
    source = Path(f"{page.stem}-{block.line}", "example.py")
    source.parent.mkdir()
    source.write_text(block.text, encoding="utf-8")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.text, str(source.absolute()), "exec"), namespace)
    return out.getvalue()


def lines(text: str) -> list[str]:
    return [line.partition("  #")[0].strip() for line in text.splitlines() if line.strip()]


def run_line(line: str) -> str:
    parse(line)
    program, *arguments = shlex.split(line)
    assert program == "chainrule", f"only chainrule's own commands are run, not {line!r}"
    result = CliRunner().invoke(commands, arguments, prog_name="chainrule")
    assert not isinstance(result.exception, Exception), result.exception
    return result.output


def parse(line: str) -> str:
    """Check that a command is one that exists, with options that exist."""
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z]+=.*", word)]
    match words:
        case ["chainrule", *arguments]:
            check_command(arguments)
        case ["make", *targets]:
            assert set(targets) <= make_targets(), f"the Makefile does not have all of {targets}"
        case ["python", "-m", module, *_]:
            assert find_spec(module), f"there is no module {module}"
        case ["python", script, *_]:
            assert (ROOT / script).is_file(), f"there is no {script}"
        case ["torchrun", "--nproc-per-node", _, *_]:
            pass  # tests/distributed runs it
        case ["pip", "install", *_] | ["git", "clone", *_] | ["cd", _]:
            pass
        case _:
            raise AssertionError(f"no test knows the command {line!r}")
    return ""


def check_command(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        return
    command = commands.get_command(click.Context(commands), arguments[0])
    assert command, f"there is no command chainrule {arguments[0]}"
    if not {"-h", "--help"} & set(arguments):
        command.make_context(arguments[0], arguments[1:])


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)[1].split())


def same(documented: str, real: str) -> bool:
    """Whether the lines agree, but for rounding, the widths of columns, and what `...` stands for."""
    pattern = [re.escape(shape(line)) for line in documented.strip("\n").splitlines()]
    pattern = [r"(?:.*\n)*?" if line == re.escape("...") else line + r"\n" for line in pattern]
    told = "".join(shape(line) + "\n" for line in real.strip("\n").splitlines())
    if not re.fullmatch("".join(pattern), told):
        return False
    if "\n...\n" in f"\n{documented.strip()}\n":
        return True  # the numbers cannot be aligned; the shapes, with rounded numbers in them, were
    pairs = zip(NUMBER.findall(documented), NUMBER.findall(real), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=1e-4, abs_tol=2e-4) for a, b in pairs)


def shape(line: str) -> str:
    """A line without what rounding can change."""
    return re.sub(r"\s+", " ", re.sub(r"([─━═])\1+", r"\1", NUMBER.sub("#", line))).strip()


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setattr(sys, "argv", ["python"])


@pytest.mark.printed
@pytest.mark.trains
@pytest.mark.parametrize("page", [pytest.param(page, marks=MARKS.get(page.name, ()), id=page.name) for page in PAGES])
def test_examples_of_a_page_print_what_it_says(page, workplace):
    for block, real in outputs(page):
        assert same(block.text, real), (
            f"{page.name}:{block.line}: the real output is\n{real}\nIf that is right, `python tests/test_docs.py` "
            "writes it into the page (blocks with `...` are edited by hand)."
        )


def test_the_comparison_sees_a_difference():
    assert same("J = 0.1952\n", "J  = 0.1953")
    assert same("a\n...\nz 0.5\n", "a\nb\nc\nz 0.5\n")
    assert not same("J = 0.1952\n", "J = 0.2952")
    assert not same("J = 0.1952\n", "K = 0.1952")
    assert not same("a\n...\nz\n", "a\nb\ny\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [target for target in targets if "://" not in target and not (page.parent / (target or ".")).exists()]
    assert not missing


def test_the_page_of_rules_is_up_to_date():
    written = reference.RULES.read_text(encoding="utf-8") if reference.RULES.exists() else ""
    # Which kernel runs depends on the machine, so a rule's formula may; the rules themselves and their order may not.
    assert headings(written) == headings(reference.rules_page()), f"docs/rules.md is old: run `{reference.COMMAND}`"


@pytest.mark.parametrize("path", [reference.SCHEMA, reference.LLMS], ids=lambda path: path.name)
def test_the_files_for_programs_are_up_to_date(path):
    made = {reference.SCHEMA: reference.schema.text, reference.LLMS: reference.llms_page}[path]()
    assert path.read_text(encoding="utf-8") == made, f"docs/{path.name} is old: run `{reference.COMMAND}`"
    links = re.findall(r"\]\(([^)]+)\)", made) if path == reference.LLMS else []
    assert all((path.parent / link).is_file() for link in links)


def headings(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith(("#", "- answers to", "- source"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_that_a_page_shows_is_code_of_the_package(page):
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    package = "\n\n".join(path.read_text(encoding="utf-8") for path in files)
    for block in blocks(page):
        assert block.language != "py" or block.text in package, f"{page.name}:{block.line} is not in the package"


def test_each_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    missing = [each for each in project["dependencies"] if f"| `{each}` |" not in page]
    assert not missing, "docs/dependencies.md gives each dependency a line, as it stands in pyproject.toml"


PUBLIC = [getattr(chainrule, name) for name in chainrule.__all__ if name != "__version__"]
PUBLIC += [member for _, member in inspect.getmembers(Recording, callable) if member.__doc__]
CODE = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)


def examples():
    yield pytest.param((chainrule.__doc__ or "").partition("\n")[2], id="chainrule")  # all but its first line is code
    for member in PUBLIC:
        doc = inspect.cleandoc(member.__doc__ or "") + "\n"
        for found in CODE.finditer(doc):
            if "chainrule." in found[0] or "recording" in found[0]:
                yield pytest.param(found[0], id=getattr(member, "__name__", "?"))


@pytest.mark.parametrize("example", list(examples()))
def test_examples_of_docstrings_run(example, workplace, capsys):
    model, _, optimizer = worked_example.build()
    given = {"X": worked_example.X, "Y": worked_example.Y, "model": model, "optimizer": optimizer}
    exec(
        compile(textwrap.dedent(example), "docstring.py", "exec"),
        {"chainrule": chainrule, "F": worked_example.F, **given},
    )
    assert capsys.readouterr().out


def helps():
    for name, command in commands.commands.items():
        yield from ((name, line.strip()) for line in (command.help or "").splitlines() if "chainrule " in line)
    yield from (("chainrule", line.strip()) for line in (commands.help or "").splitlines() if "  chainrule " in line)


@pytest.mark.parametrize(("command", "line"), list(helps()))
def test_examples_of_the_help_parse(command, line):
    parse(line)


def rewrite(page: Path) -> None:
    """Put the real output into the page's output blocks, from the last to the first."""
    text = page.read_text(encoding="utf-8")
    for block, real in reversed(list(outputs(page))):
        if same(block.text, real):
            continue
        if "\n...\n" in f"\n{block.text}":
            print(f"{page.name}:{block.line}: edit by hand; the real output is\n{real}")
            continue
        start, end = block.span
        text = f"{text[:start]}{real}\n{text[end:]}"
        print(f"{page.name}:{block.line}: rewritten")
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Rewrite every output block."""
    import tempfile

    os.environ["COLUMNS"] = str(COLUMNS)
    for page in PAGES:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            rewrite(page)


if __name__ == "__main__":
    main()
