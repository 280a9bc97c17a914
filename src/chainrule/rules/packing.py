"""The rule of packing padded sequences: step by step, the sequences that are long enough."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Wrt, at, derivative, rule, sample
from chainrule.rules.linear import randn


def _unpack(op: Any, g: Any) -> Tensor:
    gradient = torch.zeros_like(op.input)
    steps = gradient.transpose(0, 1) if op.batch_first else gradient
    for t, step in enumerate(g[0].split([int(each) for each in op.outs[1]])):
        steps[t, : step.shape[0]] = step
    return gradient


PACK = torch.ops.aten._pack_padded_sequence
# Step t has the N_t sequences that are long enough, longest first; m_t elements lie before.
PACKED = "{$g}_{m_t + n, k}"
TAKEN = r"0 \le n < N_t, \quad N_t = \sum_s [{$lengths}_s > t], \quad m_t = \sum_s \min({$lengths}_s, t)"


def _padded(op: Any, name: str) -> str:
    return at(name, "ntk" if op.batch_first else "tnk")


pack_padded_sequence = rule(
    "PackPaddedSequenceBackward0",
    equation=lambda op: f"{PACKED.replace('$g', '$out')} = {_padded(op, 'input')}",
    where=TAKEN,
    wrt={
        "input": Wrt(
            _unpack,
            lambda op: derivative(PACKED.replace("$g", "$out"), _padded(op, "input"), "1"),
            lambda op: rf"{_padded(op, 'grad')} = [n < N_t] \, {PACKED}, \quad $g \text{{ is 0 outside}}",
            "each output element is a copy of one input element",
        )
    },
    constants={"lengths": "not differentiable"},
    structure="linear",
    outputs=2,
    samples=lambda: [
        sample(PACK, randn(3, 2, 2, shift=0), torch.tensor([3, 1]), False),
        sample(PACK, randn(2, 3, 2, shift=0), torch.tensor([2, 2]), True, note="batch first"),
    ],
    source="derivatives.yaml: _pack_padded_sequence",
)
