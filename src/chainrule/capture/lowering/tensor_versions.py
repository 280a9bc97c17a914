"""Which tensor is which value, and what is known of its numbers.

A tensor object is one value until something writes to its memory; then it, and every tensor in the same memory, is
another. That value is made when the tensor is next used, as most never are. The tape holds every tensor, so ids are
unique while it is read. A snapshot has a tensor's numbers where they were kept, else statistics measured while the step
ran.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, float16, strided

from chainrule.capture import retention as limits
from chainrule.capture.raw_records import RawUpdate
from chainrule.capture.retention import is_trained_leaf
from chainrule.capture.tape import Tape
from chainrule.graph.graph import Place, type_of_value
from chainrule.graph.snapshot import Snapshot, has_numbers, name_of
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import StatisticsCache


@dataclass(slots=True)
class DraftValue:
    """A value whose names are still being found."""

    tensor: Tensor
    created: int  # the position of the operation that made it; a leaf's is just before its first use
    kind: type_of_value = "result"
    skip: int = 0  # copies of the tensor's earlier values, made at the same position
    names: list[str] = field(default_factory=list)
    operation: int | None = None
    slot: int = 0
    node: int | None = None
    place: Place | None = None
    earlier: int | None = None


class TensorVersions:
    """All values in the order in which they were met, and the value of each tensor at any position of the tape."""

    def __init__(self, tape: Tape) -> None:
        self.drafts: list[DraftValue] = []
        self.versions: dict[int, list[int]] = {}  # id of a tensor -> its values, in order
        self._tape = tape
        self._current: dict[int, int] = {}  # id of a tensor -> its value now
        self._sharing: dict[int, dict[int, Tensor]] = {}  # memory -> the tensors in it that have a value now
        self.stale: dict[int, int] = {}  # id of a tensor written to through another -> by which operation
        self._skip: dict[int, int] = {}  # id of a tensor -> copies that are older than an optimizer's step

    def __getitem__(self, value: int) -> DraftValue:
        return self.drafts[value]

    def new(self, tensor: Tensor, created: int, operation: int | None = None, slot: int = 0) -> int:
        """A new value, which the tensor is from here on."""
        value = self._current[id(tensor)] = len(self.drafts)
        self.versions.setdefault(id(tensor), []).append(value)
        self._sharing.setdefault(self._tape.storage_of(tensor), {})[id(tensor)] = tensor
        self.stale.pop(id(tensor), None)
        kind: type_of_value = "parameter" if is_trained_leaf(tensor) else "result"
        self.drafts.append(
            DraftValue(tensor, created, kind, self._skip.get(id(tensor), 0), operation=operation, slot=slot)
        )
        return value

    def share(self, value: int, tensor: Tensor) -> None:
        """Another tensor object is the same value: the view that autograd has made again for it."""
        self._current[id(tensor)] = value
        self.versions.setdefault(id(tensor), []).append(value)
        self.stale.pop(id(tensor), None)

    def overwrite(self, written: Tensor, operation: int) -> None:
        """After a write, every tensor in the same memory is another value, made when it is next used."""
        for identity in self._sharing.pop(self._tape.storage_of(written), {}):
            if self._current.pop(identity, None) is not None:
                self.stale[identity] = operation

    def update(self, raw: RawUpdate) -> None:
        """After `optimizer.step()` a parameter is another value: what uses it next uses the new one."""
        for parameter, before in zip(raw.parameters, raw.before, strict=True):
            for identity in self._sharing.pop(self._tape.storage_of(parameter), {}):
                self._current.pop(identity, None)
            copies = [copy.data for copy in self._tape.copies.get(id(parameter), ())]
            self._skip[id(parameter)] = next((i for i, copy in enumerate(copies, 1) if copy is before), 0)

    def forget(self, tensor: Tensor, copies: dict[int, int]) -> None:
        """After writes that were left out, every tensor in its memory is a new leaf; `copies` are of earlier values."""
        for identity in self._sharing.pop(self._tape.storage_of(tensor), {}):
            self._current.pop(identity, None)
        self._skip |= copies

    def replace(self, tensor: Tensor, copies: int) -> None:
        """After `tensor.data = ...` it is another value; the first `copies` copies are of earlier ones."""
        self._current.pop(id(tensor), None)
        self._skip[id(tensor)] = copies

    def now(self, tensor: Tensor) -> int | None:
        """The tensor's value at the position read last (None: not met since a write)."""
        return self._current.get(id(tensor))

    def latest(self, tensor: Tensor) -> int | None:
        """The tensor's value when it was met last, even if it was overwritten since."""
        return self.versions.get(id(tensor), [None])[-1]

    def at(self, tensor: Tensor, position: int) -> int | None:
        """The tensor's value when `position` operations had run."""
        versions = self.versions.get(id(tensor))
        if versions is None:
            return None
        for value in reversed(versions):
            if self.drafts[value].created < position:
                return value
        # A leaf existed before the first operation that saw it.
        return versions[0] if self.drafts[versions[0]].operation is None else None

    def data(self, value: int) -> Tensor:
        """The value's data, before anything overwrote it."""
        draft = self.drafts[value]
        return data_after(self._tape, draft.tensor, draft.created, draft.skip)


