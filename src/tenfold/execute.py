"""Evaluates plans on this machine: quality against the baseline, and cost by the objective."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tenfold import device
from tenfold.build import Builder
from tenfold.data.split import Array, Split
from tenfold.engine import Runner, SessionConfig, open_session
from tenfold.errors import WorkloadError, first_line
from tenfold.measure import Samples, calls_for, interleave, step_costs
from tenfold.memory import OUT_OF_MEMORY, TOO_SLOW, try_step
from tenfold.plan import Plan
from tenfold.train.average import renormalise
from tenfold.train.config import TrainConfig
from tenfold.train.distill import axis_of_classes, soft_loss
from tenfold.train.feed import Feed, tensor_of
from tenfold.train.loop import Loss, pick_device, stepper
from tenfold.train.optimizers import Optimizer, make_optimizer
from tenfold.train.resize import phases_of
from tenfold.verdict import Interval, cost_ratio, quality_difference

Objective = Literal["serve", "latency", "throughput", "size", "train"]
ROUNDS = 5
STEP_ROUNDS, LEAST_STEP_ROUNDS, STEP_SECONDS = 8, 3, 10.0
"""In which training steps are timed: as many as there is time for, within bounds."""
LEAST_INPUTS = 2_000
"""Predictions timed where cost depends on the input."""
LEARNING_STEPS, LEARNING_SECONDS = 4, 1.0
"""By which it is told how fast a structure learns, at the most: where they take longer together, by two."""
THREADS_SECONDS = 0.5
"""Timing the baseline with one number of threads."""
WARM_CALLS = 20
"""Of a compiled model: it specialises on the first few."""
EAGER = "eager"
"""The reference side that is not a plan: the baseline in PyTorch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """Where serving cost is measured."""

    batch: int
    threads: int

    @classmethod
    def of(cls, objective: Objective) -> OperatingPoint:
        return cls(batch=64, threads=device.cores()) if objective == "throughput" else cls(batch=1, threads=1)


