"""What every section needs: the recorded step, its derivation, the names, and how a tensor becomes a block."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor as Data

from chainrule.derivation.backprop import Contribution, Derivation, Step
from chainrule.derivation.forward_values import Forward
from chainrule.derivation.repeated_blocks import RepeatedBlocks
from chainrule.derivation.why import Search
from chainrule.diagnostics import Finding
from chainrule.document import Code, Histogram, Role, Sketch, Span, Tensor, Text, Verdict
from chainrule.execution.other_inputs import loss_after
from chainrule.graph.comparison import compare
from chainrule.graph.graph import Graph, Place
from chainrule.graph.names import Notation
from chainrule.graph.snapshot import (
    Parameter,
    Snapshot,
    all_have_numbers,
    data_of,
    has_numbers,
    statistics_of,
    type_name,
)
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import StatisticsCache, distance, histogram, memory, sketch
from chainrule.numbers import number
from chainrule.report.verdicts import UNKEPT, of_check
from chainrule.rules import Applied, Rule
from chainrule.rules.facts import base_name
from chainrule.verification.gradient_check import Rows
from chainrule.verification.rows import GradientCheck, Row, StepChecks
from chainrule.verification.update_check import updates_of

ELEMENTS = 144  # a tensor of up to 12 x 12 is shown number by number, a larger one by its statistics
JACOBIAN = 400  # a Jacobian of up to this many entries is written out
ROWS = 36  # of such a Jacobian, at most
PUT_IN = 12  # operands of up to this many elements are written as matrices in a formula
TURNS = 24  # single elements that are worked out


@dataclass(frozen=True)
class Context:
    """One recording with all that its reports are made from."""

    graph: Graph
    derivation: Derivation
    notation: Notation
    findings: tuple[Finding, ...] = ()
    rows: Mapping[int, Row] = field(default_factory=dict)  # node -> what verify() found
    statistics: StatisticsCache = field(default_factory=StatisticsCache)
    title: str = "One training step"

    def tensor(self, symbol: str, data: Data | None, role: Role, label: str = "", **labels: Any) -> Tensor:
        """A tensor as a block of the document: its numbers if it is small, else its statistics."""
        return self._tensor(symbol, data, role, label, self.statistics.statistics, labels)

    def passing(self, symbol: str, data: Data, role: Role, label: str = "") -> Tensor:
        """The same for a temporary tensor, whose statistics are not cached."""
        return self._tensor(symbol, data, role, label, Statistics.of, {})

    def _tensor(
        self,
        symbol: str,
        data: Data | None,
        role: Role,
        label: str,
        measure: Callable[[Data], Statistics],
        labels: dict[str, Any],
    ) -> Tensor:
        if data is None:
            return Tensor(symbol, (), "", role, None, label=label or "not kept")
        if not has_numbers(data):
            return _unkept(symbol, Snapshot.of(data), role, label)
        shape, dtype = tuple(data.shape), type_name(data.dtype)
        data = data.detach() if data.requires_grad else data
        data = data.to_dense() if data.layout is not torch.strided else data
        limit = JACOBIAN if role == "jacobian" else ELEMENTS
        if data.numel() <= limit:
            return Tensor(symbol, shape, dtype, role, entries(data), label=label, **labels)
        return Tensor(symbol, shape, dtype, role, None, pairs(measure(data)), label=label)

    def pictured(self, block: Tensor, data: Data | None) -> Tensor:
        """The block of a large tensor, with a thumbnail and a histogram."""
        if block.entries is not None or not has_numbers(data):
            return block
        data = data if data.layout is torch.strided else data.to_dense()
        key = memory(data)
        view = (key, data.shape, data.stride())
        if key not in self._histograms:
            self._histograms[key] = histogram(data, self.statistics.statistics(data))
        if view not in self._sketches:
            self._sketches[view] = (data, sketch(data))
        return replace(block, sketch=self._sketches[view][1], histogram=self._histograms[key])

    @cached_property
    def ends_of_calls(self) -> set[int]:
        """The last forward step of each call, and its first one back."""
        found: dict[tuple[int, str], int] = {}
        for step in self.derivation.steps:
            if step.call is not None and (step.kind == "forward" or (step.call, step.kind) not in found):
                found[step.call, step.kind] = step.index
        return set(found.values())

    @cached_property
    def _histograms(self) -> dict[object, Histogram | None]:
        return {}  # by memory, which the statistics cache holds

    @cached_property
    def _sketches(self) -> dict[object, tuple[Data, Sketch | None]]:
        return {}

    def value(self, index: int, label: str = "") -> Tensor:
        """A recorded value under its symbol."""
        value = self.graph.values[index]
        role: Role = "parameter" if value.kind == "parameter" else "value"
        return self.known(self.notation.symbol(index), value.snapshot, role, label)

    def gradient(self, symbol: str, index: int, data: Data | None, label: str = "") -> Tensor:
        """The gradient of a value; `data` may be without numbers."""
        known = None if data is None else Snapshot.of(data, self.graph.values[index].grad_statistics)
        return self.known(symbol, known, "gradient", label)

    def known(self, symbol: str, snapshot: Snapshot | None, role: Role, label: str = "") -> Tensor:
        """A tensor of the recording, of which perhaps only statistics were kept."""
        if snapshot is None or snapshot.has_numbers:
            return self.tensor(symbol, data_of(snapshot), role, label)
        return _unkept(symbol, snapshot, role, label)

    def arrived(self, index: int) -> Tensor | None:
        """The whole gradient of a value, with its thumbnail; None if none arrived."""
        value, symbol = self.graph.values[index], self.notation.gradient(index)
        if value.gradient is None:
            return None
        return self.pictured(self.known(symbol, value.gradient, "gradient"), value.grad)

    def norm(self, snapshot: Snapshot | None) -> str:
        """The norm of a tensor as text; not finite where an element is not."""
        data, known = data_of(snapshot), statistics_of(snapshot)
        if data is not None:
            return number(self.statistics.norm(data))
        return "not kept" if known is None else number(math.nan if known.not_finite else known.norm)

    def parameter(self, symbol: str, parameter: Parameter) -> Tensor:
        """A parameter as it was before the step."""
        if parameter.before is not None or parameter.value is None:
            return self.tensor(symbol, parameter.before, "parameter")
        return self.value(parameter.value)

    def symbols(self, step: Step) -> dict[str, str]:
        """The symbols for a rule's templates: `$self`, `$out`, `$g`, and `$out0`, `$g0`, ... for several results."""
        found: dict[str, str] = {}
        lists: dict[str, list[str]] = {}
        for name, item, value in step.arguments:
            if item is None:
                found[name] = group(self.notation.symbol(value))
            else:
                lists.setdefault(name, []).append(group(self.notation.symbol(value)))
        found |= {name: ", ".join(symbols) for name, symbols in lists.items()}
        backward = step.backward or 0
        for slot, value in enumerate(step.outputs):
            found[f"out{slot}"] = group(self.notation.symbol(value))
            found[f"g{slot}"] = group(self.notation.gradient(value, backward))
        if "g" in found:
            found["g_"] = found["g"]  # an argument of that name, as `$g` is the upstream gradient
        if step.outputs:
            found |= {"out": found["out0"], "g": found["g0"]}
        return found

    def results(self, step: Step) -> tuple[int, ...]:
        """The outputs to show: not those that an operation keeps for its own backward, as a norm keeps the mean."""
        return tuple(
            value
            for slot, value in enumerate(step.outputs)
            if not slot or value in self._used or self.graph.values[value].grad is not None
        )

    @cached_property
    def loss_after(self) -> float | None:
        """The loss that the recorded operations give with the parameters after the step; None where that is unknown."""
        return loss_after(self.graph)

    @cached_property
    def forward(self) -> Forward:
        """What gives the formula of one element of a result."""
        return self.search.forward

    @cached_property
    def turns(self) -> Iterator[int]:
        """How often a single element is worked out, as that takes time: of a large step for its first tensors alone."""
        return iter(range(TURNS))

    @cached_property
    def search(self) -> Search:
        """What gives the sum behind one element of a gradient."""
        return Search(self.graph, self.derivation, self.notation)

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Why entries of a Jacobian are zero by structure: each reason, and the Jacobian at which it is said."""
        return {}

    @cached_property
    def _used(self) -> set[int]:
        return {value for step in self.derivation.steps for _, _, value in step.arguments}

    def uses(self, value: int, backward: int | None = None) -> list[Contribution]:
        """The contributions to a value's gradient, one per use, in the order in which they are shown.

        Those of all backward passes that accumulate are one sum; each `torch.autograd.grad` is a sum of its own.
        """
        return self._uses.get((value, self._sum(backward)), [])

    @cached_property
    def _uses(self) -> dict[tuple[int, int | None], list[Contribution]]:
        found: dict[tuple[int, int | None], list[Contribution]] = {}
        for step in self.derivation.steps:
            for contribution in step.contributions:
                if contribution.value is not None:
                    found.setdefault((contribution.value, self._sum(step.backward)), []).append(contribution)
        return found

    def _sum(self, backward: int | None) -> int | None:
        """The sum that the contributions of a backward pass belong to: None for `.grad`."""
        return None if backward is None or self.graph.backwards[backward].accumulates else backward

    def contributions(self, value: int) -> list[Contribution]:
        """The contributions that add up to the value's `grad`, as `graph.counted` says."""
        return self.uses(value) or self._last_uses.get(value, [])

    @cached_property
    def _last_uses(self) -> dict[int, list[Contribution]]:
        return {value: contributions for (value, _), contributions in self._uses.items()}

    def is_whole(self, contribution: Contribution) -> bool:
        """Whether a contribution is the whole `grad` of its value."""
        return contribution.value is not None and [id(each) for each in self.contributions(contribution.value)] == [
            id(contribution)
        ]

    def arriving(self, value: int, backward: int, upstream: Data, label: str) -> Tensor:
        """What arrived at a value in one backward pass; if it is the value's `grad`, its statistics are known."""
        symbol, uses = self.notation.gradient(value, backward), self.uses(value, backward)
        if uses and uses is not self.contributions(value):
            return self.tensor(symbol, upstream, "gradient", label)
        return self.gradient(symbol, value, upstream, label)

    @cached_property
    def relative_updates(self) -> dict[int, float]:
        """For each parameter that an optimizer changed: the norm of the change over the norm before it."""
        found = {}
        for update in self.graph.updates:
            for each in update.parameters:
                known = self.statistics.of(each.start)
                if each.value is None or known is None or not (before := known.norm):
                    continue
                if each.update_statistics is not None:
                    found[each.value] = each.update_statistics.norm / before
                elif all_have_numbers(each.before, each.after):
                    found[each.value] = distance(each.after, each.before) / before
        return found

    def expression(self, step: Step) -> tuple[Span, ...]:
        """What the user wrote, and where."""
        place = self.place(step)
        if place is None:
            return ()
        code = (Code(place.expression), "  ") if place.expression else ()
        return (*code, f"({place})")

    def place(self, step: Step) -> Place | None:
        """Where in the user's code a step was called; a user's own `autograd.Function`: where it was applied."""
        if step.nodes and self.graph.nodes[step.nodes[0]].function_class is not None:
            return self.graph.nodes[step.nodes[0]].place
        if step.call is not None:
            return self.graph.calls[step.call].place
        return self.graph.nodes[step.nodes[0]].place if step.nodes else None

    def operation_name(self, step: Step) -> str:
        """What the step runs: the torch function, or the operation."""
        if step.call is not None and len(self.graph.calls[step.call].operations) == len(step.operations):
            return self.graph.calls[step.call].name
        return base_name(self.graph.operations[step.operations[0]].name)

    @cached_property
    def repeated(self) -> RepeatedBlocks:
        """Which blocks are repeated, so that one of them is shown for all."""
        return RepeatedBlocks(self.graph, self.derivation, lambda contribution: self.check(contribution).kind)

    def check(self, contribution: Contribution) -> Verdict:
        """Compare a contribution with autograd's gradient of the same edge."""
        known = self._checks.get(id(contribution))
        if known is None:
            known = self._checks[id(contribution)] = self._checked(contribution)
        return known

    def _checked(self, contribution: Contribution) -> Verdict:
        if contribution.gradient is None or contribution.recorded is None:
            return Verdict("not checked", ("this contribution is part of a sum, and the complete sum is checked",))
        self.statistics.are_twins(contribution.gradient, contribution.recorded)  # equal tensors are measured once
        in_grad = (
            contribution.value is not None
            and self.graph.values[contribution.value].kind == "parameter"
            and any(each is contribution for each in self.uses(contribution.value))
        )
        where: Span = Code(".grad") if in_grad else "autograd"
        check = self.checks.contribution(contribution)
        if contribution.value is not None and check.verdict == "by convention":
            own = f"of `{self.notation.plain(contribution.value)}`"
            check = replace(check, reason=check.reason.replace(f"of the input `{contribution.argument}`", own))
        if in_grad and contribution.value is not None and check.verdict != "disagrees":
            whole = self.checks.gradient(contribution.value)
            check = check if whole.verdict == "agrees" else whole
        return of_check(check, ("our rules against ", where))

    @cached_property
    def checks(self) -> StepChecks:
        """What the gradient check says of each step."""
        return StepChecks(self.graph, self.derivation, self.row)

    def row(self, node: int) -> Row:
        """What the gradient check says of a node."""
        return self._rows.row(node)

    @cached_property
    def _rows(self) -> Rows:
        return Rows(self.graph, self.rows)

    @cached_property
    def whole_check(self) -> GradientCheck:
        """The check of the whole step: what `verify` gives, where it has run."""
        rows = tuple(self.row(node.index) for node in self.graph.nodes)
        explained = sum(step.rule is not None for step in self.derivation.nodes)
        return GradientCheck(rows, (explained, len(rows)), updates=updates_of(self.graph))

    @cached_property
    def _checks(self) -> dict[int, Verdict]:
        return {}  # by the identity of contributions, which the derivation holds

    def held_before(self, name: str) -> str:
        """What the `.grad` of a parameter held when backward began."""
        parameter = self.graph.parameters[name]
        if parameter.has_gradient and parameter.grad is None:
            return "not kept"
        arrived = self.graph.values[parameter.value].grad if parameter.value is not None else None
        sent = self.graph.sent(parameter)
        if sent is None or arrived is None or self.statistics.are_twins(arrived, sent) or compare(sent, arrived).agrees:
            return "None"
        return f"left over from before, norm {distance(sent, arrived):.4g}"

    def check_gradient(self, value: int, ours: Data, recorded: Data, text: Text) -> Verdict:
        """Compare the whole gradient of a value by our rules with PyTorch's."""
        if not all_have_numbers(ours, recorded):
            return UNKEPT
        check = self.checks.gradient(value)
        if check.verdict == "agrees":
            found = compare(ours, recorded, count=len(self.derivation.nodes))
            grown = "" if found.agrees else f"rounding on the way makes {number(found.largest)} between the two"
            check = replace(check, reason=grown, comparison=found if found.agrees else None)
        return of_check(check, text)


