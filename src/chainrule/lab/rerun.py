"""A step that PyTorch runs again on numbers that a reader changed: what a lab shows that has PyTorch behind it.

The recorded operations run again, autograd goes back through each, and the optimizer's formula gives the update. The
user's Python code does not run: a branch that it took, and a number that it took out of a tensor, stay as they were.
Before anything is changed, what was recorded must come out again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from chainrule.derivation.backprop import derive
from chainrule.derivation.why import Search, Term
from chainrule.errors import ChainruleError, NoLabError, ReplayError, brief
from chainrule.execution.experiment import widened, without_gradients
from chainrule.execution.lineage import gives_number
from chainrule.execution.other_inputs import in_double, losses_with, with_other_inputs
from chainrule.execution.recompute import run_again
from chainrule.graph.comparison import UNKNOWN_SUMS, compare, rounding, unravel
from chainrule.graph.graph import Graph, Operation, references
from chainrule.graph.names import Notation
from chainrule.graph.reexecution import apart
from chainrule.graph.snapshot import ParameterUpdate, type_name
from chainrule.lab.instructions import numbers
from chainrule.lab.leaves import Carried, leaves_of
from chainrule.lab.questions import BEGUN, WHOLE, Question, understood
from chainrule.numbers import number, real_part
from chainrule.rules.optimizers import as_complex, changeable, default_scalar, hyperparameters, worked_out
from chainrule.verification.update_check import compare_update

KEPT = 2**30  # bytes of the steps that are kept to come back to
COMPUTED = 2  # steps whose numbers are at hand
LISTED = 12  # terms of a sum
WIDE_STEP, STEP = 2.0**-17, 2.0**-8  # by which a measured difference moves an element of size 1: in float64, in float32
SAME = 1e-3  # of the loss, within which it is the same in float64


@dataclass(frozen=True)
class Base:
    """Where changes start: the leaves of the step, and the optimizer's state of each parameter that it moves."""

    leaves: dict[int, Tensor]
    state: dict[int, dict[str, Any]]  # by value

    @property
    def nbytes(self) -> int:
        """The memory that its tensors take, where no other base has them."""
        tensors = [*self.leaves.values(), *(each for one in self.state.values() for each in one.values())]
        return sum(each.nbytes for each in tensors if isinstance(each, Tensor))


