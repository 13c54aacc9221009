"""`tenfold batch`: memory that is found without harm, a study from end to end, what it refuses, and that it goes on after a stop."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tenfold import memory
from tenfold.batch.calibrate import Point
from tenfold.batch.predict import StepTime
from tenfold.build import Builder
from tenfold.data.split import Split
from tenfold.errors import TenfoldError, WorkloadError
from tenfold.execute import Evaluator, plain_session
from tenfold.limits import free_memory, limit_bytes
from tenfold.plan import Plan
from tenfold.progress import Quiet, make_view
from tenfold.store import Store
from tenfold.sweep import study as study_module
from tenfold.sweep.branches import Branch
from tenfold.sweep.conclude import _able, best_rates, conclude, rate_exponent
from tenfold.sweep.paths import paths
from tenfold.sweep.reference import divided
from tenfold.sweep.study import _fits, study, to_branch
from tenfold.sweep.target import aimed
from tenfold.sweep.times import candidates
from tenfold.testing import blobs, small_workload
from tenfold.train.config import parts_of
from tenfold.train.feed import Feed
from tenfold.workload import Workload, load


def builder_of(workload: Workload, folder: Path) -> Builder:
    return Builder(workload, load(workload), Store(folder), seed=0, threads=1)


def take(count: int) -> torch.Tensor:
    return torch.ones(count)


def test_a_step_that_fits_says_what_it_took() -> None:
    found = memory.try_step(take, 25_000_000, torch.device("cpu"))
    assert found.reason is None
    assert 90e6 <= found.bytes <= 130e6


def test_a_step_that_asks_for_more_than_is_free_fails_and_we_live(monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 100_000_000)
    assert memory.try_step(take, 10_000_000, torch.device("cpu")).reason is None, "40 MB of 80"
    assert memory.try_step(take, 50_000_000, torch.device("cpu")).reason == memory.OUT_OF_MEMORY


def test_a_step_that_raises_dies_or_hangs_is_told_apart(monkeypatch) -> None:
    def raises(_batch: int) -> None:
        raise ValueError("no such batch")

    monkeypatch.setattr(memory, "PATIENCE_SECONDS", 1.0)
    cpu = torch.device("cpu")
    assert memory.try_step(raises, 1, cpu).reason == "ValueError: no such batch"
    assert memory.try_step(lambda _: os.kill(os.getpid(), signal.SIGKILL), 1, cpu).reason == memory.OUT_OF_MEMORY
    assert "did not end" in memory.try_step(lambda _: __import__("time").sleep(60), 1, cpu).reason


@pytest.mark.usefixtures("all_cores", "one_thread")
def test_a_training_step_can_be_tried_after_this_process_has_trained() -> None:
    torch.set_num_threads(2)

    def step(batch: int) -> None:
        net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512))
        net(torch.randn(batch, 64)).square().mean().backward()

    step(4096)  # with all threads: a child that waited for them would hang
    assert memory.try_step(step, 4096, torch.device("cpu")).reason is None


def test_a_backward_pass_has_as_many_examples_as_fit(tmp_path, monkeypatch) -> None:
    builder = builder_of(small_workload(), tmp_path)
    training = dataclasses.replace(builder.workload.training, batch_size=16)
    evaluator = Evaluator(builder, Plan(training=training, session=plain_session()), "train")
    assert evaluator.most_at_once(128) == 128
    tried: list[int] = []

    def small(_step, batch: int, _device) -> memory.Fit:
        tried.append(batch)
        return memory.Fit(batch=batch, bytes=None if batch > 40 else 1, reason=memory.OUT_OF_MEMORY if batch > 40 else None)

    monkeypatch.setattr("tenfold.execute.try_step", small)
    assert evaluator.most_at_once(128) == 32
    assert tried == [128, 64, 32]
    assert evaluator.most_at_once(8) == 16, "what the training has at once already fits"
    monkeypatch.setattr("tenfold.execute.try_step", lambda _step, batch, _device: memory.Fit(batch=batch, bytes=None, reason="it did not end within 60 s"))
    assert evaluator.most_at_once(1024) == 256, "no more is tried once it took too long twice"


def test_free_memory_is_what_a_machine_may_have() -> None:
    assert 0 < free_memory() <= limit_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/slice/job", "slice", ("memory.max", "memory.current", "inactive_file")),
        ("0::/elsewhere", ".", ("memory.max", "memory.current", "inactive_file")),  # in a container its own is at the root
        ("4:cpu,memory:/slice/job", "memory/slice", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_control_groups_above_limit_memory_too_and_caches_of_files_are_free(tmp_path, monkeypatch, line, folder, names) -> None:
    monkeypatch.setattr("tenfold.limits.PROC", tmp_path / "proc")
    monkeypatch.setattr("tenfold.limits.GROUPS", tmp_path / "groups")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"7:pids:/\n{line}\n")
    (tmp_path / "groups" / folder / "job").mkdir(parents=True)
    limit, taken, cache = names
    for place, most in ((folder, "1000000"), (f"{folder}/job", "max")):
        (tmp_path / "groups" / place / limit).write_text(f"{most}\n")
        (tmp_path / "groups" / place / taken).write_text("700000\n")
        (tmp_path / "groups" / place / "memory.stat").write_text(f"anon 100000\n{cache} 500000\n")
    assert (limit_bytes(), free_memory()) == (1_000_000, 800_000)


@pytest.mark.parametrize(("most", "expected"), [(1, [1]), (2, [1, 2]), (24, [1, 2, 4, 8, 16, 24]), (64, [1, 2, 4, 8, 16, 32, 64])])
def test_sizes_are_powers_of_two_and_all_the_data(most: int, expected: list[int]) -> None:
    assert list(candidates(1, most)) == expected


@pytest.mark.parametrize(("batch", "micro", "parts"), [(64, 64, 1), (64, 32, 2), (60, 32, 2), (7, 3, 3), (1009, 512, 2)])
def test_a_batch_is_cut_into_parts_of_about_one_size_that_fit(batch: int, micro: int, parts: int) -> None:
    assert parts_of(batch, micro) == parts
    split = Split(inputs=(np.zeros((batch, 1), np.float32),))
    sizes = [len(x) for (x,), _ in Feed(split, batch).parts(0, torch.device("cpu"), count=parts)]
    assert sum(sizes) == batch
    assert max(sizes) <= micro
    assert max(sizes) - min(sizes) <= 1


def test_branched_sizes_lie_around_the_best_and_hold_the_references() -> None:
    sizes = [2**i for i in range(12)]
    time = StepTime(sizes=tuple(sizes), seconds=tuple(1e-3 + 1e-5 * s for s in sizes))
    some = to_branch(sizes, time, 100.0, base=32)  # the best is √(100 · 100) = 100
    assert 32 in some
    assert 128 in some
    assert all(b / a >= 2 for a, b in itertools.pairwise(some))
    assert 1 not in some, "a hundred times the steps"


@pytest.mark.parametrize(
    ("missed", "reached", "able"),
    [([], [32], [1, 8, 32, 128, 512]), ([512], [32, 128], [1, 8, 32, 128]), ([8, 128], [32], [32]), ([1, 8], [32], [32, 128, 512]), ([128], [32, 512], [1, 8, 32, 512])],
)
def test_what_missed_and_what_lies_beyond_it_is_not_recommended(missed: list[int], reached: list[int], able: list[int]) -> None:
    assert _able([1, 8, 32, 128, 512], 32, missed, reached) == able


class AtLeastTwo(nn.Module):
    """Takes no batch of one, as a model does that squeezes it away."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            raise RuntimeError("one too few")
        return self.net(x.flatten(1))


