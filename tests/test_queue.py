"""Requests that wait for a model: together where that pays, each with its own answer, and never two calls at a time of one worker."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from tenfold.serve.queue import Queue, Schedule

BAD = -1.0


class Model:
    """Doubles its input; fails where a value is `BAD`; says when two calls met."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[int] = []
        self.met = False
        self._lock, self._seconds = threading.Lock(), seconds

    def __call__(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        if not self._lock.acquire(blocking=False):
            self.met = True
            self._lock.acquire()
        try:
            time.sleep(self._seconds)
            self.calls.append(len(inputs[0]))
            if (inputs[0] == BAD).any():
                raise ValueError("it is bad")
            return (2 * inputs[0],)
        finally:
            self._lock.release()


def rows(*values: float) -> list[np.ndarray]:
    return [np.array(values)[:, None]]


def asked(model: Model, schedule: Schedule, requests: Sequence[list[np.ndarray]]) -> tuple[list[object], list[bool]]:
    """What each is told that comes in one turn, and whether it was taken."""
    told: list[object] = [None] * len(requests)

    async def ask() -> list[bool]:
        queue = Queue(model, schedule)

        def tell(i: int, answers: object) -> None:
            told[i] = answers

        taken = [queue.soon(r, lambda a, i=i: tell(i, a)) for i, r in enumerate(requests)]  # type: ignore[misc]
        await asyncio.sleep(0.01)
        return taken

    return told, asyncio.run(ask())


TOGETHER = Schedule(inline=2, most=4, soon=6)


def test_what_comes_in_one_turn_is_computed_together_and_each_has_its_own() -> None:
    model = Model()
    told, taken = asked(model, TOGETHER, [rows(1), rows(2, 3), rows(4), rows(5), rows(6), rows(7)])
    assert taken == [True] * 5 + [False], "six examples a turn"
    assert model.calls == [4, 2], "four a call"
    assert [t[0].ravel().tolist() if t else None for t in told] == [[2], [4, 6], [8], [10], [12], None]  # type: ignore[index]


def test_where_it_does_not_pay_each_is_computed_alone() -> None:
    model = Model()
    told, _ = asked(model, Schedule(inline=2, most=1, soon=6), [rows(1), rows(2)])
    assert model.calls == [1, 1]
    assert [t[0].ravel().tolist() for t in told] == [[2], [4]]  # type: ignore[index]


def test_one_that_fails_fails_alone() -> None:
    told, _ = asked(Model(), TOGETHER, [rows(1), rows(BAD), rows(3)])
    assert isinstance(told[1], ValueError)
    assert [told[i][0].ravel().tolist() for i in (0, 2)] == [[2], [6]]  # type: ignore[index]


def test_what_raises_when_it_is_told_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    told: list[object] = []

    async def ask() -> None:
        queue = Queue(Model(), TOGETHER)

        def broken(_: object) -> None:
            raise RuntimeError("broken")

        queue.soon(rows(1), broken)
        queue.soon(rows(2), told.append)
        await asyncio.sleep(0.01)

    asyncio.run(ask())
    assert len(told) == 1
    assert "broken" in caplog.text


def test_a_thread_that_was_quicker_has_the_model_alone() -> None:
    model, told = Model(seconds=0.05), list[tuple[np.ndarray, ...]]()

    async def ask() -> tuple[np.ndarray, ...]:
        queue = Queue(model, TOGETHER)
        there = asyncio.Event()

        def tell(answers: object) -> None:
            told.append(answers)  # type: ignore[arg-type]
            there.set()

        assert queue.soon(rows(1), tell)
        answers = await queue.answers(rows(7, 8, 9))  # a thread begins before this turn is over
        await there.wait()
        return answers

    answers = asyncio.run(ask())
    assert answers[0].ravel().tolist() == [14, 16, 18]
    assert told[0][0].ravel().tolist() == [2]
    assert not model.met


def test_while_something_is_at_work_requests_are_not_taken_in_the_event_loop() -> None:
    async def ask() -> tuple[bool, bool]:
        queue = Queue(Model(seconds=0.05), TOGETHER)
        work = asyncio.ensure_future(queue.answers(rows(1, 2, 3)))
        await asyncio.sleep(0.01)
        busy = queue.soon(rows(1), lambda _: None)
        await work
        return busy, queue.soon(rows(1), lambda _: None)

    assert asyncio.run(ask()) == (False, True)
