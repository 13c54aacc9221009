"""How the learning rate and the momentum go along a training. Pure numbers."""

from __future__ import annotations

import math

from tenfold.train.config import TrainConfig

DECAY = 0.2
"""Share of a stable schedule, at its end, in which the rate falls (Hu et al. 2024, arXiv:2404.06395, take a tenth; longer is safer)."""
FIRST, LAST = 1 / 25, 1e-5
"""Rates at the ends of one cycle, over its peak; with its momentum as Smith & Topin (2018, arXiv:1708.07120) have it."""
CYCLED = 0.1
"""By which the momentum is lower where one cycle is at its peak."""


def rate_factor(config: TrainConfig, share: float) -> float:
    """Factor on the peak learning rate at `share` of the training, in [0, 1]."""
    warmup, share = config.warmup, min(share, 1.0)
    rising = share / warmup if warmup else 1.0
    left = (1 - share) / (1 - warmup) if warmup < 1 else 1.0
    match config.schedule:
        case "linear":
            return rising if share < warmup else left
        case "cosine":
            return rising if share < warmup else _eased(0.0, 1.0, left)
        case "one_cycle":
            return _eased(FIRST, 1.0, rising) if share < warmup else _eased(LAST, 1.0, left)
        case "stable":
            return min(1.0, rising, (1 - share) / DECAY)
        case "free":
            return min(1.0, rising)


def momentum_at(config: TrainConfig, share: float) -> float:
    """The momentum (the first beta) at `share` of the training."""
    if config.schedule != "one_cycle" or not config.momentum:
        return config.momentum
    height = (rate_factor(config, share) - FIRST) / (1 - FIRST)
    return max(0.0, config.momentum - CYCLED * max(0.0, height))


def _eased(start: float, end: float, share: float) -> float:
    """Half a cosine from one value to another."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
