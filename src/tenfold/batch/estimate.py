"""The noise scale of a gradient from squared norms: unbiased moments of a step, and the ratio of their means. Pure numbers.

The mean gradient over b examples has the squared norm |G|² + tr(Σ)/b in expectation, where G is the exact gradient and Σ the
covariance of one example's (McCandlish et al. 2018, arXiv:1812.06162, appendix A.1). From norms over the whole batch and over its
parts both follow without bias. Their ratio B_simple = tr(Σ)/|G|² is biased where they are noisy, so it is taken of their means
over many steps, and its interval is Fieller's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tenfold.verdict import LEVEL, student_quantile

LEAST_STEPS = 4.0
"""Steps' worth of moments, below which their scatter says too little for an interval."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class NoiseScale:
    """B_simple with its interval, and what it was made of."""

    value: float
    """tr(Σ)/|G|², in examples; infinite where no gradient can be told from the noise."""
    low: float
    high: float
    """Infinite where the gradient's norm is not shown to be above zero."""
    level: float
    signal: float
    """|G|², of the gradient of the mean loss."""
    noise: float
    """tr(Σ), of one example's gradient."""
    steps: int
    """Steps that were seen."""
    effective_steps: float
    """As many of equal weight would say as much: fewer than `steps` where older ones are forgotten."""
    examples: int
    """Examples that were seen."""

    def __str__(self) -> str:
        return f"{self.value:.4g} examples ({self.level:.0%} interval {self.low:.4g} to {self.high:.4g}, from {self.steps} steps)"

    def to_json(self) -> dict[str, float | None]:
        """What is infinite is null."""
        return {k: v if math.isfinite(v) else None for k, v in asdict(self).items()}


def moments(parts: ArrayLike, whole: ArrayLike, *, count: int, examples: int) -> Floats:
    """Unbiased estimates of (|G|², tr(Σ)) from one step.

    With g the mean gradient over B examples, and h_i what part i of b_i examples adds to it (so that Σ h_i = g, and h_i = g_i b_i / B):
    E Σ (B/b_i)|h_i|² = |G|² + M tr(Σ)/B and E |g|² = |G|² + tr(Σ)/B, for M parts of any sizes. If all gradients are a constant
    times what they should be, both estimates are its square times too large, and their ratio is right.

    Args:
        parts: Σ |h_i|² / b_i, of any shape (one a group of parameters, say).
        whole: |g|², of the same shape.
        count: M, the parts, 2 at least.
        examples: B, in all parts together.

    Returns:
        (2, …): |G|², which may come out negative, and tr(Σ).
    """
    if count < 2 or examples < count:
        raise ValueError(f"a noise scale needs at least two parts, each with an example: {count} parts of {examples} examples")
    parts, whole = np.asarray(parts, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    noise = examples * (examples * parts - whole) / (count - 1)
    return np.stack([whole - noise / examples, noise])


class Smoothed:
    """Mean and covariance of a stream of moments in which old ones may fade. Its state is a few numbers.

    Args:
        half_life: steps after which what was seen weighs half; none: all weigh alike.
    """

    def __init__(self, half_life: float | None = None) -> None:
        if half_life is not None and half_life <= 0:
            raise ValueError(f"half_life is {half_life}: it must be above 0, or None")
        self._decay = 1.0 if half_life is None else 0.5 ** (1 / half_life)
        self._weight = self._weight2 = 0.0
        self._mean: Floats = np.zeros(2)
        self._scatter: Floats = np.zeros((2, 2))
        self.steps = self.examples = 0

    def add(self, step: Floats, examples: int) -> None:
        """Take in one step's moments (2,), by West's update of weighted mean and scatter (1979, CACM 22:532-535)."""
        self._weight = self._decay * self._weight + 1
        self._weight2 = self._decay**2 * self._weight2 + 1
        away = step - self._mean
        self._mean = self._mean + away / self._weight
        self._scatter = self._decay * self._scatter + np.outer(away, step - self._mean)
        self.steps += 1
        self.examples += examples

    def noise_scale(self, level: float = LEVEL) -> NoiseScale:
        """The ratio of the means with Fieller's interval; by Beale's estimator (1962), which takes out most of its bias, where the gradient is shown
        to be there."""
        if not self.steps:
            raise ValueError("no step has been measured yet: call step() after a backward pass")
        effective = self._weight**2 / self._weight2
        signal, noise = self._mean
        value, low, high = (max(0.0, noise / signal) if signal > 0 else math.inf), 0.0, math.inf
        if effective >= LEAST_STEPS:
            # covariance of the means: the unbiased weighted one of a step, by Σw²/(Σw)²
            of_means = self._scatter / self._weight / (effective - 1)
            low, high = fieller(signal, noise, of_means, student_quantile((1 + level) / 2, effective - 1))
            if math.isfinite(high):
                value = min(max(beale(signal, noise, of_means), low), high)
        return NoiseScale(
            value=float(value), low=float(low), high=float(high), level=level, signal=float(signal), noise=float(noise),
            steps=self.steps, effective_steps=float(effective), examples=self.examples,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {
            "weight": self._weight, "weight2": self._weight2, "mean": self._mean.tolist(), "scatter": self._scatter.tolist(),
            "steps": self.steps, "examples": self.examples,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._weight, self._weight2 = state["weight"], state["weight2"]
        self._mean, self._scatter = np.asarray(state["mean"]), np.asarray(state["scatter"])
        self.steps, self.examples = state["steps"], state["examples"]


def beale(signal: float, noise: float, of_means: Floats) -> float:
    """noise/signal, less the bias that comes of dividing by a noisy mean, for a signal that is well above its own error.

    Args:
        of_means: (2, 2), the covariance of (signal, noise).
    """
    return float((noise / signal + of_means[0, 1] / signal**2) / (1 + of_means[0, 0] / signal**2))


def fieller(signal: float, noise: float, of_means: Floats, quantile: float) -> tuple[float, float]:
    """All ratios r ≥ 0 for which noise − r·signal is within `quantile` standard errors of zero (Fieller 1954, JRSS B 16:175-185).

    Args:
        of_means: (2, 2), the covariance of (signal, noise).
        quantile: Student's, of both sides.
    """
    q2 = quantile**2
    a = signal**2 - q2 * of_means[0, 0]
    b = signal * noise - q2 * of_means[0, 1]
    c = noise**2 - q2 * of_means[1, 1]
    inner = b * b - a * c
    if inner < 0:  # every ratio is possible
        return 0.0, math.inf
    root = math.sqrt(inner)
    if a > 0 and signal > 0:
        return max(0.0, (b - root) / a), max(0.0, (b + root) / a)
    # the signal is not shown to be positive: the ratio has no upper end
    ends = [x for x in ((b - root) / a, (b + root) / a) if x > 0] if a else []
    return (max(ends) if a < 0 and noise > 0 and c > 0 and ends else 0.0), math.inf
