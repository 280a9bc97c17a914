"""`chainrule.watch`: what the user holds while a training runs. It decides which steps are recorded, and how.

Watching may fail in many ways (a full disk, a model of a kind that nobody thought of); training must not. So all that
is done here on behalf of a hook runs in `_harmless`: what goes wrong is said once, as a warning, and the watch ends.
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
from chainrule.capture.recorder import exception_site
from chainrule.diagnostics.ranks import of_ranks
from chainrule.errors import ChainruleWarning, RequestError, StorageError, brief
from chainrule.gc_control import gc_paused
from chainrule.graph.history import History, StepFacts
from chainrule.graph.source import is_library
from chainrule.graph.statistics_cache import Measures
from chainrule.monitor.all_ranks import ApartError, Step, Together
from chainrule.monitor.boundaries import Boundaries
from chainrule.monitor.examine import Examiner
from chainrule.monitor.gather import (
    Surroundings,
    facts_of,
    figures_of,
    measured_gradients,
    measured_moments,
    prefix_of,
    rank_of,
    shortened,
    skipped_in,
)
from chainrule.monitor.grad_scaler import Scaling
from chainrule.monitor.replayed_step import played_again
from chainrule.monitor.runs import Figure, Found, Writer
from chainrule.monitor.runs.writer import keeps_histograms
from chainrule.recording import Recording, record

if TYPE_CHECKING:
    from chainrule.diagnostics import Thresholds

Models = nn.Module | Iterable[nn.Module] | None
Optimizers = Optimizer | Iterable[Optimizer] | None
OnFinding = bool | Callable[[Found], Any]


class watch:  # noqa: N801 (read as a verb)
    """Watch a whole training: `with chainrule.watch(model, optimizer, every=50, to="run.db"):` around the loop.

    Or without a block: it watches from here on, until `close()` or the end of the process.

    A training step runs from the end of an optimizer's `step()` to the end of the next; with several optimizers, until
    each has stepped. Step 1 and each `every`-th is recorded with statistics only; with `full_every` the first of them
    and each `full_every`-th with all its numbers, in a file beside `to`. `on_finding=True` keeps in full, too, the very
    step that shows a new finding which is more than a note: it is played again from copies of its parameters, which
    each watched step then makes, or, where that cannot be, the next step is recorded instead. A function is called with
    each new finding, and may return True for the same. `start` is how many steps were done before (a resumed run: by
    default what the optimizer's own state says), and a file goes on from there. `scaler` is a GradScaler, which is
    otherwise met when it first steps. `thresholds` and `silence` are those of findings; `namespace` gives the names of
    several models, by default the variables around the call.

    Each watched step is looked at by itself while it is there. What the course of the run shows is looked for as often
    as takes half a per cent of the time, and besides where a step shows something new, before old steps are forgotten
    (the last 256 and more are remembered), and at `close()`, however the training ends: what was seen is said. Some
    kinds of findings need the numbers themselves (dead units, equal rows); of large tensors only steps in full have
    them. A step that is being recorded when the watch ends (`if isnan(loss): break`, an exception, Ctrl-C) is looked at
    for numbers that are not finite.

    Under torch.distributed every rank calls it in the same way; the figures of all ranks are joined at the watched
    steps, and rank 0 keeps them. What a finding or `record_next` asks for is then done at the next watched step.

    The training is what it is without: nothing that fails in here stops it, but ends the watch with a warning. Raises
    RequestError for options that mean nothing, before it begins.
    """

    def __init__(
        self,
        model: Models = None,
        optimizer: Optimizers = None,
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
        _counted({"every": every, "full_every": full_every}, 1)
        _counted({"start": start}, 0)
        models = _listed(model, nn.Module, "model")
        optimizers = [_inner(each) for each in _listed(optimizer, Optimizer, "optimizer")]
        self.every, self._full_every, self._on_finding = every, full_every, on_finding
        self.step_number = _steps_done(optimizers) if start is None else start
        self.history = History()
        self.writer: Writer | None = None
        self.reports: list[Callable[[StepFacts, list[Figure]], None]] = []  # a dashboard, called with each watched step
        self._due = self.step_number + 1
        self._full_due = self.step_number + 1
        self._namespace = _variables(sys._getframe(1)) if namespace is None else namespace
        self._models = models
        self._parameters: dict[int, str] = {}
        self.watched = 0  # how many steps
        self._scaling = Scaling(scaler)
        self._examiner = Examiner(self.history, thresholds, silence)
        self._session: record | None = None
        self._recording: Recording | None = None
        self._full: str | None = None  # why the step that comes next is recorded in full
        self._passes = self._passes_before = 0  # backward passes at the last optimizer's step, and at the one before
        self._closure = False  # whether the last optimizer's step was given one
        self._failed = self._closed = False
        self._examining = True
        self._warned: set[str] = set()
        self._together = Together()
        if not self._together.leads:  # the other ranks record for rank 0, which keeps and examines
            self._on_finding = self._examining = False
        if to is not None and self._together.leads:
            self._open(to)
        self._boundaries = Boundaries(
            models, optimizers, self._harmless,
            wanted=self._wanted, begin=self._begin, stepping=self._stepping, within=self._within, end=self._end,
            lost=self._lost,
        )  # fmt: skip
        self._boundaries.arm()
        atexit.register(self._at_exit)

    # -- for the user -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Say that a training step has ended, where no optimizer of torch.optim says it: after an update by hand.

        Where an optimizer does, this only lets a step that a GradScaler left out be seen at once.
        """
        boundaries = self._boundaries
        if self._over:
            return
        stepped, boundaries.stepped_by_hook = boundaries.stepped_by_hook, False
        if stepped:
            return
        if boundaries.optimizers:
            self._harmless(self._note_skipped)
        else:
            boundaries.finish()

    @property
    def findings(self) -> tuple[Found, ...]:
        """What was found so far."""
        return self._examiner.found

    def record_next(self, reason: str = "asked for") -> None:
        """Record the step that comes next in full."""
        self._full = reason
        if self._session is None and not self._over:
            self._boundaries.arm()

    def close(self, status: str = "ended") -> None:
        """Watch no longer: every hook is taken off, the run is looked at once more, and its file written to the end."""
        self._close(status)

    def _close(self, status: str, error: BaseException | None = None) -> None:
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        self._boundaries.remove()
        self._finish(status, error)
        self._tell_problem()
        self._models, self._namespace, self._parameters = [], {}, {}  # the user's: let go of them
        self._recording = None

    def _finish(self, status: str, error: BaseException | None = None) -> None:
        """Say what is left to say, and end the file. What fails in here is told, and the rest is done all the same."""
        unfinished = None if self._session is None or self._failed else self._recording
        try:
            for part in (
                lambda: self._leave(error),
                self._together.leave,
                lambda: self._look_at_unfinished(unfinished, error),
                lambda: self._examine(self._examiner.last_look, since=self.step_number),
                lambda: self._answer_last(unfinished),
            ):
                self._try_at_the_end(part)
        finally:
            if self.writer is not None:
                self.writer.close(status)

    def _try_at_the_end(self, part: Callable[[], None]) -> None:
        try:
            part()
        except Exception as error:  # of `on_finding`, say
            self._warn(f"the end of the watch failed in part: {type(error).__name__}: {error}")

    def _look_at_unfinished(self, recording: Recording | None, error: BaseException | None) -> None:
        """The step that was being recorded when the watch ended; of this rank alone, as the others may be anywhere."""
        if recording is None or not self._examining:
            return
        self._note_skipped()
        measures = Measures()
        if self._full is None:
            recording.at_once(measures, magnitudes=False)
        scaled = self._scaling.scaler is not None or skipped_in(recording.graph) > 0
        facts = StepFacts(self.step_number + 1, time.time(), None, full=self._full is not None)
        self._examiner.look_at_unfinished(recording, facts, _ending(facts.step, error), measures, scaled)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended_by(error)

    def _at_exit(self) -> None:
        """At the end of the process; the exception that ended it, if one did, has been told by then."""
        self._ended_by(None if hasattr(sys, "ps1") else getattr(sys, "last_value", None))

    def _ended_by(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, SystemExit):
            self._close("ended")
        else:
            self._close(f"{type(error).__name__}: {error}", error)

    # -- what the boundaries call -------------------------------------------------------------------------------------

    def _wanted(self) -> bool:
        """Whether the step that comes next is to be recorded: it is due, or one that was due was left out."""
        step = self.step_number + 1
        due = step >= self._due
        if self._full_every and step >= self._full_due:
            told = f"every {self._full_every} steps" if self.watched else "the first watched step"
            due, self._full = True, self._full or told
        # All ranks know when a step is due, and none what another was asked for.
        return due or (self._full is not None and not self._together.active)

    def _begin(self, module: nn.Module | None, args: Any) -> None:
        self._leave()  # of what came before the step, if that is recorded
        self._together.call()
        if not self._together.leads:
            self._full = None  # one rank's numbers are enough to look at
        session = record(namespace=_modules(self._namespace), keep=None if self._full else "statistics")
        session.know(self._whole_models())
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
            if self._scaling.scaler is None:
                self._scaling.look()
            passes = self._session.passes
            if passes > self._passes:  # this optimizer's gradients came after the one that stepped before it
                self._passes_before, self._passes = self._passes, passes
        self._note_skipped()

    def _within(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._session is not None:
            self._session.enter_step(optimizer, args, kwargs)

    def _end(self) -> None:
        self.step_number += 1
        if self._session is None or self._recording is None:
            return
        self._meet(self._session.models)
        self._leave()
        self.watched += 1
        self._due = _multiple_after(self.step_number, self.every)
        self._full_due = _multiple_after(self.step_number, self._full_every or 1)
        step = self._looked_at()
        if self._together.leads:
            for report in self.reports:
                report(step.facts, step.figures)
            self._tell_problem()

    @gc_paused()  # 5 % of a watched step of a small GPT-2: the collector would walk through all of its graph
    def _looked_at(self) -> Step:
        """The step that has just been recorded: read, kept and looked at, and its recording let go of."""
        recording, self._recording = self._recording, None
        assert recording is not None
        measures = Measures()
        figures, facts = self._read(recording, measures)
        step = self._joined(recording, facts, figures)
        if self._together.leads:
            self._keep(recording, step, measures)
            self._answer(recording, step.facts)
        return step

    def _joined(self, recording: Recording, facts: StepFacts, figures: list[Figure]) -> Step:
        """The step of all ranks; where they do not watch together, that of this one."""
        if self._together.active:
            names = "" if self._whole_models() else prefix_of(recording.graph)
            try:
                return self._together.combine(facts, figures, rank_of(recording, names))
            except ApartError as error:
                self._warn(f"{error}: from step {facts.step} on each figure is that of rank 0 alone.")
                if not self._together.leads:
                    self._boundaries.off = self._failed = True
        return Step(facts, figures, ())

    def _lost(self) -> None:
        self._leave()
        self._warn(
            "no optimizer of torch.optim has stepped since many forward passes, so that the end of a training step is "
            "not seen. Call `watch.step()` at the end of each."
        )

    def _leave(self, error: BaseException | None = None) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    # -- one watched step ---------------------------------------------------------------------------------------------

    def _read(self, recording: Recording, measures: Measures) -> tuple[list[Figure], StepFacts]:
        histograms = keeps_histograms(self.watched - 1)
        graph = recording.at_once(measures, histograms) if self._full is None else recording.graph
        optimizers = list(self._boundaries.optimizers.values())
        around = Surroundings(
            self.step_number,
            time.time(),
            tuple(float(group["lr"]) for each in optimizers for group in each.param_groups if "lr" in group),
            self._scaling.scale,
            self._passes_before,
            self._closure,
            bool(self._whole_models()),
            self._full is not None,
            measured_gradients(optimizers, self._parameters, histograms) if self._closure else {},
            measured_moments(optimizers, self._parameters),
            measures,
            histograms,
            not self._together.active,
        )
        if self._scaling.scaler is None and (missed := skipped_in(graph)):
            self._count_skipped(missed)
        return list(figures_of(graph, around)), facts_of(graph, around)

    def _keep(self, recording: Recording, step: Step, measures: Measures) -> None:
        facts, figures = step.facts, step.figures
        if self.writer is not None:
            self.writer.add(facts, figures)
        if self._full is not None:
            reason, self._full = self._full, None
            self._keep_full(recording, facts.step, reason)
        self._examine(
            lambda: self._examiner.look(recording, facts, figures, of_ranks(step.ranks), measures), since=facts.step
        )

    def _examine(self, look: Callable[[], list[Found]], since: int) -> None:
        """Look for findings; where looking fails, the watch goes on without them."""
        if not self._examining:
            return
        try:
            changed = look()
        except Exception as error:
            self._examining = False
            self._warn(f"from step {since} on no findings are looked for: {type(error).__name__}: {error}")
            return
        for found in changed:
            if self.writer is not None:
                self.writer.find(found)

    def _keep_full(self, recording: Recording, step: int, reason: str) -> None:
        if self.writer is None:
            return
        path = self.writer.path
        folder = path.with_name(f"{path.stem}.steps")
        name = f"{step}.safetensors" if self.writer.run == 1 else f"{self.writer.run}-{step}.safetensors"
        try:
            folder.mkdir(exist_ok=True)
            recording.save(folder / name)
        except (OSError, StorageError) as error:
            self._warn(f"step {step} could not be kept in full: {error}")
            return
        self.writer.recorded(step, f"{folder.name}/{name}", reason)

    def _answer(self, recording: Recording, facts: StepFacts) -> None:
        """Keep a step in full where the last look found something new: this one, or the next where it cannot be had."""
        wished = [f"{found.id}: {found.where}" for found in self._fresh() if self._wishes(found)]
        if not wished or facts.full:
            return
        # Other ranks' part in it cannot be played again; and without a file there is no place for it.
        again = None if self._together.active or self.writer is None else played_again(recording)
        if again is None:
            self._full = f"the step after {wished[0]}"
        else:
            self._keep_full(again, facts.step, wished[0])

    def _answer_last(self, unfinished: Recording | None) -> None:
        """The same at the end, where the only step that can be kept is one that was never finished."""
        wished = [f"{found.id}: {found.where}" for found in self._fresh() if self._wishes(found)]
        if not wished or unfinished is None or self.writer is None:
            return
        kept = unfinished if self._full is not None else played_again(unfinished)
        if kept is not None:
            self._keep_full(kept, self.step_number + 1, wished[0])

    def _fresh(self) -> tuple[Found, ...]:
        """What the last look found for the first time."""
        return self._examiner.fresh if self._examining else ()

    def _wishes(self, found: Found) -> bool:
        """Whether a finding is answered by a step in full: more than a note is, or what the user's function says."""
        if callable(self._on_finding):
            return self._on_finding(found) is True
        return self._on_finding and found.severity != "note"

    # -- skipped steps ------------------------------------------------------------------------------------------------

    def _note_skipped(self) -> None:
        if self._scaling.scaler is not None:
            self._count_skipped(self._scaling.skipped())

    def _count_skipped(self, count: int) -> None:
        """Steps that a GradScaler left out are steps, and are kept: they have no tensors."""
        for _ in range(count):
            self.step_number += 1
            facts = StepFacts(self.step_number, time.time(), None, skipped=True, scale=self._scaling.scale)
            self.history.steps.append(facts)
            if self.writer is not None:
                self.writer.add(facts)

    # -- what may go wrong --------------------------------------------------------------------------------------------

    def _open(self, to: str | Path) -> None:
        versions = {
            "chainrule": __version__, "torch": torch.__version__, "python": platform.python_version()
        }  # fmt: skip
        try:
            self.writer = Writer(to, every=self.every, start=self.step_number, versions=versions)
        except StorageError as error:
            self._warn(f"{error} The training is watched, but not kept.")

    @property
    def _over(self) -> bool:
        return self._closed or self._failed

    def _harmless(self, act: Callable[..., Any], *arguments: Any) -> None:
        """Do something on behalf of a hook; where it fails, end the watch and say so."""
        if self._over:
            return
        try:
            act(*arguments)
        except Exception as error:
            self._failed = True
            self._boundaries.off = True
            self._warn(f"watching ended at step {self.step_number + 1}: {type(error).__name__}: {error}")
            self._finish(f"watching ended: {type(error).__name__}: {error}")

    def _tell_problem(self) -> None:
        if self.writer is not None and self.writer.problem:
            self._warn(self.writer.problem)

    def _warn(self, sentence: str) -> None:
        """Say something once; where warnings are errors, on stderr, for they must not end the training."""
        if sentence in self._warned:
            return
        self._warned.add(sentence)
        try:
            warnings.warn(f"chainrule: {sentence}", ChainruleWarning, stacklevel=2)
        except ChainruleWarning:
            print(f"chainrule: {sentence}", file=sys.stderr)

    def _whole_models(self) -> list[nn.Module]:
        """The models, as given; else those that the user's code has under a name, but for parts of others."""
        if self._models:
            return self._models
        named = {id(item): item for item in _modules(self._namespace).values() if any(True for _ in item.parameters())}
        parts = {id(part) for item in named.values() for part in item.modules() if part is not item}
        return [item for key, item in named.items() if key not in parts]

    def _meet(self, roots: Iterable[nn.Module]) -> None:
        """Learn what the parameters are called, as the recording calls them, when their model first runs."""
        models = self._whole_models() or [root for root in roots if any(True for _ in root.parameters())]
        known = {id(item): name for name, item in _modules(self._namespace).items()}
        for model in models:
            prefix = f"{known.get(id(model), type(model).__name__)}." if len(models) > 1 else ""
            for path, parameter in model.named_parameters():
                self._parameters.setdefault(id(parameter), prefix + shortened(path))


def _ending(step: int, error: BaseException | None) -> str:
    """How a step ended that did not come to its update, in a sentence."""
    site = exception_site(error.__traceback__) if error is not None else None
    cause = f": {brief(error)}" if error is not None else ""
    return f"Step {step} ended before its update{cause}{f' ({site.place()})' if site else ''}."


def _multiple_after(step: int, every: int) -> int:
    return (step // every + 1) * every


def _listed(given: Any, kind: type, name: str) -> list[Any]:
    """One or several, as a list. Raises RequestError for what cannot be watched, as where the two were exchanged."""
    found = [] if given is None else [given] if isinstance(given, kind) or not isinstance(given, Iterable) else [*given]
    for each in found:
        if not isinstance(each, kind) and not isinstance(_inner(each), kind):
            raise RequestError(
                f"chainrule.watch({name}=...): {type(each).__name__} came. Give the {name} of PyTorch, or several of "
                "them: chainrule.watch(model, optimizer)."
            )
    return found


def _counted(options: Mapping[str, int | None], least: int) -> None:
    """Raises RequestError for what is no number of steps."""
    for name, given in options.items():
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < least):
            raise RequestError(f"chainrule.watch({name}={given!r}): this is a whole number of steps, {least} or more.")


def _inner(optimizer: Any) -> Any:
    """The optimizer of torch.optim inside the wrappers of Accelerate and Lightning, whose hooks are the ones called."""
    for name in ("optimizer", "_optimizer"):
        inside = getattr(optimizer, name, None)
        if isinstance(inside, Optimizer):
            return _inner(inside)
    return optimizer


def _steps_done(optimizers: Iterable[Optimizer]) -> int:
    """What an optimizer that was loaded from a checkpoint says of itself, where it counts (Adam; SGD does not)."""
    counts = [state["step"] for each in optimizers for state in each.state.values() if "step" in state]
    return max((int(count) for count in counts), default=0)


def _variables(frame: Any) -> Mapping[str, Any]:
    """The modules that the user's code has under a name."""
    while frame is not None and is_library(frame.f_code):
        frame = frame.f_back
    return {} if frame is None else _modules({**frame.f_globals, **frame.f_locals})


def _modules(names: Mapping[str, Any]) -> dict[str, nn.Module]:
    return {name: item for name, item in names.items() if isinstance(item, nn.Module)}
