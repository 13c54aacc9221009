"""Tenfold beside its peers, from one trained baseline.

    python benchmarks/peers/run.py WORKLOAD RUN --peer nncf=nncf/bin/python --peer inc=inc/bin/python

RUN is a finished run of the workload. Each peer makes its model in an environment of its own, then every side is a process of its own
(`worker.py`); they are timed in turns, block by block, on the same test images. Quality is paired against plain onnxruntime.
"""

from __future__ import annotations

import argparse
import gzip
import inspect
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold import device
from tenfold.build import Builder
from tenfold.bundle import Bundle
from tenfold.certify import record_opening
from tenfold.execute import as_json, plain_session, ratio_of
from tenfold.measure import BLOCK, Samples
from tenfold.plan import Plan
from tenfold.store import Store, cache_dir, write_atomic
from tenfold.verdict import quality_difference
from tenfold.workload import find, load

sys.path.insert(0, str(Path(__file__).parents[1] / "baselines"))
import kept

HERE = Path(__file__).parent
CALIBRATION = 512
ROUNDS = 5
CALLS = {1: 2_000, 64: 64}
"""Calls a round, by batch."""


class Side:
    """A worker process."""

    def __init__(self, python: str, kind: str, path: Path, inputs: Path, *, threads: int, batch: int) -> None:
        """
        Raises:
            RuntimeError: it cannot load or run its model; with the last line of what it said.
        """
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read if it ends
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=self.errors
        )
        began = time.perf_counter()
        self.ask({"load": kind, "path": str(path), "threads": threads, "inputs": str(inputs), "batch": batch})
        self.seconds_to_load = time.perf_counter() - began

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(command), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            what = "loading it" if "load" in command else "running it"
            raise RuntimeError(f"{what}: {last_error(self.errors.read())}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workload")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--peer", action="append", default=[], help="nncf=PYTHON or inc=PYTHON")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    peers = {name: str(Path(python).absolute()) for name, _, python in (p.partition("=") for p in arguments.peer)}  # not resolved: an environment's python is a link

    result = json.loads((arguments.run / "result.json").read_text())
    workload = find(arguments.workload, arguments.data)
    examples = load(workload)
    builder = Builder(workload, examples, Store(cache_dir() / "steps"), seed=result["seed"], threads=device.cores())
    if result["workload"]["identity"] != builder.workload_id:
        raise SystemExit("that run was of another workload, or of the same with other code or data: run it again")
    kept.baseline(builder)
    baseline = Plan(training=workload.training, seed=result["seed"], session=plain_session())
    bundle = Bundle.load(arguments.run / "bundle")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sides, made = make_all(builder, baseline, bundle, peers, folder, result["workload"]["margin_absolute"])
        np.save(folder / "test.npy", examples.test.inputs[0])
        record_opening(cache_dir() / "openings", examples.test.identity, f"peers {result['created']} {result['command']}")
        points = {}
        for batch, threads in ((1, 1), (64, device.cores())):
            points[batch] = measure(sides, made, folder, batch=batch, threads=threads)
        scores = {name: workload.scores(np.load(folder / f"{name}.answers.npy"), examples.test.targets) for name in sides}
    made["tenfold"] = {"seconds": result["spent"]["search_seconds"], "lines": user_lines(inspect.getsource(_module(arguments.workload).workload))}
    rows = {}
    for name in sides:
        quality = quality_difference(scores["onnxruntime"], scores[name])
        rows[name] = {
            "quality_difference": quality.to_json(), "keeps_margin": quality.low >= -result["workload"]["margin_absolute"],
            **{f"batch {b}": {k: ratio_of(s["onnxruntime"], s[name], k).to_json() for k in ("cpu", "wall")} for b, s in points.items()},
            **made.get(name, {}),
        }  # fmt: skip
    able = [n for n in rows if n != "tenfold" and rows[n]["keeps_margin"]]  # plain onnxruntime is one of them
    best = max(able, key=lambda n: rows[n]["batch 1"]["cpu"]["value"])
    advantage = ratio_of(points[1][best], points[1]["tenfold"], "cpu")
    record = {
        "workload": workload.name, "rows": rows, "failed": {n: m["failed"] for n, m in made.items() if "failed" in m}, "best_peer": best, "tenfold_over_best_peer": advantage.to_json(),
        "environment": device.environment(),
    }  # fmt: skip
    target = arguments.out or Path("records/peers") / f"{workload.name}.{record['environment']['cpu_class']}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    samples = json.dumps({str(b): as_json(s) for b, s in points.items()}).encode()
    write_atomic(target.with_suffix(".samples.json.gz"), gzip.compress(samples, mtime=0))
    write_atomic(target, json.dumps(record))
    for name, row in rows.items():
        one, many, q = row["batch 1"]["cpu"], row["batch 64"]["wall"], row["quality_difference"]
        print(
            f"{name:<26} {one['value']:6.2f}× ({one['low']:.2f} to {one['high']:.2f})  batch 64 {many['value']:5.2f}×  "
            f"{q['value']:+.4f} ({q['low']:+.4f} to {q['high']:+.4f}){'' if row['keeps_margin'] else ' NOT within the margin'}  "
            f"{row.get('seconds', 0):6.0f} s  {row.get('lines', '')} lines"
        )
    print(f"tenfold is {advantage.value:.2f}× ({advantage.low:.2f} to {advantage.high:.2f}) cheaper than {best}, the best peer that keeps the margin")


