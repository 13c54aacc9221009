"""Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531): a model learns what its teacher answers. Needs no labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from tenfold.train.config import TrainConfig
from tenfold.train.loop import fit
from tenfold.workload import class_axis

if TYPE_CHECKING:
    from tenfold.data.split import Array
    from tenfold.plan import Materials
    from tenfold.workload import Workload


def learn_from_teacher(
    model: nn.Module, training: TrainConfig, materials: Materials, *, teachers: int, mixup: bool
) -> dict[str, Any]:
    """Train `model` in place on what its teacher answers.

    Args:
        training: batches of it are of one size: the teacher answers on them.
        teachers: trainings of the baseline whose mean answer is learned; 0: the workload's own teacher.

    Returns:
        What `fit` says of it; `taught_by`, the CPU-seconds of each step that made the teacher and its answers; and `answering_seconds`,
        what answering on an epoch took beforehand.

    Raises:
        WorkloadError: there is nothing to learn from.
        BudgetEndedError: the budget ended in the middle.
    """
    assert materials.teacher is not None
    teacher = materials.teacher(seeds=range(teachers), batch_size=training.batch_size, mixup=mixup, accumulate=training.accumulate)
    training = dataclasses.replace(training, grow=1, resize=1.0)
    steps = math.ceil(training.epochs * len(teacher.feed.split) / teacher.feed.batch)
    teacher.prepare(steps, progress=materials.progress, seconds_left=materials.seconds_left)
    workload, targets = materials.workload, materials.examples.valid.targets

    def loss(outputs: Tensor, answers: Tensor) -> Tensor:
        return soft_loss(outputs, answers, classes=axis_of_classes(outputs.shape, targets, workload))

    facts = fit(
        model, teacher.feed.split, loss, training,
        seed=materials.seed, teacher=teacher, checkpoint=materials.folder / "student.checkpoint",
        progress=materials.progress, seconds_left=materials.seconds_left,
    )  # fmt: skip
    answering = sum(teacher.epoch_seconds) / max(1, len(teacher.epoch_seconds))
    return {**facts, "taught_by": teacher.spent, "answering_seconds": answering}


def axis_of_classes(outputs: Sequence[int], targets: Array | None, workload: Workload) -> int | None:
    """The axis of the outputs that holds one logit a class; None for regression, and wherever targets are not one class index for each position.

    Args:
        outputs: their shape, (batch, …).
        targets: (n, …).
    """
    if workload.class_scores is False or targets is None or targets.dtype.kind not in "iub" or workload.loss in ("mse", "l1", "binary_cross_entropy"):
        return None
    return class_axis(outputs, targets.shape, last=not workload.classifies)


def soft_loss(outputs: Tensor, answers: Tensor, *, classes: int | None) -> Tensor:
    """How far a student is from its teacher: Kullback–Leibler divergence along the classes, or the mean squared difference.

    Args:
        outputs, answers: (batch, …) of the student and the teacher.
        classes: the axis that holds one logit a class; None: there is none.
    """
    if classes is None or outputs.shape[classes] < 2:  # one logit is no choice between classes
        return functional.mse_loss(outputs, answers)
    divergence = functional.kl_div(outputs.log_softmax(classes), answers.log_softmax(classes), reduction="none", log_target=True)
    return divergence.sum(classes).mean()


def is_mixable(inputs: tuple[np.ndarray, ...]) -> bool:
    """Whether examples can be blended: one input, of pixels or floats; not tokens, nor inputs that belong together."""
    return len(inputs) == 1 and (inputs[0].dtype.kind == "f" or inputs[0].dtype == np.uint8)
