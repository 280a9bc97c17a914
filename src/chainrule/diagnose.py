"""What is unhealthy in one training step, each finding from the recorded facts and with the numbers that show it.

A finding is advice, never a verdict on the mathematics: the step may be exactly what its author wants.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from chainrule.backprop import Derivation, NodeStep, Step, arguments_of
from chainrule.document import Code, Text
from chainrule.graph import Graph, Operation, Parameter, Place, Ref, Value
from chainrule.lookup import Index
from chainrule.notation import Notation
from chainrule.numbers import number
from chainrule.terms import aligned
from chainrule.why import element, no_gradient

TITLES = {
    "unit-off": "A unit is off for every sample",
    "at-kink": "A value lies exactly where a function has no derivative",
    "sigmoid-before-bce": "A sigmoid before binary cross-entropy",
    "softmax-before-cross-entropy": "A softmax before cross-entropy",
    "no-gradient": "A parameter got no gradient",
    "accumulated-gradient": "A gradient was there before the backward pass",
    "gradient-changed": "A gradient was changed between backward and the optimizer's step",
    "non-finite-forward": "A number that is not finite is born in the forward pass",
    "non-finite-backward": "A number that is not finite is born in the backward pass",
    "broadcast-in-loss": "Predictions and targets are broadcast against each other",
}
"""What each id means."""

MIN_SAMPLES = 2  # with one sample, a unit that is off says nothing
MANY = 0.05  # share of a layer's units up to which units that are off are nothing unusual
LISTED = 5  # places that are named one by one
SAME = 1e-3  # relative difference up to which two gradients count as the same

Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that a reader should know: where, what, the numbers that show it, and what to do."""

    id: str
    severity: Severity
    where: str
    place: Place | None
    text: Text
    evidence: tuple[str, ...]
    advice: str

    @property
    def title(self) -> str:
        """What this kind of finding is about."""
        return TITLES[self.id]

    def __str__(self) -> str:
        text = "".join(span if isinstance(span, str) else getattr(span, "source", "") for span in self.text)
        place = f" ({self.place})" if self.place else ""
        return "\n".join([f"{self.severity}: {text}{place}", *(f"  {each}" for each in (*self.evidence, self.advice))])


def findings(graph: Graph, derivation: Derivation, notation: Notation) -> tuple[Finding, ...]:
    """All findings of one step: errors first, then warnings, then notes; each group in the order of the step."""
    case = _Case(graph, derivation, notation)
    found = itertools.chain.from_iterable(
        check(case)
        for check in (
            _non_finite_forward,
            _non_finite_backward,
            _broadcast_in_loss,
            _units_off,
            _at_kinks,
            _sigmoid_before_bce,
            _softmax_before_cross_entropy,
            _without_gradient,
            _accumulated,
            _changed,
        )
    )
    rank = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(found, key=lambda finding: rank[finding.severity]))


class _Case:
    """The step under examination, with the questions that several checks ask."""

    def __init__(self, graph: Graph, derivation: Derivation, notation: Notation) -> None:
        self.graph = graph
        self.derivation = derivation
        self.notation = notation

    def name(self, value: int) -> str:
        return self.notation.plain(value)

    def forward(self) -> Iterator[Step]:
        return (step for step in self.derivation.steps if step.kind == "forward")

    def producer(self, value: int) -> Operation | None:
        operation = self.graph.values[value].operation
        return None if operation is None else self.graph.operations[operation]

    def layer(self, value: int) -> str:
        """The layer that made a value, for a line of text: ` of layer 1 (linear1)`."""
        known = self.notation.layers.get(value)
        operation = self.producer(value)
        module = self.graph.calls[operation.call].module if operation and operation.call is not None else ""
        path = f" ({module})" if module else ""
        return f" of layer {known[1]}{path}" if known else f" of {module}" if module else f" of {self.name(value)}"


# -- units and kinks ---------------------------------------------------------------------------------------------------


