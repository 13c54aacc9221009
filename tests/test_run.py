"""The main job, end to end, on a task that trains in a second."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tenfold import device, final, pipeline, search
from tenfold.bundle import Bundle, write_bundle
from tenfold.certify import Standing, chain, front, order_candidates, record_opening, safety
from tenfold.data.split import Split
from tenfold.engine import GraphError
from tenfold.errors import TenfoldError
from tenfold.execute import Evaluator
from tenfold.ledger import Ledger
from tenfold.lever import apply_all
from tenfold.measure import Samples
from tenfold.pipeline import Result, run
from tenfold.progress import make_view
from tenfold.recipe import Recipe
from tenfold.search import Search, Settings
from tenfold.testing import blobs, small_net, small_workload
from tenfold.train.config import TrainConfig
from tenfold.verdict import Decision, Interval, Verdict, certify, exact_ratio
from tenfold.workload import Workload

CHOICES = ("ladder", "candidates", "sequence", "certified")
SPLITS = {"train": blobs(240), "valid": blobs(150, seed=1), "test": blobs(150, seed=2)}
LEVERS = ("precision", "quantize", "runtime")
"""Those that train nothing: a run of them ends soon, and is the fixture `finished`."""
def entries_of(folder: Path) -> list[dict]:
    return [json.loads(line.partition(" ")[2]) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def normalised() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


SHARED = small_net()
TASK = "from tenfold.testing import small_workload\n\nworkload = small_workload()\n"


def test_every_figure_with_an_interval_says_its_level(finished: Result) -> None:
    def walk(node: object) -> int:
        if isinstance(node, dict):
            if "low" in node and "value" in node:
                assert node.keys() == {"value", "low", "high", "level"}
                assert node["low"] <= node["value"] <= node["high"]
                return 1
            return sum(map(walk, node.values()))
        return sum(map(walk, node)) if isinstance(node, list) else 0

    assert walk(finished.document) > 10


def test_the_file_is_the_document(finished: Result) -> None:
    assert json.loads((finished.folder / "result.json").read_text()) == json.loads(json.dumps(finished.document))


def test_the_ladder_has_a_row_a_lever_and_stage_and_a_reason_each(finished: Result) -> None:
    rows = finished.document["ladder"]
    assert [(r["stage"], r["lever"]) for r in rows if r["stage"] != "export"] == [
        ("train", "precision"), ("compression", "quantize"), ("compression", "precision"), ("runtime", "runtime"),
    ]  # fmt: skip
    assert all(r["reason"] for r in rows)


def test_factors_of_what_was_taken_multiply_to_the_headline(finished: Result) -> None:
    document = finished.document
    taken = [r["cost_ratio"]["value"] for r in document["ladder"] if r["verdict"] == "take"]
    assert prod(taken) == pytest.approx(document["gain"]["serve"]["value"], rel=1e-9)
    assert document["points"][0]["cpu"] == document["gain"]["serve"]


def test_what_is_certified_is_within_the_margin_and_comes_from_the_sequence(finished: Result) -> None:
    document = finished.document
    certified = document["certified"]
    if certified is None:
        assert document["exit_code"] == 3
        return
    assert document["exit_code"] == 0
    assert certified["quality_difference"]["low"] >= -certified["margin"]
    assert certified["p"] <= 0.05
    passed = [s for s in document["sequence"] if s["verdict"] == "take"]
    assert passed[-1]["recipe"] == certified["recipe"]
    assert certify(Interval(**certified["quality_difference"]), certified["margin"], certified["n"]).decision == "take"


def test_test_is_opened_once_and_the_opening_is_logged_first(finished: Result) -> None:
    keys = [e["key"] for e in map(_entry, (finished.folder / "ledger.jsonl").read_bytes().splitlines())]
    assert keys.index("sequence") < keys.index("opening") < min(i for i, k in enumerate(keys) if k.startswith("test:"))
    assert finished.document["test_openings"] == 1


def _entry(line: bytes) -> dict:
    return json.loads(line.partition(b" ")[2])


def test_the_bundle_answers_as_the_graph_that_was_certified(finished: Result) -> None:
    bundle = finished.bundle
    test = blobs(150, seed=2)
    outputs = bundle.predict(test.inputs[0])
    accuracy = float((outputs.argmax(axis=1) == test.targets).mean())
    certified = finished.document["certified"]
    wanted = certified["candidate_quality"] if certified else finished.document["baseline"]["quality"]["valid"]
    assert accuracy == pytest.approx(wanted, abs=1e-12 if certified else 0.2)


def test_resuming_an_ended_run_changes_nothing(finished: Result, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    again = run(small_workload(), out=copy, budget=300, levers=LEVERS, resume=True, view="quiet")
    for part in (*CHOICES, "gain", "points", "baseline", "spent"):
        assert again.document[part] == finished.document[part], part


def test_a_run_cut_at_any_entry_resumes_to_the_choices_its_measurements_imply(finished: Result, tmp_path: Path) -> None:
    lines = (finished.folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (1, len(lines) // 3, 2 * len(lines) // 3):
        folder = tmp_path / str(kept)
        folder.mkdir()
        torn = lines[kept][: len(lines[kept]) // 2]
        (folder / "ledger.jsonl").write_bytes(b"".join(lines[:kept]) + torn)
        result = run(small_workload(), out=folder, budget=300, levers=LEVERS, resume=True, view="quiet")
        assert "torn" in result.document["notices"][0]
        replay = run(small_workload(), out=folder, budget=300, levers=LEVERS, resume=True, view="quiet")
        assert all(result.document[c] == replay.document[c] for c in CHOICES)


def test_a_killed_run_resumes(tmp_path: Path) -> None:
    task, folder = tmp_path / "task.py", tmp_path / "run"
    task.write_text(TASK)
    command = [sys.executable, "-m", "tenfold.cli", "run", task, "--out", folder, "--budget", "5m", "--levers", ",".join(LEVERS), "--quiet"]
    environment = os.environ | {"TENFOLD_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(command, env=environment)
    ledger = folder / "ledger.jsonl"
    deadline = time.monotonic() + 300
    while not (ledger.exists() and b'"clock"' in ledger.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = ledger.read_bytes()
    done = subprocess.run([*command, "--resume"], env=environment, timeout=500, check=False)
    assert done.returncode in (0, 3)
    whole = before[: before.rfind(b"\n") + 1]
    assert ledger.read_bytes().startswith(whole), "what was recorded before the kill still stands"
    keys = [_entry(line)["key"] for line in ledger.read_bytes().splitlines()]
    assert len(keys) == len(set(keys)), "nothing is measured twice"


def test_when_nothing_can_be_certified_the_bundle_is_the_baselines(tmp_path: Path) -> None:
    hopeless = dataclasses.replace(small_workload(), margin=1e-6)  # no 150 examples can show that
    result = run(hopeless, out=tmp_path / "run", budget=300, levers=LEVERS, view="quiet")
    assert result.exit_code == 3
    assert result.document["certified"] is None
    assert all(r["verdict"] != "take" for r in result.document["ladder"])
    assert Bundle.load(tmp_path / "run" / "bundle").manifest["certified"] is False
    assert "could be certified" in (tmp_path / "run" / "report.html").read_text()


def test_trials_bound_how_many_configs_are_measured(tmp_path: Path) -> None:
    result = run(small_workload(), out=tmp_path / "run", budget=None, trials=2, levers=["quantize"], view="quiet")
    assert len(result.document["candidates"]) == 2


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run")
    try:
        with pytest.raises(TenfoldError, match="another run is at work"):
            run(small_workload(), out=tmp_path / "run", view="quiet")
    finally:
        ledger.close()


def test_resuming_with_other_settings_is_refused(finished: Result, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    with pytest.raises(TenfoldError, match="another seed"):
        run(small_workload(), out=copy, budget=300, levers=LEVERS, seed=1, resume=True, view="quiet")


def test_resuming_with_other_margins_of_slices_is_refused(finished: Result, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    stricter = dataclasses.replace(small_workload(), slice_margins={"class 1": 0.1})
    with pytest.raises(TenfoldError, match="another slice_margins"):
        run(stricter, out=copy, budget=300, levers=LEVERS, resume=True, view="quiet")


def test_resuming_on_another_machine_is_refused(finished: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    here = device.versions()
    monkeypatch.setattr(device, "versions", lambda: here | {"onnxruntime": "0.1"})
    with pytest.raises(TenfoldError, match="another onnxruntime, and costs"):
        run(small_workload(), out=copy, budget=300, levers=LEVERS, resume=True, view="quiet")


def test_a_disk_that_fills_up_at_the_end_is_one_sentence_and_the_run_can_go_on(
    finished: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)

    def full(path: Path, _data: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("tenfold.pipeline.write_atomic", full)
        with pytest.raises(TenfoldError, match="is full: free some space"):
            run(small_workload(), out=copy, budget=300, levers=LEVERS, resume=True, view="quiet")
    assert run(small_workload(), out=copy, budget=300, levers=LEVERS, resume=True, view="quiet").document["ladder"] == finished.document["ladder"]


def test_where_eager_pytorch_is_the_cheaper_baseline_leaving_it_is_the_first_factor(finished: Result, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    entries = [_entry(line) for line in (copy / "ledger.jsonl").read_bytes().splitlines()]
    (copy / "ledger.jsonl").unlink()
    ledger = Ledger(copy)
    for entry in entries:
        if entry["key"].startswith("cost:final:"):
            sides = entry["value"]["samples"]
            sides["eager"] = sides["baseline"] | {k: (np.array(sides["baseline"][k]) * 0.8).tolist() for k in ("cpu", "wall")}
        ledger.append(entry["key"], entry["value"])
    ledger.close()
    document = run(small_workload(), out=copy, budget=300, levers=LEVERS, resume=True, view="quiet").document
    if document["certified"] is None:  # nothing is 1.02 times cheaper than such a baseline
        assert finished.document["gain"]["serve"]["low"] * 0.8 < 1.02 * 1.05
        return
    assert document["baseline"]["cheaper"] == "eager"
    assert document["ladder"][0]["cost_ratio"]["value"] == pytest.approx(0.8, rel=0.01)
    taken = [r["cost_ratio"]["value"] for r in document["ladder"] if r["verdict"] == "take"]
    assert prod(taken) == pytest.approx(document["gain"]["serve"]["value"], rel=1e-9)
    assert document["points"][0]["cpu"] == document["gain"]["serve"]


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_where_time_counts_the_threads_of_the_baseline_are_tuned_and_stated(tmp_path: Path, objective: str) -> None:
    counts, cores = device.thread_counts(), device.cores()
    document = run(small_workload(), out=tmp_path / "run", budget=300, objective=objective, levers=["runtime"], view="quiet").document
    entries = [_entry(line) for line in (tmp_path / "run" / "ledger.jsonl").read_bytes().splitlines()]
    tuned = next(e["value"]["threads"] for e in entries if e["key"] == "cost:baseline threads")
    assert document["operating_point"] == {"batch": 64 if objective == "throughput" else 1, "threads": tuned}
    assert tuned in counts
    stated = [(p["batch"], p["threads"]) for p in document["points"]]
    assert {(1, 1), (64, cores), tuple(document["operating_point"].values())} == set(stated)
    if device.cores() > 1:
        assert any(c["config"]["threads"] for c in document["candidates"])


def test_a_budget_too_small_is_said_before_it_starts_and_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match="too small for one candidate"):
        run(small_workload(), out=tmp_path / "run", budget=1, view="quiet")
    assert not (tmp_path / "run").exists()


def test_where_the_budget_is_small_what_is_quick_comes_before_what_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is kept back for configs of compression, here more than there is. (The joint search may still train.)"""
    monkeypatch.setattr(search, "LATER_TRIALS", 1_000)
    document = run(small_workload(), out=tmp_path / "run", budget=300, trials=16, levers=["distill", "prune", "quantize"], view="quiet").document
    rows = {row["lever"]: row for row in document["ladder"]}
    assert rows["distill"]["tried"] == rows["prune"]["tried"] == 0
    assert rows["quantize"]["tried"] > 2


