"""Limits on a connection before there is a request: uvicorn's protocol with deadlines, a size for heads, and a cap on connections."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from tenfold.serve.body import Headers
from tenfold.serve.settings import Settings

MOST_HEAD = 32 << 10
"""Bytes of a request's line and headers."""
TOO_LONG = f"the line and the headers of a request have more than {MOST_HEAD} bytes"
MOST_PIPELINED = 16
"""Requests of a connection that wait for the one before."""
SHORTLY_SECONDS = 0.01
CROWDED_SECONDS = 1.0
"""In which a connection beyond the cap has to say something to be told so."""


Answered = Callable[[int, bytes, Headers], None]
"""(status, body, headers but the body's length)."""
Soon = Callable[[re.Match[str], Headers, bytes, Answered], bool]
"""(path of a POST, which is that of `INFER`, headers, body, told of the answer in this turn of the event loop); False: the application answers."""
INFER = re.compile(r"/v2/models/(?P<model>[A-Za-z0-9._-]+)(?:/versions/(?P<version>[0-9]+))?/infer")
"""Of a URL that needs no decoding."""


def limited(settings: Settings, soon: Soon | None = None) -> type[HttpToolsProtocol]:
    """The protocol of a server with these settings. Connections grow old, so that a client which keeps one comes to other servers too.

    Args:
        soon: asked before the application, where a request has come as a whole.
    """

    class Limited(HttpToolsProtocol):
        _heading, _head = True, 0
        """Whether a head is being read, and how much of it there was."""
        _began_here = False
        """Whether it began in what came last."""
        _is_long = False
        _refused: tuple[Any, ...] | None = None
        """What is said after the answer that is waited for."""
        _deadline: asyncio.TimerHandle | None = None
        """For a head, or for whatever comes after an answer."""
        _writing: asyncio.TimerHandle | None = None
        """For an answer to be read."""
        _old = 0.0
        """When it is closed, with the next answer."""
        _crowded = False
        _place: re.Match[str] | None = None
        _aside: list[bytes] | None = None
        """The body of a request that may be answered in this turn, as far as it has come."""
        _at_work: RequestResponseCycle | None = None
        _waiting = False
        """For an answer in this turn."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]
            self._crowded = len(self.connections) > settings.max_connections
            self._deadline = self.loop.call_later(CROWDED_SECONDS if self._crowded else settings.head_seconds, self._late)
            self._old = self.loop.time() + settings.connection_seconds * random.uniform(0.8, 1.2)

        def connection_lost(self, exc: Exception | None) -> None:
            self._in_time()
            self._read()
            self._give_up()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self._crowded:
                self._refuse(503, "too many connections: try again", b"retry-after: 1\r\n")
                return
            self._began_here = False
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self._aside is not None:  # more of it is to come
                self._as_usual()
            if self._heading and not self._began_here:  # no more than what came last is held of one that began in it
                self._head += len(data)
                if self._head > MOST_HEAD:
                    self._refuse(431, TOO_LONG)
                    return
            answered = (self.cycle is None or self.cycle.response_complete) and self.timeout_keep_alive_task is None and not self._waiting
            if (self._heading or answered) and self._deadline is None:
                self._deadline = self.loop.call_later(settings.head_seconds, self._late)

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self._at_work = cycle
            super()._start_asgi_task(cycle, app)

        def _give_up(self) -> None:
            """Nobody is there any more for what is at work, or waits for it."""
            if self._at_work is not None:
                self._at_work.disconnected = True
                self._at_work.message_event.set()
            self.pipeline.clear()

        def on_message_begin(self) -> None:
            self._heading, self._head, self._began_here = True, 0, True
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._measured(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._measured(len(name) + len(value) + len(": \r\n"))
            if self._heading:  # after a body they are trailers, which nobody here asks for, and which might say what headers had not said
                super().on_header(name, value)

        def _measured(self, size: int) -> None:
            self._head += size if not self._heading or self._began_here else 0  # else it was counted as it came
            if self._head > MOST_HEAD:
                self._is_long = True
                raise ValueError(TOO_LONG)  # the parser hands it to send_400_response

        def on_headers_complete(self) -> None:
            if len(self.pipeline) >= MOST_PIPELINED:
                raise ValueError("too many requests at once on a connection")  # the parser hands it to send_400_response
            self._in_time()
            self._place = INFER.fullmatch(self.url.decode("latin-1"))
            if self._place is not None and self._may_be_soon():
                self._aside = []
            else:
                self._to_application()
            self._heading = False

        def on_body(self, body: bytes) -> None:
            if self._aside is not None:
                self._aside.append(body)
            else:
                super().on_body(body)

        def on_message_complete(self) -> None:
            self._in_time()  # of what was answered before it had come
            if self._aside is not None and self._is_soon(b"".join(self._aside)):
                self._aside = None
                return
            if self._aside is not None:
                self._as_usual()
            super().on_message_complete()

        def _to_application(self) -> None:
            super().on_headers_complete()
            if self.loop.time() > self._old:
                self.cycle.keep_alive = False

        def _as_usual(self) -> None:
            """Hand what was put aside to the application."""
            parts, self._aside = self._aside or [], None
            self._to_application()
            for part in parts:
                super().on_body(part)

        def _may_be_soon(self) -> bool:
            """Whether it is an ordinary POST that somebody may answer in this turn, and nothing else is at work or about to end on its connection."""
            idle = not self._waiting and (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused
            ordinary = self.parser.get_method() == b"POST" and self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()
            return soon is not None and idle and ordinary and not self.parser.should_upgrade() and not self.expect_100_continue and self.loop.time() <= self._old

        def _is_soon(self, body: bytes) -> bool:
            assert soon is not None
            assert self._place is not None
            self._waiting = soon(self._place, self.headers, body, self._answered)
            return self._waiting

        def _answered(self, status: int, content: bytes, headers: Headers) -> None:
            self._waiting = False
            if self.transport.is_closing():
                return
            lines = [b"%b: %b\r\n" % each for each in (*self.server_state.default_headers, *headers, (b"content-length", b"%d" % len(content)))]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", content]))
            if self._refused is not None:
                self._refuse(*self._refused)
            elif self.cycle is None or self.cycle.response_complete:  # nothing has come after it
                self.on_response_complete()

        def shutdown(self) -> None:
            if self._waiting:
                self.loop.call_later(SHORTLY_SECONDS, self.shutdown)
            else:
                super().shutdown()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._read()
            self._writing = self.loop.call_later(settings.answer_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._read()
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            if self._is_long:
                self._refuse(431, TOO_LONG)
            else:
                self._refuse(400, msg)

        def _in_time(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _read(self) -> None:
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

        def _late(self) -> None:
            self._deadline = None
            self._refuse(408, f"nothing more came within {settings.head_seconds:g} s")

        def _refuse(self, status: int, message: str, *headers: bytes) -> None:
            """Say so, unless an answer is being sent or was sent to the same request; and close."""
            if self.transport.is_closing():
                return
            if self._waiting:  # for the answer to what came before it
                self._refused = (status, message, *headers)
                return
            if self._heading and (self.cycle is None or self.cycle.response_complete):
                body = orjson.dumps({"error": message})
                length = b"content-length: %d\r\n" % len(body)
                self.transport.write(b"".join([STATUS_LINE[status], b"content-type: application/json\r\n", length, b"connection: close\r\n", *headers, b"\r\n", body]))
            self._give_up()
            self.transport.close()

    return Limited
