"""Less dropout, or none, with the length that goes with it, at the same quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tenfold.lever import Config, Refusal, Situation, Stage
from tenfold.plan import Plan
from tenfold.train.dropout import drops
from tenfold.tune import hindrance, rounds

SHARES = (0.0, 0.5)
"""Of what the model says it drops."""
SHARE = 0.2
"""Of the budget that is left."""


class Dropout:
    name = "dropout"
    stages: tuple[Stage, ...] = (Stage.TRAIN,)
    rank = 0
    touches = frozenset({"training"})
    summary = "less dropout, or none, while training"

    def propose(self, situation: Situation) -> Sequence[Config] | Refusal:
        if (reason := hindrance(situation)) is not None:
            return Refusal(reason)
        if not drops(situation.fresh()):
            return Refusal("the model has no dropout that could be left out")
        training = situation.plan.training
        ways: list[Config] = [{"dropout": share * training.dropout} for share in SHARES]
        return rounds(situation, ways, SHARE)

    def apply(self, plan: Plan, config: Config) -> Plan:
        return dataclasses.replace(plan, training=dataclasses.replace(plan.training, **config))


lever = Dropout()
