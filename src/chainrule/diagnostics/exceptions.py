"""Exceptions of PyTorch, explained: the line that saved and the line that wrote, the earlier step, the layer's sizes.

What the recorder noted when the exception was raised is `Graph.failures`; here it becomes sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.forward_errors import explained
from chainrule.diagnostics.step_context import StepContext, operands
from chainrule.graph.graph import Failure, GivenTensor, Operation, Place
from chainrule.graph.snapshot import type_name
from chainrule.numbers import many
from chainrule.rules.facts import base_name, facts_of

BACKWARD_FAILED = Check(
    "backward-failed", "Backward ended in an exception", "error",
    what="An exception of autograd: which write changed what a node had saved; which pass freed the graph, or of which "
    "earlier step it is; what keeps the loss from having a gradient; what a function of your own returned or raised; a "
    "write in place that autograd forbids. It is a note if your code caught it, unless it lasts.",
    why="The step has no gradients. The message of PyTorch names a shape or a type, and not the line at fault.",
    advice="Look at the lines that are named.",
    source="PyTorch's documentation: Autograd mechanics, in-place operations with autograd; torch.Tensor.backward",
    lasts=3, unfinished=True)  # fmt: skip
FORWARD_FAILED = Check(
    "forward-failed", "The forward pass ended in an exception", "error",
    what="An exception of a layer or of an operation: which layer, what it expects, and the shapes, types and ranges "
    "of the tensors that it got.",
    why="The message of PyTorch names sizes, and not the layer that they belong to.",
    advice="Compare what the layer expects with what it got.",
    source="PyTorch's documentation of torch.nn and torch.nn.functional", unfinished=True)  # fmt: skip
EXPLAINED = (BACKWARD_FAILED.id, FORWARD_FAILED.id)

OUT_OF_PLACE = "Write to a new tensor (`x = x + 1` for `x += 1`, no inplace=True), or to a clone()."
STEPPED = (
    "Run every backward pass before the first step() that changes what it needs, or run the forward pass again after "
    "that step(); use detach() where a pass must not train the other model."
)
DETACH = (
    "Detach what is carried from step to step (`h = h.detach()`, each tensor of a tuple), or compute it anew in each "
    "step. retain_graph=True only moves the error, and the graph grows."
)
TWICE = (
    "Add the losses and call backward() once; or give the first pass retain_graph=True; or detach() what the second "
    "pass must not train."
)
CREATE_GRAPH = "Give torch.autograd.grad create_graph=True: its result has a history then, and the graph is kept."
Explained = tuple[str, tuple[str, ...], str]
"""What happened, the evidence, and what to try."""


NON_FINITE = ("nan values in its", "is non-finite")
"""Exceptions of a check for such numbers: the findings of these name their origin."""


def _failures(context: StepContext, backward: bool) -> Iterator[Failure]:
    for each in context.graph.failures:
        if each.backward == backward and not any(part in each.error for part in NON_FINITE):
            yield each


@BACKWARD_FAILED.in_step
def _backward_failed(context: StepContext) -> Iterator[Finding]:
    for failure in _failures(context, backward=True):
        text, evidence, advice = _explained(context, failure)
        yield BACKWARD_FAILED.found(
            _where(context, failure), text, (*evidence, _message(failure)), place=failure.place,
            severity="error" if failure.ended else "note", advice=advice,
        )  # fmt: skip


BACKWARD_FAILED.over_time(BACKWARD_FAILED.lasting)


@FORWARD_FAILED.in_step
def _forward_failed(context: StepContext) -> Iterator[Finding]:
    for failure in _failures(context, backward=False):
        text, evidence, advice, of_autograd = explained(failure)
        if text:
            check = BACKWARD_FAILED if of_autograd else FORWARD_FAILED
            where = failure.module or failure.called or failure.error.partition(":")[0]
            yield check.found(where, text, (*evidence, _message(failure)), place=failure.place, advice=advice)


def _message(failure: Failure) -> str:
    """The first sentence of the exception."""
    lines = failure.error.split("\n")
    return re.split(r"\. |; expected|\(or directly", lines[0])[0].rstrip(" .") + "."


def _where(context: StepContext, failure: Failure) -> str:
    return _name(context, failure) or failure.node or failure.raised_in or "backward"


def _name(context: StepContext, failure: Failure) -> str:
    """What the user's code calls the tensor in question; "" if that is not known."""
    if failure.name or failure.value is None:
        return failure.name
    if failure.node and failure.operation is None:  # its name in this step is none of the user's
        return failure.made.targets[0] if failure.made is not None and len(failure.made.targets) == 1 else ""
    return context.values[context.source(failure.value)].name.partition("@")[0]


