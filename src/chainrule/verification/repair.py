"""Diagnoses a wrong backward of the user: it looks for the one change that makes its gradients right.

A mistake is named only if the changed gradient agrees at the recorded point, with another upstream gradient, and at a
point nearby. Changes of one step of the backward tell the line; changes of the gradient as a whole need no trace of it.
The simplest change counts. If none agrees, the mistake is not recognised.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from chainrule.execution.call_tape import Work
from chainrule.execution.experiment import Experiment, real
from chainrule.execution.function_trace import LARGEST, FunctionTrace, traces
from chainrule.execution.loop_order import loops_of
from chainrule.execution.one_sample import one_sample
from chainrule.graph.comparison import compare
from chainrule.graph.graph import Edge, Place
from chainrule.verification.circumstances import Circumstance
from chainrule.verification.differences import ArgumentCheck, differentiated
from chainrule.verification.repair_edits import edits, tensors_of
from chainrule.verification.repair_numbers import sizes
from chainrule.verification.repair_reach import name_of, reaches
from chainrule.verification.repair_regions import region
from chainrule.verification.repair_samples import CLOSE, Finding, Mistake, Reach, Sample, agree
from chainrule.verification.repair_steps import Edit, Step
from chainrule.verification.repair_whole import changed, missing_product, padded, scaled, summed, swapped

MOST_EDITS = 6000  # of single steps, of small tensors; fewer of large ones
MOST_STEPS = 80_000  # that run again in all
WINDOW = 0.35  # the cost by which a later finding may be dearer than the best, to be looked at still
LONGEST = 72  # characters of a line that is shown whole
CERTAIN = 1.95  # the cost up to which a finding is given without another one
CLOSE_BY = 0.16  # the cost by which another finding may be dearer, to be as likely
SHARED = 0.8  # what a change is cheaper that repairs all wrong gradients at once


@dataclass(frozen=True, slots=True)
class Repair:
    """What is wrong with the gradient of one argument, in words, found by repairing it."""

    kind: Mistake | Circumstance
    argument: str
    text: str


def recognise(experiment: Experiment, findings: list[ArgumentCheck]) -> tuple[Repair, ...]:
    """For each argument whose gradient is wrong, what is wrong with it."""
    wrong = [finding for finding in findings if finding.off and not finding.missing]
    edges = differentiated(findings)
    if not wrong:
        return ()
    if all(finding.got.numel() <= LARGEST for finding in wrong):
        for given in _given(experiment, wrong[0]):
            try:
                found = diagnosed(given, edges, wrong)
            except Exception:  # a user's code may do anything when it runs again
                continue
            if given is experiment or all(each.kind not in ("overwritten", "not recognised") for each in found):
                return found
    return tuple(_unknown(finding.label) for finding in wrong)


def _given(experiment: Experiment, finding: ArgumentCheck) -> Iterator[Experiment]:
    """One sample of a Function that ran under `vmap`, then the whole."""
    try:
        sample = one_sample(experiment, finding.edge, (finding.off or [0])[0])
    except Exception:  # arguments that `vmap` takes apart, and whatever the user's code does
        sample = None
    if sample is not None:
        yield sample
    yield experiment


def diagnosed(experiment: Experiment, edges: list[Edge], wrong: list[ArgumentCheck]) -> tuple[Repair, ...]:
    """The repairs; raises whatever the user's code raises."""
    return tuple(_Search(list(traces(experiment, edges)), wrong).repairs())


def _unknown(label: str) -> Repair:
    return Repair("not recognised", label, f"what is wrong with the gradient of `{label}` was not recognised")


