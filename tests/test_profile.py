"""Training against inference: counts by hand, and what a chain of steps in time does to them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tenfold.build import Builder
from tenfold.profile import profile, profile_of


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def test_a_perceptron_by_hand() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    found = profile(model, (x,), y, cross_entropy)
    forward = 6 * 16 + 16 * 3
    assert found.prediction.products == forward
    assert found.training.products == forward + forward + 16 * 3, "gradients of all weights, and of the inputs of all but the first layer"
    assert found.prediction.sequential == 3
    assert found.training.sequential > 2 * 3
    # tanh keeps what it gave, the loss the logarithms of the probabilities, and next to nothing else
    assert 4 * (16 + 3) <= found.kept <= 4 * (16 + 3) + 16
    weights = 4 * (6 * 16 + 16 + 16 * 3 + 3)
    values = 4 * (6 + 16 + 16 + 16 + 16 + 3)
    assert found.prediction.bytes == pytest.approx(weights / 4 + values)
    assert found.training.bytes > 2 * found.prediction.bytes


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def test_steps_in_time_wait_for_one_another_and_their_products_count() -> None:
    y = torch.tensor([0, 1])
    short, long = (profile(Recurrent(), (torch.randn(2, n, 4),), y, cross_entropy) for n in (10, 20))
    assert long.prediction.sequential - short.prediction.sequential >= 10
    assert long.prediction.products - short.prediction.products == 10 * (4 * 32 + 8 * 32)
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    a, b = (profile(nn.Sequential(attention, nn.Flatten(), nn.Linear(8 * n, 3)), (torch.randn(2, n, 8),), y, cross_entropy) for n in (10, 20))
    assert a.prediction.sequential == b.prediction.sequential, "attention looks at all positions at once"
    assert b.prediction.products > 2 * a.prediction.products


def test_the_profile_of_a_workload(small_builder: Builder) -> None:
    found = profile_of(small_builder)
    assert 2 < found["training"]["products"] / found["prediction"]["products"] <= 3
    assert found["kept"] > 0
    assert torch.backends.mkldnn.enabled
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_model_that_cannot_be_counted_says_why(small_builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn(nn.Module):
        def forward(self, _x: Tensor) -> Tensor:
            raise RuntimeError("not today")

    monkeypatch.setattr(small_builder, "fresh", Stubborn)
    assert profile_of(small_builder) == {"reason": "not today"}
