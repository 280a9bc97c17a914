r"""Rules of recurrent layers: LSTM, GRU and the plain RNN, one step at a time or as a fused kernel over all steps.

A cell is told once, by what it does with its gates; everything else follows from it. With the input gates
a = x W_ih^T + b_ih and the hidden gates b = h W_hh^T + b_hh of a step,

    RNN    h' = f(a + b)                                       f = tanh or ReLU
    LSTM   [i, f, g, o] = a + b;   c' = sigma(f) c + sigma(i) tanh(g);   h' = sigma(o) tanh(c')
    GRU    r = sigma(a_r + b_r);   z = sigma(a_z + b_z);   n = tanh(a_n + r b_n);   h' = (1 - z) n + z h

Fused kernels are unrolled and walked back step by step, which is backpropagation through time: a state's gradient is
what comes from the output at that step plus what comes from the step after it, and a weight, used at every step, gets
the sum over the steps. The states on the way are computed again from the recorded inputs.

Sequences are time-major here, as a list of steps; step t holds the sequences that are long enough to have it, longest
first, which is what a packed sequence is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Rule, Wrt, rule, sample

Steps = list[Tensor]


def randn(*shape: int, shift: int = 0) -> Tensor:
    """A sample input that wants a gradient; the same numbers each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + shift)).requires_grad_()


# Cells: what one step does with its gates, and the way back of that. -----------------------------------------------


@dataclass(frozen=True)
class GateGradients:
    """d loss / d of what a step started from: its gates, and the states where they enter beside the gates."""

    input_gates: Tensor
    hidden_gates: Tensor
    h: Tensor | None
    c: Tensor | None


@dataclass(frozen=True)
class Cell:
    """`forward(a, b, h, c)` gives the new h and c; `back(a, b, h, c, h_bar, c_bar)` what comes back from theirs."""

    forward: Callable[[Tensor, Tensor, Tensor, Any], tuple[Tensor, Tensor | None]]
    back: Callable[[Tensor, Tensor, Tensor, Any, Tensor, Any], GateGradients]


