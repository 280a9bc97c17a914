"""What is unhealthy in one training step, each finding from the recorded facts and with the numbers that show it.

A finding is advice, never a verdict on the mathematics: the step may be exactly what its author wants.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from chainrule.backprop import Derivation, Step
from chainrule.document import Code
from chainrule.finding import LISTED, TITLES, Case, Finding, dense, listed
from chainrule.graph import Graph, Operation, Parameter, Place, Ref, references
from chainrule.notation import Notation
from chainrule.numbers import number
from chainrule.origin import births
from chainrule.terms import aligned
from chainrule.why import element, no_gradient

__all__ = ["TITLES", "Finding", "findings"]

MIN_SAMPLES = 2  # with one sample, a unit that is off says nothing
MANY = 0.05  # share of a layer's units up to which units that are off are nothing unusual
SAME = 1e-3  # relative difference up to which two gradients count as the same


def findings(graph: Graph, derivation: Derivation, notation: Notation) -> tuple[Finding, ...]:
    """All findings of one step: errors first, then warnings, then notes; each group in the order of the step."""
    case = Case(graph, derivation, notation)
    found = itertools.chain.from_iterable(
        check(case)
        for check in (
            births,
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


# -- units and kinks ---------------------------------------------------------------------------------------------------


def _units_off(case: Case) -> Iterator[Finding]:
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
        told = f"unit {units[0]}" if one else f"{len(units)} of {before.shape[axis]} units ({listed(units)})"
        evidence = []
        for unit in units[:LISTED]:
            column = before.data.movedim(axis, 0).flatten(1)[unit]
            told_column = listed([number(each) for each in column.tolist()])
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


def _hinges(case: Case) -> Iterator[tuple[Step, str, int]]:
    """Nonlinearities with kinks: elementwise, of one tensor, which a gradient passes."""
    for step in case.forward():
        if step.rule is None or step.op is None or step.rule.kink is None or step.rule.structure != "elementwise":
            continue
        wanted = [(name, value) for name, _, value in step.arguments if name in step.rule.wrt]
        if len(wanted) == 1 and len(step.arguments) == 1 and len(step.outputs) == 1:
            name, value = wanted[0]
            if case.graph.values[value].requires_grad and isinstance(step.op.out, Tensor):
                yield step, name, value


def _at_kinks(case: Case) -> Iterator[Finding]:
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


def _sigmoid_before_bce(case: Case) -> Iterator[Finding]:
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


def _softmax_before_cross_entropy(case: Case) -> Iterator[Finding]:
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


def _broadcast_in_loss(case: Case) -> Iterator[Finding]:
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
        *(v for _, _, v in references(operation.arguments)),
    ]
    return any(graph.values[value].shape == shape for value in values)


# -- gradients of parameters -------------------------------------------------------------------------------------------


def _without_gradient(case: Case) -> Iterator[Finding]:
    missing = [each for each in case.graph.parameters.values() if not each.has_gradient]
    if missing and not case.graph.backwards:
        yield Finding(
            "no-gradient",
            "note",
            missing[0].name,
            None,
            ("No parameter has a gradient, because no backward pass ran.",),
            (f"{len(missing)} parameters: {listed([each.name for each in missing])}.",),
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
            (f"Its shape is {parameter.shape}; the optimizer {_moved(parameter)}.",),
            "This is right for a layer that is meant to stay as it is."
            if frozen
            else "If it is meant to learn, use it on the way to the loss, without detach(), item() or no_grad().",
        )


def _moved(parameter: Parameter) -> str:
    if parameter.after is None or parameter.before is None:
        return "did not touch it"
    same = torch.equal(parameter.before.detach(), parameter.after.detach())
    return "left it as it was" if same else "moved it all the same (by momentum or weight decay)"


def _accumulated(case: Case) -> Iterator[Finding]:
    """What was left in `.grad` is more than what the backward passes of this step sent."""
    sent = _sent(case)
    for parameter in case.graph.parameters.values():
        if parameter.grad is None or parameter.value is None or not case.graph.backwards:
            continue
        # Clearing between two passes is fine: then only the last of them are left.
        sums = list(itertools.accumulate(reversed(sent.get(parameter.value, []))))
        if not sums or any(_same(parameter.grad, each) for each in sums):
            continue
        left = dense(parameter.grad)
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


def _sent(case: Case) -> dict[int, list[Tensor]]:
    """For each leaf the gradient that each backward pass sent to it."""
    passes: dict[int, dict[int, Tensor]] = {}
    for step in case.derivation.nodes:
        for share, edge in zip(step.shares, case.graph.nodes[step.node].edges, strict=True):
            leaf = case.graph.nodes[edge.node].leaf
            sent = share.gradient if share.recorded is None else share.recorded
            if leaf is not None and sent is not None:
                sent, sums = dense(sent), passes.setdefault(leaf, {})
                sums[step.backward] = sums[step.backward] + sent if step.backward in sums else sent
    return {leaf: [sums[index] for index in sorted(sums)] for leaf, sums in passes.items()}


def _changed(case: Case) -> Iterator[Finding]:
    """The gradient that the optimizer saw is not the one that backward left: clipped, scaled, cleared."""
    found: dict[str, list[tuple[str, Tensor, Tensor | None]]] = {}
    places: dict[str, Place | None] = {}
    for update in case.graph.updates:
        for member in update.parameters:
            known = case.graph.parameters.get(member.name)
            if known is None or known.grad is None:
                continue
            left, seen = dense(known.grad), None if member.grad is None else dense(member.grad)
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
    return listed([name for name, _, _ in members])


def _norm(*tensors: Tensor) -> float:
    return math.sqrt(sum(float(dense(t).abs().double().square().sum()) for t in tensors))


def _same(a: Tensor, b: Tensor) -> bool:
    a, b = dense(a), dense(b)
    if a.shape != b.shape:
        return False
    return _norm(a - b) <= SAME * max(_norm(a), _norm(b)) or not (a.isfinite().all() and b.isfinite().all())


# -- words -----------------------------------------------------------------------------------------------------------


def _tensor(operation: Operation, argument: str) -> int | None:
    ref = operation.arguments.get(argument)
    return ref.value if isinstance(ref, Ref) else None


def _slice(name: str, axis: int, at: int, axes: int) -> str:
    return f"{name}[{','.join(str(at) if each == axis else ':' for each in range(axes))}]"