def make_all(
    builder: Builder, baseline: Plan, bundle: Bundle, peers: Mapping[str, str], folder: Path, margin: float
) -> tuple[dict[str, tuple[str, str, Path]], dict[str, dict[str, Any]]]:
    """What each side is served with: (interpreter, kind, file); and what making it took."""
    examples, here = builder.examples, sys.executable
    plain = builder.graph(baseline).path / "model.onnx"
    rows = np.random.default_rng(0).permutation(len(examples.split("train")))[:CALIBRATION]
    np.save(folder / "calibration.npy", examples.split("train").inputs[0][rows])
    np.save(folder / "valid.npy", examples.valid.inputs[0])
    np.save(folder / "targets.npy", examples.valid.targets)
    model = builder.load(baseline)
    one = torch.from_numpy(examples.valid.inputs[0][:2])
    torch.export.save(torch.export.export(model, (one,), dynamic_shapes=(({0: torch.export.Dim("batch")},),)), folder / "baseline.pt2")

    data = [folder / "calibration.npy", folder / "valid.npy", folder / "targets.npy", margin]
    session = bundle.session
    tenfold = f"openvino-{session.precision}" if session.engine == "openvino" else f"onnxruntime-{session.graph_optimization}"
    sides = {
        "onnxruntime": (here, "onnxruntime-all", plain),
        "torch.compile": (here, "torch", folder / "baseline.pt2"),
        "tenfold": (here, tenfold, bundle.path / "model.onnx"),
    }
    jobs = {f"onnxruntime-int8-{bits}bit": (here, "make_onnxruntime.py", "onnxruntime-all", [plain, folder / "calibration.npy", folder / f"int8-{bits}.onnx", bits]) for bits in (8, 7)}
    if "nncf" in peers:
        jobs["nncf"] = (peers["nncf"], "make_nncf.py", "openvino-float32", [plain, *data, folder / "nncf.xml"])
    if "inc" in peers:
        jobs["inc"] = (peers["inc"], "make_inc.py", "torch", [folder / "baseline.pt2", *data, folder / "inc.pt2"])
    # an export, and a call of torch.compile, which compiles where it is loaded
    made: dict[str, dict[str, Any]] = {"onnxruntime": {"seconds": builder.graph(baseline).meta["seconds"], "lines": 1}, "torch.compile": {"lines": 1}}
    for name, (python, script, kind, given) in jobs.items():
        began = time.perf_counter()
        print(f"{name}: making it", flush=True)
        done = subprocess.run([python, str(HERE / script), *map(str, given)], cwd=folder, capture_output=True, text=True, check=False)
        made[name] = {"seconds": time.perf_counter() - began, "lines": user_lines((HERE / script).read_text())}
        out = next(g for g in reversed(given) if isinstance(g, Path))
        if done.returncode or not out.exists():
            made[name]["failed"] = f"making it: {last_error(done.stderr)}"
            print(f"{name} failed: {made[name]['failed']}", flush=True)
            continue
        sides[name] = (python if kind == "torch" else here, kind, out)
        if name == "nncf":
            sides["nncf-default-precision"] = (here, "openvino-default", out)
            made["nncf-default-precision"] = made[name]
    return sides, made


def last_error(stderr: str) -> str:
    """The last line that names an exception: the first one after a traceback that is not indented; else the last that there is."""
    lines = stderr.strip().splitlines() or ["it wrote nothing"]
    begins = max((i for i, line in enumerate(lines) if line.startswith("Traceback")), default=len(lines))
    return next((line for line in lines[begins + 1 :] if re.match(r"[\w.]+(: |$)", line)), lines[-1])[:300]


def measure(
    sides: dict[str, tuple[str, str, Path]], made: dict[str, dict[str, Any]], folder: Path, *, batch: int, threads: int
) -> dict[str, Samples]:
    """Time all sides in turns; at batch 1 their answers on test are left in the folder. One that cannot run is dropped, with its reason in `made`."""
    running: dict[str, Side] = {}
    for name, (python, kind, path) in list(sides.items()):
        try:
            running[name] = Side(python, kind, path, folder / "test.npy", threads=threads, batch=batch)
        except RuntimeError as error:
            made.setdefault(name, {})["failed"] = str(error)
            print(f"{name} failed: {error}", flush=True)
            del sides[name]
        else:
            made.setdefault(name, {}).setdefault("seconds", running[name].seconds_to_load)
    names, calls = list(running), CALLS[batch]
    cpu = {n: np.zeros((ROUNDS, calls), dtype=np.int64) for n in names}
    wall = {n: np.zeros((ROUNDS, calls), dtype=np.int64) for n in names}
    try:
        for r in range(ROUNDS):
            for first in range(0, calls, BLOCK):
                last = min(first + BLOCK, calls)
                for name in names[r % len(names) :] + names[: r % len(names)]:
                    answer = running[name].ask({"block": [first, last], "batch": batch})
                    cpu[name][r, first:last], wall[name][r, first:last] = answer["cpu"], answer["wall"]
        if batch == 1:
            for name, side in running.items():
                side.ask({"answer": str(folder / f"{name}.answers.npy"), "batch": 1})
    finally:
        for side in running.values():
            side.close()
    return {n: Samples(cpu=cpu[n], wall=wall[n], batch=batch) for n in names}


def user_lines(source: str) -> int:
    """Lines of code between the marks, or all; no blank ones, comments or docstrings."""
    body = source.partition("# --- what a user writes\n")[2].partition("# ---")[0] or source
    lines = [line.strip() for line in body.splitlines()]
    return sum(bool(line) and not line.startswith(("#", '"""')) for line in lines)


def _module(name: str) -> Any:
    return import_module(f"tenfold.workloads.{name.replace('-', '_')}")


if __name__ == "__main__":
    main()
