"""Gradients that are exactly 0 for a whole parameter, and the operation that stops them on their way from the loss.

The search goes from the parameter towards the loss, through every value whose gradient is 0. An operation between such
a value and one whose gradient is not 0 stops it, and what it was given tells why. Statistics are enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from chainrule import rules
from chainrule.derivation.backprop import applied
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, Severity, listed, plural
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, argument, is_zero, operands
from chainrule.document import Code
from chainrule.graph.graph import Operation, Place, Ref, Value
from chainrule.graph.snapshot import Parameter
from chainrule.graph.statistics import Statistics
from chainrule.graph.trees import gathered
from chainrule.numbers import number
from chainrule.rules import Applied, Rule
from chainrule.rules.facts import base_name, facts_of

ZERO_GRADIENT = Check(
    "zero-gradient", "A parameter's gradient is exactly 0", "error",
    what="Every element of a parameter's gradient is 0, and the finding names the operation at which a gradient "
    "arrives and from which 0 goes on: a function of steps (sign, round, floor), a function that is flat at every "
    "element it was given, a softmax over one element, the difference of a value and itself, a product with something "
    "that is 0, grid_sample at places outside of its input, or an index that takes other parts of what was joined, as "
    "of the states of a recurrent network's layers (a warning once it held at the first 12 steps). Or a hook of its "
    "own makes it 0, or a derivative of a derivative is 0, as in a network of ReLUs. A function of steps and such a "
    "difference are an error in one step; "
    "the others are notes until they last, as a weight that begins at 0 stops it only at first. Nothing is said where "
    "the loss itself is 0, or where data, a gate or a number in the code that is 0 stops the gradient of some "
    "parameters and others still learn.",
    why="It does not learn, and neither does anything before that operation.",
    advice="Look at the operation that the gradient does not pass, and at what it was given.",
    source="Bengio, Léonard and Courville, 2013, for functions of steps; Lu et al., 2019, for units that are off",
    lasts=5)  # fmt: skip
STEPS = (
    "Use a smooth function in its place, or a straight-through estimator, which has the gradient of the identity: "
    "x + (round(x) - x).detach()."
)
ONE_CLASS = "Take the softmax over the axis of the classes or keys; over a single element use a sigmoid."
FLAT = (
    "Bring what it is given to where it has a slope: a smaller learning rate or initialisation, or a norm before it; "
    "or use a function that has a slope everywhere."
)
ITSELF = "Detach the one that is meant as a constant: (x - x.detach()), as of the old log-probabilities of a policy."
IN_UNITS = "Give the places in units of the input: -1 is its first edge and 1 its last, 2 * pixel / (size - 1) - 1."
PRODUCT = "Find out why that factor is 0: units that are off, an initialisation with 0, or a mask."
OTHER_PART = (
    "Look at the index: state[-1] of a recurrent network is its last layer, state[0] its first. What is not "
    "meant to be used need not be computed."
)
IN_CODE = "Look at that number in your code: a weight of 0 (or 1 // 2) switches this part of the loss off."


@dataclass(frozen=True)
class Stop:
    """An operation that no gradient passes, and why: `by_nature`, whatever it is given; `grave` if it lasts."""

    name: str
    place: Place | None
    why: str
    advice: str = ""
    by_nature: bool = False
    grave: bool = False
    title: str = ""


@ZERO_GRADIENT.in_step
def _stopped(context: StepContext) -> Iterator[Finding]:
    learnt = bool(context.losses) and all(is_zero(context.statistics(loss)) for loss in context.losses)
    found: dict[tuple[Stop, ...], list[Parameter]] = {}
    for parameter in _parameters(context):
        stops = _stops(context, parameter)
        by_nature = all(stop.by_nature for stop in stops)
        grave = all(stop.grave for stop in stops) or _nothing_learns(context)
        if stops and (by_nature or (grave and not learnt)):
            found.setdefault(stops, []).append(parameter)
    for stops, parameters in found.items():
        first, names = stops[0], [each.name for each in parameters]
        gets = plural(len(names), "gets", "get")
        elements = sum(known.elements for each in parameters if (known := context.gradient(each)) is not None)
        yield ZERO_GRADIENT.found(
            names[0], (f"{listed(names)} {gets} a gradient of exactly 0: ", Code(first.name), " stops it."),
            (*dict.fromkeys(stop.why for stop in stops), f"{_elements(elements)} 0."),
            place=first.place, severity="error" if all(stop.by_nature for stop in stops) else "note",
            advice=first.advice, title=first.title,
        )  # fmt: skip


def _elements(count: int) -> str:
    return plural(count, "The only element of the gradient is", f"All {count} elements of the gradient are")


@ZERO_GRADIENT.in_step
def _second_derivative(context: StepContext) -> Iterator[Finding]:
    """A derivative of a derivative, by torch.autograd.grad, that is 0 for every element that it was asked for."""
    first = next((each.index for each in context.graph.backwards if each.differentiated), None)
    for backward in context.graph.backwards:
        known = [context.cache.of(each) for each in backward.given.values()]
        if first is None or backward.index <= first or not known or not all(map(is_zero, known)):
            continue
        bent = [each for each in context.operations_that(lambda facts: facts.rectifies) if each.call is not None]
        modules = list(dict.fromkeys(context.graph.calls[each.call].module for each in bent))  # type: ignore[index]
        names = listed([context.name(each) for each in backward.given])
        yield ZERO_GRADIENT.found(
            modules[0] if modules else names,
            f"The second derivative by {names} is exactly 0, so what is computed from it teaches nothing.",
            f"It passes {listed(modules or [context.called(each) for each in bent])}, straight on both sides of a kink."
            if bent else "", place=backward.place, severity="note", title=SECOND, advice=SMOOTH,
        )  # fmt: skip


@ZERO_GRADIENT.in_step
def _zeroed_by_a_hook(context: StepContext) -> Iterator[Finding]:
    for parameter in context.graph.parameters.values():
        hooked = parameter.value in context.graph.hooked and context.may_learn(parameter)
        if hooked and is_zero(context.gradient(parameter)) and not _nothing_learns(context):
            yield ZERO_GRADIENT.found(
                parameter.name, f"A hook makes the gradient of {parameter.name} 0, in every element.",
                f"{_elements(math.prod(parameter.shape))} 0 after the hook.", place=context.place_of(parameter),
                severity="note", title=HOOK, advice=OF_HOOK,
            )  # fmt: skip


ALWAYS = 12  # examined steps from the first one: one of two branches is drawn as often once in 2,048 runs
SECOND, HOOK = "A second derivative is exactly 0", "A hook makes a gradient 0"
PART = "A result is computed, and another one is taken"
SMOOTH = (
    "Use a function with a second derivative, such as tanh, sin, softplus or SiLU, where derivatives are in the loss."
)
OF_HOOK = "Look at what register_hook was given: a mask of zeros? To freeze a parameter, use requires_grad_(False)."


@ZERO_GRADIENT.over_time
def _lasting(run: Run) -> Iterator[Finding]:
    for stretch, found in ZERO_GRADIENT.carried(run):
        # A hook may well freeze a parameter on purpose, and a part of a network be left unused, or be drawn by chance.
        severity: Severity = "warning" if found.title in (HOOK, PART) else ZERO_GRADIENT.severity
        always = stretch.whole and not stretch.ended and len(stretch.steps) >= ALWAYS
        lasts = always if found.title == PART else len(stretch.steps) >= ZERO_GRADIENT.lasts
        yield replace(found, severity=severity) if lasts else found


def _parameters(context: StepContext) -> Iterator[Parameter]:
    """The parameters that may learn and whose gradient is 0, as backward left it: it was not cleared afterwards."""
    for parameter in context.graph.parameters.values():
        left, sent = context.gradient(parameter), context.statistics(parameter.value, gradient=True)
        if is_zero(left) and is_zero(sent) and context.may_learn(parameter):
            yield parameter


def _nothing_learns(context: StepContext) -> bool:
    """Whether no parameter that may learn has a gradient other than 0."""

    def found() -> bool:
        learning = (each for each in context.graph.parameters.values() if context.may_learn(each))
        return all(is_zero(known) for each in learning if (known := context.gradient(each)) is not None)

    return context.once("nothing learns", found)


# -- which operations stop it -----------------------------------------------------------------------------------------


def _stops(context: StepContext, parameter: Parameter) -> tuple[Stop, ...]:
    """The operations that stop a parameter's gradient; () if one is unknown, or rounding may be the cause."""
    assert parameter.value is not None
    found = [_stop(context, *each) for each in _stopping(context, parameter.value)]
    known = tuple(dict.fromkeys(each for each in found if each is not None))
    return () if None in found else known


