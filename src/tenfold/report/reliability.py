"""The reliability diagram: how often a model is right, by how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SIDE = 300.0
"""Of the square, in user units of the drawing."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    x: float
    y: float
    radius: float
    """By the share of the examples in the bin: its area, between a least and a largest size."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    dots: tuple[Dot, ...]

    @property
    def path(self) -> str:
        """The `points` of a polyline."""
        return " ".join(f"{d.x:g},{d.y:g}" for d in self.dots)


@dataclass(frozen=True, kw_only=True)
class Reliability:
    baseline: Curve
    candidate: Curve
    side: float = SIDE


def reliability(bins: Sequence[Mapping[str, Any]]) -> Reliability:
    """Both curves; bins without examples have no dot."""
    return Reliability(baseline=_curve(bins, "baseline"), candidate=_curve(bins, "candidate"))


def _curve(bins: Sequence[Mapping[str, Any]], who: str) -> Curve:
    total = sum(b[f"{who}_n"] or 0 for b in bins)
    return Curve(
        dots=tuple(
            Dot(
                x=round(SIDE * b[f"{who}_confidence"], 2),
                y=round(SIDE * (1 - b[f"{who}_accuracy"]), 2),
                radius=round(2.5 + 4.5 * (b[f"{who}_n"] / total) ** 0.5, 2),
            )
            for b in bins
            if b[f"{who}_n"]
        )
    )
