"""Faults of modes and freezing: evaluation mode while training, and the reverse; parameters frozen by their names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod
from statistics import median

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, listed, plural
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext
from chainrule.graph.graph import Call, Graph, Module
from chainrule.graph.snapshot import Parameter, ParameterUpdate
from chainrule.graph.trees import reach
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

EVAL_WHILE_TRAINING = Check(
    "eval-while-training", "A model is trained in eval mode", "warning",
    what="Batch norms use their running statistics, or dropouts are off, in a model in eval mode most of whose "
    "parameters get a gradient. It is a note if only a part of a model is in eval mode, or few parameters learn there.",
    why="Nothing drops out, and batch norms neither use the batch nor learn its statistics, as after an evaluation "
    "that no model.train() follows.",
    advice="Call model.train() before the steps of each epoch: after every evaluation, and after from_pretrained, "
    "which returns a model in eval mode.",
    source="PyTorch's documentation of nn.Module.eval; Transformers' documentation of from_pretrained", lasts=3,
)  # fmt: skip
MOST = 0.5  # share of the parameters in eval mode that learn, above which it is no frozen part


@EVAL_WHILE_TRAINING.in_step
def _eval_while_training(context: StepContext) -> Iterator[Finding]:
    modules = {module.path: module for module in reversed(context.graph.modules)}  # a loss has no path of its own
    affected: dict[str, list[str]] = {}
    for path, kind in _switched_off(context, modules):
        owner = next((each for each in _around(path, modules) if not modules[each].training), path)
        affected.setdefault(owner, []).append(kind)
    for owner, kinds in affected.items():
        inside = [each for name, each in context.graph.parameters.items() if _is_within(name, owner)]
        learning = _size(each for each in inside if each.has_gradient and context.may_learn(each))
        if not learning:
            continue
        whole = _around(owner, modules)[0] == owner
        name = owner or modules[owner].class_name
        norms, dropouts = kinds.count("norm"), kinds.count("dropout")
        off = (f"{norms} {plural(norms, 'batch norm uses', 'batch norms use')} running statistics" if norms else "",
               f"{dropouts} {plural(dropouts, 'dropout is', 'dropouts are')} off" if dropouts else "")  # fmt: skip
        yield EVAL_WHILE_TRAINING.found(
            name, f"{name} is in eval mode while it is trained: {', '.join(filter(None, off))}.",
            f"{learning} of its {_size(inside)} parameters get a gradient in this step.",
            severity="warning" if whole and learning > MOST * _size(inside) else "note",
        )  # fmt: skip


def _switched_off(context: StepContext, modules: dict[str, Module]) -> Iterator[tuple[str, str]]:
    """(path, kind) of the modules in eval mode that would do something else in train mode."""
    for module in modules.values():
        if module.drops and not module.training:
            yield module.path, "dropout"
    for operation in context.operations_that(lambda facts: facts.uses_batch):
        uses_batch, out = facts_of(operation.name).uses_batch, operation.outputs[0]
        owner = modules.get(context.graph.calls[operation.call].module) if operation.call is not None else None
        if owner is None or owner.training or uses_batch is None or uses_batch(operation.arguments):
            continue
        if out is not None and context.values[out].requires_grad:
            yield owner.path, "norm"


def _around(path: str, modules: dict[str, Module]) -> list[str]:
    """The modules around a path that ran, the outermost first, and itself."""
    parts = path.split(".") if path else []
    return [each for end in range(len(parts) + 1) if (each := ".".join(parts[:end])) in modules]


def _is_within(name: str, owner: str) -> bool:
    return not owner or name.startswith(f"{owner}.")


def _size(parameters: Iterable[Parameter]) -> int:
    return sum(prod(each.shape) for each in parameters)


TRAIN_WHILE_EVALUATING = Check(
    "train-while-evaluating", "A model in train mode is evaluated", "warning",
    what="Between two steps a model that is trained ran several times without gradients and in train mode, with batch "
    "norms or dropouts in it. Passes with one and the same input count as one, as they draw from the network. A watch "
    "sees it before each step that it watches, and counts the batches of batch norms between them. Before most watched "
    "steps, or once at a time, it is a note, as a part of the training, unless a batch norm's running statistics come "
    "to lie far from those of the training's own batches.",
    why="Dropout makes the evaluation random, and batch norms use its batches: they move the running statistics.",
    advice="Call model.eval() before the evaluation and model.train() after it.",
    source="PyTorch's documentation of nn.Module.eval and torch.no_grad: neither implies the other")  # fmt: skip
SEVERAL = 2  # passes: a single one may be of a GAN, or a target
OFTEN = 0.5  # share of the watched steps: more is a part of the training itself, such as a target network


FAR, UNEQUAL = 1.0, 3.0  # standard deviations between the means, and the ratio of the variances


@TRAIN_WHILE_EVALUATING.over_time
def _train_while_evaluating(run: Run) -> Iterator[Finding]:
    after = [each for each in run.steps if each.evaluated]
    several = [each for each in after if each.evaluated >= SEVERAL]
    far = _far(run) if len(after) > OFTEN * len(run.steps) else ""
    if not several and not far:
        return
    shown = after if far else several
    often = len(shown) > OFTEN * len(run.steps)
    times, passes = f"{len(shown)} of {len(run.steps)} watched steps", shown[-1].evaluated
    yield TRAIN_WHILE_EVALUATING.found(
        "the model", f"The model ran {passes} {plural(passes, 'time', 'times')} in train mode beside its training "
        f"steps, before step {shown[-1].step}.",
        (f"So it did before {times}: its dropouts were on, or its batch norms took those batches' statistics.", far),
        severity="note" if often and not far else "warning", since=shown[0].step,
    )  # fmt: skip


def _far(run: Run) -> str:
    """How far a batch norm's running statistics are from those of the batches in the second half of the run."""
    known = [each.distance for each in run.steps[len(run.steps) // 2 :] if each.distance is not None]
    if not run.enough or len(known) < run.thresholds.enough / 2:
        return ""
    away, ratio = (median(each) for each in zip(*known, strict=True))
    if away < FAR and 1 / UNEQUAL < ratio < UNEQUAL:
        return ""
    return (
        f"The running means of a batch norm lie {number(away)} standard deviations from those of the training's "
        f"batches, and its running variances are {number(ratio)} times theirs (medians over the second half)."
    )


DROPOUT_IN_EVAL = Check(
    "dropout-in-eval", "Dropout is on in a module in eval mode", "note",
    what="F.dropout, or an attention with dropout\\_p, drops elements in the forward pass of a module in eval mode. It "
    "is a warning over a run if its call says nothing of `training`, and the model drew random numbers in eval mode, "
    "in a pass without gradients.",
    why="F.dropout does not know the module's mode, so it also drops when the model is evaluated or used.",
    advice="Pass training=self.training to F.dropout (dropout_p if self.training else 0.0), or use nn.Dropout.",
    source="PyTorch's documentation of torch.nn.functional.dropout: training is True by default")  # fmt: skip


ATTENTION = "scaled_dot_product_attention"
TRAINING = 3  # the place of `training` among the arguments of F.dropout


@DROPOUT_IN_EVAL.in_step
def _dropout_in_eval(context: StepContext) -> Iterator[Finding]:
    training = {module.path: module.training for module in reversed(context.graph.modules)}
    dropping: dict[str, list[Call]] = {}
    for call in context.graph.calls:
        if not training.get(call.module, True) and drops(context.graph, call):
            dropping.setdefault(call.module, []).append(call)
    for path, calls in dropping.items():
        name = path or "The model"
        yield DROPOUT_IN_EVAL.found(
            name, f"{name} is in eval mode, and {calls[0].name} drops elements in it.",
            f"{len(calls)} {plural(len(calls), 'call', 'calls')} of {listed(list({each.name: 0 for each in calls}))}.",
            place=calls[0].place,
        )  # fmt: skip


@DROPOUT_IN_EVAL.over_time
def _dropout_in_evaluation(run: Run) -> Iterator[Finding]:
    yield from (found for _, found in DROPOUT_IN_EVAL.carried(run))
    dropped = [each for each in run.steps if each.dropped]
    if dropped:
        yield DROPOUT_IN_EVAL.found(
            "the model", f"The model is evaluated with dropout on ({dropped[0].dropped}).",
            f"In eval mode and without gradients it drew random numbers before step {dropped[0].step}; the call of the "
            "dropout says nothing of `training`.", severity="warning", since=dropped[0].step,
        )  # fmt: skip


TEACHER = Check(
    "teacher-in-training", "A teacher that stands still drops elements at random", "warning",
    what="A network that is run without a gradient, and that nothing moves, has dropout on, and targets of a loss are "
    "made of its outputs. It is a note where the network follows another one, as a mean teacher, and in one step.",
    why="Its targets are those of a thinned network, with another noise at each step.",
    advice="Call teacher.eval() before the loop, and do not call train() on a model that contains it.",
    source="Hinton, Vinyals and Dean, Distilling the knowledge in a neural network, 2015; PyTorch's documentation of "
    "torch.nn.Module.eval")  # fmt: skip
STANDS = 10  # examined steps in which nothing moved it


@TEACHER.in_step
def _teacher(context: StepContext) -> Iterator[Finding]:
    known = {each.value: each.name for each in context.graph.parameters.values()}
    for call in context.graph.calls:
        out = call.outputs[0] if call.outputs else None
        if out is None or context.values[out].requires_grad or not drops(context.graph, call):
            continue
        ends = [each for each in reach([out], context.results) if _enters_a_loss(context, each)]
        weights = sorted(context.graph.ancestors(ends) & known.keys())
        if weights and all(map(context.is_output, ends)):
            yield TEACHER.found(
                known[weights[0]], f"{context.name(ends[0])} is compared with what is learnt, and comes without a "
                f"gradient from a network that drops elements of {context.name(out)} at random.",
                f"Its first weight is {known[weights[0]]}.", place=call.place, severity="note",
            )  # fmt: skip
            return


def _enters_a_loss(context: StepContext, value: int) -> bool:
    """Whether a value without a gradient meets one that has one."""
    after = (context.values[out] for out in context.results(value))
    return not context.values[value].requires_grad and any(each.requires_grad for each in after)


@TEACHER.over_time
def _teacher_over_time(run: Run) -> Iterator[Finding]:
    for stretch, found in TEACHER.carried(run):
        weight = [each for _, each in run.of("parameter", found.where)][-STANDS:]
        stands = len({(each.norm, each.mean) for each in weight}) == 1
        yield replace(found, severity="warning") if stands and len(stretch.steps) >= STANDS else found


DROPPED = Check(
    "dropout-rate", "A dropout drops nearly everything", "warning",
    what="A dropout inside the network zeroes at least nine of ten elements, and less than all of them.",
    why="The share is that of the elements to drop, not to keep: hardly any signal or gradient passes.",
    advice="Give the share to drop: nn.Dropout(1 - keep_prob). TensorFlow's old keep_prob and Caffe's are the others.",
    source="Srivastava et al., Dropout, 2014: up to 0.5 in hidden layers; PyTorch's documentation of nn.Dropout",
    thresholds=("dropped",))  # fmt: skip


@DROPPED.in_step
def _drops_nearly_everything(context: StepContext) -> Iterator[Finding]:
    for call in context.graph.calls:
        share = call.keywords.get("p", next(iter(call.arguments[1:2]), None))
        if not isinstance(share, float) or not context.thresholds.dropped <= share < 1 or not call.outputs:
            continue
        if context.values[call.outputs[0]].requires_grad and drops(context.graph, call):  # of data it is a mask
            name = call.module or context.name(call.outputs[0])
            yield DROPPED.found(
                name, f"The dropout {name} zeroes {share:.0%} of its elements.",
                f"It was given p={share:g}, the share to drop.", place=call.place,
            )  # fmt: skip


def always_drops(graph: Graph) -> str:
    """The place of a call that drops elements in whatever mode, by its text; "" if there is none."""
    return next((str(call.place) for call in graph.calls if drops(graph, call) and _is_always_on(call)), "")


def _is_always_on(call: Call) -> bool:
    try:
        written = ast.parse(call.place.expression if call.place else "", mode="eval").body
    except SyntaxError:
        return False
    if not isinstance(written, ast.Call) or any(isinstance(each, ast.Starred) for each in written.args):
        return False
    keywords = {each.arg: each.value for each in written.keywords}
    if None in keywords:
        return False
    if call.name == ATTENTION:
        return isinstance(keywords.get("dropout_p"), ast.Constant)
    named = ast.unparse(written.func).endswith(call.name)  # a module is called by its own name
    return named and len(written.args) < TRAINING and "training" not in keywords


def drops(graph: Graph, call: Call) -> bool:
    """Whether a call drops elements at random."""
    if call.name == ATTENTION:
        return bool(call.keywords.get("dropout_p"))
    names = (graph.operations[each].name for each in call.operations)
    return "dropout" in call.name and any("bernoulli" in name or "dropout" in name for name in names)


FROZEN_BY_NAME = Check(
    "frozen-by-name", "Parameters that are frozen may not be those that were meant", "warning",
    what="An optimizer moves a parameter of a module that is frozen (requires_grad is False), or the frozen ones of "
    "numbered layers are just those with a digit in their number (1, 10, 11). It is a note that an optimizer holds "
    "frozen ones.",
    why="Frozen parameters that move, by weight decay or a gradient that was left, are not frozen; and a test such as "
    '`"layer.1" in name` also hits layer.10.',
    advice="Print the names whose requires_grad is False; compare whole parts of names; give the optimizer only "
    "parameters that require a gradient, and clear gradients with set_to_none.",
    source="PyTorch's documentation: Autograd mechanics, and torch.optim: a gradient of 0 is not the same as None",
)  # fmt: skip


@FROZEN_BY_NAME.in_step
def _frozen_by_name(context: StepContext) -> Iterator[Finding]:
    frozen = {
        name: each for name, each in context.graph.parameters.items()
        if each.value is not None and not context.values[each.value].requires_grad and not each.has_gradient
    }  # fmt: skip
    # A plain tensor whose gradient is set by hand is no parameter that was frozen.
    own = {name for module in context.graph.modules for name in module.parameters} & frozen.keys()
    held = [member for member in context.members if (known := context.parameter(member)) and known.name in own]
    moved = [(member, move.norm) for member in held if (move := context.move(member)) is not None and move.norm]
    if moved:
        yield _moved(moved)
    elif held and len(frozen) < len(context.graph.parameters):
        names = [member.name for member in held]
        yield FROZEN_BY_NAME.found(
            names[0], f"An optimizer holds {len(names)} frozen {plural(len(names), 'parameter', 'parameters')}: "
            f"{listed(names)}.", f"{len(frozen)} of {len(context.graph.parameters)} parameters are frozen.",
            severity="note",
        )  # fmt: skip
    yield from _hit_by_digit(context, frozen)


def _moved(moved: Sequence[tuple[ParameterUpdate, float]]) -> Finding:
    (first, norm), names = moved[0], [member.name for member, _ in moved]
    decay = first.options.get("weight_decay") or 0.0
    return FROZEN_BY_NAME.found(
        first.name, f"{listed(names)} {plural(len(names), 'is', 'are')} frozen, and the optimizer moves "
        f"{plural(len(names), 'it', 'them')} all the same.",
        (f"The update of {first.name} has a norm of {number(norm)}, though no gradient arrived in this step.",
         f"Its weight decay is {number(float(decay))}; its `.grad` was left by an earlier step."),
    )  # fmt: skip


def _hit_by_digit(context: StepContext, frozen: dict[str, Parameter]) -> Iterator[Finding]:
    """Among layers with the same name but for their number: those are frozen that have a digit in the number."""
    layers: dict[tuple[str, str], dict[int, bool]] = {}
    for name in context.graph.parameters:
        for match in re.finditer(r"(?<!\d)(\d+)(?=\.)", name):
            layers.setdefault((name[: match.start()], name[match.end() :]), {})[int(match[0])] = name in frozen
    found: dict[str, list[str]] = {}
    for (stem, _), numbers in layers.items():
        hit = [each for each, is_frozen in sorted(numbers.items()) if is_frozen]
        if 2 <= len(hit) <= hit[-1] - hit[0] if hit else False:
            for digit in set.intersection(*({*str(each)} for each in hit)):
                within = [each for each in sorted(numbers) if digit in str(each)]
                if hit in (within, [each for each in within if str(each).startswith(digit)]):
                    found.setdefault(stem, [f"{stem}{each}" for each in hit])
    for stem, names in found.items():
        total = len({number for (other, _), numbers in layers.items() if other == stem for number in numbers})
        yield FROZEN_BY_NAME.found(
            names[1], f"{listed(names)} are frozen, and those between are not: all have one digit in their number.",
            f"{len(names)} of {total} layers are frozen.",
        )  # fmt: skip
