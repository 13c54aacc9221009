"""Quantization of an ONNX graph, by onnxruntime's own quantizer."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold import device
from tenfold.data.split import Array
from tenfold.engine import GraphError, SessionConfig, open_session
from tenfold.errors import BudgetEndedError, first_line
from tenfold.levers.quantize.fold import drop_roundings, fold_input
from tenfold.operators import INTEGER, operators
from tenfold.plan import Materials

if TYPE_CHECKING:
    from tenfold.levers.quantize import QuantizeConfig

CALIBRATION_EXAMPLES = 256
CALIBRATION_BATCH = 32
SENSITIVITY_EXAMPLES = 64
PERCENTILE = 99.99

_COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True, kw_only=True)
class Census:
    """How many operators of each kind a graph has."""

    compute: int
    linear: int
    recurrent: int
    integer: int


@lru_cache(maxsize=16)
def census(path: Path) -> Census:
    count = operators(path)
    recurrent = sum(count[t] for t in _RECURRENT)
    return Census(
        compute=sum(count[t] for t in _COMPUTE) + recurrent,
        linear=count["Gemm"] + count["MatMul"],
        recurrent=recurrent,
        integer=sum(count[t] for t in INTEGER),
    )


class _Reader:
    """Calibration examples as onnxruntime asks for them, a batch at a time."""

    def __init__(self, feeds: list[dict[str, Array]]) -> None:
        self._feeds: Iterator[dict[str, Array]] = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def calibration_inputs(materials: Materials, count: int) -> tuple[Array, ...]:
    """The same examples each time: of train where there is one, else of valid."""
    split = materials.examples.train or materials.examples.valid
    rows = np.random.default_rng(materials.seed).permutation(len(split))[:count]
    return split.take(np.sort(rows)).inputs


def static(source: Path, target: Path, materials: Materials, config: QuantizeConfig) -> dict[str, Any]:
    """int8 weights by channel and uint8 activations, as QuantizeLinear/DequantizeLinear pairs.

    Returns:
        `left_out`: names of the layers that stayed float.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    method = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }[config.calibration]
    signed = "asimd" in device.cpu_features()  # Arm's dot products take signed activations

    with _quiet(), tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)  # that fails at ReduceMax; exported graphs tell their shapes
        folded = onnx.load(prepared)
        read = None if signed else fold_input(folded)  # bytes are unsigned, and a layer's inputs and outputs are of one type
        onnx.save(folded, prepared)
        options: dict[str, Any] = {"CalibPercentile": PERCENTILE} if config.calibration == "percentile" else {}
        if read is not None:
            as_read = {"quant_type": QuantType.QUInt8, "scale": np.array(read.scale, np.float32), "zero_point": np.array(read.zero, np.uint8)}
            options["TensorQuantOverrides"] = {read.tensor: [as_read]}
        inputs = calibration_inputs(materials, CALIBRATION_EXAMPLES)
        batch = min(CALIBRATION_BATCH, len(inputs[0]))
        whole = len(inputs[0]) // batch * batch  # the histograms cannot take a last batch that is short
        names = _input_names(prepared)
        feeds = [
            {n: np.ascontiguousarray(x[i : i + batch]) for n, x in zip(names, inputs, strict=True)}
            for i in range(0, whole, batch)
        ]
        ranges = Path(scratch) / "ranges.json"
        kinds = _with_ranges(onnx.load(prepared))

        def quantize(output: Path, **nodes: list[str]) -> None:
            quantize_static(
                str(prepared), str(output), _Reader(feeds),
                quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=config.seven_bit,
                activation_type=QuantType.QInt8 if signed else QuantType.QUInt8, weight_type=QuantType.QInt8,
                op_types_to_quantize=list(_COMPUTE) if config.operators == "compute" else kinds,
                calibrate_method=method, calibration_cache_path=str(ranges),
                extra_options=dict(options), **nodes,
            )  # fmt: skip

        left_out: list[str] = []
        if config.leave_out:
            harm = _harm(prepared, quantize, [x[:SENSITIVITY_EXAMPLES] for x in inputs], Path(scratch), materials)
            left_out = sorted(harm, key=lambda n: (-harm[n], n))[: config.leave_out]
        quantize(target, nodes_to_exclude=left_out)
        done = onnx.load(target)
        drop_roundings(done, read)
        onnx.save(done, target)
    return {"left_out": left_out}


