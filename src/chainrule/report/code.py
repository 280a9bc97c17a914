"""The step as code, which recomputes the results of each section with torch and compares them with the recorded ones.

The code of each section builds on that of the sections before it, in reading order: leaves, forward, backward, update.
Small tensors start as the recorded numbers and everything else is computed from them, so that a reader can change a
number and see the effect. There is no code for a step whose operands are too large to be written down, or that draws
random numbers. Operations are called by their ATen names, exactly as they ran. A user's text enters the code only as an
identifier or as the `repr` of a string.
"""

from __future__ import annotations

import inspect
import keyword
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor as Data

from chainrule.derivation.backprop import Contribution, Step
from chainrule.document import Section
from chainrule.graph.comparison import FLOAT32, FLOOR, MARGIN, allowance
from chainrule.graph.graph import Operation, Ref, counted
from chainrule.graph.reexecution import Reexecution
from chainrule.graph.snapshot import ParameterUpdate, has_numbers
from chainrule.pytorch_internals import OpOverload
from chainrule.report.context import ELEMENTS, JACOBIAN, Context
from chainrule.rules.facts import facts_of

PREAMBLE = f'''\
import math
from math import inf, nan

import torch
from torch import Tensor

aten = torch.ops.aten
COMPARE = True  # False: change any number and see the effect, without comparing with the recording
MARGIN, FLOAT32, FLOOR = {MARGIN}, {FLOAT32}, {FLOOR}


{inspect.getsource(allowance)}

def terms_of(through, operand, upstream):
    """How large the terms of each element of a gradient are: with random signs they do not cancel."""
    several = upstream if isinstance(upstream, tuple) else (upstream,)
    found, generator = torch.zeros(operand.shape, dtype=torch.float64), torch.Generator().manual_seed(0)
    for _ in range(3 if COMPARE else 0):
        signs = [2.0 * torch.randint(2, each.shape, generator=generator).to(each) - 1 for each in several]
        given = tuple(sign * each for sign, each in zip(signs, several))
        product = torch.autograd.functional.vjp(through, operand, given if len(given) > 1 else given[0])[1]
        found = torch.maximum(found, product.abs().double())
    return found


def check(result, recorded, terms=0.0):
    """Compare a recomputed result with the recorded one, up to rounding, and return the recorded one."""
    if not COMPARE:
        return result
    rounds = recorded.is_floating_point() or recorded.is_complex()
    eps = torch.finfo(recorded.dtype).eps if rounds else 0.0
    wide = torch.complex128 if recorded.is_complex() else torch.float64
    got, expected = result.to(wide), recorded.to(wide)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    size = torch.maximum(got.abs(), expected.abs()).nan_to_num(0.0, 0.0, 0.0)
    apart = (got - expected).abs()
    same = (apart <= allowance(size, size + size.square().mean().sqrt() + terms, 1, eps)) | (got == expected)
    same |= got.isnan() & expected.isnan()
    assert bool(same.all()), f"not the recorded result: it differs by up to {{float(apart.max())}}"
    return recorded
'''
_TORCH_TYPES = (torch.dtype, torch.layout, torch.memory_format)


class Unwritable(Exception):  # noqa: N818 (never leaves this module)
    """This cannot be written as code that runs on its own."""


def with_code(context: Context, sections: Sequence[Section]) -> tuple[Section, ...]:
    """The sections, each with the code that recomputes it, if there is any."""
    anchors = {each.anchor for section in sections for _, each in section.walk()}
    codes: dict[str, str] = {}
    waiting: list[str] = []  # of steps without a section, because the step of a repeated block is shown for them
    for anchor, written in _Writer(context).codes():
        waiting += [written] if written else []
        if anchor in anchors:
            codes[anchor] = "\n".join(waiting)
            waiting = []
    return tuple(_filled(section, codes) for section in sections)


def _filled(section: Section, codes: Mapping[str, str]) -> Section:
    inner = tuple(_filled(each, codes) for each in section.sections)
    return replace(section, sections=inner, code=codes.get(section.anchor, ""))


