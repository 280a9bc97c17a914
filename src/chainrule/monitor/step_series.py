"""One watched step as entries of the run's series: the loss, the learning rates, the statistics of its tensors.

The name of a tensor is the path of its module or parameter in the model, even if another module (a loss) runs at the
top level, so it is the same in every step. The scale of a GradScaler is divided out.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim.optimizer import Optimizer

from chainrule.capture.data_parallel import own_part
from chainrule.diagnostics.loss_scale import CLIPS, unscaled_by
from chainrule.graph.graph import UNSCALE, Backward, Event, Graph, Value, references
from chainrule.graph.history import Kind, RankFacts, StepFacts
from chainrule.graph.snapshot import Parameter, ParameterUpdate, Snapshot, data_of, type_name
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import StatisticsCache, measured, measured_samples
from chainrule.graph.trees import reach
from chainrule.monitor.distributed import facts_of_rank
from chainrule.monitor.evaluations import Evaluations
from chainrule.monitor.loaders import Restart
from chainrule.monitor.runs import Figure
from chainrule.rules.facts import facts_of as facts_of_operation

if TYPE_CHECKING:
    from chainrule.recording import Recording

WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel, and of torch.compile


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchContext:
    """What the watch knows about a step in addition to its recording."""

    step: int
    rates: tuple[float, ...]
    scale: float | None
    passes_before: int  # backward passes of an earlier optimizer's step in the same training step
    closure: bool  # the optimizer ran the passes itself, only the first with the parameters of the step's start
    named: bool  # paths start at known models
    full: bool  # recorded with all its numbers
    gradients: Mapping[str, Statistics]  # those a closure made inside the optimizer's step, by parameter
    moments: tuple[tuple[str, str, Statistics], ...]  # (parameter, key, statistics)
    counts: tuple[int, ...]  # of steps, in the states of the optimizers
    cache: StatisticsCache  # of the step's tensors
    histograms: bool
    unmeasured: set[str] = field(default_factory=set)  # names of tensors whose numbers cannot be read, found on the way
    restarts: tuple[Restart, ...]  # in the loop around it
    beside: Evaluations  # what ran before it without gradients
    rewritten: bool  # see `StepFacts.rewritten`
    alone: bool  # no other rank watches; among ranks it is not known which inputs are equal and which are parts

    def statistics(self, snapshot: Snapshot | None) -> Statistics | None:
        """The statistics taken while the step ran; for a tensor with kept numbers, those of the numbers."""
        return self.cache.of(snapshot, self.histograms)


def skipped_in(graph: Graph) -> int:
    """How many steps a GradScaler skipped while this was recorded: it updates its scale after each."""
    return sum(facts_of_operation(operation.name).updates_loss_scale for operation in graph.operations)


def facts_of(graph: Graph, context: WatchContext) -> StepFacts:
    """The facts of the step, apart from its tensors."""
    attempts = skipped_in(graph) + 1
    backwards = graph.accumulating
    passes = len(backwards) // attempts  # without those of skipped attempts
    counted = backwards[max(len(backwards) - passes, context.passes_before) :]
    at_start = [each for each in counted if context.closure or not _is_elsewhere(graph, each, counted[0])]
    losses = [_number(graph.values[each.loss]) for each in at_start if each.loss is not None]
    known = [loss for loss in losses if loss is not None][: 1 if context.closure else None]
    return StepFacts(
        context.step, time.time(), sum(known) / (context.scale or 1) if known else None, context.rates,
        scale=context.scale, clipped=_clipped(graph, context), full=context.full,
        passes=max(passes - len(counted) + len(at_start), 1), counts=context.counts,
        evaluated=context.beside.passes, dropped=context.beside.dropped,
        distance=context.beside.distance, restarted=_restarted(graph, context),
        estimate=any(_is_estimate(graph, each.loss, context) for each in at_start if each.loss is not None),
        rewritten=context.rewritten,
    )  # fmt: skip


def _is_elsewhere(graph: Graph, backward: Backward, first: Backward) -> bool:
    """Whether the step itself wrote the parameters with which a pass ran after the first pass, as SAM's climb does."""
    if backward is first or backward.loss is None or first.loss is None:
        return False
    later = graph.ancestors([backward.loss]) - graph.ancestors([first.loss])
    return any(graph.values[each].kind == "parameter" and graph.values[each].operation is not None for each in later)


def _restarted(graph: Graph, context: WatchContext) -> str:
    names = (
        {value.name.partition("@")[0] for value in graph.values if value.kind == "input"} if context.restarts else ()
    )
    return next((text for targets, text in context.restarts if not set(targets).isdisjoint(names)), "")


