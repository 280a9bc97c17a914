"""What a page asks for, with the mistakes that it can name: they travel in the document, and the page only compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

from torch import Tensor

from chainrule.document import Exercise
from chainrule.exercises.answers import ELEMENTARY, said, tolerances
from chainrule.exercises.mistakes import Facts, Mistake, Mistakes
from chainrule.exercises.quantities import Kind, Quantity, Recorded, made
from chainrule.graph.graph import Graph
from chainrule.numbers import number
from chainrule.rules.optimizers import hyperparameters, terms

SMALL = 36  # elements of a tensor up to which it is asked for
STEPS = 24  # forward steps up to which a page asks
NAMED = 24  # mistakes of one tensor
DIGITS = 6


def asked(recorded: Recorded, rows: Mapping[int, int]) -> tuple[tuple[Exercise, ...], tuple[str, ...]]:
    """The exercises of a small step, for the values that have a row, and the sentences of their mistakes."""
    known = Mistakes.of(Facts(recorded.graph, recorded.derivation, recorded.notation))
    sentences: dict[str, int] = {}
    try:
        if len(known.chain.forward_steps) > STEPS or not known.chain.goes_back:
            return (), ()
        exercises = tuple(_exercises(known, rows, sentences))
    except Exception:  # a page is written whatever an operation cannot do
        return (), ()
    return exercises, tuple(sentences)


def _exercises(known: Mistakes, rows: Mapping[int, int], sentences: dict[str, int]) -> Iterator[Exercise]:
    graph = known.graph
    computed = {value for step in known.chain.forward_steps for value in step.outputs}
    losses = {each.loss for each in graph.backwards}
    for value, row in rows.items():
        for kind in get_args(Kind):
            quantity = made(known.recorded, kind, value)
            if quantity is None or not 0 < quantity.data.numel() <= SMALL or not quantity.data.is_floating_point():
                continue
            if not bool(quantity.data.isfinite().all()):
                continue
            if (kind == "value" and value not in computed) or (kind == "gradient" and value in losses):
                continue  # data is given, and so is the seed
            yield _exercise(known, quantity, row, sentences)


def _exercise(known: Mistakes, quantity: Quantity, row: int, sentences: dict[str, int]) -> Exercise:
    fitting = [each for each in known.at(quantity) if each.value.shape == quantity.data.shape]
    mistakes = tuple(_encoded(each, sentences) for each in fitting[:NAMED])
    slack = float(tolerances(known, quantity)[0].max())
    is_update = quantity.kind == "update"
    after = _numbers(quantity.data, 9) if is_update else ()
    rule = _rule(known.graph, quantity) if is_update else ""
    return Exercise(quantity.kind, row, quantity.name, slack, mistakes, after, rule)


def _encoded(mistake: Mistake, sentences: dict[str, int]) -> tuple[int, bool, tuple[float, ...]]:
    place = sentences.setdefault(said(mistake), len(sentences))
    return place, mistake.cost <= ELEMENTARY, _numbers(mistake.value, DIGITS)


def _numbers(data: Tensor, digits: int) -> tuple[float, ...]:
    return tuple(float(f"{x:.{digits}g}") for x in data.detach().reshape(-1).tolist())


def _rule(graph: Graph, quantity: Quantity) -> str:
    """How a parameter is updated, in words."""
    for step in graph.updates:
        for each in step.parameters:
            if each.value == quantity.value:
                rate = number(float(hyperparameters(each.options, each.state_before).get("lr", 1.0)))
                found = terms(each, step.optimizer) or ()
                words = "; then ".join(term.meaning for term in found)
                return f"{step.optimizer} with the learning rate {rate}" + f": {words}" * bool(words)
    return ""
