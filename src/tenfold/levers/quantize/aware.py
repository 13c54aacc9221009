"""Quantization-aware training: fine-tune with rounding simulated, so that the weights learn to bear it.

Jacob et al. (2018), arXiv:1712.05877. Weights are rounded by output channel, which commutes with
folding a normalisation into them; the graph is quantized afterwards as any other.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tenfold.plan import Materials
from tenfold.train.config import TrainConfig
from tenfold.train.loop import fit

RATE_SHARE = 0.1
"""Peak learning rate of the fine-tuning, as a share of the training's."""
OBSERVED_STEPS = 20
"""Steps in which ranges are only watched, not rounded."""
RANGE_DECAY = 0.99

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class RoundWeight(nn.Module):
    """Symmetric rounding by output channel, with the gradient passed straight through."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.high = 2 ** (bits - 1) - 1

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.detach().flatten(1).abs().amax(dim=1).clamp_min(1e-8) / self.high
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -self.high, self.high)


class RoundActivation(nn.Module):
    """Rounding of a layer's input to 8 bits, in a range that follows what is seen. Its state is in the checkpoint of a training."""

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            keep = RANGE_DECAY if self.seen else 0.0
            self.low.lerp_(x.detach().min().float().clamp(max=0.0), 1 - keep)
            self.high.lerp_(x.detach().max().float().clamp(min=0.0), 1 - keep)
            self.seen += 1
        low, high = float(self.low), float(self.high)
        if self.seen <= OBSERVED_STEPS or high <= low:
            return x
        scale = (high - low) / 255
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, round(-low / scale), 0, 255).to(x.dtype)


def quantization_aware(
    model: nn.Module, training: TrainConfig, materials: Materials, *, epochs: float, seconds: float | None, seven_bit: bool
) -> dict[str, Any]:
    """Fine-tune `model` in place; afterwards it is an ordinary float model whose weights stand on the grid.

    Returns:
        What `fit` says of it.

    Raises:
        WorkloadError: there is nothing to train on.
    """
    layers = [m for m in model.modules() if isinstance(m, _LAYERS)]
    hooks = []
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", RoundWeight(7 if seven_bit else 8), unsafe=True)
        rounding = RoundActivation()
        layer.add_module("_round_input", rounding)
        hooks.append(layer.register_forward_pre_hook(lambda m, args: (m._round_input(args[0]), *args[1:])))
    try:
        return fit(
            model, materials.examples.split("train"), materials.workload.loss_function(),
            dataclasses.replace(training, epochs=epochs, learning_rate=training.learning_rate * RATE_SHARE, max_seconds=seconds, resize=1.0),
            seed=materials.seed + 1, augment=materials.workload.augment,
            checkpoint=materials.folder / "aware.checkpoint", progress=materials.progress,
            seconds_left=materials.seconds_left,
        )  # fmt: skip
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            del layer._round_input
