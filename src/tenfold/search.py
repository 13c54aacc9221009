"""Pulls the levers in stage order and keeps what its verdict takes: the ladder.

Every decision is a function of the ledger: what is recorded is not measured again, so a run that was
killed goes on with the choices that its recorded measurements imply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tenfold.errors import TenfoldError
from tenfold.execute import EAGER, Evaluator, Objective, as_json, from_json
from tenfold.ledger import Ledger
from tenfold.lever import Config, Lever, Refusal, Situation, Stage, Tried, discover
from tenfold.measure import Samples
from tenfold.plan import Plan
from tenfold.progress import View
from tenfold.recipe import Recipe
from tenfold.verdict import Decision, Interval, Verdict, choose, exact_ratio

SCREEN_ABOVE = 3
"""Configs up to which all are measured in full at once."""
SCREEN_ROWS = 250
"""Examples of the first rung, at least."""
SCREEN_SECONDS = 0.4
FULL_SECONDS = 1.5
"""Timing a config, in the first rung and the last."""
BASELINE, CURRENT = "baseline", "current"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a search is asked for; part of the identity of a run."""

    objective: Objective = "serve"
    budget_seconds: float | None = 600.0
    """From when the baseline is there. None: no limit."""
    trials: int | None = None
    """Configs measured at the most."""
    quick: bool = False
    """Post-training levers only."""
    levers: tuple[str, ...] | None = None
    """Only these. None: all."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A recipe that was measured."""

    recipe: Recipe
    plan: Plan
    stage: Stage
    lever: str
    config: Config
    verdict: Verdict
    gain: Interval | None
    """Cost ratio against the baseline."""

    @property
    def label(self) -> str:
        return short(self.lever, self.config)


@dataclass
class Ladder:
    """What a search came to."""

    recipe: Recipe
    plan: Plan
    rows: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop. Asked once a question; the answer is recorded, since a clock gives no answer twice."""

    ledger: Ledger
    started: float
    """The ledger's time when the baseline was there."""
    seconds: float | None
    trials: int | None
    reserve: float
    """Seconds kept back for certification."""

    @property
    def left(self) -> float:
        if self.seconds is None:
            return float("inf")
        return self.seconds - (self.ledger.elapsed - self.started) - self.reserve

    def allows(self, key: str, wanted: float, spent_trials: int) -> bool:
        answer: bool = self.ledger.remember(
            f"go:{key}", lambda: wanted <= self.left and (self.trials is None or spent_trials < self.trials)
        )
        return answer


