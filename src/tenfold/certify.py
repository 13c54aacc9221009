"""Which candidates meet the test split, in which order; and how often a test split has been opened."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

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


def front(standings: Sequence[Standing], worth: Callable[[Standing], float] = quality) -> list[Standing]:
    """What no other beats in both worth and cost, from the worthiest to the cheapest."""
    out: list[Standing] = []
    for s in sorted(standings, key=lambda s: (-s.gain.value, -worth(s), s.recipe)):  # cheapest first
        if not out or worth(s) > worth(out[-1]):
            out.append(s)
    return out[::-1]


def chain(standings: Sequence[Standing], most: int, margin: float, *, n: int, tested: int) -> list[Standing]:
    """From the safest to the cheapest, what no other beats in both; where they are many, the safest and those others that are worth most with it.

    One that is certified with probability p, after one of gain g, multiplies what is certified in the end by its own gain over g, p times out of one:
    what is surer has been certified then. So Σ p_i log(g_i / g_i-1) is the logarithm of that in expectation, and the chain that has most of it is taken.

    Args:
        margin: absolute.
        n, tested: examples that they were looked at on, and that certify.
    """
    safe = safety(margin, n, tested)
    rising = front(standings, safe)
    chances, logs = [NormalDist().cdf(safe(s)) for s in rising], [math.log(s.gain.value) for s in rising]
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (chances[0] * logs[0], (0,))} if rising else {}
    """By the last of a chain: its worth, and its members."""
    for _ in range(min(most, len(rising)) - 1):
        for i in range(len(rising) - 1, 0, -1):  # from the end, so that what is extended has one member fewer
            for j in range(i):
                if j in best and (worth := best[j][0] + chances[i] * (logs[i] - logs[j])) > best.get(i, (-math.inf,))[0]:
                    best[i] = worth, (*best[j][1], i)
    return [rising[i] for i in max(best.values())[1]] if best else []


def for_confirm(standings: Sequence[Standing], margin: float, *, n: int, tested: int) -> list[Standing]:
    """Those that are looked at on confirm, by what valid says, of what is shown to be cheaper.

    Args:
        n, tested: examples of valid and of test.
    """
    return chain([s for s in standings if s.gain.low >= COST_BAR], CONFIRMED, margin, n=n, tested=tested)


def order_candidates(standings: Sequence[Standing], margin: float, *, n: int, tested: int) -> list[Standing]:
    """The fixed sequence, by what confirm says: at most five, from safest to cheapest.

    Left out is what confirm shows to be worse, what is not shown to be cheaper, and what another
    candidate beats in both safety and cost.

    Args:
        n, tested: examples of confirm and of test.
    """
    able = [s for s in standings if s.quality.high >= -margin and s.gain.low >= COST_BAR]
    return chain(able, MAX_SEQUENCE, margin, n=n, tested=tested)


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
