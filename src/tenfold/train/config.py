"""How a model is trained. Pure data: imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenfold.errors import WorkloadError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Hyperparameters of one training."""

    epochs: float = 10
    """Passes over the training data; may be a fraction."""
    batch_size: int = 128
    """Examples an optimizer step."""
    accumulate: int = 1
    """Micro-batches that make up a batch: the memory of batch_size / accumulate examples."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 1e-3
    """Peak of the one-cycle schedule."""
    momentum: float = 0.9
    """Nesterov momentum of sgd; adamw's first beta."""
    weight_decay: float = 0.01
    """On weights; not on biases nor normalisation parameters."""
    warmup: float = 0.2
    """Share of the schedule in which the rate rises to its peak, before it falls linearly to zero."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast; the weights stay float32."""
    channels_last: bool = False
    """Memory format of four-dimensional inputs and weights."""
    max_seconds: float | None = None
    """Time budget: the schedule ends there if it is reached before the epochs are. (Not deterministic.)"""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "learning_rate"):
            if getattr(self, name) <= 0:
                raise WorkloadError(f"training: {name} is {getattr(self, name)}: it must be above 0")
        if self.batch_size % self.accumulate:
            raise WorkloadError(f"training: batch_size {self.batch_size} is no multiple of accumulate {self.accumulate}")
        if self.optimizer not in ("sgd", "adamw"):
            raise WorkloadError(f"training: optimizer {self.optimizer!r} is not known: use sgd or adamw")
