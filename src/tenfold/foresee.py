"""What cascades of measured parts would come to, by their recorded answers: nothing is built or timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tenfold.data.split import Array
from tenfold.insights import confidence
from tenfold.lever import Part, Situation

SHARES = tuple(np.round(np.concatenate([np.arange(0.01, 0.1, 0.01), np.arange(0.1, 0.3, 0.02), np.arange(0.3, 0.82, 0.05)]), 3))
"""Of the examples, that a part may hand on."""
BLENDS = (0.0, 0.25, 0.5)
"""Shares of what was answered so far, that a later part's answer may have."""
SAFETY = (1.28, 0.84, 0.4, 0.0, -0.4)
"""Standard errors by which what is foreseen lies above what certification will ask for (certified in about 90, 80, 66, 50 and 34 of 100
cases): each has its cheapest cascade, so that a sequence from safe to cheap can be had."""
ONE_SIDED = 1.645
"""Standard errors from a mean to its one-sided 95 % bound."""
MOST_PARTS = 10
OVERHEAD = 0.005
"""Cost of a decision, over the baseline's prediction, until it is known better."""
AIM, HANDS_ON_LESS = -0.4, 0.5
"""Quality difference, in margins, for which a part hands on; and what it hands on once it is trained in full, over what it does after a
short training."""
BEHIND = 0.5
"""Cost of what answers where no student is sure, the baseline compressed, over the baseline's, until it is known better."""
LEAST_GAIN = 1.02
"""Over the cheapest part that is good enough alone."""


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """A cascade as it would come out on valid."""

    parts: tuple[Part, ...]
    hand_on: tuple[float, ...]
    blend: float = 0.0
    quality: float
    """Mean difference of scores against the baseline."""
    deviation: float
    """Standard deviation of an example's difference."""
    cost: float
    """Of a prediction, over the baseline's."""

    @property
    def decisions(self) -> float:
        """How often it is decided whether to hand on, a prediction."""
        return 1.0 + sum(self.hand_on[:-1])


def best(
    parts: Sequence[Part], margin: float, *, tested: int, score: Callable[[Array], Array] | None = None, overhead: float = OVERHEAD
) -> list[Foreseen]:
    """For each degree of safety the cheapest cascade that has it, where it beats every single part; safest first.

    Args:
        parts: the baseline first.
        tested: examples that will certify.
        score: outputs (n, classes) on valid to scores (n,); None: answers are not blended.
        overhead: cost of a decision, over the baseline's prediction.
    """
    baseline = parts[0]
    useful = _useful(parts)
    out: list[Foreseen] = []
    foreseen = [(f, _safety(f.quality, f.deviation, margin, len(baseline.scores), tested)) for f in _all(useful, baseline, score, overhead)]
    single = [(p.cost, _safety(float(d.mean()), float(d.std()), margin, len(d), tested)) for p in useful for d in [p.scores - baseline.scores]]
    for wanted in SAFETY:
        alone = min((cost for cost, safety in single if safety >= wanted), default=float("inf"))
        able = [f for f, safety in foreseen if safety >= wanted]
        if not able:
            continue
        cheapest = min(able, key=lambda f: f.cost)
        if cheapest.cost * LEAST_GAIN < alone and cheapest not in out:
            out.append(cheapest)
    return out


def _safety(quality: float, deviation: float, margin: float, n: int, tested: int) -> float:
    """Standard errors by which a mean difference on `n` examples lies above what would be certified on `tested` others in half of all cases.

    On those the difference is spread around the true one, and that around what was found, by their standard errors; certified is what has
    its one-sided bound above the margin there.
    """
    above = quality + margin - ONE_SIDED * deviation / np.sqrt(tested)
    error = deviation * np.sqrt(1 / n + 1 / tested)
    if error == 0:
        return float("inf") if above >= 0 else float("-inf")
    return float(above / error)


def _useful(parts: Sequence[Part]) -> list[Part]:
    """Parts that no other beats in both quality and cost, from cheap to good, at most `MOST_PARTS`; the baseline is kept."""
    out: list[Part] = []
    for part in sorted(parts, key=lambda p: (p.cost, -p.scores.mean())):
        if not out or part.scores.mean() > out[-1].scores.mean() or part is parts[0]:
            out.append(part)
    while len(out) > MOST_PARTS:  # the one least far from its neighbours in cost goes
        ratios = [out[i + 1].cost / out[i].cost for i in range(len(out) - 1)]
        at = int(np.argmin(ratios))
        out.pop(at + 1 if out[at] is parts[0] or (out[at + 1] is not parts[0] and at < len(ratios) - 1) else at)
    return out


def least_share(part: Part, baseline: Part, aim: float) -> float:
    """Of the examples, that a part has to hand on to the baseline, those that it is least sure of first, for a quality difference of `aim`."""
    order = np.argsort(confidence(part.outputs), kind="stable")
    lost = np.concatenate([[0.0], np.cumsum((baseline.scores - part.scores)[order])])  # won back by handing on the first k
    reached = (lost - lost[-1]) / len(order) >= aim - 1e-12
    return float(np.argmax(reached) / len(order))


