"""From one recorded step to what is kept of it: the loss, the learning rates, and the figures of its tensors.

A tensor goes by the path of its module or parameter in the model, whatever else ran at the top (a loss that is a
module), so that it has the same name in every step. What a GradScaler multiplied is divided again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from chainrule.capture.sharding import own_part
from chainrule.graph.graph import Graph, Value
from chainrule.graph.history import Kind, RankFacts, StepFacts
from chainrule.graph.snapshot import Parameter, ParameterUpdate, Snapshot, data_of
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import StatisticsCache, measured, measured_samples
from chainrule.monitor.distributed import facts_of_rank
from chainrule.monitor.runs import Figure

if TYPE_CHECKING:
    from chainrule.recording import Recording

UPDATES_SCALE = "aten._amp_update_scale_"
CLIPS = "clip_grad"
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel, and of torch.compile


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the watch knows of a step besides its recording."""

    step: int
    time: float
    rates: tuple[float, ...]
    scale: float | None
    passes_before: int  # backward passes that belong to an earlier optimizer's step in this round
    closure: bool  # the optimizer ran the passes itself, the first of them where the parameters were
    named: bool  # paths begin at models that are known
    full: bool  # recorded with all its numbers
    met: Mapping[str, Statistics] = field(default_factory=dict)  # gradients, where a closure made them inside the step
    moments: tuple[tuple[str, str, Statistics], ...] = ()  # (parameter, key, figures)
    measures: StatisticsCache = field(default_factory=StatisticsCache)  # of the step's tensors, for all who ask
    histograms: bool = True  # whether those are wanted
    alone: bool = True  # no other rank watches: which inputs are parts of one, and which the same, nobody knows

    def figures(self, snapshot: Snapshot | None) -> Statistics | None:
        """Those that were taken while the step ran; of a tensor whose numbers were kept, those of the numbers."""
        return self.measures.of(snapshot, self.histograms)


def skipped_in(graph: Graph) -> int:
    """How many steps a GradScaler left out while this was recorded: it sets its scale anew after each."""
    return sum(operation.name.startswith(UPDATES_SCALE) for operation in graph.operations)


def facts_of(graph: Graph, around: Surroundings) -> StepFacts:
    """The step apart from its tensors."""
    attempts = skipped_in(graph) + 1
    backwards = graph.accumulating
    passes = len(backwards) // attempts  # those of the attempts that were left out are no part of it
    counted = backwards[max(len(backwards) - passes, around.passes_before) :]
    losses = [_number(graph.values[each.loss]) for each in counted if each.loss is not None]
    known = [loss for loss in losses if loss is not None][: 1 if around.closure else None]
    return StepFacts(
        around.step,
        around.time,
        sum(known) / (around.scale or 1) if known else None,
        around.rates,
        False,
        around.scale,
        _clipped(graph, around),
        max(passes, 1),
        around.full,
    )


def figures_of(graph: Graph, around: Surroundings) -> Iterator[Figure]:
    """Every tensor that is kept: what came from outside, parameters, what modules and the user's named lines made, and
    all their gradients.
    """
    around.measures.measure(_floats_of(graph), around.histograms)
    prefix = "" if around.named else prefix_of(graph)
    named = list(_named_values(graph, prefix))
    left_out = _left_out(graph, named)
    if around.alone:
        yield from _of_inputs(graph, around, left_out)
    yield from _of_parameters(graph, prefix, around)
    yield from _of_values([each for each in named if each[-1].index not in left_out], around)


def _floats_of(graph: Graph) -> Iterator[Tensor]:
    """Every tensor of real numbers that was kept: each is asked for, by its figures or by what looks for findings."""
    values = ((value.snapshot, value.gradient) for value in graph.values)
    parameters = ((parameter.start, parameter.gradient) for parameter in graph.parameters.values())
    updates = ((member.start, member.gradient) for update in graph.updates for member in update.parameters)
    known = map(data_of, chain.from_iterable(chain(values, parameters, updates)))
    return (each for each in known if each is not None and each.is_floating_point())


