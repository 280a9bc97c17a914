"""Names of values and nodes: the symbols that equations use, and the look-up of what a reader types.

The user's own short names win (`Z1`, `X`). In a plain chain of layers, parameters and values without a short name
have a textbook's names: W^{[l]}, b^{[l]}, Z^{[l]}, A^{[l]} for layer l. Every other value has its path. The loss is J.
"""

from __future__ import annotations

import difflib
import operator
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property

from chainrule.errors import MissingError, RequestError
from chainrule.graph.graph import Graph, Node, Operation, Value, counted, references

Index = tuple[int, ...]

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
        letter, layer = self.layers.get(value, ("", 0))
        name, _, version = self.graph.values[value].name.partition("@")
        short = None if letter and version else _short.fullmatch(name)
        superscript = f"({version})" if version else ""
        if short and short[2] and not version and self.layers:
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
            return self._losses[value].replace("_{", "").replace("}", "")
        name = self.graph.values[value].name
        if value in self.layers and not _short.fullmatch(name):
            letter, layer = self.layers[value]
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

        A value that `torch.autograd.grad` differentiates beside the losses keeps its own symbol.
        """
        root = self._root(backward)
        return "J" if root is None else self.symbol(root)

    def plain_loss(self, backward: int) -> str:
        """The same in a line of text: `J`, `J1`."""
        root = self._root(backward)
        return "J" if root is None else self.plain(root)

    def _root(self, backward: int) -> int | None:
        """The value that a pass began from."""
        return self.graph.backwards[backward].loss if backward < len(self.graph.backwards) else None

    def differentiated(self, value: int) -> str:
        """The symbol of what a value's `grad` is the derivative of; J also stands for a sum of several losses."""
        backward = self._pass_of(value)
        return "J" if self._adds_up(backward) else self.loss(backward)

    def _adds_up(self, backward: int) -> bool:
        return not self.graph.backwards or self.graph.backwards[backward].accumulates

    def _pass_of(self, value: int) -> int:
        """The pass that a value's `grad` is of; the first, where it is the sum of several."""
        passes = self._passes.get(value)
        if passes:
            return counted(self.graph.backwards, passes)[0]
        return self.graph.accumulating[0].index if self.graph.backwards else 0

    @cached_property
    def _passes(self) -> dict[int, set[int]]:
        """The passes that reached each value; empty where all passes accumulate, as nobody asks then."""
        found: dict[int, set[int]] = {}
        if all(each.accumulates for each in self.graph.backwards):
            return found
        for node in self.graph.nodes:
            leaves = [
                (edge.position, leaf) for edge in node.edges if (leaf := self.graph.nodes[edge.node].leaf) is not None
            ]
            for execution in node.executions:
                arrived = [*zip(node.outputs, execution.arrived, strict=False)]
                arrived += [(leaf, execution.sent[at]) for at, leaf in leaves if at < len(execution.sent)]
                for value, gradient in arrived:
                    if value is not None and gradient is not None:
                        found.setdefault(value, set()).add(execution.backward)
        for backward in self.graph.backwards:
            for value in backward.given:
                found.setdefault(value, set()).add(backward.index)
        return found

    @cached_property
    def _losses(self) -> dict[int, str]:
        losses = list(dict.fromkeys(b.loss for b in self.graph.accumulating if b.loss is not None))
        return {losses[0]: "J"} if len(losses) == 1 else {loss: f"J_{{{i}}}" for i, loss in enumerate(losses, 1)}

    @cached_property
    def layers(self) -> dict[int, tuple[str, int]]:
        """(letter, layer) of each value in a plain chain of layers; empty where the network is none.

        In a chain each call takes the result of the last one, and otherwise leaves alone.
        """
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
                layers[current] = ("A", layer)  # the input of the next layer, or of the loss
            layers.update(letters)
            layer += bool(letters)
            current = output
        return layers if layer > 1 else {}


def _letters(weights: list[Value], output: int, layer: int) -> dict[int, tuple[str, int]]:
    matrices = [v for v in weights if len(v.shape) >= 2]
    letters = {v.index: ("W" if v in matrices else "b", layer) for v in weights}
    return {**letters, output: ("Z", layer)} if len(matrices) == 1 else {}


