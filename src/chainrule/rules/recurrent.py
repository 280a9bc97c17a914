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

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Rule, Wrt, at, derivative, rule, sample
from chainrule.rules.linear import randn

Steps = list[Tensor]


# Cells: what one step does with its gates, and the way back of that. -----------------------------------------------

# The states u and v before a step, or what comes back to a, d, u and v; None where a cell has none.
States = tuple[Any, Any, Any, Any]


@dataclass(frozen=True)
class Cell:
    """A cell from its gates a and d and the states u and v before the step, as formulas in short that print and run.

    `z` is a tensor of the step, `.z` its direction, `~z` its gradient, `z[0/4]` its first quarter. `moved` says how all
    of that changes with its gates and states, `gates` what comes back to the gates from h and c (w is what comes to c
    from later steps), `to_h` and `to_c` what comes back to the states beside the gates.
    """

    forward: str
    moved: str
    gates: str
    to_h: str = ""
    to_c: str = ""

    def run(self, a: Tensor, d: Tensor, u: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The new h and c."""
        known = _run(self.forward, {"a": a, "d": d, "u": u, "v": v})
        return known["h"], known.get("c")

    def back(self, a: Tensor, d: Tensor, u: Tensor, v: Tensor | None, h_bar: Tensor, c_bar: Tensor | None) -> States:
        """What comes back to a, d, u and v from the gradients of h and c."""
        known = _run(self.forward, {"a": a, "d": d, "u": u, "v": v})
        known = _run(self.gates, known | {"h_bar": h_bar, "w_bar": c_bar})
        to_states = (eval(_compiled(each), CODE, known) if each else None for each in (self.to_h, self.to_c))
        return known["a_bar"], known["d_bar"], *to_states


SHORT = re.compile(r"([.~]?)\b([a-z])\b(?:\[(\d)/(\d)\])?")
CODE = {
    "sigma": torch.sigmoid, "tanh": torch.tanh, "ReLU": torch.relu, "part": lambda t, k, n: t.chunk(n, -1)[k],
    "join": lambda *parts: torch.cat(parts, -1),
}  # fmt: skip


@cache
def _code(short: str) -> str:
    """Python of a formula in short."""

    def word(found: re.Match[str]) -> str:
        mark, name, place, count = found.groups()
        name += "_bar" if mark == "~" else ""
        return name if place is None else f"part({name}, {place}, {count})"

    text = re.sub(r"\[(\w > 0)\]", r"(\1)", " ".join(short.split()))
    return re.sub(r"\[([^/]+)\]", r"join(\1)", SHORT.sub(word, text))


@cache
def _compiled(short: str) -> Any:
    return compile(_code(short), "<cell>", "eval")


def _run(short: str, known: dict[str, Any]) -> dict[str, Any]:
    """The numbers of formulas in short, one after the other, and those known before."""
    for line in short.split(";"):
        name, _, formula = line.partition("=")
        known[_code(name)] = eval(_compiled(formula), CODE, known)
    return known


def _latex(short: str) -> str:
    """LaTeX of formulas in short: `z` is z_t."""

    def letter(found: re.Match[str]) -> str:
        mark, name, place, count = found.groups()
        name = {"": name, ".": rf"\dot{{{name}}}", "~": rf"\bar{{{name}}}"}[mark] + "_t"
        return name if place is None else rf"\operatorname{{chunk}}({name}, {place}, {count})"

    text = SHORT.sub(letter, " ".join(short.split()))
    for word, command in (("*", r"\odot"), ("tanh", r"\tanh"), ("sigma", r"\sigma"), (";", r", \quad")):
        text = text.replace(word, command)
    return text.replace("ReLU", r"\operatorname{ReLU}")


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
            new, memory = self.cell.run(*self.gates(steps[t], states[t][0]), *states[t])
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
                weights_bar[-1] += new_bar.mT @ self.cell.run(a, b, h_t, c_t)[0]
                new_bar = new_bar @ self.projection
            later = None if c_bar is None else c_bar[:here]
            a_bar, b_bar, to_h, to_c = self.cell.back(a, b, h_t, c_t, new_bar, later)
            for place, (gates, operand) in enumerate([(a_bar, x), (b_bar, h_t)]):
                weights_bar[place] += gates.mT @ operand
                if self.biased:
                    weights_bar[2 + place] += gates.sum(0)
            steps_bar[t] = a_bar @ self.weights[0]
            before = b_bar @ self.weights[1]
            h_bar = torch.cat([before if to_h is None else before + to_h, h_bar[here:]])
            c_bar = None if c_bar is None else torch.cat([to_c, c_bar[here:]])
        return steps_bar, h_bar, c_bar, weights_bar


# A fused kernel: layers on layers, in one direction or both. -------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A fused kernel's arguments in one form, whichever kernel it is: `passes[layer][direction]`, and all that enters.

    `split` makes steps of a sequence; `h` and `c` are (passes, batch, state).
    """

    passes: list[list[Pass]]
    sequence: Tensor
    split: Callable[[Tensor], Steps]
    h: Tensor
    c: Tensor | None

    def _state(self, states: Tensor | None, layer: int, direction: int) -> Any:
        return None if states is None else states[layer * len(self.passes[0]) + direction]

    def back(
        self, g: Steps, h_bar: Tensor, c_bar: Tensor | None
    ) -> tuple[Steps, Tensor, Tensor | None, list[list[Tensor]]]:
        """The gradients of the steps, of h and c, and of the weights of each pass, from those of the outputs."""
        entering = [self.split(self.sequence)]
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
    return Network([[one]], op.input, lambda t: list(t.unbind(0)), op.hx_[None], op.cx_[None])


def _stack(op: Any) -> Network:
    """cuDNN's and MIOpen's kernel: all layers and directions in one."""
    each = op.weight_stride0
    directions = 2 if op.bidirectional else 1
    groups = [op.weight[start : start + each] for start in range(0, len(op.weight), each)]
    passes = [Pass(CELLS[op.mode], group, each >= 4, bool(n % directions)) for n, group in enumerate(groups)]
    layers = [passes[start : start + directions] for start in range(0, len(passes), directions)]
    return Network(layers, op.input, partial(_steps, op), op.hx, op.cx if op.mode == LSTM else None)


def _weight(place: int) -> Callable[[Any, Any], Tensor]:
    def pick(op: Any, found: Any) -> Tensor:
        weights: list[Tensor] = found[3][0]
        return weights[place] if place < len(weights) else torch.zeros_like(getattr(op, f"weight{place}"))

    return pick


# Formulas of all steps. -----------------------------------------------------------------------------------------


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

    def equation(self) -> str:
        return self.ends("")

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
        return total + _after([*bars, _latex(self.cell.gates)])


LATER = "a step reaches its own output and later ones, never earlier ones, and each sequence is by itself"
SOURCE = (
    "doi:10.1109/5.58337 (backpropagation through time); the cells as in the documentation of torch.nn.LSTM, GRU and "
    "RNN. derivatives.yaml: "
)
HELD = "The gates made from the input are a, those made from the state d, before their sigmoid or tanh. "


def _ways(
    network: Callable[[Any], Network],
    layer: Callable[[Any], _Layer],
    arguments: Mapping[str, tuple[str, Callable[[Any, Any], Any]]],
) -> dict[str, Wrt]:
    """The derivatives of a kernel by its arguments: their letters in formulas, and their parts of what comes back."""

    def way(letter: str, pick: Callable[[Any, Any], Any]) -> Wrt:
        def vjp(op: Any, g: Any) -> Any:
            net = network(op)
            h_bar = _given(g[1], net.h).reshape(net.h.shape)
            c_bar = None if net.c is None else _given(g[2], net.c).reshape(net.c.shape)
            return pick(op, net.back(net.split(_given(g[0], op.outs[0])), h_bar, c_bar))

        zeros = LATER if letter in "xhc" else ""
        return Wrt(vjp, lambda op: layer(op).moved(letter), lambda op: layer(op).back(letter), zeros)

    return {argument: way(*how) for argument, how in arguments.items()}


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


mkldnn_rnn_layer = rule(
    "MkldnnRnnLayerBackward0",
    name="lstm_layer",
    equation=lambda op: _layer_formulas(op).equation(),
    where=lambda op: _layer_formulas(op).forward(),
    wrt=_ways(
        _layer,
        _layer_formulas,
        {
            "input": ("x", lambda op, found: torch.stack(found[0])),
            **{f"weight{place}": (letter, _weight(place)) for place, letter in enumerate("WRbB")},
            "hx_": ("h", lambda op, found: found[1][0]),
            "cx_": ("c", lambda op, found: found[2][0]),
        },
    ),
    outputs=4,
    accepts=lambda op: op.mode == LSTM and not op.batch_sizes,
    samples=lambda: [
        sample(_lstm_sample(), randn(4, 2, 3, shift=0)),
        sample(
            _lstm_sample(num_layers=2, bidirectional=True), randn(3, 2, 3, shift=0), note="two layers, both directions"
        ),
        sample(_lstm_sample(bias=False, batch_first=True), randn(2, 3, 3, shift=0), note="no bias, batch first"),
        sample(_lstm_sample(), randn(1, 1, 3, shift=0), note="one step"),
    ],
    source=SOURCE + "mkldnn_rnn_layer",
    remark=HELD + "weight0 to weight3 are W_ih, W_hh, b_ih and b_hh.",
)


stacked = rule(
    "CudnnRnnBackward0",
    "MiopenRnnBackward0",
    name="recurrent_layers",
    equation=lambda op: _stack_formulas(op).equation(),
    where=lambda op: _stack_formulas(op).forward(),
    wrt=_ways(
        _stack,
        _stack_formulas,
        {
            "input": ("x", lambda op, found: _sequence(op, found[0])),
            "weight": ("all", lambda op, found: [w for group in found[3] for w in group]),
            "hx": ("h", lambda op, found: found[1]),
            "cx": ("c", lambda op, found: found[2]),
        },
    ),
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


def _cell_back(mode: int, place: int, op: Any, g: Any) -> Tensor:
    """What comes back to the gates (0 those of the input, 1 of the state), to h (2) and to c (3) before the step."""
    u, v = op.arguments.get("hx"), op.arguments.get("cx")
    state = u if v is None else v
    c_bar = _given(g[1], state) if mode == LSTM else None
    found: Tensor = CELLS[mode].back(*_with_biases(op), u, v, _given(g[0], state), c_bar)[place]
    return found


@dataclass(frozen=True)
class _Step:
    """The formulas of one step from its gates, as a cell's without the index t."""

    op: Any
    mode: int
    state: str  # what the schema calls the state that enters beside the gates

    def _with(self, short: str, *beside: str) -> str:
        return r", \quad ".join([_latex(short).replace("_t", ""), *beside])

    def _ends(self, mark: str = "{@}") -> str:
        names = zip("hc", ("$out0", "$out1") if self.mode == LSTM else ("$out0",), strict=False)
        return r", \quad ".join(f"{mark} = {mark}".replace("@", out, 1).replace("@", name) for name, out in names)

    @property
    def _letter(self) -> str:
        return "v" if self.mode == LSTM else "u"

    def where(self) -> str:
        biases = ("", "") if self.op.input_bias is None else (" + $input_bias", " + $hidden_bias")
        gates = (f"a = $input_gates{biases[0]}", f"d = $hidden_gates{biases[1]}", f"{self._letter} = ${self.state}")
        return self._with(CELLS[self.mode].forward, *gates)

    def equation(self) -> str:
        return self._ends()

    def moved(self, argument: str) -> str:
        sides = {"a": ("input_gates", "input_bias"), "d": ("hidden_gates", "hidden_bias"), self._letter: (self.state,)}
        dots = [
            rf"\dot{{{letter}}} = " + (rf"\dot{{${argument}}}" if argument in names else "0")
            for letter, names in sides.items()
        ]
        return self._ends(r"\dot{@}") + r", \quad " + self._with(CELLS[self.mode].moved, *dots)

    def back(self, argument: str) -> str:
        cell = CELLS[self.mode]
        side = {"input": "a", "hidden": "d"}.get(argument.split("_")[0], "")
        total = rf"\bar{{{side}}}" if side else self._with(cell.to_c or cell.to_h)
        total = rf"\operatorname{{colsum}}({total})" if argument.endswith("_bias") else total
        bars = [r"\bar{h} = $g0", *([r"\bar{w} = $g1"] if self.mode == LSTM else [])]
        return rf"$grad = {total}, \quad " + self._with(cell.gates, *bars)


def _fused_cell(node: str, mode: int, state: str, outputs: int) -> Rule:
    def step(op: Any) -> _Step:
        return _Step(op, mode, state)

    def wrt(argument: str, place: int) -> Wrt:
        def vjp(op: Any, g: Any) -> Tensor:
            found = _cell_back(mode, place, op, g)
            return found.sum(0) if argument.endswith("_bias") else found

        return Wrt(vjp, lambda op: step(op).moved(argument), lambda op: step(op).back(argument))

    arguments = {
        "input_gates": 0,
        "hidden_gates": 1,
        state: 3 if mode == LSTM else 2,
        "input_bias": 0,
        "hidden_bias": 1,
    }
    return rule(
        node,
        equation=lambda op: step(op).equation(),
        where=lambda op: step(op).where(),
        wrt={argument: wrt(argument, place) for argument, place in arguments.items()},
        outputs=outputs,
        samples=lambda: (),
        source=SOURCE + node.removesuffix("Backward0"),
        remark=HELD,
    )


lstm_cell = _fused_cell("ThnnFusedLstmCellBackward0", LSTM, "cx", 3)
gru_cell = _fused_cell("ThnnFusedGruCellBackward0", 3, "hx", 2)


# Packing -----------------------------------------------------------------------------------------------------------


def _unpack(op: Any, g: Any) -> Tensor:
    gradient = torch.zeros_like(op.input)
    steps = gradient.transpose(0, 1) if op.batch_first else gradient
    for t, step in enumerate(g[0].split(op.outs[1].tolist())):
        steps[t, : step.shape[0]] = step
    return gradient


PACKED = (
    "{$g}_{m_t + n, k}"  # step t has the N_t sequences that are long enough, longest first; m_t elements lie before
)
TAKEN = (
    r"0 \le n < N_t, \quad N_t = \sum_s [{$lengths}_s > t], "
    r"\quad m_t = \sum_s \min({$lengths}_s, t)"
)


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
        sample(torch._pack_padded_sequence, randn(3, 2, 2, shift=0), torch.tensor([3, 1]), False),
        sample(torch._pack_padded_sequence, randn(2, 3, 2, shift=0), torch.tensor([2, 2]), True, note="batch first"),
    ],
    source="derivatives.yaml: _pack_padded_sequence",
)
