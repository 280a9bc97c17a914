"""What is unhealthy in one training step, and over a run: each finding with the numbers that show it, and what to try.

A finding is advice, never a verdict on the mathematics: the step may be exactly what its author wants. One kind of
finding is one block in its topic file (`Check`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from chainrule.derivation.backprop import Derivation
from chainrule.diagnostics import (
    adversaries,
    attention,
    averaged_losses,
    averages,
    batches,
    clipping,
    compared_with_itself,
    data,
    dependence,
    depth,
    exceptions,
    fixed_noise,
    gradients,
    integers,
    kept_graph,
    last_activation,
    learning_rate,
    linear_chains,
    loss_curve,
    loss_scale,
    loss_terms,
    loss_weights,
    losses,
    modes,
    noise,
    nonfinite,
    optimizer,
    options,
    padding,
    penalties,
    policies,
    positions,
    preferences,
    ranges,
    ranks,
    recurrent,
    relative_errors,
    rewriting,
    row_pairs,
    samples,
    schedules,
    scores,
    settings,
    skips,
    softmax,
    standstill,
    targets,
    tokens,
    unbounded,
    undetached,
    units,
    unseen_noise,
    unused,
    zero_gradients,
)
from chainrule.diagnostics.causes import HasCause, linked
from chainrule.diagnostics.check import CHECKS, Check, check_silence, load_plugins
from chainrule.diagnostics.finding import Finding, Severity, in_order, joined
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext
from chainrule.diagnostics.thresholds import Thresholds, check_thresholds
from chainrule.errors import brief, warn
from chainrule.graph.graph import Graph
from chainrule.graph.history import History
from chainrule.graph.names import Notation
from chainrule.graph.statistics_cache import StatisticsCache

__all__ = [
    "BY_TOPIC", "CHECKS", "Check", "Finding", "Run", "Severity", "StepContext", "Thresholds", "check_silence",
    "findings", "findings_over_time",
]  # fmt: skip


def _checks_of(*modules: object) -> list[Check]:
    return [each for module in modules for each in vars(module).values() if isinstance(each, Check)]


LAYERS = [units.BATCH_NORM_OF_ONE, options.NORM, *_checks_of(linear_chains), *_checks_of(skips), settings.SHARED]
BY_TOPIC = {
    "Exceptions": _checks_of(exceptions),
    "Numbers that are not finite": _checks_of(nonfinite),
    "Units": [each for each in _checks_of(units) if each not in LAYERS],
    "Losses": _checks_of(
        last_activation,
        losses,
        loss_terms,
        penalties,
        unbounded,
        softmax,
        scores,
        ranges,
        undetached,
        compared_with_itself,
        adversaries,
        loss_weights,
        averaged_losses,
        noise,
    ),
    "Policies": [policies.CREDIT, *_checks_of(preferences)],
    "Layers": LAYERS,
    "Recurrent layers": _checks_of(recurrent),
    "Attention": [*_checks_of(attention), tokens.AFTER, tokens.ONE_POSITION],
    "Padding": [*_checks_of(padding), tokens.POOLED],
    "Modes and frozen parts": [*_checks_of(modes), settings.MOVES, settings.WITHOUT_EFFECT],
    "Targets": _checks_of(targets, relative_errors),
    "Data": [data.NOT_NORMALISED, *_checks_of(integers, unseen_noise, batches, samples, fixed_noise, unused)],
    "What depends on what": _checks_of(dependence, row_pairs, positions),
    "Gradients": _checks_of(clipping, gradients, loss_scale),
    "Gradients that are 0": _checks_of(zero_gradients),
    "Gradients through depth": _checks_of(depth),
    "The graph of earlier steps": _checks_of(kept_graph),
    "The optimizer": [*_checks_of(optimizer), options.OPTIMIZER, *_checks_of(rewriting, averages)],
    "Optimizers that move nothing": _checks_of(standstill),
    "The learning rate": _checks_of(learning_rate, schedules),
    "The loss over a run": _checks_of(loss_curve),
    "Ranks": _checks_of(ranks),
}
"""Our checks by topic, in the order in which they run and are documented."""

_ours = frozenset(check.id for checks in BY_TOPIC.values() for check in checks)
_failed: set[str] = set()  # checks of plug-ins that raised
T = TypeVar("T")


def findings(
    graph: Graph,
    derivation: Derivation | None,
    notation: Notation,
    thresholds: Thresholds | None = None,
    silence: Collection[str] = (),
    cache: StatisticsCache | None = None,
    unfinished: bool = False,
    kept: dict[Hashable, Any] | None = None,
) -> tuple[Finding, ...]:
    """All findings of one step: errors first, then warnings, then notes; each group in the order of the step.

    `cache` holds statistics of its tensors that others have measured or will ask for. Without a derivation, or if a
    value's numbers were not stored, the checks that need them are left out. An `unfinished` step, which never reached
    its update, only gets the checks that apply to it, and so does one that an exception of PyTorch's ended. `kept` is
    what the steps before left for this one, see `StepContext`. Raises SilenceError for an id in `silence` that no check
    has.
    """
    silent = check_silence(silence)
    limits = check_thresholds(thresholds)
    unfinished = unfinished or any(each.ended for each in graph.failures)
    context = StepContext(
        graph, derivation, notation, limits, cache or StatisticsCache(), unfinished, {} if kept is None else kept
    )
    checks = (check for check in _checks() if check.unfinished or not unfinished)
    found = (
        finding for check in checks for in_step in check.step_checks for finding in _guarded(check, in_step, context)
    )
    return in_order(finding for finding in found if finding.id not in silent)


def findings_over_time(
    history: History,
    step_findings: Mapping[int, Sequence[Finding]],
    thresholds: Thresholds | None = None,
    silence: Collection[str] = (),
    partly: Collection[int] = (),
    earlier: Iterable[HasCause] = (),
    ended: bool = False,
) -> tuple[Finding, ...]:
    """All findings of a run: what its history shows, and what single steps showed, with the step since which it holds.

    `step_findings` gives the findings of every examined step, empty if there were none; on the steps examined `partly`
    the checks for unfinished steps alone ran. Findings of `earlier` steps, which the history no longer has, may be
    causes. `ended`: the run has ended. Raises SilenceError for an id in `silence` that no check has.
    """
    silent = check_silence(silence)
    run = Run(history, step_findings, check_thresholds(thresholds), partly, ended)
    found = in_order(joined(finding for finding in _of_run(run) if finding.id not in silent))
    return tuple(linked(run, found, earlier))


def _of_run(run: Run) -> Iterator[Finding]:
    for check in _checks():
        for over_time in check.run_checks:
            yield from _guarded(check, over_time, run)
        if not check.run_checks:
            yield from (found for _, found in check.carried(run))


def _checks() -> Iterator[Check]:
    """Ours, then those of plug-ins."""
    load_plugins()
    yield from (check for checks in BY_TOPIC.values() for check in checks)
    yield from (check for id, check in CHECKS.items() if id not in _ours | _failed)


def _guarded(check: Check, look: Callable[[T], Iterable[Finding]], given: T) -> Iterator[Finding]:
    """What a check finds; one of a plug-in that raises is left out from then on."""
    try:
        yield from look(given)
    except Exception as error:
        if check.id in _ours:
            raise
        _failed.add(check.id)
        warn(f"the finding {check.id!r} of the plug-in module {look.__module__} failed and is left out: {brief(error)}")
