"""The training loop: flat, device-agnostic, deterministic by seed and thread count, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.data.split import Array, Split
from tenfold.errors import WorkloadError
from tenfold.train.checkpoint import load_checkpoint, save_checkpoint
from tenfold.train.config import TrainConfig

CHECKPOINT_SECONDS = 20.0

Loss = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[float, float], None]
"""Called with (share done, loss)."""


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def one_cycle(share: float, warmup: float) -> float:
    """Factor on the peak rate at `share` of the schedule: linear up, then linear down to zero."""
    if share < warmup:
        return share / warmup
    return max(0.0, (1 - share) / (1 - warmup)) if warmup < 1 else 1.0


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, config.learning_rate, betas=(config.momentum, 0.999))


def tensor_of(array: Array, device: torch.device) -> Tensor:
    """A batch on the device; integers that torch cannot compute with are widened."""
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    elif array.dtype == np.float64:
        array = array.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


def batch_of(
    split: Split, rows: Any, device: torch.device, *, channels_last: bool = False
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    inputs = tuple(tensor_of(x[rows], device) for x in split.inputs)
    if channels_last:
        inputs = tuple(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)
    return inputs, None if split.targets is None else tensor_of(split.targets[rows], device)


def fit(
    model: nn.Module,
    split: Split,
    loss_of: Loss,
    config: TrainConfig,
    *,
    seed: int = 0,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    device: torch.device | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train `model` in place, from where its checkpoint left off if there is one.

    The order of examples depends on (seed, epoch) alone, augmentation on (seed, step), dropout on
    torch's generator, which the checkpoint keeps: a resumed training gives the same weights.

    Args:
        split: the training examples; batches that would be short are made whole from the next epoch's.
        augment: (first input of a batch, generator) to the same shape.
        checkpoint: file written every `CHECKPOINT_SECONDS` and read at the start.

    Returns:
        steps, examples, seconds and cpu_seconds (of all sittings), the mean loss of each epoch.

    Raises:
        WorkloadError: the loss is NaN or infinite; names the step, the epoch and the batch.
    """
    device = device or pick_device()
    torch.manual_seed(seed)
    model.to(device).train()
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, config)
    batch = min(config.batch_size, len(split))
    steps = max(1, math.ceil(config.epochs * len(split) / batch))
    micro = max(1, math.ceil(batch / config.accumulate))
    state = load_checkpoint(checkpoint, model, optimizer) if checkpoint is not None else None
    state = state or {"step": 0, "seconds": 0.0, "cpu_seconds": 0.0, "losses": [], "running": [0.0, 0]}
    started = saved = time.monotonic()
    cpu_started = time.process_time()
    before, cpu_before = state["seconds"], state.get("cpu_seconds", 0.0)
    orders: dict[int, np.ndarray] = {}

    for step in range(state["step"], steps):
        seconds = before + time.monotonic() - started
        share = step / steps
        if config.max_seconds is not None:
            share = max(share, seconds / config.max_seconds)
            if share >= 1:
                break
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * one_cycle(share, config.warmup)

        rows = _rows_of_step(step, batch, len(split), seed, orders)
        generator = torch.Generator().manual_seed((seed << 32) + step)
        total = 0.0
        optimizer.zero_grad(set_to_none=True)
        for first in range(0, batch, micro):
            part = rows[first : first + micro]
            inputs, target = batch_of(split, part, device)
            if augment is not None:
                inputs = (augment(inputs[0], generator), *inputs[1:])
            if config.channels_last:
                inputs = tuple(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
                output = model(*inputs)
            assert target is not None
            loss = loss_of(output.float(), target) * (len(part) / batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if not math.isfinite(total):
            epoch = step * batch // len(split)
            raise WorkloadError(
                f"the loss is {total} at step {step} (epoch {epoch}, batch of rows {rows[0]}, {rows[1 % batch]}, …): "
                "lower the learning rate, or look at those examples"
            )
        optimizer.step()

        state["running"] = [state["running"][0] + total, state["running"][1] + 1]
        if (step + 1) * batch // len(split) > step * batch // len(split) or step + 1 == steps:
            state["losses"].append(state["running"][0] / state["running"][1])
            state["running"] = [0.0, 0]
        state["step"] = step + 1
        if progress is not None:
            progress((step + 1) / steps, total)
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            saved = time.monotonic()
            state["seconds"] = before + saved - started
            state["cpu_seconds"] = cpu_before + time.process_time() - cpu_started
            save_checkpoint(checkpoint, model, optimizer, state)

    model.eval()
    return {
        "steps": state["step"],
        "examples": state["step"] * batch,
        "seconds": before + time.monotonic() - started,
        "cpu_seconds": cpu_before + time.process_time() - cpu_started,
        "losses": state["losses"],
    }


def _rows_of_step(step: int, batch: int, n: int, seed: int, orders: dict[int, np.ndarray]) -> np.ndarray:
    """Row indices (batch,) of a step: epoch after epoch in fresh random orders, batches running across the seam."""
    out = []
    first, last = step * batch, (step + 1) * batch
    for epoch in range(first // n, (last - 1) // n + 1):
        if epoch not in orders:
            for old in [e for e in orders if e < epoch - 1]:
                del orders[old]
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(n)
        out.append(orders[epoch][max(first - epoch * n, 0) : last - epoch * n])
    return np.concatenate(out)


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