def may_compose(situation: Situation, baseline: Part) -> bool:
    """Whether what is measured now may become part of a cascade."""
    return situation.composes and situation.objective == "serve" and situation.workload.classifies and baseline.outputs.ndim == 2


def promising(students: Sequence[Part], baseline: Part, margin: float, *, in_full: int = 0) -> list[int]:
    """Which of the students with short trainings promise most before the baseline: one, or two, the cheaper first; their places.

    What a cascade of one or two students would come to were they trained in full:
    `c1 + d + s1 (c2 + d) + s2 b`, with costs c, shares s that each student alone would hand on (what is hard for one is hard for the
    other), d for a decision and b for what stands behind.

    Args:
        in_full: so many of the students, the first ones, are trained in full: one of the others is sought, alone or beside one of these.
    """
    shares = [least_share(s, baseline, AIM * margin) * (1.0 if i < in_full else HANDS_ON_LESS) for i, s in enumerate(students)]
    chains: list[tuple[float, list[int]]] = []
    for i, first in enumerate(students):
        chains.append((first.cost + OVERHEAD + shares[i] * BEHIND, [i]))
        for j, second in enumerate(students):
            if first.cost < second.cost:
                chains.append((first.cost + OVERHEAD + shares[i] * (second.cost + OVERHEAD) + shares[j] * BEHIND, [i, j]))
    if in_full:
        chains = [(cost, new) for cost, chain in chains if len(new := [i for i in chain if i >= in_full]) == 1]
    cost, best = min(chains, default=(1.0, []))
    return best if cost < 1.0 else []


def overhead_of(measured: Sequence[tuple[Foreseen, float]], overhead: float = OVERHEAD) -> float:
    """What a decision costs by the cascades that were measured: the median of what they cost beside their parts.

    Args:
        measured: cascades, with their cost over the baseline's as it came out.
        overhead: with which they were foreseen.
    """
    return max(0.0, float(np.median([overhead + (cost - f.cost) / f.decisions for f, cost in measured])))


def _all(
    parts: Sequence[Part], baseline: Part, score: Callable[[Array], Array] | None, overhead: float
) -> Iterator[Foreseen]:
    for chain in (*combinations(parts, 2), *combinations(parts, 3)):
        for blend in BLENDS if score is not None else BLENDS[:1]:
            yield from _shares(chain, blend, baseline, score, overhead)


def _steps(chain: tuple[Part, ...], blend: float, score: Callable[[Array], Array] | None) -> list[tuple[Array, Array]]:
    """How sure each part of a cascade is, and its scores, on all of valid, were everything handed on to it: (n,) each."""
    steps, so_far = [], chain[0].outputs
    for number, part in enumerate(chain):
        if blend and score is not None and number:
            so_far = (1 - blend) * part.outputs + blend * so_far
            steps.append((confidence(so_far), score(so_far)))
        else:
            steps.append((confidence(part.outputs), part.scores))
    return steps


def _shares(
    chain: tuple[Part, ...], blend: float, baseline: Part, score: Callable[[Array], Array] | None, overhead: float
) -> Iterator[Foreseen]:
    """A cascade of these parts for all shares that may be handed on."""
    n = len(baseline.scores)
    steps = [(sureness, _moments(scores - baseline.scores)) for sureness, scores in _steps(chain, blend, score)]
    (sureness, first), (sureness_2, second), *third = steps
    order = np.argsort(sureness, kind="stable")

    def foreseen(hand_on: tuple[float, ...], sums: Array, cost: float) -> Foreseen:
        mean, square = sums / n
        deviation = np.sqrt(max(square - mean**2, 0.0))
        return Foreseen(parts=chain, hand_on=hand_on, blend=blend, quality=float(mean), deviation=float(deviation), cost=float(cost))

    for share in SHARES:
        count = round(share * n)
        if not 0 < count < n:
            continue
        handed = order[:count]
        kept = first[order[count:]].sum(0)
        cost = chain[0].cost + overhead + count / n * chain[1].cost
        if not third:
            yield foreseen((float(share),), kept + second[handed].sum(0), cost)
            continue
        again = handed[np.argsort(sureness_2[handed], kind="stable")]
        # sums over the k of `again` that go on, and over the others: by cumulative sums
        on, stays = (np.concatenate([np.zeros((1, 2)), np.cumsum(values[again], axis=0)]) for values in (third[0][1], second))
        for further in SHARES:
            k = round(further * n)
            if not 0 < k < count:
                continue
            dear = cost + overhead * count / n + k / n * chain[2].cost
            yield foreseen((float(share), float(further)), kept + on[k] + stays[-1] - stays[k], dear)


def _moments(differences: Array) -> Array:
    """(n, 2): each and its square, so that sums give mean and deviation."""
    return np.stack([differences, differences**2], axis=1)
