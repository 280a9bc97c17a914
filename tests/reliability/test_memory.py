"""Writes in a loop: what they overwrite is kept, in about the memory that they write, and every value is right."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import chainrule
from tests.reliability.overwriting import Witness, differences

ROWS, COLUMNS = 40, 30  # enough for a log: a small memory is copied as a whole


def a_view(x: Tensor, draw: st.DrawFn) -> Tensor:
    """Some view of a matrix."""
    i, j = draw(st.integers(0, ROWS - 1)), draw(st.integers(0, COLUMNS - 1))
    views = (
        lambda: x,
        lambda: x[i],
        lambda: x[:, j],
        lambda: x[i, j],
        lambda: x[i:, : j + 1],
        lambda: x[::2, ::3],
        lambda: x.t()[j],
        lambda: x.view(-1)[i : 3 * i + 1],
        lambda: x.detach()[i],
        lambda: x.data[i],
        lambda: x.view(COLUMNS, ROWS)[j],
        lambda: x.as_strided((3, 4), (2, 1), i),  # its elements overlap
        lambda: x[i].view(torch.int32).view(torch.float32),
    )
    return views[draw(st.integers(0, len(views) - 1))]()


def a_write(x: Tensor, view: Tensor, draw: st.DrawFn) -> None:
    """Some write to this view, or to the matrix."""
    i, n = draw(st.integers(-ROWS, ROWS - 1)), draw(st.integers(-99, 99)) / 8
    rows, columns = torch.tensor([i, 3, i]), torch.tensor([0, 5, 7])
    some = torch.arange(3.0 * COLUMNS).view(3, COLUMNS) + n
    writes = (
        lambda: view.fill_(n),
        lambda: view.mul_(2),
        lambda: view.copy_(torch.full_like(view, n)),
        lambda: torch.add(torch.full(view.shape, n), 1, out=view) if view.is_contiguous() else view.neg_(),
        lambda: view.zero_(),
        lambda: x.__setitem__((rows, columns), n),
        lambda: x.__setitem__(x > n, n),
        lambda: x.index_copy_(0, torch.tensor([2, 1]), some[:2]),
        lambda: x.index_add_(0, rows % ROWS, some),
        lambda: x.index_fill_(-1, columns, n),
        lambda: x.scatter_(1, columns.expand(2, 3), n),
        lambda: x.scatter_add_(0, rows.view(3, 1) % ROWS, some),
        lambda: x.masked_fill_(x < n, -n),
        lambda: x.__setitem__((slice(None), columns), n),
        lambda: x.index_put_((rows, columns), torch.tensor(n), accumulate=True),
    )
    writes[draw(st.integers(0, len(writes) - 1))]()


@settings(
    max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(st.data(), st.booleans(), st.sampled_from(["all", None]))
def test_every_value_is_that_of_its_time_whatever_is_written_to_it_and_through_what(data, trained, keep):
    """Random sequences of views, writes and reads."""
    start = torch.linspace(-4, 4, ROWS * COLUMNS).view(ROWS, COLUMNS)
    factor = torch.ones(COLUMNS, requires_grad=True)
    with chainrule.record(keep=keep) as recording, Witness() as witness:
        x = start.clone() * factor if trained else start
        views = [x]
        with torch.no_grad():
            for _ in range(data.draw(st.integers(1, 12))):
                if data.draw(st.booleans()):
                    views.append(a_view(x, data.draw))
                a_write(x, views[data.draw(st.integers(0, len(views) - 1))], data.draw)
                if data.draw(st.booleans()):
                    views[data.draw(st.integers(0, len(views) - 1))].sum()
        x.sum()
    assert differences(recording, witness) == []
