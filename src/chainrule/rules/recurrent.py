r"""Rules of recurrent layers: LSTM, GRU and the plain RNN, one step at a time or as a fused kernel over all steps.

A cell is stated once, by what it does with its gates (`CELLS`); everything else follows from it. The input gates are
x W_ih^T + b_ih and the hidden gates h W_hh^T + b_hh of a step.

Fused kernels are unrolled and walked back step by step, which is backpropagation through time: a state's gradient is
what comes from the output at that step plus what comes from the step after it, and a weight, used at every step, gets
the sum over the steps. The states on the way are computed again from the recorded inputs.

Sequences are time-major here, as a list of steps; step t holds the sequences that are long enough to have it, longest
first, which is what a packed sequence is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from chainrule.graph.comparison import UNKNOWN_SUMS, compare
from chainrule.rules import Rule, Working, Wrt, rule, sample, state_tables
from chainrule.rules.linalg import given
from chainrule.rules.linear import randn

Steps = list[Tensor]


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
    """A cell from its gates a and d and the states u and v before the step, in short: `_latex` prints it, `_run` runs.

    `moved` says how all of that changes with its gates and states, `back` what comes back to the gates from h and c
    (w is what comes to c from later steps), `to_h` and `to_c` what comes back to the states beside the gates.
    """

    forward: str
    moved: str
    back: str
    to_h: str = ""
    to_c: str = ""

    def step(self, a: Tensor, d: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The new h and c, from those before."""
        found = _run(self.forward, a=a, d=d, u=h, v=c)
        return found["h"], found.get("c")

    @property
    def names(self) -> tuple[str, ...]:
        """What a step computes of the size of its state, in order: `i f g o c h`."""
        return tuple(re.findall(r"(\w) =", self.forward.removeprefix("z = a + d; ")))

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates among these, in the order in which a has them; of a cell without gates its state."""
        return tuple(name for name in self.names if name not in "hc") or self.names

    def work(self, a: Tensor, d: Tensor, h: Tensor, c: Tensor | None) -> Tensor:
        """All of that, side by side along a new last axis."""
        found = _run(self.forward, a=a, d=d, u=h, v=c)
        return torch.stack([found[name] for name in self.names], -1)

    def step_back(
        self, a: Tensor, d: Tensor, h: Tensor, c: Tensor | None, h_bar: Tensor, c_bar: Tensor | None
    ) -> GateGradients:
        """What comes back from the gradients of the new h and c."""
        lines = [self.forward, self.back, f"to_h = {self.to_h or None}", f"to_c = {self.to_c or None}"]
        found = _run("; ".join(lines), a=a, d=d, u=h, v=c, h_bar=h_bar, w_bar=c_bar)
        return GateGradients(found["a_bar"], found["d_bar"], found["to_h"], found["to_c"])


def _latex(short: str) -> str:
    """LaTeX of formulas in short: `z` is z_t, `.z` its direction, `~z` its gradient, `z[0/4]` its first quarter."""

    def letter(found: re.Match[str]) -> str:
        mark, name, place, count = found.groups()
        name = {"": name, ".": rf"\dot{{{name}}}", "~": rf"\bar{{{name}}}"}[mark] + "_t"
        return name if place is None else rf"\operatorname{{chunk}}({name}, {place}, {count})"

    text = re.sub(r"([.~]?)\b([a-z])\b(?:\[(\d)/(\d)\])?", letter, " ".join(short.split()))
    for word, command in (("*", r"\odot"), ("tanh", r"\tanh"), ("sigma", r"\sigma"), (";", r", \quad")):
        text = text.replace(word, command)
    return text.replace("ReLU", r"\operatorname{ReLU}")


FUNCTIONS = {
    "sigma": torch.sigmoid,
    "tanh": torch.tanh,
    "ReLU": torch.relu,
    "chunk": lambda t, place, count: t.chunk(count, -1)[place],
    "cat": lambda *parts: torch.cat(parts, -1),
}


@cache
def _code(short: str) -> CodeType:
    """Formulas in short as Python: `~z` is z_bar, `z[0/4]` a call of chunk, a list its parts side by side."""
    text = re.sub(r"(\w)\[(\d)/(\d)\]", r"chunk(\1, \2, \3)", short.replace("[h > 0]", "(h > 0)"))
    text = re.sub(r"\[(.*?)\]", r"cat(\1)", re.sub(r"~(\w)", r"\1_bar", text))
    return compile(text, "<cell>", "exec")


def _run(short: str, **known: Any) -> dict[str, Any]:
    """All that formulas in short define, from what is known."""
    found = {**FUNCTIONS, **known}
    exec(_code(short), found)
    return found


LSTM = 2
CELLS = {  # by PyTorch's number for the mode of a fused kernel
    LSTM: Cell(
        "z = a + d; i = sigma(z[0/4]); f = sigma(z[1/4]); g = tanh(z[2/4]); o = sigma(z[3/4]); c = f * v + i * g; "
        "h = o * tanh(c)",
        ".z = .a + .d; .i = i * (1 - i) * .z[0/4]; .f = f * (1 - f) * .z[1/4]; .g = (1 - g * g) * .z[2/4]; "
        ".o = o * (1 - o) * .z[3/4]; .c = .f * v + f * .v + .i * g + i * .g; "
        ".h = .o * tanh(c) + o * (1 - tanh(c) * tanh(c)) * .c",
        "~c = ~h * o * (1 - tanh(c) * tanh(c)) + ~w; ~a = [~c * g * i * (1 - i), ~c * v * f * (1 - f), "
        "~c * i * (1 - g * g), ~h * tanh(c) * o * (1 - o)]; ~d = ~a",
        to_c="f * ~c",
    ),
    3: Cell(
        "r = sigma(a[0/3] + d[0/3]); z = sigma(a[1/3] + d[1/3]); n = tanh(a[2/3] + r * d[2/3]); "
        "h = (1 - z) * n + z * u",
        ".r = r * (1 - r) * (.a[0/3] + .d[0/3]); .z = z * (1 - z) * (.a[1/3] + .d[1/3]); "
        ".n = (1 - n * n) * (.a[2/3] + .r * d[2/3] + r * .d[2/3]); .h = (1 - z) * .n + .z * (u - n) + z * .u",
        "~n = ~h * (1 - z) * (1 - n * n); ~z = ~h * (u - n) * z * (1 - z); ~r = ~n * d[2/3] * r * (1 - r); "
        "~a = [~r, ~z, ~n]; ~d = [~r, ~z, ~n * r]",
        to_h="z * ~h",
    ),
    **{
        mode: Cell(f"h = {squash}(a + d)", f".h = {slope} * (.a + .d)", f"~a = ~h * {slope}; ~d = ~a")
        for mode, squash, slope in ((0, "ReLU", "[h > 0]"), (1, "tanh", "(1 - h * h)"))
    },
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
            new, memory = self.cell.step(*self.gates(steps[t], states[t][0]), *states[t])
            outputs[t] = new if self.projection is None else new @ self.projection.mT
            h = torch.cat([outputs[t], h[here:]])  # sequences that are over, or not begun, keep their state
            c = None if c is None or memory is None else torch.cat([memory, c[here:]])
        return outputs, states

    def work(self, steps: Steps, h: Tensor, c: Tensor | None) -> Tensor:
        """What each step computes: (sequence, unit, step, name)."""
        _, states = self.unroll(steps, h, c)
        each = [self.cell.work(*self.gates(x, state[0]), *state) for x, state in zip(steps, states, strict=True)]
        return torch.stack(each, 2)

    def back(
        self,
        steps: Steps,
        h: Tensor,
        c: Tensor | None,
        g: Steps,
        h_bar: Tensor,
        c_bar: Tensor | None,
        met: dict[int, Tensor] | None = None,
    ) -> tuple[Steps, Tensor, Tensor | None, list[Tensor]]:
        """Backpropagation through time: the gradients of the steps, of the first h and c, and of the weights.

        `met` gets what comes back to each step: (sequence, unit, h and c and each gate).
        """
        _, states = self.unroll(steps, h, c)
        steps_bar, weights_bar = list(steps), [torch.zeros_like(w) for w in self.weights]
        for t in reversed(self.order(len(steps))):
            x, (h_t, c_t), here = steps[t], states[t], steps[t].shape[0]
            a, b = self.gates(x, h_t)
            new_bar = h_bar[:here] + g[t]
            if self.projection is not None:
                weights_bar[-1] += new_bar.mT @ self.cell.step(a, b, h_t, c_t)[0]
                new_bar = new_bar @ self.projection
            bar = self.cell.step_back(a, b, h_t, c_t, new_bar, None if c_bar is None else c_bar[:here])
            if met is not None:
                gates_bar = bar.input_gates.chunk(bar.input_gates.shape[-1] // new_bar.shape[-1], -1)
                met[t] = torch.stack([new_bar, *gates_bar], -1)
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

    def entering(self) -> list[Steps]:
        """The steps that enter each layer, and at the end those that come out."""
        entering = [self.steps]
        for layer, directions in enumerate(self.passes):
            outs = [
                each.unroll(entering[-1], self._state(self.h, layer, d), self._state(self.c, layer, d))[0]
                for d, each in enumerate(directions)
            ]
            entering.append([torch.cat(sides, -1) for sides in zip(*outs, strict=True)])
        return entering

    def work(self) -> list[Tensor]:
        """What each step of each pass computes: (sequence, unit, step, name)."""
        entering = self.entering()
        return [
            each.work(entering[layer], self._state(self.h, layer, d), self._state(self.c, layer, d))
            for layer, directions in enumerate(self.passes)
            for d, each in enumerate(directions)
        ]

    def back(
        self, g: Steps, h_bar: Tensor, c_bar: Tensor | None, met: list[dict[int, Tensor]] | None = None
    ) -> tuple[Steps, Tensor, Tensor | None, list[list[Tensor]]]:
        """The gradients of the steps, of h and c, and of the weights of each pass, from those of the outputs.

        `met` has a dictionary for each pass, which gets what comes back to each step.
        """
        entering = self.entering()
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
                    None if met is None else met[layer * len(self.passes[0]) + d],
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


def _layer_gradients(op: Any, g: Any) -> dict[str, Any]:
    """Of oneDNN's kernel: one layer in one direction, whatever `num_layers` says."""
    one, entering, h_0, c_0 = _layer(op)
    network = Network([[one]], entering, h_0[None], c_0[None])
    upstream = (list(given(g[0], op.outs[0]).unbind(0)), given(g[1], op.hx_)[None], given(g[2], op.cx_)[None])
    steps, h, c, (found,) = network.back(*upstream)
    assert c is not None
    absent = {f"weight{n}": torch.zeros_like(op.arguments[f"weight{n}"]) for n in range(len(found), 4)}
    weights_bar = {f"weight{n}": each for n, each in enumerate(found)}
    return {"input": torch.stack(steps), "hx_": h[0], "cx_": c[0], **weights_bar, **absent}