class _Writer:
    """Writes the code in reading order, and keeps track of the names that it has defined."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._graph = context.graph
        self._names: dict[object, str] = {}
        self._defined: set[str] = set()
        steps = context.derivation.steps
        self._forward = [step for step in steps if step.kind == "forward"]
        self._backward = [step for step in steps if step.kind == "backward"]
        self._contributions: dict[tuple[int, int], list[Contribution]] = {}  # (value, backward) -> contributions
        for step in self._backward:
            for contribution in step.contributions:
                if contribution.value is not None and contribution.gradient is not None:
                    self._contributions.setdefault((contribution.value, step.backward or 0), []).append(contribution)

        self._reached: dict[int, list[int]] = {}  # value -> the backward passes in which it got gradients
        for value, backward in self._contributions:
            self._reached.setdefault(value, []).append(backward)

    def codes(self) -> Iterator[tuple[str, str]]:
        """The code of each section that has any, with its anchor."""
        yield "setting", "\n".join([PREAMBLE, "", *self._leaves()])
        for number, (_, parameter) in enumerate(self._graph.parameters.items()):
            if parameter.value is not None:
                yield f"parameter-{number}", "\n".join(self._leaf(parameter.value, parameter.before))
        for number, step in enumerate(self._forward, 1):
            yield f"forward-{number}", "\n".join(self._computed(step))
        for number, step in enumerate(self._backward, 1):
            yield f"backward-{number}", "\n".join(self._arrived(step))
            for contribution in step.contributions:
                if contribution.value is not None and contribution.gradient is not None:
                    item = "" if contribution.item is None else f"-{contribution.item}"
                    yield f"backward-{number}-{contribution.argument}{item}", "\n".join(self._back(step, contribution))
        yield "gradients", "\n".join(self._sums())
        for number, update in enumerate(self._graph.updates, 1):
            for place, each in enumerate(update.parameters):
                yield f"update-{number}-{place}", "\n".join(self._update(update.optimizer, each))

    # -- leaves and the forward pass

    def _leaves(self) -> Iterator[str]:
        """What the shown steps use but do not compute: input data, and results through which no gradient flows."""
        used = {value for step in self._forward for _, _, value in step.arguments}
        made = {value for step in self._forward for operation in step.operations for value in self._outputs(operation)}
        leaves = used - made
        for value in self._graph.values:
            if value.index in leaves and value.kind != "parameter":
                yield from self._leaf(value.index, value.data)

    def _leaf(self, value: int, data: Data | None) -> Iterator[str]:
        name = self._name(value)
        if name not in self._defined and _is_small(data):
            self._defined.add(name)
            yield f"{name} = {literal(data)}"

    def _computed(self, step: Step) -> list[str]:
        results = self._context.results(step)
        try:
            lines = self._run(step, {})
        except Unwritable:
            return [line for value in results for line in self._leaf(value, self._graph.values[value].data)]
        self._defined |= {self._name(value) for op in step.operations for value in self._outputs(op)}
        for value in results:
            data = self._graph.values[value].data
            if data is not None and _is_small(data):
                lines.append(_checked(self._name(value), data))
        return lines

    def _run(self, step: Step, renamed: Mapping[tuple[str, int | None] | int, str]) -> list[str]:
        """The operations of a step, one line each. Raises Unwritable where one cannot be written."""
        inner: set[int] = set()
        lines = []
        for index in step.operations:
            operation = self._graph.operations[index]
            outputs = self._outputs(index)
            left = ", ".join("_" if v is None else self._name(v) for v in operation.outputs)
            lines.append(f"{left} = {self._called(operation, inner, renamed)}")
            inner.update(outputs)
        return lines

    def _outputs(self, operation: int) -> list[int]:
        return [value for value in self._graph.operations[operation].outputs if value is not None]

    def _called(self, operation: Operation, inner: set[int], renamed: Mapping[Any, str]) -> str:
        """One operation as a call by its ATen name, without the arguments that have their default."""
        overload = operation.function.function if isinstance(operation.function, Reexecution) else None
        if not isinstance(overload, OpOverload) or overload.namespace != "aten":
            raise Unwritable
        if torch.Tag.nondeterministic_seeded in overload.tags or not operation.outputs:
            raise Unwritable
        if facts_of(operation.name).unwritten:  # memory that holds anything: as it was recorded
            raise Unwritable
        if len(overload._schema.returns) not in (1, len(operation.outputs)):  # some of its results are None
            raise Unwritable
        given: list[tuple[Any, Any]] = []
        for argument in overload._schema.arguments:
            value = operation.arguments.get(argument.name)
            if argument.is_out:
                raise Unwritable
            given.append((argument, value))
        while given and _is_default(*given[-1]):
            given.pop()
        parts = []
        for argument, value in given:
            text = renamed.get((argument.name, None)) or self._argument(value, argument.name, inner, renamed)
            changed = argument.alias_info is not None and argument.alias_info.is_write
            text += ".clone()" if changed and isinstance(value, Ref) else ""
            parts.append(f"{argument.name}={text}" if argument.kwarg_only else text)
        overload_name = "" if overload._overloadname == "default" else f".{overload._overloadname}"
        return f"aten.{overload._opname}{overload_name}({', '.join(parts)})"

    def _argument(self, item: Any, name: str, inner: set[int], renamed: Mapping[Any, str]) -> str:
        if isinstance(item, Ref):
            if item.value in renamed:
                return renamed[item.value]
            written = self._name(item.value)
            if item.value not in inner and written not in self._defined:
                raise Unwritable
            return written
        if isinstance(item, list):
            each = (renamed.get((name, i)) or self._argument(x, name, inner, renamed) for i, x in enumerate(item))
            return f"[{', '.join(each)}]"
        if isinstance(item, _TORCH_TYPES):
            return str(item)
        if isinstance(item, torch.device):
            return f"torch.device({str(item)!r})"
        if item is None or isinstance(item, (bool, int, float, str)):
            return repr(item)
        raise Unwritable

    # -- the backward pass

    def _arrived(self, step: Step) -> list[str]:
        """The upstream gradients: the sums of their contributions if all of these are defined, else as recorded."""
        lines: list[str] = []
        for slot, value in enumerate(step.outputs):
            upstream = step.upstream[slot] if slot < len(step.upstream) else None
            if upstream is not None:
                # PyTorch's parts add up to PyTorch's gradient; that of the walk has roundings of its own.
                grad = self._graph.values[value].grad
                known = self._pass_of(value) == (step.backward or 0) and has_numbers(grad)
                lines += self._total(value, step.backward or 0, grad if known and grad is not None else upstream)
        return lines

    def _total(self, value: int, backward: int, recorded: Data) -> Iterator[str]:
        name = self._gradient(value, backward)
        contributions = [
            self._contribution(value, backward, each) for each in self._contributions.get((value, backward), [])
        ]
        if name in self._defined:
            return
        if len(contributions) > 1 and self._defined.issuperset(contributions):
            self._defined.add(name)
            yield f"{name} = {' + '.join(contributions)}  # one contribution per use"
            if _is_small(recorded):
                yield _checked(name, recorded)
        elif _is_small(recorded):
            self._defined.add(name)
            yield f"{name} = {literal(recorded)}"

    def _back(self, step: Step, contribution: Contribution) -> list[str]:
        """One contribution to a gradient: the product that PyTorch runs, and the same by a small Jacobian."""
        recorded = contribution.gradient if contribution.recorded is None else contribution.recorded
        if contribution.value is None or recorded is None:
            return []
        name = self._contribution(contribution.value, step.backward or 0, contribution)
        try:
            lines, terms = self._product(step, contribution.value, name, self._renamed(step, contribution))
        except Unwritable:
            if not _is_small(recorded) or name in self._defined:
                return []
            self._defined.add(name)
            return [f"{name} = {literal(recorded)}"]
        self._defined.add(name)
        return [*lines, _checked(name, recorded, terms)] if _is_small(recorded) else lines

    def _product(self, step: Step, variable: int, name: str, renamed: Mapping[Any, str]) -> tuple[list[str], str]:
        """The lines that work a gradient out, and the code that gives the size of its terms."""
        operand = self._name(variable)
        slots = [slot for slot, g in enumerate(step.upstream) if g is not None and slot < len(step.outputs)]
        upstream = [self._gradient(step.outputs[slot], step.backward or 0) for slot in slots]
        outputs = [self._name(step.outputs[slot]) for slot in slots]
        if not outputs or not self._defined.issuperset([operand, *upstream]):
            raise Unwritable
        body = self._run(step, renamed)
        one = len(outputs) == 1
        lines = ["def through(operand):", *(f"    {line}" for line in body)]
        lines += [f"    return {', '.join(outputs)}", "", ""]
        given = upstream[0] if one else f"({', '.join(upstream)})"
        lines.append(f"{name} = torch.autograd.functional.vjp(through, {operand}, {given})[1]  # what PyTorch runs")
        terms = f"terms_of(through, {operand}, {given})"
        value, output = self._graph.values[variable], self._graph.values[step.outputs[slots[0]]]
        rows, columns = math.prod(output.shape), math.prod(value.shape)
        real = value.dtype == output.dtype and value.dtype.is_floating_point
        if one and real and 0 < rows * columns <= JACOBIAN:
            lines.append(
                f"jacobian = torch.autograd.functional.jacobian(through, {operand}).reshape({rows}, {columns})"
            )
            product = f"({upstream[0]}.reshape(1, -1) @ jacobian).reshape({operand}.shape)"
            lines.append(f"check({product}, {name}, {terms})  # by the Jacobian")
        return lines, terms

    def _renamed(self, step: Step, contribution: Contribution) -> dict[Any, str]:
        """Which argument is the variable: the value itself, or this one argument if the value is used for several."""
        if sum(value == contribution.value for _, _, value in step.arguments) == 1:
            return {contribution.value: "operand"}
        if len(step.operations) == 1:
            return {(contribution.argument, contribution.item): "operand"}
        raise Unwritable

    def _sums(self) -> Iterator[str]:
        """The gradients of leaves that are used several times, which no step needs."""
        for (value, backward), contributions in self._contributions.items():
            recorded = self._graph.values[value].grad
            if len(contributions) > 1 and recorded is not None and self._pass_of(value) == backward:
                yield from self._total(value, backward, recorded)

    # -- the update

    def _update(self, optimizer: str, each: ParameterUpdate) -> list[str]:
        try:
            return list(self._stepped(optimizer, each))
        except Unwritable:
            return []

    def _stepped(self, optimizer: str, each: ParameterUpdate) -> Iterator[str]:
        kind = getattr(torch.optim, optimizer, None)
        if each.grad is None or each.value is None or not optimizer.isidentifier() or not isinstance(kind, type):
            raise Unwritable
        if not each.is_whole:
            raise Unwritable
        name = self._name(each.value)
        backward = self._pass_of(each.value)
        gradient = None if backward is None else self._gradient(each.value, backward)
        recorded = self._graph.values[each.value].grad
        if name not in self._defined:
            raise Unwritable
        if gradient not in self._defined or recorded is None or not torch.equal(recorded, each.grad):
            gradient = _needed(each.grad)
        state = [f"{key!r}: {_needed(value)}" for key, value in each.state_before.items()]
        options = "".join(f", {key}={value!r}" for key, value in _options(kind, each.options))
        yield f"{name}_new = {name}.clone().requires_grad_()"
        yield f"{name}_new.grad = {gradient}.clone()"
        yield f"optimizer = torch.optim.{optimizer}([{name}_new]{options})"
        if state:
            yield f"optimizer.state[{name}_new] = {{{', '.join(state)}}}"
        yield "optimizer.step()"
        yield f"check({name}_new.detach(), {_needed(each.after)})"

    def _pass_of(self, value: int) -> int | None:
        """The backward pass that a value's gradient comes from; None if it is the sum of several."""
        passes = counted(self._graph.backwards, self._reached.get(value, ()))
        return passes[0] if len(passes) == 1 else None

    # -- names

    def _name(self, value: int) -> str:
        return self._identifier(value, self._context.notation.plain(value))

    def _gradient(self, value: int, backward: int) -> str:
        loss = self._context.notation.plain_loss(backward)
        return self._identifier((value, backward), f"d{loss}_d{self._name(value)}")

    def _contribution(self, value: int, backward: int, contribution: Contribution) -> str:
        """The name of one contribution: that of the gradient if there is no other."""
        contributions = self._contributions[(value, backward)]
        if len(contributions) == 1:
            return self._gradient(value, backward)
        place = next(i for i, each in enumerate(contributions, 1) if each is contribution)
        return self._identifier((value, backward, place), f"{self._gradient(value, backward)}_use{place}")

    def _identifier(self, key: object, wish: str) -> str:
        """A unique name for each key, as near to the wish as Python's grammar allows."""
        if key not in self._names:
            name = re.sub(r"\W", "_", wish, flags=re.ASCII)
            name = f"_{name}" if not name or name[0].isdigit() or keyword.iskeyword(name) or name in _TAKEN else name
            taken, number = set(self._names.values()), 2
            unique = name
            while unique in taken:
                unique, number = f"{name}_{number}", number + 1
            self._names[key] = unique
        return self._names[key]


