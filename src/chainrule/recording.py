"""The public objects: `record()`, and the `Recording` that it gives. Facts inside, verbs that only delegate.

What a verb needs is imported when it is called: recording alone must not wait for rules, checks and views.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from chainrule.capture.borrowed import BorrowedTensor
from chainrule.capture.failed_forward import lone
from chainrule.capture.guard import Guard
from chainrule.capture.lowering import free, lower
from chainrule.capture.lowering.naming import variables_around
from chainrule.capture.lowering.tensor_versions import Snapshots, SnapshotsInPlace
from chainrule.capture.session import Session
from chainrule.capture.source import leave_out_recorder
from chainrule.capture.step_log import StepLog
from chainrule.capture.tape import Tape
from chainrule.errors import ChainruleError, RecordingError
from chainrule.graph.graph import Graph, Node, Value
from chainrule.graph.names import Notation, find_value
from chainrule.graph.reexecution import apart, unobserved
from chainrule.graph.snapshot import Parameter
from chainrule.graph.statistics_cache import StatisticsCache
from chainrule.notebook_forms import Findings, shown
from chainrule.progress import bar

if TYPE_CHECKING:
    from chainrule.derivation.backprop import Derivation, Step
    from chainrule.derivation.dependence import Dependence
    from chainrule.derivation.why import Why
    from chainrule.diagnostics import Finding, Thresholds
    from chainrule.document import Document
    from chainrule.exercises.answers import Answer
    from chainrule.live import Lab
    from chainrule.verification_result import Verification

Patterns = str | Iterable[str] | None
QUICKLY_VERIFIED = 300  # nodes up to which a page shows verdicts without being asked


class Recording:
    """One recorded training step: its facts, and everything that can be worked out from them, on demand.

    While the block of `record()` runs, every property raises RecordingError.
    """

    _tape: Tape | None = None  # what is not yet read

    def __init__(self, guard: Guard | None = None) -> None:
        self._guard = guard
        self._open = guard is not None
        self._verification: Verification | None = None
        self._owners: Mapping[int, BorrowedTensor] = {}
        self.title = "One training step"  # of its report

    @classmethod
    def of(cls, graph: Graph, owners: Mapping[int, BorrowedTensor] | None = None) -> Recording:
        """A recording of given facts; `owners` are the leaves that were not kept and live on."""
        recording = cls()
        recording.graph = graph
        recording._owners = owners or {}
        return recording

    @classmethod
    def of_failure(cls, error: BaseException | None, log: StepLog) -> Recording | None:
        """What is known of the exception that ended a step which was not recorded; None if PyTorch did not raise it."""
        recording = cls()
        with suppress(Exception):  # the user's exception is on its way
            recording._tape = None if error is None else lone(error, log)
        return None if recording._tape is None else recording

    @cached_property
    @apart()
    def graph(self) -> Graph:
        """All facts of the step: values, operations, calls, nodes, backward passes, updates."""
        tape = self._ended()
        with unobserved():
            tape.secure()
            tape.borrowed.release()
        graph = lower(tape, Snapshots(tape))
        self._tape, self._owners = None, tape.owners
        free(tape)  # also autograd's graph and the user's objects
        return graph

    @apart()
    def at_once(self, cache: StatisticsCache, magnitudes: bool) -> Graph:
        """The graph for use before the user's code goes on: nothing is copied (see `SnapshotsInPlace`).

        The statistics of tensors come from `cache`, with histograms or without (`magnitudes`). From now on it is this
        recording's `graph`; until the user's code goes on, `to_last` gives another recording that has everything.
        """
        tape = self._ended()
        tape.borrowed.release()
        self.graph = lower(tape, SnapshotsInPlace(tape, cache, magnitudes))
        return self.graph

    def to_last(self, updates: bool = True) -> Recording:
        """The same step with a graph that lasts, after `at_once`. Without `updates` it keeps no optimizer alive."""
        lasting = Recording()
        lasting._guard, lasting._tape, self._tape = self._guard, self._ended(), None
        if not updates:
            lasting._ended().updates.clear()
        return lasting

    def _ended(self) -> Tape:
        if self._guard is not None:
            self._guard.check()
        if self._open or self._tape is None:
            raise RecordingError(
                "the recording is still running: it can be read when the `with chainrule.record()` block has ended. "
                "Move this line below the block."
            )
        return self._tape

    @property
    def _failed(self) -> bool:
        return self._guard is not None and bool(self._guard.failure)

    def __del__(self) -> None:
        # The graph was never asked for. At the interpreter's exit there is nothing left to free, or to free it with.
        if self._tape is not None and not self._open and free is not None:
            free(self._tape)

    @property
    def loss(self) -> float | None:
        """The value of the loss that the last backward pass into `.grad` began from; None where there was none.

        A loss of several elements (backward with a gradient given) has no single value: see `losses`.
        """
        losses = self.losses
        return losses[-1].item() if losses and losses[-1].numel() == 1 else None

    @property
    def is_whole(self) -> bool:
        """Whether the numbers of every value and gradient were kept."""
        return all(v.has_numbers and (v.grad is not None or not v.has_gradient) for v in self.graph.values)

    @property
    def losses(self) -> tuple[Tensor, ...]:
        """The loss of each backward pass into `.grad`, in the order in which they ran."""
        values = (self.graph.values[b.loss] for b in self.graph.accumulating if b.loss is not None)
        return tuple(value.data for value in values if value.data is not None)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every autograd node, in forward order; a leaf's `AccumulateGrad` comes where the leaf is first used."""
        return self.graph.nodes

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Every trained leaf by its name, with its data before, its gradient, and its data after the step."""
        return self.graph.parameters

    @property
    def error(self) -> str | None:
        """The exception that ended the block, if one did; the recording ends there."""
        return self.graph.error

    def __getitem__(self, name: str) -> Value:
        """The value of this name: a variable of the user's code, or the path of a parameter or module.

        Of several values of one name (`x` in a loop) it is the last; `x@1` is the first.
        Raises MissingError, with near matches, where nothing has that name, and RequestError for what is no name.
        """
        return shown(self.graph.values[find_value(self.graph, name)])

    @cached_property
    @apart()
    def derivation(self) -> Derivation:
        """Backpropagation with our own rules, independently of autograd."""
        from chainrule.derivation.backprop import derive

        return derive(self.graph)

    @cached_property
    @apart()
    def notation(self) -> Notation:
        """What each value is called."""
        return Notation(self.graph)

    @cached_property
    def _statistics_cache(self) -> StatisticsCache:
        return StatisticsCache()

    @cached_property
    def _findings(self) -> tuple[Finding, ...]:
        return self._found(None, ())

    @property
    def steps(self) -> tuple[Step, ...]:
        """The derivation: forward, backward and update steps, in the order in which they are shown."""
        return self.derivation.steps

    @apart()
    def recompute(self, *names: str) -> Recording:
        """A recording in which these values and their gradients have numbers, where only statistics were kept.

        A name is what `recording[name]` takes, or a pattern of module paths (`h.3.*`); without names it is everything.
        The recorded operations run again, as far as needed, from the small tensors that were kept, the parameters and
        inputs that you still hold, and the recorded states of the random generator. What the calls around the values
        took and gave is included, so that `why`, `verify` and `show` have what they need. This recording does not
        change; a note of the new one says what was recomputed.

        Raises MissingError for a name that does not exist, RequestError for what is no name, and ReplayError where a
        parameter or an input was overwritten meanwhile, or the statistics differ from those recorded.
        """
        graph = self.graph
        from chainrule.execution.recompute import recompute

        return Recording.of(recompute(graph, self._owners, names), self._owners)

    @apart()
    def why(self, name: str, index: tuple[int, ...] | int = ()) -> Why:
        """The sum behind one number of a gradient: `.terms`, each with its `.value` and its two factors.

        A single number needs no index. Raises MissingError where the name or the index does not exist, and RequestError
        for what is no name, such as a tensor.
        """
        from chainrule.derivation.why import why

        return shown(why(self.graph, self.derivation, self.notation, name, index))

    @apart()
    def depends(self, of: str, on: str) -> Dependence:
        """Whether value `of` depends on value `on`, and along which axes; MissingError for a name that is none."""
        from chainrule.derivation.dependence import depends

        return depends(self.graph, self.notation, of, on)

    @apart()
    def verify(
        self, *, only: Patterns = None, sample: float | None = None, alike: int | None = None, memory: int | None = None
    ) -> Verification:
        """Check the gradients at every node: our rule, autograd and finite differences, side by side.

        `only` limits it to nodes whose name, module or value matches a pattern, or one of several (`h.3.*` is a block
        and all in it); `sample` to a random share of them (0.1 is a tenth), the same one each time; `alike` to the
        first so many that one line made alike, as in a loop. The result says what was left out. `memory` is how many
        bytes the check of one node may take: 2 GiB by default. On a terminal standard error shows the progress.

        Raises MissingError where `only` names nothing, RequestError for a share or a memory that means nothing.
        """
        whole = only is None and sample is None and alike is None and memory is None
        if whole and self._verification is not None:
            return self._verification
        from chainrule.report.headline import with_names
        from chainrule.verification.gradient_check import MEMORY, verify
        from chainrule.verification_result import Verification

        memory = MEMORY if memory is None else memory
        with bar("verifying nodes") as progress:
            check = verify(self.graph, only=only, sample=sample, alike=alike, memory=memory, progress=progress)
        found = shown(Verification.of(with_names(check, self.graph, lambda: self.derivation)))
        if whole:
            self._verification = found
        return found

    @apart()
    def check(self, quantity: str, answer: Any, earlier: Mapping[str, Any] | None = None) -> Answer:
        """Check a student's answer, and name the mistake in a wrong one: `recording.check("dJ/dW2", [[0.1, -0.3]])`.

        It is about a gradient, a value (`A1`), a parameter after the update (`new W2`), or one element (`Z2[0,1]`). It
        is a tensor, nested lists, a number, or one as text, rounded or not. With `earlier` answers, by their
        quantities, one that follows from a wrong one by right arithmetic is recognised.

        Raises MissingError, with the nearest names, for what the step lacks, RequestError for what is no number.
        """
        from chainrule.exercises.answers import check

        return check(self, quantity, answer, earlier)

    def findings(self, thresholds: Thresholds | None = None, silence: Collection[str] = ()) -> tuple[Finding, ...]:
        """What is unhealthy in this step, or worth knowing, with evidence.

        `thresholds` decide what counts; `silence` leaves findings out by their ids, as in `("unit-off",)`. Without all
        numbers, checks that need them are left out, and others use the statistics.
        Raises SilenceError for an id that no finding has.
        """
        found = self._findings if thresholds is None and not silence else self._found(thresholds, silence)
        return shown(Findings(found))

    @apart()
    def _found(self, thresholds: Thresholds | None, silence: Collection[str]) -> tuple[Finding, ...]:
        from chainrule.diagnostics import findings

        derivation = self.derivation if self.is_whole else None
        return findings(self.graph, derivation, self.notation, thresholds, silence, self._statistics_cache)

    @apart()
    def document(
        self, brief: bool = False, pointing: bool = False, coded: bool = False, running: bool = False
    ) -> Document:
        """The step as a document, for any view.

        With `pointing` also the sum behind each number, for a page, and the verdicts of `verify`, which a small step
        runs unasked; with `coded` also the code that recomputes each section, for a notebook; with `running` also the
        program of a small step, which a page runs again on other numbers.
        """
        from chainrule import report
        from chainrule.diagnostics.finding import joined

        if len(self.nodes) <= QUICKLY_VERIFIED:
            self.verify()
        rows = {row.node.index: row for row in self._verification.rows} if self._verification else {}
        found = tuple(joined(self._findings))
        known = self.graph, self.derivation, self.notation, found, rows, self._statistics_cache
        context = report.Context(*known, self.title)
        return report.brief(context) if brief else report.full(context, pointing, coded, running)

    def show(self, brief: bool = False) -> None:
        """Print the whole step in the terminal, or with `brief` a screenful."""
        from chainrule.views import terminal

        terminal.render(self.document(brief))

    @apart()
    def lab(self) -> Lab:
        """The page with PyTorch behind its lab: shown by a notebook's cell, or served by its `serve()`."""
        from chainrule.live import Lab

        return Lab(self.graph, self.derivation, self.notation, lambda: self.document(pointing=True))

    @apart()
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recording to a file; its suffix names the view.

        `.safetensors` is the recording itself, which `chainrule.load` reads. An existing file is replaced atomically.

        Raises StorageError for a suffix that no view has, and where the file cannot be written.
        """
        from chainrule.graph import storage

        suffix = _suffix(path)
        if suffix == ".safetensors":
            own = self.graph.verdicts if self._verification is None else self._verification.of_own
            storage.write(replace(self.graph, verdicts=own), path)
            return
        from chainrule import views

        view = views.by_suffix()[suffix]
        document = self.document(pointing=view.pointing, coded=view.coded, running=view.running)
        storage.write_atomically(path, view.written(document).encode())

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """What a notebook shows: the page in a frame, or the summary where HTML is not shown."""
        if self._open or self._failed:
            return {"text/plain": repr(self)}
        from chainrule.views.page import framed

        return {"text/html": framed(self.document(pointing=True, running=True)), "text/plain": str(self)}

    def __str__(self) -> str:
        from chainrule.views import terminal

        return terminal.text(self.document(brief=True))

    def __repr__(self) -> str:
        if self._open:
            return "<chainrule.Recording, still running>"
        if self._failed:
            return "<chainrule.Recording, failed>"
        return f"<chainrule.Recording: loss {self.loss}, {len(self.nodes)} nodes, {len(self.parameters)} parameters>"


def check_output(path: str | os.PathLike[str]) -> None:
    """Raise StorageError where `recording.save(path)` would, before a step is recorded."""
    from chainrule.graph import storage

    _suffix(path)
    storage.check_writable(path)


def _suffix(path: str | os.PathLike[str]) -> str:
    """The suffix, in lower case. Raises StorageError where nothing writes such a file."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix != ".safetensors":  # a watch that saves a step must not wait for all views
        from chainrule import views

        views.check_suffix(suffix, ".safetensors")
    return suffix


