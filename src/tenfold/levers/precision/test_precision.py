from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from tenfold.build import Builder
from tenfold.engine import SessionConfig, open_session
from tenfold.export import Served, export
from tenfold.lever import Lever, Refusal, Stage, discover
from tenfold.levers.precision import _to_float16
from tenfold.operators import is_of_integers
from tenfold.plan import Plan
from tenfold.testing import LeverContract


class TestPrecision(LeverContract):
    name = "precision"

    def test_integers_are_not_made_floats_again(self, lever: Lever, small_builder: Builder, plan: Plan) -> None:
        quantize = discover()["quantize"]
        answer = quantize.propose(self.situation(small_builder, plan, Stage.COMPRESSION))
        assert not isinstance(answer, Refusal)
        integers = quantize.apply(plan, answer[0])
        found = lever.propose(self.situation(small_builder, integers, Stage.COMPRESSION))
        if isinstance(found, Refusal):
            assert "integers" in found.reason
        else:  # what is left of floats may be computed in bfloat16 where there is an engine for it
            assert [c["weights"] for c in found] == ["float32"]


def test_a_graph_with_few_integers_among_its_weights_is_one_of_floats(tmp_path: Path) -> None:
    def graph(integers: int) -> Path:
        weights = [numpy_helper.from_array(np.zeros(10, np.float32), "floats"), numpy_helper.from_array(np.zeros(integers, np.int8), "integers")]
        path = tmp_path / f"{integers}.onnx"
        onnx.save(helper.make_model(helper.make_graph([], "g", [], [], initializer=weights)), path)
        return path

    assert not is_of_integers(graph(5))
    assert is_of_integers(graph(50))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


def test_attention_runs_in_float16(tmp_path: Path) -> None:
    """onnxruntime 1.32 ends the process where a matrix product has a scale in float16."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 16, 32)).astype(np.float32)
    export(Served(Attention(), None), [x], tmp_path / "model.onnx")
    _to_float16(tmp_path / "model.onnx", tmp_path / "half.onnx", None)  # type: ignore[arg-type]
    wanted, got = (open_session(tmp_path / name, SessionConfig())([x]) for name in ("model.onnx", "half.onnx"))
    np.testing.assert_allclose(got, wanted, atol=0.02)
