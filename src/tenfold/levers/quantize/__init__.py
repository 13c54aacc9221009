"""Eight-bit (and four-bit) integers in place of floats, by whichever method keeps quality and measures faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from tenfold import device
from tenfold.lever import Config, Refusal, Situation, Stage, Tried
from tenfold.levers.quantize import graph
from tenfold.plan import GraphPass, ModelPass, Plan
from tenfold.verdict import COST_BAR, Decision

_FORMS: tuple[tuple[Literal["minmax", "percentile", "entropy"], Literal["all", "compute"]], ...] = (
    ("minmax", "all"), ("percentile", "all"), ("entropy", "all"), ("minmax", "compute"),
)  # fmt: skip

# a linear layer's weights are read once a prediction: at small batches reading them is what takes the time
MEMORY_BOUND_BATCH = 16
MOST_LEFT_OUT = 4
QAT_SHARE = 0.25
"""Length of the fine-tuning, as a share of the training's epochs."""
QAT_BUDGET_SHARE, QAT_SLOWER = 0.5, 1.5
"""The most of the time left that it may take; and how much longer an epoch is with rounding simulated."""


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """One way to quantize."""

    method: Literal["static", "dynamic", "weight_only"]
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"
    """Static: how the range of an activation is taken from calibration examples."""
    operators: Literal["all", "compute"] = "all"
    """Static: everything that has an integer form, or only convolutions and matrix products."""
    seven_bit: bool = False
    """Weights within 7 bits: no saturation in the 16-bit sums of x86 CPUs without VNNI."""
    bits: int = 8
    """Weight-only: bits a weight."""
    leave_out: int = 0
    """Static: so many layers stay float, those that hurt the output most when quantized alone."""
    aware_epochs: float = 0.0
    """Epochs of training with rounding simulated, before the quantization. 0: none."""
    aware_seconds: float = 0.0
    """The most that this training may take. 0: no limit."""


class Quantize:
    name = "quantize"
    stages: tuple[Stage, ...] = (Stage.COMPRESSION,)
    rank = 0
    touches = frozenset({"model_passes", "graph_passes"})
    summary = "int8 weights and activations (static, dynamic, quantization-aware) or weights alone"

    def propose(self, situation: Situation) -> Sequence[Config] | Refusal:
        if situation.objective == "train":
            return Refusal("integers make serving cheaper, not training")
        census = graph.census(situation.graph)
        if census.integer:
            return Refusal("the graph holds integer operators already")
        if not census.compute:
            return Refusal("the graph has no convolution, matrix product or LSTM to quantize")
        if not situation.tried:
            return [_json(c) for c in _first_guesses(situation, census)]
        return [_json(c) for c in _refinements(situation) if _json(c) not in [t.config for t in situation.tried]]

    def space(self, situation: Situation) -> Mapping[str, Sequence[Any]]:
        census = graph.census(situation.graph)
        if situation.objective == "train" or census.integer or not census.compute:
            return {}
        sevens = [False] if device.has_vnni() else [False, True]
        return {"calibration": ["minmax", "percentile", "entropy"], "operators": ["all", "compute"], "seven_bit": sevens, "leave_out": [0, 1, 2]}

    def at(self, situation: Situation, point: Mapping[str, Any]) -> Config:
        del situation  # the same everywhere
        return _json(QuantizeConfig(method="static", **point))

    def longer(self, config: Config, times: float) -> Config:
        return config | {"aware_epochs": config["aware_epochs"] * times}

    def apply(self, plan: Plan, config: Config) -> Plan:
        chosen = QuantizeConfig(**config)
        passes = plan.model_passes
        if chosen.aware_epochs:
            from tenfold.levers.quantize.aware import quantization_aware

            how = {"epochs": chosen.aware_epochs, "seconds": chosen.aware_seconds, "seven_bit": chosen.seven_bit}
            key = {"pass": "quantization-aware training", **how}
            work = partial(quantization_aware, epochs=chosen.aware_epochs, seconds=chosen.aware_seconds or None, seven_bit=chosen.seven_bit)
            passes = (*passes, ModelPass(key=key, teach=work))
        static = _json(chosen) | {"aware_epochs": 0.0, "aware_seconds": 0.0}
        done = GraphPass(key={"pass": "quantize", **static}, apply=partial(graph.METHODS[chosen.method], config=chosen))
        return dataclasses.replace(plan, model_passes=passes, graph_passes=(*plan.graph_passes, done))


def _json(config: QuantizeConfig) -> Config:
    return dataclasses.asdict(config)


def _first_guesses(situation: Situation, census: graph.Census) -> list[QuantizeConfig]:
    # where 8-bit products saturate both forms are tried: most models do not notice, and 7 bits lose precision
    sevens = (False, True) if not device.has_vnni() else (False,)
    guesses = [
        QuantizeConfig(method="static", calibration=calibration, operators=operators, seven_bit=seven)
        for calibration, operators in _FORMS
        for seven in sevens
    ]
    if census.linear and situation.batch <= MEMORY_BOUND_BATCH:
        guesses += [QuantizeConfig(method="weight_only", bits=bits) for bits in (8, 4)]
    if census.linear or census.recurrent:
        guesses.append(QuantizeConfig(method="dynamic"))
    return guesses


def _refinements(situation: Situation) -> list[QuantizeConfig]:
    """Leave out what hurts; train with rounding where nothing else keeps quality."""
    static = [t for t in situation.tried if t.config["method"] == "static"]
    if not static:
        return []
    kept = [t for t in static if t.verdict.quality is not None and t.verdict.quality.high >= situation.floor]
    best = max(kept, key=_gain) if kept else max(static, key=_quality)
    config = QuantizeConfig(**best.config)
    hurt = best.verdict.quality is not None and best.verdict.quality.value < situation.floor + situation.margin / 2
    wanted = [_leaving_out_more(config)] if hurt else []
    fastest = max(static, key=_gain)
    if fastest not in kept and _gain(fastest) > COST_BAR * _gain(best) > 0:
        wanted.append(_leaving_out_more(QuantizeConfig(**fastest.config)))
    wanted = [c for c in wanted if c.leave_out <= MOST_LEFT_OUT and _json(c) not in [t.config for t in situation.tried]]
    if not wanted and not kept and not config.aware_epochs and _may_train(situation):
        epochs = max(1.0, situation.plan.training.epochs * QAT_SHARE)
        seconds = round(QAT_BUDGET_SHARE * situation.budget, 1)
        wanted.append(dataclasses.replace(config, leave_out=0, aware_epochs=epochs, aware_seconds=seconds))
    return wanted


def _may_train(situation: Situation) -> bool:
    """Whether a training with rounding has a place: on what may be certified itself, within the time that is left, where nothing was taken."""
    taken = any(t.verdict.decision is Decision.TAKE for t in situation.tried)
    may_be_certified = situation.floor == -situation.margin
    fits = situation.training_seconds * QAT_SHARE * QAT_SLOWER < QAT_BUDGET_SHARE * situation.budget
    return not taken and may_be_certified and fits and not situation.quick and situation.examples.train is not None


def _leaving_out_more(config: QuantizeConfig) -> QuantizeConfig:
    return dataclasses.replace(config, leave_out=max(1, 2 * config.leave_out))


def _gain(tried: Tried) -> float:
    return tried.gain.value if tried.gain else 0.0


def _quality(tried: Tried) -> float:
    return tried.verdict.quality.value if tried.verdict.quality else float("-inf")


lever = Quantize()
