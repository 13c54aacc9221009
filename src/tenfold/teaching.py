"""Who teaches the students of a workload: the baseline, an ensemble of its trainings, or the workload's own teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold import __version__, device
from tenfold.data.split import Array
from tenfold.engine import SessionConfig, open_session
from tenfold.errors import WorkloadError, first_line
from tenfold.train.feed import Feed, batch_of, in_channels_last
from tenfold.train.loop import pick_device, predict, trains_in_bfloat16
from tenfold.train.teacher import VIEWS, Teacher, answer_epoch, mixed
from tenfold.verdict import quality_difference
from tenfold.workload import Examples, Workload, code_identity, weights_identity

if TYPE_CHECKING:
    from tenfold.build import Builder
    from tenfold.plan import Plan

Answerer = Callable[[tuple[Tensor, ...]], Tensor]
"""Inputs of a batch to a teacher's outputs on them."""

HALF_DIFFERS = 0.02
"""Mean difference of answers in bfloat16, over their mean size, up to which they are as good to learn from: some times what roundings make."""
TIMED = 64
"""Examples on which a teacher is timed."""
STORED_BYTES = 1 << 28
"""Of a teacher's answers on an epoch, above which they are not kept but given anew to each student."""


def learning_key(workload: Workload, examples: Examples) -> dict[str, Any]:
    """Identity of what students learn from and are made of, beside the baseline and its data; empty where there is nothing more."""
    key: dict[str, Any] = {}
    if workload.class_scores is not None:
        key["class scores"] = workload.class_scores
    if workload.student is not None:
        key["student"] = code_identity(workload.student)
    if workload.teacher is not None:
        key["teacher"] = [code_identity(workload.teacher), weights_identity(workload.built("teacher"))]
    if examples.unlabelled is not None:
        key["unlabelled"] = examples.unlabelled.identity
    return key


def teacher_of(builder: Builder, *, seeds: Sequence[int], batch_size: int, mixup: bool, accumulate: int = 1) -> Teacher:
    """What a teacher answers on augmented training examples, and on those without labels.

    Args:
        seeds: one a training of the baseline, each added to the builder's own, whose mean answer it is; none: the workload's own teacher.
        accumulate: micro-batches that make up a batch, of what learns and for what answers.
    """
    workload, split = builder.workload, builder.examples.to_learn_from
    augment = mixed(workload.augment) if mixup else workload.augment
    feed = Feed(split, batch_size, seed=builder.seed, augment=augment, views=VIEWS)
    plans = [baseline_of(builder, seed) for seed in seeds]
    run, dtype = _answerer(builder, plans)
    key = {
        "step": "answers", "teachers": [builder.training_key(p) for p in plans], "of": builder.workload_id,
        **builder.learning, "on": split.identity, "mixup": mixup, "seed": builder.seed, "batch": feed.batch,
        "dtype": dtype, "environment": [device.cpu_class(), __version__], "versions": builder.graph_tools(),
        **({"accumulate": accumulate} if accumulate > 1 else {}),
    }  # fmt: skip

    spent = {step.path.name: step.meta["cpu_seconds"] for step in map(builder.trained, plans)}

    def stored(epoch: int) -> Array:
        def work(folder: Path) -> dict[str, Any]:
            answers, took = answer_epoch(
                feed, run, epoch, pick_device(), accumulate=accumulate, kept=folder / "answers.checkpoint",
                seconds_left=builder.seconds_left, note=builder.note,
            )  # fmt: skip
            np.save(folder / "answers.npy", answers)
            return dict(took)

        step = builder.step("train", {**key, "epoch": epoch}, work)
        spent[step.path.name] = step.meta["cpu_seconds"]
        teacher.epoch_seconds.append(step.meta["seconds"])
        answers: Array = np.load(step.path / "answers.npy", allow_pickle=False)
        return answers

    teacher = Teacher(feed, run, stored if keeps_answers(builder) else None, spent)
    return teacher


def keeps_answers(builder: Builder) -> bool:
    """Whether a teacher's answers on all that is learned from are few enough to be stored."""
    return builder.examples.can_teach and len(builder.examples.to_learn_from) * math.prod(builder.answer_shape) * 4 <= STORED_BYTES


def baseline_of(builder: Builder, seed: int = 0) -> Plan:
    """The baseline, or another training of it, on all cores."""
    from tenfold.plan import Plan

    return Plan(training=builder.workload.training, seed=builder.seed + seed, session=SessionConfig(threads=builder.threads))


def in_bfloat16(workload: Workload, examples: Examples) -> bool:
    """Whether what students learn may be computed in bfloat16: images, with class scores, on a device that has it.

    Convolutions take less time (docs/log.md), and class scores need no more digits than it has.
    """
    return trains_in_bfloat16() and workload.classifies and any(x.ndim == 4 for x in examples.valid.inputs)


