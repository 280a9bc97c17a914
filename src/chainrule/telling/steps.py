"""One step forward, and one step back: equation, numbers, Jacobian, product, result, check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor as Data

from chainrule import formulas
from chainrule.backprop import Share, Step
from chainrule.document import Block, Code, Equation, Math, Paragraph, Section, Span, Tensor
from chainrule.rules import Applied, Rule, Wrt, broadcast_index, reduce_to_shape
from chainrule.telling import alike
from chainrule.telling.context import (
    JACOBIAN,
    Context,
    element,
    group,
    indices,
    put_in,
    shape_text,
)


@dataclass(frozen=True)
class Operand:
    """One side of a local derivative: what it is called, and its data."""

    symbol: str
    gradient: str
    name: str
    gradient_name: str
    data: Data


# -- forward ----------------------------------------------------------------------------------------------------------


def forward(context: Context, step: Step, number: int) -> Section:
    """What one operation computes: its equation, its operands' numbers put in, its result."""
    names = ", ".join(context.notation.plain(value) for value in context.results(step))
    title: tuple[Span, ...] = (f"Forward {number}: {names} = ", *context.expression(step))
    blocks = (*_forward_blocks(context, step), *alike.forward(context, step))
    return Section(title, f"forward-{number}", "forward", blocks)


def _forward_blocks(context: Context, step: Step) -> Iterator[Block]:
    rule, op = step.rule, step.op
    if rule is None or op is None:
        yield from _without_rule(context, step)
        yield from (context.value(value) for value in context.results(step))
        return
    if rule.stages is not None and op.has_numbers:
        yield from _forward_stages(context, step)
        return
    symbols = context.symbols(step)
    yield from _equation(rule, op, symbols)
    yield from _broadcasts(context, step)
    yield from (context.value(value) for value in context.results(step))
    yield from _kinks(context, step)


def _equation(rule: Rule, op: Applied, symbols: dict[str, str]) -> Iterator[Block]:
    """The forward equation in symbols, and with the numbers of small operands put in."""
    yield Equation(rule.latex(rule.equation, op, symbols))
    if where := rule.latex(rule.where, op, symbols):
        yield Equation(where, "where")
    numbers = put_in(rule, rule.equation, op, {})
    if numbers is not None:
        yield Equation(rule.latex(numbers, op, {k: v for k, v in symbols.items() if k.startswith("out")}), "numbers")
    if rule.remark:
        yield Paragraph((sentence(rule.remark),), "note")


def _without_rule(context: Context, step: Step) -> Iterator[Block]:
    node = context.graph.nodes[step.nodes[0]] if step.nodes else None
    operation = context.graph.operations[step.operations[0]]
    if node is None:
        text = f"PyTorch runs {operation.name}; no gradient flows through it."
        yield Paragraph((text,))
        return
    if node.function_class is not None:
        yield Paragraph(
            (
                "Your own ",
                Code(f"autograd.Function {node.function_class.__name__}"),
                ": its backward is yours to prove.",
            )
        )
        return
    yield Paragraph(
        (f"No rule yet for {node.name} ({operation.name}). ", "PyTorch's own formula stands below."), "note"
    )
    formula = formulas.formula(node.name, operation.name)
    if formula is not None:
        for argument, text in formula.gradients.items():
            yield Paragraph((f"{argument}: ", Code(text)))


def _broadcasts(context: Context, step: Step) -> Iterator[Block]:
    """Say where an operand was copied along axes that it has not got."""
    if step.rule is None or len(step.outputs) != 1:
        return
    shape = context.graph.values[step.outputs[0]].shape
    for argument, _, value in step.arguments:
        own = context.graph.values[value].shape
        added = step.rule.structure == "elementwise" or argument == "bias"
        if added and len(own) < len(shape) and own == shape[len(shape) - len(own) :]:
            times = torch.Size(shape[: len(shape) - len(own)]).numel()
            name = context.notation.symbol(value)
            yield Paragraph(
                (Math(name), f" has shape ({', '.join(map(str, own))}{',' if len(own) == 1 else ''}): broadcasting "
                 f"adds it to each of the {times} rows.")
                if len(own)
                else (Math(name), f" is one number: broadcasting uses it for all {times} elements.")
            )  # fmt: skip


