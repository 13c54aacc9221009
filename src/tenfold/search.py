"""Pulls the levers in stage order and keeps what its verdict takes: the ladder.

Every decision is a function of the ledger: what is recorded is not measured again, so a run that was
killed goes on with the choices that its recorded measurements imply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tenfold.candidate import Candidate, Entrant, Ladder, Rung, judged, parts_front, row_of
from tenfold.engine import open_session
from tenfold.errors import BudgetEndedError, TenfoldError, first_line
from tenfold.execute import EAGER, Evaluator, Objective, as_json, from_json
from tenfold.joint import JointSearch, searched
from tenfold.ledger import Ledger
from tenfold.lever import A_DAY, Config, Lever, Part, Refusal, Situation, Stage, Tried, discover, floor
from tenfold.measure import Samples
from tenfold.plan import Plan
from tenfold.progress import View
from tenfold.recipe import Recipe, digest
from tenfold.teaching import keeps_answers
from tenfold.train.config import TrainConfig
from tenfold.verdict import Decision, Interval, Verdict, choose, exact_ratio

SCREEN_ABOVE = 3
"""Configs up to which all are measured in full at once."""
SCREEN_ROWS = 250
"""Examples of the first rung, at least."""
SCREEN_SECONDS = 0.4
FULL_SECONDS = 1.5
"""Timing a config, in the first rung and the last."""
LATER_TRIALS = 4
"""Configs of compression that the levers which train leave time for, beside a round of composed models: where the budget is small, what is quick
and sure comes first."""
SIZED_TOGETHER, SIZING_MOST = 8, 0.3
"""Untrained structures that are open at once to be timed; and the share of the budget left after which no more of them are."""
LEARNING_SHARE = 0.05
"""Of the budget left, after which no more structures are timed at learning."""
NOT_TIMED = {"epoch": "the budget did not allow to time it", "seconds": 0.0}
NOT_SIZED = {"ratio": "the budget did not allow to measure it", "seconds": 0.0}
FROM_THE_BASELINE = (Stage.MODEL, Stage.COMPOSE)
"""Stages whose levers begin from it, not from what the ladder has come to: what they make takes the place of that."""
TOO_SLOW_TO_COMPOSE = "its cost depends on the input, and timing the baseline on thousands of them would take most of the budget: give a larger one"
SPENT = ("training_seconds", "training_cpu_seconds", "answering_seconds")
"""What is told of a candidate's training."""
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


@dataclass(kw_only=True)
class Budget:
    """When to stop. Asked once a question; the answer is recorded, since a clock gives no answer twice."""

    ledger: Ledger
    started: float
    """The ledger's time when the baseline was there."""
    seconds: float | None
    trials: int | None
    reserve: float
    """Seconds kept back for certification."""
    later: float = 0.0
    """Seconds kept back for stages that are still to come."""

    @property
    def until_end(self) -> float:
        return float("inf") if self.seconds is None else self.seconds - (self.ledger.elapsed - self.started)

    @property
    def left(self) -> float:
        """Until the end, less what is kept back."""
        return self.until_end - self.reserve - self.later

    def allows(self, key: str, wanted: float, spent_trials: int) -> bool:
        answer: bool = self.ledger.remember(
            f"go:{key}", lambda: wanted <= self.left and (self.trials is None or spent_trials < self.trials)
        )
        return answer


