"""Wrong backward functions as whole sources, so that any style can be written: run in a step, and its name judged."""

from __future__ import annotations

import itertools
import linecache
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import chainrule
from tests.mutants.bed import Judged, judged_of

SIZES = {"n": 4, "d": 3, "m": 5, "b": 2, "c_": 2, "k": 3, "s": 7, "v": 8, "e": 4}
IMPORTS = """import math
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
"""
_COUNT = itertools.count()


@dataclass(frozen=True)
class Source:
    """A source that defines `Own`, with wrong versions: (text, its replacement, a pattern of its name).

    `inputs` are calls: `r(n, d)` random numbers with a gradient, `c` without one, `p` probabilities, `b01` a mask,
    `ix(n, d)` n indices below d, `spd(n)` a symmetric positive matrix.
    """

    name: str
    inputs: str
    source: str
    wrong: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class SourceTrial:
    """One source, with one of its wrong versions or none, in one number type."""

    backward: Source
    wrong: int | None
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Unique and readable."""
        return f"{self.backward.name}: {'right' if self.wrong is None else self.backward.wrong[self.wrong][1]!r}"

    def function(self) -> Any:
        """What the source defines; an operator that it registers has a name of its own each time."""
        source = self.backward.source
        if self.wrong is not None:
            old, new, _ = self.backward.wrong[self.wrong]
            assert source.count(old) == 1, f"{self.backward.name}: {old!r} stands {source.count(old)} times in it"
            source = source.replace(old, new)
        source = IMPORTS + source.replace("{N}", str(next(_COUNT)))
        file = f"{zlib.crc32(source.encode()):08x}/{self.backward.name.replace(' ', '_')}.py"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        namespace: dict[str, Any] = {"__name__": "mutant"}
        exec(compile(source, file, "exec"), namespace)
        return namespace["Own"].apply

    def inputs(self) -> list[Any]:
        """The same numbers each time."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.backward.name.encode()))

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=generator)

        def matrix(n: int) -> Tensor:
            a = drawn(n, n)
            return a @ a.t() + n * torch.eye(n, dtype=torch.float64)

        kinds = {
            "r": lambda *shape: drawn(*shape).to(self.dtype).requires_grad_(),
            "c": lambda *shape: drawn(*shape).to(self.dtype),
            "p": lambda *shape: (0.1 + 0.8 * drawn(*shape).sigmoid()).to(self.dtype).requires_grad_(),
            "b01": lambda *shape: (drawn(*shape) > -0.3).to(self.dtype),
            "ix": lambda n, below: torch.randint(below, (n,), generator=generator),
            "spd": lambda n: matrix(n).to(self.dtype).requires_grad_(),
        }
        return list(eval(f"({self.backward.inputs},)", {**SIZES, **kinds}))


def judge_source(trial: SourceTrial, by_record: bool = True) -> Judged:
    """Prove a step with the function in it, or the function alone on its inputs."""
    function, given = trial.function(), trial.inputs()
    if not by_record:
        return judged_of(trial, chainrule.verify(function, *given))
    with chainrule.record() as recording:
        outs = function(*(1 * each if isinstance(each, Tensor) and each.requires_grad else each for each in given))
        loss = torch.zeros((), dtype=trial.dtype)
        for out in outs if isinstance(outs, tuple) else (outs,):
            weights = torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float64).reshape(out.shape).to(trial.dtype)
            loss = loss + ((0.2 * out).sin() * weights).sum()
        loss.backward()
    return judged_of(trial, recording.verify())