def _layer(op: Any) -> tuple[Pass, Steps, Tensor, Tensor]:
    weights = [op.weight0, op.weight1, *((op.weight2, op.weight3) if op.has_biases else ())]
    return Pass(CELLS[op.mode], weights, op.has_biases, op.reverse), list(op.input.unbind(0)), op.hx_, op.cx_


def _layer_workings(op: Any) -> list[Working]:
    one, steps, h, c = _layer(op)
    return [_made(one, one.work(steps, h, c), "")]


def _layer_workings_back(op: Any, g: Any) -> list[Working]:
    one, steps, h, c = _layer(op)
    met: dict[int, Tensor] = {}
    one.back(steps, h, c, list(given(g[0], op.outs[0]).unbind(0)), given(g[1], op.hx_), given(g[2], op.cx_), met)
    return [_met(one, met, "")]


def _made(one: Pass, data: Tensor, which: str) -> Working:
    """What each step of a pass computes, as a table."""
    times = tuple(f"t = {t}" for t in range(data.shape[2]))
    return Working("h_t", f"{which}[sequence, unit]: the gates and states of each step", data, times, one.cell.names)


def _met(one: Pass, met: dict[int, Tensor], which: str) -> Working:
    """What came back to each step of a pass, as a table."""
    times, columns = tuple(f"t = {t}" for t in range(len(met))), ("dJ/dh", *(f"dJ/da of {g}" for g in one.cell.gates))
    data = torch.stack([met[t] for t in range(len(met))], 2)
    return Working(
        r"\bar{h}_t, \bar{a}_t", f"{which}[sequence, unit]: what comes back to each step", data, times, columns
    )


