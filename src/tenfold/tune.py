"""Which way to train comes to the baseline's quality for least: rounds of trainings, each round longer and of fewer ways. Pure data.

Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943) over lengths; but the length at which the best way is good enough is
itself what is sought.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tenfold.lever import Config, Situation, Tried

SHORTEST, LONGEST = 1 / 64, 1 / 4
"""Of a first round, in trainings of the baseline."""
LONGER, KEPT = 2.0, 1 / 3
"""Times the length of the round before, for the best of its ways."""
BETWEEN, MOST_GOOD = math.sqrt(LONGER), 3
"""Between a length that is good enough and one that is not, lies one shorter by this; and of how many lengths of a way it is found that they are."""
WORTH_OF_HALF_THE_COST = 2.0
"""In margins of quality, while ways are compared that are too short to be good."""
ENOUGH = 0.5
"""Of the margin, that a way may be worse on valid to count as good enough: it has to be shown on test."""
ROUNDS_TAKE = 3.0
"""Times what the first round takes, that all rounds take together, about."""


def whole_seconds(situation: Situation) -> float:
    """Of a training as long as the plan has it, about."""
    return situation.training_seconds * situation.plan.training.epochs / situation.workload.training.epochs


def hindrance(situation: Situation) -> str | None:
    """Why training could not be made cheaper here, or need not."""
    if situation.objective != "train":
        return "it makes training cheaper, not serving: pull it with --objective train"
    if situation.examples.train is None or situation.workload.pretrained is not None:
        return "the model is given trained: there is no training to make cheaper"
    if situation.plan.training.max_seconds is not None:
        return "how long it trains is set by time, so that nothing is cheaper than anything else: give epochs instead of max_seconds"
    return None


def first_length(ways: int, share: float, whole: float) -> float:
    """Of the trainings of a first round, in whole trainings, so that all rounds take about the time given.

    Args:
        ways: that are compared.
        share: seconds.
        whole: seconds of a training that they are compared with.
    """
    return min(max(share / (ROUNDS_TAKE * ways * max(whole, 1e-9)), SHORTEST), LONGEST)


def length_within(situation: Situation, ways: int, share: float) -> float | None:
    """Of the trainings of a first round, so that all rounds of a lever take about a share of the budget; None once that is spent."""
    spent = sum(t.seconds for t in situation.tried)
    part = share * (situation.budget + spent)
    return None if spent >= part else first_length(ways, part, whole_seconds(situation))


def rounds(situation: Situation, ways: Sequence[Config], share: float) -> Sequence[Config]:
    """The next round of a lever that tries these ways in a share of the budget; none once that is spent, or a way is good enough."""
    length = length_within(situation, len(ways), share)
    if length is None:
        return ()
    return next_round(ways, situation.tried, length=length, whole=situation.plan.training.epochs, margin=situation.margin)


def next_round(ways: Sequence[Config], tried: Sequence[Tried], *, length: float, whole: float, margin: float) -> list[Config]:
    """Configs to try next; none where a way is good enough, or none is left to make longer.

    Args:
        ways: configs without their `epochs`.
        tried: what was measured so far, of these ways and of others.
        length: of the first round, in trainings of the baseline.
        whole: epochs of the baseline's training.
    """
    mine = [t for t in tried if way_of(t.config) in ways]
    if not mine:
        return [{**way, "epochs": _some(length * whole, whole)} for way in ways]
    measured = [t for t in mine if t.verdict.quality is not None and t.gain is not None]
    good = [t for t in measured if is_enough(_quality(t), margin)]
    if good:
        return _shorter(min(good, key=_cost_of), mine, good, whole)
    longest = max(t.config["epochs"] for t in mine)
    last = sorted((t for t in measured if t.config["epochs"] == longest), key=lambda t: -_promise(t, margin))
    if not last or longest >= whole:
        return []
    kept = last[: math.ceil(KEPT * len(last))]
    return [{**t.config, "epochs": _some(LONGER * longest, whole)} for t in kept]


def is_enough(difference: float, margin: float) -> bool:
    """Whether a quality on valid, less the baseline's, counts as good enough."""
    return difference >= -ENOUGH * margin


def _shorter(best: Tried, tried: Sequence[Tried], good: Sequence[Tried], whole: float) -> list[Config]:
    """The best way once more, shorter: between what was good enough and what was not, or by half where all of its lengths were."""
    alike = [t for t in tried if way_of(t.config) == way_of(best.config)]
    now = float(best.config["epochs"])
    failed = max((float(t.config["epochs"]) for t in alike if t.config["epochs"] < now), default=0.0)
    shorter = _some(now / (BETWEEN if failed else LONGER), whole)
    worth = failed < shorter < now and sum(t in alike for t in good) < MOST_GOOD
    return [{**best.config, "epochs": shorter}] if worth else []


def way_of(config: Config) -> Config:
    """A config without its length."""
    return {k: v for k, v in config.items() if k != "epochs"}


def _some(epochs: float, whole: float) -> float:
    """Epochs, no more than the whole; a few come in whole numbers, what is short may be a part of one."""
    return float(whole if epochs >= whole else round(epochs) if epochs >= 4 else round(epochs, 3))


def _cost_of(tried: Tried) -> tuple[float, float]:
    """The length of a training, and of those of one length what it costs."""
    assert tried.gain is not None
    return float(tried.config["epochs"]), -tried.gain.value


def _quality(tried: Tried) -> float:
    assert tried.verdict.quality is not None
    return tried.verdict.quality.value


def _promise(tried: Tried, margin: float) -> float:
    """Quality after a training that is too short, and what it is worth that it was cheap."""
    assert tried.gain is not None
    return _quality(tried) + WORTH_OF_HALF_THE_COST * margin * math.log2(max(tried.gain.value, 1e-6))
