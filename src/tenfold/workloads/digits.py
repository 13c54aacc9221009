"""scikit-learn's 8×8 digits: a demonstration that needs no download. Its figures claim nothing."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from tenfold.data.split import Split
from tenfold.train.config import TrainConfig
from tenfold.workload import Workload


def model() -> nn.Module:
    """Two convolutions and two linear layers, the shape of the usual first example: 1.1M parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 8 * 8, 256), nn.ReLU(),
        nn.Linear(256, 10),
    )  # fmt: skip


class _Sixteenths(nn.Module):
    """The images have 17 grey levels, 0 to 16."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float() / 16.0


def workload(_data: Path | None = None) -> Workload:
    """The demonstration. Where the data lies does not matter: the images come with scikit-learn."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    whole = Split(inputs=(images,), targets=digits.target.astype(np.int64))
    return Workload(
        name="digits",
        demo=True,
        model=model,
        train=whole.take(order[:897]),
        valid=whole.take(order[897:1197]),
        test=whole.take(order[1197:]),
        preprocess=_Sixteenths(),
        margin=0.02,
        labels=[str(i) for i in range(10)],
        training=TrainConfig(epochs=20, batch_size=32, learning_rate=1e-3),
    )
