from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
import torch.nn.functional as F
from nbclient import NotebookClient
from torch import nn

from chainrule import Recording, load, record
from chainrule.document import Document, Paragraph, Section
from chainrule.views import written as text_of
from tests.steps import worked
from tests.views import hostile


class Odd(nn.Module):
    """What is awkward to run again: chance, in-place writes, values used twice, lists, state, whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 2)
        self.norm = nn.BatchNorm2d(2)
        self.linear = nn.Linear(8, 3)
        self.embedding = nn.Embedding(5, 3)

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        h = F.dropout(F.relu_(self.norm(self.convolution(x))).flatten(1), 0.5)
        y = self.linear(h * h) + self.embedding(index)
        y = y + torch.sin(y)
        a, b = y.split([1, 2], 1)
        return F.softmax(torch.stack([b[:, 0], a[:, 0], b[:, 1]], 1), -1)


def odd() -> Recording:
    torch.manual_seed(1)
    model = Odd()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, index = torch.randn(2, 1, 3, 3), torch.tensor([1, 2])

    def step() -> None:
        optimizer.zero_grad()
        (model(x, index) ** 2).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    step()
    with record() as recording:
        step()
    return recording


def sources(recording: Recording) -> list[str]:
    return [section.code for _, section in recording.document(coded=True).walk() if section.code]


def run(codes: list[str]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for code in codes:
        exec(compile(code, "a cell", "exec"), names)
    return names


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("logits", [False, True])
def test_the_code_of_the_worked_example_recomputes_every_gradient(optimizer: str, logits: bool) -> None:
    recording = worked(optimizer, logits)
    names = run(sources(recording))
    for value, name in (("linear1.weight", "W1"), ("linear1.bias", "b1"), ("linear3.weight", "W3"), ("Z1", "Z1")):
        assert torch.equal(names[f"dJ_d{name}"], recording[value].grad)
    after = recording.parameters["linear2.weight"].after
    assert after is not None
    torch.testing.assert_close(names["W2_new"].detach(), after)
    code = "\n".join(sources(recording))
    assert code.count("# what PyTorch runs") == code.count("# by the Jacobian") >= 11


def test_data_that_the_block_makes_is_data() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    with record() as recording:
        batch = torch.randn(2, 3)
        target = batch.sum(1, keepdim=True)
        F.mse_loss(model(batch), target).backward()
    codes = sources(recording)
    run(codes)
    assert "batch = torch.tensor(" in codes[0]
    assert "aten.addmm(bias, batch, " in "\n".join(codes)
    assert "aten.mse_loss(" in "\n".join(codes)


def test_awkward_operations_run_again() -> None:
    recording = odd()
    names = run(sources(recording))
    assert torch.equal(names["dJ_dlinear_weight"], recording["linear.weight"].grad)


def test_code_from_a_loaded_recording_is_the_same(tmp_path: Path) -> None:
    recording = odd()
    recording.save(tmp_path / "odd.safetensors")
    assert sources(load(tmp_path / "odd.safetensors")) == sources(recording)


def test_a_wrong_number_is_met() -> None:
    codes = sources(worked())
    assert "W1 = torch.tensor([[-1.0" in "\n".join(codes)
    with pytest.raises(AssertionError, match="not the recorded result"):
        run([code.replace("W1 = torch.tensor([[-1.0", "W1 = torch.tensor([[-1.5") for code in codes])


def test_without_comparing_a_changed_number_goes_all_the_way() -> None:
    def changed(code: str) -> str:
        return code.replace("W1 = torch.tensor([[-1.0", "W1 = torch.tensor([[-1.5").replace(
            "COMPARE = True", "COMPARE = False"
        )

    codes = sources(worked("sgd"))
    before, after = run(codes), run([changed(code) for code in codes])
    assert not torch.equal(before["J"], after["J"])
    assert not torch.equal(before["dJ_dW2"], after["dJ_dW2"])
    assert not torch.equal(before["W3_new"], after["W3_new"])


def test_special_numbers_come_through() -> None:
    x = nn.Parameter(torch.tensor([1.0, -0.0, float("inf"), float("nan"), 1e-45]))
    half = torch.tensor([0.1, 3.0], dtype=torch.bfloat16)
    double = torch.tensor(0.1, dtype=torch.float64)
    with record() as recording:
        cost = (x * 2).sum() + (half.float() * x[:2]).sum() + double * x[0] + x[:0].sum()
        cost.backward()
    names = run(sources(recording))
    torch.testing.assert_close(names["x"], x.detach(), rtol=0, atol=0, equal_nan=True)
    assert names["double"].dtype is torch.float64


def test_memory_that_nothing_was_written_to_is_as_recorded() -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    with record() as recording:
        order = torch.tensor([1, 0])
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(2)
        room = torch.empty(2).detach()
        (w[inverse] * 2 + 0 * room.copy_(w.detach())).sum().backward()
    code = "\n".join(sources(recording))
    assert "aten.empty" not in code
    run(sources(recording))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_pass_their_own_checks(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 2)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with record() as recording:
        F.cross_entropy(model(5 * torch.randn(4, 5, dtype=dtype)), torch.tensor([0, 1, 1, 0])).backward()
        optimizer.step()
    assert len(sources(recording)) > 10
    run(sources(recording))


def test_large_tensors_are_left_out() -> None:
    model = nn.Linear(300, 2)
    with record() as recording:
        cost = model(torch.ones(4, 300)).sum()
        cost.backward()
    code = "\n".join(sources(recording))
    assert len(code) < 4000
    run(sources(recording))


def test_hostile_names_are_only_identifiers() -> None:
    known = _names(_called("x"))[0]
    for name in hostile.NAMES:
        codes = _called(name)
        assert not any(bad in "\n".join(codes) for bad in ("alert(", "system(", "import os"))
        used, assigned = _names(codes)
        assert used - assigned <= known
        run(codes)


def _called(name: str) -> list[str]:
    """The code of a step whose layer and input have this name."""
    layer = nn.Linear(1, 1)
    model = nn.Module()
    model._modules[name] = layer
    namespace = {name: torch.ones(1, 1), "model": model}
    with record(namespace=namespace) as recording:
        layer(namespace[name]).sum().backward()
    return sources(recording)


def _names(codes: list[str]) -> tuple[set[str], set[str]]:
    """The names in some code, and those of them that it assigns."""
    names = [node for node in ast.walk(ast.parse("\n".join(codes))) if isinstance(node, ast.Name)]
    return {node.id for node in names}, {node.id for node in names if isinstance(node.ctx, ast.Store)}


@pytest.mark.parametrize("name", [name for name in hostile.NAMES if "@" not in name])  # `x@2` is the second x
def test_hostile_names_are_written_as_in_a_recording(name: str) -> None:
    x = torch.ones(1, requires_grad=True)
    with record(namespace={name: x}) as recording:
        x.sum().backward()
    (value,) = [each for each in recording.graph.values if each.kind == "parameter"]
    assert recording.notation.symbol(value.index) == rf"\text{{{hostile.escape(name)}}}"


@pytest.mark.parametrize("name", hostile.NAMES)
def test_hostile_names_keep_the_notebook_whole(name: str) -> None:
    written = text_of(hostile.document(name), ".ipynb")
    read = nbformat.reads(written, as_version=4)
    nbformat.validate(read)
    assert [cell.cell_type for cell in read.cells] == ["markdown", "markdown"]
    assert written.isascii()
    assert "<img" not in written


def test_cells_of_text_and_code() -> None:
    sections = (
        Section(
            ("One",),
            "one",
            "note",
            (Paragraph(("Words.",)),),
            (Section(("Inner",), "in", "note", code="x = 2"),),
            "x = 1",
        ),
    )
    cells = json.loads(text_of(Document(("T",), (), sections), ".ipynb"))["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == [
        ("markdown", "# T"),
        ("markdown", "## One\n\nWords."),
        ("code", "x = 1"),
        ("markdown", "### Inner"),
        ("code", "x = 2"),
    ]


@pytest.mark.slow
def test_a_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    worked().save(tmp_path / "step.ipynb")
    read = nbformat.read(tmp_path / "step.ipynb", as_version=4)
    NotebookClient(read, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    ran = [cell for cell in read.cells if cell.cell_type == "code"]
    assert len(ran) > 20
    assert all(cell.execution_count for cell in ran)
