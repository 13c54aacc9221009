"""The main job: measure, certify and hand over a cheaper model."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tenfold import __version__, device, insights
from tenfold.build import Builder
from tenfold.bundle import Bundle, write_bundle
from tenfold.certify import Standing, order_candidates, record_opening
from tenfold.engine import SessionConfig, open_session
from tenfold.errors import TenfoldError, WorkloadError
from tenfold.execute import (
    EAGER,
    Evaluator,
    Objective,
    OperatingPoint,
    as_json,
    compiled_runner,
    first_batch,
    from_json,
    one_thread,
    plain_session,
    ratio_of,
)  # fmt: skip
from tenfold.export import export
from tenfold.ledger import Ledger
from tenfold.lever import apply_all, discover
from tenfold.measure import Samples, interleave, peak_memory
from tenfold.plan import Plan
from tenfold.progress import View, clock, make_view
from tenfold.recipe import Recipe, digest
from tenfold.search import BASELINE, CURRENT, FULL_SECONDS, Budget, Candidate, Ladder, Search, Settings, row_of, short
from tenfold.store import Step, Store, cache_dir, write_atomic
from tenfold.verdict import (
    COST_BAR,
    Decision,
    Interval,
    Verdict,
    certify,
    exact_ratio,
    fixed_sequence,
    p_value,
    quality_difference,
)  # fmt: skip
from tenfold.workload import Workload, find, load

SCHEMA = 1
CONFIRMED = 6
"""Candidates that are looked at on confirm: the cheapest."""
FINAL_SECONDS, FINAL_CALLS = 3.0, 2_000
"""Timing of each prefix of the winner."""
QUICK_SECONDS = 300.0

_KIND: Mapping[str, str] = {"size": "size", "train": "train"}
"""The gain that an objective is about, where it is not `serve`."""

UNITS: Mapping[Objective, str] = {
    "serve": "CPU-seconds a prediction",
    "latency": "seconds a prediction",
    "throughput": "seconds a prediction at batch 64 on all cores",
    "size": "bytes of the model",
    "train": "CPU-seconds a training step",
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to: the document of `result.json`, and where everything lies."""

    document: dict[str, Any]
    folder: Path

    @property
    def exit_code(self) -> int:
        """0: certified; 3: nothing could be."""
        code: int = self.document["exit_code"]
        return code

    @property
    def bundle(self) -> Bundle:
        return Bundle.load(self.folder / "bundle")


def run(
    workload: Workload | str,
    *,
    data: str | Path | None = None,
    budget: float | None = 600.0,
    trials: int | None = None,
    quick: bool = False,
    objective: Objective = "serve",
    levers: Sequence[str] | None = None,
    margin: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    show_examples: bool = False,
    view: View | str = "auto",
) -> Result:
    """Find, certify and bundle a cheaper model for a workload.

    Args:
        workload: one built in code, a built-in's name, or path/to/file.py[:name].
        data: folder of a named data set.
        budget: seconds of search, counted from when the baseline is there. None: no limit.
        trials: configs measured at the most.
        quick: post-training levers only, five minutes.
        levers: only these.
        margin: instead of the workload's.
        out: the run's folder; default runs/<workload>-<number>.
        resume: go on with the run in `out` (default: the workload's newest).
        show_examples: put pictures of examples, which are your data, in the report.
        view: `auto`, `live`, `lines`, `quiet`, or an object of your own.

    Raises:
        TenfoldError: input, data or disk is wrong; the message is one sentence with the remedy.
    """
    _check_arguments(budget, trials, objective, levers, seed)
    where = None if data is None else Path(data)
    task = find(workload, where) if isinstance(workload, str) else workload
    task = dataclasses.replace(task, name=task.name or "workload", margin=task.margin if margin is None else margin)
    settings = Settings(
        objective=objective, budget_seconds=min(budget or QUICK_SECONDS, QUICK_SECONDS) if quick else budget,
        trials=trials, quick=quick, levers=tuple(levers) if levers is not None else None, seed=seed,
    )  # fmt: skip
    folder = _folder(task.name, out, resume=resume)
    ledger = Ledger(folder, resume=resume)
    told = make_view(view) if isinstance(view, str) else view
    try:
        job = _Job(task, settings, folder, ledger, told, spec=workload if isinstance(workload, str) else None, data=where)
        return job.carry_out(show_examples=show_examples)
    except TenfoldError:
        if not ledger.knows("preflight"):  # nothing has begun: leave no run behind that could not be resumed
            ledger.discard()
        raise
    finally:
        told.close()
        ledger.close()


