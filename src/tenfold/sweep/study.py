"""The course of `tenfold batch`: memory, step times, a reference training, noise along it, branches, and what follows."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tenfold import device
from tenfold.batch.calibrate import Point
from tenfold.batch.predict import StepTime, times
from tenfold.build import Builder, explained
from tenfold.errors import TenfoldError, WorkloadError
from tenfold.ledger import Ledger
from tenfold.measure import Samples
from tenfold.memory import Fit, is_out_of_memory, too_much, try_step
from tenfold.progress import View, make_view
from tenfold.runs import check_same, check_seed, run_folder
from tenfold.store import Store, cache_dir, unwritable, write_atomic
from tenfold.sweep.branches import Branch, Brancher, Milestone
from tenfold.sweep.conclude import conclude, finite
from tenfold.sweep.page import write_page
from tenfold.sweep.paths import paths
from tenfold.sweep.reference import MILESTONES, noise_at, weights_at
from tenfold.sweep.target import aimed
from tenfold.sweep.times import candidates, step_times, steppers
from tenfold.train.config import TrainConfig, parts_of
from tenfold.train.loop import pick_device
from tenfold.verdict import LEVEL, Interval, student_quantile
from tenfold.workload import Workload, find, load

SCHEMA = 1
SLOWEST_SHARE = 0.02
"""Of the budget, that one step of the largest batch may take."""
TIMES_SHARE, REFERENCE_SHARE, NOISE_SHARE, PATHS_SHARE = 0.1, 0.3, 0.1, 0.05
"""Of the budget; branches get what is left."""
BRANCH_SHARE = 0.05
"""Length of the reference's own branches, of its steps."""
BRANCHED = (1, 2)
"""Milestones, by their places, that branches leave from."""
DEAREST = 3.0
"""Times the least expected time to the target, beyond which a size is not branched."""
MOST_SIZES = 5
MOST_REPEATS = 6
"""Of all branches, each with data in another order, while the budget lasts."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study came to: the document of `batch.json`, and where everything lies."""

    document: dict[str, Any]
    folder: Path


def study(
    workload: Workload | str,
    *,
    data: str | Path | None = None,
    target: float | None = None,
    budget: float = 600.0,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    view: View | str = "auto",
) -> Study:
    """Measure which batch size reaches a workload's target soonest, and which cheapest.

    Args:
        workload: one built in code, a built-in's name, or path/to/file.py[:name]. Its `training` is the reference.
        target: loss on valid that is to be reached; the reference is made longer or shorter for it. None: what the reference comes to.
        budget: seconds, about.
        out: folder of the study; default runs/<workload>-batch-<number>.
        resume: go on with the study in `out` (default: the workload's newest).

    Raises:
        TenfoldError: input, data or disk is wrong; the message is one sentence with the remedy.
    """
    if not (math.isfinite(budget) and budget > 0):
        raise TenfoldError(f"budget is {budget}: it must be above 0 seconds")
    if target is not None and not math.isfinite(target):
        raise TenfoldError(f"target is {target}: give a loss")
    check_seed(seed)
    task = find(workload, None if data is None else Path(data)) if isinstance(workload, str) else workload
    task = dataclasses.replace(task, name=task.name or "workload")
    folder = run_folder(f"{task.name}-batch", out, resume=resume)
    ledger, told = Ledger(folder, resume=resume), make_view(view) if isinstance(view, str) else view
    try:
        return _carry_out(task, target, budget, seed, folder, ledger, told)
    except TenfoldError:
        if not ledger.knows("fits"):
            ledger.discard()
        raise
    finally:
        told.close()
        ledger.close()


