"""The last timing: every prefix of a recipe, the baseline and eager PyTorch together; and the gains that come of it."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any, Literal

from tenfold.candidate import recipe_label
from tenfold.context import Context
from tenfold.errors import TenfoldError
from tenfold.execute import (
    EAGER,
    Objective,
    OperatingPoint,
    as_json,
    compiled_runner,
    first_batch,
    from_json,
    ratio_of,
    torch_threads,
)  # fmt: skip
from tenfold.lever import Stage, apply_all, discover
from tenfold.measure import Samples, interleave, peak_memory
from tenfold.plan import Plan
from tenfold.recipe import Recipe, digest
from tenfold.search import BASELINE, CURRENT
from tenfold.verdict import Interval, exact_ratio

SECONDS, CALLS = 3.0, 2_000
"""Timing of each side at each operating point."""
COMPILE_SECONDS = 120.0
"""Budget that must be left for torch.compile to be timed as a reference."""

Gain = Literal["serve", "train", "memory", "size"]
GAIN_OF: dict[Objective, Gain] = {"serve": "serve", "latency": "serve", "throughput": "serve", "size": "size", "train": "train"}
"""The gain that an objective is about."""

WITHOUT, ALONE = "without:", "alone"

SERVE, THROUGHPUT, OWN = "serve", "throughput", "own"
"""Operating points: the two that every run states, single predictions on one thread and batch 64 on all cores; and the
run's own, where the baseline's threads were tuned to another number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Final:
    """A recipe, or the baseline alone, as it was timed at the end."""

    recipe: Recipe
    recipes: dict[str, Recipe]
    """The baseline, and the recipe after each lever, in order; then those with one lever left out, as far as they need no
    training of their own; and the best single lever. The names are those of the samples."""
    prefixes: dict[str, Plan]
    """The plans of those in order, from the baseline to the whole."""
    costs: dict[str, dict[str, Samples]]
    """By operating point, then by side: all recipes and `EAGER`."""
    single: Recipe | None
    """The best that one lever came to alone."""
    missing: dict[str, str]
    """By id, recipes that could not be built, and why."""

    @property
    def plan(self) -> Plan:
        return self.prefixes[self.last]

    @property
    def last(self) -> str:
        return list(self.prefixes)[-1]


def points_of(run: Context) -> dict[str, OperatingPoint]:
    """By name: the two that every run states, and the run's own where it is another."""
    points = {SERVE: OperatingPoint.of("serve"), THROUGHPUT: OperatingPoint.of("throughput")}
    return points if run.evaluator.point in points.values() else points | {OWN: run.evaluator.point}


def own_point(run: Context) -> str:
    """The operating point that the objective is measured at."""
    return next(name for name, point in points_of(run).items() if point == run.evaluator.point)


def time_all(run: Context, recipe: Recipe, single: Recipe | None = None) -> Final:
    """Time the baseline, every prefix of a recipe, the recipe less each of its levers, and the best single lever, all together at each
    operating point; once."""
    prefixes = {BASELINE: Recipe(workload=recipe.workload, seed=recipe.seed), **prefixes_of(recipe)}
    lesser = {f"{WITHOUT}{lever}": r for lever, r in without_each(recipe).items() if r.pulls and r not in prefixes.values()}
    if single is not None and single not in (prefixes | lesser).values():
        lesser[ALONE] = single
    plans = {n: apply_all(run.baseline, r.pulls) for n, r in (prefixes | lesser).items()}
    plans = {n: p for n, p in plans.items() if n in prefixes or run.builder.is_trained(p)}
    recipes = {n: r for n, r in (prefixes | lesser).items() if n in plans}
    missing = {recipes[n].id: reason for n, p in plans.items() if (reason := _why_not(run, recipes[n], p))}
    for before, after in itertools.pairwise(prefixes):  # the levers after it have its part of the gain too
        if recipes[after].id in missing:
            recipes[after], plans[after] = recipes[before], plans[before]
    recipes = {n: r for n, r in recipes.items() if r.id not in missing}
    first = {r.id: n for n, r in reversed(recipes.items())}  # a lever that does nothing before others come has the side of what it leaves as it is
    sides = [n for n in recipes if first[recipes[n].id] == n]
    split = "test" if run.ledger.knows("opening") else "valid"
    costs = {}
    for name, point in points_of(run).items():

        def measure(point: OperatingPoint = point) -> dict[str, Any]:
            before = run.evaluator.timing_seconds
            samples = run.evaluator.costs({n: plans[n] for n in sides}, split=split, seconds=SECONDS, point=point, eager=True, most=CALLS)
            return {"seconds": run.evaluator.timing_seconds - before, "samples": as_json(samples)}

        run.view.note(f"timing the ladder at batch {point.batch}", 0.0)
        samples = from_json(run.ledger.remember(f"cost:final:{name}:{recipe.id}", measure)["samples"])
        costs[name] = {EAGER: samples[EAGER], **{n: samples[first[recipes[n].id]] for n in recipes}}
    return Final(recipe=recipe, recipes=recipes, prefixes={n: plans[n] for n in prefixes}, costs=costs, single=single, missing=missing)


