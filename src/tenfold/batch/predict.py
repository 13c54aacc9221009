"""Which batch reaches a target soonest, and which cheapest: from the noise of the gradient and the time of a step. Pure numbers.

With a critical batch size B_crit, S(B) = S_min (1 + B_crit/B) steps reach a target (McCandlish et al. 2018, arXiv:1812.06162,
eq. 2.7 and 2.11), so that it takes T(B) = S(B) t(B), where t(B) is the time of a step. S_min is the same for all batches: it is not
needed to choose one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WORTH = 1.5
"""By which twice the devices should shorten a training, for them to be worth it."""
MOST_DEVICES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """What a step takes, by its batch: as measured at some sizes, and by powers of the size between them."""

    sizes: tuple[int, ...]
    """Ascending."""
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) != len(self.seconds):
            raise ValueError(f"{len(self.sizes)} batch sizes with {len(self.seconds)} step times: each size needs its time")
        if any(a >= b for a, b in zip(self.sizes, self.sizes[1:], strict=False)) or self.sizes[0] < 1 or min(self.seconds) <= 0:
            raise ValueError("batch sizes have to ascend from 1 on, and step times to be above 0")

    def at(self, batch: float) -> float:
        """Seconds of a step with that batch; beyond the largest that was measured, in proportion to it."""
        largest = self.sizes[-1]
        if batch > largest:
            return self.seconds[-1] * batch / largest
        return float(np.exp(np.interp(math.log(batch), np.log(self.sizes), np.log(self.seconds))))


def steps_over_least(batch: float, critical: float) -> float:
    """S(B)/S_min = 1 + B_crit/B."""
    return 1 + critical / batch


def examples_over_least(batch: float, critical: float) -> float:
    """E(B)/E_min = 1 + B/B_crit."""
    return 1 + batch / critical


def times(sizes: Sequence[int], time: StepTime, critical: float) -> Floats:
    """T(B)/S_min in seconds, (sizes,)."""
    return np.array([steps_over_least(b, critical) * time.at(b) for b in sizes])


def soonest(sizes: Sequence[int], time: StepTime, critical: float) -> int:
    """Of these sizes, the one with the least T(B); of equals the smaller."""
    return int(sizes[int(np.argmin(times(sizes, time, critical)))])


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A batch size, and those that could be the best instead of it."""

    best: int
    low: int
    high: int
    """The best ones at either end of the interval of the critical batch size."""
    worst: float
    """The most that `best` may take over the best there is, were the critical batch size at an end of its interval: 1 is as good."""


def choose(sizes: Sequence[int], time: StepTime, critical: float, low: float, high: float) -> Choice:
    """The batch size that the model of T(B) calls for, at the critical batch size and at the ends of its interval.

    Args:
        sizes: those that memory allows, ascending.
        critical, low, high: B_crit with its interval, in examples; infinite where the gradient cannot be told from noise.
    """
    most = float(sizes[-1]) * 1e6  # beyond it all that counts is the time of an example
    middle, low, high = (min(c, most) for c in (critical, low, high))
    best = soonest(sizes, time, middle)
    at = list(sizes).index(best)
    regrets = [float(t[at] / t.min()) for t in (times(sizes, time, c) for c in (low, high))]
    return Choice(best=best, low=soonest(sizes, time, low), high=soonest(sizes, time, high), worst=max(1.0, *regrets))


def devices_worth(time: StepTime, critical: float) -> int:
    """Devices, a power of two, up to which twice as many shorten a training by `WORTH` at least.

    Each takes an equal part of the batch, which is the best for so many; exchanging gradients is taken to cost nothing, so that
    fewer are worth it in truth.
    """
    count, now = 1, _soonest_with(1, time, critical)
    while count < MOST_DEVICES:
        twice = _soonest_with(2 * count, time, critical)
        if now < WORTH * twice:
            break
        count, now = 2 * count, twice
    return count


def _soonest_with(devices: int, time: StepTime, critical: float) -> float:
    """The least T(B)/S_min when each of the devices takes one of the measured sizes."""
    return min(steps_over_least(devices * size, critical) * seconds for size, seconds in zip(time.sizes, time.seconds, strict=True))


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """A batch that grows along the training, and what that gains."""

    sizes: tuple[int, ...]
    """The best for each stretch of the training."""
    gain: float
    """Time with the best fixed batch over that with these."""


def warm_up(sizes: Sequence[int], time: StepTime, criticals: Sequence[float], shares: Sequence[float]) -> Warmup:
    """The batch of each stretch, where the critical batch size changes along the training.

    Args:
        criticals: B_crit of each stretch.
        shares: of the least steps S_min, that each stretch takes; they add up to 1.
    """
    by_stretch = [times(sizes, time, c) for c in criticals]
    fixed = sum(share * t for share, t in zip(shares, by_stretch, strict=True))
    free = sum(share * float(t.min()) for share, t in zip(shares, by_stretch, strict=True))
    return Warmup(sizes=tuple(soonest(sizes, time, c) for c in criticals), gain=float(np.min(fixed) / free))


def learning_rate(rate: float, batch: float, other: float, *, optimizer: str, critical: float) -> float:
    """The rate for another batch size that keeps a step's progress in proportion to how sure its direction is.

    SGD: in proportion to 1/(1 + B_crit/B), linear far below the critical batch size and constant far above it (McCandlish et al.
    2018, eq. 2.6; Goyal et al. 2017, arXiv:1706.02677). Adam and its kin, whose steps are normalised: to the root of that (Malladi et al.
    2022, arXiv:2205.10287).
    """
    factor = steps_over_least(batch, critical) / steps_over_least(other, critical) if math.isfinite(critical) else other / batch
    return rate * (factor if optimizer == "sgd" else math.sqrt(factor))


def second_beta(beta: float, batch: float, other: float) -> float:
    """Adam's second beta for another batch size, so that squared gradients are forgotten over as many examples (arXiv:2507.07101)."""
    return float(beta ** (other / batch))
