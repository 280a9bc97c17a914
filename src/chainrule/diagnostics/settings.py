"""What a script sets without an effect, and layers that are one layer under several names."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.capture.ignored_settings import is_slip
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.graph.graph import Module, Operation
from chainrule.graph.trees import reach
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

WITHOUT_EFFECT = Check(
    "setting-without-effect", "A setting has no effect", "warning",
    what="`requires_grad` was set to False as an attribute of a module, or under a misspelt name of a parameter, and "
    "the parameters still learn. Or an optimizer of PyTorch's has an attribute with the name of an option, such as "
    "lr, and a number that no parameter group has. Or a parameter group has a misspelt option.",
    why="Python sets any attribute without a word, and nothing reads it: what was to be frozen learns, and the old "
    "learning rate stays.",
    advice="Freeze a module by module.requires_grad_(False), and change an option in each group of "
    'optimizer.param_groups: group["lr"] = 1e-4.',
    source="PyTorch's documentation of nn.Module.requires_grad_ and torch.optim: per-parameter options")  # fmt: skip


@WITHOUT_EFFECT.in_step
def _not_frozen(context: StepContext) -> Iterator[Finding]:
    for module in (each for each in context.graph.modules if each.ignored):
        learning = [
            name for name, each in context.graph.parameters.items()
            if each.has_gradient and (name in module.parameters or name.startswith(f"{module.path}."))
        ]  # fmt: skip
        for name in module.ignored if learning else ():
            whole = name == "requires_grad"
            path = module.path or "the model" if whole else module.parameters[0]
            yield WITHOUT_EFFECT.found(
                path, f"{path} is not frozen: {name} = False is an attribute that nothing reads.",
                (f"{len(learning)} of its parameters have a gradient: {listed(learning)}.",),
                advice=f"Call {path}.requires_grad_(False)." if whole else "The attribute of a parameter that freezes "
                "it is requires_grad.",
            )  # fmt: skip


@WITHOUT_EFFECT.in_step
def _other_rate(context: StepContext) -> Iterator[Finding]:
    for update in context.graph.updates:
        for name, value in update.ignored.items():
            used = dict.fromkeys(each.options.get(name) for each in update.parameters)
            shown = listed([number(float(each)) for each in used if isinstance(each, (int, float))])
            yield WITHOUT_EFFECT.found(
                update.optimizer, f"{update.optimizer} has an attribute {name} of {number(value)} that it does not "
                "read: options are those of its parameter groups.", f"It uses {name} = {shown}.",
                advice=f'Set it in each group: for group in optimizer.param_groups: group["{name}"] = {value:g}.',
            )  # fmt: skip


SYNONYMS = {"learning_rate": "lr"}


@WITHOUT_EFFECT.in_step
def _misspelt(context: StepContext) -> Iterator[Finding]:
    """Options of a group beside the one that they were meant for."""
    seen = set()
    for update in context.graph.updates:
        for member in update.parameters:
            for name, value in member.options.items():
                if name in KNOWN:
                    continue
                meant = SYNONYMS.get(name) or next((each for each in KNOWN if is_slip(name, each)), name)
                if meant not in member.options or (name, meant) in seen:
                    continue
                if not isinstance(value, (int, float)) or value == member.options[meant]:
                    continue
                seen.add((name, meant))
                used = number(float(member.options[meant]))
                yield WITHOUT_EFFECT.found(
                    member.name, f"{update.optimizer} does not know the option {name} of the group of {member.name}.",
                    f"It was given {name} = {number(float(value))}, and uses {meant} = {used}.",
                    advice=f"The option is called {meant}.",
                )  # fmt: skip


KNOWN = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "betas", "alpha", "eps", "amsgrad", "initial_lr")

SHARED = Check(
    "shared-layers", "Several layers are one and the same", "warning",
    what="A module holds one layer with parameters under several names, and calls it several times in a row, each on "
    "the result of the time before.",
    why="`n * [layer]` and a list of one variable hold the same layer n times: the network has the parameters of one.",
    advice="Make a layer for each place: [Layer() for _ in range(n)], or copy.deepcopy(layer). To share on purpose, "
    "call one layer in a loop.",
    source="PyTorch's documentation of nn.Module: a module that is assigned is not copied")  # fmt: skip


@SHARED.in_step
def _shared(context: StepContext) -> Iterator[Finding]:
    for module in context.graph.modules:
        if module.again and _has_parameters(context, module) and _feeds_itself(context, module):
            names = [module.path, *module.again]
            inner = [name for name in context.graph.parameters if name.startswith(f"{module.path}.")]
            yield SHARED.found(
                module.path, f"{listed(names)} are one {module.class_name}, and not {len(names)}.",
                f"They share {len(inner)} parameters: {listed(inner)}.",
            )  # fmt: skip


def _has_parameters(context: StepContext, module: Module) -> bool:
    return any(name.startswith(f"{module.path}.") for name in context.graph.parameters)


def _feeds_itself(context: StepContext, module: Module) -> bool:
    """Whether a parameter of it is used on what was computed with it before, as often as it has names."""
    inside = [call for call in context.graph.calls if f"{call.module}.".startswith(f"{module.path}.")]
    if not inside:
        return False
    weights = {
        each.value for name, each in context.graph.parameters.items() if name.startswith(f"{module.path}.")
    } - {None}  # fmt: skip
    for weight in weights:
        uses = [each.outputs[0] for each in context.uses.get(weight or 0, ()) if each.outputs]
        made = [each for each in uses if each is not None]
        if len(made) > len(module.again) and made[0] in context.graph.ancestors([made[-1]]):
            return True
    return False


MOVES = Check(
    "frozen-norm-moves", "The statistics of a frozen batch norm move", "warning",
    what="The parameters of a batch norm are frozen, and so are all of the module around it, while other parts learn; "
    "but it is in train mode: it takes the mean and the variance of each batch, and its running statistics follow.",
    why="The frozen part is not frozen: its features depend on the batch, and in eval mode they are others than "
    "before the training.",
    advice="Call .eval() on the frozen part, after each model.train().",
    source="PyTorch's documentation of BatchNorm2d: running statistics are kept in train mode", lasts=5)  # fmt: skip


@MOVES.in_step
def _moves(context: StepContext) -> Iterator[Finding]:
    moving = []
    for operation in context.operations_that(lambda facts: facts.uses_batch):
        uses_batch, call = facts_of(operation.name).uses_batch, operation.call
        weight, tracked = argument(operation, "weight"), argument(operation, "running_mean")
        if (
            uses_batch is None
            or call is None
            or weight is None
            or tracked is None
            or not uses_batch(operation.arguments)
        ):
            continue
        path = context.graph.calls[call].module
        if _is_frozen(context, path) and (taker := _learns_behind(context, operation)):
            moving.append((path, operation, taker))
    if moving:
        (path, operation, taker), names = moving[0], listed(list(dict.fromkeys(path for path, _, _ in moving)))
        yield MOVES.found(
            path, f"The frozen batch norms of {names} are in train mode: their statistics follow the batches.",
            f"{len(moving)} compute with the batch; none of their parameters learns, and {taker} does on the result.",
            place=context.place(operation),
        )  # fmt: skip


def _is_frozen(context: StepContext, path: str) -> bool:
    """Whether a module has parameters, and none of the module around it requires a gradient."""
    around = path.rpartition(".")[0] or path
    inside = [each for name, each in context.graph.parameters.items() if name.startswith(f"{around}.")]
    values = [each.value for each in inside if each.value is not None]
    return bool(values) and not any(context.values[each].requires_grad for each in values)


def _learns_behind(context: StepContext, operation: Operation) -> str:
    """A parameter that learns, and is used on what an operation computed; "" if there is none."""
    behind = reach([out for out in operation.outputs[:1] if out is not None], context.results)
    after = {*operation.outputs[:1], *behind}
    weights = (weight for given, weight, _ in context.weighed if given in after)
    return next((context.values[each].name for each in weights if context.values[each].requires_grad), "")
