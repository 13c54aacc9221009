"""The document of a run, `result.json`: a function of what was recorded, and of outputs that are in the store."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tenfold import __version__, device, final, insights
from tenfold.build import Builder
from tenfold.bundle import input_names
from tenfold.candidate import Candidate, Ladder, recipe_label, row_of, short
from tenfold.context import Context
from tenfold.errors import TenfoldError
from tenfold.execute import EAGER, Objective, ratio_of
from tenfold.final import Final
from tenfold.lever import Tuned, discover
from tenfold.measure import Samples
from tenfold.plan import Plan
from tenfold.profile import profile_of
from tenfold.recipe import canonical
from tenfold.savings import savings_of
from tenfold.search import BASELINE
from tenfold.sequence import Entry, margin_on_test, slices_on_test
from tenfold.statistics import describe
from tenfold.tune import is_enough
from tenfold.verdict import Decision, quality_p
from tenfold.workload import judged_by, structure_identity

SCHEMA = 1

UNITS: dict[Objective, str] = {
    "serve": "CPU-seconds a prediction",
    "latency": "seconds a prediction",
    "throughput": "seconds a prediction at batch 64",
    "size": "bytes of the model",
    "train": "CPU-seconds of training",
}


def document(
    run: Context, ladder: Ladder, sequence: list[Entry], winner: Candidate | None, last: Final, compiled: dict[str, Any], *, show_examples: bool
) -> dict[str, Any]:
    """
    Args:
        winner: what was certified; None: the baseline is what is handed over.
        last: the final timing of the winner's recipe, or of the empty one.
        compiled: what torch.compile came to.
    """
    base = run.ledger["baseline"]
    opened = run.ledger.knows("opening")
    scores = {s: run.evaluator.scores(run.baseline, s) for s in ("valid", "confirm", *(["test"] if opened else []))}
    samples = last.costs[final.own_point(run)]
    reference = final.reference(run, samples)
    single = {name: s.microseconds() for name, s in last.costs[final.SERVE].items()}
    spent = _spent(run)
    notices = list(run.ledger.notices)
    if run.settings.objective == "train":
        notices.append("one training a side: a claim about training, not about this one model, needs five seeds")
    return {
        "schema": SCHEMA,
        "tenfold": __version__,
        "run": run.folder.name,
        "command": run.command,
        "source": run.ledger["source"],
        "created": run.ledger.remember("created", lambda: datetime.now(UTC).isoformat(timespec="seconds")),
        "workload": {
            "name": run.workload.name, "identity": run.builder.workload_id, "demo": run.workload.demo,
            "metric": run.workload.metric_name, "higher_is_better": run.workload.better_is_higher,
            "margin": run.workload.margin, "margin_kind": run.workload.margin_kind, "margin_absolute": run.margin,
            "labels": list(run.examples.labels) if run.examples.labels else None,
            "test": run.examples.test.identity, "judged_by": judged_by(run.workload), "structure": structure_identity(run.workload, run.builder.fresh()),
            "slice_margins": dict(run.workload.slice_margins),
            "examples": run.examples.sizes(), "notes": list(run.examples.notes),
        },
        "objective": run.settings.objective,
        "operating_point": dataclasses.asdict(run.evaluator.point),
        "unit": UNITS[run.settings.objective],
        "seed": run.settings.seed,
        "baseline": {
            "quality": {s: float(v.mean()) for s, v in scores.items()} | ({} if opened else {"test": None}),
            "costs": {
                "eager": single[EAGER], "onnxruntime": single[BASELINE],
                "compiled": Samples.from_json(compiled["samples"]).microseconds() if "samples" in compiled else {"reason": compiled["reason"]},
            },
            "cheaper": "eager" if reference == EAGER else "onnxruntime",
            "training": base["training"], "bytes": base["bytes"], "peak_memory_bytes": final.memory(run, run.baseline),
        },
        "profile": run.ledger.remember("profile", lambda: profile_of(run.builder)),
        "training_memory": _training_memory(run, last),
        "tuned": _tuned(run, ladder),
        "ladder": _rows(run, ladder, last, winner, reference),
        "attribution": final.attribution(run, last) if winner else [],
        "best_single": final.composing(run, last) if winner else None,
        "joint_search": ladder.joint,
        "candidates": [_candidate(c, winner) for c in ladder.candidates],
        "sequence": sequence,
        "certified": _certified(run, winner, sequence) if winner else None,
        "gain": {name: value.to_json() if value else None for name, value in final.gains(run, last).items()},
        "points": _points(run, last),
        **_insights(run, last, winner, show_examples=show_examples),
        "spent": spent,
        "break_even_predictions": _break_even(samples[reference], samples[last.last], spent) if winner else None,
        "test_openings": run.ledger["opening"] if opened else 0,
        "exit_code": 0 if winner else 3,
        "environment": device.environment(),
        "notices": notices,
        "bundle": str(run.folder / "bundle"),
    }  # fmt: skip


def read_result(folder: Path) -> dict[str, Any]:
    """The document of a run that ended.

    Raises:
        TenfoldError: there is none, or it is not readable, or of another schema.
    """
    try:
        found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TenfoldError(f"{folder} has no result.json: name the folder of a run that ended, or go on with --resume") from error
    except (OSError, ValueError) as error:
        raise TenfoldError(f"{folder}/result.json is not readable ({error}): run it again") from error
    if not isinstance(found, dict) or "ladder" not in found:
        raise TenfoldError(f"{folder} is not the folder of a run: name the one that `tenfold run` wrote")
    if found.get("schema") != SCHEMA:
        raise TenfoldError(f"{folder} is of schema {found.get('schema')}, this Tenfold reads {SCHEMA}: use the Tenfold that wrote it")
    return found


def manifest(run: Context, document: dict[str, Any], last: Final) -> dict[str, Any]:
    """What a bundle's manifest says beside its files, of a finished document."""
    certified = document["certified"]
    return {
        "workload": run.workload.name,
        "task": _task(run),
        "labels": document["workload"]["labels"],
        "session": last.plan.session.to_json(),
        "operating_point": document["operating_point"],
        "certified": certified is not None,
        "quality": {
            "metric": run.workload.metric_name, "margin": certified["margin"] if certified else run.margin, "certified": certified, "baseline": document["baseline"]["quality"],
        },
        "costs": {
            "unit": "microseconds a prediction",
            "points": [{"batch": p["batch"], "threads": p["candidate_threads"], **p["candidate"]} for p in document["points"]],
            "batch_deviation": run.builder.batches(last.plan),
            "worst_case_ratio_to_mean": last.costs[final.own_point(run)][last.last].worst_to_mean(),
            "peak_memory_bytes": final.memory(run, last.plan),
        },
        "gain": document["gain"],
        "recipe": last.recipe.to_json(),
        "statistics": served_like(run.builder, last.plan, run.evaluator.point.batch),
    }  # fmt: skip


