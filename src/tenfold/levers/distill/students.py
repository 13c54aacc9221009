"""Families of small nets that learn from a larger one: a convolutional net for images, a perceptron for rows of a table.

A net of a family is data (`ImageStudent`, `TableStudent`), so that it can stand in a recipe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ImageStudent:
    """A stem, then stages of blocks, each stage at half the resolution of the last, with more channels."""

    width: int
    """Channels of the first stage."""
    depth: int
    """Blocks a stage, beside the one that widens it."""
    stem: Literal["conv", "pooled", "stride2", "stride4"]
    """How the image comes in: at its own resolution; convolved, then pooled to half; or by strided patches to half or a quarter."""
    operator: Literal["dense", "separable"]
    """What a block computes with: a 3×3 convolution, or one by channel and a 1×1 across them (Howard et al. 2017, arXiv:1704.04861)."""
    smallest: int
    """Pixels a side: maps are halved, stage by stage, while they stay at least that large."""
    growth: float = 2.0
    """Channels of a stage over those of the last."""


@dataclass(frozen=True, kw_only=True)
class TableStudent:
    """A perceptron: hidden layers of one width."""

    width: int
    depth: int
    """Hidden layers; 0 is a linear model."""


def _normed(inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1, rectified: bool = True) -> nn.Sequential:
    padding = size // 2 if stride == 1 else (size - stride + 1) // 2
    convolution = nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), *([nn.ReLU()] if rectified else []))


def _operator(kind: str, inputs: int, outputs: int, *, rectified: bool = True) -> nn.Sequential:
    if kind == "dense":
        return _normed(inputs, outputs, 3, rectified=rectified)
    return nn.Sequential(_normed(inputs, inputs, 3, groups=inputs), _normed(inputs, outputs, 1, rectified=rectified))


class Residual(nn.Module):
    """Rectified after the sum, which engines then compute within the convolution before it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(x))


def _stem(spec: ImageStudent, channels: int) -> list[nn.Module]:
    match spec.stem:
        case "conv":
            return [_normed(channels, spec.width, 3)]
        case "pooled":
            return [_normed(channels, spec.width, 3), nn.MaxPool2d(2)]
        case "stride2":
            return [_normed(channels, spec.width, 4, stride=2)]
        case "stride4":
            return [_normed(channels, spec.width, 6, stride=4)]


def image_student(spec: ImageStudent, channels: int, side: int, outputs: Sequence[int]) -> nn.Module:
    """The untrained net.

    Args:
        channels, side: of the image as pre-processing leaves it; side is the shorter one.
        outputs: shape of an example's output.
    """
    layers = _stem(spec, channels)
    side //= {"conv": 1, "pooled": 2, "stride2": 2, "stride4": 4}[spec.stem]
    width, stages = spec.width, 1 + math.floor(math.log2(max(side / spec.smallest, 1)))
    for stage in range(stages):
        if stage:
            wider = _multiple_of_8(width * spec.growth)
            layers += [nn.MaxPool2d(2), _operator(spec.operator, width, wider)]
            width = wider
        layers += [Residual(_operator(spec.operator, width, width, rectified=False)) for _ in range(spec.depth)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *_head(width, outputs)]
    return nn.Sequential(*layers)


def table_student(spec: TableStudent, features: int, outputs: Sequence[int]) -> nn.Module:
    """The untrained perceptron, for rows of `features` numbers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(spec.depth):
        layers += [nn.Linear(spec.width if i else features, spec.width), nn.ReLU()]
    return nn.Sequential(*layers, *_head(spec.width if spec.depth else features, outputs))


def _head(width: int, outputs: Sequence[int]) -> list[nn.Module]:
    head: list[nn.Module] = [nn.Linear(width, math.prod(outputs))]
    if len(outputs) != 1:
        head.append(Shaped(outputs))
    return head


class Shaped(nn.Module):
    """(batch, n) to (batch, *shape)."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return torch.reshape(x, (-1, *self.shape))


def _multiple_of_8(width: float) -> int:
    """Channels come in blocks of 8 where an engine lays them out by vectors."""
    return max(8, round(width / 8) * 8)
