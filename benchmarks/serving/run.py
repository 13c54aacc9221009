"""Tenfold's server beside KServe's, MLServer's and one that checks nothing: see README.md.

    python benchmarks/serving/run.py BUNDLE [--peer kserve=PYTHON] [--peer mlserver=PYTHON] [--rounds 10] [--seconds 4]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tenfold import device
from tenfold.bundle import Bundle
from tenfold.engine import open_session
from tenfold.serve.protocol import TensorSpec
from tenfold.store import write_atomic
from tenfold.verdict import student_quantile

HERE = Path(__file__).parent
CONNECTIONS = (16, 1)
START_SECONDS = 120.0
LEVEL = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path("records/serving"))
    given = parser.parse_args()
    bundle = Bundle.load(given.bundle)
    peers = {name: str(Path(python).absolute()) for name, python in (p.split("=", 1) for p in given.peer)}
    with tempfile.TemporaryDirectory() as aside:
        sides: list[Side] = []
        try:
            for name in ("tenfold", "bare", *peers):
                sides.append(side(name, given.bundle, Path(aside), peers))
                sides[-1].wait()
            samples = {c: in_turns(sides, c, given.rounds, given.seconds, Path(aside), bundle) for c in CONNECTIONS}
            memory = {one.name: one.resident() for one in sides}
        finally:
            for one in sides:
                one.end()
    document = {
        "schema": 1, "model": bundle.manifest.get("workload"), "graph": bundle.manifest["files"]["model.onnx"], "rounds": given.rounds, "seconds": given.seconds,
        "call_microseconds": call(bundle), "start_seconds": {one.name: one.started for one in sides}, "resident_bytes": memory,
        "throughput": {n: ratio([r["per_second"] for r in samples[16]["tenfold"]], [r["per_second"] for r in rounds]) for n, rounds in samples[16].items() if n != "tenfold"},
        "latency": {n: float(np.median([r["p50_ms"] for r in rounds])) for n, rounds in samples[1].items()}, "samples": samples, "environment": device.environment(),
    }  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    write_atomic(given.out / f"{device.cpu_class()}.json", json.dumps(document, indent=1))
    show(document)


class Side:
    """A server."""

    def __init__(self, name: str, command: Sequence[str], port: int, path: str, token: str | None = None, cwd: Path | None = None) -> None:
        self.name, self.port, self.path, self.token = name, port, path, token
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read if it ends
        self.began = time.perf_counter()
        self.started = math.nan
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"})

    def wait(self) -> None:
        """
        Raises:
            RuntimeError: it does not start.
        """
        while time.perf_counter() - self.began < START_SECONDS:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=5) as answer:
                    if answer.status == 200:
                        self.started = time.perf_counter() - self.began
                        return
            except (OSError, urllib.error.URLError):
                time.sleep(0.02)
            if self.process.poll() is not None:
                break
        self.log.seek(0)
        raise RuntimeError(f"{self.name} does not start: {self.log.read()[-2000:]}")

    def resident(self) -> int:
        """Bytes, of the process and its children."""
        pids = [self.process.pid]
        for pid in pids:
            children = Path(f"/proc/{pid}/task/{pid}/children")
            pids += [int(c) for c in children.read_text().split()] if children.exists() else []
        return sum(1024 * int(next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")).split()[1]) for pid in pids)

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def side(name: str, bundle: Path, aside: Path, peers: dict[str, str]) -> Side:
    port, graph, path = free_port(), str((bundle / "model.onnx").resolve()), "/v2/models/model/infer"
    if name == "tenfold":
        token = secrets.token_hex(32)
        (aside / "token").write_text(f"{token}\n")
        return Side(name, [sys.executable, "-m", "tenfold.serve", f"model={bundle}", f"--port={port}", f"--metrics-port={free_port()}", f"--token-file={aside / 'token'}"], port, path, token)
    if name == "bare":
        return Side(name, [sys.executable, str(HERE / "serve_bare.py"), graph, str(port)], port, path)
    if name == "kserve":
        return Side(name, [peers[name], str(HERE / "serve_kserve.py"), graph, str(port)], port, path)
    folder = aside / "mlserver"
    folder.mkdir()
    shutil.copy(HERE / "mlserver_model.py", folder)
    (folder / "settings.json").write_text(json.dumps({"http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "parallel_workers": 0, "debug": False}))
    (folder / "model-settings.json").write_text(json.dumps({"name": "model", "implementation": "mlserver_model.Graph", "parameters": {"uri": graph}}))
    return Side(name, [str(Path(peers[name]).parent / "mlserver"), "start", "."], port, path, cwd=folder)


def free_port() -> int:
    with socket.socket() as any_free:
        any_free.bind(("127.0.0.1", 0))
        port: int = any_free.getsockname()[1]
        return port


def in_turns(sides: Sequence[Side], connections: int, rounds: int, seconds: float, aside: Path, bundle: Bundle) -> dict[str, list[dict[str, float]]]:
    """By side, requests a second and latency of each round."""
    out: dict[str, list[dict[str, float]]] = {one.name: [] for one in sides}
    scripts = {one.name: script(one, aside, bundle) for one in sides}
    for one in sides:  # what is cold at first
        wrk(one, scripts[one.name], connections, 1.0)
    for turn in range(rounds):
        for one in [*sides[turn % len(sides) :], *sides[: turn % len(sides)]]:
            out[one.name].append(wrk(one, scripts[one.name], connections, seconds))
    return out


def script(one: Side, aside: Path, bundle: Bundle) -> Path:
    """For wrk: the request."""
    (spec,), (golden, *_) = [TensorSpec.of(i) for i in bundle.manifest["inputs"]], bundle.golden()[0]
    tensor = {"name": spec.name, "shape": [1, *spec.shape], "datatype": spec.datatype, "data": golden[0].ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}, separators=(",", ":"))
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {one.token}"} if one.token else {})
    path = aside / f"{one.name}.lua"
    lines = ['wrk.method = "POST"', f"wrk.body = [==[{body}]==]", *(f'wrk.headers["{k}"] = "{v}"' for k, v in headers.items())]
    path.write_text("\n".join([*lines, ""]))
    return path


def wrk(one: Side, request: Path, connections: int, seconds: float) -> dict[str, float]:
    """
    Raises:
        RuntimeError: something else than 200 came back.
    """
    words = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(request), f"http://127.0.0.1:{one.port}{one.path}"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"{one.name}: {said}")
    per_second, p50, p99 = (re.search(rf"{name}\s+([\d.]+)(us|ms|s)?", said) for name in ("Requests/sec:", "50%", "99%"))
    assert per_second
    assert p50
    assert p99
    return {"per_second": float(per_second[1]), "p50_ms": milliseconds(p50), "p99_ms": milliseconds(p99)}


def milliseconds(match: re.Match[str]) -> float:
    return float(match[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[match[2]]


def call(bundle: Bundle) -> float:
    """Microseconds of onnxruntime's own call, the median."""
    run = open_session(bundle.path / "model.onnx", bundle.session)
    one = [x[:1] for x in bundle.golden()[0]]
    times = []
    for _ in range(2_000):
        began = time.perf_counter()
        run(one)
        times.append(time.perf_counter() - began)
    return 1e6 * float(np.median(times))


def ratio(mine: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """The geometric mean over rounds, with Student's interval."""
    logs = np.log(np.array(mine) / np.array(others))
    half = student_quantile((1 + LEVEL) / 2, len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    middle = float(logs.mean())
    return {"value": math.exp(middle), "low": math.exp(middle - half), "high": math.exp(middle + half), "level": LEVEL}


def show(document: dict[str, Any]) -> None:
    for name, found in document["throughput"].items():
        print(f"tenfold over {name}, requests a second at 16 connections: {found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})")
    for name, p50 in document["latency"].items():
        print(f"{name}, one connection: p50 {p50:.3f} ms, {p50 - document['call_microseconds'] / 1e3:.3f} ms above onnxruntime's own call")
    for name, size in document["resident_bytes"].items():
        print(f"{name}: {size / 1e6:.0f} MB, ready after {document['start_seconds'][name]:.2f} s")


if __name__ == "__main__":
    main()
