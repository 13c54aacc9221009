"""What stands around a graph's layers and is not needed once they compute in integers.

Images come as bytes, and a first layer in integers reads bytes: where pre-processing is `scale * x + offset`, the bytes are the
quantized input already, with that scale and the zero point `-offset / scale`, rounded to a grey level. And scores that nothing
computes on further need no rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

from tenfold.data.split import Array


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """A tensor that stands for the bytes of an input: `scale * (byte - zero)`."""

    tensor: str
    scale: float
    zero: int


def fold_input(model: ModelProto) -> Bytes | None:
    """Replaces affine pre-processing of a uint8 input, (batch, channels, …), by one DequantizeLinear, in place.

    Scales that differ by channel go into the weights of the convolution that reads the result, and what rounding the zero point
    leaves over into its bias. None, and nothing is changed, where there is no such pre-processing or it has no such form.
    """
    graph = model.graph
    for given in graph.input:
        if given.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        found = _affine(graph, given.name)
        if found is None:
            continue
        nodes, scale, offset = found
        tensor = nodes[-1].output[0]
        one = float(scale.max())
        zero = round(float(np.mean(-offset / scale))) if (scale > 0).all() else -1
        if not 0 <= zero <= 255:
            continue
        left = offset + scale * zero
        if len(scale) > 1 or abs(left[0]) > 1e-6 * one:
            readers = _readers(graph, tensor)
            if not (len(readers) == 1 and _adapt(graph, readers[0], scale / one, left)) and len(scale) > 1:
                continue
        ONNXModel(model).remove_nodes(nodes)
        graph.initializer.extend([
            numpy_helper.from_array(np.array(one, np.float32), f"{tensor}_scale_of_bytes"),
            numpy_helper.from_array(np.array(zero, np.uint8), f"{tensor}_zero_of_bytes"),
        ])  # fmt: skip
        names = [given.name, f"{tensor}_scale_of_bytes", f"{tensor}_zero_of_bytes"]
        graph.node.insert(0, helper.make_node("DequantizeLinear", names, [tensor], name="bytes"))
        ONNXModel(model).clean_initializers()
        return Bytes(tensor=tensor, scale=one, zero=zero)
    return None


def drop_roundings(model: ModelProto, read: Bytes | None) -> None:
    """Drops, in place, pairs of QuantizeLinear and DequantizeLinear: that after `read`, and that before a score of a linear layer."""
    whole = ONNXModel(model)
    if read is not None:
        for quantize in [n for n in _readers(model.graph, read.tensor) if n.op_type == "QuantizeLinear"]:
            pairs = whole.get_children(quantize)
            for dequantize in pairs:
                whole.replace_input_of_all_nodes(dequantize.output[0], read.tensor)
            whole.remove_nodes([*pairs, quantize])
    for score in model.graph.output:
        dequantize = whole.output_name_to_node()[score.name]
        quantize = whole.get_parent(dequantize, 0)
        layer = quantize and whole.get_parent(quantize, 0)
        if layer is None or (dequantize.op_type, quantize.op_type) != ("DequantizeLinear", "QuantizeLinear"):
            continue
        if layer.op_type not in ("Gemm", "MatMul"):  # others have no integer form that gives floats
            continue
        if len(whole.get_children(layer)) == len(whole.get_children(quantize)) == 1:
            whole.remove_nodes([dequantize, quantize])
            layer.output[0] = score.name
    whole.clean_initializers()


def _affine(graph: GraphProto, name: str) -> tuple[list[NodeProto], Array, Array] | None:
    """The nodes that make `scale * x + offset` of an input, with both by channel, or one of each for all."""
    constants = {i.name: i for i in graph.initializer}
    nodes: list[NodeProto] = []
    scale, offset = np.ones(1), np.zeros(1)
    while len(readers := _readers(graph, name)) == 1:
        node = readers[0]
        if not nodes:
            if node.op_type != "Cast" or helper.get_node_attr_value(node, "to") != TensorProto.FLOAT:
                return None
        else:
            other = next((n for n in node.input if n in constants), None)
            number = _by_channel(numpy_helper.to_array(constants[other])) if other is not None else None
            first = node.input[0] == name
            if number is None or len(node.input) != 2:
                break
            if node.op_type == "Mul":
                scale, offset = scale * number, offset * number
            elif node.op_type == "Div" and first:
                scale, offset = scale / number, offset / number
            elif node.op_type == "Add":
                scale, offset = scale + 0 * number, offset + number
            elif node.op_type == "Sub" and first:
                scale, offset = scale + 0 * number, offset - number
            else:
                break
        nodes.append(node)
        name = node.output[0]
    if not nodes or name in {o.name for o in graph.output}:
        return None
    offset = offset + 0 * scale
    same = bool((scale == scale[0]).all() and (offset == offset[0]).all())
    return nodes, scale[:1] if same else scale, offset[:1] if same else offset


def _by_channel(constant: Array) -> Array | None:
    """Of a constant that is one number, or one a channel of images: those numbers."""
    if constant.size == 1:
        return constant.reshape(1).astype(np.float64)
    return constant.reshape(-1).astype(np.float64) if constant.ndim >= 3 and constant.shape[-3] == constant.size else None


def _adapt(graph: GraphProto, layer: NodeProto, scale: Array, offset: Array) -> bool:
    """Moves `scale * x + offset` by channel into an ungrouped convolution with constant weights; False where it is none."""
    constants = {i.name: i for i in graph.initializer}
    names = [layer.input[i] for i in (1, 2) if i < len(layer.input)]
    grouped = any(a.name == "group" and a.i != 1 for a in layer.attribute)
    if layer.op_type != "Conv" or grouped or len(names) != 2 or any(n not in constants or len(_readers(graph, n)) > 1 for n in names):
        return False
    weight, bias = (numpy_helper.to_array(constants[n]) for n in names)
    by_channel = weight.reshape(*weight.shape[:2], -1).sum(2)  # (output channels, input channels)
    shape = (1, -1, *[1] * (weight.ndim - 2))
    constants[names[1]].CopyFrom(numpy_helper.from_array((bias + (by_channel * offset).sum(1)).astype(np.float32), names[1]))
    constants[names[0]].CopyFrom(numpy_helper.from_array((weight * scale.reshape(shape)).astype(np.float32), names[0]))
    return True


def _readers(graph: GraphProto, name: str) -> list[NodeProto]:
    return [n for n in graph.node if name in n.input]