def test_where_timing_a_cascade_would_take_the_budget_nothing_is_composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow model still has its other levers, and no budget is too small because of what is not done."""
    monkeypatch.setattr(pipeline, "LEAST_INPUTS", 10**9)
    document = run(small_workload(), out=tmp_path / "run", budget=300, levers=["quantize", "cascade"], view="quiet").document
    rows = {row["lever"]: row for row in document["ladder"]}
    assert rows["quantize"]["tried"] > 2
    assert rows["cascade"]["verdict"] == "refuse"
    assert "give a larger one" in rows["cascade"]["reason"]


def test_a_worse_p99_is_refused_where_latency_counts() -> None:
    better, cheaper = Interval(value=0.01, low=0.0, high=0.02), Interval(value=2.0, low=1.9, high=2.1)

    def verdict(objective: str, p99: float) -> Verdict:
        return Search._verdict(SimpleNamespace(settings=Settings(objective=objective), margin=0.05), better, cheaper, p99)  # type: ignore[arg-type]

    assert verdict("latency", 0.9).decision == Decision.REFUSE
    assert "p99 latency is worse: 0.90×" in verdict("latency", 0.9).reason
    assert verdict("latency", 1.1).decision == verdict("serve", 0.9).decision == Decision.TAKE


def frozen() -> nn.Module:
    return small_net().requires_grad_(False)


def test_given_weights_that_are_frozen_are_served_all_the_same(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(small_net().state_dict(), tmp_path / "weights.safetensors")
    given = dataclasses.replace(small_workload(), model=frozen, pretrained=tmp_path / "weights.safetensors", margin=0.3)
    result = run(given, out=tmp_path / "run", budget=300, levers=["runtime"], view="quiet")
    (base,) = [e["value"] for e in entries_of(result.folder) if e["key"] == "baseline"]
    assert base["would_train_seconds"] == 0.0


def test_what_a_training_of_given_weights_would_take_is_measured(tmp_path: Path) -> None:
    """By it trainings of students are planned; it is no cost of the baseline."""
    from safetensors.torch import save_file

    save_file(small_net().state_dict(), tmp_path / "weights.safetensors")
    given = dataclasses.replace(small_workload(), pretrained=tmp_path / "weights.safetensors", margin=0.3)
    result = run(given, out=tmp_path / "run", budget=300, levers=["runtime"], view="quiet")
    (base,) = [e["value"] for e in entries_of(result.folder) if e["key"] == "baseline"]
    assert base["training_seconds"] == result.document["spent"]["baseline_seconds"] == 0.0
    assert 0.01 < base["would_train_seconds"] < 60.0


def test_a_run_whose_cache_is_gone_and_whose_budget_is_over_still_ends(finished: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured is made again, however long it takes: the search is over, not its certification."""
    cut = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    lines = (cut / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    keys = [e["key"] for e in entries_of(cut)]
    (cut / "ledger.jsonl").write_bytes(b"".join(lines[: keys.index("sequence") + 1]))
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(search.Budget, "left", property(lambda self: -1.0))
    again = run(small_workload(), out=cut, budget=300, levers=LEVERS, resume=True, view="quiet")
    assert again.document["certified"]["recipe"] == finished.document["certified"]["recipe"]


def test_structures_that_the_budget_does_not_allow_to_size_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SIZED_TOGETHER", 2)
    monkeypatch.setattr(search, "SIZING_MOST", 0.0)
    result = run(small_workload(), out=tmp_path / "run", budget=300, levers=["prune"], view="quiet")
    ladder = list(itertools.takewhile(lambda e: not e["key"].startswith("ask:"), entries_of(result.folder)))  # the joint search has questions of its own
    sizes = [e["value"]["ratio"] for e in ladder if e["key"].startswith("cost:size:")]
    assert sum(isinstance(r, float) for r in sizes) == 2, "those that are timed together, once"
    assert sizes.count("the budget did not allow to measure it") == len(sizes) - 2 > 0


def test_pretrained_weights_skip_the_training(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(small_net().state_dict(), tmp_path / "weights.safetensors")
    given = dataclasses.replace(small_workload(), pretrained=tmp_path / "weights.safetensors", train=None, margin=0.3)
    result = run(given, out=tmp_path / "run", budget=300, levers=["runtime"], view="quiet")
    assert result.document["baseline"]["training"] is None
    assert result.document["gain"]["train"] is None


def test_objective_size_and_train_have_costs_of_their_own(tmp_path: Path) -> None:
    size = run(small_workload(), out=tmp_path / "size", budget=300, levers=LEVERS, objective="size", view="quiet").document
    assert size["certified"] is not None
    assert size["gain"]["size"]["value"] > 1.5
    taken = [r["cost_ratio"]["value"] for r in size["ladder"] if r["verdict"] == "take"]
    assert prod(taken) == pytest.approx(size["gain"]["size"]["value"])
    train = run(small_workload(), out=tmp_path / "train", budget=300, levers=LEVERS, objective="train", view="quiet").document
    assert next(r for r in train["ladder"] if r["stage"] == "train")["tried"] >= 2


def picky_net() -> nn.Module:
    """A net that cannot be trained in channels-last."""

    class View(nn.Module):
        def forward(self, x):
            return x.view(x.shape[0], -1)

    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), View(), nn.Linear(512, 3))


