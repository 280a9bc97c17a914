"""Right backwards, in every way that users run them: none may raise an alarm.

python -m tests.twins [SEEDS] prints, for each way, how many runs there were, how many alarms, and how many of the
functions' own rows were checked. `-v` adds what was said.
"""

from __future__ import annotations

import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

import chainrule
from tests.twins.operations import EVERY, Operation

Apply = Callable[..., Tensor]


def function(operation: Operation) -> Apply:
    """The operation as an `autograd.Function` that may run under vmap."""

    class Twin(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs):
            return operation.forward(*inputs)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs, output)

        @staticmethod
        def backward(ctx, u):
            *inputs, out = ctx.saved_tensors
            return operation.backward(u, out, *inputs)

    return Twin.apply


@dataclass(frozen=True)
class Way:
    """How a function is run: its number type, what is done to its inputs, and what it is wrapped in."""

    dtype: torch.dtype = torch.float32
    inputs: Callable[[Tensor], Tensor] = lambda x: x
    wrapped: Callable[[Apply, Operation], Apply] = lambda apply, operation: apply
    takes: Callable[[Operation], bool] = lambda operation: True
    times: int = 1  # how many times as long every axis is, but for one of 2


def _transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT if x.dim() > 1 else x.repeat_interleave(2)[::2]


def _mapped(apply: Apply, operation: Operation) -> Apply:
    return lambda *inputs: torch.vmap(apply, tuple(0 if i < operation.batched else None for i in range(len(inputs))))(
        *inputs
    )


def _compiled(backend: str) -> Callable[[Apply, Operation], Apply]:
    return lambda apply, operation: torch.compile(lambda *inputs: apply(*inputs) * 1.5, backend=backend)


def _autocast(apply: Apply, operation: Operation) -> Apply:
    def run(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return apply(*inputs)

    return run


WAYS = {
    "float64": Way(torch.float64),
    "float32": Way(),
    "bfloat16": Way(torch.bfloat16),
    "float16": Way(torch.float16),
    "float32, larger": Way(times=10),
    "bfloat16, larger": Way(torch.bfloat16, times=10),
    "complex64": Way(torch.complex64, takes=lambda operation: operation.complex),
    "complex128": Way(torch.complex128, takes=lambda operation: operation.complex),
    "not contiguous": Way(inputs=_transposed),
    "vmap": Way(wrapped=_mapped, takes=lambda operation: operation.batched > 0),
    "checkpoint, reentrant": Way(
        wrapped=lambda apply, operation: lambda *inputs: checkpoint(apply, *inputs, use_reentrant=True)
    ),
    "checkpoint": Way(wrapped=lambda apply, operation: lambda *inputs: checkpoint(apply, *inputs, use_reentrant=False)),
    "autocast": Way(wrapped=_autocast),
    "compile, eager": Way(wrapped=_compiled("eager")),
    "compile, aot_eager": Way(wrapped=_compiled("aot_eager")),
}


def step(way: Way, operation: Operation, seed: int) -> Any:
    """The verification of one step with the function in the middle; None where PyTorch cannot run it so."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{operation.name} {seed}".encode()))

    def draw(*shape: int) -> Tensor:
        wide = torch.complex128 if way.dtype.is_complex else torch.float64
        sizes = [size if size <= 2 else way.times * size for size in shape]
        return torch.randn(sizes, dtype=wide, generator=generator)

    leaves = [x.to(way.dtype).requires_grad_() for x in operation.inputs(draw)]
    apply = way.wrapped(function(operation), operation)

    def work() -> None:
        out = apply(*(way.inputs(leaf * 1.0) for leaf in leaves))
        weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        kind = torch.promote_types(out.dtype, torch.float32)
        out = out.to(kind).tanh() if seed % 2 and not out.is_complex() else out.to(kind)
        (out * weights.to(kind)).sum().real.backward()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compiler.reset()
        try:
            work()
        except (RuntimeError, NotImplementedError):
            return None
        with chainrule.record() as recording:
            work()
        return recording.verify()


@dataclass
class Outcome:
    """What was said of all runs in one way."""

    runs: int
    alarms: list[str]
    own: Counter[str]  # verdicts on the functions' own rows
    reasons: Counter[str]  # why these were not checked


def spoiled(operation: Operation) -> Operation:
    """The operation with a backward that is wrong by half in its first gradient."""

    def backward(*given: Tensor) -> Any:
        right = operation.backward(*given)
        return (1.5 * right[0], *right[1:]) if isinstance(right, tuple) else 1.5 * right

    return replace(operation, backward=backward)


def tried(name: str, seeds: range, operations: Iterable[Operation] | None = None) -> Outcome:
    """Operations, or all of them, in one way, with several seeds."""
    operations = EVERY.values() if operations is None else operations
    way, outcome = WAYS[name], Outcome(0, [], Counter(), Counter())
    for operation in operations:
        for seed in seeds if way.takes(operation) else ():
            verification = step(way, operation, seed)
            if verification is None:
                continue
            outcome.runs += 1
            for row in verification.rows:
                if row.verdict == "disagrees":
                    outcome.alarms.append(f"{operation.name}, seed {seed}: {row.node.name}: {row.reason}")
                if row.node.function_class is not None:
                    outcome.own[row.verdict] += 1
                    if row.verdict != "agrees":
                        outcome.reasons[f"{operation.name}: {row.verdict}: {row.reason}"] += 1
    return outcome
