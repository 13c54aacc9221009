"""A run with all levers on: a student, a cascade and the joint search, their factors, and the same choices again from the record."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tenfold import Bundle, TrainConfig, Workload, run
from tenfold.data.split import Split
from tenfold.levers import distill
from tenfold.pipeline import Result
from tenfold.recipe import Recipe
from tenfold.testing import small_net

GIVEN: dict[str, Any] = {"budget": 900, "trials": 48, "view": "quiet"}
"""Trials end it, however slow the machine: the budget is not reached."""


def faint_bands(n: int, seed: int) -> Split:
    """Images (n, 1, 8, 8) in three classes: most are easy, some are all but noise."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, n)
    images = rng.normal(0.0, 0.5, (n, 1, 8, 8)).astype(np.float32)
    strength = rng.choice([1.5, 0.35], n, p=[0.7, 0.3])
    for row, target in enumerate(targets):
        images[row, 0, 2 * target + 1 : 2 * target + 3] += strength[row]
    return Split(inputs=(images,), targets=targets.astype(np.int64))


def faint() -> Workload:
    splits = {name: faint_bands(n, seed) for seed, (name, n) in enumerate({"train": 1500, "valid": 600, "confirm": 400, "test": 1500}.items())}
    return Workload(name="faint", model=small_net, margin=0.03, training=TrainConfig(epochs=4, batch_size=50, learning_rate=3e-3), **splits)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(faint(), out=tmp_path_factory.mktemp("runs") / "whole", **GIVEN)


def test_students_beat_what_needs_no_training(whole: Result) -> None:
    document = whole.document
    assert document["exit_code"] == 0
    assert document["gain"]["serve"]["low"] > 1.5
    assert {"distill", "prune", "quantize", "cascade"} <= {r["lever"] for r in document["ladder"]}
    assert any(c["lever"] == "distill" and c["verdict"] == "take" for c in document["candidates"])


def test_the_factors_multiply_to_the_headline(whole: Result) -> None:
    document = whole.document
    product = math.prod(a["factor"]["value"] for a in document["attribution"])
    assert product == pytest.approx(document["gain"]["serve"]["value"], rel=1e-6)
    taken = math.prod(r["cost_ratio"]["value"] for r in document["ladder"] if r["verdict"] == "take")
    assert taken == pytest.approx(document["gain"]["serve"]["value"], rel=1e-6)


def test_each_lever_is_left_out_in_turn(whole: Result) -> None:
    document = whole.document
    recipe = Recipe.from_json(Bundle.load(whole.folder / "bundle").manifest["recipe"])
    rows = {a["lever"]: a["without"] for a in document["attribution"]}
    assert set(rows) == recipe.levers()
    for lever, without in rows.items():
        if not recipe.only(recipe.levers() - {lever}).pulls:  # then it is the baseline that is left
            assert without["gain"]["value"] == pytest.approx(1.0)
            assert without["quality_difference"]["value"] == 0
        else:
            assert "reason" in without or 0 < without["gain"]["value"] < math.inf


def test_the_whole_stands_beside_the_best_that_one_lever_came_to(whole: Result) -> None:
    document = whole.document
    best, gain = document["best_single"], document["gain"]["serve"]
    if best is None:  # on this machine one lever alone won
        assert "+" not in document["certified"]["label"]
        return
    singles = [c for c in document["candidates"] if "+" not in c["label"] and c["lever"] != "cascade" and c["gain"]]
    assert best["label"] in {c["label"] for c in singles}
    assert best["quality_difference"]["value"] >= -document["workload"]["margin_absolute"]
    assert best["times"]["value"] == pytest.approx(gain["value"] / best["gain"]["value"], rel=1e-6)
    assert 0 < best["times"]["low"] <= best["times"]["value"] <= best["times"]["high"]