@state_tables("rnn_relu", "rnn_tanh", "lstm", "gru")
def _tables(
    name: str, arguments: Sequence[Any], outs: Sequence[Tensor], upstream: Sequence[Tensor | None] | None
) -> list[Working]:
    """Those of a layer that PyTorch runs as single operations."""
    if len(arguments) != 9 or not isinstance(arguments[2], list):
        return []  # packed sequences
    x, first, weights, biased, layers, dropout, train, both, batch_first = arguments
    types = {each.dtype for each in (x, *weights, *outs)}  # several under autocast
    if (train and dropout and layers > 1) or x.dim() != 3 or len(types) > 1:
        return []  # what was dropped between the layers is not among the arguments
    h, c = first if isinstance(first, list) else (first, None)
    sides = 1 + both
    each = len(weights) // (layers * sides)
    cell = CELLS[("rnn_relu", "rnn_tanh", "lstm", "gru").index(name)]
    passes = [Pass(cell, weights[n * each :][:each], biased, bool(n % sides)) for n in range(layers * sides)]
    axis = 1 if batch_first else 0
    network = Network([passes[n : n + sides] for n in range(0, len(passes), sides)], list(x.unbind(axis)), h, c)
    if not compare(torch.stack(network.entering()[-1], axis), outs[0], count=UNKNOWN_SUMS).agrees:
        return []
    which = [
        f"layer {n // sides}{', backwards in time' * (n % sides)}, " if len(passes) > 1 else ""
        for n in range(len(passes))
    ]
    if upstream is None:
        return [_made(*each) for each in zip(passes, network.work(), which, strict=True)]
    met: list[dict[int, Tensor]] = [{} for _ in passes]
    bars = [given(bar, out) for bar, out in zip(upstream, outs, strict=True)]
    network.back(list(bars[0].unbind(axis)), bars[1], None if c is None else bars[2], met)
    return [_met(*each) for each in zip(passes, met, which, strict=True)]


