"""From values to places on a chart, in percent of its width or height, and the ticks between."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tick:
    at: float
    """Percent."""
    text: str


@dataclass(frozen=True)
class Linear:
    """Maps [low, high] to [0, 100]; what lies outside lands on the edge."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        return _clamped((value - self.low) / (self.high - self.low))

    def ticks(self, text: Callable[[float, int], str], most: int = 6) -> tuple[Tick, ...]:
        """Round values inside; `text(value, decimals)` writes them."""
        step = _round_step((self.high - self.low) / most)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        values = [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return tuple(Tick(at=self(v), text=text(v, decimals)) for v in values)


@dataclass(frozen=True)
class Log:
    """As `Linear`, for ratios: equal factors are equal lengths."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        return _clamped(math.log(value / self.low) / math.log(self.high / self.low)) if value > 0 else 0.0

    def ticks(self, text: Callable[[float, int], str], most: int = 6) -> tuple[Tick, ...]:
        """1, 2 and 5 times the powers of ten; evenly spaced values where the range holds too few of them."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
        inside = [v for v in every if self.low <= v <= self.high]
        if len(inside) > most:
            inside = [v for v in inside if _is_power_of_ten(v)]
        if len(inside) < 3:
            step = _round_step((self.high - self.low) / 4)
            inside = [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return tuple(Tick(at=self(v), text=text(v, 0)) for v in inside)


def _clamped(share: float) -> float:
    return round(min(max(share, 0.0), 1.0) * 100, 3)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next((m * power for m in (1, 2, 5) if m * power >= least * (1 - 1e-9)), 10 * power)


def _is_power_of_ten(value: float) -> bool:
    return abs(math.log10(value) - round(math.log10(value))) < 1e-9