def _is_estimate(graph: Graph, loss: int, context: WatchContext) -> bool:
    """Whether a term of a loss is weighted by data of either sign: its sign and size then say nothing of the fit."""
    for value in reach([loss], lambda each: _terms(graph, each)):
        made_by = graph.values[value].operation
        if made_by is None or not facts_of_operation(graph.operations[made_by].name).multiplies:
            continue
        factors = [graph.values[each] for each in graph.operands(value)]
        weights = [each for each in factors if not each.requires_grad and each.shape == graph.values[value].shape]
        known = context.statistics(weights[0].snapshot) if len(weights) == 1 and weights[0].shape else None
        if known is not None and known.low < 0 < known.high:
            return True
    return False


def _terms(graph: Graph, value: int) -> list[int]:
    """What a value is the sum, a multiple or the smaller one of."""
    made_by = graph.values[value].operation
    if made_by is None:
        return []
    facts, operands = facts_of_operation(graph.operations[made_by].name), graph.operands(value)
    alone = [each for each in dict.fromkeys(operands) if graph.values[each].requires_grad]
    follows = facts.sums_operands or facts.chooses or (len(alone) == 1 and facts.linear)
    return alone if follows and not facts.weighs else []


def figures_of(graph: Graph, context: WatchContext) -> Iterator[Figure]:
    """The tensors of the series: inputs, parameters, outputs of modules, results with a name, and their gradients."""
    context.cache.measure(_real_tensors(graph), context.histograms)
    prefix = "" if context.named else prefix_of(graph)
    named = list(_named_values(graph, prefix))
    unused = _unused(graph, named)
    if context.alone:
        yield from _of_inputs(graph, context, unused)
    yield from _of_parameters(graph, prefix, context)
    yield from _of_values([each for each in named if each[-1].index not in unused], context)


def _real_tensors(graph: Graph) -> Iterator[Tensor]:
    """Every kept tensor of real numbers: the series or the findings ask for the statistics of each."""
    values = ((value.snapshot, value.gradient) for value in graph.values)
    parameters = ((parameter.start, parameter.gradient) for parameter in graph.parameters.values())
    updates = ((member.start, member.gradient) for update in graph.updates for member in update.parameters)
    known = map(data_of, chain.from_iterable(chain(values, parameters, updates)))
    return (each for each in known if each is not None and each.is_floating_point())


NamedValue = tuple[str, str, Value]  # the path, the class of its module or the call that made it, the value


def _unused(graph: Graph, named: Sequence[NamedValue]) -> set[int]:
    """Among values with the same name, those without a part in the update: a forward pass whose loss was not used.

    The others then have the same names as in every other step.
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


def _of_inputs(graph: Graph, context: WatchContext, unused: Collection[int]) -> Iterator[Figure]:
    for layer, value in enumerate(graph.values):
        if value.kind != "input" or value.operation is not None or not value.shape or layer in unused:
            continue
        statistics = context.statistics(value.snapshot)
        if statistics is not None:
            yield Figure("input", value.name, layer, "", type_name(value.dtype), statistics)


# -- parameters -------------------------------------------------------------------------------------------------------


def _of_parameters(graph: Graph, prefix: str, context: WatchContext) -> Iterator[Figure]:
    types = {name: module.class_name for module in graph.modules for name in module.parameters}
    updates = _last_updates(graph)
    layers: dict[str, int] = {}
    for layer, (name, parameter) in enumerate(graph.parameters.items()):
        short = without_wrappers(name, prefix)
        layers[short] = layer
        update = updates.get(name, parameter)
        kinds: tuple[tuple[Kind, Statistics | None], ...] = (
            ("parameter", context.statistics(update.start)),
            ("parameter gradient", context.gradients.get(short) or context.statistics(update.gradient)),
            ("update", _update(update, context.histograms)),
        )
        if kinds[0][1] is None:
            context.unmeasured.add(short)
        for kind, statistics in kinds:
            if statistics is not None:
                yield Figure(kind, short, layer, types.get(name, ""), "", statistics)
    for parameter_name, key, statistics in context.moments:
        yield Figure("moment", f"{parameter_name}/{key}", layers.get(parameter_name, 0), "", "", statistics)


def rank_of(recording: Recording, prefix: str) -> RankFacts:
    """The facts of this rank at the step, with parameters named as in the run."""
    facts = facts_of_rank(recording, marks=False)
    return replace(facts, parameters={without_wrappers(name, prefix): each for name, each in facts.parameters.items()})


# -- values -----------------------------------------------------------------------------------------------------------


def _named_values(graph: Graph, prefix: str) -> Iterator[NamedValue]:
    types = {module.path: module.class_name for module in graph.modules}
    for value in graph.values:
        if value.kind != "result" or not value.shape or value.operation is None:
            continue
        name, type_ = _named(graph, value, types)
        if name:
            yield without_wrappers(name, prefix), type_, value


def _of_values(named: Iterable[NamedValue], context: WatchContext) -> Iterator[Figure]:
    runs: Counter[str] = Counter()
    for short, type_, value in named:
        runs[short] += 1
        path = short if runs[short] == 1 else f"{short}#{runs[short]}"
        dtype = type_name(value.dtype)
        statistics = context.statistics(value.snapshot)
        gradient = context.statistics(value.gradient)
        if statistics is not None:
            yield Figure("value", path, value.index, type_, dtype, statistics)
        elif value.dtype.is_floating_point:
            context.unmeasured.add(path)
        if gradient is not None:
            yield Figure("gradient", path, value.index, type_, dtype, divided(gradient, context.scale or 1))


def _named(graph: Graph, value: Value, types: dict[str, str]) -> tuple[str, str]:
    """The path and class of the module that made a value, or the name in the user's code and the call."""
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