BARS = (
    "A bar stands for a gradient of the loss: that of h_t is all that reaches h_t, from the output at t and from the "
    "step that uses h_t next; w has what that step sends to c_t, and c all that reaches c_t; a and d are the gates "
    "before their sigmoid or tanh, from the input and from the state."
)


# Formulas of all steps. ----------------------------------------------------------------------------------------------


def _after(parts: Iterable[str]) -> str:
    return "".join(rf", \quad {part}" for part in parts)


def _dotted(name: str) -> str:
    """The direction in which an operand, or the first of its parts, changes."""
    return rf"\dot{name.removesuffix('_{0}')}_{{0}}" if name.endswith("}_{0}") else rf"\dot{{{name}}}"


@dataclass(frozen=True)
class _Layer:
    """The formulas of one layer in one direction: a_t = x_t W^T + b and d_t = u_t R^T + b', step after step."""

    op: Any
    names: dict[str, str]  # what x, W, R, b, B, h and c are called
    count: int
    reverse: bool = False

    @property
    def cell(self) -> Cell:
        return CELLS[self.op.mode]

    @property
    def lstm(self) -> bool:
        return bool(self.op.mode == LSTM)

    def _at(self, end: bool) -> int:
        return self.count - 1 if end != self.reverse else 0

    def _state(self, name: str, first: str, before: str) -> str:
        sign = "+" if self.reverse else "-"
        cases = rf"{first} & t = {self._at(False)} \\ {before}_{{t {sign} 1}} & \text{{otherwise}}"
        return rf"{name}_t = \begin{{cases}} {cases} \end{{cases}}"

    def forward(self) -> str:
        n = self.names
        biases = (f" + {n['b']}", f" + {n['B']}") if n.get("b") else ("", "")
        gates = [rf"a_t = {{{n['x']}}}_t \, {n['W']}^T{biases[0]}", rf"d_t = u_t \, {n['R']}^T{biases[1]}"]
        states = [self._state("u", n["h"], "h"), *([self._state("v", n["c"], "c")] if self.lstm else [])]
        return r", \quad ".join([_latex(self.cell.forward), *gates, *states])

    def ends(self, mark: str) -> str:
        out, last = (f"{mark}{{{name}}}" if mark else f"{{{name}}}" for name in ("$out0", "$out1"))
        h, c = (f"{mark}{{{name}}}" if mark else name for name in "hc")
        lead = "_{0}" * (self.names["h"] != "$hx_")  # of cuDNN's kernel, the states of all layers
        text = rf"{out}_t = {h}_t, \quad {last}{lead} = {h}_{{{self._at(True)}}}"
        memory = f"{mark}{{$out2}}" if mark else "{$out2}"
        return text + (rf", \quad {memory}{lead} = {c}_{{{self._at(True)}}}" if self.lstm else "")

    def moved(self, argument: str) -> str:
        if argument in "bB" and argument not in self.names:
            return "0"
        n, dot = self.names, {key: _dotted(name) for key, name in self.names.items()}
        first = {key: dot[key] if key == argument else rf"0 \, {n[key]}" for key in "hc" if key in n}
        inputs = {
            "x": rf"{{{dot['x']}}}_t \, {n['W']}^T",
            "W": rf"{{{n['x']}}}_t \, {dot['W']}^T",
            "b": dot.get("b", ""),
        }
        hidden = {"R": rf" + u_t \, {dot['R']}^T", "B": f" + {dot['B']}" if "B" in dot else ""}
        if argument == "all":
            inputs["all"] = f"{inputs['W']} + {inputs['b']}" if "b" in dot else inputs["W"]
            hidden["all"] = hidden["R"] + hidden["B"]
        gates = [
            rf"\dot{{a}}_t = {inputs.get(argument, '0')}",
            rf"\dot{{d}}_t = \dot{{u}}_t \, {n['R']}^T{hidden.get(argument, '')}",
        ]
        states = [self._state(r"\dot{u}", first["h"], r"\dot{h}")]
        states += [self._state(r"\dot{v}", first["c"], r"\dot{c}")] if self.lstm else []
        return self.ends(r"\dot") + _after([_latex(self.cell.moved), *gates, *states])

    def back(self, argument: str) -> str:
        if argument in "bB" and argument not in self.names:
            return "0"
        n, first, sign = self.names, self._at(False), "-" if self.reverse else "+"
        target, lead = "$grad", "_{0}" * (self.names["h"] != "$hx_")
        to_h = rf"\bar{{d}}_t \, {n['R']}" + (f" + {_latex(self.cell.to_h)}" if self.cell.to_h else "")
        totals = {
            "x": rf"{{{target}}}_t = \bar{{a}}_t \, {n['W']}",
            "W": rf"{target} = \sum_t \bar{{a}}_t^T \, {{{n['x']}}}_t",
            "R": rf"{target} = \sum_t \bar{{d}}_t^T \, u_t",
            "b": rf"{target} = \sum_t \operatorname{{colsum}}(\bar{{a}}_t)",
            "B": rf"{target} = \sum_t \operatorname{{colsum}}(\bar{{d}}_t)",
            "h": rf"{{{target}}}{lead} = " + to_h.replace("_t", f"_{first}"),
            "c": rf"{{{target}}}{lead} = " + _latex(self.cell.to_c).replace("_t", f"_{first}"),
        }
        every = [totals[key].replace(target, rf"\bar{{{n[key]}}}") for key in "WRbB" if key in n]
        total = r", \quad ".join(every) if argument == "all" else totals[argument]

        def later(last: str, rest: str) -> str:
            rest = rest.replace("_t", f"_{{t {sign} 1}}")
            return rf"\begin{{cases}} {last} & t = {self._at(True)} \\ {rest} & \text{{otherwise}} \end{{cases}}"

        bars = [rf"\bar{{h}}_t = {{$g0}}_t + {later('{$g1}' + lead, to_h)}"]
        bars += [rf"\bar{{w}}_t = {later('{$g2}' + lead, _latex(self.cell.to_c))}"] if self.lstm else []
        return total + _after([*bars, _latex(self.cell.back)])


