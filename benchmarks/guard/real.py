"""The guard end to end with every lever on: short runs on a table that is made, whose truth is looked up on fresh examples.

    python benchmarks/guard/real.py [--runs 200] [--jobs 2] [--continue] [--out records/guard/real.json]

Each run has a task of its own (another draw of examples), trains its baseline and its candidates for real, and certifies or refuses. Then
baseline and certified candidate answer 100,000 examples that nothing has seen. A breach is a certified candidate whose true
difference is below −margin. Finished runs are kept in the work folder, by the code that made them, so that a benchmark that was stopped goes on;
with `--continue` rows of the record count too, from another machine and whatever code made them (each row names it). Each run has one core; candidates are timed for a shorter time than usual (`time_briefly`), so that
levers that train get most of a short budget.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import tenfold
from tenfold import TrainConfig, Workload, device, execute, final, joint, lever, pipeline, run, search
from tenfold.build import Builder
from tenfold.bundle import Bundle
from tenfold.data.split import Split
from tenfold.engine import open_session, run_in_batches
from tenfold.execute import plain_session
from tenfold.plan import Plan
from tenfold.store import Store, cache_dir, write_atomic
from tenfold.workload import load

sys.path.insert(0, str(Path(__file__).parent))
from rules import measured_rate

MARGIN, BUDGET, FRESH = 0.02, 75.0, 100_000
SIZES = {"train": 800, "valid": 500, "confirm": 500, "test": 1_500}
FEATURES, CLASSES, CENTRES, WIDTH = 32, 4, 24, 512
SETTINGS = {"margin": MARGIN, "budget": BUDGET, "fresh": FRESH, "sizes": SIZES, "features": FEATURES, "classes": CLASSES, "centres": CENTRES, "width": WIDTH}
BAR = 0.05
CODE = hashlib.blake2b(b"".join(p.read_bytes() for p in sorted(Path(tenfold.__file__).parent.rglob("*.py"))), digest_size=6).hexdigest()
"""Which code makes a run."""


def net() -> nn.Module:
    sizes = [FEATURES, WIDTH, WIDTH, WIDTH]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def draw(n: int, rng: np.random.Generator) -> Split:
    """Rows (n, FEATURES) around centres that belong to classes by turns, under noise that is strong in half of them."""
    centres = 0.9 * np.random.default_rng(0).normal(size=(CENTRES, FEATURES))
    of = rng.integers(0, CENTRES, n)
    noise = rng.choice([0.6, 1.4], n)[:, None] * rng.normal(size=(n, FEATURES))
    return Split(inputs=((centres[of] + noise).astype(np.float32),), targets=(of % CLASSES).astype(np.int64))


def task(seed: int) -> Workload:
    rng = np.random.default_rng([1, seed])
    splits = {name: draw(n, rng) for name, n in SIZES.items()}
    return Workload(
        name=f"table-{seed}", model=net, margin=MARGIN, training=TrainConfig(epochs=8, batch_size=50, learning_rate=3e-3), **splits
    )


def time_briefly() -> None:
    """What is at stake is quality: costs may be known less well."""
    search.SCREEN_SECONDS = 0.15
    search.FULL_SECONDS = pipeline.FULL_SECONDS = final.SECONDS = 0.3
    lever.SIZING_SECONDS = 0.3
    joint.LEAST_SECONDS = 10.0
    execute.LEAST_INPUTS = pipeline.LEAST_INPUTS = 500


def work_on_a_core(cores: Any) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.sched_setaffinity(0, {cores.get()})
    time_briefly()


def end_with_parent() -> None:
    """A parent that is killed leaves no run behind, which would go on for a minute on a core that others time on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def one(seed: int, folder: Path) -> dict[str, Any]:
    """A run, and the truth about what it certified."""
    workload = task(seed)
    result = run(workload, budget=BUDGET, seed=seed, out=folder, view="quiet", resume=(folder / "ledger.jsonl").exists())
    row: dict[str, Any] = {"seed": seed, "code": CODE, "cpu_class": device.cpu_class(), "certified": result.exit_code == 0, "candidates": len(result.document["candidates"])}
    fresh = draw(FRESH, np.random.default_rng([2, seed]))
    builder = Builder(workload, load(workload), Store(cache_dir() / "steps"), seed=seed, threads=device.cores())
    plain = builder.graph(Plan(training=workload.training, seed=seed, session=plain_session())).path / "model.onnx"

    def right(runner: Any) -> np.ndarray:
        return run_in_batches(runner, fresh.inputs, 64).argmax(1) == fresh.targets

    base = right(open_session(plain, plain_session()))
    row["baseline"] = float(base.mean())
    if row["certified"]:
        certified = result.document["certified"]
        bundle = Bundle.load(folder / "bundle")
        true = right(open_session(bundle.path / "model.onnx", bundle.session)).astype(float) - base
        row |= {
            "label": certified["label"], "gain": result.document["gain"]["serve"]["value"],
            "on_test": certified["quality_difference"], "true": float(true.mean()), "standard_error": float(true.std() / FRESH**0.5),
        }  # fmt: skip
    return row


