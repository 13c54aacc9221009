"""The surface of a lever, and discovery. Core code never names one.

A lever is a module `tenfold.levers.<name>` with a `lever` in it. Deleting its folder deletes it.
"""

from __future__ import annotations

import enum
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from tenfold.data.split import Array
from tenfold.insights import confidence
from tenfold.plan import Plan
from tenfold.recipe import Pull, Recipe
from tenfold.train.config import TrainConfig
from tenfold.verdict import Interval, Verdict
from tenfold.workload import Examples, Workload

if TYPE_CHECKING:
    from tenfold.export import Served

T = TypeVar("T")
Config = dict[str, Any]
"""What a lever is pulled with: JSON, as it stands in a recipe."""


class Stage(enum.StrEnum):
    """When a lever is pulled; in this order."""

    TRAIN = "train"
    MODEL = "model"
    """Another structure, made from the baseline."""
    COMPRESSION = "compression"
    RUNTIME = "runtime"
    COMPOSE = "compose"
    """Finished models put together."""


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
    training_seconds: float = 0.0
    """What its own trainings took, the baseline's apart."""
    answering_seconds: float = 0.0
    """What its teacher took to answer on an epoch, beforehand."""
    timing_seconds: float = 0.0
    """Its part of what timing its rounds took."""

    @property
    def seconds(self) -> float:
        """Of the budget, that it took."""
        return self.training_seconds + self.timing_seconds


@dataclass(frozen=True, kw_only=True)
class Part:
    """A finished model, as something that others could be composed of."""

    recipe: Recipe
    outputs: Array
    """(n, …) on valid."""
    scores: Array
    """(n,) on valid."""
    cost: float
    """Of a prediction, over the baseline's where that is cheapest: in PyTorch or by plain onnxruntime."""

    @cached_property
    def sureness(self) -> Array:
        """(n,): the largest class probability, where outputs are class scores."""
        return confidence(self.outputs)


A_DAY = 86_400.0
"""Seconds that are planned with where a budget has no end."""
SIZING_SECONDS, SIZING_SHARE = 1.25, 0.2
"""Writing out and timing one untrained structure in one form; and the most of the budget that may go into that before anything is tried."""
ENSEMBLE_SHARE, MOST_TEACHERS = 0.1, 4
"""Of the whole budget, that further trainings of the baseline may take, to teach together; and how many at the most."""


def _no_ratios(configs: Sequence[Config], *, compressed: bool = False) -> list[float | str]:
    del compressed
    return ["nothing is measured here"] * len(configs)


