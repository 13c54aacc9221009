"""Strips: a quality difference with its interval, beside no difference and the margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.report.scale import Linear
from tenfold.report.words import signed

Interval = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Strip:
    """All in percent of the width."""

    low: float
    value: float
    high: float
    zero: float
    margin: float | None
    label: str


def strip(interval: Interval, margin: float | None, digits: int, scale: Linear | None = None) -> Strip:
    """One interval, on a scale of its own unless one is given.

    Args:
        interval: of a quality difference.
        margin: what may be lost (a positive number), if there is a limit.
        digits: decimals in the label.
    """
    on = scale or scale_of([interval], margin)
    text = f"{signed(interval['value'], digits)}, from {signed(interval['low'], digits)} to {signed(interval['high'], digits)}"
    return Strip(
        low=on(interval["low"]),
        value=on(interval["value"]),
        high=on(interval["high"]),
        zero=on(0.0),
        margin=None if margin is None else on(-margin),
        label=text if margin is None else f"{text}; the margin is {signed(-margin, digits)}",
    )


def scale_of(intervals: Sequence[Interval], margin: float | None) -> Linear:
    """A scale that holds all intervals, no difference, and the margin."""
    limit = margin or 0.0
    low = min([-limit, *(i["low"] for i in intervals)])
    high = max([0.25 * limit, *(i["high"] for i in intervals)])
    room = 0.12 * (high - low) or 1.0
    return Linear(low - room, high + room)


def slice_strips(slices: Sequence[Mapping[str, Any]], margin: float, digits: int) -> list[Strip]:
    """A strip a slice, all on one scale; only a margin of the slice's own is drawn."""
    scale = scale_of([s["quality_difference"] for s in slices], max([margin, *(s["margin"] or 0.0 for s in slices)]))
    return [strip(s["quality_difference"], s["margin"], digits, scale) for s in slices]
