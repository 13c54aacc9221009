"""A small model answers what it is sure of; the rest goes on to a better one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tenfold import foresee
from tenfold.data.split import Array
from tenfold.engine import GraphError, SessionConfig, open_session, run_in_batches
from tenfold.insights import confidence
from tenfold.lever import Config, Refusal, Situation, Stage, apply_all
from tenfold.levers.cascade.splice import load, splice
from tenfold.plan import Join, Materials, Plan
from tenfold.recipe import Pull


@dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """Finished models, each by its recipe, and how much each hands on."""

    parts: list[dict[str, Any]]
    """From the cheapest to the best: `pulls`, those of the part's recipe (none is the baseline); and, for all but the last,
    `hand_on`, the share of all examples that go beyond it: thresholds are set for that on the finished graph."""
    blend: float = 0.0
    """Share of what was answered so far in the answer of a later part: two models that differ err less together."""


class Cascade:
    name = "cascade"
    stages: tuple[Stage, ...] = (Stage.COMPOSE,)
    rank = 0
    touches = frozenset({"model_passes", "graph_passes", "join"})
    summary = "a small model answers what it is sure of, a better one the rest, in one graph"

    def propose(self, situation: Situation) -> Sequence[Config] | Refusal:
        if situation.objective in ("size", "train"):
            return Refusal(f"it holds several models, which makes nothing cheaper for the objective {situation.objective}")
        if not situation.workload.classifies:
            return Refusal("a model that gives no class scores cannot say how sure it is (where it gives one logit a class: class_scores=True)")
        parts = situation.parts()
        if parts and (parts[0].outputs.ndim != 2):
            return Refusal(f"outputs of shape {parts[0].outputs.shape[1:]} have no single row of class scores")
        if len(parts) < 2:
            return Refusal("there is no other model than the baseline to put before it")
        tested = len(situation.examples.test)
        foreseen = partial(foresee.best, parts, situation.margin, tested=tested, score=partial(_scores, situation))
        found = foreseen()
        if situation.tried:
            return _corrected(found, foreseen, situation)
        if not found:
            return Refusal("no pair of the models measured so far would be cheaper together than the best of them alone")
        return [_json(f) for f in found]

    def apply(self, plan: Plan, config: Config) -> Plan:
        chosen = CascadeConfig(**config)
        root = dataclasses.replace(plan, model_passes=(), graph_passes=())
        parts = tuple(apply_all(root, [Pull(**p) for p in part["pulls"]]) for part in chosen.parts)
        hand_on = [part["hand_on"] for part in chosen.parts[:-1]]
        key = {"join": "cascade", "hand_on": hand_on, "blend": chosen.blend}
        return dataclasses.replace(root, join=Join(key=key, parts=parts, apply=partial(_cascade, hand_on=hand_on, blend=chosen.blend)))


def _scores(situation: Situation, rows: Array, outputs: Array) -> Array:
    targets = situation.examples.valid.targets
    assert targets is not None
    return situation.workload.scores(outputs, targets[rows])


def _corrected(
    first: Sequence[foresee.Foreseen], foreseen: Callable[..., Sequence[foresee.Foreseen]], situation: Situation
) -> Sequence[Config]:
    """Once more, with what a decision costs as the first ones measured."""
    known = [_json(f) for f in first]
    if any(t.config not in known for t in situation.tried):  # that was done
        return ()
    costs = [(first[known.index(t.config)], 1 / t.gain.value) for t in situation.tried if t.gain is not None and t.gain.value > 0]
    if not costs:
        return ()
    return [c for c in map(_json, foreseen(overhead=foresee.overhead_of(costs))) if c not in known]


def _json(foreseen: foresee.Foreseen) -> Config:
    parts: list[dict[str, Any]] = [{"pulls": [dataclasses.asdict(p) for p in part.recipe.pulls]} for part in foreseen.parts]
    for part, share in zip(parts, foreseen.hand_on, strict=False):
        part["hand_on"] = share
    return dataclasses.asdict(CascadeConfig(parts=parts, blend=foreseen.blend))


def _cascade(sources: Sequence[Path], target: Path, materials: Materials, hand_on: Sequence[float], blend: float) -> dict[str, Any]:
    """Splice the parts' graphs, and set each threshold on the finished graph, by how sure it is on valid.

    With the thresholds that are still to be set at 0, the graph answers by the part whose threshold is sought; those before it
    have handed on what they hand on.
    """
    parts, inputs = [load(s, i) for i, s in enumerate(sources, start=1)], materials.examples.valid.inputs
    n, thresholds = len(inputs[0]), [0.0] * len(hand_on)
    rows = np.arange(n)
    for i, share in enumerate(hand_on):
        onnx.save(splice(parts, thresholds, blend), target)
        sureness = confidence(run_in_batches(open_session(target, SessionConfig()), [x[rows] for x in inputs], 1)).astype(np.float32)  # as the graph has it
        count = round(share * n)
        if not 0 < count < len(rows):
            raise GraphError(f"a cascade that hands on {count:,} of {len(rows):,} examples is none: choose a share between")
        ordered = np.sort(sureness)
        between = np.float32((float(ordered[count - 1]) + float(ordered[count])) / 2)
        thresholds[i] = float(between if between > ordered[count - 1] else ordered[count])  # they may be neighbours
        if not ordered[0] < thresholds[i]:
            raise GraphError("the score of a cascade's part is the same for the examples that it is least sure of: it cannot tell what to hand on")
        rows = rows[sureness < thresholds[i]]
    onnx.save(splice(parts, thresholds, blend), target)
    return {"thresholds": thresholds, "handed_on": len(rows) / n}


lever = Cascade()
