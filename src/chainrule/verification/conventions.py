"""A user's `autograd.Function` whose gradient is meant to be another than the derivative.

A straight-through estimator has a forward that rounds, and a backward that takes it as if it did not. A gradient
reversal has a forward that changes nothing, and a backward that turns the sign. Each is recognised by what the forward
is at several points, and by what the backward gives for several upstream gradients: exactly what the convention says.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from chainrule.capture.lowering.naming import function_name
from chainrule.execution.central_differences import Probe
from chainrule.execution.experiment import Experiment, real
from chainrule.execution.function_trace import CLOSE, LARGEST, FunctionTrace, traces
from chainrule.graph.comparison import EPS, compare
from chainrule.verification.differences import ArgumentCheck, AtConvention, differentiated

STRAIGHT, SURROGATE, REVERSAL = "arXiv:1308.3432", "arXiv:1901.09948", "arXiv:1409.7495"
STEPS = {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn"}
COMPARISONS = {"gt", "ge", "lt", "le"}
ROW = 4  # elements from which on it is no chance that all have the same ratio
CROSSED = 0.02  # of the elements: so many of a staircase may lie so near to a step that a small move crosses it
FLAT = 1e-3  # relative: how far off the slope of a staircase as a whole is known

Meaning = tuple[str, str]  # what PyTorch takes, and the source


def settle_by_convention(experiment: Experiment, findings: list[ArgumentCheck]) -> None:
    """Excuse the gradients that differ from the derivative by a convention of the user's own function."""
    wrong = [f for f in findings if (f.off or f.unsettled) and not f.missing and f.got.numel() <= LARGEST]
    if not wrong:
        return
    edges = differentiated(findings)
    points: list[FunctionTrace] = []
    for finding in wrong:
        try:
            points = points or list(traces(experiment, edges))
            meaning = next(_meanings(experiment, points, finding), None)
        except Exception:  # a user's code may do anything when it runs again
            continue
        if meaning is not None:
            gradient = points[0].got[finding.edge.position]
            at = AtConvention(finding.label, ((0,) * gradient.dim(),), gradient.numel(), *meaning)
            finding.off, finding.unsettled, finding.finite, finding.conventions = [], "", None, (at,)


def _meanings(experiment: Experiment, points: list[FunctionTrace], finding: ArgumentCheck) -> Iterator[Meaning]:
    position = finding.edge.position
    if not compare(finding.got, real(points[0].got[position]), eps=experiment.eps).agrees:
        return  # what was recorded is not what the backward gives
    out = next(iter(experiment.upstream))
    pairs = [(each.upstream[out], each.got[position]) for each in points]
    alike = len(experiment.upstream) == 1 and all(u.shape == got.shape for u, got in pairs)
    forward = Forward(Probe(experiment, finding.edge))
    if alike and forward.is_identity:
        yield from _of_identity(pairs)
    for mode in (_Straight(), _Left()):
        factor, taken = _straight_through(points, position, mode)
        if taken and (factor == 1 or (factor > 0 and not alike)):  # a scale may learn more slowly than what it scales
            times = "" if factor == 1 else f", times {factor:.6g}"
            yield f"straight-through estimator: the backward {mode.words.format(f'`{taken}`')}{times}", STRAIGHT
    if alike and forward.is_staircase:
        yield from _of_staircase(pairs, forward.rise)
    elif alike and _has_steps(points[0], position) and forward.is_scaled_staircase:
        yield from _of_staircase(pairs, 0.0)


class Forward:
    """What a function is far from the recorded point as well."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        generator = torch.Generator().manual_seed(5)
        drawn = probe.drawn(generator)
        self.drawn, self.points = drawn, (probe.x, -probe.x, 3 * probe.scale * drawn)

    @property
    def is_identity(self) -> bool:
        """Whether the output is the input, number for number."""
        return all(torch.equal(self.probe.f(x), self._rounded(x)) for x in self.points)

    def _rounded(self, x: Tensor) -> Tensor:
        """As precise as the function's own numbers are."""
        coarse = {torch.finfo(t).eps: t for t in (torch.float32, torch.float16, torch.bfloat16)}
        return x if self.probe.grain <= EPS else x.to(coarse[self.probe.grain]).double()

    @property
    def is_staircase(self) -> bool:
        """Whether the output stays what it is when the input moves a little, wherever it is."""
        step = max(2.0**-30, 64 * self.probe.grain)
        return all(self._few(self.probe.f(x) != self.probe.f(self._moved(x, step))) for x in self.points)

    @property
    def is_scaled_staircase(self) -> bool:
        """Whether, when the input moves a little, all elements of a row stay, but for one factor: mean(|x|) sign(x)."""
        if self.probe.shape[-1:] < (ROW,) or self.probe.y.numel() != self.probe.x.numel():
            return False

        def rows(x: Tensor) -> Tensor:
            out = self.probe.f(x).reshape(self.probe.shape)
            return out / out.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(out.dtype).tiny)

        near = max(16 * self.probe.grain, 2.0**-40)  # a continuous function moves by far more
        return all(self._few((rows(x) - rows(self._moved(x, 2.0**-12))).abs() > near) for x in self.points)

    def _moved(self, x: Tensor, step: float) -> Tensor:
        return x + step * self.probe.scale * (1 + self.drawn.abs())

    @cached_property
    def rise(self) -> float:
        """The slope of the staircase as a whole; 0 where it ends somewhere."""
        far = 1e6 * self.probe.scale
        return float((self.probe.f(self.probe.x + far) - self.probe.f(self.probe.x - far)).mean()) / (2 * far)

    def _few(self, changed: Tensor) -> bool:
        return bool(changed.count_nonzero() <= CROSSED * changed.numel())


