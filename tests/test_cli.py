"""The command line as a user meets it: exit codes, one sentence for what is wrong, no torch where none is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tenfold.cli import seconds
from tenfold.errors import TenfoldError
from tenfold.pipeline import Result
from tenfold.testing import blobs
from tenfold.verdict import COST_BAR

Tenfold = Callable[..., "subprocess.CompletedProcess[str]"]

TASK = """
import numpy as np
from torch import nn
import tenfold
from tenfold.testing import blobs, small_net
{change}
workload = tenfold.Workload(model=MODEL, train=TRAIN, valid=blobs(90, seed=1), test=blobs(90, seed=2), margin=0.05)
"""


ODD = """
class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = nn.Linear(64, 3)

    def forward(self, x):
        return self.n(x.flatten(1)) + x.flatten(1).median(1, True).values.digamma()


MODEL, TRAIN = Odd, blobs()
"""


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("tenfold: ")
    for word in words:
        assert word in line, line


def test_help_is_grouped_by_what_a_user_wants(tenfold: Tenfold) -> None:
    out = tenfold("--help").stdout
    for part in ("Make a model cheaper", "Use what came out", "Look around", "Exit codes"):
        assert part in out


def test_version(tenfold: Tenfold) -> None:
    import tenfold as package

    assert tenfold("--version").stdout.strip() == f"tenfold {package.__version__}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "nope"], ["no workload 'nope'", "fashion-mnist"]),
        (["run", "nope.py"], ["does not exist"]),
        (["run", "digits", "--budget", "soon"], ["'soon'", "10m"]),
        (["run", "digits", "--margin", "0"], ["margin", "above 0"]),
        (["run", "digits", "--levers", "magic"], ["no lever 'magic'", "quantize"]),
        (["run", "digits", "--dask", "tcp://a:1"], ["--dask", "not there yet"]),
        (["run", "digits", "--workers", "2"], ["--workers", "not there yet"]),
        (["run", "digits", "--trials", "0"], ["trials"]),
        (["run", "digits", "--resume"], ["no run of digits"]),
        (["run", "fashion-mnist", "--data", "nowhere"], ["lacks", "--data"]),
        (["predict", "nowhere", "x.npy"], ["no bundle"]),
        (["report", "nowhere"], ["no result.json"]),
        (["levers", "magic"], ["no lever"]),
        (["compare", "a.onnx", "b.onnx", "digits"], ["a.onnx does not exist"]),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_2(tenfold: Tenfold, tmp_path: Path, words: list[str], said: list[str]) -> None:
    refused(tenfold(*words, cwd=tmp_path), *said)
    assert not list(tmp_path.rglob("ledger.jsonl")), "nothing is left behind"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("1 / 0", ["line 6", "ZeroDivisionError"]),
        ("MODEL, TRAIN = small_net, (np.zeros((0, 1, 8, 8), 'f4'), np.zeros(0, int))", ["train is empty"]),
        ("MODEL, TRAIN = small_net, (np.full((9, 1, 8, 8), np.nan, 'f4'), np.arange(9) % 3)", ["NaN", "row 0"]),
        ("MODEL, TRAIN = small_net, (np.zeros((9, 1, 8, 8), 'f4'), np.zeros(9, int))", ["one class only"]),
        ("MODEL, TRAIN = small_net, (np.zeros((9, 1, 8, 8), 'f4'), np.arange(9) - 1)", ["label -1", "below 0"]),
        ("MODEL, TRAIN = small_net, (np.array([{}], dtype=object), np.zeros(1, int))", ["object array"]),
        ("MODEL, TRAIN = small_net, (np.zeros((9, 1, 9, 9), 'f4'), np.arange(9) % 3)", ["differ in the shape"]),
        ("MODEL, TRAIN = (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2))), blobs()", ["2 outputs", "3 classes"]),
        ("MODEL, TRAIN = (lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 3))), blobs()", ["does not take inputs"]),
        ("MODEL, TRAIN = (lambda: 7), blobs()", ["torch.nn.Module"]),
        (
            ODD,
            ["cannot be exported"],
        ),
    ],
)  # fmt: skip
def test_bad_tasks_are_one_sentence_and_exit_2(tenfold: Tenfold, tmp_path: Path, change: str, said: list[str]) -> None:
    task = tmp_path / "task.py"
    task.write_text(TASK.format(change=change))
    refused(tenfold("run", task, "--budget", "5m", cwd=tmp_path), *said)
    assert not list(tmp_path.rglob("ledger.jsonl")), "nothing is left behind"


def test_json_prints_the_document_and_nothing_else(tenfold: Tenfold, finished: Result) -> None:
    done = tenfold("report", finished.folder, "--json")
    assert json.loads(done.stdout) == json.loads(json.dumps(finished.document))


def test_run_prints_the_ladder_and_where_things_lie(tenfold: Tenfold, tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text("from tenfold.testing import small_workload\n\nworkload = small_workload()\n")
    done = tenfold("run", task, "--quick", "--levers", "quantize", cwd=tmp_path)
    assert done.returncode in (0, 3), done.stderr
    assert "quantize" in done.stdout
    assert (tmp_path / "runs" / "blobs-1" / "report.html").exists()
    assert tenfold("run", task, "--quick", "--levers", "quantize", "--json", cwd=tmp_path).stdout.lstrip().startswith("{")
    assert (tmp_path / "runs" / "blobs-2").exists()


def test_levers_and_workloads_are_listed(tenfold: Tenfold) -> None:
    out = tenfold("levers").stdout
    assert all(name in out for name in ("precision", "quantize", "runtime"))
    assert "## When it pays" in tenfold("levers", "quantize").stdout
    assert "fashion-mnist" in tenfold("workloads").stdout


def test_predict_reads_npy_csv_and_images(tenfold: Tenfold, finished: Result, tmp_path: Path) -> None:
    images = blobs(6).inputs[0]
    np.save(tmp_path / "x.npy", images)
    np.savetxt(tmp_path / "x.csv", images.reshape(6, -1), delimiter=",")
    bundle = finished.folder / "bundle"
    first = json.loads(tenfold("predict", bundle, tmp_path / "x.npy", "--json").stdout)
    second = json.loads(tenfold("predict", bundle, tmp_path / "x.csv", "--json").stdout)
    np.testing.assert_allclose(first["outputs"], second["outputs"], atol=1e-5)
    assert len(first["labels"]) == 6
    from PIL import Image

    Image.fromarray((images[0, 0] * 50).clip(0, 255).astype(np.uint8)).save(tmp_path / "x.png")
    assert tenfold("predict", bundle, tmp_path / "x.png").returncode == 0
    np.save(tmp_path / "bad.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(tenfold("predict", bundle, tmp_path / "bad.npy"), "object array")
    (tmp_path / "latin.csv").write_bytes("größe\n1\n".encode("latin-1"))
    refused(tenfold("predict", bundle, tmp_path / "latin.csv"), "UTF-8")
    (tmp_path / "holes.csv").write_text(",".join(["nan"] * 64))
    refused(tenfold("predict", bundle, tmp_path / "holes.csv"), "NaN")


def test_predict_and_bundle_load_import_no_torch(finished: Result, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", blobs(2).inputs[0])
    code = (
        "import sys, os, tenfold, tenfold.cli\n"
        "sys.argv = ['tenfold', 'predict', sys.argv[1], sys.argv[2]]\n"
        "try:\n    tenfold.cli.main()\nexcept SystemExit as leave:\n    assert not leave.code, leave.code\n"
        "assert 'torch' not in sys.modules\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(finished.folder / "bundle"), str(tmp_path / "x.npy")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_compare_is_the_guard_alone(tenfold: Tenfold, small_builder, tmp_path: Path) -> None:
    from tenfold.execute import plain_session
    from tenfold.lever import apply_all
    from tenfold.plan import Plan
    from tenfold.recipe import Pull

    task = tmp_path / "task.py"
    task.write_text("from tenfold.testing import small_workload\n\nworkload = small_workload()\n")
    plan = Plan(training=small_builder.workload.training, session=plain_session())
    good = small_builder.graph(plan).path / "model.onnx"
    int8 = small_builder.graph(apply_all(plan, [Pull("quantize", {"method": "static"})])).path / "model.onnx"
    done = tenfold("compare", good, int8, task, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == found["exit_code"]
    assert found["quality_difference"]["low"] >= -found["margin"]
    same = json.loads(tenfold("compare", good, good, task, "--json").stdout)
    assert same["quality_difference"]["value"] == 0
    assert (same["exit_code"] == 3) is (same["cost_ratio"]["low"] < COST_BAR), "what is as good has to be cheaper too"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("a", "b", "output")]
    two = helper.make_graph([helper.make_node("Add", ["a", "b"], ["output"])], "g", values[:2], values[2:])
    onnx.save(helper.make_model(two, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "two.onnx")
    refused(tenfold("compare", good, tmp_path / "two.onnx", task), "two.onnx takes 2 inputs, the workload has 1, ")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    refused(tenfold("compare", good, tmp_path / "junk.onnx", task), "junk.onnx")


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("10m", 600), ("2h", 7200), ("45", 45), ("1.5m", 90)])
def test_budgets(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "m", "-3s", "0", "3 days"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(TenfoldError):
        seconds(text)
