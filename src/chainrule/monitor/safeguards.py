"""What keeps a watch from harming the training: warnings said once, and ends that an interrupt cannot halve."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from chainrule.errors import warn


class Warnings:
    """Warns of each thing once."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def warn(self, sentence: str) -> None:
        """Warn, unless the same was said before."""
        if sentence in self._known:
            return
        self._known.add(sentence)
        warn(sentence)

    def missed(self, step: int, reason: str) -> None:
        """Warn that a step was not watched, for the first of each reason."""
        if reason not in self._known:
            self._known.add(reason)
            self.warn(f"step {step} was not watched: {reason}.")

    def unmeasured(self, names: Collection[str]) -> None:
        """Warn once that these tensors have no series."""
        if names and "unmeasured" not in self._known:
            self._known.add("unmeasured")
            few = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} others" if len(names) > 5 else "")
            self.warn(f"there are no statistics of {few}: their numbers are inside of other tensors, or nowhere.")


def attempt(parts: Iterable[Callable[[], object]]) -> list[str]:
    """Run every part, also after one that fails; returns what failed."""
    failures = []
    for part in parts:
        try:
            part()
        except Exception as failure:
            failures.append(f"{type(failure).__name__}: {failure}")
    return failures


def surely(act: Callable[[], None]) -> None:
    """Run `act`, which may run twice: if an error or Ctrl-C interrupts it, it runs again. Raises the interrupt then."""
    try:
        act()
    except Exception:
        act()
    except BaseException:
        act()
        raise
