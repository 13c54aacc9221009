"""Chooses the size of a built-in baseline: the cheapest to serve that reaches the bar on held-out training images.

    python benchmarks/baselines/run.py [fashion-mnist|cifar10] [--data DIR] [--out records/baselines/WORKLOAD.json]

All sizes of the family are timed together, untrained: what a net costs does not depend on its weights.
Then they are trained from the cheapest up, until one reaches the bar (finished and half-finished trainings
lie in the cache: a run that was stopped goes on). The bar is on valid and confirm together; test is stated
for every size that was trained, and decides nothing. The weights of the size that is chosen, or of the best where
none reaches the bar, are kept beside the record, for other benchmarks to begin with (`kept.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tenfold import device
from tenfold.build import Builder
from tenfold.certify import record_opening
from tenfold.engine import open_session
from tenfold.execute import Evaluator, as_json, plain_session
from tenfold.export import Normalize, Served, export
from tenfold.measure import Samples, interleave
from tenfold.plan import Plan
from tenfold.store import Step, Store, cache_dir, write_atomic
from tenfold.workload import Workload, load

sys.path.insert(0, str(Path(__file__).parent))
import kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workload", nargs="?", choices=["fashion-mnist", "cifar10"], default="fashion-mnist")
    parser.add_argument("--data", type=Path, help="folder of the data set")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    family = import_module(f"tenfold.workloads.{arguments.workload.replace('-', '_')}")
    out = arguments.out or Path("records/baselines") / f"{arguments.workload}.json"

    samples = time_untrained(family)
    costs = {width: samples[str(width)].microseconds() for width in family.WIDTHS}
    widths = sorted(family.WIDTHS, key=lambda w: costs[w]["cpu_mean"])
    rows = [{"width": w, "parameters": sum(p.numel() for p in family.model(w).parameters()), "serving": costs[w]} for w in widths]
    record = {"workload": arguments.workload, "bar_on_held_out": family.BAR, "chosen": None, "sizes": rows}
    record |= {"environment": device.environment(), "samples": as_json(samples)}
    out.parent.mkdir(parents=True, exist_ok=True)
    for row in rows:
        builder, step = train(family.workload(arguments.data, width=row["width"]), row)
        if row["held_out"] == max(r.get("held_out", 0) for r in rows):  # one that reaches the bar is ahead of those that did not
            kept.keep(builder, step, out.parent)
        if row["held_out"] >= family.BAR:
            record["chosen"] = row["width"]
        write_atomic(out, json.dumps(record))  # at once: the next size may take hours
        if record["chosen"]:
            break
    for row in rows:
        quality = f"{row['held_out']:.4f} held out, {row['test']:.4f} on test" if "test" in row else "not trained: dearer than one that reaches the bar"
        print(f"width {row['width']}: {row['parameters']:,} parameters, "
              f"relative cost {row['serving']['cpu_mean'] / rows[0]['serving']['cpu_mean']:.2f}, {quality}")  # fmt: skip
    print(f"chosen: {record['chosen']}" if record["chosen"] else f"none reaches {family.BAR}")


def train(workload: Workload, row: dict[str, Any]) -> tuple[Builder, Step]:
    """Trains a size, and writes into its row what came out."""
    builder = Builder(workload, load(workload), Store(cache_dir() / "steps"), seed=0, threads=device.cores(), note=_note(row["width"]))
    plan = Plan(training=workload.training, session=plain_session())
    evaluator = Evaluator(builder, plan, "serve")
    step = builder.trained(plan)
    record_opening(cache_dir() / "openings", builder.examples.test.identity, f"baselines {builder.workload_id}")
    scores = {split: evaluator.scores(plan, split) for split in ("valid", "confirm", "test")}
    row |= {
        "held_out": float(np.concatenate([scores["valid"], scores["confirm"]]).mean()),
        "test": float(scores["test"].mean()),
        "training": {k: step.meta[k] for k in ("steps", "seconds", "cpu_seconds", "losses")},
        "training_config": step.meta["key"]["training"],
    }
    print(f"width {row['width']}: {row['held_out']:.4f} held out, {row['test']:.4f} on test", flush=True)
    return builder, step


def time_untrained(family: ModuleType) -> dict[str, Samples]:
    """The sizes' graphs in plain onnxruntime at batch 1 on one thread, interleaved, on random images."""
    images = np.random.default_rng(0).integers(0, 256, (400, *family.SHAPE)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        runners = {}
        for width in family.WIDTHS:
            path = Path(scratch) / f"{width}.onnx"
            export(Served(family.model(width), Normalize(np.atleast_1d(family.MEAN).tolist(), np.atleast_1d(family.STD).tolist())), [images[:64]], path)
            runners[str(width)] = open_session(path, plain_session())
        return interleave(runners, [images], batch=1, rounds=5, calls=400)


def _note(width: int):  # type: ignore[no-untyped-def]
    last = [-1]

    def note(activity: str, share: float) -> None:
        if int(share * 20) != last[0]:
            last[0] = int(share * 20)
            print(f"width {width}: {activity} {share:.0%}", flush=True)

    return note


if __name__ == "__main__":
    main()
