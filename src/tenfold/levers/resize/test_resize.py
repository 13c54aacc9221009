import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import nn

from tenfold import execute
from tenfold.build import Builder
from tenfold.data.split import Split
from tenfold.errors import WorkloadError
from tenfold.execute import Evaluator, plain_session
from tenfold.export import Served
from tenfold.lever import Refusal, Stage
from tenfold.measure import Samples
from tenfold.plan import Plan
from tenfold.store import Store
from tenfold.testing import LeverContract, blobs, small_workload
from tenfold.train.config import TrainConfig
from tenfold.train.loop import fit
from tenfold.train.resize import SIZES, UNTIL, phases_of, resized, scale_at, scales_of
from tenfold.workload import load


def larger(split: Split, side: int = 16) -> Split:
    """The same images with a side of so many pixels."""
    return dataclasses.replace(split, inputs=(split.inputs[0].repeat(side // 8, axis=2).repeat(side // 8, axis=3),))


def pooling_net() -> nn.Module:
    """Takes images of any size."""
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 1)), nn.Flatten(), nn.Linear(32, 3))


@pytest.fixture(scope="module")
def small_builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Of a net that pools, on images of 16 pixels a side."""
    small = small_workload()
    workload = dataclasses.replace(
        small, model=pooling_net, train=larger(blobs(240)), valid=larger(blobs(150, seed=1)), test=larger(blobs(150, seed=2))
    )
    return Builder(workload, load(workload), Store(tmp_path_factory.mktemp("steps")), seed=0, threads=1)


class TestResize(LeverContract):
    name = "resize"
    objective = "train"

    def test_begins_with_half_and_three_quarters(self, lever, small_builder: Builder, plan: Plan) -> None:
        assert [c["resize"] for c in lever.propose(self.situation(small_builder, plan, Stage.TRAIN))] == [0.5, 0.75]

    def test_tries_only_what_is_smaller_than_it_begins_already(self, lever, small_builder: Builder, plan: Plan) -> None:
        def beginning(scale: float) -> Plan:
            return dataclasses.replace(plan, training=dataclasses.replace(plan.training, resize=scale))

        assert [c["resize"] for c in lever.propose(self.situation(small_builder, beginning(0.75), Stage.TRAIN))] == [0.5]
        assert "begin as small already" in self.refused(lever, small_builder, beginning(0.5))

    def refused(self, lever, builder: Builder, plan: Plan, **changes: object) -> str:
        answer = lever.propose(self.situation(builder, plan, Stage.TRAIN, **changes))
        assert isinstance(answer, Refusal)
        return answer.reason

    def test_says_why_a_model_cannot_learn_from_smaller_images(self, lever, small_builder: Builder, plan: Plan) -> None:
        def rigid() -> Served:
            return Served(nn.Sequential(nn.Flatten(), nn.Linear(256, 3)), None)

        def dense() -> Served:
            return Served(nn.Conv2d(1, 3, 3, padding=1), None)

        assert "does not take smaller images (mat1 and mat2" in self.refused(lever, small_builder, plan, fresh=rigid)
        assert "would not fit the targets" in self.refused(lever, small_builder, plan, fresh=dense)
        assert "--objective train" in self.refused(lever, small_builder, plan, objective="serve")
        small = dataclasses.replace(small_builder.examples, valid=blobs(150, seed=1))
        assert "no images" in self.refused(lever, small_builder, plan, examples=small)
        tokens = larger(blobs(150))
        classes = dataclasses.replace(small_builder.examples, valid=dataclasses.replace(tokens, inputs=(tokens.inputs[0].astype(np.int64),)))
        assert "no images" in self.refused(lever, small_builder, plan, examples=classes)

        def divisible() -> Served:
            return Served(nn.Sequential(nn.PixelUnshuffle(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)), None)

        assert "does not take smaller images" in self.refused(lever, small_builder, plan, fresh=divisible), "ten pixels are no multiple of four"


def test_images_grow_and_the_last_quarter_has_their_own_size() -> None:
    scales = [scale_at(0.5, share) for share in np.linspace(0, 1, 101)]
    assert scales == sorted(scales)
    assert sorted(set(scales)) == [0.5, 0.625, 0.75, 0.875, 1.0]
    assert scale_at(0.5, UNTIL) == 1.0
    assert scale_at(0.5, UNTIL - 1e-9) == 0.875
    assert scales_of(0.5) == [0.5, 0.625, 0.75, 0.875, 1.0]
    assert {scale_at(1.0, share) for share in (0.0, 0.4, 1.0)} == {1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_smaller_images_are_means_of_larger_ones(dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (3, 2, 16, 12)).to(dtype)
    other = torch.ones(3, 5)
    small, same = resized((images, other), 0.5)
    assert small.shape == (3, 2, 8, 6)
    assert small.dtype == dtype
    assert same is other
    even = resized((torch.full((1, 1, 16, 16), 7).to(dtype),), 0.625)[0]
    rounded = {} if dtype.is_floating_point else {"rtol": 0, "atol": 0}  # weights of floats may sum to a little beside 1
    torch.testing.assert_close(even, torch.full((1, 1, 10, 10), 7).to(dtype), **rounded)
    spread = resized((images,), 0.5)[0].float()
    assert abs(spread.mean() - images.float().mean()) < 8
    assert spread.std() < images.float().std()


def test_a_training_sees_each_size_as_often_as_it_is_counted() -> None:
    seen: Counter[tuple[int, float]] = Counter()

    class Watched(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen[len(x), x.shape[-1] / 16] += 1
            return super().forward(x)

    config = TrainConfig(epochs=3, batch_size=20, grow=4, resize=0.5)
    fit(Watched(*pooling_net()), larger(blobs(240)), nn.functional.cross_entropy, config)
    assert seen == phases_of(config, 240)
    assert {scale for _, scale in seen} == {0.5, 0.625, 0.75, 0.875, 1.0}
    assert phases_of(dataclasses.replace(config, resize=1.0), 240) == {(20, 1.0): 12, (40, 1.0): 6, (80, 1.0): 3}
    assert len(phases_of(dataclasses.replace(config, grow=1), 240)) == SIZES + 1
    assert phases_of(TrainConfig(epochs=6, batch_size=60, grow=4), 100) == {(60, 1.0): 4, (100, 1.0): 4}, "where batches are capped, stretches have one size"


def test_smaller_images_are_counted_as_what_they_take(small_builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []

    class Watched(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sides.append(x.shape[-1])
            return super().forward(x)

    def by_pixels(steps: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, Samples]:
        costs = {}
        for name, step in steps.items():
            step()
            costs[name] = Samples(cpu=np.full((rounds, 1), sides[-1] ** 2), wall=np.ones((rounds, 1)), batch=1)
        return costs

    monkeypatch.setattr(execute, "step_costs", by_pixels)
    workload = dataclasses.replace(small_builder.workload, model=lambda: Watched(*pooling_net()))
    plain = TrainConfig(epochs=8, batch_size=24)  # 80 steps
    evaluator = Evaluator(Builder(workload, load(workload), small_builder.store, seed=0, threads=1), Plan(training=plain, session=plain_session()), "train")
    costs, failed = evaluator.training_costs({"plain": plain, "smaller": dataclasses.replace(plain, resize=0.5)})
    assert not failed
    assert evaluator.ratio(costs["plain"], costs["smaller"]).value == pytest.approx(80 * 16**2 / (15 * (8**2 + 10**2 + 12**2 + 14**2) + 20 * 16**2))


def test_a_scale_that_is_none_is_refused() -> None:
    for scale in (0.0, 1.5):
        with pytest.raises(WorkloadError, match="images begin at a share of their size"):
            TrainConfig(resize=scale)
    assert "resize" not in TrainConfig().to_json()