_TAKEN = frozenset(
    ("torch", "aten", "check", "through", "operand", "jacobian", "optimizer", "COMPARE", "inf", "nan", "_")
)


def _is_default(argument: Any, value: Any) -> bool:
    return not isinstance(value, (Ref, list)) and argument.has_default_value() and value == argument.default_value


def _checked(name: str, recorded: Data, terms: str = "") -> str:
    return f"{name} = check({name}, {literal(recorded)}{', ' * bool(terms)}{terms})"


def _is_small(data: Data | None) -> bool:
    return has_numbers(data) and data.numel() <= ELEMENTS and data.layout is torch.strided


def _needed(item: Any) -> str:
    if isinstance(item, Data):
        if _is_small(item):
            return literal(item)
        raise Unwritable
    if item is None or isinstance(item, (bool, int, float)):
        return repr(item)
    raise Unwritable


def _options(kind: type, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The options of the optimizer's constructor that differ from their defaults."""
    for key, parameter in inspect.signature(kind).parameters.items():
        if key in options and options[key] != parameter.default:
            value = options[key]
            several = value if isinstance(value, tuple) else (value,)
            if not all(each is None or isinstance(each, (bool, int, float)) for each in several):
                raise Unwritable
            yield key, value


def literal(data: Data | None) -> str:
    """A tensor as code that creates the same tensor, bit for bit, with floats as short as that allows."""
    assert data is not None
    data = data.detach().cpu().resolve_conj().resolve_neg()
    if not data.numel():
        return f"torch.empty({tuple(data.shape)}, dtype={data.dtype})"
    body = _nested(data.tolist(), data.dtype)
    return f"torch.tensor({body}" + (")" if data.dtype in _DEFAULT else f", dtype={data.dtype})")


_DEFAULT = (torch.float32, torch.int64, torch.bool)  # the dtypes that torch.tensor gives to Python's numbers


def _nested(item: Any, dtype: torch.dtype) -> str:
    if isinstance(item, list):
        return "[" + ", ".join(_nested(each, dtype) for each in item) + "]"
    if isinstance(item, float) and math.isfinite(item) and dtype is not torch.float64:
        return repr(float(str(numpy.float32(item))))  # the shortest text of this float32 or narrower
    if isinstance(item, complex):
        return f"complex({item.real!r}, {item.imag!r})"
    return repr(item)
