"""Step outputs by content hash: a build cache that a killed run leaves whole.

A step's key is everything that went into it. Its output is a folder, written aside and renamed into
place, so that a folder that is there is complete. Of several processes that want the same step, one
works and the others wait for it. It is safe to delete the store at any time.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from tenfold.errors import TenfoldError
from tenfold.recipe import digest


def cache_dir() -> Path:
    """`$TENFOLD_CACHE`, else the user's cache folder."""
    if own := os.environ.get("TENFOLD_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tenfold"


@dataclass(frozen=True)
class Step:
    """A finished step: its folder, what it said of itself, and whether it was there already."""

    path: Path
    meta: dict[str, Any]
    reused: bool


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe = root / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink(missing_ok=True)  # another thread's store may have been quicker
        except OSError as error:
            raise unwritable(root, error) from error

    def has(self, key: dict[str, Any]) -> bool:
        """Whether the output for `key` is there."""
        return _read_meta(self.root / digest(key)) is not None

    def step(self, key: dict[str, Any], work: Callable[[Path], dict[str, Any]]) -> Step:
        """The output for `key`, made by `work(folder) -> meta` unless it is there.

        `work` gets a folder that outlives a kill, so that long work can keep checkpoints in it;
        what it leaves there, less `*.checkpoint`, is the output. Seconds spent are added to meta.
        """
        name = digest(key)
        done, partial = self.root / name, self.root / f"{name}.partial"
        if (meta := _read_meta(done)) is not None:
            return Step(done, meta, reused=True)
        try:
            with _locked(self.root / f"{name}.lock"):
                if (meta := _read_meta(done)) is not None:  # made by whoever held the lock before
                    return Step(done, meta, reused=True)
                partial.mkdir(exist_ok=True)
                wall, cpu = time.perf_counter(), time.process_time()
                meta = work(partial)
                spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
                text = json.dumps({"key": key, **spent, **meta}, indent=1, default=str)
                for leftover in partial.glob("*.checkpoint"):
                    leftover.unlink()
                write_atomic(partial / "meta.json", text)
                if done.exists():  # a folder without readable meta is not a result
                    shutil.rmtree(done)
                partial.rename(done)
        except OSError as error:
            raise unwritable(partial, error) from error
        return Step(done, json.loads(text), reused=False)  # as those will read it who reuse it


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock against other processes and threads; the kernel releases it when its holder is killed.

    The file goes once the work under the lock is done, not where it failed: who waits for it then
    looks again for the result, and needs no lock if it is there.
    """
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)


def _read_meta(folder: Path) -> dict[str, Any] | None:
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError):
        return None
    return meta


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write beside, flush to disk, rename: readers see the old file or the new one, never a part."""
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # a killed checkpoint still ends as one
    with open(beside, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Whether it says that a disk, or one's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def unwritable(path: Path, error: OSError) -> TenfoldError:
    """The one sentence for a folder that cannot be written, or a disk that is full."""
    if is_full(error):
        return TenfoldError(f"the disk that holds {path} is full: free some space, then go on with --resume")
    where = error.filename or path
    return TenfoldError(f"cannot write {where} ({error.strerror}): choose another folder with --out or $TENFOLD_CACHE")
