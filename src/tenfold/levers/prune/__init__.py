"""The baseline with its least important channels, neurons and attention heads taken out, recovered by distillation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from tenfold.errors import WorkloadError
from tenfold.export import Served, as_seen_by_model
from tenfold.lever import Config, Refusal, Situation, Stage, dearest
from tenfold.levers.prune.structure import pruned
from tenfold.plan import Materials, ModelPass, Plan
from tenfold.train.config import TrainConfig
from tenfold.train.distill import learn_from_teacher
from tenfold.train.teacher import epochs_within

KEEPS = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Shares of the channels that are tried, by their measured cost."""
TARGETS = (1.5, 2.5, 5.0)
"""Cost ratios against the baseline that are aimed at: each takes the largest share that reaches it. The last is for the easy inputs of a cascade."""
BUDGET_SHARE = 0.25
"""Of what is left, for all recoveries."""
LEAST_LENGTH, MOST_LENGTH = 1 / 12, 2.0
"""Of a recovery, in trainings of the baseline."""
RATE_SHARE = 0.5
"""Of the training's peak learning rate: the weights are not new."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How much stays, and how it recovers."""

    keep: float
    """Share of the channels of each group."""
    epochs: float
    teachers: int = 1
    """Trainings of the baseline whose mean answer is learned; 0: the workload's own teacher."""


class Prune:
    name = "prune"
    stages: tuple[Stage, ...] = (Stage.MODEL,)
    rank = 0
    touches = frozenset({"model_passes"})
    summary = "whole channels, neurons and attention heads taken out, recovered by distillation"

    def propose(self, situation: Situation) -> Sequence[Config] | Refusal:
        if situation.objective == "train":
            return Refusal("a model is pruned after its training: it makes serving cheaper, not training")
        if situation.tried:
            return ()
        if not situation.examples.can_teach:
            return Refusal("there is nothing that a pruned model could recover on: give train= or unlabelled=")
        if (reason := _hindrance(situation)) is not None:
            return Refusal(reason)
        shortest = _shortest(situation)
        if situation.sizable() < len(KEEPS) or _affordable(situation, 1, 1.0) < shortest:
            return situation.too_short("pruning, and a recovery after it")
        ratios = situation.skeleton_ratios([_json(situation, keep, shortest) for keep in KEEPS])
        measured = [(keep, ratio) for keep, ratio in zip(KEEPS, ratios, strict=True) if isinstance(ratio, float)]
        chosen = dict(pair for target in TARGETS for pair in [(k, ratio) for k, ratio in measured if ratio >= target][:1])
        if not chosen:
            return dearest(ratios, TARGETS[0])
        for count in range(len(chosen), 0, -1):  # where time is short the dearest come first: they may stand alone
            epochs = {keep: _affordable(situation, count, ratio) for keep, ratio in list(chosen.items())[:count]}
            if min(epochs.values()) >= shortest:
                return [_json(situation, keep, length) for keep, length in epochs.items()]
        return situation.too_short("pruning, and a recovery after it")

    def space(self, situation: Situation) -> Mapping[str, Sequence[Any]]:
        if not situation.examples.can_teach or _hindrance(situation) is not None:
            return {}
        return {"keep": [round(0.05 * i, 2) for i in range(3, 19)]}

    def at(self, situation: Situation, point: Mapping[str, Any]) -> Config:
        return _json(situation, point["keep"], _shortest(situation))

    def longer(self, config: Config, times: float) -> Config:
        return config | {"epochs": max(1.0, float(round(config["epochs"] * times)))}

    def training(self, config: Config, training: TrainConfig) -> TrainConfig:
        return dataclasses.replace(training, epochs=config["epochs"], learning_rate=training.learning_rate * RATE_SHARE, max_seconds=None)

    def apply(self, plan: Plan, config: Config) -> Plan:
        chosen = PruneConfig(**config)
        done = ModelPass(
            key={"pass": "prune", **config}, shape=partial(_shape, keep=chosen.keep), teach=partial(_recover, config=chosen)
        )
        return dataclasses.replace(plan, model_passes=(*plan.model_passes, done))


def _shortest(situation: Situation) -> float:
    return max(1.0, float(round(situation.plan.training.epochs * LEAST_LENGTH)))


def _hindrance(situation: Situation) -> str | None:
    """Why channels cannot be taken out of the model, tried on the untrained one."""
    served = situation.fresh()
    example = as_seen_by_model(situation.examples.valid.take(slice(0, 2)).inputs, served.preprocess)
    try:
        pruned(served.model, example, KEEPS[len(KEEPS) // 2])
    except WorkloadError as error:
        return str(error)
    return None


def _affordable(situation: Situation, count: int, ratio: float) -> float:
    """Epochs of one of so many recoveries, of a model that is served so many times cheaper: its training gets cheaper by less than that."""
    whole = situation.plan.training.epochs
    if not situation.learning_seconds:
        return _shortest(situation)
    an_epoch = situation.learning_seconds / whole / ratio**0.5
    return float(min(round(epochs_within(situation.budget * BUDGET_SHARE / count, an_epoch, situation.epoch_answered)), whole * MOST_LENGTH))


def _shape(model: nn.Module, materials: Materials, keep: float) -> nn.Module:
    assert isinstance(model, Served)
    example = as_seen_by_model(materials.examples.valid.take(slice(0, 2)).inputs, model.preprocess)
    return Served(pruned(model.model, example, keep), model.preprocess)


def _recover(model: nn.Module, training: TrainConfig, materials: Materials, config: PruneConfig) -> dict[str, Any]:
    how = lever.training(dataclasses.asdict(config), training)
    return learn_from_teacher(model, how, materials, teachers=config.teachers, mixup=False)


def _json(situation: Situation, keep: float, epochs: float) -> Config:
    return dataclasses.asdict(PruneConfig(keep=keep, epochs=epochs, teachers=situation.teachers))


lever = Prune()
