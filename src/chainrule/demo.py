"""The worked example: one step of a model file that knows nothing of chainrule, recorded like anybody's code."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from chainrule.examples import worked_example
from chainrule.examples.worked_example import X, Y, build, train_step
from chainrule.recording import Recording, record


def show_demo(
    *,
    optimizer: str,
    logits: bool,
    train: int,
    brief: bool,
    output: str | None,
    show: bool,
) -> Recording:
    """Show one training step; with `train` more steps also the cost and the predictions after them.

    Without `show` the step is recorded for the caller, and not printed.
    """
    console = Console(highlight=False)
    model, loss, update = build(optimizer, logits)
    with record(namespace=vars(worked_example)) as recording:
        train_step(model, loss, update)
    if output is None and show:
        recording.show(brief=brief)
    elif output is not None:
        recording.save(output)
        console.print(f"The step is written to {output}", markup=False)

    if train:
        with Progress(console=console) as progress:
            for _ in progress.track(range(train), description="training"):
                train_step(model, loss, update)
        with torch.no_grad():
            console.print(f"After {train} more steps the cost is {loss(model(X), Y).item():.4f}.")
        console.print(_predictions(model))
    return recording


@torch.no_grad()
def _predictions(model: worked_example.Network) -> Table:
    output = model(X)
    probabilities = torch.sigmoid(output) if model.logits else output
    table = Table("x", "probability of 1", "prediction", "y")
    for x, p, y in zip(X.tolist(), probabilities[:, 0].tolist(), Y[:, 0].tolist(), strict=True):
        table.add_row(", ".join(f"{each:g}" for each in x), f"{p:.4f}", f"{p > 0.5:d}", f"{y:g}")
    return table
