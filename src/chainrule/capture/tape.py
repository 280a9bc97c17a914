"""The tape: what happened while the user's code ran, raw and in order, and copies of what was overwritten on the way.

The recorder appends to it and `assemble` reads it. It holds tensors, not numbers: a tensor object is the same one from
its first operation to its last, and its data is copied only if something is about to write to its memory.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from chainrule.capture.borrowed import Loan, Loans
from chainrule.capture.data_parallel import RawArrival, Reducers, own_part
from chainrule.capture.retention import Absentees, Keeper, is_trained_leaf, within_memory
from chainrule.graph.source import Site
from chainrule.graph.statistics import Statistics

# Their results share the operand's memory, and their schemas do not own up to it.
_UNDECLARED_VIEWS = frozenset(
    f"aten::{name}" for name in ("_unsafe_view", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes")
)


@dataclass(frozen=True, slots=True)
class Traits:
    """What the recorder must know of an operation before it runs.

    What it overwrites, whether its result is a view, whether it draws random numbers, and whether it is mere
    bookkeeping (the profiler's marks).
    """

    writes: tuple[tuple[int, str], ...]
    views: bool
    random: bool
    silent: bool

    @classmethod
    @cache
    def of(cls, func: Any) -> Traits:
        """Read the traits off the operation's schema."""
        arguments = func._schema.arguments
        writes = tuple(
            (i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write
        )
        if "batch_norm" in func._schema.name:  # its schema does not own up to updating the running statistics
            writes += tuple((i, a.name) for i, a in enumerate(arguments) if a.name in ("running_mean", "running_var"))
        views = func._schema.name in _UNDECLARED_VIEWS or any(
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        )
        return cls(writes, views, torch.Tag.nondeterministic_seeded in func.tags, func.namespace == "profiler")

    def written(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        """The arguments that the operation will overwrite."""
        for position, name in self.writes:
            yield args[position] if position < len(args) else kwargs.get(name)


@dataclass(slots=True)
class RawCall:
    """One torch function that the user's code called, and the stretch of operations that ran for it."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any
    site: Site | None
    module: int | None
    first: int
    last: int
    custom: int | None = None
    error: str | None = None


@dataclass(slots=True)
class RawModule:
    """One run of one module's forward. `parent` is the run that it happened in."""

    module: torch.nn.Module
    parent: int | None
    site: Site | None
    first: int
    training: bool
    output: Any = None
    last: int | None = None


@dataclass(slots=True)
class RawFunction:
    """One `autograd.Function.apply`, found on the stack while the operations of its forward ran."""

    cls: type
    arguments: tuple[Any, ...]
    site: Site | None
    module: int | None
    first: int
    last: int


@dataclass(slots=True)
class RawNode:
    """An autograd node; `operation` and `outputs` tie it to what made it. Its edges are known once it is reached."""

    node: Any
    operation: int | None
    outputs: dict[int, Tensor]
    edges: tuple[tuple[Any, int], ...] = ()
    view_from: int | None = None  # made anew for a view, after a write to its memory, from this position on
    remade: Tensor | None = None  # the view that has this node, where an operation ran to make it
    leaves: tuple[tuple[int, Tensor], ...] = ()  # (position, leaf) of gradients that must not be held in this pass
    hooked: bool = False
    lends: bool = False  # what arrives here is handed on to a leaf, as another view of the same memory


Version = tuple[Tensor, int]
"""A tensor as it was when so many copies of it had been made (`Tape.version`)."""


@dataclass(slots=True)
class RawBackward:
    """One backward call: its pass number, its position in the forward operations, and `.grad` before and after."""

    function: str
    site: Site | None
    position: int
    roots: tuple[Tensor, ...]
    accumulates: bool  # into `.grad`; `torch.autograd.grad` does not
    before: dict[int, Tensor]
    straight: dict[int, tuple[tuple[int, Tensor], ...]]  # node -> (position, leaf) of gradients that were not held
    task: int | None = None  # autograd's number of the pass
    after: dict[int, Version | None] = field(default_factory=dict)
    given: list[tuple[Tensor, Version]] = field(default_factory=list)  # what `autograd.grad` returned, and of what
    error: str | None = None


@dataclass(slots=True)
class RawUpdate:
    """One `optimizer.step()`: parameters, gradients, options and state before; parameters and state after."""

    optimizer: Optimizer
    position: int
    site: Site | None
    groups: list[tuple[dict[str, Any], list[Tensor]]]
    before: list[Tensor]
    gradients: list[Version | None]
    states: list[dict[str, Any]]
    after: list[Version] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)  # of the parameters before, where they are not all kept
    moved: list[Statistics] = field(default_factory=list)  # what the step added to them


class Tape:
    """What happened, raw and in order. Plain lists: the recorder appends, `assemble` reads."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any] | None, Any, int | None, Tensor | None]] = []
        self.calls: list[RawCall] = []
        self.modules: list[RawModule] = []
        self.functions: list[RawFunction] = []
        self.nodes: list[RawNode] = []
        self.number_of: dict[Any, int] = {}  # autograd node -> index into nodes
        self.passages: list[tuple[int, int, tuple[Any, ...], tuple[Any, ...]]] = []
        self.backwards: list[RawBackward] = []
        self.updates: list[RawUpdate] = []
        self.writes: list[tuple[int, int, str, Site | None]] = []  # (position, id of .grad, function, site)
        self.replaced: list[tuple[int, Tensor, int]] = []  # by `.data =`: (position, tensor, how many copies are older)
        self.gradients: dict[int, Tensor] = {}  # id of a .grad -> its parameter
        self.copies: dict[int, list[tuple[int, Tensor]]] = {}  # id of a tensor -> (position, its data before a write)
        self.scope: dict[int, tuple[str, Tensor]] = {}  # id of a tensor -> the caller's name of it at the end
        self.names_of_modules: dict[int, str] = {}
        self.models: list[torch.nn.Module] = []  # known to be whole models, also where only parts of them are called
        self.reducers = Reducers()
        self.arrivals: list[RawArrival] = []
        self.error: str | None = None
        self.error_site: Site | None = None
        self.shared = False  # whether memory with several tensors in it was ever overwritten
        self.absentees = Absentees()
        self.keeper: Keeper | None = None  # None: everything is kept
        self.lent: dict[int, Loan] = {}  # value of a leaf that was not kept -> where its owner has it (`assemble`)
        self._lent: dict[int, Loan] = {}  # the same by the id of its stand-in
        self._loans = Loans()
        self._held: list[Tensor] = []
        self._made: set[int] = set()  # ids of the operations' results; what else they take is a leaf
        self._entered: set[int] = set()  # ids of the tensors in _storages
        self._sharing: set[int] = set()  # ids of all that were ever in it: used again, they are entered again
        self._storages: dict[int, list[Tensor]] = {}  # memory -> tensors in it, since it was copied last
        self._leaves: dict[int, Tensor] = {}
        self._found = 0
        self._scanned = [0, 0, 0]

    # -- copies of what is overwritten --------------------------------------------------------------------------------

    def overwritten(self, tensors: Iterable[Tensor], seen: bool = True) -> list[Tensor]:
        """Copy these tensors and all that was recorded of their memory: it is about to be overwritten.

        `seen` tells that the tensors are the caller's own, and known; otherwise one that no operation has met may share
        its memory with anything that was recorded (`x.data`).
        """
        tensors = list(tensors)
        if not tensors:
            return []
        self._scan()
        if not seen and any(id(tensor) not in self._entered and id(tensor) not in self._made for tensor in tensors):
            for _, args, kwargs, out, _, _ in self.operations:
                self._enter(tensors_in((args, kwargs, out)))
        self._entered.difference_update(map(id, tensors))
        self._enter(tensors)
        self._copy(tensors)
        return [self.copies[id(tensor)][-1][1] for tensor in tensors]

    def want(self, tensors: Iterable[Tensor], position: int) -> None:
        """Keep what a chosen module takes at this position, or gives before it, though it may have been let go of."""
        assert self.keeper is not None
        for tensor in tensors:
            if is_trained_leaf(tensor):
                self.keeper.choose_leaf(tensor)
            if (found := self.keeper.want(tensor)) is not None:
                stand_in, numbers = found
                self.copies.setdefault(id(stand_in), []).append((position, numbers))

    def version(self, tensor: Tensor) -> Version:
        """The tensor as it is now, whatever overwrites it later; it may be one that no operation has met."""
        self._enter((tensor,))
        return tensor, len(self.copies.get(id(tensor), ()))

    def data_of(self, version: Version) -> Tensor:
        """The data of a version: the next copy, or the tensor's own."""
        tensor, copied = version
        later = self.copies.get(id(tensor), [])[copied:]
        return later[0][1] if later else detached(tensor)

    def device_of(self, tensor: Tensor) -> str:
        """Where a tensor lives, or the one that it stands for."""
        absent = self.absentees.known.get(id(tensor))
        return str(tensor.device if absent is None else absent.device)

    # -- of tensors that may be stand-ins -----------------------------------------------------------------------------

    def node_of(self, tensor: Tensor) -> Any:
        """The autograd node that leads back from a tensor."""
        absent = self.absentees.known.get(id(tensor))
        return tensor.grad_fn if absent is None else absent.node

    def output_nr(self, tensor: Tensor) -> int:
        """Which output of its node a tensor is."""
        absent = self.absentees.known.get(id(tensor))
        return tensor.output_nr if absent is None else absent.output_nr

    def base_of(self, tensor: Tensor) -> Tensor | None:
        """What a tensor is a view of."""
        absent = self.absentees.known.get(id(tensor))
        return tensor._base if absent is None else absent.base

    def requires_grad(self, tensor: Tensor) -> bool:
        """Whether gradients are wanted of a tensor."""
        absent = self.absentees.known.get(id(tensor))
        return tensor.requires_grad if absent is None else absent.requires_grad

    def storage_of(self, tensor: Tensor) -> int:
        """What is one and the same for all tensors in one piece of memory, as long as the tape lives."""
        absent = self.absentees.known.get(id(tensor))
        return storage_of(tensor) if absent is None else absent.storage

    def end(self) -> None:
        """The step is over: stand-ins go by their tensors' names, and what others own is kept."""
        if self.keeper is not None:
            known = [(name, self.keeper.of(tensor)) for name, tensor in self.scope.values()]
            self.scope = {id(tensor): (name, tensor) for name, tensor in known}
            self.keeper.end()
        self.keep_what_others_own(tensor for _, tensor in self.scope.values())

    def keep_what_others_own(self, named: Iterable[Tensor] = ()) -> None:
        """Leaves, their `.grad`, and results that the user holds under a name live on, and may be overwritten.

        Small ones are copied now. A large one is borrowed: it stays where it is, uncopied, until the recording is
        read, or until an optimizer is about to overwrite it.
        """
        self._find_leaves()
        named = [tensor for tensor in named if id(tensor) in self._made and not tensor.is_meta]
        versions = [
            *(left for backward in self.backwards for left in backward.after.values()),
            *(version for backward in self.backwards for _, version in backward.given),
            *(each for update in self.updates for each in (*update.gradients, *update.after)),
        ]
        parts = [part for _, part in self.reducers.gathered.values()]
        owned = [*self._leaves.values(), *parts, *(each[0] for each in versions if each is not None), *named]
        self._enter(owned)
        self._enter_neighbours(owned)
        self._copy((tensor for tensor in owned if not self._loans.take(tensor)), lives_on=True)
        self._loans.guard(self)

    def secure(self) -> None:
        """Copy what was borrowed; what its owner has overwritten meanwhile is lost: a stand-in takes its place."""
        for loan in self._loans.give_back():
            self._copy([loan.tensor], lost=not loan.is_unchanged(), lives_on=True)
        self.absentees.fetch()

    def release(self) -> None:
        """Nothing waits for an optimizer any more."""
        self._loans.release()

    def lender_of(self, stand_in: Tensor) -> Loan | None:
        """Where the owner of what a stand-in stands for has its numbers, if that lives on."""
        return self._lent.get(id(stand_in))

    def _copy(self, tensors: Iterable[Tensor], lost: bool = False, lives_on: bool = False) -> None:
        """Copy what was recorded of these tensors' memory since the last copy.

        `lives_on` tells that nothing is about to be overwritten: what is not kept stays with its owner.
        """
        position = len(self.operations)
        for tensor in tensors:
            known = self._storages.pop(self.storage_of(tensor), None)
            if not known:
                continue
            self.shared = self.shared or len(known) > 1
            memory = None
            for alias in known:
                self._entered.discard(id(alias))
                own = own_part(alias)
                if lost or _is_freed(own):
                    data = self.absentees.stand_in(own, None)
                elif self.keeper is not None and (id(alias) in self.absentees.known or self.keeper.is_strict):
                    data = self.keeper.copy(own)
                    if lives_on and data.is_meta and not own.is_meta:
                        self._lent[id(data)] = Loan.of(own)
                else:
                    data, memory = self._copied(own, memory)
                self.copies.setdefault(id(alias), []).append((position, data))
                self._held.append(alias)  # or its id would be given to another tensor

    def _scan(self) -> None:
        """Enter, under the memory that they use, the tensors that may share it: leaves, views with what they view, and
        gradients. Any other result has its memory to itself.
        """
        self._find_leaves()
        sharing = self._sharing
        for func, args, kwargs, out, _, _ in self.operations[self._scanned[0] :]:
            if Traits.of(func).views:
                self._enter(tensors_in((args, kwargs, out)))
            elif sharing:
                self._enter(each for each in tensors_in((args, kwargs) if kwargs else args) if id(each) in sharing)
        for _, _, _, upstream in self.passages[self._scanned[1] :]:
            self._enter(tensor for tensor in upstream if tensor is not None)
        for backward in self.backwards[self._scanned[2] :]:
            self._enter(left[0] for left in backward.after.values() if left is not None)
        # The last backward may still be running; look at it again next time.
        self._scanned = [len(self.operations), len(self.passages), max(len(self.backwards) - 1, 0)]

    def _copied(
        self, tensor: Tensor, memory: torch.UntypedStorage | None
    ) -> tuple[Tensor, torch.UntypedStorage | None]:
        """A copy; of a part of its storage, as a part of a copy of all of that, which is given back for other parts."""
        if tensor.layout is not torch.strided or tensor.nbytes == tensor.untyped_storage().nbytes():
            data = within_memory(lambda: tensor.detach().clone())
            return self.absentees.stand_in(tensor, None) if data is None else data, memory
        memory = memory if memory is not None else within_memory(tensor.untyped_storage().clone)
        if memory is None:
            return self.absentees.stand_in(tensor, None), None
        data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        data.set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())
        return data, memory

    def _find_leaves(self) -> None:
        """What operations take and none has made; it is entered whenever it is used."""
        made, leaves = self._made, self._leaves
        for _, args, kwargs, out, _, _ in self.operations[self._found :]:
            for each in args if not kwargs else (*args, kwargs):
                if isinstance(each, Tensor):
                    if id(each) not in made:
                        leaves[id(each)] = each
                        self._enter((each,))
                elif isinstance(each, (tuple, list, dict)):
                    for tensor in tensors_in(each):
                        if id(tensor) not in made:
                            leaves[id(tensor)] = tensor
                            self._enter((tensor,))
            if isinstance(out, Tensor):
                made.add(id(out))
            else:
                made.update(map(id, tensors_in(out)))
        self._found = len(self.operations)

    def _enter_neighbours(self, owned: Iterable[Tensor]) -> None:
        """As `_scan`, of what shares its memory with these tensors alone: their storages' addresses tell it apart."""
        memory = _Ranges(owned)
        for func, args, kwargs, out, _, _ in self.operations[self._scanned[0] :]:
            if Traits.of(func).views:
                self._enter(each for each in tensors_in((args, kwargs, out)) if each in memory)
        for _, _, _, upstream in self.passages[self._scanned[1] :]:
            for each in upstream:
                if each is not None and each in memory:
                    self._enter((each,))

    def _enter(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if id(tensor) not in self._entered:
                self._entered.add(id(tensor))
                self._sharing.add(id(tensor))
                self._storages.setdefault(self.storage_of(tensor), []).append(tensor)


class _Ranges:
    """The memory of some tensors, as addresses; asks less of a tensor than its storage does."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._ends: dict[int, int] = {}
        for tensor in tensors:
            try:
                storage = own_part(tensor).untyped_storage()
                first = storage.data_ptr()
            except (NotImplementedError, RuntimeError):
                continue
            self._ends[first] = max(self._ends.get(first, 0), first + storage.nbytes())
        self._starts = sorted(self._ends)

    def __contains__(self, tensor: Tensor) -> bool:
        try:
            address = own_part(tensor).data_ptr()  # 0 for a stand-in
        except (NotImplementedError, RuntimeError):
            return True  # sparse, or a wrapper: whoever asks must look for himself
        place = bisect_right(self._starts, address)
        return place > 0 and address < self._ends[self._starts[place - 1]]


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts, left to right."""
    found: list[Tensor] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, into: list[Tensor]) -> None:
    if isinstance(tree, Tensor):
        into.append(tree)
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            if isinstance(item, Tensor):
                into.append(item)
            elif isinstance(item, (tuple, list, dict)):
                _gather(item, into)
    elif isinstance(tree, dict):
        for item in tree.values():
            _gather(item, into)


def detached(tensor: Tensor) -> Tensor:
    """Without its history; a stand-in is known by its id, and stays itself.

    Of a tensor that is spread over ranks this rank's part; one without numbers where the memory was given back.
    """
    if tensor.is_meta:
        return tensor
    own = own_part(tensor)
    if _is_freed(own):
        return torch.empty_strided(own.size(), own.stride(), dtype=own.dtype, device="meta")
    return own.detach()


def _is_freed(tensor: Tensor) -> bool:
    """Whether its memory was given back while the tensor lives, as FSDP2 does with what it has gathered."""
    if "torch.distributed.fsdp" not in sys.modules or tensor.is_meta or tensor.layout is not torch.strided:
        return False
    try:
        return bool(tensor.numel()) and not tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):  # a wrapper of functorch's
        return False


def storage_of(tensor: Tensor) -> int:
    """What is one and the same for all tensors in one piece of memory, as long as one of them lives."""
    try:
        return int(own_part(tensor).untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse, or a wrapper of functorch's: no memory to share
        return id(tensor)