def _at(place: Place | None) -> str:
    return "" if place is None else f" ({place})"


def _line(what: str, place: Place | None) -> str:
    """`p += 1` (train.py:12): the user's expression if it is known and short."""
    written = place.expression if place is not None and 0 < len(place.expression) <= 60 else what
    return f"`{written}{' = ...' if what == '__setitem__' else ''}`{_at(place)}"


def _explained(context: StepContext, failure: Failure) -> Explained:
    error = failure.error
    if "modified by an inplace operation" in error:
        return _overwritten(context, failure)
    if "backward through the graph a second time" in error:
        return _second(context, failure)
    if "does not require grad and does not have a grad_fn" in error:
        return _no_gradient(context, failure)
    if "grad can be implicitly created only for" in error:
        return _not_scalar(context, failure)
    if failure.raised_in:
        return _in_user_code(failure)
    for part, advice in _OTHERS.items():
        if part in error:
            return f"The backward pass raised {error.split('. ')[0].rstrip('.')}.", _given(failure), advice
    made = f" of {_line(failure.node, failure.made)}" if failure.made is not None else ""
    return f"The backward pass{made} raised {error.split('. ')[0].rstrip('.')}.", _given(failure), ""


_OTHERS = {
    "appears to not have been used in the graph": "Give only inputs that the outputs depend on, or allow_unused=True, "
    "which gives None for the others.",
    "differentiated Tensors does not require grad": "Call x.requires_grad_() before the forward pass that uses x.",
    "Mismatch in shape: grad_output": "The gradient given to backward() must have the shape of the tensor it is of.",
    "mark a variable ready only once": "A parameter was used twice in one pass of DistributedDataParallel: by two "
    "forward calls before one backward, or inside of reentrant checkpointing. Use checkpoint(use_reentrant=False), or "
    "static_graph=True.",
    "returned an invalid gradient": "The tensor changed its shape or type after the forward pass (`x.data = ...`, "
    "resize_): make a new tensor instead.",
    "Recomputed values for the following tensors have different metadata": "The checkpointed function must do the same "
    "when it runs again: the same modes, autocast and random numbers.",
    "out of memory": "Use a smaller batch, mixed precision, or checkpointing.",
}


# -- what a node saved was overwritten ---------------------------------------------------------------------------------


def _overwritten(context: StepContext, failure: Failure) -> Explained:
    saved, name = _saved_by(context, failure), _name(context, failure) or _of_shape(failure)
    versions = re.search(r"is at version (\d+); expected version (\d+)", failure.error)
    writes = [_line(what, place) for what, place in failure.writes]
    by = f"{writes[0]} wrote over it" if writes else "it was written to"
    stepped = any(".step()" in what for what, _ in failure.writes[:1])
    earlier = f" in step {failure.step}" if failure.step is not None else ""
    if not failure.node:
        text = f"A tensor that the backward pass needs was written to after it was saved{_at(failure.made)}."
    else:
        text = f"{saved} saved {name}{earlier} for its backward pass, and {by} before backward came there."
    evidence = []
    if versions is not None:
        times = many(int(versions[1]) - int(versions[2]), "write")
        evidence.append(f"{times} since it was saved: version {versions[2]} was saved, and it is at {versions[1]}.")
    if len(writes) > 1:
        evidence.append(f"Later ones: {listed(writes[1:])}.")
    elif not writes:
        evidence += _candidates(context, failure)
    advice = OUT_OF_PLACE
    if failure.step is not None:
        advice = DETACH
    elif stepped:
        advice = STEPPED
    return text, tuple(evidence), advice


def _saved_by(context: StepContext, failure: Failure) -> str:
    if failure.operation is not None:
        name = context.called(context.graph.operations[failure.operation])
        return _line(name, failure.made)
    return _line(failure.node.removesuffix("0").removesuffix("Backward"), failure.made)


def _of_shape(failure: Failure) -> str:
    shape = failure.given[0].shape if failure.given else None
    return f"a tensor of shape {shape}" if shape is not None else "a tensor"


def _candidates(context: StepContext, failure: Failure) -> Iterator[str]:
    """Without the node: every write over a tensor of the shape that the message names."""
    for operation in context.graph.operations:
        written = next(iter(operands(operation)), None) if base_name(operation.name).endswith("_") else None
        value = None if written is None else context.values[written]
        if value is not None and f"{list(value.shape)}" in failure.error:
            what = _line(base_name(operation.name), context.place(operation))
            yield f"{what} wrote over {value.name.partition('@')[0]}{_at(value.place)}, which has that shape."


