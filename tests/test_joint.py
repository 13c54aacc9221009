"""The joint search: what it asks for depends on what it was told, and on nothing else; its measure of a set of trials is an area."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.candidate import Candidate, Rung
from tenfold.joint import ROUND, JointSearch, Trial, ask, contribution, hypervolume, searched
from tenfold.lever import Stage, discover
from tenfold.recipe import Recipe
from tenfold.search import Settings
from tenfold.train.config import TrainConfig
from tenfold.verdict import Decision, Interval, Verdict

SPACE = {"model": ["none", "distill", "prune"], "width": list(range(8, 97, 8)), "use quantize": [False, True]}


def told(n: int, *, sampler: str = "learned") -> list[Trial]:
    """Trials on a landscape in which wide is good and narrow cheap, and only the second kind of model is any good."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(n):
        point = {name: int(rng.integers(len(choices))) for name, choices in SPACE.items()}
        quality = -0.1 if point["model"] != 1 else -0.05 + 0.004 * point["width"]
        out.append(Trial(sampler=sampler, point=point, values=(quality, 2.0 - 0.15 * point["width"])))
    return out


def test_the_same_trials_give_the_same_questions() -> None:
    assert ask(SPACE, told(9), "learned", seed=3) == ask(SPACE, told(9), "learned", seed=3)
    assert ask(SPACE, told(9), "learned", seed=3) != ask(SPACE, told(9), "learned", seed=4)
    assert ask(SPACE, told(9), "random", seed=3) == ask(SPACE, [], "random", seed=3)  # the control learns nothing


@pytest.mark.parametrize("sampler", ["learned", "random"])
def test_a_round_has_its_size_and_stays_within_the_space(sampler) -> None:
    points = ask(SPACE, told(6, sampler=sampler), sampler, seed=0)
    assert len(points) == ROUND
    assert all(set(p) == set(SPACE) and all(0 <= v < len(SPACE[k]) for k, v in p.items()) for p in points)


def test_it_learns_where_it_is_told_and_only_from_its_own_trials() -> None:
    def share_of_good(sampler: str, trials: list[Trial]) -> float:
        points = [p for seed in range(12) for p in ask(SPACE, trials, sampler, seed=seed)]
        return float(np.mean([p["model"] == 1 for p in points]))

    assert share_of_good("learned", told(40)) > 0.6
    assert share_of_good("random", told(40, sampler="random")) < 0.5
    assert share_of_good("learned", told(40, sampler="random")) < 0.5


def test_a_trial_that_failed_is_no_obstacle() -> None:
    failed = Trial(sampler="learned", point={"model": 0, "width": 0, "use quantize": 0}, values=None)
    assert len(ask(SPACE, [*told(5), failed], "learned", seed=0)) == ROUND


POINTS = st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=1, max_size=6)


@given(POINTS)
def test_the_hypervolume_is_the_area_under_the_front(points) -> None:
    grid = (np.arange(400) + 0.5) / 400
    covered = np.zeros((400, 400), dtype=bool)
    for x, y in points:
        covered |= (grid[:, None] < x) & (grid[None, :] < y)
    assert hypervolume(points, (0.0, 0.0)) == pytest.approx(covered.mean(), abs=0.01)


@given(POINTS)
def test_what_a_point_adds_is_nothing_where_another_beats_it(points) -> None:
    x, y = points[0]
    assert contribution((x, y), [*points[1:], (x + 0.1, y + 0.1)]) == pytest.approx(0, abs=1e-9)
    assert contribution((2.0, 2.0), points) > 0


def test_the_levers_that_can_be_searched_say_so() -> None:
    names = {lever.name for lever in searched(list(discover().values()))}
    assert names == {"distill", "prune", "quantize"}


class Stub:
    """A lever of the joint search; without choices it does not apply."""

    stages, rank, touches, summary = (), 0, frozenset(), ""

    def __init__(self, name: str, choices: dict) -> None:
        self.name, self.choices = name, choices

    def propose(self, situation):
        return ()

    def apply(self, plan, config):
        return (*plan, (self.name, config))

    def space(self, situation):
        return self.choices

    def at(self, situation, point):
        return dict(point)

    def longer(self, config, times):
        return config