LATER = "a step reaches its own output and later ones, never earlier ones, and each sequence is by itself"
SOURCE = (
    "doi:10.1109/5.58337 (backpropagation through time); the cells as in the documentation of torch.nn.LSTM, GRU and "
    "RNN. derivatives.yaml: "
)
HELD = (
    "The gates made from the input are a, those made from the state d, before their sigmoid or tanh; chunk(z, k, n) is "
    "part k of the n equal parts of z, counted from 0. "
)


def _recurrent(
    *nodes: str,
    gradients: Callable[[Any, Any], dict[str, Any]],
    formulas: Callable[[Any], _Layer | _Step],
    letters: Mapping[str, str],
    **more: Any,
) -> Rule:
    """Register a kernel: the gradients of its arguments, and its formulas, in which they have `letters`."""

    def wrt(argument: str, letter: str) -> Wrt:
        return Wrt(
            lambda op, g: gradients(op, g)[argument],
            lambda op: formulas(op).moved(letter),
            lambda op: formulas(op).back(letter),
            zeros=LATER if letter in "xhc" else "",
        )

    return rule(
        *nodes,
        equation=lambda op: formulas(op).ends(""),
        where=lambda op: formulas(op).forward(),
        wrt={argument: wrt(argument, letter) for argument, letter in letters.items()},
        **more,
    )


