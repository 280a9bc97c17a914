"""Why a backward pass raised an exception: the node that it came to, what that node needs, and what became of it.

PyTorch's message names a shape, not the line that made the tensor, nor the one that changed it. The tape knows both,
and where a step was not recorded, autograd's nodes tell in which step they were made.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import dropwhile
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor, nn

from chainrule.capture.data_parallel import storage_of
from chainrule.capture.module_tree import named_parameters
from chainrule.capture.raw_records import RawFailure
from chainrule.capture.retention import is_trained_leaf
from chainrule.capture.saved_tensors import FREED, OVERWRITTEN, behind, unusable
from chainrule.capture.source import Site, callers, entries, is_library, locals_of
from chainrule.capture.step_log import number_of
from chainrule.capture.tape import Tape
from chainrule.capture.traits import Traits
from chainrule.graph.graph import Failure, GivenTensor, Place
from chainrule.graph.trees import is_a, tensors_in
from chainrule.rules.facts import base_name

SETITEM = "__setitem__"
FEW = 100  # items of a list in which a tensor is looked for
_ENGINE = "_engine_run_backward"
_RETURNED = re.compile(r"[Ff]unction (\w+) returned an (?:invalid gradient at index (\d+)|incorrect number)")
Write = tuple[int, str, Site | None]  # (position, what wrote, where)


def failed_backward(
    error: BaseException, tape: Tape, roots: tuple[Tensor, ...], site: Site | None, first: int = 0
) -> RawFailure:
    """What is known of an exception of the pass that began at `site` and ran the nodes from execution `first` on."""
    raw = RawFailure(Failure(f"{type(error).__name__}: {error}", _place(site), backward=True), id(error))
    message = str(error)
    nodes = behind(tape.original(root).grad_fn for root in roots)
    ran = {index for _, index, *_ in tape.executions[first:]}
    to_come = [node for node in nodes if tape.number_of.get(node, -1) not in ran]
    if OVERWRITTEN in message:
        _overwritten(raw, tape, to_come, error)
        if nodes and tape.failures.log.step_of(nodes[0]) is not None:  # all of it is of that step: nothing was carried
            raw.facts = replace(raw.facts, step=None)
    elif FREED in message:
        _freed(raw, tape, to_come, error)
    elif (returned := _RETURNED.search(message)) is not None:
        _returned(raw, tape, to_come, *returned.groups())
    else:
        _raised(raw, error.__traceback__)
        raw.tensor, raw.at = (roots[0] if roots else None), len(tape.operations)
        name = next((found for root in roots if (found := variable_of(root, error))), "")
        raw.facts = replace(raw.facts, name=name, given=tuple(map(given_tensor, roots)))
    return raw


def given_tensor(tensor: Tensor, name: str = "") -> GivenTensor:
    """What a tensor looks like, without its numbers."""
    return GivenTensor(name, tuple(tensor.shape), tensor.dtype, str(tensor.device))


def _place(site: Site | None) -> Place | None:
    return None if site is None else site.place()


def _note_node(raw: RawFailure, tape: Tape, node: Any) -> None:
    """The node that backward came to: where and when it was made."""
    log, index = tape.failures.log, tape.number_of.get(node)
    raw.operation = None if index is None else tape.nodes[index].operation
    made = _place(log.made.get(number_of(node)))
    raw.facts = replace(raw.facts, node=type(node).__name__, made=made, step=log.step_of(node))


# -- what a node saved was overwritten --------------------------------------------------------------------------------


def _overwritten(raw: RawFailure, tape: Tape, to_come: list[Any], error: BaseException) -> None:
    why = str(error).partition(". Hint")[0]
    found = next(((node, saved) for node in to_come if (saved := unusable(node, why)) is not None), None)
    if found is None:
        return
    node, (name, data) = found
    _note_node(raw, tape, node)
    if data is None:
        return
    memory, position, whole = storage_of(data), raw.operation, data if data._base is None else data._base
    raw.facts = replace(raw.facts, given=(given_tensor(data, name),), name=variable_of(whole, error))
    if position is not None:
        _, args, kwargs, out, _, _ = tape.operations[position]
        taken = [(each, position) for each in tensors_in((args, kwargs))]
        made = [(each, position + 1) for each in tensors_in(out)]
        same = (each for each in (*taken, *made) if tape.storage_of(each[0]) == memory)
        raw.tensor, raw.at = next(same, (None, 0))
    found_writes = sorted(_writes(tape, memory, position), key=lambda each: each[0])
    writes = [(what, _place(site)) for _, what, site in found_writes]
    if position is None and is_trained_leaf(whole) and (update := tape.failures.log.update_after(node)) is not None:
        writes.insert(0, ("optimizer.step()", update.place()))
    raw.facts = replace(raw.facts, writes=tuple(writes))


def _writes(tape: Tape, memory: int, position: int | None) -> Iterator[Write]:
    """What wrote to a memory after the operation at this position."""
    since = -1 if position is None else position
    for place in range(since + 1, len(tape.operations)):
        func, args, kwargs, _, call, _ = tape.operations[place]
        traits = Traits.of(func)
        if traits.writes and any(
            tape.storage_of(each) == memory for each in tensors_in(list(traits.written(args, kwargs or {})))
        ):
            known = tape.calls[call] if call is not None and call < len(tape.calls) else None
            setting = known is not None and getattr(known.function, "__name__", "") == SETITEM
            yield place, SETITEM if setting else base_name(str(func)), None if known is None else known.site
    for update in tape.updates:
        if update.position > since and any(tape.storage_of(each) == memory for each in update.parameters):
            yield update.position, f"{type(update.optimizer).__name__}.step()", update.site
    for run in tape.unread:
        if run.position > since and tape.storage_of(run.tensor) == memory:
            yield run.position, "a write", run.site


# -- a node was freed -------------------------------------------------------------------------------------------------


def _freed(raw: RawFailure, tape: Tape, to_come: list[Any], error: BaseException) -> None:
    freed = [node for node in to_come if unusable(node, FREED) is not None]
    earlier = [node for node in to_come if number_of(node) < tape.first_node]
    log = tape.failures.log
    if not tape.operations:  # not recorded: which of the nodes this pass itself has freed is not known
        freed = [node for node in freed if log.step_of(node) is not None]
        earlier = [node for node in earlier if log.step_of(node) is not None]
    node = next(iter(freed or earlier), None)
    if node is None:
        return
    if number_of(node) < tape.first_node:
        _carried(raw, tape, node, earlier, error)
        return
    _note_node(raw, tape, node)
    index = tape.number_of[node]
    output = next(iter(tape.nodes[index].outputs.values()), None)
    raw.tensor, raw.at = output, len(tape.operations) if raw.operation is None else raw.operation + 1
    tasks = {task for task, number, *_ in tape.executions if number == index}
    passes = (each for each in tape.backwards if each.task in tasks)
    raw.facts = replace(raw.facts, freed=next((_place(each.site) for each in passes), None))


def _carried(raw: RawFailure, tape: Tape, node: Any, earlier: list[Any], error: BaseException) -> None:
    """The graph of an earlier step: the tensor of this step that led there."""
    for position, (_, args, kwargs, *_) in enumerate(tape.operations):
        for tensor in tensors_in((args, kwargs)):
            entry = tape.original(tensor).grad_fn
            if entry is not None and number_of(entry) < tape.first_node and node in behind([entry]):
                _note_node(raw, tape, entry)
                raw.operation, raw.tensor, raw.at = None, tensor, position
                raw.facts = replace(raw.facts, name=variable_of(tensor, error), given=(given_tensor(tensor),))
                return
    _note_node(raw, tape, earlier[0])
    raw.operation = None
    raw.facts = replace(raw.facts, name=variable_of(earlier[0], error))


# -- what a function returned, and what the user's code raised --------------------------------------------------------


def _returned(raw: RawFailure, tape: Tape, to_come: Iterable[Any], name: str, position: str | None) -> None:
    node = next((each for each in to_come if type(each).__name__ == name), None)
    if node is None:
        return
    _note_node(raw, tape, node)
    function = getattr(node, "_forward_cls", None)
    if function is None:
        return
    arguments = list(inspect.signature(function.forward).parameters)
    if "ctx" in arguments[:1] or not _has_setup(function):
        arguments = arguments[1:]
    argument = arguments[int(position)] if position is not None and int(position) < len(arguments) else ""
    code = function.backward.__code__
    raw.facts = replace(
        raw.facts, raised_in=f"{function.__qualname__}.backward", name=argument,
        place=Place(code.co_filename, code.co_firstlineno, code.co_name),
        called=", ".join(arguments),
    )  # fmt: skip


def _has_setup(function: Any) -> bool:
    own = getattr(function, "setup_context", None)
    return own is not None and "_SingleLevelFunction" not in getattr(own, "__qualname__", "")


def _raised(raw: RawFailure, trace: TracebackType | None) -> None:
    """The user's function that backward called and that raised, or called what raised."""
    inside = list(dropwhile(lambda each: each.tb_frame.f_code.co_name != _ENGINE, entries(trace)))
    users = [each for each in inside if not is_library(each.tb_frame.f_code)]
    if not users:
        return
    frame, last = users[0].tb_frame, users[-1]
    site = Site(last.tb_frame.f_code, last.tb_lasti)
    raw.facts = replace(raw.facts, raised_in=_called_as(frame), place=site.place())


