"""Which operators an ONNX graph is made of."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

INTEGER = ("QuantizeLinear", "DequantizeLinear", "MatMulNBits", "MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM")
"""Those that compute in integers, or lead to such."""


def operators(path: Path) -> Counter[str]:
    """How many a graph has of each kind, in its branches too."""
    import onnx

    return _count(onnx.load(path, load_external_data=False).graph)


def _count(graph: onnx.GraphProto) -> Counter[str]:
    found = Counter(node.op_type for node in graph.node)
    for attribute in (a for node in graph.node for a in node.attribute if a.HasField("g")):
        found += _count(attribute.g)
    return found


def is_of_integers(path: Path) -> bool:
    """Whether more of a graph's weights are integers of a byte or less than are floats."""
    import onnx

    integers = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    sizes: Counter[bool] = Counter()
    for weights in onnx.load(path, load_external_data=False).graph.initializer:
        if weights.data_type in integers or weights.data_type == onnx.TensorProto.FLOAT:
            sizes[weights.data_type in integers] += math.prod(weights.dims)
    return sizes[True] > sizes[False]
