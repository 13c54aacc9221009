"""The HTTP interface of a service."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route

from tenfold import __version__
from tenfold.serve.body import Body, Message, Receive, Scope, Send, header, said_length
from tenfold.serve.openapi import openapi
from tenfold.serve.page import page
from tenfold.serve.people import IMAGES, inputs_of, said
from tenfold.serve.protocol import HEADER_LENGTH, RejectedError, answer, parse, quoted
from tenfold.serve.service import Entry, Service
from tenfold.serve.tokens import Tokens

log = logging.getLogger("tenfold.serve")
OPEN = ("/v2/health/live", "/v2/health/ready", "/")
"""Paths that need no token and are answered however much there is to do: what a kubelet asks, and the page, which holds nothing."""
UNAUTHORIZED = 401
LARGE = 64 << 10
"""Bytes of a body, from which it is read in a thread, so that others are answered meanwhile."""
LEFT_UNREAD = 256 << 10
"""Bytes of a body that are let come and are thrown away after a refusal; of a longer one the connection is closed."""
INFER = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")
JSON = {"content-type": "application/json"}
Written = Callable[[dict[str, Any]], None]


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers={**JSON, **(headers or {})})


def refusal(error: RejectedError) -> Response:
    return json_response({"error": error.message}, error.status, error.headers)


async def rejected(_request: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, RejectedError)
    return refusal(error)


async def unknown(request: HTTPRequest, error: Exception) -> Response:
    """What starlette refuses by itself: paths and methods that are not there."""
    assert isinstance(error, HTTPException)
    path = quoted(request.scope["path"])
    what = f"there is no {path}" if error.status_code == 404 else f"{request.method} is not for {path}"
    return json_response({"error": what}, error.status_code, dict(error.headers or {}))


async def failed(_request: HTTPRequest, _error: Exception) -> Response:
    return failure()


def failure() -> Response:
    """Our own: its reason stays in the log."""
    return json_response({"error": "the server failed: its log says why"}, 500)


class Endpoints:
    """What answers each path."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._decoding = asyncio.Semaphore(1)

    async def live(self, _request: HTTPRequest) -> Response:
        return json_response({"live": True})

    async def ready(self, _request: HTTPRequest) -> Response:
        return self._readiness({"ready": self.service.ready})

    async def server(self, _request: HTTPRequest) -> Response:
        return json_response({"name": "tenfold", "version": __version__, "extensions": ["binary_tensor_data", "classification"]})

    async def model_ready(self, request: HTTPRequest) -> Response:
        return self._readiness({"name": self._entry(request).model.name, "ready": self.service.ready})

    async def model(self, request: HTTPRequest) -> Response:
        entry = self._entry(request)
        return json_response(entry.model.metadata(list(self.service.entries[entry.model.name])))

    async def manifest(self, request: HTTPRequest) -> Response:
        return json_response(self._entry(request).model.bundle.manifest)

    async def predict(self, request: HTTPRequest) -> Response:
        asked, settings = request.query_params, self.service.settings

        self.service.find(asked.get("model"), asked.get("version"))  # before its body is read
        with Body(request.scope, request.receive, self.service.held, most=self.service.most_bytes) as body:
            data = await body.read(settings.body_seconds)
            entry = request.scope["tenfold.entry"] = self.service.find(asked.get("model"), asked.get("version"))
            model, kind = entry.model, header(request.scope, b"content-type") or "application/json"
            if not (is_image := kind.startswith(tuple(IMAGES))):
                body.parsed(len(data))
            work = partial(inputs_of, model, data, kind, settings.max_examples)
            if is_image or len(data) >= LARGE:
                async with self._decoding:  # one at a time: a picture unpacked is a thousand times what was sent
                    inputs = await asyncio.to_thread(work)
            else:
                inputs = work()
            answers = await self.service.answers(entry, inputs, request.receive)
            return json_response(said(model, answers[0]))

    async def page(self, _request: HTTPRequest) -> Response:
        html, policy = page()
        more = {"content-security-policy": policy, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
        return Response(html, headers={"content-type": "text/html; charset=utf-8", **more})

    async def openapi(self, _request: HTTPRequest) -> Response:
        return json_response(openapi([e.model for e in self.service.all_entries()], self.service.settings))

    def _entry(self, request: HTTPRequest) -> Entry:
        return self.service.find(request.path_params["model"], request.path_params.get("version"))

    def _readiness(self, content: dict[str, Any]) -> Response:
        return json_response(content) if self.service.ready else json_response(content, 503, {"retry-after": "1"})

    def routes(self) -> list[Route]:
        def of_model(rest: str, endpoint: Callable[..., Awaitable[Any]], method: str = "GET") -> list[Route]:
            return [Route(f"/v2/models/{{model}}{version}{rest}", endpoint, methods=[method]) for version in ("", "/versions/{version}")]

        return [
            *of_model("/infer", Infer(self.service), "POST"),
            Route("/v2/health/live", self.live), Route("/v2/health/ready", self.ready), Route("/v2", self.server),
            *of_model("", self.model), *of_model("/ready", self.model_ready), *of_model("/manifest", self.manifest),
            Route("/predict", self.predict, methods=["POST"]), Route("/", self.page), Route("/openapi.json", self.openapi),
        ]  # fmt: skip


class Infer:
    """Answers by the protocol, as an application of its own: of a small model's request starlette would take a fifth."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            content, size = await self._answer(scope, receive)
        except RejectedError as error:
            await refusal(error)(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json" if size is None else b"application/octet-stream"), (b"content-length", b"%d" % len(content))]
        if size is not None:
            headers.append((HEADER_LENGTH.encode(), b"%d" % size))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[bytes, int | None]:
        """A body, and how many of its bytes are JSON; None: all are."""
        place = INFER.fullmatch(scope["path"])
        assert place is not None
        service, settings = self._service, self._service.settings
        service.find(place["model"], place["version"])  # before its body is read
        with Body(scope, receive, service.held, most=service.most_bytes) as body:
            data = await body.read(settings.body_seconds)
            entry = scope["tenfold.entry"] = service.find(place["model"], place["version"])  # once more: it may have been exchanged meanwhile
            model, length = entry.model, header(scope, HEADER_LENGTH.encode())
            if length is None:
                body.parsed(len(data))
            work = partial(parse, data, length, model.inputs, model.outputs, settings.max_examples)
            wanted = work() if len(data) < LARGE else await asyncio.to_thread(work)
            answers = await service.answers(entry, wanted.inputs, receive)
            return answer(model.name, model.version, wanted, {o.name: a for o, a in zip(model.outputs, answers, strict=False)}, model.labels)


def application(service: Service, tokens: Tokens | None, written: Written | None) -> Gate:
    """The whole of it.

    Args:
        tokens: None: everybody is let in.
        written: told of each request, for the access log.
    """
    handlers: dict[Any, Any] = {RejectedError: rejected, HTTPException: unknown, Exception: failed}
    app = Starlette(routes=Endpoints(service).routes(), exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Gate(app, service, tokens, written)


class Gate:
    """Who is let in, how many at a time; and what is counted and written down."""

    def __init__(self, app: Starlette, service: Service, tokens: Tokens | None, written: Written | None) -> None:
        self._app, self._service, self._tokens, self._written = app, service, tokens, written
        self._infer = Infer(service)
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        began, code, started = time.perf_counter(), 500, False

        async def told(message: Message) -> None:
            nonlocal code, started
            if message["type"] == "http.response.start":
                code, started = message["status"], True
                if self._service.draining or code == UNAUTHORIZED or ((code >= 400 or scope["method"] != "POST") and self._is_long(scope)):
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        counted = False
        try:
            refused = None if scope["path"] in OPEN else self._refusal(scope)
            if refused is not None:
                await refusal(refused)(scope, receive, told)
            else:
                counted = scope["path"] not in OPEN
                self._active += counted
                app = self._infer if scope["method"] == "POST" and INFER.fullmatch(scope["path"]) else self._app
                await app(scope, receive, told)
        except Exception:
            log.exception("failed: %s %s", scope["method"], quoted(scope["path"]))
            if not started:
                await failure()(scope, receive, told)
        finally:
            self._active -= counted
            self._count(scope, code, time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> RejectedError | None:
        if self._tokens is not None and not self._tokens.lets_in((header(scope, b"authorization") or "").encode("latin-1")):
            return RejectedError(401, "give a token: Authorization: Bearer …", www_authenticate="Bearer")
        if self._active >= self._service.settings.max_requests:
            return RejectedError(503, f"{self._active} requests are at work: try again", retry_after="1")
        return None

    @staticmethod
    def _is_long(scope: Scope) -> bool:
        """Whether a request may have more of a body than is worth reading for nothing."""
        length = said_length(scope)
        return length > LEFT_UNREAD if length is not None else header(scope, b"transfer-encoding") is not None

    def _count(self, scope: Scope, code: int, seconds: float) -> None:
        entry: Entry | None = scope.get("tenfold.entry")
        if entry is not None:
            entry.metrics.answered(code, seconds)
        else:
            self._service.metrics.others.labels(str(code)).inc()
        if self._written is not None:
            self._written({"method": scope["method"], "path": scope["path"][:200], "status": code, "ms": round(1e3 * seconds, 3)})
