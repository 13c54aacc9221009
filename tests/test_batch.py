"""The noise scale of gradients: the estimators on numbers, and both meters against gradients that are taken one by one."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, multiprocessing, nn

from tenfold.batch import ExampleMeter, NoiseMeter
from tenfold.batch.estimate import Smoothed, fieller, moments

# ---------------------------------------------------------------- numbers


def steps_of(rng: np.random.Generator, signal: np.ndarray, spread: np.ndarray, sizes: list[int], steps: int) -> Smoothed:
    """Moments of steps whose examples' gradients are normal around `signal` with deviations `spread`."""
    smoothed, examples = Smoothed(), sum(sizes)
    for _ in range(steps):
        parts = [rng.normal(signal, spread, (b, len(signal))).sum(0) / examples for b in sizes]
        squares = sum(float(h @ h) / b for h, b in zip(parts, sizes, strict=True))
        whole = sum(parts)
        smoothed.add(moments(squares, float(whole @ whole), count=len(sizes), examples=examples), examples)
    return smoothed


@pytest.mark.parametrize("sizes", [[8, 8, 8, 8], [16, 8, 4], [1] * 16], ids=["equal", "unequal", "single examples"])
def test_moments_have_no_bias_whatever_the_parts(sizes: list[int]) -> None:
    signal, spread = np.full(20, 0.5), np.linspace(0.5, 2, 20)
    found = steps_of(np.random.default_rng(0), signal, spread, sizes, 6_000).noise_scale()
    assert found.signal == pytest.approx(signal @ signal, rel=0.02)
    assert found.noise == pytest.approx(spread @ spread, rel=0.02)
    assert found.examples == 6_000 * sum(sizes)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, signal, spread = np.random.default_rng(1), np.full(10, 0.3), np.linspace(0.5, 2, 10)
    truth = spread @ spread / (signal @ signal)
    intervals = [steps_of(rng, signal, spread, [8, 8], 60).noise_scale() for _ in range(600)]
    assert 0.87 < np.mean([i.low <= truth <= i.high for i in intervals]) < 0.94


def test_beale_takes_the_bias_out_of_the_ratio() -> None:
    rng, signal, spread = np.random.default_rng(2), np.full(10, 0.3), np.ones(10)
    truth = spread @ spread / (signal @ signal)
    found = [steps_of(rng, signal, spread, [4, 4], 30).noise_scale() for _ in range(1_000)]
    bias = np.mean([f.value for f in found]) / truth - 1
    assert abs(bias) < 0.02 < np.mean([f.noise / f.signal for f in found]) / truth - 1


def test_without_a_gradient_the_noise_scale_has_no_upper_end() -> None:
    rng = np.random.default_rng(3)
    found = [steps_of(rng, np.zeros(10), np.ones(10), [8, 8], 100).noise_scale() for _ in range(200)]
    assert 0.9 < np.mean([f.high == math.inf for f in found]) <= 0.98
    assert all(f.low <= f.value <= f.high for f in found)
    assert np.median([f.low for f in found]) > 50
    assert next(f for f in found if f.high == math.inf).to_json()["high"] is None


def test_a_gradient_over_all_examples_has_the_noise_that_these_have() -> None:
    rng = np.random.default_rng(5)
    of_each = rng.normal(0.2, 1.0, (64, 10))  # gradients of 64 examples, all there are
    mean = of_each.mean(0)
    truth = of_each.var(0, ddof=1).sum() / (mean @ mean)
    weights = nn.Parameter(torch.zeros(10))
    holder = nn.ParameterList([weights])
    meters = [NoiseMeter(holder, population=p) for p in (64, None)]
    for _ in range(2_000):
        weights.grad = None
        batch = torch.tensor(of_each[rng.permutation(64)[:32]], dtype=torch.float32)
        for part in (batch[:16], batch[16:]):
            (weights @ part.mean(0) / 2).backward()
            for meter in meters:
                meter.add(16)
        for meter in meters:
            meter.step()
    found, of_any = (m.noise_scale(level=0.999) for m in meters)
    assert found.value == pytest.approx(truth, rel=0.06)
    assert found.low < truth < found.high
    assert 1 / of_any.value == pytest.approx(1 / truth - 1 / 64, rel=0.05)


def test_few_steps_have_a_value_and_no_interval() -> None:
    found = steps_of(np.random.default_rng(4), np.ones(10), np.ones(10), [8, 8], 2).noise_scale()
    assert (found.low, found.high) == (0.0, math.inf)
    assert 0 < found.value < 5
    with pytest.raises(ValueError, match="no step"):
        Smoothed().noise_scale()


def test_fieller_solves_what_it_says() -> None:
    of_means = np.array([[0.04, 0.01], [0.01, 0.09]])
    for ratio in fieller(2.0, 3.0, of_means, 1.645):
        error = math.sqrt(of_means[1, 1] - 2 * ratio * of_means[0, 1] + ratio**2 * of_means[0, 0])
        assert abs(3.0 - ratio * 2.0) / error == pytest.approx(1.645)


