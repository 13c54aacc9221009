"""What a training step takes, by its batch, on this machine."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import torch

from tenfold.build import Builder
from tenfold.measure import Samples, step_costs
from tenfold.train.config import TrainConfig, parts_of
from tenfold.train.feed import Feed
from tenfold.train.loop import pick_device, stepper
from tenfold.train.optimizers import make_optimizer

TURN_SECONDS = 0.05
"""Of a turn: short steps are repeated so long."""
ROUNDS = 8


def steppers(builder: Builder, training: TrainConfig, sizes: Sequence[int], micro: int) -> dict[int, Callable[[], float]]:
    """For each batch size a function that takes its next training step, as `fit` does it, and gives the loss; all of one model.

    Args:
        micro: the most examples of a backward pass.
    """
    device = pick_device()
    model = builder.fresh().to(device).train()
    if training.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, loss = make_optimizer(model, training), builder.workload.loss_function()
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # what is timed does not diverge

    def of_size(batch: int) -> Callable[[], float]:
        config = dataclasses.replace(training, batch_size=batch, accumulate=parts_of(batch, micro))
        feed = Feed(builder.examples.split("train"), batch, seed=builder.seed, augment=builder.workload.augment)
        return stepper(model, optimizer, feed, loss, config, device)

    return {batch: of_size(batch) for batch in sizes}


def step_times(steps: dict[int, Callable[[], float]], *, seconds: float) -> dict[int, Samples]:
    """Samples of steps by batch size, in turns; short ones are repeated, so that a turn is long enough to be told from the clock.

    Args:
        seconds: for all of it, about; two rounds at least.
    """
    repeats, once = {}, 0.0
    for batch, step in steps.items():
        step()
        began = time.perf_counter()
        step()
        spent = max(time.perf_counter() - began, 1e-6)
        repeats[batch] = max(1, min(64, math.ceil(TURN_SECONDS / spent)))
        once += spent * repeats[batch]
    rounds = max(2, min(ROUNDS, int(seconds / once)))
    samples = step_costs({str(b): _repeated(step, repeats[b]) for b, step in steps.items()}, rounds=rounds)
    return {b: dataclasses.replace(samples[str(b)], batch=repeats[b]) for b in steps}


def _repeated(step: Callable[[], float], times: int) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(times):
            step()

    return turn


def candidates(least: int, most: int) -> Sequence[int]:
    """Powers of two from `least` on, below `most`, and `most` itself."""
    return [*(2**i for i in range(most.bit_length()) if least <= 2**i < most), most]
