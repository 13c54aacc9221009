"""The guard alone: two ONNX models that others made, on a workload's test split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from tenfold import device, insights
from tenfold.certify import record_opening
from tenfold.data.split import Split
from tenfold.engine import GraphError, Runner, open_session, run_in_batches
from tenfold.errors import TenfoldError, WorkloadError
from tenfold.execute import OperatingPoint, plain_session, ratio_of
from tenfold.measure import calls_for, interleave
from tenfold.store import cache_dir, file_hash
from tenfold.verdict import COST_BAR, Decision, certify, quality_difference
from tenfold.workload import Workload, find, load

ROUNDS, SECONDS, CALLS = 5, 6.0, 2_000


def compare(
    a: str | Path, b: str | Path, workload: Workload | str, *, data: str | Path | None = None, margin: float | None = None, cheaper: bool = True
) -> dict[str, Any]:
    """Is B as good as A within the margin, and is it cheaper? Opens the test split, and counts that.

    Args:
        a: the ONNX model that is trusted; b: the one that would replace it. Both take the workload's
            inputs as they are stored, and give its outputs.
        cheaper: whether B has to be cheaper as well.

    Returns:
        JSON: quality_difference, cost_ratio, slices, agreement, disagreements, verdict, reason,
        exit_code (0 as good and cheaper, 3 otherwise), test_openings, environment.

    Raises:
        TenfoldError: a model cannot be run on the workload's inputs, or its output does not fit the metric.
    """
    task = find(workload, None if data is None else Path(data)) if isinstance(workload, str) else workload
    wanted = task.margin if margin is None else margin
    if not 0 < wanted < float("inf"):
        raise WorkloadError(f"margin is {wanted}: it must be above 0, in units of the metric")
    examples = load(task)
    masks = insights.slice_masks(task, examples.test, examples.labels, examples.classes)
    insights.check_slices(masks, task)
    point, test = OperatingPoint.of("serve"), examples.test
    assert test.targets is not None
    runners = {name: _open(Path(path), test) for name, path in (("a", a), ("b", b))}
    openings = record_opening(cache_dir() / "openings", test.identity, f"compare {file_hash(Path(a))} {file_hash(Path(b))}")
    outputs = {name: run_in_batches(run, test.inputs, point.batch) for name, run in runners.items()}
    if outputs["a"].shape != outputs["b"].shape:
        raise TenfoldError(f"A gives shape {outputs['a'].shape}, B {outputs['b'].shape}: they must answer alike to be compared")
    scores = {name: task.scores(out, test.targets) for name, out in outputs.items()}
    absolute = wanted * abs(float(scores["a"].mean())) if task.margin_kind == "relative" else wanted
    quality = quality_difference(scores["a"], scores["b"], groups=test.groups)
    calls = calls_for(runners, test.inputs, batch=1, rounds=ROUNDS, seconds=SECONDS, most=CALLS)
    samples = interleave(runners, test.inputs, batch=point.batch, rounds=ROUNDS, calls=calls)
    cost = ratio_of(samples["a"], samples["b"], "cpu")
    verdict = certify(quality, absolute, len(test))
    slices = insights.slices(masks, task, test, scores["a"], scores["b"])
    decision, reason = verdict.decision, verdict.reason
    if (broken := next((r["name"] for r in slices if r["held"] is False), None)) is not None and decision is Decision.TAKE:
        decision, reason = Decision.INCONCLUSIVE, f"slice {broken!r} does not keep its margin"
    elif cheaper and decision is Decision.TAKE and cost.low < COST_BAR:
        decision, reason = Decision.REFUSE, f"as good ({reason}), but not shown to be cheaper"
    classes = task.classifies and outputs["a"].ndim == 2 and test.targets.ndim == 1
    return {
        "schema": 1,
        "a": str(a),
        "b": str(b),
        "workload": task.name,
        "metric": task.metric_name,
        "margin": absolute,
        "n": len(test),
        "unit": "CPU-seconds a prediction, batch 1 on one thread",
        "quality": {"a": float(scores["a"].mean()), "b": float(scores["b"].mean())},
        "quality_difference": quality.to_json(),
        "cost_ratio": cost.to_json(),
        "costs": {name: s.microseconds() for name, s in samples.items()},
        "slices": slices,
        "agreement": insights.agreement(outputs["a"], outputs["b"], test.targets) if classes else None,
        "disagreements": insights.disagreements(outputs["a"], outputs["b"], test, examples.labels, with_images=False) if classes else [],
        "verdict": str(decision),
        "reason": reason,
        "exit_code": 0 if decision is Decision.TAKE else 3,
        "test_openings": openings,
        "notices": list(examples.notes),
        "environment": device.environment(),
    }


def _open(path: Path, test: Split) -> Runner:
    if not path.is_file():
        raise TenfoldError(f"{path} does not exist: name an ONNX file")
    runner = open_session(path, plain_session())
    inputs = ", ".join(f"{x.dtype} (n, {', '.join(map(str, x.shape[1:]))})" for x in test.inputs)
    graph = onnx.load(path, load_external_data=False).graph
    count = len({i.name for i in graph.input} - {i.name for i in graph.initializer})  # older files name their weights as inputs too
    if count != len(test.inputs):
        raise TenfoldError(f"{path} takes {count} inputs, the workload has {len(test.inputs)}, {inputs}: export it with them")
    try:
        runner([x[:1] for x in test.inputs])
    except GraphError as error:
        raise TenfoldError(f"{path} does not take the workload's inputs, {inputs} ({error}): export it with them") from error
    return runner