def _units_off(case: _Case) -> Iterator[Finding]:
    """Units whose nonlinearity passes nothing back, whatever the sample: its slope is 0 in their whole column."""
    for step, argument, value in _hinges(case):
        before = case.graph.values[value]
        slope = step.rule.gradient(step.op, (torch.ones_like(step.op.out),), argument)  # type: ignore[union-attr, arg-type]
        if before.data is None or len(before.shape) < 2 or slope.shape != before.shape:
            continue
        producer = case.producer(value)
        axis = 1 if producer is not None and "conv" in producer.name else len(before.shape) - 1
        places = math.prod(before.shape) // max(before.shape[axis], 1)
        if before.shape[0] < MIN_SAMPLES or not slope.numel():
            continue
        kind = "samples" if len(before.shape) == 2 else "places"
        flat = (slope == 0).movedim(axis, 0).flatten(1).all(1)
        units = flat.nonzero().flatten().tolist()
        if not units:
            continue
        one = len(units) == 1
        told = f"unit {units[0]}" if one else f"{len(units)} of {before.shape[axis]} units ({_list(units)})"
        evidence = []
        for unit in units[:LISTED]:
            column = before.data.movedim(axis, 0).flatten(1)[unit]
            told_column = _list([number(each) for each in column.tolist()])
            at = _slice(case.name(value), axis, unit, len(before.shape))
            evidence.append(
                f"{at} is {told_column}: the slope of {case.name(step.outputs[0])} is 0 in all {places} {kind}."
            )
        text = (
            f"{told[0].upper()}{told[1:]}{case.layer(value)} {'is' if one else 'are'} off for every sample: "
            f"{'its' if one else 'their'} weights get no gradient."
        )
        yield Finding(
            "unit-off",
            "warning" if len(units) > MANY * before.shape[axis] else "note",
            case.name(step.outputs[0]),
            case.graph.values[step.outputs[0]].place,
            (text,),
            tuple(evidence),
            "If it stays off it will never learn again. A smaller learning rate, another initialisation of weight and "
            "bias, or a leaky ReLU keeps it alive.",
        )


def _hinges(case: _Case) -> Iterator[tuple[Step, str, int]]:
    """Nonlinearities with kinks: elementwise, of one tensor, which a gradient passes."""
    for step in case.forward():
        if step.rule is None or step.op is None or step.rule.kink is None or step.rule.structure != "elementwise":
            continue
        wanted = [(name, value) for name, _, value in step.arguments if name in step.rule.wrt]
        if len(wanted) == 1 and len(step.arguments) == 1 and len(step.outputs) == 1:
            name, value = wanted[0]
            if case.graph.values[value].requires_grad and isinstance(step.op.out, Tensor):
                yield step, name, value


def _at_kinks(case: _Case) -> Iterator[Finding]:
    """Elements exactly where a function has no derivative, and what PyTorch takes there."""
    for step in case.forward():
        if step.rule is None or step.op is None or step.rule.kink is None:
            continue
        kink = step.rule.kink
        value = next((value for name, item, value in step.arguments if name == kink.argument and item is None), None)
        if value is None or not case.graph.values[value].requires_grad or case.graph.values[value].data is None:
            continue
        places = [tuple(place) for place in kink.where(step.op, 0.0).nonzero().tolist()]
        if not places:
            continue
        numbers = case.graph.values[value].data
        told = []
        for place in places[:LISTED]:
            own = aligned(place, case.graph.values[value].shape)
            if own is not None and numbers is not None:
                told.append(f"{element(case.name(value), own)} = {number(numbers[own].item())}")
        count = "1 element" if len(places) == 1 else f"{len(places)} elements"
        yield Finding(
            "at-kink",
            "note",
            case.name(value),
            case.graph.values[value].place,
            (
                f"{count} of {case.name(value)} {'lies' if len(places) == 1 else 'lie'} exactly at a kink: ",
                kink.choice,
                ".",
            ),
            tuple(told) + ((f"and {len(places) - LISTED} more",) if len(places) > LISTED else ()),
            "There is no derivative at such a point; any slope between those of the two sides is a valid choice, and "
            "the gradient depends on the choice.",
        )


# -- losses ------------------------------------------------------------------------------------------------------------


