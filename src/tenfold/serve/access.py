"""The access log: a line of JSON a request, without what was sent or answered."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from typing import Any, TextIO

import orjson

EVERY_SECONDS = 0.1
"""Lines are written together, so that the thread which writes them is woken seldom."""
MOST_WAITING = 100
"""Times that, of lines which nobody takes: what comes then is dropped, and said to be."""


class AccessLog:
    """Written by a thread, as whoever reads the stream may be slow. Told from one event loop."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._parts: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        self._thread.start()

    def add(self, entry: dict[str, Any]) -> None:
        self._lines.append(orjson.dumps({"time": round(time.time(), 3), **entry}))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(EVERY_SECONDS, self._hand_over)

    def _hand_over(self) -> None:
        self._timer = None
        lines, self._lines = self._lines, []
        if self._parts.qsize() >= MOST_WAITING:
            self._dropped += len(lines)
            return
        if self._dropped:
            lines.append(orjson.dumps({"time": round(time.time(), 3), "dropped": self._dropped}))
            self._dropped = 0
        self._parts.put(b"\n".join([*lines, b""]))

    def end(self, seconds: float = 1.0) -> None:
        """Write what is left, if that takes no longer."""
        self._hand_over()
        self._parts.put(None)
        self._thread.join(seconds)

    def _write(self) -> None:
        while (part := self._parts.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads it: that is no reason to stop serving
                self._stream.write(part.decode())
                self._stream.flush()