def load(path: str | os.PathLike[str]) -> Recording:
    """Read a recording that `recording.save("step.safetensors")` wrote. Nothing in the file is executed.

    A user's own `autograd.Function` is not in the file, so its node can be shown but not run again. Its verdict is
    there where `recording.verify()` ran before it was saved.

    Raises StorageError where the file is missing, cut short, corrupt, no recording, or of a newer version.
    """
    from chainrule.graph.storage import read

    return Recording.of(read(path))


class record(Session):  # noqa: N801 (read as a verb)
    """Record what runs in the block as one training step: `with chainrule.record() as recording:`.

    Nothing about the step changes: losses, gradients, random numbers and updated parameters are bit for bit those of
    the same step without it, and no hook is left on the model, even after an exception (which passes through).
    `namespace` names the tensors that the block itself does not name; by default it is the variables around the block.

    `keep` is "all"; "statistics", the `Statistics` of each value and gradient of more than 16 KiB instead of its
    numbers; or a list of patterns of module paths, such as `["h.3.*", "lm_head"]`, for which numbers are kept, and
    statistics elsewhere. By default all is kept, up to `memory` bytes of values and gradients (4 GiB, or a quarter of
    the machine's memory where that is less), and statistics beyond. Parameters, inputs and `.grad` are the user's: they
    are copied when the recording is read, or before an optimizer overwrites them.

    Raises RecordingError inside another `record()` of the same thread, and for any other `keep` or `memory`.
    """

    def __init__(
        self,
        namespace: Mapping[str, Any] | None = None,
        *,
        keep: str | Sequence[str] | None = None,
        memory: int | None = None,
    ) -> None:
        super().__init__(keep, memory)
        self._namespace = namespace

    def __enter__(self) -> Recording:
        self._recording = Recording(self.guard)
        self.begin()
        self._recording._tape = self.tape
        return self._recording

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            around = sys._getframe(1)
            self.end(error, lambda: variables_around(around) if self._namespace is None else self._namespace)
            if not isinstance(error, ChainruleError):
                with suppress(Exception):  # the error of the user's is what counts
                    leave_out_recorder(trace)
        finally:
            self.take_off()
            self._recording._open = False
