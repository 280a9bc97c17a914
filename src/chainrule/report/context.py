"""What every section needs: the facts, the derivation, the names, and how a tensor is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor as Data

from chainrule.derivation.backprop import Derivation, Share, Step
from chainrule.diagnostics import Finding
from chainrule.document import Code, Histogram, Kind, Role, Sketch, Span, Tensor, Text, Verdict
from chainrule.graph.comparison import compare
from chainrule.graph.graph import Graph, Parameter, ParameterUpdate, Place, Update
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import Measures, distance, memory
from chainrule.graph.symbols import Notation
from chainrule.numbers import number
from chainrule.report.checks import UNKEPT, of_check
from chainrule.report.folding import Folding
from chainrule.report.sketches import histogram, sketch
from chainrule.rules import Applied, Rule
from chainrule.rules.optimizers import terms_agree
from chainrule.verification.gradient_check import Rows
from chainrule.verification.rows import Row
from chainrule.verification.step_checks import StepChecks, compare_update

ELEMENTS = 144  # a tensor of up to 12 x 12 is shown number by number, a larger one by its statistics
JACOBIAN = 400  # a Jacobian of up to this many entries is written out
PUT_IN = 12  # operands of up to this many elements stand as matrices in a formula with the numbers put in


@dataclass(frozen=True)
class Context:
    """One recording, ready to be told."""

    graph: Graph
    derivation: Derivation
    notation: Notation
    findings: tuple[Finding, ...] = ()
    rows: Mapping[int, Row] = field(default_factory=dict)  # node -> what `verify` has found there
    measures: Measures = field(default_factory=Measures)

    def tensor(self, symbol: str, data: Data | None, role: Role, label: str = "", **labels: Any) -> Tensor:
        """A tensor as a block of the document: its numbers where it is small, else its statistics."""
        return self._tensor(symbol, data, role, label, self.measures.statistics, labels)

    def passing(self, symbol: str, data: Data, role: Role, label: str = "") -> Tensor:
        """The same of a tensor that was made to be told: nothing is kept of it."""
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
        if data.is_meta:
            return _unkept(symbol, data, role, label, None)
        shape, dtype = tuple(data.shape), str(data.dtype).removeprefix("torch.")
        data = data.detach() if data.requires_grad else data
        data = data.to_dense() if data.layout is not torch.strided else data
        limit = JACOBIAN if role == "jacobian" else ELEMENTS
        if data.numel() <= limit:
            return Tensor(symbol, shape, dtype, role, entries(data), label=label, **labels)
        return Tensor(symbol, shape, dtype, role, None, pairs(measure(data)), label=label)

    def pictured(self, told: Tensor, data: Data | None) -> Tensor:
        """A tensor that is too large to be told number by number, with what it looks like from afar."""
        if told.entries is not None or data is None or data.is_meta:
            return told
        data = data if data.layout is torch.strided else data.to_dense()
        key = memory(data)
        view = (key, data.shape, data.stride())
        if key not in self._histograms:
            self._histograms[key] = histogram(data, self.measures.statistics(data))
        if view not in self._sketches:
            self._sketches[view] = (data, sketch(data))
        return replace(told, sketch=self._sketches[view][1], histogram=self._histograms[key])

    @cached_property
    def _histograms(self) -> dict[object, Histogram | None]:
        return {}  # by memory, which the measures hold

    @cached_property
    def _sketches(self) -> dict[object, tuple[Data, Sketch | None]]:
        return {}

    def value(self, index: int, label: str = "") -> Tensor:
        """A recorded value under its symbol."""
        value = self.graph.values[index]
        role: Role = "parameter" if value.kind == "parameter" else "value"
        if value.data is None:
            return _unkept(self.notation.symbol(index), value.without_numbers(), role, label, value.statistics)
        return self.tensor(self.notation.symbol(index), value.data, role, label)

    def gradient(self, symbol: str, index: int, data: Data | None, label: str = "") -> Tensor:
        """The gradient of a value; `data` is what is known of it, with or without numbers."""
        return self.known(symbol, data, "gradient", self.graph.values[index].grad_statistics, label)

    def known(self, symbol: str, data: Data | None, role: Role, figures: Statistics | None, label: str = "") -> Tensor:
        """A tensor of which perhaps the figures alone were kept: it is on the device `meta` then."""
        if data is None or not data.is_meta:
            return self.tensor(symbol, data, role, label)
        return _unkept(symbol, data, role, label, figures)

    def arrived(self, index: int) -> Tensor | None:
        """The whole gradient of a value, pictured; None where none arrived."""
        value, symbol = self.graph.values[index], self.notation.gradient(index)
        if value.grad is None and not value.has_gradient:
            return None
        data = value.without_numbers() if value.grad is None else value.grad
        return self.pictured(self.gradient(symbol, index, data), value.grad)

    def figures(self, data: Data | None, known: Statistics | None) -> Statistics | None:
        """The figures of a tensor, or those that were taken in its place; None where there are none of either."""
        return self.measures.statistics(data) if data is not None and not data.is_meta else known

    def parameter(self, symbol: str, parameter: Parameter) -> Tensor:
        """A parameter as it was before the step."""
        label = f"shape {shape_text(parameter.shape)}"
        if parameter.before is not None or parameter.value is None:
            return self.tensor(symbol, parameter.before, "parameter", label)
        return self.value(parameter.value, label)

    def symbols(self, step: Step) -> dict[str, str]:
        """The operands' symbols for a rule's templates: `$self`, `$out`, `$g`, and `$out0`, `$g0`, ... for several."""
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
        if step.outputs:
            found |= {"out": found["out0"], "g": found["g0"]}
        return found

    def results(self, step: Step) -> tuple[int, ...]:
        """The outputs worth telling: not those that an operation keeps for itself, as a norm keeps the mean."""
        return tuple(
            value
            for slot, value in enumerate(step.outputs)
            if not slot or value in self._used or self.graph.values[value].grad is not None
        )

    @cached_property
    def _used(self) -> set[int]:
        return {value for step in self.derivation.steps for _, _, value in step.arguments}

    def uses(self, value: int, backward: int | None = None) -> list[Share]:
        """The shares of a value's gradient that its uses send back, in the order in which they are told.

        Those of all passes that accumulate are one sum; what `torch.autograd.grad` finds is one of its own.
        """
        return self._uses.get((value, self._sum(backward)), [])

    @cached_property
    def _uses(self) -> dict[tuple[int, int | None], list[Share]]:
        found: dict[tuple[int, int | None], list[Share]] = {}
        for step in self.derivation.steps:
            for share in step.shares:
                if share.value is not None:
                    found.setdefault((share.value, self._sum(step.backward)), []).append(share)
        return found

    def _sum(self, backward: int | None) -> int | None:
        """Which sum the shares of a pass belong to: None for `.grad`."""
        return None if backward is None or self.graph.backwards[backward].accumulates else backward

    def shares(self, value: int) -> list[Share]:
        """The shares that the value's `grad` is the sum of, as `graph.counted` says."""
        return self.uses(value) or self._last_uses.get(value, [])

    @cached_property
    def _last_uses(self) -> dict[int, list[Share]]:
        return {value: shares for (value, _), shares in self._uses.items()}

    def is_whole(self, share: Share) -> bool:
        """Whether a share is all of its value's `grad`."""
        return share.value is not None and [id(each) for each in self.shares(share.value)] == [id(share)]

    def arriving(self, value: int, backward: int, upstream: Data, label: str) -> Tensor:
        """What arrived at a value in one pass; its figures are known where it is the value's `grad`."""
        symbol, uses = self.notation.gradient(value, backward), self.uses(value, backward)
        if uses and uses is not self.shares(value):
            return self.tensor(symbol, upstream, "gradient", label)
        return self.gradient(symbol, value, upstream, label)

    @cached_property
    def relative_updates(self) -> dict[int, float]:
        """For each parameter that an optimizer changed: the norm of the change over the norm of what it was before."""
        found = {}
        for update in self.graph.updates:
            for each in update.parameters:
                known = self.figures(each.before, each.before_statistics)
                if each.value is None or known is None or not (before := known.norm):
                    continue
                if each.update_statistics is not None:
                    found[each.value] = each.update_statistics.norm / before
                elif not (each.before.is_meta or each.after.is_meta):
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
        """Where in the user's code a step began; for a user's own `autograd.Function` where it was applied."""
        if step.nodes and self.graph.nodes[step.nodes[0]].function_class is not None:
            return self.graph.nodes[step.nodes[0]].place
        if step.call is not None:
            return self.graph.calls[step.call].place
        return self.graph.nodes[step.nodes[0]].place if step.nodes else None

    def operation_name(self, step: Step) -> str:
        """What the step runs, in a word: the torch function, or the operation."""
        if step.call is not None and len(self.graph.calls[step.call].operations) == len(step.operations):
            return self.graph.calls[step.call].name
        return self.graph.operations[step.operations[0]].name.removeprefix("aten.").split(".")[0]

    @cached_property
    def folding(self) -> Folding:
        """Which blocks are alike, so that one of them is told for all."""
        return Folding(self.graph, self.derivation, lambda share: self.check(share).kind)

    def check(self, share: Share) -> Verdict:
        """A share of a gradient against autograd's own of this very edge."""
        known = self._checks.get(id(share))
        if known is None:
            known = self._checks[id(share)] = self._checked(share)
        return known

    def _checked(self, share: Share) -> Verdict:
        if share.gradient is None or share.recorded is None:
            return Verdict("not checked", ("this share goes into a sum; the sum is checked where it is complete",))
        self.measures.are_twins(share.gradient, share.recorded)  # equal tensors are measured once
        is_left = (
            share.value is not None
            and self.graph.values[share.value].kind == "parameter"
            and any(each is share for each in self.uses(share.value))
        )
        where = Code(".grad" if is_left else "autograd's own gradient")
        check = self.checks.contribution(share)
        if is_left and share.value is not None and check.verdict != "disagrees":
            whole = self.checks.gradient(share.value)
            check = whole if whole.verdict == "disagrees" else check
        return of_check(check, ("our rules against ", where))

    @cached_property
    def checks(self) -> StepChecks:
        """What the gradient check says of each step."""
        return StepChecks(self.graph, self.derivation, Rows(self.graph, self.rows))

    @cached_property
    def _checks(self) -> dict[int, Verdict]:
        return {}  # by the identity of shares, which the derivation holds

    def check_update(self, step: Update, update: ParameterUpdate) -> Kind:
        """Whether a parameter is what the terms of its update give."""
        if update.grad is None or not update.is_whole:
            return "not checked"
        found = terms_agree(update, step.optimizer, lambda new, part: compare_update(new, part).agrees)
        return "no rule yet" if found is None else "agrees" if found else "disagrees"

    def held_before(self, name: str) -> str:
        """What a parameter's `.grad` held when backward began."""
        parameter = self.graph.parameters[name]
        if parameter.has_gradient and parameter.grad is None:
            return "not kept"
        arrived = self.graph.values[parameter.value].grad if parameter.value is not None else None
        sent = self.graph.sent(parameter)
        if sent is None or arrived is None or self.measures.are_twins(arrived, sent) or compare(sent, arrived).agrees:
            return "None"
        return f"left from before, norm {distance(sent, arrived):.4g}"

    def check_gradient(self, value: int, ours: Data, recorded: Data, text: Text) -> Verdict:
        """The whole gradient of a value, as our rules give it and as PyTorch did."""
        if ours.is_meta or recorded.is_meta:
            return UNKEPT
        check = self.checks.gradient(value)
        if check.verdict == "agrees":
            found = compare(ours, recorded, count=len(self.derivation.nodes))
            grown = "" if found.agrees else f"rounding on the way makes {number(found.largest)} between the two"
            check = replace(check, reason=grown, comparison=found if found.agrees else None)
        return of_check(check, text)


