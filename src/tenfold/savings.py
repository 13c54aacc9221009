"""What training in less memory takes: activations computed again, an optimizer's state in fewer bits, and micro-batches; each of them measured."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import first_line
from tenfold.execute import LEAST_STEP_ROUNDS, STEP_ROUNDS, STEP_SECONDS, Evaluator
from tenfold.measure import step_costs
from tenfold.train.config import TrainConfig
from tenfold.train.dropout import dropping
from tenfold.train.feed import in_channels_last, stretches_of
from tenfold.train.loop import pick_device, stepper
from tenfold.train.recompute import Peak, blocks_of, cheapest, recomputing
from tenfold.verdict import Interval, cost_ratio

AIMS = {"half of the activations": 0.5, "a quarter of the activations": 0.25, "as few activations as can be": 0.0}
"""Shares of what is kept for the backward pass, that are aimed at by computing the rest again."""
AS_IT_IS = "as it is"
TRIES, CLOSER = 6, 0.95
"""By which blocks are found that leave as little as is aimed at; and by how much each aims lower than the one before it missed by."""


@dataclass(frozen=True, kw_only=True)
class Saving:
    """A way to train in less memory."""

    what: str
    change: dict[str, Any]
    """Fields of the `TrainConfig` that differ."""
    kept: int
    """Bytes of activations that are there when the forward pass ends, and the backward pass begins."""
    bytes: int
    """Alive at once in a step, at the most: activations, gradients, and what the optimizer remembers; weights and examples apart."""
    times: Interval
    """How many times as long a step takes."""


def savings_of(evaluator: Evaluator, config: TrainConfig) -> dict[str, Any]:
    """Ways to train in less memory, as JSON; or `reason`, why they could not be measured."""
    try:
        return {"ways": [dataclasses.asdict(s) for s in savings(evaluator, config)]}
    except Exception as error:  # the user's model may raise anything, where it is computed again too
        return {"reason": first_line(error)}


def savings(evaluator: Evaluator, config: TrainConfig, *, rounds: int | None = None) -> list[Saving]:
    """Ways to take a step of a training, the first of them as it is, timed in turns. What cannot be done is left out.

    Args:
        rounds: steps of each that are timed; None: as many as there is time for, within bounds.
    """
    train, loss_of = evaluator.builder.examples.split("train"), evaluator.builder.workload.loss_function()
    batch = stretches_of(config, len(train))[-1][1]
    steps: dict[str, Callable[[], float]] = {}
    sizes: dict[str, dict[str, int]] = {}
    changes, once = _changes(evaluator, config, batch), 0.0
    for what, change in changes.items():
        way = dataclasses.replace(config, **change)
        try:
            kept = _kept(*_forward(evaluator, way, batch)[1:])
            with Peak() as peak:
                step = stepper(*evaluator.begun(way, train, batch), loss_of, way, pick_device())
                step()  # the optimizer has its state from now on
                peak.most = peak.now
                began = time.perf_counter()
                step()
                once += time.perf_counter() - began
        except Exception:  # a way may be none for this model; what cannot be done as it is, is the model's own failure
            if what == AS_IT_IS:
                raise
            continue
        steps[what], sizes[what] = step, {"kept": kept, "bytes": peak.most}
    rounds = rounds or max(LEAST_STEP_ROUNDS, min(STEP_ROUNDS, int(STEP_SECONDS / max(once, 1e-6))))
    costs = step_costs(steps, rounds=rounds)
    return [Saving(what=what, change=changes[what], **sizes[what], times=cost_ratio(costs[what].wall, costs[AS_IT_IS].wall)) for what in steps]


def _changes(evaluator: Evaluator, config: TrainConfig, batch: int) -> dict[str, dict[str, Any]]:
    """By what they are, the fields that differ."""
    out: dict[str, dict[str, Any]] = {AS_IT_IS: {}}
    for what, names in _computed_again(evaluator, config, batch).items():
        if names and {"recompute": names} not in out.values():
            out[what] = {"recompute": names}
    least = dict(list(out.values())[-1])
    if config.schedule != "free" and (config.optimizer != "sgd" or config.momentum):
        out["the optimizer's state in bfloat16"] = {"state": "bfloat16"}
        least |= {"state": "bfloat16"}
    if 2 * config.accumulate <= min(batch, config.batch_size):
        out["twice as many micro-batches"] = {"accumulate": 2 * config.accumulate}
        least |= {"accumulate": 2 * config.accumulate}
    return out | ({"all of these": least} if len(least) > 1 else {})


def _computed_again(evaluator: Evaluator, config: TrainConfig, batch: int) -> dict[str, tuple[str, ...]]:
    """Names of the blocks that are best computed again, by what is left."""
    model, forward = _forward(evaluator, config, batch)
    blocks, kept = blocks_of(model, forward), _kept(forward)
    out = {}
    for what, aim in AIMS.items():
        wanted = aim
        for _ in range(TRIES):  # what two blocks share is counted for both
            out[what] = tuple(cheapest(blocks, kept, wanted))
            share = _kept(_forward(evaluator, dataclasses.replace(config, recompute=out[what]), batch)[1]) / kept
            if share <= aim or not aim:
                break
            wanted *= CLOSER * aim / share
    return out


def _forward(evaluator: Evaluator, config: TrainConfig, batch: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A model at the beginning of a training, and a function that takes it to the loss of its first micro-batch."""
    device, loss_of = pick_device(), evaluator.builder.workload.loss_function()
    model, _, feed = evaluator.begun(config, evaluator.builder.examples.split("train"), batch)
    inputs, target = next(feed.parts(0, device, count=config.accumulate))
    assert target is not None

    def forward() -> Tensor:
        with recomputing(model, config.recompute), dropping(model, config.dropout), torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            output = model(*(in_channels_last(inputs) if config.channels_last else inputs))
        return loss_of(output.float(), target)

    return model, forward


def _kept(forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass leaves behind, as long as its loss is there."""
    with Peak() as peak:
        loss = forward()
        kept: int = peak.now
    del loss
    return kept
