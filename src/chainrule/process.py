"""Tells a process from the children that it forks: these inherit our objects, and none of our threads."""

from __future__ import annotations

import os


class Process:
    """The process in which this was made."""

    def __init__(self) -> None:
        self._id = os.getpid()

    @property
    def is_left(self) -> bool:
        """Whether we are in a child that was forked from it."""
        return os.getpid() != self._id
