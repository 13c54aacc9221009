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
from tenfold.batch.predict import StepTime
from tenfold.build import Builder
from tenfold.data.split import Split
from tenfold.errors import TenfoldError, WorkloadError
from tenfold.execute import Evaluator, plain_session
from tenfold.plan import Plan
from tenfold.store import Store
from tenfold.sweep.conclude import _able
from tenfold.sweep.paths import paths
from tenfold.sweep.study import study, to_branch
from tenfold.sweep.times import candidates
from tenfold.testing import small_workload
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
    assert 0 < memory.free_memory() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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


def test_a_model_without_paths_or_memory_for_them_has_no_picture(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tenfold.sweep.paths.SNAPSHOTS", 3)
    assert paths(builder_of(small_workload(), tmp_path), seconds=60.0, most=32) is None
    assert paths(builder_of(changed(model=AtLeastTwo), tmp_path), seconds=60.0) is None
    assert paths(builder_of(small_workload(), tmp_path), seconds=60.0) is not None


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
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


@pytest.mark.parametrize(
    ("workload", "budget", "message"),
    [
        (changed(loss=summed), 60.0, "it is a sum over the batch"),
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


def test_a_batch_of_its_own_that_cannot_be_trained_with_is_one_sentence(tmp_path) -> None:
    training = dataclasses.replace(small_workload().training, batch_size=1)
    with pytest.raises(WorkloadError, match="own batch of 1 cannot be trained with"):
        study(changed(model=Normalised, training=training), budget=30.0, out=tmp_path / "out", view="quiet")