def _layer_formulas(op: Any) -> _Layer:
    """Of oneDNN's kernel."""
    names = {"x": "$input", "W": "$weight0", "R": "$weight1", "h": "$hx_", "c": "$cx_"}
    biases = {"b": "$weight2", "B": "$weight3"} if op.has_biases else {}
    return _Layer(op, names | biases, op.input.shape[0], op.reverse)


def _stack_formulas(op: Any) -> _Layer:
    """Of cuDNN's kernel, one layer of it in one direction."""
    names = {"x": "$input", "W": "W_{ih}", "R": "W_{hh}", "h": "{$hx}_{0}", "c": "{$cx}_{0}"}
    biases = {"b": "b_{ih}", "B": "b_{hh}"} if op.weight_stride0 >= 4 else {}
    return _Layer(op, names | biases, len(_steps(op, op.input)))


def _lstm_sample(**how: Any) -> Callable[..., Any]:
    module = torch.nn.LSTM(3, 2, dtype=torch.float32, **how)
    for number, weight in enumerate(module.parameters()):
        weight.data = randn(*weight.shape, shift=number).detach().float()
    return lambda x: module(x.float())


mkldnn_rnn_layer = _recurrent(
    "MkldnnRnnLayerBackward0",
    name="lstm_layer",
    gradients=_layer_gradients,
    formulas=_layer_formulas,
    letters={"input": "x", **{f"weight{n}": letter for n, letter in enumerate("WRbB")}, "hx_": "h", "cx_": "c"},
    outputs=4,
    accepts=lambda op: op.mode == LSTM and not op.batch_sizes,
    samples=lambda: [
        sample(_lstm_sample(), randn(4, 2, 3, shift=0)),
        sample(_lstm_sample(num_layers=2, bidirectional=True), randn(3, 2, 3, shift=0), note="two layers, both ways"),
        sample(_lstm_sample(bias=False, batch_first=True), randn(2, 3, 3, shift=0), note="no bias, batch first"),
        sample(_lstm_sample(), randn(1, 1, 3, shift=0), note="one step"),
    ],
    source=SOURCE + "mkldnn_rnn_layer",
    remark=HELD + "weight0 to weight3 are W_ih, W_hh, b_ih and b_hh.",
    workings=_layer_workings,
    workings_back=_layer_workings_back,
    remark_back=BARS,
)


def _stack_gradients(op: Any, g: Any) -> dict[str, Any]:
    """Of cuDNN's and MIOpen's kernel: all layers and directions in one."""
    each = op.weight_stride0
    directions = 2 if op.bidirectional else 1
    groups = [op.weight[start : start + each] for start in range(0, len(op.weight), each)]
    passes = [Pass(CELLS[op.mode], group, each >= 4, bool(n % directions)) for n, group in enumerate(groups)]
    layers = [passes[start : start + directions] for start in range(0, len(passes), directions)]
    network = Network(layers, _steps(op, op.input), op.hx, op.cx if op.mode == LSTM else None)
    c_bar = given(g[2], op.cx) if op.mode == LSTM else None
    steps, h, c, weights = network.back(_steps(op, given(g[0], op.outs[0])), given(g[1], op.hx), c_bar)
    return {"input": _sequence(op, steps), "hx": h, "cx": c, "weight": [w for group in weights for w in group]}


