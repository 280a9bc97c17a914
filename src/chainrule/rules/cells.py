"""The cells of recurrent layers: what one step does with its gates, and the way back of that."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class GateGradients:
    """d loss / d of what a step started from: its gates, and the states where they enter beside the gates."""

    input_gates: Tensor
    hidden_gates: Tensor
    h: Tensor | None
    c: Tensor | None


@dataclass(frozen=True)
class Cell:
    """A cell from its gates a and d and the states u and v before the step, in short: `written` prints it, `_run` runs.

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

    def step_back(
        self, a: Tensor, d: Tensor, h: Tensor, c: Tensor | None, h_bar: Tensor, c_bar: Tensor | None
    ) -> GateGradients:
        """What comes back from the gradients of the new h and c."""
        lines = [self.forward, self.back, f"to_h = {self.to_h or None}", f"to_c = {self.to_c or None}"]
        found = _run("; ".join(lines), a=a, d=d, u=h, v=c, h_bar=h_bar, w_bar=c_bar)
        return GateGradients(found["a_bar"], found["d_bar"], found["to_h"], found["to_c"])


def written(short: str) -> str:
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
