"""Finds the modules that combine their gradients over the ranks of a training.

`DistributedDataParallel` and `fully_shard` do so out of sight, in C++ hooks or inside autograd, when a gradient has
reached its leaf: `.grad` is then not what the nodes of this rank sent. So the recorder notes the local gradient that a
leaf was about to be given (`RawArrival`), apart from what is in `.grad` afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from chainrule.capture.module_tree import named_parameters
from chainrule.graph.snapshot import type_of_reduction
from chainrule.graph.trees import tensors_in


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that is spread over ranks (`DTensor`), or else the tensor itself."""
    if type(tensor) is Tensor:
        return tensor
    spread = sys.modules.get("torch.distributed.tensor")
    if spread is None or not isinstance(tensor, getattr(spread, "DTensor", ())):
        return tensor
    part: Tensor = tensor._local_tensor  # type: ignore[attr-defined]
    return part


def storage_of(tensor: Tensor) -> int:
    """Identifies the memory of a tensor as long as a tensor in it lives."""
    try:
        return int(own_part(tensor).untyped_storage()._cdata)
    except Exception:  # sparse, a wrapper of functorch's, or what the user's class raises: no memory to share
        return id(tensor)


@dataclass(slots=True)
class RawReducer:
    """A module that combines gradients over ranks, at the time it ran last; `batch` is summed over its runs."""

    module: nn.Module
    kind: type_of_reduction
    rank: int
    ranks: int
    batch: int | None
    hook: str  # a communication hook, which may do something other than take the mean
    combines: bool  # at the end of the next backward pass; not inside `no_sync()`


@dataclass(slots=True)
class RawArrival:
    """What a leaf's `.grad` was about to become in one pass, before it was combined with that of other ranks."""

    task: int
    leaf: Tensor
    parameter: Tensor  # what the optimizer has: the leaf, or a shard of it
    reducer: int
    whole: Tensor


class Reducers:
    """The modules of a step that combine gradients over ranks, in the order in which they first ran."""

    def __init__(self) -> None:
        self.all: list[RawReducer] = []
        self.gathered: dict[int, tuple[Tensor, Tensor]] = {}  # id of a leaf gathered from all ranks -> (it, our part)
        self._number: dict[int, int] = {}

    def enter(self, module: nn.Module, args: Any) -> None:
        """Look at a module that is about to run."""
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return
        if not torch.is_grad_enabled():  # an evaluation: its samples send no gradients
            return
        found = _reducer(module, args)
        if found is None:
            return
        place = self._number.setdefault(id(module), len(self.all))
        if place == len(self.all):
            self.all.append(found)
        else:
            found.batch = _sum(self.all[place].batch, found.batch)
            self.all[place] = found

    def leave(self, module: nn.Module, output: Any) -> list[Tensor]:
        """Look at a module that has run; gives the gathered parameters, whose memory it is about to free.

        A batch that was no positional argument is read off the output.
        """
        place = self._number.get(id(module))
        if place is None:
            return []
        if self.all[place].batch is None:
            self.all[place].batch = _batch(output)
        found = [(leaf, parameter) for leaf, parameter in _leaves(module) if leaf is not parameter]
        self.gathered.update({id(leaf): (leaf, parameter) for leaf, parameter in found})
        return [leaf for leaf, _ in found]

    def leaves(self) -> dict[int, tuple[int, Tensor]]:
        """id of a leaf -> its reducer, and the parameter that it is or is gathered from."""
        found = {}
        for place, reducer in enumerate(self.all):
            for leaf, parameter in _leaves(reducer.module):
                found[id(leaf)] = (place, parameter)
        return found


def _reducer(module: nn.Module, args: Any) -> RawReducer | None:
    if isinstance(module, DistributedDataParallel):
        group = module.process_group
        ranks, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
        hooks = [getattr(hook, "__name__", type(hook).__name__) for hook, _ in module._comm_hooks]
        combines = bool(module.require_backward_grad_sync)
        return RawReducer(module, "all-reduce", rank, ranks, _batch(args), ", ".join(hooks), combines)
    if (group := _sharded_group(module)) is not None:
        mesh = group.mesh_info.mesh
        return RawReducer(module, "reduce-scatter", mesh.get_rank(), mesh.size(), _batch(args), "", group.reduce_grads)
    return None


def _sharded_group(module: nn.Module) -> Any:
    """The state that `fully_shard` has of a module with parameters of its own."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(module, getattr(fsdp, "FSDPModule", ())):
        return None
    state: Any = module._get_fsdp_state()  # type: ignore[operator]
    return state._fsdp_param_group


def _leaves(module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(module, DistributedDataParallel):
        ignored = module.parameters_to_ignore
        for name, parameter in named_parameters(module.module):
            if parameter.requires_grad and name not in ignored:
                yield parameter, parameter
    elif (group := _sharded_group(module)) is not None:
        for each in group.fsdp_params:
            if (leaf := getattr(each, "_unsharded_param", None)) is not None:
                yield leaf, each.sharded_param


def _batch(tree: Any) -> int | None:
    """The size of the first axis of the first tensor that has one."""
    return next((each.shape[0] for each in tensors_in(tree) if each.dim()), None)


def _sum(before: int | None, more: int | None) -> int | None:
    return before if more is None else more if before is None else before + more
