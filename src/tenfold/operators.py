"""Which operators an ONNX graph is made of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

INTEGER = ("QuantizeLinear", "DequantizeLinear", "MatMulNBits", "MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM")
"""Those that compute in integers, or lead to such."""


def operators(path: Path) -> Counter[str]:
    """How many a graph has of each kind; what is in branches does not count."""
    import onnx

    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def has_integers(path: Path) -> bool:
    """Whether any operator computes in integers."""
    count = operators(path)
    return any(count[kind] for kind in INTEGER)
