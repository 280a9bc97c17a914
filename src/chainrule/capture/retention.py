"""What is kept of a step, and what stands on the tape for a tensor whose numbers are not.

A large tensor that is not to be kept is measured as soon as it is there, and then let go of: PyTorch frees it when the
step itself has no more use for it. Its place on the tape takes a *stand-in*: a tensor of the same shape and type on the
device `meta`, where tensors have no numbers. So everything that asks a tensor for its shape goes on as it did, and what
asks for numbers finds `is_meta`. What else must be known of a tensor, its node and its memory, stands in `Absent`.

A module that is chosen to be kept may take what has been let go of. It still lives, or the module could not take it; so
its numbers are copied, as what stood in the place of the stand-in up to then (`Keeper.want`).

While a tensor lives, it is known by its id and a weak reference; the memory of one that is gone is told apart from
another's at the same address by a weak reference to the storage, which keeps the address from being given away.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from chainrule.capture.data_parallel import own_part
from chainrule.errors import RecordingError
from chainrule.graph.single_pass import prepare
from chainrule.graph.statistics import Measured, fetch, in_place, is_dense, measure

T = TypeVar("T")

SMALL = 16 * 1024  # bytes up to which a tensor is always kept: its numbers are hardly more than its statistics
MEMORY = 4 * 2**30  # bytes of values and gradients that are kept by default


@dataclass(frozen=True)
class Keep:
    """How much of a step is kept: everything, statistics alone, or statistics but for modules that match a pattern.

    `memory` is the number of bytes from which on the rest is told by statistics.
    """

    everything: bool
    patterns: tuple[str, ...] = ()
    memory: float = float("inf")

    @classmethod
    def of(cls, keep: str | Sequence[str] | None, memory: int | None) -> Keep:
        """From the arguments of `record`. Raises RecordingError for what is neither."""
        if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 0):
            raise RecordingError(
                f"record(memory={memory!r}): the memory is a number of bytes, such as 2 * 2**30 for two gibibytes."
            )
        if keep is None:
            return cls(True, memory=default_memory() if memory is None else memory)
        limit = float("inf") if memory is None else memory
        if keep == "all" or keep == "statistics":
            return cls(keep == "all", memory=limit)
        if isinstance(keep, str) or not all(isinstance(each, str) for each in keep):
            raise RecordingError(
                f'record(keep={keep!r}): say "all", "statistics", or a list of patterns of module paths such as '
                '["h.3.*", "lm_head"].'
            )
        return cls(False, tuple(keep), limit)


def default_memory() -> int:
    """What is kept where nobody says how much: 4 GiB, or a quarter of the machine's memory where that is less."""
    try:
        return min(MEMORY, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)
    except (AttributeError, OSError, ValueError):  # not said by this system
        return MEMORY


@dataclass(slots=True)
class Absent:
    """What is known of a tensor for which a stand-in stands on the tape."""

    device: torch.device
    storage: int
    base: Tensor | None = None
    node: Any = None
    output_nr: int = 0
    requires_grad: bool = False
    measured: Measured | None = None  # None: overwritten before it was measured


@dataclass(slots=True)
class _Present:
    """A tensor that lives, with what stands for it."""

    tensor: weakref.ref[Tensor]
    version: int
    stand_in: Tensor
    copied: int = -1  # the version of which there is a copy besides


@dataclass
class Absentees:
    """All stand-ins of a tape. Every question that a stand-in cannot answer by itself is asked here."""

    known: dict[int, Absent] = field(default_factory=dict)  # id of a stand-in -> what it stands for
    _held: list[Tensor] = field(default_factory=list)  # the stand-ins, or their ids would be given away
    _storages: dict[int, StorageWeakRef] = field(default_factory=dict)
    _shapes: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)  # a stand-in of each shape that was met

    def stand_in(self, tensor: Tensor, measured: Measured | None) -> Tensor:
        """A tensor without numbers, in the place of this one."""
        made = self.without_numbers(tensor)
        self.known[id(made)] = Absent(tensor.device, self.storage_of(tensor), measured=measured)
        self._held.append(made)
        return made

    def without_numbers(self, tensor: Tensor) -> Tensor:
        """On the device `meta`, of the same shape, strides and offset: a view is known by where in its base it stands.

        One of the same shape gives another at a fifth of the price of a new one; there is no memory that they share.
        """
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():  # our own modes may be on
            if tensor.layout is not torch.strided:
                return torch.empty(tensor.size(), dtype=tensor.dtype, device="meta")
            key = (tensor.size(), tensor.stride(), tensor.storage_offset(), tensor.dtype)
            known = self._shapes.get(key)
            if known is None:
                known = self._shapes[key] = _shaped(tensor)
            return known.data

    def storage_of(self, tensor: Tensor) -> int:
        """A number that no other memory has, until `forget_storages`."""
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        if key not in self._storages:
            self._storages[key] = StorageWeakRef(storage)
        return key

    def forget_storages(self) -> None:
        """Nothing new can come: no address need be kept from being given away."""
        self._storages.clear()
        self._shapes.clear()

    def fetch(self) -> None:
        """Bring all figures from the devices that they are on, at once."""
        fetch({id(each.measured): each.measured for each in self.known.values() if each.measured is not None}.values())

    def measured(self, stand_in: Tensor) -> Measured | None:
        """The figures of what it stands for, where they are known."""
        known = self.known.get(id(stand_in))
        return None if known is None else known.measured


