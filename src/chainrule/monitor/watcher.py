"""`chainrule.watch`: watches a whole training; decides which steps are recorded, and how.

A watch may fail (a full disk, an unforeseen kind of model); the training must not. Everything that a hook triggers runs
in `_guard`: an error ends the watch with one warning.
"""

from __future__ import annotations

import atexit
import platform
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from chainrule._version import __version__
from chainrule.diagnostics.ranks import of_ranks
from chainrule.errors import ChainruleWarning, StorageError
from chainrule.gc_control import gc_paused
from chainrule.graph.history import History, StepFacts
from chainrule.graph.reexecution import apart
from chainrule.graph.statistics_cache import StatisticsCache
from chainrule.monitor.arguments import WatchedModels, as_list, check_counts, modules_around, steps_done, unwrapped
from chainrule.monitor.examine import Examiner, OnFinding, ending, replayed
from chainrule.monitor.ranks import ApartError, Step, WatchingRanks
from chainrule.monitor.runs import Figure, Found, Writer
from chainrule.monitor.runs.writer import keeps_histograms
from chainrule.monitor.step_boundaries import Boundaries, ScalerView
from chainrule.monitor.step_series import (
    WatchContext,
    facts_of,
    figures_of,
    measured_gradients,
    measured_moments,
    prefix_of,
    rank_of,
    skipped_in,
)
from chainrule.recording import Recording, record

if TYPE_CHECKING:
    from chainrule.diagnostics import Thresholds

OneOrMoreModels = nn.Module | Iterable[nn.Module] | None
OneOrMoreOptimizers = Optimizer | Iterable[Optimizer] | None