Stopping = dict[tuple[int, int], None]  # (operation, operand)


def _stopping(context: StepContext, leaf: int) -> list[tuple[Operation, int]]:
    """The operations at whose result a gradient arrives, each with its operand, of which the gradient is 0.

    Those nearest to a leaf; [] where a gradient is unknown, or a hook of the user's changed it.
    """

    def arrived(operation: Operation) -> list[tuple[int, Statistics | None]]:
        outputs = (out for out in operation.outputs if out is not None and context.values[out].has_gradient)
        return [(out, context.statistics(out, gradient=True)) for out in outputs]

    def with_zeros(given: int) -> Iterator[int]:
        for operation in context.uses.get(given, ()):
            yield from (out for out, _ in zero) if _all_zero(zero := arrived(operation)) else ()

    def combine(given: int, behind: list[Stopping | None]) -> Stopping | None:
        own: Stopping = {}
        for operation in context.uses.get(given, ()):
            known = arrived(operation)
            if given in context.graph.hooked or any(each is None or each.not_finite for _, each in known):
                return None
            own |= {} if _all_zero(known) else {(operation.index, given): None}
        for each in reversed(behind):
            if each is None:
                return None
            own |= each
        return own

    known: dict[int, Stopping | None] = context.once("stopping", dict)
    found = gathered(leaf, with_zeros, combine, known)
    return [(context.graph.operations[operation], given) for operation, given in found or ()]


