"""A run of some hundred steps with something wrong in it, for the pages and the views that tell runs."""

import math

from chainrule import runs
from chainrule.graph.history import StepFacts
from chainrule.graph.statistics import Statistics

LAYERS = tuple(f"blocks.{block}.{part}" for block in range(4) for part in ("attend.weight", "rise.weight", "fall.bias"))


def write(path, steps=300, every=10, findings=True, name=None):
    """Layer by layer smaller gradients, a spike at step 1500, NaN in one layer at its end, two steps in full."""
    layers = LAYERS if name is None else (name, *LAYERS)
    writer = runs.Writer(path, every=every, versions={"chainrule": "0.1.0"})
    for number in range(1, steps + 1):
        step = number * every
        spike = 20 if step == 1500 else 1
        figures = [figure for layer, each in enumerate(layers) for figure in _figures(each, layer, step, spike)]
        loss = spike * (0.2 + 2 * math.exp(-step / 700)) + 0.05 * math.sin(step)
        rates = (1e-3 * (1 + math.cos(step / (every * steps) * math.pi)), 1e-4)
        writer.add(StepFacts(step, 1e9 + step, loss, rates, skipped=step == 2000, scale=None), figures)
    for found in FINDINGS if findings else ():
        writer.find(found)
    if name is not None:
        writer.find(runs.Found(name, "note", name, name, (name,), name, name, 20, 40))
        writer.recorded(50, "none.safetensors", name)
    writer.recorded(1500, "run.steps/1500.safetensors", "loss-spike: the loss")
    writer.close()


def _figures(name, layer, step, spike):
    size = spike * math.exp(-layer / 3) * (1 + 0.2 * math.sin(step / 90 + layer))
    broken = 5 if name == LAYERS[5] and step > 2800 else 0
    for kind, factor in (("parameter", 30.0), ("parameter gradient", 1.0), ("update", 0.03), ("value", 2.0)):
        norm = size * factor if kind != "parameter" else factor
        yield runs.Figure(kind, name, layer, "Linear", "", Statistics(64, norm, 0, norm / 8, -norm, norm, 0, broken))


FINDINGS = (
    runs.Found(
        "vanishing-gradient", "warning", LAYERS[-1], "Gradients shrink by 40 on the way to blocks.3.",
        ("0.026 against 1.0",), "Residual connections, or another initialisation.", "train.py:12", 10, None,
    ),
    runs.Found(
        "loss-spike", "warning", LAYERS[3], "The loss jumped from 0.43 to 8.7.", ("20 times",), "Clip.", "", 1500, 1500,
    ),
    runs.Found(
        "non-finite", "error", LAYERS[5], "5 numbers are not finite.", ("5 of 64",), "Lower the rate.", "", 2810, 3000,
    ),
)  # fmt: skip
