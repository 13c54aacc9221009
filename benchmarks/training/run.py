"""What a training to a fixed quality costs: Tenfold's levers against plain PyTorch, both tuned in the same time, the same net, seeds that neither was tuned on.

    python benchmarks/training/run.py fashion-mnist|cifar10|language [--minutes 30] [--seeds 5] [--work runs/training]

Plain is float32, batches of 32, the usual layout, SGD with momentum or AdamW. Its rate, decay and length are sought for twice `--minutes`: the shortest training that
reaches the target on held-out examples. What it had come to after the first half is where `tenfold run --objective train` begins, which has the other half: both sides have
the same time. Last, both train with fresh seeds, in turns: pairs of whole trainings, each scored on test at the end of its schedule. A side that misses the target in the mean
of its seeds trains on longer, by `STEP`, until it does not. Then each lever is left out, with the first `SEEDS_WITHOUT` of the seeds. Writes records/training; goes on where it
was stopped, and adds its pairs to those of other machines. With all three workloads there, it prints their geometric mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold import device
from tenfold.build import Builder
from tenfold.errors import DivergedError
from tenfold.execute import plain_session
from tenfold.ledger import Ledger
from tenfold.lever import Config, Tried, apply_all
from tenfold.pipeline import run
from tenfold.plan import Plan
from tenfold.recipe import Pull, Recipe, digest
from tenfold.store import Store, cache_dir, write_atomic
from tenfold.train.config import TrainConfig
from tenfold.train.loop import fit, predict
from tenfold.tune import first_length, next_round
from tenfold.verdict import LEVEL, Decision, Interval, Verdict, exact_ratio, student_quantile
from tenfold.workload import Workload, find, load

PLAIN = TrainConfig(epochs=1, batch_size=32, warmup=0.1)
WAYS: list[Config] = [
    *({"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "learning_rate": rate} for rate in (0.01, 0.03, 0.1)),
    *({"optimizer": "adamw", "second_beta": 0.99, "weight_decay": 0.05, "learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3)),
]
TARGETS = {"fashion-mnist": 0.93, "cifar10": 0.90, "language": -1.55}
"""Scores on test, higher is better; nats a character for language."""
MOST_EPOCHS = {"fashion-mnist": 24.0, "cifar10": 40.0, "language": 6.0}
SEEDS = (11, 12, 13, 14, 15)
LONGEST = 4.0
"""Times `MOST_EPOCHS`, after which a side is given up."""
STEP, SEEDS_WITHOUT = 2**0.25, 2
CLOSER: list[Config] = [{"learning_rate": 1.5}, {"learning_rate": 1 / 1.5}, {"weight_decay": 3.0}, {"weight_decay": 1 / 3}]
"""What is multiplied by what, in the ways around the best one."""
RECORDS = Path("records/training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workload", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs/training"))
    arguments = parser.parse_args()
    torch.set_num_threads(device.cores())
    name, folder = arguments.workload, arguments.work / arguments.workload
    workload = find(name)
    ledger = Ledger(folder, resume=(folder / "ledger.jsonl").exists())
    trainings = Trainings(workload, ledger)
    half = plainly(trainings, TARGETS[name], MOST_EPOCHS[name], 60 * arguments.minutes, whole=120 * arguments.minutes)
    found = by_levers(workload, half, folder / "run", 60 * arguments.minutes)
    ours = trained_by(half, found)
    plain = plainly(trainings, TARGETS[name], MOST_EPOCHS[name], 120 * arguments.minutes, whole=120 * arguments.minutes)
    print(f"{name}, plain: {plain.optimizer}, rate {plain.learning_rate:g}, {plain.epochs:g} epochs", flush=True)
    print(f"{name}, by levers: {differing(ours, plain)}", flush=True)
    seeds = SEEDS[: max(2, arguments.seeds)]
    pairs = in_pairs(trainings, {"plain": plain, "levers": ours}, TARGETS[name], MOST_EPOCHS[name], seeds)
    if pairs is None:
        raise SystemExit(f"{name}: a side does not reach the target of {TARGETS[name]:g} in {LONGEST:g} times the longest training that was planned")
    without = {lever: left_out(trainings, half, found, lever, name, pairs) for lever in dict.fromkeys(p.lever for p in found)}
    ledger.close()
    record(name, pairs, without, TARGETS[name], arguments.minutes)
    summarise()


class Trainings:
    """Whole trainings of a workload's model, each remembered."""

    def __init__(self, workload: Workload, ledger: Ledger) -> None:
        self.workload, self.ledger = workload, ledger
        self.builder = Builder(workload, load(workload), Store(cache_dir() / "steps"), seed=0, threads=device.cores())

    def of(self, config: TrainConfig, seed: int, *, on: tuple[str, ...] = ("valid", "confirm")) -> dict[str, Any]:
        """Mean `score` on splits, and the seconds that it took; None where it diverges."""
        key = f"{digest(config.to_json())[:16]}:{seed}:{'+'.join(on)}"
        found: dict[str, Any] = self.ledger.remember(key, partial(self._train, config, seed, on))
        return found

    def _train(self, config: TrainConfig, seed: int, on: tuple[str, ...]) -> dict[str, Any]:
        model, examples = self.builder.fresh(seed), self.builder.examples
        try:
            facts = fit(model, examples.split("train"), self.workload.loss_function(), config, seed=seed, augment=self.workload.augment)
        except DivergedError:
            return {"score": None, "seconds": 0.0, "cpu_seconds": 0.0}
        scores = [self.workload.scores(predict(model, split), split.targets) for split in map(examples.split, on)]  # type: ignore[arg-type]
        return {"score": float(np.concatenate(scores).mean()), "seconds": facts["seconds"], "cpu_seconds": facts["cpu_seconds"]}


