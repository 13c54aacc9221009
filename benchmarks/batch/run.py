"""Is the batch that `tenfold batch` recommends the right one? Its regret in time to the target, on seeds that it has not seen.

    python benchmarks/batch/run.py [NET …] [--budget 600] [--work runs/batch]

Four small nets, with steps of a few milliseconds with the batch they come with. `tenfold batch` studies each with seed 0. Then the least time to the study's own target is
found for batches in powers of 4 and the recommended one, with seeds that are fresh: trainings of several lengths, each annealed to its end. The learning rate of each size is sought anew, by
steps of two around what the rule gives until a better one lies on neither side; what the recommended rate itself comes to is told as well. What a step takes is the median over the trainings
themselves, not what the study measured. A size is given up where it takes `LONGEST` times what the net's own batch takes. The four critical batch sizes stand side by
side in the picture. Needs Fashion-MNIST and tinyshakespeare. Writes records/batch and docs/batch-regret.svg; goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tenfold import device
from tenfold.batch.calibrate import steps_to
from tenfold.batch.predict import StepTime, learning_rate, second_beta, steps_over_least
from tenfold.build import Builder
from tenfold.errors import DivergedError
from tenfold.ledger import Ledger
from tenfold.recipe import digest
from tenfold.report.scale import Log
from tenfold.store import Store, cache_dir, write_atomic
from tenfold.sweep.branches import MULTIPLES, WARMUP, by_length, loss_on, sample_of
from tenfold.sweep.study import study
from tenfold.train.config import TrainConfig, parts_of
from tenfold.train.loop import fit
from tenfold.verdict import LEVEL, student_quantile
from tenfold.workload import Workload, find, load
from tenfold.workloads.language import of_text

SIZES = tuple(4**i for i in range(8))
SEEDS = (11, 12, 13, 14, 15)
MOST_RATES = 7
"""That are tried for a size."""
LONGEST = 6.0
"""Times what the net's own batch takes, after which a size is given up."""
RECORDS = Path("records/batch")
PANEL, LEFT, TOP = (320, 220), 46, 40


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 10)
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def images(name: str, model: Any) -> Workload:
    training = TrainConfig(epochs=2, batch_size=32, learning_rate=2e-3, weight_decay=0.0, warmup=0.1)
    return dataclasses.replace(find("fashion-mnist"), name=name, model=model, augment=None, loss="cross_entropy", training=training)


def text(name: str, net: Any, width: int) -> Workload:
    """Without dropout, whose random numbers take longer on a CPU than all else."""
    from tenfold.data.named import tinyshakespeare

    training = TrainConfig(epochs=0.25, batch_size=16, learning_rate=3e-3, weight_decay=0.0, warmup=0.1, dropout=0.0)
    return of_text(tinyshakespeare(), name=name, net=net, context=16, width=width, depth=1, training=training)


