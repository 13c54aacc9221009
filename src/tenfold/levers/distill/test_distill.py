import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tenfold import teaching
from tenfold.build import Builder
from tenfold.data.split import Split
from tenfold.errors import BudgetEndedError, WorkloadError
from tenfold.execute import Evaluator, plain_session
from tenfold.export import Served, as_seen_by_model
from tenfold.lever import Config, Refusal, Situation, Stage, discover
from tenfold.levers import distill
from tenfold.levers.distill import families, law
from tenfold.levers.distill.students import ImageStudent, TableStudent, image_student, table_student
from tenfold.pipeline import run
from tenfold.plan import Plan
from tenfold.store import Store
from tenfold.teaching import check_student, check_teacher, compare_teacher, learning_key, teacher_of
from tenfold.testing import LeverContract, blobs, small_workload
from tenfold.train.config import TrainConfig
from tenfold.train.distill import axis_of_classes, soft_loss
from tenfold.train.feed import Feed
from tenfold.train.loop import predict
from tenfold.train.teacher import VIEWS, Teacher, answer_epoch, epochs_within, mixed
from tenfold.workload import Workload, load

STUDENT = {"family": "image", "width": 8, "depth": 0, "stem": "conv", "operator": "dense", "smallest": 4, "growth": 2.0}


def config(**changes: object) -> dict:
    return {"student": STUDENT, "epochs": 6.0, "learning_rate": 0.05, "dtype": "float32", "teachers": 1, "mixup": True} | changes


def builder_of(workload: Workload, folder: Path) -> Builder:
    return Builder(workload, load(workload), Store(folder), seed=0, threads=1)


def plan_of(builder: Builder, **changes: object) -> Plan:
    root = Plan(training=builder.workload.training, session=plain_session())
    return discover()["distill"].apply(root, config(**changes))


