"""Paired statistics: is the candidate as good as the baseline, and is it cheaper?

Every comparison is paired: candidate and baseline answer the same examples. Quality is judged by
non-inferiority at one-sided 95 %, which is the lower end of a two-sided 90 % interval; so intervals
here are 90 % (`LEVEL`) unless told otherwise, and each carries its level.

All functions are pure. Scores are arrays of shape (n,), one a example, higher is better; a
difference is candidate minus baseline, in the units of the score.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.90
"""Confidence of a two-sided interval whose lower end is the one-sided 95 % bound."""

COST_BAR = 1.02
"""A cost ratio whose lower bound is below this is not worth a change."""

RESAMPLES = 2_000
BEYOND = 100
"""Resampled means beyond either end of an interval, at the least: fewer say too little of where it is."""
MOST_RESAMPLES = 200_000
"""Up to which that is kept: at levels beyond 0.999 fewer have to do."""
LEAST_P = 1e-6
FEW_DIFFER = 5
"""Units that differ, below which a bootstrap has too little to draw from."""

_NORMAL = NormalDist()

ONE_SIDED = _NORMAL.inv_cdf((1 + LEVEL) / 2)
"""Standard errors from a mean to its one-sided 95 % bound."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float
    level: float = LEVEL

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high, "level": self.level}


class Decision(enum.StrEnum):
    TAKE = "take"
    REFUSE = "refuse"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A decision with the interval it rests on and the reason in words."""

    decision: Decision
    reason: str
    quality: Interval | None = None
    cost: Interval | None = None


# ---------------------------------------------------------------- paired binary scores


def tango_statistic(gained: ArrayLike, lost: ArrayLike, n: int, difference: float) -> NDArray[np.float64]:
    """Score statistic for H0: p(gained) - p(lost) = `difference`, standard normal under H0.

    Positive when the data lie above `difference`. Tango (1998), Statistics in Medicine 17:891-908,
    eq. 2; the constrained maximum-likelihood estimate of p(lost) is the root of a quadratic.

    Args:
        gained: pairs that only the candidate has right; any shape.
        lost: pairs that only the baseline has right; same shape.
        n: all pairs.
        difference: the hypothesised difference, in (-1, 1).
    """
    b = np.asarray(gained, dtype=np.float64)
    c = np.asarray(lost, dtype=np.float64)
    d = difference
    # 2n q^2 + B q + C = 0 for q = p(lost), with p(gained) = q + d
    coef = -b - c + (2 * n - b + c) * d
    const = -c * d * (1 - d)
    q = (np.sqrt(np.maximum(coef * coef - 8 * n * const, 0.0)) - coef) / (4 * n)
    q = np.clip(q, max(0.0, -d), None)
    variance = n * (2 * q + d * (1 - d))
    above = b - c - n * d
    with np.errstate(divide="ignore", invalid="ignore"):
        z = above / np.sqrt(variance)
    return np.where(above == 0, 0.0, z)  # 0/0 where the data are just what H0 says


def _z(probability: float) -> float:
    return _NORMAL.inv_cdf(probability)


def paired_binary_interval(baseline: ArrayLike, candidate: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Tango's score interval for the difference of two paired proportions.

    Holds its level at small n and few discordant pairs, where the normal approximation does not
    (its size is enumerated in `tests/test_verdict.py`, simulated in `benchmarks/guard`).

    Args:
        baseline: (n,) of 0 or 1.
        candidate: (n,) of 0 or 1, the same examples in the same order.
        level: two-sided confidence.
    """
    base = np.asarray(baseline) > 0.5
    cand = np.asarray(candidate) > 0.5
    if base.shape != cand.shape or base.ndim != 1 or base.size == 0:
        raise ValueError("paired scores need two equally long, non-empty arrays of shape (n,)")
    gained = int(np.sum(cand & ~base))
    lost = int(np.sum(base & ~cand))
    return _tango_interval(gained, lost, base.size, level)


@lru_cache(maxsize=65_536)
def _tango_interval(gained: int, lost: int, n: int, level: float) -> Interval:
    critical = _z((1 + level) / 2)
    value = (gained - lost) / n

    def bound(sign: float, outer: float) -> float:
        # the statistic falls as the hypothesised difference rises: bisect between the estimate and ±1
        inside, outside = value, outer
        for _ in range(60):
            middle = (inside + outside) / 2
            if sign * float(tango_statistic(gained, lost, n, middle)) < critical:
                inside = middle
            else:
                outside = middle
        return inside

    return Interval(value=value, low=bound(1.0, -1.0), high=bound(-1.0, 1.0), level=level)


# ---------------------------------------------------------------- real-valued and corpus scores


