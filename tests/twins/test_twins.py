"""Right backwards raise no alarm, however they are run; the same with a mistake are found in each of these ways."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.twins import WAYS, spoiled, step, tried
from tests.twins.operations import EVERY

QUICK = ("layer norm", "mul")
QUICK_WAYS = ("bfloat16", "complex64", "not contiguous", "vmap", "checkpoint")
UNCHECKED = {"checkpoint, reentrant"}  # the functions inside it: its own backward runs them


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("way", QUICK_WAYS)
def test_some_right_backwards_raise_no_alarm(way: str) -> None:
    outcome = tried(way, range(1), [EVERY[name] for name in QUICK])
    assert outcome.runs
    assert not outcome.alarms


def test_what_a_reentrant_checkpoint_rounds_raises_no_alarm() -> None:
    assert not tried("checkpoint, reentrant", range(1), [EVERY["cosine"]]).alarms


@pytest.mark.parametrize("way", QUICK_WAYS)
def test_a_mistake_is_found_in_each_way(way: str) -> None:
    verification = step(WAYS[way], spoiled(EVERY["mul"]), 0)
    assert {row.node.name for row in verification.failures if row.node.function_class is not None}


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_right_backwards_raise_no_alarm(way: str) -> None:
    outcome = tried(way, range(5))
    assert outcome.runs
    assert not outcome.alarms


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("way", [name for name in WAYS if name not in UNCHECKED])
def test_every_mistake_is_found(way: str) -> None:
    operations = [each for each in EVERY.values() if WAYS[way].takes(each)]
    verifications = {each.name: step(WAYS[way], spoiled(each), 0) for each in operations}
    assert not [name for name, found in verifications.items() if found is not None and found.passed]
