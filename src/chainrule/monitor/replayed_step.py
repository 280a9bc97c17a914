"""A step that was watched by its figures, played again with all its numbers, because they showed something.

A finding comes when the step is over: its numbers are gone, and its parameters overwritten. But its operations are
known, what they drew their random numbers from, its inputs, and copies of its parameters (`record.keep_leaves`). So it
is recomputed, as any recording is, and each value held against the figures that were taken while it ran.
"""

from __future__ import annotations

import torch

from chainrule.capture.retention import default_memory
from chainrule.errors import ReplayError
from chainrule.graph.graph import Graph
from chainrule.recording import Recording


def played_again(recording: Recording) -> Recording | None:
    """The step with all its numbers, right after it was looked at (`Recording.at_once`).

    None where they would take more memory than a recording keeps, or where it cannot be replayed.
    """
    if _bytes(recording.graph) > default_memory():
        return None
    try:
        with torch.enable_grad():
            return recording.to_last().recompute()
    except (ReplayError, MemoryError, torch.OutOfMemoryError):
        return None


def _bytes(graph: Graph) -> int:
    """Of all values and gradients."""
    return sum(
        torch.Size(value.shape).numel() * value.dtype.itemsize * (1 + value.has_gradient) for value in graph.values
    )
