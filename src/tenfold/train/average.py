"""The mean of weights that a training has passed, and the normalisation that goes with it."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from tenfold.train.feed import Feed

EXAMPLES, MICRO = 8192, 256
"""By which batch normalisation is told what weights that were not stepped through see; and how many of them at a time, at the most."""


def take_mean(model: nn.Module, mean: AveragedModel) -> None:
    """Give a model the mean weights."""
    with torch.no_grad():
        for own, averaged in zip(model.parameters(), mean.module.parameters(), strict=True):
            own.copy_(averaged)


@torch.no_grad()
def renormalise(model: nn.Module, feed: Feed, device: torch.device) -> None:
    """Set the running statistics of batch normalisation, of a model in training mode, to those of the weights as they are."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]  # others are frozen
    if not layers:
        return
    model.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    step = seen = 0
    while seen < min(EXAMPLES, len(feed.split)):
        for inputs, _ in feed.parts(step, device, count=math.ceil(feed.batch_at(step) / MICRO)):  # parts of about one size have one weight
            model(*inputs)
            seen += len(inputs[0])
        step += 1
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
