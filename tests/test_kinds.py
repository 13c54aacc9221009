"""Models as users write them, through every lever: what works on the built-in nets works on these, or is refused with its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tenfold import Bundle, TrainConfig, Workload, run
from tenfold.data.split import Split

BUDGET = 600


class Separable(nn.Module):
    """MobileNet in small: inverted residuals with depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.blocks = nn.ModuleList([self._block(16), self._block(16)])
        self.head = nn.Linear(16, 3)

    @staticmethod
    def _block(width: int) -> nn.Module:
        wide = 4 * width
        return nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 4, 4)
        self.place = nn.Parameter(torch.zeros(1, 16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.encoder(x).mean(1))


class Recurrent(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 32, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Several(nn.Module):
    """Gives logits and features, as a tuple or a dict."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.body, self.head, self.kind = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU()), nn.Linear(64, 3), kind

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        features = self.body(x)
        logits = self.head(features)
        return (features, logits) if self.kind is tuple else {"features": features, "logits": logits}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(256, 64), nn.Linear(4, 16), nn.Linear(80, 3)

    def forward(self, image: Tensor, more: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(image.flatten(1)).relu(), self.right(more).relu()], 1))


def bands(n: int, seed: int, form: str) -> Split:
    """A bright band at one of three heights: as an image (1, 16, 16), as rows (16, 16), as a table (8,), or an image and a table."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, n)
    images = rng.normal(0, 0.5, (n, 16, 16)).astype(np.float32)
    for i, t in enumerate(targets):
        images[i, 5 * t : 5 * t + 4] += 0.7
    table = images.reshape(n, 8, 32).mean(2)
    inputs = {"image": (images[:, None],), "rows": (images,), "table": (table,), "both": (images, table[:, :4])}[form]
    return Split(inputs=inputs, targets=targets.astype(np.int64))


def table_net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3))


KINDS: dict[str, tuple[Callable[[], nn.Module], str, dict]] = {
    "MobileNet-like": (Separable, "image", {}),
    "vision transformer": (VisionTransformer, "image", {}),
    "LSTM": (Recurrent, "rows", {}),
    "perceptron on a table": (table_net, "table", {}),
    "a tuple": (lambda: Several(tuple), "image", {"output": 1}),
    "a dict": (lambda: Several(dict), "image", {"output": "logits"}),
    "two inputs": (TwoInputs, "both", {}),
}
REFUSED = {
    "LSTM": {"prune", "distill"},
    "two inputs": {"distill"},
}
"""Levers that say why they do not apply."""


def task(kind: str) -> Workload:
    model, form, more = KINDS[kind]
    train, valid, confirm, test = (bands(n, seed, form) for seed, n in enumerate((600, 300, 150, 600)))
    return Workload(
        name="bands", model=model, train=train, valid=valid, confirm=confirm, test=test, margin=0.08,
        training=TrainConfig(epochs=4, batch_size=32, learning_rate=2e-3), **more,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_this_kind_goes_through_every_lever(kind, tmp_path: Path) -> None:
    document = run(task(kind), out=tmp_path / "run", budget=BUDGET, trials=16, view="quiet").document
    rows = {(r["stage"], r["lever"]): r for r in document["ladder"]}
    for lever in ("distill", "prune"):
        row = rows["model", lever]
        if lever in REFUSED.get(kind, ()):
            assert row["tried"] == 0
            assert row["reason"]
        else:  # tried, or measured and found to be no cheaper, as these nets are small: then the joint search may still have taken it
            assert row["tried"] > 0 or "measured" in row["reason"] or row["verdict"] == "take", row["reason"]
            assert "failed" not in row["reason"]
    assert ("compose", "cascade") in rows
    assert {c["reason"] for c in document["candidates"] if c["reason"].startswith("failed:")} == set()
    assert any(c["lever"] == "quantize" and c["gain"] for c in document["candidates"]), "integers were measured"
    test = bands(7, 9, KINDS[kind][1])
    answers = Bundle.load(tmp_path / "run" / "bundle").predict(*test.inputs)
    assert answers.shape == (7, 3)


def test_a_model_that_returns_several_things_must_say_which_is_served(tmp_path: Path) -> None:
    from tenfold.errors import WorkloadError

    with pytest.raises(WorkloadError, match="the model returns a dict: say which tensor of it is served with output=, a place or a key"):
        run(dataclasses.replace(task("a dict"), output=None), out=tmp_path / "run", view="quiet")
