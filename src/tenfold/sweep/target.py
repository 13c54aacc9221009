"""The loss that batch sizes are compared at, and how long the reference has to be to come to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tenfold.batch.calibrate import steps_to
from tenfold.build import Builder
from tenfold.store import Step
from tenfold.sweep.branches import by_length, loss_on, of_steps, sample_of
from tenfold.sweep.reference import at, reference, weights_at
from tenfold.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Aimed:
    """The reference, and the loss on valid that it is for."""

    training: TrainConfig
    trained: Step
    steps: int
    """That its batch takes to the loss: of the whole training, or between two lengths that were trained."""
    loss: float
    """What was asked for; where that was not reached, or nothing was asked for, what the reference came to."""
    reached: bool


def aimed(builder: Builder, training: TrainConfig, target: float | None, *, most: int, remember: Callable[[str, Callable[[], Any]], Any]) -> Aimed:
    """Train the reference: as it is, or to a loss, twice as long each time until that is reached, or half as long while it is.

    Args:
        most: steps, of the longest.
    """

    def trained(steps: int | None) -> tuple[TrainConfig, Step]:
        whole = training if steps is None else of_steps(training, steps, len(builder.examples.split("train")))
        return whole, reference(builder, whole)

    def loss(step: Step) -> float:
        workload, judged = builder.workload, sample_of(builder.examples.valid, builder.seed)
        return loss_on(at(builder, step.path / weights_at(1)), judged, workload.loss_function())

    def loss_of(steps: int) -> float:
        found: float = remember(f"reference:{steps}", lambda: loss(trained(steps)[1]))
        return found

    if target is None:
        config, step = trained(None)
        came_to: float = remember("reference", partial(loss, step))
        return Aimed(training=config, trained=step, steps=int(step.meta["steps"]), loss=came_to, reached=True)
    first = max(1, min(most, steps_of(training, len(builder.examples.split("train")))))
    losses = by_length({first: loss_of(first)}, target, loss_of, most)
    lengths = sorted(losses)
    steps = steps_to(target, lengths, [losses[n] for n in lengths])
    if steps is None:
        best = min(lengths, key=lambda n: losses[n])
        config, step = trained(best)
        return Aimed(training=config, trained=step, steps=best, loss=losses[best], reached=False)
    config, step = trained(next(n for n in lengths if losses[n] <= target))
    return Aimed(training=config, trained=step, steps=max(1, round(steps)), loss=target, reached=True)


def steps_of(training: TrainConfig, examples: int) -> int:
    """Of a training, about."""
    return round(training.epochs * examples / training.batch_size)
