"""The noise scale from the parts that a training step has anyway: micro-batches, and the ranks of data-parallel training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tenfold.batch.measured import Groups, Meter, square


class NoiseMeter(Meter):
    """Gradient noise scale of a training loop that adds up gradients of micro-batches, of data-parallel ranks, or of both.

    `add` after each backward pass, `step` after the last one of a step: before gradients are clipped, and before they are zeroed.
    Every example has to weigh the same, as it does with a loss that is a mean over equal micro-batches; where the last is smaller,
    scale each loss by its share of the batch. Constant factors, such as that of a gradient scaler, cancel: unscale after `step`.

    Under `DistributedDataParallel` each rank holds a meter of its own; ranks take equal numbers of examples, and all come to the
    same result. There two ranks with one batch each are enough.

    With batch normalisation, parts are normalised by their own statistics: what is measured is the noise of training with batches
    of that size.

    Args:
        model: a module, which may be wrapped in DistributedDataParallel.
        half_life: steps after which what was seen weighs half; by default all steps weigh alike.
        groups: names of groups of parameters that have a noise scale of their own beside that of the whole.
        population: examples that batches are drawn from without replacement, where the gradient over just these is meant, as in epochs over
            a training set; by default that over all examples there could be. It matters where batches or the noise are not far below it.
    """

    def __init__(
        self, model: nn.Module, *, half_life: float | None = None, groups: Groups | None = None, population: int | None = None
    ) -> None:
        super().__init__(model.parameters(), groups, half_life, population)
        self._process_group = model.process_group if isinstance(model, nn.parallel.DistributedDataParallel) else None
        self._hooks = [p.register_hook(self._hook(i)) for i, p in enumerate(self._parameters)]  # type: ignore[no-untyped-call]
        self._clear()

    def _hook(self, index: int) -> Any:
        def take(gradient: Tensor) -> None:
            """The gradient of this backward pass alone, before it is added to others, here or on other ranks."""
            self._pass.append((index, square(gradient)))

        return take

    def _clear(self) -> None:
        self._pass: list[tuple[int, Tensor]] = []
        self._parts: Tensor | None = None
        self._count = self._examples = 0

    def add(self, examples: int) -> None:
        """A backward pass over that many examples is done."""
        if not self._pass:
            raise ValueError("add() was called before any backward pass: call it after loss.backward()")
        if len({index for index, _ in self._pass}) < len(self._pass):
            self._clear()
            raise ValueError("several backward passes since the last add(): call it after each of them")
        if examples < 1:
            raise ValueError(f"a backward pass over {examples} examples cannot be")
        indices, squares = zip(*self._pass, strict=True)
        part = torch.stack([s.to(squares[0].device, torch.float32) for s in squares]) / examples
        if self._parts is None:
            self._parts = part.new_zeros(len(self._parameters))
        self._parts.index_add_(0, torch.tensor(indices, device=part.device), part)
        self._pass = []
        self._count += 1
        self._examples += examples

    def step(self) -> None:
        """All of a step's backward passes are done, and the gradients are there as the optimizer will see them."""
        if self._parts is None or self._pass:
            raise ValueError("step() was called without add(): call add(examples) after each backward pass of the step")
        parts, count, examples = self._parts.double(), self._count, self._examples
        if self._process_group is not None:
            ranks = torch.distributed.get_world_size(self._process_group)
            sums = torch.cat([parts / ranks**2, parts.new_tensor([count, examples])])
            torch.distributed.all_reduce(sums, group=self._process_group)
            parts, (count, examples) = sums[:-2], (round(x) for x in sums[-2:].tolist())
        if count < 2:
            self._clear()
            raise ValueError("a step of one backward pass on one rank says nothing of noise: split the batch in two, or use ExampleMeter")
        self._take(parts, count=count, examples=examples)
        self._clear()
