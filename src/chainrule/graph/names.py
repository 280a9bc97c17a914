"""What each value is called: a symbol in equations, a word in a line of text.

The user's own short names win (`Z1`, `X`). In a plain chain of layers the field's names stand for the parameters and
for what has no short name: W^{[l]}, b^{[l]}, Z^{[l]}, A^{[l]} for layer l. Elsewhere a value goes by its path. J is the
loss.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property

from chainrule.graph.graph import Graph, Operation, Value, counted, references

_short = re.compile(r"([A-Za-z])(\d*)")


class Notation:
    """Symbols and plain names for the values of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._symbols: dict[int, str] = {}

    def symbol(self, value: int) -> str:
        """The value's symbol in LaTeX: `Z^{[1]}`, `X`, `\\text{h.0.attn.c\\_attn.weight}`."""
        if value not in self._symbols:
            self._symbols[value] = self._symbol(value)
        return self._symbols[value]

    def _symbol(self, value: int) -> str:
        if value in self._losses:
            return self._losses[value]
        letter, layer = self._layers.get(value, ("", 0))
        name, _, version = self.graph.values[value].name.partition("@")
        short = _short.fullmatch(name)
        superscript = f"({version})" if version else ""
        if short and short[2] and not version and self._layers:
            return rf"{short[1]}^{{[{short[2]}]}}"
        if short:
            index = f"_{{{short[2]}}}" if short[2] else ""
            return short[1] + index + (f"^{{{superscript}}}" if superscript else "")
        if letter:
            return rf"{letter}^{{[{layer}]}}"
        return rf"\text{{{escape(name)}}}" + (f"^{{{superscript}}}" if superscript else "")

    def plain(self, value: int) -> str:
        """The value's name in a line of text: `Z1`, `W1`, `linear1.weight`."""
        if value in self._losses:
            return _plain(self._losses[value])
        name = self.graph.values[value].name
        if value in self._layers and not _short.fullmatch(name):
            letter, layer = self._layers[value]
            return f"{letter}{layer}"
        return name

    def gradient(self, value: int, backward: int | None = None) -> str:
        r"""The symbol of d loss / d value: `\frac{\partial J}{\partial Z^{[1]}}`; in one pass, or of its `grad`."""
        backward = self._pass_of(value) if backward is None else backward
        return rf"\frac{{\partial {self.loss(backward)}}}{{\partial {self.symbol(value)}}}"

    def plain_gradient(self, value: int, backward: int | None = None) -> str:
        """d loss / d value in a line of text: `dJ/dZ1`."""
        backward = self._pass_of(value) if backward is None else backward
        return f"d{'J' if self._adds_up(backward) else self.plain_loss(backward)}/d{self.plain(value)}"

    def loss(self, backward: int = 0) -> str:
        """The symbol of the loss that a backward pass began from: J, or J_1, J_2 where there are several.

        What `torch.autograd.grad` differentiates beside them goes by its own symbol, here and in gradients.
        """
        root = self._differentiated(backward)
        if root is not None:
            return self.symbol(root)
        backwards = self.graph.backwards
        loss = backwards[backward].loss if backward < len(backwards) else None
        return self._losses.get(loss, "J") if loss is not None else "J"

    def plain_loss(self, backward: int = 0) -> str:
        """The same in a line of text: `J`, `J1`."""
        root = self._differentiated(backward)
        return _plain(self.loss(backward)) if root is None else self.plain(root)

    def differentiated(self, value: int) -> str:
        """The symbol of what a value's `grad` is the derivative of: J, be it the sum of several losses."""
        backward = self._pass_of(value)
        return "J" if self._adds_up(backward) else self.loss(backward)

    def _adds_up(self, backward: int) -> bool:
        return not self.graph.backwards or self.graph.backwards[backward].accumulates

    def _differentiated(self, backward: int) -> int | None:
        """The value that a pass of `torch.autograd.grad` differentiated, where that is none of the losses."""
        backwards = self.graph.backwards
        each = backwards[backward] if backward < len(backwards) else None
        return None if each is None or each.accumulates or each.loss in self._losses else each.loss

    def _pass_of(self, value: int) -> int:
        """The pass that a value's `grad` is of; the first, where it is the sum of several."""
        passes = self._passes.get(value)
        if passes:
            return counted(self.graph.backwards, passes)[0]
        return self.graph.accumulating[0].index if self.graph.backwards else 0

    @cached_property
    def _passes(self) -> dict[int, set[int]]:
        """The passes that reached each value; not asked where all accumulate, and the losses alone are told apart."""
        found: dict[int, set[int]] = {}
        if all(each.accumulates for each in self.graph.backwards):
            return found
        for node in self.graph.nodes:
            leaves = [
                (edge.position, leaf) for edge in node.edges if (leaf := self.graph.nodes[edge.node].leaf) is not None
            ]
            for passage in node.passages:
                arrived = [*zip(node.outputs, passage.upstream, strict=False)]
                arrived += [(leaf, passage.downstream[at]) for at, leaf in leaves if at < len(passage.downstream)]
                for value, gradient in arrived:
                    if value is not None and gradient is not None:
                        found.setdefault(value, set()).add(passage.backward)
        for backward in self.graph.backwards:
            for value in backward.given:
                found.setdefault(value, set()).add(backward.index)
        return found

    @property
    def layers(self) -> dict[int, tuple[str, int]]:
        """(letter, layer) of each value in a plain chain of layers; empty where the network is none."""
        return self._layers

    @cached_property
    def _losses(self) -> dict[int, str]:
        losses = list(dict.fromkeys(b.loss for b in self.graph.accumulating if b.loss is not None))
        return {losses[0]: "J"} if len(losses) == 1 else {loss: f"J_{{{i}}}" for i, loss in enumerate(losses, 1)}

    @cached_property
    def _layers(self) -> dict[int, tuple[str, int]]:
        """Follow the data from the input: each call takes the last result, and leaves, and nothing else."""
        layers: dict[int, tuple[str, int]] = {}
        uses: Counter[int] = Counter()
        current: int | None = None
        layer = 0
        for group in _calls(self.graph):
            inner = {v for operation in group for v in operation.outputs if v is not None}
            taken = [v for operation in group for _, _, v in references(operation.arguments) if v not in inner]
            flowing = [v for v in taken if self.graph.values[v].node is not None]
            weights = [v for v in map(self.graph.values.__getitem__, taken) if v.kind == "parameter"]
            uses.update({v.index for v in weights})
            output = group[-1].outputs[0] if group[-1].outputs else None
            if set(flowing) != ({current} if current is not None else set()) or output is None:
                return {}
            if any(uses[v.index] > 1 for v in weights) or len(weights) > 2:
                return {}
            letters = _letters(weights, output, layer + 1)
            if layer and current is not None and current not in layers and (letters or output in self._losses):
                layers[current] = ("A", layer)  # what the next layer, or the loss, takes
            layers.update(letters)
            layer += bool(letters)
            current = output
        return layers if layer > 1 else {}


def _letters(weights: list[Value], output: int, layer: int) -> dict[int, tuple[str, int]]:
    matrices = [v for v in weights if len(v.shape) >= 2]
    letters = {v.index: ("W" if v in matrices else "b", layer) for v in weights}
    return {**letters, output: ("Z", layer)} if len(matrices) == 1 else {}


def _calls(graph: Graph) -> list[list[Operation]]:
    """Operations grouped by the user's calls, up to the first backward pass; those that no gradient flows through left
    out."""
    groups: dict[int, list[Operation]] = {}
    for operation in graph.operations:
        if operation.node is not None:
            groups.setdefault(-operation.index - 1 if operation.call is None else operation.call, []).append(operation)
    return list(groups.values())


def _plain(loss: str) -> str:
    return loss.replace("_{", "").replace("}", "")


def escape(text: str) -> str:
    """Plain text inside LaTeX's `\\text{...}`."""
    special = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    return "".join(special.get(c, "\\" + c if c in "_$%&#" else c) for c in text)
