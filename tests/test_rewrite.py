from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tenfold.export import Served, export


class Means(nn.Module):
    def __init__(self, axes: tuple[int, ...], keepdim: bool, spatial: int) -> None:
        super().__init__()
        self.inner = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[spatial](3, 4, 3)
        self.axes, self.keepdim = axes, keepdim

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).mean(self.axes, keepdim=self.keepdim)


def kinds(path: Path) -> list[str]:
    return [n.op_type for n in onnx.load(path).graph.node]


@pytest.mark.parametrize(
    ("axes", "keepdim", "spatial", "pooled"),
    [
        ((2, 3), False, 2, True), ((-1, -2), True, 2, True), ((2,), False, 1, True), ((2, 3, 4), False, 3, True),
        ((1, 2, 3), False, 2, False), ((3,), False, 2, False), ((1,), True, 2, False),
    ],
)  # fmt: skip
def test_means_over_all_positions_are_pooled(tmp_path: Path, axes: tuple[int, ...], keepdim: bool, spatial: int, pooled: bool) -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 3, *[6] * spatial)).astype(np.float32)
    export(Served(Means(axes, keepdim, spatial), None), [x], tmp_path / "model.onnx")  # compares it with the model
    assert ("GlobalAveragePool" in kinds(tmp_path / "model.onnx")) == pooled
    assert ("ReduceMean" in kinds(tmp_path / "model.onnx")) != pooled
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert {i.name for i in graph.initializer} <= {name for n in graph.node for name in n.input}  # engines warn of what nothing reads


def test_adaptive_pooling_to_one_position_is_pooled(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(64, 3, 6, 6)).astype(np.float32)
    export(Served(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), None), [x], tmp_path / "model.onnx")
    assert "GlobalAveragePool" in kinds(tmp_path / "model.onnx")
