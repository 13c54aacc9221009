"""Goes on with new data from what a run came to, and lets the result into service only where it is shown to be as good."""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tenfold import __version__, device, insights
from tenfold.build import Builder, place_of, trainings_of
from tenfold.bundle import Bundle, write_bundle
from tenfold.certify import opened_by, record_opening
from tenfold.data.split import Array, Split, joined
from tenfold.document import served_like
from tenfold.engine import GraphError, open_session
from tenfold.errors import DivergedError, ExportError, TenfoldError, WorkloadError
from tenfold.execute import LEAST_INPUTS, ROUNDS, plain_session, ratio_of
from tenfold.ledger import Ledger
from tenfold.measure import calls_for, interleave
from tenfold.plan import Plan
from tenfold.progress import View, make_view
from tenfold.recipe import digest
from tenfold.renew.arrivals import FRESH, Arrivals, arrivals
from tenfold.renew.chain import SCHEMA, Chain
from tenfold.renew.guard import Comparison, judged, least_examples, level_of
from tenfold.renew.page import write_page
from tenfold.renew.replay import RATE, replayed
from tenfold.runs import check_same
from tenfold.store import Store, cache_dir, file_hash, unwritable, write_atomic
from tenfold.verdict import Decision, Interval, Verdict, quality_difference
from tenfold.weights import keep_weights, kept_weights, load_weights
from tenfold.workload import Examples, Workload, code_identity, structure_identity

MIX = 3
"""Old examples to a new one, in what is learned from: so that what was known is not forgotten."""
TIMED_SECONDS = 3.0
"""Timing the upgrade and the model in service, each."""
PAGE = "upgrades.html"
"""In the folder of all upgrades."""
FIRST, IN_SERVICE = "the model certified first", "the model in service"
VALID, OLD, NEW = "valid", "old test", "new"


@dataclass(frozen=True, kw_only=True)
class Update:
    """What an upgrade came to: the document of its `result.json`, and where everything lies."""

    document: dict[str, Any]
    folder: Path

    @property
    def exit_code(self) -> int:
        """0: let into service; 3: not."""
        code: int = self.document["exit_code"]
        return code

    @property
    def page(self) -> Path:
        """Of all upgrades of the run."""
        return self.folder.parent / PAGE

    @property
    def bundle(self) -> Bundle:
        """What is in service now."""
        return Bundle.load(self.document["in_service"])


@dataclass(frozen=True, kw_only=True)
class Upgrade:
    """One at work. What it has found so far is in the ledger."""

    chain: Chain
    number: int
    planned: int
    task: Workload
    old: Examples
    new: Arrivals
    notes: tuple[str, ...]
    builder: Builder
    plan: Plan
    ledger: Ledger

    @property
    def folder(self) -> Path:
        return self.chain.path(self.number)

    @property
    def batch(self) -> int:
        """Predictions a call, as in service."""
        size: int = self.chain.first.manifest["operating_point"]["batch"]
        return size

    @cached_property
    def parts(self) -> dict[str, Split]:
        return {VALID: self.builder.examples.valid, OLD: self.old.test, NEW: self.new.fresh}

    @property
    def graph(self) -> Path:
        return self.builder.graph(self.plan).path / "model.onnx"

    def own(self, part: str) -> Array:
        """Scores (n,) of the upgrade."""
        return self.builder.scores(self.plan, self.parts[part], self.batch)

    def of(self, bundle: Bundle, part: str) -> Array:
        """Scores (n,) of a bundle."""
        return self.builder.scores_of(bundle.path / "model.onnx", bundle.session, self.parts[part], self.batch)


