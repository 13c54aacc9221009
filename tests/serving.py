"""Bundles made in a moment, and real servers of them, for tests."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tenfold.bundle import SURENESS, THRESHOLD, write_bundle
from tenfold.statistics import describe

START_SECONDS = 60.0
RUN = """
import json, sys
from pathlib import Path
from tenfold.errors import TenfoldError
from tenfold.serve.model import Source
from tenfold.serve.server import serve
from tenfold.serve.settings import Settings
bundles, settings, auth = json.loads(sys.argv[1])
paths = {k: Path(v) for k, v in settings.items() if k in ("token_file", "certificate", "key")}
try:
    serve([Source.parse(b) for b in bundles], Settings(**(settings | paths)), auth=auth)
except TenfoldError as error:
    print(f"tenfold: {error}", file=sys.stderr)
    sys.exit(2)
"""


def facts(task: str = "classification", labels: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """What a manifest says beside its files."""
    return {
        "workload": "small", "task": task, "labels": labels, "session": {"engine": "onnxruntime", "threads": 1}, "operating_point": {"batch": 1, "threads": 1},
        "certified": False, "quality": {"metric": "accuracy", "margin": 0.01, "certified": None}, "recipe": {},
        "costs": {
            "points": [{"batch": 1, "threads": 1, "cpu_mean": 20.0, "wall_mean": 20.0}, {"batch": 64, "threads": 2, "cpu_mean": 5.0, "wall_mean": 5.0}],
            "worst_case_ratio_to_mean": 1.5, "peak_memory_bytes": 60_000_000,
        },
    } | more  # fmt: skip


def images_bundle(folder: Path, *, seed: int = 0) -> Path:
    """Pictures (n, 1, 8, 8) of uint8 to three classes: a convolution, and a cascade's second output."""
    rng = np.random.default_rng(seed)
    weights = {
        "scale": np.array(1 / 255, np.float32), "kernel": rng.normal(0, 0.5, (4, 1, 3, 3)).astype(np.float32), "one": np.array([1]),
        "matrix": rng.normal(0, 0.2, (256, 3)).astype(np.float32), "wide": np.array([-1, 256]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["input"], ["float"], to=TensorProto.FLOAT), helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "kernel"], ["convolved"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["convolved"], ["relu"]),
        helper.make_node("Reshape", ["relu", "wide"], ["flat"]), helper.make_node("MatMul", ["flat", "matrix"], ["output"]),
        helper.make_node("Softmax", ["output"], ["probabilities"], axis=1), helper.make_node("ReduceMax", ["probabilities", "one"], [SURENESS], keepdims=0),
    ]  # fmt: skip
    path = _graph(folder, nodes, weights, [("input", TensorProto.UINT8, ["n", 1, 8, 8])], [("output", ["n", 3]), (SURENESS, ["n"])], {THRESHOLD: "0.6"})
    examples = rng.integers(0, 256, (300, 1, 8, 8), dtype=np.uint8)
    statistics = describe({"input": examples}, rng.normal(size=(300, 3)))
    write_bundle(folder, path, [examples], facts(labels=["cat", "dog", "eel"], statistics=statistics))
    return folder


def table_bundle(folder: Path) -> Path:
    """Two inputs, values (n, 4) and a number of a category below 5, to one value."""
    rng = np.random.default_rng(1)
    weights = {"table": rng.normal(size=(5, 4)).astype(np.float32), "matrix": rng.normal(size=(4, 1)).astype(np.float32)}
    nodes = [
        helper.make_node("Gather", ["table", "input_1"], ["embedded"]), helper.make_node("Add", ["input_0", "embedded"], ["sum"]),
        helper.make_node("MatMul", ["sum", "matrix"], ["output"]),
    ]  # fmt: skip
    inputs = [("input_0", TensorProto.FLOAT, ["n", 4]), ("input_1", TensorProto.INT64, ["n"])]
    path = _graph(folder, nodes, weights, inputs, [("output", ["n", 1])], {})
    examples = [rng.normal(size=(300, 4)).astype(np.float32), rng.integers(0, 5, 300)]
    write_bundle(folder, path, examples, facts("regression", statistics=describe(dict(zip(("input_0", "input_1"), examples, strict=True)), None)))
    return folder


def text_bundle(folder: Path) -> Path:
    """Six characters (n, 6) to scores of the next at each place, (n, 6, 4)."""
    weights = {"table": np.random.default_rng(2).normal(size=(4, 4)).astype(np.float32)}
    path = _graph(folder, [helper.make_node("Gather", ["table", "input"], ["output"])], weights, [("input", TensorProto.INT64, ["n", 6])], [("output", ["n", 6, 4])], {})
    write_bundle(folder, path, [np.random.default_rng(0).integers(0, 4, (300, 6))], facts("classification by position", list("abc ")))
    return folder