class Keeper:
    """Decides what is kept while the step runs, and puts stand-ins in the place of the rest."""

    def __init__(self, keep: Keep, absentees: Absentees) -> None:
        self.keep = keep
        self.absentees = absentees
        self.left = keep.memory  # bytes that may still be kept
        self.chosen = False  # whether what runs now is to be kept whatever the rest is
        self.keeps_leaves = False  # whether what an optimizer overwrites is to be: the step is perhaps played again
        self.unmet = set(keep.patterns)  # those that have named no module yet
        self._chosen_modules: set[int] = set()
        self._chosen_leaves: dict[int, weakref.ref[Tensor]] = {}
        self._wanted: set[int] = set()  # ids of what stands on the tape for what chosen modules take and give
        self._copies: dict[tuple[Any, ...], Tensor] = {}  # of what they take, by `_part`
        self._present: dict[int, _Present] = {}
        self._measured: dict[tuple[Any, ...], Measured | None] = {}  # by `_part`
        # (tensor, stand-in, position of its operation) that autograd has given no node yet
        self.pending: list[tuple[Tensor, Tensor, int]] = []
        self.late: list[tuple[weakref.ref[Tensor], Tensor, int]] = []  # as `pending`, of an open autograd.Function
        if not keep.everything:
            prepare()

    @property
    def is_strict(self) -> bool:
        """Whether there is anything that is not kept."""
        return not self.keep.everything or self.left < 0

    @property
    def has_let_go(self) -> bool:
        """Whether a stand-in may stand for a tensor that is met again."""
        return bool(self._present)

    def choose_among(self, root: torch.nn.Module) -> None:
        """Find the modules that the patterns name; with one go all that stand inside it, and their parameters.

        `h.3.*` is the block `h.3` and all in it, as everywhere: without what the block itself adds up, the inputs of
        its parts would be missing.
        """
        for path, module in root.named_modules() if self.keep.patterns else ():
            named = {
                each
                for each in self.keep.patterns
                if fnmatchcase(path, each) or fnmatchcase(path, each.removesuffix(".*"))
            }
            if named:
                self.unmet -= named
                self._chosen_modules.add(id(module))
                for leaf in module.parameters():
                    self.choose_leaf(leaf)

    def choose_leaf(self, leaf: Tensor) -> None:
        """Keep this leaf, and its gradient, whatever the rest is."""
        self._chosen_leaves[id(leaf)] = weakref.ref(leaf)

    def is_chosen(self, module: torch.nn.Module) -> bool:
        """Whether a pattern names this module."""
        return id(module) in self._chosen_modules

    def is_wanted(self, *tensors: Tensor) -> bool:
        """Whether one of these, which stand on the tape, is what a chosen module takes or gives."""
        return bool(self._wanted) and any(id(each) in self._wanted for each in tensors)

    def is_kept(self, tensor: Tensor, wanted: bool = False) -> bool:
        """Whether this tensor's numbers stay, and always where they are `wanted`; counts them where they do."""
        size = tensor.nbytes if tensor.layout is torch.strided else 0
        if size <= SMALL:
            return True
        if not (self.keep.everything or self.chosen or wanted) or self.left < 0:
            return False
        self.left -= size
        return self.left >= 0

    def of(self, tree: Any) -> Any:
        """A tree of arguments or results with stand-ins in the place of tensors that are not kept."""
        if not self._present:
            return tree
        if isinstance(tree, Tensor):
            known = self._present.get(id(tree))
            return tree if known is None or known.tensor() is not tree else known.stand_in
        if isinstance(tree, tuple) and type(tree) is not torch.Size:  # PyTorch's own named ones too
            return tuple(self.of(each) for each in tree)
        if type(tree) is list:
            return [self.of(each) for each in tree]
        if type(tree) is dict:
            return {key: self.of(each) for key, each in tree.items()}
        return tree

    def result(self, out: Any, viewed: Tensor | None, written: Iterable[Tensor], position: int) -> Any:
        """What the operation at `position` gave, measured and replaced where it is not kept.

        `viewed` is the operand that the result is a view of, `written` are those that the operation wrote to.
        """
        if isinstance(out, Tensor):
            own = self._living(out)
            if own is None and any(out is each for each in written):
                return out  # the user's own, or kept before the write
            return self._result(out, own, viewed, position)
        return [self.result(each, viewed, written, position) for each in out] if isinstance(out, (tuple, list)) else out

    def _result(self, tensor: Tensor, known: _Present | None, viewed: Tensor | None, position: int) -> Tensor:
        if known is not None:  # overwritten in place, or handed through
            stand_in = known.stand_in
            if stand_in.shape != tensor.shape:  # `transpose_` and the like
                with torch._C._DisableTorchDispatch():
                    stand_in.as_strided_(tensor.size(), tensor.stride())
            if known.version != _version(tensor):
                known.version = _version(tensor)
                self.absentees.known[id(stand_in)].measured = self._figures(tensor)
        else:
            whole = None if viewed is None else self._living(viewed)
            if whole is None and (viewed is not None or self.is_kept(tensor)):
                return tensor  # a view of what is kept, or of the user's own, takes no more memory
            stand_in = self._absent(tensor)
        self.pending.append((tensor, stand_in, position))
        return stand_in

    def _living(self, tensor: Tensor) -> _Present | None:
        known = self._present.get(id(tensor))
        return known if known is not None and known.tensor() is tensor else None

    def _absent(self, tensor: Tensor, measured: bool = True) -> Tensor:
        stand_in = self.absentees.stand_in(tensor, self._figures(tensor) if measured else None)
        self._present[id(tensor)] = _Present(weakref.ref(tensor), _version(tensor), stand_in)
        return stand_in

    def want(self, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        """A chosen module takes or gives this tensor: its numbers, and the gradient that arrives at it, are kept.

        Where they have been let go of already, the stand-in and a copy of the numbers as they are now, which the module
        is about to use or has just made.
        """
        known = self._living(tensor)
        self.hold((tensor if known is None else known.stand_in,))
        if known is None:
            return None
        version = _version(tensor)
        if version != known.version or version == known.copied or tensor.is_meta or not self.is_kept(tensor, True):
            return None
        numbers = self._copied(tensor)
        if numbers is None:
            return None
        known.copied = version
        return known.stand_in, numbers

    def hold(self, several: Iterable[Tensor | None]) -> None:
        """Keep the numbers of what stands on the tape, this, also when they are about to be overwritten."""
        self._wanted.update(id(each) for each in several if each is not None)

    def _copied(self, tensor: Tensor) -> Tensor | None:
        """A copy of the numbers, one for all tensors that show the same ones in another shape (a layer's input)."""
        own = own_part(tensor).detach()
        if not own.is_contiguous() or own.is_conj() or own.is_inference():
            return within_memory(own.clone)
        key = self._part(own)
        if key not in self._copies:
            copied = within_memory(own.clone)
            if copied is None:
                return None
            self._copies[key] = copied
        return self._copies[key].view(own.shape)

    def arrived(self, several: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """The gradients that arrived at a node: those of values, which are measured where they are not kept."""
        return tuple([each if each is None else self._gradient(each, True) for each in several])

    def sent_on(self, several: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """The gradients that a node sends on: shares of what will arrive, and be measured, where they go."""
        return tuple([each if each is None else self._gradient(each, False) for each in several])

    def _gradient(self, tensor: Tensor, arrives: bool) -> Tensor:
        if tensor.layout is torch.strided and tensor.nbytes <= SMALL and tensor._base is None:
            return tensor  # the usual case among small tensors
        known = self._living(tensor)
        if self.chosen and (self.is_wanted(tensor) or self.is_kept(tensor)):
            self.hold((tensor,))
            return tensor
        if known is not None and known.version == _version(tensor):
            figures = self.absentees.known[id(known.stand_in)]
            if arrives and figures.measured is None:
                figures.measured = self._figures(tensor)
            return known.stand_in
        if not self.is_kept(tensor):
            return self._absent(tensor, measured=arrives)
        if not self.is_strict or tensor.layout is not torch.strided:
            return tensor
        if tensor.untyped_storage().nbytes() > max(SMALL, tensor.nbytes):
            with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
                return tensor.clone()  # a part of a larger tensor must not hold all of it
        return tensor

    def _figures(self, tensor: Tensor) -> Measured | None:
        """Measured once, however many tensors show the same numbers of one memory, in whatever shape."""
        if tensor.is_meta:  # the user's own: there are no numbers
            return None
        if tensor.layout is not torch.strided or not is_dense(tensor) or tensor.is_inference():  # has no version
            return within_memory(lambda: measure(tensor))
        key = self._part(tensor)
        if key not in self._measured:
            self._measured[key] = in_place(tensor) or within_memory(lambda: measure(tensor))
        return self._measured[key]

    def _part(self, tensor: Tensor) -> tuple[Any, ...]:
        """What the numbers of a dense tensor are known by: the memory, its version, and the part of it."""
        part = (int(tensor.storage_offset()), tensor.numel(), tensor.dtype, tensor.is_neg())
        return (self.absentees.storage_of(tensor), _version(tensor), *part)

    def copy(self, tensor: Tensor, measured: bool = True) -> Tensor:
        """A copy of what is about to be overwritten; a stand-in with its figures where it is not kept.

        What an optimizer remembers need not be measured: nobody asks for its figures before the step.
        """
        if id(tensor) in self.absentees.known:  # a stand-in, whose tensor gets other numbers now
            return self._succeeded(tensor)
        chosen = self._is_of_chosen_leaf(tensor) or (self.keeps_leaves and is_trained_leaf(tensor))
        if chosen or self.is_kept(tensor, self.is_wanted(tensor)):
            copied = within_memory(lambda: tensor.detach().clone())
            if copied is not None:
                return copied
        return self.absentees.stand_in(tensor, self._figures(tensor) if measured else None)

    def _is_of_chosen_leaf(self, tensor: Tensor) -> bool:
        """Whether it is a parameter of a chosen module, or its gradient."""
        if id(tensor) in self._chosen_leaves:
            return True
        gradients = (leaf.grad for known in self._chosen_leaves.values() if (leaf := known()) is not None)
        return any(tensor is each for each in gradients)

    def end(self) -> None:
        """The step is over: no tensor will be met again."""
        self._present.clear()
        self._measured.clear()
        self._copies.clear()
        self.late.clear()
        self.absentees.forget_storages()

    def _succeeded(self, stand_in: Tensor) -> Tensor:
        """Another stand-in for what it stood for up to now; what it stands for next has not been measured."""
        known = self.absentees.known[id(stand_in)]
        earlier = self.absentees.without_numbers(stand_in)
        self.absentees.known[id(earlier)] = Absent(known.device, known.storage, measured=known.measured)
        self.absentees._held.append(earlier)
        known.measured = None
        return earlier

    def settle(self, between: bool) -> Iterator[tuple[Any, Tensor, int, int]]:
        """The nodes that autograd has made meanwhile: (node, stand-in, output number, position of the operation).

        Views of what was written to wait until no call into PyTorch is running (`between`); others must not, or the
        write that is about to be made would give them another node first.
        """
        pending, self.pending = self.pending, []
        if not torch.is_grad_enabled():  # the results of an autograd.Function get their nodes when it has returned
            self.late += [(weakref.ref(t), s, p) for t, s, p in pending if t._base is None and t.grad_fn is None]
        elif self.late and between:
            late, self.late = [(known(), s, p) for known, s, p in self.late], []
            pending = [*((t, s, p) for t, s, p in late if t is not None), *pending]
        for tensor, stand_in, position in pending:
            if not between and tensor._base is not None and self._is_written(tensor):
                self.pending.append((tensor, stand_in, position))
                continue
            known = self.absentees.known[id(stand_in)]
            known.requires_grad = tensor.requires_grad
            known.base = None if tensor._base is None else self.of(tensor._base)
            known.node, known.output_nr = tensor.grad_fn, tensor.output_nr
            if known.node is not None:
                yield known.node, stand_in, known.output_nr, position

    def _is_written(self, tensor: Tensor) -> bool:
        """Whether its memory was written to since it was measured."""
        known = self._living(tensor)
        return known is None or known.version != _version(tensor)


def is_trained_leaf(tensor: Tensor) -> bool:
    """Whether gradients end in this tensor.

    A view of a trained tensor that is made under `no_grad` says so of itself, and never gets one.
    """
    try:
        trained = tensor.is_leaf and tensor.requires_grad
        return trained and not (tensor._base is not None and tensor._base.requires_grad)
    except RuntimeError:  # not said of a view made under `no_grad` whose base was written to with gradients on
        return False


def within_memory(work: Callable[[], T]) -> T | None:
    """What `work` gives; None where the device has no memory left for it: the user's step must go on."""
    try:
        return work()
    except MemoryError:
        return None
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return None
        raise


def _shaped(like: Tensor) -> Tensor:
    made = torch.empty_strided(like.size(), like.stride(), dtype=like.dtype, device="meta")
    if offset := like.storage_offset():
        size = offset * made.itemsize + made.untyped_storage().nbytes()
        memory = torch.empty(size, dtype=torch.uint8, device="meta").untyped_storage()
        made = torch.empty(0, dtype=made.dtype, device="meta").set_(memory, offset, made.size(), made.stride())
    return made


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
