"""The cost-quality frontier: every candidate measured, by its gain (logarithmic) and its quality difference."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.report.scale import Linear, Log, Tick
from tenfold.report.words import signed

FLOOR_MARGINS = 4.0
"""Refused candidates that lose more than this many margins are drawn on the lower edge, and marked as such."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A candidate on the chart, in percent from the left and from the top."""

    index: int
    """Its place among the candidates of the result."""
    candidate: Mapping[str, Any]
    x: float
    y: float
    left: float
    width: float
    """Of the interval of its gain."""
    top: float
    height: float
    """Of the interval of its quality difference."""
    kind: str
    """`certified`, or its verdict."""
    below: bool
    """Its quality lies below the lower edge."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, kw_only=True)
class Frontier:
    points: tuple[Point, ...]
    """By rising gain, which is the order of the tab key."""
    steps: tuple[Segment, ...]
    baseline: tuple[float, float]
    margin: float
    """Percent from the top."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    unplotted: int
    """Candidates without a quality difference or a gain."""


def frontier(candidates: Sequence[Mapping[str, Any]], margin: float) -> Frontier:
    """Lay out the candidates around the baseline, which is at 1× and no difference.

    Args:
        candidates: those of a result.
        margin: what quality may lose, in units of the score.
    """
    measured = [(i, c) for i, c in enumerate(candidates) if c["quality_difference"] is not None and c["gain"] is not None]
    where = {i: (float(c["gain"]["value"]), float(c["quality_difference"]["value"])) for i, c in measured}
    kept = [c["quality_difference"] for _, c in measured if c["verdict"] != "refuse"]
    floor = min([-FLOOR_MARGINS * margin, *(q["low"] for q in kept)])
    qualities = [max(q, floor) for _, q in where.values()]
    low, high = min([-1.5 * margin, *qualities]), max([0.5 * margin, *qualities, *(q["high"] for q in kept)])
    room = 0.08 * (high - low)
    y = Linear(low - room, high + room)
    gains = [1.0, *(end for _, c in measured for end in (c["gain"]["low"], c["gain"]["high"]) if end > 0)]
    least, most = min(gains), max(*gains, 1.1)
    spread = (most / least) ** 0.08
    x = Log(least / spread, most * spread)

    def point(index: int, candidate: Mapping[str, Any]) -> Point:
        gain, quality = candidate["gain"], candidate["quality_difference"]
        return Point(
            index=index,
            candidate=candidate,
            x=x(gain["value"]),
            y=round(100 - y(max(quality["value"], floor)), 3),
            left=x(gain["low"]),
            width=round(x(gain["high"]) - x(gain["low"]), 3),
            top=round(100 - y(quality["high"]), 3),
            height=round(y(quality["high"]) - y(quality["low"]), 3),
            kind="certified" if candidate["certified"] else str(candidate["verdict"]),
            below=quality["value"] < floor,
        )

    return Frontier(
        points=tuple(sorted((point(i, c) for i, c in measured), key=lambda p: p.x)),
        steps=_steps([(x(g), 100 - y(q)) for g, q in best([(1.0, 0.0), *(v for v in where.values() if v[1] >= floor)])]),
        baseline=(x(1.0), round(100 - y(0.0), 3)),
        margin=round(100 - y(-margin), 3),
        x_ticks=x.ticks(lambda v, _: f"{v:g}×"),
        y_ticks=tuple(Tick(at=round(100 - t.at, 3), text=t.text) for t in y.ticks(signed)),
        unplotted=len(candidates) - len(measured),
    )


def best(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (gain, quality) pairs that no other pair beats in both, by rising gain and falling quality."""
    front: list[tuple[float, float]] = []
    for gain, quality in sorted(places, key=lambda p: (-p[0], -p[1])):
        if not front or quality > front[-1][1]:
            front.append((gain, quality))
    return front[::-1]


def _steps(corners: Sequence[tuple[float, float]]) -> tuple[Segment, ...]:
    """Down, then right: between two corners the better one of lower gain is no longer cheap enough."""
    segments = []
    for (x1, y1), (x2, y2) in itertools.pairwise(corners):
        segments += [Segment(x1=x1, y1=y1, x2=x1, y2=y2), Segment(x1=x1, y1=y2, x2=x2, y2=y2)]
    return tuple(segments)
