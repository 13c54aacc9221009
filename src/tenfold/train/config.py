"""How a model is trained. Pure data: imports no torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tenfold.errors import WorkloadError

Optimizer = Literal["sgd", "adamw", "lion", "muon"]
Schedule = Literal["linear", "cosine", "one_cycle", "stable", "free"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Hyperparameters of one training."""

    epochs: float = 10
    """Passes over the training data; may be a fraction."""
    batch_size: int = 128
    """Examples an optimizer step; all there are where there are fewer, which is full-batch descent."""
    accumulate: int = 1
    """Micro-batches that make up a batch, of about one size: the memory of batch_size / accumulate examples."""
    optimizer: Optimizer = "adamw"
    """`lion` (Chen et al. 2023, arXiv:2302.06675) takes a third to a tenth of adamw's rate; `muon` (Jordan et al. 2024) the same."""
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    momentum: float = 0.9
    """Nesterov momentum of sgd and muon; the first beta of the others."""
    weight_decay: float = 0.01
    """On weights; not on biases nor normalisation parameters."""
    warmup: float = 0.2
    """Share of the training in which the rate rises to its peak."""
    dtype: Precision = "float32"
    """bfloat16: autocast; the weights stay float32."""
    channels_last: bool = False
    """Memory format of four-dimensional inputs and weights."""
    max_seconds: float | None = None
    """Time budget: the schedule ends there if it is reached before the epochs are. (Not deterministic.)"""
    schedule: Schedule = "linear"
    """After the warm-up: `linear` to zero, `cosine` to zero, `one_cycle` (cosines up and down, momentum the other way), `stable` (at its peak
    until the last fifth), or `free` (no schedule, but averages: Defazio et al. 2024, arXiv:2405.15682; for sgd and adamw)."""
    second_beta: float = 0.999
    """Of adamw, lion and muon's adamw."""
    average: float = 0.0
    """Share of the training, at its end, over which weights are averaged (Izmailov et al. 2018, arXiv:1803.05407); 0: not at all."""
    grow: int = 1
    """The batch at the end over that at the start, a power of two: it doubles after equal shares of the examples."""
    state: Precision = "float32"
    """In which the optimizer keeps what it remembers between steps; not of a schedule-free one, whose state is where it steps from."""
    recompute: tuple[str, ...] = ()
    """Names of modules, as the model's `named_modules` has them, that keep nothing for the backward pass but their inputs, and compute the rest
    again: less memory for more time."""
    dropout: float = 1.0
    """Share of the rates of dropout that the model says."""
    resize: float = 1.0
    """Sides of images at the start over their own, to which they grow (`train.resize`); of the first input."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "learning_rate"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise WorkloadError(f"training: {name} is {getattr(self, name)}: it must be above 0")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise WorkloadError(f"training: weight_decay is {self.weight_decay}: it must be at least 0")
        if self.accumulate > self.batch_size:
            raise WorkloadError(f"training: a batch of {self.batch_size} cannot be made of {self.accumulate} micro-batches: give a smaller accumulate")
        for name, kind in (("optimizer", Optimizer), ("schedule", Schedule), ("dtype", Precision), ("state", Precision)):
            if (value := getattr(self, name)) not in get_args(kind):
                raise WorkloadError(f"training: {name} {value!r} is not known: use {', '.join(get_args(kind))}")
        if self.schedule == "free" and self.optimizer not in ("sgd", "adamw"):
            raise WorkloadError(f"training: there is no schedule-free {self.optimizer}: use sgd or adamw, or another schedule")
        if not 0 <= self.warmup <= 1:
            raise WorkloadError(f"training: warmup is {self.warmup}: it must be from 0 to 1")
        for name in ("momentum", "second_beta", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise WorkloadError(f"training: {name} is {getattr(self, name)}: it must be at least 0 and below 1")
        if self.schedule == "free" and not self.momentum > 0:
            raise WorkloadError("training: without momentum there is nothing that a schedule-free optimizer could average: use 0.9")
        if not 0 <= self.dropout <= 1:
            raise WorkloadError(f"training: dropout is {self.dropout}: it is a share of the model's own rates, from 0 to 1")
        if not 0 < self.resize <= 1:
            raise WorkloadError(f"training: resize is {self.resize}: images begin at a share of their size, above 0 and up to 1")
        if not isinstance(self.grow, int) or self.grow < 1 or self.grow & (self.grow - 1):
            raise WorkloadError(f"training: grow is {self.grow}: it must be a power of two")
        if self.schedule == "free" and self.state != "float32":
            raise WorkloadError("training: a schedule-free optimizer steps from its state: leave it in float32")
        if self.schedule == "free" and self.average:
            raise WorkloadError("training: a schedule-free optimizer averages already: leave average out")

    def to_json(self) -> dict[str, Any]:
        """Without what came later and is not used: what was trained before is the same training still."""
        facts = dataclasses.asdict(self)
        return {f.name: facts[f.name] for f in dataclasses.fields(self) if f.name not in _LATER or facts[f.name] != f.default}


_LATER = ("schedule", "second_beta", "average", "grow", "state", "recompute", "dropout", "resize")
"""Fields that are new since trainings were first kept."""


def parts_of(batch: int, micro: int) -> int:
    """The fewest parts of about one size, that are no larger than `micro`."""
    return math.ceil(batch / micro)
