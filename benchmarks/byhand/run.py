"""Quantizes a run's baseline by hand, in the ways that an engineer would try, and times the best beside what Tenfold certified.

    tenfold run fashion-mnist --budget 20m --out runs/fashion
    python benchmarks/byhand/run.py fashion-mnist runs/fashion [--data DIR] [--out records/byhand/fashion-mnist.json]

Every recipe is onnxruntime's own `quantize_static`, without Tenfold's code: the calibrators, weights of 8
and 7 bits, by channel and by tensor, both graph formats, convolutions alone, and each layer left in float.
"By hand" is given every advantage: of its recipes the quickest counts whose accuracy on valid is within
the margin by its estimate alone, with no proof asked for. Then float32, that one, and Tenfold's bundle are
timed together on test inputs at batch 1 on one thread, and the quality of both is judged on test.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tenfold import Bundle, device
from tenfold.build import Builder
from tenfold.certify import record_opening
from tenfold.engine import Runner, open_session, run_in_batches
from tenfold.errors import first_line
from tenfold.execute import as_json, plain_session, ratio_of
from tenfold.measure import interleave
from tenfold.plan import Plan
from tenfold.store import Store, cache_dir, write_atomic
from tenfold.verdict import exact_ratio, quality_difference
from tenfold.workload import find, load

sys.path.insert(0, str(Path(__file__).parents[1] / "baselines"))
import kept

CALIBRATION_EXAMPLES, CALIBRATION_BATCH = 256, 32
SCREEN = {"rounds": 5, "calls": 200}
FINAL = {"rounds": 5, "calls": 2_000}

Recipe = Callable[[Path, Path], None]


def recipes(layers: list[str], feeds: list[dict[str, np.ndarray]]) -> dict[str, Recipe]:
    """By name, a function from the prepared float graph to the quantized one."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    class Reader:
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, np.ndarray]] = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    def static(**changes: Any) -> Recipe:
        options = {
            "quant_format": QuantFormat.QDQ, "per_channel": True,
            "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, **changes,
        }  # fmt: skip
        return lambda source, target: quantize_static(str(source), str(target), Reader(), **options)

    out = {
        "minmax": static(),
        "percentile": static(calibrate_method=CalibrationMethod.Percentile),
        "entropy": static(calibrate_method=CalibrationMethod.Entropy),
        "by tensor": static(per_channel=False),
        "operators, not pairs": static(quant_format=QuantFormat.QOperator),
        "compute alone": static(op_types_to_quantize=["Conv", "Gemm", "MatMul"]),
        "signed": static(activation_type=QuantType.QInt8),
        "7 bits": static(reduce_range=True),
        "7 bits, entropy": static(reduce_range=True, calibrate_method=CalibrationMethod.Entropy),
        "7 bits, operators": static(reduce_range=True, quant_format=QuantFormat.QOperator),
        "7 bits, compute alone": static(reduce_range=True, op_types_to_quantize=["Conv", "Gemm", "MatMul"]),
        "first and last left out": static(nodes_to_exclude=[layers[0], layers[-1]]),
    }
    out |= {f"{layer} left out": static(nodes_to_exclude=[layer]) for layer in layers}
    out |= {f"7 bits, {layer} left out": static(reduce_range=True, nodes_to_exclude=[layer]) for layer in (layers[0], layers[-1])}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workload")
    parser.add_argument("run", type=Path, help="folder of a run of the workload with the default objective")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # onnxruntime's advice to prepare a graph that is prepared

    result = json.loads((arguments.run / "result.json").read_text())
    workload = find(arguments.workload, arguments.data)
    examples = load(workload)
    builder = Builder(workload, examples, Store(cache_dir() / "steps"), seed=result["seed"], threads=device.cores())
    if result["workload"]["identity"] != builder.workload_id:
        raise SystemExit("that run was of another workload, or of the same with other code or data: run it again")
    session, margin = plain_session(), result["workload"]["margin_absolute"]
    kept.baseline(builder)
    plain = builder.graph(Plan(training=workload.training, seed=result["seed"], session=session)).path / "model.onnx"
    record = {"workload": workload.name, "margin": margin, "environment": device.environment()}

    with tempfile.TemporaryDirectory() as scratch:
        made, refused = quantize_all(plain, examples.train.inputs[0], Path(scratch))
        runners: dict[str, Runner] = {"float32": open_session(plain, session)}
        runners |= {name: open_session(path, session) for name, path in made.items()}

        def scores(runner: Runner, split: str) -> np.ndarray:
            part = examples.split(split)
            return workload.scores(run_in_batches(runner, part.inputs, 1), part.targets)

        base = scores(runners["float32"], "valid")
        quality = {name: float((scores(runners[name], "valid") - base).mean()) for name in made}
        screened = interleave(runners, examples.valid.inputs, batch=1, **SCREEN)
        screen = {name: ratio_of(screened["float32"], screened[name], "cpu") for name in made}
        able = [name for name in made if quality[name] >= -margin]
        best = max(able, key=lambda name: screen[name].value) if able else None
        record |= {
            "recipes": {n: {"valid_difference": quality[n], "cost_ratio": screen[n].to_json()} for n in made},
            "refused": refused, "best_by_hand": best,
        }  # fmt: skip
        for name in sorted(made, key=lambda name: -screen[name].value):
            print(f"{name:<40} {screen[name].value:5.2f}×  ({screen[name].low:.2f} to {screen[name].high:.2f})  {quality[name]:+.4f} on valid")
        for name, reason in refused.items():
            print(f"{name:<40} could not be made: {reason}")
        if best is None:
            print("no recipe by hand keeps the margin")

        bundle = Bundle.load(arguments.run / "bundle")
        sides = {"float32": runners["float32"], "tenfold": open_session(bundle.path / "model.onnx", bundle.session)}
        sides |= {"by hand": runners[best]} if best else {}
        record_opening(cache_dir() / "openings", examples.test.identity, f"byhand {result['created']} {result['command']}")
        timed = interleave(sides, examples.test.inputs, batch=1, **FINAL)
        on_test = {name: scores(runner, "test") for name, runner in sides.items()}
    final = {
        name: {
            "cost_ratio": ratio_of(timed["float32"], timed[name], "cpu").to_json(),
            "quality_difference": quality_difference(on_test["float32"], on_test[name]).to_json(),
        }
        for name in sides
        if name != "float32"
    }
    advantage = ratio_of(timed["by hand"], timed["tenfold"], "cpu") if best else exact_ratio(1.0, 1.0)
    record |= {"final": final, "tenfold_over_by_hand": advantage.to_json(), "samples": as_json(timed)}
    target = arguments.out or Path("records/byhand") / f"{workload.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, json.dumps(record))
    for name, row in final.items():
        cost, difference = row["cost_ratio"], row["quality_difference"]
        print(f"{name}: {cost['value']:.2f}× ({cost['low']:.2f} to {cost['high']:.2f}), "
              f"{difference['value']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f}) on test")  # fmt: skip
    print(f"tenfold is {advantage.value:.2f}× ({advantage.low:.2f} to {advantage.high:.2f}) cheaper than {best}")


def quantize_all(plain: Path, inputs: np.ndarray, scratch: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The graphs that could be made, and why the others could not."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = scratch / "prepared.onnx"
    with contextlib.redirect_stdout(io.StringIO()):
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(prepared)
    name = model.graph.input[0].name
    layers = [n.name for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    rows = np.random.default_rng(0).permutation(len(inputs))[:CALIBRATION_EXAMPLES]
    feeds = [{name: np.ascontiguousarray(inputs[rows[i : i + CALIBRATION_BATCH]])} for i in range(0, CALIBRATION_EXAMPLES, CALIBRATION_BATCH)]
    made, refused = {}, {}
    for number, (label, recipe) in enumerate(recipes(layers, feeds).items()):
        target = scratch / f"{number}.onnx"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                recipe(prepared, target)
            open_session(target, plain_session())
            made[label] = target
        except Exception as error:  # the quantizer raises whatever its helpers do
            refused[label] = first_line(error)
    return made, refused


if __name__ == "__main__":
    main()