def _carry_out(task: Workload, target: float | None, budget: float, seed: int, folder: Path, ledger: Ledger, view: View) -> Study:
    examples = load(task)
    for note in (*ledger.notices, *examples.notes):
        view.say(note)
    builder = Builder(task, examples, Store(cache_dir() / "steps"), seed=seed, threads=device.cores(), note=view.note)
    train = examples.split("train")
    check_same(ledger, folder, {"workload": builder.workload_id, "target": target, "seed": seed, "budget_seconds": budget})
    if len(train) < 2:
        raise WorkloadError("one example says nothing of the noise of a gradient: give more training data")
    builder.check()
    builder.check_mean_loss()

    def seconds_left() -> float:
        ledger.beat()
        return budget - ledger.elapsed

    fits = [Fit(**f) for f in ledger.remember("fits", lambda: _fits(builder, budget, view))]
    sizes = [f.batch for f in fits if f.reason is None]
    if not sizes:
        raise WorkloadError(f"no batch could be trained with ({fits[0].reason}): give the model or the data another form")
    if sizes[0] > 1:
        view.say(f"memory: no batch below {sizes[0]:,} can be trained with ({fits[0].reason}): larger ones are compared instead")
    base, micro = min(task.training.batch_size, len(train)), sizes[-1]
    if task.training.batch_size > len(train):
        view.say(f"the workload's own batch of {task.training.batch_size:,} is more than there is: all {len(train):,} examples are one")
    if base < sizes[0]:
        raise WorkloadError(f"the workload's own batch of {base:,} cannot be trained with ({fits[0].reason}): give training= another batch_size")
    sizes = sorted({*sizes, base})
    view.say(f"memory: batches of up to {micro:,} fit ({_why(fits, len(train))})")

    samples = {int(b): Samples.from_json(s) for b, s in ledger.remember("times", lambda: _times(builder, sizes, base, micro, budget, view)).items()}
    sizes = [s for s in sizes if s in samples]
    wall, cpu = _means(samples, "wall"), _means(samples, "cpu")
    own = dataclasses.replace(task.training, batch_size=base, accumulate=parts_of(base, micro), grow=1, resize=1.0)
    for_reference = REFERENCE_SHARE * budget
    training, shortened = _affordable(own, wall.at(base), len(train), for_reference)
    if shortened is not None and target is None:
        view.say(shortened)
    aim = aimed(builder, training, target, most=max(1, int(for_reference / 2 / wall.at(base))), remember=ledger.remember)
    training, trained, steps = aim.training, aim.trained, aim.steps
    if not aim.reached:
        view.say(f"the loss of {target:g} was not reached: the reference came to {aim.loss:.4g}, which batches are compared at; give a larger --budget")

    def noise(share: float) -> dict[str, Any]:
        view.note("noise of the gradient", share)
        try:
            found = noise_at(builder, trained.path / weights_at(share), training, seconds=NOISE_SHARE * budget / len(MILESTONES), most=micro)
        except WorkloadError as error:
            view.say(f"noise of the gradient after {share:.0%} of the reference: {error}")
            return {"value": None, "low": None, "high": None, "reason": str(error)}
        return {**found.to_json(), "reason": None}

    noises = [ledger.remember(f"noise:{share:g}", partial(noise, share)) for share in MILESTONES]
    def for_branches() -> float:
        return seconds_left() - PATHS_SHARE * budget

    branched, points, missed, branches = _branches(builder, training, wall, sizes, micro, steps, trained.path, noises, ledger, for_branches, view)
    found = conclude(
        base=base, steps=steps, training=training, sizes=sizes, wall=wall, cpu=cpu, noises=noises, points=points, branches=branches,
        missed=missed,
    )  # fmt: skip
    picture = ledger.remember("paths", lambda: paths(builder, seconds=PATHS_SHARE * budget, most=micro))
    result = {
        "schema": SCHEMA,
        "id": ledger.remember("id", lambda: uuid.uuid4().hex),
        "workload": task.name,
        "seed": seed,
        "budget_seconds": budget,
        "environment": device.environment(),
        "reference": {
            **{k: getattr(training, k) for k in ("optimizer", "learning_rate", "epochs")}, "batch": base, "steps": steps,
            "seconds": trained.meta["seconds"], "shortened": shortened if target is None else None, "losses": trained.meta["losses"],
        },
        "target": {"asked": target, "loss": aim.loss, "reached": aim.reached},
        "fits": [dataclasses.asdict(f) for f in fits],
        "step_milliseconds": {b: {kind: _mean_of(s, kind).to_json() for kind in ("wall", "cpu")} for b, s in samples.items()},
        "noise": [{"share": share, **of_gradient} for share, of_gradient in zip(MILESTONES, noises, strict=True)],
        "branched": branched,
        "branches": [finite(dataclasses.asdict(b)) for b in branches],
        **found,
        "paths": picture,
        "spent": ledger.elapsed,
    }  # fmt: skip
    try:
        write_atomic(folder / "batch.json", json.dumps(result, indent=1, allow_nan=False))
        write_page(result, folder / "batch.html")
    except OSError as error:
        raise unwritable(folder, error) from error
    return Study(document=result, folder=folder)


def _fits(builder: Builder, budget: float, view: View) -> list[dict[str, Any]]:
    """One step with batches of twice the size each, until one does not fit, takes too long, or is all the data; and with the workload's own."""
    examples, found = len(builder.examples.split("train")), list[Fit]()

    def tried(batch: int) -> Fit:
        view.note(f"memory: batch {batch:,}", 0.0)
        return try_step(lambda size: steppers(builder, builder.workload.training, [size], size)[size](), batch, pick_device())

    for batch in candidates(1, examples):
        began = time.monotonic()
        found.append(tried(batch))
        some = any(f.reason is None for f in found)  # the smallest may be none that can be normalised
        if too_much(found[-1]) or (some and (found[-1].reason is not None or time.monotonic() - began > SLOWEST_SHARE * budget)):
            break
    own = min(builder.workload.training.batch_size, examples)
    if found[-1].reason is None and found[-1].batch < own:
        found.append(tried(own))
    return [dataclasses.asdict(f) for f in found]


