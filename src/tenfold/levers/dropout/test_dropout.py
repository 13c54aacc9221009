import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from tenfold.build import Builder
from tenfold.data.split import Split
from tenfold.export import Served
from tenfold.lever import Refusal, Situation, Stage
from tenfold.plan import Plan
from tenfold.testing import LeverContract
from tenfold.train.config import TrainConfig
from tenfold.train.dropout import dropping, drops
from tenfold.train.loop import fit


class Dropping(nn.Module):
    """All kinds of modules that drop."""

    def __init__(self, rate: float = 0.4) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, rate, batch_first=True)
        self.lstm, self.drop, self.head = nn.LSTM(8, 8, 2, batch_first=True, dropout=rate), nn.Dropout(rate), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.lstm(self.encoder(x))[0][:, -1]))


class TestDropout(LeverContract):
    name = "dropout"
    objective = "train"

    def situation(self, builder: Builder, plan: Plan, stage: Stage, **changes: object) -> Situation:
        return super().situation(builder, plan, stage, **({"fresh": lambda: Served(Dropping(), None)} | changes))

    def test_tries_none_and_half_of_it(self, lever, small_builder: Builder, plan: Plan) -> None:
        assert [c["dropout"] for c in lever.propose(self.situation(small_builder, plan, Stage.TRAIN))] == [0.0, 0.5]
        half = dataclasses.replace(plan, training=dataclasses.replace(plan.training, dropout=0.5))
        assert [c["dropout"] for c in lever.propose(self.situation(small_builder, half, Stage.TRAIN))] == [0.0, 0.25]

    def test_is_refused_where_nothing_is_dropped_or_serving_should_be_cheaper(self, lever, small_builder: Builder, plan: Plan) -> None:
        for changes, reason in (({"fresh": lambda: Served(Dropping(0.0), None)}, "no dropout"), ({"objective": "serve"}, "--objective train")):
            answer = lever.propose(self.situation(small_builder, plan, Stage.TRAIN, **changes))
            assert isinstance(answer, Refusal)
            assert reason in answer.reason


def rates(model: nn.Module) -> set[float]:
    found = {m.p for m in model.modules() if isinstance(m, nn.Dropout)}
    return found | {m.dropout for m in model.modules() if isinstance(m, (nn.MultiheadAttention, nn.LSTM))}


def test_rates_are_put_back() -> None:
    model = Dropping()
    with dropping(model, 0.5):
        assert rates(model) == {0.2}
    assert rates(model) == {0.4}
    assert drops(model)
    assert not drops(Dropping(0.0))
    assert not drops(nn.Linear(2, 2))


@pytest.mark.parametrize("recompute", [(), ("encoder",)])
def test_a_training_without_is_that_of_a_model_without(recompute: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    split = Split(inputs=(rng.normal(size=(24, 5, 8)).astype(np.float32),), targets=rng.integers(0, 3, 24))
    config = TrainConfig(epochs=2, batch_size=8, recompute=recompute)

    def trained(rate: float, share: float) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = Dropping(rate)
        fit(model, split, nn.functional.cross_entropy, dataclasses.replace(config, dropout=share))
        assert rates(model) == {rate}
        return list(model.state_dict().values())

    without, left_out, whole = trained(0.0, 1.0), trained(0.4, 0.0), trained(0.4, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(without, left_out, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(without, whole, strict=True))
