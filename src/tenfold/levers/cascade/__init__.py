"""A small model answers what it is sure of; the rest goes on to a better one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tenfold.data.split import Array
from tenfold.engine import GraphError, SessionConfig, open_session, run_in_batches
from tenfold.lever import Config, Refusal, Situation, Stage, apply_all
from tenfold.levers.cascade import foresee
from tenfold.levers.cascade.splice import load, score_graph, splice
from tenfold.plan import Join, Materials, Plan

CALIBRATION_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """Finished models, each by its recipe, and how much each hands on."""

    parts: list[dict[str, Any]]
    """From the cheapest to the best: `pulls`, those of the part's recipe (none is the baseline); and, for all but the last,
    `hand_on`, the share of all examples that go beyond it: thresholds are set for that on the finished graph."""


class Cascade:
    name = "cascade"
    stages: tuple[Stage, ...] = (Stage.COMPOSE,)
    touches = frozenset({"model_passes", "graph_passes", "join", "session"})
    summary = "a small model answers what it is sure of, a better one the rest, in one graph"

    def propose(self, situation: Situation) -> Sequence[Config] | Refusal:
        if situation.objective in ("size", "train"):
            return Refusal(f"it holds several models, which makes nothing cheaper for the objective {situation.objective}")
        if not situation.workload.classifies:
            return Refusal("a model that gives no class scores cannot say how sure it is")
        if situation.tried:
            return ()
        parts = situation.parts()
        if parts and (parts[0].outputs.ndim != 2):
            return Refusal(f"outputs of shape {parts[0].outputs.shape[1:]} have no single row of class scores")
        if len(parts) < 2:
            return Refusal("there is no other model than the baseline to put before it")
        found = foresee.best(parts, situation.margin)
        if not found:
            return Refusal("no pair of the models measured so far would be cheaper together than the best of them alone")
        return [_json(f) for f in found]

    def apply(self, plan: Plan, config: Config) -> Plan:
        chosen = CascadeConfig(**config)
        root = Plan(training=plan.training, seed=plan.seed, session=SessionConfig(threads=plan.session.threads))
        parts = tuple(apply_all(root, [(p["lever"], p["config"]) for p in part["pulls"]]) for part in chosen.parts)
        hand_on = [part["hand_on"] for part in chosen.parts[:-1]]
        key = {"join": "cascade", "hand_on": hand_on}
        return dataclasses.replace(root, join=Join(key=key, parts=parts, apply=partial(_cascade, hand_on=hand_on)))


def _json(foreseen: foresee.Foreseen) -> Config:
    parts: list[dict[str, Any]] = [{"pulls": [dataclasses.asdict(p) for p in part.recipe.pulls]} for part in foreseen.parts]
    for part, share in zip(parts, foreseen.hand_on, strict=False):
        part["hand_on"] = share
    return dataclasses.asdict(CascadeConfig(parts=parts))


def _cascade(sources: Sequence[Path], target: Path, materials: Materials, hand_on: Sequence[float]) -> dict[str, Any]:
    """Splice the parts' graphs; each threshold is the quantile, on valid, of the scores of the rows that reach it.

    Scores are those of the finished part within the finished graph: the graph so far is run with its score as a second output.
    """
    parts = [load(s) for s in sources]
    inputs = materials.examples.valid.inputs
    rows, thresholds = np.arange(len(inputs[0])), []
    for part, share in zip(parts[:-1], hand_on, strict=True):
        scores = _scores(part, [x[rows] for x in inputs], target)
        count = round(share * len(inputs[0]))
        if not 0 < count < len(scores):
            raise GraphError(f"a cascade that hands on {count:,} of {len(scores):,} examples is none: choose a share between")
        order = np.argsort(scores, kind="stable")
        threshold = float(scores[order[count]])
        if not scores[order[0]] < threshold:
            raise GraphError("the score of a cascade's part is the same for every example: it cannot tell what to hand on")
        thresholds.append(threshold)
        rows = rows[scores < threshold]
    onnx.save(splice(parts, thresholds), target)
    return {"thresholds": thresholds, "handed_on": len(rows) / len(inputs[0])}


def _scores(part: onnx.ModelProto, inputs: Sequence[Array], beside: Path) -> Array:
    path = beside.with_name("score.onnx")
    model = score_graph(part)
    del model.graph.output[0]
    onnx.save(model, path)
    try:
        return run_in_batches(open_session(path, SessionConfig()), inputs, 1)
    finally:
        path.unlink()


lever = Cascade()
