"""What a trained model answers on augmented training examples, for another model to learn.

Teacher and student see the very same view of an example, mixed with another one (mixup), for a long
time: "function matching" of Beyer et al. 2021, arXiv:2106.05237. The views come again after a number
of epochs, so that several students, and their later epochs, share the teacher's answers.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import BudgetEndedError
from tenfold.store import write_atomic
from tenfold.train.checkpoint import CHECKPOINT_SECONDS
from tenfold.train.feed import Augment, Feed

if TYPE_CHECKING:
    from tenfold.data.split import Array

VIEWS = 8
"""Epochs after which the same views come again."""
MIXED = 0.5
"""Share of the batches that are mixed."""


def epochs_within(seconds: float, an_epoch: float, answering: float, *, answered: float = 0.0) -> float:
    """Epochs that can be learned in so many seconds, where those up to `VIEWS` have to be answered beforehand.

    Args:
        an_epoch, answering: seconds of learning, and of answering on, an epoch.
        answered: epochs that were answered already.
    """
    epochs = (seconds - answering * max(VIEWS - answered, 0.0)) / an_epoch
    return epochs if epochs >= VIEWS else (seconds + answering * answered) / (an_epoch + answering)


class Teacher:
    """Answers on the batches of a feed."""

    def __init__(
        self, feed: Feed, run: Callable[[tuple[Tensor, ...]], Tensor], stored: Callable[[int], Array] | None = None,
        spent: dict[str, float] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            feed: of which views come again, where answers are stored.
            run: inputs of a batch to the teacher's outputs on them.
            stored: the number of an epoch (of `feed.epoch` steps) to its answers, (steps, batch, …), computed where they
                are not there yet; None: each batch is answered when it comes.
            spent: CPU-seconds of the steps that made the teacher and the answers it has stored, by name.
        """
        self.feed = feed
        self.run = run
        self.stored = stored
        self.spent = spent if spent is not None else {}
        self.epoch_seconds: list[float] = []
        """What it took to answer on each epoch that is stored, whenever that was."""
        self._epoch, self._answers = -1, np.empty(0)

    def prepare(
        self, steps: int, *, progress: Callable[[float, float], None] | None = None, seconds_left: Callable[[], float] | None = None
    ) -> None:
        """Have the answers for so many steps computed and stored, where they are stored at all.

        Raises:
            BudgetEndedError: no seconds are left; the epochs that were answered stay.
        """
        if self.stored is None:
            return
        epochs = min(VIEWS, -(-steps // self.feed.epoch))
        for epoch in range(epochs):
            if seconds_left is not None and seconds_left() <= 0:
                raise BudgetEndedError(f"the budget ended at {epoch / epochs:.0%} of what its teacher had to answer")
            self.stored(epoch)
            if progress is not None:
                progress((epoch + 1) / epochs, 0.0)

    def answers(self, step: int, first: int, inputs: tuple[Tensor, ...]) -> Tensor:
        """(len(inputs[0]), …): outputs on a part of a step's batch, that which begins at row `first` of it."""
        if self.stored is None:
            return self.run(inputs)
        epoch, within = divmod(self.feed.turn(step), self.feed.epoch)
        if epoch != self._epoch:
            self._epoch, self._answers = epoch, self.stored(epoch)
        rows = self._answers[within, first : first + len(inputs[0])]
        return torch.from_numpy(rows).to(inputs[0].device)


def answer_epoch(
    feed: Feed, run: Callable[[tuple[Tensor, ...]], Tensor], epoch: int, device: torch.device, *, accumulate: int = 1,
    kept: Path | None = None, seconds_left: Callable[[], float] | None = None, note: Callable[[str, float], None] | None = None,
) -> tuple[Array, dict[str, float]]:  # fmt: skip
    """The answers on an epoch's batches: (steps, batch, …) of float32; and the `seconds` and `cpu_seconds` of all sittings.

    Args:
        accumulate: micro-batches of a batch.
        kept: file that answers are kept in every `CHECKPOINT_SECONDS`, and gone on from.

    Raises:
        BudgetEndedError: no seconds are left; what was answered is kept.
    """
    out: list[Array] = []
    before = (0.0, 0.0)
    if kept is not None and kept.exists():
        with np.load(kept, allow_pickle=False) as file:
            out, before = list(file["answers"]), (float(file["spent"][0]), float(file["spent"][1]))
    saved, began, cpu_began = time.monotonic(), time.monotonic(), time.process_time()

    def spent() -> tuple[float, float]:
        return before[0] + time.monotonic() - began, before[1] + time.process_time() - cpu_began

    for done in range(len(out), feed.epoch):
        late = seconds_left is not None and seconds_left() <= 0
        if kept is not None and out and (late or time.monotonic() - saved > CHECKPOINT_SECONDS):
            saved = time.monotonic()
            _keep(kept, np.stack(out), spent())
        if late:
            raise BudgetEndedError(f"the budget ended at {done / feed.epoch:.0%} of an epoch that its teacher had to answer")
        parts = feed.parts(epoch * feed.epoch + done, device, count=accumulate)
        out.append(np.concatenate([run(inputs).float().cpu().numpy() for inputs, _ in parts]))
        if note is not None:
            note("the teacher answers", (done + 1) / feed.epoch)
    return np.stack(out), dict(zip(("seconds", "cpu_seconds"), map(float, spent()), strict=True))


def _keep(path: Path, answers: Array, spent: tuple[float, float]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, answers=answers, spent=np.array(spent))
    write_atomic(path, buffer.getvalue())


def mixed(augment: Augment | None) -> Augment:
    """`augment`, and in `MIXED` of the batches each example blended with another one (Zhang et al. 2018, arXiv:1710.09412).

    The share of the blend is uniform; no labels are blended: the teacher answers on the mixture itself.
    """

    def mix(batch: Tensor, generator: torch.Generator) -> Tensor:
        batch = augment(batch, generator) if augment is not None else batch
        chosen, share = torch.rand(2, generator=generator).tolist()
        other = torch.randperm(len(batch), generator=generator).to(batch.device)
        if chosen >= MIXED:
            return batch
        blend = share * batch.float() + (1 - share) * batch[other].float()
        out: Tensor = (blend if batch.is_floating_point() else blend.round()).to(batch.dtype)
        return out

    return mix
