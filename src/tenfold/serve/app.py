"""The HTTP interface of a service."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route

from tenfold import __version__
from tenfold.data.split import Array
from tenfold.engine import GraphError
from tenfold.serve.body import Body, Headers, Message, Receive, Scope, Send, header, said_length
from tenfold.serve.connection import Answered
from tenfold.serve.model import Model
from tenfold.serve.openapi import openapi
from tenfold.serve.page import page
from tenfold.serve.people import IMAGES, inputs_of, said
from tenfold.serve.protocol import HEADER_LENGTH, RejectedError, Request, answer, parse, quoted
from tenfold.serve.service import Entry, Service, not_computed
from tenfold.serve.tokens import Tokens

log = logging.getLogger("tenfold.serve")
OPEN = ("/v2/health/live", "/v2/health/ready", "/")
"""Paths that need no token and are answered however much there is to do: what a kubelet asks, and the page, which holds nothing."""
UNAUTHORIZED = 401
LARGE = 64 << 10
"""Bytes of a body, from which it is read in a thread, so that others are answered meanwhile."""
LEFT_UNREAD = 256 << 10
"""Bytes of a body that are let come and are thrown away after a refusal; of a longer one the connection is closed."""
LENGTH = HEADER_LENGTH.encode()
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

    async def infer(self, request: HTTPRequest) -> Response:
        service, settings = self.service, self.service.settings
        self._entry(request)  # before its body is read
        with Body(request.scope, request.receive, service.held, most=service.most_bytes) as body:
            data = await body.read(settings.body_seconds)
            entry = request.scope["tenfold.entry"] = self._entry(request)  # once more: it may have been exchanged meanwhile
            length = header(request.scope, LENGTH)
            body.parsed(min(len(data), int(length)) if length is not None and length.isascii() and length.isdigit() else len(data))
            work = partial(parsed, entry.model, data, length, settings.max_examples)
            wanted = work() if len(data) < LARGE else await asyncio.to_thread(work)
            content, headers = written(entry.model, wanted, await service.answers(entry, wanted.inputs, request.receive))
            return Response(content, headers={k.decode(): v.decode() for k, v in headers})

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
            *of_model("/infer", self.infer, "POST"),
            Route("/v2/health/live", self.live), Route("/v2/health/ready", self.ready), Route("/v2", self.server),
            *of_model("", self.model), *of_model("/ready", self.model_ready), *of_model("/manifest", self.manifest),
            Route("/predict", self.predict, methods=["POST"]), Route("/", self.page), Route("/openapi.json", self.openapi),
        ]  # fmt: skip


def parsed(model: Model, data: bytes, length: str | None, most: int) -> Request:
    """A request by the protocol, as this model takes it."""
    return parse(data, length, model.inputs, model.outputs, most)


def written(model: Model, wanted: Request, answers: Sequence[Array]) -> tuple[bytes, Headers]:
    """A response by the protocol: its body, and the headers that say what it is."""
    content, size = answer(model.name, model.version, wanted, {o.name: a for o, a in zip(model.outputs, answers, strict=False)}, model.labels)
    if size is None:
        return content, [(b"content-type", b"application/json")]
    return content, [(b"content-type", b"application/octet-stream"), (LENGTH, b"%d" % size)]


def _said(entry: Entry, wanted: Request, answers: tuple[Array, ...] | Exception) -> tuple[int, bytes, Headers]:
    """Status, body and headers of what a model answered, or raised."""
    try:
        if isinstance(answers, Exception):
            raise answers
        return 200, *written(entry.model, wanted, answers)
    except RejectedError as error:
        refused = refusal(error)
    except (GraphError, MemoryError) as error:
        refused = refusal(not_computed(error))
    except Exception:
        log.exception("failed: %s", entry.model.name)
        refused = failure()
    return refused.status_code, bytes(refused.body), [(k, v) for k, v in refused.raw_headers if k != b"content-length"]


def application(service: Service, tokens: Tokens | None, log_request: Written | None) -> Gate:
    """The whole of it.

    Args:
        tokens: None: everybody is let in.
        log_request: told of each request, for the access log.
    """
    handlers: dict[Any, Any] = {RejectedError: rejected, HTTPException: unknown, Exception: failed}
    app = Starlette(routes=Endpoints(service).routes(), exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Gate(app, service, tokens, log_request)


class Gate:
    """Who is let in, how many at a time; and what is counted and written down."""

    def __init__(self, app: Starlette, service: Service, tokens: Tokens | None, log_request: Written | None) -> None:
        self._app, self._service, self._tokens, self._log_request = app, service, tokens, log_request
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
                await self._app(scope, receive, told)
        except Exception:
            log.exception("failed: %s %s", scope["method"], quoted(scope["path"]))
            if not started:
                await failure()(scope, receive, told)
        finally:
            self._active -= counted
            self._count(scope.get("tenfold.entry"), scope["method"], scope["path"], code, time.perf_counter() - began)

    def soon(self, place: re.Match[str], headers: Headers, data: bytes, done: Answered) -> bool:
        """Answer by the protocol in this turn of the event loop, without what could be waited for in between: for a small model that is most of a request.
        False: ask the application, which says what is wrong if anything is.

        Args:
            place: the path of a POST, with `model` and `version`.
            headers: of the request, whose names are lower case.
            data: its whole body.
            done: told the answer.
        """
        began, service, request = time.perf_counter(), self._service, {"headers": headers}
        if service.draining or len(data) > min(LARGE, service.most_bytes) or header(request, b"content-encoding") or self._refusal(request):
            return False
        try:
            entry = service.find(place["model"], place["version"])
            if not entry.queue.is_idle:
                return False
            wanted = parsed(entry.model, data, header(request, LENGTH), service.settings.max_examples)
        except Exception:  # it comes to the same once more, where it is answered
            return False

        def told(answers: tuple[Array, ...] | Exception) -> None:
            self._active -= 1
            status, content, more = _said(entry, wanted, answers)
            done(status, content, more)
            self._count(entry, "POST", place.string, status, time.perf_counter() - began)  # after it, as nobody has to wait for that
            if not isinstance(answers, Exception):
                entry.metrics.predicted(wanted.inputs, answers)

        found = entry.queue.soon(wanted.inputs, told)
        self._active += found
        return found

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

    def _count(self, entry: Entry | None, method: str, path: str, code: int, seconds: float) -> None:
        if entry is not None:
            entry.metrics.answered(code, seconds)
        else:
            self._service.metrics.others.labels(str(code)).inc()
        if self._log_request is not None:
            self._log_request({"method": method, "path": path[:200], "status": code, "ms": round(1e3 * seconds, 3)})
