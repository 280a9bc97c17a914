"""What a page asks of a lab, checked: nothing of it is believed, as it may come from anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch

from chainrule.errors import RequestError

WHOLE, BEGUN = 64, 8  # numbers up to which a row is given whole, and those of a larger one; as in lab.js
MOST = 4096  # changes, and places asked for
FIELDS = ("base", "changes", "settings", "places", "chosen", "step")


@dataclass(frozen=True)
class Question:
    """The numbers of a base with `changes` (row, place, number), and what is asked of them."""

    base: int
    changes: tuple[tuple[int, int, float], ...]
    settings: tuple[float, ...]
    places: dict[int, tuple[int, ...]]
    chosen: tuple[int, int] | None
    step: bool


class Known(Protocol):
    """What a question may name."""

    inputs: list[int]
    values: dict[int, int]
    settings: list[tuple[int, str, float]]
    updates: Any

    def shape(self, row: int) -> tuple[int, ...]:
        """The shape of a row."""

    def dtype(self, row: int) -> torch.dtype:
        """The number type of a row."""

    def has_base(self, base: int) -> bool:
        """Whether a base is kept."""


def understood(asked: Any, known: Known) -> Question:
    """A question as it was parsed from JSON. Raises RequestError, with what is wrong with it."""
    if not isinstance(asked, dict) or set(asked) != set(FIELDS):
        raise RequestError(f"A question of the lab has the fields {', '.join(FIELDS)}, and no other.")
    if not _whole(asked["base"]) or not known.has_base(asked["base"]):
        raise RequestError("This step is not kept any more: the lab keeps the last ones. Use Reset.")
    changes = tuple(_change(each, known) for each in _listed(asked["changes"], "changes"))
    settings = tuple(map(float, _listed(asked["settings"], "settings", _real)))
    if len(settings) != len(known.settings):
        raise RequestError(f"`settings` has {len(settings)} numbers, and the step has {len(known.settings)}.")
    places = dict(_places(each, known) for each in _listed(asked["places"], "places"))
    if sum(map(len, places.values())) > MOST:
        raise RequestError(f"`places` asks for more than {MOST:,} numbers.")
    chosen = asked["chosen"]
    if chosen is not None:
        chosen = _element(chosen, "chosen", known)
    if not isinstance(asked["step"], bool) or (asked["step"] and not known.updates):
        raise RequestError("`step` is true or false, and true only where the step has an update.")
    return Question(asked["base"], changes, settings, places, chosen, asked["step"])


def _whole(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def _real(item: Any) -> bool:
    return isinstance(item, (int, float)) and not isinstance(item, bool) and abs(item) <= 1e300


def _listed(item: Any, name: str, kind: Any = None) -> list[Any]:
    if not isinstance(item, list) or len(item) > MOST or (kind is not None and not all(map(kind, item))):
        what = "finite numbers" if kind is _real else "items"
        raise RequestError(f"`{name}` is a list of up to {MOST:,} {what}.")
    return item


def _element(item: Any, name: str, known: Known) -> tuple[int, int]:
    if not isinstance(item, list) or len(item) != 2 or not all(map(_whole, item)):
        raise RequestError(f"`{name}` names an element by its row and its place.")
    row, place = item
    if row not in known.values:
        raise RequestError(f"`{name}`: the step has no row {row}.")
    if not 0 <= place < prod(known.shape(row)):
        raise RequestError(f"`{name}`: row {row} has no element {place}.")
    return row, place


def _change(item: Any, known: Known) -> tuple[int, int, float]:
    if not isinstance(item, list) or len(item) != 3 or not (_real(item[2]) or _is_not_finite(item[2])):
        raise RequestError("`changes` has items of a row, a place and a number.")
    row, place = _element(item[:2], "changes", known)
    if row not in known.inputs:
        raise RequestError(f"`changes`: row {row} is computed, and cannot be changed.")
    number, dtype = item[2], known.dtype(row)
    if dtype == torch.bool or not dtype.is_floating_point:
        least, most = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        if not math.isfinite(number) or not least <= number <= most:
            raise RequestError(f"`changes`: row {row} takes whole numbers from {least} to {most}.")
        return row, place, int(number)
    return row, place, float(number)


def _is_not_finite(item: Any) -> bool:
    return isinstance(item, float) and not math.isfinite(item)


def _places(item: Any, known: Known) -> tuple[int, tuple[int, ...]]:
    if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], list):
        raise RequestError("`places` has items of a row and a list of places.")
    row, listed = item
    _within: Sequence[tuple[int, int]] = [_element([row, each], "places", known) for each in listed[: MOST + 1]]
    return row, tuple(place for _, place in _within)