class Search:
    """One climb of the ladder."""

    def __init__(
        self, evaluator: Evaluator, ledger: Ledger, view: View, settings: Settings, *,
        budget: Budget, margin: float, reference: str, trial_seconds: float, compose_seconds: float | None, training_seconds: float,
        epoch_answered: float = 0.0, baseline_cost: float = 1.0,
    ) -> None:  # fmt: skip
        """
        Args:
            margin: absolute, in units of the score.
            reference: the side that gains are against: `BASELINE`, or `EAGER` where that is cheaper.
            trial_seconds: what measuring one config takes, by a first estimate.
            compose_seconds: what timing a round of composed models takes; None: too much for the budget, so nothing is composed.
            epoch_answered: what the workload's own teacher takes to answer on an epoch.
            baseline_cost: of the baseline by plain onnxruntime, over that of `reference`.
        """
        self.evaluator = evaluator
        self.ledger = ledger
        self.view = view
        self.settings = settings
        self.budget = budget
        self.margin = margin
        self.reference = reference
        self.trial_seconds = trial_seconds
        self.compose_seconds = compose_seconds
        self.training_seconds = training_seconds
        self.epoch_answered = epoch_answered
        self.baseline_cost = baseline_cost
        self.trials = 0
        self.occasion = ""
        """Of levers that are pulled a second time: tells their questions in the ledger apart."""
        builder = evaluator.builder
        self.root = Rung(recipe=Recipe(workload=builder.workload_id, seed=settings.seed), plan=evaluator.baseline)
        self.ladder = Ladder(recipe=self.root.recipe, plan=self.root.plan)

    def climb(self) -> Ladder:
        for stage in Stage:
            self._climb(stage)
        joint = JointSearch(search=self, levers={s: searched(self._levers(s)) for s in (Stage.MODEL, Stage.COMPRESSION)})
        if not self.settings.quick and self.settings.objective != "train" and (found := joint.run()) is not None:
            self.ladder.joint = found
            self.occasion = "joint"
            self._climb(Stage.COMPOSE)
        return self.ladder

    def _climb(self, stage: Stage) -> None:
        """Pull the levers of a stage, and go on from what is best."""
        self.budget.later = self._later() if stage is Stage.MODEL else 0.0
        if stage is Stage.COMPOSE and (self.compose_seconds is not None or self.occasion):
            self.budget.later = self._composing()
            self._compress_parts()
            self.budget.later = 0.0
        for lever in self._levers(stage):
            self.view.lever(lever.name, stage, self.budget.until_end)
            now = self.root if stage in FROM_THE_BASELINE else Rung(recipe=self.ladder.recipe, plan=self.ladder.plan)
            if stage is Stage.COMPOSE and self.compose_seconds is None:
                row, best = row_of(stage, lever.name, Decision.REFUSE, TOO_SLOW_TO_COMPOSE), None
            else:
                row, best = self._pull(lever, stage, now)
            if best is not None and (now is not self.root or self._gain_of(best) > self._gain_of(self._top())):
                self.ladder.recipe, self.ladder.plan = best.recipe, best.plan
            self.ladder.put(row)
            self.view.row(row)

    def _later(self) -> float:
        """Seconds that what trains leaves for what comes after it: some configs of compression, and a round of composed models."""
        compressing = LATER_TRIALS * self.trial_seconds if self._levers(Stage.COMPRESSION) else 0.0
        return compressing + self._composing()

    def _composing(self) -> float:
        """Seconds that a round of composed models takes."""
        return self._expected(Stage.COMPOSE) if self.compose_seconds is not None and self._levers(Stage.COMPOSE) else 0.0

    def _top(self) -> Candidate | None:
        """What the ladder has come to; None: the baseline."""
        return next((c for c in self.ladder.candidates if c.recipe.id == self.ladder.recipe.id), None)

    @staticmethod
    def _gain_of(candidate: Candidate | None) -> float:
        return candidate.gain.value if candidate is not None and candidate.gain is not None else 1.0

    def _levers(self, stage: Stage) -> list[Lever]:
        """Those of a stage in the order of pulling."""
        found = [v for name, v in discover().items() if stage in v.stages and (self.settings.levers is None or name in self.settings.levers)]
        return sorted(found, key=lambda lever: (lever.rank, lever.name))

    def _compress_parts(self) -> None:
        """Pull the levers of compression on the baseline and on every model that may be a part of a whole, where that was not done yet."""
        done = {c.recipe.pulls[:-1] for c in self.ladder.candidates if c.stage is Stage.COMPRESSION}
        compressing = {lever.name for lever in self._levers(Stage.COMPRESSION)}
        models = parts_front([c for c in self.ladder.candidates if c.stage is Stage.MODEL and not c.recipe.levers() & compressing])
        rungs = {"baseline": self.root, **{c.label: c for c in models}}
        for label, rung in rungs.items():
            if models and rung.recipe.pulls not in done:
                for lever in self._levers(Stage.COMPRESSION):
                    self.view.lever(f"{lever.name} on {label}", Stage.COMPRESSION, self.budget.until_end)
                    self._pull(lever, Stage.COMPRESSION, rung)

    def _pull(self, lever: Lever, stage: Stage, now: Rung) -> tuple[dict[str, Any], Candidate | None]:
        """Try a lever's configs round by round. Its row of the ladder, and the best that was taken."""
        tried: list[Candidate] = []
        stopped = False
        for turn in range(100):
            proposal = self._propose(lever, stage, now, turn, tried)
            if isinstance(proposal, Refusal):
                return row_of(stage, lever.name, Decision.REFUSE, proposal.reason), None
            if not proposal:
                break
            measured, stopped = self._round(lever, stage, now, turn, proposal)
            tried += measured
            if stopped:
                break
        known = {c.recipe.id for c in self.ladder.candidates}
        self.ladder.candidates += [c for c in tried if c.recipe.id not in known]
        if not tried:
            reason = "the budget ended before it" if stopped else "nothing to try here"
            return row_of(stage, lever.name, Decision.INCONCLUSIVE if stopped else Decision.REFUSE, reason), None
        taken = [c for c in tried if c.verdict.decision is Decision.TAKE]
        firm = [c for c in taken if self._is_firm(c)]
        best = max(firm or taken or tried, key=lambda c: (c.verdict.cost.value if c.verdict.cost else 0.0, c.recipe.id))
        decision, reason = best.verdict.decision, best.verdict.reason
        if taken and not firm:
            decision, reason = Decision.INCONCLUSIVE, f"{reason}: {len(self.evaluator.builder.examples.test):,} test examples would not show that: give more of them, or a larger margin"
        row = row_of(
            stage, lever.name, decision, reason,
            config=best.config, quality=best.verdict.quality, cost=best.verdict.cost, recipe=best.recipe.id, tried=len(tried),
        )  # fmt: skip
        return row, best if firm else None

    def _is_firm(self, candidate: Candidate) -> bool:
        """Whether the test split would certify the difference that valid shows: only on such a candidate is built further."""
        quality, examples = candidate.verdict.quality, self.evaluator.builder.examples
        if quality is None:
            return True
        narrower = (len(examples.valid) / len(examples.test)) ** 0.5
        return bool(quality.value - (quality.value - quality.low) * narrower >= -self.margin)

    def _propose(self, lever: Lever, stage: Stage, now: Rung, turn: int, tried: Sequence[Candidate]) -> list[Config] | Refusal:
        def ask() -> Any:
            answer = lever.propose(self._asked(lever, stage, now, tried))
            return {"refusal": answer.reason} if isinstance(answer, Refusal) else {"configs": list(answer)}

        if self.settings.quick and stage in (Stage.TRAIN, Stage.MODEL):
            return Refusal("--quick pulls post-training levers only")
        answer = self.ledger.remember(f"propose:{self._key(stage, lever, now, turn)}", ask)
        return Refusal(answer["refusal"]) if "refusal" in answer else answer["configs"]

    def _asked(self, lever: Lever, stage: Stage, now: Rung, tried: Sequence[Candidate]) -> Situation:
        ratios, seconds = partial(self.skeleton_ratios, lever, now), partial(self.epoch_seconds, lever, now)
        return replace(self.situation(stage, now, tried), skeleton_ratios=ratios, epoch_seconds=seconds)

    def situation(self, stage: Stage, now: Rung, tried: Sequence[Candidate]) -> Situation:
        builder = self.evaluator.builder
        return Situation(
            stage=stage, workload=builder.workload, examples=builder.examples, fresh=builder.fresh, plan=now.plan,
            graph=builder.graph(now.plan).path / "model.onnx",
            objective=self.settings.objective, batch=self.evaluator.point.batch, margin=self.margin,
            quick=self.settings.quick, began_at=self._came_to(now), seconds_left=self.budget.left, whole_budget=self.budget.seconds or A_DAY,
            training_seconds=self.training_seconds, epoch_answered=self.epoch_answered,
            tried=tuple(
                Tried(
                    config=c.config, verdict=c.verdict, gain=c.gain,
                    training_seconds=c.training_seconds, answering_seconds=c.answering_seconds, timing_seconds=c.timing_seconds,
                ) for c in tried
            ),
            answers_kept=keeps_answers(builder), most_at_once=lambda examples: self.ledger.remember(f"memory:{examples}", lambda: self.evaluator.most_at_once(examples)),
            parts=partial(self._parts, tried), composes=bool(self._levers(Stage.COMPOSE)) and self.compose_seconds is not None,
        )  # fmt: skip

    def _came_to(self, now: Rung) -> float:
        """Quality difference on valid of what is built upon."""
        if not now.recipe.pulls:
            return 0.0
        answer = self.ledger.remember(f"quality:{now.recipe.id}:None", partial(self._quality, now.plan, None))
        value: float = answer["quality"]["value"]
        return value

    # ------------------------------------------------------------ the joint search

    def left(self, question: str) -> float:
        """Seconds of the budget that are left; asked once a question, and recorded."""
        answer: float = self.ledger.remember(f"left:{question}", lambda: min(self.budget.left, 1e9))
        return answer

    def joint_round(self, turn: int | str, entries: Sequence[Entrant]) -> tuple[list[Candidate], bool]:
        """Measure recipes of the joint search in full; its candidates are kept with the ladder's."""
        self.view.lever(f"joint search, round {turn}", "joint", self.budget.until_end)
        measured, stopped = self.measure(f"joint:{turn}", Stage.MODEL, self.root, entries, [(None, FULL_SECONDS)])
        self.ladder.candidates += measured
        return measured, stopped

    # ------------------------------------------------------------ a round of configs

    def _round(self, lever: Lever, stage: Stage, now: Rung, turn: int, configs: Sequence[Config]) -> tuple[list[Candidate], bool]:
        """Measure a lever's configs; a candidate for each that was measured, and whether the budget stopped it."""
        valid = len(self.evaluator.builder.examples.valid)
        screen = max(SCREEN_ROWS, valid // 4)
        rungs: list[tuple[int | None, float]] = [(None, FULL_SECONDS)]
        if stage is Stage.TRAIN and all(_computed_alike(lever.apply(now.plan, c), now.plan) for c in configs):
            # steps are timed first: of what differs in nothing else only what is cheaper is worth a training
            rungs = [(0, SCREEN_SECONDS), (None, FULL_SECONDS)]
        elif stage is Stage.COMPRESSION and len(configs) > SCREEN_ABOVE and screen < valid:
            rungs = [(screen, SCREEN_SECONDS), (None, FULL_SECONDS)]
        entries = [
            Entrant(recipe=now.recipe.then(lever.name, c), plan=lever.apply(now.plan, c), lever=lever.name, config=c) for c in configs
        ]
        known = {c.recipe.id: c for c in self.ladder.candidates if stage in FROM_THE_BASELINE}  # measured when the lever was pulled before
        new = [e for e in entries if e.recipe.id not in known]
        measured, stopped = self.measure(self._key(stage, lever, now, turn), stage, now, new, rungs)
        by_id = known | {c.recipe.id: c for c in measured}
        return [by_id[e.recipe.id] for e in entries if e.recipe.id in by_id], stopped

    def measure(
        self, key: str, stage: Stage, now: Rung, entries: Sequence[Entrant], rungs: Sequence[tuple[int | None, float]]
    ) -> tuple[list[Candidate], bool]:
        """Measure recipes, by successive halving where there are rungs (Jamieson & Talwalkar 2016, arXiv:1502.07943).

        Args:
            key: of this round in the ledger.
            now: what the recipes' costs are compared with.
            rungs: examples of valid (None: all; 0: none yet) and seconds of timing, rung by rung.

        Returns:
            A candidate for each recipe that was measured, and whether the budget stopped it.
        """
        plans = {e.recipe.id: e for e in entries}
        alive, out, stopped = list(plans), {}, False
        spent: dict[str, dict[str, Any]] = {}
        timing = 0.0
        for rung, (rows, seconds) in enumerate(rungs):
            last = rung == len(rungs) - 1
            quality: dict[str, Interval | None] = {}
            for name in alive:
                if rows == 0:
                    quality[name] = None
                    continue
                first = rung == 0 or rungs[0][0] == 0  # a config counts once, however many rungs it climbs
                if not self.budget.allows(f"{key}:{rung}:{name}", self._expected(stage, plans[name].plan), self.trials if first else 0):
                    stopped = True
                    break
                self.trials += first
                answer = self.ledger.remember(f"quality:{name}:{rows}", partial(self._quality, plans[name].plan, rows))
                if "failed" in answer:
                    decision = Decision.INCONCLUSIVE if answer["ended"] else Decision.REFUSE
                    out[name] = self._candidate(plans[name], stage, Verdict(decision=decision, reason=answer["failed"]), None)
                else:
                    quality[name] = Interval(**answer["quality"])
                    spent[name] = {k: answer.get(k, 0.0) for k in SPENT}
            if not quality:
                break
            costs, failed, took = self._costs(key, rung, now, {n: plans[n].plan for n in quality}, seconds, stage)
            timing += took / len(quality)
            for name, reason in failed.items():
                del quality[name]
                out[name] = self._candidate(plans[name], stage, Verdict(decision=Decision.REFUSE, reason=reason), None)
            for name, interval in quality.items():
                factor, gain, p99 = costs[name]
                out[name] = replace(
                    self._candidate(plans[name], stage, self._verdict(interval, factor, p99), gain),
                    whole=rows is None, timing_seconds=timing, **spent.get(name, {}),
                )  # fmt: skip
            if last or stopped:
                break
            least = floor(self._came_to(now), self.margin)
            ranked = sorted((n for n in quality if (q := quality[n]) is None or q.high >= least), key=lambda n: -costs[n][0].value)
            keep = 1 if rows == 0 else max(2, (len(entries) + 1) // 2)
            if rows == 0:
                ranked = [n for n in ranked if out[n].verdict.decision is Decision.TAKE]
            for name in ranked[keep:]:
                reason = f"{keep} siblings measured cheaper ({costs[name][0].value:.2f}×)"
                verdict = Verdict(decision=Decision.REFUSE, reason=reason, quality=quality[name], cost=costs[name][0])
                out[name] = self._candidate(plans[name], stage, verdict, costs[name][1])
            alive = ranked[:keep]
        return [judged(out[n]) for n in plans if n in out], stopped

    def _candidate(self, entrant: Entrant, stage: Stage, verdict: Verdict, gain: Interval | None) -> Candidate:
        return Candidate(
            recipe=entrant.recipe, plan=entrant.plan, lever=entrant.lever, config=entrant.config, stage=stage, verdict=verdict, gain=gain
        )

    def _expected(self, stage: Stage, plan: Plan | None = None) -> float:
        """Seconds that measuring a config takes, by a first estimate.

        Args:
            plan: its own, where it may train for another time than the baseline.
        """
        share = 1.0 if plan is None else plan.training.epochs / self.evaluator.baseline.training.epochs
        more = {Stage.TRAIN: share * self.training_seconds, Stage.COMPOSE: self.compose_seconds}
        return self.trial_seconds + (more.get(stage) or 0.0)

    def _quality(self, plan: Plan, rows: int | None) -> dict[str, Any]:
        try:
            builder = self.evaluator.builder
            meta = builder.shaped(plan).meta if plan.model_passes or plan.training != self.evaluator.baseline.training else {}
            trained = {name: float(meta.get(name.removeprefix("training_"), 0.0)) for name in SPENT}
            builder.batches(plan)
            return {"quality": self.evaluator.quality(plan, "valid", rows).to_json(), **trained}
        except BudgetEndedError as error:
            return {"failed": str(error), "ended": True}
        except (TenfoldError, RuntimeError, ValueError, MemoryError) as error:
            if isinstance(error.__cause__, OSError):  # a full disk: the run stops, and can be resumed
                raise
            return {"failed": f"failed: {str(error) or ('out of memory' if isinstance(error, MemoryError) else type(error).__name__)}", "ended": False}

    def _verdict(self, quality: Interval | None, factor: Interval, p99: float) -> Verdict:
        if quality is None:
            decision = Decision.TAKE if factor.low >= 1.0 else Decision.REFUSE
            return Verdict(decision=decision, reason=f"training costs {factor.value:.2f}× less", cost=factor)
        if self.settings.objective == "latency" and p99 < 1.0:
            reason = f"its p99 latency is worse: {p99:.2f}× of what it was"
            return Verdict(decision=Decision.REFUSE, reason=reason, quality=quality, cost=factor)
        return choose(quality, factor, self.margin)

    def _costs(
        self, key: str, rung: int, now: Rung, plans: dict[str, Plan], seconds: float, stage: Stage
    ) -> tuple[dict[str, tuple[Interval, Interval, float]], dict[str, str], float]:
        """For each plan: cost ratio against the ladder so far, against the baseline, and p99 ratio against the baseline;
        what kept the others from being timed; and the seconds that it took."""
        current = BASELINE if now.recipe == self.root.recipe else CURRENT
        everyone = {BASELINE: self.evaluator.baseline, current: now.plan, **plans}
        if self.settings.objective == "size":
            sizes = {n: (self.evaluator.builder.graph(p).path / "model.onnx").stat().st_size for n, p in everyone.items()}
            return {n: (exact_ratio(sizes[current], sizes[n]), exact_ratio(sizes[BASELINE], sizes[n]), 1.0) for n in plans}, {}, 0.0

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
                self.evaluator.ratio(samples[current], samples[n]),
                self.evaluator.ratio(base, samples[n]),
                p99_ratio(base, samples[n]),
            )
            for n in plans
            if n in samples
        }, found["failed"], found["seconds"]

    def _key(self, stage: Stage, lever: Lever, now: Rung, turn: int) -> str:
        """Of a question in the ledger."""
        return f"{stage}:{lever.name}:{now.recipe.id}:{turn}{self.occasion and ':'}{self.occasion}"

    # ------------------------------------------------------------ what a lever may ask

    def skeleton_ratios(self, lever: Lever, now: Rung, configs: Sequence[Config], *, compressed: bool = False) -> list[float | str]:
        """How many times cheaper than the baseline the structures of a lever's configs are, untrained, or why one cannot be built; each is
        measured once, and recorded."""
        keys = [f"cost:size:{digest([lever.name, now.recipe.id, compressed, config])[:16]}" for config in configs]
        new = {k: c for k, c in zip(keys, configs, strict=True) if not self.ledger.knows(k)}
        until = self.budget.left - SIZING_MOST * min(self.budget.left, A_DAY)
        turns = -(-len(new) // SIZED_TOGETHER)
        for turn in range(turns):  # every so manieth: where the time ends early, what was measured still spans the range
            some = dict(list(new.items())[turn::turns])
            late = turn > 0 and self.budget.left < until
            found = dict.fromkeys(some, NOT_SIZED) if late else self._size(lever, now, some, compressed=compressed)
            for key, value in found.items():
                self.ledger.append(key, value)
        return [self.ledger[k]["ratio"] for k in keys]

    def epoch_seconds(self, lever: Lever, now: Rung, configs: Sequence[Config], trainings: Sequence[TrainConfig]) -> list[float | str]:
        """What an epoch of each config's training takes, by a few steps of its structure, or why it cannot be trained; each is measured once, and recorded."""

        def measure(config: Config, training: TrainConfig) -> dict[str, Any]:
            before = self.evaluator.timing_seconds
            try:
                found: float | str = self.evaluator.epoch_seconds(lever.apply(now.plan, config), training)
            except OSError:
                raise
            except Exception as error:  # the user's student or augmentation may raise anything
                if isinstance(error.__cause__, OSError):  # a full disk
                    raise
                found = first_line(error)
            return {"epoch": found, "seconds": self.evaluator.timing_seconds - before}

        out = []
        until = (1 - LEARNING_SHARE) * min(self.budget.left, A_DAY)
        for i, (config, training) in enumerate(zip(configs, trainings, strict=True)):
            self.view.note(f"{lever.name}: timing how students learn", i / len(configs))
            key = f"cost:learning:{digest([lever.name, now.recipe.id, config, training.to_json()])[:16]}"
            late = i > 0 and self.budget.left < until
            out.append(self.ledger.remember(key, (lambda: NOT_TIMED) if late else partial(measure, config, training))["epoch"])
        return out

    def _size(self, lever: Lever, now: Rung, configs: Mapping[str, Config], *, compressed: bool) -> dict[str, Any]:
        """Time structures together (or weigh them, where size is the objective), each in all its forms: for each the best `ratio`, or why it
        cannot be built, and its share of the `seconds`."""
        before = self.evaluator.timing_seconds
        forms: dict[str, list[str]] = {}
        plans: dict[str, Plan] = {}
        failed: dict[str, str] = {}
        for i, (key, config) in enumerate(configs.items()):
            self.view.note(f"{lever.name}: sizing", i / len(configs))
            forms[key] = []
            for plan in self._forms(lever.apply(now.plan, config), compressed=compressed):
                name = f"{key}:{len(forms[key])}"
                try:
                    open_session(self.evaluator.builder.skeleton(plan), plan.session)
                except (TenfoldError, RuntimeError, ValueError) as error:
                    if isinstance(error.__cause__, OSError):
                        raise
                    failed.setdefault(key, str(error))
                else:
                    plans[name] = plan
                    forms[key].append(name)
        if self.settings.objective == "size":
            whole, skeleton = (self.evaluator.builder.graph(self.evaluator.baseline).path / "model.onnx").stat().st_size, self.evaluator.builder.skeleton
            ratios = {n: whole / skeleton(plan).stat().st_size for n, plan in plans.items()}
        else:
            samples = self.evaluator.costs({BASELINE: self.evaluator.baseline, **plans}, split="valid", seconds=SCREEN_SECONDS, skeletons=True)
            ratios = {n: self.evaluator.ratio(samples[BASELINE], samples[n]).value for n in plans}
        seconds = (self.evaluator.timing_seconds - before) / len(configs)
        return {key: {"ratio": max(ratios[n] for n in names) if names else failed[key], "seconds": seconds} for key, names in forms.items()}

    def _forms(self, plan: Plan, *, compressed: bool) -> Iterator[Plan]:
        """A plan, and by the first guess of each lever of compression that can be searched."""
        yield plan
        for lever in searched(self._levers(Stage.COMPRESSION)) if compressed else ():
            situation = self.situation(Stage.COMPRESSION, self.root, ())
            if space := lever.space(situation):
                yield lever.apply(plan, lever.at(situation, {name: choices[0] for name, choices in space.items()}))

    def _parts(self, tried: Sequence[Candidate]) -> list[Part]:
        """The baseline, and what was measured in full on its engine; where outputs are no rows of class scores the baseline alone, with two of them.

        Args:
            tried: what the lever that is asked has measured so far.
        """
        builder, evaluator = self.evaluator.builder, self.evaluator
        able = [
            c for c in (*self.ladder.candidates, *tried)
            if c.whole and c.standing and c.plan.session == evaluator.baseline.session and c.plan.join is None
        ]  # fmt: skip
        rows = [(self.root.recipe, evaluator.baseline, self.baseline_cost)] + [(c.recipe, c.plan, 1 / c.gain.value) for c in able if c.gain]
        valid = builder.examples.valid
        if len(builder.answer_shape) != 1:  # nothing is made of several such models, and their outputs may be more than memory holds
            rows, valid = rows[:1], valid.take(slice(0, 2))
        return [
            Part(recipe=recipe, outputs=builder.outputs(plan, valid, evaluator.point.batch), scores=evaluator.scores(plan, "valid"), cost=cost)
            for recipe, plan, cost in rows
        ]  # fmt: skip


def _computed_alike(plan: Plan, other: Plan) -> bool:
    """Whether their trainings differ in nothing but how steps are computed."""
    return replace(plan.training, dtype=other.training.dtype, channels_last=other.training.channels_last) == other.training


def p99_ratio(base: Samples, candidate: Samples) -> float:
    """Of wall time, baseline over candidate."""
    return base.microseconds()["wall_p99"] / candidate.microseconds()["wall_p99"]