def recorded(out: Path) -> dict[int, dict[str, Any]]:
    """Rows of the record so far, by seed.

    Raises:
        SystemExit: there are none, or they come of other settings.
    """
    if not out.exists():
        raise SystemExit(f"there is no {out} to go on from: begin anew, without --continue")
    record = json.loads(out.read_text())
    if record["settings"] != SETTINGS:
        raise SystemExit(f"{out} was made with other settings: begin anew, without --continue")
    return {row["seed"]: row for row in record["rows"]}


def finished(work: Path, known: dict[int, dict[str, Any]], seed: int) -> dict[str, Any]:
    """The row of a run: of those that are known, or from its file where it was finished before."""
    if seed in known:
        return known[seed]
    path = work / f"{seed}.json"
    if not path.exists():
        write_atomic(path, json.dumps(one(seed, work / str(seed))))
    row: dict[str, Any] = json.loads(path.read_text())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--continue", action="store_true", dest="goes_on", help="count rows of the record")
    parser.add_argument("--work", type=Path, default=Path("runs/guard-real"))
    parser.add_argument("--out", type=Path, default=Path("records/guard/real.json"))
    arguments = parser.parse_args()
    work = arguments.work / CODE
    work.mkdir(parents=True, exist_ok=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    known = recorded(arguments.out) if arguments.goes_on else {}
    os.environ |= {"OMP_NUM_THREADS": "1", "TENFOLD_CACHE": str((work / "cache").resolve())}
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in sorted(os.sched_getaffinity(0))[: arguments.jobs]:
        cores.put(core)
    with ProcessPoolExecutor(arguments.jobs, context, work_on_a_core, (cores,)) as pool:
        rows: list[dict[str, Any]] = []
        for row in pool.map(partial(finished, work, known), range(arguments.runs)):
            rows.append(row)
            print(f"{row['seed']}: {row.get('label', 'nothing certified')} true {row.get('true', 0):+.4f}", flush=True)
            if len(rows) >= len(known):
                write_atomic(arguments.out, json.dumps(record_of(rows)))
    record = record_of(rows)
    rate = record["rate"]
    print(f"{record['certified']} of {len(rows)} runs, made by {record['codes']} versions of the code, certified a candidate; "
          f"{record['breaches']} breaches: {rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%}), bar {BAR:.0%}")  # fmt: skip
    kinds = {name: sum(name in r.get("label", "") for r in rows) for name in ("distill", "prune", "quantize", "cascade")}
    print("levers in what was certified: " + ", ".join(f"{k} {v}" for k, v in kinds.items()))
    sys.exit(rate["value"] > BAR)


def record_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    certified = [r for r in rows if r["certified"]]
    breaches = sum(r["true"] < -MARGIN for r in certified)
    return {
        "runs": len(rows), "certified": len(certified), "breaches": breaches, "rate": measured_rate(breaches, len(rows)).to_json(), "bar": BAR,
        "codes": len({r.get("code") for r in rows}), "settings": SETTINGS, "rows": rows, "environment": device.environment(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
