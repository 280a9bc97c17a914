"""The instructions of a program, and how they are written.

A program computes slots: flat arrays of one number type. An instruction is `(name, slot, operands, *sizes)`. An operand
is a slot, a slot with the number of a table (element i of the operand is element table[i] of the slot), or a number,
as text. What moves elements (a view, a transpose, a slice, a broadcast) is no instruction at all: it only changes the
table through which the next instruction reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Indices = np.ndarray[Any, np.dtype[np.int64]]

TYPES = {
    torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "bfloat16",
    torch.int64: "integer", torch.int32: "integer", torch.int16: "integer", torch.int8: "integer",
    torch.uint8: "integer", torch.bool: "boolean",
}  # fmt: skip


class NoProgramError(Exception):
    """A step that does not come down to the primitives; says why, as a page states it."""


@dataclass(frozen=True)
class Operand:
    """Elements of a slot, in the order of `places` (None: all of them, in their own order)."""

    slot: int
    places: Indices | None = None

    def at(self, places: Indices) -> Operand:
        """Elements of these elements."""
        return Operand(self.slot, places if self.places is None else self.places[places])


Written = Operand | float | bool
"""An operand of an instruction, or a number."""


class Writer:
    """Instructions in the order in which they were written; what was written before is not written again."""

    def __init__(self) -> None:
        self.types: list[str] = []
        self.sizes: list[int] = []
        self._constants: dict[int, tuple[Any, ...]] = {}
        self._code: dict[int, tuple[Any, ...]] = {}  # by the slot that each computes
        self._tables: list[tuple[int, ...]] = []
        self._known: dict[str, int] = {}

    def slot(self, dtype: torch.dtype, size: int) -> int:
        """A new slot."""
        if dtype not in TYPES:
            raise NoProgramError(
                f"numbers of the type {str(dtype).removeprefix('torch.')} are not among the primitives'"
            )
        self.types.append(TYPES[dtype])
        self.sizes.append(size)
        return len(self.types) - 1

    def constant(self, data: Tensor) -> Operand:
        """A slot of numbers that nothing changes."""
        held = numbers(data)
        key = json.dumps([TYPES.get(data.dtype), held])
        if key not in self._known:
            self._known[key] = self.slot(data.dtype, len(held))
            self._constants[self._known[key]] = held
        return Operand(self._known[key])

    def write(self, name: str, dtype: torch.dtype, size: int, operands: Sequence[Written], *sizes: int) -> Operand:
        """An instruction that computes `size` numbers; the slot that has them."""
        line = (tuple(map(self.encoded, operands)), *sizes)
        key = json.dumps([name, line, TYPES.get(dtype), size])
        if key not in self._known:
            self._known[key] = self.slot(dtype, size)
            self._code[self._known[key]] = (name, self._known[key], *line)
        return Operand(self._known[key])

    def copied(self, operand: Operand, dtype: torch.dtype, size: int) -> Operand:
        """A slot of its own with these numbers, which a reader of the program may overwrite."""
        slot = self.slot(dtype, size)
        self._code[slot] = ("join", slot, (self.encoded(operand),))
        return Operand(slot)

    def encoded(self, operand: Written) -> Any:
        """An operand as it stands in an instruction."""
        if not isinstance(operand, Operand):
            return str(_encoded(float(operand)))
        size, places = self.sizes[operand.slot], operand.places
        if places is None or (len(places) == size and bool((places == np.arange(size)).all())):
            return operand.slot
        return operand.slot, self._table(places)

    def _table(self, places: Indices) -> int:
        table = tuple(_runs(places))
        key = json.dumps(["table", table])
        if key not in self._known:
            self._known[key] = len(self._tables)
            self._tables.append(table)
        return self._known[key]

    def needed(self, results: Iterable[Any]) -> set[int]:
        """The slots that the results, as operands stand in an instruction, are computed from."""
        found = set(map(slot_of, results))
        for slot, (_, _, operands, *_) in reversed(self._code.items()):
            if slot in found:
                found.update(map(slot_of, operands))
        return found

    def parts(self, results: Iterable[Any]) -> dict[str, Any]:
        """The fields of a `Program` that hold its slots and instructions, of those that the results need."""
        needed = self.needed(results)
        return {
            "types": tuple(self.types),
            "sizes": tuple(self.sizes),
            "constants": tuple((slot, held) for slot, held in self._constants.items() if slot in needed),
            "tables": tuple(self._tables),
            "code": tuple(line for slot, line in self._code.items() if slot in needed),
        }


def numbers(data: Tensor) -> tuple[Any, ...]:
    """The numbers of a tensor in a row, with as many digits as its type needs; JSON lacks those that are text here."""
    found = data.detach().reshape(-1).tolist()
    if data.dtype in (torch.float32, torch.float16, torch.bfloat16):
        found = [float(f"{each:.9g}") for each in found]
    return tuple(map(_encoded, found))


def slot_of(encoded: Any) -> int:
    """The slot of an encoded operand; -1 for a number."""
    if isinstance(encoded, tuple):
        return int(encoded[0])
    return encoded if isinstance(encoded, int) else -1


def _runs(places: Indices) -> Iterator[int]:
    """Places as a row of `first, step, count`, one such triple for as many places as lie equally far apart."""
    start = 0
    while start < len(places):
        step = int(places[start + 1] - places[start]) if start + 1 < len(places) else 0
        end = start + 1
        while end < len(places) and places[end] - places[end - 1] == step:
            end += 1
        yield from (int(places[start]), step, end - start)
        start = end


def _encoded(number: Any) -> Any:
    return number if isinstance(number, (bool, int)) or np.isfinite(number) else str(number)
