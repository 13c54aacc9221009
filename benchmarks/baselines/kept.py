"""Trained baselines that are kept in records/baselines, so that a benchmark need not train them again.

Weights are those of the machine that trained them: on another, training gives others by rounding.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from tenfold.build import Builder
from tenfold.execute import plain_session
from tenfold.plan import Plan
from tenfold.store import Step
from tenfold.train.loop import fit

FOLDER = Path("records/baselines")
TIMED_STEPS = 30


def keep(builder: Builder, step: Step, folder: Path) -> None:
    """The weights, and what they were trained by."""
    shutil.copyfile(step.path / "model.safetensors", folder / f"{builder.workload.name}.safetensors")
    (folder / f"{builder.workload.name}.training.json").write_text(json.dumps(step.meta))


def baseline(builder: Builder) -> Step:
    """The trained baseline of a built-in workload: from the cache, or else as it is kept if that is of the same model,
    data, hyperparameters and seed, or else trained."""
    plan = Plan(training=builder.workload.training, session=plain_session())
    key = builder.training_key(plan)
    weights, facts = (FOLDER / f"{builder.workload.name}{end}" for end in (".safetensors", ".training.json"))
    meta = json.loads(facts.read_text()) if weights.exists() and facts.exists() else None
    if meta is None or _what(meta["key"]) != _what(json.loads(json.dumps(key))):
        return builder.trained(plan)

    def work(folder: Path) -> dict[str, Any]:
        shutil.copyfile(weights, folder / "model.safetensors")
        return {**{k: v for k, v in meta.items() if k != "key"}, **_duration_here(builder, meta["steps"])}

    return builder.step("train", key, work)


def _duration_here(builder: Builder, steps: int) -> dict[str, float]:
    """What so many training steps would take on this machine, by a few: searches plan the lengths of their trainings by it."""
    workload, train = builder.workload, builder.examples.split("train")
    few = dataclasses.replace(workload.training, epochs=TIMED_STEPS * workload.training.batch_size / len(train))
    facts = fit(builder.fresh(), train, workload.loss_function(), few, seed=builder.seed, augment=workload.augment)
    return {name: facts[name] * steps / facts["steps"] for name in ("seconds", "cpu_seconds")}


def _what(key: dict[str, Any]) -> dict[str, Any]:
    """A key without the machine, nor the precision that it was trained in, which goes by the machine."""
    training = {k: v for k, v in key["training"].items() if k != "dtype"}
    return {k: v for k, v in key.items() if k != "environment"} | {"training": training}
