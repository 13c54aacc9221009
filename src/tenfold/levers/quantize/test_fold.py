from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from tenfold.engine import SessionConfig, open_session
from tenfold.export import Normalize, ScaleBytes, Served, export
from tenfold.levers.quantize.fold import Bytes, drop_roundings, fold_input

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8)).astype(np.uint8)


def convolutional(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.Flatten())


def exported(folder: Path, model: nn.Module, preprocess: nn.Module | None, images: np.ndarray = IMAGES) -> Path:
    path = folder / "model.onnx"
    export(Served(model, preprocess), [images], path)
    return path


def folded(path: Path) -> tuple[Path, Bytes | None]:
    model = onnx.load(path)
    read = fold_input(model)
    onnx.checker.check_model(model)
    onnx.save(model, path.with_name("folded.onnx"))
    return path.with_name("folded.onnx"), read


def kinds(path: Path) -> list[str]:
    return [n.op_type for n in onnx.load(path).graph.node]


def answers(path: Path, images: np.ndarray = IMAGES) -> np.ndarray:
    return open_session(path, SessionConfig())([images])


@pytest.mark.parametrize(
    ("preprocess", "zero"),
    [(ScaleBytes(), 0), (Normalize([73 / 255], [0.25]), 73), (Normalize([100 / 255] * 3, [0.2, 0.25, 0.3]), 100)],
    ids=["to one", "one mean and deviation", "a deviation by channel"],
)
def test_a_zero_point_that_is_a_grey_level_changes_nothing(tmp_path: Path, preprocess: nn.Module, zero: int) -> None:
    source = exported(tmp_path, convolutional(), preprocess)
    target, read = folded(source)
    assert read is not None
    assert read.zero == zero
    assert kinds(target)[0] == "DequantizeLinear"
    assert not {"Cast", "Mul", "Add", "Div"} & set(kinds(target))
    assert len(onnx.load(target).graph.initializer) < 10
    np.testing.assert_allclose(answers(target), answers(source), rtol=1e-3, atol=1e-4)


def test_means_by_channel_are_exact_but_for_the_padding(tmp_path: Path) -> None:
    preprocess = Normalize([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616])
    unpadded = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten())
    source = exported(tmp_path, unpadded, preprocess)
    target, read = folded(source)
    assert read is not None
    assert read.zero == 121
    np.testing.assert_allclose(answers(target), answers(source), rtol=1e-3, atol=1e-4)
    padded = exported(tmp_path, convolutional(), preprocess)
    wanted = answers(padded)
    close = answers(folded(padded)[0])
    assert 0 < np.abs(close - wanted).max() < 0.05 * np.abs(wanted).max()


def test_what_is_no_convolution_reads_bytes_with_one_scale(tmp_path: Path) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    target, read = folded(exported(tmp_path, linear, ScaleBytes()))
    assert read is not None
    assert kinds(target)[0] == "DequantizeLinear"
    source = exported(tmp_path, linear, Normalize([0.49, 0.48, 0.44], [0.2, 0.25, 0.3]))
    target, read = folded(source)
    assert read is None
    assert kinds(target) == kinds(source)
    np.testing.assert_array_equal(answers(target), answers(source))


class Twice(nn.Module):
    """Reads the pre-processed image in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return (self.one(x) * self.two(x)).flatten(1)


@pytest.mark.parametrize(
    ("model", "preprocess"),
    [
        (Twice(), Normalize([0.49, 0.48, 0.44], [0.2, 0.25, 0.3])),
        (nn.Conv2d(3, 6, 3, groups=3), Normalize([0.49, 0.48, 0.44], [0.2, 0.25, 0.3])),
        (convolutional(), Normalize([-0.1] * 3, [0.2] * 3)),  # no byte stands for 0
        (convolutional(), Normalize([0.5] * 3, [-0.2] * 3)),
    ],
    ids=["two readers", "a grouped convolution", "a mean below 0", "a negative scale"],
)
def test_what_bytes_cannot_express_is_left_as_it_is(tmp_path: Path, model: nn.Module, preprocess: nn.Module) -> None:
    source = exported(tmp_path, nn.Sequential(model, nn.Flatten()), preprocess)
    target, read = folded(source)
    assert read is None
    np.testing.assert_array_equal(answers(target), answers(source))


def test_floats_that_come_in_stay_floats(tmp_path: Path) -> None:
    source = exported(tmp_path, convolutional(), None, IMAGES.astype(np.float32))
    assert folded(source)[1] is None


def pair(name: str) -> ModelProto:
    """A layer of that kind whose output is rounded."""
    weights = [
        numpy_helper.from_array(np.ones((3, 3) if name != "Conv" else (3, 3, 1, 1), np.float32), "w"),
        numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.uint8), "z"),
    ]
    nodes = [
        helper.make_node(name, ["x", "w"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["output"]),
    ]
    shape = ["n", 3] if name != "Conv" else ["n", 3, 1, 1]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "output")]
    return helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], weights))


def test_scores_of_a_linear_layer_are_not_rounded() -> None:
    model = pair("MatMul")
    drop_roundings(model, None)
    assert [n.op_type for n in model.graph.node] == ["MatMul"]
    assert list(model.graph.node[0].output) == ["output"]
    assert [i.name for i in model.graph.initializer] == ["w"]
    convolution = pair("Conv")  # has no integer form that gives floats
    drop_roundings(convolution, None)
    assert len(convolution.graph.node) == 3
