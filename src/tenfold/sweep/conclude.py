"""What follows from noise, step times and branches: which batch for time, which for cost, and what goes with it. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np

from tenfold.batch.calibrate import Calibration, Point, calibrate
from tenfold.batch.predict import StepTime, choose, devices_worth, learning_rate, second_beta, steps_over_least, warm_up
from tenfold.sweep.branches import LONGEST, Branch
from tenfold.sweep.reference import MILESTONES
from tenfold.train.config import TrainConfig
from tenfold.verdict import LEVEL

LEAST_NOISE, MOST_NOISE = 1e-3, 1e6
"""Between which noise scales are told apart."""
WORTH_WARMING = 1.05
"""By which a growing batch has to be sooner at the target than the best fixed one."""


def conclude(
    *, base: int, steps: int, training: TrainConfig, sizes: Sequence[int], wall: StepTime, cpu: StepTime,
    noises: Sequence[Mapping[str, Any]], points: Sequence[Point], branches: Sequence[Branch], missed: Sequence[int] = (),
) -> dict[str, Any]:  # fmt: skip
    """
    Args:
        base: the reference's batch, with which it took `steps`.
        noises: the noise scale at each of `MILESTONES`; a value of None is infinite.
        missed: sizes whose branches never came to the loss that the reference's came to, in `LONGEST` times its time.
    """
    able = _able(sizes, base, missed, {p.batch for p in points})
    calibration = calibrate(points) if points else Calibration(factor=1.0, low=0.0, high=math.inf, level=LEVEL, scatter=math.nan)
    scales, ends = _filled([n["value"] for n in noises]), _ends(noises, {p.checkpoint % len(MILESTONES) for p in points})

    def criticals(factor: float, noise: Sequence[float] = scales) -> list[float]:
        return [factor * n for n in noise]

    shares = _stretches()
    middle = _whole(criticals(calibration.factor), shares, base)
    low, high = (_whole(criticals(f, n), shares, base) for f, n in zip((calibration.low, min(calibration.high, 1e6)), ends, strict=True))
    least = steps / steps_over_least(base, middle)
    for_time, for_cost = (choose(able, t, middle, low, high) for t in (wall, cpu))
    stretch_least = np.array([s / steps_over_least(base, c) for s, c in zip(shares, criticals(calibration.factor), strict=True)])
    warming = warm_up(able, wall, criticals(calibration.factor), list(stretch_least / stretch_least.sum()))
    return {
        "calibration": finite(asdict(calibration)),
        "checked": any(p.batch != q.batch for p in points for q in points if p.checkpoint == q.checkpoint),
        "missed": {"sizes": sorted(set(missed)), "times": LONGEST},
        "points": [asdict(p) for p in points],
        "critical": {"value": middle, "low": low, "high": high if math.isfinite(calibration.high) and high < MOST_NOISE else None, "level": calibration.level},
        "least_steps": least,
        "curve": [_at(b, middle, low, high, steps, base, wall, cpu) for b in sizes],
        "measured": _measured(points, wall, base),
        "recommended": {
            "time": _with(for_time, training, base, middle, branches), "cost": _with(for_cost, training, base, middle, branches),
        },
        "rate_rule": "in proportion to" if training.optimizer == "sgd" else "as the root of",
        "rate_exponent": rate_exponent(branches),
        "devices": devices_worth(wall, middle),
        "warm_up": {**asdict(warming), "pays": warming.gain >= WORTH_WARMING},
    }  # fmt: skip


def _able(sizes: Sequence[int], base: int, missed: Sequence[int], reached: Collection[int]) -> list[int]:
    """Sizes less those that missed, and those beyond all that reached the loss on that side of the reference's own and one that missed."""
    smallest, largest = min((*reached, base)), max((*reached, base))
    low, high = max((m for m in missed if m < smallest), default=0), min((m for m in missed if m > largest), default=math.inf)
    return [s for s in sizes if low < s < high and s not in missed]


def _filled(values: Sequence[float | None]) -> list[float]:
    """What is infinite is as the largest that is known, `MOST_NOISE` where none is; what is none at all, as next to none."""
    known = [v for v in values if v is not None]
    return [max((k for k in known if k > 0), default=MOST_NOISE) if v is None else max(v, LEAST_NOISE) for v in values]


