"""Repeated blocks: one of them is shown in full, the others as rows of statistics.

A deep model runs the same block again and again on other numbers. Two modules are equivalent if they are of one class,
stand side by side, and everything that happened in them is the same but for the numbers: operations with their options,
shapes, dtypes, which result goes where, which gradients came back, and what their checks say. The first of them is
shown in full; tables below each of its steps have the statistics and verdicts of the others. This pays only for large
blocks of which there are several: a small model is shown whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from chainrule.derivation.backprop import Contribution, Derivation, Step
from chainrule.document import Kind
from chainrule.graph.graph import Graph, Ref
from chainrule.graph.trees import map_leaves

BLOCKS = 3  # equivalent ones, from which on they are folded
STEPS = 8  # forward steps, from which on a block is large


@dataclass(frozen=True)
class Repetition:
    """Equivalent blocks, by the paths of their modules, in the order in which they ran."""

    shown: str
    others: tuple[str, ...]

    @property
    def blocks(self) -> tuple[str, ...]:
        """All of them, the shown one first."""
        return (self.shown, *self.others)


class RepeatedBlocks:
    """Which steps, modules and parameters of a recording are shown, and which others each of them stands for."""

    def __init__(self, graph: Graph, derivation: Derivation, check: Callable[[Contribution], Kind]) -> None:
        self._graph = graph
        self._steps = derivation.steps
        self._check = check
        self.repetitions: tuple[Repetition, ...] = tuple(self._found())

    def of_step(self, step: Step) -> Repetition | None:
        """The repetition in which a step belongs to a block that is not shown."""
        return self._hidden_steps.get(step.index)

    def equivalent_steps(self, step: Step) -> tuple[tuple[str, Step], ...]:
        """A shown step and those that it stands for, each with the path of its block; empty where there are none."""
        return self._equivalent_steps.get(step.index, ())

    def shown_for(self, step: Step) -> Step:
        """The step that is shown in place of this one; most often itself."""
        return self._shown_for.get(step.index, step)

    def of_module(self, path: str) -> Repetition | None:
        """The repetition in which a module is a block that is not shown, or part of one."""
        while path:
            if path in self._hidden_modules:
                return self._hidden_modules[path]
            path = path.rpartition(".")[0]
        return None

    def equivalent_parameters(self, name: str) -> tuple[tuple[str, str], ...]:
        """A shown parameter and those that it stands for: (path of the block, name); empty where there are none."""
        return self._equivalent_parameters.get(name, ())

    def of_parameter(self, name: str) -> Repetition | None:
        """The repetition in which a parameter is not shown."""
        return self._hidden_parameters.get(name)

    def last_step(self, path: str) -> Step:
        """The last forward step of a block."""
        return [step for step in self._in_block[path] if step.kind == "forward"][-1]

    def forward_steps(self, path: str) -> int:
        """The number of forward steps of a block."""
        return sum(step.kind == "forward" for step in self._in_block[path])

    def backward_steps(self, path: str) -> list[Step]:
        """The backward steps of a block."""
        return [step for step in self._in_block[path] if step.kind == "backward"]

    # -- what follows from the repetitions

    @cached_property
    def _equivalent_steps(self) -> dict[int, tuple[tuple[str, Step], ...]]:
        found = {}
        for each in self.repetitions:
            rows = zip(*(self._in_block[path] for path in each.blocks), strict=True)
            found.update({row[0].index: tuple(zip(each.blocks, row, strict=True)) for row in rows})
        return found

    @cached_property
    def _hidden_steps(self) -> dict[int, Repetition]:
        return {step.index: each for each in self.repetitions for path in each.others for step in self._in_block[path]}

    @cached_property
    def _shown_for(self) -> dict[int, Step]:
        return {step.index: row[0][1] for row in self._equivalent_steps.values() for _, step in row}

    @cached_property
    def _hidden_modules(self) -> dict[str, Repetition]:
        return {path: each for each in self.repetitions for path in each.others}

    @cached_property
    def _equivalent_parameters(self) -> dict[str, tuple[tuple[str, str], ...]]:
        found = {}
        for each in self.repetitions:
            for name in self._graph.parameters:
                if name.startswith(f"{each.shown}."):
                    names = [path + name.removeprefix(each.shown) for path in each.blocks]
                    if all(other in self._graph.parameters for other in names):
                        found[name] = tuple(zip(each.blocks, names, strict=True))
        return found

    @cached_property
    def _hidden_parameters(self) -> dict[str, Repetition]:
        of_block = {each.shown: each for each in self.repetitions}
        return {
            name: of_block[shown] for (shown, _), *others in self._equivalent_parameters.values() for _, name in others
        }

    # -- finding them

    @cached_property
    def _in_block(self) -> dict[str, list[Step]]:
        """The forward and backward steps of each module, with those of its submodules, in order of the forward pass.

        A backward step follows the forward step that it goes back through, so that two blocks can be compared in order.
        """
        found: dict[str, list[Step]] = {}
        forward = [step for step in self._steps if step.kind == "forward"]
        place = {operation: place for place, step in enumerate(forward) for operation in step.operations}
        steps = [step for step in self._steps if step.kind != "update"]
        for step in sorted(steps, key=lambda step: (place[step.operations[0]], step.kind == "backward", step.index)):
            path = self._module(step)
            while path:
                found.setdefault(path, []).append(step)
                path = path.rpartition(".")[0]
        return found

    def _module(self, step: Step) -> str:
        return self._graph.calls[step.call].module if step.call is not None else ""

    def _found(self) -> Iterator[Repetition]:
        taken: list[str] = []
        for siblings in self._siblings():
            large = [path for path in siblings if path in self._in_block and self.forward_steps(path) >= STEPS]
            if len(large) < BLOCKS or any(large[0].startswith(f"{path}.") for path in taken):
                continue
            kinds: dict[object, list[str]] = {}
            for path in large:
                kinds.setdefault(self._signature(path), []).append(path)
            for shown, *others in kinds.values():
                if len(others) + 1 >= BLOCKS:
                    taken += [shown, *others]
                    yield Repetition(shown, tuple(others))

    def _siblings(self) -> list[list[str]]:
        """Modules of one class that stand side by side, outer ones first, in the order in which they ran."""
        found: dict[tuple[str, str], list[str]] = {}
        for path, class_name in {module.path: module.class_name for module in self._graph.modules}.items():
            if path:
                found.setdefault((path.rpartition(".")[0], class_name), []).append(path)
        order = {path: place for place, path in enumerate(self._in_block)}
        groups = [sorted(paths, key=lambda path: order.get(path, len(order))) for paths in found.values()]
        return sorted(groups, key=lambda paths: paths[0].count("."))

    def _signature(self, path: str) -> tuple[object, ...]:
        """All that happened in a block, without its numbers and names."""
        return tuple(_Signature(self._graph, path, self._in_block[path], self._check).lines())


class _Signature:
    """One block as lines that are the same for equivalent blocks."""

    def __init__(self, graph: Graph, path: str, steps: list[Step], check: Callable[[Contribution], Kind]) -> None:
        self._graph = graph
        self._path = path
        self._steps = steps
        self._check = check
        self._seen: dict[int, int] = {}  # values by the order of their first use in the block

    def lines(self) -> Iterator[tuple[object, ...]]:
        for module in self._graph.modules:
            if f"{module.path}.".startswith(f"{self._path}."):
                yield module.path.removeprefix(self._path), module.class_name, module.training
        for step in self._steps:
            yield self._forward(step) if step.kind == "forward" else self._backward(step)

    def _forward(self, step: Step) -> tuple[object, ...]:
        graph = self._graph
        module = graph.calls[step.call].module.removeprefix(self._path) if step.call is not None else ""
        operations = tuple(
            (graph.operations[each].name, self._written(graph.operations[each].arguments)) for each in step.operations
        )
        arguments = tuple((name, item, self._value(value)) for name, item, value in step.arguments)
        return (
            "forward", module, step.rule.name if step.rule is not None else None, operations, arguments,
            tuple(self._value(value) for value in step.outputs),
        )  # fmt: skip

    def _backward(self, step: Step) -> tuple[object, ...]:
        contributions = tuple(
            (each.argument, each.item, each.summed, each.gradient is None, self._check(each),
             None if each.value is None else self._value(each.value))
            for each in step.contributions
        )  # fmt: skip
        return "backward", step.backward, len(step.nodes), tuple(each is None for each in step.upstream), contributions

    def _value(self, index: int) -> tuple[object, ...]:
        """A value by its first use in the block, its type, and for a parameter of the block its name there."""
        value = self._graph.values[index]
        place = self._seen.setdefault(index, len(self._seen))
        own = value.kind == "parameter" and value.name.startswith(f"{self._path}.")
        name = value.name.removeprefix(self._path) if own else None
        return place, value.shape, value.dtype, value.requires_grad, name

    def _written(self, arguments: dict[str, Any]) -> str:
        """An operation's arguments as text, each tensor by its first use in the block."""
        return repr(map_leaves(lambda leaf: self._value(leaf.value) if isinstance(leaf, Ref) else leaf, arguments))
