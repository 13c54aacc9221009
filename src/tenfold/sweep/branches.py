"""Short trainings that leave the reference at a milestone, each with a batch of its own, and are annealed to their end."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tenfold.batch.calibrate import Point, steps_to
from tenfold.batch.predict import StepTime, learning_rate, steps_over_least
from tenfold.build import Builder
from tenfold.data.split import Split
from tenfold.errors import DivergedError
from tenfold.sweep.reference import at
from tenfold.train.config import TrainConfig
from tenfold.train.feed import batch_of
from tenfold.train.loop import Loss, fit, pick_device

WARMUP = 0.1
"""Of a branch: its optimizer begins anew."""
MULTIPLES = (1.0, 0.5, 2.0)
"""Of the learning rate that the rule gives for a batch."""
LONGEST = 4.0
"""Times what the reference's own batch takes, after which a batch is given up."""
EVALUATED = 4096
"""Examples of valid that a branch is judged on, drawn once."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One branch, and the loss on valid at its end; NaN where it diverged."""

    checkpoint: int
    batch: int
    steps: int
    multiple: float
    learning_rate: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Milestone:
    """Where branches leave, and what they are told."""

    index: int
    weights: Path
    noise: float
    steps: int
    """Of a branch with the reference's own batch."""


class Brancher:
    """Runs branches, remembering each."""

    def __init__(
        self, builder: Builder, training: TrainConfig, time: StepTime, *, micro: int,
        remember: Callable[[str, Callable[[], Any]], Any], seconds_left: Callable[[], float],
    ) -> None:  # fmt: skip
        """
        Args:
            training: the reference's.
            micro: examples that fit into memory at once.
        """
        self.builder, self.training, self.time, self.micro = builder, training, time, micro
        self.judged = sample_of(builder.examples.valid, builder.seed)
        self.remember, self.seconds_left = remember, seconds_left

    def points(self, milestone: Milestone, sizes: tuple[int, ...]) -> tuple[list[Point], list[Branch]]:
        """The steps that each size takes to the loss that the reference's batch reaches; sizes that do not reach it are left out."""
        base, ran = self.training.batch_size, []

        def tried(batch: int, steps: int, multiple: float) -> Branch:
            ran.append(self.run(milestone, batch, steps, multiple))
            return ran[-1]

        own = min((tried(base, milestone.steps, m) for m in MULTIPLES), key=_loss)
        if not math.isfinite(own.loss):
            return [], ran
        points = [Point(checkpoint=milestone.index, noise=milestone.noise, batch=base, steps=milestone.steps)]
        most = LONGEST * milestone.steps * self.time.at(base)
        for batch in (s for s in sizes if s != base):
            if not self.remember(f"go:{milestone.index}:{batch}", lambda: self.seconds_left() > 0):
                break
            expected = milestone.steps * steps_over_least(batch, milestone.noise) / steps_over_least(base, milestone.noise)
            steps = max(2, round(min(expected, most / 2 / self.time.at(batch))))
            best = min((tried(batch, steps, m) for m in MULTIPLES), key=_loss)
            found = {steps: best.loss}
            while min(found.values()) > own.loss and 2 * max(found) * self.time.at(batch) <= most:
                longer = 2 * max(found)
                found[longer] = tried(batch, longer, best.multiple).loss
            while min(found) > 2 and found[min(found)] <= own.loss:
                shorter = min(found) // 2
                found[shorter] = tried(batch, shorter, best.multiple).loss
            lengths = sorted(found)
            reached = steps_to(own.loss, lengths, [found[n] for n in lengths])
            if reached is not None:
                points.append(Point(checkpoint=milestone.index, noise=milestone.noise, batch=batch, steps=reached))
        return points, ran

    def run(self, milestone: Milestone, batch: int, steps: int, multiple: float) -> Branch:
        base = self.training
        rate = multiple * learning_rate(
            base.learning_rate, base.batch_size, batch, optimizer=base.optimizer, critical=milestone.noise
        )  # fmt: skip
        train = self.builder.examples.split("train")
        config = dataclasses.replace(
            base, batch_size=batch, accumulate=parts_of(batch, self.micro), learning_rate=rate, warmup=WARMUP, max_seconds=None,
            epochs=(steps - 0.5) * batch / len(train),
        )  # fmt: skip
        key = f"branch:{milestone.index}:{batch}:{steps}:{multiple:g}"
        loss = self.remember(key, lambda: self._trained(milestone.weights, config))
        return Branch(
            checkpoint=milestone.index, batch=batch, steps=steps, multiple=multiple, learning_rate=rate,
            loss=math.nan if loss is None else loss,
        )  # fmt: skip

    def _trained(self, weights: Path, config: TrainConfig) -> float | None:
        builder = self.builder
        model = at(builder, weights)
        try:
            fit(
                model, builder.examples.split("train"), builder.workload.loss_function(), config,
                seed=builder.seed + 2, augment=builder.workload.augment,
            )  # fmt: skip
        except DivergedError:
            return None
        loss = loss_on(model, self.judged, builder.workload.loss_function())
        return loss if math.isfinite(loss) else None


def sample_of(split: Split, seed: int) -> Split:
    return split if len(split) <= EVALUATED else split.take(np.random.default_rng(seed).permutation(len(split))[:EVALUATED])


def parts_of(batch: int, micro: int) -> int:
    """The fewest equal parts of a batch that are no larger than `micro`."""
    return next(parts for parts in range(math.ceil(batch / micro), batch + 1) if batch % parts == 0)


def _loss(branch: Branch) -> float:
    return branch.loss if math.isfinite(branch.loss) else math.inf


@torch.inference_mode()
def loss_on(model: nn.Module, split: Split, loss_of: Loss, *, batch: int = 256) -> float:
    """Mean loss over examples, of a model in evaluation mode."""
    device, total = pick_device(), 0.0
    model.to(device).eval()
    for first in range(0, len(split), batch):
        inputs, target = batch_of(split, slice(first, first + batch), device)
        assert target is not None
        total += float(loss_of(model(*inputs).float(), target)) * len(target)
    return total / len(split)
