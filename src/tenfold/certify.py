"""Which candidates meet the test split, in which order; and how often a test split has been opened."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tenfold.store import unwritable
from tenfold.verdict import COST_BAR, Interval

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


def front(standings: Sequence[Standing], most: int) -> list[Standing]:
    """What no other beats in both quality and cost, from safest to cheapest; both ends and what lies evenly between where they are many."""
    out: list[Standing] = []
    for s in sorted(standings, key=lambda s: (-s.gain.value, -s.quality.value, s.recipe)):  # cheapest first
        if not out or s.quality.value > out[-1].quality.value:
            out.append(s)
    if len(out) > most:
        picks = {round(i * (len(out) - 1) / (most - 1)) for i in range(most)}
        out = [out[i] for i in sorted(picks)]
    return out[::-1]


def order_candidates(standings: Sequence[Standing], margin: float) -> list[Standing]:
    """The fixed sequence, by quality on confirm: at most five, from safest to cheapest.

    Left out is what confirm shows to be worse, what is not shown to be cheaper, and what another
    candidate beats in both quality and cost.
    """
    able = [s for s in standings if s.quality.high >= -margin and s.gain.low >= COST_BAR]
    return front(able, MAX_SEQUENCE)


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
        runs = _recorded(path)
        if run not in runs:
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n" + json.dumps({"run": run}) + "\n")
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error
    return len(runs | {run})


def _recorded(path: Path) -> set[str]:
    """The runs in a file of openings; a line torn by a kill is no opening that went ahead."""
    runs = set()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            runs.add(str(json.loads(line)["run"]))
    return runs