def _unkept(symbol: str, snapshot: Snapshot, role: Role, label: str) -> Tensor:
    """A tensor of which at most the statistics were kept."""
    dtype, known = type_name(snapshot.dtype), snapshot.statistics
    statistics = pairs(known) if known is not None else (("elements", math.prod(snapshot.shape)),)
    note = "numbers not kept" if known is not None else "not kept"
    label = f"{label}; {note}" if label else note
    return Tensor(symbol, snapshot.shape, dtype, role, None, statistics, label=label)


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def group(symbol: str) -> str:
    """Braces around a symbol that has scripts of its own, so that it can take another."""
    return f"{{{symbol}}}" if set(symbol) & set("^_\\") else symbol


def entries(data: Data) -> tuple[Any, ...]:
    """The numbers in row-major order."""
    return tuple(data.reshape(-1).tolist())


def pairs(found: Statistics) -> tuple[tuple[str, float], ...]:
    """Statistics as a document has them; without finite elements, only the counts."""
    if found.not_finite == found.elements:
        return (("elements", found.elements), ("not finite", found.not_finite))
    return (
        ("elements", found.elements),
        ("norm", found.norm),
        ("mean", found.mean),
        ("std", found.std),
        ("min", found.low),
        ("max", found.high),
        ("zeros", found.zeros / found.elements),
        ("not finite", found.not_finite),
    )


