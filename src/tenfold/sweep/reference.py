"""A training whose weights are kept along its way, and what the gradient is like there."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold.batch import NoiseMeter, NoiseScale
from tenfold.build import Builder, explained
from tenfold.errors import WorkloadError
from tenfold.store import Step
from tenfold.train.config import TrainConfig
from tenfold.train.feed import Feed
from tenfold.train.loop import add_gradients, fit, pick_device
from tenfold.weights import load_weights, save_weights

MILESTONES = (0.05, 0.2, 0.5, 0.8)
"""Shares of a training, at which its weights are kept."""
PARTS, MICRO = 8, 32
"""Micro-batches of a step that measures noise, and the examples in each, where there are as many."""
WIDE = 1.25
"""Upper over lower end of a noise scale's interval, below which no more is measured."""


def reference(builder: Builder, training: TrainConfig) -> Step:
    """The training that others are compared with: weights at each of `MILESTONES`, and at its end (`1.safetensors`)."""
    train, workload = builder.examples.split("train"), builder.workload
    key = {
        "step": "reference", "workload": builder.workload_id, "training": training.to_json(), "seed": builder.seed,
        "milestones": MILESTONES, "environment": builder.environment(),
    }  # fmt: skip

    def work(folder: Path) -> dict[str, Any]:
        model = builder.fresh()

        def keep(share: float, _loss: float) -> None:
            for milestone in MILESTONES:
                if share >= milestone and not (path := folder / weights_at(milestone)).exists():
                    save_weights(model, path)
            if builder.note is not None:
                builder.note("reference training", share)

        with explained("the reference training", training):
            facts = fit(
                model, train, workload.loss_function(), training, seed=builder.seed, augment=workload.augment,
                checkpoint=folder / "train.checkpoint", progress=keep, seconds_left=builder.seconds_left,
            )  # fmt: skip
        save_weights(model, folder / weights_at(1))
        return facts

    return builder.step("train", key, work)


def weights_at(share: float) -> str:
    return f"{share:g}.safetensors"


def at(builder: Builder, weights: Path) -> nn.Module:
    """The model with those weights, on the device that trains."""
    model = builder.fresh()
    load_weights(model, weights)
    return model.to(pick_device())


def noise_at(builder: Builder, weights: Path, training: TrainConfig, *, seconds: float, most: int = MICRO) -> NoiseScale:
    """The gradient's noise scale with weights that stay as they are: until its interval is narrow, or the time is over.

    Dropout and batch normalisation are at work as in training, the latter over micro-batches of `MICRO` examples.

    Args:
        most: examples that fit into memory at once.

    Raises:
        WorkloadError: the model cannot be trained with such batches, or no gradient is finite.
    """
    model, device = at(builder, weights).train(), pick_device()
    train = builder.examples.split("train")
    parts, micro = divided(len(train), most)
    config = dataclasses.replace(training, batch_size=parts * micro, accumulate=parts)
    feed = Feed(train, config.batch_size, seed=builder.seed + 1, augment=builder.workload.augment)
    of_all = len(train) if builder.workload.augment is None else None  # what is augmented has no end
    meter, loss = NoiseMeter(model, population=of_all), builder.workload.loss_function()
    torch.manual_seed(builder.seed)
    began, step = time.monotonic(), 0
    while step < 2 or (time.monotonic() - began < seconds and meter.skipped < step):  # as soon as none of several steps was finite, none will be
        model.zero_grad(set_to_none=True)
        with explained("measuring the noise of the gradient", config):
            add_gradients(model, feed, step, loss, config, device, after=meter.add)
        meter.step()
        step += 1
        if step >= 8 and step.bit_count() == 1:  # at powers of two, so that looking often makes no difference
            found = meter.noise_scale()
            if found.high <= WIDE * found.low:
                break
    if meter.skipped == step:
        raise WorkloadError("no gradient was finite: scale the inputs, or lower the learning rate")
    return meter.noise_scale()


def divided(examples: int, most: int) -> tuple[int, int]:
    """Parts of a step that measures noise, two at least, and the examples in each: one only where there is no room, or no data, for more."""
    micro = max(1, min(MICRO, most, max(2, examples // PARTS), examples // 2))
    return min(PARTS, examples // micro), micro
