"""One step forward, and one step backward: equation, numbers, Jacobian, product, result, check."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor as Data

from chainrule.derivation.backprop import Contribution, Step
from chainrule.diagnostics.finding import listed
from chainrule.document import Block, Code, Equation, Math, Paragraph, Section, Span, Tensor
from chainrule.graph.names import element
from chainrule.graph.snapshot import has_numbers
from chainrule.report import block_tables, digits, jacobians, single_elements, workings
from chainrule.report.context import Context, group, put_in, sentence
from chainrule.report.jacobians import Operand, Pullback
from chainrule.rules import Applied, Rule, Stage, reduce_to_shape
from chainrule.rules import pytorch_formulas as formulas

LISTED = 6  # elements at a kink


# -- forward ----------------------------------------------------------------------------------------------------------


def forward(context: Context, step: Step, number: int) -> Section:
    """What one operation computes: its equation, with numbers in place of its operands, and its result."""
    names = ", ".join(context.notation.plain(value) for value in context.results(step))
    title: tuple[Span, ...] = (f"Forward {number}: {names} = ", *context.expression(step))
    blocks = (*_forward_blocks(context, step), *block_tables.forward(context, step))
    return Section(title, f"forward-{number}", "forward", blocks)


def _forward_blocks(context: Context, step: Step) -> Iterator[Block]:
    rule, op = step.rule, step.op
    if rule is not None and rule.stages is not None and op is not None and op.has_numbers:
        yield from _forward_stages(context, step)
        return
    if rule is None or op is None:
        yield from _without_rule(context, step)
    else:
        equations = tuple(_equation(rule, op, context.symbols(step)))
        yield from equations
        if not any(isinstance(each, Equation) and each.label == "numbers" for each in equations):
            yield from single_elements.of_result(context, step)
        yield from _broadcasts(context, step)
        yield from workings.forward(context, step)
    yield from (context.value(value) for value in context.results(step))
    yield from workings.of_call(context, step)
    chosen = tuple(single_elements.winners(context, step))
    yield from chosen or _kinks(context, step, with_choice=False)


def _equation(rule: Rule, op: Applied, symbols: dict[str, str]) -> Iterator[Block]:
    """The forward equation in symbols, and with the numbers of small operands."""
    yield Equation(rule.latex(rule.equation, op, symbols))
    if where := rule.latex(rule.where, op, symbols):
        yield Equation(where, "where")
    numbers = put_in(rule, rule.equation, op, {}, lambda: digits.of_result(rule, op))
    if numbers is not None:
        yield Equation(rule.latex(numbers, op, {k: v for k, v in symbols.items() if k.startswith("out")}), "numbers")
    if rule.remark:
        yield Paragraph((sentence(rule.remark),), "note")


def _without_rule(context: Context, step: Step) -> Iterator[Block]:
    node = context.graph.nodes[step.nodes[0]] if step.nodes else None
    operation = context.graph.operations[step.operations[0]]
    if node is None:
        yield Paragraph((f"PyTorch runs {operation.name}; no gradient flows through it.",))
        return
    if node.function_class is not None:
        function = Code(f"autograd.Function {node.function_class.__name__}")
        yield Paragraph(
            ("Your own ", function, ": no rule covers it. Its backward is compared with central differences alone.",)
        )  # fmt: skip
        return
    yield Paragraph((f"No rule yet for {node.name} ({operation.name}). PyTorch's own formula:",), "note")
    formula = formulas.formula(node.name, operation.name)
    for argument, text in formula.gradients.items() if formula is not None else ():
        yield Paragraph((f"{argument}: ", Code(text)))


def _broadcasts(context: Context, step: Step) -> Iterator[Block]:
    """Point out each operand that broadcasting copies along leading axes."""
    if step.rule is None or len(step.outputs) != 1:
        return
    shape = context.graph.values[step.outputs[0]].shape
    # The bias of a convolution is added along the axis of the channels, which is not the last one.
    convolves = any(name == "weight" and len(context.graph.values[each].shape) > 2 for name, _, each in step.arguments)
    for argument, _, value in step.arguments:
        own = context.graph.values[value].shape
        added = step.rule.structure == "elementwise" or (argument == "bias" and not convolves)
        if added and len(own) < len(shape) and own == shape[len(shape) - len(own) :]:
            times = torch.Size(shape[: len(shape) - len(own)]).numel()
            effect = f" has shape {tuple(own)}: broadcasting adds it to each of the {times} rows."
            if not own:
                effect = f" is a single number: broadcasting uses it for all {times} elements."
            yield Paragraph((Math(context.notation.symbol(value)), effect))


def _kinks(context: Context, step: Step, with_choice: bool = True) -> Iterator[Block]:
    """Name the elements at a kink, and the derivative that PyTorch chooses there, unless a backward step says it."""
    rule, op = step.rule, step.op
    if rule is None or op is None or rule.kink is None or not op.has_numbers:
        return
    argument = next((value for name, _, value in step.arguments if name == rule.kink.argument), None)
    if argument is not None and (places := rule.kink.where(op, 0.0).nonzero().tolist()):
        name = context.notation.plain(argument)
        named = listed([element(name, place) for place in places], LISTED)
        lie = "lies" if len(places) == 1 else "lie"
        choice = f" {sentence(rule.kink.choice)}" if with_choice or not step.nodes else ""
        yield Paragraph((f"{named} {lie} exactly at a kink, where the derivative is undefined.{choice}",), "note")


def _forward_stages(context: Context, step: Step) -> Iterator[Block]:
    symbols = context.symbols(step)
    for stage, inner in _stages(context, step, symbols):
        yield from _equation(stage.rule, stage.op, inner)
        yield from workings.of_operation(context, stage.rule, stage.op, inner)
        out = stage.op.out
        each = "sample" if out.dim() and out.numel() == out.shape[0] else "element"
        yield context.tensor(inner["out"], out, "value", stage.remark or (f"one per {each}" if out.dim() else ""))


def _stages(context: Context, step: Step, symbols: dict[str, str]) -> Iterator[tuple[Stage, dict[str, str]]]:
    """The stages of an operation, each with its symbols; the result of one stage is `self` of the next."""
    assert step.rule is not None
    assert step.rule.stages is not None
    assert step.op is not None
    before: dict[str, str] = {}
    for stage in step.op.once(step.rule.stages):
        out = stage.symbol or symbols["out"]
        gradient = symbols["g"] if not stage.symbol else group(_partial(context, step, stage.symbol))
        yield stage, {**symbols, **before, "out": out, "g": gradient}
        before = {"self": out}


def _partial(context: Context, step: Step, symbol: str) -> str:
    return rf"\frac{{\partial {context.notation.loss(step.backward or 0)}}}{{\partial {symbol}}}"


# -- backward ---------------------------------------------------------------------------------------------------------


def backward(context: Context, step: Step, number: int) -> Section:
    """One step backward: the contribution to the gradient of each operand, worked out and checked."""
    names = ", ".join(context.notation.plain(value) for value in context.results(step))
    title: tuple[Span, ...] = (f"Backward {number}: {names} = ", *context.expression(step))
    inner = tuple(_contributions(context, step, number))
    return Section(title, f"backward-{number}", "backward", tuple(_upstream(context, step)), inner)


def _upstream(context: Context, step: Step) -> Iterator[Block]:
    for value, upstream in zip(step.outputs, step.upstream, strict=False):
        if upstream is None:
            continue
        uses = context.uses(value, step.backward)
        label = "upstream" if len(uses) < 2 else f"upstream: the sum over its {len(uses)} uses"
        if context.graph.backwards and value == context.graph.backwards[step.backward or 0].loss:
            label = "seed: d loss / d loss"
        yield context.arriving(value, step.backward or 0, upstream, label)
    yield from workings.backward(context, step)
    yield from workings.of_call(context, step)
    if step.rule is None:
        yield from _without_rule(context, step)


def _contributions(context: Context, step: Step, number: int) -> Iterator[Section]:
    for contribution in step.contributions:
        if contribution.value is None or contribution.gradient is None:
            continue
        context.check(contribution)  # first, so that equal tensors are measured once
        item = "" if contribution.item is None else f"-{contribution.item}"
        anchor = f"backward-{number}-{contribution.argument}{item}"
        title = context.notation.plain_gradient(contribution.value, step.backward) + _use(context, step, contribution)
        stages = list(_stages_back(context, step, contribution))
        for name, blocks in stages[:-1]:
            yield Section((name,), f"{anchor}-{_word(name)}".lower(), "backward", tuple(blocks))
        blocks = stages[-1][1] if stages else list(_contribution(context, step, contribution))
        yield Section((title,), anchor, "backward", (*blocks, *_check(context, step, contribution)))


def _use(context: Context, step: Step, contribution: Contribution) -> str:
    assert contribution.value is not None
    uses = context.uses(contribution.value, step.backward)
    if len(uses) < 2:
        return ""
    place = next(i for i, each in enumerate(uses, 1) if each is contribution)
    return f" (contribution {place} of {len(uses)}: the value is used {len(uses)} times, and the contributions add up)"


def _contribution(context: Context, step: Step, contribution: Contribution) -> Iterator[Block]:
    assert contribution.value is not None
    if step.rule is None or step.op is None or contribution.argument not in step.rule.wrt:
        symbol = context.notation.gradient(contribution.value, step.backward or 0)
        yield _result(context, symbol, contribution, "as autograd computed it")
        return
    arrived = [slot for slot, g in enumerate(step.upstream) if g is not None and slot < len(step.outputs)]
    output = _named(context, step.outputs[arrived[0]], step) if len(arrived) == 1 else None
    operand = _named(context, contribution.value, step)
    symbols = context.symbols(step)
    yield from _worked_out(context, Pullback(step.rule, step.op, symbols, contribution, operand, output, step.upstream))


def _named(context: Context, value: int, step: Step) -> Operand:
    notation, backward = context.notation, step.backward or 0
    data = context.graph.values[value].snapshot.tensor
    return Operand(
        notation.symbol(value), notation.gradient(value, backward), notation.plain(value),
        notation.plain_gradient(value, backward), data,
    )  # fmt: skip


def _worked_out(context: Context, pullback: Pullback) -> Iterator[Block]:
    """Chain rule, local derivative, Jacobian, product, the form that PyTorch runs, result."""
    rule, op, symbols, contribution = pullback.rule, pullback.op, pullback.symbols, pullback.contribution
    operand, output = pullback.operand, pullback.output
    target = operand.gradient if operand else ""
    if operand and output:
        local = rf"\frac{{\partial {output.symbol}}}{{\partial {operand.symbol}}}"
        if local != target:  # at the loss itself the two are one symbol
            yield Equation(rf"{target} = {output.gradient} \cdot {local}", "chain rule")
        yield Equation(_stated(local, rule.latex(pullback.wrt.local, op, symbols)), "local derivative")
        if operand.data.layout is output.data.layout is torch.strided:  # a rule takes the seeds of a Jacobian as dense
            yield from jacobians.local_numbers(context, pullback, operand, output, local)
            yield from jacobians.written_out(context, pullback, operand, output)
    product = rule.latex(pullback.wrt.product, op, symbols)
    by_cases = r"\begin{cases}" in product  # which of them hold is what the local derivatives show
    is_bare = product == symbols.get("g")
    stated = _with_left_side(product, target) or rf"{target} = {_summed(contribution, product, is_bare)}"
    yield Equation(stated, "what PyTorch runs")
    if output and not by_cases and isinstance(g := pullback.upstream[0] if rule.outputs == 1 else None, Data):
        known = {"g": g, "out": op.out if isinstance(op.out, Data) else None}
        numbers = put_in(rule, pullback.wrt.product, op, known, lambda: _digits(pullback, g))
        if numbers is not None:
            yield Equation(rf"{target} = {_summed(contribution, rule.latex(numbers, op, symbols), is_bare)}", "numbers")
    if contribution.summed and operand:
        axes = ", ".join(map(str, contribution.summed))
        axis, over = ("axis", "that axis") if len(contribution.summed) == 1 else ("axes", "those axes")
        effect = f" was broadcast along {axis} {axes}, so its gradient is the sum over {over}."
        yield Paragraph((Math(operand.symbol), effect))
    yield _result(context, target, contribution, "result")


def _digits(pullback: Pullback, upstream: Data) -> int:
    """How many decimals the numbers of the product need."""
    contribution, result = pullback.contribution, pullback.contribution.gradient
    if contribution.summed or not has_numbers(result) or result.layout is not torch.strided:
        return digits.USUAL
    return digits.of_product(pullback.rule, contribution.argument, pullback.op, upstream, result)


def _stated(symbol: str, formula: str) -> str:
    """A formula as an equation, with the symbol on its left unless the formula has a left side of its own."""
    return formula if formula.startswith((r"\frac{\partial", r"\dot{")) else rf"{symbol} = {formula}"


def _with_left_side(product: str, gradient: str) -> str:
    """A product that names the element of the gradient (`$grad`) that it is equal to; "" if it names none."""
    stated = re.sub(r"\$grad\b", lambda _: gradient, product)
    return stated if stated != product else ""


def _summed(contribution: Contribution, product: str, is_bare: bool) -> str:
    """A product, summed over the axes along which its operand was broadcast; in brackets unless it is bare."""
    if not contribution.summed:
        return product
    axes = rf"\text{{dim{'s' * (len(contribution.summed) > 1)} {', '.join(map(str, contribution.summed))}}}"
    return rf"\sum_{{{axes}}} " + (product if is_bare else rf"\left({product}\right)")


def _result(context: Context, symbol: str, contribution: Contribution, label: str) -> Tensor:
    """A contribution; where it is the whole gradient of its value, statistics may be known without its numbers."""
    if contribution.value is None or contribution.gradient is None or not context.is_whole(contribution):
        return context.tensor(symbol, contribution.gradient, "gradient", label)
    return context.gradient(symbol, contribution.value, contribution.gradient, label)


def _stages_back(context: Context, step: Step, contribution: Contribution) -> Iterator[tuple[str, list[Block]]]:
    """Go back through a loss in two stages: from the cost to the loss of each sample, then to the input."""
    if step.rule is None or step.rule.stages is None or step.op is None or not step.op.has_numbers:
        return
    assert contribution.value is not None
    stages = list(_stages(context, step, context.symbols(step)))
    upstream: Data | None = step.upstream[0]
    for place, (stage, symbols) in reversed([*enumerate(stages)]):
        if upstream is None:
            return
        rule, op = stage.rule, stage.op
        gradient = symbols["g"].removeprefix("{").removesuffix("}")
        output = Operand(symbols["out"], gradient, _word(symbols["out"]), "", op.out)
        inner, argument = _named(context, contribution.value, step), contribution.argument
        if place:
            below, argument = symbols["self"], "self"
            inner = Operand(below, _partial(context, step, below), _word(below), f"dJ/d{_word(below)}", op.self)
        whole = reduce_to_shape(rule.gradient(op, (upstream,), argument), tuple(inner.data.shape))[0]
        part = Contribution(argument, None, None, whole, None)
        blocks = list(_worked_out(context, Pullback(rule, op, symbols, part, inner, output, (upstream,))))
        if not place:
            product = step.rule.latex(step.rule.wrt[contribution.argument].product, step.op, context.symbols(step))
            stated = _with_left_side(product, inner.gradient) or rf"{inner.gradient} = {product}"
            blocks.append(Equation(stated, "in one step"))
        yield inner.gradient_name, blocks
        upstream = whole


def _word(symbol: str) -> str:
    return symbol.replace("{", "").replace("}", "").replace("^[", "").replace("]", "")


def _check(context: Context, step: Step, contribution: Contribution) -> Iterator[Block]:
    """Compare the contribution with the gradient that autograd computed for the same edge."""
    assert contribution.value is not None
    verdict = context.check(contribution)
    is_shown = contribution.recorded is not None or context.graph.values[contribution.value].kind == "parameter"
    if is_shown:
        yield verdict
    kink = step.rule.kink if step.rule is not None else None
    if kink is not None and kink.argument == contribution.argument:
        is_said = is_shown and any(kink.choice in span for span in verdict.text if isinstance(span, str))
        yield from () if is_said else _kinks(context, step)
    yield from block_tables.backward(context, step, contribution)