def _unkept(symbol: str, data: Data, role: Role, label: str, figures: Statistics | None) -> Tensor:
    """A tensor of which the figures alone were kept, if they were."""
    dtype = str(data.dtype).removeprefix("torch.")
    told = pairs(figures) if figures is not None else (("elements", data.numel()),)
    said = "numbers not kept" if figures is not None else "not kept"
    return Tensor(symbol, tuple(data.shape), dtype, role, None, told, label=f"{label}; {said}" if label else said)


def group(symbol: str) -> str:
    """Braces around a symbol that has scripts of its own, so that it can take another."""
    return f"{{{symbol}}}" if set(symbol) & set("^_\\") else symbol


def entries(data: Data) -> tuple[Any, ...]:
    """The numbers in row-major order."""
    return tuple(data.reshape(-1).tolist())


def pairs(found: Statistics) -> tuple[tuple[str, float], ...]:
    """Statistics as a document has them; those of nothing finite are left out."""
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


def indices(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every index of a shape in row-major order."""
    return product(*(range(size) for size in shape))


def element(name: str, index: Sequence[int]) -> str:
    """One element of something, in a line of text: `Z1[0,1]`."""
    return f"{name}[{','.join(map(str, index))}]" if index else name


def shape_text(shape: Sequence[int]) -> str:
    """A shape as a reader writes it: `2 x 3`, `3`, `a single number`."""
    return " x ".join(map(str, shape)) if shape else "a single number"


def matrix(data: Data) -> str | None:
    """A small tensor as a matrix in LaTeX, to be put into a formula; None where it is too large."""
    if data.is_meta or data.numel() > PUT_IN or data.dim() > 2 or not data.numel() or data.is_complex():
        return None
    if data.dim() == 0:
        value = number(data.item())
        return rf"({value})" if value.startswith("-") else value
    rows = data.reshape(-1, data.shape[-1]).tolist()
    body = r" \\ ".join(" & ".join(number(each) for each in row) for row in rows)
    return rf"\begin{{pmatrix}} {body} \end{{pmatrix}}"


def put_in(rule: Rule, template: Any, op: Applied, more: Mapping[str, Data | None]) -> str | None:
    """A rule's template with the numbers put in; None where an operand is too large to stand in a line."""
    numbers = {}
    for name, data in {**op.arguments, **more}.items():
        if isinstance(data, Data):
            written = matrix(data)
            if written is None:
                return None
            numbers[name] = written
    return rule.latex(template, op, numbers)
