"""What measuring noise costs: training steps with a meter and without, in turns.

    python benchmarks/noise/cost.py [--rounds 40] [--data DIR]

The Fashion-MNIST baseline (batch 128) and a small transformer (batch 32 of 128 characters), each in four micro-batches for `NoiseMeter`, and at once for
`ExampleMeter`, on all rows, on a sample, and on normalisation layers alone. Writes records/noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tenfold import device
from tenfold.batch import ExampleMeter, NoiseMeter
from tenfold.execute import as_json
from tenfold.measure import step_costs
from tenfold.store import write_atomic
from tenfold.train.feed import Feed
from tenfold.verdict import cost_ratio
from tenfold.workload import find, load
from tenfold.workloads import fashion_mnist

PARTS = 4
SAMPLE = 8
"""Rows of a batch that are looked at."""
Batch = Callable[[], tuple[Tensor, Tensor]]


class Block(nn.Module):
    """Attention and a perceptron, normalised before, of layers that have linear weights of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.before(x_BTD)).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).flatten(2))
        return x_BTD + self.mlp(self.between(x_BTD))


def transformer(characters: int = 65, width: int = 128) -> nn.Module:
    return nn.Sequential(nn.Embedding(characters, width), *(Block(width, 4) for _ in range(3)), nn.LayerNorm(width), nn.Linear(width, characters))


def by_token(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())


def steps(make: Callable[[], nn.Module], batch: Batch, loss_of: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Callable[[], None]]:
    """Training steps, plain and measured, each of a model of its own."""

    def at_once(meter_of: Callable[[nn.Module], ExampleMeter] | None) -> Callable[[], None]:
        net = make()
        meter = None if meter_of is None else meter_of(net)
        optimizer = torch.optim.SGD(net.parameters(), 1e-3)

        def step() -> None:
            optimizer.zero_grad()
            x, y = batch()
            loss_of(net(x), y).backward()
            if meter is not None:
                meter.add()
            optimizer.step()

        return step

    def in_parts(measured: bool) -> Callable[[], None]:
        net = make()
        meter = NoiseMeter(net) if measured else None
        optimizer = torch.optim.SGD(net.parameters(), 1e-3)

        def step() -> None:
            optimizer.zero_grad()
            x, y = batch()
            for part, answer in zip(x.chunk(PARTS), y.chunk(PARTS), strict=True):
                (loss_of(net(part), answer) / PARTS).backward()
                if meter is not None:
                    meter.add(len(part))
            if meter is not None:
                meter.step()
            optimizer.step()

        return step

    return {
        "micro-batches": in_parts(measured=False), "micro-batches, measured": in_parts(measured=True),
        "at once": at_once(None), "at once, all rows measured": at_once(ExampleMeter),
        f"at once, {SAMPLE} rows measured": at_once(lambda net: ExampleMeter(net, sample=SAMPLE)),
        "at once, normalisations measured": at_once(lambda net: ExampleMeter(net, normalisations_only=True)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    workload = find("fashion-mnist", arguments.data)
    ((images, labels),) = Feed(load(workload).split("train"), 128).parts(0, torch.device("cpu"))
    assert labels is not None
    image, label = images[0].float() / 255, labels.long()
    characters = torch.randint(0, 65, (32, 129))
    tasks = {
        "fashion-mnist": steps(fashion_mnist.model, lambda: (image, label), nn.functional.cross_entropy),
        "transformer": steps(transformer, lambda: (characters[:, :-1], characters[:, 1:]), by_token),
    }
    rows, record = [], {}
    for task, sides in tasks.items():
        samples = step_costs(sides, rounds=arguments.rounds)
        record[task] = as_json(samples)
        for name in sides:
            plain, _, measured = name.partition(", ")
            if measured:
                ratio = cost_ratio(samples[name].wall, samples[plain].wall)
                rows.append({"task": task, "step": name, "against": plain, "times_as_long": ratio.to_json()})
                print(f"{task}, {name}: {ratio.value - 1:+.1%} ({ratio.low - 1:+.1%} to {ratio.high - 1:+.1%})")
    Path("records/noise").mkdir(parents=True, exist_ok=True)
    write_atomic(Path("records/noise/cost.json"), json.dumps({"rows": rows, "samples": record, "environment": device.environment()}))


if __name__ == "__main__":
    main()
