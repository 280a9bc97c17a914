"""What students do wrong in the update of a parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from chainrule.execution.number_types import wide
from chainrule.graph.graph import Graph
from chainrule.graph.snapshot import ParameterUpdate, Snapshot
from chainrule.numbers import number
from chainrule.rules.optimizers import hyperparameters, worked_out


def update_slips(graph: Graph, value: int, named: str) -> Iterator[tuple[float, str, str, Tensor]]:
    """(cost, name, sentence, what comes out) for the parameter that is this value."""
    found = [(step.optimizer, each) for step in graph.updates for each in step.parameters if each.value == value]
    if len(found) != 1 or found[0][1].grad is None or not found[0][1].is_whole:
        return
    optimizer, update = found[0]
    before, gradient = update.before.double(), update.grad.double()  # type: ignore[union-attr]
    rate = float(hyperparameters(update.options, update.state_before).get("lr", 1.0))
    step = update.after.double() - before
    text = number(rate)
    yield (
        1.0,
        "sign",
        f"the step is added, and not subtracted: the sign of the learning rate {text} is wrong",
        before - step,
    )
    yield 1.3, "not updated", f"this is {named} of before the update: there was no step, or its gradient was 0", before
    yield 1.2, "only the step", f"this is the step alone, which is yet to be subtracted from {named}", -step
    yield 1.2, "only the step", f"this is the change alone, which is yet to be added to {named}", step
    yield 1.1, "learning rate", f"the learning rate {text} is left out", before + step / rate
    yield 1.5, "learning rate", f"the learning rate {text} counts twice", before + step * rate
    if optimizer != "SGD":
        sentence = (
            f"this is {named} - {text} times the gradient, the step of plain gradient descent, and not of {optimizer}"
        )
        yield 1.2, "wrong optimizer", sentence, before - rate * gradient
        yield 1.4, "wrong optimizer", f"the gradient is subtracted as it is, without {optimizer}", before - gradient
    elif update.options.get("momentum") or update.options.get("weight_decay"):
        sentence = "this is the step of plain gradient descent: the momentum and the weight decay are left out"
        yield 1.2, "momentum or weight decay", sentence, before - rate * gradient
    yield from _without_options(update, optimizer)
    yield from _adam(update, optimizer, before, rate)


def new_parameter(graph: Graph, value: int, gradient: Tensor) -> Tensor | None:
    """The parameter after an update with another gradient; None where no formula covers the optimizer."""
    for step in graph.updates:
        for each in step.parameters:
            if each.value == value and each.grad is not None and each.is_whole and each.grad.shape == gradient.shape:
                return _worked_out(replace(each, gradient=Snapshot.of(gradient)), step.optimizer)
    return None


def _worked_out(update: ParameterUpdate, optimizer: str) -> Tensor | None:
    state: dict[str, Any] = {name: wide(each) for name, each in update.state_before.items()}
    grad = update.grad
    assert grad is not None
    whole = replace(
        update, start=Snapshot.of(update.before.double()), gradient=Snapshot.of(grad.double()), state_before=state
    )
    made = worked_out(whole, optimizer)
    found = None if made is None else made.terms[-1].value
    return found if isinstance(found, Tensor) else None


def _without_options(update: ParameterUpdate, optimizer: str) -> Iterator[tuple[float, str, str, Tensor]]:
    for option in ("momentum", "weight_decay", "nesterov"):
        if update.options.get(option):
            left = replace(update, options={**update.options, option: type(update.options[option])(0)})
            found = _worked_out(left, optimizer)
            called = option.replace("_", " ")
            if found is not None:
                yield 1.15, called, f"the {called} of {number(update.options[option])} is left out", found


def _adam(
    update: ParameterUpdate, optimizer: str, before: Tensor, rate: float
) -> Iterator[tuple[float, str, str, Tensor]]:
    made = worked_out(update, optimizer) if optimizer in ("Adam", "AdamW") else None
    if made is None:
        return
    terms = {term.symbol: term.value for term in made.terms if isinstance(term.value, Tensor)}
    eps = update.options["eps"]
    try:
        m, v, m_hat, v_hat = (terms[each].double() for each in ("m_t", "v_t", r"\hat{m}_t", r"\hat{v}_t"))
    except KeyError:
        return
    steps = (
        ("bias correction", "the bias correction is left out: m and v began at 0", m / (v.sqrt() + eps)),
        ("bias correction", "the bias correction of v is left out", m_hat / (v.sqrt() + eps)),
        ("bias correction", "the bias correction of m is left out", m / (v_hat.sqrt() + eps)),
        ("square root", "the square root of v is left out", m_hat / (v_hat + eps)),
    )
    for name, sentence, step in steps:
        yield 1.2, name, sentence, before - rate * step
    sentence = "only m is used: the division by the square root of v is left out"
    yield 1.3, "square root", sentence, before - rate * m_hat
    yield 1.3, "square root", f"{sentence}, and so is the bias correction", before - rate * m
