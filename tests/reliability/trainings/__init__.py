"""Ordinary trainings, as many kinds as people write: each is tried bare, recorded and watched (`tests.reliability`)."""

from tests.reliability.trainings import architectures, autograd_tools, loops, models, objects, steppers, surroundings
from tests.reliability.trainings.base import TRAININGS, Training

__all__ = [
    "TRAININGS",
    "Training",
    "architectures",
    "autograd_tools",
    "loops",
    "models",
    "objects",
    "steppers",
    "surroundings",
]
