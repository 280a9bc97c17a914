"""The mistakes that students make at a quantity of a step, each with the number that comes out.

Each step on the way is done in another way, one at a time, and the rest as it should be. What comes out is the
mistake's value, so a student's number that agrees with it has that mistake. Values that are too close to the
right one are left out, and of several mistakes with one value the likeliest is kept, with those that are about as
likely.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from chainrule.derivation.backprop import Derivation, derive
from chainrule.exercises.backward_slips import BackwardSlips
from chainrule.exercises.chain import Chain, Change, Values, as_recorded
from chainrule.exercises.forward_slips import ForwardSlips
from chainrule.exercises.loss_slips import is_square, mean_of, other_means
from chainrule.exercises.quantities import Kind, Quantity, Recorded, made, names
from chainrule.exercises.slip import Slip
from chainrule.exercises.update_slips import new_parameter, update_slips
from chainrule.graph.graph import Graph
from chainrule.graph.names import Notation, element

SAME = 1e-6  # the relative difference up to which two values are one
AS_LIKELY = 0.3  # the cost by which another mistake may be dearer, to be named as well
NEAR = 0.03  # what each step between a mistake and the quantity costs
FOLLOWED = 120  # mistakes of a gradient that are followed into the update
LARGEST = 4096  # elements of a quantity whose mistakes are known
STEPS = 100  # of a step that is worked through again for each mistake


@dataclass(frozen=True)
class Mistake:
    """What comes out where a student makes a mistake: `value`, in the shape that was asked for, or in a wrong one.

    `name` is the kind of mistake in a few words, `sentence` says what was done. `cost` orders mistakes, the likeliest
    first. `also` are others from which the same comes out.
    """

    value: Tensor
    name: str
    sentence: str
    cost: float = 1.0
    also: tuple[Mistake, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, and those of the others from which the same comes out."""
        return tuple(dict.fromkeys((self.name, *(each.name for each in self.also))))


@dataclass(frozen=True)
class Facts:
    """A graph with what follows from it, for who has no recording."""

    graph: Graph
    derivation: Derivation
    notation: Notation

    @classmethod
    def of(cls, recorded: Recorded | Graph) -> Recorded:
        """What is asked of a recording."""
        return cls(recorded, derive(recorded), Notation(recorded)) if isinstance(recorded, Graph) else recorded


_known: weakref.WeakKeyDictionary[Recorded, Mistakes] = weakref.WeakKeyDictionary()