class Rerun:
    """Answers what a lab asks of one step. `rows` are the rows of a document, by value.

    Raises NoLabError where the step cannot run again, or comes out otherwise than it was recorded.
    """

    def __init__(self, graph: Graph, notation: Notation, rows: Mapping[int, int]) -> None:
        self.graph, self.notation, self.rows = graph, notation, rows
        self.values = {row: value for value, row in rows.items()}
        self.losses = _losses(graph)
        leaves, self._inner = leaves_of(graph, self.losses, rows)
        self.leaves = [graph.values[each] for each in leaves]
        if any(not value.has_numbers for value in self.leaves):
            raise NoLabError('this step has no lab: not all of its numbers were kept. Record it with keep="all".')
        self.inputs = [
            self.rows[value.index]
            for value in self.leaves
            if value.index in rows and value.snapshot.tensor.layout == torch.strided and not value.dtype.is_complex
        ]
        self.reads = list(self._reads())
        self._computed: OrderedDict[Any, Graph] = OrderedDict()
        self._carry = Carried(graph, leaves)
        behind = (graph.values[each] for each in self._carry.behind)  # what code made the leaves of
        given = [*(each for each in behind if each.operation is None and each.has_numbers), *self.leaves]
        first = Base({value.index: value.snapshot.tensor for value in given}, {})
        self._bases: OrderedDict[int, Base] = OrderedDict({0: first})
        self._made = 0  # bases
        self._check(self._run(0, ()))
        self.updates, self.without = self._updates()
        self.settings = self._settings()
        first.state.update({value: dict(update.state_before) for value, (_, _, update) in self.updates.items()})

    def facts(self) -> dict[str, Any]:
        """What a page must know before it asks."""
        return {
            "inputs": self.inputs,
            "gradients": [row for value, row in self.rows.items() if self.graph.values[value].grad is not None],
            "updates": [self.rows[value] for value in self.updates],
            "settings": [[name, value] for _, name, value in self.settings],
            "without": self.without,
            "said": list(self._said()),
        }

    def _said(self) -> Iterable[str]:
        moved = f", and the formula of {next(iter(self.updates.values()))[1]}" if self.updates else ""
        yield (
            f"PyTorch computes these numbers: the {len(self.graph.operations):,} recorded operations run again, and "
            f"autograd goes back through each{moved}. Your Python code does not run again: the branches that it took "
            "stay, and so does what it drew, or took out of PyTorch."
        )
        if self.reads:
            yield (
                f"It took numbers out of tensors ({len(self.reads)}, first at {self._place(self.reads[0])}). Where "
                "such a number is another now, the lab says so."
            )

    # -- whether it can run again -------------------------------------------------------------------------------------

    def _reads(self) -> Iterable[Operation]:
        """The operations that gave a number to Python before the last of those that the losses are computed from."""
        made = (self.graph.values[each].operation for each in self._inner)
        last = max((each for each in made if each is not None), default=0)
        yield from (each for each in self.graph.operations if each.index < last and gives_number(each))

    def _check(self, found: Graph) -> None:
        """Raise NoLabError unless the recorded numbers came out again."""
        for value, again in zip(self.graph.values, found.values, strict=True):
            if value.index not in self.rows:
                continue
            for what, recorded, ours in (("", value.data, again.data), ("the gradient of ", value.grad, again.grad)):
                if recorded is None or (ours is None and not what):
                    continue
                if ours is None or not compare(ours, recorded, count=UNKNOWN_SUMS).agrees:
                    raise NoLabError(
                        f"this step has no lab: run again, {what}{self.notation.plain(value.index)} comes out "
                        "otherwise than it was recorded. A hook changed it, or code that the recording does not hold."
                    )

    def _updates(self) -> tuple[dict[int, tuple[int, str, ParameterUpdate]], str]:
        """By value the updates that a step makes, each with its place and its optimizer; or why there are none."""
        found: dict[int, tuple[int, str, ParameterUpdate]] = {}
        for place, one in enumerate(self.graph.updates):
            for each in one.parameters:
                if each.value is None or each.value not in self.rows or each.grad is None:
                    continue
                known = self.graph.values[each.value].grad
                if each.value in found or known is None or not compare(each.grad, known).agrees:
                    return {}, f"the optimizer used another gradient of {each.name} than this step's backward gave"
                made = worked_out(each, one.optimizer) if each.is_whole else None
                if made is None:
                    return {}, f"no formula covers the update of {one.optimizer}"
                if not compare_update(as_is(made.terms[-1].value, each), each, one.optimizer)[0].agrees:
                    return {}, f"the formula of {one.optimizer} does not give {each.name} after the step"
                found[each.value] = place, one.optimizer, each
        return found, ""

    def _settings(self) -> list[tuple[int, str, float]]:
        named = (
            (place, name, float(plain[name]))
            for place, _, update in self.updates.values()
            for plain in [hyperparameters(update.options, update.state_before)]
            for name in changeable(plain)
        )
        return list(dict.fromkeys(named))

    # -- answers ------------------------------------------------------------------------------------------------------

    @apart()
    def answer(self, asked: Any) -> dict[str, Any]:
        """The answer to a question of the page, or `error`: a sentence."""
        try:
            question = understood(asked, self)
            return self._answer(question)
        except ChainruleError as error:
            return {"error": str(error)}
        except Exception as error:  # an operation that does not take such numbers
            return {"error": f"The step does not run with these numbers ({brief(error)})."}

    def shape(self, row: int) -> tuple[int, ...]:
        """The shape of a row."""
        return self.graph.values[self.values[row]].shape

    def dtype(self, row: int) -> torch.dtype:
        """The number type of a row."""
        return self.graph.values[self.values[row]].dtype

    def has_base(self, base: int) -> bool:
        """Whether a base is still kept."""
        return base in self._bases

    def _answer(self, question: Question) -> dict[str, Any]:
        found = self._run(question.base, question.changes)
        after, state = self._moved(found, question)
        base, explained = question.base, None
        predicted: dict[str, Any] = self._predicted(question)
        if question.step:
            predicted = {"predicted": self._slope(found, {**self._leaves(question.base, question.changes), **after})}
            leaves = self._leaves(question.base, question.changes)
            base = self._keep(Base({**leaves, **self._carry.left(leaves), **after}, state))
            found = self._run(base, ())
            after, _ = self._moved(found, replace(question, base=base, changes=()))
        elif question.chosen is not None:
            explained = self._chosen(found, question, *question.chosen)
        listed = partial(self._listed, question)
        return {
            "base": base,
            "loss": _number(self._loss(found)),
            "values": listed({value: each.data for value, each in enumerate(found.values)}),
            "gradients": listed({value: each.grad for value, each in enumerate(found.values)}),
            "after": listed(after),
            "holds": True,
            "note": self._note(found),
            **predicted,
            "chosen": explained,
        }

    def _listed(self, question: Question, found: Mapping[int, Tensor | None]) -> list[Any]:
        """The numbers of each row: all, or of a large one those asked for."""
        listed = []
        for value, row in self.rows.items():
            data = found.get(value)
            if data is None or data.is_meta or data.layout != torch.strided or data.is_complex():
                continue
            flat = data.detach().reshape(-1)
            asked = question.places.get(row, range(flat.numel() if flat.numel() <= WHOLE else BEGUN))
            listed.append([row, numbers(flat[list(asked)])])
        return listed

    def _leaves(self, base: int, changes: tuple[tuple[int, int, float], ...]) -> dict[int, Tensor]:
        leaves = dict(self._bases[base].leaves)
        for row in dict.fromkeys(row for row, _, _ in changes):
            leaves[self.values[row]] = leaves[self.values[row]].detach().clone(memory_format=torch.contiguous_format)
        for row, place, x in changes:
            leaves[self.values[row]].view(-1)[place] = x
        return leaves

    def _run(self, base: int, changes: tuple[tuple[int, int, float], ...]) -> Graph:
        """The step on the numbers of a base, with changes."""
        if (base, changes) not in self._computed:
            also = {value for each in self.reads for *_, value in references(each.arguments)}
            kept = {value.index for value in self.graph.values if value.has_numbers or value.operation is not None}
            leaves = self._leaves(base, changes)
            aside = {each for each in also if each in kept and self._comes_from(each, leaves)}
            try:
                self._computed[base, changes] = with_other_inputs(self.graph, leaves, aside)
            except ReplayError as error:
                raise NoLabError(f"the step does not run again with these numbers: {error}") from error
            while len(self._computed) > COMPUTED:
                self._computed.popitem(last=False)
        self._computed.move_to_end((base, changes))
        return self._computed[base, changes]

    def _comes_from(self, value: int, leaves: Mapping[int, Tensor]) -> bool:
        """Whether a value can be computed from these leaves alone."""
        of = {value, *self.graph.ancestors([value])}
        return all(each in leaves for each in of if self.graph.values[each].operation is None)

    def _loss(self, found: Graph) -> float:
        return self._weighed({each: found.values[each].snapshot.tensor for each in self.losses})

    def _weighed(self, losses: Mapping[int, Tensor]) -> float:
        return sum(weight * float(losses[each]) for each, weight in self.losses.items())

    def _note(self, found: Graph) -> str:
        """What Python read that is another number now."""
        for operation in self.reads:
            then, now = (_read(graph, operation) for graph in (self.graph, found))
            if then is not None and now is not None and not (then == now or then != then):
                return (
                    f"Your code read a number at {self._place(operation)}, which was {number(then)} and is "
                    f"{number(now)} with these numbers. It stays {number(then)} here: if your code computed with it, "
                    "or branched on it, its own step would be another."
                )
        return ""

    def _place(self, operation: Operation) -> str:
        place = self.graph.calls[operation.call].place if operation.call is not None else None
        return str(place or "a place that is not known")

    def _predicted(self, question: Question) -> dict[str, Any]:
        """What the gradient at the base predicts for the loss; the first row without one, where that is not known."""
        at = self._run(question.base, ())
        for row, _, _ in question.changes:
            if at.values[self.values[row]].grad is None:
                return {"predicted": None, "unpredicted": row}
        moved = {self.values[row]: None for row, _, _ in question.changes}
        leaves = self._leaves(question.base, question.changes)
        return {"predicted": self._slope(at, {each: leaves[each] for each in moved})}

    def _slope(self, at: Graph, after: Mapping[int, Tensor]) -> Any:
        total = 0.0
        for value, data in after.items():
            gradient = at.values[value].grad
            if gradient is not None and data.is_floating_point():
                apart_ = data.double() - at.values[value].snapshot.tensor.double()
                total += float((apart_ * gradient.double()).sum())
        return _number(total)

    # -- the update ---------------------------------------------------------------------------------------------------

    def _moved(self, found: Graph, question: Question) -> tuple[dict[int, Tensor], dict[int, dict[str, Any]]]:
        """Each parameter after the step, and the optimizer's state."""
        after: dict[int, Tensor] = {}
        states: dict[int, dict[str, Any]] = {}
        chosen = dict(zip(self.settings, question.settings, strict=True))
        for value, (place, optimizer, update) in self.updates.items():
            at, state = found.values[value], self._bases[question.base].state[value]
            plain = hyperparameters(update.options, state)
            named = {
                name: chosen[place, name, float(plain[name])]
                for name in changeable(plain)
                if (place, name, float(plain[name])) in chosen
            }
            here = replace(update, start=at.snapshot, gradient=at.gradient, state_before=state)
            with without_gradients():
                made = worked_out(here, optimizer, named)
            assert made is not None
            after[value] = as_is(made.terms[-1].value, update)
            kept = {
                name: each if isinstance(each, Tensor) else default_scalar(each) for name, each in made.after.items()
            }
            states[value] = {**state, **kept, "step": torch.tensor(float(plain["t"]))}
        return after, states

    def _keep(self, base: Base) -> int:
        self._made += 1
        self._bases[self._made] = base
        while len(self._bases) > 2 and sum(each.nbytes for each in self._bases.values()) > KEPT:
            del self._bases[next(each for each in self._bases if each)]  # the recorded step stays
        return self._made

    # -- one element --------------------------------------------------------------------------------------------------

    def _chosen(self, found: Graph, question: Question, row: int, place: int) -> dict[str, Any] | None:
        """The sum behind an element's gradient, and the losses where it is moved."""
        value = self.values[row]
        gradient = found.values[value].grad
        if gradient is None or not gradient.is_floating_point() or row not in self.inputs:
            return None
        why = Search(found, derive(found), self.notation).why(value, unravel(place, tuple(gradient.shape)))
        largest = sorted(why.terms, key=lambda term: -abs(term.value))[:LISTED]
        shown = [term for term in why.terms if term in largest]
        return {
            "row": row,
            "place": place,
            "gradient": _number(gradient.reshape(-1)[place].item()),
            "terms": [_term(each) for each in shown],
            "more": len(why.terms) - len(shown),
            "total": _number(real_part(why.total)),
            **self._measured(found, self._leaves(question.base, question.changes), value, place),
        }

    def _measured(self, found: Graph, leaves: dict[int, Tensor], value: int, place: int) -> dict[str, Any]:
        """An element's gradient, and the losses with the element moved by -2, -1, 0, 1, 2 steps.

        Both in float64, where rounding does not hide them, unless the operations do not run, or draw other numbers, in
        that type.
        """
        size = max(abs(leaves[value].reshape(-1)[place].item()), 1.0)
        try:
            wide = {each: widened(data) for each, data in leaves.items()}
            precise = with_other_inputs(self._double, wide)
            if abs(self._loss(precise) - self._loss(found)) <= SAME * abs(self._loss(found)):
                return self._moved_about(self._double, precise, wide, value, place, WIDE_STEP * size, size)
        except Exception:  # whatever an operation cannot do in float64
            pass
        return self._moved_about(self.graph, found, leaves, value, place, STEP * size, size)

    def _moved_about(
        self, graph: Graph, at: Graph, leaves: dict[int, Tensor], value: int, place: int, step: float, size: float
    ) -> dict[str, Any]:
        losses = [self._weighed(_with(graph, leaves, value, place, k * step)) for k in (-2, -1, 0, 1, 2)]
        dtype, gradient = leaves[value].dtype, at.values[value].grad
        assert gradient is not None
        return {
            "slope": _number(gradient.reshape(-1)[place].item()),
            "losses": list(map(_number, losses)),
            "step": step,
            "rounding": rounding(dtype) * max(map(abs, losses)),
            "scale": size,
            "precise": type_name(dtype),
        }

    @cached_property
    def _double(self) -> Graph:
        return in_double(self.graph)