def _ends(noises: Sequence[Mapping[str, Any]], branched: Collection[int]) -> tuple[list[float], list[float]]:
    """Lower and upper ends of the noise scales. Where branches left, the scale is taken as it was measured: its error is in the factor that they give."""
    scales = _filled([n["value"] for n in noises])
    low = [s if i in branched else min(s, n["low"] or 0.0) for i, (s, n) in enumerate(zip(scales, noises, strict=True))]
    high = [s if i in branched else max(s, MOST_NOISE if n["high"] is None else n["high"]) for i, (s, n) in enumerate(zip(scales, noises, strict=True))]
    return [max(x, LEAST_NOISE) for x in low], high


def _stretches() -> list[float]:
    """Shares of a training for which each milestone stands: up to half way to the next."""
    ends = [0.0, *((a + b) / 2 for a, b in pairwise(MILESTONES)), 1.0]
    return [b - a for a, b in pairwise(ends)]


def _whole(criticals: Sequence[float], shares: Sequence[float], base: int) -> float:
    """The critical batch size of a whole training: the mean of its stretches', weighted by their least steps."""
    least = np.array([s / steps_over_least(base, c) for s, c in zip(shares, criticals, strict=True)])
    return float((least * criticals).sum() / least.sum())


def _at(
    batch: int, middle: float, low: float, high: float, steps: int, base: int, wall: StepTime, cpu: StepTime
) -> dict[str, Any]:
    """Expected steps, time and cost to the reference's loss, the latter two with their ends by the interval of the critical batch size."""
    taken = {name: steps * steps_over_least(batch, c) / steps_over_least(base, c) for name, c in (("value", middle), ("low", low), ("high", high))}
    ends = sorted(taken.values())
    between = {"value": taken["value"], "low": ends[0], "high": ends[-1]}
    return {
        "batch": batch, "steps": between["value"],
        "seconds": {k: v * wall.at(batch) for k, v in between.items()}, "cpu_seconds": {k: v * cpu.at(batch) for k, v in between.items()},
    }  # fmt: skip


def _measured(points: Sequence[Point], wall: StepTime, base: int) -> list[dict[str, float]]:
    """Time to the loss asked for, over that of the reference's batch from the same checkpoint: the geometric mean over checkpoints."""
    own = {p.checkpoint: p.steps * wall.at(base) for p in points if p.batch == base}
    by_batch: dict[int, list[float]] = {}
    for p in points:
        by_batch.setdefault(p.batch, []).append(math.log(p.steps * wall.at(p.batch) / own[p.checkpoint]))
    return [{"batch": b, "over_base": math.exp(np.mean(logs)), "checkpoints": len(logs)} for b, logs in sorted(by_batch.items())]


def _with(choice: Any, training: TrainConfig, base: int, critical: float, branches: Sequence[Branch]) -> dict[str, Any]:
    """A batch, with the learning rate (and Adam's second beta) that go with it: what branches of about its size were best with, by the rule from there."""
    best = best_rates(branches) or {base: training.learning_rate}
    near = min(best, key=lambda b: abs(math.log(b / choice.best)))
    rate = learning_rate(best[near], near, choice.best, optimizer=training.optimizer, critical=critical)
    beta = {"second_beta": second_beta(training.second_beta, base, choice.best)} if training.optimizer != "sgd" else {}
    return {**asdict(choice), "learning_rate": rate, **beta}


def best_rates(branches: Sequence[Branch]) -> dict[int, float]:
    """By batch: the learning rate with the least loss, the geometric mean over checkpoints."""
    logs: dict[int, list[float]] = {}
    for checkpoint, batch in sorted({(b.checkpoint, b.batch) for b in branches}):
        group = [b for b in branches if (b.checkpoint, b.batch) == (checkpoint, batch)]
        shortest = next(b.steps for b in group)  # the first that was tried, with every multiple
        tried = [b for b in group if b.steps == shortest and math.isfinite(b.loss)]
        if tried:
            logs.setdefault(batch, []).append(math.log(min(tried, key=lambda b: b.loss).learning_rate))
    return {batch: math.exp(np.mean(values)) for batch, values in logs.items()}


def rate_exponent(branches: Sequence[Branch]) -> float | None:
    """p of the best learning rate ~ batch^p over the branches: 1 is the linear rule, ½ the square root. None: too few sizes."""
    best = best_rates(branches)
    return float(np.polyfit(np.log(list(best)), np.log(list(best.values())), 1)[0]) if len(best) >= 3 else None


def finite(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()}