class Mistakes:
    """The mistakes at all quantities of one recording."""

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded
        self.graph, self.notation = recorded.graph, recorded.notation
        self.chain = Chain(self.graph, recorded.derivation)
        self._found: dict[str, tuple[Mistake, ...]] = {}

    @classmethod
    def of(cls, recorded: Recorded) -> Mistakes:
        """Those of a recording, worked out once."""
        if isinstance(recorded, Facts):
            return cls(recorded)
        if recorded not in _known:
            _known[recorded] = cls(Facts(recorded.graph, recorded.derivation, recorded.notation))
        return _known[recorded]

    def exact(self, quantity: Quantity) -> Tensor | None:
        """A gradient or a value in double precision; None where it is not known."""
        chain, value = self.chain, quantity.value
        whole = None
        if quantity.kind == "gradient" and chain.goes_back:
            whole = self._right.get(chain.alias.get(value, value))
        elif quantity.kind == "value" and chain.goes_forward:
            whole = self._right_values.get(value)
        return None if whole is None else quantity.part(whole)

    @cached_property
    def _right_values(self) -> dict[int, Tensor]:
        return self.chain.values()

    @cached_property
    def _right(self) -> dict[int, Tensor]:
        return self.chain.gradients()

    def at(self, quantity: Quantity) -> tuple[Mistake, ...]:
        """The mistakes at one quantity."""
        if quantity.name not in self._found:
            self._found[quantity.name] = self._whole(replace(quantity, index=None))
        whole = self._found[quantity.name]
        if quantity.index is None:
            return whole
        each = ((one, quantity.part(one.value)) for one in whole)
        parts = [replace(one, value=part) for one, part in each if part is not None]
        parts = sorted([*parts, *self._of_one_element(quantity, quantity.index)], key=lambda one: one.cost)
        return tuple(_distinct(parts, quantity.right.double(), math.inf))

    def _whole(self, quantity: Quantity) -> tuple[Mistake, ...]:
        if quantity.data.numel() > LARGEST or not quantity.data.is_floating_point():
            return ()
        found = sorted(self._raw(quantity), key=lambda each: each.cost)
        parts = [replace(each, value=part) for each in found if (part := quantity.part(each.value)) is not None]
        return tuple(_distinct(parts, quantity.right.double()))

    def _raw(self, quantity: Quantity) -> Iterator[Mistake]:
        yield from self._of_the_number(quantity)
        if quantity.kind == "gradient":
            yield from self._of_gradients(quantity.value)
        elif quantity.kind == "value":
            yield from self._of_values(quantity.value)
        else:
            yield from self._of_update(quantity)
        yield from self._of_others(quantity)

    # -- what needs the right number alone ----------------------------------------------------------------------------

    def _of_the_number(self, quantity: Quantity) -> Iterator[Mistake]:
        right = quantity.data.double()
        if quantity.kind != "update":
            yield Mistake(-right, "sign", "the sign is wrong", 1.0)
        yield Mistake(right * 10, "decimal point", "the decimal point is one place too far right", 1.3)
        yield Mistake(right / 10, "decimal point", "the decimal point is one place too far left", 1.3)
        if right.dim() == 2 and right.numel() > 1:
            yield Mistake(right.t(), "transposed", "this is the transpose", 1.02)
        if quantity.kind != "gradient":
            return
        for count, out, others in self._means:
            for other, over in others:
                sentence = f"{out} is the mean over {count}, and this divides by {other}: the mean over {over}"
                yield Mistake(right * count / other, "mean", sentence, 1.1)
            sentence = f"{out} is the mean over {count}, and 1/{count} is missing: this belongs to the sum"
            yield Mistake(right * count, "mean", sentence, 1.05)
            yield Mistake(right / count, "mean", f"1/{count}, of the mean in {out}, counts twice", 1.3)
        for out in self._squares:
            yield Mistake(
                right / 2, "factor 2", f"the 2 of the square's derivative is missing: {out} has a square", 1.05
            )
        yield Mistake(right * 2, "factor 2", "a factor 1/2 is missing, or a 2 is too many", 1.35)
        yield Mistake(right / 2, "factor 2", "a factor 2 is missing, or a 1/2 is too many", 1.35)

    def _of_one_element(self, quantity: Quantity, index: tuple[int, ...]) -> Iterator[Mistake]:
        """Another element of the same tensor: one in the next row or column, or with the indices the other way."""
        for place in _beside(index, tuple(quantity.data.shape)):
            sentence = f"this is {element(quantity.name, place)}, and not {quantity}"
            yield Mistake(quantity.data[place].double(), "another element", sentence, 1.3)

    @cached_property
    def _means(self) -> list[tuple[int, str, list[tuple[int, str]]]]:
        """Over how many the loss takes a mean, what has it, and the means that may be taken in its place."""
        steps = ((mean_of(step, self.graph), step) for step in self.chain.forward_steps)
        return [
            (count, self.notation.plain(step.outputs[0]), list(other_means(step, self.graph)))
            for count, step in steps
            if count > 1
        ]

    @cached_property
    def _squares(self) -> list[str]:
        return [self.notation.plain(step.outputs[0]) for step in self.chain.forward_steps if is_square(step)]

    def _of_others(self, quantity: Quantity) -> Iterator[Mistake]:
        """Another quantity of the same shape."""
        if quantity.data.numel() < 2:
            return
        for name in names(self.recorded):
            kind: Kind = "update" if name.startswith("new ") else "gradient" if "/" in name else "value"
            other = self._quantities.get(name)
            if quantity.kind == "update" and kind == "value" and other is not None and other.value == quantity.value:
                continue  # that is "not updated"
            if other is not None and other.name != quantity.name and other.data.shape == quantity.data.shape:
                near = 1.55 if kind == quantity.kind or other.value == quantity.value else 1.7
                yield Mistake(other.data.double(), "another quantity", f"this is {name}, and not {quantity.name}", near)

    @cached_property
    def _quantities(self) -> dict[str, Quantity]:
        found: dict[str, Quantity] = {}
        kinds: tuple[Kind, ...] = ("value", "gradient", "update")
        for value in range(len(self.graph.values)):
            for kind in kinds:
                each = made(self.recorded, kind, value)
                if each is not None and each.data.is_floating_point():
                    found.setdefault(each.name, each)
        return found

    # -- gradients ----------------------------------------------------------------------------------------------------

    def _of_gradients(self, value: int) -> Iterator[Mistake]:
        target = self.chain.alias.get(value, value)
        for distance, slip, gradients in self._back:
            if target in gradients:
                yield Mistake(
                    gradients[target], slip.name, slip.sentence, slip.cost + NEAR * self._between(distance, target)
                )
        yield from self._not_summed(target)

    def _between(self, place: int, target: int) -> int:
        """How many backward steps lie between a step and the last one that adds to a value's gradient."""
        last = [
            at
            for at, step in enumerate(self.chain.backward_steps)
            if any(part.target == target for part in self.chain.parts[step.index])
        ]
        return max(0, (last[-1] if last else place) - place)

    @cached_property
    def _back(self) -> list[tuple[int, Slip, dict[int, Tensor]]]:
        """Each slip, on the way back or forward, with the place of its step, and the gradients that it changes."""
        if not self.chain.goes_back or len(self.chain.backward_steps) > STEPS:
            return []
        right, found = self._right, []
        slips = BackwardSlips(self.graph, self.notation, self.chain.forward_steps)
        uses: dict[int, int] = {}
        for parts in self.chain.parts.values():
            for part in parts:
                uses[part.target] = uses.get(part.target, 0) + 1
        for place, step in enumerate(self.chain.backward_steps):
            for part in self.chain.parts[step.index]:
                for slip in slips.of(part, uses[part.target]):
                    found.append((place, slip, _differing(self._walked(slip.change, None), right)))
        for place, slip, values in self._forward:
            if slip.name == "updated weight":  # nobody goes forward with all that comes after
                continue
            at = len(self.chain.backward_steps) - 1 - place
            dearer = replace(slip, cost=slip.cost + 0.45, sentence=f"{slip.sentence}; the rest follows from that")
            for change in self._backs(slip.change):
                found.append((max(0, at), dearer, _differing(self._walked(change, values), right)))
        return found

    def _backs(self, change: Change) -> Iterator[Change | None]:
        """How one goes back who did a step otherwise: from what he got, as he wrote it, or as the step really is."""
        yield None
        if change.back is not None:
            mine = self.chain.changed(change)
            yield mine
            yield replace(mine, back=as_recorded)

    def _walked(self, change: Change | None, values: Values | None) -> dict[int, Tensor]:
        try:
            return self.chain.gradients(change, values)
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError):
            return {}  # a change that the step cannot take

    def _not_summed(self, target: int) -> Iterator[Mistake]:
        """A gradient that was not summed over the batch, which has another shape."""
        for step in self.chain.backward_steps if self.chain.goes_back else ():
            for part in self.chain.parts[step.index]:
                above = step.upstream[0] if step.upstream else None
                shape = self.graph.values[part.value].shape
                if (
                    part.target == target
                    and above is not None
                    and above.shape[1:] == shape
                    and above.dim() == len(shape) + 1
                ):
                    named, out = self.notation.plain(target), self.notation.plain_gradient(step.outputs[0])
                    sentence = f"{named} is added to each sample, so its gradient is the sum of the rows of {out}"
                    yield Mistake(above.double(), "not summed", sentence, 1.0)

    # -- values -------------------------------------------------------------------------------------------------------

    def _of_values(self, value: int) -> Iterator[Mistake]:
        for place, slip, values in self._forward:
            if value in values:
                yield Mistake(
                    values[value].double(), slip.name, slip.sentence, slip.cost + NEAR * self._behind(place, value)
                )

    def _behind(self, place: int, value: int) -> int:
        last = next((at for at, step in enumerate(self.chain.forward_steps) if value in step.outputs), place)
        return max(0, last - place)

    @cached_property
    def _forward(self) -> list[tuple[int, Slip, dict[int, Tensor]]]:
        """Each slip on the way forward, with the values that come out and differ."""
        if not self.chain.goes_forward or len(self.chain.forward_steps) > STEPS:
            return []
        found, right = [], self._right_values
        slips = ForwardSlips(self.graph, self.notation)
        for place, step in enumerate(self.chain.forward_steps):
            for slip in slips.of(step):
                try:
                    values = self.chain.values(slip.change)
                except Exception:  # a change that the operation cannot take
                    continue
                found.append((place, slip, _differing(values, right)))
        return found

    # -- updates ------------------------------------------------------------------------------------------------------

    def _of_update(self, quantity: Quantity) -> Iterator[Mistake]:
        for cost, name, sentence, value in update_slips(self.graph, quantity.value, quantity.of):
            yield Mistake(value, name, sentence, cost)
        gradient = made(self.recorded, "gradient", quantity.value)
        for each in self.at(gradient)[:FOLLOWED] if gradient is not None else ():
            after = (
                new_parameter(self.graph, quantity.value, each.value)
                if each.value.shape == quantity.data.shape
                else None
            )
            if after is not None:
                sentence = f"the update is right, but the gradient in it is not: {each.sentence}"
                yield Mistake(after, each.name, sentence, each.cost + 0.3, each.also)


