"""Where one training step ends and the next begins, told from the optimizers' steps alone.

With one optimizer each of its steps ends a training step. With several (a GAN's two, or one for matrices and one for
the rest) a training step is a round in which each has stepped at least once; one that has not stepped for a long time
is no longer waited for.
"""

from __future__ import annotations

from collections.abc import Iterable

PATIENCE = 20  # steps of the others after which an optimizer is no longer waited for


class Rounds:
    """Counts in optimizers by a key of theirs; `expected` are those known from the beginning."""

    def __init__(self, expected: Iterable[int] = ()) -> None:
        self._idle = dict.fromkeys(expected, 0)  # steps of others since its own last one
        self._stepped: set[int] = set()

    def stepped(self, optimizer: int) -> bool:
        """One optimizer has stepped; whether this ends the training step."""
        if optimizer not in self._idle and self._idle:
            # It belongs to the round that another seemed to end: the next round begins behind it.
            self._idle[optimizer] = 0
            self._stepped.clear()
            return False
        for other in self._idle:
            self._idle[other] += 1
        self._idle[optimizer] = 0
        self._stepped.add(optimizer)
        self._idle = {key: idle for key, idle in self._idle.items() if idle < PATIENCE}
        if self._stepped.issuperset(self._idle):
            self._stepped.clear()
            return True
        return False