class StubSearch:
    root = Rung(recipe=Recipe(workload="w"), plan=())

    settings = Settings(seed=2**31 - 1)
    baseline_cost = 1.0
    ladder = SimpleNamespace(candidates=[])

    def situation(self, stage, now, tried):
        return None

    @property
    def ledger(self):
        return self

    def remember(self, key, compute):
        return compute()

    def left(self, question):
        return 1.0

    def joint_round(self, turn, entries):
        return [], len(entries) == 0

    def skeleton_ratios(self, lever, now, configs, *, compressed=False):
        return [2.0] * len(configs)


def test_levers_that_do_not_apply_are_not_asked_for(monkeypatch) -> None:
    stubs = {n: Stub(n, c) for n, c in (("fits", {"width": [1, 2]}), ("does not", {}), ("int8", {"bits": [8, 4]}), ("no int8", {}))}
    monkeypatch.setattr("tenfold.lever.discover", lambda: stubs)
    levers = {Stage.MODEL: [stubs["fits"], stubs["does not"]], Stage.COMPRESSION: [stubs["int8"], stubs["no int8"]]}
    joint = JointSearch(search=StubSearch(), levers=levers)
    assert joint._space == {"model": ["none", "fits"], "use int8": [False, True], "fits: width": [1, 2], "int8: bits": [8, 4]}
    both = joint._entrant({"model": 1, "use int8": 1, "fits: width": 1, "int8: bits": 0})
    assert [(p.lever, p.config) for p in both.recipe.pulls] == [("fits", {"width": 2}), ("int8", {"bits": 8})]
    assert both.plan == (("fits", {"width": 2}), ("int8", {"bits": 8}))
    assert joint._entrant({"model": 0, "use int8": 0, "fits: width": 1, "int8: bits": 0}) is None  # the baseline


def test_it_does_not_begin_where_a_round_of_short_trainings_would_not_fit(monkeypatch) -> None:
    stubs = {"fits": Stub("fits", {"width": [1, 2]})}
    monkeypatch.setattr("tenfold.lever.discover", lambda: stubs)

    def run_with(left: float, training_seconds: float) -> StubSearch:
        search = StubSearch()
        search.left = lambda question: search.asked.append(question) or left - search.budget.later
        search.asked, search.budget = [], SimpleNamespace(later=0.0)
        trained = SimpleNamespace(stage=Stage.MODEL, training_seconds=training_seconds, whole=False, lever="fits", config={})
        search.ladder = SimpleNamespace(candidates=[trained, SimpleNamespace(stage=Stage.COMPRESSION, training_seconds=0.1, whole=False)])
        JointSearch(search=search, levers={Stage.MODEL: [stubs["fits"]], Stage.COMPRESSION: []}).run()
        return search

    assert run_with(left=300.0, training_seconds=61.0).asked == ["joint"]
    begun = run_with(left=300.0, training_seconds=59.0)
    assert "joint:explore:0" in begun.asked
    assert begun.budget.later == 0.0, "what is composed afterwards has all that is left"


def test_any_seed_will_do_and_both_kinds_of_rounds_are_compared_by_as_many_trials(monkeypatch) -> None:
    stubs = {"fits": Stub("fits", {"width": [1, 2]})}
    monkeypatch.setattr("tenfold.lever.discover", lambda: stubs)
    joint = JointSearch(search=StubSearch(), levers={Stage.MODEL: [stubs["fits"]], Stage.COMPRESSION: []})
    for turn in range(3):  # the one that learns has a round more
        joint._explore(turn)
    random = [t for t in joint.trials if t.sampler == "random"]
    learned = [t for t in joint.trials if t.sampler == "learned"]
    joint.trials = [*(Trial(sampler=t.sampler, point=t.point, values=(1.0, 1.0)) for t in random),
                    *(Trial(sampler=t.sampler, point=t.point, values=(1.0, 1.0) if i < ROUND else (9.0, 9.0)) for i, t in enumerate(learned)),
                    Trial(sampler="none", point={}, values=(0.0, 0.0))]  # fmt: skip
    assert joint._controls() == {
        name: {
            "trials": trials, "compared": ROUND, "seconds": 0.0, "hypervolume": 1.0,
            "same_time": {"seconds": 0.0, "trials": trials, "hypervolume": in_time},  # rounds of a stub take none
        } for name, trials, in_time in (("learned", 2 * ROUND, 81.0), ("random", ROUND, 1.0))
    }  # fmt: skip


