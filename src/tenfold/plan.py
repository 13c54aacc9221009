"""What a recipe builds: frozen slots that say how to make, shape and run a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.engine import SessionConfig
from tenfold.train.config import TrainConfig
from tenfold.train.teacher import Teacher
from tenfold.workload import Examples, Workload

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What a pass may use: the workload with its data, and where to keep checkpoints and report progress."""

    workload: Workload
    examples: Examples
    seed: int
    folder: Path
    progress: Callable[[float, float], None] | None = None
    seconds_left: Callable[[], float] = lambda: float("inf")
    """Of the budget: long work that outlasts it raises `BudgetEndedError`."""
    rate: float = 1.0
    """Times the usual learning rate, where a pass has one of its own: below 1 where weights are not new."""
    teacher: Callable[..., Teacher] | None = None
    """(seeds, batch_size, mixup, accumulate) to what the baseline, or an ensemble of it, answers on augmented training examples."""


def _same(model: nn.Module, _materials: Materials) -> nn.Module:
    return model


def _untaught(_model: nn.Module, _training: TrainConfig, _materials: Materials) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class ModelPass:
    """A change to a trained model, before export: of its structure, then of its weights."""

    key: dict[str, Any]
    """What makes it what it is, as JSON: part of the identity of all that is built on it."""
    shape: Callable[[nn.Module, Materials], nn.Module] = _same
    """From the model as it stands, with its weights, to the structure that comes of it (in place or a new one).
    Quick, and the same for the same model: it is done again whenever the weights are loaded."""
    teach: Callable[[nn.Module, TrainConfig, Materials], dict[str, Any]] = _untaught
    """Trains it in place, and gives what is worth recording (JSON); the config is the plan's way to train."""

    @property
    def reshapes(self) -> bool:
        """Whether it makes another structure."""
        return self.shape is not _same


@dataclass(frozen=True, kw_only=True)
class GraphPass:
    """A change to the exported graph."""

    key: dict[str, Any]
    apply: Callable[[Path, Path, Materials], dict[str, Any]]
    """(source graph, target graph, materials) to what is worth recording (JSON)."""


@dataclass(frozen=True, kw_only=True)
class Join:
    """Finished graphs made into one."""

    key: dict[str, Any]
    parts: tuple[Plan, ...]
    """From the cheapest to the best; each is carried out by itself."""
    apply: Callable[[Sequence[Path], Path, Materials], dict[str, Any]]
    """(the parts' graphs, target graph, materials) to what is worth recording (JSON)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The slots. Levers fill them; `build` carries them out."""

    training: TrainConfig
    seed: int = 0
    model_passes: tuple[ModelPass, ...] = ()
    join: Join | None = None
    """Instead of a model of its own: then `model_passes` is empty, and cost depends on the input."""
    graph_passes: tuple[GraphPass, ...] = ()
    session: SessionConfig