def served_like(builder: Builder, plan: Plan, batch: int) -> dict[str, Any]:
    """What inputs and answers are like where the model was made: what a server sees is held against it."""
    examples = builder.examples
    learned = examples.train if examples.train is not None else examples.valid
    inputs = dict(zip(input_names(len(learned.inputs)), learned.inputs, strict=True))
    tells = builder.workload.classifies and len(builder.answer_shape) == 1
    return describe(inputs, builder.outputs(plan, examples.valid, batch) if tells else None)


def _task(run: Context) -> str:
    if not run.workload.classifies:
        return "regression"
    return "classification by position" if len(run.builder.answer_shape) > 1 else "classification"


def _certified(run: Context, winner: Candidate, sequence: list[Entry]) -> dict[str, Any]:
    base, cand = run.evaluator.scores(run.baseline, "test"), run.evaluator.scores(winner.plan, "test")
    groups, margin = run.examples.test.groups, margin_on_test(run)
    return {
        "recipe": winner.recipe.id,
        "label": recipe_label(winner.recipe),
        "quality_difference": next(s["test"] for s in sequence if s["recipe"] == winner.recipe.id),
        "margin": margin,
        "n": len(base),
        "p": quality_p(base, cand, margin, groups=groups),
        "baseline_quality": float(base.mean()),
        "candidate_quality": float(cand.mean()),
        "perplexity": [run.workload.perplexity(float(s.mean())) for s in (base, cand)] if run.workload.metric == "log_loss" else None,
    }