def _sigmoid_before_bce(case: _Case) -> Iterator[Finding]:
    for operation in case.graph.operations:
        probability = _tensor(operation, "self")
        if not operation.name.startswith("aten.binary_cross_entropy.") or probability is None:
            continue
        sigmoid = case.producer(probability)
        if sigmoid is None or not sigmoid.name.startswith("aten.sigmoid."):
            continue
        a, logits = case.graph.values[probability], _tensor(sigmoid, "self")
        evidence = []
        if a.data is not None and a.data.numel():
            steepest = 1 / (a.data * (1 - a.data)).min().item() if (a.data * (1 - a.data)).min() > 0 else math.inf
            evidence.append(
                f"The loss divides by a(1 - a), here a factor of up to {number(steepest)}; the sigmoid multiplies by "
                "the same number again."
            )
            saturated = int(((a.data == 0) | (a.data == 1)).sum())
            if saturated:
                evidence.append(f"{saturated} of {a.data.numel()} probabilities are rounded to exactly 0 or 1.")
        limit = -math.log(torch.finfo(a.dtype).eps / 2)
        evidence.append(
            f"In {str(a.dtype).removeprefix('torch.')} a probability rounds to 1 from a logit of {limit:.1f} on."
        )
        name = case.name(logits) if logits is not None else "the logits"
        yield Finding(
            "sigmoid-before-bce",
            "warning",
            case.name(probability),
            a.place,
            (f"{case.name(probability)} is a sigmoid, and goes into binary cross-entropy.",),
            tuple(evidence),
            f"Give {name} to binary_cross_entropy_with_logits (nn.BCEWithLogitsLoss) and leave the sigmoid out: the "
            "two factors cancel into a - y, which neither overflows nor loses digits when the network is sure.",
        )


def _softmax_before_cross_entropy(case: _Case) -> Iterator[Finding]:
    for operation in case.graph.operations:
        probability = _tensor(operation, "self")
        if not operation.name.startswith("aten._log_softmax.") or probability is None:
            continue
        softmax = case.producer(probability)
        if softmax is None or not softmax.name.startswith("aten._softmax."):
            continue
        logits, a = _tensor(softmax, "self"), case.graph.values[probability]
        axis, classes = softmax.arguments.get("dim", -1), 1
        if a.shape:
            classes = a.shape[axis]
        floor = math.log(1 + (classes - 1) / math.e)
        name = case.name(logits) if logits is not None else "the logits"
        yield Finding(
            "softmax-before-cross-entropy",
            "warning",
            case.name(probability),
            a.place,
            (f"{case.name(probability)} is a softmax, and cross-entropy takes the softmax once more.",),
            (
                f"With {classes} classes the loss of a sample can't fall below {floor:.4f}, however sure the network: "
                "probabilities lie between 0 and 1, and are taken for logits.",
            ),
            f"Give {name} to cross_entropy and leave the softmax out; it is inside.",
        )


def _broadcast_in_loss(case: _Case) -> Iterator[Finding]:
    """(N, 1) against (N,): each prediction meets every target."""
    for call in case.graph.calls:
        refs = [argument.value for argument in call.arguments[:2] if isinstance(argument, Ref)]
        refs += [v.value for k, v in call.keywords.items() if k in ("target", "other") and isinstance(v, Ref)]
        if len(refs) != 2:
            continue
        first, second = (case.graph.values[ref] for ref in refs)
        n = max(math.prod(first.shape), 1)
        if {first.shape, second.shape} != {(n, 1), (n,)} or n < 2:
            continue
        if "input" not in (first.kind, second.kind) or not (first.requires_grad or second.requires_grad):
            continue
        if not any(_wide(case.graph.operations[index], case.graph, (n, n)) for index in call.operations):
            continue
        names = f"{case.name(first.index)} {first.shape} and {case.name(second.index)} {second.shape}"
        yield Finding(
            "broadcast-in-loss",
            "warning",
            case.name(call.outputs[0]) if call.outputs else call.name,
            call.place,
            (f"{names} are broadcast to ({n}, {n}) in ", Code(call.name), "."),
            (f"Each of the {n} predictions is compared with all {n} targets: {n * n} differences instead of {n}.",),
            "Give both the same shape: squeeze(1) the predictions, or unsqueeze(1) the targets.",
        )


def _wide(operation: Operation, graph: Graph, shape: tuple[int, ...]) -> bool:
    values = [
        *(out for out in operation.outputs if out is not None),
        *(v for _, _, v in arguments_of(operation.arguments)),
    ]
    return any(graph.values[value].shape == shape for value in values)


# -- gradients of parameters -------------------------------------------------------------------------------------------