class TestDistill(LeverContract):
    name = "distill"

    def test_refuses_where_there_is_nothing_to_learn_from(self, lever, small_builder: Builder, plan: Plan) -> None:
        empty = dataclasses.replace(small_builder.examples, train=None)
        answer = lever.propose(self.situation(small_builder, plan, Stage.MODEL, examples=empty))
        assert isinstance(answer, Refusal)
        assert "give train= or unlabelled=" in answer.reason

    def test_refuses_a_student_space_with_nothing_cheaper(self, lever, small_builder: Builder, plan: Plan) -> None:
        dear = self.situation(small_builder, plan, Stage.MODEL, skeleton_ratios=lambda configs, **_: [0.9] * len(configs))
        answer = lever.propose(dear)
        assert isinstance(answer, Refusal)
        assert "1.3× cheaper" in answer.reason
        ratios = iter(range(10_000))
        some = self.situation(small_builder, plan, Stage.MODEL, skeleton_ratios=lambda configs, **_: [1.5 if next(ratios) == 1 else 1.2 for _ in configs])
        assert not isinstance(lever.propose(some), Refusal), "where none is twice as cheap, what is half as much is tried"
        assert "0.90×" in answer.reason

    def test_says_why_no_student_can_be_built(self, lever, small_builder: Builder, plan: Plan) -> None:
        broken = self.situation(small_builder, plan, Stage.MODEL, skeleton_ratios=lambda configs, **_: ["student(0.5) raised KeyError"] * len(configs))
        answer = lever.propose(broken)
        assert isinstance(answer, Refusal)
        assert "student(0.5) raised KeyError" in answer.reason

    def test_tries_those_that_are_expected_to_be_worth_most(self, lever, small_builder: Builder, plan: Plan) -> None:
        """Where all cost the same: those that err least by the law; and where one of these learns slowly, the next instead."""
        situation = self.situation(
            small_builder, plan, Stage.MODEL, skeleton_ratios=lambda configs, **_: [3.0] * len(configs), seconds_left=36_000.0
        )
        specs = families.lighter(families.space(situation), situation)
        ranks = {str(s): law.rank(*size, 3.0, 1.0) for s, size in zip(specs, families.sizes(specs, situation), strict=True)}
        first, second, third, *_ = sorted(ranks, key=lambda s: ranks[s])
        assert [str(c["student"]) for c in lever.propose(situation)] == [first, second]

        def slow(configs: Sequence[Config], trainings: Sequence[TrainConfig]) -> list[float | str]:
            assert all(t.channels_last and t.optimizer == "sgd" for t in trainings)
            return [{first: 1e9, second: "it cannot be trained"}.get(str(c["student"]), 1.0) for c in configs]

        found = [str(c["student"]) for c in lever.propose(dataclasses.replace(situation, epoch_seconds=slow))]
        assert found[0] == third
        assert first not in found
        assert second not in found
        dead = dataclasses.replace(situation, epoch_seconds=lambda configs, _: ["it cannot be trained"] * len(configs))
        assert isinstance(lever.propose(dead), Refusal)

    def test_larger_students_are_expected_to_keep_less_of_their_loss(self) -> None:
        small, middle, large = law.keeps([5_000, 50_000, 500_000])
        assert small > middle > large
        assert middle == pytest.approx(1.0)
        assert small == pytest.approx(10**0.27)
        assert law.keeps([]) == []

    def test_the_law_prefers_what_looks_closer_learns_faster_or_is_cheaper(self) -> None:
        rank = law.rank(10_000, 1_000_000, 8.0, 10.0)
        assert law.rank(10_000, 2_000_000, 8.0, 10.0) < rank
        assert law.rank(20_000, 1_000_000, 8.0, 10.0) > rank
        assert law.rank(10_000, 1_000_000, 16.0, 10.0) < rank
        assert law.rank(10_000, 1_000_000, 8.0, 5.0) < rank
        assert law.rank(10_000, 0, 8.0, 10.0) == law.rank(10_000, 10_000, 8.0, 10.0)

    def test_where_time_is_short_the_cheapest_are_tried_alone(self, lever, small_builder: Builder, plan: Plan) -> None:
        """Half an epoch takes 40 seconds, where 90 are allowed; what does not fit shuts out nothing that comes after it."""
        ratios = (3.0, 12.0)
        asked: list[Config] = []

        def sized(configs: Sequence[Config], *, compressed: bool) -> list[float]:
            assert compressed
            asked.extend(configs)
            return [ratios[i % 2] for i in range(len(configs))]

        situation = self.situation(small_builder, plan, Stage.MODEL, skeleton_ratios=sized, epoch_seconds=lambda configs, _: [80.0] * len(configs))

        def tried(situation: Situation) -> list[float]:
            asked.clear()
            found = lever.propose(situation)
            students = [c["student"] for c in asked]
            return [ratios[students.index(c["student"]) % 2] for c in found]

        assert tried(situation) == [12.0, 12.0]
        slow = iter([500.0] * 6 + [5.0] * 6)
        assert tried(dataclasses.replace(situation, epoch_seconds=lambda configs, _: [next(slow) for _ in configs])) == [3.0, 3.0]
        assert tried(dataclasses.replace(situation, epoch_seconds=lambda configs, _: [500.0] * len(configs))) == [12.0], "one, where none fits"
        hopeless = lever.propose(dataclasses.replace(situation, epoch_seconds=lambda configs, _: [5_000.0] * len(configs)))
        assert isinstance(hopeless, Refusal)
        assert "left for the training of a student, too few: give a larger --budget" in hopeless.reason
        assert tried(dataclasses.replace(situation, seconds_left=36_000.0)) == [12.0, 12.0, 3.0, 3.0]

    def test_a_budget_that_cannot_size_three_students_is_too_small(self, lever, small_builder: Builder, plan: Plan) -> None:
        """Three in two forms take 7.5 seconds, a fifth of 37.5."""
        answer = lever.propose(self.situation(small_builder, plan, Stage.MODEL, seconds_left=37.0))
        assert isinstance(answer, Refusal)
        assert "left for looking for a student, and about 38 are needed" in answer.reason
        assert not isinstance(lever.propose(self.situation(small_builder, plan, Stage.MODEL, seconds_left=38.0)), Refusal)

    def test_mixes_only_where_the_budget_has_room_for_the_answers(self, lever, small_builder: Builder, plan: Plan) -> None:
        """Answers for a short training take a third of its length: 3 and 22 seconds, where 10 are allowed."""
        for seconds, choices in ((28.8, [False, True]), (288.0, [False])):
            situation = self.situation(small_builder, plan, Stage.MODEL, training_seconds=seconds, whole_budget=1_000.0)
            assert lever.space(situation)["mixup"] == choices

    @pytest.mark.parametrize("able", [True, False])
    def test_convolutions_are_trained_in_bfloat16_where_the_device_has_it(self, lever, small_builder: Builder, plan: Plan, able, monkeypatch) -> None:
        monkeypatch.setattr(teaching, "trains_in_bfloat16", lambda: able)
        situation = self.situation(small_builder, plan, Stage.MODEL)
        assert {c["dtype"] for c in lever.propose(situation)} == {"bfloat16" if able else "float32"}
        assert families.dtype({"family": "own"}, situation) == "float32"

    @pytest.mark.parametrize(("budget", "epochs"), [(60.0, [0.5]), (600.0, [4.5, 4.5]), (36_000.0, [8.0, 8.0])])
    def test_short_trainings_see_more_where_the_budget_is_large(self, lever, small_builder: Builder, plan: Plan, budget, epochs) -> None:
        """Two of them have 15 % of it: 4.5 seconds do for half an epoch of one."""
        situation = self.situation(
            small_builder, plan, Stage.MODEL, skeleton_ratios=lambda configs, **_: [3.0] * len(configs),
            epoch_seconds=lambda configs, _: [10.0] * len(configs), seconds_left=budget,
        )  # fmt: skip
        assert [c["epochs"] for c in lever.propose(situation)] == epochs

    @pytest.mark.parametrize(("whole", "epochs"), [(1.0, 5.0), (3.0, 8.0), (100.0, 33.0)])
    def test_short_trainings_are_short_beside_the_longest(self, lever, small_builder: Builder, plan: Plan, whole, epochs) -> None:
        """Ten times as long as the baseline's; a third of a baseline's that trains very long."""
        situation = self.situation(
            small_builder, plan, Stage.MODEL, skeleton_ratios=lambda configs, **_: [3.0] * len(configs), seconds_left=36_000.0, whole_budget=36_000.0,
        )  # fmt: skip
        situation = dataclasses.replace(situation, plan=dataclasses.replace(plan, training=dataclasses.replace(plan.training, epochs=whole)))
        short = lever.propose(situation)
        assert {c["epochs"] for c in short} == {epochs}
        assert 2 * epochs <= distill.MOST_LENGTH * whole

    def test_what_the_teacher_has_to_answer_bounds_them(self, lever, small_builder: Builder, plan: Plan) -> None:
        """15 % of 600 seconds do for two views of 40; where answers are not stored, each epoch has to be answered beside."""
        same = {"skeleton_ratios": lambda configs, **_: [3.0] * len(configs)}
        situation = self.situation(small_builder, plan, Stage.MODEL, epoch_answered=40.0, **same)
        assert [c["epochs"] for c in lever.propose(situation)] == [2.0, 2.0]
        beside = dataclasses.replace(situation, answers_kept=False, epoch_answered=14.0)
        assert [c["epochs"] for c in lever.propose(beside)] == [3.0, 3.0], "of 15 seconds"

    def test_short_trainings_take_one_time(self, lever, small_builder: Builder, plan: Plan) -> None:
        """30 seconds each of three, of which one would learn for longer than is worth it."""
        seconds = iter((5.0, 20.0, 2.0))
        situation = self.situation(
            small_builder, plan, Stage.MODEL, skeleton_ratios=lambda configs, **_: [(3.0, 6.0, 10.0)[i] if i < 3 else 1.0 for i in range(len(configs))],
            epoch_seconds=lambda configs, _: [next(seconds) for _ in configs],
        )  # fmt: skip
        assert [c["epochs"] for c in lever.propose(situation)] == [6.0, 1.5, 8.0]

    @pytest.mark.parametrize(("budget", "epochs"), [(0.0, 3.0), (600.0, 3.0), (3_600.0, 6.0), (36_000.0, 8.0)])
    def test_those_of_the_joint_search_too(self, lever, small_builder: Builder, plan: Plan, budget, epochs) -> None:
        """A training of 24 epochs in 960 seconds: a 15th of the budget pays for none, one, six or sixty of them."""
        long = dataclasses.replace(plan, training=dataclasses.replace(plan.training, epochs=24.0))
        situation = self.situation(small_builder, plan, Stage.MODEL, training_seconds=960.0, whole_budget=budget)
        situation = dataclasses.replace(situation, plan=long)
        point = {name: choices[0] for name, choices in lever.space(situation).items()}
        assert lever.at(situation, point)["epochs"] == epochs

    def test_leaves_out_what_computes_more_than_the_model(self, small_builder: Builder, plan: Plan) -> None:
        situation = self.situation(small_builder, plan, Stage.MODEL)
        specs = families.space(situation)
        products = {str(s): p for s, (_, p) in zip(specs, families.sizes(specs, situation), strict=True)}
        model = Served(nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.Flatten(), nn.Linear(2048, 3)), None)
        kept = families.lighter(specs, dataclasses.replace(situation, fresh=lambda: model))
        assert kept == [s for s in specs if products[str(s)] <= 64 * (9 * 32 + 9 * 32 * 32) + 2048 * 3]  # 8×8 pixels
        assert 0 < len(kept) < len(specs)
        tiny = Served(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3)), None)
        assert families.lighter(specs, dataclasses.replace(situation, fresh=lambda: tiny)) == specs

    def test_a_student_is_sized_by_its_weights_and_products(self, small_builder: Builder, plan: Plan) -> None:
        spec = {"family": "image", "width": 8, "depth": 0, "stem": "conv", "operator": "dense", "smallest": 8, "growth": 2.0}
        weights = 9 * 8 + 2 * 8 + 8 * 3 + 3  # a convolution, its normalisation, the last layer
        products = 64 * 9 * 8 + 8 * 3
        assert families.sizes([spec], self.situation(small_builder, plan, Stage.MODEL)) == [(weights, products)]

    def test_trains_in_full_only_the_best_of_each_tier(self, lever, small_builder: Builder, plan: Plan) -> None:
        from tenfold.lever import Tried
        from tenfold.verdict import Decision, Interval, Verdict

        short = lever.propose(self.situation(small_builder, plan, Stage.MODEL))
        tried = []
        for i, one in enumerate(short):
            quality, gain = (Interval(value=v, low=v - 0.01, high=v + 0.01) for v in (-0.01 * (i % 3), 2.2 - 0.01 * i))
            tried.append(Tried(config=one, verdict=Verdict(decision=Decision.REFUSE, reason="", quality=quality), gain=gain, training_seconds=1.0))
        full = lever.propose(self.situation(small_builder, plan, Stage.MODEL, tried=tuple(tried)))
        assert len(full) == 1  # all cost ratios lie in the first tier
        assert full[0]["student"] == tried[0].config["student"]
        assert full[0]["epochs"] > short[0]["epochs"]

    @pytest.mark.parametrize("a_view", [0.0, 5.0, 20.0, 90.0], ids=["no time", "little time", "fewer views than there could be", "no time for them"])
    def test_full_trainings_leave_time_for_what_their_teacher_answers(self, lever, small_builder: Builder, plan: Plan, a_view) -> None:
        """At two seconds an epoch; some of eight views were answered for the short training."""
        from tenfold.lever import Tried
        from tenfold.verdict import Decision, Interval, Verdict

        (short, *_) = lever.propose(self.situation(small_builder, plan, Stage.MODEL))
        short = short | {"epochs": 2.0}
        verdict = Verdict(decision=Decision.REFUSE, reason="", quality=Interval(value=0.0, low=-0.01, high=0.01))
        tried = Tried(config=short, verdict=verdict, gain=Interval(value=2.2, low=2.1, high=2.3), training_seconds=2.0 * short["epochs"], answering_seconds=a_view)
        answer = lever.propose(self.situation(small_builder, plan, Stage.MODEL, tried=(tried,), seconds_left=100.0))
        budget = distill.TRAIN_SHARE * 100.0
        if a_view == 90.0:
            assert answer == []
            return
        (found,) = answer
        whole = found["epochs"] * 2.0 + a_view * max(min(VIEWS, found["epochs"]) - short["epochs"], 0)
        most = distill.MOST_LENGTH * plan.training.epochs * 2.0 + a_view * (VIEWS - short["epochs"])
        assert whole == pytest.approx(min(budget, most), abs=1.0 + a_view / 2), "but for the rounding to whole epochs"

    def test_what_is_not_allocated_is_sized_as_what_is(self, small_builder: Builder, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        situation = self.situation(small_builder, plan, Stage.MODEL)
        specs = families.space(situation)[::7]
        example = as_seen_by_model(small_builder.examples.valid.take(slice(0, 1)).inputs, small_builder.fresh().preprocess)
        materials = small_builder._materials(Path(), "")
        assert families.sizes(specs, situation) == [families._size(families.build(s, small_builder.fresh(), materials), example) for s in specs]
        monkeypatch.setattr(families, "MORE_WEIGHTS", 0)
        monkeypatch.setattr(families, "LEAST_MOST_WEIGHTS", 5_000)
        few = families.lighter(specs, situation)
        assert 0 < len(few) < len(specs)
        assert all(weights <= 5_000 for weights, _ in families.sizes(few, situation))
        with pytest.raises(WorkloadError, match="the student would have .* weights, more than the 5,000 that are tried for this model"):
            families.build(max(specs, key=lambda s: s["width"]), small_builder.fresh(), materials)

    def test_a_teacher_that_is_too_slow_for_the_budget_is_said_to_be(self, lever, small_builder: Builder, plan: Plan) -> None:
        answer = lever.propose(self.situation(small_builder, plan, Stage.MODEL, epoch_answered=300.0))
        assert isinstance(answer, Refusal)
        assert "give a faster one, or a larger --budget" in answer.reason

    def test_examples_without_labels_are_planned_with(self, small_builder: Builder, plan: Plan) -> None:
        examples = dataclasses.replace(small_builder.examples, unlabelled=blobs(720, seed=5))
        situation = self.situation(small_builder, plan, Stage.MODEL, examples=examples, training_seconds=10.0)
        assert situation.learning_seconds == pytest.approx(10.0 * (720 + 240) / 240)
        given = dataclasses.replace(situation, workload=dataclasses.replace(situation.workload, pretrained=Path("weights.safetensors")))
        assert given.learning_seconds == 10.0, "what it would take was timed on all of them"

    def test_trains_in_full_what_promises_most_in_a_cascade(self, lever, small_builder: Builder, plan: Plan) -> None:
        """Three students far outside the margin: one errs where it is sure, two where they are not, of which the cheaper one errs more."""
        from tenfold.lever import Part, Tried
        from tenfold.recipe import Recipe
        from tenfold.verdict import Decision, Interval, Verdict

        targets = small_builder.examples.valid.targets
        right, wrong = np.eye(3, dtype=np.float32)[targets], np.eye(3, dtype=np.float32)[(targets + 1) % 3]
        answers = [np.where((np.arange(len(targets)) % every == 0)[:, None], sure * wrong, 9 * right) for every, sure in ((10, 20), (20, 1), (10, 2))]
        root = Recipe(workload="w", seed=0)
        configs = [config(epochs=1.0, learning_rate=0.1 * i, student=STUDENT | {"width": 8 * i}) for i in (1, 2, 3)]
        parts = [Part(recipe=root, outputs=9 * right, scores=np.ones(len(targets)), cost=1.0)]
        parts += [
            Part(recipe=root.then("distill", c), outputs=a, scores=(a.argmax(1) == targets).astype(float), cost=cost)
            for c, a, cost in zip(configs, answers, (1 / 6, 1 / 6, 1 / 12), strict=True)
        ]
        verdict = Verdict(decision=Decision.REFUSE, reason="", quality=Interval(value=-0.4, low=-0.42, high=-0.38))
        tried = tuple(Tried(config=c, verdict=verdict, gain=Interval(value=6.0, low=5.9, high=6.1), training_seconds=1.0) for c in configs)
        situation = self.situation(small_builder, plan, Stage.MODEL, tried=tried, parts=lambda: parts)
        assert [c["student"]["width"] for c in lever.propose(situation)] == [24, 16]
        alone = dataclasses.replace(situation, composes=False)
        assert [c["student"]["width"] for c in lever.propose(alone)] == [8]  # the first of equals


def test_a_student_comes_to_answer_as_its_teacher_does(small_builder: Builder) -> None:
    plan = plan_of(small_builder)
    valid = small_builder.examples.valid
    teacher, student = (small_builder.load(p) for p in (dataclasses.replace(plan, model_passes=()), plan))
    agree = (predict(teacher, valid).argmax(1) == predict(student, valid).argmax(1)).mean()
    untaught = predict(small_builder.structure(plan), valid).argmax(1)
    assert agree > 0.9
    assert (predict(teacher, valid).argmax(1) == untaught).mean() < 0.8
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters()) / 50


