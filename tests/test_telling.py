"""How steps read: formulas that are equations, and names that are those of the code."""

import torch

from chainrule.recording import record
from chainrule.views import terminal


def test_what_comes_back_to_a_broadcast_operand_is_written_as_the_sum_that_it_is():
    x, w, b = torch.ones(4, 2), torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    with record() as recording:
        z = x * w + b
        z.sum().backward()
    told = terminal.text(recording.document())
    assert "dJ/db = Σ_(dim 0) dJ/dz\n" in told
    assert "dJ/dw = Σ_(dim 0) (dJ/dmul ⊙ x)\n" in told


def test_a_property_goes_by_its_name_and_a_negative_axis_is_no_difference():
    x = torch.ones(2, 3, requires_grad=True)
    with record() as recording:
        (x.T.softmax(dim=-1) * torch.arange(2)).sum().backward()
    told = terminal.text(recording.document())
    assert "Forward 1: T = x.T" in told
    assert "Σ_(dim -1)" in told
