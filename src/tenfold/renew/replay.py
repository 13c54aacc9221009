"""The recipe of a run once more on other data: from the weights that it came to, for a part of its training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tenfold.engine import SessionConfig
from tenfold.lever import Searched, apply_all, discover
from tenfold.plan import Plan
from tenfold.recipe import Pull
from tenfold.train.config import TrainConfig

LENGTH = 0.25
"""Of each training, in epochs of what is learned from now."""
RATE = 0.2
"""Times the peak learning rate of each: the weights are not new."""


def shortened(training: TrainConfig) -> TrainConfig:
    """For weights that are not new."""
    epochs = min(training.epochs, max(1.0, training.epochs * LENGTH))
    limit = None if training.max_seconds is None else training.max_seconds * LENGTH
    return dataclasses.replace(training, epochs=epochs, learning_rate=training.learning_rate * RATE, max_seconds=limit, resize=1.0)


def replayed(training: TrainConfig, pulls: Sequence[Pull], session: SessionConfig, seed: int) -> Plan:
    """The plan of a recipe for weights that are not new; its trainings correspond to the recipe's own, one for one.

    Args:
        training: the workload's own.
        session: how the baseline was served.
    """
    whole, rest = Plan(training=training, seed=seed, session=session), []
    for pull in pulls:
        after = apply_all(whole, [pull])
        if after.training == whole.training:
            rest.append(_shorter(pull))
        else:  # which way to train: that is shortened as a whole
            whole = dataclasses.replace(whole, training=after.training)
    return apply_all(dataclasses.replace(whole, training=shortened(whole.training)), rest)


def _shorter(pull: Pull) -> Pull:
    lever = discover()[pull.lever]
    config = lever.longer(pull.config, LENGTH) if isinstance(lever, Searched) else pull.config
    if "parts" in config:
        config = config | {"parts": [_shorter_part(part) for part in config["parts"]]}
    return Pull(pull.lever, config)


def _shorter_part(part: dict[str, Any]) -> dict[str, Any]:
    return part | {"pulls": [dataclasses.asdict(_shorter(Pull(**p))) for p in part["pulls"]]}
