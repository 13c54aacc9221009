import dataclasses
from typing import Any

import pytest

from tenfold.build import Builder
from tenfold.lever import Config, Refusal, Stage, Tried
from tenfold.levers import optimizer
from tenfold.levers.optimizer import FAMILIES, _ways
from tenfold.plan import Plan
from tenfold.testing import LeverContract
from tenfold.tune import first_length, next_round
from tenfold.verdict import Decision, Interval, Verdict


def tried(config: Config, quality: float | None, gain: float = 1.0, seconds: float = 1.0) -> Tried:
    at = Interval(value=quality, low=quality - 0.01, high=quality + 0.01) if quality is not None else None
    cost = Interval(value=gain, low=gain, high=gain) if quality is not None else None
    return Tried(config=config, verdict=Verdict(decision=Decision.REFUSE, reason="", quality=at, cost=cost), gain=cost, training_seconds=seconds)


class TestOptimizer(LeverContract):
    name = "optimizer"
    objective = "train"

    def test_is_refused_where_it_can_do_nothing(self, lever, small_builder: Builder, plan: Plan) -> None:
        serving = lever.propose(self.situation(small_builder, plan, Stage.TRAIN, objective="serve"))
        assert isinstance(serving, Refusal)
        assert "--objective train" in serving.reason
        given = dataclasses.replace(small_builder.workload, pretrained="weights.safetensors")
        answer = lever.propose(self.situation(small_builder, plan, Stage.TRAIN, workload=given))
        assert isinstance(answer, Refusal)
        assert "given trained" in answer.reason

    def test_families_come_one_after_the_other_that_of_the_baseline_first(self, lever, small_builder: Builder, plan: Plan) -> None:
        seen: list[str] = []
        so_far: tuple[Tried, ...] = ()
        for _ in range(60):
            answer = lever.propose(self.situation(small_builder, plan, Stage.TRAIN, tried=so_far))
            if not answer:
                break
            seen += [f"{c['optimizer']}{' free' if c['schedule'] == 'free' else ''}" for c in answer]
            so_far += tuple(tried(c, -1.0) for c in answer)
        assert list(dict.fromkeys(seen)) == ["adamw", "sgd", "lion", "muon", "adamw free"]
        assert len(FAMILIES) == 5
        own = [t.config for t in so_far if t.config["optimizer"] == "adamw" and t.config["schedule"] != "free"]
        assert small_builder.workload.training.learning_rate in {c["learning_rate"] for c in own}
        assert max(c["epochs"] for c in own) == small_builder.workload.training.epochs, "what is not good enough is made as long as the baseline"

    def test_each_family_decays_weights_in_its_own_way_and_the_trainings_own_schedule_is_among_them(self, small_builder: Builder) -> None:
        own = dataclasses.replace(small_builder.workload.training, optimizer="sgd", schedule="cosine", weight_decay=1e-3)
        assert {w["weight_decay"] for w in _ways("sgd", own)} == {1e-3}
        assert {w["weight_decay"] for w in _ways("adamw", own)} == {0.05}
        assert {w["weight_decay"] for w in _ways("lion", dataclasses.replace(own, weight_decay=0.0))} == {0.0}
        assert [w["schedule"] for w in _ways("sgd", own)] == ["cosine"] * 3 + ["linear", "one_cycle", "stable"]
        assert [w["schedule"] for w in _ways("muon", own)] == ["linear"] * 3 + ["one_cycle", "cosine", "stable"]

    def test_each_family_has_the_same_part_of_the_time(self, lever, small_builder: Builder, plan: Plan) -> None:
        first = lever.propose(self.situation(small_builder, plan, Stage.TRAIN, seconds_left=500.0))
        dear = tuple(tried(c, -1.0, seconds=25.0) for c in first)  # 150 of 650 seconds, its part 104
        answer = lever.propose(self.situation(small_builder, plan, Stage.TRAIN, seconds_left=500.0, tried=dear))
        assert {c["optimizer"] for c in answer} == {"sgd"}
        timed = tuple(dataclasses.replace(t, training_seconds=1.0, timing_seconds=24.0) for t in dear)
        assert lever.propose(self.situation(small_builder, plan, Stage.TRAIN, seconds_left=500.0, tried=timed)) == answer, "timing them is of it"

    def test_a_family_whose_package_is_missing_is_tried_once_last_and_takes_no_part_of_the_time(
        self, lever, small_builder: Builder, plan: Plan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(optimizer, "find_spec", lambda name: None if name == "lion_pytorch" else name)
        first = lever.propose(self.situation(small_builder, plan, Stage.TRAIN, seconds_left=500.0))
        for seconds, wanted in ((26.0, "sgd"), (20.0, "adamw")):  # of 656 seconds a quarter of 0.8 is 131
            so_far = tuple(tried(c, -1.0, seconds=seconds) for c in first)
            assert {c["optimizer"] for c in lever.propose(self.situation(small_builder, plan, Stage.TRAIN, seconds_left=500.0, tried=so_far))} == {wanted}
        seen: list[Config] = []
        while more := lever.propose(self.situation(small_builder, plan, Stage.TRAIN, tried=tuple(tried(c, None if c["optimizer"] == "lion" else -1.0) for c in seen))):
            seen += more
        assert [c["optimizer"] for c in seen].count("lion") == 1
        assert seen[-1]["optimizer"] == "lion"


# ---------------------------------------------------------------- rounds

WAYS: list[dict[str, Any]] = [{"rate": r} for r in range(9)]


def rounds(quality_of, whole: float = 64.0) -> list[list[Config]]:
    """All rounds, where `quality_of` (rate, epochs) says what comes of a training."""
    out: list[list[Config]] = []
    so_far: list[Tried] = []
    while more := next_round(WAYS, so_far, length=1 / 16, whole=whole, margin=0.02):
        out.append(more)
        so_far += [tried(c, quality_of(c["rate"], c["epochs"]), gain=whole / c["epochs"]) for c in more]
        assert len(out) < 20
    return out


def test_rounds_are_twice_as_long_and_of_a_third_as_many_until_one_is_good_enough():
    found = rounds(lambda rate, epochs: -0.1 * abs(rate - 4) - 0.4 / epochs)
    assert [(len(r), r[0]["epochs"]) for r in found] == [(9, 4.0), (3, 8.0), (1, 16.0), (1, 32.0), (1, 64.0), (1, 45.0)]
    assert {c["rate"] for c in found[1]} == {3, 4, 5}
    assert all(r[0]["rate"] == 4 for r in found[2:])
    # −0.4 / 45 is within half a margin, so that is what was sought; 32 were too few


def test_what_is_good_at_once_is_tried_shorter():
    found = rounds(lambda rate, _: 0.0 if rate == 2 else -1.0)
    assert [(len(r), r[0]["epochs"]) for r in found] == [(9, 4.0), (1, 2.0), (1, 1.0)]
    assert all(r[0]["rate"] == 2 for r in found[1:])


def test_it_ends_where_nothing_becomes_good_and_what_failed_is_left_out():
    found = rounds(lambda rate, _: None if rate > 3 else -1.0)
    assert [len(r) for r in found] == [9, 2, 1, 1, 1]
    assert found[-1][0]["epochs"] == 64.0
    assert len(rounds(lambda *_: None)) == 1


def test_a_way_that_costs_less_is_worth_some_quality():
    config = [{"rate": r, "epochs": 4.0} for r in (0, 1, 2)]
    so_far = [tried(config[0], -0.30, gain=8.0), tried(config[1], -0.27, gain=4.0), tried(config[2], -0.25, gain=2.0)]
    assert next_round(WAYS[:3], so_far, length=1 / 16, whole=64.0, margin=0.02)[0]["rate"] == 0


@pytest.mark.parametrize(("ways", "share", "whole", "wanted"), [(9, 270.0, 100.0, 0.1), (9, 1e9, 100.0, 1 / 4), (9, 1.0, 100.0, 1 / 64)])
def test_the_first_length_is_what_the_time_allows(ways, share, whole, wanted):
    assert first_length(ways, share, whole) == pytest.approx(wanted)
