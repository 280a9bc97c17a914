"""A kind of finding: a softclip that limits everything, so that almost no gradient passes."""

from collections.abc import Iterator

from chainrule.diagnostics import Check, Finding, StepContext

LIMITS_ALL = Check(
    "softclip-limits-all",
    "A softclip limits everything",
    "warning",
    what="Every result of a softclip is within 1 % of its limit, or of its negative.",
    why="The slope there is below 0.02, so almost no gradient passes to the layers before.",
    advice="Raise the limit, or scale the input down.",
)


@LIMITS_ALL.in_step
def _limits_all(context: StepContext) -> Iterator[Finding]:
    for operation in context.graph.operations:
        if not operation.name.startswith("softclip.softclip"):
            continue
        limit, out = abs(operation.arguments["limit"]), context.values[operation.outputs[0]]
        if out.data is not None and bool((out.data.abs() > 0.99 * limit).all()):
            least = float(out.data.abs().min())
            yield LIMITS_ALL.found(
                context.name(operation.outputs[0]),
                f"{context.name(operation.outputs[0])} is at its limit everywhere.",
                f"The least of {out.data.numel()} absolute values is {least:.4g}, and the limit is {limit:g}.",
                place=context.place(operation),
            )
