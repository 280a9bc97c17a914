"""Runs every test with the seed of `tests.seeds`.

A test that trains must hold for any seed and for the rounding of any processor. One whose expected text contains the
numbers of a seed is marked `printed`, and keeps it.
"""

from collections.abc import Iterator

import pytest

from tests.seeds import SHIFT, shifted


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Shift the seed of a test and of its fixtures."""
    if not SHIFT or item.get_closest_marker("printed"):
        return (yield)
    with shifted():
        return (yield)
