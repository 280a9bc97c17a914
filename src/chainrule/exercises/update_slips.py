"""What students do wrong in the update of a parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
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
    yield from _other_state(update, optimizer)
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


def _other_state(update: ParameterUpdate, optimizer: str) -> Iterator[tuple[float, str, str, Tensor]]:
    """The optimizer's state of before, or the constants that weigh it, taken otherwise."""
    state, options = update.state_before, update.options
    tensors = {name: each for name, each in state.items() if isinstance(each, Tensor) and each.dim()}
    others: list[tuple[float, str, str, ParameterUpdate]] = []
    if any(bool(each.any()) for each in tensors.values()):
        forgotten = {name: torch.zeros_like(each) for name, each in tensors.items()}
        sentence = f"what {optimizer} kept from the step before is taken as 0"
        others.append((1.2, "moments", sentence, replace(update, state_before={**state, **forgotten})))
    betas = options.get("betas")
    if isinstance(betas, tuple) and len(set(betas)) == len(betas) == 2:
        swapped = replace(update, options={**options, "betas": betas[::-1]})
        others.append((1.2, "decay rates", f"the betas {betas[0]} and {betas[1]} are swapped", swapped))
    if (step := state.get("step")) is not None and float(step) >= 1:
        earlier = replace(update, state_before={**state, "step": step - 1})
        sentence = f"the bias correction has the power {float(step):g}, and this is step {float(step) + 1:g}"
        others.append((1.2, "bias correction", sentence, earlier))
    for cost, name, sentence, other in others:
        found = _worked_out(other, optimizer)
        if found is not None:
            yield cost, name, sentence, found


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
    (b1, b2), t = update.options["betas"], float(hyperparameters(update.options, update.state_before)["t"])
    assert update.grad is not None
    g, m_0, v_0 = (wide(each) for each in (update.grad, *map(update.state_before.get, ("exp_avg", "exp_avg_sq"))))
    if isinstance(m_0, Tensor) and isinstance(v_0, Tensor):
        m_whole, v_plain = (b1 * m_0 + g) / (1 - b1**t), (b2 * v_0 + (1 - b2) * g) / (1 - b2**t)
        sentence = f"1 - {number(b1)} is left out in front of the gradient in m"
        yield 1.2, "decay rates", sentence, before - rate * m_whole / (v_hat.sqrt() + eps)
        sentence = "the gradient is not squared in v"
        yield 1.2, "square", sentence, before - rate * m_hat / (v_plain.sqrt() + eps)
    sentence = "only m is used: the division by the square root of v is left out"
    yield 1.3, "square root", sentence, before - rate * m_hat
    yield 1.3, "square root", f"{sentence}, and so is the bias correction", before - rate * m