def test_a_size_whose_memory_is_gone_by_now_is_left_out_of_the_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = builder_of(small_workload(), tmp_path)
    timed, said = study_module.step_times, list[str]()

    def short(steps: dict, *, seconds: float) -> dict:
        if max(steps) > 16:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return timed(steps, seconds=seconds)

    monkeypatch.setattr(study_module, "step_times", short)
    view = Quiet()
    monkeypatch.setattr(view, "say", said.append, raising=False)
    found = study_module._times(small, [8, 16, 32, 64], 8, 64, 5.0, view)
    assert list(found) == ["8", "16"]
    assert [s.partition(" ran")[0] for s in said] == ["batch 64", "batch 32"]
    with pytest.raises(WorkloadError, match="does not fit into memory"):
        study_module._times(small, [32, 64], 32, 64, 5.0, view)


def test_paths_are_drawn_as_far_as_time_memory_and_the_model_let_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tenfold.sweep.paths.SNAPSHOTS", 3)
    builder = builder_of(small_workload(), tmp_path)
    whole, less = paths(builder, seconds=60.0), paths(builder, seconds=60.0, most=32)
    assert (whole["examples"], len(whole["x"]), less["examples"], len(less["x"])) == (240, 21, 32, 11)
    assert list(whole["paths"]) == ["full batch", "batches of 16", "one by one"]
    assert not whole["left_out"]
    assert "too long" in paths(builder, seconds=0.0)["reason"]
    one_less = paths(builder_of(changed(model=AtLeastTwo), tmp_path), seconds=60.0)
    assert list(one_less["paths"]) == ["full batch", "batches of 16"]
    assert one_less["left_out"] == {"one by one": "one too few"}
    monkeypatch.setattr("tenfold.sweep.paths.MOST_BYTES", 1)
    assert "weights along three paths" in paths(builder, seconds=60.0)["reason"]