def test_answers_are_shared_by_students_and_stored_once(small_builder: Builder) -> None:
    first = plan_of(small_builder)
    small_builder.shaped(first)
    before = {p.name for p in small_builder.store.root.iterdir()}
    small_builder.shaped(plan_of(small_builder, learning_rate=0.01))
    new = [p for p in small_builder.store.root.iterdir() if p.name not in before and (p / "answers.npy").exists()]
    assert not new


def test_what_taught_a_student_counts_as_its_training(small_builder: Builder) -> None:
    plan = plan_of(small_builder, teachers=2, epochs=2.0)
    taught = small_builder.shaped(plan).meta
    members = [small_builder.trained(dataclasses.replace(plan, model_passes=(), seed=seed)) for seed in (0, 1)]
    assert {m.path.name for m in members} <= set(taught["taught_by"])
    assert len(taught["taught_by"]) == 2 + 2, "two trainings, and two epochs of answers"
    whole = sum(taught["taught_by"].values()) + taught["cpu_seconds"]
    assert small_builder.training_cpu_seconds(plan) == pytest.approx(whole)


def test_students_of_given_weights_depend_on_the_seed(tmp_path: Path) -> None:
    whole = small_workload()
    save_file(whole.model().state_dict(), tmp_path / "net.safetensors")
    given = dataclasses.replace(whole, pretrained=tmp_path / "net.safetensors")
    builders = [Builder(given, load(given), Store(tmp_path / "steps"), seed=seed, threads=1) for seed in (0, 1)]
    keys = [b.shaped_key(dataclasses.replace(plan_of(b), seed=b.seed)) for b in builders]
    assert keys[0] != keys[1]
    assert keys[0]["from"] == keys[1]["from"]  # the same weights


class FailsInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise IndexError("no such thing")
        return self.head(x.flatten(1))


def test_a_student_that_raises_while_it_is_taught_fails_in_one_sentence(tmp_path: Path) -> None:
    builder = builder_of(dataclasses.replace(small_workload(), student=lambda _share: FailsInTraining()), tmp_path)
    with pytest.raises(WorkloadError, match="distill raised IndexError: no such thing"):
        builder.shaped(plan_of(builder, student={"family": "own", "share": 0.5}))


def test_how_fast_a_structure_learns_is_told_without_training_it(small_builder: Builder, tmp_path: Path) -> None:
    evaluator = Evaluator(small_builder, Plan(training=small_builder.workload.training, session=plain_session()), "serve")
    training = TrainConfig(batch_size=1_000, optimizer="sgd", learning_rate=1e9, channels_last=True)  # more than there are
    before = evaluator.timing_seconds
    assert 0 < evaluator.epoch_seconds(plan_of(small_builder), training) < 60
    assert evaluator.timing_seconds > before
    small = small_workload()
    no_labels = dataclasses.replace(small, train=None, unlabelled=blobs(60).inputs, pretrained=tmp_path / "net.safetensors")
    save_file(small.model().state_dict(), tmp_path / "net.safetensors")
    builder = builder_of(no_labels, tmp_path)
    assert 0 < Evaluator(builder, Plan(training=small.training, session=plain_session()), "serve").epoch_seconds(plan_of(builder), training) < 60