class Evaluator:
    """Measures plans of one workload for one objective, at its operating point."""

    def __init__(self, builder: Builder, baseline: Plan, objective: Objective) -> None:
        self.builder = builder
        self.baseline = baseline
        self.objective = objective
        self.point = OperatingPoint.of(objective)
        self.timing_seconds = 0.0  # in this sitting

    # ------------------------------------------------------------ quality

    def examples(self, split: str, rows: int | None = None) -> Split:
        """A split, or as many of its examples drawn at random, always the same."""
        whole = self.builder.examples.split(split)
        return whole if rows is None else whole.sample(rows, len(whole))

    def scores(self, plan: Plan, split: str, rows: int | None = None) -> Array:
        """Scores (n,) of what the plan's session answers, `point.batch` examples a call."""
        return self.builder.scores(plan, self.examples(split, rows), self.point.batch)

    def quality(self, plan: Plan, split: str, rows: int | None = None, *, level: float = 0.9) -> Interval:
        """Paired difference of the plan against the baseline on a split."""
        base, cand = self.scores(self.baseline, split, rows), self.scores(plan, split, rows)
        return quality_difference(base, cand, groups=self.examples(split, rows).groups, level=level)

    # ------------------------------------------------------------ cost

    def costs(
        self,
        plans: Mapping[str, Plan],
        *,
        split: str,
        seconds: float,
        point: OperatingPoint | None = None,
        eager: bool = False,
        most: int = 256,
        skeletons: bool = False,
    ) -> dict[str, Samples]:
        """Raw cost samples of all plans, interleaved.

        Args:
            split: where inputs are drawn from.
            seconds: time to spend on each plan, about.
            point: instead of the evaluator's own, where each plan runs on the threads that it chose: there all have the point's.
            most: calls a round, at the most.
            eager: also time the baseline in eager PyTorch, under the name `EAGER`.
            skeletons: time the structures of all but the baseline, untrained.

        Where the cost of a plan depends on the input, at least `LEAST_INPUTS` predictions are timed.
        """
        own, point = point in (None, self.point), point or self.point
        graphs = {
            name: self.builder.skeleton(plan) if skeletons and plan != self.baseline else self.builder.graph(plan).path / "model.onnx"
            for name, plan in plans.items()
        }
        least = -(-LEAST_INPUTS // point.batch) if any(plan.join for plan in plans.values()) else 2
        started = time.perf_counter()
        runners = {
            name: open_session(graphs[name], plan.session if own else dataclasses.replace(plan.session, threads=point.threads))
            for name, plan in plans.items()
        }
        if eager:
            runners[EAGER] = torch_runner(self.builder.load(self.baseline))
        inputs = self.builder.examples.split(split).inputs
        with torch_threads(point.threads):
            calls = calls_for(runners, inputs, batch=point.batch, rounds=ROUNDS, seconds=seconds * len(runners), most=most)
            calls = max(calls, least)
            samples = interleave(runners, inputs, batch=point.batch, rounds=ROUNDS, calls=calls)
        self.timing_seconds += time.perf_counter() - started
        return samples

    def best_threads(self) -> int:
        """The number of threads at which the baseline answers soonest at the operating point, of 1, 2, 4, … and all cores."""
        graph = self.builder.graph(self.baseline).path / "model.onnx"
        counts = device.thread_counts()
        runners = {str(n): open_session(graph, dataclasses.replace(self.baseline.session, threads=n)) for n in counts}
        inputs = self.builder.examples.valid.inputs
        started = time.perf_counter()
        calls = calls_for(runners, inputs, batch=self.point.batch, rounds=ROUNDS, seconds=THREADS_SECONDS * len(runners))
        samples = interleave(runners, inputs, batch=self.point.batch, rounds=ROUNDS, calls=calls)
        self.timing_seconds += time.perf_counter() - started
        return min(counts, key=lambda n: float(samples[str(n)].wall.mean()))

    def use_threads(self, threads: int) -> None:
        """Let the baseline, and the operating point with it, have so many threads."""
        self.point = dataclasses.replace(self.point, threads=threads)
        self.baseline = dataclasses.replace(self.baseline, session=dataclasses.replace(self.baseline.session, threads=threads))

    def training_costs(self, trainings: Mapping[str, TrainConfig]) -> tuple[dict[str, Samples], dict[str, str]]:
        """Raw cost samples of whole trainings: of what they do, interleaved, times how often they do it. And why others cannot do it."""
        started = time.perf_counter()
        train = self.builder.examples.train or self.builder.examples.valid
        done = {name: _done(config, len(train)) for name, config in trainings.items()}
        work: dict[str, Callable[[], object]] = {}
        failed: dict[str, str] = {}
        once = 0.0
        for name, config in trainings.items():
            try:
                for what, batch, scale in ((w, b, s) for _, w, b, s in done[name] if w not in work):
                    model, optimizer, feed = self.begun(config, train, batch)
                    run = _work_of(what, model, optimizer, feed, self.builder.workload.loss_function(), config, scale)
                    once += timed(run)
                    work[what] = run
            except Exception as error:  # the user's model may not take the layout or precision
                if config == self.baseline.training:  # nothing could be compared with it
                    raise WorkloadError(f"a training step of the baseline raised {type(error).__name__}: {first_line(error)}") from error
                failed[name] = f"failed: {first_line(error)}"
        used = {what for name in trainings if name not in failed for _, what, *_ in done[name]}
        rounds = max(LEAST_STEP_ROUNDS, min(STEP_ROUNDS, int(STEP_SECONDS / max(once, 1e-6))))
        samples = step_costs({w: run for w, run in work.items() if w in used}, rounds=rounds)
        self.timing_seconds += time.perf_counter() - started
        return {name: _added([(count, samples[what]) for count, what, *_ in done[name]]) for name in trainings if name not in failed}, failed

    def training_seconds(self) -> float:
        """What training the baseline would take, by a few of its steps on the examples that a student would learn from; 0 where it takes none."""
        config, examples = self.builder.workload.training, self.builder.examples
        try:
            samples, _ = self.training_costs({"baseline": config})
        except WorkloadError:  # its weights are frozen, say: it is served all the same
            return 0.0
        timed = examples.train or examples.valid
        return float(np.median(samples["baseline"].wall)) / 1e9 * len(examples.to_learn_from) / len(timed)

    def epoch_seconds(self, plan: Plan, training: TrainConfig) -> float:
        """What an epoch takes in which the structure of a plan's last pass learns what is answered on all that can be learned from; by a few steps."""
        builder, targets = self.builder, self.builder.examples.valid.targets
        model = builder.structure(plan)
        started = time.perf_counter()
        split = builder.examples.to_learn_from
        split = dataclasses.replace(split, targets=np.zeros(len(split), np.int64))  # what is learned takes no time of its own
        model, optimizer, feed = self.begun(training, split, training.batch_size, model)

        def loss(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return soft_loss(outputs, torch.zeros_like(outputs), classes=axis_of_classes(outputs.shape, targets, builder.workload))

        step = stepper(model, optimizer, feed, loss, training, pick_device())
        try:
            step()
            each = [timed(step)]
            while len(each) < LEARNING_STEPS and (len(each) < 2 or sum(each) < LEARNING_SECONDS):
                each.append(timed(step))
        finally:
            self.timing_seconds += time.perf_counter() - started
        return min(each) * feed.epoch

    def most_at_once(self, examples: int) -> int:
        """So many examples, or half as many, or a quarter, …, that a backward pass of the baseline has memory for; what it has now at the least.

        Where it takes too long to be told (on one thread), a quarter of that is taken.
        """
        training, train = self.baseline.training, self.builder.examples.split("train")
        own = -(-training.batch_size // training.accumulate)

        def step(batch: int) -> float:
            config = dataclasses.replace(training, batch_size=batch, accumulate=1, grow=1)
            return stepper(*self.begun(config, train, batch), self.builder.workload.loss_function(), config, pick_device())()

        slow = 0
        while examples > own and slow < 2:
            fit = try_step(step, examples, pick_device())
            if fit.reason is None:
                return examples
            if fit.reason != OUT_OF_MEMORY and not fit.reason.startswith(TOO_SLOW):  # the model takes no such batch
                return own
            slow += fit.reason != OUT_OF_MEMORY
            examples //= 2
        return max(examples, own)

    def begun(self, config: TrainConfig, train: Split, batch: int, model: nn.Module | None = None) -> tuple[nn.Module, Optimizer, Feed]:
        """What a training of the baseline, or of `model`, begins with; with a rate of zero, so that what is timed does not diverge."""
        model = (model or self.builder.fresh()).to(pick_device()).train()
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(model, config)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        return model, optimizer, Feed(train, batch, seed=self.builder.seed, augment=self.builder.workload.augment)

    def ratio(self, baseline: Samples, candidate: Samples) -> Interval:
        """How many times cheaper the candidate is, in the unit of the objective."""
        kind: Literal["cpu", "wall"] = "wall" if self.objective in ("latency", "throughput") else "cpu"
        return ratio_of(baseline, candidate, kind)


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio_of(baseline: Samples, candidate: Samples, kind: Literal["cpu", "wall"]) -> Interval:
    return cost_ratio(baseline.by_input(kind), candidate.by_input(kind))


MEAN, NORMALISED = "mean", "normalised"
"""What a training does beside its steps: adding to the mean of weights, and finding the statistics that go with it."""


def _done(config: TrainConfig, examples: int) -> list[tuple[int, str, int, float]]:
    """What a training does: how often, by a name that is the same for what takes the same, with which batch and scale of images."""
    alike = (config.accumulate, config.optimizer, config.momentum > 0, config.schedule == "free", config.dtype, config.channels_last, config.state, config.recompute, config.dropout)
    done = [(count, repr((batch, scale, *alike)), batch, scale) for (batch, scale), count in phases_of(config, examples).items()]
    if config.average:
        done.append((math.ceil(config.average * sum(count for count, *_ in done)), MEAN, config.batch_size, 1.0))
    if config.average or config.schedule == "free":
        done.append((1, NORMALISED, config.batch_size, 1.0))
    return done


def _work_of(
    what: str, model: nn.Module, optimizer: Optimizer, feed: Feed, loss: Loss, config: TrainConfig, scale: float
) -> Callable[[], object]:
    """A function that does it once, as the training loop does."""
    if what == MEAN:
        return partial(AveragedModel(model).update_parameters, model)
    if what == NORMALISED:
        return lambda: renormalise(model.train(), feed, pick_device())
    return stepper(model, optimizer, feed, loss, config, pick_device(), scale=scale)


def _added(parts: Sequence[tuple[int, Samples]]) -> Samples:
    """Of a training that does each of these so many times."""
    cpu, wall = (np.sum([count * getattr(s, kind) for count, s in parts], axis=0) for kind in ("cpu", "wall"))
    return Samples(cpu=cpu, wall=wall, batch=1)


def torch_runner(model: nn.Module) -> Runner:
    """A PyTorch model as a runner, on CPU."""
    model = model.cpu().eval()
    cpu = torch.device("cpu")

    @torch.inference_mode()
    def run(inputs: Sequence[Array]) -> Array:
        output: Array = model(*(tensor_of(x, cpu) for x in inputs)).numpy()
        return output

    return run


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compiled_runner(model: nn.Module, example: Sequence[Array]) -> Runner | str:
    """The model through torch.compile; or, in words, why not (it needs a C++ compiler)."""
    try:
        runner = torch_runner(torch.compile(model.cpu().eval(), dynamic=False))  # type: ignore[arg-type]
        for _ in range(WARM_CALLS):
            runner(example)
    except Exception as error:  # the compiler's back ends raise whatever their tools do
        return first_line(error)
    return runner


def plain_session(threads: int = 1) -> SessionConfig:
    """Plain onnxruntime in float32: what a competent engineer would serve with."""
    return SessionConfig(engine="onnxruntime", threads=threads)


def first_batch(inputs: Sequence[Array], batch: int) -> list[Array]:
    return [np.ascontiguousarray(np.resize(x, (batch, *x.shape[1:]))) for x in inputs]


def as_json(samples: Mapping[str, Samples]) -> dict[str, Any]:
    return {name: s.to_json() for name, s in samples.items()}


def from_json(data: Mapping[str, Any]) -> dict[str, Samples]:
    return {name: Samples.from_json(s) for name, s in data.items()}
