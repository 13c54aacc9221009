"""Which candidates meet the test split, in which order; and how often a test split has been opened."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenfold.store import unwritable
from tenfold.verdict import COST_BAR, ONE_SIDED, Interval, safety_of

CONFIRMED, MAX_SEQUENCE = 6, 5
"""Candidates that are looked at on confirm, and of those on test, at the most."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A candidate as it stands before the test split is opened."""

    recipe: str
    quality: Interval
    """Quality difference on the split that was looked at last."""
    gain: Interval
    """Cost ratio against the baseline."""


def quality(standing: Standing) -> float:
    return standing.quality.value


def safety(margin: float, n: int, tested: int) -> Callable[[Standing], float]:
    """How sure it is that a candidate would be certified, in standard errors: a difference that varies little from example to example is surer
    than a better one that varies much.

    Args:
        margin: absolute.
        n: examples that candidates were looked at on.
        tested: examples that certify.
    """

    def of(standing: Standing) -> float:
        found = standing.quality
        deviation = (found.value - found.low) / ONE_SIDED * math.sqrt(n)
        return float(safety_of(found.value, deviation, margin, n, tested))

    return of


def front(standings: Sequence[Standing], most: int, worth: Callable[[Standing], float] = quality) -> list[Standing]:
    """What no other beats in both worth and cost, from the worthiest to the cheapest; both ends and what lies evenly between where they are many."""
    out: list[Standing] = []
    for s in sorted(standings, key=lambda s: (-s.gain.value, -worth(s), s.recipe)):  # cheapest first
        if not out or worth(s) > worth(out[-1]):
            out.append(s)
    if len(out) > most:
        picks = {round(i * (len(out) - 1) / (most - 1)) for i in range(most)}
        out = [out[i] for i in sorted(picks)]
    return out[::-1]


def order_candidates(standings: Sequence[Standing], margin: float, *, n: int, tested: int) -> list[Standing]:
    """The fixed sequence, by what confirm says: at most five, from safest to cheapest.

    Left out is what confirm shows to be worse, what is not shown to be cheaper, and what another
    candidate beats in both safety and cost.

    Args:
        n, tested: examples of confirm and of test.
    """
    able = [s for s in standings if s.quality.high >= -margin and s.gain.low >= COST_BAR]
    return front(able, MAX_SEQUENCE, safety(margin, n, tested))


def record_opening(folder: Path, test: str, run: str) -> int:
    """Log, before it happens, that a run opens a test split; the number of openings by different runs, this one included.

    Args:
        folder: where openings are counted across runs, a file for each test split.
        test: identity of the split's content.
        run: the run that opens it. Opened again by the same run (resumed) it counts once.
    """
    path = folder / f"{test}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        runs = opened_by(folder, test)
        if run not in runs:
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n" + json.dumps({"run": run}) + "\n")
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error
    return len(runs | {run})


def opened_by(folder: Path, test: str) -> set[str]:
    """The runs that have opened a test split; a line torn by a kill is no opening that went ahead."""
    path, runs = folder / f"{test}.jsonl", set()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            runs.add(str(json.loads(line)["run"]))
    return runs
