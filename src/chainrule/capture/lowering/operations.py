"""Reads the tape's operations in order: the values that each took and made, and its autograd node.

Nodes have the tape's numbers here; `nodes` puts them into forward order afterwards.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from chainrule.capture.function_hooks import is_of_operator
from chainrule.capture.lowering.tensor_versions import TensorVersions, data_after
from chainrule.capture.raw_records import RawFunction
from chainrule.capture.tape import Tape
from chainrule.capture.traits import Traits
from chainrule.graph.graph import Operation, Ref, references
from chainrule.graph.reexecution import Reexecution, WriteThroughView, offset_in
from chainrule.graph.trees import map_leaves, tensors_in
from chainrule.pytorch_internals import SCRIPTED, batched
from chainrule.rules.facts import STRIDED, facts_of

_nested = (Tensor, list, tuple)  # arguments that are, or may hold, tensors


@dataclass(frozen=True, slots=True)
class Form:
    """What is the same in all runs of an ATen operation, read off its schema once."""

    name: str
    arguments: tuple[tuple[str, Any], ...]  # their names and defaults
    traits: Traits
    function: Reexecution

    @classmethod
    @cache
    def of(cls, func: Any) -> Form:
        """The form of an operation."""
        arguments = tuple((each.name, each.default_value) for each in func._schema.arguments)
        return cls(str(func), arguments, Traits.of(func), Reexecution(func))

    def by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """The arguments of one run by their names in the schema, defaults included."""
        given = {name: value for (name, _), value in zip(self.arguments, args, strict=False)}
        for name, default in self.arguments[len(args) :]:
            given[name] = kwargs.get(name, default) if kwargs else default
        return given


@dataclass(frozen=True, slots=True)
class _OpenFunction:
    """An `autograd.Function` whose operations are being read."""

    function: RawFunction
    node: int
    arguments: dict[str, Any]


class Lowering:
    """The operations and values of a tape, matched with autograd's nodes.

    `buffers` are the ids of the modules' buffers: a leaf among them is no input.
    """

    def __init__(self, tape: Tape, buffers: set[int]) -> None:
        self.tape = tape
        self.values = TensorVersions(tape)
        self.operations: list[Operation] = []
        self.at: dict[int, int] = {}  # position on the tape -> operation
        self.operation_of: dict[int, int] = {}  # node -> operation
        self.outputs_of: dict[int, dict[int, int]] = {}  # node -> slot -> value
        self.unseen: list[tuple[int, int, int]] = []  # (node, slot, value) where a write hid from autograd
        self._buffers = buffers
        self._nodes_at: dict[int, list[int]] = {}
        self._views: dict[int, list[int]] = {}  # id of a view -> the nodes that writes made for it
        self._index_nodes()
        self._read()
        self.leaves = Leaves(self)

    def _index_nodes(self) -> None:
        for index, node in enumerate(self.tape.nodes):
            node.edges = node.edges or node.node.next_functions
            if node.operation is not None:
                self._nodes_at.setdefault(node.operation, []).append(index)
            elif node.view_from is not None:
                for tensor in node.outputs.values():
                    self._views.setdefault(id(tensor), []).append(index)

    def _read(self) -> None:
        starts: dict[int, list[RawFunction]] = {}
        for function in self.tape.functions:
            starts.setdefault(function.first, []).append(function)
        unused = self._saved_copies()
        updates, replaced, unread = list(self.tape.updates), list(self.tape.replaced), list(self.tape.unread)
        position = 0
        opened: list[_OpenFunction] = []
        while position < len(self.tape.operations):
            while updates and updates[0].position <= position:
                self.values.update(updates.pop(0))
            while replaced and replaced[0][0] <= position:
                self.values.replace(*replaced.pop(0)[1:])
            while unread and unread[0].position <= position:
                run = unread.pop(0)
                self.values.forget(run.tensor, run.copies)
            self._read_functions(opened, position)
            for function in starts.pop(position, ()):  # outermost first
                node = self._node_of(function)
                if node is not None and node not in self.operation_of and all(node != each.node for each in opened):
                    opened.append(_OpenFunction(function, node, self._arguments(function)))
            self._read_functions(opened, position)  # also one that ran no operation
            if not opened and position not in unused:
                self._read_operation(position)
            position += 1
        self._read_functions(opened, position)
        for index, raw in enumerate(self.tape.nodes):  # nodes whose outputs no operation has seen
            if index not in self.operation_of and not hasattr(raw.node, "variable"):
                self._read_unmatched(index)

    def _saved_copies(self) -> set[int]:
        """The `detach` operations by which autograd saves results for itself: nothing ever uses them."""
        operations = enumerate(self.tape.operations)
        copies = {id(out): place for place, (func, _, _, out, _, _) in operations if Traits.of(func).detaches}
        for _, args, kwargs, *_ in self.tape.operations if copies else ():
            for tensor in tensors_in((args, kwargs)):
                copies.pop(id(tensor), None)
        for call in self.tape.calls if copies else ():
            for tensor in tensors_in(call.output):
                copies.pop(id(tensor), None)
        return set(copies.values())

    # -- an ATen operation --------------------------------------------------------------------------------------------

    def _read_operation(self, position: int) -> None:
        func, args, kwargs, out, call, state = self.tape.operations[position]
        form = Form.of(func)
        given = form.by_name(args, kwargs)
        arguments = {
            name: self._refs(value, position) if isinstance(value, _nested) else value for name, value in given.items()
        }
        written = [t for each in form.traits.written(args, kwargs or {}) for t in tensors_in(each)]
        nodes = [n for n in self._nodes_at.get(position, []) if _is_of_operation(self.tape.nodes[n].node)]
        function = form.function
        base = self.tape.original(written[0])._base if len(written) == 1 else None
        if base is not None:
            arguments = {"base": Ref(self._value(base, position)), **arguments}
            name = next(name for name, value in given.items() if value is written[0])
            whole, part = (data_after(self.tape, each, position - 1) for each in (base, written[0]))
            # A copy may have its own memory: only the tensor on the tape knows its place in the base.
            function = Reexecution(WriteThroughView(func, name, whole, part, offset_in(base, written[0])))
        index = self.at[position] = len(self.operations)
        operation = Operation(index, form.name, function, arguments, (), call, nodes[0] if nodes else None, state)
        self.operations.append(operation)  # before its outputs, which may bring operations of their own
        for tensor in written:
            self.values.overwrite(tensor, index)
        flat = list(tensors_in(out)) if isinstance(out, (tuple, list)) else [out]
        if base is not None:
            flat = [base, *(tensor for tensor in flat if tensor is not base)]
        self.operations[index] = replace(operation, outputs=self._outputs(flat, written, position, index, nodes))

    def _outputs(
        self, flat: list[Any], written: list[Tensor], position: int, index: int, nodes: list[int]
    ) -> tuple[int | None, ...]:
        matched = {id(t): (n, slot) for n in nodes for slot, t in self.tape.nodes[n].outputs.items()}
        outputs: list[int | None] = []
        for slot, tensor in enumerate(flat):
            if not isinstance(tensor, Tensor):
                outputs.append(None)
                continue
            before = self.values.latest(tensor)
            value = self.values.new(tensor, position, operation=index, slot=slot)
            outputs.append(value)
            if id(tensor) in matched:
                node, output = matched[id(tensor)]
                self._match(node, output, value, index)
            elif not self._lead_through_base(tensor, value, position + 1) and before is not None:
                self._write_unseen(value, before)
        for tensor in written:  # written to, but not returned
            if not any(tensor is each for each in flat):
                self.values.new(tensor, position, operation=index, slot=len(outputs))
        return tuple(outputs)

    def _refs(self, tree: Any, position: int) -> Any:
        if isinstance(tree, Tensor):  # as most arguments are
            return Ref(self._value(tree, position))
        return map_leaves(
            lambda each: self._refs(each, position) if isinstance(each, Tensor) else each, tree, lists=True
        )

    def _value(self, tensor: Tensor, position: int) -> int:
        """The value of a tensor that the operation at `position` takes; a new one if it was written to meanwhile."""
        known = self.values.now(tensor)
        if known is not None:
            return known
        writer = self.values.stale.pop(id(tensor), None)
        earlier = self.values.latest(tensor)
        value = self.values.new(tensor, position - 1, operation=writer)
        draft = self.values[value]
        draft.earlier = earlier if writer is not None else None
        if self._lead_through_base(tensor, value, position):
            draft.operation = len(self.operations) - 1
            return value
        with suppress(RuntimeError):
            original = self.tape.original(tensor)
            slot, node = original.output_nr, self.tape.number_of.get(original.grad_fn)
            if node is not None and slot not in self.outputs_of.get(node, {}):
                self.tape.nodes[node].outputs.setdefault(slot, tensor)
                draft.node = node
                self.outputs_of.setdefault(node, {})[slot] = value
                return value
        if writer is None and draft.kind != "parameter":
            draft.kind = "buffer" if id(tensor) in self._buffers else "input"
        return value

    # -- the nodes of values ------------------------------------------------------------------------------------------

    def _match(self, node: int, output: int, value: int, operation: int) -> None:
        self.values[value].node = node
        self.outputs_of.setdefault(node, {})[output] = value
        self.operation_of.setdefault(node, operation)
        if (view := self.tape.nodes[node].remade) is not None:
            self.values.share(value, view)

    def _lead_through_base(self, view: Tensor, value: int, position: int) -> bool:
        """Add an `as_strided` of the base, for the node that autograd made for a view of overwritten memory."""
        nodes = ((n, self.tape.nodes[n].view_from) for n in reversed(self._views.get(id(view), [])))
        made = (n for n, begins in nodes if begins is not None and begins <= position and n not in self.operation_of)
        if (node := next(made, None)) is None:
            return False
        base = self.tape.original(view)._base
        assert base is not None
        index = len(self.operations)
        then = data_after(self.tape, view, self.values[value].created)  # its shape may be changed in place later
        arguments = {
            "self": Ref(self._value(base, position)),
            "size": list(then.shape),
            "stride": list(then.stride()),
            "storage_offset": view.storage_offset(),  # a copy may have its own memory
        }
        self.operations.append(Operation(index, str(STRIDED), Reexecution(STRIDED), arguments, (value,), None, node))
        self._match(node, self.tape.original(view).output_nr, value, index)
        return True

    def _write_unseen(self, value: int, before: int) -> None:
        """A write under `no_grad`: the tensor keeps its node, which now belongs to the new value."""
        node, tensor = self.values[before].node, self.values[value].tensor
        if node is not None and self.tape.original(tensor).requires_grad:
            self.values[value].node = node
            self.unseen.append((node, self.tape.original(tensor).output_nr, value))

    # -- what is known by its node ------------------------------------------------------------------------------------

    def _node_of(self, function: RawFunction) -> int | None:
        """The node of an `autograd.Function` that was applied (None: no gradient is wanted of it).

        Its forward may end with operations that no torch function was seen to call (`torch.from_numpy`).
        """
        end = function.last
        while end < len(self.tape.operations) and self.tape.operations[end][4] is None:
            end += 1
        for position in range(end - 1, function.first - 1, -1):
            for node in self._nodes_at.get(position, []):
                if getattr(self.tape.nodes[node].node, "_forward_cls", None) is function.cls:
                    function.last = max(function.last, position + 1)
                    return node
        unmatched = ((i, raw) for i, raw in enumerate(self.tape.nodes) if i not in self.operation_of)
        applied = (i for i, raw in unmatched if getattr(raw.node, "_forward_cls", None) is function.cls)
        return next((i for i in applied if self.tape.nodes[i].operation is None), None)

    def _arguments(self, function: RawFunction) -> dict[str, Any]:
        names = _parameter_names(function.cls, len(function.arguments))
        given = zip(names, function.arguments, strict=True)
        return {name: self._refs(value, function.first) for name, value in given}

    def _read_functions(self, opened: list[_OpenFunction], position: int) -> None:
        """Read those that end before a position, innermost first."""
        while opened and opened[-1].function.last <= position:
            self._read_function(opened.pop())

    def _read_function(self, opened: _OpenFunction) -> None:
        """An `autograd.Function` is one operation; those that its forward ran are not shown.

        A function that it applied is shown, before it, if autograd has a node for that one: a checkpoint's, made anew.
        """
        function, node, arguments = opened.function, opened.node, opened.arguments
        index, state = len(self.operations), None
        for position in range(function.first, function.last):
            func, args, kwargs, _, _, drawn = self.tape.operations[position]
            state = drawn if state is None else state  # of the generator, before anything was drawn
            if self.at.setdefault(position, index) != index:
                continue
            for tensor in tensors_in(list(Traits.of(func).written(args, kwargs or {}))):
                self.values.overwrite(tensor, index)
        outputs = []
        for slot, tensor in sorted(self.tape.nodes[node].outputs.items()):
            value = self.values.new(tensor, function.last - 1, operation=index, slot=slot)
            self._match(node, slot, value, index)
            outputs.append(value)
        self.operation_of.setdefault(node, index)
        forward = Reexecution(function.cls)
        call = next((c for c, raw in enumerate(self.tape.calls) if function.first <= raw.first < function.last), None)
        name = function.cls.__name__
        self.operations.append(Operation(index, name, forward, arguments, tuple(outputs), call, node, state))

    def _read_unmatched(self, node: int) -> None:
        """A node that no recorded operation made: only its edges are known."""
        index = self.operation_of[node] = len(self.operations)
        raw = self.tape.nodes[node]
        outputs = []
        for slot, tensor in sorted(raw.outputs.items()):
            known = self.values.now(tensor)
            value = self.values.new(tensor, -1, operation=index, slot=slot) if known is None else known
            self._match(node, slot, value, index)
            outputs.append(value)
        self.operations.append(Operation(index, node_name(raw.node), None, {}, tuple(outputs), None, node))


def node_name(node: Any) -> str:
    """What autograd calls a node, without its namespace."""
    return str(node.name()).rsplit("::", 1)[-1]


def _is_of_operation(node: Any) -> bool:
    """Whether a node is that of the operation that gave its output, and of no more.

    One of an `autograd.Function` whose forward was not seen as such is of all that ran in it, unless PyTorch made that
    function for a single operation (`torch.library.register_autograd`). One of TorchScript's is of a part of a program.
    """
    function = getattr(node, "_forward_cls", None)
    return (function is None or is_of_operator(function)) and not node_name(node).startswith(SCRIPTED)


def _parameter_names(cls: type, count: int) -> list[str]:
    """The names of `forward`'s parameters, without `ctx`; numbered where it takes any number."""
    while (known := batched(cls)) is not None:
        cls, _ = known
    forward = cls.forward  # type: ignore[attr-defined]
    names = [p.name for p in inspect.signature(forward).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    if cls.setup_context is torch.autograd.Function.setup_context:  # type: ignore[attr-defined]
        names = names[1:]
    return (names + [f"input{i}" for i in range(len(names), count)])[:count]


class Leaves:
    """Finds the value of a leaf that its gradients belong to, once the whole tape has been read.

    A leaf may be initialised inside the block, and updated there, by hand or by an optimizer: it is several values,
    which autograd, with one `AccumulateGrad` for the leaf, does not distinguish.
    """

    def __init__(self, lowering: Lowering) -> None:
        self._values, self._tape, self._operations = lowering.values, lowering.tape, lowering.operations
        operations = (each for each in lowering.operations if each.node is not None)
        self.used = {value for each in operations for _, _, value in references(each.arguments)}

    def of(self, tensor: Tensor, before: int | None = None) -> int | None:
        """The value of a leaf that gradients belong to; with `before` the last one before that position."""
        versions = self._values.versions.get(id(tensor))
        if versions is None:
            return None
        if before is not None:
            earlier = [v for v in versions if v in self.used and self._values[v].created < before]
            if earlier:
                return earlier[-1]
        return self.first_used(versions[0])

    def first_used(self, value: int) -> int:
        """The first value of this one's tensor that a node was made with; of an unused one, what it was first."""
        tensor = self._values[value].tensor
        versions = self._values.versions[id(tensor)]
        # Memory that the step itself allocated is arbitrary until it is initialised.
        first = versions[-1] if self._tape.storage_of(tensor) in self._allocated else versions[0]
        return next((each for each in versions if each in self.used), first)

    @cached_property
    def _allocated(self) -> set[int]:
        """The memories that operations allocated without writing to them."""
        made = (each.outputs[slot] for each in self._operations for slot in facts_of(each.name).unwritten)
        return {self._tape.storage_of(self._values[out].tensor) for out in made if out is not None}
