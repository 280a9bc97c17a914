"""Runs every test with the seed of `tests.seeds`.

A test that trains must hold for any seed and for the rounding of any processor. One whose expected text contains the
numbers of a seed is marked `printed`, and keeps it.
"""

import gc
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch

from tests.seeds import SHIFT, shifted


def pytest_collection_finish() -> None:
    """Spare every garbage collection, and every search for living optimizers, the million objects of the imports."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Shift the seed of a test and of its fixtures."""
    if not SHIFT or item.get_closest_marker("printed"):
        return (yield)
    with shifted():
        return (yield)


@pytest.fixture
def quiet() -> Iterator[None]:
    """One thread, one seed, and none of PyTorch's own warnings, of what it calls a prototype for example."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def nothing_is_compiled() -> None:
    """A watch looks at what was compiled in the process, so a test must not meet what another one compiled."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.utils.counters["frames"]:
        dynamo.reset()
        dynamo.utils.counters.clear()