def test_rounds_are_compared_at_the_time_of_the_quicker_kind_too() -> None:
    joint = JointSearch(search=StubSearch(), levers={Stage.MODEL: [], Stage.COMPRESSION: []})
    values = [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    joint.trials = [Trial(sampler=s, point={}, values=v) for s in ("learned", "random") for v in [(0.0, 0.0), *values]]
    joint.ended = [("learned", 2, 10.0), ("learned", 4, 100.0), ("random", 2, 5.0), ("random", 4, 20.0)]
    joint.seconds = {"learned": 100.0, "random": 20.0}
    found = joint._controls()
    assert found["learned"]["same_time"] == {"seconds": 20.0, "trials": 2, "hypervolume": 1.0}
    assert found["random"]["same_time"] == {"seconds": 20.0, "trials": 4, "hypervolume": 9.0}
    assert found["learned"]["hypervolume"] == found["random"]["hypervolume"] == 9.0


@pytest.mark.parametrize(("ratio", "trained"), [(2.0, True), (0.9, False), ("it cannot be built", False)])
def test_what_measures_no_cheaper_than_the_baseline_is_not_trained(monkeypatch, ratio, trained) -> None:
    stubs = {"fits": Stub("fits", {"width": [1, 2]}), "int8": Stub("int8", {"bits": [8, 4]})}
    monkeypatch.setattr("tenfold.lever.discover", lambda: stubs)
    search, asked = StubSearch(), []
    search.skeleton_ratios = lambda lever, now, configs, *, compressed: [ratio] * len(configs)
    search.joint_round = lambda turn, entries: (asked.extend(entries) or [], False)
    joint = JointSearch(search=search, levers={Stage.MODEL: [stubs["fits"]], Stage.COMPRESSION: [stubs["int8"]]})
    for turn in range(6):
        joint._explore(turn)
    assert any(e.recipe.pulls[0].lever == "fits" for e in asked) is trained
    assert any(e.recipe.pulls[0].lever == "int8" for e in asked), "what keeps the structure needs no such question"
    assert len(joint.trials) == 6 * ROUND


def test_what_the_budget_ended_before_is_no_trial(monkeypatch) -> None:
    """A round that was cut tells the samplers nothing, and counts for nothing in what they are compared by."""
    stubs = {"fits": Stub("fits", {"width": [1, 2]})}
    monkeypatch.setattr("tenfold.lever.discover", lambda: stubs)
    search = StubSearch()
    search.joint_round = lambda turn, entries: ([], True)
    joint = JointSearch(search=search, levers={Stage.MODEL: [stubs["fits"]], Stage.COMPRESSION: []})
    assert not joint._explore(0)
    assert all(t.point["model"] == 0 for t in joint.trials), "the baseline alone is known without a measurement"


class Student(Stub):
    """Of a width whose square is what an epoch takes in seconds."""

    def at(self, situation, point):
        return {**point, "epochs": 8.0}

    def longer(self, config, times):
        return config | {"epochs": max(1.0, round(config["epochs"] * times))}

    def training(self, config, training):
        return replace(training, epochs=config["epochs"])


def test_no_short_training_takes_more_than_leaves_time_for_a_round_of_each_kind(monkeypatch) -> None:
    stubs = {"student": Student("student", {"width": [1, 2, 10]})}
    monkeypatch.setattr("tenfold.lever.discover", lambda: stubs)
    monkeypatch.setattr(Student, "apply", lambda self, plan, config: plan)
    search, asked = StubSearch(), []
    search.root = Rung(recipe=Recipe(workload="w"), plan=SimpleNamespace(training=TrainConfig()))
    search.epoch_seconds = lambda lever, now, configs, trainings: [float(c["width"] ** 2) for c in configs]

    def measure(turn, entries):
        asked.extend(e.config for e in entries)
        verdict = Verdict(decision=Decision.TAKE, reason="", quality=Interval(value=-0.1, low=-0.2, high=0.0))
        gain = Interval(value=2.0, low=1.9, high=2.1)
        return [Candidate(**vars(e), stage=Stage.MODEL, verdict=verdict, gain=gain) for e in entries], False

    search.joint_round = measure
    joint = JointSearch(search=search, levers={Stage.MODEL: [stubs["student"]], Stage.COMPRESSION: []}, short_seconds=10.0)
    for turn in range(8):
        joint._explore(turn)
    assert sorted((c["width"], c["epochs"]) for c in asked) == [(1, 8.0), (2, 2.0)], "each once, and none of the width that could hardly begin"
    values = {joint._space["student: width"][t.point["student: width"]]: t.values for t in joint.trials if t.point["model"]}
    assert values[1] == values[2] == (-0.1, math.log(2.0))
    assert values[10] == (-0.1, math.log(2.0)), "as the worst in quality, at what it costs"
