"""The public contract of a lever. A lever's test subclasses `LeverContract`, names the lever, and inherits the rules.

    from tenfold.testing import LeverContract

    class TestMine(LeverContract):
        name = "mine"
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from tenfold.build import Builder
from tenfold.data.split import Array, Split
from tenfold.engine import open_session, run_in_batches
from tenfold.execute import plain_session
from tenfold.lever import Config, Lever, Part, Refusal, Situation, Stage, card, discover
from tenfold.plan import Plan
from tenfold.recipe import Recipe, canonical
from tenfold.store import Store
from tenfold.train.config import TrainConfig
from tenfold.workload import Workload, load


def blobs(n: int = 240, *, seed: int = 0) -> Split:
    """Images (n, 1, 8, 8) of float32 in three classes that a small net tells apart: a bright band at one of three heights."""
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % 3
    images = rng.normal(0.0, 0.3, (n, 1, 8, 8)).astype(np.float32)
    for row, target in enumerate(targets):
        images[row, 0, 2 * target + 1 : 2 * target + 3] += 1.0
    return Split(inputs=(images,), targets=targets.astype(np.int64))


def small_net() -> nn.Module:
    """A convolution with normalisation and two linear layers, wide enough for integers to pay."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 3),
    )  # fmt: skip


def small_workload() -> Workload:
    """A task that trains in a second."""
    return Workload(
        name="blobs", model=small_net, train=blobs(240), valid=blobs(150, seed=1), test=blobs(150, seed=2), margin=0.05,
        training=TrainConfig(epochs=3, batch_size=24, learning_rate=3e-3),
    )  # fmt: skip


@pytest.fixture(scope="session")
def small_builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """A builder for `small_workload` with a store of its own."""
    workload = small_workload()
    return Builder(workload, load(workload), Store(tmp_path_factory.mktemp("steps")), seed=0, threads=1)


def part(name: str, right: Array, sureness: Array, cost: float) -> Part:
    """A part whose first logit says how sure it is."""
    outputs = np.stack([sureness * 10, np.zeros(len(right)), np.zeros(len(right))], axis=1)
    return Part(recipe=Recipe(workload="w").then("distill", {"name": name}), outputs=outputs, scores=right.astype(float), cost=cost)


class LeverContract:
    """What every lever keeps. Subclass it and set `name`."""

    name: str
    objective = "serve"

    @pytest.fixture
    def lever(self) -> Lever:
        return discover()[self.name]

    @pytest.fixture
    def plan(self, small_builder: Builder) -> Plan:
        return Plan(training=small_builder.workload.training, session=plain_session())

    def situation(self, builder: Builder, plan: Plan, stage: Stage, **changes: object) -> Situation:
        base = Situation(
            stage=stage, workload=builder.workload, examples=builder.examples, fresh=builder.fresh, plan=plan,
            graph=builder.graph(plan).path / "model.onnx", objective=self.objective, batch=1, margin=0.05, quick=False,
            seconds_left=600.0, training_seconds=1.0, skeleton_ratios=lambda configs, **_: [1.2 + 0.4 * i for i in range(len(configs))],
        )  # fmt: skip
        return dataclasses.replace(base, **changes)  # type: ignore[arg-type]

    def proposals(self, lever: Lever, builder: Builder, plan: Plan) -> Iterator[tuple[Stage, Config]]:
        for stage in lever.stages:
            answer = lever.propose(self.situation(builder, plan, stage))
            if not isinstance(answer, Refusal):
                yield from ((stage, config) for config in answer)

    def test_has_a_name_a_stage_and_a_card(self, lever: Lever) -> None:
        assert lever.name == self.name
        assert lever.stages
        assert lever.summary
        text = card(self.name)
        for heading in ("## What", "## When it pays", "## When not", "## Source", "## Measured"):
            assert heading in text, f"the card lacks {heading!r}"

    def test_touches_only_slots_that_it_declares(self, lever: Lever, small_builder: Builder, plan: Plan) -> None:
        for _, config in self.proposals(lever, small_builder, plan):
            changed = lever.apply(plan, config)
            for slot in (f.name for f in dataclasses.fields(Plan)):
                if slot not in lever.touches:
                    assert getattr(changed, slot) == getattr(plan, slot), f"{slot} is not among what it touches"

    def test_configs_are_data_and_change_the_plan(self, lever: Lever, small_builder: Builder, plan: Plan) -> None:
        seen = set()
        for _, config in self.proposals(lever, small_builder, plan):
            assert json.loads(canonical(config)) == config
            seen.add(Recipe(workload="w").then(self.name, config).id)
            assert lever.apply(plan, config) != plan
        assert len(seen) == len(list(self.proposals(lever, small_builder, plan))), "a config is proposed twice"

    def test_same_config_gives_the_same_graph(self, lever: Lever, small_builder: Builder, plan: Plan, tmp_path: Path) -> None:
        again = Builder(small_builder.workload, small_builder.examples, Store(tmp_path / "steps"), seed=0, threads=1)
        for stage, config in self.proposals(lever, small_builder, plan):
            if stage is Stage.TRAIN:
                continue
            first = (small_builder.graph(lever.apply(plan, config)).path / "model.onnx").read_bytes()
            second = (again.graph(lever.apply(plan, config)).path / "model.onnx").read_bytes()
            assert first == second, config
            return

    def test_answers_a_batch_as_it_answers_single_examples(self, lever: Lever, small_builder: Builder, plan: Plan) -> None:
        images = small_builder.examples.valid.inputs[0]
        for stage, config in self.proposals(lever, small_builder, plan):
            if stage is Stage.TRAIN or config.get("method") == "dynamic":  # quantizes a batch as a whole
                continue
            changed = lever.apply(plan, config)
            run = open_session(small_builder.graph(changed).path / "model.onnx", changed.session)
            one = run_in_batches(run, [images[:64]], 1)
            for batch in (2, 7, 64):
                many = run_in_batches(run, [images[:64]], batch)
                # float sums in another order; an integer step more or less after rounding
                assert np.abs(one - many).max() <= 0.02 * np.abs(one).max(), (config, batch)

    def test_stops_proposing(self, lever: Lever, small_builder: Builder, plan: Plan) -> None:
        from tenfold.lever import Tried
        from tenfold.verdict import Decision, Interval, Verdict

        even = Interval(value=0.0, low=-0.01, high=0.01)
        for stage in lever.stages:
            tried: tuple[Tried, ...] = ()
            for _ in range(20):
                answer = lever.propose(self.situation(small_builder, plan, stage, tried=tried))
                if isinstance(answer, Refusal) or not answer:
                    break
                verdict = Verdict(decision=Decision.REFUSE, reason="", quality=even, cost=even)
                tried += tuple(Tried(config=c, verdict=verdict, gain=even) for c in answer)
            else:
                raise AssertionError(f"{self.name} goes on proposing at {stage}")