class _Search:
    """The search at all points of one function."""

    def __init__(self, points: list[FunctionTrace], wrong: list[ArgumentCheck]) -> None:
        self.points = points
        self.labels = {finding.edge.position: finding.label for finding in wrong}
        self.reach = reaches(points)
        self.samples = {position: self._samples(position) for position in self.labels}
        self.sizes = list(sizes(points[0]))

    def _samples(self, position: int) -> list[Sample]:
        samples = []
        for point, reach in zip(self.points, self.reach, strict=True):
            right = point.right[position]
            samples.append(Sample(point.got[position], right.at, reach, right.elements, right.error))
        return samples

    def repairs(self) -> Iterator[Repair]:
        """The best finding for each argument."""
        found = {position: self._whole(position) for position in self.labels}
        if len(found) > 1:
            found = {position: self._shared(position, found) for position in found}
        for finding, positions in self._of_steps(found):
            for position in positions:
                found[position].append(finding)
        for position, label in self.labels.items():
            yield self._repair(position, label, found[position])

    def _shared(self, position: int, found: dict[int, list[Finding]]) -> list[Finding]:
        """The findings of one argument, those cheaper that all wrong gradients have in common, as a missing 1/N."""

        def said(at: int, finding: Finding) -> tuple[str, str, str]:
            return finding.kind, finding.problem.replace(f"`{self.labels[at]}`", ""), finding.fix

        of_all = [{said(at, each) for each in findings} for at, findings in found.items()]
        common = set.intersection(*of_all)
        return [
            replace(each, cost=each.cost - SHARED / 4) if said(position, each) in common else each
            for each in found[position]
        ]

    def _repair(self, position: int, label: str, found: list[Finding]) -> Repair:
        if not found:
            found = list(_tried(missing_product(self.samples[position], f"the gradient of `{label}`")))
        if not found:
            unknown = _unknown(label)
            return replace(unknown, text=f"{unknown.text}{self._last_right}")
        found.sort(key=lambda each: each.cost)
        best = found[0]
        alike = [each for each in found if (each.kind, each.problem) == (best.kind, best.problem)]
        places = {(each.place.file, each.place.line): each.place for each in alike if each.place is not None}
        place = best.place or next(iter(places.values()), None)
        text = _sentence(best, place if len(places) == 1 else None, label)
        other = next((each for each in found if _as_likely(each, best)), None)
        if other is not None:
            text = f"either {text}; or {_sentence(other, other.place, label)}"
        where = next((each for each in found if each.kind == "region" and each is not best), None)
        return Repair(best.kind, label, text if where is None else f"{text}; {where.problem}")

    @cached_property
    def _last_right(self) -> str:
        """The last step of the backward that gives the gradient of a step of the forward."""
        try:
            adjoints = [point.adjoints for point in self.points]
            steps = [point.steps.calls for point in self.points]
            for place in reversed(range(len(steps[0]))):
                for at, (step, _) in enumerate(adjoints[0]):
                    pairs = [(calls[place].value, known[at][1]) for calls, known in zip(steps, adjoints, strict=True)]
                    if all(isinstance(own, Tensor) and own.dim() and _close(own, right) for own, right in pairs):
                        where = steps[0][place].place
                        at_line = f" ({where})" if where is not None else ""
                        return f"; {name_of(steps[0][place])}{at_line} is still right, the gradient of {name_of(step)}"
        except Exception:  # a forward that autograd cannot differentiate, or another course of steps
            pass
        return ""

    # -- the gradient as a whole ---------------------------------------------------------------------------------------

    def _whole(self, position: int) -> list[Finding]:
        samples, label = self.samples[position], self.labels[position]
        name = f"the gradient of `{label}`"
        special = list(_tried(self._special(position, label, name)))
        if special:
            return special
        others: dict[str, Sequence[Tensor]] = {
            edge.argument or "": [point.got[other] for point in self.points]
            for other, edge in self.points[0].edges.items()
            if other != position
        }
        found = [*_tried(scaled(samples, name, self.sizes)), *_tried(swapped(samples, name, others))]
        if not found or found[0].cost > 2:
            found += [*_tried(changed(samples, name)), *_tried(summed(samples, name)), *_tried(padded(samples, name))]
            found += [*_tried(region(samples, name, self.sizes))]
            found += [*_tried(self._of_forward(position, label, name))]
            found += [*_tried(self._of_order(position, name))]
        return found

    def _special(self, position: int, label: str, name: str) -> Iterator[Finding]:
        """A tensor that was overwritten after the forward; a forward that is flat, as `round` in quantisation."""
        samples = self.samples[position]
        if agree(samples, lambda sample: sample.wrong):
            problem = f"run again, right after its forward, backward gives {name} that agrees"
            fix = "in this step something that it reads, its output or a tensor kept on ctx, was written to in between"
            yield Finding("overwritten", 0, problem, fix)
        flat = samples[:2]  # a point nearby may lie at a jump
        if all(not bool(sample.right.abs().gt(sample.error).any()) for sample in flat):
            straight = any(
                all(slot < len(p.upstream) and _equal(p.upstream[slot], p.got[position]) for p in self.points[:2])
                for slot in range(len(self.points[0].upstream))
            )
            what = (
                "the upstream gradient as it is (a straight-through estimator)" if straight else "a gradient of its own"
            )
            problem = f"the forward does not change with `{label}` around here, so its derivative is 0, while backward "
            yield Finding("flat forward", 0, problem + f"gives {what}", "right if that is meant, and no derivative")

    def _of_forward(self, position: int, label: str, name: str) -> Iterator[Finding]:
        """A use of the argument in the forward that is forgotten; the diagonal of the Jacobian alone."""
        points, samples = self.points, self.samples[position]
        if any(point.whole.get(position) is None for point in points):
            return
        for cut, use in enumerate(points[0].uses[:64]):
            parts = [each.without_use(cut)[position] for each in points]
            if _all_match(samples, parts):
                problem = f"a term is missing in {name}, the one that comes back through `{use}` of the forward"
                yield Finding("missing term", 2.62, problem, "with it, it agrees")
                break
        if _all_match(samples, [each.along_the_diagonal(position) for each in points]):
            yield Finding("missing term", 1.0, f"{name} is made of the diagonal of the Jacobian alone", "it lets each "
                          "element of the output depend on the same element of the input, and the terms of all others "
                          "are missing")  # fmt: skip

    def _of_order(self, position: int, name: str) -> Iterator[Finding]:
        """A loop of the backward that begins at the wrong end, as that of a scan."""
        for loop in loops_of(self.points[0].function.backward):
            turned = (point.turned(loop)[position] for point in self.points)
            if all(sample.agrees(each) for sample, each in zip(self.samples[position], turned, strict=True)):
                fix = f"with the last turn first, {name} agrees"
                yield Finding("order", 1.5, "the loop begins at the wrong end", fix, loop.place)

    # -- one step of the backward --------------------------------------------------------------------------------------

    def _of_steps(self, found: dict[int, list[Finding]]) -> Iterator[tuple[Finding, list[int]]]:
        points = self.points
        calls = points[0].steps.calls
        if not calls or not all(point.repeats for point in points):
            return
        if len({tuple(call.name for call in point.steps.calls) for point in points}) > 1:
            return
        best = {position: min((each.cost for each in findings), default=9.0) for position, findings in found.items()}
        places = self._places()
        firsts = {place for place in places if self._siblings[place][0] == place}
        repeated = {place: self._siblings[place] for place in firsts if len(self._siblings[place]) > 1}
        candidates = sorted(edits(points, self.reach, firsts, repeated), key=lambda edit: edit.cost)
        again = len(calls) if points[0].steps.writes else len(calls) / 2  # steps that run again
        weight = 1 + max(got.numel() for got in points[0].got.values()) / 20_000
        most = int(min(MOST_EDITS, MOST_STEPS / again) / weight)
        for edit in candidates[:most]:
            if edit.cost - SHARED * (len(best) > 1) > max(best.values()) + WINDOW:
                return
            positions = self._repaired(edit)
            if positions:
                shared = SHARED if len(positions) == len(best) > 1 else 0.0
                cost = edit.cost - shared
                best |= {position: min(best[position], cost) for position in positions}
                yield Finding(edit.kind, cost, edit.problem, edit.fix, self._place(edit), of_steps=True), positions

    def _places(self) -> set[int]:
        """The steps that lead to wrong gradients, and to no right one."""
        point = self.points[0]
        calls = point.steps.calls
        if point.steps.writes:
            return set(range(len(calls)))
        names = list(point.experiment.wide)
        leads: dict[int, set[int]] = {}
        for position, edge in point.edges.items():
            returned = point.back[names.index(edge.argument or "")]
            leads.setdefault(id(returned), set()).add(position)
        places = set()
        for place in reversed(range(len(calls))):
            out = calls[place].out
            reached = set().union(*(leads.get(id(each), set()) for each in tensors_of(out)))
            for each in calls[place].reads:
                leads.setdefault(each, set()).update(reached)
            if reached and reached <= set(self.labels):
                places.add(place)
        return places

    def _repaired(self, edit: Edit) -> list[int]:
        """Which wrong gradients become right at every point, while no right one becomes wrong."""
        positions = list(self.labels)
        for at, (point, reach) in enumerate(zip(self.points, self.reach, strict=True)):
            try:
                back = self._run(edit, point, reach)
                if any(
                    isinstance(old, Tensor) and old.shape != new.shape
                    for old, new in zip(point.back, back, strict=True)
                ):
                    return []
                positions = [each for each in positions if self.samples[each][at].agrees(point.returned(back, each))]
                if not positions or not self._spared(point, back):
                    return []
            except Exception:  # a change that the step cannot take
                return []
        return positions

    def _run(self, edit: Edit, point: FunctionTrace, reach: Reach) -> tuple[Any, ...]:
        def at(place: int, turn: int, work: Step) -> Work:
            here = replace(reach, turn=turn) if turn else reach
            return lambda arguments, keywords: work(point.steps.calls[place], here, arguments, keywords)

        works = {
            each: at(each, turn, work)
            for place, work in edit.works.items()
            for turn, each in enumerate(self._siblings[place])
        }
        return point.steps.run(works)

    @cached_property
    def _siblings(self) -> list[list[int]]:
        """For each step, all that stand at the same place in the code, as those of a loop do: they change together."""
        places: dict[object, list[int]] = {}
        keys: list[object] = []
        for place, call in enumerate(self.points[0].steps.calls):
            keys.append((call.site.code, call.site.instruction, call.name) if call.site is not None else place)
            places.setdefault(keys[-1], []).append(place)
        return [places[key] for key in keys]

    def _spared(self, point: FunctionTrace, back: tuple[Any, ...]) -> bool:
        names = list(point.experiment.wide)
        for position, edge in point.edges.items():
            if position not in self.labels:
                place = names.index(edge.argument or "")
                if back[place] is not point.back[place]:
                    again = compare(real(point.returned(back, position)), real(point.got[position]), eps=CLOSE)
                    if not again.agrees:
                        return False
        return True

    def _place(self, edit: Edit) -> Place | None:
        return None if edit.place is None else self.points[0].steps.calls[edit.place].place


