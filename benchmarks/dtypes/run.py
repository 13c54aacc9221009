"""What bfloat16 is worth to students: the cost of their training steps, and their quality after a training.

    python benchmarks/dtypes/run.py [fashion-mnist|cifar10] [--epochs 8] [--data DIR]

Steps in both dtypes are timed in turns. Then each student is trained in both, from the same seed, on what the baseline answers, and the two
are compared on valid. Writes records/dtypes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

from tenfold import device
from tenfold.build import Builder
from tenfold.execute import Evaluator, as_json, plain_session, ratio_of
from tenfold.lever import apply_all
from tenfold.levers.distill import DistillConfig, families
from tenfold.levers.distill.students import ImageStudent, image_student
from tenfold.plan import Plan
from tenfold.recipe import Pull
from tenfold.store import Store, cache_dir, write_atomic
from tenfold.verdict import quality_difference
from tenfold.workload import find, load

sys.path.insert(0, str(Path(__file__).parents[1] / "baselines"))
import kept

STUDENTS = {
    "small": ImageStudent(width=24, depth=0, stem="stride2", operator="dense", smallest=2),
    "middle": ImageStudent(width=32, depth=1, stem="pooled", operator="dense", smallest=2),
    "separable": ImageStudent(width=48, depth=1, stem="pooled", operator="separable", smallest=2),
}
DTYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workload", nargs="?", choices=["fashion-mnist", "cifar10"], default="fashion-mnist")
    parser.add_argument("--epochs", type=float, default=8.0)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    workload = find(arguments.workload, arguments.data)
    builder = Builder(workload, load(workload), Store(cache_dir() / "steps"), seed=0, threads=device.cores())
    kept.baseline(builder)
    baseline = Plan(training=workload.training, session=plain_session())
    valid = builder.examples.valid
    _, channels, side, _ = valid.inputs[0].shape

    rows, samples = [], {}
    for name, spec in STUDENTS.items():
        student = dataclasses.replace(workload, model=partial(image_student, spec, channels, side, (len(workload.labels or ()),)))
        timer = Evaluator(Builder(student, builder.examples, builder.store, seed=0, threads=device.cores()), baseline, "train")
        samples[name], _ = timer.training_costs({d: dataclasses.replace(workload.training, dtype=d) for d in DTYPES})
        faster = ratio_of(samples[name]["float32"], samples[name]["bfloat16"], "wall")
        family = {"family": "image", **dataclasses.asdict(spec)}
        config = DistillConfig(
            student=family, epochs=arguments.epochs, learning_rate=families.learning_rate(family, workload.training), dtype="float32"
        )  # fmt: skip
        scores = []
        for dtype in DTYPES:
            plan = apply_all(baseline, [Pull("distill", dataclasses.asdict(config) | {"dtype": dtype})])
            scores.append(workload.scores(builder.outputs(plan, valid, 64), valid.targets))
        difference = quality_difference(*scores)
        rows.append({"student": name, "spec": family, "step_ratio": faster.to_json(), "quality": float(scores[0].mean()), "difference": difference.to_json()})
        print(
            f"{name:<10} steps {faster.value:.2f}× faster in bfloat16 ({faster.low:.2f} to {faster.high:.2f}), "
            f"quality {scores[0].mean():.4f}, {difference.value:+.4f} in bfloat16 ({difference.low:+.4f} to {difference.high:+.4f})",
            flush=True,
        )
    target = Path("records/dtypes") / f"{workload.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "workload": workload.name, "epochs": arguments.epochs, "rows": rows, "environment": device.environment(),
        "samples": {name: as_json(s) for name, s in samples.items()},
    }  # fmt: skip
    write_atomic(target, json.dumps(record))


if __name__ == "__main__":
    main()