def _calls(graph: Graph) -> list[list[Operation]]:
    """The operations that a gradient flows through, grouped by the user's calls."""
    groups: dict[int, list[Operation]] = {}
    for operation in graph.operations:
        if operation.node is not None:
            groups.setdefault(-operation.index - 1 if operation.call is None else operation.call, []).append(operation)
    return list(groups.values())


def escape(text: str) -> str:
    """Plain text inside LaTeX's `\\text{...}`."""
    special = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    return "".join(special.get(c, "\\" + c if c in "_$%&#" else c) for c in text)


# -- look-up ----------------------------------------------------------------------------------------------------------


def find_value(graph: Graph, name: str) -> int:
    """The value that a reader means by `name`: the user's name, a parameter or module path, or the symbol (`W1`).

    A bare name that several values share (`x@1`, `x@2`) means the last of them.

    Raises MissingError, with the near matches, where no value has that name, and RequestError for what is no name.
    """
    known = _names_of_values(graph)
    if not isinstance(name, str):
        raise RequestError(
            f"A recording is asked by a name, not by a {type(name).__name__}. {near_matches('', [*known])}"
        )
    if name in known:
        return known[name]
    notation = Notation(graph)
    symbols = {notation.plain(value.index): value.index for value in graph.values}
    if name in symbols:
        return symbols[name]
    if name in graph.parameters:
        raise MissingError(
            f"The parameter '{name}' has no value in this recording: the forward pass did not use it. Its data is in "
            f"`recording.parameters['{name}']`."
        )
    if any(module.path == name for module in graph.modules):
        raise MissingError(f"The module '{name}' ran, but what it returned is not one tensor. Ask for one by its name.")
    raise MissingError(f"There is no value named '{name}' in this recording. {near_matches(name, [*known, *symbols])}")


def check_index(graph: Graph, value: int, index: Index | int, called: str) -> Index:
    """`index` as a tuple of non-negative places in the value's shape; negative ones count from the end.

    Raises MissingError where it has too many or too few axes, is out of range, or is not made of whole numbers.
    """
    shape = graph.values[value].shape
    given = index if isinstance(index, tuple) else (index,)
    written = f"{called}[{', '.join(map(str, given))}]" if given else called
    places = []
    for place in given:
        if isinstance(place, bool) or not hasattr(place, "__index__"):
            raise MissingError(
                f"{written}: {place!r} is no index. Give whole numbers, one for each axis of the shape {shape}."
            )
        places.append(operator.index(place))
    if len(places) != len(shape):
        raise MissingError(
            f"{written} gives {_axes(len(places))}, but {called} has the shape {shape}. "
            f"Give {_axes(len(shape))}{', as in ' + str((0,) * len(shape)) if 0 not in shape else ''}."
        )
    for axis, (place, size) in enumerate(zip(places, shape, strict=True)):
        if not -size <= place < size:
            allowed = f"Axis {axis} goes from 0 to {size - 1}." if size else f"Axis {axis} is empty."
            raise MissingError(f"{written} is out of range: {called} has the shape {shape}. {allowed}")
    return tuple(place % size for place, size in zip(places, shape, strict=True))


def _names_of_values(graph: Graph) -> dict[str, int]:
    """Every name, and every bare name; later values take bare names from earlier ones."""
    exact = {name: value.index for value in reversed(graph.values) for name in value.names}
    bare = {name.partition("@")[0]: value.index for value in graph.values for name in value.names if "@" in name}
    paths = {name: each.value for name, each in graph.parameters.items() if each.value is not None}
    return {**bare, **paths, **exact}


def near_matches(name: str, known: list[str]) -> str:
    """The near matches of a name or pattern that was not found, or some of the names that there are."""
    by_lower = {each.lower(): each for each in known}
    near = [by_lower[each] for each in difflib.get_close_matches(name.strip("*.").lower(), by_lower, n=3, cutoff=0.5)]
    if near:
        return f"Near matches: {', '.join(map(repr, near))}."
    more = f", and {len(known) - 8} more" if len(known) > 8 else ""
    return f"There are {', '.join(map(repr, known[:8]))}{more}." if known else "There are no names at all."


def _axes(count: int) -> str:
    return {0: "no index", 1: "1 index"}.get(count, f"{count} indices")


def element(name: str, index: Index) -> str:
    """`Z1[0,2]`; a value without axes has its name alone."""
    return f"{name}[{','.join(map(str, index))}]" if index else name


