"""The main job: measure, certify and hand over a cheaper model."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold import device, final, insights
from tenfold.build import Builder, trainings_of
from tenfold.bundle import Bundle, write_bundle
from tenfold.candidate import Candidate, Ladder, best_single
from tenfold.certify import CONFIRMED, MAX_SEQUENCE
from tenfold.context import Context
from tenfold.document import UNITS, document, manifest
from tenfold.engine import open_session
from tenfold.errors import TenfoldError, WorkloadError
from tenfold.execute import (
    EAGER,
    LEAST_INPUTS,
    ROUNDS,
    Evaluator,
    Objective,
    OperatingPoint,
    as_json,
    from_json,
    plain_session,
)
from tenfold.export import check_batches, export
from tenfold.final import Final
from tenfold.ledger import Ledger
from tenfold.lever import discover
from tenfold.measure import calls_for, interleave
from tenfold.plan import Plan
from tenfold.progress import View, clock, make_view
from tenfold.recipe import Recipe
from tenfold.runs import check_same, check_seed, run_folder
from tenfold.search import BASELINE, FULL_SECONDS, Budget, Search, Settings, p99_ratio
from tenfold.sequence import Entry, judge
from tenfold.store import Step, Store, cache_dir, unwritable, write_atomic
from tenfold.teaching import check_student, check_teacher, compare_teacher
from tenfold.verdict import COST_BAR, Decision
from tenfold.weights import keep_weights
from tenfold.workload import Workload, code_identity, find, load

QUICK_SECONDS = 300.0
LEAST_SIDES, MOST_SIDES = 4, 12
"""Of the last timing: baseline, eager PyTorch and a recipe of two pulls; and with one of five pulls, the recipe less each of them."""
ROUND_SIDES, FINAL_SIDES = 3, 6
"""What a round of composed models, and the last timing of one, has to time, in predictions of the baseline: eager PyTorch counts several."""
PREFLIGHT_ROUNDS, PREFLIGHT_SECONDS = 2, 0.5
"""Of timing the untrained model, by which it is told how long things will take."""
COMPOSED_SHARE = 1 / 3
"""Of the budget, that the last timing of a composed model may take: where it would take more, nothing is composed."""


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
    folder = run_folder(task.name, out, resume=resume)
    ledger = Ledger(folder, resume=resume)
    told = make_view(view) if isinstance(view, str) else view
    try:
        ledger.remember("source", lambda: _source(workload, where))
        command = _command(settings, task, workload if isinstance(workload, str) else None, where)
        return _carry_out(_begin(task, settings, folder, ledger, told, command), show_examples=show_examples)
    except TenfoldError:
        if not ledger.knows("preflight"):  # nothing has begun: leave no run behind that could not be resumed
            ledger.discard()
        raise
    finally:
        told.close()
        ledger.close()


def _source(workload: Workload | str, data: Path | None) -> dict[str, str | None]:
    """Where the workload can be found again; its spec is None where it was built in code."""
    if not isinstance(workload, str):
        return {"spec": None, "data": None}
    path, colon, name = workload.rpartition(":") if ".py:" in workload else (workload, "", "")
    spec = f"{Path(path).resolve()}{colon}{name}" if path.endswith(".py") else workload
    return {"spec": spec, "data": None if data is None else str(data.resolve())}


def _check_arguments(budget: float | None, trials: int | None, objective: str, levers: Iterable[str] | None, seed: int) -> None:
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise TenfoldError(f"budget is {budget}: it must be above 0 seconds")
    if trials is not None and trials < 1:
        raise TenfoldError(f"trials is {trials}: give at least 1")
    check_seed(seed)
    if objective not in UNITS:
        raise TenfoldError(f"there is no objective {objective!r}: use {', '.join(UNITS)}")
    for name in levers or ():
        if name not in discover():
            raise TenfoldError(f"there is no lever {name!r}: use {', '.join(discover())}")


def _command(settings: Settings, workload: Workload, spec: str | None, data: Path | None) -> str:
    """What reproduces the run."""
    if spec is None or settings.budget_seconds is None:
        given = "workload" if spec is None else repr(spec)
        asked = {"data": str(data) if data else None, "budget": settings.budget_seconds, "trials": settings.trials, "quick": settings.quick,
                 "objective": settings.objective, "levers": settings.levers, "margin": workload.margin, "seed": settings.seed}  # fmt: skip
        return f"tenfold.run({given}, {', '.join(f'{k}={v!r}' for k, v in asked.items())})"
    words = ["tenfold", "run", spec, "--seed", str(settings.seed)]
    words += ["--data", str(data)] if data else []
    words += ["--quick"] if settings.quick else []
    words += ["--budget", f"{settings.budget_seconds:g}s"]
    words += ["--trials", str(settings.trials)] if settings.trials else []
    words += ["--objective", settings.objective] if settings.objective != "serve" else []
    words += ["--levers", ",".join(settings.levers)] if settings.levers is not None else []
    words += ["--margin", f"{workload.margin:g}"]
    return shlex.join(words)


# ---------------------------------------------------------------- the course of a run; each step is remembered in the ledger


def _begin(task: Workload, settings: Settings, folder: Path, ledger: Ledger, view: View, command: str) -> Context:
    """Load the data, and see that a run which is gone on with is the same run, on the same machine."""
    for notice in ledger.notices:
        view.say(notice)
    store = Store(cache_dir() / "steps")
    examples = load(task)
    for note in examples.notes:
        view.say(note)

    def on_step(kind: str, step: Step, alone: float) -> None:
        if not ledger.knows(key := f"step:{step.path.name}"):
            ledger.append(key, {"kind": kind, "seconds": alone, "reused_seconds": step.meta["seconds"] if step.reused else 0.0})

    builder = Builder(task, examples, store, seed=settings.seed, threads=device.cores(), note=view.note, on_step=on_step)
    point = OperatingPoint.of(settings.objective)
    baseline = Plan(training=task.training, seed=settings.seed, session=plain_session(point.threads))
    run_id = ledger.remember("id", lambda: uuid.uuid4().hex)
    asked = {
        "workload": builder.workload_id, "margin": task.margin, "margin_kind": task.margin_kind,
        "slices": code_identity(task.slices), "slice_margins": dict(task.slice_margins), **builder.learning, **dataclasses.asdict(settings),
    }  # fmt: skip
    check_same(ledger, folder, asked)
    return Context(
        id=run_id, command=command, settings=settings, folder=folder, ledger=ledger, view=view, workload=task,
        examples=examples, builder=builder, evaluator=Evaluator(builder, baseline, settings.objective),
    )  # fmt: skip


def _carry_out(run: Context, *, show_examples: bool) -> Result:
    estimate = run.ledger.remember("preflight", lambda: _preflight(run))
    base = _baseline(run)
    budget = Budget(
        ledger=run.ledger, started=run.ledger.remember("clock", lambda: run.ledger.elapsed),
        seconds=run.settings.budget_seconds, trials=run.settings.trials, reserve=estimate["certify_seconds"],
    )  # fmt: skip

    def seconds_left() -> float:
        run.ledger.beat()
        return budget.left

    run.builder.seconds_left = seconds_left
    eager = base["cheaper"] == EAGER
    timed = from_json(base["samples"])
    search = Search(
        run.evaluator, run.ledger, run.view, run.settings, budget=budget, margin=run.margin,
        reference=EAGER if eager else BASELINE,
        baseline_cost=1 / run.evaluator.ratio(timed[EAGER], timed[BASELINE]).value if eager and run.settings.objective != "size" else 1.0,
        trial_seconds=estimate["trial_seconds"], compose_seconds=estimate["compose_seconds"],
        training_seconds=base.get("would_train_seconds") or base["training_seconds"], epoch_answered=estimate.get("epoch_answered", 0.0),
    )  # fmt: skip
    ladder = search.climb()
    run.builder.seconds_left = lambda: math.inf  # what is left is certified, whatever of the cache has to be made again for it
    sequence = judge(run, ladder)
    winner, last = _cheapest_that_passed(run, ladder, sequence)
    compiled = final.compiled(run, budget.left)
    result = document(run, ladder, sequence, winner, last, compiled, show_examples=show_examples)
    example = run.examples.valid.take(slice(0, 256)).inputs
    write_bundle(run.folder / "bundle", run.builder.graph(last.plan).path / "model.onnx", example, manifest(run, result, last))
    keep_weights(run.folder / "weights", [run.builder.shaped(p).path / "model.safetensors" for p in trainings_of(last.plan)])
    _write(result, run.folder)  # last: a run that has it has ended
    run.ledger.remember("end", lambda: {"exit_code": result["exit_code"]})
    return Result(document=result, folder=run.folder)


def _preflight(run: Context) -> dict[str, Any]:
    """Everything that can be found wrong before the budget is spent, and what will take how long: a trial, the certification, and
    timing a round of composed models (None: too long for this budget)."""
    run.builder.check()
    trains = run.examples.train is not None and run.workload.pretrained is None
    if trains and (run.settings.objective == "train" or run.workload.training.accumulate > 1):  # batches of several sizes, or made of parts
        run.builder.check_mean_loss()
    answering = check_teacher(run.builder)
    check_student(run.builder)
    test, batch = run.examples.test, run.evaluator.point.batch
    insights.check_slices(insights.slice_masks(run.workload, test, run.examples.labels, run.examples.classes), run.workload)
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "untrained.onnx"
        inputs = run.examples.valid.take(slice(0, 64)).inputs
        export(run.builder.fresh(), inputs, graph)
        check_batches(graph, inputs, plain_session())
        untrained = {BASELINE: open_session(graph, plain_session())}
        calls = calls_for(untrained, inputs, batch=batch, rounds=PREFLIGHT_ROUNDS, seconds=PREFLIGHT_SECONDS)
        timed = interleave(untrained, inputs, batch=batch, rounds=PREFLIGHT_ROUNDS, calls=calls)[BASELINE]  # the first few calls take several times as long
        each = timed.microseconds()["wall_p50"] / 1e6
    sizes, answered = run.examples.sizes(), each / device.cores()  # answers are computed on all of them
    trial = 1.0 + sizes["valid"] * answered + 3 * FULL_SECONDS
    seconds = run.settings.budget_seconds
    timing = 2 * LEAST_SIDES * final.SECONDS  # at both operating points
    many = ROUNDS * LEAST_INPUTS * each  # a side whose cost depends on the input
    composes = seconds is None or FINAL_SIDES * many <= COMPOSED_SHARE * seconds
    if composes:
        timing = max(timing, FINAL_SIDES * many)
    last = (2 * sizes["confirm"] + 2 * sizes["test"]) * answered + timing
    more = 2 * (MOST_SIDES - LEAST_SIDES) * final.SECONDS
    whole = ((CONFIRMED + 1) * sizes["confirm"] + (MAX_SEQUENCE + 1) * sizes["test"]) * answered + timing + more
    if seconds is not None and seconds < trial + last:
        raise WorkloadError(
            f"a budget of {seconds:g} s is too small for one candidate: about {math.ceil(trial + last)} s are needed "
            "on this machine (measured on the untrained model): give a larger --budget"
        )
    reserve = whole if seconds is None else max(last, min(whole, seconds / 3))
    return {
        "trial_seconds": trial, "certify_seconds": reserve, "compose_seconds": ROUND_SIDES * many if composes else None,
        "epoch_answered": answering,
    }  # fmt: skip


def _baseline(run: Context) -> dict[str, Any]:
    """Train, export and time the model as it is."""
    given = run.examples.train is None or run.workload.pretrained is not None
    run.view.say("baseline: the weights are given" if given else "baseline: training (taken from the cache where it was done before)")
    trained = run.builder.trained(run.baseline)
    graph = run.builder.graph(run.baseline)
    run.builder.batches(run.baseline)
    compare_teacher(run.builder)

    def tune() -> dict[str, float]:
        before = run.evaluator.timing_seconds
        return {"threads": run.evaluator.best_threads(), "seconds": run.evaluator.timing_seconds - before}

    if run.settings.objective in ("latency", "throughput"):
        run.evaluator.use_threads(run.ledger.remember("cost:baseline threads", tune)["threads"])

    def measure() -> dict[str, Any]:
        valid = float(run.evaluator.scores(run.baseline, "valid").mean())
        before = run.evaluator.timing_seconds
        samples = run.evaluator.costs({BASELINE: run.baseline}, split="valid", seconds=FULL_SECONDS, eager=True)
        facts = {k: trained.meta.get(k) for k in ("seconds", "cpu_seconds", "steps", "losses")} | {"reused": trained.reused}
        return {
            "valid": valid,
            "seconds": run.evaluator.timing_seconds - before,
            "samples": as_json(samples),
            "cheaper": EAGER if run.evaluator.ratio(samples[EAGER], samples[BASELINE]).value < 1 else "onnxruntime",
            "training": None if given else facts,
            "training_seconds": 0.0 if given else float(trained.meta["seconds"]),
            "would_train_seconds": run.evaluator.training_seconds() if given and run.examples.can_teach else None,
            "bytes": (graph.path / "model.onnx").stat().st_size,
        }

    base: dict[str, Any] = run.ledger.remember("baseline", measure)
    shown = base["valid"] if run.workload.better_is_higher else -base["valid"]
    perplexity = run.workload.perplexity(base["valid"])
    also = "" if perplexity is None else f" (perplexity {perplexity:.2f})"
    run.view.say(f"baseline: {run.workload.metric_name} {shown:.4f}{also} on valid; budget {clock(run.settings.budget_seconds or math.inf)}")
    return base


def _cheapest_that_passed(run: Context, ladder: Ladder, sequence: list[Entry]) -> tuple[Candidate | None, Final]:
    """The cheapest candidate that was certified, if it is still cheaper when all is timed again; and that timing."""
    by_id = {c.recipe.id: c for c in ladder.candidates}
    single = best_single(ladder.candidates, run.margin)
    for entry in reversed(sequence):
        if entry["verdict"] != Decision.TAKE:
            continue
        last = final.time_all(run, by_id[entry["recipe"]].recipe, single.recipe if single else None)
        gain = final.gains(run, last)[final.GAIN_OF[run.settings.objective]]
        samples = last.costs[final.own_point(run)]
        p99 = p99_ratio(samples[final.reference(run, samples)], samples[last.last])
        if gain is None or gain.low < COST_BAR:
            shown = f"not shown to be cheaper when timed again: {gain.value:.2f}×" if gain is not None else "no gain"
        elif run.settings.objective == "latency" and p99 < 1.0:
            shown = f"its p99 latency is worse when timed again: {p99:.2f}× of what it was"
        else:
            return by_id[entry["recipe"]], last
        entry |= {"verdict": str(Decision.REFUSE), "reason": f"as good, but {shown}"}
    return None, final.time_all(run, Recipe(workload=run.builder.workload_id, seed=run.settings.seed))


def _write(result: dict[str, Any], folder: Path) -> None:
    from tenfold.report import write as write_report

    try:
        write_atomic(folder / "result.json", json.dumps(result, indent=1, allow_nan=False))
        write_report(result, folder / "report.html")
    except OSError as error:
        raise unwritable(folder, error) from error
