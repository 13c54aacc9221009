"""The project's own decisions on planted counts, and the exact rate of them by enumeration."""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from plants import Plant, Scores
from scipy import special, stats

from tenfold.verdict import LEVEL, Decision, Interval, certify, quality_difference, tango_statistic

Integers = NDArray[np.int64]

NEGLIGIBLE = 1e-14
"""Probability of the counts that the enumeration leaves out at each end."""


@cache
def difference(gained: int, lost: int, n: int) -> Interval:
    """The project's interval for scores with these counts. The order of examples does not matter to it."""
    baseline, candidate = np.ones(n), np.ones(n)
    baseline[:gained] = 0.0
    candidate[gained : gained + lost] = 0.0
    return quality_difference(baseline, candidate)


def decisions(scores: Scores, margin: float) -> dict[Decision, int]:
    """How often `certify` came to each decision, over repetitions (R,)."""
    pairs, times = np.unique(np.stack([scores.gained, scores.lost], axis=1), axis=0, return_counts=True)
    out = dict.fromkeys(Decision, 0)
    for (gained, lost), count in zip(pairs.tolist(), times.tolist()):
        out[certify(difference(gained, lost, scores.n), margin, scores.n).decision] += count
    return out


def oracle_shipped(scores: Scores, margin: float) -> int:
    """The same by the test that the interval inverts: the statistic at −margin against the normal quantile."""
    z = tango_statistic(scores.gained, scores.lost, scores.n, -margin)
    return int(np.sum(z >= _critical()))


@cache
def exact_rate(plant: Plant, n: int, margin: float) -> float:
    """Probability that the plant is shipped: a sum over all counts (gained, lost) that are not negligible."""
    gained = _support(n, plant.gained)
    lost = _support(n, plant.lost)
    grid_gained, grid_lost = np.meshgrid(gained, lost, indexing="ij")
    shipped = tango_statistic(grid_gained, grid_lost, n, -margin) >= _critical()
    return float(_mass(plant, n, grid_gained[shipped], grid_lost[shipped]).sum())


def worst_size(n: int, margin: float, highest: float) -> tuple[float, float]:
    """The highest exact size over discordances from the margin to `highest`, and the discordance it is at."""
    grid = np.linspace(margin, highest, 146)  # every tenth of a point, for a margin of half a point
    sizes = [exact_rate(Plant(difference=-margin, discordance=float(d)), n, margin) for d in grid]
    at = int(np.argmax(sizes))
    return sizes[at], round(float(grid[at]), 6)


def measured_rate(count: int, of: int) -> Interval:
    """A measured rate with its exact binomial interval (Clopper & Pearson 1934)."""
    ends = stats.binomtest(count, of).proportion_ci(confidence_level=LEVEL, method="exact")
    return Interval(value=count / of, low=float(ends.low), high=float(ends.high))


def _mass(plant: Plant, n: int, gained: Integers, lost: Integers) -> NDArray[np.float64]:
    """Trinomial probability of each pair of counts."""
    rest = n - gained - lost
    log = special.gammaln(n + 1.0) - special.gammaln(gained + 1.0) - special.gammaln(lost + 1.0) - special.gammaln(rest + 1.0)
    log += special.xlogy(gained, plant.gained) + special.xlogy(lost, plant.lost) + special.xlogy(rest, 1 - plant.discordance)
    return np.asarray(np.exp(log), dtype=np.float64)


def _critical() -> float:
    return NormalDist().inv_cdf((1 + LEVEL) / 2)


def _support(n: int, probability: float) -> Integers:
    law = stats.binom(n, probability)
    return np.arange(int(law.ppf(NEGLIGIBLE)), int(law.isf(NEGLIGIBLE)) + 1)
