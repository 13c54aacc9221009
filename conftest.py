"""Where tests run in several processes (`pytest -n`), on Linux each keeps to a core of its own: none slows down what another one times."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

HERE = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
"""The cores of all of them."""

if HERE and (worker := os.environ.get("PYTEST_XDIST_WORKER")):  # before PyTorch counts them
    os.sched_setaffinity(0, {sorted(HERE)[int(worker.removeprefix("gw")) % len(HERE)]})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One where they could not be kept apart."""
    return max(1, len(HERE))


@pytest.fixture
def all_cores() -> Iterator[None]:
    """For a test of what several cores do."""
    if not HERE:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, HERE)
    yield
    os.sched_setaffinity(0, before)