def _with_ranges(model: Any) -> list[str]:
    """Kinds of operators that can be quantized, less those that something infinite goes through, as a mask does that is added before a softmax."""
    from onnx import TensorProto, numpy_helper
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    infinite = {i.name for i in model.graph.initializer if i.data_type == TensorProto.FLOAT and np.isinf(numpy_helper.to_array(i)).any()}
    touched = set()
    for node in model.graph.node:  # in the order of computing
        if infinite & set(node.input):
            touched.add(node.op_type)
            infinite |= set(node.output) if node.op_type in _PASS_ON else set()
    return sorted({*QLinearOpsRegistry, *QDQRegistry} - touched)


_PASS_ON = ("Add", "Sub", "Where", "Reshape", "Unsqueeze", "Expand", "Slice", "Transpose", "Identity", "Cast")
"""Operators that give on what is infinite; a softmax makes zeros of it."""


def _harm(prepared: Path, quantize: Callable[..., None], inputs: list[Array], scratch: Path, materials: Materials) -> dict[str, float]:
    """Mean squared error of the output when one layer alone is quantized, by layer.

    Raises:
        BudgetEndedError: no seconds are left.
    """
    import onnx

    layers = [n.name for n in onnx.load(prepared).graph.node if n.op_type in _COMPUTE]
    wanted = open_session(prepared, SessionConfig())(inputs)
    harm: dict[str, float] = {}
    for layer in layers:
        if materials.seconds_left() <= 0:
            raise BudgetEndedError(f"the budget ended after {len(harm)} of {len(layers)} layers had been quantized alone")
        if materials.progress is not None:
            materials.progress(len(harm) / len(layers), 0.0)
        alone = scratch / "alone.onnx"
        quantize(alone, nodes_to_quantize=[layer])
        harm[layer] = float(np.mean((open_session(alone, SessionConfig())(inputs) - wanted) ** 2))
    return harm


def dynamic(source: Path, target: Path, _materials: Materials, config: QuantizeConfig) -> dict[str, Any]:
    """int8 weights of linear and recurrent layers; activations are quantized as they come, a call at a time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            str(source), str(target), per_channel=True, reduce_range=config.seven_bit,
            weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm", "LSTM"],
        )  # fmt: skip
    return {}


def weight_only(source: Path, target: Path, _materials: Materials, config: QuantizeConfig) -> dict[str, Any]:
    """Weights of linear layers in blocks of 32 with a scale each; products are computed in int8 where the CPU has it."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    with _quiet():
        model = ONNXModel(onnx.load(source))
        fold_input(model.model)
        model.replace_gemm_with_matmul()
        quantizer = MatMulNBitsQuantizer(model.model, bits=config.bits, block_size=32, is_symmetric=True, accuracy_level=4)
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), False)
    if not census(target).integer:
        raise GraphError("no linear layer has constant weights that could be quantized")
    return {}


METHODS: dict[str, Callable[..., dict[str, Any]]] = {"static": static, "dynamic": dynamic, "weight_only": weight_only}


def _input_names(path: Path) -> list[str]:
    import onnx

    return [i.name for i in onnx.load(path, load_external_data=False).graph.input]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turns what the quantizer raises into one sentence, and keeps its advice to other users off the terminal."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except (OSError, BudgetEndedError):  # no fault of the graph
        raise
    except Exception as error:  # onnxruntime's quantizer raises whatever its helpers do
        raise GraphError(f"onnxruntime's quantizer failed ({type(error).__name__}: {first_line(error)})") from error
    finally:
        root.setLevel(level)
