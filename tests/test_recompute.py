"""Activations computed again: the same training to the bit, with less kept at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tenfold.data.split import Split
from tenfold.train.config import TrainConfig
from tenfold.train.loop import fit
from tenfold.train.recompute import Block, Peak, blocks_of, cheapest, recomputing

RNG = np.random.default_rng(0)
SPLIT = Split(inputs=(RNG.normal(size=(64, 4, 8, 8)).astype(np.float32),), targets=RNG.integers(0, 3, 64))


class Piece(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).tanh()


class Deep(nn.Module):
    def __init__(self, depth: int = 8, width: int = 16) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(4, width, 1), nn.ModuleList(Piece(width) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def test_what_is_learned_is_the_same_to_the_bit() -> None:
    plain, again = Deep(), Deep()
    config = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3}
    facts = [
        fit(model, SPLIT, cross_entropy, TrainConfig(**config, recompute=names))
        for model, names in ((plain, ()), (again, ("blocks.0", "blocks.3", "blocks.6.inner")))
    ]
    assert facts[0]["losses"] == facts[1]["losses"]
    wanted = plain.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in again.state_dict().items()), "running statistics, and what dropout drew, too"
    assert "forward" not in vars(again.blocks[0]), "nothing stays behind"


def peak_of(model: nn.Module, names: list[str], batch: int = 64) -> int:
    """Bytes that a forward and a backward pass have alive at the most, gradients of weights apart, which are there already."""
    x, y = torch.from_numpy(SPLIT.inputs[0][:batch]), torch.from_numpy(SPLIT.targets[:batch])
    cross_entropy(model(x), y).backward()
    with recomputing(model, names), Peak() as peak:
        cross_entropy(model(x), y).backward()
    return peak.most


def test_half_of_the_activations_need_not_be_kept() -> None:
    model = Deep(depth=12).train()
    x, y = torch.from_numpy(SPLIT.inputs[0]), torch.from_numpy(SPLIT.targets)
    before = peak_of(model, [])
    blocks = blocks_of(model, lambda: cross_entropy(model(x), y))
    assert {f"blocks.{i}" for i in range(12)} <= {b.name for b in blocks}
    one = next(b for b in blocks if b.name == "blocks.5")
    a_map = 64 * 16 * 8 * 8 * 4
    assert one.inputs == 0, "its convolution keeps them anyway"
    assert 4 * a_map <= one.kept <= 8 * a_map, "both sides of the normalisation, the rectified, the dropped out and its mask, the tangent"
    assert one.seconds > 0
    names = cheapest(blocks, before, 0.5)
    assert 0 < len(names) < 12
    assert peak_of(model, names) <= 0.55 * before


def test_the_peak_counts_what_is_alive_at_once() -> None:
    with Peak() as peak:
        for _ in range(10):
            torch.zeros(1000) + 1
        assert peak.most == 8000
        kept = [torch.zeros(1000) for _ in range(5)]
        view = kept[0][:10]
        view.add_(1)
        assert peak.now == 20_000
        del kept
        assert peak.now == 4000, "of which a view is left"
    assert peak.most >= 20_000


def test_those_that_free_most_for_their_cost_come_first() -> None:
    blocks = [
        Block(name="a", seconds=1.0, kept=110, inputs=10), Block(name="b", seconds=0.5, kept=110, inputs=10),
        Block(name="b.0", seconds=0.1, kept=60, inputs=10), Block(name="c", seconds=2.0, kept=110, inputs=10),
    ]  # fmt: skip
    assert cheapest(blocks, 500, 1.0) == []
    assert cheapest(blocks, 500, 0.95) == ["a", "b.0"], "b.0 frees 50 of which 60 come back for a time; with a, 150 of which 110 do"
    assert cheapest(blocks, 500, 0.1) == ["a", "b.0", "c"], "all that help, where the aim cannot be reached"


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(AttributeError, match="nowhere"), recomputing(Deep(), ["nowhere"]):
        pass