def test_students_that_cannot_be_trained_are_left_out_of_a_run(tmp_path: Path) -> None:
    vectors = {name: Split(inputs=(split.inputs[0].reshape(len(split), 1, 64),), targets=split.targets) for name, split in (("train", blobs(240)), ("valid", blobs(150, seed=1)), ("test", blobs(150, seed=2)))}
    workload = dataclasses.replace(
        small_workload(), model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2_000), nn.ReLU(), nn.Linear(2_000, 3)), student=lambda _share: FailsInTraining(), **vectors
    )  # fmt: skip
    document = run(workload, out=tmp_path / "run", budget=120, levers=["distill"], view="quiet").document
    (row,) = (r for r in document["ladder"] if r["lever"] == "distill")
    assert row["reason"] == "no smaller structure can be trained: no such thing"
    lines = (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()
    timed = [line for line in lines if '"key":"cost:learning:' in line]
    assert timed
    assert len(timed) == len({line.partition('"value"')[0].partition(" ")[2] for line in timed}), "each once"


def test_a_student_of_numbers_learns_what_the_teacher_answers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=5)

    def rows(n: int) -> Split:
        x = rng.normal(size=(n, 5)).astype(np.float32)
        return Split(inputs=(x,), targets=(x @ slopes).astype(np.float32)[:, None])

    workload = Workload(
        name="numbers", model=lambda: nn.Sequential(nn.Linear(5, 256), nn.ReLU(), nn.Linear(256, 1)), loss="mse", metric="squared_error",
        train=rows(600), valid=rows(200), test=rows(200), margin=0.1, training=TrainConfig(epochs=10, batch_size=25, learning_rate=3e-3),
    )  # fmt: skip
    builder = builder_of(workload, tmp_path)
    table = {"family": "table", "width": 32, "depth": 1}
    plan = plan_of(builder, student=table, epochs=20.0, learning_rate=5e-3, mixup=False)
    teacher, student, untaught = (
        predict(m, builder.examples.valid) for m in (builder.load(dataclasses.replace(plan, model_passes=())), builder.load(plan), builder.structure(plan))
    )
    spread = float(teacher.var())
    assert ((student - teacher) ** 2).mean() < 0.05 * spread
    assert ((untaught - teacher) ** 2).mean() > 0.5 * spread


def test_a_mixture_is_of_two_examples_in_about_half_of_the_batches() -> None:
    images = torch.arange(6, dtype=torch.float32)[:, None, None, None] * torch.ones(6, 1, 2, 2)
    mix, generator = mixed(None), torch.Generator().manual_seed(0)
    batches = [mix(images, generator) for _ in range(200)]
    blended = [b for b in batches if not torch.equal(b, images)]
    assert 70 < len(blended) < 130
    for batch in blended:
        values = batch[:, 0, 0, 0]
        assert torch.equal(batch, values[:, None, None, None] * torch.ones(6, 1, 2, 2))  # of whole images
        assert 0 <= values.min() <= values.max() <= 5
        assert values.mean() == pytest.approx(2.5)  # each is taken up once as it is and once as the other
    assert mix(images.to(torch.uint8), generator).dtype == torch.uint8


def test_learns_without_any_label(tmp_path: Path) -> None:
    whole = small_workload()
    trained = builder_of(whole, tmp_path / "a")
    weights = trained.trained(Plan(training=whole.training, session=plain_session())).path / "model.safetensors"
    save_file({k.removeprefix("model."): v for k, v in load_file(weights).items()}, tmp_path / "net.safetensors")
    unlabelled = dataclasses.replace(whole, train=None, pretrained=tmp_path / "net.safetensors", unlabelled=blobs(240, seed=7).inputs[0])
    builder = builder_of(unlabelled, tmp_path / "b")
    plan = plan_of(builder)
    right = predict(builder.load(plan), builder.examples.valid).argmax(1) == builder.examples.valid.targets
    assert right.mean() > 0.9