def _without_gradient(case: _Case) -> Iterator[Finding]:
    missing = [each for each in case.graph.parameters.values() if each.grad is None]
    if missing and not case.graph.backwards:
        yield Finding(
            "no-gradient",
            "note",
            missing[0].name,
            None,
            ("No parameter has a gradient, because no backward pass ran.",),
            (f"{len(missing)} parameters: {_list([each.name for each in missing])}.",),
            "Call backward() on the loss inside the recorded block.",
        )
        return
    for parameter in missing:
        value = None if parameter.value is None else case.graph.values[parameter.value]
        frozen = value is not None and not value.requires_grad
        yield Finding(
            "no-gradient",
            "note" if frozen else "warning",
            parameter.name,
            value.place if value is not None else None,
            (no_gradient(case.graph, parameter.value, parameter.name),),
            (f"Its shape is {tuple(parameter.before.shape)}; the optimizer {_moved(parameter)}.",),
            "This is right for a layer that is meant to stay as it is."
            if frozen
            else "If it is meant to learn, use it on the way to the loss, without detach(), item() or no_grad().",
        )


def _moved(parameter: Parameter) -> str:
    if parameter.after is None:
        return "did not touch it"
    same = torch.equal(parameter.before.detach(), parameter.after.detach())
    return "left it as it was" if same else "moved it all the same (by momentum or weight decay)"


def _accumulated(case: _Case) -> Iterator[Finding]:
    """What was left in `.grad` is more than what the backward passes of this step sent."""
    for parameter in case.graph.parameters.values():
        if parameter.grad is None or parameter.value is None or not case.graph.backwards:
            continue
        # Clearing between two passes is fine: then only the last of them are left.
        passes = _sent(case, parameter.value)
        sums = list(itertools.accumulate(reversed(passes)))
        if not sums or any(_same(parameter.grad, each) for each in sums):
            continue
        left = _dense(parameter.grad)
        before = left - sums[-1]
        yield Finding(
            "accumulated-gradient",
            "warning",
            parameter.name,
            case.graph.backwards[0].place,
            (f"{parameter.name} had a gradient already when backward began, and the new one was added to it.",),
            (
                f"Its norm was {number(_norm(before))}; this step sent {number(_norm(sums[-1]))}, which left "
                f"{number(_norm(left))} in `.grad`.",
            ),
            "Call optimizer.zero_grad() before backward(), unless gradients are accumulated on purpose.",
        )


def _sent(case: _Case, value: int) -> list[Tensor]:
    """The gradient that each backward pass sent to a leaf."""
    passes: dict[int, Tensor] = {}
    for step in case.derivation.nodes:
        for share, edge in zip(step.shares, case.graph.nodes[step.node].edges, strict=True):
            sent = share.gradient if share.recorded is None else share.recorded
            if case.graph.nodes[edge.node].leaf == value and sent is not None:
                sent = _dense(sent)
                passes[step.backward] = passes[step.backward] + sent if step.backward in passes else sent
    return [passes[index] for index in sorted(passes)]


def _changed(case: _Case) -> Iterator[Finding]:
    """The gradient that the optimizer saw is not the one that backward left: clipped, scaled, cleared."""
    found: dict[str, list[tuple[str, Tensor, Tensor | None]]] = {}
    places: dict[str, Place | None] = {}
    for update in case.graph.updates:
        for member in update.parameters:
            known = case.graph.parameters.get(member.name)
            if known is None or known.grad is None:
                continue
            left, seen = _dense(known.grad), None if member.grad is None else _dense(member.grad)
            if seen is not None and torch.equal(left, seen):
                continue
            event = next(
                (e for e in case.graph.events if e.text == member.name and e.position <= update.position), None
            )
            if event is None and len(case.graph.backwards) > 1:
                continue  # a later backward pass may have written what `.grad` held at the end
            kind = event.kind if event is not None else "your code"
            found.setdefault(kind, []).append((member.name, left, seen))
            places.setdefault(kind, event.place if event is not None else None)
    for kind, members in found.items():
        before, after = _norm(*(left for _, left, _ in members)), _norm(*(g for _, _, g in members if g is not None))
        cleared = all(g is None or not g.any() for _, _, g in members) and before > 0
        told = "cleared" if cleared else "changed"
        yield Finding(
            "gradient-changed",
            "warning" if cleared else "note",
            members[0][0] if len(members) == 1 else f"{len(members)} parameters",
            places[kind],
            ("Between backward and the optimizer's step, ", Code(kind), f" {told} the gradient of {_names(members)}."),
            (f"Their norm together was {number(before)}, and is {number(after)}.", *_factor(members)),
            "The optimizer had no gradient to work with: clear gradients before backward(), not after it."
            if cleared
            else "The update follows from the changed gradient; the derivation tells the one that backward computed.",
        )


