"""How steps read: formulas that are equations, and names that are those of the code."""

from contextlib import suppress

import torch

from chainrule import record
from chainrule.views import written


def test_what_comes_back_to_a_broadcast_operand_is_written_as_the_sum_that_it_is():
    x, w, b = torch.ones(4, 2), torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    with record() as recording:
        z = x * w + b
        z.sum().backward()
    told = written(recording.document(), ".txt")
    assert "dJ/db = Σ_(dim 0) dJ/dz\n" in told
    assert "dJ/dw = Σ_(dim 0) (dJ/dmul ⊙ x)\n" in told


def test_a_property_goes_by_its_name_and_a_negative_axis_is_no_difference():
    x = torch.ones(2, 3, requires_grad=True)
    with record() as recording:
        (x.T.softmax(dim=-1) * torch.arange(2)).sum().backward()
    told = written(recording.document(), ".txt")
    assert "Forward 1: T = x.T" in told
    assert "(along dim -1)" in told


def test_a_row_of_a_buffer_stands_in_the_module_that_it_belongs_to():
    norm, x = torch.nn.BatchNorm1d(3), torch.randn(4, 3)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), norm)
    with record() as recording:
        model.append(torch.nn.BatchNorm1d(3))  # its buffers come from an operation of the step
        model(x).sum().backward()
    modules = {row.name: row.module for row in recording.document().rows}
    assert modules["x"] == ""
    assert {name: module for name, module in modules.items() if "running" in name} == {
        "1.running_mean": "1", "1.running_var": "1", "2.running_mean": "2", "2.running_var": "2",
    }  # fmt: skip


def test_the_error_that_ended_the_block_ends_in_one_full_stop():
    with suppress(ValueError), record() as recording:
        raise ValueError("No more data.")
    assert "The block ended in ValueError: No more data. This report" in str(recording).replace("\n         ", " ")
