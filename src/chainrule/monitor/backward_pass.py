"""What the stack shows of the backward pass that is running: the loss from which it began, and the code around it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, FrameType

import torch
from torch import Tensor

from chainrule.capture.source import is_library
from chainrule.pytorch_internals import _engine_run_backward

_begins: CodeType = _engine_run_backward.__code__
KNOWN = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
DEEP = 64  # frames between a hook and the beginning of its pass at most, reentrant checkpoints included


def loss_of_pass(thread: int) -> Tensor | None:
    """The loss of the pass in which this runs, if it is one number. On a GPU `thread` waits for the pass to end."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(DEEP):
        if frame is None:
            frame = sys._current_frames().get(thread)
            if frame is None or frame.f_code is not _begins:
                return None
        if frame.f_code is _begins:
            roots = frame.f_locals["t_outputs"]
            if len(roots) == 1 and type(roots[0]) is Tensor and roots[0].numel() == 1 and roots[0].dtype in KNOWN:
                loss: Tensor = roots[0]
                return loss
        frame = frame.f_back
    return None


def users_frames() -> Iterator[FrameType]:
    """The frames of the user's code that is running, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not is_library(frame.f_code):
            yield frame
        frame = frame.f_back
