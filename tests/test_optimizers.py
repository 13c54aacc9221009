"""Optimizers, schedules, averages and batches that grow: against closed forms, and resumed bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tenfold.data.split import Split
from tenfold.errors import WorkloadError
from tenfold.recipe import digest
from tenfold.train import loop
from tenfold.train.average import renormalise
from tenfold.train.config import TrainConfig
from tenfold.train.feed import Feed, stretches_of
from tenfold.train.halved import rounded
from tenfold.train.loop import fit, predict
from tenfold.train.optimizers import FlatMuon, make_optimizer, set_rate
from tenfold.train.schedule import FIRST, momentum_at, rate_factor

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.normal(size=(200, 2, 8, 8)).astype(np.float32), RNG.integers(0, 2, 200)
IMAGES[:, 0, :4] += LABELS[:, None, None].astype(np.float32)
SPLIT = Split(inputs=(IMAGES,), targets=LABELS)

WAYS = {
    "lion": {"optimizer": "lion", "learning_rate": 1e-3, "second_beta": 0.99},
    "muon": {"optimizer": "muon", "learning_rate": 1e-2},
    "muon, channels last": {"optimizer": "muon", "learning_rate": 1e-2, "channels_last": True},
    "schedule-free sgd": {"optimizer": "sgd", "schedule": "free", "learning_rate": 0.5},
    "schedule-free adamw": {"schedule": "free", "learning_rate": 1e-2},
    "averaged": {"optimizer": "sgd", "learning_rate": 0.05, "average": 0.4},
    "state in bfloat16": {"learning_rate": 1e-2, "state": "bfloat16"},
    "muon, state in bfloat16": {"optimizer": "muon", "learning_rate": 1e-2, "state": "bfloat16"},
    "growing": {"learning_rate": 3e-3, "batch_size": 4, "grow": 8},
    "one cycle": {"schedule": "one_cycle", "learning_rate": 1e-2},
    "cosine": {"schedule": "cosine", "learning_rate": 1e-2},
    "stable": {"schedule": "stable", "learning_rate": 1e-2},
}


class Net(nn.Module):
    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.out = nn.Linear(8 * 16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.out(torch.relu(self.inner(x.flatten(1))))


def config_of(way: str, **changes) -> TrainConfig:
    return TrainConfig(**({"epochs": 6, "batch_size": 20, "warmup": 0.1} | WAYS[way] | changes))


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


@pytest.mark.parametrize("way", WAYS)
def test_it_learns(way):
    model = Net()
    facts = fit(model, SPLIT, cross_entropy, config_of(way))
    assert (predict(model, SPLIT).argmax(1) == SPLIT.targets).mean() > 0.9
    assert facts["losses"][-1] < facts["losses"][0]


class Killed(Exception):  # noqa: N818 - it stands for a signal, not for an error
    pass


@pytest.mark.parametrize("way", WAYS)
def test_it_is_resumed_bit_for_bit(way, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)  # a checkpoint after every step
    config = config_of(way, epochs=3)
    whole = Net()
    facts = fit(whole, SPLIT, cross_entropy, config)
    for stop in (0.3, 0.8):

        def progress(share: float, _loss: float, stop: float = stop) -> None:
            if share >= stop:
                raise Killed

        with pytest.raises(Killed):
            fit(Net(), SPLIT, cross_entropy, config, checkpoint=tmp_path / "x", progress=progress)
    resumed = Net()
    assert fit(resumed, SPLIT, cross_entropy, config, checkpoint=tmp_path / "x")["losses"] == facts["losses"]
    wanted = whole.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in resumed.state_dict().items())


# ---------------------------------------------------------------- optimizers


def test_a_step_of_lion_by_hand():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, -1.0]])
    optimizer = make_optimizer(model, TrainConfig(optimizer="lion", learning_rate=0.1, weight_decay=0.5, momentum=0.9, second_beta=0.99))
    model.weight.grad = torch.tensor([[3.0, -0.001]])
    optimizer.step()
    # weights shrink by rate times decay, then move by the rate against the sign
    assert model.weight[0].tolist() == pytest.approx([0.95 - 0.1, -0.95 + 0.1])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_matrices_by_orthogonal_steps_and_leaves_the_rest_to_adamw(layout):
    model = Net().to(memory_format=layout)
    config = TrainConfig(optimizer="muon", learning_rate=0.01, weight_decay=0.0)
    optimizer = make_optimizer(model, config)
    flat, adamw = optimizer.inner
    assert isinstance(flat, FlatMuon)
    assert [id(w) for w in flat.weights] == [id(model.conv.weight), id(model.inner.weight)], "not what makes the output"
    assert sum(len(g["params"]) for g in adamw.param_groups) == len(list(model.parameters())) - 2
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    cross_entropy(model(torch.from_numpy(IMAGES)), torch.from_numpy(SPLIT.targets)).backward()
    optimizer.step()
    step = (before["conv.weight"] - model.conv.weight.detach()).flatten(1)
    values = torch.linalg.svdvals(step)
    # Newton-Schulz brings singular values near one another; their size is 0.2 times the root of the longer side, times the rate
    assert values.max() < 2 * 0.2 * math.sqrt(18) * 0.01
    assert values.min() > 0.3 * values.max()
    # Adam's first step is the rate, against the sign
    assert (before["out.weight"] - model.out.weight.detach()).abs().max() == pytest.approx(0.01, rel=0.02)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_rounding_at_random_is_right_in_the_mean():
    torch.manual_seed(0)
    values = torch.tensor([1.001, -3.14159, 0.0, 1e-8]).repeat(20_000, 1)
    drawn = rounded(values)
    assert drawn.dtype == torch.bfloat16
    assert drawn.float().mean(0).tolist() == pytest.approx(values[0].tolist(), rel=2e-4)
    assert (drawn.float() - values).abs().max() < 3.2 * 2**-7
    assert torch.equal(rounded(torch.tensor([1.5, -2.0])).float(), torch.tensor([1.5, -2.0])), "what bfloat16 can hold stays"


def test_roundings_come_in_the_order_of_parameters():
    """As a checkpoint is read, state comes in another order; twelve parameters sort otherwise as texts than as numbers."""

    def optimizer_of() -> torch.optim.Optimizer:
        model = nn.ParameterList(nn.Parameter(torch.full((3, 3), float(i + 1))) for i in range(12))
        made = make_optimizer(model, TrainConfig(state="bfloat16"))
        for p in model:
            p.grad = torch.full_like(p, 0.3)
        return made

    plain, turned = optimizer_of(), optimizer_of()
    for optimizer in (plain, turned):
        torch.manual_seed(0)
        optimizer.step()
    turned.state = type(turned.state)(dict, dict(reversed(turned.state.items())))
    for optimizer in (plain, turned):
        torch.manual_seed(1)
        optimizer.step()
    for mine, other in zip(plain.param_groups[0]["params"], turned.param_groups[0]["params"], strict=True):
        assert torch.equal(plain.state[mine]["exp_avg"], turned.state[other]["exp_avg"])


def test_a_moving_average_that_bfloat16_could_not_move_arrives():
    """Rounded to nearest, steps of a thousandth of the way would be lost."""
    torch.manual_seed(0)
    mean = torch.ones(1_000)
    for _ in range(2_000):
        mean = rounded(mean + 0.001 * (2 - mean)).float()
    assert float(mean.mean()) == pytest.approx(2 - math.exp(-2), abs=0.01)


@pytest.mark.parametrize("way", ["state in bfloat16", "muon, state in bfloat16"])
def test_state_takes_half_the_memory(way):
    sizes = []
    for state in ("bfloat16", "float32"):
        model = Net()
        optimizer = make_optimizer(model, config_of(way, state=state))
        cross_entropy(model(torch.from_numpy(IMAGES)), torch.from_numpy(SPLIT.targets)).backward()
        optimizer.step()
        tensors = [t for inner in getattr(optimizer, "inner", [optimizer]) for state in inner.state.values() for t in state.values()]
        sizes.append(sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor)))
    assert sizes[0] < 0.52 * sizes[1]


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "schedulefree", None)
    with pytest.raises(WorkloadError, match=r"needs the package schedulefree: pip install 'tenfold\[optimizers\]'"):
        make_optimizer(Net(), config_of("schedule-free sgd"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schedule": "steps"}, "schedule 'steps' is not known: use linear, cosine"),
        ({"optimizer": "lion", "schedule": "free"}, "there is no schedule-free lion: use sgd or adamw"),
        ({"schedule": "free", "average": 0.2}, "averages already: leave average out"),
        ({"schedule": "free", "momentum": 0.0}, "without momentum there is nothing"),
        ({"average": 1.0}, "average is 1.0: it must be at least 0 and below 1"),
        ({"second_beta": 1.0}, "second_beta is 1.0"),
        ({"grow": 3}, "grow is 3: it must be a power of two"),
        ({"dropout": 1.5}, "dropout is 1.5: it is a share of the model's own rates"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, sentence):
    with pytest.raises(WorkloadError, match=sentence):
        TrainConfig(**changes)


def test_what_was_trained_before_there_were_schedules_is_the_same_training():
    assert set(TrainConfig().to_json()) == {
        "epochs", "batch_size", "accumulate", "optimizer", "learning_rate", "momentum", "weight_decay", "warmup", "dtype", "channels_last", "max_seconds",
    }  # fmt: skip
    assert TrainConfig(schedule="cosine").to_json()["schedule"] == "cosine"
    assert len({digest(TrainConfig(**c).to_json()) for c in ({}, {"grow": 2}, {"average": 0.1}, {"second_beta": 0.95}, {"schedule": "free"})}) == 5


# ---------------------------------------------------------------- schedules


@given(st.floats(0, 1), st.floats(0, 0.9), st.sampled_from(["linear", "cosine", "one_cycle", "stable", "free"]))
def test_rates_stay_between_nothing_and_their_peak(share, warmup, schedule):
    assert -1e-12 <= rate_factor(TrainConfig(schedule=schedule, warmup=warmup), share) <= 1 + 1e-12


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("cosine", [0, 0.5, 1, 0.5, 0]),
        ("stable", [0, 0.5, 1, 1, 0]),
        ("free", [0, 0.5, 1, 1, 1]),
        ("one_cycle", [FIRST, (1 + FIRST) / 2, 1, 0.5, 0]),
    ],
)
def test_rates_at_their_corners(schedule, wanted):
    config = TrainConfig(schedule=schedule, warmup=0.2)
    assert [rate_factor(config, s) for s in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx(wanted, abs=2e-5)


def test_one_cycle_lowers_momentum_where_the_rate_is_high():
    config = TrainConfig(schedule="one_cycle", warmup=0.3, momentum=0.95)
    assert [momentum_at(config, s) for s in (0, 0.3, 1)] == pytest.approx([0.95, 0.85, 0.95])
    assert momentum_at(TrainConfig(momentum=0.95), 0.3) == 0.95
    for optimizer in ("sgd", "adamw", "muon"):
        made = make_optimizer(Net(), config_of("one cycle", optimizer=optimizer, momentum=0.95, warmup=0.3))
        set_rate(made, config, 0.3)
        assert {g["betas"][0] if "betas" in g else g["momentum"] for g in made.param_groups} == {0.95 - 0.1}


# ---------------------------------------------------------------- averages


def test_weights_are_the_mean_of_the_last_steps():
    seen = []
    model = Net()
    config = TrainConfig(epochs=2, batch_size=20, optimizer="sgd", learning_rate=0.05, average=0.25)
    fit(model, SPLIT, cross_entropy, config, progress=lambda share, _: seen.append(model.out.weight.detach().clone()))
    assert len(seen) == 20
    torch.testing.assert_close(model.out.weight.detach(), torch.stack(seen[15:]).mean(0), rtol=1e-5, atol=1e-6)


def test_normalisation_is_that_of_the_weights_as_they_are():
    model = Net()
    model.norm.running_mean.fill_(7.0)
    renormalise(model, Feed(SPLIT, 50), torch.device("cpu"))
    with torch.no_grad():
        seen = model.conv(torch.from_numpy(IMAGES))
    torch.testing.assert_close(model.norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert model.norm.momentum == 0.1


# ---------------------------------------------------------------- a batch that grows


def test_a_batch_doubles_after_equal_shares_of_the_examples():
    config = TrainConfig(epochs=6, batch_size=10, grow=4)
    assert stretches_of(config, 100) == [(20, 10), (10, 20), (5, 40)]
    assert stretches_of(TrainConfig(epochs=2, batch_size=60, grow=4), 100) == [(2, 60), (1, 100), (0, 100)]
    assert stretches_of(TrainConfig(epochs=3, batch_size=30), 100) == [(10, 30)]


@given(st.integers(1, 40), st.integers(0, 4), st.integers(1, 7), st.integers(0, 3))
def test_examples_come_once_an_epoch_whatever_the_batch_does(n, doublings, batch, seed):
    config = TrainConfig(epochs=3, batch_size=batch, grow=1 << doublings)
    stretches = stretches_of(config, n)
    feed = Feed(Split(inputs=(np.arange(n, dtype=np.float32)[:, None],)), batch, seed=seed, stretches=stretches)
    rows = [feed.rows(step) for step in range(sum(s for s, _ in stretches))]
    assert [len(r) for r in rows] == [b for s, b in stretches for _ in range(s)]
    assert [feed.seen(i) for i in range(len(rows))] == [sum(map(len, rows[:i])) for i in range(len(rows))]
    flat = np.concatenate(rows)
    assert 3 * n <= len(flat) < 3 * n + max(map(len, rows)) + n
    assert (np.sort(flat[: 3 * n].reshape(3, n), axis=1) == np.arange(n)).all()


def test_the_rate_goes_by_examples_where_the_batch_grows(monkeypatch):
    shares = []
    monkeypatch.setattr(loop, "set_rate", lambda _o, _c, share: shares.append(share))
    facts = fit(Net(), SPLIT, cross_entropy, TrainConfig(epochs=6, batch_size=10, grow=4))
    assert facts["steps"] == 40 + 20 + 10
    assert facts["examples"] == 1200
    assert shares[40] == pytest.approx(1 / 3)
    assert shares[60] == pytest.approx(2 / 3)
