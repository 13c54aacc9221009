"""Which batches fit into memory, tried where failing does no harm."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from tenfold.errors import first_line
from tenfold.limits import free_memory
from tenfold.probe import peak_resident

SHARE = 0.8
"""Of the memory that is free, that a training step may take: the rest is for whatever else runs."""
PATIENCE_SECONDS = 60.0
"""For one step, building the model included."""

OUT_OF_MEMORY, TOO_SLOW = "out of memory", "it did not end within"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What came of one step with a batch."""

    batch: int
    bytes: int | None
    """By which memory grew; None: it did not come to its end."""
    reason: str | None
    """Why it did not."""


def try_step(step: Callable[[int], object], batch: int, device: torch.device) -> Fit:
    """Run `step(batch)` within `SHARE` of the memory that is free.

    On a CPU in a forked process whose allocations fail beyond that, on one thread; on a GPU in this one, where the allocator
    refuses and the memory comes back.
    """
    return _on_gpu(step, batch, device) if device.type == "cuda" else _forked(step, batch, int(SHARE * free_memory()))


def too_much(fit: Fit) -> bool:
    """Whether a larger batch need not be tried."""
    return fit.reason is not None and fit.reason.startswith((OUT_OF_MEMORY, TOO_SLOW))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator said so; PyTorch's on a CPU has no type of error for it."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def _forked(step: Callable[[int], object], batch: int, most: int) -> Fit:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_limited, args=(step, batch, most, theirs), daemon=True)
    child.start()
    theirs.close()
    said = f"{TOO_SLOW} {PATIENCE_SECONDS:.0f} s"
    if ours.poll(PATIENCE_SECONDS):
        try:
            said = ours.recv_bytes().decode()
        except EOFError:  # the allocator, or the kernel, has ended it
            said = OUT_OF_MEMORY
    child.kill()
    child.join()
    ours.close()
    return Fit(batch=batch, bytes=int(said), reason=None) if said.isdigit() else Fit(batch=batch, bytes=None, reason=said)


def _limited(step: Callable[[int], object], batch: int, most: int, answer: Connection) -> None:
    torch.set_num_threads(1)  # threads of the parent are not here, and its pool would wait for them
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")  # if the kernel has to end a process, then this one
    with suppress(OSError):  # as here: elsewhere what is too much is found by what it does to the child
        resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + most, resource.RLIM_INFINITY))
    resident = peak_resident()
    try:
        step(batch)
        said = str(max(0, peak_resident() - resident))
    except Exception as error:  # the user's model may raise anything
        said = OUT_OF_MEMORY if is_out_of_memory(error) else f"{type(error).__name__}: {first_line(error)}"
    answer.send_bytes(said.encode())


def _status(what: str) -> int:
    """Bytes, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{what}:")).split()[1])


def _on_gpu(step: Callable[[int], object], batch: int, device: torch.device) -> Fit:
    free, whole = torch.cuda.mem_get_info(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved(device) + SHARE * free) / whole), device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        step(batch)
        return Fit(batch=batch, bytes=torch.cuda.max_memory_allocated(device) - before, reason=None)
    except Exception as error:  # the user's model may raise anything
        reason = OUT_OF_MEMORY if is_out_of_memory(error) else f"{type(error).__name__}: {first_line(error)}"
        return Fit(batch=batch, bytes=None, reason=reason)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()
