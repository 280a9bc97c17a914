"""Which optimizers belong to a training, and which of their steps end a training step."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import Optimizer

from chainrule.capture.data_parallel import own_part
from chainrule.capture.module_tree import parameters_of
from chainrule.graph.reexecution import unobserved
from chainrule.pytorch_internals import _get_sequence_nr as nodes_made

FOREIGN = -1  # the key of optimizers that do not concern the watch
REPEATED = 6  # steps in the first round after which none is waited for that has not stepped yet: a critic makes five
PATIENCE = 20  # steps of each other optimizer after which an idle one is not waited for


class Rounds:
    """Decides which optimizer's step ends a training step.

    With one optimizer every step does. With several (the two of a GAN, or one for matrices and one for the rest) a
    training step is a round in which each steps at least once. The first one waits for the others of parameters that it
    used, while the ones that step make up to REPEATED more steps. Optimizers that share a parameter count as one: a new
    optimizer for each epoch, or one of another kind for the last of them. But if both step after one forward pass, they
    belong to one training step. An optimizer that appears after others have made several rounds alone, and with a
    forward pass of its own, begins a phase. One that is idle for `PATIENCE` steps of each other is no longer waited
    for, and `unevenly` is called with it. No optimizer is kept alive.
    """

    def __init__(self, given: Iterable[Optimizer], unevenly: Callable[[Optimizer], None]) -> None:
        self._unevenly = unevenly
        self._known: dict[int, tuple[weakref.ref[Optimizer], int]] = {}  # by id; with a key that some may share
        self._latest: dict[int, weakref.ref[Optimizer]] = {}  # by key
        self._keys = _Keys()  # of parameters
        self._waited: dict[int, int] = {}  # key -> when it stepped last; the longest idle first
        self._apart: set[int] = set()  # not waited for, because they step too rarely
        self._stepped: set[int] = set()  # in this round
        self._unseen: set[int] = set()  # waited for, although they have not stepped yet
        self._repeated = 0  # steps, of optimizers that had stepped already, while these were waited for
        self._steps = 0  # of all optimizers
        self._nodes = nodes_made()  # by autograd in this thread until the latest step
        self._until_forward = sys.maxsize  # steps until the latest forward pass
        self._rounds = 0  # since the last optimizer appeared, apart from the one in which it did
        self._dead = False  # whether an optimizer is gone
        for each in given:
            self._waited[self._key(each)] = 0
        self._given = set(self._waited)

    @property
    def current(self) -> list[Optimizer]:
        """The optimizers that are used now."""
        found = (reference() for reference in self._latest.values())
        return [each for each in found if each is not None]

    def is_given(self, optimizer: Optimizer) -> bool:
        """Whether the user gave this very optimizer to the watch."""
        return self._known_key(optimizer) in self._given

    def concern(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer belongs to the watched training: all do, or those with parameters of a given one."""
        if not self._given:
            return True
        key = self._known_key(optimizer)
        if key is None and self._given.isdisjoint(self._shared(optimizer)):
            key = FOREIGN
            self._known[id(optimizer)] = weakref.ref(optimizer, self._note_dead), key
        return key is None or key in self._given

    def pass_over(self) -> None:
        """What autograd has done since the latest step was no forward pass of the training."""
        self._nodes = nodes_made()

    def stepped(self, optimizer: Optimizer, others: Callable[[], Iterable[Optimizer]] = tuple) -> bool:
        """Count a step of an optimizer; returns whether it ends the training step.

        `others` is asked at the first one, for the optimizers that may belong to its training step.
        """
        if (nodes := nodes_made()) != self._nodes:
            self._nodes, self._until_forward = nodes, self._steps
        first = not self._known
        key, waited = self._key(optimizer), self._waited
        self._latest[key] = self._known[id(optimizer)][0]
        if first:
            self._expect(others())
            waited[key] = 0
        if self._unseen and key in self._stepped:
            self._repeated += 1
            if self._repeated == REPEATED:
                self._expect_no_more()
        self._unseen.discard(key)
        self._steps += 1
        if self._dead:
            self._forget_dead()
        if key in waited and len(waited) == 1:  # as in most trainings
            waited[key] = self._steps
            self._rounds += 1
            return True
        if key in self._apart:
            return not self._stepped
        if waited and key not in waited and not self._stepped:
            # It may belong to the step that the others seemed to have ended.
            if self._rounds < 2 or self._steps - 1 > self._until_forward:
                waited[key] = self._steps
                return False
            waited.clear()
            self._rounds = 0
        waited.pop(key, None)
        waited[key] = self._steps
        self._stepped.add(key)
        late = next(iter(waited))
        if self._steps - waited[late] >= PATIENCE * (len(waited) - 1) > 0:
            del waited[late]
            self._apart.add(late)
            if (idle := self._latest[late]()) is not None:
                self._unevenly(idle)
        if len(self._stepped) < len(waited):
            return False
        self._stepped.clear()
        self._rounds += 1
        return True

    def _expect(self, others: Iterable[Optimizer]) -> None:
        """Wait for those of the optimizers that hold no parameter of the first one that stepped."""
        for each in others:
            if not self._shared(each):
                key = self._key(each)
                self._waited[key] = 0
                self._unseen.add(key)

    def _expect_no_more(self) -> None:
        """Wait only for optimizers that have stepped."""
        for key in self._unseen:
            self._waited.pop(key, None)
            del self._latest[key]
        self._known = {name: each for name, each in self._known.items() if each[1] not in self._unseen}
        self._unseen.clear()

    def _known_key(self, optimizer: Optimizer) -> int | None:
        reference, key = self._known.get(id(optimizer), (None, None))
        return key if reference is not None and reference() is optimizer else None

    def _shared(self, optimizer: Optimizer) -> list[int]:
        """The keys of the optimizers with which one shares a parameter."""
        found = map(self._keys.of, _parameters(optimizer))
        return list({key: None for key in found if key is not None})

    def _key(self, optimizer: Optimizer) -> int:
        """The key of an optimizer: that of another whose place it takes, as they share a parameter; or else its own."""
        known = self._known_key(optimizer)
        if known is not None and (self._latest[known]() is optimizer or not self._is_beside(known)):
            return known
        shared, own = self._shared(optimizer), max(self._latest, default=-1) + 1
        if any(map(self._is_beside, shared)):
            if not self._given.isdisjoint(shared):
                self._given.add(own)
            shared = []
        first, *others = shared or [own]
        for other in others:  # whose parameters it has taken over
            self._waited.pop(other, None)
            self._stepped.discard(other)
        self._known[id(optimizer)] = weakref.ref(optimizer, self._note_dead), first
        self._latest[first] = weakref.ref(optimizer)
        for each in _parameters(optimizer):
            if self._keys.of(each) is None:
                self._keys.put(each, first)
        return first

    def _is_beside(self, key: int) -> bool:
        """Whether an optimizer with this key has stepped since the latest forward pass."""
        return self._waited.get(key, 0) > self._until_forward

    def _note_dead(self, reference: weakref.ref[Optimizer]) -> None:
        self._dead = True

    def _forget_dead(self) -> None:
        """Drop optimizers that are gone: nobody waits for them."""
        self._dead = False
        self._keys.forget_dead()
        self._known = {number: each for number, each in self._known.items() if each[0]() is not None}
        for key in self._waited.keys() - {key for _, key in self._known.values()}:
            del self._waited[key]
            self._stepped.discard(key)


