"""The surface of a lever, and discovery. Core code never names one.

A lever is a module `tenfold.levers.<name>` with a `lever` in it. Deleting its folder deletes it.
"""

from __future__ import annotations

import enum
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Protocol

from tenfold.plan import Plan
from tenfold.verdict import Interval, Verdict
from tenfold.workload import Examples, Workload

Config = dict[str, Any]
"""What a lever is pulled with: JSON, as it stands in a recipe."""


class Stage(enum.StrEnum):
    """When a lever is pulled; in this order."""

    TRAIN = "train"
    MODEL = "model"
    COMPRESSION = "compression"
    RUNTIME = "runtime"


@dataclass(frozen=True)
class Refusal:
    """Why a lever does not apply, in one sentence."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A config that was measured, and what came of it."""

    config: Config
    verdict: Verdict
    gain: Interval | None
    """Cost ratio against the baseline; None where it could not be built."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a lever knows when it is asked for configs."""

    stage: Stage
    workload: Workload
    examples: Examples
    plan: Plan
    """What the levers before it have come to."""
    graph: Path
    """That plan's ONNX graph."""
    objective: str
    batch: int
    """Predictions a call at the operating point."""
    margin: float
    """Absolute, in units of the score."""
    quick: bool
    seconds_left: float
    training_seconds: float
    """What the baseline's training took; 0 where it was given."""
    tried: tuple[Tried, ...] = ()
    """This lever's configs so far, in the order of trying."""


class Lever(Protocol):
    """One way to make a model cheaper."""

    name: str
    stages: tuple[Stage, ...]
    touches: frozenset[str]
    """Slots of the plan that it fills."""
    summary: str
    """One line, for lists."""

    def propose(self, situation: Situation) -> Sequence[Config] | Refusal:
        """Configs to try next, best guess first; asked again after each round, until there are none.

        A refusal, with its reason, only where nothing was tried.
        """
        ...

    def apply(self, plan: Plan, config: Config) -> Plan:
        """The plan with the lever pulled. Pure: no work is done here."""
        ...


@cache
def discover() -> dict[str, Lever]:
    """All levers, by name."""
    import tenfold.levers

    names = sorted(m.name for m in pkgutil.iter_modules(tenfold.levers.__path__) if m.ispkg)
    return {name: import_module(f"tenfold.levers.{name}").lever for name in names}


def card(name: str) -> str:
    """The text of a lever's card."""
    return resources.files(f"tenfold.levers.{name}").joinpath("README.md").read_text(encoding="utf-8")


def apply_all(plan: Plan, pulls: Sequence[tuple[str, Config]]) -> Plan:
    levers = discover()
    for name, config in pulls:
        plan = levers[name].apply(plan, config)
    return plan
