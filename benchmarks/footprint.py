"""What a step holds in memory, measured from outside: the process's own peak, and bytes of distinct storages.

Run as a program it measures one step in a process of its own (`python -m benchmarks.footprint gpt2-sdpa all`), where
no other model's leavings are. Large blocks are then mapped one by one (`alone`), so that what is freed goes back to the
system at once and the peak is the peak of what was in use.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.steps import SUBJECTS, Training
from benchmarks.timing import Step

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what proc(5) says to write
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # fixed: glibc raises it otherwise, and then keeps what is freed
MB = 1e6

Storages = dict[int, UntypedStorage]  # by identity; held, so that no other takes the same one


def measurable() -> bool:
    """Whether this system tells a process its peak, and lets it begin anew."""
    return STATUS.exists() and os.access(CLEAR, os.W_OK)


def alone(*arguments: str, module: str = "benchmarks.footprint", seconds: float | None = None) -> dict[str, Any]:
    """What `python -m module arguments` prints as JSON in its last line, run with blocks mapped one by one."""
    command = [sys.executable, "-m", module, *arguments]
    ended = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | MAPPED, timeout=seconds
    )
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


def peak(step: Step) -> float:
    """Bytes of this process in memory at the most while the step runs and what it returns is held."""
    gc.collect()
    CLEAR.write_text(RESET_PEAK)
    result = step()
    found = _status("VmHWM")
    del result
    return found


def resident() -> float:
    """Bytes of this process that are in memory now."""
    return _status("VmRSS")


def _status(key: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024.0


# -- bytes of storages -------------------------------------------------------------------------------------------------


def made_by(training: Training) -> float:
    """Bytes that one step makes and that a recording of everything must hold.

    They are the distinct results of its operations, the gradients that autograd hands from node to node, and a copy of
    what the user owns and the next step overwrites, `.grad` among it. Counted without chainrule: by a dispatch mode of
    our own, and hooks on the nodes.
    """
    training.model.zero_grad()
    theirs = owned(training)
    results: Storages = {}
    with _Results(results):
        loss = training.loss()
    hooks = [node.register_hook(_keep_into(results, node)) for node in _nodes(loss)]
    loss.backward()
    for hook in hooks:
        hook.remove()
    return total(results, without=theirs) + total(owned(training))


def held_by(recording: Any) -> Storages:
    """The distinct storages of every tensor that can be reached from a recording, but not through models or code."""
    found: list[Tensor] = []
    seen, waiting = {id(recording)}, [recording]
    while waiting:
        for item in gc.get_referents(waiting.pop()):
            if id(item) in seen or isinstance(item, _STRANGERS):
                continue
            seen.add(id(item))
            if isinstance(item, Tensor):
                found.append(item)
            else:
                waiting.append(item)
    return _storages(found)


@contextmanager
def saved_by_autograd(into: Storages) -> Iterator[None]:
    """Note the storages that autograd saves for the way back, which the bare step holds as well."""

    def note(tensor: Tensor) -> Tensor:
        into.update(_storages([tensor]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield


def owned(training: Training) -> Storages:
    """What is the user's own: parameters, their gradients, buffers, inputs and targets."""
    model = training.model
    gradients = (parameter.grad for parameter in model.parameters())
    return _storages([*model.parameters(), *gradients, *model.buffers(), training.inputs, training.targets])


def total(storages: Storages, without: Iterable[int] = ()) -> float:
    """Bytes of these, without those."""
    others = set(without)
    return float(sum(storage.nbytes() for key, storage in storages.items() if key not in others))


_STRANGERS = (type, ModuleType, FunctionType, BuiltinFunctionType, CodeType, FrameType, nn.Module)


def _storages(tensors: Iterable[Any]) -> Storages:
    dense = (tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.layout is torch.strided)
    return {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in dense)}


class _Results(TorchDispatchMode):
    def __init__(self, into: Storages) -> None:
        super().__init__()
        self.into = into

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.into.update(_storages(tree_iter(out)))
        return out


def _nodes(loss: Tensor) -> list[Any]:
    """Every node that the backward pass reaches, but for the leaves' own."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen and not hasattr(node, "variable"):
            seen.add(node)
            waiting += [target for target, _ in node.next_functions]
    return list(seen)


def _keep_into(results: Storages, node: Any) -> Callable[[Any, Any], None]:
    """A hook that notes what the node sends on, except into leaves: that becomes `.grad`, and is counted there."""
    inner = [not hasattr(target, "variable") for target, _ in node.next_functions]

    def note(downstream: tuple[Any, ...], upstream: tuple[Any, ...]) -> None:
        results.update(_storages(gradient for gradient, keep in zip(downstream, inner, strict=False) if keep))

    return note


def main() -> None:
    from benchmarks.overhead import recorded

    key, keep = sys.argv[1:3]
    recorded(SUBJECTS["mlp"].build(tiny=True), keep)()  # what is imported on first use belongs to no step
    training = SUBJECTS[key].build()
    run = recorded(training, keep)
    training(), run()
    bare, watched = peak(training), peak(run)
    saved: Storages = {}
    with saved_by_autograd(saved):
        recording = run()
    theirs, held = owned(training), held_by(recording)
    del recording
    answer = {
        "above": watched - bare,
        "held": total(held, without=theirs),
        "shared": total({key: storage for key, storage in held.items() if key in saved}, without=theirs),
        "made": made_by(training),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