def _check_arguments(budget: float | None, trials: int | None, objective: str, levers: Iterable[str] | None, seed: int) -> None:
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise TenfoldError(f"budget is {budget}: it must be above 0 seconds")
    if trials is not None and trials < 1:
        raise TenfoldError(f"trials is {trials}: give at least 1")
    if not 0 <= seed < 2**31:
        raise TenfoldError(f"seed is {seed}: give a whole number from 0 to {2**31 - 1}")
    if objective not in UNITS:
        raise TenfoldError(f"there is no objective {objective!r}: use {', '.join(UNITS)}")
    for name in levers or ():
        if name not in discover():
            raise TenfoldError(f"there is no lever {name!r}: use {', '.join(discover())}")


def _folder(name: str, out: str | Path | None, *, resume: bool) -> Path:
    if out is not None:
        if resume and not (Path(out) / "ledger.jsonl").exists():
            raise TenfoldError(f"there is no run in {out} to resume: leave out --resume to start one")
        return Path(out)
    name = re.sub(r"[^\w.-]+", "-", name)
    taken = {int(n) for p in Path("runs").glob(f"{name}-*") if (n := p.name.removeprefix(f"{name}-")).isdigit()}
    if resume:
        if not taken:
            raise TenfoldError(f"there is no run of {name} under runs/ to resume: leave out --resume to start one")
        return Path("runs") / f"{name}-{max(taken)}"
    return Path("runs") / f"{name}-{max(taken, default=0) + 1}"