def _kinks(context: Context, step: Step) -> Iterator[Block]:
    rule, op = step.rule, step.op
    if rule is None or op is None or rule.kink is None or not op.has_numbers:
        return
    argument = next((value for name, _, value in step.arguments if name == rule.kink.argument), None)
    if argument is None:
        return
    places = rule.kink.where(op, 0.0).nonzero().tolist()
    if places:
        name = context.notation.plain(argument)
        listed = ", ".join(element(name, place) for place in places[:6]) + (" ..." if len(places) > 6 else "")
        yield Paragraph(
            (f"{listed} {'lies' if len(places) == 1 else 'lie'} exactly at a kink, where there is no derivative. "
             f"{sentence(rule.kink.choice)}",),
            "note",
        )  # fmt: skip


def _forward_stages(context: Context, step: Step) -> Iterator[Block]:
    symbols = context.symbols(step)
    for rule, op, inner in _stages(context, step, symbols):
        yield from _equation(rule, op, inner)
        last = inner["out"] == symbols["out"]
        label = "" if last else "one for each sample"
        yield context.tensor(inner["out"], op.out, "value", label)
        if last and isinstance(op.out, Data) and op.out.numel() == 1:
            yield Paragraph((Math(inner["out"]), f" = {op.out.item()!r}"))


def _stages(context: Context, step: Step, symbols: dict[str, str]) -> Iterator[tuple[Rule, Applied, dict[str, str]]]:
    """The stages of an operation with the symbols that hold in each: a stage takes the one before as its `self`."""
    assert step.rule is not None
    assert step.rule.stages is not None
    assert step.op is not None
    before: dict[str, str] = {}
    for stage in step.rule.stages(step.op):
        out = stage.symbol or symbols["out"]
        gradient = symbols["g"] if not stage.symbol else group(_partial(context, step, stage.symbol))
        yield stage.rule, stage.op, {**symbols, **before, "out": out, "g": gradient}
        before = {"self": out}


def _partial(context: Context, step: Step, symbol: str) -> str:
    return rf"\frac{{\partial {context.notation.loss(step.backward or 0)}}}{{\partial {symbol}}}"


# -- backward ---------------------------------------------------------------------------------------------------------


def backward(context: Context, step: Step, number: int) -> Section:
    """One step back: for each operand its share of the gradient, worked out and checked."""
    names = ", ".join(context.notation.plain(value) for value in context.results(step))
    title: tuple[Span, ...] = (f"Back {number}: through {names} = ", *context.expression(step))
    inner = tuple(_shares(context, step, number))
    return Section(title, f"backward-{number}", "backward", tuple(_arrived(context, step)), inner)


def _arrived(context: Context, step: Step) -> Iterator[Block]:
    for slot, value in enumerate(step.outputs):
        upstream = step.upstream[slot] if slot < len(step.upstream) else None
        if upstream is None:
            continue
        uses = context.uses(value, step.backward)
        label = "upstream"
        if len(uses) > 1:
            label = f"upstream: the sum of what comes back from its {len(uses)} uses"
        if context.graph.backwards and value == context.graph.backwards[step.backward or 0].loss:
            label = "the seed: d loss / d loss"
        yield context.arriving(value, step.backward or 0, upstream, label)
    if step.rule is None:
        yield from _without_rule(context, step)


def _shares(context: Context, step: Step, number: int) -> Iterator[Section]:
    for share in step.shares:
        if share.value is None or share.gradient is None:
            continue
        context.check(share)  # first, so that equal tensors are measured once
        anchor = f"backward-{number}-{share.argument}" + ("" if share.item is None else f"-{share.item}")
        title = context.notation.plain_gradient(share.value, step.backward) + _use(context, step, share)
        stages = list(_stages_back(context, step, share))
        for name, blocks in stages[:-1]:
            yield Section((name,), f"{anchor}-{_word(name)}".lower(), "backward", tuple(blocks))
        blocks = stages[-1][1] if stages else list(_share_blocks(context, step, share))
        yield Section((title,), anchor, "backward", (*blocks, *_check(context, step, share)))


def _use(context: Context, step: Step, share: Share) -> str:
    assert share.value is not None
    uses = context.uses(share.value, step.backward)
    if len(uses) < 2:
        return ""
    place = next(i for i, each in enumerate(uses, 1) if each is share)
    return f" (share {place} of {len(uses)}: the value is used {len(uses)} times, and the shares add up)"


def _share_blocks(context: Context, step: Step, share: Share) -> Iterator[Block]:
    assert share.value is not None
    assert share.gradient is not None
    symbol = context.notation.gradient(share.value, step.backward or 0)
    if step.rule is None or step.op is None or share.argument not in step.rule.wrt:
        yield _result(context, symbol, share, "as autograd computed it")
        return
    output, operand = _output(context, step), _operand(context, step, share)
    symbols = context.symbols(step)
    yield from _worked_out(context, step.rule, step.op, symbols, share, operand, output, step.upstream)


