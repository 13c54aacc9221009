"""What servers have counted, read from their metrics, and which of two tracks does worse. Pure, but for parsing text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from scipy import stats

from tenfold.statistics import stability_index

LEAST_REQUESTS = 200
"""Of the canary, before anything good is said of it."""
LEAST_EXAMPLES = 400
"""Answered by each track, before what they answer is compared."""
P = 1e-3
"""Below which more errors than the others' are taken for no accident: it is looked at many times."""
MOST_FAILING = 0.01
"""Share of requests that may fail, where there are no others to compare with."""
SLOWER = {0.5: 1.5, 0.9: 2.0}
"""Quantiles of a request's time, and how many times the others' each may be."""
LEAST_SLOWER = 2e-3
"""Seconds by which it has to be slower as well."""
MOST_DRIFT = 0.25
"""Stability index of the classes that are answered, against those of the others, above what accident brings."""
OTHERS = frozenset({"404", "500", "503"})
"""Statuses of requests that came to no model, which count: a name that is gone, a failure, too much at once. The rest are health checks and strangers."""
GONE = "499"


@dataclass(frozen=True)
class Seen:
    """Counters of a track, all its servers together."""

    codes: Counter[str] = field(default_factory=Counter)
    """Requests by HTTP status."""
    within: Counter[float] = field(default_factory=Counter)
    """Requests that took no longer than so many seconds."""
    classes: Counter[str] = field(default_factory=Counter)
    """Examples by the class that was answered."""

    @property
    def requests(self) -> int:
        return self.codes.total()

    def share_of(self, kind: str) -> int:
        """Requests that failed ("fail"), were turned away ("are turned away") or refused ("are refused")."""
        return sum(n for code, n in self.codes.items() if _kind(code) == kind)

    def quantile(self, share: float) -> float:
        """Seconds, between the bounds of a bucket in proportion; NaN where nothing was counted."""
        bounds, counts = np.array(sorted(self.within)), np.array([self.within[b] for b in sorted(self.within)], dtype=np.float64)
        if not len(counts) or counts[-1] <= 0:
            return math.nan
        finite = np.isfinite(bounds)
        return float(np.interp(share * counts[-1], [0.0, *counts[finite]], [0.0, *bounds[finite]]))

    def __add__(self, other: Seen) -> Seen:
        return Seen(self.codes + other.codes, self.within + other.within, self.classes + other.classes)

    def since(self, before: Seen) -> Seen:
        """What was counted since."""
        return Seen(self.codes - before.codes, self.within - before.within, self.classes - before.classes)


def _kind(code: str) -> str | None:
    if code == "503":
        return "are turned away"
    return "fail" if code.startswith("5") else "are refused" if code.startswith("4") and code != GONE else None


def read(text: str) -> Seen:
    """Of one server's metrics, in Prometheus' format."""
    codes, classes, within = Counter[str](), Counter[str](), Counter[float]()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "tenfold_requests_total" or (sample.name == "tenfold_other_requests_total" and sample.labels["code"] in OTHERS):
                codes[sample.labels["code"]] += int(sample.value)
            elif sample.name == "tenfold_predictions_total":
                classes[sample.labels["class"]] += int(sample.value)
            elif sample.name == "tenfold_request_seconds_bucket":
                within[float(sample.labels["le"])] += int(sample.value)
    return Seen(codes, within, classes)


def together(each: Iterable[Seen]) -> Seen:
    return sum(each, Seen())


class Finding(StrEnum):
    WAIT = "wait"
    GOOD = "good"
    WORSE = "worse"


@dataclass(frozen=True)
class Judged:
    finding: Finding
    reason: str


def judge(stable: Seen, canary: Seen) -> Judged:
    """Whether a canary does worse than those beside it, over the same time.

    Errors by Fisher's exact test of equal shares, one-sided, and where there is nothing to compare with by a binomial test of `MOST_FAILING`; time by its
    quantiles; answers by the stability index of their classes.
    """
    if worse := [*_fails_more(stable, canary), *_is_slower(stable, canary), *_answers_others(stable, canary)]:
        return Judged(Finding.WORSE, "; ".join(worse))
    if canary.requests < LEAST_REQUESTS or stable.requests < LEAST_REQUESTS:
        return Judged(Finding.WAIT, f"{canary.requests:,} requests came to it and {stable.requests:,} to the others, {LEAST_REQUESTS} each are needed")
    answered = [canary.classes.total(), stable.classes.total()]
    if any(answered) and min(answered) < LEAST_EXAMPLES:  # nothing is said of what it answers yet
        return Judged(Finding.WAIT, f"{answered[0]:,} examples were answered by it and {answered[1]:,} by the others, {LEAST_EXAMPLES} each are needed")
    return Judged(Finding.GOOD, f"{canary.requests:,} requests, {canary.share_of('fail'):,} of them failed, {1e3 * canary.quantile(0.5):.3g} ms each (the others {1e3 * stable.quantile(0.5):.3g} ms)")


def _fails_more(stable: Seen, canary: Seen) -> Iterator[str]:
    for kind in ("fail", "are turned away", "are refused"):
        mine, others = canary.share_of(kind), stable.share_of(kind)
        if mine and _more(mine, canary.requests, others, stable.requests):
            yield f"{mine:,} of {canary.requests:,} requests {kind}, of the others {others:,} of {stable.requests:,}"


def _is_slower(stable: Seen, canary: Seen) -> Iterator[str]:
    if min(stable.requests, canary.requests) < LEAST_REQUESTS:
        return
    for share, times in SLOWER.items():
        mine, others = canary.quantile(share), stable.quantile(share)
        if mine > times * others and mine - others > LEAST_SLOWER:
            yield f"{share:.0%} of its requests take up to {1e3 * mine:.3g} ms, with the others {1e3 * others:.3g} ms"


def _answers_others(stable: Seen, canary: Seen) -> Iterator[str]:
    if min(canary.classes.total(), stable.classes.total()) >= LEAST_EXAMPLES and (drift := _drift(stable.classes, canary.classes)) > MOST_DRIFT:
        yield f"it answers other classes than the others (stability index {drift:.2g}, {MOST_DRIFT:g} allowed)"


def _more(mine: int, of_mine: int, others: int, of_others: int) -> bool:
    if of_others < LEAST_REQUESTS:
        return float(stats.binomtest(mine, of_mine, MOST_FAILING, alternative="greater").pvalue) < P
    table = [[mine, of_mine - mine], [others, of_others - others]]
    return float(stats.fisher_exact(table, alternative="greater").pvalue) < P


def _drift(stable: Counter[str], canary: Counter[str]) -> float:
    """Less what is expected of two samples of one distribution: (classes − 1) (1/n + 1/m), as the index is about a chi-square's."""
    names = sorted({*stable, *canary})
    expected, counts = (np.array([each[n] for n in names], dtype=np.float64) for each in (stable, canary))
    by_accident = (len(names) - 1) * (1 / expected.sum() + 1 / counts.sum())
    return stability_index(expected / expected.sum(), counts) - float(by_accident)
