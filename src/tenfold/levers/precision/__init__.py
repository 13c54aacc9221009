"""The dtype and memory format in which a model is trained, and the dtype in which it is served."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tenfold import device
from tenfold.engine import GraphError, has_openvino
from tenfold.errors import first_line
from tenfold.lever import Config, Refusal, Situation, Stage
from tenfold.operators import is_of_integers
from tenfold.plan import GraphPass, Materials, Plan


@dataclass(frozen=True, kw_only=True)
class TrainingPrecision:
    """How steps are computed while training."""

    dtype: Literal["float32", "bfloat16"]
    channels_last: bool


@dataclass(frozen=True, kw_only=True)
class ServingPrecision:
    """What the served graph holds and computes in."""

    weights: Literal["float32", "float16"] = "float32"
    """float16: half the bytes; computed in float32 where the engine has no float16 kernel."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 needs OpenVINO and a CPU that has it."""


class Precision:
    name = "precision"
    stages: tuple[Stage, ...] = (Stage.TRAIN, Stage.COMPRESSION)
    rank = 1
    touches = frozenset({"training", "graph_passes", "session"})
    summary = "bfloat16 and channels-last for training, float16 and bfloat16 for serving, where they measure faster"

    def propose(self, situation: Situation) -> Sequence[Config] | Refusal:
        if situation.tried:
            return ()
        if situation.stage is Stage.TRAIN:
            return self._training(situation)
        if situation.objective == "train":
            return Refusal("the precision of serving changes nothing for the objective train")
        configs = [] if is_of_integers(situation.graph) else [ServingPrecision(weights="float16")]
        if device.has_bfloat16() and has_openvino():
            configs.append(ServingPrecision(compute="bfloat16"))
        return [dataclasses.asdict(c) for c in configs] or Refusal("most of the weights are integers already, which are shorter")

    def _training(self, situation: Situation) -> Sequence[Config] | Refusal:
        if situation.objective != "train":
            return Refusal("it makes training cheaper, not serving: pull it with --objective train")
        if situation.examples.train is None or situation.workload.pretrained is not None:
            return Refusal("the model is given trained: there is no training to make cheaper")
        images = any(x.ndim == 4 for x in situation.examples.train.inputs)
        now = TrainingPrecision(dtype=situation.plan.training.dtype, channels_last=situation.plan.training.channels_last)
        configs = [
            TrainingPrecision(dtype=dtype, channels_last=last)
            for last in ((True, False) if images else (False,))
            for dtype in ("bfloat16", "float32")
        ]
        return [dataclasses.asdict(c) for c in configs if c != now]

    def apply(self, plan: Plan, config: Config) -> Plan:
        if "dtype" in config:
            chosen = TrainingPrecision(**config)
            training = dataclasses.replace(plan.training, dtype=chosen.dtype, channels_last=chosen.channels_last)
            return dataclasses.replace(plan, training=training)
        served = ServingPrecision(**config)
        if served.weights == "float16":
            plan = dataclasses.replace(
                plan, graph_passes=(*plan.graph_passes, GraphPass(key={"pass": "float16"}, apply=_to_float16))
            )
        if served.compute == "bfloat16":
            session = dataclasses.replace(plan.session, engine="openvino", precision="bfloat16")
            plan = dataclasses.replace(plan, session=session)
        return plan


STAY_FLOAT = ("Mul", "Div")
"""onnxruntime 1.32 crashes where it moves a float16 scale into a matrix product, as attention has it. What scales has no weights to speak of."""


def _to_float16(source: Path, target: Path, _materials: Materials) -> dict[str, Any]:
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    kept = [*DEFAULT_OP_BLOCK_LIST, *STAY_FLOAT]
    try:
        model = convert_float_to_float16(onnx.load(source), keep_io_types=True, disable_shape_infer=False, op_block_list=kept)
    except Exception as error:  # the converter raises whatever its helpers do
        raise GraphError(f"the graph cannot be converted to float16 ({type(error).__name__}: {first_line(error)})") from error
    onnx.save(model, target)
    return {}


lever = Precision()
