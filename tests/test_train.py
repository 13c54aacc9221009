"""Training: the same seed gives the same bits, killed or not; the schedule and the order of examples by closed form."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tenfold.data.split import Split
from tenfold.errors import WorkloadError
from tenfold.train import feed, loop
from tenfold.train.augment import shift_and_flip
from tenfold.train.checkpoint import load_checkpoint, save_checkpoint
from tenfold.train.config import TrainConfig
from tenfold.train.feed import Feed
from tenfold.train.loop import fit, predict
from tenfold.train.optimizers import make_optimizer
from tenfold.train.schedule import rate_factor

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
VECTORS = Split(inputs=(RNG.normal(size=(50, 6)).astype(np.float32),), targets=RNG.integers(0, 3, size=50))
IMAGES = Split(inputs=(RNG.integers(0, 256, size=(40, 1, 8, 8), dtype=np.uint8),), targets=RNG.integers(0, 3, size=40))


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


class Net(nn.Module):
    """All that has a state of its own in training: batch norm, dropout, an optimizer with momentum."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.3)
        self.out = nn.Linear(8 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(torch.relu(self.norm(self.conv(x.float() / 255))).flatten(1)))


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def apart(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """The largest difference of two models' weights."""
    return max((one[k].double() - two[k].double()).abs().max().item() for k in one)


def trained(make: Callable[[], nn.Module], split: Split, config: TrainConfig, **options) -> dict[str, Tensor]:
    model = make()
    fit(model, split, cross_entropy, config, **options)
    return weights(model)


# ---------------------------------------------------------------- the seed


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(optimizer):
    config = TrainConfig(epochs=2, batch_size=16, optimizer=optimizer, learning_rate=0.01)
    first = trained(Net, IMAGES, config, seed=3, augment=shift_and_flip)
    torch.rand(7)  # what happened before does not matter
    assert same(first, trained(Net, IMAGES, config, seed=3, augment=shift_and_flip))
    assert not same(first, trained(Net, IMAGES, config, seed=4, augment=shift_and_flip))


class Killed(Exception):  # noqa: N818 - it stands for a signal, not for an error
    pass


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, optimizer, channels_last):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)  # a checkpoint after every step
    config = TrainConfig(
        epochs=3, batch_size=16, accumulate=2, optimizer=optimizer, learning_rate=0.01, channels_last=channels_last
    )
    options = {"seed": 5, "augment": shift_and_flip}
    whole = Net()
    facts = fit(whole, IMAGES, cross_entropy, config, **options)

    checkpoint = tmp_path / "train.checkpoint"
    for stop in (3, 4, 7):  # within an epoch, after its first step, across a seam
        seen = []

        def progress(share: float, loss: float, stop: int = stop) -> None:
            seen.append(loss)  # noqa: B023 - used up before the next round
            if round(share * facts["steps"]) == stop:
                raise Killed

        with pytest.raises(Killed):
            fit(Net(), IMAGES, cross_entropy, config, checkpoint=checkpoint, progress=progress, **options)
        torch.rand(11)
    assert len(seen) == 7 - 3  # the sitting before was killed in step 4, of which no checkpoint was written

    resumed = Net()
    again = fit(resumed, IMAGES, cross_entropy, config, checkpoint=checkpoint, **options)
    assert same(weights(resumed), weights(whole))
    assert (again["losses"], again["steps"]) == (facts["losses"], facts["steps"])


def test_time_of_earlier_sittings_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    config = TrainConfig(epochs=1, batch_size=10)

    def progress(share: float, _loss: float) -> None:
        time.sleep(0.1)
        busy = time.process_time() + 0.1
        while time.process_time() < busy:
            pass
        if share > 0.7:
            raise Killed

    with pytest.raises(Killed):
        fit(mlp(), VECTORS, cross_entropy, config, checkpoint=tmp_path / "x", progress=progress)
    facts = fit(mlp(), VECTORS, cross_entropy, config, checkpoint=tmp_path / "x")
    assert facts["seconds"] >= 0.6  # three sleeps and busy waits before the last checkpoint; the rest takes milliseconds
    assert facts["cpu_seconds"] >= 0.3


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99, None], ids=["empty", "half", "cut", "rubbish"])
def test_a_corrupt_checkpoint_starts_anew(tmp_path, keep):
    config = TrainConfig(epochs=1, batch_size=10)
    checkpoint = tmp_path / "train.checkpoint"
    model = mlp()
    save_checkpoint(
        checkpoint, model, make_optimizer(model, config), {"step": 3, "seconds": 0.0, "cpu_seconds": 0.0, "losses": [], "running": [0.0, 0]}
    )
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(b"\xff" * 300 if keep is None else content[: int(keep * len(content))])
    assert load_checkpoint(checkpoint, mlp(), make_optimizer(mlp(), config)) is None
    assert same(trained(mlp, VECTORS, config, checkpoint=checkpoint), trained(mlp, VECTORS, config))


