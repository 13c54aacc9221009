"""What a training to a fixed quality costs: Tenfold's levers against plain PyTorch, both tuned in the same time, the same net, seeds that neither was tuned on.

    python benchmarks/training/run.py fashion-mnist|cifar10|language [--minutes 30] [--seeds 5] [--work runs/training]

Plain is float32, batches of 32, the usual layout, SGD with momentum or AdamW. Its rate, decay, schedule and length are sought for `--minutes` of all cores: the shortest training
that reaches the target on held-out examples. That is where `tenfold run --objective train` begins, which has as many minutes; its test split is a part of what is held out, so that neither side
has seen the real one. Plain then goes on for as many CPU-seconds as all cores had meanwhile: both sides have the same. Last, both train with fresh seeds, in turns: pairs of whole trainings, each
on the number of threads on which its own steps take less CPU, scored on test at the end of its schedule. A side that misses the target in the mean of its seeds trains on longer, by
`STEP`, until it does not. Then each lever is left out, with the first `SEEDS_WITHOUT` of the seeds, and nothing sought anew. Writes records/training; goes on where it
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
from tenfold.tune import first_length, next_round, way_of
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
OTHERWISE: list[Config] = [{"schedule": "cosine"}, {"schedule": "one_cycle"}, {"schedule": "linear"}, {"momentum": 0.95}, {"momentum": 0.8}, {"warmup": 0.02}, {"warmup": 0.3}]
"""What else is tried around it."""
FINER = (1.0, 0.5, 0.25)
"""Parts of `STEP` by which what is around the best one is shorter, one after the other."""
TRIED_EPOCHS = 0.02
"""Of a training, by which the number of threads is chosen."""
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
    part = 60 * arguments.minutes * device.cores()  # CPU-seconds
    half, first = plainly(trainings, TARGETS[name], MOST_EPOCHS[name], part, whole=2 * part)
    found, second = by_levers(workload, half, folder / "run", 60 * arguments.minutes)
    ours = trained_by(half, found)
    plain, both = plainly(trainings, TARGETS[name], MOST_EPOCHS[name], first + second, whole=2 * part)
    tuned = {"plain": both, "levers": first + second}
    print(f"{name}, plain: {plain.optimizer}, rate {plain.learning_rate:g}, {plain.epochs:g} epochs", flush=True)
    print(f"{name}, by levers: {differing(ours, plain)}", flush=True)
    seeds = SEEDS[: max(2, arguments.seeds)]
    pairs = in_pairs(trainings, {"plain": plain, "levers": ours}, TARGETS[name], MOST_EPOCHS[name], seeds)
    if pairs is None:
        raise SystemExit(f"{name}: a side does not reach the target of {TARGETS[name]:g} in {LONGEST:g} times the longest training that was planned")
    without = {lever: left_out(trainings, half, found, lever, name, pairs) for lever in dict.fromkeys(p.lever for p in found)}
    ledger.close()
    record(name, pairs, without, TARGETS[name], tuned)
    summarise()


class Trainings:
    """Whole trainings of a workload's model, each remembered."""

    def __init__(self, workload: Workload, ledger: Ledger) -> None:
        self.workload, self.ledger = workload, ledger
        self.builder = Builder(workload, load(workload), Store(cache_dir() / "steps"), seed=0, threads=device.cores())

    def of(self, config: TrainConfig, seed: int, *, on: tuple[str, ...] = ("valid", "confirm")) -> dict[str, Any]:
        """Mean `score` on splits, and the seconds that it took; None where it diverges."""
        threads = self.threads(config)
        key = f"{digest(config.to_json())[:16]}:{seed}:{'+'.join(on)}:{threads}"
        found: dict[str, Any] = self.ledger.remember(key, partial(self._train, config, seed, on, threads))
        return found

    def threads(self, config: TrainConfig) -> int:
        """On which a training takes less CPU: a thread that waits for others is charged as well."""
        alike = {k: v for k, v in config.to_json().items() if k in ("batch_size", "accumulate", "dtype", "channels_last", "optimizer", "grow", "resize", "recompute")}
        short = dataclasses.replace(config, epochs=max(TRIED_EPOCHS, 20 * config.batch_size / len(self.builder.examples.split("train"))), average=0.0)

        def ask() -> int:
            counts = sorted({1, device.cores()})
            spent = {n: min(self._train(short, 0, (), n)["cpu_seconds"] or math.inf for _ in range(2)) for n in counts}
            return min(counts, key=lambda n: spent[n])

        count: int = self.ledger.remember(f"threads:{digest(alike)[:16]}", ask)
        return count

    def _train(self, config: TrainConfig, seed: int, on: tuple[str, ...], threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        model, examples = self.builder.fresh(seed), self.builder.examples
        try:
            facts = fit(model, examples.split("train"), self.workload.loss_function(), config, seed=seed, augment=self.workload.augment)
        except DivergedError:
            return {"score": None, "seconds": 0.0, "cpu_seconds": 0.0}
        scores = [self.workload.scores(predict(model, split), split.targets) for split in map(examples.split, on)]  # type: ignore[arg-type]
        return {"score": float(np.concatenate(scores).mean()) if scores else None, "threads": threads, "seconds": facts["seconds"], "cpu_seconds": facts["cpu_seconds"]}


def plainly(trainings: Trainings, target: float, most: float, seconds: float, *, whole: float) -> tuple[TrainConfig, float]:
    """The shortest plain training that reaches the target on held-out examples, as far as it is found in the time, the nearest where none does;
    and the CPU-seconds that it took to find it.

    Args:
        seconds: of CPU, of training.
        whole: of all the tuning, of which these are the first: lengths are planned by it.
    """
    tried: list[Tried] = []
    spent = 0.0
    an_epoch = trainings.of(dataclasses.replace(PLAIN, **WAYS[0], epochs=0.05), 0)["cpu_seconds"] / 0.05
    length = first_length(len(WAYS), whole / 2, an_epoch * most)

    def told(config: Config) -> float:
        nonlocal spent
        found = trainings.of(dataclasses.replace(PLAIN, **config), 0)
        spent += found["cpu_seconds"]
        above = -1e9 if found["score"] is None else found["score"] - target
        print(f"  {config}: {above:+.4f}, {found['cpu_seconds']:.0f} s of CPU", flush=True)
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
    for finer in FINER:  # what is around the best way, each a little shorter than it
        shorter = True
        while shorter:
            now, shorter = best(), False
            around = [{**now, **{k: now[k] * times for k, times in change.items()}} for change in CLOSER] + [{**now, **change} for change in OTHERWISE]
            for way in around:
                if spent >= seconds:
                    break
                config = {**way, "epochs": round(now["epochs"] / STEP**finer, 3)}
                if way_of(config) != way_of(now) and config not in [t.config for t in tried]:
                    shorter |= told(config) >= 0
    return dataclasses.replace(PLAIN, **best()), spent


def by_levers(workload: Workload, plain: TrainConfig, folder: Path, seconds: float) -> tuple[list[Pull], float]:
    """What Tenfold pulls on the plain training, and the CPU-seconds that it had to find it: all cores, all the time."""
    torch.set_num_threads(device.cores())
    task = dataclasses.replace(held_out(workload), name=f"{workload.name}-training", training=plain)
    done = folder / "result.json"
    document = json.loads(done.read_text()) if done.exists() else None
    document = document or run(task, objective="train", budget=seconds, out=folder, resume=(folder / "ledger.jsonl").exists(), view="lines").document
    had = device.cores() * float(document["spent"]["search_seconds"])
    if document["certified"] is None:
        return [], had
    return list(Recipe.from_json(json.loads((folder / "bundle" / "manifest.json").read_text())["recipe"]).pulls), had


def held_out(workload: Workload) -> Workload:
    """The workload, whose test split is half of what is held out to confirm: the real one is for the comparison alone."""
    examples = load(workload)
    middle = len(examples.confirm) // 2
    if (groups := examples.confirm.groups) is not None:
        middle = int(np.flatnonzero(np.diff(groups) != 0)[np.abs(np.flatnonzero(np.diff(groups) != 0) - middle).argmin()]) + 1
    confirm, test = examples.confirm.take(slice(0, middle)), examples.confirm.take(slice(middle, None))
    return dataclasses.replace(workload, train=examples.train, valid=examples.valid, confirm=confirm, test=test)


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


def record(name: str, pairs: list[dict[str, Any]], without: dict[str, Any], target: float, tuned: dict[str, float]) -> None:
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"{name}.json"
    known = json.loads(path.read_text())["pairs"] if path.exists() else []
    here = device.environment()
    mine = [{**p, "target": target, "tuned_cpu_seconds": tuned, "environment": here} for p in pairs]
    kept = [p for p in known if p["target"] == target and p["environment"]["cpu_class"] != here["cpu_class"]]  # of this machine the last ones count
    ratios = np.log([p["plain"]["cpu_seconds"] / p["levers"]["cpu_seconds"] for p in (*kept, *mine)])
    half = student_quantile((1 + LEVEL) / 2, len(ratios) - 1) * ratios.std(ddof=1) / math.sqrt(len(ratios))
    low, value, high = (math.exp(ratios.mean() + sign * half) for sign in (-1, 0, 1))
    write_atomic(path, json.dumps({"target": target, "pairs": [*kept, *mine], "ratio": [low, value, high], "without": without}, indent=1))
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
