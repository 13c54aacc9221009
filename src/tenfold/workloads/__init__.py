"""The built-in tasks, each with its small baseline model. A module here with a `workload` function is one."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenfold.workload import Workload


def built_in() -> dict[str, Callable[[Path | None], Workload]]:
    """The built-in workloads by name: functions of where the data lies (None: look for it)."""
    names = [m.name for m in pkgutil.iter_modules(__path__)]
    return {name.replace("_", "-"): _maker(name) for name in names}


def _maker(name: str) -> Callable[[Path | None], Workload]:
    def make(data: Path | None) -> Workload:
        workload: Workload = import_module(f"{__name__}.{name}").workload(data)
        return workload

    return make