class _Keys:
    """Of parameters, without a weak reference to any: with one PyTorch cannot swap it, as `Module.to` does with some.

    A parameter that was given other memory since is not found.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, StorageWeakRef]] = {}

    def of(self, parameter: Tensor) -> int | None:
        """The key of a parameter, if it has one."""
        key, memory = self._known.get(id(parameter), (None, None))
        return None if memory is None or memory != _memory(parameter) else key

    def put(self, parameter: Tensor, key: int) -> None:
        """Give a parameter a key."""
        if (memory := _memory(parameter)) is not None:
            self._known[id(parameter)] = key, memory

    def forget_dead(self) -> None:
        """Drop the keys of parameters whose memory is gone."""
        self._known = {identity: each for identity, each in self._known.items() if not each[1].expired()}


def _memory(parameter: Tensor) -> StorageWeakRef | None:
    with unobserved():
        try:
            return StorageWeakRef(own_part(parameter).untyped_storage())
        except Exception:  # sparse, or what the user's class raises
            return None


def besides(
    optimizer: Optimizer, modules: Iterable[nn.Module], has_gradient: Callable[[Tensor], bool]
) -> list[Optimizer]:
    """The optimizers of other parameters of a step: of modules that ran in it, or with a gradient from it."""
    own = {id(each) for each in _parameters(optimizer)}
    used = {id(each) for module in modules for each in parameters_of(module)}
    return [
        other
        for other in living()
        if any(id(each) not in own and (id(each) in used or has_gradient(each)) for each in _parameters(other))
    ]


def living() -> list[Optimizer]:
    """All optimizers of the process."""
    # By the type alone, because `isinstance` may run code of an object's own.
    found: list[Any] = [each for each in gc.get_objects() if issubclass(type(each), Optimizer)]
    return [each for each in found if "param_groups" in vars(each)]  # the others are being made


def _parameters(optimizer: Optimizer) -> Iterable[Tensor]:
    return (each for group in optimizer.param_groups for each in group["params"] if isinstance(each, Tensor))