def test_random_rounds_stand_beside_those_that_learn(tmp_path: Path, monkeypatch) -> None:
    """With a number of trials in place of a budget, of which the ladder leaves some."""
    monkeypatch.setattr(distill, "SKELETON_SHARE", 0.0)
    monkeypatch.setattr(distill, "TIERS", ((0.1, float("inf")),))
    monkeypatch.setattr(distill, "MOST_LENGTH", 0.5)
    document = run(faint(), out=tmp_path / "run", budget=3_000, trials=14, levers=["distill", "cascade"], view="quiet").document
    joint = document["joint_search"]
    assert set(joint) == {"learned", "random"}
    assert joint["learned"]["trials"] > 0
    assert joint["random"]["trials"] > 0
    assert all(c["seconds"] > 0 for c in joint.values())


def test_its_record_gives_the_same_choices_again(whole: Result, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole.folder, copy)
    (copy / "result.json").unlink()
    before = (copy / "ledger.jsonl").read_bytes()
    again = run(faint(), out=copy, resume=True, **GIVEN)
    for part in ("ladder", "candidates", "sequence", "certified", "gain", "attribution", "joint_search"):
        assert json.dumps(again.document[part]) == json.dumps(whole.document[part]), part
    assert (copy / "ledger.jsonl").read_bytes() == before


@pytest.mark.parametrize("cut", ["left:joint", "propose:compose"])
def test_a_run_that_was_cut_goes_on_to_its_end(whole: Result, tmp_path: Path, cut: str) -> None:
    """Before the joint search, or the first look for cascades: what was recorded stands, what is missing is done."""
    folder = tmp_path / "cut"
    folder.mkdir()
    lines = (whole.folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if f'"key":"{cut}'.encode() in line)
    (folder / "ledger.jsonl").write_bytes(b"".join(lines[:at]))
    document = run(faint(), out=folder, resume=True, **GIVEN).document
    assert document["exit_code"] == 0
    assert document["gain"]["serve"]["low"] > 1.5
    again = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    assert again[:at] == lines[:at]
    assert any(f'"key":"{cut}'.encode() in line for line in again[at:])


def test_a_budget_that_ends_in_the_middle_of_a_training_leaves_the_best_so_far(whole: Result, tmp_path: Path, monkeypatch) -> None:
    """The baseline is in the cache; a student is good after a short training, and its full one is made to outlast the budget."""
    monkeypatch.setattr(distill, "LEAST_EPOCHS", 12.0)
    monkeypatch.setattr(distill, "MOST_SHORT", 12.0)
    monkeypatch.setattr(distill, "SKELETON_SHARE", 0.0)
    monkeypatch.setattr(distill, "TIERS", ((0.1, float("inf")),))
    monkeypatch.setattr(distill, "MOST_LENGTH", 1e4)
    monkeypatch.setattr(distill, "TRAIN_SHARE", 50.0)
    document = run(faint(), out=tmp_path / "run", budget=90, levers=["distill"], view="quiet").document
    ended = [c for c in document["candidates"] if "the budget ended at" in c["reason"]]
    assert ended
    assert all(c["verdict"] == "inconclusive" for c in ended)
    assert document["exit_code"] == 0, "what was found before is certified"
    assert "epochs 12" in document["certified"]["label"]
    assert document["spent"]["search_seconds"] < 130


def test_what_was_certified_answers_batches_as_it_answers_single_examples(whole: Result) -> None:
    bundle = Bundle.load(whole.folder / "bundle")
    images = faint_bands(64, 9).inputs[0]
    one = np.concatenate([bundle.predict(images[i : i + 1]) for i in range(64)])
    assert np.abs(one - bundle.predict(images)).max() < 0.05 * np.abs(one).max()


def test_unlabelled_data_is_part_of_what_a_run_is(whole: Result, tmp_path: Path) -> None:
    from tenfold.errors import TenfoldError

    copy = tmp_path / "copy"
    shutil.copytree(whole.folder, copy)
    more = dataclasses.replace(faint(), unlabelled=faint_bands(50, 11).inputs[0])
    with pytest.raises(TenfoldError, match="is a run with another unlabelled"):
        run(more, out=copy, resume=True, **GIVEN)
