"""Random rounding: how far the rounding of a number type moves a result, measured and not derived.

The operation runs in float64. Whatever each of its steps gives is moved by up to a last place of the recorded type at
random and rounded to it, since kernels are accurate to about that; one run rounds to the nearest. The inputs move by a
last place. Kernels hide their steps, so the operation also runs in the recorded type on moved inputs. How far the
result moves over a few runs estimates its rounding (J. Vignes, A stochastic arithmetic for reliable scientific
computation, Math. Comput. Simul. 35, 1993).
No run depends on the result that is judged, so a wrong one earns no tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainrule.capture.own_mode import OwnMode, is_higher_order, run_inside
from chainrule.capture.traits import Traits
from chainrule.graph.comparison import last_place
from chainrule.graph.trees import map_leaves, tensors_in

RUNS = 8  # of each kind

Run = Callable[["RandomRounding | None", bool], Tensor | None]
"""Runs something with a rounding (None: as it is), in float64 or in the recorded type: its result, flat in float64."""


class RandomRounding(OwnMode):
    """Rounds the float64 results of all operations to a coarser type: at random, or to the nearest without a seed."""

    def __init__(self, dtype: torch.dtype, seed: int | None) -> None:
        super().__init__()
        self._dtype, self._seed = dtype, seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_higher_order[type(func)]:
            return run_inside(func, args, kwargs or {}, self)
        out = func(*args, **(kwargs or {}))
        if not Traits.of(func).views:
            for each in tensors_in(out):
                if each.dtype in (torch.float64, torch.complex128) and each.layout == torch.strided and each.numel():
                    self._round_(each)
        return out

    def _round_(self, tensor: Tensor) -> None:
        plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        if self._seed is None:
            plain.copy_(plain.to(self._dtype))
            return
        place = last_place(plain, self._dtype)
        noise = torch.rand(plain.shape, dtype=plain.dtype, device=plain.device, generator=self._generator(plain.device))
        if self._dtype == torch.float64:  # nothing is between its numbers: those beside it are taken
            noise = noise.round()
        plain.copy_(torch.where(plain == 0, 0.0, plain + place * (2 * noise - 1)).to(self._dtype))

    def moved(self, tree: Any) -> Any:
        """The same tree with each number moved by a last place (of the coarser type, if it is float64), or not."""
        if self._seed is None:
            return tree

        def move(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.layout != torch.strided:
                return leaf
            if leaf.is_complex():
                return torch.view_as_complex(move(torch.view_as_real(leaf.resolve_conj())))
            if not leaf.is_floating_point():
                return leaf
            generator = self._generator(leaf.device)
            steps = torch.randint(-1, 2, leaf.shape, generator=generator, device=leaf.device).to(leaf)
            return leaf * (1 + steps * torch.finfo(self._dtype if leaf.dtype == torch.float64 else leaf.dtype).eps)

        return map_leaves(move, tree)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed or 0)
        return self._generators[device]


def spread(run: Run, dtype: torch.dtype, wide: Tensor, coarse: Tensor | None) -> Tensor:
    """How far each number moves: the most over all runs, from `wide` in float64, from `coarse` in the recorded type.

    Infinitely far where a run gives no number.
    """
    most = torch.zeros_like(wide.abs())
    for seed in (None, *range(RUNS)):
        for still, in_float64 in ((wide, True), (coarse, False)):
            again = None if still is None else run(RandomRounding(dtype, seed), in_float64)
            if again is not None and still is not None:
                most = torch.maximum(most, (again - still).abs().nan_to_num(torch.inf, torch.inf))
    return most