# -- a graph that was freed --------------------------------------------------------------------------------------------


def _second(context: StepContext, failure: Failure) -> Explained:
    name = _name(context, failure)
    if failure.operation is not None:
        came = _line(context.called(context.graph.operations[failure.operation]), failure.made)
        freed = f": {_line('backward()', failure.freed)} had freed what it saved" if failure.freed else ""
        of = f", which makes {name}," if name else ""
        by_grad = failure.freed is not None and "grad(" in failure.freed.expression
        return f"backward() came to {came}{of} a second time{freed}.", (), CREATE_GRAPH if by_grad else TWICE
    if not failure.node:
        return "backward() came to a part of the graph a second time, after a first pass had freed it.", (), TWICE
    made, alike = failure.made, failure.made is None
    made = _made_alike(context, failure) if alike else made
    if not name and made is not None:
        name = " or ".join(filter(None, made.targets))
    what = name or "a tensor"
    if made is not None:
        what += f", {'which' if alike else 'made by'} {_line('it', made)}{' makes in this step' if alike else ''},"
    step = f"step {failure.step}" if failure.step is not None else "an earlier step, or of code before this one"
    text = f"backward() went on into the graph of {step}, which is freed: {what} comes from there and was not detached."
    return text, (), DETACH


def _made_alike(context: StepContext, failure: Failure) -> Place | None:
    """The line that makes such a tensor in this step: a loop carries it from step to step."""
    shape = failure.given[0].shape if failure.given else None
    for value in context.values:
        node = None if value.node is None or not context.graph.nodes else context.graph.nodes[value.node]
        if node is None or value.operation is None or node.name != failure.node or value.shape != shape:
            continue
        operation = context.graph.operations[value.operation]
        place = value.place or context.place(operation)
        if place is not None and place.targets and (not failure.name or failure.name in place.targets):
            return place
    return None


# -- a loss without a gradient -----------------------------------------------------------------------------------------


def _no_gradient(context: StepContext, failure: Failure) -> Explained:
    loss = failure.value
    of = f"backward() was called on {_name(context, failure) or 'a tensor'}, which has no gradient"
    if loss is None:
        kind = f"It is {_described(failure.given[0])}." if failure.given else ""
        return f"{of}: no operation on something that requires one led to it.", (kind,), _LEARNS
    value = context.values[loss]
    for operation in reversed(context.graph.operations):
        outputs = [each for each in operation.outputs if each is not None]
        if not any(each == loss or each in _behind(context, loss) for each in outputs):
            continue
        given = [each for each in operands(operation) if context.values[each].requires_grad]
        if given and not any(context.values[each].requires_grad for each in outputs):
            return _cut(context, of, operation, given[0], outputs[0])
    owned = {name for module in context.graph.modules for name in module.parameters}
    behind = [context.values[each] for each in sorted(_behind(context, loss))]
    frozen = [each.name for each in behind if each.kind == "parameter" or not owned.isdisjoint(each.names)]
    if context.values[context.source(loss)].operation is None:
        producer = context.producer(loss)
        place = value.place or (None if producer is None else context.place(producer))
        made = f": {_line('', place)} made it from numbers" if place is not None and place.expression else ""
        text = f"{of}{made or ': it was made from numbers, not by operations on tensors'}."
        return text, (f"It is {_described(_as_given(context, loss))}.",), _NUMBERS
    if frozen:
        text = f"{of}: none of the parameters that it is computed from requires a gradient."
        return text, (f"requires_grad is False for {listed(list(dict.fromkeys(frozen)))}.",), _FROZEN
    leaves = [each for each in behind if each.operation is None]
    for backward in context.graph.backwards:
        shapes = [each.shape for each in backward.given.values()]
        if not backward.accumulates and any(each.shape in shapes for each in leaves):
            text = f"{of}: {_line('torch.autograd.grad', backward.place)} returned gradients without a history."
            return text, (), CREATE_GRAPH
    for call in context.graph.calls:
        if call.name in _FROM_NUMBERS and any(each in _behind(context, loss) for each in call.outputs):
            return f"{of}: {_line(call.name, call.place)} made what it is computed from of numbers.", (), _NUMBERS
    text = f"{of}: nothing that it is computed from requires a gradient."
    return text, (f"It is computed from {listed([each.name for each in leaves])}.",), _LEARNS


