"""The joint search: the levers' configs together, on quality and measured cost, by what short trainings teach.

Rounds of a fixed size are asked for, measured, and told in the order of asking (Optuna, ask and tell),
every second one at random: the control. What was asked is recorded, so that the same measurements give
the same choices. What is best of the short trainings is then trained in full, and becomes a part for
the levers that compose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tenfold.candidate import Candidate, Entrant
from tenfold.lever import Lever, Searched, Stage, apply_all
from tenfold.recipe import Pull

if TYPE_CHECKING:
    from tenfold.lever import Situation
    from tenfold.search import Search

ROUND = 4
"""Recipes asked for at once."""
EXPLORE_SHARE = 0.45
"""Of the time of the joint search, for short trainings; the rest is for full ones and for what is made of them."""
COMPOSE_SHARE = 0.2
"""Of the time of the joint search, kept for compressing and composing at the end."""
FULL_SHARE = 0.5
"""Of what is left, for each full training."""
LEAST_TIMES, MOST_TIMES = 2.0, 40.0
"""How much longer a full training is than the short one."""
MOST_ROUNDS, MOST_FULL = 12, 6
"""Rounds of short trainings, and full ones, however much budget is left."""
LEAST_SECONDS = 60.0
"""Budget left, below which nothing is begun."""
SAMPLERS = ("learned", "random")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A point that was asked for, and what it came to."""

    sampler: str
    point: dict[str, int]
    """For each dimension, the index of its choice."""
    values: tuple[float, float] | None
    """Quality difference, and the logarithm of the gain; None: it could not be built."""