def slow_bundle(folder: Path, *, size: int = 700) -> Path:
    """Some milliseconds a call: values (n, 4) to (n, 3)."""
    rng = np.random.default_rng(3)
    weights = {"first": rng.normal(size=(4, size)).astype(np.float32), "middle": (rng.normal(size=(size, size)) / size).astype(np.float32), "last": rng.normal(size=(size, 3)).astype(np.float32)}
    names = ["x0", *(f"x{i + 1}" for i in range(40))]
    nodes = [helper.make_node("MatMul", ["input", "first"], ["x0"]), *(helper.make_node("MatMul", [a, "middle"], [b]) for a, b in pairwise(names))]
    path = _graph(folder, [*nodes, helper.make_node("MatMul", [names[-1], "last"], ["output"])], weights, [("input", TensorProto.FLOAT, ["n", 4])], [("output", ["n", 3])], {})
    write_bundle(folder, path, [rng.normal(size=(300, 4)).astype(np.float32)], facts())
    return folder


def _graph(folder: Path, nodes: list[Any], weights: Mapping[str, Any], inputs: list[Any], outputs: list[Any], props: dict[str, str]) -> Path:
    made = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs], [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs],
        initializer=[numpy_helper.from_array(w, n) for n, w in weights.items()],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, props)
    onnx.checker.check_model(model)
    path = folder.with_suffix(".onnx")
    onnx.save(model, path)
    return path


@dataclass
class Server:
    """A process that serves."""

    process: subprocess.Popen[str]
    lines: list[str]
    """Of its log."""
    written: list[str]
    """Of its access log."""
    port: int = 0
    metrics_port: int = 0

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        """(status, headers in lower case, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, content: Any = None, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
        body = None if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
        status, _, answer = self.ask(method, path, body, {"content-type": "application/json"} | dict(headers or {}))
        return status, json.loads(answer)

    def metrics(self) -> dict[str, float]:
        """By name and labels, as they are written."""
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=30)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))}

    def says(self, pattern: str, seconds: float = 30.0) -> re.Match[str]:
        """Wait for a line of its log."""
        ends = time.monotonic() + seconds
        while True:
            found = next((m for line in list(self.lines) if (m := re.search(pattern, line))), None)
            if found:
                return found
            if time.monotonic() > ends or self.process.poll() is not None:
                time.sleep(0.2)  # what it said last
                raise AssertionError(f"no {pattern!r} in: {''.join(self.lines)}")
            time.sleep(0.02)

    def end(self, seconds: float = 60.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def serving(*bundles: Path | str, auth: bool = True, **settings: Any) -> Iterator[Server]:
    """A server with these settings, at ports that are free; ended if it has not."""
    asked = json.dumps([[str(b) for b in bundles], {"port": 0, "metrics_port": 0} | settings, auth])
    with _watched([sys.executable, "-c", RUN, asked]) as server:
        server.port = int(server.says(r"serving .* at https?://[^ ]*:(\d+)", START_SECONDS)[1])
        if settings.get("metrics_port", 0) is not None:
            server.metrics_port = int(server.says(r"metrics at http://[^ ]*:(\d+)")[1])
        yield server


@contextmanager
def command(*words: str | Path) -> Iterator[Server]:
    """`tenfold serve` with these words."""
    with _watched([sys.executable, "-m", "tenfold.serve", *map(str, words)]) as server:
        yield server


@contextmanager
def _watched(words: list[str]) -> Iterator[Server]:
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    server = Server(process, [], [])
    threads = [threading.Thread(target=_collect, args=pair, daemon=True) for pair in ((process.stderr, server.lines), (process.stdout, server.written))]
    for thread in threads:
        thread.start()
    try:
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for thread in threads:
            thread.join(5)


def _collect(stream: Any, lines: list[str]) -> None:
    for line in stream:  # as they come
        lines += [line]


class Load(threading.Thread):
    """Asks one after the other on a connection that it keeps, and makes anew where it is told to; counts what fails."""

    def __init__(self, port: int, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(daemon=True)
        self.port, self.path, self.body, self.headers = port, path, body, {"content-type": "application/json", **headers}
        self.answered, self.failed, self.refused = 0, list[str](), 0
        self.answers: list[bytes] = []
        self.ending = threading.Event()

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self.ending.is_set():
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                try:
                    connection.connect()
                except ConnectionRefusedError:  # nobody is there: that is no request which failed
                    self.refused += 1
                    connection = None
                    time.sleep(0.005)
                    continue
            try:
                connection.request("POST", self.path, self.body, self.headers)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
                connection = None
                continue
            if answer.status == 200:
                self.answered += 1
                if not self.answers or self.answers[-1] != content:
                    self.answers.append(content)
            else:
                self.failed.append(f"{answer.status} {content!r}")
            if answer.getheader("connection") == "close":
                connection.close()
                connection = None

    def end(self) -> None:
        self.ending.set()
        self.join(30)


@contextmanager
def load(port: int, path: str, body: bytes, clients: int = 4, headers: Mapping[str, str] | None = None) -> Iterator[list[Load]]:
    """So many clients at work."""
    threads = [Load(port, path, body, headers or {}) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.end()
