"""Where real data or a browser is missing a test is skipped, unless TENFOLD_EXPECT_ALL says that it must run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from tenfold.pipeline import Result, run
from tenfold.testing import small_builder, small_workload

__all__ = ["small_builder"]

hypothesis.settings.register_profile("shared machine", deadline=None)  # what else runs decides how long an example takes
hypothesis.settings.load_profile("shared machine")
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it, and so would all that tests start


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = (yield).get_result()
    if report.skipped and os.environ.get("TENFOLD_EXPECT_ALL"):
        report.outcome = "failed"
        report.longrepr = f"skipped where everything is expected to run: {report.longrepr}"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """No test reads or writes the user's cache."""
    before = os.environ.get("TENFOLD_CACHE")
    os.environ["TENFOLD_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["TENFOLD_CACHE"]
    else:
        os.environ["TENFOLD_CACHE"] = before


@pytest.fixture
def one_thread():
    """Models as small as those of tests are slower on two threads, much slower where another process wants the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A whole run of the small task."""
    return run(small_workload(), out=tmp_path_factory.mktemp("runs") / "small", budget=300, levers=("precision", "quantize", "runtime"), view="quiet")


@pytest.fixture(scope="session")
def tenfold() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, in a process of its own."""

    def call(*words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tenfold.cli", *map(str, words)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=500, check=False, cwd=cwd, env=os.environ | environment
        )

    return call