def _factor(members: list[tuple[str, Tensor, Tensor | None]]) -> tuple[str, ...]:
    pairs = [(left.flatten(), g.flatten()) for _, left, g in members if g is not None and left.numel() == g.numel()]
    if not pairs:
        return ()
    left, g = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
    square = (left * left).sum().item()
    if not square or not math.isfinite(square):
        return ()
    factor = (left * g).sum().item() / square
    if _same(g, left * factor):
        return (f"Every element was multiplied by {number(factor)}.",)
    changed = int((left != g).sum())
    return (
        f"{changed} of {left.numel()} elements changed: the largest was {number(left.abs().max().item())}, "
        f"and is {number(g.abs().max().item())}.",
    )


def _names(members: list[tuple[str, Tensor, Tensor | None]]) -> str:
    return _list([name for name, _, _ in members])


def _norm(*tensors: Tensor) -> float:
    return math.sqrt(sum(float(_dense(t).abs().double().square().sum()) for t in tensors))


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.layout != torch.strided else tensor


def _same(a: Tensor, b: Tensor) -> bool:
    a, b = _dense(a), _dense(b)
    if a.shape != b.shape:
        return False
    return _norm(a - b) <= SAME * max(_norm(a), _norm(b)) or not (a.isfinite().all() and b.isfinite().all())


# -- numbers that are not finite ---------------------------------------------------------------------------------------


def _non_finite_forward(case: _Case) -> Iterator[Finding]:
    """The first operation that makes NaN or infinity of finite numbers, or the leaf that brought it in."""
    harm = _harmful(case)
    for operation in case.graph.operations:
        operands = [case.graph.values[value] for _, _, value in arguments_of(operation.arguments)]
        for leaf in operands:
            if leaf.operation is None and leaf.data is not None and _float(leaf.data) and leaf.data.isnan().any():
                yield _born_in_leaf(case, leaf)
                return
        if _on_purpose(operation) or not all(_finite(each.data) for each in operands):
            continue
        for out in operation.outputs:
            made = case.graph.values[out] if out is not None else None
            if made is None or made.data is None or _finite(made.data):
                continue
            nan = bool(made.data.isnan().any())
            yield Finding(
                "non-finite-forward",
                "error" if nan or harm else "warning",
                case.name(made.index),
                made.place or _place(case, operation),
                (f"{_called(case, operation)} makes {'NaN' if nan else 'infinity'} of finite numbers, first of all.",),
                _birth(case, operation, made),
                "Keep its operand inside the range where the function is finite (clamp it, add an epsilon, or take "
                "the loss that works on logits).",
            )
            return


def _born_in_leaf(case: _Case, leaf: Value) -> Finding:
    assert leaf.data is not None
    places = [tuple(at) for at in leaf.data.isnan().nonzero().tolist()]
    told = _list([element(case.name(leaf.index), at) for at in places])
    return Finding(
        "non-finite-forward",
        "error",
        case.name(leaf.index),
        leaf.place,
        (f"{case.name(leaf.index)} held NaN before the step began.",),
        (f"{len(places)} of {leaf.data.numel()} elements: {told}.",),
        "Look at the data that was loaded, or, for a parameter, at the step before this one.",
    )


def _non_finite_backward(case: _Case) -> Iterator[Finding]:
    """The first node that makes a gradient NaN or infinite while what arrived at it was finite."""
    for step in case.derivation.nodes:
        if not all(_finite(g) for g in step.upstream) or step.operation is None:
            continue
        for share in step.shares:
            sent = share.gradient if share.recorded is None else share.recorded
            if share.value is None or sent is None or _finite(sent):
                continue
            value, node = case.graph.values[share.value], case.graph.nodes[step.node]
            nan = bool(sent.isnan().any())
            yield Finding(
                "non-finite-backward",
                "error",
                f"dJ/d{case.name(value.index)}",
                node.place,
                (
                    f"Going back through {_called(case, case.graph.operations[step.operation])} makes "
                    f"{'NaN' if nan else 'infinity'} of finite gradients, the first.",
                ),
                _birth_of_gradient(case, step, value, sent),
                "The derivative is not finite at this point: keep the operand away from it (a small epsilon inside "
                "a square root or a logarithm, or a clamp before it rather than after it).",
            )
            return


