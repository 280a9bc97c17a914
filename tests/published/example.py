"""What a published worked example says, and what chainrule says of the same step.

An example holds facts: its source, its inputs, and the numbers that it prints, as they are printed. The step is our own
ordinary PyTorch. `compare` records it and sets each printed number beside the recorded one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache

import torch
from torch import Tensor

import chainrule
from chainrule import Recording

Values = dict[str, Tensor]
Where = str | Callable[[Recording], Tensor]

AGREES = "agrees"
CUT = "cut, not rounded"
CARRIED = "rounded on the way"
READ = "agrees, read otherwise"
LAST = "last digit off"  # by less than two, and no way of rounding was found
WRONG = "**wrong**"


def numbers(*rows: object) -> Tensor:
    """A tensor in float64; several arguments are its rows."""
    return torch.tensor(rows[0] if len(rows) == 1 else rows, dtype=torch.float64)


@dataclass(frozen=True)
class Row:
    """One printed number, or several of one tensor.

    `at` says where the recording has it: `h[0]`, `dJ/dW1[0,1]`, `W1[0,1] after`, or a function of the recording.
    `theirs` computes the printed number as the source does: it shows that a difference is rounding that was carried on,
    that it follows from a number that is wrong (`follows`: the label of that row), or how it went wrong.
    `reading` says as what else the number agrees: not wrong, but not what its label says. `why` says what is wrong, and
    `check` computes the right number without chainrule and without autograd.
    """

    label: str
    printed: str
    at: Where
    theirs: Callable[[], object] | None = None
    follows: str = ""
    reading: str = ""
    why: str = ""
    check: Callable[[], object] | None = None


@dataclass(frozen=True)
class Part:
    """One step: what is given, ordinary PyTorch from that to the loss, and the numbers printed for it."""

    given: Callable[[], Values]
    loss: Callable[..., Tensor]
    rows: tuple[Row, ...]
    trained: tuple[str, ...] = ()  # the given values that get a gradient
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None
    updated: tuple[str, ...] = ()  # those that the optimizer has; all that are trained if empty
    title: str = ""


@dataclass(frozen=True)
class Example:
    """A published worked example."""

    key: str
    title: str
    source: str
    address: str
    prints: str  # which numbers it prints, and what it leaves out
    inputs: str
    parts: tuple[Part, ...]
    read: str = ""  # where its text was read, if not at its address
    remark: str = ""


@dataclass(frozen=True)
class Compared:
    """A row with what chainrule says of it."""

    row: Row
    ours: tuple[float, ...]
    printed: tuple[str, ...]
    verdicts: tuple[str, ...]  # of each number

    @property
    def verdict(self) -> str:
        """The verdict on the whole row: the worst one."""
        order = [AGREES, CUT, CARRIED, READ, LAST, f"follows from {self.row.follows}", WRONG]
        return max(self.verdicts, key=order.index)


@dataclass
class Result:
    """An example with its recordings and comparisons, part by part."""

    example: Example
    recordings: list[Recording] = field(default_factory=list)
    parts: list[list[Compared]] = field(default_factory=list)

    def count(self, verdict: str = "") -> int:
        """How many printed numbers there are, or have a verdict that begins so."""
        found = [each for part in self.parts for row in part for each in row.verdicts]
        return sum(each.startswith(verdict) for each in found)

    def rows(self) -> list[Compared]:
        return [row for part in self.parts for row in part]


def record(part: Part) -> Recording:
    """Run one step under chainrule, as a user would."""
    given = part.given()
    for name in part.trained:
        given[name].requires_grad_()
    optimizer = part.optimizer([given[name] for name in part.updated or part.trained]) if part.optimizer else None
    with chainrule.record(namespace=given) as recording:
        J = part.loss(**given)
        J.backward()
        if optimizer is not None:
            optimizer.step()
    return recording


def look_up(recording: Recording, at: Where) -> Tensor:
    """What the recording has there: a value, a gradient, or a parameter after its update."""
    if callable(at):
        return at(recording)
    gradient, name, index, after = re.fullmatch(r"(dJ/d)?([\w.@]+?)(\[[-\d,: ]+\])?( after)?", at).groups()
    if after:
        found = recording.parameters[name].after
    elif gradient:
        found = recording[name].grad
    else:
        found = recording[name].data
    return found[element(index)] if index else found


def element(index: str) -> tuple[int | slice, ...]:
    """`[0,:8]` as an index."""
    parts = (each.split(":") for each in index.strip("[]").split(","))
    return tuple(
        int(each[0]) if len(each) == 1 else slice(*(int(end) if end else None for end in each)) for each in parts
    )


def agrees(printed: str, number: float) -> bool:
    """Whether a number, rounded to the digits that are printed, is what is printed."""
    return abs(Decimal(printed) - Decimal(number)) <= unit(printed) / 2 + slack(number)


def is_cut(printed: str, number: float) -> bool:
    """Whether the printed digits are the first ones of the number: further digits were cut off."""
    beyond = Decimal(number).copy_abs() - Decimal(printed).copy_abs()
    return 0 <= beyond < unit(printed) and Decimal(printed) * Decimal(number) >= 0


def near(printed: str, number: float) -> bool:
    """Whether a number differs from the printed one by less than two in the last digit."""
    return abs(Decimal(printed) - Decimal(number)) < 2 * unit(printed)


def unit(printed: str) -> Decimal:
    """One unit of the last digit that is printed."""
    return Decimal(1).scaleb(Decimal(printed).as_tuple().exponent)


def slack(number: float) -> Decimal:
    """The rounding of a few operations in float64: it counts where sixteen digits are printed."""
    return Decimal(max(abs(number), 1.0) * 8 * torch.finfo(torch.float64).eps)


def flat(item: object) -> tuple[float, ...]:
    return tuple(torch.as_tensor(item, dtype=torch.float64).reshape(-1).tolist())


def compare_row(row: Row, recording: Recording) -> Compared:
    ours, printed = flat(look_up(recording, row.at)), tuple(row.printed.split())
    assert len(ours) == len(printed), f"{row.label}: {len(printed)} numbers are printed, {len(ours)} looked up"
    theirs = flat(row.theirs()) if row.theirs else ours
    return Compared(row, ours, printed, tuple(map(verdict_of(row), printed, ours, theirs)))


def verdict_of(row: Row) -> Callable[[str, float, float], str]:
    def verdict(printed: str, ours: float, theirs: float) -> str:
        if agrees(printed, ours):
            return AGREES
        if is_cut(printed, ours):
            return CUT
        if row.theirs and not row.why and near(printed, theirs):
            return f"follows from {row.follows}" if row.follows else READ if row.reading else CARRIED
        return LAST if near(printed, ours) else WRONG

    return verdict


@cache
def compare(example: Example) -> Result:
    """Record each step of an example and compare every number that it prints."""
    result = Result(example)
    for part in example.parts:
        recording = record(part)
        result.recordings.append(recording)
        result.parts.append([compare_row(row, recording) for row in part.rows])
    return result


def measured(part: Part, name: str, index: tuple[int | slice, ...] | None, step: float = 1e-5) -> Tensor:
    """A gradient of a given value as central differences of the whole step measure it, without autograd."""
    given = part.given()
    value, places = given[name], torch.arange(given[name].numel()).reshape(given[name].shape)
    chosen = places if index is None else places[index]
    found = []
    with torch.no_grad():
        for place in chosen.reshape(-1).tolist():
            losses = []
            for sign in (1, -1):
                moved = value.clone()
                moved.view(-1)[place] += sign * step
                losses.append(float(part.loss(**{**given, name: moved})))
            found.append((losses[0] - losses[1]) / (2 * step))
    return torch.tensor(found, dtype=torch.float64).reshape(chosen.shape)


def measurable(part: Part, row: Row) -> tuple[str, tuple[int | slice, ...] | None] | None:
    """The given value, and the index, whose gradient a row prints; None for a row that prints something else."""
    if callable(row.at) or not row.at.startswith("dJ/d"):
        return None
    name, bracket, index = row.at.removeprefix("dJ/d").partition("[")
    return (name, element(bracket + index) if bracket else None) if name in part.trained else None