def test_a_layout_that_the_model_does_not_take_is_refused_and_the_run_goes_on(tmp_path: Path) -> None:
    workload = dataclasses.replace(small_workload(), model=picky_net)
    document = run(workload, out=tmp_path / "run", budget=300, objective="train", levers=["precision"], view="quiet").document
    failed = [c for c in document["candidates"] if c["reason"].startswith("failed:")]
    assert failed
    assert all("view" in c["reason"] and c["config"]["channels_last"] for c in failed)


class OverTheBatch(nn.Module):
    """Answers an example by the others that it comes with."""

    def forward(self, x):
        return (x - x.mean(dim=0, keepdim=True)).flatten(1)[:, :3]


def test_a_model_whose_answers_depend_on_the_batch_is_refused_before_the_budget(tmp_path: Path) -> None:
    workload = dataclasses.replace(small_workload(), model=lambda: nn.Sequential(nn.Conv2d(1, 4, 3), OverTheBatch()))
    with pytest.raises(TenfoldError, match="depend on its own example alone"):
        run(workload, out=tmp_path / "run", budget=300, levers=LEVERS, view="quiet")
    assert not (tmp_path / "run").exists()


def test_what_is_only_known_to_be_cheaper_to_train_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Search, "_expected", lambda *_: 1e9)  # no budget is enough for a training
    monkeypatch.setattr(Evaluator, "training_costs", cheaper_and_cheaper)
    document = run(small_workload(), out=tmp_path / "run", budget=300, objective="train", levers=["precision"], view="quiet").document
    assert document["exit_code"] == 3
    best = max(document["candidates"], key=lambda c: c["gain"]["value"])
    assert best["verdict"] == "inconclusive"
    assert best["reason"].startswith("the budget ended before it was trained")
    trained = [e for e in map(_entry, (tmp_path / "run" / "ledger.jsonl").read_bytes().splitlines()) if isinstance(e["value"], dict) and "kind" in e["value"]]
    assert sum(e["value"]["kind"] == "train" for e in trained) == 1, "the baseline alone is trained"


