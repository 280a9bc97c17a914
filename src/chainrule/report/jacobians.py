"""The Jacobian of one operation, for one operand: entry by entry, or by its pattern; and why entries are zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor as Data

from chainrule.derivation.backprop import Contribution
from chainrule.derivation.jacobian import indices, jacobian, slopes, zeros_by_value
from chainrule.diagnostics.finding import listed
from chainrule.document import Block, Margin, Math, Paragraph, Span
from chainrule.graph.names import element
from chainrule.graph.snapshot import all_have_numbers
from chainrule.report import digits, single_elements
from chainrule.report.context import JACOBIAN, ROWS, Context, entries, sentence
from chainrule.rules import Applied, Rule, Wrt

LISTED = 4  # entries that are zero for these values
REASONS = 64  # zeros of which each is asked for its reason
NOT_HOLOMORPHIC = (
    " is not written out: the operation is not holomorphic, so what comes back takes the conjugate of the upstream"
    " gradient too, and is no product with one matrix."
)
DIAGONAL = 4  # elements up to which the Jacobian of an elementwise operation is written out


@dataclass(frozen=True)
class Operand:
    """One side of a local derivative: its symbols, its names, and its data."""

    symbol: str
    gradient: str
    name: str
    gradient_name: str
    data: Data


@dataclass(frozen=True)
class Pullback:
    """A rule that computes one contribution from the upstream gradient.

    `output` is the output whose gradient arrives (None: several do); `operand` is what the contribution belongs to.
    """

    rule: Rule
    op: Applied
    symbols: dict[str, str]
    contribution: Contribution
    operand: Operand | None
    output: Operand | None
    upstream: tuple[Data | None, ...]

    @property
    def wrt(self) -> Wrt:
        """The rule's entry for the operand."""
        return self.rule.wrt[self.contribution.argument]


def local_numbers(
    context: Context, pullback: Pullback, operand: Operand, output: Operand, symbol: str
) -> Iterator[Block]:
    """The local derivative of each element of an elementwise operation, where the Jacobian is not written out."""
    shape = output.data.shape
    if pullback.rule.structure != "elementwise" or operand.data.shape != shape or not pullback.op.has_numbers:
        return
    if shape.numel() <= JACOBIAN and not _is_written_out(pullback, shape.numel(), shape.numel()):
        local = slopes(partial(pullback.wrt.vjp, pullback.op), torch.ones_like(output.data), operand.data.is_complex())
        if isinstance(local, Data) and local.shape == shape:
            local = local.conj() + 0 if output.data.is_complex() else local  # and no -0
            yield context.tensor(symbol, local, "value", "diagonal of the Jacobian")
            if _is_too_large(shape.numel(), shape.numel()):
                yield from _off(context, pullback.contribution, local)


def written_out(context: Context, pullback: Pullback, operand: Operand, output: Operand) -> Iterator[Block]:
    """The Jacobian of the tensors flattened in row-major order, and its product with the upstream gradient."""
    rule, op, contribution, upstream = pullback.rule, pullback.op, pullback.contribution, pullback.upstream
    rows, columns = output.data.numel(), operand.data.numel()
    symbol = rf"\frac{{\partial\, \mathrm{{vec}}({output.symbol})}}{{\partial\, \mathrm{{vec}}({operand.symbol})}}"
    shape, without = (rows, columns), not op.has_numbers or not all_have_numbers(*upstream)
    if _is_too_large(rows, columns) or not rows * columns or without:
        yield Paragraph((Math(symbol), *_too_large(rule, pullback.wrt, op, pullback.symbols, shape, contribution.item)))
        if rule.structure != "elementwise" and not without:
            yield from single_elements.one(context, contribution, rows * columns)
            yield from single_elements.lost(context, contribution, rule, op)
        return
    full = jacobian(rule, op, contribution, operand.data.shape, output.data, upstream)
    if full is None:
        yield Paragraph((Math(symbol), NOT_HOLOMORPHIC))
        return
    if not _is_written_out(pullback, rows, columns):
        yield from _zeros(context, pullback, full, operand, output)
        return
    row_names = tuple(element(output.name, i) for i in indices(output.data.shape))
    column_names = tuple(element(operand.name, i) for i in indices(operand.data.shape))
    flat = next(g for g in upstream if g is not None).reshape(-1)
    takes_real = full.is_complex() and not operand.data.is_complex()
    if output.data.is_complex():
        symbol = rf"\overline{{{symbol}}}"

    def times(flat: Data, full: Data) -> Data:
        whole = flat.to(full.dtype) @ full
        return whole.real if takes_real else whole

    product = times(flat, full)
    block = context.tensor(symbol, full, "jacobian", "Jacobian", row_labels=row_names, column_labels=column_names)
    yield replace(
        block,
        decimals=digits.of_calculation(lambda n: times(digits.written(flat, n), digits.written(full, n)), product),
        upstream=Margin(output.gradient, entries(flat)),
        product=Margin(operand.gradient, entries(product)),
    )
    if takes_real:
        yield Paragraph((f"The last row is the real part of the product, because {operand.name} is real.",))
    yield from _zeros(context, pullback, full, operand, output)