def test_unlabelled_examples_that_quality_is_judged_on_are_left_out() -> None:
    workload = dataclasses.replace(small_workload(), test=blobs(30, seed=8))
    fresh, judged = blobs(12, seed=9).inputs[0], blobs(30, seed=8).inputs[0]
    examples = load(dataclasses.replace(workload, unlabelled=np.concatenate([fresh, judged])))
    assert examples.unlabelled is not None
    np.testing.assert_array_equal(examples.unlabelled.inputs[0], fresh)
    assert "30 of the unlabelled examples are exact duplicates of some in valid, confirm or test: left out" in examples.notes
    with pytest.raises(WorkloadError, match="unlabelled holds nothing but examples of valid, confirm or test"):
        load(dataclasses.replace(workload, unlabelled=judged))


def test_unlabelled_data_of_another_shape_is_refused() -> None:
    with pytest.raises(WorkloadError, match=r"unlabelled has examples of \(1, 9, 9\) float32, the labelled data of \(1, 8, 8\) float32"):
        load(dataclasses.replace(small_workload(), unlabelled=np.zeros((5, 1, 9, 9), np.float32)))


def test_a_training_that_outlasts_the_budget_can_be_gone_on_with(tmp_path: Path) -> None:
    builder = builder_of(small_workload(), tmp_path)
    plan = plan_of(builder)
    builder.trained(plan)
    answering = 6 * (1 + 10)  # asked before each epoch, and before each of its steps
    left = iter([*[1.0] * (answering + 14), *[0.0] * 5])
    builder.seconds_left = lambda: next(left)
    with pytest.raises(BudgetEndedError, match="the budget ended at .* of its training"):
        builder.shaped(plan)
    assert list(tmp_path.glob("*.partial/student.checkpoint"))
    builder.seconds_left = lambda: 1.0
    gone_on = builder.load(plan).state_dict()
    whole = builder_of(small_workload(), tmp_path / "other").load(plan).state_dict()
    assert all(torch.equal(gone_on[k], whole[k]) for k in whole)


# ---------------------------------------------------------------- teachers


@pytest.mark.parametrize("half", [False, True])
def test_an_ensemble_is_the_mean_of_its_trainings(small_builder: Builder, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "trains_in_bfloat16", lambda: half)
    teacher = teacher_of(small_builder, seeds=range(2), batch_size=24, mixup=False)
    ((inputs, _),) = teacher.feed.parts(3, torch.device("cpu"))
    root = Plan(training=small_builder.workload.training, session=plain_session())
    members = [small_builder.load(dataclasses.replace(root, seed=s)) for s in (0, 1)]
    with torch.inference_mode():
        wanted = torch.stack([m(*inputs) for m in members]).mean(0)
    error = (teacher.answers(3, 0, inputs) - wanted).abs().mean() / wanted.abs().mean()
    assert 1e-4 < error < 0.02 if half else error < 1e-4
    assert not torch.allclose(members[0](*inputs), members[1](*inputs), atol=1e-2)


def test_only_class_scores_of_images_are_learned_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "trains_in_bfloat16", lambda: True)
    image, row = np.zeros((60, 1, 8, 8), np.float32), np.zeros((60, 8), np.float32)
    asked: list[tuple[np.ndarray, dict[str, Any]]] = [(image, {}), (row, {}), (image, {"loss": "mse", "metric": "squared_error"})]
    for inputs, changes in asked:
        split = Split(inputs=(inputs,), targets=np.arange(60) % 3)
        workload = Workload(model=nn.Identity, margin=0.1, train=split, valid=split, test=split, **changes)
        assert teaching.in_bfloat16(workload, load(workload)) == (inputs is image and not changes)


class Writes(nn.Module):
    """Puts what a convolution gives into a tensor of its own, which autocast knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = torch.zeros(len(x), 3)
        return self.head(means.index_put((torch.arange(len(x)),), self.convolution(x).mean((2, 3))))


class Coarse(Writes):
    """Differs in bfloat16 by more than its roundings."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.convolution(x).mean((2, 3))
        return (features - features.mean(1, keepdim=True)) * (1.0 if features.dtype == torch.float32 else 1.5)


@pytest.mark.parametrize("model", [Writes, Coarse])
def test_a_teacher_that_answers_otherwise_in_bfloat16_answers_in_float32(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "trains_in_bfloat16", lambda: True)
    own = model()
    builder = builder_of(dataclasses.replace(small_workload(), teacher=lambda: own), tmp_path)
    teacher = teacher_of(builder, seeds=range(0), batch_size=24, mixup=False)
    ((inputs, _),) = teacher.feed.parts(0, torch.device("cpu"))
    with torch.inference_mode():
        assert torch.allclose(teacher.answers(0, 0, inputs), own(*inputs), atol=1e-6)


