"""Canary by steps, and in or out. Whatever happens on the way, what was in service stays in service."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tenfold.errors import TenfoldError
from tenfold.rollout.fleet import Fleet, Watch
from tenfold.rollout.seen import Finding, Judged, judge
from tenfold.serve.pool import CANARY

STEPS = (0.0, 0.5)
"""Shares of the servers that are of the new bundle, one after the other; one server at the least, and before all."""
READY_SECONDS = 120.0
"""In which the canaries have to be ready, and what is left has to settle."""
LOOK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Step:
    servers: int
    of: int
    judged: Judged


def plan(total: int) -> list[int]:
    """Servers of the new bundle at each step, fewer than all of them."""
    counts = sorted({max(1, round(share * total)) for share in STEPS})
    return [c for c in counts if c < total] or [1]


def roll(fleet: Fleet, *, watch_seconds: float, most_seconds: float, say: Callable[[str], None]) -> tuple[bool, list[Step]]:
    """Put the new bundle beside the old one, step by step, and in its place if it does as well; else take it away. Whether it is in.

    Args:
        watch_seconds: at least, for each step.
        most_seconds: after which a step without enough requests to judge is given up.

    Raises:
        TenfoldError: the servers cannot be reached, or do not come to what is asked of them.
    """
    steps: list[Step] = []
    total = fleet.count()
    try:
        for servers in plan(total):
            say(f"canary: {servers} of {total} servers")
            fleet.canary(servers)
            judged = _watched(fleet, servers, watch_seconds, most_seconds)
            steps.append(Step(servers=servers, of=total, judged=judged))
            say(f"{judged.finding}: {judged.reason}")
            if judged.finding is not Finding.GOOD:
                fleet.canary(0)
                _settle(fleet)
                return False, steps
        say("promoting it")
        fleet.promote()
        _settle(fleet)
    except BaseException:
        say("ending early: the canary is taken away (if that fails, tenfold rollback does it)")
        with suppress(TenfoldError):  # why it ended is what counts
            fleet.canary(0)
        raise
    return True, steps


def _watched(fleet: Fleet, servers: int, watch_seconds: float, most_seconds: float) -> Judged:
    began = time.monotonic()
    while fleet.ready(CANARY) < servers:
        if time.monotonic() - began > READY_SECONDS:
            return Judged(Finding.WORSE, f"its servers were not ready within {READY_SECONDS:.0f} s")
        time.sleep(LOOK_SECONDS / 4)
    watch, began = Watch(fleet), time.monotonic()
    while True:
        time.sleep(min(LOOK_SECONDS, watch_seconds))
        judged, watched = judge(*watch.look()), time.monotonic() - began
        if watch.lost:
            return Judged(Finding.WORSE, "one of its servers has ended")
        if judged.finding is Finding.WORSE or (watched >= watch_seconds and judged.finding is Finding.GOOD):
            return judged
        if watched >= max(most_seconds, watch_seconds):
            return Judged(Finding.WAIT, f"too little was seen of it in {watched:.0f} s: {judged.reason}")


def _settle(fleet: Fleet) -> None:
    """
    Raises:
        TenfoldError: what was asked for does not come about.
    """
    ends = time.monotonic() + READY_SECONDS
    while not fleet.settled():
        if time.monotonic() > ends:
            raise TenfoldError(f"the servers have not come to what was asked of them within {READY_SECONDS:.0f} s: look at their logs")
        time.sleep(LOOK_SECONDS / 4)