def _with(graph: Graph, leaves: dict[int, Tensor], value: int, place: int, by: float) -> dict[int, Tensor]:
    """The losses with one element moved."""
    moved = leaves[value].detach().clone(memory_format=torch.contiguous_format)
    moved.view(-1)[place] += by
    return losses_with(graph, {**leaves, value: moved})


def _losses(graph: Graph) -> dict[int, float]:
    """The losses whose sum the gradients are of, each with the seed that its backward pass began with."""
    found = list(dict.fromkeys(each.loss for each in graph.accumulating))
    if not found or None in found:
        raise NoLabError("this step has no lab: no backward pass began from a loss.")
    losses = [each for each in found if each is not None]
    if graph.ancestors(losses) & set(losses):
        raise NoLabError("this step has no lab: one of its losses is computed from another one.")
    if graph.updates and min(each.position for each in graph.updates) < max(each.position for each in graph.backwards):
        raise NoLabError("this step has no lab: an optimizer stepped between its backward passes.")
    seeds = {each: graph.values[each].grad for each in losses}
    if any(seed is None or seed.numel() != 1 for seed in seeds.values()):
        raise NoLabError("this step has no lab: a loss of it is not a single number.")
    return {each: float(seed) for each, seed in seeds.items() if seed is not None}


def as_is(value: Any, update: ParameterUpdate) -> Tensor:
    """A new parameter as the parameter is: complex numbers come as pairs."""
    tensor = value if isinstance(value, Tensor) else torch.tensor(value)
    return (as_complex(tensor) if update.before.is_complex() else tensor).to(update.before.dtype)


def _read(graph: Graph, operation: Operation) -> float | None:
    """The number that an operation gave to Python; None where that is not known."""
    if any(not graph.values[value].has_numbers for *_, value in references(operation.arguments)):
        return None
    try:
        out = run_again(operation, graph.filled(operation.arguments))
    except Exception:
        return None
    if isinstance(out, Tensor):
        return float(out.shape[0]) if out.dim() else None
    return float(out) if isinstance(out, (bool, int, float)) else None


def _term(term: Term) -> dict[str, Any]:
    reason = "; ".join(each.reason for each in term.factors if each.reason)
    return {
        "factors": [[each.name, _number(real_part(each.value))] for each in term.factors],
        "value": _number(real_part(term.value)),
        "text": term.text or reason,
    }


def _number(value: float) -> Any:
    """A number as JSON has it."""
    return value if math.isfinite(value) else str(value)


Answer = Callable[[Any], dict[str, Any]]
"""What answers a page: a question as it was parsed, to an answer."""