def _why_not(run: Context, recipe: Recipe, plan: Plan) -> str | None:
    """Why a recipe that was perhaps never measured cannot be built; None where it can."""

    def build() -> dict[str, str | None]:
        try:
            run.builder.batches(plan)
        except (TenfoldError, RuntimeError, ValueError) as error:
            if isinstance(error.__cause__, OSError):  # a full disk
                raise
            return {"failed": str(error)}
        return {"failed": None}

    return run.ledger.remember(f"builds:{recipe.id}", build)["failed"] if recipe.pulls else None


def prefixes_of(recipe: Recipe) -> dict[str, Recipe]:
    """What a recipe comes to lever by lever; the names end in the lever that is added.

    A recipe that holds others is taken apart by levers, in the order of their stages, but composed as soon as there are models to
    compose: a small model that is of use only before a better one is worth nothing alone. Another is taken apart by its pulls.
    """
    if not any(p.inner for p in recipe.pulls):
        return {f"{i}:{p.lever}": dataclasses.replace(recipe, pulls=recipe.pulls[: i + 1]) for i, p in enumerate(recipe.pulls)}
    levers, stages = discover(), [Stage.TRAIN, Stage.MODEL, Stage.COMPOSE, Stage.COMPRESSION, Stage.RUNTIME]
    ordered = sorted(recipe.levers(), key=lambda n: (stages.index(levers[n].stages[-1]), n))
    return {f"{i}:{name}": recipe.only(ordered[: i + 1]) for i, name in enumerate(ordered)}


