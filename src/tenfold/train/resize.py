"""Training on smaller images first: a step on an image of half the side takes a quarter of the time."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.errors import first_line
from tenfold.train.config import TrainConfig
from tenfold.train.feed import stretches_of

UNTIL, SIZES = 0.75, 4
"""Share of the training after which images have their own size; and how many smaller ones come before, for equal shares each."""


def scale_at(first: float, share: float) -> float:
    """Sides of images over their own after a share of the training, which began at `first`: progressive resizing."""
    if share >= UNTIL:
        return 1.0
    return first + (1 - first) * int(SIZES * share / UNTIL) / SIZES


def scales_of(first: float) -> list[float]:
    """All scales of a training that begins at `first`; 1, its last, is the last."""
    return sorted({scale_at(first, UNTIL * i / SIZES) for i in range(SIZES + 1)})


def resized(inputs: tuple[Tensor, ...], scale: float) -> tuple[Tensor, ...]:
    """Inputs whose first, images (n, channels, height, width), has sides so many times as long; of the same dtype."""
    if scale == 1.0:
        return inputs
    images = inputs[0]
    size = [max(1, round(scale * side)) for side in images.shape[-2:]]
    small = functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return (small if images.is_floating_point() else small.round()).to(images.dtype), *inputs[1:]


def why_not_smaller(model: nn.Module, inputs: tuple[Tensor, ...], first: float) -> str | None:
    """Why a model cannot learn from images that begin at `first`; None where it can: it answers on each scale in the shape in which it answers on its own."""
    if inputs[0].ndim != 4:
        return "its first input has no images"
    try:
        with torch.inference_mode():
            answers = [model(*resized(inputs, scale)).shape for scale in scales_of(first)]
    except Exception as error:  # the user's model may raise anything
        return first_line(error)
    return None if len(set(answers)) == 1 else "what it answers has another shape for them, and would not fit the targets"


def phases_of(config: TrainConfig, examples: int) -> Counter[tuple[int, float]]:
    """Steps of a training on so many examples, by their batch and the scale of its images."""
    stretches = [(steps, batch) for steps, batch in stretches_of(config, examples) if steps]
    whole, seen = sum(steps * batch for steps, batch in stretches), 0
    phases: Counter[tuple[int, float]] = Counter()
    for steps, batch in stretches:
        if config.resize == 1.0:
            phases[batch, 1.0] += steps
            continue
        phases.update((batch, scale_at(config.resize, (seen + i * batch) / whole)) for i in range(steps))
        seen += steps * batch
    return phases
