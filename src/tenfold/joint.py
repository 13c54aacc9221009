"""The joint search: the levers' configs together, on quality and measured cost, by what short trainings teach.

Rounds of a fixed size are asked for, measured, and told in the order of asking (Optuna, ask and tell),
every second one at random: the control. What was asked is recorded, so that the same measurements give
the same choices. What is best of the short trainings is then trained in full, and becomes a part for
the levers that compose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tenfold.candidate import Candidate, Entrant
from tenfold.foresee import may_compose, promising
from tenfold.lever import Config, Lever, Searched, Stage, Trains, apply_all
from tenfold.recipe import Pull, Recipe, digest

if TYPE_CHECKING:
    from tenfold.lever import Situation
    from tenfold.search import Search

ROUND = 4
"""Recipes asked for at once."""
COMPOSE_SHARE = 0.2
"""Of the time of the joint search, kept for compressing and composing at the end: no training may take it."""
EXPLORE_SHARE = 0.5
"""Of the rest, for short trainings; what is left then is for full ones. No training takes more of it than leaves time for a round of each kind."""
MOST_OVER = 2.0
"""Times that part of the time, that the shortest training of a structure may take."""
FULL_SHARE = 0.75
"""Of what is left, for each full training."""
LEAST_TIMES, MOST_TIMES = 2.0, 40.0
"""How much longer a full training is than the short one."""
MOST_ROUNDS, MOST_FULL = 12, 6
"""Rounds of short trainings, and full ones, however much budget is left."""
LEAST_SECONDS = 60.0
"""Budget left, below which nothing is begun."""
SAMPLERS = ("learned", "random")
BASELINE_VALUES = 0.0, 0.0
"""Of the point that changes nothing: it is not measured again."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A point that was asked for, and what it came to."""

    sampler: str
    point: dict[str, int]
    """For each dimension, the index of its choice."""
    values: tuple[float, float] | None
    """Quality difference, and the logarithm of the gain; None: it could not be built. Of what was not worth a training, the worst quality so far."""


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
    ended: list[tuple[str, int, float]] = field(default_factory=list)
    """Of each round: its sampler, and that sampler's trials and seconds when it ended."""
    short_seconds: float = math.inf
    """That a short training may take."""

    def run(self) -> dict[str, Any] | None:
        """Explore, then train the best in full; what the learned and the random rounds came to. None: there was no time."""
        left = self.search.left("joint")
        if left < LEAST_SECONDS or not self._spaces[Stage.MODEL]:
            return None
        whole = (1 - COMPOSE_SHARE) * left
        if whole < ROUND * self._short_training():
            return None
        self.search.budget.later = COMPOSE_SHARE * left
        self.short_seconds = EXPLORE_SHARE * whole / (ROUND * len(SAMPLERS))
        for turn in range(MOST_ROUNDS):
            if self.search.left(f"joint:explore:{turn}") <= (1 - EXPLORE_SHARE) * whole or not self._explore(turn):
                break
        for turn in range(MOST_FULL):
            if self.search.left(f"joint:full:{turn}") <= LEAST_SECONDS or not self._in_full(turn):
                break
        self.search.budget.later = 0.0
        return self._controls()

    def _short_training(self) -> float:
        """Seconds of the quickest that the ladder had, were it as long as those here; 0 where it had none."""
        situation, spaces = self._situation(Stage.MODEL), self._spaces[Stage.MODEL]
        own = {v.name: v.at(situation, {k: choices[0] for k, choices in spaces[v.name].items()}) for v in self.levers[Stage.MODEL] if v.name in spaces}

        def seconds(candidate: Candidate) -> float:
            here, there = (config.get("epochs") for config in (own.get(candidate.lever, {}), candidate.config))
            return candidate.training_seconds * (here / there if here and there else 1.0)

        return min((seconds(c) for c in self.search.ladder.candidates if c.stage is Stage.MODEL and c.training_seconds), default=0.0)

    # ------------------------------------------------------------ short trainings

    def _explore(self, turn: int) -> bool:
        """A round; False where the budget stopped it."""
        sampler = SAMPLERS[turn % 2]
        seed = int(digest([self.search.settings.seed, turn])[:8], 16)  # samplers take 32 bits
        points = self.search.ledger.remember(f"ask:{turn}", lambda: ask(self._space, self.trials, sampler, seed=seed))
        entries = [self._entrant(p) for p in points]
        before = self.search.left(f"joint:before:{turn}")
        fresh = self._unseen([e for e in entries if e is not None])
        costs = self._costs(list(fresh.values()))
        worth = {name: e for name, e in fresh.items() if costs.get(name, 0.0) < 1.0}
        new = self._in_time(worth)
        measured, stopped = self.search.joint_round(turn, list(self._unseen(new.values()).values()))
        self.seconds[sampler] += before - self.search.left(f"joint:after:{turn}")
        self.seen |= {c.recipe.id: c for c in measured}
        for point, entrant in zip(points, entries, strict=True):
            name = entrant.recipe.id if entrant is not None else ""
            if entrant is None:
                values: tuple[float, float] | None = BASELINE_VALUES
            elif costs.get(name, 0.0) >= 1.0 or (name in worth and name not in new):  # as if it came to no more than the worst: it was not worth a training
                values = (self._floor()[0], -math.log(costs[name])) if math.isfinite(costs[name]) else None
            else:
                name = new[name].recipe.id if name in new else name
                if stopped and name not in self.seen:
                    continue  # the budget ended before it: nothing is known of it
                values = _values(self.seen.get(name))
            self.trials.append(Trial(sampler=sampler, point=point, values=values))
        self.ended.append((sampler, sum(t.sampler == sampler for t in self.trials), self.seconds[sampler]))
        return not stopped

    def _costs(self, entrants: Sequence[Entrant]) -> dict[str, float]:
        """By recipe, what the structure of a lever of the model stage costs, untrained; nothing for what keeps the baseline's structure."""
        out: dict[str, float] = {}
        for lever in self.levers[Stage.MODEL]:
            own = [e for e in entrants if e.recipe.pulls[0].lever == lever.name]
            out |= dict(zip((e.recipe.id for e in own), self._costs_compressed(lever, [e.recipe.pulls[0].config for e in own]), strict=True))
        return out

    def _unseen(self, entrants: Iterable[Entrant]) -> dict[str, Entrant]:
        """By recipe, less what was measured; of that, what the ladder had is remembered."""
        asked = {e.recipe.id: e for e in entrants}
        self.seen |= {c.recipe.id: c for c in self.search.ladder.candidates if c.whole and c.recipe.id in asked}
        return {name: e for name, e in asked.items() if name not in self.seen}

    def _in_time(self, entrants: Mapping[str, Entrant]) -> dict[str, Entrant]:
        """Entrants with no more of their training than there is time for; without those that could hardly begin."""
        out, root = dict(entrants), self.search.root
        for lever in (v for v in self.levers[Stage.MODEL] if isinstance(v, Trains)):
            own = {name: e for name, e in entrants.items() if e.recipe.pulls[0].lever == lever.name}
            configs = [e.recipe.pulls[0].config for e in own.values()]
            trainings = [lever.training(c, root.plan.training) for c in configs]
            found = self.search.epoch_seconds(lever, root, configs, trainings)
            for (name, entrant), config, training, each in zip(own.items(), configs, trainings, found, strict=True):
                seconds = math.inf if isinstance(each, str) else each * training.epochs
                if seconds <= self.short_seconds:
                    continue
                shorter = lever.longer(config, self.short_seconds / seconds)
                if lever.training(shorter, root.plan.training).epochs / training.epochs * seconds <= MOST_OVER * self.short_seconds:
                    pulls = (Pull(lever=lever.name, config=shorter), *entrant.recipe.pulls[1:])
                    out[name] = self._entered(replace(entrant.recipe, pulls=pulls))
                else:
                    del out[name]
        return out

    def _situation(self, stage: Stage) -> Situation:
        return self.search.situation(stage, self.search.root, ())

    @cached_property
    def _spaces(self) -> dict[Stage, dict[str, Mapping[str, Sequence[Any]]]]:
        """By stage and lever, the dimensions of its configs; levers that do not apply are left out."""
        return {
            stage: {v.name: space for v in levers if (space := v.space(self._situation(stage)))} for stage, levers in self.levers.items()
        }

    @cached_property
    def _space(self) -> dict[str, Sequence[Any]]:
        """All dimensions: which lever of the model stage, which of compression, and the configs of each."""
        space: dict[str, Sequence[Any]] = {"model": ["none", *self._spaces[Stage.MODEL]]}
        space |= {f"use {name}": [False, True] for name in self._spaces[Stage.COMPRESSION]}
        for levers in self._spaces.values():
            space |= {f"{name}: {dimension}": choices for name, own in levers.items() for dimension, choices in own.items()}
        return space

    def _entrant(self, point: Mapping[str, int]) -> Entrant | None:
        """The recipe of a point; None for the baseline."""
        chosen = {name: self._space[name][index] for name, index in point.items()}
        recipe = self.search.root.recipe
        for stage, levers in self._spaces.items():
            for name, space in levers.items():
                if chosen["model"] == name if stage is Stage.MODEL else chosen[f"use {name}"]:
                    own = {dimension: chosen[f"{name}: {dimension}"] for dimension in space}
                    lever = next(v for v in self.levers[stage] if v.name == name)
                    recipe = recipe.then(name, lever.at(self._situation(stage), own))
        return self._entered(recipe) if recipe.pulls else None

    def _entered(self, recipe: Recipe) -> Entrant:
        last = recipe.pulls[-1]
        return Entrant(recipe=recipe, plan=apply_all(self.search.root.plan, recipe.pulls), lever=last.lever, config=last.config)

    # ------------------------------------------------------------ full trainings

    def _in_full(self, turn: int) -> bool:
        """Train in full what adds most to the front of the short trainings; False where nothing is left to train."""
        by_name = {lever.name: lever for lever in self.levers[Stage.MODEL]}
        able = [c for c in self.seen.values() if _values(c) is not None and c.recipe.pulls[0].lever in by_name and c.training_seconds > 0]
        able = [c for c in able if c.recipe.pulls[0] not in self.promoted]
        if not able:
            return False
        best = self._most_promising(able)
        left = self.search.left(f"joint:length:{turn}")
        times = min(MOST_TIMES, FULL_SHARE * left / best.training_seconds)
        if times < LEAST_TIMES:
            return False
        first = best.recipe.pulls[0]
        self.promoted.append(first)
        recipe = self.search.root.recipe.then(first.lever, by_name[first.lever].longer(first.config, times))
        if any(c.recipe.id == recipe.id for c in self.search.ladder.candidates):
            return True
        _, stopped = self.search.joint_round(f"full:{turn}", [self._entered(recipe)])
        return not stopped

    def _most_promising(self, able: Sequence[Candidate]) -> Candidate:
        """Of candidates with short trainings, the one that promises most in a cascade, beside what is trained in full; the one that adds
        most to the front where nothing is composed."""
        situation = self._situation(Stage.COMPOSE)
        parts = {p.recipe.id: p for p in situation.parts()}
        baseline = parts.pop(self.search.root.recipe.id)
        if may_compose(situation, baseline):
            own = {c.recipe.id: c for c in able if c.recipe.id in parts}
            full = [p for name, p in parts.items() if name not in self.seen and p.cost < 1.0]
            costs = self._costs(list(own.values()))
            short = [replace(parts[name], cost=min(parts[name].cost, costs[name])) for name in own]
            if found := promising([*full, *short], baseline, situation.margin, in_full=len(full)):
                return list(own.values())[found[0] - len(full)]
        return min(able, key=lambda c: (-contribution(_point(c), [_point(o) for o in able if o is not c]), c.recipe.id))

    def _costs_compressed(self, lever: Lever, configs: Sequence[Config]) -> list[float]:
        """Of structures that a lever makes of the baseline, as they are or by the first guess of the levers of compression, in the unit of parts;
        infinite where one cannot be built."""
        ratios = self.search.skeleton_ratios(lever, self.search.root, configs, compressed=True)
        return [self.search.baseline_cost / r if isinstance(r, float) else math.inf for r in ratios]

    def _controls(self) -> dict[str, Any]:
        """The hypervolume that each kind of round reached, above what the worst trial shows: by as many of their first trials as both have, and
        by what each had tried when the quicker of the two ended."""
        own = {sampler: [t.values for t in self.trials if t.sampler == sampler] for sampler in SAMPLERS}
        both, within = min(map(len, own.values())), min(self.seconds.values())
        out: dict[str, Any] = {}
        for sampler, values in own.items():
            soon = max((count for name, count, seconds in self.ended if name == sampler and seconds <= within), default=0)
            reached, in_time = (hypervolume([v for v in values[:count] if v is not None], self._floor()) for count in (both, soon))
            out[sampler] = {
                "trials": len(values), "compared": both, "seconds": self.seconds[sampler], "hypervolume": reached,
                "same_time": {"seconds": within, "trials": soon, "hypervolume": in_time},
            }  # fmt: skip
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
