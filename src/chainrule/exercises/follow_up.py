"""What follows from earlier answers by right arithmetic: an answer that is wrong only because one of them is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from chainrule.exercises.mistakes import Mistakes
from chainrule.exercises.quantities import Kind, Quantity
from chainrule.exercises.update_slips import new_parameter


def follows(known: Mistakes, asked: Quantity, earlier: Mapping[tuple[Kind, int], Tensor]) -> Tensor | None:
    """The whole tensor of a quantity, from other answers by their kinds and values; None where they have no part in it.

    Quantities without an answer are worked out from those that have one.
    """
    chain, graph = known.chain, known.graph
    values = {value: answer for (kind, value), answer in earlier.items() if kind == "value"}
    gradients = {chain.alias.get(at, at): answer for (kind, at), answer in earlier.items() if kind == "gradient"}
    if values and not chain.goes_forward:
        return None
    try:
        if values:
            values = chain.values(given={at: answer.to(graph.values[at].dtype) for at, answer in values.items()})
        if asked.kind == "value":
            result = values.get(asked.value)
            return None if result is None else result.double()
        if not chain.goes_back:
            return None
        gradient = chain.gradients(values=values, given=gradients).get(chain.alias.get(asked.value, asked.value))
        if asked.kind == "gradient" or gradient is None:
            return gradient
        return new_parameter(graph, asked.value, gradient)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None  # an operation that cannot run again on other numbers