def data_after(tape: Tape, tensor: Tensor, position: int, skip: int = 0) -> Tensor:
    """A tensor's data after the operation at `position` (-1: at the start): the next copy, or the tensor's own."""
    for copy in tape.copies.get(id(tensor), [])[skip:]:
        if copy.position > position:
            return copy.data
    return tape.detached(tensor)


def frozen(tape: Tape, gradients: Iterable[Tensor | None], order: int) -> tuple[Tensor | None, ...]:
    """Gradients with the data that they had when the execution `order` of a node ended."""
    return tuple(None if each is None else _at_end(tape, each, order) for each in gradients)


def _at_end(tape: Tape, gradient: Tensor, order: int) -> Tensor:
    for copy in tape.copies.get(id(gradient), ()):
        if copy.executions > order:
            return tape.placeholders.read(copy.data)
    return tape.detached(gradient)


# -- snapshots --------------------------------------------------------------------------------------------------------


class Snapshots:
    """What is known of the tensors of a tape, and of those that placeholders stand for."""

    lasting = True  # whether the facts stay true when the user's code goes on

    def __init__(self, tape: Tape, magnitudes: bool = True) -> None:
        self._originals = tape.placeholders.known
        self._magnitudes = magnitudes  # whether histograms are wanted; float16 always has them, which show underflow
        self._read: dict[int, Snapshot] = {}  # by the id of a placeholder, which the tape holds

    def of(self, tensor: Tensor) -> Snapshot:
        """A tensor of the tape; one that was not kept has its statistics, as far as it was measured."""
        original = self._originals.get(id(tensor))
        if original is None:
            return Snapshot.of(tensor)
        found = self._read.get(id(tensor))
        if found is None:
            measured, earlier = original.measured, original.earlier
            statistics = None if measured is None else measured.read(self._wants_histogram(tensor))
            held = None if earlier is None or earlier.is_lost else earlier
            found = Snapshot(tuple(tensor.shape), tensor.dtype, name_of(original.device), held, statistics)
            self._read[id(tensor)] = found
        return found

    def of_some(self, tensor: Tensor | None) -> Snapshot | None:
        """The same of a tensor, if there is one."""
        return None if tensor is None else self.of(tensor)

    def of_after(self, tensor: Tensor) -> Snapshot:
        """A parameter after the step."""
        return self.of(tensor)

    def _wants_histogram(self, tensor: Tensor) -> bool:
        return self._magnitudes or tensor.dtype is float16


class SnapshotsInPlace(Snapshots):
    """The same without copies: what is too large to be kept is still there, and measured where it is.

    The facts are good only until the user's code goes on. Parameters after the step are not measured: what was added to
    them is known. With copies, nodes and all statistics each step that is watched would cost 15 % more for the MLP of
    the benchmarks and 49 % for a tiny GPT-2 (the nodes alone 25 %).
    """

    lasting = False

    def __init__(self, tape: Tape, cache: StatisticsCache, magnitudes: bool) -> None:
        super().__init__(tape, magnitudes)
        self._cache = cache

    def of(self, tensor: Tensor) -> Snapshot:
        """Without numbers, but measured now, where it is too large to be kept."""
        if not _is_large(tensor):
            return super().of(tensor)
        return _bare(tensor, self._cache.statistics(tensor, self._wants_histogram(tensor)))

    def of_after(self, tensor: Tensor) -> Snapshot:
        """The user's own tensor, unmeasured: it is as the step left it."""
        return super().of(tensor)


def _is_large(tensor: Tensor) -> bool:
    """Whether it is too large to be kept."""
    if not has_numbers(tensor) or tensor.layout is not strided:
        return False
    return tensor.nbytes > limits.SMALL


def _bare(tensor: Tensor, statistics: Statistics | None = None) -> Snapshot:
    return Snapshot(tuple(tensor.shape), tensor.dtype, name_of(tensor.device), None, statistics)