def shape_text(shape: Sequence[int]) -> str:
    """A shape as a reader writes it: `2 x 3`, `3`, `a single number`."""
    return " x ".join(map(str, shape)) if shape else "a single number"


def matrix(data: Data, decimals: int = 4) -> str | None:
    """A small tensor as a matrix in LaTeX; None if it is too large to be part of a formula."""
    if not has_numbers(data) or data.numel() > PUT_IN or data.dim() > 2 or not data.numel() or data.is_complex():
        return None
    if data.dim() == 0:
        value = number(data.item(), decimals)
        return rf"({value})" if value.startswith("-") else value
    rows = (data if data.layout is torch.strided else data.to_dense()).reshape(-1, data.shape[-1]).tolist()
    body = r" \\ ".join(" & ".join(number(each, decimals) for each in row) for row in rows)
    return rf"\begin{{pmatrix}} {body} \end{{pmatrix}}"


def put_in(
    rule: Rule, template: Any, op: Applied, more: Mapping[str, Data | None], decimals: Callable[[], int]
) -> str | None:
    """A rule's template with numbers in place of the operands; None if one is too large, or is written by index.

    `decimals` gives how many of them the numbers need.
    """
    if re.search(r"\$(\w+)\}_|\$grad\b", rule.latex(template, op, {})):
        return None
    operands = {name: data for name, data in {**op.arguments, **more}.items() if isinstance(data, Data)}
    if any(matrix(data) is None for data in operands.values()):
        return None
    count = decimals()
    return rule.latex(template, op, {name: matrix(data, count) or "" for name, data in operands.items()})
