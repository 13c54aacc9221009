"""Engines and measures: engines agree with numpy and with one another, costs come out in known proportions."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tenfold import device, engine
from tenfold.engine import GraphError, SessionConfig, has_openvino, open_session, run_in_batches
from tenfold.errors import TenfoldError
from tenfold.measure import BLOCK, Samples, calls_for, interleave, peak_memory, step_costs
from tenfold.verdict import cost_ratio

RNG = np.random.default_rng(0)
W1, W2 = RNG.normal(size=(16, 32)).astype(np.float32), RNG.normal(size=(32, 5)).astype(np.float32)
X, SCALE = RNG.normal(size=(10, 16)).astype(np.float32), RNG.normal(size=(10, 1)).astype(np.float32)
ANSWER = np.maximum(X.astype(np.float64) @ W1, 0) @ W2 * SCALE

needs_openvino = pytest.mark.skipif(not has_openvino(), reason="openvino is not installed")
ENGINES = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """relu(x W1) W2 · scale, of two inputs, with a dynamic batch."""
    nodes = [
        helper.make_node("MatMul", ["x", "W1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "W2"], ["o"]),
        helper.make_node("Mul", ["o", "scale"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name, width in (("x", 16), ("scale", 1))
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])
    whole = helper.make_graph(
        nodes, "g", inputs, [output], [numpy_helper.from_array(W1, "W1"), numpy_helper.from_array(W2, "W2")]
    )
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


# ---------------------------------------------------------------- engines


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 2])
def test_in_float32_every_engine_gives_what_numpy_gives(graph, engine, threads):
    run = open_session(graph, SessionConfig(engine=engine, threads=threads))
    # sums of 32 products of size 10 in float32 (6e-8 each); bfloat16, which OpenVINO would pick by itself, errs by 1e-1
    assert run([X, SCALE]) == pytest.approx(ANSWER, abs=1e-4)
    assert run([X, SCALE]).dtype == np.float32


@pytest.mark.parametrize("engine", ENGINES)
def test_any_batch_will_do_and_answers_are_not_overwritten_by_later_ones(graph, engine):
    run = open_session(graph, SessionConfig(engine=engine))
    first = run([X[:1], SCALE[:1]])
    kept = first.copy()
    run([X[1:8], SCALE[1:8]])
    assert (first == kept).all()
    for batch in (1, 3, 10, 64):
        assert run_in_batches(run, [X, SCALE], batch) == pytest.approx(ANSWER, abs=1e-4)  # as above


@pytest.mark.parametrize("level", ["basic", "extended", "all"])
def test_rewriting_the_graph_does_not_change_the_answer(graph, level):
    run = open_session(graph, SessionConfig(graph_optimization=level))
    assert run([X, SCALE]) == pytest.approx(ANSWER, abs=1e-4)  # as above


@needs_openvino
def test_openvino_computes_in_bfloat16_when_it_is_asked_to(graph):
    error = np.abs(open_session(graph, SessionConfig(engine="openvino", precision="bfloat16"))([X, SCALE]) - ANSWER).max()
    # eight bits of mantissa: 0.4 % of answers of up to 15, and not a wrong answer
    assert error < 0.02 * np.abs(ANSWER).max()
    # and more than float32 could err, where the processor has it (elsewhere OpenVINO stays with float32)
    assert (error > 1e-3) == device.has_bfloat16()


def test_onnxruntime_refuses_bfloat16(graph):
    with pytest.raises(GraphError, match="onnxruntime computes in float32 only on CPU: use the engine openvino for bfloat16"):
        open_session(graph, SessionConfig(precision="bfloat16"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("content", [b"garbage", b"", None], ids=["garbage", "empty", "missing"])
def test_a_file_that_is_no_graph_is_refused_in_one_sentence(tmp_path, engine, content):
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(
        GraphError, match=rf"^{engine} cannot run model\.onnx \(.*\): check that it is a valid ONNX graph$"
    ) as caught:
        open_session(tmp_path / "model.onnx", SessionConfig(engine=engine))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, TenfoldError)


def test_an_engine_that_is_not_installed_says_how_to_get_it(graph):
    done = python(
        "import sys; sys.modules['openvino'] = None\n"  # what an environment without it looks like
        "from pathlib import Path; from tenfold.engine import SessionConfig, open_session\n"
        f"open_session(Path({str(graph)!r}), SessionConfig(engine='openvino'))"
    )
    assert "GraphError: openvino is not installed: pip install 'tenfold[openvino]'" in done.stderr


# ---------------------------------------------------------------- what is imported


def test_importing_tenfold_imports_neither_torch_nor_numpy():
    done = python("import sys, tenfold, tenfold.device; print({'torch', 'numpy', 'onnxruntime'} & set(sys.modules))")
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


@pytest.mark.parametrize("engine", ENGINES)
def test_serving_a_graph_imports_no_torch(graph, engine):
    done = python(
        "import sys; from pathlib import Path; from tenfold.engine import SessionConfig, open_session\n"
        f"open_session(Path({str(graph)!r}), SessionConfig(engine={engine!r})); print('torch' in sys.modules)"
    )
    assert (done.stdout.strip(), done.returncode) == ("False", 0)


@pytest.mark.parametrize("before", ["", "0"])
def test_telemetry_is_off_before_onnxruntime_is_imported(graph, before):
    done = python(
        "import os, sys\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, args: event == 'import' and args[0] == 'onnxruntime'"
        " and seen.append(os.environ.get('ORT_DISABLE_TELEMETRY')))\n"
        "from pathlib import Path; from tenfold.engine import SessionConfig, open_session\n"
        f"open_session(Path({str(graph)!r}), SessionConfig()); print(seen)",
        ORT_DISABLE_TELEMETRY=before,
    )
    assert (done.stdout.strip(), done.returncode) == ("['1']", 0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("engine", ENGINES)
def test_no_engine_changes_which_cores_its_caller_may_use(graph, engine):
    """OpenVINO would give back the cores that there were when it was loaded, here one."""
    code = (
        "import os, sys; import numpy as np; from pathlib import Path; from tenfold.engine import SessionConfig, open_session\n"
        "cores = os.sched_getaffinity(0); os.sched_setaffinity(0, [max(cores)])\n"
        f"run = lambda: open_session(Path({str(graph)!r}), SessionConfig(engine={engine!r}))([np.ones((2, 16), np.float32), np.ones((2, 1), np.float32)])\n"
        "run(); os.sched_setaffinity(0, cores); run(); print(os.sched_getaffinity(0) == cores)"
    )
    assert python(code).stdout.strip() == "True"


@needs_openvino
def test_openvino_is_imported_without_its_telemetry(graph):
    done = python(
        "import sys; from pathlib import Path; from tenfold.engine import SessionConfig, open_session\n"
        f"open_session(Path({str(graph)!r}), SessionConfig(engine='openvino')); print(sys.modules['openvino_telemetry'])"
    )
    assert (done.stdout.strip(), done.returncode) == ("None", 0)


# ---------------------------------------------------------------- costs


def busy(turns: int):
    """A runner whose cost is proportional to `turns`."""

    def run(inputs):
        for _ in range(turns):
            pass
        return inputs[0]

    return run


# CPU time of an interpreted loop is proportional to its turns. On an idle machine the ratio is right to a few
# percent; beside busy processes on the same cores one side was seen to run up to 1.7 times as long.
BETWEEN = (8 / 2, 8 * 2)


def test_a_runner_that_works_eight_times_as_long_costs_eight_times_as_much():
    runners = {"one": busy(10_000), "eight": busy(80_000)}
    samples = interleave(runners, [X], batch=2, rounds=4, calls=10)
    ratio = cost_ratio(samples["eight"].cpu, samples["one"].cpu)
    assert BETWEEN[0] < ratio.value < BETWEEN[1]
    assert ratio.low > 2


def test_samples_are_a_row_a_round_and_a_column_a_call():
    samples = interleave({"a": busy(10), "b": busy(10)}, [X], batch=3, rounds=4, calls=2 * BLOCK + 1)
    for side in samples.values():
        assert side.cpu.shape == side.wall.shape == (4, 2 * BLOCK + 1)
        assert side.batch == 3
        assert (side.wall > 0).all()
        assert (side.cpu >= 0).all()
    assert interleave({}, [X], batch=1, rounds=1, calls=1) == {}


def test_sides_take_turns_on_the_same_inputs_in_rotating_order():
    log: list[tuple[str, list[float]]] = []

    def recorder(name: str):
        def run(inputs):
            assert all(x.flags["C_CONTIGUOUS"] and len(x) == 3 for x in inputs)
            assert inputs[0][:, 0].tolist() == inputs[1][:, 0].tolist()  # rows of all inputs together
            log.append((name, inputs[0][:, 0].tolist()))
            return inputs[0]

        return run

    numbers = np.arange(10.0)[:, None]
    calls = BLOCK + 2
    interleave({name: recorder(name) for name in "ab"}, [numbers, numbers.copy()], batch=3, rounds=2, calls=calls)
    order = log[0][1] + log[1][1] + log[2][1]  # three batches of three, of ten rows
    order += sorted(set(range(10)) - set(order))
    assert sorted(order) == list(range(10)) != order, "every row before one comes again, and not as they are stored"
    feeds = [[order[(3 * c + i) % 10] for i in range(3)] for c in range(calls)]  # starting over at the end
    blocks = [feeds[:1] + feeds[:BLOCK], feeds[BLOCK : BLOCK + 1] + feeds[BLOCK:]]  # one uncounted, then the block
    warm = [(name, feed) for name in "ab" for feed in feeds[:3]]
    turns = [("a", "b"), ("b", "a")]  # by round
    assert log == warm + [(name, feed) for order in turns for block in blocks for name in order for feed in block]


def test_training_steps_take_turns_and_cost_in_proportion():
    order: list[str] = []

    def step(name: str, turns: int):
        def run() -> None:
            order.append(name)
            busy(turns)([X])

        return run

    samples = step_costs({"one": step("one", 50_000), "eight": step("eight", 400_000)}, rounds=6)
    assert order == ["one", "eight"] * 7  # the first is not counted
    assert samples["one"].cpu.shape == samples["one"].wall.shape == (6, 1)
    assert BETWEEN[0] < cost_ratio(samples["eight"].cpu, samples["one"].cpu).value < BETWEEN[1]


def test_the_number_of_calls_fills_the_time_within_its_bounds():
    def sleeper(inputs):
        import time

        time.sleep(0.01)
        return inputs[0]

    # two sides of 10 ms a call, 2 s in 5 rounds: 20 calls a round, less one in 17 for the uncounted ones;
    # a sleep lasts longer than asked for on a busy machine, so there may be fewer
    assert 8 <= calls_for({"a": sleeper, "b": sleeper}, [X], batch=1, rounds=5, seconds=2) <= 19
    assert calls_for({"a": sleeper}, [X], batch=64, rounds=5, seconds=0.001) == 2
    assert calls_for({"a": busy(1)}, [X], batch=1, rounds=5, seconds=100) == 256
    assert calls_for({"a": busy(1)}, [X], batch=1, rounds=5, seconds=100, most=2_000) == 2_000


def test_samples_travel_as_json():
    samples = Samples(cpu=np.array([[1, 2], [3, 4]]), wall=np.array([[5, 6], [7, 8]]), batch=2)
    back = Samples.from_json(json.loads(json.dumps(samples.to_json())))
    assert back.cpu.tolist() == samples.cpu.tolist()
    assert back.wall.tolist() == samples.wall.tolist()
    assert back.batch == 2
    assert samples.to_json()["unit"] == "ns/call"


def test_inputs_that_come_again_are_no_new_inputs():
    samples = interleave({"a": busy(10)}, [X[:4]], batch=1, rounds=3, calls=10)["a"]
    assert samples.cpu.shape == (3, 10)
    assert samples.by_input("cpu").shape == (3, 4)
    by_hand = [samples.wall[:, [0, 4, 8]].mean(1), samples.wall[:, [1, 5, 9]].mean(1), samples.wall[:, [2, 6]].mean(1), samples.wall[:, [3, 7]].mean(1)]
    assert samples.by_input("wall") == pytest.approx(np.stack(by_hand, 1))
    assert Samples.from_json(samples.to_json()).by_input("wall") == pytest.approx(np.stack(by_hand, 1))
    once = interleave({"a": busy(10)}, [X[:4]], batch=2, rounds=3, calls=2)["a"]
    assert once.by_input("wall") == pytest.approx(once.wall / 2)


def test_microseconds_are_a_prediction_by_hand():
    wall = np.arange(1, 102)[None] * 2_000  # 2 to 202 µs a call of 2: quantile q of 1 to 101 is 1 + 100 q
    figures = Samples(cpu=np.full((1, 101), 6_000), wall=wall, batch=2).microseconds()
    # exact but for the rounding of float64
    assert figures == pytest.approx({"cpu_mean": 3, "wall_mean": 51, "wall_p50": 51, "wall_p99": 100}, rel=1e-12)


def test_the_worst_input_is_told_from_a_disturbed_round():
    cpu = np.full((5, 4), 10)
    cpu[:, 2] = 30  # costs three times as much every time
    cpu[1, 0] = 1_000  # and this one once
    samples = Samples(cpu=cpu, wall=cpu, batch=1)
    assert samples.worst_to_mean() == pytest.approx(30 / 15)


# ---------------------------------------------------------------- memory


def test_peak_memory_is_that_of_a_serving_process_and_not_of_its_parent(graph):
    example = [X[:1], SCALE[:1]]
    ballast = np.ones(75_000_000)  # 600 MB in this process, which also holds what other tests imported
    small = peak_memory(graph, SessionConfig(), example)
    del ballast
    # an interpreter with numpy and onnxruntime: tens of megabytes, everywhere far below the ballast
    assert 20e6 < small < 400e6


def test_peak_memory_counts_what_the_batch_needs(graph):
    rows = 400_000
    small = peak_memory(graph, SessionConfig(), [X[:1], SCALE[:1]])
    large = peak_memory(graph, SessionConfig(), [np.zeros((rows, 16), np.float32), np.zeros((rows, 1), np.float32)])
    # inputs of 16 and 1, answers of 5 floats a row, and between them at least once 32
    assert large - small > rows * (16 + 1 + 5 + 32) * 4


def test_a_serving_process_that_fails_is_one_sentence(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(TenfoldError, match="a fresh serving process failed: .*onnxruntime cannot run") as caught:
        peak_memory(tmp_path / "model.onnx", SessionConfig(), [X])
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the machine


def test_the_environment_is_json_and_names_what_shapes_the_numbers():
    found = device.environment()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu_class"].startswith(platform.machine())
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["python"] == platform.python_version()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="this system does not list what its processor can do")
def test_features_are_those_the_kernel_reports():
    reported = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert set(device.cpu_features()) <= reported
    assert ("avx512_vnni" in device.cpu_features()) == ("avx512_vnni" in reported)
    assert device.has_bfloat16() == bool({"avx512_bf16", "amx_bf16", "bf16"} & reported)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_cores_are_those_this_process_may_use():
    code = "import os; from tenfold.device import cores\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(cores())"
    assert python(code).stdout.strip() == "1"
    assert device.cores() == len(os.sched_getaffinity(0))


# ---------------------------------------------------------------- graphs that end a process


def test_a_graph_that_ends_the_process_that_opens_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def opened(does) -> bool:
        monkeypatch.setitem(engine._ENGINES, "onnxruntime", lambda *_: does())
        return engine.survives(tmp_path / "model.onnx", SessionConfig())

    def refuse() -> None:
        raise RuntimeError("no kernel")

    assert not opened(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    assert opened(lambda: None)
    assert opened(refuse), "why is told by who opens it"
    monkeypatch.setattr(engine, "PATIENCE_SECONDS", 0.2)
    assert opened(lambda: time.sleep(60)), "what waits says nothing of the graph"
    assert engine.survives(tmp_path / "model.onnx", SessionConfig(engine="openvino")), "which is not tried"
