"""Requests that wait for a model: bounded, in their order, put together into batches where that pays."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from tenfold.data.split import Array
from tenfold.engine import Outputs
from tenfold.serve.protocol import RejectedError

log = logging.getLogger("tenfold.serve")
Done = Callable[[tuple[Array, ...] | Exception], None]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a model's requests are computed."""

    workers: int = 1
    """That compute at the same time."""
    waiting: int = 128
    """Requests that may wait, beside those that are computed."""
    most: int = 1
    """Examples that are put together from several requests; 1: none are."""
    delay: float = 0.0
    """Seconds that a request may wait for others to come while a worker is free."""
    inline: int = 0
    """Examples up to which a request is computed at once in the event loop, as long as nothing else is: to hand it to a thread would take longer."""
    soon: int = 0
    """Examples of several requests that are computed there in one turn of it."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    inputs: Sequence[Array]
    answers: asyncio.Future[tuple[Array, ...]]
    came: float
    alone: bool = False
    """It was in a batch that failed: whose fault that was shows when each is computed alone."""

    @property
    def rows(self) -> int:
        return len(self.inputs[0])


class Queue:
    """Computes what is awaited from it. To be used in one event loop; its threads end when nothing holds it any more."""

    def __init__(self, run: Outputs, schedule: Schedule, *, computed: Callable[[int], None] = lambda _: None) -> None:
        """
        Args:
            computed: told the examples of each call.
        """
        self._run = run
        self._schedule = schedule
        self._computed = computed
        self._pool = ThreadPoolExecutor(schedule.workers, thread_name_prefix="infer")
        self._jobs: deque[_Job] = deque()
        self._soon: list[tuple[Sequence[Array], Done]] = []
        """What is computed at the end of this turn of the event loop."""
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._jobs)

    def soon(self, inputs: Sequence[Array], done: Done) -> bool:
        """Compute in the event loop, together with all that has come in this turn of it, where that takes less time than to wait for a thread; False: await `answers`.

        Args:
            done: told what the model answers, or what it raised.
        """
        rows, there = len(inputs[0]), sum(len(i[0]) for i, _ in self._soon)
        if not self.is_idle or rows > self._schedule.inline or (there and there + rows > self._schedule.soon):
            return False
        if not self._soon:
            asyncio.get_running_loop().call_soon(self._compute)
        self._soon.append((inputs, done))
        return True

    @property
    def is_idle(self) -> bool:
        """Whether what is asked for now may be computed in the event loop."""
        return not (self._running or self._jobs or self._schedule.delay) and self._schedule.inline > 0

    def _compute(self) -> None:
        """What has come in this turn; later, where a thread was quicker to take the engine."""
        waiting, self._soon = self._soon, []
        if self._running:
            self._hand_over(waiting)
        elif len(waiting) > 1 and self._schedule.most > 1:
            for part in _parts(waiting, self._schedule.most):
                self._together(part)
        else:
            self._each(waiting)

    def _hand_over(self, waiting: Sequence[tuple[Sequence[Array], Done]]) -> None:
        loop = asyncio.get_running_loop()
        for inputs, done in waiting:
            job = _Job(inputs=inputs, answers=loop.create_future(), came=loop.time())
            job.answers.add_done_callback(partial(_hand_back, done))
            self._jobs.append(job)
        self._dispatch()

    def _together(self, waiting: Sequence[tuple[Sequence[Array], Done]]) -> None:
        try:
            answers = _in_one_call(self._run, [inputs for inputs, _ in waiting])
        except Exception:  # whose fault that was shows when each is computed alone
            self._each(waiting)
            return
        for (_, done), own in zip(waiting, answers, strict=True):
            _tell(done, own)
        self._computed(sum(len(inputs[0]) for inputs, _ in waiting))

    def _each(self, waiting: Sequence[tuple[Sequence[Array], Done]]) -> None:
        for inputs, done in waiting:
            try:
                answers: tuple[Array, ...] | Exception = self._run(inputs)
            except Exception as error:  # it is the request's
                answers = error
            _tell(done, answers)
            self._computed(len(inputs[0]))

    async def answers(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """What the model answers.

        Raises:
            RejectedError: too many wait; status 503.
        """
        if len(self._jobs) >= self._schedule.waiting:
            raise RejectedError(503, f"{len(self._jobs)} requests wait already: try again", retry_after="1")
        loop = asyncio.get_running_loop()
        job = _Job(inputs=inputs, answers=loop.create_future(), came=loop.time())
        self._jobs.append(job)
        self._dispatch()
        return await job.answers

    def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while self._jobs and self._running < self._schedule.workers:
            if (wait := self._wait(loop.time())) > 0:
                self._timer = self._timer or loop.call_later(wait, self._late)
                return
            if jobs := self._next():
                self._running += 1
                self._computed(sum(j.rows for j in jobs))
                task = loop.run_in_executor(self._pool, _in_one_call, self._run, [j.inputs for j in jobs])
                task.add_done_callback(partial(self._done, jobs))

    def _late(self) -> None:
        self._timer = None
        self._dispatch()

    def _wait(self, now: float) -> float:
        """Seconds until the next batch begins; 0: at once."""
        if not self._schedule.delay or self._jobs[0].alone or sum(j.rows for j in self._jobs) >= self._schedule.most:
            return 0.0
        return self._jobs[0].came + self._schedule.delay - now

    def _next(self) -> list[_Job]:
        """The requests of the next call: one, and those after it that fit. Those that nobody waits for any more are left out."""
        jobs: list[_Job] = []
        rows = 0
        while self._jobs and (not jobs or (rows + self._jobs[0].rows <= self._schedule.most and not jobs[0].alone and not self._jobs[0].alone)):
            job = self._jobs.popleft()
            if not job.answers.done():
                jobs.append(job)
                rows += job.rows
        return jobs

    def _done(self, jobs: Sequence[_Job], task: asyncio.Future[list[tuple[Array, ...]]]) -> None:
        self._running -= 1
        error = task.exception()
        if error is not None and len(jobs) > 1:
            self._jobs.extendleft(dataclasses.replace(j, alone=True) for j in reversed(jobs))
        elif error is not None:
            if not jobs[0].answers.done():
                jobs[0].answers.set_exception(error)
        else:
            for job, answers in zip(jobs, task.result(), strict=True):
                if not job.answers.done():  # it may have been given up
                    job.answers.set_result(answers)
        self._dispatch()


def _parts(waiting: Sequence[tuple[Sequence[Array], Done]], most: int) -> list[list[tuple[Sequence[Array], Done]]]:
    """In their order, of so many examples at the most."""
    out: list[list[tuple[Sequence[Array], Done]]] = []
    rows = most
    for one in waiting:
        if rows + len(one[0][0]) > most:
            out.append([])
            rows = 0
        out[-1].append(one)
        rows += len(one[0][0])
    return out


def _in_one_call(run: Outputs, requests: Sequence[Sequence[Array]]) -> list[tuple[Array, ...]]:
    """What is answered to each of several requests that are computed together."""
    if len(requests) == 1:
        return [run(requests[0])]
    answers = run([np.concatenate(arrays) for arrays in zip(*requests, strict=True)])
    ends = np.cumsum([len(inputs[0]) for inputs in requests]).tolist()
    return [tuple(a[begin:end] for a in answers) for begin, end in zip([0, *ends], ends, strict=False)]


def _tell(done: Done, answers: tuple[Array, ...] | Exception) -> None:
    """Others wait behind it, whatever it raises."""
    try:
        done(answers)
    except Exception:
        log.exception("failed after an answer")


def _hand_back(done: Done, answers: asyncio.Future[tuple[Array, ...]]) -> None:
    error = answers.exception()
    _tell(done, answers.result() if error is None else error if isinstance(error, Exception) else RuntimeError(str(error)))