def _answerer(builder: Builder, plans: Sequence[Plan]) -> tuple[Answerer, str]:
    """The mean output of trained models, on the device that trains, and the dtype it is computed in.

    In bfloat16 where it may be and comes to the same; else, on a CPU, by their graphs, which run faster there than PyTorch does.
    """
    where = pick_device()
    may, graphs = in_bfloat16(builder.workload, builder.examples), bool(plans) and where.type == "cpu"
    if graphs and not may:
        return _by_graph(builder, plans), "float32"
    models: list[nn.Module] = [builder.load(p) for p in plans] or [builder.served(builder.workload.built("teacher"))]
    for model in models:
        model.to(where).eval()

    def in_torch(inputs: tuple[Tensor, ...], *, half: bool = False) -> Tensor:
        with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=half):
            return torch.stack([m(*in_channels_last(inputs)).float() for m in models]).mean(0)

    sample, _ = batch_of(builder.examples.valid, slice(0, 64), where)
    if may and _come_to_the_same(in_torch, sample):
        for model in models:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return partial(in_torch, half=True), "bfloat16"
    return (_by_graph(builder, plans) if graphs else in_torch), "float32"


def _by_graph(builder: Builder, plans: Sequence[Plan]) -> Answerer:
    runners = [open_session(builder.graph(p).path / "model.onnx", p.session) for p in plans]

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        arrays = [x.numpy() for x in inputs]
        return torch.from_numpy(np.mean([r(arrays) for r in runners], axis=0, dtype=np.float32))

    return run


def _come_to_the_same(run: Callable[..., Tensor], sample: tuple[Tensor, ...]) -> bool:
    whole = run(sample)
    try:
        half = run(sample, half=True)
    except RuntimeError:  # a model that mixes dtypes by hand
        return False
    return bool((half - whole).abs().mean() <= HALF_DIFFERS * whole.abs().mean())


def check_teacher(builder: Builder) -> float:
    """See that the workload's own teacher, where it has one, takes what the model takes and returns what it returns.

    Returns:
        seconds that it takes to answer on all that is learned from; 0 where there is none.

    Raises:
        WorkloadError: it does not.
    """
    if builder.workload.teacher is None:
        return 0.0
    teacher = _alike(builder, "the teacher", lambda: builder.workload.built("teacher"))
    batch = builder.examples.valid.take(slice(0, TIMED))
    began = time.perf_counter()
    predict(teacher, batch)
    each = (time.perf_counter() - began) / len(batch)
    return each * len(builder.examples.to_learn_from) if builder.examples.can_teach else 0.0


def check_student(builder: Builder) -> None:
    """See that the workload's own family of students, where it has one, takes what the model takes and returns what it returns.

    Raises:
        WorkloadError: it does not.
    """
    if (student := builder.workload.student) is not None:
        _alike(builder, "student(0.5)", lambda: student(0.5))


def _alike(builder: Builder, what: str, build: Callable[[], nn.Module]) -> nn.Module:
    """A model that takes what the workload's own takes and returns what that returns, as it is served.

    Args:
        what: it is called.

    Raises:
        WorkloadError: it does not.
    """
    few = builder.examples.valid.take(slice(0, 8))
    try:
        with torch.random.fork_rng():
            model = builder.served(build())
        answers, wanted = predict(model, few), predict(builder.fresh(), few)
    except WorkloadError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise WorkloadError(
            f"{what} does not answer as the model does ({type(error).__name__}: {first_line(error)}): let it take the same inputs and return the same"
        ) from error
    if answers.shape != wanted.shape:
        raise WorkloadError(f"{what} gives outputs of shape {answers.shape[1:]}, the model {wanted.shape[1:]}: make them the same")
    return model


def compare_teacher(builder: Builder) -> None:
    """See that the workload's own teacher, where it has one, is not shown to be worse than the trained model that it is to teach.

    Raises:
        WorkloadError: it is.
    """
    workload, valid = builder.workload, builder.examples.valid
    if workload.teacher is None:
        return
    assert valid.targets is not None
    answers = predict(builder.served(workload.built("teacher")), valid)
    scores = workload.scores(answers, valid.targets)
    own = builder.scores(baseline_of(builder), valid, 64)
    if quality_difference(own, scores, groups=valid.groups).high < 0:
        shown = [float(s.mean()) if workload.better_is_higher else -float(s.mean()) for s in (scores, own)]
        raise WorkloadError(
            f"the teacher scores {shown[0]:.4f} on valid, the model itself {shown[1]:.4f}: leave teacher= out, or give a better one"
        )
