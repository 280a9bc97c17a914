"""Faults of recurrent layers: a state that is not carried on, a direction that has read one token."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import first_output
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.padding import RECURRENT, beyond_views
from chainrule.diagnostics.step_context import StepContext, argument, is_zero
from chainrule.graph.graph import Call, Operation, Ref
from chainrule.graph.trees import leaves
from chainrule.rules.facts import facts_of

FORGOTTEN = Check(
    "state-not-carried", "The state of a recurrent layer is not carried on", "warning",
    what="One line runs a recurrent layer or cell on one token at a time, three times or more in a step, each time "
    "with the same state, which the network computed, and no use of the new ones.",
    why="Each step begins where the first one did: the layer knows the last token alone, and not what came before it.",
    advice="Pass on the state that the layer returns: output, hidden = decoder(token, hidden).",
    source="Sutskever, Vinyals and Le, Sequence to sequence learning with neural networks, 2014")  # fmt: skip
FEWEST = 3  # runs of a line in a step
CELLS = tuple(f"{each}_cell" for each in ("lstm", "gru", "rnn_tanh", "rnn_relu"))


@FORGOTTEN.in_step
def _forgotten(context: StepContext) -> Iterator[Finding]:
    runs: dict[object, list[Call]] = {}
    for call in context.graph.calls:
        if call.name in (*RECURRENT, *CELLS) and call.place is not None:
            runs.setdefault((call.module, call.name, call.place.file, call.place.line), []).append(call)
    for calls in runs.values():
        taken = [[each.value for each in leaves(call.arguments[:2], Ref)] for call in calls]
        if len(calls) < FEWEST or any(len(each) < 2 for each in taken):
            continue
        states = {tuple(map(context.source, each[1:])) for each in taken}
        inputs = {each[0] for each in taken}
        if len(states) > 1 or len(inputs) < FEWEST or not all(map(context.from_data.__contains__, *states)):
            continue
        if not all(context.values[each].requires_grad for each in next(iter(states))):
            continue
        if any(not _is_one_token(context, call, each[0]) or _uses_state(context, call)
               for call, each in zip(calls, taken, strict=True)):  # fmt: skip
            continue
        name, call = context.name(next(iter(states))[0]), calls[0]
        yield FORGOTTEN.found(
            call.module or call.name, f"{call.module or call.name} begins with the state {name} at each of "
            f"{len(calls)} tokens, and the states that it returns are not used.",
            f"{len(calls)} runs of one line have {len(inputs)} inputs and one state.", place=call.place,
        )  # fmt: skip


def _is_one_token(context: StepContext, call: Call, given: int) -> bool:
    shape = context.values[given].shape
    return call.name in CELLS or (len(shape) == 3 and 1 in shape[:2])


def _uses_state(context: StepContext, call: Call) -> bool:
    """Whether what a layer returns beside its outputs is used; the state of a cell is its output."""
    states = call.outputs[1:] if call.name in RECURRENT or call.name.startswith("lstm") else ()
    inside = set(call.operations)
    return any(use.index not in inside for state in states for use in context.uses.get(state, ()))


ONE_STEP = Check(
    "one-step-sequence", "A recurrent layer gets sequences of one step", "warning",
    what="A recurrent layer runs once in a step, over two sequences or more of length 1, begins with zeros, and the "
    "state that it returns is not used: at five examined steps in a row, and at each since.",
    why="Nothing is carried from one time to the next: the recurrent weights meet zeros alone, their gradient is 0, "
    "and the layer is a feed-forward one.",
    advice="Give the steps of a window an axis of their own: x.unsqueeze(2) makes (samples, steps, 1 feature), and "
    "unsqueeze(1) one step of many features. Check batch_first, too.",
    source="PyTorch's documentation of nn.LSTM: the input is (batch, sequence, features) with batch_first", lasts=5,
)  # fmt: skip


@ONE_STEP.in_step
def _one_step(context: StepContext) -> Iterator[Finding]:
    calls = [each for each in context.graph.calls if each.name in RECURRENT]
    for call in calls:
        given, *states = (each.value for each in leaves(call.arguments[:2], Ref))
        shape, batch_first = context.values[given].shape, call.arguments[-1]
        axis = 1 if batch_first else 0
        if len(shape) != 3 or shape[axis] > 1 or shape[1 - axis] < 2 or _uses_state(context, call):
            continue
        if sum(each.module == call.module for each in calls) > 1:
            continue
        if states and all(is_zero(context.statistics(each)) for each in states):
            name = call.module or call.name
            yield ONE_STEP.found(
                name, f"{name} gets {shape[1 - axis]} sequences of one step, with {shape[2]} features each.",
                f"Axis {axis} of {context.name(given)} {shape} is the time. It begins with a state of zeros, which is "
                "all that the recurrent weights are multiplied by.",
                place=call.place, severity="note",
            )  # fmt: skip


ONE_STEP.over_time(ONE_STEP.lasting)

ONE_SIDED = Check(
    "direction-unread", "One direction of a recurrent layer has read one token", "warning",
    what="Of a bidirectional layer's outputs only those at the last position, or at the first, are used, both "
    "directions of them.",
    why="At the last position the backward direction has read the last token alone, and at the first one the forward "
    "direction the first: half of the features know one token.",
    advice="Join the last states of both directions, torch.cat([h[-2], h[-1]], 1), or take a mean over the outputs.",
    source="PyTorch's documentation of nn.LSTM: for bidirectional LSTMs h_n is not the last element of output",
)  # fmt: skip
SHORTEST = 3  # tokens


@ONE_SIDED.in_step
def _one_sided(context: StepContext) -> Iterator[Finding]:
    for call in context.graph.calls:
        given = next((each.value for each in leaves(call.arguments[:1], Ref)), None)
        if call.name not in RECURRENT or given is None or len(context.values[given].shape) != 3:
            continue
        both, batch_first = call.arguments[-2:]
        if both is not True or not call.outputs or _uses_state(context, call):
            continue
        axis = 1 if batch_first else 0
        inside = set(call.operations)
        uses = [each for each in beyond_views(context, call.outputs[0]) if each.index not in inside]
        ends = {_end(context, each, axis) for each in uses}
        if len(ends) != 1 or None in ends or context.values[given].shape[axis] < SHORTEST:
            continue
        last, length = ends.pop() == "last", context.values[given].shape[axis]
        yield ONE_SIDED.found(
            call.module or call.name, f"Of the outputs of {call.module or call.name} the {'last' if last else 'first'} "
            f"of {length} is used, at which its {'backward' if last else 'forward'} direction has read one token.",
            f"It runs in both directions along axis {axis} of {context.values[given].shape}.",
            place=context.place(uses[0]),
        )  # fmt: skip


def _end(context: StepContext, use: Operation, axis: int) -> str | None:
    """`last` or `first` where an operation takes both directions at that position; None elsewhere."""
    given, index, out = argument(use, "self"), use.arguments.get("index"), first_output(use)
    if given is None or out is None or not isinstance(index, int) or not facts_of(use.name).keeps_numbers:
        return None
    shape = context.values[given].shape
    if use.arguments.get("dim", 0) % len(shape) != axis or any(
        facts_of(each.name).slices or facts_of(each.name).cuts for each in beyond_views(context, out)
    ):
        return None
    return {shape[axis] - 1: "last", 0: "first"}.get(index % shape[axis])


SWAPPED = Check(
    "states-swapped", "The two states of an LSTM are swapped", "warning",
    what="An LSTM, or an LSTM cell, begins with the cell state that an earlier run returned in place of its output, "
    "and with that output in place of the cell state.",
    why="The cell state is the memory, which only the gates change; the output, between -1 and 1, takes its place.",
    advice="Both return (h, c) and take (h, c): h, c = cell(x, (h, c)).",
    source="PyTorch's documentation of nn.LSTMCell: inputs (h_0, c_0), outputs (h_1, c_1)")  # fmt: skip


@SWAPPED.in_step
def _swapped(context: StepContext) -> Iterator[Finding]:
    returned: dict[tuple[int, int], Call] = {}
    for call in (each for each in context.graph.calls if each.name in ("lstm", "lstm_cell")):
        states = tuple(each.value for each in leaves(call.arguments[1:2], Ref))
        if len(states) == 2 and states[0] != states[1] and states[::-1] in returned:
            name = call.module or call.name
            yield SWAPPED.found(
                name, f"{name} takes {context.name(states[0])} for the output of the run before and "
                f"{context.name(states[1])} for its cell state, and they are the other way round.",
                f"Both have the shape {context.values[states[0]].shape}; the output is returned first.",
                place=call.place,
            )  # fmt: skip
            return
        if len(call.outputs) >= 2:
            returned[call.outputs[-2], call.outputs[-1]] = call
