"""What a rule computes on the way: the weights of attention, the probabilities of a cross-entropy, an LSTM's gates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from chainrule.derivation.backprop import Step
from chainrule.document import Block, Paragraph
from chainrule.graph.graph import references
from chainrule.graph.snapshot import all_have_numbers
from chainrule.report.context import ELEMENTS, Context
from chainrule.rules import Applied, Rule, Working, tables_of


def forward(context: Context, step: Step) -> Iterator[Block]:
    """The numbers that the formulas of a step name."""
    if step.rule is not None and step.op is not None:
        yield from of_operation(context, step.rule, step.op, context.symbols(step))


def of_operation(context: Context, rule: Rule, op: Applied, symbols: dict[str, str]) -> Iterator[Block]:
    """The same of an operation, as one of those that a step amounts to."""
    if rule.workings is not None and op.has_numbers:
        found = (replace(each, symbol=rule.latex(each.symbol, op, symbols)) for each in rule.workings(op))
        yield from _tables(context, found, "value")


def backward(context: Context, step: Step) -> Iterator[Block]:
    """The numbers that the formulas of the way back name, and what they are."""
    rule, op = step.rule, step.op
    if rule is None or op is None or rule.workings_back is None:
        return
    yield Paragraph((rule.remark_back,), "note")
    if op.has_numbers and all_have_numbers(*step.upstream):
        yield from _tables(context, rule.workings_back(op, tuple(step.upstream)), "gradient")


def of_call(context: Context, step: Step) -> Iterator[Block]:
    """The tables of a call that runs as many operations: at the last forward step of it, and at the first one back."""
    if step.call is None or step.index not in context.ends_of_calls:
        return
    if (tables := tables_of(context.graph.calls[step.call].name)) is None:
        return
    graph, call = context.graph, context.graph.calls[step.call]
    steps = [each for each in context.derivation.steps if each.kind == step.kind and each.call == step.call]
    fused = any(each.rule is not None and each.rule.workings is not None for each in steps)
    taken = [value for *_, value in references(dict(enumerate(call.arguments)))]  # type: ignore[arg-type]
    if fused or call.keywords or not all(graph.values[v].has_numbers for v in (*taken, *call.outputs)):
        return
    if step.kind == "backward" and (graph.hooked or len(graph.backwards) != 1):
        return  # what came back to the results is not what one pass sent
    bars = None if step.kind == "forward" else [graph.values[each].grad for each in call.outputs]
    outs = [graph.values[each].snapshot.tensor for each in call.outputs]
    found = list(tables(call.name, graph.filled(call.arguments), outs, bars))
    if found and bars is not None:
        yield Paragraph((REMARK,), "note")
    yield from _tables(context, found, "value" if bars is None else "gradient")


REMARK = "A bar stands for a gradient of the loss; a are the gates before their sigmoid or tanh, from the input."


def _tables(context: Context, found: Iterable[Working], role: str) -> Iterator[Block]:
    for each in found:
        data, label = each.data, each.label
        for axis in range(data.dim() - 2):
            if data.numel() > ELEMENTS and data.shape[axis] > 1:
                data, label = data.narrow(axis, 0, 1), f"{label} (the first alone)"
        labels = {"row_labels": each.rows, "column_labels": each.columns}
        yield context.tensor(each.symbol, data, role, label, **labels)  # type: ignore[arg-type]