class Oracle(nn.Module):
    """Knows where the bright band is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.mean(dim=(1, 3))
        return 20 * torch.stack([rows[:, 2 * t + 1] + rows[:, 2 * t + 2] for t in range(3)], dim=1)


def test_a_teacher_of_the_users_own_is_learned_from(tmp_path: Path) -> None:
    builder = builder_of(dataclasses.replace(small_workload(), teacher=Oracle), tmp_path)
    teacher = teacher_of(builder, seeds=range(0), batch_size=24, mixup=True)
    ((inputs, _),) = teacher.feed.parts(0, torch.device("cpu"))
    assert torch.allclose(teacher.answers(0, 0, inputs), Oracle()(*inputs), atol=1e-5)  # no layer that autocast takes


def test_a_teacher_with_other_weights_is_another_teacher() -> None:
    """Of one function, which reads its weights from a file, say."""
    bias = [0.0]

    def teacher() -> nn.Module:
        model = nn.Linear(2, 2)
        nn.init.constant_(model.weight, 0.0)
        nn.init.constant_(model.bias, bias[0])
        return model

    workload = dataclasses.replace(small_workload(), teacher=teacher)
    examples = load(workload)
    before = learning_key(workload, examples)
    assert learning_key(workload, examples) == before
    bias[0] = 1.0
    assert learning_key(workload, examples)["teacher"][1] != before["teacher"][1]


def test_a_budget_that_ends_while_the_teacher_answers_keeps_what_was_answered() -> None:
    done: list[int] = []
    feed = Feed(blobs(60), 20, views=8)
    left = iter([1.0, 1.0, 0.0])
    with pytest.raises(BudgetEndedError, match="the budget ended at 67% of what its teacher had to answer"):
        Teacher(feed, lambda x: x[0], done.append).prepare(9, seconds_left=lambda: next(left))
    assert done == [0, 1]


def test_answers_that_outlast_the_budget_are_gone_on_with(tmp_path: Path) -> None:
    feed, kept, calls = Feed(blobs(96), 24, views=VIEWS), tmp_path / "answers.checkpoint", []

    def run(inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        calls.append(len(inputs[0]))
        return inputs[0].flatten(1)

    left, cpu = iter([1.0, 1.0, 0.0]), torch.device("cpu")
    with pytest.raises(BudgetEndedError, match="the budget ended at 50% of an epoch that its teacher had to answer"):
        answer_epoch(feed, run, 0, cpu, kept=kept, seconds_left=lambda: next(left))
    calls.clear()
    gone_on, spent = answer_epoch(feed, run, 0, cpu, kept=kept)
    assert calls == [24, 24]
    whole, alone = answer_epoch(feed, run, 0, cpu)
    np.testing.assert_array_equal(gone_on, whole)
    assert set(spent) == set(alone) == {"seconds", "cpu_seconds"}
    with np.load(kept, allow_pickle=False) as file:
        before = dict(zip(("seconds", "cpu_seconds"), file["spent"], strict=True))
    assert all(spent[k] >= before[k] > 0 for k in spent), "of both sittings"


def noisy(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return batch + 0.1 * torch.randn(batch.shape, generator=generator)


def test_micro_batches_are_answered_as_they_are_seen(tmp_path: Path) -> None:
    builder = builder_of(dataclasses.replace(small_workload(), teacher=Oracle, augment=noisy), tmp_path)
    teacher = teacher_of(builder, seeds=range(0), batch_size=24, mixup=False, accumulate=5)
    first = 0
    for inputs, _ in teacher.feed.parts(2, torch.device("cpu"), count=5):
        assert torch.allclose(teacher.answers(2, first, inputs), Oracle()(*inputs), atol=1e-5)
        first += len(inputs[0])
    assert first == 24


def test_epochs_that_fit_are_those_that_are_learned_and_first_answered() -> None:
    assert epochs_within(100.0, 2.0, 0.0) == 50
    assert epochs_within(100.0, 2.0, 3.0) == (100 - VIEWS * 3) / 2, "views come again"
    assert epochs_within(20.0, 2.0, 3.0) == 4, "each is answered, then learned"
    assert epochs_within(20.0, 2.0, 3.0, answered=2.0) == (20 + 6) / 5


class Fool(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 3) + torch.tensor([1.0, 0.0, 0.0])


def test_a_teacher_that_is_worse_than_the_baseline_is_refused(tmp_path: Path) -> None:
    builder = builder_of(dataclasses.replace(small_workload(), teacher=Fool), tmp_path)
    check_teacher(builder)  # takes the inputs, and returns what the model does
    with pytest.raises(WorkloadError, match=r"the teacher scores 0\.3\d* on valid, the model itself .*: leave teacher= out, or give a better one"):
        compare_teacher(builder)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (nn.Flatten, r"the teacher gives outputs of shape \(64,\), the model \(3,\): make them the same"),
        (lambda: nn.Linear(5, 3), r"the teacher does not answer as the model does \(RuntimeError"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_trained(tmp_path: Path, teacher, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        check_teacher(builder_of(dataclasses.replace(small_workload(), teacher=teacher), tmp_path))
    assert not list(tmp_path.rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (lambda _: nn.Flatten(), r"student\(0\.5\) gives outputs of shape \(64,\), the model \(3,\): make them the same"),
        (lambda share: nn.Linear(int(5 * share), 3), r"student\(0\.5\) does not answer as the model does \(RuntimeError"),
        (lambda share: share["width"], r"student\(0\.5\) does not answer as the model does \(TypeError"),
    ],
)
def test_a_family_of_students_that_does_not_fit_is_refused_before_anything_is_trained(tmp_path: Path, student, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        check_student(builder_of(dataclasses.replace(small_workload(), student=student), tmp_path))


# ---------------------------------------------------------------- what is learned


def test_the_loss_is_the_divergence_along_the_classes_and_zero_for_equal_answers() -> None:
    a, b = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    p, q = b.softmax(1), a.softmax(1)
    assert soft_loss(a, b, classes=1).item() == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5)
    assert soft_loss(a, a + 3, classes=1).item() == pytest.approx(0, abs=1e-6)  # a shift of all logits is no difference
    squares = ((a - b) ** 2).mean().item()
    assert soft_loss(a, b, classes=None).item() == pytest.approx(squares, rel=1e-6)


OWN = {"loss": lambda o, t: o.mean(), "metric": lambda o, t: t[:, 0]}


@pytest.mark.parametrize(
    ("outputs", "targets", "changes", "axis"),
    [
        ((6, 3), (), {}, 1),
        ((6, 3, 7), (7,), {}, 1),
        ((6, 3, 4, 5), (4, 5), OWN, 1),
        ((6, 7, 3), (7,), OWN, 2),
        ((6, 7, 7), (7,), OWN, 2),
        ((6, 7, 7), (7,), {}, 1),
        ((6,), (), {}, None),
        ((6, 1), (1,), {}, None),
        ((6, 3), (), {"loss": "mse", "metric": "squared_error"}, None),
        ((6, 3), (), {**OWN, "class_scores": False}, None),
    ],
    ids=["classes", "of every position", "a map, loss of one's own", "tokens, loss of one's own", "as many tokens as classes, loss of one's own",
         "as many positions as classes", "one logit", "one logit in a column", "numbers", "numbers of a loss of one's own"],
)  # fmt: skip
def test_the_axis_of_the_classes(outputs, targets, changes, axis) -> None:
    workload = Workload(model=nn.Identity, margin=0.1, **changes)
    assert axis_of_classes(outputs, np.zeros((60, *targets), np.int64), workload) == axis


def test_one_logit_in_two_classes_is_learned_as_a_number() -> None:
    """Targets may be whole numbers all the same, as those of a loss with weights for two classes are."""
    a, b = torch.randn(6, 1), torch.randn(6, 1)
    assert soft_loss(a, b, classes=1).item() == pytest.approx(((a - b) ** 2).mean().item(), rel=1e-6)


# ---------------------------------------------------------------- families


def test_the_products_of_an_encoder_layer_count() -> None:
    """In evaluation PyTorch computes it by an operator of its own."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    _, products = families._size(layer, (torch.zeros(1, 10, 16),))
    linear = 10 * (16 * 48 + 16 * 16 + 2 * 16 * 32)
    assert products >= linear
    assert torch.backends.mha.get_fastpath_enabled()