def _output(context: Context, step: Step) -> Operand | None:
    """The one output whose gradient arrives; None where several do."""
    arrived = [slot for slot, g in enumerate(step.upstream) if g is not None and slot < len(step.outputs)]
    if len(arrived) != 1:
        return None
    value = step.outputs[arrived[0]]
    return _named(context, value, step.backward or 0)


def _operand(context: Context, step: Step, share: Share) -> Operand | None:
    return None if share.value is None else _named(context, share.value, step.backward or 0)


def _named(context: Context, value: int, backward: int) -> Operand:
    notation, known = context.notation, context.graph.values[value]
    gradient = notation.gradient(value, backward)
    data = known.without_numbers() if known.data is None else known.data
    return Operand(
        notation.symbol(value), gradient, notation.plain(value), notation.plain_gradient(value, backward), data
    )


def _worked_out(
    context: Context,
    rule: Rule,
    op: Applied,
    symbols: dict[str, str],
    share: Share,
    operand: Operand | None,
    output: Operand | None,
    upstream: tuple[Data | None, ...],
) -> Iterator[Block]:
    """Chain rule, local derivative, Jacobian, product, the form that PyTorch runs, result."""
    wrt = rule.wrt[share.argument]
    assert share.gradient is not None
    target = operand.gradient if operand else ""
    if operand and output:
        local = rf"\frac{{\partial {output.symbol}}}{{\partial {operand.symbol}}}"
        yield Equation(rf"{target} = {output.gradient} \cdot {local}", "chain rule")
        yield Equation(_stated(local, rule.latex(wrt.local, op, symbols)), "local derivative")
        yield from _local_numbers(context, rule, op, wrt, operand, output)
        yield from _jacobian(context, rule, op, symbols, share, operand, output, upstream)
    product = rule.latex(wrt.product, op, symbols)
    is_bare = product == symbols.get("g")
    stated = _with_left_side(product, target) or rf"{target} = {_added_up(share, product, is_bare)}"
    yield Equation(stated, "what PyTorch runs")
    if output and isinstance(g := upstream[0] if rule.outputs == 1 else None, Data):
        numbers = put_in(rule, wrt.product, op, {"g": g, "out": op.out if isinstance(op.out, Data) else None})
        if numbers is not None:
            yield Equation(rf"{target} = {_added_up(share, rule.latex(numbers, op, symbols), is_bare)}", "numbers")
    if share.summed and operand:
        axes = ", ".join(map(str, share.summed))
        yield Paragraph(
            (Math(operand.symbol), f" was copied along axis {axes} by broadcasting, so the gradients of its copies are "
             "added up along it.")
        )  # fmt: skip
    yield _result(context, target, share, f"result, in the shape {shape_text(share.gradient.shape)}")


def _stated(symbol: str, formula: str) -> str:
    """A formula after what it is equal to, where it does not say that itself."""
    return formula if formula.startswith((r"\frac{\partial", r"\dot{")) else rf"{symbol} = {formula}"


def _with_left_side(product: str, gradient: str) -> str:
    """A product that says itself which element of the gradient (`$grad`) it is; "" where it does not."""
    stated = re.sub(r"\$grad\b", lambda _: gradient, product)
    return stated if stated != product else ""


def _added_up(share: Share, product: str, is_bare: bool) -> str:
    """A product, summed over the axes along which its operand was copied by broadcasting; in brackets unless bare."""
    if not share.summed:
        return product
    axes = rf"\text{{dim{'s' * (len(share.summed) > 1)} {', '.join(map(str, share.summed))}}}"
    return rf"\sum_{{{axes}}} " + (product if is_bare else rf"\left({product}\right)")


def _result(context: Context, symbol: str, share: Share, label: str) -> Tensor:
    """What a step gives one operand; where that is the whole gradient of it, its figures may be known without it."""
    if share.value is None or share.gradient is None or not context.is_whole(share):
        return context.tensor(symbol, share.gradient, "gradient", label)
    return context.gradient(symbol, share.value, share.gradient, label)


