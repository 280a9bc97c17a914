"""What rules say of the pattern of a Jacobian, held against the Jacobian itself at the size of their samples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_every_rule import RULES, recorded, steps_of
from torch import Tensor

from chainrule.rules import Applied, Rule, Wrt, pattern, reduce_to_shape

pytestmark = pytest.mark.usefixtures("quiet")

ENTRIES = 4_000


def dense(
    rule: Rule, op: Applied, argument: str, shape: tuple[int, ...], upstream: tuple[Tensor | None, ...]
) -> Tensor:
    """The Jacobian, one VJP of a basis vector a row; the other outputs get no gradient."""
    rows = []
    for place in range(op.out.numel()):
        unit = torch.zeros(op.out.numel(), dtype=op.out.dtype)
        unit[place] = 1
        row = rule.gradient(op, (unit.reshape(op.out.shape), *[None] * (len(upstream) - 1)), argument)
        rows.append(reduce_to_shape(row, shape)[0].reshape(-1))
    return torch.stack(rows).nan_to_num(0.0)  # 0 times an infinite derivative, beside it


def claims(rule: Rule) -> Iterator[tuple[str, Wrt, Applied, str, pattern.Pattern, Tensor]]:
    """Every pattern that a rule claims over its samples, with the Jacobian that it is claimed of."""
    for sample in rule.samples():
        recording = recorded(sample, torch.float64)
        for step in steps_of(rule, recording) if recording is not None else ():
            op, upstream = step.op, step.upstream
            arguments = {
                contribution.argument
                for contribution in step.contributions
                if contribution.item is None and contribution.value is not None
            }
            for argument in arguments & set(rule.wrt):
                found, wrt = None, rule.wrt[argument]
                if op is not None and wrt.pattern is not None and isinstance(op.arguments[argument], Tensor):
                    found = wrt.pattern(op)
                if found is None or not 0 < found.shape[0] * found.shape[1] <= ENTRIES:
                    continue
                shape = tuple(op.arguments[argument].shape)
                yield sample.note, wrt, op, argument, found, dense(rule, op, argument, shape, upstream)


def mistakes(op: Any, found: pattern.Pattern, full: Tensor) -> Iterator[str]:
    if found.shape != tuple(full.shape):
        yield f"shape {found.shape}, not {tuple(full.shape)}"
        return
    there = full != 0
    if int(there.sum()) > found.nonzero:
        yield f"{int(there.sum())} entries differ from zero, not {found.nonzero}"
    if found.mask is not None:
        mask = found.mask()
        if bool((there & ~mask).any()):
            yield "an entry outside the pattern differs from zero"
        if int(mask.sum()) != found.nonzero and found.exact:
            yield f"the pattern has {int(mask.sum())} entries, not {found.nonzero}"
    elif found.exact and int(there.sum()) != found.nonzero:
        yield f"only {int(there.sum())} entries differ from zero, not {found.nonzero}"
    if "one-hot" in found.words or "permutation" in found.words or "identity" in found.words:
        if set(full[there].tolist()) - {1.0} or int(there.sum(1).max()) > 1:
            yield "a row has something else than a single 1"
        if "permutation" in found.words and int(there.sum(0).max()) > 1:
            yield "a column has several"
    if found.block:
        yield from wrong_blocks(op, found, full)


def wrong_blocks(op: Any, found: pattern.Pattern, full: Tensor) -> Iterator[str]:
    """Each block of the mask, in the order of its rows and columns, must be the operand that it is said to equal."""
    name, transposed = re.fullmatch(r"\$(\w+)(\^\{T\})?", found.block).groups()
    block = op.arguments[name]
    block = block.reshape(-1, block.shape[-1]) if block.dim() else block.reshape(1, 1)
    block = block.mT if transposed and op.arguments[name].dim() > 1 else block
    mask = found.mask()
    groups = Counter(tuple(row) for row in mask.tolist())
    copies = re.search(r"([\d,]+) copies", found.words)
    if len(groups) != (int(copies[1].replace(",", "")) if copies else 1):
        yield f"{len(groups)} blocks, not {found.words}"
    for columns in groups:
        rows = [place for place, row in enumerate(mask.tolist()) if tuple(row) == columns]
        part = full[rows][:, torch.tensor(columns)]
        if part.numel() != block.numel() or not torch.allclose(part, block.reshape(part.shape).to(part)):
            yield f"a block is not {found.block}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_patterns_of_a_rule(rule: Rule) -> None:
    wrong = [
        f"{note} {argument}: {found.words}: {each}"
        for note, _, op, argument, found, full in claims(rule)
        for each in mistakes(op, found, full)
    ]
    assert not wrong, "\n".join(wrong)


def test_a_wrong_pattern_is_caught() -> None:
    linear = next(rule for rule in RULES if rule.name == "linear")
    _, _, op, _, found, full = next(each for each in claims(linear) if each[3] == "input")
    assert not list(mistakes(op, found, full))
    for wrong in (
        pattern.Pattern(found.words, found.shape, found.nonzero - 1, block="", mask=found.mask),
        pattern.Pattern("diagonal", found.shape, 2, mask=lambda: torch.eye(*found.shape, dtype=torch.bool)),
        pattern.Pattern(found.words, found.shape, found.nonzero, block="$input", mask=found.mask),
        pattern.Pattern(found.words, (1, 1), found.nonzero),
        pattern.permuted(full.shape[0]),
    ):
        assert list(mistakes(op, wrong, full)), wrong


def test_the_words() -> None:
    def words(*sides: Any, block: str = "") -> tuple[str, int]:
        found = pattern.product(*sides, block)
        return found.words, found.nonzero

    n, o, i = ("n", 64), ("o", 10), ("i", 784)
    assert words([n, o], [n, i], block="$weight") == ("block-diagonal, 64 copies of", 64 * 10 * 784)
    assert words([n, o], [o, i], block="$input") == (
        "block-diagonal but for the order of rows and columns, 10 copies of",
        64 * 10 * 784,
    )
    assert words([n, o], [n, o]) == ("diagonal", 640)
    assert words([n], [n, i]) == ("block-diagonal, 64 blocks of 1 x 784", 64 * 784)
    assert words([o], [i]) == ("dense", 7840)
    assert words([n, ("one", 1)], [("other", 1), n]) == ("diagonal", 64)
    assert pattern.triangular((2, 3), 1).nonzero == 12
