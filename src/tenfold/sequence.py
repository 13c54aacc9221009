"""The few candidates that meet the test split, one after the other in an order that was fixed before it was opened."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from tenfold import insights
from tenfold.candidate import Ladder, recipe_label
from tenfold.certify import Standing, for_confirm, order_candidates, record_opening
from tenfold.context import Context
from tenfold.plan import Plan
from tenfold.store import cache_dir
from tenfold.verdict import Decision, Interval, Verdict, certify, fixed_sequence

Entry = dict[str, Any]
"""A candidate of the sequence as it stands in result.json; verdict and reason are None where its turn did not come."""


def judge(run: Context, ladder: Ladder) -> list[Entry]:
    """Order what search took by how safe it is by confirm, then certify in that order until one fails.

    The order, and the opening of the test split, are recorded before the first look.
    """
    able = {c.recipe.id: c for c in ladder.candidates if c.verdict.decision is Decision.TAKE}

    def confirm(recipe: str) -> Interval:
        plan = able[recipe].plan
        return Interval(**run.ledger.remember(f"confirm:{recipe}", lambda: run.evaluator.quality(plan, "confirm").to_json()))

    def fix() -> list[Entry]:
        sizes = run.examples.sizes()
        on_valid = for_confirm([s for c in able.values() if (s := c.standing)], run.margin, n=sizes["valid"], tested=sizes["test"])
        standings = [Standing(recipe=s.recipe, quality=confirm(s.recipe), gain=s.gain) for s in on_valid]
        return [
            {
                "recipe": s.recipe,
                "label": recipe_label(able[s.recipe].recipe),
                "confirm": s.quality.to_json(),
                "gain": s.gain.to_json(),
            }
            for s in order_candidates(standings, run.margin, n=sizes["confirm"], tested=sizes["test"])
        ]

    run.view.say("certifying on test")
    sequence: list[Entry] = run.ledger.remember("sequence", fix)
    sequence = [{**s, "test": None, "verdict": None, "reason": None} for s in sequence]
    if not sequence:
        return []
    run.ledger.remember("opening", lambda: record_opening(cache_dir() / "openings", run.examples.test.identity, run.id))

    def judged() -> Iterable[Verdict]:
        for entry in sequence:
            found = run.ledger.remember(f"test:{entry['recipe']}", partial(_on_test, run, able[entry["recipe"]].plan))
            verdict = certify(Interval(**found["quality"]), margin_on_test(run), len(run.examples.test))
            if (broken := found["broken_slice"]) is not None and verdict.decision is Decision.TAKE:
                reason = f"slice {broken!r} does not keep its margin"
                verdict = Verdict(decision=Decision.INCONCLUSIVE, reason=reason, quality=verdict.quality)
            entry |= {"test": found["quality"], "verdict": str(verdict.decision), "reason": verdict.reason}
            yield verdict

    fixed_sequence(judged())
    return sequence


def margin_on_test(run: Context) -> float:
    """Absolute. A relative margin is a share of the baseline's mean on test, which is taken as exact."""
    return run.workload.absolute_margin(float(run.evaluator.scores(run.baseline, "test").mean()))


def slices_on_test(run: Context, plan: Plan) -> list[dict[str, Any]]:
    test = run.examples.test
    masks = insights.slice_masks(run.workload, test, run.examples.labels, run.examples.classes)
    base, cand = run.evaluator.scores(run.baseline, "test"), run.evaluator.scores(plan, "test")
    return insights.slices(masks, run.workload, test, base, cand)


def _on_test(run: Context, plan: Plan) -> dict[str, Any]:
    quality = run.evaluator.quality(plan, "test")
    broken = next((r["name"] for r in slices_on_test(run, plan) if r["held"] is False), None)
    return {"quality": quality.to_json(), "broken_slice": broken}