def update(
    run: str | Path,
    data: Any,
    *,
    workload: Workload | str | None = None,
    old_data: str | Path | None = None,
    planned: int | None = None,
    resume: bool = False,
    view: View | str = "auto",
) -> Update:
    """Go on with a run's training on new data, follow the rest of its recipe again, and see whether the result may go into service.

    Args:
        run: folder of a run that ended.
        data: what the workload's `train` may be; a path is read by the workload's `read`, where it has one.
        workload: where it is another object or file than the run was made with.
        old_data: folder of the run's own data, where it is no longer where it was.
        planned: upgrades that are to be judged on the run's test split, over which the error is spent; given with the first.
        resume: go on with an upgrade that was stopped.
        view: `auto`, `live`, `lines`, `quiet`, or an object of your own.

    Raises:
        TenfoldError: input, data or disk is wrong; the message is one sentence with the remedy.
    """
    chain = Chain.read(Path(run).resolve())
    wanted, number = chain.planned(planned), chain.number(resume=resume)
    if not resume:
        chain.check_left(wanted)
    task = chain.workload(workload, old_data)
    old = chain.old_examples(task)
    new = arrivals(task, old, data)
    _check_new(chain, new)
    ledger = Ledger(chain.path(number), resume=resume)
    told = make_view(view) if isinstance(view, str) else view
    try:
        up = _begin(chain, number, wanted, task, old, new, ledger, told)
        return _carry_out(up, Path(data).resolve() if isinstance(data, (str, Path)) else None, told)
    except TenfoldError:
        if not ledger.knows("began"):
            ledger.discard()
        raise
    finally:
        told.close()
        ledger.close()


def _check_new(chain: Chain, new: Arrivals) -> None:
    """
    Raises:
        WorkloadError: the same was judged before.
    """
    same = [u["number"] for u in chain.upgrades if u["data"]["identity"] == new.identity and Path(u["replaced"]) == chain.serving.path]
    if same:
        raise WorkloadError(f"upgrade {same[0]} was made of this very data, from the model that is still in service: it would come out the same")


def _too_few(task: Workload, old: Examples, new: Arrivals, planned: int) -> list[str]:
    """What is too few to show that an upgrade which is no better is as good, in words."""
    if task.metric != "accuracy" or task.margin_kind != "absolute" or new.fresh.groups is not None or new.fresh.targets is None or new.fresh.targets.ndim > 1:
        return []
    least = least_examples(task.margin, planned)
    few = "examples show a margin of {:g} only for an upgrade that is better: {} show it for one that is as good"
    return [
        f"{n:,} {what} {few.format(task.margin, wanted)}"
        for what, n, wanted in (("new", len(new.fresh), f"about {math.ceil(least / FRESH):,} new ones in all"), ("test", len(old.test), f"{least:,}"))
        if n < least
    ]


def _begin(
    chain: Chain, number: int, planned: int, task: Workload, old: Examples, new: Arrivals, ledger: Ledger, view: View
) -> Upgrade:
    """See that everything is there, and that an upgrade which is gone on with is still the same."""
    before, missing = chain.learned_before(task, old)
    known = [s for s in (old.train, *before) if s is not None]
    if not known:
        missing.append("the run had no examples to learn from: the upgrade learns from the new ones alone")
    if old.unlabelled is not None:
        missing.append("examples without labels are not learned from in an upgrade")
    builder, plan = _builder(chain, task, old, new, known, view)
    asked = {
        "upgrade": digest([builder.graph_key(plan), plan.session.to_json()]), "in service": file_hash(chain.serving.path / "model.onnx"),
        "data": new.identity, "planned": planned, "slices": code_identity(task.slices),
    }  # fmt: skip
    missing += _too_few(task, old, new, planned)
    check_same(ledger, chain.path(number), asked, otherwise=f"give it up by removing {chain.path(number)}")
    up = Upgrade(
        chain=chain, number=number, planned=planned, task=task, old=old, new=new, notes=(*new.notes, *missing), builder=builder, plan=plan, ledger=ledger
    )
    insights.check_slices(_masks(up), task)
    for note in (*ledger.notices, *up.notes):
        view.say(note)
    return up


def _builder(chain: Chain, task: Workload, old: Examples, new: Arrivals, known: list[Split], view: View) -> tuple[Builder, Plan]:
    """What builds the upgrade from the weights that are in service, and its plan."""
    recipe = chain.recipe
    plan = replayed(task.training, recipe.pulls, plain_session(chain.first.manifest["operating_point"]["threads"]), recipe.seed)
    plan = dataclasses.replace(plan, session=chain.first.session)
    trainings, weights = trainings_of(plan), kept_weights(chain.service / "weights")
    if len(weights) != len(trainings):
        raise TenfoldError(f"{chain.service / 'weights'} holds the weights of {len(weights)} trainings, and the recipe has {len(trainings)}: run anew with this Tenfold")
    learned = joined(new.train, *([joined(*known).sample(MIX * len(new.train), recipe.seed)] if known else []))
    builder = Builder(
        dataclasses.replace(task, training=trainings[0].training, pretrained=None),
        dataclasses.replace(old, train=learned, valid=joined(old.valid, new.valid), unlabelled=None),
        Store(cache_dir() / "steps"), seed=recipe.seed, threads=device.cores(), note=view.note,
        begins=dict(zip(map(place_of, trainings), weights, strict=True)), rate=RATE,
    )  # fmt: skip
    model = builder.fresh()
    if structure_identity(task, model) != chain.origin["workload"]["structure"]:
        raise WorkloadError("the model is not the one that the run was made with: put it back, or run anew")
    load_weights(model, weights[0])
    return builder, plan


