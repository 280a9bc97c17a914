"""`chainrule.verify(fn, *inputs)`: checks the gradients of one function, without a training step.

The outputs get random upstream gradients, so that no error is hidden by symmetry. Where that agrees, the function runs
again under other conditions (`verification/conditions.py`), and with `order=2` its first derivative is verified as a
function of its own. Whatever running the function changes is restored after each run: `.grad` of the leaves that it
reads, buffers of a module, its attributes and other Python objects that it leads to, random generators.
"""

from __future__ import annotations

import inspect
import itertools
import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from chainrule.document import Kind
from chainrule.errors import RecordingError, RequestError, in_one_line
from chainrule.execution.experiment import nothing_left_behind
from chainrule.execution.user_code import UserCode
from chainrule.graph.graph import Node
from chainrule.graph.trees import map_leaves, tensors_in
from chainrule.recording import Recording, record
from chainrule.report.headline import with_names
from chainrule.verification.conditions import GIVEN, Condition, conditions, layout_condition, random_upstream
from chainrule.verification.gradient_check import FUNCTION, Rows, constraint_of
from chainrule.verification.gradient_check import verify as check_gradients
from chainrule.verification.rows import GradientCheck, Row
from chainrule.verification.second_derivative import OnceError, has_derivative, nodes_behind, second_derivative
from chainrule.verification_result import Verification

LARGE = 2**18  # elements of all tensors that come up: above, a function is checked under one condition alone


def verify(
    fn: Callable[..., Any] | type[torch.autograd.Function], *inputs: Any, order: int = 1, **keywords: Any
) -> Verification:
    """Check the gradients of a function, a module, or an `autograd.Function` (the class, or its `.apply`) on inputs.

    Copies of the real or complex tensors among the inputs are the variables; the inputs do not change. Where the
    gradients agree, and the tensors that come up have no more than 262,144 elements, other conditions are tried too:
    another memory layout, other upstream gradients (expanded as `.sum()` gives them, not contiguous, of one result
    alone), one input alone that requires a gradient, and other points.
    `order=2` also checks the second derivative: that of each first derivative with respect to the inputs, a module's
    parameters, and the upstream gradient. The result says what was tried, and a row under which conditions it failed.

    >>> import torch, chainrule
    >>> chainrule.verify(torch.nn.functional.gelu, torch.randn(3, 4)).passed
    True

    Raises RecordingError where `fn` cannot be called, fails on these inputs in forward or backward, or returns nothing
    that depends on a variable.
    """
    if order not in (1, 2):
        raise RequestError(f"chainrule.verify: order={order!r} is not supported. Give 1, or 2 for second derivatives.")
    return _Function(fn, inputs, keywords).verified(order)


_WRITES = "more than one element of the written-to tensor"  # PyTorch's words for a write to an expanded one
TWICE = Condition("its second derivative")
_Place = tuple[str, Any, int]
_Failures = dict[_Place, list[tuple[Condition, Row]]]


@dataclass(frozen=True)
class _Attempt:
    """What one run gave: its nodes' rows, its outputs that have gradients, and whether other leaves have some too."""

    check: GradientCheck
    recording: Recording
    outs: list[Tensor]
    others: bool

    def places(self) -> dict[_Place, Row]:
        """The rows by what remains of a node from one run to the next: its name, its line, and its turn among those."""
        turn: Counter[tuple[str, Any]] = Counter()
        found = {}
        for row in self.check.rows:
            key = row.node.name, row.place
            found[(*key, turn[key])] = row
            turn[key] += 1
        return found


