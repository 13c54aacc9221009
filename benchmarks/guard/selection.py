"""A whole selection on planted candidates: chosen on valid, ordered by confirm, certified on test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from plants import Offer, Scores, draw_together
from rules import difference, exact_rate

from tenfold.certify import Standing, for_confirm, order_candidates
from tenfold.verdict import COST_BAR, Decision, Interval, certify, choose, exact_ratio, fixed_sequence


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one selection."""

    sequence: tuple[int, ...]
    """Candidates that met the test split, in order."""
    shipped: int | None

    def bad(self, offers: list[Offer], margin: float) -> bool:
        """Whether what was shipped is truly worse than the baseline by the margin or more."""
        return self.shipped is not None and offers[self.shipped].plant.difference <= -margin


def select(offers: list[Offer], valid: Scores, confirm: Scores, test: Scores, margin: float) -> Outcome:
    """The project's own steps, in its order. Scores are (C,), a split each."""
    costs = [exact_ratio(o.gain, 1.0) for o in offers]
    taken = [
        Standing(recipe=str(c), quality=_interval(valid, c), gain=cost)
        for c, cost in enumerate(costs)
        if cost.low >= COST_BAR and choose(_interval(valid, c), cost, margin).decision is Decision.TAKE
    ]
    on_valid = for_confirm(taken, margin, n=valid.n, tested=test.n)
    standings = [Standing(recipe=s.recipe, quality=_interval(confirm, int(s.recipe)), gain=s.gain) for s in on_valid]
    sequence = tuple(int(s.recipe) for s in order_candidates(standings, margin, n=confirm.n, tested=test.n))
    last = fixed_sequence(certify(_interval(test, c), margin, test.n) for c in sequence)
    return Outcome(sequence=sequence, shipped=None if last is None else sequence[last])


def draw_splits(offers: list[Offer], sizes: dict[str, int], rng: np.random.Generator) -> dict[str, Scores]:
    """Independent splits, on each of which all candidates meet the same examples."""
    return {name: draw_together([o.plant for o in offers], n, rng) for name, n in sizes.items()}


def exact_error(offers: list[Offer], outcome: Outcome, n: int, margin: float) -> float | None:
    """Probability of a wrong shipment given the sequence, where all in it are wrong: that its first passes."""
    if any(offers[c].plant.difference > -margin for c in outcome.sequence):
        return None
    return exact_rate(offers[outcome.sequence[0]].plant, n, margin) if outcome.sequence else 0.0


def best_good(offers: list[Offer], margin: float) -> int | None:
    """What somebody who knew the truth would ship: the cheapest that is worse by less than the margin."""
    good = [c for c, o in enumerate(offers) if o.plant.difference > -margin]
    return max(good, key=lambda c: offers[c].gain) if good else None


def _interval(scores: Scores, c: int) -> Interval:
    return difference(int(scores.gained[c]), int(scores.lost[c]), scores.n)
