r"""Rules of random draws: no gradient passes through one.

A draw's numbers come from a generator, and PyTorch differentiates none of them by what they were drawn with, not even
`torch.normal(mean, std)`. What wants a gradient is written as a function of a draw from a fixed distribution, such as
mean + std * torch.randn_like(std) (the reparametrisation of arXiv:1312.6114, section 2.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from chainrule.rules import Latex, Rule, Sample, latex_of, sample, unread
from chainrule.rules import rule as register
from chainrule.rules.pointwise import x

NOTHING = "what is drawn does not depend on it smoothly, or PyTorch does not follow the dependence"


def draw(
    node: str, distribution: Latex, samples: Callable[[], Iterable[Sample]], arguments: tuple[str, ...] = ("self",)
) -> Rule:
    """Register a draw: zero for each of its tensor arguments, overwritten ones among them."""
    return register(
        f"{node}Backward0",
        equation=lambda op: r"$out \sim " + latex_of(distribution, op),
        wrt={name: replace(unread(name), zeros=NOTHING) for name in arguments},
        samples=samples,
        source=f"derivatives.yaml: {node.lower()}",
        topic="random",
    )


def overwrites(name: str, *arguments: Any) -> Callable[[], list[Sample]]:
    """Samples of a draw that is written over a tensor."""

    def fill(t: torch.Tensor) -> torch.Tensor:
        filled: torch.Tensor = getattr(t * 1, name)(*arguments)
        return filled

    return lambda: [sample(fill, x(1.0, 2.0)), sample(fill, x(shape=(0, 2)), note="empty")]


# fmt: off
for row in (
    # node         distribution                               samples, arguments
    ("Bernoulli",  lambda op: rf"\operatorname{{Bernoulli}}(${'self' if op.arguments.get('p') is None else 'p'})",
     lambda: [sample(torch.bernoulli, x(0.1, 0.9)), *overwrites("bernoulli_", 0.3)()], ("self", "p")),
    ("Normal",     r"\mathcal{N}($mean, {$std}^{2})",
     lambda: [sample(torch.normal, x(1.0, 2.0), std) for std in (x(0.5, 0.1), 0.5)] + overwrites("normal_")(),
     ("self", "mean", "std")),
    ("Poisson",    r"\operatorname{Poisson}($self)",          lambda: [sample(torch.poisson, x(1.0, 4.0))]),
    ("Uniform",    r"\mathcal{U}($from, $to)",                overwrites("uniform_", -1.0, 3.0)),
    ("Exponential", r"\operatorname{Exponential}($lambd)",    overwrites("exponential_", 2.0)),
    ("Cauchy",     r"\operatorname{Cauchy}($median, $sigma)", overwrites("cauchy_", 1.0, 2.0)),
    ("Geometric",  r"\operatorname{Geometric}($p)",           overwrites("geometric_", 0.5)),
    ("LogNormal",  r"\operatorname{LogNormal}($mean, {$std}^{2})", overwrites("log_normal_", 0.5, 0.25)),
    ("Random",     lambda op: rf"\mathcal{{U}}\{{{op.arguments.get('from') or 0}, \dots, {op.to - 1}\}}",
     overwrites("random_", 7)),
):
    draw(*row)
# fmt: on