def _all_zero(known: list[tuple[int, Statistics | None]]) -> bool:
    return all(each is not None and each.zeros == each.elements for _, each in known)


# -- why it stops there -----------------------------------------------------------------------------------------------


def _stop(context: StepContext, operation: Operation, given: int) -> Stop | None:
    """Why an operation lets no gradient pass to an operand; None if it is unknown, or rounding may be the cause."""
    known = (context.statistics(out, gradient=True) for out in operation.outputs)
    norm = max((each.norm for each in known if each is not None), default=0.0)
    name, place = context.called(operation), context.place(operation)
    arrives = f"A gradient of norm {number(norm)} arrives at {name}, and 0 goes on: {{}}."
    if "." not in operation.name:  # of an autograd.Function
        return Stop(operation.name, place, arrives.format("its own backward returns 0"), grave=True)
    op = applied(context.graph, operation)
    rule = _rule_of(operation, op)
    if rule is not None and rule.is_constant(op):
        why = arrives.format(f"the derivative of {name} is 0 everywhere between its steps")
        return Stop(name, place, why, STEPS, by_nature=True, grave=True)
    if any(value.dtype == torch.float16 for value in (context.values[given], *_results(context, operation))):
        return None  # it may be too small for float16, of which another check tells
    if _of_one_class(context, operation):
        shape = f"({context.name(given)} has the shape {context.values[given].shape})"
        why = arrives.format(f"over a single element the softmax is 1 whatever it is given {shape}")
        return Stop(name, place, why, ONE_CLASS, grave=True)
    if factor := _zero_factor(context, operation, given):
        return Stop(name, place, arrives.format(factor[0]), factor[1], grave=factor[2])
    if (places := argument(operation, facts_of(operation.name).samples_at)) is not None and _is_outside(
        context, operation
    ):
        why = arrives.format("every place at which it samples lies outside of its input")
        return Stop(name, place, f"{why} {context.between(places)}".rstrip(), IN_UNITS, grave=True)
    if (taken := _left_out(context, operation)) is not None:
        what = f"{name}, which puts {len(operands(operation))} results together"
        at = f" ({at})" if (at := context.place(taken)) is not None else ""
        why = (
            f"A gradient arrives at {what}, and none of it belongs to {context.name(given)}: only other parts of it "
            f"are used, by {context.called(taken)}{at}."
        )
        return Stop(context.called(taken), context.place(taken), why, OTHER_PART, grave=True, title=PART)
    if facts_of(operation.name).difference and len(set(map(context.source, operands(operation)))) == 1:
        why = arrives.format(f"{context.name(given)} is subtracted from itself, so what one sends the other takes back")
        return Stop(name, place, why, ITSELF, by_nature=True, grave=True)
    if rule is not None and rule.structure == "elementwise" and set(operands(operation)) == {given}:
        why = arrives.format(f"its slope is 0 at each of {context.name(given)}'s elements")
        own = context.values[context.source(given)].kind == "parameter"
        hidden = own or not all(map(context.is_output, filter(None, operation.outputs)))
        return Stop(name, place, f"{why} {context.between(given)}".rstrip(), FLAT, grave=hidden)
    return None