def test_no_checkpoint_is_none(tmp_path):
    model = mlp()
    assert load_checkpoint(tmp_path / "nowhere", model, make_optimizer(model, TrainConfig())) is None


def test_a_checkpoint_is_the_whole_state(tmp_path):
    config = TrainConfig(optimizer="adamw")
    model = mlp()
    optimizer = make_optimizer(model, config)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    torch.manual_seed(9)
    save_checkpoint(tmp_path / "x", model, optimizer, {"step": 1})
    wanted = torch.rand(3)

    other = mlp()
    restored = make_optimizer(other, config)
    assert load_checkpoint(tmp_path / "x", other, restored) == {"step": 1}
    assert torch.equal(torch.rand(3), wanted)
    assert same(weights(other), weights(model))
    before, after = optimizer.state_dict()["state"], restored.state_dict()["state"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[i][name], after[i][name]) for i in before for name in before[i])


# ---------------------------------------------------------------- the schedule


@given(st.floats(0, 1), st.floats(0, 0.99))
def test_the_rate_rises_to_its_peak_and_falls_to_zero_in_straight_lines(share, warmup):
    wanted = share / warmup if share < warmup else (1 - share) / (1 - warmup)
    assert rate(share, warmup) == pytest.approx(wanted, rel=1e-12)  # float64
    assert 0 <= rate(share, warmup) <= 1


def rate(share: float, warmup: float, schedule: str = "linear") -> float:
    return rate_factor(TrainConfig(warmup=warmup, schedule=schedule), share)


def test_the_rate_at_its_corners():
    assert [rate(share, 0.2) for share in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-12)
    assert [rate(share, 0.0) for share in (0, 0.5, 1)] == [1, 0.5, 0]
    assert [rate(share, 1.0) for share in (0, 0.5, 1)] == [0, 0.5, 1]
    assert rate(1.5, 0.2) == 0  # time has run over


def numbers(n: int) -> Split:
    """Examples that are their own row numbers."""
    return Split(inputs=(np.arange(n, dtype=np.float32)[:, None],))


@given(st.integers(1, 40), st.data(), st.integers(0, 5))
def test_every_example_comes_once_an_epoch_across_the_seams(n, data, seed):
    batch = data.draw(st.integers(1, n))
    epochs = 3
    feed = Feed(numbers(n), batch, seed=seed)
    steps = -(-epochs * n // batch)
    rows = [feed.rows(step) for step in range(steps)]
    assert all(len(r) == batch for r in rows)
    flat = np.concatenate(rows)[: epochs * n].reshape(epochs, n)
    assert (np.sort(flat, axis=1) == np.arange(n)).all()
    assert len(feed._orders) <= 3  # old orders are let go
    # a step has the same rows for one who begins there
    middle = steps // 2
    assert (Feed(numbers(n), batch, seed=seed).rows(middle) == rows[middle]).all()


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(Feed(numbers(30), 30, seed=seed).rows(step)) for step in range(3) for seed in range(3)]
    assert len(set(orders)) == 9


@pytest.mark.parametrize(("epochs", "batch_size", "steps"), [(1, 10, 5), (2, 16, 7), (0.5, 10, 3), (0.01, 10, 1), (2, 500, 2)])
def test_epochs_may_be_fractions_and_batches_larger_than_the_data(epochs, batch_size, steps):
    facts = fit(mlp(), VECTORS, cross_entropy, TrainConfig(epochs=epochs, batch_size=batch_size))
    assert facts["steps"] == steps
    assert facts["examples"] == steps * min(batch_size, 50)


def test_a_loss_an_epoch_is_the_mean_of_its_steps():
    seen = []
    facts = fit(mlp(), VECTORS, cross_entropy, TrainConfig(epochs=3, batch_size=10), progress=lambda _, loss: seen.append(loss))
    assert facts["losses"] == pytest.approx(np.reshape(seen, (3, 5)).mean(axis=1), rel=1e-12)  # float64


def test_training_learns():
    x = RNG.normal(size=(200, 6)).astype(np.float32)
    split = Split(inputs=(x,), targets=x[:, :3].argmax(axis=1))
    model = mlp()
    fit(model, split, cross_entropy, TrainConfig(epochs=20, batch_size=20, learning_rate=0.02))
    assert not model.training
    # guessing has 1/3; the rule is simple and the data are those that it learnt
    assert (predict(model, split).argmax(axis=1) == split.targets).mean() > 0.9


