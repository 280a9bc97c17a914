"""Layers that can't do in this step what they are there for."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument, base_of
from chainrule.numbers import number

BATCH_NORM_OF_ONE = Check(
    "batch-norm-of-one",
    title="A batch norm in training with one sample",
    severity="warning",
    what="A batch norm that takes its mean and variance from the batch (train mode) got a batch of one sample.",
    why="It normalises the sample by itself: what sets it apart from others is lost, and the running averages, which "
    "evaluation will use, follow single samples.",
    advice="Take a larger batch (drop_last=True for a last one of 1), put the layer into eval mode, or take a norm "
    "that does not look across the batch: nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d.",
    source="Ioffe and Szegedy, 2015; Wu and He, Group normalization, 2018: its error grows as the batch gets small",
)


@BATCH_NORM_OF_ONE.in_step
def _batch_norm_of_one(context: StepContext) -> Iterator[Finding]:
    for operation in context.graph.operations:
        if "batch_norm" not in operation.name or "backward" in operation.name:
            continue
        training = operation.arguments.get(
            "training", operation.arguments.get("train", base_of(operation) == "batch_norm")
        )
        given, out = argument(operation, "input"), operation.outputs[0] if operation.outputs else None
        if given is None or out is None or not training:
            continue
        shape = context.graph.values[given].shape
        call = context.graph.calls[operation.call] if operation.call is not None else None
        if not shape or shape[0] != 1 or call is None or "batch_norm" not in call.name:
            continue  # an instance norm is a batch norm of PyTorch's own making, with the samples as channels
        evidence = [f"Its input has the shape {shape}: mean and variance of each channel are those of one sample."]
        known = context.statistics(given)
        if known is not None:
            evidence.append(f"The input's mean is {number(known.mean)}, its standard deviation {number(known.std)}.")
        where = call.module or context.name(out)
        yield BATCH_NORM_OF_ONE.found(
            where, f"The batch norm {where} is in training and got one sample.", evidence, place=call.place
        )