# -- selection by patterns --------------------------------------------------------------------------------------------


def select_nodes(
    graph: Graph, only: str | Iterable[str] | None, sample: float | None, alike: int | None = None
) -> tuple[list[Node], str]:
    """The nodes that patterns name, or a random share of them, in the graph's order; and in words which these are.

    `alike` takes only the first so many of those that one line made of one operation and equal shapes.
    Raises MissingError where `only` names nothing, RequestError where `sample` is no share.
    """
    if sample is not None and not 0 < sample <= 1:
        raise RequestError(
            f"sample={sample!r} is no share of the nodes. Give a number above 0 and up to 1, such as 0.1."
        )
    nodes, words = list(graph.nodes), []
    if only is not None:
        patterns = [only] if isinstance(only, str) else list(only)
        nodes = _nodes_named(graph, patterns)
        words.append(f"those that {', '.join(patterns)} names")
    if sample is not None and sample < 1:
        count = min(max(1, round(sample * len(nodes))), len(nodes))
        drawn = random.Random(0).sample(range(len(nodes)), count)  # the same nodes each time
        nodes = [nodes[place] for place in sorted(drawn)]
        words.append(f"a random share of {sample:.3g}")
    if alike is not None:
        first = list(_first_of_each(graph, nodes, alike))
        if len(first) < len(nodes):
            words.append(f"the first {alike} of each line and operation")
        nodes = first
    return nodes, ", of these ".join(words)


def _first_of_each(graph: Graph, nodes: Iterable[Node], alike: int) -> Iterator[Node]:
    seen: Counter[object] = Counter()
    for node in nodes:
        reached = [*node.outputs, *(edge.value for edge in node.edges), node.leaf]
        shapes = tuple(None if each is None else graph.values[each].shape for each in reached)
        at = (node.place.file, node.place.line) if node.place is not None else None
        key = (node.name, node.function_class, at, bool(node.executions), shapes)
        seen[key] += 1
        if seen[key] <= alike or node.leaf is not None:
            yield node


def values_named(graph: Graph, pattern: str) -> list[int]:
    """The values that a pattern names: by their own names, or by the module that made them.

    Raises MissingError, with the near matches, where there are none.
    """
    match = _pattern(pattern)
    modules = {
        operation.index
        for operation in graph.operations
        if operation.call is not None and match.search(graph.calls[operation.call].module)
    }
    found = [v.index for v in graph.values if v.operation in modules or any(map(match.search, v.names))]
    if found:
        return found
    near = near_matches(pattern, [name for value in graph.values for name in value.names])
    raise MissingError(f"no value is named {pattern!r}. {near}")


def _nodes_named(graph: Graph, patterns: list[str]) -> list[Node]:
    matches = [_pattern(each) for each in patterns]
    names = {node.index: list(_names_of_node(graph, node)) for node in graph.nodes}
    nodes = [node for node in graph.nodes if any(match.search(n) for n in names[node.index] for match in matches)]
    if nodes:
        return nodes
    if not names:
        raise MissingError("no node was recorded.")
    near = near_matches(
        patterns[0] if patterns else "", list(dict.fromkeys(n for each in names.values() for n in each if n))
    )
    raise MissingError(f"no node is named {', '.join(map(repr, patterns))}. {near}")


def _names_of_node(graph: Graph, node: Node) -> Iterator[str]:
    """A node's own name, its operation's, its module's path, and those of its outputs or its leaf."""
    yield node.name
    for value in (*node.outputs, node.leaf):
        if value is not None:
            yield from graph.values[value].names
    if node.operation is not None:
        yield graph.operations[node.operation].name
    if node.call is not None:
        yield graph.calls[node.call].module


def _pattern(text: str) -> re.Pattern[str]:
    """The expression that a name must match.

    A plain word may stand anywhere in the name (`Addmm`). A path, or a pattern with `*` or `?`, is matched with whole
    parts between dots, from any part on, and includes everything inside: `h.1` and `h.1.*` are a block, not `h.10`.
    """
    if not any(mark in text for mark in ".*?"):
        return re.compile(re.escape(text))
    body = re.escape(text.removesuffix(".*")).replace(r"\*", ".*").replace(r"\?", ".")
    return re.compile(rf"(^|\.){body}(\..*)?$", re.DOTALL)
