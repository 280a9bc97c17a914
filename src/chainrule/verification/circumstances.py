"""Why a user's backward was wrong in a step, and is right when it runs again: what was different in that step.

It runs again on contiguous inputs in float64, with a contiguous upstream gradient for each output. Of what was
otherwise in the step, each circumstance is brought back alone: the one that gives the recorded gradient is to blame.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from chainrule.capture.traits import Traits
from chainrule.execution.experiment import Experiment, pick, put, real, widened, written_by
from chainrule.graph.comparison import EPS, compare, unravel
from chainrule.graph.graph import Edge, Graph, Node, Operation, Ref
from chainrule.graph.reexecution import WriteThroughView
from chainrule.graph.snapshot import type_name
from chainrule.graph.trees import leaves, map_leaves, tensors_in
from chainrule.verification.conditions import contiguous, laid_out
from chainrule.verification.differences import ArgumentCheck

Circumstance = Literal["region", "layout", "undefined upstream", "number type", "overwritten", "changed"]
Arguments = dict[str, Any]
Upstream = dict[int, Tensor]


def circumstance(
    graph: Graph, node: Node, experiment: Experiment, edges: list[Edge], finding: ArgumentCheck
) -> tuple[Circumstance, str]:
    """What made the gradient of one argument wrong, which is right when its function runs again."""
    name = f"the gradient of `{finding.label}`"
    if places := _hidden(graph, finding):
        return "region", f"{name} is wrong at {places}, where it is small beside the other elements"
    for kind, text, arguments, upstream in _differing(experiment, finding):
        try:
            again = _again(experiment, edges, arguments, upstream)[edges.index(finding.edge)]
        except Exception:  # a user's code may do anything
            continue
        if again is not None and compare(finding.got, real(again), eps=4 * experiment.eps).agrees:
            return kind, f"{name} is {text}"
    for operation in _written(graph, node):
        place = graph.calls[operation.call].place if operation.call is not None else None
        code = f"`{place.expression or operation.name}` ({place})" if place is not None else f"`{operation.name}`"
        return (
            "overwritten",
            f"run again, right after its forward, backward gives {name} that agrees: in this step {code} "
            "wrote to its input or output in between",
        )
    return (
        "changed",
        f"run again, right after its forward, backward gives {name} that agrees: in this step something that it reads "
        "was changed in between, or a hook changed what it gave",
    )


def _hidden(graph: Graph, finding: ArgumentCheck) -> str:
    """Elements whose error is seen only beside the outputs that move with them; "" where that is not so."""
    off, value = [*(finding.off or ())], finding.edge.value
    if not finding.moved_alone or value is None:
        return ""
    pairs = 2 if graph.values[value].dtype.is_complex else 1
    places = [str([*unravel(element // pairs, graph.values[value].shape)]) for element in off[:3]]
    return f"{', '.join(places)} and {len(off) - 3} more" if len(off) > 3 else " and ".join(places)


def _differing(
    experiment: Experiment, finding: ArgumentCheck
) -> Iterator[tuple[Circumstance, str, Arguments, Upstream]]:
    """(kind, words, arguments, upstream gradients): none, each circumstance of the step alone, then all of them."""
    recorded, sent = experiment.recorded, experiment.upstream
    plain, plainly = _contiguous(experiment.wide), {place: contiguous(widened(g)) for place, g in sent.items()}
    undefined = {
        place: torch.zeros_like(out, dtype=widened(out).dtype)
        for slot, out in experiment.outs.items()
        if (place := experiment.place[slot]) not in sent
        and out is not None
        and (out.is_floating_point() or out.is_complex())
    }
    if experiment.eps == EPS and finding.finite is not None:
        most = float(finding.got.abs().max())
        text = f"off by {finding.finite.largest:.2g}, beside numbers up to {most:.2g}, also when it runs again: as "
        text += "where a number is rounded to float32 on the way (torch.where and torch.tensor round Python's numbers)"
        yield "number type", text, plain, {**plainly, **undefined}
    scattered = [f"`{key}`" for key, each in recorded.items() if isinstance(each, Tensor) and not each.is_contiguous()]
    if scattered:
        are = "is" if len(scattered) == 1 else "are"
        text = f"wrong because {' and '.join(scattered)} {are} not contiguous: with a contiguous copy it agrees"
        yield "layout", text, _as_recorded(experiment.wide, recorded), {**plainly, **undefined}
    if any(not g.is_contiguous() for g in sent.values()):
        kind = "expanded" if any(0 in g.stride() for g in sent.values()) else "not contiguous"
        text = f"wrong because the upstream gradient is {kind}: with a contiguous copy it agrees"
        yield "layout", text, plain, {**{place: laid_out(widened(g), g) for place, g in sent.items()}, **undefined}
    if undefined:
        outputs = " and ".join(str(place) for place in undefined)
        text = f"wrong because output {outputs} got no upstream gradient (None): with zeros in its place it agrees"
        yield "undefined upstream", text, plain, plainly
    if experiment.eps > EPS:
        narrow = next(type_name(t.dtype) for t in tensors_in([*sent.values()]))
        yield "number type", f"wrong in {narrow}: in float64 it agrees", _contiguous(recorded), {**plainly, **undefined}
    together = "wrong with the layouts, number types and upstream gradients of this step together, in none alone"
    yield "layout", together, _as_recorded(recorded, recorded), {place: laid_out(g, g) for place, g in sent.items()}


def _contiguous(arguments: Arguments) -> Arguments:
    copied = map_leaves(lambda leaf: contiguous(leaf) if isinstance(leaf, Tensor) else leaf, arguments)
    return dict(copied)


def _as_recorded(arguments: Arguments, recorded: Arguments) -> Arguments:
    """Copies in the layouts of the recorded arguments."""
    layouts = iter(tensors_in(list(recorded.values())))
    copied = map_leaves(lambda leaf: laid_out(leaf, next(layouts)) if isinstance(leaf, Tensor) else leaf, arguments)
    return dict(copied)


def _again(experiment: Experiment, edges: list[Edge], arguments: Arguments, upstream: Upstream) -> list[Tensor | None]:
    """What autograd gives for the edges when the function runs on these arguments, laid out as they are."""
    wanted = []
    for edge in edges:
        leaf = pick(arguments, edge).detach().requires_grad_()
        put(arguments, edge, leaf)
        wanted.append(leaf)
    function: Any = experiment.function.function

    def forward_and_back() -> list[Tensor | None]:
        outs = list(tensors_in(function.apply(*arguments.values())))
        pairs = [(outs[place], g.to(outs[place].dtype)) for place, g in upstream.items() if outs[place].requires_grad]
        return list(torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True))

    with torch.enable_grad():
        return experiment.guarded(forward_and_back, (arguments, list(upstream.values())))


def _written(graph: Graph, node: Node) -> Iterator[Operation]:
    """The operations between the node's own and the loss that write to its inputs or outputs, or to a view of them."""
    assert node.operation is not None
    function = graph.operations[node.operation]
    own = {ref.value for ref in leaves(function.arguments, Ref)} | {v for v in function.outputs if v is not None}
    losses = [graph.values[each.loss].operation for each in graph.backwards if each.loss is not None]
    last = max((each for each in losses if each is not None), default=function.index)
    for operation in graph.operations[: last + 1]:
        used = {ref.value for ref in leaves(operation.arguments, Ref)}
        overload = getattr(operation.function, "function", None)
        if own & used and hasattr(overload, "_schema") and Traits.of(overload).views:
            own |= {value for value in operation.outputs if value is not None}
        if operation.index <= function.index or operation.function is None:
            continue
        names = {"base"} if isinstance(overload, WriteThroughView) else written_by(operation.function)
        written = [operation.arguments[name] for name in names if name in operation.arguments]
        if own & {ref.value for ref in leaves(written, Ref)}:
            yield operation