NETS = {
    "convolutional": partial(images, "convolutional", convolutional),
    "perceptron": partial(images, "perceptron", perceptron),
    "lstm": partial(text, "lstm", "lstm", 16),
    "transformer": partial(text, "transformer", "transformer", 16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("nets", nargs="*", choices=[*NETS, []])
    parser.add_argument("--budget", type=float, default=600.0)
    parser.add_argument("--work", type=Path, default=Path("runs/batch"))
    arguments = parser.parse_args()
    for name in arguments.nets or NETS:
        row = measured(name, arguments.work / name, arguments.budget)
        RECORDS.mkdir(parents=True, exist_ok=True)
        write_atomic(RECORDS / f"{name}.json", json.dumps({**row, "environment": device.environment()}))
        regret, own = row["regret"], row["with_its_rate"]
        print(f"{name}: batch {row['recommended']:,} recommended, {row['best']:,} the best; regret {regret['value']:.1%} (at most {regret['high']:.1%}), {own['value']:.1%} (at most {own['high']:.1%}) with the rate that goes with it")
    rows = [json.loads(path.read_text()) for name in NETS if (path := RECORDS / f"{name}.json").exists()]
    for row in rows:
        high = row["critical"]["high"]
        print(f"{row['net']}: critical batch size {row['critical']['value']:,.0f} ({row['critical']['low']:,.0f} to {'no end' if high is None else f'{high:,.0f}'})")
    write_atomic(Path("docs/batch-regret.svg"), picture(rows))


def measured(name: str, folder: Path, budget: float) -> dict[str, Any]:
    """The study's prediction, and times to the target by size and seed."""
    workload = NETS[name]()
    out = folder / "study"
    found = json.loads((out / "batch.json").read_text()) if (out / "batch.json").exists() else None
    found = found or study(workload, budget=budget, out=out, resume=out.exists()).document
    builder = Builder(workload, load(workload), Store(cache_dir() / "steps"), seed=0, threads=device.cores())
    ledger = Ledger(folder, resume=(folder / "ledger.jsonl").exists())
    sizes = sorted({*SIZES, found["recommended"]["time"]["best"]})
    sizes = [s for s in sizes if s <= len(builder.examples.split("train"))]
    curve = {c["batch"]: c for c in found["curve"]}
    time = StepTime(
        sizes=tuple(int(b) for b in found["step_milliseconds"]), seconds=tuple(s["wall"]["value"] / 1e3 for s in found["step_milliseconds"].values())
    )
    base, steps, critical = found["reference"]["batch"], found["reference"]["steps"], found["critical"]["value"]
    most = LONGEST * steps * time.at(base)
    runs = Runs(builder, ledger, critical, micro=max(f["batch"] for f in found["fits"] if f["reason"] is None))
    target = found["target"]["loss"]
    rows: list[dict[str, Any]] = []

    def expected(size: int) -> int:
        return max(2, round(min(steps * steps_over_least(size, critical) / steps_over_least(base, critical), most / 2 / time.at(size))))

    def seconds_to_target(size: int, multiple: float) -> list[float | None]:
        """By seed."""
        reached = []
        for seed in SEEDS:
            run = partial(runs.loss, size, multiple=multiple, seed=seed)
            losses = by_length({expected(size): run(expected(size))}, target, run, most / time.at(size))
            reached.append(steps_to(target, sorted(losses), [losses[n] for n in sorted(losses)]))
        return [None if steps_taken is None else steps_taken * runs.step_seconds(size) for steps_taken in reached]

    for size in sizes:
        multiple = runs.best_multiple(size, expected(size))
        seconds = seconds_to_target(size, multiple)
        said = ", ".join("not reached" if s is None else f"{s:.1f} s" for s in seconds)
        print(f"{name}: batch {size:,}, rate × {multiple:g}: {said}", flush=True)
        rows.append({"batch": size, "multiple": multiple, "seconds": seconds, "predicted": curve[size]["seconds"] if size in curve else None, "step_milliseconds": None if not runs.taken[size] else runs.step_seconds(size) * 1e3})
    recommended, rate = found["recommended"]["time"]["best"], found["recommended"]["time"]["learning_rate"]
    as_it_is = seconds_to_target(recommended, rate / runs.rate(recommended))
    ledger.close()
    by_size = {r["batch"]: np.array([math.inf if s is None else s for s in r["seconds"]]) for r in rows}
    best = min(by_size, key=lambda b: float(np.mean(by_size[b])))
    return {
        "net": name, "target": target, "recommended": recommended, "best": best, "base": base, "critical": found["critical"],
        "step_milliseconds": time.at(base) * 1e3, "sizes": rows, "regret": regret_of(by_size[recommended], by_size[best]),
        "with_its_rate": regret_of(np.array([math.inf if s is None else s for s in as_it_is]), by_size[best]),
    }  # fmt: skip


def regret_of(recommended: np.ndarray, best: np.ndarray) -> dict[str, float]:
    """Time with the recommended batch over that with the best one, less one: the mean over seeds, with Student's interval."""
    ratios = np.log(recommended / best)
    if not np.isfinite(ratios).all():
        return {"value": 1e9, "low": 1e9, "high": 1e9, "level": LEVEL}
    half = student_quantile((1 + LEVEL) / 2, len(ratios) - 1) * float(ratios.std(ddof=1)) / math.sqrt(len(ratios))
    middle = float(ratios.mean())
    return {"value": math.expm1(middle), "low": math.expm1(middle - half), "high": math.expm1(middle + half), "level": LEVEL}


class Runs:
    """Trainings, each remembered."""

    def __init__(self, builder: Builder, ledger: Ledger, critical: float, *, micro: int) -> None:
        """
        Args:
            micro: examples that the study found to fit into memory at once.
        """
        self.builder, self.ledger, self.critical, self.micro = builder, ledger, critical, micro
        self.judged = sample_of(builder.examples.valid, builder.seed)
        self.taken: dict[int, list[float]] = {}
        """Seconds of a step, of each training, by its batch."""

    def step_seconds(self, batch: int) -> float:
        """What a step took: the median over all trainings with that batch."""
        return float(np.median(self.taken[batch]))

    def loss(self, batch: int, steps: int, multiple: float, seed: int) -> float:
        """On valid after a training from the beginning; infinite where it diverges."""
        config = self._config(batch, steps, multiple)
        found = self.ledger.remember(f"{digest(config.to_json())[:16]}:{seed}", partial(self._train, config, seed))
        self.taken.setdefault(batch, []).extend([found["step_seconds"]] if found["step_seconds"] else [])
        return math.inf if found["loss"] is None else float(found["loss"])

    def best_multiple(self, batch: int, steps: int) -> float:
        """Of the rule's rate, by one training each with seed 0: no better one lies beside it."""
        tried = {m: self.loss(batch, steps, m, 0) for m in MULTIPLES}
        while True:
            best = min(tried, key=lambda m: tried[m])
            beside = [m for m in (best / 2, best * 2) if m not in tried]
            if not beside or not math.isfinite(tried[best]) or len(tried) > MOST_RATES:
                return best
            tried |= {m: self.loss(batch, steps, m, 0) for m in beside}

    def rate(self, batch: int) -> float:
        """What the rule gives."""
        own = self.builder.workload.training
        return learning_rate(own.learning_rate, own.batch_size, batch, optimizer=own.optimizer, critical=self.critical)

    def _config(self, batch: int, steps: int, multiple: float) -> TrainConfig:
        train, own = self.builder.examples.split("train"), self.builder.workload.training
        return dataclasses.replace(
            own, batch_size=batch, accumulate=parts_of(batch, self.micro), learning_rate=multiple * self.rate(batch), warmup=WARMUP, epochs=(steps - 0.5) * batch / len(train),
            second_beta=second_beta(own.second_beta, own.batch_size, batch),
        )  # fmt: skip

    def _train(self, config: TrainConfig, seed: int) -> dict[str, float | None]:
        workload, train = self.builder.workload, self.builder.examples.split("train")
        model = self.builder.fresh(seed)
        try:
            facts = fit(model, train, workload.loss_function(), config, seed=seed)
        except DivergedError:
            return {"loss": None, "step_seconds": None}
        loss = loss_on(model, self.judged, workload.loss_function())
        return {"loss": loss if math.isfinite(loss) else None, "step_seconds": facts["seconds"] / facts["steps"]}


def picture(rows: list[dict[str, Any]]) -> str:
    """A panel a net: time to the target by batch size, predicted (line with its band) and measured (points with their range)."""
    width, height = 2 * PANEL[0], (len(rows) + 1) // 2 * PANEL[1]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i, row in enumerate(rows):
        lines += [f'<g transform="translate({i % 2 * PANEL[0]} {i // 2 * PANEL[1]})">', *panel(row), "</g>"]
    return "\n".join([*lines, "</svg>", ""])


def panel(row: dict[str, Any]) -> list[str]:
    reached = {r["batch"]: [s for s in r["seconds"] if s is not None] for r in row["sizes"]}
    predicted = {r["batch"]: r["predicted"] for r in row["sizes"] if r["predicted"]}
    ends = [s for values in reached.values() for s in values] + [p[k] for p in predicted.values() for k in ("low", "high")]
    across, up = Log(0.8, 1.25 * max(reached)), Log(min(ends) / 1.2, min(max(ends), 30 * min(ends)) * 1.2)
    wide, high = PANEL[0] - LEFT - 12, PANEL[1] - TOP - 30

    def x(value: float) -> float:
        return round(LEFT + across(value) / 100 * wide, 1)

    def y(value: float) -> float:
        return round(TOP + (1 - up(value) / 100) * high, 1)

    lines = [f'<text x="{LEFT}" y="16" font-weight="bold">{row["net"]}</text>', f'<text x="{LEFT}" y="30">seconds by batch size; critical {row["critical"]["value"]:,.0f}</text>']
    for tick in up.ticks(lambda v, _: f"{v:g}"):
        level = round(TOP + (1 - tick.at / 100) * high, 1)
        lines += [f'<path d="M{LEFT} {level}H{LEFT + wide}" stroke="#ddd"/>', f'<text x="{LEFT - 6}" y="{level + 4}" text-anchor="end">{tick.text}</text>']
    lines += [f'<text x="{x(b)}" y="{TOP + high + 16}" text-anchor="middle">{b:,}</text>' for b in SIZES[::2] if b in reached]
    if predicted:
        above = "L".join(f"{x(b)} {y(p['high'])}" for b, p in predicted.items())
        below = "L".join(f"{x(b)} {y(p['low'])}" for b, p in reversed(predicted.items()))
        lines.append(f'<path d="M{above}L{below}Z" fill="#06c" fill-opacity="0.15"/>')
        middle = "L".join(f"{x(b)} {y(p['value'])}" for b, p in predicted.items())
        lines.append(f'<path d="M{middle}" fill="none" stroke="#06c" stroke-width="2"/>')
    for batch, seconds in reached.items():
        colour = "#b40" if batch == row["recommended"] else "#222"
        if not seconds:
            lines.append(f'<text x="{x(batch)}" y="{TOP + 10}" text-anchor="middle" fill="{colour}">✗</text>')
            continue
        lines.append(f'<path d="M{x(batch)} {y(min(seconds))}V{y(max(seconds))}" stroke="{colour}"/>')
        lines.append(f'<circle cx="{x(batch)}" cy="{y(float(np.mean(seconds)))}" r="4" fill="{colour}"/>')
    return lines


if __name__ == "__main__":
    torch.set_num_threads(device.cores())
    main()
