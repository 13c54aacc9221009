"""What memory and how many cores this process may take, by the kernel and by its control groups. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
MEMORY = {"": ("memory.max", "memory.current", "inactive_file"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}
"""Of version 2 and of version 1: the limit, what is taken, and what of that is a cache of files, in memory.stat."""


def limit_bytes() -> int:
    """The most that this process may take: the machine's memory, or less where a control group has less."""
    return min([_pages("SC_PHYS_PAGES"), *(limit for limit, _ in _memory())])


def free_memory() -> int:
    """Bytes that it may still take. Caches of files count as free, as the kernel gives them up."""
    free = _pages("SC_PHYS_PAGES")
    with suppress(OSError, StopIteration):
        lines = (PROC / "meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return max(0, min([free, *(limit - taken for limit, taken in _memory())]))


def core_limit() -> float | None:
    """Cores' worth of time that its control groups let it have; None: they do not limit it."""
    shares = list[float]()
    for folder in _folders("cpu"):
        with suppress(OSError, ValueError):  # "max", or none of cpu
            quota, period = (int(n) for n in (folder / "cpu.max").read_text().split())
            shares.append(quota / period)
        with suppress(OSError, ValueError):
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            shares += [quota / period] if quota > 0 else []
    return min(shares, default=None)


def _pages(what: str) -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf(what)


def _memory() -> Iterator[tuple[int, int]]:
    """(limit, what is taken and not given up) of the control groups that this process is in, where they limit memory."""
    for folder in _folders("memory"):
        for files in MEMORY.values():
            with suppress(OSError, ValueError):  # "max", or none of memory
                yield _of_group(folder, *files)


def _of_group(folder: Path, limit: str, taken: str, cache: str) -> tuple[int, int]:
    stat = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
    return int((folder / limit).read_text()), int((folder / taken).read_text()) - int(stat.get(cache, 0))


def _folders(controller: str) -> Iterator[Path]:
    """Of this process's control group and of those that it is in; within a container its own is at the root."""
    with suppress(OSError):
        for line in (PROC / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            root = GROUPS / (controller if controllers else "")
            if controllers and controller not in controllers.split(","):
                continue
            own = root / path.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))
