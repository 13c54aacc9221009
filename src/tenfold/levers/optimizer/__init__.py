"""Another optimizer, rate, schedule and length of training, at the same quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from tenfold.lever import Config, Refusal, Situation, Stage
from tenfold.plan import Plan
from tenfold.train.config import TrainConfig
from tenfold.tune import first_length, hindrance, next_round, way_of, whole_seconds

FAMILIES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1, "weight_decay": 5e-4},
    "adamw": {"optimizer": "adamw", "momentum": 0.9, "second_beta": 0.99, "learning_rate": 2e-3, "weight_decay": 0.05},
    "lion": {"optimizer": "lion", "momentum": 0.9, "second_beta": 0.99, "learning_rate": 3e-4, "weight_decay": 0.3},
    "muon": {"optimizer": "muon", "momentum": 0.95, "second_beta": 0.99, "learning_rate": 5e-3, "weight_decay": 0.05},
    "schedule-free": {
        "optimizer": "adamw", "momentum": 0.9, "second_beta": 0.99, "learning_rate": 4e-3, "weight_decay": 0.05, "schedule": "free", "average": 0.0,
    },
}  # fmt: skip
"""With a usual rate for batches of 128, where the workload does not say its own, and a decay that goes with it: SGD's is a part of the gradient,
the others' is taken from the weights (Loshchilov & Hutter 2019, arXiv:1711.05101)."""
NEEDS = {"lion": "lion_pytorch", "schedule-free": "schedulefree"}
RATES = (1 / 3, 1.0, 3.0)
SCHEDULES: tuple[dict[str, Any], ...] = (
    {"schedule": "linear", "average": 0.0}, {"schedule": "one_cycle", "average": 0.0}, {"schedule": "cosine", "average": 0.0}, {"schedule": "stable", "average": 0.1},
)  # fmt: skip
SHARE = 0.8
"""Of the budget that is left, for all families together: each has the same part of it."""
OVER = 1.25
"""Times its part, that a family may take so that a round comes to its end."""


class Optimizer:
    name = "optimizer"
    stages: tuple[Stage, ...] = (Stage.TRAIN,)
    rank = 0
    touches = frozenset({"training"})
    summary = "another optimizer, rate, schedule and length of training"

    def propose(self, situation: Situation) -> Sequence[Config] | Refusal:
        if (reason := hindrance(situation)) is not None:
            return Refusal(reason)
        families = {name: _ways(name, situation.plan.training)[: None if _is_there(name) else 1] for name in _in_order(situation.plan.training)}
        part = SHARE * (situation.budget + sum(t.seconds for t in situation.tried)) / sum(map(_is_there, families))
        for ways in families.values():
            mine = [t for t in situation.tried if way_of(t.config) in ways]
            spent, whole = sum(t.seconds for t in mine), whole_seconds(situation)
            if spent >= part:
                continue
            length = first_length(len(ways), part, whole)
            more = next_round(ways, mine, length=length, whole=situation.plan.training.epochs, margin=situation.margin)
            expected = sum(c["epochs"] for c in more) / situation.plan.training.epochs * whole
            if more and (not mine or spent + expected <= OVER * part):
                return more
        return ()

    def kind(self, config: Config) -> str:
        return "schedule-free" if config["schedule"] == "free" else str(config["optimizer"])

    def apply(self, plan: Plan, config: Config) -> Plan:
        return dataclasses.replace(plan, training=dataclasses.replace(plan.training, **config))


def _in_order(training: TrainConfig) -> list[str]:
    """The families, that of the training itself first: it is what the others are compared with. One whose package is not there is last, to say so."""
    own = "schedule-free" if training.schedule == "free" else training.optimizer
    return [own, *sorted((name for name in FAMILIES if name != own), key=lambda name: not _is_there(name))]


def _is_there(family: str) -> bool:
    return family not in NEEDS or find_spec(NEEDS[family]) is not None


def _ways(family: str, training: TrainConfig) -> list[Config]:
    """Rates around the usual one, each with a plain schedule, or the training's own; and the usual one with the others."""
    usual, first = dict(FAMILIES[family]), SCHEDULES[0]
    if family == _in_order(training)[0]:
        usual |= {k: getattr(training, k) for k in usual if k != "average"}
        first = {"schedule": training.schedule, "average": training.average}
    else:
        usual["weight_decay"] = usual["weight_decay"] if training.weight_decay else 0.0  # who wants none wants none of any
        usual["learning_rate"] = usual["learning_rate"] * (training.batch_size / 128) ** (1.0 if usual["optimizer"] == "sgd" else 0.5)
    if "schedule" in usual:
        return [{**usual, "learning_rate": usual["learning_rate"] * rate} for rate in RATES]
    ways = [{**usual, **first, "learning_rate": usual["learning_rate"] * rate} for rate in RATES]
    return ways + [{**usual, **schedule} for schedule in SCHEDULES if schedule != first]


lever = Optimizer()