def test_time_ends_a_training_and_its_schedule():
    slow = lambda *_: time.sleep(0.02)  # noqa: E731
    config = TrainConfig(epochs=1e6, batch_size=50, max_seconds=0.5)
    started = time.monotonic()
    facts = fit(mlp(), VECTORS, cross_entropy, config, progress=slow)
    # half a second, and at most one step and its sleep more; the rest is for a busy machine
    assert 0.5 <= time.monotonic() - started < 2.5
    assert 1 <= facts["steps"] <= 25


def test_time_that_was_used_up_before_a_kill_is_not_given_again(tmp_path):
    model, config = mlp(), TrainConfig(epochs=100, batch_size=10, max_seconds=1.0)
    save_checkpoint(
        tmp_path / "x", model, make_optimizer(model, config), {"step": 7, "seconds": 1.5, "cpu_seconds": 1.5, "losses": [], "running": [0.0, 0]}
    )
    assert fit(model, VECTORS, cross_entropy, config, checkpoint=tmp_path / "x")["steps"] == 7


# ---------------------------------------------------------------- the step


@pytest.mark.parametrize(("batch_size", "accumulate", "n"), [(20, 4, 50), (20, 20, 50), (60, 4, 50)])
def test_accumulated_micro_batches_are_the_whole_batch(batch_size, accumulate, n):
    split = VECTORS.take(slice(0, n))
    one, many = (
        trained(mlp, split, TrainConfig(epochs=4, batch_size=batch_size, accumulate=a, optimizer="sgd", learning_rate=0.1))
        for a in (1, accumulate)
    )
    # float32 sums in another order, over a dozen steps: a few units of 6e-8 on weights below 1
    assert apart(one, many) < 2e-6
    assert apart(one, weights(mlp())) > 1e-3  # and there was something to tell apart


def test_channels_last_changes_the_layout_and_not_the_result():
    config = {"epochs": 2, "batch_size": 20, "optimizer": "sgd", "learning_rate": 0.05}
    plain, last = (trained(Net, IMAGES, TrainConfig(**config, channels_last=c)) for c in (False, True))
    assert last["conv.weight"].is_contiguous(memory_format=torch.channels_last)
    # other kernels, so float32 sums in another order, here through batch norm and four steps
    assert apart(plain, last) < 1e-4


def test_bfloat16_computes_in_it_and_keeps_float32_weights():
    config = {"epochs": 2, "batch_size": 20, "optimizer": "sgd", "learning_rate": 0.05}
    seen = set()

    def make() -> nn.Module:
        model = Net()
        model.conv.register_forward_hook(lambda _m, _i, output: seen.add(output.dtype))
        return model

    half, full = (trained(make, IMAGES, TrainConfig(**config, dtype=d)) for d in ("bfloat16", "float32"))
    assert seen == {torch.bfloat16, torch.float32}
    assert half["conv.weight"].dtype == torch.float32
    # eight bits of mantissa: 0.4 % of gradients that move weights by some 0.05 in four steps
    assert 0 < apart({"w": half["out.weight"]}, {"w": full["out.weight"]}) < 0.01


def test_weights_decay_and_biases_do_not():
    model = Net()
    groups = make_optimizer(model, TrainConfig(weight_decay=0.1)).param_groups
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert {name: decays[id(p)] for name, p in model.named_parameters()} == {
        "conv.weight": 0.1, "conv.bias": 0.0, "norm.weight": 0.0, "norm.bias": 0.0, "out.weight": 0.1, "out.bias": 0.0,
    }  # fmt: skip


def test_frozen_parameters_stay_as_they_are():
    def frozen() -> nn.Module:
        model = mlp()
        model[0].requires_grad_(False)
        return model

    before, after = weights(frozen()), trained(frozen, VECTORS, TrainConfig(epochs=2, batch_size=10))
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.equal(before["2.weight"], after["2.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_step_epoch_and_rows_and_harms_no_weight(value):
    model, calls, steps = mlp(), [], []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls.append(weights(model))
        return cross_entropy(output, target) * (value if len(calls) == 8 else 1)

    rows = Feed(VECTORS, 10, seed=2).rows(7)
    with pytest.raises(
        WorkloadError,
        match=rf"the loss is {value} at step 7 \(epoch 1, batch of rows {rows[0]}, {rows[1]}, …\): lower the learning rate",
    ):
        fit(model, VECTORS, loss, TrainConfig(epochs=3, batch_size=10), seed=2, progress=lambda s, _: steps.append(s))
    assert len(steps) == 7
    assert same(weights(model), calls[-1])


def test_several_inputs_are_several_arguments():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(6, 3)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.out(x) * scale

    split = Split(inputs=(VECTORS.inputs[0], np.full((50, 1), 2.0)), targets=VECTORS.targets)  # float64 is narrowed
    model = Two()
    fit(model, split, cross_entropy, TrainConfig(epochs=1, batch_size=10))
    with torch.inference_mode():
        wanted = model(torch.from_numpy(split.inputs[0]), torch.full((50, 1), 2.0)).numpy()
    assert predict(model, split, batch_size=50) == pytest.approx(wanted, abs=1e-6)  # the same float32 operations


def test_predicting_is_without_dropout_in_order_and_the_same_for_any_batch():
    model = Net().train()
    whole, parts = predict(model, IMAGES, batch_size=40), predict(model, IMAGES, batch_size=7)
    assert whole.dtype == np.float32
    # float32, another kernel for another batch
    assert parts == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64, np.float64, np.int32, np.bool_, np.uint8])