def _birth(case: _Case, operation: Operation, made: Value) -> tuple[str, ...]:
    assert made.data is not None
    places = [tuple(at) for at in (~made.data.isfinite()).nonzero().tolist()]
    at = places[0]
    told = [f"{element(case.name(made.index), at)} = {number(made.data[at].item())}"]
    told += _operands(case, operation, at)
    return (
        f"{' from '.join([told[0], ', '.join(told[1:])]) if told[1:] else told[0]}.",
        *_more(places, made.data.numel()),
    )


def _birth_of_gradient(case: _Case, step: NodeStep, value: Value, sent: Tensor) -> tuple[str, ...]:
    assert step.operation is not None
    operation = case.graph.operations[step.operation]
    places = [tuple(at) for at in (~sent.isfinite()).nonzero().tolist()]
    at = places[0]
    told = [f"dJ/d{element(case.name(value.index), at)} = {number(sent[at].item())}"]
    if value.data is not None and value.data.shape == sent.shape:
        told.append(f"{element(case.name(value.index), at)} = {number(value.data[at].item())}")
    for g, out in zip(step.upstream, operation.outputs, strict=False):
        if g is not None and out is not None and g.shape == sent.shape:
            told.append(f"dJ/d{element(case.name(out), at)} = {number(g[at].item())}")
    return (f"{told[0]}{', where ' + ' and '.join(told[1:]) if told[1:] else ''}.", *_more(places, sent.numel()))


def _more(places: list[Index], count: int) -> tuple[str, ...]:
    return (f"{len(places)} of {count} elements are not finite.",) if len(places) > 1 else ()


def _operands(case: _Case, operation: Operation, at: Index) -> Iterator[str]:
    """What stood at the same place in each operand, or, where the places don't match, its range."""
    for _, _, index in arguments_of(operation.arguments):
        value = case.graph.values[index]
        own = aligned(at, value.shape)
        if value.data is None or not value.data.numel():
            continue
        if own is not None:
            yield f"{element(case.name(index), own)} = {number(value.data[own].item())}"
        elif _float(value.data) and not value.data.is_complex():
            low, high = value.data.min().item(), value.data.max().item()
            yield f"{case.name(index)} between {number(low)} and {number(high)}"


def _on_purpose(operation: Operation) -> bool:
    """Masks are filled with infinity by hand, and fresh memory holds anything."""
    given = [a for a in _scalars(list(operation.arguments.values())) if isinstance(a, float) and not math.isfinite(a)]
    return bool(given) or "empty" in operation.name


def _scalars(tree: Any) -> Iterator[Any]:
    for item in tree:
        if isinstance(item, (list, tuple)):
            yield from _scalars(item)
        else:
            yield item


def _harmful(case: _Case) -> bool:
    """Whether what is not finite reaches the loss or a parameter's gradient."""
    losses = [case.graph.values[b.loss].data for b in case.graph.backwards if b.loss is not None]
    return not all(_finite(each) for each in [*losses, *(p.grad for p in case.graph.parameters.values())])


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or not _float(tensor) or bool(_dense(tensor).isfinite().all())


def _float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


# -- words -------------------------------------------------------------------------------------------------------------


def _tensor(operation: Operation, argument: str) -> int | None:
    ref = operation.arguments.get(argument)
    return ref.value if isinstance(ref, Ref) else None


def _called(case: _Case, operation: Operation) -> str:
    return case.graph.calls[operation.call].name if operation.call is not None else operation.name


def _place(case: _Case, operation: Operation) -> Place | None:
    return case.graph.calls[operation.call].place if operation.call is not None else None


def _list(items: list[Any]) -> str:
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(map(str, items[:LISTED])) + more


def _slice(name: str, axis: int, at: int, axes: int) -> str:
    return f"{name}[{','.join(str(at) if each == axis else ':' for each in range(axes))}]"
