"""The program of a recorded step: its forward pass, every gradient, and the update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from chainrule.capture.data_parallel import storage_of
from chainrule.derivation.backprop import walked
from chainrule.document import Moved, Program
from chainrule.document import Operand as Encoded
from chainrule.errors import brief
from chainrule.execution.experiment import written_by
from chainrule.execution.lineage import Lineage, gives_number
from chainrule.graph.comparison import compare
from chainrule.graph.graph import Graph, Node, Operation, Ref, Value, references
from chainrule.graph.reexecution import WriteThroughView, apart
from chainrule.graph.snapshot import ParameterUpdate, Snapshot, has_numbers
from chainrule.graph.trees import map_leaves, tensors_in
from chainrule.lab.instructions import NoProgramError, Writer, numbers
from chainrule.lab.leaves import Carried, leaves_of
from chainrule.lab.tracing import Tracer, overlap
from chainrule.rules.facts import base_name, facts_of
from chainrule.rules.optimizers import changeable, hyperparameters, worked_out

NUMBERS = 3_000  # in all values of a step, up to which it has a program


def program_of(graph: Graph, rows: Mapping[int, int]) -> tuple[Program | None, str]:
    """The program of a small step, or None with the reason why a page has none."""
    count = sum(prod(graph.values[each].shape) for each in rows)
    if count > NUMBERS:
        return None, f"the step has {count:,} numbers, and a lab takes up to {NUMBERS:,}."
    try:
        return program(graph, rows), ""
    except NoProgramError as error:
        return None, f"{error}."
    except Exception as error:  # a page is written whatever an operation cannot do
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        return None, f"its operations cannot be taken apart ({said})."


def program(graph: Graph, rows: Mapping[int, int]) -> Program:
    """The program of a step, for the values that have a row.

    Raises NoProgramError, with the reason as a page states it, where the step does not come down to the primitives.
    """
    with apart(), torch.no_grad():
        return _Tracing(graph, rows).program()


class _Tracing:
    def __init__(self, graph: Graph, rows: Mapping[int, int]) -> None:
        self.graph, self.rows = graph, rows
        losses = [each.loss for each in graph.accumulating if each.loss is not None]
        if len(losses) != 1:
            count = f"{len(losses)} backward passes began at" if losses else "no backward pass began at"
            raise NoProgramError(f"{count} a loss in it, and a lab goes back once")
        if graph.values[losses[0]].snapshot.shape not in ((), (1,)):
            raise NoProgramError("its loss is not a single number")
        if any(graph.values[each].dtype.is_complex for each in rows):
            raise NoProgramError("it computes with complex numbers, which the primitives do not have")
        if graph.hooked:
            raise NoProgramError("a hook changed a gradient")
        begun = min(each.position for each in graph.backwards)
        read = list(_read_before(graph, begun))
        self.loss = losses[0]
        made = [each for each in read if graph.values[each].operation is not None]
        carried = Carried(graph, leaves_of(graph, [self.loss, *made], rows)[0])
        left = [each for one in carried.writers for each in one.outputs if each is not None]
        leaves, computed = leaves_of(graph, [self.loss, *made, *left], rows)
        self.leaves, self.read = sorted({*leaves, *read} - {*made}), read
        self.out_of_sight = [each for each in carried.written if each not in rows]
        makers = {graph.values[each].operation for each in computed} | {each.index for each in carried.writers}
        self.operations = [operation for operation in graph.operations if operation.index in makers]
        self.unreturned = Lineage(graph).unreturned
        if not all(graph.values[each].has_numbers for each in (*self.leaves, *rows)):
            raise NoProgramError("not all of its numbers were kept")
        self.overtaking: dict[int, list[Value]] = {}  # by operation: values of memory that it wrote to
        for value in graph.values:
            if value.earlier is not None and value.operation is not None:
                self.overtaking.setdefault(value.operation, []).append(value)
        self.writer = Writer()
        self.tracer = Tracer(self.writer)
        self.settings: dict[tuple[int, str, float], Tensor] = {}
        self.arriving: list[tuple[int, int]] = []
        self.memory: dict[int, Tensor] = {}  # of each leaf, to which an operation may write

    def program(self) -> Program:
        data = {each: self.graph.values[each].snapshot.tensor.clone() for each in self.leaves}
        variables = {each: self.tracer.variable(found) for each, found in data.items() if each in self.rows}
        slots = {each: self.tracer.operand(found).slot for each, found in variables.items()}
        step = self.tracer.variable(torch.tensor(1.0, dtype=torch.float64))
        values, gradients = self._forward_and_back({**data, **variables})
        values |= {each: variables[each] for each in values if each in variables}
        results = [self._encoded(each) for each in (*values.values(), *gradients.values())]
        updates, without = [], ""
        try:
            if self.out_of_sight:
                buffer = self.graph.values[self.out_of_sight[0]]
                raise NoProgramError(f"the forward pass writes to {buffer.name}, which the page does not show")
            updates = list(self._updates(variables, gradients, step))
            results += [
                each for one in updates for each in (one.first, one.later, *(e for s in one.state for e in s[3:]))
            ]
        except NoProgramError as error:
            updates, without = [], str(error)
        except Exception as error:  # a formula that does not take a variable
            updates, without = [], f"the formula of the update cannot be taken apart ({brief(error)})"
        carried = self._carried(slots)
        results += [operand for _, operand in carried]
        guards = [(self.writer.encoded(operand), number) for operand, number in self.tracer.guards]
        results += [operand for operand, _ in guards]
        needed = self.writer.needed(results)
        return Program(
            **self.writer.parts(results),
            guards=tuple(guards),
            inputs=tuple((self.rows[each], slot) for each, slot in slots.items()),
            values=tuple(self._result(each, found, self.graph.values[each].data) for each, found in values.items()),
            gradients=tuple(
                self._result(each, found, self.graph.values[each].grad) for each, found in gradients.items()
            ),
            arriving=tuple(each for each in self.arriving if each[1] in needed),
            loss=self.rows[self.loss],
            settings=tuple(
                (name, self.tracer.operand(each).slot, value) for (_, name, value), each in self.settings.items()
            ),
            step=(self.tracer.operand(step).slot, self._first_step()),
            updates=tuple(updates),
            without=without,
            carried=carried,
        )

    def _carried(self, slots: Mapping[int, int]) -> tuple[tuple[int, Encoded], ...]:
        """The buffers that the forward pass wrote to, with what it left in each for the next step."""
        buffers = [each for each in slots if self.graph.values[each].kind == "buffer"]
        left = ((each, self._encoded(self.memory[each])) for each in buffers)
        return tuple((self.rows[each], operand) for each, operand in left if operand != slots[each])

    def _result(self, value: int, found: Tensor, recorded: Tensor | None) -> tuple[int, Encoded, tuple[Any, ...]]:
        if recorded is None or recorded.shape != found.shape:
            raise NoProgramError("not all of its numbers were kept")
        return self.rows[value], self._encoded(found), numbers(recorded)

    def _encoded(self, tensor: Tensor) -> Encoded:
        return self.writer.encoded(self.tracer.operand(tensor))

    # -- forward and back ---------------------------------------------------------------------------------------------

    def _forward_and_back(self, variables: dict[int, Tensor]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        with self.tracer:  # on copies, as an operation may write to a leaf
            self.memory = {each: found.clone() for each, found in variables.items()}
            values = self._forward(dict(self.memory))
            for each in self.read:
                values[each].item()  # as Python read it: the program holds while this number stays the same
            gradients = self._gradients(values)
        return (
            {each: values[each] for each in self.rows if each in values},
            {each: gradients[each] for each in self.rows if each in gradients},
        )

    def _forward(self, values: dict[int, Tensor]) -> dict[int, Tensor]:
        """Run the operations."""
        for operation in self.operations:
            draw = facts_of(operation.name).draw
            if draw is not None and None not in operation.outputs:
                self._use_draw(operation, values, *draw)
            elif operation.random_state is not None and operation.arguments.get("dropout_p") != 0:
                self._check_draw(operation)
                drawn = {each: self.graph.values[each].data for each in operation.outputs if each is not None}
                values |= {each: data.clone() for each, data in drawn.items() if data is not None}
            else:
                self._run(operation, values)
        return values

    def _use_draw(
        self, operation: Operation, values: dict[int, Tensor], slot: int, result: Callable[..., Tensor]
    ) -> None:
        """The result of what was drawn, as an operation gives it beside."""
        arguments = map_leaves(lambda leaf: values[leaf.value] if isinstance(leaf, Ref) else leaf, operation.arguments)
        for place, value in enumerate(operation.outputs):
            assert value is not None
            drawn = self.graph.values[operation.outputs[slot]].snapshot.tensor.clone()  # type: ignore[index]
            values[value] = drawn if place == slot else result(arguments, draw=drawn)

    def _run(self, operation: Operation, values: dict[int, Tensor]) -> None:
        """Run one operation. A value whose memory it writes to stays as a copy; the memory is that of a later value."""
        assert operation.function is not None
        function: Any = getattr(operation.function, "function", None)
        if not hasattr(function, "_schema") and not isinstance(function, WriteThroughView):
            raise NoProgramError(f"`{operation.name}` is code of the user's own")
        if any(each not in values for *_, each in references(operation.arguments)):
            raise NoProgramError(f"`{operation.name}` takes what something unseen wrote")
        arguments = map_leaves(lambda leaf: values[leaf.value] if isinstance(leaf, Ref) else leaf, operation.arguments)
        sharing: dict[int, Tensor] = {}
        targets = list(tensors_in([arguments[each] for each in arguments if each in written_by(operation.function)]))
        for target in targets:
            here = {each: data for each, data in values.items() if storage_of(data) == storage_of(target)}
            values |= {each: data.clone() for each, data in here.items() if overlap(data, target)}
            sharing |= here
        found = operation.function(arguments, gradients=operation.node is not None)
        outs = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        values |= {each: data for each, data in zip(operation.outputs, outs, strict=False) if each is not None}
        hidden = [each for each in targets if not any(each is one for one in outs)]
        values |= zip(self.unreturned.get(operation.index, ()), hidden, strict=False)
        for value in self.overtaking.get(operation.index, ()):
            if value.earlier in sharing and value.index not in operation.outputs:
                values[value.index] = sharing[value.earlier]

    def _check_draw(self, operation: Operation) -> None:
        """What is drawn may depend on shapes alone: it stays as it was drawn."""
        named = base_name(operation.name)
        fills = named.endswith("_") and len(list(references(operation.arguments))) == 1
        if not fills and not named.endswith("_like") and list(references(operation.arguments)):
            raise NoProgramError(f"`{named}` draws random numbers that depend on others")

    def _gradients(self, values: dict[int, Tensor]) -> dict[int, Tensor]:
        """The gradient of each value, by the rules."""
        filled = tuple(
            replace(each, snapshot=each.snapshot.filled(values[each.index])) if each.index in values else each
            for each in self.graph.values
        )
        graph = replace(self.graph, values=filled, nodes=tuple(map(self._without_gradients, self.graph.nodes)))
        steps, of_passes = walked(graph, self._arrived)
        for step in steps:
            if not all(has_numbers(each.gradient) for each in step.contributions if each.gradient is not None):
                raise NoProgramError(step.failure or f"no rule covers {self.graph.nodes[step.node].name}")
        return graph.summed(of_passes)

    def _arrived(self, value: int, gradient: Tensor) -> Tensor:
        """What arrives at the operation that made a row, in a slot of its own: all that comes back is linear in it."""
        if value not in self.rows or not gradient.numel() or not has_numbers(gradient):
            return gradient
        copy, slot = self.tracer.copied(gradient)
        self.arriving.append((self.rows[value], slot))
        return copy

    def _without_gradients(self, node: Node) -> Node:
        """A node without what autograd computed, but for the seed, so that nothing recorded is taken for traced."""
        seeds = {index for each in self.graph.backwards for index, _ in each.roots}

        def stripped(snapshots: tuple[Snapshot | None, ...]) -> tuple[Snapshot | None, ...]:
            return tuple(each and each.filled(None) for each in snapshots)

        executions = tuple(
            replace(
                each, arrived=each.arrived if node.index in seeds else stripped(each.arrived), sent=stripped(each.sent)
            )
            for each in node.executions
        )
        return replace(node, executions=executions)

    # -- the update ---------------------------------------------------------------------------------------------------

    def _first_step(self) -> int:
        steps = [each.state_before.get("step") for one in self.graph.updates for each in one.parameters]
        return int(next((each for each in steps if each is not None), 0)) + 1

    def _updates(self, values: dict[int, Tensor], gradients: dict[int, Tensor], step: Tensor) -> Iterator[Moved]:
        seen: set[int] = set()
        for place, one in enumerate(self.graph.updates):
            for each in one.parameters:
                if each.value is None or each.value not in self.rows or each.grad is None:
                    continue
                if each.value in seen or each.value not in gradients or each.value not in values:
                    raise NoProgramError(f"{each.name} is updated from something else than the gradient of this step")
                known = self.graph.values[each.value].grad
                if known is None or not compare(each.grad, known).agrees:
                    raise NoProgramError(
                        f"the optimizer used another gradient of {each.name} than this step's backward gave"
                    )
                seen.add(each.value)
                yield self._moved(each, one.optimizer, place, values[each.value], gradients[each.value], step)

    def _moved(
        self, update: ParameterUpdate, optimizer: str, place: int, parameter: Tensor, gradient: Tensor, step: Tensor
    ) -> Moved:
        known = {k: v for k, v in update.state_before.items() if isinstance(v, Tensor) and k != "step"}
        state = {name: self.tracer.variable(each) for name, each in known.items()}
        first = self._step(update, optimizer, place, parameter, gradient, step, state)
        kept = {name: each for name, each in first.items() if name != ""}
        later_state = state | {name: self.tracer.variable(each) for name, each in kept.items() if name not in state}
        later = first
        if later_state.keys() != state.keys():
            later = self._step(update, optimizer, place, parameter, gradient, step, later_state)
        return Moved(
            self.rows[update.value],  # type: ignore[index]
            self._encoded(first[""]),
            self._encoded(later[""]),
            tuple(
                (name, self.tracer.operand(data).slot, numbers(known[name]) if name in known else (),
                 self._encoded(first[name]), self._encoded(later[name]))
                for name, data in later_state.items()
                if name in first
            ),
        )  # fmt: skip

    def _step(
        self, update: ParameterUpdate, optimizer: str, place: int, parameter: Tensor, gradient: Tensor, step: Tensor,
        state: dict[str, Tensor],
    ) -> dict[str, Tensor]:  # fmt: skip
        """The parameter after the step (""), and each tensor of the state."""
        plain = hyperparameters(update.options, update.state_before)
        settings = {name: self._setting(place, name, plain[name]) for name in changeable(plain)}
        whole = replace(
            update, start=update.start.filled(parameter), gradient=update.start.filled(gradient),
            state_before={"step": update.state_before.get("step", 0), **state},
        )  # fmt: skip
        with self.tracer:
            made = worked_out(whole, optimizer, {**settings, "t": step, "s": step - 1})
        if made is None:
            raise NoProgramError(f"no formula covers the update of {optimizer}")
        return {"": made.terms[-1].value, **made.after}

    def _setting(self, place: int, name: str, value: float) -> Tensor:
        key = place, name, float(value)
        if key not in self.settings:
            self.settings[key] = self.tracer.variable(torch.tensor(float(value), dtype=torch.float64))
        return self.settings[key]


def _read_before(graph: Graph, position: int) -> Iterator[int]:
    """The whole numbers and truth values that Python code read out of tensors, as values.

    Raises NoProgramError where it read another number, which it may have computed with.
    """
    for operation in graph.operations:
        if operation.index < position and gives_number(operation):
            given = [value for *_, value in references(operation.arguments)]
            if len(given) != 1 or not _is_whole(graph.values[given[0]]):
                place = graph.calls[operation.call].place if operation.call is not None else None
                where = f" at {place}" if place is not None else ""
                raise NoProgramError(f"a number was read out of a tensor{where}, and what became of it is not known")
            yield given[0]


def _is_whole(value: Value) -> bool:
    return (
        value.has_numbers
        and value.data is not None
        and value.data.numel() == 1
        and not (value.dtype.is_floating_point or value.dtype.is_complex)
    )
