"""Another batch size, fixed or growing, with the rate and the length that go with it, at the same quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tenfold.batch.predict import second_beta
from tenfold.lever import Config, Refusal, Situation, Stage
from tenfold.plan import Plan
from tenfold.train.config import TrainConfig, parts_of
from tenfold.tune import hindrance, length_within, next_round

TIMES = (1 / 16, 1 / 4, 1.0, 4.0, 16.0, 64.0)
"""The workload's own batch, that are tried."""
LARGE = (8_192, 32_768)
"""Tried as well, where there is data for them."""
LEAST_STEPS = 4
"""Of a training of the first round, in which a batch may be tried: with fewer the rate has hardly risen when it ends."""
GROW = (4, 16)
"""The batch at the end over the workload's own, at the start."""
MICRO = 1024
"""Examples of a backward pass, above which, or where memory holds fewer, the gradients of parts are added up."""
MULTIPLES = (0.5, 1.0)
"""Of the rate that the rule gives for a larger batch: the rule holds below the critical batch size."""
MOST_RATE = 8.0
"""Times the workload's own rate."""
SHARE = 0.4
"""Of the budget that is left."""


class Batch:
    name = "batch"
    stages: tuple[Stage, ...] = (Stage.TRAIN,)
    rank = 0
    touches = frozenset({"training"})
    summary = "another batch size, fixed or growing, with the rate that goes with it"

    def propose(self, situation: Situation) -> Sequence[Config] | Refusal:
        if (reason := hindrance(situation)) is not None:
            return Refusal(reason)
        train, training = situation.examples.train, situation.plan.training
        assert train is not None
        micro = -(-training.batch_size // training.accumulate) if training.accumulate > 1 else situation.most_at_once(MICRO)  # it is said for its memory
        ways = _ways(training, len(train), micro)
        length = length_within(situation, len(ways), SHARE)
        if length is None:
            return ()
        if not situation.tried:
            seen = length * training.epochs * len(train)
            ways = [w for w in ways if (size := w["batch_size"] * w["grow"]) <= training.batch_size or size * LEAST_STEPS <= seen]
        return next_round(ways, situation.tried, length=length, whole=training.epochs, margin=situation.margin)

    def apply(self, plan: Plan, config: Config) -> Plan:
        return dataclasses.replace(plan, training=dataclasses.replace(plan.training, **config))


def _ways(training: TrainConfig, examples: int, micro: int = MICRO) -> list[Config]:
    """
    Args:
        examples: of the training; all of them are a batch as well.
        micro: the most of a backward pass.
    """
    own = training.batch_size
    sizes = {max(1, round(times * own)) for times in TIMES} | {*LARGE, max(own, examples)}
    ways = []
    for size in sorted(s for s in sizes if s <= max(own, examples)):
        factor = size / own if training.optimizer == "sgd" else (size / own) ** 0.5
        for multiple in MULTIPLES if size > own else (1.0,):
            way = _way(training, size, min(MOST_RATE, factor * multiple), 1, micro)
            ways += [way] if way not in ways else []
    return ways + [_way(training, own, 1.0, grow, micro) for grow in GROW if own * grow <= examples]


def _way(training: TrainConfig, size: int, factor: float, grow: int, micro: int) -> Config:
    return {
        "batch_size": size, "accumulate": parts_of(size, max(1, micro // grow)), "grow": grow, "learning_rate": training.learning_rate * factor,
        "second_beta": second_beta(training.second_beta, training.batch_size, size) if training.optimizer != "sgd" else training.second_beta,
    }  # fmt: skip


lever = Batch()
