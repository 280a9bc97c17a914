"""From what happened (`Tape`) to the facts (`Graph`): which tensor is which value, which node went back through which
operation, and what the user calls them.

A tensor object is one value until something writes to it; then it is the next value. The tape holds every tensor, so an
object's id stays its own while we read it.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules._functions import BackwardHookFunction

from chainrule.graph import (
    Backward,
    Call,
    Edge,
    Event,
    Graph,
    Module,
    Node,
    Operation,
    Parameter,
    ParameterUpdate,
    Passage,
    Place,
    Ref,
    Update,
    Value,
)
from chainrule.source import Site
from chainrule.tape import RawBackward, RawCall, RawFunction, RawNode, RawUpdate, Tape, Traits, storage_of, tensors_in


def assemble(tape: Tape) -> Graph:
    """Read the tape once, from its beginning to its end, and give the facts."""
    return _Assembler(tape).graph()


@dataclass(slots=True)
class _Draft:
    """A value while its names and gradient are still being found."""

    tensor: Tensor
    created: int
    kind: str = "result"
    skip: int = 0  # copies of the tensor that were made of its earlier values, at the same position
    names: list[str] = field(default_factory=list)
    operation: int | None = None
    slot: int = 0
    node: int | None = None
    grad: Tensor | None = None
    place: Place | None = None


# What PyTorch runs below autograd for an operation that cannot take its argument as it is (conjugated, say).
_copying = frozenset({"aten.clone.default", "aten._to_copy.default"})


class _Assembler:
    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.values: list[_Draft] = []
        self.skip: dict[int, int] = {}  # id of a tensor -> copies that are older than an optimizer's step
        self.current: dict[int, int] = {}  # id of a tensor -> its value now
        self.versions: dict[int, list[int]] = {}  # id of a tensor -> its values, in order
        self.sharing: dict[int, dict[int, Tensor]] = {}  # memory -> the tensors in it that have a value now
        self.unseen: list[tuple[int, int, int]] = []  # (node, slot, value) where a write hid from autograd
        self.stale: dict[
            int, int
        ] = {}  # id of a tensor whose memory was written to through another -> by which operation
        self.operations: list[Operation] = []
        self.at: dict[int, int] = {}  # raw position -> operation
        self.operation_of: dict[int, int] = {}  # raw node -> operation
        self.outputs_of: dict[int, dict[int, int]] = {}  # raw node -> slot -> value
        self.module_path: dict[int, str] = {}
        self.parameter_path: dict[int, str] = {}
        self.buffers: set[int] = set()
        self.notes: list[str] = []
        self._nodes_at: dict[int, list[int]] = {}
        self._views: dict[int, list[int]] = {}  # id of a view -> the nodes made anew for it
        for index, node in enumerate(tape.nodes):
            node.edges = node.edges or node.node.next_functions
            if node.operation is not None:
                self._nodes_at.setdefault(node.operation, []).append(index)
            elif node.view_from is not None:
                for tensor in node.outputs.values():
                    self._views.setdefault(id(tensor), []).append(index)

    def graph(self) -> Graph:
        self.passes = self._number_passes()
        self._name_modules()
        self._read_operations()
        calls = self._calls()
        self._name_values(calls)
        nodes = self._nodes()
        self._gradients()
        self._note_compiled()
        values = self._values()
        return Graph(
            values=values,
            operations=tuple(self.operations),
            calls=tuple(calls),
            nodes=nodes,
            backwards=self._backwards(),
            updates=self._updates(),
            parameters=self._parameters(),
            modules=tuple(self._modules()),
            events=tuple(self._events()),
            error=self.tape.error,
            notes=tuple(self.notes),
        )

    # -- operations and values ----------------------------------------------------------------------------------------

    def _read_operations(self) -> None:
        starts = {f.first: f for f in self.tape.functions}
        unseen = self._saved_copies()
        updates = list(self.tape.updates)
        position = 0
        while position < len(self.tape.operations):
            while updates and updates[0].position <= position:
                self._read_update(updates.pop(0))
            function = starts.get(position)
            if function is not None and self._node_of(function) is not None:
                self._read_function(function)
                position = max(function.last, position + 1)
                continue
            if position not in unseen:
                self._read_operation(position)
            position += 1
        for index, node in enumerate(self.tape.nodes):  # nodes whose outputs no operation has seen
            if index not in self.operation_of and not hasattr(node.node, "variable"):
                self._read_untied(index)

    def _read_update(self, update: RawUpdate) -> None:
        """After `optimizer.step()` a parameter is another value: what uses it next uses the new one."""
        parameters = [parameter for _, members in update.groups for parameter in members]
        for parameter, before in zip(parameters, update.before, strict=True):
            for identity in self.sharing.pop(storage_of(parameter), {}):
                self.current.pop(identity, None)
            copies = [copy for _, copy in self.tape.copies.get(id(parameter), ())]
            self.skip[id(parameter)] = next((i for i, copy in enumerate(copies, 1) if copy is before), 0)

    def _saved_copies(self) -> set[int]:
        """The `detach` operations by which autograd itself sets results aside: nobody ever uses them."""
        used = {id(t) for operation in self.tape.operations for t in tensors_in(operation[1:3])}
        used |= {id(t) for call in self.tape.calls for t in tensors_in(call.output)}
        return {
            position
            for position, (func, _, _, out, _, _) in enumerate(self.tape.operations)
            if func is torch.ops.aten.detach.default and id(out) not in used
        }

    def _read_operation(self, position: int) -> None:
        func, args, kwargs, out, call, state = self.tape.operations[position]
        schema = func._schema.arguments
        given = {
            argument.name: args[place]
            if place < len(args)
            else (kwargs or {}).get(argument.name, argument.default_value)
            for place, argument in enumerate(schema)
        }
        arguments = {name: self._refs(value, position) for name, value in given.items()}
        written = [t for each in Traits.of(func).written(args, kwargs or {}) for t in tensors_in(each)]
        nodes = self._nodes_at.get(position, [])
        function: Any = Rerun(func)
        base = written[0]._base if len(written) == 1 else None
        if base is not None:
            arguments = {"base": Ref(self._value(base, position)), **arguments}
            name = next(name for name, value in given.items() if value is written[0])
            before = self._data(base, position - 1), self._data(written[0], position - 1)
            function = Rerun(WriteThroughView(func, name, *before))
        index = self.at[position] = len(self.operations)
        draft = Operation(index, str(func), function, arguments, (), call, nodes[0] if nodes else None, state)
        self.operations.append(draft)
        for tensor in written:
            self._invalidate(tensor, index)
        flat = list(tensors_in(out)) if isinstance(out, (tuple, list)) else [out]
        if base is not None:
            flat = [base, *(tensor for tensor in flat if tensor is not base)]
        outputs = self._outputs(flat, written, position, index, nodes)
        self.operations[index] = replace(draft, outputs=outputs)

    def _outputs(
        self, flat: list[Any], written: list[Tensor], position: int, index: int, nodes: list[int]
    ) -> tuple[int | None, ...]:
        ties = {id(t): (n, slot) for n in nodes for slot, t in self.tape.nodes[n].outputs.items()}
        outputs: list[int | None] = []
        for slot, tensor in enumerate(flat):
            if not isinstance(tensor, Tensor):
                outputs.append(None)
                continue
            before = self.versions.get(id(tensor), [None])[-1]
            value = self._new(tensor, position, operation=index, slot=slot)
            outputs.append(value)
            if id(tensor) in ties:
                node, output = ties[id(tensor)]
                self._tie(node, output, value, index)
            elif not self._lead_through_base(tensor, value, position + 1) and before is not None:
                self._write_unseen(value, before)
        for tensor in written:  # written to, but not returned
            if not any(tensor is each for each in flat):
                self._new(tensor, position, operation=index, slot=len(outputs))
        return tuple(outputs)

    def _invalidate(self, written: Tensor, operation: int) -> None:
        """After a write, every tensor in the same memory is another value: which, is found when it is next used."""
        for identity in self.sharing.pop(storage_of(written), {}):
            if self.current.pop(identity, None) is not None:
                self.stale[identity] = operation

    def _lead_through_base(self, view: Tensor, value: int, position: int) -> bool:
        """Tie the node that autograd made for a view of overwritten memory: an `as_strided` of the base, by itself."""
        number = next((n for n in reversed(self._views.get(id(view), [])) if self._made_by(n, position)), None)
        if number is None:
            return False
        base = view._base
        assert base is not None
        index = len(self.operations)
        then = self._data(view, self.values[value].created)  # its shape may have been changed in place since
        arguments = {
            "self": Ref(self._value(base, position)),
            "size": list(then.shape),
            "stride": list(then.stride()),
            "storage_offset": then.storage_offset(),
        }
        func = torch.ops.aten.as_strided.default
        self.operations.append(Operation(index, str(func), Rerun(func), arguments, (value,), None, number))
        self._tie(number, view.output_nr, value, index)
        return True

    def _write_unseen(self, value: int, before: int) -> None:
        """A write under `no_grad`: the tensor's node goes on as if nothing had happened, now from the new value."""
        number, tensor = self.values[before].node, self.values[value].tensor
        if number is not None and tensor.requires_grad:
            self.values[value].node = number
            self.unseen.append((number, tensor.output_nr, value))

    def _made_by(self, node: int, position: int) -> bool:
        begins = self.tape.nodes[node].view_from
        return begins is not None and begins <= position and node not in self.operation_of

    def _tie(self, node: int, output: int, value: int, operation: int) -> None:
        self.values[value].node = node
        self.outputs_of.setdefault(node, {})[output] = value
        self.operation_of.setdefault(node, operation)
        view = self.tape.nodes[node].remade
        if view is not None:  # it is the same value, in another tensor
            self.current[id(view)] = value
            self.versions.setdefault(id(view), []).append(value)
            self.stale.pop(id(view), None)

    def _node_of(self, function: RawFunction) -> int | None:
        """The node of an `autograd.Function`'s application (None: no gradient was wanted of it)."""
        for position in range(function.last - 1, function.first - 1, -1):
            for node in self._nodes_at.get(position, []):
                if getattr(self.tape.nodes[node].node, "_forward_cls", None) is function.cls:
                    return node
        taken = self.operation_of
        return next(
            (
                index
                for index, raw in enumerate(self.tape.nodes)
                if getattr(raw.node, "_forward_cls", None) is function.cls
                and index not in taken
                and raw.operation is None
            ),
            None,
        )

    def _read_function(self, function: RawFunction) -> None:
        node = self._node_of(function)
        assert node is not None
        names = _parameter_names(function.cls, len(function.arguments))
        arguments = {
            name: self._refs(value, function.first) for name, value in zip(names, function.arguments, strict=True)
        }
        index = len(self.operations)
        for position in range(function.first, function.last):
            self.at[position] = index
        outputs = []
        for slot, tensor in sorted(self.tape.nodes[node].outputs.items()):
            value = self._new(tensor, function.last - 1, operation=index, slot=slot)
            self._tie(node, slot, value, index)
            outputs.append(value)
        self.operation_of.setdefault(node, index)
        rerun = Rerun(function.cls)
        call = next((c for c, raw in enumerate(self.tape.calls) if function.first <= raw.first < function.last), None)
        self.operations.append(Operation(index, function.cls.__name__, rerun, arguments, tuple(outputs), call, node))

    def _read_untied(self, node: int) -> None:
        """A node that no recorded operation made: its operation is known by its edges alone."""
        index = self.operation_of[node] = len(self.operations)
        raw = self.tape.nodes[node]
        outputs = []
        for slot, tensor in sorted(raw.outputs.items()):
            value = self.current.get(id(tensor))
            value = self._new(tensor, -1, operation=index, slot=slot) if value is None else value
            self._tie(node, slot, value, index)
            outputs.append(value)
        self.operations.append(Operation(index, _node_name(raw), None, {}, tuple(outputs), None, node))

    def _refs(self, tree: Any, position: int) -> Any:
        if isinstance(tree, Tensor):
            return Ref(self._value(tree, position))
        if isinstance(tree, (list, tuple)):
            return [self._refs(item, position) for item in tree]
        return tree

    def _value(self, tensor: Tensor, position: int) -> int:
        index = self.current.get(id(tensor))
        if index is not None:
            return index
        writer = self.stale.pop(id(tensor), None)
        index = self._new(tensor, position - 1, operation=writer)
        draft = self.values[index]
        if self._lead_through_base(tensor, index, position):
            draft.operation = len(self.operations) - 1
            return index
        with suppress(RuntimeError):
            number = self.tape.number_of.get(tensor.grad_fn) if tensor.grad_fn is not None else None
            if number is not None and tensor.output_nr not in self.outputs_of.get(number, {}):
                self.tape.nodes[number].outputs.setdefault(tensor.output_nr, tensor)
                draft.node = number
                self.outputs_of.setdefault(number, {})[tensor.output_nr] = index
                return index
        if writer is None:
            draft.kind = self._leaf_kind(tensor)
        return index

    def _leaf_kind(self, tensor: Tensor) -> str:
        if _is_trained_leaf(tensor):
            return "parameter"
        return "buffer" if id(tensor) in self.buffers else "input"

    def _new(self, tensor: Tensor, created: int, operation: int | None = None, slot: int = 0) -> int:
        index = self.current[id(tensor)] = len(self.values)
        self.versions.setdefault(id(tensor), []).append(index)
        self.sharing.setdefault(storage_of(tensor), {})[id(tensor)] = tensor
        self.stale.pop(id(tensor), None)
        kind = "parameter" if _is_trained_leaf(tensor) else "result"
        self.values.append(_Draft(tensor, created, kind, self.skip.get(id(tensor), 0), operation=operation, slot=slot))
        return index

    # -- names --------------------------------------------------------------------------------------------------------

    def _name_modules(self) -> None:
        roots: dict[int, torch.nn.Module] = {}
        for run in self.tape.modules:
            if run.parent is None:
                roots.setdefault(id(run.module), run.module)
        for root in roots.values():
            prefix = self._root_name(root) + "." if len(roots) > 1 else ""
            for path, module in root.named_modules():
                self.module_path.setdefault(id(module), (prefix + path).rstrip("."))
            for path, parameter in root.named_parameters():
                self.parameter_path.setdefault(id(parameter), prefix + path)
            for path, buffer in root.named_buffers():
                self.parameter_path.setdefault(id(buffer), prefix + path)
                self.buffers.add(id(buffer))

    def _root_name(self, root: torch.nn.Module) -> str:
        return self.tape.names_of_modules.get(id(root)) or type(root).__name__

    def _name_values(self, calls: list[Call]) -> None:
        """Give each value its names, best first: assigned to it, what a scope calls it, its module, its call."""
        ranked: dict[int, list[tuple[int, str]]] = {}
        for index, draft in enumerate(self.values):
            path = self.parameter_path.get(id(draft.tensor))
            if path and index in self._used | {self._used_version(index)}:
                earlier = [v for v in self.versions[id(draft.tensor)] if v in self._used and v < index]
                path += f"@{len(earlier) + 1}" if earlier else ""  # what an optimizer made of it, used once more
                ranked.setdefault(index, []).append((0, path))
        for _, rank, name, value, place in sorted(self._namings(), key=lambda each: each[0]):
            ranked.setdefault(value, []).append((rank, name))
            self.values[value].place = self.values[value].place or place
        for name, tensor in self.tape.scope.values():
            last = self.current.get(id(tensor))
            if last is not None:
                known = self._used_version(last) if _is_trained_leaf(tensor) else last
                first = self.versions[id(tensor)][0]
                for version in {known, first if self.values[first].operation is None else known}:
                    ranked.setdefault(version, []).append((1, name))
        for call, raw in zip(calls, self.tape.calls, strict=True):
            for value, name in self._named_operands(call, raw):
                ranked.setdefault(value, []).append((2, name))
            for value in call.outputs:
                ranked.setdefault(value, []).append((3, call.name))
                self.values[value].place = self.values[value].place or call.place
        for index, draft in enumerate(self.values):
            names = dict.fromkeys(name for _, name in sorted(ranked.get(index, []), key=lambda each: each[0]) if name)
            draft.names = list(names) or [self._fallback_name(draft)]

    def _named_operands(self, call: Call, raw: RawCall) -> Iterator[tuple[int, str]]:
        """Leaves that go by a name where the call stands: the `X` of `self.linear1(X)`."""
        if raw.site is None or raw.custom is not None:
            return
        for argument, name in zip(call.arguments, raw.site.argument_names(), strict=False):
            if isinstance(argument, Ref) and self.values[argument.value].kind == "input":
                yield argument.value, name

    def _fallback_name(self, draft: _Draft) -> str:
        if draft.operation is None:
            return draft.kind
        operation = self.operations[draft.operation]
        name = operation.name.removeprefix("aten.").split(".")[0].lstrip("_")
        return name if operation.call is None else f"{self._call_name(self.tape.calls[operation.call])}.{name}"

    def _namings(self) -> Iterator[tuple[int, int, str, int, Place | None]]:
        """(when, rank, name, value, place) for every result that an assignment, or a module's path, gives a name."""
        for run in reversed(self.tape.modules):  # of modules that end together the inner ones name the result first
            if run.last is not None:
                parent = self.tape.modules[run.parent].site if run.parent is not None else None
                yield from self._targets(run.last * 3 + 1, run.output, run.site, parent, run.last)
                path = self.module_path.get(id(run.module), "")
                if path and isinstance(run.output, Tensor):
                    value = self._value_at(run.output, run.last)
                    if value is not None:
                        rank = 4 if path.replace(".", "").isdigit() else 2  # a place in a Sequential says little
                        yield run.last * 3 + 2, rank, path, value, run.site.place() if run.site else None
        for call in self.tape.calls:
            if call.custom is None and _is_direct(call):
                parent = self.tape.modules[call.module].site if call.module is not None else None
                yield from self._targets(call.last * 3, call.output, call.site, parent, call.last)
        for function in self.tape.functions:
            parent = self.tape.modules[function.module].site if function.module is not None else None
            node = self._node_of_operation(self.at.get(function.first))
            outputs = [t for _, t in sorted(self.tape.nodes[node].outputs.items())] if node is not None else []
            result: Any = outputs[0] if len(outputs) == 1 else tuple(outputs)
            yield from self._targets(function.last * 3, result, function.site, parent, function.last)

    def _node_of_operation(self, operation: int | None) -> int | None:
        return None if operation is None else self.operations[operation].node

    def _targets(
        self, when: int, output: Any, site: Site | None, enclosing: Site | None, last: int
    ) -> Iterator[tuple[int, int, str, int, Place | None]]:
        """Names for a result, unless its call came from the same spot as the module around it: then it is PyTorch's."""
        if site is None or site == enclosing:
            return
        place = site.place()
        outputs = [output] if isinstance(output, Tensor) else list(output) if isinstance(output, (tuple, list)) else []
        targets = place.targets or ("",)
        for target, tensor in zip(targets, outputs, strict=False):
            if isinstance(tensor, Tensor) and (len(targets) == len(outputs) or not target):
                value = self._value_at(tensor, last)
                if value is not None:
                    yield when, 0, target, value, place

    def _value_at(self, tensor: Tensor, last: int) -> int | None:
        """The value that a tensor was when `last` operations had run."""
        if id(tensor) not in self.versions:
            return None
        versions = self.versions[id(tensor)]
        return next((i for i in reversed(versions) if self.values[i].created < last), self._leaf_among(versions))

    def _leaf_among(self, versions: list[int]) -> int | None:
        """A leaf was there before the first operation that saw it."""
        return versions[0] if self.values[versions[0]].operation is None else None

    # -- what the user wrote ------------------------------------------------------------------------------------------

    def _calls(self) -> list[Call]:
        return [self._call(index, raw) for index, raw in enumerate(self.tape.calls)]

    def _call(self, index: int, raw: RawCall) -> Call:
        operations = tuple(dict.fromkeys(self.at[p] for p in range(raw.first, raw.last) if p in self.at))
        tensors = list(tensors_in(raw.output))
        outputs = [v for v in (self._value_at(t, raw.last) for t in tensors) if v is not None]
        return Call(
            index,
            self._call_name(raw),
            self._path_of_run(raw.module),
            raw.site.place() if raw.site else None,
            tuple(self._known_refs(argument, raw.first) for argument in raw.arguments),
            {key: self._known_refs(value, raw.first) for key, value in raw.keywords.items()},
            operations,
            tuple(outputs),
            raw.error,
        )

    def _call_name(self, raw: RawCall) -> str:
        return getattr(raw.function, "__name__", str(raw.function))

    def _known_refs(self, tree: Any, first: int) -> Any:
        if isinstance(tree, Tensor):
            value = self._value_at(tree, first)
            return None if value is None else Ref(value)
        if isinstance(tree, (list, tuple)):
            return [self._known_refs(item, first) for item in tree]
        return tree

    def _path_of_run(self, run: int | None) -> str:
        return "" if run is None else self.module_path.get(id(self.tape.modules[run].module), "")

    def _note_compiled(self) -> None:
        for run in self.tape.modules:
            if type(run.module).__name__ == "OptimizedModule":
                name = self.module_path.get(id(run.module)) or self._root_name(run.module)
                note = (
                    f"{name} is compiled by torch.compile: it was recorded as it runs without, operation by operation."
                )
                if note not in self.notes:
                    self.notes.append(note)

    def _modules(self) -> Iterator[Module]:
        seen: set[int] = set()
        for run in self.tape.modules:
            if id(run.module) not in seen:
                seen.add(id(run.module))
                own = tuple(self.parameter_path.get(id(p), "") for p in run.module.parameters(recurse=False))
                path = self.module_path.get(id(run.module), "")
                yield Module(path, type(run.module).__name__, run.training, own)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def _nodes(self) -> tuple[Node, ...]:
        """Autograd's nodes in forward order; a leaf's `AccumulateGrad` stands where the leaf is first used."""
        passages = self._passages()
        order = sorted(range(len(self.tape.nodes)), key=self._forward_order())
        self.number = {raw: new for new, raw in enumerate(order)}
        nodes = tuple(self._node(new, raw, passages.get(raw, [])) for new, raw in enumerate(order))
        self.operations = [
            replace(each, node=None if each.node is None else self.number[each.node]) for each in self.operations
        ]
        for draft in self.values:
            draft.node = None if draft.node is None else self.number[draft.node]
        return nodes

    def _forward_order(self) -> Callable[[int], tuple[int, int]]:
        first_use: dict[int, int] = {}
        for index, raw in enumerate(self.tape.nodes):
            for node, _ in raw.edges:
                number = self.tape.number_of.get(node)
                if number is not None and hasattr(node, "variable"):
                    use = self.operation_of.get(index, 0)
                    first_use[number] = min(first_use.get(number, use), use)
        return lambda index: (
            (first_use[index], 0) if index in first_use else (self.operation_of.get(index, len(self.operations)), 1)
        )

    def _node(self, index: int, number: int, passages: list[Passage]) -> Node:
        raw = self.tape.nodes[number]
        operation = self.operation_of.get(number)
        leaf = self._leaf(raw.node.variable) if hasattr(raw.node, "variable") else None
        slots = self.outputs_of.get(number, {})
        outputs = tuple(slots.get(slot) for slot in range(max(slots, default=-1) + 1))
        call = self.operations[operation].call if operation is not None else None
        function = getattr(raw.node, "_forward_cls", None)
        return Node(
            index,
            _node_name(raw),
            operation,
            call,
            outputs,
            tuple(self._edges(number, operation)),
            tuple(passages),
            leaf,
            self._place(number, operation, call),
            function,
        )

    def _place(self, number: int, operation: int | None, call: int | None) -> Place | None:
        for function in self.tape.functions:
            if operation is not None and self.at.get(function.first) == operation and function.site is not None:
                return function.site.place()
        site = self.tape.calls[call].site if call is not None else None
        return site.place() if site is not None else None

    def _leaf(self, tensor: Tensor, before: int | None = None) -> int | None:
        """The value of a leaf that gradients belong to; with `before` the last one by then, as an optimizer met it."""
        versions = self.versions.get(id(tensor))
        if versions is None:
            return None
        used = [v for v in versions if v in self._used and before is not None and self.values[v].created < before]
        return used[-1] if used else self._used_version(versions[0])

    def _used_version(self, value: int) -> int:
        """Of all values that a leaf was, the one that gradients belong to: the first that a node was made with.

        A leaf may have been initialised inside the block, and be updated there by hand.
        """
        versions = self.versions[id(self.values[value].tensor)]
        return next((i for i in versions if i in self._used), versions[0])

    @cached_property
    def _used(self) -> set[int]:
        """The values that operations with a node took."""
        operations = (each for each in self.operations if each.node is not None)
        return {value for each in operations for _, _, value in _arguments(each.arguments)}

    def _edges(self, number: int, operation: int | None) -> Iterator[Edge]:
        """Match each edge with the argument it belongs to: both run through the arguments in the schema's order."""
        arguments = list(_arguments(self.operations[operation].arguments)) if operation is not None else []
        cursor = 0
        for position, (node, slot) in enumerate(self.tape.nodes[number].edges):
            if node is None:
                continue
            target = self.tape.number_of.get(node)
            if target is None:
                continue
            place, value = next(
                (
                    (place, source)
                    for place in range(cursor, len(arguments))
                    if (source := self._source(arguments[place][2], target, slot, node)) is not None
                ),
                (None, self.outputs_of.get(target, {}).get(slot)),
            )
            name, item = (None, None) if place is None else arguments[place][:2]
            cursor = cursor if place is None else place + 1
            yield Edge(position, self.number[target], slot, value, name, item)

    def _source(self, value: int, target: int, slot: int, node: Any) -> int | None:
        """This argument, if the edge leads to where it came from; or what it was copied from, unseen by autograd."""
        draft = self.values[value]
        if hasattr(node, "variable"):
            found = draft.tensor is node.variable
        else:
            # The tensor is compared too: under `no_grad` a write makes another value, and leaves the node as it is.
            same = self.tape.nodes[target].outputs.get(slot) is draft.tensor
            found = same or self.outputs_of.get(target, {}).get(slot) == value
        if found:
            return value
        operation = self.operations[draft.operation] if draft.operation is not None and draft.node is None else None
        if operation is None or operation.name not in _copying or not isinstance(operation.arguments["self"], Ref):
            return None
        return self._source(operation.arguments["self"].value, target, slot, node)

    def _passages(self) -> dict[int, list[Passage]]:
        found: dict[int, list[Passage]] = {}
        for order, (task, index, downstream, upstream) in enumerate(self.tape.passages):
            filled = self._with_leaves(index, task, downstream)
            found.setdefault(index, []).append(Passage(self.passes[task], order, self._frozen(upstream), filled))
        return found

    def _number_passes(self) -> dict[int, int]:
        """Autograd's numbers of its passes -> ours; one that began unseen (inside a node) comes after those we saw."""
        known = {raw.task: index for index, raw in enumerate(self.tape.backwards) if raw.task is not None}
        for task, *_ in self.tape.passages:
            known.setdefault(task, max(len(self.tape.backwards), *known.values(), -1) + 1 if known else 0)
        return known

    def _frozen(self, gradients: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
        return tuple(None if g is None else self._data(g, -1) for g in gradients)

    def _with_leaves(self, index: int, task: int, downstream: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
        """Put in the gradients that went straight into a leaf, and were read from its `.grad` afterwards."""
        filled = list(self._frozen(downstream))
        raw = self._pass(task)
        for position, leaf in self.tape.nodes[index].leaves:
            if raw is not None and filled[position] is None and id(leaf) not in raw.before:
                filled[position] = self._left(raw, leaf)
        return tuple(filled)

    def _pass(self, task: int) -> RawBackward | None:
        return next((each for each in self.tape.backwards if each.task == task), None)

    def _left(self, raw: RawBackward, leaf: Tensor) -> Tensor | None:
        """What a backward pass left in a leaf's `.grad`."""
        left = raw.after.get(id(leaf))
        if left is None:
            return None
        gradient, copied = left
        later = self.tape.copies.get(id(gradient), [])[copied:]
        return later[0][1] if later else gradient.detach()

    def _gradients(self) -> None:
        """d loss / d value: what arrived at its node from all its uses; for a leaf what arrived in `.grad`.

        A pass that ended in an exception counts only where no other brought a gradient.
        """
        failed = {raw.task for raw in self.tape.backwards if raw.error is not None}
        for whole in (True, False):
            arrived: dict[int, Tensor] = {}
            for task, number, downstream, upstream in self.tape.passages:
                if (task not in failed) is whole:
                    self._arrive(arrived, number, upstream, self._with_leaves(number, task, downstream))
            for number, slot, value in self.unseen:
                seen = self.outputs_of.get(number, {}).get(slot)
                if seen in arrived:
                    arrived[value] = arrived[seen]
            for value, gradient in arrived.items():
                if self.values[value].grad is None:
                    self.values[value].grad = gradient

    def _arrive(
        self, arrived: dict[int, Tensor], number: int, upstream: tuple[Any, ...], downstream: tuple[Tensor | None, ...]
    ) -> None:
        for slot, value in self.outputs_of.get(number, {}).items():
            if slot < len(upstream) and upstream[slot] is not None:
                _add(arrived, value, self._data(upstream[slot], -1))
        for (node, _), gradient in zip(self.tape.nodes[number].edges, downstream, strict=False):
            if gradient is not None and hasattr(node, "variable") and id(node.variable) in self.versions:
                _add(arrived, self._used_version(self.versions[id(node.variable)][0]), gradient)

    # -- freezing -----------------------------------------------------------------------------------------------------

    def _values(self) -> tuple[Value, ...]:
        shared = Counter(name for draft in self.values for name in draft.names)
        count: Counter[str] = Counter()
        values = []
        for index, draft in enumerate(self.values):
            names = []
            for name in draft.names:
                count[name] += 1
                names.append(f"{name}@{count[name]}" if shared[name] > 1 else name)
            tensor, data = draft.tensor, self._data(draft.tensor, draft.created, draft.skip)
            values.append(
                Value(
                    index,
                    draft.kind,  # type: ignore[arg-type]
                    tuple(names),
                    tuple(data.shape),  # the tensor's own may have been changed in place since
                    data.dtype,
                    str(data.device),
                    draft.node is not None or _is_trained_leaf(tensor),
                    data,
                    draft.grad,
                    draft.operation,
                    draft.slot,
                    draft.node,
                    draft.place,
                )
            )
        return tuple(values)

    def _data(self, tensor: Tensor, created: int, skip: int = 0) -> Tensor:
        for position, copy in self.tape.copies.get(id(tensor), [])[skip:]:
            if position > created:
                return copy
        return tensor.detach()

    def _backwards(self) -> tuple[Backward, ...]:
        found = []
        for index, raw in enumerate(self.tape.backwards):
            roots = tuple(
                (self.number[self.tape.number_of[root.grad_fn]], root.output_nr)
                for root in raw.roots
                if root.grad_fn is not None and root.grad_fn in self.tape.number_of
            )
            loss = self._value_at(raw.roots[0], raw.position) if raw.roots else None
            found.append(Backward(index, roots, loss, raw.site.place() if raw.site else None))
        unseen = range(len(found), max(self.passes.values(), default=-1) + 1)
        return (*found, *(Backward(index, (), None) for index in unseen))

    def _updates(self) -> tuple[Update, ...]:
        found = []
        for raw in self.tape.updates:
            members = [(options, p) for options, group in raw.groups for p in group]
            parameters = []
            for place, (options, parameter) in enumerate(members):
                value = self._leaf(parameter, before=raw.position)
                after = raw.after[place] if raw.after else raw.before[place]
                parameters.append(
                    ParameterUpdate(
                        value,
                        self._parameter_name(parameter, place),
                        raw.before[place],
                        raw.gradients[place],
                        after,
                        options,
                        raw.states[place],
                    )
                )
            found.append(Update(type(raw.optimizer).__name__, tuple(parameters), raw.position))
        return tuple(found)

    def _parameter_name(self, parameter: Tensor, place: int) -> str:
        if id(parameter) in self.parameter_path:
            return self.parameter_path[id(parameter)]
        if id(parameter) in self.tape.scope:
            return self.tape.scope[id(parameter)][0]
        value = self._leaf(parameter)
        names = self.values[value].names if value is not None else []
        return names[0] if names else f"parameter{place}"

    def _parameters(self) -> dict[str, Parameter]:
        found: dict[str, Parameter] = {}
        after = {id(p): a for raw in self.tape.updates for p, a in self._stepped(raw)}
        for tensor in self._trained():
            value = self._leaf(tensor)
            name = self._parameter_name(tensor, len(found))
            if name in found:
                name = f"{name}@{sum(other.split('@')[0] == name for other in found) + 1}"
            before = (
                self._data(tensor, -1)
                if value is None
                else self._data(tensor, self.values[value].created, self.values[value].skip)
            )
            changed = after.get(id(tensor))
            if changed is None and value is not None and (copies := self.tape.copies.get(id(tensor), ())):
                final = copies[-1][1] if len(copies) > 1 else tensor.detach()
                changed = final if len(copies) > 1 and not torch.equal(final, before) else None
            found[name] = Parameter(name, value, before, self._left_in_grad(tensor), changed)
        return found

    def _stepped(self, raw: Any) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip((p for _, group in raw.groups for p in group), raw.after, strict=False)

    def _trained(self) -> Iterator[Tensor]:
        """Every parameter of the modules that ran, those in an optimizer that stepped, then other leaves in use."""
        seen: set[int] = set()
        roots = [run.module for run in self.tape.modules if run.parent is None]
        groups = [p for raw in self.tape.updates for _, group in raw.groups for p in group]
        leaves = [draft.tensor for draft in self.values if draft.kind == "parameter"]
        for tensor in [*(p for root in roots for p in root.parameters()), *groups, *leaves]:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor

    def _left_in_grad(self, leaf: Tensor) -> Tensor | None:
        left = (self._left(backward, leaf) for backward in reversed(self.tape.backwards))
        return next((each for each in left if each is not None), None)

    def _events(self) -> Iterator[Event]:
        for position, gradient, function, site in self.tape.writes:
            parameter = self.tape.gradients.get(gradient)
            if parameter is None:
                continue
            name = self._parameter_name(parameter, 0)
            yield Event(function or "write", name, position, site.place() if site else None)
        yield from self._changes_by_hooks()

    def _changes_by_hooks(self) -> Iterator[Event]:
        """Gradients that a hook has changed: not the sum of what came from the uses of the value."""
        arriving: dict[tuple[int, int, int], Tensor] = {}
        for task, number, downstream, upstream in self.tape.passages:
            if getattr(self.tape.nodes[number].node, "_forward_cls", None) is BackwardHookFunction:
                yield from self._changes_by_module_hooks(number, self._frozen(upstream), self._frozen(downstream))
            for slot, value in self.outputs_of.get(number, {}).items():
                sent = arriving.pop((task, number, slot), None)
                arrived = upstream[slot] if slot < len(upstream) else None
                if sent is not None and arrived is not None and not _alike(sent, self._data(arrived, -1)):
                    yield self._change_by_hook(value)
            for (node, slot), gradient in zip(self.tape.nodes[number].edges, self._frozen(downstream), strict=False):
                if gradient is not None and node in self.tape.number_of:
                    _add(arriving, (task, self.tape.number_of[node], slot), gradient)
        for (task, number, _), sent in arriving.items():
            leaf = getattr(self.tape.nodes[number].node, "variable", None)
            raw = self._pass(task)
            if raw is None or leaf is None or id(leaf) not in self.versions:
                continue
            left = self._left(raw, leaf)
            whole = sent + raw.before[id(leaf)] if id(leaf) in raw.before else sent
            if left is not None and not _alike(whole, left):
                yield self._change_by_hook(self.versions[id(leaf)][0])

    def _changes_by_module_hooks(
        self, number: int, upstream: tuple[Tensor | None, ...], downstream: tuple[Tensor | None, ...]
    ) -> Iterator[Event]:
        """`register_full_backward_hook` hangs on a function of PyTorch's that hands everything through."""
        for slot, (arrived, sent) in enumerate(zip(upstream, downstream, strict=False)):
            value = self.outputs_of.get(number, {}).get(slot)
            if value is not None and arrived is not None and sent is not None and not _alike(arrived, sent):
                yield self._change_by_hook(value)

    def _change_by_hook(self, value: int) -> Event:
        draft = self.values[value]
        return Event("hook", draft.names[0], max(draft.created + 1, 0), draft.place)


def _is_trained_leaf(tensor: Tensor) -> bool:
    try:
        return tensor.is_leaf and tensor.requires_grad
    except (
        RuntimeError
    ):  # PyTorch will not say for a view made under no_grad whose base was written to with gradients on
        return False


def _is_direct(call: RawCall) -> bool:
    """Whether the user's own expression is this call, not a larger function of PyTorch's that made it on the way."""
    through = call.site.through if call.site is not None else ""
    return through in ("", "wrapped", "fn", "_wrapped_call_impl", getattr(call.function, "__name__", ""))


class Rerun:
    """Runs a recorded operation again on other data, with gradients off: `rerun({"self": x, "other": y})`."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, arguments: dict[str, Any]) -> Any:
        """The result on these arguments, by the names of the schema; what it writes to is written to."""
        if isinstance(self.function, type):
            return self._forward(list(arguments.values()))
        with torch.no_grad():
            if isinstance(self.function, WriteThroughView):
                return self.function(**arguments)
            return call_overload(self.function, arguments)

    def _forward(self, arguments: list[Any]) -> Any:
        with torch.no_grad():
            return self.function.apply(*arguments)


class WriteThroughView:
    """An in-place operation on a view, as the function of the view's base that it is for autograd.

    `function(base=..., **arguments)` gives the base as it is afterwards, and the view in it.
    """

    def __init__(self, function: Any, argument: str, base: Tensor, view: Tensor) -> None:
        self.function, self.argument = function, argument
        self.size, self.stride = tuple(view.shape), tuple(view.stride())
        self.real = base.is_complex() and not view.is_complex()
        first = base.storage_offset() * base.itemsize
        self.offset = (view.storage_offset() * view.itemsize - first) // view.itemsize
        self.layout = tuple(base.shape), tuple(base.stride())

    def __call__(self, /, base: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
        """The base after the write, and the view; what is given is left as it is."""
        after = torch.empty_strided(*self.layout, dtype=base.dtype, device=base.device).copy_(base)
        whole = torch.view_as_real(after) if self.real else after
        view = whole.as_strided(self.size, self.stride, self.offset if whole.numel() else 0)
        call_overload(self.function, {**arguments, self.argument: view})
        return after, view


def call_overload(function: Any, arguments: dict[str, Any]) -> Any:
    """Run an ATen operation on arguments given by the names of its schema."""
    schema = function._schema.arguments
    positional = [arguments[a.name] for a in schema if not a.kwarg_only]
    return function(*positional, **{a.name: arguments[a.name] for a in schema if a.kwarg_only})


def _add(sums: dict[Any, Tensor], key: Any, gradient: Tensor) -> None:
    sums[key] = sums[key] + gradient if key in sums else gradient


def _alike(left: Tensor, right: Tensor) -> bool:
    """The same but for the rounding of another order of summation."""
    if left.layout is not torch.strided or right.layout is not torch.strided or left.shape != right.shape:
        return left.shape == right.shape
    if left.data_ptr() == right.data_ptr() and left.stride() == right.stride():
        return True
    precision = torch.finfo(left.dtype).eps if left.dtype.is_floating_point or left.is_complex() else 0.0
    return torch.allclose(left, right.to(left.dtype), rtol=64 * precision, atol=64 * precision, equal_nan=True)


def _node_name(raw: RawNode) -> str:
    name: str = raw.node.name()
    return name.rsplit("::", 1)[-1]


def _parameter_names(cls: type, count: int) -> list[str]:
    """The names of `forward`'s parameters, without `ctx`; numbered where it takes any number."""
    forward = cls.forward  # type: ignore[attr-defined]
    names = [p.name for p in inspect.signature(forward).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    if cls.setup_context is torch.autograd.Function.setup_context:  # type: ignore[attr-defined]
        names = names[1:]
    return (names + [f"input{i}" for i in range(len(names), count)])[:count]


def _arguments(arguments: dict[str, Any]) -> Iterator[tuple[str, int | None, int]]:
    """(argument, place in its list, value) of every tensor among an operation's arguments."""
    for name, value in arguments.items():
        if isinstance(value, Ref):
            yield name, None, value.value
        elif isinstance(value, list):
            for item, each in enumerate(value):
                if isinstance(each, Ref):
                    yield name, item, each.value
