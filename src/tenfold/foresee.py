"""What cascades of measured parts would come to, by their recorded answers: nothing is built or timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise

import numpy as np

from tenfold.data.split import Array
from tenfold.insights import confidence
from tenfold.lever import Part, Situation
from tenfold.verdict import safety_of

Score = Callable[[Array, Array], Array]
"""Rows (k,) of valid and outputs (k, classes) on them to scores (k,)."""

SHARES = tuple(np.round(np.concatenate([np.arange(0.01, 0.1, 0.01), np.arange(0.1, 0.3, 0.02), np.arange(0.3, 0.82, 0.05)]), 3))
"""Of the examples, that a part may hand on."""
BLENDS = (0.0, 0.25, 0.5)
"""Shares of what was answered so far, that a later part's answer may have."""
SAFETY = (2.05, 1.28, 0.67, 0.0, -0.5)
"""Standard errors by which what is foreseen lies above what certification will ask for (certified in about 98, 90, 75, 50 and 31 of 100
cases): each has its cheapest cascade, so that a sequence from safe to cheap can be had."""
SPLITS = 3
"""Of valid into halves, by which it is found how much quality is overstated."""
MOST_PARTS = 10
OVERHEAD = 0.005
"""Cost of a decision, over the baseline's prediction, until it is known better."""
AIM, HANDS_ON_LESS = -0.4, 0.5
"""Quality difference, in margins, for which a part hands on; and what it hands on once it is trained in full, over what it does after a
short training."""
BEHIND = 0.5
"""Cost of what answers where no student is sure, the baseline compressed, over the baseline's, until it is known better."""
MOST_OUTPUTS, LEAST_ROWS = 1 << 23, 4096
"""Numbers that the outputs of a part have where cascades are compared, and the rows that there are for them at least."""
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
    parts: Sequence[Part], margin: float, *, tested: int, score: Score | None = None, overhead: float = OVERHEAD
) -> list[Foreseen]:
    """For each degree of safety the cheapest cascade that has it, where it beats every single part; safest first.

    Args:
        parts: the baseline first.
        tested: examples that will certify.
        score: None: answers are not blended.
        overhead: cost of a decision, over the baseline's prediction.
    """
    useful = _useful(parts)
    rows = _sampled(parts[0].outputs)
    useful, baseline = [_on(p, rows) for p in useful], _on(parts[0], rows)
    scored = None if score is None else partial(score, rows)
    n = len(baseline.scores)
    samples = [np.arange(n), *_halves(n)]
    places: list[tuple[tuple[Part, ...], float, tuple[float, ...]]] = []
    tables: list[list[Array]] = [[] for _ in samples]
    for chain, blend, steps in _chains(useful, scored):
        for table, some in zip(tables, samples, strict=True):
            hand_on, options = _options(chain, [(sureness[some], (scores - baseline.scores)[some]) for sureness, scores in steps], overhead)
            table.append(options)
            places += [(chain, blend, shares) for shares in hand_on] if table is tables[0] else []
    whole, *halves = (np.concatenate([np.empty((0, 3)), *table]) for table in tables)
    safety = safety_of(whole[:, 0] - _overstated(halves, margin, n // 2, tested), whole[:, 1], margin, n, tested)
    differences = [p.scores - baseline.scores for p in useful]
    single = [float(safety_of(d.mean(), d.std(), margin, n, tested)) for d in differences]
    chosen: list[int] = []
    for wanted in SAFETY:
        alone = min((p.cost for p, safe in zip(useful, single, strict=True) if safe >= wanted), default=1.0)
        cheapest = _cheapest(whole, safety, wanted)
        if cheapest is not None and whole[cheapest, 2] * LEAST_GAIN < min(alone, 1.0) and cheapest not in chosen:
            chosen.append(cheapest)
    return [
        Foreseen(parts=chain, blend=blend, hand_on=hand_on, quality=float(quality), deviation=float(deviation), cost=float(cost))
        for (chain, blend, hand_on), (quality, deviation, cost) in ((places[i], whole[i]) for i in chosen)
    ]


def _sampled(outputs: Array) -> Array:
    """Rows of valid on which cascades are compared: all of them, or so many, evenly spread, that hundreds of chains can be."""
    n = len(outputs)
    return np.unique(np.linspace(0, n - 1, min(n, max(LEAST_ROWS, MOST_OUTPUTS * n // outputs.size))).round().astype(int))


def _on(part: Part, rows: Array) -> Part:
    return part if len(rows) == len(part.scores) else replace(part, outputs=part.outputs[rows], scores=part.scores[rows])


def _cheapest(options: Array, safety: Array, wanted: float) -> int | None:
    """The place of the cheapest of the options, (m, 3), that is as safe as is wanted."""
    able = np.flatnonzero(safety >= wanted)
    return int(able[np.argmin(options[able, 2])]) if able.size else None


def _halves(n: int) -> list[Array]:
    """Rows of valid in two halves of one size, `SPLITS` times over: a half, the other one, a half of the next split, …"""
    rng = np.random.default_rng(n)
    return [half for order in (rng.permutation(n) for _ in range(SPLITS)) for half in (order[: n // 2], order[n // 2 : n // 2 * 2])]


def _overstated(halves: Sequence[Array], margin: float, n: int, tested: int) -> float:
    """By how much the quality of a cascade that is chosen on valid is better there than elsewhere.

    What is the cheapest of very many that look safe is partly lucky. Chosen on a half of valid it shows how lucky on the other half; on all
    of valid luck is less by the root of two.

    Args:
        halves: options, (m, 3), by each of `_halves`, each of which has `n` examples.
    """
    gaps = []
    for i, here in enumerate(halves):
        there, safety = halves[i ^ 1], safety_of(here[:, 0], here[:, 1], margin, n, tested)
        gaps += [here[at, 0] - there[at, 0] for wanted in SAFETY if (at := _cheapest(here, safety, wanted)) is not None]
    return max(0.0, float(np.mean(gaps))) / np.sqrt(2) if gaps else 0.0


def _useful(parts: Sequence[Part]) -> list[Part]:
    """Parts that no other beats in both quality and cost, from cheap to good, at most `MOST_PARTS`; the baseline is kept."""
    out: list[Part] = []
    for part in sorted(parts, key=lambda p: (p.cost, -p.scores.mean())):
        if not out or part.scores.mean() > out[-1].scores.mean() or part is parts[0]:
            out.append(part)
    while len(out) > MOST_PARTS:  # of the two that are nearest in cost, the worse goes
        at = int(np.argmin([dearer.cost / cheaper.cost for cheaper, dearer in pairwise(out)]))
        out.pop(at + 1 if out[at] is parts[0] else at)
    return out


def least_share(part: Part, baseline: Part, aim: float) -> float:
    """Of the examples, that a part has to hand on to the baseline, those that it is least sure of first, for a quality difference of `aim`."""
    order = np.argsort(part.sureness, kind="stable")
    lost = np.concatenate([[0.0], np.cumsum((baseline.scores - part.scores)[order])])  # won back by handing on the first k
    reached = (lost - lost[-1]) / len(order) >= aim - 1e-12
    return float(np.argmax(reached) / len(order))


def may_compose(situation: Situation, baseline: Part) -> bool:
    """Whether what is measured now may become part of a cascade."""
    return situation.composes and situation.objective == "serve" and situation.workload.classifies and baseline.outputs.ndim == 2


def promising(students: Sequence[Part], baseline: Part, margin: float, *, in_full: int = 0, keeps: Sequence[float] | None = None) -> list[int]:
    """Which of the students with short trainings promise most before the baseline: one, or two, the cheaper first; their places.

    What a cascade of one or two students would come to were they trained in full:
    `c1 + d + s1 (c2 + d) + s2 b`, with costs c, shares s that each student alone would hand on (what is hard for one is hard for the
    other), d for a decision and b for what stands behind.

    Args:
        in_full: so many of the students, the first ones, are trained in full: one of the others is sought, alone or beside one of these.
        keeps: of what each hands on after its short training, over `HANDS_ON_LESS`; None: all the same.
    """
    less = [1.0 if i < in_full else min(1.0, HANDS_ON_LESS * (keeps[i] if keeps is not None else 1.0)) for i in range(len(students))]
    shares = [least_share(s, baseline, AIM * margin) * part for s, part in zip(students, less, strict=True)]
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


def _chains(
    parts: Sequence[Part], score: Callable[[Array], Array] | None
) -> Iterator[tuple[tuple[Part, ...], float, list[tuple[Array, Array]]]]:
    """Two and three parts, a blend of their answers, and how sure each part is and its scores were everything handed on to it: (n,) each."""
    for blend in BLENDS if score is not None else BLENDS[:1]:
        for i, j in combinations(range(len(parts)), 2):
            pair = (parts[i], parts[j])
            answered, second = _answer(parts[j], parts[i].outputs, blend, score)
            steps = [(parts[i].sureness, parts[i].scores), second]
            yield pair, blend, steps
            for third in parts[j + 1 :]:
                yield (*pair, third), blend, [*steps, _answer(third, answered, blend, score)[1]]


def _answer(part: Part, before: Array, blend: float, score: Callable[[Array], Array] | None) -> tuple[Array, tuple[Array, Array]]:
    """What a cascade answers after a part, (n, classes), were everything handed on to it; and how sure it is, and its scores: (n,) each.

    Args:
        before: what it answered before that part, of which `blend` stays in the answer.
    """
    if not blend or score is None:
        return part.outputs, (part.sureness, part.scores)
    mixed = (1 - blend) * part.outputs + blend * before
    return mixed, (confidence(mixed), score(mixed))


def _options(chain: tuple[Part, ...], steps: Sequence[tuple[Array, Array]], overhead: float) -> tuple[list[tuple[float, ...]], Array]:
    """A cascade of these parts for all shares that may be handed on: the shares, and (m, 3) mean difference, its deviation, and cost.

    Args:
        steps: how sure each part is, and its differences of scores to the baseline's: (n,) each.
    """
    (sureness, difference), (sureness_2, difference_2), *third = steps
    n, first, second = len(sureness), _moments(difference), _moments(difference_2)
    order = np.argsort(sureness, kind="stable")
    handed_sums, kept_sums = _running(second[order]), _running(first[order])
    hand_on: list[tuple[float, ...]] = []
    sums, costs = [np.empty((0, 2))], [np.empty(0)]
    for share in SHARES:
        count = round(share * n)
        if not 0 < count < n:
            continue
        kept, cost = kept_sums[-1] - kept_sums[count], chain[0].cost + overhead + count / n * chain[1].cost
        if not third:
            hand_on.append((float(share),))
            sums.append((kept + handed_sums[count])[None])
            costs.append(np.array([cost]))
            continue
        handed = order[:count]
        again = handed[np.argsort(sureness_2[handed], kind="stable")]
        further = [s for s in SHARES if 0 < round(s * n) < count]
        ks = np.array([round(s * n) for s in further], dtype=int)
        on, stays = _running(_moments(third[0][1][again])), _running(second[again])  # the k of `again` that go on, and the others
        hand_on += [(float(share), float(s)) for s in further]
        sums.append(kept + on[ks] + stays[-1] - stays[ks])
        costs.append(cost + overhead * count / n + ks / n * chain[2].cost)
    mean, square = (np.concatenate(sums) / n).T
    return hand_on, np.stack([mean, np.sqrt(np.maximum(square - mean**2, 0.0)), np.concatenate(costs)], axis=1)


def _running(values: Array) -> Array:
    """(n + 1, 2): sums of the first 0, 1, …, n."""
    return np.concatenate([np.zeros((1, 2)), np.cumsum(values, axis=0)])


def _moments(differences: Array) -> Array:
    """(n, 2): each and its square, so that sums give mean and deviation."""
    return np.stack([differences, differences**2], axis=1)
