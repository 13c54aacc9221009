"""One side of the comparison, in an environment of its own: loads what a peer made, answers, and is timed when told to.

Speaks JSON by lines: reads a command, writes an answer. Needs numpy, and the engine of what it loads.

    {"load": KIND, "path": …, "threads": n, "inputs": x.npy}   KIND: onnxruntime-LEVEL, openvino-PRECISION, torch
    {"block": [first, last], "batch": n}                       times those calls, after one that is not counted
    {"answer": out.npy, "batch": n}                            outputs on all inputs
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np


def onnxruntime(path: str, threads: int, level: str):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def openvino(path: str, threads: int, precision: str | None):
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    request = ov.Core().compile_model(ov.Core().read_model(path), "CPU", settings).create_infer_request()

    def run(x):
        request.infer([x], share_inputs=True)
        return np.array(request.get_output_tensor(0).data)

    return run


def torch(path: str, threads: int):
    """A program that torch.export saved, through torch.compile."""
    import torch as t
    import torch._inductor.config
    import torch.ao.quantization.fx._decomposed  # the operators of a quantized program

    torch._inductor.config.freezing = True  # weights are constants: what int8 needs to be fast
    t.set_num_threads(threads)
    module = t.export.load(path).module()
    compiled = t.compile(module)

    def run(x):
        with t.inference_mode():
            return compiled(t.from_numpy(x)).numpy()

    return run


KINDS = {
    **{f"onnxruntime-{level}": partial(onnxruntime, level=level) for level in ("basic", "extended", "all")},
    "openvino-float32": partial(openvino, precision="f32"),
    "openvino-bfloat16": partial(openvino, precision="bf16"),
    "openvino-default": partial(openvino, precision=None),
    "torch": torch,
}


def main() -> None:
    run, inputs = None, np.empty(0)
    for line in sys.stdin:
        command = json.loads(line)
        if "load" in command:
            inputs = np.load(command["inputs"], allow_pickle=False)
            run = KINDS[command["load"]](command["path"], command["threads"])
            for _ in range(20):  # engines that specialise do it on the first calls
                run(inputs[: command["batch"]])
            answer = {"loaded": True}
        elif "block" in command:
            (first, last), batch = command["block"], command["batch"]
            rows = [np.arange(i * batch, (i + 1) * batch) % len(inputs) for i in range(first, last)]
            feeds = [np.ascontiguousarray(inputs[r]) for r in rows]
            run(feeds[0])
            cpu, wall = [], []
            for feed in feeds:
                w, c = time.perf_counter_ns(), time.process_time_ns()
                run(feed)
                cpu.append(time.process_time_ns() - c)
                wall.append(time.perf_counter_ns() - w)
            answer = {"cpu": cpu, "wall": wall}
        else:
            batch = command["batch"]
            np.save(command["answer"], np.concatenate([run(inputs[i : i + batch]) for i in range(0, len(inputs), batch)]))
            answer = {"answered": True}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
