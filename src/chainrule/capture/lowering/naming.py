"""What the user wrote and calls things: calls, paths of modules and parameters, and names of values, best first.

A value's best name is what the user's code assigned it to; then its name in the caller's scope at the end, the path of
the module that made it, and the call that it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from chainrule.capture.ignored_settings import ignored_of
from chainrule.capture.lowering.operations import Lowering
from chainrule.capture.lowering.tensor_versions import DraftValue
from chainrule.capture.module_tree import (
    children_of,
    inside,
    modules_of,
    named_buffers,
    named_modules,
    named_parameters,
    own_parameters,
    parameters_of,
)
from chainrule.capture.raw_records import RawCall, RawModule
from chainrule.capture.retention import is_trained_leaf
from chainrule.capture.source import Site, locals_of, users_frame
from chainrule.capture.tape import Tape
from chainrule.graph.graph import Call, Module, Place, Ref
from chainrule.graph.trees import is_a, map_leaves, tensors_in
from chainrule.pytorch_internals import _DropoutNd
from chainrule.rules.facts import base_name

_OPERATORS = frozenset({"add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"})
MEMBERS = 1000  # of a list or dict that are searched
Naming = tuple[int, int, str, int, Place | None]  # (when, rank, name, value, place)


class Paths:
    """The paths of all modules that ran, and of their parameters and buffers; several models get prefixes."""

    def __init__(self, tape: Tape) -> None:
        self.of_tensor: dict[int, str] = {}  # id of a parameter or buffer -> its path
        self.buffers: set[int] = set()  # their ids
        self._of_module: dict[int, str] = {}
        self._held: dict[int, dict[int, dict[str, str]]] = {}  # by module, and by one around it: names and paths
        self._loose: dict[int, list[str]] = {}  # id of a module -> the parameters that it holds without knowing of them
        self._tape = tape
        roots = {id(run.module): run.module for run in tape.modules if run.parent is None}
        for model in tape.models:
            self._enter(model, self._name_of(model) + "." if len(tape.models) > 1 else "")
        for root in roots.values():
            if id(root) not in self._of_module:
                self._enter(root, self._name_of(root) + "." if len(roots) > 1 or tape.models else "")
        for run in tape.modules:
            if id(run.module) not in self._of_module and next(parameters_of(run.module), None) is not None:
                self._enter(run.module, self._unregistered(run) + ".")
        for leaf, (_, part) in tape.reducers.gathered.items():
            if id(part) in self.of_tensor:
                self.of_tensor[leaf] = self.of_tensor[id(part)]

    def _enter(self, root: torch.nn.Module, prefix: str) -> None:
        for path, module in named_modules(root):
            self._of_module.setdefault(id(module), (prefix + path).rstrip("."))
            for name, inner in inside(module):
                places = self._held.setdefault(id(inner), {}).setdefault(id(module), {})
                places.setdefault(name, f"{prefix}{path}.{name}".replace("..", ".").lstrip("."))
        for path, parameter in named_parameters(root):
            self.of_tensor.setdefault(id(parameter), prefix + path)
        for path, buffer in named_buffers(root):
            self.of_tensor.setdefault(id(buffer), prefix + path)
            self.buffers.add(id(buffer))

    def _unregistered(self, run: RawModule) -> str:
        """The path of a module that a module around it keeps in a plain list or dict, or makes as it runs."""
        around = run.parent
        while around is not None:
            holder = self._tape.modules[around]
            for name, item in _attributes(holder.module):
                if item is run.module:
                    return f"{self.of(holder.module)}.{name}".lstrip(".")
            around = holder.parent
        return type(run.module).__name__

    def enter_loose(self, tensors: Iterable[Tensor]) -> None:
        """Find those trained tensors that a module which ran holds as plain attributes, or in plain lists and dicts."""
        unknown = {id(tensor) for tensor in tensors if id(tensor) not in self.of_tensor}
        for module in {id(run.module): run.module for run in self._tape.modules}.values() if unknown else ():
            for name, item in _attributes(module):
                if id(item) in unknown:
                    self.of_tensor[id(item)] = path = f"{self.of(module)}.{name}".lstrip(".")
                    self._loose.setdefault(id(module), []).append(path)

    def _name_of(self, root: torch.nn.Module) -> str:
        return self._tape.names_of_modules.get(id(root)) or type(root).__name__

    def of(self, module: torch.nn.Module) -> str:
        """A module's path ("" for the model itself)."""
        return self._of_module.get(id(module), "")

    def modules(self) -> Iterator[Module]:
        """Every module that ran, once."""
        seen: set[int] = set()
        training = {id(run.module) for run in self._tape.modules if run.training}
        for run in self._tape.modules:
            module = run.module
            if id(module) not in seen:
                seen.add(id(module))
                own = tuple(self.of_tensor.get(id(p), "") for p in own_parameters(module))
                held = *own, *self._loose.get(id(module), ())
                yield Module(
                    self.of(module), type(module).__name__, id(module) in training, held, drops(module),
                    self._again(module), ignored_of(module),
                )  # fmt: skip

    def _again(self, module: torch.nn.Module) -> tuple[str, ...]:
        """The paths, but for the first, at which one module holds another, as a list of it many times does."""
        places = max(self._held.get(id(module), {}).values(), key=len, default={})
        return tuple(places.values())[1:]

    def notes_of_compiled(self) -> tuple[str, ...]:
        """Notes on modules under `torch.compile`."""
        compiled = (run.module for run in self._tape.modules if type(run.module).__name__ == "OptimizedModule")
        names = dict.fromkeys(self.of(module) or self._name_of(module) for module in compiled)
        return tuple(
            f"{name} is compiled by torch.compile: it was recorded as it runs without, operation by operation."
            for name in names
        )