def _differing(found: dict[int, Tensor], right: dict[int, Tensor]) -> dict[int, Tensor]:
    """What differs from the right numbers, and is finite."""
    return {
        value: each
        for value, each in found.items()
        if value in right and bool(each.isfinite().all()) and not same(each.double(), right[value].double())
    }


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two values are one to a student: of one shape, and equal but for rounding."""
    return one.shape == other.shape and bool(_close(one, other).all())


def _close(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs() <= SAME * torch.maximum(one.abs(), other.abs()) + 1e-12


def _beside(index: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The places one further along one axis, either way, and that with the indices turned round."""
    near = [(*index[:axis], at + by, *index[axis + 1 :]) for axis, at in enumerate(index) for by in (-1, 1)]
    for place in dict.fromkeys((index[::-1], *near)):
        if place != index and all(0 <= at < size for at, size in zip(place, shape, strict=True)):
            yield place


def _distinct(mistakes: Iterable[Mistake], right: Tensor, dearer: float = AS_LIKELY) -> Iterator[Mistake]:
    """Each value once, without the right one and without what is 0 throughout, in the order of costs.

    Of several mistakes with one value, those are named as well that are `dearer` by so much: of a whole tensor the
    likely ones, of a single number, where values meet by chance, all.
    """
    kept: list[Mistake] = []
    rows: dict[tuple[int, ...], tuple[Tensor, list[int]]] = {}  # by shape: the values kept, and their places
    for each in mistakes:
        value = each.value.double().reshape(-1)
        if not bool(value.isfinite().all()) or not bool(value.any()) or same(each.value.double(), right):
            continue
        shape = tuple(each.value.shape)
        known, places = rows.get(shape, (torch.empty(0, value.numel(), dtype=torch.float64), []))
        alike = _close(known, value).all(1).nonzero()
        if not len(alike):
            rows[shape] = (torch.cat([known, value[None]]), [*places, len(kept)])
            kept.append(each)
            continue
        first = kept[places[int(alike[0])]]
        if each.cost <= first.cost + dearer and each.name not in first.names:
            kept[places[int(alike[0])]] = replace(first, also=(*first.also, each))
    yield from kept
