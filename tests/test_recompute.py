"""Activations computed again: the same training to the bit, with less kept at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tenfold.build import Builder
from tenfold.data.split import Split
from tenfold.errors import WorkloadError
from tenfold.execute import Evaluator, plain_session
from tenfold.plan import Plan
from tenfold.savings import savings, savings_of
from tenfold.store import Store
from tenfold.train.config import TrainConfig
from tenfold.train.loop import fit
from tenfold.train.recompute import Block, Peak, blocks_of, cheapest, recomputing
from tenfold.workload import Workload, load

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
    assert 0 < len(names) < len(blocks)
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
    assert cheapest(blocks, 500, 0.1) == ["a", "b", "c"], "the outermost, where what is cheapest does not come there"


def test_a_module_that_is_not_there_is_named() -> None:
    for name, message in (("nowhere", "none of the model's modules is named 'nowhere'"), ("inner", "8 of the model's modules are named 'inner'"), ("", "is named ''")):
        with pytest.raises(WorkloadError, match=message), recomputing(Deep(), [name]):
            pass


def test_a_name_within_a_model_that_is_wrapped_is_known() -> None:
    wrapped = nn.Sequential(Deep())
    with recomputing(wrapped, ["blocks.3"]):
        assert "forward" in vars(wrapped[0].blocks[3])
    assert "forward" not in vars(wrapped[0].blocks[3])


# ---------------------------------------------------------------- what it saves


def test_ways_to_save_memory_are_measured(tmp_path: Path) -> None:
    workload = Workload(model=Deep, train=SPLIT, valid=SPLIT, confirm=SPLIT, test=SPLIT, margin=0.1, training=TrainConfig(epochs=1, batch_size=16))
    builder = Builder(workload, load(workload), Store(tmp_path), seed=0, threads=1)
    evaluator = Evaluator(builder, Plan(training=workload.training, session=plain_session()), "train")
    found = {s.what: s for s in savings(evaluator, workload.training, rounds=3)}
    plain, half = found["as it is"], found["half of the activations"]
    assert plain.change == {}
    assert plain.times.value == 1.0
    assert half.kept < 0.55 * plain.kept
    assert half.bytes < 0.75 * plain.bytes, "gradients and the optimizer's state stay"
    assert half.change["recompute"]
    assert {*half.change["recompute"]} <= {name for name, _ in builder.fresh().named_modules()}
    state = found["the optimizer's state in bfloat16"]
    weights = sum(p.numel() for p in Deep().parameters())
    assert plain.bytes - state.bytes == pytest.approx(4 * weights, rel=0.3), "two moments of two bytes less each"
    assert found["all of these"].bytes < min(s.bytes for name, s in found.items() if name != "all of these")
    assert all(0 < s.times.low <= s.times.value <= s.times.high for s in found.values())
    assert json.loads(json.dumps(savings_of(evaluator, workload.training)))["ways"][0]["what"] == "as it is"


class Wayward(Deep):
    """What it computes depends on how often it was called, so that it cannot be computed again."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Wayward.calls += 1
        if Wayward.calls > 3:
            raise ValueError("no more")
        return super().forward(x)


def test_a_model_that_fails_is_said_and_ends_nothing(tmp_path: Path) -> None:
    workload = Workload(model=Wayward, train=SPLIT, valid=SPLIT, confirm=SPLIT, test=SPLIT, margin=0.1, training=TrainConfig(epochs=1, batch_size=16))
    builder = Builder(workload, load(workload), Store(tmp_path), seed=0, threads=1)
    evaluator = Evaluator(builder, Plan(training=workload.training, session=plain_session()), "train")
    assert savings_of(evaluator, workload.training) == {"reason": "no more"}


def test_what_has_no_state_and_no_micro_batches_is_not_offered(tmp_path: Path) -> None:
    training = TrainConfig(epochs=1, batch_size=15, accumulate=8, optimizer="sgd", momentum=0.0)
    workload = Workload(model=Deep, train=SPLIT, valid=SPLIT, confirm=SPLIT, test=SPLIT, margin=0.1, training=training)
    builder = Builder(workload, load(workload), Store(tmp_path), seed=0, threads=1)
    found = {s.what for s in savings(Evaluator(builder, Plan(training=training, session=plain_session()), "train"), training, rounds=2)}
    assert not found & {"the optimizer's state in bfloat16", "twice as many micro-batches"}