stacked = _recurrent(
    "CudnnRnnBackward0",
    "MiopenRnnBackward0",
    name="recurrent_layers",
    gradients=_stack_gradients,
    formulas=_stack_formulas,
    letters={"input": "x", "weight": "all", "hx": "h", "cx": "c"},
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


def _cell_gradients(op: Any, g: Any, mode: int) -> dict[str, Any]:
    state, g = (op.cx if mode == LSTM else op.hx), (*g, None)
    bar = CELLS[mode].step_back(*_with_biases(op), state, state, given(g[0], state), given(g[1], state))
    return {
        **{"input_gates": bar.input_gates, "hidden_gates": bar.hidden_gates, "cx": bar.c, "hx": bar.h},
        **{"input_bias": bar.input_gates.sum(0), "hidden_bias": bar.hidden_gates.sum(0)},
    }


@dataclass(frozen=True)
class _Step:
    """The formulas of one step from its gates, as a cell's without the index t."""

    op: Any
    mode: int
    state: str  # what the schema calls the state that enters beside the gates

    def _plain(self, short: str) -> str:
        return _after([_latex(short).replace("_t", "")])

    def forward(self) -> str:
        biases = ("", "") if self.op.input_bias is None else (" + $input_bias", " + $hidden_bias")
        state = f"{'v' if self.mode == LSTM else 'u'} = ${self.state}"
        gates = (f"a = $input_gates{biases[0]}", f"d = $hidden_gates{biases[1]}", state)
        return (self._plain(CELLS[self.mode].forward) + _after(gates)).removeprefix(r", \quad ")

    def ends(self, mark: str) -> str:
        names = zip("hc", ("$out0", "$out1") if self.mode == LSTM else ("$out0",), strict=False)
        pairs = [f"{mark}{{{out}}} = {mark}{{{name}}}" if mark else f"{out} = {name}" for name, out in names]
        return r", \quad ".join(pairs)

    def moved(self, argument: str) -> str:
        sides = {"a": ("input_gates", "input_bias"), "d": ("hidden_gates", "hidden_bias"), "uv": (self.state,)}
        dots = [
            rf"\dot{{{letter}}} = " + (rf"\dot{{${argument}}}" if argument in names else "0")
            for letters, names in sides.items()
            for letter in letters
        ]
        return self.ends(r"\dot") + self._plain(CELLS[self.mode].moved) + _after(dots)

    def back(self, argument: str) -> str:
        cell = CELLS[self.mode]
        total = {
            "input_gates": r"\bar{a}",
            "hidden_gates": r"\bar{d}",
            "input_bias": r"\operatorname{colsum}(\bar{a})",
            "hidden_bias": r"\operatorname{colsum}(\bar{d})",
            self.state: _latex(cell.to_c or cell.to_h).replace("_t", ""),
        }[argument]
        bars = [r"\bar{h} = $g0", *([r"\bar{w} = $g1"] if self.mode == LSTM else [])]
        return rf"$grad = {total}" + _after(bars) + self._plain(cell.back)


def _fused_cell(node: str, mode: int, state: str, outputs: int) -> Rule:
    arguments = ("input_gates", "hidden_gates", state, "input_bias", "hidden_bias")
    return _recurrent(
        node,
        gradients=partial(_cell_gradients, mode=mode),
        formulas=lambda op: _Step(op, mode, state),
        letters={argument: argument for argument in arguments},
        outputs=outputs,
        samples=lambda: (),
        source=SOURCE + node.removesuffix("Backward0"),
        remark=HELD,
    )


lstm_cell = _fused_cell("ThnnFusedLstmCellBackward0", LSTM, "cx", 3)
gru_cell = _fused_cell("ThnnFusedGruCellBackward0", 3, "hx", 2)