def bootstrap_difference(
    baseline: ArrayLike,
    candidate: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    level: float = LEVEL,
    seed: int = 0,
    resamples: int | None = None,
) -> Interval:
    """BCa bootstrap interval for the mean paired difference, resampling whole groups.

    Efron (1987), "Better bootstrap confidence intervals", JASA 82:171-185. The mean is over
    examples; where groups are given they are what is drawn, so the mean is a ratio of sums.

    Args:
        baseline, candidate: (n,) scores of the same examples.
        groups: (n,) labels; examples of one group are not independent. None: every example is its own.
        resamples: None: as many as leave `BEYOND` of them beyond either end, `MOST_RESAMPLES` at the most.
    """
    difference = np.asarray(candidate, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    if difference.ndim != 1 or difference.size == 0:
        raise ValueError("paired scores need two equally long, non-empty arrays of shape (n,)")
    sums, counts = _group_sums(difference, groups)
    value = float(sums.sum() / counts.sum())
    draws = _resampled_means(sums, counts, seed, resamples or min(max(RESAMPLES, round(2 * BEYOND / (1 - level))), MOST_RESAMPLES))
    jackknife = (sums.sum() - sums) / np.maximum(counts.sum() - counts, 1)
    bias, acceleration = _bca_constants(value, draws, jackknife)
    low, high = (
        float(np.quantile(draws, _bca_probability(_z(p), bias, acceleration))) for p in ((1 - level) / 2, (1 + level) / 2)
    )
    return Interval(value=value, low=min(low, value), high=max(high, value), level=level)


def corpus_difference(
    baseline: Callable[[NDArray[np.intp]], float],
    candidate: Callable[[NDArray[np.intp]], float],
    n: int,
    *,
    groups: ArrayLike | None = None,
    level: float = LEVEL,
    resamples: int = 1_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a metric that is defined on a set of examples (BLEU, F1, AUC).

    Args:
        baseline, candidate: functions from example indices (with repeats) to the metric on them.
        n: number of examples.
        groups: (n,) labels, drawn whole.
    """
    everything = np.arange(n)
    value = candidate(everything) - baseline(everything)
    members = _members(n, groups)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        picked = rng.integers(len(members), size=len(members))
        rows = np.concatenate([members[i] for i in picked])
        draws.append(candidate(rows) - baseline(rows))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value), level=level)


def _members(n: int, groups: ArrayLike | None) -> list[NDArray[np.intp]]:
    if groups is None:
        return list(np.arange(n).reshape(n, 1))
    _, code = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(code, kind="stable")
    return np.split(order, np.cumsum(np.bincount(code))[:-1])


def _group_sums(values: NDArray[np.float64], groups: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if groups is None:
        return values, np.ones_like(values)
    _, code = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(code, weights=values).astype(np.float64), np.bincount(code).astype(np.float64)


def _resampled_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int, resamples: int
) -> NDArray[np.float64]:
    return _drawn_means(sums.tobytes(), counts.tobytes(), seed, resamples)


@lru_cache(maxsize=4)  # a p-value asks for one interval at many levels
def _drawn_means(sums_bytes: bytes, counts_bytes: bytes, seed: int, resamples: int) -> NDArray[np.float64]:
    sums, counts = np.frombuffer(sums_bytes), np.frombuffer(counts_bytes)
    rng = np.random.default_rng(seed)
    out = np.empty(resamples)
    for r in range(resamples):
        picked = rng.integers(sums.size, size=sums.size)
        out[r] = sums[picked].sum() / counts[picked].sum()
    out.flags.writeable = False
    return out


def _bca_constants(value: float, draws: NDArray[np.float64], jackknife: NDArray[np.float64]) -> tuple[float, float]:
    below = (np.sum(draws < value) + 0.5 * np.sum(draws == value)) / draws.size
    bias = _z(float(np.clip(below, 1 / (draws.size + 1), draws.size / (draws.size + 1))))
    centred = jackknife.mean() - jackknife
    spread = float(np.sum(centred**2)) ** 1.5
    return bias, float(np.sum(centred**3)) / (6 * spread) if spread > 0 else 0.0


def _bca_probability(z: float, bias: float, acceleration: float) -> float:
    return _NORMAL.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))


# ---------------------------------------------------------------- quality


def quality_difference(
    baseline: ArrayLike,
    candidate: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    level: float = LEVEL,
    resamples: int | None = None,
) -> Interval:
    """Interval for the mean paired difference: Tango's for independent 0/1 scores, else bootstrap by group.

    Scores of 0 and -1 (errors, counted downwards) are as binary as 0 and 1. Binary scores in groups
    get the wider of the two at either end: where next to no answer differs, a bootstrap has nothing
    to draw from, and alone would claim a width of zero; what few groups can show bounds both.
    """
    base, cand = np.asarray(baseline, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    shift = _binary_shift(base, cand)
    if shift is None:
        return _widened(bootstrap_difference(base, cand, groups=groups, level=level, resamples=resamples), base, cand, groups)
    tango = paired_binary_interval(base + shift, cand + shift, level=level)
    if groups is None:
        return tango
    drawn = _widened(bootstrap_difference(base, cand, groups=groups, level=level, resamples=resamples), base, cand, groups)
    return Interval(value=drawn.value, low=min(drawn.low, tango.low), high=max(drawn.high, tango.high), level=level)


def _binary_shift(base: NDArray[np.float64], cand: NDArray[np.float64]) -> float | None:
    """What makes scores of two values 0 and 1; None where they are not binary."""
    return next((s for s in (0.0, 1.0) if np.isin(base + s, (0.0, 1.0)).all() and np.isin(cand + s, (0.0, 1.0)).all()), None)


def _widened(interval: Interval, base: NDArray[np.float64], cand: NDArray[np.float64], groups: ArrayLike | None) -> Interval:
    """A bootstrap interval, no narrower than what units that hardly differ can show.

    Where next to no example (or group) differs there is nothing to draw from. What was not seen in
    n units may still happen with a probability of up to z² / (n + z²): the end of Tango's interval
    for no discordant pair, here times the range of the scores.
    """
    sums, _ = _group_sums(cand - base, groups)
    if np.count_nonzero(sums) >= FEW_DIFFER:
        return interval
    both = np.concatenate([base, cand])
    span = float(np.ptp(both)) or float(np.abs(both).max()) or 1.0
    z = _z((1 + interval.level) / 2)
    floor = span * z * z / (sums.size + z * z)
    low, high = min(interval.low, interval.value - floor), max(interval.high, interval.value + floor)
    return Interval(value=interval.value, low=low, high=high, level=interval.level)


def quality_p(baseline: ArrayLike, candidate: ArrayLike, margin: float, *, groups: ArrayLike | None = None) -> float:
    """`p_value` of `quality_difference`. Where that is a bootstrap its tails end at one draw: no p below 1 / `RESAMPLES` is claimed."""
    base, cand = np.asarray(baseline, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    drawn = groups is not None or _binary_shift(base, cand) is None
    return p_value(
        lambda level: quality_difference(base, cand, groups=groups, level=level, resamples=RESAMPLES), margin, least=1 / RESAMPLES if drawn else LEAST_P
    )


def p_value(interval_at: Callable[[float], Interval], margin: float, *, least: float = LEAST_P) -> float:
    """One-sided p of H0 "worse than the baseline by `margin` or more": the smallest level at which
    the lower bound still reaches -margin (test and interval are one another's inverse).

    Args:
        interval_at: the interval as a function of its two-sided level.
        least: what is answered where p is below it.
    """
    below, above = least, 0.5
    if interval_at(1 - 2 * above + 1e-9).low < -margin:
        return 0.5 if interval_at(1e-9).value >= -margin else 1.0
    for _ in range(40):
        middle = math.sqrt(below * above)
        if interval_at(1 - 2 * middle).low >= -margin:
            above = middle
        else:
            below = middle
    return above


def examples_to_decide(quality: Interval, margin: float, n: int) -> int | None:
    """Examples at which the lower bound would reach -margin if the estimate held; None: no number would."""
    room = quality.value + margin
    if room <= 0:
        return None
    return math.ceil(n * ((quality.value - quality.low) / room) ** 2)


def choose(quality: Interval, cost: Interval, margin: float) -> Verdict:
    """While choosing, on valid: refuse what is shown to be worse, or not shown to be cheaper.

    A `take` here is provisional; only `certify` can say that quality held.
    """
    if quality.high < -margin:
        reason = f"worse: even the upper bound {quality.high:+.4f} is below the margin −{margin:.4f}"
        return Verdict(decision=Decision.REFUSE, reason=reason, quality=quality, cost=cost)
    if cost.low < COST_BAR:
        faster = "not cheaper" if cost.value < 1 else "not shown to be cheaper"
        reason = f"{faster}: {cost.value:.2f}× ({cost.low:.2f} to {cost.high:.2f}), {COST_BAR}× wanted"
        return Verdict(decision=Decision.REFUSE, reason=reason, quality=quality, cost=cost)
    return Verdict(
        decision=Decision.TAKE,
        reason=f"{cost.value:.2f}× cheaper, quality {quality.value:+.4f} on valid",
        quality=quality,
        cost=cost,
    )


def safety_of(quality: Any, deviation: Any, margin: float, n: int, tested: int) -> NDArray[np.float64]:
    """Standard errors by which a mean difference on `n` examples lies above what would be certified on `tested` others in half of all cases.

    On those the difference is spread around the true one, and that around what was found, by their standard errors; certified is what has
    its one-sided bound above the margin there.

    Args:
        quality, deviation: mean and standard deviation of an example's difference; of any shape.
    """
    above = np.asarray(quality + margin - ONE_SIDED * deviation / np.sqrt(tested), dtype=np.float64)
    error = np.asarray(deviation * np.sqrt(1 / n + 1 / tested), dtype=np.float64)
    certain = np.where(above >= 0, np.inf, -np.inf)
    return np.where(error == 0, certain, above / np.where(error == 0, 1.0, error))


def certify(quality: Interval, margin: float, n: int) -> Verdict:
    """Non-inferiority on test: pass only if the lower bound is at or above -margin."""
    if quality.low >= -margin:
        reason = f"lower bound {quality.low:+.4f} is within the margin −{margin:.4f}"
        return Verdict(decision=Decision.TAKE, reason=reason, quality=quality)
    if quality.high < -margin:
        reason = f"worse: even the upper bound {quality.high:+.4f} is below the margin −{margin:.4f}"
        return Verdict(decision=Decision.REFUSE, reason=reason, quality=quality)
    needed = examples_to_decide(quality, margin, n)
    more = (
        "no number of examples would change that if the estimate holds"
        if needed is None
        else f"about {needed:,} test examples would decide it, {n:,} are there"
    )
    reason = f"lower bound {quality.low:+.4f} is below the margin −{margin:.4f}; {more}"
    return Verdict(decision=Decision.INCONCLUSIVE, reason=reason, quality=quality)


def fixed_sequence(verdicts: Iterable[Verdict]) -> int | None:
    """Index of the last candidate that passed before the first that did not; None: the first failed.

    The order was fixed before the data were seen, so each test spends the whole 5 % and the
    family-wise error stays at 5 % (Maurer, Hothorn & Lehmacher 1995). Lazy: what comes after the
    first failure is not evaluated.
    """
    last = None
    for index, verdict in enumerate(verdicts):
        if verdict.decision is not Decision.TAKE:
            break
        last = index
    return last


# ---------------------------------------------------------------- cost


def cost_ratio(baseline: ArrayLike, candidate: ArrayLike, *, level: float = LEVEL, seed: int = 0) -> Interval:
    """Ratio of mean costs, baseline over candidate: above 1 means cheaper.

    Two-way bootstrap: rounds and inputs are drawn independently, the same draw for both sides,
    since they were measured interleaved on the same inputs (Owen 2007, "The pigeonhole bootstrap",
    Annals of Applied Statistics 1:386-411). Rounds are few, so the percentiles are moved outwards to
    make the interval as wide as Student's would be (Hesterberg 2015, "What teachers should know about
    the bootstrap", The American Statistician 69:371-386).

    Args:
        baseline, candidate: (rounds, inputs), the same rounds and inputs, in the same unit.
    """
    base = np.atleast_2d(np.asarray(baseline, dtype=np.float64))
    cand = np.atleast_2d(np.asarray(candidate, dtype=np.float64))
    if base.shape != cand.shape or base.size == 0:
        raise ValueError("costs need two equal, non-empty arrays of shape (rounds, inputs)")
    rounds, inputs = base.shape
    rng = np.random.default_rng(seed)
    weight_round = rng.multinomial(rounds, np.full(rounds, 1 / rounds), size=RESAMPLES)
    weight_input = rng.multinomial(inputs, np.full(inputs, 1 / inputs), size=RESAMPLES)
    drawn = [np.einsum("br,ri,bi->b", weight_round, cost, weight_input, optimize=True) for cost in (base, cand)]
    tail = _expanded((1 - level) / 2, rounds)
    low, high = np.quantile(drawn[0] / drawn[1], [tail, 1 - tail])
    return Interval(value=float(base.mean() / cand.mean()), low=float(low), high=float(high), level=level)


def _expanded(tail: float, n: int) -> float:
    """The tail to cut from a bootstrap of `n` units for an interval whose true tail is `tail`."""
    if n < 2:
        return tail
    return _NORMAL.cdf(-math.sqrt(n / (n - 1)) * student_quantile(1 - tail, n - 1))


def student_quantile(probability: float, freedom: float) -> float:
    """Student's quantile, by the first terms of its expansion: Abramowitz & Stegun, 26.7.5."""
    x = _z(probability)
    terms = (x, (x**3 + x) / 4, (5 * x**5 + 16 * x**3 + 3 * x) / 96, (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384)
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def exact_ratio(baseline: float, candidate: float) -> Interval:
    """A ratio that has no sampling error, such as bytes."""
    ratio = baseline / candidate
    return Interval(value=ratio, low=ratio, high=ratio)
