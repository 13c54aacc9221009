"""What memory this process may take, by the kernel and by its control groups. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
FILES = {"": ("memory.max", "memory.current", "inactive_file"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}
"""Of version 2 and of version 1: the limit, what is taken, and what of that is a cache of files, in memory.stat."""


def limit_bytes() -> int:
    """The most that this process may take: the machine's memory, or less where a control group has less."""
    return min([_pages("SC_PHYS_PAGES"), *(limit for limit, _ in _groups())])


def free_memory() -> int:
    """Bytes that it may still take. Caches of files count as free, as the kernel gives them up."""
    free = _pages("SC_PHYS_PAGES")
    with suppress(OSError, StopIteration):
        lines = (PROC / "meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return max(0, min([free, *(limit - taken for limit, taken in _groups())]))


def _pages(what: str) -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf(what)


def _groups() -> Iterator[tuple[int, int]]:
    """(limit, what is taken and not given up) of this process's control group and of those that it is in, where they limit memory."""
    with suppress(OSError):
        for line in (PROC / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            kind = next((k for k in FILES if k in controllers.split(",")), None)
            if kind is not None:
                root = GROUPS / kind
                own = root / path.lstrip("/")
                for folder in (own, *own.parents):
                    if not folder.is_relative_to(root):
                        break
                    with suppress(OSError, ValueError):  # "max", or none of memory; within a container its own is at the root
                        yield _group(folder, *FILES[kind])


def _group(folder: Path, limit: str, taken: str, cache: str) -> tuple[int, int]:
    stat = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
    return int((folder / limit).read_text()), int((folder / taken).read_text()) - int(stat.get(cache, 0))
