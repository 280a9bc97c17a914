"""What stands between the last layer and the loss, where it takes away what the outputs can say."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import Comparison, comparisons, first_output, with_constants
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.graph import Operation, Value
from chainrule.numbers import number
from chainrule.rules.facts import base_name, facts_of

RECTIFIED = Check(
    "relu-on-scores", "A ReLU on the scores of a classifier", "warning",
    what="A ReLU makes the scores that a sigmoid or a softmax turns into the probabilities of a loss.",
    why="A score is never below 0, so a sigmoid is never below 0.5 and a class is never made unlikely by its own "
    "score; a score that is 0 has no gradient.",
    advice="Drop the ReLU after the last layer.",
    source="Goodfellow, Bengio and Courville, Deep Learning, 2016, 6.2.2: output units")  # fmt: skip


@RECTIFIED.in_step
def _rectified(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        if comparison.scale == "numbers":
            continue
        value, squashed = context.source(comparison.prediction), facts_of(comparison.operation.name).takes == "logits"
        maker = context.producer(value)
        while maker is not None:
            facts, given = facts_of(maker.name), argument(maker, "self")
            if given is None or not (facts.softmax or facts.sigmoid or facts.takes == "scores"):
                break
            value, squashed = context.source(given), True
            maker = context.producer(value)
        if not squashed or maker is None or not facts_of(maker.name).rectifies:
            continue
        known, name = context.statistics(value), context.name(value)
        zeros = "" if known is None else f"{known.zeros} of {known.elements} scores are 0, and get no gradient."
        least = "no probability is below 0.5" if comparison.scale == "probabilities" else "none is below 0"
        yield RECTIFIED.found(
            _module(context, maker) or name,
            f"The scores {name} are the output of a ReLU ({base_name(maker.name).strip('_')}): {least}.",
            (zeros, f"The largest is {number(known.high)}." if known is not None else ""), place=context.place(maker),
        )  # fmt: skip


def _module(context: StepContext, operation: Operation) -> str:
    """The path of the module that an operation belongs to; "" outside of modules."""
    return context.graph.calls[operation.call].module if operation.call is not None else ""


NORMALISED = Check(
    "norm-on-outputs", "A norm on the outputs of a regression", "warning",
    what="The predictions of a regression are the output of a norm, and the targets are five times as large, or five "
    "times as small, by their root mean squares.",
    why="A norm gives its results mean 0 and deviation 1: only its two parameters can bring the outputs to the "
    "size of the targets, in many steps.",
    advice="Let the network end in a linear layer: put no norm after the last one.",
    source="Ioffe and Szegedy, Batch normalization, 2015: it normalises the inputs of a nonlinearity", lasts=3,
)  # fmt: skip
APART = 5.0  # times


@NORMALISED.in_step
def _normalised(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        made = context.producer(context.source(comparison.prediction))
        output, target = context.statistics(comparison.prediction), context.statistics(comparison.target)
        if comparison.scale != "numbers" or made is None or not facts_of(made.name).normalises:
            continue
        if output is None or target is None or output.not_finite or not output.norm or not target.norm:
            continue
        ratio = target.norm / output.norm
        if target.elements == output.elements and not 1 / APART < ratio < APART:
            name, goal = context.name(comparison.prediction), context.name(context.source(comparison.target))
            yield NORMALISED.found(
                _module(context, made) or name,
                f"The predictions {name} come from a norm, and the targets {goal} are {number(ratio)} times as large.",
                f"Predictions have the mean {number(output.mean)} and the deviation {number(output.std)}, targets "
                f"{number(target.mean)} and {number(target.std)}.", place=context.place(made),
            )  # fmt: skip


SCORE = Check(
    "score-as-class", "A score is compared with the number of a class", "warning",
    what="A regression loss compares the largest of a layer's outputs with labels: whole numbers from 0 to one less "
    "than the number of these outputs.",
    why="The largest score says how sure the network is, and not of which class: it is trained to be the label's "
    "number, whichever output it comes from.",
    advice="Give all the scores to cross_entropy. The class is the second result of max(dim), or argmax(dim), and no "
    "gradient passes it.",
    source="PyTorch's documentation of torch.max: it returns values and indices")  # fmt: skip


@SCORE.in_step
def _score(context: StepContext) -> Iterator[Finding]:
    layers = {out for _, _, out in context.weighed}
    for comparison in comparisons(context):
        made = context.producer(context.source(comparison.prediction)) if comparison.scale == "numbers" else None
        given = None if made is None or not facts_of(made.name).largest else argument(made, "self")
        if made is None or given is None or context.source(given) not in layers:
            continue
        shape, dim = context.values[given].shape, made.arguments.get("dim")
        label, known = context.values[context.source(comparison.target)], context.statistics(comparison.target)
        dim = dim[0] if isinstance(dim, (list, tuple)) and len(dim) == 1 else dim
        if isinstance(dim, int) and known is not None and _counts(label) and 0 <= known.low < known.high < shape[dim]:
            name, goal = context.name(comparison.prediction), context.name(context.source(comparison.target))
            yield SCORE.found(
                name, f"{name} is the largest of {shape[dim]} scores, and is compared with the labels {goal}.",
                (context.between(comparison.target),), place=context.place(made),
            )  # fmt: skip


BEST = Check(
    "value-of-best", "The largest value is trained in place of that of the action", "warning",
    what="The largest of a layer's outputs, whichever it is, is trained towards a target that contains the largest of "
    "as many outputs, computed without a gradient: values of actions, where the action that was taken is not asked.",
    why="What an action led to is learnt as the value of another one, the best.",
    advice="Take the value of the action that was taken: values.gather(1, actions[:, None]).",
    source="Mnih et al., Human-level control through deep reinforcement learning, 2015, algorithm 1")  # fmt: skip
OF_BATCH = Check(
    "best-of-batch", "The largest over the batch is taken for each sample", "warning",
    what="A target contains the largest of a layer's outputs over all samples of a batch, computed without a gradient. "
    "It is no matter where it is subtracted from these outputs, or they are divided by it.",
    why="Each sample is trained towards what another one is worth.",
    advice="Take the largest of each row: values.max(1).values, or values.amax(1).",
    source="Mnih et al., Human-level control through deep reinforcement learning, 2015, algorithm 1")  # fmt: skip
FEWEST = 4  # samples


@BEST.in_step
def _best(context: StepContext) -> Iterator[Finding]:
    for comparison, made, given in _bootstrapped(context):
        best = context.producer(context.source(comparison.prediction))
        scores = None if best is None or not facts_of(best.name).largest else argument(best, "self")
        if best is None or scores is None or context.source(scores) not in _of_layers(context):
            continue
        shape = context.values[scores].shape
        if _axis_of(best, shape) == 1 == _axis_of(made, shape) and context.values[given].shape == shape:
            name = context.name(comparison.prediction)
            yield BEST.found(
                name, f"{name} is the largest of {shape[1]} values, whichever it is, and is trained towards what the "
                "action led to.",
                f"Its target is made from the largest of {context.name(given)}, as many values of what came next.",
                place=context.place(best),
            )  # fmt: skip
            return


@OF_BATCH.in_step
def _of_batch(context: StepContext) -> Iterator[Finding]:
    for comparison, made, given in _bootstrapped(context):
        shape, out = context.values[given].shape, first_output(made)
        samples = context.values[comparison.prediction].shape[:1]
        if samples != shape[:1] or shape[0] < FEWEST or _axis_of(made, shape) == 1 or out is None:
            continue
        if any(given in operands(use) for each in (out, *context.results(out)) for use in context.uses.get(each, ())):
            continue
        name = context.name(out)
        yield OF_BATCH.found(
            name, f"{name} is the largest over all {shape[0]} samples of the batch, and is in the target of each.",
            f"It is taken of {context.name(given)} {shape}, along axis 0." if _axis_of(made, shape) == 0
            else f"It is one number, the largest of {context.name(given)} {shape}.",
            place=context.place(made),
        )  # fmt: skip
        return


def _bootstrapped(context: StepContext) -> Iterator[tuple[Comparison, Operation, int]]:
    """Where a target contains the largest of a layer's outputs without a gradient: (comparison, its maker, outputs)."""
    for comparison in with_constants(context):
        if comparison.scale != "numbers" or comparison.target in context.data:
            continue
        before = {comparison.target, *context.graph.ancestors([comparison.target])}
        for made in context.operations_that(lambda facts: facts.largest):
            given = argument(made, "self")
            if given is None or first_output(made) not in before or len(context.values[given].shape) != 2:
                continue
            if context.source(given) in _of_layers(context) and not context.values[given].requires_grad:
                yield comparison, made, given


def _of_layers(context: StepContext) -> set[int]:
    return context.once("of layers", lambda: {context.source(out) for _, _, out in context.weighed})


def _axis_of(made: Operation, shape: tuple[int, ...]) -> int | None:
    """The axis along which the largest is taken; None if it is the largest of all."""
    dim = made.arguments.get("dim")
    dim = dim[0] if isinstance(dim, (list, tuple)) and len(dim) == 1 else dim
    return dim % len(shape) if isinstance(dim, int) else None


def _counts(value: Value) -> bool:
    """Whether its numbers are whole."""
    return not (value.dtype.is_floating_point or value.dtype.is_complex)