# -- statistics -------------------------------------------------------------------------------------------------------


def divided(statistics: Statistics, scale: float) -> Statistics:
    """The statistics of the tensor divided by `scale`, without the histogram."""
    if scale == 1:
        return statistics
    numbers = {name: getattr(statistics, name) / scale for name in ("norm", "mean", "std", "low", "high")}
    return replace(statistics, **numbers, magnitudes=())


def _clipped(graph: Graph, context: WatchContext) -> tuple[float, float] | None:
    """The joint norm of the gradients that were clipped, before and after, without the scale; None if there are none.

    It is read off the operations that clipped: later passes add to `.grad`, and an update by hand reads it unseen.
    """
    ends = [math.inf] if context.closure or not graph.updates else [update.position for update in graph.updates]
    written = [event for end in ends for event in graph.written_before(end)]
    clips = {each.operation for each in written if each.kind.startswith(CLIPS) and each.operation is not None}
    factors = {clip: _without_scale(graph, clip, written, context) for clip in clips}
    # value -> what its norm is to be multiplied by
    before = {
        value: factor
        for clip, factor in factors.items()
        for _, _, value in references({"self": graph.operations[clip].arguments["self"]})
    }
    after = {each.index: factors[each.operation] for each in graph.values if each.operation in factors}
    again = before.keys() & after.keys()  # what one function clipped, and another clips again
    met, left = (_norm_of(graph, context, {v: each[v] for v in each if v not in again}) for each in (before, after))
    if left is None:  # unscaling wrote over it
        names = {event.text for event in written if event.operation in clips}
        left = _norm(context.statistics(each.gradient) for name, each in _last_updates(graph).items() if name in names)
    return None if not clips or met is None else (met, left)


def _without_scale(graph: Graph, clip: int, written: Sequence[Event], context: WatchContext) -> float:
    """What a gradient that an operation clipped is to be multiplied by to be without the loss scale."""
    names = {event.text for event in written if event.operation == clip}
    unscaling = [event for event in written if event.kind == UNSCALE and event.text in names]
    if not unscaling:
        return 1 / (context.scale or 1)
    return 1.0 if (unscaling[0].operation or 0) < clip else unscaled_by(graph, unscaling[:1])


def _norm_of(graph: Graph, context: WatchContext, factors: Mapping[int, float]) -> float | None:
    """The joint norm of values, each multiplied by its factor; None if one of them was not measured."""
    known = [(context.statistics(graph.values[value].snapshot), factor) for value, factor in factors.items()]
    whole = [divided(each, 1 / factor) for each, factor in known if each is not None]
    return _norm(whole) if len(whole) == len(known) else None


def _last_updates(graph: Graph) -> dict[str, ParameterUpdate]:
    return {each.name: each for update in graph.updates for each in update.parameters}


def _update(update: Parameter | ParameterUpdate, histogram: bool) -> Statistics | None:
    """The change of a parameter in the step."""
    known = update.update_statistics if isinstance(update, ParameterUpdate) else None
    before, after = update.start.data, data_of(update.end)
    return known if known is not None or before is None or after is None else Statistics.of(after - before, histogram)


def _norm(gradients: Iterable[Statistics | None]) -> float:
    """The norm of all gradients; NaN if one of them is not finite."""
    known = [each for each in gradients if each is not None]
    return math.nan if any(each.not_finite for each in known) else math.hypot(*(each.norm for each in known))


def _number(value: Value) -> float | None:
    if value.data is None or value.data.numel() != 1:
        return None
    number: Any = value.data.item()
    return float(number.real if isinstance(number, complex) else number)


# -- names ------------------------------------------------------------------------------------------------------------


def prefix_of(graph: Graph) -> str:
    """The prefix of the model's paths if another module ran beside it at the top level."""
    if any(module.path == "" for module in graph.modules):
        return ""
    firsts = {name.partition(".")[0] for name in graph.parameters}
    return f"{firsts.pop()}." if len(firsts) == 1 else ""


def without_wrappers(name: str, prefix: str = "") -> str:
    """A path without the prefix and the names of wrappers around the model."""
    name = name.removeprefix(prefix)
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name.replace("._orig_mod.", ".")


def measured_gradients(
    optimizers: Iterable[Optimizer], names: Mapping[int, str], histograms: bool
) -> dict[str, Statistics]:
    """The statistics of the gradients present after the optimizers' last steps, by parameter."""
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
    """The statistics of the optimizers' moments of each parameter, from a sample if large."""
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
