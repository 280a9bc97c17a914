"""Ordinary trainings, as many kinds as people write: each is tried bare, recorded and watched (`tests.reliability`)."""

from importlib import import_module
from pkgutil import iter_modules

from tests.reliability.trainings.base import TRAININGS, Training

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["TRAININGS", "Training"]
