"""Blocks that are alike: told once in full, the others as rows of numbers.

A deep model runs the same block again and again on other numbers. Two modules are alike where they are of one class,
stand side by side, and everything that happened in them is the same but for the numbers: operations with their options,
shapes, number types, which result goes where, which gradients came back, and what their checks say. The first of them
is told in full; what the others have of their own, figures and verdicts, stands in tables below each of its steps. Only
large blocks, and only where there are several, are worth that: a small model is told whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from chainrule.derivation.backprop import Derivation, Share, Step
from chainrule.document import Kind
from chainrule.graph.graph import Graph, Ref

BLOCKS = 3  # alike, from which on they are folded
STEPS = 8  # forward, from which on a block is large


@dataclass(frozen=True)
class Fold:
    """Blocks that are alike, by the paths of their modules, in the order in which they ran."""

    told: str
    others: tuple[str, ...]

    @property
    def blocks(self) -> tuple[str, ...]:
        """All of them, the one that is told in full first."""
        return (self.told, *self.others)


class Folding:
    """Which steps, values and parameters of a recording stand for which others."""

    def __init__(self, graph: Graph, derivation: Derivation, check: Callable[[Share], Kind]) -> None:
        self._graph = graph
        self._steps = derivation.steps
        self._check = check
        self.folds: tuple[Fold, ...] = tuple(self._found())

    def fold_of(self, step: Step) -> Fold | None:
        """The fold in which a step is one of those that are not told in full."""
        return self._folded_in.get(step.index)

    def alike(self, step: Step) -> tuple[tuple[str, Step], ...]:
        """The step itself and those that it stands for, each with the path of its block; empty where it is alone."""
        return self._alike.get(step.index, ())

    def told_for(self, step: Step) -> Step:
        """The step that is told in full in the place of this one; most often itself."""
        return self._told_for.get(step.index, step)

    def module_fold(self, path: str) -> Fold | None:
        """The fold in which a module is one of the blocks that are not told in full, or in one of them."""
        while path:
            if path in self._folded_modules:
                return self._folded_modules[path]
            path = path.rpartition(".")[0]
        return None

    def parameters_alike(self, name: str) -> tuple[tuple[str, str], ...]:
        """A parameter and those that it stands for: (path of the block, name); empty where it is alone."""
        return self._parameters.get(name, ())

    def parameter_fold(self, name: str) -> Fold | None:
        """The fold in which a parameter is one of those that are not told in full."""
        return self._folded_parameters.get(name)

    def last_step(self, path: str) -> Step:
        """The last step forward of a block."""
        return [step for step in self._in_block[path] if step.kind == "forward"][-1]

    def forward_steps(self, path: str) -> int:
        """How many steps forward a block has."""
        return sum(step.kind == "forward" for step in self._in_block[path])

    def backward_steps(self, path: str) -> list[Step]:
        """The steps back through a block."""
        return [step for step in self._in_block[path] if step.kind == "backward"]

    # -- what follows from the folds

    @cached_property
    def _alike(self) -> dict[int, tuple[tuple[str, Step], ...]]:
        found = {}
        for fold in self.folds:
            rows = zip(*(self._in_block[path] for path in fold.blocks), strict=True)
            found.update({row[0].index: tuple(zip(fold.blocks, row, strict=True)) for row in rows})
        return found

    @cached_property
    def _folded_in(self) -> dict[int, Fold]:
        return {step.index: fold for fold in self.folds for path in fold.others for step in self._in_block[path]}

    @cached_property
    def _told_for(self) -> dict[int, Step]:
        return {step.index: row[0][1] for row in self._alike.values() for _, step in row}

    @cached_property
    def _folded_modules(self) -> dict[str, Fold]:
        return {path: fold for fold in self.folds for path in fold.others}

    @cached_property
    def _parameters(self) -> dict[str, tuple[tuple[str, str], ...]]:
        found = {}
        for fold in self.folds:
            for name in self._graph.parameters:
                if name.startswith(f"{fold.told}."):
                    names = [path + name.removeprefix(fold.told) for path in fold.blocks]
                    if all(each in self._graph.parameters for each in names):
                        found[name] = tuple(zip(fold.blocks, names, strict=True))
        return found

    @cached_property
    def _folded_parameters(self) -> dict[str, Fold]:
        fold_of = {fold.told: fold for fold in self.folds}
        return {name: fold_of[told] for (told, _), *others in self._parameters.values() for _, name in others}

    # -- finding them

    @cached_property
    def _in_block(self) -> dict[str, list[Step]]:
        """The steps forward and back of each module, with those of the modules in it, in order of the forward pass.

        Steps back are put behind the step that they go back through, so that two blocks can be laid side by side.
        """
        found: dict[str, list[Step]] = {}
        told = [step for step in self._steps if step.kind == "forward"]
        place = {operation: place for place, step in enumerate(told) for operation in step.operations}
        worked = [step for step in self._steps if step.kind != "update"]
        for step in sorted(worked, key=lambda step: (place[step.operations[0]], step.kind == "backward", step.index)):
            path = self._module(step)
            while path:
                found.setdefault(path, []).append(step)
                path = path.rpartition(".")[0]
        return found

    def _module(self, step: Step) -> str:
        return self._graph.calls[step.call].module if step.call is not None else ""

    def _found(self) -> Iterator[Fold]:
        taken: list[str] = []
        for siblings in self._siblings():
            large = [
                path for path in siblings if sum(s.kind == "forward" for s in self._in_block.get(path, ())) >= STEPS
            ]
            if len(large) < BLOCKS or any(large[0].startswith(f"{path}.") for path in taken):
                continue
            kinds: dict[object, list[str]] = {}
            for path in large:
                kinds.setdefault(self._signature(path), []).append(path)
            for told, *others in kinds.values():
                if len(others) + 1 >= BLOCKS:
                    taken += [told, *others]
                    yield Fold(told, tuple(others))

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
        """All that happened in a block but its numbers and its names."""
        return tuple(_Signature(self._graph, path, self._in_block[path], self._check).lines())


class _Signature:
    """One block as lines that are the same for two blocks that are alike."""

    def __init__(self, graph: Graph, path: str, steps: list[Step], check: Callable[[Share], Kind]) -> None:
        self._graph = graph
        self._path = path
        self._steps = steps
        self._check = check
        self._met: dict[int, int] = {}  # values by the order in which the block meets them

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
        shares = tuple(
            (share.argument, share.item, share.summed, share.gradient is None, self._check(share),
             None if share.value is None else self._value(share.value))
            for share in step.shares
        )  # fmt: skip
        return "backward", step.backward, len(step.nodes), tuple(each is None for each in step.upstream), shares

    def _value(self, value: int) -> tuple[object, ...]:
        """A value by where the block met it first, what it is, and for a parameter of the block its name there."""
        told = self._graph.values[value]
        place = self._met.setdefault(value, len(self._met))
        own = told.kind == "parameter" and told.name.startswith(f"{self._path}.")
        name = told.name.removeprefix(self._path) if own else None
        return place, told.shape, told.dtype, told.requires_grad, name

    def _written(self, item: object) -> str:
        """An operation's arguments as text, each tensor by where the block met it."""
        if isinstance(item, Ref):
            return str(self._value(item.value))
        if isinstance(item, dict):
            return ", ".join(f"{name}={self._written(each)}" for name, each in item.items())
        if isinstance(item, (list, tuple)):
            return f"[{', '.join(map(self._written, item))}]"
        return repr(item)
