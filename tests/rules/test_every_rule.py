"""Every rule of the registry on every sample of its own: recorded, applied, and held against autograd.

The samples name the awkward cases (broadcast, size 1, empty, a kink), so a new rule is tested by being registered.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import chainrule
from chainrule import rules
from chainrule.graph.trees import tensors_in
from chainrule.rules import Applied, Factor, Rule, Sample, Wrt

RULES = list(rules.registered())
PRECISIONS = {torch.float64: (1e-8, 1e-9), torch.float32: (2e-3, 2e-4)}  # relative, absolute
WIDER = {torch.float64: torch.complex128, torch.float32: torch.complex64}
ENTRIES = 150  # of a Jacobian whose factors are read one by one

# Nodes whose gradient is wrong in PyTorch 2.13, so that agreement would be the mistake.
WRONG_IN_PYTORCH = {"as_strided_scatter": {"self"}}

# Kernels that round a constant to float32 in float64 as well.
SINGLE_IN_PYTORCH = {"hardsigmoid"}

# Kernels that the CPU does not run as one; test_kernels.py has them.
ELSEWHERE = {"rms_norm"}


pytestmark = pytest.mark.usefixtures("quiet")


def converted(tree: Any, dtype: torch.dtype) -> Any:
    """A sample's arguments in another precision, as new leaves."""
    if isinstance(tree, Tensor):
        kind = WIDER[dtype] if tree.is_complex() else dtype if tree.is_floating_point() else tree.dtype
        return tree.detach().to(kind).clone().requires_grad_(tree.requires_grad)
    if isinstance(tree, (list, tuple)):
        return type(tree)(converted(each, dtype) for each in tree)
    return tree


def recorded(sample: Sample, dtype: torch.dtype) -> Any:
    """The recording of a sample with random upstream gradients; None where PyTorch has it not in this precision."""

    def run() -> None:
        torch.manual_seed(1)
        arguments = converted(sample.arguments, dtype)
        keywords = {name: converted(each, dtype) for name, each in sample.keywords.items()}
        outs = [out for out in tensors_in(sample.function(*arguments, **keywords)) if out.requires_grad]
        outs = [out if out.layout == torch.strided else out.to_dense() for out in outs]
        sum((out * torch.randn_like(out)).real.sum() for out in outs).backward()

    try:
        run()
    except (RuntimeError, NotImplementedError):
        return None
    with chainrule.record(namespace={}) as recording:
        run()
    return recording


def steps_of(rule: Rule, recording: Any) -> list[Any]:
    """The steps back, of nodes or of calls told as one, that a rule was asked for."""
    derivation = recording.derivation
    nodes = [step for step in derivation.nodes if step.rule is rule]
    return nodes or [step for step in derivation.steps if step.kind == "backward" and step.rule is rule]


def disagreements(rule: Rule, step: Any) -> Iterator[str]:
    """In which arguments a step's gradient has another shape than its value, or other numbers than autograd's."""
    for contribution in step.contributions:
        if contribution.recorded is None or contribution.argument in WRONG_IN_PYTORCH.get(rule.name, ()):
            continue
        if contribution.gradient is None:
            yield f"{contribution.argument}: none, but autograd has one"
            continue
        relative, absolute = PRECISIONS.get(contribution.recorded.abs().dtype, PRECISIONS[torch.float32])
        if rule.name in SINGLE_IN_PYTORCH:
            relative = max(relative, torch.finfo(torch.float32).eps)
        mine, theirs = full(contribution.gradient), full(contribution.recorded)
        if mine.shape != theirs.shape:
            yield f"{contribution.argument}: shape {tuple(mine.shape)}, not {tuple(theirs.shape)}"
        elif not torch.allclose(mine.to(theirs.dtype), theirs, relative, absolute, equal_nan=True):
            yield f"{contribution.argument}: {mine.flatten()[:6]}, not {theirs.flatten()[:6]}"


def full(tensor: Tensor) -> Tensor:
    """A tensor with all its elements, where only some are stored."""
    return tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()


def templates(rule: Rule, op: Applied) -> Iterator[str]:
    """Every formula of a rule that tells this operation, filled in."""
    slots = {f"{name}{slot}" for name in ("out", "g") for slot in range(max(rule.outputs, len(op.outs)))}
    names = {name: rf"\mathbf{{{name[0]}}}" for name in {*op.arguments, *slots, "out", "g", "g_", "grad", "self"}}
    here = [wrt for argument, wrt in rule.wrt.items() if op.arguments.get(argument) is not None]
    for template in [rule.equation, rule.where, *(each for wrt in here for each in (wrt.local, wrt.product))]:
        yield rule.latex(template, op, names)


