"""Synthetic candidates of which the truth is known: counts of paired 0/1 scores, drawn from a planted difference.

Legend: C candidates, R repetitions, 4 the kinds of a pair.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

BASELINE_ACCURACY = 0.9
"""Only the rules of the peers depend on it: they look at two accuracies, not at pairs."""


@dataclass(frozen=True, kw_only=True)
class Plant:
    """What is true of a candidate."""

    difference: float
    """Of the accuracies, candidate minus baseline."""
    discordance: float
    """Share of the examples that exactly one of the two has right; at least |difference|."""

    def __post_init__(self) -> None:
        if self.discordance < abs(self.difference):
            raise ValueError(f"a discordance of {self.discordance} is below the difference {self.difference}")

    @property
    def gained(self) -> float:
        """Probability that only the candidate is right."""
        return (self.discordance + self.difference) / 2

    @property
    def lost(self) -> float:
        """Probability that only the baseline is right."""
        return (self.discordance - self.difference) / 2


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Counts that say all there is about independent paired 0/1 scores; any shape, the same for all three."""

    n: int
    baseline: Counts
    """Examples that the baseline has right."""
    gained: Counts
    lost: Counts

    @property
    def candidate(self) -> Counts:
        """Examples that the candidate has right."""
        return self.baseline + self.gained - self.lost

    def digest(self) -> str:
        """Identity of the draw, to tell whether another numpy drew the same."""
        return hashlib.sha256(np.stack([self.baseline, self.gained, self.lost]).astype("<i8").tobytes()).hexdigest()[:16]


def draw(plant: Plant, n: int, repetitions: int, rng: np.random.Generator) -> Scores:
    """Repetitions (R,) of one plant, each on n fresh examples.

    Examples are independent, so the four kinds of a pair (both right, both wrong, gained, lost) are
    multinomial: drawing the counts is drawing the scores.
    """
    kinds_R4 = rng.multinomial(
        n,
        [plant.gained, plant.lost, BASELINE_ACCURACY - plant.lost, 1 - BASELINE_ACCURACY - plant.gained],
        size=repetitions,
    )
    return Scores(n=n, baseline=kinds_R4[:, 1] + kinds_R4[:, 2], gained=kinds_R4[:, 0], lost=kinds_R4[:, 1])


def draw_together(plants: list[Plant], n: int, rng: np.random.Generator) -> Scores:
    """Candidates (C,) against one baseline on the same n examples.

    Given which examples the baseline has right, what a candidate loses of them and gains of the others
    is binomial; the marginal law of each candidate is that of `draw`.
    """
    right = rng.binomial(n, BASELINE_ACCURACY)
    lost_C = rng.binomial(right, [p.lost / BASELINE_ACCURACY for p in plants])
    gained_C = rng.binomial(n - right, [p.gained / (1 - BASELINE_ACCURACY) for p in plants])
    return Scores(n=n, baseline=np.full(len(plants), right), gained=gained_C, lost=lost_C)


# ---------------------------------------------------------------- what a search has to choose among


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A candidate of a search: what is true of its quality and of its cost."""

    plant: Plant
    gain: float
    """True cost ratio, above 1 is cheaper. Taken as measured without error: quality is on trial here."""


def boundary_offers(margin: float, size: int, rng: np.random.Generator) -> list[Offer]:
    """All exactly `margin` worse: the hardest to tell from acceptable, so the most are shipped."""
    return [Offer(plant=Plant(difference=-margin, discordance=d), gain=g) for d, g in zip(_discordances(size, rng), _gains(size, rng))]


def worse_offers(margin: float, size: int, rng: np.random.Generator) -> list[Offer]:
    """All `margin` worse or more, the cheaper the worse: from one to four margins."""
    gains = _gains(size, rng)
    differences = [-margin * (1 + 3 * math.log(g) / math.log(max(gains))) for g in gains]
    return [
        Offer(plant=Plant(difference=d, discordance=max(s, 1.2 * abs(d))), gain=g)
        for d, s, g in zip(differences, _discordances(size, rng), gains)
    ]


def mixed_offers(margin: float, size: int, rng: np.random.Generator) -> list[Offer]:
    """Good and bad, as in a real search: what is cheaper tends to be worse, with exceptions both ways."""
    gains = _gains(size, rng)
    differences = [-3 * margin * (math.log(g) / math.log(4)) ** 2 + float(rng.normal(0.0, margin / 2)) for g in gains]
    return [
        Offer(plant=Plant(difference=d, discordance=max(s, 1.2 * abs(d))), gain=g)
        for d, s, g in zip(differences, _discordances(size, rng), gains)
    ]


SCENARIOS = {"boundary": boundary_offers, "worse": worse_offers, "mixed": mixed_offers}


def _gains(size: int, rng: np.random.Generator) -> list[float]:
    return [float(g) for g in np.exp(rng.uniform(math.log(1.05), math.log(4.0), size))]


def _discordances(size: int, rng: np.random.Generator) -> list[float]:
    return [float(d) for d in rng.choice([0.01, 0.04, 0.08], size)]
