"""Which nodes a verification looks at: those that patterns name, and of these a random share.

A large step has thousands of nodes, most of them copies of each other in other layers. A look at one block, or at every
tenth node, is worth having, as long as it says what it left out.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Iterable, Iterator

from chainrule.errors import MissingError, RequestError
from chainrule.graph.graph import Graph, Node


def select(graph: Graph, only: str | Iterable[str] | None, sample: float | None) -> tuple[list[Node], str]:
    """The nodes to look at, in the graph's order, and in words what they are ("" for all of them).

    Raises MissingError where `only` names nothing, RequestError where `sample` is no share.
    """
    if sample is not None and not 0 < sample <= 1:
        raise RequestError(
            f"sample={sample!r} is no share of the nodes. Give a number above 0 and up to 1, such as 0.1."
        )
    nodes, words = list(graph.nodes), []
    if only is not None:
        patterns = [only] if isinstance(only, str) else list(only)
        nodes = _named(graph, patterns)
        words.append(f"those that {', '.join(patterns)} names")
    if sample is not None and sample < 1:
        nodes = _share(nodes, sample)
        words.append(f"a random share of {sample:.3g}")
    return nodes, ", of these ".join(words)


def values_named(graph: Graph, pattern: str) -> list[int]:
    """The values that a pattern names: by their own names, or by the module that they were made in.

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
    known = {name for value in graph.values for name in value.names}
    raise MissingError(f"no value is named {pattern!r}. {_near(pattern, known)}")


def _near(pattern: str, names: Iterable[str]) -> str:
    known = sorted(names)
    near = difflib.get_close_matches(pattern.strip("*."), known) or known[:5]
    return f"Near it: {', '.join(near)}." if near else "No value has a name."


def _share(nodes: list[Node], share: float) -> list[Node]:
    """The same nodes each time, and at least one."""
    count = max(1, round(share * len(nodes)))
    drawn = random.Random(0).sample(range(len(nodes)), min(count, len(nodes)))
    return [nodes[place] for place in sorted(drawn)]


def _named(graph: Graph, patterns: list[str]) -> list[Node]:
    matches = [_pattern(each) for each in patterns]
    nodes = [
        node for node in graph.nodes if any(match.search(name) for name in _names(graph, node) for match in matches)
    ]
    if nodes:
        return nodes
    known = sorted({name for node in graph.nodes for name in _names(graph, node) if name})
    met = ", ".join(map(repr, patterns))
    near = difflib.get_close_matches(patterns[0].strip("*."), known) if patterns else []
    near = near or known[:5]
    raise MissingError(f"no node is named {met}. Near it: {', '.join(near)}." if near else "no node was recorded.")


def _pattern(text: str) -> re.Pattern[str]:
    """What a name must hold.

    A plain word may stand anywhere in it (`Addmm`). A path, or what has a `*` or `?`, is held against whole parts
    between dots, from any part on, and stands for all that is inside: `h.1` and `h.1.*` are a block, not `h.10`.
    """
    if not any(mark in text for mark in ".*?"):
        return re.compile(re.escape(text))
    body = re.escape(text.removesuffix(".*")).replace(r"\*", ".*").replace(r"\?", ".")
    return re.compile(rf"(^|\.){body}(\..*)?$", re.DOTALL)


def _names(graph: Graph, node: Node) -> Iterator[str]:
    """A node's own name, its operation's, its module's path, and those of its outputs or its leaf."""
    yield node.name
    for value in (*node.outputs, node.leaf):
        if value is not None:
            yield from graph.values[value].names
    if node.operation is not None:
        yield graph.operations[node.operation].name
    if node.call is not None:
        yield graph.calls[node.call].module
