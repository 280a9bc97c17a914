"""Decides what is kept of a step, and puts placeholders on the tape for tensors whose numbers are not.

A large tensor that is not kept is measured soon after it was made and then dropped, so that PyTorch frees it when the
step itself has no more use for it. A *placeholder* takes its place on the tape: a tensor of the same shape and type on
the device `meta`, where tensors have no numbers. Code that asks for a shape works unchanged, and code that asks for
numbers finds `is_meta`. What else must be known of the tensor, its node and its memory, is in `Original`.

A module that is chosen to be kept may take a tensor that was evicted. It still lives, or the module could not take it;
so its numbers are copied then (`Retention.want`).

A tensor that lives is known by its id and a weak reference. A weak reference to its storage keeps the address from
being reused, so the memory of a freed tensor cannot be taken for that of a new one.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from chainrule.capture.data_parallel import own_part
from chainrule.capture.module_tree import named_modules, parameters_of
from chainrule.capture.policy import Policy
from chainrule.graph.opaque_tensors import has_strides, is_opaque, kind_of, shape_of, shaped_like, type_of
from chainrule.graph.statistics import Measured, fetch, in_place, is_dense, measure, prepare
from chainrule.graph.trees import map_leaves
from chainrule.graph.write_log import Earlier

T = TypeVar("T")

SMALL = 16 * 1024  # bytes up to which a tensor is always kept: its numbers are hardly more than its statistics


@dataclass(slots=True)
class Original:
    """What is known of the tensor that a placeholder stands for, by the names that a tensor has for it."""

    device: torch.device
    storage: int
    grad_fn: Any = None
    _base: Tensor | None = None
    output_nr: int = 0
    requires_grad: bool = False
    measured: Measured | None = None  # None: overwritten before it was measured
    earlier: Earlier | None = None  # its numbers, where a log keeps what was overwritten of them
    kind: str = ""  # what it is if its numbers are not ours to read


@dataclass(slots=True)
class _Living:
    """A tensor that lives, with its placeholder."""

    tensor: weakref.ref[Tensor]
    version: int
    placeholder: Tensor
    copied: int = -1  # the version of which a copy was made as well


@dataclass
class Placeholders:
    """All placeholders of a tape; answers the questions that a placeholder cannot answer by itself."""

    known: dict[int, Original] = field(default_factory=dict)  # id of a placeholder -> what it stands for
    _held: list[Tensor] = field(default_factory=list)  # the placeholders, or their ids would be reused
    _storages: dict[int, StorageWeakRef] = field(default_factory=dict)
    _without_memory: Iterator[int] = field(default_factory=lambda: count(1))
    _shapes: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)  # a placeholder of each shape that was met

    def placeholder(self, tensor: Tensor, measured: Measured | None, earlier: Earlier | None = None) -> Tensor:
        """A new placeholder for this tensor."""
        made = self.without_numbers(tensor)
        kind = "" if measured is not None or earlier is not None else kind_of(tensor)
        self.known[id(made)] = Original(
            tensor.device, self.storage_of(tensor), measured=measured, earlier=earlier, kind=kind
        )
        self._held.append(made)
        return made

    def read(self, tensor: Tensor) -> Tensor:
        """The numbers of what a log keeps; any other tensor, and what is lost, is itself."""
        original = self.known.get(id(tensor))
        data = None if original is None or original.earlier is None else original.earlier.read()
        return tensor if data is None else data

    def without_numbers(self, tensor: Tensor) -> Tensor:
        """On the device `meta`, of the same shape, strides and offset: a view is known by its place in its base.

        Taking `.data` of one of the same shape costs a fifth of making one; they share no memory, for there is none.
        """
        if tensor.layout is not torch.strided or tensor.is_quantized or not has_strides(tensor):
            return torch.empty(shape_of(tensor), dtype=type_of(tensor), device="meta")
        key = (tensor.size(), tensor.stride(), tensor.storage_offset(), tensor.dtype)
        known = self._shapes.get(key)
        if known is None:
            known = self._shapes[key] = shaped_like(tensor)
        return known.data

    def storage_of(self, tensor: Tensor) -> int:
        """A number that no other memory has, until `forget_storages`."""
        try:
            storage = tensor.untyped_storage()
        except Exception:  # as of `tape.storage_of`
            return -next(self._without_memory)
        key = int(storage._cdata)
        if key not in self._storages:
            self._storages[key] = StorageWeakRef(storage)
        return key

    def forget_storages(self) -> None:
        """The step is over: addresses may be reused."""
        self._storages.clear()
        self._shapes.clear()

    def fetch(self) -> None:
        """Bring all statistics from their devices, in one transfer each."""
        fetch({id(each.measured): each.measured for each in self.known.values() if each.measured is not None}.values())


class Retention:
    """Decides what is kept while the step runs, and makes placeholders for the rest."""

    def __init__(self, policy: Policy, placeholders: Placeholders) -> None:
        self.policy = policy
        self.placeholders = placeholders
        self.left = policy.memory  # bytes that may still be kept
        self.chosen = False  # whether what runs now is kept whatever the rest is
        self.keeps_leaves = False  # whether what an optimizer overwrites is kept: the step may be recomputed
        self.unmet = set(policy.patterns)  # patterns that have named no module yet
        self._chosen_modules: set[int] = set()
        self._chosen_leaves: dict[int, weakref.ref[Tensor]] = {}
        self._wanted: set[int] = set()  # ids of what chosen modules take and give, or of the placeholders for it
        self._copies: dict[tuple[Any, ...], Tensor] = {}  # of what they take, by `_part`
        self._living_by_id: dict[int, _Living] = {}
        self._measured: dict[tuple[Any, ...], Measured | None] = {}  # by `_part`
        self._uncounted: Counter[int] = Counter()  # by memory: writes that no version counts
        # (tensor, placeholder, position of its operation) of results whose nodes have not been asked for
        self.pending: list[tuple[Tensor, Tensor, int]] = []
        self.late: list[tuple[weakref.ref[Tensor], Tensor, int]] = []  # as `pending`, of an open autograd.Function
        if not policy.everything:
            prepare()

    @property
    def is_strict(self) -> bool:
        """Whether anything is not kept."""
        return not self.policy.everything or self.left < 0

    @property
    def has_evicted(self) -> bool:
        """Whether a placeholder may stand for a tensor that is met again."""
        return bool(self._living_by_id)

    def choose_among(self, root: torch.nn.Module) -> None:
        """Find the modules that the patterns name; a pattern chooses the modules inside too, and all parameters.

        `h.3.*` chooses the block `h.3` and all in it: the block itself makes inputs of its parts.
        """
        for path, module in named_modules(root) if self.policy.patterns else ():
            patterns = self.policy.patterns
            named = {each for each in patterns if fnmatchcase(path, each) or fnmatchcase(path, each.removesuffix(".*"))}
            if named:
                self.unmet -= named
                self._chosen_modules.add(id(module))
                for leaf in parameters_of(module):
                    self.choose_leaf(leaf)

    def choose_leaf(self, leaf: Tensor) -> None:
        """Keep this leaf and its gradient."""
        self._chosen_leaves[id(leaf)] = weakref.ref(leaf)

    def is_chosen(self, module: torch.nn.Module) -> bool:
        """Whether a pattern names this module."""
        return id(module) in self._chosen_modules

    def is_wanted(self, *tensors: Tensor) -> bool:
        """Whether a chosen module takes or gives one of these, which are on the tape."""
        return bool(self._wanted) and any(id(each) in self._wanted for each in tensors)

    def is_kept(self, tensor: Tensor, wanted: bool = False) -> bool:
        """Whether this tensor's numbers are kept, because they are `wanted` or there is room; counts those that are."""
        size = tensor.nbytes if tensor.layout is torch.strided else 0
        if size <= SMALL:
            return True
        if not (self.policy.everything or self.chosen or wanted) or self.left < 0:
            return False
        self.left -= size
        return self.left >= 0

    def of(self, tree: Any) -> Any:
        """Arguments or results with each tensor that is not kept replaced by its placeholder."""
        return map_leaves(self._leaf, tree) if self._living_by_id else tree

    def _leaf(self, leaf: Any) -> Any:
        known = self._living_by_id.get(id(leaf))
        return leaf if known is None or known.tensor() is not leaf else known.placeholder

    def result(self, out: Any, viewed: Tensor | None, written: Iterable[Tensor], position: int) -> Any:
        """The result of the operation at `position`; what is not kept of it is measured and replaced.

        `viewed` is the operand that the result is a view of, `written` are those that the operation wrote to.
        """

        def replaced(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            own = self._known(leaf)
            if own is None and any(leaf is each for each in written):
                return leaf  # the user's own, or copied before the write
            return self._result(leaf, own, viewed, position)

        return map_leaves(replaced, out, lists=True)

    def _result(self, tensor: Tensor, known: _Living | None, viewed: Tensor | None, position: int) -> Tensor:
        if known is not None:  # overwritten in place, or returned unchanged
            placeholder = known.placeholder
            if has_strides(tensor) and placeholder.shape != tensor.shape:  # `transpose_` and the like
                placeholder.as_strided_(tensor.size(), tensor.stride())
            if known.version != self._version(tensor):
                known.version = self._version(tensor)
                self.placeholders.known[id(placeholder)].measured = self._statistics(tensor)
        else:
            whole = None if viewed is None else self._known(viewed)
            if whole is None and (viewed is not None or self.is_kept(tensor)):
                return tensor  # a view of what is kept, or of the user's own, takes no memory
            placeholder = self._evicted(tensor)
        self.pending.append((tensor, placeholder, position))
        return placeholder

    def _known(self, tensor: Tensor) -> _Living | None:
        known = self._living_by_id.get(id(tensor))
        return known if known is not None and known.tensor() is tensor else None

    def _evicted(self, tensor: Tensor, measured: bool = True) -> Tensor:
        placeholder = self.placeholders.placeholder(tensor, self._statistics(tensor) if measured else None)
        self._living_by_id[id(tensor)] = _Living(weakref.ref(tensor), self._version(tensor), placeholder)
        return placeholder

    def want(self, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        """A chosen module takes or gives this tensor: keep its numbers, and the gradient that arrives at it.

        If it was evicted already, gives the placeholder and a copy of the numbers, which the module is about to use or
        has just made.
        """
        known = self._known(tensor)
        self.hold((tensor if known is None else known.placeholder,))
        if known is None:
            return None
        version = self._version(tensor)
        if version != known.version or version == known.copied or tensor.is_meta or not self.is_kept(tensor, True):
            return None
        numbers = self._copied(tensor)
        if numbers is None:
            return None
        known.copied = version
        return known.placeholder, numbers

    def hold(self, several: Iterable[Tensor | None]) -> None:
        """Keep the numbers of these, which are on the tape, also when they are about to be overwritten."""
        self._wanted.update(id(each) for each in several if each is not None)

    def _copied(self, tensor: Tensor) -> Tensor | None:
        """A copy of the numbers; tensors that show the same numbers in another shape (a layer's input) share it."""
        own = own_part(tensor)
        if is_opaque(own):
            return None
        own = own.detach()
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
        """The gradients that arrived at a node. They are the values' gradients, and measured if they are not kept."""
        return tuple([each if each is None else self._gradient(each, True) for each in several])

    def sent_on(self, several: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """The gradients that a node sends on: contributions to what arrives elsewhere, and is measured there."""
        return tuple([each if each is None else self._gradient(each, False) for each in several])

    def _gradient(self, tensor: Tensor, arrives: bool) -> Tensor:
        if tensor.is_meta or (tensor.layout is torch.strided and tensor.nbytes <= SMALL and tensor._base is None):
            return tensor  # the usual case among small tensors; or what was kept before a write, measured already
        known = self._known(tensor)
        if self.chosen and (self.is_wanted(tensor) or self.is_kept(tensor)):
            self.hold((tensor,))
            return tensor
        if known is not None and known.version == self._version(tensor):
            original = self.placeholders.known[id(known.placeholder)]
            if arrives and original.measured is None:
                original.measured = self._statistics(tensor)
            return known.placeholder
        if not self.is_kept(tensor):
            return self._evicted(tensor, measured=arrives)
        if not self.is_strict or tensor.layout is not torch.strided or is_opaque(tensor):
            return tensor
        if tensor.untyped_storage().nbytes() > max(SMALL, tensor.nbytes):
            return tensor.clone()  # a part of a larger tensor must not hold all of it
        return tensor

    def _statistics(self, tensor: Tensor) -> Measured | None:
        """Measured once for all tensors that show the same numbers of one memory, in whatever shape."""
        if is_opaque(tensor) or tensor.is_meta:  # the user's own
            return None
        if tensor.layout is not torch.strided or not is_dense(tensor) or tensor.is_inference():  # has no version
            return within_memory(lambda: measure(tensor))
        key = self._part(tensor)
        if key not in self._measured:
            self._measured[key] = in_place(tensor) or within_memory(lambda: measure(tensor))
        return self._measured[key]

    def _version(self, tensor: Tensor) -> int:
        counted = 0 if tensor.is_inference() else tensor._version
        return counted + (self._uncounted[self.placeholders.storage_of(tensor)] if self._uncounted else 0)

    def count_write(self, tensor: Tensor) -> None:
        """Count a write that the version of the tensor does not."""
        self._uncounted[self.placeholders.storage_of(tensor)] += 1

    def _part(self, tensor: Tensor) -> tuple[Any, ...]:
        """Identifies the numbers of a dense tensor: the memory, its version, and the part of it."""
        part = (int(tensor.storage_offset()), tensor.numel(), tensor.dtype, tensor.is_neg())
        return (self.placeholders.storage_of(tensor), self._version(tensor), *part)

    def copy(self, tensor: Tensor, measured: bool = True) -> Tensor:
        """A copy of what is about to be overwritten; a placeholder with statistics where it is not kept.

        The state of an optimizer need not be `measured`: nothing asks for its statistics before the step.
        """
        if id(tensor) in self.placeholders.known:  # a placeholder, whose tensor is about to get other numbers
            return self._split_off(tensor)
        chosen = self._is_of_chosen_leaf(tensor) or (self.keeps_leaves and is_trained_leaf(tensor))
        if chosen or self.is_kept(tensor, self.is_wanted(tensor)):
            copied = within_memory(lambda: tensor.detach().clone())
            if copied is not None:
                return copied
        return self.placeholders.placeholder(tensor, self._statistics(tensor) if measured else None)

    def _is_of_chosen_leaf(self, tensor: Tensor) -> bool:
        """Whether it is a parameter of a chosen module, or its gradient."""
        if id(tensor) in self._chosen_leaves:
            return True
        gradients = (leaf.grad for known in self._chosen_leaves.values() if (leaf := known()) is not None)
        return any(tensor is each for each in gradients)

    def end(self) -> None:
        """The step is over: no tensor will be met again."""
        self._living_by_id.clear()
        self._measured.clear()
        self._copies.clear()
        self.late.clear()
        self.placeholders.forget_storages()

    def _split_off(self, placeholder: Tensor) -> Tensor:
        """A new placeholder for what this one stood for until now; this one stands for something not yet measured."""
        known = self.placeholders.known[id(placeholder)]
        earlier = self.placeholders.without_numbers(placeholder)
        self.placeholders.known[id(earlier)] = Original(known.device, known.storage, measured=known.measured)
        self.placeholders._held.append(earlier)
        known.measured = None
        return earlier

    def take_matched(self, between: bool) -> Iterator[tuple[Any, Tensor, int, int]]:
        """The nodes that autograd has made meanwhile: (node, placeholder, output number, position of the operation).

        Views of overwritten memory wait until no call into PyTorch is running (`between`). Others must not wait: the
        write that comes next would give them another node first.
        """
        pending, self.pending = self.pending, []
        if not torch.is_grad_enabled():  # the results of an autograd.Function get their nodes when it returns
            self.late += [(weakref.ref(t), s, p) for t, s, p in pending if t._base is None and t.grad_fn is None]
        elif self.late and between:
            late, self.late = [(known(), s, p) for known, s, p in self.late], []
            pending = [*((t, s, p) for t, s, p in late if t is not None), *pending]
        for tensor, placeholder, position in pending:
            if not between and tensor._base is not None and self._is_written(tensor):
                self.pending.append((tensor, placeholder, position))
                continue
            known = self.placeholders.known[id(placeholder)]
            known.requires_grad = tensor.requires_grad
            known._base = None if tensor._base is None else self.of(tensor._base)
            known.grad_fn, known.output_nr = tensor.grad_fn, tensor.output_nr
            if known.grad_fn is not None:
                yield known.grad_fn, placeholder, known.output_nr, position

    def forget(self, storage: int) -> None:
        """The tensors in this memory are new leaves from here on: no placeholder stands for them any more."""
        for identity, known in list(self._living_by_id.items()):
            if self.placeholders.known[id(known.placeholder)].storage == storage:
                del self._living_by_id[identity]

    def _is_written(self, tensor: Tensor) -> bool:
        """Whether its memory was written to since it was measured."""
        known = self._known(tensor)
        return known is None or known.version != self._version(tensor)


def is_trained_leaf(tensor: Tensor) -> bool:
    """Whether gradients end in this tensor.

    A view of a trained tensor that was made under `no_grad` calls itself a leaf, and never gets a gradient.
    """
    try:
        trained = tensor.is_leaf and tensor.requires_grad
        return trained and not (tensor._base is not None and tensor._base.requires_grad)
    except RuntimeError:  # a view made under `no_grad` whose base was written to with gradients on
        return False


def within_memory(work: Callable[[], T]) -> T | None:
    """What `work` gives; None where the device has no memory left, because the user's step must go on."""
    try:
        return work()
    except MemoryError:
        return None
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return None
        raise
