"""Trained baselines that are kept in records/baselines, so that a benchmark need not train them again.

Weights are those of the machine that trained them: on another, training gives others by rounding.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenfold.build import Builder
from tenfold.execute import plain_session
from tenfold.plan import Plan
from tenfold.store import Step
from tenfold.train.loop import fit
from tenfold.workload import identity

FOLDER = Path("records/baselines")
TIMED_STEPS = 30


def keep(builder: Builder, step: Step, folder: Path) -> None:
    """The weights, and what they were trained by."""
    shutil.copyfile(step.path / "model.safetensors", folder / f"{builder.workload.name}.safetensors")
    (folder / f"{builder.workload.name}.training.json").write_text(json.dumps({**step.meta, "of": _what(builder, step.meta["key"])}, indent=1))


def baseline(builder: Builder) -> Step:
    """The trained baseline of a built-in workload: from the cache, or else as it is kept if that is of the same model,
    data, hyperparameters and seed, or else trained."""
    plan = Plan(training=builder.workload.training, session=plain_session())
    key = builder.training_key(plan)
    weights, facts = (FOLDER / f"{builder.workload.name}{end}" for end in (".safetensors", ".training.json"))
    meta = json.loads(facts.read_text()) if weights.exists() and facts.exists() else None
    if meta is None or meta["of"] != _what(builder, key):
        return builder.trained(plan)

    def work(folder: Path) -> dict[str, Any]:
        shutil.copyfile(weights, folder / "model.safetensors")
        return {**{k: v for k, v in meta.items() if k not in {"key", "of"}}, **_duration_here(builder, meta["steps"])}

    return builder.step("train", key, work)


def _duration_here(builder: Builder, steps: int) -> dict[str, float]:
    """What so many training steps would take on this machine, by a few: searches plan the lengths of their trainings by it."""
    workload, train = builder.workload, builder.examples.split("train")
    few = dataclasses.replace(workload.training, epochs=TIMED_STEPS * workload.training.batch_size / len(train))
    facts = fit(builder.fresh(), train, workload.loss_function(), few, seed=builder.seed, augment=workload.augment)
    return {name: facts[name] * steps / facts["steps"] for name in ("seconds", "cpu_seconds")}


def _what(builder: Builder, key: Mapping[str, Any]) -> dict[str, Any]:
    """A key of training, as JSON, without the machine and the precision of the training, which goes by the machine."""
    alike = dataclasses.replace(builder.workload, training=dataclasses.replace(builder.workload.training, dtype="float32"))
    training = {k: v for k, v in json.loads(json.dumps(key["training"])).items() if k != "dtype"}
    others = {k: v for k, v in key.items() if k != "environment"}
    return {**others, "training": training, "workload": identity(alike, builder.examples, builder.fresh())}
