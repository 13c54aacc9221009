"""What the steps of a training see: which examples, in which order, augmented how. A function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.data.split import Array, Split
from tenfold.train.config import TrainConfig

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(first input of a batch, generator) to the same shape."""


def tensor_of(array: Array, device: torch.device) -> Tensor:
    """A batch on the device; integers that torch cannot compute with are widened."""
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    elif array.dtype == np.float64:
        array = array.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


def batch_of(
    split: Split, rows: Any, device: torch.device, *, channels_last: bool = False
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    inputs = tuple(tensor_of(x[rows], device) for x in split.inputs)
    if channels_last:
        inputs = in_channels_last(inputs)
    return inputs, None if split.targets is None else tensor_of(split.targets[rows], device)


def in_channels_last(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)


class Feed:
    """The batches of a training.

    The order of examples depends on (seed, epoch) alone, augmentation on (seed, step).
    """

    def __init__(
        self, split: Split, batch_size: int, *, seed: int = 0, augment: Augment | None = None, views: int | None = None,
        stretches: Sequence[tuple[int, int]] = (),
    ) -> None:  # fmt: skip
        """
        Args:
            split: the training examples; batches that would be short are made whole from the next epoch's.
            views: epochs after which the same batches come again, augmentation and all; None: never.
            stretches: (steps, batch) of a batch that changes along the training, the last of which goes on; empty: it does not.
        """
        self.split = split
        self.batch = min(batch_size, len(split))
        self._begins = [(0, 0, self.batch)]
        """Of each stretch: its first step, the examples before it, and its batch."""
        for i, (steps, batch) in enumerate(stretches):
            begin, seen, _ = self._begins[-1]
            self._begins[-1] = (begin, seen, min(batch, len(split)))
            if i + 1 < len(stretches):
                self._begins.append((begin + steps, seen + steps * self._begins[-1][2], self.batch))
        self.seed = seed
        self.augment = augment
        self.epoch = max(1, len(split) // self.batch)
        """Steps of an epoch, of whole batches."""
        self.repeat = None if views is None else views * self.epoch
        self._orders: dict[int, np.ndarray] = {}

    def turn(self, step: int) -> int:
        """The first step that sees what this one does."""
        return step if self.repeat is None else step % self.repeat

    def batch_at(self, step: int) -> int:
        """Examples of a step."""
        return self._stretch(step)[2]

    def seen(self, step: int) -> int:
        """Examples of all steps before it."""
        begin, seen, batch = self._stretch(step)
        return seen + (step - begin) * batch

    def _stretch(self, step: int) -> tuple[int, int, int]:
        return next(s for s in reversed(self._begins) if s[0] <= step)

    def rows(self, step: int) -> Array:
        """Row indices (batch,) of a step: epoch after epoch in fresh random orders, batches running across the seam."""
        n, out, step = len(self.split), [], self.turn(step)
        first = self.seen(step)
        last = first + self.batch_at(step)
        for epoch in range(first // n, (last - 1) // n + 1):
            if epoch not in self._orders:
                for old in [e for e in self._orders if e not in (epoch - 1, epoch)]:
                    del self._orders[old]
                self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(n)
            out.append(self._orders[epoch][max(first - epoch * n, 0) : last - epoch * n])
        return np.concatenate(out)

    def parts(self, step: int, device: torch.device, *, count: int = 1) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
        """Inputs and targets of a step, in so many parts, whose sizes differ by one at the most; in fewer where the batch is that small."""
        rows = self.rows(step)
        generator = torch.Generator().manual_seed((self.seed << 32) + self.turn(step))
        for some in np.array_split(rows, min(count, len(rows))):
            inputs, target = batch_of(self.split, some, device)
            if self.augment is not None:
                inputs = (self.augment(inputs[0], generator), *inputs[1:])
            yield inputs, target


def stretches_of(config: TrainConfig, examples: int) -> list[tuple[int, int]]:
    """(steps, batch) of a training on so many examples: one stretch, or one for each size of a batch that grows, of about equal shares."""
    sizes = [min(config.batch_size << i, examples) for i in range(config.grow.bit_length())]
    out: list[tuple[int, int]] = []
    seen = 0
    for i, batch in enumerate(sizes):
        until = config.epochs * examples * (i + 1) / len(sizes)
        steps = max(0 if out else 1, math.ceil((until - seen) / batch))
        out.append((steps, batch))
        seen += steps * batch
    return out