def test_old_steps_fade() -> None:
    smoothed = Smoothed(half_life=10)
    for value in [1.0] * 200 + [4.0] * 200:
        smoothed.add(np.array([1.0, value]), 8)
    assert smoothed.noise_scale().value == pytest.approx(4.0, abs=1e-3)
    assert smoothed.noise_scale().effective_steps == pytest.approx((1 + 0.5**0.1) / (1 - 0.5**0.1), rel=1e-3)


# ---------------------------------------------------------------- meters


class Tied(nn.Module):
    """Characters in, characters out, by one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.out(self.norm(h + self.mix(torch.tanh(self.mix(h))))).mean(1)


class First(nn.Module):
    """Of each row, the first value."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (lambda: nn.Sequential(nn.Linear(9, 7), nn.ReLU(inplace=True), nn.Linear(7, 11, bias=False)), (9,)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.GroupNorm(2, 6), nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, (3, 2), groups=2, dilation=(1, 2), bias=False), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding="same", padding_mode="circular"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 11),
        ),
        (4, 9, 9),
    ),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(5, 11)), (3, 8)),
    "few tokens, many features": (lambda: nn.Sequential(nn.Linear(12, 10), nn.RMSNorm(10), nn.Flatten(), nn.Linear(30, 11)), (3, 12)),
    "many tokens": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, bias=False), nn.Flatten(), nn.Linear(80, 11)), (20, 3)),
    "categories": (lambda: nn.Sequential(First(), nn.Embedding(11, 4), nn.Linear(4, 11)), ()),
    "embedding": (lambda: nn.Sequential(nn.Embedding(11, 4, padding_idx=2), nn.Flatten(), nn.Linear(24, 11)), ()),
    "tied": (Tied, ()),
}  # fmt: skip


def batch_for(shape: tuple[int, ...], n: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, *shape) if shape else torch.randint(0, 11, (n, 6))
    return x, torch.randint(0, 11, (n,))


def gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(nn.functional.cross_entropy(net(x), y), list(net.parameters()))])


@pytest.mark.parametrize("name", NETS)
def test_example_meter_is_exact(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = make()
    x, y = batch_for(shape, 6)
    one_by_one = torch.stack([gradient(net, x[i : i + 1], y[i : i + 1]) for i in range(6)]).double()
    whole = one_by_one.mean(0)
    signal, noise = moments(float(one_by_one.square().sum()) / 36, float(whole @ whole), count=6, examples=6)
    meter = ExampleMeter(net)
    nn.functional.cross_entropy(net(x), y).backward()
    meter.add()
    found = meter.noise_scale()
    assert found.noise == pytest.approx(float(noise), rel=1e-4)
    assert found.signal == pytest.approx(float(signal), rel=1e-3, abs=1e-4 * float(noise))
    with torch.no_grad():
        net(x)  # answers that nobody learns from do not count
    meter.close()


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation_shares_add_up_to_the_gradient(training: bool) -> None:
    from tenfold.batch.layers import shares_of

    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3).train(training)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    x, weights = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    out = norm(x)
    (out * weights).sum().backward()
    share = shares_of(norm)
    assert share is not None
    for parameter, of_examples in share(norm, x, weights).items():
        assert of_examples.shape == (5, 3)
        torch.testing.assert_close(of_examples.sum(0), getattr(norm, parameter).grad)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("norm", [
    nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval(),
], ids=["2d", "no momentum", "no running statistics", "1d", "evaluating"])  # fmt: skip
def test_shares_by_the_statistics_that_autograd_keeps(norm: nn.Module, half: bool) -> None:
    from tenfold.batch.layers import as_normalised, shares_of, statistics_of

    torch.manual_seed(0)
    norm.zero_grad()
    for shape in [(5, 3, 4, 4)] if isinstance(norm, nn.BatchNorm2d) else [(5, 3), (5, 3, 7)]:
        x = (2 * torch.randn(shape) + 3).requires_grad_()
        norm.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = norm(x)
        found, weights = statistics_of(out), torch.randn_like(out)
        assert (found is None) == (not norm.training)
        if found is None:
            return
        (out * weights).sum().backward()
        share = shares_of(norm, normalised=True)
        assert share is not None
        rows = as_normalised(x.detach(), found)
        exact = share(norm, rows, weights.float())
        for parameter, of_examples in exact.items():
            torch.testing.assert_close(of_examples.sum(0), getattr(norm, parameter).grad, rtol=1e-4, atol=1e-4)
        for parameter, of_examples in share(norm, rows[:2], weights[:2].float()).items():
            torch.testing.assert_close(of_examples, exact[parameter][:2])


