"""This rank's part of a tensor that is spread over the ranks of a training (`DTensor`).

Such a tensor is a wrapper without memory of its own: whatever reads or copies memory must ask for the part.
"""

from __future__ import annotations

import sys

from torch import Tensor


def own_part(tensor: Tensor) -> Tensor:
    """The plain tensor that this rank holds; any other tensor is itself."""
    if type(tensor) is Tensor:
        return tensor
    spread = sys.modules.get("torch.distributed.tensor")
    if spread is None or not isinstance(tensor, getattr(spread, "DTensor", ())):
        return tensor
    part: Tensor = tensor._local_tensor  # type: ignore[attr-defined]
    return part