def test_a_shorter_training_of_another_batch_or_optimizer_is_found_and_certified(tmp_path: Path) -> None:
    workload = dataclasses.replace(small_workload(), training=TrainConfig(epochs=12, batch_size=12, learning_rate=1e-3))
    document = run(workload, out=tmp_path / "run", budget=300, trials=40, objective="train", levers=["batch", "optimizer"], view="quiet").document
    rows = {r["lever"]: r for r in document["ladder"]}
    assert rows["batch"]["tried"] > 0
    assert rows["optimizer"]["tried"] > 0
    kinds = {r["kind"]: r for r in document["tuned"]}
    assert next(iter(kinds)) == "adamw", "the baseline's own first"
    assert sum(r["tried"] for r in kinds.values()) == sum(c["lever"] == "optimizer" for c in document["candidates"])
    assert all(r["seconds"] > 0 < r["cpu_seconds"] for r in kinds.values())
    assert not any(r["failed"] for r in kinds.values())
    assert all(r["best"]["gain"]["value"] > 1 for r in kinds.values() if r["best"])
    assert document["exit_code"] == 0
    assert document["gain"]["train"]["low"] > 1
    assert document["unit"] == "CPU-seconds of training"
    certified = next(c for c in document["candidates"] if c["certified"])
    assert certified["config"]["epochs"] < 12
    assert document["gain"]["train"]["value"] > 12 / certified["config"]["epochs"] / 2, "of which the shorter training is most"


