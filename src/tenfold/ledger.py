"""The append-only record of a run: a line a measurement, decision or event.

A run is a function of its ledger: `remember` returns what is recorded and computes only what is not,
so a killed run resumes by running again, with the choices that its recorded measurements imply.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tenfold.errors import TenfoldError
from tenfold.store import unwritable

SCHEMA = 1
BEAT_SECONDS = 20.0


class Ledger:
    """Lines of JSON with a checksum each, flushed to disk one by one; one writer at a time."""

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        """Open, and lock, the ledger of a run folder.

        Raises:
            TenfoldError: another run holds the folder; it holds a run and `resume` is False; its
                schema is newer than this program's; it cannot be written.
        """
        self.path = folder / "ledger.jsonl"
        self.notices: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")  # noqa: SIM115 - held, with its lock, until close()
        except OSError as error:
            raise unwritable(folder, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise TenfoldError(f"another run is at work in {folder}: wait for it, or choose another --out") from error
        try:
            self.entries = self._read()
            if self.entries and not resume:
                raise TenfoldError(f"{folder} holds a run already: go on with --resume, or choose another --out")
        except TenfoldError:
            self._file.close()
            raise
        self._known = {e["key"]: e["value"] for e in self.entries}
        self._before = max((e["at"] for e in self.entries), default=0.0)
        self._opened = time.monotonic()

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        entries, end = [], 0
        *lines, rest = self._file.read().split(b"\n")
        whole = len(lines)  # what has no newline is torn, even where the checksum holds
        if rest:
            lines.append(rest)
        for number, line in enumerate(lines, start=1):
            entry = _parse(line) if number <= whole else None
            if entry is None:
                if number < len(lines):
                    raise TenfoldError(
                        f"line {number} of {self.path} is damaged, and it is not the last one: start anew with another --out"
                    )
                self.notices.append(f"the last line of {self.path.name} was torn (the run was killed): dropped")
                break
            if entry.get("schema", 0) > SCHEMA:
                raise TenfoldError(
                    f"{self.path.parent} was written by a newer Tenfold (schema {entry['schema']}, "
                    f"this one reads {SCHEMA}): upgrade Tenfold, or choose another --out"
                )
            entries.append(entry)
            end += len(line) + 1
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)
        return entries

    @property
    def elapsed(self) -> float:
        """Seconds that the run has been at work, earlier sittings included."""
        return self._before + time.monotonic() - self._opened

    def knows(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def append(self, key: str, value: Any) -> None:
        """Record a value (JSON) under a key that is new."""
        if key in self._known:
            raise ValueError(f"{key} is recorded already: the ledger is append-only")
        entry = {"schema": SCHEMA, "key": key, "at": round(self.elapsed, 3), "value": value}
        body = json.dumps(entry, separators=(",", ":"), allow_nan=False)
        try:
            self._file.write(f"{zlib.crc32(body.encode()):08x} {body}\n".encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error
        # what is used now is what a resumed run will read: floats and tuples as JSON gives them back
        entry = json.loads(body)
        self._known[key] = entry["value"]
        self.entries.append(entry)

    def beat(self) -> None:
        """Record that the run is at work, where nothing was recorded for a while: a kill forgets no more than that of what it has spent."""
        if self.entries and self.elapsed - self.entries[-1]["at"] >= BEAT_SECONDS:
            self.append(f"beat:{len(self.entries)}", None)

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """The recorded value of `key`; computed and recorded first where it is not there."""
        if key not in self._known:
            self.append(key, compute())
        return self._known[key]

    def discard(self) -> None:
        """Remove the record, and the run's folder where nothing else is in it."""
        self.path.unlink(missing_ok=True)
        if not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()

    def close(self) -> None:
        self._file.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """The entry of a line; None where the checksum does not hold."""
    checksum, _, body = line.partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        entry: dict[str, Any] = json.loads(body)
    except ValueError:
        return None
    return entry