NamedValue = tuple[str, str, Value]  # the path, the class of its module or the call that made it, and itself


def _left_out(graph: Graph, named: Sequence[NamedValue]) -> set[int]:
    """What had no part in the update, of what the step has several of one name: a forward pass whose loss was left out.

    So what remains goes by the name that it has in every other step.
    """
    again = Counter(name for name, _, _ in named)
    repeated = [(name, value.index) for name, _, value in named if again[name] > 1]
    inputs = [value.index for value in graph.values if value.kind == "input" and "@" in value.name]
    if not repeated and not inputs:
        return set()
    had_part = {value.index for value in graph.values if value.has_gradient}
    if not had_part:
        return set()
    had_part |= graph.ancestors(had_part)
    kept = {name for name, index in repeated if index in had_part}
    return {index for name, index in repeated if name in kept}.union(inputs) - had_part


def _of_inputs(graph: Graph, around: Surroundings, left_out: Collection[int]) -> Iterator[Figure]:
    for layer, value in enumerate(graph.values):
        if value.kind != "input" or value.operation is not None or not value.shape or layer in left_out:
            continue
        statistics = around.figures(value.snapshot)
        if statistics is not None:
            yield Figure("input", value.name, layer, "", _short(value.dtype), statistics)


# -- parameters -------------------------------------------------------------------------------------------------------


def _of_parameters(graph: Graph, prefix: str, around: Surroundings) -> Iterator[Figure]:
    types = {name: module.class_name for module in graph.modules for name in module.parameters}
    updates = {each.name: each for update in graph.updates for each in update.parameters}  # the last of each
    layers: dict[str, int] = {}
    for layer, (name, parameter) in enumerate(graph.parameters.items()):
        short = shortened(name, prefix)
        layers[short] = layer
        changed = updates.get(name, parameter)
        kinds: tuple[tuple[Kind, Statistics | None], ...] = (
            ("parameter", around.figures(changed.start)),
            ("parameter gradient", around.met.get(short) or around.figures(changed.gradient)),
            ("update", _moved(changed, around.histograms)),
        )
        for kind, statistics in kinds:
            if statistics is not None:
                yield Figure(kind, short, layer, types.get(name, ""), "", statistics)
    for parameter_name, key, statistics in around.moments:
        yield Figure("moment", f"{parameter_name}/{key}", layers.get(parameter_name, 0), "", "", statistics)


def rank_of(recording: Recording, prefix: str) -> RankFacts:
    """What this rank's step was like, its parameters by the names that they have in a run."""
    facts = facts_of_rank(recording, marks=False)
    return replace(facts, parameters={shortened(name, prefix): each for name, each in facts.parameters.items()})


# -- values -----------------------------------------------------------------------------------------------------------


def _named_values(graph: Graph, prefix: str) -> Iterator[NamedValue]:
    types = {module.path: module.class_name for module in graph.modules}
    for value in graph.values:
        if value.kind != "result" or not value.shape or value.operation is None:
            continue
        name, type_ = _named(graph, value, types)
        if name:
            yield shortened(name, prefix), type_, value


def _of_values(named: Iterable[NamedValue], around: Surroundings) -> Iterator[Figure]:
    runs: Counter[str] = Counter()
    for short, type_, value in named:
        runs[short] += 1
        path = short if runs[short] == 1 else f"{short}#{runs[short]}"
        dtype = _short(value.dtype)
        statistics = around.figures(value.snapshot)
        gradient = around.figures(value.gradient)
        if statistics is not None:
            yield Figure("value", path, value.index, type_, dtype, statistics)
        if gradient is not None:
            yield Figure("gradient", path, value.index, type_, dtype, divided(gradient, around.scale or 1))


