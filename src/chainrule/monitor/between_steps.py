"""What is known of the steps between the watched ones: looks at every step, and one that lost numbers, run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import isfinite

from torch import Tensor
from torch.optim.optimizer import Optimizer

from chainrule.diagnostics import Finding
from chainrule.graph.history import Noticed, Unwatched
from chainrule.monitor.arguments import WatchedModels
from chainrule.monitor.every_step import EveryStep
from chainrule.monitor.unwatched_step import UnwatchedStep

Seen = tuple[Noticed, Sequence[Finding]]
"""What was noticed of a step, and what it showed when it was run again."""


class BetweenSteps:
    """Sees each backward pass and the end of each step."""

    def __init__(self, models: WatchedModels) -> None:
        self.again = UnwatchedStep(models)
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
        if strange is not None and (strange[2] or not isfinite(strange[1])):
            step, loss, found = strange
            same = next((each for each in noticed if each.lost and each.step == step), Noticed(step))
            yield replace(same, loss=loss), found
            noticed = [each for each in noticed if each is not same]
        yield from ((each, ()) for each in noticed)
