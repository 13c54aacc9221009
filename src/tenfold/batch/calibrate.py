"""What short branched trainings say of the critical batch size: how many times the noise scale it is. Pure numbers.

Branches leave a training at a checkpoint, each with a batch of its own, and are annealed to their ends (in the manner of
arXiv:2505.23971, which compares losses; here it is the steps to one loss that are compared). S(B) = S_min (1 + B_crit/B) steps reach
a loss, and B_crit is taken to be the measured noise scale times one factor for the whole of the training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tenfold.batch.predict import steps_over_least
from tenfold.verdict import LEVEL

FACTORS = np.geomspace(1e-3, 1e3, 1201)
"""Of the noise scale, that are considered: a hundredth more each."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """The steps that branches of one batch size take from one checkpoint to the loss that is asked for there."""

    checkpoint: int
    """Where they leave; those of another seed count as another one."""
    noise: float
    """The noise scale at the checkpoint, in examples."""
    batch: int
    steps: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """B_crit over the noise scale, with its interval."""

    factor: float
    low: float
    high: float
    level: float
    scatter: float
    """Standard deviation of the logarithm of steps around what is fitted; NaN where there are too few points for one."""


def steps_to(level: float, steps: Sequence[int], losses: Sequence[float]) -> float | None:
    """Steps at which branches of several lengths reach a loss, by powers between them; None: the longest does not.

    Args:
        steps: lengths of the branches, ascending.
        losses: at their ends. One that is NaN counts as not reached; a longer branch that ends worse than a shorter one, as good as that.
    """
    reached = np.minimum.accumulate(np.where(np.isfinite(losses), losses, math.inf))
    if not len(reached) or reached[-1] > level:
        return None
    at = int(np.argmax(reached <= level))
    if at == 0 or not math.isfinite(reached[at - 1]):
        return float(steps[at])
    share = (reached[at - 1] - level) / (reached[at - 1] - reached[at])
    return float(steps[at - 1] * (steps[at] / steps[at - 1]) ** share)


def calibrate(points: Sequence[Point], *, level: float = LEVEL) -> Calibration:
    """The factor that fits the branches best, by least squares of the logarithm of steps, each checkpoint with an S_min of its own.

    Where no checkpoint has two batch sizes nothing is told of it: the factor is 1, and its interval open.
    The interval holds the factors whose sum of squares is no more above the least than F allows; where the points are no more than the
    unknowns it is open. A factor at an end of `FACTORS` says no more than that it lies beyond.
    """
    checkpoints = sorted({p.checkpoint for p in points})
    if not points or any(p.steps <= 0 or not (p.noise > 0 and math.isfinite(p.noise)) for p in points):
        raise ValueError("a calibration needs points, each with steps and a finite noise scale above 0")
    if all(p.batch == q.batch for p in points for q in points if p.checkpoint == q.checkpoint):
        return Calibration(factor=1.0, low=0.0, high=math.inf, level=level, scatter=math.nan)
    squares = np.zeros(len(FACTORS))
    for checkpoint in checkpoints:
        here = [p for p in points if p.checkpoint == checkpoint]
        left = np.array([[math.log(p.steps) - math.log(steps_over_least(p.batch, f * p.noise)) for p in here] for f in FACTORS])
        squares += ((left - left.mean(1, keepdims=True)) ** 2).sum(1)
    best = int(np.argmin(squares))
    freedom = len(points) - len(checkpoints) - 1
    low, high = _interval(squares, best, freedom, level)
    scatter = math.sqrt(squares[best] / freedom) if freedom > 0 else math.nan
    return Calibration(factor=float(FACTORS[best]), low=low, high=high, level=level, scatter=scatter)


def _interval(squares: NDArray[np.float64], best: int, freedom: int, level: float) -> tuple[float, float]:
    if freedom < 1:
        return 0.0, math.inf
    allowed = squares[best] * (1 + stats.f.ppf(level, 1, freedom) / freedom)
    inside = np.flatnonzero(squares <= allowed)
    low = 0.0 if inside[0] == 0 else float(FACTORS[inside[0]])
    return low, math.inf if inside[-1] == len(FACTORS) - 1 else float(FACTORS[inside[-1]])
