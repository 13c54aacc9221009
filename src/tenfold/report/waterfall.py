"""The ladder as a waterfall: on a logarithmic scale the factors of the levers taken add up to the headline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.report.scale import Log, Tick
from tenfold.report.words import ratio

Interval = Mapping[str, float]

ROUNDING = 0.01
"""What a product of ratios may be off by and still be said to give the headline."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Where a factor begins and ends, and where its interval does, in percent of the width."""

    start: float
    end: float
    low: float
    high: float
    label: str

    @property
    def left(self) -> float:
        return min(self.start, self.end)

    @property
    def width(self) -> float:
        return abs(self.end - self.start)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A lever that was taken; without a bar where its factor was not measured."""

    row: Mapping[str, Any]
    bar: Bar | None


@dataclass(frozen=True, kw_only=True)
class Waterfall:
    steps: tuple[Step, ...]
    total: Bar | None
    multiplies: bool
    """The factors multiply to the headline: they were timed against the same baseline."""
    one: float
    """Where 1× is, in percent of the width."""
    ticks: tuple[Tick, ...]


def waterfall(rows: Sequence[Mapping[str, Any]], headline: Interval | None) -> Waterfall:
    """Lay out the rows taken, in order, each from where the one before it ended.

    Args:
        rows: the ladder of a result; rows that were not taken are left out.
        headline: the gain that the factors multiply to; None where nothing was certified.
    """
    taken = [row for row in rows if row["verdict"] == "take"]
    factors = [row["cost_ratio"] for row in taken if row["cost_ratio"] is not None]
    reached = [1.0]
    ends = [1.0]
    for factor in factors:
        ends += [reached[-1] * factor["low"], reached[-1] * factor["high"]]
        reached.append(reached[-1] * factor["value"])
    if headline is not None:
        ends += [headline["low"], headline["high"]]
    ends = [end for end in (*ends, *reached) if end > 0]
    low, high = min(ends), max(*ends, 1.1)
    room = (high / low) ** 0.04
    scale = Log(low / (room if low < 1 else 1.0), high * room)

    def bar(start: float, factor: Interval, label: str) -> Bar:
        return Bar(
            start=scale(start),
            end=scale(start * factor["value"]),
            low=scale(start * factor["low"]),
            high=scale(start * factor["high"]),
            label=label,
        )

    steps, done = [], 0
    for row in taken:
        factor = row["cost_ratio"]
        if factor is None:
            steps.append(Step(row=row, bar=None))
            continue
        label = f"{row['lever']}: {ratio(factor['value'])}, from {ratio(reached[done])} to {ratio(reached[done + 1])}"
        steps.append(Step(row=row, bar=bar(reached[done], factor, label)))
        done += 1
    return Waterfall(
        steps=tuple(steps),
        total=None if headline is None else bar(1.0, headline, f"together {ratio(headline['value'])}"),
        multiplies=headline is not None and math.isclose(reached[-1], headline["value"], rel_tol=ROUNDING),
        one=scale(1.0),
        ticks=scale.ticks(lambda v, _: f"{v:g}×", most=5),
    )
