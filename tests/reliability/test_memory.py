"""Writes in a loop: what they overwrite is kept, in about the memory that they write, and every value is right."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import chainrule
from tests.reliability.overwriting import Witness, differences
from tests.seeds import SHIFT

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


steady = settings(
    max_examples=60,
    deadline=None,
    derandomize=not SHIFT,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def run(x: Tensor, steps: int, draw: st.DrawFn) -> None:
    """Views, writes, and reads now and then; what PyTorch forbids is left out."""
    views = [x]

    def one() -> Tensor:
        return views[draw(st.integers(0, len(views) - 1))]

    for _ in range(steps):
        with contextlib.suppress(RuntimeError):
            if draw(st.booleans()):
                views.append(a_view(x, draw))
            a_write(x, one(), draw)
            if draw(st.booleans()):
                one().sum()


@steady
@given(st.data(), st.booleans(), st.booleans(), st.sampled_from(["all", None]))
def test_every_value_is_that_of_its_time_whatever_is_written_to_it_and_through_what(data, trained, gradients, keep):
    """Random sequences, with gradients and without."""
    start = torch.linspace(-4, 4, ROWS * COLUMNS).view(ROWS, COLUMNS)
    factor = torch.ones(COLUMNS, requires_grad=True)
    with chainrule.record(keep=keep) as recording, Witness() as witness:
        x = start.clone() * factor if trained else start
        with torch.set_grad_enabled(gradients):
            run(x, data.draw(st.integers(1, 12)), data.draw)
        x.sum()
    assert differences(recording, witness) == []


@steady
@given(st.data(), st.sampled_from(["all", None, "statistics"]))
def test_what_is_read_between_writes_that_are_left_out_is_right(data, keep):
    """Rows of writes that nothing reads are left out; every read still meets what was written."""
    made = torch.zeros(ROWS, COLUMNS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chainrule.capture.writes.MANY", 2)
        with chainrule.record(keep=keep) as recording, Witness() as witness:
            x = made if data.draw(st.booleans()) else torch.zeros(ROWS, COLUMNS)
            for _ in range(data.draw(st.integers(1, 4))):
                for i in range(data.draw(st.integers(1, 9))):
                    writes = (
                        lambda i=i: x.__setitem__(i, i + 0.5),
                        lambda i=i: x[i].fill_(i),
                        lambda i=i: x[i].__setitem__(3, i),
                        lambda i=i: x.__setitem__((i, 2), torch.ones(()) * i),
                        lambda: x.add_(1),
                        lambda i=i: x.data[i].add_(1),
                        lambda i=i: x.index_fill_(0, torch.tensor([i]), 3),
                    )
                    writes[data.draw(st.integers(0, len(writes) - 1))]()
                for _ in range(data.draw(st.integers(0, 2))):
                    a_view(x, data.draw).sum()
            x.sum()
    assert differences(recording, witness, only="aten.sum") == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64, torch.int64, torch.bool])
def test_values_of_every_type_are_read_back_bit_for_bit(dtype):
    """Also NaN, and tensors that are conjugated or negative by a flag."""
    x = torch.arange(1200).view(40, 30).to(dtype)
    with chainrule.record() as recording, Witness() as witness:
        for i in range(6):
            x[i] = 1 - i
            x.conj().sum() if dtype.is_complex else x.sum()
            if dtype.is_floating_point:
                x[i, 0] = float("nan")
        (x.imag if dtype.is_complex else x).sum()
    assert differences(recording, witness) == []


def test_a_shape_that_changes_and_memory_that_is_exchanged_are_right_too():
    """`resize_`, `set_`, `t_`, `.data =`, and writes that numpy makes in the same memory, between writes to rows."""
    x, other = torch.zeros(40, 30), torch.ones(40, 30)
    with chainrule.record() as recording, Witness() as witness:
        x[0] = 1
        x.t_()
        x[1] = 2
        x.sum()
        x.data = other
        x[2] = 3
        x.sum()
        x.set_(torch.full((40, 30), 5.0))
        x[3] = 4
        x.sum()
        x.resize_(60, 30)[40:] = 7
        x[3] = 4
        x.numpy()[5] = 8  # from here on all of it is copied at each write
        x.sum()
        x[6] = 9
        x.numpy()[7] = 10
        x.sum()
    assert differences(recording, witness, only="aten.sum") == []


def test_numbers_overwritten_after_the_block_are_not_shown_as_those_of_the_step():
    """The owner goes on writing before the recording is read: what was not copied has no numbers."""
    x = torch.zeros(400, 30)
    with chainrule.record() as recording:
        for i in range(4):
            x[i] = 1
    x[9] = 5
    values = [each for each in recording.graph.values if each.shape == x.shape]
    assert values
    assert all(each.data is None or not each.data[9].any() for each in values)


def test_earlier_contents_are_in_the_file(tmp_path):
    """A recording that was written and read has the same values."""
    w = torch.ones(30, requires_grad=True)
    with chainrule.record() as recording:
        y = torch.zeros(40, 30)
        for i in range(5):
            y[i] = w * i
        y.sum().backward()
    recording.save(tmp_path / "step.safetensors")
    again = chainrule.load(tmp_path / "step.safetensors")
    pairs = list(zip(recording.graph.values, again.graph.values, strict=True))
    assert len(pairs) > 10
    assert all(torch.equal(one.data, other.data) for one, other in pairs)
    assert len({float(one.data.sum()) for one, _ in pairs if one.shape == (40, 30)}) == 5


def test_what_is_overwritten_counts_against_the_memory_that_may_be_kept():
    """Where the memory ends, the recording says so, and keeps statistics."""
    x = torch.zeros(100, 100)
    with chainrule.record(memory=200_000) as recording:
        for _ in range(20):
            x.add_(1).sum()
    assert any("`memory=`" in note for note in recording.graph.notes)
    values = [each for each in recording.graph.values if each.shape == x.shape]
    assert 0 < sum(each.has_numbers for each in values) < 8


WRITES = {
    "rows": "X[i % n] = 1",
    "elements": "X[i % n][3] = 1",
    "data": "X.data[i % n] += 1",
    "results": "X[i % n] = torch.ones(25)",
    "read": "X[i % n] = X[i % n - 1] + 1",
    "index": "X.index_copy_(0, torch.tensor([i % n]), torch.ones(1, 25))",
    "cache": "C[:, i % n] = 1; C[:, : i + 1].sum()",
    "trained": "p.data[i % n] -= 0.1",
}
PROGRAM = """
import resource, sys, time
import torch, chainrule
count, keep, write = int(sys.argv[1]), sys.argv[2], sys.argv[3]
most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
w = torch.ones(25, 1, requires_grad=True)
def step(count, n):
    p = torch.ones(n, 25, requires_grad=True)
    X, C = torch.zeros(n, 25), torch.zeros(25, n)
    for i in range(count):
        exec(code)
    (X[:32] @ w).sum().backward()
