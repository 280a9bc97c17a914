"""What is known of the steps between the watched ones: looks at every step, and one that lost numbers, run again.

The operations of the step that runs again are those of the last watched step, and the parameters are the model's own,
while they are what they were in that step: before the optimizer moves them. The data are the variables of the user's
code with the names that the watched step's data had. Where the loss does not come out as it did, nothing is said.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from chainrule.capture.source import callers, is_library, locals_of
from chainrule.diagnostics import Finding, findings
from chainrule.diagnostics.finding import listed
from chainrule.errors import ChainruleError, RecordingError
from chainrule.execution.other_inputs import leaves_of_loss, with_other_inputs
from chainrule.graph.graph import Graph, Value
from chainrule.graph.history import Noticed, Unwatched
from chainrule.graph.opaque_tensors import is_opaque
from chainrule.graph.reexecution import apart
from chainrule.graph.trees import is_a
from chainrule.monitor.arguments import WatchedModels
from chainrule.monitor.every_step import EveryStep
from chainrule.recording import Recording

OPERATIONS, NUMBERS = 2000, 4_000_000  # of a step, at most: its recording is kept until the next watched step
AGAIN = 8  # steps that are run again in a run, at most
SAME = 1e-3  # relative difference of a loss that comes out as it did

Seen = tuple[Noticed, Sequence[Finding]]
"""What was noticed of a step, and what it showed when it was run again."""


class BetweenSteps:
    """Sees each backward pass and the end of each step."""

    def __init__(self, models: WatchedModels) -> None:
        self.again = _UnwatchedStep(models)
        self._looks = EveryStep(models.names)
        self._strange: tuple[int, float, Sequence[Finding]] | None = None  # a step that lost numbers, with its loss
        self._passes = 1  # of a watched step; 0 if the losses of others cannot be compared with its own

    def forget(self) -> None:
        """Drop every reference to the user's objects."""
        self.again.forget()
        self._looks.forget()

    def passed(self, step: int, parameter: Tensor, scaled: bool, examined: Callable[..., Sequence[Finding]]) -> None:
        """A backward pass of a step that is not recorded. One that loses numbers is run again at once."""
        if (loss := self._looks.passed(parameter, scaled)) is not None:
            self._strange = step, loss, examined(lambda: self.again.again(step, loss), since=step)

    def ended(self, step: int, watched: bool, scale: float | None, optimizers: Sequence[Optimizer]) -> Iterable[Seen]:
        """A step has ended."""
        noticed = self._looks.end(step, watched, scale, optimizers)
        return self._with_strange(noticed) if noticed or self._strange is not None else ()

    def rewritten(self) -> bool:
        """Whether something else changed a parameter after the update of the last watched step; asked once."""
        found, self._looks.rewritten = self._looks.rewritten, False
        return found

    def skipped(self) -> Iterator[Seen]:
        """A GradScaler has skipped a step."""
        self._looks.skip()
        return self._with_strange(())

    def rest(self) -> Iterator[Seen]:
        """What waits on a device, at the end of the watch."""
        return self._with_strange(self._looks.read())

    def unwatched(self, passes: int | None = None) -> list[Unwatched]:
        """The steps since the last call whose losses are known; `passes` are those of a watched step after them."""
        self._passes = self._passes if passes is None else passes
        return list(self._looks.unwatched(self._passes))

    def _with_strange(self, noticed: Iterable[Noticed]) -> Iterator[Seen]:
        strange, self._strange = self._strange, None
        noticed = list(noticed)
        if strange is not None and (strange[2] or not math.isfinite(strange[1])):
            step, loss, found = strange
            same = next((each for each in noticed if each.lost and each.step == step), Noticed(step))
            yield replace(same, loss=loss), found
            noticed = [each for each in noticed if each is not same]
        yield from ((each, ()) for each in noticed)


