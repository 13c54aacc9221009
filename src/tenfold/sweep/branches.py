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
from tenfold.batch.predict import StepTime, learning_rate, second_beta, steps_over_least
from tenfold.build import Builder, explained
from tenfold.data.split import Split
from tenfold.errors import DivergedError, WorkloadError
from tenfold.sweep.reference import MILESTONES, at
from tenfold.train.config import TrainConfig, parts_of
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
    """One branch, and the loss on valid at its end; NaN where it came to none."""

    checkpoint: int
    repeat: int
    batch: int
    steps: int
    multiple: float
    learning_rate: float
    loss: float
    reason: str | None = None
    """Why it came to no loss."""


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
        self.multiples: dict[tuple[int, int], float] = {}
        """Of the rule's learning rate, that the first branches of a milestone and a batch were best with."""

    def points(self, milestone: Milestone, sizes: tuple[int, ...], *, repeat: int = 0) -> tuple[list[Point], list[int], list[Branch]]:
        """The steps that each size takes to the loss that the reference's batch reaches; sizes that do not reach it; and all branches.

        Args:
            repeat: counts the times that it is done, each with data in another order; later ones take the learning rates that the first found.
        """
        base, missed, ran = self.training.batch_size, [], []
        group = milestone.index + len(MILESTONES) * repeat

        def tried(batch: int, steps: int, multiple: float) -> Branch:
            ran.append(self.run(milestone, batch, steps, multiple, repeat))
            return ran[-1]

        def first(batch: int, steps: int) -> Branch:
            known = self.multiples.get((milestone.index, batch))
            best = min((tried(batch, steps, m) for m in ((known,) if known else MULTIPLES)), key=_loss)
            self.multiples.setdefault((milestone.index, batch), best.multiple)
            return best

        own = first(base, milestone.steps)
        if not math.isfinite(own.loss):
            return [], [], ran
        points = [Point(checkpoint=group, noise=milestone.noise, batch=base, steps=milestone.steps)]
        most = LONGEST * milestone.steps * self.time.at(base)
        for batch in (s for s in sizes if s != base):
            if not self.remember(f"go:{group}:{batch}", lambda: self.seconds_left() > 0):
                break
            expected = milestone.steps * steps_over_least(batch, milestone.noise) / steps_over_least(base, milestone.noise)
            steps = max(2, round(min(expected, most / 2 / self.time.at(batch))))
            best = first(batch, steps)
            found = by_length({steps: best.loss}, own.loss, lambda n: tried(batch, n, best.multiple).loss, most / self.time.at(batch))  # noqa: B023 - used at once
            lengths = sorted(found)
            reached = steps_to(own.loss, lengths, [found[n] for n in lengths])
            if reached is None:
                missed.append(batch)
            else:
                points.append(Point(checkpoint=group, noise=milestone.noise, batch=batch, steps=reached))
        return points, missed, ran

    def run(self, milestone: Milestone, batch: int, steps: int, multiple: float, repeat: int) -> Branch:
        base = self.training
        rate = multiple * learning_rate(
            base.learning_rate, base.batch_size, batch, optimizer=base.optimizer, critical=milestone.noise
        )  # fmt: skip
        config = dataclasses.replace(
            base, batch_size=batch, accumulate=parts_of(batch, self.micro), learning_rate=rate, warmup=WARMUP, max_seconds=None, grow=1, average=0.0,
            second_beta=second_beta(base.second_beta, base.batch_size, batch),
        )  # fmt: skip
        config = of_steps(config, steps, len(self.builder.examples.split("train")))
        key = f"branch:{milestone.index}:{batch}:{steps}:{multiple:g}:{repeat}"
        found = self.remember(key, lambda: self._trained(milestone.weights, config, self.builder.seed + 2 + repeat))
        return Branch(
            checkpoint=milestone.index, repeat=repeat, batch=batch, steps=steps, multiple=multiple, learning_rate=rate,
            loss=found.get("loss", math.nan), reason=found.get("reason"),
        )  # fmt: skip

    def _trained(self, weights: Path, config: TrainConfig, seed: int) -> dict[str, Any]:
        """`loss`, or the `reason` why there is none."""
        builder = self.builder
        model, loss_of = at(builder, weights), builder.workload.loss_function()
        try:
            with explained("it", config):
                fit(model, builder.examples.split("train"), loss_of, config, seed=seed, augment=builder.workload.augment)
                loss = loss_on(model, self.judged, loss_of)
        except DivergedError:
            return {"reason": "diverged"}
        except WorkloadError as error:
            return {"reason": str(error)}
        return {"loss": loss} if math.isfinite(loss) else {"reason": "diverged"}


def by_length(found: dict[int, float], level: float, run: Callable[[int], float], most: float) -> dict[int, float]:
    """Losses by the steps of a training: those known, then twice as many until the level is reached, or half as many while it is.

    Args:
        run: steps to the loss at their end.
        most: steps.
    """
    found = dict(found)
    while min(found.values()) > level and 2 * max(found) <= most:
        found[2 * max(found)] = run(2 * max(found))
    while min(found) > 2 and found[min(found)] <= level:
        found[min(found) // 2] = run(min(found) // 2)
    return found


def of_steps(training: TrainConfig, steps: int, examples: int) -> TrainConfig:
    """The same for so many steps."""
    return dataclasses.replace(training, epochs=(steps - 0.5) * training.batch_size / examples)


def sample_of(split: Split, seed: int) -> Split:
    return split if len(split) <= EVALUATED else split.take(np.random.default_rng(seed).permutation(len(split))[:EVALUATED])


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
