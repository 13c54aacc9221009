"""Engines that run an ONNX graph, each with its precision set explicitly. Imports no torch."""

from __future__ import annotations

import dataclasses
import faulthandler
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tenfold.data.split import Array
from tenfold.errors import TenfoldError, first_line

PATIENCE_SECONDS = 20.0
"""For opening a graph, when that is tried first."""

Runner = Callable[[Sequence[Array]], Array]
"""From one array an input, each (batch, …), to the output (batch, …)."""
Outputs = Callable[[Sequence[Array]], tuple[Array, ...]]
"""The same, to several outputs."""


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """How a graph is run."""

    engine: Literal["onnxruntime", "openvino"] = "onnxruntime"
    threads: int = 1
    """Threads within an operator."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What float operators compute in. OpenVINO would pick bfloat16 by itself; onnxruntime has float32 only."""
    graph_optimization: Literal["basic", "extended", "all"] = "all"
    """onnxruntime's level of graph rewriting."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class GraphError(TenfoldError):
    """An engine does not take a graph."""


def has_openvino() -> bool:
    return find_spec("openvino") is not None


def open_session(path: Path, config: SessionConfig) -> Runner:
    """A function that runs the graph, and gives its first output.

    Raises:
        GraphError: the file is no ONNX graph, or the engine has no kernel for it or is not installed.
    """
    run = open_outputs(path, config, 1)
    return lambda inputs: run(inputs)[0]


def open_outputs(path: Path, config: SessionConfig, count: int) -> Outputs:
    """A function that runs the graph, and gives its first outputs.

    Raises:
        GraphError: as of `open_session`.
    """
    try:
        return _ENGINES[config.engine](path, config, count)
    except ImportError as error:
        raise GraphError(f"{config.engine} is not installed: pip install 'tenfold[{config.engine}]'") from error
    except TenfoldError:
        raise
    except Exception as error:  # engines raise types of their own, one for every failure
        raise _cannot_run(config.engine, path, error) from error


def survives(path: Path, config: SessionConfig) -> bool:
    """Whether a process survives opening the graph: tried in a forked one, as there are graphs that end the process.

    Only onnxruntime is tried, where processes can be forked.
    """
    if config.engine != "onnxruntime" or "fork" not in multiprocessing.get_all_start_methods():
        return True
    child = multiprocessing.get_context("fork").Process(target=_try_open, args=(path, config), daemon=True)
    child.start()
    child.join(PATIENCE_SECONDS)
    if child.exitcode is None:  # it waits for what the fork has left behind: that says nothing of the graph
        child.kill()
        child.join()
        return True
    return child.exitcode >= 0  # below: a signal has ended it


def _try_open(path: Path, config: SessionConfig) -> None:
    faulthandler.disable()  # a crash here is an answer, not an error
    with suppress(Exception):  # why it cannot be opened is found by who opens it
        open_session(path, config)
    os._exit(0)  # without what this process would do at its end


def _cannot_run(engine: str, path: Path, error: Exception) -> GraphError:
    return GraphError(f"{engine} cannot run {path.name} ({first_line(error, 300)}): check that it is a valid ONNX graph")


def _onnxruntime(path: Path, config: SessionConfig, count: int) -> Outputs:
    import onnxruntime as ort

    if config.precision != "float32":
        raise GraphError("onnxruntime computes in float32 only on CPU: use the engine openvino for bfloat16")
    options = ort.SessionOptions()
    options.intra_op_num_threads = config.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised, and says so
    # its threads would spin on after a call, in the time of whatever is called next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.graph_optimization_level = {
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[config.graph_optimization]
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    wanted = [o.name for o in session.get_outputs()[:count]]

    def run(inputs: Sequence[Array]) -> tuple[Array, ...]:
        try:
            return tuple(session.run(wanted, dict(zip(names, inputs, strict=True))))
        except Exception as error:  # onnxruntime has a type of its own for every failure
            raise _cannot_run("onnxruntime", path, error) from error

    return run


@cache
def _openvino_core() -> Any:
    # its converter would report to Google Analytics; without this module it falls back to a stub of its own
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


def _openvino(path: Path, config: SessionConfig, count: int) -> Outputs:
    core = _openvino_core()
    compiled = core.compile_model(
        core.read_model(str(path)),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": str(config.threads),
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[config.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            # pinned, the calling thread is bound to the first core during a call (of every process to the same), and after it to the
            # cores that it had when OpenVINO was loaded
            "ENABLE_CPU_PINNING": "NO",
        },
    )
    request = compiled.create_infer_request()

    def run(inputs: Sequence[Array]) -> tuple[Array, ...]:
        request.infer(list(inputs), share_inputs=True)
        return tuple(np.array(request.get_output_tensor(i).data) for i in range(count))

    return run


_ENGINES: dict[str, Callable[[Path, SessionConfig, int], Outputs]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}


def run_in_batches(runner: Runner, inputs: Sequence[Array], batch: int) -> Array:
    """Outputs (n, …) for inputs (n, …), `batch` at a time."""
    n = len(inputs[0])
    return np.concatenate([runner([x[i : i + batch] for x in inputs]) for i in range(0, n, batch)])