def _training_memory(run: Context, last: Final) -> dict[str, Any] | None:
    """Ways to do the training that was found in less memory; where cheaper training is what is sought."""
    if run.settings.objective != "train" or run.ledger["baseline"]["training"] is None:
        return None
    found: dict[str, Any] = run.ledger.remember("savings", lambda: savings_of(run.evaluator, last.plan.training))
    return found


# ---------------------------------------------------------------- ladder and candidates


def _tuned(run: Context, ladder: Ladder) -> list[dict[str, Any]]:
    """What each kind of config came to, of levers that have kinds, all at one quality: the baseline's own is the control of the others."""
    groups: dict[tuple[str, str], list[Candidate]] = {}
    levers = {name: lever for name, lever in discover().items() if isinstance(lever, Tuned)}
    for c in ladder.candidates:
        if c.lever in levers:
            groups.setdefault((c.lever, levers[c.lever].kind(c.config)), []).append(c)
    rows = []
    for (lever, kind), tried in groups.items():
        measured = [c for c in tried if c.verdict.quality is not None and c.gain is not None and c.gain.value > 1]
        good = [c for c in measured if c.verdict.quality and is_enough(c.verdict.quality.value, run.margin)]
        best = max(good, key=lambda c: c.gain.value if c.gain else 0.0, default=None)
        rows.append({
            "lever": lever, "kind": kind, "tried": len(tried), "best": _candidate(best, None) if best is not None else None,
            "seconds": sum(c.training_seconds + c.timing_seconds for c in tried), "cpu_seconds": sum(c.training_cpu_seconds for c in tried),
            "failed": tried[0].verdict.reason if all(c.gain is None for c in tried) else None,
        })  # fmt: skip
    return rows


def _rows(run: Context, ladder: Ladder, last: Final, winner: Candidate | None, reference: str) -> list[dict[str, Any]]:
    """The ladder's rows, with the factors of what was certified as they were timed together: they multiply to the headline."""
    if winner is None:
        return [_not_certified(r) for r in ladder.rows]
    pulled = _pulled(run, ladder, last)
    rows = [_exported(run, last)] if reference == EAGER and run.settings.objective not in ("size", "train") else []
    for r in ladder.rows:
        kept = pulled.get((r["stage"], r["lever"]))
        if kept is None and r["verdict"] == Decision.TAKE:
            kept = {**r, "verdict": str(Decision.REFUSE), "reason": "a candidate without it was certified, this one was not"}
        rows.append(kept or r)
    return rows + [row for key, row in pulled.items() if key not in {(r["stage"], r["lever"]) for r in ladder.rows}]


def _not_certified(row: dict[str, Any]) -> dict[str, Any]:
    if row["verdict"] != Decision.TAKE:
        return row
    return {**row, "verdict": str(Decision.INCONCLUSIVE), "reason": f"could not be certified ({row['reason']})"}


def _pulled(run: Context, ladder: Ladder, last: Final) -> dict[tuple[str, str], dict[str, Any]]:
    """A row for each lever of the final recipe, by stage and lever."""
    by_id, levers = {c.recipe.id: c for c in ladder.candidates}, discover()
    out = {}
    for before, after in itertools.pairwise(last.prefixes):
        name, recipe = after.partition(":")[2], last.recipes[after]
        candidate = by_id.get(recipe.id)
        stage = candidate.stage if candidate and candidate.stage in levers[name].stages else levers[name].stages[-1]
        factor = final.factor(run, last, before, after)
        tried = next((r["tried"] for r in ladder.rows if (r["stage"], r["lever"]) == (str(stage), name)), 0)
        configs = {canonical(p.config): p for p in last.recipe.find(name)}
        words = "; ".join(short(p.lever, p.config) for p in configs.values())
        alone = recipe != last.recipes[before]
        out[str(stage), name] = row_of(
            stage, name, Decision.TAKE, f"{words}: " + (f"{factor.value:.2f}× cheaper" if alone else "pays within the whole, not alone"),
            config=last.recipe.find(name)[-1].config, quality=final.quality_on_valid(run, recipe), cost=factor, recipe=recipe.id, tried=tried,
        )  # fmt: skip
    return out