def malformed(latex: str) -> str:
    """What is wrong with a formula: a name that nothing stands for, or brackets that do not close."""
    if "$" in latex:
        return "a name is left over"
    bare = latex.replace(r"\{", "").replace(r"\}", "")
    depths = list(itertools.accumulate((c == "{") - (c == "}") for c in bare))
    if any(depth < 0 for depth in depths) or (depths and depths[-1]):
        return "braces do not close"
    if len(re.findall(r"\\left(?![a-z])", bare)) != len(re.findall(r"\\right(?![a-z])", bare)):
        return r"\left without \right"
    if bare.count(r"\begin{") != bare.count(r"\end{"):
        return r"\begin without \end"
    return ""


def named(factor: Factor, op: Applied) -> complex | None:
    """The number that a factor stands for; None where it is a formula to be read by people."""
    if factor.argument is not None:
        value = op.arguments[factor.argument]
        return complex(value[factor.index] if isinstance(value, Tensor) else value) * factor.scale
    if quotient := re.fullmatch(r"(-?)\\frac\{1\}\{(\d+)\}", factor.latex):
        return complex((-1 if quotient[1] else 1) / int(quotient[2])) * factor.scale
    return complex(float(factor.latex)) * factor.scale if re.fullmatch(r"-?[\d.]+", factor.latex) else None


def wrong_factors(wrt: Wrt, rule: Rule, argument: str, op: Applied) -> Iterator[str]:
    """Entries of a small Jacobian that a rule names otherwise than its VJP, asked one output at a time, has them."""
    x, out = op.arguments[argument], op.out
    if wrt.factor is None or rule.outputs != 1 or not isinstance(x, Tensor):
        return
    if not x.is_floating_point() or out.is_complex():
        return
    if not 0 < x.numel() * out.numel() <= ENTRIES:
        return
    for out_index in itertools.product(*map(range, out.shape)):
        unit = torch.zeros_like(out)
        unit[out_index] = 1
        row, _ = rules.reduce_to_shape(wrt.vjp(op, unit), tuple(x.shape))
        for in_index in itertools.product(*map(range, x.shape)):
            if rule.structure == "elementwise" and not row[in_index]:
                continue  # of these only the diagonal is asked for
            factor = wrt.factor(op, out_index, in_index)
            if factor is not None and factor.argument is not None and rule.structure == "linear":
                yield f"{factor}: of a linear rule's Jacobian no entry is an operand's element (terms.py relies on it)"
            value = None if factor is None else named(factor, op)
            if value is not None and abs(value - complex(row[in_index])) > 1e-9 * (1 + abs(value)):
                yield f"d out{list(out_index)} / d {argument}{list(in_index)}: {factor}, but it is {row[in_index]}"


def mistakes(rule: Rule) -> Iterator[str]:
    """All that is wrong with a rule, over all its samples."""
    for place, sample in enumerate(rule.samples()):
        where = f"sample {place} {sample.note}".strip()
        asked = False
        for dtype in PRECISIONS:
            recording = recorded(sample, dtype)
            if recording is None:
                continue
            yield from (f"{where}: {step.failure}" for step in recording.derivation.nodes if step.failure)
            for step in steps_of(rule, recording):
                asked = True
                yield from (f"{where}, {dtype}: {each}" for each in disagreements(rule, step))
                if dtype == torch.float64 and step.op is not None:
                    yield from (
                        f"{where}: {wrong}: {text}" for text in templates(rule, step.op) if (wrong := malformed(text))
                    )
                    for argument, wrt in rule.wrt.items():
                        if argument in step.op.arguments:
                            yield from (f"{where}: {e}" for e in wrong_factors(wrt, rule, argument, step.op))
        if not asked and rule.name not in ELSEWHERE:
            yield f"{where}: it does not run the rule's operation"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule(rule: Rule) -> None:
    found = list(mistakes(rule))
    assert not found, "\n".join(found)


def test_a_wrong_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    rules.load()
    square = next(each for each in RULES if "PowBackward0" in each.nodes)
    right = square.wrt["self"]
    wrong = dataclasses.replace(
        square, wrt={**square.wrt, "self": dataclasses.replace(right, vjp=lambda op, g: right.vjp(op, g) * 2.001 / 2)}
    )
    monkeypatch.setitem(rules._by_node, "PowBackward", [wrong])
    assert any("torch.float64: self" in each for each in mistakes(wrong))


@pytest.mark.parametrize(
    ("latex", "wrong"),
    [
        (r"\frac{1}{2}", ""),
        (r"\left\{ a \right\}", ""),
        (r"$other", "a name is left over"),
        (r"\frac{1}{2", "braces do not close"),
        (r"\left( a", r"\left without \right"),
        (r"\begin{cases} a", r"\begin without \end"),
    ],
)
def test_a_malformed_formula_is_caught(latex: str, wrong: str) -> None:
    assert malformed(latex) == wrong


def test_a_wrongly_named_factor_is_caught() -> None:
    op = Applied({"self": torch.tensor([1.0, 2.0])}, (torch.tensor([2.0, 4.0]),))
    double = Wrt(lambda op, g: 2 * g, "2", "2 $g", factor=lambda op, out, into: Factor("self", into))
    rule = dataclasses.replace(RULES[0], wrt={"self": double}, outputs=1)
    assert list(wrong_factors(double, rule, "self", op))
