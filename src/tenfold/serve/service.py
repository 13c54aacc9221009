"""The models that are served, by name and version; and how they are exchanged while they answer."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tenfold.data.split import Array
from tenfold.engine import GraphError
from tenfold.errors import TenfoldError
from tenfold.serve.body import PARSED, Held, Receive
from tenfold.serve.metrics import Metrics, ModelMetrics
from tenfold.serve.model import Model, Source, graph_of, open_model
from tenfold.serve.protocol import RejectedError, largest_request, quoted
from tenfold.serve.queue import Queue
from tenfold.serve.settings import Settings

log = logging.getLogger("tenfold.serve")
SOON_SECONDS = 0.05
"""For which an answer is waited for alone, before the client is watched as well."""
CLIENT_GONE = 499
"""Status of a request whose client did not wait for its answer; nobody sees it but the log and the metrics."""
LEAST_BODY = 64 << 10
HELD_AT_ONCE = 1 + PARSED
"""Times what may be held, by which the largest request fits in, text and numbers."""


@dataclass(frozen=True)
class Entry:
    """A model at work."""

    model: Model
    queue: Queue
    metrics: ModelMetrics


class Service:
    """What the application asks. Of one event loop, but for `open_all`."""

    def __init__(self, sources: Sequence[Source], settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.held = Held(settings.max_held)
        self.most_bytes = 0
        """Of a request's body."""
        self.draining = False
        self._sources = sources
        self._entries: dict[str, dict[str, Entry]] = {}
        self._reloading = asyncio.Lock()

    # ------------------------------------------------------------ models

    def open_all(self) -> list[Model]:
        """All models anew. Takes time: run it in a thread, and hand what it gives to `use`.

        Raises:
            TenfoldError: one of them must not be served.
        """
        known = {graph_of(e.model.bundle): e.model.schedule for e in self.all_entries()}
        models: list[Model] = []
        for source in self._sources:
            model = open_model(source, force=self.settings.force, known=known)
            if source.version is None:  # the next of its name
                taken = [int(m.version) for m in models if m.name == model.name]
                model = dataclasses.replace(model, version=str(max(taken, default=0) + 1))
            if any((m.name, m.version) == (model.name, model.version) for m in models):
                raise TenfoldError(f"version {model.version} of {model.name} is given twice: name them NAME@VERSION=PATH")
            if self.settings.delay is not None and model.schedule.most > 1:
                model = dataclasses.replace(model, schedule=dataclasses.replace(model.schedule, delay=self.settings.delay))
            models.append(model)
        return models

    def use(self, models: Sequence[Model]) -> None:
        """Let these take the places of those that are there, which finish what they have begun."""
        entries: dict[str, dict[str, Entry]] = {}
        for model in models:
            metrics = self.metrics.of(model)
            entries.setdefault(model.name, {})[model.version] = Entry(model, Queue(model.run, model.schedule, computed=metrics.examples.observe), metrics)
            for note in model.notes:
                log.info("%s %s: %s", model.name, model.version, note)
        self.metrics.keep({(m.name, m.version) for m in models})
        self._entries = {name: dict(sorted(versions.items(), key=lambda v: int(v[0]))) for name, versions in entries.items()}
        largest = max((largest_request(m.inputs, self.settings.max_examples) for m in models), default=0)
        self.most_bytes = self.settings.max_body or min(max(LEAST_BODY, largest), self.settings.max_held // HELD_AT_ONCE)
        self.metrics.ready.set(self.ready)

    async def reload(self) -> None:
        """Open all bundles again, and serve those; where one of them is not to be served, go on as before."""
        async with self._reloading:
            try:
                models = await asyncio.to_thread(self.open_all)
            except Exception as error:  # whatever a damaged bundle does: what is there goes on
                log.error("reload: %s; what was there is served on", error, exc_info=None if isinstance(error, TenfoldError) else error)  # noqa: TRY400
                return
            self.use(models)
            log.info("reloaded %s", ", ".join(f"{m.name} {m.version}" for m in models))

    @property
    def entries(self) -> Mapping[str, Mapping[str, Entry]]:
        """By name, then by version, the newest last."""
        return self._entries

    def all_entries(self) -> list[Entry]:
        return [e for versions in self._entries.values() for e in versions.values()]

    def find(self, name: str | None, version: str | None = None) -> Entry:
        """The model of a name, the newest of its versions unless one is named; the only one where no name is given.

        Raises:
            RejectedError: there is none; status 404, or 400 where a name is needed.
        """
        if name is None:
            if len(self._entries) > 1:
                raise RejectedError(400, f"say which model: {', '.join(self._entries)}")
            name = next(iter(self._entries))
        versions = self._entries.get(name)
        if versions is None:
            raise RejectedError(404, f"there is no model {quoted(name)!r}")
        if version is None:
            return next(reversed(versions.values()))
        if version not in versions:
            raise RejectedError(404, f"{name} has no version {quoted(version)!r}")
        return versions[version]

    @property
    def ready(self) -> bool:
        return bool(self._entries) and not self.draining

    def drain(self) -> None:
        """Say that nothing more should be sent; what comes is still answered."""
        self.draining = True
        self.metrics.ready.set(0)

    # ------------------------------------------------------------ answers

    async def answers(self, entry: Entry, inputs: Sequence[Array], receive: Receive) -> tuple[Array, ...]:
        """What a model answers.

        Args:
            receive: of the request, whose body has been read.

        Raises:
            RejectedError: the model cannot compute it (400); too many wait, or it took too long (503).
        """
        soon: asyncio.Future[tuple[Array, ...]] = asyncio.get_running_loop().create_future()
        try:
            answers = await soon if entry.queue.soon(inputs, partial(_told, soon)) else await self._awaited(entry.queue.answers(inputs), receive)
        except (GraphError, MemoryError) as error:
            raise not_computed(error) from error
        entry.metrics.predicted(inputs, answers)
        return answers

    async def _awaited(self, answers: Coroutine[Any, Any, tuple[Array, ...]], receive: Receive) -> tuple[Array, ...]:
        """Answers, unless they take too long or nobody waits for them any more."""
        computed = asyncio.ensure_future(answers)
        await asyncio.wait({computed}, timeout=SOON_SECONDS)
        if computed.done():
            return computed.result()
        gone = asyncio.ensure_future(receive())
        try:
            either: list[asyncio.Future[Any]] = [computed, gone]
            await asyncio.wait(either, timeout=self.settings.answer_seconds, return_when=asyncio.FIRST_COMPLETED)
            if computed.done():
                return computed.result()
            left = gone.done()
        finally:
            computed.cancel()
            gone.cancel()
        if left:
            raise RejectedError(CLIENT_GONE, "the client has gone")
        raise RejectedError(503, f"no answer within {self.settings.answer_seconds:g} s: try again", retry_after="1")

    def observe(self) -> None:
        """Bring up to date what is only known when it is asked for."""
        for entry in self.all_entries():
            entry.metrics.waiting.set(len(entry.queue))


def not_computed(error: GraphError | MemoryError) -> RejectedError:
    """What a client is told of a call that failed."""
    if isinstance(error, MemoryError) or "alloc" in str(error):
        return RejectedError(503, "there is no memory for this now: try again, with fewer examples", retry_after="1")
    return RejectedError(400, f"the model cannot compute this: {error}")  # a number beyond a table's, say


def _told(future: asyncio.Future[tuple[Array, ...]], answers: tuple[Array, ...] | Exception) -> None:
    if future.done():  # whoever waited is gone
        return
    if isinstance(answers, Exception):
        future.set_exception(answers)
    else:
        future.set_result(answers)