class _Job:
    """One run, from the data to the bundle. Each step is remembered in the ledger."""

    def __init__(
        self,
        workload: Workload,
        settings: Settings,
        folder: Path,
        ledger: Ledger,
        view: View,
        *,
        spec: str | None,
        data: Path | None,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.ledger = ledger
        self.view = view
        self.spec = spec
        self.data = data
        for notice in ledger.notices:
            view.say(notice)
        self.store = Store(cache_dir() / "steps")
        self.examples = load(workload)
        for note in self.examples.notes:
            view.say(note)
        self.workload = workload
        self.builder = Builder(
            workload, self.examples, self.store, seed=settings.seed, threads=device.cores(), note=view.note, on_step=self._on_step
        )
        self.id: str = ledger.remember("id", lambda: uuid.uuid4().hex)
        point = OperatingPoint.of(settings.objective)
        self.baseline = Plan(training=workload.training, seed=settings.seed, session=plain_session(point.threads))
        self.evaluator = Evaluator(self.builder, self.baseline, settings.objective)
        asked = {"workload": self.builder.workload_id, "margin": workload.margin, **dataclasses.asdict(settings)}
        asked = json.loads(json.dumps(asked))
        known = ledger.remember("settings", lambda: asked)
        if known != asked:
            changed = ", ".join(sorted(k for k in {*known, *asked} if known.get(k) != asked.get(k)))
            raise TenfoldError(f"{folder} is a run with another {changed}: resume it as it was started, or choose another --out")

    def _on_step(self, kind: str, step: Step, alone: float) -> None:
        key = f"step:{step.path.name}"
        if not self.ledger.knows(key):
            value = {"kind": kind, "seconds": alone, "reused_seconds": step.meta["seconds"] if step.reused else 0.0}
            self.ledger.append(key, value)

    # ------------------------------------------------------------ the course of a run

    def carry_out(self, *, show_examples: bool) -> Result:
        estimate = self.ledger.remember("preflight", self._preflight)
        base = self._baseline()
        started = self.ledger.remember("clock", lambda: self.ledger.elapsed)
        self.margin = self.workload.absolute_margin(base["valid"])
        budget = Budget(
            ledger=self.ledger, started=started, seconds=self.settings.budget_seconds, trials=self.settings.trials,
            reserve=estimate["certify_seconds"],
        )  # fmt: skip
        search = Search(
            self.evaluator, self.ledger, self.view, self.settings, budget=budget, margin=self.margin,
            reference=EAGER if base["cheaper"] == EAGER else BASELINE,
            trial_seconds=estimate["trial_seconds"], training_seconds=base["training_seconds"],
        )  # fmt: skip
        ladder = search.climb()
        sequence = self._certify(ladder)
        passed = [s for s in sequence if s["verdict"] == Decision.TAKE]
        winner = None
        for entry in reversed(passed):  # the cheapest that passed, if it is still cheaper when all is timed again
            candidate = next(c for c in ladder.candidates if c.recipe.id == entry["recipe"])
            again = self._timed_again(base, candidate)
            if again.low >= COST_BAR:
                winner = candidate
                break
            entry |= {"verdict": str(Decision.REFUSE), "reason": f"as good, but not shown to be cheaper when timed again: {again.value:.2f}×"}
        document = self._document(base, ladder, sequence, winner, show_examples=show_examples)
        self._write(document)
        self.ledger.remember("end", lambda: {"exit_code": document["exit_code"]})
        return Result(document=document, folder=self.folder)

    def _preflight(self) -> dict[str, float]:
        """Everything that can be found wrong before the budget is spent, and what a trial will take."""
        self.builder.check()
        test = self.examples.test
        insights.check_slices(insights.slice_masks(self.workload, test, self.examples.labels, self.examples.classes), self.workload)
        with tempfile.TemporaryDirectory() as scratch:
            graph = Path(scratch) / "untrained.onnx"
            inputs = self.examples.valid.take(slice(0, 64)).inputs
            export(self.builder.fresh(), inputs, graph)
            runner = open_session(graph, plain_session())
            one = first_batch(inputs, self.evaluator.point.batch)
            runner(one)
            begun = time.perf_counter()
            for _ in range(5):
                runner(one)
            each = (time.perf_counter() - begun) / 5 / self.evaluator.point.batch
        sizes = self.examples.sizes()
        trial = 1.0 + sizes["valid"] * each + 3 * FULL_SECONDS
        final = (2 * sizes["confirm"] + 2 * sizes["test"]) * each + 4 * FINAL_SECONDS
        seconds = self.settings.budget_seconds
        if seconds is not None and seconds < trial + final:
            raise WorkloadError(
                f"a budget of {seconds:g} s is too small for one candidate: about {math.ceil(trial + final)} s are needed "
                "on this machine (measured on the untrained model): give a larger --budget"
            )
        return {"trial_seconds": trial, "certify_seconds": final}

    def _baseline(self) -> dict[str, Any]:
        """Train, export and time the model as it is."""
        given = self.examples.train is None or self.workload.pretrained is not None
        self.view.say("baseline: the weights are given" if given else "baseline: training (taken from the cache where it was done before)")
        trained = self.builder.trained(self.baseline)
        graph = self.builder.graph(self.baseline)

        def measure() -> dict[str, Any]:
            valid = float(self.evaluator.scores(self.baseline, "valid").mean())
            samples = self.evaluator.costs({BASELINE: self.baseline}, split="valid", seconds=FULL_SECONDS, eager=True)
            facts = {k: trained.meta.get(k) for k in ("seconds", "cpu_seconds", "steps", "losses")} | {"reused": trained.reused}
            return {
                "valid": valid,
                "samples": as_json(samples),
                "cheaper": EAGER if self.evaluator.ratio(samples[EAGER], samples[BASELINE]).value < 1 else "onnxruntime",
                "training": None if given else facts,
                "training_seconds": 0.0 if given else float(trained.meta["seconds"]),
                "bytes": (graph.path / "model.onnx").stat().st_size,
            }

        base: dict[str, Any] = self.ledger.remember("baseline", measure)
        shown = base["valid"] if self.workload.better_is_higher else -base["valid"]
        self.view.say(
            f"baseline: {self.workload.metric_name} {shown:.4f} on valid; budget {clock(self.settings.budget_seconds or math.inf)}"
        )
        return base

    def _certify(self, ladder: Ladder) -> list[dict[str, Any]]:
        """The fixed sequence on test. Fixed, and the opening logged, before the first look."""
        able = [c for c in ladder.candidates if c.verdict.decision is Decision.TAKE and c.gain is not None]
        able.sort(key=lambda c: (-c.gain.value if c.gain else 0.0, c.recipe.id))
        by_id = {c.recipe.id: c for c in able[:CONFIRMED]}

        def confirm(c: Candidate) -> Interval:
            return Interval(
                **self.ledger.remember(f"confirm:{c.recipe.id}", lambda: self.evaluator.quality(c.plan, "confirm").to_json())
            )

        def fix() -> list[dict[str, Any]]:
            standings = [Standing(recipe=n, confirm=confirm(c), gain=c.gain) for n, c in by_id.items() if c.gain is not None]
            return [
                {
                    "recipe": s.recipe,
                    "label": label_of(by_id[s.recipe].recipe),
                    "confirm": s.confirm.to_json(),
                    "gain": s.gain.to_json(),
                }
                for s in order_candidates(standings, self.margin)
            ]

        self.view.say("certifying on test")
        sequence: list[dict[str, Any]] = self.ledger.remember("sequence", fix)
        sequence = [{**s, "test": None, "verdict": None, "reason": None} for s in sequence]
        if not sequence:
            return []
        self.ledger.remember(
            "opening", lambda: record_opening(cache_dir() / "openings", self.examples.test.identity, self.id)
        )

        def judged() -> Iterable[Verdict]:
            for entry in sequence:
                plan = by_id[entry["recipe"]].plan
                found = self.ledger.remember(f"test:{entry['recipe']}", partial(self._on_test, plan))
                verdict = certify(Interval(**found["quality"]), self._test_margin(), len(self.examples.test))
                if (broken := found["broken_slice"]) is not None and verdict.decision is Decision.TAKE:
                    verdict = Verdict(
                        decision=Decision.INCONCLUSIVE,
                        reason=f"slice {broken!r} does not keep its margin",
                        quality=verdict.quality,
                    )
                entry |= {"test": found["quality"], "verdict": str(verdict.decision), "reason": verdict.reason}
                yield verdict

        fixed_sequence(judged())
        return sequence

    def _test_margin(self) -> float:
        return self.workload.absolute_margin(float(self.evaluator.scores(self.baseline, "test").mean()))

    def _on_test(self, plan: Plan) -> dict[str, Any]:
        quality = self.evaluator.quality(plan, "test")
        rows = self._slices(plan)
        return {"quality": quality.to_json(), "broken_slice": next((r["name"] for r in rows if r["held"] is False), None)}

    def _slices(self, plan: Plan) -> list[dict[str, Any]]:
        test = self.examples.test
        masks = insights.slice_masks(self.workload, test, self.examples.labels, self.examples.classes)
        base, cand = self.evaluator.scores(self.baseline, "test"), self.evaluator.scores(plan, "test")
        return insights.slices(masks, self.workload, test, base, cand)

    # ------------------------------------------------------------ what is handed over

    def _prefixes(self, recipe: Recipe) -> dict[str, Plan]:
        """The baseline, and the plan after each pull."""
        pulls = [(p.lever, p.config) for p in recipe.pulls]
        return {BASELINE: self.baseline} | {f"{i}:{p[0]}": apply_all(self.baseline, pulls[: i + 1]) for i, p in enumerate(pulls)}

    def _timed_again(self, base: dict[str, Any], candidate: Candidate) -> Interval:
        """The gain that the objective is about, from the final timing."""
        prefixes = self._prefixes(candidate.recipe)
        costs = self._final_costs(candidate.recipe, prefixes)
        gain, _ = self._gains(base, costs, candidate.plan, list(prefixes)[-1])
        return gain[_KIND.get(self.settings.objective, "serve")] or exact_ratio(1.0, 1.0)

    def _final_costs(self, recipe: Recipe, plans: dict[str, Plan]) -> dict[str, dict[str, Samples]]:
        """All prefixes of the winner, the baseline and eager PyTorch, timed together at each operating point."""
        points = {"serve": OperatingPoint.of("serve"), "throughput": OperatingPoint.of("throughput")}
        split = "test" if self.ledger.knows("opening") else "valid"
        out = {}
        for name, point in points.items():

            def measure(point: OperatingPoint = point) -> dict[str, Any]:
                before = self.evaluator.timing_seconds
                samples = self.evaluator.costs(
                    plans, split=split, seconds=FINAL_SECONDS, point=point, eager=True, most=FINAL_CALLS
                )
                return {"seconds": self.evaluator.timing_seconds - before, "samples": as_json(samples)}

            self.view.note(f"timing the ladder at batch {point.batch}", 0.0)
            out[name] = from_json(self.ledger.remember(f"cost:final:{name}:{recipe.id}", measure)["samples"])
        return out

    def _compiled(self) -> dict[str, Any]:
        """torch.compile as a reference, beside plain onnxruntime."""
        if self.settings.quick or self.workload.demo:
            return {"reason": "left out of demonstrations and of --quick: it compiles for longer than they run"}
        inputs, began = self.examples.test.inputs, time.perf_counter()
        model = self.builder.load(self.builder.shaped(self.baseline))
        with one_thread():
            runner = compiled_runner(model, first_batch(inputs, 1))
            if isinstance(runner, str):
                return {"reason": runner, "seconds": time.perf_counter() - began}
            samples = interleave({"compiled": runner}, inputs, batch=1, rounds=5, calls=200)["compiled"]
        return {"samples": samples.to_json(), "seconds": time.perf_counter() - began}

    def _document(
        self,
        base: dict[str, Any],
        ladder: Ladder,
        sequence: list[dict[str, Any]],
        winner: Candidate | None,
        *,
        show_examples: bool,
    ) -> dict[str, Any]:
        recipe = winner.recipe if winner else Recipe(workload=self.builder.workload_id, seed=self.settings.seed)
        plan = winner.plan if winner else self.baseline
        prefixes = self._prefixes(recipe)
        costs = self._final_costs(recipe, prefixes)
        last = list(prefixes)[-1]
        gain, reference = self._gains(base, costs, plan, last)
        opened = self.ledger.knows("opening")
        scores = {s: self.evaluator.scores(self.baseline, s) for s in ("valid", "confirm", *(["test"] if opened else []))}
        raw = {name: s.microseconds() for name, s in costs["serve"].items()}
        compiled = self.ledger.remember("compiled", self._compiled)
        certified = None
        if winner is not None:
            certified = self._certified(winner, next(s for s in sequence if s["recipe"] == winner.recipe.id))
        spent = self._spent(base)
        document = {
            "schema": SCHEMA,
            "tenfold": __version__,
            "run": self.folder.name,
            "command": self._command(),
            "created": self.ledger.remember("created", lambda: datetime.now(UTC).isoformat(timespec="seconds")),
            "workload": {
                "name": self.workload.name, "identity": self.builder.workload_id, "demo": self.workload.demo,
                "metric": self.workload.metric_name, "higher_is_better": self.workload.better_is_higher,
                "margin": self.workload.margin, "margin_kind": self.workload.margin_kind, "margin_absolute": self.margin,
                "labels": list(self.examples.labels) if self.examples.labels else None,
                "examples": self.examples.sizes(), "notes": list(self.examples.notes),
            },
            "objective": self.settings.objective,
            "operating_point": dataclasses.asdict(self.evaluator.point),
            "unit": UNITS[self.settings.objective],
            "seed": self.settings.seed,
            "baseline": {
                "quality": {s: float(v.mean()) for s, v in scores.items()} | ({} if opened else {"test": None}),
                "costs": {
                    "eager": raw[EAGER], "onnxruntime": raw[BASELINE],
                    "compiled": Samples.from_json(compiled["samples"]).microseconds() if "samples" in compiled else {"reason": compiled["reason"]},
                },
                "cheaper": reference, "training": base["training"], "bytes": base["bytes"],
                "peak_memory_bytes": self._memory(self.baseline),
            },
            "ladder": self._rows(ladder, winner, prefixes, costs),
            "candidates": [self._candidate(c, winner) for c in ladder.candidates],
            "sequence": sequence,
            "certified": certified,
            "gain": {name: value.to_json() if value else None for name, value in gain.items()},
            "points": self._points(costs, last),
            **self._insights(plan, winner, show_examples=show_examples),
            "spent": spent,
            "break_even_predictions": self._break_even(costs["serve"], reference, last, spent) if winner else None,
            "test_openings": self.ledger["opening"] if opened else 0,
            "exit_code": 0 if winner else 3,
            "environment": device.environment(),
            "notices": list(self.ledger.notices),
            "bundle": str(self.folder / "bundle"),
        }  # fmt: skip
        if self.settings.objective == "train":
            document["notices"].append("one training a side: a claim about training, not about this one model, needs five seeds")
        self._bundle(document, recipe, plan, winner)
        return document

    def _gains(
        self, base: dict[str, Any], costs: dict[str, dict[str, Samples]], plan: Plan, last: str
    ) -> tuple[dict[str, Interval | None], str]:
        """Gains against the cheaper of eager PyTorch and plain onnxruntime, and which of the two that is."""
        point = "throughput" if self.settings.objective == "throughput" else "serve"
        samples = costs[point]
        reference = EAGER if self.evaluator.ratio(samples[EAGER], samples[BASELINE]).value < 1 else BASELINE
        graph = (self.builder.graph(plan).path / "model.onnx").stat().st_size
        return {
            "serve": self.evaluator.ratio(samples[reference], samples[last]),
            "train": self._training_gain(base, plan),
            "memory": exact_ratio(self._memory(self.baseline), self._memory(plan)),
            "size": exact_ratio(base["bytes"], graph),
        }, "eager" if reference == EAGER else "onnxruntime"

    def _training_gain(self, base: dict[str, Any], plan: Plan) -> Interval | None:
        if base["training"] is None:
            return None
        if plan.training == self.baseline.training:
            extra = sum(1 for _ in plan.model_passes)
            total = base["training"]["cpu_seconds"]
            if not extra:
                return exact_ratio(1.0, 1.0)
            return exact_ratio(total, total + self.builder.shaped(plan).meta["cpu_seconds"])

        def measure() -> dict[str, Any]:
            return {"samples": as_json(self.evaluator.training_costs({BASELINE: self.baseline.training, CURRENT: plan.training}))}

        samples = from_json(self.ledger.remember(f"cost:final:train:{digest(plan.training)[:16]}", measure)["samples"])
        return ratio_of(samples[BASELINE], samples[CURRENT], "cpu")

    def _memory(self, plan: Plan) -> int:
        graph = self.builder.graph(plan)
        key = f"memory:{graph.path.name}:{plan.session.engine}:{plan.session.graph_optimization}"
        example = first_batch(self.examples.valid.inputs, 1)
        peak: int = self.ledger.remember(key, lambda: peak_memory(graph.path / "model.onnx", plan.session, example))
        return peak

    def _certified(self, winner: Candidate, entry: dict[str, Any]) -> dict[str, Any]:
        base, cand = self.evaluator.scores(self.baseline, "test"), self.evaluator.scores(winner.plan, "test")
        groups, margin = self.examples.test.groups, self._test_margin()
        return {
            "recipe": winner.recipe.id,
            "label": label_of(winner.recipe),
            "quality_difference": entry["test"],
            "margin": margin,
            "n": len(base),
            "p": p_value(lambda level: quality_difference(base, cand, groups=groups, level=level), margin),
            "baseline_quality": float(base.mean()),
            "candidate_quality": float(cand.mean()),
        }

    def _rows(
        self, ladder: Ladder, winner: Candidate | None, prefixes: dict[str, Plan], costs: dict[str, dict[str, Samples]]
    ) -> list[dict[str, Any]]:
        """The ladder's rows, with the factors of what was certified as they were re-timed together."""
        if winner is None:
            rows = [dict(r) for r in ladder.rows]
            for r in rows:
                if r["verdict"] == Decision.TAKE:
                    r |= {"verdict": str(Decision.INCONCLUSIVE), "reason": f"could not be certified ({r['reason']})"}
            return rows
        by_id = {c.recipe.id: c for c in ladder.candidates}
        samples = costs["throughput" if self.settings.objective == "throughput" else "serve"]
        names, recipe = list(prefixes), Recipe(workload=winner.recipe.workload, seed=winner.recipe.seed)
        pulled: dict[tuple[str, str], dict[str, Any]] = {}
        for i, pull in enumerate(winner.recipe.pulls):
            recipe = recipe.then(pull.lever, pull.config)
            candidate = by_id[recipe.id]
            factor = self._factor(samples, names[i], names[i + 1], prefixes)
            tried = next((r["tried"] for r in ladder.rows if (r["stage"], r["lever"]) == (str(candidate.stage), pull.lever)), 0)
            pulled[str(candidate.stage), pull.lever] = row_of(
                candidate.stage, pull.lever, Decision.TAKE, f"{short(pull.lever, pull.config)}: {factor.value:.2f}× cheaper",
                config=pull.config, quality=candidate.verdict.quality, cost=factor, recipe=recipe.id, tried=tried,
            )  # fmt: skip
        rows = []
        for r in ladder.rows:
            kept = pulled.get((r["stage"], r["lever"]))
            if kept is None and r["verdict"] == Decision.TAKE:
                kept = {**r, "verdict": str(Decision.REFUSE), "reason": "a candidate without it was certified, this one was not"}
            rows.append(kept or r)
        return rows

    def _factor(self, samples: dict[str, Samples], before: str, after: str, prefixes: dict[str, Plan]) -> Interval:
        if self.settings.objective == "size":
            sizes = [(self.builder.graph(prefixes[n]).path / "model.onnx").stat().st_size for n in (before, after)]
            return exact_ratio(sizes[0], sizes[1])
        if self.settings.objective == "train":
            steps = [self._training_gain(self.ledger["baseline"], prefixes[n]) or exact_ratio(1.0, 1.0) for n in (before, after)]
            scale = steps[0].value
            return Interval(value=steps[1].value / scale, low=steps[1].low / scale, high=steps[1].high / scale)
        return self.evaluator.ratio(samples[before], samples[after])

    def _candidate(self, c: Candidate, winner: Candidate | None) -> dict[str, Any]:
        return {
            "recipe": c.recipe.id, "label": label_of(c.recipe), "stage": str(c.stage), "lever": c.lever, "config": c.config,
            "quality_difference": c.verdict.quality.to_json() if c.verdict.quality else None,
            "gain": c.gain.to_json() if c.gain else None,
            "verdict": str(c.verdict.decision), "reason": c.verdict.reason,
            "certified": winner is not None and c.recipe.id == winner.recipe.id,
        }  # fmt: skip

    def _points(self, costs: dict[str, dict[str, Samples]], last: str) -> list[dict[str, Any]]:
        out = []
        for name, samples in costs.items():
            point = OperatingPoint.of("throughput" if name == "throughput" else "serve")
            out.append(
                {
                    **dataclasses.asdict(point),
                    "baseline": samples[BASELINE].microseconds(),
                    "candidate": samples[last].microseconds(),
                    "cpu": ratio_of(samples[BASELINE], samples[last], "cpu").to_json(),
                    "wall": ratio_of(samples[BASELINE], samples[last], "wall").to_json(),
                }
            )
        return out

    def _insights(self, plan: Plan, winner: Candidate | None, *, show_examples: bool) -> dict[str, Any]:
        """On test, once it has been opened and something was certified on it."""
        empty: dict[str, Any] = {"slices": [], "agreement": None, "calibration": None, "disagreements": []}
        if winner is None:
            return empty
        test = self.examples.test
        out = {**empty, "slices": self._slices(plan)}
        base, cand = (self.builder.outputs(p, test, self.evaluator.point.batch) for p in (self.baseline, plan))
        if self.workload.classifies and base.ndim == 2 and test.targets is not None and test.targets.ndim == 1:
            out["agreement"] = insights.agreement(base, cand, test.targets)
            out["calibration"] = insights.calibration(base, cand, test.targets)
            out["disagreements"] = insights.disagreements(base, cand, test, self.examples.labels, with_images=show_examples)
        return out

    def _spent(self, base: dict[str, Any]) -> dict[str, Any]:
        """What the run cost, by activity; work that an earlier run had stored is counted apart."""
        entries = {e["key"]: e["value"] for e in self.ledger.entries}
        activity: dict[str, float] = {}
        reused = 0.0
        for key, value in entries.items():
            if key.startswith("step:"):
                activity[value["kind"]] = activity.get(value["kind"], 0.0) + value["seconds"]
                reused += value["reused_seconds"]
            elif (key.startswith("cost:") or key == "compiled") and "seconds" in value:
                activity["time"] = activity.get("time", 0.0) + value["seconds"]
        total = self.ledger.remember("finished", lambda: self.ledger.elapsed)
        activity["other"] = max(0.0, total - sum(activity.values()))
        return {
            "seconds": total,
            "search_seconds": total - entries["clock"],
            "by_activity": activity,
            "baseline_seconds": base["training_seconds"],
            "reused_seconds": reused,
        }

    def _break_even(self, samples: dict[str, Samples], reference: str, last: str, spent: dict[str, Any]) -> int | None:
        """Predictions after which the search has paid, counting every core busy for all of it."""
        side = samples[EAGER if reference == EAGER else BASELINE]
        saved = float((side.cpu.mean() / side.batch - samples[last].cpu.mean() / samples[last].batch) / 1e9)
        return math.ceil(spent["search_seconds"] * device.cores() / saved) if saved > 0 else None

    def _command(self) -> str:
        if self.spec is None:
            return f"tenfold.run(workload, objective={self.settings.objective!r}, seed={self.settings.seed})"
        s = self.settings
        words = ["tenfold", "run", self.spec, "--seed", str(s.seed)]
        words += ["--data", str(self.data)] if self.data else []
        words += ["--quick"] if s.quick else ["--budget", f"{s.budget_seconds:g}s"] if s.budget_seconds else []
        words += ["--trials", str(s.trials)] if s.trials else []
        words += ["--objective", s.objective] if s.objective != "serve" else []
        words += ["--levers", ",".join(s.levers)] if s.levers is not None else []
        words += ["--margin", f"{self.workload.margin:g}"]
        return shlex.join(words)

    def _bundle(self, document: dict[str, Any], recipe: Recipe, plan: Plan, winner: Candidate | None) -> None:
        session: SessionConfig = plan.session
        certified = document["certified"]
        facts = {
            "workload": self.workload.name,
            "task": "classification" if self.workload.classifies else "regression",
            "labels": document["workload"]["labels"],
            "session": session.to_json(),
            "operating_point": document["operating_point"],
            "certified": winner is not None,
            "quality": {"metric": self.workload.metric_name, "margin": self.margin, "certified": certified, "baseline": document["baseline"]["quality"]},
            "costs": {
                "unit": "microseconds a prediction",
                "points": [
                    {"batch": p["batch"], "threads": p["threads"], **p["candidate" if winner else "baseline"]} for p in document["points"]
                ],
                "worst_case_ratio_to_mean": 1.0,  # no lever makes the work depend on the input
                "peak_memory_bytes": self._memory(plan),
            },
            "gain": document["gain"],
            "recipe": recipe.to_json(),
        }  # fmt: skip
        example = self.examples.valid.take(slice(0, 256)).inputs
        write_bundle(self.folder / "bundle", self.builder.graph(plan).path / "model.onnx", example, facts)

    def _write(self, document: dict[str, Any]) -> None:
        from tenfold.report import write as write_report

        write_atomic(self.folder / "result.json", json.dumps(document, indent=1, allow_nan=False))
        write_report(document, self.folder / "report.html")


def label_of(recipe: Recipe) -> str:
    return " + ".join(short(p.lever, p.config) for p in recipe.pulls) or "baseline"