class watch:  # noqa: N801 (read as a verb)
    """Watch a whole training: `with chainrule.watch(model, optimizer, every=50, to="run.db"):` around the loop.

    Without a `with` block it watches from here until `close()` or the end of the process.

    A training step runs from the end of an optimizer's `step()` to the end of the next; with several optimizers, until
    each has stepped. Step 1 and every `every`-th step are recorded with statistics only. With `full_every`, the first
    of them and every `full_every`-th are recorded with all numbers, in a file beside `to`. `on_finding=True` also saves
    in full the step that shows a new finding above a note: the step is recomputed from copies of its parameters, which
    each watched step then makes; if that is impossible, the next step is recorded instead. `on_finding` may be a
    function: it is called with each new finding, and returns True to save the step. `start` is the number of steps done
    before, for a resumed run (default: the count in the optimizer's state); an existing file is continued. `scaler` is
    a GradScaler, otherwise found when it first steps. `thresholds` and `silence` are those of findings. `namespace`
    names several models (default: the variables around the call).

    Each watched step is examined by itself before its graph is freed. The course of the run is examined for at most
    half a per cent of the training's time, and also when a step shows something new, before old steps are dropped (at
    least the last 256 are kept), and at `close()`, however the training ends. Some checks need the numbers themselves
    (dead units, equal rows): of large tensors, only steps recorded in full have them. A step that is being recorded
    when the watch ends (`if isnan(loss): break`, an exception, Ctrl-C) is examined for non-finite numbers.

    Under torch.distributed every rank makes the same call. The statistics of all ranks are joined at the watched steps,
    and rank 0 stores them. A step in full, requested by a finding or `record_next`, is then the next watched step.

    The training runs as it would without a watch: an error in the watch ends it with a warning, never the training.
    Raises RequestError for invalid options, before it begins.
    """

    def __init__(
        self,
        model: OneOrMoreModels = None,
        optimizer: OneOrMoreOptimizers = None,
        *,
        every: int = 1,
        to: str | Path | None = None,
        full_every: int | None = None,
        on_finding: OnFinding = False,
        start: int | None = None,
        scaler: Any = None,
        thresholds: Thresholds | None = None,
        silence: Collection[str] = (),
        namespace: Mapping[str, Any] | None = None,
    ) -> None:
        check_counts({"every": every, "full_every": full_every}, 1)
        check_counts({"start": start}, 0)
        models = as_list(model, nn.Module, "model")
        optimizers = [unwrapped(each) for each in as_list(optimizer, Optimizer, "optimizer")]
        self.every, self._full_every, self._on_finding = every, full_every, on_finding
        self.step_number = steps_done(optimizers) if start is None else start
        self.history = History()
        self.writer: Writer | None = None
        self.reports: list[Callable[[StepFacts, list[Figure]], None]] = []  # called with each watched step
        self._due = self._full_due = self.step_number + 1
        self._models = WatchedModels(models, modules_around(sys._getframe(1)) if namespace is None else namespace)
        self.watched = 0  # how many steps
        self._scaler = ScalerView(scaler)
        self._examiner = Examiner(self.history, thresholds, silence)
        self._session: record | None = None
        self._recording: Recording | None = None
        self._full: str | None = None  # why the next step is recorded in full
        self._passes = self._passes_before = 0  # backward passes before the last optimizer's step and the one before it
        self._closure = False  # whether the last optimizer's step has one
        self._failed = self._closed = False
        self._examining = True
        self._warned: set[str] = set()
        self._ranks = WatchingRanks()
        if not self._ranks.leads:  # the other ranks record for rank 0, which stores and examines
            self._on_finding = self._examining = False
        if to is not None and self._ranks.leads:
            self._open(to)
        self._boundaries = Boundaries(
            models, optimizers, self._guard, wanted=self._wanted, begin=self._begin,
            stepping=self._stepping, within=self._within, end=self._end, lost=self._lost,
        )  # fmt: skip
        self._boundaries.arm()
        atexit.register(self._at_exit)

    # -- for the user -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """End a training step without an optimizer of torch.optim, after your own update.

        With one, this call only stores a step that a GradScaler skipped at once.
        """
        boundaries = self._boundaries
        stepped, boundaries.stepped_by_hook = boundaries.stepped_by_hook, False
        if self._over or stepped:
            return
        if boundaries.optimizers:
            self._guard(self._note_skipped)
        else:
            boundaries.finish()

    @property
    def findings(self) -> tuple[Found, ...]:
        """The findings so far."""
        return self._examiner.found

    def record_next(self, reason: str = "asked for") -> None:
        """Record the next step in full."""
        self._full = reason
        if self._session is None and not self._over:
            self._boundaries.arm()

    def close(self, status: str = "ended") -> None:
        """Stop watching: remove every hook, examine the run once more, and finish its file."""
        self._close(status)

    def _close(self, status: str, error: BaseException | None = None) -> None:
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        self._boundaries.remove()
        self._finish(status, error)
        self._report_problem()
        self._models.forget()
        self._recording = None

    def _finish(self, status: str, error: BaseException | None = None) -> None:
        """Run every part of the end and close the file. An error in one part is a warning, and the others still run."""
        unfinished = None if self._session is None or self._failed else self._recording
        parts: tuple[Callable[[], None], ...] = (
            lambda: self._leave(error),
            self._ranks.leave,
            lambda: self._examine_unfinished(unfinished, error),
            lambda: self._examine(self._examiner.finish, since=self.step_number),
            lambda: self._save_last(unfinished),
        )
        try:
            for part in parts:
                try:
                    part()
                except Exception as failure:  # in the user's `on_finding`, say
                    self._warn(f"the end of the watch failed in part: {type(failure).__name__}: {failure}")
        finally:
            if self.writer is not None:
                self.writer.close(status)

    @apart()
    def _examine_unfinished(self, recording: Recording | None, error: BaseException | None) -> None:
        """Examine the step that was being recorded when the watch ended, on this rank alone."""
        if recording is None or not self._examining:
            return
        self._note_skipped()
        cache = StatisticsCache()
        if self._full is None:
            recording.at_once(cache, magnitudes=False)
        scaled = self._scaler.scaler is not None or skipped_in(recording.graph) > 0
        facts = StepFacts(self.step_number + 1, time.time(), None, full=self._full is not None)
        self._examiner.examine_unfinished(recording, facts, ending(facts.step, error), cache, scaled)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended_by(error)

    def _at_exit(self) -> None:
        """Close at the end of the process, with the exception that ended it, if one did."""
        self._ended_by(None if hasattr(sys, "ps1") else getattr(sys, "last_value", None))

    def _ended_by(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, SystemExit):
            self._close("ended")
        else:
            self._close(f"{type(error).__name__}: {error}", error)

    # -- called at the boundaries -------------------------------------------------------------------------------------

    def _wanted(self) -> bool:
        """Whether to record the next step: it is due, or a due one was skipped."""
        step = self.step_number + 1
        due = step >= self._due
        if self._full_every and step >= self._full_due:
            reason = f"every {self._full_every} steps" if self.watched else "the first watched step"
            due, self._full = True, self._full or reason
        # Every rank knows when a step is due; none knows of another's request for a full recording.
        return due or (self._full is not None and not self._ranks.active)

    def _begin(self, module: nn.Module | None, args: Any) -> None:
        self._leave()  # a recording that began before the step
        self._ranks.call()
        if not self._ranks.leads:
            self._full = None  # rank 0 alone records in full
        session = record(namespace=self._models.named(), keep=None if self._full else "statistics")
        session.know(self._models.whole())
        if self._on_finding is not False:
            session.keep_leaves()
        self._recording = session.__enter__()
        self._session = session
        self._passes = self._passes_before = 0
        if module is not None:
            session.enter(module, args)

    def _stepping(self, optimizer: Optimizer, closure: bool) -> None:
        self._closure = closure
        if self._session is not None:
            if self._scaler.scaler is None:
                self._scaler.look()
            passes = self._session.passes
            if passes > self._passes:  # backward ran again since the previous optimizer's step
                self._passes_before, self._passes = self._passes, passes
        self._note_skipped()

    def _within(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._session is not None:
            self._session.enter_step(optimizer, args, kwargs)

    def _end(self) -> None:
        self.step_number += 1
        if self._session is None or self._recording is None:
            return
        self._models.meet(self._session.models)
        self._leave()
        self.watched += 1
        self._due = _multiple_after(self.step_number, self.every)
        self._full_due = _multiple_after(self.step_number, self._full_every or 1)
        step = self._take_step()
        if self._ranks.leads:
            for report in self.reports:
                report(step.facts, step.figures)
            self._report_problem()

    @apart()
    @gc_paused()  # 5 % of a watched step of a small GPT-2: a collection would traverse its whole graph
    def _take_step(self) -> Step:
        """Read, store and examine the step just recorded, and drop its recording."""
        recording, self._recording = self._recording, None
        assert recording is not None
        cache = StatisticsCache()
        figures, facts = self._read(recording, cache)
        step = self._joined(recording, facts, figures)
        if self._ranks.leads:
            self._store(recording, step, cache)
            self._save_on_finding(recording, step.facts)
        return step

    def _joined(self, recording: Recording, facts: StepFacts, figures: list[Figure]) -> Step:
        """The step joined over all ranks, or that of this one if they do not watch together."""
        if self._ranks.active:
            names = "" if self._models.whole() else prefix_of(recording.graph)
            try:
                return self._ranks.join(facts, figures, rank_of(recording, names))
            except ApartError as error:
                self._warn(f"{error}: from step {facts.step} on all statistics are those of rank 0 alone.")
                if not self._ranks.leads:
                    self._boundaries.off = self._failed = True
        return Step(facts, figures, ())

    def _lost(self) -> None:
        self._leave()
        self._warn(
            "many forward passes ran and no optimizer of torch.optim stepped, so the end of a step is unknown. Call "
            "`watch.step()` at the end of each."
        )

    def _leave(self, error: BaseException | None = None) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    # -- one watched step ---------------------------------------------------------------------------------------------

    def _read(self, recording: Recording, cache: StatisticsCache) -> tuple[list[Figure], StepFacts]:
        histograms = keeps_histograms(self.watched - 1)
        graph = recording.at_once(cache, histograms) if self._full is None else recording.graph
        optimizers = list(self._boundaries.optimizers.values())
        context = WatchContext(
            step=self.step_number,
            rates=tuple(float(group["lr"]) for each in optimizers for group in each.param_groups if "lr" in group),
            scale=self._scaler.scale,
            passes_before=self._passes_before,
            closure=self._closure,
            named=bool(self._models.whole()),
            full=self._full is not None,
            gradients=measured_gradients(optimizers, self._models.names, histograms) if self._closure else {},
            moments=measured_moments(optimizers, self._models.names),
            cache=cache,
            histograms=histograms,
            alone=not self._ranks.active,
        )
        if self._scaler.scaler is None and (missed := skipped_in(graph)):
            self._count_skipped(missed)
        return list(figures_of(graph, context)), facts_of(graph, context)

    def _store(self, recording: Recording, step: Step, cache: StatisticsCache) -> None:
        facts, figures = step.facts, step.figures
        if self.writer is not None:
            self.writer.add(facts, figures)
        if self._full is not None:
            reason, self._full = self._full, None
            self._save_full(recording, facts.step, reason)
        self._examine(
            lambda: self._examiner.examine(recording, facts, figures, of_ranks(step.ranks), cache), since=facts.step
        )

    @apart()
    def _examine(self, examine: Callable[[], list[Found]], since: int) -> None:
        """Make findings and store them; an error ends the findings, not the watch."""
        if not self._examining:
            return
        try:
            changed = examine()
        except Exception as error:
            self._examining = False
            self._warn(f"there are no findings from step {since} on: {type(error).__name__}: {error}")
            return
        for found in changed:
            if self.writer is not None:
                self.writer.find(found)

    def _save_on_finding(self, recording: Recording, facts: StepFacts) -> None:
        """Save this step in full if it shows a new finding, or record the next one in full if this is impossible."""
        reason = self._examiner.requested(self._on_finding)
        if reason is None or facts.full:
            return
        # The part of another rank cannot be recomputed, and a full recording needs a file.
        full = None if self._ranks.active or self.writer is None else replayed(recording)
        if full is None:
            self._full = f"the step after {reason}"
        else:
            self._save_full(full, facts.step, reason)

    @apart()
    def _save_last(self, unfinished: Recording | None) -> None:
        """The same at the end, when only the unfinished step can be saved."""
        reason = self._examiner.requested(self._on_finding)
        if reason is None or unfinished is None or self.writer is None:
            return
        full = unfinished if self._full is not None else replayed(unfinished)
        if full is not None:
            self._save_full(full, self.step_number + 1, reason)

    def _save_full(self, recording: Recording, step: int, reason: str) -> None:
        if self.writer is not None and (problem := self.writer.keep_full(recording.save, step, reason)):
            self._warn(problem)

    # -- skipped steps ------------------------------------------------------------------------------------------------

    def _note_skipped(self) -> None:
        if self._scaler.scaler is not None:
            self._count_skipped(self._scaler.skipped())

    def _count_skipped(self, count: int) -> None:
        """Store the steps that a GradScaler skipped: they count as steps and have no tensors."""
        for _ in range(count):
            self.step_number += 1
            facts = StepFacts(self.step_number, time.time(), None, skipped=True, scale=self._scaler.scale)
            self.history.steps.append(facts)
            if self.writer is not None:
                self.writer.add(facts)

    # -- errors -------------------------------------------------------------------------------------------------------

    def _open(self, to: str | Path) -> None:
        versions = {"chainrule": __version__, "torch": torch.__version__, "python": platform.python_version()}
        try:
            self.writer = Writer(to, every=self.every, start=self.step_number, versions=versions)
        except StorageError as error:
            self._warn(f"{error} The training is watched without a file.")

    @property
    def _over(self) -> bool:
        return self._closed or self._failed

    def _guard(self, act: Callable[..., Any], *arguments: Any) -> None:
        """Call `act` for a hook; an error ends the watch with a warning."""
        if self._over:
            return
        try:
            act(*arguments)
        except Exception as error:
            self._failed = self._boundaries.off = True
            self._warn(f"watching ended at step {self.step_number + 1}: {type(error).__name__}: {error}")
            self._finish(f"watching ended: {type(error).__name__}: {error}")

    def _report_problem(self) -> None:
        if self.writer is not None and self.writer.problem:
            self._warn(self.writer.problem)

    def _warn(self, sentence: str) -> None:
        """Warn once; on stderr if warnings are errors, because a warning must not end the training."""
        if sentence in self._warned:
            return
        self._warned.add(sentence)
        try:
            warnings.warn(f"chainrule: {sentence}", ChainruleWarning, stacklevel=2)
        except ChainruleWarning:
            print(f"chainrule: {sentence}", file=sys.stderr)


def _multiple_after(step: int, every: int) -> int:
    return (step // every + 1) * every