def _attributes(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The attributes of a module that it has not registered, and the members of those that are lists or dicts."""
    for name, item in list(vars(module).items()):
        if name.startswith("_"):  # registered, or hooks
            continue
        if type(item) in (list, tuple, dict) and len(item) <= MEMBERS:
            members = list(item.items() if type(item) is dict else enumerate(item))
            yield from ((f"{name}[{key!r}]", each) for key, each in members if type(key) in (int, str))
        else:
            yield name, item


def drops(module: torch.nn.Module) -> float:
    """The probability with which a module drops an element in train mode: of a dropout, an LSTM, an attention."""
    known = (vars(module).get(name) for name in ("p", "dropout", "drop_prob") if _is_layer(module))
    return next((float(each) for each in known if isinstance(each, float) and 0 < each <= 1), 0.0)


def _is_layer(module: torch.nn.Module) -> bool:
    """Whether `p` or `dropout` of it is a probability for sure."""
    kinds = (_DropoutNd, torch.nn.RNNBase, torch.nn.MultiheadAttention)
    return isinstance(module, kinds) or "drop" in type(module).__name__.lower()


class Names:
    """Names each value and each parameter."""

    def __init__(self, lowering: Lowering, paths: Paths, calls: tuple[Call, ...]) -> None:
        self._tape, self._values = lowering.tape, lowering.values
        self._lowering, self._leaves, self._paths, self._calls = lowering, lowering.leaves, paths, calls
        self._ranked: dict[int, list[tuple[int, str]]] = {}
        self._unnamed: dict[int, str] = {}  # id of a parameter that nobody has named or used -> its name
        paths.enter_loose(draft.tensor for draft in self._values.drafts if draft.kind == "parameter")
        self._name_parameters()
        self._name_results()
        self._name_by_scope()
        self._name_by_calls()
        for index, draft in enumerate(self._values.drafts):
            ranked = sorted(self._ranked.get(index, []), key=lambda each: each[0])
            draft.names = list(dict.fromkeys(name for _, name in ranked if name)) or [self._fallback(draft)]
        for versions in self._values.versions.values():
            self._number(versions)

    def _number(self, versions: list[int]) -> None:
        """A later value of a parameter, made by an optimizer or by hand, has the parameter's name with a number."""
        first = self._leaves.first_used(versions[0])
        if not is_trained_leaf(self._values[first].tensor):
            return
        later = [v for v in versions if v > first and (v in self._leaves.used or self._values[v].operation is not None)]
        for number, version in enumerate(later, 2):
            self._values[version].names = [f"{name}@{number}" for name in self._values[first].names]

    def of_parameter(self, parameter: Tensor) -> str:
        """A parameter's name; one that nobody has named or used has a number of its own."""
        if id(parameter) in self._paths.of_tensor:
            return self._paths.of_tensor[id(parameter)]
        if id(parameter) in self._tape.scope:
            return self._tape.scope[id(parameter)][0]
        value = self._leaves.of(parameter)
        names = self._values[value].names if value is not None else []
        return names[0] if names else self._unnamed.setdefault(id(parameter), f"parameter{len(self._unnamed)}")

    def _add(self, value: int, rank: int, name: str, place: Place | None = None) -> None:
        self._ranked.setdefault(value, []).append((rank, name))
        self._values[value].place = self._values[value].place or place

    # -- leaves -------------------------------------------------------------------------------------------------------

    def _name_parameters(self) -> None:
        used = self._leaves.used
        for index, draft in enumerate(self._values.drafts):
            path = self._paths.of_tensor.get(id(draft.tensor))
            if path and (index in used or index == self._leaves.first_used(index)):
                self._add(index, 0, path)

    def _name_by_scope(self) -> None:
        for name, tensor in self._tape.scope.values():
            trained = is_trained_leaf(tensor)
            last = self._values.latest(tensor) if trained else self._values.now(tensor)
            if last is not None:
                known = self._leaves.first_used(last) if trained else last
                first = self._values.versions[id(tensor)][0]
                for version in {known, first if self._values[first].operation is None else known}:
                    self._add(version, 1, name)

    # -- results ------------------------------------------------------------------------------------------------------

    def _name_results(self) -> None:
        namings = [*self._by_modules(), *self._by_assignments(), *self._by_functions()]
        for _, rank, name, value, place in sorted(namings, key=lambda each: each[0]):
            self._add(value, rank, name, place)

    def _by_modules(self) -> Iterator[Naming]:
        for run in reversed(self._tape.modules):  # where modules end together, the inner ones name the result first
            if run.last is None:
                continue
            parent = self._tape.modules[run.parent].site if run.parent is not None else None
            yield from self._targets(run.last * 3 + 1, run.output, run.site, parent, run.last)
            path = self._paths.of(run.module)
            value = self._values.at(run.output, run.last) if path and isinstance(run.output, Tensor) else None
            if value is not None:
                rank = 4 if path.replace(".", "").isdigit() else 2  # an index in a Sequential says little
                yield run.last * 3 + 2, rank, path, value, run.site.place() if run.site else None

    def _by_assignments(self) -> Iterator[Naming]:
        for call in self._tape.calls:
            if call.custom is None and _is_direct(call):
                yield from self._targets(
                    call.last * 3, call.output, call.site, self._site_around(call.module), call.last
                )

    def _by_functions(self) -> Iterator[Naming]:
        for raw in self._tape.functions:
            operation = self._lowering.at.get(raw.first)
            node = None if operation is None else self._lowering.operations[operation].node
            outputs = [t for _, t in sorted(self._tape.nodes[node].outputs.items())] if node is not None else []
            result: Any = outputs[0] if len(outputs) == 1 else tuple(outputs)
            yield from self._targets(raw.last * 3, result, raw.site, self._site_around(raw.module), raw.last)

    def _site_around(self, run: int | None) -> Site | None:
        return None if run is None else self._tape.modules[run].site

    def _targets(
        self, when: int, output: Any, site: Site | None, enclosing: Site | None, last: int
    ) -> Iterator[Naming]:
        """Names for a result, unless its call is PyTorch's own: then it has the same site as the module around it."""
        if site is None or site == enclosing:
            return
        place = site.place()
        outputs = [output] if isinstance(output, Tensor) else list(output) if isinstance(output, (tuple, list)) else []
        targets = place.targets or ("",)
        for target, tensor in zip(targets, outputs, strict=False):
            if isinstance(tensor, Tensor) and (len(targets) == len(outputs) or not target):
                value = self._values.at(tensor, last)
                if value is not None:
                    yield when, 0, target, value, place

    # -- calls --------------------------------------------------------------------------------------------------------

    def _name_by_calls(self) -> None:
        for call, raw in zip(self._calls, self._tape.calls, strict=True):
            for value, name in self._named_operands(call, raw):
                self._add(value, 2, name)
            for value in call.outputs:
                self._add(value, 3, _readable(call.name), call.place)

    def _named_operands(self, call: Call, raw: RawCall) -> Iterator[tuple[int, str]]:
        """Leaves that have a name at the call: the `X` of `self.linear1(X)`, a parameter that has no other."""
        if raw.site is None or raw.custom is not None:
            return
        for argument, name in zip(call.arguments, raw.site.argument_names(raw.function, raw.arguments), strict=False):
            if isinstance(argument, Ref):
                kind = self._values[argument.value].kind
                if kind == "input" or (kind == "parameter" and argument.value not in self._ranked):
                    yield argument.value, name

    def _fallback(self, draft: DraftValue) -> str:
        if draft.operation is None:
            return draft.kind
        operation = self._lowering.operations[draft.operation]
        name = base_name(operation.name).lstrip("_")
        return name if operation.call is None else f"{_readable(self._calls[operation.call].name)}.{name}"


def _readable(call: str) -> str:
    """A function's name as one says it: `getitem` for an operator, `sub` also for `__rsub__`."""
    if not call.startswith("__"):
        return call
    bare = call.strip("_")
    return (bare[1:] if bare[0] == "r" and bare[1:] in _OPERATORS else bare).removeprefix("true")


def _is_direct(call: RawCall) -> bool:
    """Whether the user's own expression is this call, not a function of PyTorch's that made it on the way."""
    through = call.site.through if call.site is not None else ""
    return through in ("", "wrapped", "fn", "_wrapped_call_impl", getattr(call.function, "__name__", ""))


def read_call(index: int, raw: RawCall, lowering: Lowering, paths: Paths) -> Call:
    """One call; calls stand in the order in which they began."""

    def known(leaf: Any) -> Any:
        """None for a tensor that no operation ever used."""
        if not isinstance(leaf, Tensor):
            return leaf
        value = lowering.values.at(leaf, raw.first)
        return None if value is None else Ref(value)

    operations = dict.fromkeys(lowering.at[p] for p in range(raw.first, raw.last) if p in lowering.at)
    outputs = (lowering.values.at(tensor, raw.last) for tensor in tensors_in(raw.output))
    return Call(
        index,
        function_name(raw.function),
        "" if raw.module is None else paths.of(lowering.tape.modules[raw.module].module),
        raw.site.place() if raw.site else None,
        tuple(map_leaves(known, argument, lists=True) for argument in raw.arguments),
        map_leaves(known, raw.keywords, lists=True),
        tuple(operations),
        tuple(value for value in outputs if value is not None),
        raw.error,
    )


def function_name(function: Any) -> str:
    """The name of a torch function: `softmax`, `__add__`; for a property its own, such as `T` and `real`."""
    name = getattr(function, "__name__", str(function))
    return str(getattr(function.__self__, "__name__", name)) if name == "__get__" else str(name)


def variables_around(frame: FrameType | None) -> dict[str, Any]:
    """The variables of the nearest frame outside PyTorch and chainrule."""
    frame = users_frame(frame)
    return {} if frame is None else {**frame.f_globals, **locals_of(frame)}


def note_names(tape: Tape, names: Mapping[str, Any]) -> None:
    """Note on the tape what the surrounding code calls its tensors and models.

    Of several names the last wins, but for a parameter the first: the last may be that of a loop over all parameters.
    """
    parameters: set[int] = set()
    for name, item in list(names.items()):
        if type(item) in (list, tuple) and len(item) <= MEMBERS:
            members = {f"{name}[{place}]": each for place, each in enumerate(item) if is_a(each, Tensor)}
            tape.scope.update({id(each): (name, each) for name, each in members.items() if id(each) not in tape.scope})
        if is_a(item, Tensor) and id(item) not in parameters:
            tape.scope[id(item)] = (name, item)
            if is_trained_leaf(item):
                parameters.add(id(item))
    modules = {name: item for name, item in names.items() if is_a(item, torch.nn.Module)}
    owned = _owned(names.get("self"))  # a trainer's `self.model`
    known = {name: item for name, item in owned.items() if is_a(item, torch.nn.Module)} | modules
    tape.names_of_modules.update({id(item): name for name, item in known.items()})
    ran = {id(run.module) for run in tape.modules}
    for name, module in known.items():  # one that is used without being called names its parameters all the same
        if not any(id(each) in ran for each in modules_of(module)):
            for path, parameter in named_parameters(module):
                tape.scope.setdefault(id(parameter), (f"{name}.{path}", parameter))
    if not tape.models:
        tape.models.extend(_whole_models(tape, known.values()))


def _owned(item: Any) -> dict[str, Any]:
    """The attributes of an object, without asking it."""
    try:
        return dict(object.__getattribute__(item, "__dict__"))
    except Exception:  # it has none, or a property of that name
        return {}


def _whole_models(tape: Tape, known: Iterable[torch.nn.Module]) -> Iterator[torch.nn.Module]:
    """The models of which parts were called by themselves (`model.encoder(x)`): paths begin at them.

    What only wraps another module (DistributedDataParallel) is no such model.
    """
    roots = {id(run.module) for run in tape.modules if run.parent is None}
    lone = roots - set(tape.names_of_modules)
    for model in known:
        parts = lone.intersection(map(id, modules_of(model))) if lone and id(model) not in roots else set()
        if parts and len(children_of(model)) > 1:
            lone -= parts
            yield model
