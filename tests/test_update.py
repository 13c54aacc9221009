"""New data in, guarded upgrade out: what is let into service, what is not, and what is said where the data does not fit."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from torch import nn

from tenfold.build import Builder, place_of, trainings_of
from tenfold.bundle import Bundle
from tenfold.data.sources import to_split
from tenfold.data.split import Split, joined
from tenfold.errors import TenfoldError, WorkloadError
from tenfold.execute import plain_session
from tenfold.lever import apply_all
from tenfold.levers.distill.students import ImageStudent
from tenfold.levers.prune import RATE_SHARE
from tenfold.levers.quantize import QuantizeConfig
from tenfold.pipeline import Result, run
from tenfold.plan import Plan
from tenfold.recipe import Pull
from tenfold.renew.arrivals import LEARNED, arrivals
from tenfold.renew.guard import Comparison, judged, least_examples, level_of
from tenfold.renew.replay import LENGTH, RATE, replayed
from tenfold.renew.update import FIRST, IN_SERVICE, Update, update
from tenfold.store import Store
from tenfold.testing import blobs, small_net, small_workload
from tenfold.train.config import TrainConfig
from tenfold.verdict import Decision, Interval, quality_difference
from tenfold.weights import keep_weights, kept_weights, save_weights
from tenfold.workload import Workload, load

Tenfold = Callable[..., "subprocess.CompletedProcess[str]"]


def task(**changes: object) -> Workload:
    return dataclasses.replace(small_workload(), **{"test": blobs(900, seed=2)} | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(task(), out=tmp_path_factory.mktemp("runs") / "blobs", budget=120, levers=("quantize",), view="quiet")


@pytest.fixture
def folder(certified: Result, tmp_path: Path) -> Path:
    return Path(shutil.copytree(certified.folder, tmp_path / "run"))


def exchanged(split: Split) -> Split:
    assert split.targets is not None
    return dataclasses.replace(split, targets=(split.targets + 1) % 3)


def upgraded(folder: Path, data: object, **arguments: object) -> Update:
    return update(folder, data, **{"workload": task(), "view": "quiet"} | arguments)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the course of it


def test_good_data_goes_into_service_and_the_next_upgrade_begins_there(folder: Path) -> None:
    first = upgraded(folder, blobs(600, seed=7))
    assert first.exit_code == 0, first.document["reason"]
    assert [(c["against"], c["verdict"]) for c in first.document["comparisons"]] == [(FIRST, "take"), (FIRST, "take")]
    assert first.folder == folder / "updates" / "1"
    served = Bundle.load(first.folder / "bundle")
    assert served.manifest["upgrade"]["number"] == 1
    fresh = blobs(300, seed=9)
    assert (served.predict(fresh.inputs[0]).argmax(1) == fresh.targets).mean() > 0.95

    second = upgraded(folder, blobs(600, seed=8))
    assert second.document["replaced"] == str(first.folder / "bundle")
    assert [c["against"] for c in second.document["comparisons"]][:2] == [IN_SERVICE, FIRST]
    assert second.document["data"]["notes"] == ["the data of upgrade 1 came as arrays, and is not kept: it is not learned from again"]

    page = second.page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script|url\(", page)
    assert f"Upgrade {2 if second.document['let_in'] else 1} is in service" in page
    assert page.count('class="strip"') == len(first.document["comparisons"]) + len(second.document["comparisons"])


def test_wrong_labels_do_not_get_through(folder: Path) -> None:
    spoiled = upgraded(folder, exchanged(blobs(3000, seed=7)))
    assert spoiled.exit_code == 3
    assert not spoiled.document["let_in"]
    assert spoiled.document["in_service"] == str(folder / "bundle")
    assert not (spoiled.folder / "bundle").exists()
    assert spoiled.document["comparisons"][-1]["on"] == "old test examples", "the new ones are as wrong, and speak for it"
    assert spoiled.bundle.manifest == Bundle.load(folder / "bundle").manifest
    with pytest.raises(WorkloadError, match="this very data"):
        upgraded(folder, exchanged(blobs(3000, seed=7)))
    good = upgraded(folder, blobs(600, seed=8))
    assert good.document["replaced"] == str(folder / "bundle")
    assert good.document["number"] == 2


def test_what_was_let_in_before_is_learned_from_again_where_it_is_a_file(folder: Path, tmp_path: Path) -> None:
    for i in (1, 2):
        np.savez(tmp_path / f"{i}.npz", x=blobs(600, seed=6 + i).inputs[0], y=blobs(600).targets)
    reading = task(read=lambda path: (np.load(path)["x"], np.load(path)["y"]))
    first = upgraded(folder, tmp_path / "1.npz", workload=reading)
    assert first.document["let_in"], first.document["reason"]
    assert first.document["data"]["path"] == str(tmp_path / "1.npz")
    assert upgraded(folder, tmp_path / "2.npz", workload=reading).document["data"]["notes"] == []


def test_a_stopped_upgrade_goes_on_and_opens_the_test_split_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    new = blobs(600, seed=7)
    with monkeypatch.context() as stopped:
        stopped.setattr("tenfold.renew.update._with_slices", stop)  # all has been looked at
        with pytest.raises(KeyboardInterrupt):
            upgraded(folder, new)
    (openings,) = (folder / "updates").glob("*.jsonl")
    before = openings.read_text()
    with pytest.raises(TenfoldError, match="--resume"):
        upgraded(folder, new)
    with pytest.raises(TenfoldError, match="another data, upgrade"):
        upgraded(folder, blobs(600, seed=8), resume=True)
    with pytest.raises(TenfoldError, match="another upgrade"):
        upgraded(folder, new, resume=True, workload=task(training=TrainConfig(epochs=5, batch_size=24)))
    done = upgraded(folder, new, resume=True)
    assert done.document["number"] == 1
    assert done.document["opened"]
    assert openings.read_text() == before
    with pytest.raises(TenfoldError, match="leave out --resume"):
        upgraded(folder, new, resume=True)


def test_the_error_is_spent_over_the_upgrades_that_were_planned(folder: Path) -> None:
    assert upgraded(folder, blobs(600, seed=7), planned=2).document["planned"] == 2
    with pytest.raises(TenfoldError, match="2 upgrades were planned"):
        upgraded(folder, blobs(600, seed=8), planned=3)
    second = upgraded(folder, blobs(600, seed=8))
    assert second.document["planned"] == 2
    shutil.rmtree(second.folder)  # what was spent stays spent
    (openings,) = (folder / "updates").glob("*.jsonl")
    openings.write_text('{"run": "a"}\n{"run": "b"}\n')
    with pytest.raises(TenfoldError, match="certify anew"):
        upgraded(folder, blobs(600, seed=9))
    with pytest.raises(TenfoldError, match="from 1 to"):
        upgraded(folder, blobs(600, seed=9), planned=1000)


def test_data_that_does_not_fit_leaves_no_upgrade_behind(folder: Path) -> None:
    with pytest.raises(WorkloadError):
        upgraded(folder, blobs(30, seed=7))
    assert not list((folder / "updates").glob("*/ledger.jsonl"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"test": blobs(900, seed=3)}, "not the one that the run was certified on"), ({"metric": "log_loss"}, "metric is not the one"),
        ({"model": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}, "model is not the one"),
    ],
)
def test_another_test_split_metric_or_model_is_refused(folder: Path, changed: dict[str, object], said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        upgraded(folder, blobs(600, seed=7), workload=task(**changed))


def test_a_run_made_from_python_has_to_be_given_its_workload(folder: Path) -> None:
    with pytest.raises(TenfoldError, match="--workload"):
        update(folder, blobs(600, seed=7), view="quiet")


def test_without_weights_to_begin_with(folder: Path) -> None:
    shutil.rmtree(folder / "weights")
    with pytest.raises(TenfoldError, match="no weights"):
        upgraded(folder, blobs(600, seed=7))


def test_what_is_no_run_or_of_an_older_one_or_damaged_is_said(folder: Path) -> None:
    done = upgraded(folder, blobs(600, seed=7))
    with pytest.raises(TenfoldError, match="not the folder of a run"):
        upgraded(done.folder, blobs(600, seed=8))
    (done.folder / "result.json").write_text("{}")
    with pytest.raises(TenfoldError, match="is damaged"):
        upgraded(folder, blobs(600, seed=8))
    document = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({k: v for k, v in document.items() if k != "source"}))
    with pytest.raises(TenfoldError, match="older Tenfold.*source"):
        upgraded(folder, blobs(600, seed=8))


def test_a_slice_that_does_not_keep_its_margin_keeps_an_upgrade_out(tmp_path: Path) -> None:
    """Its examples are so few that no upgrade could show it."""
    few = {"slices": lambda split: {"few": np.arange(len(split)) < 10}, "slice_margins": {"few": 0.3}}
    made = run(task(**few), out=tmp_path / "run", budget=120, levers=("quantize",), view="quiet")
    done = upgraded(made.folder, blobs(600, seed=7), workload=task(**few | {"slice_margins": {}}))  # the run's own margins count
    assert not done.document["let_in"]
    assert "'few'" in done.document["reason"]


def test_the_command(tenfold: Tenfold, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "import numpy as np, tenfold\nfrom tenfold.testing import blobs, small_net\n"
        "workload = tenfold.Workload(model=small_net, train=blobs(), valid=blobs(150, seed=1), test=blobs(900, seed=2), margin=0.05,\n"
        "    read=lambda path: (np.load(path)['x'], np.load(path)['y']))\n"
    )
    made = tenfold("run", "task.py", "--levers", "quantize", "--budget", "2m", "--out", "run", "-q", cwd=tmp_path)
    assert made.returncode in (0, 3), made.stderr
    for seed, name in ((7, "new.npz"), (8, "more.npz")):
        np.savez(tmp_path / name, x=blobs(600, seed=seed).inputs[0], y=blobs(600).targets)
    done = tenfold("update", tmp_path / "run", "--data", "new.npz", "--json", cwd=tmp_path)
    assert done.returncode in (0, 3), done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "run" / "updates" / "1" / "result.json").read_text())
    shown = tenfold("update", tmp_path / "run", "--data", "more.npz", cwd=tmp_path)
    assert "upgrade 2: " in shown.stdout, shown.stderr
    missing = tenfold("update", tmp_path / "run", "--data", "nowhere", cwd=tmp_path)
    assert missing.returncode == 2
    assert "nowhere does not exist" in missing.stderr
    assert tenfold("update", tmp_path / "nothing", "--data", "new.npz", cwd=tmp_path).returncode == 2


# ---------------------------------------------------------------- new data


def test_an_example_falls_into_the_same_part_whenever_it_comes() -> None:
    workload = task()
    examples, new = load(workload), blobs(900, seed=7)
    whole, half = arrivals(workload, examples, new), arrivals(workload, examples, new.take(slice(0, 450)))
    for part in ("train", "valid", "fresh"):
        assert {*getattr(half, part).row_hashes} <= {*getattr(whole, part).row_hashes}
    assert abs(len(whole.train) / 900 - LEARNED) < 0.06
    assert not {*whole.train.row_hashes} & {*whole.fresh.row_hashes}


def test_groups_stay_together() -> None:
    workload, new = task(), blobs(900, seed=7)
    examples = load(workload)
    grouped = dataclasses.replace(examples, valid=dataclasses.replace(examples.valid, groups=np.arange(len(examples.valid)) // 2))
    divided = arrivals(workload, grouped, dataclasses.replace(new, groups=np.char.add("n", (np.arange(900) // 5).astype(str))))
    assert divided.train.groups is not None
    assert divided.fresh.groups is not None
    assert not {*divided.train.groups} & {*divided.fresh.groups}
    with pytest.raises(WorkloadError, match="no groups"):
        arrivals(workload, grouped, new)
    known = arrivals(workload, grouped, dataclasses.replace(new, groups=np.arange(900) // 5))  # 75 of its groups are in valid
    count = 5 * (len(examples.valid) + 1) // 2
    assert f"{count} of 900 new examples" in known.notes[0]


def test_nothing_that_is_judged_on_is_learned() -> None:
    workload = task()
    examples = load(workload)
    divided = arrivals(workload, examples, joined(blobs(600, seed=7), examples.test.take(slice(0, 200)), blobs(600, seed=7)))
    assert not {*divided.train.row_hashes} & {*examples.test.row_hashes}
    assert len(divided.train) + len(divided.valid) + len(divided.fresh) == 1_200
    assert "200 of 1,400 new examples" in divided.notes[0]
    assert not {*divided.train.row_hashes} & {*divided.fresh.row_hashes}


def test_what_was_learned_before_is_not_judged_on() -> None:
    workload = task()
    examples = load(workload)
    assert examples.train is not None
    divided = arrivals(workload, examples, joined(blobs(600, seed=7), examples.train))
    assert not {*examples.train.row_hashes} & {*divided.fresh.row_hashes, *divided.valid.row_hashes}
    assert {*examples.train.row_hashes} <= {*divided.train.row_hashes}


def test_targets_that_are_no_classes_keep_their_values() -> None:
    x = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    workload = Workload(model=small_net, margin=0.1, loss="mse", metric="squared_error", train=(x, np.arange(400)))
    divided = arrivals(workload, load(workload), (x + 1, np.arange(400) + 0.5))
    assert divided.train.targets is not None
    assert (divided.train.targets % 1 == 0.5).all()


def test_columns_of_a_table_are_put_in_order_and_others_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def table(n: int) -> pd.DataFrame:
        return pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n) + 5, "label": rng.integers(0, 2, n)})

    workload = Workload(model=small_net, margin=0.1, train=table(200), valid=table(100), test=table(100))
    examples = load(workload)
    assert examples.valid.columns == ("a", "b")
    divided = arrivals(workload, examples, table(900)[["b", "label", "a"]])
    assert divided.train.inputs[0][:, 0].mean() < 1 < divided.train.inputs[0][:, 1].mean()
    table(300).assign(c=1.0).drop(columns="b").to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(WorkloadError, match="lacks 'b' and has 'c' as well"):
        arrivals(workload, examples, tmp_path / "new.csv")


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (Split(inputs=(np.zeros((600, 1, 9, 9), np.float32),), targets=np.zeros(600, np.int64)), r"\(1, 9, 9\) float32, the old data of \(1, 8, 8\)"),
        (dataclasses.replace(blobs(600), targets=np.arange(600) % 4), "label 3 in row 3, which is none of the model's 3 classes"),
        (dataclasses.replace(blobs(600), targets=np.full(600, -1)), "label -1"),
        (dataclasses.replace(blobs(600), targets=np.full(600, 0.5)), "label 0.5"),
        (dataclasses.replace(blobs(600), targets=None), "no targets"),
        (dataclasses.replace(blobs(600), targets=np.zeros((600, 2), np.int64)), r"targets of shape \(2,\)"),
        (dataclasses.replace(blobs(600), inputs=(np.full((600, 1, 8, 8), np.nan, np.float32),)), "NaN"),
        (blobs(60, seed=7), "60 new examples, leave"),
        (Path("nowhere.csv"), "does not exist"),
        (None, "no new data"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(new: object, said: str) -> None:
    workload = task()
    with pytest.raises(WorkloadError, match=said):
        arrivals(workload, load(workload), new)


def test_a_reader_that_fails_is_named() -> None:
    workload = task(read=lambda path: 1 / 0)
    with pytest.raises(WorkloadError, match="read= raised ZeroDivisionError"):
        arrivals(workload, load(workload), Path(__file__))


# ---------------------------------------------------------------- the recipe once more


QUANTIZE = dataclasses.asdict(QuantizeConfig(method="static", aware_epochs=2.0))
PARTS = {
    "parts": [
        {"pulls": [{"lever": "prune", "config": {"keep": 0.5, "epochs": 8.0, "teachers": 1}}], "hand_on": 0.3},
        {"pulls": [{"lever": "prune", "config": {"keep": 0.8, "epochs": 2.0, "teachers": 1}}], "hand_on": 0.1},
        {"pulls": []},
    ],
    "blend": 0.0,
}


def test_a_recipe_is_followed_for_a_part_of_its_training() -> None:
    training = TrainConfig(epochs=12, learning_rate=0.1)
    pulls = [Pull("batch", {"batch_size": 64, "learning_rate": 0.2}), Pull("cascade", PARTS)]
    plan = replayed(training, pulls, plain_session(), seed=3)
    trainings = trainings_of(plan)
    assert [len(p.model_passes) for p in trainings] == [0, 1, 0, 1, 0]
    assert {p.training.batch_size for p in trainings} == {64}
    assert trainings[0].training.epochs == 12 * LENGTH
    assert trainings[0].training.learning_rate == pytest.approx(0.2 * RATE)
    assert [p.model_passes[0].key["epochs"] for p in (trainings[1], trainings[3])] == [2.0, 1.0]
    assert len({place_of(p) for p in trainings}) == 3


def test_trainings_begin_with_the_weights_that_were_kept(small_builder: Builder, tmp_path: Path) -> None:
    pulls = [Pull("prune", {"keep": 0.5, "epochs": 1.0, "teachers": 1})]
    plan = apply_all(Plan(training=small_builder.workload.training, session=plain_session()), pulls)
    keep_weights(tmp_path / "weights", [small_builder.shaped(p).path / "model.safetensors" for p in trainings_of(plan)])
    weights = kept_weights(tmp_path / "weights")
    assert len(weights) == 2
    still = replayed(dataclasses.replace(small_builder.workload.training, learning_rate=1e-12, weight_decay=0.0), pulls, plain_session(), seed=0)
    again = Builder(
        dataclasses.replace(small_builder.workload, training=still.training), small_builder.examples, Store(tmp_path / "steps"), seed=0, threads=1,
        begins=dict(zip(map(place_of, trainings_of(still)), weights, strict=True)), rate=1e-9,
    )  # fmt: skip
    for file, stands in zip(weights, trainings_of(still), strict=True):
        before, after = load_file(file), load_file(again.shaped(stands).path / "model.safetensors")
        assert all(np.allclose(before[k], after[k], atol=1e-5) for k in before if "running" not in k and "num_batches" not in k)
    other = Builder(again.workload, again.examples, again.store, seed=0, threads=1)
    assert other.shaped_key(still) != again.shaped_key(still)


def test_rates_are_a_part_of_the_usual_ones_where_weights_are_not_new(small_builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def learn(_model: nn.Module, training: TrainConfig, _materials: object, **_: object) -> dict[str, object]:
        seen.append(training.learning_rate)
        return {}

    for name in ("prune", "distill"):
        monkeypatch.setattr(f"tenfold.levers.{name}.learn_from_teacher", learn)
    student = {"family": "image", **dataclasses.asdict(ImageStudent(width=8, depth=1, stem="conv", operator="dense", smallest=2))}
    config = {"student": student, "epochs": 4.0, "learning_rate": 0.3, "dtype": "float32"}
    usual = small_builder.workload.training
    save_weights(small_builder.fresh(), tmp_path / "w")
    for pull in (Pull("prune", {"keep": 0.5, "epochs": 1.0}), Pull("distill", config)):
        plan = replayed(usual, [pull], plain_session(), seed=0)
        first = trainings_of(plan)[0]
        Builder(
            dataclasses.replace(small_builder.workload, training=plan.training), small_builder.examples, Store(tmp_path / "steps"), seed=0, threads=1,
            begins={place_of(first): tmp_path / "w"}, rate=RATE,
        ).shaped(plan)  # fmt: skip
    assert seen == pytest.approx([usual.learning_rate * RATE * RATE_SHARE, 0.3 * RATE])


def test_a_pass_that_keeps_the_structure_goes_on_from_what_was_just_learned(small_builder: Builder, tmp_path: Path) -> None:
    plan = replayed(small_builder.workload.training, [Pull("quantize", QUANTIZE)], plain_session(), seed=0)
    assert len(trainings_of(plan)) == 2
    save_weights(small_builder.fresh(), tmp_path / "w")
    builder = Builder(
        small_builder.workload, small_builder.examples, Store(tmp_path / "steps"), seed=0, threads=1,
        begins={place_of(p): tmp_path / "w" for p in trainings_of(plan)}, rate=RATE,
    )  # fmt: skip
    keys = [builder.shaped_key(p) for p in trainings_of(plan)]
    assert "begins" in keys[0]
    assert "begins" not in keys[1]


def test_weights_that_are_gone_are_named(small_builder: Builder, tmp_path: Path) -> None:
    save_weights(small_net(), tmp_path / "w")
    keep_weights(tmp_path / "weights", [tmp_path / "w", tmp_path / "w"])
    assert len(set(kept_weights(tmp_path / "weights"))) == 1
    kept_weights(tmp_path / "weights")[0].unlink()
    with pytest.raises(TenfoldError, match="is gone"):
        kept_weights(tmp_path / "weights")


# ---------------------------------------------------------------- the guard


def compared(low: float, high: float, margin: float = 0.01) -> Comparison:
    return Comparison(against="a", on="b", quality=Interval(value=(low + high) / 2, low=low, high=high), margin=margin, n=1000)


def test_all_comparisons_have_to_hold() -> None:
    good, open_, bad = compared(-0.005, 0.01), compared(-0.02, 0.01), compared(-0.05, -0.02)
    assert judged([good, good]).decision is Decision.TAKE
    assert judged([good, open_]).decision is Decision.INCONCLUSIVE
    assert judged([open_, bad, good]).decision is Decision.REFUSE
    assert "against a on b" in judged([open_]).reason


def test_examples_that_could_show_a_margin_are_told_beforehand(folder: Path) -> None:
    for n, shown in ((least_examples(0.05, 12), True), (least_examples(0.05, 12) - 2, False)):
        same = np.ones(n)
        assert (quality_difference(same, same, level=level_of(12)).low >= -0.05) is shown
    notes = upgraded(folder, blobs(300, seed=7)).document["data"]["notes"]
    assert any(f"new examples show a margin of 0.05 only for an upgrade that is better: about {math.ceil(least_examples(0.05, 12) / 0.4):,}" in n for n in notes)


def test_the_error_over_all_upgrades_stays_below_five_percent() -> None:
    """Upgrades that are each worse by just the margin, on one test split: how often does any of them get through?"""
    rng, n, margin, planned = np.random.default_rng(0), 2_000, 0.02, 12
    through = 0
    for _ in range(300):
        first = rng.random(n) < 0.9
        for _ in range(planned):
            candidate = first.copy()
            candidate[(rng.random(n) < 0.05) & first] = False  # loses 4.5 points
            candidate[(rng.random(n) < 0.25) & ~first] = True  # and gains 2.5
            quality = quality_difference(first, candidate, level=level_of(planned))
            if quality.low >= -margin:
                through += 1
                break
    assert through / 300 < 0.088  # 5 % and three standard errors; it is above 0.2 where the error is not spent
    assert level_of(1) == pytest.approx(0.9)


def test_a_split_keeps_the_names_of_its_columns() -> None:
    split = to_split(pd.DataFrame({"x": [1.0, 2.0], "label": [0, 1]}), "train")
    assert split is not None
    assert split.columns == ("x",)
    assert split.take([0]).columns == ("x",)