def _exported(run: Context, last: Final) -> dict[str, Any]:
    """Where eager PyTorch is the cheaper baseline, the first factor is what leaving it costs."""
    factor = final.factor(run, last, EAGER, BASELINE)
    reason = f"what the levers work on runs in onnxruntime: {factor.value:.2f}× of eager PyTorch, the cheaper baseline here"
    return row_of("export", "onnxruntime", Decision.TAKE, reason, cost=factor)


def _candidate(c: Candidate, winner: Candidate | None) -> dict[str, Any]:
    return {
        "recipe": c.recipe.id, "label": recipe_label(c.recipe), "stage": str(c.stage), "lever": c.lever, "config": c.config,
        "quality_difference": c.verdict.quality.to_json() if c.verdict.quality else None,
        "gain": c.gain.to_json() if c.gain else None,
        "verdict": str(c.verdict.decision), "reason": c.verdict.reason,
        "certified": winner is not None and c.recipe.id == winner.recipe.id,
    }  # fmt: skip


# ---------------------------------------------------------------- costs


def _points(run: Context, last: Final) -> list[dict[str, Any]]:
    """The cheaper baseline and the candidate at each operating point."""
    out = []
    for name, point in final.points_of(run).items():
        samples = last.costs[name]
        reference = final.reference(run, samples)
        ratios = {kind: ratio_of(samples[reference], samples[last.last], kind).to_json() for kind in ("cpu", "wall")}
        sides = {"baseline": samples[reference].microseconds(), "candidate": samples[last.last].microseconds()}
        worst = samples[last.last].worst_to_mean() if last.plan.join else None
        threads = last.plan.session.threads if point == run.evaluator.point else point.threads
        engine = "eager" if reference == EAGER else "onnxruntime"
        out.append({**dataclasses.asdict(point), "candidate_threads": threads, "reference": engine, **sides, **ratios, "worst_to_mean": worst})
    return out


def _spent(run: Context) -> dict[str, Any]:
    """What the run cost, by activity; work that an earlier run had stored is counted apart."""
    entries = {e["key"]: e["value"] for e in run.ledger.entries}
    activity: dict[str, float] = {}
    reused = 0.0
    for key, value in entries.items():
        if key.startswith("step:"):
            activity[value["kind"]] = activity.get(value["kind"], 0.0) + value["seconds"]
            reused += value["reused_seconds"]
        elif (key.startswith("cost:") or key in ("baseline", "compiled")) and "seconds" in value:
            activity["time"] = activity.get("time", 0.0) + value["seconds"]
    total = run.ledger.remember("finished", lambda: run.ledger.elapsed)
    activity["other"] = max(0.0, total - sum(activity.values()))
    return {
        "seconds": total,
        "search_seconds": total - entries["clock"],
        "by_activity": activity,
        "baseline_seconds": entries["baseline"]["training_seconds"],
        "reused_seconds": reused,
    }


def _break_even(baseline: Samples, candidate: Samples, spent: dict[str, Any]) -> int | None:
    """Predictions after which the search has paid, counting every core busy for all of it; None where none is shown to be cheaper."""
    if ratio_of(baseline, candidate, "cpu").low <= 1:
        return None
    saved = float((baseline.cpu.mean() / baseline.batch - candidate.cpu.mean() / candidate.batch) / 1e9)
    return math.ceil(float(spent["search_seconds"]) * device.cores() / saved)


# ---------------------------------------------------------------- beyond the mean


def _insights(run: Context, last: Final, winner: Candidate | None, *, show_examples: bool) -> dict[str, Any]:
    """On test, once it has been opened and something was certified on it."""
    out: dict[str, Any] = {"slices": [], "agreement": None, "calibration": None, "disagreements": []}
    if winner is None:
        return out
    test = run.examples.test
    out["slices"] = slices_on_test(run, last.plan)
    if run.workload.classifies and len(run.builder.answer_shape) == 1 and test.targets is not None and test.targets.ndim == 1:
        base, cand = (run.builder.outputs(p, test, run.evaluator.point.batch) for p in (run.baseline, last.plan))
        out["agreement"] = insights.agreement(base, cand, test.targets)
        out["calibration"] = insights.calibration(base, cand, test.targets)
        out["disagreements"] = insights.disagreements(base, cand, test, run.examples.labels, with_images=show_examples)
    return out