def _local_numbers(
    context: Context, rule: Rule, op: Applied, wrt: Wrt, operand: Operand, output: Operand
) -> Iterator[Block]:
    """For an elementwise operation the local derivative of each element: the diagonal of the Jacobian."""
    if rule.structure != "elementwise" or output.data.numel() > JACOBIAN or operand.data.shape != output.data.shape:
        return
    if not op.has_numbers:
        return
    ones = torch.ones_like(output.data)
    local = wrt.vjp(op, ones)
    if isinstance(local, Data) and local.shape == output.data.shape:
        symbol = rf"\frac{{\partial {output.symbol}}}{{\partial {operand.symbol}}}"
        yield context.tensor(symbol, local, "value", "local derivative, element by element")


def _jacobian(
    context: Context,
    rule: Rule,
    op: Applied,
    symbols: dict[str, str],
    share: Share,
    operand: Operand,
    output: Operand,
    upstream: tuple[Data | None, ...],
) -> Iterator[Block]:
    """The Jacobian of the row-major flattened tensors, and the product with the upstream gradient."""
    rows, columns = output.data.numel(), operand.data.numel()
    symbol = rf"\frac{{\partial\, \mathrm{{vec}}({output.symbol})}}{{\partial\, \mathrm{{vec}}({operand.symbol})}}"
    wrt = rule.wrt[share.argument]
    without = not op.has_numbers or any(g is not None and g.is_meta for g in upstream)
    if rows * columns > JACOBIAN or not rows * columns or without:
        yield Paragraph((Math(symbol), *too_large(rule, wrt, op, symbols, (rows, columns), share.item)))
        return
    full = jacobian(rule, op, share, operand.data.shape, output.data, upstream)
    slot = next(i for i, g in enumerate(upstream) if g is not None)
    row_names = tuple(element(output.name, i) for i in indices(output.data.shape))
    column_names = tuple(element(operand.name, i) for i in indices(operand.data.shape))
    yield context.tensor(
        symbol, full, "jacobian", f"Jacobian, {rows} x {columns}", row_labels=row_names, column_labels=column_names
    )
    yield from _zeros(rule, op, share, full, operand, output)
    g = upstream[slot]
    assert g is not None
    yield Equation(rf"\mathrm{{vec}}({operand.gradient}) = \mathrm{{vec}}({output.gradient}) \cdot {symbol}", "product")
    flat = g.reshape(1, -1)
    product = flat.to(full.dtype) @ full
    labels = {"column_labels": tuple(f"dJ/d{name}" for name in row_names)}
    yield context.tensor(rf"\mathrm{{vec}}({output.gradient})", flat, "gradient", "upstream, flattened", **labels)
    labels = {"column_labels": tuple(f"dJ/d{name}" for name in column_names)}
    yield context.tensor(rf"\mathrm{{vec}}({operand.gradient})", product, "gradient", "times the Jacobian", **labels)


def too_large(
    rule: Rule, wrt: Wrt, op: Applied, symbols: dict[str, str], shape: tuple[int, int], item: int | None
) -> Iterator[Span]:
    """What a Jacobian that is not written out is like: its size, and where the rule knows it, its pattern."""
    rows, columns = shape
    size = f"{rows:,} x {columns:,} = {_count(rows * columns)} entries"
    zeros = f" {sentence(wrt.zeros)}" if wrt.zeros else ""
    pattern = wrt.pattern(op) if wrt.pattern is not None and item is None else None
    if pattern is None or pattern.shape != shape:
        yield f" has {size}: too many to write out.{zeros}"
        return
    yield f" is {pattern.words}"
    if pattern.block:
        yield " "
        yield Math(rule.latex(pattern.block, op, symbols))
    many = "all" if pattern.nonzero == rows * columns else _count(pattern.nonzero)
    many = many if pattern.exact else f"at most {many}"
    yield f": {many} of its {size} can differ from zero, too many to write out.{zeros}"


def _count(number: int) -> str:
    """A count in full, or where it is very large by its size: `98,304`, `9.7e9`."""
    return f"{number:,}" if number < 10**7 else f"{number:.1e}".replace("e+0", "e").replace("e+", "e")


def jacobian(
    rule: Rule, op: Applied, share: Share, shape: torch.Size, output: Data, upstream: tuple[Data | None, ...]
) -> Data:
    """Every row of the Jacobian is our VJP of one basis vector of the output's gradient: (outputs, inputs)."""
    slot = next(i for i, g in enumerate(upstream) if g is not None)
    rows = []
    for i in range(output.numel()):
        basis = torch.zeros(output.numel(), dtype=output.dtype, device=output.device)
        basis[i] = 1
        seeds: list[Data | None] = [None] * max(len(upstream), rule.outputs)
        seeds[slot] = basis.reshape(output.shape)
        row = rule.gradient(op, tuple(seeds), share.argument)
        row = row[share.item] if share.item is not None and row is not None else row
        rows.append(torch.zeros(shape) if row is None else reduce_to_shape(row, tuple(shape))[0])
    assert share.gradient is not None
    return torch.stack([row.reshape(-1).to(share.gradient.dtype) for row in rows])


