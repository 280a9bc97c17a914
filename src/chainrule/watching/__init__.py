"""Watching a whole training: which steps are recorded, what is kept of them, and what is said while it runs."""

from __future__ import annotations

from chainrule.watching.watcher import watch

__all__ = ["watch"]
