r"""Rules of random draws: no gradient passes through one.

A draw's numbers come from a generator, and PyTorch differentiates none of them by what they were drawn with, not even
`torch.normal(mean, std)`. What wants a gradient is written as a function of a draw from a fixed distribution, such as
mean + std * torch.randn_like(std) (the reparametrisation of arXiv:1312.6114, section 2.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from chainrule.rules import Rule, Sample, Wrt, sample
from chainrule.rules import rule as register
from chainrule.rules.arithmetic import x

NOTHING = "what is drawn does not depend on it smoothly, or PyTorch does not follow the dependence"


def draw(
    node: str, distribution: str, samples: Callable[[], Iterable[Sample]], arguments: tuple[str, ...] = ("self",)
) -> Rule:
    """Register a draw: zero for each of its tensor arguments, overwritten ones among them."""

    def none(argument: str) -> Wrt:
        return Wrt(lambda op, g: torch.zeros_like(op.arguments[argument]), "0", "0", NOTHING)

    return register(
        node,
        equation=rf"$out \sim {distribution}",
        wrt={argument: none(argument) for argument in arguments},
        samples=samples,
        source=f"derivatives.yaml: {node.removesuffix('Backward0').lower()}",
    )


def overwrites(name: str, *arguments: Any) -> Callable[[], list[Sample]]:
    """Samples of a draw that is written over a tensor."""

    def fill(t: torch.Tensor) -> torch.Tensor:
        filled: torch.Tensor = getattr(t * 1, name)(*arguments)
        return filled

    return lambda: [sample(fill, x(1.0, 2.0)), sample(fill, x(shape=(0, 2)), note="empty")]


bernoulli = draw(
    "BernoulliBackward0",
    r"\operatorname{Bernoulli} \text{ with the given probabilities}",
    lambda: [sample(torch.bernoulli, x(0.1, 0.9)), *overwrites("bernoulli_", 0.3)()],
    ("self", "p"),
)
normal = draw(
    "NormalBackward0",
    r"\mathcal{N} \text{ with the given mean and standard deviation}",
    lambda: [
        sample(torch.normal, x(1.0, 2.0), x(0.5, 0.1)),
        sample(torch.normal, x(1.0, 2.0), 0.5),
        *overwrites("normal_")(),
    ],
    ("self", "mean", "std"),
)
poisson = draw("PoissonBackward0", r"\operatorname{Poisson}($self)", lambda: [sample(torch.poisson, x(1.0, 4.0))])
uniform = draw("UniformBackward0", r"\mathcal{U} \text{ between the given bounds}", overwrites("uniform_"))
exponential = draw("ExponentialBackward0", r"\operatorname{Exponential}($lambd)", overwrites("exponential_", 2.0))
cauchy = draw("CauchyBackward0", r"\operatorname{Cauchy}($median, $sigma)", overwrites("cauchy_"))
geometric = draw("GeometricBackward0", r"\operatorname{Geometric}($p)", overwrites("geometric_", 0.5))
log_normal = draw("LogNormalBackward0", r"\operatorname{LogNormal}($mean, $std)", overwrites("log_normal_"))
random = draw("RandomBackward0", r"\text{whole numbers, all equally likely}", overwrites("random_", 7))