def without_each(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe less each of its levers in turn."""
    return {lever: recipe.only(recipe.levers() - {lever}) for lever in sorted(recipe.levers())}


def attribution(run: Context, final: Final) -> list[dict[str, Any]]:
    """What each lever is worth: the factor that it adds on top of those before it, and what the whole would be without it."""
    base = final.costs[own_point(run)]
    out = []
    for before, after in itertools.pairwise(final.prefixes):
        lever = after.partition(":")[2]
        less = final.recipe.only(final.recipe.levers() - {lever})
        name = next((n for n, r in final.recipes.items() if r == less), None)
        without: dict[str, Any] = {"reason": "it would take a training of its own"}
        if run.settings.objective in ("size", "train"):
            without = {"reason": f"the objective is {run.settings.objective}: only its factor is measured"}
        elif less.id in final.missing:
            without = {"reason": f"it cannot be built: {final.missing[less.id]}"}
        elif name is not None:
            gain = run.evaluator.ratio(base[reference(run, base)], base[name])
            without = {"gain": gain.to_json(), "quality_difference": quality_on_valid(run, less).to_json()}
        out.append({"lever": lever, "factor": factor(run, final, before, after).to_json(), "without": without})
    return out


def composing(run: Context, final: Final) -> dict[str, Any] | None:
    """What the best single lever comes to, and how many times cheaper than it the whole is; None where nothing was composed, or cost is not served cost."""
    name = next((n for n, r in final.recipes.items() if r == final.single), None)
    if name is None or len(final.recipe.levers()) < 2 or run.settings.objective in ("size", "train"):
        return None
    samples, recipe = final.costs[own_point(run)], final.recipes[name]
    return {
        "lever": recipe.pulls[-1].lever,
        "label": recipe_label(recipe),
        "gain": run.evaluator.ratio(samples[reference(run, samples)], samples[name]).to_json(),
        "quality_difference": quality_on_valid(run, recipe).to_json(),
        "times": run.evaluator.ratio(samples[name], samples[final.last]).to_json(),
    }


def quality_on_valid(run: Context, recipe: Recipe) -> Interval:
    plan = apply_all(run.baseline, recipe.pulls)
    return Interval(**run.ledger.remember(f"valid:{recipe.id}", lambda: run.evaluator.quality(plan, "valid").to_json()))


def reference(run: Context, samples: dict[str, Samples]) -> str:
    """The side that gains are against: the cheaper of eager PyTorch and plain onnxruntime."""
    return EAGER if run.evaluator.ratio(samples[EAGER], samples[BASELINE]).value < 1 else BASELINE


def gains(run: Context, final: Final) -> dict[Gain, Interval | None]:
    samples = final.costs[own_point(run)]
    sizes = [graph_bytes(run, p) for p in (run.baseline, final.plan)]
    return {
        "serve": run.evaluator.ratio(samples[reference(run, samples)], samples[final.last]),
        "train": training_gain(run, final.plan),
        "memory": exact_ratio(memory(run, run.baseline), memory(run, final.plan)),
        "size": exact_ratio(sizes[0], sizes[1]),
    }


def factor(run: Context, final: Final, before: str, after: str) -> Interval:
    """How many times cheaper one side is than another, in the unit of the objective."""
    if run.settings.objective == "size":
        return exact_ratio(*(graph_bytes(run, final.prefixes[n]) for n in (before, after)))
    if run.settings.objective == "train":
        steps = [training_gain(run, final.prefixes[n]) or exact_ratio(1.0, 1.0) for n in (before, after)]
        scale = steps[0].value
        return Interval(value=steps[1].value / scale, low=steps[1].low / scale, high=steps[1].high / scale)
    samples = final.costs[own_point(run)]
    return run.evaluator.ratio(samples[before], samples[after])


def training_gain(run: Context, plan: Plan) -> Interval | None:
    """How many times cheaper the plan is to train; None where the weights were given."""
    training = run.ledger["baseline"]["training"]
    if training is None:
        return None
    if plan.training == run.baseline.training:
        return exact_ratio(training["cpu_seconds"], run.builder.training_cpu_seconds(plan))

    def measure() -> dict[str, Any]:
        before = run.evaluator.timing_seconds
        samples, _ = run.evaluator.training_costs({BASELINE: run.baseline.training, CURRENT: plan.training})
        return {"seconds": run.evaluator.timing_seconds - before, "samples": as_json(samples)}

    samples = from_json(run.ledger.remember(f"cost:final:train:{digest(plan.training.to_json())[:16]}", measure)["samples"])
    return ratio_of(samples[BASELINE], samples[CURRENT], "cpu")


def graph_bytes(run: Context, plan: Plan) -> int:
    """Of the graph alone: what else a bundle holds is the same few kilobytes for every model."""
    return (run.builder.graph(plan).path / "model.onnx").stat().st_size


def memory(run: Context, plan: Plan) -> int:
    """Peak resident bytes of a fresh serving process."""
    graph = run.builder.graph(plan)
    example = first_batch(run.examples.valid.inputs, 1)

    def measure() -> dict[str, float]:
        began = time.perf_counter()
        return {"bytes": peak_memory(graph.path / "model.onnx", plan.session, example), "seconds": time.perf_counter() - began}

    key = f"cost:memory:{graph.path.name}:{digest(plan.session.to_json())[:16]}"
    peak: int = run.ledger.remember(key, measure)["bytes"]
    return peak


def compiled(run: Context, seconds_left: float) -> dict[str, Any]:
    """Samples of torch.compile as a reference at single predictions; or, in words, why there are none."""

    def measure() -> dict[str, Any]:
        if run.workload.demo or run.settings.quick or seconds_left < COMPILE_SECONDS:
            return {"reason": "left out of demonstrations, of --quick, and where too little of the budget is left to compile"}
        inputs, began = run.examples.test.inputs, time.perf_counter()
        model = run.builder.load(run.baseline)
        with torch_threads(1):
            runner = compiled_runner(model, first_batch(inputs, 1))
            if isinstance(runner, str):
                return {"reason": runner, "seconds": time.perf_counter() - began}
            samples = interleave({"compiled": runner}, inputs, batch=1, rounds=5, calls=200)["compiled"]
        return {"samples": samples.to_json(), "seconds": time.perf_counter() - began}

    found: dict[str, Any] = run.ledger.remember("compiled", measure)
    return found
