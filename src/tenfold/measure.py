"""Raw samples of cost: interleaved, never only a mean.

When this times, nothing else of ours may run on the host.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tenfold.data.split import Array
from tenfold.engine import Runner, SessionConfig
from tenfold.errors import TenfoldError

BLOCK = 16
"""Calls of one side before the other's turn: A's block, B's block, A's, …"""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Costs of one side: nanoseconds a call, shape (rounds, inputs)."""

    cpu: NDArray[np.int64]
    """Of all threads of the process."""
    wall: NDArray[np.int64]
    batch: int
    """Predictions a call."""
    distinct: int | None = None
    """Calls a round, after which the inputs come again. None: they do not."""

    def to_json(self) -> dict[str, Any]:
        return {"unit": "ns/call", "batch": self.batch, "distinct": self.distinct, "cpu": self.cpu.tolist(), "wall": self.wall.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Samples:
        return cls(cpu=np.array(data["cpu"]), wall=np.array(data["wall"]), batch=data["batch"], distinct=data.get("distinct"))

    def by_input(self, kind: Literal["cpu", "wall"]) -> NDArray[np.float64]:
        """Nanoseconds a prediction, (rounds, inputs): the mean over the calls of a round that had the same input, which are no new inputs."""
        each: NDArray[np.float64] = getattr(self, kind) / self.batch
        if self.distinct is None or self.distinct >= each.shape[1]:
            return each
        return np.stack([each[:, i :: self.distinct].mean(1) for i in range(self.distinct)], axis=1)

    def microseconds(self) -> dict[str, float]:
        """Per prediction: mean CPU, mean, p50 and p99 of wall time."""
        cpu, wall = self.cpu / self.batch / 1e3, self.wall / self.batch / 1e3
        return {
            "cpu_mean": float(cpu.mean()),
            "wall_mean": float(wall.mean()),
            "wall_p50": float(np.quantile(wall, 0.5)),
            "wall_p99": float(np.quantile(wall, 0.99)),
        }

    def worst_to_mean(self) -> float:
        """The dearest input's CPU over the mean: what a cost that depends on the input comes to at worst.

        By the median over rounds of each input, which a disturbance of one round does not move.
        """
        by_input = np.median(self.cpu, axis=0)
        return float(by_input.max() / by_input.mean())


@contextmanager
def _quiet_collector() -> Any:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def interleave(
    runners: Mapping[str, Runner], inputs: Sequence[Array], *, batch: int, rounds: int, calls: int
) -> dict[str, Samples]:
    """Time every runner on the same calls, in turns, `rounds` times over.

    Blocks of `BLOCK` calls alternate between the runners, in an order that rotates by round; each
    block starts with one call that is not counted, to warm what the last one left cold.

    Args:
        runners: what to time, by name.
        inputs: arrays (n, …) that calls take batches of, in an order that is random and always the same, starting over at the end.
        batch: predictions a call.
        rounds: how often the same calls are repeated.
        calls: calls a round.
    """
    if not runners:
        return {}
    n = len(inputs[0])
    wanted = np.resize(np.random.default_rng(n).permutation(n), (calls, batch))  # data may be sorted, by class or by date

    def feeds_of(start: int) -> list[list[Array]]:
        return [[np.ascontiguousarray(x[rows]) for x in inputs] for rows in wanted[start : start + BLOCK]]

    names = list(runners)
    cpu = {name: np.zeros((rounds, calls), dtype=np.int64) for name in names}
    wall = {name: np.zeros((rounds, calls), dtype=np.int64) for name in names}
    for runner in runners.values():
        for feed in feeds_of(0)[:3]:
            runner(feed)
    with _quiet_collector():
        for r in range(rounds):
            for start in range(0, calls, BLOCK):
                feeds = feeds_of(start)
                for name in names[r % len(names) :] + names[: r % len(names)]:
                    runner, cpus, walls = runners[name], cpu[name][r], wall[name][r]
                    runner(feeds[0])
                    for i, feed in enumerate(feeds, start):
                        w, c = time.perf_counter_ns(), time.process_time_ns()
                        runner(feed)
                        cpus[i], walls[i] = time.process_time_ns() - c, time.perf_counter_ns() - w
    return {name: Samples(cpu=cpu[name], wall=wall[name], batch=batch, distinct=min(calls, -(-n // batch))) for name in names}


def calls_for(
    runners: Mapping[str, Runner], inputs: Sequence[Array], *, batch: int, rounds: int, seconds: float, most: int = 256
) -> int:
    """How many calls a round fill about `seconds` in all, from 2 to `most`, by a trial call of each."""
    feed = [np.ascontiguousarray(np.resize(x, (batch, *x.shape[1:]))) for x in inputs]
    spent = 0.0
    for runner in runners.values():
        runner(feed)
        start = time.perf_counter()
        for _ in range(2):
            runner(feed)
        spent += (time.perf_counter() - start) / 2
    return int(np.clip(seconds / rounds / max(spent, 1e-6) * BLOCK / (BLOCK + 1), 2, most))


def step_costs(steps: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, Samples]:
    """Costs of training steps, in turns: shape (rounds, 1) each, after one uncounted step."""
    cpu: dict[str, list[list[int]]] = {name: [] for name in steps}
    wall: dict[str, list[list[int]]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    with _quiet_collector():
        for _ in range(rounds):
            for name, step in steps.items():
                w, c = time.perf_counter_ns(), time.process_time_ns()
                step()
                cpu[name].append([time.process_time_ns() - c])
                wall[name].append([time.perf_counter_ns() - w])
    return {name: Samples(cpu=np.array(cpu[name]), wall=np.array(wall[name]), batch=1) for name in steps}


def peak_memory(model: Path, session: SessionConfig, example: Sequence[Array]) -> int:
    """Peak resident bytes of a fresh process that opens a session and answers `example` a few times.

    Raises:
        TenfoldError: the process failed.
    """
    shapes = [[list(x.shape), str(x.dtype)] for x in example]
    job = json.dumps({"model": str(model), "session": session.to_json(), "inputs": shapes})
    done = subprocess.run([sys.executable, "-m", "tenfold.probe", job], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise TenfoldError(
            f"a fresh serving process failed: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}"
        )
    return int(done.stdout)
