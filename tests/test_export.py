"""A graph must answer a batch as it answers its examples one by one."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tenfold.engine import SessionConfig
from tenfold.errors import ExportError, TenfoldError, WorkloadError
from tenfold.export import Selected, Served, check_batches, export

X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)


def graph(path: Path, *nodes: onnx.NodeProto, **constants: np.ndarray) -> Path:
    """From `input` (batch, 4) to `output`, by `nodes`."""
    body = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Pair(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, 2 * x


def test_what_is_served_is_the_one_of_several_or_the_only_one() -> None:
    x = torch.ones(3, 4)
    assert torch.equal(Selected(Pair(), 1)(x), 2 * x)
    assert torch.equal(Selected(torch.nn.Identity(), 1)(x), x), "a teacher of a model that returns two may return one"


class Named(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": x, "features": x}


@pytest.mark.parametrize(("model", "output", "said"), [(Named(), "logit", "the keys 'logits', 'features'"), (Pair(), 2, "2 places"), (Pair(), "logits", "2 places")])
def test_what_is_not_among_what_a_model_returns_is_named(model: torch.nn.Module, output: int | str, said: str) -> None:
    with pytest.raises(WorkloadError, match=f"is not in what the model returns, {said}"):
        Selected(model, output)(torch.ones(3, 4))


def test_a_ctrl_c_is_none_of_the_exporters_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("the exporter's own words") from ValueError(str(error))

    monkeypatch.setattr(torch.onnx, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(torch.nn.Linear(4, 2), [np.zeros((2, 4), np.float32)], tmp_path / "m.onnx")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: 1 / 0)
    with pytest.raises(ExportError):
        export(torch.nn.Linear(4, 2), [np.zeros((2, 4), np.float32)], tmp_path / "m.onnx")


def test_a_graph_that_treats_rows_alike_deviates_nowhere(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx", helper.make_node("Relu", ["input"], ["output"]))
    assert check_batches(path, [X], SessionConfig()) == {"2": 0.0, "7": 0.0, "64": 0.0}


def test_a_graph_whose_rows_depend_on_one_another_is_refused(tmp_path: Path) -> None:
    mean = helper.make_node("ReduceMean", ["input"], ["mean"], axes=[0], keepdims=1)
    path = graph(tmp_path / "g.onnx", mean, helper.make_node("Sub", ["input", "mean"], ["output"]))
    with pytest.raises(ExportError, match="at batch 2 the graph differs"):
        check_batches(path, [X], SessionConfig())


def test_a_graph_that_drops_its_batch_is_refused(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx", helper.make_node("ReduceSum", ["input", "axes"], ["output"], keepdims=1), axes=np.array([0]))
    with pytest.raises(ExportError, match="its batch is not dynamic"):
        check_batches(path, [X], SessionConfig())


def test_a_graph_that_quantizes_as_it_comes_may_deviate_and_says_how_far(tmp_path: Path) -> None:
    quantize = helper.make_node("DynamicQuantizeLinear", ["input"], ["q", "scale", "zero"])
    path = graph(tmp_path / "g.onnx", quantize, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["output"]))
    deviation = check_batches(path, [X * np.geomspace(1, 1000, 20, dtype=np.float32)[:, None]], SessionConfig())
    assert 0 < deviation["64"] < 0.01


class ByLength(torch.nn.Module):
    """An idiom that the exporter takes for a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), -1)


def test_a_model_that_fixes_its_batch_is_told_how_to_mend_it(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="fixes its batch size somewhere"):
        export(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), ByLength(), torch.nn.Linear(8, 3)), [X.reshape(5, 1, 4, 4)], tmp_path / "g.onnx")


def test_a_full_disk_is_no_fault_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", full)
    with pytest.raises(TenfoldError, match="is full: free some space"):
        export(torch.nn.Linear(4, 3), [X], tmp_path / "g.onnx")


def test_the_exporter_reads_its_operators_once_and_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read, asked = ONNXRegistry.from_torchlib, []

    def counted(opset_version: int) -> object:
        asked.append(opset_version)
        return read(opset_version=opset_version)

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", counted)
    for features in (3, 5):
        export(Served(torch.nn.Linear(4, features), None), [X], tmp_path / f"{features}.onnx")
    assert len(asked) == 1
    assert ONNXRegistry.from_torchlib is counted
