"""The lab of a step of any operation is right, or there is none: each rule's samples, with numbers changed."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

import chainrule
from chainrule.document import Program
from chainrule.graph.graph import Value
from chainrule.lab.program import program_of
from chainrule.rules import Sample, registered
from tests.browser.test_lab_in_a_browser import compared, empty_page, numbers, rows_of  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.sweep, pytest.mark.filterwarnings("ignore")]


def leaves(sample: Sample) -> list[Any]:
    """The arguments of a sample; floating-point tensors require a gradient."""

    def leaf(each: Any) -> Any:
        if isinstance(each, (list, tuple)):
            return type(each)(map(leaf, each))
        floating = isinstance(each, Tensor) and each.is_floating_point()
        return each.detach().clone().requires_grad_() if floating else each

    return [leaf(each) for each in sample.arguments]


def tensors(tree: Any) -> list[Tensor]:
    found = tree if isinstance(tree, (list, tuple)) else [tree]
    return [
        x
        for each in found
        for x in (tensors(each) if isinstance(each, (list, tuple)) else [each])
        if isinstance(x, Tensor)
    ]


def recorded(sample: Sample, arguments: list[Any]) -> chainrule.Recording | None:
    """One pass back through a sample, from a random sum of its results; None where it cannot run here."""
    try:
        with chainrule.record() as recording:
            torch.manual_seed(3)
            outs = [each for each in tensors(sample.function(*arguments, **sample.keywords)) if each.requires_grad]
            torch.manual_seed(4)
            sum((each * torch.randn(each.shape, dtype=each.dtype)).sum() for each in outs).backward()  # type: ignore[union-attr]
    except (RuntimeError, NotImplementedError, AttributeError):
        return None
    return recording


def facts(recording: chainrule.Recording) -> dict[str, Any]:
    rows = rows_of(recording)
    return {
        "values": {row: numbers(value.data) for row, value in rows.items() if value.data is not None},
        "gradients": {row: numbers(value.grad) for row, value in rows.items() if value.grad is not None},
        "after": {},
    }


def changed(
    sample: Sample, arguments: list[Any], program: Program, rows: dict[int, Value], place: int
) -> dict[str, Any] | None:
    """One number moved by a tenth, and what PyTorch gives then; None where that takes other operations."""
    generator = random.Random(place)
    targets = [each for each in tensors(arguments) if each.is_leaf and each.requires_grad and each.numel()]
    if not targets:
        return None
    target = generator.choice(targets)
    same = [row for row, _ in program.inputs if rows[row].data is not None and torch.equal(rows[row].data, target)]
    if len(same) != 1 or not target.is_contiguous():
        return None
    flat, index = target.detach().view(-1), generator.randrange(target.numel())
    kept = flat[index].clone()
    flat[index] = kept * generator.choice([0.9, 1.1])
    number = numbers(flat[index : index + 1])[0]
    for each in targets:
        each.grad = None
    again = recorded(sample, arguments)
    flat[index] = kept
    if again is None or len(rows_of(again)) != len(rows):
        return None
    return {"row": same[0], "place": index, "number": number, **facts(again)}


def test_a_lab_is_right_or_absent(empty_page: Any) -> None:  # noqa: F811
    right = followed = 0
    for rule in registered():
        for sample in list(rule.samples())[:2]:
            arguments = leaves(sample)
            recording = recorded(sample, arguments)
            if recording is None:
                continue
            rows = rows_of(recording)
            program, _ = program_of(recording.graph, {value.index: row for row, value in rows.items()})
            if program is None:
                continue
            at_load = {"row": -1, "place": 0, "number": 0, **facts(recording)}
            if compared(empty_page, program, [at_load])["wrong"]:
                continue  # the page notices too, and has no lab
            right += 1
            changes = [changed(sample, arguments, program, rows, place) for place in range(2)]
            known = [each for each in changes if each is not None]
            followed += len(known)
            assert compared(empty_page, program, known)["wrong"] == [], rule.name
    assert right > 400
    assert followed > 500
