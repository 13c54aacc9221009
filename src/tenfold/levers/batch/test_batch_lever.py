import dataclasses

from tenfold.build import Builder
from tenfold.lever import Refusal, Stage
from tenfold.levers.batch import _ways
from tenfold.plan import Plan
from tenfold.testing import LeverContract
from tenfold.train.config import TrainConfig


class TestBatch(LeverContract):
    name = "batch"
    objective = "train"

    def test_is_refused_where_serving_is_what_should_be_cheaper(self, lever, small_builder: Builder, plan: Plan) -> None:
        answer = lever.propose(self.situation(small_builder, plan, Stage.TRAIN, objective="serve"))
        assert isinstance(answer, Refusal)
        assert "--objective train" in answer.reason

    def test_a_batch_of_which_a_first_training_has_few_steps_is_not_tried(self, lever, small_builder: Builder, plan: Plan) -> None:
        plan = dataclasses.replace(plan, training=dataclasses.replace(plan.training, epochs=60))
        long, short = (
            lever.propose(self.situation(small_builder, plan, Stage.TRAIN, training_seconds=10.0, seconds_left=seconds)) for seconds in (1e5, 20.0)
        )
        assert max(c["batch_size"] for c in long) == 240, "all of the data"
        assert {c["batch_size"] * c["grow"] for c in short} == {2, 6, 24}

    def test_memory_that_the_workload_keeps_to_is_kept_to(self, lever, small_builder: Builder, plan: Plan) -> None:
        plan = dataclasses.replace(plan, training=dataclasses.replace(plan.training, epochs=60, accumulate=4))
        answer = lever.propose(self.situation(small_builder, plan, Stage.TRAIN, training_seconds=10.0, seconds_left=1e5))
        assert all(c["batch_size"] * c["grow"] / c["accumulate"] <= 6 for c in answer)
        few = self.situation(small_builder, dataclasses.replace(plan, training=dataclasses.replace(plan.training, accumulate=1)), Stage.TRAIN, seconds_left=1e5)
        assert all(c["batch_size"] * c["grow"] / c["accumulate"] <= 64 for c in lever.propose(dataclasses.replace(few, most_at_once=lambda _: 64)))


def test_sizes_are_around_the_workloads_own_and_large_ones_where_there_is_data() -> None:
    ways = _ways(TrainConfig(batch_size=128, optimizer="sgd", learning_rate=0.1), 300_000)
    assert sorted({w["batch_size"] for w in ways}) == [8, 32, 128, 512, 2048, 8192, 32_768, 300_000]
    assert {w["batch_size"]: w["accumulate"] for w in ways}[32_768] == 32
    assert {w["learning_rate"] for w in ways if w["batch_size"] == 512} == {0.2, 0.4}
    assert len([w for w in ways if w["batch_size"] == 8192]) == 1, "at the largest rate that is tried"
    assert max(w["learning_rate"] for w in ways) == 0.8
    assert [w["grow"] for w in ways if w["batch_size"] == 128] == [1, 4, 16]
    assert sorted({w["batch_size"] for w in _ways(TrainConfig(batch_size=32), 1_000)}) == [2, 8, 32, 128, 512, 1_000]


def test_adam_forgets_over_as_many_examples_and_its_rate_goes_by_the_root() -> None:
    by_size = {w["batch_size"]: w for w in _ways(TrainConfig(batch_size=32, learning_rate=1e-3, second_beta=0.99), 10_000) if w["grow"] == 1}
    assert by_size[8]["second_beta"] == 0.99 ** (1 / 4)
    assert by_size[128]["learning_rate"] == 2e-3
    assert by_size[8]["learning_rate"] == 0.5e-3


def test_parts_are_no_larger_than_what_fits() -> None:
    ways = _ways(TrainConfig(batch_size=64, accumulate=4), 100_000, 16)
    assert all(w["batch_size"] * w["grow"] / w["accumulate"] <= 16 for w in ways)
    assert all(w["batch_size"] * w["grow"] / w["accumulate"] <= 1024 for w in _ways(TrainConfig(batch_size=512), 1_000_000))
    assert all(w["batch_size"] * w["grow"] / w["accumulate"] <= 128 for w in _ways(TrainConfig(batch_size=512), 1_000_000, 128))
