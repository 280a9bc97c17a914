"""What follows from a student's own numbers: an answer that is wrong only because an earlier one was."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from chainrule.exercises.mistakes import Mistakes
from chainrule.exercises.quantities import quantity_of
from chainrule.exercises.update_slips import new_parameter
from chainrule.recording import Recording


def follows(recording: Recording, quantity: str, earlier: Mapping[str, Tensor]) -> Tensor | None:
    """The answer that follows from earlier ones, by their quantities; None where they have no part in it."""
    asked, chain = quantity_of(recording, quantity), Mistakes.of(recording).chain
    values: dict[int, Tensor] = {}
    gradients: dict[int, Tensor] = {}
    for name, answer in earlier.items():
        known = quantity_of(recording, name)
        if known.kind == "value":
            values[known.value] = answer.to(known.data.dtype)
        elif known.kind == "gradient":
            gradients[chain.alias.get(known.value, known.value)] = answer
    try:
        if values:
            values = chain.values(given=values) if chain.goes_forward else {}
        if asked.kind == "value":
            result = values.get(asked.value)
            return None if result is None else result.double()
        if not chain.goes_back:
            return None
        wide = {value: each.double() for value, each in values.items()}
        gradient = chain.gradients(values=wide, given=gradients).get(chain.alias.get(asked.value, asked.value))
        if asked.kind == "gradient" or gradient is None:
            return gradient
        return new_parameter(recording.graph, asked.value, gradient)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return None  # an operation that cannot run again on other numbers
