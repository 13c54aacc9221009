"""What cascades of measured parts would come to, by their recorded answers: nothing is built or timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tenfold.data.split import Array
from tenfold.insights import confidence
from tenfold.lever import Part

SHARES = tuple(np.round(np.concatenate([np.arange(0.01, 0.1, 0.01), np.arange(0.1, 0.3, 0.02), np.arange(0.3, 0.62, 0.05)]), 3))
"""Of the examples, that a part may hand on."""
SAFETY = (0.2, 0.0, -0.2, -0.4, -0.6)
"""Quality differences aimed at, in margins: each has its cheapest cascade, so that a sequence from safe to cheap can be had."""
MOST_PARTS = 10
OVERHEAD = 0.005
"""Cost of a decision, over the baseline's prediction, until it is known better."""
LEAST_GAIN = 1.02
"""Over the cheapest part that is good enough alone."""


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """A cascade as it would come out on valid."""

    parts: tuple[Part, ...]
    hand_on: tuple[float, ...]
    quality: float
    """Mean difference of scores against the baseline."""
    cost: float
    """Of a prediction, over the baseline's."""

    @property
    def decisions(self) -> float:
        """How often it is decided whether to hand on, a prediction."""
        return 1.0 + sum(self.hand_on[:-1])


def best(parts: Sequence[Part], margin: float, *, overhead: float = OVERHEAD) -> list[Foreseen]:
    """For each quality that is aimed at, the cheapest cascade that reaches it, where it beats every single part; safest first.

    Args:
        parts: the baseline first.
        overhead: cost of a decision, over the baseline's prediction.
    """
    baseline = parts[0]
    useful = _useful(parts)
    out: list[Foreseen] = []
    foreseen = list(_all(useful, baseline, overhead))
    for aim in SAFETY:
        alone = min((p.cost for p in useful if float((p.scores - baseline.scores).mean()) >= aim * margin), default=float("inf"))
        able = [f for f in foreseen if f.quality >= aim * margin]
        if not able:
            continue
        cheapest = min(able, key=lambda f: f.cost)
        if cheapest.cost * LEAST_GAIN < alone and cheapest not in out:
            out.append(cheapest)
    return out


def _useful(parts: Sequence[Part]) -> list[Part]:
    """Parts that no other beats in both quality and cost, from cheap to good, at most `MOST_PARTS`; the baseline is kept."""
    out: list[Part] = []
    for part in sorted(parts, key=lambda p: (p.cost, -p.scores.mean())):
        if not out or part.scores.mean() > out[-1].scores.mean() or part is parts[0]:
            out.append(part)
    while len(out) > MOST_PARTS:  # the one least far from its neighbours in cost goes
        ratios = [out[i + 1].cost / out[i].cost for i in range(len(out) - 1)]
        at = int(np.argmin(ratios))
        out.pop(at if out[at + 1] is parts[0] or at == len(ratios) - 1 else at + 1)
    return out


def overhead_of(measured: Sequence[tuple[Foreseen, float]], overhead: float = OVERHEAD) -> float:
    """What a decision costs by the cascades that were measured: the median of what they cost beside their parts.

    Args:
        measured: cascades, with their cost over the baseline's as it came out.
        overhead: with which they were foreseen.
    """
    return max(0.0, float(np.median([overhead + (cost - f.cost) / f.decisions for f, cost in measured])))


def _all(parts: Sequence[Part], baseline: Part, overhead: float) -> Iterator[Foreseen]:
    sureness = {id(p): confidence(p.outputs) for p in parts}
    for chain in (*combinations(parts, 2), *combinations(parts, 3)):
        yield from _shares(chain, baseline, sureness, overhead)


def _shares(chain: tuple[Part, ...], baseline: Part, sureness: dict[int, Array], overhead: float) -> Iterator[Foreseen]:
    n = len(baseline.scores)
    first, *rest = chain
    order = np.argsort(sureness[id(first)], kind="stable")
    for share in SHARES:
        count = round(share * n)
        if not 0 < count < n:
            continue
        handed = order[:count]
        total = first.scores.sum() - first.scores[handed].sum()
        cost = first.cost + overhead + count / n * rest[0].cost
        if len(chain) == 2:
            quality = (total + rest[0].scores[handed].sum()) / n - baseline.scores.mean()
            yield Foreseen(parts=chain, hand_on=(float(share),), quality=float(quality), cost=float(cost))
            continue
        again = handed[np.argsort(sureness[id(rest[0])][handed], kind="stable")]
        # the sum of scores if the first k of `again` went on: by cumulative sums
        on = np.concatenate([[0.0], np.cumsum(rest[1].scores[again])])
        kept = rest[0].scores[again].sum() - np.concatenate([[0.0], np.cumsum(rest[0].scores[again])])
        for further in SHARES:
            k = round(further * n)
            if not 0 < k < count:
                continue
            quality = (total + on[k] + kept[k]) / n - baseline.scores.mean()
            dear = cost + overhead * count / n + k / n * rest[1].cost
            yield Foreseen(parts=chain, hand_on=(float(share), float(further)), quality=float(quality), cost=float(dear))
