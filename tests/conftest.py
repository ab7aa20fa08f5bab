"""Files with slow tests come first: two workers that take a file at a time then end together."""

import os

import pytest
from launch import RENDEZVOUS


def pytest_collection_modifyitems(items):
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _no_process_group_is_inherited():
    """Libraries note the ranks of a run within this process; the next run must not read them."""
    yield
    for name in RENDEZVOUS:
        os.environ.pop(name, None)