_FROM_NUMBERS = ("tensor", "as_tensor", "from_numpy")
_LEARNS = (
    "Compute the loss from the model's output with gradients enabled, without detach(), item(), numpy() or no_grad()."
)
_NUMBERS = "Keep tensors until the loss: item(), tolist(), numpy() and torch.tensor(...) of numbers have no history."
_FROZEN = "Call requires_grad_() on the parameters that should learn."
_DETACHED = "Leave the detach() out, or call backward() on the tensor before it."
_UNDER = "Run the forward pass with gradients enabled: outside of no_grad(), inference_mode() and such decorators."
_INTEGERS = (
    "Integers and booleans have no derivative. Use the scores instead (logits, probabilities) with a loss such as "
    "cross_entropy; accuracy is no loss."
)


def _behind(context: StepContext, value: int) -> set[int]:
    return context.once(("behind", value), lambda: context.graph.ancestors([value]))


def _cut(context: StepContext, of: str, operation: Operation, given: int, output: int) -> Explained:
    made, name = context.values[output], context.values[given].name.partition("@")[0]
    line = _line(context.called(operation), made.place or context.place(operation))
    kind = made.dtype
    if not (kind.is_floating_point or kind.is_complex):
        text = f"{of}: {line} turns {name} into {type_name(kind)}, which has no derivative."
        return text, (), _INTEGERS
    if facts_of(operation.name).detaches or facts_of(operation.name).reads_number:
        return f"{of}: {line} cuts {name} off.", (), _DETACHED
    text = f"{of}: {line} ran with gradients disabled, though {name} requires one."
    return text, (), _UNDER


def _as_given(context: StepContext, value: int) -> GivenTensor:
    known = context.values[value]
    return GivenTensor("", known.shape, known.dtype, known.device)


def _described(given: GivenTensor) -> str:
    shape = "a single number" if given.shape == () else f"of shape {given.shape}"
    return f"{shape} of type {type_name(given.dtype)}"


# -- a loss of several numbers, and code of the user's -----------------------------------------------------------------


def _not_scalar(context: StepContext, failure: Failure) -> Explained:
    given = failure.given[0] if failure.given else None
    name = _name(context, failure) or "a tensor"
    made = ""
    if failure.value is not None:
        value = context.values[failure.value]
        producer = context.producer(failure.value)
        called = context.called(producer) if producer is not None else ""
        made = f" It is the result of {_line(called, value.place or (context.place(producer) if producer else None))}."
    if given is not None and given.dtype.is_complex:
        text = f"backward() was called on {name}, which is complex: only a real number has a gradient by default."
        return text, (made.strip(),), "Make the loss real: .abs(), .real, or the square of the modulus."
    shape = f" of shape {given.shape}" if given is not None else ""
    reduction = " without a reduction" if "reduction='none'" in made or 'reduction="none"' in made else ""
    text = f"backward() was called on {name}{shape}{reduction}, and only a single number has a gradient by default."
    return (
        text,
        (made.strip(),),
        "Reduce it first (.mean() or .sum(), reduction='mean'), or give backward() a gradient of its shape.",
    )


def _in_user_code(failure: Failure) -> Explained:
    error = failure.error
    returned = re.search(r"returned an incorrect number of gradients \(expected (\d+), got (\d+)\)", error)
    if returned:
        takes = f"{returned[1]} arguments" + (f" ({failure.called})" if failure.called else "")
        text = f"{failure.raised_in} returned {returned[2]} gradients, and forward takes {takes}."
        return text, _applied(failure), "Return one gradient for each argument of forward, None for what has none."
    wrong = re.search(r"at index (\d+) - (.*)", error)
    if wrong:
        argument = f"for the argument {failure.name}" if failure.name else f"number {wrong[1]}"
        text = f"{failure.raised_in} returned a wrong gradient {argument}: {wrong[2].rstrip('.')}."
        advice = "The gradient must have the shape, type and device of the argument: sum over what forward broadcast."
        return text, _applied(failure), advice
    text = f"{failure.raised_in}, which backward called, raised {error.split(chr(10))[0].rstrip('.')}."
    return (
        text,
        (),
        "The exception is of the function that is named, at the line that is named: autograd only called it.",
    )


def _applied(failure: Failure) -> tuple[str, ...]:
    return (f"It was applied at {_line('', failure.made)}.",) if failure.made is not None else ()


def _given(failure: Failure) -> tuple[str, ...]:
    return tuple(f"It began from a tensor {_described(each)}." for each in failure.given[:1])