@pytest.mark.parametrize(("target", "rate", "reached"), [(0.9, 3e-3, True), (0.5, 1e-5, False)])
def test_the_reference_is_as_long_as_the_loss_that_is_asked_for_takes(tmp_path, target: float, rate: float, reached: bool) -> None:
    known: dict[str, float] = {}

    def remember(key: str, work) -> float:
        known[key] = work()
        return known[key]

    training = dataclasses.replace(small_workload().training, learning_rate=rate)
    found = aimed(builder_of(changed(training=training), tmp_path), training, target, most=120, remember=remember)
    by_steps = {int(key.partition(":")[2]): loss for key, loss in known.items()}
    assert found.reached is reached
    assert found.loss == (target if reached else min(by_steps.values()))
    if reached:
        assert by_steps[found.trained.meta["steps"]] <= target
        assert found.steps <= found.trained.meta["steps"]
        assert any(loss > target for loss in by_steps.values()) or min(by_steps) <= 2
    else:
        assert sorted(by_steps) == [30, 60, 120]
        assert by_steps[found.steps] == found.loss


def test_a_batch_that_was_branched_gets_the_rate_that_it_was_best_with() -> None:
    def branch(batch: int, rate: float, loss: float, checkpoint: int = 1) -> Branch:
        return Branch(checkpoint=checkpoint, repeat=0, batch=batch, steps=10, multiple=1.0, learning_rate=rate, loss=loss)

    training = dataclasses.replace(small_workload().training, optimizer="sgd", batch_size=32, learning_rate=0.1)
    branches = [branch(32, 0.1, 0.5), branch(32, 0.2, 0.6), branch(512, 0.16, 0.7), branch(512, 0.32, 0.5), branch(512, 0.08, 0.4, 2), branch(512, 1.0, math.nan, 2)]
    points = [Point(checkpoint=c, noise=20.0, batch=b, steps=s) for c in (1, 2) for b, s in ((32, 100), (512, 10))]
    noises = [{"value": 20.0, "low": 10.0, "high": 40.0}] * 4
    time = StepTime(sizes=(32, 512), seconds=(1.0, 1.1))
    found = conclude(base=32, steps=100, training=training, sizes=(32, 512), wall=time, cpu=time, noises=noises, points=points, branches=branches)
    assert found["recommended"]["time"]["best"] == 512
    assert found["recommended"]["time"]["learning_rate"] == pytest.approx(math.sqrt(0.32 * 0.08))
    assert best_rates(branches) == pytest.approx({32: 0.1, 512: math.sqrt(0.32 * 0.08)})
    assert rate_exponent(branches) is None, "two sizes are no law"


