"""What is copied of an optimizer's step: parameters, gradients, options and states before it, parameters after it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from inspect import unwrap
from os.path import basename
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim.optimizer import Optimizer

from chainrule.capture.data_parallel import own_part
from chainrule.capture.raw_records import RawUpdate
from chainrule.capture.source import Site
from chainrule.capture.tape import Tape
from chainrule.graph.opaque_tensors import is_opaque
from chainrule.graph.snapshot import all_have_numbers
from chainrule.graph.statistics import of_a_sample, part_of
from chainrule.graph.statistics_cache import measured
from chainrule.graph.trees import map_leaves

_only_read = frozenset(  # optimizers of PyTorch's that leave `.grad` unchanged, but for `_writes_gradients`
    {optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.RMSprop, optim.Adagrad}
)


def update_begun(tape: Tape, optimizer: Optimizer, site: Site | None) -> RawUpdate:
    """An optimizer's step: copies of what it changes, the gradients too where it may write to them."""
    groups = [
        ({key: _copied(tape, value) for key, value in group.items() if key != "params"}, list(group["params"]))
        for group in optimizer.param_groups
    ]
    parameters = [p for _, members in groups for p in members]
    before = tape.overwritten(parameters)
    gradients = [p.grad for p in parameters]
    versions = [None if gradient is None else tape.version(gradient) for gradient in gradients]
    if not _only_reads(optimizer) or optimizer._optimizer_step_pre_hooks:
        tape.overwritten(gradient for gradient in gradients if gradient is not None)  # it may be working memory
    own = [] if tape.retention is None or not tape.retention.is_strict else list(map(own_part, parameters))
    return RawUpdate(
        optimizer,
        len(tape.operations),
        site,
        groups,
        before,
        versions,
        [_copied(tape, dict(optimizer.state.get(p, {}))) for p in parameters],
        parts=[] if not all_have_numbers(*own) else list(map(part_of, own)),
    )


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The closure that an optimizer's step is called with; None without one."""
    return kwargs.get("closure") or (args[1] if len(args) > 1 else None)


def closure_ran(tape: Tape, update: RawUpdate) -> None:
    """The passes of a step ran inside of it: take the gradients that its closure left, and begin the update there.

    Of an optimizer that may write to `.grad`, or call the closure again, the gradients that it used are not known.
    """
    present = _gradients_now(tape, update)
    if not _only_reads(update.optimizer):
        return
    ends = (each.position if each.last is None else each.last for each in tape.backwards)
    written = (position + 1 for position, gradient, *_ in tape.writes if any(gradient == id(each) for each in present))
    update.position = max(update.position, *ends, *written)


def _gradients_now(tape: Tape, update: RawUpdate) -> list[Tensor | None]:
    """Take what is in `.grad` at the end of a step for what it used; of an optimizer that writes, that is not known."""
    present = [parameter.grad for parameter in update.parameters]
    unknown = not _only_reads(update.optimizer)
    update.gradients = [
        None if each is None else (torch.empty_like(each, device="meta"), 0) if unknown else tape.version(each)
        for each in present
    ]
    return present


def _only_reads(optimizer: Optimizer) -> bool:
    return type(optimizer) in _only_read and not any(map(_writes_gradients, optimizer.param_groups))


def _writes_gradients(group: dict[str, Any]) -> bool:
    """Whether an optimizer of `_only_read` writes to `.grad` with these options.

    A fused one may unscale it, and Nesterov's momentum is added to it in place where all tensors are moved at once.
    """
    return bool(group.get("fused") or (group.get("nesterov") and group.get("foreach") is not False))


def _copied(tape: Tape, tree: Any) -> Any:
    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        own = own_part(leaf)
        if is_opaque(own):
            return tape.placeholders.placeholder(own, None)
        return own.detach().clone() if tape.retention is None else tape.retention.copy(own, measured=False)

    return map_leaves(copied, tree)


def complete(tape: Tape, update: RawUpdate) -> None:
    """Add the parameters after the step, and statistics of what was added to them where they were not all kept.

    Hooks that the user gave the optimizer run after ours, and may have written to `.grad` before the step.
    """
    if update.optimizer._optimizer_step_pre_hooks:
        _gradients_now(tape, update)
    update.after = [tape.version(p) for p in update.parameters]
    update.hooks = tuple(_hooks_on(update.optimizer))
    if update.parts:
        own = list(map(own_part, update.parameters))
        moves = [part_of(p) - part for p, part in zip(own, update.parts, strict=True)]
        update.moved = [of_a_sample(each, p.numel()) for each, p in zip(measured(moves, False), own, strict=True)]
        update.parts.clear()


def _hooks_on(optimizer: Optimizer) -> Iterator[str]:
    """The hooks that the user gave an optimizer, as `name (file:line)`."""
    for hook in (*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()):
        function = hook.func if isinstance(hook, partial) else hook
        function = function.__func__ if isinstance(function, MethodType) else function
        function = unwrap(function) if isinstance(function, FunctionType) else function
        if isinstance(function, FunctionType):
            code = function.__code__
            yield f"{code.co_qualname.rpartition('<locals>.')[2]} ({basename(code.co_filename)}:{code.co_firstlineno})"
        else:
            yield type(function).__qualname__