def _zeros(rule: Rule, op: Applied, share: Share, full: Data, operand: Operand, output: Operand) -> Iterator[Block]:
    """Why entries are zero: by structure whatever the numbers are, or because of the numbers of this step."""
    zero = int((full == 0).sum())
    if not zero:
        return
    by_value = list(_zeros_by_value(rule, op, share, full, operand, output))
    structural = zero - len(by_value)
    words = []
    if structural:
        reason = rule.wrt[share.argument].zeros
        words.append(
            f"{structural} of {full.numel()} entries are zero by structure" + (f": {reason}." if reason else ".")
        )
    if by_value:
        told = list(dict.fromkeys(by_value))
        listed = ", ".join(told[:4]) + (", ..." if len(told) > 4 else "")
        also = " more" if structural else f" of {full.numel()} entries"
        words.append(
            f"{len(by_value)}{also} {'are' if len(by_value) > 1 else 'is'} zero by the numbers here: {listed}."
        )
    yield Paragraph((" ".join(words),))


def _zeros_by_value(
    rule: Rule, op: Applied, share: Share, full: Data, operand: Operand, output: Operand
) -> Iterator[str]:
    """Entries that the structure allows and the numbers make zero, each with its cause (`A2[0,0] = 0`)."""
    factor = rule.wrt[share.argument].factor
    shape = tuple(operand.data.shape)
    for row, i in enumerate(indices(output.data.shape)):
        for column, j in enumerate(indices(shape)):
            if full[row, column] != 0 or factor is None:
                continue
            if rule.structure == "elementwise" and broadcast_index(i, shape) != j:
                continue
            named = factor(op, i, j if share.item is None else (share.item, *j))
            if named is not None:
                yield f"{element(f'd{output.name}', i)}/{element(f'd{operand.name}', j)}"


def _stages_back(context: Context, step: Step, share: Share) -> Iterator[tuple[str, list[Block]]]:
    """A loss goes back in two steps: from the cost to the loss of each sample, from there to its input."""
    if step.rule is None or step.rule.stages is None or step.op is None or not step.op.has_numbers:
        return
    stages = list(_stages(context, step, context.symbols(step)))
    upstream: Data | None = step.upstream[0]
    operand = _operand(context, step, share)
    for place in range(len(stages) - 1, -1, -1):
        rule, op, symbols = stages[place]
        if upstream is None or operand is None:
            return
        gradient = symbols["g"].removeprefix("{").removesuffix("}")
        output = Operand(symbols["out"], gradient, _word(symbols["out"]), "", op.out)
        inner, argument = operand, share.argument
        if place:
            below, argument = symbols["self"], "self"
            inner = Operand(below, _partial(context, step, below), _word(below), f"dJ/d{_word(below)}", op.self)
        whole = reduce_to_shape(rule.gradient(op, (upstream,), argument), tuple(inner.data.shape))[0]
        part = Share(argument, None, None, whole, None)
        blocks = list(_worked_out(context, rule, op, symbols, part, inner, output, (upstream,)))
        if not place:
            product = step.rule.latex(step.rule.wrt[share.argument].product, step.op, context.symbols(step))
            stated = _with_left_side(product, inner.gradient) or rf"{inner.gradient} = {product}"
            blocks.append(Equation(stated, "in one step"))
        yield inner.gradient_name, blocks
        upstream = whole


def _word(symbol: str) -> str:
    return symbol.replace("{", "").replace("}", "").replace("^[", "").replace("]", "")


def _check(context: Context, step: Step, share: Share) -> Iterator[Block]:
    """Hold the result against the gradient that autograd computed for this very edge."""
    assert share.value is not None
    assert share.gradient is not None
    if share.recorded is not None or context.graph.values[share.value].kind == "parameter":
        yield context.check(share)
    yield from _reasons(context, step, share)
    yield from alike.backward(context, step, share)


def _reasons(context: Context, step: Step, share: Share) -> Iterator[Block]:
    """Name the kinks that this step went through, with PyTorch's choice."""
    if step.rule is not None and step.rule.kink is not None and step.rule.kink.argument == share.argument:
        yield from _kinks(context, step)


def sentence(text: str) -> str:
    """The same words as a sentence of their own."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
