"""The process: signals, the order in which it all begins and ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
import uvloop
from prometheus_client import make_asgi_app

from tenfold.errors import TenfoldError
from tenfold.serve.access import AccessLog
from tenfold.serve.app import application
from tenfold.serve.body import Receive, Scope, Send
from tenfold.serve.connection import limited
from tenfold.serve.model import Model, Source
from tenfold.serve.service import Service
from tenfold.serve.settings import Settings
from tenfold.serve.sockets import bind, is_loopback, renew, tls
from tenfold.serve.tokens import Tokens

log = logging.getLogger("tenfold.serve")
IDLE_SECONDS = 75
"""A connection may be silent between requests."""
LAST_SECONDS = 2.0
"""For which a connection that is silent may still send a request after the last SIGTERM, before it is closed; it is told to close with the answer."""


@dataclass(frozen=True, kw_only=True)
class Handed:
    """What a supervisor hands to a server of its pool."""

    listening: int
    """File descriptor of the socket."""
    says: int
    """Of a pipe, on which the server says its port of metrics once it is ready."""


def serve(sources: Sequence[Source], settings: Settings, *, auth: bool = True, handed: Handed | None = None) -> None:
    """Serve bundles until a SIGTERM or SIGINT; SIGHUP opens them anew.

    Args:
        auth: False: everybody is let in, wherever it listens.

    Raises:
        TenfoldError: a bundle, a port, the token or the key cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    tokens = check(settings, auth=auth)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(sources, settings, tokens, handed))


def check(settings: Settings, *, auth: bool) -> Tokens | None:
    """Who is let in; None: everybody.

    Raises:
        TenfoldError: it would be open to all, or the key cannot be used.
    """
    tokens = Tokens(settings.token_file) if settings.token_file is not None else None
    if tokens is None and auth and not is_loopback(settings.host):
        raise TenfoldError(f"{settings.host} can be reached from elsewhere: give --token-file, or --no-auth where something before it lets in whom it should")
    tls(settings)
    return tokens


async def _run(sources: Sequence[Source], settings: Settings, tokens: Tokens | None, handed: Handed | None) -> None:
    loop, ending = asyncio.get_running_loop(), _Ending()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.asked)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # what is being opened is what there is
    service = Service(sources, settings)
    sockets = [socket.socket(fileno=handed.listening) if handed else bind(settings.host, settings.port)]
    if settings.metrics_port is not None:
        sockets.append(bind(settings.host, settings.metrics_port))
    opening = asyncio.ensure_future(asyncio.to_thread(service.open_all))
    either: list[asyncio.Future[Any]] = [opening, ending.first]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not opening.done():
        os._exit(0)  # a thread cannot be stopped, and there is nothing to lose
    await _serve(service, opening.result(), sockets, tokens, ending, handed)


class _Ending:
    """Signals to end: after the first one the server drains, after the second it ends at once."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[None] = loop.create_future()
        self.second: asyncio.Future[None] = loop.create_future()

    def asked(self) -> None:
        told = self.second if self.first.done() else self.first
        if not told.done():
            told.set_result(None)

    async def sleep(self, seconds: float) -> None:
        """So long, or until the second."""
        await asyncio.wait([self.second], timeout=seconds)


async def _serve(
    service: Service, models: Sequence[Model], sockets: Sequence[socket.socket], tokens: Tokens | None, ending: _Ending, handed: Handed | None
) -> None:
    settings = service.settings
    service.use(models)
    written = AccessLog(sys.stdout) if settings.access_log else None
    gate = application(service, tokens, written.add if written else None)
    main = _Server(_config(gate, settings, http=limited(settings, gate.soon), **tls(settings)))
    servers = [main, *(_Server(_config(_metrics(service), settings, http=limited(settings))) for _ in sockets[1:])]
    loop, reloads = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def reload() -> None:
        reloads.add(task := loop.create_task(service.reload()))
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    main.config.load()
    if main.config.ssl is not None and settings.certificate is not None and settings.key is not None:
        renewing = loop.create_task(renew(main.config.ssl, settings.certificate, settings.key))
        ending.first.add_done_callback(lambda _: renewing.cancel())
    tasks = [loop.create_task(server.serve([s])) for server, s in zip(servers, sockets, strict=True)]
    while not all(server.started for server in servers) and not any(t.done() for t in tasks):  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    log.info("serving %s at %s://%s:%d", ", ".join(service.entries), "https" if settings.key else "http", *sockets[0].getsockname()[:2])
    for metrics in sockets[1:]:
        log.info("metrics at http://%s:%d", *metrics.getsockname()[:2])
    if handed:
        os.write(handed.says, f"{sockets[1].getsockname()[1] if len(sockets) > 1 else 0}\n".encode())
    await asyncio.wait([ending.first, *tasks], return_when=asyncio.FIRST_COMPLETED)
    await _drain(service, main, ending)
    for server in servers:
        server.force_exit = ending.second.done()
        server.should_exit = True
    try:
        await asyncio.gather(*tasks)
    except OSError as error:  # two that took one address, of which the other was the first to listen
        raise TenfoldError(f"port {settings.port} of {settings.host} cannot be had ({error.strerror}): give another --port or --metrics-port") from error
    if written is not None:
        written.end()
    log.info("ended")


async def _drain(service: Service, server: _Server, ending: _Ending) -> None:
    """Finish what has begun, and have those who are connected go elsewhere, without dropping a request that is on its way.

    Not ready any more, and every answer closes its connection; after a while no connection is taken; then those that are silent are waited for,
    as a request that meets a closing connection is lost.
    """
    settings = service.settings
    service.drain()
    if settings.drain_seconds:
        log.info("draining: not ready, serving on for %g s", settings.drain_seconds)
        await ending.sleep(settings.drain_seconds)
    await _take_last(server)
    waited, step = 0.0, 0.02
    while server.server_state.connections and waited < LAST_SECONDS and not ending.second.done():
        await ending.sleep(step)
        waited += step


async def _take_last(server: _Server) -> None:
    """Stop listening, and take what had connected before: closing a socket resets those that nobody has accepted yet."""
    loop, last = asyncio.get_running_loop(), list[socket.socket]()
    for listening in server.servers:
        for bound in listening.sockets:
            left = socket.socket(fileno=os.dup(bound.fileno()))
            left.setblocking(False)
            last.append(left)
        listening.close()
    for left in last:
        with contextlib.suppress(OSError):  # BlockingIOError: there is none left
            while True:
                taken, _ = left.accept()
                taken.setblocking(False)
                await loop.connect_accepted_socket(server.protocol, taken, ssl=server.config.ssl)
        left.close()


class _Server(uvicorn.Server):
    def protocol(self) -> asyncio.Protocol:
        """Of a connection, as uvicorn makes it."""
        made: asyncio.Protocol = self.config.http_protocol_class(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]
        return made

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: uvicorn would end by the signal it caught, not with 0."""
        yield


def _config(app: Any, settings: Settings, **more: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app, access_log=False, log_config=None, server_header=False, proxy_headers=False, lifespan="off", ws="none", backlog=2048,
        timeout_keep_alive=IDLE_SECONDS, timeout_graceful_shutdown=int(settings.grace_seconds), **more,
    )  # fmt: skip


def _metrics(service: Service) -> Any:
    inner = make_asgi_app(service.metrics.registry)

    async def metrics(scope: Scope, receive: Receive, send: Send) -> None:
        service.observe()
        await inner(scope, receive, send)

    return metrics