def _lstm_gates(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = (a + b).chunk(4, -1)
    return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()


def _lstm(a: Tensor, b: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = _lstm_gates(a, b)
    c = f * c + i * g
    return o * c.tanh(), c


def _lstm_back(a: Tensor, b: Tensor, h: Tensor, c: Tensor, h_bar: Tensor, c_bar: Tensor) -> GateGradients:
    i, f, g, o = _lstm_gates(a, b)
    squashed = (f * c + i * g).tanh()
    c_bar = c_bar + h_bar * o * (1 - squashed**2)
    gates = torch.cat(
        [
            c_bar * g * i * (1 - i),
            c_bar * c * f * (1 - f),
            c_bar * i * (1 - g**2),
            h_bar * squashed * o * (1 - o),
        ],
        -1,
    )
    return GateGradients(gates, gates, None, c_bar * f)


def _gru_gates(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    (a_r, a_z, a_n), (b_r, b_z, b_n) = a.chunk(3, -1), b.chunk(3, -1)
    r, z = (a_r + b_r).sigmoid(), (a_z + b_z).sigmoid()
    return r, z, (a_n + r * b_n).tanh(), b_n


def _gru(a: Tensor, b: Tensor, h: Tensor, c: None) -> tuple[Tensor, None]:
    _, z, n, _ = _gru_gates(a, b)
    return (1 - z) * n + z * h, None


def _gru_back(a: Tensor, b: Tensor, h: Tensor, c: None, h_bar: Tensor, c_bar: None) -> GateGradients:
    r, z, n, b_n = _gru_gates(a, b)
    n_bar = h_bar * (1 - z) * (1 - n**2)
    z_bar = h_bar * (h - n) * z * (1 - z)
    r_bar = n_bar * b_n * r * (1 - r)
    return GateGradients(
        torch.cat([r_bar, z_bar, n_bar], -1), torch.cat([r_bar, z_bar, n_bar * r], -1), h_bar * z, None
    )


def _plain(squash: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Cell:
    """The plain RNN: `slope` is the derivative of `squash`, told by its output."""

    def back(a: Tensor, b: Tensor, h: Tensor, c: None, h_bar: Tensor, c_bar: None) -> GateGradients:
        gates = h_bar * slope(squash(a + b))
        return GateGradients(gates, gates, None, None)

    return Cell(lambda a, b, h, c: (squash(a + b), None), back)


LSTM = 2
CELLS = {  # by PyTorch's number for the mode of a fused kernel
    0: _plain(torch.relu, lambda y: (y > 0).to(y.dtype)),
    1: _plain(torch.tanh, lambda y: 1 - y**2),
    LSTM: Cell(_lstm, _lstm_back),
    3: Cell(_gru, _gru_back),
}


# One layer in one direction, over all steps. -----------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """One layer in one direction: its cell, its weights [W_ih, W_hh, b_ih, b_hh, W_hr], and where it starts.

    Without biases the weights are [W_ih, W_hh, W_hr]; W_hr is there only where an LSTM projects its state.
    """

    cell: Cell
    weights: Sequence[Tensor]
    biased: bool
    reverse: bool

    @property
    def projection(self) -> Tensor | None:
        """W_hr, which makes the state of an LSTM smaller than its memory, or None."""
        return self.weights[-1] if len(self.weights) in (3, 5) else None

    def order(self, count: int) -> Sequence[int]:
        """The steps as this direction meets them."""
        return range(count)[::-1] if self.reverse else range(count)

    def gates(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The gates made from the input, and those made from the state."""
        a, b = x @ self.weights[0].mT, h @ self.weights[1].mT
        return (a + self.weights[2], b + self.weights[3]) if self.biased else (a, b)

    def unroll(self, steps: Steps, h: Tensor, c: Tensor | None) -> tuple[Steps, list[tuple[Tensor, Tensor | None]]]:
        """The outputs, and the states (h, c) that each step started from."""
        outputs, states = list(steps), [(h, c)] * len(steps)
        for t in self.order(len(steps)):
            here = steps[t].shape[0]
            states[t] = h[:here], None if c is None else c[:here]
            new, memory = self.cell.forward(*self.gates(steps[t], states[t][0]), *states[t])
            outputs[t] = new if self.projection is None else new @ self.projection.mT
            h = torch.cat([outputs[t], h[here:]])  # sequences that are over, or not begun, keep their state
            c = None if c is None or memory is None else torch.cat([memory, c[here:]])
        return outputs, states

    def back(
        self, steps: Steps, h: Tensor, c: Tensor | None, g: Steps, h_bar: Tensor, c_bar: Tensor | None
    ) -> tuple[Steps, Tensor, Tensor | None, list[Tensor]]:
        """Backpropagation through time: the gradients of the steps, of the first h and c, and of the weights."""
        _, states = self.unroll(steps, h, c)
        steps_bar, weights_bar = list(steps), [torch.zeros_like(w) for w in self.weights]
        for t in reversed(self.order(len(steps))):
            x, (h_t, c_t), here = steps[t], states[t], steps[t].shape[0]
            a, b = self.gates(x, h_t)
            new_bar = h_bar[:here] + g[t]
            if self.projection is not None:
                weights_bar[-1] += new_bar.mT @ self.cell.forward(a, b, h_t, c_t)[0]
                new_bar = new_bar @ self.projection
            bar = self.cell.back(a, b, h_t, c_t, new_bar, None if c_bar is None else c_bar[:here])
            for place, (gates, operand) in enumerate([(bar.input_gates, x), (bar.hidden_gates, h_t)]):
                weights_bar[place] += gates.mT @ operand
                if self.biased:
                    weights_bar[2 + place] += gates.sum(0)
            steps_bar[t] = bar.input_gates @ self.weights[0]
            before = bar.hidden_gates @ self.weights[1]
            h_bar = torch.cat([before if bar.h is None else before + bar.h, h_bar[here:]])
            c_bar = None if c_bar is None or bar.c is None else torch.cat([bar.c, c_bar[here:]])
        return steps_bar, h_bar, c_bar, weights_bar


# A fused kernel: layers on layers, in one direction or both. -------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A fused kernel's arguments in one form, whichever kernel it is: `passes[layer][direction]`, and all that enters.

    `h` and `c` are (passes, batch, state).
    """

    passes: list[list[Pass]]
    steps: Steps
    h: Tensor
    c: Tensor | None

    def _state(self, states: Tensor | None, layer: int, direction: int) -> Any:
        return None if states is None else states[layer * len(self.passes[0]) + direction]

    def back(
        self, g: Steps, h_bar: Tensor, c_bar: Tensor | None
    ) -> tuple[Steps, Tensor, Tensor | None, list[list[Tensor]]]:
        """The gradients of the steps, of h and c, and of the weights of each pass, from those of the outputs."""
        entering = [self.steps]
        for layer, directions in enumerate(self.passes):
            outs = [
                each.unroll(entering[-1], self._state(self.h, layer, d), self._state(self.c, layer, d))[0]
                for d, each in enumerate(directions)
            ]
            entering.append([torch.cat(sides, -1) for sides in zip(*outs, strict=True)])
        found: list[tuple[Steps, Tensor, Tensor | None, list[Tensor]]] = []
        for layer in reversed(range(len(self.passes))):
            sides = [t.chunk(len(self.passes[layer]), -1) for t in g]
            backs = [
                each.back(
                    entering[layer],
                    self._state(self.h, layer, d),
                    self._state(self.c, layer, d),
                    [side[d] for side in sides],
                    self._state(h_bar, layer, d),
                    self._state(c_bar, layer, d),
                )
                for d, each in enumerate(self.passes[layer])
            ]
            g = [sum(parts[1:], parts[0]) for parts in zip(*(steps for steps, *_ in backs), strict=True)]
            found[:0] = backs
        h_first = torch.stack([h for _, h, _, _ in found])
        c_first = None if c_bar is None else torch.stack([c for _, _, c, _ in found if c is not None])
        return g, h_first, c_first, [weights for *_, weights in found]


def _steps(op: Any, t: Tensor) -> Steps:
    """A sequence, padded or packed, as its steps."""
    if op.batch_sizes:
        return list(t.split(list(op.batch_sizes)))
    return list(t.unbind(1 if op.batch_first else 0))


def _sequence(op: Any, steps: Steps) -> Tensor:
    """The way back of `_steps`."""
    if op.batch_sizes:
        return torch.cat(steps)
    return torch.stack(steps, 1 if op.batch_first else 0)


def _given(g: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if g is None else g


def _layer(op: Any) -> Network:
    """oneDNN's kernel: one layer in one direction, whatever number of layers it is told there are."""
    weights = [op.weight0, op.weight1, *((op.weight2, op.weight3) if op.has_biases else ())]
    one = Pass(CELLS[op.mode], weights, op.has_biases, op.reverse)
    return Network([[one]], list(op.input.unbind(0)), op.hx_[None], op.cx_[None])


def _layer_part(pick: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    def vjp(op: Any, g: Any) -> Tensor:
        net = _layer(op)
        upstream = (list(_given(g[0], op.outs[0]).unbind(0)), _given(g[1], op.hx_)[None], _given(g[2], op.cx_)[None])
        return pick(op, net.back(*upstream))

    return vjp


def _layer_weight(place: int) -> Callable[[Any, Any], Tensor]:
    def pick(op: Any, found: Any) -> Tensor:
        weights: list[Tensor] = found[3][0]
        return weights[place] if place < len(weights) else torch.zeros_like(getattr(op, f"weight{place}"))

    return _layer_part(pick)


LSTM_STEP = (
    r"i, f, o = \sigma(\cdot), \; g = \tanh(\cdot) \text{ of } x_t W_{ih}^{T} + b_{ih} + h_{t-1} W_{hh}^{T} + b_{hh}, "
    r"\quad c_t = f \odot c_{t-1} + i \odot g, \quad h_t = o \odot \tanh c_t"
)
GRU_STEP = (
    r"r, z = \sigma(a + b), \quad n = \tanh\left(a_n + r \odot b_n\right), \quad "
    r"h_t = (1 - z) \odot n + z \odot h_{t-1}, \quad a = x_t W_{ih}^{T} + b_{ih}, \; b = h_{t-1} W_{hh}^{T} + b_{hh}"
)
RNN_STEP = r"h_t = FUNCTION\left(x_t W_{ih}^{T} + b_{ih} + h_{t-1} W_{hh}^{T} + b_{hh}\right)"


def _told(op: Any) -> str:
    step = {
        0: RNN_STEP.replace("FUNCTION", r"\operatorname{ReLU}"),
        1: RNN_STEP.replace("FUNCTION", r"\tanh"),
        LSTM: LSTM_STEP,
        3: GRU_STEP,
    }[op.mode]
    return rf"{{$out}}_t = h_t, \quad {step}"


INPUT = (r"\frac{\partial a_t}{\partial x_t} = W_{ih}", r"\bar{a}_t \, W_{ih}")
STATE = (r"\prod_{t} \frac{\partial h_t}{\partial h_{t-1}}", r"\bar{b}_1 \, W_{hh} + \text{what skips the gates}")
MEMORY = (r"\prod_{t} f_t \text{, beside what the gates pass on}", r"f_1 \odot \bar{c}_1")
INPUT_WEIGHT = (r"x_t \text{ at each step}", r"\sum_t \bar{a}_t^{T} \, x_t")
HIDDEN_WEIGHT = (r"h_{t-1} \text{ at each step}", r"\sum_t \bar{b}_t^{T} \, h_{t-1}")
INPUT_BIAS = (r"1 \text{ at each step}", r"\sum_t \bar{a}_t")
HIDDEN_BIAS = (r"1 \text{ at each step}", r"\sum_t \bar{b}_t")
LATER = "a step reaches its own output and later ones, never earlier ones, and each sequence is by itself"
SOURCE = (
    "doi:10.1109/5.58337 (backpropagation through time); the cells as in the documentation of torch.nn.LSTM, GRU and "
    "RNN. derivatives.yaml: "
)
HELD = "a and b are the gates made from the input and from the state, before their sigmoid or tanh. "


def _lstm_sample(**how: Any) -> Callable[..., Any]:
    module = torch.nn.LSTM(3, 2, dtype=torch.float32, **how)
    for number, weight in enumerate(module.parameters()):
        weight.data = randn(*weight.shape, shift=number).detach().float()
    return lambda x: module(x.float())


mkldnn_rnn_layer = rule(
    "MkldnnRnnLayerBackward0",
    name="lstm_layer",
    equation=_told,
    wrt={
        "input": Wrt(_layer_part(lambda op, found: torch.stack(found[0])), *INPUT, LATER),
        "weight0": Wrt(_layer_weight(0), *INPUT_WEIGHT),
        "weight1": Wrt(_layer_weight(1), *HIDDEN_WEIGHT),
        "weight2": Wrt(_layer_weight(2), *INPUT_BIAS),
        "weight3": Wrt(_layer_weight(3), *HIDDEN_BIAS),
        "hx_": Wrt(_layer_part(lambda op, found: found[1][0]), *STATE, LATER),
        "cx_": Wrt(_layer_part(lambda op, found: found[2][0]), *MEMORY, LATER),
    },
    outputs=4,
    accepts=lambda op: op.mode == LSTM and not op.batch_sizes,
    samples=lambda: [
        sample(_lstm_sample(), randn(4, 2, 3)),
        sample(_lstm_sample(num_layers=2, bidirectional=True), randn(3, 2, 3), note="two layers, both directions"),
        sample(_lstm_sample(bias=False, batch_first=True), randn(2, 3, 3), note="no bias, batch first"),
        sample(_lstm_sample(), randn(1, 1, 3), note="one step"),
    ],
    source=SOURCE + "mkldnn_rnn_layer",
    remark=HELD + "weight0 to weight3 are W_ih, W_hh, b_ih and b_hh.",
)


def _stack(op: Any) -> Network:
    """cuDNN's and MIOpen's kernel: all layers and directions in one."""
    each = op.weight_stride0
    directions = 2 if op.bidirectional else 1
    groups = [op.weight[start : start + each] for start in range(0, len(op.weight), each)]
    passes = [Pass(CELLS[op.mode], group, each >= 4, bool(n % directions)) for n, group in enumerate(groups)]
    layers = [passes[start : start + directions] for start in range(0, len(passes), directions)]
    return Network(layers, _steps(op, op.input), op.hx, op.cx if op.mode == LSTM else None)


def _stack_part(pick: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def vjp(op: Any, g: Any) -> Any:
        c_bar = _given(g[2], op.cx) if op.mode == LSTM else None
        found = _stack(op).back(_steps(op, _given(g[0], op.outs[0])), _given(g[1], op.hx), c_bar)
        return pick(op, found)

    return vjp


stacked = rule(
    "CudnnRnnBackward0",
    "MiopenRnnBackward0",
    name="recurrent_layers",
    equation=_told,
    wrt={
        "input": Wrt(_stack_part(lambda op, found: _sequence(op, found[0])), *INPUT, LATER),
        "weight": Wrt(
            _stack_part(lambda op, found: [w for group in found[3] for w in group]),
            r"x_t, \; h_{t-1}, \; 1 \text{ at each step}",
            r"\left[\sum_t \bar{a}_t^{T} \, x_t, \; \sum_t \bar{b}_t^{T} \, h_{t-1}, \; \sum_t \bar{a}_t, \; "
            r"\sum_t \bar{b}_t\right]",
        ),
        "hx": Wrt(_stack_part(lambda op, found: found[1]), *STATE, LATER),
        "cx": Wrt(_stack_part(lambda op, found: found[2]), *MEMORY, LATER),
    },
    constants={"weight_buf": "not differentiable", "dropout_state": "not differentiable"},
    outputs=5,
    # Between the layers the kernel drops by random numbers of its own, which nothing can read afterwards.
    accepts=lambda op: not (op.train and op.dropout and len(op.weight) > op.weight_stride0 * (1 + op.bidirectional)),
    samples=lambda: (),
    source=SOURCE + "_cudnn_rnn, miopen_rnn",
    remark=HELD + "Layers stand on each other: the output of one is the x of the next, both directions side by side.",
)


# Fused cells: one step, from its gates. ----------------------------------------------------------------------------


def _with_biases(op: Any) -> tuple[Tensor, Tensor]:
    a, b = op.input_gates, op.hidden_gates
    return (a, b) if op.input_bias is None else (a + op.input_bias, b + op.hidden_bias)


def _lstm_cell(op: Any, g: Any) -> GateGradients:
    h_bar, c_bar = _given(g[0], op.cx), _given(g[1], op.cx)
    return _lstm_back(*_with_biases(op), op.cx, op.cx, h_bar, c_bar)


def _gru_cell(op: Any, g: Any) -> GateGradients:
    return _gru_back(*_with_biases(op), op.hx, None, _given(g[0], op.hx), None)


def _fused_cell(
    node: str, back: Callable[[Any, Any], GateGradients], state: tuple[str, Wrt], equation: str, outputs: int
) -> Rule:
    return rule(
        node,
        equation=equation,
        wrt={
            "input_gates": Wrt(lambda op, g: back(op, g).input_gates, r"\text{the cell's}", r"\bar{a}"),
            "hidden_gates": Wrt(lambda op, g: back(op, g).hidden_gates, r"\text{the cell's}", r"\bar{b}"),
            state[0]: state[1],
            "input_bias": Wrt(lambda op, g: back(op, g).input_gates.sum(0), "1", r"\sum_n \bar{a}_n"),
            "hidden_bias": Wrt(lambda op, g: back(op, g).hidden_gates.sum(0), "1", r"\sum_n \bar{b}_n"),
        },
        outputs=outputs,
        samples=lambda: (),
        source=SOURCE + node.removesuffix("Backward0"),
        remark=HELD,
    )


lstm_cell = _fused_cell(
    "ThnnFusedLstmCellBackward0",
    _lstm_cell,
    ("cx", Wrt(lambda op, g: _lstm_cell(op, g).c, "f", r"f \odot \bar{c}")),
    r"[i, f, g, o] = a + b, \quad c = \sigma(f) \odot $cx + \sigma(i) \odot \tanh g, "
    r"\quad $out = \sigma(o) \odot \tanh c",
    3,
)
gru_cell = _fused_cell(
    "ThnnFusedGruCellBackward0",
    _gru_cell,
    ("hx", Wrt(lambda op, g: _gru_cell(op, g).h, "z", r"z \odot $g")),
    r"r, z = \sigma(a + b), \quad n = \tanh\left(a_n + r \odot b_n\right), \quad $out = (1 - z) \odot n + z \odot $hx",
    2,
)


# Packing -----------------------------------------------------------------------------------------------------------


def _unpack(op: Any, g: Any) -> Tensor:
    gradient = torch.zeros_like(op.input)
    steps = gradient.transpose(0, 1) if op.batch_first else gradient
    for t, step in enumerate(g[0].split(op.outs[1].tolist())):
        steps[t, : step.shape[0]] = step
    return gradient


pack_padded_sequence = rule(
    "PackPaddedSequenceBackward0",
    equation=r"$out = \text{the steps of } $input \text{ under each other, without the padding}",
    wrt={
        "input": Wrt(
            _unpack,
            r"1 \text{ for an element that was taken, } 0 \text{ for padding}",
            r"$g \text{ put back where it was taken, } 0 \text{ at padding}",
            "each output element is a copy of one input element",
        )
    },
    constants={"lengths": "not differentiable"},
    structure="linear",
    outputs=2,
    samples=lambda: [
        sample(torch._pack_padded_sequence, randn(3, 2, 2), torch.tensor([3, 1]), False),
        sample(torch._pack_padded_sequence, randn(2, 3, 2), torch.tensor([2, 2]), True, note="batch first"),
    ],
    source="derivatives.yaml: _pack_padded_sequence",
)
