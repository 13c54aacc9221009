"""How much less memory a training needs where activations are computed again, and what that takes.

    python benchmarks/memory/run.py [--rounds 12]

A deep residual net (24 blocks, Fashion-MNIST, batch 128) and a transformer (8 layers, 32 blocks of 128 characters of tinyshakespeare; without dropout, whose random numbers take
longer on a CPU than all else that a layer computes, and with it), with AdamW: a step as it is and with less, in turns. Needs both data sets. Writes records/memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold import device
from tenfold.build import Builder
from tenfold.data.named import tinyshakespeare
from tenfold.execute import Evaluator, plain_session
from tenfold.plan import Plan
from tenfold.savings import savings
from tenfold.store import Store, cache_dir, write_atomic
from tenfold.train.config import TrainConfig
from tenfold.workload import Workload, find, load
from tenfold.workloads.language import of_text


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(x))


def deep(depth: int = 24, width: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU(), *(Residual(width) for _ in range(depth)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


def images() -> Workload:
    training = TrainConfig(epochs=1, batch_size=128, channels_last=True)
    return dataclasses.replace(find("fashion-mnist"), name="deep residual net", model=deep, augment=None, training=training)


def text(dropout: float) -> Workload:
    workload = of_text(tinyshakespeare(), name="transformer", depth=8, width=192, training=TrainConfig(epochs=1, batch_size=32))
    return dataclasses.replace(workload, model=partial(workload.model, dropout=dropout))


WORKLOADS = {"deep residual net": images, "transformer": partial(text, 0.0), "transformer with dropout": partial(text, 0.1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    record: dict[str, Any] = {"environment": device.environment()}
    for name, make in WORKLOADS.items():
        workload = make()
        builder = Builder(workload, load(workload), Store(cache_dir() / "steps"), seed=0, threads=device.cores())
        plan = Plan(training=workload.training, session=plain_session())
        rows = [dataclasses.asdict(s) for s in savings(Evaluator(builder, plan, "train"), workload.training, rounds=arguments.rounds)]
        record[name] = rows
        for row in rows:
            kept, whole, times = *(rows[0][k] / row[k] for k in ("kept", "bytes")), row["times"]
            print(
                f"{name}, {row['what']}: activations {row['kept'] / 1e6:.1f} MB, {kept:.2f} times less; in all {row['bytes'] / 1e6:.1f} MB, {whole:.2f} times less; "
                f"{times['value']:.2f} ({times['low']:.2f} to {times['high']:.2f}) times as long"
            )
    Path("records/memory").mkdir(parents=True, exist_ok=True)
    write_atomic(Path("records/memory/record.json"), json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
