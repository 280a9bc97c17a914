"""Runs of made-up numbers, written as a watch writes them."""

import math
import sys
import time
from unittest import mock

from chainrule import runs
from chainrule.graph.history import StepFacts
from chainrule.graph.statistics import Statistics

NAMES = ("fc1.weight", "fc1.bias", "fc2.weight")


def statistics(size, magnitudes=()):
    return Statistics(12, size, size / 10, size / 5, -size, size, 3, 0, magnitudes)


def figures(step, magnitudes=()):
    return [
        runs.Figure(kind, name, layer, "Linear", "float32", statistics(step * factor + layer, magnitudes))
        for kind, factor in (("parameter", 10.0), ("parameter gradient", 1.0), ("update", 0.5))
        for layer, name in enumerate(NAMES)
    ]


def facts(step, **more):
    return StepFacts(step, 1000.0 + step, **{"loss": 1 / step, "rates": (0.1, 0.01), **more})


def write(path, steps, **options):
    writer = runs.Writer(path, **options)
    for step in steps:
        writer.add(facts(step), figures(step))
    writer.close()


def endlessly(path, batch, said):
    """Say when each step was handed over, until the process is killed."""
    with mock.patch("chainrule.monitor.runs.writer.BATCH", batch):
        writer = runs.Writer(path)
        for step in range(1, sys.maxsize):
            writer.add(facts(step, loss=math.sin(step)), figures(step))
            said.send((step, time.monotonic()))
            time.sleep(0.001)