def cheaper_and_cheaper(_self: Evaluator, trainings: dict) -> tuple[dict[str, Samples], dict[str, str]]:
    costs = {name: np.full((8, 1), 2**20 >> i) for i, name in enumerate(trainings)}
    return {name: Samples(cpu=c, wall=c, batch=1) for name, c in costs.items()}, {}


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x, z):
        return self.net(x + z)


def test_a_regression_with_two_inputs_and_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 900, 4)).astype(np.float32)
    y = (x + z).sum(axis=1, keepdims=True)
    workload = Workload(
        model=Regressor, train=((x, z), y, np.arange(900) // 5), loss="mse", metric="squared_error", margin=0.1,
        training=TrainConfig(epochs=20, batch_size=32, learning_rate=3e-3),
    )  # fmt: skip
    document = run(workload, out=tmp_path / "run", budget=300, levers=LEVERS, view="quiet").document
    assert document["workload"]["higher_is_better"] is False
    assert any("by group" in note for note in document["workload"]["notes"])
    assert document["agreement"] is None
    predicted = Bundle.load(tmp_path / "run" / "bundle").predict(x[:7], z[:7])
    assert predicted.shape == (7, 1)


def test_the_sequence_goes_from_safest_to_cheapest_and_leaves_out_what_is_beaten() -> None:
    def standing(name: str, quality: float, gain: float) -> Standing:
        return Standing(
            recipe=name,
            quality=Interval(value=quality, low=quality - 0.01, high=quality + 0.01),
            gain=Interval(value=gain, low=gain - 0.1, high=gain + 0.1),
        )

    given = [standing("fast", -0.004, 3.0), standing("safe", 0.0, 2.0), standing("beaten", -0.002, 1.5), standing("bad", -0.1, 9.0)]
    assert [s.recipe for s in order_candidates(given, margin=0.005, n=500, tested=500)] == ["safe", "fast"]
    many = [standing(str(i), -i / 10_000, 2 + i) for i in range(12)]
    chosen = [int(s.recipe) for s in order_candidates(many, margin=0.02, n=500, tested=500)]
    assert len(chosen) == 5
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (0, 11)


def test_what_hardly_differs_is_safer_than_what_looks_better_and_varies() -> None:
    """As it came on CIFAR-10: a cascade that was better on confirm failed first, and integers, which would have passed, had been left out."""
    tight = Standing(recipe="integers", quality=Interval(value=0.0, low=-0.0015, high=0.0015), gain=exact_ratio(3.7, 1.0))
    wide = Standing(recipe="cascade", quality=Interval(value=0.002, low=-0.0037, high=0.0078), gain=exact_ratio(5.7, 1.0))
    assert [s.recipe for s in order_candidates([wide, tight], margin=0.005, n=3_000, tested=10_000)] == ["integers", "cascade"]
    assert [s.recipe for s in front([wide, tight])] == ["cascade"], "by quality alone"


def test_of_many_those_are_tried_that_are_worth_most_together() -> None:
    """Each is either certified with what is surer, or with it what is cheaper fails: what is expected of every choice is counted out here."""
    def standing(name: str, quality: float, gain: float) -> Standing:
        return Standing(recipe=name, quality=Interval(value=quality, low=quality - 0.003, high=quality + 0.003), gain=exact_ratio(gain, 1.0))

    crowded = [standing("a", 0.001, 1.55), *(standing(f"b{i}", 0.0 - i / 10_000, 3.6 + i / 20) for i in range(6)), standing("c", -0.002, 5.0), standing("d", -0.003, 5.6)]
    found = [s.recipe for s in chain(crowded, 5, 0.005, n=5_000, tested=10_000)]
    assert (found[0], found[-2:]) == ("a", ["c", "d"]), "the safest, and what is cheaper by much, not another of those that are alike"
    chance = {s.recipe: NormalDist().cdf(safety(0.005, 5_000, 10_000)(s)) for s in crowded}
    gain = {s.recipe: s.gain.value for s in crowded}

    def expected(names: Sequence[str]) -> float:
        return sum(chance[n] * math.log(gain[n] / (gain[before] if before else 1.0)) for before, n in itertools.pairwise(["", *names]))

    every = [("a", *more) for k in range(5) for more in itertools.combinations([s.recipe for s in crowded[1:]], k)]
    assert expected(found) == pytest.approx(max(map(expected, every)))
    assert chain([], 5, 0.005, n=5_000, tested=10_000) == []


def test_openings_are_counted_by_run(tmp_path: Path) -> None:
    assert record_opening(tmp_path, "set", "one") == 1
    assert record_opening(tmp_path, "set", "one") == 1
    assert record_opening(tmp_path, "set", "two") == 2
    assert record_opening(tmp_path, "other", "two") == 1


def test_float64_inputs_are_served_as_float32(tmp_path: Path) -> None:
    wide = {name: Split(inputs=(s.inputs[0].astype(np.float64),), targets=s.targets) for name, s in SPLITS.items()}
    workload = dataclasses.replace(small_workload(), **wide)
    result = run(workload, out=tmp_path / "run", budget=300, levers=["precision"], view="quiet")
    assert result.bundle.manifest["inputs"][0]["dtype"] == "float32"


def fussy_metric():
    """A metric that does not take outputs which differ a little from some that it has seen: float16's from float32's."""
    seen = []

    def metric(outputs, targets):
        scale = np.abs(outputs).max()
        if any(other.shape == outputs.shape and 0 < np.abs(other - outputs).max() < 0.01 * scale for other in seen):
            raise ValueError("too coarse")
        seen.append(outputs)
        return outputs.argmax(axis=1) == targets

    return metric


def test_a_candidate_that_fails_is_refused_and_the_run_goes_on(tmp_path: Path) -> None:
    workload = dataclasses.replace(small_workload(), metric=fussy_metric())
    document = run(workload, out=tmp_path / "run", budget=300, levers=["precision"], view="quiet").document
    row = next(r for r in document["ladder"] if r["stage"] == "compression")
    assert row["verdict"] == "refuse"
    assert row["reason"].startswith("failed:")
    assert "too coarse" in row["reason"]


@pytest.mark.parametrize("failing", ["quantize", "prune"])
def test_what_cannot_be_built_alone_does_not_end_the_last_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """It asks for parts of a recipe that the search may never have built: each lever left out, and what comes before each."""
    run = pipeline._begin(small_workload(), Settings(), tmp_path / "run", Ledger(tmp_path / "run"), make_view("quiet"), "")
    recipe = Recipe(workload=run.builder.workload_id).then("prune", {"keep": 0.5, "epochs": 1.0}).then("quantize", {"method": "static"})
    batches, alone = run.builder.batches, run.builder.graph_key(apply_all(run.baseline, recipe.only([failing]).pulls))

    def fails(plan):
        if run.builder.graph_key(plan) == alone:
            raise GraphError("no such graph")
        return batches(plan)

    monkeypatch.setattr(run.builder, "batches", fails)
    run.builder.graph(apply_all(run.baseline, recipe.pulls))
    last = final.time_all(run, recipe)
    rows = {row["lever"]: row for row in final.attribution(run, last)}
    other = "prune" if failing == "quantize" else "quantize"
    assert rows[other]["without"] == {"reason": "it cannot be built: no such graph"}
    assert "gain" in rows[failing]["without"]
    if failing == "prune":
        assert rows["prune"]["factor"] | {"level": 0.9} == {"value": 1.0, "low": 1.0, "high": 1.0, "level": 0.9}, "its part is in the factor of what comes next"
    whole = run.evaluator.ratio(*(last.costs["serve"][side] for side in ("baseline", last.last)))
    assert prod(row["factor"]["value"] for row in rows.values()) == pytest.approx(whole.value)


class Greedy(nn.Module):
    """Takes more memory than there is while it trains."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.empty(1 << 50) if self.training else x


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slice_margins": {"misspelt": 0.1}}, "no slice"),
        ({"slices": lambda _: {"odd": np.arange(3)}}, "boolean mask"),
        ({"slices": lambda _: 1 / 0}, "slices= raised ZeroDivisionError"),
        ({"metric": lambda outputs, targets: outputs @ targets}, "metric"),
        ({"augment": lambda _batch, _generator: 1 / 0}, "augment raised ZeroDivisionError"),
        ({"augment": lambda _batch, _generator: None}, "augment returns a NoneType: let it return the batch"),
        ({"augment": lambda batch, _generator: batch.double()}, "augment makes .* float64 of a batch of .* float32: let it keep shape and dtype"),
        ({"model": lambda: SHARED}, "gives the same object each time"),
        ({"model": normalised, "training": TrainConfig(epochs=1, batch_size=1)}, "batch normalisation needs two examples, give a larger batch_size"),
        ({"model": lambda: nn.Sequential(Greedy(), *small_net())}, "a batch of 24 in 1 micro-batch does not fit into memory, give a larger accumulate"),
        ({"training": TrainConfig(epochs=1, batch_size=24, resize=0.5)}, r"does not take smaller images \(mat1 and mat2.*: leave resize out of its training"),
        ({"model": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3))}, "give the lazy layer its sizes"),
        ({"model": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)), "loss": "binary_cross_entropy"}, "1 outputs, the data 3 classes"),
    ],
)
def test_what_the_users_own_code_does_wrong_is_one_sentence(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(TenfoldError, match=said):
        run(dataclasses.replace(small_workload(), **change), out=tmp_path / "run", budget=300, levers=LEVERS, view="quiet")


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path, finished: Result) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("precious")
    with pytest.raises(TenfoldError, match="no bundle"):
        write_bundle(tmp_path / "bundle", finished.folder / "bundle" / "model.onnx", blobs(9).inputs, {})
    assert (tmp_path / "bundle" / "mine.txt").read_text() == "precious"


def test_a_torn_line_among_openings_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text('{"run": "one"}\n{"ru')
    assert record_opening(tmp_path, "set", "two") == 2
    assert record_opening(tmp_path, "set", "three") == 3
