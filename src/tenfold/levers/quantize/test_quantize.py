import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from tenfold.build import Builder
from tenfold.errors import BudgetEndedError
from tenfold.execute import plain_session
from tenfold.lever import Stage, Tried, discover
from tenfold.levers.quantize import MOST_LEFT_OUT
from tenfold.levers.quantize.aware import OBSERVED_STEPS, RoundActivation
from tenfold.levers.quantize.graph import _with_ranges, census
from tenfold.plan import Plan
from tenfold.store import Store
from tenfold.testing import LeverContract, small_workload
from tenfold.verdict import Decision, Interval, Verdict
from tenfold.workload import load


class TestQuantize(LeverContract):
    name = "quantize"

    def tried(self, lever, situation, quality: float) -> tuple[Tried, ...]:
        """All first guesses, equally good, each cheaper than the last."""
        verdict = Verdict(decision=Decision.REFUSE, reason="", quality=Interval(value=quality, low=quality - 0.001, high=quality + 0.001))
        gain = Interval(value=2.0, low=1.9, high=2.1)
        return tuple(
            Tried(config=c, verdict=verdict, gain=dataclasses.replace(gain, value=2 + 0.2 * i)) for i, c in enumerate(lever.propose(situation))
        )

    def test_trains_with_rounding_where_no_other_form_keeps_quality(self, lever, small_builder: Builder, plan: Plan) -> None:
        situation = self.situation(small_builder, plan, Stage.COMPRESSION)
        tried = self.tried(lever, situation, -0.5)
        for _ in range(6):
            for config in lever.propose(dataclasses.replace(situation, tried=tried)):
                tried += tuple(dataclasses.replace(t, config=config) for t in self.tried(lever, situation, -0.5 + 0.01 * config["leave_out"])[:1])
        assert max(t.config["leave_out"] for t in tried) == MOST_LEFT_OUT
        assert [t.config["aware_epochs"] for t in tried if t.config["aware_epochs"]] == [1.0], "once, after layers were left out"

    @pytest.mark.parametrize("changes", [{"began_at": -0.5}, {"quick": True}, {"training_seconds": 1e6}])
    def test_trains_only_what_may_be_certified_and_in_time(self, lever, small_builder: Builder, plan: Plan, changes) -> None:
        situation = self.situation(small_builder, plan, Stage.COMPRESSION, **changes)
        tried = self.tried(lever, situation, -0.9)
        for _ in range(6):
            tried += tuple(dataclasses.replace(tried[0], config=c) for c in lever.propose(dataclasses.replace(situation, tried=tried)))
        assert not any(t.config["aware_epochs"] for t in tried)

    def test_a_part_that_is_worse_than_the_margin_has_its_own_quality_to_keep(self, lever, small_builder: Builder, plan: Plan) -> None:
        situation = self.situation(small_builder, plan, Stage.COMPRESSION, began_at=-0.3)
        assert situation.floor == pytest.approx(-0.35)
        tried = self.tried(lever, situation, -0.31)
        assert lever.propose(dataclasses.replace(situation, tried=tried)) == [], "nothing to mend: it lost a little of its own"
        worse = self.tried(lever, situation, -0.34)
        (mended,) = lever.propose(dataclasses.replace(situation, tried=worse))
        static = [t for t in worse if t.config["method"] == "static"]
        assert mended == static[-1].config | {"leave_out": 1}, "of those that may have kept it, the cheapest"


def test_ranges_that_were_seen_are_part_of_the_state() -> None:
    watched, other = RoundActivation(), RoundActivation()
    batches = torch.randn(OBSERVED_STEPS + 1, 50, generator=torch.Generator().manual_seed(0))
    for batch in batches[:-1]:
        assert torch.equal(watched(batch), batch)
    assert watched(batches[-1]).unique().numel() < 50  # rounded by now
    other.load_state_dict(watched.state_dict())
    assert torch.equal(other.eval()(batches[0]), watched.eval()(batches[0]))
    assert (watched(batches[0]) - batches[0]).abs().max() < float(watched.high - watched.low) / 255


def test_a_training_with_rounding_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    workload = small_workload()
    asked = {"method": "static", "aware_epochs": 6.0}

    def builder_of(folder: Path) -> Builder:
        return Builder(workload, load(workload), Store(folder), seed=0, threads=1)

    plan = discover()["quantize"].apply(Plan(training=workload.training, session=plain_session()), asked)
    builder = builder_of(tmp_path / "stopped")
    builder.trained(dataclasses.replace(plan, model_passes=(), graph_passes=()))
    left = iter([1.0] * 35)  # of 60 steps; ranges are watched in the first 20
    builder.seconds_left = lambda: next(left, 0.0)
    with pytest.raises(BudgetEndedError):
        builder.shaped(plan)
    builder.seconds_left = None
    gone_on = builder.load(plan).state_dict()
    whole = builder_of(tmp_path / "whole").load(plan).state_dict()
    assert all(torch.equal(gone_on[k], whole[k]) for k in whole)


def test_quantizing_layer_by_layer_ends_with_the_budget(tmp_path: Path) -> None:
    workload = small_workload()
    builder = Builder(workload, load(workload), Store(tmp_path), seed=0, threads=1)
    plan = discover()["quantize"].apply(Plan(training=workload.training, session=plain_session()), {"method": "static", "leave_out": 1})
    builder.graph(dataclasses.replace(plan, graph_passes=()))
    builder.seconds_left = lambda: 0.0
    with pytest.raises(BudgetEndedError, match="the budget ended after 0 of .* layers had been quantized alone"):
        builder.graph(plan)


def pooled_by_maximum() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize("operators", ["all", "compute"])
def test_a_maximum_over_the_image_is_no_obstacle(tmp_path: Path, operators: str) -> None:
    """onnxruntime's symbolic shape inference does not know its form of today."""
    workload = dataclasses.replace(small_workload(), model=pooled_by_maximum)
    builder = Builder(workload, load(workload), Store(tmp_path), seed=0, threads=1)
    plain = Plan(training=workload.training, session=plain_session())
    quantized = discover()["quantize"].apply(plain, {"method": "static", "operators": operators})
    path = builder.graph(quantized).path / "model.onnx"
    assert census(path).integer


def test_what_something_infinite_goes_through_stays_float() -> None:
    mask = numpy_helper.from_array(np.array([[0, -np.inf], [0, 0]], np.float32), "mask")
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32), "weight")
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["scores"]), helper.make_node("Add", ["scores", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["shares"]), helper.make_node("Mul", ["shares", "weight"], ["y"]),
    ]  # fmt: skip
    kinds = _with_ranges(helper.make_model(helper.make_graph(nodes, "g", [], [], initializer=[weight, mask])))
    assert {"Add", "Softmax"}.isdisjoint(kinds)
    assert {"MatMul", "Mul", "Conv"} <= set(kinds)
    plain = _with_ranges(helper.make_model(helper.make_graph(nodes[:1], "g", [], [], initializer=[weight])))
    assert {"Add", "Softmax"} <= set(plain)
