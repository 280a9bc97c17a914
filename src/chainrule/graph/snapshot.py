"""A tensor as it was at one moment, and what a step did to a parameter between two moments.

A recording may keep a tensor's numbers or their statistics alone; a snapshot has a shape, a type and a device either
way. Code that computes with shapes takes a placeholder where there are no numbers: a tensor on the device `meta`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor

from chainrule.graph.opaque_tensors import is_opaque, shape_of, type_of
from chainrule.graph.statistics import Statistics
from chainrule.graph.write_log import Earlier

name_of = cache(str)  # of a device: a step has thousands of tensors on a few
type_of_reduction = Literal["all-reduce", "reduce-scatter"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A tensor at one moment. `data` is None where its numbers were not kept.

    What a write to a part of a memory overwrote is `held` as a way back to it, and each time that `data` is asked for
    it is another tensor. `statistics` are those that were measured while the step ran. A tensor that was kept has none,
    as they can be measured later; one that was overwritten before it could be measured has neither.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    held: Tensor | Earlier | None = field(default=None, metadata={"stored": "data"})
    statistics: Statistics | None = None

    @classmethod
    def of(cls, tensor: Tensor, statistics: Statistics | None = None) -> Snapshot:
        """A tensor as it is now; nothing is copied."""
        if is_opaque(tensor):
            return cls(shape_of(tensor), type_of(tensor), name_of(tensor.device), None, statistics)
        data = None if tensor.is_meta else tensor
        return cls(tuple(tensor.shape), tensor.dtype, name_of(tensor.device), data, statistics)

    @property
    def data(self) -> Tensor | None:
        """Its numbers, where they were kept."""
        return self.held.read() if isinstance(self.held, Earlier) else self.held

    @property
    def has_numbers(self) -> bool:
        """Whether its numbers were kept."""
        return self.held is not None

    @property
    def tensor(self) -> Tensor:
        """Its numbers, or a placeholder."""
        data = self.data
        return self.placeholder if data is None else data

    @property
    def placeholder(self) -> Tensor:
        """A tensor of its shape and type without numbers."""
        return placeholder(self.shape, self.dtype)

    def filled(self, data: Tensor | None) -> Snapshot:
        """The same with these numbers."""
        return replace(self, held=data)


def type_name(dtype: torch.dtype) -> str:
    """`float32` of `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def has_numbers(tensor: Tensor | None) -> TypeGuard[Tensor]:
    """Whether this is a tensor with numbers: neither None, nor a placeholder, nor the user's own without any."""
    return tensor is not None and not is_opaque(tensor) and not tensor.is_meta


def all_have_numbers(*tensors: Tensor | None) -> bool:
    """Whether no tensor among these is without numbers; None stands for no tensor."""
    return all(each is None or has_numbers(each) for each in tensors)


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


# -- a parameter at the start of a step and at its end ----------------------------------------------------------------


def accumulate(sums: dict[Any, Tensor], key: Any, gradient: Tensor | None) -> None:
    """Add a gradient to the sum under `key`, out of place; a sum with a part that was not kept has no numbers."""
    if gradient is not None:
        known = sums.get(key)
        if known is not None and not all_have_numbers(known, gradient):
            sums[key] = placeholder(tuple(known.shape), known.dtype)
        else:
            sums[key] = gradient if known is None else _sum(known, gradient)


def _sum(one: Tensor, other: Tensor) -> Tensor:
    """PyTorch adds a sparse tensor to a dense one, and no dense one to a sparse one."""
    return other + one if other.layout is torch.strided else one + other


@dataclass(frozen=True, slots=True)
class Parameter:
    """A trained leaf at the start of the step and at its end, with the gradient that backward left in `.grad`.

    `gradient` is None where none arrived, `end` is None where no optimizer stepped. `left_over` is what `.grad` held
    before the first backward pass that reached it.
    """

    name: str
    value: int | None
    start: Snapshot
    gradient: Snapshot | None = None
    end: Snapshot | None = None
    left_over: Snapshot | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.start.shape

    @property
    def before(self) -> Tensor | None:
        """Its numbers before the step, where they were kept."""
        return self.start.data

    @property
    def grad(self) -> Tensor | None:
        """Its gradient, where one arrived and was kept."""
        return data_of(self.gradient)

    @property
    def after(self) -> Tensor | None:
        """Its numbers after the step, where an optimizer stepped and they were kept."""
        return data_of(self.end)

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient arrived, kept or not."""
        return self.gradient is not None


@dataclass(frozen=True, slots=True)
class ParameterUpdate:
    """One parameter in one `optimizer.step()`.

    `state_before` is the optimizer's state of it before the step; a tensor there that was not kept is a snapshot.
    `gradient` is the one that the optimizer read, after unscaling and clipping. It contains `left_over`, if anything:
    what `.grad` held before the first backward pass since this optimizer's last step, where nothing cleared it.
    `update_statistics` are those of the update (after minus before) where the parameter was not kept; of a large one
    they come from a sample.
    """

    value: int | None
    name: str
    start: Snapshot
    gradient: Snapshot | None
    end: Snapshot
    options: dict[str, Any]
    state_before: dict[str, Any]
    update_statistics: Statistics | None = None
    left_over: Snapshot | None = None

    @property
    def before(self) -> Tensor:
        """The parameter before, or a placeholder."""
        return self.start.tensor

    @property
    def grad(self) -> Tensor | None:
        """The gradient, or a placeholder; None where there was none."""
        return tensor_of(self.gradient)

    @property
    def after(self) -> Tensor:
        """The parameter after, or a placeholder."""
        return self.end.tensor

    @property
    def is_whole(self) -> bool:
        """Whether all numbers of the update were kept."""
        facts = (self.start, self.gradient, self.end, *self.state_before.values())
        return all(each.has_numbers for each in facts if isinstance(each, Snapshot))

    def without_numbers(self) -> ParameterUpdate:
        """The same with shapes alone: what was not kept, or has the parameter's shape, is a placeholder."""
        bare = self.start.filled(None)

        def without(state: Any) -> Any:
            if isinstance(state, Snapshot):
                return state.placeholder
            return bare.placeholder if getattr(state, "shape", None) == bare.shape != () else state

        state = {name: without(each) for name, each in self.state_before.items()}
        return replace(self, start=bare, gradient=self.gradient and bare, end=bare, state_before=state)


@dataclass(frozen=True, slots=True)
class Update:
    """One `optimizer.step()`. `ignored` are attributes of the optimizer that are named like an option, with values.

    `hooks` are those that the user gave this optimizer, by name and place: they may change parameters.
    """

    optimizer: str
    parameters: tuple[ParameterUpdate, ...]
    position: int  # the number of operations that had run before it
    optimizer_number: int = 0  # which of the optimizers that stepped it is, in the order of their first steps
    ignored: dict[str, float] = field(default_factory=dict)
    hooks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reducer:
    """A module that combines the gradients of several processes: `DistributedDataParallel`, or one `fully_shard`ed.

    `batch` is how many samples went through it on this rank; `hook` names the communication hooks that take the place
    of the plain mean ("" without).
    """

    module: str
    class_name: str
    kind: type_of_reduction
    rank: int
    ranks: int
    batch: int | None
    hook: str = ""


@dataclass(frozen=True, slots=True)
class Reduction:
    """The gradient of one parameter, combined over ranks.

    `sent` is this rank's own gradient, earlier micro-batches included. `received` is the mean over all ranks, or this
    rank's part of it for a sharded parameter. `gathered` holds the gradients of all ranks in their order, where they
    were gathered; `verdict` then says whether the mean is right.
    """

    name: str
    reducer: int
    sent: Snapshot
    received: Snapshot | None
    gathered: tuple[Tensor, ...] = ()
    verdict: str = ""  # on the mean, where it was gathered

    @property
    def local(self) -> Tensor | None:
        """The numbers of this rank's gradient, where they were kept."""
        return self.sent.data

    @property
    def mean(self) -> Tensor | None:
        """The numbers of what was given back, where they were kept."""
        return data_of(self.received)
