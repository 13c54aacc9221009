"""Smaller images at the beginning of a training, with the length that goes with it, at the same quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from tenfold.lever import Config, Refusal, Situation, Stage
from tenfold.plan import Plan
from tenfold.train.feed import batch_of
from tenfold.train.resize import why_not_smaller
from tenfold.tune import hindrance, rounds

SCALES = (0.5, 0.75)
"""Of the sides of an image, that are begun with."""
LEAST_SIDE = 16
"""Pixels of an image that can be made smaller."""
SHARE = 0.2
"""Of the budget that is left."""


class Resize:
    name = "resize"
    stages: tuple[Stage, ...] = (Stage.TRAIN,)
    rank = 2
    touches = frozenset({"training"})
    summary = "smaller images at the beginning of a training"

    def propose(self, situation: Situation) -> Sequence[Config] | Refusal:
        if (reason := hindrance(situation)) is not None or (not situation.tried and (reason := _why_not(situation)) is not None):
            return Refusal(reason)
        training = situation.plan.training
        ways: list[Config] = [{"resize": scale} for scale in SCALES if scale < training.resize]
        if not ways:
            return Refusal("images begin as small already")
        return rounds(situation, ways, SHARE)

    def apply(self, plan: Plan, config: Config) -> Plan:
        return dataclasses.replace(plan, training=dataclasses.replace(plan.training, **config))


def _why_not(situation: Situation) -> str | None:
    """Why the model cannot learn from smaller images; None where it can."""
    examples = situation.examples.valid
    shape, dtype = examples.inputs[0].shape[1:], examples.inputs[0].dtype
    if len(shape) != 3 or min(shape[1:]) < LEAST_SIDE or (dtype.kind != "f" and dtype != np.uint8):
        return f"the first input has no images (channels, height, width) of {LEAST_SIDE} pixels a side or more, of bytes or floats"
    inputs, _ = batch_of(examples, slice(0, 2), torch.device("cpu"))
    model = situation.fresh().cpu().eval()
    reasons = (why_not_smaller(model, inputs, scale) for scale in SCALES)
    return next((f"the model does not take smaller images ({reason})" for reason in reasons if reason is not None), None)


lever = Resize()