def _carry_out(up: Upgrade, path: Path | None, view: View) -> Update:
    up.chain.plan(up.planned)
    up.ledger.remember("began", lambda: uuid.uuid4().hex)
    train = up.builder.examples.split("train")
    view.say(f"upgrade {up.number} of {up.chain.folder}: {len(up.new.train):,} new examples to learn from, among {len(train):,}")
    comparisons: list[Comparison] = []
    refused = up.ledger.remember("built", partial(_built, up))["reason"]
    if refused is None and file_hash(up.graph) != up.ledger["built"]["graph"]:
        raise TenfoldError(f"upgrade {up.number} was built again (was the cache emptied?) and came out otherwise: remove {up.folder}, and begin it anew")
    refused = refused or up.ledger.remember("valid", partial(_shown_worse, up))["reason"]
    if refused is not None:
        verdict = Verdict(decision=Decision.REFUSE, reason=f"{refused} (the test split was not opened)")
    else:
        view.say("judging the upgrade, on new examples that it has not learned from and on the old test split")
        up.ledger.remember("share", lambda: record_opening(up.chain.updates, up.old.test.identity, up.ledger["began"]))
        comparisons = _comparisons(up)
        verdict = _with_slices(up, judged(comparisons))
    taken = verdict.decision is Decision.TAKE
    document = {
        "schema": SCHEMA,
        "tenfold": __version__,
        "number": up.number,
        "of": up.chain.origin["run"],
        "created": up.ledger.remember("created", lambda: datetime.now(UTC).isoformat(timespec="seconds")),
        "workload": {k: up.chain.origin["workload"][k] for k in ("name", "metric", "higher_is_better", "margin", "margin_kind")},
        "data": {
            "path": None if path is None else str(path), "identity": up.new.identity, "learned_from": len(train),
            "examples": {"train": len(up.new.train), "valid": len(up.new.valid), "fresh": len(up.new.fresh)}, "notes": list(up.notes),
        },
        "recipe": up.chain.recipe.to_json(),
        "planned": up.planned,
        "judged": up.ledger.knows("share"),
        "opened": up.ledger.knows("opening"),
        "test_openings": up.ledger["opening"] if up.ledger.knows("opening") else 0,
        "comparisons": [c.to_json() for c in comparisons],
        "verdict": str(verdict.decision),
        "reason": verdict.reason,
        "let_in": taken,
        "cost_ratio": up.ledger.remember("cost", partial(_cost, up)) if taken else None,
        "replaced": str(up.chain.serving.path),
        "in_service": str(up.folder / "bundle" if taken else up.chain.serving.path),
        "seconds": up.ledger.remember("finished", lambda: up.ledger.elapsed),
        "environment": device.environment(),
        "exit_code": 0 if taken else 3,
    }  # fmt: skip
    if taken:
        first = up.chain.first.manifest
        facts = {k: first[k] for k in ("workload", "task", "labels", "session", "operating_point", "recipe")} | {
            "certified": True,
            "upgrade": {k: document[k] for k in ("number", "of", "planned", "comparisons", "replaced", "cost_ratio")}
            | {"beside": file_hash(up.chain.serving.path / "model.onnx")},
            "first": {k: first[k] for k in ("certified", "quality", "costs", "gain")},
            "statistics": served_like(up.builder, up.plan, up.batch),
        }
        write_bundle(up.folder / "bundle", up.graph, up.old.valid.take(slice(0, 256)).inputs, facts)
        keep_weights(up.folder / "weights", [up.builder.shaped(p).path / "model.safetensors" for p in trainings_of(up.plan)])
    try:
        spent = len(opened_by(up.chain.updates, up.old.test.identity))
        write_page([*up.chain.upgrades, document], up.chain.updates / PAGE, judged=spent)
        write_atomic(up.folder / "result.json", json.dumps(document, indent=1, allow_nan=False))  # last: an upgrade that has it has ended
    except OSError as error:
        raise unwritable(up.folder, error) from error
    return Update(document=document, folder=up.folder)


