"""A request's body: how much may be sent, how fast, and how much is held of all requests together. Plain ASGI."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from tenfold.serve.protocol import RejectedError, quoted

PARSED = 8
"""Times its text, that JSON takes as lists of numbers."""

Scope = MutableMapping[str, Any]
Headers = list[tuple[bytes, bytes]]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def header(scope: Scope, name: bytes) -> str | None:
    """Of a request; None where it has none."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def said_length(scope: Scope) -> int | None:
    """Bytes that a request says to have; None: it does not say."""
    said = header(scope, b"content-length")
    return int(said) if said is not None and said.isascii() and said.isdigit() else None


@dataclass
class Held:
    """Bytes of bodies that have come and were not yet answered."""

    most: int
    now: int = 0

    def take(self, size: int) -> None:
        """
        Raises:
            RejectedError: that would be too many; status 503.
        """
        if self.now + size > self.most:
            raise RejectedError(503, f"{self.now} bytes of requests are at work: try again", retry_after="1")
        self.now += size


class Body:
    """Reads the body of one request; what it holds is given back at its end.

        with Body(scope, receive, held, most=…) as body:
            data = await body.read(seconds)
    """

    def __init__(self, scope: Scope, receive: Receive, held: Held, *, most: int) -> None:
        """
        Args:
            most: bytes, unpacked.
        """
        self._scope, self._receive, self._all, self._most = scope, receive, held, most
        self._held = 0

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._all.now -= self._held

    async def read(self, seconds: float) -> bytes:
        """The body, unpacked.

        Raises:
            RejectedError: it is too large (413), too slow (408), cut off (400), packed in a way that is not known (415), or too much is held (503).
        """
        said = said_length(self._scope)
        if said is not None and said > self._most:
            raise RejectedError(413, f"the body has {said} bytes, {self._most} are taken at the most")
        encoding = (header(self._scope, b"content-encoding") or "identity").strip().lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise RejectedError(415, f"content-encoding {quoted(encoding)!r} is not known: use gzip, deflate or none")
        try:
            async with asyncio.timeout(seconds):
                body = await self._whole()
        except TimeoutError as error:
            raise RejectedError(408, f"the body did not come within {seconds:g} s") from error
        return body if encoding == "identity" else self._unpacked(body, encoding)

    async def _whole(self) -> bytes:
        parts, more = list[bytes](), True
        while more:
            message = await self._receive()
            parts.append(self._part(message))
            more = bool(message.get("more_body"))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, message: Message) -> bytes:
        if message["type"] != "http.request":
            raise RejectedError(400, "the connection was closed before the body was there")
        part: bytes = message.get("body", b"")
        if self._held + len(part) > self._most:
            raise RejectedError(413, f"the body has more than {self._most} bytes")
        self._take(len(part))
        return part

    def parsed(self, size: int) -> None:
        """Hold what so many bytes of JSON take while they are made numbers.

        Raises:
            RejectedError: too much is held; status 503.
        """
        self._take(PARSED * size)

    def _take(self, size: int) -> None:
        self._all.take(size)
        self._held += size

    def _unpacked(self, body: bytes, encoding: str) -> bytes:
        unpacker = zlib.decompressobj(31 if encoding == "gzip" else 15)
        try:
            out = unpacker.decompress(body, self._most + 1)
        except zlib.error as error:
            raise RejectedError(400, f"the body is not {encoding}: {error}") from error
        if len(out) > self._most:
            raise RejectedError(413, f"the body has more than {self._most} bytes unpacked")
        if not unpacker.eof or unpacker.unused_data:
            raise RejectedError(400, f"the body is not one whole {encoding} stream")
        self._take(len(out))
        return out