class Search:
    """One climb of the ladder."""

    def __init__(
        self, evaluator: Evaluator, ledger: Ledger, view: View, settings: Settings, *,
        budget: Budget, margin: float, reference: str, trial_seconds: float, training_seconds: float,
    ) -> None:  # fmt: skip
        """
        Args:
            margin: absolute, in units of the score.
            reference: the side that gains are against: `BASELINE`, or `EAGER` where that is cheaper.
            trial_seconds: what measuring one config takes, by a first estimate.
        """
        self.evaluator = evaluator
        self.ledger = ledger
        self.view = view
        self.settings = settings
        self.budget = budget
        self.margin = margin
        self.reference = reference
        self.trial_seconds = trial_seconds
        self.training_seconds = training_seconds
        self.trials = 0
        builder = evaluator.builder
        self.ladder = Ladder(recipe=Recipe(workload=builder.workload_id, seed=settings.seed), plan=evaluator.baseline)

    def climb(self) -> Ladder:
        levers = discover()
        for stage in Stage:
            for name, lever in levers.items():
                if stage in lever.stages and (self.settings.levers is None or name in self.settings.levers):
                    self.view.lever(name, stage, self.budget.left)
                    row = self._pull(lever, stage)
                    self.ladder.rows.append(row)
                    self.view.row(row)
        return self.ladder

    def _pull(self, lever: Lever, stage: Stage) -> dict[str, Any]:
        """Try a lever's configs round by round; go on from the best that was taken. Its row of the ladder."""
        tried: list[Candidate] = []
        stopped = False
        for turn in range(100):
            proposal = self._propose(lever, stage, turn, tried)
            if isinstance(proposal, Refusal):
                return row_of(stage, lever.name, Decision.REFUSE, proposal.reason)
            if not proposal:
                break
            measured, stopped = self._round(lever, stage, turn, proposal)
            tried += measured
            if stopped:
                break
        self.ladder.candidates += tried
        if not tried:
            reason = "the budget ended before it" if stopped else "nothing to try here"
            return row_of(stage, lever.name, Decision.INCONCLUSIVE if stopped else Decision.REFUSE, reason)
        taken = [c for c in tried if c.verdict.decision is Decision.TAKE]
        best = max(taken or tried, key=lambda c: (c.verdict.cost.value if c.verdict.cost else 0.0, c.recipe.id))
        if taken:
            self.ladder.recipe, self.ladder.plan = best.recipe, best.plan
        return row_of(
            stage, lever.name, best.verdict.decision, best.verdict.reason,
            config=best.config, quality=best.verdict.quality, cost=best.verdict.cost, recipe=best.recipe.id, tried=len(tried),
        )  # fmt: skip

    def _propose(self, lever: Lever, stage: Stage, turn: int, tried: Sequence[Candidate]) -> list[Config] | Refusal:
        def ask() -> Any:
            builder = self.evaluator.builder
            situation = Situation(
                stage=stage, workload=builder.workload, examples=builder.examples, plan=self.ladder.plan,
                graph=builder.graph(self.ladder.plan).path / "model.onnx",
                objective=self.settings.objective, batch=self.evaluator.point.batch, margin=self.margin,
                quick=self.settings.quick, seconds_left=self.budget.left, training_seconds=self.training_seconds,
                tried=tuple(Tried(config=c.config, verdict=c.verdict, gain=c.gain) for c in tried),
            )  # fmt: skip
            answer = lever.propose(situation)
            return {"refusal": answer.reason} if isinstance(answer, Refusal) else {"configs": list(answer)}

        if self.settings.quick and stage in (Stage.TRAIN, Stage.MODEL):
            return Refusal("--quick pulls post-training levers only")
        answer = self.ledger.remember(f"propose:{stage}:{lever.name}:{turn}", ask)
        return Refusal(answer["refusal"]) if "refusal" in answer else answer["configs"]

    # ------------------------------------------------------------ a round of configs

    def _round(self, lever: Lever, stage: Stage, turn: int, configs: Sequence[Config]) -> tuple[list[Candidate], bool]:
        """Measure configs, by successive halving where they are many (Jamieson & Talwalkar 2016, arXiv:1502.07943).

        Returns:
            A candidate for each config that was measured, and whether the budget stopped it.
        """
        key = f"{stage}:{lever.name}:{turn}"
        plans = {}
        for config in configs:
            recipe = self.ladder.recipe.then(lever.name, config)
            plans[recipe.id] = (recipe, lever.apply(self.ladder.plan, config), config)
        valid = len(self.evaluator.builder.examples.valid)
        screen = max(SCREEN_ROWS, valid // 4)
        rungs: list[tuple[int | None, float]] = [(None, FULL_SECONDS)]
        if stage is Stage.TRAIN:  # steps are timed first: only what is cheaper is worth a training
            rungs = [(0, SCREEN_SECONDS), (None, FULL_SECONDS)]
        elif len(configs) > SCREEN_ABOVE and screen < valid:
            rungs = [(screen, SCREEN_SECONDS), (None, FULL_SECONDS)]

        alive, out, stopped = list(plans), {}, False
        for rung, (rows, seconds) in enumerate(rungs):
            last = rung == len(rungs) - 1
            quality: dict[str, Interval | None] = {}
            for name in alive:
                if rows == 0:
                    quality[name] = None
                    continue
                first = rung == 0 or stage is Stage.TRAIN  # a config counts once, however many rungs it climbs
                if not self.budget.allows(f"{key}:{rung}:{name}", self._expected(stage), self.trials if first else 0):
                    stopped = True
                    break
                self.trials += first
                answer = self.ledger.remember(f"quality:{name}:{rows}", partial(self._quality, plans[name][1], rows))
                if "failed" in answer:
                    out[name] = self._candidate(
                        plans[name], lever, stage, Verdict(decision=Decision.REFUSE, reason=answer["failed"]), None
                    )
                else:
                    quality[name] = Interval(**answer["quality"])
            if not quality:
                break
            costs, failed = self._costs(key, rung, {n: plans[n][1] for n in quality}, seconds, stage)
            for name, reason in failed.items():
                del quality[name]
                out[name] = self._candidate(plans[name], lever, stage, Verdict(decision=Decision.REFUSE, reason=reason), None)
            for name, interval in quality.items():
                factor, gain, p99 = costs[name]
                out[name] = self._candidate(plans[name], lever, stage, self._verdict(interval, factor, p99), gain)
            if last or stopped:
                break
            ranked = sorted(
                (n for n in quality if (q := quality[n]) is None or q.high >= -self.margin), key=lambda n: -costs[n][0].value
            )
            keep = 1 if stage is Stage.TRAIN else max(2, (len(configs) + 1) // 2)
            if stage is Stage.TRAIN:
                ranked = [n for n in ranked if out[n].verdict.decision is Decision.TAKE]
            for name in ranked[keep:]:
                reason = f"{keep} siblings measured cheaper ({costs[name][0].value:.2f}×)"
                verdict = Verdict(decision=Decision.REFUSE, reason=reason, quality=quality[name], cost=costs[name][0])
                out[name] = self._candidate(plans[name], lever, stage, verdict, costs[name][1])
            alive = ranked[:keep]
        return [_judged(out[n]) for n in plans if n in out], stopped

    def _candidate(
        self, plan: tuple[Recipe, Plan, Config], lever: Lever, stage: Stage, verdict: Verdict, gain: Interval | None
    ) -> Candidate:
        recipe, built, config = plan
        return Candidate(recipe=recipe, plan=built, stage=stage, lever=lever.name, config=config, verdict=verdict, gain=gain)

    def _expected(self, stage: Stage) -> float:
        return self.trial_seconds + (self.training_seconds if stage is Stage.TRAIN else 0.0)

    def _quality(self, plan: Plan, rows: int | None) -> dict[str, Any]:
        try:
            self.evaluator.builder.batches(plan)
            return {"quality": self.evaluator.quality(plan, "valid", rows).to_json()}
        except (TenfoldError, RuntimeError, ValueError) as error:
            if isinstance(error.__cause__, OSError):  # a full disk: the run stops, and can be resumed
                raise
            return {"failed": f"failed: {error}"}

    def _verdict(self, quality: Interval | None, factor: Interval, p99: float) -> Verdict:
        if quality is None:
            decision = Decision.TAKE if factor.low >= 1.0 else Decision.REFUSE
            return Verdict(decision=decision, reason=f"a step costs {factor.value:.2f}× less", cost=factor)
        if self.settings.objective == "latency" and p99 < 1.0:
            reason = f"its p99 latency is worse: {p99:.2f}× of what it was"
            return Verdict(decision=Decision.REFUSE, reason=reason, quality=quality, cost=factor)
        return choose(quality, factor, self.margin)

    def _costs(
        self, key: str, rung: int, plans: dict[str, Plan], seconds: float, stage: Stage
    ) -> tuple[dict[str, tuple[Interval, Interval, float]], dict[str, str]]:
        """For each plan: cost ratio against the ladder so far, against the baseline, and p99 ratio against the baseline;
        and what kept the others from being timed."""
        everyone = {BASELINE: self.evaluator.baseline, CURRENT: self.ladder.plan, **plans}
        if self.settings.objective == "size":
            sizes = {n: (self.evaluator.builder.graph(p).path / "model.onnx").stat().st_size for n, p in everyone.items()}
            return {n: (exact_ratio(sizes[CURRENT], sizes[n]), exact_ratio(sizes[BASELINE], sizes[n]), 1.0) for n in plans}, {}

        def measure() -> dict[str, Any]:
            before = self.evaluator.timing_seconds
            failed: dict[str, str] = {}
            if stage is Stage.TRAIN:
                samples, failed = self.evaluator.training_costs({n: p.training for n, p in everyone.items()})
            else:
                samples = self.evaluator.costs(everyone, split="valid", seconds=seconds, eager=self.reference == EAGER)
            return {"seconds": self.evaluator.timing_seconds - before, "samples": as_json(samples), "failed": failed}

        found = self.ledger.remember(f"cost:{key}:{rung}", measure)
        samples = from_json(found["samples"])
        base = samples.get(self.reference, samples[BASELINE])
        return {
            n: (
                self.evaluator.ratio(samples[CURRENT], samples[n]),
                self.evaluator.ratio(base, samples[n]),
                p99_ratio(base, samples[n]),
            )
            for n in plans
            if n in samples
        }, found["failed"]


def _judged(candidate: Candidate) -> Candidate:
    """A candidate that is only known to be cheaper is no candidate yet."""
    if candidate.verdict.decision is not Decision.TAKE or candidate.verdict.quality is not None:
        return candidate
    verdict = Verdict(
        decision=Decision.INCONCLUSIVE,
        reason=f"the budget ended before it was trained ({candidate.verdict.reason})",
        cost=candidate.verdict.cost,
    )
    return replace(candidate, verdict=verdict)


def p99_ratio(base: Samples, candidate: Samples) -> float:
    """Of wall time, baseline over candidate."""
    return base.microseconds()["wall_p99"] / candidate.microseconds()["wall_p99"]


def row_of(
    stage: str, lever: str, decision: Decision, reason: str, *,
    config: Config | None = None, quality: Interval | None = None, cost: Interval | None = None,
    recipe: str | None = None, tried: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """A row of the ladder as it stands in result.json."""
    return {
        "stage": str(stage),
        "lever": lever,
        "config": config,
        "quality_difference": quality.to_json() if quality else None,
        "cost_ratio": cost.to_json() if cost else None,
        "verdict": str(decision),
        "reason": reason,
        "recipe": recipe,
        "tried": tried,
    }


def short(lever: str, config: Config) -> str:
    """A config in a few words: text as it is, switches by name, numbers with theirs; what is off is left out."""
    words = []
    for name, value in config.items():
        if isinstance(value, bool):
            words += [name.replace("_", " ")] if value else []
        elif isinstance(value, str):
            words.append(value)
        elif value:
            words.append(f"{name.replace('_', ' ')} {value:g}")
    return f"{lever}({', '.join(words)})"


def recipe_label(recipe: Recipe) -> str:
    return " + ".join(short(p.lever, p.config) for p in recipe.pulls) or "baseline"