def test_the_error_of_noise_where_nothing_branched_is_in_the_interval() -> None:
    training = dataclasses.replace(small_workload().training, batch_size=32)
    points = [Point(checkpoint=c, noise=20.0, batch=b, steps=100 * (1 + 40 / b) / (1 + 40 / 32)) for c in (1, 2) for b in (8, 32, 128)]
    time = StepTime(sizes=(8, 32, 128), seconds=(1.0, 1.0, 1.1))

    def critical(low: float | None, high: float | None) -> dict[str, float | None]:
        noises = [{"value": 20.0, "low": low, "high": high} for _ in range(4)]
        found = conclude(base=32, steps=100, training=training, sizes=(8, 32, 128), wall=time, cpu=time, noises=noises, points=points, branches=[])
        return found["critical"]

    sure, unsure, open_ended = critical(20.0, 20.0), critical(5.0, 80.0), critical(0.0, None)
    assert sure["value"] == unsure["value"] == pytest.approx(40, rel=0.03)
    assert open_ended["low"] < unsure["low"] < sure["low"] <= sure["high"] < unsure["high"] < open_ended["high"]


class Exploding(nn.Module):
    """Has no finite gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.flatten(1)) * (torch.inf if torch.is_grad_enabled() and len(x) != 24 else 1.0)


@pytest.mark.parametrize(
    ("examples", "most", "expected"), [(60_000, 4096, (8, 32)), (60_000, 1, (8, 1)), (240, 240, (8, 30)), (12, 12, (6, 2)), (3, 3, (3, 1)), (2, 2, (2, 1))]
)
def test_a_step_that_measures_noise_has_parts_of_two_examples_where_it_can(examples: int, most: int, expected: tuple[int, int]) -> None:
    assert divided(examples, most) == expected


def test_noise_that_cannot_be_measured_is_marked_and_the_sweep_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tenfold.sweep.study.SLOWEST_SHARE", 1.0)  # all sizes fit, on a busy machine too
    found = study(changed(model=Exploding), budget=30.0, out=tmp_path / "out", view="quiet").document
    assert all("no gradient was finite" in n["reason"] for n in found["noise"])
    assert found["points"] == []
    assert not found["checked"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tenfold.sweep.study.SLOWEST_SHARE", 1.0)  # all sizes fit, on a busy machine too
        return study(small_workload(), budget=60.0, out=folder / "out", view="quiet")


def test_a_study_recommends_a_batch_and_says_on_what_grounds(found) -> None:
    document = json.loads((found.folder / "batch.json").read_text())
    assert document == json.loads(json.dumps(found.document))
    sizes = [f["batch"] for f in document["fits"] if f["reason"] is None]
    for choice in document["recommended"].values():
        assert choice["low"] <= choice["best"] <= choice["high"] or choice["low"] >= choice["best"] >= choice["high"]
        assert choice["best"] in {*sizes, document["reference"]["batch"]}
        assert choice["learning_rate"] > 0
    assert max(sizes) == 240, "all the data is a batch too"
    times = {int(b): t["wall"]["value"] for b, t in document["step_milliseconds"].items()}
    assert times[240] > times[1]
    assert [n["share"] for n in document["noise"]] == [0.05, 0.2, 0.5, 0.8]
    best = document["recommended"]["time"]["best"]
    over = {c["batch"]: c["seconds"]["value"] for c in document["curve"]}
    able = _able(sorted(over), document["reference"]["batch"], document["missed"]["sizes"], [p["batch"] for p in document["points"]])
    assert over[best] == min(over[b] for b in able)


def test_the_page_needs_nothing_beside_it(found) -> None:
    page = (found.folder / "batch.html").read_text()
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert f"A batch of {found.document['recommended']['time']['best']}" in page


def test_a_study_that_is_gone_on_with_measures_nothing_anew(found) -> None:
    before = (found.folder / "ledger.jsonl").read_bytes()
    again = study(small_workload(), budget=60.0, out=found.folder, resume=True, view="quiet")
    assert (found.folder / "ledger.jsonl").read_bytes() == before
    assert again.document["recommended"] == found.document["recommended"]
    with pytest.raises(TenfoldError, match="another budget_seconds"):
        study(small_workload(), budget=61.0, out=found.folder, resume=True, view="quiet")


def summed(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output, target, reduction="sum")


def changed(**changes) -> Workload:
    return dataclasses.replace(small_workload(), **changes)


def of_values(split: Split) -> Split:
    """The same images, with three values each to be told instead of a class."""
    return Split(inputs=split.inputs, targets=np.eye(3, dtype=np.float32)[split.targets])


@pytest.mark.parametrize(
    ("workload", "budget", "message"),
    [
        (changed(loss=summed), 60.0, "it is a sum over the batch"),
        (changed(loss="mse", metric="squared_error", train=of_values(blobs(1)), valid=of_values(blobs(30)), test=of_values(blobs(30))), 60.0, "one example"),
        (changed(train=blobs(1)), 60.0, "one class only"),
        (changed(), 0.0, "budget is 0"),
        (changed(), math.nan, "budget is nan"),
        (changed(train=None), 60.0, "train"),
    ],
)
def test_what_cannot_be_studied_is_refused_in_a_sentence(tmp_path, workload, budget, message) -> None:
    with pytest.raises((TenfoldError, WorkloadError), match=message):
        study(workload, budget=budget, out=tmp_path / "out", view="quiet")
    assert not (tmp_path / "out").exists()


class Normalised(nn.Module):
    """Batch normalisation of a vector cannot take a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_a_batch_that_cannot_be_normalised_is_marked_and_the_sweep_goes_on(tmp_path) -> None:
    found = study(changed(model=Normalised), budget=30.0, out=tmp_path / "out", view="quiet").document
    assert "more than 1 value" in found["fits"][0]["reason"]
    assert found["fits"][1]["reason"] is None
    assert "1" not in found["step_milliseconds"]


