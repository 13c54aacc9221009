"""The same graph on a better engine or schedule, chosen by measurement."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tenfold import device
from tenfold.engine import SessionConfig, has_openvino
from tenfold.lever import Config, Refusal, Situation, Stage
from tenfold.plan import Plan


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """An engine and how it runs."""

    engine: Literal["onnxruntime", "openvino"]
    graph_optimization: Literal["basic", "extended", "all"] = "all"
    threads: int | None = None
    """None: as many as before."""


class Runtime:
    name = "runtime"
    stages: tuple[Stage, ...] = (Stage.RUNTIME,)
    rank = 1
    touches = frozenset({"session"})
    summary = "the same graph on another engine, or with other graph rewriting"

    def propose(self, situation: Situation) -> Sequence[Config] | Refusal:
        if situation.objective in ("size", "train"):
            return Refusal(f"the engine changes nothing for the objective {situation.objective}")
        if situation.tried:
            return _other_threads(situation)
        session = situation.plan.session
        configs = [
            RuntimeConfig(engine="openvino") if has_openvino() else None,
            RuntimeConfig(engine="onnxruntime", graph_optimization="extended"),
            RuntimeConfig(engine="onnxruntime", graph_optimization="basic"),
            RuntimeConfig(engine="onnxruntime"),
        ]
        now = RuntimeConfig(engine=session.engine, graph_optimization=session.graph_optimization)
        return [dataclasses.asdict(c) for c in configs if c is not None and c != now]

    def apply(self, plan: Plan, config: Config) -> Plan:
        chosen = RuntimeConfig(**config)
        precision = plan.session.precision if chosen.engine == "openvino" else "float32"
        session = SessionConfig(
            engine=chosen.engine,
            graph_optimization=chosen.graph_optimization,
            threads=chosen.threads or plan.session.threads,
            precision=precision,
        )
        return dataclasses.replace(plan, session=session)


def _other_threads(situation: Situation) -> list[Config]:
    """The quickest engine, and the one before, on other numbers of threads, where time that passes is what counts."""
    if situation.objective not in ("latency", "throughput") or any(t.config["threads"] for t in situation.tried):
        return []
    session = situation.plan.session
    kept = [t for t in situation.tried if t.gain and t.verdict.quality and t.verdict.quality.high >= -situation.margin]
    best = [RuntimeConfig(**max(kept, key=lambda t: t.gain.value if t.gain else 0.0).config)] if kept else []
    before = RuntimeConfig(engine=session.engine, graph_optimization=session.graph_optimization)
    engines = {c.engine: c for c in (*best, before)}.values()
    others = [n for n in device.thread_counts() if n != session.threads]
    return [dataclasses.asdict(dataclasses.replace(engine, threads=n)) for engine in engines for n in others]


lever = Runtime()
