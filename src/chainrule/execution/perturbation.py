"""Runs a part of a recorded step again with one value moved, to see what else moves.

The recorded operations run in their order, with the recorded states of the random generator, on copies: only those
that the moved value reaches, and that lead to the value that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from chainrule.execution.experiment import CannotRunError, drawn_again, without_gradients, written_by
from chainrule.execution.lineage import Lineage
from chainrule.execution.recomputation_plan import operands
from chainrule.execution.recompute import cloned, run_again
from chainrule.graph.comparison import same_statistics
from chainrule.graph.graph import Graph, Operation, references
from chainrule.graph.snapshot import Snapshot
from chainrule.graph.statistics import Statistics
from chainrule.graph.trees import reach, tensors_in
from chainrule.pytorch_internals import DisableTorchFunction, _DisableAutocast


class Perturbation:
    """The part of a step between two values; without `until`, all that the source reaches.

    `data` are the numbers of the source, and `base` those of `until`. Where they were not kept, the source is made
    again by its operation, and `until` has the recorded statistics. `instead` has numbers for leaves whose own were not
    kept; then `base` is what these give.

    Raises CannotRunError where it cannot run again, or does not give the recorded numbers.
    """

    def __init__(
        self,
        graph: Graph,
        source: int,
        until: int | None = None,
        lineage: Lineage | None = None,
        instead: Mapping[int, Tensor] | None = None,
    ) -> None:
        self.graph, self.source, self.until = graph, source, until
        self._lineage = lineage or Lineage(graph)
        wanted = set(range(len(graph.values)) if until is None else reach([until], self._made_from))
        self._operations: list[Operation] = []
        reached = {source}
        for operation in graph.operations:
            for value in operands(operation):
                if value not in reached and not reached.isdisjoint(self._memory_of(value, operation.index)):
                    reached.add(value)
            if not reached.isdisjoint(operands(operation)):
                outputs = {out for out in operation.outputs if out is not None}
                reached |= outputs
                if outputs & wanted:
                    self._operations.append(operation)
        self._done = self._done_after(wanted) if until is not None else {}
        self._constants = dict(instead or {})
        with _apart():
            for operation in self._makers({source, *reached}):
                made = zip(operation.outputs, self._run(operation, self._constants), strict=False)
                self._constants.update((index, out) for index, out in made if index is not None)
        self.data = self._numbers(source)
        if until is not None:
            self._check(wanted)
            recorded, again = graph.values[until].snapshot, self.run(self.data).get(until)
            base = recorded.data if again is None else again
            if base is None or not (instead or _is_recorded(base, recorded)):
                raise CannotRunError("run again, the operations between them do not give the same numbers")
            self.base = base

    def _done_after(self, wanted: set[int]) -> dict[int, list[int]]:
        """What no later operation takes, by the operation after which that is so; nothing where memory is shared."""
        if any(self.graph.values[each].earlier is not None for each in wanted):
            return {}
        last = {value: each.index for each in self._operations for value in (*each.outputs, *operands(each))}
        done: dict[int, list[int]] = {}
        for value, index in last.items():
            if value is not None and value not in (self.until, self.source):
                done.setdefault(index, []).append(value)
        return done

    def _numbers(self, value: int) -> Tensor:
        known = self.graph.values[value]
        if known.data is not None:
            return known.data
        made = None if known.operation is None else self.graph.operations[known.operation]
        if made is None or made.function is None or value not in made.outputs or written_by(made.function):
            raise CannotRunError("its numbers were not kept")
        with _apart():
            return self._run(made, {})[made.outputs.index(value)]

    def _makers(self, reached: set[int]) -> list[Operation]:
        """The operations that make what this part takes, if it is not reached and was not kept."""
        found: dict[int, Operation] = {}
        waiting = [value for operation in self._operations for value in operands(operation)]
        while waiting:
            known = self.graph.values[waiting.pop()]
            index = known.operation
            if known.index in reached or known.has_numbers or known.earlier is not None or index is None:
                continue
            if index not in found and known.index in self.graph.operations[index].outputs:
                found[index] = self.graph.operations[index]
                waiting += operands(found[index])
        return [found[index] for index in sorted(found)]

    def _check(self, wanted: set[int]) -> None:
        """Raise CannotRunError where a value is not just what its operation returns."""
        for value in wanted:
            made = None if (index := self.graph.values[value].operation) is None else self.graph.operations[index]
            name = self.graph.values[value].name
            if made is not None and made.function is None:
                raise CannotRunError(f"the recording does not hold what made {name}")
            if made is not None and value not in made.outputs and self.graph.values[value].earlier is None:
                raise CannotRunError(f"{name} was written and not returned")

    def _made_from(self, value: int) -> list[int]:
        earlier = self.graph.values[value].earlier
        return self.graph.operands(value) if earlier is None else self._memory_of(value, len(self.graph.operations))

    def _memory_of(self, value: int, before: int) -> list[int]:
        """What a value consists of whose memory was written to through another tensor."""
        earlier = self.graph.values[value].earlier
        return [] if earlier is None else [earlier, *self._lineage.overwritten(value, before)]

    def _settled(self, value: int, before: int, found: dict[int, Tensor]) -> None:
        """Find a value whose memory was written to through another tensor: it is as before, if no part was hit."""
        earlier, *hit = self._memory_of(value, before)
        if self.graph.values[earlier].earlier is not None and earlier not in found:
            self._settled(earlier, before, found)
        if not found.keys().isdisjoint(hit):
            name = self.graph.values[value].name
            raise CannotRunError(f"{name} is memory that was written to through another tensor")
        if earlier in found and not hit:
            found[value] = found[earlier]
        elif earlier in found:
            raise CannotRunError(f"{self.graph.values[value].name} was overwritten in part")

    def run(self, data: Tensor) -> dict[int, Tensor]:
        """The values that are reached, where the source has these numbers."""
        found = {**self._constants, self.source: data}
        with _apart():
            for operation in self._operations:
                outs = self._run(operation, found)
                made = zip(operation.outputs, outs, strict=False)
                found.update((index, out) for index, out in made if index is not None and index != self.source)
                for value in self._done.get(operation.index, ()):
                    found.pop(value, None)
            if self.until is not None and self.graph.values[self.until].earlier is not None:
                self._settled(self.until, len(self.graph.operations), found)
        return found

    def _run(self, operation: Operation, found: dict[int, Tensor]) -> list[Tensor]:
        for value in operands(operation):
            if value not in found and self.graph.values[value].earlier is not None:
                self._settled(value, operation.index, found)
            if value not in found and not self.graph.values[value].has_numbers:
                raise CannotRunError(f"the numbers of {self.graph.values[value].name} were not kept")
        if operation.function is None:
            raise CannotRunError("the recording does not hold what it ran")
        arguments: dict[str, Any] = _filled(self.graph, operation.arguments, found)
        arguments |= {name: cloned(arguments[name]) for name in arguments if name in written_by(operation.function)}
        try:
            with drawn_again(operation.random_state):
                return tensors_in(run_again(operation, arguments))
        except Exception as error:
            raise CannotRunError(f"{operation.name} does not run again: {error}") from error


@contextmanager
def _apart() -> Iterator[None]:
    """Nothing that runs here is seen, or leaves anything behind."""
    with without_gradients(), _DisableAutocast(), DisableTorchFunction():
        yield


def _filled(graph: Graph, arguments: dict[str, Any], found: dict[int, Tensor]) -> dict[str, Any]:
    """The arguments of an operation with the numbers found, or else the recorded ones."""
    filled: dict[str, Any] = graph.filled(arguments)
    for name, item, value in references(arguments):
        if value in found and item is None:
            filled[name] = found[value]
        elif value in found:
            filled[name] = [found[value] if place == item else each for place, each in enumerate(filled[name])]
    return filled


def _is_recorded(made: Tensor, recorded: Snapshot) -> bool:
    """Whether a tensor is the recorded one, by its numbers or else by its statistics."""
    if recorded.data is not None:
        return bool(same(recorded.data, made).all())
    known = recorded.statistics
    return known is not None and same_statistics(Statistics.of(made), known, torch.finfo(torch.float32).eps)


def same(one: Tensor, other: Tensor) -> Tensor:
    """Which elements are equal; a NaN is equal to another."""
    if one.shape != other.shape:
        return torch.zeros(one.shape, dtype=torch.bool)
    equal = one == other
    return equal | (one.isnan() & other.isnan()) if one.is_floating_point() or one.is_complex() else equal


def moved(data: Tensor, axis: int, position: int, draw: int, generator: torch.Generator) -> Tensor | None:
    """The same numbers, with those at a position along an axis replaced by other ones.

    They are drawn from all that there are, which stay in the range of what comes next (indices, operands of a log);
    at every second draw of real numbers there is noise of half their size on them. None where there is no other number.
    """
    places = torch.tensor([position])
    part, pool = data.detach().cpu().index_select(axis, places), data.detach().cpu().reshape(-1)
    if not part.numel():
        return None
    other = pool[torch.randint(pool.numel(), part.shape, generator=generator)]
    if part.is_floating_point() or part.is_complex():
        noise = torch.randn(part.shape, generator=generator, dtype=torch.float32)
        size = float(pool.abs().float().nan_to_num(0, 0, 0).mean())
        other = other + (noise * (0.5 * size)).to(part.dtype) if draw % 2 else other
        other = torch.where(other == part, other + (noise * (size or 1.0)).to(part.dtype), other)
    elif part.dtype == torch.bool:
        other = ~part
    else:
        known = pool.unique()
        place = torch.searchsorted(known, part.contiguous())
        other = known[
            (place + torch.randint(1, max(known.numel(), 2), part.shape, generator=generator)) % known.numel()
        ]
    if same(part, other).all():
        return None
    whole = data.detach().clone()
    whole.index_copy_(axis, places.to(whole.device), other.to(whole.device))
    return whole
