"""What follows from a student's own numbers: an answer that is wrong only because an earlier one was."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from chainrule.exercises.mistakes import Mistakes
from chainrule.exercises.quantities import quantity_of
from chainrule.exercises.update_slips import new_parameter
from chainrule.recording import Recording


class FollowUp:
    """The answers of one step, worked out from other earlier ones."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.chain = Mistakes.of(recording).chain

    def of(self, quantity: str, own: Mapping[str, Tensor]) -> Tensor | None:
        """The answer that follows from a student's own numbers, in double precision; None where none does."""
        asked = quantity_of(self.recording, quantity)
        found = {name: quantity_of(self.recording, name) for name in own if name != quantity}
        if not found:
            return None
        values = {each.value: own[name].to(each.data.dtype) for name, each in found.items() if each.kind == "value"}
        gradients = {
            self.chain.alias.get(each.value, each.value): own[name]
            for name, each in found.items()
            if each.kind == "gradient"
        }
        values = {value: each for value, each in values.items() if value != asked.value or asked.kind != "value"}
        gradients.pop(self.chain.alias.get(asked.value, asked.value) if asked.kind == "gradient" else -1, None)
        chain, target = self.chain, self.chain.alias.get(asked.value, asked.value)
        try:
            known = chain.values(given=values) if values and chain.goes_forward else values
            if asked.kind == "value":
                result = known.get(asked.value)
            elif not chain.goes_back:
                result = None
            else:
                wide = {value: each.double() for value, each in known.items()}
                result = chain.gradients(values=wide, given=gradients).get(target)
            if asked.kind == "update" and result is not None:
                result = new_parameter(self.recording.graph, asked.value, result)
        except (RuntimeError, IndexError, ValueError, TypeError):
            return None  # an operation that cannot run again on other numbers
        return None if result is None else result.double()