def _as_likely(other: Finding, best: Finding) -> bool:
    """Whether another finding is of another kind and about as simple, and none of the elementary ones is found."""
    kinds = {other.kind, best.kind}
    return len(kinds) == 2 and "region" not in kinds and best.cost >= CERTAIN and other.cost <= best.cost + CLOSE_BY


def _close(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and compare(real(left), real(right), eps=CLOSE).agrees


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool((left == right).all())


def _all_match(samples: Sequence[Sample], parts: Sequence[Tensor | None]) -> bool:
    pairs = list(zip(samples, parts, strict=True))
    return all(part is not None and bool(part.any()) and sample.matches(part, sample.wrong) for sample, part in pairs)


def _tried(found: Iterator[Finding]) -> Iterator[Finding]:
    """What is found until something fails: an attempt that cannot be made is none."""
    try:
        yield from found
    except Exception:
        return


def _sentence(finding: Finding, place: Place | None, label: str) -> str:
    where = ""
    if place is not None:
        source = linecache.getline(place.file, place.line).strip()
        shown = source if len(source) <= LONGEST or not place.expression else place.expression
        where = f" in `{shown}` ({place})"
    fix = finding.fix
    if finding.of_steps:
        fix = f"{fix}, the gradient of `{label}` agrees"
    return f"{finding.problem}{where}{': ' if fix else ''}{fix}"
