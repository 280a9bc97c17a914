"""The functions that stand in the formulas of the rules, by their names in LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy
import scipy.linalg
import scipy.special
import torch
from torch import Tensor

SLACK = 1e-9  # a quotient of whole numbers may miss the whole number that it is by a rounding


GREEK = re.compile(
    r"\\(?:var)?(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|upsilon|phi"
    r"|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega|ell|infty)"
)


def _scipy(function: Callable[..., Any]) -> Callable[..., Tensor]:
    def called(*arguments: Tensor) -> Tensor:
        return torch.as_tensor(function(*(each.numpy() for each in torch.broadcast_tensors(*arguments))))

    return called


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def called(first: Tensor, *rest: Tensor) -> Tensor:
        for each in rest:
            first = function(first, each)
        return first

    return called


# Applied to tensors whose own axes were made to agree, element by element.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **{rf"\{name}": getattr(torch, name) for name in ["exp", "sin", "cos", "tan", "sinh", "cosh", "tanh"]},
    r"\log": torch.log, r"\ln": torch.log, r"\arcsin": torch.asin, r"\arccos": torch.acos, r"\arctan": torch.atan,
    r"\operatorname{arsinh}": torch.asinh, r"\operatorname{arcosh}": torch.acosh, r"\operatorname{artanh}": torch.atanh,
    r"\operatorname{conj}": torch.conj, r"\operatorname{Re}": torch.real, r"\operatorname{Im}": torch.imag,
    r"\operatorname{abs}": torch.abs, r"\operatorname{sgn}": torch.sgn, r"\operatorname{sign}": torch.sgn,
    r"\operatorname{floor}": lambda t: torch.floor(t + SLACK), r"\operatorname{ceil}": lambda t: torch.ceil(t - SLACK),
    r"\operatorname{round}": torch.round, r"\operatorname{trunc}": torch.trunc,
    r"\max": _folded(torch.maximum), r"\min": _folded(torch.minimum),
    r"\operatorname{ReLU}": lambda t: torch.where(t > 0, t, 0.0), r"\sigma": lambda t: 1 / (1 + torch.exp(-t)),
    r"\Gamma": _scipy(scipy.special.gamma), r"\psi": _scipy(scipy.special.digamma),
    r"\operatorname{erf}": _scipy(scipy.special.erf), r"\operatorname{factorial}": _scipy(scipy.special.factorial),
    r"\operatorname{sinc}": torch.sinc, r"\operatorname{clamp}": torch.clamp, r"\operatorname{atan2}": torch.atan2,
    r"\operatorname{nextafter}": _scipy(numpy.nextafter), r"\arg": torch.angle,
    r"\log_{2}": torch.log2, r"\log_{10}": torch.log10,
    r"\Phi": _scipy(scipy.special.ndtr), r"\Phi^{-1}": _scipy(scipy.special.ndtri),
    r"\varphi": lambda t: torch.exp(-t * t / 2) / math.sqrt(2 * math.pi),
    r"\operatorname{erf}^{-1}": _scipy(scipy.special.erfinv), r"\operatorname{erfc}": _scipy(scipy.special.erfc),
    r"\Gamma_{3}": lambda t: torch.as_tensor(scipy.special.multigammaln(t.numpy()[..., None], 3)).exp(),
    **{rf"\psi^{{({order})}}": _scipy(partial(scipy.special.polygamma, order)) for order in (1, 2, 3)},
    r"\zeta": _scipy(scipy.special.zeta), "P": _scipy(scipy.special.gammainc), "Q": _scipy(scipy.special.gammaincc),
    "I_{0}": _scipy(scipy.special.i0), "I_{1}": _scipy(scipy.special.i1),
}  # fmt: skip


def _trace(t: Tensor) -> Tensor:
    return t.diagonal(dim1=-2, dim2=-1).sum(-1)


def _softmax(t: Tensor) -> Tensor:
    """Of each row; a row without a finite number gives 0."""
    top = t.amax(-1, keepdim=True) if t.shape[-1] else t.new_zeros(())
    powers = torch.exp(t - torch.where(top.isfinite(), top, 0))
    total = powers.sum(-1, keepdim=True)
    return torch.where(total == 0, 0, powers / total)


# Applied to the last one or two axes: name -> (axes, function).
OF_TENSORS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    r"\operatorname{diag}": (1, torch.diag_embed),
    r"\operatorname{tr}": (2, _trace),
    r"\det": (2, torch.linalg.det),
    r"\operatorname{tril}": (2, torch.tril),
    r"\operatorname{triu}": (2, torch.triu),
    r"\operatorname{tril}-1": (2, lambda t: torch.tril(t, -1)),
    r"\operatorname{triu}1": (2, lambda t: torch.triu(t, 1)),
    r"\operatorname{expm}": (2, lambda t: torch.as_tensor(scipy.linalg.expm(t.numpy())) if t.numel() else t),
    r"\operatorname{rowsum}": (1, lambda t: t.sum(-1, keepdim=True)),
    r"\operatorname{colsum}": (2, lambda t: t.sum(-2)),
    r"\operatorname{rowmean}": (1, lambda t: t.mean(-1, keepdim=True)),
    r"\operatorname{colmean}": (2, lambda t: t.mean(-2, keepdim=True)),
    r"\operatorname{softmax}": (1, _softmax),
    r"\operatorname{causal}": (2, lambda t: t.masked_fill(torch.ones_like(t, dtype=torch.bool).triu(1), -math.inf)),
}


def _onehot(t: Tensor, axis: int, count: int) -> Tensor:
    """1 at the class of each sample, and nowhere where the number is none of a class."""
    return (t == torch.arange(count).reshape([-1 if each == axis else 1 for each in range(t.dim())])).double()


# Applied along the axis of the classes.
OF_CLASSES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    r"\operatorname{softmax}": lambda t, axis, count: _softmax(t.movedim(axis, -1)).movedim(-1, axis),
    r"\operatorname{onehot}": _onehot,
}
FUNCTIONS[r"\operatorname{chunk}"] = lambda t: t
FUNCTIONS[r"\operatorname{onehot}"] = lambda t: t
FUNCTIONS |= {name: function for name, (_, function) in OF_TENSORS.items()}
