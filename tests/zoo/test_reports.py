"""The report of a whole step of each architecture: its code runs, its sums add up, and no equation is circular."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

import chainrule
from chainrule.document import Document, Equation
from tests.zoo.models import ZOO
from tests.zoo.test_zoo import OF_TRANSFORMERS

FAST = {"vae"}
MODELS = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_a_report(name: str) -> None:
    if name in OF_TRANSFORMERS and importlib.util.find_spec("transformers") is None:
        pytest.skip(f"{name} is a model of transformers, which is not installed here.")
    torch.manual_seed(0)
    model, loss = ZOO[name]()
    optimizer = torch.optim.AdamW(model.parameters())
    with chainrule.record() as recording:
        loss(model).backward()
        optimizer.step()
    document = recording.document(pointing=True, coded=True)
    run(document)
    assert not list(circular(document))
    assert not list(wrong_sums(document))


def run(document: Document) -> None:
    """Run the cells of the notebook, which compare what they compute with the recording."""
    names: dict[str, object] = {}
    codes = [section.code for _, section in document.walk() if section.code]
    assert codes
    for code in codes:
        exec(compile(code, "a cell", "exec"), names)


def circular(document: Document) -> list[str]:
    """Equations of the chain rule in which what they explain is a factor."""
    blocks = [block for _, section in document.walk() for block in section.blocks if isinstance(block, Equation)]
    pairs = [block.latex.partition(" = ") for block in blocks if block.label == "chain rule"]
    return [left + " = " + right for left, _, right in pairs if left in right.split(r" \cdot ")]


def wrong_sums(document: Document) -> list[str]:
    """Sums whose terms do not add up to the number that they explain."""
    wrong = []
    for each in document.sums:
        row = document.rows[each.of.row]
        tensor = row.value if each.of.role == "value" else row.gradient
        if tensor is None or tensor.entries is None:
            continue
        place = 0
        for at, size in zip(each.of.index, tensor.shape, strict=True):
            place = place * size + at
        value, total = tensor.entries[place], sum(summand.value for summand in each.summands)
        same = value == total or abs(value - total) <= 1e-5 * max(1.0, abs(value))
        left, _, first = each.text.partition(" = ")
        if not same and math.isfinite(abs(value)):
            wrong.append(f"{each.text}: the terms add up to {total}, not {value}")
        if left in first.partition(" = ")[0].split(" * "):
            wrong.append(each.text)
    return wrong