def _built(up: Upgrade) -> dict[str, str | None]:
    """Train and export the upgrade: the hash of its graph, or why it cannot be had."""
    try:
        up.builder.batches(up.plan)
    except (DivergedError, ExportError, GraphError) as error:
        return {"reason": f"it cannot be built: {error}", "graph": None}
    return {"reason": None, "graph": file_hash(up.graph)}


def _shown_worse(up: Upgrade) -> dict[str, Any]:
    """Whether valid, old and new together, shows it to be worse than the model in service: then nothing else need be looked at."""
    base = up.of(up.chain.serving, VALID)
    quality = quality_difference(base, up.own(VALID), groups=up.parts[VALID].groups)
    worse = quality.high < -up.task.absolute_margin(float(base.mean()))
    reason = f"worse than {IN_SERVICE} on valid: even the upper bound is {quality.high:+.4f}" if worse else None
    return {"quality": quality.to_json(), "reason": reason}


def _comparisons(up: Upgrade) -> list[Comparison]:
    """On new examples first, up to the first that does not hold: the old test split is opened only where it decides."""
    wanted = [(IN_SERVICE, up.chain.serving, NEW), (FIRST, up.chain.first, NEW), (FIRST, up.chain.first, OLD)]
    if not up.chain.let_in:  # they are the same
        wanted = wanted[1:]

    def look(bundle: Bundle, part: str) -> dict[str, Any]:
        base = up.of(bundle, part)
        quality = quality_difference(base, up.own(part), groups=up.parts[part].groups, level=level_of(up.planned))
        return {"quality": quality.to_json(), "margin": up.task.absolute_margin(float(base.mean()))}

    out: list[Comparison] = []
    for against, bundle, part in wanted:
        if part == OLD:
            up.ledger.remember("opening", lambda: record_opening(cache_dir() / "openings", up.old.test.identity, up.ledger["began"]))
        found = up.ledger.remember(f"judged:{against}:{part}", partial(look, bundle, part))
        out.append(Comparison(against=against, on=f"{part} examples", quality=Interval(**found["quality"]), margin=found["margin"], n=len(up.parts[part])))
        if out[-1].verdict.decision is not Decision.TAKE:
            break
    return out


def _masks(up: Upgrade) -> dict[str, Array]:
    return insights.slice_masks(up.task, up.old.test, up.old.labels, up.old.classes)


def _with_slices(up: Upgrade, verdict: Verdict) -> Verdict:
    """The verdict, less where a slice of the old test split does not keep its own margin."""
    if verdict.decision is not Decision.TAKE or not up.task.slice_margins:
        return verdict

    def broken() -> str | None:
        rows = insights.slices(_masks(up), up.task, up.old.test, up.of(up.chain.first, OLD), up.own(OLD), level=level_of(up.planned))
        return next((r["name"] for r in rows if r["held"] is False), None)

    name = up.ledger.remember("broken slice", broken)
    return verdict if name is None else Verdict(decision=Decision.INCONCLUSIVE, reason=f"slice {name!r} does not keep its margin", quality=verdict.quality)


def _cost(up: Upgrade) -> dict[str, float]:
    """How many times cheaper it answers than the model in service, on the new examples."""
    serving, inputs = up.chain.serving, up.new.fresh.inputs
    runners = {IN_SERVICE: open_session(serving.path / "model.onnx", serving.session), "upgrade": open_session(up.graph, up.plan.session)}
    calls = calls_for(runners, inputs, batch=up.batch, rounds=ROUNDS, seconds=TIMED_SECONDS * len(runners))
    calls = calls if up.plan.join is None else max(calls, -(-LEAST_INPUTS // up.batch))
    samples = interleave(runners, inputs, batch=up.batch, rounds=ROUNDS, calls=calls)
    return ratio_of(samples[IN_SERVICE], samples["upgrade"], "cpu").to_json()
