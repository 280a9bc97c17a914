from __future__ import annotations

import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import chainrule
from chainrule import Recording

STEP = """\
import torch
x = torch.tensor([1.0, 2.0])
w = torch.nn.Parameter(torch.tensor([3.0, -1.0]))
"""
CELL = """\
product = w * x
cost = product.sum()
cost.backward()
"""


@pytest.fixture
def shell() -> Any:
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    chainrule.load_ipython_extension(shell)
    shell.run_cell(STEP).raise_error()
    yield shell
    InteractiveShell.clear_instance()


def test_a_cell_is_recorded_in_the_users_own_variables(shell: Any) -> None:
    result = shell.run_cell("%%chainrule\n" + CELL)
    result.raise_error()
    recording = result.result
    assert isinstance(recording, Recording)
    assert shell.user_ns["recording"] is recording
    assert recording.loss == 1.0
    assert recording["product"].grad is not None
    assert recording["product"].place is not None
    assert recording["product"].place.expression == "w * x"
    assert shell.user_ns["cost"].item() == 1.0


def test_the_line_names_the_recording(shell: Any) -> None:
    shell.run_cell("%%chainrule first\n" + CELL).raise_error()
    assert shell.user_ns["first"].loss == 1.0
    assert "recording" not in shell.user_ns


def test_a_line_that_is_no_name_is_refused(shell: Any) -> None:
    result = shell.run_cell("%%chainrule a b\n" + CELL)
    with pytest.raises(chainrule.ChainruleError, match="'a b' is no name for a variable"):
        result.raise_error()


def test_an_error_passes_through_and_what_ran_is_recorded(shell: Any) -> None:
    result = shell.run_cell("%%chainrule\n" + CELL + "1 / 0")
    with pytest.raises(ZeroDivisionError):
        result.raise_error()
    assert shell.user_ns["recording"].error == "ZeroDivisionError: division by zero"
    assert shell.user_ns["recording"].loss == 1.0


def test_what_a_notebook_shows(shell: Any) -> None:
    recording = shell.run_cell("%%chainrule\n" + CELL).result
    shown = recording._repr_mimebundle_()
    assert set(shown) == {"text/html", "text/plain"}
    assert shown["text/plain"] == str(recording)
    assert shown["text/html"].startswith(
        '<iframe sandbox="allow-scripts" title="One training step, worked out" srcdoc="'
    )
    assert shown["text/html"].count("<") == 2, "the page is inside an attribute, and nothing else is markup"
    page = unescape(shown["text/html"].partition('srcdoc="')[2].partition('" style="')[0])
    assert page.lower().startswith("<!doctype html>")


def test_a_running_recording_shows_that_it_runs() -> None:
    with chainrule.record() as recording:
        assert recording._repr_mimebundle_() == {"text/plain": "<chainrule.Recording, still running>"}


def test_the_extension_itself_needs_no_torch() -> None:
    code = """
import sys
import chainrule
from IPython.core.interactiveshell import InteractiveShell
chainrule.load_ipython_extension(InteractiveShell.instance())
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def executed(cells: list[str], folder: Path) -> Any:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute()
    return notebook


@pytest.mark.slow
class TestRealNotebook:
    def test_record_in_a_cell_shows_the_page(self, tmp_path: Path) -> None:
        block = "with chainrule.record() as recording:\n" + "".join(f"    {line}\n" for line in CELL.splitlines())
        notebook = executed(["import chainrule\n" + STEP, block + "recording", "print(recording)"], tmp_path)
        (output,) = notebook.cells[1].outputs
        assert output.data["text/html"].startswith('<iframe sandbox="allow-scripts"')
        assert "J = 1.0" in output.data["text/plain"]
        assert "product" in notebook.cells[2].outputs[0].text

    def test_the_magic(self, tmp_path: Path) -> None:
        cells = ["%load_ext chainrule\n" + STEP, "%%chainrule step\n" + CELL, "print(step['product'].place.expression)"]
        notebook = executed(cells, tmp_path)
        (output,) = notebook.cells[1].outputs
        assert "<iframe" in output.data["text/html"]
        assert notebook.cells[2].outputs[0].text == "w * x\n"

    def test_an_error_ends_the_cell(self, tmp_path: Path) -> None:
        with pytest.raises(CellExecutionError, match="division by zero"):
            executed(["%load_ext chainrule\n" + STEP, "%%chainrule\n1 / 0"], tmp_path)
