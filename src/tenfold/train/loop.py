"""The training loop: flat, device-agnostic, deterministic by seed and thread count, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tenfold.data.split import Array, Split
from tenfold.device import has_bfloat16
from tenfold.errors import BudgetEndedError, DivergedError
from tenfold.train.average import renormalise, take_mean
from tenfold.train.checkpoint import CHECKPOINT_SECONDS, load_checkpoint, save_checkpoint
from tenfold.train.config import TrainConfig
from tenfold.train.dropout import dropping
from tenfold.train.feed import Augment, Feed, batch_of, in_channels_last, stretches_of
from tenfold.train.optimizers import Optimizer, make_optimizer, set_rate
from tenfold.train.recompute import recomputing
from tenfold.train.resize import resized, scale_at
from tenfold.train.teacher import Teacher

Loss = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[float, float], None]
"""Called with (share done, loss)."""


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def trains_in_bfloat16() -> bool:
    """Whether the device that trains has instructions for it."""
    return torch.cuda.is_bf16_supported(including_emulation=False) if pick_device().type == "cuda" else has_bfloat16()


def fit(
    model: nn.Module,
    split: Split,
    loss_of: Loss,
    config: TrainConfig,
    *,
    seed: int = 0,
    augment: Augment | None = None,
    teacher: Teacher | None = None,
    device: torch.device | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    seconds_left: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """Train `model` in place, from where its checkpoint left off if there is one.

    What a step sees depends on (seed, step) alone (`Feed`), dropout on torch's generator, which the
    checkpoint keeps: a resumed training gives the same weights.

    Args:
        split: the training examples.
        augment: of the first input of a batch.
        teacher: instead of `split`, `seed` and `augment`: what it answers on its own feed is what is to be learned.
        checkpoint: file written every `CHECKPOINT_SECONDS` and read at the start.
        seconds_left: of a budget; asked at each step.

    Returns:
        steps, examples, seconds and cpu_seconds (of all sittings), the mean loss of each epoch.

    Raises:
        DivergedError: the loss is NaN or infinite; names the step, the epoch and the batch.
        BudgetEndedError: no seconds are left; the checkpoint is written.
    """
    device = device or pick_device()
    torch.manual_seed(seed)
    model.to(device).train()
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, config)
    stretches = stretches_of(config, len(split if teacher is None else teacher.feed.split))
    feed = teacher.feed if teacher is not None else Feed(split, config.batch_size, seed=seed, augment=augment, stretches=stretches)
    split, steps = feed.split, sum(n for n, _ in stretches)
    mean = AveragedModel(model) if config.average else None
    state = load_checkpoint(checkpoint, model, optimizer, mean) if checkpoint is not None else None
    state = state or {"step": 0, "seconds": 0.0, "cpu_seconds": 0.0, "losses": [], "running": [0.0, 0]}
    started = saved = time.monotonic()
    cpu_started = time.process_time()
    before, cpu_before = state["seconds"], state.get("cpu_seconds", 0.0)

    def keep() -> None:
        state["seconds"] = before + time.monotonic() - started
        state["cpu_seconds"] = cpu_before + time.process_time() - cpu_started
        if checkpoint is not None:
            save_checkpoint(checkpoint, model, optimizer, state, mean)

    for step in range(state["step"], steps):
        seconds = before + time.monotonic() - started
        share = feed.seen(step) / feed.seen(steps)
        if config.max_seconds is not None:
            share = max(share, seconds / config.max_seconds)
            if share >= 1:
                break
        set_rate(optimizer, config, share)

        if seconds_left is not None and seconds_left() <= 0:
            keep()
            raise BudgetEndedError(f"the budget ended at {step / steps:.0%} of its training")
        optimizer.zero_grad(set_to_none=True)
        total = add_gradients(model, feed, step, loss_of, config, device, teacher=teacher, scale=scale_at(config.resize, share))
        if not math.isfinite(total):
            rows = feed.rows(step)
            epoch = feed.seen(step) // len(split)
            raise DivergedError(
                f"the loss is {total} at step {step} (epoch {epoch}, batch of rows {rows[0]}, {rows[1 % len(rows)]}, …): "
                "lower the learning rate, or look at those examples"
            )
        optimizer.step()
        if mean is not None and max(share, feed.seen(step + 1) / feed.seen(steps)) > 1 - config.average:
            mean.update_parameters(model)

        state["running"] = [state["running"][0] + total, state["running"][1] + 1]
        if feed.seen(step + 1) // len(split) > feed.seen(step) // len(split) or step + 1 == steps:
            state["losses"].append(state["running"][0] / state["running"][1])
            state["running"] = [0.0, 0]
        state["step"] = step + 1
        if progress is not None:
            progress((step + 1) / steps, total)
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            saved = time.monotonic()
            keep()

    if mean is not None and mean.n_averaged:
        take_mean(model, mean)
    if config.schedule == "free":
        optimizer.eval()  # type: ignore[attr-defined]  # from where it steps to the average of it
    if mean is not None or config.schedule == "free":
        renormalise(model, feed, device)
    model.eval()
    return {
        "steps": state["step"],
        "examples": feed.seen(state["step"]),
        "seconds": before + time.monotonic() - started,
        "cpu_seconds": cpu_before + time.process_time() - cpu_started,
        "losses": state["losses"],
    }


def add_gradients(
    model: nn.Module, feed: Feed, step: int, loss_of: Loss, config: TrainConfig, device: torch.device,
    *, teacher: Teacher | None = None, after: Callable[[int], object] | None = None, scale: float = 1.0,
) -> float:
    """Backward passes of a step, which add up the gradient of the mean loss over its batch; that loss.

    Args:
        after: called after each micro-batch with its size.
        scale: of images, over their size, as the model sees them; a teacher sees them as they are.
    """
    batch, first, total = feed.batch_at(step), 0, 0.0
    for inputs, given in feed.parts(step, device, count=config.accumulate):
        target = given if teacher is None else teacher.answers(step, first, inputs)
        assert target is not None
        first += len(target)
        seen = resized(inputs, scale)
        with recomputing(model, config.recompute), dropping(model, config.dropout):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
                output = model(*(in_channels_last(seen) if config.channels_last else seen))
            loss = loss_of(output.float(), target) * (len(target) / batch)
            loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
        if after is not None:
            after(len(target))
    return total


def stepper(
    model: nn.Module, optimizer: Optimizer, feed: Feed, loss_of: Loss, config: TrainConfig, device: torch.device, *, scale: float = 1.0
) -> Callable[[], float]:
    """A function that takes the next step of a training, as `fit` does it on images of that scale, and gives its loss."""
    at = count()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = add_gradients(model, feed, next(at), loss_of, config, device, scale=scale)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return loss

    return step


@torch.inference_mode()
def predict(model: nn.Module, split: Split, *, batch_size: int = 256, device: torch.device | None = None) -> Array:
    """Outputs (n, …) of a model in evaluation mode, as float32."""
    device = device or pick_device()
    model.to(device).eval()
    out = []
    for first in range(0, len(split), batch_size):
        inputs, _ = batch_of(split, slice(first, first + batch_size), device)
        out.append(model(*inputs).float().cpu().numpy())
    return np.concatenate(out)
