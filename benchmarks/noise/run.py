"""Are noise scales right? Both meters on problems whose gradient and covariance are known.

    python benchmarks/noise/run.py [--trials 1000]

A trial is `STEPS` steps of `EXAMPLES` examples at fixed parameters. Counted is how often the 90 % interval holds the true noise scale, and how far
off the estimate is: from the gradients of single examples, from micro-batches, and from two ranks of data-parallel training. Writes records/noise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor, distributed, multiprocessing, nn

from tenfold import device
from tenfold.batch import ExampleMeter, NoiseMeter
from tenfold.store import write_atomic

STEPS, EXAMPLES, MICRO, DIMENSIONS = 200, 32, 8, 20
SPREAD = torch.linspace(0.5, 1.5, DIMENSIONS)
"""Standard deviations of the quadratic's centres."""
AWAY = torch.full((DIMENSIONS,), 0.25)
"""Of the parameters from their optimum."""
ERROR = 0.5
"""Standard deviation of the regression's targets around the line."""


@dataclass(frozen=True)
class Problem:
    net: Callable[[], nn.Linear]
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    """Inputs and targets of so many examples."""
    truth: float
    """tr(Σ)/|G|²."""


def linear(inputs: int, outputs: int, weight: Tensor) -> nn.Linear:
    net = nn.Linear(inputs, outputs, bias=False)
    net.weight.data.copy_(weight)
    return net


def centres(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.ones(n, 1), torch.randn(n, DIMENSIONS, generator=generator) * SPREAD


def line(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(n, DIMENSIONS, generator=generator), torch.randn(n, 1, generator=generator) * ERROR


SIGNAL = float(AWAY.square().sum())
PROBLEMS = {
    # ½|θ − x|², x ~ N(0, diag(s²)): the gradient θ − x has mean θ and covariance diag(s²)
    "quadratic": Problem(lambda: linear(1, DIMENSIONS, AWAY[:, None]), centres, float(SPREAD.square().sum()) / SIGNAL),
    # ½(θ·x − e)², x ~ N(0, 1), e ~ N(0, σ²): the gradient (θ·x − e)x has mean θ and second moment (d + 2)|θ|² + dσ²
    "regression": Problem(lambda: linear(DIMENSIONS, 1, AWAY[None]), line, ((DIMENSIONS + 1) * SIGNAL + DIMENSIONS * ERROR**2) / SIGNAL),
}


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum(1).mean() / 2


def by_examples(problem: Problem, generator: torch.Generator) -> tuple[float, float, float]:
    net = problem.net()
    meter = ExampleMeter(net)
    for _ in range(STEPS):
        net.zero_grad()
        x, y = problem.draw(EXAMPLES, generator)
        loss_of(net(x), y).backward()
        meter.add()
    found = meter.noise_scale()
    return found.value, found.low, found.high


def by_parts(problem: Problem, generator: torch.Generator, *, micro: int = MICRO, ranks: bool = False) -> tuple[float, float, float]:
    net: nn.Module = problem.net()
    net = nn.parallel.DistributedDataParallel(net) if ranks else net
    mine = EXAMPLES // 2 if ranks else EXAMPLES
    meter = NoiseMeter(net)
    for _ in range(STEPS):
        net.zero_grad()
        for _ in range(mine // micro):
            x, y = problem.draw(micro, generator)
            (loss_of(net(x), y) * (micro / mine)).backward()
            meter.add(micro)
        meter.step()
    found = meter.noise_scale()
    return found.value, found.low, found.high


def on_ranks(rank: int, folder: str, name: str, trials: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(rank)
    found = []
    for trial in range(trials):
        found.append(by_parts(PROBLEMS[name], generator, micro=EXAMPLES // 2, ranks=True))
        if rank == 0:
            told(f"{name}, two ranks", trial + 1, trials)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()


def ranks(name: str, trials: int) -> list[list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(on_ranks, (folder, name, trials), nprocs=2)
        found: list[list[float]] = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
    return found


def told(what: str, done: int, trials: int) -> None:
    if done % 100 == 0:
        print(f"{what}: {done} of {trials}", file=sys.stderr, flush=True)


def row(problem: str, way: str, found: list[list[float]]) -> dict[str, object]:
    truth = PROBLEMS[problem].truth
    value, low, high = np.array(found).T
    held = int(((low <= truth) & (truth <= high)).sum())
    interval = stats.binomtest(held, len(value)).proportion_ci(0.90)
    return {
        "problem": problem, "way": way, "truth": truth, "trials": len(value), "steps": STEPS, "examples": STEPS * EXAMPLES,
        "coverage": held / len(value), "coverage_interval": [interval.low, interval.high],
        "median_error": float(np.median(np.abs(value / truth - 1))), "bias": float(value.mean() / truth - 1),
        "value_low_high": np.round(np.array(found), 4).tolist(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1_000)
    trials = parser.parse_args().trials
    torch.set_num_threads(1)
    rows = []
    for name, problem in PROBLEMS.items():
        for way, measure in (("single examples", by_examples), ("micro-batches", by_parts)):
            generator, found = torch.Generator().manual_seed(0), []
            for trial in range(trials):
                found.append([*measure(problem, generator)])
                told(f"{name}, {way}", trial + 1, trials)
            rows.append(row(name, way, found))
        rows.append(row(name, "two ranks", ranks(name, trials)))
    for r in rows:
        low, high = r["coverage_interval"]  # type: ignore[misc]
        print(f"{r['problem']}, {r['way']}: the interval holds the truth in {r['coverage']:.1%} of {r['trials']} trials ({low:.1%} to {high:.1%}), "
              f"median error {r['median_error']:.1%}, bias {r['bias']:+.1%}, with {r['examples']:,} examples")  # fmt: skip
    Path("records/noise").mkdir(parents=True, exist_ok=True)
    write_atomic(Path("records/noise/noise.json"), json.dumps({"rows": rows, "environment": device.environment()}))


if __name__ == "__main__":
    main()
