"""What the template draws from: the result, and what is worked out of it (layout, words; no new figures)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.report import words
from tenfold.report.frontier import frontier
from tenfold.report.reliability import reliability
from tenfold.report.strips import slice_strips, strip
from tenfold.report.waterfall import waterfall

MANY_SLICES = 24
MANY_CASES = 18

_OBJECTIVES = {
    "serve": "cheaper to serve",
    "latency": "quicker to answer",
    "throughput": "the throughput",
    "size": "smaller",
    "train": "cheaper to train",
}
_OTHER_GAINS = {
    "serve": "cost to serve",
    "train": "cost to train",
    "memory": "peak memory",
    "size": "size of the model file",
}


@dataclass(frozen=True, kw_only=True)
class Headline:
    key: str
    """Which of the gains."""
    gain: Mapping[str, float] | None
    phrase: str
    """Follows the ratio: `cheaper to serve`."""
    others: tuple[tuple[str, str, Mapping[str, float] | None], ...]
    """The other gains: key, words, interval."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Microseconds a prediction."""

    before: float
    after: float
    what: str
    """Follows the unit: `of CPU `, or nothing for time that passes."""


def view(result: Mapping[str, Any]) -> dict[str, Any]:
    """The template's variables for a result document of schema 1."""
    margin = result["workload"]["margin_absolute"]
    digits = words.score_digits(margin)
    headline = _headline(result)
    slices, cases = result["slices"], result["disagreements"]
    strips = slice_strips(slices, margin, digits)
    pairs = list(zip(slices, strips, strict=True))
    certified = result["certified"]
    limit = certified["margin"] if certified else margin
    shown = None if certified else _first_failure(result["sequence"])
    judged = certified["quality_difference"] if certified else shown["test"] if shown else None
    calibration = result["calibration"]
    return {
        "result": result,
        "workload": result["workload"],
        "digits": digits,
        "headline": headline,
        "other": "shipped" if certified else "candidate",
        "failure": shown,
        "headline_strip": None if judged is None else strip(judged, limit, digits),
        "cost": _before_and_after(result) if headline.key == "serve" else None,
        "waterfall": waterfall(result["ladder"], headline.gain if certified else None),
        "frontier": frontier(result["candidates"], margin),
        "ranked": _ranked(result["candidates"]),
        "not_taken": [row for row in result["ladder"] if row["verdict"] != "take"],
        "slices": pairs,
        "worst_slices": _worst(pairs) if len(pairs) > MANY_SLICES else [],
        "cases": cases[:MANY_CASES],
        "more_cases": cases[MANY_CASES:],
        "reliability": None if calibration is None else reliability(calibration["bins"]),
        "activities": _activities(result["spent"]["by_activity"]),
        "both_right": _both_right(result["agreement"]),
    }


def _headline(result: Mapping[str, Any]) -> Headline:
    """The gain of the objective; serving's where the result has none under the objective's name."""
    gains, objective = result["gain"], result["objective"]
    key = objective if objective in gains else "serve"
    others = tuple((name, text, gains.get(name)) for name, text in _OTHER_GAINS.items() if name != key)
    return Headline(key=key, gain=gains[key], phrase=_OBJECTIVES.get(objective, "cheaper"), others=others)


def _first_failure(sequence: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((entry for entry in sequence if entry["verdict"] not in (None, "take")), None)


def _before_and_after(result: Mapping[str, Any]) -> Cost | None:
    """What the headline is the ratio of; None where the result does not hold both sides."""
    wanted = result["operating_point"]
    point = next((p for p in result["points"] if (p["batch"], p["threads"]) == (wanted["batch"], wanted["threads"])), None)
    if point is None:
        return None
    kind, what = ("cpu_mean", "of CPU ") if result["objective"] == "serve" else ("wall_mean", "")
    return Cost(before=point["baseline"][kind], after=point["candidate"][kind], what=what)


def _ranked(candidates: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """With their places in the result, by falling gain; those without a gain last."""
    return sorted(enumerate(candidates), key=lambda c: -(c[1]["gain"]["value"] if c[1]["gain"] else 0.0))


def _worst(pairs: Sequence[tuple[Mapping[str, Any], Any]]) -> list[tuple[Mapping[str, Any], Any]]:
    return sorted(pairs, key=lambda p: p[0]["quality_difference"]["value"])[: MANY_SLICES // 2]


def _activities(seconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Activity, seconds, percent of the largest; the largest first."""
    most = max(seconds.values(), default=0.0) or 1.0
    return [(name, s, round(100 * s / most, 3)) for name, s in sorted(seconds.items(), key=lambda item: -item[1])]


def _both_right(agreement: Mapping[str, Any] | None) -> int | None:
    if agreement is None:
        return None
    wrong: int = agreement["baseline_only_right"] + agreement["candidate_only_right"] + agreement["both_wrong"]
    return int(agreement["n"]) - wrong