def plainly(trainings: Trainings, target: float, most: float, seconds: float, *, whole: float) -> TrainConfig:
    """The shortest plain training that reaches the target on held-out examples, as far as it is found in the time; the nearest where none does.

    Args:
        seconds: of training.
        whole: of all the tuning, of which these are the first: lengths are planned by it.
    """
    tried: list[Tried] = []
    spent = 0.0
    an_epoch = trainings.of(dataclasses.replace(PLAIN, **WAYS[0], epochs=0.05), 0)["seconds"] / 0.05
    length = first_length(len(WAYS), whole / 2, an_epoch * most)

    def told(config: Config) -> float:
        nonlocal spent
        found = trainings.of(dataclasses.replace(PLAIN, **config), 0)
        spent += found["seconds"]
        above = -1e9 if found["score"] is None else found["score"] - target
        print(f"  {config}: {above:+.4f}, {found['seconds']:.0f} s", flush=True)
        quality = Interval(value=above, low=above, high=above)
        tried.append(Tried(config=config, verdict=Verdict(decision=Decision.TAKE, reason="", quality=quality), gain=exact_ratio(1.0, 1.0)))
        return above

    def best() -> Config:
        by_quality = {id(t): t.verdict.quality.value for t in tried if t.verdict.quality is not None}
        good = [t for t in tried if by_quality[id(t)] >= 0]
        return min(good, key=lambda t: float(t.config["epochs"])).config if good else max(tried, key=lambda t: by_quality[id(t)]).config

    while spent < seconds and (configs := next_round(WAYS, tried, length=length, whole=most, margin=1e-9)):
        for config in configs:
            told(config)
    shorter = True
    while shorter:  # what is around the best way, each a little shorter than it
        now, shorter = best(), False
        for change in CLOSER:
            if spent >= seconds:
                break
            shorter |= told({**now, **{k: now[k] * times for k, times in change.items()}, "epochs": round(now["epochs"] / STEP, 3)}) >= 0
    return dataclasses.replace(PLAIN, **best())


def by_levers(workload: Workload, plain: TrainConfig, folder: Path, seconds: float) -> list[Pull]:
    """What Tenfold pulls on the plain training."""
    task = dataclasses.replace(workload, name=f"{workload.name}-training", training=plain)
    done = folder / "result.json"
    document = json.loads(done.read_text()) if done.exists() else None
    document = document or run(task, objective="train", budget=seconds, out=folder, resume=(folder / "ledger.jsonl").exists(), view="lines").document
    if document["certified"] is None:
        return []
    return list(Recipe.from_json(json.loads((folder / "bundle" / "manifest.json").read_text())["recipe"]).pulls)