def test_a_rate_at_which_branches_diverge_is_marked_and_the_sweep_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tenfold.sweep.branches.MULTIPLES", (1.0, 1e30))
    training = dataclasses.replace(small_workload().training, optimizer="sgd", learning_rate=0.05)
    found = study(changed(training=training), budget=30.0, out=tmp_path / "out", view="quiet").document
    assert {b["multiple"] for b in found["branches"] if b["loss"] is None} == {1e30}
    assert found["points"]


def test_a_batch_larger_than_the_data_is_all_of_it(tmp_path) -> None:
    training = dataclasses.replace(small_workload().training, batch_size=1024)
    found = study(changed(training=training), budget=30.0, out=tmp_path / "out", view="quiet").document
    assert found["reference"]["batch"] == 240
    assert {p["batch"] for p in found["points"]} >= {240}


def test_the_workloads_own_batch_is_tried_where_smaller_ones_take_too_long(tmp_path, monkeypatch) -> None:
    builder = builder_of(small_workload(), tmp_path)
    monkeypatch.setattr("tenfold.sweep.study.SLOWEST_SHARE", 0.0)
    assert [f["batch"] for f in _fits(builder, 60.0, make_view("quiet"))] == [1, 24]


def test_a_batch_of_its_own_that_cannot_be_trained_with_is_one_sentence(tmp_path) -> None:
    training = dataclasses.replace(small_workload().training, batch_size=1)
    with pytest.raises(WorkloadError, match="own batch of 1 cannot be trained with"):
        study(changed(model=Normalised, training=training), budget=30.0, out=tmp_path / "out", view="quiet")