def _no_seconds(configs: Sequence[Config], trainings: Sequence[TrainConfig]) -> list[float | str]:
    del trainings
    return [1.0] * len(configs)


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a lever knows when it is asked for configs."""

    stage: Stage
    workload: Workload
    examples: Examples
    fresh: Callable[[], Served]
    """Builds the untrained model, with its pre-processing."""
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
    began_at: float = 0.0
    """Quality difference, on valid, that `plan` has come to."""
    whole_budget: float = 0.0
    """Seconds of which `seconds_left` are left."""
    training_seconds: float
    """What the baseline's training took, or would take where its weights were given; 0 where there is nothing to train on."""
    epoch_answered: float = 0.0
    """Seconds that the workload's own teacher takes to answer on all that is learned from; 0 where it has none."""
    tried: tuple[Tried, ...] = ()
    """This lever's configs so far, in the order of trying."""
    skeleton_ratios: Callable[..., Sequence[float | str]] = _no_ratios
    """(configs of this lever, compressed=False) to how many times cheaper than the baseline their structures measure, untrained; or, in
    words, why one cannot be built. `compressed`: each as it is or by the first guess of the levers of compression, whichever is cheaper."""
    epoch_seconds: Callable[[Sequence[Config], Sequence[TrainConfig]], Sequence[float | str]] = _no_seconds
    """(configs of this lever, how each trains) to what an epoch of its training takes, by a few steps of its structure; or, in words, why it cannot."""
    answers_kept: bool = True
    """Whether what a teacher answers is stored, so that views that come again need not be answered again."""
    most_at_once: Callable[[int], int] = int
    """Examples to how many of them, or half as many, or a quarter, …, a backward pass of the baseline has memory for."""
    parts: Callable[[], Sequence[Part]] = tuple
    """What has been measured in full so far, the baseline first."""
    composes: bool = True
    """Whether levers that compose finished models are pulled after this one."""

    @property
    def teachers(self) -> int:
        """Trainings of the baseline whose mean answer is learned: as many as the budget has room for; 0: the workload's own teacher."""
        if self.workload.teacher is not None:
            return 0
        if self.workload.pretrained is not None or self.examples.train is None or not self.training_seconds:  # it came trained
            return 1
        return 1 + int(min(ENSEMBLE_SHARE * self.whole_budget / self.training_seconds, MOST_TEACHERS - 1))

    @property
    def learning_seconds(self) -> float:
        """Of a training as long as the baseline's on all that students learn from, examples without labels included."""
        train, more = self.examples.train, self.examples.unlabelled
        if train is None or more is None or self.workload.pretrained is not None:  # where weights are given the time was taken for all of them
            return self.training_seconds
        return self.training_seconds * (1 + len(more) / len(train))

    @property
    def floor(self) -> float:
        """Quality difference that a config should keep."""
        return floor(self.began_at, self.margin)

    @property
    def budget(self) -> float:
        """Seconds that may be planned with: those that are left, `A_DAY` where there is no end."""
        return min(self.seconds_left, A_DAY)

    def sizable(self, share: float = SIZING_SHARE) -> int:
        """Untrained structures that can be written out and timed, in one form each, in a share of the budget that is left."""
        return int(share * self.budget / SIZING_SECONDS)

    def too_short(self, what: str, needed: float | None = None) -> Refusal:
        """That what is left of the budget does not do for it.

        Args:
            needed: seconds of the budget.
        """
        found = "too few" if needed is None else f"and about {needed:,.0f} are needed"
        return Refusal(f"{max(self.budget, 0.0):,.0f} s of the budget are left for {what}, {found}: give a larger --budget")


def floor(began_at: float, margin: float) -> float:
    """Quality difference to keep for what is made of a model: the margin; or, where that model is worse than this already and may be of use as
    a part of a whole, a margin below it."""
    return -margin if began_at >= -margin else began_at - margin


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly from the whole list, both ends among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, most - 1))] for i in range(most)]


def dearest(ratios: Sequence[float | str], least: float) -> Refusal:
    """Why none of the structures that were measured will do: none is `least` times cheaper, or none can be built."""
    measured = [r for r in ratios if isinstance(r, float)]
    if not measured:
        return Refusal(next((f"no smaller structure can be built: {r}" for r in ratios if isinstance(r, str)), "there is none to measure"))
    return Refusal(f"no structure measured is {least:g}× cheaper than the baseline: the best comes to {max(measured):.2f}×")


class Lever(Protocol):
    """One way to make a model cheaper."""

    name: str
    stages: tuple[Stage, ...]
    rank: int
    """Within a stage the lower are pulled before the higher, and equals by name."""
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


@runtime_checkable
class Searched(Lever, Protocol):
    """A lever whose configs the joint search may choose."""

    def space(self, situation: Situation) -> Mapping[str, Sequence[Any]]:
        """Dimensions by name, each with its choices: numbers in their order, or texts. Empty: it does not apply."""
        ...

    def at(self, situation: Situation, point: Mapping[str, Any]) -> Config:
        """The config of a point, with a short training where it trains."""
        ...

    def longer(self, config: Config, times: float) -> Config:
        """The config with so many times its training."""
        ...


@runtime_checkable
class Trains(Lever, Protocol):
    """A lever whose configs train a model."""

    def training(self, config: Config, training: TrainConfig) -> TrainConfig:
        """How a config's model is trained, where the baseline is as in `training`."""
        ...


@runtime_checkable
class Tuned(Lever, Protocol):
    """A lever that gives several kinds of configs, the baseline's own among them, the same part of the time: what each came to is reported."""

    def kind(self, config: Config) -> str:
        """Which of them a config is of."""
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


def apply_all(plan: Plan, pulls: Iterable[Pull]) -> Plan:
    """The plan with all these levers pulled, one after the other."""
    levers = discover()
    for pull in pulls:
        plan = levers[pull.lever].apply(plan, pull.config)
    return plan
