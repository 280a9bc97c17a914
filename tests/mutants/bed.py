"""The bed of written mutants: each is run in a training step, in every size and number type, and its name judged."""

from __future__ import annotations

import linecache
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

import chainrule
from tests.mutants.backwards import ELEMENTWISE, SIZES, Backward
from tests.mutants.habits import HABITS
from tests.mutants.layers import LINEAR, NORMS
from tests.mutants.losses import LOSSES
from tests.mutants.places import NETWORKS, PLACES, WINDOWS

BACKWARDS = (*ELEMENTWISE, *LOSSES, *LINEAR, *NORMS, *PLACES, *WINDOWS, *NETWORKS, *HABITS)
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Trial:
    """One backward, with one of its wrong versions or none, on inputs of one size and number type."""

    backward: Backward
    wrong: int | None
    size: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Unique and readable."""
        text = "right" if self.wrong is None else "{!r} for {!r}".format(*reversed(self.backward.wrong[self.wrong][:2]))
        return (
            f"{self.backward.name}: {text}, {('small', 'large')[self.size]}, {str(self.dtype).removeprefix('torch.')}"
        )

    def function(self) -> type[Function]:
        """The `autograd.Function`, compiled with a source that can be read."""
        each, body = self.backward, self.backward.backward
        if self.wrong is not None:
            old, new, _ = each.wrong[self.wrong]
            assert body.count(old) == 1, f"{each.name}: {old!r} stands {body.count(old)} times in its backward"
            body = body.replace(old, new)
        given = ", ".join(part.split("=")[0] for part in each.inputs.split())
        given_back = ", gc" if "gc" in each.backward else ""
        source = (
            f"import torch\nimport torch.nn.functional as F\nclass Mutant(torch.autograd.Function):\n"
            f"    @staticmethod\n    def forward(ctx, {given}):\n{indent(each.forward, ' ' * 8)}\n"
            f"    @staticmethod\n    def backward(ctx, g{given_back}):\n{indent(body, ' ' * 8)}\n"
        )
        file = f"{zlib.crc32(source.encode()):08x}/{each.name.replace(' ', '_')}.py"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        namespace: dict[str, Any] = {"__name__": "mutant"}
        exec(compile(source, file, "exec"), namespace)
        return namespace["Mutant"]

    def inputs(self) -> list[Any]:
        """The same numbers each time; those with gradients want them."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.backward.name.encode()))
        return [
            _input(part.split("=")[1], SIZES[self.size], self.dtype, generator) for part in self.backward.inputs.split()
        ]


def _input(text: str, sizes: dict[str, int], dtype: torch.dtype, generator: torch.Generator) -> Any:
    if not text[0].isalpha():
        return float(text) if "." in text else int(text)
    letters, _, holds = text.partition(":")
    shape = [sizes[letter] for letter in letters.split(",")]
    if holds.startswith("<"):
        return torch.randint(sizes[holds[1]], shape, generator=generator)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    if holds == "01":
        mask = (x > -0.3).double()
        mask[..., 0] = 1
        return mask.to(dtype)
    if holds in ("+", "w"):
        x = x.abs() + 0.5
    elif holds == "p":
        x = 0.1 + 0.8 * x.sigmoid()
    return x.to(dtype).requires_grad_(holds != "w")


@dataclass(frozen=True)
class Judged:
    """What a proof said of a trial."""

    trial: Any
    flagged: bool
    elsewhere: tuple[str, ...]
    repairs: tuple[tuple[str, str], ...]
    seconds: float

    @property
    def named(self) -> bool:
        """Whether its mistake was named rightly."""
        pattern = self.trial.backward.wrong[self.trial.wrong or 0][2]
        return any(re.search(f"^({pattern})", f"{kind}: {text}") for kind, text in self.repairs)

    @property
    def falsely(self) -> bool:
        """Whether another mistake was named."""
        return not self.named and any(kind not in ("not recognised", "location") for kind, _ in self.repairs)


def trials(wrong: bool) -> Iterator[Trial]:
    """All mutants, or the right twins, in every size and number type."""
    for backward in BACKWARDS:
        for version in range(len(backward.wrong)) if wrong else (None,):
            for size in range(len(SIZES)):
                for dtype in DTYPES:
                    yield Trial(backward, version, size, dtype)


def prove(trial: Trial) -> Any:
    """Record a training step with the function in the middle, and verify it."""
    function, given = trial.function(), trial.inputs()
    with chainrule.record() as recording:
        before = [1 * each if isinstance(each, Tensor) and each.requires_grad else each for each in given]
        outs = function.apply(*before)
        loss = torch.zeros((), dtype=trial.dtype)
        for out in outs if isinstance(outs, tuple) else (outs,):
            weights = torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float64).reshape(out.shape).to(trial.dtype)
            loss = loss + ((0.2 * out).sin() * weights).sum()
        loss.backward()
    return recording.verify()


def judge(trial: Trial) -> Judged:
    """Prove a step with the trial's function in it."""
    start = time.process_time()
    return judged_of(trial, prove(trial), start)


def judged_of(trial: Any, verification: Any, start: float | None = None) -> Judged:
    """What a proof said of a trial: of the user's own nodes, and of others."""
    own = [row for row in verification.failures if row.own]
    elsewhere = tuple(row.node.name for row in verification.failures if not row.own)
    repairs = tuple((repair.kind, repair.text) for row in own for repair in row.repairs)
    return Judged(trial, bool(own), elsewhere, repairs, 0.0 if start is None else time.process_time() - start)


def figures(judged: list[Judged], right: list[Judged]) -> str:
    """How many were found, named rightly, named falsely; and the false alarms on right twins."""
    mutants = {(each.trial.backward.name, each.trial.wrong) for each in judged}
    count, operations = len(judged), len({each.trial.backward.name for each in judged})
    found, named = sum(each.flagged for each in judged), sum(each.named for each in judged)
    falsely, elsewhere = sum(each.falsely for each in judged), sum(bool(each.elsewhere) for each in judged)
    alarms = sum(each.flagged or bool(each.elsewhere) for each in right)
    slowest = max(judged, key=lambda each: each.seconds)
    return "\n".join(
        [
            f"{len(mutants)} mutants of {operations} operations, {count} runs in 2 sizes and 3 number types",
            f"  found at the node  {found:5} of {count}   {found / count:7.1%}   (alarms elsewhere: {elsewhere})",
            f"  named rightly      {named:5} of {count}   {named / count:7.1%}",
            f"  named falsely      {falsely:5} of {count}   {falsely / count:7.1%}",
            f"  false alarms       {alarms:5} of {len(right)} runs of right twins",
            f"  slowest run        {slowest.seconds:.2f} s of processor time ({slowest.trial.name})",
        ]
    )
