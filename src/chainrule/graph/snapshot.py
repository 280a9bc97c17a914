"""A tensor as it was at one moment: with its numbers, or with their statistics alone.

What a recording does not keep still has a shape, a type and a device. Code that computes with shapes takes a
placeholder in its place, a tensor on the device `meta`; everybody else asks the snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from torch import Tensor

from chainrule.graph.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A tensor at one moment. `data` is None where its numbers were not kept.

    `statistics` are those that were measured while the step ran. A tensor that was kept has none, as they can be
    measured later; one that was overwritten before it could be measured has neither.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    data: Tensor | None = None
    statistics: Statistics | None = None

    @classmethod
    def of(cls, tensor: Tensor, statistics: Statistics | None = None) -> Snapshot:
        """A tensor as it is now; nothing is copied."""
        data = tensor if has_numbers(tensor) else None
        return cls(tuple(tensor.shape), tensor.dtype, str(tensor.device), data, statistics)

    @property
    def has_numbers(self) -> bool:
        """Whether its numbers were kept."""
        return self.data is not None

    @property
    def tensor(self) -> Tensor:
        """Its numbers, or a placeholder."""
        return self.placeholder if self.data is None else self.data

    @property
    def placeholder(self) -> Tensor:
        """A tensor of its shape and type without numbers."""
        return placeholder(self.shape, self.dtype)

    def filled(self, data: Tensor | None) -> Snapshot:
        """The same with these numbers."""
        return replace(self, data=data)


def has_numbers(tensor: Tensor | None) -> TypeGuard[Tensor]:
    """Whether this is a tensor with numbers: neither None, nor a placeholder, nor the user's own on `meta`."""
    return tensor is not None and not tensor.is_meta


def all_have_numbers(*tensors: Tensor | None) -> bool:
    """Whether no tensor among these is without numbers; None stands for no tensor."""
    return not any(each is not None and each.is_meta for each in tensors)


def placeholder(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor without numbers, on the device `meta`: it takes no memory, whatever its shape."""
    return torch.empty(shape, dtype=dtype, device="meta")


def snapshots_of(tensors: Iterable[Tensor | None]) -> tuple[Snapshot | None, ...]:
    """Tensors as they are now; None stays None."""
    return tuple(None if each is None else Snapshot.of(each) for each in tensors)


def tensor_of(snapshot: Snapshot | None) -> Tensor | None:
    """The numbers of a snapshot or a placeholder; None where there was no tensor."""
    return None if snapshot is None else snapshot.tensor


def data_of(snapshot: Snapshot | None) -> Tensor | None:
    """The numbers of a snapshot; None where there are none."""
    return None if snapshot is None else snapshot.data


def statistics_of(snapshot: Snapshot | None) -> Statistics | None:
    """The statistics that were measured while the step ran."""
    return None if snapshot is None else snapshot.statistics