def _called_as(frame: FrameType) -> str:
    return frame.f_code.co_qualname.replace("<locals>.", "")


def variable_of(wanted: Any, error: BaseException) -> str:
    """What the user's code calls a tensor, a parameter or the tensor of a node, now; "" if nothing has it.

    The frames of the exception are those below the place where it is caught; the others are still running.
    """
    frames = [*(entry.tb_frame for entry in entries(error.__traceback__)), *callers(sys._getframe(1))]
    users = (each for each in frames if not is_library(each.f_code))
    found = [path for each in users for name, item in locals_of(each).items() if (path := _path_of(wanted, name, item))]
    return next((path for path in found if "[" not in path), found[0] if found else "")


def _path_of(wanted: Any, name: str, item: Any) -> str | None:
    """The path of a tensor in a variable: the variable itself, an item of a list, or a parameter of a module."""
    if is_a(item, Tensor):
        return name if item is wanted or item.grad_fn is wanted else None
    if type(item) in (list, tuple) and len(item) <= FEW:
        members = (_path_of(wanted, f"{name}[{place}]", each) for place, each in enumerate(item))
        return next((found for found in members if found is not None), None)
    if is_a(item, nn.Module) and isinstance(wanted, nn.Parameter):
        return next((f"{name}.{path}" for path, each in named_parameters(item) if each is wanted), None)
    return None
