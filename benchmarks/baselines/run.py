"""Chooses the size of a built-in baseline: the cheapest to serve that reaches the bar on valid.

    python benchmarks/baselines/run.py [--data DIR] [--out records/baselines/fashion-mnist.json]

Trains every size of the family (resumable: finished and half-finished trainings lie in the cache), times
all of them together, and writes the record. Test is scored for the chosen size alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tenfold import device
from tenfold.build import Builder
from tenfold.execute import Evaluator, as_json, plain_session
from tenfold.plan import Plan
from tenfold.store import Store, cache_dir, write_atomic
from tenfold.workload import load
from tenfold.workloads import fashion_mnist as family


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST")
    parser.add_argument("--widths", type=int, nargs="+", default=family.WIDTHS, help="train these first, in this order")
    parser.add_argument("--out", type=Path, default=Path("records/baselines/fashion-mnist.json"))
    arguments = parser.parse_args()

    sizes, evaluators = {}, {}
    for width in sorted(family.WIDTHS, key=lambda w: list(arguments.widths).index(w) if w in arguments.widths else w):
        workload = family.workload(arguments.data, width=width)
        builder = Builder(
            workload, load(workload), Store(cache_dir() / "steps"), seed=0, threads=device.cores(), note=_note(width)
        )
        plan = Plan(training=workload.training, session=plain_session())
        evaluator = Evaluator(builder, plan, "serve")
        trained = builder.trained(plan)
        evaluators[width] = (evaluator, plan)
        sizes[width] = {
            "width": width,
            "parameters": sum(p.numel() for p in workload.model().parameters()),
            "valid": float(evaluator.scores(plan, "valid").mean()),
            "training": {k: trained.meta[k] for k in ("steps", "seconds", "cpu_seconds", "losses")},
            "training_config": trained.meta["key"]["training"],
        }
        print(f"width {width}: {sizes[width]['valid']:.4f} on valid", flush=True)

    samples = _time_together(evaluators)
    for width, row in sizes.items():
        row["serving"] = samples[str(width)].microseconds()
    able = [w for w in family.WIDTHS if sizes[w]["valid"] >= family.BAR]
    chosen = min(able, key=lambda w: sizes[w]["serving"]["cpu_mean"]) if able else None
    test = None
    if chosen is not None:
        evaluator, plan = evaluators[chosen]
        test = float(evaluator.scores(plan, "test").mean())
    record = {
        "workload": "fashion-mnist", "bar_on_valid": family.BAR, "chosen": chosen, "test_of_chosen": test,
        "sizes": list(sizes.values()), "environment": device.environment(), "samples": as_json(samples),
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(arguments.out, json.dumps(record))
    for row in sizes.values():
        print(f"width {row['width']}: valid {row['valid']:.4f}, {row['parameters']:,} parameters, relative cost "
              f"{row['serving']['cpu_mean'] / sizes[family.WIDTHS[0]]['serving']['cpu_mean']:.2f}")  # fmt: skip
    print(f"chosen: {chosen} (test {test})" if chosen else f"none reaches {family.BAR}")


def _time_together(evaluators):  # type: ignore[no-untyped-def]
    """Sizes are different workloads to a builder: time their graphs in one interleaved run."""
    from tenfold.engine import open_session
    from tenfold.measure import interleave

    evaluator = next(iter(evaluators.values()))[0]
    runners = {str(w): open_session(e.builder.graph(p).path / "model.onnx", p.session) for w, (e, p) in evaluators.items()}
    return interleave(runners, evaluator.builder.examples.test.inputs, batch=1, rounds=5, calls=400)


def _note(width: int):  # type: ignore[no-untyped-def]
    last = [-1]

    def note(activity: str, share: float) -> None:
        if int(share * 20) != last[0]:
            last[0] = int(share * 20)
            print(f"width {width}: {activity} {share:.0%}", flush=True)

    return note


if __name__ == "__main__":
    main()
