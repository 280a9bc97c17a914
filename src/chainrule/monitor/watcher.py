"""`chainrule.watch`: watches a whole training; decides which steps are recorded, and how.

A watch may fail (a full disk, an unforeseen kind of model); the training must not. Everything that a hook triggers runs
in `_guard`: an error ends the watch with one warning. Everything that is on is taken off by `_let_go`.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from chainrule.capture.lowering.naming import variables_around
from chainrule.capture.source import Site, users_frame
from chainrule.diagnostics.modes import always_drops
from chainrule.errors import ChainruleError, warn
from chainrule.gc_control import gc_paused
from chainrule.graph.history import History, StepFacts, Unstepped
from chainrule.graph.reexecution import apart
from chainrule.graph.statistics_cache import StatisticsCache
from chainrule.monitor import arguments
from chainrule.monitor import step_series as series
from chainrule.monitor.between_steps import BetweenSteps
from chainrule.monitor.every_step import rates_of
from chainrule.monitor.examine import Examiner, OnFinding, ending, replayed
from chainrule.monitor.loaders import restarts
from chainrule.monitor.passes_without_step import never_stepped
from chainrule.monitor.ranks import Step, WatchingRanks
from chainrule.monitor.results import Results
from chainrule.monitor.runs import Figure, Found, Writer
from chainrule.monitor.runs.writer import keeps_histograms
from chainrule.monitor.safeguards import Warnings, attempt, surely
from chainrule.monitor.step_boundaries import Boundaries, Calls, ScalerView, in_backward
from chainrule.monitor.step_recording import StepRecording
from chainrule.process import Process
from chainrule.recording import Recording

if TYPE_CHECKING:
    from chainrule.diagnostics import Thresholds


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

    Each watched step is examined by itself, and the course of the run for at most half a per cent of the training's
    time, also when a step shows something new, and at the end. Checks that need the numbers of large tensors only see
    steps recorded in full. A step under way when the watch ends (an exception, Ctrl-C) is examined too. Of the steps
    between, the learning rates are known, and whether their update lost numbers.

    Under torch.distributed every rank makes the same call, and rank 0 stores the joined statistics of all. A step in
    full, requested by a finding or `record_next`, is then the next watched step.

    The training runs as it would without a watch: an error in the watch ends it with a warning, never the training.
    Raises RequestError for invalid options, before it begins.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Module] | None = None,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
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
        self.every, self._full_every = every, full_every
        self.history = History()
        self.reports: list[Callable[[StepFacts, list[Figure]], None]] = []  # called with each watched step
        self.watched, self.step_number = 0, start or 0  # how many steps were recorded, and how many were made
        self._full: str | None = None  # why the next step is recorded in full
        self._failed = ""  # what ended the watch early
        self._finished = self._closed = False
        self._step, self._process = StepRecording(), Process()
        try:
            arguments.check_counts({"every": every, "full_every": full_every}, 1)
            arguments.check_counts({"start": start}, 0)
            models = arguments.as_list(model, nn.Module, "model")
            optimizers = [arguments.unwrapped(each) for each in arguments.as_list(optimizer, Optimizer, "optimizer")]
            self._warnings, self._ranks = Warnings(), WatchingRanks()
            self._warn = self._warnings.warn
            # The other ranks record for rank 0, which stores and examines.
            self._examiner = Examiner(self.history, thresholds, silence)
            self._results = Results(self._examiner, self._ranks.leads, self._warn)
            if start is None:
                self.step_number = arguments.steps_done(optimizers)
            self._due = self._full_due = self.step_number + 1
            names = arguments.modules_in(variables_around(sys._getframe(1))) if namespace is None else namespace
            self._models = arguments.WatchedModels(models, names)
            self._scaler = ScalerView(scaler)
            self._between = BetweenSteps(self._models)
            self._on_finding = self._ranks.leads and on_finding
            self._boundaries = Boundaries(
                self._models.given, self._models.whole, optimizers,
                Calls(
                    guard=self._guard, wanted=self._wanted, begin=self._begin, within=self._step.within,
                    stepping=self._stepping, end=self._end, give_up=self._give_up, say=self._warn,
                    passed=self._passed, unstepped=self._unstepped, recorder=lambda: self._step.session,
                ),
            )  # fmt: skip
            if to is not None and self._ranks.leads:
                self._results.open(to, every, self.step_number)
            atexit.register(self._end_of_process)
            self._guard(self._boundaries.start)
        except BaseException as error:
            surely(self._let_go)
            if isinstance(error, ChainruleError) or not isinstance(error, Exception):
                raise  # invalid options, Ctrl-C
            warn(f"the training is not watched: {type(error).__name__}: {error}")

    # -- for the user -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """End a training step without an optimizer of torch.optim, after your own update.

        With one, this call only stores a step that a GradScaler skipped at once.
        """
        if self._failed or self._closed:
            return
        boundaries = self._boundaries
        stepped, boundaries.stepped_by_hook = boundaries.stepped_by_hook, False
        if not stepped:
            skipped = lambda: self._count_skipped(self._scaler.skipped())  # noqa: E731
            self._guard(skipped if boundaries.rounds.current else boundaries.finish)

    @property
    def findings(self) -> tuple[Found, ...]:
        """The findings so far."""
        return self._examiner.found if hasattr(self, "_examiner") else ()

    @property
    def writer(self) -> Writer | None:
        """What writes the file; None without one."""
        return self._results.writer if hasattr(self, "_results") else None

    def record_next(self, reason: str = "asked for") -> None:
        """Record the next step in full."""
        self._full = reason
        if self._step.session is None and not self._failed:
            self._guard(lambda: self._boundaries.arm())

    def close(self, status: str = "ended") -> None:
        """Stop watching: remove every hook, examine the run once more, and finish its file."""
        self._close(status)

    def _close(self, status: str, error: BaseException | None = None) -> None:
        try:
            self._guard(lambda: self._boundaries.settle())
            if not self._closed and not self._finished:
                self._finish(status, error)
        finally:
            surely(self._let_go)

    def _let_go(self) -> None:
        """Remove what may be left: hooks, modes, an open file, references to the user's objects. May run again."""
        if self._closed:
            return
        attempt((
            lambda: self._boundaries.remove(),
            lambda: self._step.leave(),
            lambda: self._ranks.leave(),
            lambda: atexit.unregister(self._end_of_process),
            lambda: self._results.close("interrupted"),
            lambda: self._models.forget(),
            lambda: self._between.forget(),
        ))  # fmt: skip
        self._closed = True

    def _finish(self, status: str, error: BaseException | None = None) -> None:
        """Run every part of the end and close the file. What fails is said once, and the other parts still run."""
        unfinished = None if self._failed else self._step.unfinished() or Recording.of_failure(error, self._step.log)
        missed = self._boundaries.missed
        parts: tuple[Callable[[], None], ...] = (
            self._boundaries.remove,
            lambda: self._step.leave(error),
            self._ranks.leave,
            self._add_unwatched,
            lambda: self._results.notice(self._between.rest()),
            self._store_ready,
            lambda: self._examine_unfinished(unfinished, error, missed),
            lambda: self._results.find(self._examiner.finish, since=self.step_number),
            lambda: self._save_last(unfinished),
            lambda: self._results.close(status),
        )
        self._finished = True
        if failures := attempt(parts):  # in the user's `on_finding`, say
            self._warn(f"the end of the watch failed in part: {'; '.join(failures)}")

    @apart()
    def _examine_unfinished(self, recording: Recording | None, error: BaseException | None, missed: str) -> None:
        """Examine the step that was being recorded when the watch ended, on this rank alone."""
        if recording is None or not self._results.examining:
            return
        self._count_skipped(self._scaler.skipped())
        cache = StatisticsCache()
        if self._full is None:
            recording.at_once(cache, magnitudes=False)
        scaled = self._scaler.scaler is not None
        if not scaled and (skipped := series.skipped_in(recording.graph)):  # all steps until now
            scaled = True
            self._count_skipped(skipped)
        if not self._boundaries.rounds.current and (passes := never_stepped(recording.graph)):
            self.history.unstepped = Unstepped(self.step_number, passes, 0)
        facts = StepFacts(self.step_number + 1, time.time(), None, full=self._full is not None)
        self._examiner.examine_unfinished(recording, facts, ending(facts.step, error, missed), cache, scaled)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            harmless = error is None or isinstance(error, SystemExit)
            self._close("ended" if harmless else f"{type(error).__name__}: {error}", None if harmless else error)
        except Exception as failure:
            self._warn(f"the end of the watch failed in part: {type(failure).__name__}: {failure}")
        finally:
            surely(self._let_go)

    def _end_of_process(self) -> None:
        self.__exit__(None, None if hasattr(sys, "ps1") else getattr(sys, "last_value", None), None)

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
        self._ranks.call()
        if not self._ranks.leads:
            self._full = None  # rank 0 alone records in full
        self._boundaries.evaluations.began(self._models.whole(), self.step_number)
        self._step.begin(self._models, self._full is not None, self._on_finding is not False, module, args)

    def _stepping(self, closure: bool) -> None:
        if self._step.session is not None and self._scaler.scaler is None:
            self._scaler.look()
        self._step.stepping(closure)
        self._count_skipped(self._scaler.skipped())

    def _passed(self, parameter: Tensor) -> None:
        if self._results.examining:
            scaled = self._scaler.scaler is not None
            self._between.passed(self.step_number + 1, parameter, scaled, self._results.examined)

    def _unstepped(self, passes: int, usual: int) -> None:
        """Backward passes run and no optimizer steps, unless a GradScaler skips the steps."""
        if count := self._scaler.skipped():
            self._count_skipped(count)
        else:
            unstepped = Unstepped(self.step_number, passes, usual)
            self._results.find(lambda: self._examiner.add_unstepped(unstepped), since=self.step_number + 1)

    def _end(self, missed: str) -> None:
        self.step_number += 1
        self.history.unstepped = None
        recording = self._step.end(self._models)
        if missed := missed or self._step.missed:
            self._warnings.missed(self.step_number, missed)
        self._step.log.end(self.step_number, Site.of(sys._getframe()))
        if recording is not None:
            self.watched += 1
            self._boundaries.evaluations.ended(self._models.whole(), self.step_number)
            self._due, self._full_due = ((self.step_number // n + 1) * n for n in (self.every, self._full_every or 1))
            self._take_step(recording)
        elif self._ranks.step_ended():
            self._store_ready()
        if self._results.examining:
            now = self._boundaries.rounds.current
            self._results.notice(self._between.ended(self.step_number, recording is not None, self._scaler.scale, now))

    def _add_unwatched(self, passes: int | None = None) -> None:
        steps = self._between.unwatched(passes)
        if not self._ranks.active:
            self._results.add_unwatched(steps)

    @apart()
    @gc_paused()  # 5 % of a watched step of a small GPT-2: a collection would traverse its whole graph
    def _take_step(self, recording: Recording) -> None:
        """Read and examine the step just recorded, and hand it over to be stored."""
        cache = StatisticsCache()
        figures, facts = self._read(recording, cache)
        self._add_unwatched(0 if self._step.closure else facts.passes)
        found = self._results.examined(lambda: self._examiner.in_step(recording, facts, cache), since=facts.step)
        if self._full is not None:
            reason, self._full = self._full, None
            self._results.save_full(recording, facts.step, reason)
        names = "" if self._models.whole() else series.prefix_of(recording.graph)
        self._ranks.put(Step(facts, figures, found), series.rank_of(recording, names) if self._ranks.active else None)
        self._store_ready(recording)
        if self.every > 1 and not facts.full:
            self._between.again.keep(facts.step, recording)

    def _store_ready(self, recording: Recording | None = None) -> None:
        """Store and examine the steps whose parts are there; `recording` is that of the step that has just ended."""
        steps = self._ranks.ready()
        if self._ranks.apart is not None:
            self._warn(self._ranks.apart)
            if not self._ranks.leads:
                self._failed = self._ranks.apart
        if not self._ranks.leads:
            return
        for step in steps:
            self._results.add(step)
            self._save_on_finding(recording if step.facts.step == self.step_number else None, step.facts)
            for report in self.reports:
                report(step.facts, step.figures)
        self._results.report_problem()

    def _give_up(self) -> None:
        self._step.leave()
        if self._boundaries.rounds.current:
            self._warnings.missed(self.step_number + 1, "its recording would take too much memory")
        else:
            self._warn(
                "many forward passes ran and no optimizer of torch.optim stepped, so the end of a step is unknown. "
                "Call `watch.step()` at the end of each."
            )

    # -- one watched step ---------------------------------------------------------------------------------------------

    def _read(self, recording: Recording, cache: StatisticsCache) -> tuple[list[Figure], StepFacts]:
        histograms = keeps_histograms(self.watched - 1)
        graph = recording.at_once(cache, histograms) if self._full is None else recording.graph
        optimizers = self._boundaries.rounds.current
        context = series.WatchContext(
            step=self.step_number,
            rates=rates_of(optimizers),
            scale=self._scaler.scale,
            passes_before=self._step.passes_before,
            closure=self._step.closure,
            named=bool(self._models.whole()),
            full=self._full is not None,
            gradients=series.measured_gradients(optimizers, self._models.names, histograms)
            if self._step.closure
            else {},
            counts=tuple(filter(None, map(arguments.step_count, optimizers))),
            moments=series.measured_moments(optimizers, self._models.names),
            cache=cache,
            histograms=histograms,
            restarts=restarts(users_frame(sys._getframe(1))),
            beside=self._boundaries.evaluations,
            rewritten=self._between.rewritten(),
            alone=not self._ranks.active,
        )
        if self._scaler.scaler is None and (missed := series.skipped_in(graph)):
            self._count_skipped(missed)
        self._boundaries.evaluations.always_drops = always_drops(graph)
        figures = list(series.figures_of(graph, context))
        self._warnings.unmeasured(context.unmeasured)
        return figures, series.facts_of(graph, context)

    def _save_on_finding(self, recording: Recording | None, facts: StepFacts) -> None:
        """Save this step in full if it shows a new finding, or record the next one in full if this is impossible."""
        reason = self._examiner.requested(self._on_finding)
        if reason is None or facts.full:
            return
        # The part of another rank cannot be recomputed, and a full recording needs a file.
        alone = self.writer is not None and not self._ranks.active
        full = replayed(recording) if alone and recording is not None else None
        if full is None:
            self._full = f"the step after {reason}"
        else:
            self._results.save_full(full, facts.step, reason)

    @apart()
    def _save_last(self, unfinished: Recording | None) -> None:
        """The same at the end, when only the unfinished step can be saved."""
        reason = self._examiner.requested(self._on_finding)
        if reason is None or unfinished is None or self.writer is None:
            return
        full = unfinished if self._full is not None else replayed(unfinished)
        if full is not None:
            self._results.save_full(full, self.step_number + 1, reason)

    def _count_skipped(self, count: int) -> None:
        """Store the steps that a GradScaler skipped: they count as steps and have no tensors."""
        for _ in range(count):
            self.step_number += 1
            facts = StepFacts(self.step_number, time.time(), None, skipped=True, scale=self._scaler.scale)
            self._ranks.put(Step(facts, []))
            self._results.notice(self._between.skipped())
        if count:
            self._store_ready()

    def _guard(self, act: Callable[..., Any], *arguments: Any) -> None:
        """Call `act` for a hook; an error ends the watch with a warning, an interrupt this step's recording."""
        try:
            if self._process.is_left and not self._finished:
                self._leave_to_parent()
            elif self._failed:
                self._finish_failed()
            elif not self._closed:
                act(*arguments)
        except Exception as error:
            self._fail(error)
        except BaseException:
            self._step.abandon()  # the training may catch it and go on
            raise

    def _leave_to_parent(self) -> None:
        """In a forked child: the run, its file and its place among the ranks are the parent's."""
        self._failed, self._finished = "it is watched by the process that was forked", True
        self._ranks, self._results.writer = WatchingRanks(), None
        self._step.abandon()

    def _fail(self, error: Exception) -> None:
        self._failed = self._failed or f"{type(error).__name__}: {error}"
        self._warn(f"watching ended at step {self.step_number + 1}: {self._failed}")
        self._step.abandon()
        self._finish_failed()

    def _finish_failed(self) -> None:
        """Finish after an error, unless a backward pass is running: no recording can end in there."""
        if not self._finished and not in_backward():
            self._finish(f"watching ended: {self._failed}")