def _left_out(context: StepContext, operation: Operation) -> Operation | None:
    """What takes a part of the joined results, where nothing takes the whole; None where it is not so."""
    joins = "tensors" in operation.arguments and len(operands(operation)) > 1
    out = operation.outputs[0] if joins else None
    uses = [] if out is None else [use for use in context.uses.get(out, ()) if any(_learn(context, use))]
    return uses[0] if uses and all(facts_of(use.name).takes_part for use in uses) else None


def _learn(context: StepContext, operation: Operation) -> Iterator[bool]:
    return (context.values[out].requires_grad for out in operation.outputs if out is not None)


def _is_outside(context: StepContext, operation: Operation) -> bool:
    return all(is_zero(context.statistics(out)) for out in operation.outputs if out is not None)


def _rule_of(operation: Operation, op: Applied) -> Rule | None:
    """The rule of an operation, by the name that autograd would give to its node."""
    words = base_name(operation.name).strip("_").split("_")
    try:
        return rules.for_node(f"{''.join(map(str.capitalize, words))}Backward0", op)
    except RuntimeError:  # it asks for numbers, and they were not kept
        return None


def _results(context: StepContext, operation: Operation) -> list[Value]:
    return [context.values[out] for out in operation.outputs if out is not None]


def _of_one_class(context: StepContext, operation: Operation) -> bool:
    """Whether it is a softmax over an axis of one element."""
    facts, out, dim = facts_of(operation.name), operation.outputs[0], operation.arguments.get("dim")
    if not (facts.softmax or facts.takes == "scores") or out is None or not isinstance(dim, int):
        return False
    shape = context.values[out].shape
    return not shape or shape[dim] == 1


def _zero_factor(context: StepContext, operation: Operation, given: int) -> tuple[str, str, bool] | None:
    """Why a product is 0 for an operand: which other factor is, what to try, and whether it was computed or learnt."""
    facts = facts_of(operation.name)
    names: tuple[str, ...] = facts.weighs or (("self", "other") if "*" in facts.notation else ())
    role = "other factor"
    if "/" in facts.notation and argument(operation, "other") == given:
        names, role = ("self",), "dividend"
    for name in names:
        factor = operation.arguments.get(name)
        if isinstance(factor, (int, float)) and factor == 0:
            return f"it multiplies by {factor:g}", IN_CODE, False
        if not isinstance(factor, Ref) or factor.value == given or not is_zero(context.statistics(factor.value)):
            continue
        source = context.source(factor.value)
        made, known = context.producer(source), context.values[source]
        place = f" ({at})" if made is not None and (at := context.place(made)) else ""
        by = f", from `{context.called(made)}`{place}" if made is not None else ""
        count = f" in all {math.prod(known.shape)} elements" if known.shape else ""
        # One number for many elements is a gate, which may well leave out an expert of a mixture for a while.
        gate = known.kind != "parameter" and math.prod(known.shape) < math.prod(context.values[given].shape)
        computed = not gate and source not in context.data and (made is None or bool(operands(made)))
        return f"the {role}, {context.name(source)}{by}, is 0{count}", PRODUCT, computed
    return None