def trained_by(plain: TrainConfig, pulls: Sequence[Pull]) -> TrainConfig:
    return apply_all(Plan(training=plain, session=plain_session()), pulls).training


def left_out(trainings: Trainings, plain: TrainConfig, pulls: Sequence[Pull], lever: str, name: str, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """How many times as dear a training to the target is without a lever; None where it does not come there."""
    config = trained_by(plain, [p for p in pulls if p.lever != lever])
    found = in_pairs(trainings, {"without": config}, TARGETS[name], MOST_EPOCHS[name], tuple(p["seed"] for p in pairs[:SEEDS_WITHOUT]))
    if found is None:
        return {"times": None}
    ratios = [w["without"]["cpu_seconds"] / p["levers"]["cpu_seconds"] for w, p in zip(found, pairs, strict=False)]
    times = math.exp(float(np.mean(np.log(ratios))))
    print(f"{name}, without {lever}: {times:.2f} times as dear", flush=True)
    return {"times": times, "ratios": ratios, "config": found[0]["configs"]["without"]}


def in_pairs(
    trainings: Trainings, sides: dict[str, TrainConfig], target: float, most: float, seeds: tuple[int, ...]
) -> list[dict[str, Any]] | None:
    """All sides with each seed, in turns, on test; longer where the mean of the seeds misses the target. None: one never comes there."""
    while True:
        pairs = [{"seed": s, **{name: trainings.of(config, s, on=("test",)) for name, config in sides.items()}} for s in seeds]
        short = {name for name in sides if np.mean([-math.inf if p[name]["score"] is None else p[name]["score"] for p in pairs]) < target}
        for pair in pairs:
            print("  " + ", ".join(f"{name} {pair[name]['score']} in {pair[name]['cpu_seconds']:.0f} s" for name in sides), flush=True)
        if not short:
            return [{**p, "configs": {name: config.to_json() for name, config in sides.items()}} for p in pairs]
        if any(sides[name].epochs > LONGEST * most for name in short):
            return None
        sides = {name: dataclasses.replace(c, epochs=c.epochs * STEP) if name in short else c for name, c in sides.items()}
        print(f"  {', '.join(sorted(short))} misses the target, and trains on longer", flush=True)


def record(name: str, pairs: list[dict[str, Any]], without: dict[str, Any], target: float, minutes: float) -> None:
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"{name}.json"
    known = json.loads(path.read_text())["pairs"] if path.exists() else []
    here = device.environment()
    mine = [{**p, "environment": here} for p in pairs]
    kept = [p for p in known if (p["environment"]["cpu_class"], p["seed"]) not in {(here["cpu_class"], p["seed"]) for p in mine}]
    ratios = np.log([p["plain"]["cpu_seconds"] / p["levers"]["cpu_seconds"] for p in (*kept, *mine)])
    half = student_quantile((1 + LEVEL) / 2, len(ratios) - 1) * ratios.std(ddof=1) / math.sqrt(len(ratios))
    low, value, high = (math.exp(ratios.mean() + sign * half) for sign in (-1, 0, 1))
    write_atomic(path, json.dumps({"target": target, "minutes": minutes, "pairs": [*kept, *mine], "ratio": [low, value, high], "without": without}, indent=1))
    print(f"{name}: {value:.2f} times cheaper ({low:.2f} to {high:.2f}) to train to {target:g}, over {len(ratios)} pairs")


def summarise() -> None:
    """The geometric mean of all three workloads, where they are there."""
    paths = [RECORDS / f"{name}.json" for name in TARGETS]
    if all(path.exists() for path in paths):
        ratios = [json.loads(path.read_text())["ratio"][1] for path in paths]
        print(f"geometric mean: {math.exp(float(np.mean(np.log(ratios)))):.2f} times cheaper ({', '.join(f'{r:.2f}' for r in ratios)})")


def differing(config: TrainConfig, other: TrainConfig) -> str:
    mine, yours = dataclasses.asdict(config), dataclasses.asdict(other)
    return ", ".join(f"{k} {v}" for k, v in mine.items() if v != yours[k]) or "as plain"


if __name__ == "__main__":
    main()