def test_a_sample_of_the_rows_is_right_on_average() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 11))
    whole, sampled = ExampleMeter(net), ExampleMeter(net, sample=4)
    for _ in range(400):
        x, y = batch_for((9,), 16)
        net.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        whole.add()
        sampled.add()
    assert sampled.noise_scale().noise == pytest.approx(whole.noise_scale().noise, rel=0.03)


def micro_batches(net: nn.Module, meter: NoiseMeter, x: Tensor, y: Tensor, sizes: list[int]) -> None:
    net.zero_grad()
    for part, answer in zip(x.split(sizes), y.split(sizes), strict=True):
        (nn.functional.cross_entropy(net(part), answer) * (len(part) / len(x))).backward()
        meter.add(len(part))
    meter.step()


@pytest.mark.parametrize("sizes", [[4, 4, 4], [6, 4, 2]])
def test_noise_meter_is_exact(sizes: list[int]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(11, 4, sparse=True), nn.Flatten(), nn.Linear(24, 11))
    x, y = batch_for((), 12)
    parts = [(gradient_of.double(), n) for gradient_of, n in ((dense_gradient(net, a, b), len(a)) for a, b in zip(x.split(sizes), y.split(sizes), strict=True))]
    whole = sum(g * (n / 12) for g, n in parts)
    signal, noise = moments(sum(float(g @ g) * n / 144 for g, n in parts), float(whole @ whole), count=3, examples=12)
    meter = NoiseMeter(net)
    micro_batches(net, meter, x, y, sizes)
    found = meter.noise_scale()
    assert found.noise == pytest.approx(float(noise), rel=1e-4)
    assert found.signal == pytest.approx(float(signal), rel=1e-3, abs=1e-4 * abs(float(noise)))


def dense_gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    grads = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), list(net.parameters()))
    return torch.cat([(g.to_dense() if g.is_sparse else g).flatten() for g in grads])


def test_scaled_losses_give_the_same_ratio() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 11))
    plain = NoiseMeter(net)
    x, y = batch_for((9,), 12)
    micro_batches(net, plain, x, y, [1] * 12)
    plain.close()
    net.zero_grad()
    scaled = ExampleMeter(net)
    (nn.functional.cross_entropy(net(x), y) * 1024).backward()
    scaled.add()
    assert scaled.noise_scale().value == pytest.approx(plain.noise_scale().value, rel=1e-3)


def test_groups_have_noise_scales_of_their_own_and_add_up() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 11))
    meter = NoiseMeter(net, groups={"first": net[0].parameters(), "last": net[2].parameters()})
    for _ in range(5):
        micro_batches(net, meter, *batch_for((9,), 12), [6, 6])
    assert meter.noise_scale("first").noise + meter.noise_scale("last").noise == pytest.approx(meter.noise_scale().noise)
    with pytest.raises(ValueError, match="no group 'middle': first, last"):
        meter.noise_scale("middle")


def test_a_meter_goes_on_where_it_was_and_skips_what_is_not_finite() -> None:
    torch.manual_seed(0)
    net = nn.Linear(9, 11)
    meter = NoiseMeter(net)
    for _ in range(5):
        micro_batches(net, meter, *batch_for((9,), 12), [6, 6])
    again = NoiseMeter(net)
    again.load_state_dict(meter.state_dict())
    x, y = batch_for((9,), 12)
    for m in (meter, again):
        m.close()
    third = NoiseMeter(net)
    third.load_state_dict(again.state_dict())
    micro_batches(net, third, x * math.nan, y, [6, 6])
    assert third.skipped == 1
    assert third.noise_scale() == meter.noise_scale()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ExampleMeter(nn.LSTM(3, 4)), "not known for LSTM"),
        (lambda: ExampleMeter(nn.Embedding(3, 4, scale_grad_by_freq=True)), "not known for Embedding"),
        (lambda: NoiseMeter(nn.Linear(3, 4), population=0), "population is 0"),
        (lambda: ExampleMeter(nn.Linear(3, 4), normalisations_only=True), "no normalisation layer"),
        (lambda: ExampleMeter(nn.Linear(3, 4), sample=0), "sample is 0"),
        (lambda: NoiseMeter(nn.ReLU()), "none of the parameters"),
        (lambda: NoiseMeter(nn.Linear(3, 4), half_life=0), "half_life is 0"),
        (lambda: NoiseMeter(nn.Linear(3, 4), groups={"x": nn.Linear(1, 1).parameters()}), "group 'x' has no parameter"),
        (lambda: NoiseMeter(nn.Linear(3, 4)).add(3), "before any backward pass"),
        (lambda: NoiseMeter(nn.Linear(3, 4)).step(), r"without add\(\)"),
        (lambda: ExampleMeter(nn.Linear(3, 4)).add(), "before any backward pass"),
    ],
)
def test_wrong_use_says_what_to_do(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_step_of_one_part_says_what_to_use() -> None:
    net = nn.Linear(9, 11)
    meter = NoiseMeter(net)
    x, y = batch_for((9,), 4)
    with pytest.raises(ValueError, match="use ExampleMeter"):
        micro_batches(net, meter, x, y, [4])
    micro_batches(net, meter, x, y, [2, 2])  # and goes on
    assert meter.noise_scale().steps == 1


def test_layers_with_another_first_dimension_are_refused() -> None:
    class Flattening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(11, 4), nn.Linear(4, 11)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.embed(x).flatten(0, 1))

    net = Flattening()
    meter = ExampleMeter(net)
    net(torch.randint(0, 11, (3, 6))).sum().backward()
    with pytest.raises(ValueError, match="first dimensions of 3, 18"):
        meter.add()


