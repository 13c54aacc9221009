"""Whether an upgrade may take the place of the model in service, where many follow one another.

An upgrade that is only compared with the one before it may be worse each time by what a test of its size cannot show: small losses add up,
"bio-creep" (Feng, Emerson & Simon 2021, Biometrics 77:31-44). So each is held against the model that was certified first, on the same test
examples, at a share of the error; and, on examples of the new data that nobody has learned from, against both the first and the one in service.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from tenfold.verdict import LEVEL, Decision, Interval, Verdict, certify

PLANNED, MOST_PLANNED = 12, 25
"""Upgrades that may be judged on one test split, where nothing else is said: a month each for a year; and at the most: a share of the error as
small as that of more could not be told by the draws of a bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An upgrade against a model that it must not be worse than."""

    against: str
    on: str
    quality: Interval
    margin: float
    """Absolute."""
    n: int

    @property
    def verdict(self) -> Verdict:
        found = certify(self.quality, self.margin, self.n)
        return dataclasses.replace(found, reason=f"against {self.against} on {self.on}: {found.reason}")

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "verdict": str(self.verdict.decision)}


def level_of(planned: int) -> float:
    """Of two-sided intervals whose lower ends are all true with 95 % in so many upgrades: each has an equal share of the error (Bonferroni).

    An upgrade has to hold in each of its comparisons, which takes no more of the error (Berger 1982, Technometrics 24:295-300).
    """
    return 1 - (1 - LEVEL) / planned


def least_examples(margin: float, planned: int) -> int:
    """Examples on which an upgrade of just the same accuracy could be let in, where its answers differ on next to none of them: Tango's interval is
    then as wide as z² / (n + z²)."""
    z = NormalDist().inv_cdf((1 + level_of(planned)) / 2)
    return math.ceil(z * z * (1 - margin) / margin)


def judged(comparisons: Sequence[Comparison]) -> Verdict:
    """Of the comparisons, that which speaks most against the upgrade: it is taken where all of them hold."""
    order = [Decision.REFUSE, Decision.INCONCLUSIVE, Decision.TAKE]
    return min((c.verdict for c in comparisons), key=lambda v: order.index(v.decision))