def _named(graph: Graph, value: Value, types: dict[str, str]) -> tuple[str, str]:
    """The path of the module that made a value and its class, or the name that the user gave it and the call."""
    bare = [name.partition("@")[0] for name in value.names]
    for name in bare:
        if name in types and name:
            return name, types[name]
    call = graph.operations[value.operation or 0].call
    called = graph.calls[call].name if call is not None else ""
    targets = value.place.targets if value.place is not None else ()
    name = next((name for name in bare if name in targets), "")
    module = graph.calls[call].module if call is not None else ""
    return (f"{module}.{name}" if module and name else name), called


# -- figures ----------------------------------------------------------------------------------------------------------


def divided(statistics: Statistics, scale: float) -> Statistics:
    """The figures of the tensor over `scale`; the histogram only where that is a power of two, as scales are."""
    if scale == 1:
        return statistics
    figures = {name: getattr(statistics, name) / scale for name in ("norm", "mean", "std", "low", "high")}
    return replace(statistics, **figures, magnitudes=())


def _clipped(graph: Graph, around: Surroundings) -> tuple[float, float] | None:
    """The norm of all gradients as backward left them, and as the optimizer met them, where something clipped them."""
    if not any(event.kind.startswith(CLIPS) for event in graph.events):
        return None
    left = [around.figures(each.gradient) for each in graph.parameters.values()]
    last = {each.name: each for update in graph.updates for each in update.parameters}
    met: Iterable[Statistics | None] = around.met.values()
    met = met or [around.figures(each.gradient) for each in last.values()]
    return _norm(left) / (around.scale or 1), _norm(met)


def _moved(changed: Parameter | ParameterUpdate, histogram: bool) -> Statistics | None:
    """What the step added to a parameter."""
    known = changed.update_statistics if isinstance(changed, ParameterUpdate) else None
    before, after = changed.start.data, data_of(changed.end)
    return known if known is not None or before is None or after is None else Statistics.of(after - before, histogram)


def _norm(gradients: Iterable[Statistics | None]) -> float:
    """Of all gradients together; not finite where one of them is not."""
    known = [each for each in gradients if each is not None]
    return math.nan if any(each.not_finite for each in known) else math.hypot(*(each.norm for each in known))


def _number(value: Value) -> float | None:
    if value.data is None or value.data.numel() != 1:
        return None
    number: Any = value.data.item()
    return float(number.real if isinstance(number, complex) else number)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -- names ------------------------------------------------------------------------------------------------------------


def prefix_of(graph: Graph) -> str:
    """What stands before the model's own paths where something else ran beside it at the top."""
    if any(module.path == "" for module in graph.modules):
        return ""
    firsts = {name.partition(".")[0] for name in graph.parameters}
    return f"{firsts.pop()}." if len(firsts) == 1 else ""


def shortened(name: str, prefix: str = "") -> str:
    """A path without the names of wrappers around the model."""
    name = name.removeprefix(prefix)
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name.replace("._orig_mod.", ".")


def measured_gradients(
    optimizers: Iterable[Optimizer], names: Mapping[int, str], histograms: bool
) -> dict[str, Statistics]:
    """The gradients that the optimizers' last steps left standing, by the names of their parameters."""
    gradients = {
        names[id(parameter)]: own_part(parameter.grad)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None and id(parameter) in names
    }
    return dict(zip(gradients, measured(list(gradients.values()), histograms), strict=True))


def measured_moments(
    optimizers: Iterable[Optimizer], names: Mapping[int, str]
) -> tuple[tuple[str, str, Statistics], ...]:
    """What the optimizers remember of each parameter (by its name): their moments, of a large one a sample."""
    moments = [
        (name, key, own_part(tensor))
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        if (name := names.get(id(parameter))) is not None
        for key, tensor in state.items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.shape == parameter.shape
    ]
    found = measured_samples([tensor for *_, tensor in moments])
    return tuple((name, key, each) for (name, key, _), each in zip(moments, found, strict=True))