def _is_too_large(rows: int, columns: int) -> bool:
    return rows * columns > JACOBIAN or rows > ROWS


def _is_written_out(pullback: Pullback, rows: int, columns: int) -> bool:
    """Whether a Jacobian is shown entry by entry: a diagonal one only if it is very small, a tall one not at all."""
    most = DIAGONAL**2 if pullback.rule.structure == "elementwise" and rows == columns else JACOBIAN
    return (
        rows <= ROWS and 0 < rows * columns <= most and pullback.op.has_numbers and all_have_numbers(*pullback.upstream)
    )


def _too_large(
    rule: Rule, wrt: Wrt, op: Applied, symbols: dict[str, str], shape: tuple[int, int], item: int | None
) -> Iterator[Span]:
    """Describe a Jacobian that is not written out: its size and, where the rule knows it, its sparsity pattern."""
    rows, columns = shape
    size = f"{rows:,} x {columns:,} = {_count(rows * columns)} entries"
    zeros = f" {sentence(why)}" if (why := wrt.why_zero(op)) else ""
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
    yield f": {many} of its {size} can be nonzero, too many to write out.{zeros}"


def _count(number: int) -> str:
    """A count in full, or a very large one by its order of magnitude: `98,304`, `9.7e9`."""
    return f"{number:,}" if number < 10**7 else f"{number:.1e}".replace("e+0", "e").replace("e+", "e")


def _zeros(context: Context, pullback: Pullback, full: Data, operand: Operand, output: Operand) -> Iterator[Block]:
    """Why entries are zero: by structure, whatever the numbers are, or because of the numbers of this step."""
    zero = int((full == 0).sum())
    if not zero:
        return
    found = zeros_by_value(
        pullback.rule, pullback.op, pullback.contribution, full, output.data.shape, operand.data.shape
    )
    by_value = [f"{element(f'd{output.name}', i)}/{element(f'd{operand.name}', j)}" for i, j in found]
    structural = zero - len(by_value)
    words = []
    if structural:
        where, reason = f"d{output.name}/d{operand.name}", ""
        if why := pullback.wrt.why_zero(pullback.op):
            said = context.reasons.setdefault(why, where)
            reason = f": {why}" if said == where else f", as in {said}"
        words.append(f"{structural} of {full.numel()} entries are zero by structure{reason}.")
    if by_value:
        named = listed(by_value, LISTED)
        also = " more" if structural else f" of {full.numel()} entries"
        words.append(f"{len(by_value)}{also} {'are' if len(by_value) > 1 else 'is'} zero for these values: {named}.")
    yield Paragraph((" ".join(words),))


def _off(context: Context, contribution: Contribution, local: Data) -> Iterator[Block]:
    """How many of the local derivatives of an elementwise operation are zero, and why: all of them, or the first."""
    value, zero = contribution.value, (local == 0).nonzero().tolist()
    if not zero or value is None or not context.is_whole(contribution) or not context.search.has_numbers(value):
        return
    if next(context.turns, None) is not None:
        many = f"{len(zero)} of {local.numel()} are zero for these values"
        first = _reason(context, value, zero[0])
        why, _, number_at = first.partition(": ")
        same = 1 < len(zero) <= REASONS and all(_reason(context, value, at).startswith(f"{why}: ") for at in zero[1:])
        if first:
            yield Paragraph(
                (f"{many}: {why} there, first {number_at}." if same else f"{many}, the first because {first}.",)
            )


def _reason(context: Context, value: int, at: Sequence[int]) -> str:
    """Why the local derivative at one element is zero; "" if that is not known."""
    terms = context.search.why(value, tuple(at)).terms
    return next((factor.reason for term in terms for factor in term.factors[1:] if factor.reason), "")