def _why(fits: list[Fit], examples: int) -> str:
    if fits[-1].reason is not None:
        return f"{fits[-1].batch:,}: {fits[-1].reason}"
    return "all the data" if fits[-1].batch == examples else "larger ones take too long for this budget"


def _times(builder: Builder, sizes: list[int], base: int, micro: int, budget: float, view: View) -> dict[str, Any]:
    """By size, without those for which memory is gone by now.

    Args:
        base: the size that cannot be left out.
    """
    training, left = builder.workload.training, list(sizes)
    while True:
        try:
            with explained("a training step", training):
                samples = step_times(steppers(builder, training, left, micro), seconds=TIMES_SHARE * budget)
        except WorkloadError as error:
            if error.__cause__ is None or not is_out_of_memory(error.__cause__) or left[-1] <= base:
                raise
            view.say(f"batch {left.pop():,} ran out of memory while it was timed, and is left out")
        else:
            return {str(b): s.to_json() for b, s in samples.items()}


def _mean_of(samples: Samples, kind: Literal["wall", "cpu"]) -> Interval:
    """Milliseconds a step, with the interval of Student's t over rounds."""
    each = samples.by_input(kind)[:, 0] / 1e6
    half = student_quantile((1 + LEVEL) / 2, len(each) - 1) * float(each.std(ddof=1)) / math.sqrt(len(each))
    return Interval(value=float(each.mean()), low=float(each.mean()) - half, high=float(each.mean()) + half)


def _means(times: dict[int, Samples], kind: Literal["wall", "cpu"]) -> StepTime:
    """By the median over rounds, which one that was disturbed does not move."""
    sizes = tuple(sorted(times))
    return StepTime(sizes=sizes, seconds=tuple(float(np.median(times[b].by_input(kind))) / 1e9 for b in sizes))


def _affordable(training: TrainConfig, step: float, examples: int, seconds: float) -> tuple[TrainConfig, str | None]:
    """The reference's hyperparameters, of fewer epochs where a whole training takes longer than it may."""
    training = dataclasses.replace(training, max_seconds=None)
    whole = training.epochs * examples / training.batch_size * step
    if whole <= seconds:
        return training, None
    epochs = training.epochs * seconds / whole
    return dataclasses.replace(training, epochs=epochs), (
        f"the reference trains for {epochs:.3g} epochs instead of {training.epochs:g}, which take about {whole:.0f} s: give a larger --budget"
    )


def _branches(
    builder: Builder, training: TrainConfig, wall: StepTime, sizes: list[int], micro: int, steps: int, weights: Path,
    noises: list[dict[str, Any]], ledger: Ledger, seconds_left: Callable[[], float], view: View,
) -> tuple[list[int], list[Point], list[int], list[Branch]]:  # fmt: skip
    """Sizes that were branched, the steps that they took, those that never came to the loss asked for, and all branches."""
    brancher = Brancher(builder, training, wall, micro=micro, remember=ledger.remember, seconds_left=seconds_left)
    known = [noises[i]["value"] for i in BRANCHED if noises[i]["value"]]
    if not known:
        view.say("branches: the gradient cannot be told from its noise here, so there is nothing to compare: give a larger --budget")
        return [], [], [], []
    some = to_branch(sizes, wall, math.exp(np.log(known).mean()), training.batch_size)
    points: list[Point] = []
    missed: list[int] = []
    branches: list[Branch] = []
    length = max(8, round(BRANCH_SHARE * steps))
    milestones = [
        Milestone(index=place, weights=weights / weights_at(MILESTONES[place]), noise=noise, steps=length)
        for place in BRANCHED if (noise := noises[place]["value"])
    ]  # fmt: skip
    for repeat, milestone in product(range(MOST_REPEATS), milestones):
        if repeat and not ledger.remember(f"again:{repeat}:{milestone.index}", lambda: seconds_left() > 0):
            break
        view.say(f"branches from {MILESTONES[milestone.index]:.0%} of the reference, with batches of {', '.join(f'{b:,}' for b in some)}")
        more, short, ran = brancher.points(milestone, tuple(some), repeat=repeat)
        points, missed, branches = points + more, missed + short, branches + ran
    return some, points, sorted({*missed} - {p.batch for p in points}), branches


def to_branch(sizes: Sequence[int], time: StepTime, noise: float, base: int) -> list[int]:
    """Sizes a factor of four apart around the one that is expected to be the best, the cheapest first; and the reference's own.

    Sizes that would take `DEAREST` times as long as the best are left out.
    """
    expected = dict(zip(sizes, times(sizes, time, noise), strict=True))
    best = min(sizes, key=lambda b: expected[b])
    powers = [b for b in sizes if b == best or abs(round(math.log2(b / best)) % 2) == 0]
    near = sorted((b for b in powers if expected[b] <= DEAREST * expected[best]), key=lambda b: expected[b])[:MOST_SIZES]
    return sorted({*near, base})
