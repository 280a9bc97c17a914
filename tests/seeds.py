"""The seed of the tests, in one place: `CHAINRULE_TEST_SEED=1` shifts every `torch.manual_seed` of a test by 1."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SHIFT = int(os.environ.get("CHAINRULE_TEST_SEED", "0"))


@contextmanager
def shifted() -> Iterator[None]:
    seed = torch.manual_seed
    torch.manual_seed = lambda number: seed(number + SHIFT)
    try:
        yield
    finally:
        torch.manual_seed = seed
