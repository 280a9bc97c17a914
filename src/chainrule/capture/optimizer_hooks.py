"""What an optimizer is about to change, kept before it steps; and what it has made of it, found afterwards."""

from __future__ import annotations

from typing import Any

from torch import Tensor, optim
from torch.optim.optimizer import Optimizer

from chainrule.capture.data_parallel import own_part
from chainrule.capture.tape import RawUpdate, Tape, Version
from chainrule.graph.batched_statistics import measured
from chainrule.graph.source import Site
from chainrule.graph.statistics import of_a_sample, part_of

_only_read = frozenset(  # optimizers of PyTorch's that leave `.grad` as it is (a fused one may unscale it in place)
    {optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.RMSprop, optim.Adagrad}
)


def before_step(tape: Tape, optimizer: Optimizer, site: Site | None) -> RawUpdate:
    """Parameters, options and state, copied; the gradients where they are, unless the optimizer may write to them."""
    groups = [
        ({key: _copied(tape, value) for key, value in group.items() if key != "params"}, list(group["params"]))
        for group in optimizer.param_groups
    ]
    parameters = [p for _, members in groups for p in members]
    strict = tape.keeper is not None and tape.keeper.is_strict
    return RawUpdate(
        optimizer,
        len(tape.operations),
        site,
        groups,
        tape.overwritten(parameters),
        _gradients_of(tape, optimizer, parameters),
        [_copied(tape, dict(optimizer.state.get(p, {}))) for p in parameters],
        parts=[part_of(own_part(p)) for p in parameters] if strict else [],
    )


def after_step(tape: Tape, update: RawUpdate) -> None:
    """The parameters as they are now; what was added to them, where they were not all kept."""
    parameters = [p for _, members in update.groups for p in members]
    update.after = [tape.version(p) for p in parameters]
    if update.parts:
        own = list(map(own_part, parameters))
        moves = [part_of(p) - part for p, part in zip(own, update.parts, strict=True)]
        update.moved = [of_a_sample(each, p.numel()) for each, p in zip(measured(moves, False), own, strict=True)]
        update.parts.clear()


def _gradients_of(tape: Tape, optimizer: Optimizer, parameters: list[Tensor]) -> list[Version | None]:
    """The gradients as the optimizer meets them, which some optimizers then use as memory to work in."""
    gradients = [p.grad for p in parameters]
    versions = [None if gradient is None else tape.version(gradient) for gradient in gradients]
    if type(optimizer) not in _only_read or any(group.get("fused") for group in optimizer.param_groups):
        tape.overwritten(gradient for gradient in gradients if gradient is not None)
    return versions


def _copied(tape: Tape, tree: Any) -> Any:
    if isinstance(tree, Tensor):
        own = own_part(tree)
        return own.detach().clone() if tape.keeper is None else tape.keeper.copy(own, measured=False)
    if isinstance(tree, dict):
        return {key: _copied(tape, value) for key, value in tree.items()}
    return [_copied(tape, item) for item in tree] if isinstance(tree, list) else tree