@pytest.mark.parametrize(("kind", "message"), [(ExampleMeter, "2 backward passes"), (NoiseMeter, "several backward passes")])
def test_passes_that_were_not_added_are_noticed(kind: type, message: str) -> None:
    net = nn.Linear(9, 11)
    meter = kind(net)
    for _ in range(2):
        net(torch.randn(4, 9)).sum().backward()
    with pytest.raises(ValueError, match=message):
        meter.add(*([4] if kind is NoiseMeter else []))


def test_recomputed_activations_are_measured_once() -> None:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    body, head = nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7), nn.Tanh()), nn.Linear(7, 11)
    net = nn.Sequential(body, head)
    x, y = batch_for((9,), 6)
    found, moved = [], []
    for recompute in (False, True):
        meter = ExampleMeter(net)
        net.zero_grad()
        body[1].reset_running_stats()
        hidden = checkpoint(body, x, use_reentrant=False) if recompute else body(x)
        nn.functional.cross_entropy(head(hidden), y).backward()
        meter.add()
        meter.close()
        found.append(meter.noise_scale())
        moved.append(int(body[1].num_batches_tracked))
    assert found[0].noise == pytest.approx(found[1].noise)
    assert moved == [1, 2], "once where it is computed, once where it is computed again: not where it is looked at"


class WithPlaces(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.embed, self.place, self.head = nn.Embedding(11, 5), nn.Embedding(context, 5), nn.Linear(5, 11)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(x) + self.place(torch.arange(x.shape[1])))
        return out


@pytest.mark.parametrize(("batch", "message"), [(6, "one cannot be told from the other"), (4, "the first is not always the batch")])
def test_places_that_could_be_examples_are_refused(batch: int, message: str) -> None:
    net = WithPlaces(6)
    meter = ExampleMeter(net)
    net(torch.randint(0, 11, (batch, 6))).sum().backward()
    with pytest.raises(ValueError, match=message):
        meter.add()


def test_gradients_in_another_layout_weigh_the_same() -> None:
    from tenfold.batch.measured import square

    gradient = torch.randn(4, 3, 5, 5)
    for other in (gradient, gradient.contiguous(memory_format=torch.channels_last), gradient.transpose(0, 1).contiguous().transpose(0, 1), gradient.double()):
        assert float(square(other)) == pytest.approx(float((gradient.double() ** 2).sum()), rel=1e-5)
    assert float(square(gradient.half())) == pytest.approx(float((gradient.double() ** 2).sum()), rel=1e-2)


def rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 11)))
    x, y = batch_for((9,), 16)
    mine = slice(rank * 8, rank * 8 + 8)
    meter = NoiseMeter(net)
    with net.no_sync():  # a micro-batch that waits for the next one
        (nn.functional.cross_entropy(net(x[mine][:4]), y[mine][:4]) / 2).backward()
        meter.add(4)
    (nn.functional.cross_entropy(net(x[mine][4:]), y[mine][4:]) / 2).backward()
    meter.add(4)
    meter.step()
    found = meter.noise_scale()
    Path(folder, f"{rank}.txt").write_text(f"{found.signal} {found.noise} {found.examples}", encoding="utf-8")
    torch.distributed.barrier()  # neither leaves while the other still listens
    del net, meter  # they hold the process group, whose threads should end here, not while the interpreter is taken down
    gc.collect()
    torch.distributed.destroy_process_group()


def test_two_ranks_find_what_micro_batches_find(tmp_path: Path) -> None:
    multiprocessing.spawn(rank, (str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 11))
    x, y = batch_for((9,), 16)
    meter = NoiseMeter(net)
    micro_batches(net, meter, x, y, [4, 4, 4, 4])
    wanted = meter.noise_scale()
    for found in (Path(tmp_path, f"{r}.txt").read_text(encoding="utf-8").split() for r in range(2)):
        assert [float(f) for f in found] == pytest.approx([wanted.signal, wanted.noise, 16], rel=1e-4, abs=1e-6)
