"""CIFAR-10: 50,000 / 10,000 colour photographs, 32×32, ten classes.

Its baseline stays below the bar: 88.4 % on held-out JPEG copies (`python benchmarks/baselines/run.py cifar10`; what was tried is in docs/log.md).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tenfold.data.named import CIFAR10_LABELS, cifar10
from tenfold.export import Normalize
from tenfold.train.augment import shift_and_flip
from tenfold.train.config import TrainConfig
from tenfold.train.loop import trains_in_bfloat16
from tenfold.workload import Workload

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
"""Of the training pixels by channel, in [0, 1]."""
SHAPE = (3, 32, 32)
"""Of an image: channels, height, width."""
STEM = 24
"""Channels: twice the values of a patch of 2×2 pixels."""
WIDTHS = (64, 128)
"""Sizes of the family that are weighed against one another by benchmarks/baselines."""
WIDTH = 64
"""The cheapest of the family; it does not reach the bar, and the next one trains for five hours in float32 (docs/log.md)."""
BAR = 0.93
"""On valid and confirm together."""


class Block(nn.Module):
    """A convolution that widens, pooled; then a residual one; each normalised at once, so that it folds, and rectified.

    Both begin by passing on what they are given.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.widen_norm = nn.BatchNorm2d(outputs)
        self.pool = nn.MaxPool2d(2)
        self.same = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.same_norm = nn.BatchNorm2d(outputs)
        for convolution in (self.widen, self.same):
            nn.init.dirac_(convolution.weight[:inputs])

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.widen_norm(self.widen(x))))
        return x + torch.relu(self.same_norm(self.same(x)))


def model(width: int = WIDTH) -> nn.Module:
    """In the manner of the airbench nets (arXiv:2404.00498): a stem of 2×2 patches, then blocks of `width`, 3 and 3 times as many channels."""
    return nn.Sequential(
        nn.Conv2d(3, STEM, 2, bias=False), nn.BatchNorm2d(STEM), nn.ReLU(),
        Block(STEM, width), Block(width, 3 * width), Block(3 * width, 3 * width),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        nn.Linear(3 * width, 10),
    )  # fmt: skip


def workload(data: Path | None = None, *, width: int = WIDTH) -> Workload:
    """train 44,000, valid 3,000 and confirm 3,000 of the training images; the 10,000 test images certify."""
    import numpy as np

    train, test = cifar10(data)
    order = np.random.default_rng(0).permutation(len(train))
    return Workload(
        name="cifar10",
        model=partial(model, width),
        train=train.take(order[:44_000]),
        valid=train.take(order[44_000:47_000]),
        confirm=train.take(order[47_000:]),
        test=test,
        loss=partial(nn.functional.cross_entropy, label_smoothing=0.2),
        preprocess=Normalize(MEAN, STD),
        augment=partial(shift_and_flip, pad=2, reflect=True),
        margin=0.005,
        labels=CIFAR10_LABELS,
        training=TrainConfig(
            epochs=16, batch_size=128, optimizer="sgd", learning_rate=0.125, weight_decay=1.3e-3, warmup=0.2, channels_last=True,
            dtype="bfloat16" if trains_in_bfloat16() else "float32",  # emulated, it takes ten times as long
        ),
    )  # fmt: skip