class _UnwatchedStep:
    """Keeps the recording of the last watched step, if it is small, and runs its operations on what another had."""

    def __init__(self, models: WatchedModels) -> None:
        self._models = models
        self._last: Recording | None = None
        self._step = 0  # the last watched one
        self._left = AGAIN

    def keep(self, step: int, recording: Recording) -> None:
        """Keep a watched step that has been examined. Its numbers do not count: the user's code goes on."""
        graph, self._last, self._step = recording.graph, None, step
        numbers = sum(math.prod(value.shape) * (1 + value.has_gradient) for value in graph.values)
        small = len(graph.operations) <= OPERATIONS and numbers <= NUMBERS
        if self._left and small and len(graph.backwards) == 1 and not self._may_be_swapped():
            with suppress(RecordingError):  # it was saved in full, and has nothing left to keep
                self._last = recording.to_last(updates=False)

    def _may_be_swapped(self) -> bool:
        """Whether `Module.to` swaps parameters, which PyTorch refuses where a recording holds their nodes."""
        asked: bool = torch.__future__.get_swap_module_params_on_conversion()
        return asked or any(map(is_opaque, self._models.tensors().values()))

    def forget(self) -> None:
        """Drop it."""
        self._last = None

    @apart()
    def again(self, step: int, loss: float) -> tuple[Finding, ...]:
        """What lost numbers in the step whose backward pass is running, which began from this loss; () if unknown."""
        if self._last is None or not self._left:
            return ()
        self._left -= 1
        try:
            leaves = self._leaves(self._last.graph)
            with torch.enable_grad():
                recording = Recording.of(with_other_inputs(self._last.graph, leaves))
        except (ChainruleError, MemoryError):
            return ()
        (found,) = recording.losses
        same = not math.isfinite(found.item()) if not math.isfinite(loss) else math.isclose(found, loss, rel_tol=SAME)
        return self._said(step, recording, leaves) if same else ()

    def _said(self, step: int, recording: Recording, leaves: Mapping[int, Tensor]) -> tuple[Finding, ...]:
        graph = recording.graph
        data = [value.name for value in map(graph.values.__getitem__, leaves) if value.kind == "input"]
        drawn = any(each.random_state is not None for each in graph.operations)
        how = (
            f"Step {step} was not watched. It was run again with its parameters and {listed(data) or 'no data'}, "
            f"by the operations{' and with the random numbers' if drawn else ''} of step {self._step}: the loss is "
            f"{recording.loss:.5g} again."
        )
        found = findings(graph, recording.derivation, recording.notation, unfinished=True)
        # A parameter that was lost before the step was lost by an earlier one.
        births = (each for each in found if each.severity == "error" and each.where not in graph.parameters)
        return tuple(replace(each, evidence=(*each.evidence, how)) for each in births)

    def _leaves(self, graph: Graph) -> dict[int, Tensor]:
        """The tensor that the running step has in the place of each leaf. Raises LookupError for an unknown one."""
        leaves = leaves_of_loss(graph)
        own = self._models.tensors()
        data = _variables(value.name for value in leaves if value.kind == "input")
        return {value.index: _in_place_of(value, data if value.kind == "input" else own) for value in leaves}


def _in_place_of(value: Value, known: Mapping[str, Tensor]) -> Tensor:
    found = known.get(value.name)
    if found is None and value.data is not None and value.data.numel() == 1:
        return value.data  # a constant
    if found is None or is_opaque(found) or found.dtype is not value.dtype or str(found.device) != value.device:
        raise ChainruleError(f"{value.name} is unknown")
    return found


def _variables(names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors among the variables of the user's running code that have these names, the innermost first."""
    wanted, found = set(names), dict[str, Tensor]()
    for frame in callers(sys._getframe(1)):
        for variables in () if is_library(frame.f_code) else (locals_of(frame), frame.f_globals):
            for name in wanted - found.keys():
                if is_a(each := variables.get(name), Tensor):
                    found[name] = each
    return found