def _of_identity(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[Meaning]:
    factor = _factor(pairs)
    if factor or not any(got.any() for _, got in pairs):
        named, source = (f"gradient reversal by {-factor:.6g}", REVERSAL) if factor < 0 else (
            f"gradient scaling by {factor:.6g}", "")  # fmt: skip
        yield f"{named}: the forward is the identity, and the backward gives {factor:.6g} times the upstream", source
    if (bound := _bound(pairs)) is not None:
        yield f"gradient clipping: the forward is the identity, and the backward clips to ±{bound:.6g}", ""


def _of_staircase(pairs: list[tuple[Tensor, Tensor]], rise: float) -> Iterator[Meaning]:
    if (bound := _bound(pairs)) is not None:
        yield f"straight-through estimator: the upstream gradient passes, clipped to ±{bound:.6g}", STRAIGHT
    (u, got), (other, again) = pairs[:2]
    factor = again / other
    if not bool((factor >= 0).all()) or not bool(factor.any()) or not _same(got, factor * u):
        return
    if bool(((factor - factor.round()).abs() <= CLOSE).all()) and bool((factor.round() <= 1).all()):
        passes = "passes" if bool((factor.round() == 1).all()) else "passes at some elements, and stops at the others"
        yield f"straight-through estimator: the upstream gradient {passes}", STRAIGHT
        return
    low, high = float(factor.min()), float(factor.max())
    if high - low > CLOSE * high:
        taken = f"{low:.4g} to {high:.4g} times the upstream gradient"
        yield f"surrogate gradient: in place of the derivative of a step, which is 0, {taken}", SURROGATE
    elif abs(rise) <= FLAT * high or abs(high / rise - 1) <= FLAT:
        yield f"straight-through estimator: {high:.6g} times the upstream gradient passes", STRAIGHT


def _bound(pairs: list[tuple[Tensor, Tensor]]) -> float | None:
    """The bound to which every element of the upstream gradients is clipped; None where that is not what happens."""
    bound = max(float(got.abs().max()) for _, got in pairs)
    clipped = any(bool((u.abs() > bound).any()) for u, _ in pairs)
    return bound if clipped and all(_same(got, u.clamp(-bound, bound)) for u, got in pairs) else None


def _same(got: Tensor, expected: Tensor) -> bool:
    return compare(got, expected, eps=CLOSE).agrees


class _Steps(TorchFunctionMode):
    """Notes the functions that round something of which a gradient is asked, and the comparisons."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[str] = []
        self.compares = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function_name(function).strip("_")
        if args and isinstance(args[0], Tensor) and args[0].requires_grad:
            self.compares |= name in COMPARISONS
            if name in STEPS:
                self.rounds.append(name)
                return self.instead(args[0], out)
        return out

    def instead(self, given: Tensor, out: Tensor) -> Tensor:
        """What goes on in the place of the rounded numbers."""
        return out


class _Straight(_Steps):
    """Lets gradients through the functions that round, as if these were the identity."""

    words = "takes {} as the identity"

    def instead(self, given: Tensor, out: Tensor) -> Tensor:
        return given + (out - given).detach()


class _Left(_Steps):
    """Leaves the rounding out."""

    words = "leaves {} out"

    def instead(self, given: Tensor, out: Tensor) -> Tensor:
        return given


def _has_steps(point: FunctionTrace, position: int) -> bool:
    """Whether the forward rounds or compares what the argument has gone into."""
    with _Steps() as mode:
        point.without_use(None)[position]
    return bool(mode.rounds) or mode.compares


def _straight_through(points: list[FunctionTrace], position: int, mode: _Straight | _Left) -> tuple[float, str]:
    """How many times the gradient of the forward with its rounding changed the backward gives; what rounds there."""
    pairs = []
    for point in points:
        before = len(mode.rounds)
        with mode:
            gradient = point.without_use(None)[position]
        if gradient is None or len(mode.rounds) == before:
            return 0.0, ""
        pairs.append((gradient, point.got[position]))
    factor = _factor(pairs)
    return factor, "` and `".join(dict.fromkeys(mode.rounds)) if factor else ""


def _factor(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The one number of times that the second of each pair is the first; 0 where there is none."""
    first, second = (real(each) for each in pairs[1])
    size = float(first @ first)
    factor = float(first @ second) / size if size else 0.0
    factor = 1.0 if abs(factor - 1) <= CLOSE else factor
    return factor if all(_same(got, factor * given) for given, got in pairs) else 0.0
