"""Keeps `torch.compile` out of the thread that is recorded: what it compiles runs where no mode sees it."""

from __future__ import annotations

from typing import Any

from chainrule.capture.guard import Guard, here
from chainrule.pytorch_internals import compiler, in_higher_order_compilation


class EagerHere:
    """A stance of the compiler's: eager in the recorded thread, as before in all others.

    There is one stance in a process. Recordings that overlap each put theirs in the place of what they find, and end in
    any order.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._compiler: Any = compiler()
        self._before: Any = self._compiler._stance

    @property
    def stance(self) -> str:
        """What the compiler asks for whenever compiled code is called."""
        eager = self._guard.on and here() is self._guard and not compiles_for_itself()
        return "force_eager" if eager else self._before.stance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._before, name)

    def begin(self) -> None:
        """Take the place of the present stance."""
        self._compiler._set_stance(self)

    def end(self) -> None:
        """Give it back, unless another has taken it since; that one finds what was before us."""
        if self._compiler._stance is self:
            while isinstance(self._before, EagerHere) and not self._before._guard.on:
                self._before = self._before._before
            self._compiler._stance = self._before


def compiles_for_itself() -> bool:
    """Whether PyTorch is about to compile what it hands to a higher-order operator, for which the user did not ask."""
    return in_higher_order_compilation()