def test_any_number_type_reaches_the_model_with_its_values(dtype):
    values = np.array([[0, 1], [1, 0]]).astype(dtype)
    tensor = feed.tensor_of(values, torch.device("cpu"))
    assert tensor.tolist() == values.tolist()
    assert tensor.dtype != torch.float64


# ---------------------------------------------------------------- augmentation


def moved(image_CHW: np.ndarray, down: int, right: int, mirror: bool) -> np.ndarray:
    """One image moved, pixel by pixel, zeros coming in; then mirrored."""
    out = np.zeros_like(image_CHW)
    _, height, width = image_CHW.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                out[:, row, column] = image_CHW[:, row - down, column - right]
    return out[:, :, ::-1] if mirror else out


@pytest.mark.parametrize(("pad", "flip"), [(2, True), (1, False), (0, True)])
def test_each_image_is_moved_and_mirrored_as_one_by_one(pad, flip):
    batch = RNG.integers(1, 256, size=(300, 2, 5, 7), dtype=np.uint8)
    out = shift_and_flip(torch.from_numpy(batch), torch.Generator().manual_seed(0), pad=pad, flip=flip).numpy()
    ways = [
        (down, right, mirror)
        for down in range(-pad, pad + 1)
        for right in range(-pad, pad + 1)
        for mirror in ((False, True) if flip else (False,))
    ]
    used = [next(w for w in ways if (moved(image, *w) == result).all()) for image, result in zip(batch, out, strict=True)]
    counts = np.array([used.count(w) for w in ways])
    # each way is as likely as another: chi-square with len - 1 degrees of freedom, mean len - 1 and deviation
    # sqrt(2 (len - 1)); five deviations allowed
    expected, freedom = 300 / len(ways), max(len(ways) - 1, 1)
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_reflects_at_the_edges_as_numpy_does():
    batch = RNG.integers(0, 256, size=(200, 2, 5, 7), dtype=np.uint8)
    out = shift_and_flip(torch.from_numpy(batch), torch.Generator().manual_seed(0), pad=2, flip=False, reflect=True).numpy()
    padded = np.pad(batch, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    seen = set()
    for number, result in enumerate(out):
        at = [(y, x) for y in range(5) for x in range(5) if (padded[number, :, y : y + 5, x : x + 7] == result).all()]
        assert at
        seen.update(at)
    assert len(seen) == 25


def test_cuts_one_square_out_of_each_image():
    batch = RNG.integers(0, 100, size=(300, 2, 6, 8), dtype=np.uint8)
    batch[:, 1] += 100  # channels whose means differ
    given = torch.from_numpy(batch)
    out = shift_and_flip(given, torch.Generator().manual_seed(0), pad=0, flip=False, cut=3).numpy()
    means = batch.mean((2, 3)).astype(np.uint8)
    corners = set()
    for image, result, mean in zip(batch, out, means, strict=True):
        ways = []
        for y in range(4):
            for x in range(6):
                want = image.copy()
                want[:, y : y + 3, x : x + 3] = mean[:, None, None]
                ways += [(y, x)] if (want == result).all() else []
        assert len(ways) == 1
        corners.add(ways[0])
    assert len(corners) == 24


@pytest.mark.parametrize("how", [{}, {"reflect": True, "cut": 2}])
def test_augmentation_follows_its_generator_alone(how):
    batch = torch.rand(20, 1, 6, 6)
    results = []
    for seed in (0, 0, 1):
        torch.rand(3)
        results.append(shift_and_flip(batch, torch.Generator().manual_seed(seed), **how))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_augmentation_happens_in_training_only_and_on_the_first_input():
    seen = []

    def augment(images: Tensor, _generator: torch.Generator) -> Tensor:
        seen.append(tuple(images.shape))
        assert images.dtype == torch.uint8  # as it is stored
        return images

    model = Net()
    fit(model, IMAGES, cross_entropy, TrainConfig(epochs=1, batch_size=20), augment=augment)
    predict(model, IMAGES)
    assert seen == [(20, 1, 8, 8)] * 2
