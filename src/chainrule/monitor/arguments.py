"""The arguments of `chainrule.watch`: models and the names of their parameters, optimizers, numbers of steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from chainrule.capture.module_tree import modules_of, named_buffers, named_parameters, parameters_of
from chainrule.errors import RequestError
from chainrule.graph.reexecution import unobserved
from chainrule.graph.trees import is_a
from chainrule.monitor.step_series import without_wrappers


class WatchedModels:
    """The watched models: those `given`, otherwise the modules in `namespace`."""

    def __init__(self, given: list[nn.Module], namespace: Mapping[str, Any]) -> None:
        self.given = given
        self.names: dict[int, str] = {}  # id of a parameter -> its name in a recording
        self._namespace = namespace

    def named(self) -> dict[str, nn.Module]:
        """The modules that the namespace holds now."""
        return modules_in(self._namespace)

    def whole(self) -> list[nn.Module]:
        """The given models; otherwise the user's modules that have parameters and are not part of another module."""
        if self.given:
            return self.given
        named = {id(item): item for item in self.named().values() if any(True for _ in parameters_of(item))}
        parts = {id(part) for item in named.values() for part in modules_of(item) if part is not item}
        return [item for key, item in named.items() if key not in parts]

    def meet(self, roots: Iterable[nn.Module]) -> None:
        """Name the parameters as a recording does, once their model has run."""
        models = self.whole() or [root for root in roots if any(True for _ in parameters_of(root))]
        for prefix, model in self._prefixed(models):
            for path, parameter in named_parameters(model):
                self.names.setdefault(id(parameter), prefix + without_wrappers(path))

    def tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers by their names in a recording."""
        return {
            prefix + path: tensor
            for prefix, model in self._prefixed(self.whole())
            for path, tensor in (*named_parameters(model), *named_buffers(model))
        }

    def _prefixed(self, models: list[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
        known = {id(item): name for name, item in self.named().items()}
        for model in models:
            yield f"{known.get(id(model), type(model).__name__)}." if len(models) > 1 else "", model

    def forget(self) -> None:
        """Drop every reference to the user's objects."""
        self.given, self.names, self._namespace = [], {}, {}


def modules_in(names: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The modules among named objects."""
    return {name: item for name, item in names.items() if is_a(item, nn.Module)}


def as_list(given: Any, kind: type, name: str) -> list[Any]:
    """One object or several, as a list. Raises RequestError for another type, as if model and optimizer are swapped."""
    found = [] if given is None else [given] if isinstance(given, kind) or not isinstance(given, Iterable) else [*given]
    for each in found:
        if not isinstance(each, kind) and not isinstance(unwrapped(each), kind):
            raise RequestError(
                f"chainrule.watch({name}=...) got {type(each).__name__}. Pass one {name} of PyTorch, or several: "
                "chainrule.watch(model, optimizer)."
            )
    return found


def unwrapped(optimizer: Any) -> Any:
    """The optimizer of torch.optim inside the wrappers of Accelerate and Lightning; its hooks are the ones called."""
    for name in ("optimizer", "_optimizer"):
        inside = getattr(optimizer, name, None)
        if isinstance(inside, Optimizer):
            return unwrapped(inside)
    return optimizer


def steps_done(optimizers: Iterable[Optimizer]) -> int:
    """The step count in the state of an optimizer loaded from a checkpoint; 0 if it has none, as SGD."""
    counts = [state["step"] for each in optimizers for state in each.state.values() if "step" in state]
    return max((int(count) for count in counts), default=0)


def step_count(optimizer: Optimizer) -> int:
    """The count of steps in an optimizer's state of its first parameter that has a gradient; 0 if there is none."""
    with unobserved():
        learning = (each for group in optimizer.param_groups for each in group["params"] if each.grad is not None)
        states = (optimizer.state[each] for each in learning if each in optimizer.state)
        return next((int(state["step"]) for state in states if "step" in state), 0)


def check_counts(options: Mapping[str, int | None], least: int) -> None:
    """Raise RequestError unless each option is None or a number of steps."""
    for name, given in options.items():
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < least):
            raise RequestError(
                f"chainrule.watch({name}={given!r}): {name} is a whole number of steps, at least {least}."
            )
