"""NNCF's own accept rule on planted accuracies. Runs in an environment of requirements-nncf.txt, without Tenfold.

    python nncf_rule.py PLANTS.npz DECISIONS.json
"""

from __future__ import annotations

import json
import logging
import sys
from importlib import metadata

import nncf
import numpy as np
import onnx
from nncf.parameters import DropType
from nncf.quantization.advanced_parameters import AdvancedAccuracyRestorerParameters
from nncf.quantization.algorithms.accuracy_control.algorithm import calculate_accuracy_drop
from onnx import TensorProto, helper, numpy_helper

LAYERS, WIDTH = 6, 16


def accepts(baseline: float, candidate: float, margin: float) -> bool:
    """What `quantize_with_accuracy_control` asks after every validation."""
    accepted, _ = calculate_accuracy_drop(baseline, candidate, margin, DropType.ABSOLUTE)
    return bool(accepted)


def first_accepted(baseline: float, candidates: list[float], margin: float) -> int:
    """The rule on candidates in order of cost; −1: none was accepted."""
    return next((c for c, score in enumerate(candidates) if accepts(baseline, score, margin)), -1)


def handed_over(margin: float, drop: float, iterations: int | None) -> dict[str, object]:
    """The whole of `quantize_with_accuracy_control` where any quantized layer costs `drop`: what does it return?"""
    rng = np.random.default_rng(0)
    items = nncf.Dataset([{"x": rng.normal(size=(1, WIDTH)).astype(np.float32)} for _ in range(20)])

    def validate(model: onnx.ModelProto, data: object) -> tuple[float, list[float]]:
        score = 0.9 - (drop if quantizers(model) else 0.0)
        return score, [score for _ in data]  # type: ignore[attr-defined]

    settings = AdvancedAccuracyRestorerParameters(**({} if iterations is None else {"max_num_iterations": iterations}))
    model = nncf.quantize_with_accuracy_control(
        chain(), items, items, validate, max_drop=margin, advanced_accuracy_restorer_parameters=settings
    )
    return {
        "max_num_iterations": iterations,
        "allowed_drop": margin,
        "returned": "a model",
        "quantizers_left": quantizers(model),
        "delivered_drop": drop if quantizers(model) else 0.0,
    }


def quantizers(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "QuantizeLinear" for node in model.graph.node)


def chain() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(LAYERS):
        weights.append(numpy_helper.from_array(rng.normal(size=(WIDTH, WIDTH)).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"h{i}" if i else "x", f"w{i}"], [f"m{i}"], name=f"matmul{i}"))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"h{i + 1}" if i + 1 < LAYERS else "y"], name=f"relu{i}"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def main(plants: str, decisions: str) -> None:
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with np.load(plants) as file:
        data = dict(file)
    margin = float(data["margin"])
    accepted = [
        sum(accepts(int(b) / n, int(c) / n, margin) for b, c in zip(base, cand))
        for n, base, cand in zip(data["cell_n"].tolist(), data["cell_baseline"], data["cell_candidate"])
    ]
    shipped = [
        [first_accepted(int(b) / n, [int(c) / n for c in cands], margin) for b, cands in zip(base, cand)]
        for n, base, cand in zip(data["sel_n"].tolist(), data["sel_baseline"], data["sel_candidate"])
    ]
    out = {
        "peer": "nncf",
        "version": metadata.version("nncf"),
        "rule": "nncf.quantization.algorithms.accuracy_control.algorithm.calculate_accuracy_drop, ABSOLUTE",
        "accepted": accepted,
        "shipped": shipped,
        "within": [[s >= 0 for s in row] for row in shipped],
        "handed_over": [handed_over(margin, 0.4, 1), handed_over(margin, 0.4, None)],
    }
    with open(decisions, "w", encoding="utf-8") as file:
        json.dump(out, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
