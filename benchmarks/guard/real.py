"""The guard end to end with every lever on: short runs on data that is made, whose truth is looked up on fresh examples.

    python benchmarks/guard/real.py [--runs 200] [--jobs 2] [--out records/guard/real.json]

Each run has a task of its own (another draw of examples), trains its baseline and its candidates for real, and certifies or refuses. Then
baseline and certified candidate answer 100,000 examples that nothing has seen. A breach is a certified candidate whose true
difference is below −margin. Finished runs are kept: a benchmark that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tenfold import TrainConfig, Workload, device, run
from tenfold.build import Builder
from tenfold.bundle import Bundle
from tenfold.data.split import Split
from tenfold.engine import open_session, run_in_batches
from tenfold.execute import plain_session
from tenfold.plan import Plan
from tenfold.store import Store, cache_dir, write_atomic
from tenfold.workload import load

MARGIN, BUDGET, FRESH = 0.02, 45.0, 100_000
SIZES = {"train": 800, "valid": 400, "confirm": 400, "test": 800}
BAR = 0.05


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24 * 16, 64), nn.ReLU(), nn.Linear(64, 4),
    )  # fmt: skip


def draw(n: int, rng: np.random.Generator) -> Split:
    """Images (n, 1, 8, 8): one of four patterns, shifted, under noise that is strong in some."""
    patterns = np.random.default_rng(0).normal(size=(4, 8, 8))
    targets = rng.integers(0, 4, n)
    shifts = rng.integers(-1, 2, (n, 2))
    images = np.stack([np.roll(patterns[t], tuple(s), (0, 1)) for t, s in zip(targets, shifts, strict=True)])
    noise = rng.choice([1.0, 2.5], n, p=[0.6, 0.4])[:, None, None]
    return Split(inputs=((images + noise * rng.normal(size=images.shape)).astype(np.float32)[:, None],), targets=targets.astype(np.int64))


def task(seed: int) -> Workload:
    rng = np.random.default_rng([1, seed])
    splits = {name: draw(n, rng) for name, n in SIZES.items()}
    return Workload(
        name=f"patterns-{seed}", model=net, margin=MARGIN, training=TrainConfig(epochs=8, batch_size=50, learning_rate=3e-3), **splits
    )


def one(seed: int, folder: Path) -> dict[str, Any]:
    """A run, and the truth about what it certified."""
    workload = task(seed)
    result = run(workload, budget=BUDGET, seed=seed, out=folder, view="quiet", resume=(folder / "ledger.jsonl").exists())
    row: dict[str, Any] = {"seed": seed, "certified": result.exit_code == 0, "candidates": len(result.document["candidates"])}
    fresh = draw(FRESH, np.random.default_rng([2, seed]))
    builder = Builder(workload, load(workload), Store(cache_dir() / "steps"), seed=seed, threads=device.cores())
    plain = builder.graph(Plan(training=workload.training, seed=seed, session=plain_session())).path / "model.onnx"

    def right(runner: Any) -> np.ndarray:
        return run_in_batches(runner, fresh.inputs, 64).argmax(1) == fresh.targets

    base = right(open_session(plain, plain_session()))
    row["baseline"] = float(base.mean())
    if row["certified"]:
        certified = result.document["certified"]
        bundle = Bundle.load(folder / "bundle")
        true = right(open_session(bundle.path / "model.onnx", bundle.session)).astype(float) - base
        row |= {
            "label": certified["label"], "gain": result.document["gain"]["serve"]["value"],
            "on_test": certified["quality_difference"], "true": float(true.mean()), "standard_error": float(true.std() / FRESH**0.5),
        }  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/guard-real"))
    parser.add_argument("--out", type=Path, default=Path("records/guard/real.json"))
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.only is not None:
        row = one(arguments.only, arguments.work / str(arguments.only))
        write_atomic(arguments.work / f"{arguments.only}.json", json.dumps(row))
        return

    def finish(seed: int) -> dict[str, Any]:
        path = arguments.work / f"{seed}.json"
        if not path.exists():
            environment = os.environ | {"OMP_NUM_THREADS": "1", "TENFOLD_CACHE": str((arguments.work / "cache").resolve())}
            subprocess.run([sys.executable, __file__, "--only", str(seed), "--work", str(arguments.work)], check=True, env=environment)
        row: dict[str, Any] = json.loads(path.read_text())
        print(f"{seed}: {row.get('label', 'nothing certified')} true {row.get('true', 0):+.4f}", flush=True)
        return row

    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(finish, range(arguments.runs)))
    certified = [r for r in rows if r["certified"]]
    breaches = [r for r in certified if r["true"] < -MARGIN]
    record = {
        "runs": len(rows), "certified": len(certified), "breaches": len(breaches), "rate": len(breaches) / len(rows), "bar": BAR,
        "interval": interval(len(breaches), len(rows)), "margin": MARGIN, "budget": BUDGET, "rows": rows, "environment": device.environment(),
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(arguments.out, json.dumps(record))
    low, high = record["interval"]
    print(f"{len(certified)} of {len(rows)} runs certified a candidate; {len(breaches)} breaches: {record['rate']:.1%} ({low:.1%} to {high:.1%}), bar {BAR:.0%}")
    kinds = {name: sum(name in r["label"] for r in certified) for name in ("distill", "prune", "quantize", "cascade")}
    print("levers in what was certified: " + ", ".join(f"{k} {v}" for k, v in kinds.items()))
    sys.exit(record["rate"] > BAR)


def interval(count: int, n: int) -> list[float]:
    """Exact binomial (Clopper and Pearson 1934), 90 %."""
    from scipy.stats import beta

    low = 0.0 if count == 0 else float(beta.ppf(0.05, count, n - count + 1))
    return [low, float(beta.ppf(0.95, count + 1, n - count))]


if __name__ == "__main__":
    main()
