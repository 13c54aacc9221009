"""What a recipe builds: frozen slots that say how to make, shape and run a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.engine import SessionConfig
from tenfold.train.config import TrainConfig
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


@dataclass(frozen=True, kw_only=True)
class ModelPass:
    """A change to a trained model, before export. It keeps the names and shapes of the state dict."""

    key: dict[str, Any]
    """What makes it what it is, as JSON: part of the identity of all that is built on it."""
    apply: Callable[[nn.Module, TrainConfig, Materials], dict[str, Any]]
    """Changes the model in place, and gives what is worth recording (JSON); the config is the plan's way to train."""


@dataclass(frozen=True, kw_only=True)
class GraphPass:
    """A change to the exported graph."""

    key: dict[str, Any]
    apply: Callable[[Path, Path, Materials], dict[str, Any]]
    """(source graph, target graph, materials) to what is worth recording (JSON)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The slots. Levers fill them; `build` carries them out."""

    training: TrainConfig
    seed: int = 0
    model_passes: tuple[ModelPass, ...] = ()
    graph_passes: tuple[GraphPass, ...] = ()
    session: SessionConfig