@dataclass
class JointSearch:
    """The rounds of one search."""

    search: Search
    levers: dict[Stage, list[Searched]]
    trials: list[Trial] = field(default_factory=list)
    seen: dict[str, Candidate] = field(default_factory=dict)
    """Candidates with short trainings, by recipe."""
    promoted: list[Pull] = field(default_factory=list)
    """Pulls of the model stage that were trained in full."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SAMPLERS, 0.0))

    def run(self) -> dict[str, Any] | None:
        """Explore, then train the best in full; what the learned and the random rounds came to. None: there was no time."""
        whole = self.search.left("joint")
        if whole < LEAST_SECONDS or not self.levers[Stage.MODEL]:
            return None
        for turn in range(MOST_ROUNDS):
            if self.search.left(f"joint:explore:{turn}") <= (1 - EXPLORE_SHARE) * whole or not self._explore(turn):
                break
        for turn in range(MOST_FULL):
            if self.search.left(f"joint:full:{turn}") <= max(LEAST_SECONDS, COMPOSE_SHARE * whole) or not self._in_full(turn):
                break
        return self._controls()

    # ------------------------------------------------------------ short trainings

    def _explore(self, turn: int) -> bool:
        """A round; False where the budget stopped it."""
        sampler = SAMPLERS[turn % 2]
        space = self._space()
        points = self.search.ledger.remember(f"ask:{turn}", lambda: ask(space, self.trials, sampler, seed=1_000 * self.search.settings.seed + turn))
        entries = [self._entrant(space, p) for p in points]
        new = {e.recipe.id: e for e in entries if e.recipe.id not in self.seen}
        before = self.search.left(f"joint:before:{turn}")
        measured, stopped = self.search.joint_round(turn, list(new.values()))
        self.seconds[sampler] += before - self.search.left(f"joint:after:{turn}")
        self.seen |= {c.recipe.id: c for c in measured}
        for point, entrant in zip(points, entries, strict=True):
            candidate = self.seen.get(entrant.recipe.id)
            self.trials.append(Trial(sampler=sampler, point=point, values=_values(candidate)))
        return not stopped

    def _situation(self, stage: Stage) -> Situation:
        return self.search.situation(stage, self.search.root, ())

    def _space(self) -> dict[str, Sequence[Any]]:
        """Dimensions by name: which lever of the model stage, which of compression, and the configs of each."""
        space: dict[str, Sequence[Any]] = {"model": ["none", *(v.name for v in self.levers[Stage.MODEL])]}
        for stage, levers in self.levers.items():
            for lever in levers:
                if stage is Stage.COMPRESSION:
                    space[f"use {lever.name}"] = [False, True]
                space |= {f"{lever.name}: {name}": choices for name, choices in lever.space(self._situation(stage)).items()}
        return space

    def _entrant(self, space: Mapping[str, Sequence[Any]], point: Mapping[str, int]) -> Entrant:
        chosen = {name: space[name][index] for name, index in point.items()}
        recipe = self.search.root.recipe
        lever, config = "", {}
        for stage, levers in self.levers.items():
            for candidate in levers:
                wanted = chosen["model"] == candidate.name if stage is Stage.MODEL else chosen[f"use {candidate.name}"]
                if wanted:
                    own = {n.removeprefix(f"{candidate.name}: "): v for n, v in chosen.items() if n.startswith(f"{candidate.name}: ")}
                    lever, config = candidate.name, candidate.at(self._situation(stage), own)
                    recipe = recipe.then(lever, config)
        plan = apply_all(self.search.root.plan, [(p.lever, p.config) for p in recipe.pulls])
        return Entrant(recipe=recipe, plan=plan, lever=lever, config=config)

    # ------------------------------------------------------------ full trainings

    def _in_full(self, turn: int) -> bool:
        """Train in full what adds most to the front of the short trainings; False where nothing is left to train."""
        by_name = {lever.name: lever for lever in self.levers[Stage.MODEL]}
        able = [c for c in self.seen.values() if _values(c) is not None and c.recipe.pulls and c.recipe.pulls[0].lever in by_name]
        able = [c for c in able if c.recipe.pulls[0] not in self.promoted and c.training_seconds > 0]
        ranked = sorted(able, key=lambda c: (-contribution(_point(c), [_point(o) for o in able if o is not c]), c.recipe.id))
        if not ranked:
            return False
        best = ranked[0]
        left = self.search.left(f"joint:length:{turn}")
        times = min(MOST_TIMES, FULL_SHARE * left / best.training_seconds)
        if times < LEAST_TIMES:
            return False
        first = best.recipe.pulls[0]
        self.promoted.append(first)
        config = by_name[first.lever].longer(first.config, times)
        recipe = self.search.root.recipe.then(first.lever, config)
        plan = apply_all(self.search.root.plan, [(first.lever, config)])
        _, stopped = self.search.joint_round(f"full:{turn}", [Entrant(recipe=recipe, plan=plan, lever=first.lever, config=config)])
        return not stopped

    def _controls(self) -> dict[str, Any]:
        """The hypervolume that each kind of round reached, above what the worst trial shows."""
        out: dict[str, Any] = {}
        for sampler in SAMPLERS:
            own = [t.values for t in self.trials if t.sampler == sampler and t.values is not None]
            out[sampler] = {"trials": len(own), "seconds": self.seconds[sampler], "hypervolume": hypervolume(own, self._floor())}
        return out

    def _floor(self) -> tuple[float, float]:
        values = [t.values for t in self.trials if t.values is not None]
        return min((v[0] for v in values), default=0.0), min((v[1] for v in values), default=0.0)


def searched(levers: Sequence[Lever]) -> list[Searched]:
    return [v for v in levers if isinstance(v, Searched)]


def _values(candidate: Candidate | None) -> tuple[float, float] | None:
    if candidate is None or candidate.gain is None or candidate.verdict.quality is None:
        return None
    return candidate.verdict.quality.value, math.log(candidate.gain.value)


def _point(candidate: Candidate) -> tuple[float, float]:
    values = _values(candidate)
    assert values is not None
    return values


def ask(space: Mapping[str, Sequence[Any]], trials: Sequence[Trial], sampler: str, *, seed: int) -> list[dict[str, int]]:
    """The next `ROUND` points. A sampler that learns knows its own trials; the random one knows nothing.

    Multi-objective tree-structured Parzen estimator: Ozaki et al. 2020 (10.1145/3377930.3389817), as Optuna has it.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {name: optuna.distributions.IntDistribution(0, len(choices) - 1) for name, choices in space.items()}
    for name, choices in space.items():
        if isinstance(choices[0], (str, bool)):  # no order among them
            distributions[name] = optuna.distributions.CategoricalDistribution(list(range(len(choices))))
    chosen = (
        optuna.samplers.RandomSampler(seed=seed) if sampler == "random"
        else optuna.samplers.TPESampler(seed=seed, n_startup_trials=ROUND, constant_liar=True)
    )  # fmt: skip
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=chosen)
    for t in trials:
        if t.sampler == sampler and t.values is not None:
            study.add_trial(optuna.trial.create_trial(params=t.point, distributions=distributions, values=list(t.values)))
    return [{k: int(v) for k, v in study.ask(distributions).params.items()} for _ in range(ROUND)]


def hypervolume(points: Sequence[tuple[float, float]], floor: tuple[float, float]) -> float:
    """The area above `floor` that is dominated by points of two values, each better when larger."""
    area, height = 0.0, floor[1]
    for x, y in sorted(points, key=lambda p: (-p[0], -p[1])):
        if y > height and x > floor[0]:
            area += (x - floor[0]) * (y - height)
            height = y
    return area


def contribution(point: tuple[float, float], others: Sequence[tuple[float, float]]) -> float:
    """What a point adds to the hypervolume of others; 0 where one of them beats it."""
    every = [point, *others]
    floor = min(p[0] for p in every) - 1e-9, min(p[1] for p in every) - 1e-9
    return hypervolume(every, floor) - hypervolume(others, floor)