class _Function:
    """A function with the inputs that it is verified on."""

    def __init__(self, fn: Any, inputs: tuple[Any, ...], keywords: dict[str, Any], runs: Any = None) -> None:
        self.fn, self.name = fn, _name(fn)
        self.call = _callable(fn, self.name)
        self.given = list(inputs), keywords
        self.variables = [each for each in tensors_in(self.given) if has_derivative(each)]
        if any(each.is_meta for each in self.variables):
            raise RecordingError(
                f"chainrule.verify: an input of {self.name} is on the device meta, which holds no numbers. Give it on "
                "a device that does: torch.randn(..., device='cpu')."
            )
        self.left_out: list[str] = []
        self.code = UserCode(fn, runs)
        small = [each for each in self.code.tensors() if each.numel() <= LARGE]
        self.written = list({id(each): each for each in (*buffers_of(fn), *small)}.values())

    def verified(self, order: int) -> Verification:
        """The check as given; where that agrees, those under other conditions, and that of the second derivative."""
        first = self.attempt(GIVEN)
        assert first is not None
        tried = [GIVEN.words]
        failures = self._isolated(first, tried) if first.check.failures else self._under_conditions(first, tried)
        rows, words = first.places(), dict[int, str]()
        for place, several in failures.items():
            node = rows[place].node if place in rows else replace(several[0][1].node, index=len(rows), operation=None)
            words[node.index] = " and ".join(condition.words for condition, _ in several)
            row = several[0][1]
            rows[place] = replace(row, node=node, place=node.place, reason=f"{words[node.index]}: {row.reason}")
        check = replace(first.check, rows=tuple(rows.values()))
        if order == 2 and not check.failures:
            twice = self._twice(first, len(check.rows))
            tried += [TWICE.words] if all(row.verdict != "not checked" for row in twice) else []
            check = replace(check, rows=(*check.rows, *twice))
        check = with_names(check, first.recording.graph, lambda: first.recording.derivation)
        plain = {index: said.replace("`", "") for index, said in words.items()}
        names = {index: f"{name}, {plain[index]}" if index in plain else name for index, name in check.names.items()}
        left_out = f" Left out: {'; '.join(self.left_out)}." if self.left_out else ""
        return Verification.of(replace(check, names=names), f"Tried: {'; '.join(tried)}.{left_out}")

    def _isolated(self, first: _Attempt, tried: list[str]) -> _Failures:
        """The failures of the first check. Where contiguous inputs make it agree, their layout is to blame."""
        condition = layout_condition(self.variables)
        if condition is not None and not all(each.is_contiguous() for each in self.variables):
            other = self.attempt(condition)
            if other is not None and not other.check.failures and not _is_open(other, first):
                tried.append(condition.words)
                scattered = replace(GIVEN, words="with inputs as given, which are not contiguous")
                return {k: [(scattered, row)] for k, row in first.places().items() if row.verdict == "disagrees"}
        return {}

    def _under_conditions(self, first: _Attempt, tried: list[str]) -> _Failures:
        """What disagrees under other conditions, each with all conditions under which it does."""
        failures: _Failures = {}
        size = sum(math.prod(each.shape) for each in first.recording.graph.values)
        if self.code.obstacle:
            tried[:] = [f"{GIVEN.words} alone: it is not run again, as {self.code.obstacle}"]
            return failures
        if size > LARGE:
            tried[:] = [f"{GIVEN.words} alone, as the {size:,} elements of its tensors are more than {LARGE:,}"]
            return failures
        names = _names(self.fn, *self.given)
        for condition in conditions(self.variables, names, first.outs, first.others):
            attempt = self.attempt(condition)
            if attempt is None or _is_open(attempt, first):
                continue
            tried.append(condition.words)
            if attempt.check.failures and condition.plainer is not None:
                plainer = self.attempt(condition.plainer)
                if plainer is not None and plainer.check.failures:
                    condition, attempt = condition.plainer, plainer
            for place, row in attempt.places().items():
                if row.verdict == "disagrees":
                    failures.setdefault(place, []).append((condition, row))
        return failures

    def _twice(self, first: _Attempt, count: int) -> list[Row]:
        """The rows of the second derivative; it has no repairs, as its backward is autograd's and not the user's."""
        name, graph = f"{self.name}, second derivative", first.recording.graph
        if constraint := next(filter(None, map(constraint_of, graph.operations)), ""):
            node = replace(graph.nodes[-1], index=count, name=name, operation=None, leaf=None)
            return [Row(node, None, "not checked", constraint, own=FUNCTION)]
        upstream = [g for g in random_upstream(first.outs) if g is not None]
        second = second_derivative(self.call, self.fn, self.given, _names(self.fn, *self.given), upstream)
        found = _Function(second.function, second.inputs, {}, runs=self.fn).attempt(TWICE)
        made = [] if found is None else found.check.rows
        rows = [row for row in made if row.node.function_class is second.function]
        renamed = (
            replace(row.node, index=count + i, name=name, operation=None, function_class=None)
            for i, row in enumerate(rows)
        )
        on_context = "; what backward reads from ctx carries a graph only where it is an input or an output"
        return [
            replace(
                row, node=node, place=None, repairs=(), reason=row.reason + on_context * (row.verdict == "disagrees")
            )
            for node, row in zip(renamed, rows, strict=True)
        ]

    def attempt(self, condition: Condition) -> _Attempt | None:
        """Run it under a condition and check every node; None where the function itself does not run there."""
        first = condition is GIVEN
        with nothing_left_behind(), self.code.restored(), numbers_restored(self.written), torch.enable_grad():
            arguments, keywords = self._inputs(condition)
            error = None
            with record(namespace={}) as recording:
                try:
                    out = self.call(*arguments, **keywords)
                except Exception as raised:
                    if first:
                        raise _failed(self.name, "on these inputs", raised) from raised
                    return None
                wanted = [each for each in tensors_in(without_keys(out)) if each.requires_grad]
                outs = [each for each in wanted if each.grad_fn is not None] or wanted
                if not outs and first:
                    raise RecordingError(_nothing(self.name, tensors_in((arguments, keywords)), out))
                if not outs:
                    return None
                leaves = [node.variable for node in nodes_behind(outs) if hasattr(node, "variable")]
                with _gradients_restored(leaves):
                    sent = [(out, g) for out, g in zip(outs, condition.upstream(outs), strict=True) if g is not None]
                    try:
                        torch.autograd.backward([out for out, _ in sent], [g for _, g in sent])
                    except Exception as raised:
                        if first:
                            raise _failed(self.name, "in its backward", raised) from raised
                        error = raised
            if condition.elsewhere and not all(map(_is_finite, outs)):
                return None
            nodes, own = recording.graph.nodes, {id(each) for each in tensors_in((arguments, keywords))}
            if error is not None and _WRITES in str(error):
                self.left_out.append(f"{condition.words}, which its backward writes to: that raises")
                return None
            if error is not None:
                blamed = _blamed(nodes, error)
                if blamed is None:
                    return None
                refused = isinstance(error, (OnceError, NotImplementedError)) or "is not implemented" in str(error)
                verdict: Kind = "not checked" if condition is TWICE and refused else "disagrees"
                row = Row(blamed, blamed.place, verdict, f"its backward raises {in_one_line(error)}", own=FUNCTION)
                check = GradientCheck((row,), (0, 1))
            elif first:
                check = check_gradients(recording.graph)
            else:
                rows = Rows(recording.graph, {})
                check = GradientCheck(tuple(rows.row(node.index) for node in nodes), (0, len(nodes)))
            return _Attempt(
                check, recording, [out.detach() for out in outs], any(id(leaf) not in own for leaf in leaves)
            )

    def _inputs(self, condition: Condition) -> tuple[Any, Any]:
        """Copies of the inputs; variables have the layout of the condition, and those wanted require gradients."""
        place = itertools.count()

        def copied(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if not has_derivative(leaf):
                return leaf.detach().clone()
            return condition.layout(leaf).requires_grad_(condition.wanted in (None, next(place)))

        arguments, keywords = map_leaves(copied, self.given)
        return arguments, keywords


def _is_open(attempt: _Attempt, first: _Attempt) -> bool:
    """Whether a node that gradients flowed through went unchecked, unlike in the first attempt."""
    known = first.places()
    return any(
        row.verdict == "not checked"
        and place in known
        and known[place].verdict != "not checked"
        and row.node.executions
        for place, row in attempt.places().items()
        if any(g is not None for each in row.node.executions for g in each.upstream)
    )


def _blamed(nodes: tuple[Node, ...], error: Exception) -> Node | None:
    """The user's function whose backward raised, or gave what autograd refused."""
    own = [node for node in nodes if node.function_class is not None]
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    raised = [node for node in own if _code_of(node) in frames]
    named = [node for node in own if node.name in str(error)]
    return next(iter(raised or named or (own if len(own) == 1 else [])), None)


def _code_of(node: Node) -> CodeType | None:
    backward = getattr(node.function_class, "backward", None)
    return getattr(inspect.unwrap(backward) if callable(backward) else None, "__code__", None)


def _names(fn: Any, inputs: list[Any], keywords: dict[str, Any]) -> list[str]:
    """What the variables are called: by the function's own names of its arguments, where it tells them."""
    of, skipped = fn, 0
    if isinstance(fn, type):
        of, skipped = fn.forward, int(fn.setup_context is torch.autograd.Function.setup_context)  # type: ignore[attr-defined]
    try:
        given = list(inspect.signature(of).parameters.values())
    except (TypeError, ValueError):  # a builtin does not tell
        given = []
    known = [f"`{each.name}`" for each in given if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    known = known[skipped:] + [f"input {i}" for i in range(len(known[skipped:]), len(inputs))]
    names = []
    for name, tree in (*zip(known, inputs, strict=False), *((f"`{name}`", tree) for name, tree in keywords.items())):
        count = sum(map(has_derivative, tensors_in(tree)))
        names += [name] if count == 1 else [f"tensor {i} of {name}" for i in range(count)]
    return names


def _name(fn: Any) -> str:
    owner = getattr(fn, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        return owner.__name__
    return str(getattr(fn, "__name__", type(fn).__name__))


def _callable(fn: Any, name: str) -> Callable[..., Any]:
    if isinstance(fn, type) and issubclass(fn, torch.autograd.Function):
        apply: Callable[..., Any] = fn.apply
        return apply
    if isinstance(fn, Tensor) or not callable(fn):
        given = repr(fn) if isinstance(fn, str) else f"a {type(fn).__name__}"
        raise RecordingError(
            f"chainrule.verify: {given} cannot be called. Give a "
            "function, a module or an autograd.Function first, then its inputs: chainrule.verify(fn, x, y)."
        )
    if isinstance(fn, type):
        raise RecordingError(f"chainrule.verify: {name} is a class. Give an instance of it: {name}(...).")
    return fn  # type: ignore[no-any-return]


def buffers_of(model: Any) -> list[Tensor]:
    """The buffers of a module; of any other callable none."""
    return list(model.buffers()) if isinstance(model, torch.nn.Module) else []


def without_keys(out: Any) -> Any:
    """The values of a dictionary; anything else unchanged."""
    return list(out.values()) if isinstance(out, dict) else out


def _failed(name: str, where: str, error: Exception) -> RecordingError:
    lines = str(error).strip().splitlines()
    writes = lines and "a leaf Variable that requires grad" in lines[0]
    advice = f" It writes to what it is given: chainrule.verify(lambda x: {name}(x.clone()), x)." if writes else ""
    return RecordingError(f"chainrule.verify: {name} failed {where}: {in_one_line(error)}{advice}")


def _nothing(name: str, inputs: list[Tensor], out: Any) -> str:
    if not inputs:
        return f"chainrule.verify: {name} got no tensor. Give its inputs after it: chainrule.verify(fn, x, y)."
    if not any(each.requires_grad for each in inputs):
        return f"chainrule.verify: no input of {name} has real or complex numbers, so there is no derivative to verify."
    if not list(tensors_in(without_keys(out))):
        return f"chainrule.verify: {name} returned {type(out).__name__}, and no tensor."
    return (
        f"chainrule.verify: what {name} returned does not depend on its inputs for autograd. It may detach them, run "
        "under no_grad, or go through NumPy."
    )


def _is_finite(out: Tensor) -> bool:
    return out.layout != torch.strided or bool(out.isfinite().all())


@contextmanager
def numbers_restored(tensors: list[Tensor]) -> Iterator[None]:
    """Restore the numbers of tensors that were written to, such as a module's buffers."""
    before = [(each, each.detach().clone()) for each in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, numbers in before:  # not every kernel that writes counts up the version
                if not torch.equal(tensor, numbers):
                    tensor.copy_(numbers)


@contextmanager
def _gradients_restored(leaves: list[Tensor]) -> Iterator[None]:
    """Clear `.grad` of these leaves, and restore it at the end."""
    before = [(leaf, leaf.grad) for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, grad in before:
            leaf.grad = grad