def test_rows_of_bytes_that_are_made_floats_have_perceptrons(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = Split(inputs=(rng.integers(0, 255, (60, 9)).astype(np.uint8),), targets=rng.integers(0, 3, 60))
    workload = Workload(
        model=lambda: nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 3)), preprocess=Scaled(), train=rows, valid=rows, test=rows, margin=0.1,
        training=TrainConfig(epochs=1),
    )  # fmt: skip
    builder = Builder(workload, load(workload), Store(tmp_path), seed=0, threads=1)
    plan = Plan(training=workload.training, session=plain_session())
    situation = TestDistill().situation(builder, plan, Stage.MODEL)
    assert {spec["family"] for spec in families.space(situation)} == {"table"}


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() / 255


@pytest.mark.parametrize("stem", ["conv", "pooled", "stride2", "stride4"])
@pytest.mark.parametrize("operator", ["dense", "separable"])
@pytest.mark.parametrize(("side", "channels", "smallest"), [(28, 1, 2), (32, 3, 4), (65, 3, 2)])
def test_image_students_take_any_size(stem, operator, side, channels, smallest) -> None:
    net = image_student(ImageStudent(width=8, depth=1, stem=stem, operator=operator, smallest=smallest), channels, side, (10,))
    assert net.eval()(torch.zeros(2, channels, side, side + 3)).shape == (2, 10)


@pytest.mark.parametrize(("side", "smallest", "last"), [(28, 4, 32), (28, 2, 64), (32, 4, 64), (32, 2, 128), (2, 4, 16)])
def test_maps_are_halved_while_they_stay_large_enough(side, smallest, last) -> None:
    """Each stage has twice the channels of the one before: the last tells how many there are."""
    net = image_student(ImageStudent(width=16, depth=1, stem="pooled", operator="dense", smallest=smallest), 1, side, (10,))
    assert net[-1].in_features == last
    assert net.eval()(torch.zeros(1, 1, side, side)).shape == (1, 10)


def test_a_student_gives_outputs_of_any_shape() -> None:
    assert table_student(TableStudent(width=8, depth=2), 5, (4, 3))(torch.zeros(2, 5)).shape == (2, 4, 3)
    assert table_student(TableStudent(width=8, depth=0), 5, ())(torch.zeros(2, 5)).shape == (2,)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)])
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def test_a_shallower_model_keeps_the_weights_of_evenly_spread_blocks() -> None:
    model, example = Blocks(), (torch.zeros(2, 6),)
    assert families.repeated_blocks(model, example) == [f"blocks.{i}" for i in range(4)]
    weights = model.blocks[3][0].weight.clone()
    small = families.shallower(model, 2, example)
    assert [type(b).__name__ for b in small.blocks] == ["Sequential", "PassOn", "PassOn", "Sequential"]
    assert torch.equal(small.blocks[3][0].weight, weights)
    assert small(torch.ones(2, 6)).shape == (2, 3)


def test_a_family_of_the_users_own_must_give_the_same_outputs(tmp_path: Path) -> None:
    def wrong(share: float) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3 if share > 0.4 else 4))

    builder = builder_of(dataclasses.replace(small_workload(), student=wrong), tmp_path)
    assert builder.structure(plan_of(builder, student={"family": "own", "share": 0.5}))(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(WorkloadError, match=r"student\(0.3\) gives outputs of shape \(4,\), the model \(3,\): make them the same"):
        builder.structure(plan_of(builder, student={"family": "own", "share": 0.3}))


def test_a_config_trained_longer_is_the_same_student() -> None:
    lever = discover()["distill"]
    longer = lever.longer(config(epochs=2.0), 7.3)
    assert longer == config(epochs=15.0)
    assert TrainConfig(epochs=longer["epochs"]).epochs == 15