code = compile(write, "loop", "exec")
with chainrule.record() as recording:
    step(9, 99)
repr(recording)
step(9, 100_000)
before, began = most(), time.time()
with chainrule.record(keep=None if keep == "default" else keep) as recording:
    step(count, 100_000)
recording.graph
print(most() - before, time.time() - began)
"""


def measured(write: str, keep: str, count: int) -> float:
    """Megabytes by which a process grows that records a loop of writes to a tensor of 10 MB, and reads the facts."""
    arguments = [sys.executable, "-c", PROGRAM, str(count), keep, WRITES[write]]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout.split()[0])


@pytest.mark.parametrize("write", ["rows", "read"])
def test_writes_to_rows_take_the_memory_of_rows(write):
    """600 writes to a tensor of 10 MB; with a copy each it would be 6 GB."""
    assert measured(write, "all", 600) < 150


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["all", "default", "statistics"])
def test_a_hundred_thousand_writes_to_rows_take_little_memory(keep):
    """1 TB with a copy each."""
    assert measured("rows", keep, 100_000) < 200


@pytest.mark.slow
@pytest.mark.parametrize("write", WRITES)
def test_every_kind_of_write_in_a_loop_takes_memory_in_proportion(write):
    """3,000 writes: as much as so many recorded operations, and a few copies of the tensor."""
    assert measured(write, "all", 3000) < 300
