"""What a GradScaler does, seen from outside: it calls no hook, and steps that it leaves out reach no optimizer."""

from __future__ import annotations

import math
import sys
from types import FrameType
from typing import Any

from torch.amp.grad_scaler import GradScaler

_around_a_step = GradScaler._maybe_opt_step.__code__
DEEP = 12  # frames between a scaler's step and the optimizer's hooks, with room for wrappers of schedulers


class Scaling:
    """The scaler of a training loop, given or met when it first steps an optimizer."""

    def __init__(self, scaler: Any = None) -> None:
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.scale = self._read()

    def look(self) -> None:
        """From within an optimizer's step: find the scaler that called it."""
        frame: FrameType | None = sys._getframe(1)
        for _ in range(DEEP):
            if frame is None or self.scaler is not None:
                return
            if frame.f_code is _around_a_step:
                self.scaler = frame.f_locals["self"]
                self.scale = self._read()
            frame = frame.f_back

    def skipped(self) -> int:
        """How many steps the scaler left out since this was asked last: each made its scale fall once."""
        if self.scaler is None:
            return 0
        before, self.scale = self.scale, self._read()
        if before is None or self.scale is None or not 0 < self.scale < before:
            return 0
        return max(1, round(math.log(self.scale / before) / math.log(self.scaler.get_backoff_factor())))

    def _read(self) -> float | None:
        return None if self.scaler is None else float(self.scaler.get_scale())
